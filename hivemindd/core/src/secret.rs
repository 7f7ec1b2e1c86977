//! Secrets: which node can open which, and who makes keys for those that cannot.
//!
//! ```text
//! document, sealed to the nodes there were ──▶ a replica that uses it is placed
//!     on a node that can open it:  it starts
//!     on another:                  the first live node that can open it makes a key for it, and says so
//! ```
//!
//! Nobody is given a key to what no replica placed there uses. Here only keys that are sealed are handled; content is
//! opened at the edge, when a container is made.

use std::collections::BTreeMap;
use std::sync::Arc;

use hivemind_spec::document::SpecKey;
use hivemind_spec::id::NodeId;
use hivemind_spec::key::SigningKey;
use hivemind_spec::secret::{SealedKey, secret_key};
use hivemind_spec::workload::ContainerSpec;

use crate::cluster::{Cluster, Liveness, Secret};
use crate::event::SealedSecret;
use crate::mutation::{Mutation, is_on};
use crate::record::SharedKey;

/// Keys that a node tries: its own of the document, and those that others made for it. More than one only when two
/// sides of a partition made one each, or somebody makes keys that do not fit.
const MAX_TRIED: usize = 4;

/// The keys to a secret that a node has, its own first.
fn keys<'a>(
    cluster: &'a Cluster,
    name: &SpecKey,
    secret: &'a Secret,
    node: &'a NodeId,
) -> impl Iterator<Item = &'a SealedKey> {
    let first = (name.clone(), *node, NodeId([0; 16]));
    let last = (name.clone(), *node, NodeId([255; 16]));
    let shared = cluster.shared_keys.range(first..=last).map(|(_, shared)| shared);
    let shared = shared.filter(|shared| shared.digest == secret.digest).map(|shared| &shared.key);
    secret.spec.keys.get(node).into_iter().chain(shared)
}

/// Whether a node has a key to a secret.
pub fn can_open(cluster: &Cluster, name: &SpecKey, node: &NodeId) -> bool {
    cluster.secrets.get(name).is_some_and(|secret| keys(cluster, name, secret, node).next().is_some())
}

/// A secret on a node.
///
/// # Errors
/// In words, why the node cannot have it yet.
fn on_node(cluster: &Cluster, node: &NodeId, key: SpecKey) -> Result<SealedSecret, String> {
    let name = &key.name;
    let Some(secret) = cluster.secrets.get(&key) else {
        return Err(format!("there is no secret {name}; `hivemind secrets set {name}` makes it"));
    };
    let keys: Vec<SealedKey> = keys(cluster, &key, secret, node).take(MAX_TRIED).cloned().collect();
    if keys.is_empty() {
        return Err(format!(
            "waits for a machine that can open its secret {name} to share it with this one; if none is left, set it \
             again"
        ));
    }
    Ok(SealedSecret { name: key, digest: secret.digest, spec: Arc::clone(&secret.spec), keys })
}

/// The secrets of a container on a node, by their names.
///
/// # Errors
/// In words, which one it cannot have yet and why.
pub fn of_container(
    cluster: &Cluster,
    node: &NodeId,
    namespace: &str,
    container: &ContainerSpec,
) -> Result<BTreeMap<String, SealedSecret>, String> {
    let names = container.secrets.iter().map(|mount| &mount.secret);
    let secret = |name: &String| Ok((name.clone(), on_node(cluster, node, secret_key(namespace, name))?));
    names.map(secret).collect()
}

/// What opens the registry of a container's image: the first secret of its namespace that is for it.
fn opener<'a>(cluster: &'a Cluster, namespace: &str, container: &ContainerSpec) -> Option<&'a SpecKey> {
    let own = cluster.secrets.iter().filter(|(name, _)| name.namespace == namespace);
    let mut fitting = own.filter(|(_, secret)| secret.registry.as_deref() == Some(container.registry()));
    fitting.next().map(|(name, _)| name)
}

/// What a node opens the registry of a container's image with; `None` when it needs nothing.
///
/// # Errors
/// In words, why it cannot have it yet.
pub fn of_registry(
    cluster: &Cluster,
    node: &NodeId,
    namespace: &str,
    container: &ContainerSpec,
) -> Result<Option<SealedSecret>, String> {
    opener(cluster, namespace, container).map(|name| on_node(cluster, node, name.clone())).transpose()
}

