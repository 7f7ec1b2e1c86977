mod rebalance;

use hivemind_spec::document::NodeIntentSpec;
use hivemind_spec::volume::{Discard, Per, VolumeSpec};
use hivemind_spec::workload::{Constraint, DEVICE_ABSENT, DEVICE_LABEL, DEVICE_PRESENT, Device, Operator};
use proptest::prelude::*;

use super::*;
use crate::cluster::LastSeen;
use crate::fixture::{
    MIB, at, cluster, hold, intent, mount, node, node_id, place, volume_id, workload, workload_id,
};

fn apply(cluster: &mut Cluster, changes: BTreeMap<WorkloadId, Option<Placement>>) {
    for (id, placement) in changes {
        match placement {
            Some(placement) => {
                cluster.placements.insert(id, placement);
            }
            None => {
                cluster.placements.remove(&id);
            }
        }
    }
}

fn settle(cluster: &mut Cluster, liveness: &Liveness) {
    let changes = schedule(cluster, liveness, at(0));
    apply(cluster, changes);
}

fn placement<'a>(cluster: &'a Cluster, name: &str) -> &'a Placement {
    &cluster.placements[&workload_id(name)]
}

fn count_on(placement: &Placement, n: u8) -> usize {
    placement.slots.values().filter(|node| **node == node_id(n)).count()
}

fn asking(replicas: u32, memory_mib: u64) -> Workload {
    let mut workload = workload(replicas);
    workload.spec.container.resources.memory_request_bytes = Some(memory_mib * MIB);
    workload
}

fn equal(label: &str, value: &str) -> Constraint {
    Constraint { label: label.into(), operator: Operator::Equal, value: value.into() }
}

#[test]
fn replicas_spread_over_the_nodes() {
    let (mut cluster, liveness) = cluster(3);
    cluster.workloads.insert(workload_id("web"), workload(7));
    settle(&mut cluster, &liveness);
    let placed = placement(&cluster, "web");
    let mut counts = [count_on(placed, 1), count_on(placed, 2), count_on(placed, 3)];
    counts.sort_unstable();
    assert_eq!(counts, [2, 2, 3]);
    assert_eq!(placed.pending, BTreeMap::new());
}

fn label(cluster: &mut Cluster, n: u8, name: &str, value: &str) {
    let status = cluster.nodes.get_mut(&node_id(n)).unwrap().status.as_mut().unwrap();
    status.labels = [(name.to_owned(), value.to_owned())].into();
}

#[test]
fn a_global_workload_has_one_replica_on_each_node_and_it_stays_there() {
    let (mut cluster, mut liveness) = cluster(3);
    let mut global = workload(1);
    global.spec.global = true;
    global.spec.constraints = vec![Constraint { operator: Operator::NotEqual, ..equal("role", "other") }];
    cluster.workloads.insert(workload_id("web"), global);
    settle(&mut cluster, &liveness);
    let first = placement(&cluster, "web").slots.clone();
    assert_eq!(first.values().copied().collect::<BTreeSet<_>>(), [1, 2, 3].map(node_id).into());

    // Of a node that is down nobody takes it over, and it has it again when it is back.
    liveness.alive.remove(&node_id(2));
    settle(&mut cluster, &liveness);
    assert_eq!(placement(&cluster, "web").slots, first);
    liveness.alive.insert(node_id(2));

    // A new node gets one, and no other moves.
    cluster.nodes.insert(node_id(4), node(4));
    liveness.alive.insert(node_id(4));
    settle(&mut cluster, &liveness);
    let second = placement(&cluster, "web").slots.clone();
    assert_eq!((second.len(), second[&3]), (4, node_id(4)));
    assert!(first.iter().all(|(slot, node)| second[slot] == *node));

    // One that the constraints exclude loses its own, and only that.
    label(&mut cluster, 1, "role", "other");
    settle(&mut cluster, &liveness);
    let third = placement(&cluster, "web").slots.clone();
    assert_eq!(third.len(), 3);
    assert!(third.iter().all(|(slot, node)| second[slot] == *node && *node != node_id(1)));

    // What has no place is told.
    let mut cordoned = node(5);
    cordoned.intent = Some(crate::fixture::intent(5));
    cordoned.intent.as_mut().unwrap().cordoned = true;
    cluster.nodes.insert(node_id(5), cordoned);
    liveness.alive.insert(node_id(5));
    settle(&mut cluster, &liveness);
    let pending = &placement(&cluster, "web").pending;
    assert_eq!(pending.len(), 1);
    let reason = pending.values().next().unwrap();
    assert!(reason.contains("1 is cordoned") && reason.contains("3 of 5 have 1 of it already"), "{reason}");
}

