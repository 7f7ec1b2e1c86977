//! The placement being made: what is where, and what is left.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use hivemind_spec::api::Capacity;
use hivemind_spec::id::NodeId;
use hivemind_spec::volume::Per;
use hivemind_spec::workload::Resources;

use super::refusal::{Refusal, explain, explain_one};
use crate::cluster::{Cluster, Liveness, Workload, first_unmet};
use crate::device::{self, Presence};
use crate::mutation::{Mutation, is_on};
use crate::record::{ReplicaId, VolumePart, WorkloadId};
use crate::volume::{self, Unusable};

/// Nodes from which a workload's replicas are tried to be moved, those with most of them first: each try looks at all
/// nodes.
const DONORS_TRIED: usize = 8;

/// A node as the scheduler sees it.
pub(super) struct Host<'a> {
    pub(super) hostname: String,
    pub(super) labels: BTreeMap<String, String>,
    /// What its workloads may use in all; absent when it never said.
    capacity: Option<Capacity>,
    pub(super) used: Capacity,
    /// Why nothing new may be placed on it.
    closed: Option<Refusal>,
    /// What is on it, least worth keeping first.
    residents: BTreeSet<Resident<'a>>,
}

/// A replica on a node. Ordered by who makes room first: lowest priority, then highest slot.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Resident<'a> {
    priority: i32,
    slot: Reverse<u32>,
    workload: &'a WorkloadId,
    asks: Asks,
}

/// What a replica sets aside.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Asks {
    pub(super) cpu_millis: u64,
    pub(super) memory_bytes: u64,
}

impl From<&Resources> for Asks {
    fn from(resources: &Resources) -> Self {
        Self { cpu_millis: resources.cpu_millis(), memory_bytes: resources.memory_bytes() }
    }
}

/// How good a node is for a replica: the least is the best.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Score {
    /// The highest priority that would have to make room; `None` when nobody has to.
    evicts_priority: Option<i32>,
    /// How many would have to.
    evicts: usize,
    /// Replicas of the same workload: on all nodes with the same value, for each label to spread over, then on it.
    kin: Vec<usize>,
    /// Thousandths of its scarcer resource in use, with the replica.
    used_permille: u64,
    node: NodeId,
}

/// How many replicas of a workload are where.
struct Kin<'a> {
    by_node: BTreeMap<NodeId, usize>,
    /// For each label to spread over, the most important first.
    by_value: Vec<BTreeMap<Option<&'a str>, usize>>,
}

impl Kin<'_> {
    /// How many are near a node: with the same value of each label, then on it.
    fn near(&self, workload: &Workload, node: &NodeId, host: &Host<'_>) -> Vec<usize> {
        let labels = workload.spec.spread.iter().zip(&self.by_value);
        let same_value = labels.map(|(label, counts)| counts.get(&host.label(label)).copied().unwrap_or(0));
        same_value.chain([self.by_node.get(node).copied().unwrap_or(0)]).collect()
    }
}

impl Host<'_> {
    pub(super) fn free(&self) -> Capacity {
        let capacity = self.capacity.unwrap_or_default();
        Capacity {
            cpu_millis: capacity.cpu_millis.saturating_sub(self.used.cpu_millis),
            memory_bytes: capacity.memory_bytes.saturating_sub(self.used.memory_bytes),
        }
    }

    fn refusal_for_room(&self, asks: Asks, freed: Capacity) -> Option<Refusal> {
        if is_on(Mutation::CapacityDoesNotMatter) {
            return None;
        }
        let free = self.free();
        if free.memory_bytes.saturating_add(freed.memory_bytes) < asks.memory_bytes {
            Some(Refusal::Memory)
        } else if free.cpu_millis.saturating_add(freed.cpu_millis) < asks.cpu_millis {
            Some(Refusal::Cpu)
        } else {
            None
        }
    }

    /// How many replicas of a workload are here.
    fn count_of(&self, name: &WorkloadId) -> usize {
        self.residents.iter().filter(|resident| resident.workload == name).count()
    }

    /// Whether no more replicas of the workload may come here.
    fn is_full(&self, name: &WorkloadId, workload: &Workload) -> bool {
        let most = workload.spec.most_per_node().and_then(|most| usize::try_from(most).ok());
        most.is_some_and(|most| self.count_of(name) >= most)
    }

    /// Why a replica of the workload may not come here, given that `freed` is made free.
    pub(super) fn refusal(
        &self,
        id: &NodeId,
        name: &WorkloadId,
        workload: &Workload,
        freed: Capacity,
    ) -> Option<Refusal> {
        if self.closed.is_some() {
            return self.closed;
        }
        let constraints = &workload.spec.constraints;
        if let Some(index) = first_unmet(constraints, id, &self.hostname, &self.labels) {
            return Some(Refusal::Constraint(index));
        }
        if let Some(refusal) = self.refusal_for_devices(workload) {
            return Some(refusal);
        }
        if self.is_full(name, workload) {
            return Some(Refusal::Full);
        }
        self.refusal_for_room(Asks::from(&workload.spec.container.resources), freed)
    }

    fn refusal_for_devices(&self, workload: &Workload) -> Option<Refusal> {
        let (index, presence) = device::first_lacking(&workload.spec, &self.labels)?;
        Some(match presence {
            Presence::Unknown => Refusal::DeviceUnknown(index),
            _ => Refusal::Device(index),
        })
    }

    fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name).map(String::as_str)
    }

    fn used_permille_with(&self, asks: Asks) -> u64 {
        let capacity = self.capacity.unwrap_or_default();
        let share = |used: u64, all: u64| used.saturating_mul(1000) / all.max(1);
        share(self.used.cpu_millis.saturating_add(asks.cpu_millis), capacity.cpu_millis)
            .max(share(self.used.memory_bytes.saturating_add(asks.memory_bytes), capacity.memory_bytes))
    }
}

