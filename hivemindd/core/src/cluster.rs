//! What the records say, verified and put together: the one picture of the cluster that every
//! deciding module reads. It follows from the map and holds nothing of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use hivemind_spec::api::{Phase, UpdatePhase};
use hivemind_spec::document::{Kind, NodeIntentSpec, SpecKey};
use hivemind_spec::id::{Digest, NodeId};
use hivemind_spec::namespace::NamespaceSpec;
use hivemind_spec::release::{Architecture, OsReleaseSpec};
use hivemind_spec::secret::SecretSpec;
use hivemind_spec::volume::VolumeSpec;
use hivemind_spec::workload::{Constraint, Operator, Protocol, Takeover, WorkloadSpec};
use serde::{Deserialize, Serialize};

use crate::device;
use crate::mutation::{Mutation, is_on};
use crate::record::{
    Doubled, Enrolment, Forgotten, GivenImage, JobProgress, NodeStatus, Overtaken, Placement, ReplicaId,
    ReplicaStatus, Rollout, SharedKey, VolumeId, VolumePart, VolumeStatus, WorkloadId,
};
use crate::time::{Hlc, Time};

/// The cluster according to the records held here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Workloads that count: signed by a key with the right to it, not deleted.
    pub workloads: BTreeMap<WorkloadId, Workload>,
    /// Workloads of which there are documents here, and none that counts: they were deleted, or their signers may
    /// not write them. Of others that are not here, the documents may be on their way.
    pub gone: BTreeSet<WorkloadId>,
    /// Nodes that enrolled, revoked ones included.
    pub nodes: BTreeMap<NodeId, Node>,
    /// Volumes that count.
    pub volumes: BTreeMap<VolumeId, VolumeSpec>,
    /// Namespaces that have a document, by name.
    pub namespaces: BTreeMap<String, NamespaceSpec>,
    /// Secrets that count.
    pub secrets: BTreeMap<SpecKey, Secret>,
    /// Keys to secrets that nodes made for others: by secret, by the node that has it, and by the one that made it.
    pub shared_keys: BTreeMap<(SpecKey, NodeId, NodeId), SharedKey>,
    /// Which nodes say that they have which parts of volumes.
    pub volume_parts: BTreeMap<(VolumePart, NodeId), VolumeStatus>,
    /// The images that nodes were given, by their names.
    pub images: BTreeMap<NodeId, BTreeMap<String, GivenImage>>,
    /// How replicas are, by the node that says so.
    pub replicas: BTreeMap<(ReplicaId, NodeId), ReplicaStatus>,
    /// Where replicas were placed.
    pub placements: BTreeMap<WorkloadId, Placement>,
    /// How far workloads are whose replicas come to an end.
    pub jobs: BTreeMap<WorkloadId, JobProgress>,
    /// Versions of documents that lost their place to one whose signer did not know them.
    pub overtaken: BTreeMap<SpecKey, Overtaken>,
    /// Nodes that run on two machines at once.
    pub doubled: BTreeMap<NodeId, Doubled>,
    /// Which old deletions are forgotten.
    pub forgotten: Forgotten,
    /// Releases of the operating system that count.
    pub os_releases: BTreeMap<Architecture, OsRelease>,
    /// How far they are rolled out.
    pub rollouts: BTreeMap<Architecture, Rollout>,
    /// Documents that count and that a later release can read: what they want is not known here.
    pub unread: BTreeSet<SpecKey>,
}

/// A release of the operating system that counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OsRelease {
    /// Digest of its document.
    pub digest: Digest,
    /// Its content.
    pub spec: OsReleaseSpec,
}

impl OsRelease {
    /// The name of the document of an architecture's release.
    pub fn name(architecture: Architecture) -> SpecKey {
        SpecKey { kind: Kind::OsRelease, namespace: String::new(), name: architecture.name().to_owned() }
    }
}

/// A secret that counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// Revision of its document.
    pub revision: u64,
    /// Digest of its document.
    pub digest: Digest,
    /// The registry that it opens, if it is for one.
    pub registry: Option<String>,
    /// Its content, sealed. Shared, because it may be large.
    pub spec: Arc<SecretSpec>,
}

