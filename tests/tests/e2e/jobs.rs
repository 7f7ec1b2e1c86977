//! Jobs: containers that come to an end, once or at set times.

use std::time::Duration;

use hivemind_tests::cluster::{Cluster, STARTING};
use hivemind_tests::command::items;
use hivemind_tests::wait;
use serde_json::Value;

/// Until the next full minute, and a start on an emulated machine.
const A_MINUTE_AND_A_START: Duration = Duration::from_secs(150);

/// Longer than it takes to notice that a machine is gone, and to start what it ran.
const QUIET: Duration = Duration::from_secs(60);

/// What `hivemind jobs` says of one.
fn job(cluster: &Cluster, name: &str) -> Result<Value, String> {
    items(&cluster.json(&["jobs", name])?).first().cloned().ok_or_else(|| format!("no job {name}"))
}

fn wait_for_completed(cluster: &Cluster, name: &str, count: u64, within: Duration) -> Value {
    wait::until(&format!("{name} is done {count} times"), within, || {
        let job = job(cluster, name)?;
        if job["job"]["completed"] == count { Ok(job) } else { Err(job.to_string()) }
    })
    .0
}

/// Four that end, one that fails at first, one that takes too long, and one that waits for the four.
const JOBS: &str = "services:
  import:
    image: registry.lab:5000/busybox:1
    command: [sh, -c, 'sleep 2; echo ended']
    deploy: {mode: replicated-job, replicas: 4}
    x-hivemind: {job: {parallelism: 2}}
  flaky:
    image: registry.lab:5000/busybox:1
    command: [sh, -c, 'test -e /state/tried || { touch /state/tried; exit 3; }']
    volumes: [/state]
    deploy: {mode: replicated-job, restart_policy: {max_attempts: 3}}
  hang:
    image: registry.lab:5000/busybox:1
    command: sleep 1000000
    restart: 'no'
    stop_grace_period: 1s
    x-hivemind: {job: {deadline: 8s}}
  after:
    image: registry.lab:5000/busybox:1
    command: sleep 1000000
    depends_on: {import: {condition: service_completed_successfully}}
";

#[test]
fn each_replica_of_a_job_ends_once_and_is_not_run_again_though_a_machine_is_gone() {
    let cluster = Cluster::formed("jobs", 3);
    cluster.push(JOBS).ok();
    wait_for_completed(&cluster, "import", 4, STARTING);
    cluster.wait_for_words("import", &["ended"], STARTING);
    assert_eq!(cluster.hivemind(["logs", "import"]).ok().stdout().matches("ended").count(), 4);
    wait_for_completed(&cluster, "flaky", 1, STARTING);
    let rows = items(&cluster.json(&["ps", "flaky"]).unwrap());
    assert_eq!(rows[0]["restarts"], 1, "what failed is tried again");

    // Once more when somebody wants it, and not because the same file is pushed again.
    cluster.hivemind(["jobs", "run", "flaky"]).ok();
    let once_more = || items(&cluster.json(&["ps", "flaky"])?).first().cloned().ok_or("nothing".to_owned());
    let (again, _) = wait::until("it has been run once more", STARTING, || {
        let row = once_more()?;
        if row["phase"] == "completed" && row["restarts"] == 0 { Ok(row) } else { Err(row.to_string()) }
    });
    cluster.push(JOBS).ok();
    wait::throughout("it rests", Duration::from_secs(5), || {
        let row = once_more()?;
        if row["sinceMs"] == again["sinceMs"] { Ok(()) } else { Err(row.to_string()) }
    });
    let refused = cluster.hivemind(["jobs", "run", "after"]).failed();
    assert!(refused.stderr().contains("is no job"), "{refused}");

    // What waits for it starts; what takes too long is stopped, and has failed.
    cluster.wait_for_running("after", 1, STARTING);
    wait::until("the deadline is kept", STARTING, || {
        let job = job(&cluster, "hang")?;
        if job["job"]["failed"] == 1 { Ok(()) } else { Err(job.to_string()) }
    });
    let status = cluster.hivemind(["status"]).ok().stdout();
    assert!(status.contains("ran longer than its deadline of 8 s"), "{status}");

    // A machine on which some of it ran goes for good: nobody runs it again, and it is still done.
    let replicas = cluster.replicas("import").unwrap();
    let gone = cluster.machine_of(&replicas[0]);
    let node = replicas[0].node.clone();
    gone.power_cut();
    cluster.hivemind(["nodes", "revoke", "--yes", &node]).ok();
    wait::throughout("it is still done, and nothing of it runs", QUIET, || {
        let rows = items(&cluster.json(&["ps", "import"])?);
        let job = job(&cluster, "import")?;
        let right = job["job"]["completed"] == 4 && rows.iter().all(|row| row["phase"] == "completed");
        if right { Ok(()) } else { Err(format!("{job}\n{rows:#?}")) }
    });
    let rows = items(&cluster.json(&["ps", "import"]).unwrap());
    assert!(rows.len() < 4 && rows.iter().all(|row| row["node"] != node.as_str()), "{rows:#?}");
}

