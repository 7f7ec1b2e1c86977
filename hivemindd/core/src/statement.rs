//! Statements: what nodes sign with their record keys.

use hivemind_spec::id::NodeId;
use hivemind_spec::key::{PublicKey, SignatureVerifier, SigningKey};
use serde::{Deserialize, Serialize};

use crate::form;
use crate::record::{Body, Decision, Matter, Observation, Record, RecordKey, Statement, Topic};
use crate::state::encode;
use crate::time::Hlc;

/// Signed before every body, so that a signature over a statement is never one over anything
/// else the same key signs.
const DOMAIN: &[u8] = b"hivemind statement v1\0";

/// The largest body accepted, bytes: a placement of ten thousand replicas (23 bytes each) with
/// room to spare.
pub const MAX_BODY_BYTES: usize = 512 * 1024;

/// Why bytes are not a statement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    /// It is over the limit.
    #[error("a statement of {0} bytes is over the limit of {MAX_BODY_BYTES}")]
    TooLarge(usize),
    /// The body is not one.
    #[error("the statement cannot be read")]
    Malformed(#[source] postcard::Error),
    /// The signature is not the writer's.
    #[error("the signature is not that of node {0}")]
    BadSignature(NodeId),
}

/// A [`Body`] as it is signed: in the fixed form, with what is said in the growing one ([`form`]). A release
/// that does not understand what is said still reads from it where the statement belongs and how new it is.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Frame {
    Observation {
        boot: u64,
        sequence: u64,
        topic: Topic,
        /// An [`Observation`]; empty: taken back.
        said: Vec<u8>,
    },
    Decision {
        clock: Hlc,
        matter: Matter,
        /// A [`Decision`]; empty: taken back.
        decided: Vec<u8>,
    },
}

impl Frame {
    fn around(body: &Body) -> Self {
        match body {
            Body::Observation { boot, sequence, topic, observation } => Self::Observation {
                boot: *boot,
                sequence: *sequence,
                topic: topic.clone(),
                said: observation.as_ref().map(form::write).unwrap_or_default(),
            },
            Body::Decision { clock, matter, decision } => Self::Decision {
                clock: *clock,
                matter: matter.clone(),
                decided: decision.as_ref().map(form::write).unwrap_or_default(),
            },
        }
    }

    fn open(self) -> Body {
        match self {
            Self::Observation { boot, sequence, topic, said } => {
                let read = || form::read(&said).unwrap_or(Observation::Unknown);
                let observation = (!said.is_empty()).then(read);
                Body::Observation { boot, sequence, topic, observation }
            }
            Self::Decision { clock, matter, decided } => {
                let read = || form::read(&decided).unwrap_or(Decision::Unknown);
                let decision = (!decided.is_empty()).then(read);
                Body::Decision { clock, matter, decision }
            }
        }
    }
}

/// Signs what `writer` says.
pub fn sign(writer: NodeId, key: &SigningKey, body: &Body) -> Statement {
    sign_bytes(writer, key, encode(&Frame::around(body)))
}

/// Signs a body that is written already, whatever release can read it.
pub fn sign_bytes(writer: NodeId, key: &SigningKey, body: Vec<u8>) -> Statement {
    let signature = key.sign(&message(writer, &body));
    Statement { writer, body, signature }
}

/// Reads a statement without believing it: its signature is not checked. What is said in it may be
/// [`Observation::Unknown`] or [`Decision::Unknown`].
///
/// # Errors
/// When it is too large or not a statement.
pub fn read(statement: &Statement) -> Result<Body, StatementError> {
    if statement.body.len() > MAX_BODY_BYTES {
        return Err(StatementError::TooLarge(statement.body.len()));
    }
    postcard::from_bytes(&statement.body).map(Frame::open).map_err(StatementError::Malformed)
}

/// Checks that the owner of `key`, node `statement.writer`, signed the statement.
///
/// # Errors
/// When it did not.
pub fn check(
    statement: &Statement,
    key: &PublicKey,
    verifies: SignatureVerifier,
) -> Result<(), StatementError> {
    if verifies(key, &message(statement.writer, &statement.body), &statement.signature) {
        Ok(())
    } else {
        Err(StatementError::BadSignature(statement.writer))
    }
}

/// Where a statement belongs in the map.
pub fn key(writer: NodeId, body: &Body) -> RecordKey {
    match body {
        Body::Observation { topic, .. } => RecordKey::Observation(writer, topic.clone()),
        Body::Decision { matter, .. } => RecordKey::Decision(matter.clone()),
    }
}

/// The statement in a record, if it is one.
pub fn of(record: &Record) -> Option<&Statement> {
    match record {
        Record::Statement(statement) => Some(statement),
        Record::Spec(_) => None,
    }
}

fn message(writer: NodeId, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(DOMAIN.len() + writer.0.len() + body.len());
    message.extend_from_slice(DOMAIN);
    message.extend_from_slice(&writer.0);
    message.extend_from_slice(body);
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Topic;

    fn body() -> Body {
        Body::Observation { boot: 1, sequence: 2, topic: Topic::Node, observation: None }
    }

    #[test]
    fn a_statement_verifies_only_for_its_writer_its_key_and_its_bytes() {
        let (me, key) = (NodeId([1; 16]), SigningKey::from_seed([1; 32]));
        let good = sign(me, &key, &body());
        assert_eq!(check(&good, &key.public(), PublicKey::verifies), Ok(()));
        assert_eq!(read(&good).unwrap(), body());

        assert!(check(&good, &SigningKey::from_seed([2; 32]).public(), PublicKey::verifies).is_err());
        let mut other = good.clone();
        other.writer = NodeId([2; 16]);
        assert!(check(&other, &key.public(), PublicKey::verifies).is_err());
        let mut changed = good.clone();
        changed.body[0] ^= 1;
        assert!(check(&changed, &key.public(), PublicKey::verifies).is_err());
    }

    #[test]
    fn a_bare_signature_over_the_body_is_not_a_statement() {
        let (me, key) = (NodeId([1; 16]), SigningKey::from_seed([1; 32]));
        let bytes = encode(&Frame::around(&body()));
        let forged = Statement { writer: me, signature: key.sign(&bytes), body: bytes };
        assert!(check(&forged, &key.public(), PublicKey::verifies).is_err());
    }
}
