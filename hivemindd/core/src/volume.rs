//! Volumes: where their data is, and when it may go.
//!
//! ```text
//! document ──▶ a replica that uses it is placed ──▶ its node makes the part, and says that it has it
//!                                                      │ from then on the replica is placed there and nowhere else
//! order to discard ──▶ the node counts the grace ──▶ the part is deleted, and the node says no more of it
//! ```
//!
//! Where data is follows from what nodes say that they have, and from nothing that is decided. A node that cannot be
//! heard still has what it said, until operators revoke it. Nothing but the signed order to discard it deletes data.

use std::collections::BTreeMap;

use hivemind_spec::id::NodeId;
use hivemind_spec::volume::{Per, VolumeSpec};

use crate::cluster::{Cluster, Workload};
use crate::event::VolumeState;
use crate::mutation::{Mutation, is_on};
use crate::record::{ReplicaId, VolumeId, VolumePart, VolumeStatus, WorkloadId};
use crate::time::Time;

/// How often a node says for how long data has waited to be discarded, milliseconds: what it forgets when it starts
/// anew is less than that.
const SAY_WAIT_EVERY_MS: u64 = 3_600_000;

/// A grace shorter than that is told in this many steps.
const SAY_WAIT_STEPS: u64 = 8;

/// How much what is in a volume may change before it is told again, bytes, beside a sixteenth of it.
const SAY_USE_FROM: u64 = 1 << 20;

/// In blocks of so many bytes the kernel counts limits.
const BLOCK_BYTES: u64 = 1024;

/// What is to be done to a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Let it hold so many bytes, or what the machine has.
    Limit(Option<u64>),
    /// Delete it with all that is in it.
    Delete,
}

/// Why a replica can be nowhere for the sake of its volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unusable {
    /// There is no such volume.
    Unknown(String),
    /// It is to be discarded.
    Discarded(String),
    /// Two of its volumes are on different nodes.
    Apart(String, String),
}

impl std::fmt::Display for Unusable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unknown(name) => write!(f, "there is no volume {name}; push it"),
            Self::Discarded(name) => {
                write!(
                    f,
                    "its volume {name} is to be discarded; `hivemind volumes restore {name}` takes that back"
                )
            }
            Self::Apart(one, other) => write!(f, "its volumes {one} and {other} are on different machines"),
        }
    }
}

/// The volume of a workload's namespace.
fn named(workload: &WorkloadId, name: &str) -> VolumeId {
    VolumeId { namespace: workload.namespace.clone(), name: name.to_owned() }
}

/// The part that a replica has of a volume.
pub fn part(spec: &VolumeSpec, replica: &ReplicaId, name: &str) -> VolumePart {
    let number = if spec.per == Per::Replica { replica.slot } else { 0 };
    VolumePart { volume: named(&replica.workload, name), number }
}

/// The parts that a replica has, by the volumes' names.
///
/// # Errors
/// What stands against using one of them.
pub fn parts(
    cluster: &Cluster,
    replica: &ReplicaId,
    workload: &Workload,
) -> Result<BTreeMap<String, (VolumePart, Per)>, Unusable> {
    let mounts = workload.spec.container.volumes.iter();
    let part = |name: &String| match cluster.volumes.get(&named(&replica.workload, name)) {
        None => Err(Unusable::Unknown(name.clone())),
        Some(spec) if spec.discard.is_some() => Err(Unusable::Discarded(name.clone())),
        Some(spec) => Ok((name.clone(), (part(spec, replica, name), spec.per))),
    };
    mounts.map(|mount| part(&mount.volume)).collect()
}

/// Whether data may be where a replica is placed that is nowhere else, so that nobody takes the replica over.
pub fn is_bound(cluster: &Cluster, id: &WorkloadId, workload: &Workload) -> bool {
    if is_on(Mutation::DataBindsNobody) {
        return false;
    }
    let volume = |name: &str| cluster.volumes.get(&named(id, name));
    let mounts = &workload.spec.container.volumes;
    mounts.iter().any(|mount| volume(&mount.volume).is_none_or(|spec| spec.per != Per::Node))
}

/// Where a part is that there is only one of. Of several nodes that say that they have it, after each side of a
/// partition made its own: the one where the replica is placed, or else the first that made it.
pub fn home(cluster: &Cluster, part: &VolumePart, placed: Option<&NodeId>) -> Option<NodeId> {
    if is_on(Mutation::DataBindsNobody) {
        return None;
    }
    let rank = |(node, status): (&NodeId, &VolumeStatus)| (Some(node) != placed, status.made_ms, *node);
    cluster.holders(part).map(rank).min().map(|(_, _, node)| node)
}

