//! The workload document: which containers to run, how many, and where.

mod container;
mod health;
mod host_path;
mod job;
mod machine;
mod networks;
mod nfs;
pub mod rights;
mod seccomp;
mod secrets;
mod tmpfs;
mod update;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use self::container::is_domain;
pub use self::container::*;
pub use self::health::{GrpcCheck, HealthCheck, HttpCheck};
pub use self::host_path::{HostPath, Reach};
pub use self::job::{Job, Missed, Overlap, Schedule};
pub use self::machine::{Device, DeviceRule, HostNamespace, MachineAccess};
pub use self::networks::{Attachment, DEFAULT_NETWORK};
pub use self::nfs::{NFS_PORT, NFS_VERSIONS, NfsMount};
pub use self::seccomp::{
    SeccompAction, SeccompArchitecture, SeccompArgument, SeccompFilter, SeccompOperator, SeccompProfile,
    SeccompRule, SystemCalls, kernel_release,
};
pub use self::secrets::{SECRETS_FOLDER, SecretMount};
pub use self::tmpfs::Tmpfs;
pub use self::update::{OnFailure, ReplaceOrder, UpdatePolicy};

use crate::document::{DocumentError, is_dns_label};
use crate::id::{Digest, NodeId};

/// More replicas of one workload than any cluster this is meant for can run.
pub const MAX_REPLICAS: u32 = 10_000;

/// A workload's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadSpec {
    /// How many replicas to run.
    #[serde(default = "one")]
    pub replicas: u32,
    /// One replica on each node that the constraints allow, for as long as it is enrolled, and no `replicas`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub global: bool,
    /// The most replicas on one node; absent: no limit, or 1 of a global workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_per_node: Option<u32>,
    /// What each replica runs.
    pub container: ContainerSpec,
    /// When to start a container again.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// Where replicas may run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub constraints: Vec<Constraint>,
    /// Labels of nodes over whose values replicas are spread, the most important first, before they are spread
    /// over nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spread: Vec<String>,
    /// What must be so before a container starts for the first time on its node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<Dependency>,
    /// More names of workloads in the namespace's DNS: a name to a workload, which may be this one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub links: BTreeMap<String, String>,
    /// The networks of the namespace it is in, by name; none: [`DEFAULT_NETWORK`] alone. Two workloads reach each
    /// other if they are in one network, and only then. A change restarts nothing.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub networks: BTreeMap<String, Attachment>,
    /// Who may restart replicas of nodes that vanished.
    #[serde(default)]
    pub takeover: Takeover,
    /// Who goes without when capacity is short: lower numbers first.
    #[serde(default)]
    pub priority: i32,
    /// How many of its replicas may be on the move at a time to nodes that have fewer of them; absent: none, each stays
    /// where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u32>, minimum = 1)]
    pub rebalance: Option<NonZeroU32>,
    /// Present when there must never be two instances, anywhere, whatever fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclusive: Option<Exclusive>,
    /// Present when its replicas come to an end: `replicas` is how many times it is to end with success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Job>,
    /// How replicas are to be replaced when the template changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<UpdatePolicy>,
    /// How they are to be given the template before again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<UpdatePolicy>,
}

/// Another workload of the same namespace, and how it must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Dependency {
    /// Its name.
    pub workload: String,
    /// How it must be.
    #[serde(default)]
    pub condition: Condition,
    /// Whether to wait when there is no such workload.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub required: bool,
}

/// How a workload must be for others to start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// A container of it has started.
    #[default]
    Started,
    /// A container of it runs, and its health check, if it has one, passes.
    Healthy,
    /// All its containers ended with success.
    Completed,
}

/// More levels than any site has: region, site, room, rack.
const MAX_SPREAD: usize = 8;

/// More workloads than one can sensibly wait for.
const MAX_DEPENDENCIES: usize = 64;

/// More names than any file gives.
const MAX_LINKS: usize = 64;

fn yes() -> bool {
    true
}

fn is_true(value: &bool) -> bool {
    *value
}

