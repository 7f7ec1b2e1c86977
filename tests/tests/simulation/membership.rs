//! Who is taken for dead, over a day.

use hivemind_tests::sim::world::World;

/// Nodes that were called dead by somebody, as people were told.
fn called_dead(world: &World) -> Vec<String> {
    let notes = world.machines.iter().flat_map(|machine| &machine.notes);
    notes.filter(|note| note.code == "node-down").map(|note| note.text.clone()).collect()
}

#[test]
fn a_day_of_lost_packets_and_starved_machines_makes_nobody_dead() {
    const DAY_MS: u64 = 24 * 3600 * 1000;
    // Of the first dozen of days with five machines, these saw a starved one called dead before a suspect
    // was asked by whoever suspects it.
    let days = [(2, 5), (4, 5), (5, 5), (6, 5), (7, 5), (1, 3)];
    let lived = super::first(6, |which| {
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
        (!dead.is_empty()).then_some((seed, dead))
    });
    assert_eq!(lived, None);
}

#[test]
fn a_cut_cable_between_two_of_three_makes_nobody_dead() {
    let cut = super::first(8, |seed| {
        let mut world = World::with_machines(seed, 3);
        assert!(world.run_until(10_000, World::agrees));
        world.network.loss = 20;
        world.part(0, 1);
        world.run(6 * 3600 * 1000);
        let dead = called_dead(&world);
        (!dead.is_empty()).then_some((seed, dead))
    });
    assert_eq!(cut, None);
}
