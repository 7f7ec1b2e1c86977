//! Conversations by WebSocket with what a node does for somebody: `hivemind_spec::exec` says how.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::FromRequestParts as _;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::request::Parts;
use axum::response::Response;
use futures_util::{SinkExt as _, StreamExt as _};
use hivemind_core::node::Node;
use hivemind_spec::document::Kind;
use hivemind_spec::exec::{
    FromClient, FromNode, MAX_DATA_BYTES, MAX_MESSAGE_BYTES, PING_EVERY, SILENT, WINDOW_BYTES,
};
use hivemind_spec::id::{KeyId, NodeId};
use hivemind_spec::problem::{Code, Problem};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::task::JoinError;
use tokio::time::{Instant, MissedTickBehavior, timeout};

use super::Context;
use super::forward::{FromPeer, forward_upgrade};
use crate::runtime::stream::{Input, OtherEnd};

/// Conversations here or through here at a time. Each costs its windows of input and output at most.
pub const MAX_SESSIONS: usize = 32;

/// Messages that wait for work that does not read, or for a client: more than one types while a pipe is full.
const MAX_WAITING: usize = 1024;

/// How long a client has to close a conversation that has ended.
const FAREWELL: Duration = Duration::from_secs(5);

/// What whoever converses must be allowed, for as long as it goes on.
#[derive(Debug, Clone)]
pub(super) struct Right {
    /// The key that asked.
    pub(super) key: KeyId,
    /// It must be one that may write documents of this kind,
    pub(super) kind: Kind,
    /// in this namespace; empty: in all.
    pub(super) namespace: String,
    /// What it may then do, in words: "run commands in containers".
    pub(super) doing: &'static str,
}

impl Right {
    /// # Errors
    /// [`Code::Forbidden`].
    pub(super) async fn check(&self, context: &Context) -> Result<(), Problem> {
        let Self { key, kind, namespace, doing } = self.clone();
        let allows = move |core: &Node, _| {
            let holder = core.operators().find(|(id, _)| **id == key);
            holder.is_some_and(|(_, holder)| holder.is_live() && holder.allows(kind, &namespace))
        };
        if context.agent.read(allows).await? {
            return Ok(());
        }
        let (place, who) = match self.namespace.as_str() {
            "" => (String::new(), "sign with the key of an admin"),
            name => (format!(" of namespace {name}"), "sign with a key that may deploy there"),
        };
        Err(Problem::new(Code::Forbidden, format!("key {key} may not {doing}{place}"))
            .advice(format!("{who}; `hivemind keys` shows what each may")))
    }
}

/// A place among the conversations of this node.
///
/// # Errors
/// [`Code::Busy`].
pub(super) fn place(context: &Context) -> Result<OwnedSemaphorePermit, Problem> {
    Arc::clone(&context.sessions).try_acquire_owned().map_err(|_| {
        Problem::new(Code::Busy, format!("{MAX_SESSIONS} commands and copies are under way on this node"))
            .advice("end one, or ask another node with --node")
    })
}

/// The answer of another node, whose bytes pass through here; None if `node` is this one, which is to converse itself.
pub(super) async fn elsewhere(
    context: &Context,
    node: NodeId,
    parts: &mut Parts,
) -> Result<Option<Response>, Problem> {
    let me = context.agent.read(|core, _| core.me()).await?;
    if me == node {
        return Ok(None);
    }
    if parts.extensions.get::<FromPeer>().is_some() {
        return Err(Problem::new(
            Code::NotFound,
            format!("this is node {}, which does not have it", me.short()),
        )
        .advice("try again: the nodes do not all know yet where it is"));
    }
    Ok(Some(forward_upgrade(context, node, parts, place(context)?).await?))
}

/// Converses: `work` is given the other end, and its exit code is what the client is told last.
pub(super) async fn open<W>(
    context: &Context,
    right: Right,
    parts: &mut Parts,
    work: impl FnOnce(OtherEnd) -> W + Send + 'static,
) -> Result<Response, Problem>
where
    W: Future<Output = Result<u32, Problem>> + Send + 'static,
{
    let place = place(context)?;
    let upgrade = WebSocketUpgrade::from_request_parts(parts, &()).await.map_err(|rejection| {
        Problem::new(Code::Malformed, format!("this path speaks WebSocket: {}", rejection.body_text()))
    })?;
    let context = context.clone();
    Ok(upgrade.max_message_size(MAX_MESSAGE_BYTES).max_frame_size(MAX_MESSAGE_BYTES).on_upgrade(
        async move |socket| {
            converse(&context, &right, work, socket).await;
            drop(place);
        },
    ))
}

