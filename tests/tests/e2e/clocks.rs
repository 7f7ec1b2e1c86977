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

#[test]
fn machines_whose_clocks_are_wrong_by_decades_join_and_run_workloads_and_their_operator_is_told() {
    let cluster = Cluster::new("clocks", 2).with_machines(2);
    let [past, future] = cluster.machines.as_slice() else { panic!("two machines") };
    past.set_clock_offset_s(-FIFTY_SEVEN_YEARS_S);
    future.set_clock_offset_s(FORTY_TWO_YEARS_S);
    past.power_on().unwrap();
    future.power_on().unwrap();
    cluster.wait_for_ready(2);
    cluster
        .push(
            "services:\n  web:\n    image: registry.lab:5000/nginx:1\n    ports: ['8080:80']\n    \
             deploy: {replicas: 2}\n",
        )
        .ok();
    let replicas = cluster.wait_for_running("web", 2, STARTING);
    assert_ne!(replicas[0].node, replicas[1].node);
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

    // Whichever is asked, both tell what their containers said.
    for machine in &cluster.machines {
        let node = machine.address().to_string();
        let said = cluster.hivemind(["logs", "web", "--tail", "1000", "--node", &node]).ok().stdout();
        let slots: BTreeSet<&str> = said.lines().filter_map(|line| line.split(" | ").next()).collect();
        assert_eq!(slots.len(), 2, "by way of {node}: {said}");
        assert!(!said.contains("missing"), "by way of {node}: {said}");
    }

    cluster.hivemind(["remove", "--yes", "web"]).ok();
    wait::until("everything is gone", Duration::from_secs(60), || {
        let left = cluster.replicas("web")?;
        if left.is_empty() { Ok(()) } else { Err(format!("{left:#?}")) }
    });
}