/// A workload that counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Revision of its document.
    pub revision: u64,
    /// Digest of its document.
    pub digest: Digest,
    /// Digest of what each replica runs ([`WorkloadSpec::template`]); of a job that is run at set times, of what
    /// it runs this time.
    pub template: Digest,
    /// Which of the times it is run for, if it is run at set times, wall milliseconds; absent before the first.
    pub run_ms: Option<u64>,
    /// The slots that have ended with success, and are not run again.
    pub completed: BTreeSet<u32>,
    /// Its content.
    pub spec: WorkloadSpec,
}

impl Workload {
    /// From a document's revision, digest and content.
    pub fn new(revision: u64, digest: Digest, spec: WorkloadSpec) -> Self {
        let template = spec.template();
        Self { revision, digest, template, run_ms: None, completed: BTreeSet::new(), spec }
    }

    /// Takes up how far it is. One that is run at set times goes on with what it was begun with, also when its
    /// document says something else by now: that is for the next time.
    pub fn take(&mut self, progress: Option<&JobProgress>) {
        let run = progress.filter(|_| self.spec.schedule().is_some());
        let run = run.and_then(|progress| Some((progress.run_ms?, progress.template)));
        self.run_ms = run.map(|(at_ms, _)| at_ms);
        self.template = run.map_or_else(|| self.spec.template(), |(_, template)| template);
        let same = progress.filter(|progress| self.spec.completes() && progress.template == self.template);
        self.completed = same.map(|progress| progress.completed.clone()).unwrap_or_default();
    }

    /// Whether it is run at set times, and the first has not come.
    pub fn waits_for_its_time(&self) -> bool {
        self.spec.schedule().is_some() && self.run_ms.is_none()
    }

    /// Whether a replica has ended with success, and is not run again.
    pub fn is_done(&self, slot: u32) -> bool {
        self.completed.contains(&slot) && !is_on(Mutation::EndsAreForgotten)
    }

    /// Whether its replicas may go elsewhere when their node starts anew.
    pub fn may_leave(&self) -> bool {
        self.spec.takeover != Takeover::Never
    }
}

/// A node that enrolled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// How it entered.
    pub enrolment: Enrolment,
    /// What it says about itself; absent when it never said.
    pub status: Option<NodeStatus>,
    /// What operators want of it.
    pub intent: Option<NodeIntentSpec>,
    /// The revision of the document that says so, milliseconds; 0 when there is none.
    pub intended_ms: u64,
}

impl Node {
    /// Whether operators cut it off for good.
    pub fn is_revoked(&self) -> bool {
        self.intent.as_ref().is_some_and(|intent| intent.revoked)
    }

    /// Whether what it decides, as a leader, counts. What it decided before operators cut it off does,
    /// until another has decided: nobody's replicas move because of that. Goes by the decision itself and
    /// not by when it came, so that all nodes end with the same.
    pub fn may_decide(&self, clock: Hlc) -> bool {
        !self.is_revoked() || clock.wall_ms <= self.intended_ms
    }

    /// Whether nothing new may be placed on it.
    pub fn is_cordoned(&self) -> bool {
        self.intent.as_ref().is_some_and(|intent| intent.cordoned)
    }

    /// Whether it says that it can run workloads.
    pub fn is_ready(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.problems.is_empty())
    }

    /// Labels from its machine configuration, then those operators gave it.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.status.as_ref().map(|s| s.labels.clone()).unwrap_or_default();
        if let Some(intent) = &self.intent {
            labels.extend(intent.labels.clone());
        }
        labels
    }
}

/// Who can be reached, according to SWIM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Liveness {
    /// Members this node hears of, itself included.
    pub alive: BTreeSet<NodeId>,
    /// When each enrolled node was last alive; absent: never seen here.
    pub last_seen: BTreeMap<NodeId, LastSeen>,
    /// Those of `alive` to which there is no connection: it ended and was not made again, or they are known by
    /// hearsay only. SWIM has not given them up, but they are no evidence that this side is the larger one.
    pub silent: BTreeSet<NodeId>,
    /// The reverse: those that SWIM has given up and whose connection has not ended. Nobody takes
    /// over from them yet.
    pub lingering: BTreeSet<NodeId>,
    /// Whether this has changed so lately that nobody's replicas are taken over yet.
    pub unsettled: bool,
}