/// What a node knows of the parts it has.
#[derive(Debug, Clone, Default)]
pub struct Volumes {
    /// What it said of them last.
    said: BTreeMap<VolumePart, VolumeStatus>,
    /// For how long they have waited to be discarded, and until when that was counted.
    waits: BTreeMap<VolumePart, Wait>,
}

#[derive(Debug, Clone, Copy)]
struct Wait {
    waited_ms: u64,
    counted_ms: u64,
}

/// How the parts of a node are, and what becomes of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// What is to be said of each. Of others that it said something of, it has nothing any more.
    pub statuses: BTreeMap<VolumePart, VolumeStatus>,
    /// What is to be done to those that are not as they should be.
    pub orders: BTreeMap<VolumePart, Order>,
    /// When to look again though nothing happens, [`Time::mono_ms`].
    pub wake_at_ms: Option<u64>,
}

impl Volumes {
    /// Begins with what this node said of its parts before its agent started anew.
    pub fn new(previous: BTreeMap<VolumePart, VolumeStatus>) -> Self {
        Self { said: previous, waits: BTreeMap::new() }
    }

    /// Looks at the parts that are here.
    pub fn look(
        &mut self,
        now: Time,
        cluster: &Cluster,
        here: &BTreeMap<VolumePart, VolumeState>,
    ) -> Standing {
        let mut standing = Standing::default();
        self.waits.retain(|part, _| here.contains_key(part));
        for (part, state) in here {
            let before = self.said.get(part).copied();
            let order = cluster.volumes.get(&part.volume).and_then(|spec| spec.discard);
            let discarding_ms = match order {
                None => {
                    self.waits.remove(part);
                    None
                }
                Some(order) => {
                    let waited_ms = self.wait(now, part, before);
                    let step_ms = (order.grace_ms / SAY_WAIT_STEPS).clamp(1, SAY_WAIT_EVERY_MS);
                    let left_ms = order.grace_ms.saturating_sub(waited_ms);
                    if left_ms == 0 {
                        standing.orders.insert(part.clone(), Order::Delete);
                    } else {
                        let next = now.mono_ms.saturating_add(left_ms.min(step_ms));
                        standing.wake_at_ms = Some(standing.wake_at_ms.map_or(next, |at: u64| at.min(next)));
                    }
                    let said = before.and_then(|before| before.discarding_ms);
                    // Not every moment is worth a record.
                    Some(said.filter(|said| left_ms > 0 && waited_ms < said + step_ms).unwrap_or(waited_ms))
                }
            };
            if let (Some(spec), Some(_)) = (cluster.volumes.get(&part.volume), state.used_bytes) {
                let size_bytes = spec.size_bytes.map(|bytes| bytes.next_multiple_of(BLOCK_BYTES));
                if state.size_bytes != size_bytes {
                    standing.orders.entry(part.clone()).or_insert(Order::Limit(size_bytes));
                }
            }
            let used_bytes = match (before.and_then(|before| before.used_bytes), state.used_bytes) {
                (Some(said), Some(used)) if said.abs_diff(used) <= said / 16 + SAY_USE_FROM => Some(said),
                (_, used) => used,
            };
            let status = VolumeStatus { made_ms: state.made_ms, used_bytes, discarding_ms };
            standing.statuses.insert(part.clone(), status);
        }
        self.said = standing.statuses.clone();
        standing
    }

    /// For how long a part has waited, counting only time in which this node ran.
    fn wait(&mut self, now: Time, part: &VolumePart, before: Option<VolumeStatus>) -> u64 {
        let said_ms = before.and_then(|before| before.discarding_ms).unwrap_or(0);
        let wait =
            self.waits.entry(part.clone()).or_insert(Wait { waited_ms: said_ms, counted_ms: now.mono_ms });
        wait.waited_ms = wait.waited_ms.saturating_add(now.mono_ms.saturating_sub(wait.counted_ms));
        wait.counted_ms = now.mono_ms;
        wait.waited_ms
    }
}

#[cfg(test)]
mod tests {
    use hivemind_spec::volume::Discard;

    use super::*;
    use crate::fixture::{at, cluster, node_id};

    const HOUR_S: u64 = 3600;

    fn data() -> VolumePart {
        VolumePart { volume: VolumeId { namespace: "default".into(), name: "data".into() }, number: 0 }
    }

    fn held(used_bytes: u64) -> BTreeMap<VolumePart, VolumeState> {
        [(data(), VolumeState { made_ms: 5, used_bytes: Some(used_bytes), size_bytes: None })].into()
    }

    fn is_due(standing: &Standing) -> bool {
        standing.orders.get(&data()) == Some(&Order::Delete)
    }

