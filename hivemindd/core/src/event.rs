//! What the core is told and what it wants done: the whole border between deciding and acting.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use hivemind_spec::api::{Accepted, Capacity, PullProgress, Release, Severity, Update};
use hivemind_spec::document::SpecKey;
use hivemind_spec::dsse::Envelope;
use hivemind_spec::id::{Digest, NodeId, ReleaseId};
use hivemind_spec::problem::Problem;
use hivemind_spec::release::OsReleaseSpec;
use hivemind_spec::secret::{SealedKey, SecretSpec};
use hivemind_spec::workload::{ContainerSpec, HealthCheck, Protocol};
use serde::{Deserialize, Serialize};

use crate::isolation::{Isolation, NetworkId};
use crate::lease::Letter;
use crate::record::{GivenImage, Record, RecordKey, ReplicaId, VolumePart, WorkloadId};
use crate::time::Time;

/// Names a request so that its answer finds it. Given by the edge, never reused while it runs.
pub type RequestId = u64;

/// Names a batch of writes. Counts up within one run of the agent.
pub type BatchId = u64;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The time asked for by [`Action::WakeAt`] has come. Harmless when early.
    TimerFired,
    /// A message arrived. The edge has checked by mTLS that `from` sent it.
    Received {
        /// The peer's node id, from its certificate.
        from: NodeId,
        /// The peer's address as seen here.
        address: SocketAddr,
        /// What it said.
        message: Message,
    },
    /// A connection to a peer is up (either side may have opened it). Its certificate chain leads
    /// to the root CA.
    Connected {
        /// The peer.
        peer: Peer,
        /// Its node CA and token CA, DER.
        chain: Vec<Vec<u8>>,
    },
    /// The connection to a peer ended.
    Disconnected {
        /// The peer's id.
        node: NodeId,
    },
    /// Somebody may be at this address: seed, mDNS answer or remembered member. A hint, never
    /// trusted.
    Hint {
        /// The address of its QUIC port.
        address: SocketAddr,
    },
    /// The batch is durable.
    Persisted {
        /// Which.
        batch: BatchId,
    },
    /// The batch could not be made durable; nothing of it counts.
    PersistFailed {
        /// Which.
        batch: BatchId,
        /// Why, in words.
        reason: String,
    },
    /// An operator pushes a document (any road: API, USB stick, peer forward).
    Push {
        /// Where the answer goes.
        request: RequestId,
        /// The envelope as it came.
        envelope: Envelope,
    },
    /// What the container runtime holds now. Sent at start, after every change and every few
    /// seconds.
    Observed {
        /// All containers that are Hivemind's.
        inventory: Inventory,
    },
    /// A runtime operation ended.
    Done {
        /// Which.
        operation: OperationId,
        /// How.
        result: Result<(), OperationError>,
    },
    /// A pull advanced.
    PullProgressed {
        /// Which operation.
        operation: OperationId,
        /// How far it is.
        progress: PullProgress,
    },
    /// A health check ran.
    HealthChecked {
        /// The container.
        container: ContainerId,
        /// Whether it passed.
        healthy: bool,
        /// Its output or error, shortened.
        detail: String,
    },
    /// The containers here are short of something: what they use together cannot grow any more.
    Short {
        /// Of what.
        of: Scarce,
        /// What each uses.
        uses: BTreeMap<ContainerId, u64>,
    },
    /// How far the node is with the release it is to take ([`Action::Update`]).
    Updating {
        /// The release, what is done, and what stands against it.
        update: Update,
    },
    /// A stick brought a release: its files are here, whether it is wanted or not.
    Brought {
        /// Which; none once they are gone.
        release: Option<ReleaseId>,
    },
    /// Which of the devices that are asked for ([`Action::LookFor`]) the machine has, by path: on every change.
    Devices {
        /// Whether it is there.
        found: BTreeMap<String, bool>,
    },
    /// What the node is, on start and on every change.
    Facts {
        /// The facts.
        facts: NodeFacts,
    },
}

