//! The networks a workload is in. There is no document of a network: it is there when a workload is in it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::WorkloadSpec;
use super::container::is_domain;
use crate::document::{DocumentError, is_dns_label};

/// The network of a workload that names none.
pub const DEFAULT_NETWORK: &str = "default";

/// Networks of a workload, at most: each is a set of addresses in the kernel of every machine that runs it.
const MAX_NETWORKS: usize = 32;

/// More names in one network than any file gives.
const MAX_ALIASES: usize = 64;

/// How a workload is in a network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Attachment {
    /// More names of the workload, for those that are in this network too.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub aliases: BTreeSet<String>,
    /// Whether this network leads to nothing but its workloads. A workload of which all are so reaches nothing
    /// outside the cluster and is not reached from there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub internal: bool,
}

impl WorkloadSpec {
    /// The networks it is in, by name; none if its container has no network at all.
    pub fn networks(&self) -> BTreeSet<&str> {
        if self.container.offline {
            return BTreeSet::new();
        }
        if self.networks.is_empty() {
            return [DEFAULT_NETWORK].into();
        }
        self.networks.keys().map(String::as_str).collect()
    }

    /// Whether its containers reach what is outside the cluster.
    pub fn reaches_outside(&self) -> bool {
        let leads_out = || self.networks.values().any(|attachment| !attachment.internal);
        !self.container.offline && (self.networks.is_empty() || leads_out())
    }
}

/// Checks a workload's networks.
pub(super) fn validate(spec: &WorkloadSpec) -> Result<(), DocumentError> {
    let networks: &BTreeMap<String, Attachment> = &spec.networks;
    let fail = |message: String| Err(DocumentError::new("/spec/networks", message));
    if networks.len() > MAX_NETWORKS {
        return fail(format!("has more than {MAX_NETWORKS} networks"));
    }
    if let Some(odd) = networks.keys().find(|name| !is_dns_label(name)) {
        return fail(format!("{odd:?} cannot name a network"));
    }
    if networks.values().any(|attachment| attachment.aliases.len() > MAX_ALIASES) {
        return fail(format!("has more than {MAX_ALIASES} names in a network"));
    }
    let mut aliases = networks.values().flat_map(|attachment| &attachment.aliases);
    if let Some(odd) = aliases.find(|alias| !is_domain(alias)) {
        return fail(format!("{odd:?} is not a name"));
    }
    if spec.container.offline && !networks.is_empty() {
        return fail("a container without a network cannot be in one".into());
    }
    if spec.container.has_host_network() && !networks.is_empty() {
        return fail("a container on the machine's network cannot be in another".into());
    }
    let publishes = spec.container.ports.iter().any(|port| port.published.is_some());
    if publishes && !spec.container.offline && !spec.reaches_outside() {
        let text = "all are internal, so that nothing from outside reaches the ports it publishes; publish none, \
                    or name a network that is not internal";
        return fail(text.into());
    }
    Ok(())
}
