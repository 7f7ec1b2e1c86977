//! Orders about parts of volumes: their limits, and their end once nothing here can be using them.

use std::collections::BTreeMap;

use super::{CLEANUP_RETRY_MS, InFlight, Plan, Replicas, life};
use crate::cluster::Workload;
use crate::event::{ContainerLabels, RuntimeOp, VolumePlan};
use crate::record::{ReplicaId, VolumePart};
use crate::time::Time;
use crate::volume::Order;

/// Orders under way at once: a deletion may have millions of files to remove.
const MAX_ORDERS: usize = 1;

/// Orders that failed: how often, and when to try again, [`Time::mono_ms`].
pub(super) type Failed = BTreeMap<VolumePart, (u32, u64)>;

impl Replicas {
    /// Sees to the parts that are here and not as they should be.
    pub(super) fn tend_volumes(
        &mut self,
        now: Time,
        orders: &BTreeMap<VolumePart, Order>,
        wanted: &BTreeMap<ReplicaId, &Workload>,
        plan: &mut Plan,
    ) {
        self.failed_orders.retain(|part, _| orders.contains_key(part));
        let here: Vec<_> = orders.iter().filter(|(part, _)| self.volumes().contains_key(*part)).collect();
        for (part, order) in here {
            if self.count(|op| matches!(op, InFlight::Volume { .. })) >= MAX_ORDERS {
                return;
            }
            let waits_ms = self.failed_orders.get(part).map(|(_, at)| *at).filter(|at| now.mono_ms < *at);
            if let Some(at) = waits_ms {
                plan.wake_at(at);
                continue;
            }
            let op = match order {
                Order::Limit(size_bytes) => {
                    RuntimeOp::LimitVolume(VolumePlan { part: part.clone(), size_bytes: *size_bytes })
                }
                Order::Delete if self.may_be_in_use(part, wanted) => continue,
                Order::Delete => RuntimeOp::DeleteVolume { part: part.clone() },
            };
            self.begin(InFlight::Volume { part: part.clone(), order: *order }, op, plan);
        }
    }

    /// Takes note that an order ended.
    pub(super) fn tended(&mut self, now: Time, part: VolumePart, order: Order, failed: bool) {
        if failed {
            let failures = self.failed_orders.get(&part).map_or(0, |(failures, _)| *failures);
            let at = now.mono_ms.saturating_add(life::delay_ms(CLEANUP_RETRY_MS, failures));
            self.failed_orders.insert(part, (failures.saturating_add(1), at));
            return;
        }
        match order {
            Order::Limit(size_bytes) => self.observed.expect_limit(&part, size_bytes),
            Order::Delete => self.observed.expect_no_volume(&part),
        }
    }

    /// Whether a container here may have it: one whose workload does, or whose workload is not known any more.
    fn may_be_in_use(&self, part: &VolumePart, wanted: &BTreeMap<ReplicaId, &Workload>) -> bool {
        self.users_here(part, |replica| wanted.get(replica).copied()).next().is_some()
    }

    /// What the containers here are that may have a part: by their workload, or because what they were made of is not known
    /// any more.
    pub fn users_here<'a>(
        &self,
        part: &VolumePart,
        workload: impl Fn(&ReplicaId) -> Option<&'a Workload>,
    ) -> impl Iterator<Item = &ContainerLabels> {
        let has = move |labels: &&ContainerLabels| {
            let same = labels.replica.workload.namespace == part.volume.namespace;
            let known = workload(&labels.replica).filter(|workload| workload.template == labels.template);
            same && known.is_none_or(|workload| workload.spec.container.mounts(&part.volume.name))
        };
        self.containers_here().filter(has)
    }
}
