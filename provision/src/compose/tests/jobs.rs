//! Services that come to an end.

use hivemind_spec::workload::{Job, Missed, Overlap, RestartCondition, Schedule};

use super::*;

#[test]
fn a_service_is_a_job_by_its_mode_or_by_what_is_said_of_the_job() {
    let once = workload(&service("deploy: {mode: replicated-job, replicas: 4}"));
    assert_eq!((once.replicas, once.global, once.job), (4, false, Some(Job::default())));
    assert_eq!(once.restart.condition, RestartCondition::OnFailure);

    let policy = |rest: &str| workload(&service(&format!("deploy: {{restart_policy: {{{rest}}}}}"))).restart;
    assert_eq!(policy("condition: any, window: 120s").window_ms, Some(120_000));
    assert_eq!(policy("condition: any, window: 0s").window_ms, None);
    let tries = "deploy: {mode: global-job, restart_policy: {max_attempts: 3}}";
    let everywhere = workload(&service(tries));
    assert_eq!((everywhere.global, everywhere.job.is_some()), (true, true));
    let restart = everywhere.restart;
    assert_eq!((restart.condition, restart.max_attempts), (RestartCondition::OnFailure, Some(3)));

    let never = workload(&service("restart: 'no'\nx-hivemind: {job: {parallelism: 2, deadline: 10m}}"));
    assert_eq!(never.restart.condition, RestartCondition::Never);
    let job = Job { parallelism: Some(2), deadline_ms: Some(600_000), schedule: None, again_ms: None };
    assert_eq!(never.job, Some(job));
    assert_eq!(workload(&service("restart: on-failure")).job, None, "a service that may end is no job yet");
}

#[test]
fn the_example_of_the_documentation_is_read() {
    let page = include_str!("../../../../docs/jobs.md");
    let example = page.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let jobs =
        compiled(example).documents.iter().filter(|d| d.workload().is_some_and(|w| w.job.is_some())).count();
    assert_eq!(jobs, 3);
}

#[test]
fn a_job_is_run_at_times_of_a_crontab() {
    let schedule = |text: &str| {
        let spec = workload(&service(&format!("x-hivemind: {{job: {{schedule: {text}}}}}")));
        spec.job.unwrap().schedule.unwrap()
    };
    let (cron, time_zone) = ("30 3 * * *".to_owned(), "UTC".to_owned());
    let plain = Schedule { cron, time_zone, missed: Missed::Run, overlap: Overlap::Wait };
    assert_eq!(schedule("'30 3 * * *'"), plain);
    let full = "{cron: '30 3 * * *', time_zone: Europe/Berlin, missed: skip, overlap: replace}";
    let time_zone = "Europe/Berlin".to_owned();
    let wanted = Schedule { time_zone, missed: Missed::Skip, overlap: Overlap::Replace, ..plain };
    assert_eq!(schedule(full), wanted);
}

#[test]
fn what_contradicts_a_job_is_refused_at_its_place() {
    for (rest, words) in [
        (
            "restart: always\ndeploy: {mode: replicated-job}",
            "4: a job that is always started again never ends",
        ),
        ("deploy: {mode: replicated-job, restart_policy: {condition: any}}", "never ends"),
        ("x-hivemind: {job: {parallelism: 0}}", "out of range"),
        ("x-hivemind: {job: {deadline: 10ms}}", "shorter than a second"),
        ("x-hivemind: {job: {schedule: '61 * * * *'}}", "names no times"),
        ("x-hivemind: {job: {schedule: {}}}", "names no times"),
        (
            "x-hivemind:\n  job:\n    schedule:\n      cron: '@daily'\n      time_zone: Mars/Olympus",
            "8: there is no time zone",
        ),
        ("x-hivemind: {job: {schedule: {cron: '@daily', missed: maybe}}}", "one of"),
        ("x-hivemind: {job: {retries: 3}}", "retries"),
    ] {
        let told = refused(rest);
        assert!(told.contains(words), "{rest}: {told}");
    }
}
