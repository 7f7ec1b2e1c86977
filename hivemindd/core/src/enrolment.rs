//! Who is a member, and who may become one (design, section 5).
//!
//! A node enrols itself: its enrolment carries the certificates that lead to the root CA. It
//! becomes a member of the cluster, as one node sees it, when that node or another member
//! admitted it while its token was open. Once a member it stays one, whatever happens to the
//! token or the clock; only revocation ends it.
//!
//! A node that is new, or lost its store, knows nobody who could vouch for the others. It takes
//! those it meets first on faith if their certificates lead to the root CA and they claim to have
//! enrolled while their token was open. This faith is its own: it is not passed on.

use std::collections::BTreeSet;

use hivemind_spec::certificate::{CertificateError, NodeIdentity};
use hivemind_spec::document::{Spec, TokenSpec};
use hivemind_spec::id::{NodeId, TokenId};

use crate::record::{Enrolment, Observation, RecordKey, Topic};
use crate::state::{Content, Map};
use crate::time::Time;
use crate::trust::Trust;

/// How long a node counts as new after its own enrolment, wall milliseconds. In this time it may
/// have met only nodes as new as itself, and must still believe an older cluster.
pub const YOUNG_MS: u64 = 10 * 60 * 1000;

/// Nodes taken on faith: one is enough, a few more cover those met at the same moment.
pub const MAX_ANCHORS: usize = 8;

/// Newcomers a node admits one right after the other: a small cluster forms without a pause.
const ADMITTED_AT_ONCE: u64 = 4;

/// After those a node admits one newcomer in this time, milliseconds. Nodes that are powered on together
/// would all admit each other, a number of records that grows with the square of theirs, were they not
/// given the time to hear that others did. Four admissions of each by chance connect them all but surely.
pub const ADMIT_EVERY_MS: u64 = 100;

/// How fast a node admits newcomers (the generic cell rate algorithm, ITU-T I.371).
#[derive(Debug, Default)]
pub struct Pace {
    spent_until_ms: u64,
}

impl Pace {
    /// Takes one admission.
    ///
    /// # Errors
    /// When there is none now; gives when there will be one, monotonic milliseconds.
    pub fn take(&mut self, now_ms: u64) -> Result<(), u64> {
        let from_ms = self.spent_until_ms.saturating_sub((ADMITTED_AT_ONCE - 1) * ADMIT_EVERY_MS);
        if from_ms > now_ms {
            return Err(from_ms);
        }
        self.spent_until_ms = self.spent_until_ms.max(now_ms) + ADMIT_EVERY_MS;
        Ok(())
    }
}

/// Checks that a node CA and its token CA lead to the root CA, whatever the time (arguments: root
/// CA, node CA, token CA, all DER). [`hivemind_spec::certificate::verify_node_chain`] in
/// production; simulations with thousands of nodes may take a cheaper one.
pub type ChainVerifier = fn(&[u8], &[u8], &[u8]) -> Result<NodeIdentity, CertificateError>;

/// Why a node is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinRefusal {
    /// Its certificates do not lead to this cluster's root CA.
    #[error("its certificates are not of this cluster: {0}")]
    OtherCluster(String),
    /// Nobody has shown its token's document.
    #[error("its token {} is not known in this cluster; push the token's document first", .0.short())]
    UnknownToken(TokenId),
    /// Too early.
    #[error("its token {} opens for enrolment only at {opens_ms} ms; this node's clock says {now_ms} ms", token.short())]
    NotYetOpen {
        /// The token.
        token: TokenId,
        /// Start of the window.
        opens_ms: u64,
        /// This node's clock.
        now_ms: u64,
    },
    /// Too late.
    #[error("its token {} expired {} s ago; make a new one with `hivemind token create`", token.short(), since_ms / 1000)]
    Expired {
        /// The token.
        token: TokenId,
        /// Milliseconds since the end of the window.
        since_ms: u64,
    },
    /// Too many.
    #[error("its token {} is used up: {max_uses} nodes enrolled with it; make a new one with `hivemind token create`", token.short())]
    UsedUp {
        /// The token.
        token: TokenId,
        /// How many nodes may use it.
        max_uses: u32,
    },
    /// It did not say who it is.
    #[error("it did not introduce itself in time")]
    Silent,
    /// Cut off by an operator.
    #[error("it was revoked by an operator")]
    Revoked,
}

