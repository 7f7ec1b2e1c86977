//! Who makes room when the containers of a node are short of memory, of processes, or of room on the disk: one at a time,
//! lowest priority first, and of equal ones the one that uses most beyond its due. What uses no more than that stays. Due is
//! the memory that it asks for, because placement left room for it; of processes, for which nobody asks, as many as everybody
//! else has on average; and of the disk as little as would make no difference. Images that nobody needs go before.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::{Replicas, asks, container_id};
use crate::cluster::Workload;
use crate::event::{ContainerId, Scarce, TaskState};
use crate::record::ReplicaId;

const MIB: u64 = 1 << 20;

/// What makes no difference to a full disk, as a part of it: what is told as full has no more than that left.
const LITTLE: u64 = 20;

/// The longest shutdown of a replica that makes room, milliseconds: all others wait for the memory meanwhile.
pub(super) const GRACE_MS: u64 = 10_000;

impl Replicas {
    /// Takes note that something is short ([`crate::event::Event::Short`]).
    pub fn short(&mut self, of: Scarce, uses: BTreeMap<ContainerId, u64>) {
        self.shortage = Some((of, uses));
    }

    /// Chooses who makes room, if somebody has to and nobody does.
    pub(super) fn relieve(&mut self, wanted: &BTreeMap<ReplicaId, &Workload>) {
        let shortage = self.shortage.take();
        let containers = &self.observed.inventory().containers;
        let runs =
            |id: &ContainerId| containers.get(id).is_some_and(|state| state.task == TaskState::Running);
        self.evicted.retain(|id, _| runs(id));
        let Some((of, uses)) = shortage.filter(|_| self.evicted.is_empty()) else { return };
        if of == Scarce::Disk && self.garbage.is_any() {
            return;
        }
        let disk = self.observed.inventory().disk;
        let average = uses.values().sum::<u64>() / (uses.len() as u64).max(1);
        let one = |(replica, workload): (&ReplicaId, &&Workload)| {
            let id = container_id(replica, &workload.template);
            let due = match of {
                Scarce::Memory => asks(workload).memory_bytes,
                Scarce::Processes => average,
                Scarce::Disk => disk?.total_bytes / LITTLE,
            };
            let used = *uses.get(&id)?;
            let beyond = used.checked_sub(due).filter(|beyond| *beyond > 0 && runs(&id))?;
            Some((workload.spec.priority, Reverse(beyond), id, used, due))
        };
        let Some((priority, _, id, used, due)) = wanted.iter().filter_map(one).min() else { return };
        let reason = match of {
            Scarce::Memory => format!(
                "made room when the memory of its machine was short: it used {} MiB, asks for {}, and has priority {priority}",
                used / MIB,
                due / MIB
            ),
            Scarce::Processes => format!(
                "made room when its machine was short of processes: it had {used}, and has priority {priority}"
            ),
            Scarce::Disk => format!(
                "made room when the disk of its machine was full: it had written {} MiB beside its volumes, and has priority {priority}",
                used / MIB
            ),
        };
        self.evicted.insert(id, reason);
    }
}
