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
use crate::mutation::{Mutation, is_on};
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
    /// The range of all containers' addresses: network and prefix length. What is not in it is outside. None: nothing
    /// was worked out yet.
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

/// Whether a workload is in a network.
fn is_in(cluster: &Cluster, id: &WorkloadId, network: &NetworkId) -> bool {
    let workload = cluster.workloads.get(id).filter(|_| id.namespace == network.namespace);
    workload.is_some_and(|workload| workload.spec.networks().contains(network.name.as_str()))
}

/// Whose view it is: the node, and the range of all containers' addresses.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The cluster.
    pub cluster: &'a Cluster,
    /// The node.
    pub me: NodeId,
    /// The range.
    pub range: ContainerRange,
}

/// Whom a node's containers reach, kept up to date by what changed: the work is that of the change and not that of the
/// cluster.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    plan: Isolation,
    /// The node's containers: their addresses and workloads.
    held: BTreeMap<Ipv4Addr, WorkloadId>,
    /// The subnets of the other nodes.
    subnets: BTreeMap<NodeId, Ipv4Addr>,
    /// Addresses that other nodes' replicas have, as they say, of workloads that matter here; both ways round, because
    /// two may claim one for a moment.
    claims: BTreeMap<Ipv4Addr, BTreeSet<WorkloadId>>,
    claimed: BTreeMap<WorkloadId, BTreeSet<Ipv4Addr>>,
}

impl Reach {
    /// What the node is to do.
    pub fn plan(&self) -> &Isolation {
        &self.plan
    }

    /// Makes it anew. Returns whether the plan differs.
    pub fn renew(&mut self, view: View<'_>, held: BTreeMap<Ipv4Addr, WorkloadId>) -> bool {
        let before = std::mem::take(self).plan;
        self.subnets = overlay::recorded_subnets(view.cluster, view.range).collect();
        self.plan.range = Some(view.range.cidr());
        self.plan.nodes = self.subnets.values().copied().collect();
        self.plan.nodes.extend(self.subnets.remove(&view.me).map(overlay::gateway));
        self.hold(view.cluster, held);
        for id in view.cluster.workloads.keys() {
            self.claim(view.cluster, id);
        }
        self.plan != before
    }

    /// Brings it up to date when only replicas of the `changed` workloads did something, and which containers the node
    /// has may be different. Returns whether the plan differs.
    pub fn follow(
        &mut self,
        view: View<'_>,
        held: BTreeMap<Ipv4Addr, WorkloadId>,
        changed: &BTreeSet<WorkloadId>,
    ) -> bool {
        let mut differs = false;
        if self.held != held {
            let networks: BTreeSet<NetworkId> =
                held.values().flat_map(|id| networks(view.cluster, id)).collect();
            // An address of ours that is claimed elsewhere too, while this node gets another subnet.
            let claimed = self.held.keys().any(|address| self.claims.contains_key(address));
            if claimed || !networks.iter().eq(self.plan.members.keys()) {
                return self.renew(view, held);
            }
            self.hold(view.cluster, held);
            differs = true;
        }
        for id in changed.iter().filter(|_| !is_on(Mutation::ReachIsNotFollowed)) {
            differs |= self.claim(view.cluster, id);
        }
        differs
    }

    /// Takes over which containers the node has.
    fn hold(&mut self, cluster: &Cluster, held: BTreeMap<Ipv4Addr, WorkloadId>) {
        for members in self.plan.members.values_mut() {
            members.retain(|address| !self.held.contains_key(address));
        }
        self.plan.endpoints.clear();
        for (address, id) in &held {
            let endpoint = endpoint(cluster, id);
            for network in &endpoint.networks {
                self.plan.members.entry(network.clone()).or_default().insert(*address);
            }
            self.plan.endpoints.insert(*address, endpoint);
        }
        self.held = held;
    }

