//! What was promised, and whether it is kept: the promises that must hold after every event.
//!
//! The ledger knows more than any node: every document that was ever signed, who may sign what, and
//! which machine told what to whom. It never asks a node whether something is allowed.

use std::collections::{BTreeMap, BTreeSet};

use hivemind_core::event::{ContainerPlan, Note, RequestId, RuntimeOp};
use hivemind_core::node::STEADY_MS;
use hivemind_core::record::{Record, RecordKey, ReplicaId, VolumePart, WorkloadId};
use hivemind_core::state::encode;
use hivemind_spec::api::Accepted;
use hivemind_spec::document::{Ancestor, Document, Kind, MAX_ANCESTORS, Role, Spec, SpecKey};
use hivemind_spec::dsse::Envelope;
use hivemind_spec::id::{Digest, KeyId, NodeId};
use hivemind_spec::key::PublicKey;
use hivemind_spec::problem::Problem;

use super::cast;
use super::machine::Machine;

/// How long a push may wait for other holders before it is answered with fewer, milliseconds. Clocks
/// that drift make it a little less.
const ANSWER_AFTER_MS: u64 = 4900;

/// An operator's key, as everybody would see it who had heard of everything.
#[derive(Debug, Clone)]
struct Operator {
    public: PublicKey,
    role: Role,
    namespaces: Vec<String>,
    /// The document that took its power away: from then on, or altogether.
    ended_by: Option<RecordKey>,
}

/// A workload's document that somebody signed.
#[derive(Debug, Clone)]
struct Signed {
    template: Digest,
    revision: u64,
    signer: KeyId,
    /// Whether the signer's role covers it.
    rightful: bool,
}

/// A push that is not answered yet.
#[derive(Debug, Clone)]
struct Asked {
    place: RecordKey,
    revision: u64,
    /// When; none: days ago.
    at_ms: Option<u64>,
}

/// A push that was answered with success.
#[derive(Debug, Clone)]
pub struct Acknowledged {
    /// Where its document is in the map.
    pub place: RecordKey,
    /// Its revision.
    pub revision: u64,
    /// The digest of the signed bytes.
    pub digest: Digest,
    /// The node that accepted it.
    pub by: NodeId,
    /// Those that hold it and whose disks are sound.
    pub holders: BTreeSet<NodeId>,
}

/// The ledger.
#[derive(Debug)]
pub struct Ledger {
    /// The first promise that was broken, and how.
    pub broken: Option<String>,
    /// Every push that was acknowledged.
    pub acknowledged: Vec<Acknowledged>,
    /// Replicas, of a workload that nobody touches, on machines to which nothing happens: they may not
    /// end there.
    pub undisturbed: BTreeSet<(usize, ReplicaId)>,
    operators: BTreeMap<KeyId, Operator>,
    signed: BTreeMap<WorkloadId, Vec<Signed>>,
    asked: BTreeMap<RequestId, Asked>,
    /// What every document says it was made from.
    ancestors: BTreeMap<Digest, Vec<Ancestor>>,
    /// The newest version of each document of which some version that was made later cannot tell whether it was known:
    /// more came in between than a document tells of.
    untold: BTreeMap<SpecKey, u64>,
    /// Where replicas of workloads with `takeover: never` belong: where they were started first.
    homes: BTreeMap<ReplicaId, NodeId>,
    never: BTreeSet<WorkloadId>,
    /// Where data is: where a container first had it.
    data: BTreeMap<VolumePart, NodeId>,
    /// Parts that there is an order to discard.
    deletable: BTreeSet<VolumePart>,
    /// Workloads of which there must never be two.
    exclusive: BTreeSet<WorkloadId>,
    /// Replicas that are done, as all have heard, and where they ended.
    done: BTreeMap<ReplicaId, NodeId>,
    /// Nodes that lost their stores.
    forgetful: BTreeSet<NodeId>,
    /// Nodes cut off for good, as everybody would know who had heard of everything.
    cut_off: BTreeSet<NodeId>,
}

impl Default for Ledger {
    fn default() -> Self {
        let mut ledger = Self {
            broken: None,
            acknowledged: Vec::new(),
            undisturbed: BTreeSet::new(),
            operators: BTreeMap::new(),
            signed: BTreeMap::new(),
            asked: BTreeMap::new(),
            ancestors: BTreeMap::new(),
            untold: BTreeMap::new(),
            homes: BTreeMap::new(),
            never: BTreeSet::new(),
            data: BTreeMap::new(),
            deletable: BTreeSet::new(),
            exclusive: BTreeSet::new(),
            done: BTreeMap::new(),
            forgetful: BTreeSet::new(),
            cut_off: BTreeSet::new(),
        };
        let public = cast::root_key().public();
        ledger.operators.insert(
            public.id(),
            Operator { public, role: Role::Admin, namespaces: Vec::new(), ended_by: None },
        );
        ledger
    }
}

