//! The machine's screen.

use std::time::Duration;

use hivemind_qemu::{Machine, MachineOptions};
use hivemind_tests::cluster::{Cluster, FORMING, STARTING};
use hivemind_tests::{probe, wait};

/// How long until the screen shows what has happened: it is painted every five seconds, and once a minute at least.
const SHOWN: Duration = Duration::from_secs(90);

/// Waits until its first row ends so, and all of the texts are somewhere.
fn shows(machine: &Machine, within: Duration, title: &str, texts: &[&str]) -> Vec<String> {
    let what = format!("the screen shows {title:?} and {texts:?}");
    let look = || {
        let rows = machine.screen().map_err(|error| error.to_string())?;
        let all = rows[0].starts_with(" Hivemind 0.1.0") && rows[0].ends_with(title);
        let all = all && texts.iter().all(|text| rows.iter().any(|row| row.contains(text)));
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
    shows(machine, FORMING, " no network", &["none: no cable is plugged into eth0", "init up"]);

    machine.link_up().unwrap();
    cluster.wait_for_ready(1);
    let address = format!("{}/24 on eth0, gateway 10.77.0.1", machine.address());
    shows(machine, SHOWN, " ready", &["screen: 1 of 1 machine ready", &address, "address leased"]);

    cluster.push("services:\n  web:\n    image: registry.lab:5000/nginx:1\n").ok();
    cluster.wait_for_running("web", 1, STARTING);
    shows(
        machine,
        SHOWN,
        " ready",
        &["1 of 1 replica running here, 1 of 1 in the cluster", "default/web-0 is running"],
    );
    cluster.push("services:\n  gone:\n    image: registry.lab:5000/nothing:1\n").ok();
    shows(machine, STARTING, " ready", &[" ! default/gone-0"]);

    probe::ask(&cluster.lab, machine, &["kill", "SIGKILL", "hivemindd agent"]).unwrap();
    let rows =
        shows(machine, SHOWN, " ready", &["agent was killed by SIGKILL", "screen: 1 of 1 machine ready"]);
    let line = rows.iter().position(|row| row.contains("agent was killed")).unwrap();
    assert!(line >= 12, "the lines are below what is painted: {rows:#?}");
}
