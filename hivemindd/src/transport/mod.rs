//! Node to node: one QUIC connection per pair (design, section 5).
//!
//! * Both sides prove by TLS who they are; a message's sender is its connection's peer, so no
//!   message carries a sender that could be wrong.
//! * [`Transport::send`] never waits. SWIM packets leave at once as datagrams; everything else
//!   goes into the peer's own bounded queue, so that a slow peer delays only itself. What does
//!   not fit is lost: the core repeats what matters.
//! * A connection is in use only when the dialled side has said so ([`wire::WELCOME`]): a client
//!   would otherwise think itself connected before its certificate is checked.
//!
//! It decides nothing about membership: who is revoked or may join is the core's business, which
//! answers [`Event::Connected`] with [`Transport::refuse`] if need be. A dead peer's connection
//! ends within [`IDLE_TIMEOUT`], but death is declared by SWIM.

mod connection;
mod links;
mod refusals;
pub mod tls;
mod wire;

use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hivemind_core::event::{Event, Message, Peer};
use hivemind_spec::certificate::CLUSTER_NAME;
use hivemind_spec::id::NodeId;
use hyper_util::rt::TokioIo;
use quinn::{Endpoint, EndpointConfig, IdleTimeout, TokioRuntime, TransportConfig, VarInt};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::identity::{Identity, Leaf};
use links::{Frame, Links, Outcome, canonical};
use refusals::{Refusal, RefusalLog};
use tls::CurrentLeaf;
pub use wire::MAX_MESSAGE_BYTES;
use wire::{CloseCode, LARGE_READS, MAX_REASON_BYTES};

/// A connection without any packet for this long has ended. Longer than a SWIM round, so that it
/// never hides a recovery; short enough that a peer that came back is not written to in vain.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a quiet connection is kept alive: two chances within [`IDLE_TIMEOUT`], each of which QUIC
/// sends again when it is lost; and seldom enough that SWIM's own packets do it in a small cluster.
const KEEP_ALIVE: Duration = Duration::from_millis(2200);

/// How long a dial may take, welcome included: an answer from across the world under load.
const DIAL_TIMEOUT: Duration = Duration::from_millis(2500);

/// How long an address is dialled after a hint; a hint that still holds comes again.
const HINT_PATIENCE: Duration = Duration::from_secs(10);

/// First guess of a round trip: decides when a lost first packet is sent again. QUIC's own guess
/// of 333 ms suits the internet; ours decides how fast a node joins whose network just came up.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// Handshakes from strangers at the same time.
const MAX_HANDSHAKES: usize = 64;

/// From this many handshakes on, strangers must first prove their address (QUIC Retry).
const RETRY_FROM: usize = 16;

/// Streams of each kind that a peer may have open.
const MAX_STREAMS: u32 = 32;

/// What a peer may have under way to us on one stream, bytes.
const STREAM_WINDOW: u32 = 256 * 1024;

/// What a peer may have under way to us in all, bytes. Bounds memory: with every byte of it
/// received and unread by the core, ten peers hold 5 MiB.
const CONNECTION_WINDOW: u32 = 512 * 1024;

/// Datagrams waiting to be read or sent, bytes: some fifty SWIM packets.
const DATAGRAM_BUFFER: usize = 64 * 1024;

/// Packets of a handshake buffered before it is taken up, bytes: each, and all together.
const INCOMING_BUFFER: u64 = 32 * 1024;
const INCOMING_BUFFER_TOTAL: u64 = 512 * 1024;

/// HTTP streams that wait for the API to take them.
const MAX_WAITING_HTTP: usize = 32;

/// How long [`Transport::open_http`] waits for a connection.
const HTTP_CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the end of all connections may take when the node stops.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The port is not to be had.
    #[error("cannot listen for peers on UDP {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// TLS does not take the certificate.
    #[error("TLS cannot be set up: {0}")]
    Tls(rustls::Error),
    /// There is no connection to the node, and none could be made in time.
    #[error("no connection to node {node}")]
    NotConnected {
        /// The node.
        node: NodeId,
    },
    /// A request was not answered.
    #[error("node {node} ended the request")]
    Broken {
        /// The node.
        node: NodeId,
        /// How.
        source: hyper::Error,
    },
}

/// A byte stream between two nodes. Both directions end by shutdown or drop.
pub type ByteStream = tokio::io::Join<quinn::RecvStream, quinn::SendStream>;

/// A stream on which a peer speaks HTTP to this node's API, on behalf of one of its own clients.
pub struct IncomingHttp {
    /// The node that forwards. It vouches for nothing: requests prove themselves by signature.
    pub from: NodeId,
    /// The stream.
    pub stream: ByteStream,
}

