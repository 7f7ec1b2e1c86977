//! Whether a new release of the operating system runs this node as well as the one before did.
//!
//! The edge tells that the release is on trial, and calls it good when it is told to. Until then it is its business to
//! go back to the release before, when that takes too long.

use std::collections::BTreeSet;

use hivemind_spec::api::{Phase, Severity};
use hivemind_spec::id::NodeId;

use super::Node;
use super::replication::SAVE_SEEN_EVERY_MS;
use crate::cluster::Workload;
use crate::event::{Action, Actions, NodeFacts};
use crate::mutation::{Mutation, is_on};
use crate::permission;
use crate::record::ReplicaId;
use crate::time::Time;

/// For how long all must be well without a break, milliseconds: a container that ends as soon as it has started, and
/// peers that are lost again, show it within.
pub const STEADY_MS: u64 = 10_000;

/// Whoever was missed for no longer than this when the node went down was there before, milliseconds: what is saved
/// may be as old as the pause between two savings.
const MISSED_MS: u64 = 2 * SAVE_SEEN_EVERY_MS;

/// What the node must be again.
#[derive(Debug, Default)]
pub(super) struct Trial {
    ran: BTreeSet<ReplicaId>,
    met: BTreeSet<NodeId>,
    /// Since when all is well, monotonic milliseconds.
    well_since_ms: Option<u64>,
    called_good: bool,
}

impl Trial {
    /// When to look again, if a release is on trial.
    pub(super) fn wake_at_ms(&self) -> Option<u64> {
        self.well_since_ms.filter(|_| !self.called_good).map(|since| since + STEADY_MS)
    }
}

impl Node {
    /// What the node was when it went down, from what its store says.
    pub(super) fn remember_before(&mut self) {
        let ran = self.own_replica_statuses().into_iter();
        self.trial.ran = ran.filter(|(_, status)| status.phase == Phase::Running).map(|(id, _)| id).collect();
        let met = self.liveness.last_seen.iter().filter(|(_, seen)| seen.missed_ms <= MISSED_MS);
        self.trial.met = met.map(|(id, _)| *id).filter(|id| *id != self.settings.me).collect();
    }

    /// It was not awake to see whether all was well.
    pub(super) fn trial_slept(&mut self) {
        self.trial.well_since_ms = None;
    }

    /// Has the release called good that is on trial, once all has been well for long enough.
    pub(super) fn judge_release(&mut self, now: Time, out: &mut Actions) {
        let on_trial = |facts: &&NodeFacts| facts.release.as_ref().is_some_and(|release| release.on_trial);
        let Some(facts) = self.facts.as_ref().filter(on_trial).filter(|_| !self.trial.called_good) else {
            return;
        };
        if !self.is_well(facts) {
            self.trial.well_since_ms = None;
            return;
        }
        let since = *self.trial.well_since_ms.get_or_insert(now.mono_ms);
        if now.mono_ms >= since + STEADY_MS || is_on(Mutation::ReleasesAreGoodUnseen) {
            self.trial.called_good = true;
            self.note(
                now,
                Severity::Info,
                "release-good",
                "the node is well on its new release".to_owned(),
                out,
            );
            out.push(Action::CallReleaseGood);
        }
    }

    /// Whether the node is what it was before. The API answers before the node starts.
    fn is_well(&self, facts: &NodeFacts) -> bool {
        let back = self.trial.met.iter().filter(|id| self.liveness.alive.contains(id)).count();
        let revoked = self.trial.met.iter().filter(|id| self.is_revoked(id)).count();
        let met = self.trial.met.len() - revoked;
        let wanted = self.cluster.assignments(&self.settings.me);
        // What is missing then is not this node's to have.
        let waits = self.waits_of(wanted.iter());
        let barred = permission::barred(&self.cluster, wanted.iter().map(|(id, w)| (&id.workload, *w)));
        let runs = |(id, workload): (&ReplicaId, &&Workload)| {
            let status = self.cluster.replicas.get(&(id.clone(), self.settings.me));
            status.is_some_and(|status| match status.phase {
                Phase::Running | Phase::Completed => true,
                // It has what it needs but for a lease, which others have to give, or a leave, which operators do.
                Phase::Assigned => {
                    workload.spec.exclusive.is_some()
                        || waits.contains_key(&id.workload)
                        || barred.contains_key(&id.workload)
                }
                _ => false,
            })
        };
        facts.problems.is_empty()
            && self.cluster.unread.is_empty()
            && facts.address.is_some()
            && self.inventory_known
            && 2 * back >= met
            && wanted.iter().filter(|(id, _)| self.trial.ran.contains(id)).all(runs)
    }
}
