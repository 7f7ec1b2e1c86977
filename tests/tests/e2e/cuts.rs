//! Power cuts at any moment, on disks that lose what was not flushed.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hivemind_qemu::{DiskCache, Machine, MachineOptions};
use hivemind_tests::cluster::{Cluster, STARTING};
use hivemind_tests::command::{compose, items};
use hivemind_tests::console::Console;
use hivemind_tests::release::Release;
use hivemind_tests::web::Web;
use hivemind_tests::{setting, wait};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// Machines whose power is cut in every run, at least; set `HIVEMIND_POWER_CUTS` for more, and `HIVEMIND_POWER_SEED` for others.
const CUTS: u64 = 50;

/// How long after a push began the power goes, milliseconds: before, in and after all its steps.
const CUT_AFTER_MS: u64 = 1500;

/// How long until the next one, milliseconds: into boot, joining, pulling, starting and rest.
const PAUSE_MS: u64 = 5000;

/// How long the operator waits for a push once the power is back, milliseconds: long enough for a machine that went on.
/// Longer, and machines would be up again before nearly every cut.
const PATIENCE_MS: u64 = 5000;

/// On a slow computer these are so many times longer at most: fifty cuts have to end some day.
const SLOWEST: f64 = 2.0;

/// What follows the last cut may take that long: pulls begin anew, and backoffs end.
const COME_BACK: Duration = Duration::from_secs(180);

/// Power cuts while a machine takes a release, in every run; set `HIVEMIND_UPDATE_CUTS` for more, and
/// `HIVEMIND_POWER_SEED` for others.
const UPDATE_CUTS: u64 = 4;

/// So many for each release.
const CUTS_EACH: u64 = 4;

/// The first comes so soon after the machine begins to take it, milliseconds: while it copies, fetches and writes.
const TAKING_MS: u64 = 3000;

/// How long until the next one, milliseconds: into the firmware, boot, all of it again, the restart and the trial.
const UPDATE_PAUSE_MS: u64 = 40_000;

/// How long a machine whose power was cut may take until it is well on one release or the other.
const SETTLED: Duration = Duration::from_secs(300);

/// A Compose file with a workload for each number, which runs nothing: pushing is what matters here.
fn pushed(cluster: &Cluster, numbers: impl IntoIterator<Item = u64>) -> String {
    let services = numbers.into_iter().map(|number| {
        format!("  p{number}:\n    image: registry.lab:5000/misbehave:1\n    deploy: {{replicas: 0}}\n")
    });
    let text = format!("services:\n{}", services.collect::<String>());
    compose(cluster.folder(), &text).to_string_lossy().into_owned()
}

