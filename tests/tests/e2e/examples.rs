//! Applications as people write them, from `docs/examples`.

use std::fs;

use hivemind_tests::cluster::{Cluster, STARTING};
use hivemind_tests::wait;
use serde_json::Value;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples");

#[test]
fn applications_run_as_people_write_them() {
    let cluster = Cluster::formed("examples", 2);
    monitoring_finds_an_exporter_on_every_machine_which_sees_all_of_it(&cluster);
    a_web_application_has_its_database_and_its_cache(&cluster);
    home_automation_runs_with_a_broker_a_device_and_a_hub_on_the_machines_network(&cluster);
}

fn monitoring_finds_an_exporter_on_every_machine_which_sees_all_of_it(cluster: &Cluster) {
    let file = &format!("{FOLDER}/monitoring.yaml");
    let refused = cluster.hivemind(["push", file]).failed().stderr();
    assert!(
        refused.contains("hivemind namespaces allow default host-namespaces host-paths privileged"),
        "{refused}"
    );
    cluster.hivemind(["namespaces", "allow", "default", "privileged"]).ok();
    cluster.hivemind(["push", file, "--wait"]).ok();
    let ask = |query: &str| {
        let url = format!("http://{}:9090/api/v1/query?query={query}", cluster.machines[0].address());
        let answer = cluster.get(&url)?;
        let answer: Value = serde_json::from_str(&answer).map_err(|error| format!("{error}: {answer}"))?;
        let value = answer["data"]["result"][0]["value"][1].as_str();
        value.map(str::to_owned).ok_or_else(|| answer.to_string())
    };
    // The first is of the network between them, the second of the machines' own disks.
    for (query, wanted) in
        [("count(up%3D%3D1)", "2"), ("count(node_filesystem_size_bytes%7Bmountpoint=%22/var%22%7D%3E0)", "2")]
    {
        wait::until(query, STARTING, || {
            let said = ask(query)?;
            if said == wanted { Ok(()) } else { Err(said) }
        });
    }
    cluster.hivemind(["remove", "--file", file, "--yes"]).ok();
    cluster.hivemind(["namespaces", "deny", "default", "privileged"]).ok();
}

fn a_web_application_has_its_database_and_its_cache(cluster: &Cluster) {
    let file = &cluster.folder().join("guestbook.yaml").to_string_lossy().into_owned();
    fs::copy(format!("{FOLDER}/guestbook.yaml"), file).unwrap();
    let refused = cluster.hivemind(["push", file]).failed().stderr();
    assert!(refused.contains("guestbook-password.txt"), "{refused}");
    fs::write(cluster.folder().join("guestbook-password.txt"), "a long one\n").unwrap();
    cluster.hivemind(["push", file, "--wait"]).ok();
    let url = &format!("http://{}/", cluster.machines[0].address());
    let read = || cluster.curl(&["--include", "--max-time", "10", url]);
    let write = |text: &str| {
        wait::until("the guest book takes an entry", STARTING, || {
            cluster.curl(&["--max-time", "10", "--data", text, url])
        });
    };
    write("Nice machines.");
    for cache in ["X-Cache: miss", "X-Cache: hit"] {
        let page = read().unwrap();
        assert!(page.contains("1. Nice machines.") && page.contains(cache), "{page}");
    }
    // Another process on the same data, and others that ask for them; the page was made anew.
    cluster.hivemind(["restart", "database", "app", "--wait"]).ok();
    write("They still know me.");
    let page = read().unwrap();
    assert!(page.contains("1. Nice machines.\n2. They still know me.") && page.contains("miss"), "{page}");
    cluster.hivemind(["remove", "--file", file, "--yes"]).ok();
}

fn home_automation_runs_with_a_broker_a_device_and_a_hub_on_the_machines_network(cluster: &Cluster) {
    let file = &format!("{FOLDER}/home.yaml");
    let refused = cluster.hivemind(["push", file]).failed().stderr();
    assert!(refused.contains("hivemind namespaces allow default"), "{refused}");
    cluster.hivemind(["namespaces", "allow", "default", "devices", "host-network"]).ok();
    cluster.hivemind(["push", file, "--wait"]).ok();
    // By the broker's name, from the machine's network and through whatever is between.
    cluster.wait_for_words("hub", &["home/temperature 21.5 of /dev/ttyUSB0"], STARTING);

    // What the broker was told outlives it and its machine's power.
    cluster.hivemind(["remove", "thermometer", "--yes"]).ok();
    let broker = cluster.wait_for_running("mosquitto", 1, STARTING).remove(0);
    let machine = cluster.machine_of(&broker);
    cluster.hivemind(["exec", "mosquitto", "sync"]).ok();
    machine.power_cut();
    machine.power_on().unwrap();
    cluster.wait_for_ready(2);
    let ask = ["exec", "mosquitto", "mosquitto_sub", "-t", "home/#", "-C", "1", "-W", "10"];
    // What was said of the broker before the power went is said until its machine says something else.
    let (kept, _) = wait::until("the broker answers again", STARTING, || {
        let asked = cluster.hivemind(ask);
        if asked.is_ok() { Ok(asked.stdout()) } else { Err(asked.stderr()) }
    });
    assert_eq!(kept.trim(), "21.5 of /dev/ttyUSB0");
}
