//! The overlay network as it should be: which /24 each node has, and who is reached how.
//!
//! Every node computes the same from the same records; nothing is negotiated. A peer that is down
//! keeps its route (it will be back, and a stale route harms nobody); a revoked one has none.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;

use hivemind_spec::id::{ClusterId, NodeId};
use hivemind_spec::workload::Protocol;

use crate::cluster::{Cluster, ContainerRange, Liveness};
use crate::event::{LocalNetwork, NetworkPlan, PeerNetwork};

/// Who has which subnet: the older enrolment keeps the one it recorded (node id breaks a tie), and
/// the others take the lowest free ones in the same order. Nodes that choose at the same moment
/// thus choose differently, because each also computes the others' choice.
pub fn subnets(cluster: &Cluster, range: ContainerRange) -> BTreeMap<NodeId, u16> {
    let mut by_age: Vec<_> = cluster.nodes.iter().filter(|(_, node)| !node.is_revoked()).collect();
    by_age.sort_by_key(|(id, node)| (node.enrolment.enrolled_ms, **id));
    let mut taken = BTreeSet::new();
    let mut subnets = BTreeMap::new();
    for (id, node) in &by_age {
        if let Some(index) = node.enrolment.subnet
            && range.subnet(index).is_some()
            && taken.insert(index)
        {
            subnets.insert(**id, index);
        }
    }
    let mut free = (0..=u16::MAX).take_while(|index| range.subnet(*index).is_some());
    for (id, _) in &by_age {
        if !subnets.contains_key(*id)
            && let Some(index) = free.find(|index| !taken.contains(index))
        {
            subnets.insert(**id, index);
        }
    }
    subnets
}

/// The subnets that nodes have recorded, and that are theirs; by their first addresses, which name the nodes
/// themselves.
pub fn recorded_subnets(
    cluster: &Cluster,
    range: ContainerRange,
) -> impl Iterator<Item = (NodeId, Ipv4Addr)> {
    subnets(cluster, range).into_iter().filter_map(move |(id, index)| {
        let is_recorded = cluster.nodes.get(&id)?.enrolment.subnet == Some(index);
        Some((id, range.subnet(index)?)).filter(|_| is_recorded)
    })
}

/// The address that a node's bridge has in its subnet.
pub fn gateway(subnet: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from_bits(subnet.to_bits() + 1)
}

/// The addresses that containers of a subnet can have, as numbers: all but the subnet's own, which is the VXLAN
/// device's, the gateway's, and that of broadcasts.
pub fn container_addresses(subnet: Ipv4Addr, prefix: u8) -> Range<u32> {
    let size = 1u32.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(u32::MAX);
    let first = subnet.to_bits();
    first.saturating_add(2)..first.saturating_add(size.saturating_sub(1))
}

/// The subnet `me` should record in its enrolment: what it has, unless an older node has the same.
/// Ask only after the first sync. Absent when the range is used up.
pub fn choose_subnet(cluster: &Cluster, me: &NodeId, range: ContainerRange) -> Option<u16> {
    subnets(cluster, range).get(me).copied()
}

/// The MAC address of a node's VXLAN device: from its id, unicast and locally administered.
pub fn vtep_mac(node: &NodeId) -> [u8; 6] {
    let [first, b, c, d, e, f, ..] = node.0;
    [first & 0xfe | 0x02, b, c, d, e, f]
}

/// The cluster's VXLAN network identifier: 24 bits of its id, never 0.
pub fn vni(cluster: &ClusterId) -> u32 {
    let [a, b, c, ..] = cluster.0;
    u32::from_be_bytes([0, a, b, c]).max(1)
}

/// The whole plan for `me`, whose underlay address is `underlay` if known.
pub fn plan(
    cluster: &Cluster,
    liveness: &Liveness,
    cluster_id: &ClusterId,
    me: &NodeId,
    underlay: Option<IpAddr>,
    range: ContainerRange,
) -> NetworkPlan {
    let mut plan = NetworkPlan { published: published(cluster, liveness), ..NetworkPlan::default() };
    for (id, subnet) in recorded_subnets(cluster, range) {
        let prefix = ContainerRange::SUBNET_PREFIX;
        if id == *me {
            plan.local = Some(LocalNetwork {
                subnet,
                prefix,
                gateway: gateway(subnet),
                range: range.cidr(),
                vni: vni(cluster_id),
                underlay,
                vtep_mac: vtep_mac(me),
            });
        } else if let Some(status) = cluster.nodes.get(&id).and_then(|node| node.status.as_ref()) {
            let peer = PeerNetwork {
                subnet,
                prefix,
                vtep: subnet,
                vtep_mac: status.vtep_mac,
                underlay: status.address,
            };
            plan.peers.insert(id, peer);
        }
    }
    plan
}

/// Published ports and the replicas behind them. A port that two workloads publish belongs to the
/// one whose name sorts first; the other is told by the reports.
fn published(cluster: &Cluster, liveness: &Liveness) -> BTreeMap<(Protocol, u16), BTreeSet<(Ipv4Addr, u16)>> {
    let owners = cluster.port_owners();
    let mut published: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for (id, workload) in &cluster.workloads {
        for port in &workload.spec.container.ports {
            let Some(outside) = port.published else { continue };
            let key = (port.protocol, outside);
            if owners.get(&key) != Some(&id) {
                continue;
            }
            for (_, ip) in cluster.serving(liveness, id) {
                published.entry(key).or_default().insert((ip, port.target));
            }
        }
    }
    published
}

#[cfg(test)]
mod tests {
    use hivemind_spec::workload::Port;
    use proptest::prelude::*;

