//! Releases of the operating system go through a cluster, and stop where they do not do well.

use std::cell::Cell;
use std::collections::BTreeSet;

use hivemind_core::event::Event;
use hivemind_spec::api::UpdatePhase;
use hivemind_spec::id::ReleaseId;
use hivemind_spec::problem::Code;
use hivemind_tests::sim::cast::*;
use hivemind_tests::sim::machine::FIRST_RELEASE;
use hivemind_tests::sim::world::World;

use super::{runs_everywhere_once, serving};

/// Longer than a cluster of five takes for all of it, milliseconds.
const ALL_MS: u64 = 600_000;

fn new() -> ReleaseId {
    ReleaseId::of(&[7])
}

fn on_it(world: &World) -> usize {
    world.machines.iter().filter(|machine| machine.release == new()).count()
}

/// Runs until all machines are well on the release, and sees to what holds meanwhile.
fn roll_out(world: &mut World, at_a_time: usize) {
    let proven =
        |world: &World| world.machines.iter().any(|machine| machine.release == new() && !machine.on_trial);
    let first_proven = Cell::new(proven(world));
    let all = world.machines.len();
    let done = world.run_until(ALL_MS, |world| {
        let proving = world.machines.iter().filter(|machine| machine.on_trial).count();
        assert!(proving <= at_a_time, "{proving} at a time");
        assert!(first_proven.get() || on_it(world) <= 1, "the first has to prove itself");
        first_proven.set(first_proven.get() || proven(world));
        on_it(world) == all && world.machines.iter().all(|machine| !machine.on_trial)
    });
    assert!(done, "{} of {all}", on_it(world));
}

#[test]
fn a_release_goes_to_one_node_and_then_to_the_others_and_what_runs_leaves_before() {
    for seed in 80..83 {
        let mut world = serving(seed, 5);
        world.push(0, release(7, 5, false)).expect("it is accepted");
        roll_out(&mut world, 1);
        assert!(world.run_until(60_000, |world| runs_everywhere_once(world, 3)), "seed {seed}");
        let running: BTreeSet<_> = super::running(&world).into_iter().collect();
        assert_eq!(running.len(), 3, "seed {seed}");
    }
}

#[test]
fn a_release_that_does_not_do_well_stops_at_the_first_node_which_goes_back_and_does_not_try_it_again() {
    for seed in 83..86 {
        let mut world = serving(seed, 3);
        for machine in &mut world.machines {
            machine.unfit.insert(new());
        }
        world.push(0, release(7, 5, false)).expect("it is accepted");
        assert!(world.run_until(ALL_MS, |world| on_it(world) == 1), "seed {seed}: it is tried");
        assert!(world.run_until(ALL_MS, |world| on_it(world) == 0), "seed {seed}: it goes back");
        for _ in 0..300 {
            world.run(1000);
            assert_eq!(on_it(&world), 0, "seed {seed}: nobody tries it again");
        }
        let failed = world.machines.iter().filter(|machine| machine.failed_releases == [new()]).count();
        assert_eq!(failed, 1, "seed {seed}");
        assert!((0..3).any(|index| world.has_note(index, "rollout-stopped")), "seed {seed}");
        assert!(world.run_until(60_000, |world| runs_everywhere_once(world, 3)), "seed {seed}");
    }
}

#[test]
fn a_rollout_that_is_paused_or_taken_back_goes_no_further_and_goes_on_when_it_is_let() {
    let mut world = serving(86, 3);
    world.push(0, release(7, 5, true)).expect("it is accepted");
    world.run(120_000);
    assert_eq!(on_it(&world), 0, "paused");
    world.push(0, release(7, 6, false)).expect("it is accepted");
    assert!(world.run_until(ALL_MS, |world| on_it(world) == 1));
    world.push(0, tombstone(&release_key(), 7, &root_key())).expect("it is accepted");
    world.run(300_000);
    assert!(on_it(&world) <= 2, "who was about to start it may have");
    let before = on_it(&world);
    world.run(300_000);
    assert_eq!(on_it(&world), before, "taken back");
    world.push(0, release(7, 8, false)).expect("it is accepted");
    roll_out(&mut world, 1);
}

#[test]
fn the_next_leader_goes_on_with_a_rollout_and_a_machine_that_was_away_gets_it_when_it_is_back() {
    let mut world = serving(87, 5);
    world.power_off(4);
    world.push(0, release(7, 5, false)).expect("it is accepted");
    assert!(world.run_until(ALL_MS, |world| on_it(world) >= 2));
    let leader = world.node(0).leader().expect("there is one");
    let leader = world.machines.iter().position(|machine| machine.id == leader).expect("it is one of them");
    world.power_off(leader);
    let left = 4 - 1;
    assert!(world.run_until(ALL_MS, |world| {
        let on = world.machines.iter().filter(|machine| machine.release == new() && machine.node.is_some());
        on.count() == left
    }));
    world.power_on(leader);
    world.power_on(4);
    roll_out(&mut world, 1);
}

#[test]
fn a_release_from_a_stick_is_had_from_the_machine_it_was_plugged_into() {
    let mut world = serving(89, 3);
    let id = world.node(0).leader().expect("there is one");
    let leader = world.machines.iter().position(|machine| machine.id == id).expect("it is one of them");
    let phase = |world: &World| {
        let status = world.node(0).cluster().nodes[&id].status.as_ref().expect("it said how it is");
        status.update.as_ref().map(|update| update.phase)
    };
    // Before anybody wants it nobody hears of it.
    world.deliver(leader, Event::Brought { release: Some(new()) });
    world.run(10_000);
    assert_eq!(phase(&world), None);
    world.push(0, release(7, 5, true)).expect("it is accepted");
    assert!(world.run_until(10_000, |world| phase(world) == Some(UpdatePhase::Brought)));
    world.push(0, release(7, 6, false)).expect("it is accepted");
    assert!(world.run_until(ALL_MS, |world| on_it(world) == 1));
    let first = world.machines.iter().find(|machine| machine.release == new()).expect("it is one of them");
    assert!(first.id != id && first.asked_for_release == [id], "{:?}", first.asked_for_release);
    roll_out(&mut world, 1);
    assert!(world.run_until(10_000, |world| phase(world).is_none()), "others have it from its slot");
}

#[test]
fn a_release_that_no_node_can_take_is_refused_with_the_reason() {
    let mut world = serving(88, 3);
    let mut wrong = |change: &dyn Fn(&mut hivemind_spec::release::OsReleaseSpec), place: &str| {
        let (document, key) = (release(7, 5, false), root_key());
        let mut document = hivemind_spec::document::Document::parse(&document.payload().unwrap()).unwrap();
        if let Some(hivemind_spec::document::Spec::OsRelease(spec)) = &mut document.spec {
            change(spec);
            document.metadata.name = spec.architecture.name().to_owned();
        }
        let problem = world.push(0, sign(&document, &key)).expect_err("it is refused");
        assert_eq!((problem.code, problem.pointer.as_deref()), (Code::InvalidDocument, Some(place)));
    };
    wrong(&|spec| spec.architecture = hivemind_spec::release::Architecture::Arm64, "/spec/architecture");
    wrong(
        &|spec| {
            spec.version = "0.9.0".to_owned();
            spec.minimum = "0.9.0".to_owned();
        },
        "/spec/version",
    );
    world.run(60_000);
    assert!(world.machines.iter().all(|machine| machine.release == FIRST_RELEASE));
}
