//! Who may start the replicas of machines that vanished, rule by rule.

use std::collections::BTreeSet;

use hivemind_core::mutation::{self, Mutation};
use hivemind_spec::workload::{Exclusive, Takeover};
use hivemind_tests::sim::cast::*;
use hivemind_tests::sim::world::World;

use super::{running, runs_everywhere_once};

/// A workload of two replicas under a takeover rule, on a cluster from which one machine that runs one
/// of them is then cut off. Gives that machine.
fn cut_off(world: &mut World, takeover: Takeover) -> usize {
    let machines = world.machines.len();
    assert!((0..60).any(|_| {
        world.run(500);
        world.agrees()
    }));
    let envelope =
        workload_with("web", 5, &root_key(), |spec| (spec.replicas, spec.takeover) = (2, takeover));
    world.push(0, envelope).expect("it is accepted");
    assert!(world.run_until(10_000, |world| runs_everywhere_once(world, 2)));
    world.run(3000);
    let alone = running(world)[0].0;
    (0..machines).filter(|other| *other != alone).for_each(|other| world.part(alone, other));
    world.run(30_000);
    alone
}

fn runs_on(world: &World, which: impl Fn(usize) -> bool) -> usize {
    running(world).iter().filter(|(index, _)| which(*index)).count()
}

#[test]
fn one_isolated_node_of_ten_takes_nothing_over() {
    let mut world = World::with_machines(30, 10);
    let alone = cut_off(&mut world, Takeover::Majority);
    assert_eq!(runs_on(&world, |index| index == alone), 1, "{:?}", running(&world));
    assert_eq!(runs_on(&world, |index| index != alone), 2, "{:?}", running(&world));
}

#[test]
fn one_that_knows_another_by_hearsay_only_does_not_take_it_for_its_side_when_cut_off() {
    for seed in 0..60 {
        let mut world = World::with_machines(seed, 3);
        assert!(world.run_until(10_000, World::agrees), "seed {seed}");
        world.push(0, workload("web", 5, 6, &root_key())).unwrap();
        assert!(world.run_until(10_000, |world| runs_everywhere_once(world, 6)), "seed {seed}");
        // Machine 2 comes back without its cable to machine 0, of which it hears from machine 1.
        world.part(0, 2);
        world.power_off(2);
        world.run(500);
        world.power_on(2);
        let knows_all = |world: &World| {
            world.machines[2].node.as_ref().is_some_and(|node| node.liveness().alive.len() == 3)
        };
        assert!(world.run_until(30_000, knows_all), "seed {seed}");
        // Slow, so that it finds the others dead one long after the other.
        world.machines[2].starved_ms = 100;
        world.run(15_000);
        let own = runs_on(&world, |index| index == 2);
        world.part(1, 2);
        world.run(30_000);
        assert_eq!(runs_on(&world, |index| index == 2), own, "seed {seed}: {:?}", running(&world));
    }
}

#[test]
fn what_always_may_be_taken_over_runs_in_full_on_both_sides() {
    let mut world = World::with_machines(31, 4);
    let alone = cut_off(&mut world, Takeover::Always);
    assert_eq!(runs_on(&world, |index| index == alone), 2, "{:?}", running(&world));
    assert_eq!(runs_on(&world, |index| index != alone), 2, "{:?}", running(&world));
    world.network.cut.clear();
    assert!(world.run_until(30_000, |world| world.agrees() && runs_everywhere_once(world, 2)));
}

#[test]
fn what_never_may_be_taken_over_waits_for_its_node() {
    let mut world = World::with_machines(32, 4);
    let alone = cut_off(&mut world, Takeover::Never);
    assert_eq!(runs_on(&world, |index| index == alone), 1, "{:?}", running(&world));
    assert_eq!(runs_on(&world, |index| index != alone), 1, "{:?}", running(&world));
}

#[test]
fn priority_decides_who_goes_without_when_a_node_dies() {
    let mut world = World::with_machines(33, 2);
    assert!(world.run_until(10_000, World::agrees));
    // Each machine has room for four.
    for (name, priority) in [("low", 1), ("high", 9)] {
        let envelope = workload_with(name, 5, &root_key(), |spec| {
            (spec.replicas, spec.priority) = (4, priority);
            spec.container.resources.cpu_request_millis = Some(1000);
        });
        world.push(0, envelope).unwrap();
    }
    assert!(world.run_until(20_000, |world| runs_everywhere_once(world, 8)), "{:?}", running(&world));
    world.power_off(1);
    let high = |world: &World| running(world).iter().filter(|(_, replica)| replica.contains("high")).count();
    assert!(world.run_until(60_000, |world| high(world) == 4), "{:?}", running(&world));
    assert_eq!(running(&world).len(), 4, "and no more than there is room for: {:?}", running(&world));
}