/// When a node was last alive, as far as is known here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastSeen {
    /// By this node's clock, wall milliseconds: for people, because clocks jump.
    pub wall_ms: u64,
    /// For how long this node had been running without it at `counted_ms`, milliseconds.
    pub missed_ms: u64,
    /// Until when that was counted, [`Time::mono_ms`].
    pub counted_ms: u64,
}

impl LastSeen {
    /// It is seen now.
    pub fn now(now: Time) -> Self {
        Self { wall_ms: now.wall_ms, missed_ms: 0, counted_ms: now.mono_ms }
    }

    /// For how long this node has been running without it, milliseconds. The time for which this
    /// node itself was off does not count, and no clock that is set can make it longer.
    pub fn missed_ms(&self, now: Time) -> u64 {
        self.missed_ms.saturating_add(now.mono_ms.saturating_sub(self.counted_ms))
    }
}

/// How long a node that vanished still counts when a side asks whether it is the larger one,
/// milliseconds of running without it. A day: longer than any outage that heals by itself, short
/// enough that machines thrown away without a word do not block takeovers for ever.
pub const COUNTED_AFTER_LOSS_MS: u64 = 24 * 3600 * 1000;

/// How much of the cluster this side sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// Nodes seen now.
    pub alive: usize,
    /// Nodes that count: enrolled, not revoked, and seen now or within the last day. A node never
    /// seen here counts as well, because it may be on the other side.
    pub counted: usize,
}

impl Side {
    /// Whether this side sees at least half; a tie counts.
    pub fn is_majority(self) -> bool {
        2 * self.alive >= self.counted
    }
}

impl Cluster {
    /// How much of the cluster this side sees.
    pub fn side(&self, liveness: &Liveness, now: Time) -> Side {
        let mut side = Side { alive: 0, counted: 0 };
        for id in self.nodes.iter().filter(|(_, node)| !node.is_revoked()).map(|(id, _)| id) {
            let alive = liveness.alive.contains(id) && !liveness.silent.contains(id);
            let recent =
                liveness.last_seen.get(id).is_none_or(|seen| seen.missed_ms(now) <= COUNTED_AFTER_LOSS_MS);
            side.alive += usize::from(alive);
            side.counted += usize::from(alive || recent);
        }
        side
    }

    /// What people call a node: its host name, else `hive-` and the first digits of its id.
    pub fn hostname(&self, id: &NodeId) -> String {
        let status = self.nodes.get(id).and_then(|node| node.status.as_ref());
        status.map_or_else(|| format!("hive-{}", id.short()), |status| status.hostname.clone())
    }

    /// Where a node says that it is.
    pub fn address(&self, id: &NodeId) -> Option<IpAddr> {
        Some(self.nodes.get(id)?.status.as_ref()?.address)
    }

    /// Whether a node may be spoken to and is heard of.
    pub fn is_live(&self, liveness: &Liveness, id: &NodeId) -> bool {
        liveness.alive.contains(id) && self.nodes.get(id).is_some_and(|node| !node.is_revoked())
    }

    /// Whether a node has all of a new release and only waits for its replicas to leave before it starts it.
    pub fn is_leaving(&self, id: &NodeId) -> bool {
        let has_a_turn = || self.rollouts.values().any(|rollout| rollout.turns.contains(id));
        let status = self.nodes.get(id).and_then(|node| node.status.as_ref());
        let update = status.and_then(|status| status.update.as_ref());
        update.is_some_and(|update| update.phase == UpdatePhase::Ready) && has_a_turn()
    }

