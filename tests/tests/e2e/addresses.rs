//! All machines get new addresses at once, as when a cluster is carried to another site.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use hivemind_tests::cluster::{Cluster, STARTING};
use hivemind_tests::wait;

/// From the first new address to a cluster that is whole again.
const WHOLE: Duration = Duration::from_secs(30);

#[test]
fn machines_that_all_get_new_addresses_are_whole_again_within_thirty_seconds() {
    let cluster = Cluster::formed("addresses", 3);
    cluster
        .push(
            "services:\n  web:\n    image: registry.lab:5000/nginx:1\n    deploy: {replicas: 3}\n  \
             asker:\n    image: registry.lab:5000/misbehave:1\n    ports: ['8081:8080']\n",
        )
        .ok();
    let before = cluster.wait_for_running("web", 3, STARTING);
    cluster.wait_for_running("asker", 1, STARTING);
    let old: BTreeSet<_> = cluster.machines.iter().map(hivemind_qemu::Machine::address).collect();

    cluster.machines.iter().for_each(|machine| machine.link_down().unwrap());
    // Until each has lost the others and its address.
    std::thread::sleep(Duration::from_secs(20));
    cluster.lab.move_to_another_site().unwrap();
    cluster.machines.iter().for_each(|machine| machine.link_up().unwrap());
    assert!(cluster.machines.iter().all(|machine| !old.contains(&machine.address())));
    for machine in &cluster.machines {
        machine.wait_for_lease(Duration::from_secs(60)).unwrap();
    }
    let leased = Instant::now();

    cluster.wait_for_ready(3);
    let asker = format!("http://{}:8081", cluster.machines[0].address());
    // By name, and every replica by its address in the overlay: from one machine to each.
    let addresses = before.iter().map(|replica| format!("{}/80", replica.ip));
    for place in ["web/80".to_owned()].into_iter().chain(addresses) {
        let answer = wait::until(&place, WHOLE, || cluster.get(&format!("{asker}/do/fetch/{place}")));
        assert!(answer.0.contains("200 OK"), "{place}: {answer:?}");
    }
    let took = leased.elapsed();
    eprintln!("whole again {took:?} after the last lease");
    assert!(took < WHOLE, "{took:?}");
    let after = cluster.wait_for_running("web", 3, STARTING);
    let which = |replicas: &[hivemind_tests::cluster::Replica]| -> BTreeSet<(u64, String, u64)> {
        replicas.iter().map(|r| (r.slot, r.node.clone(), r.restarts)).collect()
    };
    assert_eq!(which(&after), which(&before), "nothing was moved or started again");
}
