//! One whole node among members of which only the membership is real.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use hivemind_core::cluster::ContainerRange;
use hivemind_core::enrolment::ADMIT_EVERY_MS;
use hivemind_core::event::{Action, Actions, Event, Message, NodeFacts, Peer};
use hivemind_core::membership::{Identity, Membership, Outcome};
use hivemind_core::node::{Node, Settings};
use hivemind_core::overlay::vtep_mac;
use hivemind_core::record::{
    Body, Decision, Enrolment, Matter, NodeStatus, Observation, Placement, Record, RecordKey, ReplicaId,
    ReplicaStatus, Topic, WorkloadId,
};
use hivemind_core::state::encode;
use hivemind_core::statement;
use hivemind_core::time::{Hlc, Time};
use hivemind_spec::api::{Capacity, Phase};
use hivemind_spec::document::Spec;
use hivemind_spec::dsse::Envelope;
use hivemind_spec::id::{ClusterId, Digest, NodeId, TokenId};
use hivemind_spec::key::{PublicKey, SigningKey};
use hivemind_spec::workload::{Port, Protocol};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::sim::cast::{self, START_MS};
use crate::sim::runtime::Runtime;

const PORT: u16 = 7946;

/// What a machine has for its workloads: room for its own replicas and for a neighbour's.
const CAPACITY: Capacity = Capacity { cpu_millis: 64_000, memory_bytes: 256 << 30 };

/// How long a message takes, milliseconds.
const DELAY_MS: std::ops::Range<u64> = 1..10;

/// How long a replica takes to start where its image is, milliseconds.
const STARTS_IN_MS: u64 = 500;

/// After how long the transport gives up a connection over which nothing comes, milliseconds.
const IDLE_TIMEOUT_MS: u64 = 5000;

/// Who a member is.
struct Person {
    key: SigningKey,
    id: NodeId,
    address: SocketAddr,
    subnet: u16,
}

impl Person {
    fn new(number: usize) -> Self {
        let number = u16::try_from(number + 1).unwrap_or(u16::MAX);
        let [high, low] = number.to_be_bytes();
        let mut seed = [low; 32];
        seed[0] = high;
        let key = SigningKey::from_seed(seed);
        let id = NodeId::of(&cast::chain("t", &key)[0]);
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 18, high, low)), PORT);
        Self { key, id, address, subnet: number }
    }

    fn peer(&self) -> Peer {
        Peer { node: self.id, address: self.address }
    }
}

/// A member whose membership is real.
struct StandIn {
    person: Person,
    /// Absent while it is off.
    membership: Option<Membership>,
    boot: u64,
    sequence: u64,
}

impl StandIn {
    fn says(&mut self, topic: Topic, observation: Option<Observation>) -> (RecordKey, Record) {
        self.sequence += 1;
        let body = Body::Observation { boot: self.boot, sequence: self.sequence, topic, observation };
        self.signs(&body)
    }

    fn signs(&self, body: &Body) -> (RecordKey, Record) {
        let statement = statement::sign(self.person.id, &self.person.key, body);
        (statement::key(self.person.id, body), Record::Statement(statement))
    }
}

enum Happening {
    ToWhole(Event),
    ToStandIn(NodeId, NodeId, Vec<u8>),
    StandInWakes(NodeId),
    Starts(NodeId, ReplicaId),
}

/// How long it may take until everybody has met everybody. Gossip reaches nearly all at once; of a thousand, a handful
/// miss one other, and hear of it when that one asks them, by chance, within some twenty minutes.
const MEETING_MS: u64 = 1_800_000;

/// What was sent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sent {
    /// Datagrams and other messages.
    pub packets: u64,
    /// Bytes of both, as the core encodes them.
    pub bytes: u64,
    /// Those of them that are not membership's.
    pub map_bytes: u64,
}

impl Sent {
    fn add(&mut self, message: &Message) {
        self.packets += 1;
        let size = encode(message).len() as u64;
        self.bytes += size;
        self.map_bytes += if message.is_datagram() { 0 } else { size };
    }

