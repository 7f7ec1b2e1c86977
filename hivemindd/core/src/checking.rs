//! Checking records: from bytes a peer or a disk handed over to [`Entry`]s the map may hold.
//!
//! A record is accepted when its signatures verify and it is where it belongs. That depends only
//! on the record and on keys that other records carry, never on roles, clocks or the order of
//! arrival: what needs a key that is not here yet is refused for now and comes again by
//! anti-entropy. Whether an accepted record counts is another question ([`crate::trust`],
//! [`crate::enrolment`]).

use std::collections::BTreeMap;

use hivemind_spec::certificate::NodeIdentity;
use hivemind_spec::document::{Document, Spec};
use hivemind_spec::dsse::{Envelope, Verified};
use hivemind_spec::id::{Digest, KeyId, NodeId};
use hivemind_spec::key::{PublicKey, SignatureVerifier};

use crate::enrolment::ChainVerifier;
use crate::record::{Body, Decision, Matter, Observation, Record, RecordKey, Statement, Topic};
use crate::state::{Content, Entry, Map, Order, Version, encode};
use crate::statement;

/// Why a record is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A signature is by a key no document here carries. It may come.
    #[error("it is signed by key {0}, which no document here carries")]
    UnknownKey(KeyId),
    /// The writer's enrolment is not here. It may come.
    #[error("its writer {0} is not known here")]
    UnknownWriter(NodeId),
    /// It is wrong, and will stay so.
    #[error("{0}")]
    Wrong(String),
}

impl Refusal {
    /// Whether other records may make it acceptable.
    pub fn may_pass(&self) -> bool {
        !matches!(self, Refusal::Wrong(_))
    }
}

/// The keys that signatures are checked with.
#[derive(Debug, Clone)]
pub struct Keyring {
    root_ca: Vec<u8>,
    verify_chain: ChainVerifier,
    verify_signature: SignatureVerifier,
    roots: BTreeMap<KeyId, PublicKey>,
    operators: BTreeMap<KeyId, PublicKey>,
    writers: BTreeMap<NodeId, PublicKey>,
}

impl Keyring {
    /// The keys of the machine configuration.
    pub fn new(
        root_ca: Vec<u8>,
        roots: &[PublicKey],
        verify_chain: ChainVerifier,
        verify_signature: SignatureVerifier,
    ) -> Self {
        Self {
            root_ca,
            verify_chain,
            verify_signature,
            roots: roots.iter().map(|key| (key.id(), *key)).collect(),
            operators: BTreeMap::new(),
            writers: BTreeMap::new(),
        }
    }

    /// The operator key with this id: a root key, or one that some document here carries.
    pub fn operator(&self, id: &KeyId) -> Option<PublicKey> {
        self.roots.get(id).or_else(|| self.operators.get(id)).copied()
    }

    /// The key a node signs its records with, if it has enrolled as far as is known.
    pub fn writer(&self, node: &NodeId) -> Option<PublicKey> {
        self.writers.get(node).copied()
    }

    /// Whose chain of certificates this is, if it leads to the cluster's root CA.
    ///
    /// # Errors
    /// In words, why it does not.
    pub fn chain_owner<D: AsRef<[u8]>>(&self, chain: &[D]) -> Result<NodeIdentity, String> {
        let [node_ca, token_ca] = chain else {
            return Err(format!("a chain of {} certificates instead of node CA and token CA", chain.len()));
        };
        (self.verify_chain)(&self.root_ca, node_ca.as_ref(), token_ca.as_ref()).map_err(|e| e.to_string())
    }

    /// Takes note of the keys `entry` carries.
    pub fn learn(&mut self, key: &RecordKey, entry: &Entry) {
        match (&entry.content, key) {
            (Content::Spec(document), _) => {
                if let Some(public) = carried_key(document.value()) {
                    self.operators.insert(public.id(), public);
                }
            }
            (
                Content::Observation(Some(Observation::Enrolment(enrolment))),
                RecordKey::Observation(node, _),
            ) => {
                if let Ok(owner) = self.chain_owner(&enrolment.chain) {
                    self.writers.insert(*node, owner.record_key);
                }
            }
            _ => {}
        }
    }

    /// Makes the operators' part anew from `map`. Returns the keys that are gone.
    pub fn relearn_operators(&mut self, map: &Map) -> Vec<KeyId> {
        let fresh: BTreeMap<_, _> = map
            .iter()
            .take_while(|(key, _)| matches!(key, RecordKey::Spec(..)))
            .filter_map(|(_, entry)| match &entry.content {
                Content::Spec(document) => carried_key(document.value()).map(|key| (key.id(), key)),
                _ => None,
            })
            .collect();
        let gone = self.operators.keys().filter(|id| !fresh.contains_key(id)).copied().collect();
        self.operators = fresh;
        gone
    }

    /// Checks a record.
    ///
    /// # Errors
    /// Says why it is not taken, and whether that may change.
    pub fn check(&self, key: &RecordKey, record: &Record) -> Result<Entry, Refusal> {
        let (order, content) = match record {
            Record::Spec(envelope) => self.check_spec(key, envelope)?,
            Record::Statement(statement) => self.check_statement(key, statement)?,
        };
        let version = Version { order, tie: Digest::of(&encode(record)) };
        Ok(Entry { version, record: record.clone(), content })
    }

