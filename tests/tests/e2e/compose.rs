//! What a Compose file asks for shows inside its containers.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use hivemind_tests::cluster::{Cluster, STARTING};
use hivemind_tests::command::{Run, items};
use hivemind_tests::wait;

/// Each line of the script tells of one key; `$$` is how Compose writes a `$`.
const LOOKING: &str = r#"
configs:
  page:
    content: |
      written in the file
services:
  looker:
    image: registry.lab:5000/busybox:1
    command:
      - sh
      - -c
      - |
        say() { echo "$$1=$$2"; }
        inside() { sed -n "s/^$$1:[[:space:]]*//p" /proc/self/status; }
        say cap_drop "$$(inside CapEff)"
        say cap_bound "$$(inside CapBnd)"
        say security_opt "$$(inside NoNewPrivs)"
        say cpuset "$$(inside Cpus_allowed_list)"
        say cpu_shares "$$(cat /sys/fs/cgroup/cpu.weight)"
        say cpu_quota "$$(cat /sys/fs/cgroup/cpu.max)"
        say oom_score_adj "$$(cat /proc/self/oom_score_adj)"
        say memswap "$$(cat /sys/fs/cgroup/memory.max) $$(cat /sys/fs/cgroup/memory.swap.max)"
        say platform "$$(uname -m)"
        say blkio "$$(cut -d " " -f 2- /sys/fs/cgroup/io.max)"
        say mac "$$(cat /sys/class/net/eth0/address)"
        say storage_opt "$$(dd if=/dev/zero of=/much bs=64k count=200 2>&1 | grep -o 'quota exceeded')"
        rm -f /much
        say ulimits "$$(sed -n 's/^Max open files *//p' /proc/self/limits)"
        say sysctls "$$(cat /proc/sys/net/core/somaxconn)"
        say domainname "$$(cat /proc/sys/kernel/domainname)"
        say shm_size "$$(sed -n 's/^shm .*\(size=[0-9]*k\).*/\1/p' /proc/mounts)"
        say tmpfs "$$(sed -n 's/^tmpfs .scratch \(.*\) 0 0$$/\1/p' /proc/mounts)"
        say group_add "$$(id -G)"
        say extra_hosts "$$(sed -n 's/[[:space:]]*db.example$$//p' /etc/hosts)"
        say gateway "$$(sed -n 's/[[:space:]]*machine$$//p' /etc/hosts)"
        say dns "$$(tail -n 2 /etc/resolv.conf | tr '\n' ' ')"
        say configs "$$(cat /srv/page.txt)"
        say mode "$$(stat -c %a:%u:%g /srv/page.txt)"
        say written "$$(echo x 2>/dev/null >>/srv/page.txt && echo yes || echo no)"
        say init "$$(cat /proc/1/comm)"
        until [ -e /scratch/hooked ]; do sleep 0.1; done
        say post_start "$$(cat /scratch/hooked)"
        sleep 3
        touch /scratch/ready
        exec sleep 100000
    init: true
    post_start: [{command: [sh, -c, 'echo $$WORD in $$PWD >/scratch/hooked'], environment: {WORD: hooked}, working_dir: /srv}]
    pre_stop: [{command: [sh, -c, 'echo is asked to go >/proc/1/fd/1']}]
    stop_grace_period: 20s
    cap_drop: [ALL]
    cap_add: [CHOWN, NET_BIND_SERVICE, CAP_IPC_LOCK]
    security_opt: ['no-new-privileges:true']
    cpuset: '0'
    cpu_shares: 2048
    cpu_quota: 30000
    cpu_period: 100000
    oom_score_adj: 700
    platform: linux/amd64
    blkio_config: {device_write_bps: [{path: /dev/sda, rate: 20mb}], device_read_iops: [{path: /dev/sda, rate: 5000}]}
    mac_address: 02:42:ac:11:65:43
    mem_limit: 64m
    memswap_limit: 96m
    storage_opt: {size: 4m}
    ulimits: {nofile: {soft: 1000, hard: 2000}}
    sysctls: {net.core.somaxconn: 321}
    domainname: shop.example
    shm_size: 3m
    tmpfs: ['/scratch:size=2m,mode=0711']
    group_add: ['4711']
    extra_hosts: ['db.example:192.0.2.7', 'machine:host-gateway']
    dns_search: corp.example
    dns_opt: [timeout:7]
    configs: [{source: page, target: /srv/page.txt, uid: '5', mode: 0440}]
    healthcheck:
      test: test -f /scratch/ready
      interval: 10m
      start_period: 5m
      start_interval: 1s
