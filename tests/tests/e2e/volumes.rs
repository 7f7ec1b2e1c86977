//! Data that outlives its containers, its machine's power and its workload.

use std::collections::BTreeSet;
use std::time::Duration;

use hivemind_tests::cluster::{Cluster, Replica, STARTING};
use hivemind_tests::command::{Run, items};
use hivemind_tests::{probe, wait};
use serde_json::Value;

/// Writes a line at each start, and then more than there is room for.
const DATABASE: &str = r#"
services:
  db:
    image: registry.lab:5000/busybox:1
    environment: {VERSION: "1"}
    command:
      - sh
      - -c
      - |
        echo "start $$VERSION" >>/data/log && sync
        cat /data/log
        dd if=/dev/zero of=/data/much bs=64k count=100 2>&1 | grep -o 'quota exceeded'
        rm /data/much
        echo "page=$$(cat /srv/page.txt) mode=$$(stat -c %a:%u:%g /kept) kept=$$(ls /kept | head -n 1)"
        echo "pages=$$(cat /etc/pages/de/one.txt) $$(ls /etc/pages | tr '\n' ' ')"
        echo x 2>/dev/null >>/srv/page.txt || echo "page is not written"
        until dd if=/dev/zero of=/data/more bs=64k count=40 2>/dev/null; do rm /data/more; sleep 1; done
        rm /data/more
        echo "has room for more"
        exec sleep 100000
    stop_grace_period: 0s
    volumes:
      - data:/data
      - kept:/kept
      - ./pages:/etc/pages:ro
      - type: bind
        source: ./page.txt
        target: /srv/page.txt
        read_only: true
      - type: tmpfs
        target: /scratch
        tmpfs: {size: 1m}
  reader:
    image: registry.lab:5000/busybox:1
    command: [sh, -c, 'cat /data/log; echo x 2>/dev/null >>/data/log || echo log is not written; exec sleep 100000']
    stop_grace_period: 0s
    volumes_from: ['db:ro']
    depends_on: [db]
  # Its page is in the image, and so in the new volume; without it nginx would answer 403.
  site:
    image: registry.lab:5000/nginx:1
    stop_grace_period: 0s
    volumes: ['site:/usr/share/nginx/html']
    x-hivemind: {health: 'http://:80/'}
volumes:
  data: {x-hivemind: {size: 2m}}
  kept: {}
  site: {}
"#;

/// Each replica has its own, in a volume without a name.
const EACH: &str = r#"
services:
  each:
    image: registry.lab:5000/busybox:1
    command: [sh, -c, 'hostname >>/data/names; cat /data/names; exec sleep 100000']
    stop_grace_period: 0s
    volumes: [/data]
    deploy: {replicas: 2}
"#;

