//! What a replica runs, and what surrounds it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::health::HealthCheck;
use super::machine::{self, MachineAccess};
use super::rights;
use super::secrets::{self, SecretMount};
use super::tmpfs::{Tmpfs, absolute};
use crate::document::{DocumentError, is_dns_label};
use crate::volume::MIN_SIZE_BYTES;

/// CPU asked for when the document asks for none, in thousandths of a core. Small, so that a
/// Compose file without resources fits on a small machine.
pub const DEFAULT_CPU_MILLIS: u64 = 10;

/// Memory asked for when the document asks for none, in bytes.
pub const DEFAULT_MEMORY_BYTES: u64 = 16 * 1024 * 1024;

/// Processes and threads a container may have when the document sets no limit: a fork bomb must
/// not take the node with it.
pub const DEFAULT_PIDS_LIMIT: u64 = 4096;

/// Bytes of all files of a container together: they travel with the document, which has its own limit, and
/// lie in memory on every machine that runs it.
pub const MAX_FILES_BYTES: usize = 512 * 1024;

/// The largest memory for `/dev/shm`, bytes: more than any machine this is meant for has.
pub const MAX_SHM_BYTES: u64 = 1 << 40;

/// Files a process may have open at most: the kernel's own limit (`fs.nr_open`).
pub const MAX_OPEN_FILES: u64 = 1_048_576;

/// The most that is kept of what a replica prints, bytes on the disk, where what is older is compressed: a node with a
/// hundred of them keeps a gigabyte.
pub const MAX_LOG_BYTES: u64 = 10 * 1024 * 1024;

/// The least that can be kept of it, bytes: a fifth, which is a file, holds a line of the longest kind.
pub const MIN_LOG_BYTES: u64 = 100 * 1024;

/// The highest number of a user or group in a user namespace of a container's own: all that images have.
pub const MAX_USER: u32 = 65_535;

/// CPU shares: the range of the kernel's control groups, version 1, in which Compose counts them.
pub const CPU_SHARES: (u64, u64) = (2, 262_144);

/// An address in `hosts` that stands for the machine a container runs on, as Docker calls it.
pub const HOST_GATEWAY: &str = "host-gateway";

/// Lines the container's `hosts` may have, and names of its resolver: more has no reader.
const MAX_NAMES: usize = 64;

/// Name servers asked, at most: resolvers elsewhere use three (resolv.conf, MAXNS).
pub const MAX_NAME_SERVERS: usize = 3;

/// What a replica runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ContainerSpec {
    /// The image reference (`registry/repository:tag` or `…@sha256:…`).
    pub image: String,
    /// Replaces the image's entrypoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Environment, over the image's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Replaces the image's working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// `uid`, `uid:gid`, `name` or `name:group`; replaces the image's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The container's host name; absent: the replica's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Requests and limits.
    #[serde(default)]
    pub resources: Resources,
    /// Ports the container serves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// Signal that asks the container to stop; absent: the image's, else SIGTERM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// How long a stopping container may take before SIGKILL, in milliseconds.
    #[serde(default = "ten_seconds")]
    pub stop_grace_ms: u64,
    /// A check whose verdict decides about traffic and restarts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheck>,
    /// Mounts the root file system read-only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Memory-backed directories: `PATH` or `PATH:OPTION,…` ([`Tmpfs`]).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tmpfs: Vec<String>,
    /// The most that the container's own files may hold, beside its volumes and what the image has, bytes; absent:
    /// what the machine has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_size_bytes: Option<u64>,
    /// Volumes of the workload's namespace, and where they are mounted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeMount>,
    /// Size of `/dev/shm`, bytes; absent: 64 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm_size_bytes: Option<u64>,
    /// Files with content of the document's, read-only, in place of what the image has there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<File>,
    /// Secrets of the workload's namespace, as files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretMount>,
    /// More groups of the container's user, by name or number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Its users and groups are nobody on the machine, its root too: it has a user namespace, where those from 0 to
    /// [`MAX_USER`] are.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub user_namespace: bool,
    /// Changes to what the container's root may do.
    #[serde(default, skip_serializing_if = "Capabilities::is_unchanged")]
    pub capabilities: Capabilities,
    /// What it is given of its machine, if its namespace allows it.
    #[serde(default, skip_serializing_if = "MachineAccess::is_none")]
    pub machine: MachineAccess,
    /// Kernel parameters of the container's own namespaces.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    /// Process limits by getrlimit(2), as `nofile`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ulimits: BTreeMap<String, Ulimit>,
    /// How early the kernel ends its processes when the machine's memory is short, from 0 to 1000, which is
    /// first; absent: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// More lines of `/etc/hosts`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<Host>,
    /// Has no network but its own loopback.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub offline: bool,
    /// The hardware address of its interface, as `02:42:ac:11:00:02`; absent: one that follows from its IP address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac_address: Option<String>,
    /// How names are looked up.
    #[serde(default, skip_serializing_if = "Resolver::is_default")]
    pub resolver: Resolver,
    /// The container's NIS domain name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domainname: Option<String>,
    /// Runs a small init process first in the container, which passes signals on and takes care of orphans.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub init: bool,
    /// Gives the command a terminal, which its output goes through.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tty: bool,
    /// The most that is kept of what each replica prints, bytes: 0 is nothing; absent: [`MAX_LOG_BYTES`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_bytes: Option<u64>,
    /// Run inside the container, in order, once it has started; it is stopped when one fails.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub post_start: Vec<Hook>,
    /// Run inside the container, in order, before it is asked to stop; they and the stop have the time of
    /// `stopGraceMs` together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pre_stop: Vec<Hook>,
    /// Notes for tools that look at the container's runtime specification.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A file with content of the document's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct File {
    /// Where in the container.
    pub path: String,
    /// What is in it.
    pub content: String,
    /// Its owner.
    #[serde(default)]
    pub uid: u32,
    /// Its group.
    #[serde(default)]
    pub gid: u32,
    /// Its permission bits; it is mounted read-only whatever they say.
    #[serde(default = "readable")]
    pub mode: u32,
}

