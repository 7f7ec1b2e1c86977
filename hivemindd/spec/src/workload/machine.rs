//! What a container is given of the machine it runs on. Its namespace must allow it
//! ([`NamespaceSpec`](crate::namespace::NamespaceSpec)).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::container::ContainerSpec;
use super::host_path::{HostPath, Reach, is_plain};
use super::nfs::NfsMount;
use super::rights;
use super::seccomp::SystemCalls;
use super::tmpfs::may_cover;
use crate::document::DocumentError;
use crate::namespace::Permission;

/// Devices of a container, rules for them, and paths, at most: more has no use.
const MAX_DEVICES: usize = 64;

/// What a container is given of its machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MachineAccess {
    /// Everything: all capabilities and devices, and nothing of the kernel's is hidden.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub privileged: bool,
    /// Devices of the machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    /// Kinds of devices that it may use once it has made or found them: `TYPE MAJOR:MINOR ACCESS`, where the type is
    /// `a`, `b` or `c`, and `*` is any number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub device_rules: Vec<String>,
    /// What it shares with the machine in place of having its own.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub host_namespaces: BTreeSet<HostNamespace>,
    /// Its processes are not ended when memory is short, its own included: they wait for some.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub outlasts_memory: bool,
    /// Folders and files of the machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_paths: Vec<HostPath>,
    /// Folders of NFS servers, which the machine mounts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nfs: Vec<NfsMount>,
    /// The system calls that it may make; absent: all but those that reach the kernel's rarely used parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_calls: Option<SystemCalls>,
}

/// A device of the machine in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Device {
    /// The device, or a folder of devices, below `/dev` on the machine.
    pub path: String,
    /// Where in the container.
    pub target: String,
    /// What it may do there: letters of `rwm`, to read, write, and make the node anew.
    #[serde(default = "all_access")]
    pub access: String,
}

fn all_access() -> String {
    "rwm".to_owned()
}

/// Something of the machine that a container can share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum HostNamespace {
    /// Its view of control groups.
    Cgroup,
    /// Memory segments and message queues.
    Ipc,
    /// Interfaces, addresses and ports.
    Network,
    /// Processes.
    Pid,
    /// Host and domain name.
    Uts,
}

impl MachineAccess {
    /// Whether it is given nothing.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl ContainerSpec {
    /// Whether it is on the machine's network and has none of its own.
    pub fn has_host_network(&self) -> bool {
        self.machine.host_namespaces.contains(&HostNamespace::Network)
    }

    /// What its namespace must allow.
    pub fn permissions(&self) -> BTreeSet<Permission> {
        let access = &self.machine;
        let capabilities = self.capabilities.add.iter().any(|name| rights::reaches_machine(name));
        let reaches = |reach| access.host_paths.iter().any(|host| host.reach(&host.path) == reach);
        let namespaces = access.host_namespaces.iter().any(|n| *n != HostNamespace::Network);
        let everything = access.privileged || access.outlasts_memory || reaches(Reach::Everything);
        let asks = [
            (Permission::Capabilities, capabilities || access.system_calls.is_some()),
            (Permission::Devices, !access.devices.is_empty() || !access.device_rules.is_empty()),
            (Permission::HostNetwork, self.has_host_network()),
            (Permission::HostNamespaces, namespaces || reaches(Reach::Processes)),
            (Permission::HostPaths, reaches(Reach::Shown)),
            (Permission::Nfs, !access.nfs.is_empty()),
            (Permission::Privileged, everything),
        ];
        asks.into_iter().filter(|(_, asks)| *asks).map(|(permission, _)| permission).collect()
    }
}

