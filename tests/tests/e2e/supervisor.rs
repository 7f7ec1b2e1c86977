//! PID 1 and its two children.

use std::time::{Duration, Instant};

use hivemind_tests::cluster::{Cluster, STARTING};
use hivemind_tests::console::{Console, starts};
use hivemind_tests::{probe, wait};

/// Dead to serving again, as the issue of the road wants it; looking takes a moment of its own.
const HEALED_WITHIN: Duration = Duration::from_secs(2);

#[test]
fn killing_the_agent_or_containerd_leaves_containers_running_and_is_healed_within_two_seconds() {
    let cluster = Cluster::new("supervisor", 1).with_probe().form(1);
    let machine = &cluster.machines[0];
    let ask = |words: &[&str]| probe::ask(&cluster.lab, machine, words);
    cluster.push("services:\n  web:\n    image: registry.lab:5000/nginx:1\n").ok();
    let before = cluster.wait_for_running("web", 1, STARTING);
    let container = || -> Result<String, String> {
        let found = ask(&["pids", "/usr/sbin/nginx"])?;
        // Its first process, by number: nginx changes its title once it has started.
        found.split_whitespace().next().map(str::to_owned).ok_or_else(|| "nginx is gone".to_owned())
    };
    let running = container().unwrap();

    // With its option: shims are called by a path that begins alike, and are to live.
    for victim in ["hivemindd agent", "/usr/bin/containerd -c"] {
        let killed = ask(&["kill", "SIGKILL", victim]).unwrap();
        assert!(!killed.is_empty(), "{victim} ran");
        let begin = Instant::now();
        wait::until(&format!("{victim} runs again"), Duration::from_secs(20), || {
            let now = ask(&["pids", victim])?;
            let again = !now.is_empty() && now.lines().all(|line| !killed.contains(line));
            if again { Ok(()) } else { Err(format!("was {killed}now {now}")) }
        });
        let took = begin.elapsed();
        assert!(took < HEALED_WITHIN, "{victim} was back after {took:?}");
        let after = cluster.wait_for_running("web", 1, STARTING);
        assert_eq!((&after[0].ip, after[0].restarts), (&before[0].ip, 0), "adopted, not restarted");
        assert_eq!(container().unwrap(), running, "the same process");
    }
}

/// Within which an agent that gives no sign of life is killed: PID 1 sees the last within 10 s, and waits 30 for the next.
/// The rest is for a slow machine.
const FOUND_WITHIN: Duration = Duration::from_secs(50);

/// Within which the watchdog resets a machine that hangs.
const RESET_WITHIN: Duration = Duration::from_secs(60);

#[test]
fn an_agent_that_hangs_is_started_again_and_a_machine_that_hangs_starts_anew() {
    let cluster = Cluster::new("hangs", 1).with_probe().form(1);
    let machine = &cluster.machines[0];
    cluster.push("services:\n  web:\n    image: registry.lab:5000/nginx:1\n").ok();
    let before = cluster.wait_for_running("web", 1, STARTING);

    let stopped = probe::ask(&cluster.lab, machine, &["kill", "SIGSTOP", "hivemindd agent"]).unwrap();
    assert!(!stopped.is_empty());
    machine.wait_for_line("agent-hangs", FOUND_WITHIN).unwrap();
    cluster.wait_for_ready(1);
    let after = cluster.wait_for_running("web", 1, STARTING);
    assert_eq!((&after[0].ip, after[0].restarts), (&before[0].ip, 0), "adopted, not restarted");

    let (before, kernel_s) = (starts(machine), Console::of(machine).kernel_s());
    machine.hang().unwrap();
    // Its first line comes once the kernel is up again.
    let limit = RESET_WITHIN + Duration::from_secs_f64(2.0 * kernel_s);
    wait::until("it starts anew", limit, || {
        if starts(machine) > before { Ok(()) } else { Err("silent".to_owned()) }
    });
    cluster.wait_for_ready(1);
    cluster.wait_for_running("web", 1, STARTING);
}

#[test]
fn the_power_button_ends_everything_in_order() {
    let cluster = Cluster::formed("button", 1);
    let machine = &cluster.machines[0];
    cluster.push("services:\n  web:\n    image: registry.lab:5000/nginx:1\n").ok();
    cluster.wait_for_running("web", 1, STARTING);
    machine.press_power_button().unwrap();
    machine.wait_for_off(Duration::from_secs(60)).unwrap();
    machine.power_on().unwrap();
    cluster.wait_for_ready(1);
    cluster.wait_for_running("web", 1, STARTING);
}
