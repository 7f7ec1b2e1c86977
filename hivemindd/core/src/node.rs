//! The node: all modules composed into one state machine.
//!
//! ```text
//!             +-- membership   who is alive
//!   Event --> +-- replication  the map, and keeping it alike everywhere     --> Actions
//!             +-- deciding     leader, placements, replicas, network, names
//! ```
//!
//! A step handles its event, does what is due, brings everything that follows from a changed map
//! or a changed view up to date, and only then hands out what is to be written and sent. Whatever
//! tells others about the map waits until what it tells is durable: persist, then send, then
//! reply.

mod deciding;
mod doubles;
mod forgetting;
mod leasing;
mod overtaking;
mod peers;
mod pushing;
mod replication;
mod secrets;
mod store;
mod trial;
mod updating;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use hivemind_spec::api::{Severity, SpecItem};
use hivemind_spec::document::SpecKey;
use hivemind_spec::dsse::Envelope;
use hivemind_spec::id::{ClusterId, Digest, KeyId, NodeId, TokenId};
use hivemind_spec::key::{PublicKey, SignatureVerifier, SigningKey};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

use crate::checking::Keyring;
use crate::cluster::{Cluster, ContainerRange, Liveness};
use crate::device::Devices;
use crate::enrolment::{ChainVerifier, Pace};
use crate::event::{Action, Actions, ContainerId, Event, NetworkPlan, NodeFacts, Note, SealedSecret, Zone};
use crate::isolation::Reach;
use crate::leader::Leader;
use crate::lease::Leases;
use crate::membership::Membership;
use crate::record::{Record, RecordKey, ReplicaId, Topic, VolumePart, WorkloadId};
use crate::replica::{Replicas, container_id};
use crate::report::View;
use crate::state::{Content, Map};
use crate::time::{HybridClock, Time};
use crate::trust::{Holder, Trust};
use crate::volume::{self, Volumes};

use deciding::Unplanned;
use doubles::Doubles;
use forgetting::Agreed;
use overtaking::Accepted;
use peers::{Hint, PeerState, RefusedBefore};
use pushing::PendingPush;
use store::Store;
pub use trial::STEADY_MS;
use trial::Trial;
use updating::Updating;

/// How long a node that has just started waits for a first peer before it starts or places
/// anything that may have moved while it was off, milliseconds.
pub const GRACE_MS: u64 = 5000;

/// How often a node compares what it holds with another while something changed lately,
/// milliseconds.
pub const SYNC_EVERY_MS: u64 = 3000;

/// How often when nothing changed for long, milliseconds. Every change is sent on at once and every
/// new connection begins with a comparison; this finds only what was lost in between.
const SYNC_AT_REST_MS: u64 = 30_000;

/// The pause grows from the one to the other as this part of the time since the last change: eight
/// comparisons at full pace come first.
const SYNC_PAUSE_PART: u64 = 8;

/// How late work may be that no message and no person waits for, milliseconds. It is done with
/// whatever wakes the node next; by itself it wakes the node only after this time.
const UNHURRIED_MS: u64 = 1000;

/// The same while a node that has just started does not know yet whether it has heard all.
const SYNC_AT_START_MS: u64 = 500;

/// How late a node may be woken without having to catch up with others, milliseconds: about half of
/// what it may be silent until others look for it by way of each other.
const OVERSLEPT_MS: u64 = 500;

/// How often nodes that should be reachable and are not are tried, milliseconds.
pub const REDIAL_EVERY_MS: u64 = 5000;

/// How often the leader looks again though nothing changed: takeovers depend on time.
const LOOK_AGAIN_MS: u64 = 5000;

/// How often what is out of date is dropped from the map.
const HOUSEKEEPING_EVERY_MS: u64 = 3600 * 1000;

/// Rounds of "what follows from what was just decided" in one step: enrolment, subnet, placement
/// and status follow each other; more is a loop, which the next event may continue.
const MAX_ROUNDS: usize = 8;

