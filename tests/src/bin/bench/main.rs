//! Measures every figure that Hivemind promises, one line each: `NAME VALUE UNIT (reach REACH)`.
//!
//! Absolute times mean little on an emulated machine; where a figure is a ratio, both sides are
//! measured in the same run.

mod throughput;

use std::time::{Duration, Instant};

use hivemind_qemu::{Image, Machine, MachineOptions};
use hivemind_tests::cluster::{Cluster, FORMING, STARTING};
use hivemind_tests::command::Run;
use hivemind_tests::console::Console;
use hivemind_tests::health::Asker;
use hivemind_tests::release::{Difference, Release};
use hivemind_tests::{probe, release, wait};

/// Idle time before something idle is measured.
const SETTLING: Duration = Duration::from_secs(30);

/// Clock ticks per second, the same on every Linux this runs on (`getconf CLK_TCK`).
const TICKS_PER_SECOND: f64 = 100.0;

/// Boots of each kind; the median counts.
const BOOTS: usize = 3;

/// Between two looks at a machine that boots: about a hundredth of what is measured.
const BOOT_POLL: Duration = Duration::from_millis(25);

/// Between two looks at a service that moves: a fiftieth of what is measured.
const SERVE_POLL: Duration = Duration::from_millis(200);

/// Between two looks at a container that starts: a tenth of what is measured, and each costs the machine some of it.
const START_POLL: Duration = Duration::from_millis(100);

type Bench = fn();

/// Every group of figures by the name that selects it; `scale` is a program of its own.
const BENCHES: [(&str, Bench); 7] = [
    ("image", image),
    ("boot", boot),
    ("containers", containers),
    ("crowd", crowd),
    ("throughput", throughput::throughput),
    ("idle", idle),
    ("failover", failover),
];

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if wanted.iter().any(|name| name.starts_with('-') || BENCHES.iter().all(|(known, _)| known != name)) {
        let names: Vec<&str> = BENCHES.iter().map(|(name, _)| *name).collect();
        eprintln!("usage: ./tests/bench [NAME...]\nNAME is one of {}, scale; none: all", names.join(", "));
        std::process::exit(2);
    }
    for (name, bench) in BENCHES {
        if wanted.is_empty() || wanted.iter().any(|w| w == name) {
            eprintln!("== {name}");
            bench();
        }
    }
}

fn report(name: &str, value: f64, unit: &str, reach: f64) {
    let verdict = if value <= reach { "reached" } else { "MISSED" };
    println!("{name} {value:.2} {unit} (reach {reach}, {verdict})");
}

/// A figure that nothing is promised of.
fn tell(name: &str, value: f64, unit: &str) {
    println!("{name} {value:.2} {unit}");
}

fn built() -> Image {
    Image::built().unwrap_or_else(|error| panic!("{error}; run ./image/build"))
}

fn image() {
    let path = built().disk.with_extension("img.zst");
    let size = std::fs::metadata(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).len();
    report("image_compressed", size as f64 / 1e6, "MB", 56.0);
    update();
}

/// What an update moves that changes the agent and nothing else, in the worst case: every page of it.
fn update() {
    let mut agent = std::fs::read(release::programs().agent).unwrap_or_else(|error| panic!("{error}"));
    for page in agent.chunks_mut(4096) {
        let middle = page.len() / 2;
        page[middle] ^= 0x55;
    }
    let changed = Release::build("0.2.0", &Difference { agent: Some(&agent), ..Difference::default() });
    let bundle = built().disk.with_file_name("bundle");
    let (old, new) = (release::description(&bundle), release::description(&changed.bundle()));
    let (missing, all) = (release::missing_bytes(&new, &old), changed.bytes());
    eprintln!(
        "   {missing} of {all} bytes, in {} chunks",
        new.root.chunks.0.len() + new.kernel.chunks.0.len()
    );
    report("update_moves", 100.0 * missing as f64 / all as f64, "%", 15.0);
}

