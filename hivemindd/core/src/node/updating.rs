//! Taking a new release of the operating system, when it is this node's turn.
//!
//! ```text
//!   turn --> fetched into the spare slot --> replicas have left, or time is up --> started, on trial
//! ```
//!
//! Who has a turn is the leader's decision ([`crate::rollout`]); whether a release does well is judged after the start
//! ([`super::trial`]). A node that loses its turn leaves the spare slot as it is, which is no release until it is
//! started.

use hivemind_spec::api::{Severity, Update, UpdatePhase};
use hivemind_spec::id::{NodeId, ReleaseId};

use super::Node;
use crate::cluster::{OsRelease, Workload};
use crate::event::{Action, Actions, Peer, UpdateOrder};
use crate::record::ReplicaId;
use crate::rollout::{self, Standing};
use crate::state::Content;
use crate::time::Time;

/// How long replicas may take to leave for other nodes, milliseconds: a container's start, its image's download and
/// its end, on a slow machine. What has not left by then stops with the node and starts with it again.
const LEAVE_WITHIN_MS: u64 = 120_000;

/// Nodes that are asked for a release, at most.
const MAX_PEERS: usize = 4;

/// The release that this node takes.
#[derive(Debug, Default)]
pub(super) struct Updating {
    /// What was handed out last.
    order: Option<UpdateOrder>,
    /// How far it is.
    told: Option<Update>,
    /// Until when replicas may take to leave, monotonic milliseconds.
    leave_until_ms: Option<u64>,
    started: bool,
    /// The release whose files came on a stick.
    brought: Option<ReleaseId>,
}

impl Updating {
    /// When to look again.
    pub(super) fn wake_at_ms(&self) -> Option<u64> {
        self.leave_until_ms.filter(|_| !self.started)
    }
}

impl Node {
    /// What the node says of the release that it is to take.
    pub(super) fn update_status(&self) -> Option<Update> {
        self.updating.told.clone().or_else(|| {
            let wanted = self.wanted_release()?;
            let runs_it = self.facts.as_ref()?.release.as_ref()?.id == wanted;
            (self.updating.brought == Some(wanted) && !runs_it).then(|| brought(wanted))
        })
    }

    pub(super) fn learn_brought(&mut self, release: Option<ReleaseId>) {
        self.stirred |= self.updating.brought != release;
        self.updating.brought = release;
    }

    pub(super) fn learn_update(&mut self, update: Update) {
        if self.updating.order.as_ref().is_some_and(|order| order.spec.release == update.release) {
            self.updating.told = Some(update);
            self.stirred = true;
        }
    }

    /// Takes what this node's turn is, a step further.
    pub(super) fn update(&mut self, now: Time, out: &mut Actions) {
        let order = self.turn(now, out);
        let wanted = self.wanted_release();
        if self.updating.told.as_ref().is_some_and(|told| Some(told.release) != wanted) {
            self.updating.told = None;
        }
        if order != self.updating.order {
            let before = self.updating.order.as_ref().map(|order| order.spec.release);
            if before != order.as_ref().map(|order| order.spec.release) {
                self.updating = Updating { brought: self.updating.brought, ..Updating::default() };
            }
            self.updating.order.clone_from(&order);
            out.push(Action::Update(order.map(Box::new)));
        }
        let ready = self.updating.told.as_ref().filter(|told| told.phase == UpdatePhase::Ready);
        let Some(release) = ready.map(|told| told.release).filter(|_| !self.updating.started) else { return };
        let until_ms = *self.updating.leave_until_ms.get_or_insert(now.mono_ms + LEAVE_WITHIN_MS);
        if self.has_left() || now.mono_ms >= until_ms {
            self.updating.started = true;
            let text = format!("release {release} is in its slot: the machine starts it");
            self.note(now, Severity::Info, "release-started", text, out);
            out.push(Action::StartRelease(release));
        }
    }

    /// The release that machines such as this one are to have.
    fn wanted_release(&self) -> Option<ReleaseId> {
        let running = self.facts.as_ref()?.release.as_ref()?;
        Some(self.cluster.os_releases.get(&running.architecture)?.spec.release)
    }

