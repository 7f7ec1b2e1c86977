//! Commands in containers, by WebSocket: `hivemind_spec::exec` says how.

use std::sync::Arc;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts as _, Request, State};
use axum::response::Response;
use futures_util::{SinkExt as _, StreamExt as _};
use hivemind_core::event::{ContainerId, OperationError};
use hivemind_core::node::Node;
use hivemind_core::record::{ReplicaId, WorkloadId};
use hivemind_core::replica::container_id;
use hivemind_spec::api::{Phase, Replica};
use hivemind_spec::document::Kind;
use hivemind_spec::exec::{
    ExecRequest, FromClient, FromNode, MAX_DATA_BYTES, MAX_MESSAGE_BYTES, PING_EVERY, SILENT, WINDOW_BYTES,
};
use hivemind_spec::id::{KeyId, NodeId};
use hivemind_spec::problem::{Code, Problem};
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinError;
use tokio::time::{Instant, MissedTickBehavior};
use utoipa::IntoParams;

use super::Context;
use super::auth::Signer;
use super::forward::{FromPeer, forward_upgrade};
use super::refusal::{Path, Query, Refusal};
use crate::runtime::session::{Input, OtherEnd};

/// Commands that people run here or through here at a time. Each costs its windows of input and output at most.
pub const MAX_SESSIONS: usize = 32;

/// Messages that wait for a command that does not read, or for a client: more than one types while a pipe is full.
const MAX_WAITING: usize = 1024;

/// Where, and what.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Asked {
    /// The replica; any that runs if not given.
    slot: Option<u32>,
    /// What is to run, as the JSON of an `ExecRequest`.
    request: String,
}

/// Runs a command in a container of a workload, by WebSocket. Whoever may write the workload may.
#[utoipa::path(get, path = "/v1/exec/{namespace}/{workload}",
    params(("namespace" = String, Path), ("workload" = String, Path), Asked),
    responses((status = 101, description = "a WebSocket: binary messages are input and output, text messages the JSON \
            of `FromClient` and `FromNode`", body = FromNode),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn exec(
    State(context): State<Context>,
    Path((namespace, name)): Path<(String, String)>,
    Query(asked): Query<Asked>,
    Extension(Signer(key)): Extension<Signer>,
    request: Request,
) -> Result<Response, Refusal> {
    let (mut parts, _) = request.into_parts();
    let workload = WorkloadId { namespace, name };
    let wanted = read(&asked.request)?;
    let from_peer = parts.extensions.get::<FromPeer>().is_some();
    if !may_run(&context, key, &workload.namespace).await? {
        return Err(forbidden(key, &workload.namespace).into());
    }
    let (me, chosen) = context
        .agent
        .read({
            let workload = workload.clone();
            move |core, now| {
                let me = core.me();
                let replicas = core.view(now, "").replicas(Some(&workload.namespace), Some(&workload.name));
                let chosen = choose(&replicas, asked.slot, from_peer.then_some(me));
                let chosen = chosen.map(|(node, slot)| {
                    let replica = ReplicaId { workload, slot };
                    let status = core.cluster().replicas.get(&(replica.clone(), me));
                    let container = status.map(|status| container_id(&replica, &status.template));
                    (node, replica, container)
                });
                (me, chosen)
            }
        })
        .await?;
    let (node, replica, container) = chosen.map_err(|why| not_running(&workload, asked.slot, &why))?;
    let place = Arc::clone(&context.sessions).try_acquire_owned().map_err(|_| {
        Problem::new(Code::Busy, format!("{MAX_SESSIONS} commands are under way on this node"))
            .advice("end one, or ask another node with --node")
    })?;
    if node != me {
        return Ok(forward_upgrade(&context, node, &mut parts, place).await?);
    }
    let container =
        container.ok_or_else(|| not_running(&workload, Some(replica.slot), "has no container"))?;
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &()).await.map_err(|rejection| {
        Problem::new(Code::Malformed, format!("this path speaks WebSocket: {}", rejection.body_text()))
    })?;
    let program = wanted.command.first().map(String::as_str).unwrap_or_default();
    let (namespace, name, slot) = (&workload.namespace, &workload.name, replica.slot);
    tracing::info!(code = "exec", %key, program, "a command is run in {namespace}/{name}-{slot}");
    Ok(upgrade.max_message_size(MAX_MESSAGE_BYTES).max_frame_size(MAX_MESSAGE_BYTES).on_upgrade(
        async move |socket| {
            converse(&context, &workload.namespace, key, container, wanted, socket).await;
            drop(place);
        },
    ))
}

