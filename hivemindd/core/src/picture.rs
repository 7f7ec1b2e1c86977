//! Puts the records that count together: [`Cluster`], the picture the deciding modules read.

use std::collections::{BTreeMap, BTreeSet};

use hivemind_spec::document::Spec;
use hivemind_spec::id::NodeId;

use crate::cluster::{Cluster, Node, Placed, Workload};
use crate::enrolment;
use crate::record::{Decision, Matter, Observation, RecordKey, Topic, WorkloadId};
use crate::state::{Content, Entry, Map, Order};
use crate::statement;
use crate::trust::Trust;

/// The cluster according to `map`, of which only `members` have a say.
pub fn draw(map: &Map, trust: &Trust, members: &BTreeSet<NodeId>) -> Cluster {
    let mut cluster = Cluster::default();
    let mut intents = BTreeMap::new();
    for (name, place) in trust.all_current() {
        let Some(Content::Spec(document)) = map.get(place).map(|entry| &entry.content) else { continue };
        match &document.value().spec {
            Some(Spec::Workload(spec)) => {
                let id = WorkloadId { namespace: name.namespace.clone(), name: name.name.clone() };
                let revision = document.value().metadata.revision;
                let workload = Workload::new(revision, document.digest(), (**spec).clone());
                cluster.workloads.insert(id, workload);
            }
            Some(Spec::NodeIntent(intent)) => {
                intents.insert(intent.node, intent.clone());
            }
            _ => {}
        }
    }
    for (id, enrolment) in enrolment::enrolments(map) {
        if members.contains(&id) {
            let node = Node { enrolment: enrolment.clone(), status: None, intent: intents.remove(&id) };
            cluster.nodes.insert(id, node);
        }
    }
    for (key, entry) in map.iter() {
        add_statement(&mut cluster, key, entry);
    }
    cluster
}

fn add_statement(cluster: &mut Cluster, key: &RecordKey, entry: &Entry) {
    match (key, &entry.content) {
        (RecordKey::Observation(id, Topic::Node), Content::Observation(Some(Observation::Node(status)))) => {
            if let Some(node) = cluster.nodes.get_mut(id) {
                node.status = Some(status.clone());
            }
        }
        (
            RecordKey::Observation(id, Topic::Replica(replica)),
            Content::Observation(Some(Observation::Replica(status))),
        ) if speaks(cluster, id) => {
            cluster.replicas.insert((replica.clone(), *id), status.clone());
        }
        (
            RecordKey::Observation(id, Topic::Overtaken(name)),
            Content::Observation(Some(Observation::Overtaken(overtaken))),
        ) if speaks(cluster, id) => {
            cluster.overtaken.insert(name.clone(), overtaken.clone());
        }
        (
            RecordKey::Decision(Matter::Placement(workload)),
            Content::Decision(Some(Decision::Placement(placement))),
        ) => {
            let writer = statement::of(&entry.record).map(|s| s.writer).filter(|id| speaks(cluster, id));
            if let (Some(by), Order::Decision { clock }) = (writer, entry.version.order) {
                cluster
                    .placements
                    .insert(workload.clone(), Placed { clock, by, placement: placement.clone() });
            }
        }
        (RecordKey::Decision(Matter::Forgotten), Content::Decision(Some(Decision::Forgotten(forgotten))))
            if statement::of(&entry.record).is_some_and(|s| speaks(cluster, &s.writer)) =>
        {
            cluster.forgotten = forgotten.clone();
        }
        _ => {}
    }
}

/// Whether what a node says about others, or about its replicas, is heard.
fn speaks(cluster: &Cluster, id: &NodeId) -> bool {
    cluster.nodes.get(id).is_some_and(|node| !node.is_revoked())
}