/// Power-on to the API's first answer, over power-on to an init that only says that it runs. At its
/// first boot a machine also makes its state partition and its identity.
fn boot() {
    let (mut first, mut again, mut bare) = (Vec::new(), Vec::new(), Vec::new());
    // Taken in turns, so that what else the computer does meets all three alike.
    for _ in 0..BOOTS {
        let cluster = Cluster::new("boot", 2).as_shipped().with_machines(1);
        let machine = &cluster.machines[0];
        know(&cluster, machine);
        first.push(until_healthy(&cluster, machine));
        machine.press_power_button().unwrap_or_else(|error| panic!("{error}"));
        machine.wait_for_off(FORMING).unwrap_or_else(|error| panic!("{error}"));
        again.push(until_healthy(&cluster, machine));
        machine.power_cut();
        bare.push(until_bare(&cluster));
    }
    eprintln!("   API after {first:.2?} s, again after {again:.2?} s, a bare init after {bare:.2?} s");
    let floor = median(bare);
    report("boot_ratio", median(first) / floor, "x", 2.5);
    report("boot_again_ratio", median(again) / floor, "x", 2.5);
}

/// Tells the lab's kernel where a machine is. It would find out by itself, but asks only once a second while the
/// machine boots, and that second's fraction would be measured along.
fn know(cluster: &Cluster, machine: &Machine) {
    let (address, mac) = (machine.address().to_string(), machine.mac().to_string());
    let mut ip = cluster.lab.command("ip");
    ip.args(["neighbour", "replace", &address, "lladdr", &mac, "dev", "lab0", "nud", "permanent"]);
    Run::of(ip).ok();
}

/// Seconds from power-on until the machine says over TLS how it is.
fn until_healthy(cluster: &Cluster, machine: &Machine) -> f64 {
    let asker = Asker::new(&cluster.root_ca()).unwrap_or_else(|error| panic!("{error}"));
    let begin = Instant::now();
    power_on(machine);
    let ask = || asker.ask(machine.address());
    let wait = || wait::polling(BOOT_POLL, "the API answers", FORMING, ask);
    cluster.lab.enter(wait).unwrap_or_else(|error| panic!("{error}"));
    begin.elapsed().as_secs_f64()
}

/// Seconds from power-on until a machine without any work says so.
fn until_bare(cluster: &Cluster) -> f64 {
    let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let bare = probe::alone(cluster.image.clone(), folder.path());
    let options = MachineOptions { as_shipped: true, ..MachineOptions::with_image("bare", &bare) };
    let machine = cluster.lab.machine(options).unwrap_or_else(|error| panic!("{error}"));
    let begin = Instant::now();
    power_on(&machine);
    machine.wait_for_line(probe::ALONE, FORMING).unwrap_or_else(|error| panic!("{error}"));
    begin.elapsed().as_secs_f64()
}

fn power_on(machine: &Machine) {
    machine.power_on().unwrap_or_else(|error| panic!("power on: {error}"));
}

const IDLE: &str = "services:\n  idle:\n    image: registry.lab:5000/busybox:1\n    \
                    command: ['sleep', '100000']\n    deploy: {replicas: REPLICAS}\n";

fn scale(cluster: &Cluster, replicas: usize) -> Duration {
    let begin = Instant::now();
    cluster.push(&IDLE.replace("REPLICAS", &replicas.to_string())).ok();
    cluster.poll_for_running(START_POLL, "idle", replicas, STARTING);
    begin.elapsed()
}

/// Starts of which the median is taken: single ones differ by half.
const STARTS: usize = 11;

/// Starts one after the other, of which the slowest but one in a hundred is told.
const STARTS_ALONE: usize = 100;

/// Where a machine has containerd's own client, which is not in the image.
const CTR: &str = "/var/ctr";

/// A machine that is ready, with a probe, `ctr` and 1 GB.
fn one_machine(name: &str, cpus: u32) -> Cluster {
    let mut cluster = Cluster::new(name, 1).as_shipped().with_probe();
    let mut options = MachineOptions::with_image("m1", &cluster.image);
    options.cpus = cpus;
    options.memory_mib = 1024;
    cluster.add_with(options);
    power_on(&cluster.machines[0]);
    cluster.wait_for_ready(1);
    let ctr = built().disk.with_file_name("beside").join("ctr");
    let put = probe::put(&cluster.lab, &cluster.machines[0], &ctr, CTR);
    put.unwrap_or_else(|error| panic!("{error}"));
    cluster
}

