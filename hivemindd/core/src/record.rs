//! Records: what the replicated map holds (design, section 4).
//!
//! Three kinds, told apart by who may write them: specs by operators' keys, observations by the
//! node they are about, decisions by the leader. The bytes that were signed are kept, so that
//! whoever receives a record, also through others, can check it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use hivemind_spec::api::{Capacity, Phase, PullProgress, Release, Update};
use hivemind_spec::document::{Ancestor, SpecKey};
use hivemind_spec::dsse::Envelope;
use hivemind_spec::id::{Digest, KeyId, NodeId, TokenId};
use hivemind_spec::release::Architecture;
use hivemind_spec::secret::SealedKey;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::form::keeps_unknown;
use crate::time::Hlc;

/// Where a record is in the map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RecordKey {
    /// A document as one signer wants it. Each signer has a place of its own, so that a version
    /// whose signer turns out to have no right to it never displaces one that counts.
    Spec(SpecKey, KeyId),
    /// What a node says about itself.
    Observation(NodeId, Topic),
    /// What a leader decided.
    Decision(Matter),
}

/// What an observation is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub enum Topic {
    /// [`Observation::Enrolment`].
    Enrolment,
    /// [`Observation::Admission`] of that node.
    Admission(NodeId),
    /// [`Observation::Node`].
    Node,
    /// [`Observation::Replica`].
    Replica(ReplicaId),
    /// [`Observation::Overtaken`].
    Overtaken(SpecKey),
    /// [`Observation::Doubled`] of that node.
    Doubled(NodeId),
    /// [`Observation::Volume`].
    Volume(VolumePart),
    /// [`Observation::Shared`] of that secret with that node.
    Shared(SpecKey, NodeId),
    /// [`Observation::Images`].
    Images,
    /// Something that a later release knows.
    #[serde(skip)]
    Unknown(Vec<u8>),
}

keeps_unknown!(Topic);

/// What a decision is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub enum Matter {
    /// [`Decision::Placement`] of a workload.
    Placement(WorkloadId),
    /// [`Decision::Forgotten`].
    Forgotten,
    /// [`Decision::Rollout`] of the release for an architecture.
    Rollout(Architecture),
    /// [`Decision::Job`] of a workload whose replicas come to an end.
    Job(WorkloadId),
    /// Something that a later release knows.
    #[serde(skip)]
    Unknown(Vec<u8>),
}

keeps_unknown!(Matter);

/// A workload's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkloadId {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// One of a workload's replicas.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplicaId {
    /// The workload.
    pub workload: WorkloadId,
    /// The replica's number, from 0.
    pub slot: u32,
}

impl std::fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}-{}", self.workload.namespace, self.workload.name, self.slot)
    }
}

/// A volume's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VolumeId {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// One of a volume's parts: all of it, or what belongs to one replica.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VolumePart {
    /// The volume.
    pub volume: VolumeId,
    /// The replica's number where each has its own, else 0.
    pub number: u32,
}

impl std::fmt::Display for VolumeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl std::fmt::Display for VolumePart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.volume, self.number)
    }
}

/// The cluster's DNS domain.
pub const DNS_APEX: &str = "hive.internal";

impl WorkloadId {
    /// The name all serving replicas answer to, without the final dot.
    pub fn dns_name(&self) -> String {
        format!("{}.{}", self.name, self.search_domain())
    }

    /// The domain that containers of its namespace search, so that short names work.
    pub fn search_domain(&self) -> String {
        format!("{}.{DNS_APEX}", self.namespace)
    }
}

impl ReplicaId {
    /// The name of this one replica. `SLOT.NAME` and not `NAME-SLOT`, because the latter may be
    /// another workload's name.
    pub fn dns_name(&self) -> String {
        format!("{}.{}", self.slot, self.workload.dns_name())
    }
}

/// A record as it travels and is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// A document, byte for byte as signed.
    Spec(Envelope),
    /// A statement by a node, as an observation or as a leader's decision.
    Statement(Statement),
}

/// Bytes signed with a node's record key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// Who signed.
    pub writer: NodeId,
    /// A [`Body`] ([`crate::statement`]).
    pub body: Vec<u8>,
    /// Ed25519 over a domain separator and `body`.
    pub signature: Vec<u8>,
}

/// What a statement's bytes mean.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one at a time, while a statement is written or checked"
)]
pub enum Body {
    /// About the writer itself. Version: (boot counter, sequence).
    Observation {
        /// How often the writer has booted.
        boot: u64,
        /// Counts the writer's observations within one boot.
        sequence: u64,
        /// What it says; `None` takes back what it said before.
        topic: Topic,
        /// The statement.
        observation: Option<Observation>,
    },
    /// By the leader. Version: (clock, writer).
    Decision {
        /// When, in the leader's hybrid clock.
        clock: Hlc,
        /// About what.
        matter: Matter,
        /// What was decided; `None` when the matter no longer exists.
        decision: Option<Decision>,
    },
}

/// What nodes say about themselves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Observation {
    /// That the node exists, by which token, and which subnet it took.
    Enrolment(Enrolment),
    /// That the writer, already a member, admitted another node: the countersignature.
    Admission {
        /// The token the node came with.
        token: TokenId,
        /// When, wall milliseconds.
        admitted_ms: u64,
    },
    /// How the node is.
    Node(NodeStatus),
    /// How one of its replicas is.
    Replica(ReplicaStatus),
    /// That a version of a document, which the writer had accepted from an operator, lost its place to
    /// one whose signer did not know it.
    Overtaken(Overtaken),
    /// That another node runs twice: on two machines at once, with the same identity.
    Doubled(Doubled),
    /// That it holds a part of a volume.
    Volume(VolumeStatus),
    /// A key to a secret for another node, made by the writer, who can open it.
    Shared(SharedKey),
    /// The images it was given, which no registry need have, by their names without digests.
    Images(BTreeMap<String, GivenImage>),
    /// Something that a later release understands.
    #[serde(skip)]
    Unknown,
}

