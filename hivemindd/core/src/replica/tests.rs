use std::net::Ipv4Addr;

use hivemind_spec::workload::{HealthCheck, RestartPolicy, WorkloadSpec};
use proptest::prelude::*;

mod data;
mod garbage;
mod happenings;
mod jobs;
mod pressure;

use super::garbage::UNNEEDED_MS;
use super::pull::MAX_PULLS;
use super::*;
use crate::cluster::{Cluster, Liveness};
use crate::event::{LocalNetwork, SealedSecret, VolumePlan};
use crate::fixture::{node_id, replica_id, workload, workload_id};
use crate::image::Asker;

const SUBNET: Ipv4Addr = Ipv4Addr::new(10, 42, 7, 0);

fn network() -> LocalNetwork {
    LocalNetwork {
        subnet: SUBNET,
        prefix: 24,
        gateway: Ipv4Addr::new(10, 42, 7, 1),
        range: (Ipv4Addr::new(10, 42, 0, 0), 16),
        vni: 1,
        underlay: Some(Ipv4Addr::new(192, 0, 2, 7).into()),
        vtep_mac: [2, 0, 0, 0, 0, 7],
    }
}

fn failed(text: &str, permanent: bool) -> Result<(), OperationError> {
    Err(OperationError { text: text.into(), permanent })
}

/// A node that knows of no other.
fn nobody(around: &(Cluster, Liveness)) -> Asker<'_> {
    Asker { cluster: &around.0, liveness: &around.1, me: node_id(1), peer_port: 7946 }
}

/// The core under test and a runtime that does what it says, one operation at a time.
struct Bench {
    replicas: Replicas,
    now: Time,
    wanted: BTreeMap<ReplicaId, Workload>,
    network: Option<LocalNetwork>,
    capacity: Capacity,
    leases: BTreeMap<WorkloadId, (Lease, String)>,
    waits: BTreeMap<WorkloadId, String>,
    barred: BTreeMap<WorkloadId, String>,
    volumes: BTreeMap<ReplicaId, Result<BTreeMap<String, VolumePlan>, String>>,
    secrets: BTreeMap<ReplicaId, Result<BTreeMap<String, SealedSecret>, String>>,
    credentials: BTreeMap<ReplicaId, Result<SealedSecret, String>>,
    orders: BTreeMap<VolumePart, Order>,
    workloads: BTreeMap<WorkloadId, Workload>,
    inventory: Inventory,
    open: Vec<(OperationId, RuntimeOp)>,
    /// Every operation ever handed out.
    log: Vec<RuntimeOp>,
    plan: Plan,
}

impl Bench {
    fn new() -> Self {
        let mut bench = Self {
            replicas: Replicas::new(&BTreeMap::new()),
            now: crate::fixture::at(0),
            wanted: BTreeMap::new(),
            network: Some(network()),
            capacity: Capacity { cpu_millis: 1_000_000, memory_bytes: 1 << 50 },
            leases: BTreeMap::new(),
            waits: BTreeMap::new(),
            barred: BTreeMap::new(),
            volumes: BTreeMap::new(),
            secrets: BTreeMap::new(),
            credentials: BTreeMap::new(),
            orders: BTreeMap::new(),
            workloads: BTreeMap::new(),
            inventory: Inventory::default(),
            open: Vec::new(),
            log: Vec::new(),
            plan: Plan::default(),
        };
        bench.observe();
        bench
    }

    /// A bench with `count` replicas of `workload` running.
    fn running(workload: Workload, count: u32) -> Self {
        let mut bench = Self::new();
        bench.want(workload, count);
        bench.settle();
        bench
    }

    fn want(&mut self, workload: Workload, count: u32) {
        self.wanted = (0..count).map(|slot| (replica_id("web", slot), workload.clone())).collect();
        self.step();
    }

    fn observe(&mut self) {
        self.replicas.observed(self.now, self.inventory.clone());
        self.step();
    }

