//! What nodes do with each other, situation by situation, in the simulator.

mod deletions;
mod later;
mod limits;
mod members;
mod rollout;
mod scale;
mod takeover;
mod trial;
mod volumes;

use std::collections::BTreeSet;

use hivemind_core::event::{Event, Message};
use hivemind_spec::api::Accepted;
use hivemind_spec::document::Ancestor;
use hivemind_spec::key::SigningKey;
use hivemind_spec::problem::Code;
use hivemind_tests::sim::cast::*;
use hivemind_tests::sim::world::World;

#[test]
fn three_identical_machines_form_one_cluster_with_no_first_among_them() {
    for seed in 0..5 {
        let mut world = World::with_machines(seed, 3);
        assert!(world.run_until(8000, World::agrees), "seed {seed}");
        world.run(3000);
        assert!(world.agrees(), "seed {seed}");
        let subnets: BTreeSet<_> =
            world.node(0).cluster().nodes.values().filter_map(|node| node.enrolment.subnet).collect();
        assert_eq!(subnets.len(), 3, "seed {seed}: each its own subnet");
        let leaders: BTreeSet<_> = (0..3).map(|index| world.node(index).leader()).collect();
        assert_eq!(leaders.len(), 1);
        assert!(leaders.iter().all(Option::is_some));
    }
}

#[test]
fn a_fourth_machine_joins_within_five_seconds() {
    let mut world = World::with_machines(1, 3);
    assert!(world.run_until(8000, World::agrees));
    let fourth = world.add("t", Some(token_document("t", 0..u64::MAX, None)));
    world.power_on(fourth);
    world.introduce_all();
    assert!(world.run_until(5000, World::agrees));
}

#[test]
fn a_push_is_answered_once_two_others_hold_it() {
    let mut world = World::with_machines(2, 3);
    assert!(world.run_until(8000, World::agrees));
    let accepted = world.push(1, workload("web", 5, 2, &root_key())).unwrap();
    assert!(accepted.changed);
    assert_eq!((accepted.held_by.len(), accepted.wanted_holders), (3, 2));
    for index in 0..3 {
        let holds = world.machines[index].disk.values().any(|value| {
            matches!(postcard::from_bytes(value), Ok(hivemind_core::record::Record::Spec(e)) if e == workload("web", 5, 2, &root_key()))
        });
        assert!(holds, "on the disk of {index}");
    }
    let again = world.push(1, workload("web", 5, 2, &root_key())).unwrap();
    assert!(!again.changed);
    assert_eq!(again.held_by.len(), 3);
}

#[test]
fn a_node_alone_accepts_a_push_and_says_so() {
    let mut world = World::with_machines(3, 1);
    world.run(7000);
    let accepted = world.push(0, workload("web", 5, 1, &root_key())).unwrap();
    assert_eq!((accepted.held_by.len(), accepted.wanted_holders), (1, 0));
}

#[test]
fn a_push_is_answered_in_bounded_time_when_the_others_are_silent() {
    let mut world = World::with_machines(4, 3);
    assert!(world.run_until(8000, World::agrees));
    world.power_off(1);
    world.power_off(2);
    let began = world.now_ms;
    let accepted = world.push(0, workload("web", 5, 1, &root_key())).unwrap();
    assert_eq!((accepted.held_by.len(), accepted.wanted_holders), (1, 2));
    assert!(world.now_ms - began <= 5100);
}

