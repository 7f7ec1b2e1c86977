//! Every key there is.

use super::super::keys::Verdict;
use super::*;

/// Keys that may only say what holds for all containers.
const ALREADY_SO: [(&str, &str); 7] = [
    ("attach", "false"),
    ("isolation", "default"),
    ("mem_swappiness", "0"),
    // These two change what a push does, and not the document.
    ("pull_policy", "missing"),
    ("pull_refresh_after", "12h\npull_policy: refresh"),
    ("runtime", "runc"),
    ("userns_mode", "host"),
];

/// For each other honoured key of a service a value that must change the document.
fn sample(key: &str) -> &'static str {
    match key {
        "annotations" => "{a: b}",
        "cap_add" => "[IPC_LOCK]",
        "cap_drop" => "[ALL]",
        "cgroup" | "ipc" | "pid" | "uts" => "host",
        "cgroup_parent" => "batch",
        "security_opt" => "['seccomp:unconfined']",
        "command" => "[a]",
        "cpu_count" => "2",
        "cpu_percent" => "50",
        "device_cgroup_rules" => "['c 188:* rw']",
        "devices" => "[/dev/ttyUSB0]",
        "configs" => "[a]",
        "container_name" => "Main_1",
        "cpu_period" => "50000\ncpu_quota: 25000",
        "cpu_quota" => "50000",
        "cpu_shares" => "512",
        "cpuset" => "0-1",
        "cpus" => "0.5",
        "depends_on" => "[other]",
        "deploy" => "{replicas: 2}",
        "dns" => "9.9.9.9",
        "dns_opt" => "use-vc",
        "dns_search" => "a.example",
        "domainname" => "a.example",
        "entrypoint" => "[a]",
        "env_file" => "app.env",
        "environment" => "{A: b}",
        "expose" => "[80]",
        "extends" => "other",
        "external_links" => "['db:mysql']",
        "extra_hosts" => "['a:1.2.3.4']",
        "gpus" => "all",
        "group_add" => "[audio]",
        "healthcheck" => "{test: [CMD, a]}",
        "hostname" => "a",
        "image" => "other",
        "init" => "true",
        "label_file" => "app.env",
        "labels" => "{a: b}",
        "links" => "['other:db']",
        "mem_limit" => "64m",
        "mem_reservation" => "64m",
        "memswap_limit" => "96m\nmem_limit: 64m",
        "storage_opt" => "{size: 1g}",
        "oom_kill_disable" | "privileged" => "true",
        "oom_score_adj" => "500",
        "pids_limit" => "5",
        "platform" => "linux/amd64",
        "ports" => "['1:1']",
        "post_start" => "[{command: a}]",
        "pre_stop" => "[{command: [a, b]}]",
        "profiles" => "[other]",
        "provider" => "{type: cloud}",
        "read_only" => "true",
        "restart" => "'no'",
        "secrets" => "[pass]",
        "scale" => "2",
        "shm_size" => "1m",
        "stop_grace_period" => "1s",
        "stop_signal" => "INT",
        "sysctls" => "{net.core.somaxconn: 1024}",
        "tmpfs" => "/a",
        "stdin_open" => "true\ntty: true",
        "mac_address" => "02:42:ac:11:00:02",
        "network_mode" => "none",
        "networks" => "[back]",
        "blkio_config" => "{device_write_bps: [{path: /dev/sda, rate: 1mb}]}",
        "tty" => "true",
        "logging" => "{driver: none}",
        "ulimits" => "{nofile: 100}",
        "user" => "'1'",
        "volumes" => "[data:/a]",
        "volumes_from" => "[other]",
        "working_dir" => "/a",
        other => panic!("no sample for the honoured key {other}"),
    }
}

/// The keys of a service in the schema of the Compose specification (compose-spec.json, 2025-11).
const SPECIFIED: &str = "annotations attach blkio_config build cap_add cap_drop cgroup cgroup_parent command configs \
    container_name cpu_count cpu_percent cpu_period cpu_quota cpu_rt_period cpu_rt_runtime cpu_shares cpus cpuset \
    credential_spec depends_on deploy develop device_cgroup_rules devices dns dns_opt dns_search domainname \
    entrypoint env_file environment expose extends external_links extra_hosts gpus group_add healthcheck hostname \
    image init ipc isolation label_file labels links logging mac_address mem_limit mem_reservation mem_swappiness \
    memswap_limit models network_mode networks oom_kill_disable oom_score_adj pid pids_limit platform ports \
    post_start pre_stop privileged profiles provider pull_policy pull_refresh_after read_only restart runtime scale \
    secrets security_opt shm_size stdin_open stop_grace_period stop_signal storage_opt sysctls tmpfs tty ulimits \
    use_api_socket user userns_mode uts volumes volumes_from working_dir";

