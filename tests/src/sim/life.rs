//! One life of a cluster: it forms, everything goes wrong for a while, then nothing more does, and
//! everything must come right. All of it follows from the seed.

mod right;

use std::collections::{BTreeMap, BTreeSet};

use hivemind_core::event::{Event, Message, Scarce};
use hivemind_core::record::{Record, RecordKey};
use hivemind_spec::document::{Ancestor, Document, Role};
use hivemind_spec::dsse::Envelope;
use hivemind_spec::id::ReleaseId;
use hivemind_spec::key::SigningKey;
use hivemind_spec::problem::Code;
use hivemind_spec::workload::{Condition, Dependency, Exclusive, Job, Resources, RestartCondition, Takeover};

use super::cast::{self, KeyShape, START_MS, workload_id};
use super::trace::Trace;
use super::world::World;

/// How long a cluster may take to form on a bad network, milliseconds.
const FORMING_MS: u64 = 90_000;

/// How long everything may take to come right once the trouble is over, milliseconds: a node that
/// was refused rests for a minute, and pulls and starts back off for up to five.
const HEALING_MS: u64 = 7 * 60_000;

/// How much longer where machines are updated: one after the other, each of up to a dozen for a minute or two, and
/// for some of them the trial of a release that does not do well.
const ROLLING_OUT_MS: u64 = 25 * 60_000;

/// How long nothing may happen to containers after that, milliseconds.
const QUIET_MS: u64 = 30_000;

/// Between two troubles, milliseconds.
const PAUSE_MS: u64 = 3000;

/// How long machines are away now and then, milliseconds: longer than deletions are remembered.
const LONG_MS: u64 = 35 * cast::DAY_MS;

/// How often multicast DNS tells who is there, milliseconds.
const DISCOVERY_EVERY: usize = 5;

/// Workloads that operators push, again and again.
const NAMES: [&str; 3] = ["web", "db", "jobs"];

/// The workload on which nobody lays a hand.
const STEADY: &str = "steady";

/// Its secret, which more than half of the machines can open: the others are given keys to it.
const PASSWORD: &str = "password";

/// The workload of which each machine has one.
const EVERYWHERE: &str = "everywhere";

/// The workload that waits for its nodes.
const HOMELY: &str = "homely";

/// The workload with data, and its volume.
const KEEPER: &str = "keeper";

/// The job that is done before the trouble begins.
const HARVEST: &str = "harvest";

/// The workload of which there must never be two.
const SINGLE: &str = "single";

/// How often a push to a healthy cluster is repeated whose disk is busy.
const PATIENCE: usize = 10;

/// What a life is to be like.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// How many machines; absent: three to seven, by the seed.
    pub nodes: Option<usize>,
    /// Keep a trace.
    pub traced: bool,
    /// Print the trace as it comes.
    pub aloud: bool,
}

/// How a life went.
#[derive(Debug)]
pub struct Outcome {
    /// The promise that was broken, and how.
    pub broken: Option<String>,
    /// The hash of everything that happened, if it was traced.
    pub trace: Option<u64>,
    /// The last lines of the trace.
    pub lines: Vec<String>,
    /// Events handled.
    pub steps: u64,
    /// Pushes acknowledged.
    pub acknowledged: usize,
}

/// Lives the life of a seed.
pub fn live(seed: u64, options: &Options) -> Outcome {
    let mut life = Life::new(seed, options);
    let broken = life.live().err();
    let trace = life.world.trace.as_ref();
    Outcome {
        broken: broken.or_else(|| life.world.ledger.broken.take()),
        trace: trace.map(Trace::digest),
        lines: trace.map(|trace| trace.lines().map(str::to_owned).collect()).unwrap_or_default(),
        steps: life.world.counted.steps,
        acknowledged: life.world.ledger.acknowledged.len(),
    }
}

/// An operator's key.
struct Holder {
    name: &'static str,
    key: SigningKey,
    role: Role,
}