impl Ledger {
    fn must(&mut self, kept: bool, promise: &str, how: impl FnOnce() -> String) {
        if !kept && self.broken.is_none() {
            self.broken = Some(format!("{promise}: {}", how()));
        }
    }

    /// Somebody signed this, whoever may have it. Says where it belongs in the map, if anywhere.
    pub fn signed(&mut self, envelope: &Envelope) -> Option<(RecordKey, Document)> {
        let payload = envelope.payload().ok()?;
        let document = Document::parse(&payload).ok()?;
        let signer = envelope.signatures.first()?.keyid;
        let place = RecordKey::Spec(document.key(), signer);
        let rightful = self.is_rightful(envelope, &document, &signer);
        let ancestors = document.metadata.ancestors.clone().unwrap_or_default();
        if let Some(oldest) = ancestors.get(MAX_ANCESTORS - 1) {
            let untold = self.untold.entry(document.key()).or_default();
            *untold = oldest.revision.max(*untold);
        }
        self.ancestors.insert(Digest::of(&payload), ancestors);
        match &document.spec {
            Some(Spec::Workload(spec)) => {
                let id = WorkloadId {
                    namespace: document.metadata.namespace.clone(),
                    name: document.metadata.name.clone(),
                };
                let (template, revision) = (spec.template(), document.metadata.revision);
                self.signed.entry(id).or_default().push(Signed { template, revision, signer, rightful });
            }
            Some(Spec::Key(spec)) if rightful => {
                if let Ok(public) = PublicKey::from_base64(&spec.public_key) {
                    let ended_by = (spec.revoked || spec.retired).then(|| place.clone());
                    let namespaces = spec.namespaces.clone();
                    let operator = Operator { public, role: spec.role, namespaces, ended_by };
                    self.operators.insert(public.id(), operator);
                }
            }
            Some(Spec::NodeIntent(intent)) if rightful && intent.revoked => {
                self.cut_off.insert(intent.node);
            }
            _ => {}
        }
        Some((place, document))
    }

    fn is_rightful(&self, envelope: &Envelope, document: &Document, signer: &KeyId) -> bool {
        let Some(operator) = self.operators.get(signer) else { return false };
        let signature = envelope.verify(|id| self.operators.get(id).map(|operator| operator.public));
        let covers = match operator.role {
            Role::Admin => true,
            Role::Deployer => matches!(document.kind, Kind::Workload | Kind::Volume | Kind::Secret),
            Role::Viewer => false,
        };
        let here =
            operator.namespaces.is_empty() || operator.namespaces.contains(&document.metadata.namespace);
        signature.is_ok() && covers && here
    }

    /// Nobody may start replicas of this workload anywhere but where they were first.
    pub fn never_taken_over(&mut self, workload: WorkloadId) {
        self.never.insert(workload);
    }

    /// All have heard that this replica is done, which ended there.
    pub fn is_done(&mut self, replica: ReplicaId, node: NodeId) {
        self.done.insert(replica, node);
    }

    /// Somebody orders this data to be discarded.
    pub fn may_be_deleted(&mut self, part: VolumePart) {
        self.deletable.insert(part);
    }

    /// A document is being pushed.
    pub fn asked(&mut self, request: RequestId, envelope: &Envelope, now_ms: u64) {
        if let Some((place, document)) = self.signed(envelope) {
            let revision = document.metadata.revision;
            self.asked.insert(request, Asked { place, revision, at_ms: Some(now_ms) });
        }
    }

