//! How far jobs are, and when the next run of one begins. A pure function of the records and of the time.
//!
//! A replica that ends with success is done: the leader writes that down, so that it holds when the node on which it
//! ran is gone. A job that is run at set times has, for each run, a template of its own; so what runs it replaces what
//! ran it before, as a changed document does.
//!
//! Runs are begun by the side that may take over. Each replica of a run ends with success at least once: two sides of
//! a partition may both run it, and a run whose node is cut off before anybody heard of its end is made again.

use std::collections::{BTreeMap, BTreeSet};

use hivemind_spec::api::Phase;
use hivemind_spec::id::Digest;
use hivemind_spec::workload::{Missed, Overlap, Schedule, Takeover};

use crate::cluster::{Cluster, Liveness, Workload};
use crate::record::{JobProgress, WorkloadId};
use crate::time::Time;

/// So long after its time a run counts as missed, milliseconds: longer than another leader needs to take over, and
/// than a machine needs to start.
pub const LATE_MS: u64 = 2 * 60 * 1000;

/// A run that lies so far ahead was begun by a node with a wrong clock, and holds up none, milliseconds. Less than an
/// hour is a clock that was put right, and what was run is not run again.
const WRONG_CLOCK_MS: u64 = 60 * 60 * 1000;

/// What is to be written down of jobs. `None`: the workload is gone. Empty when all is as it should be. To be called
/// by the leader only.
pub fn plan(cluster: &Cluster, liveness: &Liveness, now: Time) -> BTreeMap<WorkloadId, Option<JobProgress>> {
    let majority = !liveness.unsettled && cluster.side(liveness, now).is_majority();
    let gone = cluster.jobs.keys().filter(|id| cluster.gone.contains(*id));
    let mut changes: BTreeMap<_, _> = gone.map(|id| (id.clone(), None)).collect();
    for (id, workload) in cluster.workloads.iter().filter(|(_, workload)| workload.spec.completes()) {
        if !majority && workload.spec.takeover != Takeover::Always {
            continue;
        }
        let progress = begin(cluster, id, workload, now).or_else(|| go_on(cluster, id, workload));
        if progress.is_some() && progress.as_ref() != cluster.jobs.get(id) {
            changes.insert(id.clone(), progress);
        }
    }
    changes
}

/// A new run, if it is time for one.
fn begin(cluster: &Cluster, id: &WorkloadId, workload: &Workload, now: Time) -> Option<JobProgress> {
    let schedule = workload.spec.schedule()?;
    let in_time =
        |due_ms: &u64| schedule.missed == Missed::Run || now.wall_ms.saturating_sub(*due_ms) <= LATE_MS;
    let due_ms = again(workload).or_else(|| due(schedule, workload, now).filter(in_time))?;
    if schedule.overlap == Overlap::Wait && !is_over(cluster, id, workload) {
        return None;
    }
    let template = Digest::of(format!("{}\n{due_ms}", workload.spec.template()).as_bytes());
    Some(JobProgress { template, run_ms: Some(due_ms), completed: BTreeSet::new() })
}

/// Since when an operator wants it to be run, if it was not.
fn again(workload: &Workload) -> Option<u64> {
    let again_ms = workload.spec.job.as_ref()?.again_ms?;
    (again_ms > workload.run_ms.unwrap_or(0)).then_some(again_ms)
}

/// The last time at which it was to be run and was not.
fn due(schedule: &Schedule, workload: &Workload, now: Time) -> Option<u64> {
    // What was due before the document was there is not made up for.
    let last_ms = workload.run_ms.unwrap_or(0).max(workload.revision);
    let is_wrong = last_ms > now.wall_ms.saturating_add(WRONG_CLOCK_MS);
    let last_ms = if is_wrong { now.wall_ms.saturating_sub(LATE_MS) } else { last_ms };
    schedule.last_until(now.wall_ms).filter(|due_ms| *due_ms > last_ms)
}

/// When it is run next, wall milliseconds, if it is run at set times.
pub fn next_ms(workload: &Workload, now: Time) -> Option<u64> {
    let schedule = workload.spec.schedule()?;
    schedule.next_after(now.wall_ms.max(workload.revision))
}