#[test]
fn stale_and_conflicting_pushes_are_refused_and_change_nothing() {
    let mut world = World::with_machines(5, 2);
    assert!(world.run_until(8000, World::agrees));
    let first = world.push(0, workload("web", 5, 1, &root_key())).unwrap();
    assert!(world.run_until(8000, World::agrees));

    let stale = world.push(1, workload("web", 5, 2, &root_key())).unwrap_err();
    assert_eq!((stale.code, stale.pointer.as_deref()), (Code::Conflict, Some("/metadata/revision")));
    assert!(stale.detail.contains("revision 5"), "{}", stale.detail);

    let mut document = named(
        r#"{"apiVersion":"hivemind/v1","kind":"Workload","metadata":{"name":"NAME","namespace":"default","revision":9},
           "spec":{"replicas":3,"container":{"image":"nginx"}}}"#,
        "web",
    );
    document.metadata.replaces = Some(hivemind_spec::id::Digest::of(b"another version"));
    let sign = |d: &hivemind_spec::document::Document| {
        hivemind_spec::dsse::Envelope::sign(&d.to_json(), &root_key())
    };
    let other = world.push(1, sign(&document)).unwrap_err();
    assert_eq!((other.code, other.pointer.as_deref()), (Code::Conflict, Some("/metadata/replaces")));
    assert_eq!(world.node(1).spec_item(&first.key).unwrap().digest, first.digest);

    document.metadata.replaces = Some(first.digest);
    let second = world.push(1, sign(&document)).unwrap();
    assert_eq!(world.node(1).spec_item(&first.key).unwrap().digest, second.digest);
}

#[test]
fn a_push_that_changes_only_the_number_of_replicas_keeps_those_that_run() {
    let mut world = World::with_machines(8, 3);
    assert!(world.run_until(8000, World::agrees));
    let running = |world: &World| world.machines.iter().map(|machine| machine.runs().count()).sum::<usize>();
    let started = |world: &World| world.machines.iter().map(|machine| machine.runtime.starts).sum::<usize>();
    let replicas = |world: &World| world.node(2).view(world.time(2), "").replicas(None, None);
    for (revision, wanted, starts) in [(5, 3, 3), (6, 7, 7), (7, 2, 7), (8, 3, 8)] {
        let accepted = world.push(0, workload("web", revision, wanted, &root_key())).unwrap();
        let settled = |world: &World| {
            running(world) == wanted as usize
                && replicas(world).iter().all(|replica| replica.digest == Some(accepted.digest))
        };
        assert!(world.run_until(20_000, settled), "{wanted} replicas: {:?}", replicas(&world));
        world.run(5000);
        assert_eq!((running(&world), started(&world)), (wanted as usize, starts), "{wanted} replicas");
    }
}

#[test]
fn nothing_unsigned_or_signed_by_a_stranger_is_accepted() {
    let mut world = World::with_machines(6, 1);
    world.run(1000);
    let before = world.node(0).map_digest();
    let stranger = workload("web", 5, 1, &SigningKey::from_seed([99; 32]));
    assert_eq!(world.push(0, stranger).unwrap_err().code, Code::BadSignature);
    let mut unsigned = workload("web", 5, 1, &root_key());
    unsigned.signatures.clear();
    assert_eq!(world.push(0, unsigned).unwrap_err().code, Code::Unsigned);
    assert_eq!(world.node(0).map_digest(), before);
}

#[test]
fn a_push_that_its_key_does_not_cover_is_refused_with_the_place_and_changes_nothing() {
    let mut world = World::with_machines(8, 1);
    world.run(1000);
    let keys =
        [(3, "viewer", ""), (4, "deployer", "team"), (5, "admin", "team")].map(|(seed, role, space)| {
            let key = SigningKey::from_seed([seed; 32]);
            let mut document = named(
                r#"{"apiVersion":"hivemind/v1","kind":"Key","metadata":{"name":"NAME","revision":1},
               "spec":{"publicKey":"AAAA","role":"ROLE"}}"#
                    .replace("ROLE", role)
                    .as_str(),
                role,
            );
            if let Some(hivemind_spec::document::Spec::Key(spec)) = &mut document.spec {
                spec.public_key = key.public().to_base64();
                spec.namespaces.extend((!space.is_empty()).then(|| space.to_owned()));
            }
            let envelope = hivemind_spec::dsse::Envelope::sign(&document.to_json(), &root_key());
            world.push(0, envelope).unwrap();
            (key, if role == "viewer" { "/kind" } else { "/metadata/namespace" })
        });
    let before = world.node(0).map_digest();
    for (key, place) in keys {
        let problem = world.push(0, workload("web", 5, 1, &key)).unwrap_err();
        assert_eq!((problem.code, problem.pointer.as_deref()), (Code::Forbidden, Some(place)));
        assert!(problem.detail.contains("Workload/default/web"), "{}", problem.detail);
    }
    assert_eq!(world.node(0).map_digest(), before);
}

