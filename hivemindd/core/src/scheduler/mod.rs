//! Which replica runs where: a pure function of the records and of who is alive.
//!
//! ```text
//! per workload, highest priority first:
//!   slots     as many as replicas are wanted; surplus ones go, highest first; of a global workload one for each
//!             node that its constraints allow, which stays with it
//!   keep      a replica stays where it is while its node may and can run it
//!   place     the others go where fewest of their kind are, then where most is free;
//!             where nothing fits, lower priorities make room; else they are pending, with a reason
//!   even out  where it is asked for, a few move to where fewer of their kind are
//! ```
//!
//! A replica with data is where that is, and nowhere else ([`crate::volume`]); before there is any, where its workload's
//! others with the same data are. Nobody takes it over.
//!
//! A replica that has ended with success is done. It stays where it ended, for its logs, and needs no room there; when
//! its node is gone nobody runs it again. Of a job no more are placed than are to run at the same time.
//!
//! From a node that is about to start a new release its replicas go where there is room, and stay where there is none.
//!
//! Nothing moves because another node became emptier, unless its workload asks for it, and then only so many at a time
//! as it says, while all of it runs. It moves where that makes the spread more even, so it comes to rest.

mod draft;
mod refusal;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use hivemind_spec::api::Phase;
use hivemind_spec::id::NodeId;
use hivemind_spec::workload::Takeover;

use crate::cluster::{Cluster, Liveness, Workload};
use crate::mutation::{Mutation, is_on};
use crate::record::{Placement, WorkloadId};
use crate::time::Time;
use crate::volume;

use draft::Draft;

/// Slots of one workload whose reason is written out; further ones refer to the first. Bounds the
/// record of a workload that asks for ten thousand replicas on a full cluster.
const REASONS_WRITTEN: usize = 8;

/// The placements that must change. `None`: the workload is gone, and so is its placement; one whose document is not
/// here yet keeps it. Empty
/// when all is as it should be; applying the answer makes it so.
///
/// To be called by the leader only, and not before its first sync with a peer: a leader that has
/// seen half of the records would move what it has not heard of.
pub fn schedule(
    cluster: &Cluster,
    liveness: &Liveness,
    now: Time,
) -> BTreeMap<WorkloadId, Option<Placement>> {
    let mut by_priority: Vec<(&WorkloadId, &Workload)> = cluster.workloads.iter().collect();
    by_priority.sort_by_key(|(id, workload)| (std::cmp::Reverse(workload.spec.priority), *id));
    let majority = !liveness.unsettled && cluster.side(liveness, now).is_majority();
    let mut draft = Draft::new(cluster, liveness);

    let mut open = BTreeMap::new();
    for (id, workload) in &by_priority {
        open.insert(*id, keep(&mut draft, cluster, liveness, majority, id, workload));
    }
    let mut refused = BTreeMap::new();
    for (id, workload) in &by_priority {
        let mut open = open.remove(*id).unwrap_or_default();
        open.missing.extend(draft.take_evicted(id));
        refused.insert(*id, place(&mut draft, id, workload, &open));
    }

    if majority {
        for (id, workload) in &by_priority {
            if refused.get(*id).is_none_or(BTreeMap::is_empty) {
                even_out(&mut draft, cluster, liveness, id, workload);
            }
        }
    }

    let mut changes: BTreeMap<WorkloadId, Option<Placement>> = cluster
        .placements
        .keys()
        .filter(|id| cluster.gone.contains(*id))
        .map(|id| (id.clone(), None))
        .collect();
    for (id, workload) in by_priority {
        let placement = Placement {
            digest: Some(workload.digest),
            slots: draft.slots(id),
            pending: explain(&draft, id, workload, &refused.remove(id).unwrap_or_default()),
        };
        let before = cluster.placements.get(id);
        if must_write(before, &placement, majority) {
            changes.insert(id.clone(), Some(placement));
        }
    }
    changes
}

/// Whether the decision is worth a record. The smaller side of a partition does not write mere
/// changes of words: its later clock would undo the takeovers of the larger side after healing.
fn must_write(before: Option<&Placement>, after: &Placement, majority: bool) -> bool {
    match before {
        None => true,
        Some(before) if majority => before != after,
        Some(before) => (before.digest, &before.slots) != (after.digest, &after.slots),
    }
}

/// A workload's slots without a place.
#[derive(Default)]
struct Open {
    /// Nowhere.
    missing: BTreeSet<u32>,
    /// On a node that is down, and to be taken over if another can; else they stay.
    orphaned: BTreeMap<u32, NodeId>,
    /// On a node that is about to start anew, and to go where there is room; else they stay.
    leaving: BTreeMap<u32, NodeId>,
}

