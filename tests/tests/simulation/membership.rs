//! Who is taken for dead, and when: over a day, and in large clusters.

use std::collections::BTreeSet;

use hivemind_tests::sim::world::World;

/// Nodes that were called dead by somebody, as people were told.
fn called_dead(world: &World) -> Vec<String> {
    let notes = world.machines.iter().flat_map(|machine| &machine.notes);
    notes.filter(|note| note.code == "node-down").map(|note| note.text.clone()).collect()
}

#[test]
fn a_day_of_lost_packets_and_starved_machines_makes_nobody_dead() {
    const DAY_MS: u64 = 24 * 3600 * 1000;
    let days = [(1, 3), (2, 5)];
    let lived = super::first(2, |which| {
        let (seed, count) = days[usize::try_from(which).ok()?];
        let mut world = World::with_machines(seed, count);
        assert!(world.run_until(10_000, World::agrees));
        world.network.loss = 20;
        world.network.delay_ms = 2..80;
        let mut hours = 0;
        while world.now_ms < DAY_MS {
            // One machine after another has no processor to itself, for an hour each.
            for machine in &mut world.machines {
                machine.starved_ms = 0;
            }
            world.machines[hours % count].starved_ms = 600;
            hours += 1;
            world.run(3600 * 1000);
        }
        let dead = called_dead(&world);
        (!dead.is_empty()).then(|| (seed, dead))
    });
    assert_eq!(lived, None);
}

/// How long it takes until all others know that a machine has lost its power, milliseconds.
fn noticed_after_ms(seed: u64, count: usize) -> u64 {
    let mut world = World::with_machines(seed, count);
    assert!(world.run_until(60_000, World::agrees), "{count} machines, seed {seed}");
    world.run(5000 + seed * 137 % 1000);
    let dead = world.machines[count - 1].id;
    world.power_off(count - 1);
    let begin_ms = world.now_ms;
    let known = |world: &World| {
        (0..count - 1).all(|index| !world.node(index).liveness().alive.contains(&dead))
    };
    assert!(world.run_until(60_000, known), "{count} machines, seed {seed}");
    let others: BTreeSet<String> = called_dead(&world).into_iter().collect();
    assert_eq!(others.len(), 1, "{others:?}");
    world.now_ms - begin_ms
}

#[test]
fn a_dead_node_is_known_to_all_within_ten_seconds_at_three_nodes_and_fifteen_at_a_hundred() {
    for (count, seeds, bound_ms) in [(3, 20, 10_000), (100, 2, 15_000)] {
        let slowest = std::sync::Mutex::new(0);
        super::first(seeds, |seed| -> Option<()> {
            let after_ms = noticed_after_ms(seed, count);
            let mut slowest = slowest.lock().expect("no life panicked");
            *slowest = after_ms.max(*slowest);
            None
        });
        let slowest = slowest.into_inner().expect("no life panicked");
        println!("{count} nodes: known to all after {slowest} ms at the latest");
        assert!(slowest <= bound_ms, "{count} nodes: {slowest} ms");
    }
}
