//! The life of this node's replicas: compares what is wanted with what the runtime holds, and says
//! which operations come next. Levels, not edges: everything is derived again each time.
//!
//! ```text
//!              image absent        image there             task runs
//!   Assigned ---------------> Pulling -----> Starting -----------------> Running
//!      ^                        |  ^            |  ^                     |     |
//!      |            pull failed v  | later      v  | later        ended  |     | health check
//!      |                      Backoff         Backoff <------------------+     v failed
//!      |                                        |  ^                        Unhealthy
//!      | another template         policy says   v  |  stopped                  |
//!      +------------------- Completed / Failed     +---------------------------+
//! ```
//!
//! - A running container of the wanted template is adopted, whoever started it; its labels carry
//!   what must survive a restart of the agent.
//! - A container of another template goes on until the new image is there; then it is stopped and
//!   removed before the new one starts.
//! - A container without a task (half made, or lost in a power cut) is removed and made anew; that
//!   is not a failure of the container.
//!
//! It will not move a replica: which replicas are wanted here is the scheduler's.

mod address;
mod garbage;
mod health;
mod life;
mod observed;
mod parts;
mod plan;
mod pressure;
mod pull;
mod room;
#[cfg(test)]
mod tests;

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};

use hivemind_spec::api::{Capacity, Phase, PullProgress};
use hivemind_spec::id::{Digest, hex};
use hivemind_spec::workload::RestartCondition;

use crate::cluster::Workload;
use crate::event::{
    ContainerId, ContainerLabels, ContainerPlan, ContainerState, Inventory, OVERLAY_MTU, OperationError,
    OperationId, RuntimeOp, Scarce, TaskState, VolumeState,
};
use crate::lease::{STOP_AHEAD_MS, Standing as Lease};
use crate::mutation::{Mutation, is_on};
use crate::record::{GivenImage, ReplicaId, ReplicaStatus, VolumePart, WorkloadId};
use crate::time::Time;
use crate::volume::Order;

use garbage::Garbage;
use health::Health;
pub use life::exit_code;
use life::{Life, Next, StopCause};
use observed::Observed;
pub use plan::{Here, Plan};
use pull::Pulls;

/// Starts at once. One start spends about half its time waiting (for containerd, for the kernel's
/// namespaces and cgroups), so four keep two emulated cores busy; more would delay them all, and
/// the running containers too.
const MAX_STARTS: usize = 4;

/// Stops at once: they mostly wait for the container's own shutdown.
const MAX_STOPS: usize = 32;

/// Removals at once: each deletes files, and the disk has its limits.
const MAX_REMOVALS: usize = 4;

/// First delay before a stop or removal that failed is tried again, milliseconds; doubles up to
/// [`life::MAX_DELAY_MS`].
const CLEANUP_RETRY_MS: u64 = 1000;

/// Exit code of what was killed.
const KILLED: u32 = 137;

/// Grace of a container whose document is no longer known, milliseconds: the documents' default.
const UNKNOWN_GRACE_MS: u64 = 10_000;

/// The longest shutdown of a replica whose lease ends, milliseconds: it is over before PID 1 kills it.
const LAST_GRACE_MS: u64 = STOP_AHEAD_MS - 1000;

/// What a replica is given of a kind, or why it cannot be given it.
fn usable<T: Clone>(
    found: Option<&Result<BTreeMap<String, T>, String>>,
) -> (BTreeMap<String, T>, Option<String>) {
    match found {
        None => Default::default(),
        Some(Ok(all)) => (all.clone(), None),
        Some(Err(reason)) => (BTreeMap::new(), Some(reason.clone())),
    }
}

/// What a replica sets aside of its node.
fn asks(workload: &Workload) -> Capacity {
    let resources = &workload.spec.container.resources;
    Capacity { cpu_millis: resources.cpu_millis(), memory_bytes: resources.memory_bytes() }
}

/// Names the container of a replica running a template.
pub fn container_id(replica: &ReplicaId, template: &Digest) -> ContainerId {
    let hash = Digest::of(format!("{replica}\n{template}").as_bytes());
    ContainerId(format!("hm-{}", hex(&hash.0[..8])))
}

