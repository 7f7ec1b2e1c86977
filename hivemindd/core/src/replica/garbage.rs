//! Garbage collection of images: when the disk fills, those go that nothing here needs, the longest unneeded first.
//! What runs, what is placed here, what came a moment ago, and what an operator gave is never removed.

use std::collections::{BTreeMap, BTreeSet};

use super::pull::images;
use super::{Here, InFlight, Plan, Replicas};
use crate::cluster::Workload;
use crate::event::{DiskState, RuntimeOp};
use crate::record::ReplicaId;
use crate::time::Time;

/// From when on images go, percent of the disk: before pulls, logs and volumes fail for want of room.
const FULL_PERCENT: u64 = 85;

/// Until when they go, percent: so that a pull has room, and not every pull begins it anew.
const ENOUGH_PERCENT: u64 = 75;

/// How long an image is not needed before it may go, milliseconds: a replica that is placed anew may have it at once, and
/// an inventory that is on its way does not know what was started since.
pub(super) const UNNEEDED_MS: u64 = 60_000;

/// Images that are here and not needed.
#[derive(Debug, Clone, Default)]
pub(super) struct Garbage {
    /// Since when, [`Time::mono_ms`].
    unneeded_since: BTreeMap<String, u64>,
    /// Those of them that could not be removed.
    stuck: BTreeSet<String>,
    /// Whether the disk was full, and there is not enough room again.
    full: bool,
}

impl Garbage {
    fn look(&mut self, now: Time, disk: Option<DiskState>, unneeded: &BTreeSet<&String>) {
        self.unneeded_since.retain(|image, _| unneeded.contains(image));
        self.stuck.retain(|image| unneeded.contains(image));
        for image in unneeded {
            if !self.unneeded_since.contains_key(*image) {
                self.unneeded_since.insert((*image).clone(), now.mono_ms);
            }
        }
        if let Some(disk) = disk {
            let limit = if self.full { ENOUGH_PERCENT } else { FULL_PERCENT };
            self.full = disk.used_percent() >= limit;
        }
    }

    /// What goes next and from when on: what no workload of the cluster has, and of that what was not needed longest.
    /// `named`: the images of the cluster's workloads.
    fn next(&self, named: &BTreeSet<&str>) -> Option<(&str, u64)> {
        let images = self.unneeded_since.iter();
        let (image, since) =
            images.min_by_key(|(image, since)| (named.contains(image.as_str()), **since, *image))?;
        Some((image, since.saturating_add(UNNEEDED_MS)))
    }

    /// Whether there is any that may go soon.
    pub(super) fn is_any(&self) -> bool {
        self.unneeded_since.keys().any(|image| !self.stuck.contains(image))
    }

    /// Takes note that an image could not be removed: it is tried again after the others.
    pub(super) fn stays(&mut self, now: Time, image: &str) {
        if let Some(since) = self.unneeded_since.get_mut(image) {
            *since = now.mono_ms;
            self.stuck.insert(image.to_owned());
        }
    }
}

impl Replicas {
    /// Removes an image if there is need to. One at a time, and none while one is fetched: what both have in common is
    /// neither removed under the pull nor fetched twice.
    pub(super) fn collect_garbage(
        &mut self,
        now: Time,
        wanted: &BTreeMap<ReplicaId, &Workload>,
        node: Here<'_>,
        plan: &mut Plan,
    ) {
        let inventory = self.observed.inventory();
        let placed = images(wanted.values().copied());
        let given: BTreeSet<String> =
            inventory.given.iter().map(|(name, image)| image.reference(name)).collect();
        let needed = |image: &String| {
            placed.contains(image.as_str()) || inventory.used_images.contains(image) || given.contains(image)
        };
        let unneeded = inventory.images.iter().filter(|image| !needed(image)).collect();
        self.garbage.look(now, inventory.disk, &unneeded);
        let busy = self.count(|op| matches!(op, InFlight::Pull { .. } | InFlight::RemoveImage { .. }));
        // After a removal the disk is looked at before the next.
        if !self.garbage.full || busy > 0 || inventory.disk.is_none() {
            return;
        }
        let Some((image, at_ms)) = self.garbage.next(&images(node.workloads.values())) else { return };
        if now.mono_ms < at_ms {
            plan.wake_at(at_ms);
            return;
        }
        let image = image.to_owned();
        self.begin(InFlight::RemoveImage { image: image.clone() }, RuntimeOp::RemoveImage { image }, plan);
    }
}