#[test]
fn a_push_that_cannot_be_stored_is_refused_and_not_kept() {
    let mut world = World::with_machines(7, 1);
    world.run(7000);
    world.machines[0].disk_full = true;
    let problem = world.push(0, workload("web", 5, 1, &root_key())).unwrap_err();
    assert_eq!(problem.code, Code::Storage);
    world.machines[0].disk_full = false;
    world.run(10_000);
    assert!(world.node(0).cluster().workloads.is_empty());
    assert!(world.push(0, workload("web", 5, 1, &root_key())).unwrap().changed);
}

#[test]
fn a_dead_node_is_known_to_all_others_within_nine_seconds() {
    for seed in 0..20 {
        let mut world = World::with_machines(seed, 3);
        assert!(world.run_until(8000, World::agrees), "seed {seed}");
        world.run(1000 + seed * 137);
        let dead = world.machines[2].id;
        world.power_off(2);
        let known = world
            .run_until(9000, |world| (0..2).all(|index| !world.node(index).liveness().alive.contains(&dead)));
        assert!(known, "seed {seed}");
    }
}

#[test]
fn a_node_that_lost_its_power_comes_back_by_itself() {
    let mut world = World::with_machines(8, 3);
    assert!(world.run_until(8000, World::agrees));
    world.push(0, workload("web", 5, 2, &root_key())).unwrap();
    world.power_off(2);
    world.run(10_000);
    world.push(0, workload("web", 6, 3, &root_key())).unwrap();
    world.power_on(2);
    assert!(world.run_until(15_000, World::agrees));
    assert_eq!(world.node(2).cluster().workloads.values().next().unwrap().revision, 6);
}

#[test]
fn halves_of_a_partition_accept_pushes_and_agree_after_it_heals() {
    for seed in 0..5 {
        let mut world = World::with_machines(seed, 3);
        assert!(world.run_until(8000, World::agrees), "seed {seed}");
        world.network.isolate(0, 3);
        world.run(12_000);
        world.push(0, workload("left", 5, 1, &root_key())).unwrap();
        world.push(1, workload("right", 5, 1, &root_key())).unwrap();
        world.push(1, workload("left", 6, 1, &root_key())).unwrap();
        world.network.cut.clear();
        assert!(world.run_until(30_000, World::agrees), "seed {seed}");
        let cluster = world.node(0).cluster();
        let revisions: Vec<_> = cluster.workloads.values().map(|w| w.revision).collect();
        assert_eq!(revisions, [6, 5], "seed {seed}");
    }
}

#[test]
fn who_pushed_on_the_side_that_lost_is_told_until_the_next_push() {
    let mut world = World::with_machines(28, 3);
    assert!(world.run_until(10_000, World::agrees));
    let version = |revision: u64, replicas: u32, ancestors: &[Ancestor]| {
        let mut document = workload_document("web", revision, |spec| spec.replicas = replicas);
        document.metadata.ancestors = Some(ancestors.to_vec());
        sign(&document, &root_key())
    };
    let ancestor = |accepted: &Accepted| Ancestor { revision: accepted.revision, digest: accepted.digest };
    let first = ancestor(&world.push(0, version(5, 1, &[])).unwrap());
    assert!(world.run_until(10_000, World::agrees));

    // Both sides change it; one of them twice.
    world.part(2, 0);
    world.part(2, 1);
    let lost = ancestor(&world.push(2, version(6, 2, &[first])).unwrap());
    let between = ancestor(&world.push(0, version(7, 3, &[first])).unwrap());
    let won = ancestor(&world.push(1, version(8, 1, &[between, first])).unwrap());
    assert!((0..3).all(|index| !world.has_note(index, "version-overtaken")), "all is in order so far");
    world.network.cut.clear();
    assert!(world.run_until(30_000, World::agrees));
    assert!(world.run_until(10_000, World::agrees));
    assert_eq!(world.node(2).cluster().workloads[&workload_id("web")].digest, won.digest);
    assert!(world.has_note(2, "version-overtaken"));
    assert!((0..2).all(|index| !world.has_note(index, "version-overtaken")), "they lost nothing");
    let told = |world: &World, index: usize| {
        let digest = world.node(index).map_digest();
        let status = world.node(index).view(world.time(index), &digest).status();
        status.problems.iter().any(|problem| problem.contains(&lost.digest.to_string()))
    };
    assert!((0..3).all(|index| told(&world, index)), "whichever node is asked");

    // An update that follows in order tells nobody anything, and ends it.
    world.push(0, version(9, 2, &[won, between, first])).unwrap();
    assert!(world.run_until(10_000, World::agrees));
    assert!((0..3).all(|index| !told(&world, index)));
    assert!((0..2).all(|index| !world.has_note(index, "version-overtaken")));
}

