//! Machines whose clocks are wrong by decades.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hivemind_tests::cluster::{Cluster, STARTING};
use hivemind_tests::command::items;
use hivemind_tests::wait;

/// Back to 1970, where a clock chip without a battery begins.
const FIFTY_SEVEN_YEARS_S: i64 = 57 * 365 * 86_400;

/// To about 2069: the last year that a clock chip shows in two digits.
const FORTY_TWO_YEARS_S: i64 = 42 * 365 * 86_400;

/// A clock set by hand to the wrong year, and a month.
const FOUR_HUNDRED_DAYS_S: i64 = 400 * 86_400;

#[test]
fn machines_whose_clocks_are_wrong_by_decades_join_and_run_workloads_and_their_operator_is_told() {
    let cluster = Cluster::new("clocks", 3).with_machines(3);
    let [past, future, later] = cluster.machines.as_slice() else { panic!("three machines") };
    past.set_clock_offset_s(-FIFTY_SEVEN_YEARS_S);
    future.set_clock_offset_s(FORTY_TWO_YEARS_S);
    cluster.machines.iter().for_each(|machine| machine.power_on().unwrap());
    cluster.wait_for_ready(3);
    cluster
        .push(
            "services:\n  web:\n    image: registry.lab:5000/nginx:1\n    ports: ['8080:80']\n    \
             deploy: {replicas: 3}\n",
        )
        .ok();
    let replicas = cluster.wait_for_running("web", 3, STARTING);
    let homes: BTreeSet<&str> = replicas.iter().map(|replica| replica.node.as_str()).collect();
    assert_eq!(homes.len(), 3, "{replicas:#?}");
    for machine in &cluster.machines {
        let url = format!("http://{}:8080/", machine.address());
        wait::until(&url, Duration::from_secs(20), || cluster.get(&url));
    }

    // The one without a clock knows at least when its token was signed; the other believes its own.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let nodes = items(&cluster.json(&["nodes"]).unwrap());
    let started = |address: &str| {
        let node = nodes.iter().find(|node| node["address"] == address).unwrap();
        Duration::from_millis(node["startedMs"].as_u64().unwrap())
    };
    let behind = now.saturating_sub(started(&past.address().to_string()));
    assert!(behind < Duration::from_secs(3 * 3600), "{behind:?}");
    let ahead = started(&future.address().to_string()).saturating_sub(now);
    assert!(ahead > Duration::from_secs(41 * 365 * 86_400), "{ahead:?}");

    // Each answers the operator; the one whose certificate is not valid yet says why it is a worry.
    let ask = |address: &str| cluster.hivemind(["nodes", "--node", address]).ok();
    let right = ask(&past.address().to_string());
    assert!(!right.stderr().contains("clock"), "{right}");
    let wrong = ask(&future.address().to_string());
    assert!(wrong.stderr().contains("clock") && wrong.stderr().contains("ahead"), "{wrong}");

    // Whichever is asked, all tell what their containers said: nginx says something soon after it was started.
    for machine in &cluster.machines {
        let node = machine.address().to_string();
        wait::until(&format!("all logs by way of {node}"), STARTING, || {
            let said = cluster.hivemind(["logs", "web", "--tail", "1000", "--node", &node]).ok().stdout();
            let slots: BTreeSet<&str> = said.lines().filter_map(|line| line.split(" | ").next()).collect();
            if slots.len() == 3 && !said.contains("missing") { Ok(()) } else { Err(said) }
        });
    }

    // A member whose clock is set wrong while its power is off comes back as the same, runs what is its
    // own, and takes pushes.
    later.power_cut();
    later.set_clock_offset_s(FOUR_HUNDRED_DAYS_S);
    later.power_on().unwrap();
    let later = later.address().to_string();
    wait::until("it is back, a year ahead", STARTING, || {
        let nodes = items(&cluster.json(&["nodes", "--node", &later])?);
        let all_ready = nodes.len() == 3 && nodes.iter().all(|node| node["state"] == "ready");
        if all_ready { Ok(()) } else { Err(format!("{nodes:#?}")) }
    });
    let compose = "services:\n  more:\n    image: registry.lab:5000/nginx:1\n    deploy: {replicas: 3}\n";
    let file = hivemind_tests::command::compose(cluster.folder(), compose);
    cluster.hivemind(["push", &file.to_string_lossy(), "--node", &later]).ok();
    cluster.wait_for_running("more", 3, STARTING);
    cluster.wait_for_running("web", 3, STARTING);
    wait::until("everything has one place", STARTING, || {
        let counts = (cluster.replicas("web")?.len(), cluster.replicas("more")?.len());
        if counts == (3, 3) { Ok(()) } else { Err(format!("{counts:?}")) }
    });

    cluster.hivemind(["remove", "--yes", "web"]).ok();
    wait::until("everything is gone", Duration::from_secs(60), || {
        let left = cluster.replicas("web")?;
        if left.is_empty() { Ok(()) } else { Err(format!("{left:#?}")) }
    });
}
