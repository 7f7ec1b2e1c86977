//! `hivemind upgrade`: a release goes through a cluster of the real image, or stops.

use std::time::Duration;

use hivemind_qemu::{Hardware, Machine, MachineOptions};
use hivemind_tests::cluster::{Cluster, FORMING, STARTING};
use hivemind_tests::command::items;
use hivemind_tests::disk;
use hivemind_tests::release::{Difference, Release};
use hivemind_tests::web::Web;

/// How long two machines may take for a release, one after the other: emulated, each twice through its firmware.
const ALL: &str = "7m";

/// What a change of one program may move of a release, percent.
const MOVES_PERCENT: u64 = 15;

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
    let release = Release::another("0.2.0");
    let web = Web::serve(&cluster.lab, &release.bundle());
    let bundle = release.bundle().to_string_lossy().into_owned();
    let waited = ["upgrade", &bundle, "--from", web.url(), "--wait", "--timeout", ALL];
    let said = cluster.hivemind(waited).ok().stderr();
    assert!(said.contains("1/2") && said.contains("all machines run it"), "{said}");
    let runs_it = |(id, on_trial): &(String, bool)| id == release.id() && !on_trial;
    assert_eq!(releases(&cluster).unwrap().iter().filter(|said| runs_it(said)).count(), 2);
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
    assert_eq!(releases(&cluster).unwrap().iter().filter(|said| runs_it(said)).count(), 2);
}

#[test]
fn a_release_comes_on_a_stick_to_one_machine_and_from_there_to_the_others() {
    let mut cluster = Cluster::new("sneakers", 2);
    cluster.image = cluster.image.clone().with_firmware();
    for name in ["m1", "m2"] {
        // With sockets for sticks.
        let options =
            MachineOptions { hardware: Hardware::Sata, ..MachineOptions::with_image(name, &cluster.image) };
        cluster.add_with(options).power_on().unwrap();
    }
    cluster.wait_for_ready_within(2, FORMING);
    let release = Release::another("0.2.0");
    let stick = cluster.folder().join("release.img");
    disk::stick_with(&stick, 128, "HIVERELEASE", &release.bundle());
    let nodes = items(&cluster.json(&["nodes"]).unwrap());
    // Its turn is the last.
    let leader = nodes.iter().find(|node| node["leader"] == true).unwrap();
    let leader = cluster.machine_at(leader["address"].as_str().unwrap().parse().unwrap());
    let first = cluster.machines.iter().find(|machine| machine.name() != leader.name()).unwrap();
    leader.plug_stick("early", &stick).unwrap();
    leader.wait_for_line("nobody has pushed a release", STARTING).unwrap();
    leader.unplug("early").unwrap();

    let bundle = release.bundle().to_string_lossy().into_owned();
    let refused = cluster.hivemind(["upgrade", &bundle]).failed().stderr();
    assert!(refused.contains("cannot fetch anything") && refused.contains("--from stick"), "{refused}");
    cluster.hivemind(["upgrade", &bundle, "--from", "stick"]).ok();
    first.wait_for_line("plug it into any of them", STARTING).unwrap();
    leader.plug_stick("release", &stick).unwrap();
    leader.wait_for_line("the release of the stick is here", STARTING).unwrap();
    leader.unplug("release").unwrap();
    first.wait_for_line("the release is in the spare slot", FORMING).unwrap();
}

#[test]
fn a_release_that_does_not_do_well_stops_at_the_first_machine_and_is_not_tried_again() {
    let cluster = cluster("stops", 2);
    let before = releases(&cluster).unwrap();
    let no_network = "hivemind.trial=30 module_blacklist=virtio_net";
    let release = Release::build("0.2.0", &Difference { append: no_network, ..Difference::default() });
    let registry = cluster.lab.empty_registry().unwrap();
    let bundle = release.push(&cluster.lab, &registry);
    let waited = ["upgrade", &bundle, "--insecure-registry", &registry.name(), "--wait", "--timeout", ALL];
    let waited = cluster.hivemind(waited).failed();
    assert_eq!(waited.code(), Some(6), "{}", waited.stderr());
    assert!(waited.stderr().contains("goes no further"), "{}", waited.stderr());
    let rollout =
        || -> Result<serde_json::Value, String> { Ok(items(&cluster.json(&["upgrade"])?).remove(0)) };
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
