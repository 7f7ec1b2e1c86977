//! Others: connections, admission, and what they say.
//!
//! ```text
//!   connected --chain of another cluster, revoked--> refused
//!     | introduction: token document, enrolment
//!   waiting --not admitted in time--> refused
//!     | known already, token open, or taken on faith
//!   member: membership packets, records, anti-entropy
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;

use hivemind_spec::api::Severity;
use hivemind_spec::certificate::NodeIdentity;
use hivemind_spec::document::{Kind, Spec};
use hivemind_spec::id::NodeId;
use rand::seq::SliceRandom as _;
use serde_bytes::ByteBuf;

use super::{Content, GRACE_MS, Node, SYNC_AT_START_MS};
use crate::cluster::LastSeen;
use crate::enrolment::{self, JoinRefusal, MAX_ANCHORS, YOUNG_MS};
use crate::event::{Action, Actions, Message, NodeFacts, Peer};
use crate::membership::{Identity, Membership, Outcome};
use crate::mutation::{Mutation, is_on};
use crate::record::{Enrolment, Observation, Record, RecordKey, Topic};
use crate::state::Entry;
use crate::sync;
use crate::time::Time;

/// How long the view of who is alive must have stood still before replicas are taken over,
/// milliseconds. A node that is cut off finds the others dead one after another, and must not take a
/// side that is still shrinking for the larger one: by the end of this time after the first, which
/// takes SWIM 3.5 s at least, the connections to all others have ended too (5 s).
const SETTLE_MS: u64 = 2000;

/// The same when the connection to a member that SWIM had given up ends only then, milliseconds. Whoever
/// was cut off together with it falls silent within a keep-alive of the transport (2.2 s).
const FALLEN_SILENT_SETTLE_MS: u64 = 2500;

/// The same when this side was the smaller one until now, milliseconds: those that are not heard
/// yet are being dialled, and are given two rounds of it.
const REJOINED_SETTLE_MS: u64 = 2 * super::REDIAL_EVERY_MS;

/// A node that was late by so much knew nothing of the others for as long, and does not take over on what it knew,
/// milliseconds. Far over what a machine under emulation is late by when it starts containers.
const STARVED_MS: u64 = 1500;

/// How long a newcomer may take to introduce itself, and other members to tell that they know it,
/// milliseconds.
const INTRODUCTION_MS: u64 = 3000;

/// Connections that wait for admission at once: a whole rack powered on together, and no more.
const MAX_WAITING: usize = 256;

/// Addresses remembered as hints.
const MAX_HINTS: usize = 256;

/// Shortest and longest time between two attempts at one hint, milliseconds.
const HINT_FIRST_MS: u64 = 2000;
const HINT_LAST_MS: u64 = 60_000;

/// How long a node that was refused is neither dialled nor written about again, milliseconds.
const REFUSED_REST_MS: u64 = 60_000;

/// Refused nodes kept in mind.
const MAX_REFUSED: usize = 1024;

/// Members tried per round of dialling.
const DIALS_PER_ROUND: usize = 4;

/// Members told of at a new connection that are spoken to at once.
const INTRODUCED_AT_ONCE: usize = 64;

/// Members told to a new connection.
const MAX_TOLD: usize = 2000;

/// A node that was connected to.
#[derive(Debug)]
pub(super) struct PeerState {
    address: SocketAddr,
    identity: NodeIdentity,
    stage: Stage,
    connected: bool,
}

#[derive(Debug)]
enum Stage {
    /// Not a member yet: what it says of itself is kept apart from the map.
    Waiting {
        until_ms: u64,
        enrolment: Option<Box<(RecordKey, Entry)>>,
    },
    Member,
}

/// An address where somebody may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hint {
    next_ms: u64,
    pause_ms: u64,
}

/// That a node was refused.
#[derive(Debug, Clone, Copy)]
pub(super) struct RefusedBefore {
    address: Option<SocketAddr>,
    at_ms: u64,
}

