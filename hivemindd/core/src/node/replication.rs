//! The map at work: loading, merging, telling others, and anti-entropy.

use std::collections::BTreeMap;

use hivemind_spec::api::Severity;
use hivemind_spec::document::{Kind, SpecKey};
use hivemind_spec::id::{Digest, NodeId};
use rand::seq::SliceRandom as _;

use super::store::{self, Stored};
use super::{Content, Node, Unplanned};
use crate::cluster::{LastSeen, OsRelease};
use crate::event::{Action, Actions, BatchId, Message, Peer};
use crate::mutation::{Mutation, is_on};
use crate::record::{
    Body, Decision, Matter, Observation, Record, RecordKey, SharedKey, Statement, Topic, VolumeId,
    VolumePart, VolumeStatus,
};
use crate::state::{Entry, Order, Version, encode};
use crate::sync::{self, Comparison};
use crate::time::Time;
use crate::trust::Trust;
use crate::{enrolment, form, picture, statement};

/// Peers a change is sent to at once. Up to this many others hear of it directly; in larger
/// clusters it spreads on from them.
pub(super) const FANOUT: usize = 4;

/// How long this node does not write its own observations after the disk failed, milliseconds.
const DISK_PAUSE_MS: u64 = 5000;

/// How often a peer's bad records are complained about, milliseconds.
const COMPLAIN_EVERY_MS: u64 = 60_000;

/// How often the records of one message are gone through for those whose keys came with it.
const MAX_PASSES: usize = 8;

const ANCHORS: &str = "anchors";
const SEEN: &str = "seen";
/// Is there while this node's store is lost and no other has made it good.
const LOST: &str = "lost";

/// Members' last-seen times are written at least this often, milliseconds.
pub(super) const SAVE_SEEN_EVERY_MS: u64 = 10 * 60 * 1000;

impl Node {
    pub(super) fn load(&mut self, now: Time, stored: Vec<(Vec<u8>, Vec<u8>)>, out: &mut Actions) {
        let mut records = Vec::new();
        for (key, value) in stored {
            match store::read_key(&key) {
                Stored::Local(name) => self.load_local(now, &name, &value),
                Stored::Record(name) => match postcard::from_bytes::<Record>(&value) {
                    Ok(record) => records.push((name, record)),
                    Err(e) => self.refuse_stored(now, key, &format!("a record cannot be read: {e}"), out),
                },
                Stored::Unknown => self.refuse_stored(now, key, "a key is not a record's", out),
            }
        }
        let refused = self.take_all(records, None);
        for (key, _, reason) in refused {
            self.refuse_stored(now, store::record_key(&key), &format!("{}: {reason}", describe(&key)), out);
        }
        // What was loaded is neither news to others nor to the disk.
        self.fresh.clear();
        self.store.forget_records();
    }

    fn refuse_stored(&mut self, now: Time, key: Vec<u8>, text: &str, out: &mut Actions) {
        self.store.put(key, None);
        let text = format!("{text}; it is dropped and comes again from the other nodes");
        self.note(now, Severity::Error, "stored-record-refused", text, out);
    }

    fn load_local(&mut self, now: Time, name: &str, value: &[u8]) {
        match name {
            LOST => self.store_lost = true,
            ANCHORS => self.anchors = form::read(value).unwrap_or_default(),
            SEEN => {
                let mut seen: BTreeMap<NodeId, LastSeen> = form::read(value).unwrap_or_default();
                seen.values_mut().for_each(|seen| seen.counted_ms = now.mono_ms);
                self.liveness.last_seen = seen;
            }
            name => {
                self.load_accepted(name, value);
                self.load_grants(now, name, value);
            }
        }
    }

    /// Takes note that the store is gone, also for later starts: what is in it then may be far from all there is.
    pub(super) fn lose_store(&mut self) {
        self.store_lost = true;
        self.store.put(store::local_key(LOST), Some(Vec::new()));
        self.forget_grants();
    }

    pub(super) fn save_anchors(&mut self) {
        self.store.put(store::local_key(ANCHORS), Some(form::write(&self.anchors)));
    }

    pub(super) fn save_seen(&mut self, now: Time, at_once: bool) {
        if at_once || now.mono_ms >= self.seen_saved_ms + SAVE_SEEN_EVERY_MS {
            self.seen_saved_ms = now.mono_ms;
            let counted = |(node, seen): (&NodeId, &LastSeen)| {
                let missed_ms = seen.missed_ms(now);
                (*node, LastSeen { missed_ms, counted_ms: now.mono_ms, ..*seen })
            };
            let seen: BTreeMap<NodeId, LastSeen> = self.liveness.last_seen.iter().map(counted).collect();
            self.store.put(store::local_key(SEEN), Some(form::write(&seen)));
        }
    }