"#;

/// The file that is extended, and what is read beside it.
const BASE: [(&str, &str); 3] = [
    (
        "base.yaml",
        "services:\n  base:\n    image: registry.lab:5000/busybox:1\n    entrypoint: [sh, -c]\n    env_file: [plain.env]\n    \
         label_file: [plain.labels]\n",
    ),
    ("plain.env", "FROM_FILE=from a file\n"),
    ("plain.labels", "org.example.labelled=by-file\n"),
];

/// Those keys that may only say what is so anyway are among them.
const PLAIN: &str = r#"
services:
  plain:
    extends: {file: base.yaml, service: base}
    scale: 2
    command:
      - |
        say() { echo "$$1=$$2"; }
        say entrypoint "$$0"
        say env_file "$$FROM_FILE"
        say cpus "$$(cat /sys/fs/cgroup/cpu.max)"
        say pids_limit "$$(cat /sys/fs/cgroup/pids.max)"
        say read_only "$$(touch /x 2>&1 | grep -o 'Read-only file system')"
        say hostname "$$(hostname)"
        say working_dir "$$PWD"
        until ping -c 1 -W 3 seen >/dev/null; do sleep 1; done
        say external_links reached
        trap 'say stop_signal INT; exit 0' INT
        while :; do sleep 1; done
      - the name of the script
    labels: {tier: front}
    annotations: {example.org/note: kept}
    cpus: 0.25
    pids_limit: 77
    read_only: true
    hostname: desk
    working_dir: /etc
    external_links: ['looker:seen']
    stop_signal: INT
    pull_policy: refresh
    pull_refresh_after: 12h
    attach: false
    isolation: default
    mem_swappiness: 0
    runtime: crun
  heavy:
    image: registry.lab:5000/busybox:1
    mem_reservation: 100g
  left:
    image: registry.lab:5000/busybox:1
    profiles: [never]
"#;

fn what_is_left_of_the_keys_shows_too(cluster: &Cluster) {
    for (name, text) in BASE {
        std::fs::write(cluster.folder().join(name), text).unwrap();
    }
    let told = cluster.push(PLAIN).ok().stderr();
    assert!(told.contains("left is left out"), "{told}");
    cluster.wait_for_running("plain", 2, STARTING);
    let words = [
        "entrypoint=the name of the script",
        "env_file=from a file",
        "cpus=25000 100000",
        "pids_limit=77",
        "read_only=Read-only file system",
        "hostname=desk",
        "working_dir=/etc",
        "external_links=reached",
    ];
    cluster.wait_for_words("plain", &words, Duration::from_secs(30));
    let inspected = cluster.hivemind(["inspect", "plain", "--output", "json"]).ok().stdout();
    for part in
        ["\"tier\": \"front\"", "\"org.example.labelled\": \"by-file\"", "\"example.org/note\": \"kept\""]
    {
        assert!(inspected.contains(part), "{part}: {inspected}");
    }
    wait::until("no machine has so much memory, and ps says so", STARTING, || {
        let replicas = cluster.replicas("heavy")?;
        let told = replicas.iter().any(|r| r.phase == "pending" && r.reason.contains("memory"));
        if told { Ok(()) } else { Err(format!("{replicas:#?}")) }
    });
    assert!(cluster.replicas("left").unwrap().is_empty());
    cluster.hivemind(["remove", "heavy", "--yes"]).ok();
    // Its successor comes when it has ended.
    cluster.push(&PLAIN.replace("cpus: 0.25", "cpus: 0.5").replace("100g", "1m")).ok();
    cluster.wait_for_words("plain", &["stop_signal=INT", "cpus=50000 100000"], STARTING);
    cluster.hivemind(["remove", "plain", "heavy", "--yes"]).ok();
}

