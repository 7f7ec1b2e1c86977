//! Secrets as operators see them: who can open which, and to whom the next one is to be sealed. Never what is in them.

use std::collections::BTreeSet;

use hivemind_spec::api;
use hivemind_spec::document::SpecKey;
use hivemind_spec::id::NodeId;

use super::View;
use crate::cluster::Secret;

impl View<'_> {
    /// `GET /v1/secrets`, by namespace and name; of one namespace if given.
    pub fn secrets(&self, namespace: Option<&str>) -> Vec<api::Secret> {
        let chosen =
            self.cluster.secrets.iter().filter(|(name, _)| namespace.is_none_or(|n| n == name.namespace));
        chosen.map(|(name, secret)| self.secret(name, secret)).collect()
    }

    fn secret(&self, name: &SpecKey, secret: &Secret) -> api::Secret {
        let shared = self.cluster.shared_keys.iter();
        let shared = shared.filter(|((of, ..), key)| of == name && key.digest == secret.digest);
        let able: BTreeSet<NodeId> =
            secret.spec.keys.keys().copied().chain(shared.map(|((_, node, _), _)| *node)).collect();
        let able = able.into_iter().filter_map(|id| Some((id, self.cluster.nodes.get(&id)?)));
        api::Secret {
            namespace: name.namespace.clone(),
            name: name.name.clone(),
            revision: secret.revision,
            digest: secret.digest,
            registry: secret.registry.clone(),
            workloads: self.cluster.secret_users(name).map(|user| user.name.clone()).collect(),
            nodes: able
                .map(|(node, status)| api::SecretHolder {
                    node,
                    hostname: self.cluster.hostname(&node),
                    revoked: status.is_revoked(),
                })
                .collect(),
        }
    }

    /// `GET /v1/recipients`: the nodes that a secret is to be sealed to.
    pub fn recipients(&self) -> Vec<api::Recipient> {
        let nodes = self.cluster.nodes.iter().filter(|(_, node)| !node.is_revoked());
        nodes
            .map(|(id, node)| api::Recipient {
                node: *id,
                hostname: self.cluster.hostname(id),
                chain: node.enrolment.chain.iter().map(|certificate| api::base64(certificate)).collect(),
            })
            .collect()
    }

    /// What a node that was cut off could still read.
    pub(super) fn exposed_secrets(&self) -> Vec<String> {
        let told = |secret: &api::Secret| {
            let revoked: Vec<&str> =
                secret.nodes.iter().filter(|node| node.revoked).map(|node| node.hostname.as_str()).collect();
            let (namespace, name) = (&secret.namespace, &secret.name);
            (!revoked.is_empty()).then(|| {
                format!(
                    "secret {namespace}/{name} was sealed to {}, which was cut off since: change it where it is used, and \
                     `hivemind secrets set {name}`",
                    revoked.join(" and ")
                )
            })
        };
        self.secrets(None).iter().filter_map(told).collect()
    }
}