/// The connections to all peers. Clones share them.
#[derive(Clone)]
pub struct Transport {
    shared: Arc<Shared>,
}

struct Shared {
    endpoint: Endpoint,
    me: NodeId,
    root: Vec<u8>,
    leaf: Arc<CurrentLeaf>,
    links: Mutex<Links>,
    /// Held while connections change and the core is told, so that it hears in the right order.
    telling: tokio::sync::Mutex<()>,
    events: mpsc::Sender<Event>,
    http: mpsc::Sender<IncomingHttp>,
    refusals: RefusalLog,
    large_reads: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    connected: Notify,
    tasks: Mutex<JoinSet<()>>,
}

impl Transport {
    /// Listens on `address` (UDP) and dials from it. The receiver gives the HTTP streams that
    /// peers open. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the address is taken or TLS does not take the leaf.
    pub fn start(
        identity: &Identity,
        leaf: &Leaf,
        address: SocketAddr,
        events: mpsc::Sender<Event>,
    ) -> Result<(Self, mpsc::Receiver<IncomingHttp>), TransportError> {
        let leaf = CurrentLeaf::new(leaf)?;
        let listen = |source| TransportError::Listen { address, source };
        let socket = UdpSocket::bind(address).map_err(listen)?;
        let (server, client) = configurations(identity, &leaf)?;
        let mut endpoint =
            Endpoint::new(endpoint_config(identity), Some(server), socket, Arc::new(TokioRuntime))
                .map_err(listen)?;
        endpoint.set_default_client_config(client);
        let (http, incoming_http) = mpsc::channel(MAX_WAITING_HTTP);
        let shared = Arc::new(Shared {
            endpoint,
            me: identity.node(),
            root: identity.root().to_vec(),
            leaf,
            links: Mutex::default(),
            telling: tokio::sync::Mutex::default(),
            events,
            http,
            refusals: RefusalLog::default(),
            large_reads: Arc::new(Semaphore::new(LARGE_READS)),
            handshakes: Arc::new(Semaphore::new(MAX_HANDSHAKES)),
            connected: Notify::new(),
            tasks: Mutex::default(),
        });
        shared.spawn(accept(shared.clone()));
        Ok((Self { shared }, incoming_http))
    }