    /// Takes records, in an order that lets keys come before what they signed. Returns those
    /// refused, each with the reason in words and whether it may pass later.
    fn take_all(
        &mut self,
        records: Vec<(RecordKey, Record)>,
        from: Option<NodeId>,
    ) -> Vec<(RecordKey, bool, String)> {
        let mut refused = Vec::new();
        let mut waiting = records;
        for _ in 0..MAX_PASSES {
            let before = waiting.len();
            let mut again = Vec::new();
            for (key, record) in waiting {
                if self.map.get(&key).is_some_and(|held| held.record == record) {
                    continue;
                }
                match self.keyring.check(&key, &record) {
                    Ok(entry) => {
                        let version = entry.version;
                        let moot = self.is_moot(&key, &entry.content) || self.is_forgotten(&key, &version);
                        if !self.take(key.clone(), entry, from) && !moot && self.map.wants(&key, &version) {
                            refused.push((
                                key,
                                true,
                                "there is no room for it, or its writer was cut off".into(),
                            ));
                        }
                    }
                    Err(refusal) if refusal.may_pass() => again.push((key, record, refusal)),
                    Err(refusal) => refused.push((key, false, refusal.to_string())),
                }
            }
            if again.is_empty() || again.len() == before {
                refused.extend(again.into_iter().map(|(key, _, e)| (key, true, e.to_string())));
                return refused;
            }
            waiting = again.into_iter().map(|(key, record, _)| (key, record)).collect();
        }
        refused
            .extend(waiting.into_iter().map(|(key, _)| (key, true, "it depends on too many others".into())));
        refused
    }

    /// Merges a checked record. Returns whether it is news.
    pub(super) fn take(&mut self, key: RecordKey, entry: Entry, from: Option<NodeId>) -> bool {
        self.heed(&key, &entry, from);
        let moot = match key {
            RecordKey::Decision(_) => self.map.get(&key).is_none() && self.is_moot(&key, &entry.content),
            _ => self.is_moot(&key, &entry.content),
        };
        let gone = moot || self.is_forgotten(&key, &entry.version);
        if gone || !self.map.wants(&key, &entry.version) || self.is_unheard(&key, &entry) {
            return false;
        }
        let before = self.map.get(&key).cloned();
        let bytes = encode(&entry.record);
        let lost_key = before.is_some() && is_key_document(&key);
        self.keyring.learn(&key, &entry);
        let version = entry.version;
        let is_deletion = matches!(&entry.content, Content::Spec(d) if d.value().metadata.deleted);
        if !self.map.merge(key.clone(), entry) {
            return false;
        }
        self.agreed.took(self.clock.mono_ms(), &key, is_deletion);
        let stored = !(is_deletion && is_on(Mutation::DeletionsAreNotStored));
        self.store.put(store::record_key(&key), Some(bytes).filter(|_| stored));
        self.store.remember(key.clone(), before, Some(version));
        self.touch(&key);
        self.fresh.insert(key, from);
        if lost_key {
            self.drop_orphans();
        }
        true
    }

    fn touch(&mut self, key: &RecordKey) {
        self.changed.insert(key.clone());
        self.specs_changed |= matches!(key, RecordKey::Spec(..));
    }

    /// Learns what a record says about time and about this node's own voice.
    fn heed(&mut self, key: &RecordKey, entry: &Entry, from: Option<NodeId>) {
        match (&entry.version.order, key) {
            (Order::Decision { clock }, _) => self.clock.witness(*clock),
            (Order::Observation { boot, sequence }, RecordKey::Observation(writer, _))
                if *writer == self.settings.me =>
            {
                // Said before a restart, perhaps in words this node's disk lost: go on after it.
                let _ = from;
                if (*boot, *sequence) > (self.boot, self.sequence) {
                    (self.boot, self.sequence) = (*boot, *sequence);
                }
                self.stirred = true;
            }
            _ => {}
        }
    }

