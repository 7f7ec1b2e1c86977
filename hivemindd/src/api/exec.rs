//! Commands in containers, by WebSocket: `hivemind_spec::exec` says how.

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::response::Response;
use hivemind_core::event::ContainerId;
use hivemind_core::record::{ReplicaId, WorkloadId};
use hivemind_core::replica::container_id;
use hivemind_spec::api::{Phase, Replica};
use hivemind_spec::document::Kind;
use hivemind_spec::exec::{ExecRequest, FromNode};
use hivemind_spec::id::{KeyId, NodeId};
use hivemind_spec::problem::{Code, Problem};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use utoipa::IntoParams;

use super::Context;
use super::auth::Signer;
use super::forward::FromPeer;
use super::refusal::{Path, Query, Refusal};
use super::session::{self, Right};

/// Where, and what.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Asked {
    /// The replica; any that runs if not given.
    pub(super) slot: Option<u32>,
    /// What is wanted, as JSON: an `ExecRequest`, a `DebugRequest` or an `AttachRequest`.
    pub(super) request: String,
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
    let right = right(key, &workload, "run commands in containers");
    let (replica, container) = match find(&context, &right, &workload, asked.slot, &mut parts).await? {
        Found::Here(replica, container) => (replica, container),
        Found::Elsewhere(answer) => return Ok(answer),
    };
    let program = wanted.command.first().map(String::as_str).unwrap_or_default();
    context.told("exec", key, Some(&replica.workload), &format!("{program:?} is run in {replica}"));
    let runtime = context.runtime.clone();
    let work = async move |other| {
        runtime.run_session(&container, &wanted, other).await.map_err(|error| {
            Problem::new(Code::NotStarted, error.text)
                .advice("is the program in the image? `hivemind logs` shows what its own command printed")
        })
    };
    Ok(session::open(&context, right, &mut parts, work).await?)
}

/// Whoever may write a workload may look into its containers.
pub(super) fn right(key: KeyId, workload: &WorkloadId, doing: &'static str) -> Right {
    Right { key, kind: Kind::Workload, namespace: workload.namespace.clone(), doing }
}

/// Where a container of a workload is.
pub(super) enum Found {
    /// Here.
    Here(ReplicaId, ContainerId),
    /// On another node, which answers.
    Elsewhere(Response),
}

/// Finds the container of a replica, or of any that runs, for one who has the right to it.
pub(super) async fn find(
    context: &Context,
    right: &Right,
    workload: &WorkloadId,
    slot: Option<u32>,
    parts: &mut Parts,
) -> Result<Found, Problem> {
    right.check(context).await?;
    let here = parts.extensions.get::<FromPeer>().is_some();
    let wanted = workload.clone();
    let chosen = context
        .agent
        .read(move |core, now| {
            let me = core.me();
            let replicas = core.view(now, "").replicas(Some(&wanted.namespace), Some(&wanted.name));
            let chosen = choose(&replicas, slot, here.then_some(me));
            chosen.map(|(node, slot)| {
                let replica = ReplicaId { workload: wanted, slot };
                let status = core.cluster().replicas.get(&(replica.clone(), me));
                let container = status.map(|status| container_id(&replica, &status.template));
                (node, replica, container)
            })
        })
        .await?;
    let (node, replica, container) = chosen.map_err(|why| not_running(workload, slot, &why))?;
    if let Some(answer) = session::elsewhere(context, node, parts).await? {
        return Ok(Found::Elsewhere(answer));
    }
    let container = container.ok_or_else(|| not_running(workload, Some(replica.slot), "has no container"))?;
    Ok(Found::Here(replica, container))
}

/// What is wanted, of a type with this name.
pub(super) fn wanted<T: DeserializeOwned>(text: &str, name: &str) -> Result<T, Problem> {
    serde_json::from_str(text).map_err(|error| {
        Problem::new(Code::Malformed, format!("the request cannot be read: {error}"))
            .advice(format!("see `{name}` in /v1/openapi.json"))
    })
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
}