/// What waits is on another machine than what it waits for.
const WAITING: &str = r#"
services:
  web:
    image: registry.lab:5000/busybox:1
    command: [sh, -c, 'for name in database DB_Main; do wget -q -O - http://$$name:8000/ready; done; exec sleep 100000']
    stop_grace_period: 0s
    links: ['db:database']
    deploy: {placement: {constraints: [node.hostname == FIRST]}}
    depends_on:
      db: {condition: service_healthy}
      setup: {condition: service_completed_successfully}
      nobody: {condition: service_started, required: false}
  setup:
    image: registry.lab:5000/busybox:1
    command: [sh, -c, 'echo set up']
    restart: 'no'
    depends_on: [db]
    deploy: {placement: {constraints: [node.hostname != FIRST]}}
  db:
    image: registry.lab:5000/busybox:1
    container_name: DB_Main
    command: [sh, -c, 'sleep 5; echo is ready >/tmp/ready; exec httpd -f -p 8000 -h /tmp']
    stop_grace_period: 0s
    healthcheck: {test: test -f /tmp/ready, interval: 1s, start_period: 2m, start_interval: 1s}
    deploy: {placement: {constraints: [node.hostname != FIRST]}}
"#;

#[test]
fn compose_files_do_on_real_machines_what_they_ask_for() {
    let cluster = Cluster::formed("compose", 2);
    what_a_compose_file_asks_for_shows_inside_its_containers(&cluster);
    what_is_left_of_the_keys_shows_too(&cluster);
    services_wait_for_what_they_depend_on_also_on_other_machines(&cluster);
    a_global_service_has_one_replica_on_each_machine(&cluster);
    a_check_asks_by_http_or_tcp_where_there_is_no_command_to_run(&cluster);
    a_command_has_a_terminal_if_it_wants_one(&cluster);
    what_is_kept_of_the_output_is_as_much_as_the_file_says(&cluster);
    a_service_without_a_network_has_none(&cluster);
    a_program_provides_a_service_and_tells_those_that_depend_on_it(&cluster);
    a_service_is_given_of_its_machine_what_its_namespace_allows(&cluster);
    the_root_of_a_service_can_be_nobody_on_its_machine(&cluster);
    a_service_on_the_machines_network_is_reached_there_and_by_its_name(&cluster);
}

/// Both say what they have of the machine they run on.
const GIVEN: &str = r#"
services:
  given:
    image: registry.lab:5000/busybox:1
    command:
      - sh
      - -c
      - |
        echo "process 1 is $$(cat /proc/1/comm) on $$(hostname)"
        echo "reads $$(dd if=/dev/serving bs=1 count=1 2>/dev/null | wc -c) byte"
        (: >/dev/serving) 2>/dev/null || echo "does not write"
        mknod /tmp/serial c 4 64 && (: >>/tmp/serial) && echo "opens what it made"
        mknod /tmp/memory c 1 1; (: >>/tmp/memory) 2>/dev/null || echo "opens nothing else"
        ip link set lo mtu 1234 && echo "lo has $$(cat /sys/class/net/lo/mtu)"
        echo "of the CPU $$(cat /sys/fs/cgroup/cpu.max)"
        mkdir /tmp/a 2>&1 | grep -o "Read-only file system"
        [ "$$(ls /host/sys/class/net | wc -l)" -gt 2 ] && echo "sees the interfaces"
        exec sleep 100000
    stop_grace_period: 0s
    pid: host
    uts: host
    devices: ['/dev/vda:/dev/serving:r']
    device_cgroup_rules: ['c 4:* rwm']
    cap_add: [NET_ADMIN]
    cpu_percent: 50
    security_opt: ['seccomp:calls.json']
    volumes: ['/sys:/host/sys:ro']
    userns_mode: host
  trusted:
    image: registry.lab:5000/busybox:1
    command:
      - sh
      - -c
      - |
        echo "may do $$(sed -n 's/^CapEff:[[:space:]]*//p' /proc/self/status)"
        echo "is filtered $$(sed -n 's/^Seccomp:[[:space:]]*//p' /proc/self/status)"
        [ -b /dev/vda ] && echo "sees disks"
        echo "is ended at $$(cat /proc/self/oom_score_adj)"
        echo "is on $$(sed -n 's/^ID=//p' /rootfs/etc/os-release)"
        touch /rootfs/var/lib/x 2>&1 | grep -o "x: Read-only file system"
        echo "is in $$(cut -d / -f 2-4 /proc/self/cgroup)/"
        [ "$$(readlink /proc/self/ns/ipc)" = "$$(readlink /proc/1/ns/ipc)" ] && echo "shares memory segments"
        exec sleep 100000
    stop_grace_period: 0s
    privileged: true
    oom_kill_disable: true
    pid: host
    ipc: host
    cgroup: host
    cgroup_parent: batch
    volumes: ['/:/rootfs:ro,rslave']
