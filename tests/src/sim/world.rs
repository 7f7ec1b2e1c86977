//! All machines and what is under way between them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use hivemind_core::event::{Action, Actions, Event, Message, OperationId, Peer, RequestId, RuntimeOp};
use hivemind_core::node::Node;
use hivemind_core::time::Time;
use hivemind_spec::api::{Accepted, Update, UpdatePhase};
use hivemind_spec::dsse::Envelope;
use hivemind_spec::id::{NodeId, ReleaseId};
use hivemind_spec::problem::Problem;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::cast::{self, token_document};
use super::ledger::Ledger;
use super::machine::{FIRST_RELEASE, Machine};
use super::network::{Network, chance};
use super::trace::Trace;

/// How long a connection over which nothing gets through lasts, milliseconds, as in the transport.
const IDLE_TIMEOUT_MS: u64 = 5000;

/// How soon an address that was connected to is dialled again, milliseconds, as in the transport.
const REDIAL_PAUSE_MS: u64 = 1000;

/// How often the edge tells the whole inventory though nothing changed, milliseconds.
const INVENTORY_EVERY_MS: u64 = 10_000;

/// How long a push is waited for, milliseconds: the core promises an answer within 5 s.
const PUSH_PATIENCE_MS: u64 = 20_000;

/// How busy a world was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Events handled.
    pub steps: u64,
    /// Datagrams sent.
    pub packets: u64,
    /// Other messages sent.
    pub messages: u64,
    /// Batches written.
    pub writes: u64,
}

/// How long PID 1 waits for a release to do well.
const TRIAL_MS: u64 = 180_000;

enum Happening {
    Event(Event),
    Written(u64),
    Ran(OperationId, RuntimeOp),
    /// The edge tells the inventory again.
    Look,
    /// The edge looks which devices there are of those that are asked for.
    Devices,
    /// The release was written down as good.
    Good,
    /// The machine is started anew, with this release.
    Start(ReleaseId),
    /// PID 1 waits no longer for the release to do well.
    TrialEnds,
    /// A connection may have been silent for too long.
    Idle(usize),
    /// The end of a connection is noticed, unless there is another one by now.
    Lost(usize),
    Wake,
    /// PID 1 looks whether something has run for long enough. It does so whatever becomes of the agent.
    Fence,
}

/// A scheduled happening: whose, in which run of its agent, and whether it was put off already
/// because the machine has no CPU.
type Scheduled = (usize, u64, bool, Happening);

/// The world.
pub struct World {
    /// The machines, in the order they were added.
    pub machines: Vec<Machine>,
    /// Milliseconds since the beginning.
    pub now_ms: u64,
    /// The cables.
    pub network: Network,
    /// How busy it was.
    pub counted: Counted,
    /// What was promised, and whether it was kept.
    pub ledger: Ledger,
    /// What happened; only where somebody wants to know, because it takes most of the time.
    pub trace: Option<Trace>,
    rng: ChaCha8Rng,
    queue: BTreeMap<(u64, u64), Scheduled>,
    sequence: u64,
}

impl World {
    /// A world without machines.
    pub fn new(seed: u64) -> Self {
        Self {
            machines: Vec::new(),
            now_ms: 1000,
            network: Network::default(),
            counted: Counted::default(),
            ledger: Ledger::default(),
            trace: None,
            rng: ChaCha8Rng::seed_from_u64(seed),
            queue: BTreeMap::new(),
            sequence: 0,
        }
    }

    /// A world of `count` machines with the same open token, powered on together.
    pub fn with_machines(seed: u64, count: usize) -> Self {
        let mut world = Self::new(seed);
        for _ in 0..count {
            world.add("t", Some(token_document("t", 0..u64::MAX, None)));
        }
        for index in 0..count {
            world.power_on(index);
        }
        world.introduce_all();
        world
    }

    /// Adds a machine that is off.
    pub fn add(&mut self, token: &str, document: Option<Envelope>) -> usize {
        self.machines.push(Machine::new(self.machines.len(), token, document));
        self.machines.len() - 1
    }

    /// Adds a machine with a copy of another's disk, which is off.
    pub fn add_copy(&mut self, original: usize) -> usize {
        let copy = self.machines[original].copy(self.machines.len());
        self.machines.push(copy);
        self.machines.len() - 1
    }

    /// Powers a machine on, or does nothing if it is on.
    pub fn power_on(&mut self, index: usize) {
        if self.machines[index].node.is_none() {
            self.say(&format!("m{index} is powered on"));
            self.machines[index].powered(self.now_ms);
            self.start_agent(index);
        }
    }