/// The placement being made.
pub(super) struct Draft<'a> {
    cluster: &'a Cluster,
    /// Enrolled nodes that are not revoked.
    hosts: BTreeMap<NodeId, Host<'a>>,
    slots: BTreeMap<&'a WorkloadId, BTreeMap<u32, NodeId>>,
    evicted: BTreeMap<&'a WorkloadId, BTreeSet<u32>>,
    /// Where parts of volumes are or will be, of which there is only one.
    homes: BTreeMap<VolumePart, NodeId>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(cluster: &'a Cluster, liveness: &Liveness) -> Self {
        let hosts = cluster.nodes.iter().filter(|(_, node)| !node.is_revoked()).map(|(id, node)| {
            let closed = if !liveness.alive.contains(id) {
                Some(Refusal::Down)
            } else if node.is_cordoned() {
                Some(Refusal::Cordoned)
            } else if cluster.is_leaving(id) {
                Some(Refusal::Leaving)
            } else if !node.is_ready() {
                Some(Refusal::NotReady)
            } else {
                None
            };
            let host = Host {
                hostname: cluster.hostname(id),
                labels: node.labels(),
                capacity: node.status.as_ref().map(|status| status.capacity),
                used: Capacity::default(),
                closed,
                residents: BTreeSet::new(),
            };
            (*id, host)
        });
        Self {
            cluster,
            hosts: hosts.collect(),
            slots: BTreeMap::new(),
            evicted: BTreeMap::new(),
            homes: BTreeMap::new(),
        }
    }

    /// The node on which the data of a replica is, if there is any yet; `placed` is where the replica is.
    ///
    /// # Errors
    /// Why it can be on none.
    pub(super) fn home(
        &self,
        id: &WorkloadId,
        workload: &Workload,
        slot: u32,
        placed: Option<&NodeId>,
    ) -> Result<Option<NodeId>, Unusable> {
        let mut found: Option<(String, NodeId)> = None;
        for (name, part) in self.single_parts(id, workload, slot)? {
            let home = self.homes.get(&part).copied().or_else(|| volume::home(self.cluster, &part, placed));
            let Some(home) = home else { continue };
            match &found {
                Some((other, node)) if *node != home => return Err(Unusable::Apart(other.clone(), name)),
                Some(_) => {}
                None => found = Some((name, home)),
            }
        }
        Ok(found.map(|(_, home)| home))
    }

    /// The parts that a replica has of volumes, of which there is only one, by the volumes' names.
    fn single_parts(
        &self,
        id: &WorkloadId,
        workload: &Workload,
        slot: u32,
    ) -> Result<BTreeMap<String, VolumePart>, Unusable> {
        if workload.spec.container.volumes.is_empty() {
            return Ok(BTreeMap::new());
        }
        let replica = ReplicaId { workload: id.clone(), slot };
        let parts = volume::parts(self.cluster, &replica, workload)?.into_iter();
        Ok(parts.filter(|(_, (_, per))| *per != Per::Node).map(|(name, (part, _))| (name, part)).collect())
    }

    /// Puts a replica on a node, whatever its state.
    pub(super) fn assign(&mut self, id: &'a WorkloadId, workload: &Workload, slot: u32, node: NodeId) {
        let asks = Asks::from(&workload.spec.container.resources);
        if let Some(host) = self.hosts.get_mut(&node) {
            host.used.cpu_millis = host.used.cpu_millis.saturating_add(asks.cpu_millis);
            host.used.memory_bytes = host.used.memory_bytes.saturating_add(asks.memory_bytes);
            let priority = workload.spec.priority;
            host.residents.insert(Resident { priority, slot: Reverse(slot), workload: id, asks });
        }
        self.slots.entry(id).or_default().insert(slot, node);
        for part in self.single_parts(id, workload, slot).unwrap_or_default().into_values() {
            self.homes.entry(part).or_insert(node);
        }
    }

    /// Leaves a replica that is done on its node, where it needs nothing any more.
    pub(super) fn rest(&mut self, id: &'a WorkloadId, slot: u32, node: NodeId) {
        self.slots.entry(id).or_default().insert(slot, node);
    }

    /// Leaves a replica on its live node, unless the node's capacity, labels or devices no longer allow it.
    /// Cordon and readiness do not matter to what is there already.
    pub(super) fn keep_if_it_may_stay(
        &mut self,
        id: &'a WorkloadId,
        workload: &Workload,
        slot: u32,
        node: &NodeId,
    ) -> bool {
        let Some(host) = self.hosts.get(node) else { return false };
        if !matches!(self.home(id, workload, slot, Some(node)), Ok(home) if home.is_none_or(|home| home == *node))
        {
            return false;
        }
        let asks = Asks::from(&workload.spec.container.resources);
        // A node that never said what it is cannot be judged, and its replicas are left alone.
        let stays = host.capacity.is_none()
            || (host.refusal_for_room(asks, Capacity::default()).is_none()
                && !host.is_full(id, workload)
                && first_unmet(&workload.spec.constraints, node, &host.hostname, &host.labels).is_none()
                && !device::lacks(&workload.spec, &host.labels));
        if stays {
            self.assign(id, workload, slot, *node);
        }
        stays
    }

    /// Finds the best node for a replica and puts it there, making room if need be. False when
    /// none fits.
    pub(super) fn place(&mut self, id: &'a WorkloadId, workload: &Workload, slot: u32) -> bool {
        self.place_if(id, workload, slot, |_| true)
    }

    /// The same where there is room.
    pub(super) fn place_in_room(&mut self, id: &'a WorkloadId, workload: &Workload, slot: u32) -> bool {
        self.place_if(id, workload, slot, |victims| victims.is_empty())
    }

    fn place_if(
        &mut self,
        id: &'a WorkloadId,
        workload: &Workload,
        slot: u32,
        may_end: impl Fn(&[Resident<'_>]) -> bool,
    ) -> bool {
        let Some(Score { node, .. }) = self.best(id, workload, slot, may_end) else { return false };
        let victims = self.hosts.get(&node).and_then(|host| victims(&node, host, id, workload));
        for victim in victims.unwrap_or_default() {
            self.evict(&node, &victim);
        }
        self.assign(id, workload, slot, node);
        true
    }

    /// The best node for a replica that has none.
    fn best(
        &self,
        id: &WorkloadId,
        workload: &Workload,
        slot: u32,
        may_end: impl Fn(&[Resident<'_>]) -> bool,
    ) -> Option<Score> {
        let home = self.home(id, workload, slot, None).ok()?;
        let asks = Asks::from(&workload.spec.container.resources);
        let kin = self.kin(id, workload);
        let hosts = self.hosts.iter().filter(|(node, _)| home.is_none_or(|home| home == **node));
        let scores = hosts.filter_map(|(node, host)| {
            let victims = victims(node, host, id, workload).filter(|victims| may_end(victims))?;
            Some(Score {
                evicts_priority: victims.iter().map(|victim| victim.priority).max(),
                evicts: victims.len(),
                kin: kin.near(workload, node, host),
                used_permille: host.used_permille_with(asks),
                node: *node,
            })
        });
        scores.min()
    }

    /// Moves one of these running replicas from where most of its kind are to where fewer are, if there is room. False
    /// when they are spread as evenly as they can be.
    pub(super) fn even_out(
        &mut self,
        id: &'a WorkloadId,
        workload: &Workload,
        running: &BTreeMap<u32, NodeId>,
    ) -> bool {
        let slots = self.slots(id);
        let mut donors: BTreeMap<NodeId, u32> = BTreeMap::new();
        for (slot, node) in running.iter().filter(|(slot, node)| slots.get(slot) == Some(*node)) {
            donors.insert(*node, *slot);
        }
        let kin = self.kin(id, workload);
        let near = |(node, slot): (NodeId, u32)| {
            let host = self.hosts.get(&node)?;
            Some((Reverse(kin.near(workload, &node, host)), node, slot))
        };
        let mut crowded: Vec<_> = donors.into_iter().filter_map(near).collect();
        crowded.sort();
        for (_, node, slot) in crowded.into_iter().take(DONORS_TRIED) {
            self.unassign(id, workload, slot, &node);
            let host = self.hosts.get(&node);
            let here = host.map(|host| self.kin(id, workload).near(workload, &node, host));
            let best = self.best(id, workload, slot, |victims| victims.is_empty());
            let there = best.filter(|best| here.as_ref().is_some_and(|here| best.kin < *here));
            let moved = there.as_ref().map(|best| best.node);
            self.assign(id, workload, slot, moved.unwrap_or(node));
            if moved.is_some() {
                return true;
            }
        }
        false
    }

    /// Takes a replica from its node.
    fn unassign(&mut self, id: &'a WorkloadId, workload: &Workload, slot: u32, node: &NodeId) {
        let asks = Asks::from(&workload.spec.container.resources);
        self.vacate(
            node,
            &Resident { priority: workload.spec.priority, slot: Reverse(slot), workload: id, asks },
        );
    }

    /// Where a workload's replicas are, counted.
    fn kin(&self, id: &WorkloadId, workload: &Workload) -> Kin<'_> {
        let mut by_node = BTreeMap::<NodeId, usize>::new();
        for node in self.slots.get(id).into_iter().flat_map(BTreeMap::values) {
            *by_node.entry(*node).or_default() += 1;
        }
        let labels = workload.spec.spread.iter();
        let by_value = labels.map(|label| self.count_by_value(label, &by_node)).collect();
        Kin { by_node, by_value }
    }

    /// How many replicas there are on the nodes with each value of a label; `same` has them by node.
    fn count_by_value(&self, label: &str, same: &BTreeMap<NodeId, usize>) -> BTreeMap<Option<&str>, usize> {
        let mut counts = BTreeMap::new();
        for (node, count) in same {
            if let Some(host) = self.hosts.get(node) {
                *counts.entry(host.label(label)).or_default() += count;
            }
        }
        counts
    }

    fn evict(&mut self, node: &NodeId, victim: &Resident<'a>) {
        self.vacate(node, victim);
        self.evicted.entry(victim.workload).or_default().insert(victim.slot.0);
    }

    fn vacate(&mut self, node: &NodeId, victim: &Resident<'a>) {
        if let Some(host) = self.hosts.get_mut(node) {
            host.residents.remove(victim);
            host.used.cpu_millis = host.used.cpu_millis.saturating_sub(victim.asks.cpu_millis);
            host.used.memory_bytes = host.used.memory_bytes.saturating_sub(victim.asks.memory_bytes);
        }
        if let Some(slots) = self.slots.get_mut(victim.workload) {
            slots.remove(&victim.slot.0);
        }
    }

    /// The slots of a workload that made room for others.
    pub(super) fn take_evicted(&mut self, id: &WorkloadId) -> BTreeSet<u32> {
        self.evicted.remove(id).unwrap_or_default()
    }

    /// Where a workload's replicas are.
    pub(super) fn slots(&self, id: &WorkloadId) -> BTreeMap<u32, NodeId> {
        self.slots.get(id).cloned().unwrap_or_default()
    }

    /// Why no node takes a replica of the workload; `placed` is the dead node it waits for.
    pub(super) fn explain(
        &self,
        name: &WorkloadId,
        workload: &Workload,
        slot: u32,
        placed: Option<&NodeId>,
    ) -> String {
        let reason = match self.home(name, workload, slot, placed) {
            Err(unusable) => return unusable.to_string(),
            Ok(Some(home)) => explain_one(&self.hosts, &home, name, workload),
            Ok(None) => explain(&self.hosts, name, workload),
        };
        match placed {
            Some(home) => format!("its node {} is down and {reason}", self.cluster.hostname(home)),
            None => reason,
        }
    }
}

/// Who must make room on a node for a replica of the workload: nobody when there is room. `None`
/// when it cannot come here at all.
fn victims<'a>(
    node: &NodeId,
    host: &Host<'a>,
    name: &WorkloadId,
    workload: &Workload,
) -> Option<Vec<Resident<'a>>> {
    let mut victims = Vec::new();
    let mut freed = Capacity::default();
    let mut lower = host.residents.iter().take_while(|r| r.priority < workload.spec.priority);
    loop {
        match host.refusal(node, name, workload, freed) {
            None => return Some(victims),
            Some(Refusal::Memory | Refusal::Cpu) => {
                let victim = lower.next()?;
                freed.cpu_millis = freed.cpu_millis.saturating_add(victim.asks.cpu_millis);
                freed.memory_bytes = freed.memory_bytes.saturating_add(victim.asks.memory_bytes);
                victims.push(victim.clone());
            }
            Some(_) => return None,
        }
    }
}
