//! Power cuts at any moment, on disks that lose what was not flushed.

use std::collections::BTreeSet;
use std::time::Duration;

use hivemind_qemu::{DiskCache, Machine, MachineOptions};
use hivemind_tests::cluster::{Cluster, STARTING};
use hivemind_tests::command::{compose, items};
use hivemind_tests::setting;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// Machines whose power is cut in every run, at least; set `HIVEMIND_POWER_CUTS` for more, and `HIVEMIND_POWER_SEED` for others.
const CUTS: u64 = 50;

/// How long after a push began the power goes, milliseconds: before, in and after all its steps.
const CUT_AFTER_MS: u64 = 1500;

/// How long until the next one, milliseconds: into boot, joining, pulling, starting and rest.
const PAUSE_MS: u64 = 5000;

/// What follows the last cut may take that long: pulls begin anew, and backoffs end.
const COME_BACK: Duration = Duration::from_secs(180);

/// A Compose file with a workload for each number, which runs nothing: pushing is what matters here.
fn pushed(cluster: &Cluster, numbers: impl IntoIterator<Item = u64>) -> String {
    let services = numbers.into_iter().map(|number| {
        format!("  p{number}:\n    image: registry.lab:5000/misbehave:1\n    deploy: {{replicas: 0}}\n")
    });
    let text = format!("services:\n{}", services.collect::<String>());
    compose(cluster.folder(), &text).to_string_lossy().into_owned()
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
        std::thread::scope(|scope| {
            let push = scope.spawn(|| cluster.hivemind(["push", &file]).is_ok());
            std::thread::sleep(Duration::from_millis(rng.random_range(0..CUT_AFTER_MS)));
            victims.iter().for_each(|machine| machine.power_cut());
            victims.iter().for_each(|machine| machine.power_on().unwrap());
            if push.join().unwrap() {
                acknowledged.insert(this);
            }
        });
        cuts += victims.len() as u64;
        std::thread::sleep(Duration::from_millis(rng.random_range(0..PAUSE_MS)));
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
        hivemind_tests::wait::until(machine.name(), Duration::from_secs(30), held);
    }
    let share = acknowledged.len();
    eprintln!("{cuts} cuts; {share} of {pushes} pushes were acknowledged");
    assert!(share > 5, "pushes were acknowledged between the cuts: {acknowledged:?}");
    cluster.wait_for_running("app", 2, COME_BACK.max(STARTING));
}