    /// The replicas of a workload that can serve: running, with a network, on a live node, and placed there, so that
    /// what a healed partition still has to trim gets no traffic. With their addresses.
    pub fn serving<'a>(
        &'a self,
        liveness: &'a Liveness,
        id: &'a WorkloadId,
    ) -> impl Iterator<Item = (&'a ReplicaId, Ipv4Addr)> {
        let placed = self.placements.get(id);
        let offline = self.workloads.get(id).is_some_and(|workload| workload.spec.container.offline);
        self.replicas_of(id).filter_map(move |((replica, node), status)| {
            let serves = status.phase == Phase::Running
                && !offline
                && placed?.slots.get(&replica.slot) == Some(node)
                && self.is_live(liveness, node);
            Some((replica, status.ip?)).filter(|_| serves)
        })
    }

    /// Where there is to be one replica each of a workload that is global: nodes that are not revoked, meet its
    /// constraints and are not known to lack its devices, whether they are heard or not.
    pub fn eligible<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = NodeId> + 'a {
        let nodes = self.nodes.iter().filter(|(_, node)| !node.is_revoked());
        let meets = |id: &NodeId, node: &Node| {
            let labels = node.labels();
            first_unmet(&workload.spec.constraints, id, &self.hostname(id), &labels).is_none()
                && !device::lacks(&workload.spec, &labels)
        };
        let waits = workload.waits_for_its_time();
        nodes.filter(move |(id, node)| !waits && meets(id, node)).map(|(id, _)| *id)
    }

    /// How many replicas of a workload there are to be.
    pub fn wanted(&self, workload: &Workload) -> u32 {
        if workload.waits_for_its_time() {
            return 0;
        }
        if !workload.spec.global {
            return workload.spec.replicas;
        }
        u32::try_from(self.eligible(workload).count()).unwrap_or(u32::MAX)
    }

    /// Where a replica is in its life according to a node, if that is the life of what is wanted now.
    pub fn phase(&self, id: &WorkloadId, workload: &Workload, slot: u32, node: &NodeId) -> Option<Phase> {
        let key = (ReplicaId { workload: id.clone(), slot }, *node);
        self.replicas
            .get(&key)
            .filter(|status| status.template == workload.template)
            .map(|status| status.phase)
    }

    /// What nodes say about a workload's replicas.
    pub fn replicas_of<'a>(
        &'a self,
        id: &'a WorkloadId,
    ) -> impl Iterator<Item = (&'a (ReplicaId, NodeId), &'a ReplicaStatus)> {
        let first = (ReplicaId { workload: id.clone(), slot: 0 }, NodeId([0; 16]));
        self.replicas.range(first..).take_while(move |((replica, _), _)| replica.workload == *id)
    }

    /// Which nodes say that they have a part of a volume, and how it is there.
    pub fn holders<'a>(
        &'a self,
        part: &'a VolumePart,
    ) -> impl Iterator<Item = (&'a NodeId, &'a VolumeStatus)> {
        let first = (part.clone(), NodeId([0; 16]));
        let parts = self.volume_parts.range(first..).take_while(move |((other, _), _)| other == part);
        parts.map(|((_, node), status)| (node, status))
    }

    /// Where the parts of a volume are.
    pub fn parts_of<'a>(
        &'a self,
        volume: &'a VolumeId,
    ) -> impl Iterator<Item = (&'a (VolumePart, NodeId), &'a VolumeStatus)> {
        let first = (VolumePart { volume: volume.clone(), number: 0 }, NodeId([0; 16]));
        self.volume_parts.range(first..).take_while(move |((part, _), _)| part.volume == *volume)
    }

    /// The workloads that use a volume, by name.
    pub fn users_of<'a>(&'a self, volume: &'a VolumeId) -> impl Iterator<Item = &'a WorkloadId> {
        let uses = |(name, workload): &(&WorkloadId, &Workload)| {
            name.namespace == volume.namespace && workload.spec.container.mounts(&volume.name)
        };
        self.workloads.iter().filter(uses).map(|(name, _)| name)
    }

    /// The workloads that use a secret, by name.
    pub fn secret_users<'a>(&'a self, secret: &'a SpecKey) -> impl Iterator<Item = &'a WorkloadId> {
        let uses = |(name, workload): &(&WorkloadId, &Workload)| {
            let container = &workload.spec.container;
            let opens = || self.secrets.get(secret)?.registry.as_deref().map(|of| of == container.registry());
            name.namespace == secret.namespace
                && (container.has_secret(&secret.name) || opens() == Some(true))
        };
        self.workloads.iter().filter(uses).map(|(name, _)| name)
    }

    /// The nodes besides `me` that enrolled and were not revoked.
    pub fn others(&self, me: NodeId) -> impl Iterator<Item = NodeId> {
        let others = self.nodes.iter().filter(move |(id, node)| **id != me && !node.is_revoked());
        others.map(|(id, _)| *id)
    }

    /// Which workload has each published port: the first by name of those that ask for it.
    pub fn port_owners(&self) -> BTreeMap<(Protocol, u16), &WorkloadId> {
        let mut owners = BTreeMap::new();
        for (id, workload) in &self.workloads {
            for port in &workload.spec.container.ports {
                if let Some(outside) = port.published {
                    owners.entry((port.protocol, outside)).or_insert(id);
                }
            }
        }
        owners
    }

    /// What `node` is to run: its slots of every workload that counts, each with the current
    /// document. The placement may be of an older one when no leader has looked at it since.
    pub fn assignments(&self, node: &NodeId) -> BTreeMap<ReplicaId, &Workload> {
        let mut assignments = BTreeMap::new();
        for (id, workload) in &self.workloads {
            let Some(placed) = self.placements.get(id) else { continue };
            for slot in placed.slots.iter().filter(|(_, n)| *n == node).map(|(slot, _)| *slot) {
                assignments.insert(ReplicaId { workload: id.clone(), slot }, workload);
            }
        }
        assignments
    }

    /// Whether any of a workload's replicas are placed on a node.
    pub fn is_assigned(&self, workload: &WorkloadId, node: &NodeId) -> bool {
        self.placements.get(workload).is_some_and(|placed| placed.slots.values().any(|n| n == node))
    }
}