#[test]
fn a_replica_goes_where_its_device_is_and_waits_while_nobody_has_it() {
    const STICK: &str = "/dev/ttyUSB0";
    let (mut cluster, liveness) = cluster(3);
    let mut reads = workload(1);
    let device = Device { path: STICK.into(), target: STICK.into(), access: "rw".into() };
    reads.spec.container.machine.devices.push(device);
    let mut everywhere = reads.clone();
    everywhere.spec.global = true;
    cluster.workloads.insert(workload_id("reads"), reads);
    let say = |cluster: &mut Cluster, n: u8, word: &str| {
        label(cluster, n, &format!("{DEVICE_LABEL}{STICK}"), word);
        settle(cluster, &liveness);
    };
    let why = |cluster: &Cluster| placement(cluster, "reads").pending.get(&0).cloned().unwrap_or_default();

    say(&mut cluster, 1, DEVICE_ABSENT);
    let told = why(&cluster);
    assert_eq!(
        told,
        "no node fits: 2 of 3 have not said yet whether they have /dev/ttyUSB0, 1 has no /dev/ttyUSB0"
    );
    say(&mut cluster, 2, DEVICE_PRESENT);
    assert_eq!(placement(&cluster, "reads").slots, [(0, node_id(2))].into());

    // It started anew and has not looked yet.
    say(&mut cluster, 2, "");
    say(&mut cluster, 3, DEVICE_PRESENT);
    assert_eq!(placement(&cluster, "reads").slots, [(0, node_id(2))].into());
    // The device is with another now.
    say(&mut cluster, 2, DEVICE_ABSENT);
    assert_eq!(placement(&cluster, "reads").slots, [(0, node_id(3))].into());
    say(&mut cluster, 3, DEVICE_ABSENT);
    assert_eq!(placement(&cluster, "reads").slots, BTreeMap::new());
    assert_eq!(why(&cluster), "no node fits: 3 of 3 have no /dev/ttyUSB0");

    // A global workload runs where the device is and is not awaited elsewhere.
    cluster.workloads.insert(workload_id("everywhere"), everywhere);
    say(&mut cluster, 1, DEVICE_PRESENT);
    let placed = placement(&cluster, "everywhere");
    assert_eq!((placed.slots.values().collect::<Vec<_>>(), placed.pending.len()), (vec![&node_id(1)], 0));
}

/// A workload that mounts volume `data`.
fn with_data(replicas: u32) -> Workload {
    let mut workload = workload(replicas);
    workload.spec.container.volumes = vec![mount("data", "/data")];
    workload
}

fn declare(cluster: &mut Cluster, per: Per) {
    cluster.volumes.insert(volume_id("data"), VolumeSpec { per, ..VolumeSpec::default() });
}

