//! `hivemind upgrade`: a release goes through a cluster of the real image, or stops.

use std::fs;
use std::time::Duration;

use hivemind_qemu::{DiskCache, Machine, MachineOptions};
use hivemind_tests::cluster::{Cluster, FORMING, STARTING};
use hivemind_tests::command::items;
use hivemind_tests::release::{self, Difference, Release};
use hivemind_tests::web::Web;
use hivemind_tests::{setting, wait};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// How long two machines may take for a release, one after the other: emulated, each twice through its firmware.
const ALL: Duration = Duration::from_secs(420);

/// What a change of one program may move of a release, percent.
const MOVES_PERCENT: u64 = 15;

/// Power cuts while a machine takes a release, in every run; set `HIVEMIND_UPDATE_CUTS` for more, and
/// `HIVEMIND_POWER_SEED` for others.
const CUTS: u64 = 4;

/// So many for each release.
const CUTS_EACH: u64 = 4;

/// How long until the next one, milliseconds: into the firmware, boot, fetching, writing, the restart and the trial.
const PAUSE_MS: u64 = 40_000;

/// Machines with firmware that are a cluster, and run one replica each.
fn cluster(name: &str, count: usize) -> Cluster {
    let mut cluster = Cluster::new(name, count);
    cluster.image = cluster.image.clone().with_firmware();
    let cluster = cluster.form(count);
    let app = format!(
        "services:\n  app:\n    image: registry.lab:5000/misbehave:1\n    deploy: {{replicas: {count}}}\n"
    );
    cluster.push(&app).ok();
    cluster.wait_for_running("app", count, STARTING);
    cluster
}

/// A release with another agent, which does the same.
fn another(version: &str) -> Release {
    let mut agent = fs::read(release::programs().agent).unwrap();
    agent.extend_from_slice(version.as_bytes());
    Release::build(version, &Difference { agent: Some(&agent), ..Difference::default() })
}

/// The release that each node says it runs, and whether it is on trial.
fn releases(cluster: &Cluster) -> Result<Vec<(String, bool)>, String> {
    let nodes = items(&cluster.json(&["nodes"])?);
    let said = |node: &serde_json::Value| {
        let release = &node["release"];
        (release["id"].as_str().unwrap_or_default().to_owned(), release["onTrial"] == true)
    };
    Ok(nodes.iter().map(said).collect())
}

#[test]
fn a_release_goes_from_machine_to_machine_comes_from_outside_once_and_moves_only_what_changed() {
    let cluster = cluster("upgrade", 2);
    let release = another("0.2.0");
    let web = Web::serve(&cluster.lab, &release.bundle());
    let bundle = release.bundle().to_string_lossy().into_owned();
    cluster.hivemind(["upgrade", &bundle, "--from", web.url()]).ok();
    wait::until("both run it and are well", ALL, || {
        let said = releases(&cluster)?;
        let done = said.len() == 2 && said.iter().all(|(id, on_trial)| id == release.id() && !on_trial);
        if done { Ok(()) } else { Err(format!("{said:?} {}", cluster.json(&["upgrade"])?)) }
    });
    let (sent, all) = (web.sent(), release.bytes());
    eprintln!("{sent} of {all} bytes came from outside");
    assert!(sent > 0 && 100 * sent <= MOVES_PERCENT * all, "{sent} of {all} bytes");
    let fetched = cluster.consoles().matches("the release is in the spare slot").count();
    assert_eq!(fetched, 2);
    let rollout = items(&cluster.json(&["upgrade"]).unwrap()).remove(0);
    assert_eq!((rollout["state"].as_str(), rollout["done"].as_u64()), (Some("done"), Some(2)), "{rollout}");
    assert!(items(&cluster.json(&["nodes"]).unwrap()).iter().all(|node| node["version"] == "0.2.0"));
    cluster.wait_for_running("app", 2, STARTING);

    cluster.machines.iter().for_each(Machine::power_cut);
    cluster.machines.iter().for_each(|machine| machine.power_on().unwrap());
    cluster.wait_for_ready_within(2, FORMING);
    assert!(releases(&cluster).unwrap().iter().all(|(id, on_trial)| id == release.id() && !on_trial));
}

#[test]
fn a_release_that_does_not_do_well_stops_at_the_first_machine_and_is_not_tried_again() {
    let cluster = cluster("stops", 2);
    let before = releases(&cluster).unwrap();
    let no_network = "hivemind.trial=30 module_blacklist=virtio_net";
    let release = Release::build("0.2.0", &Difference { append: no_network, ..Difference::default() });
    let registry = cluster.lab.empty_registry().unwrap();
    let bundle = release.push(&cluster.lab, &registry);
    cluster.hivemind(["upgrade", &bundle, "--insecure-registry", &registry.name()]).ok();
    let rollout =
        || -> Result<serde_json::Value, String> { Ok(items(&cluster.json(&["upgrade"])?).remove(0)) };
    wait::until("it stops", ALL, || {
        let rollout = rollout()?;
        if rollout["state"] == "stopped" { Ok(()) } else { Err(rollout.to_string()) }
    });
    let tried = || cluster.consoles().matches("is on trial").count();
    assert_eq!(tried(), 1, "on one machine");
    cluster.wait_for_ready_within(2, FORMING);
    assert_eq!(releases(&cluster).unwrap(), before);
    let reason = rollout().unwrap()["reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason.contains("went back"), "{reason}");
    let status = cluster.hivemind(["status"]).ok().stdout();
    assert!(status.contains("goes no further"), "{status}");

    // The same again from elsewhere is another document, and the same release.
    let web = Web::serve(&cluster.lab, &release.bundle());
    cluster.hivemind(["upgrade", web.url()]).ok();
    std::thread::sleep(Duration::from_secs(20));
    assert_eq!(rollout().unwrap()["state"], "stopped");
    assert_eq!(tried(), 1, "it is not tried again");
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

    let wanted = setting("HIVEMIND_UPDATE_CUTS", CUTS);
    let (mut cuts, mut taken, mut rounds) = (0, 0, 0);
    while cuts < wanted {
        rounds += 1;
        let before = node().unwrap()["release"]["id"].clone();
        let release = another(&format!("0.2.{rounds}"));
        let web = Web::serve(&cluster.lab, &release.bundle());
        cluster.hivemind(["upgrade", &release.bundle().to_string_lossy(), "--from", web.url()]).ok();
        for _ in 0..CUTS_EACH {
            std::thread::sleep(Duration::from_millis(rng.random_range(0..PAUSE_MS)));
            machine.power_cut();
            machine.power_on().unwrap();
        }
        cuts += CUTS_EACH;
        // Cuts on trial count as tries: three of them, and the release is one that failed.
        let (after, _) = wait::until("it runs one of the two and is well", ALL, || {
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