/// A volume in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeMount {
    /// The volume's name.
    pub volume: String,
    /// Where in the container.
    pub path: String,
    /// Whether the container may only read it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Whether a new volume is empty; else it begins with what the image has there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_copy: bool,
    /// The folder of the volume that is mounted, as `app/data`, which is made if it is not there; absent: all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subpath: Option<String>,
}

/// Whether a text names a folder below another one, and no other way to it.
fn is_below(path: &str) -> bool {
    path.len() <= MAX_SUBPATH_BYTES
        && !path.contains('\0')
        && path.split('/').all(|name| !["", ".", ".."].contains(&name))
}

/// The longest path within a volume, bytes: what the kernel takes, less what is before it.
const MAX_SUBPATH_BYTES: usize = 2048;

/// Volumes of a container, at most: more has no use.
const MAX_VOLUMES: usize = 64;

pub(super) fn readable() -> u32 {
    0o444
}

/// A command that runs inside a container at a moment of its life, as the container's user.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hook {
    /// The command and its arguments.
    pub command: Vec<String>,
    /// Environment, over the container's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// The directory it starts in; absent: the container's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
}

/// More hooks than a container needs: each holds up its start or its stop.
const MAX_HOOKS: usize = 16;

/// Changes to what the container's root may do; names of capabilities(7) without `CAP_`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Capabilities {
    /// Given, also after `drop: ALL`.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub add: BTreeSet<String>,
    /// Taken; `ALL` takes all.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub drop: BTreeSet<String>,
}

impl Capabilities {
    /// Whether every container's set stays as it is.
    pub fn is_unchanged(&self) -> bool {
        self.add.is_empty() && self.drop.is_empty()
    }

    /// What the container's root may do, in order.
    pub fn granted(&self) -> BTreeSet<&str> {
        let none = self.drop.contains(rights::ALL_CAPABILITIES);
        let kept = |name: &&str| !none && !self.drop.contains(*name);
        if self.add.contains(rights::ALL_CAPABILITIES) {
            return rights::every_capability().filter(|name| !self.drop.contains(*name)).collect();
        }
        let kept = rights::DEFAULT_CAPABILITIES.into_iter().filter(kept);
        kept.chain(self.add.iter().map(String::as_str)).collect()
    }
}

/// A process limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ulimit {
    /// What holds, and a process may raise up to `hard`; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soft: Option<u64>,
    /// The most; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hard: Option<u64>,
}

/// A line of `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Host {
    /// The name.
    pub name: String,
    /// An IP address, or [`HOST_GATEWAY`].
    pub address: String,
}

