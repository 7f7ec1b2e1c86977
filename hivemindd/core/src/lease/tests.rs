use super::*;
use crate::fixture::{node_id, workload_id};

/// Some nodes that hear each other at once, unless they are cut off, and whose disks are quick.
struct Bench {
    nodes: BTreeMap<NodeId, Leases>,
    disks: BTreeMap<NodeId, BTreeMap<WorkloadId, Ballot>>,
    exclusive: Exclusive,
    enrolled: BTreeSet<NodeId>,
    cut: BTreeSet<NodeId>,
    /// What people read of node 1, each time it changed.
    told: Vec<String>,
    now_ms: u64,
}

fn id() -> WorkloadId {
    workload_id("single")
}

fn nodes(numbers: impl IntoIterator<Item = u8>) -> BTreeSet<NodeId> {
    numbers.into_iter().map(node_id).collect()
}

impl Bench {
    fn new(count: u8) -> Self {
        let enrolled = nodes(1..=count);
        let exclusive = Exclusive { since: 1, voters: enrolled.clone() };
        let leases = |node: &NodeId| (*node, Leases::new(*node, 0));
        Self {
            nodes: enrolled.iter().map(leases).collect(),
            disks: BTreeMap::new(),
            exclusive,
            enrolled,
            cut: BTreeSet::new(),
            told: Vec::new(),
            now_ms: 1000,
        }
    }

    /// Lets a node want the lease, or not, for a moment.
    fn turn(&mut self, number: u8, wants: bool) {
        let me = node_id(number);
        let wanted = [(id(), self.exclusive.clone())].into_iter().filter(|_| wants).collect();
        let alive = self.enrolled.difference(&self.cut).copied().collect();
        let node = self.nodes.get_mut(&me).unwrap();
        let letters = node.claim(self.now_ms, &wanted, &BTreeSet::new(), &self.enrolled, &alive);
        self.sync(me);
        let mut open: Vec<_> = letters.into_iter().map(|(to, letter)| (me, to, letter)).collect();
        while let Some((from, to, letter)) = open.pop() {
            if self.cut.contains(&from) || self.cut.contains(&to) || !self.nodes.contains_key(&to) {
                continue;
            }
            let node = self.nodes.get_mut(&to).unwrap();
            let answer = node.receive(self.now_ms, from, letter, Some(&self.exclusive));
            self.sync(to);
            open.extend(answer.map(|(back, letter)| (to, back, letter)));
        }
    }

    fn sync(&mut self, node: NodeId) {
        let leases = self.nodes.get_mut(&node).unwrap();
        let disk = self.disks.entry(node).or_default();
        for (id, ballot) in leases.write(1) {
            match ballot {
                Some(ballot) => drop(disk.insert(id, ballot)),
                None => drop(disk.remove(&id)),
            }
        }
        leases.persisted(self.now_ms, 1);
        let told = self.nodes[&node_id(1)].explain(&id(), ToString::to_string);
        if self.told.last() != Some(&told) {
            self.told.push(told);
        }
    }

    fn restart(&mut self, number: u8) {
        let me = node_id(number);
        let mut leases = Leases::new(me, self.now_ms << 32);
        for (id, ballot) in self.disks.get(&me).cloned().unwrap_or_default() {
            leases.load(self.now_ms, id, ballot);
        }
        self.nodes.insert(me, leases);
    }

    /// Lets these want it, taking turns, for so long.
    fn run(&mut self, ms: u64, wanting: &[u8]) {
        for _ in 0..ms / 500 {
            self.now_ms += 500;
            for number in wanting {
                self.turn(*number, true);
                let holders = self.holders();
                assert!(holders.len() <= 1, "{holders:?} hold it at {}", self.now_ms);
            }
        }
    }

