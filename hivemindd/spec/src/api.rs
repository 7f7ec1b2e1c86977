//! What the HTTP API answers. Field names are camel case; times are milliseconds since 1970;
//! sizes are bytes; CPU is thousandths of a core. Whoever reads an answer skips fields that it does not know, because a
//! later release gave it; what is asked has none.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::certificate::verify_node_chain;
use crate::document::{Ancestor, Document, MAX_ANCESTORS, SpecKey};
use crate::dsse::Envelope;
use crate::id::{ClusterId, Digest, NodeId, ReleaseId};
use crate::key::PublicKey;
use crate::release::Architecture;
use crate::volume::VolumeSpec;

/// `GET /v1/health`, unsigned: answers as soon as the node can serve requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// Whether the node can run workloads now.
    pub ready: bool,
    /// What is missing, in words; empty when ready.
    pub problems: Vec<String>,
}

/// `GET /v1/version`, unsigned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Version {
    /// The daemon's version.
    pub version: String,
    /// The API versions spoken.
    pub api_versions: Vec<String>,
}

/// `POST /v1/specs`: the answer to an accepted push.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Accepted {
    /// The document.
    pub key: SpecKey,
    /// Its revision.
    pub revision: u64,
    /// The digest of the signed bytes.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// False when the very same document was already held.
    pub changed: bool,
    /// The nodes known to hold it durably, the answering one included.
    #[schema(value_type = Vec<String>)]
    pub held_by: Vec<NodeId>,
    /// How many other nodes were asked to hold it before the answer: `min(2, live others)`.
    /// Fewer holders than this plus one means that some did not answer in time; they get it later.
    pub wanted_holders: u32,
}

/// One item of `GET /v1/specs?kind=…&namespace=…&name=…`: current documents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SpecItem {
    /// The document.
    pub key: SpecKey,
    /// Its revision.
    pub revision: u64,
    /// The digest of the signed bytes.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// Whether it is a tombstone.
    pub deleted: bool,
    /// The envelope as it was signed.
    pub envelope: Envelope,
}

impl SpecItem {
    /// The document, unless what is signed is none.
    pub fn document(&self) -> Option<Document> {
        Document::parse(&self.envelope.payload().ok()?).ok()
    }

    /// What a document says its ancestors are that is made from this one: this one, then its own.
    pub fn lineage(&self) -> Vec<Ancestor> {
        let own = Ancestor { revision: self.revision, digest: self.digest };
        let further = self.document().and_then(|document| document.metadata.ancestors).unwrap_or_default();
        [own].into_iter().chain(further).take(MAX_ANCESTORS).collect()
    }
}

/// `POST /v1/nodes/NODE/orders`: what a machine is told to do, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Order {
    /// The node's [`Node::started_ms`]. Every order has it start anew, so each is carried out once, however often a
    /// node in the wrong hands sends it again.
    pub started_ms: u64,
    /// What to do.
    pub action: Action,
}

/// What an [`Order`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Action {
    /// End all that runs, with its grace periods, and start anew.
    Reboot,
    /// The same, and switch off.
    Shutdown,
    /// Start anew, and forget before anything runs again.
    Reset {
        /// What.
        wipe: Wipe,
    },
}

/// What a machine forgets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Wipe {
    /// Containers, images and logs. What is placed on the machine is fetched and started anew.
    Workloads,
    /// That, and its copy of the cluster's state, which the others have. It stays the node that it is.
    State,
    /// Everything, its identity too: it is as it was flashed, and needs a new token to join.
    All,
}

impl Wipe {
    /// Each of them.
    pub const ALL: [Self; 3] = [Self::Workloads, Self::State, Self::All];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Workloads => "workloads",
            Self::State => "state",
            Self::All => "all",
        }
    }

    /// The one that is called so.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|wipe| wipe.name() == name)
    }
}

/// The answer to an [`Order`]: the machine carries it out within a second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Ordered {
    /// Which.
    #[schema(value_type = String)]
    pub node: NodeId,
}

