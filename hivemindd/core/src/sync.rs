//! Anti-entropy: two nodes find out what differs and exchange only that.
//!
//! ```text
//!   A                                   B
//!   | one digest of everything   ---->  |
//!   |  <----  none: equal, done         |
//!   |  <----  one digest per key range  |
//!   | keys of the ranges that differ -> |
//!   |  <----  want these; have those    |
//!   | those  ------------------------>  |
//! ```
//!
//! Nothing is remembered between messages, so any of them may be lost. Every message and every
//! answer is bounded; what does not fit is found again in the next round.

use std::collections::BTreeMap;

use crate::event::Message;
use crate::mutation::{Mutation, is_on};
use crate::record::{Record, RecordKey};
use crate::state::{Map, RANGES, encode, range_of};

/// Records of one message, bytes: keeps the messages of other kinds from waiting long behind it.
/// A single larger record travels alone.
pub const MAX_MESSAGE_BYTES: usize = 256 * 1024;

/// Records sent in answer to one message, bytes: what a slow edge link carries in some seconds.
pub const MAX_ANSWER_BYTES: usize = 2 * 1024 * 1024;

/// Keys listed in one message: 16 bytes each, so at most as large as a message of records.
pub const MAX_LISTED: usize = 16 * 1024;

/// What to do with the digests a peer sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Comparison {
    /// The peer holds the same, and knows it.
    Same,
    /// The peer holds the same, and learns it from this answer.
    Equal(Message),
    /// Send this.
    Answer(Message),
    /// The peer's message makes no sense.
    Malformed,
}

/// The first question.
pub fn ask(map: &Map) -> Message {
    Message::Digests(vec![map.short_digest()])
}

/// Compares a peer's digests with what is held here.
pub fn compare(map: &Map, digests: &[u64]) -> Comparison {
    if is_on(Mutation::AntiEntropySeesNoDifference) {
        return Comparison::Equal(Message::Digests(Vec::new()));
    }
    match digests {
        [] => return Comparison::Same,
        [whole] if *whole == map.short_digest() => return Comparison::Equal(Message::Digests(Vec::new())),
        [_] => return Comparison::Answer(Message::Digests(map.range_digests().to_vec())),
        _ => {}
    }
    if digests.len() != RANGES {
        return Comparison::Malformed;
    }
    let mut ranges = Vec::new();
    let mut listed = 0;
    for (index, (ours, theirs)) in map.range_digests().iter().zip(digests).enumerate() {
        if ours == theirs {
            continue;
        }
        // Always at least one range, so that every round gets somewhere.
        let range = u16::try_from(index).unwrap_or(u16::MAX);
        let keys: Vec<_> = map.range(range).collect();
        if listed > 0 && listed + keys.len() > MAX_LISTED {
            break;
        }
        listed += keys.len();
        ranges.push((range, keys));
    }
    if ranges.is_empty() { Comparison::Same } else { Comparison::Answer(Message::Ranges(ranges)) }
}

/// What differs in the ranges a peer listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// Key hashes the peer has and this node lacks, or has in another version.
    pub want: Vec<u64>,
    /// Key hashes this node has and the peer lacks, or has in another version.
    pub have: Vec<u64>,
}

/// Compares the ranges a peer listed with what is held here. Which of two versions is newer
/// cannot be told from their hashes, so such records travel both ways.
pub fn difference(map: &Map, ranges: &[(u16, Vec<(u64, u64)>)]) -> Difference {
    let mut difference = Difference::default();
    let mut listed = 0;
    for (range, keys) in ranges.iter().take(RANGES) {
        listed += keys.len();
        if usize::from(*range) >= RANGES || (listed > MAX_LISTED && listed > keys.len()) {
            break;
        }
        let theirs: BTreeMap<u64, u64> =
            keys.iter().filter(|(key, _)| range_of(*key) == usize::from(*range)).copied().collect();
        let ours: BTreeMap<u64, u64> = map.range(*range).collect();
        let differs = |a: &BTreeMap<u64, u64>, key: &u64, version: &u64| a.get(key) != Some(version);
        difference.want.extend(theirs.iter().filter(|(k, v)| differs(&ours, k, v)).map(|(k, _)| *k));
        difference.have.extend(ours.iter().filter(|(k, v)| differs(&theirs, k, v)).map(|(k, _)| *k));
    }
    difference.want.truncate(MAX_LISTED);
    difference
}

/// The records with these key hashes, in messages of bounded size.
pub fn records(map: &Map, hashes: &[u64]) -> Vec<Message> {
    let found = hashes.iter().take(MAX_LISTED).filter_map(|hash| map.by_hash(*hash));
    pack(found.map(|(key, entry)| (key.clone(), entry.record.clone())), None)
}

/// Packs records into messages of bounded size and number. The order is kept.
pub fn pack(records: impl Iterator<Item = (RecordKey, Record)>, ack: Option<u64>) -> Vec<Message> {
    let mut messages = Vec::new();
    let (mut batch, mut bytes, mut total) = (Vec::new(), 0, 0);
    for (key, record) in records {
        let size = size_of_record(&key, &record);
        if total > 0 && total + size > MAX_ANSWER_BYTES {
            break;
        }
        if bytes > 0 && bytes + size > MAX_MESSAGE_BYTES {
            messages.push(Message::Records { records: std::mem::take(&mut batch), ack });
            bytes = 0;
        }
        bytes += size;
        total += size;
        batch.push((key, record));
    }
    if !batch.is_empty() {
        messages.push(Message::Records { records: batch, ack });
    }
    messages
}

fn size_of_record(key: &RecordKey, record: &Record) -> usize {
    encode(key).len()
        + match record {
            Record::Spec(envelope) => envelope.payload.len() + 256 * envelope.signatures.len() + 64,
            Record::Statement(statement) => statement.body.len() + statement.signature.len() + 32,
        }
}

#[cfg(test)]
mod tests;