    /// A push is answered. *An acknowledged push is held, durably, by all who are said to hold it.*
    pub fn answered(
        &mut self,
        request: RequestId,
        result: &Result<Accepted, Problem>,
        machines: &[Machine],
        now_ms: u64,
    ) {
        let (Some(asked), Ok(accepted)) = (self.asked.remove(&request), result) else { return };
        let others = accepted.held_by.len().saturating_sub(1);
        let waited_ms = asked.at_ms.map_or(u64::MAX, |at_ms| now_ms - at_ms);
        self.must(
            others >= accepted.wanted_holders as usize || waited_ms >= ANSWER_AFTER_MS,
            "a push is answered when enough others hold it, or after five seconds",
            || format!("{} of {} others after {waited_ms} ms", others, accepted.wanted_holders),
        );
        let mut holders = BTreeSet::new();
        for machine in machines.iter().filter(|machine| accepted.held_by.contains(&machine.id)) {
            if machine.damaged_ms.is_some_and(|at| at >= asked.at_ms.unwrap_or(0)) {
                continue;
            }
            let held = revision_on_disk(machine, &asked.place);
            self.must(
                held.is_some_and(|held| held >= asked.revision),
                "an acknowledged push is durable on all who are said to hold it",
                || {
                    format!(
                        "revision {} of {:?}, {} has {held:?}",
                        asked.revision, asked.place, machine.address
                    )
                },
            );
            holders.insert(machine.id);
        }
        let Some(by) = accepted.held_by.first().copied() else { return };
        let (place, revision, digest) = (asked.place, asked.revision, accepted.digest);
        self.acknowledged.push(Acknowledged { place, revision, digest, by, holders });
    }

    /// Days pass. Pushes that are under way are answered as after five seconds. Who was cut off for more than
    /// a day takes itself for all there is, runs everything, and on its return either may be trimmed.
    pub fn days_pass(&mut self) {
        self.asked.values_mut().for_each(|asked| asked.at_ms = None);
        self.undisturbed.clear();
    }

    /// A node lost its store: it holds nothing any more.
    pub fn store_damaged(&mut self, node: NodeId) {
        for acknowledged in &mut self.acknowledged {
            acknowledged.holders.remove(&node);
        }
        self.forgetful.insert(node);
    }

    /// A node wants something done to its containers.
    pub fn begins(&mut self, index: usize, machine: &Machine, op: &RuntimeOp) {
        match op {
            RuntimeOp::Start(plan) => {
                self.nothing_unsigned_runs(index, machine, plan);
                self.stays_at_home(machine.id, plan);
                self.stays_with_its_data(machine.id, plan);
                self.is_not_done(index, plan);
            }
            RuntimeOp::DeleteVolume { part } => {
                let ordered = self.deletable.contains(part);
                self.must(ordered, "no data is deleted without an order", || {
                    format!("m{index} deletes {part}")
                });
            }
            RuntimeOp::RemoveImage { image } => {
                let used = machine.runtime.running().any(|plan| plan.spec.image == *image);
                self.must(!used, "no image is removed under what runs", || {
                    format!("m{index} removes {image}")
                });
            }
            RuntimeOp::Stop { container, .. } => {
                let stopped = machine.runtime.running().find(|plan| plan.id == *container);
                if let Some(plan) = stopped {
                    self.nothing_healthy_is_disturbed(index, plan);
                }
            }
            _ => {}
        }
    }

    /// A node calls its release good. *A release is good once the node has been well for long enough*: its agent has
    /// been running, and it has a network.
    pub fn calls_good(&mut self, index: usize, machine: &Machine, now_ms: u64) {
        let since_ms = now_ms - machine.started_ms;
        // Clocks that are slow by a hundredth of a percent, and rounding.
        self.must(since_ms + 10 >= STEADY_MS, "a release is good once the node has been well", || {
            format!("m{index} calls its release good {since_ms} ms after its start")
        });
    }

    /// Something was done to a machine's containers. *Capacity is never exceeded.*
    pub fn ran(&mut self, index: usize, machine: &Machine, op: &RuntimeOp) {
        let RuntimeOp::Start(plan) = op else { return };
        for (name, secret) in &plan.secrets {
            let own = machine.record_key();
            let opens = |with| secret.spec.open(&secret.name, machine.id, &own, with).is_ok();
            self.must(secret.keys.iter().any(opens), "a secret is opened where its workload runs", || {
                format!("m{index} starts {} without a key to {name}", plan.labels.replica)
            });
        }
        if self.exclusive.contains(&plan.labels.replica.workload) {
            let what = "what may not run twice has a deadline from its start on";
            self.must(machine.fences.contains_key(&plan.id), what, || {
                format!("m{index} starts {} without one", plan.labels.replica)
            });
        }
        let (mut cpu, mut memory) = (0, 0);
        for plan in machine.runtime.running() {
            cpu += plan.spec.resources.cpu_millis();
            memory += plan.spec.resources.memory_bytes();
        }
        let capacity = machine.capacity;
        self.must(
            cpu <= capacity.cpu_millis && memory <= capacity.memory_bytes,
            "capacity is never exceeded",
            || format!("m{index} runs {cpu} millis and {memory} bytes of {capacity:?}"),
        );
    }