/// The secrets that `me` has to make keys to, each with the node that needs it: one where a replica that uses it is
/// placed, and that has no key. The first live node that has one makes it, and keeps it up for as long as it is needed.
pub fn owed(cluster: &Cluster, liveness: &Liveness, me: NodeId) -> Vec<(SpecKey, NodeId)> {
    if is_on(Mutation::SecretsAreNotShared) {
        return Vec::new();
    }
    let mut owed = Vec::new();
    for (id, workload) in &cluster.workloads {
        let Some(placement) = cluster.placements.get(id) else { continue };
        let container = &workload.spec.container;
        let mounted = container.secrets.iter().map(|mount| secret_key(&id.namespace, &mount.secret));
        for name in mounted.chain(opener(cluster, &id.namespace, container).cloned()) {
            let Some(secret) = cluster.secrets.get(&name) else { continue };
            if keys(cluster, &name, secret, &me).next().is_none() {
                continue;
            }
            let lacks = |node: &&NodeId| {
                **node != me
                    && cluster.nodes.get(*node).is_some_and(|node| !node.is_revoked())
                    && !secret.spec.keys.contains_key(*node)
            };
            let nodes: Vec<NodeId> = placement.slots.values().filter(lacks).copied().collect();
            owed.extend(
                nodes
                    .into_iter()
                    .filter(|node| is_mine(cluster, liveness, me, &name, node))
                    .map(|node| (name.clone(), node)),
            );
        }
    }
    owed.sort();
    owed.dedup();
    owed
}

/// Whether it is `me` who makes a node's key to a secret: who made it already, or else the first of those that can.
fn is_mine(cluster: &Cluster, liveness: &Liveness, me: NodeId, name: &SpecKey, node: &NodeId) -> bool {
    let Some(secret) = cluster.secrets.get(name) else { return false };
    let current = |shared: &SharedKey| shared.digest == secret.digest;
    if cluster.shared_keys.get(&(name.clone(), *node, me)).is_some_and(current) {
        return true;
    }
    let able = |other: &&NodeId| {
        *other != node && cluster.is_live(liveness, other) && can_open(cluster, name, other)
    };
    keys(cluster, name, secret, node).next().is_none() && liveness.alive.iter().find(able) == Some(&me)
}

/// Makes a key for a node, with any of those that `me` has; `None` when none of them fits.
pub fn share(
    cluster: &Cluster,
    name: &SpecKey,
    (me, key): (NodeId, &SigningKey),
    to: (NodeId, &hivemind_spec::key::PublicKey),
) -> Option<SharedKey> {
    let secret = cluster.secrets.get(name)?;
    let mut own = keys(cluster, name, secret, &me).take(MAX_TRIED);
    let made = own.find_map(|with| secret.spec.share(name, me, key, with, to).ok())?;
    Some(SharedKey { digest: secret.digest, key: made })
}

#[cfg(test)]
mod tests {
    use hivemind_spec::document::NodeIntentSpec;
    use hivemind_spec::id::Digest;
    use hivemind_spec::secret::{Content, SecretSpec};
    use hivemind_spec::workload::SecretMount;

    use super::*;
    use crate::fixture::{cluster, intent, node_id, place, workload, workload_id};

    fn key(n: u8) -> SigningKey {
        SigningKey::from_seed([n; 32])
    }

    /// Nodes 1 to 3, of which those in `sealed_to` can open `password`, and a workload that uses it placed on `on`.
    fn situation(sealed_to: &[u8], on: &[u8]) -> (Cluster, Liveness) {
        let (mut cluster, liveness) = cluster(3);
        let name = secret_key("default", "password");
        let nodes = sealed_to.iter().map(|n| (node_id(*n), key(*n).public())).collect();
        let content = Content::new(b"hunter2".to_vec());
        let spec = SecretSpec::seal(&name, &content, &nodes, &key(99), [7; 32]).unwrap();
        cluster.secrets.insert(
            name,
            Secret { revision: 1, digest: Digest([5; 32]), registry: None, spec: Arc::new(spec) },
        );
        let mut app = workload(u32::try_from(on.len()).unwrap());
        app.spec.container.secrets = vec![SecretMount {
            secret: "password".to_owned(),
            path: "/run/secrets/password".to_owned(),
            uid: 0,
            gid: 0,
            mode: 0o444,
        }];
        cluster.workloads.insert(workload_id("app"), app);
        for (slot, node) in (0..).zip(on) {
            place(&mut cluster, "app", slot, *node);
        }
        (cluster, liveness)
    }