impl Node {
    /// Writes this node's own enrolment and the token it came with into the map, once.
    pub(super) fn introduce_self(&mut self, now: Time, out: &mut Actions) {
        if let Some(envelope) = self.settings.token_document.clone() {
            let placed = self.keyring.check_envelope(&envelope).ok().and_then(|document| {
                let key = crate::checking::spec_key(&envelope, &document);
                let entry = self.keyring.check(&key, &Record::Spec(envelope.clone())).ok()?;
                (document.value().kind == Kind::Token).then_some((key, entry))
            });
            match placed {
                Some((key, entry)) => {
                    self.take(key, entry, None);
                }
                None => {
                    let text = "the token's document in the machine configuration is not signed by a key \
                                of this cluster; others will not let this node in unless they know it";
                    self.note(now, Severity::Warning, "token-document-refused", text.to_owned(), out);
                }
            }
        }
        let key = RecordKey::Observation(self.settings.me, Topic::Enrolment);
        let known = match self.map.get(&key).map(|entry| &entry.content) {
            Some(Content::Observation(Some(Observation::Enrolment(enrolment)))) => {
                enrolment.chain == self.settings.chain
            }
            _ => false,
        };
        if !known && !self.others_may_know_it() {
            let enrolment = Enrolment {
                chain: self.settings.chain.iter().cloned().map(ByteBuf::from).collect(),
                token: self.settings.token,
                enrolled_ms: now.wall_ms,
                subnet: self.settings.subnet,
            };
            self.say(now, Topic::Enrolment, Some(Observation::Enrolment(enrolment)));
        }
    }

    /// Whether this node's own records are lost and may come back from its peers.
    pub(super) fn others_may_know_it(&self) -> bool {
        self.store_lost && self.grace_until_ms.is_some()
    }

    pub(super) fn learn_facts(&mut self, now: Time, facts: NodeFacts, out: &mut Actions) {
        if let Some(ip) = facts.address {
            let address = SocketAddr::new(ip, self.settings.peer_port);
            match &mut self.membership {
                Some(membership) => {
                    let outcome = membership.change_address(now, address);
                    self.follow(now, outcome, out);
                }
                None => {
                    let identity =
                        Identity { node: self.settings.me, address, boot: self.boot, generation: 0 };
                    self.membership = Some(Membership::new(identity, self.fork_rng()));
                    self.announce_to_members(now, out);
                    // Whom it knew before it started can be reached only from now on.
                    self.redial_at_ms = now.mono_ms;
                }
            }
        }
        self.facts = Some(facts);
        self.unplanned.network = true;
        self.stirred = true;
    }

    fn fork_rng(&mut self) -> rand_chacha::ChaCha8Rng {
        use rand::SeedableRng as _;
        rand_chacha::ChaCha8Rng::from_rng(&mut self.rng)
    }

    fn announce_to_members(&mut self, now: Time, out: &mut Actions) {
        let connected: Vec<_> = self
            .peers
            .iter()
            .filter(|(_, state)| state.connected && matches!(state.stage, Stage::Member))
            .map(|(node, state)| Peer { node: *node, address: state.address })
            .collect();
        for peer in connected {
            self.announce(now, peer, out);
        }
    }

    fn announce(&mut self, now: Time, peer: Peer, out: &mut Actions) {
        if let Some(membership) = &mut self.membership {
            let outcome = membership.announce(now, peer);
            self.follow(now, outcome, out);
        }
    }

    pub(super) fn connected(&mut self, now: Time, peer: Peer, chain: &[Vec<u8>], out: &mut Actions) {
        if peer.node == self.settings.me {
            return;
        }
        let identity = match self.keyring.chain_owner(chain) {
            Ok(identity) if identity.node == peer.node => identity,
            Ok(_) => {
                let reason = JoinRefusal::OtherCluster("they are another node's".to_owned());
                return self.refuse(now, peer.node, &reason, out);
            }
            Err(text) => return self.refuse(now, peer.node, &JoinRefusal::OtherCluster(text), out),
        };
        self.redraw_if_changed();
        let waiting = self.peers.values().filter(|s| matches!(s.stage, Stage::Waiting { .. })).count();
        if waiting >= MAX_WAITING && !self.members.contains(&peer.node) {
            out.push(Action::Refuse {
                node: peer.node,
                reason: "too many nodes join at once; try again".into(),
            });
            return;
        }
        self.hints.remove(&peer.address);
        self.hear_again(now, peer.node);
        let stage = Stage::Waiting { until_ms: now.mono_ms + INTRODUCTION_MS, enrolment: None };
        self.peers.insert(peer.node, PeerState { address: peer.address, identity, stage, connected: true });
        self.introduce(peer, out);
        self.judge(now, peer.node, out);
    }

