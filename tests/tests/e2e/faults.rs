//! What happens to networks and power, on one cluster of three: after each fault all is as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hivemind_qemu::{Impairment, Machine};
use hivemind_tests::cluster::{Cluster, FORMING, Replica, STARTING};
use hivemind_tests::command::items;
use hivemind_tests::{probe, wait};

/// Detection (at most 8 s) and a start elsewhere, on machines that compete for two cores.
const TAKEN_OVER: Duration = Duration::from_secs(60);

/// Finding each other again, exchanging maps, and stopping what is twice.
const HEALED: Duration = Duration::from_secs(60);

/// How long nothing may happen on a bad cable.
const BAD_CABLE: Duration = Duration::from_secs(60);

/// Twice what it takes to be declared dead.
const FROZEN: Duration = Duration::from_secs(20);

/// What a container's first process looks like: `PID COMMAND`.
const PROCESS: &str = "/misbehave";

#[test]
fn partitions_bad_cables_freezes_and_power_cuts_leave_the_cluster_as_it_was() {
    let cluster = Cluster::new("faults", 3).with_probe().form(3);
    push(&cluster, "app", 3);
    cluster.wait_for_running("app", 3, STARTING);
    a_bad_cable_makes_nobody_dead(&cluster);
    a_partition_heals_without_duplicates_or_restarts(&cluster);
    a_frozen_machine_follows_again_and_leaves_no_duplicate(&cluster);
    after_a_power_cut_everywhere_the_app_runs_again_by_itself(&cluster);
}

fn a_bad_cable_makes_nobody_dead(cluster: &Cluster) {
    let before = Seen::of(cluster);
    let replicas = cluster.wait_for_running("app", 3, STARTING);
    cluster.machines[2].impair(Impairment {
        delay: Duration::from_millis(50),
        loss: 0.15,
        ..Impairment::default()
    });
    wait::throughout("all stay ready and every replica where it is", BAD_CABLE, || {
        let nodes = items(&at(cluster, &cluster.machines[0], &["nodes"])?);
        let now = replicas_at(cluster, &cluster.machines[0], "app")?;
        let ready = nodes.iter().filter(|node| node["state"] == "ready").count();
        if ready == 3 && now == replicas { Ok(()) } else { Err(format!("{nodes:#?} {now:#?}")) }
    });
    cluster.machines[2].impair(Impairment::default());
    assert_eq!(before.downs, Seen::of(cluster).downs, "no machine was called dead, not for a moment");
    assert_eq!(before.processes, Seen::of(cluster).processes, "the same processes");
}

fn a_partition_heals_without_duplicates_or_restarts(cluster: &Cluster) {
    let replicas = cluster.wait_for_running("app", 3, STARTING);
    let [alone, majority @ ..] = cluster.machines.as_slice() else { panic!("three machines") };
    let majority: Vec<&Machine> = majority.iter().collect();
    let lonely = node_of(cluster, alone);
    let before = processes(cluster);

    cluster.lab.partition(&[alone], &majority);
    wait::until("the larger side takes over", TAKEN_OVER, || {
        let now = replicas_at(cluster, majority[0], "app")?;
        let all = now.len() == 3 && now.iter().all(|r| r.phase == "running" && r.node != lonely);
        if all { Ok(()) } else { Err(format!("{now:#?}")) }
    });
    let kept = replicas.iter().find(|r| r.node == lonely).unwrap();
    wait::until("the smaller side knows that it is alone", TAKEN_OVER, || {
        let now = replicas_at(cluster, alone, "app")?;
        let waits = |r: &&Replica| r.phase == "pending" && r.reason.contains("may not take over");
        let right = now.contains(kept) && now.iter().filter(waits).count() == 2;
        if right { Ok(()) } else { Err(format!("{now:#?}")) }
    });
    assert_eq!(processes(cluster)[alone.name()], before[alone.name()], "it keeps its own, and no more");
    // Both sides take pushes.
    push_at(cluster, alone, "smaller", 1);
    push_at(cluster, majority[0], "larger", 1);
    for (machine, workload) in [(alone, "smaller"), (majority[0], "larger")] {
        wait::until(&format!("{workload} runs"), STARTING, || {
            let now = replicas_at(cluster, machine, workload)?;
            if now.iter().any(|r| r.phase == "running") { Ok(()) } else { Err(format!("{now:#?}")) }
        });
    }

    cluster.lab.heal();
    wait_for_one_map(cluster);
    for (workload, count) in [("app", 3), ("smaller", 1), ("larger", 1)] {
        cluster.wait_for_running(workload, count, HEALED);
    }
    wait_for_processes(cluster, 5);
    let after = processes(cluster);
    for machine in &majority {
        let name = machine.name();
        assert!(after[name].is_superset(&before[name]), "{name} was healthy: {before:#?} {after:#?}");
    }
    cluster.hivemind(["remove", "--yes", "smaller", "larger"]).ok();
    wait_for_processes(cluster, 3);
}

