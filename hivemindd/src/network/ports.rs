//! Published ports and masquerading, as one nftables table that is replaced as a whole.
//!
//! A connection to a published port of any node goes to one of the live replicas, picked at
//! random; one to a replica on another node takes this node's overlay address, so that the answer
//! comes back the same way.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::Ipv4Addr;

use hivemind_core::event::NetworkPlan;
use hivemind_spec::workload::Protocol;
use nftables::batch::Batch;
use nftables::expr::{
    CT, Expression, Fib, FibFlag, FibResult, Meta, MetaKey, NamedExpression, NgMode, Numgen, Payload,
    PayloadField, Prefix,
};
use nftables::schema::{Chain, NfCmd, NfListObject, Nftables, Rule, Table};
use nftables::stmt::{Match, NAT, NATFamily, Operator, Statement};
use nftables::types::{NfChainType, NfFamily, NfHook};

use super::{BRIDGE, NetworkError, VXLAN};

/// The table; nothing else may use the name.
const TABLE: &str = "hivemind";

/// Priorities of destination and source translation (nft(8), "Standard priority names").
const DSTNAT: i32 = -100;
const SRCNAT: i32 = 100;

/// What the rules are made from.
type Published = BTreeMap<(Protocol, u16), BTreeSet<(Ipv4Addr, u16)>>;

/// The rules as they were applied last.
#[derive(Default)]
pub(super) struct Ports {
    applied: Option<((Ipv4Addr, u8), Published)>,
}

impl Ports {
    /// Replaces the table when something changed. While the underlay address is unknown, what was
    /// published stays as it is.
    pub(super) async fn apply(&mut self, plan: &NetworkPlan) -> Result<(), NetworkError> {
        let Some(local) = plan.local.as_ref().filter(|local| local.underlay.is_some()) else { return Ok(()) };
        let wanted = (local.range, plan.published.clone());
        if self.applied.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let rules = ruleset(wanted.0, &wanted.1);
        tokio::task::spawn_blocking(move || nftables::helper::apply_ruleset(&rules))
            .await
            .map_err(|error| NetworkError::Rules(error.to_string()))?
            .map_err(|error| NetworkError::Rules(error.to_string()))?;
        self.applied = Some(wanted);
        Ok(())
    }
}

/// The whole table, in one transaction: whatever was there goes.
fn ruleset(range: (Ipv4Addr, u8), published: &Published) -> Nftables<'static> {
    let mut batch = Batch::new();
    let table = || Table { family: NfFamily::IP, name: TABLE.into(), ..Table::default() };
    // Deleting what is not there is an error, adding what is there is not.
    batch.add(NfListObject::Table(table()));
    batch.add_cmd(NfCmd::Delete(NfListObject::Table(table())));
    batch.add(NfListObject::Table(table()));
    for (name, hook, priority) in [
        ("prerouting", NfHook::Prerouting, DSTNAT),
        ("output", NfHook::Output, DSTNAT),
        ("postrouting", NfHook::Postrouting, SRCNAT),
    ] {
        batch.add(NfListObject::Chain(Chain {
            family: NfFamily::IP,
            table: TABLE.into(),
            name: name.into(),
            _type: Some(NfChainType::NAT),
            hook: Some(hook),
            prio: Some(priority),
            ..Chain::default()
        }));
    }
    for ((protocol, port), endpoints) in published {
        for (index, (address, target)) in endpoints.iter().enumerate() {
            let left = endpoints.len() - index;
            let statements = to_endpoint(*protocol, *port, *address, *target, left);
            batch.add(rule("prerouting", statements.clone()));
            batch.add(rule("output", statements));
        }
    }
    for statements in masquerades(range) {
        batch.add(rule("postrouting", statements));
    }
    batch.to_nftables()
}

fn rule(chain: &'static str, statements: Vec<Statement<'static>>) -> NfListObject<'static> {
    NfListObject::Rule(Rule {
        family: NfFamily::IP,
        table: TABLE.into(),
        chain: chain.into(),
        expr: Cow::Owned(statements),
        ..Rule::default()
    })
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
    statements.push(Statement::DNAT(Some(NAT {
        addr: Some(text(address.to_string())),
        family: Some(NATFamily::IP),
        port: Some(Expression::Number(target.into())),
        flags: None,
    })));
    statements
}

/// Whose source address is replaced by this node's.
fn masquerades((network, length): (Ipv4Addr, u8)) -> [Vec<Statement<'static>>; 3] {
    let range = || {
        Expression::Named(NamedExpression::Prefix(Prefix {
            addr: Box::new(text(network.to_string())),
            len: length.into(),
        }))
    };
    let leaves_by = |device: &'static str, op| {
        Statement::Match(Match {
            left: Expression::Named(NamedExpression::Meta(Meta { key: MetaKey::Oifname })),
            right: text(device),
            op,
        })
    };
    let translated = || {
        Statement::Match(Match {
            left: Expression::Named(NamedExpression::CT(CT {
                key: "status".into(),
                family: None,
                dir: None,
            })),
            right: text("dnat"),
            op: Operator::IN,
        })
    };
    let masquerade = Statement::Masquerade(None);
    [
        // Containers that talk to the outside.
        vec![
            is(field("ip", "saddr"), range()),
            is_not(field("ip", "daddr"), range()),
            leaves_by(BRIDGE, Operator::NEQ),
            leaves_by(VXLAN, Operator::NEQ),
            masquerade.clone(),
        ],
        // Published ports whose replica is on another node.
        vec![translated(), leaves_by(VXLAN, Operator::EQ), masquerade.clone()],
        // A container that reaches a neighbour, or itself, by a published port.
        vec![translated(), leaves_by(BRIDGE, Operator::EQ), is(field("ip", "saddr"), range()), masquerade],
    ]
}

fn text(text: impl Into<Cow<'static, str>>) -> Expression<'static> {
    Expression::String(text.into())
}

fn field(protocol: &'static str, field: &'static str) -> NamedExpression<'static> {
    NamedExpression::Payload(Payload::PayloadField(PayloadField {
        protocol: protocol.into(),
        field: field.into(),
    }))
}

fn is(left: NamedExpression<'static>, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left: Expression::Named(left), right, op: Operator::EQ })
}

fn is_not(left: NamedExpression<'static>, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left: Expression::Named(left), right, op: Operator::NEQ })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_of_a_published_port_gets_its_share() {
        let endpoints: BTreeSet<_> = (1..=3).map(|n| (Ipv4Addr::new(10, 42, n, 2), 80)).collect();
        let published = BTreeMap::from([((Protocol::Tcp, 8080), endpoints)]);
        let rules = serde_json::to_string(&ruleset((Ipv4Addr::new(10, 42, 0, 0), 16), &published)).unwrap();
        for (share, address) in [("3", "10.42.1.2"), ("2", "10.42.2.2")] {
            assert!(rules.contains(&format!(r#""mod":{share}"#)), "{rules}");
            assert!(rules.contains(address), "{rules}");
        }
        assert!(rules.contains("10.42.3.2") && !rules.contains(r#""mod":1}"#), "the last takes the rest");
    }
}