    /// The address listened on.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.shared.endpoint.local_addr()
    }

    /// The leaf in use, to be shared with the HTTPS API.
    pub fn leaf(&self) -> Arc<CurrentLeaf> {
        self.shared.leaf.clone()
    }

    /// Takes a renewed leaf into use, for connections made from now on.
    ///
    /// # Errors
    /// When TLS does not take it.
    pub fn set_leaf(&self, leaf: &Leaf) -> Result<(), TransportError> {
        self.shared.leaf.set(leaf)
    }

    /// Sends to a peer, dialling it first if need be. Never waits; may lose the message.
    pub fn send(&self, to: Peer, message: &Message) {
        let bytes = match wire::encode(message) {
            Ok(bytes) if bytes.len() <= MAX_MESSAGE_BYTES => bytes,
            Ok(bytes) => {
                tracing::error!(bytes = bytes.len(), "a message is too long to send and was dropped");
                return;
            }
            Err(error) => {
                tracing::error!(%error, "a message cannot be encoded and was dropped");
                return;
            }
        };
        if to.node == self.shared.me {
            return;
        }
        let frame = Frame { bytes: bytes.into(), datagram: message.is_datagram() };
        let address = canonical(to.address);
        if self.shared.links().send(to.node, address, frame, Instant::now()) {
            self.shared.spawn(dial(self.shared.clone(), address));
        }
    }

    /// Connects to whoever is at an address, trying for [`HINT_PATIENCE`].
    pub fn connect(&self, address: SocketAddr) {
        let address = canonical(address);
        if self.shared.links().hint(address, Instant::now(), HINT_PATIENCE) {
            self.shared.spawn(dial(self.shared.clone(), address));
        }
    }

    /// Closes the connection to a node and tells it why.
    pub fn refuse(&self, node: NodeId, reason: &str) {
        let live = self.shared.links().live(node).cloned();
        if let Some(live) = live {
            let address = canonical(live.connection.remote_address());
            self.shared.refusals.write(address, Refusal::Ours(format!("node {}: {reason}", node.short())));
            live.connection.close(CloseCode::Refused.into(), clip(reason));
        }
    }

    /// The peers that are connected now.
    pub fn peers(&self) -> Vec<Peer> {
        let links = self.shared.links();
        let open = links.peers.iter().filter_map(|(node, link)| Some((*node, link.live.as_ref()?)));
        open.filter(|(_, live)| live.is_open())
            .map(|(node, live)| Peer { node, address: canonical(live.connection.remote_address()) })
            .collect()
    }

    /// Opens a stream on which HTTP is spoken to a peer's API.
    ///
    /// # Errors
    /// When there is no connection and none can be made within three seconds.
    pub async fn open_http(&self, to: Peer) -> Result<ByteStream, TransportError> {
        let gone = |_| TransportError::NotConnected { node: to.node };
        let opened = async {
            let connection = self.shared.connection(to).await;
            let (mut send, recv) = connection.open_bi().await?;
            send.write_all(&[wire::HTTP]).await?;
            Ok::<_, std::io::Error>(tokio::io::join(recv, send))
        };
        timeout(HTTP_CONNECT_TIMEOUT, opened)
            .await
            .map_err(|_| TransportError::NotConnected { node: to.node })?
            .map_err(gone)
    }

    /// Sends a request to a peer's API. The stream it travels on ends with the body of the answer.
    ///
    /// # Errors
    /// When there is no connection and none can be made within three seconds, or it breaks.
    pub async fn request<B>(
        &self,
        to: Peer,
        request: hyper::Request<B>,
    ) -> Result<hyper::Response<hyper::body::Incoming>, TransportError>
    where
        B: hyper::body::Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
            + Send
            + 'static,
    {
        let stream = TokioIo::new(self.open_http(to).await?);
        let broken = |source| TransportError::Broken { node: to.node, source };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.map_err(broken)?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a request to a peer ended");
            }
        });
        sender.send_request(request).await.map_err(broken)
    }

    /// Ends all connections, telling peers so, and stops listening.
    pub async fn close(&self) {
        self.shared.links().closed = true;
        self.shared.endpoint.close(CloseCode::Leaving.into(), b"the node stops");
        // What has not left by then is lost, as in a power cut; peers notice by themselves.
        let _ = timeout(CLOSE_TIMEOUT, self.shared.endpoint.wait_idle()).await;
        let mut tasks =
            std::mem::take(&mut *self.shared.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
    }
}

impl Shared {
    fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// The connection to a peer, dialling it if need be, for as long as the caller waits.
    async fn connection(self: &Arc<Self>, to: Peer) -> quinn::Connection {
        loop {
            let connected = self.connected.notified();
            tokio::pin!(connected);
            connected.as_mut().enable();
            let address = canonical(to.address);
            let start = {
                let mut links = self.links();
                if let Some(live) = links.live(to.node) {
                    return live.connection.clone();
                }
                links.hint(address, Instant::now(), HTTP_CONNECT_TIMEOUT)
            };
            if start {
                self.spawn(dial(self.clone(), address));
            }
            connected.await;
        }
    }
}

fn clip(reason: &str) -> &[u8] {
    &reason.as_bytes()[..reason.len().min(MAX_REASON_BYTES)]
}

/// The part of QUIC's settings that both roles share.
fn transport_config() -> TransportConfig {
    let mut config = TransportConfig::default();
    let idle_ms = u32::try_from(IDLE_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
    config
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(idle_ms))))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(INITIAL_RTT)
        .max_concurrent_uni_streams(VarInt::from_u32(MAX_STREAMS))
        .max_concurrent_bidi_streams(VarInt::from_u32(MAX_STREAMS))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(u64::from(CONNECTION_WINDOW))
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER))
        .datagram_send_buffer_size(DATAGRAM_BUFFER);
    config
}

fn configurations(
    identity: &Identity,
    leaf: &Arc<CurrentLeaf>,
) -> Result<(quinn::ServerConfig, quinn::ClientConfig), TransportError> {
    use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
    // The provider has the one cipher suite that QUIC's first packets need.
    let no_suite = |_| TransportError::Tls(rustls::Error::General("no cipher suite for QUIC".to_owned()));
    let (server, client) = tls::configurations(identity.root(), leaf)?;
    let transport = Arc::new(transport_config());
    let server = QuicServerConfig::try_from(server).map_err(no_suite)?;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(server));
    server
        .transport_config(transport.clone())
        .max_incoming(MAX_HANDSHAKES)
        .incoming_buffer_size(INCOMING_BUFFER)
        .incoming_buffer_size_total(INCOMING_BUFFER_TOTAL);
    let client = QuicClientConfig::try_from(client).map_err(no_suite)?;
    let mut client = quinn::ClientConfig::new(Arc::new(client));
    client.transport_config(transport);
    Ok((server, client))
}

