//! What containers use of their machines, from whichever nodes they run on.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::{Request, State};
use hivemind_core::record::WorkloadId;
use hivemind_core::replica::container_id;
use hivemind_spec::api::{Stats, Usage};
use hivemind_spec::id::NodeId;
use hivemind_spec::problem::Problem;
use serde::Deserialize;
use utoipa::IntoParams;

use super::Context;
use super::forward::{FromPeer, gather};
use super::refusal::{Query, Refusal};

/// Of which containers, and what.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// Only of this namespace.
    namespace: Option<String>,
    /// Only of this workload.
    workload: Option<String>,
    /// Their processes too.
    #[serde(default)]
    processes: bool,
}

impl Wanted {
    fn takes(&self, workload: &WorkloadId) -> bool {
        self.namespace.as_ref().is_none_or(|wanted| *wanted == workload.namespace)
            && self.workload.as_ref().is_none_or(|wanted| *wanted == workload.name)
    }
}

/// What running containers use. Rates are the differences of two answers.
#[utoipa::path(get, path = "/v1/stats", params(Wanted),
    responses((status = 200, body = Stats), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn stats(
    State(context): State<Context>,
    Query(wanted): Query<Wanted>,
    request: Request,
) -> Result<Json<Stats>, Refusal> {
    let (parts, _) = request.into_parts();
    let (mut stats, others) = here(&context, wanted).await?;
    if parts.extensions.get::<FromPeer>().is_none() {
        let (answers, missing) = gather::<Stats>(&context, others, &parts).await;
        stats.items.extend(answers.into_iter().flat_map(|answer| answer.items));
        stats.missing = missing;
    }
    Ok(Json(stats))
}

/// What is used on this node, and the other nodes that have something to say.
async fn here(context: &Context, wanted: Wanted) -> Result<(Stats, BTreeSet<NodeId>), Problem> {
    let processes = wanted.processes;
    let (me, own, others) = context
        .agent
        .read(move |node, now| {
            let me = node.me();
            let (namespace, workload) = (wanted.namespace.as_deref(), wanted.workload.as_deref());
            let shown = node.view(now, "").replicas(namespace, workload);
            // One that has no address has no container.
            let others =
                shown.iter().filter(|replica| !replica.ip.is_empty()).filter_map(|replica| replica.node);
            let others: BTreeSet<NodeId> = others.filter(|node| *node != me).collect();
            let said = node.cluster().replicas.iter().filter(|((replica, node), status)| {
                *node == me && status.ip.is_some() && wanted.takes(&replica.workload)
            });
            let own =
                said.map(|((replica, _), status)| (replica.clone(), status.template)).collect::<Vec<_>>();
            (me, own, others)
        })
        .await?;
    let containers = own.iter().map(|(replica, template)| container_id(replica, template)).collect();
    let used = context.runtime.used(containers, processes).await;
    let time_ms = context.clock.now().mono_ms;
    let items = own.into_iter().zip(used).filter_map(|((replica, _), used)| {
        let (counters, processes) = used?;
        Some(Usage {
            namespace: replica.workload.namespace,
            workload: replica.workload.name,
            slot: replica.slot,
            node: me,
            time_ms,
            counters,
            processes,
        })
    });
    Ok((Stats { items: items.collect(), missing: Vec::new() }, others))
}