/// What the edge knows about its own node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// Host name.
    pub hostname: String,
    /// Underlay address; absent while there is no network.
    pub address: Option<IpAddr>,
    /// Labels from the machine configuration.
    pub labels: BTreeMap<String, String>,
    /// What workloads may use in all.
    pub capacity: Capacity,
    /// The version of the operating system, of which the daemon is a part.
    pub version: String,
    /// The release of the operating system; absent without a boot menu. While it is on trial it may have to be called
    /// good ([`Action::CallReleaseGood`]).
    pub release: Option<Release>,
    /// What keeps the node from running workloads (containerd down, disk full), in words.
    pub problems: Vec<String>,
}

/// A peer and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Peer {
    /// Its id.
    pub node: NodeId,
    /// The address of its QUIC port.
    pub address: SocketAddr,
}

/// What is to be done. The edge starts actions in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Write, flush, then tell [`Event::Persisted`]. What depends on it is held back by the core.
    Persist {
        /// Names the batch.
        batch: BatchId,
        /// Key and value; `None` removes.
        writes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    },
    /// Send to a peer, connecting first if need be. Lost messages are the core's business.
    Send {
        /// To whom.
        to: Peer,
        /// What.
        message: Message,
    },
    /// Connect to an address, whoever is there.
    Connect {
        /// The address of its QUIC port.
        address: SocketAddr,
    },
    /// Close the connection to a peer and refuse it, because it was revoked or refused.
    Refuse {
        /// The peer.
        node: NodeId,
        /// Why, in words: told to the peer and logged on both sides.
        reason: String,
    },
    /// Do something to containers; answer with [`Event::Done`].
    Runtime {
        /// Names the operation.
        operation: OperationId,
        /// What.
        op: RuntimeOp,
    },
    /// Make the node's overlay network so. Always the whole plan; sent when it changes.
    Network(NetworkPlan),
    /// Let the node's containers reach whom they may and nobody else. Always the whole of it; sent when it changes,
    /// and before a container starts that it is for.
    Isolate(Isolation),
    /// Answer DNS questions from this. Always the whole zone; sent when it changes.
    Zone(Zone),
    /// Check these containers' health at their intervals and tell [`Event::HealthChecked`].
    /// Always the whole list; sent when it changes.
    HealthChecks(BTreeMap<ContainerId, HealthCheck>),
    /// Let these running containers have these versions of their secrets, by the secrets' names. What was said about
    /// other containers no longer holds, and theirs stay as they are. Sent when it changes.
    Secrets(BTreeMap<ContainerId, BTreeMap<String, SealedSecret>>),
    /// See whether the machine has these devices, by path, and tell [`Event::Devices`], now and when one comes or goes.
    /// Always the whole list; sent when it changes.
    LookFor(BTreeSet<String>),
    /// See that these containers do not run after that, [`Time::mono_ms`], whatever becomes of the agent:
    /// their leases end. Takes the place of what was said about the same containers before; what was
    /// said about others stands. To be done before anything that comes after it.
    Fence(BTreeMap<ContainerId, u64>),
    /// Remember this node's subnet where it survives the loss of the store, for [`Settings::subnet`].
    ///
    /// [`Settings::subnet`]: crate::node::Settings::subnet
    RememberSubnet(u16),
    /// The node is well on the release of the operating system that is on trial: it is to be started from now on.
    CallReleaseGood,
    /// Write this release into the spare slot, and tell [`Event::Updating`]; what is already there need not come
    /// again. None: leave the spare slot alone. Sent when it changes.
    Update(Option<Box<UpdateOrder>>),
    /// The release that was written is to be tried: enter it in the boot menu and start the machine anew.
    StartRelease(ReleaseId),
    /// Answer a push.
    Reply {
        /// Which.
        request: RequestId,
        /// How.
        result: Result<Accepted, Problem>,
    },
    /// Call back with [`Event::TimerFired`] at this monotonic time; replaces the one before.
    WakeAt {
        /// [`Time::mono_ms`].
        mono_ms: u64,
    },
    /// Tell people.
    Note(Note),
}

