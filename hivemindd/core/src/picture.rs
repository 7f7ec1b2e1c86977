//! Puts the records that count together: [`Cluster`], the picture the deciding modules read.
//!
//! [`draw`] says what the picture is: a function of the whole map. [`follow`] keeps one up to date by the
//! statements that changed, so that the work is that of the change and not that of the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hivemind_spec::api::Phase;
use hivemind_spec::document::{Kind, Spec, SpecKey};
use hivemind_spec::id::NodeId;
use hivemind_spec::secret::REGISTRY_LABEL;

use crate::cluster::{Cluster, Node, OsRelease, Secret, Workload};
use crate::enrolment;
use crate::record::{
    Decision, Forgotten, Matter, Observation, Placement, RecordKey, ReplicaStatus, Topic, VolumeId,
    WorkloadId,
};
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
            Some(Spec::OsRelease(spec)) => {
                let release = OsRelease { digest: document.digest(), spec: (**spec).clone() };
                cluster.os_releases.insert(spec.architecture, release);
            }
            Some(Spec::Volume(spec)) => {
                let id = VolumeId { namespace: name.namespace.clone(), name: name.name.clone() };
                cluster.volumes.insert(id, spec.clone());
            }
            Some(Spec::Secret(spec)) => {
                let metadata = &document.value().metadata;
                let secret = Secret {
                    revision: metadata.revision,
                    digest: document.digest(),
                    registry: metadata.labels.get(REGISTRY_LABEL).cloned(),
                    spec: Arc::new(spec.clone()),
                };
                cluster.secrets.insert(name.clone(), secret);
            }
            Some(Spec::Namespace(spec)) => {
                cluster.namespaces.insert(name.name.clone(), spec.clone());
            }
            Some(Spec::NodeIntent(intent)) => {
                intents.insert(intent.node, (intent.clone(), document.value().metadata.revision));
            }
            Some(Spec::Later) => {
                cluster.unread.insert(name.clone());
            }
            _ => {}
        }
    }
    for (key, _) in map.iter().take_while(|(key, _)| matches!(key, RecordKey::Spec(..))) {
        if let RecordKey::Spec(SpecKey { kind: Kind::Workload, namespace, name }, _) = key {
            let id = WorkloadId { namespace: namespace.clone(), name: name.clone() };
            if !cluster.workloads.contains_key(&id) {
                cluster.gone.insert(id);
            }
        }
    }
    for id in members {
        if let Some(enrolment) = enrolment::enrolment(map, *id) {
            let (intent, intended_ms) = intents.remove(id).unzip();
            let intended_ms = intended_ms.unwrap_or(0);
            let node = Node { enrolment: enrolment.clone(), status: None, intent, intended_ms };
            cluster.nodes.insert(*id, node);
        }
    }
    for (key, entry) in map.iter() {
        add_statement(&mut cluster, key, entry);
    }
    for id in cluster.workloads.keys().cloned().collect::<Vec<_>>() {
        place_undecided(&mut cluster, &id);
    }
    for (id, workload) in &mut cluster.workloads {
        workload.take(cluster.jobs.get(id));
    }
    cluster
}

/// Fills the place of a decision on where a workload is, where there is none.
fn place_undecided(cluster: &mut Cluster, id: &WorkloadId) {
    if cluster.placements.contains_key(id) {
        return;
    }
    let placement = found(cluster, id);
    if !placement.slots.is_empty() {
        cluster.placements.insert(id.clone(), placement);
    }
}

/// Takes the changes of the records under `changed` into `cluster`, which was drawn from the map before
/// them. Returns whether that was possible: documents, and who is a member, bear on everything, and then
/// the picture has to be drawn anew.
pub fn follow(cluster: &mut Cluster, map: &Map, changed: &BTreeSet<RecordKey>) -> bool {
    changed.iter().all(|key| follow_one(cluster, map, key))
}

fn follow_one(cluster: &mut Cluster, map: &Map, key: &RecordKey) -> bool {
    let entry = map.get(key);
    let content = entry.map(|entry| &entry.content);
    match (key, content) {
        (
            RecordKey::Observation(id, Topic::Enrolment),
            Some(Content::Observation(Some(Observation::Enrolment(enrolment)))),
        ) => match cluster.nodes.get_mut(id) {
            Some(node) => node.enrolment = enrolment.clone(),
            None => return false,
        },
        // Another member vouches for one.
        (RecordKey::Observation(_, Topic::Admission(node)), Some(Content::Observation(Some(_))))
            if cluster.nodes.contains_key(node) => {}
        (RecordKey::Observation(id, Topic::Node), _) => {
            if let Some(node) = cluster.nodes.get_mut(id) {
                node.status = None;
            }
            add_entry(cluster, key, entry);
        }
        (RecordKey::Observation(id, Topic::Replica(replica)), _) => {
            cluster.replicas.remove(&(replica.clone(), *id));
            add_entry(cluster, key, entry);
            let placed = cluster.placements.get(&replica.workload);
            if placed.is_none_or(|placement| placement.digest.is_none()) {
                place(cluster, map, &replica.workload);
            }
        }
        (RecordKey::Observation(id, Topic::Volume(part)), _) => {
            cluster.volume_parts.remove(&(part.clone(), *id));
            add_entry(cluster, key, entry);
        }
        (RecordKey::Observation(id, Topic::Images), _) => {
            cluster.images.remove(id);
            add_entry(cluster, key, entry);
        }
        (RecordKey::Observation(id, Topic::Shared(secret, node)), _) => {
            cluster.shared_keys.remove(&(secret.clone(), *node, *id));
            add_entry(cluster, key, entry);
        }
        (RecordKey::Decision(Matter::Placement(workload)), _) => place(cluster, map, workload),
        (RecordKey::Decision(Matter::Job(id)), _) => {
            cluster.jobs.remove(id);
            add_entry(cluster, key, entry);
            if let Some(workload) = cluster.workloads.get_mut(id) {
                workload.take(cluster.jobs.get(id));
            }
        }
        (RecordKey::Decision(Matter::Forgotten), _) => {
            cluster.forgotten = Forgotten::default();
            add_entry(cluster, key, entry);
        }
        (RecordKey::Decision(Matter::Rollout(architecture)), _) => {
            cluster.rollouts.remove(architecture);
            add_entry(cluster, key, entry);
        }
        _ => return false,
    }
    true
}

