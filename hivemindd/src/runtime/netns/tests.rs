//! Real namespaces on a real bridge, in a network namespace of each test's own.

use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;

use hivemind_core::event::ContainerLabels;
use hivemind_core::isolation::{Endpoint, Isolation, NetworkId};
use hivemind_core::record::{ReplicaId, WorkloadId};
use hivemind_spec::api::Capacity;
use hivemind_spec::id::Digest;
use hivemind_spec::workload::HostNamespace;
use tokio::sync::watch;

use super::*;
use crate::identity::tests::Folder;
use crate::network::isolation;
use crate::network::tests::{in_own_namespace, node_with_a_published_port, output};

fn plan(id: &str, ip: Ipv4Addr) -> ContainerPlan {
    let workload = WorkloadId { namespace: "default".to_owned(), name: "web".to_owned() };
    let labels = ContainerLabels {
        replica: ReplicaId { workload, slot: 0 },
        template: Digest([1; 32]),
        ip,
        restarts: 0,
        asks: Capacity::default(),
    };
    ContainerPlan {
        id: ContainerId(id.to_owned()),
        labels,
        spec: serde_json::from_str(r#"{"image": "registry.lab/web:1"}"#).unwrap(),
        hostname: "web-0".to_owned(),
        ip,
        prefix: 24,
        gateway: Ipv4Addr::new(10, 42, 1, 1),
        search: "default.hive.internal".to_owned(),
        mtu: 1450,
        volumes: Default::default(),
        secrets: Default::default(),
    }
}

/// Whether something that listens in the container can be connected to from outside.
async fn answers(networks: &Networks, container: &ContainerPlan) -> bool {
    let (path, address) = (networks.path(&container.id), (container.ip, 80).into());
    let (told, listener) = oneshot::channel();
    let listen = move || {
        setns(fs::File::open(path)?, CloneFlags::CLONE_NEWNET)?;
        let _ = told.send(TcpListener::bind(address)?);
        Ok(())
    };
    in_thread(listen).await.unwrap();
    let _listener = listener.await.unwrap();
    TcpStream::connect_timeout(&address, Duration::from_secs(2)).is_ok()
}

#[test]
fn a_container_made_anew_is_reached_at_once_though_its_neighbour_keeps_the_bridge_up() {
    in_own_namespace(|| async {
        let folder = Folder::new("netns");
        let networks = Networks { directory: folder.0.clone(), bridge: "hive0".to_owned() };
        for command in ["link add hive0 type bridge", "addr add 10.42.1.1/24 dev hive0", "link set hive0 up"]
        {
            output("ip", command);
        }
        let other = plan("hm-1000000000000000", Ipv4Addr::new(10, 42, 1, 2));
        let restarted = plan("hm-2000000000000000", Ipv4Addr::new(10, 42, 1, 3));
        networks.create(&other, None).await.unwrap();
        networks.create(&restarted, None).await.unwrap();
        assert!(answers(&networks, &restarted).await && answers(&networks, &other).await);
        networks.remove(&restarted.id).await.unwrap();
        networks.create(&restarted, None).await.unwrap();
        assert!(answers(&networks, &restarted).await, "{}", output("ip", "neigh show dev hive0"));
        for container in [&other, &restarted] {
            networks.remove(&container.id).await.unwrap();
        }
    });
}

#[test]
fn a_container_that_comes_before_the_bridge_waits_for_it_and_does_not_fail() {
    in_own_namespace(|| async {
        let folder = Folder::new("netns-early");
        let networks = Networks { directory: folder.0.clone(), bridge: "hive0".to_owned() };
        let early = plan("hm-3000000000000000", Ipv4Addr::new(10, 42, 1, 4));
        let bridge = async {
            sleep(5 * BRIDGE_POLL).await;
            output("ip", "link add hive0 type bridge");
        };
        let (made, ()) = tokio::join!(networks.create(&early, None), bridge);
        made.unwrap();
        networks.remove(&early.id).await.unwrap();
    });
}

#[test]
fn a_container_has_the_hardware_address_it_asks_for_or_no_network_at_all() {
    in_own_namespace(|| async {
        let folder = Folder::new("netns-address");
        let networks = Networks { directory: folder.0.clone(), bridge: "hive0".to_owned() };
        output("ip", "link add hive0 type bridge");
        let mut known = plan("hm-4000000000000000", Ipv4Addr::new(10, 42, 1, 5));
        known.spec.mac_address = Some("02:11:22:33:44:55".to_owned());
        let mut offline = plan("hm-5000000000000000", Ipv4Addr::new(10, 42, 1, 6));
        offline.spec.offline = true;
        let inside = |container: &ContainerPlan| {
            let path = networks.path(&container.id).display().to_string();
            output("nsenter", &format!("--net={path} ip -o link"))
        };
        for container in [&known, &offline] {
            networks.create(container, None).await.unwrap();
        }
        assert!(inside(&known).contains("02:11:22:33:44:55"), "{}", inside(&known));
        let links = inside(&offline);
        assert!(links.lines().count() == 1 && links.contains("lo:") && links.contains(",UP"), "{links}");
        for container in [&known, &offline] {
            networks.remove(&container.id).await.unwrap();
        }
    });
}

#[test]
fn a_container_on_the_machines_network_is_reached_at_its_address_which_goes_with_it() {
    in_own_namespace(|| async {
        let folder = Folder::new("netns-host");
        let networks = Networks { directory: folder.0.clone(), bridge: "hive0".to_owned() };
        for command in ["link add hive0 type bridge", "addr add 10.42.1.1/24 dev hive0", "link set hive0 up"]
        {
            output("ip", command);
        }
        let other = plan("hm-1000000000000000", Ipv4Addr::new(10, 42, 1, 2));
        let mut host = plan("hm-2000000000000000", Ipv4Addr::new(10, 42, 1, 3));
        host.spec.machine.host_namespaces = [HostNamespace::Network].into();
        networks.create(&other, None).await.unwrap();
        // Twice, as after a crash in between.
        networks.create(&host, None).await.unwrap();
        networks.create(&host, None).await.unwrap();
        let listener = TcpListener::bind(("0.0.0.0", 8123)).unwrap();
        let address = SocketAddr::from((host.ip, 8123));
        let from = networks.path(&other.id);
        let connect = move || {
            setns(fs::File::open(&from)?, CloneFlags::CLONE_NEWNET)?;
            TcpStream::connect_timeout(&address, Duration::from_secs(2)).map(drop)
        };
        in_thread(connect.clone()).await.unwrap();
        drop(listener);
        for _ in 0..2 {
            networks.remove(&host.id).await.unwrap();
            assert!(!output("ip", "addr show dev hive0").contains("10.42.1.3"));
        }
        assert!(output("ip", "addr show dev hive0").contains("10.42.1.1/24"), "the machine's own stays");
        networks.remove(&other.id).await.unwrap();
    });
}

#[test]
fn a_neighbour_of_the_machine_reaches_published_ports_and_no_others() {
    in_own_namespace(|| async {
        let folder = Folder::new("netns-neighbour");
        let at = |bridge: &str| Networks { directory: folder.0.clone(), bridge: bridge.to_owned() };
        let (node, outside) = (at("hive0"), at("lan0"));
        for command in ["link add lan0 type bridge", "addr add 192.0.2.1/24 dev lan0", "link set lan0 up"] {
            output("ip", command);
        }
        // It sends all that is not on its own network to the node, as somebody who means harm would.
        let neighbour = plan("hm-7000000000000000", Ipv4Addr::new(192, 0, 2, 9));
        outside
            .create(&ContainerPlan { gateway: Ipv4Addr::new(192, 0, 2, 1), ..neighbour.clone() }, None)
            .await
            .unwrap();
        // On a busy computer a first packet may be lost, and the next comes after a second.
        let (open, shut) = (Duration::from_secs(10), Duration::from_millis(500));
        let reaches = async |from: &ContainerPlan, to: &ContainerPlan, asks: (Ipv4Addr, u16), patience| {
            let (listens, asks) = ((to.ip, 80), SocketAddr::from(asks));
            let _listener = inside(node.path(&to.id), move || TcpListener::bind(listens)).await.unwrap();
            let connect = move || TcpStream::connect_timeout(&asks, patience);
            inside(node.path(&from.id), connect).await.is_ok()
        };
        node_with_a_published_port().await;
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let container = plan("hm-8000000000000000", Ipv4Addr::new(10, 42, 1, 2));
        node.create(&container, None).await.unwrap();

        let published = ([192, 0, 2, 1].into(), 8080);
        assert!(reaches(&neighbour, &container, published, open).await, "the published port");
        assert!(reaches(&container, &neighbour, (neighbour.ip, 80), open).await, "the way out");
        assert!(
            !reaches(&neighbour, &container, (container.ip, 80), shut).await,
            "a port that is not published"
        );
        output("nft", "flush chain ip hivemind forward");
        assert!(
            reaches(&neighbour, &container, (container.ip, 80), open).await,
            "there is a way that is closed"
        );
    });
}

/// Does something in a namespace.
async fn inside<T: Send + 'static>(
    path: PathBuf,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (told, result) = oneshot::channel();
    let work = move || {
        setns(fs::File::open(path)?, CloneFlags::CLONE_NEWNET)?;
        let _ = told.send(work());
        Ok(())
    };
    in_thread(work).await?;
    result.await.unwrap()
}