/// An operation the edge is busy with.
#[derive(Debug, Clone, PartialEq, Eq)]
enum InFlight {
    Pull { image: String },
    RemoveImage { image: String },
    Start { container: ContainerId, labels: ContainerLabels, volumes: Vec<VolumePart>, since_wall_ms: u64 },
    Stop { container: ContainerId },
    Remove { container: ContainerId },
    Volume { part: VolumePart, order: Order },
}

impl InFlight {
    fn container(&self) -> Option<&ContainerId> {
        match self {
            Self::Pull { .. } | Self::RemoveImage { .. } | Self::Volume { .. } => None,
            Self::Start { container, .. } | Self::Stop { container } | Self::Remove { container } => {
                Some(container)
            }
        }
    }
}

/// A stop or removal that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Trouble {
    failures: u32,
    retry_at_ms: u64,
    text: String,
}

/// How to stop a container.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stopping {
    signal: Option<String>,
    grace_ms: u64,
    makes_room: bool,
}

/// Where a replica is, before it is put into a status.
struct Standing {
    phase: Phase,
    reason: String,
    pull: Option<PullProgress>,
    /// The container it speaks of, when that is not one of the wanted template.
    other: Option<ContainerLabels>,
}

impl Standing {
    fn new(phase: Phase, reason: impl Into<String>) -> Self {
        Self { phase, reason: reason.into(), pull: None, other: None }
    }
}

/// The replicas of this node.
#[derive(Debug, Clone, Default)]
pub struct Replicas {
    /// What this node said before its agent restarted.
    previous: BTreeMap<ReplicaId, ReplicaStatus>,
    observed: Observed,
    operations: BTreeMap<OperationId, InFlight>,
    last_operation: OperationId,
    pulls: Pulls,
    garbage: Garbage,
    lives: BTreeMap<ReplicaId, Life>,
    health: BTreeMap<ContainerId, Health>,
    trouble: BTreeMap<ContainerId, Trouble>,
    stopping: BTreeMap<ContainerId, Stopping>,
    failed_orders: parts::Failed,
    /// What was short, and what each container used of it, until that was looked at.
    shortage: Option<(Scarce, BTreeMap<ContainerId, u64>)>,
    /// Containers that make room, and why it is they, until they have ended.
    evicted: BTreeMap<ContainerId, String>,
    said: BTreeMap<ReplicaId, ReplicaStatus>,
}

impl Replicas {
    /// Begins with what this node said about its replicas before the agent restarted (its own
    /// replica observations in the map), so that counts go on and what ended stays ended.
    pub fn new(previous: &BTreeMap<ReplicaId, ReplicaStatus>) -> Self {
        Self { previous: previous.clone(), said: previous.clone(), ..Self::default() }
    }

    /// Takes note of what the runtime holds ([`crate::event::Event::Observed`]).
    pub fn observed(&mut self, now: Time, inventory: Inventory) {
        self.observed.update(now, inventory);
    }

    /// Takes note of an operation's end ([`crate::event::Event::Done`]).
    pub fn done(&mut self, now: Time, operation: OperationId, result: Result<(), OperationError>) {
        match (self.operations.remove(&operation), result) {
            (None, _) => {}
            (Some(InFlight::Pull { image }), Ok(())) => {
                self.pulls.forget(&image);
                self.observed.expect_image(image);
            }
            (Some(InFlight::Volume { part, order }), result) => {
                self.tended(now, part, order, result.is_err());
            }
            (Some(InFlight::Pull { image }), Err(error)) => self.pulls.failed(now, &image, error),
            (Some(InFlight::RemoveImage { image }), Ok(())) => self.observed.expect_no_image(now, image),
            (Some(InFlight::RemoveImage { image }), Err(_)) => self.garbage.stays(now, &image),
            (Some(InFlight::Start { container, labels, volumes, since_wall_ms }), Ok(())) => {
                self.observed.expect_volumes(now, volumes);
                self.observed.expect_running(now, container, labels, since_wall_ms);
            }
            (Some(InFlight::Start { labels, .. }), Err(error)) => {
                if let Some(life) = self.lives.get_mut(&labels.replica) {
                    life.start_failed(now, &labels, error);
                }
            }
            (Some(InFlight::Stop { container }), Ok(())) => {
                self.trouble.remove(&container);
                self.observed.expect_stopped(now, container);
            }
            (Some(InFlight::Remove { container }), Ok(())) => {
                self.trouble.remove(&container);
                self.observed.expect_gone(now, container);
            }
            (Some(InFlight::Stop { container } | InFlight::Remove { container }), Err(error)) => {
                let failures = self.trouble.get(&container).map_or(0, |trouble| trouble.failures);
                let retry_at_ms = now.mono_ms.saturating_add(life::delay_ms(CLEANUP_RETRY_MS, failures));
                let trouble = Trouble { failures: failures.saturating_add(1), retry_at_ms, text: error.text };
                self.trouble.insert(container, trouble);
            }
        }
    }