    fn with(discard: Option<Discard>) -> Cluster {
        let (mut cluster, _) = cluster(1);
        cluster.volumes.insert(data().volume, VolumeSpec { discard, ..VolumeSpec::default() });
        cluster
    }

    #[test]
    fn data_goes_only_by_an_order_and_after_its_grace_of_running() {
        let grace_ms = 10 * HOUR_S * 1000;
        let (kept, ordered) = (with(None), with(Some(Discard { grace_ms })));
        let mut volumes = Volumes::default();
        for day in 0..1000 {
            let standing = volumes.look(at(day * 24 * HOUR_S), &kept, &held(1));
            assert_eq!((is_due(&standing), standing.statuses[&data()].discarding_ms), (false, None));
        }
        // Without its document it is kept too.
        let none = Cluster::default();
        assert!(!is_due(&volumes.look(at(0), &none, &held(1))));

        let mut volumes = Volumes::default();
        let standing = volumes.look(at(0), &ordered, &held(1));
        assert_eq!((is_due(&standing), standing.statuses[&data()].discarding_ms), (false, Some(0)));
        assert!(standing.wake_at_ms.unwrap() > at(0).mono_ms);
        let standing = volumes.look(at(6 * HOUR_S), &ordered, &held(1));
        assert_eq!(standing.statuses[&data()].discarding_ms, Some(6 * HOUR_S * 1000));
        // It starts anew much later, by its clock: that it was off does not count.
        let mut volumes = Volumes::new(standing.statuses);
        assert!(!is_due(&volumes.look(at(600 * HOUR_S), &ordered, &held(1))));
        assert!(!is_due(&volumes.look(at(603 * HOUR_S), &ordered, &held(1))));
        assert!(is_due(&volumes.look(at(604 * HOUR_S), &ordered, &held(1))));
        // The order is taken back at the last moment, and given again: it counts from the start.
        assert!(!is_due(&volumes.look(at(604 * HOUR_S), &kept, &held(1))));
        assert!(!is_due(&volumes.look(at(605 * HOUR_S), &ordered, &held(1))));
        assert!(is_due(&volumes.look(at(615 * HOUR_S), &ordered, &held(1))));
        // What is gone is not spoken of.
        assert_eq!(volumes.look(at(616 * HOUR_S), &ordered, &BTreeMap::new()), Standing::default());
    }

    #[test]
    fn a_limit_that_changes_is_set_where_it_can_be() {
        let (mut cluster, mut volumes) = (with(None), Volumes::default());
        let state = |size_bytes| VolumeState { made_ms: 5, used_bytes: Some(1), size_bytes };
        let mut orders = |cluster: &Cluster, state: VolumeState| {
            volumes.look(at(0), cluster, &[(data(), state)].into()).orders.remove(&data())
        };
        assert_eq!(orders(&cluster, state(None)), None);
        assert_eq!(orders(&cluster, state(Some(4096))), Some(Order::Limit(None)));
        let limited = VolumeSpec { size_bytes: Some(100_000), ..VolumeSpec::default() };
        cluster.volumes.insert(data().volume, limited);
        assert_eq!(orders(&cluster, state(None)), Some(Order::Limit(Some(100_352))));
        assert_eq!(orders(&cluster, state(Some(100_352))), None, "the kernel counts in blocks");
        assert_eq!(
            orders(&cluster, VolumeState { used_bytes: None, ..state(None) }),
            None,
            "not counted here"
        );
    }

    #[test]
    fn small_changes_of_what_is_in_a_volume_are_not_worth_a_record() {
        let (cluster, mut volumes) = (with(None), Volumes::default());
        let mut used =
            |bytes| volumes.look(at(0), &cluster, &held(bytes)).statuses[&data()].used_bytes.unwrap();
        assert_eq!(used(1000), 1000);
        assert_eq!(used(900_000), 1000);
        assert_eq!(used(200 << 20), 200 << 20);
        assert_eq!(used(210 << 20), 200 << 20);
        assert_eq!(used(220 << 20), 220 << 20);
    }

    #[test]
    fn of_two_nodes_with_the_same_data_the_one_that_runs_it_keeps_it() {
        let (mut cluster, _) = cluster(3);
        assert_eq!(home(&cluster, &data(), None), None);
        let status = |made_ms| VolumeStatus { made_ms, used_bytes: None, discarding_ms: None };
        cluster.volume_parts.insert((data(), node_id(2)), status(7));
        cluster.volume_parts.insert((data(), node_id(3)), status(5));
        assert_eq!(home(&cluster, &data(), None), Some(node_id(3)));
        assert_eq!(home(&cluster, &data(), Some(&node_id(2))), Some(node_id(2)));
        assert_eq!(home(&cluster, &data(), Some(&node_id(1))), Some(node_id(3)));
    }
}