/// What a node is, from its machine configuration and its identity.
#[derive(Debug)]
pub struct Settings {
    /// This node's id.
    pub me: NodeId,
    /// Signs its records.
    pub record_key: SigningKey,
    /// How often it has booted, counting this time. Must never go back.
    pub boot: u64,
    /// The subnet this node had before, remembered outside its store ([`Action::RememberSubnet`]): who lost the
    /// store and is alone would otherwise take a healthy node's.
    pub subnet: Option<u16>,
    /// The cluster.
    pub cluster_id: ClusterId,
    /// Its name, for people.
    pub cluster_name: String,
    /// The range node subnets are taken from.
    pub container_range: ContainerRange,
    /// The root CA, DER.
    pub root_ca: Vec<u8>,
    /// The operators' root keys.
    pub root_keys: Vec<PublicKey>,
    /// Its own node CA and token CA, DER.
    pub chain: Vec<Vec<u8>>,
    /// The token it came with.
    pub token: TokenId,
    /// The token's document, as the machine configuration has it.
    pub token_document: Option<Envelope>,
    /// UDP port of every node's QUIC endpoint.
    pub peer_port: u16,
    /// Checks others' chains: [`hivemind_spec::certificate::verify_node_chain`].
    pub verify_chain: ChainVerifier,
    /// Checks signatures on records: [`PublicKey::verifies`].
    pub verify_signature: SignatureVerifier,
}

/// A node's whole state.
pub struct Node {
    settings: Settings,
    rng: ChaCha8Rng,

    // The replicated map and what follows from it.
    map: Map,
    keyring: Keyring,
    trust: Trust,
    members: BTreeSet<NodeId>,
    cluster: Cluster,
    specs_changed: bool,
    /// The records that changed since the picture was drawn.
    changed: BTreeSet<RecordKey>,
    /// Whether what follows from the newest picture of the cluster is still to be done.
    picture_changed: bool,
    /// Whether it is still to be seen which documents took the place of others.
    documents_changed: bool,
    /// Whether the map has changed in this step.
    redrawn: bool,
    /// Changed in this step, and who sent it.
    fresh: BTreeMap<RecordKey, Option<NodeId>>,

    // This node's voice in the map.
    boot: u64,
    sequence: u64,
    clock: HybridClock,
    started_ms: u64,
    /// Whether this node has run before and its store is gone: others may know better than it does
    /// when it enrolled and which subnet it has. Until it agrees with one of them.
    store_lost: bool,

    // Others.
    membership: Option<Membership>,
    liveness: Liveness,
    /// Until when takeovers wait because the view changed, monotonic milliseconds.
    settled_at_ms: u64,
    anchors: BTreeSet<NodeId>,
    admissions: Pace,
    /// This start's number, which no other has: [`Message::Hello`].
    run: u64,
    doubles: Doubles,
    /// Members that came up and with which this node has not found itself agreed since: it decides
    /// nothing on what may be the smaller half of what is known.
    unmet: BTreeSet<NodeId>,
    /// Until when it waits for that, monotonic milliseconds.
    unmet_until_ms: u64,
    peers: BTreeMap<NodeId, PeerState>,
    hints: BTreeMap<SocketAddr, Hint>,
    refused: BTreeMap<NodeId, RefusedBefore>,
    complained_ms: BTreeMap<NodeId, u64>,
    agreed: Agreed,

    // What is under way.
    store: Store,
    store_failed_ms: Option<u64>,
    /// Whether the disk takes nothing, as far as is known: since a batch failed, and none has been written.
    disk_refuses: bool,
    pushes: BTreeMap<u64, PendingPush>,
    next_ack: u64,
    /// What operators pushed to this node and is current, as far as is known.
    accepted: BTreeMap<SpecKey, Accepted>,

