//! Machines that should not be there: one that an operator cuts off, and a copy of another's disk.

use std::time::Duration;

use hivemind_qemu::MachineOptions;
use hivemind_tests::cluster::{Cluster, STARTING};
use hivemind_tests::command::items;
use hivemind_tests::wait;

/// How long the others may take to cut it off.
const CUT_OFF: Duration = Duration::from_secs(10);

/// As long as nodes take to find each other, twice.
const KEPT_OUT: Duration = Duration::from_secs(30);

#[test]
fn a_revoked_machine_is_cut_off_by_all_within_ten_seconds_and_cannot_come_back() {
    let cluster = Cluster::formed("revocation", 3);
    cluster.push("services:\n  web:\n    image: registry.lab:5000/nginx:1\n    deploy: {replicas: 3}\n").ok();
    let before = cluster.wait_for_running("web", 3, STARTING);
    let [.., stolen] = cluster.machines.as_slice() else { panic!("three machines") };
    let others = &cluster.machines[..2];
    let at = |index: usize, words: &[&str]| {
        let address = cluster.machines[index].address().to_string();
        cluster.json(&[words, &["--node", &address]].concat())
    };
    let id = at(2, &["status"]).unwrap()["node"].as_str().unwrap().to_owned();
    let refusals = |machine: &hivemind_qemu::Machine| {
        machine.serial().lines().filter(|line| line.contains("is refused") && line.contains(&id)).count()
    };

    cluster.hivemind(["nodes", "revoke", "--yes", &id, "--node", &others[0].address().to_string()]).ok();
    wait::until("both others cut it off", CUT_OFF, || {
        let counts: Vec<usize> = others.iter().map(refusals).collect();
        if counts.iter().all(|count| *count > 0) { Ok(()) } else { Err(format!("{counts:?}")) }
    });
    wait::until("its replica runs elsewhere", STARTING, || {
        let all = items(&at(0, &["ps"])?);
        let right =
            |replica: &&serde_json::Value| replica["phase"] == "running" && replica["node"] != id.as_str();
        let count = all.iter().filter(right).count();
        if count == 3 { Ok(()) } else { Err(format!("{all:#?}")) }
    });
    for old in before.iter().filter(|replica| replica.node != id) {
        let now = items(&at(0, &["ps"]).unwrap());
        let new = now.iter().find(|replica| replica["slot"] == old.slot).unwrap();
        assert_eq!(new["node"], old.node.as_str(), "the others' stay where they are");
    }

    stolen.power_cut();
    stolen.power_on().unwrap();
    wait::throughout("it is kept out, and the others know it for what it is", KEPT_OUT, || {
        for index in 0..2 {
            let nodes = items(&at(index, &["nodes"])?);
            let state = nodes.iter().find(|node| node["id"] == id.as_str()).map(|node| node["state"].clone());
            if state != Some("revoked".into()) {
                return Err(format!("{nodes:#?}"));
            }
        }
        Ok(())
    });
    assert!(stolen.serial().contains("it was revoked by an operator"), "it is told: {}", stolen.serial());
}

/// Both must have been heard for longer than words are on their way.
const NOTICED: Duration = Duration::from_secs(60);

#[test]
fn a_copy_of_a_machines_disk_started_beside_it_is_noticed_and_told_and_disturbs_nobody_else() {
    let mut cluster = Cluster::new("copy", 4).form(3);
    cluster.push("services:\n  web:\n    image: registry.lab:5000/nginx:1\n    deploy: {replicas: 3}\n").ok();
    let before = cluster.wait_for_running("web", 3, STARTING);
    let original = &cluster.machines[2];
    let id = cluster.json(&["status", "--node", &original.address().to_string()]).unwrap()["node"].clone();
    original.power_cut();
    let stolen = cluster.folder().join("stolen.img");
    original.open_disk(|disk| std::fs::copy(disk, &stolen).unwrap()).unwrap();
    original.power_on().unwrap();
    cluster.wait_for_ready(3);

    let mut options = MachineOptions::with_image("copy", &cluster.image);
    options.disk.as_mut().unwrap().base = Some(stolen);
    let copy = cluster.add_with(options);
    copy.power_on().unwrap();
    let addresses = [&cluster.machines[2], &cluster.machines[3]].map(|m| m.address().to_string());
    let at = |index: usize, words: &[&str]| {
        let address = cluster.machines[index].address().to_string();
        cluster.json(&[words, &["--node", &address]].concat())
    };
    for index in [0, 1] {
        wait::until("it is told, with both addresses", NOTICED, || {
            let nodes = items(&at(index, &["nodes"])?);
            let node = nodes.iter().find(|node| node["id"] == id).ok_or("the node is not listed")?;
            let told = node["problems"].to_string();
            let right = told.contains("runs twice") && addresses.iter().all(|address| told.contains(address));
            if right { Ok(()) } else { Err(told) }
        });
        let status = at(index, &["status"]).unwrap();
        assert!(status["problems"].to_string().contains("runs twice"), "{status:#}");
    }
    let heard = cluster.machines[..2].iter().filter(|m| m.serial().contains("node-doubled")).count();
    assert!(heard > 0, "whoever heard both says so on its console");

    let file = hivemind_tests::command::compose(
        cluster.folder(),
        "services:\n  more:\n    image: registry.lab:5000/nginx:1\n",
    );
    let address = cluster.machines[0].address().to_string();
    cluster.hivemind(["push", &file.to_string_lossy(), "--node", &address]).ok();
    let now = items(&at(0, &["ps"]).unwrap());
    for old in before.iter().filter(|replica| id != replica.node.as_str()) {
        let same = |new: &&serde_json::Value| {
            new["workload"] == "web" && new["slot"] == old.slot && new["node"] == old.node.as_str()
        };
        let new = now.iter().find(same).unwrap_or_else(|| panic!("{old:?} has moved: {now:#?}"));
        assert_eq!((&new["phase"], &new["sinceMs"]), (&"running".into(), &old.since_ms.into()), "{now:#?}");
    }
}