/// How names are looked up, beyond the names of the workload's namespace, which come first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Resolver {
    /// Domains in which short names are looked up, after the workload's namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options of resolv.conf(5), after `ndots:1`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    /// Name servers that its node asks for it, in place of the node's own, for names outside the cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub servers: Vec<IpAddr>,
}

impl Resolver {
    /// Whether nothing is asked for.
    pub fn is_default(&self) -> bool {
        self.search.is_empty() && self.options.is_empty() && self.servers.is_empty()
    }
}

fn ten_seconds() -> u64 {
    10_000
}

/// What the scheduler sets aside and what the kernel enforces.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Resources {
    /// CPU set aside, thousandths of a core; absent: [`DEFAULT_CPU_MILLIS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_request_millis: Option<u64>,
    /// Memory set aside, bytes; absent: [`DEFAULT_MEMORY_BYTES`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_request_bytes: Option<u64>,
    /// CPU limit, thousandths of a core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_limit_millis: Option<u64>,
    /// CPU limit, hundredths of all the machine has; the lower of the two holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_limit_percent: Option<u64>,
    /// Memory limit, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit_bytes: Option<u64>,
    /// Swap that it may use besides the memory limit, bytes; absent: none. Machines have no swap in this
    /// version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap_limit_bytes: Option<u64>,
    /// Process limit; absent: [`DEFAULT_PIDS_LIMIT`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids_limit: Option<u64>,
    /// The container's part of the CPU when there is too little, in [`CPU_SHARES`]; absent: 1024 for each core
    /// set aside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_shares: Option<u64>,
    /// What it may read and write of the machine's disk.
    #[serde(default, skip_serializing_if = "DiskLimits::is_default")]
    pub disk: DiskLimits,
    /// The cores it may use, as `0-2,4`; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpuset: Option<String>,
    /// The control group that its containers are in together, on each machine, with those of its namespace that name the
    /// same: what one does not use of the CPU goes to the others of its group first. Absent: each for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup_parent: Option<String>,
}

/// What a container may do on the machine's disk, each second; absent: what the disk can.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DiskLimits {
    /// Bytes read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_bytes: Option<u64>,
    /// Bytes written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_bytes: Option<u64>,
    /// Reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_operations: Option<u64>,
    /// Writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_operations: Option<u64>,
}

impl DiskLimits {
    /// Whether nothing is limited.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    fn all(&self) -> [Option<u64>; 4] {
        [self.read_bytes, self.write_bytes, self.read_operations, self.write_operations]
    }
}

impl Resources {
    /// CPU to set aside, thousandths of a core.
    pub fn cpu_millis(&self) -> u64 {
        self.cpu_request_millis.unwrap_or(DEFAULT_CPU_MILLIS)
    }

    /// Memory to set aside, bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_request_bytes.unwrap_or(DEFAULT_MEMORY_BYTES)
    }

    /// Process limit.
    pub fn pids(&self) -> u64 {
        self.pids_limit.unwrap_or(DEFAULT_PIDS_LIMIT)
    }
}

/// A port a container serves.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Port {
    /// The port inside the container.
    pub target: u16,
    /// The port on every node that leads to it; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<u16>,
    /// The transport protocol.
    #[serde(default)]
    pub protocol: Protocol,
}

