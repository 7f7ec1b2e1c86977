//! What was deleted stays deleted, and is forgotten once all have heard of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use hivemind_core::mutation::{self, Mutation};
use hivemind_spec::problem::Code;
use hivemind_tests::sim::cast::*;
use hivemind_tests::sim::world::World;

use super::{running, runs_everywhere_once};

/// Two members hold a document and its deletion, a third was off before that; a year goes by.
fn deleted_while_one_is_away(seed: u64) -> World {
    let mut world = World::with_machines(seed, 3);
    assert!(world.run_until(10_000, World::agrees));
    let accepted = world.push(0, workload("web", START_MS, 1, &root_key())).expect("it is accepted");
    assert!(world.run_until(10_000, |world| world.agrees() && runs_everywhere_once(world, 1)));
    world.power_off(2);
    world.run(20_000);
    let tombstone = hivemind_spec::document::Document::tombstone(&accepted.key, START_MS + 1);
    world
        .push(0, hivemind_spec::dsse::Envelope::sign(&tombstone.to_json(), &root_key()))
        .expect("it is accepted");
    for machine in &mut world.machines {
        machine.clock_offset_ms = 365 * DAY_MS as i64;
    }
    world.run(3 * 3600 * 1000);
    world
}

fn holds_web(world: &World, index: usize) -> bool {
    world.node(index).map().iter().any(|(key, _)| format!("{key:?}").contains("\"web\""))
}

#[test]
fn what_was_deleted_stays_deleted_when_a_node_returns_after_a_year() {
    let mut world = deleted_while_one_is_away(25);
    world.power_on(2);
    world.introduce_all();
    let heard = |world: &World| world.node(2).cluster().workloads.is_empty() && world.agrees();
    assert!(world.run_until(30_000, heard), "{:?}", running(&world));
    assert!(world.node(0).cluster().workloads.is_empty());
    assert!(running(&world).is_empty());
    // All have heard of it now: it need not be remembered any longer.
    assert!(world.run_until(3 * 3600 * 1000, |world| (0..3).all(|index| !holds_web(world, index))));
    assert!(world.run_until(60_000, World::agrees));
}

#[test]
fn it_would_be_noticed_if_deletions_were_forgotten_before_all_have_heard_of_them() {
    mutation::turn_on(Some(Mutation::DeletionsAreForgottenUnheard));
    let mut world = deleted_while_one_is_away(25);
    world.power_on(2);
    world.introduce_all();
    world.run(30_000);
    mutation::turn_on(None);
    assert!(!world.node(0).cluster().workloads.is_empty(), "the node that was away brought it back");
}

#[test]
fn a_node_that_was_revoked_keeps_no_deletion_in_memory() {
    let mut world = deleted_while_one_is_away(26);
    assert!(holds_web(&world, 0), "the node that is away has not heard of it");
    let away = world.machines[2].id;
    world.push(1, revocation(away, START_MS + 2)).unwrap();
    assert!(world.run_until(3 * 3600 * 1000, |world| (0..2).all(|index| !holds_web(world, index))));
}

#[test]
fn a_node_that_lost_its_store_does_not_forget_deletions_before_it_has_heard_from_another() {
    let mut world = World::with_machines(3, 3);
    assert!(world.run_until(8000, World::agrees));
    let revision = START_MS + 1000;
    world.push(0, workload("web", revision, 1, &root_key())).unwrap();
    assert!(world.run_until(30_000, World::agrees));
    // Cut off without its store, it takes itself for all there is, and has the document by another road.
    world.part(2, 0);
    world.part(2, 1);
    world.damage_store(2);
    world.run(10_000);
    world.power_off(2);
    world.power_on(2);
    world.run(10_000);
    world.push(2, workload("web", revision, 1, &root_key())).unwrap();
    world.push(2, tombstone(&workload_key("web"), revision + 1, &root_key())).unwrap();
    world.pass(35 * DAY_MS);
    world.run(2 * 3_600_000);
    world.network.cut.clear();
    world.introduce_all();
    assert!(world.run_until(120_000, World::agrees));
    world.run(10_000);
    for index in 0..3 {
        // Once all have heard, it may be forgotten.
        let held = world.node(index).spec_item(&workload_key("web"));
        assert!(held.is_none_or(|item| item.deleted), "m{index}: what it deleted is deleted");
    }
}

#[test]
fn an_old_document_cannot_be_pushed_again_after_its_deletion_was_forgotten() {
    let mut world = deleted_while_one_is_away(27);
    let away = world.machines[2].id;
    world.push(1, revocation(away, START_MS + 2)).unwrap();
    world.run(3 * 3600 * 1000);
    let problem = world.push(0, workload("web", START_MS, 1, &root_key())).unwrap_err();
    assert_eq!(problem.code, Code::Conflict, "{}", problem.detail);
    assert!(!holds_web(&world, 0));
    world.push(0, workload("web", START_MS + 365 * DAY_MS, 1, &root_key())).unwrap();
}
