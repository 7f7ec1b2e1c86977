//! Forgetting: what is out of date leaves the map, on all nodes alike.
//!
//! A deletion is remembered until it is old *and* every node that was not revoked is known to hold
//! it; only then can no node bring back what it deleted, however long it was away. The leader finds
//! that out by agreeing with each of them (the digests of two maps are equal), and decides which
//! records go. Nodes drop exactly those, and take them from nobody any more.

use std::collections::{BTreeMap, BTreeSet};

use hivemind_spec::api::Severity;
use hivemind_spec::document::SpecKey;
use hivemind_spec::id::NodeId;

use super::{Content, Node};
use crate::event::Actions;
use crate::mutation::{Mutation, is_on};
use crate::record::{Decision, Forgotten, Matter, RecordKey};
use crate::state::{Order, Version, key_hash, version_hash};
use crate::time::Time;

/// How long deletions are remembered at least, milliseconds: for people who ask what became of
/// something, and for documents that travel by hand.
pub(super) const TOMBSTONES_KEPT_MS: u64 = 30 * 24 * 3600 * 1000;

/// Deletions remembered when a node never comes back to hear of them and nobody revokes it: some
/// megabytes. The oldest go first.
const MAX_TOMBSTONES: usize = 8192;

/// Records forgotten at once: bounds the decision. The next look, an hour later, takes the rest.
const FORGOTTEN_AT_ONCE: usize = 256;

/// What this node knows about who knows what. Made anew at every start.
#[derive(Debug, Default)]
pub(super) struct Agreed {
    /// When a member's map was last found equal to this node's, monotonic milliseconds.
    with_ms: BTreeMap<NodeId, u64>,
    /// When deletions were taken, monotonic milliseconds.
    deletion_ms: BTreeMap<RecordKey, u64>,
}

impl Agreed {
    pub(super) fn agree(&mut self, now: Time, peer: NodeId) {
        self.with_ms.insert(peer, now.mono_ms);
    }

    pub(super) fn took(&mut self, mono_ms: u64, place: &RecordKey, is_deletion: bool) {
        if is_deletion {
            self.deletion_ms.insert(place.clone(), mono_ms);
        } else {
            self.deletion_ms.remove(place);
        }
    }

    fn knows(&self, peer: &NodeId, deletion: &RecordKey) -> bool {
        let taken_ms = self.deletion_ms.get(deletion).copied().unwrap_or(0);
        self.with_ms.get(peer).is_some_and(|at| *at > taken_ms)
    }
}

/// A deletion that is in force.
struct Tombstone {
    revision: u64,
    name: SpecKey,
    place: RecordKey,
}

impl Node {
    /// Once an hour: the leader looks for deletions that need not be remembered any longer.
    pub(super) fn keep_house(&mut self, now: Time, out: &mut Actions) {
        self.complained_ms.clear();
        self.stop_telling(now);
        self.drop_old_grants(now);
        // Without its store it does not know who else is there, who may not have heard.
        if self.is_leader() && !self.is_catching_up() && !self.store_lost {
            self.forget_old_deletions(now, out);
        }
    }

    fn forget_old_deletions(&mut self, now: Time, out: &mut Actions) {
        let mut tombstones = self.tombstones();
        tombstones.sort_by(|a, b| (a.revision, &a.name).cmp(&(b.revision, &b.name)));
        let surplus = tombstones.len().saturating_sub(MAX_TOMBSTONES);
        let others: Vec<NodeId> = self.cluster.others(self.settings.me).collect();
        let heedless = is_on(Mutation::DeletionsAreForgottenUnheard);
        let known = |place: &RecordKey| heedless || others.iter().all(|id| self.agreed.knows(id, place));
        let mut unheard = 0;
        let mut old = BTreeMap::new();
        for (index, tombstone) in tombstones.into_iter().enumerate() {
            let is_old = tombstone.revision.saturating_add(TOMBSTONES_KEPT_MS) < now.wall_ms;
            if is_old && known(&tombstone.place) {
                old.insert(tombstone.name, tombstone.revision);
            } else if index < surplus {
                unheard += 1;
                old.insert(tombstone.name, tombstone.revision);
            }
        }
        if unheard > 0 {
            let text = format!(
                "{unheard} deletions are forgotten although some nodes have not heard of them, because \
                 over {MAX_TOMBSTONES} are remembered; revoke nodes that do not come back"
            );
            self.note(now, Severity::Warning, "deletions-forgotten", text, out);
        }
        self.forget(now, &old);
    }

    fn tombstones(&self) -> Vec<Tombstone> {
        let current =
            self.trust.all_current().filter_map(|(name, place)| match &self.map.get(place)?.content {
                Content::Spec(document) if document.value().metadata.deleted => {
                    let revision = document.value().metadata.revision;
                    Some(Tombstone { revision, name: name.clone(), place: place.clone() })
                }
                _ => None,
            });
        current.collect()
    }

    /// Decides that deletions go, up to these revisions, and with them what they hide.
    fn forget(&mut self, now: Time, old: &BTreeMap<SpecKey, u64>) {
        let mut records = BTreeSet::new();
        let mut until_revision = self.cluster.forgotten.until_revision;
        for (key, entry) in self.map.iter() {
            let (RecordKey::Spec(name, _), Order::Spec { revision, .. }) = (key, entry.version.order) else {
                break;
            };
            if old.get(name).is_some_and(|limit| revision <= *limit) && records.len() < FORGOTTEN_AT_ONCE {
                records.insert((key_hash(key), version_hash(&entry.version)));
                until_revision = until_revision.max(revision);
            }
        }
        if !records.is_empty() {
            let forgotten = Forgotten { records, until_revision };
            self.decide(now, Matter::Forgotten, Some(Decision::Forgotten(forgotten)));
        }
    }

    /// Whether a leader decided that this record goes.
    pub(super) fn is_forgotten(&self, key: &RecordKey, version: &Version) -> bool {
        matches!(key, RecordKey::Spec(..))
            && self.cluster.forgotten.records.contains(&(key_hash(key), version_hash(version)))
    }

    /// Drops what is to be forgotten.
    pub(super) fn drop_forgotten(&mut self) {
        let held = |&(key, version): &(u64, u64)| {
            let (key, entry) = self.map.by_hash(key)?;
            (version_hash(&entry.version) == version).then(|| key.clone())
        };
        let gone: Vec<_> = self.cluster.forgotten.records.iter().filter_map(held).collect();
        gone.iter().for_each(|key| self.drop_record(key));
    }
}