/// `hivemind run` ends as its container ends, which leaves nothing behind.
fn one_container_runs_once(cluster: &Cluster) {
    const IMAGE: &str = "registry.lab:5000/busybox:1";
    let script = "echo $COLOUR; echo complaint >&2; exit 7";
    let ran = cluster.hivemind(["run", "-e", "COLOUR=blue", IMAGE, "sh", "-c", script]).failed();
    assert_eq!((ran.code(), ran.stdout().trim()), (Some(7), "blue"), "{ran}");
    assert!(ran.stderr().contains("complaint"), "{ran}");
    let ran =
        cluster.hivemind(["run", "--output", "json", "--name", "once", IMAGE, "sh", "-c", "seq 3000"]).ok();
    let json: Value = serde_json::from_str(&ran.stdout()).unwrap();
    assert_eq!((&json["workload"], &json["exitCode"]), (&"once".into(), &0.into()));
    assert_eq!(json["stdout"].as_str().unwrap().lines().count(), 3000, "all of it, each line once");
    let refused = cluster.hivemind(["run", IMAGE, "no-such-program"]).failed();
    assert!(refused.stderr().contains("no-such-program"), "{refused}");
    let late = cluster.hivemind(["run", "--deadline", "2s", IMAGE, "sh", "-c", "sleep 1000000"]).failed();
    assert!(late.stderr().contains("ran longer than its deadline"), "{late}");
    wait::until("nothing is left", STARTING, || {
        let left = items(&cluster.json(&["ps"])?).into_iter().filter(|row| row["workload"] != "tick");
        if left.count() == 0 { Ok(()) } else { Err("something".to_owned()) }
    });
}

#[test]
fn a_job_is_run_at_its_times_and_each_run_is_another() {
    let cluster = Cluster::formed("schedule", 1);
    one_container_runs_once(&cluster);
    cluster.push(
        "services:\n  tick:\n    image: registry.lab:5000/busybox:1\n    command: [sh, -c, 'echo tick $$(date +%H:%M)']\n    \
         x-hivemind: {job: {schedule: {cron: '* * * * *', time_zone: Asia/Kathmandu}}}\n",
    );
    let first = wait_for_completed(&cluster, "tick", 1, A_MINUTE_AND_A_START)["job"]["runMs"].clone();
    let (next, _) = wait::until("it is run again", A_MINUTE_AND_A_START, || {
        let job = job(&cluster, "tick")?;
        let again = job["job"]["runMs"] != first && job["job"]["completed"] == 1;
        if again { Ok(job["job"]["runMs"].as_u64().unwrap()) } else { Err(job.to_string()) }
    });
    assert_eq!(next % 60_000, 0, "at a full minute");
    assert!(next >= first.as_u64().unwrap() + 60_000);
    let logs = cluster.hivemind(["logs", "tick"]).ok();
    assert!(logs.stdout().matches("tick").count() >= 2, "what the run before printed is kept: {logs}");
}