/// `GET /v1/nodes/NODE/support`: what helps to find out what is wrong with a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Support {
    /// Whose it is.
    #[schema(value_type = String)]
    pub node: NodeId,
    /// When it was put together, by the node's clock, milliseconds since 1970.
    pub taken_ms: u64,
    /// Texts by name: `agent.log`, `kernel.log`, `status.json`, files of `/proc`. No documents, no output of
    /// containers, no keys. At most 512 KiB of each.
    pub files: BTreeMap<String, String>,
}

/// What a node can do or has left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Capacity {
    /// CPU, thousandths of a core.
    pub cpu_millis: u64,
    /// Memory, bytes.
    pub memory_bytes: u64,
}

/// How a node looks from the answering one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// Reachable and able to run workloads.
    Ready,
    /// Reachable, but something it needs is missing.
    NotReady,
    /// Not heard of: off, cut off, or crashed.
    Down,
    /// Cut off for good by an operator.
    Revoked,
}

/// The release of the operating system that a node was started with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Release {
    /// Which.
    #[schema(value_type = String)]
    pub id: ReleaseId,
    /// The machines it is for.
    pub architecture: Architecture,
    /// The oldest version that may take its place.
    pub minimum: String,
    /// Whether it still has to prove itself: else the node goes back to the one before.
    pub on_trial: bool,
    /// The releases in the node's boot menu that failed on it, and are not tried again.
    #[schema(value_type = Vec<String>)]
    pub failed: Vec<ReleaseId>,
}

/// How far a node is with a release that it is to take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Update {
    /// Which.
    #[schema(value_type = String)]
    pub release: ReleaseId,
    /// What it does.
    pub phase: UpdatePhase,
    /// Bytes that are in their place.
    pub done_bytes: u64,
    /// Of so many.
    pub total_bytes: u64,
    /// Why it does not get further, in words.
    pub reason: String,
}

/// What a node does to take a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum UpdatePhase {
    /// It writes the release into its spare slot.
    Fetching,
    /// All of it is there. The node starts it once its replicas have left.
    Ready,
    /// It cannot take it, and trying again would not help.
    Failed,
    /// It has the files from a stick, for itself and for others, and it is not its turn yet.
    Brought,
    /// Something that only a later release does.
    #[serde(other)]
    Later,
}

/// One item of `GET /v1/volumes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What is wanted of it; absent when nothing is, and machines have data of that name all the same.
    pub spec: Option<VolumeSpec>,
    /// The workloads that use it, by name.
    pub workloads: Vec<String>,
    /// Where its data is.
    pub parts: Vec<VolumePart>,
}

/// A part of a volume: all that a machine has of it, or what belongs to one replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumePart {
    /// The replica's number where each has its own, else 0.
    pub number: u32,
    /// The node that has it.
    #[schema(value_type = String)]
    pub node: NodeId,
    /// The node's host name.
    pub hostname: String,
    /// Whether the node can be heard.
    pub reachable: bool,
    /// When it was made, milliseconds since 1970.
    pub made_ms: u64,
    /// What is in it, bytes, give or take a sixteenth and a mebibyte; absent where that is not counted.
    pub used_bytes: Option<u64>,
    /// For how long it has waited to be discarded, milliseconds of the node's running; absent: it is not to be.
    pub discarding_ms: Option<u64>,
}

/// One item of `GET /v1/images`: an image that operators gave to nodes, and that no registry need have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct GivenImage {
    /// Its name, without the digest.
    pub name: String,
    /// The digest of its manifest, as OCI writes it.
    pub digest: String,
    /// When it was given last, milliseconds since 1970 by the node's clock.
    pub given_ms: u64,
    /// Which nodes it was given.
    pub nodes: Vec<Holder>,
}

/// What a node that is given an image says it wants next, a line of JSON each: the configuration first, then each layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WantedBlob {
    /// Which blob, as OCI writes its digest.
    pub digest: String,
    /// From which byte on; its size if all of it is there.
    pub from: u64,
}