/// Starting containers, and what they cost.
fn containers() {
    let cluster = one_machine("containers", 2);
    let ask = |words: &[&str]| {
        probe::ask(&cluster.lab, &cluster.machines[0], words).unwrap_or_else(|error| panic!("{error}"))
    };
    scale(&cluster, 1);

    // In turns, so that what disturbs this computer disturbs both.
    let image = cluster.registry.reference("busybox:1");
    let digest = cluster.registry.digest("busybox:1").unwrap_or_default();
    // As it was pushed.
    let image = format!("{image}@{digest}");
    let pair = |n| (scale(&cluster, n + 2).as_secs_f64(), ctr_run(&ask, &image, n));
    let (starts, floors): (Vec<f64>, Vec<f64>) = (0..STARTS).map(pair).unzip();
    eprintln!("   through the API {starts:.2?} s, ctr run {floors:.2?} s");
    tell("start_alone_p50", median(starts.clone()), "s");
    tell("start_alone_slowest_of_11", starts.iter().copied().fold(0.0, f64::max), "s");
    report("container_start_ratio", median(starts) / median(floors), "x", 1.0);
    alone(&cluster);
    exec(&cluster, &ask);
    for n in 0..STARTS {
        ask(&["run", CTR, "-n", "bench", "task", "kill", "-s", "SIGKILL", &format!("floor{n}")]);
    }

    scale(&cluster, 1);
    let scaled = scale(&cluster, 10);
    report("scale_1_to_10", scaled.as_secs_f64(), "s", 6.0);

    scale(&cluster, 20);
    std::thread::sleep(SETTLING);
    let shims = sum(&ask(&["memory", "containerd-shim"]), 2);
    let processes = sum(&ask(&["memory", "sleep 100000"]), 2);
    let loggers = sum(&ask(&["memory", "hivemindd logger"]), 2);
    eprintln!("   KiB for 20: shims {shims}, processes {processes}, loggers {loggers}");
    report("container_pss", (shims + processes + loggers) as f64 / 20.0 / 1024.0, "MB", 3.0);
}

/// Starts of one container again and again, with nothing else to do: what the slowest of a hundred takes.
fn alone(cluster: &Cluster) {
    let push = |replicas: u32| {
        let text = format!(
            "services:\n  single:\n    image: registry.lab:5000/busybox:1\n    command: sleep 100000\n    \
             scale: {replicas}\n    stop_grace_period: 0s\n"
        );
        cluster.push(&text).ok();
    };
    let mut starts: Vec<f64> = (0..STARTS_ALONE)
        .map(|_| {
            let begin = Instant::now();
            push(1);
            cluster.poll_for_running(START_POLL, "single", 1, STARTING);
            let took = begin.elapsed().as_secs_f64();
            push(0);
            cluster.poll_for_running(START_POLL, "single", 0, STARTING);
            took
        })
        .collect();
    starts.sort_by(f64::total_cmp);
    tell("start_of_100_one_by_one_p50", starts[STARTS_ALONE / 2], "s");
    tell("start_of_100_one_by_one_p99", starts[STARTS_ALONE - 2], "s");
}

/// A command in a container that runs, from the operator's command line and by `ctr` on the machine itself.
fn exec(cluster: &Cluster, ask: &impl Fn(&[&str]) -> String) {
    let ours = || {
        let begin = Instant::now();
        cluster.hivemind(["exec", "idle/0", "true"]).ok();
        begin.elapsed().as_secs_f64() * 1000.0
    };
    let floor = |number| {
        let id = format!("exec{number}");
        let words = ["run", CTR, "-n", "bench", "task", "exec", "--exec-id", &id, "floor0", "true"];
        1000.0 * seconds_of(&ask(&words))
    };
    let (ours, floors): (Vec<f64>, Vec<f64>) = (0..STARTS).map(|n| (ours(), floor(n))).unzip();
    eprintln!("   exec through the API {ours:.0?} ms, ctr exec {floors:.0?} ms");
    tell("exec_ratio", median(ours) / median(floors), "x");
}

/// How long a program ran on the machine that ended well, as the probe says it.
fn seconds_of(answer: &str) -> f64 {
    assert!(answer.starts_with("0 "), "{answer}");
    answer.split_whitespace().nth(1).map_or(f64::NAN, number) / 1000.0
}

/// Containers that start at once.
const AT_ONCE: usize = 50;

/// Containers on one small machine.
const CROWD: usize = 150;

/// Replicas over three machines.
const SPREAD: usize = 100;

/// How long many containers may take to start: on one emulated core each takes about a second.
const CROWDED: Duration = Duration::from_secs(600);