    /// Tells a peer what it needs to let this node in.
    fn introduce(&mut self, to: Peer, out: &mut Actions) {
        self.send(to, Message::Hello { run: self.run }, out);
        let own = RecordKey::Observation(self.settings.me, Topic::Enrolment);
        let mut keys = Vec::new();
        for (name, place) in self.trust.all_current() {
            let Some(Content::Spec(document)) = self.map.get(place).map(|e| &e.content) else { continue };
            match &document.value().spec {
                // The keys come first: the token's document may be signed by one of them.
                Some(Spec::Key(_)) if name.kind == Kind::Key => keys.insert(0, place.clone()),
                Some(Spec::Token(token)) if token.id == self.settings.token => keys.push(place.clone()),
                _ => {}
            }
        }
        // What it said itself, in case it lost its store.
        keys.push(RecordKey::Observation(to.node, Topic::Enrolment));
        keys.push(own);
        let records: Vec<_> = keys
            .into_iter()
            .filter_map(|key| self.map.get(&key).map(|entry| (key.clone(), entry.record.clone())))
            .collect();
        for message in sync::pack(records.into_iter(), None) {
            self.send(to, message, out);
        }
    }

    pub(super) fn disconnected(&mut self, now: Time, node: NodeId) {
        if let Some(membership) = &mut self.membership {
            membership.disconnected(node);
        }
        if self.liveness.alive.contains(&node) {
            self.stirred |= self.liveness.silent.insert(node);
            self.unplaced = true;
        }
        if self.liveness.lingering.remove(&node) {
            self.unsettle(now, FALLEN_SILENT_SETTLE_MS);
        }
        match self.peers.get_mut(&node) {
            Some(state) if matches!(state.stage, Stage::Member) => state.connected = false,
            _ => {
                self.peers.remove(&node);
            }
        }
    }

    pub(super) fn receive(
        &mut self,
        now: Time,
        from: NodeId,
        address: SocketAddr,
        message: Message,
        out: &mut Actions,
    ) {
        if let Message::Refused { reason } = message {
            let text = format!("node {} at {address} refuses this node: {reason}", from.short());
            return self.note(now, Severity::Warning, "refused-by-peer", text, out);
        }
        let peer = Peer { node: from, address };
        match self.peers.get(&from).map(|state| &state.stage) {
            Some(_) if let Message::Hello { run } = message => self.hear_run(now, peer, run, out),
            None => {}
            Some(Stage::Waiting { .. }) => {
                if let Message::Records { records, .. } = message {
                    self.hear_introduction(now, from, records, out);
                }
            }
            Some(Stage::Member) => self.receive_from_member(now, peer, message, out),
        }
    }

    fn receive_from_member(&mut self, now: Time, from: Peer, message: Message, out: &mut Actions) {
        match message {
            Message::Swim(packet) => self.receive_packet(now, from.node, &packet, out),
            Message::Members(peers) => self.meet(now, peers, out),
            Message::Digests(digests) => self.compare_digests(now, from, &digests, out),
            Message::Ranges(ranges) => self.compare_ranges(from, &ranges, out),
            Message::Want(hashes) => self.send_wanted(from, &hashes, out),
            Message::Records { records, ack } => self.receive_records(now, from, records, ack, out),
            Message::Stored { ack } => self.stored_by(from.node, ack, out),
            Message::Lease(letter) => self.receive_letter(now, from, letter, out),
            Message::Hello { .. } | Message::Refused { .. } => {}
        }
    }