    /// What was sent since `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            packets: self.packets - before.packets,
            bytes: self.bytes - before.bytes,
            map_bytes: self.map_bytes - before.map_bytes,
        }
    }
}

/// A step of the whole node in which it decided on placements.
#[derive(Debug, Clone, Copy)]
pub struct Placing {
    /// How long it took.
    pub took: Duration,
    /// How many workloads it decided on.
    pub workloads: usize,
}

/// The world of one whole node and its stand-ins.
pub struct Crowd {
    /// The whole node: the leader, because it has the lowest id.
    pub whole: Node,
    /// What the whole node sent.
    pub sent: Sent,
    /// What the stand-ins' memberships sent.
    pub sent_by_stand_ins: Sent,
    /// Steps in which the whole node decided on placements.
    pub placings: Vec<Placing>,
    /// How long each step of the whole node took.
    pub steps: Vec<Duration>,
    /// How long it took to check and take all records about workloads: what a newcomer does.
    pub heard_in: Duration,
    me: Person,
    others: BTreeMap<NodeId, StandIn>,
    placed: BTreeMap<WorkloadId, BTreeMap<u32, NodeId>>,
    template: BTreeMap<WorkloadId, Digest>,
    runtime: Runtime,
    now_ms: u64,
    wake_ms: Option<u64>,
    queue: BTreeMap<(u64, u64), Happening>,
    sequence: u64,
    rng: ChaCha8Rng,
}

impl Crowd {
    /// A cluster of `members`, with `workloads` of `replicas` each, all of which run: everybody has met
    /// everybody when it returns, and nothing is left to be told.
    ///
    /// # Panics
    /// When that does not come about.
    pub fn new(members: usize, workloads: usize, replicas: u32) -> Self {
        let mut crowd = Self::entered(members, workloads, replicas);
        crowd.run_until(MEETING_MS, |crowd| {
            let alive = crowd.whole.liveness().alive.len();
            let met = |other: &StandIn| other.membership.as_ref().map_or(0, |m| m.alive().len() + 1);
            alive == members && crowd.others.values().all(|other| met(other) == members)
        });
        crowd.run(120_000);
        assert_eq!(crowd.whole.leader(), Some(crowd.me.id), "the whole node leads");
        crowd
    }

    /// The same before the members have heard of each other: the whole node has met all, and holds
    /// everything.
    pub fn entered(members: usize, workloads: usize, replicas: u32) -> Self {
        let mut people: Vec<Person> = (0..members).map(Person::new).collect();
        people.sort_by_key(|person| person.id);
        let others: Vec<Person> = people.split_off(1);
        let me = people.remove(0);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let settings = settings(&me);
        let (whole, actions) = Node::new(settings, Vec::new(), time(0), rng.random());
        let stand_in =
            |person: Person| (person.id, StandIn { person, membership: None, boot: 1, sequence: 0 });
        let mut crowd = Self {
            whole,
            sent: Sent::default(),
            sent_by_stand_ins: Sent::default(),
            placings: Vec::new(),
            steps: Vec::new(),
            heard_in: Duration::ZERO,
            me,
            others: others.into_iter().map(stand_in).collect(),
            placed: BTreeMap::new(),
            template: BTreeMap::new(),
            runtime: Runtime::default(),
            now_ms: 0,
            wake_ms: None,
            queue: BTreeMap::new(),
            sequence: 0,
            rng,
        };
        crowd.act(actions);
        crowd.step(Event::Facts { facts: facts(&crowd.me) });
        crowd.all_enter();
        crowd.hear_everything(workloads, replicas);
        crowd.step(Event::Observed { inventory: crowd.runtime.inventory.clone() });
        crowd.run(1000);
        crowd
    }

    /// The whole node alone.
    pub fn into_whole(self) -> Node {
        self.whole
    }

    /// All come in by the same open token, as fast as one node admits them: what they say before that is not
    /// heard.
    fn all_enter(&mut self) {
        let ids: Vec<NodeId> = self.others.keys().copied().collect();
        for id in ids {
            self.power_on(id);
            self.run(ADMIT_EVERY_MS);
        }
    }

