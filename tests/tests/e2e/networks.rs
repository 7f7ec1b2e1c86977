//! Networks: who reaches whom on one machine and across two, by address and by name.

use std::time::Duration;

use hivemind_tests::cluster::{Cluster, STARTING};
use hivemind_tests::command::items;
use hivemind_tests::wait;

/// Each service says whom it reaches, and says it again when that changes. `$$` is how Compose writes a `$`.
const SERVICES: &str = r#"
x-all: &all
  image: registry.lab:5000/busybox:1
  command:
    - sh
    - -c
    - |
      hostname >/tmp/name
      httpd -p 8000 -h /tmp
      page() { timeout 3 wget -q -O - "http://$$1" 2>/dev/null; }
      mkdir /tmp/at /tmp/names /tmp/outside
      while true; do
        rm -f /tmp/at/* /tmp/names/* /tmp/outside/*
        for subnet in 0 1; do for host in 2 3 4 5 6 7 8 9; do
          page 10.42.$$subnet.$$host:8000/name >/tmp/at/$$subnet.$$host &
        done; done
        for name in web db cache stranger asker database; do
          [ -z "$$(page $$name:8000/name)" ] || touch /tmp/names/$$name &
        done
        [ -z "$$(page MACHINE:8080/name)" ] || touch /tmp/outside/machines &
        [ -z "$$(page registry.lab:5000/v2/)" ] || touch /tmp/outside/names &
        sleep 8
        now="reaches $$(cat /tmp/at/* | sort | xargs), names $$(ls /tmp/names | xargs), outside $$(ls /tmp/outside | xargs)."
        [ "$$now" = "$$before" ] || echo "$$now"
        before="$$now"
      done
  stop_grace_period: 0s
services:
  web:
    <<: *all
    networks: [front, back]
    ports: ['8080:8000']
    deploy: {placement: {constraints: [node.hostname == FIRST]}}
  asker:
    <<: *all
    networks: [front]
    dns: 192.0.2.53
    deploy: {placement: {constraints: [node.hostname != FIRST]}}
  db:
    <<: *all
    networks: {back: {aliases: [database]}}
    deploy: {placement: {constraints: [node.hostname != FIRST]}}
  cache:
    <<: *all
    networks: [back]
    deploy: {placement: {constraints: [node.hostname == FIRST]}}
  stranger:
    <<: *all
    deploy: {placement: {constraints: [node.hostname == FIRST]}}
networks:
  front:
  back: {internal: true}
"#;

#[test]
fn services_reach_those_in_a_network_with_them_on_all_machines_and_nobody_else() {
    let cluster = Cluster::formed("networks", 2);
    let nodes = items(&cluster.json(&["nodes"]).unwrap());
    let text = |node: usize, key: &str| nodes[node][key].as_str().unwrap().to_owned();
    let services = SERVICES.replace("FIRST", &text(0, "hostname")).replace("MACHINE", &text(1, "address"));
    cluster.push(&services).ok();
    for name in ["web", "asker", "db", "cache", "stranger"] {
        cluster.wait_for_running(name, 1, STARTING);
    }
    let says = |name: &str, what: &str| {
        wait::until(&format!("{name} {what}"), Duration::from_secs(120), || {
            let said = cluster.hivemind(["logs", name]).ok().stdout();
            if said.trim_end().ends_with(what) { Ok(()) } else { Err(said) }
        });
    };
    let back = "reaches cache-0 db-0 web-0, names cache database db web, outside .";
    says(
        "web",
        "reaches asker-0 cache-0 db-0 web-0, names asker cache database db web, outside machines names.",
    );
    // Its name servers do not answer, and nobody else is asked in their place.
    says("asker", "reaches asker-0 web-0, names asker web, outside machines.");
    says("db", back);
    says("cache", back);
    says("stranger", "reaches stranger-0, names stranger, outside machines names.");

    // Into another network, and out of it, without a new start.
    let all = ["web", "db", "stranger"];
    let before = all.map(|name| cluster.replicas(name).unwrap());
    let alone = "  stranger:\n    <<: *all\n";
    cluster.push(&services.replace(alone, &format!("{alone}    networks: [back]\n"))).ok();
    let all_four = "reaches cache-0 db-0 stranger-0 web-0, names cache database db stranger web, outside .";
    says("stranger", all_four);
    says("db", all_four);
    cluster.push(&services).ok();
    says("stranger", "reaches stranger-0, names stranger, outside machines names.");
    says("db", back);
    assert_eq!(all.map(|name| cluster.replicas(name).unwrap()), before, "nothing was started anew");
}
