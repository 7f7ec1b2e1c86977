//! The machine's screen.

use std::time::Duration;

use hivemind_qemu::{Machine, MachineOptions};
use hivemind_tests::cluster::{Cluster, FORMING, STARTING};
use hivemind_tests::{probe, wait};

/// How long until the screen shows what has happened: it is painted every five seconds.
const SHOWN: Duration = Duration::from_secs(30);

fn shows(machine: &Machine, within: Duration, texts: &[&str]) -> Vec<String> {
    let what = format!("the screen shows {texts:?}");
    let look = || {
        let rows = machine.screen().map_err(|error| error.to_string())?;
        let all = texts.iter().all(|text| rows.iter().any(|row| row.contains(text)));
        if all { Ok(rows) } else { Err(rows.join("\n")) }
    };
    wait::until(&what, within, look).0
}

#[test]
fn whoever_stands_in_front_of_a_machine_sees_what_is_missing_how_it_is_and_what_happens() {
    let mut cluster = Cluster::new("screen", 1).with_probe().as_shipped();
    cluster.add_with(MachineOptions { screen: true, ..MachineOptions::with_image("m1", &cluster.image) });
    let machine = &cluster.machines[0];
    machine.link_down().unwrap();
    machine.power_on().unwrap();
    let rows = shows(machine, FORMING, &["no network", "none: no cable is plugged into eth0", "init up"]);
    assert!(rows[0].starts_with(" Hivemind 0.1.0") && rows[0].ends_with("no network"), "{rows:#?}");

    machine.link_up().unwrap();
    cluster.wait_for_ready(1);
    let address = format!("{}/24 on eth0, gateway 10.77.0.1", machine.address());
    let rows = shows(machine, SHOWN, &["screen: 1 of 1 machine ready", &address, "address leased"]);
    assert!(rows[0].ends_with(" ready"), "{rows:#?}");

    cluster.push("services:\n  web:\n    image: registry.lab:5000/nginx:1\n").ok();
    cluster.wait_for_running("web", 1, STARTING);
    shows(
        machine,
        SHOWN,
        &["1 of 1 replica running here, 1 of 1 in the cluster", "default/web-0 is running"],
    );
    cluster.push("services:\n  gone:\n    image: registry.lab:5000/nothing:1\n").ok();
    shows(machine, STARTING, &[" ! ", "default/gone-0"]);

    // An agent that does not come back: PID 1 kills it when it gives no sign of life, and says so in its place.
    probe::ask(&cluster.lab, machine, &["kill", "SIGKILL", "hivemindd agent"]).unwrap();
    let rows = shows(machine, SHOWN, &["agent was killed by SIGKILL", "screen: 1 of 1 machine ready"]);
    let lines = rows.iter().position(|row| row.contains("agent was killed")).unwrap();
    assert!(lines >= 12 && rows[0].ends_with(" ready"), "the lines are below what is painted: {rows:#?}");
}
