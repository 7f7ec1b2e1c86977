//! This node and secrets: what its replicas are given, and the keys it makes for other nodes.

use std::collections::BTreeMap;

use super::Node;
use hivemind_spec::api::Severity;
use hivemind_spec::document::SpecKey;

use crate::cluster::Workload;
use crate::event::{Actions, SealedSecret};
use crate::record::{Observation, ReplicaId, Topic};
use crate::secret;
use crate::time::Time;

impl Node {
    /// The secrets of replicas that have any, or why they cannot have them here.
    pub(super) fn secrets_of(
        &self,
        wanted: &BTreeMap<ReplicaId, &Workload>,
    ) -> BTreeMap<ReplicaId, Result<BTreeMap<String, SealedSecret>, String>> {
        let with_any = wanted.iter().filter(|(_, workload)| !workload.spec.container.secrets.is_empty());
        let of = |(replica, workload): (&ReplicaId, &&Workload)| {
            let (namespace, container) = (&replica.workload.namespace, &workload.spec.container);
            (replica.clone(), secret::of_container(&self.cluster, &self.settings.me, namespace, container))
        };
        with_any.map(of).collect()
    }

    /// What opens the registries of replicas' images, where something is needed.
    pub(super) fn credentials_of(
        &self,
        wanted: &BTreeMap<ReplicaId, &Workload>,
    ) -> BTreeMap<ReplicaId, Result<SealedSecret, String>> {
        if self.cluster.secrets.is_empty() {
            return BTreeMap::new();
        }
        let of = |(replica, workload): (&ReplicaId, &&Workload)| {
            let (namespace, container) = (&replica.workload.namespace, &workload.spec.container);
            let opened = secret::of_registry(&self.cluster, &self.settings.me, namespace, container);
            Some((replica.clone(), opened.transpose()?))
        };
        wanted.iter().filter_map(of).collect()
    }

    /// Makes keys to secrets for the nodes that need them, and takes back those that nobody needs any more.
    pub(super) fn share_secrets(&mut self, now: Time, out: &mut Actions) {
        let me = self.settings.me;
        // As a rule there are none, and then nothing is looked through.
        let none = self.cluster.secrets.is_empty() && self.cluster.shared_keys.is_empty();
        if none || self.is_revoked(&me) {
            return;
        }
        let before = self.own_shared_keys();
        let owed = secret::owed(&self.cluster, &self.liveness, me);
        for (name, node) in before.keys().filter(|share| !owed.contains(share)) {
            self.say(now, Topic::Shared(name.clone(), *node), None);
        }
        let secrets = &self.cluster.secrets;
        let digest = |name: &SpecKey| secrets.get(name).map(|secret| secret.digest);
        self.unopened.retain(|name, version| digest(name) == Some(*version));
        for share in owed {
            let version = self.cluster.secrets.get(&share.0).map(|secret| secret.digest);
            let is_made = before.get(&share).is_some_and(|held| Some(held.digest) == version);
            let (name, node) = share;
            let (Some(version), Some(public)) = (version, self.keyring.writer(&node)) else { continue };
            if is_made || self.unopened.contains_key(&name) {
                continue;
            }
            let own = (me, &self.settings.record_key);
            match secret::share(&self.cluster, &name, own, (node, &public)) {
                Some(key) => self.say(now, Topic::Shared(name, node), Some(Observation::Shared(key))),
                None => {
                    let text = format!("this node's key to {name} does not open it; set the secret again");
                    self.note(now, Severity::Warning, "secret-unopened", text, out);
                    self.unopened.insert(name, version);
                }
            }
        }
    }
}
