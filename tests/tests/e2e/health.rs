//! Health checks, a real database, and pushes that change what runs, on one cluster of two.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use hivemind_qemu::Machine;
use hivemind_tests::cluster::{Cluster, Replica, STARTING};
use hivemind_tests::wait;

/// A check every second, of which two must fail; the emulated machines take their time for each.
const CHECKED: &str = "healthcheck: {test: ['CMD', '/misbehave', '--check', '1'], interval: 1s, \
                       timeout: 10s, retries: 2}";

/// Two checks that fail, the verdict's way through the map, and new answers of the resolver.
const NOTICED: Duration = Duration::from_secs(40);

#[test]
fn health_checks_databases_and_changed_documents_do_on_real_containers_what_they_promise() {
    let cluster = Cluster::formed("health", 2);
    cluster
        .push(&format!(
            "services:\n  asker:\n    image: registry.lab:5000/misbehave:1\n    ports: ['8080:8080']\n  \
             pool:\n    image: registry.lab:5000/misbehave:1\n    restart: 'no'\n    ports: ['8081:8080']\n    \
             {CHECKED}\n    deploy: {{replicas: 2}}\n  \
             sick:\n    image: registry.lab:5000/misbehave:1\n    ports: ['8082:8080']\n    {CHECKED}\n  \
             store:\n    image: registry.lab:5000/redis:1\n    ports: ['6379:6379']\n    \
             healthcheck: {{test: ['CMD', 'redis-cli', 'ping'], interval: 2s, timeout: 10s}}\n"
        ))
        .ok();
    for (workload, replicas) in [("asker", 1), ("pool", 2), ("sick", 1), ("store", 1)] {
        cluster.wait_for_running(workload, replicas, STARTING);
    }
    an_unhealthy_container_is_restarted_with_the_reason_in_ps(&cluster);
    a_replica_that_is_not_healthy_is_not_named_and_gets_no_traffic(&cluster);
    redis_answers_its_own_protocol_across_machines(&cluster);
    a_push_that_changes_image_or_environment_replaces_the_replicas(&cluster);
}

fn an_unhealthy_container_is_restarted_with_the_reason_in_ps(cluster: &Cluster) {
    let url = |path: &str| format!("http://{}:8082{path}", cluster.machines[0].address());
    let first = wait::until("it serves", STARTING, || cluster.get(&url("/"))).0;
    assert_eq!(cluster.replicas("sick").unwrap()[0].restarts, 0);
    cluster.get(&url("/do/unhealthy")).unwrap();
    let replica = wait::until("it is restarted, and ps says why", NOTICED, || {
        let replicas = cluster.replicas("sick")?;
        let again = replicas.iter().find(|r| r.phase == "running" && r.restarts == 1).cloned();
        again.ok_or_else(|| format!("{replicas:#?}"))
    })
    .0;
    let told = ["health check failed", "503"].iter().all(|word| replica.reason.contains(word));
    assert!(told, "{replica:?}");
    // A new process, which is healthy: it serves again.
    let second = wait::until("it serves again", NOTICED, || cluster.get(&url("/"))).0;
    assert_eq!(first.lines().next(), second.lines().next(), "the same replica");
}

fn a_replica_that_is_not_healthy_is_not_named_and_gets_no_traffic(cluster: &Cluster) {
    let named = |count: usize| {
        wait::until(&format!("the name leads to {count}"), NOTICED, || {
            let found = ask(cluster, "resolve/pool")?;
            let found: BTreeSet<String> = found.lines().map(str::to_owned).collect();
            if found.len() == count { Ok(found) } else { Err(format!("{found:?}")) }
        })
        .0
    };
    let url = |path: &str| format!("http://{}:8081{path}", cluster.machines[0].address());
    let all: BTreeSet<String> = cluster.replicas("pool").unwrap().into_iter().map(|r| r.ip).collect();
    assert_eq!(named(2), all);
    wait::until("it serves", NOTICED, || cluster.get(&url("/do/unhealthy")));
    let left = named(1);
    // The node that is asked may hear of it a moment after the one that resolved the name.
    let told = wait::until("it is told", NOTICED, || {
        let (healthy, unhealthy): (Vec<Replica>, Vec<Replica>) =
            cluster.replicas("pool")?.into_iter().partition(|r| r.phase == "running");
        match unhealthy.as_slice() {
            [one] => Ok((healthy, one.clone())),
            _ => Err(format!("{unhealthy:#?}")),
        }
    });
    let (healthy, unhealthy) = told.0;
    assert_eq!((unhealthy.phase.as_str(), unhealthy.restarts), ("unhealthy", 0), "it may not be restarted");
    assert!(unhealthy.reason.contains("health check failed"), "{unhealthy:?}");
    assert_eq!(left, healthy.iter().map(|r| r.ip.clone()).collect());
    let hostname = format!("hostname=pool-{}", healthy[0].slot);
    // Names are one thing, published ports another: each machine learns by itself.
    for machine in &cluster.machines {
        let told = || {
            let answer = cluster.get(&format!("http://{}:8081/", machine.address()))?;
            if answer.starts_with(&hostname) { Ok(()) } else { Err(answer) }
        };
        // Of two that share the traffic one answers ten times in a row once in a thousand times.
        let ten = || (0..10).try_for_each(|_| told());
        wait::until(&format!("{} leads to the healthy one", machine.name()), NOTICED, ten);
        wait::throughout("and to no other", Duration::from_secs(2), told);
    }
}

