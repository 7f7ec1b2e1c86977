//! Who reaches whom: the networks that workloads are in, as sets of addresses.
//!
//! Two containers reach each other if their workloads are in one network of one namespace, and only then. Every node
//! sees to it for what its own containers send and receive, so that it needs to know no more than the networks of
//! those. A node's own addresses are reached by all: health checks, DNS and published ports come from there.
//!
//! The rule is about addresses and knows no connections: what is allowed is allowed in both directions, and what no
//! longer is ends at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use hivemind_spec::id::NodeId;
use serde::{Deserialize, Serialize};

use crate::cluster::{Cluster, ContainerRange};
use crate::overlay;
use crate::record::WorkloadId;

/// A network of a namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NetworkId {
    /// The namespace.
    pub namespace: String,
    /// Its name in the namespace.
    pub name: String,
}

/// Whom this node's containers reach.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Isolation {
    /// The range of all containers' addresses: network and prefix length. What is not in it is outside. None
    /// before this node has a subnet, when it has no containers either.
    pub range: Option<(Ipv4Addr, u8)>,
    /// Nodes' own addresses in the range.
    pub nodes: BTreeSet<Ipv4Addr>,
    /// This node's containers by their addresses, those that are about to start included.
    pub endpoints: BTreeMap<Ipv4Addr, Endpoint>,
    /// The networks of `endpoints`, and the addresses in them, wherever they are.
    pub members: BTreeMap<NetworkId, BTreeSet<Ipv4Addr>>,
}

/// A container, as far as the network is concerned. The default is one that reaches nobody.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The networks it is in.
    pub networks: BTreeSet<NetworkId>,
    /// Whether it reaches what is outside the range.
    pub outside: bool,
    /// Name servers that its node asks for it; none: the node's own.
    pub name_servers: Vec<IpAddr>,
}

/// Reaches nobody.
static NOBODY: Endpoint = Endpoint { networks: BTreeSet::new(), outside: false, name_servers: Vec::new() };

impl Isolation {
    /// Who has an address, as far as it can be told; none: not a container.
    pub fn container(&self, address: Ipv4Addr) -> Option<&Endpoint> {
        let is_in = |(network, length): (Ipv4Addr, u8)| {
            let host_bits = u32::MAX.checked_shr(length.into()).unwrap_or(0);
            (address.to_bits() ^ network.to_bits()) & !host_bits == 0
        };
        let unknown = || (self.range.is_some_and(is_in) && !self.nodes.contains(&address)).then_some(&NOBODY);
        self.endpoints.get(&address).or_else(unknown)
    }
}

/// The networks a workload is in.
pub fn networks(cluster: &Cluster, id: &WorkloadId) -> BTreeSet<NetworkId> {
    let network = |name: &str| NetworkId { namespace: id.namespace.clone(), name: name.to_owned() };
    let workload = cluster.workloads.get(id);
    workload.into_iter().flat_map(|workload| workload.spec.networks()).map(network).collect()
}

/// Whom the containers of `me` reach, which are `held`: their addresses and workloads.
pub fn plan(
    cluster: &Cluster,
    me: &NodeId,
    range: ContainerRange,
    held: &BTreeMap<Ipv4Addr, WorkloadId>,
) -> Isolation {
    let subnets: BTreeMap<NodeId, Ipv4Addr> = overlay::recorded_subnets(cluster, range).collect();
    let Some(own) = subnets.get(me) else { return Isolation::default() };
    let mut plan = Isolation {
        range: Some(range.cidr()),
        nodes: subnets.values().copied().chain([overlay::gateway(*own)]).collect(),
        ..Isolation::default()
    };
    for (address, id) in held {
        let endpoint = endpoint(cluster, id);
        for network in &endpoint.networks {
            plan.members.entry(network.clone()).or_default().insert(*address);
        }
        plan.endpoints.insert(*address, endpoint);
    }
    for ((replica, node), status) in &cluster.replicas {
        // A node speaks for its own addresses only; of this one's, it is known better.
        let is_its_own = |ip: &Ipv4Addr| {
            let subnet = subnets.get(node).filter(|_| node != me);
            subnet.is_some_and(|subnet| {
                overlay::container_addresses(*subnet, ContainerRange::SUBNET_PREFIX).contains(&ip.to_bits())
            })
        };
        let Some(ip) = status.ip.filter(is_its_own) else { continue };
        for network in networks(cluster, &replica.workload) {
            if let Some(members) = plan.members.get_mut(&network) {
                members.insert(ip);
            }
        }
    }
    plan
}

fn endpoint(cluster: &Cluster, id: &WorkloadId) -> Endpoint {
    // Of a workload that is removed nobody knows any more where it may go.
    let Some(workload) = cluster.workloads.get(id) else { return Endpoint::default() };
    Endpoint {
        networks: networks(cluster, id),
        outside: workload.spec.reaches_outside(),
        name_servers: workload.spec.container.resolver.servers.clone(),
    }
}

#[cfg(test)]
mod tests {
    use hivemind_spec::workload::Attachment;
    use proptest::prelude::*;

    use super::*;
    use crate::fixture::{cluster, node_id, replica_id, running, workload, workload_id};

    fn range() -> ContainerRange {
        ContainerRange::parse("10.42.0.0/16").unwrap()
    }

