//! What a single machine is told to do, once: start anew, switch itself off, forget.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use hivemind_core::trust::Holder;
use hivemind_init::{request_power_off, request_reboot, reset};
use hivemind_spec::api::{Action, Order, Ordered};
use hivemind_spec::document::Role;
use hivemind_spec::id::NodeId;
use hivemind_spec::problem::{Code, Problem};

use super::Context;
use super::auth::Signer;
use super::forward::elsewhere;
use super::refusal::{Path, Refusal};

/// How long after its answer an order is carried out: the answer is on its way by then.
const BEFORE: Duration = Duration::from_millis(500);

/// Tells a machine to do something, once. Only admins may.
#[utoipa::path(post, path = "/v1/nodes/{node}/orders", params(("node" = String, Path)), request_body = Order,
    responses((status = 202, description = "it will", body = Ordered),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn order(
    State(context): State<Context>,
    Path(node): Path<NodeId>,
    Extension(Signer(key)): Extension<Signer>,
    parts: Parts,
    body: Bytes,
) -> Result<Response, Refusal> {
    let (started_ms, role) = context
        .agent
        .read(move |core, _| {
            let holder = core.operators().find(|(id, _)| **id == key);
            let status = core.cluster().nodes.get(&core.me()).and_then(|me| me.status.as_ref());
            let started_ms = status.map(|status| status.started_ms);
            (started_ms, holder.map(|(_, Holder { role, .. })| *role))
        })
        .await?;
    if role != Some(Role::Admin) {
        return Err(Problem::new(Code::Forbidden, format!("key {key} may not give orders to machines"))
            .advice("sign with the key of an admin; `hivemind keys` shows the roles")
            .into());
    }
    let Order { started_ms: meant_ms, action } = serde_json::from_slice(&body).map_err(|error| {
        Problem::new(Code::Malformed, format!("the order cannot be read: {error}"))
            .advice("see /v1/openapi.json for the orders there are")
    })?;
    if let Some(answer) = elsewhere(&context, node, &parts, body).await? {
        return Ok(answer);
    }
    if started_ms != Some(meant_ms) {
        return Err(Problem::new(
            Code::Conflict,
            "the machine's agent has started anew since the order was made",
        )
        .advice("see `hivemind nodes`, and give the order again if it is still wanted")
        .into());
    }
    if let Action::Reset { wipe } = action {
        reset::order(wipe).map_err(|error| {
            Problem::new(Code::Internal, format!("the order cannot be kept for the next start: {error}"))
                .advice("`hivemind status` tells what is wrong with the machine's disk")
        })?;
    }
    context.told("ordered", key, None, &format!("an order is carried out: {action:?}"));
    tokio::spawn(async move {
        tokio::time::sleep(BEFORE).await;
        let asked = match action {
            Action::Shutdown => request_power_off(),
            Action::Reboot | Action::Reset { .. } => request_reboot(),
        };
        if let Err(error) = asked {
            tracing::error!(%error, "PID 1 cannot be asked to stop the machine");
        }
    });
    Ok((StatusCode::ACCEPTED, Json(Ordered { node })).into_response())
}