/// A node that has something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// The node.
    #[schema(value_type = String)]
    pub node: NodeId,
    /// Its host name.
    pub hostname: String,
    /// Whether it can be heard.
    pub reachable: bool,
}

/// One item of `GET /v1/secrets`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Secret {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its revision.
    pub revision: u64,
    /// The version: its document's digest.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// The registry that it opens, if it is for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<String>,
    /// The workloads that use it, by name.
    pub workloads: Vec<String>,
    /// The nodes that can open this version.
    pub nodes: Vec<SecretHolder>,
}

/// A node that can open a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretHolder {
    /// The node.
    #[schema(value_type = String)]
    pub node: NodeId,
    /// Its host name.
    pub hostname: String,
    /// Whether it was cut off since.
    pub revoked: bool,
}

/// One item of `GET /v1/recipients`: a node that secrets are sealed to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Recipient {
    /// The node.
    #[schema(value_type = String)]
    pub node: NodeId,
    /// Its host name.
    pub hostname: String,
    /// Its node CA and token CA, DER in standard base64: the proof, up to the root CA, of which key is its.
    pub chain: Vec<String>,
}

impl Recipient {
    /// The key to seal to, if its certificates lead to `root`, the root CA in DER, and are those of the node.
    pub fn key(&self, root: &[u8]) -> Option<PublicKey> {
        let decoded = self.chain.iter().map(|certificate| STANDARD.decode(certificate));
        let chain = decoded.collect::<Result<Vec<_>, _>>().ok()?;
        let [node_ca, token_ca] = &chain[..] else { return None };
        let owner = verify_node_chain(root, node_ca, token_ca).ok()?;
        (owner.node == self.node).then_some(owner.record_key)
    }
}

/// Bytes in standard base64, as the API has them.
pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// One item of `GET /v1/releases`: how far a release of the operating system has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// The machines it is for.
    pub architecture: Architecture,
    /// Its version.
    pub version: String,
    /// What it is.
    #[schema(value_type = String)]
    pub release: ReleaseId,
    /// How it goes.
    pub state: RolloutState,
    /// Why it goes no further, in words; empty while it does.
    pub reason: String,
    /// Nodes that run it and are well.
    pub done: u32,
    /// Nodes that it is for.
    pub nodes: u32,
    /// Nodes whose turn it is.
    #[schema(value_type = Vec<String>)]
    pub turns: Vec<NodeId>,
}

/// How a rollout goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RolloutState {
    /// From node to node.
    Rolling,
    /// All nodes run it.
    Done,
    /// An operator paused it.
    Paused,
    /// It failed on a node.
    Stopped,
}

/// One item of `GET /v1/nodes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// The node.
    #[schema(value_type = String)]
    pub id: NodeId,
    /// Its host name.
    pub hostname: String,
    /// How it looks from the answering node.
    pub state: NodeState,
    /// Why it is not ready, in words.
    pub problems: Vec<String>,
    /// Whether it is the leader in the answering node's view.
    pub leader: bool,
    /// Whether nothing new is placed on it.
    pub cordoned: bool,
    /// Its address on the underlay, without port.
    pub address: String,
    /// The API's address and port.
    pub api: String,
    /// The subnet of its containers, CIDR; empty until it has one.
    pub subnet: String,
    /// The version of its operating system, of which the daemon is a part.
    pub version: String,
    /// The release it was started with; absent without a boot menu, and then it cannot be updated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Release>,
    /// The release that it is taking; absent while there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<Update>,
    /// Labels from machine configuration and node intent.
    pub labels: BTreeMap<String, String>,
    /// What it can run in all.
    pub capacity: Capacity,
    /// What its replicas have set aside.
    pub requested: Capacity,
    /// Replicas placed on it.
    pub replicas: u32,
    /// When its agent started.
    pub started_ms: u64,
    /// When it enrolled.
    pub enrolled_ms: u64,
}

