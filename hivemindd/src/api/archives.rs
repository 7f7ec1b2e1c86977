//! What is in volumes, as tar archives by WebSocket: read, and filled.

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use hivemind_core::event::OperationError;
use hivemind_core::node::Node;
use hivemind_core::record::{VolumeId, VolumePart};
use hivemind_spec::document::{Kind, is_dns_label};
use hivemind_spec::exec::FromNode;
use hivemind_spec::id::{KeyId, NodeId};
use hivemind_spec::problem::{Code, Problem};
use serde::Deserialize;
use utoipa::IntoParams;

use super::Context;
use super::auth::Signer;
use super::refusal::{Path, Query, Refusal};
use super::session::{self, Right};
use super::snapshots;

/// Which of a volume.
#[derive(Debug, Clone, Copy, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// The number of the part; 0 if not given.
    #[serde(default)]
    pub(super) number: u32,
    /// On which node; the one that has it if not given.
    #[param(value_type = Option<String>)]
    pub(super) node: Option<NodeId>,
}

/// Reads a part of a volume as a tar archive, by WebSocket, as its containers go on. Whoever may write the volume may.
#[utoipa::path(get, path = "/v1/volumes/{namespace}/{volume}/archive",
    params(("namespace" = String, Path), ("volume" = String, Path), Which),
    responses((status = 101, description = "a WebSocket: standard output is the archive, standard error what is not in it \
            as it was, a line for each", body = FromNode),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn read(
    State(context): State<Context>,
    Path((namespace, name)): Path<(String, String)>,
    Query(which): Query<Which>,
    Extension(Signer(key)): Extension<Signer>,
    request: Request,
) -> Result<Response, Refusal> {
    let (mut parts, _) = request.into_parts();
    let part = VolumePart { volume: VolumeId { namespace, name }, number: which.number };
    let right = right(key, &part, "read volumes");
    right.check(&context).await?;
    let wanted = part.clone();
    let node = context
        .agent
        .read(move |core, _| {
            find(core, &wanted, which.node).and_then(|found| found.ok_or_else(|| absent(&wanted)))
        })
        .await??;
    if let Some(answer) = session::elsewhere(&context, node, &mut parts).await? {
        return Ok(answer);
    }
    context.told("volume-read", key, None, &format!("volume {part} is read"));
    let runtime = context.runtime.clone();
    let work = async move |other| runtime.read_volume(part, other).await.map(|()| 0).map_err(failed);
    Ok(session::open(&context, right, &mut parts, work).await?)
}

/// What a part is filled with, and where.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Filled {
    /// The number of the part; 0 if not given.
    #[serde(default)]
    number: u32,
    /// On which node; the one that has it if not given.
    #[param(value_type = Option<String>)]
    node: Option<NodeId>,
    /// With what this snapshot of it has, and not with the input.
    snapshot: Option<String>,
}