/// A transport protocol.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl ContainerSpec {
    /// A container of an image that asks for nothing more.
    pub fn of(image: impl Into<String>) -> Self {
        Self {
            image: image.into(),
            entrypoint: None,
            command: None,
            env: BTreeMap::new(),
            working_dir: None,
            user: None,
            hostname: None,
            resources: Resources::default(),
            ports: Vec::new(),
            stop_signal: None,
            stop_grace_ms: ten_seconds(),
            health: None,
            read_only: false,
            tmpfs: Vec::new(),
            root_size_bytes: None,
            volumes: Vec::new(),
            shm_size_bytes: None,
            files: Vec::new(),
            secrets: Vec::new(),
            groups: Vec::new(),
            capabilities: Capabilities::default(),
            user_namespace: false,
            machine: MachineAccess::default(),
            sysctls: BTreeMap::new(),
            ulimits: BTreeMap::new(),
            oom_score_adj: None,
            hosts: Vec::new(),
            offline: false,
            mac_address: None,
            resolver: Resolver::default(),
            domainname: None,
            init: false,
            tty: false,
            log_bytes: None,
            post_start: Vec::new(),
            pre_stop: Vec::new(),
            annotations: BTreeMap::new(),
        }
    }

    /// Whether it mounts a volume of that name.
    pub fn mounts(&self, volume: &str) -> bool {
        self.volumes.iter().any(|mount| mount.volume == volume)
    }

    /// Its `macAddress`, if it has one that an interface can have: not a group's, and not zero (IEEE 802, section 8.2).
    pub fn hardware_address(&self) -> Option<[u8; 6]> {
        let pairs: Vec<&str> = self.mac_address.as_ref()?.split([':', '-']).collect();
        let octet = |pair: &&str| u8::from_str_radix(pair, 16).ok().filter(|_| pair.len() == 2);
        let octets: [u8; 6] = pairs.iter().map(octet).collect::<Option<Vec<_>>>()?.try_into().ok()?;
        (octets[0] & 1 == 0 && octets != [0; 6]).then_some(octets)
    }

    /// The registry its image comes from: what is before the first slash if it can be a host, else Docker's.
    pub fn registry(&self) -> &str {
        match self.image.split_once('/') {
            Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
            _ => "docker.io",
        }
    }

    /// Whether it has a secret of that name.
    pub fn has_secret(&self, secret: &str) -> bool {
        self.secrets.iter().any(|mount| mount.secret == secret)
    }

    /// Checks what types cannot say.
    pub(super) fn validate(&self) -> Result<(), DocumentError> {
        let fail = |pointer: &str, message: String| Err(DocumentError::new(pointer, message));
        if self.image.trim().is_empty() {
            return fail("/spec/container/image", "is empty; name an image".into());
        }
        if self.stop_grace_ms > 3_600_000 {
            return fail(
                "/spec/container/stopGraceMs",
                "is over an hour; a node must be able to shut down".into(),
            );
        }
        for (index, port) in self.ports.iter().enumerate() {
            if port.target == 0 || port.published == Some(0) {
                return fail(&format!("/spec/container/ports/{index}"), "port 0 cannot be served".into());
            }
        }
        for name in self.env.keys() {
            if name.is_empty() || name.contains(['=', '\0']) {
                return fail("/spec/container/env", format!("{name:?} cannot name an environment variable"));
            }
        }
        if self.log_bytes.is_some_and(|bytes| bytes != 0 && !(MIN_LOG_BYTES..=MAX_LOG_BYTES).contains(&bytes))
        {
            let text = format!("must be 0, or {MIN_LOG_BYTES} to {MAX_LOG_BYTES}");
            return fail("/spec/container/logBytes", text);
        }
        self.resources.validate()?;
        if self.health.as_ref().is_some_and(|health| !health.is_complete()) {
            return fail(
                "/spec/container/health",
                "needs one of a command, an HTTP path with its port, and a TCP port; and intervals, timeout and \
                 retries over 0"
                    .into(),
            );
        }
        for (pointer, hooks) in [("postStart", &self.post_start), ("preStop", &self.pre_stop)] {
            if hooks.len() > MAX_HOOKS || hooks.iter().any(|hook| hook.command.is_empty()) {
                let text = format!("needs a command each, and at most {MAX_HOOKS} of them");
                return fail(&format!("/spec/container/{pointer}"), text);
            }
        }
        if let Some(name) =
            self.annotations.keys().find(|name| name.is_empty() || name.starts_with("hivemind/"))
        {
            return fail(
                "/spec/container/annotations",
                format!("{name:?} cannot be used; `hivemind/` is ours"),
            );
        }
        self.validate_place()?;
        self.validate_rights()
    }

    /// Files, directories and names.
    fn validate_place(&self) -> Result<(), DocumentError> {
        let fail = |pointer: String, message: String| Err(DocumentError::new(pointer, message));
        for (index, text) in self.tmpfs.iter().enumerate() {
            if let Err(message) = Tmpfs::parse(text) {
                return fail(format!("/spec/container/tmpfs/{index}"), message);
            }
        }
        self.validate_volumes()?;
        if self.root_size_bytes.is_some_and(|bytes| bytes < MIN_SIZE_BYTES) {
            return fail(
                "/spec/container/rootSizeBytes".into(),
                format!("must be at least {MIN_SIZE_BYTES}"),
            );
        }
        if self.shm_size_bytes.is_some_and(|bytes| bytes == 0 || bytes > MAX_SHM_BYTES) {
            return fail("/spec/container/shmSizeBytes".into(), format!("must be 1 to {MAX_SHM_BYTES}"));
        }
        let mut paths = BTreeSet::new();
        for (index, file) in self.files.iter().enumerate() {
            let pointer = format!("/spec/container/files/{index}");
            secrets::file_path(&file.path, file.mode)
                .map_err(|message| DocumentError::new(pointer.clone(), message))?;
            if !paths.insert(file.path.as_str()) {
                return fail(pointer, format!("{} is there twice", file.path));
            }
        }
        secrets::validate(&self.secrets, paths)?;
        let bytes: usize = self.files.iter().map(|file| file.content.len()).sum();
        if bytes > MAX_FILES_BYTES {
            let text = format!(
                "are {bytes} bytes together, over the limit of {MAX_FILES_BYTES}; put them in an image"
            );
            return fail("/spec/container/files".into(), text);
        }
        for (index, host) in self.hosts.iter().enumerate() {
            let known = host.address == HOST_GATEWAY || host.address.parse::<IpAddr>().is_ok();
            if !known || !is_domain(&host.name) {
                let text = format!("{:?} at {:?} is not a name and an address", host.name, host.address);
                return fail(format!("/spec/container/hosts/{index}"), text);
            }
        }
        if let Some(text) = self.mac_address.as_ref().filter(|_| self.hardware_address().is_none()) {
            let text = format!("{text:?} is not the hardware address of one interface, as 02:42:ac:11:00:02");
            return fail("/spec/container/macAddress".into(), text);
        }
        let is_asked = self.health.as_ref().is_some_and(|health| health.command.is_empty());
        if self.offline && (!self.ports.is_empty() || self.mac_address.is_some() || is_asked) {
            let text =
                "without a network there are no ports, no hardware address and no check by HTTP or TCP";
            return fail("/spec/container/offline".into(), text.into());
        }
        let Resolver { search, options, servers } = &self.resolver;
        if let Some(domain) = search.iter().find(|domain| !is_domain(domain)) {
            return fail("/spec/container/resolver/search".into(), format!("{domain:?} is not a domain"));
        }
        let option = |text: &str| {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-:".contains(&b))
        };
        if let Some(text) = options.iter().find(|text| !option(text)) {
            return fail("/spec/container/resolver/options".into(), format!("{text:?} is not an option"));
        }
        let can_be_asked =
            |address: &IpAddr| !address.is_loopback() && !address.is_unspecified() && !address.is_multicast();
        if servers.len() > MAX_NAME_SERVERS {
            let text = format!("has more than {MAX_NAME_SERVERS} name servers");
            return fail("/spec/container/resolver/servers".into(), text);
        }
        if let Some(address) = servers.iter().find(|address| !can_be_asked(address)) {
            let text = format!("{address} is not a name server that a container's node can ask");
            return fail("/spec/container/resolver/servers".into(), text);
        }
        if self.hosts.len().max(search.len()).max(options.len()) > MAX_NAMES {
            return fail(
                "/spec/container".into(),
                format!("has more than {MAX_NAMES} hosts, domains or options"),
            );
        }
        if let Some(domain) = self.domainname.as_ref().filter(|domain| !is_domain(domain)) {
            return fail("/spec/container/domainname".into(), format!("{domain:?} is not a domain"));
        }
        Ok(())
    }

    fn validate_volumes(&self) -> Result<(), DocumentError> {
        let mut paths = BTreeSet::new();
        for (index, mount) in self.volumes.iter().enumerate() {
            let at =
                |message: String| DocumentError::new(format!("/spec/container/volumes/{index}"), message);
            if !is_dns_label(&mount.volume) {
                return Err(at(format!("{:?} cannot name a volume", mount.volume)));
            }
            absolute(&mount.path).map_err(at)?;
            if let Some(subpath) = mount.subpath.as_ref().filter(|subpath| !is_below(subpath)) {
                return Err(at(format!("{subpath:?} is no folder within a volume, as app/data")));
            }
            if !paths.insert(mount.path.trim_end_matches('/')) {
                return Err(at(format!("{} is there twice", mount.path)));
            }
        }
        if self.volumes.len() > MAX_VOLUMES {
            let text = format!("has more than {MAX_VOLUMES} volumes");
            return Err(DocumentError::new("/spec/container/volumes", text));
        }
        Ok(())
    }

    /// What it may do beyond what every container may.
    fn validate_rights(&self) -> Result<(), DocumentError> {
        let at = |pointer: &str| {
            let pointer = format!("/spec/container/{pointer}");
            move |message: String| DocumentError::new(pointer, message)
        };
        for name in &self.capabilities.add {
            rights::is_capability(name).map_err(at("capabilities/add"))?;
        }
        for name in &self.capabilities.drop {
            rights::is_capability(name).map_err(at("capabilities/drop"))?;
        }
        machine::validate(self)?;
        for (name, value) in &self.sysctls {
            rights::may_set_sysctl(name).map_err(at("sysctls"))?;
            if value.is_empty() || value.contains(['\n', '\0']) {
                return Err(at("sysctls")(format!("{value:?} cannot be the value of {name}")));
            }
        }
        for (name, limit) in &self.ulimits {
            rights::may_set_ulimit(name).map_err(at("ulimits"))?;
            if limit.soft.unwrap_or(u64::MAX) > limit.hard.unwrap_or(u64::MAX) {
                return Err(at("ulimits")(format!("the soft limit of {name} is over the hard one")));
            }
            if name == "nofile" && limit.hard.is_some_and(|hard| hard > MAX_OPEN_FILES) {
                return Err(at("ulimits")(format!("no process can have over {MAX_OPEN_FILES} files open")));
            }
        }
        if self.oom_score_adj.is_some_and(|score| !(0..=1000).contains(&score)) {
            let text = "must be 0 to 1000; below 0 the machine's own services would be ended first";
            return Err(at("oomScoreAdj")(text.into()));
        }
        if self.groups.iter().any(|group| group.is_empty() || group.contains([':', '\n'])) {
            return Err(at("groups")("a group has a name or a number".into()));
        }
        Ok(())
    }
}

