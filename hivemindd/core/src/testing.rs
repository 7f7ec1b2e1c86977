//! A small deterministic world for tests: whole nodes, a network that delays, reorders and loses,
//! disks that forget what was not flushed, and a container runtime that always succeeds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use hivemind_spec::api::{Accepted, Capacity};
use hivemind_spec::certificate::{CertificateError, NodeIdentity};
use hivemind_spec::document::{Document, Spec, TokenSpec};
use hivemind_spec::dsse::Envelope;
use hivemind_spec::id::{ClusterId, NodeId, TokenId};
use hivemind_spec::key::{PublicKey, SigningKey};
use hivemind_spec::problem::Problem;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::cluster::ContainerRange;
use crate::event::{
    Action, ContainerState, Event, Inventory, Message, NetworkPlan, NodeFacts, Note, Peer, RuntimeOp,
    TaskState,
};
use crate::node::{Node, Settings};
use crate::time::Time;

/// Wall time at the beginning.
pub(crate) const START_MS: u64 = 1_800_000_000_000;

/// The stand-in for the root CA of the tests' own cluster.
pub(crate) const ROOT: &[u8] = b"root of ours;";

/// The stand-in for X.509: a token CA is the root CA's bytes and more, a node CA the token CA's
/// bytes and a record key.
pub(crate) fn verify_chain(
    root: &[u8],
    node_ca: &[u8],
    token_ca: &[u8],
) -> Result<NodeIdentity, CertificateError> {
    let record_key = node_ca
        .strip_prefix(token_ca)
        .filter(|_| token_ca.starts_with(root))
        .and_then(|key| key.try_into().ok())
        .ok_or(CertificateError::OtherCluster)?;
    Ok(NodeIdentity {
        node: NodeId::of(node_ca),
        token: TokenId::of(token_ca),
        record_key: PublicKey(record_key),
    })
}

/// The operator's root key.
pub(crate) fn root_key() -> SigningKey {
    SigningKey::from_seed([200; 32])
}

/// A token CA's stand-in.
pub(crate) fn token_ca(name: &str) -> Vec<u8> {
    [ROOT, b"token ", name.as_bytes()].concat()
}

/// A token's document.
pub(crate) fn token_document(name: &str, window: std::ops::Range<u64>, max_uses: Option<u32>) -> Envelope {
    let spec = TokenSpec {
        id: TokenId::of(&token_ca(name)),
        not_before_ms: window.start,
        not_after_ms: window.end,
        max_uses,
    };
    let mut document = named(
        r#"{"apiVersion":"hivemind/v1","kind":"Token","metadata":{"name":"NAME","revision":1},
        "spec":{"id":"00000000000000000000000000000000","notBeforeMs":0,"notAfterMs":0}}"#,
        name,
    );
    document.spec = Some(Spec::Token(spec));
    Envelope::sign(&document.to_json(), &root_key())
}

/// A workload's document, signed by `key`.
pub(crate) fn workload(name: &str, revision: u64, replicas: u32, key: &SigningKey) -> Envelope {
    let mut document = named(
        r#"{"apiVersion":"hivemind/v1","kind":"Workload","metadata":{"name":"NAME","namespace":"default","revision":1},
        "spec":{"replicas":1,"container":{"image":"registry.lab:5000/nginx:1"}}}"#,
        name,
    );
    document.metadata.revision = revision;
    if let Some(Spec::Workload(spec)) = &mut document.spec {
        spec.replicas = replicas;
    }
    Envelope::sign(&document.to_json(), key)
}

/// A document from JSON in which `NAME` stands for its name.
pub(crate) fn named(json: &str, name: &str) -> Document {
    Document::parse(json.replace("NAME", name).as_bytes()).unwrap()
}

/// A machine.
pub(crate) struct Machine {
    pub(crate) id: NodeId,
    pub(crate) address: SocketAddr,
    pub(crate) node: Option<Node>,
    pub(crate) disk: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) notes: Vec<Note>,
    pub(crate) plans: Vec<NetworkPlan>,
    pub(crate) replies: BTreeMap<u64, Result<Accepted, Problem>>,
    /// What its clock is off by, milliseconds.
    pub(crate) clock_offset_ms: i64,
    /// Whether its writes fail.
    pub(crate) disk_full: bool,
    /// Whether its network cable is out: it has no address then.
    pub(crate) unplugged: bool,
    /// Messages to and from it that are lost, in percent, and how much longer the others take.
    pub(crate) bad_cable: (u32, u64),
    seed: u8,
    token: String,
    document: Option<Envelope>,
    boot: u64,
    connected: BTreeSet<usize>,
    frozen_until_ms: u64,
    inventory: Inventory,
    /// Containers started since it was made.
    pub(crate) starts: usize,
    wake_ms: Option<u64>,
}