    fn check_spec(&self, key: &RecordKey, envelope: &Envelope) -> Result<(Order, Content), Refusal> {
        let document = self.check_envelope(envelope)?;
        if *key != spec_key(envelope, &document) {
            return Err(Refusal::Wrong("it is filed under another document's name".into()));
        }
        let order = Order::Spec {
            revision: document.value().metadata.revision,
            digest: document.digest(),
            // At most MAX_SIGNATURES, which fits.
            signatures: u8::try_from(envelope.signatures.len()).unwrap_or(u8::MAX),
        };
        Ok((order, Content::Spec(document)))
    }

    /// Checks every signature on an envelope: a stranger's would let anybody displace the
    /// envelope by one of the same document with a meaningless signature more. The document may be a later
    /// release's.
    ///
    /// # Errors
    /// When a signature is by an unknown key, or wrong, or the document is.
    pub fn check_envelope(&self, envelope: &Envelope) -> Result<Verified<Document>, Refusal> {
        for (index, signature) in envelope.signatures.iter().enumerate() {
            if self.operator(&signature.keyid).is_none() {
                return Err(Refusal::UnknownKey(signature.keyid));
            }
            if envelope.signatures[..index].iter().any(|s| s.keyid == signature.keyid) {
                return Err(Refusal::Wrong(format!("key {} signed it twice", signature.keyid)));
            }
        }
        envelope
            .verify_held(self.verify_signature, |id| self.operator(id))
            .map_err(|e| Refusal::Wrong(e.to_string()))
    }

    fn check_statement(&self, key: &RecordKey, statement: &Statement) -> Result<(Order, Content), Refusal> {
        let wrong = |e: statement::StatementError| Refusal::Wrong(e.to_string());
        let body = statement::read(statement).map_err(wrong)?;
        if *key != statement::key(statement.writer, &body) {
            return Err(Refusal::Wrong("it is filed under another subject's name".into()));
        }
        let writer = self.writer_of(statement, &body)?;
        statement::check(statement, &writer, self.verify_signature).map_err(wrong)?;
        Ok(match body {
            Body::Observation { boot, sequence, topic, observation } => {
                if observation.as_ref().is_some_and(|o| !is_about(o, &topic)) {
                    return Err(Refusal::Wrong("it says something else than its topic".into()));
                }
                (Order::Observation { boot, sequence }, Content::Observation(observation))
            }
            Body::Decision { clock, matter, decision } => {
                if decision.as_ref().is_some_and(|decision| !is_on(decision, &matter)) {
                    return Err(Refusal::Wrong("it decides something else than its matter".into()));
                }
                (Order::Decision { clock }, Content::Decision(decision))
            }
        })
    }

    /// The writer's record key: from the chain in the statement itself when it is an enrolment.
    fn writer_of(&self, statement: &Statement, body: &Body) -> Result<PublicKey, Refusal> {
        if let Body::Observation { observation: Some(Observation::Enrolment(enrolment)), .. } = body {
            let owner = self.chain_owner(&enrolment.chain).map_err(Refusal::Wrong)?;
            if owner.node != statement.writer || owner.token != enrolment.token {
                return Err(Refusal::Wrong("its certificates are another node's".into()));
            }
            return Ok(owner.record_key);
        }
        self.writers.get(&statement.writer).copied().ok_or(Refusal::UnknownWriter(statement.writer))
    }
}

/// Where an envelope belongs in the map: at its first signer's place.
pub fn spec_key(envelope: &Envelope, document: &Verified<Document>) -> RecordKey {
    let signer = envelope.signatures.first().map_or(KeyId([0; 16]), |s| s.keyid);
    RecordKey::Spec(document.value().key(), signer)
}

fn carried_key(document: &Document) -> Option<PublicKey> {
    match &document.spec {
        Some(Spec::Key(key)) => PublicKey::from_base64(&key.public_key).ok(),
        _ => None,
    }
}

/// Whether a decision is on what its matter announces.
fn is_on(decision: &Decision, matter: &Matter) -> bool {
    matches!(
        (decision, matter),
        (Decision::Placement(_), Matter::Placement(_))
            | (Decision::Forgotten(_), Matter::Forgotten)
            | (Decision::Rollout(_), Matter::Rollout(_))
            | (Decision::Job(_), Matter::Job(_))
            | (Decision::Unknown, _)
    )
}

/// Whether an observation says what its topic announces.
fn is_about(observation: &Observation, topic: &Topic) -> bool {
    matches!(
        (observation, topic),
        (Observation::Enrolment(_), Topic::Enrolment)
            | (Observation::Admission { .. }, Topic::Admission(_))
            | (Observation::Node(_), Topic::Node)
            | (Observation::Replica(_), Topic::Replica(_))
            | (Observation::Overtaken(_), Topic::Overtaken(_))
            | (Observation::Doubled(_), Topic::Doubled(_))
            | (Observation::Volume(_), Topic::Volume(_))
            | (Observation::Shared(_), Topic::Shared(..))
            | (Observation::Images(_), Topic::Images)
            | (Observation::Unknown, _)
    )
}
