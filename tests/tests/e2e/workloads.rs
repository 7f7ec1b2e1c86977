//! What was pushed runs, is found by name, and goes without a trace.

use std::collections::BTreeSet;
use std::time::Duration;

use hivemind_tests::cluster::{Cluster, STARTING};
use hivemind_tests::command::items;
use hivemind_tests::wait;

const WEB: &str = "
services:
  web:
    image: registry.lab:5000/nginx:1
    ports: ['8080:80']
    deploy:
      replicas: 3
";

const ASKER: &str = "
services:
  asker:
    image: registry.lab:5000/misbehave:1
    ports: ['8081:8080']
    hostname: asker
";

#[test]
fn a_signed_app_runs_on_three_machines_and_is_found_by_name_and_address() {
    let cluster = Cluster::formed("app", 3);
    let plan = cluster.json(&["plan", &file(&cluster, WEB)]).unwrap();
    assert!(plan.to_string().contains("web"), "{plan}");
    assert!(cluster.replicas("web").unwrap().is_empty(), "a plan changes nothing");

    cluster.push(WEB).ok();
    let replicas = cluster.wait_for_running("web", 3, STARTING);
    let nodes: BTreeSet<_> = replicas.iter().map(|r| &r.node).collect();
    assert_eq!(nodes.len(), 3, "spread over the machines: {replicas:#?}");

    // Every machine answers on the published port, wherever the replicas are.
    for machine in &cluster.machines {
        let url = format!("http://{}:8080/", machine.address());
        wait::until(&url, Duration::from_secs(20), || cluster.get(&url));
    }

    // From a container: by short and by full name, by address on every machine, and names outside.
    cluster.push(ASKER).ok();
    cluster.wait_for_running("asker", 1, STARTING);
    let asker = format!("http://{}:8081", cluster.machines[0].address());
    let web = ["web/80", "web.default.hive.internal/80"].map(str::to_owned);
    let addresses = replicas.iter().map(|r| format!("{}/80", r.ip));
    for place in web.into_iter().chain(addresses).chain(["registry.lab/5000".to_owned()]) {
        let answer = wait::until(&place, Duration::from_secs(30), || {
            cluster.get(&format!("{asker}/do/fetch/{place}"))
        });
        assert!(answer.0.contains("200 OK"), "{place}: {answer:?}");
    }
    what_they_use_is_shown_from_all_machines(&cluster);
    let said = cluster.hivemind(["logs", "web", "--tail", "1000"]).ok().stdout();
    assert!(said.contains("GET / "), "the logs tell of the requests: {said}");
    let of = |more: &[&str]| {
        let arguments = [&["logs", "web"], more].concat();
        cluster.hivemind(arguments).ok().stdout().lines().count()
    };
    assert!(of(&["--since", "1h"]) >= said.lines().count(), "all of it");
    assert_eq!((of(&["--since", "2099-01-01T00:00:00Z"]), of(&["--until", "1h"])), (0, 0));
    assert!(of(&["--until", "2099-01-01T00:00:00Z", "--tail", "1"]) >= 3, "the last line of each replica");
    assert!(!cluster.consoles().contains("query:"), "consoles do not tell of every question to the DNS");

    let inspected = cluster.json(&["inspect", "web"]).unwrap();
    assert_eq!(inspected["verified"], true, "{inspected}");
    assert_eq!(inspected["signers"][0]["name"], "root");
    assert_eq!(inspected["document"]["spec"]["replicas"], 3);
    assert_eq!(items(&inspected["replicas"]).len(), 3);
    let unknown = cluster.hivemind(["inspect", "web", "--kind", "volume"]).failed();
    assert!(unknown.stderr().contains("there is no Volume/default/web"), "{unknown}");

    let plan = cluster.json(&["plan", &file(&cluster, WEB)]).unwrap();
    assert!(!plan.to_string().contains("\"replicas\""), "nothing to change: {plan}");
    it_is_started_anew_and_scaled_without_its_file(&cluster);

    cluster.hivemind(["remove", "--yes", "web", "asker"]).ok();
    wait::until("everything is gone", Duration::from_secs(60), || {
        let left = [cluster.replicas("web")?, cluster.replicas("asker")?].concat();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:#?}")) }
    });
    what_has_happened_is_told_by_all_machines(&cluster);
    let url = format!("http://{}:8080/", cluster.machines[0].address());
    wait::until("the published port is closed", Duration::from_secs(20), || match cluster.get(&url) {
        Ok(answer) => Err(answer),
        Err(_) => Ok(()),
    });

    // An error is for a person to look at, and here there is nothing to see.
    let consoles = cluster.consoles();
    let errors: Vec<&str> = consoles.lines().filter(|line| line.contains("agent: ERROR")).collect();
    assert!(errors.is_empty(), "{errors:#?}");
}