/// Whether a key may run commands in containers of a namespace now.
async fn may_run(context: &Context, key: KeyId, namespace: &str) -> Result<bool, Problem> {
    let namespace = namespace.to_owned();
    let allows = move |core: &Node, _| {
        let holder = core.operators().find(|(id, _)| **id == key);
        holder.is_some_and(|(_, holder)| holder.is_live() && holder.allows(Kind::Workload, &namespace))
    };
    context.agent.read(allows).await
}

fn forbidden(key: KeyId, namespace: &str) -> Problem {
    Problem::new(
        Code::Forbidden,
        format!("key {key} may not run commands in containers of namespace {namespace}"),
    )
    .advice("sign with a key that may deploy there; `hivemind keys` shows what each may")
}

/// What is to run, if it can be.
fn read(text: &str) -> Result<ExecRequest, Problem> {
    let malformed =
        |what: String| Problem::new(Code::Malformed, what).advice("see `ExecRequest` in /v1/openapi.json");
    let request: ExecRequest = serde_json::from_str(text)
        .map_err(|error| malformed(format!("the request to run a command cannot be read: {error}")))?;
    let words = request.command.iter().chain(request.env.values()).chain(&request.working_dir);
    if request.command.first().is_none_or(String::is_empty) {
        return Err(malformed("there is no command to run".to_owned()));
    }
    if words.chain(request.env.keys()).any(|word| word.contains('\0')) {
        return Err(malformed("a zero byte cannot be part of a command".to_owned()));
    }
    if let Some(name) = request.env.keys().find(|name| name.is_empty() || name.contains('=')) {
        return Err(malformed(format!("{name:?} cannot be the name of a variable")));
    }
    if let Some(directory) = request.working_dir.as_ref().filter(|directory| !directory.starts_with('/')) {
        return Err(malformed(format!("the working directory {directory:?} is not absolute")));
    }
    Ok(request)
}

/// The replica to run a command in, of those of one workload: the first of those that run best. Only of node `here`, if
/// given.
fn choose(replicas: &[Replica], slot: Option<u32>, here: Option<NodeId>) -> Result<(NodeId, u32), String> {
    let wanted = || replicas.iter().filter(|replica| slot.is_none_or(|slot| replica.slot == slot));
    let has_container = |replica: &&Replica| {
        let rank = match replica.phase {
            Phase::Running => 0,
            Phase::Unhealthy => 1,
            // Its health check has not passed yet, maybe.
            Phase::Starting => 2,
            Phase::Stopping => 3,
            _ => return None,
        };
        let node = replica.node.filter(|node| here.is_none_or(|here| here == *node))?;
        Some((rank, replica.slot, node))
    };
    match wanted().filter_map(|replica| has_container(&replica)).min() {
        Some((_, slot, node)) => Ok((node, slot)),
        None => Err(match wanted().next() {
            Some(replica) if !replica.reason.is_empty() => format!("does not run: {}", replica.reason),
            Some(_) => "does not run".to_owned(),
            None => "is not there".to_owned(),
        }),
    }
}

fn not_running(workload: &WorkloadId, slot: Option<u32>, why: &str) -> Problem {
    let slot = slot.map(|slot| format!("/{slot}")).unwrap_or_default();
    Problem::new(Code::NotFound, format!("{}/{}{slot} {why}", workload.namespace, workload.name)).advice(
        format!("`hivemind ps {}` shows what runs, and `hivemind logs` what it printed", workload.name),
    )
}

