//! How fast images come and logs go, beside other people's programs on the same machine.

use std::time::Instant;

use hivemind_qemu::EmptyRegistry;
use hivemind_tests::cluster::{Cluster, STARTING};
use hivemind_tests::{probe, registry, wait};

use super::{CTR, START_POLL, TICKS_PER_SECOND, median, number, one_machine, seconds_of, tell};

/// Pulls of each kind, in turns; the median counts. Each is of an image of its own, which no machine has.
const PULLS: usize = 3;

/// Layers of such an image, beside busybox's.
const LAYERS: usize = 4;

/// What is in each, bytes: random, so that packing makes it no smaller.
const LAYER_BYTES: usize = 6 << 20;

/// What a container prints whose logs are measured, bytes: many times what is kept of it.
const PRINTED_BYTES: usize = 32 << 20;

/// Pulls and logs.
pub(crate) fn throughput() {
    let cluster = one_machine("throughput", 2);
    let ask = |words: &[&str]| {
        probe::ask(&cluster.lab, &cluster.machines[0], words).unwrap_or_else(|error| panic!("{error}"))
    };
    pulls(&cluster, &ask);
    logs(&cluster, &ask);
}

fn pulls(cluster: &Cluster, ask: &impl Fn(&[&str]) -> String) {
    let registry = cluster.lab.empty_registry().unwrap_or_else(|error| panic!("{error}"));
    let copier = "services:\n  copier:\n    image: registry.lab:5000/skopeo:1\n    command: sleep 1000000\n    \
                  stop_grace_period: 0s\n";
    cluster.push(copier).ok();
    cluster.wait_for_running("copier", 1, STARTING);
    let (mut ours, mut copies, mut floors) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..PULLS {
        let new = |kind: &str| new_image(cluster, &registry, &format!("{kind}{round}"));
        ours.push(push_to_running(cluster, &new("ours")));
        copies.push(skopeo_copy(cluster, &new("skopeo")));
        floors.push(ctr_pull(cluster, ask, &new("ctr")));
    }
    let mib = (LAYERS * LAYER_BYTES) as f64 / f64::from(1 << 20);
    eprintln!(
        "   {mib} MiB: push to running {ours:.2?} s, skopeo copy {copies:.2?} s, ctr pull {floors:.2?} s"
    );
    tell("pull_throughput", mib / median(ours.clone()), "MiB/s");
    tell("pull_over_skopeo", median(ours.clone()) / median(copies), "x");
    tell("pull_over_ctr", median(ours) / median(floors), "x");
}

/// Puts an image into the registry that nobody has seen; returns its name there.
fn new_image(cluster: &Cluster, registry: &EmptyRegistry, name: &str) -> String {
    registry::add(&cluster.lab, registry, "busybox:1", &format!("{name}:1"), &[LAYER_BYTES; LAYERS]);
    format!("{name}:1")
}

/// Seconds from a push to a container that runs: fetched, checked, unpacked and started.
fn push_to_running(cluster: &Cluster, image: &str) -> f64 {
    let name = image.trim_end_matches(":1");
    let text =
        format!("services:\n  {name}:\n    image: registry.lab:5001/{image}\n    command: sleep 1000000\n");
    let begin = Instant::now();
    cluster.push(&text).ok();
    cluster.poll_for_running(START_POLL, name, 1, STARTING);
    begin.elapsed().as_secs_f64()
}

/// Seconds that `skopeo copy` takes, in a container on the same machine, to fetch the same into a folder.
fn skopeo_copy(cluster: &Cluster, image: &str) -> f64 {
    let copy = format!(
        "time -p skopeo --insecure-policy copy --quiet --src-tls-verify=false docker://registry.lab:5001/{image} dir:/tmp/{image}"
    );
    real_seconds(&cluster.hivemind(["exec", "copier", "sh", "-c", &copy]).ok().stderr())
}

/// What `time -p` says of a command.
fn real_seconds(said: &str) -> f64 {
    let real = said.lines().find_map(|line| line.trim().strip_prefix("real"));
    real.map_or_else(|| panic!("{said}"), number)
}

/// Seconds that containerd's own `ctr` takes to fetch the same and to unpack it.
fn ctr_pull(cluster: &Cluster, ask: &impl Fn(&[&str]) -> String, image: &str) -> f64 {
    let name = format!("{}:5001/{image}", cluster.lab.gateway());
    let words = ["run", CTR, "-n", "bench", "image", "pull", "--local", "--plain-http", &name];
    seconds_of(&ask(&words))
}

fn logs(cluster: &Cluster, ask: &impl Fn(&[&str]) -> String) {
    // Lines of a hundred bytes.
    let line = "x".repeat(99);
    let discard = format!("time -p sh -c 'yes {line} | head -c {PRINTED_BYTES} >/dev/null'");
    let text = "services:\n  talker:\n    image: registry.lab:5000/busybox:1\n    \
                command: [sh, -c, 'while :; do test -e /go && { rm /go; yes LINE | head -c BYTES; }; sleep 0.1; done']\n    \
                stop_grace_period: 0s\n";
    let text = text.replace("LINE", &line).replace("BYTES", &PRINTED_BYTES.to_string());
    cluster.push(&text).ok();
    cluster.wait_for_running("talker", 1, STARTING);
    let exec = |command: &str| cluster.hivemind(["exec", "talker", "sh", "-c", command]);
    // Whether it prints is asked the probe: each command in the container costs the agent something as well. Its shell
    // names what it will run, and is joined by two processes while it runs.
    let prints = || ask(&["pids", &format!("head -c {PRINTED_BYTES}")]).lines().count() > 1;
    let ticks = || number(&ask(&["ticks", "hivemindd"]));
    let (mut took, mut cost, mut discarded) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..PULLS {
        exec("touch /go").ok();
        let (before, begin) = (ticks(), Instant::now());
        let begun = || if prints() { Ok(()) } else { Err("it does not print".to_owned()) };
        wait::polling(START_POLL, "it prints", STARTING, begun);
        let done = || if prints() { Err("it prints".to_owned()) } else { Ok(()) };
        wait::polling(START_POLL, "all is printed", STARTING, done);
        took.push(begin.elapsed().as_secs_f64());
        cost.push((ticks() - before) / TICKS_PER_SECOND);
        discarded.push(real_seconds(&exec(&discard).ok().stderr()));
    }
    let mib = PRINTED_BYTES as f64 / f64::from(1 << 20);
    eprintln!(
        "   {mib} MiB of lines: logged {took:.2?} s, discarded {discarded:.2?} s, the agent's time {cost:.2?} s"
    );
    tell("log_throughput", mib / median(took), "MiB/s");
    tell("log_cost", 1000.0 * median(cost) / mib, "ms of the agent's processor for each MiB");
}