    fn receive_packet(&mut self, now: Time, from: NodeId, packet: &[u8], out: &mut Actions) {
        let Some(membership) = &mut self.membership else { return };
        match membership.receive(now, from, packet) {
            Ok(outcome) => self.follow(now, outcome, out),
            Err(e @ crate::membership::PacketError::Spoofed { .. }) => {
                let text = format!("a membership packet from node {} is dropped: {e}", from.short());
                self.note(now, Severity::Warning, "packet-dropped", text, out);
            }
            // Packets of a peer's earlier or later self are nobody's fault.
            Err(_) => {}
        }
    }

    /// Speaks to members this node has not heard of.
    fn meet(&mut self, now: Time, mut peers: Vec<Peer>, out: &mut Actions) {
        peers.truncate(MAX_TOLD);
        peers.retain(|p| p.node != self.settings.me && !self.liveness.alive.contains(&p.node));
        peers.shuffle(&mut self.rng);
        for peer in peers.into_iter().take(INTRODUCED_AT_ONCE) {
            if !self.is_revoked(&peer.node) {
                self.announce(now, peer, out);
            }
        }
    }

    /// Takes from a newcomer what speaks for it, and no more: its enrolment, kept apart until it
    /// is a member, and documents of tokens and keys that count.
    fn hear_introduction(
        &mut self,
        now: Time,
        from: NodeId,
        records: Vec<(RecordKey, Record)>,
        out: &mut Actions,
    ) {
        for (key, record) in records {
            let own = RecordKey::Observation(from, Topic::Enrolment);
            let document =
                matches!(&key, RecordKey::Spec(name, _) if matches!(name.kind, Kind::Key | Kind::Token));
            let about_me = key == RecordKey::Observation(self.settings.me, Topic::Enrolment);
            if key != own && !document && !about_me {
                continue;
            }
            let Ok(entry) = self.keyring.check(&key, &record) else { continue };
            if about_me {
                self.take(key, entry, Some(from));
                self.redraw_if_changed();
            } else if key == own {
                if let Some(PeerState { stage: Stage::Waiting { enrolment, .. }, .. }) =
                    self.peers.get_mut(&from)
                {
                    *enrolment = Some(Box::new((key, entry)));
                }
            } else if matches!(&entry.content, Content::Spec(document) if self.trust.counts(document)) {
                self.take(key, entry, Some(from));
                self.redraw_if_changed();
            }
        }
        self.judge(now, from, out);
    }

    /// Lets a waiting node in if it may come in now.
    fn judge(&mut self, now: Time, node: NodeId, out: &mut Actions) {
        let Some(PeerState { stage: Stage::Waiting { enrolment, .. }, identity, .. }) = self.peers.get(&node)
        else {
            return;
        };
        if self.is_revoked(&node) {
            return self.refuse(now, node, &JoinRefusal::Revoked, out);
        }
        if self.members.contains(&node) {
            return self.welcome(now, node, out);
        }
        let Some(offered) = enrolment.as_deref().cloned() else { return };
        let token = identity.token;
        match enrolment::may_enrol(node, token, &self.map, &self.trust, &self.members, now) {
            Ok(()) => {
                if let Err(again_ms) = self.admissions.take(now.mono_ms) {
                    return self.wait_until(node, again_ms);
                }
                self.take(offered.0, offered.1, Some(node));
                let admission = Observation::Admission { token, admitted_ms: now.wall_ms };
                self.say(now, Topic::Admission(node), Some(admission));
                let text = format!("node {node} joined with token {}", token.short());
                self.note(now, Severity::Info, "node-joined", text, out);
            }
            Err(refusal) if self.takes_on_faith(now, &refusal, &offered.1) => {
                self.take(offered.0, offered.1, Some(node));
                self.anchors.insert(node);
                self.save_anchors();
                let text = format!("this node is new and takes node {node} for an older member");
                self.note(now, Severity::Info, "node-trusted", text, out);
            }
            Err(_) => return,
        }
        self.redraw_if_changed();
        if self.members.contains(&node) {
            self.welcome(now, node, out);
        }
    }