    fn power_on(&mut self, id: NodeId) {
        let seed = self.rng.random();
        let now = self.time();
        let introducer = self.me.peer();
        let Some(other) = self.others.get_mut(&id) else { return };
        let identity = Identity { node: id, address: other.person.address, boot: other.boot, generation: 0 };
        let mut membership = Membership::new(identity, ChaCha8Rng::seed_from_u64(seed));
        let outcome = membership.announce(now, introducer);
        other.membership = Some(membership);
        let enrolment = Observation::Enrolment(Enrolment {
            chain: cast::chain("t", &other.person.key).into_iter().map(Into::into).collect(),
            token: TokenId::of(&cast::token_ca("t")),
            enrolled_ms: START_MS + u64::from(other.person.subnet),
            subnet: Some(other.person.subnet),
        });
        let enrolment = other.says(Topic::Enrolment, Some(enrolment));
        let status = other.says(Topic::Node, Some(status(&other.person)));
        let (peer, chain) = (other.person.peer(), cast::chain("t", &other.person.key));
        self.step(Event::Connected { peer, chain });
        self.tell(id, vec![enrolment]);
        self.tell(id, vec![status]);
        self.follow(id, outcome);
    }

    /// The whole node hears of all workloads, where an earlier leader placed them, and that they run.
    fn hear_everything(&mut self, workloads: usize, replicas: u32) {
        let members: Vec<NodeId> = std::iter::once(self.me.id).chain(self.others.keys().copied()).collect();
        let Some(teller) = members.get(1).copied() else { return };
        let mut records = Vec::new();
        for number in 0..workloads {
            let (id, envelope, digest, template) = workload(number, replicas);
            let signer = cast::root_key().public().id();
            let name = cast::workload_key(&id.name);
            records.push((RecordKey::Spec(name, signer), Record::Spec(envelope)));
            let node = |slot: u32| members[(number + slot as usize * 7) % members.len()];
            let slots: BTreeMap<u32, NodeId> = (0..replicas).map(|slot| (slot, node(slot))).collect();
            let placement =
                Placement { digest: Some(digest), slots: slots.clone(), pending: BTreeMap::new() };
            let body = Body::Decision {
                clock: Hlc { wall_ms: START_MS, counter: u32::try_from(number).unwrap_or(0) },
                matter: Matter::Placement(id.clone()),
                decision: Some(Decision::Placement(placement)),
            };
            self.template.insert(id.clone(), template);
            if let Some(teller) = self.others.get(&teller) {
                records.push(teller.signs(&body));
            }
            for (slot, node) in &slots {
                records.extend(self.running(*node, &ReplicaId { workload: id.clone(), slot: *slot }));
            }
            self.placed.insert(id, slots);
        }
        let begin = Instant::now();
        self.tell(teller, records);
        self.heard_in = begin.elapsed();
    }

    fn running(&mut self, node: NodeId, replica: &ReplicaId) -> Option<(RecordKey, Record)> {
        let template = self.template.get(&replica.workload).copied()?;
        let now = self.time();
        let other = self.others.get_mut(&node)?;
        let host = u8::try_from(2 + other.sequence % 250).unwrap_or(2);
        let [high, low] = other.person.subnet.to_be_bytes();
        let status = ReplicaStatus {
            template,
            phase: Phase::Running,
            reason: String::new(),
            ip: Some(Ipv4Addr::new(10, high, low, host)),
            restarts: 0,
            since_ms: now.wall_ms,
            pull: None,
        };
        Some(other.says(Topic::Replica(replica.clone()), Some(Observation::Replica(status))))
    }

    /// A member tells the whole node records.
    fn tell(&mut self, from: NodeId, records: Vec<(RecordKey, Record)>) {
        let Some(other) = self.others.get(&from) else { return };
        let message = Message::Records { records, ack: None };
        let event = Event::Received { from, address: other.person.address, message };
        self.step(event);
    }

