//! Volumes, from the push to the end of their data.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use hivemind_core::record::{VolumeId, VolumePart};
use hivemind_spec::document::{Document, Spec};
use hivemind_spec::dsse::Envelope;
use hivemind_spec::problem::Code;
use hivemind_spec::volume::{Discard, Per, VolumeSpec};
use hivemind_tests::sim::cast::*;
use hivemind_tests::sim::world::World;

const MINUTE_MS: u64 = 60_000;

fn data() -> VolumePart {
    VolumePart { volume: VolumeId { namespace: "default".into(), name: "data".into() }, number: 0 }
}

fn volume_with(revision: u64, spec: VolumeSpec) -> Envelope {
    let payload = volume("data", revision).payload().unwrap();
    let mut document = Document::parse(&payload).unwrap();
    document.spec = Some(Spec::Volume(spec));
    sign(&document, &root_key())
}

fn with_data(revision: u64) -> Envelope {
    workload_with("db", revision, &root_key(), |spec| {
        spec.container.volumes = vec![mount("data")];
    })
}

/// Three machines, one of which runs the workload on its data; which one.
fn running(seed: u64) -> (World, usize) {
    let mut world = World::with_machines(seed, 3);
    assert!(world.run_until(8000, World::agrees));
    world.push(0, volume("data", 5)).unwrap();
    world.push(0, with_data(6)).unwrap();
    let runs = |world: &World| world.machines.iter().position(|machine| machine.runs().count() == 1);
    assert!(world.run_until(30_000, |world| runs(world).is_some() && world.agrees()));
    let home = runs(&world).unwrap();
    (world, home)
}

fn holders(world: &World) -> Vec<usize> {
    let holds = |index: &usize| world.machines[*index].runtime.inventory.volumes.contains_key(&data());
    (0..world.machines.len()).filter(holds).collect()
}

#[test]
fn data_cannot_be_taken_from_a_workload_nor_be_lost_by_another_number_of_it() {
    let (mut world, _) = running(1);
    let discard = Some(Discard { grace_ms: 0 });
    let refused = world.push(1, volume_with(7, VolumeSpec { discard, ..VolumeSpec::default() })).unwrap_err();
    assert_eq!(refused.code, Code::InvalidDocument);
    assert!(refused.detail.contains("workload db uses volume default/data"), "{}", refused.detail);
    let per = Per::Replica;
    let refused = world.push(1, volume_with(7, VolumeSpec { per, ..VolumeSpec::default() })).unwrap_err();
    assert!(refused.detail.contains("one for each cluster"), "{}", refused.detail);
}

#[test]
fn a_discarded_volume_is_deleted_after_its_grace_of_running_and_can_be_taken_back_before() {
    let (mut world, home) = running(2);
    let keep = VolumeSpec::default();
    let discard = VolumeSpec { discard: Some(Discard { grace_ms: 60 * MINUTE_MS }), ..keep.clone() };
    world.push(0, tombstone(&workload_key("db"), 7, &root_key())).unwrap();
    world.run(10 * MINUTE_MS);
    assert_eq!(holders(&world), [home], "the workload's end does not touch its data");
    world.ledger.may_be_deleted(data());
    world.push(0, volume_with(8, discard.clone())).unwrap();
    world.run(50 * MINUTE_MS);
    world.push(0, volume_with(9, keep)).unwrap();
    world.run(300 * MINUTE_MS);
    assert_eq!(holders(&world), [home], "it was taken back");
    world.push(0, volume_with(10, discard)).unwrap();
    world.run(40 * MINUTE_MS);
    // Off for a month: that does not count.
    world.power_off(home);
    world.pass(30 * DAY_MS);
    world.power_on(home);
    world.introduce_all();
    world.run(10 * MINUTE_MS);
    assert_eq!(holders(&world), [home]);
    world.run(25 * MINUTE_MS);
    assert!(holders(&world).is_empty());
    assert!(world.run_until(30_000, |world| world.node(0).cluster().volume_parts.is_empty()));
}

#[test]
fn a_machine_that_is_away_with_the_data_is_waited_for() {
    let (mut world, home) = running(3);
    world.power_off(home);
    world.run(30 * MINUTE_MS);
    assert_eq!(world.machines.iter().map(|machine| machine.runs().count()).sum::<usize>(), 0);
    let other = (home + 1) % 3;
    let replicas = world.node(other).view(world.time(other), "").replicas(None, Some("db"));
    assert!(replicas[0].reason.contains("its data is there"), "{}", replicas[0].reason);
    world.power_on(home);
    world.introduce_all();
    assert!(world.run_until(60_000, |world| world.machines[home].runs().count() == 1));
}
