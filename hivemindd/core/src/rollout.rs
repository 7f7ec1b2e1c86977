//! Who may take a new release of the operating system now: a pure function of the records and of who is alive.
//!
//! ```text
//!   first one node;  once it is well, a fifth of them at a time;  the leader last
//!   a node that fails ends the rollout: nobody else gets a turn until another document is pushed
//!   a node that does not come back, or is not ready on the release, holds it up until it does, or is
//! ```
//!
//! A node is well when it says that it runs the release, that the release is on trial no longer (see
//! [`crate::node`]), and that nothing keeps it from running workloads. It will not wait for nodes that were away before:
//! they get their turn when they are back.

use std::collections::{BTreeMap, BTreeSet};

use hivemind_spec::api::{Release, UpdatePhase};
use hivemind_spec::id::NodeId;
use hivemind_spec::release::Architecture;

use crate::cluster::{Cluster, Liveness, Node, OsRelease};
use crate::record::Rollout;
use crate::time::Time;

/// The part of the nodes that may be updated at a time, once one is well: what they run fits on the others of most
/// clusters, and a hundred take no longer than five.
const BATCHES: usize = 5;

/// How long a node whose turn it is may be away, milliseconds: twice what a machine may take for a release that fails
/// and for the way back, and for the check of a large disk.
const BACK_WITHIN_MS: u64 = 15 * 60 * 1000;

/// How a node stands to a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It runs it, and is well.
    Done,
    /// It runs it, and it is not known yet whether it will be well.
    Proving,
    /// It runs another.
    Before,
    /// It went back from it, or did not take it. In words.
    Failed(String),
}

/// The rollouts that must change. `None`: there is no such release any longer. Empty when all is as it should be;
/// applying the answer makes it so.
///
/// To be called by the leader only, as the scheduler is.
pub fn plan(
    cluster: &Cluster,
    liveness: &Liveness,
    leader: NodeId,
    now: Time,
) -> BTreeMap<Architecture, Option<Rollout>> {
    if liveness.unsettled || !cluster.side(liveness, now).is_majority() {
        // The other side may be updating as well, and all of it counts as away.
        return BTreeMap::new();
    }
    let gone = cluster.rollouts.keys().filter(|name| !cluster.os_releases.contains_key(*name));
    let mut changes: BTreeMap<Architecture, Option<Rollout>> = gone.map(|name| (*name, None)).collect();
    for (architecture, release) in &cluster.os_releases {
        let before = cluster.rollouts.get(architecture);
        let next = advance(cluster, liveness, leader, now, release, before);
        if before != Some(&next) {
            changes.insert(*architecture, Some(next));
        }
    }
    changes
}

