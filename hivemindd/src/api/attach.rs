//! Being at a container's own command, by WebSocket.

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use hivemind_core::record::WorkloadId;
use hivemind_spec::exec::{AttachRequest, FromNode};
use hivemind_spec::problem::{Code, Problem};

use super::Context;
use super::auth::Signer;
use super::exec::{Asked, Found, find, right, wanted};
use super::refusal::{Path, Query, Refusal};
use super::session;

/// Passes on what a container of a workload prints, and what is typed to its terminal, by WebSocket, until its command ends or the
/// conversation does. Whoever may write the workload may.
#[utoipa::path(get, path = "/v1/attach/{namespace}/{workload}",
    params(("namespace" = String, Path), ("workload" = String, Path), Asked),
    responses((status = 101, description = "a WebSocket, as that of `/v1/exec/{namespace}/{workload}`", body = FromNode),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn attach(
    State(context): State<Context>,
    Path((namespace, name)): Path<(String, String)>,
    Query(asked): Query<Asked>,
    Extension(Signer(key)): Extension<Signer>,
    request: Request,
) -> Result<Response, Refusal> {
    let (mut parts, _) = request.into_parts();
    let workload = WorkloadId { namespace, name };
    let wanted: AttachRequest = wanted(&asked.request, "AttachRequest")?;
    let right = right(key, &workload, "attach to containers");
    let (replica, container) = match find(&context, &right, &workload, asked.slot, &mut parts).await? {
        Found::Here(replica, container) => (replica, container),
        Found::Elsewhere(answer) => return Ok(answer),
    };
    context.told("attach", key, Some(&replica.workload), &format!("somebody is at {replica}"));
    let runtime = context.runtime.clone();
    let work = async move |other| {
        runtime
            .attach(&container, wanted.terminal, other)
            .await
            .map_err(|error| Problem::new(Code::NotFound, error.text).advice("`hivemind ps` shows what runs"))
    };
    Ok(session::open(&context, right, &mut parts, work).await?)
}
