use hivemind_spec::id::{ClusterId, NodeId};

use super::*;

fn card(name: &str, has_carrier: bool) -> Card {
    Card { name: name.to_owned(), has_carrier }
}

/// One machine of three, with all well.
fn head() -> Head {
    let own = api::Node {
        id: NodeId([7; 16]),
        hostname: "hive-07070707".to_owned(),
        state: NodeState::Ready,
        problems: Vec::new(),
        leader: true,
        cordoned: false,
        address: "192.0.2.7".to_owned(),
        api: "192.0.2.7:7443".to_owned(),
        subnet: "10.42.0.0/24".to_owned(),
        version: "0.1.0".to_owned(),
        release: None,
        update: None,
        labels: Vec::new().into_iter().collect(),
        capacity: api::Capacity::default(),
        requested: api::Capacity::default(),
        replicas: 2,
        started_ms: 0,
        enrolled_ms: 0,
    };
    let status = api::Status {
        cluster: ClusterId([1; 16]),
        cluster_name: "home".to_owned(),
        node: own.id,
        leader: Some(own.id),
        nodes_ready: 3,
        nodes: 3,
        replicas_running: 5,
        replicas: 5,
        map_digest: String::new(),
        problems: Vec::new(),
    };
    let underlay = Underlay {
        interface: "eth0".to_owned(),
        address: "192.0.2.7".parse().unwrap(),
        prefix: 24,
        gateway: Some("192.0.2.1".parse().unwrap()),
        dns: Vec::new(),
        ntp: Vec::new(),
    };
    Head {
        leader: Some(own.hostname.clone()),
        hostname: own.hostname.clone(),
        own: Some(own),
        status,
        running: 2,
        network: Network::Up(underlay),
        machine: Machine {
            up_ms: 3 * 3_600_000 + 720_000,
            processors: 4,
            memory_bytes: 1 << 30,
            free_bytes: 3 << 28,
        },
    }
}

fn texts(head: &Head) -> Vec<String> {
    head.rows(80).into_iter().map(|row| row.text.trim_end().to_owned()).collect()
}

#[test]
fn a_machine_that_is_well_says_where_it_is_and_what_it_runs() {
    let shown = head().rows(80);
    assert_eq!(shown.len(), HEAD);
    assert_eq!(shown[0].look, Look::Good);
    assert_eq!(shown[0].text.len(), 80);
    assert!(shown[0].text.ends_with(" ready "));
    assert_eq!(
        texts(&head())[1..8],
        [
            "",
            " cluster    home: 3 of 3 machines ready; hive-07070707 (this machine) leads",
            " network    192.0.2.7/24 on eth0, gateway 192.0.2.1",
            " release    cannot be updated: the machine was started without a boot menu",
            " workloads  2 of 2 replicas running here, 5 of 5 in the cluster",
            " machine    up 3 h 12 min; 4 processors, 256 of 1024 MiB of memory in use",
            "",
        ]
    );
    assert_eq!(shown[HEAD - 1].text, "-".repeat(80));
}

#[test]
fn without_a_network_it_says_what_is_missing() {
    let cases = [
        (vec![], None, false, "no network card is found"),
        (vec![card("eth0", false), card("eth1", false)], None, false, "no cable is plugged into eth0, eth1"),
        (vec![card("eth0", true)], None, false, "eth0 is up, and no DHCP server has answered"),
        (vec![card("eth0", true)], None, true, "the configured address cannot be set on eth0"),
        (vec![card("eth0", true)], Some("enp3s0"), false, "names enp3s0, and there is only eth0"),
        (vec![card("eth0", true), card("eth1", false)], Some("eth1"), false, "no cable is plugged into eth1"),
    ];
    for (cards, wanted, is_static, says) in cases {
        let wanted = wanted.map(str::to_owned);
        let head = Head { network: Network::Down { cards, wanted, is_static }, ..head() };
        let rows = head.rows(80);
        assert!(rows[0].text.ends_with(" no network ") && rows[0].look == Look::Bad, "{}", rows[0].text);
        assert!(rows[3].text.contains(says) && rows[3].look == Look::Alarm, "{}", rows[3].text);
    }
}

#[test]
fn what_is_wrong_is_told_its_own_first_and_how_much_more_there_is() {
    let mut head = head();
    let own = head.own.as_mut().unwrap();
    own.state = NodeState::NotReady;
    own.problems = vec!["containerd does not answer: connection refused".to_owned()];
    head.status.problems = vec![
        "node hive-07070707 is not ready: containerd does not answer: connection refused".to_owned(),
        "node hive-12 is down: last heard of 5 min ago".to_owned(),
        "x".repeat(200),
        "one".to_owned(),
        "two".to_owned(),
    ];
    let rows = head.rows(80);
    assert!(rows[0].text.ends_with(" not ready ") && rows[0].look == Look::Bad);
    let told: Vec<_> = rows[7..].iter().map(|row| row.text.as_str()).collect();
    assert_eq!(told[0], " ! this machine: containerd does not answer: connection refused");
    assert_eq!(told[1], " ! node hive-12 is down: last heard of 5 min ago");
    assert_eq!(told[2], format!(" ! {}...", "x".repeat(74)));
    assert_eq!(told[3], " and 2 more: `hivemind status` lists them");
    assert_eq!(told[4], "-".repeat(80));
}

#[test]
fn a_machine_that_has_not_joined_yet_shows_that() {
    let head = Head { own: None, leader: None, running: 0, ..head() };
    let shown = texts(&head);
    assert!(shown[0].ends_with(" joins") && shown[0].contains("hive-07070707"));
    assert!(shown[2].ends_with("no leader"));
}

#[test]
fn a_narrow_screen_makes_no_difference_but_that_less_is_seen() {
    for columns in [0, 10, 40] {
        assert_eq!(head().rows(columns).len(), HEAD);
    }
}