    /// Takes note of a pull's progress ([`crate::event::Event::PullProgressed`]).
    pub fn pull_progressed(&mut self, operation: OperationId, progress: PullProgress) {
        if let Some(InFlight::Pull { image }) = self.operations.get(&operation) {
            self.pulls.progressed(image, progress);
        }
    }

    /// Takes note of a health check ([`crate::event::Event::HealthChecked`]).
    pub fn health_checked(&mut self, now: Time, container: &ContainerId, healthy: bool, detail: &str) {
        if let Some(health) = self.health.get_mut(container) {
            health.checked(now, healthy, detail);
        }
    }

    /// Compares what is wanted here ([`crate::cluster::Cluster::assignments`]) with what is, and
    /// says what to do. Does nothing before the first [`Replicas::observed`]. Call after every
    /// event and at [`Plan::wake_at_ms`]; an operation is handed out once.
    pub fn plan(&mut self, now: Time, wanted: &BTreeMap<ReplicaId, &Workload>, node: Here<'_>) -> Plan {
        let mut plan = Plan::default();
        if !self.observed.is_known() {
            return plan;
        }
        self.forget(wanted);
        self.relieve(wanted);
        let mut standings = self.dispose_unwanted(now, wanted, &mut plan);
        for (replica, workload) in wanted {
            let standing = self.advance(now, replica, workload, node, &mut plan);
            standings.insert(replica.clone(), standing);
        }
        self.tend_volumes(now, node.orders, wanted, &mut plan);
        self.collect_garbage(now, wanted, node, &mut plan);
        self.pulls.forget_refused();
        for (replica, standing) in standings {
            let status = self.status(now, &replica, wanted.get(&replica).copied(), standing);
            plan.statuses.insert(replica, status);
        }
        self.said = plan.statuses.clone();
        plan
    }

    /// The workloads of which anything is here, or is about to be.
    pub fn workloads_here(&self) -> BTreeSet<WorkloadId> {
        self.replicas_here().map(|replica| replica.workload.clone()).collect()
    }

    /// The replicas of which a container is here, or is about to be.
    fn replicas_here(&self) -> impl Iterator<Item = &ReplicaId> {
        self.containers_here().map(|labels| &labels.replica)
    }

    /// What the containers are that are here, or are about to be.
    fn containers_here(&self) -> impl Iterator<Item = &ContainerLabels> {
        let held = self.observed.inventory().containers.values().filter_map(|state| state.labels.as_ref());
        let starting = self.operations.values().filter_map(|op| match op {
            InFlight::Start { labels, .. } => Some(labels),
            _ => None,
        });
        held.chain(starting)
    }

    /// The parts of volumes that are here.
    pub fn volumes(&self) -> &BTreeMap<VolumePart, VolumeState> {
        &self.observed.inventory().volumes
    }

    /// The images that this node was given.
    pub fn given_images(&self) -> &BTreeMap<String, GivenImage> {
        &self.observed.inventory().given
    }

