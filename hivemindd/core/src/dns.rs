//! The zone `hive.internal`: names of workloads and replicas, and who answers to them.
//!
//! ```text
//! NAME.NAMESPACE.hive.internal               A    all serving replicas
//! LINK.NAMESPACE.hive.internal               A    those of the workload that a document links to
//! NAME, LINK                                      the same, for containers of the namespace
//! SLOT.NAME.NAMESPACE.hive.internal          A    one replica
//! _PORT._PROTO.NAME.NAMESPACE.hive.internal  SRV  port and per-replica names
//! d.c.b.a.in-addr.arpa                       PTR  the replica's name
//! ```
//!
//! A replica's name is `SLOT.NAME` and not `NAME-SLOT`, because the latter may be another
//! workload's name. Answers never name a replica on a node known dead, nor to a container a workload that it does
//! not reach ([`crate::isolation`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use hivemind_spec::workload::Protocol;

use crate::cluster::{Cluster, Liveness, Workload};
use crate::event::Zone;
use crate::isolation::{self, Endpoint};
use crate::record::{DNS_APEX, WorkloadId};

/// The zone as it should be answered now.
pub fn zone(cluster: &Cluster, liveness: &Liveness) -> Zone {
    let mut zone = Zone::default();
    for (id, workload) in &cluster.workloads {
        put_in(&mut zone, names(cluster, liveness, id, workload));
        let named =
            |name: &str| WorkloadId { namespace: id.namespace.clone(), name: name.to_owned() }.dns_name();
        let mut alias = |alias: &str, network, target| {
            zone.aliases.entry(named(&alias.to_ascii_lowercase())).or_default().insert((network, target));
        };
        for (link, target) in &workload.spec.links {
            alias(link, None, named(target));
        }
        let networks = isolation::networks(cluster, id);
        for network in &networks {
            let attachment = workload.spec.networks.get(&network.name);
            for name in attachment.into_iter().flat_map(|attachment| &attachment.aliases) {
                alias(name, Some(network.clone()), id.dns_name());
            }
        }
        zone.networks.insert(id.dns_name(), networks);
    }
    zone
}

/// Brings up to date what the zone says of these workloads, whose documents and whose nodes' being alive
/// have not changed. Returns whether it says something else now.
pub fn follow(
    zone: &mut Zone,
    cluster: &Cluster,
    liveness: &Liveness,
    changed: &BTreeSet<WorkloadId>,
) -> bool {
    if !has_one_name_per_address(zone, cluster) {
        return renew(zone, cluster, liveness);
    }
    let mut differs = false;
    for id in changed {
        if let Some(workload) = cluster.workloads.get(id) {
            let before = take_out(zone, id, workload);
            let after = names(cluster, liveness, id, workload);
            differs |= before != after;
            put_in(zone, after);
        }
    }
    // Which of two has the name of an address must not depend on which of them came last.
    if !has_one_name_per_address(zone, cluster) {
        renew(zone, cluster, liveness);
    }
    differs
}

/// Makes the zone anew. Returns whether it says something else now.
pub fn renew(zone: &mut Zone, cluster: &Cluster, liveness: &Liveness) -> bool {
    let before = std::mem::replace(zone, self::zone(cluster, liveness));
    *zone != before
}

/// Whether no two replicas claim one address: each workload has a name, and each address one more.
fn has_one_name_per_address(zone: &Zone, cluster: &Cluster) -> bool {
    zone.addresses.len() == cluster.workloads.len() + zone.pointers.len()
}

/// A workload's part of the zone.
fn names(cluster: &Cluster, liveness: &Liveness, id: &WorkloadId, workload: &Workload) -> Zone {
    let name = id.dns_name();
    let (mut services, mut addresses, mut pointers) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
    for port in &workload.spec.container.ports {
        services.push((service_name(port.target, port.protocol, &name), port.target, BTreeSet::new()));
    }
    let mut all = BTreeSet::new();
    for (replica, ip) in cluster.serving(liveness, id) {
        let own = replica.dns_name();
        for (_, port, targets) in &mut services {
            targets.insert((*port, own.clone()));
        }
        all.insert(ip);
        pointers.insert(ip, own.clone());
        addresses.insert(own, [ip].into());
    }
    addresses.insert(name, all);
    let services = services.into_iter().map(|(name, _, targets)| (name, targets)).collect();
    Zone { addresses, services, pointers, ..Zone::default() }
}

fn put_in(zone: &mut Zone, part: Zone) {
    zone.addresses.extend(part.addresses);
    zone.services.extend(part.services);
    zone.pointers.extend(part.pointers);
}