#[test]
fn maps_become_alike_although_messages_are_lost_and_overtake_each_other() {
    for seed in 0..5 {
        let mut world = World::with_machines(seed, 3);
        world.network.loss = 20;
        for revision in 1..20 {
            let index = usize::try_from(revision % 3).unwrap();
            world.run(700);
            // Some are refused as stale, because the newer one has not come this far yet.
            let _ = world.push(index, workload("web", revision, 1, &root_key()));
        }
        world.network.loss = 0;
        assert!(world.run_until(30_000, World::agrees), "seed {seed}");
    }
}

#[test]
fn a_machine_with_another_clusters_token_is_refused_in_both_logs() {
    let mut world = World::with_machines(9, 2);
    assert!(world.run_until(8000, World::agrees));
    let from = world.machines[1].id;
    let stranger = hivemind_spec::id::NodeId([66; 16]);
    let peer = hivemind_core::event::Peer { node: stranger, address: "192.0.2.99:7946".parse().unwrap() };
    let chain = vec![b"other root;token x".to_vec(), b"other root;token ".to_vec()];
    world.tell(0, Event::Connected { peer, chain });
    assert!(world.has_note(0, "join-refused"));
    // And what it says is not heard.
    let before = world.node(0).map_digest();
    let message = Message::Digests(vec![0]);
    world.tell(0, Event::Received { from: stranger, address: peer.address, message });
    assert_eq!(world.node(0).map_digest(), before);
    let _ = from;
}

#[test]
fn expired_used_up_and_unknown_tokens_are_refused_in_both_logs() {
    let open = token_document("t", 0..u64::MAX, Some(2));
    let expired = token_document("old", 0..START_MS - 1000, None);
    for (name, document, words) in
        [("old", Some(expired), "expired"), ("t", Some(open.clone()), "used up"), ("lost", None, "not known")]
    {
        let mut world = World::new(10);
        for index in 0..2 {
            world.add("t", Some(open.clone()));
            world.power_on(index);
        }
        world.introduce_all();
        assert!(world.run_until(8000, World::agrees), "{words}");
        let late = world.add(name, document);
        world.power_on(late);
        world.introduce_all();
        world.run(10_000);
        let said = |index: usize, code: &str| {
            world.machines[index].notes.iter().any(|note| note.code == code && note.text.contains(words))
        };
        assert!(said(0, "join-refused") || said(1, "join-refused"), "{words}");
        assert!(said(late, "refused-by-peer"), "{words}: {:?}", world.machines[late].notes);
        assert_eq!(world.node(0).cluster().nodes.len(), 2, "{words}");
        assert_eq!(world.node(0).liveness().alive.len(), 2, "{words}");
    }
}

#[test]
fn a_known_node_stays_a_member_after_its_token_expired() {
    let mut world = World::new(11);
    for index in 0..3 {
        world.add("t", Some(token_document("t", 0..START_MS + 60_000, Some(3))));
        world.power_on(index);
    }
    world.introduce_all();
    assert!(world.run_until(8000, World::agrees));
    world.power_off(1);
    world.run(120_000);
    world.power_on(1);
    assert!(world.run_until(20_000, World::agrees));
}