/// Passes on between a client and a command until either is done, or the client may no longer.
async fn converse(
    context: &Context,
    namespace: &str,
    key: KeyId,
    container: ContainerId,
    wanted: ExecRequest,
    socket: WebSocket,
) {
    let (input, input_rx) = mpsc::channel(MAX_WAITING);
    let (taken_tx, mut taken) = watch::channel(0);
    let (output_tx, mut output) = mpsc::channel(1);
    let runtime = context.runtime.clone();
    // A task of its own: a command whose client is gone is still to be ended.
    let mut running = tokio::spawn(async move {
        let other = OtherEnd { input: input_rx, taken: taken_tx, output: output_tx };
        runtime.run_session(&container, &wanted, other).await
    });
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
                    // A command that has ended takes nothing.
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
                    tracing::debug!("the client of a command is silent");
                    return;
                }
                // Its key may have been revoked meanwhile.
                if !matches!(may_run(context, key, namespace).await, Ok(true)) {
                    let _ = said.try_send(words(&FromNode::Failed(forbidden(key, namespace))));
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
}

fn is_full(error: mpsc::error::TrySendError<Input>) -> bool {
    matches!(error, mpsc::error::TrySendError::Full(_))
}

/// How a command ended.
fn end(result: Result<Result<u32, OperationError>, JoinError>) -> FromNode {
    match result {
        Ok(Ok(code)) => FromNode::Exited { code },
        Ok(Err(error)) => FromNode::Failed(
            Problem::new(Code::NotStarted, error.text)
                .advice("is the program in the image? `hivemind logs` shows what its own command printed"),
        ),
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

    fn replica(slot: u32, node: u8, phase: Phase) -> Replica {
        Replica {
            namespace: "default".to_owned(),
            workload: "web".to_owned(),
            slot,
            node: Some(NodeId([node; 16])),
            hostname: String::new(),
            phase,
            reason: if phase == Phase::Backoff { "exit code 1".to_owned() } else { String::new() },
            image: String::new(),
            ip: String::new(),
            restarts: 0,
            since_ms: 0,
            exit_code: None,
            pull: None,
            digest: None,
        }
    }

    #[test]
    fn a_command_runs_where_a_container_runs_best() {
        let node = |n: u8| NodeId([n; 16]);
        let all = [
            replica(0, 1, Phase::Backoff),
            replica(1, 2, Phase::Starting),
            replica(2, 3, Phase::Running),
            replica(3, 1, Phase::Running),
        ];
        assert_eq!(choose(&all, None, None), Ok((node(3), 2)));
        assert_eq!(choose(&all, Some(1), None), Ok((node(2), 1)), "its health check may never pass");
        assert_eq!(choose(&all, None, Some(node(1))), Ok((node(1), 3)), "asked by a node that sees it here");
        assert_eq!(choose(&all, Some(0), None), Err("does not run: exit code 1".to_owned()));
        assert_eq!(choose(&all, Some(7), None), Err("is not there".to_owned()));
        assert_eq!(choose(&[], None, None), Err("is not there".to_owned()));
    }

    #[test]
    fn what_cannot_be_run_is_refused_before_anything_is() {
        let refused = |json: &str| read(json).unwrap_err().detail;
        assert!(refused("{").contains("cannot be read"));
        assert!(refused(r#"{"command":[]}"#).contains("no command"));
        assert!(refused(r#"{"command":[""]}"#).contains("no command"));
        assert!(refused(r#"{"command":["a\u0000b"]}"#).contains("zero byte"));
        assert!(refused(r#"{"command":["a"],"env":{"A=B":"c"}}"#).contains("A=B"));
        assert!(refused(r#"{"command":["a"],"workingDir":"tmp"}"#).contains("not absolute"));
        assert!(refused(r#"{"command":["a"],"privileged":true}"#).contains("privileged"));
        let request = read(r#"{"command":["sh"],"terminal":{"columns":80,"rows":24}}"#).unwrap();
        assert_eq!((request.command.len(), request.terminal.is_some()), (1, true));
    }

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
