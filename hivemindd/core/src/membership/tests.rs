use rand::SeedableRng as _;

use super::*;

fn identity(n: u8) -> Identity {
    Identity {
        node: NodeId([n; 16]),
        address: SocketAddr::from(([192, 0, 2, n], 7946)),
        boot: 1,
        generation: 0,
    }
}

fn at(mono_ms: u64) -> Time {
    Time { mono_ms, wall_ms: 0 }
}

/// Members that hear each other at once, each by its own clock.
struct Group {
    members: BTreeMap<NodeId, Membership>,
    largest_packet: usize,
}

impl Group {
    fn of(count: u8) -> Self {
        let mut group = Self { members: BTreeMap::new(), largest_packet: 0 };
        for n in 1..=count {
            let rng = ChaCha8Rng::seed_from_u64(u64::from(n));
            group.members.insert(NodeId([n; 16]), Membership::new(identity(n), rng));
        }
        for n in 2..=count {
            let peer = Peer { node: NodeId([n - 1; 16]), address: identity(n - 1).address };
            let outcome = group.members.get_mut(&NodeId([n; 16])).unwrap().announce(at(0), peer);
            group.deliver(at(0), NodeId([n; 16]), outcome);
        }
        group
    }

    fn deliver(&mut self, now: Time, from: NodeId, outcome: Outcome) {
        let mut queue: Vec<_> = outcome.sends.into_iter().map(|(to, data)| (from, to, data)).collect();
        while let Some((from, to, data)) = queue.pop() {
            self.largest_packet = self.largest_packet.max(data.len());
            let Some(member) = self.members.get_mut(&to.node) else { continue };
            if let Ok(more) = member.receive(now, from, &data) {
                queue.extend(more.sends.into_iter().map(|(next, data)| (to.node, next, data)));
            }
        }
    }

    fn run(&mut self, from_ms: u64, until_ms: u64) {
        for ms in (from_ms..until_ms).step_by(50) {
            for node in self.members.keys().copied().collect::<Vec<_>>() {
                let outcome = self.members.get_mut(&node).unwrap().advance(at(ms));
                self.deliver(at(ms), node, outcome);
            }
        }
    }
}

#[test]
fn packets_fit_a_datagram_in_a_large_cluster_too() {
    let mut group = Group::of(60);
    group.run(0, 20_000);
    assert!(group.members.values().all(|member| member.alive().len() == 59));
    assert!(group.largest_packet <= MAX_PACKET_BYTES, "{}", group.largest_packet);
}

#[test]
fn a_dead_member_is_known_to_all_within_fifteen_seconds_at_a_hundred() {
    for dies_at_ms in [30_000, 30_400, 30_800, 31_200] {
        let mut group = Group::of(100);
        group.run(0, dies_at_ms);
        assert!(group.members.values().all(|member| member.alive().len() == 99));
        group.members.remove(&NodeId([50; 16]));
        group.run(dies_at_ms, dies_at_ms + 15_000);
        let alive = group.members.values().map(|member| member.alive().len());
        assert!(alive.clone().all(|count| count == 98), "{:?}", alive.collect::<Vec<_>>());
    }
}

#[test]
fn a_node_that_was_late_gives_others_the_time_it_lost() {
    let mut group = Group::of(3);
    group.run(0, 5000);
    // The others fall silent just as this node stands still for a minute.
    let (me, mut member) = group.members.pop_first().unwrap();
    group.members.clear();
    let outcome = member.advance(at(65_000));
    assert!(outcome.down.is_empty());
    // It finds them dead in the same time as if it had not stood still.
    let mut down = Vec::new();
    for ms in (65_000..85_000).step_by(50) {
        let outcome = member.advance(at(ms));
        down.extend(outcome.down.iter().map(|node| (*node, ms)));
    }
    assert_eq!(down.len(), 2, "{me}");
    assert!(down.iter().all(|(_, ms)| *ms > 65_000 + 2000), "{down:?}");
}

#[test]
fn a_suspect_is_told_by_whoever_suspects_it_and_refutes() {
    let mut group = Group::of(2);
    group.run(0, 20_000);
    let [mut first, mut second] = [1, 2].map(|n| group.members.remove(&NodeId([n; 16])).unwrap());
    let mut suspected = 0;
    for ms in (20_000..80_000).step_by(50) {
        // All that is not the question or its answer is lost.
        second.advance(at(ms));
        let outcome = first.advance(at(ms));
        assert_eq!(outcome.down, [], "at {ms}");
        for (_, packet) in outcome.sends {
            let (header, _) = header_of(&packet).unwrap();
            if header.message != Message::Ping(ASKED) {
                continue;
            }
            suspected += 1;
            let answer = second.receive(at(ms), NodeId([1; 16]), &packet).unwrap();
            for (_, packet) in answer.sends {
                first.receive(at(ms), NodeId([2; 16]), &packet).unwrap();
            }
            assert!(first.foca.iter_membership_state().all(|member| member.state() == State::Alive));
        }
    }
    // Every second of its own probes makes it a suspect: the one between was sent before the refutation.
    assert_eq!(suspected, 20);
}

