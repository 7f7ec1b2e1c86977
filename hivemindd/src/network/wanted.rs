//! The overlay as it is wanted or as it is, and what leads from the one to the other. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use hivemind_core::event::NetworkPlan;

/// A MAC address.
pub(super) type Mac = [u8; 6];

/// A device of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Device {
    /// [`super::BRIDGE`].
    Bridge,
    /// [`super::VXLAN`].
    Vxlan,
}

/// What cannot be changed on a VXLAN device without making it anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Vxlan {
    pub(super) vni: u32,
    pub(super) local: IpAddr,
    pub(super) mac: Mac,
}

/// The overlay on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Overlay {
    pub(super) bridge: bool,
    pub(super) vxlan: Option<Vxlan>,
    /// IPv4 addresses and prefix lengths of our devices.
    pub(super) addresses: BTreeSet<(Device, Ipv4Addr, u8)>,
    /// Subnets reached over the VXLAN device, and their gateways.
    pub(super) routes: BTreeMap<(Ipv4Addr, u8), Ipv4Addr>,
    /// MAC addresses of those gateways.
    pub(super) neighbours: BTreeMap<Ipv4Addr, Mac>,
    /// Underlay addresses of those MAC addresses.
    pub(super) forwarding: BTreeMap<Mac, IpAddr>,
}

/// One step from what is to what is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    MakeBridge,
    RemoveVxlan,
    MakeVxlan(Vxlan),
    AddAddress(Device, Ipv4Addr, u8),
    RemoveAddress(Device, Ipv4Addr, u8),
    SetRoute((Ipv4Addr, u8), Ipv4Addr),
    RemoveRoute((Ipv4Addr, u8), Ipv4Addr),
    SetNeighbour(Ipv4Addr, Mac),
    RemoveNeighbour(Ipv4Addr),
    SetForwarding(Mac, IpAddr),
    RemoveForwarding(Mac, IpAddr),
}

impl Overlay {
    /// What the plan wants; nothing while the node has no part in the overlay. While its underlay
    /// address is unknown, what leads to the other nodes is wanted as it is.
    pub(super) fn wanted(plan: &NetworkPlan, observed: &Self) -> Option<Self> {
        let local = plan.local.as_ref()?;
        let bridge_address = (Device::Bridge, local.gateway, local.prefix);
        let Some(underlay) = local.underlay else {
            let mut overlay = Self { bridge: true, ..observed.clone() };
            overlay.addresses.retain(|(device, ..)| *device != Device::Bridge);
            overlay.addresses.insert(bridge_address);
            return Some(overlay);
        };
        let mut overlay = Self {
            bridge: true,
            vxlan: Some(Vxlan { vni: local.vni, local: underlay, mac: local.vtep_mac }),
            ..Self::default()
        };
        overlay.addresses.insert(bridge_address);
        // The subnet's first address names the node itself; peers route to it.
        overlay.addresses.insert((Device::Vxlan, local.subnet, 32));
        for peer in plan.peers.values() {
            overlay.routes.insert((peer.subnet, peer.prefix), peer.vtep);
            overlay.neighbours.insert(peer.vtep, peer.vtep_mac);
            overlay.forwarding.insert(peer.vtep_mac, peer.underlay);
        }
        Some(overlay)
    }

    /// The steps from `observed` to `self`, in an order that works. A device that is made anew
    /// loses what was on it, so another look is needed afterwards.
    pub(super) fn changes_from(&self, observed: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        if self.bridge && !observed.bridge {
            changes.push(Change::MakeBridge);
        }
        if self.vxlan != observed.vxlan {
            changes.extend(observed.vxlan.as_ref().map(|_| Change::RemoveVxlan));
            changes.extend(self.vxlan.clone().map(Change::MakeVxlan));
        }
        if !changes.is_empty() {
            return changes;
        }
        for (device, address, prefix) in observed.addresses.difference(&self.addresses) {
            changes.push(Change::RemoveAddress(*device, *address, *prefix));
        }
        for (device, address, prefix) in self.addresses.difference(&observed.addresses) {
            changes.push(Change::AddAddress(*device, *address, *prefix));
        }
        for (subnet, gateway) in &observed.routes {
            if !self.routes.contains_key(subnet) {
                changes.push(Change::RemoveRoute(*subnet, *gateway));
            }
        }
        for gateway in observed.neighbours.keys() {
            if !self.neighbours.contains_key(gateway) {
                changes.push(Change::RemoveNeighbour(*gateway));
            }
        }
        for (mac, underlay) in &observed.forwarding {
            if self.forwarding.get(mac) != Some(underlay) {
                changes.push(Change::RemoveForwarding(*mac, *underlay));
            }
        }
        for (mac, underlay) in missing(&self.forwarding, &observed.forwarding) {
            changes.push(Change::SetForwarding(*mac, *underlay));
        }
        for (gateway, mac) in missing(&self.neighbours, &observed.neighbours) {
            changes.push(Change::SetNeighbour(*gateway, *mac));
        }
        for (subnet, gateway) in missing(&self.routes, &observed.routes) {
            changes.push(Change::SetRoute(*subnet, *gateway));
        }
        changes
    }
}