/// The nodes that have an image or fetch it, for another that lacks it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImagePeers {
    /// Those that fetch it from its registry rather than this node, the first of them most of all. They are waited
    /// for while they get further.
    pub before: Vec<Peer>,
    /// Others that may have it. Nobody waits for them: they may wait for this node.
    pub others: Vec<Peer>,
}

/// A release to be written into the spare slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateOrder {
    /// What it is, and where it comes from.
    pub spec: OsReleaseSpec,
    /// Nodes that run it: to be asked before anybody else.
    pub peers: Vec<Peer>,
}

/// What the containers of a node have together, and can be short of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scarce {
    /// Memory that cannot be taken back from who uses it, bytes.
    Memory,
    /// Processes and threads, by number.
    Processes,
    /// Room on the disk, bytes: what each wrote beside its volumes.
    Disk,
}

/// Where `Node::step` puts what it wants done.
pub type Actions = Vec<Action>;

/// Something worth a line in the log and in the event stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// How urgent.
    pub level: Severity,
    /// A stable code, kebab case: `node-joined`, `join-refused`, `replica-started`.
    pub code: String,
    /// What happened, in words.
    pub text: String,
    /// The workload it is about.
    pub workload: Option<WorkloadId>,
    /// When.
    pub time: Time,
}

/// What nodes say to each other, in the fixed form ([`crate::form`]): a later release adds kinds at the end, and sends
/// them to whoever it likes, because those that do not know them let them be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// A SWIM packet (foca's bytes); travels as a datagram when it fits.
    Swim(Vec<u8>),
    /// Which start of the sender's agent this is: the first message on a new connection. The number is
    /// drawn anew at each start.
    Hello {
        /// The number.
        run: u64,
    },
    /// All members the sender knows: sent on a new connection, because SWIM alone spreads slowly.
    Members(Vec<Peer>),
    /// Anti-entropy, first step: one digest per key range.
    Digests(Vec<u64>),
    /// Second step: what the sender has in the ranges that differ, as (key hash, version hash).
    Ranges(Vec<(u16, Vec<(u64, u64)>)>),
    /// Third step: send me the records with these key hashes.
    Want(Vec<u64>),
    /// Records, pushed on change or sent on request. `ack` asks for [`Message::Stored`].
    Records {
        /// The records.
        records: Vec<(RecordKey, Record)>,
        /// Echoed in the acknowledgement.
        ack: Option<u64>,
    },
    /// The records that came with this `ack` are durable here.
    Stored {
        /// The same number.
        ack: u64,
    },
    /// About the lease of a workload of which there must never be two.
    Lease(Letter),
    /// The sender was told to leave, and why.
    Refused {
        /// In words.
        reason: String,
    },
}

impl Message {
    /// How many kinds there are.
    const KINDS: u32 = 10;

    /// Whether these bytes are of a kind of message that only a later release knows.
    pub fn is_later(bytes: &[u8]) -> bool {
        postcard::take_from_bytes(bytes).is_ok_and(|(kind, _): (u32, _)| kind >= Self::KINDS)
    }

    /// Whether the message may be lost or overtaken: it then travels as a datagram if it fits.
    pub fn is_datagram(&self) -> bool {
        matches!(self, Message::Swim(_))
    }
}

/// Names a container: `hm-` and 16 hexadecimal digits of the hash of replica and template.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContainerId(pub String);

/// Names a runtime operation. Counts up within one run of the agent.
pub type OperationId = u64;