    fn step(&mut self) {
        let wanted: BTreeMap<ReplicaId, &Workload> =
            self.wanted.iter().map(|(id, workload)| (id.clone(), workload)).collect();
        let around = Default::default();
        let here = Here {
            network: self.network.as_ref(),
            capacity: self.capacity,
            leases: &self.leases,
            waits: &self.waits,
            barred: &self.barred,
            volumes: &self.volumes,
            secrets: &self.secrets,
            credentials: &self.credentials,
            asker: nobody(&around),
            workloads: &self.workloads,
            orders: &self.orders,
        };
        self.plan = self.replicas.plan(self.now, &wanted, here);
        for (_, op) in &self.plan.operations {
            let RuntimeOp::RemoveImage { image } = op else { continue };
            let needed = self.wanted.values().any(|workload| workload.spec.container.image == *image);
            assert!(!needed, "{image} is removed under what is wanted");
        }
        self.log.extend(self.plan.operations.iter().map(|(_, op)| op.clone()));
        self.open.extend(self.plan.operations.clone());
    }

    fn wait(&mut self, ms: u64) {
        self.now = self.now.plus(ms);
        self.step();
    }

    /// Ends the oldest open operation with success, and tells.
    fn finish_one(&mut self) -> bool {
        if self.open.is_empty() {
            return false;
        }
        let (id, op) = self.open.remove(0);
        self.carry_out(&op);
        self.replicas.done(self.now, id, Ok(()));
        self.step();
        true
    }

    fn fail_one(&mut self, text: &str, permanent: bool) -> RuntimeOp {
        let (id, op) = self.open.remove(0);
        self.replicas.done(self.now, id, failed(text, permanent));
        self.step();
        op
    }

    fn carry_out(&mut self, op: &RuntimeOp) {
        match op {
            RuntimeOp::Pull { image, .. } => {
                self.inventory.images.insert(image.clone());
            }
            RuntimeOp::Start(plan) => {
                let held = self.inventory.containers.values().filter_map(|state| state.labels.as_ref());
                assert!(held.into_iter().all(|labels| labels.ip != plan.ip), "{} is in use", plan.ip);
                assert!(!self.inventory.containers.contains_key(&plan.id), "{:?} exists", plan.id);
                let state = ContainerState { labels: Some(plan.labels.clone()), task: TaskState::Running };
                self.inventory.containers.insert(plan.id.clone(), state);
                assert!(self.inventory.images.contains(&plan.spec.image), "{} is gone", plan.spec.image);
                let parts = plan.volumes.values().map(|volume| volume.part.clone());
                self.inventory.volumes.extend(parts.map(|part| (part, VolumeState::default())));
            }
            RuntimeOp::Stop { container, .. } => self.end(container, 143),
            RuntimeOp::Remove { container, .. } => {
                self.inventory.containers.remove(container);
            }
            RuntimeOp::RemoveImage { image } => drop(self.inventory.images.remove(image)),
            RuntimeOp::DeleteVolume { part } => drop(self.inventory.volumes.remove(part)),
            RuntimeOp::LimitVolume(VolumePlan { part, size_bytes }) => {
                self.inventory.volumes.get_mut(part).unwrap().size_bytes = *size_bytes;
            }
        }
    }

    fn end(&mut self, container: &ContainerId, code: u32) {
        let state = self.inventory.containers.get_mut(container).unwrap();
        state.task = TaskState::Exited { code, at_ms: self.now.wall_ms, oom: None };
    }

    fn settle(&mut self) {
        for _ in 0..1000 {
            if !self.finish_one() {
                return;
            }
        }
        panic!("does not settle: {:?}", self.open);
    }

    /// All checks pass.
    fn pass(&mut self) {
        for id in self.plan.health_checks.keys().cloned().collect::<Vec<_>>() {
            self.replicas.health_checked(self.now, &id, true, "");
        }
        self.step();
    }

    fn restart_agent(&mut self) {
        self.replicas = Replicas::new(&self.plan.statuses);
        self.open.clear();
        self.observe();
    }

