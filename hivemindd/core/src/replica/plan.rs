//! What replicas are told of their node, and what they say is to be done.

use std::collections::BTreeMap;

use hivemind_spec::api::Capacity;
use hivemind_spec::workload::HealthCheck;

use crate::cluster::Workload;
use crate::event::{ContainerId, LocalNetwork, OperationId, RuntimeOp, SealedSecret, VolumePlan};
use crate::image::Asker;
use crate::lease::Standing as Lease;
use crate::record::{ReplicaId, ReplicaStatus, VolumePart, WorkloadId};
use crate::volume::Order;

/// What is to be done, and how things stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Operations to start now, in order.
    pub operations: Vec<(OperationId, RuntimeOp)>,
    /// How every replica is that is wanted here or still has a container here. A replica missing
    /// here that had a status before is gone: take its observation back.
    pub statuses: BTreeMap<ReplicaId, ReplicaStatus>,
    /// The whole list of health checks.
    pub health_checks: BTreeMap<ContainerId, HealthCheck>,
    /// The secrets of running containers that have any, as they should be.
    pub secrets: BTreeMap<ContainerId, BTreeMap<String, SealedSecret>>,
    /// Until when containers may run whose workloads have a lease, [`Time::mono_ms`]. To be enforced before
    /// any of the operations begins.
    pub fences: BTreeMap<ContainerId, u64>,
    /// When to plan again though nothing happens, [`Time::mono_ms`].
    pub wake_at_ms: Option<u64>,
}

impl Plan {
    pub(super) fn wake_at(&mut self, mono_ms: u64) {
        self.wake_at_ms = Some(self.wake_at_ms.map_or(mono_ms, |at| at.min(mono_ms)));
    }
}

/// What replicas find on this node.
#[derive(Debug, Clone, Copy)]
pub struct Here<'a> {
    /// The node's part of the overlay; absent until it has one.
    pub network: Option<&'a LocalNetwork>,
    /// What its workloads may use in all.
    pub capacity: Capacity,
    /// How the leases stand of the exclusive workloads that are wanted here, and why so, in words.
    pub leases: &'a BTreeMap<WorkloadId, (Lease, String)>,
    /// What workloads wait for before their containers start, in words ([`crate::dependencies`]).
    pub waits: &'a BTreeMap<WorkloadId, String>,
    /// The workloads that are given more of their machine than their namespaces allow, and what, in words.
    pub barred: &'a BTreeMap<WorkloadId, String>,
    /// The volumes of replicas that have any, by the volumes' names, or why they cannot be used, in words.
    pub volumes: &'a BTreeMap<ReplicaId, Result<BTreeMap<String, VolumePlan>, String>>,
    /// The secrets of replicas that have any, by the secrets' names, or why they cannot have them, in words.
    pub secrets: &'a BTreeMap<ReplicaId, Result<BTreeMap<String, SealedSecret>, String>>,
    /// What opens the registries of the images of replicas that need it, or why that cannot be had, in words.
    pub credentials: &'a BTreeMap<ReplicaId, Result<SealedSecret, String>>,
    /// Whom to ask for images that are missing here.
    pub asker: Asker<'a>,
    /// The workloads of the cluster.
    pub workloads: &'a BTreeMap<WorkloadId, Workload>,
    /// What is to be done to parts of volumes.
    pub orders: &'a BTreeMap<VolumePart, Order>,
}

impl Here<'_> {
    pub(super) fn lease(&self, replica: &ReplicaId) -> Option<Lease> {
        self.leases.get(&replica.workload).map(|(lease, _)| *lease)
    }

    /// Whether the replica has to stop because its lease ends.
    pub(super) fn has_lost(&self, replica: &ReplicaId) -> bool {
        matches!(self.lease(replica), Some(Lease::Lost { .. }))
    }
}