    /// Whether a record is by a node that was cut off, and neither about how it or others entered nor
    /// decided before that.
    fn is_unheard(&self, key: &RecordKey, entry: &Entry) -> bool {
        let writer = statement::of(&entry.record).and_then(|s| self.cluster.nodes.get(&s.writer));
        let Some(writer) = writer.filter(|node| node.is_revoked()) else { return false };
        match (key, entry.version.order) {
            (RecordKey::Observation(_, Topic::Enrolment | Topic::Admission(_)), _) => false,
            (_, Order::Decision { clock }) => !writer.may_decide(clock),
            _ => true,
        }
    }

    /// Whether a record is about a document of which nothing is held, not even its deletion: how its
    /// replicas are, who lost it, or that nothing is decided about it any longer. What was said goes with
    /// the document, everywhere alike, and comes again if the document does. A placement may come
    /// before its document and is kept.
    fn is_moot(&self, key: &RecordKey, content: &Content) -> bool {
        let workload = match (key, content) {
            (RecordKey::Observation(_, Topic::Overtaken(name) | Topic::Shared(name, _)), _) => {
                return !self.map.has_document(name);
            }
            (RecordKey::Observation(_, Topic::Replica(replica)), _) => &replica.workload,
            // Data outlives its document; that it is gone does not.
            (RecordKey::Observation(_, Topic::Volume(part)), Content::Observation(None)) => {
                let VolumeId { namespace, name } = part.volume.clone();
                return !self.map.has_document(&SpecKey { kind: Kind::Volume, namespace, name });
            }
            (
                RecordKey::Decision(Matter::Placement(workload) | Matter::Job(workload)),
                Content::Decision(None),
            ) => workload,
            (RecordKey::Decision(Matter::Rollout(architecture)), Content::Decision(None)) => {
                return !self.map.has_document(&OsRelease::name(*architecture));
            }
            _ => return false,
        };
        let (namespace, name) = (workload.namespace.clone(), workload.name.clone());
        !self.map.has_document(&SpecKey { kind: Kind::Workload, namespace, name })
    }

    fn drop_moot(&mut self) {
        let moot = self.map.iter().filter(|(key, entry)| self.is_moot(key, &entry.content));
        let moot: Vec<_> = moot.map(|(key, _)| key.clone()).collect();
        moot.iter().for_each(|key| self.drop_record(key));
    }

    /// Drops documents whose signer's key no document carries any more.
    fn drop_orphans(&mut self) {
        if self.keyring.relearn_operators(&self.map).is_empty() {
            return;
        }
        let orphans: Vec<_> = self
            .map
            .iter()
            .filter(|(_, entry)| match &entry.record {
                Record::Spec(envelope) => self.keyring.check_envelope(envelope).is_err(),
                Record::Statement(_) => false,
            })
            .map(|(key, _)| key.clone())
            .collect();
        orphans.iter().for_each(|key| self.drop_record(key));
    }

    /// Drops what is held under `key`, here and on disk.
    pub(super) fn drop_record(&mut self, key: &RecordKey) {
        if let Some(before) = self.map.remove(key) {
            self.store.put(store::record_key(key), None);
            self.store.remember(key.clone(), Some(before), None);
            self.agreed.took(self.clock.mono_ms(), key, false);
            self.fresh.remove(key);
            self.touch(key);
        }
    }

    /// Drops what revoked nodes said about how things are.
    pub(super) fn drop_unheard(&mut self) {
        let revoked: Vec<_> =
            self.cluster.nodes.iter().filter(|(_, node)| node.is_revoked()).map(|(id, _)| *id).collect();
        if revoked.is_empty() {
            return;
        }
        let said = revoked.into_iter().flat_map(|node| self.map.observations(node));
        let unheard: Vec<_> = said
            .chain(self.map.decisions())
            .filter(|(key, entry)| self.is_unheard(key, entry))
            .map(|(key, _)| key.clone())
            .collect();
        unheard.iter().for_each(|key| self.drop_record(key));
    }

    /// Says something about this node, unless it is what was said last.
    pub(super) fn say(&mut self, now: Time, topic: Topic, observation: Option<Observation>) {
        let key = RecordKey::Observation(self.settings.me, topic.clone());
        let held = self.map.get(&key).map(|entry| &entry.content);
        let nothing_new = match held {
            Some(Content::Observation(said)) => *said == observation,
            Some(_) => false,
            None => observation.is_none(),
        };
        if nothing_new || self.disk_pauses(now) {
            return;
        }
        let (order, body) = self.next_observation(topic, observation.clone());
        self.write(key, &body, order, Content::Observation(observation));
    }