    fn wait_until(&mut self, node: NodeId, mono_ms: u64) {
        if let Some(PeerState { stage: Stage::Waiting { until_ms, .. }, .. }) = self.peers.get_mut(&node) {
            *until_ms = mono_ms;
        }
    }

    /// Whether this node, being new, believes that the other is a member although it cannot check
    /// it: by this node's clock the token is closed, but the other claims to have come in time.
    fn takes_on_faith(&self, now: Time, refusal: &JoinRefusal, offered: &Entry) -> bool {
        let Content::Observation(Some(Observation::Enrolment(theirs))) = &offered.content else {
            return false;
        };
        let closed = matches!(refusal, JoinRefusal::Expired { .. } | JoinRefusal::NotYetOpen { .. });
        let own = self.cluster.nodes.get(&self.settings.me);
        let young = own.is_none_or(|own| now.wall_ms < own.enrolment.enrolled_ms.saturating_add(YOUNG_MS));
        let alone = self.members.iter().all(|member| *member == self.settings.me);
        closed
            && (young || alone)
            && self.anchors.len() < MAX_ANCHORS
            && enrolment::claims_open_window(theirs, &self.map, &self.trust)
    }

    fn welcome(&mut self, now: Time, node: NodeId, out: &mut Actions) {
        let Some(state) = self.peers.get_mut(&node) else { return };
        state.stage = Stage::Member;
        let peer = Peer { node, address: state.address };
        if !self.liveness.alive.contains(&node) {
            self.liveness.lingering.insert(node);
            self.unplaced = true;
        }
        self.announce(now, peer, out);
        let mut told = self.audience();
        told.truncate(MAX_TOLD);
        if !told.is_empty() {
            self.send(peer, Message::Members(told), out);
        }
        let question = sync::ask(&self.map);
        self.send(peer, question, out);
    }

    /// Looks again at the nodes that wait, and turns away those whose time is up.
    pub(super) fn judge_waiting(&mut self, now: Time, out: &mut Actions) {
        let waits = |state: &PeerState| matches!(state.stage, Stage::Waiting { .. });
        let waiting = self.peers.iter().filter(|(_, state)| waits(state)).map(|(node, _)| *node);
        let mut waiting: Vec<_> = waiting.collect();
        // By chance: were there an order, all members would admit the same one at a time.
        waiting.shuffle(&mut self.rng);
        for node in waiting {
            self.judge(now, node, out);
            let Some(PeerState { stage: Stage::Waiting { until_ms, .. }, identity, .. }) =
                self.peers.get(&node)
            else {
                continue;
            };
            if *until_ms <= now.mono_ms {
                let token = identity.token;
                let refusal = enrolment::may_enrol(node, token, &self.map, &self.trust, &self.members, now)
                    .err()
                    .unwrap_or(JoinRefusal::Silent);
                self.refuse(now, node, &refusal, out);
            }
        }
    }

    pub(super) fn waiting_until(&self) -> Option<u64> {
        self.peers
            .values()
            .filter_map(|state| match state.stage {
                Stage::Waiting { until_ms, .. } => Some(until_ms),
                Stage::Member => None,
            })
            .min()
    }

    fn refuse(&mut self, now: Time, node: NodeId, refusal: &JoinRefusal, out: &mut Actions) {
        let address = self.peers.remove(&node).map(|state| state.address);
        if self.refused.get(&node).is_none_or(|before| now.mono_ms >= before.at_ms + REFUSED_REST_MS) {
            let place = address.map(|a| format!(" at {a}")).unwrap_or_default();
            let text = format!("node {node}{place} is refused: {refusal}");
            self.note(now, Severity::Warning, "join-refused", text, out);
            if self.refused.len() >= MAX_REFUSED {
                self.refused.clear();
            }
            self.refused.insert(node, RefusedBefore { address, at_ms: now.mono_ms });
        }
        out.push(Action::Refuse { node, reason: refusal.to_string() });
    }