/// A bridge as every node has it, and containers on it: `a` to `d` with addresses from 10.42.1.2 on.
struct Bridged {
    networks: Networks,
    containers: Vec<ContainerPlan>,
    _folder: Folder,
}

/// Where something outside is, which the machine leads to.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

impl Bridged {
    async fn new(name: &str) -> Self {
        let folder = Folder::new(name);
        let networks = Networks { directory: folder.0.clone(), bridge: "hive0".to_owned() };
        for command in [
            "link add hive0 type bridge",
            "addr add 10.42.1.1/24 dev hive0",
            "link set hive0 up",
            "addr add 192.0.2.1/32 dev lo",
            "link set lo up",
        ] {
            output("ip", command);
        }
        let mut containers = Vec::new();
        for n in 2..=5 {
            let container = plan(&format!("hm-{n}000000000000000"), Ipv4Addr::new(10, 42, 1, n));
            networks.create(&container, None).await.unwrap();
            containers.push(container);
        }
        Self { networks, containers, _folder: folder }
    }

    fn container(&self, name: char) -> &ContainerPlan {
        &self.containers["abcd".find(name).unwrap()]
    }

    /// Does something in a container's namespace.
    async fn inside<T: Send + 'static>(
        &self,
        name: char,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        inside(self.networks.path(&self.container(name).id), work).await
    }

    fn run_inside(&self, name: char, command: &str) {
        let path = self.networks.path(&self.container(name).id).display().to_string();
        output("nsenter", &format!("--net={path} {command}"));
    }

    /// Which of the containers one reaches by TCP.
    async fn reached_from(&self, name: char) -> String {
        let mut reached = String::new();
        for other in "abcd".chars().filter(|other| *other != name) {
            let address = (self.container(other).ip, 80).into();
            let listener = self.inside(other, move || TcpListener::bind(address)).await.unwrap();
            let connect = move || TcpStream::connect_timeout(&address, Duration::from_millis(300));
            if self.inside(name, connect).await.is_ok() {
                reached.push(other);
            }
            drop(listener);
        }
        reached
    }

    async fn reaches(&self, name: char, address: Ipv4Addr) -> bool {
        let _listener = TcpListener::bind((address, 81)).unwrap();
        let connect = move || TcpStream::connect_timeout(&(address, 81).into(), Duration::from_millis(300));
        self.inside(name, connect).await.is_ok()
    }

    /// Whether a datagram from `from` at one container comes to `to` at another.
    async fn arrives(&self, sender: char, from: SocketAddr, receiver: char, to: SocketAddr) -> bool {
        let own = self.container(receiver).ip;
        let listen = move || {
            let socket = match to.ip() {
                IpAddr::V4(group) if group.is_multicast() => {
                    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, to.port()))?;
                    socket.join_multicast_v4(&group, &own)?;
                    socket
                }
                _ => UdpSocket::bind(on_interface(to)?)?,
            };
            socket.set_read_timeout(Some(Duration::from_millis(300)))?;
            Ok(socket)
        };
        let socket = self.inside(receiver, listen).await.unwrap();
        let send = move || UdpSocket::bind(on_interface(from)?)?.send_to(b"x", on_interface(to)?);
        self.inside(sender, send).await.unwrap();
        socket.recv(&mut [0; 8]).is_ok()
    }
}

