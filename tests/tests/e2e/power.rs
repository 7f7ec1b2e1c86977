//! Machines lose their power, of two and all together.

use std::time::Duration;

use hivemind_qemu::Machine;
use hivemind_tests::cluster::{Cluster, STARTING};
use hivemind_tests::command::compose;
use hivemind_tests::wait;

/// Power cuts of all machines together in every run; set `HIVEMIND_POWER_ROUNDS` for more.
const ROUNDS: usize = 20;

/// From the agent's start to its last assignment running, with no network, seconds.
const RUNS_AGAIN_WITHIN_S: f64 = 15.0;

/// Machines under emulation need some seconds to boot before that.
const BOOTING: Duration = Duration::from_secs(60);

fn app(cluster: &Cluster, name: &str, replicas: u32) -> String {
    let text = format!(
        "services:\n  {name}:\n    image: registry.lab:5000/misbehave:1\n    \
         deploy: {{replicas: {replicas}}}\n"
    );
    compose(cluster.folder(), &text).to_string_lossy().into_owned()
}

#[test]
fn one_of_two_takes_over_and_accepts_pushes_and_the_other_returns_and_follows() {
    let cluster = Cluster::formed("two", 2);
    cluster.hivemind(["push", &app(&cluster, "app", 2)]).ok();
    let before = cluster.wait_for_running("app", 2, STARTING);
    let victim = cluster.machine_of(&before[0]);
    let survivor = cluster.machine_of(&before[1]);
    assert_ne!(victim.name(), survivor.name(), "spread over both");
    victim.power_cut();

    let at_survivor = survivor.address().to_string();
    wait::until("the survivor runs both", Duration::from_secs(60), || {
        let replicas = cluster.replicas("app")?;
        let moved =
            replicas.len() == 2 && replicas.iter().all(|r| r.phase == "running" && r.node == before[1].node);
        if moved { Ok(()) } else { Err(format!("{replicas:#?}")) }
    });
    cluster.hivemind(["push", &app(&cluster, "more", 1), "--node", &at_survivor]).ok();
    cluster.wait_for_running("more", 1, STARTING);

    victim.power_on().unwrap();
    cluster.wait_for_ready(2);
    let at_victim = victim.address().to_string();
    wait::until("who was away knows what was pushed meanwhile", STARTING, || {
        let workloads = cluster.json(&["ps", "--node", &at_victim])?;
        if workloads.to_string().contains("more") { Ok(()) } else { Err(workloads.to_string()) }
    });
    cluster.wait_for_running("app", 2, STARTING);
    wait::throughout("two replicas of one, one of the other, no more", Duration::from_secs(10), || {
        let counts = (cluster.replicas("app")?.len(), cluster.replicas("more")?.len());
        if counts == (2, 1) { Ok(()) } else { Err(format!("{counts:?}")) }
    });
}

/// When a line of the console was written, seconds since the kernel started.
fn written_s(line: &str) -> f64 {
    let stamp = line.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    stamp.and_then(|(stamp, _)| stamp.trim().parse().ok()).unwrap_or_else(|| panic!("no time in {line:?}"))
}

/// What the console has told since the power came back the last time.
fn since_power_on(machine: &Machine) -> String {
    machine.serial().rsplit("init up").next().unwrap_or_default().to_owned()
}

#[test]
fn machines_that_lose_power_together_run_their_own_assignments_alone_within_fifteen_seconds() {
    let cluster = Cluster::formed("alone", 2);
    cluster.hivemind(["push", &app(&cluster, "app", 2)]).ok();
    let placed = cluster.wait_for_running("app", 2, STARTING);
    let homes: Vec<_> = cluster
        .machines
        .iter()
        .map(|machine| {
            let own = placed.iter().find(|r| cluster.machine_of(r).name() == machine.name());
            own.unwrap_or_else(|| panic!("nothing is placed on {}", machine.name()))
        })
        .collect();
    let rounds = std::env::var("HIVEMIND_POWER_ROUNDS").ok().and_then(|count| count.parse().ok());
    let mut slowest_s: f64 = 0.0;
    for round in 0..rounds.unwrap_or(ROUNDS) {
        for machine in &cluster.machines {
            machine.power_cut();
            machine.link_down().unwrap();
        }
        let consoles: Vec<usize> = cluster.machines.iter().map(|m| m.serial().len()).collect();
        cluster.machines.iter().for_each(|machine| machine.power_on().unwrap());
        for ((machine, before), own) in cluster.machines.iter().zip(consoles).zip(&homes) {
            let running = format!("default/app-{} is running", own.slot);
            let what = format!("round {round}: {} runs its own", machine.name());
            wait::until(&what, BOOTING, || {
                let told = machine.serial().get(before..).is_some_and(|new| new.contains(&running));
                if told { Ok(()) } else { Err(since_power_on(machine)) }
            });
            let console = since_power_on(machine);
            let line = |part: &str| {
                let found = console.lines().find(|line| line.contains(part));
                written_s(found.unwrap_or_else(|| panic!("no {part:?} in {console}")))
            };
            slowest_s = slowest_s.max(line(&running) - line("this node"));
            let other =
                placed.iter().find(|r| r.slot != own.slot).map(|r| format!("app-{} is running", r.slot));
            assert!(!other.is_some_and(|other| console.contains(&other)), "its own and no more: {console}");
        }
    }
    eprintln!("the slowest ran {slowest_s:.1} s after its agent's start");
    assert!(slowest_s <= RUNS_AGAIN_WITHIN_S, "{slowest_s} s");

    for machine in &cluster.machines {
        machine.link_up().unwrap();
    }
    cluster.wait_for_ready(2);
    let after = cluster.wait_for_running("app", 2, STARTING);
    let places = |replicas: &[hivemind_tests::cluster::Replica]| -> Vec<_> {
        replicas.iter().map(|r| (r.slot, r.node.clone())).collect()
    };
    assert_eq!(places(&after), places(&placed), "everything is where it was");
}