    /// Any member but the whole node, by number.
    pub fn other(&self, number: usize) -> NodeId {
        self.others.keys().copied().nth(number % self.others.len()).unwrap_or(self.me.id)
    }

    /// A replica of that member is started again, and the whole node hears of it.
    pub fn one_replica_changes(&mut self, node: NodeId) {
        let on = |(id, slots): (&WorkloadId, &BTreeMap<u32, NodeId>)| {
            let slot = slots.iter().find(|(_, at)| **at == node).map(|(slot, _)| *slot)?;
            Some(ReplicaId { workload: id.clone(), slot })
        };
        let replica = self.placed.iter().find_map(on);
        if let Some(record) = replica.and_then(|replica| self.running(node, &replica)) {
            self.tell(node, vec![record]);
        }
    }

    /// A member loses its power. The whole node's connection to it ends after a while.
    pub fn power_off(&mut self, node: NodeId) {
        if let Some(other) = self.others.get_mut(&node) {
            other.membership = None;
            other.boot += 1;
            self.happen(IDLE_TIMEOUT_MS, Happening::ToWhole(Event::Disconnected { node }));
        }
    }

    /// How many replicas a member is to run.
    pub fn runs_on(&self, node: NodeId) -> usize {
        self.placed.values().map(|slots| slots.values().filter(|at| **at == node).count()).sum()
    }

    /// Whether the whole node has placed all replicas of a member elsewhere, and they run.
    pub fn is_relieved(&self, node: NodeId) -> bool {
        let cluster = self.whole.cluster();
        self.placed.values().all(|slots| slots.values().all(|at| *at != node))
            && self.placed.iter().all(|(workload, slots)| {
                slots.iter().all(|(slot, at)| {
                    let replica = ReplicaId { workload: workload.clone(), slot: *slot };
                    cluster.replicas.contains_key(&(replica, *at))
                })
            })
    }

    /// The member comes back, with none of its replicas.
    pub fn return_of(&mut self, node: NodeId) {
        self.power_on(node);
        let gone: Vec<ReplicaId> = self
            .whole
            .cluster()
            .replicas
            .keys()
            .filter(|(replica, at)| {
                let placed = self.placed.get(&replica.workload).and_then(|slots| slots.get(&replica.slot));
                *at == node && placed != Some(&node)
            })
            .map(|(replica, _)| replica.clone())
            .collect();
        let Some(other) = self.others.get_mut(&node) else { return };
        let records = gone.into_iter().map(|replica| other.says(Topic::Replica(replica), None)).collect();
        self.tell(node, records);
    }

    /// Lets time pass.
    pub fn run(&mut self, ms: u64) {
        self.run_until_quietly(ms, |_| false);
    }

    /// Lets time pass until `done`, looking every half second.
    ///
    /// # Panics
    /// When it does not come to that within `ms`.
    pub fn run_until(&mut self, ms: u64, done: impl Fn(&Self) -> bool) {
        assert!(self.run_until_quietly(ms, done), "it does not come to that within {ms} ms");
    }

    fn run_until_quietly(&mut self, ms: u64, done: impl Fn(&Self) -> bool) -> bool {
        let end = self.now_ms + ms;
        let mut look_ms = self.now_ms;
        loop {
            if self.now_ms >= look_ms {
                if done(self) {
                    return true;
                }
                look_ms = self.now_ms + 500;
            }
            let next = self.queue.first_key_value().map(|((at, _), _)| *at).filter(|at| *at <= end);
            let wake = self.wake_ms.filter(|at| *at <= end);
            match (next, wake) {
                (None, None) => {
                    self.now_ms = end;
                    return done(self);
                }
                (next, Some(at)) if next.is_none_or(|next| at <= next) => {
                    self.now_ms = self.now_ms.max(at);
                    self.wake_ms = None;
                    self.step(Event::TimerFired);
                }
                _ => {
                    if let Some(((at, _), happening)) = self.queue.pop_first() {
                        self.now_ms = self.now_ms.max(at);
                        self.happens(happening);
                    }
                }
            }
        }
    }