#[test]
fn a_replica_with_data_goes_where_its_data_is_and_nowhere_else() {
    let (mut cluster, mut liveness) = cluster(3);
    declare(&mut cluster, Per::Cluster);
    cluster.workloads.insert(workload_id("db"), with_data(1));
    cluster.workloads.insert(workload_id("backup"), with_data(2));
    settle(&mut cluster, &liveness);
    // Before there is data, all that share it are placed together.
    let home = placement(&cluster, "db").slots[&0];
    assert!(placement(&cluster, "backup").slots.values().all(|node| *node == home));

    let n = home.0[0];
    hold(&mut cluster, "data", 0, n);
    cluster.placements.clear();
    settle(&mut cluster, &liveness);
    assert_eq!(placement(&cluster, "db").slots[&0], home, "though another is as empty");

    // Its node is down: nobody takes it over, and one that is new waits with the reason.
    liveness.alive.remove(&home);
    settle(&mut cluster, &liveness);
    assert_eq!(placement(&cluster, "db").slots[&0], home);
    cluster.workloads.insert(workload_id("web"), with_data(1));
    settle(&mut cluster, &liveness);
    let reason = &placement(&cluster, "web").pending[&0];
    assert_eq!(*reason, format!("its data is on hive-{n}, which is down"));

    // Cut off for good, its data is gone with it.
    cluster.nodes.get_mut(&home).unwrap().intent = Some(NodeIntentSpec { revoked: true, ..intent(n) });
    cluster.volume_parts.clear();
    settle(&mut cluster, &liveness);
    assert_ne!(placement(&cluster, "db").slots[&0], home);
    assert!(placement(&cluster, "web").pending.is_empty());
}

