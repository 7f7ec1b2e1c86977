//! What follows from the map and from who is alive: this node's word about itself, the leader's
//! placements, this node's replicas, its network and its names.
//!
//! Levels, not edges: every look compares what should be said, decided or done with what was, and
//! hands out the difference.

use std::collections::{BTreeMap, BTreeSet};

use hivemind_spec::api::{Phase, Severity};
use hivemind_spec::document::{Kind, SpecKey};
use hivemind_spec::id::NodeId;
use hivemind_spec::release::Architecture;
use hivemind_spec::volume::Per;

use super::{Content, MAX_ROUNDS, Node, Told};
use crate::cluster::Workload;
use crate::event::{Action, Actions, NetworkPlan, RuntimeOp, VolumePlan};
use crate::image::Asker;
use crate::isolation::View;
use crate::record::{
    Decision, JobProgress, Matter, NodeStatus, Observation, RecordKey, ReplicaId, ReplicaStatus, Rollout,
    Topic, VolumePart, WorkloadId,
};
use crate::replica::Here;
use crate::time::Time;
use crate::{dependencies, dns, job, overlay, permission, rollout, scheduler, statement, volume};

/// How often a replica's status is written while nothing but its pull progress changes,
/// milliseconds.
const PROGRESS_EVERY_MS: u64 = 1000;

/// What changed since names and network were worked out.
#[derive(Debug, Default)]
pub(super) struct Unplanned {
    /// Something the network follows from.
    pub(super) network: bool,
    /// Everything the names follow from may have.
    names: bool,
    /// Everything that who may reach whom follows from may have.
    isolation: bool,
    /// The replicas of these workloads, and who may reach whom has not been worked out since.
    reached: BTreeSet<WorkloadId>,
    /// What is said or decided about these workloads' replicas has.
    workloads: BTreeSet<WorkloadId>,
}

impl Unplanned {
    /// Everything.
    pub(super) fn all() -> Self {
        Self { network: true, names: true, isolation: true, ..Self::default() }
    }

    /// What a node said or a leader decided.
    pub(super) fn add(&mut self, key: &RecordKey) {
        self.network = true;
        match key {
            RecordKey::Observation(_, Topic::Replica(ReplicaId { workload, .. }))
            | RecordKey::Decision(Matter::Placement(workload) | Matter::Job(workload)) => {
                self.workloads.insert(workload.clone());
                self.reached.insert(workload.clone());
            }
            // With a node's subnet.
            RecordKey::Observation(_, Topic::Enrolment) => self.isolation = true,
            _ => {}
        }
    }
}

impl Node {
    /// Brings everything up to date that follows from a changed map or a changed view.
    pub(super) fn settle(&mut self, now: Time, out: &mut Actions) {
        for _ in 0..MAX_ROUNDS {
            self.redraw_if_changed();
            if std::mem::take(&mut self.picture_changed) {
                self.drop_unheard();
                self.drop_forgotten();
                if std::mem::take(&mut self.documents_changed) {
                    self.notice_overtaken(now, out);
                    self.stop_telling(now);
                }
                self.redraw_if_changed();
                self.look_around(now);
                self.cut_off_revoked(now, out);
                self.judge_waiting(now, out);
                self.stirred = true;
            }
            if !std::mem::take(&mut self.stirred) {
                return;
            }
            if let Some(asked) = self.devices.ask(&self.cluster) {
                out.push(Action::LookFor(asked.clone()));
            }
            self.speak_for_self(now, out);
            self.remember_subnet(out);
            self.lead(now, out);
            self.update(now, out);
            self.plan_network(out);
            self.run_replicas(now, out);
        }
        // Whatever is left is taken up at the next look; the records agree by then.
        self.stirred = true;
    }

