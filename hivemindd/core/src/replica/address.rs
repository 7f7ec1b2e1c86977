//! Addresses of containers, from the node's subnet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::Replicas;
use crate::event::LocalNetwork;
use crate::overlay::container_addresses;
use crate::record::{ReplicaId, WorkloadId};

/// Whether an address is one that containers of the subnet can have.
pub(super) fn is_in(network: &LocalNetwork, address: Ipv4Addr) -> bool {
    container_addresses(network.subnet, network.prefix).contains(&address.to_bits())
}

/// The wish if it is free; else the lowest address that is neither taken nor remembered by
/// another replica; else the lowest that is not taken.
fn choose(
    network: &LocalNetwork,
    wish: Option<Ipv4Addr>,
    taken: &BTreeSet<Ipv4Addr>,
    remembered: &BTreeSet<Ipv4Addr>,
) -> Option<Ipv4Addr> {
    let all = || {
        container_addresses(network.subnet, network.prefix)
            .map(Ipv4Addr::from_bits)
            .filter(|address| !taken.contains(address))
    };
    wish.filter(|wish| is_in(network, *wish) && !taken.contains(wish))
        .or_else(|| all().find(|address| !remembered.contains(address)))
        .or_else(|| all().next())
}

impl Replicas {
    /// The addresses of containers that are here or about to be, and those kept for replicas that are to have one
    /// again; with whose they are.
    pub fn addresses(&self) -> BTreeMap<Ipv4Addr, WorkloadId> {
        let kept = self.lives.iter().filter_map(|(replica, life)| Some((life.ip?, &replica.workload)));
        let here = self.containers_here().map(|labels| (labels.ip, &labels.replica.workload));
        kept.chain(here).map(|(ip, workload)| (ip, workload.clone())).collect()
    }

    /// An address for a replica's next container: the one it had if free, else the lowest one that
    /// no container has and, if possible, no other replica had.
    pub(super) fn address(&self, replica: &ReplicaId, network: &LocalNetwork) -> Option<Ipv4Addr> {
        let taken: BTreeSet<Ipv4Addr> = self.containers_here().map(|labels| labels.ip).collect();
        let remembered: BTreeSet<Ipv4Addr> = self
            .lives
            .iter()
            .filter(|(other, _)| *other != replica)
            .filter_map(|(_, life)| life.ip)
            .collect();
        let wish = self.lives.get(replica).and_then(|life| life.ip);
        choose(network, wish, &taken, &remembered)
    }
}