#[test]
fn revoking_the_leader_moves_nothing_of_the_others() {
    // By a signer whose clock is behind the leader's, so that nothing the leader decided counts any more,
    // and by one whose clock is ahead, so that all of it does.
    for revision in [1, START_MS + 3_600_000] {
        let mut world = World::with_machines(34, 3);
        assert!(world.run_until(8000, World::agrees));
        let envelope = workload_with("web", 5, &root_key(), |spec| {
            (spec.replicas, spec.takeover) = (3, Takeover::Never)
        });
        world.push(0, envelope).unwrap();
        assert!(world.run_until(10_000, |world| runs_everywhere_once(world, 3)));
        world.run(2000);
        let leader = world.node(0).leader().unwrap();
        let led = world.machines.iter().position(|machine| machine.id == leader).unwrap();
        let others: Vec<usize> = (0..3).filter(|index| *index != led).collect();
        let starts =
            |world: &World| others.iter().map(|other| world.machines[*other].runtime.starts).sum::<usize>();
        let stops =
            |world: &World| others.iter().map(|other| world.machines[*other].runtime.stops).sum::<usize>();
        let before = starts(&world);
        world.push(others[0], revocation(leader, revision)).unwrap();
        let again = |world: &World| starts(world) > before;
        assert!(
            world.run_until(30_000, again),
            "the revoked node's replica is placed anew, revision {revision}"
        );
        world.run(60_000);
        assert_eq!((starts(&world) - before, stops(&world)), (1, 0), "revision {revision}");
        let said = world.machines[led].notes.len();
        assert!(said < 100, "who is cut off does not say the same again and again: {said} notes");
    }
}

/// An exclusive workload's machine is cut off, and the agents of the others restart while its lease lasts.
/// Gives the promise that was broken, if any.
fn grantors_restart(seed: u64) -> Option<String> {
    let mut world = World::with_machines(seed, 3);
    assert!(world.run_until(8000, World::agrees));
    world.run(3000);
    world.ledger.exclusive(workload_id("single"));
    let voters = world.machines.iter().map(|machine| machine.id).collect();
    let exclusive = Some(Exclusive { since: START_MS, voters });
    let envelope = workload_with("single", START_MS, &root_key(), |spec| spec.exclusive = exclusive);
    world.push(0, envelope).expect("it is accepted");
    assert!(world.run_until(10_000, |world| running(world).len() == 1));
    world.run(3000);
    let holder = running(&world)[0].0;
    let others: Vec<usize> = (0..3).filter(|index| *index != holder).collect();
    others.iter().for_each(|other| world.part(holder, *other));
    // It is slow to stop: only PID 1 ends it in time.
    world.machines[holder].runtime.late_ms = 600_000;
    // The others have given it up, and one of them waits for the lease.
    let id = world.machines[holder].id;
    let moved = |world: &World| {
        let placed = world.node(others[0]).cluster().placements.get(&workload_id("single"));
        placed.is_some_and(|placement| placement.slots.get(&0).is_some_and(|node| *node != id))
    };
    assert!(world.run_until(14_000, moved));
    world.run(500);
    others.iter().for_each(|other| world.restart_agent(*other));
    world.introduce_all();
    world.run(30_000);
    world.ledger.broken.clone()
}

#[test]
fn it_would_be_noticed_if_grantors_forgot_to_whom_they_granted() {
    for seed in 40..50 {
        assert_eq!(grantors_restart(seed), None, "seed {seed}");
    }
    mutation::turn_on(Some(Mutation::GrantorsForget));
    let noticed = (40..50).find_map(grantors_restart);
    mutation::turn_on(None);
    assert!(noticed.is_some_and(|broken| broken.contains("never runs twice")));
}

#[test]
fn a_leader_whose_disk_is_full_says_so_and_another_leads() {
    let mut world = World::with_machines(35, 4);
    assert!(world.run_until(10_000, World::agrees));
    let envelope = workload_with("web", 5, &root_key(), |spec| spec.replicas = 4);
    world.push(0, envelope).unwrap();
    assert!(world.run_until(20_000, |world| runs_everywhere_once(world, 4)), "{:?}", running(&world));
    world.run(5000);
    let leader = world.node(0).leader().unwrap();
    let full = (0..4).find(|index| world.machines[*index].id == leader).unwrap();
    let victim = (full + 1) % 4;
    let lost = world.machines[victim].runs().next().unwrap();
    world.machines[full].disk_full = true;
    world.power_off(victim);
    let elsewhere = |world: &World| {
        running(world).iter().any(|(index, replica)| *replica == lost && ![full, victim].contains(index))
    };
    assert!(world.run_until(40_000, elsewhere), "{:?}", running(&world));
    let other = (full + 2) % 4;
    assert_ne!(world.node(other).leader(), Some(leader), "another leads");
    assert_eq!(runs_on(&world, |index| index == full), 1, "what ran there goes on");
    let told = &world.node(other).cluster().nodes[&leader].status.as_ref().unwrap().problems;
    assert!(told.iter().any(|problem| problem.contains("the disk takes no changes")), "{told:?}");

    world.machines[full].disk_full = false;
    world.power_on(victim);
    world.introduce_all();
    let healed = |world: &World| {
        world.node(other).leader() == Some(leader) && world.agrees() && runs_everywhere_once(world, 4)
    };
    assert!(world.run_until(60_000, healed), "{:?}", running(&world));
}