struct Life {
    world: World,
    /// Machines nothing happens to: more than half, or none.
    calm: BTreeSet<usize>,
    /// Machines that may not join.
    outsiders: BTreeSet<usize>,
    /// Machines that nobody reaches.
    isolated: BTreeSet<usize>,
    revoked: Option<usize>,
    /// Whether operators push releases of the operating system.
    rolls: bool,
    /// Whether the machines say something that only a later release understands.
    mixed: bool,
    keys: Vec<Holder>,
    /// The newest revision anybody signed, so that documents differ.
    revision: u64,
}

type Broken = Result<(), String>;

impl Life {
    fn new(seed: u64, options: &Options) -> Self {
        let mut world = World::new(seed);
        if options.traced || options.aloud {
            world.trace = Some(Trace::new(options.aloud));
        }
        let count = options.nodes.unwrap_or_else(|| 3 + world.dice(5));
        let mut life = Self {
            calm: BTreeSet::new(),
            outsiders: BTreeSet::new(),
            isolated: BTreeSet::new(),
            revoked: None,
            rolls: seed % 4 == 3,
            mixed: seed % 5 == 2,
            keys: vec![Holder { name: "root", key: cast::root_key(), role: Role::Admin }],
            revision: START_MS,
            world,
        };
        for _ in 0..count {
            life.world.add("t", Some(cast::token_document("t", 0..u64::MAX, None)));
        }
        if life.world.chance(50) {
            life.calm = (0..=count / 2).collect();
        }
        life.set_the_scene();
        life
    }

    fn live(&mut self) -> Broken {
        self.form()?;
        if self.mixed {
            self.say_what_is_not_understood();
        }
        self.begin_work()?;
        self.suffer();
        self.kept()?;
        self.heal();
        self.come_right()
    }

    fn kept(&self) -> Broken {
        self.world.ledger.broken.clone().map_or(Ok(()), Err)
    }

    fn count(&self) -> usize {
        self.world.machines.len()
    }

    /// How bad the network, the disks and the clocks are in this life.
    fn set_the_scene(&mut self) {
        let loss = [0, 0, 5, 20][self.world.dice(4)];
        let duplication = [0, 0, 10][self.world.dice(3)];
        let slowest_ms = [30, 60, 300][self.world.dice(3)];
        self.world.network.loss = loss;
        self.world.network.duplication = duplication;
        self.world.network.delay_ms = 2..slowest_ms;
        for index in 0..self.count() {
            let calm = self.calm.contains(&index);
            let year_ms = 365 * cast::DAY_MS as i64;
            let offset_ms = [0, 0, 0, 40, -90_000, 3 * year_ms, -(START_MS as i64)][self.world.dice(7)];
            let drift_ppm = [0, 100, -100][self.world.dice(3)];
            let flush_ms = [3..4, 1..30, 20..400][self.world.dice(3)].clone();
            let failing = [0, 0, 10][self.world.dice(3)];
            let (late_ms, stale_ms) = [(0, 0), (0, 0), (3000, 0), (0, 3000)][self.world.dice(4)];
            let has_modem = self.world.chance(40);
            let machine = &mut self.world.machines[index];
            machine.has_modem = has_modem;
            machine.clock_offset_ms = offset_ms;
            machine.drift_ppm = drift_ppm;
            machine.capacity.cpu_millis = 2000;
            machine.flush_ms = flush_ms;
            if drift_ppm < 0 {
                machine.runtime.fill_disk();
            }
            if !calm {
                machine.runtime.failing = failing;
                machine.runtime.late_ms = late_ms;
                machine.runtime.stale_ms = stale_ms;
            }
        }
    }

    fn form(&mut self) -> Broken {
        for index in 0..self.count() {
            self.world.power_on(index);
            let pause_ms = self.world.dice(500) as u64;
            self.world.run(pause_ms);
        }
        for _ in 0..FORMING_MS / 5000 {
            self.world.introduce_all();
            if self.world.run_until(5000, World::agrees) {
                return self.kept();
            }
        }
        self.kept()?;
        Err(format!("the cluster did not form within {} s", FORMING_MS / 1000))
    }