/// Many containers: on one machine, at once, and over three.
fn crowd() {
    let small =
        IDLE.replace("deploy: {", "deploy: {resources: {reservations: {cpus: '0.001', memory: 1M}}, ");
    let push = |cluster: &Cluster, replicas: usize| {
        cluster.push(&small.replace("REPLICAS", &replicas.to_string())).ok();
    };
    let cluster = one_machine("crowd", 1);
    let used = || {
        let ask = |words: &[&str]| probe::ask(&cluster.lab, &cluster.machines[0], words);
        used_memory(&ask(&["cat", "/proc/meminfo"]).unwrap_or_else(|error| panic!("{error}"))) / 1024.0
    };
    push(&cluster, 1);
    cluster.wait_for_running("idle", 1, STARTING);
    std::thread::sleep(SETTLING);
    let (before, begin) = (used(), since_1970_ms());
    push(&cluster, 1 + AT_ONCE);
    let replicas = cluster.wait_for_running("idle", 1 + AT_ONCE, CROWDED);
    let mut starts: Vec<f64> = replicas
        .iter()
        .filter(|replica| replica.since_ms as f64 > begin)
        .map(|replica| (replica.since_ms as f64 - begin) / 1000.0)
        .collect();
    starts.sort_by(f64::total_cmp);
    eprintln!("   {} of {AT_ONCE} at once, running after {starts:.1?} s", starts.len());
    tell("start_of_50_at_once_p50", starts[starts.len() / 2], "s");
    tell("start_of_50_at_once_p99", starts[starts.len() * 99 / 100], "s");

    push(&cluster, CROWD);
    cluster.wait_for_running("idle", CROWD, CROWDED);
    std::thread::sleep(SETTLING);
    let each = (used() - before) / (CROWD - 1) as f64;
    tell("memory_of_each_of_150", each, "MB");
    drop(cluster);

    let cluster = Cluster::new("spread", 3).as_shipped().form(3);
    push(&cluster, 3);
    cluster.wait_for_running("idle", 3, STARTING);
    push(&cluster, 1);
    cluster.wait_for_running("idle", 1, STARTING);
    let begin = Instant::now();
    push(&cluster, SPREAD);
    cluster.wait_for_running("idle", SPREAD, CROWDED);
    tell("scale_1_to_100_over_three", begin.elapsed().as_secs_f64(), "s");
}

fn since_1970_ms() -> f64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(f64::NAN, |since| since.as_secs_f64() * 1000.0)
}

/// Where an image goes from one namespace of containerd to another: `/run` is in memory.
const ARCHIVE: &str = "/run/image.tar";

/// Seconds that `ctr run` with crun takes, to a started container of the same image.
fn ctr_run(ask: &impl Fn(&[&str]) -> String, image: &str, number: usize) -> f64 {
    let name = format!("floor{number}");
    if number == 0 {
        // The image belongs to Hivemind's namespace of containerd; unpacked layers are shared.
        for (namespace, words) in [
            ("hivemind", ["export", "--local", ARCHIVE, image].as_slice()),
            ("bench", &["import", "--local", ARCHIVE]),
        ] {
            let answer = ask(&[&["run", CTR, "-n", namespace, "image"], words].concat());
            assert!(answer.starts_with("0 "), "{words:?}: {answer}");
        }
    }
    let answer = ask(&[
        "run",
        CTR,
        "-n",
        "bench",
        "run",
        "--detach",
        "--null-io",
        "--runc-binary",
        "/usr/bin/crun",
        image,
        &name,
        "sleep",
        "100000",
    ]);
    seconds_of(&answer)
}