/// An image that an operator gave a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenImage {
    /// Of its manifest.
    pub digest: Digest,
    /// When, wall milliseconds of that node.
    pub given_ms: u64,
}

impl GivenImage {
    /// How containers name it.
    pub fn reference(&self, name: &str) -> String {
        format!("{name}@sha256:{}", self.digest)
    }
}

/// A key to a secret, for a node that its document was not sealed to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedKey {
    /// The version of the secret's document.
    pub digest: Digest,
    /// The key.
    pub key: SealedKey,
}

/// A part of a volume on the node that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// When it was made, wall milliseconds of that node.
    pub made_ms: u64,
    /// What is in it, bytes, give or take a sixteenth and a mebibyte; absent where that is not counted.
    pub used_bytes: Option<u64>,
    /// For how long it has waited to be discarded, milliseconds of the node's running; absent: it is not to be.
    pub discarding_ms: Option<u64>,
}

/// A node that runs twice: its disk was copied, and the copy started beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doubled {
    /// Where the two were heard last: equal if they share an address, behind a translator of addresses.
    pub addresses: [SocketAddr; 2],
    /// When the writer last heard both, wall milliseconds, give or take two minutes.
    pub seen_ms: u64,
}

/// A version that lost its place to one whose signer did not know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overtaken {
    /// The version that lost.
    pub version: Ancestor,
    /// Who signed it.
    pub signer: KeyId,
    /// The digest of the version that won.
    pub by: Digest,
    /// Who signed that.
    pub by_signer: KeyId,
    /// When the writer found out, wall milliseconds.
    pub since_ms: u64,
}

/// A node's entry into the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolment {
    /// Node CA and token CA, DER: the proof, up to the root CA.
    pub chain: Vec<ByteBuf>,
    /// The token it came with.
    pub token: TokenId,
    /// When it enrolled, wall milliseconds.
    pub enrolled_ms: u64,
    /// Which /24 of the container range it took; absent before its first sync.
    pub subnet: Option<u16>,
}

/// How a node is. Changes rarely: what ticks does not belong here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its host name.
    pub hostname: String,
    /// Its underlay address.
    pub address: IpAddr,
    /// MAC address of its VXLAN device.
    pub vtep_mac: [u8; 6],
    /// The version of its operating system.
    pub version: String,
    /// The release it was started with; absent without a boot menu.
    pub release: Option<Release>,
    /// The release that it is taking.
    pub update: Option<Update>,
    /// Labels from its machine configuration.
    pub labels: BTreeMap<String, String>,
    /// What its workloads may use in all.
    pub capacity: Capacity,
    /// What is missing for it to run workloads, in words; empty when ready.
    pub problems: Vec<String>,
    /// When its agent started, wall milliseconds.
    pub started_ms: u64,
    /// Whether its release cannot read all documents that count: it takes part in rollouts although it is not ready.
    pub outdated: bool,
}

/// How a replica is, in its node's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// What it runs ([`hivemind_spec::workload::WorkloadSpec::template`]).
    pub template: Digest,
    /// Where it is in its life.
    pub phase: Phase,
    /// Why, in words.
    pub reason: String,
    /// Its address in the overlay, once it has one.
    pub ip: Option<Ipv4Addr>,
    /// How often its container was started again.
    pub restarts: u32,
    /// When it entered the phase, wall milliseconds.
    pub since_ms: u64,
    /// Pull progress, when pulling.
    pub pull: Option<PullProgress>,
}

/// What leaders decide.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Decision {
    /// Which replica runs where.
    Placement(Placement),
    /// Which old deletions need not be remembered any longer.
    Forgotten(Forgotten),
    /// Which nodes may take a release of the operating system.
    Rollout(Rollout),
    /// How far a job is.
    Job(JobProgress),
    /// Something that a later release understands.
    #[serde(skip)]
    Unknown,
}

/// How far a workload is whose replicas come to an end. Outlives the nodes on which they ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobProgress {
    /// What its replicas run: of a job that is run at set times, another one for each.
    pub template: Digest,
    /// Which of the times it is run for, wall milliseconds; absent when there are none set.
    pub run_ms: Option<u64>,
    /// The slots that have ended with success, and are not run again.
    pub completed: BTreeSet<u32>,
}

/// How far a release of the operating system is rolled out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// The version of its document.
    pub digest: Digest,
    /// The nodes that may take it now.
    pub turns: BTreeSet<NodeId>,
    /// Why nobody may any longer, in words; empty while it goes on.
    pub stopped: String,
}

/// Deletions that are old and known to every node, and what they hid.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    /// The records that go: hash of the key and of the version, as in anti-entropy.
    pub records: BTreeSet<(u64, u64)>,
    /// The highest revision of any record that ever went this way. A document from before, of a name
    /// that is not held, may have been deleted.
    pub until_revision: u64,
}

/// A workload's replicas and their nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The version of the document placed.
    pub digest: Option<Digest>,
    /// Slot to node.
    pub slots: BTreeMap<u32, NodeId>,
    /// Why slots are pending, in words: all that are missing above, and those above whose node is
    /// down and for which no other was found.
    pub pending: BTreeMap<u32, String>,
}
