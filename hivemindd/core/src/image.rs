//! From whom a node has an image. One node fetches it from its registry; the others have it from each other.
//!
//! Nothing is agreed on. The nodes that run an image stand in an order that follows from its name alone (rendezvous
//! hashing), so all see the same one first, another for every image. A node waits for those before it for as long as
//! they get further, and asks the registry when none of them has it or fetches it.
//!
//! Only nodes that run it in the same namespace count: an image that wants a password is not to be had in another
//! namespace without it. Those that an operator gave it count for all: no registry need have it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use hivemind_spec::id::{Digest, NodeId};

use crate::cluster::{Cluster, Liveness};
use crate::event::{ImagePeers, Peer};
use crate::record::GivenImage;

/// Nodes that are waited for, at most. If that many live nodes cannot fetch it, one more makes no difference.
const MAX_BEFORE: usize = 8;

/// Nodes besides that are asked whether they have it, at most: enough that what one of many has spreads.
const MAX_OTHERS: usize = 8;

/// Where one node asks for images.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// What is known of the cluster.
    pub cluster: &'a Cluster,
    /// Who is heard of.
    pub liveness: &'a Liveness,
    /// The node that asks.
    pub me: NodeId,
    /// The port of nodes' QUIC.
    pub peer_port: u16,
}

impl Asker<'_> {
    /// Whom to ask for an image that a workload of this namespace has.
    pub fn peers(self, namespace: &str, image: &str) -> ImagePeers {
        let rank = |asker: &str, node: &NodeId| Digest::of(format!("{image}\n{asker}\n{node}").as_bytes());
        let runs = self.nodes_with(namespace, image);
        let my_rank = rank("", &self.me);
        let (mut before, mut others): (Vec<_>, Vec<_>) =
            runs.into_iter().partition(|peer| rank("", &peer.node) < my_rank);
        before.sort_by_cached_key(|peer| rank("", &peer.node));
        others.extend(before.drain(before.len().min(MAX_BEFORE)..));
        // Each in an order of its own, so that not all ask the same.
        let me = self.me.to_string();
        others.sort_by_cached_key(|peer| rank(&me, &peer.node));
        others.truncate(MAX_OTHERS);
        ImagePeers { before, others }
    }

    /// The live nodes that have replicas with an image, are to have any, or were given it.
    fn nodes_with(self, namespace: &str, image: &str) -> Vec<Peer> {
        let cluster = self.cluster;
        let workloads = cluster
            .workloads
            .iter()
            .filter(|(id, workload)| id.namespace == namespace && workload.spec.container.image == image);
        let nodes: BTreeSet<&NodeId> = workloads
            .flat_map(|(id, workload)| {
                let placed = cluster.placements.get(id).into_iter().flat_map(|placed| placed.slots.values());
                let said = cluster.replicas_of(id).filter(|(_, said)| said.template == workload.template);
                placed.chain(said.map(|((_, node), _)| node))
            })
            .collect();
        let given = cluster.images.iter().filter(|(_, images)| has(images, image)).map(|(node, _)| node);
        let reached = |id: &NodeId| cluster.is_live(self.liveness, id) && !self.liveness.silent.contains(id);
        let peer = |node: &NodeId| {
            let address = (cluster.address(node)?, self.peer_port);
            Some(Peer { node: *node, address: SocketAddr::from(address) })
        };
        nodes
            .into_iter()
            .chain(given)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .filter(|id| **id != self.me && reached(id))
            .filter_map(peer)
            .collect()
    }
}