/// What three nodes cost that do nothing.
fn idle() {
    let cluster = Cluster::new("idle", 3).as_shipped().with_probe().form(3);
    std::thread::sleep(SETTLING);
    let ask = |machine: &Machine, words: &[&str]| {
        probe::ask(&cluster.lab, machine, words).unwrap_or_else(|error| panic!("{error}"))
    };
    let before: Vec<f64> =
        cluster.machines.iter().map(|m| number(&ask(m, &["ticks", "hivemindd"]))).collect();
    let threads = |machine: &Machine| {
        let all = ask(machine, &["threads", "hivemindd"]);
        let thread = |line: &str| {
            let fields: Vec<String> = line.splitn(7, ' ').map(str::to_owned).collect();
            let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
            let name = fields.get(6).cloned().unwrap_or_default();
            ((number(0), number(1)), (name, number(2), number(3), number(4) + number(5)))
        };
        all.lines().map(thread).collect::<std::collections::BTreeMap<_, _>>()
    };
    let first = &cluster.machines[0];
    let threads_before = threads(first);
    let frames_before = first.frames();
    let written = || cluster.machines.iter().map(|m| written_bytes(&ask(m, &["cat", "/proc/diskstats"])));
    let written_before: Vec<f64> = written().collect();
    let begin = Instant::now();
    std::thread::sleep(Duration::from_secs(60));
    let (to, from) = first.frames();
    eprintln!(
        "   {}: {} frames to it, {} from it",
        first.name(),
        to - frames_before.0,
        from - frames_before.1
    );
    for (id, (name, user, system, switches)) in threads(first) {
        let none = (String::new(), 0, 0, 0);
        let (_, user_before, system_before, switches_before) = threads_before.get(&id).unwrap_or(&none);
        eprintln!(
            "   {}: thread {name}: {} ms user, {} ms system, {} wake-ups",
            first.name(),
            10 * (user - user_before),
            10 * (system - system_before),
            switches - switches_before,
        );
    }
    let used = cluster.machines.iter().zip(before).map(|(m, b)| number(&ask(m, &["ticks", "hivemindd"])) - b);
    let busiest = used.fold(0.0, f64::max) / TICKS_PER_SECOND / begin.elapsed().as_secs_f64() * 100.0;

    let written = written().zip(written_before).map(|(after, before)| after - before);
    let written = written.fold(0.0, f64::max) / 1024.0 / begin.elapsed().as_secs_f64();

    let mut rss: f64 = 0.0;
    let mut machine_used: f64 = 0.0;
    for machine in &cluster.machines {
        let memory = ask(machine, &["memory", "hivemindd"]) + &ask(machine, &["memory", "/init"]);
        eprintln!("   {}: {}", machine.name(), memory.replace('\n', "; "));
        rss = rss.max(sum(&memory, 1) as f64 / 1024.0);
        machine_used = machine_used.max(used_memory(&ask(machine, &["cat", "/proc/meminfo"])) / 1024.0);
    }
    let slowness = Console::of(first).slowness();
    eprintln!(
        "   this computer is {slowness:.2} times slower than one that brings the kernel to PID 1 in 2 s"
    );
    report("hivemindd_rss", rss, "MB", 32.0);
    report("machine_used", machine_used, "MB", 110.0);
    report("idle_cpu", busiest, "%", 1.0);
    report("idle_writes", written, "KiB/s", 5.0);
}

/// Power cut to the replica's answer from another machine, with the image there.
fn failover() {
    let cluster = Cluster::new("failover", 3).as_shipped().form(3);
    let web = |replicas: usize| {
        format!(
            "services:\n  web:\n    image: registry.lab:5000/nginx:1\n    ports: ['8080:80']\n    \
             deploy: {{replicas: {replicas}}}\n"
        )
    };
    cluster.push(&web(3)).ok();
    cluster.wait_for_running("web", 3, STARTING);
    cluster.push(&web(1)).ok();
    let replica = cluster.wait_for_running("web", 1, STARTING).remove(0);
    let victim = cluster.machine_of(&replica);
    let survivor = cluster.machines.iter().find(|m| m.name() != victim.name());
    let url =
        format!("http://{}:8080/", survivor.map(Machine::address).unwrap_or_else(|| panic!("one survives")));
    wait::polling(SERVE_POLL, "it serves", STARTING, || cluster.get(&url));
    let begin = Instant::now();
    victim.power_cut();
    // What still answers in the first moments is the dead machine's last connection.
    std::thread::sleep(Duration::from_millis(500));
    wait::polling(SERVE_POLL, "it serves elsewhere", STARTING, || cluster.get(&url));
    report("failover", begin.elapsed().as_secs_f64(), "s", 12.0);
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn number(text: &str) -> f64 {
    text.trim().parse().unwrap_or(f64::NAN)
}

/// The sum of a column of numbers.
fn sum(text: &str, column: usize) -> u64 {
    text.lines().filter_map(|line| line.split_whitespace().nth(column)?.parse::<u64>().ok()).sum()
}

/// What was written to the whole disk, of `/proc/diskstats` (kernel, admin-guide/iostats: field 7, in
/// sectors of 512 bytes).
fn written_bytes(diskstats: &str) -> f64 {
    let fields = diskstats.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let disk = fields.into_iter().find(|fields| fields.get(2) == Some(&"vda"));
    disk.and_then(|fields| fields.get(9)?.parse::<f64>().ok()).unwrap_or(f64::NAN) * 512.0
}

/// `MemTotal` less `MemAvailable` of `/proc/meminfo`, KiB: what `free` calls used.
fn used_memory(meminfo: &str) -> f64 {
    let value = |name: &str| {
        let line = meminfo.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok()).unwrap_or(f64::NAN)
    };
    value("MemTotal:") - value("MemAvailable:")
}