/// Keeps what may stay, and says which slots are open.
fn keep<'a>(
    draft: &mut Draft<'a>,
    cluster: &Cluster,
    liveness: &Liveness,
    majority: bool,
    id: &'a WorkloadId,
    workload: &Workload,
) -> Open {
    let takeover = match workload.spec.takeover {
        Takeover::Always => !liveness.unsettled,
        Takeover::Majority => majority,
        Takeover::Never => false,
    } && !workload.spec.global
        && !volume::is_bound(cluster, id, workload)
        || is_on(Mutation::TakeoverIgnoresTheRule);
    let none = Placement::default();
    let before = cluster.placements.get(id).unwrap_or(&none);
    let mut open = Open::default();
    let slots = if workload.spec.global {
        slots_of_nodes(before, workload, &cluster.eligible(workload).collect())
    } else {
        chosen_slots(before, workload, cluster.wanted(workload), cluster, liveness)
    };
    let held = held_back(cluster, id, workload, before, &slots);
    for slot in slots.difference(&held).copied() {
        let ends = workload.spec.completes();
        if ends && keep_if_done(draft, cluster, liveness, id, workload, (slot, before.slots.get(&slot))) {
            continue;
        }
        // A node that is not known here is away like any other: its enrolment has not come yet.
        let revoked = |node: &NodeId| cluster.nodes.get(node).is_some_and(crate::cluster::Node::is_revoked);
        match before.slots.get(&slot) {
            None => {
                open.missing.insert(slot);
            }
            Some(node) if cluster.is_live(liveness, node) && may_leave(cluster, node, workload) => {
                open.leaving.insert(slot, *node);
            }
            Some(node) if cluster.is_live(liveness, node) => {
                if !draft.keep_if_it_may_stay(id, workload, slot, node) {
                    open.missing.insert(slot);
                }
            }
            // It does not come back; but the smaller side leaves also that to the larger one.
            Some(node) if revoked(node) && (majority || takeover) => {
                open.missing.insert(slot);
            }
            Some(node) if takeover && !revoked(node) && !liveness.lingering.contains(node) => {
                open.orphaned.insert(slot, *node);
            }
            Some(node) => draft.assign(id, workload, slot, *node),
        }
    }
    open
}

/// Those of a job's replicas whose turn has not come: only so many run at the same time.
fn held_back(
    cluster: &Cluster,
    id: &WorkloadId,
    workload: &Workload,
    before: &Placement,
    slots: &BTreeSet<u32>,
) -> BTreeSet<u32> {
    let Some(most) = workload.spec.job.as_ref().and_then(|job| job.parallelism) else {
        return BTreeSet::new();
    };
    let (mut running, mut waiting) = (0, Vec::new());
    for slot in slots {
        let placed = before.slots.get(slot);
        match placed.and_then(|node| cluster.phase(id, workload, *slot, node)) {
            Some(Phase::Completed | Phase::Failed) => {}
            Some(_) => running += 1,
            None if workload.is_done(*slot) => {}
            None => waiting.push((placed.is_none(), *slot)),
        }
    }
    waiting.sort_unstable();
    let free = usize::try_from(most).unwrap_or(usize::MAX).saturating_sub(running);
    waiting.into_iter().skip(free).map(|(_, slot)| slot).collect()
}

/// Leaves a replica that is done where it is, if it is anywhere still, and says whether it is. What two sides of a
/// partition have both begun goes on.
fn keep_if_done<'a>(
    draft: &mut Draft<'a>,
    cluster: &Cluster,
    liveness: &Liveness,
    id: &'a WorkloadId,
    workload: &Workload,
    (slot, node): (u32, Option<&NodeId>),
) -> bool {
    let Some(node) = node else { return workload.is_done(slot) };
    match cluster.phase(id, workload, slot, node) {
        Some(Phase::Completed) => {
            draft.rest(id, slot, *node);
            true
        }
        Some(_) if workload.is_done(slot) && cluster.is_live(liveness, node) => {
            draft.keep_if_it_may_stay(id, workload, slot, node);
            true
        }
        _ => workload.is_done(slot),
    }
}

/// Whether a replica is to leave its node if there is room elsewhere.
fn may_leave(cluster: &Cluster, node: &NodeId, workload: &Workload) -> bool {
    workload.may_leave() && cluster.is_leaving(node)
}