#[test]
fn a_new_node_believes_an_old_cluster_whose_own_token_has_long_expired() {
    let mut world = World::new(12);
    for index in 0..2 {
        world.add("first", Some(token_document("first", 0..START_MS + 60_000, None)));
        world.power_on(index);
    }
    world.introduce_all();
    assert!(world.run_until(8000, World::agrees));
    world.run(120_000);
    // Two at once: they find each other before they find the old cluster.
    for index in 2..4 {
        world.add("second", Some(token_document("second", 0..u64::MAX, None)));
        world.power_on(index);
    }
    let (two, three) = (world.machines[2].address, world.machines[3].address);
    world.tell(2, Event::Hint { address: three });
    world.tell(3, Event::Hint { address: two });
    world.run(3000);
    world.introduce_all();
    assert!(world.run_until(15_000, World::agrees));
    assert!((0..4).all(|index| world.node(index).cluster().nodes.len() == 4));
}

#[test]
fn a_wrong_clock_keeps_no_node_out() {
    for offset in [-(START_MS as i64) + 1000, 70 * 365 * 24 * 3600 * 1000] {
        let mut world = World::new(13);
        for index in 0..3 {
            world.add("t", Some(token_document("t", START_MS - 60_000..START_MS + 3_600_000, None)));
            if index == 1 {
                world.machines[index].clock_offset_ms = offset;
            }
            world.power_on(index);
        }
        world.introduce_all();
        assert!(world.run_until(10_000, World::agrees), "offset {offset}");
    }
}

#[test]
fn a_packet_in_another_nodes_name_is_dropped() {
    let mut world = World::with_machines(14, 3);
    assert!(world.run_until(8000, World::agrees));
    let header = foca::Header {
        src: hivemind_core::membership::Identity {
            node: world.machines[2].id,
            address: world.machines[1].address,
            boot: 99,
            generation: 0,
        },
        src_incarnation: 0,
        dst: hivemind_core::membership::Identity {
            node: world.machines[0].id,
            address: world.machines[0].address,
            boot: 1,
            generation: 0,
        },
        message: foca::Message::Announce,
    };
    let packet = postcard::to_stdvec(&header).unwrap();
    let (from, address) = (world.machines[1].id, world.machines[1].address);
    world.tell(0, Event::Received { from, address, message: Message::Swim(packet) });
    assert!(world.has_note(0, "packet-dropped"));
    world.run(10_000);
    assert!(world.agrees());
}

#[test]
fn a_corrupted_stored_document_is_refused_never_run_and_refilled() {
    let mut world = World::with_machines(15, 2);
    assert!(world.run_until(8000, World::agrees));
    world.push(0, workload("web", 5, 2, &root_key())).unwrap();
    world.power_off(0);
    let mut corrupted = 0;
    for value in world.machines[0].disk.values_mut() {
        if let Ok(hivemind_core::record::Record::Spec(mut envelope)) = postcard::from_bytes(value)
            && envelope.payload == workload("web", 5, 2, &root_key()).payload
        {
            let forged = workload("web", 5, 2, &SigningKey::from_seed([99; 32])).payload;
            envelope.payload = forged.replace('a', "b");
            *value = hivemind_core::state::encode(&hivemind_core::record::Record::Spec(envelope));
            corrupted += 1;
        }
    }
    assert_eq!(corrupted, 1);
    world.power_on(0);
    assert!(world.has_note(0, "stored-record-refused"));
    assert!(world.node(0).cluster().workloads.is_empty());
    assert!(world.run_until(20_000, World::agrees));
    assert_eq!(world.node(0).cluster().workloads.len(), 1);
}

#[test]
fn the_same_events_give_the_same_actions() {
    let run = || {
        let mut world = World::with_machines(16, 3);
        world.network.loss = 10;
        world.run(10_000);
        let _ = world.push(0, workload("web", 5, 2, &root_key()));
        world.run(5000);
        let notes: Vec<_> = world.machines.iter().map(|m| m.notes.clone()).collect();
        (notes, world.node(0).map_digest(), world.now_ms)
    };
    assert_eq!(run(), run());
}

/// Machines that run a workload.
fn serving(seed: u64, machines: usize) -> World {
    let mut world = World::with_machines(seed, machines);
    assert!(world.run_until(8000, World::agrees));
    world.push(0, workload("web", 5, 3, &root_key())).expect("it is accepted");
    assert!(world.run_until(10_000, |world| runs_everywhere_once(world, 3)));
    world.run(3000);
    world
}

/// What a member sends.
fn from_member(world: &World, member: usize, message: Message) -> Event {
    let machine = &world.machines[member];
    Event::Received { from: machine.id, address: machine.address, message }
}

