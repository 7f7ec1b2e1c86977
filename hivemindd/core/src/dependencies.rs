//! What a workload's containers wait for before they start: other workloads of its namespace.
//!
//! Goes by what is known, also of nodes that cannot be heard: a machine that comes up alone starts what it
//! started before, and does not wait for others that are out of reach. What a node said of itself before it
//! started anew is past. It says nothing about containers that run or that are started again: order is for
//! beginnings.

use hivemind_spec::api::Phase;
use hivemind_spec::id::NodeId;
use hivemind_spec::workload::{Condition, Dependency};

use crate::cluster::{Cluster, Workload};
use crate::job;
use crate::record::{ReplicaId, ReplicaStatus, WorkloadId};

/// What the first dependency is, in words, that is not as the workload wants it; `None` when all are.
/// `is_past` says of a replica, and of the node it is placed on, that what the map says of it is over.
pub fn waits_for(
    cluster: &Cluster,
    id: &WorkloadId,
    workload: &Workload,
    is_past: impl Fn(&ReplicaId, &NodeId) -> bool,
) -> Option<String> {
    workload.spec.depends_on.iter().find_map(|dependency| {
        let other = WorkloadId { namespace: id.namespace.clone(), name: dependency.workload.clone() };
        unmet(cluster, &other, dependency, &is_past).map(|what| format!("waits for {} {what}", other.name))
    })
}

fn unmet(
    cluster: &Cluster,
    other: &WorkloadId,
    dependency: &Dependency,
    is_past: &impl Fn(&ReplicaId, &NodeId) -> bool,
) -> Option<String> {
    let Some(workload) = cluster.workloads.get(other) else {
        return dependency.required.then(|| "to be pushed: there is no such workload".to_owned());
    };
    // The node that a replica is placed on knows how it is; what others said of it before is past.
    let slots = cluster.placements.get(other).map(|placed| &placed.slots);
    let statuses = slots.into_iter().flatten().filter_map(|(slot, node)| {
        let key = (ReplicaId { workload: other.clone(), slot: *slot }, *node);
        // Of one that has completed, nothing is left to run.
        let counts = |status: &&ReplicaStatus| status.phase == Phase::Completed || !is_past(&key.0, node);
        cluster.replicas.get(&key).filter(counts)
    });
    let statuses: Vec<&ReplicaStatus> = statuses.collect();
    let wanted = cluster.wanted(workload);
    let (met, wish) = match dependency.condition {
        Condition::Started => {
            let any = statuses.iter().any(|status| has_started(status)) || !workload.completed.is_empty();
            (any, "to start")
        }
        Condition::Healthy => (statuses.iter().any(|status| status.phase == Phase::Running), "to be healthy"),
        Condition::Completed => {
            let (completed, _) = job::counts(cluster, other, workload);
            (completed >= wanted, "to complete")
        }
    };
    if met || wanted == 0 {
        return None;
    }
    let failed = statuses.iter().any(|status| status.phase == Phase::Failed);
    Some(if failed { format!("{wish}, but it failed") } else { wish.to_owned() })
}