    /// Whose containers may run: those that hold the lease, until its very end.
    fn holders(&self) -> Vec<NodeId> {
        let holds = |leases: &Leases| match leases.standing(self.now_ms, &id()) {
            Standing::Held { until_ms } | Standing::Lost { until_ms } => until_ms > self.now_ms,
            Standing::Never => false,
        };
        self.nodes.iter().filter(|(_, leases)| holds(leases)).map(|(node, _)| *node).collect()
    }
}

#[test]
fn one_of_those_that_ask_gets_the_lease_and_keeps_it() {
    let mut bench = Bench::new(3);
    bench.run(1000, &[1]);
    assert_eq!(bench.holders(), [node_id(1)]);
    bench.run(120_000, &[1, 2, 3]);
    assert_eq!(bench.holders(), [node_id(1)]);
}

#[test]
fn without_a_strict_majority_nobody_holds_it() {
    let mut bench = Bench::new(4);
    bench.cut = nodes([3, 4]);
    bench.run(60_000, &[1, 2]);
    assert_eq!(bench.holders(), []);
    bench.cut = nodes([4]);
    bench.run(3000, &[1]);
    assert_eq!(bench.holders(), [node_id(1)]);
}

#[test]
fn why_it_is_not_held_is_told_once_and_not_with_every_answer() {
    let mut bench = Bench::new(6);
    bench.cut = nodes([4, 5, 6]);
    bench.run(60_000, &[1]);
    let counted = "waits for its lease: 3 of 6 nodes granted it, and more than half must";
    assert_eq!(bench.told, ["waits for its lease", counted]);
}

#[test]
fn a_holder_that_is_cut_off_stops_before_another_begins() {
    let mut bench = Bench::new(3);
    bench.run(5000, &[1]);
    bench.cut = nodes([1]);
    let began = bench.now_ms;
    while bench.holders() != [node_id(2)] {
        bench.run(500, &[1, 2]);
        assert!(bench.now_ms < began + GRANT_MS + 2 * ASK_EVERY_MS, "another gets it when it has lapsed");
    }
    assert!(bench.now_ms >= began + RUN_MS - RENEW_EVERY_MS);
    bench.cut.clear();
    bench.run(60_000, &[1, 2]);
    assert_eq!(bench.holders(), [node_id(2)]);
}

#[test]
fn who_has_stopped_gives_it_back_at_once() {
    let mut bench = Bench::new(3);
    bench.run(5000, &[1]);
    bench.turn(1, false);
    assert_eq!(bench.holders(), []);
    bench.run(500, &[3]);
    assert_eq!(bench.holders(), [node_id(3)]);
}

#[test]
fn a_grantor_that_restarts_waits_until_what_it_granted_has_lapsed() {
    let mut bench = Bench::new(3);
    bench.run(5000, &[1]);
    bench.cut = nodes([1]);
    bench.restart(2);
    bench.restart(3);
    bench.run(GRANT_MS - 1000, &[2, 3]);
    assert_eq!(bench.holders(), []);
    bench.run(5000, &[2]);
    assert_eq!(bench.holders(), [node_id(2)]);
}

#[test]
fn a_holder_that_restarts_has_it_again_at_once() {
    let mut bench = Bench::new(3);
    bench.run(5000, &[1]);
    bench.restart(1);
    bench.run(1000, &[1]);
    assert_eq!(bench.holders(), [node_id(1)]);
}

#[test]
fn its_own_vote_counts_only_once_it_is_durable() {
    let mut leases = Leases::new(node_id(1), 0);
    let exclusive = Exclusive { since: 1, voters: nodes([1]) };
    let (wanted, alive) = ([(id(), exclusive)].into(), nodes([1]));
    leases.claim(1000, &wanted, &BTreeSet::new(), &alive, &alive);
    assert_eq!(leases.standing(1000, &id()), Standing::Never);
    leases.write(7);
    leases.persisted(1000, 6);
    assert_eq!(leases.standing(1000, &id()), Standing::Never);
    leases.persisted(1000, 7);
    assert_eq!(leases.standing(1000, &id()), Standing::Held { until_ms: 1000 + RUN_MS });
}