fn advance(
    cluster: &Cluster,
    liveness: &Liveness,
    leader: NodeId,
    now: Time,
    release: &OsRelease,
    before: Option<&Rollout>,
) -> Rollout {
    let none = Rollout { digest: release.digest, turns: BTreeSet::new(), stopped: String::new() };
    let all: BTreeMap<NodeId, Standing> = standings(cluster, release).collect();
    let failed = all.iter().find_map(|(id, standing)| match standing {
        Standing::Failed(why) => Some(format!("{}: {why}", cluster.hostname(id))),
        _ => None,
    });
    if let Some(stopped) = failed {
        return Rollout { stopped, ..none };
    }
    if release.spec.paused {
        return Rollout { stopped: "paused by an operator".to_owned(), ..none };
    }
    let live = |id: &NodeId| cluster.is_live(liveness, id);
    let had = before.filter(|before| before.digest == release.digest).map(|before| &before.turns);
    let anybody_waits = all.iter().any(|(id, standing)| *standing == Standing::Before && live(id));
    // A turn ends when its node is well on the release. Who runs it and is not well yet has one in any case.
    let mut turns: BTreeSet<NodeId> = all
        .iter()
        .filter(|(id, standing)| match standing {
            // Who was well on it and then died may have died of it. It holds up those that wait, and nobody else.
            Standing::Done => !live(id) && anybody_waits,
            Standing::Proving => true,
            Standing::Before => had.is_some_and(|had| had.contains(id)),
            Standing::Failed(_) => false,
        })
        .map(|(id, _)| *id)
        .collect();
    let lost = |id: &&NodeId| {
        let missed = liveness.last_seen.get(*id).is_some_and(|seen| seen.missed_ms(now) > BACK_WITHIN_MS);
        !live(id) && missed
    };
    let lost: BTreeSet<NodeId> = turns.iter().filter(lost).copied().collect();
    if let Some(first) = lost.first() {
        let minutes = BACK_WITHIN_MS / 60_000;
        let stopped = format!("{}: it has not come back for {minutes} minutes", cluster.hostname(first));
        return Rollout { turns: lost, stopped, ..none };
    }
    let unwell = turns.iter().find_map(|id| {
        let status = cluster.nodes.get(id)?.status.as_ref()?;
        let proven = status.release.as_ref().is_some_and(|running| !running.on_trial);
        let runs_it = all.get(id) == Some(&Standing::Proving) && proven && live(id);
        let problem = status.problems.first().filter(|_| runs_it)?;
        Some(format!("{}: it runs the release, but {problem}", cluster.hostname(id)))
    });
    if let Some(stopped) = unwell {
        return Rollout { turns, stopped, ..none };
    }
    let is_proven = all.iter().any(|(id, standing)| *standing == Standing::Done && live(id));
    let limit = if is_proven { (all.len() / BATCHES).max(1) } else { 1 };
    let may_take_it = |id: &NodeId| live(id) && cluster.nodes.get(id).is_some_and(may_take_it);
    let waiting = all.iter().filter(|(id, standing)| **standing == Standing::Before && may_take_it(id));
    let mut waiting: Vec<NodeId> = waiting.map(|(id, _)| *id).filter(|id| !turns.contains(id)).collect();
    waiting.sort_by_key(|id| (*id == leader, *id));
    let free = limit.saturating_sub(turns.len());
    turns.extend(waiting.into_iter().take(free));
    Rollout { turns, ..none }
}

/// A node with a fault might not come back from it; one that only is too old has no other way out.
fn may_take_it(node: &Node) -> bool {
    node.is_ready() || node.status.as_ref().is_some_and(|status| status.outdated)
}

/// How each node that can take a release stands to it: of its architecture, started from a boot menu, not revoked.
pub fn standings<'a>(
    cluster: &'a Cluster,
    release: &'a OsRelease,
) -> impl Iterator<Item = (NodeId, Standing)> + 'a {
    let members = cluster.nodes.iter().filter(|(_, node)| !node.is_revoked());
    members.filter_map(|(id, node)| {
        let running = node.status.as_ref()?.release.as_ref()?;
        (running.architecture == release.spec.architecture).then(|| (*id, standing(node, running, release)))
    })
}

fn standing(node: &Node, running: &Release, release: &OsRelease) -> Standing {
    let wanted = release.spec.release;
    let update = node.status.as_ref().and_then(|status| status.update.as_ref());
    if running.id == wanted {
        let well = !running.on_trial && node.is_ready();
        return if well { Standing::Done } else { Standing::Proving };
    }
    if running.failed.contains(&wanted) {
        return Standing::Failed(
            "it was not well on the release, and went back to the one before".to_owned(),
        );
    }
    match update.filter(|update| update.release == wanted && update.phase == UpdatePhase::Failed) {
        Some(update) => Standing::Failed(update.reason.clone()),
        None => Standing::Before,
    }
}

#[cfg(test)]
mod tests {
    use hivemind_spec::api::Update;
    use hivemind_spec::id::ReleaseId;

    use super::*;
    use crate::cluster::LastSeen;
    use crate::fixture::{at, cluster, node_id, os_release};

    const OLD: ReleaseId = ReleaseId([1; 8]);

    /// A cluster of nodes on the old release, for which a new one was pushed.
    fn updating(nodes: u8) -> (Cluster, Liveness) {
        let (mut cluster, liveness) = cluster(nodes);
        for node in cluster.nodes.values_mut() {
            status(node).release = Some(running(OLD));
        }
        cluster.os_releases.insert(Architecture::Amd64, os_release(1));
        (cluster, liveness)
    }