/// The address as the namespace that the thread is in knows it: one of a link needs the interface's number.
fn on_interface(mut address: SocketAddr) -> io::Result<SocketAddr> {
    if let SocketAddr::V6(v6) = &mut address {
        v6.set_scope_id(nix::net::if_::if_nametoindex(INTERFACE)?);
    }
    Ok(address)
}

/// The rules for `a` in `one`, `b` in `one` and `two`, `c` in `two`, and `d` in an internal one; with `more` for `a`.
fn rules(more: &[&str]) -> Isolation {
    let mut isolation = Isolation {
        range: Some((Ipv4Addr::new(10, 42, 0, 0), 16)),
        nodes: [Ipv4Addr::new(10, 42, 1, 0), Ipv4Addr::new(10, 42, 1, 1)].into(),
        ..Isolation::default()
    };
    let a = [&["one"][..], more].concat();
    let containers =
        [(&a[..], true), (&["one", "two"][..], true), (&["two"][..], true), (&["alone"][..], false)];
    for (n, (networks, outside)) in (2..).zip(containers) {
        let address = Ipv4Addr::new(10, 42, 1, n);
        let named = networks.iter().map(|name| NetworkId { namespace: "x".into(), name: (*name).into() });
        for network in named.clone() {
            isolation.members.entry(network).or_default().insert(address);
        }
        isolation
            .endpoints
            .insert(address, Endpoint { networks: named.collect(), outside, ..Endpoint::default() });
    }
    isolation
}

