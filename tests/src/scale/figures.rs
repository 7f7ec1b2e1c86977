//! What is measured of a cluster of one size.

use std::time::{Duration, Instant};

use hivemind_core::scheduler;
use hivemind_core::state::encode;

use super::crowd::Crowd;

/// Replicas for each node, in workloads of as many.
pub const REPLICAS_PER_NODE: u32 = 30;

/// Nodes lost one after another: so few that the slowest is the 99th percentile.
const LOSSES: usize = 60;

/// How long what is at rest is watched, milliseconds of the simulated world.
const REST_MS: u64 = 120_000;

/// How long a change is watched, milliseconds: by then everybody has heard of it.
const CHANGE_MS: u64 = 30_000;

/// The figures of one size, by name; the unit ends the name.
pub type Figures = Vec<(&'static str, f64)>;

/// Measures everything but memory on a cluster of so many nodes.
pub fn measure(nodes: usize) -> Figures {
    let mut crowd = Crowd::new(nodes, nodes, REPLICAS_PER_NODE);
    let map = crowd.whole.map();
    let map_bytes: usize = map.iter().map(|(key, e)| encode(key).len() + encode(&e.record).len()).sum();
    let mut figures = vec![
        ("records", map.len() as f64),
        ("map_mb", map_bytes as f64 / 1e6),
        ("checked_in_s", crowd.heard_in.as_secs_f64()),
    ];
    at_rest(&mut crowd, nodes, &mut figures);
    one_change(&mut crowd, &mut figures);
    losses(&mut crowd, &mut figures);
    figures
}

fn at_rest(crowd: &mut Crowd, nodes: usize, figures: &mut Figures) {
    let (whole, others) = (crowd.sent, crowd.sent_by_stand_ins);
    crowd.run(REST_MS);
    let (whole, others) = (crowd.sent.since(whole), crowd.sent_by_stand_ins.since(others));
    let seconds = REST_MS as f64 / 1000.0;
    let each = seconds * (nodes - 1) as f64;
    figures.extend([
        ("rest_packets_per_s", whole.packets as f64 / seconds),
        ("rest_bytes_per_s", whole.bytes as f64 / seconds),
        ("rest_membership_packets_per_s", others.packets as f64 / each),
        ("rest_membership_bytes_per_s", others.bytes as f64 / each),
    ]);
}

/// One replica somewhere is started again: what each node does about it.
fn one_change(crowd: &mut Crowd, figures: &mut Figures) {
    let mut took = Vec::new();
    let before = crowd.sent;
    let changes = 10;
    for number in 0..changes {
        let steps = crowd.steps.len();
        crowd.one_replica_changes(crowd.other(number * 7));
        took.extend(crowd.steps.get(steps).copied());
        crowd.run(CHANGE_MS);
    }
    let sent = crowd.sent.since(before).map_bytes as f64 / changes as f64;
    figures.extend([("change_bytes", sent), ("change_step_ms", ms(quantile(&mut took, 0.5)))]);
}

/// Nodes are lost and come back, one after another.
fn losses(crowd: &mut Crowd, figures: &mut Figures) {
    let (mut steps, mut scheduled) = (Vec::new(), Vec::new());
    let mut bytes = 0;
    for number in 0..LOSSES {
        let node = crowd.other(number * 7 + 3);
        let (before, placings) = (crowd.sent, crowd.placings.len());
        crowd.power_off(node);
        scheduled.push(time_to_schedule(crowd, node));
        crowd.run_until(120_000, |crowd| crowd.is_relieved(node));
        steps.extend(crowd.placings[placings..].iter().map(|placing| placing.took));
        bytes += crowd.sent.since(before).bytes;
        crowd.return_of(node);
        crowd.run(15_000);
    }
    figures.extend([
        ("placement_p50_ms", ms(quantile(&mut steps, 0.5))),
        ("placement_p99_ms", ms(quantile(&mut steps, 0.99))),
        ("schedule_p99_ms", ms(quantile(&mut scheduled, 0.99))),
        ("loss_leader_bytes", bytes as f64 / LOSSES as f64),
    ]);
}

/// How long the scheduler alone takes to place what ran on a node that is gone.
fn time_to_schedule(crowd: &Crowd, lost: hivemind_spec::id::NodeId) -> Duration {
    let mut liveness = crowd.whole.liveness().clone();
    liveness.alive.remove(&lost);
    let begin = Instant::now();
    let placed = scheduler::schedule(crowd.whole.cluster(), &liveness, crowd.time());
    let took = begin.elapsed();
    assert!(!placed.is_empty(), "something was placed");
    took
}

fn quantile(values: &mut [Duration], part: f64) -> Duration {
    values.sort_unstable();
    let index = (values.len() as f64 * part).ceil() as usize;
    values.get(index.saturating_sub(1)).copied().unwrap_or_default()
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
