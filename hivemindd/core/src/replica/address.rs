//! Addresses of containers, from the node's subnet.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use crate::event::LocalNetwork;

/// Addresses at the start of a subnet that no container gets: the subnet's own, which is the VXLAN
/// device's, and the gateway's.
const RESERVED: u32 = 2;

fn size(network: &LocalNetwork) -> u32 {
    1u32.checked_shl(32 - u32::from(network.prefix.min(32))).unwrap_or(u32::MAX)
}

/// Whether an address is one that containers of the subnet can have.
pub(super) fn is_in(network: &LocalNetwork, address: Ipv4Addr) -> bool {
    let offset = address.to_bits().wrapping_sub(network.subnet.to_bits());
    (RESERVED..size(network).saturating_sub(1)).contains(&offset)
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
        (RESERVED..size(network).saturating_sub(1))
            .map(|offset| Ipv4Addr::from_bits(network.subnet.to_bits().wrapping_add(offset)))
            .filter(|address| !taken.contains(address))
    };
    wish.filter(|wish| is_in(network, *wish) && !taken.contains(wish))
        .or_else(|| all().find(|address| !remembered.contains(address)))
        .or_else(|| all().next())
}