#[test]
fn every_service_key_of_the_specification_is_honoured_or_refused_with_its_line() {
    let more = "  other:\n    image: other\n    user: '7'\n    volumes: [data:/b]\n\
                configs: {a: {content: text}}\nnetworks: {back: {}}\nsecrets: {pass: {environment: TAG}}\nvolumes: {data: {}}\n";
    let base = compiled(&(service("") + more));
    let schema = jsonschema::validator_for(&hivemind_spec::schema::of_documents()).unwrap();
    let specified: BTreeSet<&str> = SPECIFIED.split_whitespace().collect();
    let listed: BTreeSet<&str> = keys::SERVICE.iter().map(|(name, _)| *name).collect();
    assert_eq!(specified, listed, "the table lists exactly the specified keys");
    for (key, verdict) in keys::SERVICE {
        match verdict {
            Verdict::Honoured(_) if ALREADY_SO.iter().any(|(name, _)| name == key) => {
                let (_, value) = ALREADY_SO.iter().find(|(name, _)| name == key).unwrap();
                assert_eq!(compiled(&(service(&format!("{key}: {value}")) + more)).documents, base.documents);
                for other in ["other", "[host]", "['seccomp:unconfined']"] {
                    assert!(refused(&format!("{key}: {other}")).contains("4: "), "{key}: {other}");
                }
            }
            Verdict::Honoured(_) => {
                let value = sample(key);
                let text = match *key {
                    "image" | "provider" => format!("services:\n  web:\n    {key}: {value}\n"),
                    _ => service(&format!("{key}: {value}")),
                };
                let documents = compiled(&(text + more)).documents;
                assert_ne!(documents, base.documents, "{key} has no effect");
                for document in &documents {
                    let json: serde_json::Value = serde_json::from_slice(&document.to_json()).unwrap();
                    let faults: Vec<_> = schema.iter_errors(&json).map(|fault| fault.to_string()).collect();
                    assert_eq!(faults, [""; 0], "{key} is not as the schema says");
                }
            }
            Verdict::Refused(reason) => {
                // Whatever the value, even one that changes nothing.
                for value in ["", " {}", " []", " x"] {
                    let text = refused(&format!("{key}:{value}"));
                    assert!(
                        text.starts_with("4: ") && text.contains(key) && text.contains(reason),
                        "{key}: {text}"
                    );
                }
            }
        }
    }
}