    /// Whether a container of a replica runs here, as far as is known.
    pub fn runs(&self, replica: &ReplicaId) -> bool {
        self.observed.inventory().containers.values().any(|state| {
            state.task == TaskState::Running
                && state.labels.as_ref().is_some_and(|labels| labels.replica == *replica)
        })
    }

    /// Drops memories of what neither exists nor is wanted.
    fn forget(&mut self, wanted: &BTreeMap<ReplicaId, &Workload>) {
        let containers = &self.observed.inventory().containers;
        let here: BTreeSet<&ReplicaId> =
            containers.values().filter_map(|state| Some(&state.labels.as_ref()?.replica)).collect();
        self.lives.retain(|replica, _| wanted.contains_key(replica) || here.contains(replica));
        self.previous.retain(|replica, _| wanted.contains_key(replica));
        self.trouble.retain(|id, _| containers.contains_key(id));
        self.health.retain(|id, _| containers.get(id).is_some_and(|state| state.task == TaskState::Running));
        // Each name is a hash; as a rule all containers are there, and none is needed.
        let ids: LazyCell<BTreeSet<ContainerId>, _> = LazyCell::new(|| {
            wanted.iter().map(|(replica, workload)| container_id(replica, &workload.template)).collect()
        });
        self.stopping.retain(|id, _| containers.contains_key(id) || ids.contains(id));
        let images = pull::images(wanted.values().copied());
        self.pulls.retain(|image| images.contains(image));
    }

    /// Stops and removes containers of replicas that are not wanted here, and unreadable ones.
    fn dispose_unwanted(
        &mut self,
        now: Time,
        wanted: &BTreeMap<ReplicaId, &Workload>,
        plan: &mut Plan,
    ) -> BTreeMap<ReplicaId, Standing> {
        let unwanted: Vec<(ContainerId, ContainerState)> = self
            .observed
            .inventory()
            .containers
            .iter()
            .filter(|(_, state)| {
                state.labels.as_ref().is_none_or(|labels| !wanted.contains_key(&labels.replica))
            })
            .map(|(id, state)| (id.clone(), state.clone()))
            .collect();
        let mut standings = BTreeMap::new();
        if is_on(Mutation::NothingIsTrimmed) {
            return standings;
        }
        for (id, state) in unwanted {
            let trouble = self.dispose(now, &id, &state, true, plan);
            if let Some(labels) = state.labels {
                let reason = trouble.unwrap_or_else(|| "no longer wanted here".to_owned());
                let standing = Standing::new(Phase::Stopping, reason);
                standings.insert(labels.replica.clone(), Standing { other: Some(labels), ..standing });
            }
        }
        standings
    }

    /// Takes the next step towards having no container: stop it if it runs, else remove it.
    /// Returns what went wrong the last time.
    fn dispose(
        &mut self,
        now: Time,
        id: &ContainerId,
        state: &ContainerState,
        logs: bool,
        plan: &mut Plan,
    ) -> Option<String> {
        let trouble = self.trouble.get(id).cloned();
        let waits = trouble.as_ref().filter(|trouble| now.mono_ms < trouble.retry_at_ms);
        if let Some(trouble) = waits {
            plan.wake_at(trouble.retry_at_ms);
        } else if self.in_flight_on(id).is_none() {
            if state.task == TaskState::Running {
                self.stop(id, plan);
            } else if self.count(|op| matches!(op, InFlight::Remove { .. })) < MAX_REMOVALS {
                let op = RuntimeOp::Remove { container: id.clone(), logs };
                self.begin(InFlight::Remove { container: id.clone() }, op, plan);
            }
        }
        trouble.map(|trouble| trouble.text)
    }

    fn stop(&mut self, id: &ContainerId, plan: &mut Plan) {
        if self.count(|op| matches!(op, InFlight::Stop { .. })) >= MAX_STOPS {
            return;
        }
        let unknown = Stopping { signal: None, grace_ms: UNKNOWN_GRACE_MS, makes_room: false };
        let Stopping { signal, grace_ms, makes_room } = self.stopping.get(id).cloned().unwrap_or(unknown);
        let op = RuntimeOp::Stop { container: id.clone(), signal, grace_ms, makes_room };
        self.begin(InFlight::Stop { container: id.clone() }, op, plan);
    }

