//! Secrets: sealed on the operator's machine, opened in memory, changed while containers run, and on no disk.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use hivemind_qemu::GuardedRegistry;
use hivemind_tests::cluster::{Cluster, STARTING};
use hivemind_tests::command::items;

/// What is looked for on the disks: nothing prints it, only its hash.
const PASSWORD: &str = "correct-horse-battery-staple-0";
const CHANGED: &str = "correct-horse-battery-staple-1";

/// Says how its secrets are, and says it again when they change.
const READER: &str = r#"
services:
  reader:
    image: registry.lab:5000/busybox:1
    user: '1000'
    command:
      - sh
      - -c
      - |
        say() { echo "$$(hostname) $$1 $$(md5sum <$$2 | cut -c 1-8)"; }
        echo "mode $$(stat -c %a:%u:%g /run/secrets/api.key) $$(stat -c %a /run/secrets/db_password)"
        echo x 2>/dev/null >>/run/secrets/api.key || echo "is not written"
        grep -q ' /run/secrets tmpfs ro' /proc/mounts && echo "in memory"
        while true; do
          now="$$(say password /run/secrets/db_password) $$(say elsewhere /etc/app/password)"
          [ "$$now" = "$$before" ] || echo "$$now"
          before="$$now"
          sleep 1
        done
    stop_grace_period: 0s
    secrets:
      - db_password
      - {source: db_password, target: /etc/app/password}
      - {source: key, target: api.key, uid: '1000', gid: '7', mode: 0400}
    deploy: {replicas: 2, placement: {max_replicas_per_node: 1}}
secrets:
  db_password: {file: ./password.txt}
  key: {external: true, name: api-key}
"#;

#[test]
fn secrets_reach_containers_in_memory_change_while_they_run_and_are_on_no_disk() {
    let mut cluster = Cluster::new("secrets", 3).form(2);
    let beside = |name: &str, content: &str| std::fs::write(cluster.folder().join(name), content).unwrap();
    beside("password.txt", PASSWORD);
    beside("key", "a key\0 of bytes");
    let unknown = cluster.push(READER).ok().stdout();
    assert!(unknown.contains("secret db-password"), "{unknown}");
    let key = cluster.folder().join("key").display().to_string();
    hivemind_tests::wait::until("ps says which secret is missing", STARTING, || {
        let replicas = cluster.replicas("reader")?;
        let told = replicas.iter().any(|replica| replica.reason.contains("hivemind secrets set api-key"));
        if told { Ok(()) } else { Err(format!("{replicas:#?}")) }
    });
    cluster.hivemind(["secrets", "set", "api-key", "--file", &key]).ok();
    let before = cluster.wait_for_running("reader", 2, STARTING);
    let said = ["mode 400:1000:7 444", "is not written", "in memory"];
    cluster.wait_for_words("reader", &said, STARTING);
    wait_for(&cluster, &["reader-0", "reader-1"], PASSWORD);
    // Nothing changed, and so nothing is sealed anew.
    let again = cluster.push(READER).ok().stdout();
    assert_eq!(again.matches("unchanged").count(), 2, "{again}");

    // Another content reaches the same containers.
    beside("password.txt", CHANGED);
    let plan = cluster.hivemind(["plan", &compose(&cluster)]).ok().stdout();
    assert!(plan.contains("~ Secret/default/db-password") && !plan.contains("horse"), "{plan}");
    cluster.push(READER).ok();
    wait_for(&cluster, &["reader-0", "reader-1"], CHANGED);
    assert_eq!(cluster.replicas("reader").unwrap(), before, "nothing was started anew");

    // A machine that joins later was not sealed to; another one makes its key.
    cluster.add("m3").power_on().unwrap();
    cluster.wait_for_ready(3);
    cluster.push(&READER.replace("replicas: 2", "replicas: 3")).ok();
    cluster.wait_for_running("reader", 3, STARTING);
    wait_for(&cluster, &["reader-2"], CHANGED);
    let secrets = items(&cluster.json(&["secrets"]).unwrap());
    let password = secrets.iter().find(|secret| secret["name"] == "db-password").unwrap();
    assert_eq!(password["nodes"].as_array().unwrap().len(), 3, "{password:#}");
    assert_eq!(password["workloads"][0], "reader");
    let refused = cluster.hivemind(["secrets", "remove", "db-password", "--yes"]).failed().stderr();
    assert!(refused.contains("reader uses secret"), "{refused}");

    images_come_from_a_registry_with_a_password(&cluster);

    // After a power cut it is opened anew; and no disk has it, whatever the documents are.
    for machine in &cluster.machines {
        machine.power_cut();
        let found = machine
            .open_disk(|disk| find(disk, &[PASSWORD, CHANGED, "a key\0 of bytes", GuardedRegistry::PASSWORD]))
            .unwrap();
        assert_eq!(found, None, "on the disk of {}", machine.name());
        machine.power_on().unwrap();
    }
    cluster.wait_for_ready(3);
    cluster.wait_for_running("reader", 3, STARTING);
    cluster.hivemind(["remove", "reader", "--yes"]).ok();
    cluster.hivemind(["secrets", "remove", "db-password", "--yes"]).ok();
    assert!(!cluster.hivemind(["secrets"]).ok().stdout().contains("db-password"));
}