    fn container(&self, slot: u32) -> ContainerId {
        let replica = replica_id("web", slot);
        container_id(&replica, &self.wanted[&replica].template)
    }

    fn status(&self, slot: u32) -> &ReplicaStatus {
        &self.plan.statuses[&replica_id("web", slot)]
    }

    fn crash(&mut self, slot: u32, code: u32) {
        let id = self.container(slot);
        self.end(&id, code);
        self.observe();
    }
}

fn with_restart(restart: RestartPolicy) -> Workload {
    let spec = WorkloadSpec { restart, ..workload(1).spec };
    Workload::new(1, Digest::of(b"revision 1"), spec)
}

fn policy(condition: RestartCondition, max_attempts: Option<u32>) -> RestartPolicy {
    RestartPolicy { condition, max_attempts, ..RestartPolicy::default() }
}

fn another(workload: &Workload, image: &str) -> Workload {
    let mut spec = workload.spec.clone();
    spec.container.image = image.into();
    Workload::new(workload.revision + 1, Digest::of(image.as_bytes()), spec)
}

fn checked() -> Workload {
    let mut workload = workload(1);
    workload.spec.container.health = Some(HealthCheck {
        command: vec!["check".into()],
        interval_ms: 1000,
        timeout_ms: 1000,
        retries: 3,
        start_period_ms: 5000,
        ..HealthCheck::default()
    });
    workload
}

#[test]
fn a_wanted_replica_is_pulled_started_and_told() {
    let mut bench = Bench::new();
    bench.want(workload(1), 1);
    assert_eq!(bench.status(0).phase, Phase::Pulling);
    bench.finish_one();
    assert_eq!(bench.status(0).phase, Phase::Starting);
    bench.finish_one();
    let status = bench.status(0);
    assert_eq!((status.phase, status.ip), (Phase::Running, Some(Ipv4Addr::new(10, 42, 7, 2))));
    let RuntimeOp::Start(plan) = &bench.log[1] else { panic!("{:?}", bench.log) };
    assert_eq!((plan.hostname.as_str(), plan.search.as_str()), ("web-0", "default.hive.internal"));
    assert_eq!(bench.log.len(), 2);
}

#[test]
fn nothing_is_done_before_the_runtime_has_been_looked_at() {
    let mut replicas = Replicas::new(&BTreeMap::new());
    let workload = workload(1);
    let wanted = [(replica_id("web", 0), &workload)].into();
    let network = network();
    let around = Default::default();
    let here = Here {
        network: Some(&network),
        capacity: Capacity::default(),
        leases: &BTreeMap::new(),
        waits: &BTreeMap::new(),
        barred: &BTreeMap::new(),
        volumes: &BTreeMap::new(),
        secrets: &BTreeMap::new(),
        credentials: &BTreeMap::new(),
        asker: nobody(&around),
        workloads: &BTreeMap::new(),
        orders: &BTreeMap::new(),
    };
    assert_eq!(replicas.plan(crate::fixture::at(0), &wanted, here), Plan::default());
}

#[test]
fn containers_are_adopted_after_an_agent_restart() {
    let mut bench = Bench::running(workload(3), 3);
    let before = bench.log.len();
    bench.restart_agent();
    bench.wait(60_000);
    assert_eq!(bench.log.len(), before);
    assert!((0..3).all(|slot| bench.status(slot).phase == Phase::Running));
}

#[test]
fn restarts_are_counted_across_agent_restarts() {
    let mut bench = Bench::running(workload(1), 1);
    for round in 1..=3 {
        bench.crash(0, 1);
        bench.wait(MAX_WAIT);
        bench.settle();
        assert_eq!((bench.status(0).phase, bench.status(0).restarts), (Phase::Running, round));
        bench.restart_agent();
        assert_eq!(bench.status(0).restarts, round);
    }
}

const MAX_WAIT: u64 = life::MAX_DELAY_MS;