    fn begin(&mut self, in_flight: InFlight, op: RuntimeOp, plan: &mut Plan) {
        self.last_operation += 1;
        self.operations.insert(self.last_operation, in_flight);
        plan.operations.push((self.last_operation, op));
    }

    fn count(&self, which: impl Fn(&InFlight) -> bool) -> usize {
        self.operations.values().filter(|op| which(op)).count()
    }

    fn in_flight_on(&self, id: &ContainerId) -> Option<&InFlight> {
        self.operations.values().find(|op| op.container() == Some(id))
    }

    /// Takes the next step for a wanted replica.
    fn advance(
        &mut self,
        now: Time,
        replica: &ReplicaId,
        workload: &Workload,
        node: Here<'_>,
        plan: &mut Plan,
    ) -> Standing {
        let previous = self.previous.get(replica);
        let new = || Life::new(replica, workload, previous);
        let life = self.lives.entry(replica.clone()).or_insert_with(new);
        life.take_template(replica, workload);
        let id = life.container(replica, &workload.template);
        let container = &workload.spec.container;
        let grace_ms = container.stop_grace_ms;
        let grace_ms = if node.has_lost(replica) { grace_ms.min(LAST_GRACE_MS) } else { grace_ms };
        let makes_room = self.evicted.contains_key(&id);
        let grace_ms = if makes_room { grace_ms.min(pressure::GRACE_MS) } else { grace_ms };
        let stopping = Stopping { signal: container.stop_signal.clone(), grace_ms, makes_room };
        if let Some(Lease::Held { until_ms }) = node.lease(replica) {
            let others = self.others(replica, &id).into_iter().map(|(other, _)| other);
            plan.fences.extend(others.chain([id.clone()]).map(|container| (container, until_ms)));
        }
        self.stopping.insert(id.clone(), stopping);
        match self.in_flight_on(&id) {
            Some(InFlight::Start { .. }) => {
                return Standing::new(Phase::Starting, "the container is being made");
            }
            Some(InFlight::Remove { .. }) => {
                let removed = "the container that ended is being removed";
                let waits = self.after_end(now, replica, plan);
                return waits.unwrap_or_else(|| Standing::new(Phase::Starting, removed));
            }
            Some(InFlight::Stop { .. }) => return self.being_stopped(replica),
            Some(InFlight::Pull { .. } | InFlight::RemoveImage { .. } | InFlight::Volume { .. }) | None => {}
        }
        let Some(state) = self.observed.inventory().containers.get(&id).cloned() else {
            return self.start(now, &id, replica, workload, node, plan);
        };
        let Some(labels) = state.labels.clone() else {
            let trouble = self.dispose(now, &id, &state, false, plan);
            return Standing::new(Phase::Assigned, trouble.unwrap_or_default());
        };
        if let Some(life) = self.lives.get_mut(replica) {
            life.met(&labels);
        }
        match &state.task {
            TaskState::Running => self.tend(now, &id, &labels, workload, node, plan),
            TaskState::Exited { code, at_ms, oom } => {
                let end = life::End { code: *code, at_ms: *at_ms, oom: *oom };
                let life =
                    self.lives.entry(replica.clone()).or_insert_with(|| Life::new(replica, workload, None));
                if *code == KILLED && node.has_lost(replica) {
                    // PID 1 was quicker.
                    life.stop_cause = Some(StopCause::LeaseEnded);
                }
                life.judge(now, &labels, &end);
                let made_room = life.made_room;
                match self.after_end(now, replica, plan) {
                    Some(standing) => {
                        if made_room {
                            self.dispose(now, &id, &state, false, plan);
                        }
                        standing
                    }
                    None => self.make_room(now, &id, &state, plan),
                }
            }
            TaskState::Absent => match self.after_end(now, replica, plan) {
                Some(standing) => standing,
                None => self.make_room(now, &id, &state, plan),
            },
        }
    }