/// Passes on between a client and the work until either is done, or the client may no longer.
async fn converse<W>(
    context: &Context,
    right: &Right,
    work: impl FnOnce(OtherEnd) -> W + Send + 'static,
    socket: WebSocket,
) where
    W: Future<Output = Result<u32, Problem>> + Send + 'static,
{
    let (input, input_rx) = mpsc::channel(MAX_WAITING);
    let (taken_tx, mut taken) = watch::channel(0);
    let (output_tx, mut output) = mpsc::channel(1);
    // A task of its own: a command whose client is gone is still to be ended.
    let other = OtherEnd { input: input_rx, taken: taken_tx, output: output_tx };
    let mut running = tokio::spawn(work(other));
    // What is said waits beside what is heard: two that only spoke would wait for each other for ever.
    let (mut mouth, mut ear) = socket.split();
    let (said, mut to_say) = mpsc::channel::<Message>(MAX_WAITING);
    tokio::spawn(async move {
        while let Some(message) = to_say.recv().await {
            if mouth.send(message).await.is_err() {
                return;
            }
        }
    });
    let (mut given, mut told, mut received) = (0, 0, 0);
    let mut heard = Instant::now();
    let mut ping = tokio::time::interval(PING_EVERY);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut ended, mut done) = (None, false);
    let last = loop {
        if done && let Some(last) = &ended {
            break last;
        }
        let message = tokio::select! {
            result = &mut running, if ended.is_none() => {
                ended = Some(end(result));
                continue;
            }
            data = output.recv(), if given + MAX_DATA_BYTES <= WINDOW_BYTES && !done => match data {
                Some((stream, data)) => {
                    given += data.len();
                    Message::Binary([&[stream as u8], &data[..]].concat().into())
                }
                None => {
                    done = true;
                    continue;
                }
            },
            Ok(()) = taken.changed(), if ended.is_none() => {
                let bytes = *taken.borrow_and_update() - told;
                told += bytes;
                words(&FromNode::Taken { bytes })
            }
            message = ear.next() => {
                heard = Instant::now();
                let Some(Ok(message)) = message else { return };
                match hear(message, &mut given) {
                    Err(()) => return,
                    // What has ended takes nothing.
                    Ok(Some(said)) if ended.is_none() => {
                        if let Input::Data(data) = &said {
                            received += data.len() as u64;
                        }
                        let under_way = received - *taken.borrow();
                        // More than was agreed.
                        if under_way > WINDOW_BYTES as u64 || input.try_send(said).is_err_and(is_full) {
                            return;
                        }
                    }
                    Ok(_) => {}
                }
                continue;
            }
            _ = ping.tick() => {
                if heard.elapsed() > SILENT {
                    tracing::debug!("a client is silent");
                    return;
                }
                // Its key may have been revoked meanwhile.
                if let Err(problem) = right.check(context).await {
                    let _ = said.try_send(words(&FromNode::Failed(problem)));
                    return;
                }
                Message::Ping(Bytes::new())
            }
        };
        if said.try_send(message).is_err() {
            return;
        }
    };
    // Whether or not the client hears it, there is nothing more to do.
    let _ = said.try_send(words(last));
    let _ = said.try_send(Message::Close(None));
    // What the client says meanwhile is read until it closes: closed over it, the connection would be reset, and the
    // last words lost on their way.
    let farewell = async { while let Some(Ok(_)) = ear.next().await {} };
    let _ = timeout(FAREWELL, farewell).await;
}

fn is_full(error: mpsc::error::TrySendError<Input>) -> bool {
    matches!(error, mpsc::error::TrySendError::Full(_))
}

/// How the work ended.
fn end(result: Result<Result<u32, Problem>, JoinError>) -> FromNode {
    match result {
        Ok(Ok(code)) => FromNode::Exited { code },
        Ok(Err(problem)) => FromNode::Failed(problem),
        Err(error) => FromNode::Failed(Problem::new(Code::Internal, error.to_string())),
    }
}

fn words(news: &FromNode) -> Message {
    // Strings and numbers only: this cannot fail.
    Message::text(serde_json::to_string(news).unwrap_or_default())
}

/// What a client's message asks for. An error: it is not as agreed, or the last one.
fn hear(message: Message, given: &mut usize) -> Result<Option<Input>, ()> {
    let text = match message {
        Message::Binary(data) => return Ok(Some(Input::Data(data))),
        Message::Ping(_) | Message::Pong(_) => return Ok(None),
        Message::Close(_) => return Err(()),
        Message::Text(text) => text,
    };
    Ok(match serde_json::from_str(&text).map_err(drop)? {
        FromClient::Resize(size) => Some(Input::Resize(size)),
        FromClient::EndOfInput {} => Some(Input::End),
        FromClient::Taken { bytes } => {
            *given = given.saturating_sub(usize::try_from(bytes).unwrap_or(usize::MAX));
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_says_what_was_not_agreed_is_left() {
        let mut given = 100;
        let heard = hear(Message::text(r#"{"taken":{"bytes":60}}"#), &mut given);
        assert_eq!((heard, given), (Ok(None), 40));
        // More than there was.
        let heard = hear(Message::text(r#"{"taken":{"bytes":18446744073709551615}}"#), &mut given);
        assert_eq!((heard, given), (Ok(None), 0));
        assert_eq!(hear(Message::text(r#"{"endOfInput":{}}"#), &mut given), Ok(Some(Input::End)));
        assert_eq!(hear(Message::text("hello"), &mut given), Err(()));
        assert_eq!(hear(Message::Close(None), &mut given), Err(()));
    }
}
