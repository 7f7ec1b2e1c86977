//! Containers reach whom they may: the core's sets of addresses as an nftables table of the bridge.
//!
//! ```text
//!   container --sent--> bridge --forwarded--> container of this node
//!                         |  ^
//!                         v  |--received----> container of this node
//!                 node, VXLAN, outside
//! ```
//!
//! What a container sends must have its own address, and go to one it may reach; what it receives must be for it, and
//! come from one that may reach it. Only IPv4 and ARP pass: there is no other way from one to another. The rules are
//! in force before the container's first process runs ([`InForce`]), and stay when the agent ends.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use hivemind_core::isolation::Isolation;
use nftables::expr::{Expression, MetaKey, NamedExpression};
use nftables::schema::{NfListObject, Set, SetType, SetTypeValue};
use nftables::stmt::{JumpTarget, Statement};
use nftables::types::{NfChainType, NfFamily, NfHook};
use tokio::sync::watch;

use super::nft::{NewTable, TABLE, device, field, is, is_not, prefix, text};
use super::{CONTAINER_PREFIX, NetworkError, RETRY, container_interface};

/// Priority of filters of bridges (nft(8), "Standard priority names"): before the IP hooks see a packet on the bridge
/// (br_netfilter) and translate what goes to published ports.
const FILTER: i32 = -200;

/// How long a container waits for its rules. They are in force within a second; a failure is retried, and the wait
/// between starts is longer each time.
const PATIENCE: Duration = Duration::from_secs(30);

/// Which rules are in force.
#[derive(Debug, Clone)]
pub struct InForce {
    wanted: watch::Receiver<Isolation>,
    applied: watch::Receiver<Isolation>,
}

impl InForce {
    /// Waits until the rules of a container's address are in force.
    ///
    /// # Errors
    /// When they are not within half a minute.
    pub async fn wait_for(&self, address: Ipv4Addr) -> Result<(), String> {
        let (wanted, mut applied) = (self.wanted.clone(), self.applied.clone());
        let is_known = |applied: &Isolation| {
            let endpoint = applied.endpoints.get(&address);
            endpoint.is_some() && endpoint == wanted.borrow().endpoints.get(&address)
        };
        match tokio::time::timeout(PATIENCE, applied.wait_for(is_known)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err("the rules of its networks are not in force on this node".to_owned()),
        }
    }
}

/// Keeps the rules as they are wanted, and tells which are in force.
pub fn keep(wanted: watch::Receiver<Isolation>) -> (InForce, impl Future<Output = ()> + Send) {
    let (applied, applied_rx) = watch::channel(Isolation::default());
    let in_force = InForce { wanted: wanted.clone(), applied: applied_rx };
    (in_force, run(wanted, applied))
}

async fn run(mut wanted: watch::Receiver<Isolation>, applied: watch::Sender<Isolation>) {
    let mut last_error = String::new();
    loop {
        let isolation = wanted.borrow_and_update().clone();
        match apply(&isolation).await {
            Ok(()) => {
                applied.send_replace(isolation);
                last_error.clear();
                if wanted.changed().await.is_err() {
                    return;
                }
            }
            Err(error) => {
                if error.to_string() != last_error {
                    tracing::error!(%error, "containers reach others than they may, or not all whom they may");
                    last_error = error.to_string();
                }
                tokio::select! {
                    changed = wanted.changed() => if changed.is_err() { return },
                    () = tokio::time::sleep(RETRY) => {}
                }
            }
        }
    }
}

async fn apply(isolation: &Isolation) -> Result<(), NetworkError> {
    match table(isolation) {
        Some(table) => table.apply().await,
        // There are no containers without a subnet; those of an agent before keep their rules.
        None => Ok(()),
    }
}

