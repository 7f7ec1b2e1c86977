//! Addresses of containers, from the node's subnet.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use crate::event::LocalNetwork;
use crate::overlay::container_addresses;

/// Whether an address is one that containers of the subnet can have.
pub(super) fn is_in(network: &LocalNetwork, address: Ipv4Addr) -> bool {
    container_addresses(network.subnet, network.prefix).contains(&address.to_bits())
}

/// The wish if it is free; else the lowest address that is neither taken nor remembered by
/// another replica; else the lowest that is not taken.
pub(super) fn choose(
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
