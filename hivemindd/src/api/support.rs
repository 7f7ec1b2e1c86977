//! What helps to find out what is wrong with a machine ([`crate::support`]).

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::request::Parts;
use axum::response::{IntoResponse as _, Response};
use hivemind_spec::api::Support;
use hivemind_spec::id::NodeId;
use hivemind_spec::problem::Problem;

use super::Context;
use super::forward::elsewhere;
use super::refusal::{Path, Refusal};

/// What helps to find out what is wrong with a machine.
#[utoipa::path(get, path = "/v1/nodes/{node}/support", params(("node" = String, Path)),
    responses((status = 200, body = Support),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn support(
    State(context): State<Context>,
    Path(node): Path<NodeId>,
    parts: Parts,
) -> Result<Response, Refusal> {
    if let Some(answer) = elsewhere(&context, node, &parts, Bytes::new()).await? {
        return Ok(answer);
    }
    let files = crate::support::gather(&context.agent).await?;
    let taken_ms = context.clock.now().wall_ms;
    Ok(Json(Support { node, taken_ms, files }).into_response())
}