/// Which machines run which replicas.
fn running(world: &World) -> Vec<(usize, String)> {
    let runs = world.machines.iter().enumerate();
    runs.flat_map(|(index, m)| m.runs().map(move |replica| (index, replica))).collect()
}

fn runs_everywhere_once(world: &World, replicas: usize) -> bool {
    let running = running(world);
    let distinct: BTreeSet<_> = running.iter().map(|(_, replica)| replica).collect();
    running.len() == replicas && distinct.len() == replicas
}

#[test]
fn a_pushed_workload_runs_spread_over_the_nodes() {
    let mut world = World::with_machines(20, 3);
    assert!(world.run_until(8000, World::agrees));
    world.push(1, workload("web", 5, 3, &root_key())).unwrap();
    assert!(world.run_until(10_000, |world| runs_everywhere_once(world, 3)), "{:?}", running(&world));
    let used: BTreeSet<_> = running(&world).into_iter().map(|(index, _)| index).collect();
    assert_eq!(used.len(), 3);
    assert!(world.run_until(5000, World::agrees));
}

#[test]
fn a_dead_nodes_replicas_run_elsewhere_and_nothing_runs_twice_when_it_returns() {
    for seed in 0..10 {
        let mut world = World::with_machines(seed, 3);
        assert!(world.run_until(8000, World::agrees), "seed {seed}");
        world.push(1, workload("web", 5, 3, &root_key())).unwrap();
        assert!(world.run_until(10_000, |world| runs_everywhere_once(world, 3)), "seed {seed}");
        world.run(3000);
        let victim = usize::try_from(seed % 3).unwrap();
        world.power_off(victim);
        assert!(world.run_until(10_000, |world| runs_everywhere_once(world, 3)), "seed {seed}");
        world.power_on(victim);
        assert!(world.run_until(15_000, World::agrees), "seed {seed}");
        for _ in 0..100 {
            world.run(100);
            assert!(running(&world).len() <= 3, "seed {seed}: {:?}", running(&world));
        }
        assert!(runs_everywhere_once(&world, 3), "seed {seed}");
    }
}

#[test]
fn a_removed_workload_stops_and_its_statuses_are_taken_back() {
    let mut world = World::with_machines(21, 3);
    assert!(world.run_until(8000, World::agrees));
    let accepted = world.push(1, workload("web", 5, 3, &root_key())).unwrap();
    assert!(world.run_until(10_000, |world| runs_everywhere_once(world, 3)));
    let tombstone = hivemind_spec::document::Document::tombstone(&accepted.key, 6);
    let tombstone = hivemind_spec::dsse::Envelope::sign(&tombstone.to_json(), &root_key());
    world.push(2, tombstone).unwrap();
    let gone = |world: &World| running(world).is_empty() && world.node(0).cluster().replicas.is_empty();
    assert!(world.run_until(20_000, gone), "{:?}", running(&world));
    assert!(world.node(0).cluster().placements.is_empty());
    assert!(world.run_until(5000, World::agrees));
}

#[test]
fn a_deleted_workload_leaves_nothing_behind_once_its_tombstone_is_old() {
    let mut world = World::with_machines(24, 2);
    assert!(world.run_until(8000, World::agrees));
    let accepted = world.push(1, workload("web", START_MS, 2, &root_key())).unwrap();
    assert!(world.run_until(10_000, |world| runs_everywhere_once(world, 2)));
    let tombstone = hivemind_spec::document::Document::tombstone(&accepted.key, START_MS + 1);
    world.push(0, hivemind_spec::dsse::Envelope::sign(&tombstone.to_json(), &root_key())).unwrap();
    world.run(20_000);
    let about_web = |world: &World, index: usize| {
        let map = world.node(index).map();
        map.iter().filter(|(key, _)| format!("{key:?}").contains("\"web\"")).count()
    };
    assert!(about_web(&world, 0) > 0, "the deletion is remembered");
    for machine in &mut world.machines {
        machine.clock_offset_ms = 31 * 24 * 3600 * 1000;
    }
    world.run(2 * 3600 * 1000);
    assert_eq!((about_web(&world, 0), about_web(&world, 1)), (0, 0));
    assert!(world.agrees());
}

