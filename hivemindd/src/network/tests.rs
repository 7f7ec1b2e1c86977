//! The overlay in a real kernel, in a network namespace of the test's own.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use hivemind_core::event::{LocalNetwork, PeerNetwork};
use hivemind_spec::id::NodeId;
use hivemind_spec::workload::Protocol;

use super::*;

/// Runs `test` in a fresh network namespace. Without the right to make one there is nothing to
/// test with; the end-to-end tests then cover the same.
pub(crate) fn in_own_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            eprintln!("skipped: no network namespace can be made here: {error}");
            return;
        }
        // Threads that the runtime makes are in the namespace of the one that makes them.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

pub(crate) fn output(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn peer(n: u8) -> (NodeId, PeerNetwork) {
    let subnet = Ipv4Addr::new(10, 42, n, 0);
    let peer = PeerNetwork {
        subnet,
        prefix: 24,
        vtep: subnet,
        vtep_mac: [2, 0, 0, 0, 0, n],
        underlay: Ipv4Addr::new(192, 0, 2, n).into(),
    };
    (NodeId([n; 16]), peer)
}

/// Makes the network of a node whose port 8080 leads to port 80 of a container at 10.42.1.2.
pub(crate) async fn node_with_a_published_port() {
    let mut plan = plan(&[]);
    let endpoint = (Ipv4Addr::new(10, 42, 1, 2), 80);
    plan.published = BTreeMap::from([((Protocol::Tcp, 8080), [endpoint].into())]);
    apply(&plan, &mut Ports::default()).await.unwrap();
}

fn plan(peers: &[u8]) -> NetworkPlan {
    NetworkPlan {
        local: Some(LocalNetwork {
            subnet: Ipv4Addr::new(10, 42, 1, 0),
            prefix: 24,
            gateway: Ipv4Addr::new(10, 42, 1, 1),
            range: (Ipv4Addr::new(10, 42, 0, 0), 16),
            vni: 4711,
            underlay: Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))),
            vtep_mac: [2, 0, 0, 0, 0, 1],
        }),
        peers: peers.iter().map(|n| peer(*n)).collect(),
        published: BTreeMap::from([(
            (Protocol::Tcp, 8080),
            [(Ipv4Addr::new(10, 42, 1, 2), 80), (Ipv4Addr::new(10, 42, 2, 2), 80)].into(),
        )]),
    }
}

#[test]
fn nothing_is_asked_of_the_kernel_before_its_modules_are_loaded() {
    in_own_namespace(|| async {
        let loaded = Cell::new(false);
        let has_bridge = || output("ip", "-brief link").contains(BRIDGE);
        let modules = async {
            tokio::time::sleep(SETTLE).await;
            assert!(!has_bridge());
            loaded.set(true);
        };
        let (_, last_plan) = watch::channel(plan(&[2]));
        run(modules, last_plan, async { assert!(loaded.get()) }).await;
        assert!(has_bridge());
    });
}

#[test]
fn the_kernel_takes_the_plan_and_a_second_application_changes_nothing() {
    in_own_namespace(|| async {
        let mut ports = Ports::default();
        assert!(!apply(&plan(&[2, 3]), &mut ports).await.unwrap().is_empty());
        assert_eq!(apply(&plan(&[2, 3]), &mut ports).await.unwrap(), []);

        let vxlan = output("ip", "-d link show hive-vxlan");
        for part in ["vxlan id 4711", "local 192.0.2.1", "dstport 4789", "nolearning", "mtu 1450"] {
            assert!(vxlan.contains(part), "{part}: {vxlan}");
        }
        assert!(output("ip", "addr show hive0").contains("inet 10.42.1.1/24"));
        let routes = output("ip", "route");
        for n in [2, 3] {
            let route = format!("10.42.{n}.0/24 via 10.42.{n}.0 dev hive-vxlan");
            assert!(routes.contains(&route), "{routes}");
        }
        let forwarding = output("bridge", "fdb show dev hive-vxlan");
        assert!(forwarding.contains("02:00:00:00:00:02 dst 192.0.2.2"), "{forwarding}");
        assert!(output("ip", "neigh show dev hive-vxlan").contains("10.42.3.0 lladdr 02:00:00:00:00:03"));
    });
}

