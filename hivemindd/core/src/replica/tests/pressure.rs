//! Replicas that make room when memory or processes are short.

use super::*;
use crate::event::DiskState;

const MIB: u64 = 1 << 20;

/// A replica of each of these workloads runs: its name, its priority, and what it asks for.
fn running(workloads: &[(&str, i32, u64)]) -> Bench {
    let mut bench = Bench::new();
    for (name, priority, asks) in workloads {
        let mut workload = workload(1);
        workload.spec.priority = *priority;
        workload.spec.container.resources.memory_request_bytes = Some(asks * MIB);
        let workload = Workload::new(1, workload.digest, workload.spec);
        bench.wanted.insert(replica_id(name, 0), workload);
    }
    bench.step();
    bench.settle();
    bench
}

impl Bench {
    fn id(&self, name: &str) -> ContainerId {
        let replica = replica_id(name, 0);
        container_id(&replica, &self.wanted[&replica].template)
    }

    /// Memory is short, and so much is used.
    fn short(&mut self, uses: &[(&str, u64)]) {
        let uses = uses.iter().map(|(name, mib)| (self.id(name), mib * MIB)).collect();
        self.replicas.short(Scarce::Memory, uses);
        self.step();
    }

    /// Which are being stopped, with their grace, milliseconds.
    fn stops(&self) -> Vec<(String, u64)> {
        let name = |id: &ContainerId| {
            let found = self.wanted.keys().find(|replica| self.id(&replica.workload.name) == *id);
            found.map(|replica| replica.workload.name.clone()).unwrap_or_default()
        };
        let stop = |op: &RuntimeOp| match op {
            RuntimeOp::Stop { container, grace_ms, .. } => Some((name(container), *grace_ms)),
            _ => None,
        };
        self.log.iter().filter_map(stop).collect()
    }

    fn stopped(&self) -> Vec<String> {
        self.stops().into_iter().map(|(name, _)| name).collect()
    }
}

#[test]
fn the_lowest_priority_makes_room_first_and_of_equal_ones_who_uses_most_beyond_what_it_asks_for() {
    let mut bench = running(&[("db", 10, 100), ("web", 0, 200), ("cache", 0, 50), ("batch", -5, 0)]);
    let uses = [("db", 900), ("web", 300), ("cache", 200), ("batch", 1)];
    bench.short(&uses);
    assert_eq!(bench.stopped(), ["batch"]);
    assert_eq!(bench.plan.statuses[&replica_id("batch", 0)].phase, Phase::Backoff, "it stays placed here");
    // One at a time: it has not ended yet.
    bench.short(&uses);
    assert_eq!(bench.stopped(), ["batch"]);
    bench.settle();
    bench.observe();
    let status = &bench.plan.statuses[&replica_id("batch", 0)];
    assert_eq!(status.phase, Phase::Backoff);
    assert!(status.reason.contains("memory of its machine was short"), "{}", status.reason);
    assert!(status.reason.contains("used 1 MiB, asks for 0, and has priority -5"), "{}", status.reason);
    bench.short(&uses[..3]);
    assert_eq!(bench.stopped(), ["batch", "cache"], "150 MiB beyond, and web 100");
    bench.settle();
    bench.observe();
    bench.short(&uses[..2]);
    bench.settle();
    bench.observe();
    bench.short(&uses[..1]);
    assert_eq!(bench.stopped(), ["batch", "cache", "web", "db"]);
}

#[test]
fn what_uses_no_more_than_it_asks_for_stays() {
    let mut bench = running(&[("db", 10, 100), ("web", 0, 200)]);
    bench.short(&[("web", 200), ("db", 100)]);
    assert_eq!(bench.stopped(), Vec::<String>::new());
    bench.short(&[("web", 200), ("db", 101)]);
    assert_eq!(bench.stopped(), ["db"]);
}

#[test]
fn who_makes_room_has_little_time_for_it_and_starts_again_later_each_time() {
    let mut workload = workload(1);
    workload.spec.container.stop_grace_ms = 300_000;
    let mut bench = Bench::running(Workload::new(1, workload.digest, workload.spec), 1);
    bench.short(&[("web", 100)]);
    assert_eq!(bench.stops(), [("web".to_owned(), 10_000)]);
    bench.settle();
    bench.observe();
    let again = |bench: &Bench| bench.plan.wake_at_ms.unwrap() - bench.now.mono_ms;
    let first = again(&bench);
    bench.wait(first);
    bench.settle();
    bench.observe();
    assert_eq!(bench.status(0).phase, Phase::Running);
    bench.short(&[("web", 100)]);
    bench.settle();
    bench.observe();
    assert!(again(&bench) > first);
}

