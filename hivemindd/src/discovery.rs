//! Finding peers on the local network by multicast DNS (RFC 6762) and DNS service discovery
//! (RFC 6763). Answers are hints, never trusted: who is there is settled by TLS.
//!
//! Each node announces the service `_hivemind._udp` with its cluster's id in the TXT record, and
//! browses for the same. Only the underlay's interface is used, never the overlay's. When the
//! underlay's address changes, everything starts anew: that announces the new address and asks
//! for others at once, which is what a node whose network just came up needs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hivemind_spec::id::{ClusterId, NodeId};
use mdns_sd::{IfKind, ResolvedService, ServiceDaemon, ServiceEvent, ServiceInfo};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

/// The service's type.
const SERVICE: &str = "_hivemind._udp.local.";

/// The TXT record's key with the cluster's id.
const CLUSTER_KEY: &str = "cluster";

/// Instances kept in mind: strangers can announce any number.
const MAX_INSTANCES: usize = 512;

/// Addresses of one instance that are tried.
const MAX_ADDRESSES: usize = 4;

/// How often what is known is told again: whoever was unreachable may be back. Telling costs
/// nothing when it is connected.
const REPEAT: Duration = Duration::from_secs(10);

/// Delay before mDNS is tried again after it failed.
const RETRY: Duration = Duration::from_secs(1);

/// The UDP port of multicast DNS.
const MDNS_PORT: u16 = 5353;

/// Where this node is on the underlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlay {
    /// The interface's name.
    pub interface: String,
    /// The node's address on it.
    pub address: IpAddr,
}

/// What is announced and looked for.
#[derive(Debug, Clone, Copy)]
pub struct Announcement {
    /// The cluster: others are ignored.
    pub cluster: ClusterId,
    /// This node: its own answers are ignored.
    pub node: NodeId,
    /// The UDP port it takes connections on.
    pub port: u16,
}

/// The running discovery; ends when dropped.
pub struct Discovery {
    underlay: watch::Sender<Option<Underlay>>,
    task: JoinHandle<()>,
}

impl Discovery {
    /// Starts. Nothing is sent before [`Discovery::set_underlay`]. Hints go to `hints`; when
    /// nobody takes them, they are dropped and come again.
    pub fn start(announcement: Announcement, hints: mpsc::Sender<SocketAddr>) -> Self {
        Self::on_port(announcement, hints, MDNS_PORT)
    }

    fn on_port(announcement: Announcement, hints: mpsc::Sender<SocketAddr>, mdns_port: u16) -> Self {
        let (underlay, changes) = watch::channel(None);
        let task = tokio::spawn(run(announcement, hints, changes, mdns_port));
        Self { underlay, task }
    }

    /// Tells where the node is now. The same place again changes nothing.
    pub fn set_underlay(&self, underlay: Option<Underlay>) {
        self.underlay.send_if_modified(|current| {
            let changed = *current != underlay;
            *current = underlay;
            changed
        });
    }
}

impl Drop for Discovery {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Stops the mDNS thread when its user goes.
struct Daemon(ServiceDaemon);

impl Drop for Daemon {
    fn drop(&mut self) {
        // Fails only when the thread has ended already.
        let _ = self.0.shutdown();
    }
}

async fn run(
    announcement: Announcement,
    hints: mpsc::Sender<SocketAddr>,
    mut changes: watch::Receiver<Option<Underlay>>,
    mdns_port: u16,
) {
    loop {
        let underlay = changes.borrow_and_update().clone();
        let browsing = async {
            let Some(underlay) = underlay else { return std::future::pending().await };
            if let Err(error) = browse(announcement, &underlay, &hints, mdns_port).await {
                tracing::warn!(%error, interface = underlay.interface, "multicast DNS failed; trying again");
            }
            tokio::time::sleep(RETRY).await;
        };
        tokio::select! {
            () = browsing => {}
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}

/// Announces this node and tells of others until mDNS fails.
async fn browse(
    announcement: Announcement,
    underlay: &Underlay,
    hints: &mpsc::Sender<SocketAddr>,
    mdns_port: u16,
) -> Result<(), mdns_sd::Error> {
    let daemon = Daemon(ServiceDaemon::new_with_port(mdns_port)?);
    daemon.0.disable_interface(IfKind::All)?;
    daemon.0.enable_interface(IfKind::Name(underlay.interface.clone()))?;
    // Changes of addresses are told by `set_underlay`; looking for them would cost idle time.
    daemon.0.set_ip_check_interval(0)?;
    let node = announcement.node.to_string();
    let cluster = announcement.cluster.to_string();
    let mut service = ServiceInfo::new(
        SERVICE,
        &node,
        &format!("{node}.local."),
        underlay.address,
        announcement.port,
        &[(CLUSTER_KEY, cluster.as_str())][..],
    )?;
    // The name is a hash of the node's key: nobody else has it, so a second of probing is saved.
    service.set_requires_probe(false);
    daemon.0.register(service)?;
    let events = daemon.0.browse(SERVICE)?;
    let mut known = Known::default();
    let mut repeat = interval(REPEAT);
    repeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            event = events.recv_async() => match event {
                Ok(event) => known.learn(announcement, &event).into_iter().for_each(|hint| tell(hints, hint)),
                Err(_) => return Ok(()),
            },
            _ = repeat.tick() => known.all().for_each(|hint| tell(hints, hint)),
        }
    }
}

fn tell(hints: &mpsc::Sender<SocketAddr>, hint: SocketAddr) {
    // Dropped when the core is busy: it comes again.
    let _ = hints.try_send(hint);
}

/// Addresses of instances of our cluster, by instance name.
#[derive(Default)]
struct Known(BTreeMap<String, BTreeSet<SocketAddr>>);

impl Known {
    /// Takes note of an event; gives the addresses that are news.
    fn learn(&mut self, announcement: Announcement, event: &ServiceEvent) -> BTreeSet<SocketAddr> {
        match event {
            ServiceEvent::ServiceResolved(service) if is_ours(announcement, service) => {
                let name = service.get_fullname().to_owned();
                let addresses = addresses(service);
                if self.0.len() >= MAX_INSTANCES && !self.0.contains_key(&name) {
                    return BTreeSet::new();
                }
                self.0.insert(name, addresses.clone());
                addresses
            }
            ServiceEvent::ServiceRemoved(_, name) => {
                self.0.remove(name);
                BTreeSet::new()
            }
            _ => BTreeSet::new(),
        }
    }