    /// Cuts the power: what was not flushed is lost, more or less, and nobody is told.
    pub fn power_off(&mut self, index: usize) {
        self.say(&format!("m{index} loses its power"));
        self.end_agent(index);
        self.machines[index].runtime.lose_power();
        self.disconnect(index, IDLE_TIMEOUT_MS);
    }

    /// Ends a machine's connections; the others notice after that time.
    fn disconnect(&mut self, index: usize, after_ms: u64) {
        for other in std::mem::take(&mut self.machines[index].connected) {
            self.machines[other].connected.remove(&index);
            self.happen(other, after_ms, Happening::Lost(index));
        }
    }

    /// The agent crashes and is started again at once; containers go on.
    pub fn restart_agent(&mut self, index: usize) {
        self.say(&format!("the agent of m{index} crashes"));
        self.end_agent(index);
        self.disconnect(index, 5);
        self.start_agent(index);
    }

    /// A machine's store turns out to be damaged and is set aside: an empty one takes its place.
    pub fn damage_store(&mut self, index: usize) {
        self.say(&format!("the store of m{index} is damaged"));
        let was_on = self.machines[index].node.is_some();
        self.end_agent(index);
        self.disconnect(index, 5);
        self.machines[index].disk.clear();
        self.machines[index].damaged_ms = Some(self.now_ms);
        let node = self.machines[index].id;
        self.ledger.store_damaged(node);
        if was_on {
            self.start_agent(index);
        }
    }

    fn end_agent(&mut self, index: usize) {
        let rng = &mut self.rng;
        let machine = &mut self.machines[index];
        machine.node = None;
        machine.dialled_ms.clear();
        machine.wake_ms = None;
        (machine.disk_busy_ms, machine.told_ms, machine.busy_ms) = (0, 0, 0);
        let survives = rng.random_range(0..=4u64);
        // Nothing, half, or all of what was on its way to the disk.
        machine.lose_unsynced(|writes| match survives {
            0 | 1 => 0,
            2 => writes / 2,
            3 => writes.saturating_sub(1),
            _ => writes,
        });
    }

    fn start_agent(&mut self, index: usize) {
        let now = self.time(index);
        let seed = self.rng.random();
        let machine = &mut self.machines[index];
        (machine.boot, machine.started_ms) = (machine.boot + 1, self.now_ms);
        let stored = machine.disk.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        let (node, actions) = Node::new(machine.settings(), stored, now, seed);
        machine.node = Some(node);
        self.act(index, actions);
        let facts = self.facts(index);
        self.happen(index, 10, Happening::Event(Event::Facts { facts }));
        self.happen(index, 20, Happening::Look);
        if self.machines[index].on_trial && self.machines[index].release != FIRST_RELEASE {
            self.happen(index, TRIAL_MS, Happening::TrialEnds);
        }
    }

    /// Parts two machines in both directions; their connection ends after its idle timeout.
    pub fn part(&mut self, a: usize, b: usize) {
        self.cut(a, b);
        self.cut(b, a);
    }

    /// Lets nothing through from one machine to another; answers still come the other way.
    pub fn cut(&mut self, from: usize, to: usize) {
        if self.network.cut.insert((from, to)) {
            self.happen(from, IDLE_TIMEOUT_MS, Happening::Idle(to));
        }
    }

    /// Pulls a machine's cable out, or puts it in.
    pub fn plug(&mut self, index: usize, plugged: bool) {
        self.machines[index].unplugged = !plugged;
        for other in self.machines[index].connected.clone() {
            self.happen(index, IDLE_TIMEOUT_MS, Happening::Idle(other));
        }
        if self.machines[index].node.is_some() {
            let facts = self.facts(index);
            self.deliver(index, Event::Facts { facts });
        }
    }

    /// Stops a machine for a while: nothing happens on it, and all of it happens afterwards.
    pub fn freeze(&mut self, index: usize, ms: u64) {
        self.say(&format!("m{index} is frozen for {ms} ms"));
        self.machines[index].frozen_until_ms = self.now_ms + ms;
        self.happen(index, ms, Happening::Fence);
    }

    /// Lets time pass in which nothing happens: the computer that runs these machines was suspended, or the
    /// machines that are off were away for so long.
    pub fn pass(&mut self, ms: u64) {
        self.say(&format!("{} days pass", ms / cast::DAY_MS));
        self.ledger.days_pass();
        for index in 0..self.machines.len() {
            let machine = &mut self.machines[index];
            machine.passed_ms += ms;
            if machine.node.is_some() {
                machine.slept_ms += ms;
                self.happen(index, 0, Happening::Fence);
            }
        }
    }

