//! Tools beside a container, for images that have none, by WebSocket.

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use hivemind_core::record::WorkloadId;
use hivemind_spec::exec::{DebugRequest, FromNode};
use hivemind_spec::problem::{Code, Problem};

use super::Context;
use super::auth::Signer;
use super::exec::{Asked, Found, find, right, wanted};
use super::refusal::{Path, Query, Refusal};
use super::session;

/// Runs an image beside a container of a workload, with its processes, network and memory segments, by WebSocket, until the
/// conversation ends. Whoever may write the workload may.
#[utoipa::path(get, path = "/v1/debug/{namespace}/{workload}",
    params(("namespace" = String, Path), ("workload" = String, Path), Asked),
    responses((status = 101, description = "a WebSocket, as that of `/v1/exec/{namespace}/{workload}`", body = FromNode),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn debug(
    State(context): State<Context>,
    Path((namespace, name)): Path<(String, String)>,
    Query(asked): Query<Asked>,
    Extension(Signer(key)): Extension<Signer>,
    request: Request,
) -> Result<Response, Refusal> {
    let (mut parts, _) = request.into_parts();
    let workload = WorkloadId { namespace, name };
    let wanted: DebugRequest = wanted(&asked.request, "DebugRequest")?;
    if wanted.command.iter().any(|word| word.contains('\0')) {
        return Err(Problem::new(Code::Malformed, "a zero byte cannot be part of a command").into());
    }
    let right = right(key, &workload, "look into containers");
    let (replica, container) = match find(&context, &right, &workload, asked.slot, &mut parts).await? {
        Found::Here(replica, container) => (replica, container),
        Found::Elsewhere(answer) => return Ok(answer),
    };
    let what = format!("tools of {} are run beside {replica}", wanted.image);
    context.told("debug", key, Some(&replica.workload), &what);
    let runtime = context.runtime.clone();
    let work = async move |other| {
        runtime.debug(&container, &wanted, other).await.map_err(|error| {
            Problem::new(Code::NotStarted, error.text)
                .advice("name an image that the machine can fetch or was given, with --image")
        })
    };
    Ok(session::open(&context, right, &mut parts, work).await?)
}