fn redis_answers_its_own_protocol_across_machines(cluster: &Cluster) {
    let [here, there] = cluster.machines.as_slice() else { panic!("two machines") };
    let say = |machine: &Machine, words: &[&str]| {
        let what = format!("{words:?} by way of {}", machine.name());
        wait::until(&what, NOTICED, || redis(cluster, machine, words)).0
    };
    assert_eq!(say(here, &["PING"]), "+PONG\r\n");
    // One of the two machines has it; the other's answer came over the overlay.
    assert_eq!(say(here, &["SET", "greeting", "from here"]), "+OK\r\n");
    assert_eq!(say(there, &["GET", "greeting"]), "$9\r\nfrom here\r\n");
    assert_eq!(say(there, &["SET", "greeting", "from there"]), "+OK\r\n");
    assert_eq!(say(here, &["GET", "greeting"]), "$10\r\nfrom there\r\n");

    // Its own client, on the other machine, by name.
    let store = cluster.replicas("store").unwrap().remove(0);
    cluster
        .push(&format!(
            "services:\n  client:\n    image: registry.lab:5000/redis:1\n    restart: 'no'\n    \
             command: ['redis-cli', '-h', 'store', 'GET', 'greeting']\n    \
             deploy: {{placement: {{constraints: ['node.id != {}']}}}}\n",
            store.node
        ))
        .ok();
    let client = wait::until("the client is done", STARTING, || {
        let replicas = cluster.replicas("client")?;
        let done = replicas.iter().find(|r| r.phase == "completed").cloned();
        done.ok_or_else(|| format!("{replicas:#?}"))
    })
    .0;
    assert_ne!(client.node, store.node);
    let said = cluster.hivemind(["logs", "client"]).ok().stdout();
    assert!(said.contains("from there"), "{said}");
    let store = &cluster.replicas("store").unwrap()[0];
    assert_eq!((store.phase.as_str(), store.restarts), ("running", 0), "healthy by its own client");
}

fn a_push_that_changes_image_or_environment_replaces_the_replicas(cluster: &Cluster) {
    let push = |tag: u32, colour: &str| {
        cluster
            .push(&format!(
                "services:\n  roll:\n    image: registry.lab:5000/misbehave:{tag}\n    \
                 environment: {{COLOUR: {colour}}}\n    ports: ['8083:8080']\n    \
                 deploy: {{replicas: 2}}\n"
            ))
            .ok();
    };
    // What each replica says of its image, and its colour.
    let running = |version: &str, colour: &str| {
        wait::until(&format!("all run version {version} in {colour}"), STARTING, || {
            let replicas = cluster.replicas("roll")?;
            let mut said = BTreeMap::new();
            for replica in replicas.iter().filter(|r| r.phase == "running" && r.reason.is_empty()) {
                let who = ask(cluster, &format!("fetch/{}/8080", replica.ip))?;
                said.insert(replica.slot, who.contains(&format!("version={version}")));
            }
            let colours: BTreeSet<String> =
                (0..8).map(|_| colour_of(cluster)).collect::<Result<_, String>>()?;
            let right = said == BTreeMap::from([(0, true), (1, true)]) && replicas.len() == 2;
            if right && colours == BTreeSet::from([format!("COLOUR={colour}")]) {
                Ok(replicas)
            } else {
                Err(format!("{said:?} {colours:?} {replicas:#?}"))
            }
        })
        .0
    };
    push(1, "red");
    let red = running("1", "red");
    push(2, "red");
    let newer = running("2", "red");
    push(2, "blue");
    let blue = running("2", "blue");
    for (old, new) in red.iter().zip(&newer).chain(newer.iter().zip(&blue)) {
        assert_eq!((old.slot, &old.node), (new.slot, &new.node), "replaced where it was");
        assert!(old.since_ms < new.since_ms, "another container: {old:?} {new:?}");
        assert_eq!(new.restarts, 0, "a new version begins anew");
    }
    push(2, "blue");
    assert_eq!(cluster.replicas("roll").unwrap(), blue, "the same again changes nothing");
}

fn colour_of(cluster: &Cluster) -> Result<String, String> {
    let environment = cluster.get(&format!("http://{}:8083/env", cluster.machines[0].address()))?;
    let line = environment.lines().find(|line| line.starts_with("COLOUR="));
    line.map(str::to_owned).ok_or(environment)
}

/// Lets a container of the cluster do something, and gives its answer.
fn ask(cluster: &Cluster, what: &str) -> Result<String, String> {
    cluster.get(&format!("http://{}:8080/do/{what}", cluster.machines[0].address()))
}

/// One command in redis's protocol (RESP2, an array of bulk strings), and the answer's bytes.
fn redis(cluster: &Cluster, machine: &Machine, words: &[&str]) -> Result<String, String> {
    let mut command = format!("*{}\r\n", words.len());
    for word in words {
        command.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    let address = SocketAddr::from((machine.address(), 6379));
    let talk = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(3))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(command.as_bytes())?;
        stream.write_all(b"*1\r\n$4\r\nQUIT\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        // The farewell is not what was asked for.
        Ok(answer.strip_suffix("+OK\r\n").unwrap_or(&answer).to_owned())
    };
    cluster.lab.enter(talk).map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}
