//! Nodes that run twice: somebody copied a disk and started the copy beside the original. Both have the
//! same keys, so nothing tells which is the right one; what can be told is that there are two.
//!
//! Every start of an agent draws a number, its run, and says it on each new connection. After a restart
//! the run of before is never heard again. Two machines with one identity take each other's connections
//! away, so that each peer hears their runs in turn: that is how it knows.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use hivemind_spec::api::Severity;
use hivemind_spec::id::NodeId;

use super::{Content, Node};
use crate::event::{Actions, Peer};
use crate::record::{Doubled, Observation, RecordKey, Topic};
use crate::report::doubled_text;
use crate::time::Time;

/// How long after a newer run began the words of an older one may still be on their way, milliseconds: a
/// stream's time-out and a connection's.
const ECHO_MS: u64 = 15_000;

/// How long after it was last heard a run may still be there, milliseconds. Two machines with one
/// identity have each new connection within seconds.
const LATELY_MS: u64 = 60_000;

/// Runs of one node that are remembered: two are enough for one copy, a few more for several.
const MAX_RUNS: usize = 4;

/// How old what was told becomes before it is told again, milliseconds: each time goes to all nodes.
const TOLD_AGAIN_MS: u64 = 2 * 60_000;

/// How long after both were last heard it is no longer told, milliseconds.
const TOLD_FOR_MS: u64 = 5 * 60_000;

/// One start of a node's agent, as heard here.
#[derive(Debug)]
struct Run {
    number: u64,
    address: SocketAddr,
    /// When it was heard first, monotonic milliseconds.
    first_ms: u64,
    /// When it was heard last.
    last_ms: u64,
}

/// The runs of each member heard by this node since it started, the newest last.
#[derive(Debug, Default)]
pub(super) struct Doubles(BTreeMap<NodeId, VecDeque<Run>>);

impl Doubles {
    /// Takes note of a run. Gives the addresses of two that are there at once: this one, which should
    /// have ended when another began, and the other.
    fn hear(&mut self, now_ms: u64, peer: Peer, number: u64) -> Option<[SocketAddr; 2]> {
        let runs = self.0.entry(peer.node).or_default();
        let Some(index) = runs.iter().position(|run| run.number == number) else {
            runs.push_back(Run { number, address: peer.address, first_ms: now_ms, last_ms: now_ms });
            if runs.len() > MAX_RUNS {
                runs.pop_front();
            }
            return None;
        };
        (runs[index].address, runs[index].last_ms) = (peer.address, now_ms);
        let is_there = |run: &&Run| run.first_ms + ECHO_MS <= now_ms && now_ms < run.last_ms + LATELY_MS;
        let newer = runs.iter().skip(index + 1).find(is_there)?;
        Some([peer.address, newer.address])
    }
}

impl Node {
    /// A peer has said which start of its agent it is.
    pub(super) fn hear_run(&mut self, now: Time, from: Peer, run: u64, out: &mut Actions) {
        if !self.members.contains(&from.node) {
            return;
        }
        let Some(mut addresses) = self.doubles.hear(now.mono_ms, from, run) else { return };
        addresses.sort_unstable();
        let told = self.told_doubled(&from.node).map(|doubled| doubled.seen_ms);
        if told.is_none_or(|told_ms| now.wall_ms.abs_diff(told_ms) > TOLD_AGAIN_MS) {
            let doubled = Doubled { addresses, seen_ms: now.wall_ms };
            let text = format!("node {} {}", self.name(&from.node), doubled_text(&doubled));
            self.note(now, Severity::Warning, "node-doubled", text, out);
            self.say(now, Topic::Doubled(from.node), Some(Observation::Doubled(doubled)));
        }
    }

    fn told_doubled(&self, node: &NodeId) -> Option<&Doubled> {
        let own = RecordKey::Observation(self.settings.me, Topic::Doubled(*node));
        match &self.map.get(&own)?.content {
            Content::Observation(Some(Observation::Doubled(doubled))) => Some(doubled),
            _ => None,
        }
    }

    /// Takes back what was true some time ago, and forgets the runs of nodes that are no members.
    pub(super) fn forget_doubles(&mut self, now: Time) {
        let members = &self.members;
        self.doubles.0.retain(|node, _| members.contains(node));
        let is_over = |node: &&NodeId| {
            let told = self.told_doubled(node);
            told.is_some_and(|told| now.wall_ms.abs_diff(told.seen_ms) > TOLD_FOR_MS)
        };
        let over: Vec<_> = self.cluster.nodes.keys().filter(is_over).copied().collect();
        for node in over {
            self.say(now, Topic::Doubled(node), None);
        }
    }
}
