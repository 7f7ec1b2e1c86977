//! When a new release of the operating system is good.

use hivemind_core::event::Event;
use hivemind_core::node::STEADY_MS;
use hivemind_spec::document::{DEFAULT_NAMESPACE, Document, Kind, SpecKey};
use hivemind_spec::workload::{Condition, Dependency, RestartCondition, WorkloadSpec};
use hivemind_tests::sim::cast::*;
use hivemind_tests::sim::world::World;

use super::{running, runs_everywhere_once};

/// Longer than a healthy node takes to be called well again, milliseconds.
const LONG_MS: u64 = 60_000;

/// Three machines that run a workload; one that has a replica of it is off, and is to come back with a new release.
fn before_the_update(seed: u64) -> (World, usize) {
    let mut world = World::with_machines(seed, 3);
    assert!(world.run_until(8000, World::agrees));
    world.push(0, workload("web", 5, 3, &root_key())).expect("it is accepted");
    assert!(world.run_until(10_000, |world| runs_everywhere_once(world, 3)));
    world.run(3000);
    let updated = running(&world)[0].0;
    world.power_off(updated);
    world.machines[updated].on_trial = true;
    (world, updated)
}

#[test]
fn a_release_is_good_when_the_node_has_met_its_peers_and_runs_what_it_ran_before() {
    for seed in 70..75 {
        let (mut world, updated) = before_the_update(seed);
        world.power_on(updated);
        world.run(STEADY_MS - 1);
        assert!(world.machines[updated].on_trial, "seed {seed}: too early to tell");
        assert!(world.run_until(LONG_MS, |world| !world.machines[updated].on_trial), "seed {seed}");
        assert!(world.has_note(updated, "release-good"));
    }
}

#[test]
fn a_release_without_containerd_is_not_good() {
    let (mut world, updated) = before_the_update(75);
    world.power_on(updated);
    world.run(100);
    let mut facts = world.facts(updated);
    facts.problems.push("containerd does not answer".to_owned());
    world.tell(updated, Event::Facts { facts });
    world.run(LONG_MS);
    assert!(world.machines[updated].on_trial);
    let facts = world.facts(updated);
    world.tell(updated, Event::Facts { facts });
    assert!(world.run_until(LONG_MS, |world| !world.machines[updated].on_trial));
}

#[test]
fn a_release_without_network_is_not_good() {
    let (mut world, updated) = before_the_update(76);
    world.plug(updated, false);
    world.power_on(updated);
    world.run(LONG_MS);
    assert!(world.machines[updated].on_trial);
}

#[test]
fn a_release_that_does_not_reach_its_peers_is_not_good() {
    let (mut world, updated) = before_the_update(77);
    (0..3).filter(|other| *other != updated).for_each(|other| world.part(updated, other));
    world.power_on(updated);
    world.run(LONG_MS);
    assert!(world.machines[updated].on_trial);
    world.network.cut.clear();
    assert!(world.run_until(LONG_MS, |world| !world.machines[updated].on_trial));
}

#[test]
fn a_release_that_does_not_run_what_ran_before_is_not_good() {
    let (mut world, updated) = before_the_update(78);
    // Nobody takes the replica over meanwhile.
    (0..3).filter(|other| *other != updated).for_each(|other| world.power_off(other));
    world.machines[updated].runtime.failing = 100;
    world.power_on(updated);
    (0..3).filter(|other| *other != updated).for_each(|other| world.power_on(other));
    world.run(LONG_MS);
    assert!(world.machines[updated].on_trial);
}

#[test]
fn what_waits_for_others_or_is_no_longer_allowed_is_no_reason_to_leave_a_release() {
    let mut world = World::with_machines(80, 3);
    assert!(world.run_until(8000, World::agrees));
    world.machines.iter_mut().for_each(|machine| machine.has_modem = true);
    world.push(0, namespace_with_devices(4)).expect("it is accepted");
    world.push(0, workload("db", 5, 1, &root_key())).expect("it is accepted");
    let each = |name, shape: &dyn Fn(&mut WorkloadSpec)| {
        workload_with(name, 6, &root_key(), |spec| {
            (spec.replicas, spec.max_per_node) = (3, Some(1));
            shape(spec);
        })
    };
    let web = each("web", &|spec| {
        let (workload, condition) = ("db".to_owned(), Condition::Started);
        spec.depends_on = vec![Dependency { workload, condition, required: true }];
    });
    let hub = each("hub", &|spec| spec.container.machine.devices.push(modem()));
    for envelope in [web, hub] {
        world.push(0, envelope).expect("it is accepted");
    }
    assert!(world.run_until(60_000, |world| running(world).len() == 7));
    world.run(3000);
    let has_db = running(&world).into_iter().find(|(_, name)| name.contains("db")).unwrap().0;
    let updated = (has_db + 1) % 3;
    world.power_off(updated);
    world.machines[updated].on_trial = true;
    for gone in [
        workload_key("db"),
        SpecKey { kind: Kind::Namespace, namespace: String::new(), name: DEFAULT_NAMESPACE.into() },
    ] {
        world.push(has_db, sign(&Document::tombstone(&gone, 7), &root_key())).expect("it is accepted");
    }
    world.run(3000);
    world.power_on(updated);
    assert!(world.run_until(LONG_MS, |world| !world.machines[updated].on_trial));
    assert!(running(&world).iter().all(|(index, _)| *index != updated), "neither runs there");
}

#[test]
fn a_job_that_ends_with_success_on_a_new_release_is_no_reason_to_leave_it() {
    let mut world = World::with_machines(79, 3);
    assert!(world.run_until(8000, World::agrees));
    let job = workload_with("web", 5, &root_key(), |spec| {
        spec.replicas = 3;
        spec.restart.condition = RestartCondition::OnFailure;
    });
    world.push(0, job).expect("it is accepted");
    assert!(world.run_until(10_000, |world| runs_everywhere_once(world, 3)));
    world.run(3000);
    world.power_off(1);
    world.machines[1].on_trial = true;
    world.power_on(1);
    assert!(world.run_until(LONG_MS, |world| world.machines[1].runtime.running().next().is_some()));
    let container = world.machines[1].runtime.running().next().unwrap().id.clone();
    let wall_ms = world.time(1).wall_ms;
    world.machines[1].runtime.end(&container, 0, wall_ms);
    assert!(world.run_until(LONG_MS, |world| !world.machines[1].on_trial));
}