#[test]
fn a_container_that_ends_waits_twice_as_long_each_time() {
    let mut bench = Bench::running(workload(1), 1);
    for delay in [500, 1000, 2000, 4000] {
        bench.crash(0, 1);
        assert_eq!(bench.status(0).phase, Phase::Backoff);
        assert!(bench.status(0).reason.starts_with("ended with code 1; starts again after"));
        assert_eq!(bench.plan.wake_at_ms, Some(bench.now.mono_ms + delay));
        bench.wait(delay - 1);
        assert!(bench.open.is_empty());
        bench.wait(1);
        bench.settle();
        assert_eq!(bench.status(0).phase, Phase::Running);
    }
    assert_eq!(life::delay_ms(500, 60), life::MAX_DELAY_MS);
}

#[test]
fn a_long_run_forgives_earlier_ends() {
    let mut bench = Bench::running(workload(1), 1);
    for _ in 0..5 {
        bench.crash(0, 1);
        bench.wait(MAX_WAIT);
        bench.settle();
    }
    bench.wait(10 * 60 * 1000);
    bench.crash(0, 1);
    assert_eq!(bench.plan.wake_at_ms, Some(bench.now.mono_ms + 500));
    assert_eq!(bench.status(0).restarts, 5);
}

#[test]
fn the_policy_decides_what_follows_an_end() {
    use RestartCondition::{Always, Never, OnFailure};
    for (condition, code, phase) in [
        (Always, 0, Phase::Backoff),
        (Always, 1, Phase::Backoff),
        (OnFailure, 0, Phase::Completed),
        (OnFailure, 1, Phase::Backoff),
        (Never, 0, Phase::Completed),
        (Never, 1, Phase::Failed),
    ] {
        let mut bench = Bench::running(with_restart(policy(condition, None)), 1);
        bench.crash(0, code);
        assert_eq!(bench.status(0).phase, phase, "{condition:?} {code}");
    }
}

#[test]
fn attempts_are_limited_when_the_document_says_so() {
    let mut bench = Bench::running(with_restart(policy(RestartCondition::Always, Some(2))), 1);
    for _ in 0..2 {
        bench.crash(0, 1);
        bench.wait(MAX_WAIT);
        bench.settle();
    }
    bench.crash(0, 1);
    let status = bench.status(0);
    assert_eq!(status.phase, Phase::Failed);
    assert_eq!(status.reason, "ended with code 1; gave up after 2 restarts");
}

#[test]
fn what_completed_stays_so_after_a_power_cut() {
    let mut bench = Bench::running(with_restart(policy(RestartCondition::Never, None)), 1);
    bench.crash(0, 0);
    let id = bench.container(0);
    bench.inventory.containers.get_mut(&id).unwrap().task = TaskState::Absent;
    let before = bench.log.len();
    bench.restart_agent();
    assert_eq!((bench.status(0).phase, bench.log.len()), (Phase::Completed, before));
}

#[test]
fn after_a_power_cut_containers_are_made_anew_with_their_address() {
    let mut bench = Bench::running(workload(3), 3);
    for state in bench.inventory.containers.values_mut() {
        state.task = TaskState::Absent;
    }
    let addresses: Vec<_> = (0..3).map(|slot| bench.status(slot).ip).collect();
    bench.restart_agent();
    bench.settle();
    for (slot, address) in (0..3).zip(addresses) {
        let status = bench.status(slot);
        assert_eq!((status.phase, status.ip, status.restarts), (Phase::Running, address, 0));
    }
}

#[test]
fn the_previous_version_runs_until_the_image_of_the_next_is_there() {
    let old = workload(1);
    let mut bench = Bench::running(old.clone(), 1);
    let old_id = bench.container(0);
    bench.want(another(&old, "registry.test/app:2"), 1);
    assert_eq!((bench.status(0).phase, bench.status(0).template), (Phase::Running, old.template));
    bench.fail_one("no route to registry.test", false);
    let status = bench.status(0);
    assert_eq!((status.phase, status.template), (Phase::Running, old.template));
    assert!(status.reason.contains("no route to registry.test"), "{}", status.reason);
    let from = bench.log.len();
    bench.wait(1000);
    bench.settle();
    assert_eq!(bench.status(0).phase, Phase::Running);
    assert_ne!(bench.status(0).template, old.template);
    let kinds: Vec<String> = bench.log[from..].iter().map(kind).collect();
    assert_eq!(
        kinds,
        ["pull".into(), format!("stop {}", old_id.0), format!("remove {}", old_id.0), "start".into()]
    );
}