"#;

/// All system calls but one, which fails as on a file system that is read-only (EROFS).
const CALLS: &str = r#"{"defaultAction": "SCMP_ACT_ALLOW", "archMap": [{"architecture": "SCMP_ARCH_X86_64"}], "syscalls": [
    {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 30}]}"#;

fn a_service_is_given_of_its_machine_what_its_namespace_allows(cluster: &Cluster) {
    std::fs::write(cluster.folder().join("calls.json"), CALLS).unwrap();
    let refused = cluster.push(GIVEN).failed().stderr();
    let advice = "hivemind namespaces allow default capabilities devices host-namespaces";
    assert!(refused.contains(advice), "{refused}");
    let allow = "namespaces allow default capabilities devices host-namespaces host-paths privileged";
    cluster.hivemind(allow.split(' ')).ok();
    cluster.push(GIVEN).ok();
    let given = cluster.wait_for_running("given", 1, STARTING);
    cluster.wait_for_running("trusted", 1, STARTING);
    let host = cluster.json(&["nodes"]).map(|nodes| items(&nodes)).unwrap();
    let host = host.iter().find(|node| node["id"] == given[0].node.as_str()).unwrap();
    let first = format!("process 1 is init on {}", host["hostname"].as_str().unwrap());
    let words = [
        first.as_str(),
        "reads 1 byte",
        "does not write",
        "opens what it made",
        "opens nothing else",
        "lo has 1234",
        "of the CPU 50000 100000",
        "Read-only file system",
        "sees the interfaces",
    ];
    cluster.wait_for_words("given", &words, Duration::from_secs(30));
    let words = [
        "may do 000001ffffffffff",
        "is filtered 0",
        "sees disks",
        "is ended at -1000",
        "is on hivemind",
        "x: Read-only file system",
        "is in hivemind/workloads/parent.default.batch/",
        "shares memory segments",
    ];
    cluster.wait_for_words("trusted", &words, Duration::from_secs(30));

    let told = cluster.hivemind(["namespaces", "deny", "default", "privileged"]).ok().stdout();
    assert!(told.contains("capabilities, devices, host-namespaces"), "{told}");
    wait::until("what is no longer allowed is stopped, and ps says why", STARTING, || {
        let replicas = cluster.replicas("trusted")?;
        let told = |r: &hivemind_tests::cluster::Replica| {
            r.phase == "assigned" && r.reason.contains("does not allow its containers: privileged")
        };
        if replicas.iter().any(told) { Ok(()) } else { Err(format!("{replicas:#?}")) }
    });
    assert_eq!(cluster.replicas("given").unwrap(), given, "what is allowed goes on");
}

/// One that has users of its own, and one that has not: they have a volume in common.
const USERS: &str = r#"
configs:
  page:
    content: |
      written in the file
volumes:
  common: {}
services:
  stranger:
    image: registry.lab:5000/busybox:1
    userns_mode: auto
    command:
      - sh
      - -c
      - |
        echo "is $$(id -u), on the machine $$(sed 's/  */ /g' /proc/self/uid_map)"
        touch /own && chown 7:8 /own && echo "owns $$(stat -c %u:%g /own)"
        touch /common/file && chown 5:6 /common/file && echo "shares $$(stat -c %u:%g /common/file)"
        echo "has $$(stat -c %a:%u:%g /page) with $$(cat /page)"
        echo "has $$(stat -c %u /bin/busybox) as its image"
        echo "in a part" >/part/file && echo "may write to its part of $$(stat -c %u /part)"
        echo "listens to $$(cat /proc/sys/net/core/somaxconn)"
        echo "sees $$(ls /sys/class/net | tr '\n' ' ')"
        echo "writes to what it opens" >/dev/stdout
        exec sleep 123456
    init: true
    stop_grace_period: 0s
    sysctls: {net.core.somaxconn: 321}
    configs: [{source: page, target: /page, uid: '5', mode: 0440}]
    tmpfs: [/scratch]
    volumes:
      - common:/common
      - {type: volume, source: common, target: /part, volume: {subpath: some/part}}
    healthcheck: {test: '[ "$$(id -u)" = 0 ] && touch /scratch/x', interval: 10m, start_period: 5m, start_interval: 1s}
  neighbour:
    image: registry.lab:5000/busybox:1
    command:
      - sh
      - -c
      - |
        echo "shares $$(stat -c %u:%g /common/file) and what is $$(cat /common/some/part/file)"
        echo "has only $$(ls /some)"
        for process in /proc/[0-9]*; do
          grep -q 123456 $$process/cmdline 2>/dev/null && echo "sees $$(stat -c %u $$process)"
        done
        exec sleep 100000
    stop_grace_period: 0s
    pid: host
    volumes:
      - common:/common
      - {type: volume, source: common, target: /some, read_only: true, volume: {subpath: some}}
    depends_on: {stranger: {condition: service_healthy}}