#[test]
fn data_outlives_containers_power_and_workloads_and_goes_by_order_only() {
    let cluster = Cluster::formed("volumes", 2);
    std::fs::write(cluster.folder().join("page.txt"), "beside the file").unwrap();
    std::fs::create_dir_all(cluster.folder().join("pages/de")).unwrap();
    std::fs::write(cluster.folder().join("pages/de/one.txt"), "eins").unwrap();
    std::fs::write(cluster.folder().join("pages/two.txt"), "two").unwrap();
    cluster.push(DATABASE).ok();
    let db = cluster.wait_for_running("db", 1, STARTING).remove(0);
    cluster.wait_for_words(
        "db",
        &[
            "start 1",
            "quota exceeded",
            "page=beside the file",
            "pages=eins de two.txt",
            "page is not written",
        ],
        STARTING,
    );
    let reader = cluster.wait_for_running("reader", 1, STARTING).remove(0);
    assert_eq!(reader.node, db.node, "it is where the data is");
    cluster.wait_for_words("reader", &["start 1", "log is not written"], STARTING);

    cluster.wait_for_running("site", 1, STARTING);

    // A new container finds what the last one left.
    cluster.push(&DATABASE.replace(r#"VERSION: "1""#, r#"VERSION: "2""#)).ok();
    cluster.wait_for_words("db", &["start 2"], STARTING);
    its_machine_fails_and_nobody_takes_it_over(&cluster, &db);
    each_replica_keeps_its_own(&cluster);
    it_stays_without_its_workload_and_goes_by_order_only(&cluster, &db);
}

fn its_machine_fails_and_nobody_takes_it_over(cluster: &Cluster, db: &Replica) {
    let machine = cluster.machine_of(db);
    machine.power_cut();
    wait::until("ps says that it waits for its node", STARTING, || {
        let replicas = cluster.replicas("db")?;
        let waits = replicas.iter().any(|r| r.phase == "pending" && r.reason.contains("its data is there"));
        if waits { Ok(()) } else { Err(format!("{replicas:#?}")) }
    });
    machine.power_on().unwrap();
    cluster.wait_for_ready(2);
    let again = cluster.wait_for_running("db", 1, STARTING);
    assert_eq!(again[0].node, db.node);
    wait::until("it has started once more on the same data", STARTING, || {
        let said = cluster.hivemind(["logs", "db"]).ok().stdout();
        let last = said.rsplit("start 1").next().unwrap_or_default();
        if last.matches("start 2").count() == 2 { Ok(()) } else { Err(said) }
    });
}

fn each_replica_keeps_its_own(cluster: &Cluster) {
    cluster.push(EACH).ok();
    let before = cluster.wait_for_running("each", 2, STARTING);
    let nodes: BTreeSet<&String> = before.iter().map(|replica| &replica.node).collect();
    assert_eq!(nodes.len(), 2, "{before:#?}");
    let parts = parts(cluster, "each-data");
    assert_eq!(parts.len(), 2, "{parts:#?}");
    for replica in &before {
        let part = parts.iter().find(|part| part["number"] == replica.slot).unwrap();
        assert_eq!(part["node"], replica.node.as_str());
    }
    cluster.wait_for_words("each", &["each-0", "each-1"], STARTING);
}

fn it_stays_without_its_workload_and_goes_by_order_only(cluster: &Cluster, db: &Replica) {
    // Counted: what is in it, and not more than it may hold.
    wait::until("its use is counted", Duration::from_secs(60), || {
        let part = parts(cluster, "data").into_iter().next().ok_or("it is not there")?;
        let used = part["usedBytes"].as_u64().ok_or("it is not counted")?;
        let known =
            (1..=2 << 20).contains(&used) && part["hostname"].as_str().is_some_and(|name| !name.is_empty());
        if known { Ok(()) } else { Err(format!("{part:#?}")) }
    });
    // A larger limit is there at once, and what runs goes on.
    let before = cluster.wait_for_running("db", 1, STARTING);
    let larger = DATABASE.replace(r#"VERSION: "1""#, r#"VERSION: "2""#).replace("size: 2m", "size: 4m");
    cluster.push(&larger).ok();
    cluster.wait_for_words("db", &["has room for more"], STARTING);
    assert_eq!(cluster.replicas("db").unwrap(), before);
    let refused = cluster.hivemind(["volumes", "remove", "data", "--yes"]).failed().stderr();
    assert!(refused.contains("uses volume data"), "{refused}");
    cluster.hivemind(["remove", "db", "reader", "--yes"]).ok();
    cluster.wait_for_running("db", 0, STARTING);
    assert_eq!(parts(cluster, "data").len(), 1);
    cluster.hivemind(["volumes", "remove", "data", "--yes"]).ok();
    let listed = cluster.hivemind(["volumes"]).ok().stdout();
    assert!(listed.contains("deleted in"), "{listed}");
    cluster.hivemind(["volumes", "restore", "data"]).ok();

    // Pushed again, it is where it was, with what it had.
    cluster.push(&DATABASE.replace(r#"VERSION: "1""#, r#"VERSION: "3""#)).ok();
    assert_eq!(cluster.wait_for_running("db", 1, STARTING)[0].node, db.node);
    cluster.wait_for_words("db", &["start 1", "start 2", "start 3"], STARTING);
    cluster.hivemind(["remove", "db", "reader", "--yes"]).ok();
    cluster.hivemind(["volumes", "remove", "data", "--grace", "0s", "--yes"]).ok();
    wait::until("its data is deleted", STARTING, || {
        let left = parts(cluster, "data");
        if left.is_empty() { Ok(()) } else { Err(format!("{left:#?}")) }
    });
    // All that is left is its document, and no other volume has lost anything.
    cluster.hivemind(["volumes", "remove", "data"]).ok();
    let listed = cluster.hivemind(["volumes"]).ok().stdout();
    assert!(!listed.contains(" data ") && listed.contains("kept"), "{listed}");
}

/// Says what it finds, and writes more.
const LEDGER: &str = r#"
services:
  ledger:
    image: registry.lab:5000/busybox:1
    command: [sh, -c, 'echo start >>/data/log; sync; echo "starts: $$(wc -l </data/log)"; exec sleep 100000']
    stop_grace_period: 0s
    volumes: ['ledger:/data']
volumes:
  ledger: {x-hivemind: {size: 2m}}
"#;

#[test]
fn a_backup_gives_a_volume_back_when_its_machine_is_lost() {
    let cluster = Cluster::formed("backup", 2);
    let push = |replicas: u32| {
        cluster.push(&LEDGER.replace("    image:", &format!("    scale: {replicas}\n    image:"))).ok();
    };
    push(1);
    let first = cluster.wait_for_running("ledger", 1, STARTING).remove(0);
    cluster.wait_for_words("ledger", &["starts: 1"], STARTING);

    // While it runs, and encrypted.
    let file = cluster.folder().join("ledger.backup").to_str().unwrap().to_owned();
    let volumes = |arguments: &[&str]| {
        let mut command = cluster.command(["volumes"].iter().chain(arguments));
        command.env("HIVEMIND_PASSPHRASE", "correct horse");
        Run::of(command)
    };
    let kept = volumes(&["backup", "ledger", &file]).ok().stdout();
    assert!(kept.contains("1 file, 6 B"), "{kept}");
    let bytes = std::fs::read(&file).unwrap();
    assert!(bytes.starts_with(b"age-encryption.org/v1"));
    let checked = volumes(&["check", &file]).ok().stdout();
    assert!(checked.contains("is whole: 1 file"), "{checked}");
    let refused = volumes(&["backup", "ledger", &file]).failed().stderr();
    assert!(refused.contains("is there already"), "{refused}");
    let refused = volumes(&["backup", "other", &format!("{file}.other"), "--plain"]).failed().stderr();
    assert!(refused.contains("no data of volume"), "{refused}");
    assert!(!std::path::Path::new(&format!("{file}.other.partial")).exists());

    // Not under a container that has it, and not with what is no backup.
    let refused = volumes(&["restore", "ledger", "--from", &file, "--yes"]).failed().stderr();
    assert!(refused.contains("has volume") && refused.contains("scale: 0"), "{refused}");
    push(0);
    cluster.wait_for_running("ledger", 0, STARTING);
    let damaged = format!("{file}.damaged");
    std::fs::write(&damaged, &bytes[..bytes.len() - 30]).unwrap();
    let refused = volumes(&["restore", "ledger", "--from", &damaged, "--yes"]).failed().stderr();
    assert!(refused.contains("the backup cannot be read"), "{refused}");
    assert_eq!(parts(&cluster, "ledger")[0]["node"], first.node.as_str());

    // What it had when it was written, and not what came since.
    volumes(&["restore", "ledger", "--from", &file, "--yes"]).ok();
    push(1);
    cluster.wait_for_words("ledger", &["starts: 2"], STARTING);
    push(0);
    cluster.wait_for_running("ledger", 0, STARTING);
    volumes(&["restore", "ledger", "--from", &file, "--yes"]).ok();

    // Its machine is lost: it is made anew on the other, whose file system counts it.
    cluster.machine_of(&first).power_cut();
    cluster.hivemind(["nodes", "revoke", &first.node, "--yes"]).ok();
    volumes(&["restore", "ledger", "--from", &file, "--yes"]).ok();
    let part = parts(&cluster, "ledger").remove(0);
    assert_ne!(part["node"], first.node.as_str());
    push(1);
    let second = cluster.wait_for_running("ledger", 1, STARTING).remove(0);
    assert_ne!(second.node, first.node);
    cluster.wait_for_words("ledger", &["starts: 2"], STARTING);
}

/// Says what it finds, and then writes ever higher numbers into two files, in turns, with a large one between them by name.
const CLOCKWORK: &str = r#"
services:
  clockwork:
    image: registry.lab:5000/busybox:1
    scale: 1
    command:
      - sh
      - -c
      - |
        echo "finds $$(cat /data/a) $$(cat /data/z)."
        [ -e /data/m ] || dd if=/dev/zero of=/data/m bs=1M count=24 2>/dev/null
        i=0
        while true; do
          i=$$((i+1))
          for file in a z; do echo $$i >/data/.new; mv /data/.new /data/$$file; done
          [ $$i != 20 ] || echo "has begun."
        done
    healthcheck: {test: [CMD, 'true'], interval: 1s, timeout: 1s, retries: 1}
    stop_grace_period: 0s
    volumes: ['clockwork:/data']
volumes:
  clockwork:
"#;

#[test]
fn a_snapshot_is_of_one_moment_disturbs_nobody_and_gives_back_what_there_was() {
    let cluster = Cluster::new("snapshots", 2).with_probe().form(2);
    let push = |replicas: usize, word: &str| {
        let text = CLOCKWORK.replace("scale: 1", &format!("scale: {replicas}"));
        cluster.push(&text.replace("finds", word)).ok();
        cluster.wait_for_running("clockwork", replicas, STARTING)
    };
    let volumes = |arguments: &[&str]| cluster.hivemind(["volumes"].iter().chain(arguments));
    let there = || -> Result<Vec<String>, String> {
        let listed = cluster.json(&["volumes", "snapshots", "clockwork"])?;
        Ok(items(&listed).iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect())
    };
    let home = cluster.machine_of(&push(1, "finds")[0]);
    cluster.wait_for_words("clockwork", &["has begun."], STARTING);

    // What takes longer than its containers may wait is given up.
    let late = volumes(&["snapshot", "clockwork", "late", "--still", "1ms"]).failed().stderr();
    assert!(late.contains("stand still for longer"), "{late}");
    let made = volumes(&["snapshot", "clockwork", "one", "--still", "60s"]).ok().stdout();
    assert!(made.contains("snapshot one of volume clockwork: 2"), "{made}");
    let again = volumes(&["snapshot", "clockwork", "one"]).failed().stderr();
    assert!(again.contains("already"), "{again}");
    let refused = volumes(&["snapshot", "clockwork", "No Name"]).failed().stderr();
    assert!(refused.contains("is no name for a snapshot"), "{refused}");
    assert_eq!(there().unwrap(), ["one"]);
    // So many are kept.
    volumes(&["snapshot", "clockwork", "two", "--still", "0s"]).ok();
    volumes(&["snapshot", "clockwork", "three", "--keep", "2", "--still", "60s"]).ok();
    assert_eq!(there().unwrap(), ["two", "three"]);
    volumes(&["snapshot", "clockwork", "two", "--remove", "--yes"]).ok();
    let refused = volumes(&["snapshot", "clockwork", "two", "--remove", "--yes"]).failed().stderr();
    assert!(refused.contains("has no snapshot two"), "{refused}");
    let running = cluster.wait_for_running("clockwork", 1, STARTING).remove(0);
    assert_eq!(running.restarts, 0, "nobody took it for unwell");

    // It is given back where nobody has the volume.
    let refused = volumes(&["restore", "clockwork", "--snapshot", "three", "--yes"]).failed().stderr();
    assert!(refused.contains("has volume"), "{refused}");

    // An agent that is killed meanwhile leaves nobody standing.
    let ask = |words: &[&str]| probe::ask(&cluster.lab, home, words).unwrap();
    let pids = ask(&["pids", "has begun"]);
    let group = ask(&["cat", &format!("/proc/{}/cgroup", pids.split_whitespace().next().unwrap())]);
    let freeze = format!("/sys/fs/cgroup{}/cgroup.freeze", group.trim().trim_start_matches("0::"));
    assert_eq!(ask(&["cat", &freeze]).trim(), "0");
    let word = cluster.folder().join("freeze");
    std::fs::write(&word, "1").unwrap();
    probe::put(&cluster.lab, home, &word, &freeze).unwrap();
    assert_eq!(ask(&["cat", &freeze]).trim(), "1");
    ask(&["kill", "SIGKILL", "hivemindd agent"]);
    wait::until("it goes on", STARTING, || match probe::ask(&cluster.lab, home, &["cat", &freeze])?.trim() {
        "0" => Ok(()),
        other => Err(other.to_owned()),
    });

    // It outlives power.
    home.power_cut();
    home.power_on().unwrap();
    // Not from when it is up, but from when the other has heard of it.
    let (names, _) = wait::until("its machine answers again", STARTING, there);
    assert_eq!(names, ["three"]);
    push(0, "finds");
    let refused = volumes(&["restore", "clockwork", "--snapshot", "two", "--yes"]).failed().stderr();
    assert!(refused.contains("has no snapshot two"), "{refused}");
    volumes(&["restore", "clockwork", "--snapshot", "three", "--yes"]).ok();
    push(1, "is given");
    let found = || -> Result<(u64, u64), String> {
        let text = cluster.hivemind(["logs", "clockwork"]).stdout();
        let (said, _) =
            text.rsplit("is given ").next().and_then(|rest| rest.split_once('.')).ok_or(text.clone())?;
        let numbers: Vec<u64> = said.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let [a, z] = numbers[..] else { return Err(text) };
        Ok((a, z))
    };
    let ((a, z), _) = wait::until("it says what it finds", STARTING, found);
    assert!(a >= 20 && (z == a || z + 1 == a), "of one moment: {a} and {z}");
}

/// Where the data of a volume is.
fn parts(cluster: &Cluster, volume: &str) -> Vec<Value> {
    let volumes = items(&cluster.json(&["volumes"]).unwrap());
    let found = volumes.iter().find(|item| item["name"] == volume);
    found.map(|volume| volume["parts"].as_array().unwrap().clone()).unwrap_or_default()
}