fn kind(op: &RuntimeOp) -> String {
    match op {
        RuntimeOp::Pull { .. } => "pull".into(),
        RuntimeOp::Start(_) => "start".into(),
        RuntimeOp::Stop { container, .. } => format!("stop {}", container.0),
        RuntimeOp::Remove { container, .. } => format!("remove {}", container.0),
        RuntimeOp::DeleteVolume { part } => format!("delete {part}"),
        RuntimeOp::LimitVolume(VolumePlan { part, .. }) => format!("limit {part}"),
        RuntimeOp::RemoveImage { image } => format!("remove {image}"),
    }
}

#[test]
fn a_failed_pull_is_tried_again_with_its_reason_shown() {
    let mut bench = Bench::new();
    bench.want(workload(2), 2);
    assert_eq!(bench.open.len(), 1, "replicas of one image share its pull");
    for delay in [1000, 2000, 4000] {
        bench.fail_one("connection refused", false);
        let status = bench.status(0);
        assert_eq!(status.phase, Phase::Backoff);
        let expected = format!(
            "cannot pull registry.test/app:1: connection refused; tries again after {} s",
            delay / 1000
        );
        assert_eq!(status.reason, expected);
        bench.wait(delay);
    }
    bench.settle();
    assert_eq!(bench.status(1).phase, Phase::Running);
}

#[test]
fn a_pull_refused_for_good_waits_for_another_template() {
    let mut bench = Bench::new();
    let first = workload(2);
    bench.want(first.clone(), 2);
    bench.fail_one("the reference is malformed", true);
    bench.wait(3_600_000);
    assert!(bench.open.is_empty());
    for slot in [0, 1] {
        assert_eq!(bench.status(slot).phase, Phase::Failed);
        assert!(bench.status(slot).reason.contains("malformed"));
    }
    let mut spec = first.spec;
    spec.container.env.insert("MIRROR".into(), "2".into());
    bench.want(Workload::new(2, Digest::of(b"revision 2"), spec), 2);
    bench.settle();
    assert_eq!(bench.status(0).phase, Phase::Running);
}

#[test]
fn a_failed_start_backs_off_and_cleans_up() {
    let mut bench = Bench::new();
    bench.want(workload(1), 1);
    bench.finish_one();
    let RuntimeOp::Start(plan) = bench.fail_one("no such command", false) else { panic!("not a start") };
    let half = ContainerState { labels: Some(plan.labels.clone()), task: TaskState::Absent };
    bench.inventory.containers.insert(plan.id.clone(), half);
    bench.observe();
    assert_eq!(bench.status(0).phase, Phase::Backoff);
    assert_eq!(bench.status(0).reason, "cannot start: no such command; starts again after 0.5 s");
    bench.wait(500);
    bench.settle();
    assert_eq!((bench.status(0).phase, bench.status(0).restarts), (Phase::Running, 1));
}

#[test]
fn an_old_inventory_does_not_kill_what_was_just_started() {
    let mut bench = Bench::new();
    bench.want(workload(1), 1);
    let old = bench.inventory.clone();
    bench.settle();
    let started = bench.log.len();
    bench.replicas.observed(bench.now, old);
    bench.step();
    let mut half = bench.inventory.clone();
    half.containers.values_mut().for_each(|state| state.task = TaskState::Absent);
    bench.replicas.observed(bench.now, half);
    bench.step();
    // The image is in none of them, and asking for it again does no harm.
    let harm = bench.log[started..].iter().filter(|op| !matches!(op, RuntimeOp::Pull { .. })).count();
    assert_eq!((bench.status(0).phase, harm), (Phase::Running, 0));
}