fn it_is_started_anew_and_scaled_without_its_file(cluster: &Cluster) {
    let before = cluster.replicas("asker").unwrap().remove(0);
    cluster.hivemind(["restart", "asker", "--wait"]).ok();
    let after = cluster.wait_for_running("asker", 1, STARTING).remove(0);
    assert!(
        after.since_ms > before.since_ms && after.restarts == 0,
        "another container: {before:?} {after:?}"
    );
    cluster.hivemind(["scale", "asker=2", "--wait"]).ok();
    cluster.wait_for_running("asker", 2, STARTING);
    let plan = cluster.json(&["plan", &file(cluster, ASKER)]).unwrap().to_string();
    assert!(
        plan.contains("/spec/replicas") && !plan.contains("restarted"),
        "what its next push changes: {plan}"
    );
}

fn what_they_use_is_shown_from_all_machines(cluster: &Cluster) {
    let stats = cluster.json(&["stats"]).unwrap();
    assert_eq!(stats["missing"], serde_json::json!([]), "{stats}");
    let used = items(&stats);
    let hosts: BTreeSet<_> = used.iter().map(|of| of["hostname"].to_string()).collect();
    assert_eq!((used.len(), hosts.len()), (4, 3), "{stats}");
    let all = |name: &str, least: u64| used.iter().all(|of| of[name].as_u64().is_some_and(|n| n >= least));
    assert!(all("memoryBytes", 4096) && all("pids", 1) && all("cpuUs", 1), "{stats}");
    let asker = used.iter().find(|of| of["workload"] == "asker").unwrap();
    assert!(
        asker["receivedBytes"].as_u64() > Some(1000) && asker["sentBytes"].as_u64() > Some(100),
        "{asker}"
    );
    let top = items(&cluster.json(&["top", "asker"]).unwrap());
    assert_eq!((top.len(), top[0]["processes"][0]["uid"].as_u64()), (1, Some(0)), "{top:?}");
    assert!(top[0]["processes"][0]["command"].as_str().is_some_and(|c| c.contains("misbehave")), "{top:?}");
    let shown = cluster.hivemind(["top", "web"]).ok().stdout();
    assert!(shown.matches("nginx: master").count() == 3 && !shown.contains("misbehave"), "{shown}");
    let shown = cluster.hivemind(["stats", "asker", "--once"]).ok().stdout();
    assert!(shown.contains("asker/0") && !shown.contains("web/0"), "{shown}");
}

