//! Every queue has an end, and a flood that reaches it costs nobody more than the flood.

use std::net::{Ipv4Addr, SocketAddr};

use hivemind_core::event::{Action, Actions, Event, Message, Peer};
use hivemind_core::lease::{Letter, Word};
use hivemind_core::record::{Body, Observation, Record, RecordKey, Topic};
use hivemind_core::state::MAX_RECORDS;
use hivemind_core::statement::{self, MAX_BODY_BYTES};
use hivemind_spec::document::Document;
use hivemind_spec::id::NodeId;
use hivemind_spec::key::SigningKey;
use hivemind_spec::problem::Code;
use hivemind_tests::sim::cast::*;
use hivemind_tests::sim::world::World;

use super::from_member;

fn formed(seed: u64, machines: usize) -> World {
    let mut world = World::with_machines(seed, machines);
    assert!(world.run_until(10_000, World::agrees));
    world.run(3000);
    world
}

fn address(number: u16) -> SocketAddr {
    let [high, low] = number.to_be_bytes();
    SocketAddr::new(Ipv4Addr::new(203, 0, high, low).into(), 7946)
}

/// What a node does about events, which is not done.
fn steps(world: &mut World, index: usize, events: impl IntoIterator<Item = Event>) -> Actions {
    let (now, mut out) = (world.time(index), Actions::new());
    if let Some(node) = &mut world.machines[index].node {
        events.into_iter().for_each(|event| node.step(now, event, &mut out));
    }
    out
}

fn count(actions: &Actions, which: impl Fn(&Action) -> bool) -> usize {
    actions.iter().filter(|action| which(action)).count()
}

/// The certificates of a machine that nobody has seen.
fn stranger(number: u16) -> (NodeId, Vec<Vec<u8>>) {
    let mut seed = [77; 32];
    seed[..2].copy_from_slice(&number.to_be_bytes());
    let chain = chain("t", &SigningKey::from_seed(seed));
    (NodeId::of(&chain[0]), chain)
}

#[test]
fn strangers_that_say_nothing_wait_in_a_bounded_room() {
    let mut world = formed(50, 2);
    let knock = |number: u16| {
        let (node, chain) = stranger(number);
        Event::Connected { peer: Peer { node, address: address(number) }, chain }
    };
    let out = steps(&mut world, 0, (0..1000).map(knock));
    let turned_away = count(
        &out,
        |action| matches!(action, Action::Refuse { reason, .. } if reason.contains("too many nodes join at once")),
    );
    assert_eq!(turned_away, 1000 - 256);
    // The room is empty again after a while, and a machine that introduces itself comes in.
    world.run(10_000);
    let late = world.add("t", Some(token_document("t", 0..u64::MAX, None)));
    world.power_on(late);
    world.introduce_all();
    assert!(world.run_until(10_000, World::agrees));
}

#[test]
fn rumours_of_addresses_are_not_all_followed() {
    let mut world = formed(51, 2);
    let rumours = (0..5000).map(|number| Event::Hint { address: address(number) });
    let out = steps(&mut world, 0, rumours);
    assert_eq!(count(&out, |action| matches!(action, Action::Connect { .. })), 256);

    let peers: Vec<Peer> = (0..50_000)
        .map(|number: u16| Peer { node: stranger(number % 100).0, address: address(number) })
        .collect();
    let told = from_member(&world, 1, Message::Members(peers));
    let out = steps(&mut world, 0, [told]);
    let packets = count(&out, |action| matches!(action, Action::Send { message: Message::Swim(_), .. }));
    assert!(packets <= 64 + 1, "{packets} are spoken to at once");
}

#[test]
fn pushes_under_way_are_bounded_and_the_others_are_told_so() {
    let mut world = formed(52, 3);
    // Nobody stores anything for now, so that none is answered.
    let pushes = (0..400).map(|number: u64| {
        let envelope = workload(&format!("w{number}"), 5, 0, &root_key());
        Event::Push { request: number, envelope }
    });
    let out = steps(&mut world, 0, pushes);
    let refused = count(
        &out,
        |action| matches!(action, Action::Reply { result: Err(problem), .. } if problem.code == Code::Busy),
    );
    assert_eq!(refused, 400 - 256);
}