#[test]
fn voters_follow_who_is_enrolled_and_the_old_ones_cannot_grant_without_the_new() {
    let mut bench = Bench::new(3);
    bench.run(5000, &[1]);
    for number in 4..=7 {
        bench.nodes.insert(node_id(number), Leases::new(node_id(number), 0));
    }
    bench.enrolled = nodes(1..=7);
    bench.run(20_000, &[1]);
    let sets: Vec<_> = bench.nodes[&node_id(5)].grantors[&id()].ballot.voters.sets().cloned().collect();
    assert_eq!(sets, [nodes(1..=7)]);
    // Two of the first three are no majority any more, also for one that missed all of it.
    bench.cut = nodes([1, 4, 5, 6, 7]);
    bench.run(60_000, &[2, 3]);
    assert_eq!(bench.holders(), []);
    bench.cut = nodes([1]);
    bench.run(5000, &[2]);
    assert_eq!(bench.holders(), [node_id(2)]);
}

#[test]
fn who_knows_only_old_voters_learns_of_the_new_ones_before_it_gets_anything() {
    let mut bench = Bench::new(3);
    bench.run(5000, &[1]);
    // Node 3 misses that two more have a say.
    bench.cut = nodes([3]);
    for number in 4..=5 {
        bench.nodes.insert(node_id(number), Leases::new(node_id(number), 0));
    }
    bench.enrolled = nodes(1..=5);
    bench.run(20_000, &[1]);
    bench.cut = nodes([1, 4, 5]);
    bench.run(60_000, &[3]);
    assert_eq!(bench.holders(), [], "2 and 3 are two of the first three, and not three of five");
}

#[test]
fn a_grantor_that_lost_its_store_grants_nothing_until_the_holder_tells_it_the_voters() {
    for told in [false, true] {
        let mut bench = Bench::new(3);
        bench.run(5000, &[1]);
        bench.disks.remove(&node_id(2));
        bench.restart(2);
        bench.nodes.get_mut(&node_id(2)).unwrap().forget(Forgot { until: 5, unsure: false });
        if told {
            bench.run(10_000, &[1]);
        }
        bench.cut = nodes([1]);
        bench.run(60_000, &[3]);
        assert_eq!(bench.holders() == [node_id(3)], told);
    }
}

#[test]
fn a_workload_made_anew_waits_for_what_was_granted_of_the_old_one() {
    let mut bench = Bench::new(3);
    bench.run(5000, &[1]);
    bench.exclusive.since = 2;
    bench.cut = nodes([1]);
    bench.run(GRANT_MS - 5000, &[2]);
    assert!(!bench.holders().contains(&node_id(2)));
    bench.run(10_000, &[2]);
    assert_eq!(bench.holders(), [node_id(2)]);
}

#[test]
fn a_grantor_knows_of_a_bounded_number_of_leases() {
    let mut grantor = Leases::new(node_id(1), 0);
    let exclusive = Exclusive { since: 1, voters: nodes(1..=3) };
    let mut asked = |number: usize| {
        let voters = Voters::first(exclusive.voters.clone());
        let word = Word::Ask { round: 1, holds: false, digest: voters.digest(), voters: Some(voters) };
        let letter = Letter { workload: workload_id(&format!("w{number}")), since: 1, word };
        let answer = grantor.receive(1000, node_id(2), letter, Some(&exclusive));
        answer.map(|(_, letter)| letter.word)
    };
    for number in 0..MAX_BALLOTS {
        assert!(matches!(asked(number), Some(Word::Granted { .. })), "{number}");
    }
    assert!(matches!(asked(MAX_BALLOTS), Some(Word::Refused { refusal: Refusal::Full, .. })));
    assert!(matches!(asked(0), Some(Word::Granted { .. })), "those it knows go on");
}
