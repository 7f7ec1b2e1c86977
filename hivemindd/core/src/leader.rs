//! Who decides placements: the lowest node id among the live, ready, unrevoked members, once that
//! has been so for a short while. No messages: every member reads it off its own SWIM view, and
//! two leaders during a partition are harmless because decisions are soft (design, section 4).

use hivemind_spec::id::NodeId;

use crate::cluster::{Cluster, Liveness};
use crate::time::Time;

/// How long a node must have been the lowest before it leads, milliseconds. Covers the moment in
/// which members learn of each other at boot, so that the first to start does not place everything
/// on itself; short against the detection of a failure, which it adds to.
pub const STABLE_AFTER_MS: u64 = 1000;

/// The leader in this node's view.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leader {
    current: Option<NodeId>,
    /// Who would lead, and since when it has been the lowest ([`Time::mono_ms`]).
    candidate: Option<(NodeId, u64)>,
}

impl Leader {
    /// Takes note of the view and returns the leader. Call on every change of the view and at
    /// [`Leader::wake_at_ms`].
    pub fn observe(&mut self, now: Time, cluster: &Cluster, liveness: &Liveness) -> Option<NodeId> {
        let eligible = |id: &NodeId| {
            cluster.is_live(liveness, id) && cluster.nodes.get(id).is_some_and(|node| node.is_ready())
        };
        let lowest = liveness.alive.iter().find(|id| eligible(id)).copied();
        if self.candidate.map(|(id, _)| id) != lowest {
            self.candidate = lowest.map(|id| (id, now.mono_ms));
        }
        match self.candidate {
            Some((id, since)) if now.mono_ms >= since.saturating_add(STABLE_AFTER_MS) => {
                self.current = Some(id);
            }
            // A leader that is still able stays until the newcomer has been seen for long enough.
            _ => self.current = self.current.filter(eligible),
        }
        self.current
    }

    /// The leader at the last look.
    pub fn current(&self) -> Option<NodeId> {
        self.current
    }

    /// When to look again, [`Time::mono_ms`]; absent while nothing is about to change.
    pub fn wake_at_ms(&self) -> Option<u64> {
        let (id, since) = self.candidate?;
        (self.current != Some(id)).then_some(since.saturating_add(STABLE_AFTER_MS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{at, cluster, intent, node_id};

    fn led(nodes: u8) -> (Leader, Cluster, Liveness) {
        let (cluster, liveness) = cluster(nodes);
        let mut leader = Leader::default();
        leader.observe(at(0), &cluster, &liveness);
        leader.observe(at(1), &cluster, &liveness);
        (leader, cluster, liveness)
    }

    #[test]
    fn the_lowest_ready_node_leads_once_the_view_is_stable() {
        let (cluster, liveness) = cluster(3);
        let mut leader = Leader::default();
        assert_eq!(leader.observe(at(0), &cluster, &liveness), None);
        assert_eq!(leader.wake_at_ms(), Some(at(0).mono_ms + STABLE_AFTER_MS));
        assert_eq!(leader.observe(at(1), &cluster, &liveness), Some(node_id(1)));
        assert_eq!(leader.wake_at_ms(), None);
    }

    #[test]
    fn a_dead_leader_leads_no_longer_and_the_next_follows() {
        let (mut leader, cluster, mut liveness) = led(3);
        liveness.alive.remove(&node_id(1));
        assert_eq!(leader.observe(at(2), &cluster, &liveness), None);
        assert_eq!(leader.observe(at(3), &cluster, &liveness), Some(node_id(2)));
    }

    #[test]
    fn a_flapping_node_with_a_lower_id_does_not_take_over() {
        let (mut leader, cluster, mut liveness) = led(3);
        liveness.alive.remove(&node_id(1));
        leader.observe(at(2), &cluster, &liveness);
        leader.observe(at(3), &cluster, &liveness);
        for second in 4..9 {
            if second % 2 == 0 {
                liveness.alive.insert(node_id(1));
            } else {
                liveness.alive.remove(&node_id(1));
            }
            let now = Time { mono_ms: at(3).mono_ms + (second - 3) * 900, ..at(3) };
            assert_eq!(leader.observe(now, &cluster, &liveness), Some(node_id(2)));
        }
    }

    #[test]
    fn revoked_and_unready_nodes_do_not_lead() {
        let (mut leader, mut cluster, liveness) = led(3);
        cluster.nodes.get_mut(&node_id(1)).unwrap().intent =
            Some(hivemind_spec::document::NodeIntentSpec { revoked: true, ..intent(1) });
        cluster.nodes.get_mut(&node_id(2)).unwrap().status.as_mut().unwrap().problems =
            vec!["no disk".into()];
        assert_eq!(leader.observe(at(2), &cluster, &liveness), None);
        assert_eq!(leader.observe(at(3), &cluster, &liveness), Some(node_id(3)));
    }
}