    fn of(cluster: &Cluster, node: u8) -> Result<BTreeMap<String, SealedSecret>, String> {
        let workload = &cluster.workloads[&workload_id("app")];
        of_container(cluster, &node_id(node), "default", &workload.spec.container)
    }

    fn name() -> SpecKey {
        secret_key("default", "password")
    }

    #[test]
    fn one_machine_shares_a_secret_with_those_that_need_it_and_no_other() {
        let (mut cluster, liveness) = situation(&[1, 2], &[2, 3]);
        assert!(of(&cluster, 2).is_ok());
        assert!(of(&cluster, 3).unwrap_err().contains("share"), "sealed to 1 and 2");
        assert_eq!(owed(&cluster, &liveness, node_id(1)), [(name(), node_id(3))]);
        assert_eq!(owed(&cluster, &liveness, node_id(2)), [], "one is enough");
        assert_eq!(owed(&cluster, &liveness, node_id(3)), [], "it cannot open it");

        let public = key(3).public();
        let shared = share(&cluster, &name(), (node_id(1), &key(1)), (node_id(3), &public)).unwrap();
        cluster.shared_keys.insert((name(), node_id(3), node_id(1)), shared);
        let sealed = of(&cluster, 3).unwrap().remove("password").unwrap();
        let opened = sealed.spec.open(&sealed.name, node_id(3), &key(3), &sealed.keys[0]).unwrap();
        assert_eq!(opened.bytes(), b"hunter2");
        assert_eq!(owed(&cluster, &liveness, node_id(1)), [(name(), node_id(3))], "kept up");
        assert_eq!(owed(&cluster, &liveness, node_id(2)), []);

        // No longer for a replica that went elsewhere, nor for a version that is past.
        let mut gone = cluster.clone();
        gone.placements.clear();
        assert_eq!(owed(&gone, &liveness, node_id(1)), []);
        cluster.secrets.get_mut(&name()).unwrap().digest = Digest([6; 32]);
        assert!(of(&cluster, 3).is_err());
    }

    #[test]
    fn who_was_revoked_is_given_nothing_and_the_next_stands_in_for_who_is_away() {
        let (mut cluster, mut liveness) = situation(&[1, 2], &[3]);
        liveness.alive.remove(&node_id(1));
        assert_eq!(owed(&cluster, &liveness, node_id(2)), [(name(), node_id(3))]);
        let revoked = NodeIntentSpec { revoked: true, ..intent(3) };
        cluster.nodes.get_mut(&node_id(3)).unwrap().intent = Some(revoked);
        assert_eq!(owed(&cluster, &liveness, node_id(2)), []);
    }

    #[test]
    fn what_opens_a_registry_is_given_to_those_that_pull_from_it() {
        let (mut cluster, liveness) = situation(&[1], &[2]);
        cluster.workloads.get_mut(&workload_id("app")).unwrap().spec.container.secrets.clear();
        assert_eq!(owed(&cluster, &liveness, node_id(1)), [], "nobody uses it");
        let of = |cluster: &Cluster, node: u8, namespace: &str| {
            let container = &cluster.workloads[&workload_id("app")].spec.container;
            of_registry(cluster, &node_id(node), namespace, container)
        };
        assert_eq!(of(&cluster, 1, "default"), Ok(None));
        cluster.secrets.get_mut(&name()).unwrap().registry = Some("registry.test".to_owned());
        assert!(of(&cluster, 1, "default").unwrap().is_some());
        assert_eq!(of(&cluster, 1, "other"), Ok(None), "each namespace has its own");
        assert!(of(&cluster, 2, "default").unwrap_err().contains("share"));
        assert_eq!(owed(&cluster, &liveness, node_id(1)), [(name(), node_id(2))]);
        assert_eq!(cluster.secret_users(&name()).collect::<Vec<_>>(), [&workload_id("app")]);
        cluster.secrets.get_mut(&name()).unwrap().registry = Some("registry.example".to_owned());
        assert_eq!(of(&cluster, 1, "default"), Ok(None), "it is for another");
    }

    #[test]
    fn what_a_container_waits_for_is_said_in_words() {
        let (mut cluster, _) = situation(&[1], &[1]);
        cluster.secrets.clear();
        let why = of(&cluster, 1).unwrap_err();
        assert!(why.contains("hivemind secrets set password"), "{why}");
    }
}
