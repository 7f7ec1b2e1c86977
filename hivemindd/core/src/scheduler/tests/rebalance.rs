//! Replicas move to where fewer are only where that is asked for, and come to rest.

use std::num::NonZeroU32;

use hivemind_spec::api::Phase;

use super::*;
use crate::fixture::{replica_id, running};

fn moving(replicas: u32, at_a_time: u32) -> Workload {
    let mut workload = workload(replicas);
    workload.spec.rebalance = NonZeroU32::new(at_a_time);
    workload
}

/// Has every replica of a workload run where it was placed.
fn run(cluster: &mut Cluster, name: &str) {
    for (slot, node) in placement(cluster, name).slots.clone() {
        running(cluster, name, slot, node.0[0]);
    }
}

fn counts(cluster: &Cluster, nodes: u8) -> Vec<usize> {
    (1..=nodes).map(|n| count_on(placement(cluster, "web"), n)).collect()
}

/// A workload on two nodes, to which a third has come.
fn third_came(web: Workload) -> (Cluster, Liveness) {
    let (mut cluster, liveness) = cluster(2);
    cluster.workloads.insert(workload_id("web"), web);
    settle(&mut cluster, &liveness);
    run(&mut cluster, "web");
    let (mut wider, liveness) = crate::fixture::cluster(3);
    std::mem::swap(&mut cluster.nodes, &mut wider.nodes);
    (cluster, liveness)
}

#[test]
fn a_node_that_comes_gets_its_share_of_what_asks_for_it_so_many_at_a_time() {
    let (mut cluster, liveness) = third_came(moving(6, 1));
    let mut moves = 0;
    loop {
        let before = placement(&cluster, "web").slots.clone();
        settle(&mut cluster, &liveness);
        let after = placement(&cluster, "web").slots.clone();
        let moved: Vec<_> = before.iter().filter(|(slot, node)| after.get(slot) != Some(node)).collect();
        if moved.is_empty() {
            break;
        }
        assert_eq!(moved.len(), 1);
        moves += 1;
        // While it does not run where it went, no other follows.
        assert_eq!(schedule(&cluster, &liveness, at(0)), BTreeMap::new());
        run(&mut cluster, "web");
    }
    assert_eq!((moves, counts(&cluster, 3)), (2, vec![2, 2, 2]));
}

#[test]
fn without_being_asked_for_nothing_moves_to_a_node_that_comes() {
    let (mut cluster, liveness) = third_came(workload(6));
    settle(&mut cluster, &liveness);
    assert_eq!(counts(&cluster, 3), [3, 3, 0]);
}

#[test]
fn nothing_moves_while_a_replica_is_not_well_nor_on_the_smaller_side() {
    let (mut cluster, liveness) = third_came(moving(6, 1));
    let of_slot_0 = placement(&cluster, "web").slots[&0];
    cluster.replicas.get_mut(&(replica_id("web", 0), of_slot_0)).unwrap().phase = Phase::Unhealthy;
    settle(&mut cluster, &liveness);
    assert_eq!(counts(&cluster, 3), [3, 3, 0]);

    let (mut cluster, mut liveness) = third_came(moving(6, 1));
    liveness.unsettled = true;
    settle(&mut cluster, &liveness);
    assert_eq!(counts(&cluster, 3), [3, 3, 0]);
}

#[test]
fn replicas_move_only_to_where_they_may_run_and_have_room() {
    let (mut cluster, liveness) = third_came(moving(6, 6));
    cluster.nodes.get_mut(&node_id(3)).unwrap().intent = Some(NodeIntentSpec { cordoned: true, ..intent(3) });
    settle(&mut cluster, &liveness);
    assert_eq!(counts(&cluster, 3), [3, 3, 0]);

    let mut web = moving(6, 6);
    web.spec.container.resources.memory_request_bytes = Some(100 * MIB);
    let (mut cluster, liveness) = third_came(web);
    cluster.nodes.get_mut(&node_id(3)).unwrap().status.as_mut().unwrap().capacity.memory_bytes = 150 * MIB;
    settle(&mut cluster, &liveness);
    assert_eq!(counts(&cluster, 3).into_iter().max(), Some(3), "there is room for one");
    assert_eq!(counts(&cluster, 3)[2], 1);
}

#[test]
fn the_labels_to_spread_over_come_before_the_nodes() {
    let mut web = moving(4, 4);
    web.spec.spread = vec!["zone".to_owned()];
    let (mut cluster, liveness) = third_came(web);
    for (n, zone) in [(1, "a"), (2, "a"), (3, "b")] {
        label(&mut cluster, n, "zone", zone);
    }
    settle(&mut cluster, &liveness);
    assert_eq!(counts(&cluster, 3)[2], 2);
}

proptest! {
    #[test]
    fn what_moves_comes_to_rest(world in any_world(), at_a_time in 1u32..4) {
        let World { mut cluster, liveness } = world;
        for workload in cluster.workloads.values_mut() {
            workload.spec.rebalance = NonZeroU32::new(at_a_time);
        }
        let names: Vec<String> = cluster.workloads.keys().map(|id| id.name.clone()).collect();
        for _ in 0..100 {
            let changes = schedule(&cluster, &liveness, at(0));
            if changes.is_empty() {
                return Ok(());
            }
            apply(&mut cluster, changes);
            for name in &names {
                run(&mut cluster, name);
            }
        }
        prop_assert!(false, "it goes on and on: {:?}", schedule(&cluster, &liveness, at(0)));
    }
}