    /// What this node says about itself: its subnet and how it is.
    fn speak_for_self(&mut self, now: Time, out: &mut Actions) {
        let (me, range) = (self.settings.me, self.settings.container_range);
        if !self.cluster.nodes.contains_key(&me) && !self.others_may_know_it() {
            // The disk failed when it was first said.
            self.introduce_self(now, out);
        }
        if let Some(own) = self.cluster.nodes.get(&me) {
            // A subnet is chosen when the peers' choices are known; one recorded before is kept
            // until they say otherwise.
            let enrolment = own.enrolment.clone();
            if enrolment.subnet.is_some() || (self.grace_until_ms.is_none() && self.knows_enough()) {
                let subnet = overlay::choose_subnet(&self.cluster, &me, range);
                let enrolment = crate::record::Enrolment { subnet, ..enrolment };
                self.say(now, Topic::Enrolment, Some(Observation::Enrolment(enrolment)));
            }
        }
        if let Some(status) = self.own_status() {
            self.say(now, Topic::Node, Some(Observation::Node(status)));
        }
    }

    fn remember_subnet(&mut self, out: &mut Actions) {
        let subnet = self.cluster.nodes.get(&self.settings.me).and_then(|own| own.enrolment.subnet);
        if let Some(subnet) = subnet
            && self.settings.subnet.replace(subnet) != Some(subnet)
        {
            out.push(Action::RememberSubnet(subnet));
        }
    }

    /// How this node is, once it has an address and unless it was cut off.
    pub(super) fn own_status(&self) -> Option<NodeStatus> {
        let (me, facts) = (self.settings.me, self.facts.as_ref()?);
        let refuses = self.disk_refuses.then(|| "the disk takes no changes; see its console".to_owned());
        let unread = self.cluster.unread.first().map(|name| {
            let others = match self.cluster.unread.len() - 1 {
                0 => String::new(),
                others => format!(" and {others} more"),
            };
            format!(
                "its release is too old to read {name}{others}; what runs here goes on as it is: give it the cluster's \
                 release with `hivemind upgrade`"
            )
        });
        Some(NodeStatus {
            hostname: facts.hostname.clone(),
            address: facts.address.filter(|_| !self.is_revoked(&me))?,
            vtep_mac: overlay::vtep_mac(&me),
            version: facts.version.clone(),
            release: facts.release.clone(),
            update: self.update_status(),
            labels: facts.labels.clone().into_iter().chain(self.devices.labels()).collect(),
            capacity: facts.capacity,
            problems: facts.problems.iter().cloned().chain(refuses).chain(unread).collect(),
            started_ms: self.started_ms,
            outdated: !self.cluster.unread.is_empty(),
        })
    }

    /// Whether this node may act on what it knows of itself and of what is wanted: it can read all that is, and its
    /// store is not lost, or a peer has made it good, or there is nobody and an operator has begun anew. What others sent before
    /// they could not be heard any more may be half of what they know.
    fn knows_enough(&self) -> bool {
        let alone = self.liveness.alive.len() <= 1 && self.cluster.others(self.settings.me).next().is_none();
        self.cluster.unread.is_empty() && (!self.store_lost || (alone && !self.cluster.workloads.is_empty()))
    }

    /// Finds the leader, and places what must be placed if it is this node.
    fn lead(&mut self, now: Time, out: &mut Actions) {
        let leader = self.leader.observe(now, &self.cluster, &self.liveness);
        if leader != self.told_leader {
            self.told_leader = leader;
            let text = leader.map_or_else(
                || "there is no leader: no node that can run workloads is alive".to_owned(),
                |leader| format!("node {} leads", self.name(&leader)),
            );
            self.note(now, Severity::Info, "leader-changed", text, out);
        }
        let unfit = self.is_catching_up() || self.disk_refuses || !self.knows_enough();
        if !self.is_leader() || unfit || !self.unplaced {
            return;
        }
        // What the disk does not take now is to be decided again.
        self.unplaced = self.disk_pauses(now);
        for (id, progress) in job::plan(&self.cluster, &self.liveness, now) {
            self.note_run(now, &id, progress.as_ref(), out);
            self.decide(now, Matter::Job(id), progress.map(Decision::Job));
        }
        for (workload, placement) in scheduler::schedule(&self.cluster, &self.liveness, now) {
            self.decide(now, Matter::Placement(workload), placement.map(Decision::Placement));
        }
        for (architecture, rollout) in rollout::plan(&self.cluster, &self.liveness, self.settings.me, now) {
            self.note_rollout(now, architecture, rollout.as_ref(), out);
            self.decide(now, Matter::Rollout(architecture), rollout.map(Decision::Rollout));
        }
    }