"#;

fn the_root_of_a_service_can_be_nobody_on_its_machine(cluster: &Cluster) {
    let refused = cluster.push(&USERS.replace("userns_mode: auto", "userns_mode: auto\n    pid: host"));
    let refused = refused.failed().stderr();
    assert!(refused.contains("cannot have one of the machine's namespaces"), "{refused}");
    cluster.push(USERS).ok();
    cluster.wait_for_running("neighbour", 1, STARTING);
    let words = [
        "is 0, on the machine",
        "owns 7:8",
        "shares 5:6",
        "has 440:5:0 with written in the file",
        "has 0 as its image",
        "may write to its part of 0",
        "listens to 321",
        "sees eth0 lo",
        "writes to what it opens",
    ];
    cluster.wait_for_words("stranger", &words, Duration::from_secs(30));
    let said = cluster.hivemind(["logs", "stranger"]).ok().stdout();
    let map = said.lines().find_map(|line| line.split_once("on the machine "));
    let map: Vec<u32> = map.unwrap().1.split_whitespace().map(|word| word.parse().unwrap()).collect();
    let [0, first, 65_536] = map[..] else { panic!("{map:?}") };
    assert!(first >= 65_536, "{first}");
    // The one that shares the machine's users sees whose files and processes they are there.
    let words = ["shares 5:6 and what is in a part", "has only part", &format!("sees {first}\n")];
    cluster.wait_for_words("neighbour", &words, Duration::from_secs(30));
    let exec = ["exec", "stranger", "--", "sh", "-c", "id -u; stat -c %u:%g /own"];
    assert_eq!(cluster.hivemind(exec).ok().stdout(), "0\n7:8\n");
    cluster.hivemind(["remove", "stranger", "neighbour", "--yes"]).ok();
}

fn a_command_has_a_terminal_if_it_wants_one(cluster: &Cluster) {
    cluster
        .push(
            "services:\n  typist:\n    image: registry.lab:5000/busybox:1\n    tty: true\n    stdin_open: true\n    \
             command: [sh, -c, '[ -t 1 ] && [ -t 2 ] && echo on a terminal, $$TERM; echo to stderr >&2; cat; echo has read']\n    \
             stop_grace_period: 0s\n    healthcheck: {test: '! [ -t 1 ]', start_interval: 1s}\n",
        )
        .ok();
    cluster.wait_for_running("typist", 1, STARTING);
    let words = ["on a terminal, xterm", "to stderr"];
    cluster.wait_for_words("typist", &words, Duration::from_secs(30));
    let said = cluster.hivemind(["logs", "typist"]).ok().stdout();
    assert!(!said.contains("has read"), "it waits for somebody to type: {said}");
    somebody_types_at_it(cluster);
}

/// The command reads what is typed, goes on when who typed is gone, and ends when its input does.
fn somebody_types_at_it(cluster: &Cluster) {
    // Once as the terminal's echo, and once from the command, which goes on when the visitor is gone.
    let (mut client, stdin) = cluster.attach("typist", "first words\n", "first words\nfirst words\n");
    client.kill().unwrap();
    client.wait().unwrap();
    drop(stdin);
    let (mut client, _stdin) = cluster.attach("typist", "second\n\x04", "has read");
    assert!(client.wait().unwrap().success(), "it ends with the command, as that ended");
}