/// Whether nothing of it is left to run.
fn is_over(cluster: &Cluster, id: &WorkloadId, workload: &Workload) -> bool {
    let (completed, failed) = counts(cluster, id, workload);
    completed.saturating_add(failed) >= cluster.wanted(workload)
}

/// How many of its replicas are done, and how many have failed for good.
pub fn counts(cluster: &Cluster, id: &WorkloadId, workload: &Workload) -> (u32, u32) {
    if !workload.spec.completes() {
        return (0, 0);
    }
    let placed = cluster.placements.get(id).map(|placed| &placed.slots);
    let failed = placed.into_iter().flatten().filter(|(slot, node)| {
        cluster.phase(id, workload, **slot, node) == Some(Phase::Failed) && !workload.completed.contains(slot)
    });
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let failed = count(failed.count());
    (count(completed(cluster, id, workload).len()), failed)
}

/// The slots that are done, whether that is written down or not.
fn completed(cluster: &Cluster, id: &WorkloadId, workload: &Workload) -> BTreeSet<u32> {
    let told = cluster
        .replicas_of(id)
        .filter(|(_, status)| status.phase == Phase::Completed && status.template == workload.template);
    workload.completed.iter().copied().chain(told.map(|((replica, _), _)| replica.slot)).collect()
}