    /// Lets everybody know where everybody may be, as mDNS would.
    pub fn introduce_all(&mut self) {
        for a in 0..self.machines.len() {
            for b in (0..self.machines.len()).filter(|b| *b != a) {
                if self.machines[b].node.is_some() && self.reaches(b, a) {
                    let address = self.machines[b].address;
                    self.happen(a, 50, Happening::Event(Event::Hint { address }));
                }
            }
        }
    }

    /// A machine's modem is plugged in, or pulled out.
    pub fn plug_modem(&mut self, index: usize) {
        let machine = &mut self.machines[index];
        machine.has_modem = !machine.has_modem;
        self.look_for_devices(index);
    }

    /// A machine sees before long which of the devices it has that its node asks for.
    fn look_for_devices(&mut self, index: usize) {
        let after_ms = self.rng.random_range(1..1500);
        self.happen(index, after_ms, Happening::Devices);
    }

    /// What the edge of a machine knows about it.
    pub fn facts(&self, index: usize) -> hivemind_core::event::NodeFacts {
        self.machines[index].facts(format!("m{index}"))
    }

    /// The node of a machine whose agent runs.
    ///
    /// # Panics
    /// When it does not.
    pub fn node(&self, index: usize) -> &Node {
        self.machines[index].node.as_ref().unwrap_or_else(|| panic!("m{index} is off"))
    }

    /// What a machine's clocks show.
    pub fn time(&self, index: usize) -> Time {
        self.machines[index].time(self.now_ms)
    }

    /// Hands an event to a node as soon as it can take it: one that is frozen takes none.
    pub fn deliver(&mut self, index: usize, event: Event) {
        self.happen(index, 0, Happening::Event(event));
    }

    /// Hands an event to a node now, whatever its state.
    pub fn tell(&mut self, index: usize, event: Event) {
        let now = self.time(index);
        let mut out = Vec::new();
        self.counted.steps += 1;
        if let Some(trace) = &mut self.trace {
            trace.event(self.now_ms, index, &event);
        }
        if let Some(node) = &mut self.machines[index].node {
            node.step(now, event, &mut out);
        }
        self.act(index, out);
    }

    /// Hands a document to a node; the answer will be among its replies.
    pub fn begin_push(&mut self, index: usize, envelope: Envelope) -> RequestId {
        let request = self.sequence;
        self.sequence += 1;
        self.ledger.asked(request, &envelope, self.now_ms);
        self.deliver(index, Event::Push { request, envelope });
        request
    }

    /// Pushes a document to a node and waits for the answer.
    ///
    /// # Errors
    /// When the node refuses it.
    ///
    /// # Panics
    /// When it does not answer in time.
    pub fn push(&mut self, index: usize, envelope: Envelope) -> Result<Accepted, Box<Problem>> {
        let answer = self.try_push(index, envelope);
        answer.unwrap_or_else(|| panic!("the push was never answered")).map_err(Box::new)
    }

    /// The same where the node may die before it answers.
    pub fn try_push(&mut self, index: usize, envelope: Envelope) -> Option<Result<Accepted, Problem>> {
        let request = self.begin_push(index, envelope);
        self.run_until(PUSH_PATIENCE_MS, |world| world.machines[index].replies.contains_key(&request));
        self.machines[index].replies.remove(&request)
    }

    /// A number below `limit`, from the world's seed.
    pub fn dice(&mut self, limit: usize) -> usize {
        self.rng.random_range(0..limit)
    }

    /// Whether what happens in so many of a hundred cases happens now.
    pub fn chance(&mut self, percent: u32) -> bool {
        chance(percent, &mut self.rng)
    }

    /// Lets time pass.
    pub fn run(&mut self, ms: u64) {
        self.run_until(ms, |_| false);
    }

    /// Lets time pass until `done`, at most `ms`. Returns whether it came to that.
    pub fn run_until(&mut self, ms: u64, done: impl Fn(&World) -> bool) -> bool {
        let end = self.now_ms + ms;
        while !done(self) {
            let next = self.queue.first_key_value().map(|((at, _), _)| *at).filter(|at| *at <= end);
            let Some(at) = next else {
                self.now_ms = end;
                return done(self);
            };
            self.now_ms = self.now_ms.max(at);
            if let Some(((_, sequence), scheduled)) = self.queue.pop_first() {
                self.take_turn(sequence, scheduled);
            }
            if self.ledger.broken.is_some() {
                return false;
            }
        }
        true
    }