/// A provider, which writes down how it is called.
const CLOUD: &str = r#"#!/bin/sh
echo "$@" >>"$(dirname "$0")/calls"
case "$*" in *" up "*)
    echo '{"type": "info", "message": "making it"}'
    echo '{"type": "setenv", "message": "URL=cloud://base:1"}'
    echo '{"type": "addhost", "message": "cloud=192.0.2.9"}'
esac
"#;

const PROVIDED: &str = r#"
name: provided
services:
  base:
    provider: {type: cloud, options: {size: 7}}
  asker:
    image: registry.lab:5000/busybox:1
    command: [sh, -c, 'echo "asks $$BASE_URL at $$(sed -n "s/[[:space:]]*cloud$$//p" /etc/hosts)"; exec sleep 100000']
    stop_grace_period: 0s
    depends_on: [base]
"#;

fn a_program_provides_a_service_and_tells_those_that_depend_on_it(cluster: &Cluster) {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("cloud");
    std::fs::write(&program, CLOUD).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let file = folder.path().join("compose.yaml");
    std::fs::write(&file, PROVIDED).unwrap();
    let file = file.to_str().unwrap();
    let missing = cluster.hivemind(["push", file]).failed().stderr();
    assert!(missing.contains("there is no such program"), "{missing}");

    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let run = |arguments: &[&str]| {
        let mut command = cluster.command(arguments);
        command.env("PATH", &path);
        Run::of(command).ok()
    };
    assert!(run(&["push", file]).stderr().contains("making it"));
    cluster.wait_for_running("asker", 1, STARTING);
    cluster.wait_for_words("asker", &["asks cloud://base:1 at 192.0.2.9"], Duration::from_secs(30));
    // Without asking it, what it told counts; and asked again, it says the same.
    let plan = cluster.hivemind(["plan", file, "--exit-code"]).ok();
    assert!(plan.stderr().contains("base is provided by cloud"), "{}", plan.stderr());
    assert!(run(&["push", file]).stdout().contains("unchanged"));
    run(&["remove", "--file", file, "--yes"]);
    let calls = std::fs::read_to_string(folder.path().join("calls")).unwrap();
    let call = |action: &str| format!("compose --project-name=provided {action} --size=7 base\n");
    assert_eq!(calls, [call("up"), call("up"), call("down")].concat());
}

fn a_service_without_a_network_has_none(cluster: &Cluster) {
    cluster
        .push(
            "services:\n  hermit:\n    image: registry.lab:5000/busybox:1\n    network_mode: none\n    cpu_count: 2\n    stop_grace_period: 0s\n    \
             command: [sh, -c, 'echo has $$(ls /sys/class/net); echo of the CPU $$(cat /sys/fs/cgroup/cpu.max); ping -c 1 -W 1 127.0.0.1 >/dev/null && echo talks to itself; exec sleep 100000']\n",
        )
        .ok();
    cluster.wait_for_running("hermit", 1, STARTING);
    cluster.wait_for_words(
        "hermit",
        &["has lo\n", "of the CPU 200000 100000", "talks to itself"],
        Duration::from_secs(30),
    );
}

fn a_service_on_the_machines_network_is_reached_there_and_by_its_name(cluster: &Cluster) {
    let home = "services:\n  home:\n    image: registry.lab:5000/nginx:1\n    network_mode: host\n    stop_grace_period: 0s\n    \
                x-hivemind: {health: 'http://:80/'}\n";
    let refused = cluster.push(home).failed().stderr();
    assert!(refused.contains("hivemind namespaces allow default host-network"), "{refused}");
    cluster.hivemind(["namespaces", "allow", "default", "host-network"]).ok();
    cluster.push(home).ok();
    let replica = cluster.wait_for_running("home", 1, STARTING).remove(0);
    // At the machine's own address, though nothing is published.
    let said = cluster.get(&format!("http://{}:80/", cluster.machine_of(&replica).address())).unwrap();
    assert!(said.contains("version 1"), "{said}");
    let other = cluster.machines.iter().find(|m| m.address() != cluster.machine_of(&replica).address());
    let nodes = items(&cluster.json(&["nodes"]).unwrap());
    let address = other.unwrap().address().to_string();
    let hostname =
        nodes.iter().find(|node| node["address"] == address).unwrap()["hostname"].as_str().unwrap();
    cluster
        .push(&format!(
            "services:\n  visitor:\n    image: registry.lab:5000/busybox:1\n    stop_grace_period: 0s\n    \
             command: [sh, -c, 'until timeout 3 wget -q -O - http://home/; do sleep 1; done; exec sleep 100000']\n    \
             deploy: {{placement: {{constraints: ['node.hostname == {hostname}']}}}}\n"
        ))
        .ok();
    cluster.wait_for_words("visitor", &["version 1"], STARTING);
    cluster.hivemind(["remove", "home", "visitor", "--yes"]).ok();
}