impl Resources {
    fn validate(&self) -> Result<(), DocumentError> {
        let fail = |pointer: &str, message: String| Err(DocumentError::new(pointer, message));
        for (name, request, limit) in [
            ("cpu", self.cpu_request_millis, self.cpu_limit_millis),
            ("memory", self.memory_request_bytes, self.memory_limit_bytes),
        ] {
            if let (Some(request), Some(limit)) = (request, limit)
                && request > limit
            {
                return fail(
                    "/spec/container/resources",
                    format!("the {name} request {request} is over the {name} limit {limit}"),
                );
            }
        }
        if self.cpu_limit_millis == Some(0) || self.memory_limit_bytes.is_some_and(|b| b < 4 * 1024 * 1024) {
            return fail(
                "/spec/container/resources",
                "no container starts with less than 4 MiB of memory or without CPU".into(),
            );
        }
        if self.swap_limit_bytes.is_some() && self.memory_limit_bytes.is_none() {
            return fail("/spec/container/resources/swapLimitBytes", "needs a memory limit beside it".into());
        }
        if self.cpu_shares.is_some_and(|shares| shares < CPU_SHARES.0 || shares > CPU_SHARES.1) {
            let text = format!("must be {} to {}", CPU_SHARES.0, CPU_SHARES.1);
            return fail("/spec/container/resources/cpuShares", text);
        }
        if self.disk.all().contains(&Some(0)) {
            return fail("/spec/container/resources/disk", "a limit of 0 would be the end of it".into());
        }
        if let Some(cores) = self.cpuset.as_ref().filter(|cores| !is_cpuset(cores)) {
            let text = format!("{cores:?} is not a list of cores; write for example 0-2,4");
            return fail("/spec/container/resources/cpuset", text);
        }
        if let Some(name) = self.cgroup_parent.as_ref().filter(|name| !is_group(name)) {
            let text = format!(
                "{name:?} cannot name a control group: use 1 to 63 letters, digits, `-`, `_` and `.`"
            );
            return fail("/spec/container/resources/cgroupParent", text);
        }
        Ok(())
    }
}

/// Whether it is a list of cores as cpuset(7) has it: `0-2,4`.
fn is_cpuset(text: &str) -> bool {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        matches!((first.parse::<u16>(), last.parse::<u16>()), (Ok(first), Ok(last)) if first <= last)
    };
    text.split(',').all(range)
}

/// Whether it is one name of a folder.
fn is_group(name: &str) -> bool {
    (1..=63).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// Whether it is a domain or host name: labels with dots between them.
pub(super) fn is_domain(text: &str) -> bool {
    let label = |label: &str| is_dns_label(&label.to_ascii_lowercase().replace('_', "-"));
    text.len() <= 253 && text.split('.').all(label)
}