    fn all(&self) -> impl Iterator<Item = SocketAddr> {
        self.0.values().flatten().copied()
    }
}

/// Whether an answer is another node's of the same cluster.
fn is_ours(announcement: Announcement, service: &ResolvedService) -> bool {
    let cluster = service.get_property_val_str(CLUSTER_KEY).and_then(|id| id.parse::<ClusterId>().ok());
    cluster == Some(announcement.cluster)
        && service.get_port() != 0
        && !service.get_fullname().starts_with(&announcement.node.to_string())
}

fn addresses(service: &ResolvedService) -> BTreeSet<SocketAddr> {
    let usable = |address: &IpAddr| match address {
        IpAddr::V4(v4) => !v4.is_unspecified() && !v4.is_multicast() && !v4.is_broadcast(),
        // Link-local addresses need a scope, which other nodes cannot use.
        IpAddr::V6(v6) => !v6.is_unspecified() && !v6.is_multicast() && !v6.is_unicast_link_local(),
    };
    let addresses: BTreeSet<IpAddr> =
        service.get_addresses().iter().map(|scoped| scoped.to_ip_addr()).filter(usable).collect();
    addresses.into_iter().take(MAX_ADDRESSES).map(|ip| SocketAddr::new(ip, service.get_port())).collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::time::{Instant, timeout};

    use super::*;

    /// Joins are to happen within 5 s; finding each other gets the smaller part of that.
    const SOON: Duration = Duration::from_secs(2);

    fn announcement(cluster: u8, node: u8) -> Announcement {
        Announcement {
            cluster: ClusterId([cluster; 16]),
            node: NodeId([node; 16]),
            port: 7900 + u16::from(node),
        }
    }

    fn loopback() -> Option<Underlay> {
        Some(Underlay { interface: "lo".into(), address: Ipv4Addr::LOCALHOST.into() })
    }

    fn start(cluster: u8, node: u8, mdns_port: u16) -> (Discovery, mpsc::Receiver<SocketAddr>) {
        let (hints, found) = mpsc::channel(16);
        (Discovery::on_port(announcement(cluster, node), hints, mdns_port), found)
    }

    #[tokio::test]
    async fn nodes_of_one_cluster_find_each_other_soon_and_others_never() {
        let port = 15_353;
        let (a, mut a_found) = start(1, 1, port);
        let (other, mut other_found) = start(2, 2, port);
        let (b, mut b_found) = start(1, 3, port);
        a.set_underlay(loopback());
        other.set_underlay(loopback());
        tokio::time::sleep(Duration::from_millis(500)).await;
        // Its network comes up late.
        let up = Instant::now();
        b.set_underlay(loopback());
        let at = |node: u16| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 7900 + node);
        assert_eq!(timeout(SOON, b_found.recv()).await.unwrap(), Some(at(1)));
        assert_eq!(timeout(SOON, a_found.recv()).await.unwrap(), Some(at(3)));
        assert!(up.elapsed() < SOON);
        assert!(timeout(Duration::from_secs(1), other_found.recv()).await.is_err());
        while let Ok(found) = a_found.try_recv() {
            assert_eq!(found, at(3));
        }
    }

    #[tokio::test]
    async fn nothing_is_sent_before_there_is_a_network() {
        let (_a, mut found) = start(1, 1, 15_354);
        let (b, _b_found) = start(1, 2, 15_354);
        b.set_underlay(loopback());
        assert!(timeout(Duration::from_secs(1), found.recv()).await.is_err());
    }

    #[tokio::test]
    async fn a_node_that_changes_its_address_is_announced_again() {
        let port = 15_355;
        let (a, mut found) = start(1, 1, port);
        a.set_underlay(loopback());
        let (b, _b_found) = start(1, 2, port);
        b.set_underlay(loopback());
        assert!(timeout(SOON, found.recv()).await.unwrap().is_some());
        let moved = Ipv4Addr::new(127, 0, 0, 2);
        b.set_underlay(Some(Underlay { interface: "lo".into(), address: moved.into() }));
        let there =
            timeout(SOON, async { while found.recv().await != Some(SocketAddr::new(moved.into(), 7902)) {} });
        assert!(there.await.is_ok());
    }
}