/// Pushes a file until it is acknowledged or refused, or the operator gives up. Returns whether it is acknowledged.
fn push(cluster: &Cluster, file: &str, gives_up: &AtomicBool) -> bool {
    let mut push = cluster.command(["push", file]);
    let mut push = push.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while push.try_wait().unwrap().is_none() {
        if gives_up.load(Ordering::Relaxed) {
            push.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    push.wait().unwrap().success()
}

fn nodes(cluster: &Cluster) -> BTreeSet<String> {
    let nodes = cluster.json(&["nodes"]).map(|nodes| items(&nodes)).unwrap_or_default();
    nodes.iter().map(|node| node["id"].to_string()).collect()
}

#[test]
fn power_cuts_at_any_moment_lose_no_identity_and_no_acknowledged_push() {
    let seed = setting("HIVEMIND_POWER_SEED", 1);
    eprintln!("seed {seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut cluster = Cluster::new("cuts", 2);
    for name in ["m1", "m2"] {
        let mut options = MachineOptions::with_image(name, &cluster.image);
        if let Some(disk) = &mut options.disk {
            disk.cache = DiskCache::Volatile { seed: rng.random() };
        }
        cluster.add_with(options);
    }
    cluster.machines.iter().for_each(|machine| machine.power_on().unwrap());
    cluster.wait_for_ready(2);
    let ids = nodes(&cluster);
    assert_eq!(ids.len(), 2);
    // The moments are those of machines of the usual speed; slower ones would hardly start between two cuts.
    let slowness = Console::of(&cluster.machines[0]).slowness().min(SLOWEST);
    let pause = |ms: u64| std::thread::sleep(Duration::from_millis(ms).mul_f64(slowness));
    // Its image is still being pulled when the first cuts come.
    let app = "services:\n  app:\n    image: registry.lab:5000/nginx:1\n    deploy: {replicas: 2}\n";
    cluster.push(app).ok();

    let mut acknowledged = BTreeSet::new();
    let wanted = setting("HIVEMIND_POWER_CUTS", CUTS);
    let (mut cuts, mut pushes) = (0, 0);
    while cuts < wanted {
        let this = pushes;
        pushes += 1;
        let file = pushed(&cluster, [this]);
        let victims: Vec<&Machine> = match rng.random_range(0..4) {
            which @ (0 | 1) => vec![&cluster.machines[which]],
            _ => cluster.machines.iter().collect(),
        };
        let gives_up = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let push = scope.spawn(|| push(&cluster, &file, &gives_up));
            pause(rng.random_range(0..CUT_AFTER_MS));
            victims.iter().for_each(|machine| machine.power_cut());
            victims.iter().for_each(|machine| machine.power_on().unwrap());
            let patience = Instant::now() + Duration::from_millis(PATIENCE_MS).mul_f64(slowness);
            while !push.is_finished() && Instant::now() < patience {
                std::thread::sleep(Duration::from_millis(50));
            }
            gives_up.store(true, Ordering::Relaxed);
            if push.join().unwrap() {
                acknowledged.insert(this);
            }
        });
        cuts += victims.len() as u64;
        pause(rng.random_range(0..PAUSE_MS));
    }

    for machine in &cluster.machines {
        let console = machine.serial();
        let last = console.rsplit("init up").next().unwrap_or_default();
        assert!(!last.is_empty(), "{} does not boot any more: {console}", machine.name());
    }
    cluster.wait_for_ready(2);
    assert_eq!(nodes(&cluster), ids, "the same nodes, and no more");
    let file = pushed(&cluster, acknowledged.iter().copied());
    for machine in &cluster.machines {
        let address = machine.address().to_string();
        let held = || -> Result<(), String> {
            let plan = cluster.json(&["plan", &file, "--node", &address])?;
            let lost = plan["changes"].as_array().map_or(0, Vec::len);
            if lost == 0 { Ok(()) } else { Err(format!("{lost} acknowledged pushes are lost: {plan:#}")) }
        };
        wait::until(machine.name(), Duration::from_secs(30), held);
    }
    let share = acknowledged.len();
    eprintln!("{cuts} cuts; {share} of {pushes} pushes were acknowledged");
    assert!(share > 5, "pushes were acknowledged between the cuts: {acknowledged:?}");
    cluster.wait_for_running("app", 2, COME_BACK.max(STARTING));
}

#[test]
fn power_cuts_at_any_moment_of_an_update_leave_a_machine_that_runs_one_release_or_the_other() {
    let seed = setting("HIVEMIND_POWER_SEED", 1);
    eprintln!("seed {seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut cluster = Cluster::new("update-cuts", 1);
    cluster.image = cluster.image.clone().with_firmware();
    let mut options = MachineOptions::with_image("m1", &cluster.image);
    if let Some(disk) = &mut options.disk {
        disk.cache = DiskCache::Volatile { seed: rng.random() };
    }
    cluster.add_with(options);
    let machine = &cluster.machines[0];
    machine.power_on().unwrap();
    cluster.wait_for_ready(1);
    let node = || -> Result<serde_json::Value, String> { Ok(items(&cluster.json(&["nodes"])?).remove(0)) };
    let id = node().unwrap()["id"].clone();

    let wanted = setting("HIVEMIND_UPDATE_CUTS", UPDATE_CUTS);
    let (mut cuts, mut taken, mut rounds, mut taking) = (0, 0, 0, 0);
    while cuts < wanted {
        rounds += 1;
        let before = node().unwrap()["release"]["id"].clone();
        let release = Release::another(&format!("0.2.{rounds}"));
        let web = Web::serve(&cluster.lab, &release.bundle());
        cluster.hivemind(["upgrade", &release.bundle().to_string_lossy(), "--from", web.url()]).ok();
        let begun = || machine.serial().matches("takes a release").count();
        let before_this = taking;
        wait::until("it takes the release", SETTLED, || {
            taking = begun();
            if taking > before_this { Ok(()) } else { Err("not yet".to_owned()) }
        });
        for cut in 0..CUTS_EACH {
            let within_ms = if cut == 0 { TAKING_MS } else { UPDATE_PAUSE_MS };
            std::thread::sleep(Duration::from_millis(rng.random_range(0..within_ms)));
            machine.power_cut();
            machine.power_on().unwrap();
        }
        cuts += CUTS_EACH;
        // Cuts on trial count as tries: three of them, and the release is one that failed.
        let (after, _) = wait::until("it runs one of the two and is well", SETTLED, || {
            let node = node()?;
            let running = &node["release"];
            let failed = running["failed"].as_array().is_some_and(|f| f.iter().any(|id| id == release.id()));
            let settled = running["onTrial"] != true && node["state"] == "ready";
            let is_new = running["id"] == release.id();
            if settled && (is_new || (failed && running["id"] == before)) {
                Ok(is_new)
            } else {
                Err(node.to_string())
            }
        });
        taken += u64::from(after);
    }
    assert_eq!(node().unwrap()["id"], id, "the same node");
    let console = machine.serial();
    assert!(!console.contains("root-corrupt"), "half a release was started: {console}");
    eprintln!("{cuts} cuts; {taken} of {rounds} releases were taken all the same");
}