fn what_is_kept_of_the_output_is_as_much_as_the_file_says(cluster: &Cluster) {
    let talker = |name: &str, words: &str, logging: &str| {
        format!(
            "  {name}:\n    image: registry.lab:5000/busybox:1\n    stop_grace_period: 0s\n    logging: {logging}\n    \
             command: [sh, -c, '{words} | fold -w 100; echo the end; exec sleep 100000']\n"
        )
    };
    // 500,000 bytes each, of which none can be made smaller, and all.
    let (random, same) =
        ("head -c 375000 /dev/urandom | base64 -w 0", "head -c 500000 /dev/zero | tr \"\\0\" x");
    let most = "{options: {max-size: 100k, max-file: 2}}";
    let (limited, repeating) = (talker("limited", random, most), talker("repeating", same, most));
    let silent = talker("silent", same, "{driver: none}");
    cluster.push(&format!("services:\n{limited}{repeating}{silent}")).ok();
    cluster.wait_for_words("limited", &["the end"], STARTING);
    cluster.wait_for_words("repeating", &["the end"], STARTING);
    cluster.wait_for_running("silent", 1, STARTING);
    let bytes = |name: &str| cluster.hivemind(["logs", name, "--tail", "1000000"]).ok().stdout().len();
    let kept = bytes("limited");
    assert!((50_000..250_000).contains(&kept), "{kept} bytes of 500,000");
    assert!(bytes("repeating") > 500_000, "older output is compressed");
    assert_eq!(bytes("silent"), 0);
}

fn a_global_service_has_one_replica_on_each_machine(cluster: &Cluster) {
    cluster
        .push(
            "services:\n  everywhere:\n    image: registry.lab:5000/busybox:1\n    \
             command: [sleep, '100000']\n    stop_grace_period: 0s\n    deploy: {mode: global}\n",
        )
        .ok();
    let replicas = cluster.wait_for_running("everywhere", 2, STARTING);
    let nodes: BTreeSet<_> = replicas.iter().map(|replica| &replica.node).collect();
    assert_eq!(nodes.len(), 2, "{replicas:#?}");
}

fn a_check_asks_by_http_or_tcp_where_there_is_no_command_to_run(cluster: &Cluster) {
    cluster
        .push(
            "services:\n  asked:\n    image: registry.lab:5000/nginx:1\n    x-hivemind: {health: 'http://:80/'}\n  \
             reached:\n    image: registry.lab:5000/redis:1\n    x-hivemind: {health: 'tcp://:6379'}\n  \
             wrong:\n    image: registry.lab:5000/nginx:1\n    x-hivemind: {health: 'http://:80/nothing-here'}\n    \
             healthcheck: {interval: 1s, retries: 2}\n",
        )
        .ok();
    cluster.wait_for_running("asked", 1, STARTING);
    cluster.wait_for_running("reached", 1, STARTING);
    wait::until("what answers 404 is restarted, and ps says why", STARTING, || {
        let replicas = cluster.replicas("wrong")?;
        let told = replicas.iter().any(|r| r.restarts > 0 && r.reason.contains("404"));
        if told { Ok(()) } else { Err(format!("{replicas:#?}")) }
    });
}

