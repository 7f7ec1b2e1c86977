//! What is built into machines and plugged into them, from all of them.

use axum::Json;
use axum::extract::{Request, State};
use hivemind_spec::api::{Devices, MachineDevice};
use hivemind_spec::id::NodeId;
use hivemind_spec::problem::{Code, Problem};

use super::Context;
use super::forward::{FromPeer, gather};
use super::refusal::Refusal;
use crate::hardware;

/// Devices of all machines, for those who want to give them to containers.
#[utoipa::path(get, path = "/v1/devices",
    responses((status = 200, body = Devices), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn devices(
    State(context): State<Context>,
    request: Request,
) -> Result<Json<Devices>, Refusal> {
    let (parts, _) = request.into_parts();
    let (node, others) = context
        .agent
        .read(|core, _| {
            let me = core.me();
            let known = core.cluster().nodes.iter().filter(|(_, node)| !node.is_revoked());
            (me, known.map(|(id, _)| *id).filter(|id| *id != me).collect::<Vec<NodeId>>())
        })
        .await?;
    let own = tokio::task::spawn_blocking(hardware::devices).await;
    let own = own.map_err(|error| Problem::new(Code::Internal, error.to_string()))?.into_iter();
    let told = |device: hardware::Device| MachineDevice {
        node,
        path: device.path,
        names: device.names,
        description: device.description,
    };
    let mut devices = Devices { items: own.map(told).collect(), missing: Vec::new() };
    if parts.extensions.get::<FromPeer>().is_none() {
        let (answers, missing) = gather::<Devices>(&context, others, &parts).await;
        devices.items.extend(answers.into_iter().flat_map(|answer| answer.items));
        devices.missing = missing;
    }
    Ok(Json(devices))
}