#[test]
fn an_image_that_cannot_be_removed_keeps_nobody_from_making_room() {
    let mut bench = running(&[("log", 0, 50)]);
    bench.inventory.images.insert("registry.test/unneeded:1".to_owned());
    bench.inventory.disk = Some(DiskState { used_bytes: 960 * MIB, total_bytes: 1000 * MIB });
    bench.observe();
    let short = |bench: &mut Bench| {
        let uses = [(bench.id("log"), 300 * MIB)].into();
        bench.replicas.short(Scarce::Disk, uses);
        bench.step();
    };
    bench.wait(UNNEEDED_MS);
    short(&mut bench);
    assert_eq!(bench.stopped(), Vec::<String>::new(), "it goes first");
    bench.fail_one("in use", false);
    short(&mut bench);
    assert_eq!(bench.stopped(), ["log"]);
}

#[test]
fn when_the_disk_is_full_who_wrote_much_of_it_makes_room_and_keeps_nothing_while_it_waits() {
    let mut bench = running(&[("db", 10, 100), ("web", 0, 200), ("log", 0, 50), ("batch", -5, 0)]);
    bench.inventory.disk = Some(DiskState { used_bytes: 960 * MIB, total_bytes: 1000 * MIB });
    bench.observe();
    let short = |bench: &mut Bench, uses: &[(&str, u64)]| {
        let uses = uses.iter().map(|(name, mib)| (bench.id(name), mib * MIB)).collect();
        bench.replicas.short(Scarce::Disk, uses);
        bench.step();
    };
    let uses = [("db", 500), ("web", 51), ("log", 300), ("batch", 50)];
    bench.inventory.images.insert("registry.test/unneeded:1".to_owned());
    bench.observe();
    short(&mut bench, &uses);
    assert_eq!(bench.stopped(), Vec::<String>::new(), "images that nobody needs go first");
    bench.inventory.images.remove("registry.test/unneeded:1");
    bench.observe();
    short(&mut bench, &uses);
    assert_eq!(bench.stopped(), ["log"], "what batch has makes no difference");
    let log = bench.id("log");
    let removed = |bench: &Bench| {
        bench
            .log
            .iter()
            .any(|op| matches!(op, RuntimeOp::Remove { container, logs: false } if *container == log))
    };
    let replica = replica_id("log", 0);
    while !removed(&bench) {
        bench.settle();
        bench.observe();
        let status = &bench.plan.statuses[&replica];
        assert_eq!(status.phase, Phase::Backoff, "{}", status.reason);
    }
    bench.settle();
    bench.observe();
    let status = &bench.plan.statuses[&replica];
    assert_eq!(status.phase, Phase::Backoff, "it is removed, and still waits");
    assert!(
        status.reason.contains("had written 300 MiB beside its volumes, and has priority 0"),
        "{}",
        status.reason
    );
    let again = bench.plan.wake_at_ms.unwrap() - bench.now.mono_ms;
    bench.wait(again);
    bench.settle();
    bench.observe();
    let status = &bench.plan.statuses[&replica];
    assert_eq!((status.phase, status.restarts), (Phase::Running, 1));
}

#[test]
fn when_processes_are_short_the_lowest_priority_that_has_more_than_its_share_makes_room() {
    let mut bench = running(&[("db", 10, 100), ("web", 0, 200), ("bomb", 0, 50), ("batch", -5, 0)]);
    let uses = [("db", 3000), ("web", 1100), ("bomb", 20_000), ("batch", 1)];
    let short = |bench: &mut Bench| {
        let uses = uses.iter().map(|(name, count)| (bench.id(name), *count)).collect();
        bench.replicas.short(Scarce::Processes, uses);
        bench.step();
    };
    short(&mut bench);
    assert_eq!(bench.stopped(), ["bomb"], "not the one that has a single process");
    bench.settle();
    bench.observe();
    let reason = &bench.plan.statuses[&replica_id("bomb", 0)].reason;
    assert!(reason.contains("short of processes: it had 20000, and has priority 0"), "{reason}");
}
