//! Who becomes a member, and members that are there twice.

use hivemind_core::record::{Observation, RecordKey, Topic};
use hivemind_core::state::Content;
use hivemind_spec::workload::{Constraint, Exclusive, Operator};
use hivemind_tests::sim::cast::*;
use hivemind_tests::sim::world::World;

use super::running;

/// Lets time pass until all agree; looks seldom, because comparing many maps takes its time.
fn agree_within(world: &mut World, seconds: u64) -> bool {
    (0..seconds).any(|_| {
        world.run(1000);
        world.agrees()
    })
}

#[test]
fn forty_machines_powered_on_together_form_one_cluster_with_a_few_admissions_each() {
    let mut world = World::with_machines(40, 40);
    assert!(agree_within(&mut world, 20), "they form one cluster");
    let admissions = world.node(0).map().iter().filter(|(key, entry)| {
        matches!(key, RecordKey::Observation(_, Topic::Admission(_)))
            && matches!(entry.content, Content::Observation(Some(Observation::Admission { .. })))
    });
    let each = admissions.count() as f64 / 40.0;
    assert!((1.0..8.0).contains(&each), "{each} admissions by each node; all by all would be 39");
}

#[test]
fn a_copy_of_a_disk_started_beside_the_original_is_noticed_told_and_granted_no_lease() {
    let mut world = World::with_machines(41, 3);
    assert!(agree_within(&mut world, 10));
    let original = 2;
    let doubled = world.machines[original].id;
    let told = |world: &World, index: usize| {
        world.node(index).cluster().doubled.get(&doubled).map(|doubled| doubled.addresses)
    };
    // Restarts, of the agent and of the machine, are no copies.
    for _ in 0..3 {
        world.restart_agent(original);
        world.run(10_000);
        world.power_off(original);
        world.run(10_000);
        world.power_on(original);
        world.introduce_all();
        world.run(20_000);
    }
    assert!((0..3).all(|index| told(&world, index).is_none()));

    let voters = world.node(0).cluster().nodes.keys().copied().collect();
    let single = workload_with("single", 5, &root_key(), |spec| {
        (spec.replicas, spec.exclusive) = (1, Some(Exclusive { since: 5, voters }));
        let (label, operator) = ("node.id".to_owned(), Operator::Equal);
        spec.constraints = vec![Constraint { label, operator, value: doubled.to_string() }];
    });
    world.push(0, single).unwrap();
    assert!(world.run_until(30_000, |world| running(world).len() == 1), "it has its lease");

    let copy = world.add_copy(original);
    world.power_on(copy);
    world.introduce_all();
    let addresses = [world.machines[original].address, world.machines[copy].address];
    for index in [0, 1] {
        let noticed = world.run_until(60_000, |world| told(world, index).is_some());
        assert!(noticed, "m{index} knows");
        assert_eq!(told(&world, index), Some(addresses));
    }
    assert!(world.has_note(0, "node-doubled") || world.has_note(1, "node-doubled"));
    let digest = world.node(0).map_digest();
    let status = world.node(0).view(world.time(0), &digest).status();
    assert!(status.problems.iter().any(|text| text.contains("runs twice, at 198.18.")), "{status:?}");

    world.run(30_000);
    assert_eq!(running(&world), [], "neither has the lease any more");

    world.power_off(copy);
    let over = world.run_until(10 * 60_000, |world| (0..3).all(|index| told(world, index).is_none()));
    assert!(over, "it is told no longer once it is over");
    assert!(agree_within(&mut world, 60));
    assert!(world.run_until(60_000, |world| running(world).len() == 1), "it has its lease again");
}
