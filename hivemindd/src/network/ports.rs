//! Published ports, the address of Docker's name server, and masquerading, as one nftables table that is replaced as a whole.
//!
//! A connection to a published port of any node goes to one of the live replicas, picked at
//! random; one to a replica on another node takes this node's overlay address, so that the answer
//! comes back the same way.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::Ipv4Addr;

use hivemind_core::event::NetworkPlan;
use hivemind_spec::workload::Protocol;
use nftables::expr::{CT, Expression, Fib, FibFlag, FibResult, MetaKey, NamedExpression, NgMode, Numgen};
use nftables::stmt::{Match, NAT, NATFamily, Operator, Statement};
use nftables::types::{NfChainType, NfFamily, NfHook};

use super::nft::{NewTable, device, field, is, is_not, prefix, text};
use super::{BRIDGE, DOCKER_RESOLVER, NetworkError, VXLAN};
use crate::dns;

/// Priorities of destination and source translation (nft(8), "Standard priority names").
const DSTNAT: i32 = -100;
const SRCNAT: i32 = 100;

/// Priority of filters.
const FILTER: i32 = 0;

/// What the rules are made from.
type Published = BTreeMap<(Protocol, u16), BTreeSet<(Ipv4Addr, u16)>>;

/// The rules as they were applied last.
#[derive(Default)]
pub(super) struct Ports {
    applied: Option<((Ipv4Addr, u8), Ipv4Addr, Published)>,
}

impl Ports {
    /// Replaces the table when something changed. While the underlay address is unknown, what was
    /// published stays as it is.
    pub(super) async fn apply(&mut self, plan: &NetworkPlan) -> Result<(), NetworkError> {
        let Some(local) = plan.local.as_ref().filter(|local| local.underlay.is_some()) else { return Ok(()) };
        let wanted = (local.range, local.gateway, plan.published.clone());
        if self.applied.as_ref() == Some(&wanted) {
            return Ok(());
        }
        table(wanted.0, wanted.1, &wanted.2).apply().await?;
        self.applied = Some(wanted);
        Ok(())
    }
}

/// The whole table.
fn table(range: (Ipv4Addr, u8), gateway: Ipv4Addr, published: &Published) -> NewTable {
    let mut table = NewTable::new(NfFamily::IP);
    for (name, hook, priority) in [
        ("prerouting", NfHook::Prerouting, DSTNAT),
        ("output", NfHook::Output, DSTNAT),
        ("postrouting", NfHook::Postrouting, SRCNAT),
    ] {
        table.chain(name, Some((NfChainType::NAT, hook, priority)));
    }
    for protocol in ["udp", "tcp"] {
        table.rule("prerouting", to_resolver(protocol, gateway));
    }
    for ((protocol, port), endpoints) in published {
        for (index, (address, target)) in endpoints.iter().enumerate() {
            let left = endpoints.len() - index;
            let statements = to_endpoint(*protocol, *port, *address, *target, left);
            table.rule("prerouting", statements.clone());
            table.rule("output", statements);
        }
    }
    for statements in masquerades(range) {
        table.rule("postrouting", statements);
    }
    table.chain("forward", Some((NfChainType::Filter, NfHook::Forward, FILTER)));
    for statements in guards() {
        table.rule("forward", statements);
    }
    table
}

/// Sends what containers ask Docker's name server to the node's.
fn to_resolver(protocol: &'static str, gateway: Ipv4Addr) -> Vec<Statement<'static>> {
    vec![
        is(device(MetaKey::Iifname), text(BRIDGE)),
        is(field("ip", "daddr"), text(DOCKER_RESOLVER.to_string())),
        is(field(protocol, "dport"), Expression::Number(dns::PORT.into())),
        to(gateway, None),
    ]
}

/// Sends one in `left` of the connections that come this far to an endpoint.
fn to_endpoint(
    protocol: Protocol,
    port: u16,
    address: Ipv4Addr,
    target: u16,
    left: usize,
) -> Vec<Statement<'static>> {
    let protocol = match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    let mut statements = vec![
        is(
            NamedExpression::Fib(Fib { result: FibResult::Type, flags: HashSet::from([FibFlag::Daddr]) }),
            text("local"),
        ),
        is(field(protocol, "dport"), Expression::Number(port.into())),
    ];
    if left > 1 {
        let numgen =
            Numgen { mode: NgMode::Random, ng_mod: u32::try_from(left).unwrap_or(u32::MAX), offset: None };
        statements.push(is(NamedExpression::Numgen(numgen), Expression::Number(0)));
    }
    statements.push(to(address, Some(target)));
    statements
}

