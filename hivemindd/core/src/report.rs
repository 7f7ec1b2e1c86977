//! What the API tells people about nodes, workloads and replicas, in words that help.

mod secrets;

use std::collections::{BTreeMap, BTreeSet};

use hivemind_spec::api::{self, Capacity, NodeState, Phase, RolloutState};
use hivemind_spec::document::SpecKey;
use hivemind_spec::id::{ClusterId, Digest, NodeId};
use hivemind_spec::machine::API_PORT;
use hivemind_spec::release::Architecture;
use hivemind_spec::volume::Per;
use hivemind_spec::workload::{Protocol, Takeover};

use crate::cluster::{self, Cluster, ContainerRange, Liveness, OsRelease};
use crate::job;
use crate::record::{Doubled, GivenImage, Overtaken, ReplicaId, ReplicaStatus, VolumeId, WorkloadId};
use crate::replica::exit_code;
use crate::rollout::{self, Standing};
use crate::time::Time;
use crate::volume;

/// Problems listed in a status, at most: a cluster in trouble must not drown the first cause.
const MAX_PROBLEMS: usize = 50;

/// All that reports are made from.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The records.
    pub cluster: &'a Cluster,
    /// Who is alive.
    pub liveness: &'a Liveness,
    /// When.
    pub now: Time,
    /// The answering node.
    pub me: NodeId,
    /// The leader in its view.
    pub leader: Option<NodeId>,
    /// The range of node subnets.
    pub range: ContainerRange,
    /// The cluster.
    pub cluster_id: ClusterId,
    /// Its name.
    pub cluster_name: &'a str,
    /// The digest of the whole replicated map, hexadecimal.
    pub map_digest: &'a str,
}