    /// Cuts off those whom an operator revoked since the last look.
    pub(super) fn cut_off_revoked(&mut self, now: Time, out: &mut Actions) {
        let revoked: Vec<_> = self.peers.keys().filter(|node| self.is_revoked(node)).copied().collect();
        for node in revoked {
            self.refuse(now, node, &JoinRefusal::Revoked, out);
        }
        let revoked: Vec<_> = self
            .cluster
            .nodes
            .keys()
            .filter(|node| self.liveness.alive.contains(node) && self.is_revoked(node))
            .copied()
            .collect();
        for node in revoked {
            if let Some(membership) = &mut self.membership {
                let outcome = membership.expel(now, node);
                self.follow(now, outcome, out);
            }
        }
    }

    /// Does what membership wants done, and tells people.
    pub(super) fn follow(&mut self, now: Time, outcome: Outcome, out: &mut Actions) {
        if outcome.late_ms >= STARVED_MS {
            // What it knows of the others is from before.
            self.unsettle(now, SETTLE_MS);
        }
        for (to, packet) in outcome.sends {
            if !self.is_revoked(&to.node) {
                out.push(Action::Send { to, message: Message::Swim(packet) });
            }
        }
        for peer in &outcome.up {
            let text = format!("node {} is up at {}", self.name(&peer.node), peer.address);
            self.note(now, Severity::Info, "node-up", text, out);
        }
        for node in &outcome.down {
            let text = format!("node {} is down", self.name(node));
            self.note(now, Severity::Warning, "node-down", text, out);
        }
        if !outcome.up.is_empty() || !outcome.down.is_empty() {
            self.look_around(now);
        }
    }

    /// Brings [`crate::cluster::Liveness`] up to date.
    pub(super) fn look_around(&mut self, now: Time) {
        let me = self.settings.me;
        let mut alive = self.membership.as_ref().map(Membership::alive).unwrap_or_default();
        alive.retain(|node| self.members.contains(node));
        alive.insert(me);
        for node in alive.union(&self.liveness.alive) {
            self.liveness.last_seen.insert(*node, LastSeen::now(now));
        }
        let members = &self.members;
        self.liveness.last_seen.retain(|node, _| members.contains(node));
        let changed = alive != self.liveness.alive;
        if changed {
            let came: Vec<_> = alive.difference(&self.liveness.alive).copied().collect();
            self.meet_anew(now, &came);
            let was_majority = self.cluster.side(&self.liveness, now).is_majority();
            // Who is known by hearsay only, or was not heard again yet.
            let heard = |node: &NodeId| self.peers.get(node).is_some_and(|state| state.connected);
            self.liveness.silent.extend(came.into_iter().filter(|node| *node != me && !heard(node)));
            self.unplanned.network = true;
            for node in alive.symmetric_difference(&self.liveness.alive) {
                self.map.observations(*node).for_each(|(key, _)| self.unplanned.add(key));
            }
            self.liveness.alive = alive;
            self.liveness.silent.retain(|node| self.liveness.alive.contains(node));
            self.unmet.retain(|node| self.liveness.alive.contains(node));
            let connected = self.peers.iter().filter(|(_, state)| state.connected).map(|(node, _)| *node);
            self.liveness.lingering = connected.filter(|n| !self.liveness.alive.contains(n)).collect();
            let returned = !was_majority && self.cluster.side(&self.liveness, now).is_majority();
            self.unsettle(now, if returned { REJOINED_SETTLE_MS } else { SETTLE_MS });
        }
        self.save_seen(now, changed);
    }

    /// There is a connection to a member that SWIM has for alive. If that makes this side the larger one, the others
    /// are about to come back as well.
    fn hear_again(&mut self, now: Time, node: NodeId) {
        let was_majority = self.cluster.side(&self.liveness, now).is_majority();
        if self.liveness.silent.remove(&node) {
            let returned = !was_majority && self.cluster.side(&self.liveness, now).is_majority();
            if returned {
                self.unsettle(now, REJOINED_SETTLE_MS);
            }
            (self.stirred, self.unplaced) = (true, true);
        }
    }