fn images_come_from_a_registry_with_a_password(cluster: &Cluster) {
    let registry = cluster.lab.guarded_registry().unwrap();
    let image = registry.reference("busybox:1");
    let private = format!(
        "services:\n  private:\n    image: {image}\n    command: [sleep, '100000']\n    stop_grace_period: 0s\n"
    );
    cluster.push(&private).ok();
    let (host, _) = image.split_once('/').unwrap();
    let advice = format!("hivemind secrets login {host}");
    hivemind_tests::wait::until("ps says that it needs a password", STARTING, || {
        let replicas = cluster.replicas("private")?;
        let told = replicas.iter().any(|replica| replica.reason.contains(&advice));
        if told { Ok(()) } else { Err(format!("{replicas:#?}")) }
    });
    let file = cluster.folder().join("registry-password");
    std::fs::write(&file, GuardedRegistry::PASSWORD).unwrap();
    let file = file.display().to_string();
    let login = ["secrets", "login", host, "--user", GuardedRegistry::USER, "--password-file", &file];
    cluster.hivemind(login).ok();
    cluster.wait_for_running("private", 1, STARTING);
    let listed = cluster.hivemind(["secrets"]).ok().stdout();
    assert!(listed.contains(&format!("pulls from {host}, private")), "{listed}");
    cluster.hivemind(["remove", "private", "--yes"]).ok();
}

fn compose(cluster: &Cluster) -> String {
    hivemind_tests::command::compose(cluster.folder(), READER).display().to_string()
}

/// Waits until replicas have said that both of their files have this content.
fn wait_for(cluster: &Cluster, replicas: &[&str], content: &str) {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let mut hash = Command::new("md5sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    hash.stdin.take().unwrap().write_all(content.as_bytes()).unwrap();
    let hash = String::from_utf8(hash.wait_with_output().unwrap().stdout).unwrap()[..8].to_owned();
    let line = |name: &&str| format!("{name} password {hash} {name} elsewhere {hash}");
    let lines: Vec<String> = replicas.iter().map(line).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    cluster.wait_for_words("reader", &lines, STARTING);
}

/// The first of these texts that a file has, wherever.
fn find<'t>(path: &Path, texts: &[&'t str]) -> Option<&'t str> {
    let mut file = File::open(path).unwrap();
    let longest = texts.iter().map(|text| text.len()).max()?;
    let mut window = Vec::new();
    loop {
        let kept = window.len().min(longest);
        window.drain(..window.len() - kept);
        let read = file.by_ref().take(8 << 20).read_to_end(&mut window).unwrap();
        if read == 0 {
            return None;
        }
        let finders = texts.iter().find(|text| memmem(&window, text.as_bytes()));
        if let Some(text) = finders {
            return Some(text);
        }
    }
}

fn memmem(hay: &[u8], needle: &[u8]) -> bool {
    // Most of a disk is zeroes, which no text begins with.
    let first = needle[0];
    let mut rest = hay;
    while let Some(at) = rest.iter().position(|byte| *byte == first) {
        if rest[at..].starts_with(needle) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}