/// Where a replica is in its life. States only advance, except that a failed one starts anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Not placed on a node; the reason says why.
    Pending,
    /// Placed; its node has not started on it.
    Assigned,
    /// Its image is being fetched.
    Pulling,
    /// Its container is being made and started.
    Starting,
    /// Runs (and its health check, if any, has not failed).
    Running,
    /// Runs, but its health check fails.
    Unhealthy,
    /// Ended, and waits for its next start.
    Backoff,
    /// Is being stopped.
    Stopping,
    /// Ended and will not be started again (restart policy), with success.
    Completed,
    /// Ended and will not be started again, with failure.
    Failed,
    /// Somewhere that only a later release knows.
    #[serde(other)]
    Later,
}

/// One item of `GET /v1/replicas?namespace=…&workload=…`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Replica {
    /// The workload's namespace.
    pub namespace: String,
    /// The workload's name.
    pub workload: String,
    /// The replica's number, from 0.
    pub slot: u32,
    /// Where it is placed; absent while pending.
    #[schema(value_type = Option<String>)]
    pub node: Option<NodeId>,
    /// Host name of that node.
    pub hostname: String,
    /// Where it is in its life.
    pub phase: Phase,
    /// Why it is in that phase, in words: why pending, why it ended, pull progress.
    pub reason: String,
    /// The image reference it runs.
    pub image: String,
    /// Its address in the overlay; empty until it has one.
    pub ip: String,
    /// How often its container was started again.
    pub restarts: u32,
    /// When it entered the phase.
    pub since_ms: u64,
    /// What its container ended with, if it has ended and is not started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u32>,
    /// Pull progress in bytes: done and total, when pulling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull: Option<PullProgress>,
    /// The digest of the current document, when the replica was placed for it and is of what it says;
    /// absent while the change has not reached it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub digest: Option<Digest>,
}

/// How far a pull is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PullProgress {
    /// Bytes fetched.
    pub done_bytes: u64,
    /// Bytes in all; 0 until known.
    pub total_bytes: u64,
}

/// One item of `GET /v1/workloads?namespace=…`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its image reference.
    pub image: String,
    /// Replicas wanted.
    pub replicas: u32,
    /// Replicas running what the current document says.
    pub running: u32,
    /// Its revision.
    pub revision: u64,
    /// Its digest.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// Published ports, `80/tcp -> 8080`.
    pub ports: Vec<String>,
    /// How far it is, if it is a job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Job>,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Job {
    /// Replicas that ended with success.
    pub completed: u32,
    /// Replicas that failed for good.
    pub failed: u32,
    /// Which of its times it was run for last, milliseconds since 1970, if it is run at set times and has been.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_ms: Option<u64>,
    /// When it is run next, milliseconds since 1970, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_ms: Option<u64>,
}

/// `GET /v1/events?seconds=…`: what has happened lately, from all nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Events {
    /// In the order of their times.
    pub items: Vec<Event>,
    /// Nodes that are up and did not answer in time.
    #[schema(value_type = Vec<String>)]
    pub missing: Vec<NodeId>,
}

/// Something that happened, as a node saw it. What concerns all, all say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// The node that says so.
    #[schema(value_type = String)]
    pub node: NodeId,
    /// Its name among that node's events: two answers that have it mean the same one.
    pub id: String,
    /// How long ago it was, milliseconds, by that node's own clock, which no setting of the time changes.
    pub age_ms: u64,
    /// When it was, by the clock of the node that was asked.
    pub time_ms: u64,
    /// How urgent.
    pub level: Severity,
    /// What kind of event, kebab case, stable: `node-down`, `replica-running`.
    pub code: String,
    /// What happened, in words.
    pub text: String,
    /// The workload it is about, as `namespace/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
}

/// How urgent an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Works, but somebody should know.
    Warning,
    /// A person must look.
    Error,
}