#[test]
fn a_newer_boot_and_a_later_move_win_over_older_selves() {
    use foca::Identity as _;
    let old = identity(1);
    let moved = Identity { address: SocketAddr::from(([192, 0, 2, 99], 7946)), generation: 1, ..old };
    let rebooted = Identity { boot: 2, ..old };
    assert!(moved.win_addr_conflict(&old) && !old.win_addr_conflict(&moved));
    assert!(rebooted.win_addr_conflict(&moved) && !moved.win_addr_conflict(&rebooted));
    assert!(old.renew().unwrap().win_addr_conflict(&old));
}

#[test]
fn junk_is_refused_and_changes_nothing() {
    let mut group = Group::of(2);
    group.run(0, 3000);
    let member = group.members.get_mut(&NodeId([1; 16])).unwrap();
    for junk in [&[][..], &[0; 3], &[255; 2000]] {
        assert!(member.receive(at(3000), NodeId([2; 16]), junk).is_err());
    }
    assert_eq!(member.alive().len(), 1);
}

/// Runs a pair for ten seconds, each woken only when it asks for it; gives how often the first woke,
/// and when it first heard that the other is gone, if that was silent from `silent_ms` on.
fn woken(silent_ms: u64) -> (usize, Option<u64>) {
    let mut group = Group::of(2);
    // Until both have told each other what there is to tell.
    group.run(0, 20_000);
    let (first, second) = (NodeId([1; 16]), NodeId([2; 16]));
    let (mut wakes, mut down) = (0, None);
    for ms in 20_000..30_000 {
        if ms == 20_000 + silent_ms {
            group.members.remove(&second);
        }
        for node in [first, second] {
            let Some(member) = group.members.get_mut(&node) else { continue };
            if member.wake_at().is_some_and(|at| at <= ms) {
                wakes += usize::from(node == first);
                let outcome = member.advance(at(ms));
                down = down.or((!outcome.down.is_empty()).then_some(ms - 20_000));
                group.deliver(at(ms), node, outcome);
            }
        }
    }
    (wakes, down)
}

#[test]
fn an_answered_probe_is_the_only_thing_an_idle_member_wakes_for() {
    let (wakes, down) = woken(u64::MAX / 2);
    let probes = 10_000 / usize::try_from(PROBE_PERIOD.as_millis()).unwrap();
    // And an announcement now and then.
    assert!((probes..=probes + 3).contains(&wakes), "{wakes}");
    assert_eq!(down, None);
}

#[test]
fn a_member_that_wakes_only_for_what_is_pressing_finds_the_dead_as_soon() {
    for silent_ms in (0..1000).step_by(50) {
        let (_, down) = woken(silent_ms);
        let limit = silent_ms
            + 2 * u64::try_from(PROBE_PERIOD.as_millis()).unwrap()
            + u64::try_from(SUSPECT_TO_DOWN.as_millis()).unwrap()
            + 50;
        assert!(down.is_some_and(|at| at <= limit), "{silent_ms}: {down:?}, {limit}");
    }
}

#[test]
fn an_announcement_that_is_lost_is_made_again_until_the_members_are_told() {
    let mut group = Group::of(3);
    group.run(0, 20_000);
    let joining = NodeId([4; 16]);
    let mut joiner = Membership::new(identity(4), ChaCha8Rng::seed_from_u64(4));
    let lost = joiner.announce(at(20_000), Peer { node: NodeId([1; 16]), address: identity(1).address });
    assert_eq!(lost.sends.len(), 1);
    // The first two are lost.
    let mut announced = 0;
    for ms in (20_000..24_000).step_by(50) {
        for (to, packet) in joiner.advance(at(ms)).sends {
            announced += 1;
            if announced == 1 {
                continue;
            }
            let answer = group.members.get_mut(&to.node).unwrap().receive(at(ms), joining, &packet).unwrap();
            for (_, packet) in answer.sends {
                let _ = joiner.receive(at(ms), to.node, &packet);
            }
        }
    }
    assert_eq!(joiner.alive().len(), 3);
    let mut given_up = Membership::new(identity(5), ChaCha8Rng::seed_from_u64(5));
    given_up.announce(at(0), Peer { node: NodeId([1; 16]), address: identity(1).address });
    let again: usize = (0..60_000).step_by(50).map(|ms| given_up.advance(at(ms)).sends.len()).sum();
    assert_eq!(again, usize::from(ANNOUNCEMENTS) - 1);
    assert_eq!(given_up.wake_at(), None);
}

#[test]
fn two_that_vouch_for_a_suspect_do_not_answer_each_other_without_end() {
    let mut group = Group::of(3);
    group.run(0, 20_000);
    let ids = [1, 2, 3].map(|n| NodeId([n; 16]));
    // Both suspect the third, and both have just heard it.
    let suspect = Member::new(identity(3), 0, State::Suspect);
    for id in [ids[0], ids[1]] {
        let member = group.members.get_mut(&id).unwrap();
        member.foca.apply_many([suspect.clone()].into_iter(), true, &mut member.runtime).unwrap();
        member.heard_ms.insert(ids[2], 20_000);
    }
    let first = group.members.remove(&ids[0]).unwrap();
    let (_, mut packet) = first.packet(identity(2), Message::Gossip, &suspect);
    group.members.insert(ids[0], first);
    let (mut from, mut to) = (ids[0], ids[1]);
    for _ in 0..3 {
        let answers = group.members.get_mut(&to).unwrap().receive(at(20_000), from, &packet).unwrap();
        let Some((_, answer)) = answers.sends.into_iter().find(|(peer, _)| peer.node == from) else { return };
        (packet, from, to) = (answer, to, from);
    }
    panic!("they go on");
}