fn a_frozen_machine_follows_again_and_leaves_no_duplicate(cluster: &Cluster) {
    let replicas = cluster.wait_for_running("app", 3, STARTING);
    let victim = cluster.machine_of(&replicas[0]);
    let frozen = node_of(cluster, victim);
    let others: Vec<&Machine> = cluster.machines.iter().filter(|m| m.name() != victim.name()).collect();
    let before = processes(cluster);
    let downs = Seen::of(cluster).downs;
    victim.freeze().unwrap();
    let taken_over = wait::until("its replicas run elsewhere", TAKEN_OVER, || {
        let now = replicas_at(cluster, others[0], "app")?;
        let all = now.len() == 3 && now.iter().all(|r| r.phase == "running" && r.node != frozen);
        if all { Ok(()) } else { Err(format!("{now:#?}")) }
    })
    .1;
    std::thread::sleep(FROZEN.saturating_sub(taken_over));
    victim.thaw().unwrap();
    wait_for_one_map(cluster);
    cluster.wait_for_running("app", 3, HEALED);
    wait_for_processes(cluster, 3);
    let after = processes(cluster);
    for machine in others {
        let name = machine.name();
        assert!(after[name].is_superset(&before[name]), "{name} was healthy: {before:#?} {after:#?}");
    }
    assert_eq!(
        Seen::of(cluster).downs[victim.name()],
        downs[victim.name()],
        "who slept accuses nobody of its own absence"
    );
}

fn after_a_power_cut_everywhere_the_app_runs_again_by_itself(cluster: &Cluster) {
    // So that the machine that comes up alone has something of its own.
    cluster.hivemind(["remove", "--yes", "app"]).ok();
    wait_for_processes(cluster, 0);
    push(cluster, "app", 3);
    let before = cluster.wait_for_running("app", 3, STARTING);
    wait_for_one_map(cluster);
    let [alone, others @ ..] = cluster.machines.as_slice() else { panic!("three machines") };
    let lonely = node_of(cluster, alone);
    let own = before.iter().find(|r| r.node == lonely).unwrap();
    for machine in &cluster.machines {
        machine.power_cut();
    }

    // One comes up with its cable out: only its console tells.
    alone.link_down().unwrap();
    alone.power_on().unwrap();
    let started = format!("default/app-{} is running", own.slot);
    alone.wait_for_line(&started, STARTING).unwrap();
    let before_network = alone.serial();
    assert!(!before_network_says(&before_network, &before, &lonely), "its own and no more: {before_network}");

    for machine in others {
        machine.power_on().unwrap();
    }
    alone.link_up().unwrap();
    cluster.wait_for_ready(3);
    let after = cluster.wait_for_running("app", 3, FORMING);
    let places = |replicas: &[Replica]| -> BTreeMap<u64, String> {
        replicas.iter().map(|r| (r.slot, r.node.clone())).collect()
    };
    assert_eq!(places(&after), places(&before), "everything is where it was");
    wait_for_one_map(cluster);
    wait_for_processes(cluster, 3);
    let starts = alone.serial().matches(&started).count();
    assert_eq!(starts, before_network.matches(&started).count(), "the network's return restarted nothing");
}

