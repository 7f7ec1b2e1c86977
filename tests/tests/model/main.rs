//! The lease protocol, model-checked: the core's own `Leases`, under every order of questions, answers,
//! losses, restarts, passing time and a change of voters, up to a bound (stateright, breadth first).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::collections::{BTreeMap, BTreeSet};

use hivemind_core::lease::{Ballot, GRANT_MS, Leases, Letter, Standing};
use hivemind_core::mutation::{self, Mutation};
use hivemind_core::record::WorkloadId;
use hivemind_spec::id::NodeId;
use hivemind_spec::workload::Exclusive;
use stateright::{Checker, Model, Property};

/// How fast the nodes' clocks run, thousandths: the slowest is 5 % behind the fastest.
const RATES: [u64; 3] = [975, 1000, 1025];

/// Nodes on which the workload may be placed, by whatever their leaders believe.
const WANTING: [usize; 2] = [0, 1];

/// How far time jumps, milliseconds by the world's clock: two jumps end the grants of all but the slowest.
const JUMP_MS: u64 = GRANT_MS / 2 + 100;

/// When a path ends, milliseconds: two grants.
const END_MS: u64 = 4 * JUMP_MS;

/// Letters under way at most.
const MAX_LETTERS: usize = 3;

/// States looked at, breadth first: some twenty seconds on two cores.
const STATES: usize = 1_500_000;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    now_ms: u64,
    nodes: Vec<Leases>,
    disks: Vec<BTreeMap<WorkloadId, Ballot>>,
    letters: BTreeSet<(usize, usize, Letter)>,
    restarts: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Step {
    Ask(usize),
    Stop(usize),
    Arrive(usize, usize, Letter),
    Lose(usize, usize, Letter),
    Restart(usize),
    Pass,
}

/// Three nodes, of which the document names the first two; the third is enrolled as well.
struct Protocol {
    fault: Option<Mutation>,
}

fn id(index: usize) -> NodeId {
    NodeId([u8::try_from(index + 1).unwrap(); 16])
}

fn workload() -> WorkloadId {
    WorkloadId { namespace: "default".to_owned(), name: "single".to_owned() }
}

fn exclusive() -> Exclusive {
    Exclusive { since: 1, voters: [id(0), id(1)].into() }
}

impl State {
    fn clock(&self, index: usize) -> u64 {
        1_000_000 + self.now_ms * RATES[index] / 1000
    }

    fn claim(&mut self, index: usize, wants: bool) {
        let all: BTreeSet<NodeId> = (0..RATES.len()).map(id).collect();
        let wanted = [(workload(), exclusive())].into_iter().filter(|_| wants).collect();
        let now_ms = self.clock(index);
        let letters = self.nodes[index].claim(now_ms, &wanted, &BTreeSet::new(), &all, &all);
        self.sync(index);
        let to = |node: NodeId| usize::from(node.0[0]) - 1;
        self.letters.extend(letters.into_iter().map(|(node, letter)| (index, to(node), letter)));
    }

    /// What leaves a node leaves it after the disk has what must be on it.
    fn sync(&mut self, index: usize) {
        let now_ms = self.clock(index);
        for (id, ballot) in self.nodes[index].write(1) {
            match ballot {
                Some(ballot) => drop(self.disks[index].insert(id, ballot)),
                None => drop(self.disks[index].remove(&id)),
            }
        }
        self.nodes[index].persisted(now_ms, 1);
    }

    fn running(&self) -> usize {
        (0..RATES.len()).filter(|index| self.runs(*index)).count()
    }

    fn runs(&self, index: usize) -> bool {
        match self.nodes[index].standing(self.clock(index), &workload()) {
            Standing::Held { until_ms } | Standing::Lost { until_ms } => until_ms > self.clock(index),
            Standing::Never => false,
        }
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let nodes = (0..RATES.len()).map(|index| Leases::new(id(index), 0)).collect();
        let disks = vec![BTreeMap::new(); RATES.len()];
        vec![State { now_ms: 0, nodes, disks, letters: BTreeSet::new(), restarts: 0 }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Step>) {
        for index in WANTING {
            // It asks again when its questions are answered or lost.
            let waits = state.letters.iter().any(|(from, to, _)| *from == index || *to == index);
            if !waits && state.letters.len() + 2 <= MAX_LETTERS {
                actions.push(Step::Ask(index));
            }
            if state.runs(index) {
                actions.push(Step::Stop(index));
            }
        }
        for (from, to, letter) in &state.letters {
            actions.push(Step::Arrive(*from, *to, letter.clone()));
            actions.push(Step::Lose(*from, *to, letter.clone()));
        }
        if state.restarts == 0 {
            // A node that runs it is a machine that loses its power, and its container with it.
            actions.extend((0..RATES.len()).map(Step::Restart));
        }
        actions.push(Step::Pass);
    }

    fn next_state(&self, before: &State, step: Step) -> Option<State> {
        mutation::turn_on(self.fault);
        let mut state = before.clone();
        match step {
            Step::Ask(index) => state.claim(index, true),
            Step::Stop(index) => state.claim(index, false),
            Step::Arrive(from, to, letter) => {
                state.letters.remove(&(from, to, letter.clone()));
                let now_ms = state.clock(to);
                let answer = state.nodes[to].receive(now_ms, id(from), letter, Some(&exclusive()));
                state.sync(to);
                state.letters.extend(answer.map(|(_, letter)| (to, from, letter)));
            }
            Step::Lose(from, to, letter) => drop(state.letters.remove(&(from, to, letter))),
            Step::Restart(index) => {
                state.restarts += 1;
                let mut leases = Leases::new(id(index), state.restarts << 32);
                for (id, ballot) in state.disks[index].clone() {
                    leases.load(state.clock(index), id, ballot);
                }
                state.nodes[index] = leases;
            }
            Step::Pass => state.now_ms += JUMP_MS,
        }
        mutation::turn_on(None);
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("it never runs twice", |_, state: &State| state.running() <= 1),
            Property::sometimes("the one may run it", |_, state: &State| state.runs(0)),
            Property::sometimes("and the other", |_, state: &State| state.runs(1)),
        ]
    }

    fn within_boundary(&self, state: &State) -> bool {
        state.now_ms <= END_MS
    }
}

#[test]
fn no_order_of_events_lets_an_exclusive_workload_run_twice() {
    let checker = Protocol { fault: None }.checker().threads(2).target_state_count(STATES).spawn_bfs().join();
    eprintln!("{} states, {} deep", checker.unique_state_count(), checker.max_depth());
    checker.assert_no_discovery("it never runs twice");
    assert!(checker.discovery("the one may run it").is_some());
    assert!(checker.discovery("and the other").is_some());
}

#[test]
fn the_model_finds_leases_that_are_kept_past_their_end() {
    let fault = Some(Mutation::LeasesAreKeptPastTheirEnd);
    let checker = Protocol { fault }.checker().threads(2).target_state_count(STATES).spawn_bfs().join();
    checker.assert_any_discovery("it never runs twice");
}

#[test]
fn the_model_finds_grantors_that_forget() {
    let fault = Some(Mutation::GrantorsForget);
    let checker = Protocol { fault }.checker().threads(2).target_state_count(STATES).spawn_bfs().join();
    checker.assert_any_discovery("it never runs twice");
}