/// Puts a cable between two machines right, in both directions.
fn mend(world: &mut World, a: usize, b: usize) {
    world.network.cut.retain(|pair| *pair != (a, b) && *pair != (b, a));
}

#[test]
fn who_comes_back_to_some_believes_them_about_those_it_cannot_reach_yet() {
    for seed in 40..50 {
        let mut world = World::with_machines(seed, 5);
        let alone = cut_off(&mut world, Takeover::Majority);
        let before = running(&world);
        let unreached: Vec<usize> = (0..5).filter(|index| *index != alone).take(2).collect();
        (0..5).filter(|other| !unreached.contains(other)).for_each(|other| mend(&mut world, alone, other));
        let all_alive = |world: &World| {
            let ids: std::collections::BTreeSet<_> =
                world.machines.iter().map(|machine| machine.id).collect();
            (0..5).all(|index| world.node(index).liveness().alive == ids)
        };
        assert!(
            world.run_until(90_000, all_alive),
            "seed {seed}: machine {alone} came back to three of five"
        );
        world.run(60_000);
        assert!(all_alive(&world), "seed {seed}: and it stays so");
        let kept = |index: &usize| running(&world).iter().any(|(found, _)| found == index);
        let others = before.iter().map(|(index, _)| index).filter(|index| **index != alone);
        assert!(others.clone().all(kept), "seed {seed}: {before:?} became {:?}", running(&world));
    }
}

#[test]
fn who_lost_its_store_and_is_alone_takes_nobodys_subnet() {
    let mut world = World::with_machines(60, 4);
    let alone = cut_off(&mut world, Takeover::Majority);
    let subnets = |world: &World| -> std::collections::BTreeMap<_, _> {
        let node = world.node((0..4).find(|index| *index != alone).expect("one of four"));
        node.cluster().nodes.iter().map(|(id, node)| (*id, node.enrolment.subnet)).collect()
    };
    let before = subnets(&world);
    // Its clock is far behind: whoever enrolled first keeps a subnet that two have.
    world.machines[alone].clock_offset_ms = -(START_MS as i64);
    world.damage_store(alone);
    world.run(30_000);
    world.begin_push(alone, workload("anew", 6, 1, &root_key()));
    world.run(10_000);
    let own = world.machines[alone].id;
    let taken = world.node(alone).cluster().nodes[&own].enrolment.subnet;
    assert_eq!(taken, before[&own], "it works, with the subnet it had");
    world.network.cut.clear();
    assert!(world.run_until(60_000, World::agrees));
    assert_eq!(subnets(&world), before);
}

#[test]
fn a_machine_that_returns_gets_its_share_back_with_one_replica_at_a_time_away() {
    let mut world = World::with_machines(37, 3);
    assert!(world.run_until(8000, World::agrees));
    let envelope = workload_with("web", 5, &root_key(), |spec| {
        spec.replicas = 6;
        spec.rebalance = std::num::NonZeroU32::new(1);
    });
    world.push(0, envelope).expect("it is accepted");
    assert!(world.run_until(10_000, |world| runs_everywhere_once(world, 6)));
    world.run(3000);
    world.power_off(2);
    assert!(world.run_until(20_000, |world| runs_everywhere_once(world, 6)), "{:?}", running(&world));
    assert_eq!(runs_on(&world, |index| index == 2), 0);
    world.power_on(2);
    let mut fewest = 6;
    let even = (0..3000).any(|_| {
        world.run(20);
        let replicas: BTreeSet<String> = running(&world).into_iter().map(|(_, replica)| replica).collect();
        fewest = fewest.min(replicas.len());
        (0..3).all(|machine| runs_on(&world, |index| index == machine) == 2)
    });
    assert!(even, "{:?}", running(&world));
    assert!(fewest >= 5, "no more than one at a time is away: {fewest}");
    let settled = running(&world);
    world.run(60_000);
    assert_eq!(running(&world), settled, "it has come to rest");
}