/// Whose leave a workload needs to run, of which there must never be two: a lease by a strict majority of
/// these nodes, and later of those that its holder proposes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Exclusive {
    /// The revision of the document that made the workload. Later versions of it repeat it; a workload
    /// that is deleted and made anew has another.
    pub since: u64,
    /// All nodes enrolled then, revoked ones excepted. Later versions repeat them.
    #[schema(value_type = Vec<String>)]
    pub voters: BTreeSet<NodeId>,
}

/// More nodes than any cluster this is meant for has.
const MAX_VOTERS: usize = 10_000;

fn one() -> u32 {
    1
}

/// When a container that ended is started again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RestartPolicy {
    /// After which ends.
    #[serde(default)]
    pub condition: RestartCondition,
    /// First delay, milliseconds; doubles with each restart up to five minutes, and starts anew
    /// after a run of `window_ms`.
    #[serde(default = "half_a_second")]
    pub delay_ms: u64,
    /// Restarts before giving up; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// How long a container must have run to count as started well, milliseconds: restarts are counted anew then.
    /// Absent: ten minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_ms: Option<u64>,
}

fn half_a_second() -> u64 {
    500
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            condition: RestartCondition::default(),
            delay_ms: half_a_second(),
            max_attempts: None,
            window_ms: None,
        }
    }
}

/// After which ends a container is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RestartCondition {
    /// After every end.
    #[default]
    Always,
    /// After an exit code other than 0, or a failed health check.
    OnFailure,
    /// Never.
    Never,
}

/// Who may restart replicas of nodes that vanished.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Takeover {
    /// The side that sees at least half of the enrolled nodes seen within the last day.
    #[default]
    Majority,
    /// Every side.
    Always,
    /// Nobody: the replicas wait for their node.
    Never,
}

/// The label that every node has with its operating system: `linux`.
pub const PLATFORM_OS: &str = "node.platform.os";

/// The label that every node has with its architecture, as OCI image indexes name it: `amd64` or `arm64`.
pub const PLATFORM_ARCH: &str = "node.platform.arch";

/// How the label begins with which a node says whether it has a device that a workload asks for; the device's path
/// follows. Its value is [`DEVICE_PRESENT`] or [`DEVICE_ABSENT`].
pub const DEVICE_LABEL: &str = "node.device.";

/// The node has the device.
pub const DEVICE_PRESENT: &str = "present";

/// The node has looked for the device and does not have it.
pub const DEVICE_ABSENT: &str = "absent";

/// A condition on a node's labels (`node.labels.KEY == VALUE` in Compose), its name or its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Constraint {
    /// A label's name, [`PLATFORM_OS`], [`PLATFORM_ARCH`], `node.hostname` or `node.id`.
    pub label: String,
    /// Whether the value must be equal or must differ.
    pub operator: Operator,
    /// The value.
    pub value: String,
}

/// A constraint's comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum Operator {
    /// The label exists and has the value.
    #[serde(rename = "==")]
    Equal,
    /// The label is absent or has another value.
    #[serde(rename = "!=")]
    NotEqual,
}

impl WorkloadSpec {
    /// One replica of a container, with nothing more said.
    pub fn of(container: ContainerSpec) -> Self {
        Self {
            replicas: one(),
            global: false,
            max_per_node: None,
            container,
            restart: RestartPolicy::default(),
            constraints: Vec::new(),
            spread: Vec::new(),
            depends_on: Vec::new(),
            links: BTreeMap::new(),
            networks: BTreeMap::new(),
            takeover: Takeover::default(),
            priority: 0,
            rebalance: None,
            exclusive: None,
            job: None,
            update: None,
            rollback: None,
        }
    }

