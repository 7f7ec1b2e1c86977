//! The replicated map: `key -> (version, record)`, where merging takes the higher version.
//!
//! Merging is commutative, associative and idempotent, so nodes that have seen the same records
//! hold the same map, whatever the order. The map holds only records that were checked
//! ([`Entry`] is made by [`crate::checking`] alone); whether a checked record *counts* is decided
//! elsewhere, from the whole set.
//!
//! Besides the records it keeps one digest per key range, updated with every change, so that two
//! nodes find out what differs without sending what does not.

use std::collections::BTreeMap;

use hivemind_spec::document::{Document, SpecKey};
use hivemind_spec::dsse::Verified;
use hivemind_spec::id::{Digest, KeyId, NodeId};
use serde::{Deserialize, Serialize};

use crate::mutation::{Mutation, is_on};
use crate::record::{Decision, Matter, Observation, Record, RecordKey, Topic, WorkloadId};
use crate::time::Hlc;

/// Key ranges with a digest of their own. 256 digests fit two packets, and with ten thousand
/// records a difference is found by listing forty keys.
pub const RANGES: usize = 256;

/// Records in the map: a cluster of hundreds of nodes with thousands of replicas has some tens of
/// thousands. The limit keeps a peer gone mad from filling memory and disk.
pub const MAX_RECORDS: usize = 200_000;

/// Orders the versions of one record. Records of one key have versions of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// What its writer says about its place in time.
    pub order: Order,
    /// The hash of the whole record: two that claim the same place still have one winner.
    pub tie: Digest,
}

/// A version in its writer's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Order {
    /// Of a document. More signatures on the same bytes win, because each adds a guarantor.
    Spec {
        /// The signer's revision.
        revision: u64,
        /// Decides between documents of one revision.
        digest: Digest,
        /// How many signatures the envelope carries.
        signatures: u8,
    },
    /// Of an observation.
    Observation {
        /// How often the writer has booted.
        boot: u64,
        /// Counts within one boot.
        sequence: u64,
    },
    /// Of a decision.
    Decision {
        /// The leader's hybrid clock.
        clock: Hlc,
    },
}

/// What a record says, once its signature has been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A document; all signatures on it verify.
    Spec(Verified<Document>),
    /// An observation, or its withdrawal.
    Observation(Option<Observation>),
    /// A decision, or its withdrawal.
    Decision(Option<Decision>),
}

/// A record that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Orders it among the versions of its key.
    pub version: Version,
    /// As it travels.
    pub record: Record,
    /// What it says.
    pub content: Content,
}

/// The records held, and the digests of their ranges.
#[derive(Debug, Clone)]
pub struct Map {
    entries: BTreeMap<RecordKey, Entry>,
    keys: BTreeMap<u64, RecordKey>,
    ranges: Vec<u64>,
}

impl Default for Map {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), keys: BTreeMap::new(), ranges: vec![0; RANGES] }
    }
}

/// The short name of a key in anti-entropy.
pub fn key_hash(key: &RecordKey) -> u64 {
    short_hash(&encode(key))
}

/// The range a key hash belongs to.
pub fn range_of(key_hash: u64) -> usize {
    (key_hash >> 56) as usize
}

/// The short name of a version in anti-entropy.
pub fn version_hash(version: &Version) -> u64 {
    u64::from_be_bytes([
        version.tie.0[0],
        version.tie.0[1],
        version.tie.0[2],
        version.tie.0[3],
        version.tie.0[4],
        version.tie.0[5],
        version.tie.0[6],
        version.tie.0[7],
    ])
}

/// Bytes of `value` as they are hashed and stored.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // Our record types have no untagged or flattened parts, so postcard cannot refuse them.
    postcard::to_stdvec(value).unwrap_or_default()
}

fn short_hash(bytes: &[u8]) -> u64 {
    let digest = Digest::of(bytes).0;
    u64::from_be_bytes([
        digest[0], digest[1], digest[2], digest[3], digest[4], digest[5], digest[6], digest[7],
    ])
}

/// One record's share in the digest of its range. Hashed again so that equal parts of different
/// records do not cancel each other out.
fn share(key_hash: u64, version_hash: u64) -> u64 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&key_hash.to_be_bytes());
    bytes[8..].copy_from_slice(&version_hash.to_be_bytes());
    short_hash(&bytes)
}