/// Replaces where a connection goes to, and its port if one is given.
fn to(address: Ipv4Addr, port: Option<u16>) -> Statement<'static> {
    Statement::DNAT(Some(NAT {
        addr: Some(text(address.to_string())),
        family: Some(NATFamily::IP),
        port: port.map(|port| Expression::Number(port.into())),
        flags: None,
    }))
}

fn leaves_by(name: &'static str) -> Statement<'static> {
    is(device(MetaKey::Oifname), text(name))
}

fn does_not_leave_by(name: &'static str) -> Statement<'static> {
    is_not(device(MetaKey::Oifname), text(name))
}

/// A connection of one of these kinds.
fn tracked(key: &'static str, values: &[&'static str]) -> Statement<'static> {
    let left = Expression::Named(NamedExpression::CT(CT { key: key.into(), family: None, dir: None }));
    let right = Expression::List(values.iter().map(|value| text(*value)).collect());
    Statement::Match(Match { left, right, op: Operator::IN })
}

fn translated() -> Statement<'static> {
    tracked("status", &["dnat"])
}

/// Whose source address is replaced by this node's.
fn masquerades(range: (Ipv4Addr, u8)) -> [Vec<Statement<'static>>; 3] {
    let masquerade = Statement::Masquerade(None);
    [
        // Containers that talk to the outside.
        vec![
            is(field("ip", "saddr"), prefix(range)),
            is_not(field("ip", "daddr"), prefix(range)),
            does_not_leave_by(BRIDGE),
            does_not_leave_by(VXLAN),
            masquerade.clone(),
        ],
        // Published ports whose replica is on another node.
        vec![translated(), leaves_by(VXLAN), masquerade.clone()],
        // A container that reaches a neighbour, or itself, by a published port.
        vec![translated(), leaves_by(BRIDGE), is(field("ip", "saddr"), prefix(range)), masquerade],
    ]
}

/// What may be forwarded to containers from outside the overlay: connections to published ports, and what belongs to
/// those that containers made. A neighbour of the machine that has a route to the containers reaches no more.
fn guards() -> [Vec<Statement<'static>>; 3] {
    let comes_from_elsewhere = |name| is_not(device(MetaKey::Iifname), text(name));
    [
        vec![tracked("state", &["established", "related"]), Statement::Accept(None)],
        vec![translated(), Statement::Accept(None)],
        vec![
            leaves_by(BRIDGE),
            comes_from_elsewhere(BRIDGE),
            comes_from_elsewhere(VXLAN),
            Statement::Drop(None),
        ],
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_of_a_published_port_gets_its_share() {
        let endpoints: BTreeSet<_> = (1..=3).map(|n| (Ipv4Addr::new(10, 42, n, 2), 80)).collect();
        let published = BTreeMap::from([((Protocol::Tcp, 8080), endpoints)]);
        let rules = serde_json::to_string(
            &table((Ipv4Addr::new(10, 42, 0, 0), 16), Ipv4Addr::new(10, 42, 1, 1), &published).into_rules(),
        )
        .unwrap();
        for (share, address) in [("3", "10.42.1.2"), ("2", "10.42.2.2")] {
            assert!(rules.contains(&format!(r#""mod":{share}"#)), "{rules}");
            assert!(rules.contains(address), "{rules}");
        }
        assert!(rules.contains("10.42.3.2") && !rules.contains(r#""mod":1}"#), "the last takes the rest");
    }
}