/// Checks what a container is given.
pub(super) fn validate(spec: &ContainerSpec) -> Result<(), DocumentError> {
    let access = &spec.machine;
    let fail = |what: &str, message: String| {
        Err(DocumentError::new(format!("/spec/container/machine/{what}"), message))
    };
    if access.devices.len().max(access.device_rules.len()) > MAX_DEVICES {
        return fail("devices", format!("has more than {MAX_DEVICES} devices"));
    }
    for (index, device) in access.devices.iter().enumerate() {
        let what = format!("devices/{index}");
        if !device.path.starts_with("/dev/") || !is_plain(&device.path) {
            return fail(&what, format!("{:?} is not below /dev", device.path));
        }
        if !device.target.starts_with('/')
            || !is_plain(&device.target)
            || !device.target.starts_with("/dev/") && may_cover(&device.target).is_err()
        {
            return fail(&what, format!("{:?} is no place for a device", device.target));
        }
        if !is_access(&device.access) {
            return fail(&what, format!("{:?}: use letters of `rwm`", device.access));
        }
    }
    if access.host_paths.len() > MAX_DEVICES {
        return fail("hostPaths", format!("has more than {MAX_DEVICES} paths"));
    }
    for (index, host) in access.host_paths.iter().enumerate() {
        host.validate().or_else(|text| fail(&format!("hostPaths/{index}"), text))?;
        if access.host_paths[..index].iter().any(|other| other.target == host.target) {
            return fail(&format!("hostPaths/{index}"), format!("{} is there twice", host.target));
        }
    }
    if access.nfs.len() > MAX_DEVICES {
        return fail("nfs", format!("has more than {MAX_DEVICES} folders"));
    }
    for (index, nfs) in access.nfs.iter().enumerate() {
        nfs.validate().or_else(|text| fail(&format!("nfs/{index}"), text))?;
        let is_taken = access.nfs[..index].iter().any(|other| other.target == nfs.target)
            || spec.volumes.iter().any(|mount| mount.path == nfs.target);
        if is_taken {
            return fail(&format!("nfs/{index}"), format!("{} is there twice", nfs.target));
        }
    }
    if let Some(odd) = access.device_rules.iter().find(|rule| DeviceRule::parse(rule).is_none()) {
        let text = format!("{odd:?} is no rule for devices; write for example \"c 188:* rw\"");
        return fail("deviceRules", text);
    }
    if let Some(SystemCalls::Profile(profile)) = &access.system_calls {
        profile.validate().or_else(|text| fail("systemCalls/profile", text))?;
    }
    let shares = |namespace| access.host_namespaces.contains(&namespace);
    if shares(HostNamespace::Uts) && (spec.hostname.is_some() || spec.domainname.is_some()) {
        let text = "the machine's names are its own; remove the container's host and domain name";
        return fail("hostNamespaces", text.into());
    }
    if spec.user_namespace
        && let Some(what) = beyond_own_users(access)
    {
        let text = format!("a container with users of its own cannot have {what}: remove one of the two");
        return Err(DocumentError::new("/spec/container/userNamespace", text));
    }
    if spec.has_host_network()
        && let Err(text) = on_host_network(spec)
    {
        return fail("hostNamespaces", text);
    }
    Ok(())
}

/// What only the machine's own root can be given.
fn beyond_own_users(access: &MachineAccess) -> Option<&'static str> {
    let refused = [
        (access.privileged, "all of the machine's rights (`privileged`)"),
        (!access.host_namespaces.is_empty(), "one of the machine's namespaces"),
        (!access.device_rules.is_empty(), "devices to make nodes of (`deviceRules`)"),
        (access.outlasts_memory, "memory that outlasts the machine's"),
        (!access.nfs.is_empty(), "folders of an NFS server, which knows the machine's users"),
    ];
    refused.into_iter().find(|(has, _)| *has).map(|(_, what)| what)
}

/// What cannot be had on the machine's network.
fn on_host_network(spec: &ContainerSpec) -> Result<(), String> {
    let refused = [
        (spec.offline, "choice to be without one"),
        (!spec.ports.is_empty(), "ports to publish: what it listens on is the machine's"),
        (spec.mac_address.is_some(), "hardware address of its own"),
        (!spec.resolver.servers.is_empty(), "name servers of its own"),
        (spec.sysctls.keys().any(|name| name.starts_with("net.")), "settings of the network (net.*)"),
    ];
    match refused.into_iter().find(|(has, _)| *has) {
        Some((_, what)) => Err(format!("on the machine's network a container has no {what}")),
        None => Ok(()),
    }
}

fn is_access(text: &str) -> bool {
    (1..=3).contains(&text.len()) && text.chars().all(|letter| "rwm".contains(letter))
}

/// A rule for devices, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRule<'a> {
    /// `a`, `b` or `c`.
    pub kind: &'a str,
    /// The driver's number; none: any.
    pub major: Option<u32>,
    /// The device's number; none: any.
    pub minor: Option<u32>,
    /// Letters of `rwm`.
    pub access: &'a str,
}