impl Map {
    /// What is held under `key`.
    pub fn get(&self, key: &RecordKey) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// Every record, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&RecordKey, &Entry)> {
        self.entries.iter()
    }

    /// What one node says, by topic.
    pub fn observations(&self, node: NodeId) -> impl Iterator<Item = (&RecordKey, &Entry)> {
        self.entries
            .range(RecordKey::Observation(node, Topic::Enrolment)..)
            .take_while(move |(key, _)| matches!(key, RecordKey::Observation(writer, _) if *writer == node))
    }

    /// What leaders decided, by matter.
    pub fn decisions(&self) -> impl Iterator<Item = (&RecordKey, &Entry)> {
        let first = WorkloadId { namespace: String::new(), name: String::new() };
        self.entries.range(RecordKey::Decision(Matter::Placement(first))..)
    }

    /// Whether any signer's version of the document is held, tombstones included.
    pub fn has_document(&self, name: &SpecKey) -> bool {
        let place = |signer| RecordKey::Spec(name.clone(), KeyId([signer; 16]));
        self.entries.range(place(0)..=place(u8::MAX)).next().is_some()
    }

    /// How many records are held.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether `version` is newer than what is held under `key`.
    pub fn wants(&self, key: &RecordKey, version: &Version) -> bool {
        let Some(held) = self.entries.get(key).map(|entry| &entry.version) else { return true };
        if is_on(Mutation::MergeTakesWhatArrives) {
            return held != version;
        }
        if is_on(Mutation::TheFirstOfEqualsStays)
            && let (Order::Spec { revision: ours, .. }, Order::Spec { revision: theirs, .. }) =
                (held.order, version.order)
        {
            return ours < theirs;
        }
        held < version
    }

    /// Takes `entry` if it is newer than what is held. Returns whether the map changed.
    pub fn merge(&mut self, key: RecordKey, entry: Entry) -> bool {
        if !self.wants(&key, &entry.version) {
            return false;
        }
        if !self.entries.contains_key(&key) && self.entries.len() >= MAX_RECORDS {
            return false;
        }
        self.remove(&key);
        let hash = key_hash(&key);
        self.ranges[range_of(hash)] ^= share(hash, version_hash(&entry.version));
        self.keys.insert(hash, key.clone());
        self.entries.insert(key, entry);
        true
    }

    /// Drops what is held under `key`.
    pub fn remove(&mut self, key: &RecordKey) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        let hash = key_hash(key);
        self.ranges[range_of(hash)] ^= share(hash, version_hash(&entry.version));
        self.keys.remove(&hash);
        Some(entry)
    }

    /// One digest per key range.
    pub fn range_digests(&self) -> &[u64] {
        &self.ranges
    }

    /// The digest of everything.
    pub fn digest(&self) -> Digest {
        Digest::of(&encode(&self.ranges))
    }

    /// The digest of everything, short: the first question of anti-entropy.
    pub fn short_digest(&self) -> u64 {
        short_hash(&encode(&self.ranges))
    }

    /// (key hash, version hash) of every record in a range, by key hash.
    pub fn range(&self, range: u16) -> impl Iterator<Item = (u64, u64)> + '_ {
        let first = u64::from(range) << 56;
        let last = first | ((1 << 56) - 1);
        self.keys.range(first..=last).filter_map(|(hash, key)| {
            self.entries.get(key).map(|entry| (*hash, version_hash(&entry.version)))
        })
    }

    /// The record whose key hashes to `hash`.
    pub fn by_hash(&self, hash: u64) -> Option<(&RecordKey, &Entry)> {
        let key = self.keys.get(&hash)?;
        self.entries.get(key).map(|entry| (key, entry))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::Statement;

    fn entry(node: u8, boot: u64, sequence: u64, salt: u8) -> (RecordKey, Entry) {
        let writer = NodeId([node; 16]);
        let record = Record::Statement(Statement { writer, body: vec![salt], signature: vec![] });
        let version =
            Version { order: Order::Observation { boot, sequence }, tie: Digest::of(&encode(&record)) };
        let key = RecordKey::Observation(writer, Topic::Node);
        (key, Entry { version, record, content: Content::Observation(None) })
    }

    fn entries() -> impl Strategy<Value = Vec<(RecordKey, Entry)>> {
        proptest::collection::vec(
            (0u8..4, 0u64..3, 0u64..3, 0u8..3).prop_map(|(n, b, s, x)| entry(n, b, s, x)),
            0..24,
        )
    }

    fn map(entries: &[(RecordKey, Entry)]) -> Map {
        let mut map = Map::default();
        for (key, entry) in entries {
            map.merge(key.clone(), entry.clone());
        }
        map
    }

    fn merged(a: &Map, b: &Map) -> Map {
        let mut map = a.clone();
        for (key, entry) in b.iter() {
            map.merge(key.clone(), entry.clone());
        }
        map
    }

    fn same(a: &Map, b: &Map) -> bool {
        a.entries == b.entries && a.digest() == b.digest() && a.keys == b.keys
    }

    proptest! {
        #[test]
        fn merging_maps_is_commutative_associative_and_idempotent(
            a in entries(), b in entries(), c in entries()
        ) {
            let (a, b, c) = (map(&a), map(&b), map(&c));
            prop_assert!(same(&merged(&a, &b), &merged(&b, &a)));
            prop_assert!(same(&merged(&merged(&a, &b), &c), &merged(&a, &merged(&b, &c))));
            prop_assert!(same(&merged(&a, &a), &a));
        }

        #[test]
        fn range_digests_depend_on_the_records_only(a in entries(), cut in 0usize..24) {
            let whole = map(&a);
            let mut detour = map(&a[..cut.min(a.len())]);
            let keys: Vec<_> = detour.entries.keys().cloned().collect();
            keys.iter().for_each(|key| { detour.remove(key); });
            prop_assert!(detour.range_digests() == Map::default().range_digests());
            prop_assert!(same(&merged(&detour, &whole), &whole));
        }
    }

    #[test]
    fn a_range_lists_exactly_its_records() {
        let all: Vec<_> = (0..200).map(|n| entry(n, 1, 1, 0)).collect();
        let map = map(&all);
        let mut listed = 0;
        for range in 0..RANGES as u16 {
            for (hash, _) in map.range(range) {
                assert_eq!(range_of(hash), usize::from(range));
                assert!(map.by_hash(hash).is_some());
                listed += 1;
            }
        }
        assert_eq!(listed, 200);
    }
}