    // Deciding and what was handed out last.
    facts: Option<NodeFacts>,
    devices: Devices,
    leader: Leader,
    told_leader: Option<NodeId>,
    replicas: Replicas,
    replica_said_ms: BTreeMap<ReplicaId, u64>,
    replica_wake_ms: Option<u64>,
    leases: Leases,
    /// Until when containers may run that have a lease, as last handed out.
    fences: BTreeMap<ContainerId, u64>,
    inventory_known: bool,
    volumes: Volumes,
    /// The secrets of running containers, as last handed out.
    secrets: BTreeMap<ContainerId, BTreeMap<String, SealedSecret>>,
    /// Versions of secrets that this node's keys do not open.
    unopened: BTreeMap<SpecKey, Digest>,
    run_before: BTreeSet<Digest>,
    network: Option<NetworkPlan>,
    reach: Option<Reach>,
    zone: Option<Zone>,
    unplanned: Unplanned,
    health_checks: Option<BTreeMap<ContainerId, hivemind_spec::workload::HealthCheck>>,
    stirred: bool,
    /// Whether something changed that placements follow from since this node, as the leader, looked.
    unplaced: bool,

    /// Whether a new release of the operating system does well.
    trial: Trial,
    /// The new release that this node takes.
    updating: Updating,

    // When to do what comes by itself, monotonic milliseconds.
    grace_until_ms: Option<u64>,
    sync_at_ms: u64,
    changed_ms: u64,
    redial_at_ms: u64,
    look_again_at_ms: u64,
    housekeeping_at_ms: u64,
    seen_saved_ms: u64,
    woken_at_ms: Option<u64>,
}

