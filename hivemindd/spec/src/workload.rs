//! The workload document: which containers to run, how many, and where.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::document::DocumentError;
use crate::id::{Digest, NodeId};

/// More replicas of one workload than any cluster this is meant for can run.
pub const MAX_REPLICAS: u32 = 10_000;

/// CPU asked for when the document asks for none, in thousandths of a core. Small, so that a
/// Compose file without resources fits on a small machine.
pub const DEFAULT_CPU_MILLIS: u64 = 10;

/// Memory asked for when the document asks for none, in bytes.
pub const DEFAULT_MEMORY_BYTES: u64 = 16 * 1024 * 1024;

/// Processes and threads a container may have when the document sets no limit: a fork bomb must
/// not take the node with it.
pub const DEFAULT_PIDS_LIMIT: u64 = 4096;

/// A workload's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadSpec {
    /// How many replicas to run.
    #[serde(default = "one")]
    pub replicas: u32,
    /// What each replica runs.
    pub container: ContainerSpec,
    /// When to start a container again.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// Where replicas may run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub constraints: Vec<Constraint>,
    /// Who may restart replicas of nodes that vanished.
    #[serde(default)]
    pub takeover: Takeover,
    /// Who goes without when capacity is short: lower numbers first.
    #[serde(default)]
    pub priority: i32,
    /// Present when there must never be two instances, anywhere, whatever fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclusive: Option<Exclusive>,
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
    /// Memory-backed directories, by path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tmpfs: Vec<String>,
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
    /// Memory limit, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit_bytes: Option<u64>,
    /// Process limit; absent: [`DEFAULT_PIDS_LIMIT`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids_limit: Option<u64>,
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

/// When a container that ended is started again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RestartPolicy {
    /// After which ends.
    #[serde(default)]
    pub condition: RestartCondition,
    /// First delay, milliseconds; doubles with each restart up to five minutes, and starts anew
    /// after ten minutes of running.
    #[serde(default = "half_a_second")]
    pub delay_ms: u64,
    /// Restarts before giving up; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
}

fn half_a_second() -> u64 {
    500
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self { condition: RestartCondition::default(), delay_ms: half_a_second(), max_attempts: None }
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

/// A condition on a node's labels (`node.labels.KEY == VALUE` in Compose), its name or its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Constraint {
    /// A label's name, `node.hostname` or `node.id`.
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

/// A command run inside the container; exit code 0 is healthy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HealthCheck {
    /// The command and its arguments.
    pub command: Vec<String>,
    /// Time between checks, milliseconds.
    pub interval_ms: u64,
    /// Time a check may take, milliseconds.
    pub timeout_ms: u64,
    /// Failures in a row that make the container unhealthy.
    pub retries: u32,
    /// Time after the start in which failures do not count, milliseconds.
    pub start_period_ms: u64,
}

impl WorkloadSpec {
    /// The digest of what each replica runs: the container and its restart policy, without how many
    /// replicas there are and where they go. Replicas are replaced when it changes, and only then.
    ///
    /// Over the JSON of both. A field added later must be left out when it has its default, or the
    /// first start of a newer daemon would restart every container.
    pub fn template(&self) -> Digest {
        let json = match self.exclusive {
            None => serde_json::to_vec(&(&self.container, &self.restart)),
            // Its containers have a deadline.
            Some(_) => serde_json::to_vec(&(&self.container, &self.restart, "exclusive")),
        };
        // Strings, numbers and maps with string keys: nothing here that JSON cannot write.
        Digest::of(&json.unwrap_or_default())
    }

    /// Checks what types cannot say.
    pub(crate) fn validate(&self) -> Result<(), DocumentError> {
        let fail = |pointer: &str, message: String| Err(DocumentError::new(pointer, message));
        let container = &self.container;
        if self.replicas > MAX_REPLICAS {
            return fail("/spec/replicas", format!("{} is over the limit of {MAX_REPLICAS}", self.replicas));
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
        if container.image.trim().is_empty() {
            return fail("/spec/container/image", "is empty; name an image".into());
        }
        if container.stop_grace_ms > 3_600_000 {
            return fail(
                "/spec/container/stopGraceMs",
                "is over an hour; a node must be able to shut down".into(),
            );
        }
        for (index, port) in container.ports.iter().enumerate() {
            if port.target == 0 || port.published == Some(0) {
                return fail(&format!("/spec/container/ports/{index}"), "port 0 cannot be served".into());
            }
        }
        for name in container.env.keys() {
            if name.is_empty() || name.contains(['=', '\0']) {
                return fail("/spec/container/env", format!("{name:?} cannot name an environment variable"));
            }
        }
        let resources = &container.resources;
        for (name, request, limit) in [
            ("cpu", resources.cpu_request_millis, resources.cpu_limit_millis),
            ("memory", resources.memory_request_bytes, resources.memory_limit_bytes),
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
        if resources.cpu_limit_millis == Some(0)
            || resources.memory_limit_bytes.is_some_and(|b| b < 4 * 1024 * 1024)
        {
            return fail(
                "/spec/container/resources",
                "no container starts with less than 4 MiB of memory or without CPU".into(),
            );
        }
        if let Some(health) = &container.health
            && (health.command.is_empty()
                || health.interval_ms == 0
                || health.timeout_ms == 0
                || health.retries == 0)
        {
            return fail(
                "/spec/container/health",
                "needs a command, and interval, timeout and retries over 0".into(),
            );
        }
        Ok(())
    }
}