    fn happens(&mut self, happening: Happening) {
        let now = self.time();
        match happening {
            Happening::ToWhole(event) => self.step(event),
            Happening::ToStandIn(to, from, packet) => {
                let membership = self.others.get_mut(&to).and_then(|other| other.membership.as_mut());
                if let Some(Ok(outcome)) = membership.map(|membership| membership.receive(now, from, &packet))
                {
                    self.follow(to, outcome);
                }
            }
            Happening::StandInWakes(id) => {
                let membership = self.others.get_mut(&id).and_then(|other| other.membership.as_mut());
                let due = membership.filter(|m| m.wake_at().is_some_and(|at| at <= now.mono_ms));
                if let Some(outcome) = due.map(|membership| membership.advance(now)) {
                    self.follow(id, outcome);
                }
            }
            Happening::Starts(node, replica) => {
                let on = self.others.get(&node).is_some_and(|other| other.membership.is_some());
                if let Some(record) = self.running(node, &replica).filter(|_| on) {
                    self.tell(node, vec![record]);
                }
            }
        }
    }

    /// Sends what a stand-in's membership wants sent.
    fn follow(&mut self, from: NodeId, outcome: Outcome) {
        for (to, packet) in outcome.sends {
            let message = Message::Swim(packet);
            self.sent_by_stand_ins.add(&message);
            let Message::Swim(packet) = message else { continue };
            self.carry(from, to.node, packet);
        }
        let now = self.time();
        let wake = self.others.get(&from).and_then(|other| other.membership.as_ref()?.wake_at());
        if let Some(at) = wake {
            self.happen(at.saturating_sub(now.mono_ms), Happening::StandInWakes(from));
        }
    }

    fn carry(&mut self, from: NodeId, to: NodeId, packet: Vec<u8>) {
        let delay_ms = self.rng.random_range(DELAY_MS);
        if to == self.me.id {
            let address = self.others.get(&from).map_or(self.me.address, |other| other.person.address);
            let event = Event::Received { from, address, message: Message::Swim(packet) };
            self.happen(delay_ms, Happening::ToWhole(event));
        } else {
            self.happen(delay_ms, Happening::ToStandIn(to, from, packet));
        }
    }

    fn step(&mut self, event: Event) {
        let mut out = Vec::new();
        let now = self.time();
        let begin = Instant::now();
        self.whole.step(now, event, &mut out);
        let took = begin.elapsed();
        self.steps.push(took);
        let decided = self.act(out);
        if decided > 0 {
            self.placings.push(Placing { took, workloads: decided });
        }
    }

    /// Carries out what the whole node wants done. Returns on how many workloads it decided.
    fn act(&mut self, actions: Actions) -> usize {
        let mut decided = BTreeSet::new();
        let writes = actions.iter().any(|action| matches!(action, Action::Persist { .. }));
        for action in actions {
            match action {
                // The disk is as fast as can be.
                Action::Persist { batch, .. } => {
                    self.happen(0, Happening::ToWhole(Event::Persisted { batch }));
                }
                Action::Send { to, message } => {
                    self.sent.add(&message);
                    self.receive(to, message);
                }
                Action::Runtime { operation, op } => {
                    let result = self.runtime.run(&op, self.time().wall_ms, &mut self.rng);
                    self.happen(100, Happening::ToWhole(Event::Done { operation, result }));
                    let inventory = self.runtime.inventory.clone();
                    self.happen(101, Happening::ToWhole(Event::Observed { inventory }));
                }
                Action::WakeAt { mono_ms } => self.wake_ms = Some(mono_ms.max(self.now_ms)),
                _ => {}
            }
        }
        // What it decided is in its picture; who is to run something new starts it.
        for (workload, placement) in self.whole.cluster().placements.iter().filter(|_| writes) {
            let before = self.placed.get(workload);
            if self.template.contains_key(workload) && before.is_some_and(|slots| *slots != placement.slots) {
                decided.insert(workload.clone());
            }
        }
        for workload in &decided {
            let slots =
                self.whole.cluster().placements.get(workload).map(|p| p.slots.clone()).unwrap_or_default();
            let before = self.placed.insert(workload.clone(), slots.clone()).unwrap_or_default();
            for (slot, node) in slots.into_iter().filter(|(slot, node)| before.get(slot) != Some(node)) {
                let replica = ReplicaId { workload: workload.clone(), slot };
                self.happen(STARTS_IN_MS, Happening::Starts(node, replica));
            }
        }
        decided.len()
    }