/// Gives a part of a volume what a tar archive or a snapshot has, by WebSocket, instead of what it has; it is made if it is
/// not there. No container may have it. Whoever may write the volume may.
#[utoipa::path(get, path = "/v1/volumes/{namespace}/{volume}/fill",
    params(("namespace" = String, Path), ("volume" = String, Path), Filled),
    responses((status = 101, description = "a WebSocket: the input is the archive. Until it has ended nothing is changed",
            body = FromNode),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn fill(
    State(context): State<Context>,
    Path((namespace, name)): Path<(String, String)>,
    Query(which): Query<Filled>,
    Extension(Signer(key)): Extension<Signer>,
    request: Request,
) -> Result<Response, Refusal> {
    let (mut parts, _) = request.into_parts();
    if !is_dns_label(&namespace) || !is_dns_label(&name) {
        return Err(
            Problem::new(Code::Malformed, "the names of namespaces and volumes are DNS labels").into()
        );
    }
    let part = VolumePart { volume: VolumeId { namespace, name }, number: which.number };
    let right = right(key, &part, "fill volumes");
    right.check(&context).await?;
    let wanted = part.clone();
    let (node, size_bytes) = context
        .agent
        .read(move |core, _| {
            is_kept(core, &wanted)?;
            let found = find(core, &wanted, which.node)?;
            let size_bytes = core.cluster().volumes.get(&wanted.volume).and_then(|spec| spec.size_bytes);
            Ok::<_, Problem>((found.or(which.node).unwrap_or(core.me()), size_bytes))
        })
        .await??;
    if let Some(answer) = session::elsewhere(&context, node, &mut parts).await? {
        return Ok(answer);
    }
    let snapshot = which.snapshot;
    if let Some(name) = &snapshot {
        snapshots::exists(&context, &part, name).await?;
    }
    is_free(&context, &part).await?;
    let source = snapshot.as_ref().map_or("a backup".to_owned(), |name| format!("snapshot {name}"));
    context.told("volume-fill", key, None, &format!("volume {part} is filled from {source}"));
    let mine = context.clone();
    let work = async move |other| {
        let is_free = async {
            let free = is_free(&mine, &part).await;
            free.map_err(|problem| OperationError { text: problem.detail, permanent: false })
        };
        mine.runtime.fill_volume(part.clone(), snapshot, size_bytes, is_free, other).await.map_err(failed)?;
        wait_until_told(&mine, &part).await.map(|()| 0)
    };
    Ok(session::open(&context, right, &mut parts, work).await?)
}

pub(super) fn right(key: KeyId, part: &VolumePart, doing: &'static str) -> Right {
    Right { key, kind: Kind::Volume, namespace: part.volume.namespace.clone(), doing }
}

pub(super) fn failed(error: OperationError) -> Problem {
    Problem::new(Code::Storage, error.text).advice("the volume is as it was; see `hivemind volumes`")
}

/// The node that has a part; None if none has it.
pub(super) fn find(core: &Node, part: &VolumePart, on: Option<NodeId>) -> Result<Option<NodeId>, Problem> {
    let cluster = core.cluster();
    let holders: Vec<NodeId> = cluster.holders(part).map(|(node, _)| *node).collect();
    match (on, holders.as_slice()) {
        (_, []) => Ok(None),
        (None, [node]) => Ok(Some(*node)),
        (Some(node), holders) if holders.contains(&node) => Ok(Some(node)),
        (wanted, holders) => {
            let names: Vec<String> = holders.iter().map(|node| cluster.hostname(node)).collect();
            let text = match wanted {
                Some(node) => {
                    let other = cluster.hostname(&node);
                    format!("volume {part} is on {}, and not on {other}", names.join(", "))
                }
                None => format!("volume {part} is on several machines: {}", names.join(", ")),
            };
            Err(Problem::new(Code::Conflict, text).advice("say which with --on"))
        }
    }
}

pub(super) fn absent(part: &VolumePart) -> Problem {
    Problem::new(Code::NotFound, format!("there is no data of volume {part}"))
        .advice("`hivemind volumes` lists them")
}

/// # Errors
/// When a volume's data is to be deleted.
pub(super) fn is_kept(core: &Node, part: &VolumePart) -> Result<(), Problem> {
    let VolumeId { namespace, name } = &part.volume;
    match core.cluster().volumes.get(&part.volume) {
        Some(spec) if spec.discard.is_some() => {
            Err(Problem::new(Code::Conflict, format!("volume {namespace}/{name} is to be deleted"))
                .advice(format!("`hivemind volumes restore {name}` takes that back")))
        }
        _ => Ok(()),
    }
}

/// # Errors
/// When a container here has the part.
async fn is_free(context: &Context, part: &VolumePart) -> Result<(), Problem> {
    let wanted = part.clone();
    let user = move |core: &Node| core.volume_users(&wanted).first().map(|(_, user)| (*user).clone());
    match context.agent.read(move |core, _| user(core)).await? {
        None => Ok(()),
        Some(user) => Err(Problem::new(Code::Conflict, format!("{user} has volume {part}")).advice(format!(
            "push {} with `scale: 0`, or remove it, until the volume is filled",
            user.workload.name
        ))),
    }
}

/// Waits until this node has said that it has the part: what uses it is placed here from then on.
async fn wait_until_told(context: &Context, part: &VolumePart) -> Result<(), Problem> {
    let wanted = part.clone();
    let told = move |core: &Node| core.cluster().holders(&wanted).any(|(node, _)| *node == core.me());
    if context.agent.is_told(told).await? {
        return Ok(());
    }
    Err(Problem::new(Code::Internal, format!("volume {part} is filled, and the cluster does not know yet"))
        .advice("wait until `hivemind volumes` lists it before anything is pushed that uses it"))
}