/// Whether an image, by whatever name, is one of those that a node was given.
fn has(given: &BTreeMap<String, GivenImage>, image: &str) -> bool {
    let digest = image.rsplit_once("@sha256:").and_then(|(_, digest)| digest.parse::<Digest>().ok());
    digest.is_some_and(|digest| given.values().any(|image| image.digest == digest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fixture::{cluster, node_id, place, running, workload, workload_id};
    use crate::record::WorkloadId;

    const IMAGE: &str = "registry.test/app:1";

    /// A workload on nodes 1 to `nodes`.
    fn spread(nodes: u8) -> (Cluster, Liveness) {
        let (mut cluster, liveness) = cluster(nodes);
        cluster.workloads.insert(workload_id("web"), workload(nodes.into()));
        for n in 1..=nodes {
            place(&mut cluster, "web", u32::from(n), n);
        }
        (cluster, liveness)
    }

    fn peers(cluster: &Cluster, liveness: &Liveness, n: u8) -> ImagePeers {
        Asker { cluster, liveness, me: node_id(n), peer_port: 7946 }.peers("default", IMAGE)
    }

    proptest! {
        #[test]
        fn one_node_fetches_an_image_and_all_others_wait_for_it(nodes in 1u8..60) {
            let (cluster, liveness) = spread(nodes);
            let all: Vec<_> = (1..=nodes).map(|n| (node_id(n), peers(&cluster, &liveness, n))).collect();
            let first: Vec<_> = all.iter().filter(|(_, peers)| peers.before.is_empty()).collect();
            prop_assert_eq!(first.len(), 1);
            for (node, peers) in &all {
                // Nobody waits for a node that waits for it, so no two wait for each other.
                for before in &peers.before {
                    let theirs = &all.iter().find(|(id, _)| *id == before.node).unwrap().1;
                    prop_assert!(theirs.before.iter().all(|peer| peer.node != *node));
                }
                if node != &first[0].0 {
                    prop_assert_eq!(peers.before[0].node, first[0].0);
                }
                let asked = peers.before.iter().chain(&peers.others);
                let different: BTreeSet<_> = asked.clone().map(|peer| peer.node).collect();
                prop_assert_eq!(different.len(), asked.count());
                prop_assert!(!different.contains(node));
                prop_assert!(peers.before.len() <= MAX_BEFORE && peers.others.len() <= MAX_OTHERS);
            }
        }
    }

    #[test]
    fn images_are_fetched_by_different_nodes() {
        let (mut cluster, liveness) = spread(5);
        let first: BTreeSet<_> = (0..40)
            .map(|number| {
                let image = format!("registry.test/app:{number}");
                if let Some(web) = cluster.workloads.get_mut(&workload_id("web")) {
                    web.spec.container.image.clone_from(&image);
                }
                let asker =
                    |n| Asker { cluster: &cluster, liveness: &liveness, me: node_id(n), peer_port: 1 };
                (1..=5).find(|n| asker(*n).peers("default", &image).before.is_empty()).unwrap()
            })
            .collect();
        assert_eq!(first.len(), 5);
    }

    #[test]
    fn nobody_waits_for_a_node_that_is_gone_cut_off_or_not_connected() {
        let (mut cluster, mut liveness) = spread(4);
        liveness.alive.remove(&node_id(1));
        liveness.silent.insert(node_id(2));
        if let Some(node) = cluster.nodes.get_mut(&node_id(3)) {
            let revoked =
                hivemind_spec::document::NodeIntentSpec { revoked: true, ..crate::fixture::intent(3) };
            node.intent = Some(revoked);
        }
        assert_eq!(peers(&cluster, &liveness, 4), ImagePeers::default());
    }

    #[test]
    fn a_node_that_has_the_image_is_asked_though_no_replica_is_to_be_there_any_more() {
        let (mut cluster, liveness) = cluster(2);
        cluster.workloads.insert(workload_id("web"), workload(1));
        running(&mut cluster, "web", 0, 1);
        place(&mut cluster, "web", 0, 2);
        let asked = peers(&cluster, &liveness, 2);
        let nodes: Vec<_> = asked.before.iter().chain(&asked.others).map(|peer| peer.node).collect();
        assert_eq!(nodes, [node_id(1)]);
        assert_eq!(
            asked.before.iter().chain(&asked.others).next().unwrap().address.to_string(),
            "192.0.2.1:7946"
        );
    }

    #[test]
    fn another_namespace_gives_nothing_of_its_images() {
        let (mut cluster, liveness) = cluster(2);
        let other = WorkloadId { namespace: "other".into(), name: "web".into() };
        cluster.workloads.insert(other.clone(), workload(1));
        place(&mut cluster, "web", 0, 1);
        let placed = cluster.placements.remove(&workload_id("web")).unwrap();
        cluster.placements.insert(other, placed);
        assert_eq!(peers(&cluster, &liveness, 2), ImagePeers::default());
        let asker = Asker { cluster: &cluster, liveness: &liveness, me: node_id(2), peer_port: 1 };
        assert_ne!(asker.peers("other", IMAGE), ImagePeers::default());
    }

    #[test]
    fn what_a_node_was_given_all_have_from_it_whatever_they_call_it() {
        let (mut cluster, liveness) = cluster(3);
        let digest = Digest::of(b"manifest");
        let image = GivenImage { digest, given_ms: 5 };
        cluster.images.insert(node_id(3), [("shop:1".to_owned(), image)].into());
        let asker = Asker { cluster: &cluster, liveness: &liveness, me: node_id(1), peer_port: 1 };
        let asked = |image: &str| -> Vec<NodeId> {
            let ImagePeers { before, others } = asker.peers("default", image);
            before.into_iter().chain(others).map(|peer| peer.node).collect()
        };
        assert_eq!(asked(&image.reference("shop:1")), [node_id(3)]);
        assert_eq!(asked(&image.reference("docker.io/library/shop:1")), [node_id(3)]);
        assert_eq!(asked(&format!("shop:1@sha256:{}", Digest::of(b"another"))), []);
        assert_eq!(asked("shop:1"), [], "a tag may name another one");
    }
}