    /// What this node says next, with a version above all it said before.
    fn next_observation(&mut self, topic: Topic, observation: Option<Observation>) -> (Order, Body) {
        self.sequence += 1;
        let (boot, sequence) = (self.boot, self.sequence);
        let body = Body::Observation { boot, sequence, topic, observation };
        (Order::Observation { boot, sequence }, body)
    }

    /// Decides something as the leader.
    pub(super) fn decide(&mut self, now: Time, matter: Matter, decision: Option<Decision>) {
        let key = RecordKey::Decision(matter.clone());
        let held = self.map.get(&key).map(|entry| &entry.content);
        if held == Some(&Content::Decision(decision.clone())) || self.disk_pauses(now) {
            return;
        }
        let clock = self.clock.tick();
        let body = Body::Decision { clock, matter, decision: decision.clone() };
        self.write(key, &body, Order::Decision { clock }, Content::Decision(decision));
    }

    fn write(&mut self, key: RecordKey, body: &Body, order: Order, content: Content) {
        let statement: Statement = statement::sign(self.settings.me, &self.settings.record_key, body);
        let record = Record::Statement(statement);
        let version = Version { order, tie: Digest::of(&encode(&record)) };
        self.take(key, Entry { version, record, content }, None);
    }

    pub(super) fn disk_pauses(&self, now: Time) -> bool {
        self.disk_pause_ends_ms().is_some_and(|end| now.mono_ms < end)
    }

    /// When this node tries the disk again with what it has to say.
    pub(super) fn disk_pause_ends_ms(&self) -> Option<u64> {
        self.store_failed_ms.map(|failed| failed.saturating_add(DISK_PAUSE_MS))
    }

    pub(super) fn persist(&mut self, now: Time, out: &mut Actions) {
        self.write_grants(now);
        out.extend(self.store.close());
    }

    pub(super) fn persisted(&mut self, now: Time, batch: BatchId, out: &mut Actions) {
        let Some(written) = self.store.end(batch) else { return };
        self.store_failed_ms = None;
        if std::mem::take(&mut self.disk_refuses) {
            self.note(now, Severity::Info, "store-recovered", "the disk takes changes again".to_owned(), out);
            // It held nothing of what it heard meanwhile.
            let others: Vec<_> = self.liveness.alive.iter().copied().collect();
            self.meet_anew(now, &others);
            self.stirred = true;
        }
        out.extend(written.held);
        self.grants_are_durable(batch);
        for ack in written.pushes {
            self.push_is_durable(ack, out);
        }
    }

    /// The batch is lost: what was in it does not count, here either.
    pub(super) fn persist_failed(&mut self, now: Time, batch: BatchId, reason: &str, out: &mut Actions) {
        if is_on(Mutation::FailedWritesCount) {
            return self.persisted(now, batch, out);
        }
        let Some(batch) = self.store.fail(batch) else { return };
        self.store_failed_ms = Some(now.mono_ms);
        self.leases.persist_failed();
        self.unplaced = true;
        for undo in batch.undo.into_iter().rev() {
            if self.map.get(&undo.key).map(|entry| entry.version) != undo.after {
                continue;
            }
            self.map.remove(&undo.key);
            if let Some(entry) = undo.before {
                self.map.merge(undo.key.clone(), entry);
            }
            self.touch(&undo.key);
        }
        self.keyring.relearn_operators(&self.map);
        for ack in batch.pushes {
            self.push_failed(ack, reason, out);
        }
        if !std::mem::replace(&mut self.disk_refuses, true) {
            let text = format!("changes could not be stored: {reason}; check the state partition");
            self.note(now, Severity::Error, "store-failed", text, out);
            self.tell_without_storing(out);
        }
    }

    /// Tells the others what this node cannot write down: that it cannot. Another must lead. After a restart
    /// this record need not be known here, as what is said then has a higher version.
    fn tell_without_storing(&mut self, out: &mut Actions) {
        let Some(status) = self.own_status() else { return };
        let key = RecordKey::Observation(self.settings.me, Topic::Node);
        let (_, body) = self.next_observation(Topic::Node, Some(Observation::Node(status)));
        let statement = statement::sign(self.settings.me, &self.settings.record_key, &body);
        for to in self.audience() {
            let records = vec![(key.clone(), Record::Statement(statement.clone()))];
            out.push(Action::Send { to, message: Message::Records { records, ack: None } });
        }
    }

