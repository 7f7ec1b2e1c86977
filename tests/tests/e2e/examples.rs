//! Applications as people write them, from `docs/examples`.

use hivemind_tests::cluster::{Cluster, STARTING};
use hivemind_tests::wait;

#[test]
fn home_automation_runs_with_a_broker_a_device_and_a_hub_on_the_machines_network() {
    let cluster = Cluster::formed("home", 2);
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/home.yaml");
    let refused = cluster.hivemind(["push", file]).failed().stderr();
    assert!(refused.contains("hivemind namespaces allow default"), "{refused}");
    cluster.hivemind(["namespaces", "allow", "default", "devices", "host-network"]).ok();
    cluster.hivemind(["push", file, "--wait"]).ok();
    // By the broker's name, from the machine's network and through whatever is between.
    cluster.wait_for_words("hub", &["home/temperature 21.5 of /dev/ttyUSB0"], STARTING);

    // What the broker was told outlives it and its machine's power.
    cluster.hivemind(["remove", "thermometer", "--yes"]).ok();
    let broker = cluster.wait_for_running("mosquitto", 1, STARTING).remove(0);
    let machine = cluster.machine_of(&broker);
    cluster.hivemind(["exec", "mosquitto", "sync"]).ok();
    machine.power_cut();
    machine.power_on().unwrap();
    cluster.wait_for_ready(2);
    let ask = ["exec", "mosquitto", "mosquitto_sub", "-t", "home/#", "-C", "1", "-W", "10"];
    // What was said of the broker before the power went is said until its machine says something else.
    let (kept, _) = wait::until("the broker answers again", STARTING, || {
        let asked = cluster.hivemind(ask);
        if asked.is_ok() { Ok(asked.stdout()) } else { Err(asked.stderr()) }
    });
    assert_eq!(kept.trim(), "21.5 of /dev/ttyUSB0");
}