    /// Takes over what other nodes say of the addresses of a workload's replicas. Returns whether the plan differs.
    fn claim(&mut self, cluster: &Cluster, id: &WorkloadId) -> bool {
        let matters = self.plan.members.keys().any(|network| is_in(cluster, id, network));
        let replicas = matters.then(|| cluster.replicas_of(id)).into_iter().flatten();
        let addresses = replicas.filter_map(|((_, node), status)| self.believed(node, status.ip?));
        let after: BTreeSet<Ipv4Addr> = addresses.collect();
        let before = self.claimed.remove(id).unwrap_or_default();
        for address in before.difference(&after) {
            if let Some(claims) = self.claims.get_mut(address) {
                claims.remove(id);
            }
        }
        for address in after.difference(&before) {
            self.claims.entry(*address).or_default().insert(id.clone());
        }
        let mut differs = false;
        for address in before.symmetric_difference(&after) {
            let claims = self.claims.get(address);
            for (network, members) in &mut self.plan.members {
                let belongs = claims.is_some_and(|all| all.iter().any(|id| is_in(cluster, id, network)));
                differs |= if belongs { members.insert(*address) } else { members.remove(address) };
            }
            if claims.is_some_and(BTreeSet::is_empty) {
                self.claims.remove(address);
            }
        }
        if !after.is_empty() {
            self.claimed.insert(id.clone(), after);
        }
        differs
    }

    /// An address that another node says its replica has. It speaks for its own addresses only, and not at all for this
    /// node's, of which more is known here.
    fn believed(&self, node: &NodeId, address: Ipv4Addr) -> Option<Ipv4Addr> {
        let subnet = self.subnets.get(node)?;
        let own = overlay::container_addresses(*subnet, ContainerRange::SUBNET_PREFIX);
        own.contains(&address.to_bits()).then_some(address)
    }
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

    fn view(cluster: &Cluster, n: u8) -> View<'_> {
        View { cluster, me: node_id(n), range: range() }
    }

    /// What node 1 is said to run.
    fn held_by_1(cluster: &Cluster) -> BTreeMap<Ipv4Addr, WorkloadId> {
        let here = cluster.replicas.iter().filter(|((_, node), _)| *node == node_id(1));
        here.filter_map(|((replica, _), status)| Some((status.ip?, replica.workload.clone()))).collect()
    }

    fn plan(cluster: &Cluster, n: u8, held: BTreeMap<Ipv4Addr, WorkloadId>) -> Isolation {
        let mut reach = Reach::default();
        reach.renew(view(cluster, n), held);
        reach.plan
    }

    fn of_node_1(cluster: &Cluster) -> Isolation {
        plan(cluster, 1, held_by_1(cluster))
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
                let plan = plan(&cluster, n, [(own, workload_id(name))].into());
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

        #[test]
        fn a_plan_that_follows_the_cluster_is_the_one_made_from_it(
            changes in proptest::collection::vec((0u32..5, 0u32..3, 1u8..4, 0u8..6, any::<bool>()), 1..40)
        ) {
            let (mut cluster, _) = cluster(3);
            let names = ["a", "b", "c", "d", "e"];
            for (name, networks) in names.into_iter().zip([&["x"][..], &["x", "y"], &["y"], &[], &["z"]]) {
                attached(&mut cluster, name, networks);
            }
            let mut reach = Reach::default();
            reach.renew(view(&cluster, 1), held_by_1(&cluster));
            for (which, slot, n, host, has_one) in changes {
                let name = names[which as usize];
                running(&mut cluster, name, slot, n);
                let status = cluster.replicas.get_mut(&(replica_id(name, slot), node_id(n))).unwrap();
                // Few addresses, so that some are claimed twice, and some that are nobody's.
                status.ip = has_one.then(|| Ipv4Addr::new(10, 42, n, host));
                let (held, before) = (held_by_1(&cluster), reach.plan.clone());
                let differs = reach.follow(view(&cluster, 1), held.clone(), &[workload_id(name)].into());
                prop_assert_eq!(&reach.plan, &plan(&cluster, 1, held));
                prop_assert!(differs || reach.plan == before);
            }
        }
    }
}