/// How busy a world was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) steps: u64,
    pub(crate) packets: u64,
    pub(crate) messages: u64,
    pub(crate) writes: u64,
    /// Containers started.
    pub(crate) starts: u64,
}

enum Happening {
    Event(Event),
    Written(u64, Vec<(Vec<u8>, Option<Vec<u8>>)>),
    Ran(u64, RuntimeOp),
}

impl Machine {
    /// The replicas whose containers run, one entry per container.
    pub(crate) fn runs(&self) -> impl Iterator<Item = String> + '_ {
        let running = self.inventory.containers.values().filter(|c| c.task == TaskState::Running);
        running.filter_map(|c| c.labels.as_ref()).map(|labels| labels.replica.to_string())
    }
}

/// All machines and what is under way between them.
pub(crate) struct World {
    pub(crate) machines: Vec<Machine>,
    pub(crate) now_ms: u64,
    /// Messages lost, in percent.
    pub(crate) loss: u32,
    /// Pairs that cannot reach each other.
    pub(crate) cut: BTreeSet<(usize, usize)>,
    /// Steps taken, messages sent and writes made by all nodes.
    pub(crate) counted: Counted,
    rng: ChaCha8Rng,
    queue: BTreeMap<(u64, u64), (usize, u64, Happening)>,
    sequence: u64,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            machines: Vec::new(),
            now_ms: 1000,
            loss: 0,
            cut: BTreeSet::new(),
            counted: Counted::default(),
            rng: ChaCha8Rng::seed_from_u64(seed),
            queue: BTreeMap::new(),
            sequence: 0,
        }
    }

    /// A world of `count` machines with the same open token, powered on together.
    pub(crate) fn with_machines(seed: u64, count: u8) -> Self {
        let mut world = Self::new(seed);
        for _ in 0..count {
            world.add("t", Some(token_document("t", 0..u64::MAX, None)));
        }
        for index in 0..usize::from(count) {
            world.power_on(index);
        }
        world.introduce_all();
        world
    }

    /// Adds a machine that is off.
    pub(crate) fn add(&mut self, token: &str, document: Option<Envelope>) -> usize {
        let index = self.machines.len();
        let seed = u8::try_from(index).unwrap() + 1;
        let key = SigningKey::from_seed([seed; 32]);
        let chain = chain(token, &key);
        self.machines.push(Machine {
            id: NodeId::of(&chain[0]),
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, seed)), 7946),
            node: None,
            disk: BTreeMap::new(),
            notes: Vec::new(),
            plans: Vec::new(),
            replies: BTreeMap::new(),
            clock_offset_ms: 0,
            disk_full: false,
            unplugged: false,
            bad_cable: (0, 0),
            seed,
            token: token.to_owned(),
            document,
            boot: 0,
            connected: BTreeSet::new(),
            frozen_until_ms: 0,
            inventory: Inventory::default(),
            starts: 0,
            wake_ms: None,
        });
        index
    }

    pub(crate) fn power_on(&mut self, index: usize) {
        let now = self.time(index);
        let seed = self.rng.random();
        let machine = &mut self.machines[index];
        machine.boot += 1;
        let key = SigningKey::from_seed([machine.seed; 32]);
        let settings = Settings {
            me: machine.id,
            chain: chain(&machine.token, &key),
            record_key: key,
            boot: machine.boot,
            cluster_id: ClusterId([7; 16]),
            cluster_name: "test".to_owned(),
            container_range: ContainerRange::parse("10.42.0.0/16").unwrap(),
            root_ca: ROOT.to_vec(),
            root_keys: vec![root_key().public()],
            token: TokenId::of(&token_ca(&machine.token)),
            token_document: machine.document.clone(),
            peer_port: 7946,
            verify_chain,
        };
        let stored = machine.disk.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        let (node, actions) = Node::new(settings, stored, now, seed);
        machine.node = Some(node);
        machine.inventory = Inventory::default();
        self.act(index, actions);
        let facts = self.facts(index);
        self.happen(index, 10, Happening::Event(Event::Facts { facts }));
        self.happen(index, 20, Happening::Event(Event::Observed { inventory: Inventory::default() }));
    }

    /// Cuts the power: what was not flushed is lost, and nobody is told.
    pub(crate) fn power_off(&mut self, index: usize) {
        self.machines[index].node = None;
        self.machines[index].wake_ms = None;
        self.machines[index].inventory = Inventory::default();
        for other in std::mem::take(&mut self.machines[index].connected) {
            self.machines[other].connected.remove(&index);
            let node = self.machines[index].id;
            self.happen(other, 8000, Happening::Event(Event::Disconnected { node }));
        }
    }

    /// Parts two machines: packets are lost from now on, and their connection ends after its idle
    /// timeout.
    pub(crate) fn part(&mut self, a: usize, b: usize) {
        self.cut.insert((a, b));
        for (one, other) in [(a, b), (b, a)] {
            if self.machines[one].connected.remove(&other) {
                let node = self.machines[other].id;
                self.happen(one, 5000, Happening::Event(Event::Disconnected { node }));
            }
        }
    }

    /// Stops a machine for a while: nothing happens on it, and all of it happens afterwards.
    pub(crate) fn freeze(&mut self, index: usize, ms: u64) {
        self.machines[index].frozen_until_ms = self.now_ms + ms;
    }

    /// Lets everybody know where everybody may be, as mDNS would.
    pub(crate) fn introduce_all(&mut self) {
        for a in 0..self.machines.len() {
            for b in 0..self.machines.len() {
                let address = self.machines[b].address;
                if a != b {
                    self.happen(a, 50, Happening::Event(Event::Hint { address }));
                }
            }
        }
    }

    pub(crate) fn facts(&self, index: usize) -> NodeFacts {
        NodeFacts {
            hostname: format!("m{index}"),
            address: Some(self.machines[index].address.ip()).filter(|_| !self.machines[index].unplugged),
            labels: BTreeMap::new(),
            capacity: Capacity { cpu_millis: 4000, memory_bytes: 4 << 30 },
            version: "0.1.0".to_owned(),
            problems: Vec::new(),
        }
    }

    pub(crate) fn node(&self, index: usize) -> &Node {
        self.machines[index].node.as_ref().unwrap()
    }

    pub(crate) fn time(&self, index: usize) -> Time {
        let wall_ms = (START_MS + self.now_ms).saturating_add_signed(self.machines[index].clock_offset_ms);
        Time { mono_ms: self.now_ms, wall_ms }
    }

    /// Hands an event to a node now.
    pub(crate) fn tell(&mut self, index: usize, event: Event) {
        let now = self.time(index);
        let mut out = Vec::new();
        self.counted.steps += 1;
        if let Some(node) = &mut self.machines[index].node {
            node.step(now, event, &mut out);
        }
        self.act(index, out);
    }

    /// Pushes a document to a node and waits for the answer.
    pub(crate) fn push(&mut self, index: usize, envelope: Envelope) -> Result<Accepted, Box<Problem>> {
        let request = self.sequence;
        self.sequence += 1;
        self.tell(index, Event::Push { request, envelope });
        let answered = self.run_until(20_000, |world| world.machines[index].replies.contains_key(&request));
        assert!(answered, "the push was never answered");
        self.machines[index].replies.remove(&request).unwrap().map_err(Box::new)
    }

    /// The same where the node may die before it answers.
    pub(crate) fn try_push(&mut self, index: usize, envelope: Envelope) -> Option<Result<Accepted, Problem>> {
        let request = self.sequence;
        self.sequence += 1;
        self.tell(index, Event::Push { request, envelope });
        self.run_until(20_000, |world| world.machines[index].replies.contains_key(&request));
        self.machines[index].replies.remove(&request)
    }

    /// A number below `limit`, from the world's seed.
    pub(crate) fn dice(&mut self, limit: usize) -> usize {
        self.rng.random_range(0..limit)
    }

    /// Does one of the things that go wrong in the world.
    pub(crate) fn mishap(&mut self) {
        let (a, b) = (self.dice(self.machines.len()), self.dice(self.machines.len()));
        match self.dice(7) {
            0 if self.machines[a].node.is_some() => self.power_off(a),
            0 | 1 if self.machines[a].node.is_none() => self.power_on(a),
            2 => {
                self.cut.insert((a, b));
            }
            3 => {
                self.cut.retain(|pair| !pair.0.eq(&a));
            }
            4 => self.freeze(a, 4000),
            5 => self.loss = [0, 5, 30][self.dice(3)],
            _ => self.machines[a].disk_full = !self.machines[a].disk_full,
        }
    }

    /// Puts everything right again.
    pub(crate) fn heal(&mut self) {
        (self.loss, self.cut) = (0, BTreeSet::new());
        for index in 0..self.machines.len() {
            self.machines[index].disk_full = false;
            if self.machines[index].node.is_none() {
                self.power_on(index);
            }
        }
    }

    /// Lets time pass.
    pub(crate) fn run(&mut self, ms: u64) {
        self.run_until(ms, |_| false);
    }

    /// Lets time pass until `done`, at most `ms`. Returns whether it came to that.
    pub(crate) fn run_until(&mut self, ms: u64, done: impl Fn(&World) -> bool) -> bool {
        let end = self.now_ms + ms;
        loop {
            if done(self) {
                return true;
            }
            let queued = self.queue.keys().next().map(|(at, _)| *at);
            let woken = self
                .machines
                .iter()
                .enumerate()
                .filter_map(|(index, machine)| {
                    machine.wake_ms.map(|at| (at.max(machine.frozen_until_ms), index))
                })
                .min();
            match (queued, woken) {
                (Some(at), w) if w.is_none_or(|(wake, _)| at <= wake) && at <= end => {
                    self.now_ms = self.now_ms.max(at);
                    let Some((_, (index, boot, happening))) = self.queue.pop_first() else { continue };
                    let thaw = self.machines[index].frozen_until_ms;
                    if thaw > self.now_ms {
                        self.sequence += 1;
                        self.queue.insert((thaw, self.sequence), (index, boot, happening));
                        continue;
                    }
                    if self.machines[index].boot == boot && self.machines[index].node.is_some() {
                        self.happens(index, happening);
                    }
                }
                (_, Some((at, index))) if at <= end => {
                    self.now_ms = self.now_ms.max(at);
                    self.machines[index].wake_ms = None;
                    self.tell(index, Event::TimerFired);
                }
                _ => {
                    self.now_ms = end;
                    return done(self);
                }
            }
        }
    }

    /// Whether all machines that are on hold the same map and see each other alive.
    pub(crate) fn agrees(&self) -> bool {
        let on: Vec<_> = self.machines.iter().filter_map(|m| m.node.as_ref()).collect();
        on.iter().all(|node| {
            node.map_digest() == on[0].map_digest()
                && on.iter().all(|other| node.liveness().alive.contains(&other.me()))
        })
    }

    pub(crate) fn has_note(&self, index: usize, code: &str) -> bool {
        self.machines[index].notes.iter().any(|note| note.code == code)
    }

    fn happen(&mut self, index: usize, after_ms: u64, happening: Happening) {
        self.sequence += 1;
        let boot = self.machines[index].boot;
        self.queue.insert((self.now_ms + after_ms, self.sequence), (index, boot, happening));
    }

    fn happens(&mut self, index: usize, happening: Happening) {
        let event = match happening {
            Happening::Event(event) => event,
            Happening::Written(batch, _) if self.machines[index].disk_full => {
                Event::PersistFailed { batch, reason: "no space left".to_owned() }
            }
            Happening::Written(batch, writes) => {
                for (key, value) in writes {
                    match value {
                        Some(value) => self.machines[index].disk.insert(key, value),
                        None => self.machines[index].disk.remove(&key),
                    };
                }
                Event::Persisted { batch }
            }
            Happening::Ran(operation, op) => {
                self.run_op(index, op);
                let inventory = self.machines[index].inventory.clone();
                self.tell(index, Event::Done { operation, result: Ok(()) });
                Event::Observed { inventory }
            }
        };
        self.tell(index, event);
    }

    fn run_op(&mut self, index: usize, op: RuntimeOp) {
        let machine = &mut self.machines[index];
        match op {
            RuntimeOp::Pull { image } => {
                machine.inventory.images.insert(image);
            }
            RuntimeOp::Start(plan) => {
                self.counted.starts += 1;
                let state = ContainerState { labels: Some(plan.labels.clone()), task: TaskState::Running };
                machine.inventory.containers.insert(plan.id, state);
                machine.starts += 1;
            }
            RuntimeOp::Stop { container, .. } => {
                if let Some(state) = machine.inventory.containers.get_mut(&container) {
                    state.task = TaskState::Exited { code: 143, at_ms: START_MS, oom: false };
                }
            }
            RuntimeOp::Remove { container, .. } => {
                machine.inventory.containers.remove(&container);
            }
        }
    }

    fn act(&mut self, index: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Persist { batch, writes } => {
                    self.counted.writes += 1;
                    self.happen(index, 3, Happening::Written(batch, writes));
                }
                Action::Send { to, message } => {
                    self.counted.packets += u64::from(message.is_datagram());
                    self.counted.messages += u64::from(!message.is_datagram());
                    self.send(index, to, message);
                }
                Action::Connect { address } => {
                    self.connect(index, address);
                }
                Action::Refuse { node, reason } => self.refuse(index, node, reason),
                Action::Runtime { operation, op } => self.happen(index, 100, Happening::Ran(operation, op)),
                Action::Reply { request, result } => {
                    self.machines[index].replies.insert(request, result);
                }
                Action::WakeAt { mono_ms } => self.machines[index].wake_ms = Some(mono_ms),
                Action::Note(note) => self.machines[index].notes.push(note),
                Action::Network(plan) => self.machines[index].plans.push(plan),
                Action::Zone(_) | Action::HealthChecks(_) => {}
            }
        }
    }

    fn reaches(&self, a: usize, b: usize) -> bool {
        let cut = self.cut.contains(&(a, b)) || self.cut.contains(&(b, a));
        let unplugged = self.machines[a].unplugged || self.machines[b].unplugged;
        self.machines[b].node.is_some() && !cut && !unplugged
    }

    /// Connects to whoever has the address. Returns who, if anybody.
    fn connect(&mut self, from: usize, address: SocketAddr) -> Option<usize> {
        let to = self.machines.iter().position(|machine| machine.address == address)?;
        if from == to || !self.reaches(from, to) {
            return None;
        }
        if self.machines[from].connected.insert(to) {
            self.machines[to].connected.insert(from);
            for (at, other) in [(from, to), (to, from)] {
                let machine = &self.machines[other];
                let key = SigningKey::from_seed([machine.seed; 32]);
                let chain = chain(&machine.token, &key);
                let peer = Peer { node: machine.id, address: machine.address };
                self.happen(at, 5, Happening::Event(Event::Connected { peer, chain }));
            }
        }
        Some(to)
    }

    fn send(&mut self, from: usize, peer: Peer, message: Message) {
        let Some(to) = self.connect(from, peer.address) else { return };
        if self.machines[to].id != peer.node || self.rng.random_range(0..100) < self.loss {
            return;
        }
        let mut delay = self.rng.random_range(6..30);
        for end in [from, to] {
            let (loss, more) = self.machines[end].bad_cable;
            if loss > 0 && self.rng.random_range(0..100) < loss {
                if message.is_datagram() {
                    return;
                }
                // A stream loses nothing; it sends again, and is late.
                delay += 3 * more + 100;
            }
            delay += more;
        }
        let event =
            Event::Received { from: self.machines[from].id, address: self.machines[from].address, message };
        self.happen(to, delay, Happening::Event(event));
    }

    fn refuse(&mut self, from: usize, node: NodeId, reason: String) {
        let Some(to) = self.machines.iter().position(|machine| machine.id == node) else { return };
        self.machines[from].connected.remove(&to);
        self.machines[to].connected.remove(&from);
        let (sender, address) = (self.machines[from].id, self.machines[from].address);
        let message = Message::Refused { reason };
        self.happen(to, 5, Happening::Event(Event::Received { from: sender, address, message }));
        self.happen(to, 6, Happening::Event(Event::Disconnected { node: sender }));
        self.happen(from, 6, Happening::Event(Event::Disconnected { node }));
    }
}

fn chain(token: &str, key: &SigningKey) -> Vec<Vec<u8>> {
    let token = token_ca(token);
    vec![[token.as_slice(), &key.public().0].concat(), token]
}