    /// Tells of a job that is run again.
    fn note_run(&self, now: Time, id: &WorkloadId, progress: Option<&JobProgress>, out: &mut Actions) {
        let before = self.cluster.jobs.get(id).and_then(|before| before.run_ms);
        if let Some(run_ms) = progress.and_then(|progress| progress.run_ms).filter(|run| before != Some(*run))
        {
            let late_s = now.wall_ms.saturating_sub(run_ms) / 1000;
            let text = format!("job {}/{} is run, {late_s} s after its time", id.namespace, id.name);
            self.note_of(now, id, (Severity::Info, "job-run", text), out);
        }
    }

    /// Tells of a rollout that goes no further.
    fn note_rollout(
        &self,
        now: Time,
        architecture: Architecture,
        rollout: Option<&Rollout>,
        out: &mut Actions,
    ) {
        let before = self.cluster.rollouts.get(&architecture).map(|before| before.stopped.as_str());
        if let Some(rollout) = rollout.filter(|rollout| !rollout.stopped.is_empty())
            && before != Some(&rollout.stopped)
        {
            let text =
                format!("the release for {} goes no further: {}", architecture.name(), rollout.stopped);
            self.note(now, Severity::Warning, "rollout-stopped", text, out);
        }
    }

    /// Whether placements follow from a record that changed: not from how replicas are where it was
    /// decided where they are, unless they have ended, and not from what this node decided itself.
    pub(super) fn bears_on_placements(&self, key: &RecordKey) -> bool {
        match key {
            RecordKey::Observation(node, Topic::Replica(replica)) => {
                let placed = self.cluster.placements.get(&replica.workload);
                let ended = || {
                    let said = self.cluster.replicas.get(&(replica.clone(), *node));
                    said.is_some_and(|said| matches!(said.phase, Phase::Completed | Phase::Failed))
                };
                let workload = self.cluster.workloads.get(&replica.workload);
                placed.is_none_or(|placement| placement.digest.is_none())
                    || workload.is_some_and(|workload| workload.spec.rebalance.is_some())
                    || workload.is_some_and(|workload| workload.spec.completes()) && ended()
            }
            RecordKey::Decision(_) => {
                let decided = self.map.get(key).and_then(|entry| statement::of(&entry.record));
                decided.is_none_or(|statement| statement.writer != self.settings.me)
            }
            _ => true,
        }
    }

    /// The network and the names, told when they change. Before this start's first underlay address
    /// the plan has none, so that a machine without a network runs its containers all the same;
    /// when an address is lost the network stays as it is.
    fn plan_network(&mut self, out: &mut Actions) {
        // What concerns who reaches whom waits until it is known which containers there are.
        let left = Unplanned {
            isolation: self.unplanned.isolation,
            reached: std::mem::take(&mut self.unplanned.reached),
            ..Unplanned::default()
        };
        let changed = std::mem::replace(&mut self.unplanned, left);
        let underlay = self.facts.as_ref().and_then(|facts| facts.address);
        let planned = self.network.as_ref().and_then(|plan| plan.local.as_ref()?.underlay);
        if changed.network && (underlay.is_some() || planned.is_none()) {
            let plan = overlay::plan(
                &self.cluster,
                &self.liveness,
                &self.settings.cluster_id,
                &self.settings.me,
                underlay,
                self.settings.container_range,
            );
            if self.network.as_ref() != Some(&plan) {
                out.push(Action::Network(plan.clone()));
                self.network = Some(plan);
            }
        }
        let first = self.zone.is_none();
        let zone = self.zone.get_or_insert_default();
        let differs = if changed.names {
            dns::renew(zone, &self.cluster, &self.liveness)
        } else {
            dns::follow(zone, &self.cluster, &self.liveness, &changed.workloads)
        };
        if differs || first {
            out.push(Action::Zone(zone.clone()));
        }
    }