fn services_wait_for_what_they_depend_on_also_on_other_machines(cluster: &Cluster) {
    let nodes = items(&cluster.json(&["nodes"]).unwrap());
    let first = nodes[0]["hostname"].as_str().unwrap();
    cluster.push(&WAITING.replace("FIRST", first)).ok();
    wait::until("it waits, and says for whom", STARTING, || {
        let replicas = cluster.replicas("web")?;
        let waits =
            replicas.iter().any(|r| r.phase == "assigned" && r.reason == "waits for db to be healthy");
        if waits { Ok(()) } else { Err(format!("{replicas:#?}")) }
    });
    cluster.wait_for_running("web", 1, STARTING);
    let phase = |workload: &str| cluster.replicas(workload).unwrap()[0].phase.clone();
    assert_eq!((phase("db").as_str(), phase("setup").as_str()), ("running", "completed"));
    // It found the one it waited for by both of its other names.
    wait::until("it has asked", Duration::from_secs(30), || {
        let said = cluster.hivemind(["logs", "web"]).ok().stdout();
        if said.matches("is ready").count() == 2 { Ok(()) } else { Err(said) }
    });
}

fn what_a_compose_file_asks_for_shows_inside_its_containers(cluster: &Cluster) {
    cluster.push(LOOKING).ok();
    // Its health check passes only after a while, and would be asked again in ten minutes.
    let replica = wait::until("its check has not passed yet", STARTING, || {
        let replicas = cluster.replicas("looker")?;
        let found = replicas.iter().find(|r| r.reason.contains("has not passed yet")).cloned();
        found.ok_or_else(|| format!("{replicas:#?}"))
    })
    .0;
    assert_eq!(replica.phase, "starting");
    cluster.wait_for_running("looker", 1, STARTING);
    let said = wait::until("it has said all", Duration::from_secs(30), || {
        let said = cluster.hivemind(["logs", "looker"]).ok().stdout();
        if said.contains("post_start=") { Ok(said) } else { Err(said) }
    })
    .0;
    let told: BTreeMap<&str, &str> = said
        .lines()
        .filter_map(|line| line.split_once('|').map_or(line, |(_, text)| text).trim().split_once('='))
        .collect();
    let is = |key: &str, wanted: &str| {
        let found = told.get(key).map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "));
        assert_eq!(found.as_deref(), Some(wanted), "{key}\n{said}");
    };
    let has = |key: &str, wanted: &str| {
        assert!(told.get(key).is_some_and(|text| text.contains(wanted)), "{key}: {wanted}\n{said}");
    };
    // CHOWN is bit 0, NET_BIND_SERVICE 10 and IPC_LOCK 14 (capabilities(7)).
    is("cap_drop", "0000000000004401");
    is("cap_bound", "0000000000004401");
    is("security_opt", "1");
    is("cpuset", "0");
    // 2048 shares in the terms of control groups, version 2, are twice what one core has.
    let weight: u32 = told["cpu_shares"].parse().unwrap();
    assert!((70..=250).contains(&weight), "{weight}");
    is("cpu_quota", "30000 100000");
    is("oom_score_adj", "700");
    is("memswap", "67108864 33554432");
    is("storage_opt", "quota exceeded");
    is("platform", "x86_64");
    is("blkio", "rbps=max wbps=20971520 riops=5000 wiops=max");
    is("mac", "02:42:ac:11:65:43");
    let elsewhere =
        "services:\n  elsewhere:\n    image: registry.lab:5000/busybox:1\n    platform: linux/arm64\n";
    cluster.push(elsewhere).ok();
    wait::until("there is no machine of its platform, and ps says so", STARTING, || {
        let replicas = cluster.replicas("elsewhere")?;
        let told = replicas.iter().any(|r| r.reason.contains("are not node.platform.arch arm64"));
        if told { Ok(()) } else { Err(format!("{replicas:#?}")) }
    });
    is("ulimits", "1000 2000 files");
    is("sysctls", "321");
    is("domainname", "shop.example");
    is("shm_size", "size=3072k");
    has("tmpfs", "size=2048k");
    has("tmpfs", "mode=711");
    has("tmpfs", "noexec");
    has("group_add", "4711");
    is("extra_hosts", "192.0.2.7");
    has("gateway", "10.42.");
    is("dns", "search default.hive.internal corp.example options ndots:1 timeout:7");
    is("configs", "written in the file");
    is("mode", "440:5:0");
    is("written", "no");
    is("init", "hivemind-init");
    is("post_start", "hooked in /srv");

    // A new content is a new version.
    cluster.push(&LOOKING.replace("written in the file", "written anew")).ok();
    cluster.wait_for_words("looker", &["is asked to go", "configs=written anew"], STARTING);
}
