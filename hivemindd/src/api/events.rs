//! What has happened lately, on all nodes.

use axum::Json;
use axum::extract::{Request, State};
use hivemind_spec::api::{Events, NodeState};
use hivemind_spec::id::NodeId;
use hivemind_spec::problem::Problem;
use serde::Deserialize;
use utoipa::IntoParams;

use super::Context;
use super::forward::{FromPeer, gather};
use super::refusal::{Query, Refusal};

/// How far back.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// Only what happened in so many last seconds.
    seconds: Option<u64>,
}

/// What has happened lately, as far as nodes remember: a thousand events each, since their agents started.
#[utoipa::path(get, path = "/v1/events", params(Wanted),
    responses((status = 200, body = Events), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn events(
    State(context): State<Context>,
    Query(wanted): Query<Wanted>,
    request: Request,
) -> Result<Json<Events>, Refusal> {
    let (parts, _) = request.into_parts();
    let now = context.clock.now();
    let items = context.happened.lately(now, wanted.seconds.unwrap_or(u64::MAX));
    let mut events = Events { items, missing: Vec::new() };
    if parts.extensions.get::<FromPeer>().is_none() {
        let others = context.agent.read(|node, now| {
            let nodes = node.view(now, "").nodes().into_iter();
            let up = nodes.filter(|node| matches!(node.state, NodeState::Ready | NodeState::NotReady));
            up.map(|node| node.id).filter(|id| *id != node.me()).collect::<Vec<NodeId>>()
        });
        let (answers, missing) = gather::<Events>(&context, others.await?, &parts).await;
        events.items.extend(answers.into_iter().flat_map(|answer| answer.items));
        events.missing = missing;
        for event in &mut events.items {
            event.time_ms = now.wall_ms.saturating_sub(event.age_ms);
        }
        // Those of one node stay in their order.
        events.items.sort_by_key(|event| event.time_ms);
    }
    Ok(Json(events))
}