/// How urgent something is, its code, and what happened in words.
type Told = (Severity, &'static str, String);

impl Node {
    /// Starts from what the store holds (every key and value). What of it does not verify is
    /// dropped with a note, and comes again from the peers.
    pub fn new(settings: Settings, stored: Vec<(Vec<u8>, Vec<u8>)>, now: Time, seed: u64) -> (Self, Actions) {
        let keyring = Keyring::new(
            settings.root_ca.clone(),
            &settings.root_keys,
            settings.verify_chain,
            settings.verify_signature,
        );
        let mut node = Self {
            boot: settings.boot,
            rng: ChaCha8Rng::seed_from_u64(seed),
            map: Map::default(),
            keyring,
            trust: Trust::default(),
            members: BTreeSet::new(),
            cluster: Cluster::default(),
            specs_changed: true,
            changed: BTreeSet::new(),
            picture_changed: false,
            documents_changed: false,
            redrawn: false,
            fresh: BTreeMap::new(),
            sequence: 0,
            clock: HybridClock::default(),
            started_ms: now.wall_ms,
            store_lost: false,
            membership: None,
            liveness: Liveness::default(),
            settled_at_ms: 0,
            anchors: BTreeSet::new(),
            admissions: Pace::default(),
            run: 0,
            doubles: Doubles::default(),
            unmet: BTreeSet::new(),
            unmet_until_ms: 0,
            peers: BTreeMap::new(),
            hints: BTreeMap::new(),
            refused: BTreeMap::new(),
            complained_ms: BTreeMap::new(),
            agreed: Agreed::default(),
            store: Store::default(),
            store_failed_ms: None,
            disk_refuses: false,
            pushes: BTreeMap::new(),
            // What is told of an earlier start's pushes must not be taken for this one's.
            next_ack: settings.boot << 32,
            accepted: BTreeMap::new(),
            facts: None,
            devices: Devices::default(),
            leader: Leader::default(),
            told_leader: None,
            replicas: Replicas::default(),
            replica_said_ms: BTreeMap::new(),
            replica_wake_ms: None,
            leases: Leases::new(settings.me, settings.boot << 32),
            fences: BTreeMap::new(),
            inventory_known: false,
            volumes: Volumes::default(),
            secrets: BTreeMap::new(),
            unopened: BTreeMap::new(),
            run_before: BTreeSet::new(),
            network: None,
            reach: None,
            zone: None,
            unplanned: Unplanned::all(),
            health_checks: None,
            stirred: true,
            unplaced: true,
            trial: Trial::default(),
            updating: Updating::default(),
            grace_until_ms: Some(now.mono_ms + GRACE_MS),
            sync_at_ms: now.mono_ms + SYNC_AT_START_MS,
            changed_ms: now.mono_ms,
            redial_at_ms: now.mono_ms,
            look_again_at_ms: now.mono_ms + LOOK_AGAIN_MS,
            housekeeping_at_ms: now.mono_ms + HOUSEKEEPING_EVERY_MS,
            seen_saved_ms: now.mono_ms,
            woken_at_ms: None,
            settings,
        };
        let mut out = Actions::new();
        node.run = rand::Rng::next_u64(&mut node.rng);
        node.clock.advance(now);
        node.load(now, stored, &mut out);
        node.remember_before();
        let own = RecordKey::Observation(node.settings.me, Topic::Enrolment);
        if node.settings.boot > 1 && node.map.get(&own).is_none() {
            node.lose_store();
        }
        node.introduce_self(now, &mut out);
        node.replicas = Replicas::new(&node.own_replica_statuses());
        node.volumes = Volumes::new(node.own_volume_parts());
        node.finish(now, &mut out);
        (node, out)
    }

    /// Takes one event to its end and puts what is to be done into `out`, in order.
    pub fn step(&mut self, now: Time, event: Event, out: &mut Actions) {
        self.clock.advance(now);
        self.notice_oversleeping(now);
        match event {
            Event::TimerFired => self.woken_at_ms = None,
            Event::Received { from, address, message } => self.receive(now, from, address, message, out),
            Event::Connected { peer, chain } => self.connected(now, peer, &chain, out),
            Event::Disconnected { node } => self.disconnected(now, node),
            Event::Hint { address } => self.hint(now, address, out),
            Event::Persisted { batch } => self.persisted(now, batch, out),
            Event::PersistFailed { batch, reason } => self.persist_failed(now, batch, &reason, out),
            Event::Push { request, envelope } => self.push(now, request, &envelope, out),
            Event::Observed { inventory } => {
                self.replicas.observed(now, inventory);
                self.inventory_known = true;
                self.stirred = true;
            }
            Event::Done { operation, result } => {
                self.replicas.done(now, operation, result);
                self.stirred = true;
            }
            Event::PullProgressed { operation, progress } => {
                self.replicas.pull_progressed(operation, progress);
                self.stirred = true;
            }
            Event::HealthChecked { container, healthy, detail } => {
                self.replicas.health_checked(now, &container, healthy, &detail);
                self.stirred = true;
            }
            Event::Short { of, uses } => {
                self.replicas.short(of, uses);
                self.stirred = true;
            }
            Event::Updating { update } => self.learn_update(update),
            Event::Brought { release } => self.learn_brought(release),
            Event::Devices { found } => self.stirred |= self.devices.learn(found),
            Event::Facts { facts } => self.learn_facts(now, facts, out),
        }
        self.finish(now, out);
    }

    /// A node whose alarm is overdue was frozen or has no processor to itself. Others may have given
    /// it up and gone on without it: it decides nothing until it has heard what they know.
    fn notice_oversleeping(&mut self, now: Time) {
        let overdue = self.woken_at_ms.is_some_and(|due_ms| now.mono_ms > due_ms + OVERSLEPT_MS);
        if overdue {
            self.trial_slept();
        }
        if overdue && self.unmet.is_empty() {
            let others: Vec<_> = self.liveness.alive.iter().copied().collect();
            self.meet_anew(now, &others);
        }
    }

    fn finish(&mut self, now: Time, out: &mut Actions) {
        self.do_what_is_due(now, out);
        self.settle(now, out);
        self.judge_release(now, out);
        if std::mem::take(&mut self.redrawn) {
            self.hurry_sync(now);
        }
        self.spread(out);
        self.persist(now, out);
        self.set_alarm(out);
    }

    fn do_what_is_due(&mut self, now: Time, out: &mut Actions) {
        if let Some(membership) = &mut self.membership {
            let outcome = membership.advance(now);
            self.follow(now, outcome, out);
        }
        if self.grace_until_ms.is_some_and(|until| until <= now.mono_ms) {
            self.end_grace();
        }
        if self.sync_at_ms <= now.mono_ms {
            let pause_ms = self.sync_pause_ms(now);
            self.sync_at_ms = now.mono_ms + pause_ms + self.jitter(pause_ms / 4);
            self.sync_with_somebody(out);
        }
        if self.redial_at_ms <= now.mono_ms {
            self.redial_at_ms = now.mono_ms + REDIAL_EVERY_MS + self.jitter(REDIAL_EVERY_MS / 4);
            self.redial(now, out);
            self.forget_doubles(now);
        }
        if self.look_again_at_ms <= now.mono_ms {
            self.look_again_at_ms = now.mono_ms + LOOK_AGAIN_MS;
            self.stirred |= self.is_leader();
            self.unplaced = true;
        }
        if self.liveness.unsettled && self.settled_at_ms <= now.mono_ms {
            self.liveness.unsettled = false;
            (self.stirred, self.unplaced) = (true, true);
        }
        if !self.unmet.is_empty() && self.unmet_until_ms <= now.mono_ms {
            self.unmet.clear();
            self.stirred = true;
        }
        if self.housekeeping_at_ms <= now.mono_ms {
            self.housekeeping_at_ms = now.mono_ms + HOUSEKEEPING_EVERY_MS;
            self.keep_house(now, out);
        }
        if self.leader.wake_at_ms().is_some_and(|at| at <= now.mono_ms)
            || self.replica_wake_ms.is_some_and(|at| at <= now.mono_ms)
            || self.updating.wake_at_ms().is_some_and(|at| at <= now.mono_ms)
        {
            self.stirred = true;
        }
        if self.disk_pause_ends_ms().is_some_and(|at| at <= now.mono_ms) {
            self.store_failed_ms = None;
            self.stirred = true;
        }
        self.judge_waiting(now, out);
        self.push_on(now, out);
    }

    /// How long to wait until the next comparison with another node.
    fn sync_pause_ms(&self, now: Time) -> u64 {
        if self.is_catching_up() {
            return SYNC_AT_START_MS;
        }
        let quiet_ms = now.mono_ms.saturating_sub(self.changed_ms);
        (quiet_ms / SYNC_PAUSE_PART).clamp(SYNC_EVERY_MS, SYNC_AT_REST_MS)
    }

    /// The map has changed: whoever missed it is to be found soon.
    fn hurry_sync(&mut self, now: Time) {
        self.changed_ms = now.mono_ms;
        self.sync_at_ms = self.sync_at_ms.min(now.mono_ms + SYNC_EVERY_MS);
    }

    /// Asks to be called when the next thing is due.
    fn set_alarm(&mut self, out: &mut Actions) {
        let slack_ms = if self.is_catching_up() { 0 } else { UNHURRIED_MS };
        let next = [
            self.membership.as_ref().and_then(Membership::wake_at),
            self.grace_until_ms,
            self.leader.wake_at_ms(),
            self.replica_wake_ms,
            self.trial.wake_at_ms(),
            self.updating.wake_at_ms(),
            self.waiting_until(),
            self.disk_pause_ends_ms(),
            self.pushes.values().map(PendingPush::wake_at_ms).min(),
            Some(self.sync_at_ms + slack_ms),
            Some(self.redial_at_ms + slack_ms),
            self.is_leader().then_some(self.look_again_at_ms + slack_ms),
            self.liveness.unsettled.then_some(self.settled_at_ms),
            (!self.unmet.is_empty()).then_some(self.unmet_until_ms),
            Some(self.housekeeping_at_ms + slack_ms),
        ];
        if let Some(at) = next.into_iter().flatten().min()
            && self.woken_at_ms != Some(at)
        {
            self.woken_at_ms = Some(at);
            out.push(Action::WakeAt { mono_ms: at });
        }
    }

    /// Whether this node may not have heard yet of what others know.
    fn is_catching_up(&self) -> bool {
        self.grace_until_ms.is_some() || !self.unmet.is_empty()
    }

    fn end_grace(&mut self) {
        self.stirred |= self.grace_until_ms.take().is_some();
    }

    fn jitter(&mut self, below_ms: u64) -> u64 {
        use rand::RngExt as _;
        self.rng.random_range(0..below_ms.max(1))
    }

    fn note(&self, now: Time, level: Severity, code: &str, text: String, out: &mut Actions) {
        out.push(Action::Note(Note { level, code: code.to_owned(), text, workload: None, time: now }));
    }

    /// A note about a workload.
    fn note_of(&self, now: Time, id: &WorkloadId, (level, code, text): Told, out: &mut Actions) {
        let workload = Some(id.clone());
        out.push(Action::Note(Note { level, code: code.to_owned(), text, workload, time: now }));
    }

    fn is_leader(&self) -> bool {
        self.leader.current() == Some(self.settings.me)
    }

    fn is_revoked(&self, node: &NodeId) -> bool {
        self.cluster.nodes.get(node).is_some_and(crate::cluster::Node::is_revoked)
    }

    /// What a node is called in notes.
    fn name(&self, node: &NodeId) -> String {
        format!("{} ({})", self.cluster.hostname(node), node.short())
    }
}

/// What the API reads.
impl Node {
    /// This node.
    pub fn me(&self) -> NodeId {
        self.settings.me
    }

    /// What the node was started with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The records that count, put together.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Who is alive.
    pub fn liveness(&self) -> &Liveness {
        &self.liveness
    }

    /// The containers on this node that have a part of a volume, or may have it, and whose they are.
    pub fn volume_users(&self, part: &VolumePart) -> Vec<(ContainerId, &ReplicaId)> {
        let users = self.replicas.users_here(part, |replica| self.cluster.workloads.get(&replica.workload));
        let spec = self.cluster.volumes.get(&part.volume);
        let has = |replica| spec.is_none_or(|spec| volume::part(spec, replica, &part.volume.name) == *part);
        let users = users.map(|labels| (container_id(&labels.replica, &labels.template), &labels.replica));
        users.filter(|(_, replica)| has(replica)).collect()
    }

    /// The leader in this node's view.
    pub fn leader(&self) -> Option<NodeId> {
        self.leader.current()
    }

    /// The digest of the whole map, hexadecimal: equal on nodes that hold the same.
    pub fn map_digest(&self) -> String {
        self.map.digest().to_string()
    }

    /// Every record held.
    pub fn map(&self) -> &Map {
        &self.map
    }

    /// An operator's key and what it may do: a root key, or one that a document that counts has.
    pub fn operator(&self, key: &KeyId) -> Option<&Holder> {
        self.trust.holder(key)
    }

    /// All operators' keys.
    pub fn operators(&self) -> impl Iterator<Item = (&KeyId, &Holder)> {
        self.trust.holders()
    }

    /// Current documents, tombstones included, by name.
    pub fn spec_items(&self) -> impl Iterator<Item = SpecItem> + '_ {
        self.trust.all_current().filter_map(|(name, place)| self.item(name, place))
    }

    /// The current version of one document, tombstones included.
    pub fn spec_item(&self, name: &SpecKey) -> Option<SpecItem> {
        self.trust.current(name).and_then(|place| self.item(name, place))
    }

    fn item(&self, name: &SpecKey, place: &RecordKey) -> Option<SpecItem> {
        let entry = self.map.get(place)?;
        let (Content::Spec(document), Record::Spec(envelope)) = (&entry.content, &entry.record) else {
            return None;
        };
        Some(SpecItem {
            key: name.clone(),
            revision: document.value().metadata.revision,
            digest: document.digest(),
            deleted: document.value().metadata.deleted,
            envelope: envelope.clone(),
        })
    }

    /// What reports are made from; `map_digest` is [`Node::map_digest`].
    pub fn view<'a>(&'a self, now: Time, map_digest: &'a str) -> View<'a> {
        View {
            cluster: &self.cluster,
            liveness: &self.liveness,
            now,
            me: self.settings.me,
            leader: self.leader(),
            range: self.settings.container_range,
            cluster_id: self.settings.cluster_id,
            cluster_name: &self.settings.cluster_name,
            map_digest,
        }
    }

    /// The names as this node answers them.
    pub fn zone(&self) -> Option<&Zone> {
        self.zone.as_ref()
    }
}