#[test]
fn every_other_refused_key_is_refused_where_it_stands() {
    for (place, table) in keys::ALL {
        for (key, verdict) in *table {
            let Verdict::Refused(reason) = verdict else { continue };
            let entry = format!("{key}: x");
            let text = match *place {
                "Top level" => format!("services:\n  web: {{image: a}}\n\n{entry}\n"),
                "services.NAME" => service(&entry),
                "services.NAME.deploy" => service(&format!("deploy: {{{entry}}}")),
                "services.NAME.deploy.resources.reservations" => {
                    service(&format!("deploy: {{resources: {{reservations: {{{entry}}}}}}}"))
                }
                "services.NAME.deploy.restart_policy" => {
                    service(&format!("deploy: {{restart_policy: {{{entry}}}}}"))
                }
                "services.NAME.healthcheck" => service(&format!("healthcheck: {{test: a, {entry}}}")),
                "services.NAME.ports" => service(&format!("ports: [{{target: 1, {entry}}}]")),
                "services.NAME.gpus" => service(&format!("gpus: [{{{entry}}}]")),
                "services.NAME.deploy.resources.reservations.devices" => {
                    service(&format!("deploy: {{resources: {{reservations: {{devices: [{{{entry}}}]}}}}}}"))
                }
                "services.NAME.env_file" => service(&format!("env_file: [{{path: app.env, {entry}}}]")),
                "services.NAME.post_start" => service(&format!("post_start: [{{command: a, {entry}}}]")),
                "services.NAME.depends_on.NAME" => {
                    service(&format!("depends_on: {{other: {{{entry}}}}}")) + "  other: {image: a}\n"
                }
                "include" => {
                    let entry = format!("{{path: parts/db.yaml, {entry}}}");
                    format!("services:\n  web: {{image: a}}\ninclude:\n  - {entry}\n")
                }
                "services.NAME.blkio_config" => service(&format!("blkio_config: {{{entry}}}")),
                "services.NAME.logging.options" => service(&format!("logging: {{options: {{{entry}}}}}")),
                "configs.NAME" => {
                    format!("services:\n  web: {{image: a}}\n\nconfigs: {{a: {{content: b, {entry}}}}}\n")
                }
                "secrets.NAME" => {
                    format!(
                        "services:\n  web: {{image: a}}\n\nsecrets: {{a: {{environment: TAG, {entry}}}}}\n"
                    )
                }
                "networks.NAME" => {
                    format!("services:\n  web: {{image: a}}\n\nnetworks: {{a: {{{entry}}}}}\n")
                }
                "services.NAME.networks.NAME" => service(&format!("networks: {{default: {{{entry}}}}}")),
                "volumes.NAME" => format!("services:\n  web: {{image: a}}\n\nvolumes: {{a: {{{entry}}}}}\n"),
                "services.NAME.volumes" => {
                    service(&format!("volumes: [{{type: tmpfs, target: /a, {entry}}}]"))
                }
                "services.NAME.volumes.bind" => service(&format!(
                    "volumes: [{{type: bind, source: ./app.env, target: /a, bind: {{{entry}}}}}]"
                )),
                "services.NAME.volumes.volume" => {
                    service(&format!("volumes: [{{type: volume, target: /a, volume: {{{entry}}}}}]"))
                }
                other => panic!("no place for {other}"),
            };
            let found = faults(&text);
            assert!(
                found.iter().any(|(line, m)| *line == 4 && m.contains(reason)),
                "{place} {key}: {found:?}"
            );
        }
    }
}

#[test]
fn a_refused_key_that_is_false_anyway_may_say_so() {
    let base = compiled(&service(""));
    for key in keys::MAY_BE_FALSE {
        assert_eq!(compiled(&service(&format!("{key}: false"))).documents, base.documents, "{key}");
        assert!(refused(&format!("{key}: true")).contains(key));
    }
    assert!(refused("healthcheck: {test: a, tty: false}").contains("not a key here"));
}

#[test]
fn the_schema_of_documents_knows_what_is_wrong_with_one() {
    let schema = jsonschema::validator_for(&hivemind_spec::schema::of_documents()).unwrap();
    let right = serde_json::json!({
        "apiVersion": "hivemind/v1", "kind": "Workload", "metadata": { "name": "web" },
        "spec": { "container": { "image": "a" } },
    });
    assert!(schema.is_valid(&right), "a revision is not for people to give");
    for (pointer, wrong) in [
        ("/kind", serde_json::json!("Wrkload")),
        ("/spec/container/image", serde_json::json!(1)),
        ("/spec/container", serde_json::json!({ "image": "a", "imagee": "b" })),
        ("/spec", serde_json::json!({})),
    ] {
        let mut document = right.clone();
        *document.pointer_mut(pointer).unwrap() = wrong;
        assert!(!schema.is_valid(&document), "{pointer}");
    }
}

#[test]
fn at_least_85_keys_of_a_service_are_honoured_and_each_has_a_test_that_shows_what_it_does() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/tests/e2e");
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples");
    let texts = |folder: &str| -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap().flatten();
        entries.map(|entry| std::fs::read_to_string(entry.path()).unwrap()).collect()
    };
    let (tests, examples) = (texts(folder), texts(examples).concat());
    let mut shown = BTreeSet::new();
    for (test, keys) in keys::SHOWN {
        let text = tests.iter().find(|text| text.contains(&format!("fn {test}()")));
        let text = text.unwrap_or_else(|| panic!("there is no test {test}"));
        for key in *keys {
            // As a key stands in a file, wherever that is written.
            let stands = |text: &str| {
                [" ", "{", "\n", "\""].iter().any(|before| text.contains(&format!("{before}{key}:")))
            };
            assert!(stands(text) || text.contains("docs/examples") && stands(&examples), "{test}: {key}");
            shown.insert(*key);
        }
    }
    let honoured = keys::SERVICE.iter().filter(|(_, verdict)| matches!(verdict, Verdict::Honoured(_)));
    let honoured: BTreeSet<&str> = honoured.map(|(key, _)| *key).collect();
    assert!(honoured.len() >= 85, "{}", honoured.len());
    assert_eq!(shown, honoured);
}
