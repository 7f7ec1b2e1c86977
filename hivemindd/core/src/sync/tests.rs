use hivemind_spec::id::{Digest, NodeId};
use proptest::prelude::*;

use super::*;
use crate::record::{Statement, Topic};
use crate::state::{Content, Entry, Order, Version};

fn entry(node: u16, sequence: u64, bytes: usize) -> (RecordKey, Entry) {
    let mut id = [0; 16];
    id[..2].copy_from_slice(&node.to_be_bytes());
    let writer = NodeId(id);
    let body = vec![sequence.to_le_bytes()[0]; bytes];
    let record = Record::Statement(Statement { writer, body, signature: vec![] });
    let version =
        Version { order: Order::Observation { boot: 1, sequence }, tie: Digest::of(&encode(&record)) };
    (
        RecordKey::Observation(writer, Topic::Node),
        Entry { version, record, content: Content::Observation(None) },
    )
}

/// Answers one message as a node would, without signatures. `of` finds a record's version.
fn answer(map: &mut Map, message: Message, of: &BTreeMap<Digest, Entry>) -> Vec<Message> {
    match message {
        Message::Digests(digests) => match compare(map, &digests) {
            Comparison::Answer(message) | Comparison::Equal(message) => vec![message],
            Comparison::Same | Comparison::Malformed => Vec::new(),
        },
        Message::Ranges(ranges) => {
            let difference = difference(map, &ranges);
            let mut messages = records(map, &difference.have);
            messages.push(Message::Want(difference.want));
            messages
        }
        Message::Want(hashes) => records(map, &hashes),
        Message::Records { records, .. } => {
            for (key, record) in records {
                map.merge(key, of[&Digest::of(&encode(&record))].clone());
            }
            Vec::new()
        }
        _ => Vec::new(),
    }
}

/// One round that `a` begins. Returns how many messages it took.
fn round(a: &mut Map, b: &mut Map, of: &BTreeMap<Digest, Entry>) -> usize {
    let mut to_b = vec![ask(a)];
    let mut to_a = Vec::new();
    let mut count = 0;
    while !to_a.is_empty() || !to_b.is_empty() {
        count += to_a.len() + to_b.len();
        let for_b: Vec<_> = std::mem::take(&mut to_b);
        let for_a: Vec<_> = std::mem::take(&mut to_a);
        to_a.extend(for_b.into_iter().flat_map(|m| answer(b, m, of)));
        to_b.extend(for_a.into_iter().flat_map(|m| answer(a, m, of)));
    }
    count
}

fn maps(a: &[(RecordKey, Entry)], b: &[(RecordKey, Entry)]) -> (Map, Map, BTreeMap<Digest, Entry>) {
    let (mut left, mut right, mut of) = (Map::default(), Map::default(), BTreeMap::new());
    for (map, entries) in [(&mut left, a), (&mut right, b)] {
        for (key, entry) in entries {
            of.insert(Digest::of(&encode(&entry.record)), entry.clone());
            map.merge(key.clone(), entry.clone());
        }
    }
    (left, right, of)
}

proptest! {
    #[test]
    fn one_round_makes_two_maps_alike(
        a in proptest::collection::vec((0u16..200, 0u64..4), 0..120),
        b in proptest::collection::vec((0u16..200, 0u64..4), 0..120),
    ) {
        let make = |list: &[(u16, u64)]| list.iter().map(|(n, s)| entry(*n, *s, 8)).collect::<Vec<_>>();
        let (mut left, mut right, of) = maps(&make(&a), &make(&b));
        round(&mut left, &mut right, &of);
        prop_assert_eq!(left.digest(), right.digest());
        prop_assert_eq!(round(&mut left, &mut right, &of), 2, "alike maps need a question and an answer");
    }

    #[test]
    fn nonsense_from_a_peer_is_harmless(
        digests in proptest::collection::vec(any::<u64>(), 0..300),
        ranges in proptest::collection::vec((any::<u16>(), proptest::collection::vec(any::<(u64, u64)>(), 0..9)), 0..9),
    ) {
        let (map, _, _) = maps(&[entry(1, 1, 8)], &[]);
        compare(&map, &digests);
        let difference = difference(&map, &ranges);
        prop_assert!(difference.want.len() <= MAX_LISTED);
        prop_assert!(records(&map, &difference.want).is_empty());
    }
}

#[test]
fn only_what_differs_travels() {
    let common: Vec<_> = (0..1000).map(|n| entry(n, 1, 100)).collect();
    let (mut left, right, _) = maps(&common, &common);
    let (key, news) = entry(7, 2, 100);
    left.merge(key, news);
    let Comparison::Answer(Message::Ranges(ranges)) = compare(&right, left.range_digests()) else {
        panic!("they differ")
    };
    assert_eq!(ranges.len(), 1);
    let difference = difference(&left, &ranges);
    assert_eq!((difference.want.len(), difference.have.len()), (1, 1));
}

#[test]
fn large_differences_take_several_bounded_rounds() {
    let many: Vec<_> = (0..600).map(|n| entry(n, 1, 10_000)).collect();
    let (mut left, mut right, of) = maps(&many, &[]);
    let hashes: Vec<u64> = many.iter().map(|(key, _)| crate::state::key_hash(key)).collect();
    for message in records(&left, &hashes) {
        let Message::Records { records, .. } = message else { panic!("records") };
        let bytes: usize = records.iter().map(|(_, record)| encode(record).len()).sum();
        assert!(bytes <= MAX_MESSAGE_BYTES);
    }
    let mut rounds = 0;
    while left.digest() != right.digest() {
        let before = right.len();
        round(&mut left, &mut right, &of);
        assert!(right.len() > before, "every round gets somewhere");
        assert!(right.len() - before <= 2 * MAX_ANSWER_BYTES / 10_000);
        rounds += 1;
    }
    assert!(rounds > 1);
}

#[test]
fn a_record_over_the_limit_of_a_message_travels_alone() {
    let large = [entry(1, 1, MAX_MESSAGE_BYTES * 4), entry(2, 1, 10)];
    let (left, _, _) = maps(&large, &[]);
    let hashes: Vec<u64> = large.iter().map(|(key, _)| crate::state::key_hash(key)).collect();
    assert_eq!(records(&left, &hashes).len(), 2);
}