/// `GET /v1/devices`: what is built into machines and plugged into them, of what containers can be given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Devices {
    /// Those of the nodes that answered.
    pub items: Vec<MachineDevice>,
    /// Nodes that did not answer in time.
    #[schema(value_type = Vec<String>)]
    pub missing: Vec<NodeId>,
}

/// A device of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MachineDevice {
    /// Whose it is.
    #[schema(value_type = String)]
    pub node: NodeId,
    /// Where it is now: `/dev/ttyUSB0`.
    pub path: String,
    /// The names that it keeps, if it has any: below `/dev/serial/by-id`.
    pub names: Vec<String>,
    /// What it says of itself, or else the driver's name; may be empty.
    pub description: String,
}

/// `GET /v1/stats?namespace=…&workload=…&processes=…`: what running containers use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// One for each running container of the nodes that answered.
    pub items: Vec<Usage>,
    /// Nodes that have containers and did not answer in time.
    #[schema(value_type = Vec<String>)]
    pub missing: Vec<NodeId>,
}

/// What a container has used since it was started, and uses now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// The workload's namespace.
    pub namespace: String,
    /// The workload's name.
    pub workload: String,
    /// The replica's number, from 0.
    pub slot: u32,
    /// Where it runs.
    #[schema(value_type = String)]
    pub node: NodeId,
    /// When that was read, by the node's own clock, which is never set, milliseconds. Only differences of the same node mean
    /// anything.
    pub time_ms: u64,
    /// What was read.
    #[serde(flatten)]
    pub counters: Counters,
    /// Its processes, if they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<Process>,
}

/// A process of a container (proc_pid(5)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Its number on the machine; in the container it has another.
    pub pid: u32,
    /// Whose it is.
    pub uid: u32,
    /// Time of processors, microseconds, since its start.
    pub cpu_us: u64,
    /// Memory in use, bytes, with what it shares with others.
    pub memory_bytes: u64,
    /// How it is: `R`unning, `S`leeping, `D`isk, `Z`ombie, s`T`opped.
    pub state: String,
    /// The program and its arguments, shortened; its name where it has none.
    pub command: String,
}

/// What the kernel counts of a container (control groups, version 2). What begins anew with the container is marked so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// Time of processors, microseconds, since its start.
    pub cpu_us: u64,
    /// Memory, bytes, without what the kernel keeps of files and can drop at once.
    pub memory_bytes: u64,
    /// The most memory it may use, bytes; absent: what the machine has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: u64,
    /// Read from disks, bytes, since its start.
    pub read_bytes: u64,
    /// Written to disks, bytes, since its start.
    pub written_bytes: u64,
    /// Received, bytes, since its start; 0 in the network of its machine.
    pub received_bytes: u64,
    /// Sent, bytes, since its start; 0 in the network of its machine.
    pub sent_bytes: u64,
}

/// `GET /v1/status`: the cluster at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The cluster.
    #[schema(value_type = String)]
    pub cluster: ClusterId,
    /// Its name.
    pub cluster_name: String,
    /// The answering node.
    #[schema(value_type = String)]
    pub node: NodeId,
    /// The leader in its view.
    #[schema(value_type = Option<String>)]
    pub leader: Option<NodeId>,
    /// Nodes ready, of those enrolled.
    pub nodes_ready: u32,
    /// Nodes enrolled and not revoked.
    pub nodes: u32,
    /// Replicas running, of those wanted.
    pub replicas_running: u32,
    /// Replicas wanted.
    pub replicas: u32,
    /// The digest of the whole replicated map: equal on nodes that hold the same.
    pub map_digest: String,
    /// What needs attention, in words, most urgent first.
    pub problems: Vec<String>,
}

/// One line of a container's output, as `GET /v1/logs` streams them (newline-delimited JSON).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LogLine {
    /// When the node read it.
    pub time_ms: u64,
    /// The replica's number.
    pub slot: u32,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// The text, without its newline; bytes that are not UTF-8 are replaced.
    pub line: String,
}