    /// Nobody may run two instances of this workload.
    pub fn exclusive(&mut self, workload: WorkloadId) {
        self.exclusive.insert(workload);
    }

    /// *An exclusive workload never runs twice.* On a frozen machine nothing runs.
    pub fn nothing_exclusive_runs_twice(&mut self, machines: &[Machine], now_ms: u64) {
        for workload in self.exclusive.clone() {
            let running =
                machines.iter().enumerate().filter(|(_, machine)| machine.frozen_until_ms <= now_ms);
            let running: Vec<usize> = running
                .filter(|(_, machine)| {
                    let mono_ms = machine.time(now_ms).mono_ms;
                    let fenced = |plan: &ContainerPlan| {
                        machine.fences.get(&plan.id).is_some_and(|until_ms| *until_ms <= mono_ms)
                    };
                    let is_it = |plan: &ContainerPlan| plan.labels.replica.workload == workload;
                    machine.runtime.running().any(|plan| is_it(plan) && !fenced(plan))
                })
                .map(|(index, _)| index)
                .collect();
            self.must(running.len() <= 1, "an exclusive workload never runs twice", || {
                format!("{} runs on machines {running:?}", workload.name)
            });
        }
    }

    fn nothing_unsigned_runs(&mut self, index: usize, machine: &Machine, plan: &ContainerPlan) {
        let of = |signed: &&Signed| signed.template == plan.labels.template;
        let candidates =
            self.signed.get(&plan.labels.replica.workload).map(Vec::as_slice).unwrap_or_default();
        let rightful = candidates.iter().filter(of).any(|signed| {
            let end = self.operators.get(&signed.signer).and_then(|operator| operator.ended_by.as_ref());
            signed.rightful && !end.is_some_and(|place| is_known_to_end(machine, place, signed.revision))
        });
        self.must(rightful, "nothing unsigned, revoked, or outside its signer's role runs", || {
            format!("m{index} starts {} of template {}", plan.labels.replica, plan.labels.template)
        });
    }

    /// *What has ended with success, as all have heard, is not run again.* That is not promised of one of which two
    /// told, and no longer do: the leader, which was cut off, and its node, which was too or lost its store (decision
    /// 0100).
    fn is_not_done(&mut self, index: usize, plan: &ContainerPlan) {
        let ended_on = self.done.get(&plan.labels.replica);
        let silent = |node| self.cut_off.contains(node) || self.forgetful.contains(node);
        let done = ended_on.is_some_and(|node| self.cut_off.is_empty() || !silent(node));
        self.must(!done, "what has ended with success is not run again", || {
            format!("m{index} starts {}", plan.labels.replica)
        });
    }

    fn stays_at_home(&mut self, node: NodeId, plan: &ContainerPlan) {
        let replica = &plan.labels.replica;
        // One that was cut off may not know, and goes on with what it had.
        if !self.never.contains(&replica.workload) || self.cut_off.contains(&node) {
            return;
        }
        let home = *self.homes.entry(replica.clone()).or_insert(node);
        if self.cut_off.contains(&home) {
            // Its node does not come back, and each side of a partition finds another.
            return;
        }
        self.must(home == node, "takeover \"never\" is kept", || {
            format!("node {} starts {replica}, which is node {}'s", node.short(), home.short())
        });
    }

    fn stays_with_its_data(&mut self, node: NodeId, plan: &ContainerPlan) {
        // As with those that belong to their nodes.
        for part in plan.volumes.values().map(|volume| &volume.part) {
            if self.cut_off.contains(&node) {
                return;
            }
            let home = *self.data.entry(part.clone()).or_insert(node);
            let kept = home == node || self.cut_off.contains(&home);
            self.must(kept, "a replica runs where its data is", || {
                let replica = &plan.labels.replica;
                format!("node {} starts {replica}, whose data {part} is on {}", node.short(), home.short())
            });
        }
    }

    fn nothing_healthy_is_disturbed(&mut self, index: usize, plan: &ContainerPlan) {
        let disturbed = self.undisturbed.contains(&(index, plan.labels.replica.clone()));
        self.must(!disturbed, "no replica of a healthy node moves because of others", || {
            format!("m{index} stops {}", plan.labels.replica)
        });
    }