#[test]
fn a_failing_health_check_takes_the_replica_out_and_restarts_it() {
    let mut bench = Bench::running(checked(), 1);
    let id = bench.container(0);
    assert!(bench.plan.health_checks.contains_key(&id));
    bench.pass();
    bench.now = bench.now.plus(6000);
    for _ in 0..2 {
        bench.replicas.health_checked(bench.now, &id, false, "503");
        bench.step();
        assert_eq!(bench.status(0).phase, Phase::Running);
    }
    bench.replicas.health_checked(bench.now, &id, false, "503");
    bench.step();
    assert_eq!(bench.status(0).phase, Phase::Unhealthy);
    assert!(matches!(&bench.open[..], [(_, RuntimeOp::Stop { grace_ms: 10_000, .. })]));
    assert!(bench.plan.health_checks.is_empty());
    bench.finish_one();
    assert_eq!(bench.status(0).phase, Phase::Backoff);
    assert_eq!(bench.status(0).reason, "health check failed: 503; starts again after 0.5 s");
    bench.wait(500);
    bench.settle();
    assert_eq!((bench.status(0).phase, bench.status(0).restarts), (Phase::Starting, 1));
    bench.pass();
    assert_eq!((bench.status(0).phase, bench.status(0).restarts), (Phase::Running, 1));
}

#[test]
fn a_container_with_a_check_counts_as_running_once_it_has_passed_also_for_the_next_agent() {
    let mut bench = Bench::running(checked(), 1);
    assert_eq!(bench.status(0).phase, Phase::Starting);
    assert_eq!(bench.status(0).reason, "runs; its health check has not passed yet");
    bench.restart_agent();
    assert_eq!(bench.status(0).phase, Phase::Starting, "it still has not");
    bench.pass();
    assert_eq!(bench.status(0).phase, Phase::Running);
    bench.restart_agent();
    assert_eq!(bench.status(0).phase, Phase::Running, "it had passed, and nothing else is known");
    // After a power cut it is another container.
    bench.happen(happenings::Happening::PowerCut);
    bench.settle();
    assert_eq!(bench.status(0).phase, Phase::Starting);
}

#[test]
fn what_its_namespace_does_not_allow_is_not_started_and_what_it_no_longer_allows_is_stopped() {
    let mut bench = Bench::new();
    let reason = (workload_id("web"), "namespace default does not allow it".to_owned());
    bench.barred = [reason.clone()].into();
    bench.want(workload(1), 1);
    bench.settle();
    assert!(bench.inventory.containers.is_empty() && bench.inventory.images.is_empty());
    assert_eq!((bench.status(0).phase, &bench.status(0).reason), (Phase::Assigned, &reason.1));
    bench.barred.clear();
    bench.step();
    bench.settle();
    assert_eq!(bench.status(0).phase, Phase::Running);

    bench.barred = [reason.clone()].into();
    bench.step();
    // It keeps its place: `stopping` would say that it is wanted here no longer.
    assert_eq!(bench.status(0).phase, Phase::Backoff);
    bench.settle();
    assert_eq!((bench.status(0).phase, &bench.status(0).reason), (Phase::Assigned, &reason.1));
    assert!(bench.inventory.containers.values().all(|state| state.task != TaskState::Running));

    // Nor does a previous version go on, of which nobody knows what it was given.
    bench.barred.clear();
    bench.step();
    bench.settle();
    bench.barred = [reason].into();
    bench.want(another(&workload(1), "registry.test/app:2"), 1);
    bench.settle();
    assert!(bench.inventory.containers.values().all(|state| state.task != TaskState::Running));
}