    fn take_turn(&mut self, sequence: u64, (index, boot, put_off, happening): Scheduled) {
        let machine = &mut self.machines[index];
        if machine.frozen_until_ms > self.now_ms {
            // In its place among all that waits, however often the machine is frozen meanwhile: what the edge tells
            // never overtakes what it told before.
            let at = machine.frozen_until_ms;
            self.queue.insert((at, sequence), (index, boot, put_off, happening));
            return;
        }
        machine.enforce_fences(self.now_ms);
        if matches!(happening, Happening::Fence) {
            return self.ledger.nothing_exclusive_runs_twice(&self.machines, self.now_ms);
        }
        if (machine.starved_ms > 0 || machine.busy_ms > self.now_ms) && !put_off {
            // In their order, as they wait for the one thread of the agent.
            let waits_ms = self.rng.random_range(0..machine.starved_ms.max(1));
            let at = machine.busy_ms.max(self.now_ms + waits_ms);
            self.machines[index].busy_ms = at;
            return self.schedule(at, (index, boot, true, happening));
        }
        if machine.boot == boot && machine.node.is_some() {
            self.happens(index, happening);
        }
    }

    /// Whether all machines that are on hold the same map and see each other alive.
    pub fn agrees(&self) -> bool {
        let on: Vec<_> = self.machines.iter().filter_map(|m| m.node.as_ref()).collect();
        on.iter().all(|node| {
            node.map_digest() == on[0].map_digest()
                && on.iter().all(|other| node.liveness().alive.contains(&other.me()))
        })
    }

    /// Whether a node told of this, by the note's code.
    pub fn has_note(&self, index: usize, code: &str) -> bool {
        self.machines[index].notes.iter().any(|note| note.code == code)
    }

    /// Takes note of something that is done to the world.
    pub fn say(&mut self, what: &str) {
        if let Some(trace) = &mut self.trace {
            trace.say(self.now_ms, what);
        }
    }

    fn happen(&mut self, index: usize, after_ms: u64, happening: Happening) {
        let boot = self.machines[index].boot;
        self.schedule(self.now_ms + after_ms, (index, boot, false, happening));
    }

    fn schedule(&mut self, at_ms: u64, scheduled: Scheduled) {
        self.sequence += 1;
        self.queue.insert((at_ms, self.sequence), scheduled);
    }

    fn happens(&mut self, index: usize, happening: Happening) {
        match happening {
            Happening::Event(event) => self.tell(index, event),
            Happening::Written(batch) if self.machines[index].disk_full => {
                self.machines[index].unsynced.remove(&batch);
                self.tell(index, Event::PersistFailed { batch, reason: "no space left".to_owned() });
            }
            Happening::Written(batch) => {
                self.machines[index].synced(batch);
                self.tell(index, Event::Persisted { batch });
            }
            Happening::Ran(operation, op) => self.ran(index, operation, &op),
            Happening::Look => {
                self.tell_inventory(index);
                self.happen(index, INVENTORY_EVERY_MS, Happening::Look);
            }
            Happening::Devices => {
                let machine = &self.machines[index];
                let is_there = |path: &String| path == cast::MODEM && machine.has_modem;
                let found = machine.asked.iter().map(|path| (path.clone(), is_there(path))).collect();
                self.tell(index, Event::Devices { found });
            }
            Happening::Good => {
                self.machines[index].on_trial = false;
                let facts = self.facts(index);
                self.tell(index, Event::Facts { facts });
            }
            Happening::Start(release) => {
                self.say(&format!("m{index} starts release {release}"));
                self.power_off(index);
                let machine = &mut self.machines[index];
                machine.release_before = std::mem::replace(&mut machine.release, release);
                machine.on_trial = true;
                self.power_on(index);
            }
            Happening::TrialEnds if self.machines[index].on_trial => {
                self.say(&format!("m{index} goes back from its release"));
                self.power_off(index);
                let machine = &mut self.machines[index];
                let failed = std::mem::replace(&mut machine.release, machine.release_before);
                machine.failed_releases.push(failed);
                machine.on_trial = false;
                self.power_on(index);
            }
            Happening::TrialEnds => {}
            Happening::Fence => {}
            Happening::Idle(other) => self.end_silent(index, other),
            Happening::Lost(other) if self.machines[index].connected.contains(&other) => {}
            Happening::Lost(other) => {
                let node = self.machines[other].id;
                self.tell(index, Event::Disconnected { node });
            }
            Happening::Wake => {
                let due = self.machines[index].wake_ms.is_some_and(|at| at <= self.now_ms);
                if due {
                    self.machines[index].wake_ms = None;
                    self.tell(index, Event::TimerFired);
                }
            }
        }
    }

