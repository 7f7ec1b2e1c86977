//! Snapshots of volumes, on the machines that have them.

use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use hivemind_core::event::OperationError;
use hivemind_core::record::{VolumeId, VolumePart};
use hivemind_spec::document::is_dns_label;
use hivemind_spec::exec::FromNode;
use hivemind_spec::id::NodeId;
use hivemind_spec::problem::{Code, Problem};
use hivemind_spec::volume::Snapshot;
use serde::Deserialize;
use utoipa::IntoParams;

use super::Context;
use super::archives::{Which, absent, failed, find, is_kept, right};
use super::auth::Signer;
use super::forward;
use super::refusal::{Path, Query, Refusal};
use super::session;
use super::specs::Items;
use crate::runtime::{MAX_STILL, WantedSnapshot};

/// A snapshot to be made.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// The number of the part; 0 if not given.
    #[serde(default)]
    number: u32,
    /// On which node; the one that has it if not given.
    #[param(value_type = Option<String>)]
    node: Option<NodeId>,
    /// Its name, a DNS label that none of the part's has yet.
    name: String,
    /// How long the containers that have the part may stand still, milliseconds, 60000 at most. 0: they go on, and what they
    /// change meanwhile may be in it or not.
    #[serde(default)]
    still_ms: u64,
    /// How many of the part's are kept, with this one; the oldest go. All if not given.
    keep: Option<usize>,
}

/// One that there is.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Known {
    /// The number of the part; 0 if not given.
    #[serde(default)]
    number: u32,
    /// On which node; the one that has it if not given.
    #[param(value_type = Option<String>)]
    node: Option<NodeId>,
    /// Its name.
    name: String,
}

/// The snapshots of a part of a volume, oldest first.
#[utoipa::path(get, path = "/v1/volumes/{namespace}/{volume}/snapshots",
    params(("namespace" = String, Path), ("volume" = String, Path), Which),
    responses((status = 200, body = Items<Snapshot>),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(context): State<Context>,
    Path((namespace, name)): Path<(String, String)>,
    Query(which): Query<Which>,
    request: Request,
) -> Result<Response, Refusal> {
    let (parts, _) = request.into_parts();
    let part = VolumePart { volume: VolumeId { namespace, name }, number: which.number };
    let node = holder(&context, &part, which.node).await?;
    if let Some(answer) = forward::elsewhere(&context, node, &parts, Default::default()).await? {
        return Ok(answer);
    }
    let items = context.runtime.snapshots(part).await.map_err(failed)?;
    Ok(Json(Items { items }).into_response())
}

/// Makes a snapshot of a part of a volume, by WebSocket. Whoever may write the volume may.
#[utoipa::path(get, path = "/v1/volumes/{namespace}/{volume}/snapshot",
    params(("namespace" = String, Path), ("volume" = String, Path), Wanted),
    responses((status = 101, description = "a WebSocket: standard output is the snapshot (`Snapshot`, JSON), standard error what \
            is not in it as it was, a line for each", body = FromNode),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn make(
    State(context): State<Context>,
    Path((namespace, volume)): Path<(String, String)>,
    Query(Wanted { number, node, name, still_ms, keep }): Query<Wanted>,
    Extension(Signer(key)): Extension<Signer>,
    request: Request,
) -> Result<Response, Refusal> {
    let (mut parts, _) = request.into_parts();
    let part = VolumePart { volume: VolumeId { namespace, name: volume }, number };
    let right = right(key, &part, "make snapshots of volumes");
    right.check(&context).await?;
    if !is_dns_label(&name) {
        return Err(Problem::new(Code::Malformed, format!("{name:?} is no name for a snapshot"))
            .advice("it is made of a to z, 0 to 9 and -, and 63 long at most")
            .into());
    }
    let still = Duration::from_millis(still_ms);
    if still > MAX_STILL {
        return Err(Problem::new(Code::Malformed, "containers may stand still for a minute at most").into());
    }
    if keep == Some(0) {
        return Err(Problem::new(Code::Malformed, "the one that is made is kept").into());
    }
    let wanted = part.clone();
    context.agent.read(move |core, _| is_kept(core, &wanted)).await??;
    let node = holder(&context, &part, node).await?;
    if let Some(answer) = session::elsewhere(&context, node, &mut parts).await? {
        return Ok(answer);
    }
    let mine = context.clone();
    let work = async move |other| {
        let (of, agent) = (part.clone(), mine.agent.clone());
        let users = async move {
            let users =
                agent.read(move |core, _| core.volume_users(&of).into_iter().map(|(id, _)| id).collect());
            users.await.map_err(|problem| OperationError { text: problem.detail, permanent: false })
        };
        let within = Some(still).filter(|still| !still.is_zero());
        let what = format!("snapshot {name} of volume {part} is made");
        let wanted = WantedSnapshot { part, name, within, keep };
        mine.runtime.snapshot_volume(wanted, users, other).await.map_err(failed)?;
        mine.told("volume-snapshot", key, None, &what);
        Ok(0)
    };
    Ok(session::open(&context, right, &mut parts, work).await?)
}

/// Removes a snapshot. Whoever may write the volume may.
#[utoipa::path(delete, path = "/v1/volumes/{namespace}/{volume}/snapshots",
    params(("namespace" = String, Path), ("volume" = String, Path), Known),
    responses((status = 204, description = "it is gone"),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn remove(
    State(context): State<Context>,
    Path((namespace, volume)): Path<(String, String)>,
    Query(Known { number, node, name }): Query<Known>,
    Extension(Signer(key)): Extension<Signer>,
    request: Request,
) -> Result<Response, Refusal> {
    let (parts, _) = request.into_parts();
    let part = VolumePart { volume: VolumeId { namespace, name: volume }, number };
    right(key, &part, "remove snapshots of volumes").check(&context).await?;
    let node = holder(&context, &part, node).await?;
    if let Some(answer) = forward::elsewhere(&context, node, &parts, Default::default()).await? {
        return Ok(answer);
    }
    exists(&context, &part, &name).await?;
    context.runtime.remove_snapshot(part.clone(), name.clone()).await.map_err(failed)?;
    context.told(
        "volume-snapshot-removed",
        key,
        None,
        &format!("snapshot {name} of volume {part} is removed"),
    );
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// The node that has a part.
async fn holder(context: &Context, part: &VolumePart, on: Option<NodeId>) -> Result<NodeId, Problem> {
    let wanted = part.clone();
    let found = context.agent.read(move |core, _| find(core, &wanted, on)).await??;
    found.ok_or_else(|| absent(part))
}

/// # Errors
/// When this node has no such snapshot.
pub(super) async fn exists(context: &Context, part: &VolumePart, name: &str) -> Result<(), Problem> {
    let all = context.runtime.snapshots(part.clone()).await.map_err(failed)?;
    if all.iter().any(|snapshot| snapshot.name == name) {
        return Ok(());
    }
    Err(Problem::new(Code::NotFound, format!("volume {part} has no snapshot {name}"))
        .advice(format!("`hivemind volumes snapshots {}` lists them", part.volume.name)))
}
