//! The end of data: parts of volumes that are to be deleted, once nothing here can be using them.

use std::collections::{BTreeMap, BTreeSet};

use super::{CLEANUP_RETRY_MS, InFlight, Plan, Replicas, life};
use crate::cluster::Workload;
use crate::event::RuntimeOp;
use crate::record::{ReplicaId, VolumePart};
use crate::time::Time;

/// Deletions at once: each may have millions of files to remove.
const MAX_DELETIONS: usize = 1;

/// Deletions that failed: how often, and when to try again, [`Time::mono_ms`].
pub(super) type Failed = BTreeMap<VolumePart, (u32, u64)>;

impl Replicas {
    /// Deletes what is due and not in use.
    pub(super) fn discard(
        &mut self,
        now: Time,
        due: &BTreeSet<VolumePart>,
        wanted: &BTreeMap<ReplicaId, &Workload>,
        plan: &mut Plan,
    ) {
        self.failed_discards.retain(|part, _| due.contains(part));
        let here: Vec<_> = due.iter().filter(|part| self.volumes().contains_key(*part)).collect();
        for part in here {
            if self.count(|op| matches!(op, InFlight::Discard { .. })) >= MAX_DELETIONS {
                return;
            }
            let waits_ms = self.failed_discards.get(part).map(|(_, at)| *at).filter(|at| now.mono_ms < *at);
            if let Some(at) = waits_ms {
                plan.wake_at(at);
            } else if !self.may_be_in_use(part, wanted) {
                let op = RuntimeOp::DeleteVolume { part: part.clone() };
                self.begin(InFlight::Discard { part: part.clone() }, op, plan);
            }
        }
    }

    /// Takes note that a deletion ended.
    pub(super) fn discarded(&mut self, now: Time, part: VolumePart, failed: bool) {
        if failed {
            let failures = self.failed_discards.get(&part).map_or(0, |(failures, _)| *failures);
            let at = now.mono_ms.saturating_add(life::delay_ms(CLEANUP_RETRY_MS, failures));
            self.failed_discards.insert(part, (failures.saturating_add(1), at));
        } else {
            self.observed.expect_no_volume(&part);
        }
    }

    /// Whether a container here may have it: one whose workload does, or whose workload is not known any more.
    fn may_be_in_use(&self, part: &VolumePart, wanted: &BTreeMap<ReplicaId, &Workload>) -> bool {
        self.replicas_here().any(|replica| {
            let same = replica.workload.namespace == part.volume.namespace;
            let mounts = wanted.get(replica).map(|workload| &workload.spec.container.volumes);
            same && mounts.is_none_or(|mounts| mounts.iter().any(|mount| mount.volume == part.volume.name))
        })
    }
}