#[test]
fn containers_reach_those_in_their_networks_and_nobody_else() {
    in_own_namespace(|| async {
        let all = Bridged::new("isolation").await;
        // Without rules there is nothing between them, or the rest would show nothing.
        assert_eq!(all.reached_from('a').await, "bcd");
        assert!(all.reaches('d', OUTSIDE).await);

        let (wanted, rules_wanted) = watch::channel(Arc::new(rules(&[])));
        let (in_force, keep) = isolation::keep(rules_wanted);
        let keep = tokio::spawn(keep);
        in_force.wait_for(all.container('a').ip).await.unwrap();
        for (name, reached) in [('a', "b"), ('b', "ac"), ('c', "b"), ('d', "")] {
            assert_eq!(all.reached_from(name).await, reached, "from {name}");
            assert!(answers(&all.networks, all.container(name)).await, "the node does not reach {name}");
            assert!(all.reaches(name, Ipv4Addr::new(10, 42, 1, 1)).await, "{name} does not reach its node");
            assert_eq!(all.reaches(name, OUTSIDE).await, name != 'd', "{name} and the outside");
        }

        wanted.send(Arc::new(rules(&["two"]))).unwrap();
        in_force.wait_for(all.container('a').ip).await.unwrap();
        assert_eq!(all.reached_from('a').await, "bc");
        keep.abort();
    });
}