impl<'a> DeviceRule<'a> {
    /// Reads `TYPE MAJOR:MINOR ACCESS`.
    pub fn parse(text: &'a str) -> Option<Self> {
        let mut words = text.split(' ');
        let (kind, numbers, access) = (words.next()?, words.next()?, words.next()?);
        let (major, minor) = numbers.split_once(':')?;
        let number = |text: &str| if text == "*" { Some(None) } else { text.parse().ok().map(Some) };
        let rule = Self { kind, major: number(major)?, minor: number(minor)?, access };
        (["a", "b", "c"].contains(&kind) && is_access(access) && words.next().is_none()).then_some(rule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_of_the_machine_needs_its_own_permission() {
        let asks = |change: &dyn Fn(&mut ContainerSpec)| {
            let mut spec = ContainerSpec::of("registry.test/a:1");
            change(&mut spec);
            validate(&spec).map(|()| spec.permissions().into_iter().collect::<Vec<_>>())
        };
        let device = |path: &str, target: &str, access: &str| Device {
            path: path.into(),
            target: target.into(),
            access: access.into(),
        };
        assert_eq!(asks(&|_| {}).unwrap(), []);
        assert_eq!(asks(&|s| s.machine.privileged = true).unwrap(), [Permission::Privileged]);
        assert_eq!(asks(&|s| s.machine.outlasts_memory = true).unwrap(), [Permission::Privileged]);
        assert_eq!(
            asks(&|s| s.machine.devices = vec![device("/dev/ttyUSB0", "/dev/modem", "rw")]).unwrap(),
            [Permission::Devices]
        );
        assert_eq!(
            asks(&|s| s.machine.device_rules = vec!["c 188:* rw".into()]).unwrap(),
            [Permission::Devices]
        );
        assert_eq!(
            asks(&|s| s.machine.host_namespaces = [HostNamespace::Pid].into()).unwrap(),
            [Permission::HostNamespaces]
        );
        assert_eq!(
            asks(&|s| s.machine.host_namespaces = [HostNamespace::Network].into()).unwrap(),
            [Permission::HostNetwork]
        );
        assert_eq!(
            asks(&|s| s.capabilities.add = ["NET_ADMIN".to_owned()].into()).unwrap(),
            [Permission::Capabilities]
        );
        assert_eq!(asks(&|s| s.capabilities.add = ["IPC_LOCK".to_owned()].into()).unwrap(), []);
        assert_eq!(
            asks(&|s| s.machine.system_calls = Some(SystemCalls::Unconfined)).unwrap(),
            [Permission::Capabilities]
        );
        let host = |path: &str| {
            asks(&|s| {
                let (path, target) = (path.to_owned(), "/a".to_owned());
                s.machine.host_paths = vec![HostPath { path, target, read_only: true, follows: true }];
            })
        };
        assert_eq!(host("/sys").unwrap(), [Permission::HostPaths]);
        assert_eq!(host("/proc").unwrap(), [Permission::HostNamespaces]);
        assert_eq!(host("/").unwrap(), [Permission::Privileged]);
        host("/sys/..").unwrap_err();
        let on_host_network = |change: &dyn Fn(&mut ContainerSpec)| {
            asks(&|s| {
                s.machine.host_namespaces = [HostNamespace::Network].into();
                change(s);
            })
        };
        on_host_network(&|s| s.offline = true).unwrap_err();
        on_host_network(&|s| s.mac_address = Some("02:00:00:00:00:01".into())).unwrap_err();
        on_host_network(&|s| s.resolver.servers = vec!["192.0.2.1".parse().unwrap()]).unwrap_err();
        on_host_network(&|s| s.sysctls = [("net.core.somaxconn".into(), "1".into())].into()).unwrap_err();
        on_host_network(&|s| s.sysctls = [("kernel.shmmax".into(), "1".into())].into()).unwrap();
        let with_own_users = |change: &dyn Fn(&mut ContainerSpec)| {
            asks(&|s| {
                s.user_namespace = true;
                change(s);
            })
        };
        assert_eq!(with_own_users(&|_| {}).unwrap(), []);
        with_own_users(&|s| s.machine.privileged = true).unwrap_err();
        with_own_users(&|s| s.machine.outlasts_memory = true).unwrap_err();
        with_own_users(&|s| s.machine.device_rules = vec!["c 188:* rw".into()]).unwrap_err();
        with_own_users(&|s| s.machine.host_namespaces = [HostNamespace::Pid].into()).unwrap_err();
        with_own_users(&|s| s.machine.devices = vec![device("/dev/fuse", "/dev/fuse", "rw")]).unwrap();
        for (path, target, access) in [
            ("/etc/shadow", "/dev/a", "r"),
            ("/dev/../etc/shadow", "/dev/a", "r"),
            ("/dev/a", "/proc/a", "r"),
            ("/dev/a", "a", "r"),
            ("/dev/a", "/dev/a", "x"),
            ("/dev/a", "/dev/a", ""),
        ] {
            asks(&|s| s.machine.devices = vec![device(path, target, access)]).unwrap_err();
        }
        for rule in ["", "c 1:2", "d 1:2 r", "c 1 r", "c x:1 r", "c 1:2 rx", "c 1:2 r w"] {
            asks(&|s| s.machine.device_rules = vec![rule.into()]).unwrap_err();
        }
    }
}