/// A node's enrolment, if it is held; whether it is a member is another question.
pub fn enrolment(map: &Map, node: NodeId) -> Option<&Enrolment> {
    match &map.get(&RecordKey::Observation(node, Topic::Enrolment))?.content {
        Content::Observation(Some(Observation::Enrolment(enrolment))) => Some(enrolment),
        _ => None,
    }
}

/// Whom a node admitted.
fn admitted(map: &Map, by: NodeId) -> impl Iterator<Item = NodeId> {
    let first = map.observations(by).take_while(|(key, _)| {
        // What a node says about entering comes before everything else it says.
        matches!(key, RecordKey::Observation(_, Topic::Enrolment | Topic::Admission(_)))
    });
    first.filter_map(|(key, entry)| match (key, &entry.content) {
        (RecordKey::Observation(_, Topic::Admission(node)), Content::Observation(Some(_))) => Some(*node),
        _ => None,
    })
}

/// The members as `me` sees them: itself, those it took on faith, and all whom a member admitted.
pub fn members(map: &Map, me: NodeId, anchors: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    let mut members = BTreeSet::new();
    let mut fresh: Vec<NodeId> = anchors.iter().copied().chain([me]).collect();
    while let Some(node) = fresh.pop() {
        if enrolment(map, node).is_some() && members.insert(node) {
            fresh.extend(admitted(map, node));
        }
    }
    members
}

/// Whether a node with this token may enrol now.
///
/// # Errors
/// Says why not.
pub fn may_enrol(
    node: NodeId,
    token: TokenId,
    map: &Map,
    trust: &Trust,
    members: &BTreeSet<NodeId>,
    now: Time,
) -> Result<(), JoinRefusal> {
    let mut refusal = JoinRefusal::UnknownToken(token);
    for spec in token_documents(token, map, trust) {
        match is_open(node, spec, map, members, now) {
            Ok(()) => return Ok(()),
            Err(e) => refusal = e,
        }
    }
    Err(refusal)
}

/// Whether the enrolment claims a time at which its token was open.
pub fn claims_open_window(enrolment: &Enrolment, map: &Map, trust: &Trust) -> bool {
    token_documents(enrolment.token, map, trust)
        .any(|spec| (spec.not_before_ms..=spec.not_after_ms).contains(&enrolment.enrolled_ms))
}

fn is_open(
    node: NodeId,
    spec: &TokenSpec,
    map: &Map,
    members: &BTreeSet<NodeId>,
    now: Time,
) -> Result<(), JoinRefusal> {
    let token = spec.id;
    let used = members
        .iter()
        .filter(|other| **other != node && enrolment(map, **other).is_some_and(|e| e.token == token))
        .count();
    if let Some(max_uses) = spec.max_uses
        && used >= max_uses as usize
    {
        return Err(JoinRefusal::UsedUp { token, max_uses });
    }
    if now.wall_ms < spec.not_before_ms {
        return Err(JoinRefusal::NotYetOpen { token, opens_ms: spec.not_before_ms, now_ms: now.wall_ms });
    }
    if now.wall_ms > spec.not_after_ms {
        return Err(JoinRefusal::Expired { token, since_ms: now.wall_ms - spec.not_after_ms });
    }
    Ok(())
}

fn token_documents<'a>(
    token: TokenId,
    map: &'a Map,
    trust: &'a Trust,
) -> impl Iterator<Item = &'a TokenSpec> {
    trust.all_current().filter_map(move |(_, place)| match &map.get(place)?.content {
        Content::Spec(document) => match &document.value().spec {
            Some(Spec::Token(spec)) if spec.id == token => Some(spec),
            _ => None,
        },
        _ => None,
    })
}