    /// The release that this node is to take now.
    fn turn(&mut self, now: Time, out: &mut Actions) -> Option<UpdateOrder> {
        let running = self.facts.as_ref()?.release.as_ref()?;
        let release = self.cluster.os_releases.get(&running.architecture)?;
        let rollout = self.cluster.rollouts.get(&running.architecture)?;
        let mine = rollout.digest == release.digest && rollout.turns.contains(&self.settings.me);
        let wanted = release.spec.release;
        // The release before one on trial is what the machine goes back to: it keeps its slot.
        if !mine || running.on_trial || running.id == wanted || running.failed.contains(&wanted) {
            return None;
        }
        if !release.spec.may_follow(&running.minimum) {
            self.updating.told = Some(refused(
                wanted,
                format!(
                    "{} is older than {}, which this node's release says is the oldest that may follow it",
                    release.spec.version, running.minimum
                ),
            ));
            return None;
        }
        let release = release.clone();
        let held = self.updating.order.as_ref().is_some_and(|order| order.spec == release.spec);
        if !held && let Err(reason) = self.verify_release_again(&release) {
            let text = format!("release {wanted} as stored here does not verify, and is not taken: {reason}");
            self.note(now, Severity::Error, "stored-record-refused", text, out);
            return None;
        }
        let peers = self.peers_with(&release);
        Some(UpdateOrder { spec: release.spec, peers })
    }

    /// Verifies the document once more, from the bytes held, immediately before anything of it is taken.
    fn verify_release_again(&self, release: &OsRelease) -> Result<(), String> {
        let name = OsRelease::name(release.spec.architecture);
        let place = self.trust.current(&name).ok_or("it is gone")?;
        let held = self.map.get(place).ok_or("it is gone")?;
        match &self.keyring.check(place, &held.record).map_err(|e| e.to_string())?.content {
            Content::Spec(document) if !self.trust.counts(document) => {
                Err("its signer may not write it".to_owned())
            }
            Content::Spec(document) if document.digest() == release.digest => Ok(()),
            _ => Err("the signed bytes say something else".to_owned()),
        }
    }

    /// Live nodes that run the release and are well, and then those that a stick brought it to.
    fn peers_with(&self, release: &OsRelease) -> Vec<Peer> {
        let with = |wanted: Standing| {
            let all = rollout::standings(&self.cluster, release);
            all.filter(move |(_, how)| *how == wanted).map(|(id, _)| id)
        };
        let was_brought = |id: &NodeId| {
            let status = self.cluster.nodes.get(id).and_then(|node| node.status.as_ref());
            status.and_then(|status| status.update.as_ref()) == Some(&brought(release.spec.release))
        };
        let all = with(Standing::Done).chain(with(Standing::Before).filter(was_brought));
        let others = all.filter(|id| *id != self.settings.me && self.cluster.is_live(&self.liveness, id));
        let with_address = others.filter_map(|node| {
            Some(Peer { node, address: (self.cluster.address(&node)?, self.settings.peer_port).into() })
        });
        with_address.take(MAX_PEERS).collect()
    }

    /// Whether no replica is here that may run elsewhere, or there is no elsewhere.
    fn has_left(&self) -> bool {
        let others = self.liveness.alive.iter().filter(|id| **id != self.settings.me);
        if others.filter(|id| self.cluster.is_live(&self.liveness, id)).count() == 0 {
            return true;
        }
        let leaves =
            |id: &ReplicaId| self.cluster.workloads.get(&id.workload).is_some_and(Workload::may_leave);
        let assigned = self.cluster.assignments(&self.settings.me);
        let statuses = self.own_replica_statuses();
        !assigned.keys().chain(statuses.keys()).any(leaves)
    }
}

fn brought(release: ReleaseId) -> Update {
    Update { release, phase: UpdatePhase::Brought, done_bytes: 0, total_bytes: 0, reason: String::new() }
}

fn refused(release: ReleaseId, reason: String) -> Update {
    Update { release, phase: UpdatePhase::Failed, done_bytes: 0, total_bytes: 0, reason }
}