/// The whole table.
fn table(isolation: &Isolation) -> Option<NewTable> {
    let range = isolation.range?;
    let mut table = NewTable::new(NfFamily::Bridge);
    let owners = isolation.endpoints.keys().map(|address| {
        let owner = vec![text(container_interface(*address)), text(address.to_string())];
        Expression::Named(NamedExpression::Concat(owner))
    });
    let pair = SetTypeValue::Concatenated(Cow::Borrowed(&[SetType::Ifname, SetType::Ipv4Addr]));
    table.add(set("owners", pair, owners.collect()));
    table.add(addresses("nodes", &isolation.nodes));
    let outside = isolation.endpoints.iter().filter(|(_, endpoint)| endpoint.outside);
    table.add(addresses("outside", &outside.map(|(address, _)| *address).collect()));

    table.chain("shared", None);
    for (index, members) in isolation.members.values().enumerate() {
        let name = format!("network-{index}");
        table.add(addresses(name.clone(), members));
        let is_in = |end| is(field("ip", end), text(format!("@{name}")));
        table.rule("shared", vec![is_in("saddr"), is_in("daddr"), Statement::Accept(None)]);
    }
    table.rule("shared", vec![Statement::Drop(None)]);

    for (name, hook, key) in [
        ("sent", NfHook::Prerouting, MetaKey::Iifname),
        ("forwarded", NfHook::Forward, MetaKey::Oifname),
        ("received", NfHook::Output, MetaKey::Oifname),
    ] {
        table.chain(name, Some((NfChainType::Filter, hook, FILTER)));
        // Other bridges, and what the node itself sends and receives.
        let others = is_not(device(key), text(format!("{CONTAINER_PREFIX}*")));
        table.rule(name, vec![others, Statement::Accept(None)]);
    }
    let passes_arp = vec![is(field("ether", "type"), text("arp")), Statement::Accept(None)];
    let is_other_than_ip = || vec![is_not(field("ether", "type"), text("ip")), Statement::Drop(None)];
    let is_own = |key, protocol, end| is(concat(device(key), field(protocol, end)), text("@owners"));
    let is_not_own = |key, end| is_not(concat(device(key), field("ip", end)), text("@owners"));
    let reaches = |own: &'static str, other: &'static str| {
        let outside = vec![is_not(field("ip", other), prefix(range)), is(field("ip", own), text("@outside"))];
        let accept = |mut conditions: Vec<Statement<'static>>| {
            conditions.push(Statement::Accept(None));
            conditions
        };
        let jump = Statement::Jump(JumpTarget { target: "shared".into() });
        [accept(vec![is(field("ip", other), text("@nodes"))]), accept(outside), vec![jump]]
    };

    table.rule("sent", vec![is_own(MetaKey::Iifname, "arp", "saddr ip"), Statement::Accept(None)]);
    table.rule("sent", is_other_than_ip());
    table.rule("sent", vec![is_not_own(MetaKey::Iifname, "saddr"), Statement::Drop(None)]);
    for rule in reaches("saddr", "daddr") {
        table.rule("sent", rule);
    }

    table.rule("forwarded", passes_arp.clone());
    table.rule("forwarded", vec![is_own(MetaKey::Oifname, "ip", "daddr"), Statement::Accept(None)]);
    table.rule("forwarded", vec![Statement::Drop(None)]);

    table.rule("received", passes_arp);
    table.rule("received", is_other_than_ip());
    table.rule("received", vec![is_not_own(MetaKey::Oifname, "daddr"), Statement::Drop(None)]);
    for rule in reaches("daddr", "saddr") {
        table.rule("received", rule);
    }
    Some(table)
}

fn concat(one: NamedExpression<'static>, other: NamedExpression<'static>) -> NamedExpression<'static> {
    NamedExpression::Concat(vec![Expression::Named(one), Expression::Named(other)])
}

fn addresses(name: impl Into<Cow<'static, str>>, all: &BTreeSet<Ipv4Addr>) -> NfListObject<'static> {
    let elements = all.iter().map(|address| text(address.to_string()));
    set(name, SetTypeValue::Single(SetType::Ipv4Addr), elements.collect())
}

fn set(
    name: impl Into<Cow<'static, str>>,
    set_type: SetTypeValue<'static>,
    elements: Vec<Expression<'static>>,
) -> NfListObject<'static> {
    NfListObject::Set(Box::new(Set {
        family: NfFamily::Bridge,
        table: TABLE.into(),
        name: name.into(),
        set_type,
        elem: (!elements.is_empty()).then(|| elements.into()),
        ..Set::default()
    }))
}

#[cfg(test)]
mod tests;