    /// Each machine says something on a topic of a later release, to the next one.
    fn say_what_is_not_understood(&mut self) {
        for index in 0..self.count() {
            let machine = &self.world.machines[index];
            let (from, address) = (machine.id, machine.address);
            let said = cast::of_later_topic(from, &machine.record_key(), b"something");
            let message = Message::Records { records: vec![said], ack: None };
            self.world.deliver((index + 1) % self.count(), Event::Received { from, address, message });
        }
    }

    /// Keys for two more operators, and the workloads that nobody touches afterwards.
    fn begin_work(&mut self) -> Broken {
        let helpers = [
            ("alice", [11; 32], Role::Admin, &[] as &'static [&'static str]),
            ("bob", [12; 32], Role::Deployer, &["default"]),
            ("ci", [13; 32], Role::Deployer, &[]),
        ];
        for (name, seed, role, namespaces) in helpers {
            let key = SigningKey::from_seed(seed);
            let revision = self.next_revision();
            let shape = KeyShape::live(role, namespaces);
            let envelope = cast::key_document(name, revision, &key, shape, &cast::root_key());
            self.push_now(0, envelope)?;
            self.keys.push(Holder { name, key, role });
        }
        let count = u32::try_from(self.count()).unwrap_or(u32::MAX);
        self.world.ledger.never_taken_over(workload_id(HOMELY));
        let revision = self.next_revision();
        let machines = self.world.machines.iter().take(self.count() / 2 + 1);
        let able = machines.map(|machine| (machine.id, machine.record_key().public())).collect();
        self.push_now(0, cast::secret(PASSWORD, revision, &able))?;
        for (name, takeover) in [(STEADY, Takeover::Majority), (HOMELY, Takeover::Never)] {
            let revision = self.next_revision();
            let envelope = cast::workload_with(name, revision, &cast::root_key(), |spec| {
                (spec.replicas, spec.takeover, spec.priority) = (count, takeover, 100);
                spec.container.resources.cpu_request_millis = Some(100);
                if name == STEADY {
                    spec.container.secrets = vec![cast::secret_mount(PASSWORD)];
                }
            });
            self.push_now(0, envelope)?;
        }
        let revision = self.next_revision();
        let everywhere = cast::workload_with(EVERYWHERE, revision, &cast::root_key(), |spec| {
            (spec.global, spec.priority) = (true, 100);
            spec.container.resources.cpu_request_millis = Some(100);
        });
        self.push_now(0, everywhere)?;
        let revision = self.next_revision();
        self.push_now(0, cast::namespace_with_devices(revision))?;
        let revision = self.next_revision();
        self.push_now(0, cast::volume(KEEPER, revision))?;
        let revision = self.next_revision();
        let keeper = cast::workload_with(KEEPER, revision, &cast::root_key(), |spec| {
            spec.priority = 100;
            spec.container.volumes = vec![cast::mount(KEEPER)];
            spec.container.resources.cpu_request_millis = Some(100);
        });
        self.push_now(0, keeper)?;
        let placed = |world: &World| {
            let runs: BTreeSet<String> = world.machines.iter().flat_map(|m| m.runs()).collect();
            runs.len() == 3 * count as usize + 1
        };
        if !self.world.run_until(HEALING_MS, placed) || !self.world.run_until(FORMING_MS, World::agrees) {
            self.kept()?;
            return Err("the first workloads never ran".to_owned());
        }
        // A machine that loses power before it has written down where data was made may make it a second time, alone
        // (decision 0094): that is told, and no life begins with it.
        let written = |world: &World| world.machines.iter().all(|machine| machine.unsynced.is_empty());
        if !self.world.run_until(HEALING_MS, written) {
            return Err("the disks never came to rest".to_owned());
        }
        self.harvest()?;
        self.begin_single()?;
        for index in &self.calm {
            let here = self.world.machines[*index].runtime.running().map(|plan| &plan.labels.replica);
            let steady = here.filter(|replica| replica.workload == workload_id(STEADY));
            self.world.ledger.undisturbed.extend(steady.map(|replica| (*index, replica.clone())));
        }
        self.kept()
    }

    /// A job that is done before the trouble begins, so that all have heard of it.
    fn harvest(&mut self) -> Broken {
        let count = u32::try_from(self.count()).unwrap_or(u32::MAX);
        let revision = self.next_revision();
        let envelope = cast::workload_with(HARVEST, revision, &cast::root_key(), |spec| {
            (spec.replicas, spec.priority) = (count, 100);
            spec.restart.condition = RestartCondition::OnFailure;
            spec.job = Some(Job { parallelism: Some(2), ..Job::default() });
            spec.container.resources.cpu_request_millis = Some(100);
        });
        self.push_now(0, envelope)?;
        for _ in 0..20 * count {
            self.world.run(1000);
            for index in 0..self.count() {
                let wall_ms = self.world.time(index).wall_ms;
                let runtime = &mut self.world.machines[index].runtime;
                let of_job = runtime.running().find(|plan| plan.labels.replica.workload.name == HARVEST);
                if let Some(container) = of_job.map(|plan| plan.id.clone()) {
                    runtime.end(&container, 0, wall_ms);
                }
            }
            let done = |node: &hivemind_core::node::Node| {
                node.cluster()
                    .workloads
                    .get(&workload_id(HARVEST))
                    .is_some_and(|w| w.completed.len() as u32 == count)
            };
            let machines = || self.world.machines.iter();
            if machines().all(|m| m.node.as_ref().is_some_and(done) && m.unsynced.is_empty()) {
                let cluster = self.world.node(0).cluster().clone();
                for ((replica, node), _) in cluster.replicas_of(&workload_id(HARVEST)) {
                    self.world.ledger.is_done(replica.clone(), *node);
                }
                return Ok(());
            }
        }
        Err("the job was never done".to_owned())
    }

    /// A workload of which there must never be two, begun while all machines are there.
    fn begin_single(&mut self) -> Broken {
        self.world.ledger.exclusive(workload_id(SINGLE));
        let since = self.next_revision();
        let voters = self.world.node(0).cluster().nodes.keys().copied().collect();
        let envelope = cast::workload_with(SINGLE, since, &cast::root_key(), |spec| {
            (spec.exclusive, spec.priority) = (Some(Exclusive { since, voters }), 100);
            spec.container.resources.cpu_request_millis = Some(100);
        });
        let runs =
            |world: &World| world.machines.iter().flat_map(|m| m.runs()).any(|name| name.contains(SINGLE));
        // Some may not be heard at this moment of a bad network.
        for _ in 0..20 {
            match self.world.try_push(0, envelope.clone()) {
                Some(Err(problem)) if problem.code == Code::Conflict => self.world.run(2000),
                Some(Err(problem)) => {
                    return Err(format!("an exclusive workload was refused: {}", problem.detail));
                }
                None => {
                    return self.kept().and(Err("a push to a healthy cluster was not answered".to_owned()));
                }
                Some(Ok(_)) if self.world.run_until(HEALING_MS, runs) => return self.kept(),
                Some(Ok(_)) => return self.kept().and(Err("the exclusive workload never ran".to_owned())),
            }
        }
        Err("an exclusive workload could not be begun".to_owned())
    }

    fn push_now(&mut self, index: usize, envelope: Envelope) -> Broken {
        let mut answer = self.world.try_push(index, envelope.clone());
        // A slow disk may have much to write: the answer says so, and whoever pushes tries again.
        for _ in 0..PATIENCE {
            if !matches!(&answer, Some(Err(problem)) if problem.code == Code::Storage) {
                break;
            }
            self.world.run(2000);
            answer = self.world.try_push(index, envelope.clone());
        }
        match answer {
            Some(Ok(_)) => self.kept(),
            Some(Err(problem)) => Err(format!("a push to a healthy cluster was refused: {}", problem.detail)),
            None => self.kept().and(Err("a push to a healthy cluster was not answered".to_owned())),
        }
    }

    fn next_revision(&mut self) -> u64 {
        self.revision += 1 + self.world.dice(3) as u64;
        self.revision
    }

    /// Everything goes wrong.
    fn suffer(&mut self) {
        for round in 0..30 + self.world.dice(30) {
            if round % DISCOVERY_EVERY == 0 {
                self.world.introduce_all();
            }
            if self.rolls && self.world.chance(8) {
                self.push_a_release();
            } else if self.world.chance(45) {
                self.push_something();
            } else {
                self.do_harm();
            }
            let pause_ms = self.world.dice(PAUSE_MS as usize) as u64;
            self.world.run(pause_ms);
            self.world.machines.iter_mut().for_each(|machine| machine.replies.clear());
            if self.world.ledger.broken.is_some() {
                return;
            }
        }
    }

    /// A machine to which things may happen, if there is one.
    fn victim(&mut self) -> Option<usize> {
        let victims: Vec<usize> = (0..self.count()).filter(|index| !self.calm.contains(index)).collect();
        (!victims.is_empty()).then(|| victims[self.world.dice(victims.len())])
    }

    fn do_harm(&mut self) {
        let Some(victim) = self.victim() else { return };
        let other = self.world.dice(self.count());
        let on = self.world.machines[victim].node.is_some();
        let harm = self.world.dice(24);
        self.world.say(&format!("harm {harm} to m{victim}, perhaps with m{other}"));
        match harm {
            20 if self.world.chance(25) => self.world.pass(LONG_MS),
            21 if on => self.update(victim),
            22 if on => self.run_short(victim),
            23 => self.world.plug_modem(victim),
            0 | 1 if on => self.world.power_off(victim),
            0..=3 => self.world.power_on(victim),
            4 if on => self.world.restart_agent(victim),
            5 | 6 if other != victim => self.world.part(victim, other),
            7 if other != victim => self.world.cut(victim, other),
            8 => self.isolate(victim),
            9 | 10 => self.reconnect(victim),
            11 => {
                let ms = 500 + self.world.dice(12_000) as u64;
                self.world.freeze(victim, ms);
            }
            12 => {
                // A leader that handles an event or two a second decides on what was seconds ago; what that does
                // to calm machines is not promised away yet.
                let worst_ms = if self.calm.is_empty() { 700 } else { 100 };
                let starved_ms = [0, 100, worst_ms][self.world.dice(3)];
                self.world.machines[victim].starved_ms = starved_ms;
            }
            13 => {
                let machine = &mut self.world.machines[victim];
                machine.disk_full = !machine.disk_full;
            }
            14 if self.world.chance(30) => self.world.damage_store(victim),
            15 => {
                let jump_ms = [-3_600_000, -5000, 5000, 400 * cast::DAY_MS as i64][self.world.dice(4)];
                self.world.machines[victim].clock_offset_ms += jump_ms;
            }
            16 => self.kill_a_container(victim),
            17 => self.attack(victim),
            18 if self.world.chance(40) => self.add_a_machine(),
            19 if self.world.chance(20) => self.revoke_a_node(victim),
            _ => {
                let plugged = self.world.machines[victim].unplugged;
                self.world.plug(victim, plugged);
            }
        }
    }

    /// A machine starts anew with a new release of its operating system.
    fn update(&mut self, victim: usize) {
        self.world.power_off(victim);
        self.world.machines[victim].on_trial = true;
        self.world.machines[victim].menu_late_ms = [1, 2000, 20_000][self.world.dice(3)];
        self.world.power_on(victim);
    }

    fn isolate(&mut self, victim: usize) {
        self.isolated.insert(victim);
        for other in (0..self.count()).filter(|other| *other != victim) {
            self.world.part(victim, other);
        }
    }

    /// Puts a machine's cables right, but for those to machines that are isolated themselves.
    fn reconnect(&mut self, victim: usize) {
        self.isolated.remove(&victim);
        let apart = &self.isolated;
        self.world.network.cut.retain(|(from, to)| {
            (*from != victim && *to != victim) || apart.contains(from) || apart.contains(to)
        });
    }

    fn kill_a_container(&mut self, victim: usize) {
        let wall_ms = self.world.time(victim).wall_ms;
        let code = u32::from(self.world.chance(50));
        let runtime = &mut self.world.machines[victim].runtime;
        let first = runtime.running().next().map(|plan| plan.id.clone());
        if let Some(container) = first {
            runtime.end(&container, code, wall_ms);
        }
    }

    fn run_short(&mut self, victim: usize) {
        let containers: Vec<_> =
            self.world.machines[victim].runtime.running().map(|plan| plan.id.clone()).collect();
        let uses = containers.into_iter().map(|id| (id, (self.world.dice(64) as u64) << 20)).collect();
        let of = [Scarce::Memory, Scarce::Processes, Scarce::Disk][self.world.dice(3)];
        self.world.deliver(victim, Event::Short { of, uses });
    }

    /// A member in the wrong hands sends what nobody with the right to it signed.
    fn attack(&mut self, victim: usize) {
        let target = self.world.dice(self.count());
        if target == victim || self.world.machines[target].node.is_none() {
            return;
        }
        let revision = self.next_revision() + 1_000_000;
        let name = NAMES[self.world.dice(NAMES.len())];
        let mut envelope = cast::workload(name, revision, 1, &cast::strangers_key());
        if self.world.chance(50) {
            // In the root key's name.
            envelope.signatures[0].keyid = cast::root_key().public().id();
        }
        let place = RecordKey::Spec(cast::workload_key(name), envelope.signatures[0].keyid);
        let (from, address) = (self.world.machines[victim].id, self.world.machines[victim].address);
        let message = Message::Records { records: vec![(place, Record::Spec(envelope))], ack: Some(1) };
        self.world.deliver(target, Event::Received { from, address, message });
    }

    fn add_a_machine(&mut self) {
        let (name, document) = match self.world.dice(3) {
            0 => ("t", Some(cast::token_document("t", 0..u64::MAX, None))),
            1 => ("old", Some(cast::token_document("old", 0..1, None))),
            _ => ("lost", None),
        };
        let index = self.world.add(name, document);
        self.world.machines[index].capacity.cpu_millis = 2000;
        if name != "t" {
            self.outsiders.insert(index);
        }
        for other in self.isolated.clone() {
            self.world.part(index, other);
        }
        self.world.power_on(index);
        self.world.introduce_all();
    }

    fn revoke_a_node(&mut self, victim: usize) {
        if self.revoked.is_some() || self.outsiders.contains(&victim) || self.count() < 4 {
            return;
        }
        let revision = self.next_revision();
        let envelope = cast::revocation(self.world.machines[victim].id, revision);
        if let Some(index) = self.somebody_on(Some(victim)) {
            self.world.begin_push(index, envelope);
            self.revoked = Some(victim);
        }
    }

    /// A machine whose agent runs, other than that one.
    fn somebody_on(&mut self, but: Option<usize>) -> Option<usize> {
        let on: Vec<usize> = (0..self.count())
            .filter(|index| self.world.machines[*index].node.is_some() && Some(*index) != but)
            .filter(|index| !self.outsiders.contains(index))
            .collect();
        (!on.is_empty()).then(|| on[self.world.dice(on.len())])
    }

    /// One of the operators pushes something, right or wrong, sometimes two at the same moment.
    fn push_something(&mut self) {
        let Some(index) = self.somebody_on(None) else { return };
        let envelope = self.something(index);
        self.world.begin_push(index, envelope);
        let Some(index) = self.somebody_on(None).filter(|_| self.world.chance(50)) else { return };
        let envelope = self.something(index);
        self.world.begin_push(index, envelope);
        if self.world.chance(50) {
            self.push_twins();
        }
    }

    /// The root key's holder pushes a release, which some machines may not do well on. From now on any machine may be
    /// started anew, calm or not.
    fn push_a_release(&mut self) {
        let Some(index) = self.somebody_on(None) else { return };
        let (number, paused) = (2 + self.world.dice(4) as u8, self.world.chance(20));
        let release = ReleaseId::of(&[number]);
        for victim in 0..self.count() {
            let unfit = self.world.chance(10);
            let machine = &mut self.world.machines[victim];
            // A machine that was well on a release stays so.
            if unfit && ![machine.release, machine.release_before].contains(&release) {
                machine.unfit.insert(release);
            }
        }
        self.world.ledger.undisturbed.clear();
        let revision = self.next_revision();
        self.world.begin_push(index, cast::release(number, revision, paused));
    }

    /// One operator in two places pushes two versions with the same revision.
    fn push_twins(&mut self) {
        let (revision, name) = (self.next_revision(), NAMES[self.world.dice(NAMES.len())]);
        for _ in 0..2 {
            let Some(index) = self.somebody_on(None) else { return };
            let envelope = self.workload(index, name, revision, &cast::root_key());
            self.world.begin_push(index, envelope);
        }
    }

    /// What somebody might sign who reads from that machine what there is.
    fn something(&mut self, index: usize) -> Envelope {
        let revision = self.next_revision();
        let name = NAMES[self.world.dice(NAMES.len())];
        let who = self.world.dice(self.keys.len());
        let key = self.keys[who].key.clone();
        match self.world.dice(20) {
            0 | 6 => cast::workload(name, revision, 1, &cast::strangers_key()),
            1 => cast::key_document("mallory", revision, &cast::strangers_key(), Self::mallory(), &key),
            2 | 3 => {
                let mut document = Document::tombstone(&cast::workload_key(name), revision);
                document.metadata.ancestors = Some(self.lineage(index, name));
                cast::sign(&document, &key)
            }
            4 => self.take_a_key_away(revision),
            // A revision from long ago.
            5 => cast::workload(name, 1 + self.world.dice(1000) as u64, 1, &key),
            _ => self.workload(index, name, revision, &key),
        }
    }

    /// The versions of a document that somebody knows of who reads it from a machine.
    fn lineage(&self, index: usize, name: &str) -> Vec<Ancestor> {
        let item = self.world.node(index).spec_item(&cast::workload_key(name));
        item.map(|item| item.lineage()).unwrap_or_default()
    }

    /// What only an admin may give.
    fn mallory() -> KeyShape {
        KeyShape::live(Role::Viewer, &[])
    }

    /// Each version runs something else, so that what runs tells which version it is of.
    fn workload(&mut self, index: usize, name: &str, revision: u64, key: &SigningKey) -> Envelope {
        let replicas = self.world.dice(6) as u32;
        let cpu = [10, 100, 400][self.world.dice(3)];
        let priority = self.world.dice(3) as i32;
        let takeover = [Takeover::Majority, Takeover::Majority, Takeover::Always][self.world.dice(3)];
        let only_scaled = self.world.chance(30);
        let asks_for_modem = self.world.chance(15);
        let ends = self.world.chance(25);
        let depends_on = self.dependency(name);
        let mut document = cast::workload_document(name, revision, |spec| {
            (spec.replicas, spec.priority, spec.takeover) = (replicas, priority, takeover);
            spec.container.resources = Resources { cpu_request_millis: Some(cpu), ..Resources::default() };
            if ends {
                spec.restart.condition = RestartCondition::OnFailure;
            }
            spec.depends_on.extend(depends_on);
            if asks_for_modem {
                spec.container.machine.devices.push(cast::modem());
            }
            if !only_scaled {
                let env = [("VERSION".to_owned(), format!("{revision}-{replicas}-{cpu}"))];
                spec.container.env = BTreeMap::from(env);
            }
        });
        document.metadata.ancestors = Some(self.lineage(index, name));
        cast::sign(&document, key)
    }

    /// What a workload of this name may wait for: one of those before it, so that they never wait for each other.
    fn dependency(&mut self, name: &str) -> Option<Dependency> {
        let before: Vec<&str> = NAMES.into_iter().take_while(|other| *other != name).collect();
        if before.is_empty() || !self.world.chance(30) {
            return None;
        }
        let workload = before[self.world.dice(before.len())].to_owned();
        let condition = [Condition::Started, Condition::Healthy][self.world.dice(2)];
        Some(Dependency { workload, condition, required: self.world.chance(50) })
    }

    /// The root key retires or revokes another.
    fn take_a_key_away(&mut self, revision: u64) -> Envelope {
        let which = 1 + self.world.dice(self.keys.len() - 1);
        let revoked = self.world.chance(50);
        let holder = &self.keys[which];
        let shape = KeyShape { role: holder.role, namespaces: &[], retired: !revoked, revoked };
        cast::key_document(holder.name, revision, &holder.key, shape, &cast::root_key())
    }

    /// The trouble is over: cables, power, disks and runtimes are as they should be.
    fn heal(&mut self) {
        self.world.say("all is well again");
        self.world.network.cut.clear();
        self.world.network.loss = 0;
        self.world.network.duplication = 0;
        self.world.network.delay_ms = 6..30;
        for index in 0..self.count() {
            let machine = &mut self.world.machines[index];
            machine.disk_full = false;
            machine.starved_ms = 0;
            machine.flush_ms = 3..4;
            machine.runtime.failing = 0;
            machine.runtime.late_ms = 0;
            machine.runtime.stale_ms = 0;
            if machine.unplugged {
                self.world.plug(index, true);
            }
            self.world.power_on(index);
        }
    }

    fn come_right(&mut self) -> Broken {
        let healing_ms = HEALING_MS + if self.rolls { ROLLING_OUT_MS } else { 0 };
        let rounds = healing_ms / 5000;
        let mut wrong = String::new();
        for _ in 0..rounds {
            self.world.introduce_all();
            self.world.run(5000);
            self.kept()?;
            match self.is_right() {
                Ok(()) => {
                    wrong.clear();
                    break;
                }
                Err(why) => wrong = why,
            }
        }
        if !wrong.is_empty() {
            return Err(format!("not right {} s after the trouble: {wrong}", healing_ms / 1000));
        }
        // What was only being waited for, the takeover of a node that was cut off, happens now.
        self.world.run(QUIET_MS);
        let before = self.stirred();
        self.world.run(QUIET_MS);
        self.kept()?;
        self.is_right().map_err(|why| format!("right, and then no more: {why}"))?;
        if self.stirred() != before {
            return Err("containers are still being started and stopped".to_owned());
        }
        let members = self.members();
        let machines: Vec<_> = members.iter().map(|index| &self.world.machines[*index]).collect();
        self.world.ledger.settle(&machines);
        self.kept()
    }

    /// Starts and stops on each member.
    fn stirred(&self) -> Vec<(usize, usize)> {
        let runtimes = self.members().into_iter().map(|index| &self.world.machines[index].runtime);
        runtimes.map(|runtime| (runtime.starts, runtime.stops)).collect()
    }

    /// Machines that must be members now: all but those that had no right to join, and one that was
    /// cut off, if the others have heard of it.
    fn members(&self) -> Vec<usize> {
        let insiders = (0..self.count()).filter(|index| !self.outsiders.contains(index));
        let (suspects, others): (Vec<_>, Vec<_>) = insiders.partition(|index| Some(*index) == self.revoked);
        let cluster = self.world.node(others[0]).cluster();
        let is_revoked = |index: &usize| {
            let node = cluster.nodes.get(&self.world.machines[*index].id);
            node.is_some_and(hivemind_core::cluster::Node::is_revoked)
        };
        let mut members = others;
        members.extend(suspects.into_iter().filter(|index| !is_revoked(index)));
        members
    }
}