#[test]
fn what_waits_for_a_disk_that_hangs_is_bounded() {
    let mut world = formed(53, 2);
    let push = Event::Push { request: 1, envelope: workload("web", 5, 0, &root_key()) };
    let out = steps(&mut world, 0, [push]);
    let batch = out.iter().find_map(|action| match action {
        Action::Persist { batch, .. } => Some(*batch),
        _ => None,
    });
    let ask = from_member(&world, 1, Message::Digests(vec![1; 256]));
    let out = steps(&mut world, 0, std::iter::repeat_n(ask, 30_000));
    assert_eq!(count(&out, |action| matches!(action, Action::Send { .. })), 0, "all wait for the disk");
    let out = steps(&mut world, 0, [Event::Persisted { batch: batch.unwrap() }]);
    let sent = count(&out, |action| matches!(action, Action::Send { .. }));
    assert!((5000..=10_050).contains(&sent), "{sent} answers had waited");
}

#[test]
fn a_map_that_is_full_takes_nothing_more_from_a_member_that_floods_it_and_pushes_are_told_why() {
    let mut world = formed(54, 2);
    let (from, key) = (world.machines[1].id, world.machines[1].record_key());
    let placed = world.node(0).map().len();
    let admission = |number: u32| {
        let mut node = [0; 16];
        node[..4].copy_from_slice(&number.to_be_bytes());
        let topic = Topic::Admission(NodeId(node));
        let token = world.machines[1].token_id();
        let observation = Some(Observation::Admission { token, admitted_ms: 1 });
        let body = Body::Observation { boot: 1, sequence: 1_000_000, topic: topic.clone(), observation };
        (RecordKey::Observation(from, topic), Record::Statement(statement::sign(from, &key, &body)))
    };
    let flood: Vec<_> = (0..MAX_RECORDS as u32 + 1000).map(admission).collect();
    let events: Vec<Event> = flood
        .chunks(5000)
        .map(|records| from_member(&world, 1, Message::Records { records: records.to_vec(), ack: None }))
        .collect();
    steps(&mut world, 0, events);
    assert_eq!(world.node(0).map().len(), MAX_RECORDS, "{placed} were there before");
    let push = Event::Push { request: 1, envelope: workload("web", 5, 0, &root_key()) };
    let out = steps(&mut world, 0, [push]);
    let told = out.iter().find_map(|action| match action {
        Action::Reply { result: Err(problem), .. } => Some(problem.detail.clone()),
        _ => None,
    });
    assert!(told.is_some(), "the push is refused: {:?}", out.last());
}

#[test]
fn statements_and_documents_are_bounded() {
    let world = formed(55, 2);
    let (from, key) = (world.machines[1].id, world.machines[1].record_key());
    let body = Body::Observation { boot: 1, sequence: 1, topic: Topic::Node, observation: None };
    let mut large = statement::sign(from, &key, &body);
    large.body.resize(MAX_BODY_BYTES + 1, 0);
    let too_large = statement::StatementError::TooLarge(MAX_BODY_BYTES + 1);
    assert_eq!(statement::read(&large), Err(too_large));

    let mut envelope = workload("web", 5, 1, &root_key());
    let signature = envelope.signatures[0].clone();
    envelope.signatures = vec![signature; 9];
    let refused = envelope.verify(|_| Some(root_key().public())).unwrap_err();
    assert!(refused.to_string().contains("9 signatures, the limit is 8"), "{refused}");
}

#[test]
fn deletions_are_remembered_up_to_a_number() {
    let mut world = formed(56, 2);
    let tombstone = |number: u64| {
        let name = workload_key(&format!("w{number}"));
        let envelope = sign(&Document::tombstone(&name, 5 + number), &root_key());
        (RecordKey::Spec(name, envelope.signatures[0].keyid), Record::Spec(envelope))
    };
    let flood: Vec<_> = (0..8400).map(tombstone).collect();
    for records in flood.chunks(700) {
        let told = from_member(&world, 1, Message::Records { records: records.to_vec(), ack: None });
        world.deliver(0, told);
        world.run(1000);
    }
    let deletions = |world: &World| world.node(0).spec_items().filter(|item| item.deleted).count();
    assert_eq!(deletions(&world), 8400);
    world.run(70 * 60_000);
    assert!(deletions(&world) <= 8192, "{}", deletions(&world));
}

#[test]
fn a_letter_about_a_workload_nobody_knows_leaves_nothing_behind() {
    let mut world = formed(57, 2);
    let letters = (0..5000).map(|number| {
        let word = Word::Ask { round: 1, holds: true, digest: 1, voters: None };
        let workload = workload_id(&format!("w{number}"));
        from_member(&world, 1, Message::Lease(Letter { workload, since: 1, word }))
    });
    let letters: Vec<Event> = letters.collect();
    let out = steps(&mut world, 0, letters);
    let kept = |action: &Action| matches!(action, Action::Persist { .. });
    assert_eq!(count(&out, kept), 0, "nothing is written down");
}