    fn ran(&mut self, index: usize, operation: OperationId, op: &RuntimeOp) {
        let wall_ms = self.time(index).wall_ms;
        let machine = &mut self.machines[index];
        let result = machine.runtime.run(op, wall_ms, &mut self.rng);
        if result.is_ok() {
            if let RuntimeOp::Remove { container, .. } = op {
                machine.fences.remove(container);
            }
            self.ledger.ran(index, machine, op);
            self.machines[index].enforce_fences(self.now_ms);
            self.ledger.nothing_exclusive_runs_twice(&self.machines, self.now_ms);
        }
        self.tell(index, Event::Done { operation, result });
        self.tell_inventory(index);
    }

    /// Tells a node what its runtime holds now, which may take a while to arrive.
    fn tell_inventory(&mut self, index: usize) {
        let runtime = &self.machines[index].runtime;
        let inventory = runtime.look();
        match runtime.stale_ms {
            0 => self.tell(index, Event::Observed { inventory }),
            stale_ms => {
                // Late, but never before an older one: the edge looks at one thing after the other.
                let takes_ms = self.rng.random_range(0..stale_ms);
                let machine = &mut self.machines[index];
                machine.told_ms = machine.told_ms.max(self.now_ms + takes_ms);
                let after_ms = machine.told_ms - self.now_ms;
                self.happen(index, after_ms, Happening::Event(Event::Observed { inventory }));
            }
        }
    }

    fn act(&mut self, index: usize, actions: Actions) {
        for action in actions {
            if let Some(trace) = &mut self.trace {
                trace.action(self.now_ms, index, &action);
            }
            match action {
                Action::Persist { batch, writes } => {
                    self.counted.writes += 1;
                    let machine = &mut self.machines[index];
                    machine.unsynced.insert(batch, writes);
                    let takes_ms = self.rng.random_range(machine.flush_ms.clone());
                    machine.disk_busy_ms = machine.disk_busy_ms.max(self.now_ms) + takes_ms;
                    let after_ms = machine.disk_busy_ms - self.now_ms;
                    self.happen(index, after_ms, Happening::Written(batch));
                }
                Action::Send { to, message } => self.send(index, to, message),
                Action::Connect { address } => {
                    self.connect(index, address);
                }
                Action::Refuse { node, reason } => self.refuse(index, node, reason),
                Action::Runtime { operation, op } => {
                    self.ledger.begins(index, &self.machines[index], &op);
                    let after_ms = self.machines[index].runtime.duration_ms(&mut self.rng);
                    self.happen(index, after_ms, Happening::Ran(operation, op));
                }
                Action::Reply { request, result } => {
                    self.ledger.answered(request, &result, &self.machines, self.now_ms);
                    self.machines[index].replies.insert(request, result);
                }
                Action::WakeAt { mono_ms } => {
                    let at = self.machines[index].world_ms(mono_ms).max(self.now_ms);
                    self.machines[index].wake_ms = Some(at);
                    self.happen(index, at - self.now_ms, Happening::Wake);
                }
                Action::Fence(fences) => {
                    for until_ms in fences.values() {
                        let at = self.machines[index].world_ms(*until_ms).max(self.now_ms);
                        self.happen(index, at - self.now_ms, Happening::Fence);
                    }
                    self.machines[index].fences.extend(fences);
                }
                Action::Note(note) => self.machines[index].notes.push(note),
                Action::Network(plan) => self.machines[index].plans.push(plan),
                Action::RememberSubnet(subnet) => self.machines[index].subnet = Some(subnet),
                Action::CallReleaseGood => {
                    self.ledger.calls_good(index, &self.machines[index], self.now_ms);
                    let after_ms = self.rng.random_range(0..self.machines[index].menu_late_ms);
                    self.happen(index, after_ms, Happening::Good);
                }
                Action::Update(order) => {
                    if let Some(order) = order {
                        self.machines[index].asked_for_release =
                            order.peers.iter().map(|peer| peer.node).collect();
                        let (release, phase) = (order.spec.release, UpdatePhase::Ready);
                        let (done_bytes, total_bytes, reason) = (1, 1, String::new());
                        let update = Update { release, phase, done_bytes, total_bytes, reason };
                        let after_ms = self.rng.random_range(1000..20_000);
                        self.happen(index, after_ms, Happening::Event(Event::Updating { update }));
                    }
                }
                Action::StartRelease(release) => self.happen(index, 1, Happening::Start(release)),
                Action::LookFor(asked) => {
                    self.machines[index].asked = asked;
                    self.look_for_devices(index);
                }
                Action::Isolate(isolation) => self.machines[index].isolation = isolation,
                Action::Zone(_) | Action::HealthChecks(_) | Action::Secrets(_) => {}
            }
        }
    }

