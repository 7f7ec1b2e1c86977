//! What a single machine is told to do, once.

use std::time::Duration;

use hivemind_qemu::Machine;
use hivemind_tests::cluster::{Cluster, FORMING, STARTING};
use hivemind_tests::command::items;
use hivemind_tests::console::starts;
use hivemind_tests::wait;

/// How long an ordered end may take: the containers' grace period, and a slow computer.
const ENDED: Duration = Duration::from_secs(60);

/// Gives an order for a machine by way of the other, and waits until it starts anew.
fn order_anew(cluster: &Cluster, node: &str, machine: &Machine, words: &[&str]) {
    let before = starts(machine);
    let other = cluster.machines.iter().find(|other| other.name() != machine.name()).unwrap();
    let by_way = other.address().to_string();
    cluster.hivemind([words, &[node, "--node", &by_way]].concat()).ok();
    wait::until("it starts anew", ENDED + FORMING, || {
        if starts(machine) > before { Ok(()) } else { Err("it has not".to_owned()) }
    });
}

#[test]
fn a_machine_starts_anew_forgets_and_switches_itself_off_when_an_admin_says_so_and_for_nobody_else() {
    let cluster = Cluster::formed("orders", 2);
    cluster
        .push("services:\n  app:\n    image: registry.lab:5000/misbehave:1\n    deploy: {replicas: 2}\n")
        .ok();
    cluster.wait_for_running("app", 2, STARTING);
    let [first, second] = cluster.machines.as_slice() else { panic!("two machines") };
    let address = second.address().to_string();
    let status = cluster.json(&["status", "--node", &address]).unwrap();
    let node = status["node"].as_str().unwrap().to_owned();
    let listed = || items(&cluster.json(&["nodes", "--node", &first.address().to_string()]).unwrap());
    let known = || -> Vec<String> {
        listed().iter().map(|node| node["id"].as_str().unwrap_or_default().to_owned()).collect()
    };
    let started =
        || listed().iter().find(|one| one["id"] == node.as_str()).map(|one| one["startedMs"].clone());
    let before = known();

    cluster.hivemind(["keys", "generate", "ci"]).ok();
    cluster.hivemind(["keys", "add", "ci", "--role", "deployer"]).ok();
    let refused = cluster.hivemind(["nodes", "reboot", &node, "--key", "ci"]).failed();
    assert!(refused.stderr().contains("may not give orders"), "{}", refused.stderr());
    assert_eq!(starts(second), 1);

    for (words, tells) in [
        (&["nodes", "reboot"][..], "init up"),
        (&["nodes", "reset", "--yes", "--wipe", "workloads"], "wiping workloads"),
        (&["nodes", "reset", "--yes", "--wipe", "state"], "wiping state"),
    ] {
        let before_order = started();
        order_anew(&cluster, &node, second, words);
        second.wait_for_line(tells, FORMING).unwrap();
        // Machines that are back within seconds were never missed: what the other says may be from before.
        wait::until("the other has heard of its start", FORMING, || {
            if started() == before_order { Err(format!("{before_order:?}")) } else { Ok(()) }
        });
        cluster.wait_for_ready(2);
        cluster.wait_for_running("app", 2, STARTING);
        assert_eq!(known(), before, "it is the node that it was");
    }

    order_anew(&cluster, &node, second, &["nodes", "reset", "--yes", "--wipe", "all"]);
    second.wait_for_line("wiping all", FORMING).unwrap();
    // The token's key was erased when it joined, and what it remembered is gone.
    second.wait_for_line("identity-no-token", FORMING).unwrap();

    let last = cluster.json(&["status"]).unwrap()["node"].as_str().unwrap().to_owned();
    cluster.hivemind(["nodes", "shutdown", "--yes", &last]).ok();
    first.wait_for_off(ENDED).unwrap();
}