    /// *The operator whose version lost is told*, and nobody else.
    fn who_lost_is_told(&mut self, machines: &[&Machine]) {
        let superseded: BTreeSet<Digest> =
            self.ancestors.values().flatten().map(|ancestor| ancestor.digest).collect();
        let mut wrong = None;
        for push in &self.acknowledged {
            let Some(machine) = machines.iter().find(|machine| machine.id == push.by) else { continue };
            let (RecordKey::Spec(name, signer), Some(node)) = (&push.place, &machine.node) else { continue };
            let current = node.spec_item(name).filter(|_| name.kind == Kind::Workload);
            let Some(current) = current else { continue };
            let text = push.digest.to_string();
            let told =
                |note: &&Note| note.code == "version-overtaken" && note.text.contains(&format!("({text})"));
            let told = machine.notes.iter().any(|note| told(&note));
            let stands = current.digest == push.digest || current.revision < push.revision;
            let ended = self.operators.get(signer).is_some_and(|operator| operator.ended_by.is_some());
            // More versions came in between than a document tells of, when it was found; or it was an old one when it came.
            let untold = self.untold.get(name).is_some_and(|untold| push.revision <= *untold);
            let untold = untold || push.revision < cast::START_MS;
            let lost = !stands && !superseded.contains(&push.digest) && !ended && !untold;
            if lost && !told && push.holders.contains(&push.by) {
                wrong = Some(format!(
                    "{name} revision {} lost, and {} did not say so",
                    push.revision, machine.address
                ));
            }
        }
        let by =
            |name: &SpecKey, of: &Digest| format!("{name}: {of} was known to who signed what replaced it");
        for (name, overtaken) in
            machines.iter().filter_map(|m| m.node.as_ref()).flat_map(|n| &n.cluster().overtaken)
        {
            if self.descends(&overtaken.by, &overtaken.version.digest) {
                wrong = Some(by(name, &overtaken.version.digest));
            }
        }
        self.must(wrong.is_none(), "the operator whose version lost is told", || wrong.unwrap_or_default());
    }

    /// Whether a document was made from another, over however many steps.
    fn descends(&self, document: &Digest, from: &Digest) -> bool {
        let mut seen = BTreeSet::new();
        let mut open = vec![*document];
        while let Some(next) = open.pop() {
            if next == *from {
                return true;
            }
            if seen.insert(next) {
                open.extend(self.ancestors.get(&next).into_iter().flatten().map(|ancestor| ancestor.digest));
            }
        }
        false
    }

    /// What must be so once all trouble is over and all nodes agree: *an acknowledged push is never
    /// lost while one of its holders lives.*
    pub fn settle(&mut self, machines: &[&Machine]) {
        self.who_lost_is_told(machines);
        let acknowledged = std::mem::take(&mut self.acknowledged);
        let lives = |push: &&Acknowledged| machines.iter().any(|machine| push.holders.contains(&machine.id));
        for push in acknowledged.iter().filter(lives) {
            for machine in machines {
                let held =
                    machine.node.as_ref().and_then(|node| revision_of(&node.map().get(&push.place)?.record));
                let forgotten = machine.node.as_ref().map(|node| node.cluster().forgotten.until_revision);
                // A deletion that all heard of, and what it hid, are forgotten after a month.
                let deleted = held.is_none() && forgotten >= Some(push.revision);
                self.must(
                    held.is_some_and(|held| held >= push.revision) || deleted,
                    "an acknowledged push is never lost while one of its holders lives",
                    || format!("{:?}: revision {} was lost; {held:?} is held", push.place, push.revision),
                );
            }
        }
        self.acknowledged = acknowledged;
    }
}

/// Whether what a node holds there ends a key before it signed something of that revision. Another
/// version of the same document need not.
fn is_known_to_end(machine: &Machine, place: &RecordKey, revision: u64) -> bool {
    let record = machine.node.as_ref().and_then(|node| node.map().get(place)).map(|entry| &entry.record);
    let Some(Record::Spec(envelope)) = record else { return false };
    let document = envelope.payload().ok().and_then(|payload| Document::parse(&payload).ok());
    document.is_some_and(|document| match document.spec {
        Some(Spec::Key(spec)) => spec.revoked || spec.retired && revision >= document.metadata.revision,
        _ => false,
    })
}

fn revision_on_disk(machine: &Machine, place: &RecordKey) -> Option<u64> {
    let key = [b"r".as_slice(), &encode(place)].concat();
    revision_of(&postcard::from_bytes(machine.disk.get(&key)?).ok()?)
}

fn revision_of(record: &Record) -> Option<u64> {
    let Record::Spec(envelope) = record else { return None };
    let document = Document::parse(&envelope.payload().ok()?).ok()?;
    Some(document.metadata.revision)
}