/// Whether the console tells of a start, since the power came back, of a replica that is another machine's.
fn before_network_says(console: &str, replicas: &[Replica], lonely: &str) -> bool {
    let since = console.rsplit("init up").next().unwrap_or_default();
    let others = replicas.iter().filter(|r| r.node != lonely);
    others.into_iter().any(|r| since.contains(&format!("default/app-{} is running", r.slot)))
}

fn push(cluster: &Cluster, workload: &str, replicas: u32) {
    push_at(cluster, &cluster.machines[0], workload, replicas);
}

fn push_at(cluster: &Cluster, machine: &Machine, workload: &str, replicas: u32) {
    let text = format!(
        "services:\n  {workload}:\n    image: registry.lab:5000/misbehave:1\n    \
         deploy: {{replicas: {replicas}}}\n"
    );
    let file = hivemind_tests::command::compose(cluster.folder(), &text);
    let address = machine.address().to_string();
    cluster.hivemind(["push", &file.to_string_lossy(), "--node", &address]).ok();
}

/// What one machine answers, whatever the others would.
fn at(cluster: &Cluster, machine: &Machine, arguments: &[&str]) -> Result<serde_json::Value, String> {
    let address = machine.address().to_string();
    cluster.json(&[arguments, &["--node", &address]].concat())
}

fn replicas_at(cluster: &Cluster, machine: &Machine, workload: &str) -> Result<Vec<Replica>, String> {
    let all = items(&at(cluster, machine, &["ps"])?);
    Ok(all.iter().filter(|r| r["workload"] == workload).map(Replica::from).collect())
}

fn node_of(cluster: &Cluster, machine: &Machine) -> String {
    at(cluster, machine, &["status"]).unwrap()["node"].as_str().unwrap().to_owned()
}

/// Waits until all see all ready and hold the same map.
fn wait_for_one_map(cluster: &Cluster) {
    wait::until("all hold the same map", HEALED, || {
        let mut digests = BTreeSet::new();
        for machine in &cluster.machines {
            let status = at(cluster, machine, &["status"])?;
            if status["nodesReady"] != cluster.machines.len() {
                return Err(format!("{}: {status:#}", machine.name()));
            }
            digests.insert(status["mapDigest"].to_string());
        }
        if digests.len() == 1 { Ok(()) } else { Err(format!("{digests:?}")) }
    });
}

/// The containers' processes on each machine.
fn processes(cluster: &Cluster) -> BTreeMap<String, BTreeSet<String>> {
    let of = |machine: &Machine| {
        let found = probe::ask(&cluster.lab, machine, &["pids", PROCESS]);
        found
            .unwrap_or_else(|error| panic!("{}: {error}", machine.name()))
            .lines()
            .map(str::to_owned)
            .collect()
    };
    cluster.machines.iter().map(|machine| (machine.name().to_owned(), of(machine))).collect()
}

/// Waits until so many containers run on all machines together.
fn wait_for_processes(cluster: &Cluster, count: usize) {
    wait::until(&format!("{count} containers, no more"), HEALED, || {
        let found = processes(cluster);
        let all: usize = found.values().map(BTreeSet::len).sum();
        if all == count { Ok(()) } else { Err(format!("{found:#?}")) }
    });
}

/// What must not change while nothing really happens.
struct Seen {
    processes: BTreeMap<String, BTreeSet<String>>,
    /// How often each machine's console told of a dead node.
    downs: BTreeMap<String, usize>,
}

impl Seen {
    fn of(cluster: &Cluster) -> Self {
        let downs = |machine: &Machine| machine.serial().matches("code=node-down").count();
        let downs = cluster.machines.iter().map(|m| (m.name().to_owned(), downs(m))).collect();
        Self { processes: processes(cluster), downs }
    }
}