    /// Whom this node's containers reach, told when it changes. Not before it is known which there are: what the
    /// agent before this one said holds until then.
    fn isolate(&mut self, out: &mut Actions) {
        let held = self.replicas.addresses();
        let changed = std::mem::take(&mut self.unplanned.reached);
        let first = self.reach.is_none();
        let anew = std::mem::take(&mut self.unplanned.isolation) || first;
        let view =
            View { cluster: &self.cluster, me: self.settings.me, range: self.settings.container_range };
        let reach = self.reach.get_or_insert_default();
        let differs = if anew { reach.renew(view, held) } else { reach.follow(view, held, &changed) };
        if differs || first {
            out.push(Action::Isolate(reach.plan().clone()));
        }
    }

    /// What the workloads of these replicas wait for before they start.
    pub(super) fn waits_of<'a>(
        &self,
        replicas: impl Iterator<Item = (&'a ReplicaId, &'a &'a Workload)>,
    ) -> BTreeMap<WorkloadId, String> {
        let me = self.settings.me;
        let is_past = |replica: &ReplicaId, node: &NodeId| *node == me && !self.replicas.runs(replica);
        let with_dependencies = replicas.filter(|(_, workload)| !workload.spec.depends_on.is_empty());
        let waits = |(replica, workload): (&ReplicaId, &&Workload)| {
            let why = dependencies::waits_for(&self.cluster, &replica.workload, workload, is_past)?;
            Some((replica.workload.clone(), why))
        };
        with_dependencies.filter_map(waits).collect()
    }

    /// Takes this node's replicas a step further.
    fn run_replicas(&mut self, now: Time, out: &mut Actions) {
        // A node that lost its store leaves what runs alone until somebody tells it what is wanted.
        let is_known = self.inventory_known && self.knows_enough();
        if is_known {
            self.isolate(out);
        }
        if self.grace_until_ms.is_some() || !is_known {
            self.replica_wake_ms = None;
            return;
        }
        let volumes = self.volumes.look(now, &self.cluster, self.replicas.volumes());
        self.tell_volumes(now, &volumes);
        self.tell_images(now);
        self.share_secrets(now, out);
        self.check_before_first_run(now, out);
        let leases = self.hold_leases(now, out);
        let mut wanted = self.cluster.assignments(&self.settings.me);
        wanted.retain(|_, workload| self.run_before.contains(&workload.digest));
        let Some(facts) = &self.facts else { return };
        let waits = self.waits_of(wanted.iter());
        let workloads = wanted.iter().map(|(replica, workload)| (&replica.workload, *workload));
        let barred = permission::barred(&self.cluster, workloads);
        let mounts = self.volumes_of(&wanted);
        let secrets = self.secrets_of(&wanted);
        let credentials = self.credentials_of(&wanted);
        let here = Here {
            leases: &leases,
            waits: &waits,
            barred: &barred,
            volumes: &mounts,
            secrets: &secrets,
            credentials: &credentials,
            asker: Asker {
                cluster: &self.cluster,
                liveness: &self.liveness,
                me: self.settings.me,
                peer_port: self.settings.peer_port,
            },
            workloads: &self.cluster.workloads,
            orders: &volumes.orders,
            network: self.network.as_ref().and_then(|plan: &NetworkPlan| plan.local.as_ref()),
            capacity: facts.capacity,
        };
        let plan = self.replicas.plan(now, &wanted, here);
        // Before what is started now, of which others are told by its address.
        self.isolate(out);
        let lease_wake_ms = self.leases.wake_at_ms(now.mono_ms);
        let wakes = [plan.wake_at_ms, lease_wake_ms, volumes.wake_at_ms];
        self.replica_wake_ms = wakes.into_iter().flatten().min();
        // What ran before under this name was removed, and its deadline with it.
        let fenced =
            |op: &RuntimeOp| matches!(op, RuntimeOp::Start(start) if plan.fences.contains_key(&start.id));
        let starts = plan.operations.iter().any(|(_, op)| fenced(op));
        if self.fences != plan.fences || starts {
            if !plan.fences.is_empty() {
                out.push(Action::Fence(plan.fences.clone()));
            }
            self.fences.clone_from(&plan.fences);
        }
        for (operation, op) in plan.operations {
            out.push(Action::Runtime { operation, op });
        }
        if self.health_checks.as_ref() != Some(&plan.health_checks) {
            out.push(Action::HealthChecks(plan.health_checks.clone()));
            self.health_checks = Some(plan.health_checks);
        }
        if self.secrets != plan.secrets {
            out.push(Action::Secrets(plan.secrets.clone()));
            self.secrets = plan.secrets;
        }
        self.tell_replicas(now, plan.statuses, out);
    }