    fn running(id: ReleaseId) -> Release {
        let (architecture, minimum) = (Architecture::Amd64, "0.1.0".to_owned());
        Release { id, architecture, minimum, on_trial: false, failed: Vec::new() }
    }

    fn status(node: &mut Node) -> &mut crate::record::NodeStatus {
        node.status.as_mut().unwrap()
    }

    fn release(cluster: &mut Cluster, n: u8) -> &mut Release {
        status(cluster.nodes.get_mut(&node_id(n)).unwrap()).release.as_mut().unwrap()
    }

    fn wanted(cluster: &Cluster) -> ReleaseId {
        cluster.os_releases[&Architecture::Amd64].spec.release
    }

    /// Applies what the leader, node 1, decides, and says who may take the release.
    fn look(cluster: &mut Cluster, liveness: &Liveness) -> Vec<NodeId> {
        for (architecture, rollout) in plan(cluster, liveness, node_id(1), at(100)) {
            match rollout {
                Some(rollout) => drop(cluster.rollouts.insert(architecture, rollout)),
                None => drop(cluster.rollouts.remove(&architecture)),
            }
        }
        assert!(plan(cluster, liveness, node_id(1), at(100)).is_empty(), "a second look changes nothing");
        cluster.rollouts.values().flat_map(|rollout| rollout.turns.clone()).collect()
    }

    #[test]
    fn one_node_goes_first_then_a_fifth_at_a_time_and_the_leader_last() {
        let (mut cluster, liveness) = updating(12);
        let new = wanted(&cluster);
        assert_eq!(look(&mut cluster, &liveness), [node_id(2)]);
        release(&mut cluster, 2).id = new;
        release(&mut cluster, 2).on_trial = true;
        assert_eq!(look(&mut cluster, &liveness), [node_id(2)], "it has yet to prove itself");
        release(&mut cluster, 2).on_trial = false;
        let mut order = vec![node_id(2)];
        loop {
            let turns = look(&mut cluster, &liveness);
            if turns.is_empty() {
                break;
            }
            assert!(turns.len() <= 2, "{turns:?}");
            for id in turns {
                cluster.nodes.get_mut(&id).map(status).unwrap().release = Some(running(new));
                order.push(id);
            }
        }
        assert_eq!(order.len(), 12);
        assert_eq!(order.last(), Some(&node_id(1)), "the leader");
    }

    #[test]
    fn a_node_that_goes_back_or_does_not_take_it_ends_the_rollout_with_the_reason() {
        for way in 0..2 {
            let (mut cluster, liveness) = updating(10);
            let new = wanted(&cluster);
            look(&mut cluster, &liveness);
            if way == 0 {
                release(&mut cluster, 2).failed.push(new);
            } else {
                let reason = "the disk has no room".to_owned();
                status(cluster.nodes.get_mut(&node_id(2)).unwrap()).update = Some(Update {
                    release: new,
                    phase: UpdatePhase::Failed,
                    done_bytes: 0,
                    total_bytes: 0,
                    reason,
                });
            }
            assert!(look(&mut cluster, &liveness).is_empty());
            let stopped = &cluster.rollouts[&Architecture::Amd64].stopped;
            assert!(stopped.starts_with("hive-2: ") && stopped.len() > 20, "{stopped}");
            // Another release is another matter.
            cluster.os_releases.insert(Architecture::Amd64, os_release(2));
            assert_eq!(look(&mut cluster, &liveness), [node_id(2)]);
        }
    }

    #[test]
    fn a_node_that_does_not_come_back_holds_the_rollout_up_until_it_does() {
        let (mut cluster, mut liveness) = updating(4);
        let new = wanted(&cluster);
        look(&mut cluster, &liveness);
        liveness.alive.remove(&node_id(2));
        liveness
            .last_seen
            .insert(node_id(2), LastSeen { wall_ms: 0, missed_ms: 60_000, counted_ms: at(100).mono_ms });
        assert_eq!(look(&mut cluster, &liveness), [node_id(2)], "it has yet to come back");
        assert!(cluster.rollouts[&Architecture::Amd64].stopped.is_empty());
        liveness.last_seen.get_mut(&node_id(2)).unwrap().missed_ms = BACK_WITHIN_MS + 1;
        assert_eq!(look(&mut cluster, &liveness), [node_id(2)], "nobody else");
        assert!(cluster.rollouts[&Architecture::Amd64].stopped.contains("hive-2: it has not come back"));
        liveness.alive.insert(node_id(2));
        release(&mut cluster, 2).id = new;
        assert_eq!(look(&mut cluster, &liveness), [node_id(3)]);
        assert!(cluster.rollouts[&Architecture::Amd64].stopped.is_empty());
    }