/// Finds out where a workload's replicas were placed.
fn place(cluster: &mut Cluster, map: &Map, id: &WorkloadId) {
    cluster.placements.remove(id);
    let key = RecordKey::Decision(Matter::Placement(id.clone()));
    add_entry(cluster, &key, map.get(&key));
    if cluster.workloads.contains_key(id) {
        place_undecided(cluster, id);
    }
}

/// Where nodes say that they have a workload's replicas. That is its placement when no decision on it
/// is left, because the node that decided was revoked; decisions can be made anew from what nodes say.
fn found(cluster: &Cluster, id: &WorkloadId) -> Placement {
    let has = |status: &ReplicaStatus| status.phase != Phase::Stopping;
    // The running one, where two nodes have the same.
    let mut best = BTreeMap::new();
    for ((replica, node), status) in cluster.replicas_of(id).filter(|(_, status)| has(status)) {
        let rank = (status.phase != Phase::Running, *node);
        best.entry(replica.slot).and_modify(|other| *other = rank.min(*other)).or_insert(rank);
    }
    let slots = best.into_iter().map(|(slot, (_, node))| (slot, node)).collect();
    Placement { digest: None, slots, pending: BTreeMap::new() }
}

fn add_entry(cluster: &mut Cluster, key: &RecordKey, entry: Option<&Entry>) {
    if let Some(entry) = entry {
        add_statement(cluster, key, entry);
    }
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
            RecordKey::Observation(id, Topic::Volume(part)),
            Content::Observation(Some(Observation::Volume(status))),
        ) if speaks(cluster, id) => {
            cluster.volume_parts.insert((part.clone(), *id), *status);
        }
        (
            RecordKey::Observation(id, Topic::Images),
            Content::Observation(Some(Observation::Images(images))),
        ) if speaks(cluster, id) => {
            cluster.images.insert(*id, images.clone());
        }
        (
            RecordKey::Observation(id, Topic::Shared(secret, node)),
            Content::Observation(Some(Observation::Shared(shared))),
        ) if speaks(cluster, id) => {
            cluster.shared_keys.insert((secret.clone(), *node, *id), shared.clone());
        }
        (
            RecordKey::Observation(id, Topic::Overtaken(name)),
            Content::Observation(Some(Observation::Overtaken(overtaken))),
        ) if speaks(cluster, id) => {
            cluster.overtaken.insert(name.clone(), overtaken.clone());
        }
        (
            RecordKey::Observation(id, Topic::Doubled(node)),
            Content::Observation(Some(Observation::Doubled(doubled))),
        ) if speaks(cluster, id) && speaks(cluster, node) => {
            cluster.doubled.insert(*node, doubled.clone());
        }
        (
            RecordKey::Decision(Matter::Placement(workload)),
            Content::Decision(Some(Decision::Placement(placement))),
        ) if decides(cluster, entry) => {
            cluster.placements.insert(workload.clone(), placement.clone());
        }
        (RecordKey::Decision(Matter::Job(id)), Content::Decision(Some(Decision::Job(progress))))
            if decides(cluster, entry) =>
        {
            cluster.jobs.insert(id.clone(), progress.clone());
        }
        (RecordKey::Decision(Matter::Forgotten), Content::Decision(Some(Decision::Forgotten(forgotten))))
            if decides(cluster, entry) =>
        {
            cluster.forgotten = forgotten.clone();
        }
        (
            RecordKey::Decision(Matter::Rollout(architecture)),
            Content::Decision(Some(Decision::Rollout(rollout))),
        ) if decides(cluster, entry) => {
            cluster.rollouts.insert(*architecture, rollout.clone());
        }
        _ => {}
    }
}

/// Whether a decision's writer may make it.
fn decides(cluster: &Cluster, entry: &Entry) -> bool {
    let Order::Decision { clock } = entry.version.order else { return false };
    let writer = statement::of(&entry.record).and_then(|statement| cluster.nodes.get(&statement.writer));
    writer.is_some_and(|node| node.may_decide(clock))
}

/// Whether what a node says about others, or about its replicas, is heard.
fn speaks(cluster: &Cluster, id: &NodeId) -> bool {
    cluster.nodes.get(id).is_some_and(|node| !node.is_revoked())
}

#[cfg(test)]
mod tests;