    /// The digest of what each replica runs: the container and its restart policy, without how many
    /// replicas there are and where they go. Replicas are replaced when it changes, and only then.
    ///
    /// Over the JSON of both. A field added later must be left out when it has its default, or the
    /// first start of a newer daemon would restart every container.
    pub fn template(&self) -> Digest {
        // At set times, each run has a template of its own anyway.
        let again = self.job.as_ref().filter(|job| job.schedule.is_none()).and_then(|job| job.again_ms);
        // Containers of an exclusive workload have a deadline.
        let exclusive = self.exclusive.as_ref().map(|_| "exclusive");
        let json = match (exclusive, again) {
            (None, None) => serde_json::to_vec(&(&self.container, &self.restart)),
            (Some(exclusive), None) => serde_json::to_vec(&(&self.container, &self.restart, exclusive)),
            (exclusive, Some(_)) => serde_json::to_vec(&(&self.container, &self.restart, exclusive, again)),
        };
        // Strings, numbers and maps with string keys: nothing here that JSON cannot write.
        Digest::of(&json.unwrap_or_default())
    }

    /// Whether no replica ever goes to another node while its own is well.
    pub fn stays_where_it_is(&self) -> bool {
        self.global || self.exclusive.is_some() || self.job.is_some() || self.takeover == Takeover::Never
    }

    /// The most replicas that one node may have; absent: any number.
    pub fn most_per_node(&self) -> Option<u32> {
        if self.global { Some(1) } else { self.max_per_node }
    }

    /// Checks what types cannot say.
    pub(crate) fn validate(&self) -> Result<(), DocumentError> {
        let fail = |pointer: &str, message: String| Err(DocumentError::new(pointer, message));
        if self.replicas > MAX_REPLICAS {
            return fail("/spec/replicas", format!("{} is over the limit of {MAX_REPLICAS}", self.replicas));
        }
        if self.global && (self.replicas != 1 || self.max_per_node.is_some_and(|most| most != 1)) {
            return fail("/spec/global", "one replica on each node: neither more nor another number".into());
        }
        if self.global && self.exclusive.is_some() {
            return fail("/spec/global", "an exclusive workload has one replica in all".into());
        }
        if self.rebalance.is_some() && self.stays_where_it_is() {
            let text = "a workload that is global, exclusive or a job, or never taken over, stays where it is; remove it";
            return fail("/spec/rebalance", text.into());
        }
        if self.max_per_node == Some(0) {
            return fail(
                "/spec/maxPerNode",
                "0 replicas on each node are none at all; set `replicas` to 0".into(),
            );
        }
        if self.container.mac_address.is_some() && self.replicas > 1 && self.most_per_node() != Some(1) {
            let text =
                "several replicas on one node would have one hardware address; at most 1 for each node";
            return fail("/spec/container/macAddress", text.into());
        }
        if self.spread.len() > MAX_SPREAD {
            return fail("/spec/spread", format!("has more than {MAX_SPREAD} labels"));
        }
        if let Some(exclusive) = &self.exclusive {
            if self.replicas > 1 {
                let text = format!("is {}, but of an exclusive workload there is at most 1", self.replicas);
                return fail("/spec/replicas", text);
            }
            // Before it is known who votes, nobody does, and no node takes it.
            let open = *exclusive == Exclusive::default();
            if !open && (exclusive.voters.is_empty() || exclusive.voters.len() > MAX_VOTERS) {
                return fail("/spec/exclusive/voters", format!("needs 1 to {MAX_VOTERS} nodes"));
            }
        }
        if self.depends_on.len() > MAX_DEPENDENCIES {
            return fail("/spec/dependsOn", format!("has more than {MAX_DEPENDENCIES} workloads"));
        }
        if let Some(odd) = self.depends_on.iter().find(|dependency| !is_dns_label(&dependency.workload)) {
            return fail("/spec/dependsOn", format!("{:?} cannot name a workload", odd.workload));
        }
        if self.links.len() > MAX_LINKS {
            return fail("/spec/links", format!("has more than {MAX_LINKS} names"));
        }
        if let Some((name, to)) = self.links.iter().find(|(name, to)| !is_domain(name) || !is_dns_label(to)) {
            return fail("/spec/links", format!("{name:?} for {to:?} is not a name and a workload"));
        }
        networks::validate(self)?;
        job::validate(self)?;
        update::validate(self)?;
        self.container.validate()
    }
}
