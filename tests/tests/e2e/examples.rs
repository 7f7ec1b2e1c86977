//! Applications as people write them, from `docs/examples`.

use std::fs;

use hivemind_tests::cluster::{Cluster, STARTING};
use hivemind_tests::command::Run;
use hivemind_tests::wait;
use serde_json::Value;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples");

#[test]
fn applications_run_as_people_write_them() {
    let cluster = Cluster::formed("examples", 2);
    monitoring_finds_an_exporter_on_every_machine_which_sees_all_of_it(&cluster);
    a_web_application_has_its_database_and_its_cache(&cluster);
    files_are_backed_up_at_set_times_and_come_back(&cluster);
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

/// Keeps backups as an object store does: pieces by their names, which say nothing.
const STORE: &str = "
services:
  store:
    image: registry.lab:5000/rclone:1
    command: rclone serve restic --addr :8000 /store
    stop_grace_period: 0s
    volumes: ['store:/store']
    x-hivemind: {health: 'tcp://:8000'}
volumes:
  store: {}
";

fn files_are_backed_up_at_set_times_and_come_back(cluster: &Cluster) {
    cluster.push(STORE).ok();
    let file = &cluster.folder().join("backup.yaml").to_string_lossy().into_owned();
    fs::copy(format!("{FOLDER}/backup.yaml"), file).unwrap();
    let refused = cluster.hivemind(["push", file]).failed().stderr();
    assert!(refused.contains("say where backups go"), "{refused}");
    let push = |more: &[&str]| {
        let mut command = cluster.command([&["push", file.as_str(), "--wait"], more].concat());
        command.env("BACKUP_TO", "rest:http://store:8000/");
        Run::of(command)
    };
    let refused = push(&[]).failed().stderr();
    assert!(refused.contains("backup-passphrase.txt"), "{refused}");
    fs::write(cluster.folder().join("backup-passphrase.txt"), "a long one\n").unwrap();
    fs::write(cluster.folder().join("backup-account.txt"), "[default]\naws_access_key_id=a\n").unwrap();
    push(&[]).ok();
    cluster.wait_for_running("store", 1, STARTING);
    let shell = |workload: &str, script: &str| cluster.hivemind(["exec", workload, "--", "sh", "-c", script]);
    let page = || cluster.get(&format!("http://{}:8080/page", cluster.machines[0].address()));
    let backed_up = |times: usize| {
        cluster.hivemind(["jobs", "run", "backup"]).ok();
        wait::until("it is backed up and checked", STARTING, || {
            let said = cluster.hivemind(["logs", "backup"]).stdout();
            if said.matches("no errors were found").count() >= times { Ok(()) } else { Err(said) }
        });
    };

    shell("pages", "echo first words >/srv/page; chown 7:8 /srv/page; echo other >/srv/other").ok();
    backed_up(1);
    shell("pages", "echo second words >>/srv/page").ok();
    backed_up(2);
    let found = shell("store", "ls /store/snapshots; grep -rl words /store || echo no words").ok().stdout();
    // Of one day the last is kept, and midnight may be between the two.
    let (snapshots, rest) = found.trim().rsplit_once('\n').unwrap();
    assert!((1..=2).contains(&snapshots.lines().count()) && rest == "no words", "{found}");
    shell("pages", "rm /srv/page; echo overwritten >/srv/other").ok();
    page().unwrap_err();
    push(&["--profile", "restore"]).ok();
    wait::until("it is as it was", STARTING, || {
        let said = page()?;
        if said == "first words\nsecond words\n" { Ok(()) } else { Err(said) }
    });
    let found = shell("pages", "stat -c %u:%g /srv/page; cat /srv/other").ok().stdout();
    assert_eq!(found.trim(), "7:8\nother");
    cluster.hivemind(["remove", "pages", "backup", "restore", "store", "--yes"]).ok();
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
