//! Who votes on a lease: sets of nodes, of each of which a strict majority must grant.

use std::collections::{BTreeMap, BTreeSet};

use hivemind_spec::id::{Digest, NodeId};
use serde::{Deserialize, Serialize};

use crate::membership::MAX_MEMBERS;
use crate::state::encode;

/// Sets a holder has at once, itself counted: one more for each change of who is enrolled, as long as it
/// hears no majority of the older ones.
const MAX_PROPOSED: usize = 16;

/// Sets known at once: those of two holders that do not know of each other. Each is asked, and sent, at
/// every round.
const MAX_SETS: usize = 2 * MAX_PROPOSED;

/// There are more sets, or larger ones, than an honest holder tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany;

/// The sets that count. Each has a number above those before it and the node that proposed it; learning
/// from another takes all of both, except what either knows to be dropped: the lowest set is the one
/// below which all are. So it does not matter in which order, or how often, sets are learnt.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Voters {
    sets: BTreeMap<(u64, NodeId), BTreeSet<NodeId>>,
}

impl Voters {
    /// Those of the document.
    pub fn first(set: BTreeSet<NodeId>) -> Self {
        Self { sets: [((0, NodeId([0; 16])), set)].into() }
    }

    /// All sets, oldest first.
    pub fn sets(&self) -> impl Iterator<Item = &BTreeSet<NodeId>> {
        self.sets.values()
    }

    /// Everybody who has a vote.
    pub fn all(&self) -> BTreeSet<NodeId> {
        self.sets.values().flatten().copied().collect()
    }

    /// Whether these nodes are a strict majority of every set.
    pub fn carried_by(&self, granted: &BTreeSet<NodeId>) -> bool {
        self.sets.values().all(|set| 2 * set.intersection(granted).count() > set.len())
    }

    /// Takes what another node knows. Returns whether that was news.
    ///
    /// # Errors
    /// When it would be too much; then nothing of it is taken, and nothing may be granted on it.
    pub fn learn(&mut self, other: &Self) -> Result<bool, TooMany> {
        let before = self.clone();
        let lowest = |voters: &Self| voters.sets.keys().next().copied();
        let floor = lowest(self).max(lowest(other));
        self.sets.extend(other.sets.iter().map(|(name, set)| (*name, set.clone())));
        self.sets.retain(|name, _| Some(*name) >= floor);
        if self.sets.len() > MAX_SETS || self.sets.values().any(|set| set.len() > MAX_MEMBERS) {
            *self = before;
            return Err(TooMany);
        }
        Ok(*self != before)
    }

    /// Adds a set after all others, unless it is the newest already or there are many. Returns whether it was
    /// added.
    pub fn propose(&mut self, by: NodeId, set: &BTreeSet<NodeId>) -> bool {
        let newest = self.sets.last_key_value();
        let full = self.sets.len() >= MAX_PROPOSED;
        if full || set.is_empty() || newest.is_some_and(|(_, newest)| newest == set) {
            return false;
        }
        let number = newest.map_or(0, |((number, _), _)| number + 1);
        self.sets.insert((number, by), set.clone());
        true
    }

    /// Drops all but the newest. To be called only when all were carried, with every grantor told of the
    /// newest. Returns whether there was anything to drop.
    pub fn drop_older(&mut self) -> bool {
        let newest = self.sets.pop_last();
        let dropped = !self.sets.is_empty();
        self.sets = newest.into_iter().collect();
        dropped
    }

    /// Equal for those who know the same.
    pub fn digest(&self) -> u64 {
        let digest = Digest::of(&encode(&self.sets));
        digest.0.iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(range: std::ops::Range<u16>) -> BTreeSet<NodeId> {
        let node = |n: u16| {
            let mut id = [0; 16];
            id[..2].copy_from_slice(&n.to_be_bytes());
            NodeId(id)
        };
        range.map(node).collect()
    }

    #[test]
    fn what_a_member_may_propose_is_bounded() {
        let mut honest = Voters::first(set(0..3));
        let proposed = (4..100).filter(|n| honest.propose(NodeId([1; 16]), &set(0..*n))).count();
        assert_eq!(proposed, MAX_PROPOSED - 1);

        let mut hostile = Voters::first(set(0..3));
        let more = |n: u16| ((u64::from(n), NodeId([2; 16])), set(0..n));
        hostile.sets.extend((1..=MAX_SETS as u16).map(more));
        let before = honest.clone();
        assert_eq!(honest.learn(&hostile), Err(TooMany));
        let crowd = Voters::first(set(0..MAX_MEMBERS as u16 + 1));
        assert_eq!(honest.learn(&crowd), Err(TooMany));
        assert_eq!(honest, before, "nothing of it was taken");
    }
}
