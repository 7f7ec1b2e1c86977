mod every_key;
mod jobs;
mod machine;
mod networks;
mod provider;
mod secrets;
mod update;
mod volumes;

use hivemind_spec::workload::{Condition, RestartCondition, Takeover, WorkloadSpec};

use super::*;

fn try_compile(text: &str) -> Result<Compiled, Vec<Fault>> {
    let read = |path: &str| {
        Ok(match path {
            "app.env" => Some("FROM_FILE=file\nBOTH=file\nVERSION=v${TAG}\n".to_owned()),
            "profile.json" => Some(r#"{"defaultAction":"SCMP_ACT_LOG"}"#.to_owned()),
            "bad.json" => Some(r#"{"defaultAction":"SCMP_ACT_NONE"}"#.to_owned()),
            "bad.env" => Some("A=1\nnonsense\n".to_owned()),
            "app.conf" => Some("from a file\n".to_owned()),
            "pages/index.html" | "pages/de/index.html" => Some("<p>".to_owned()),
            "parts/db.yaml" => Some(DATABASE.to_owned()),
            "parts/db.env" => Some("PLACE=beside\n".to_owned()),
            "other/db.env" => Some("PLACE=in the other\n".to_owned()),
            "parts/shop.yaml" => Some(SHOP.to_owned()),
            "parts/outer.yaml" => Some("include: [shop.yaml]\n".to_owned()),
            "parts/.env" => Some("PORT=8080\nTAG=not this\nPASSED=by .env\n".to_owned()),
            "more.env" => Some("PORT=9000\nPASSED=by more.env\n".to_owned()),
            "most.env" => Some("PORT=9001\n".to_owned()),
            "parts/circle.yaml" => Some("include: [circle.yaml]\nservices: {a: {image: a}}\n".to_owned()),
            "parts/bad.yaml" => Some("services:\n  bad:\n    image: a\n    comand: b\n".to_owned()),
            _ => None,
        })
    };
    let list = |path: &str| {
        Ok(match path.trim_end_matches('/') {
            "pages" => Some(vec!["de/index.html".to_owned(), "index.html".to_owned()]),
            "empty" => Some(Vec::new()),
            _ => None,
        })
    };
    let variables = [("TAG", "1.2"), ("INHERITED", "from outside")];
    let surroundings = Surroundings {
        variables: variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        project: "folder".into(),
        namespace: "default".into(),
        profiles: ["asked".to_owned()].into(),
        read: &read,
        list: &list,
    };
    // A line of its own between files that are laid over one another.
    let texts = text.split("\n====\n").enumerate();
    let inputs: Vec<Input> =
        texts.map(|(n, text)| Input { name: format!("{n}.yaml"), text: text.to_owned() }).collect();
    compile(&inputs, &surroundings)
}

/// A file in a folder of its own.
const DATABASE: &str = "name: ignored\nservices:\n  base:\n    image: postgres\n    env_file: db.env\n    expose: [5432]\n  \
                        db:\n    extends: base\n    labels: {part: db}\nconfigs: {a: {content: b}}\n";

/// Another, with variables.
const SHOP: &str = "services:\n  shop:\n    image: shop\n    env_file: db.env\n    \
                    environment: {PORT: '$PORT', TAG: '$TAG', PASSED: }\n";

fn compiled(text: &str) -> Compiled {
    try_compile(text).unwrap_or_else(|faults| panic!("{text}\n{faults:#?}"))
}

/// The one service of a file.
fn workload(text: &str) -> WorkloadSpec {
    compiled(text).documents[0].workload().unwrap().clone()
}

/// A file with one service of an image and `rest`, which starts in line 4.
fn service(rest: &str) -> String {
    let rest: String = rest.lines().map(|line| format!("    {line}\n")).collect();
    format!("services:\n  web:\n    image: nginx\n{rest}")
}

fn faults(text: &str) -> Vec<(usize, String)> {
    match try_compile(text) {
        Ok(_) => panic!("accepted: {text}"),
        Err(faults) => faults.into_iter().map(|fault| (fault.mark.line, fault.message)).collect(),
    }
}

/// The faults of a service with `rest`, one line each.
fn refused(rest: &str) -> String {
    faults(&service(rest)).into_iter().map(|(line, message)| format!("{line}: {message}\n")).collect()
}

const FULL: &str = r#"
name: shop
x-note: {free: text}
x-base: &base
  restart: on-failure:5
  stop_grace_period: 1m30s
services:
  web:
    <<: *base
    image: registry.lab:5000/nginx:${TAG:-1}
    command: nginx -g "daemon off;"
    entrypoint: ["/entry", "--x"]
    environment:
      PORT: 80
      DEBUG: true
      INHERITED:
    env_file: [app.env]
    working_dir: /srv
    user: "1000:1000"
    hostname: front
    ports: ["8080:80", "53:53/udp", "9000-9001:90-91", {target: 443, published: 8443, protocol: tcp, mode: ingress}]
    expose: [9100]
    labels: [tier=front, "note"]
    stop_signal: quit
    read_only: true
    tmpfs: /run
    x-anything: ignored
    healthcheck:
      test: curl -f localhost
      interval: 10s
      timeout: 2s
      retries: 5
      start_period: 1m
    deploy:
      mode: replicated
      replicas: 3
      resources:
        limits: {cpus: '1.5', memory: 256M, pids: 100}
        reservations: {cpus: 0.25, memory: 64m}
      placement:
        constraints: [node.labels.disk == ssd, "node.hostname != edge-1"]
    x-hivemind: {takeover: never, priority: 7}
  worker:
    image: busybox
    scale: 2
    mem_limit: 32m
    mem_reservation: 16m
    cpus: 0.5
    pids_limit: 50
    healthcheck: {disable: true}
"#;

#[test]
fn a_whole_file_becomes_one_workload_for_each_service() {
    let compiled = compiled(FULL);
    assert_eq!(compiled.project, "shop");
    let names: Vec<_> = compiled.documents.iter().map(|d| d.key().to_string()).collect();
    assert_eq!(names, ["Workload/default/web", "Workload/default/worker"]);
    let labels = &compiled.documents[0].metadata.labels;
    assert_eq!(
        (labels[APP_LABEL].as_str(), labels["tier"].as_str(), labels["note"].as_str()),
        ("shop", "front", "")
    );

    let web = compiled.documents[0].workload().unwrap();
    let container = &web.container;
    assert_eq!(container.image, "registry.lab:5000/nginx:1.2");
    assert_eq!(container.command.as_deref().unwrap(), ["nginx", "-g", "daemon off;"]);
    assert_eq!(container.entrypoint.as_deref().unwrap(), ["/entry", "--x"]);
    let env = |name: &str| container.env[name].as_str();
    assert_eq!(
        (env("PORT"), env("DEBUG"), env("INHERITED"), env("FROM_FILE")),
        ("80", "true", "from outside", "file")
    );
    assert_eq!(container.working_dir.as_deref(), Some("/srv"));
    assert_eq!(container.user.as_deref(), Some("1000:1000"));
    assert_eq!(container.hostname.as_deref(), Some("front"));
    let ports: Vec<_> =
        container.ports.iter().map(|p| (p.published, p.target, format!("{:?}", p.protocol))).collect();
    let port = |published, target, protocol: &str| (published, target, protocol.to_owned());
    assert_eq!(
        ports,
        [
            port(Some(8080), 80, "Tcp"),
            port(Some(53), 53, "Udp"),
            port(Some(9000), 90, "Tcp"),
            port(Some(9001), 91, "Tcp"),
            port(Some(8443), 443, "Tcp"),
            port(None, 9100, "Tcp"),
        ]
    );
    assert_eq!(container.stop_signal.as_deref(), Some("SIGQUIT"));
    assert_eq!(container.stop_grace_ms, 90_000);
    assert!(container.read_only);
    assert_eq!(container.tmpfs, ["/run"]);
    let health = container.health.as_ref().unwrap();
    assert_eq!(health.command, ["/bin/sh", "-c", "curl -f localhost"]);
    assert_eq!((health.interval_ms, health.timeout_ms, health.retries), (10_000, 2000, 5));
    assert_eq!(health.start_period_ms, 60_000);
    assert_eq!(web.replicas, 3);
    let resources = &container.resources;
    assert_eq!((resources.cpu_limit_millis, resources.cpu_request_millis), (Some(1500), Some(250)));
    assert_eq!(
        (resources.memory_limit_bytes, resources.memory_request_bytes),
        (Some(256 << 20), Some(64 << 20))
    );
    assert_eq!(resources.pids_limit, Some(100));
    assert_eq!((web.restart.condition, web.restart.max_attempts), (RestartCondition::OnFailure, Some(5)));
    let constraints: Vec<_> = web.constraints.iter().map(|c| (c.label.as_str(), c.value.as_str())).collect();
    assert_eq!(constraints, [("disk", "ssd"), ("node.hostname", "edge-1")]);
    assert_eq!((web.takeover, web.priority), (Takeover::Never, 7));

    let worker = compiled.documents[1].workload().unwrap();
    assert_eq!(worker.replicas, 2);
    let resources = &worker.container.resources;
    assert_eq!((resources.cpu_limit_millis, resources.memory_limit_bytes), (Some(500), Some(32 << 20)));
    assert_eq!((resources.memory_request_bytes, resources.pids_limit), (Some(16 << 20), Some(50)));
    assert_eq!(worker.container.health, None);
}

#[test]
fn a_file_without_a_name_is_called_like_its_folder() {
    let compiled = compiled(&service(""));
    assert_eq!(compiled.documents[0].metadata.labels[APP_LABEL], "folder");
}

#[test]
fn a_platform_is_a_constraint_on_machines_by_any_of_its_names() {
    let constraints = |text: &str| {
        let constraints = workload(&service(text)).constraints;
        constraints.into_iter().map(|c| format!("{} {}", c.label, c.value)).collect::<Vec<_>>()
    };
    assert_eq!(constraints("platform: linux/arm64/v8"), ["node.platform.arch arm64"]);
    assert_eq!(constraints("platform: linux"), ["node.platform.os linux"]);
    let long = "deploy: {placement: {constraints: [node.platform.arch == x86_64, node.platform.os==linux]}}";
    assert_eq!(constraints(long), ["node.platform.arch amd64", "node.platform.os linux"]);
    for odd in ["windows/amd64", "linux/riscv64", "amd64"] {
        assert!(refused(&format!("platform: {odd}")).contains("no platform of machines here"), "{odd}");
    }
    assert!(
        refused("deploy: {placement: {constraints: [node.platform.arch == vax]}}")
            .contains("not a constraint")
    );
}

#[test]
fn a_misspelt_key_is_refused_with_a_guess() {
    assert!(refused("comand: a").contains("did you mean `command`?"));
    assert!(refused("deploy: {replica: 2}").contains("did you mean `replicas`?"));
    assert!(refused("zzzzzz: a").contains("`x-zzzzzz`"));
    assert!(refused("x-hivemind: {exclusiv: true}").contains("4:"));
}

#[test]
fn wrong_values_are_refused_with_their_line_and_what_would_be_right() {
    for (rest, wanted) in [
        ("command: {a: b}", "a map, but must be"),
        ("command: 'a \"b'", "quote"),
        ("hostname: 5", "put it in quotes"),
        ("hostname: A_b", "host name"),
        ("environment: text", "must be a list"),
        ("environment: ['=x']", "cannot name a variable"),
        ("environment: {A: [1]}", "a list, but must be"),
        ("env_file: nowhere.env", "no file nowhere.env"),
        ("env_file: bad.env", "bad.env:2:"),
        ("working_dir: srv", "path from the root"),
        ("ports: '80:80'", "must be a list"),
        ("ports: ['80']", "which port to publish"),
        ("ports: [80]", "which port to publish"),
        ("ports: ['127.0.0.1:80:80']", "address"),
        ("ports: ['0:80']", "1 to 65535"),
        ("ports: ['80:70000']", "1 to 65535"),
        ("ports: ['80-81:80']", "length"),
        ("ports: ['1-1000:1-1000']", "range"),
        ("ports: ['80:80/sctp']", "tcp or udp"),
        ("ports: [{published: 80}]", "`target` is missing"),
        ("ports: [{target: 80, mode: host}]", "ingress"),
        ("ports: ['80:80', '80:81']", "published twice"),
        ("deploy: {replicas: many}", "whole number"),
        ("deploy: {replicas: -1}", "out of range"),
        ("deploy: {endpoint_mode: vip}", "dnsrr"),
        ("deploy: {mode: everywhere}", "`global`"),
        ("deploy: {mode: global, replicas: 2}", "leave the number out"),
        ("deploy: {mode: global}\nx-hivemind: {exclusive: true}", "cannot be global"),
        ("deploy: {placement: {max_replicas_per_node: -1}}", "out of range"),
        ("deploy: {placement: {preferences: [{spread: zone}]}}", "not a label"),
        ("deploy: {replicas: 2}\nscale: 3", "line 4 says otherwise"),
        ("deploy: {resources: {limits: {cpus: 0}}}", "more than 0"),
        ("deploy: {resources: {limits: {cpus: -1}}}", "more than 0"),
        ("deploy: {resources: {limits: {memory: 0}}}", "more"),
        ("deploy: {resources: {limits: {memory: -5m}}}", "not a size"),
        ("deploy: {resources: {limits: {pids: 0}}}", "out of range"),
        ("deploy: {resources: {limits: {memory: 8M}, reservations: {memory: 16M}}}", "more than the limit"),
        ("deploy: {resources: {limits: {cpus: 1}, reservations: {cpus: 2}}}", "more than the limit"),
        ("mem_limit: 1m", "4 MiB"),
        ("mem_limit: 64m\ndeploy: {resources: {limits: {memory: 65m}}}", "line 4 says otherwise"),
        ("deploy: {placement: {constraints: ['engine.labels.a == b']}}", "not a constraint"),
        ("deploy: {placement: {constraints: ['node.labels.a']}}", "not a constraint"),
        ("restart: sometimes", "not a restart policy"),
        ("restart: on-failure:x", "whole number"),
        ("deploy: {restart_policy: {condition: maybe}}", "one of"),
        ("stop_signal: SIGNOTHING", "not a signal"),
        ("stop_grace_period: soon", "not a duration"),
        ("stop_grace_period: 2h", "hour"),
        ("healthcheck: {interval: 5s}", "`test` is missing"),
        ("healthcheck: {test: [curl]}", "CMD"),
        ("healthcheck: {test: []}", "CMD"),
        ("healthcheck: {test: a, interval: 0s}", "more"),
        ("healthcheck: {test: a, retries: 0}", "out of range"),
        ("read_only: yes", "true or false"),
        ("tmpfs: [run]", "path from the root"),
        ("tmpfs: ['/run:size=half']", "not a size"),
        ("tmpfs: ['/run:suid']", "not an option"),
        ("shm_size: 0", "must be more"),
        ("devices: [/etc/shadow]", "is not below /dev"),
        ("devices: ['/dev/a:/dev/b:x']", "use letters of `rwm`"),
        ("devices: ['/dev/a:/b:r:w']", "is not SOURCE:TARGET:PERMISSIONS"),
        ("devices: [{target: /dev/a}]", "`source` is missing"),
        ("gpus: some", "all"),
        ("gpus: [{count: 2}]", "all"),
        (
            "deploy: {resources: {reservations: {devices: [{capabilities: [tpu]}]}}}",
            "no other devices than `gpu`",
        ),
        ("device_cgroup_rules: [usb]", "is no rule for devices"),
        ("pid: 'service:db'", "not one of `host`"),
        ("uts: private", "not one of `host`"),
        ("uts: host\nhostname: a", "the machine's names are its own"),
        ("cpu_percent: 101", "out of range"),
        ("cpu_count: 2\ncpus: 1", "says otherwise"),
        ("cap_add: [NET_RAWW]", "not a capability"),
        ("cap_drop: ALL", "must be a list"),
        ("sysctls: {vm.swappiness: 1}", "belongs to the machine"),
        ("sysctls: [net.core.somaxconn]", "no value"),
        ("ulimits: {rtprio: 1}", "before the machine's own"),
        ("ulimits: {files: 1}", "not a process limit"),
        ("ulimits: {nofile: {soft: 1}}", "both"),
        ("ulimits: {nofile: {soft: 2, hard: 1}}", "over the hard one"),
        ("ulimits: {nofile: 2000000}", "files open"),
        ("ulimits: {nofile: {soft: 1, hard: 2, firm: 3}}", "not a key here"),
        ("oom_score_adj: -1", "out of range"),
        ("oom_score_adj: 1001", "out of range"),
        ("cpu_shares: 1", "out of range"),
        ("cpuset: '3-1'", "list of cores"),
        ("cpuset: all", "list of cores"),
        ("cpu_period: 100000", "without a quota"),
        ("cpu_quota: 10", "out of range"),
        ("cpu_quota: 50000\ncpus: 0.7", "says otherwise"),
        ("extra_hosts: [a]", "no address"),
        ("extra_hosts: ['a:b']", "not an IP address"),
        ("extra_hosts: ['a b:1.2.3.4']", "not a name and an address"),
        ("dns_search: .", "first"),
        ("dns_search: 'a b'", "not a domain"),
        ("dns_opt: ['a b']", "not an option"),
        ("domainname: 'a b'", "not a domain"),
        ("security_opt: [seccomp:nowhere.json]", "no file nowhere.json"),
        ("security_opt: [seccomp:bad.json]", "`SCMP_ACT_NONE`, expected one of"),
        ("security_opt: [apparmor:docker-default]", "not supported"),
        ("cgroup_parent: /system.slice", "cannot name a control group"),
        ("provider: {options: {a: b}}", "`type` is missing"),
        ("ipc: shareable", "not one of `host`, `private`"),
        ("group_add: ['']", "a name or a number"),
        ("label_file: nowhere.env", "no file nowhere.env"),
        ("configs: [nothing]", "not under `configs`"),
        ("configs: [{target: /a}]", "`source` is missing"),
        ("healthcheck: {test: a, start_interval: 0s}", "more"),
        ("profiles: debug", "must be a list"),
        ("post_start: [{working_dir: /a}]", "`command` is missing"),
        ("pre_stop: {command: a}", "must be a list"),
        ("annotations: {hivemind/pre-stop: x}", "ours"),
        ("depends_on: [db]", "no service"),
        ("links: [db]", "no service"),
        ("links: ['web:a b']", "not a name and a workload"),
        ("container_name: a\nscale: 2", "cannot all have this name"),
        ("container_name: a\ndeploy: {mode: global}", "cannot all have this name"),
        ("depends_on: [web]", "break the circle"),
        ("depends_on: web", "must be a list"),
        ("depends_on: {web: {condition: soon}}", "service_healthy"),
        ("labels: {hivemind/app: x}", "ours"),
        ("x-hivemind: {takeover: sometimes}", "majority"),
        ("x-hivemind: {rebalance: 0}", "out of range"),
        ("deploy: {mode: global}\nx-hivemind: {rebalance: 1}", "stays where it is"),
        ("x-hivemind: {rebalance: 1, takeover: never}", "stays where it is"),
        ("x-hivemind: {priority: 99999999999}", "out of range"),
        ("x-hivemind: {health: 'https://:1/'}", "not a health check"),
        ("x-hivemind: {health: 'http://web:80/'}", "not a health check"),
        ("x-hivemind: {health: 'tcp://:0'}", "not a health check"),
        ("x-hivemind: {health: 'tcp://:5432/x'}", "not a health check"),
        ("x-hivemind: {health: 'grpc://50051'}", "not a health check"),
        ("healthcheck: {test: a}\nx-hivemind: {health: 'tcp://:1'}", "say it in one place"),
        ("healthcheck: {disable: true}\nx-hivemind: {health: 'tcp://:1'}", "say it in one place"),
        ("x-hivemind: {exclusive: 1}", "true or false"),
        ("deploy: {replicas: 2}\nx-hivemind: {exclusive: true}", "at most one"),
        ("hostname: ${NOPE:?say it}", "say it"),
        ("hostname: ${NOPE", "closing brace"),
    ] {
        let text = refused(rest);
        assert!(text.contains(wanted), "{rest}: {text}");
        let line: usize = text.split(':').next().unwrap().parse().unwrap();
        // What only the whole service shows stands at its name, in line 2.
        assert!((2..=5).contains(&line), "{rest}: {text}");
    }
}

#[test]
fn files_that_are_no_compose_files_are_refused() {
    for (text, line, wanted) in [
        ("", 1, "empty"),
        ("services:\n", 1, "must be a map"),
        ("services: {}\n", 1, "`services` is empty"),
        ("name: a\n", 1, "`services` is missing"),
        ("[1, 2]\n", 1, "must be a map"),
        ("services:\n  web:\n    command: a\n", 2, "no `image`"),
        ("services:\n  web:\n    image: [1]\n", 3, "a list, but must be"),
        ("services:\n  web:\n    image:\n", 3, "nothing, but must be"),
        ("services:\n  web:\n    image: 5\n", 3, "put it in quotes"),
        ("services:\n  web:\n    image: ''\n", 3, "not an image"),
        ("services:\n  web: nginx\n", 2, "must be a map"),
        ("services:\n  'Web 1': {image: a}\n", 2, "host name"),
        ("services:\n  a: {image: a}\n  a: {image: b}\n", 3, "line 2"),
        ("name: Bad Name\nservices:\n  a: {image: a}\n", 1, "project"),
    ] {
        let text_faults = faults(text);
        let found =
            text_faults.iter().any(|(l, message)| message.contains(wanted) && (line == 1 || *l == line));
        assert!(found, "{text:?}: {text_faults:?}");
    }
}

#[test]
fn all_faults_of_a_file_are_told_in_one_go_and_in_order() {
    let lines: Vec<_> =
        faults("services:\n  a:\n    imagee: x\n    models: all\n  b:\n    image: b\n    cpus: no\n")
            .into_iter()
            .map(|(line, _)| line)
            .collect();
    assert_eq!(lines, [2, 3, 4, 7]);
}

#[test]
fn what_may_surprise_is_a_warning() {
    let compiled = compiled(
        "version: '3'\nservices:\n  a:\n    image: a\n    environment: [NOBODY]\n    hostname: h${NO}\n",
    );
    let lines: Vec<_> = compiled.warnings.iter().map(|warning| warning.mark.line).collect();
    assert_eq!(lines, [1, 5, 6]);
}

#[test]
fn the_environment_goes_before_environment_files() {
    let workload = workload(
        &service("env_file: {path: app.env}\nenvironment: {BOTH: here}")
            .replace("{path: app.env}", "[{path: app.env}, {path: no.env, required: false}]"),
    );
    let env = &workload.container.env;
    assert_eq!((env["BOTH"].as_str(), env["FROM_FILE"].as_str()), ("here", "file"));
    assert_eq!(env["VERSION"], "v1.2", "variables are replaced there too");
    let raw = self::workload(&service("env_file: [{path: app.env, format: raw}]")).container.env;
    assert_eq!(raw["VERSION"], "v${TAG}");
}

#[test]
fn configurations_become_files_of_the_containers_that_name_them() {
    let top = "configs:\n  inline: {content: \"tag ${TAG}\\n\"}\n  outside: {environment: INHERITED}\n  disk: {file: app.conf}\n";
    let uses = "configs:\n  - inline\n  - {source: outside, target: etc/b, uid: 5, gid: '6', mode: 0440}\n  - {source: disk, target: /c}";
    let files = workload(&(service(uses) + top)).container.files;
    let told: Vec<_> =
        files.iter().map(|f| (f.path.as_str(), f.content.as_str(), f.uid, f.gid, f.mode)).collect();
    assert_eq!(
        told,
        [
            ("/inline", "tag 1.2\n", 0, 0, 0o444),
            ("/etc/b", "from outside", 5, 6, 0o440),
            ("/c", "from a file\n", 0, 0, 0o444),
        ]
    );
    for (top, wanted) in [
        ("configs: {a: {}}", "exactly one"),
        ("configs: {a: {content: x, file: app.conf}}", "exactly one"),
        ("configs: {a: {file: nowhere}}", "no file nowhere"),
        ("configs: {a: {environment: NOBODY}}", "NOBODY is not set"),
        ("configs: {a: {external: true}}", "travels with the workload"),
    ] {
        let found = faults(&(service("") + top));
        assert!(
            found.iter().any(|(line, message)| *line == 4 && message.contains(wanted)),
            "{top}: {found:?}"
        );
    }
    for mode in ["440", "0999", "01777", "x"] {
        let text = service(&format!("configs: [{{source: a, mode: {mode}}}]")) + "configs: {a: {content: b}}";
        assert!(faults(&text)[0].1.contains("not a mode"), "{mode}");
    }
}

#[test]
fn how_much_of_the_output_is_kept_is_said_in_dockers_words() {
    let kept = |logging: &str| workload(&service(&format!("logging: {logging}"))).container.log_bytes;
    assert_eq!(kept("{driver: none}"), Some(0));
    assert_eq!(kept("{driver: local}"), None);
    assert_eq!(kept("{options: {max-size: 1m, max-file: '3'}}"), Some(3 << 20));
    assert_eq!(kept("{driver: json-file, options: {max-size: 200k}}"), Some(200 << 10));
    assert_eq!(kept("{options: {max-size: 10k}}"), Some(100 << 10), "the least");
    assert_eq!(kept("{options: {max-size: 1m, compress: 'true'}}"), Some(1 << 20));
    for much in
        ["{options: {max-size: 10m, max-file: 3}}", "{options: {max-size: 9999g, max-file: 99999999}}"]
    {
        assert_eq!(compiled(&service(&format!("logging: {much}"))).warnings.len(), 1, "{much}");
        assert_eq!(kept(much), None);
    }
    for (odd, wanted) in [
        ("{driver: syslog}", "syslog"),
        ("{options: {max-file: 0}}", "not a number of files"),
        ("{options: {max-size: much}}", "much"),
        ("{options: {compress: gzip}}", "true or false"),
        ("x", "must be a map"),
    ] {
        assert!(refused(&format!("logging: {odd}")).contains(wanted), "{odd}");
    }
    assert!(refused("stdin_open: true").contains("tty: true"));
}

#[test]
fn what_containers_do_on_the_disk_and_in_the_network_is_limited_in_composes_words() {
    let disk = |text: &str| workload(&service(&format!("blkio_config: {text}"))).container.resources.disk;
    let both = disk(
        "{device_write_bps: [{path: /dev/sda, rate: 2mb}, {path: /dev/sdb, rate: 1048576}], \
         device_read_iops: [{path: /dev/sda, rate: 50}]}",
    );
    assert_eq!((both.write_bytes, both.read_operations, both.read_bytes), (Some(1 << 20), Some(50), None));
    for (odd, wanted) in [
        ("blkio_config: {weight: 300}", "no weights"),
        ("blkio_config: {device_read_bps: [{path: sda, rate: 1}]}", "must name a disk"),
        ("blkio_config: {device_read_bps: [{rate: 1}]}", "must name a disk"),
        ("blkio_config: {device_read_bps: [{path: /dev/sda}]}", "`rate` is missing"),
        ("blkio_config: {device_read_bps: {path: /dev/sda, rate: 1}}", "must be a list"),
        ("blkio_config: {device_read_bps: [{path: /dev/sda, rate: 0}]}", "a size of 0"),
        ("network_mode: 'service:db'", "not one of"),
        ("mac_address: 03:00:00:00:00:01", "hardware address of one interface"),
        ("mac_address: '02:00'", "hardware address of one interface"),
    ] {
        let told = refused(odd);
        assert!(told.contains(wanted), "{odd}: {told}");
    }
    let all = |keys: &str| faults(&service(keys)).iter().map(|(_, text)| text.clone()).collect::<String>();
    assert!(all("network_mode: none\nports: ['80:80']").contains("without a network"));
    assert!(all("network_mode: none\nmac_address: 02:00:00:00:00:01").contains("without a network"));
    assert!(all("mac_address: 02:00:00:00:00:01\nscale: 2").contains("at most 1 for each node"));
    let one_each =
        "mac_address: 02:00:00:00:00:01\ndeploy: {replicas: 2, placement: {max_replicas_per_node: 1}}";
    assert_eq!(workload(&service(one_each)).replicas, 2);
}

#[test]
fn a_service_is_called_as_dns_can_call_it_and_found_as_the_file_calls_it() {
    let text = "services:\n  Web.site:\n    image: a\n    depends_on: [my_db]\n    links: ['my_db:data']\n    \
                volumes_from: [my_db]\n  my_db:\n    image: b\n    container_name: main_db\n    volumes: ['data:/d']\n\
                volumes: {data: }\n";
    let documents = compiled(text).documents;
    let names: Vec<_> = documents.iter().map(|document| document.metadata.name.as_str()).collect();
    assert_eq!(names, ["data", "web-site", "my-db"]);
    let (web, db) = (documents[1].workload().unwrap(), documents[2].workload().unwrap());
    let links = |workload: &WorkloadSpec| {
        workload.links.iter().map(|(name, to)| format!("{name}={to}")).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(links(web), "Web.site=web-site data=my-db");
    assert_eq!(links(db), "main_db=my-db my_db=my-db");
    assert_eq!(web.depends_on[0].workload, "my-db");
    assert_eq!(web.container.volumes, db.container.volumes);

    let twice = faults("services:\n  a_b: {image: a}\n  a-b: {image: a}\n");
    assert!(twice[0].0 == 3 && twice[0].1.contains("two services would be called a-b"), "{twice:?}");
    let odd = faults("services:\n  'a b': {image: a}\n");
    assert!(odd[0].1.contains("cannot name a service"), "{odd:?}");
}

#[test]
fn a_service_with_profiles_is_in_when_one_of_them_is_asked_for() {
    let names = |text: &str| {
        let compiled = compiled(text);
        let names: Vec<_> = compiled.documents.iter().map(|d| d.metadata.name.clone()).collect();
        (names, compiled.warnings.len())
    };
    let other = "  other: {image: a}\n";
    assert_eq!(names(&(service("profiles: [debug, asked]") + other)).0, ["web", "other"]);
    assert_eq!(names(&(service("profiles: [debug]") + other)), (vec!["other".to_owned()], 1));
    // Its faults are told all the same, but its ports are nobody's.
    assert!(refused("profiles: [debug]\ncpus: no").contains("5: "));
    let both = service("profiles: [debug]\nports: ['80:80']") + "  other: {image: a, ports: ['80:80']}\n";
    assert_eq!(names(&both).0, ["other"]);
}

#[test]
fn a_file_is_laid_over_the_one_before_it_and_faults_name_theirs() {
    let base = "services:\n  web:\n    image: nginx\n    environment: [A=1, B=2]\n    ports: ['80:80']\n    command: [a]\n";
    let over = "services:\n  web:\n    environment: {B: 3}\n    ports: ['81:81']\n    command: [b, c]\n  more: {image: m}\n";
    let compiled = compiled(&format!("{base}\n====\n{over}"));
    let web = compiled.documents[0].workload().unwrap().container.clone();
    assert_eq!((web.env["A"].as_str(), web.env["B"].as_str(), web.ports.len()), ("1", "3", 2));
    assert_eq!(web.command.unwrap(), ["b", "c"]);
    assert_eq!(compiled.documents.len(), 2);

    let bad = format!("{base}\n====\nservices:\n  web: {{cpus: none, user: [1]}}\n");
    let places: Vec<_> =
        try_compile(&bad).unwrap_err().into_iter().map(|fault| (fault.file, fault.mark.line)).collect();
    assert_eq!(places, [("1.yaml".to_owned(), 2), ("1.yaml".to_owned(), 2)]);
    let later = try_compile(&format!("{base}\n====\n")).unwrap_err();
    assert_eq!((later[0].file.as_str(), later[0].message.contains("empty")), ("1.yaml", true));
}

#[test]
fn included_files_add_their_services_with_paths_beside_themselves() {
    let compiled = compiled(&(service("configs: [a]") + "include:\n  - parts/db.yaml\n"));
    let names: Vec<_> = compiled.documents.iter().map(|d| d.metadata.name.as_str()).collect();
    assert_eq!(names, ["web", "base", "db"]);
    assert_eq!(compiled.project, "folder");
    let db = compiled.documents[2].workload().unwrap();
    assert_eq!(db.container.env["PLACE"], "beside");
    assert_eq!(compiled.documents[0].workload().unwrap().container.files[0].content, "b");
    for (rest, file, wanted) in [
        ("include: [nowhere.yaml]", "0.yaml", "no file nowhere.yaml"),
        ("include: [parts/circle.yaml]", "parts/circle.yaml", "includes itself"),
        ("include: [parts/bad.yaml]", "parts/bad.yaml", "did you mean `command`?"),
        ("  db: {image: other}\ninclude: [parts/db.yaml]", "parts/db.yaml", "there already"),
        ("include: [{env_file: a}]", "0.yaml", "`path` is missing"),
        ("include: [{path: parts/db.yaml, env_file: nowhere.env}]", "0.yaml", "no file nowhere.env"),
        ("include: [{path: parts/db.yaml, env_file: bad.env}]", "0.yaml", "bad.env:2:"),
        ("include: [{path: parts/db.yaml, project_directory: elsewhere}]", "parts/db.yaml", "no file db.env"),
        ("include: [{path: []}]", "0.yaml", "`path` is missing"),
        ("include: [{}]", "0.yaml", "`path` is missing"),
    ] {
        let found = try_compile(&(service("") + rest + "\n")).unwrap_err();
        assert!(found.iter().any(|f| f.file == file && f.message.contains(wanted)), "{rest}: {found:#?}");
    }
}

#[test]
fn included_files_have_variables_and_a_folder_of_their_own() {
    let of = |include: &str| {
        let compiled =
            compiled(&(service("environment: {PORT: '${PORT-none}'}") + "include:\n  - " + include + "\n"));
        let env = |name: &str| {
            let found = compiled.documents.iter().find(|document| document.metadata.name == name);
            found.unwrap().workload().unwrap().container.env.clone()
        };
        // What the included file says is not the project's.
        assert_eq!(env("web")["PORT"], "none");
        env("shop")
    };
    let env = of("parts/shop.yaml");
    assert_eq!((env["PORT"].as_str(), env["TAG"].as_str(), env["PLACE"].as_str()), ("8080", "1.2", "beside"));
    assert_eq!(env["PASSED"], "by .env", "one without a value too");
    let env = of("{path: parts/shop.yaml, env_file: [more.env, most.env]}");
    assert_eq!((env["PORT"].as_str(), env["PASSED"].as_str()), ("9001", "by more.env"));
    let env = of("{path: parts/shop.yaml, env_file: /dev/null, project_directory: ./other/}");
    assert_eq!((env["PORT"].as_str(), env["PLACE"].as_str()), ("", "in the other"));
    assert_eq!(of("{path: parts/outer.yaml}")["PORT"], "8080", "what they include has theirs");
}

#[test]
fn a_service_is_laid_over_the_one_it_extends() {
    let text = "services:\n  web:\n    extends: {file: parts/db.yaml, service: db}\n    image: mine\n    labels: {more: x}\n  \
                last: {extends: {service: web}, expose: [1]}\n";
    let compiled = compiled(text);
    let (web, last) = (&compiled.documents[0], &compiled.documents[1]);
    let container = &web.workload().unwrap().container;
    assert_eq!((container.image.as_str(), container.env["PLACE"].as_str()), ("mine", "beside"));
    assert_eq!((web.metadata.labels["part"].as_str(), web.metadata.labels["more"].as_str()), ("db", "x"));
    let reset = "services:\n  a: {image: i, expose: [1], user: '5'}\n  b: {extends: a, expose: !reset [], user: !reset ''}\n";
    let b = self::compiled(reset).documents[1].workload().unwrap().container.clone();
    assert_eq!((b.ports.len(), b.user), (0, None));
    let ports: Vec<u16> = last.workload().unwrap().container.ports.iter().map(|port| port.target).collect();
    assert_eq!(ports, [5432, 1]);
    for (rest, wanted) in [
        ("extends: nobody", "no service \"nobody\" to extend"),
        ("extends: web", "extends itself"),
        ("extends: {file: nowhere.yaml, service: a}", "no file nowhere.yaml"),
        ("extends: {file: parts/db.yaml}", "`service` is missing"),
        ("extends: {file: parts/db.yaml, service: nobody}", "no service"),
    ] {
        assert!(refused(rest).contains(wanted), "{rest}: {}", refused(rest));
    }
}

#[test]
fn a_check_may_ask_instead_of_running_a_command() {
    let check = |rest: &str| workload(&service(rest)).container.health.unwrap();
    let http = check("healthcheck: {interval: 5s}\nx-hivemind: {health: 'http://:8080/ready?deep=1'}");
    let asked = http.http.unwrap();
    assert_eq!((asked.port, asked.path.as_str(), http.interval_ms), (8080, "/ready?deep=1", 5000));
    let grpc = |asked: &str| check(&format!("x-hivemind: {{health: 'grpc://:{asked}'}}")).grpc.unwrap();
    assert_eq!((grpc("50051").port, grpc("50051").service.as_str()), (50051, ""));
    assert_eq!(grpc("50051/shop.Orders").service, "shop.Orders");
    let tcp = check("x-hivemind: {health: 'tcp://:5432'}");
    assert_eq!((tcp.tcp, tcp.command.len(), tcp.retries), (Some(5432), 0, 3));
    assert_eq!(check("x-hivemind: {health: 'http://:80'}").http.unwrap().path, "/");
}

#[test]
fn services_say_where_their_replicas_go() {
    let place = "deploy: {mode: replicated, placement: {max_replicas_per_node: 2, preferences: [{spread: node.labels.zone}]}}";
    let spec = workload(&service(place));
    assert_eq!((spec.global, spec.most_per_node(), spec.spread), (false, Some(2), vec!["zone".to_owned()]));
    let global = workload(&service("deploy: {mode: global}"));
    assert_eq!((global.global, global.most_per_node(), global.replicas), (true, Some(1), 1));
    assert_eq!(workload(&service("deploy: {placement: {max_replicas_per_node: 0}}")).most_per_node(), None);
}

#[test]
fn services_say_what_they_wait_for_and_circles_are_refused() {
    let file = "services:\n  web:\n    image: a\n    depends_on:\n      db: {condition: service_healthy}\n      \
                setup: {condition: service_completed_successfully}\n      cache: {required: false}\n  \
                db: {image: a}\n  setup: {image: a, depends_on: [db]}\n";
    let compiled = compiled(file);
    let waits: Vec<_> = compiled.documents[0].workload().unwrap().depends_on.clone();
    let told: Vec<_> = waits.iter().map(|d| (d.workload.as_str(), d.condition, d.required)).collect();
    let wanted = [
        ("db", Condition::Healthy, true),
        ("setup", Condition::Completed, true),
        ("cache", Condition::Started, false),
    ];
    assert_eq!(told, wanted);
    assert!(compiled.warnings[0].message.contains("no `healthcheck`"));

    let linked = workload(&service("container_name: Shop_Web\nexternal_links: [legacy, 'legacy:mysql']"));
    let links: Vec<_> = linked.links.iter().map(|(name, to)| (name.as_str(), to.as_str())).collect();
    assert_eq!((links, linked.depends_on.len()), (vec![("Shop_Web", "web"), ("mysql", "legacy")], 0));

    let circle = faults(&file.replace("db: {image: a}", "db: {image: a, depends_on: [web]}"));
    let lines: Vec<usize> = circle.iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, [5, 6, 8, 9], "{circle:#?}");
    let away = faults(&file.replace("db: {image: a}", "db: {image: a, profiles: [other]}"));
    assert!(away[0].1.contains("profiles"), "{away:?}");
}

#[test]
fn limits_of_processes_and_names_are_read_in_all_their_forms() {
    let container = workload(&service(
        "ulimits: {nproc: 100, core: -1, nofile: {soft: 10, hard: 20}}\nextra_hosts: {a: 1.2.3.4, b: [::1, host-gateway]}\n\
         label_file: [app.env]\ncpu_quota: 50000\ncpu_period: 200000\nhealthcheck: {test: a, start_interval: 2s}",
    ))
    .container;
    let limit = |name: &str| (container.ulimits[name].soft, container.ulimits[name].hard);
    assert_eq!(limit("nproc"), (Some(100), Some(100)));
    assert_eq!(limit("core"), (None, None));
    assert_eq!(limit("nofile"), (Some(10), Some(20)));
    let hosts: Vec<_> = container.hosts.iter().map(|h| (h.name.as_str(), h.address.as_str())).collect();
    assert_eq!(hosts, [("a", "1.2.3.4"), ("b", "::1"), ("b", "host-gateway")]);
    assert_eq!(container.resources.cpu_limit_millis, Some(250));
    assert_eq!(container.health.unwrap().start_interval_ms, Some(2000));
    let hosts = workload(&service("extra_hosts: ['a:::1', 'b=[::2]']")).container.hosts;
    assert_eq!((hosts[0].address.as_str(), hosts[1].address.as_str()), ("::1", "::2"));
}

#[test]
fn the_page_of_all_keys_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/compose.md");
    let wanted = keys::documentation();
    if std::env::var_os("HIVEMIND_WRITE_DOCS").is_some() {
        std::fs::write(path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(found == wanted, "docs/compose.md is old; run this test with HIVEMIND_WRITE_DOCS=1");
}

proptest::proptest! {
    #[test]
    fn no_file_makes_the_compiler_panic(key in "[a-z_]{1,12}", value in "[-a-z0-9:{}\\[\\]$*&' ,./]{0,30}") {
        let _ = try_compile(&service(&format!("{key}: {value}")));
        let _ = try_compile(&service(&format!("ports: [{value}]\ndeploy: {value}\nhealthcheck: {value}")));
    }
}

#[test]
fn an_exclusive_service_leaves_open_who_has_a_say() {
    let exclusive = workload(&service("x-hivemind: {exclusive: true}")).exclusive;
    assert_eq!(exclusive, Some(hivemind_spec::workload::Exclusive::default()));
}

#[test]
fn a_pull_policy_says_when_a_tag_becomes_a_digest_and_never_what_runs_unsigned() {
    let policies = |value: &str| compiled(&service(&format!("pull_policy: {value}"))).pull_policies;
    assert_eq!(policies("always")["web"], PullPolicy::Always);
    assert_eq!(policies("never")["web"], PullPolicy::Never);
    assert_eq!(policies("if_not_present"), policies("missing"));
    assert!(compiled(&service("")).pull_policies.is_empty());
    assert_eq!(policies("daily"), policies("every_24h"));
    assert_eq!(policies("weekly"), policies("every_1w"));
    assert_eq!(policies("every_1d12h")["web"], PullPolicy::Every(36 * 3_600_000));
    assert_eq!(policies("refresh\npull_refresh_after: 36h"), policies("every_1d12h"));
    assert!(refused("pull_policy: always\npull_refresh_after: 1h").contains("5: goes with"));
    for (value, reason) in [
        ("build", "build and push the image"),
        ("every_now", "is not a duration"),
        ("refresh", "needs `pull_refresh_after`"),
        ("sometimes", "not one of"),
    ] {
        let text = refused(&format!("pull_policy: {value}"));
        assert!(text.starts_with("4: ") && text.contains(value) && text.contains(reason), "{text}");
    }
}