#[test]
fn what_was_tampered_with_in_the_kernel_is_repaired() {
    in_own_namespace(|| async {
        let mut ports = Ports::default();
        apply(&plan(&[2, 3]), &mut ports).await.unwrap();
        for tampering in [
            "link del hive-vxlan",
            "link set hive-vxlan down",
            "link set hive0 down",
            "link del hive0",
            "addr del 10.42.1.1/24 dev hive0",
            "addr add 10.99.0.1/24 dev hive0",
            "route del 10.42.2.0/24",
            "route replace 10.42.2.0/24 via 10.42.3.0 dev hive-vxlan onlink",
            "route add 10.43.0.0/24 via 10.42.3.0 dev hive-vxlan onlink",
            "neigh del 10.42.2.0 dev hive-vxlan",
            "neigh replace 10.42.2.0 lladdr 02:00:00:00:00:99 dev hive-vxlan",
        ] {
            output("ip", tampering);
            let changes = apply(&plan(&[2, 3]), &mut ports).await.unwrap();
            assert!(!changes.is_empty(), "{tampering} was not noticed");
            assert_eq!(apply(&plan(&[2, 3]), &mut ports).await.unwrap(), [], "after {tampering}");
        }
        for tampering in [
            "fdb del 02:00:00:00:00:02 dev hive-vxlan dst 192.0.2.2",
            "fdb replace 02:00:00:00:00:02 dev hive-vxlan dst 192.0.2.99",
            "fdb append 02:00:00:00:00:42 dev hive-vxlan dst 192.0.2.42",
        ] {
            output("bridge", tampering);
            let changes = apply(&plan(&[2, 3]), &mut ports).await.unwrap();
            assert!(!changes.is_empty(), "{tampering} was not noticed");
            assert_eq!(apply(&plan(&[2, 3]), &mut ports).await.unwrap(), [], "after {tampering}");
        }
    });
}

#[test]
fn what_was_tampered_with_is_noticed_by_itself_and_soon() {
    in_own_namespace(|| async {
        let (_plan, changes) = watch::channel(plan(&[2, 3]));
        let keeping = tokio::spawn(follow(changes));
        // Far below the interval of comparisons that nobody asked for.
        let soon = REPAIR_INTERVAL / 20;
        let healed = |program: &'static str, question: &'static str, part: &'static str| async move {
            let waiting = async {
                while !output(program, question).contains(part) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            let healed = tokio::time::timeout(soon, waiting).await;
            assert!(healed.is_ok(), "{program} {question} does not show {part}");
        };
        healed("ip", "route", "10.42.3.0/24 via 10.42.3.0 dev hive-vxlan").await;
        for (tool, tampering, question, part) in [
            ("ip", "route del 10.42.2.0/24", "route", "10.42.2.0/24 via"),
            ("ip", "addr del 10.42.1.1/24 dev hive0", "addr", "inet 10.42.1.1/24"),
            ("ip", "neigh del 10.42.2.0 dev hive-vxlan", "neigh", "10.42.2.0 dev hive-vxlan lladdr"),
            ("bridge", "fdb del 02:00:00:00:00:02 dev hive-vxlan dst 192.0.2.2", "fdb", "dst 192.0.2.2"),
            ("ip", "link set hive0 down", "link show hive0", "MULTICAST,UP"),
            ("ip", "link del hive-vxlan", "route", "10.42.3.0/24 via 10.42.3.0 dev hive-vxlan"),
            ("ip", "link del hive0", "addr", "inet 10.42.1.1/24"),
        ] {
            // Its last work must be over, or it would notice by that.
            tokio::time::sleep(2 * SETTLE).await;
            output(tool, tampering);
            healed(tool, question, part).await;
        }
        keeping.abort();
    });
}

#[test]
fn a_peer_that_leaves_the_plan_leaves_nothing_behind() {
    in_own_namespace(|| async {
        let mut ports = Ports::default();
        apply(&plan(&[2, 3]), &mut ports).await.unwrap();
        apply(&plan(&[2]), &mut ports).await.unwrap();
        assert!(!output("ip", "route").contains("10.42.3.0"));
        assert!(!output("ip", "neigh show dev hive-vxlan").contains("10.42.3.0"));
        assert!(!output("bridge", "fdb show dev hive-vxlan").contains("192.0.2.3"));
    });
}

#[test]
fn nft_takes_the_rules_and_replaces_them_as_a_whole() {
    in_own_namespace(|| async {
        let mut ports = Ports::default();
        apply(&plan(&[2]), &mut ports).await.unwrap();
        let rules = output("nft", "list table ip hivemind");
        for part in ["numgen random mod 2", "dnat to 10.42.1.2:80", "dnat to 10.42.2.2:80", "masquerade"] {
            assert!(rules.contains(part), "{part}: {rules}");
        }
        let none = NetworkPlan { published: BTreeMap::new(), ..plan(&[2]) };
        apply(&none, &mut ports).await.unwrap();
        let rules = output("nft", "list table ip hivemind");
        assert!(!rules.contains(":80") && rules.contains("masquerade"), "{rules}");
    });
}

#[test]
fn names_of_containers_interfaces_fit_the_kernel_and_differ_from_the_nodes_own() {
    let name = container_interface(Ipv4Addr::new(10, 42, 255, 254));
    assert_eq!(name, "hv0a2afffe");
    assert!(name.len() < nix::libc::IFNAMSIZ);
    for own in [BRIDGE, VXLAN] {
        assert!(!own.starts_with(CONTAINER_PREFIX));
    }
}
