//! Who makes room when the containers of a node are short of memory: one at a time, lowest priority first, and of equal ones
//! the one that uses most beyond what it asks for. What uses no more than that stays: placement left room for it.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::{Replicas, asks, container_id};
use crate::cluster::Workload;
use crate::event::{ContainerId, TaskState};
use crate::record::ReplicaId;

const MIB: u64 = 1 << 20;

/// The longest shutdown of a replica that makes room, milliseconds: all others wait for the memory meanwhile.
pub(super) const GRACE_MS: u64 = 10_000;

impl Replicas {
    /// Takes note that memory is short ([`crate::event::Event::MemoryShort`]).
    pub fn memory_short(&mut self, uses: BTreeMap<ContainerId, u64>) {
        self.memory_uses = uses;
    }

    /// Chooses who makes room, if somebody has to and nobody does.
    pub(super) fn make_memory(&mut self, wanted: &BTreeMap<ReplicaId, &Workload>) {
        let uses = std::mem::take(&mut self.memory_uses);
        let containers = &self.observed.inventory().containers;
        let runs =
            |id: &ContainerId| containers.get(id).is_some_and(|state| state.task == TaskState::Running);
        self.evicted.retain(|id, _| runs(id));
        if uses.is_empty() || !self.evicted.is_empty() {
            return;
        }
        let one = |(replica, workload): (&ReplicaId, &&Workload)| {
            let id = container_id(replica, &workload.template);
            let (used, asked) = (*uses.get(&id)?, asks(workload).memory_bytes);
            let beyond = used.checked_sub(asked).filter(|beyond| *beyond > 0 && runs(&id))?;
            Some((workload.spec.priority, Reverse(beyond), id, used, asked))
        };
        let Some((priority, _, id, used, asked)) = wanted.iter().filter_map(one).min() else { return };
        let reason = format!(
            "made room when the memory of its machine was short: it used {} MiB, asks for {}, and has priority {priority}",
            used / MIB,
            asked / MIB
        );
        self.evicted.insert(id, reason);
    }
}