#[test]
fn a_replica_that_was_placed_may_have_made_data_though_its_node_has_not_said_so() {
    let (mut cluster, mut liveness) = cluster(3);
    declare(&mut cluster, Per::Replica);
    cluster.workloads.insert(workload_id("db"), with_data(3));
    settle(&mut cluster, &liveness);
    let first = placement(&cluster, "db").slots.clone();
    assert_eq!(first.values().collect::<BTreeSet<_>>().len(), 3, "each has its own, and so they spread");
    liveness.alive.remove(&node_id(2));
    settle(&mut cluster, &liveness);
    assert_eq!(placement(&cluster, "db").slots, first);
    // Each stays with its own.
    liveness.alive.insert(node_id(2));
    (1..=3).for_each(|n| hold(&mut cluster, "data", u32::from(n) - 1, n));
    cluster.placements.clear();
    settle(&mut cluster, &liveness);
    let slots = &placement(&cluster, "db").slots;
    assert_eq!(*slots, (0..3).map(|slot| (slot, node_id(slot as u8 + 1))).collect());
    // One more has none yet, and one without its node does not keep the others.
    cluster.workloads.insert(workload_id("db"), with_data(4));
    liveness.alive.remove(&node_id(1));
    cluster.placements.clear();
    settle(&mut cluster, &liveness);
    let placed = placement(&cluster, "db");
    assert_eq!(placed.slots.keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(placed.pending[&0], "its data is on hive-1, which is down");
}

#[test]
fn data_that_each_node_has_binds_nobody() {
    let (mut cluster, mut liveness) = cluster(2);
    declare(&mut cluster, Per::Node);
    cluster.workloads.insert(workload_id("db"), with_data(1));
    settle(&mut cluster, &liveness);
    let first = placement(&cluster, "db").slots[&0];
    hold(&mut cluster, "data", 0, first.0[0]);
    liveness.alive.remove(&first);
    settle(&mut cluster, &liveness);
    assert_ne!(placement(&cluster, "db").slots[&0], first);
}

#[test]
fn without_its_volume_a_replica_is_nowhere_and_says_why() {
    let (mut cluster, liveness) = cluster(2);
    cluster.workloads.insert(workload_id("db"), with_data(1));
    let reason = |cluster: &mut Cluster| {
        settle(cluster, &liveness);
        placement(cluster, "db").pending.get(&0).cloned().unwrap_or_default()
    };
    assert_eq!(reason(&mut cluster), "there is no volume data; push it");
    declare(&mut cluster, Per::Cluster);
    assert_eq!(reason(&mut cluster), "");
    let discard = Some(Discard { grace_ms: 1 });
    cluster.volumes.insert(volume_id("data"), VolumeSpec { discard, ..VolumeSpec::default() });
    assert!(reason(&mut cluster).contains("is to be discarded"));
    // Two volumes that are on different nodes.
    declare(&mut cluster, Per::Cluster);
    cluster.volumes.insert(volume_id("more"), VolumeSpec::default());
    cluster.workloads.get_mut(&workload_id("db")).unwrap().spec.container.volumes =
        vec![mount("data", "/data"), mount("more", "/more")];
    hold(&mut cluster, "data", 0, 1);
    hold(&mut cluster, "more", 0, 2);
    assert_eq!(reason(&mut cluster), "its volumes data and more are on different machines");
}

#[test]
fn no_node_has_more_replicas_than_its_workload_allows() {
    let (mut cluster, liveness) = cluster(2);
    let mut few = workload(5);
    few.spec.max_per_node = Some(2);
    cluster.workloads.insert(workload_id("web"), few);
    settle(&mut cluster, &liveness);
    let placed = placement(&cluster, "web");
    assert_eq!((count_on(placed, 1), count_on(placed, 2)), (2, 2));
    assert_eq!(placed.pending[&4], "no node fits: 2 of 2 have 2 of it already, the most there may be");
}

#[test]
fn replicas_spread_over_the_values_of_a_label_before_they_spread_over_nodes() {
    let (mut cluster, liveness) = cluster(4);
    for (n, zone) in [(1, "a"), (2, "a"), (3, "a"), (4, "b")] {
        label(&mut cluster, n, "zone", zone);
    }
    let mut web = workload(4);
    web.spec.spread = vec!["zone".into()];
    cluster.workloads.insert(workload_id("web"), web);
    settle(&mut cluster, &liveness);
    let placed = placement(&cluster, "web");
    assert_eq!(count_on(placed, 4), 2);
    assert!((1..4).all(|n| count_on(placed, n) <= 1));
}

#[test]
fn a_refusal_says_what_is_missing_on_how_many_nodes() {
    let (mut cluster, liveness) = cluster(3);
    for n in [1, 2] {
        cluster.nodes.get_mut(&node_id(n)).unwrap().status.as_mut().unwrap().labels =
            [("disk".to_owned(), "ssd".to_owned())].into();
    }
    let mut big = asking(1, 2048);
    big.spec.constraints.push(equal("disk", "ssd"));
    cluster.workloads.insert(workload_id("big"), big);
    settle(&mut cluster, &liveness);
    assert_eq!(
        placement(&cluster, "big").pending[&0],
        "no node fits: 2 of 3 have too little memory (asks 2.0 GiB; most free: hive-2 1.0 GiB), \
         1 lacks label disk=ssd"
    );
}

#[test]
fn constraints_choose_by_label_host_name_and_id() {
    let (mut cluster, liveness) = cluster(3);
    cluster.nodes.get_mut(&node_id(3)).unwrap().intent = Some(intent(3));
    cluster.nodes.get_mut(&node_id(3)).unwrap().intent.as_mut().unwrap().labels =
        [("zone".to_owned(), "b".to_owned())].into();
    let not = |label: &str, value: &str| Constraint { operator: Operator::NotEqual, ..equal(label, value) };
    for (name, constraint, nodes) in [
        ("labelled", equal("zone", "b"), vec![3]),
        ("unlabelled", not("zone", "b"), vec![1, 2]),
        ("hosted", equal("node.hostname", "hive-2"), vec![2]),
        ("named", equal("node.id", &node_id(1).to_string()), vec![1]),
    ] {
        let mut workload = workload(2);
        workload.spec.constraints.push(constraint);
        cluster.workloads.insert(workload_id(name), workload);
        settle(&mut cluster, &liveness);
        let used: BTreeSet<NodeId> = placement(&cluster, name).slots.values().copied().collect();
        assert_eq!(used, nodes.into_iter().map(node_id).collect(), "{name}");
    }
}

#[test]
fn a_dead_nodes_replicas_are_taken_over_by_the_majority() {
    let (mut cluster, mut liveness) = cluster(3);
    cluster.workloads.insert(workload_id("web"), workload(3));
    settle(&mut cluster, &liveness);
    liveness.alive.remove(&node_id(2));
    settle(&mut cluster, &liveness);
    let placed = placement(&cluster, "web");
    assert_eq!(placed.slots.len(), 3);
    assert_eq!(count_on(placed, 2), 0);
}

#[test]
fn a_partitioned_minority_keeps_only_its_own() {
    let (mut cluster, mut liveness) = cluster(3);
    cluster.workloads.insert(workload_id("web"), workload(3));
    settle(&mut cluster, &liveness);
    liveness.alive = [node_id(3)].into();
    assert_eq!(schedule(&cluster, &liveness, at(0)), BTreeMap::new());
    cluster.workloads.get_mut(&workload_id("web")).unwrap().spec.takeover = Takeover::Always;
    settle(&mut cluster, &liveness);
    assert_eq!(count_on(placement(&cluster, "web"), 3), 3);
}

#[test]
fn one_of_two_survives_alone() {
    let (mut cluster, mut liveness) = cluster(2);
    cluster.workloads.insert(workload_id("web"), workload(2));
    settle(&mut cluster, &liveness);
    liveness.alive = [node_id(2)].into();
    settle(&mut cluster, &liveness);
    assert_eq!(count_on(placement(&cluster, "web"), 2), 2);
}

#[test]
fn a_node_gone_for_more_than_a_day_no_longer_counts() {
    let (mut cluster, mut liveness) = cluster(3);
    cluster.workloads.insert(workload_id("web"), workload(3));
    settle(&mut cluster, &liveness);
    liveness.alive = [node_id(1)].into();
    let missed = LastSeen { missed_ms: 25 * 3600 * 1000, ..LastSeen::now(at(0)) };
    liveness.last_seen.insert(node_id(3), missed);
    settle(&mut cluster, &liveness);
    assert_eq!(count_on(placement(&cluster, "web"), 1), 3);
}

#[test]
fn takeover_never_waits_for_the_node() {
    let (mut cluster, mut liveness) = cluster(3);
    let mut pinned = workload(3);
    pinned.spec.takeover = Takeover::Never;
    cluster.workloads.insert(workload_id("db"), pinned);
    settle(&mut cluster, &liveness);
    liveness.alive.remove(&node_id(2));
    assert_eq!(schedule(&cluster, &liveness, at(0)), BTreeMap::new());
}

#[test]
fn what_fits_nowhere_else_waits_for_its_dead_node_and_says_so() {
    let (mut cluster, mut liveness) = cluster(3);
    cluster.workloads.insert(workload_id("big"), asking(3, 700));
    settle(&mut cluster, &liveness);
    let before = placement(&cluster, "big").slots.clone();
    liveness.alive.remove(&node_id(3));
    settle(&mut cluster, &liveness);
    let placed = placement(&cluster, "big");
    assert_eq!(placed.slots, before);
    let (_, reason) = placed.pending.first_key_value().unwrap();
    assert!(
        reason.starts_with("its node hive-3 is down and no node fits: 2 of 3 have too little"),
        "{reason}"
    );
    liveness.alive.insert(node_id(3));
    settle(&mut cluster, &liveness);
    assert_eq!(placement(&cluster, "big").pending, BTreeMap::new());
}

#[test]
fn a_node_that_is_cordoned_or_not_ready_keeps_its_replicas_and_gets_no_new_ones() {
    let (mut cluster, liveness) = cluster(3);
    cluster.workloads.insert(workload_id("web"), workload(3));
    settle(&mut cluster, &liveness);
    cluster.nodes.get_mut(&node_id(1)).unwrap().intent =
        Some(hivemind_spec::document::NodeIntentSpec { cordoned: true, ..intent(1) });
    cluster.nodes.get_mut(&node_id(2)).unwrap().status.as_mut().unwrap().problems = vec!["no disk".into()];
    assert_eq!(schedule(&cluster, &liveness, at(0)), BTreeMap::new());
    cluster.workloads.get_mut(&workload_id("web")).unwrap().spec.replicas = 6;
    settle(&mut cluster, &liveness);
    let placed = placement(&cluster, "web");
    assert_eq!((count_on(placed, 1), count_on(placed, 2), count_on(placed, 3)), (1, 1, 4));
}

#[test]
fn a_revoked_nodes_replicas_move() {
    let (mut cluster, liveness) = cluster(2);
    cluster.workloads.insert(workload_id("web"), workload(2));
    settle(&mut cluster, &liveness);
    cluster.nodes.get_mut(&node_id(1)).unwrap().intent =
        Some(hivemind_spec::document::NodeIntentSpec { revoked: true, ..intent(1) });
    settle(&mut cluster, &liveness);
    assert_eq!(count_on(placement(&cluster, "web"), 2), 2);
}

#[test]
fn the_lowest_priority_goes_without() {
    let (mut cluster, liveness) = cluster(2);
    cluster.workloads.insert(workload_id("batch"), asking(4, 500));
    settle(&mut cluster, &liveness);
    let mut vital = asking(1, 500);
    vital.spec.priority = 10;
    cluster.workloads.insert(workload_id("vital"), vital);
    settle(&mut cluster, &liveness);
    assert_eq!(placement(&cluster, "vital").slots.len(), 1);
    let batch = placement(&cluster, "batch");
    assert_eq!((batch.slots.len(), batch.pending.len()), (3, 1));
}

#[test]
fn equal_priorities_do_not_displace_each_other() {
    let (mut cluster, liveness) = cluster(1);
    cluster.workloads.insert(workload_id("old"), asking(2, 500));
    settle(&mut cluster, &liveness);
    cluster.workloads.insert(workload_id("new"), asking(1, 500));
    settle(&mut cluster, &liveness);
    assert_eq!(placement(&cluster, "old").slots.len(), 2);
    assert_eq!(placement(&cluster, "new").slots.len(), 0);
}

#[test]
fn scaling_down_takes_pending_then_dead_then_the_highest() {
    let (mut cluster, mut liveness) = cluster(3);
    let mut web = workload(5);
    web.spec.takeover = Takeover::Never;
    cluster.workloads.insert(workload_id("web"), web);
    for (slot, n) in [(0, 2), (1, 1), (2, 1), (3, 3)] {
        place(&mut cluster, "web", slot, n);
    }
    cluster.placements.get_mut(&workload_id("web")).unwrap().pending = [(4, "full".into())].into();
    liveness.alive.remove(&node_id(2));
    for (replicas, left) in [(4, vec![0, 1, 2, 3]), (3, vec![1, 2, 3]), (2, vec![1, 2])] {
        cluster.workloads.get_mut(&workload_id("web")).unwrap().spec.replicas = replicas;
        settle(&mut cluster, &liveness);
        assert_eq!(placement(&cluster, "web").slots.keys().copied().collect::<Vec<_>>(), left);
    }
}

#[test]
fn a_changed_document_that_asks_for_more_than_its_node_has_moves_only_what_must() {
    let (mut cluster, liveness) = cluster(3);
    cluster.workloads.insert(workload_id("a"), asking(3, 300));
    settle(&mut cluster, &liveness);
    let before = placement(&cluster, "a").slots.clone();
    cluster.workloads.insert(workload_id("a"), asking(3, 1000));
    settle(&mut cluster, &liveness);
    assert_eq!(placement(&cluster, "a").slots, before);
}

#[test]
fn a_removed_workload_loses_its_placement_and_one_that_is_not_here_yet_keeps_it() {
    let (mut cluster, liveness) = cluster(1);
    cluster.workloads.insert(workload_id("web"), workload(1));
    settle(&mut cluster, &liveness);
    cluster.workloads.clear();
    // The decision of another leader came before the document.
    assert_eq!(schedule(&cluster, &liveness, at(0)), BTreeMap::new());
    cluster.gone.insert(workload_id("web"));
    assert_eq!(schedule(&cluster, &liveness, at(0)), [(workload_id("web"), None)].into());
}

#[test]
fn a_huge_pending_workload_stays_a_small_record() {
    let (mut cluster, liveness) = cluster(1);
    cluster.workloads.insert(workload_id("huge"), asking(10_000, 500));
    settle(&mut cluster, &liveness);
    let placed = placement(&cluster, "huge");
    assert_eq!((placed.slots.len(), placed.pending.len()), (2, 9_998));
    assert!(placed.pending.values().map(String::len).sum::<usize>() < 200_000);
}

#[derive(Debug, Clone)]
struct World {
    cluster: Cluster,
    liveness: Liveness,
}

prop_compose! {
    fn any_workload()(
        replicas in 0u32..6,
        memory in 1u64..900,
        cpu in 1u64..3000,
        priority in -1i32..2,
        constrained in proptest::option::of((any::<bool>(), 0u8..3)),
        takeover in prop_oneof![Just(Takeover::Majority), Just(Takeover::Always), Just(Takeover::Never)],
    ) -> Workload {
        let mut workload = asking(replicas, memory);
        workload.spec.container.resources.cpu_request_millis = Some(cpu);
        workload.spec.priority = priority;
        workload.spec.takeover = takeover;
        workload.spec.constraints = constrained.into_iter().map(|(equal, zone)| Constraint {
            label: "zone".into(),
            operator: if equal { Operator::Equal } else { Operator::NotEqual },
            value: zone.to_string(),
        }).collect();
        workload
    }
}

prop_compose! {
    fn any_world()(
        nodes in proptest::collection::vec((any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), 0u8..3), 1..6),
        workloads in proptest::collection::vec(any_workload(), 1..5),
        placed in proptest::collection::vec((0usize..5, 0u32..6, 1u8..7), 0..12),
    ) -> World {
        let mut world = World { cluster: Cluster::default(), liveness: Liveness::default() };
        for (n, (alive, cordoned, revoked, unready, zone)) in (1u8..).zip(nodes) {
            let mut made = node(n);
            made.status.as_mut().unwrap().labels = [("zone".to_owned(), zone.to_string())].into();
            if unready {
                made.status.as_mut().unwrap().problems.push("broken".into());
            }
            made.intent = Some(hivemind_spec::document::NodeIntentSpec {
                cordoned, revoked: revoked && cordoned, ..intent(n)
            });
            world.cluster.nodes.insert(node_id(n), made);
            if alive || n == 1 {
                world.liveness.alive.insert(node_id(n));
            }
        }
        for (index, workload) in workloads.into_iter().enumerate() {
            world.cluster.workloads.insert(workload_id(&format!("w{index}")), workload);
        }
        for (index, slot, n) in placed {
            place(&mut world.cluster, &format!("w{index}"), slot, n);
        }
        world
    }
}

