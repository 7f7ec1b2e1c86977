//! Small clusters for tests.

use std::net::{IpAddr, Ipv4Addr};

use hivemind_spec::api::{Capacity, Phase};
use hivemind_spec::document::NodeIntentSpec;
use hivemind_spec::id::{Digest, NodeId, ReleaseId, TokenId};
use hivemind_spec::release::{Architecture, OsReleaseSpec, ReleaseFile};
use hivemind_spec::workload::{ContainerSpec, VolumeMount, WorkloadSpec};

use crate::cluster::{Cluster, LastSeen, Liveness, Node, OsRelease, Workload};
use crate::record::{
    Enrolment, NodeStatus, Placement, ReplicaId, ReplicaStatus, VolumeId, VolumePart, VolumeStatus,
    WorkloadId,
};
use crate::time::Time;

pub(crate) const MIB: u64 = 1024 * 1024;

/// Node `n`: ids sort by `n`.
pub(crate) fn node_id(n: u8) -> NodeId {
    let mut id = [0x40; 16];
    id[0] = n;
    NodeId(id)
}

pub(crate) fn workload_id(name: &str) -> WorkloadId {
    WorkloadId { namespace: "default".into(), name: name.into() }
}

pub(crate) fn replica_id(name: &str, slot: u32) -> ReplicaId {
    ReplicaId { workload: workload_id(name), slot }
}

pub(crate) fn volume_id(name: &str) -> VolumeId {
    VolumeId { namespace: "default".into(), name: name.into() }
}

/// A volume in a container.
pub(crate) fn mount(volume: &str, path: &str) -> VolumeMount {
    VolumeMount { volume: volume.into(), path: path.into(), read_only: false, no_copy: false, subpath: None }
}

/// Says that node `n` has a part of a volume.
pub(crate) fn hold(cluster: &mut Cluster, volume: &str, number: u32, n: u8) {
    let status = VolumeStatus { made_ms: 5, used_bytes: None, discarding_ms: None };
    let part = VolumePart { volume: volume_id(volume), number };
    cluster.volume_parts.insert((part, node_id(n)), status);
}

/// Now, `s` seconds into the test.
pub(crate) fn at(s: u64) -> Time {
    Time { mono_ms: 1_000_000 + s * 1000, wall_ms: 1_800_000_000_000 + s * 1000 }
}

/// A ready node `hive-N` with 4 cores and 1 GiB, enrolled in the order of `n`, subnet index `n`.
pub(crate) fn node(n: u8) -> Node {
    Node {
        enrolment: Enrolment {
            chain: Vec::new(),
            token: TokenId::of(b"token"),
            enrolled_ms: 1000 + u64::from(n),
            subnet: Some(n.into()),
        },
        status: Some(NodeStatus {
            hostname: format!("hive-{n}"),
            address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, n)),
            vtep_mac: [2, 0, 0, 0, 0, n],
            version: "0.1.0".into(),
            release: None,
            update: None,
            labels: Default::default(),
            capacity: Capacity { cpu_millis: 4000, memory_bytes: 1024 * MIB },
            problems: Vec::new(),
            started_ms: 0,
            outdated: false,
        }),
        intent: None,
        intended_ms: 0,
    }
}

pub(crate) fn intent(n: u8) -> NodeIntentSpec {
    NodeIntentSpec { node: node_id(n), cordoned: false, revoked: false, labels: Default::default() }
}

/// A cluster of nodes 1 to `nodes`, all alive.
pub(crate) fn cluster(nodes: u8) -> (Cluster, Liveness) {
    let mut cluster = Cluster::default();
    let mut liveness = Liveness::default();
    for n in 1..=nodes {
        cluster.nodes.insert(node_id(n), node(n));
        liveness.alive.insert(node_id(n));
        liveness.last_seen.insert(node_id(n), LastSeen::now(at(0)));
    }
    (cluster, liveness)
}

/// A workload of small replicas.
pub(crate) fn workload(replicas: u32) -> Workload {
    let spec = WorkloadSpec { replicas, ..WorkloadSpec::of(ContainerSpec::of("registry.test/app:1")) };
    Workload::new(1, Digest::of(b"revision 1"), spec)
}

/// Says that a replica runs on node `n` with an address in its subnet.
pub(crate) fn running(cluster: &mut Cluster, name: &str, slot: u32, n: u8) -> Ipv4Addr {
    let ip = Ipv4Addr::new(10, 42, n, 2 + slot as u8);
    let id = workload_id(name);
    let status = ReplicaStatus {
        template: cluster.workloads[&id].template,
        phase: Phase::Running,
        reason: String::new(),
        ip: Some(ip),
        restarts: 0,
        since_ms: 0,
        pull: None,
    };
    cluster.replicas.insert((replica_id(name, slot), node_id(n)), status);
    place(cluster, name, slot, n);
    ip
}

/// Places a replica on node `n`.
pub(crate) fn place(cluster: &mut Cluster, name: &str, slot: u32, n: u8) {
    let id = workload_id(name);
    let digest = cluster.workloads.get(&id).map(|workload| workload.digest);
    let placed = cluster.placements.entry(id).or_insert_with(|| Placement { digest, ..Placement::default() });
    placed.slots.insert(slot, node_id(n));
}

/// The `n`th release of the operating system.
pub(crate) fn os_release(n: u8) -> OsRelease {
    let file = ReleaseFile::of(&[n][..]).unwrap();
    let spec = OsReleaseSpec {
        version: format!("1.0.{n}"),
        release: ReleaseId::of(&[n]),
        architecture: Architecture::Amd64,
        minimum: "1.0.0".into(),
        root: file.clone(),
        kernel: file,
        sources: vec!["https://example.org/os".into()],
        paused: false,
    };
    OsRelease { digest: Digest::of(&[n]), spec }
}