    /// A stand-in hears the whole node: of its membership all, and that its map is the same.
    fn receive(&mut self, to: Peer, message: Message) {
        if self.others.get(&to.node).is_none_or(|other| other.membership.is_none()) {
            return;
        }
        match message {
            Message::Swim(packet) => self.carry(self.me.id, to.node, packet),
            Message::Digests(digests) if digests.len() == 1 => {
                let delay_ms = self.rng.random_range(DELAY_MS);
                let equal = Message::Digests(Vec::new());
                let event = Event::Received { from: to.node, address: to.address, message: equal };
                self.happen(delay_ms, Happening::ToWhole(event));
                // It asks as often as it is asked.
                let event = Event::Received {
                    from: to.node,
                    address: to.address,
                    message: Message::Digests(digests),
                };
                self.happen(delay_ms + 1, Happening::ToWhole(event));
            }
            _ => {}
        }
    }

    fn happen(&mut self, after_ms: u64, happening: Happening) {
        self.sequence += 1;
        self.queue.insert((self.now_ms + after_ms, self.sequence), happening);
    }

    /// What all clocks show.
    pub fn time(&self) -> Time {
        time(self.now_ms)
    }
}

fn time(now_ms: u64) -> Time {
    Time { mono_ms: now_ms, wall_ms: START_MS + now_ms }
}

fn settings(me: &Person) -> Settings {
    Settings {
        me: me.id,
        chain: cast::chain("t", &me.key),
        record_key: me.key.clone(),
        boot: 1,
        subnet: None,
        cluster_id: ClusterId([7; 16]),
        cluster_name: "crowd".to_owned(),
        container_range: ContainerRange::parse("10.0.0.0/8").unwrap_or_else(|| panic!("a range")),
        root_ca: cast::ROOT.to_vec(),
        root_keys: vec![cast::root_key().public()],
        token: TokenId::of(&cast::token_ca("t")),
        token_document: Some(cast::token_document("t", 0..u64::MAX, None)),
        peer_port: PORT,
        verify_chain: cast::verify_chain,
        verify_signature: PublicKey::verifies,
    }
}

fn facts(me: &Person) -> NodeFacts {
    NodeFacts {
        hostname: format!("m{}", me.subnet),
        address: Some(me.address.ip()),
        labels: BTreeMap::new(),
        capacity: CAPACITY,
        version: "0.1.0".to_owned(),
        release: None,
        problems: Vec::new(),
    }
}

fn status(person: &Person) -> Observation {
    Observation::Node(NodeStatus {
        hostname: format!("m{}", person.subnet),
        address: person.address.ip(),
        vtep_mac: vtep_mac(&person.id),
        version: "0.1.0".to_owned(),
        release: None,
        update: None,
        labels: BTreeMap::new(),
        capacity: CAPACITY,
        problems: Vec::new(),
        started_ms: START_MS,
        outdated: false,
    })
}

/// A workload with a port: its name, document, the document's digest and its template's.
fn workload(number: usize, replicas: u32) -> (WorkloadId, Envelope, Digest, Digest) {
    let name = format!("app-{number}");
    let document = cast::workload_document(&name, 1, |spec| {
        spec.replicas = replicas;
        spec.container.ports = vec![Port { target: 80, published: None, protocol: Protocol::Tcp }];
    });
    let template = match &document.spec {
        Some(Spec::Workload(spec)) => spec.template(),
        _ => panic!("a workload"),
    };
    let envelope = cast::sign(&document, &cast::root_key());
    let digest = Digest::of(&document.to_json());
    (cast::workload_id(&name), envelope, digest, template)
}