/// The index of the first constraint that a node does not meet.
pub fn first_unmet(
    constraints: &[Constraint],
    id: &NodeId,
    hostname: &str,
    labels: &BTreeMap<String, String>,
) -> Option<usize> {
    constraints.iter().position(|constraint| {
        let own_id;
        let value = match constraint.label.as_str() {
            "node.hostname" => Some(hostname),
            "node.id" => {
                own_id = id.to_string();
                Some(own_id.as_str())
            }
            label => labels.get(label).map(String::as_str),
        };
        let equal = value == Some(constraint.value.as_str());
        equal != (constraint.operator == Operator::Equal)
    })
}

/// The range node subnets are taken from. Every node has a /24 of it, named by its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRange {
    network: Ipv4Addr,
    prefix: u8,
}

impl ContainerRange {
    /// Prefix length of a node's subnet.
    pub const SUBNET_PREFIX: u8 = 24;

    /// Reads an IPv4 CIDR from /8 to /22 with no host bits, as in the machine configuration.
    pub fn parse(text: &str) -> Option<Self> {
        let (network, prefix) = text.split_once('/')?;
        let (network, prefix) = (network.parse::<Ipv4Addr>().ok()?, prefix.parse::<u8>().ok()?);
        let host_bits = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
        ((8..=22).contains(&prefix) && network.to_bits() & host_bits == 0).then_some(Self { network, prefix })
    }

    /// Network and prefix length.
    pub fn cidr(self) -> (Ipv4Addr, u8) {
        (self.network, self.prefix)
    }

    /// How many subnets there are.
    pub fn subnets(self) -> u32 {
        1 << (Self::SUBNET_PREFIX - self.prefix)
    }

    /// The first address of a subnet; absent when the index is outside the range.
    pub fn subnet(self, index: u16) -> Option<Ipv4Addr> {
        let index = u32::from(index);
        (index < self.subnets()).then(|| Ipv4Addr::from_bits(self.network.to_bits() + (index << 8)))
    }
}