/// What is done to containers. Every operation is idempotent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RuntimeOp {
    /// Fetch, verify and unpack an image unless it is there.
    Pull {
        /// The reference.
        image: String,
        /// What opens its registry, if something is needed: [`hivemind_spec::secret::Credentials`].
        credentials: Option<Box<SealedSecret>>,
        /// Who else has it or fetches it.
        peers: ImagePeers,
    },
    /// Make the network namespace, snapshot, container and task, and start it. The image is there.
    Start(Box<ContainerPlan>),
    /// Ask the task to end, then kill it after the grace period. Done when it has ended.
    Stop {
        /// Which.
        container: ContainerId,
        /// `SIGTERM` and the like; absent: the image's, else SIGTERM.
        signal: Option<String>,
        /// Milliseconds before SIGKILL.
        grace_ms: u64,
        /// Whether it gets no more memory from now on: it makes room for others.
        makes_room: bool,
    },
    /// Remove task, container, snapshot, network namespace and cgroup. Also of half-made ones.
    Remove {
        /// Which.
        container: ContainerId,
        /// Whether its logs go too (the replica is gone), or stay (it will be made anew).
        logs: bool,
    },
    /// Limit a part of a volume.
    LimitVolume(VolumePlan),
    /// Remove an image, and what no other has of it. No container uses it.
    RemoveImage {
        /// Its reference.
        image: String,
    },
    /// Delete a part of a volume with all that is in it. No container uses it.
    DeleteVolume {
        /// Which.
        part: VolumePart,
    },
}

/// MTU of containers' interfaces: an Ethernet underlay's 1500 less VXLAN's 50 bytes. Where the
/// underlay has less, the edge uses less.
pub const OVERLAY_MTU: u32 = 1450;

/// All that is needed to start a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerPlan {
    /// Its id.
    pub id: ContainerId,
    /// Kept in its labels, so that it is adopted after an agent restart.
    pub labels: ContainerLabels,
    /// What to run.
    pub spec: ContainerSpec,
    /// Its host name.
    pub hostname: String,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Prefix length of the node's subnet.
    pub prefix: u8,
    /// The bridge's address: default gateway and name server.
    pub gateway: Ipv4Addr,
    /// DNS search domain: `NAMESPACE.hive.internal`.
    pub search: String,
    /// MTU of the overlay.
    pub mtu: u32,
    /// Its volumes, by name.
    pub volumes: BTreeMap<String, VolumePlan>,
    /// Its secrets, by name.
    pub secrets: BTreeMap<String, SealedSecret>,
}

/// What a container is, kept in its containerd labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerLabels {
    /// The replica.
    pub replica: ReplicaId,
    /// What it runs ([`hivemind_spec::workload::WorkloadSpec::template`]).
    pub template: hivemind_spec::id::Digest,
    /// Its address.
    pub ip: Ipv4Addr,
    /// How often the replica was started again before this container.
    pub restarts: u32,
    /// What it has of its node, of what workloads may use in all.
    pub asks: Capacity,
}

/// What the runtime holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Containers by id.
    pub containers: BTreeMap<ContainerId, ContainerState>,
    /// References of images that are there and unpacked.
    pub images: BTreeSet<String>,
    /// Images that operators gave this node, by their names without digests. They are among the others.
    pub given: BTreeMap<String, GivenImage>,
    /// References of images that containers were made of.
    pub used_images: BTreeSet<String>,
    /// The disk that all of it is on; absent when it cannot be looked at.
    pub disk: Option<DiskState>,
    /// Parts of volumes.
    pub volumes: BTreeMap<VolumePart, VolumeState>,
}

/// How full a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskState {
    /// Bytes in use.
    pub used_bytes: u64,
    /// Bytes that may be used in all, without what is set aside for the machine itself.
    pub total_bytes: u64,
}

impl DiskState {
    /// How much of it is in use, percent; all of a disk that has nothing.
    pub fn used_percent(self) -> u64 {
        self.used_bytes.saturating_mul(100).checked_div(self.total_bytes).unwrap_or(100)
    }
}

/// A part of a volume that exists.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeState {
    /// When it was made, wall milliseconds.
    pub made_ms: u64,
    /// What is in it, bytes; absent where that is not counted, and nothing can be limited.
    pub used_bytes: Option<u64>,
    /// The most it may hold, bytes; absent: what the machine has.
    pub size_bytes: Option<u64>,
}

/// A volume as a container is to find it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumePlan {
    /// The part that is its; made if it is not there.
    pub part: VolumePart,
    /// The most it may hold, bytes; absent: what the machine has.
    pub size_bytes: Option<u64>,
}