    /// The volumes of replicas that have any, or why they cannot be used here.
    fn volumes_of(
        &self,
        wanted: &BTreeMap<ReplicaId, &Workload>,
    ) -> BTreeMap<ReplicaId, Result<BTreeMap<String, VolumePlan>, String>> {
        let me = self.settings.me;
        let mut all = BTreeMap::new();
        for (replica, workload) in wanted.iter().filter(|(_, w)| !w.spec.container.volumes.is_empty()) {
            let plan = |(name, (part, per)): (String, (VolumePart, Per))| {
                let home = volume::home(&self.cluster, &part, Some(&me)).filter(|home| *home != me);
                if let Some(home) =
                    home.filter(|_| per != Per::Node && !self.replicas.volumes().contains_key(&part))
                {
                    return Err(format!("its volume {name} is on {}", self.cluster.hostname(&home)));
                }
                let size_bytes = self.cluster.volumes.get(&part.volume).and_then(|spec| spec.size_bytes);
                Ok((name, VolumePlan { part, size_bytes }))
            };
            let parts = volume::parts(&self.cluster, replica, workload).map_err(|why| why.to_string());
            let plans = parts.and_then(|parts| parts.into_iter().map(plan).collect());
            all.insert(replica.clone(), plans);
        }
        all
    }

    /// Says which parts of volumes this node has, and takes back what it said about those that are gone.
    fn tell_volumes(&mut self, now: Time, volumes: &volume::Standing) {
        if self.is_revoked(&self.settings.me) {
            return;
        }
        let before = self.own_volume_parts();
        for part in before.into_keys().filter(|part| !volumes.statuses.contains_key(part)) {
            self.say(now, Topic::Volume(part), None);
        }
        for (part, status) in &volumes.statuses {
            self.say(now, Topic::Volume(part.clone()), Some(Observation::Volume(*status)));
        }
    }

    /// Says which images this node was given.
    fn tell_images(&mut self, now: Time) {
        if self.is_revoked(&self.settings.me) {
            return;
        }
        let images = self.replicas.given_images();
        let said = (!images.is_empty()).then(|| Observation::Images(images.clone()));
        self.say(now, Topic::Images, said);
    }

    /// Says how this node's replicas are, and takes back what it said about those that are gone.
    fn tell_replicas(&mut self, now: Time, statuses: BTreeMap<ReplicaId, ReplicaStatus>, out: &mut Actions) {
        if self.is_revoked(&self.settings.me) {
            // Nobody hears it, itself included: it would say the same again and again.
            return;
        }
        let before = self.own_replica_statuses();
        for gone in before.keys().filter(|replica| !statuses.contains_key(replica)) {
            self.replica_said_ms.remove(gone);
            let told = (Severity::Info, "replica-gone", format!("{gone} is gone from this node"));
            self.note_of(now, &gone.workload, told, out);
            self.say(now, Topic::Replica(gone.clone()), None);
        }
        for (replica, status) in statuses {
            if before.get(&replica) == Some(&status) {
                continue;
            }
            let only_progress = before.get(&replica).is_some_and(|said| {
                said.phase == status.phase && said.template == status.template && status.pull.is_some()
            });
            let lately =
                self.replica_said_ms.get(&replica).is_some_and(|said| now.mono_ms < said + PROGRESS_EVERY_MS);
            if only_progress && lately {
                continue;
            }
            self.replica_said_ms.insert(replica.clone(), now.mono_ms);
            if let Some(told) = told(&replica, before.get(&replica), &status) {
                self.note_of(now, &replica.workload, told, out);
            }
            self.say(now, Topic::Replica(replica), Some(Observation::Replica(status)));
        }
    }

