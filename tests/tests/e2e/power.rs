//! Machines lose their power, of two and all together.

use std::time::Duration;

use hivemind_qemu::Machine;
use hivemind_tests::cluster::{Cluster, STARTING};
use hivemind_tests::command::compose;
use hivemind_tests::console::Console;
use hivemind_tests::{setting, wait};

/// Power cuts of all machines together in every run; set `HIVEMIND_POWER_ROUNDS` for more.
const ROUNDS: u64 = 20;

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

#[test]
fn machines_that_lose_power_together_run_their_own_assignments_alone_within_fifteen_seconds() {
    let cluster = Cluster::formed("alone", 2);
    // What anybody may take over would run on both sides before long, as it should.
    let own = "services:\n  app:\n    image: registry.lab:5000/misbehave:1\n    deploy: {replicas: 2}\n    \
               x-hivemind: {takeover: never}\n";
    cluster.push(own).ok();
    let placed = cluster.wait_for_running("app", 2, STARTING);
    let (first, second) = (&cluster.machines[0], &cluster.machines[1]);
    let slot_of = |machine: &Machine| {
        let own = placed.iter().find(|r| cluster.machine_of(r).name() == machine.name());
        own.unwrap_or_else(|| panic!("nothing is placed on {}", machine.name())).slot
    };
    let (first_slot, second_slot) = (slot_of(first), slot_of(second));
    let mut slowest_s: f64 = 0.0;
    for round in 0..setting("HIVEMIND_POWER_ROUNDS", ROUNDS) {
        for machine in &cluster.machines {
            machine.power_cut();
            machine.link_down().unwrap();
        }
        let consoles: Vec<usize> = cluster.machines.iter().map(|m| m.serial().len()).collect();
        cluster.machines.iter().for_each(|machine| machine.power_on().unwrap());
        let homes = [(first, first_slot, second_slot), (second, second_slot, first_slot)];
        for ((machine, own, other), before) in homes.into_iter().zip(consoles) {
            let running = format!("default/app-{own} is running");
            let what = format!("round {round}: {} runs its own", machine.name());
            wait::until(&what, BOOTING, || {
                let told = machine.serial().get(before..).is_some_and(|new| new.contains(&running));
                if told { Ok(()) } else { Err(Console::of(machine).to_string()) }
            });
            let console = Console::of(machine);
            let took_s = (console.told_s(&running) - console.told_s("this node")) / console.slowness();
            slowest_s = slowest_s.max(took_s);
            let other = format!("default/app-{other} is running");
            assert!(!console.tells(&other), "its own and no more: {console}");
        }
    }
    eprintln!("the slowest ran {slowest_s:.1} s after its agent's start, on a computer of the usual speed");
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
