//! Machines die and come back.

use std::time::Duration;

use hivemind_tests::cluster::{Cluster, STARTING};
use hivemind_tests::wait;

#[test]
fn a_dead_machines_replicas_run_elsewhere_and_its_return_leaves_no_duplicate() {
    let cluster = Cluster::formed("failover", 3);
    cluster
        .push(
            "services:\n  web:\n    image: registry.lab:5000/nginx:1\n    ports: ['8080:80']\n    \
             deploy: {replicas: 3}\n",
        )
        .ok();
    let before = cluster.wait_for_running("web", 3, STARTING);
    let victim = cluster.machine_of(&before[0]);
    let dead = before[0].node.clone();
    victim.power_cut();

    let (after, took) = wait::until("its replicas run elsewhere", Duration::from_secs(90), || {
        let replicas = cluster.replicas("web")?;
        let moved = replicas.len() == 3 && replicas.iter().all(|r| r.phase == "running" && r.node != dead);
        if moved { Ok(replicas) } else { Err(format!("{replicas:#?}")) }
    });
    eprintln!("failover took {took:?}");
    for old in before.iter().filter(|r| r.node != dead) {
        let new = after.iter().find(|r| r.slot == old.slot).unwrap();
        assert_eq!(
            (&new.node, new.restarts, &new.ip),
            (&old.node, old.restarts, &old.ip),
            "the healthy stay"
        );
    }

    victim.power_on().unwrap();
    cluster.wait_for_ready(3);
    cluster.wait_for_running("web", 3, STARTING);
    wait::throughout("three replicas, no more", Duration::from_secs(10), || {
        let replicas = cluster.replicas("web")?;
        if replicas.len() == 3 { Ok(()) } else { Err(format!("{replicas:#?}")) }
    });
}