fn used_on(cluster: &Cluster, node: &NodeId) -> (u64, u64) {
    cluster.assignments(node).values().fold((0, 0), |(cpu, memory), workload| {
        let asks = &workload.spec.container.resources;
        (cpu + asks.cpu_millis(), memory + asks.memory_bytes())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn capacity_is_never_exceeded_on_a_live_node(world in any_world()) {
        let World { mut cluster, liveness } = world;
        settle(&mut cluster, &liveness);
        for id in liveness.alive.iter().filter(|id| cluster.is_live(&liveness, id)) {
            let capacity = cluster.nodes[id].status.as_ref().unwrap().capacity;
            let (cpu, memory) = used_on(&cluster, id);
            prop_assert!(cpu <= capacity.cpu_millis && memory <= capacity.memory_bytes);
        }
    }

    #[test]
    fn applying_a_schedule_leaves_nothing_to_do(world in any_world()) {
        let World { mut cluster, liveness } = world;
        settle(&mut cluster, &liveness);
        prop_assert_eq!(schedule(&cluster, &liveness, at(0)), BTreeMap::new());
    }

    #[test]
    fn every_replica_is_placed_or_has_a_reason(world in any_world()) {
        let World { mut cluster, liveness } = world;
        settle(&mut cluster, &liveness);
        let majority = cluster.side(&liveness, at(0)).is_majority();
        for (id, workload) in &cluster.workloads {
            let Some(placed) = cluster.placements.get(id) else { panic!("{id:?} has no placement") };
            let known: BTreeSet<u32> =
                placed.slots.keys().chain(placed.pending.keys()).copied().collect();
            if majority {
                prop_assert_eq!(known.len(), workload.spec.replicas as usize);
            }
            prop_assert!(placed.pending.values().all(|reason| !reason.is_empty()));
        }
    }

    #[test]
    fn nothing_new_goes_to_a_node_that_is_cordoned_unready_dead_or_revoked(world in any_world()) {
        let World { mut cluster, liveness } = world;
        let before = cluster.placements.clone();
        settle(&mut cluster, &liveness);
        for (id, placed) in &cluster.placements {
            for (slot, node) in &placed.slots {
                let was = before.get(id).and_then(|p| p.slots.get(slot));
                let host = cluster.nodes.get(node);
                let open = host.is_some_and(|host| {
                    cluster.is_live(&liveness, node) && !host.is_cordoned() && host.is_ready()
                });
                prop_assert!(was == Some(node) || open);
            }
        }
    }

    #[test]
    fn no_replica_of_a_healthy_node_moves_unless_it_must(world in any_world(), extra in any_workload()) {
        let World { mut cluster, liveness } = world;
        settle(&mut cluster, &liveness);
        let before = cluster.placements.clone();
        // Another workload comes, of no higher priority than any; and a document changes its image.
        let lowest = cluster.workloads.values().map(|w| w.spec.priority).min().unwrap_or(0);
        let mut extra = extra;
        extra.spec.priority = lowest;
        cluster.workloads.insert(workload_id("zz"), extra);
        let first = cluster.workloads.values_mut().next().unwrap();
        let mut spec = first.spec.clone();
        spec.container.image = "registry.test/app:2".into();
        *first = Workload::new(2, hivemind_spec::id::Digest::of(b"revision 2"), spec);
        settle(&mut cluster, &liveness);
        for (id, placed) in before {
            prop_assert_eq!(&cluster.placements[&id].slots, &placed.slots);
        }
    }

    #[test]
    fn a_minority_takes_over_nothing_by_default(world in any_world()) {
        let World { mut cluster, mut liveness } = world;
        for workload in cluster.workloads.values_mut() {
            workload.spec.takeover = Takeover::Majority;
        }
        liveness.alive = [node_id(1)].into();
        if cluster.side(&liveness, at(0)).is_majority() {
            return Ok(());
        }
        let before = cluster.placements.clone();
        settle(&mut cluster, &liveness);
        for (id, placed) in &cluster.placements {
            let Some(before) = before.get(id) else { continue };
            for (slot, node) in &before.slots {
                let elsewhere = *node != node_id(1)
                    && cluster.nodes.get(node).is_some_and(|n| !n.is_revoked());
                let now = placed.slots.get(slot);
                prop_assert!(!elsewhere || now.is_none() || now == Some(node));
            }
        }
    }

    #[test]
    fn the_same_input_gives_the_same_placement(world in any_world()) {
        let World { cluster, liveness } = world;
        prop_assert_eq!(schedule(&cluster, &liveness, at(0)), schedule(&cluster.clone(), &liveness, at(0)));
    }
}