    #[test]
    fn a_node_that_dies_after_all_have_the_release_holds_nothing_up_and_before_that_it_does() {
        let (mut cluster, mut liveness) = updating(3);
        let new = wanted(&cluster);
        let away = LastSeen { wall_ms: 0, missed_ms: BACK_WITHIN_MS + 1, counted_ms: at(100).mono_ms };
        release(&mut cluster, 2).id = new;
        assert_eq!(look(&mut cluster, &liveness), [node_id(3)]);
        liveness.alive.remove(&node_id(2));
        liveness.last_seen.insert(node_id(2), away);
        assert!(look(&mut cluster, &liveness).contains(&node_id(2)), "it was the first to have it");
        release(&mut cluster, 1).id = new;
        release(&mut cluster, 3).id = new;
        assert!(look(&mut cluster, &liveness).is_empty());
        assert_eq!(cluster.rollouts[&Architecture::Amd64].stopped, "");
    }

    #[test]
    fn a_node_that_is_not_ready_on_the_release_holds_the_rollout_up_and_says_why() {
        let (mut cluster, liveness) = updating(3);
        release(&mut cluster, 2).id = wanted(&cluster);
        status(cluster.nodes.get_mut(&node_id(2)).unwrap()).problems = vec!["there is no disk".to_owned()];
        assert_eq!(look(&mut cluster, &liveness), [node_id(2)]);
        let stopped = &cluster.rollouts[&Architecture::Amd64].stopped;
        assert_eq!(stopped, "hive-2: it runs the release, but there is no disk");
        status(cluster.nodes.get_mut(&node_id(2)).unwrap()).problems.clear();
        assert_eq!(look(&mut cluster, &liveness), [node_id(3)]);
    }

    #[test]
    fn a_node_that_is_not_ready_gets_no_turn_unless_its_release_is_what_is_wrong_with_it() {
        let (mut cluster, liveness) = updating(3);
        let unready = status(cluster.nodes.get_mut(&node_id(2)).unwrap());
        unready.problems = vec!["its release is too old".to_owned()];
        assert_eq!(look(&mut cluster.clone(), &liveness), [node_id(3)]);
        status(cluster.nodes.get_mut(&node_id(2)).unwrap()).outdated = true;
        assert_eq!(look(&mut cluster, &liveness), [node_id(2)]);
    }

    #[test]
    fn nobody_gets_a_turn_while_it_is_paused_or_on_the_smaller_side_and_nobody_waits_for_who_is_away() {
        let (mut cluster, mut liveness) = updating(5);
        liveness.alive.remove(&node_id(2));
        assert_eq!(look(&mut cluster, &liveness), [node_id(3)]);
        cluster.os_releases.get_mut(&Architecture::Amd64).unwrap().spec.paused = true;
        assert!(look(&mut cluster, &liveness).is_empty());
        cluster.os_releases.get_mut(&Architecture::Amd64).unwrap().spec.paused = false;
        liveness.alive.retain(|id| *id == node_id(1));
        assert!(look(&mut cluster, &liveness).is_empty(), "one of five");
    }

    #[test]
    fn a_release_that_is_gone_is_rolled_out_no_further_and_nodes_that_cannot_take_it_are_left_out() {
        let (mut cluster, liveness) = updating(3);
        release(&mut cluster, 2).architecture = Architecture::Arm64;
        status(cluster.nodes.get_mut(&node_id(3)).unwrap()).release = None;
        assert_eq!(look(&mut cluster, &liveness), [node_id(1)]);
        cluster.os_releases.clear();
        look(&mut cluster, &liveness);
        assert!(cluster.rollouts.is_empty());
    }
}