    /// Verifies documents once more, from the bytes held, immediately before anything of them is
    /// run for the first time. What does not verify is dropped and not run.
    fn check_before_first_run(&mut self, now: Time, out: &mut Actions) {
        let workloads = &self.cluster.workloads;
        self.run_before.retain(|digest| workloads.values().any(|workload| workload.digest == *digest));
        let new: BTreeMap<_, _> = workloads
            .iter()
            .filter(|(_, workload)| !self.run_before.contains(&workload.digest))
            .filter(|(id, _)| self.cluster.is_assigned(id, &self.settings.me))
            .map(|(id, workload)| (id.clone(), workload.clone()))
            .collect();
        for (id, workload) in new {
            let name = SpecKey { kind: Kind::Workload, namespace: id.namespace, name: id.name };
            let Some(place) = self.trust.current(&name).cloned() else { continue };
            match self.verify_again(&place, &workload) {
                Ok(()) => {
                    self.run_before.insert(workload.digest);
                }
                Err(reason) => {
                    self.drop_record(&place);
                    let text = format!(
                        "{} as stored here does not verify, and nothing of it is run: {reason}",
                        super::replication::describe(&place)
                    );
                    self.note(now, Severity::Error, "stored-record-refused", text, out);
                }
            }
        }
    }

    fn verify_again(&self, place: &RecordKey, workload: &Workload) -> Result<(), String> {
        let held = self.map.get(place).ok_or("it is gone")?;
        let entry = self.keyring.check(place, &held.record).map_err(|e| e.to_string())?;
        match &entry.content {
            Content::Spec(document) if !self.trust.counts(document) => {
                Err("its signer may not write it".to_owned())
            }
            Content::Spec(document)
                if document.digest() == workload.digest
                    && document.value().workload() == Some(&workload.spec) =>
            {
                Ok(())
            }
            _ => Err("the signed bytes say something else".to_owned()),
        }
    }
}

/// What the console tells of a replica's new state; a machine without a network has no other voice.
/// Of the steps on the way to running, waiting for the image is told: it may take long.
fn told(replica: &ReplicaId, before: Option<&ReplicaStatus>, status: &ReplicaStatus) -> Option<Told> {
    let which = |s: &ReplicaStatus| (s.phase, s.template, s.restarts);
    if before.is_some_and(|before| which(before) == which(status)) {
        return None;
    }
    let (level, code, state) = match status.phase {
        Phase::Running => (Severity::Info, "replica-running", "is running"),
        Phase::Completed => (Severity::Info, "replica-completed", "is completed"),
        Phase::Unhealthy => (Severity::Warning, "replica-unhealthy", "is unhealthy"),
        Phase::Backoff => (Severity::Warning, "replica-waits", "waits to start again"),
        Phase::Failed => (Severity::Warning, "replica-failed", "has failed"),
        Phase::Pulling => (Severity::Info, "replica-pulls", "waits for its image"),
        Phase::Stopping => (Severity::Info, "replica-stops", "stops"),
        Phase::Pending | Phase::Assigned | Phase::Starting | Phase::Later => return None,
    };
    let reason = if status.reason.is_empty() { String::new() } else { format!(": {}", status.reason) };
    Some((level, code, format!("{replica} {state}{reason}")))
}
