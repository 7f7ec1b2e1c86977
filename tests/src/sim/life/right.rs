//! How things must be once the faults are over.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use hivemind_core::cluster::Workload;
use hivemind_core::event::ContainerPlan;
use hivemind_core::isolation;
use hivemind_core::record::{Record, RecordKey, ReplicaStatus, WorkloadId};
use hivemind_core::state::Map;
use hivemind_spec::id::NodeId;
use hivemind_spec::release::Architecture;

use super::super::cast::workload_id;
use super::{Broken, HOMELY, Life, SINGLE};

impl Life {
    /// Whether all members hold the same map, see each other alive, and run what it says.
    pub(super) fn is_right(&self) -> Broken {
        let members = self.members();
        let first = self.world.node(members[0]);
        let ids: BTreeSet<NodeId> = members.iter().map(|index| self.world.machines[*index].id).collect();
        for index in &members {
            let node = self.world.node(*index);
            if node.liveness().alive != ids {
                return Err(format!(
                    "m{index} sees {} of {} nodes alive",
                    node.liveness().alive.len(),
                    ids.len()
                ));
            }
            if !node
                .map()
                .iter()
                .map(|(k, e)| (k, &e.record))
                .eq(first.map().iter().map(|(k, e)| (k, &e.record)))
            {
                let held = |map: &Map| -> BTreeMap<RecordKey, Record> {
                    map.iter().map(|(key, entry)| (key.clone(), entry.record.clone())).collect()
                };
                let (here, there) = (held(node.map()), held(first.map()));
                let keys: BTreeSet<_> = here.keys().chain(there.keys()).collect();
                let differ = keys.into_iter().find(|key| here.get(key) != there.get(key));
                return Err(format!("m{index} and m{} hold different maps: {differ:?}", members[0]));
            }
        }
        if let Some(index) = members.iter().find(|index| self.world.machines[**index].on_trial) {
            return Err(format!("the release of m{index} has not been called good"));
        }
        for index in &self.outsiders {
            if ids.contains(&self.world.machines[*index].id) {
                return Err(format!("m{index} got in without a token"));
            }
        }
        self.is_rolled_out(&members)?;
        self.runs_what_it_should(&members)?;
        self.reaches_whom_it_should(&members)
    }

