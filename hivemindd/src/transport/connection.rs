//! One admitted connection: its queue outwards, its datagrams and streams inwards.

use std::net::SocketAddr;
use std::sync::Arc;

use hivemind_core::event::{Event, Message, Peer};
use hivemind_spec::id::NodeId;
use quinn::{Connection, ConnectionError};
use tokio::time::{Instant, timeout};

use super::links::{Live, Outcome, Queue, canonical};
use super::refusals::Refusal;
use super::wire::{self, CloseCode, STREAM_TIMEOUT, WireError};
use super::{IncomingHttp, Shared, tls};

/// A connection in use.
struct Admitted {
    shared: Arc<Shared>,
    connection: Connection,
    node: NodeId,
}

/// Waits for the dialled side's welcome.
pub(super) async fn welcome(connection: &Connection) -> Result<(), ConnectionError> {
    let mut stream = connection.accept_uni().await?;
    match wire::read_kind(&mut stream).await {
        Ok(wire::WELCOME) => Ok(()),
        other => {
            let fault = other.map_or_else(|e| e.to_string(), |kind| WireError::UnknownKind(kind).to_string());
            connection.close(CloseCode::Protocol.into(), fault.as_bytes());
            Err(connection.closed().await)
        }
    }
}

/// Takes a connection that this node dialled into use and serves it in a task of its own.
pub(super) async fn start(shared: Arc<Shared>, connection: Connection) -> Outcome {
    match admit(&shared, &connection, true).await {
        Ok((admitted, queue)) => {
            shared.spawn(admitted.serve(queue, false));
            Outcome::Connected
        }
        Err(outcome) => outcome,
    }
}

/// Takes a connection that was dialled by the peer into use and serves it to its end.
pub(super) async fn run(shared: Arc<Shared>, connection: Connection, we_dialled: bool) {
    if let Ok((admitted, queue)) = admit(&shared, &connection, we_dialled).await {
        admitted.serve(queue, !we_dialled).await;
    }
}

async fn admit(
    shared: &Arc<Shared>,
    connection: &Connection,
    we_dialled: bool,
) -> Result<(Admitted, Queue), Outcome> {
    let address = canonical(connection.remote_address());
    let (identity, chain) = tls::peer_of(&shared.root, connection).map_err(|error| {
        let reason = error.to_string();
        connection.close(CloseCode::Refused.into(), reason.as_bytes());
        shared.refusals.write(address, Refusal::Ours(reason));
        Outcome::Failed
    })?;
    let node = identity.node;
    if node == shared.me {
        connection.close(CloseCode::Myself.into(), b"this is you");
        return Err(Outcome::Myself);
    }
    let (live, queue) = Live::new(connection.clone(), we_dialled);
    let telling = shared.telling.lock().await;
    let admitted = shared.links().admit(shared.me, node, &live, Instant::now());
    match admitted {
        Ok(None) => {}
        Ok(Some(older)) => older.connection.close(CloseCode::Duplicate.into(), b"replaced by a newer one"),
        Err(()) => {
            connection.close(CloseCode::Duplicate.into(), b"another connection is in use");
            return Err(Outcome::Duplicate);
        }
    }
    // The core may be gone when the node stops; then nobody needs to know.
    let _ = shared.events.send(Event::Connected { peer: Peer { node, address }, chain }).await;
    drop(telling);
    shared.connected.notify_waiters();
    Ok((Admitted { shared: shared.clone(), connection: connection.clone(), node }, queue))
}

impl Admitted {
    /// Serves the connection to its end, then tells the core, unless another one took its place.
    async fn serve(self, queue: Queue, greet: bool) {
        let error = tokio::select! {
            error = self.connection.closed() => error,
            () = async {
                tokio::join!(self.write(queue, greet), self.datagrams(), self.messages(), self.requests());
            } => self.connection.closed().await,
        };
        if let Some(refusal @ Refusal::Theirs(_)) = Refusal::of(&error) {
            self.shared.refusals.write(self.address(), refusal);
        }
        tracing::debug!(node = %self.node.short(), %error, "disconnected");
        let telling = self.shared.telling.lock().await;
        let was_in_use = self.shared.links().ended(self.node, self.connection.stable_id());
        if was_in_use {
            let _ = self.shared.events.send(Event::Disconnected { node: self.node }).await;
        }
        drop(telling);
    }

    fn address(&self) -> SocketAddr {
        canonical(self.connection.remote_address())
    }

    /// Sends what is queued, one stream to a message. The welcome goes first.
    async fn write(&self, mut queue: Queue, greet: bool) {
        if greet && self.write_stream(&[wire::WELCOME]).await.is_err() {
            return;
        }
        while let Some(frame) = queue.next().await {
            match timeout(STREAM_TIMEOUT, self.write_stream(&frame.bytes)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return,
                Err(_) => tracing::debug!(node = %self.node.short(), "the peer stalls: message lost"),
            }
        }
    }

    async fn write_stream(&self, bytes: &[u8]) -> std::io::Result<()> {
        let mut stream = self.connection.open_uni().await?;
        if let Err(error) = stream.write_all(bytes).await {
            // The peer may stop one stream; only the connection's end is ours.
            return if self.connection.close_reason().is_some() { Err(error.into()) } else { Ok(()) };
        }
        let _ = stream.finish();
        Ok(())
    }

    async fn datagrams(&self) {
        while let Ok(bytes) = self.connection.read_datagram().await {
            match wire::decode(&bytes) {
                Ok(message) => self.received(message).await,
                Err(error) if error.is_fault() => return self.fault(&error),
                Err(_) => {}
            }
        }
    }

    /// Reads messages one after the other: what one peer can have in memory stays small.
    async fn messages(&self) {
        while let Ok(mut stream) = self.connection.accept_uni().await {
            let read = async {
                match wire::read_kind(&mut stream).await? {
                    wire::MESSAGE => wire::read_message(&mut stream, &self.shared.large_reads).await,
                    kind => Err(WireError::UnknownKind(kind)),
                }
            };
            match timeout(STREAM_TIMEOUT, read).await {
                Ok(Ok(message)) => self.received(message).await,
                Ok(Err(error)) if error.is_fault() => return self.fault(&error),
                Ok(Err(_)) | Err(_) => {}
            }
        }
    }

    async fn requests(&self) {
        while let Ok((send, mut recv)) = self.connection.accept_bi().await {
            // Of another kind it is a later release's, which sees the stream end.
            if let Ok(Ok(wire::HTTP)) = timeout(STREAM_TIMEOUT, wire::read_kind(&mut recv)).await {
                let stream = tokio::io::join(recv, send);
                // Dropping the stream, when the API takes no more, tells the peer.
                let _ = self.shared.http.try_send(IncomingHttp { from: self.node, stream });
            }
        }
    }

    async fn received(&self, message: Message) {
        let event = Event::Received { from: self.node, address: self.address(), message };
        // Waiting here slows this peer down, and only it.
        let _ = self.shared.events.send(event).await;
    }

    fn fault(&self, error: &WireError) {
        let reason = format!("it sent {error}");
        self.shared.refusals.write(self.address(), Refusal::Ours(reason));
        self.connection.close(CloseCode::Protocol.into(), error.to_string().as_bytes());
    }
}
