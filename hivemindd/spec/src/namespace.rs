//! The namespace document: what containers of a namespace may be given of their machines.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A namespace's content. A namespace without a document is one whose containers are given nothing of their machines.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NamespaceSpec {
    /// What its containers may be given.
    #[serde(default)]
    pub allow: BTreeSet<Permission>,
}

impl NamespaceSpec {
    /// Whether its containers may be given something.
    pub fn allows(&self, permission: Permission) -> bool {
        self.allow.contains(&permission) || self.allow.contains(&Permission::Privileged)
    }
}

/// What a container can be given of its machine, by leave of its namespace only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Permission {
    /// Capabilities that reach the machine, and system calls of the document's own choice.
    Capabilities,
    /// Devices of the machine.
    Devices,
    /// The machine's own network in place of one of its own.
    HostNetwork,
    /// The machine's own processes, names and memory segments in place of, or beside, its own.
    HostNamespaces,
    /// What the machine shows of itself in its files, to read.
    HostPaths,
    /// Folders of NFS servers, which are asked by the machine.
    Nfs,
    /// Everything: it is as good as root on the machine.
    Privileged,
}

impl Permission {
    /// All there are.
    pub const ALL: [Self; 7] = [
        Self::Capabilities,
        Self::Devices,
        Self::HostNetwork,
        Self::HostNamespaces,
        Self::HostPaths,
        Self::Nfs,
        Self::Privileged,
    ];

    /// The one with a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|permission| permission.name() == name)
    }

    /// Its name, as in documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::Capabilities => "capabilities",
            Self::Devices => "devices",
            Self::HostNetwork => "host-network",
            Self::HostNamespaces => "host-namespaces",
            Self::HostPaths => "host-paths",
            Self::Nfs => "nfs",
            Self::Privileged => "privileged",
        }
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_called_in_documents_as_on_the_command_line() {
        for permission in Permission::ALL {
            assert_eq!(serde_json::to_value(permission).unwrap(), permission.name());
            assert_eq!(Permission::named(permission.name()), Some(permission));
        }
    }

    #[test]
    fn who_may_be_privileged_may_be_given_everything() {
        let namespace = NamespaceSpec { allow: [Permission::Privileged].into() };
        assert!(Permission::ALL.into_iter().all(|permission| namespace.allows(permission)));
        let namespace = NamespaceSpec { allow: [Permission::Devices].into() };
        let allowed: Vec<_> = Permission::ALL.into_iter().filter(|p| namespace.allows(*p)).collect();
        assert_eq!(allowed, [Permission::Devices]);
    }
}