/// What is wanted and is not there, or is there with another value.
fn missing<'a, K: Ord, V: PartialEq>(
    wanted: &'a BTreeMap<K, V>,
    observed: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    wanted.iter().filter(|(key, value)| observed.get(*key) != Some(*value))
}

#[cfg(test)]
mod tests {
    use hivemind_core::event::{LocalNetwork, PeerNetwork};
    use hivemind_spec::id::NodeId;

    use super::*;

    fn plan(peers: &[u8]) -> NetworkPlan {
        let local = LocalNetwork {
            subnet: Ipv4Addr::new(10, 42, 0, 0),
            prefix: 24,
            gateway: Ipv4Addr::new(10, 42, 0, 1),
            range: (Ipv4Addr::new(10, 42, 0, 0), 16),
            vni: 7,
            underlay: Some(IpAddr::from([192, 0, 2, 1])),
            vtep_mac: [2, 0, 0, 0, 0, 1],
        };
        let peer = |n: u8| PeerNetwork {
            subnet: Ipv4Addr::new(10, 42, n, 0),
            prefix: 24,
            vtep: Ipv4Addr::new(10, 42, n, 0),
            vtep_mac: [2, 0, 0, 0, 0, n],
            underlay: IpAddr::from([192, 0, 2, n]),
        };
        let peers = peers.iter().map(|n| (NodeId::of(&[*n]), peer(*n))).collect();
        NetworkPlan { local: Some(local), peers, ..NetworkPlan::default() }
    }

    /// What carrying out a change does, as the kernel does it.
    fn carried_out(mut overlay: Overlay, changes: &[Change]) -> Overlay {
        for change in changes.iter().cloned() {
            match change {
                Change::MakeBridge => overlay.bridge = true,
                Change::RemoveVxlan => {
                    let bridge = overlay.bridge;
                    let mut addresses = overlay.addresses.clone();
                    addresses.retain(|(device, ..)| *device == Device::Bridge);
                    overlay = Overlay { bridge, addresses, ..Overlay::default() };
                }
                Change::MakeVxlan(vxlan) => overlay.vxlan = Some(vxlan),
                Change::AddAddress(d, a, p) => drop(overlay.addresses.insert((d, a, p))),
                Change::RemoveAddress(d, a, p) => drop(overlay.addresses.remove(&(d, a, p))),
                Change::SetRoute(s, g) => drop(overlay.routes.insert(s, g)),
                Change::RemoveRoute(s, _) => drop(overlay.routes.remove(&s)),
                Change::SetNeighbour(g, m) => drop(overlay.neighbours.insert(g, m)),
                Change::RemoveNeighbour(g) => drop(overlay.neighbours.remove(&g)),
                Change::SetForwarding(m, u) => drop(overlay.forwarding.insert(m, u)),
                Change::RemoveForwarding(m, _) => drop(overlay.forwarding.remove(&m)),
            }
        }
        overlay
    }

    fn wanted(plan: &NetworkPlan) -> Overlay {
        Overlay::wanted(plan, &Overlay::default()).unwrap()
    }

    fn settled(from: Overlay, wanted: &Overlay) -> Overlay {
        let once = carried_out(from.clone(), &wanted.changes_from(&from));
        carried_out(once.clone(), &wanted.changes_from(&once))
    }

    #[test]
    fn a_second_application_changes_nothing() {
        let wanted = wanted(&plan(&[2, 3]));
        let settled = settled(Overlay::default(), &wanted);
        assert_eq!(settled, wanted);
        assert_eq!(wanted.changes_from(&settled), []);
    }

    #[test]
    fn what_others_changed_is_repaired_and_peers_that_left_are_taken_out() {
        let before = wanted(&plan(&[2, 3, 4]));
        let mut tampered = before.clone();
        tampered.routes.remove(&(Ipv4Addr::new(10, 42, 2, 0), 24));
        tampered.forwarding.insert([2, 0, 0, 0, 0, 3], IpAddr::from([192, 0, 2, 66]));
        assert_eq!(settled(tampered, &before), before);
        let after = wanted(&plan(&[2]));
        assert_eq!(settled(before, &after), after);
    }

    #[test]
    fn a_new_underlay_address_makes_the_device_anew() {
        let before = wanted(&plan(&[2]));
        let mut moved = plan(&[2]);
        if let Some(local) = &mut moved.local {
            local.underlay = Some(IpAddr::from([198, 51, 100, 1]));
        }
        let after = wanted(&moved);
        assert_eq!(settled(before, &after), after);
    }

    #[test]
    fn without_an_underlay_address_containers_have_their_bridge_and_the_way_to_others_stays() {
        let mut unplugged = plan(&[2, 3]);
        if let Some(local) = &mut unplugged.local {
            local.underlay = None;
        }
        let bare = settled(Overlay::default(), &wanted(&unplugged));
        assert!(bare.bridge && bare.vxlan.is_none() && bare.routes.is_empty());
        assert_eq!(bare.addresses, [(Device::Bridge, Ipv4Addr::new(10, 42, 0, 1), 24)].into());

        // An agent that has just started and finds the network of the one before.
        let before = wanted(&plan(&[2, 3, 4]));
        let after = Overlay::wanted(&unplugged, &before).unwrap();
        assert_eq!(after.changes_from(&before), []);
    }
}