#[test]
fn containers_ask_the_nodes_name_server_by_dockers_address_too() {
    in_own_namespace(|| async {
        let all = Bridged::new("resolver").await;
        node_with_a_published_port().await;
        let (_wanted, rules_wanted) = watch::channel(Arc::new(rules(&[])));
        let (in_force, keep) = isolation::keep(rules_wanted);
        let keep = tokio::spawn(keep);
        in_force.wait_for(all.container('a').ip).await.unwrap();
        let (resolver, own) = (SocketAddr::from(([127, 0, 0, 11], 53)), ([10, 42, 1, 1], 53));
        let (datagrams, listener) = (
            UdpSocket::bind(SocketAddr::from(own)).unwrap(),
            TcpListener::bind(SocketAddr::from(own)).unwrap(),
        );
        datagrams.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        // `d` reaches nothing outside, and asks all the same.
        for name in ['a', 'd'] {
            let ask = move || {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                socket.send_to(b"x", resolver)?;
                Ok(socket)
            };
            let asks = all.inside(name, ask).await.unwrap();
            let (_, from) = datagrams.recv_from(&mut [0; 8]).unwrap();
            assert_eq!(from.ip(), all.container(name).ip, "who asks is known");
            datagrams.send_to(b"y", from).unwrap();
            asks.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            assert_eq!(asks.recv_from(&mut [0; 8]).unwrap().1, resolver);
            let connect = move || TcpStream::connect_timeout(&resolver, Duration::from_secs(2));
            all.inside(name, connect).await.unwrap();
            listener.accept().unwrap();
            // Its own services keep the port.
            all.inside(name, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 53))).await.unwrap();
        }
        let elsewhere =
            move || TcpStream::connect_timeout(&([127, 0, 0, 11], 80).into(), Duration::from_millis(300));
        let _listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).unwrap();
        assert!(all.inside('a', elsewhere).await.is_err(), "nothing else of the node is there");
        keep.abort();
    });
}

#[test]
fn a_container_gets_round_its_networks_neither_by_a_false_address_nor_by_another_protocol() {
    in_own_namespace(|| async {
        let all = Bridged::new("isolation-tricks").await;
        let address = |name: char| SocketAddr::from((all.container(name).ip, 5000));
        let link_local = |address: &str| SocketAddr::from((address.parse::<Ipv6Addr>().unwrap(), 5000));
        for (name, ip) in [('a', "fe80::a"), ('c', "fe80::c")] {
            all.run_inside(name, &format!("ip -6 addr add {ip}/64 dev eth0 nodad"));
        }
        // `a` pretends to be `b`, of which `c` takes everything.
        all.run_inside('a', "ip addr add 10.42.1.3/32 dev eth0");
        let group = SocketAddr::from(([239, 1, 2, 3], 5000));
        // What it sends to its own loopback comes to that of `c`.
        all.run_inside('a', "ip route del local 127.0.0.1 table local");
        all.run_inside('a', "ip route add 127.0.0.1 via 10.42.1.4 dev eth0 table local");
        let tricks = [
            ("another's loopback", address('a'), SocketAddr::from((Ipv4Addr::LOCALHOST, 5000))),
            ("a false address", address('b'), address('c')),
            ("IPv6", link_local("fe80::a"), link_local("fe80::c")),
            ("a group", address('a'), group),
            ("its own address", address('a'), address('c')),
        ];
        for (trick, from, to) in tricks {
            assert!(all.arrives('a', from, 'c', to).await, "without rules {trick} is no trick");
        }
        let (_wanted, rules_wanted) = watch::channel(Arc::new(rules(&[])));
        let (in_force, keep) = isolation::keep(rules_wanted);
        let keep = tokio::spawn(keep);
        in_force.wait_for(all.container('a').ip).await.unwrap();
        for (trick, from, to) in tricks {
            assert!(!all.arrives('a', from, 'c', to).await, "{trick}");
        }
        // Whom it may reach it reaches by the address that is its own.
        all.run_inside('a', "ip addr del 10.42.1.3/32 dev eth0");
        assert!(all.arrives('a', address('a'), 'b', address('b')).await);
        keep.abort();
    });
}