    fn being_stopped(&self, replica: &ReplicaId) -> Standing {
        match self.lives.get(replica).and_then(|life| life.stop_cause.clone()) {
            Some(StopCause::Unhealthy(detail)) => {
                Standing::new(Phase::Unhealthy, format!("health check failed: {detail}; is being stopped"))
            }
            // It stays where it is placed: `stopping` would say that it is wanted here no longer.
            Some(StopCause::Renumbered) => Standing::new(Phase::Backoff, "its node's subnet changed"),
            Some(StopCause::LeaseEnded) => Standing::new(Phase::Backoff, "its lease ends"),
            Some(StopCause::Barred) => Standing::new(Phase::Backoff, "its namespace does not allow it"),
            Some(StopCause::Deadline(_)) => Standing::new(Phase::Backoff, "is past its deadline"),
            Some(StopCause::Evicted(reason)) => Standing::new(Phase::Backoff, reason),
            None => Standing::new(Phase::Stopping, ""),
        }
    }

    /// Removes a container so that it can be made anew.
    fn make_room(
        &mut self,
        now: Time,
        id: &ContainerId,
        state: &ContainerState,
        plan: &mut Plan,
    ) -> Standing {
        let trouble = self.dispose(now, id, state, false, plan);
        let reason = match trouble {
            Some(text) => format!("the container that ended cannot be removed: {text}"),
            None => "the container that ended is being removed".to_owned(),
        };
        Standing::new(Phase::Starting, reason)
    }

    /// Where a replica is whose container ended (or could not be started); `None` when it is time
    /// to start it again.
    fn after_end(&mut self, now: Time, replica: &ReplicaId, plan: &mut Plan) -> Option<Standing> {
        let ended = self.lives.get(replica)?.ended.as_ref()?;
        match ended.next {
            Next::Never(phase) => Some(Standing::new(phase, ended.reason.clone())),
            Next::At(at) if now.mono_ms < at => {
                plan.wake_at(at);
                Some(Standing::new(Phase::Backoff, ended.reason.clone()))
            }
            Next::At(_) => None,
        }
    }

    /// Looks after a running container of the wanted template.
    fn tend(
        &mut self,
        now: Time,
        id: &ContainerId,
        labels: &ContainerLabels,
        workload: &Workload,
        node: Here<'_>,
        plan: &mut Plan,
    ) -> Standing {
        self.dispose_others(now, &labels.replica, id, plan);
        let check = workload.spec.container.health.as_ref();
        let said = self.said.get(&labels.replica);
        let said = said.filter(|said| (said.template, said.restarts) == (labels.template, labels.restarts));
        let was_healthy = said.is_some_and(|said| matches!(said.phase, Phase::Running | Phase::Unhealthy));
        let ran = said.filter(|said| said.phase == Phase::Running);
        let ran_ms = ran.map_or(0, |said| now.wall_ms.saturating_sub(said.since_ms));
        let health = check.map(|check| {
            let health = || Health::new(now, check, was_healthy);
            &*self.health.entry(id.clone()).or_insert_with(health)
        });
        let verdict = health.and_then(Health::failing).map(str::to_owned);
        let is_unproven = health.is_some_and(|health| !health.has_passed());
        let misplaced = node.network.is_some_and(|network| !address::is_in(network, labels.ip));
        let Some(life) = self.lives.get_mut(&labels.replica) else {
            return Standing::new(Phase::Running, "");
        };
        life.runs(now, ran_ms);
        let deadline_ms = workload.spec.job.as_ref().and_then(|job| job.deadline_ms);
        let left_ms = deadline_ms.map(|deadline_ms| deadline_ms.saturating_sub(life.ran_ms(now)));
        let cause = match &verdict {
            _ if node.has_lost(&labels.replica) => Some(StopCause::LeaseEnded),
            _ if node.barred.contains_key(&labels.replica.workload) => Some(StopCause::Barred),
            _ if misplaced => Some(StopCause::Renumbered),
            _ if left_ms == Some(0) => deadline_ms.map(StopCause::Deadline),
            _ if let Some(reason) = self.evicted.get(id) => Some(StopCause::Evicted(reason.clone())),
            Some(detail) if workload.spec.restart.condition != RestartCondition::Never => {
                Some(StopCause::Unhealthy(detail.clone()))
            }
            _ => None,
        };
        if let Some(left_ms) = left_ms {
            plan.wake_at(now.mono_ms.saturating_add(left_ms));
        }
        if let Some(cause) = cause {
            life.stop_cause = Some(cause);
            let waits = self.trouble.get(id).map(|t| t.retry_at_ms).filter(|at| now.mono_ms < *at);
            match waits {
                Some(at) => plan.wake_at(at),
                None => self.stop(id, plan),
            }
            return self.being_stopped(&labels.replica);
        }
        let reason =
            life.last_end.as_ref().map(|end| format!("was started again: {end}")).unwrap_or_default();
        if let Some(check) = check {
            plan.health_checks.insert(id.clone(), check.clone());
        }
        if let Some(Ok(secrets)) = node.secrets.get(&labels.replica) {
            plan.secrets.insert(id.clone(), secrets.clone());
        }
        match verdict {
            Some(detail) => Standing::new(Phase::Unhealthy, format!("health check failed: {detail}")),
            None if is_unproven => {
                Standing::new(Phase::Starting, "runs; its health check has not passed yet")
            }
            None => Standing::new(Phase::Running, reason),
        }
    }

