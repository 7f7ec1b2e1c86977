//! New releases of the operating system: those that do well stay, and from the others the machine goes back.

use std::fs;
use std::time::{Duration, Instant};

use hivemind_init::boot_menu::Assessment;
use hivemind_qemu::Machine;
use hivemind_tests::cluster::{Cluster, FORMING};
use hivemind_tests::release::{self, Difference, Release};
use hivemind_tests::wait;

/// The version of all of them: releases that differ in the kernel's command line only share a root, which takes long to
/// pack.
const NEWER: &str = "0.2.0";

/// How long a machine may take to be back on the release that works.
const BACK: Duration = Duration::from_secs(300);

/// Machines with firmware that have been a cluster, and are off.
fn machines(name: &str, count: usize) -> Cluster {
    let mut cluster = Cluster::new(name, count);
    cluster.image = cluster.image.clone().with_firmware();
    let cluster = cluster.form(count);
    cluster.machines.iter().for_each(Machine::power_cut);
    cluster
}

#[test]
fn a_release_is_good_once_the_node_is_healthy_and_stays_through_twenty_power_cuts() {
    let cluster = machines("good", 1);
    let machine = &cluster.machines[0];
    let release = Release::build(NEWER, &Difference::default());
    release.install(machine, Assessment::Indeterminate { left: 3, done: 0 });
    machine.power_on().unwrap();
    machine.wait_for_line("is on trial", FORMING).unwrap();
    machine.wait_for_line("the release is good", FORMING).unwrap();
    // Into the firmware, the boot menu, the kernel, and what follows.
    for seconds in (0..17).map(|cut| 0.15 * f64::from(cut)).chain([4.0, 7.0, 10.0]) {
        machine.power_cut();
        machine.power_on().unwrap();
        std::thread::sleep(Duration::from_secs_f64(seconds));
    }
    machine.power_cut();
    assert_eq!(release::assessment(machine, release.id()), Some(Assessment::Good));
    let lines = machine.serial().matches("root is /dev/vda3, verified").count();
    machine.power_on().unwrap();
    wait::until("it starts the release again", FORMING, || {
        let now = machine.serial().matches("root is /dev/vda3, verified").count();
        if now > lines { Ok(()) } else { Err(format!("{now} times")) }
    });
    cluster.wait_for_ready(1);
}

/// Each machine gets a release that fails, in its way; all are back on the one before within five minutes, and do not
/// try it again.
fn go_back(name: &str, ways: &[(&Difference<'_>, &str)]) {
    let cluster = machines(name, ways.len());
    let started = Instant::now();
    let mut releases = Vec::new();
    for (machine, (difference, _)) in cluster.machines.iter().zip(ways) {
        let release = Release::build(NEWER, difference);
        release.install(machine, Assessment::Indeterminate { left: 3, done: 0 });
        releases.push(release);
    }
    cluster.machines.iter().for_each(|machine| machine.power_on().unwrap());
    for (machine, (_, says)) in cluster.machines.iter().zip(ways) {
        machine.wait_for_line(says, BACK).unwrap();
    }
    cluster.wait_for_ready_within(ways.len(), BACK);
    assert!(started.elapsed() < BACK, "{:?}", started.elapsed());
    for (machine, release) in cluster.machines.iter().zip(&releases) {
        machine.power_cut();
        assert_eq!(release::assessment(machine, release.id()), Some(Assessment::Bad));
    }
}

#[test]
fn from_a_kernel_that_panics_and_an_init_that_ends_the_machine_goes_back() {
    // A program that says how to call it, and ends.
    let ends = fs::read(release::programs().agent).unwrap();
    let panics = Difference { append: "panic=1 rdinit=/none", ..Difference::default() };
    let ends = Difference { append: "panic=1", init: Some(&ends), ..Difference::default() };
    go_back("init", &[(&panics, "Kernel panic"), (&ends, "Attempted to kill init")]);
}

#[test]
fn from_an_agent_that_crashes_and_a_network_that_does_not_come_the_machine_goes_back() {
    let ends = fs::read(release::programs().init).unwrap();
    let crashes = Difference { append: "hivemind.trial=20", agent: Some(&ends), ..Difference::default() };
    let no_network =
        Difference { append: "hivemind.trial=30 module_blacklist=virtio_net", ..Difference::default() };
    go_back("agent", &[(&crashes, "release-unhealthy"), (&no_network, "release-unhealthy")]);
}

#[test]
fn from_a_containerd_that_does_not_start_the_machine_goes_back() {
    let mut looks_elsewhere = fs::read(release::programs().init).unwrap();
    let path = b"/usr/bin/containerd";
    let places: Vec<usize> =
        (0..looks_elsewhere.len()).filter(|at| looks_elsewhere[*at..].starts_with(path)).collect();
    assert!(!places.is_empty());
    places.iter().for_each(|at| looks_elsewhere[*at..][..path.len()].copy_from_slice(b"/usr/bin/containerX"));
    let no_containerd =
        Difference { append: "hivemind.trial=30", init: Some(&looks_elsewhere), ..Difference::default() };
    go_back("containerd", &[(&no_containerd, "release-unhealthy")]);
}

#[test]
fn from_a_kernel_that_hangs_the_machine_goes_back() {
    let cluster = machines("hanging", 1);
    let machine = &cluster.machines[0];
    let started = Instant::now();
    let release = Release::build(NEWER, &Difference::default());
    release.install(machine, Assessment::Indeterminate { left: 3, done: 0 });
    machine.power_on().unwrap();
    for tried in 1..=3 {
        wait::until(&format!("try {tried}"), BACK, || {
            let found = machine.serial().matches("root is /dev/vda3, verified").count();
            if found == tried { Ok(()) } else { Err(format!("{found} times")) }
        });
        machine.hang().unwrap();
    }
    cluster.wait_for_ready_within(1, BACK);
    assert!(started.elapsed() < BACK, "{:?}", started.elapsed());
    machine.power_cut();
    assert_eq!(release::assessment(machine, release.id()), Some(Assessment::Bad));
}