    /// The others that may be told things: members that are alive.
    pub(super) fn audience(&self) -> Vec<Peer> {
        let Some(membership) = &self.membership else { return Vec::new() };
        membership.peers().filter(|peer| self.liveness.alive.contains(&peer.node)).collect()
    }

    /// The same in random order.
    pub(super) fn shuffled_audience(&mut self) -> Vec<Peer> {
        let mut audience = self.audience();
        audience.shuffle(&mut self.rng);
        audience
    }

    /// Sends once what it tells is durable.
    pub(super) fn send(&mut self, to: Peer, message: Message, out: &mut Actions) {
        self.store.then(Action::Send { to, message }, out);
    }

    /// Tells others what changed in this step.
    pub(super) fn spread(&mut self, out: &mut Actions) {
        if self.fresh.is_empty() {
            return;
        }
        let fresh = std::mem::take(&mut self.fresh);
        let audience = self.shuffled_audience();
        let all_hear_directly = audience.len() <= FANOUT;
        for peer in audience.iter().take(FANOUT) {
            let news: Vec<_> = fresh
                .iter()
                // Whoever sent it has it, and in a small cluster has told everybody.
                .filter(|(_, from)| from.is_none_or(|from| from != peer.node && !all_hear_directly))
                .filter_map(|(key, _)| Some((key.clone(), self.map.get(key)?.record.clone())))
                .collect();
            for message in sync::pack(news.into_iter(), None) {
                self.send(*peer, message, out);
            }
        }
    }

    pub(super) fn sync_with_somebody(&mut self, out: &mut Actions) {
        let audience = self.shuffled_audience();
        let unmet: Vec<_> =
            audience.iter().filter(|peer| self.unmet.contains(&peer.node)).take(FANOUT).collect();
        let asked = if unmet.is_empty() { audience.first().into_iter().collect() } else { unmet };
        for peer in asked {
            let question = sync::ask(&self.map);
            self.send(*peer, question, out);
        }
    }

    pub(super) fn compare_digests(&mut self, now: Time, from: Peer, digests: &[u64], out: &mut Actions) {
        match sync::compare(&self.map, digests) {
            Comparison::Same => self.agrees_with(now, from.node),
            Comparison::Equal(answer) => {
                self.agrees_with(now, from.node);
                self.send(from, answer, out);
            }
            Comparison::Answer(message) => self.send(from, message, out),
            Comparison::Malformed => {}
        }
    }

    /// A peer holds the same. Nothing more has to be waited for, unless membership has not heard
    /// of the peer yet: then its replicas would seem to have nobody.
    fn agrees_with(&mut self, now: Time, peer: NodeId) {
        self.agreed.agree(now, peer);
        if self.liveness.alive.contains(&peer) {
            if std::mem::take(&mut self.store_lost) {
                self.stirred = true;
                self.store.put(store::local_key(LOST), None);
            }
            self.learn_what_was_forgotten();
            self.end_grace();
        }
        if self.unmet.remove(&peer) && self.unmet.is_empty() {
            self.stirred = true;
        }
    }

    pub(super) fn compare_ranges(
        &mut self,
        from: Peer,
        ranges: &[(u16, Vec<(u64, u64)>)],
        out: &mut Actions,
    ) {
        let difference = sync::difference(&self.map, ranges);
        if !difference.want.is_empty() {
            self.send(from, Message::Want(difference.want), out);
        }
        for message in sync::records(&self.map, &difference.have) {
            self.send(from, message, out);
        }
    }

    pub(super) fn send_wanted(&mut self, from: Peer, hashes: &[u64], out: &mut Actions) {
        for message in sync::records(&self.map, hashes) {
            self.send(from, message, out);
        }
    }

    /// Takes records from a member.
    pub(super) fn receive_records(
        &mut self,
        now: Time,
        from: Peer,
        records: Vec<(RecordKey, Record)>,
        ack: Option<u64>,
        out: &mut Actions,
    ) {
        let refused = self.take_all(records, Some(from.node));
        let all_held = refused.is_empty();
        if let Some((key, _, reason)) = refused.iter().find(|(_, may_pass, _)| !may_pass)
            && self.complained_ms.get(&from.node).is_none_or(|at| *at + COMPLAIN_EVERY_MS <= now.mono_ms)
        {
            self.complained_ms.insert(from.node, now.mono_ms);
            let text = format!("{} from node {} is refused: {reason}", describe(key), self.name(&from.node));
            self.note(now, Severity::Warning, "record-refused", text, out);
        }
        if let Some(ack) = ack
            && all_held
        {
            self.send(from, Message::Stored { ack }, out);
        }
        if self.is_catching_up() && ack.is_none() {
            // What the first peers knew is here: ask whether that was all.
            self.sync_at_ms = self.sync_at_ms.min(now.mono_ms + 200);
        }
    }