impl View<'_> {
    /// `GET /v1/nodes`, by id.
    pub fn nodes(&self) -> Vec<api::Node> {
        let mut load: BTreeMap<NodeId, (Capacity, u32)> = BTreeMap::new();
        for (id, workload) in &self.cluster.workloads {
            let asks = &workload.spec.container.resources;
            let placed = self.cluster.placements.get(id).map(|placed| &placed.slots);
            let is_done = |slot: u32, node: &NodeId| {
                self.cluster.phase(id, workload, slot, node) == Some(Phase::Completed)
            };
            let ends = workload.spec.completes();
            let slots = placed.into_iter().flatten().filter(|(slot, node)| !ends || !is_done(**slot, node));
            for node in slots.map(|(_, node)| node) {
                let (requested, replicas) = load.entry(*node).or_default();
                requested.cpu_millis = requested.cpu_millis.saturating_add(asks.cpu_millis());
                requested.memory_bytes = requested.memory_bytes.saturating_add(asks.memory_bytes());
                *replicas += 1;
            }
        }
        let nodes = self.cluster.nodes.iter();
        nodes.map(|(id, node)| self.node(id, node, load.get(id).copied().unwrap_or_default())).collect()
    }

    fn node(&self, id: &NodeId, node: &cluster::Node, (requested, replicas): (Capacity, u32)) -> api::Node {
        let status = node.status.as_ref();
        let state = self.state(id, node);
        let mut problems = match state {
            NodeState::Revoked => vec!["revoked by an operator".to_owned()],
            NodeState::Down => vec![self.last_heard(id)],
            _ if status.is_none() => vec!["has joined and not yet said what it is".to_owned()],
            _ => status.map(|status| status.problems.clone()).unwrap_or_default(),
        };
        problems.extend(self.cluster.doubled.get(id).map(doubled_text));
        let subnet = node.enrolment.subnet.and_then(|index| self.range.subnet(index));
        api::Node {
            id: *id,
            hostname: self.cluster.hostname(id),
            state,
            problems,
            leader: self.leader == Some(*id),
            cordoned: node.is_cordoned(),
            address: status.map(|status| status.address.to_string()).unwrap_or_default(),
            api: status
                .map(|status| std::net::SocketAddr::new(status.address, API_PORT).to_string())
                .unwrap_or_default(),
            subnet: subnet.map(|s| format!("{s}/{}", ContainerRange::SUBNET_PREFIX)).unwrap_or_default(),
            version: status.map(|status| status.version.clone()).unwrap_or_default(),
            release: status.and_then(|status| status.release.clone()),
            update: status.and_then(|status| status.update.clone()),
            labels: node.labels(),
            capacity: status.map(|status| status.capacity).unwrap_or_default(),
            requested,
            replicas,
            started_ms: status.map_or(0, |status| status.started_ms),
            enrolled_ms: node.enrolment.enrolled_ms,
        }
    }

    fn state(&self, id: &NodeId, node: &cluster::Node) -> NodeState {
        if node.is_revoked() {
            NodeState::Revoked
        } else if !self.liveness.alive.contains(id) {
            NodeState::Down
        } else if node.is_ready() {
            NodeState::Ready
        } else {
            NodeState::NotReady
        }
    }

    fn last_heard(&self, id: &NodeId) -> String {
        match self.liveness.last_seen.get(id).map(|seen| seen.wall_ms) {
            Some(seen) => format!("last heard of {} ago", duration(self.now.wall_ms.saturating_sub(seen))),
            None => "never heard of since this node started".to_owned(),
        }
    }

    /// `GET /v1/releases`, by architecture.
    pub fn releases(&self) -> Vec<api::Rollout> {
        let releases = self.cluster.os_releases.iter();
        releases.map(|(architecture, release)| self.rollout(*architecture, release)).collect()
    }

    fn rollout(&self, architecture: Architecture, release: &OsRelease) -> api::Rollout {
        let standings: Vec<Standing> =
            rollout::standings(self.cluster, release).map(|(_, how)| how).collect();
        let done = standings.iter().filter(|how| **how == Standing::Done).count();
        let decided =
            self.cluster.rollouts.get(&architecture).filter(|rollout| rollout.digest == release.digest);
        let reason = decided.map(|rollout| rollout.stopped.clone()).unwrap_or_default();
        let state = if release.spec.paused {
            RolloutState::Paused
        } else if !reason.is_empty() {
            RolloutState::Stopped
        } else if done == standings.len() {
            RolloutState::Done
        } else {
            RolloutState::Rolling
        };
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        api::Rollout {
            architecture,
            version: release.spec.version.clone(),
            release: release.spec.release,
            state,
            reason,
            done: count(done),
            nodes: count(standings.len()),
            turns: decided.map(|rollout| rollout.turns.iter().copied().collect()).unwrap_or_default(),
        }
    }

    /// `GET /v1/volumes`, by namespace and name; of one namespace if given.
    pub fn volumes(&self, namespace: Option<&str>) -> Vec<api::Volume> {
        let documents = self.cluster.volumes.keys();
        let names: BTreeSet<&VolumeId> =
            documents.chain(self.cluster.volume_parts.keys().map(|(part, _)| &part.volume)).collect();
        let chosen = names.into_iter().filter(|id| namespace.is_none_or(|n| n == id.namespace));
        chosen.map(|id| self.volume(id)).collect()
    }

    fn volume(&self, id: &VolumeId) -> api::Volume {
        let parts = self.cluster.parts_of(id).map(|((part, node), status)| api::VolumePart {
            number: part.number,
            node: *node,
            hostname: self.cluster.hostname(node),
            reachable: self.cluster.is_live(self.liveness, node),
            made_ms: status.made_ms,
            used_bytes: status.used_bytes,
            discarding_ms: status.discarding_ms,
        });
        api::Volume {
            namespace: id.namespace.clone(),
            name: id.name.clone(),
            spec: self.cluster.volumes.get(id).cloned(),
            workloads: self.cluster.users_of(id).map(|user| user.name.clone()).collect(),
            parts: parts.collect(),
        }
    }

    /// `GET /v1/images`, by name; of those of one name the one that was given last comes first.
    pub fn images(&self) -> Vec<api::GivenImage> {
        let mut all: BTreeMap<(&String, Digest), api::GivenImage> = BTreeMap::new();
        for (node, images) in &self.cluster.images {
            for (name, GivenImage { digest, given_ms }) in images {
                let new = || api::GivenImage {
                    name: name.clone(),
                    digest: format!("sha256:{digest}"),
                    given_ms: *given_ms,
                    nodes: Vec::new(),
                };
                let image = all.entry((name, *digest)).or_insert_with(new);
                image.given_ms = image.given_ms.max(*given_ms);
                image.nodes.push(api::Holder {
                    node: *node,
                    hostname: self.cluster.hostname(node),
                    reachable: self.cluster.is_live(self.liveness, node),
                });
            }
        }
        let mut all: Vec<_> = all.into_values().collect();
        all.sort_by(|a, b| (&a.name, b.given_ms, &a.digest).cmp(&(&b.name, a.given_ms, &b.digest)));
        all
    }

    /// `GET /v1/workloads`, by namespace and name; of one namespace if given.
    pub fn workloads(&self, namespace: Option<&str>) -> Vec<api::Workload> {
        let chosen =
            self.cluster.workloads.iter().filter(|(id, _)| namespace.is_none_or(|n| n == id.namespace));
        let workloads = chosen.map(|(id, workload)| {
            let current = |status: &ReplicaStatus| {
                status.phase == Phase::Running && status.template == workload.template
            };
            let running = self.placed(id).filter_map(|(_, _, status)| status).filter(|s| current(s)).count();
            let ports = workload.spec.container.ports.iter();
            api::Workload {
                namespace: id.namespace.clone(),
                name: id.name.clone(),
                image: workload.spec.container.image.clone(),
                replicas: self.cluster.wanted(workload),
                running: u32::try_from(running).unwrap_or(u32::MAX),
                revision: workload.revision,
                digest: workload.digest,
                job: workload.spec.job.as_ref().map(|_| self.job(id, workload)),
                ports: ports
                    .filter_map(|port| {
                        let outside = port.published?;
                        Some(format!("{outside}/{} -> {}", protocol(port.protocol), port.target))
                    })
                    .collect(),
            }
        });
        workloads.collect()
    }

    fn job(&self, id: &WorkloadId, workload: &cluster::Workload) -> api::Job {
        let (completed, failed) = job::counts(self.cluster, id, workload);
        let next_ms = job::next_ms(workload, self.now);
        api::Job { completed, failed, run_ms: workload.run_ms, next_ms }
    }

    /// A workload's placed slots: slot, node, and what the node says if it can be heard.
    fn placed(&self, id: &WorkloadId) -> impl Iterator<Item = (u32, NodeId, Option<&ReplicaStatus>)> {
        let slots = self.cluster.placements.get(id).map(|placed| &placed.slots);
        slots.into_iter().flatten().map(|(slot, node)| {
            let key = (ReplicaId { workload: id.clone(), slot: *slot }, *node);
            let heard = self.cluster.is_live(self.liveness, node);
            (*slot, *node, self.cluster.replicas.get(&key).filter(|_| heard))
        })
    }

    /// `GET /v1/replicas`, by namespace, workload and slot; of one namespace and one workload if
    /// given. Also lists what is still being stopped on other nodes than the placement says.
    pub fn replicas(&self, namespace: Option<&str>, workload: Option<&str>) -> Vec<api::Replica> {
        let chosen = |id: &WorkloadId| {
            namespace.is_none_or(|n| n == id.namespace) && workload.is_none_or(|n| n == id.name)
        };
        let mut replicas = Vec::new();
        for (id, workload) in self.cluster.workloads.iter().filter(|(id, _)| chosen(id)) {
            for (slot, node, status) in self.placed(id) {
                let row = self.row(&ReplicaId { workload: id.clone(), slot }, Some(node), status);
                replicas.push(if status.is_some() { row } else { self.unheard(row, workload, node) });
            }
            for (slot, reason) in self.pending(id, workload) {
                let row = self.row(&ReplicaId { workload: id.clone(), slot }, None, None);
                replicas.push(api::Replica { reason, ..row });
            }
        }
        for ((replica, node), status) in &self.cluster.replicas {
            let placed = self.cluster.placements.get(&replica.workload);
            let here = placed.and_then(|placed| placed.slots.get(&replica.slot)) == Some(node)
                && self.cluster.workloads.contains_key(&replica.workload);
            if !here && chosen(&replica.workload) && self.cluster.is_live(self.liveness, node) {
                replicas.push(self.row(replica, Some(*node), Some(status)));
            }
        }
        replicas.sort_by(|a, b| {
            (&a.namespace, &a.workload, a.slot, a.node).cmp(&(&b.namespace, &b.workload, b.slot, b.node))
        });
        replicas
    }

    /// The slots that are nowhere, and why.
    fn pending(&self, id: &WorkloadId, workload: &cluster::Workload) -> BTreeMap<u32, String> {
        match self.cluster.placements.get(id) {
            Some(placed) => {
                let placement = placed;
                let nowhere =
                    placement.pending.iter().filter(|(slot, _)| !placement.slots.contains_key(slot));
                nowhere.map(|(slot, reason)| (*slot, reason.clone())).collect()
            }
            None => {
                let reason = match self.leader {
                    Some(leader) => format!("waits for {} to place it", self.cluster.hostname(&leader)),
                    None => "waits for a leader: no node is ready".to_owned(),
                };
                (0..self.cluster.wanted(workload)).map(|slot| (slot, reason.clone())).collect()
            }
        }
    }

    /// Completes the row of a placed replica of which nothing is heard.
    fn unheard(&self, row: api::Replica, workload: &cluster::Workload, node: NodeId) -> api::Replica {
        let hostname = &row.hostname;
        if self.cluster.is_live(self.liveness, &node) {
            let reason = format!("waits for {hostname} to begin");
            return api::Replica { phase: Phase::Assigned, reason, ..row };
        }
        let id = WorkloadId { namespace: row.namespace.clone(), name: row.workload.clone() };
        let placed = self.cluster.placements.get(&id);
        let side = self.cluster.side(self.liveness, self.now);
        let why = match workload.spec.takeover {
            _ if volume::is_bound(self.cluster, &id, workload) => {
                "its data is there, and so it waits for its node".to_owned()
            }
            Takeover::Never => "takeover is \"never\", so it waits for its node".to_owned(),
            Takeover::Majority if !side.is_majority() => format!(
                "this side sees {} of {} nodes and may not take over; takeover is \"majority\"",
                side.alive, side.counted
            ),
            _ => match placed.and_then(|placed| placed.pending.get(&row.slot)) {
                Some(reason) => reason.clone(),
                None => "is about to be taken over".to_owned(),
            },
        };
        let reason = format!("{hostname} is down, {}: {why}", self.last_heard(&node));
        api::Replica { phase: Phase::Pending, reason, ..row }
    }

    fn row(&self, id: &ReplicaId, node: Option<NodeId>, status: Option<&ReplicaStatus>) -> api::Replica {
        let workload = self.cluster.workloads.get(&id.workload);
        let placed = self.cluster.placements.get(&id.workload).and_then(|placed| placed.digest);
        let current = workload.filter(|workload| {
            placed == Some(workload.digest)
                && status.is_some_and(|status| status.template == workload.template)
        });
        api::Replica {
            namespace: id.workload.namespace.clone(),
            workload: id.workload.name.clone(),
            slot: id.slot,
            node,
            hostname: node.map(|node| self.cluster.hostname(&node)).unwrap_or_default(),
            phase: status.map_or(Phase::Pending, |status| status.phase),
            reason: status.map(|status| status.reason.clone()).unwrap_or_default(),
            image: workload.map(|workload| workload.spec.container.image.clone()).unwrap_or_default(),
            ip: status
                .filter(|_| workload.is_none_or(|workload| !workload.spec.container.offline))
                .and_then(|status| status.ip)
                .map(|ip| ip.to_string())
                .unwrap_or_default(),
            restarts: status.map_or(0, |status| status.restarts),
            since_ms: status.map_or(0, |status| status.since_ms),
            exit_code: status
                .filter(|status| matches!(status.phase, Phase::Completed | Phase::Failed))
                .and_then(|status| exit_code(&status.reason)),
            pull: status.and_then(|status| status.pull),
            digest: current.map(|workload| workload.digest),
        }
    }

    /// `GET /v1/status`.
    pub fn status(&self) -> api::Status {
        let states: Vec<NodeState> =
            self.cluster.nodes.iter().map(|(id, node)| self.state(id, node)).collect();
        let count = |which: &dyn Fn(&NodeState) -> bool| {
            u32::try_from(states.iter().filter(|state| which(state)).count()).unwrap_or(u32::MAX)
        };
        let running = self.cluster.workloads.keys().flat_map(|id| self.placed(id));
        let running = running.filter(|(_, _, s)| s.is_some_and(|s| s.phase == Phase::Running)).count();
        let wanted = self.cluster.workloads.iter().map(|(id, workload)| {
            let (completed, _) = job::counts(self.cluster, id, workload);
            self.cluster.wanted(workload).saturating_sub(completed)
        });
        api::Status {
            cluster: self.cluster_id,
            cluster_name: self.cluster_name.to_owned(),
            node: self.me,
            leader: self.leader,
            nodes_ready: count(&|state| *state == NodeState::Ready),
            nodes: count(&|state| *state != NodeState::Revoked),
            replicas_running: u32::try_from(running).unwrap_or(u32::MAX),
            replicas: wanted.fold(0, u32::saturating_add),
            map_digest: self.map_digest.to_owned(),
            problems: self.problems(),
        }
    }

    /// What needs attention: the cluster first, then nodes, ports, replicas.
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let side = self.cluster.side(self.liveness, self.now);
        if !side.is_majority() {
            let (alive, counted) = (side.alive, side.counted);
            problems
                .push(format!("this side sees {alive} of {counted} nodes and takes nothing over by default"));
        }
        if self.leader.is_none() {
            problems.push("no leader: nothing new is placed until a node is ready".to_owned());
        }
        for (name, overtaken) in &self.cluster.overtaken {
            problems.push(overtaken_text(name, overtaken));
        }
        for node in
            self.nodes().iter().filter(|node| matches!(node.state, NodeState::Down | NodeState::NotReady))
        {
            let state = if node.state == NodeState::Down { "down" } else { "not ready" };
            problems.push(format!("node {} is {state}: {}", node.hostname, node.problems.join("; ")));
        }
        for (id, doubled) in &self.cluster.doubled {
            problems.push(format!("node {}: {}", self.cluster.hostname(id), doubled_text(doubled)));
        }
        for rollout in self.releases().iter().filter(|rollout| rollout.state == RolloutState::Stopped) {
            let name = rollout.architecture.name();
            problems
                .push(format!("release {} for {name} goes no further: {}", rollout.version, rollout.reason));
        }
        problems.extend(self.volumes(None).iter().flat_map(doubled_parts));
        problems.extend(self.exposed_secrets());
        let owners = self.cluster.port_owners();
        for (id, workload) in &self.cluster.workloads {
            for port in &workload.spec.container.ports {
                let Some(outside) = port.published else { continue };
                if let Some(owner) = owners.get(&(port.protocol, outside)).filter(|owner| **owner != id) {
                    problems.push(format!(
                        "{}/{} does not get port {outside}/{}: {}/{} has it; publish another",
                        id.namespace,
                        id.name,
                        protocol(port.protocol),
                        owner.namespace,
                        owner.name
                    ));
                }
            }
        }
        for replica in self.replicas(None, None) {
            let word = match replica.phase {
                Phase::Pending => "is pending",
                Phase::Backoff => "waits to start again",
                Phase::Unhealthy => "is unhealthy",
                Phase::Failed => "has failed",
                _ => continue,
            };
            let api::Replica { namespace, workload, slot, reason, .. } = replica;
            problems.push(format!("{namespace}/{workload}-{slot} {word}: {reason}"));
        }
        if problems.len() > MAX_PROBLEMS {
            let more = problems.len() - MAX_PROBLEMS;
            problems.truncate(MAX_PROBLEMS);
            problems.push(format!("and {more} more"));
        }
        problems
    }
}