fn what_has_happened_is_told_by_all_machines(cluster: &Cluster) {
    let events = cluster.json(&["events"]).unwrap();
    assert_eq!(events["missing"], serde_json::json!([]), "{events}");
    let told =
        |code: &str| items(&events).into_iter().filter(|event| event["code"] == code).collect::<Vec<_>>();
    let (running, gone) = (told("replica-running"), told("replica-gone"));
    // Three of one and two of the other, which was started anew as well: that replaced a container and ended no replica.
    assert_eq!((running.len(), gone.len()), (6, 5), "{events}");
    let nodes: BTreeSet<_> = running.iter().map(|event| event["node"].to_string()).collect();
    assert_eq!(nodes.len(), 3, "each tells of its own");
    // Who lets another in tells so, and whoever hears of that one from others does not; that it is up all tell.
    assert!(told("node-up").len() >= 6, "each tells of the others: {events}");
    let times: Vec<_> = items(&events).iter().map(|event| event["timeMs"].as_u64().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");

    let of_one = items(&cluster.json(&["events", "asker", "--since", "10m"]).unwrap());
    assert!(
        of_one.len() >= 2 && of_one.iter().all(|event| event["workload"] == "default/asker"),
        "{of_one:?}"
    );
    let urgent = items(&cluster.json(&["events", "--level", "error"]).unwrap());
    assert!(urgent.is_empty(), "{urgent:?}");
    let shown = cluster.hivemind(["events"]).ok().stdout();
    assert!(shown.contains("default/asker-0 is running"), "{shown}");
    assert!(shown.contains("2 nodes") || shown.contains("3 nodes"), "what several tell is one line: {shown}");
}

#[test]
fn containers_that_misbehave_are_contained_restarted_and_explained() {
    let cluster = Cluster::formed("misbehave", 1);
    let push = |name: &str, rest: &str| {
        let text = format!("services:\n  {name}:\n    image: registry.lab:5000/misbehave:1\n{rest}");
        cluster.push(&text).ok();
    };
    push("crasher", "    command: ['--exit-code', '3', '--exit-after', '0.2']\n");
    push("stubborn", "    command: ['--ignore-sigterm', '1']\n    stop_grace_period: 2s\n");
    push("greedy", "    command: ['--eat-memory', '200']\n    mem_limit: 32m\n");
    push("giant", "    deploy: {resources: {reservations: {memory: 64G}}}\n");
    push("picky", "    deploy: {placement: {constraints: ['node.labels.disk == ssd']}}\n");
    push("missing", "    deploy: {replicas: 1}\n");
    cluster.push("services:\n  missing:\n    image: registry.lab:5000/no-such-image:1\n").ok();

    let says = |workload: &str, wanted: &[&str]| {
        wait::until(&format!("{workload} says {wanted:?}"), STARTING, || {
            let replicas = cluster.replicas(workload)?;
            let told = replicas.iter().any(|r| wanted.iter().all(|w| r.reason.contains(w)));
            if told { Ok(replicas[0].clone()) } else { Err(format!("{replicas:#?}")) }
        })
        .0
    };
    let crasher = says("crasher", &["code 3"]);
    assert!(crasher.restarts > 0 || crasher.phase == "backoff", "{crasher:?}");
    says("greedy", &["memory"]);
    assert_eq!(says("giant", &["memory"]).phase, "pending");
    assert_eq!(says("picky", &["disk"]).phase, "pending");
    says("missing", &["no-such-image"]);

    cluster.wait_for_running("stubborn", 1, STARTING);
    cluster.hivemind(["remove", "--yes", "stubborn"]).ok();
    wait::until("the one that ignores SIGTERM is gone", Duration::from_secs(30), || {
        let left = cluster.replicas("stubborn")?;
        if left.is_empty() { Ok(()) } else { Err(format!("{left:#?}")) }
    });
}

#[test]
fn when_memory_processes_or_disk_are_short_the_lowest_priority_makes_room_and_the_others_go_on() {
    let cluster = Cluster::formed("short", 1);
    let nodes = items(&cluster.json(&["nodes"]).unwrap());
    let all_mib = nodes[0]["capacity"]["memoryBytes"].as_u64().unwrap() >> 20;
    let service = |name: &str, priority: i32, mib: u64, more: &str| {
        format!(
            "  {name}:\n    image: registry.lab:5000/misbehave:1\n    command: ['--eat-memory', '{mib}'{more}]\n    \
             stop_grace_period: 1m\n    x-hivemind: {{priority: {priority}}}\n"
        )
    };
    // The one that matters is the larger one, so the kernel would choose it.
    let precious = service("precious", 10, all_mib / 2, "");
    let greedy = service("greedy", 0, all_mib * 6 / 10, ", '--eat-after', '3', '--ignore-sigterm', '1'");
    cluster.push(&format!("services:\n{precious}")).ok();
    let before = cluster.wait_for_running("precious", 1, STARTING);
    cluster.push(&format!("services:\n{greedy}")).ok();
    let words = [
        "made room when the memory of its machine was short",
        "asks for 16, and has priority 0; starts again",
    ];
    wait::until("greedy makes room, and says why", STARTING, || {
        let replicas = cluster.replicas("greedy")?;
        let told = replicas
            .iter()
            .find(|r| words.iter().all(|word| r.reason.contains(word)) && r.phase == "backoff");
        told.map(drop).ok_or_else(|| format!("{replicas:#?}"))
    });
    assert_eq!(cluster.replicas("precious").unwrap(), before, "it goes on");
    // With less it stays.
    cluster.push(&format!("services:\n{}", service("greedy", 0, all_mib / 10, ""))).ok();
    cluster.wait_for_running("greedy", 1, STARTING);
    assert_eq!(cluster.replicas("precious").unwrap(), before);
    // Processes are short long before the memory they take.
    cluster
        .push(
            "services:\n  many:\n    image: registry.lab:5000/misbehave:1\n    command: ['--start-threads', '100000']\n    \
             x-hivemind: {priority: 0}\n",
        )
        .ok();
    wait::until("many makes room, and says why", STARTING, || {
        let replicas = cluster.replicas("many")?;
        let told = replicas.iter().find(|r| r.reason.contains("short of processes") && r.phase == "backoff");
        told.map(drop).ok_or_else(|| format!("{replicas:#?}"))
    });
    assert_eq!(cluster.replicas("precious").unwrap(), before, "it goes on");
    // What they hold of the memory, many's threads in the kernel too, is not to be short with the disk.
    cluster.hivemind(["remove", "many", "greedy", "precious", "--yes"]).ok();
    cluster.push(&format!("services:\n{}", service("calm", 10, all_mib / 20, ""))).ok();
    let calm = cluster.wait_for_running("calm", 1, STARTING);
    // All of the disk that a container can have, in one go.
    cluster
        .push(
            "services:\n  hoarder:\n    image: registry.lab:5000/busybox:1\n    stop_grace_period: 0s\n    \
             command: [sh, -c, 'n=1; while fallocate -l 64M /much-$$n; do n=$$((n + 1)); done; exec sleep 100000']\n    \
             x-hivemind: {priority: 0}\n",
        )
        .ok();
    wait::until("hoarder makes room, and says why", STARTING, || {
        let replicas = cluster.replicas("hoarder")?;
        let words = ["the disk of its machine was full", "MiB beside its volumes, and has priority 0"];
        let told = replicas.iter().find(|r| words.iter().all(|word| r.reason.contains(word)));
        told.map(drop).ok_or_else(|| format!("{replicas:#?}"))
    });
    cluster.push("services:\n  modest:\n    image: registry.lab:5000/busybox:1\n    command: [sh, -c, 'dd if=/dev/zero of=/some bs=1M count=64 && echo wrote && exec sleep 100000']\n    stop_grace_period: 0s\n").ok();
    cluster.hivemind(["remove", "hoarder", "--yes"]).ok();
    cluster.wait_for_words("modest", &["wrote"], STARTING);
    assert_eq!(cluster.replicas("calm").unwrap(), calm, "it goes on");
}

fn file(cluster: &Cluster, compose: &str) -> String {
    hivemind_tests::command::compose(cluster.folder(), compose).to_string_lossy().into_owned()
}