    /// Stops and removes the replica's containers of other templates. True when there are none.
    fn dispose_others(&mut self, now: Time, replica: &ReplicaId, id: &ContainerId, plan: &mut Plan) -> bool {
        let others = self.others(replica, id);
        for (other, state) in &others {
            self.dispose(now, other, state, false, plan);
        }
        others.is_empty()
    }

    fn others(&self, replica: &ReplicaId, id: &ContainerId) -> Vec<(ContainerId, ContainerState)> {
        let containers = self.observed.inventory().containers.iter();
        let others = containers.filter(|(other, state)| {
            *other != id && state.labels.as_ref().is_some_and(|labels| labels.replica == *replica)
        });
        others.map(|(id, state)| (id.clone(), state.clone())).collect()
    }

    /// Works towards a new container: the image, then the old container's end, then the start.
    fn start(
        &mut self,
        now: Time,
        id: &ContainerId,
        replica: &ReplicaId,
        workload: &Workload,
        node: Here<'_>,
        plan: &mut Plan,
    ) -> Standing {
        if let Some(reason) = node.barred.get(&replica.workload) {
            // Of a previous version it is not known here what it was given.
            self.dispose_others(now, replica, id, plan);
            return Standing::new(Phase::Assigned, reason.clone());
        }
        if workload.is_done(replica.slot) {
            self.dispose_others(now, replica, id, plan);
            return Standing::new(Phase::Completed, "ended with success before, and is not run again");
        }
        let blocked = match self.after_end(now, replica, plan) {
            Some(standing) => Some(standing),
            None => self.fetch(now, replica, workload, node, plan),
        };
        let blocked = blocked.or_else(|| match node.leases.get(&replica.workload) {
            None | Some((Lease::Held { .. }, _)) => None,
            Some((_, reason)) => Some(Standing::new(Phase::Assigned, reason.clone())),
        });
        let again = self.lives.get(replica).is_some_and(|life| life.ended.is_some());
        let waits = node.waits.get(&replica.workload).filter(|_| !again);
        let blocked = blocked.or_else(|| Some(Standing::new(Phase::Assigned, waits?.clone())));
        let (volumes, unusable) = usable(node.volumes.get(replica));
        let (secrets, closed) = usable(node.secrets.get(replica));
        let lacks = unusable.or(closed);
        let blocked = blocked.or_else(|| Some(Standing::new(Phase::Assigned, lacks?)));
        if let Some(blocked) = blocked {
            return self.while_blocked(now, id, replica, blocked, node, plan);
        }
        let Some(network) = node.network else {
            return Standing::new(Phase::Assigned, "waits until this node has an address and a subnet");
        };
        if !self.dispose_others(now, replica, id, plan) {
            return Standing::new(Phase::Starting, "the previous version is being stopped");
        }
        if self.count(|op| matches!(op, InFlight::Start { .. })) >= MAX_STARTS {
            return Standing::new(Phase::Starting, "waits for other containers to start");
        }
        let asks = asks(workload);
        if let Some(reason) = self.lack_of_room(asks, node.capacity) {
            return Standing::new(Phase::Assigned, reason);
        }
        let Some(ip) = self.address(replica, network) else {
            let (subnet, prefix) = (network.subnet, network.prefix);
            let reason = format!("waits for a free address: all of {subnet}/{prefix} are in use");
            return Standing::new(Phase::Assigned, reason);
        };
        let Some(life) = self.lives.get_mut(replica) else {
            return Standing::new(Phase::Assigned, "");
        };
        life.ip = Some(ip);
        life.begins();
        let labels = ContainerLabels {
            replica: replica.clone(),
            template: workload.template,
            ip,
            restarts: life.restarts,
            asks,
        };
        let hostname = format!("{}-{}", replica.workload.name, replica.slot);
        let container = ContainerPlan {
            id: id.clone(),
            labels: labels.clone(),
            spec: workload.spec.container.clone(),
            hostname: workload.spec.container.hostname.clone().unwrap_or(hostname),
            ip,
            prefix: network.prefix,
            gateway: network.gateway,
            search: replica.workload.search_domain(),
            mtu: OVERLAY_MTU,
            volumes,
            secrets,
        };
        let volumes = container.volumes.values().map(|volume| volume.part.clone()).collect();
        self.begin(
            InFlight::Start { container: id.clone(), labels, volumes, since_wall_ms: now.wall_ms },
            RuntimeOp::Start(Box::new(container)),
            plan,
        );
        Standing::new(Phase::Starting, "the container is being made")
    }