    /// Nobody's replicas are taken over for that time: the view of who is alive has changed.
    fn unsettle(&mut self, now: Time, pause_ms: u64) {
        self.settled_at_ms = self.settled_at_ms.max(now.mono_ms + pause_ms);
        self.liveness.unsettled = !is_on(Mutation::TakeoverDoesNotWait);
        (self.stirred, self.unplaced) = (true, true);
    }

    /// Takes note of members that came up: what they know is not known here yet.
    pub(super) fn meet_anew(&mut self, now: Time, came: &[NodeId]) {
        self.unmet.extend(came.iter().filter(|node| **node != self.settings.me));
        if !came.is_empty() {
            self.unmet_until_ms = now.mono_ms + GRACE_MS;
            self.sync_at_ms = self.sync_at_ms.min(now.mono_ms + SYNC_AT_START_MS);
        }
    }

    pub(super) fn hint(&mut self, now: Time, address: SocketAddr, out: &mut Actions) {
        let own = self.membership.as_ref().is_some_and(|m| m.identity().address == address);
        let rests = |before: &RefusedBefore| {
            before.address == Some(address) && now.mono_ms < before.at_ms + REFUSED_REST_MS
        };
        if own || self.is_connected_to(address) || self.refused.values().any(rests) {
            return;
        }
        if self.hints.len() < MAX_HINTS {
            let news = Hint { next_ms: now.mono_ms, pause_ms: HINT_FIRST_MS };
            let hint = self.hints.entry(address).or_insert(news);
            // News: somebody is there now, however long the pause had become.
            hint.pause_ms = HINT_FIRST_MS;
            hint.next_ms = hint.next_ms.min(now.mono_ms + HINT_FIRST_MS);
        }
        self.try_hints(now, out);
    }

    fn is_connected_to(&self, address: SocketAddr) -> bool {
        self.peers.values().any(|state| state.connected && state.address == address)
    }

    fn try_hints(&mut self, now: Time, out: &mut Actions) {
        let connected: Vec<_> =
            self.peers.values().filter(|state| state.connected).map(|state| state.address).collect();
        let rest = |before: &&RefusedBefore| now.mono_ms < before.at_ms + REFUSED_REST_MS;
        let refused: Vec<_> =
            self.refused.values().filter(rest).filter_map(|before| before.address).collect();
        self.hints.retain(|address, _| !connected.contains(address) && !refused.contains(address));
        for (address, hint) in &mut self.hints {
            if hint.next_ms <= now.mono_ms {
                hint.next_ms = now.mono_ms + hint.pause_ms;
                hint.pause_ms = (hint.pause_ms * 2).min(HINT_LAST_MS);
                out.push(Action::Connect { address: *address });
            }
        }
    }

    /// Tries members that should be reachable and are not.
    pub(super) fn redial(&mut self, now: Time, out: &mut Actions) {
        self.try_hints(now, out);
        let mut missing: BTreeMap<NodeId, SocketAddr> = BTreeMap::new();
        for (id, node) in &self.cluster.nodes {
            if *id == self.settings.me || node.is_revoked() || self.liveness.alive.contains(id) {
                continue;
            }
            let remembered =
                node.status.as_ref().map(|s| SocketAddr::new(s.address, self.settings.peer_port));
            let met = self.peers.get(id).map(|state| state.address);
            if let Some(address) = met.or(remembered) {
                missing.insert(*id, address);
            }
        }
        let mut missing: Vec<_> = missing.into_iter().collect();
        missing.shuffle(&mut self.rng);
        for (node, address) in missing.into_iter().take(DIALS_PER_ROUND) {
            match self.peers.get(&node) {
                Some(PeerState { connected: true, stage: Stage::Member, .. }) => {
                    self.announce(now, Peer { node, address }, out);
                }
                Some(PeerState { connected: true, .. }) => {}
                _ => out.push(Action::Connect { address }),
            }
        }
    }
}