#[test]
fn a_replica_waits_for_others_before_it_starts_and_not_when_it_starts_again() {
    let mut bench = Bench::new();
    let wait = (workload_id("web"), "waits for db to be healthy".to_owned());
    bench.waits = [wait.clone()].into();
    bench.want(workload(1), 1);
    bench.settle();
    assert!(bench.inventory.containers.is_empty());
    assert!(!bench.inventory.images.is_empty(), "its image is fetched meanwhile");
    let status = bench.status(0);
    assert_eq!((status.phase, status.reason.as_str()), (Phase::Assigned, "waits for db to be healthy"));
    bench.waits.clear();
    bench.step();
    bench.settle();
    assert_eq!(bench.status(0).phase, Phase::Running);

    // What it waited for ends: it goes on, and starts again by itself.
    bench.waits = [wait].into();
    bench.step();
    assert_eq!(bench.status(0).phase, Phase::Running);
    bench.crash(0, 1);
    bench.wait(500);
    bench.settle();
    assert_eq!((bench.status(0).phase, bench.status(0).restarts), (Phase::Running, 1));

    // A new version waits, and the previous one goes on meanwhile.
    bench.want(another(&workload(1), "registry.test/app:2"), 1);
    bench.settle();
    let status = bench.status(0);
    assert_eq!(status.phase, Phase::Running);
    assert!(status.reason.contains("the new one: waits for db"), "{}", status.reason);
}

#[test]
fn failures_in_the_start_period_do_not_count_until_a_check_has_passed() {
    let mut bench = Bench::running(checked(), 1);
    let id = bench.container(0);
    for _ in 0..5 {
        bench.replicas.health_checked(bench.now, &id, false, "not yet");
    }
    bench.step();
    assert_eq!(bench.status(0).phase, Phase::Starting);
    bench.replicas.health_checked(bench.now, &id, true, "");
    for _ in 0..3 {
        bench.replicas.health_checked(bench.now, &id, false, "gone");
    }
    bench.step();
    assert_eq!(bench.status(0).phase, Phase::Unhealthy);
}

#[test]
fn an_unhealthy_container_that_may_not_restart_needs_two_passes_to_come_back() {
    let mut never = checked();
    never.spec.restart = policy(RestartCondition::Never, None);
    let mut bench = Bench::running(never, 1);
    let id = bench.container(0);
    bench.pass();
    bench.now = bench.now.plus(6000);
    let phases: Vec<Phase> = [false, false, false, true, false, true, true]
        .into_iter()
        .map(|healthy| {
            bench.replicas.health_checked(bench.now, &id, healthy, "503");
            bench.step();
            bench.status(0).phase
        })
        .collect();
    let (up, down) = (Phase::Running, Phase::Unhealthy);
    assert_eq!(phases, [up, up, down, down, down, down, up]);
    assert!(bench.open.is_empty());
}

#[test]
fn what_is_no_longer_wanted_is_stopped_with_its_signal_and_removed_with_its_logs() {
    let mut spec = workload(1);
    spec.spec.container.stop_signal = Some("SIGQUIT".into());
    spec.spec.container.stop_grace_ms = 3000;
    let mut bench = Bench::running(spec, 1);
    let id = bench.container(0);
    bench.wanted.clear();
    bench.step();
    assert_eq!(bench.status(0).phase, Phase::Stopping);
    let stop = RuntimeOp::Stop {
        container: id.clone(),
        signal: Some("SIGQUIT".into()),
        grace_ms: 3000,
        makes_room: false,
    };
    assert_eq!(bench.log.last(), Some(&stop));
    bench.finish_one();
    assert_eq!(bench.log.last(), Some(&RuntimeOp::Remove { container: id, logs: true }));
    bench.finish_one();
    assert_eq!(bench.plan, Plan::default());
}

#[test]
fn a_container_with_unreadable_labels_is_removed() {
    let mut bench = Bench::new();
    let id = ContainerId("hm-broken".into());
    bench.inventory.containers.insert(id.clone(), ContainerState { labels: None, task: TaskState::Absent });
    bench.observe();
    assert_eq!(bench.log, [RuntimeOp::Remove { container: id, logs: true }]);
    bench.fail_one("busy", false);
    assert!(bench.open.is_empty());
    bench.wait(1000);
    assert_eq!(bench.open.len(), 1);
}