/// What is to be told of a volume's parts that are on several machines though there is to be one.
fn doubled_parts(volume: &api::Volume) -> Vec<String> {
    let each_node_has_its_own = volume.spec.as_ref().is_none_or(|spec| spec.per == Per::Node);
    let mut hosts: BTreeMap<u32, Vec<&str>> = BTreeMap::new();
    for part in volume.parts.iter().filter(|_| !each_node_has_its_own) {
        hosts.entry(part.number).or_default().push(&part.hostname);
    }
    let told = |(number, hosts): (u32, Vec<&str>)| {
        let (namespace, name) = (&volume.namespace, &volume.name);
        let list = hosts.join(" and ");
        format!(
            "volume {namespace}/{name}-{number} is on {list}: each side of a partition made its own. The one where its \
             workload runs is used; the other is kept"
        )
    };
    hosts.into_iter().filter(|(_, hosts)| hosts.len() > 1).map(told).collect()
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

/// What operators are told of a node that runs twice.
pub fn doubled_text(doubled: &Doubled) -> String {
    let [one, other] = doubled.addresses;
    format!(
        "runs twice, at {one} and {other}: its disk was copied, and the copy started beside it; power off the \
         one that should not be, or revoke the node and enrol the machine anew"
    )
}

/// What the operator is told whose version lost.
pub fn overtaken_text(name: &SpecKey, overtaken: &Overtaken) -> String {
    let Overtaken { version, signer, by, by_signer, .. } = overtaken;
    format!(
        "{name}: revision {} ({}) by key {} was replaced by {} by key {}, whose signer had not seen it; \
         see `hivemind plan`, and push again what is still wanted",
        version.revision,
        version.digest,
        signer.short(),
        by,
        by_signer.short()
    )
}

/// `12 s`, `5 min`, `3 h`, `2 days`.
fn duration(ms: u64) -> String {
    match ms / 1000 {
        s @ 0..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s / 60),
        s @ 7200..172_800 => format!("{} h", s / 3600),
        s => format!("{} days", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hivemind_spec::id::Digest;
    use hivemind_spec::volume::VolumeSpec;
    use hivemind_spec::workload::Port;

    use super::*;
    use crate::fixture::{
        at, cluster, hold, mount, node_id, place, running, volume_id, workload, workload_id,
    };

    fn view<'a>(cluster: &'a Cluster, liveness: &'a Liveness) -> View<'a> {
        View {
            cluster,
            liveness,
            now: at(30),
            me: node_id(1),
            leader: Some(node_id(1)),
            range: ContainerRange::parse("10.42.0.0/16").unwrap(),
            cluster_id: ClusterId::of(b"cluster"),
            cluster_name: "home",
            map_digest: "00",
        }
    }

    #[test]
    fn volumes_are_listed_with_their_data_and_who_uses_them_and_two_of_one_are_told() {
        let (mut cluster, mut liveness) = cluster(3);
        let mut db = workload(1);
        db.spec.container.volumes = vec![mount("data", "/data")];
        cluster.workloads.insert(workload_id("db"), db);
        cluster.volumes.insert(volume_id("data"), VolumeSpec::default());
        hold(&mut cluster, "data", 0, 2);
        hold(&mut cluster, "left", 0, 1);
        hold(&mut cluster, "left", 0, 2);
        liveness.alive.remove(&node_id(2));
        let volumes = view(&cluster, &liveness).volumes(Some("default"));
        let [data, left] = &volumes[..] else { panic!("{volumes:#?}") };
        assert_eq!((data.name.as_str(), &data.workloads[..]), ("data", &["db".to_owned()][..]));
        assert_eq!((data.parts[0].hostname.as_str(), data.parts[0].reachable), ("hive-2", false));
        assert_eq!((left.spec.is_none(), left.parts.len()), (true, 2));
        assert!(view(&cluster, &liveness).volumes(Some("other")).is_empty());
        let doubled = |cluster: &Cluster| {
            view(cluster, &liveness)
                .status()
                .problems
                .into_iter()
                .filter(|text| text.contains("volume"))
                .count()
        };
        assert_eq!(doubled(&cluster), 0);
        hold(&mut cluster, "data", 0, 3);
        assert_eq!(doubled(&cluster), 1);
    }

    fn publishing(outside: u16) -> cluster::Workload {
        let mut workload = workload(2);
        workload.spec.container.ports =
            vec![Port { target: 80, published: Some(outside), protocol: Protocol::Tcp }];
        workload
    }

    #[test]
    fn nodes_are_told_with_their_state_load_and_subnet() {
        let (mut cluster, mut liveness) = cluster(3);
        cluster.workloads.insert(workload_id("web"), workload(2));
        running(&mut cluster, "web", 0, 1);
        running(&mut cluster, "web", 1, 1);
        liveness.alive.remove(&node_id(2));
        cluster.nodes.get_mut(&node_id(3)).unwrap().status.as_mut().unwrap().problems =
            vec!["containerd is down".into()];
        let nodes = view(&cluster, &liveness).nodes();
        let states: Vec<NodeState> = nodes.iter().map(|node| node.state).collect();
        assert_eq!(states, [NodeState::Ready, NodeState::Down, NodeState::NotReady]);
        assert_eq!((nodes[0].replicas, nodes[0].requested.cpu_millis), (2, 20));
        assert_eq!((nodes[0].subnet.as_str(), nodes[0].api.as_str()), ("10.42.1.0/24", "192.0.2.1:7443"));
        assert_eq!(nodes[1].problems, ["last heard of 30 s ago"]);
        assert!(nodes[0].leader && !nodes[1].leader);
    }

    #[test]
    fn a_replica_on_a_dead_node_says_why_it_is_not_taken_over() {
        let (mut cluster, mut liveness) = cluster(3);
        cluster.workloads.insert(workload_id("web"), workload(1));
        running(&mut cluster, "web", 0, 2);
        liveness.alive = [node_id(1)].into();
        let replicas = view(&cluster, &liveness).replicas(None, None);
        assert_eq!(replicas.len(), 1);
        assert_eq!((replicas[0].phase, replicas[0].node), (Phase::Pending, Some(node_id(2))));
        assert_eq!(
            replicas[0].reason,
            "hive-2 is down, last heard of 30 s ago: this side sees 1 of 3 nodes and may not take \
             over; takeover is \"majority\""
        );
    }

    #[test]
    fn replicas_without_a_place_or_a_word_say_what_they_wait_for() {
        let (mut cluster, liveness) = cluster(2);
        cluster.workloads.insert(workload_id("a"), workload(1));
        cluster.workloads.insert(workload_id("b"), workload(2));
        place(&mut cluster, "b", 0, 2);
        cluster.placements.get_mut(&workload_id("b")).unwrap().pending =
            [(1, "no node fits: …".into())].into();
        let told: Vec<(String, Phase, String)> = view(&cluster, &liveness)
            .replicas(None, None)
            .into_iter()
            .map(|r| (format!("{}-{}", r.workload, r.slot), r.phase, r.reason))
            .collect();
        assert_eq!(
            told,
            [
                ("a-0".into(), Phase::Pending, "waits for hive-1 to place it".into()),
                ("b-0".into(), Phase::Assigned, "waits for hive-2 to begin".into()),
                ("b-1".into(), Phase::Pending, "no node fits: …".into()),
            ]
        );
        assert_eq!(view(&cluster, &liveness).replicas(None, Some("b")).len(), 2);
        assert_eq!(view(&cluster, &liveness).replicas(Some("other"), None), []);
    }

    #[test]
    fn what_is_being_stopped_elsewhere_is_listed_too() {
        let (mut cluster, liveness) = cluster(2);
        cluster.workloads.insert(workload_id("web"), workload(1));
        running(&mut cluster, "web", 0, 1);
        place(&mut cluster, "web", 0, 2);
        let replicas = view(&cluster, &liveness).replicas(None, None);
        assert_eq!(replicas.iter().map(|r| r.node).collect::<Vec<_>>(), [Some(node_id(1)), Some(node_id(2))]);
    }

    #[test]
    fn workloads_count_what_runs_of_the_current_document() {
        let (mut cluster, liveness) = cluster(2);
        cluster.workloads.insert(workload_id("web"), publishing(8080));
        running(&mut cluster, "web", 0, 1);
        running(&mut cluster, "web", 1, 2);
        let told = view(&cluster, &liveness).workloads(None);
        assert_eq!((told[0].replicas, told[0].running), (2, 2));
        assert_eq!(told[0].ports, ["8080/tcp -> 80"]);
        let mut spec = publishing(8080).spec;
        spec.container.image = "registry.test/app:2".into();
        cluster
            .workloads
            .insert(workload_id("web"), cluster::Workload::new(2, Digest::of(b"revision 2"), spec));
        assert_eq!(view(&cluster, &liveness).workloads(None)[0].running, 0);
        assert_eq!(view(&cluster, &liveness).status().replicas_running, 2);
    }

    #[test]
    fn the_status_names_what_needs_attention() {
        let (mut cluster, mut liveness) = cluster(3);
        cluster.workloads.insert(workload_id("a"), publishing(80));
        cluster.workloads.insert(workload_id("b"), publishing(80));
        let addresses: Vec<Ipv4Addr> =
            vec![running(&mut cluster, "a", 0, 1), running(&mut cluster, "a", 1, 2)];
        assert_eq!(addresses.len(), 2);
        place(&mut cluster, "b", 0, 1);
        place(&mut cluster, "b", 1, 1);
        liveness.alive.remove(&node_id(3));
        let status = view(&cluster, &liveness).status();
        assert_eq!((status.nodes_ready, status.nodes), (2, 3));
        assert_eq!((status.replicas_running, status.replicas), (2, 4));
        assert_eq!(
            status.problems,
            [
                "node hive-3 is down: last heard of 30 s ago",
                "default/b does not get port 80/tcp: default/a has it; publish another",
            ]
        );
    }
}