    use super::*;
    use crate::fixture::{cluster, intent, node_id, running, workload, workload_id};

    fn range() -> ContainerRange {
        ContainerRange::parse("10.42.0.0/16").unwrap()
    }

    fn plan_for(n: u8, cluster: &Cluster, liveness: &Liveness) -> NetworkPlan {
        let underlay = Ipv4Addr::new(192, 0, 2, n).into();
        plan(cluster, liveness, &ClusterId::of(b"cluster"), &node_id(n), Some(underlay), range())
    }

    #[test]
    fn a_range_is_read_or_refused() {
        assert_eq!(range().subnets(), 256);
        assert_eq!(range().subnet(255), Some(Ipv4Addr::new(10, 42, 255, 0)));
        assert_eq!(ContainerRange::parse("10.42.0.0/22").unwrap().subnet(4), None);
        for bad in ["", "10.42.0.0", "10.42.0.0/23", "10.42.0.1/16", "10.42.0.0/7", "x/16", "10.0.0.0/33"] {
            assert_eq!(ContainerRange::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_conflict_over_a_subnet_is_won_by_the_older_enrolment() {
        let (mut cluster, _) = cluster(3);
        for n in 1..=3 {
            cluster.nodes.get_mut(&node_id(n)).unwrap().enrolment.subnet = Some(9);
        }
        cluster.nodes.get_mut(&node_id(2)).unwrap().enrolment.enrolled_ms = 1;
        let chosen = [1, 2, 3].map(|n| choose_subnet(&cluster, &node_id(n), range()));
        assert_eq!(chosen, [Some(0), Some(9), Some(1)]);
    }

    #[test]
    fn a_revoked_nodes_subnet_is_free_again() {
        let (mut cluster, _) = cluster(2);
        cluster.nodes.get_mut(&node_id(1)).unwrap().intent =
            Some(hivemind_spec::document::NodeIntentSpec { revoked: true, ..intent(1) });
        cluster.nodes.get_mut(&node_id(2)).unwrap().enrolment.subnet = Some(1);
        assert_eq!(choose_subnet(&cluster, &node_id(2), range()), Some(1));
    }

    #[test]
    fn a_used_up_range_gives_no_subnet() {
        let (mut cluster, _) = cluster(5);
        let small = ContainerRange::parse("10.42.0.0/22").unwrap();
        cluster.nodes.values_mut().for_each(|node| node.enrolment.subnet = None);
        assert_eq!(choose_subnet(&cluster, &node_id(5), small), None);
        assert_eq!(choose_subnet(&cluster, &node_id(4), small), Some(3));
    }

    #[test]
    fn the_plan_reaches_every_node_that_is_not_revoked_dead_ones_included() {
        let (mut cluster, mut liveness) = cluster(4);
        liveness.alive.remove(&node_id(3));
        cluster.nodes.get_mut(&node_id(4)).unwrap().intent =
            Some(hivemind_spec::document::NodeIntentSpec { revoked: true, ..intent(4) });
        let plan = plan_for(1, &cluster, &liveness);
        assert_eq!(plan.peers.keys().copied().collect::<Vec<_>>(), [node_id(2), node_id(3)]);
        let peer = &plan.peers[&node_id(2)];
        assert_eq!((peer.subnet, peer.vtep), (Ipv4Addr::new(10, 42, 2, 0), Ipv4Addr::new(10, 42, 2, 0)));
        let local = plan.local.unwrap();
        assert_eq!(
            (local.gateway, local.range),
            (Ipv4Addr::new(10, 42, 1, 1), (Ipv4Addr::new(10, 42, 0, 0), 16))
        );
    }

    #[test]
    fn published_ports_lead_to_running_replicas_on_live_nodes_only() {
        let (mut cluster, mut liveness) = cluster(3);
        let mut web = workload(3);
        web.spec.container.ports = vec![Port { target: 80, published: Some(8080), protocol: Protocol::Tcp }];
        cluster.workloads.insert(workload_id("web"), web.clone());
        cluster.workloads.insert(workload_id("zz"), web);
        let first = running(&mut cluster, "web", 0, 1);
        running(&mut cluster, "web", 1, 2);
        running(&mut cluster, "zz", 0, 1);
        liveness.alive.remove(&node_id(2));
        let plan = plan_for(3, &cluster, &liveness);
        assert_eq!(plan.published, [((Protocol::Tcp, 8080), [(first, 80)].into())].into());
    }

    #[test]
    fn the_mac_address_is_unicast_and_local() {
        for n in 0..=255 {
            assert_eq!(vtep_mac(&node_id(n))[0] & 3, 2);
        }
        assert_eq!(vni(&ClusterId([0; 16])), 1);
    }

    proptest! {
        #[test]
        fn no_two_nodes_choose_the_same_subnet_and_the_choice_is_stable(
            recorded in proptest::collection::vec((proptest::option::of(0u16..6), 0u64..4), 1..8)
        ) {
            let (mut cluster, _) = cluster(recorded.len() as u8);
            for (node, (subnet, enrolled_ms)) in cluster.nodes.values_mut().zip(recorded) {
                node.enrolment.subnet = subnet;
                node.enrolment.enrolled_ms = enrolled_ms;
            }
            let chosen = subnets(&cluster, range());
            let distinct: BTreeSet<u16> = chosen.values().copied().collect();
            prop_assert_eq!(distinct.len(), cluster.nodes.len());
            for (id, index) in &chosen {
                cluster.nodes.get_mut(id).unwrap().enrolment.subnet = Some(*index);
            }
            prop_assert_eq!(subnets(&cluster, range()), chosen);
        }
    }
}