#[test]
fn a_revoked_node_is_cut_off_and_what_it_says_is_dropped() {
    let mut world = World::with_machines(22, 3);
    assert!(world.run_until(8000, World::agrees));
    let revoked = world.machines[2].id;
    world.push(0, revocation(revoked, 1)).unwrap();
    world.run(5000);
    for index in 0..2 {
        let node = world.node(index);
        assert!(!node.liveness().alive.contains(&revoked));
        assert!(node.cluster().nodes[&revoked].is_revoked());
        assert!(node.cluster().nodes[&revoked].status.is_none());
        assert!(world.has_note(index, "join-refused"));
    }
    world.introduce_all();
    world.run(10_000);
    assert!(!world.node(0).liveness().alive.contains(&revoked));
    assert_eq!(world.node(0).map_digest(), world.node(1).map_digest());
}

#[test]
fn a_frozen_node_accuses_nobody_when_it_wakes() {
    let mut world = World::with_machines(23, 3);
    assert!(world.run_until(8000, World::agrees));
    world.freeze(2, 5000);
    let others = [world.machines[0].id, world.machines[1].id];
    let before = world.machines[2].notes.len();
    world.run(20_000);
    assert!(world.agrees());
    let downs = world.machines[2].notes[before..].iter().filter(|note| note.code == "node-down").count();
    assert_eq!(downs, 0, "{others:?}");
}

#[test]
fn an_idle_cluster_is_quiet_and_writes_nothing() {
    let mut world = World::with_machines(30, 3);
    assert!(world.run_until(8000, World::agrees));
    world.push(1, workload("web", 5, 3, &root_key())).unwrap();
    // Until the pauses between comparisons are as long as they get.
    world.run(240_000);
    let before = world.counted;
    world.run(60_000);
    let after = world.counted;
    let per_node_and_second = |now: u64, then: u64| (now - then) as f64 / 3.0 / 60.0;
    let steps = per_node_and_second(after.steps, before.steps);
    let packets = per_node_and_second(after.packets, before.packets);
    let messages = per_node_and_second(after.messages, before.messages);
    assert!(
        steps < 3.5 && packets < 2.5 && messages < 0.2,
        "per node and second: {steps:.1} steps, {packets:.1} packets, {messages:.1} messages"
    );
    assert_eq!(after.writes - before.writes, 0);
}

#[test]
fn a_restarted_agent_leaves_the_network_alone_until_it_knows_its_address() {
    let mut world = World::with_machines(31, 2);
    assert!(world.run_until(8000, World::agrees));
    world.run(3000);
    let plans = world.machines[0].plans.len();
    world.power_off(0);
    world.power_on(0);
    world.run(10_000);
    assert!(world.agrees());
    assert!(world.machines[0].plans.len() > plans);
    assert!(world.machines[0].plans[plans..].iter().all(|plan| plan.local.is_some()));
}

#[test]
fn one_of_two_nodes_that_restarts_moves_nothing() {
    for seed in 0..10 {
        let mut world = World::with_machines(seed, 2);
        assert!(world.run_until(8000, World::agrees), "seed {seed}");
        world.push(0, workload("web", 5, 4, &root_key())).unwrap();
        assert!(world.run_until(10_000, |world| runs_everywhere_once(world, 4)), "seed {seed}");
        let placed = |world: &World| world.node(1).cluster().placements.values().next().unwrap().clone();
        let before = placed(&world);
        world.power_off(0);
        world.run(300);
        world.power_on(0);
        world.run(15_000);
        assert!(world.agrees(), "seed {seed}");
        assert_eq!(placed(&world), before, "seed {seed}");
        assert!(runs_everywhere_once(&world, 4), "seed {seed}");
    }
}