/// A version of a secret, and what this node opens it with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedSecret {
    /// Its document's name.
    pub name: SpecKey,
    /// The version: digest of its document.
    pub digest: Digest,
    /// Its content, sealed.
    pub spec: Arc<SecretSpec>,
    /// Keys to it that were sealed to this node, to be tried in order.
    pub keys: Vec<SealedKey>,
}

/// A container that exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    /// What it is; absent when its labels cannot be read (then it is removed).
    pub labels: Option<ContainerLabels>,
    /// How its task is.
    pub task: TaskState,
}

/// How a container's task is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskState {
    /// There is none: half made, or lost in a power cut.
    Absent,
    /// It runs.
    Running,
    /// It ended.
    Exited {
        /// Exit code; 128 + signal when killed.
        code: u32,
        /// When, wall milliseconds.
        at_ms: u64,
        /// Of what there was too little, if the kernel killed it for its memory.
        oom: Option<Shortage>,
    },
}

/// Whose memory there was too little of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shortage {
    /// Its own: it wanted more than its limit.
    Own,
    /// That of all containers of the machine, or of the machine itself.
    Machine,
}

/// Why an operation failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct OperationError {
    /// What went wrong and where, in words for `hivemind ps`.
    pub text: String,
    /// Whether trying the same again cannot help (malformed reference, missing platform).
    pub permanent: bool,
}

/// The overlay network as it should be on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPlan {
    /// This node's part; absent until it has a subnet and an underlay address.
    pub local: Option<LocalNetwork>,
    /// One per other node.
    pub peers: BTreeMap<NodeId, PeerNetwork>,
    /// Published ports and where they lead: live replicas anywhere in the cluster.
    pub published: BTreeMap<(Protocol, u16), BTreeSet<(Ipv4Addr, u16)>>,
}

/// This node's part of the overlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalNetwork {
    /// First address of the node's /24.
    pub subnet: Ipv4Addr,
    /// Prefix length of the node's subnet.
    pub prefix: u8,
    /// The bridge's address in it: the first.
    pub gateway: Ipv4Addr,
    /// The whole container range: network and prefix length (not masqueraded).
    pub range: (Ipv4Addr, u8),
    /// VXLAN network identifier.
    pub vni: u32,
    /// Underlay address VXLAN is pinned to. While it is unknown (no link, no lease yet) containers
    /// have their bridge, and what leads to other nodes stays as it is.
    pub underlay: Option<IpAddr>,
    /// MAC address of the VXLAN device, derived from the node id.
    pub vtep_mac: [u8; 6],
}

/// Another node's part of the overlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerNetwork {
    /// First address of its /24.
    pub subnet: Ipv4Addr,
    /// Prefix length of its subnet.
    pub prefix: u8,
    /// Its VXLAN device's address inside the overlay (used as gateway of the route).
    pub vtep: Ipv4Addr,
    /// MAC address of its VXLAN device.
    pub vtep_mac: [u8; 6],
    /// Its underlay address.
    pub underlay: IpAddr,
}

/// The cluster's DNS zone `hive.internal` as this node answers it. Names are lower case, without
/// the final dot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone {
    /// Name to addresses of live replicas; a name with none exists but has no address.
    pub addresses: BTreeMap<String, BTreeSet<Ipv4Addr>>,
    /// Other names to names of `addresses`, and the networks in which they hold if that is not all; of several, one
    /// that has addresses answers.
    pub aliases: BTreeMap<String, BTreeSet<(Option<NetworkId>, String)>>,
    /// `_PORT._PROTO.NAME…` to (port, target name).
    pub services: BTreeMap<String, BTreeSet<(u16, String)>>,
    /// Address to name, for reverse look-ups.
    pub pointers: BTreeMap<Ipv4Addr, String>,
    /// Names of workloads to the networks they are in: whoever asks is told of those in networks of its own.
    pub networks: BTreeMap<String, BTreeSet<NetworkId>>,
}
