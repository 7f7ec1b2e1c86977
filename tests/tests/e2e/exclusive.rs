//! A workload of which there must never be two, on machines that are cut off, whose agent stands still, and
//! that stand still themselves.

use std::time::Duration;

use hivemind_qemu::Machine;
use hivemind_tests::cluster::{Cluster, STARTING};
use hivemind_tests::{probe, wait};

/// Detection (at most 8 s), the rest of a lease (15 s), and a start elsewhere.
const MOVED: Duration = Duration::from_secs(90);

/// From a paused machine's return to the end of what it must not run any more: one look at the hardware
/// clock, on an emulated machine.
const WOKEN: Duration = Duration::from_secs(6);

/// What the container's process looks like.
const PROCESS: &str = "/misbehave";

#[test]
fn an_exclusive_workload_never_runs_twice_whatever_befalls_its_machine() {
    let cluster = Cluster::new("exclusive", 3).with_probe().form(3);
    cluster
        .push("services:\n  single:\n    image: registry.lab:5000/misbehave:1\n    x-hivemind: {exclusive: true}\n")
        .ok();
    it_has_a_deadline_from_its_start_on(&cluster);
    cluster.wait_for_running("single", 1, STARTING);
    probe::ask(&cluster.lab, &cluster.machines[holder(&cluster)], &["kill", "SIGKILL", PROCESS]).unwrap();
    it_has_a_deadline_from_its_start_on(&cluster);
    cluster.wait_for_running("single", 1, STARTING);
    let holder = a_machine_that_is_cut_off_stops_before_another_starts(&cluster);
    let holder = an_agent_that_stands_still_keeps_nothing_alive(&cluster, holder);
    a_machine_that_stood_still_ends_what_runs_elsewhere(&cluster, holder);
}

fn runs(cluster: &Cluster, machine: &Machine) -> Result<bool, String> {
    Ok(!probe::ask(&cluster.lab, machine, &["pids", PROCESS])?.is_empty())
}

/// Waits for a process that is new, and looks whether PID 1 has been told until when it may run.
fn it_has_a_deadline_from_its_start_on(cluster: &Cluster) {
    let pids = |machine: &Machine| probe::ask(&cluster.lab, machine, &["pids", PROCESS]).unwrap();
    let started = || cluster.machines.iter().find(|machine| !pids(machine).is_empty());
    let (machine, _) = wait::polling(Duration::from_millis(50), "it starts", STARTING, || {
        started().ok_or("it has not".to_owned())
    });
    // Its shim is told its name.
    let answer = probe::ask(&cluster.lab, machine, &["pids", "containerd-shim-runc-v2"]).unwrap();
    let named = answer.lines().filter_map(|shim| shim.split_once(" -id ")?.1.split(' ').next());
    let containers: Vec<&str> = named.collect();
    let [container] = containers[..] else { panic!("{answer}") };
    let fence = format!("/run/hivemind/fences/{container}");
    probe::ask(&cluster.lab, machine, &["cat", &fence]).unwrap_or_else(|error| panic!("{error}"));
}

fn holder(cluster: &Cluster) -> usize {
    let runs = |machine: &Machine| runs(cluster, machine).unwrap();
    let holders: Vec<usize> = (0..3).filter(|index| runs(&cluster.machines[*index])).collect();
    assert_eq!(holders.len(), 1, "{holders:?}");
    holders[0]
}

/// Waits until another machine runs it; when one does, the old one must not. The new one is asked first, so
/// that a change in between looks like neither.
fn wait_until_it_runs_elsewhere(cluster: &Cluster, old: usize, asks_old: bool) -> usize {
    let others: Vec<usize> = (0..3).filter(|index| *index != old).collect();
    let what = format!("it runs elsewhere than on m{}", old + 1);
    wait::until(&what, MOVED, || {
        for other in &others {
            if runs(cluster, &cluster.machines[*other])? {
                assert!(!asks_old || !runs(cluster, &cluster.machines[old])?, "it runs twice");
                return Ok(*other);
            }
        }
        Err("nowhere".to_owned())
    })
    .0
}

fn wait_until_one_machine_runs_it(cluster: &Cluster) -> usize {
    cluster.wait_for_ready(3);
    cluster.wait_for_running("single", 1, STARTING);
    wait::throughout("one machine runs it", Duration::from_secs(10), || {
        let found: Result<Vec<bool>, String> = cluster.machines.iter().map(|m| runs(cluster, m)).collect();
        let found = found?;
        let count = found.iter().filter(|runs| **runs).count();
        if count == 1 { Ok(()) } else { Err(format!("{found:?}")) }
    });
    holder(cluster)
}

fn a_machine_that_is_cut_off_stops_before_another_starts(cluster: &Cluster) -> usize {
    let old = holder(cluster);
    let machine = &cluster.machines[old];
    let others: Vec<&Machine> = cluster.machines.iter().filter(|m| m.name() != machine.name()).collect();
    cluster.lab.partition(&[machine], &others);
    wait_until_it_runs_elsewhere(cluster, old, true);
    cluster.lab.heal();
    wait_until_one_machine_runs_it(cluster)
}

fn an_agent_that_stands_still_keeps_nothing_alive(cluster: &Cluster, old: usize) -> usize {
    let machine = &cluster.machines[old];
    probe::ask(&cluster.lab, machine, &["kill", "SIGSTOP", "hivemindd agent"]).unwrap();
    wait_until_it_runs_elsewhere(cluster, old, true);
    assert!(machine.serial().contains("was killed: its lease has ended"), "{}", machine.serial());
    probe::ask(&cluster.lab, machine, &["kill", "SIGCONT", "hivemindd agent"]).unwrap();
    wait_until_one_machine_runs_it(cluster)
}

fn a_machine_that_stood_still_ends_what_runs_elsewhere(cluster: &Cluster, old: usize) {
    let machine = &cluster.machines[old];
    machine.pause().unwrap();
    // It cannot be asked now, and nothing runs on it.
    let new = wait_until_it_runs_elsewhere(cluster, old, false);
    machine.resume().unwrap();
    wait::until("what ran on it has ended", WOKEN, || match runs(cluster, machine)? {
        false => Ok(()),
        true => Err("it still runs".to_owned()),
    });
    assert!(runs(cluster, &cluster.machines[new]).unwrap(), "the other goes on");
    assert_eq!(wait_until_one_machine_runs_it(cluster), new, "and stays where it is");
}