    /// A workload that is in these networks; internal ones have an exclamation mark.
    fn attached(cluster: &mut Cluster, name: &str, networks: &[&str]) {
        let mut workload = workload(1);
        for network in networks {
            let attachment = Attachment { internal: network.ends_with('!'), ..Attachment::default() };
            workload.spec.networks.insert(network.trim_end_matches('!').to_owned(), attachment);
        }
        cluster.workloads.insert(workload_id(name), workload);
    }

    fn of(name: &str) -> NetworkId {
        NetworkId { namespace: workload_id("x").namespace, name: name.to_owned() }
    }

    /// The plan of node 1, which holds what is said to run there.
    fn of_node_1(cluster: &Cluster) -> Isolation {
        let here = cluster.replicas.iter().filter(|((_, node), _)| *node == node_id(1));
        let held = here.filter_map(|((replica, _), status)| Some((status.ip?, replica.workload.clone())));
        plan(cluster, &node_id(1), range(), &held.collect())
    }

    #[test]
    fn a_node_knows_the_networks_of_its_own_containers_with_all_who_are_in_them() {
        let (mut cluster, _) = cluster(2);
        attached(&mut cluster, "web", &["front", "back!"]);
        attached(&mut cluster, "db", &["back!"]);
        attached(&mut cluster, "other", &["elsewhere"]);
        let web = running(&mut cluster, "web", 0, 1);
        let db = running(&mut cluster, "db", 1, 2);
        running(&mut cluster, "other", 2, 2);
        let plan = of_node_1(&cluster);
        let expected = [(of("front"), [web].into()), (of("back"), [web, db].into())];
        assert_eq!(plan.members, expected.into());
        assert_eq!(plan.endpoints.keys().copied().collect::<Vec<_>>(), [web]);
        let own = [[10, 42, 1, 0], [10, 42, 1, 1], [10, 42, 2, 0]].map(Ipv4Addr::from);
        assert_eq!(plan.nodes, own.into());
    }

    #[test]
    fn what_is_only_in_internal_networks_reaches_nothing_outside() {
        let (mut cluster, _) = cluster(1);
        for (name, networks, outside) in [
            ("a", &[][..], true),
            ("b", &["x!"], false),
            ("c", &["x!", "y"], true),
            ("d", &["x!", "y!"], false),
        ] {
            attached(&mut cluster, name, networks);
            assert_eq!(endpoint(&cluster, &workload_id(name)).outside, outside, "{name}");
        }
        assert_eq!(endpoint(&cluster, &workload_id("removed")), Endpoint::default());
    }

    #[test]
    fn workloads_that_name_no_network_are_in_one_and_namespaces_share_none() {
        let (mut cluster, _) = cluster(2);
        attached(&mut cluster, "web", &[]);
        attached(&mut cluster, "db", &["default"]);
        let (web, db) = (running(&mut cluster, "web", 0, 1), running(&mut cluster, "db", 1, 2));
        let stranger = WorkloadId { namespace: "other".to_owned(), name: "web".to_owned() };
        let status = cluster.replicas[&(replica_id("db", 1), node_id(2))].clone();
        cluster.workloads.insert(stranger.clone(), workload(1));
        let replica = crate::record::ReplicaId { workload: stranger, slot: 0 };
        let ip = Some(Ipv4Addr::new(10, 42, 2, 77));
        cluster.replicas.insert((replica, node_id(2)), crate::record::ReplicaStatus { ip, ..status });
        assert_eq!(of_node_1(&cluster).members, [(of("default"), [web, db].into())].into());
    }

    #[test]
    fn a_node_cannot_bring_another_nodes_address_into_a_network() {
        let (mut cluster, _) = cluster(3);
        attached(&mut cluster, "web", &[]);
        let web = running(&mut cluster, "web", 0, 1);
        running(&mut cluster, "web", 1, 2);
        for claimed in [[10, 42, 3, 5], [10, 42, 2, 0], [10, 42, 2, 1], [10, 42, 2, 255], [192, 0, 2, 1]] {
            let status = cluster.replicas.get_mut(&(replica_id("web", 1), node_id(2))).unwrap();
            status.ip = Some(claimed.into());
            assert_eq!(of_node_1(&cluster).members, [(of("default"), [web].into())].into(), "{claimed:?}");
        }
    }

    proptest! {
        #[test]
        fn two_nodes_agree_about_whether_their_containers_reach_each_other(
            first in proptest::collection::btree_set("[a-d]", 0..4),
            second in proptest::collection::btree_set("[a-d]", 0..4),
        ) {
            let (mut cluster, _) = cluster(2);
            let names = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>();
            let (one, other) = (names(&first), names(&second));
            attached(&mut cluster, "one", &one.iter().map(String::as_str).collect::<Vec<_>>());
            attached(&mut cluster, "other", &other.iter().map(String::as_str).collect::<Vec<_>>());
            let (one, other) = (running(&mut cluster, "one", 0, 1), running(&mut cluster, "other", 1, 2));
            let reach = |n: u8, own: Ipv4Addr, name: &str| {
                let held = [(own, workload_id(name))].into();
                let plan = plan(&cluster, &node_id(n), range(), &held);
                plan.members.values().any(|members| members.contains(&one) && members.contains(&other))
            };
            let shared = if first.is_empty() || second.is_empty() {
                first.is_empty() && second.is_empty()
            } else {
                !first.is_disjoint(&second)
            };
            prop_assert_eq!(reach(1, one, "one"), shared);
            prop_assert_eq!(reach(2, other, "other"), shared);
        }
    }
}