/// The numbers of the replicas to have. Surplus ones go: pending before placed, on dead nodes
/// before live ones, high before low. New ones take the lowest free numbers.
fn chosen_slots(
    before: &Placement,
    workload: &Workload,
    replicas: u32,
    cluster: &Cluster,
    liveness: &Liveness,
) -> BTreeSet<u32> {
    let replicas = replicas as usize;
    let placed = before.slots.keys().chain(before.pending.keys());
    let known: BTreeSet<u32> = placed.chain(&workload.completed).copied().collect();
    if known.len() <= replicas {
        let fresh = (0..).filter(|slot| !known.contains(slot)).take(replicas - known.len());
        return known.iter().copied().chain(fresh).collect();
    }
    let mut by_worth: Vec<u32> = known.into_iter().collect();
    by_worth.sort_by_cached_key(|slot| match before.slots.get(slot) {
        _ if workload.is_done(*slot) => (0, *slot),
        Some(node) if cluster.is_live(liveness, node) => (0, *slot),
        Some(_) => (1, *slot),
        None => (2, *slot),
    });
    by_worth.truncate(replicas);
    by_worth.into_iter().collect()
}

/// The numbers of a global workload's replicas: each node keeps the one it has, and the others take the lowest
/// free numbers.
fn slots_of_nodes(before: &Placement, workload: &Workload, nodes: &BTreeSet<NodeId>) -> BTreeSet<u32> {
    let mut kept = BTreeMap::new();
    for (slot, node) in before.slots.iter().filter(|(_, node)| nodes.contains(node)) {
        kept.entry(*node).or_insert(*slot);
    }
    let kept: BTreeSet<u32> = kept.into_values().collect();
    // A number that another node had is free only for one that has none yet.
    let taken =
        |slot: &u32| kept.contains(slot) || before.slots.contains_key(slot) || workload.is_done(*slot);
    let fresh = (0..).filter(|slot| !taken(slot)).take(nodes.len() - kept.len());
    kept.iter().copied().chain(fresh).collect()
}

/// Places the open slots; returns those that fit nowhere, with the dead node each waits for.
fn place<'a>(
    draft: &mut Draft<'a>,
    id: &'a WorkloadId,
    workload: &Workload,
    open: &Open,
) -> BTreeMap<u32, Option<NodeId>> {
    let mut refused = BTreeMap::new();
    let slots: BTreeSet<u32> = open.missing.iter().chain(open.orphaned.keys()).copied().collect();
    for slot in slots {
        // All slots of a workload ask for the same, unless they have data: after one refusal the others need no look.
        let alike = workload.spec.container.volumes.is_empty();
        if (refused.is_empty() || !alike) && draft.place(id, workload, slot) {
            continue;
        }
        let home = open.orphaned.get(&slot).copied();
        if let Some(home) = home {
            draft.assign(id, workload, slot, home);
        }
        refused.insert(slot, home);
    }
    for (slot, home) in &open.leaving {
        if !draft.place_in_room(id, workload, *slot) {
            draft.assign(id, workload, *slot, *home);
        }
    }
    refused
}

/// Moves as many replicas to where fewer of their kind are as the workload lets move at a time. What does not run yet,
/// or not any more, is on the move already.
fn even_out<'a>(
    draft: &mut Draft<'a>,
    cluster: &Cluster,
    liveness: &Liveness,
    id: &'a WorkloadId,
    workload: &Workload,
) {
    let Some(most) = workload.spec.rebalance else { return };
    if workload.spec.completes() || volume::is_bound(cluster, id, workload) {
        return;
    }
    let placed = draft.slots(id);
    let runs = |(slot, node): &(&u32, &NodeId)| {
        cluster.is_live(liveness, node) && cluster.phase(id, workload, **slot, node) == Some(Phase::Running)
    };
    let running: BTreeMap<u32, NodeId> =
        placed.iter().filter(runs).map(|(slot, node)| (*slot, *node)).collect();
    let most = usize::try_from(most.get()).unwrap_or(usize::MAX);
    for _ in 0..most.saturating_sub(placed.len() - running.len()) {
        if !draft.even_out(id, workload, &running) {
            return;
        }
    }
}

/// Says why slots are pending, once everything has its place and so all figures are final.
fn explain(
    draft: &Draft<'_>,
    name: &WorkloadId,
    workload: &Workload,
    refused: &BTreeMap<u32, Option<NodeId>>,
) -> BTreeMap<u32, String> {
    let Some((first, _)) = refused.first_key_value() else { return BTreeMap::new() };
    let reasons = refused.iter().enumerate().map(|(index, (slot, home))| {
        let reason = match home {
            _ if index >= REASONS_WRITTEN => format!("as slot {first}"),
            home => draft.explain(name, workload, *slot, home.as_ref()),
        };
        (*slot, reason)
    });
    reasons.collect()
}