/// Settings by which a node that starts again tells peers at once that their old connections to it
/// are gone (RFC 9000, section 10.3): keys that are the same after every start.
fn endpoint_config(identity: &Identity) -> EndpointConfig {
    let secret = identity.derive("quic stateless reset");
    let mut id_key = [0; 8];
    id_key.copy_from_slice(&identity.derive("quic connection id")[..8]);
    let id_key = u64::from_le_bytes(id_key);
    let mut config = EndpointConfig::new(Arc::new(ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &secret)));
    config.cid_generator(move || Box::new(quinn_proto::HashedConnectionIdGenerator::from_key(id_key)));
    config
}

/// Takes connections that others dial.
async fn accept(shared: Arc<Shared>) {
    while let Some(incoming) = shared.endpoint.accept().await {
        let free = shared.handshakes.available_permits();
        if MAX_HANDSHAKES - free >= RETRY_FROM && !incoming.remote_address_validated() {
            // Fails only for a stranger that was asked before.
            let _ = incoming.retry();
            continue;
        }
        let Ok(turn) = shared.handshakes.clone().try_acquire_owned() else {
            incoming.ignore();
            continue;
        };
        let address = canonical(incoming.remote_address());
        let task = shared.clone();
        shared.spawn(async move {
            let handshake = async { incoming.accept()?.await };
            match timeout(DIAL_TIMEOUT, handshake).await {
                Ok(Ok(connection)) => {
                    drop(turn);
                    connection::run(task, connection, false).await;
                }
                Ok(Err(error)) => task.failed(address, &error),
                Err(_) => tracing::debug!(%address, "a handshake took too long"),
            }
        });
    }
}

impl Shared {
    /// Logs why a connection did not come to be or ended, if somebody refused somebody.
    fn failed(&self, address: SocketAddr, error: &quinn::ConnectionError) {
        match Refusal::of(error) {
            Some(refusal) => self.refusals.write(address, refusal),
            None => tracing::debug!(%address, %error, "a connection ended"),
        }
    }
}

/// Dials an address until it is connected or no longer wanted.
async fn dial(shared: Arc<Shared>, address: SocketAddr) {
    let mut attempt: u64 = 0;
    loop {
        wait_for_turn(&shared, address).await;
        let outcome = dial_once(&shared, address).await;
        attempt += 1;
        if !shared.links().dialled(address, outcome, Instant::now(), jitter(shared.me, address, attempt)) {
            return;
        }
    }
}

/// Waits until the address may be dialled; news of it may bring that forward.
async fn wait_for_turn(shared: &Shared, address: SocketAddr) {
    loop {
        let Some((next, news)) =
            shared.links().dials.get(&address).map(|dial| (dial.next, dial.news.clone()))
        else {
            return;
        };
        tokio::select! {
            () = tokio::time::sleep_until(next) => return,
            () = news.notified() => {}
        }
    }
}

async fn dial_once(shared: &Arc<Shared>, address: SocketAddr) -> Outcome {
    let target = match shared.endpoint.local_addr() {
        Ok(local) if local.is_ipv6() => match address {
            SocketAddr::V4(v4) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
            v6 => v6,
        },
        _ => address,
    };
    let connecting = match shared.endpoint.connect(target, CLUSTER_NAME) {
        Ok(connecting) => connecting,
        Err(error) => {
            tracing::debug!(%address, %error, "cannot be dialled");
            return Outcome::Failed;
        }
    };
    let welcomed = async {
        let connection = connecting.await?;
        connection::welcome(&connection).await?;
        Ok::<_, quinn::ConnectionError>(connection)
    };
    match timeout(DIAL_TIMEOUT, welcomed).await {
        Ok(Ok(connection)) => connection::start(shared.clone(), connection).await,
        Ok(Err(quinn::ConnectionError::ApplicationClosed(close)))
            if CloseCode::Duplicate.is(close.error_code) =>
        {
            Outcome::Duplicate
        }
        Ok(Err(quinn::ConnectionError::ApplicationClosed(close)))
            if CloseCode::Myself.is(close.error_code) =>
        {
            Outcome::Myself
        }
        Ok(Err(error)) => {
            shared.failed(address, &error);
            Outcome::Failed
        }
        Err(_) => {
            tracing::debug!(%address, "nobody answers");
            Outcome::Failed
        }
    }
}

/// A number that differs between nodes, addresses and attempts.
fn jitter(me: NodeId, address: SocketAddr, attempt: u64) -> u64 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    (me, address, attempt).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