    /// Whether anything one machine sends can reach the other.
    fn reaches(&self, from: usize, to: usize) -> bool {
        !self.network.cut.contains(&(from, to))
            && !self.machines[from].unplugged
            && !self.machines[to].unplugged
    }

    /// Connects to whoever has the address. Returns who, if anybody.
    fn connect(&mut self, from: usize, address: SocketAddr) -> Option<usize> {
        let to = self.machines.iter().position(|machine| machine.address == address)?;
        if self.machines[from].connected.contains(&to) {
            return Some(to);
        }
        let possible = self.machines[to].node.is_some() && self.reaches(from, to) && self.reaches(to, from);
        if from == to || !possible {
            return None;
        }
        let dialled_ms = self.machines[from].dialled_ms.get(&to);
        if dialled_ms.is_some_and(|at| self.now_ms < at + REDIAL_PAUSE_MS) {
            return None;
        }
        self.machines[from].dialled_ms.insert(to, self.now_ms);
        self.displace(from, to);
        self.displace(to, from);
        self.machines[from].connected.insert(to);
        self.machines[to].connected.insert(from);
        for (at, other) in [(from, to), (to, from)] {
            let machine = &self.machines[other];
            let (peer, chain) = (Peer { node: machine.id, address: machine.address }, machine.chain());
            self.happen(at, 5, Happening::Event(Event::Connected { peer, chain }));
        }
        Some(to)
    }

    /// A node has one connection to a node: that with `new` takes the place of one with a machine that
    /// has the same identity.
    fn displace(&mut self, at: usize, new: usize) {
        let twin = |other: &usize| *other != new && self.machines[*other].id == self.machines[new].id;
        if let Some(old) = self.machines[at].connected.iter().copied().find(twin) {
            self.machines[at].connected.remove(&old);
            self.machines[old].connected.remove(&at);
            self.happen(old, 5, Happening::Lost(at));
        }
    }

    /// Ends a connection over which nothing got through for long.
    fn end_silent(&mut self, a: usize, b: usize) {
        let silent = !(self.reaches(a, b) && self.reaches(b, a));
        if silent && self.machines[a].connected.remove(&b) {
            self.machines[b].connected.remove(&a);
            self.happen(a, 0, Happening::Lost(b));
            self.happen(b, 0, Happening::Lost(a));
        }
    }

    fn send(&mut self, from: usize, peer: Peer, message: Message) {
        self.counted.packets += u64::from(message.is_datagram());
        self.counted.messages += u64::from(!message.is_datagram());
        let Some(to) = self.connect(from, peer.address) else { return };
        if self.machines[to].id != peer.node || !self.reaches(from, to) {
            return;
        }
        let mut late_ms = 0;
        for end in [from, to] {
            let (loss, more_ms) = self.machines[end].bad_cable;
            if chance(loss, &mut self.rng) {
                if message.is_datagram() {
                    return;
                }
                // A stream loses nothing; it sends again, and is late.
                late_ms += 3 * more_ms + 100;
            }
            late_ms += more_ms;
        }
        let (node, address) = (self.machines[from].id, self.machines[from].address);
        for delay_ms in self.network.deliveries(from, to, &mut self.rng) {
            let event = Event::Received { from: node, address, message: message.clone() };
            self.happen(to, delay_ms + late_ms, Happening::Event(event));
        }
    }

    fn refuse(&mut self, from: usize, node: NodeId, reason: String) {
        let Some(to) = self.machines.iter().position(|machine| machine.id == node) else { return };
        self.machines[from].connected.remove(&to);
        self.machines[to].connected.remove(&from);
        let (sender, address) = (self.machines[from].id, self.machines[from].address);
        let message = Message::Refused { reason };
        self.happen(to, 5, Happening::Event(Event::Received { from: sender, address, message }));
        self.happen(to, 6, Happening::Lost(from));
        self.happen(from, 6, Happening::Lost(to));
    }
}