#[test]
fn a_machine_that_comes_up_alone_without_a_network_runs_its_last_assignments() {
    for seed in 0..5 {
        let mut world = World::with_machines(seed, 3);
        assert!(world.run_until(8000, World::agrees), "seed {seed}");
        world.push(0, workload("web", 5, 3, &root_key())).unwrap();
        assert!(world.run_until(10_000, |world| runs_everywhere_once(world, 3)), "seed {seed}");
        world.run(3000);
        let own = |world: &World| world.machines[1].runs().collect::<Vec<_>>();
        let before = own(&world);
        for index in 0..3 {
            world.power_off(index);
        }
        world.run(5000);
        world.plug(1, false);
        world.power_on(1);
        let runs = world.run_until(10_000, |world| own(world) == before);
        assert!(runs, "seed {seed}: {:?} instead of {before:?}", own(&world));

        // What it then hears from the others moves nothing and restarts nothing.
        world.power_on(0);
        world.power_on(2);
        world.run(10_000);
        let starts = world.machines[1].runtime.starts;
        world.plug(1, true);
        world.introduce_all();
        assert!(world.run_until(20_000, World::agrees), "seed {seed}");
        world.run(10_000);
        assert!(runs_everywhere_once(&world, 3), "seed {seed}: {:?}", running(&world));
        assert_eq!((own(&world), world.machines[1].runtime.starts), (before, starts), "seed {seed}");
    }
}

#[test]
fn a_lossy_and_slow_cable_makes_nobody_dead() {
    for seed in 0..20 {
        let mut world = World::with_machines(seed, 3);
        assert!(world.run_until(8000, World::agrees), "seed {seed}");
        world.push(0, workload("web", 5, 3, &root_key())).unwrap();
        assert!(world.run_until(10_000, |world| runs_everywhere_once(world, 3)), "seed {seed}");
        world.machines[2].bad_cable = (20, 50);
        let before: Vec<usize> = world.machines.iter().map(|m| m.notes.len()).collect();
        world.run(10 * 60 * 1000);
        for (machine, before) in world.machines.iter().zip(before) {
            let down: Vec<_> =
                machine.notes[before..].iter().filter(|note| note.code == "node-down").collect();
            assert_eq!(down, Vec::<&hivemind_core::event::Note>::new(), "seed {seed}");
        }
    }
}

#[test]
fn a_partition_lets_the_larger_side_take_over_and_healing_restarts_nothing_of_the_healthy() {
    for seed in 0..60 {
        let mut world = World::with_machines(seed, 3);
        assert!(world.run_until(8000, World::agrees), "seed {seed}");
        world.push(1, workload("web", 5, 6, &root_key())).unwrap();
        assert!(world.run_until(10_000, |world| runs_everywhere_once(world, 6)), "seed {seed}");
        world.run(3000);
        let alone = usize::try_from(seed % 3).unwrap();
        let majority: Vec<usize> = (0..3).filter(|index| *index != alone).collect();
        let on = |world: &World, index: usize| world.machines[index].runs().collect::<BTreeSet<_>>();
        let before: Vec<_> = (0..3).map(|index| on(&world, index)).collect();
        let starts: Vec<_> = world.machines.iter().map(|machine| machine.runtime.starts).collect();

        majority.iter().for_each(|index| world.part(alone, *index));
        let taken_over = |world: &World| {
            let runs: BTreeSet<_> = majority.iter().flat_map(|index| on(world, *index)).collect();
            runs.len() == 6
        };
        assert!(world.run_until(15_000, taken_over), "seed {seed}: {:?}", running(&world));
        world.run(10_000);
        assert_eq!(on(&world, alone), before[alone], "seed {seed}: the smaller side keeps its own, no more");
        assert_eq!(world.machines[alone].runtime.starts, starts[alone], "seed {seed}");

        let told: Vec<_> = world.machines.iter().map(|machine| machine.notes.len()).collect();
        world.network.cut.clear();
        assert!(world.run_until(30_000, World::agrees), "seed {seed}");
        assert!(world.run_until(10_000, |world| runs_everywhere_once(world, 6)), "seed {seed}");
        world.run(10_000);
        for index in &majority {
            let news = &world.machines[*index].notes[told[*index]..];
            assert!(news.iter().all(|note| note.code != "node-down"), "seed {seed}: {news:?}");
            assert!(on(&world, *index).is_superset(&before[*index]), "seed {seed}: the healthy stay");
            let more = on(&world, *index).len() - before[*index].len();
            assert_eq!(world.machines[*index].runtime.starts, starts[*index] + more, "seed {seed}");
        }
    }
}