    /// Whether the containers of each member reach those in a network with them, wherever they run, and no others.
    fn reaches_whom_it_should(&self, members: &[usize]) -> Broken {
        let cluster = self.world.node(members[0]).cluster();
        let running = |index: &usize| self.world.machines[*index].runtime.running();
        let networks = |plan: &ContainerPlan| isolation::networks(cluster, &plan.labels.replica.workload);
        let all: Vec<_> = members.iter().flat_map(running).map(|plan| (plan, networks(plan))).collect();
        for index in members {
            let isolation = &self.world.machines[*index].isolation;
            for own in running(index) {
                let own_networks = networks(own);
                for (other, networks) in &all {
                    let wanted = !own_networks.is_disjoint(networks);
                    let both = |set: &BTreeSet<Ipv4Addr>| set.contains(&own.ip) && set.contains(&other.ip);
                    if isolation.members.values().any(both) != wanted {
                        let (own, other) = (&own.labels.replica, &other.labels.replica);
                        return Err(format!("on m{index} {own} is to reach {other}: {wanted}"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether all members run the release that counts, or some member or the operator is the reason why not.
    fn is_rolled_out(&self, members: &[usize]) -> Broken {
        let cluster = self.world.node(members[0]).cluster();
        let Some(wanted) = cluster.os_releases.get(&Architecture::Amd64) else { return Ok(()) };
        let release = wanted.spec.release;
        let rollout = cluster.rollouts.get(&Architecture::Amd64);
        let of_members = || members.iter().map(|index| &self.world.machines[*index]);
        let failed = of_members().any(|machine| machine.failed_releases.contains(&release));
        let stopped = rollout.is_some_and(|rollout| !rollout.stopped.is_empty());
        if wanted.spec.paused || failed {
            return if stopped { Ok(()) } else { Err(format!("the rollout goes on: {rollout:?}")) };
        }
        match of_members().find(|machine| machine.release != release) {
            None => Ok(()),
            Some(machine) => Err(format!("{} waits for its release: {rollout:?}", machine.id.short())),
        }
    }

    fn runs_what_it_should(&self, members: &[usize]) -> Broken {
        let cluster = self.world.node(members[0]).cluster();
        let mut found: BTreeMap<WorkloadId, BTreeMap<u32, usize>> = BTreeMap::new();
        let mut old = Vec::new();
        for (index, machine) in self.world.machines.iter().enumerate() {
            for plan in machine.runtime.running() {
                let replica = &plan.labels.replica;
                if self.revoked == Some(index) && !members.contains(&index) {
                    continue;
                }
                let Some(workload) = cluster.workloads.get(&replica.workload) else {
                    return Err(format!("m{index} runs {replica}, which nobody wants"));
                };
                if workload.template != plan.labels.template {
                    let status = cluster.replicas.get(&(replica.clone(), machine.id));
                    let reason = status.map(|status| format!("{:?}: {}", status.phase, status.reason));
                    old.push((workload, format!("m{index} runs another version of {replica} ({reason:?})")));
                }
                if !machine.has_modem && !plan.spec.machine.devices.is_empty() {
                    return Err(format!("m{index} runs {replica} without its device"));
                }
                let of_workload = found.entry(replica.workload.clone()).or_default();
                if let Some(other) = of_workload.insert(replica.slot, index) {
                    return Err(format!("{replica} runs twice, on m{other} and m{index}"));
                }
            }
        }
        let waits = |workload: &Workload| {
            workload.spec.depends_on.iter().any(|dependency| {
                let other = workload_id(&dependency.workload);
                match cluster.workloads.get(&other) {
                    None => dependency.required,
                    Some(workload) => cluster.wanted(workload) > 0 && !found.contains_key(&other),
                }
            })
        };
        // What runs goes on while its next version waits for another workload.
        if let Some((_, old)) = old.into_iter().find(|(workload, _)| !waits(workload)) {
            return Err(old);
        }
        for (id, workload) in &cluster.workloads {
            let empty = BTreeMap::new();
            let slots = found.get(id).unwrap_or(&empty).keys();
            let runs = slots.filter(|slot| !workload.completed.contains(slot)).count();
            let pending = cluster
                .placements
                .get(id)
                .map_or(0, |placed| placed.pending.keys().filter(|s| !placed.slots.contains_key(s)).count());
            let homeless = self.revoked.is_some() && id.name == HOMELY;
            // Nobody knows any more who holds its lease: too many forgot what they granted, or were revoked.
            let machines = self.world.machines.iter().enumerate();
            let unable = machines.filter(|(index, m)| m.damaged_ms.is_some() || self.revoked == Some(*index));
            let homeless = homeless || id.name == SINGLE && 2 * (unable.count() + 1) >= self.count();
            let left = (cluster.wanted(workload) as usize).saturating_sub(workload.completed.len());
            let machines: BTreeSet<&usize> = found.get(id).unwrap_or(&empty).values().collect();
            if workload.spec.global && machines.len() != runs {
                return Err(format!("a machine runs {} more than once", id.name));
            }
            if runs + pending != left && !homeless && !waits(workload) {
                let told =
                    |(_, status): (_, &ReplicaStatus)| format!("{:?}: {}", status.phase, status.reason);
                let statuses = cluster.replicas.iter().filter(|((replica, _), _)| replica.workload == *id);
                let statuses: Vec<String> = statuses.map(told).collect();
                return Err(format!("{runs} of {left} replicas of {} run ({statuses:?})", id.name));
            }
        }
        Ok(())
    }
}