    /// A replica that cannot start its new template keeps the previous one running meanwhile.
    fn while_blocked(
        &mut self,
        now: Time,
        id: &ContainerId,
        replica: &ReplicaId,
        blocked: Standing,
        node: Here<'_>,
        plan: &mut Plan,
    ) -> Standing {
        for (other, state) in self.others(replica, id) {
            let being_stopped = self.in_flight_on(&other).is_some() || node.has_lost(replica);
            match state.labels {
                Some(labels) if state.task == TaskState::Running && !being_stopped => {
                    let reason = format!("runs the previous version; the new one: {}", blocked.reason);
                    let running = Standing::new(Phase::Running, reason);
                    return Standing { pull: blocked.pull, other: Some(labels), ..running };
                }
                _ => {
                    self.dispose(now, &other, &state, false, plan);
                }
            }
        }
        blocked
    }

    fn status(
        &self,
        now: Time,
        replica: &ReplicaId,
        workload: Option<&Workload>,
        standing: Standing,
    ) -> ReplicaStatus {
        let life = self.lives.get(replica);
        let Standing { phase, reason, pull, other } = standing;
        let template = other
            .as_ref()
            .map(|labels| labels.template)
            .or(workload.map(|workload| workload.template))
            .unwrap_or_else(|| Digest::of(&[]));
        let known = life.map(|life| life.container(replica, &template));
        let container = known.unwrap_or_else(|| container_id(replica, &template));
        let held = self.observed.inventory().containers.get(&container);
        let held = held.and_then(|state| state.labels.as_ref());
        let labels = held.or_else(|| match self.in_flight_on(&container) {
            // Told before the container runs, so that others let it in when it does.
            Some(InFlight::Start { labels, .. }) => Some(labels),
            _ => None,
        });
        let ip = labels.map(|labels| labels.ip);
        let restarts = match &other {
            Some(labels) => labels.restarts,
            None => life.map_or(0, Life::shown_restarts),
        };
        let before = self.said.get(replica);
        let since_ms = before
            .filter(|said| (said.phase, said.template, said.restarts) == (phase, template, restarts))
            .map_or(now.wall_ms, |said| said.since_ms);
        ReplicaStatus { template, phase, reason, ip, restarts, since_ms, pull }
    }
}
