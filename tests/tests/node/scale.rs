//! What a large cluster costs each of its nodes; `./tests/bench scale` measures it at full size.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use hivemind_core::cluster::{Cluster, LastSeen, Liveness, Node, Workload};
use hivemind_core::record::{Enrolment, NodeStatus, Placement};
use hivemind_core::scheduler;
use hivemind_core::time::Time;
use hivemind_spec::api::Capacity;
use hivemind_spec::document::Spec;
use hivemind_spec::id::{Digest, NodeId, TokenId};
use hivemind_tests::scale::crowd::Crowd;
use hivemind_tests::sim::cast::{workload_document, workload_id};

const NODES: u16 = 1000;
const REPLICAS: u32 = 30;

/// How long placing may take here: forty times as long as it does, on a busy computer and not optimised.
const AT_ONCE: Duration = Duration::from_secs(1);

fn node_id(number: u16) -> NodeId {
    let mut id = [0; 16];
    id[..2].copy_from_slice(&number.to_be_bytes());
    NodeId(id)
}

fn node(number: u16) -> Node {
    let [high, low] = number.to_be_bytes();
    let status = NodeStatus {
        hostname: format!("m{number}"),
        address: IpAddr::V4(Ipv4Addr::new(198, 18, high, low)),
        vtep_mac: [2, 0, 0, 0, high, low],
        version: "0.1.0".to_owned(),
        release: None,
        update: None,
        labels: BTreeMap::new(),
        capacity: Capacity { cpu_millis: 64_000, memory_bytes: 256 << 30 },
        problems: Vec::new(),
        started_ms: 0,
        outdated: false,
    };
    let (chain, token) = (Vec::new(), TokenId::of(b"t"));
    let enrolment = Enrolment { chain, token, enrolled_ms: 0, subnet: Some(number) };
    Node { enrolment, status: Some(status), intent: None, intended_ms: 0 }
}

/// A thousand nodes that run thirty replicas each.
fn large_cluster(now: Time) -> (Cluster, Liveness) {
    let (mut cluster, mut liveness) = (Cluster::default(), Liveness::default());
    for number in 0..NODES {
        cluster.nodes.insert(node_id(number), node(number));
        liveness.alive.insert(node_id(number));
        liveness.last_seen.insert(node_id(number), LastSeen::now(now));
        let name = format!("app-{number}");
        let document = workload_document(&name, 1, |spec| spec.replicas = REPLICAS);
        let Some(Spec::Workload(spec)) = document.spec else { panic!("a workload") };
        let workload = Workload::new(1, Digest::of(name.as_bytes()), *spec);
        let place = |slot: u32| node_id((number + 7 * slot as u16) % NODES);
        let slots = (0..REPLICAS).map(|slot| (slot, place(slot))).collect();
        let placement = Placement { digest: Some(workload.digest), slots, pending: BTreeMap::new() };
        cluster.placements.insert(workload_id(&name), placement);
        cluster.workloads.insert(workload_id(&name), workload);
    }
    (cluster, liveness)
}

#[test]
fn what_one_lost_node_of_a_thousand_ran_is_placed_at_once_and_nothing_else_moves() {
    let now = Time { mono_ms: 1000, wall_ms: 1000 };
    let (cluster, mut liveness) = large_cluster(now);
    assert_eq!(scheduler::schedule(&cluster, &liveness, now), BTreeMap::new());
    let lost = node_id(500);
    liveness.alive.remove(&lost);
    let begin = Instant::now();
    let changes = scheduler::schedule(&cluster, &liveness, now);
    let took = begin.elapsed();
    assert!(took < AT_ONCE, "{took:?}");
    assert_eq!(changes.len(), REPLICAS as usize, "every one of them was of another workload");
    for (workload, placement) in changes {
        let (before, after) = (&cluster.placements[&workload].slots, placement.unwrap().slots);
        let moved: Vec<_> = before.iter().filter(|(slot, at)| after[slot] != **at).collect();
        assert_eq!(moved.len(), 1);
        assert!(moved.iter().all(|(_, at)| **at == lost));
    }
}

/// Bytes that a node sends in two minutes in which nothing happens.
fn sent_at_rest(nodes: usize) -> u64 {
    let mut crowd = Crowd::new(nodes, nodes, 1);
    let before = crowd.sent;
    crowd.run(120_000);
    crowd.sent.since(before).bytes
}

#[test]
fn a_node_at_rest_sends_about_the_same_however_large_the_cluster_is() {
    let (small, large) = (sent_at_rest(10), sent_at_rest(100));
    assert!(large < 2 * small, "{small} bytes among ten, {large} among a hundred");
}

#[test]
fn a_hundred_nodes_run_elsewhere_what_a_lost_one_ran() {
    let mut crowd = Crowd::new(100, 100, 30);
    let lost = crowd.other(50);
    let (placings, runs) = (crowd.placings.len(), crowd.runs_on(lost));
    crowd.power_off(lost);
    crowd.run_until(30_000, |crowd| crowd.is_relieved(lost));
    let placings = &crowd.placings[placings..];
    assert_eq!(placings.iter().map(|placing| placing.workloads).sum::<usize>(), runs);
    assert!(placings.iter().all(|placing| placing.took < AT_ONCE), "{placings:?}");
}
