//! Who votes on a lease: sets of nodes, of each of which a strict majority must grant.

use std::collections::{BTreeMap, BTreeSet};

use hivemind_spec::id::{Digest, NodeId};
use serde::{Deserialize, Serialize};

use crate::state::encode;

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
    pub fn learn(&mut self, other: &Self) -> bool {
        let before = self.clone();
        let lowest = |voters: &Self| voters.sets.keys().next().copied();
        let floor = lowest(self).max(lowest(other));
        self.sets.extend(other.sets.iter().map(|(name, set)| (*name, set.clone())));
        self.sets.retain(|name, _| Some(*name) >= floor);
        *self != before
    }

    /// Adds a set after all others, unless it is the newest already. Returns whether it was added.
    pub fn propose(&mut self, by: NodeId, set: &BTreeSet<NodeId>) -> bool {
        let newest = self.sets.last_key_value();
        if set.is_empty() || newest.is_some_and(|(_, newest)| newest == set) {
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