fn has_started(status: &ReplicaStatus) -> bool {
    match status.phase {
        Phase::Running | Phase::Unhealthy | Phase::Completed => true,
        // Its container is there, and its health check has not passed yet.
        Phase::Starting => status.ip.is_some(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;

    use hivemind_spec::id::Digest;
    use hivemind_spec::workload::RestartCondition;

    use super::*;
    use crate::fixture::{cluster, node_id, workload, workload_id};
    use crate::record::Placement;

    /// A cluster of two in which `db` is placed on node 2, and what `web` waits for there.
    struct Bench {
        cluster: Cluster,
        web: Workload,
    }

    impl Bench {
        fn new(condition: Condition, required: bool) -> Self {
            let (cluster, _) = cluster(2);
            let mut web = workload(1);
            web.spec.depends_on = vec![Dependency { workload: "db".into(), condition, required }];
            Self { cluster, web }
        }

        fn db(mut self, replicas: u32) -> Self {
            let mut db = workload(replicas);
            db.spec.restart.condition = RestartCondition::OnFailure;
            db.take(None);
            self.cluster.workloads.insert(workload_id("db"), db);
            let slots: BTreeMap<_, _> = (0..replicas).map(|slot| (slot, node_id(2))).collect();
            let placement = Placement { digest: None, slots, pending: BTreeMap::new() };
            self.cluster.placements.insert(workload_id("db"), placement);
            self
        }

        fn says(&mut self, node: u8, slot: u32, phase: Phase) -> Option<String> {
            let template = self.cluster.workloads[&workload_id("db")].template;
            let ip = Some(Ipv4Addr::new(10, 42, node, 2));
            let status = ReplicaStatus {
                template,
                phase,
                reason: String::new(),
                ip,
                restarts: 0,
                since_ms: 0,
                pull: None,
            };
            let replica = ReplicaId { workload: workload_id("db"), slot };
            self.cluster.replicas.insert((replica, node_id(node)), status);
            self.waits()
        }

        fn waits(&self) -> Option<String> {
            waits_for(&self.cluster, &workload_id("web"), &self.web, |_, _| false)
        }
    }

    #[test]
    fn a_workload_waits_until_what_it_depends_on_is_as_it_wants_it() {
        let mut started = Bench::new(Condition::Started, true).db(1);
        assert_eq!(started.waits().unwrap(), "waits for db to start");
        assert!(started.says(2, 0, Phase::Pulling).is_some());
        assert_eq!(started.says(2, 0, Phase::Starting), None);
        assert_eq!(started.says(2, 0, Phase::Unhealthy), None);

        let mut healthy = Bench::new(Condition::Healthy, true).db(2);
        assert_eq!(healthy.says(2, 0, Phase::Starting).unwrap(), "waits for db to be healthy");
        assert_eq!(healthy.says(2, 0, Phase::Failed).unwrap(), "waits for db to be healthy, but it failed");
        assert_eq!(healthy.says(2, 1, Phase::Running), None, "one of them will do");

        let mut completed = Bench::new(Condition::Completed, true).db(2);
        assert!(completed.says(2, 0, Phase::Completed).is_some(), "all of them must");
        assert_eq!(completed.says(2, 1, Phase::Completed), None);
        if let Some(db) = completed.cluster.workloads.get_mut(&workload_id("db")) {
            db.template = Digest::of(b"another version");
        }
        assert_eq!(completed.waits().unwrap(), "waits for db to complete", "in the version that is wanted");
    }

    #[test]
    fn what_does_not_exist_is_waited_for_only_when_it_is_required() {
        assert!(Bench::new(Condition::Started, true).waits().unwrap().contains("no such workload"));
        assert_eq!(Bench::new(Condition::Started, false).waits(), None);
        assert_eq!(Bench::new(Condition::Healthy, true).db(0).waits(), None, "nobody wants any of it");
    }

    #[test]
    fn what_a_node_said_before_it_started_anew_is_past_except_what_has_completed() {
        for (condition, phase, met) in [
            (Condition::Started, Phase::Running, false),
            (Condition::Healthy, Phase::Running, false),
            (Condition::Completed, Phase::Completed, true),
        ] {
            let mut bench = Bench::new(condition, true).db(1);
            assert_eq!(bench.says(2, 0, phase), None);
            let past = |_: &ReplicaId, node: &NodeId| *node == node_id(2);
            let waits = waits_for(&bench.cluster, &workload_id("web"), &bench.web, past);
            assert_eq!(waits.is_none(), met, "{condition:?}");
        }
    }

    #[test]
    fn only_the_node_it_is_placed_on_speaks_for_a_replica() {
        let mut bench = Bench::new(Condition::Healthy, true).db(1);
        assert!(bench.says(1, 0, Phase::Running).is_some(), "node 1 had it before");
        assert_eq!(bench.says(2, 0, Phase::Running), None);
    }
}