fn take_out(zone: &mut Zone, id: &WorkloadId, workload: &Workload) -> Zone {
    let mut part = Zone::default();
    let name = id.dns_name();
    for port in &workload.spec.container.ports {
        part.services.extend(zone.services.remove_entry(&service_name(port.target, port.protocol, &name)));
    }
    let all = zone.addresses.remove(&name).unwrap_or_default();
    for ip in &all {
        let own = zone.pointers.remove(ip);
        part.addresses.extend(own.as_ref().and_then(|own| zone.addresses.remove_entry(own)));
        part.pointers.extend(own.map(|own| (*ip, own)));
    }
    part.addresses.insert(name, all);
    part
}

fn service_name(port: u16, protocol: Protocol, name: &str) -> String {
    let protocol = match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    format!("_{port}._{protocol}.{name}")
}

/// What an asker is told of.
type Asker<'a> = Option<&'a Endpoint>;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// IPv4 addresses.
    A,
    /// Services (RFC 2782).
    Srv,
    /// The name of an address.
    Ptr,
    /// Any other type: names of the zone have none.
    Other,
}

/// What the zone says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer<'a> {
    /// The name is not in this zone: ask elsewhere.
    NotOurs,
    /// There is no such name (RCODE 3, RFC 1035, section 4.1.1).
    NoName,
    /// The name exists and has nothing of the type (RFC 2308, section 2.2).
    NoData,
    /// Addresses.
    Addresses(&'a BTreeSet<Ipv4Addr>),
    /// Ports and target names.
    Services(&'a BTreeSet<(u16, String)>),
    /// A name.
    Pointer(&'a str),
}

impl Zone {
    /// Answers a question. `name` in any case, with or without the final dot. A container is told of workloads that are
    /// in one network with it, as if there were no others; without an asker, of all.
    pub fn lookup(&self, asker: Asker<'_>, name: &str, question: Question) -> Answer<'_> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        if let Some(address) = reverse_address(&name) {
            let pointer = self.pointers.get(&address).filter(|name| self.shows(asker, name));
            return match (pointer, question) {
                (Some(name), Question::Ptr) => Answer::Pointer(name),
                (Some(_), _) => Answer::NoData,
                (None, _) => Answer::NotOurs,
            };
        }
        if name != DNS_APEX && !is_below(&name, DNS_APEX) {
            return self.lookup_short(asker, &name, question);
        }
        let is_shown = self.shows(asker, &name);
        let own = self.addresses.get(&name).filter(|_| is_shown);
        let addresses = own.or_else(|| self.linked(asker, &name));
        match (addresses, self.services.get(&name).filter(|_| is_shown), question) {
            (Some(found), _, Question::A) if !found.is_empty() => Answer::Addresses(found),
            (_, Some(found), Question::Srv) if !found.is_empty() => Answer::Services(found),
            (None, None, _) if !self.has_below(asker, &name) => Answer::NoName,
            _ => Answer::NoData,
        }
    }

    /// Answers a question about a name of one label, as programs ask it that resolve names by themselves and know of no search
    /// list: of the namespace of the container that asks.
    fn lookup_short(&self, asker: Asker<'_>, name: &str, question: Question) -> Answer<'_> {
        let namespace = asker.and_then(|asker| Some(&asker.networks.first()?.namespace));
        let Some(namespace) = namespace.filter(|_| !name.is_empty() && !name.contains('.')) else {
            return Answer::NotOurs;
        };
        match self.lookup(asker, &format!("{name}.{namespace}.{DNS_APEX}"), question) {
            Answer::NoName => Answer::NotOurs,
            answer => answer,
        }
    }

    /// Whether the asker is told of a name: that of a workload in one network with it, or one below that.
    fn shows(&self, asker: Asker<'_>, name: &str) -> bool {
        let Some(asker) = asker else { return true };
        let networks = workload_of(name).and_then(|workload| self.networks.get(workload));
        networks.is_some_and(|networks| !networks.is_disjoint(&asker.networks))
    }

    /// The addresses of a workload that documents call by another name.
    fn linked(&self, asker: Asker<'_>, name: &str) -> Option<&BTreeSet<Ipv4Addr>> {
        let targets = self.aliases.get(name)?.iter();
        let known = targets.filter(|(network, target)| {
            let is_in = |network| asker.is_none_or(|asker| asker.networks.contains(network));
            network.as_ref().is_none_or(is_in) && self.shows(asker, target)
        });
        let mut found = known.filter_map(|(_, target)| self.addresses.get(target));
        let first = found.next()?;
        if first.is_empty() {
            found.find(|addresses| !addresses.is_empty()).or(Some(first))
        } else {
            Some(first)
        }
    }

    /// Whether the name is the apex or has names below it, and so exists (RFC 8020).
    fn has_below(&self, asker: Asker<'_>, name: &str) -> bool {
        let names = self.addresses.keys().chain(self.services.keys()).filter(|n| self.shows(asker, n));
        let aliases = self.aliases.keys().filter(|alias| self.linked(asker, alias).is_some());
        name == DNS_APEX || names.chain(aliases).any(|n| is_below(n, name))
    }
}

/// The name of the workload that a name of the zone belongs to: its last two labels before the apex.
fn workload_of(name: &str) -> Option<&str> {
    let above = name.strip_suffix(DNS_APEX)?.strip_suffix('.')?;
    let mut dots = above.rmatch_indices('.').map(|(at, _)| at);
    match (dots.next(), dots.next()) {
        (Some(_), Some(before)) => Some(&name[before + 1..]),
        (Some(_), None) => Some(name),
        (None, _) => None,
    }
}

fn is_below(name: &str, parent: &str) -> bool {
    name.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'))
}

/// The address that `d.c.b.a.in-addr.arpa` asks about (RFC 1035, section 3.5).
fn reverse_address(name: &str) -> Option<Ipv4Addr> {
    let mut octets: Vec<&str> = name.strip_suffix(".in-addr.arpa")?.split('.').collect();
    octets.reverse();
    octets.join(".").parse().ok()
}

#[cfg(test)]
mod tests {
    use hivemind_spec::workload::Port;
    use proptest::prelude::*;

    use super::*;
    use crate::fixture::{cluster, node_id, replica_id, running, workload, workload_id};

    /// `web` with replicas on nodes 1, 2 and 3, of which 2 is dead; `idle` with none.
    fn made() -> (Zone, Ipv4Addr, Ipv4Addr) {
        let (mut cluster, mut liveness) = cluster(3);
        let mut web = workload(3);
        web.spec.container.ports = vec![Port { target: 80, published: None, protocol: Protocol::Tcp }];
        cluster.workloads.insert(workload_id("web"), web);
        cluster.workloads.insert(workload_id("idle"), workload(0));
        let first = running(&mut cluster, "web", 0, 1);
        running(&mut cluster, "web", 1, 2);
        let last = running(&mut cluster, "web", 2, 3);
        liveness.alive.remove(&node_id(2));
        (zone(&cluster, &liveness), first, last)
    }

    #[test]
    fn a_name_leads_to_the_replicas_on_live_nodes() {
        let (zone, first, last) = made();
        let Answer::Addresses(found) = zone.lookup(None, "Web.Default.hive.internal.", Question::A) else {
            panic!("no addresses")
        };
        assert_eq!(*found, [first, last].into());
        assert_eq!(
            zone.lookup(None, "0.web.default.hive.internal", Question::A),
            Answer::Addresses(&[first].into())
        );
    }

    #[test]
    fn a_container_finds_those_of_its_namespace_by_their_short_names_too() {
        let (zone, first, last) = made();
        let networks = zone.networks["web.default.hive.internal"].clone();
        let asker = Endpoint { networks, ..Endpoint::default() };
        for name in ["web", "WEB."] {
            assert_eq!(
                zone.lookup(Some(&asker), name, Question::A),
                Answer::Addresses(&[first, last].into())
            );
        }
        assert_eq!(zone.lookup(Some(&asker), "idle", Question::A), Answer::NoData);
        for name in ["nobody", "0.web", "", "."] {
            assert_eq!(zone.lookup(Some(&asker), name, Question::A), Answer::NotOurs, "{name:?}");
        }
        let network = isolation::NetworkId { namespace: "other".into(), name: "default".into() };
        let stranger = Endpoint { networks: [network].into(), ..Endpoint::default() };
        for asker in [None, Some(&Endpoint::default()), Some(&stranger)] {
            assert_eq!(zone.lookup(asker, "web", Question::A), Answer::NotOurs);
        }
    }

    #[test]
    fn services_name_port_and_replica() {
        let (zone, ..) = made();
        let expected =
            [(80, "0.web.default.hive.internal".to_owned()), (80, "2.web.default.hive.internal".to_owned())];
        let answer = zone.lookup(None, "_80._tcp.web.default.hive.internal", Question::Srv);
        assert_eq!(answer, Answer::Services(&expected.into()));
    }

    #[test]
    fn an_address_has_its_replicas_name() {
        let (zone, first, _) = made();
        let [a, b, c, d] = first.octets();
        let name = format!("{d}.{c}.{b}.{a}.in-addr.arpa.");
        assert_eq!(zone.lookup(None, &name, Question::Ptr), Answer::Pointer("0.web.default.hive.internal"));
        assert_eq!(zone.lookup(None, &name, Question::A), Answer::NoData);
        assert_eq!(zone.lookup(None, "1.2.0.192.in-addr.arpa", Question::Ptr), Answer::NotOurs);
    }

    #[test]
    fn what_exists_without_data_is_told_apart_from_what_does_not_exist() {
        let (zone, ..) = made();
        for (name, question, answer) in [
            ("idle.default.hive.internal", Question::A, Answer::NoData),
            ("web.default.hive.internal", Question::Other, Answer::NoData),
            ("web.default.hive.internal", Question::Srv, Answer::NoData),
            ("default.hive.internal", Question::A, Answer::NoData),
            ("hive.internal", Question::A, Answer::NoData),
            ("_tcp.web.default.hive.internal", Question::Srv, Answer::NoData),
            ("1.web.default.hive.internal", Question::A, Answer::NoName),
            ("nobody.default.hive.internal", Question::A, Answer::NoName),
            ("eb.default.hive.internal", Question::A, Answer::NoName),
            ("default.nhive.internal", Question::A, Answer::NotOurs),
            ("example.org", Question::A, Answer::NotOurs),
            ("", Question::A, Answer::NotOurs),
        ] {
            assert_eq!(zone.lookup(None, name, question), answer, "{name}");
        }
    }

    #[test]
    fn a_replica_that_another_node_is_to_run_is_not_named() {
        let (mut cluster, liveness) = cluster(2);
        cluster.workloads.insert(workload_id("web"), workload(1));
        running(&mut cluster, "web", 0, 1);
        crate::fixture::place(&mut cluster, "web", 0, 2);
        assert_eq!(
            zone(&cluster, &liveness).lookup(None, "web.default.hive.internal", Question::A),
            Answer::NoData
        );
    }

    #[test]
    fn a_workload_answers_to_the_names_that_documents_link_to_it() {
        let (mut cluster, liveness) = cluster(2);
        cluster.workloads.insert(workload_id("db"), workload(1));
        cluster.workloads.insert(workload_id("old"), workload(0));
        let mut web = workload(0);
        let link = |alias: &str, target: &str| (alias.to_owned(), target.to_owned());
        web.spec.links =
            [link("Data_Base", "db"), link("main.db", "old"), link("old", "db"), link("x", "nobody")].into();
        let mut other = workload(0);
        other.spec.links = [link("main.db", "db")].into();
        cluster.workloads.insert(workload_id("web"), web);
        cluster.workloads.insert(workload_id("other"), other);
        let ip = running(&mut cluster, "db", 0, 1);
        let zone = zone(&cluster, &liveness);
        let ask = |name: &str| zone.lookup(None, &format!("{name}.default.hive.internal"), Question::A);
        assert_eq!(ask("data_base"), Answer::Addresses(&[ip].into()));
        assert_eq!(ask("main.db"), Answer::Addresses(&[ip].into()), "of two, the one that has addresses");
        assert_eq!(ask("old"), Answer::NoData, "a workload's own name goes before");
        assert_eq!(ask("x"), Answer::NoName);
    }

    proptest! {
        #[test]
        fn a_zone_that_follows_the_cluster_is_the_one_made_from_it(
            changes in proptest::collection::vec((0u32..4, 0u32..3, 1u8..4, 0u8..6, any::<bool>()), 1..40)
        ) {
            let (mut cluster, mut liveness) = cluster(3);
            for name in ["a", "b", "c", "d"] {
                let mut workload = workload(3);
                let port = |target| Port { target, published: None, protocol: Protocol::Tcp };
                workload.spec.container.ports = vec![port(80), port(81)];
                cluster.workloads.insert(workload_id(name), workload);
            }
            liveness.alive.remove(&node_id(3));
            let mut followed = zone(&cluster, &liveness);
            for (which, slot, n, host, runs) in changes {
                let name = ["a", "b", "c", "d"][which as usize];
                running(&mut cluster, name, slot, n);
                let status = cluster.replicas.get_mut(&(replica_id(name, slot), node_id(n))).unwrap();
                // Few addresses, so that some are claimed twice.
                status.ip = Some(Ipv4Addr::new(10, 42, n, host));
                if !runs {
                    status.phase = hivemind_spec::api::Phase::Stopping;
                }
                let before = followed.clone();
                let differs = follow(&mut followed, &cluster, &liveness, &[workload_id(name)].into());
                prop_assert_eq!(&followed, &zone(&cluster, &liveness));
                prop_assert_eq!(differs, followed != before);
            }
        }
    }
}