    /// Judges what changed: which documents count, who is a member, what the cluster looks like.
    pub(super) fn redraw_if_changed(&mut self) {
        let specs_changed = std::mem::take(&mut self.specs_changed);
        if specs_changed {
            self.documents_changed = true;
            self.drop_moot();
            self.trust = Trust::evaluate(&self.settings.root_keys, &self.map);
        }
        let changed = std::mem::take(&mut self.changed);
        if !specs_changed && changed.is_empty() {
            return;
        }
        if specs_changed || !picture::follow(&mut self.cluster, &self.map, &changed) {
            self.members = enrolment::members(&self.map, self.settings.me, &self.anchors);
            self.cluster = picture::draw(&self.map, &self.trust, &self.members);
            self.unplanned = Unplanned::all();
        }
        changed.iter().for_each(|key| self.unplanned.add(key));
        self.unplaced |= specs_changed || changed.iter().any(|key| self.bears_on_placements(key));
        self.picture_changed = true;
        self.redrawn = true;
        self.stirred = true;
    }

    pub(super) fn own_replica_statuses(
        &self,
    ) -> BTreeMap<crate::record::ReplicaId, crate::record::ReplicaStatus> {
        self.map
            .observations(self.settings.me)
            .filter_map(|(key, entry)| match (key, &entry.content) {
                (
                    RecordKey::Observation(_, Topic::Replica(replica)),
                    Content::Observation(Some(Observation::Replica(status))),
                ) => Some((replica.clone(), status.clone())),
                _ => None,
            })
            .collect()
    }

    /// For whom this node made keys to which secrets.
    pub(super) fn own_shared_keys(&self) -> BTreeMap<(SpecKey, NodeId), SharedKey> {
        let own = self.map.observations(self.settings.me);
        own.filter_map(|(key, entry)| match (key, &entry.content) {
            (
                RecordKey::Observation(_, Topic::Shared(secret, node)),
                Content::Observation(Some(Observation::Shared(shared))),
            ) => Some(((secret.clone(), *node), shared.clone())),
            _ => None,
        })
        .collect()
    }

    /// What this node says of the parts of volumes it has.
    pub(super) fn own_volume_parts(&self) -> BTreeMap<VolumePart, VolumeStatus> {
        let own = self.map.observations(self.settings.me);
        own.filter_map(|(key, entry)| match (key, &entry.content) {
            (
                RecordKey::Observation(_, Topic::Volume(part)),
                Content::Observation(Some(Observation::Volume(status))),
            ) => Some((part.clone(), *status)),
            _ => None,
        })
        .collect()
    }
}

fn is_key_document(key: &RecordKey) -> bool {
    matches!(key, RecordKey::Spec(name, _) if name.kind == Kind::Key)
}

/// A record's name in words.
pub(super) fn describe(key: &RecordKey) -> String {
    match key {
        RecordKey::Spec(name, signer) => format!("the document {name} by key {}", signer.short()),
        RecordKey::Observation(node, Topic::Replica(replica)) => {
            format!("the status of replica {replica} by node {}", node.short())
        }
        RecordKey::Observation(node, Topic::Volume(part)) => {
            format!("the status of volume {part} by node {}", node.short())
        }
        RecordKey::Observation(node, Topic::Shared(secret, with)) => {
            format!("the key to {secret} that node {} made for node {}", node.short(), with.short())
        }
        RecordKey::Observation(node, _) => format!("a statement of node {}", node.short()),
        RecordKey::Decision(Matter::Placement(workload)) => {
            format!("the placement of {}/{}", workload.namespace, workload.name)
        }
        RecordKey::Decision(Matter::Job(workload)) => {
            format!("how far the job {}/{} is", workload.namespace, workload.name)
        }
        RecordKey::Decision(Matter::Rollout(architecture)) => {
            format!("the rollout of the release for {}", architecture.name())
        }
        RecordKey::Decision(Matter::Forgotten) => "the list of forgotten deletions".to_owned(),
        RecordKey::Decision(Matter::Unknown(_)) => "a decision of a later release".to_owned(),
    }
}
