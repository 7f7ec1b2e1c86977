//! Machines of this release among those of a later one: what it does not understand it keeps and passes on.

use hivemind_core::event::Message;
use hivemind_core::record::{Record, RecordKey};
use hivemind_spec::document::{Kind, SpecKey};
use hivemind_spec::dsse::Envelope;
use hivemind_tests::sim::cast::*;
use hivemind_tests::sim::world::World;

use super::{from_member, running, runs_everywhere_once, serving};

/// Machine 1 tells machine 0 of a record.
fn tell(world: &mut World, key: &RecordKey, record: Record) {
    let message = Message::Records { records: vec![(key.clone(), record)], ack: None };
    let told = from_member(world, 1, message);
    world.deliver(0, told);
}

fn all_hold(world: &World, key: &RecordKey) -> bool {
    (0..3).all(|index| world.node(index).map().get(key).is_some()) && world.agrees()
}

fn document(json: &str) -> (Envelope, Record) {
    let envelope = Envelope::sign(json.as_bytes(), &root_key());
    (envelope.clone(), Record::Spec(envelope))
}

#[test]
fn what_a_later_release_says_reaches_all_outlives_power_and_disturbs_nothing() {
    let mut world = serving(90, 3);
    let before = running(&world);
    let (writer, key) = (world.machines[1].id, world.machines[1].record_key());
    let (name, record) = of_later_topic(writer, &key, b"in a form of its own");
    tell(&mut world, &name, record.clone());
    assert!(world.run_until(5000, |world| all_hold(world, &name)));
    world.power_off(0);
    world.run(1000);
    world.power_on(0);
    assert!(world.run_until(15_000, |world| all_hold(world, &name)));
    assert_eq!(world.node(0).map().get(&name).unwrap().record, record, "byte for byte");
    assert!(world.run_until(10_000, |world| running(world) == before), "nothing moved");
    world.push(2, workload("other", 6, 3, &root_key())).expect("the cluster goes on");
    assert!(world.run_until(10_000, |world| runs_everywhere_once(world, 6)));

    // Nobody says it in another's name.
    let (_, forged) = of_later_topic(writer, &world.machines[2].record_key(), b"other words");
    let (own, _) = of_later_topic(world.machines[2].id, &key, b"");
    for name in [&name, &own] {
        tell(&mut world, name, forged.clone());
    }
    world.run(3000);
    assert_eq!(world.node(0).map().get(&name).unwrap().record, record);
    assert!(world.node(0).map().get(&own).is_none());
}

#[test]
fn a_document_that_only_a_later_release_reads_is_kept_and_what_runs_is_left_alone_until_it_is_replaced() {
    let mut world = serving(91, 3);
    let before = running(&world);
    let mut json: serde_json::Value =
        serde_json::from_slice(&workload("web", 6, 9, &root_key()).payload().unwrap()).unwrap();
    json["spec"]["novelty"] = true.into();
    let (envelope, record) = document(&json.to_string());
    assert!(world.push(0, envelope.clone()).is_err(), "no operator pushes it to this release");
    let name = RecordKey::Spec(workload_key("web"), root_key().public().id());
    tell(&mut world, &name, record.clone());
    assert!(world.run_until(5000, |world| all_hold(world, &name)));
    world.run(30_000);
    assert_eq!(running(&world), before, "nothing is stopped, started or moved");
    assert_eq!(world.node(2).map().get(&name).unwrap().record, record);
    for index in 0..3 {
        let status = world.node(index).cluster().nodes[&world.machines[index].id].status.clone().unwrap();
        assert!(status.problems[0].contains("too old to read Workload/default/web"), "{:?}", status.problems);
    }
    // Also from its own disk, and after an accident.
    world.power_off(0);
    world.run(1000);
    world.power_on(0);
    world.run(30_000);
    assert_eq!(world.node(0).map().get(&name).unwrap().record, record);

    world.push(1, workload("web", 7, 4, &root_key())).expect("a newer version takes its place");
    assert!(world.run_until(30_000, |world| runs_everywhere_once(world, 4)));
    let is_ready = |world: &World, index: usize| {
        let status = &world.node(index).cluster().nodes[&world.machines[index].id].status;
        status.as_ref().is_some_and(|status| status.problems.is_empty())
    };
    assert!(world.run_until(5000, |world| (0..3).all(|index| is_ready(world, index))));
}

#[test]
fn a_kind_of_documents_of_a_later_release_spreads_and_a_signature_of_nobody_is_refused() {
    let mut world = serving(92, 3);
    let json = r#"{"apiVersion":"hivemind/v1","kind":"Ingress","metadata":{"name":"front","revision":6,"novelty":1}}"#;
    let (_, record) = document(json);
    let name =
        SpecKey { kind: Kind::named("Ingress").unwrap(), namespace: String::new(), name: "front".into() };
    let place = RecordKey::Spec(name.clone(), root_key().public().id());
    tell(&mut world, &place, record);
    assert!(world.run_until(5000, |world| all_hold(world, &place)));

    let stranger = strangers_key();
    let forged = Envelope::sign(json.replace("front", "back").as_bytes(), &stranger);
    let place = RecordKey::Spec(SpecKey { name: "back".into(), ..name }, stranger.public().id());
    tell(&mut world, &place, Record::Spec(forged));
    world.run(5000);
    assert!((0..3).all(|index| world.node(index).map().get(&place).is_none()));
}
