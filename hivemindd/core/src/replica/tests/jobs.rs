//! Replicas that come to an end.

use hivemind_spec::workload::Job;

use super::*;

fn job(job: Job, max_attempts: Option<u32>) -> Workload {
    let mut workload = with_restart(policy(RestartCondition::OnFailure, max_attempts));
    workload.spec.job = Some(job);
    workload
}

fn with_deadline(max_attempts: u32) -> Workload {
    job(Job { deadline_ms: Some(60_000), ..Job::default() }, Some(max_attempts))
}

#[test]
fn an_attempt_that_takes_too_long_is_stopped_and_has_failed() {
    let mut bench = Bench::running(with_deadline(1), 1);
    let began = bench.now.mono_ms;
    for _ in 0..2 {
        assert!(bench.plan.wake_at_ms.is_some_and(|at| at <= bench.now.mono_ms + 60_000));
        bench.wait(59_999);
        assert_eq!(bench.status(0).phase, Phase::Running);
        bench.wait(1);
        assert_eq!(
            (bench.status(0).phase, bench.status(0).reason.as_str()),
            (Phase::Backoff, "is past its deadline"),
            "stopping would say that it is wanted here no longer"
        );
        bench.settle();
        bench.observe();
        bench.wait(500);
        bench.settle();
    }
    let status = bench.status(0);
    assert_eq!(status.phase, Phase::Failed);
    assert_eq!(status.reason, "ran longer than its deadline of 60 s; gave up after 1 restarts");
    assert!(bench.now.mono_ms - began < 130_000);
}

#[test]
fn a_deadline_holds_across_an_agent_restart() {
    let mut bench = Bench::running(with_deadline(0), 1);
    bench.wait(50_000);
    bench.restart_agent();
    bench.wait(9_000);
    assert_eq!(bench.status(0).phase, Phase::Running);
    bench.wait(1_000);
    let status = bench.status(0);
    assert_eq!((status.phase, status.reason.as_str()), (Phase::Backoff, "is past its deadline"));
}

#[test]
fn one_that_ends_in_time_is_done() {
    let mut bench = Bench::running(with_deadline(0), 1);
    bench.wait(59_000);
    bench.crash(0, 0);
    bench.wait(60_000);
    assert_eq!((bench.status(0).phase, bench.open.len()), (Phase::Completed, 0));
}

#[test]
fn what_ended_with_success_elsewhere_is_not_begun_here() {
    let mut done = job(Job::default(), None);
    done.completed = [0].into();
    let mut bench = Bench::new();
    bench.want(done, 2);
    bench.settle();
    assert_eq!((bench.status(0).phase, bench.status(1).phase), (Phase::Completed, Phase::Running));
    assert!(
        !bench.log.iter().any(|op| matches!(op, RuntimeOp::Start(plan) if plan.labels.replica.slot == 0))
    );
}

#[test]
fn a_run_that_is_under_way_here_goes_on_though_another_has_ended() {
    let mut workload = job(Job::default(), None);
    let mut bench = Bench::running(workload.clone(), 1);
    workload.completed = [0].into();
    bench.want(workload, 1);
    assert_eq!(bench.status(0).phase, Phase::Running);
    bench.crash(0, 1);
    bench.wait(MAX_WAIT);
    bench.settle();
    assert_eq!(bench.status(0).phase, Phase::Completed, "and is not begun again when it fails");
}

#[test]
fn the_next_run_replaces_the_containers_of_the_last() {
    let mut run = job(Job::default(), None);
    let mut bench = Bench::running(run.clone(), 1);
    bench.crash(0, 0);
    assert_eq!(bench.status(0).phase, Phase::Completed);
    run.template = Digest::of(b"the next run");
    bench.want(run, 1);
    bench.settle();
    assert_eq!(bench.status(0).phase, Phase::Running);
    assert_eq!(bench.inventory.containers.len(), 1);
    let removals = bench.log.iter().filter(|op| matches!(op, RuntimeOp::Remove { logs: false, .. }));
    assert_eq!(removals.count(), 1, "what the last one printed is kept");
}

#[test]
fn who_ran_for_as_long_as_the_policy_says_has_its_attempts_anew() {
    let attempts = policy(RestartCondition::Always, Some(1));
    let mut bench = Bench::running(with_restart(RestartPolicy { window_ms: Some(5000), ..attempts }), 1);
    for _ in 0..3 {
        bench.wait(5000);
        bench.crash(0, 1);
        assert_eq!(bench.status(0).phase, Phase::Backoff);
        bench.wait(MAX_WAIT);
        bench.settle();
    }
    bench.crash(0, 1);
    assert_eq!(bench.status(0).reason, "ended with code 1; gave up after 1 restarts");
}