/// How far the present run is; `None` when there is nothing to remember.
fn go_on(cluster: &Cluster, id: &WorkloadId, workload: &Workload) -> Option<JobProgress> {
    let completed = completed(cluster, id, workload);
    if workload.waits_for_its_time() || completed.is_empty() {
        return None;
    }
    Some(JobProgress { template: workload.template, run_ms: workload.run_ms, completed })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use hivemind_spec::id::NodeId;
    use hivemind_spec::workload::{Job, RestartCondition};

    use super::*;
    use crate::fixture::{at, cluster, node_id, replica_id, workload, workload_id};
    use crate::record::{Placement, ReplicaStatus};
    use crate::scheduler::schedule;

    /// Noon of a day, and the seconds after it at which the tests are.
    const NOON_MS: u64 = 1_800_014_400_000;

    fn noon(seconds: u64) -> Time {
        Time { wall_ms: NOON_MS + seconds * 1000, ..at(seconds) }
    }

    /// A cluster of three with the job `backup`, of which a leader takes care and which the nodes run.
    struct Bench {
        cluster: Cluster,
        liveness: Liveness,
        now: Time,
    }

    impl Bench {
        fn new(replicas: u32, job: Job) -> Self {
            let (mut cluster, liveness) = cluster(3);
            let mut spec = workload(replicas).spec;
            spec.restart.condition = RestartCondition::OnFailure;
            spec.job = Some(job);
            let workload = Workload::new(NOON_MS - 60_000, Digest::of(b"revision 1"), spec);
            cluster.workloads.insert(workload_id("backup"), workload);
            Self { cluster, liveness, now: noon(0) }
        }

        fn at_noon(missed: Missed, overlap: Overlap) -> Self {
            let schedule = Schedule { cron: "0 12 * * *".into(), time_zone: "UTC".into(), missed, overlap };
            Self::new(1, Job { schedule: Some(schedule), ..Job::default() })
        }

        fn job(&self) -> &Workload {
            &self.cluster.workloads[&workload_id("backup")]
        }

        fn slots(&self) -> BTreeMap<u32, NodeId> {
            let placed = self.cluster.placements.get(&workload_id("backup"));
            placed.map(|placed| placed.slots.clone()).unwrap_or_default()
        }

        /// What a leader does at a look.
        fn lead(&mut self) {
            for (id, progress) in plan(&self.cluster, &self.liveness, self.now) {
                self.cluster.workloads.get_mut(&id).unwrap().take(progress.as_ref());
                self.cluster.jobs.insert(id, progress.unwrap());
            }
            for (id, placement) in schedule(&self.cluster, &self.liveness, self.now) {
                self.cluster.placements.insert(id, placement.unwrap_or_else(Placement::default));
            }
        }

        fn at(&mut self, seconds: u64) -> &mut Self {
            self.now = noon(seconds);
            self.lead();
            self
        }

        /// The node of a slot says how it is there.
        fn says(&mut self, slot: u32, phase: Phase) {
            let node = self.slots()[&slot];
            let status = ReplicaStatus {
                template: self.job().template,
                phase,
                reason: String::new(),
                ip: None,
                restarts: 0,
                since_ms: 0,
                pull: None,
            };
            self.cluster.replicas.insert((replica_id("backup", slot), node), status);
            self.lead();
        }

        /// Nobody hears of a node any more, nor of what it said.
        fn lose(&mut self, node: NodeId) {
            self.liveness.alive.remove(&node);
            self.cluster.nodes.remove(&node);
            self.cluster.replicas.retain(|(_, other), _| *other != node);
            self.lead();
        }
    }

    #[test]
    fn what_ended_with_success_is_not_run_again_though_its_node_is_gone() {
        let mut bench = Bench::new(2, Job::default());
        bench.at(0);
        assert_eq!(bench.slots().len(), 2);
        bench.says(0, Phase::Running);
        bench.says(1, Phase::Completed);
        let (running, done) = (bench.slots()[&0], bench.slots()[&1]);
        bench.lose(done);
        assert_eq!(bench.slots(), [(0, running)].into(), "nobody runs it");
        bench.lose(running);
        assert_eq!(bench.slots().keys().copied().collect::<Vec<_>>(), [0], "what had not ended is run again");
        bench.says(0, Phase::Completed);
        assert_eq!(counts(&bench.cluster, &workload_id("backup"), bench.job()), (2, 0));
    }

    #[test]
    fn what_has_ended_needs_no_room() {
        let mut bench = Bench::new(3, Job::default());
        for workload in bench.cluster.workloads.values_mut() {
            workload.spec.container.resources.cpu_request_millis = Some(4000);
            workload.take(None);
        }
        bench.at(0);
        (0..3).for_each(|slot| bench.says(slot, Phase::Completed));
        let mut other = workload(3);
        other.spec.container.resources.cpu_request_millis = Some(4000);
        bench.cluster.workloads.insert(workload_id("web"), other);
        bench.lead();
        assert_eq!(bench.cluster.placements[&workload_id("web")].slots.len(), 3);
        assert_eq!(bench.slots().len(), 3, "it stays where its logs are");
    }

    #[test]
    fn no_more_run_at_the_same_time_than_the_job_says() {
        let mut bench = Bench::new(5, Job { parallelism: Some(2), ..Job::default() });
        let mut done = 0;
        bench.at(0);
        while done < 5 {
            let running: Vec<u32> = bench.slots().keys().copied().filter(|slot| *slot >= done).collect();
            assert_eq!(running.len() as u32, 2.min(5 - done), "{:?}", bench.slots());
            bench.says(running[0], Phase::Running);
            // One that has failed for good makes way as well.
            bench.says(running[0], if done == 2 { Phase::Failed } else { Phase::Completed });
            done += 1;
        }
        assert_eq!(counts(&bench.cluster, &workload_id("backup"), bench.job()), (4, 1));
    }

    #[test]
    fn a_job_is_run_at_its_times_and_not_before() {
        let mut bench = Bench::at_noon(Missed::Run, Overlap::Wait);
        bench.now.wall_ms -= 30_000;
        bench.lead();
        assert_eq!((bench.slots().len(), next_ms(bench.job(), bench.now)), (0, Some(NOON_MS)));
        bench.at(3);
        let first = bench.job().template;
        assert_eq!((bench.slots().len(), bench.job().run_ms), (1, Some(NOON_MS)));
        bench.says(0, Phase::Completed);
        bench.at(3600);
        assert_eq!(bench.job().template, first, "once a day");
        bench.at(86_400 + 2);
        assert_ne!(bench.job().template, first);
        assert_eq!(bench.job().completed, BTreeSet::new(), "and then it is run again");
        assert_eq!(bench.slots().len(), 1);
    }

    #[test]
    fn a_job_is_run_once_more_when_an_operator_wants_it() {
        let mut bench = Bench::at_noon(Missed::Skip, Overlap::Wait);
        bench.at(0).says(0, Phase::Completed);
        let mut again = bench.job().clone();
        again.spec.job.as_mut().unwrap().again_ms = Some(NOON_MS + 60_000);
        again.take(bench.cluster.jobs.get(&workload_id("backup")));
        bench.cluster.workloads.insert(workload_id("backup"), again);
        bench.at(3600);
        assert_eq!(bench.job().run_ms, Some(NOON_MS + 60_000));
        bench.says(0, Phase::Completed);
        bench.at(7200);
        assert_eq!(bench.job().run_ms, Some(NOON_MS + 60_000), "once");
        bench.at(86_400);
        assert_eq!(bench.job().run_ms, Some(NOON_MS + 86_400_000), "and at its times as before");

        let mut once = Bench::new(1, Job::default());
        let before = once.job().template;
        let mut spec = once.job().spec.clone();
        spec.job = Some(Job { again_ms: Some(7), ..Job::default() });
        assert_ne!(spec.template(), before);
        once.lead();
    }

    #[test]
    fn times_that_were_missed_are_made_up_for_once_or_not_at_all() {
        for (missed, runs) in [(Missed::Run, Some(NOON_MS + 3 * 86_400_000)), (Missed::Skip, None)] {
            let mut bench = Bench::at_noon(missed, Overlap::Wait);
            // Nobody was there for three days.
            bench.at(3 * 86_400 + 7200);
            assert_eq!(bench.job().run_ms, runs, "{missed:?}");
        }
    }

    #[test]
    fn a_run_that_goes_on_is_waited_for_or_replaced() {
        let mut waiting = Bench::at_noon(Missed::Run, Overlap::Wait);
        waiting.at(0).says(0, Phase::Running);
        waiting.at(86_400);
        assert_eq!(waiting.job().run_ms, Some(NOON_MS));
        waiting.says(0, Phase::Failed);
        waiting.at(86_400 + 7200);
        assert_eq!(waiting.job().run_ms, Some(NOON_MS + 86_400_000), "what it missed is made up for");

        let mut replaced = Bench::at_noon(Missed::Run, Overlap::Replace);
        replaced.at(0).says(0, Phase::Running);
        replaced.at(86_400);
        assert_eq!(replaced.job().run_ms, Some(NOON_MS + 86_400_000));
    }

    #[test]
    fn a_clock_that_is_set_back_runs_nothing_twice_and_one_from_the_future_stops_nothing() {
        let mut bench = Bench::at_noon(Missed::Run, Overlap::Wait);
        bench.at(5).says(0, Phase::Completed);
        bench.now.wall_ms -= 600_000;
        bench.lead();
        bench.at(6);
        assert_eq!(bench.job().run_ms, Some(NOON_MS), "set back by ten minutes");

        let mut years_ahead = Bench::at_noon(Missed::Run, Overlap::Wait);
        years_ahead.at(3 * 366 * 86_400).says(0, Phase::Completed);
        assert!(years_ahead.job().run_ms.unwrap() > NOON_MS);
        years_ahead.at(86_400 + 4);
        assert_eq!(years_ahead.job().run_ms, Some(NOON_MS + 86_400_000), "by a clock that is right");
    }

    #[test]
    fn a_changed_document_waits_for_the_next_time() {
        let mut bench = Bench::at_noon(Missed::Run, Overlap::Wait);
        bench.at(5).says(0, Phase::Running);
        let before = bench.job().clone();
        let mut spec = before.spec.clone();
        spec.container.image = "registry.test/app:2".into();
        let mut changed = Workload::new(NOON_MS + 60_000, Digest::of(b"revision 2"), spec);
        changed.take(bench.cluster.jobs.get(&workload_id("backup")));
        assert_eq!(changed.template, before.template, "what runs goes on");
        bench.cluster.workloads.insert(workload_id("backup"), changed);
        bench.at(90).says(0, Phase::Completed);
        bench.at(7200);
        assert_eq!(bench.job().run_ms, Some(NOON_MS));
        bench.at(86_401);
        assert_eq!(bench.job().run_ms, Some(NOON_MS + 86_400_000));
    }

    #[test]
    fn the_smaller_side_of_a_partition_begins_no_run() {
        let mut bench = Bench::at_noon(Missed::Run, Overlap::Wait);
        bench.liveness.alive = [node_id(1)].into();
        bench.at(5);
        assert_eq!(bench.job().run_ms, None);
        bench.cluster.workloads.values_mut().for_each(|job| job.spec.takeover = Takeover::Always);
        bench.at(6);
        assert_eq!(bench.job().run_ms, Some(NOON_MS));
    }
}
