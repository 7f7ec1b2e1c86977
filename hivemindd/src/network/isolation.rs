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
use std::sync::Arc;
use std::time::Duration;

use hivemind_core::isolation::Isolation;
use nftables::expr::{Expression, MetaKey, NamedExpression};
use nftables::schema::{NfListObject, Set, SetType, SetTypeValue};
use nftables::stmt::{JumpTarget, Statement};
use nftables::types::{NfChainType, NfFamily, NfHook};
use tokio::sync::watch;

use super::elements::{self, Change, Element};
use super::nft::{NewTable, TABLE, device, field, is, is_not, prefix, text};
use super::{CONTAINER_PREFIX, DOCKER_RESOLVER, NetworkError, RETRY, container_interface};

/// Priority of filters of bridges (nft(8), "Standard priority names"): before the IP hooks see a packet on the bridge
/// (br_netfilter) and translate what goes to published ports.
const FILTER: i32 = -200;

/// How long a container waits for its rules. They are in force within a second; a failure is retried, and the wait
/// between starts is longer each time.
const PATIENCE: Duration = Duration::from_secs(30);

/// Which rules are in force.
#[derive(Debug, Clone)]
pub struct InForce {
    wanted: watch::Receiver<Arc<Isolation>>,
    applied: watch::Receiver<Arc<Isolation>>,
}

impl InForce {
    /// Waits until the rules of a container's address are in force.
    ///
    /// # Errors
    /// When they are not within half a minute.
    pub async fn wait_for(&self, address: Ipv4Addr) -> Result<(), String> {
        let (wanted, mut applied) = (self.wanted.clone(), self.applied.clone());
        let is_known = |applied: &Arc<Isolation>| {
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
pub fn keep(wanted: watch::Receiver<Arc<Isolation>>) -> (InForce, impl Future<Output = ()> + Send) {
    let (applied, applied_rx) = watch::channel(Arc::default());
    let in_force = InForce { wanted: wanted.clone(), applied: applied_rx };
    (in_force, run(wanted, applied))
}

async fn run(mut wanted: watch::Receiver<Arc<Isolation>>, applied: watch::Sender<Arc<Isolation>>) {
    let mut last_error = String::new();
    // What the kernel has, if nothing but this agent changed it.
    let mut there = None;
    loop {
        let isolation = Arc::clone(&wanted.borrow_and_update());
        match apply(there.take().as_deref(), &isolation).await {
            Ok(()) => {
                there = Some(Arc::clone(&isolation));
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

/// Puts rules in force: what differs from those that are `there`, if that is a matter of elements, or else all.
async fn apply(there: Option<&Isolation>, isolation: &Isolation) -> Result<(), NetworkError> {
    if let Some(changes) = there.and_then(|there| changes(there, isolation)) {
        let made = tokio::task::spawn_blocking(move || elements::make(&changes)).await;
        match made.map_err(std::io::Error::other).flatten() {
            Ok(()) => return Ok(()),
            Err(error) => tracing::warn!(%error, "the rules of networks are made anew"),
        }
    }
    match table(isolation) {
        Some(table) => table.apply().await,
        // Nothing was worked out yet: the rules of the agent before hold.
        None => Ok(()),
    }
}

/// What leads from the one to the other; nothing if that takes other rules.
fn changes(there: &Isolation, isolation: &Isolation) -> Option<Vec<Change>> {
    let has_same_rules = there.range == isolation.range
        && there.range.is_some()
        && there.nodes == isolation.nodes
        && there.members.keys().eq(isolation.members.keys());
    if !has_same_rules {
        return None;
    }
    let mut changes = Vec::new();
    let mut differ = |set: &str, before: &BTreeSet<Ipv4Addr>, after: &BTreeSet<Ipv4Addr>| {
        let element = |address: &Ipv4Addr| match set {
            OWNERS => Element::Owner(container_interface(*address), *address),
            _ => Element::Address(*address),
        };
        let change = |address, is_in| Change { set: set.to_owned(), element: element(address), is_in };
        changes.extend(before.difference(after).map(|address| change(address, false)));
        changes.extend(after.difference(before).map(|address| change(address, true)));
    };
    let owners = |of: &Isolation| of.endpoints.keys().copied().collect();
    differ(OWNERS, &owners(there), &owners(isolation));
    differ(OUTSIDE, &leading_out(there), &leading_out(isolation));
    for (index, (before, after)) in there.members.values().zip(isolation.members.values()).enumerate() {
        differ(&network(index), before, after);
    }
    Some(changes)
}

/// The names of the sets.
const OWNERS: &str = "owners";
const OUTSIDE: &str = "outside";

fn network(index: usize) -> String {
    format!("network-{index}")
}

/// The containers that reach what is outside.
fn leading_out(isolation: &Isolation) -> BTreeSet<Ipv4Addr> {
    let outside = isolation.endpoints.iter().filter(|(_, endpoint)| endpoint.outside);
    outside.map(|(address, _)| *address).collect()
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
    table.add(set(OWNERS, pair, owners.collect()));
    // And the name server's other address, which is the node's once it has come past here.
    table.add(addresses("nodes", &isolation.nodes.iter().copied().chain([DOCKER_RESOLVER]).collect()));
    table.add(addresses(OUTSIDE, &leading_out(isolation)));

    table.chain("shared", None);
    for (index, members) in isolation.members.values().enumerate() {
        let name = network(index);
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