#[test]
fn operations_in_flight_are_bounded_and_starts_overlap() {
    let mut bench = Bench::new();
    bench.inventory.images.insert("registry.test/app:1".into());
    bench.observe();
    bench.want(workload(10), 10);
    assert_eq!(bench.open.len(), MAX_STARTS);
    bench.finish_one();
    assert_eq!(bench.open.len(), MAX_STARTS);
    bench.wanted = (0..10)
        .map(|slot| (replica_id("many", slot), another(&workload(1), &format!("registry.test/{slot}"))))
        .collect();
    bench.step();
    let pulls = bench.open.iter().filter(|(_, op)| matches!(op, RuntimeOp::Pull { .. })).count();
    assert_eq!(pulls, MAX_PULLS);
    bench.settle();
    assert_eq!(bench.inventory.containers.len(), 10);
}

#[test]
fn a_renumbered_node_starts_its_containers_in_the_new_subnet() {
    let mut bench = Bench::running(workload(2), 2);
    let subnet = Ipv4Addr::new(10, 42, 9, 0);
    bench.network = Some(LocalNetwork { subnet, gateway: Ipv4Addr::new(10, 42, 9, 1), ..network() });
    bench.step();
    bench.settle();
    for slot in [0, 1] {
        let status = bench.status(slot);
        assert_eq!((status.phase, status.ip.unwrap().octets()[2]), (Phase::Running, 9));
    }
}

#[test]
fn without_a_subnet_replicas_wait_and_running_ones_go_on() {
    let mut bench = Bench::running(workload(1), 1);
    bench.network = None;
    bench.want(workload(2), 2);
    assert_eq!(bench.status(0).phase, Phase::Running);
    assert_eq!(bench.status(1).phase, Phase::Assigned);
    bench.network = Some(network());
    bench.step();
    bench.settle();
    assert_eq!(bench.status(1).phase, Phase::Running);
}

#[test]
fn addresses_run_out_with_a_reason_and_are_reused() {
    let mut bench = Bench::new();
    let small = LocalNetwork { prefix: 29, ..network() };
    bench.network = Some(small);
    bench.want(workload(6), 6);
    bench.settle();
    assert_eq!(bench.status(5).reason, "waits for a free address: all of 10.42.7.0/29 are in use");
    bench.wanted.remove(&replica_id("web", 2));
    bench.step();
    bench.settle();
    assert_eq!(bench.status(5).ip, Some(Ipv4Addr::new(10, 42, 7, 4)));
}

#[test]
fn pull_progress_is_told_in_steps() {
    let mut bench = Bench::new();
    bench.want(workload(1), 1);
    let operation = bench.open[0].0;
    let mut told = BTreeSet::new();
    for done_bytes in 0..=1000 {
        bench.replicas.pull_progressed(operation, PullProgress { done_bytes, total_bytes: 1000 });
        bench.step();
        told.insert(bench.status(0).pull.unwrap().done_bytes);
    }
    assert_eq!(told.len(), 11);
}

#[test]
fn a_container_waits_until_what_runs_here_leaves_room_for_it() {
    let mut one = workload(1);
    one.spec.container.resources.cpu_request_millis = Some(400);
    let mut bench = Bench::new();
    bench.capacity.cpu_millis = 1000;
    bench.want(one.clone(), 3);
    bench.settle();
    let running = |bench: &Bench| {
        bench.inventory.containers.values().filter(|state| state.task == TaskState::Running).count()
    };
    assert_eq!(running(&bench), 2);
    let waits: Vec<_> =
        bench.plan.statuses.values().filter(|s| s.reason.contains("waits for room")).collect();
    assert!(waits.len() == 1 && waits[0].reason.contains("200 are free"), "{waits:?}");

    // Room that a container leaves which is no longer wanted is room only once it has ended.
    bench.wanted.remove(&replica_id("web", 0));
    bench.step();
    assert!(!bench.open.iter().any(|(_, op)| matches!(op, RuntimeOp::Start(_))));
    bench.settle();
    assert_eq!(running(&bench), 2);
}
