//! Words of nftables rules, as the `nftables` crate has them, and how a table is replaced as a whole.

use std::borrow::Cow;

use nftables::batch::Batch;
use nftables::expr::{Expression, Meta, MetaKey, NamedExpression, Payload, PayloadField, Prefix};
use nftables::schema::{Chain, NfCmd, NfListObject, Rule, Table};
use nftables::stmt::{Match, Operator, Statement};
use nftables::types::{NfChainType, NfFamily, NfHook};

use super::NetworkError;

/// Our tables, one in each family that has rules; nothing else may use the name.
pub(super) const TABLE: &str = "hivemind";

/// A table of one family, made anew in one transaction: whatever was there goes.
pub(super) struct NewTable {
    family: NfFamily,
    batch: Batch<'static>,
}

impl NewTable {
    pub(super) fn new(family: NfFamily) -> Self {
        let mut batch = Batch::new();
        let table = || NfListObject::Table(Table { family, name: TABLE.into(), ..Table::default() });
        // Deleting what is not there is an error, adding what is there is not.
        batch.add(table());
        batch.add_cmd(NfCmd::Delete(table()));
        batch.add(table());
        Self { family, batch }
    }

    pub(super) fn add(&mut self, object: NfListObject<'static>) {
        self.batch.add(object);
    }

    /// Adds a chain; without a hook it is one to jump to.
    pub(super) fn chain(&mut self, name: &'static str, hook: Option<(NfChainType, NfHook, i32)>) {
        self.add(NfListObject::Chain(Chain {
            family: self.family,
            table: TABLE.into(),
            name: name.into(),
            _type: hook.map(|(kind, ..)| kind),
            hook: hook.map(|(_, hook, _)| hook),
            prio: hook.map(|(.., priority)| priority),
            ..Chain::default()
        }));
    }

    pub(super) fn rule(&mut self, chain: &'static str, statements: Vec<Statement<'static>>) {
        self.add(NfListObject::Rule(Rule {
            family: self.family,
            table: TABLE.into(),
            chain: chain.into(),
            expr: Cow::Owned(statements),
            ..Rule::default()
        }));
    }

    /// The transaction.
    pub(super) fn into_rules(self) -> nftables::schema::Nftables<'static> {
        self.batch.to_nftables()
    }

    /// Puts it in force.
    pub(super) async fn apply(self) -> Result<(), NetworkError> {
        let rules = self.into_rules();
        tokio::task::spawn_blocking(move || nftables::helper::apply_ruleset(&rules))
            .await
            .map_err(|error| NetworkError::Rules(error.to_string()))?
            .map_err(|error| NetworkError::Rules(error.to_string()))
    }
}

pub(super) fn text(text: impl Into<Cow<'static, str>>) -> Expression<'static> {
    Expression::String(text.into())
}

/// A field of a packet's header.
pub(super) fn field(protocol: &'static str, field: &'static str) -> NamedExpression<'static> {
    NamedExpression::Payload(Payload::PayloadField(PayloadField {
        protocol: protocol.into(),
        field: field.into(),
    }))
}

/// The device a packet comes from, or goes to.
pub(super) fn device(key: MetaKey) -> NamedExpression<'static> {
    NamedExpression::Meta(Meta { key })
}

/// A network with its prefix length.
pub(super) fn prefix((network, length): (std::net::Ipv4Addr, u8)) -> Expression<'static> {
    Expression::Named(NamedExpression::Prefix(Prefix {
        addr: Box::new(text(network.to_string())),
        len: length.into(),
    }))
}

pub(super) fn is(left: NamedExpression<'static>, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left: Expression::Named(left), right, op: Operator::EQ })
}

pub(super) fn is_not(left: NamedExpression<'static>, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left: Expression::Named(left), right, op: Operator::NEQ })
}
