//! The lives of many seeds, and proof that the simulator notices what it is there to notice.

mod membership;

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use hivemind_core::mutation::{self, Mutation};
use hivemind_tests::setting;
use hivemind_tests::sim::life::{Options, live};

/// Seeds lived in every run of the tests; set `HIVEMIND_LIVES` for more.
const SEEDS: u64 = 2000;

/// One in so many seeds is lived twice.
const TWICE_EVERY: u64 = 50;

/// Seeds within which a deliberate fault must be noticed. Most show in the first few.
const SEEDS_PER_FAULT: u64 = 300;

/// Lives seeds on all processors until one gives an answer.
fn first<T: Send>(seeds: u64, live: impl Fn(u64) -> Option<T> + Sync) -> Option<T> {
    let next = AtomicU64::new(0);
    let work = || loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= seeds {
            return None;
        }
        if let Some(found) = live(seed) {
            next.store(seeds, Ordering::Relaxed);
            return Some(found);
        }
    };
    thread::scope(|scope| {
        let count = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let workers: Vec<_> = (0..count).map(|_| scope.spawn(work)).collect();
        let ended = |worker: thread::ScopedJoinHandle<'_, Option<T>>| worker.join().expect("a life panicked");
        workers.into_iter().filter_map(ended).next()
    })
}

#[test]
fn lives_under_every_fault_keep_every_promise() {
    let broken = first(setting("HIVEMIND_LIVES", SEEDS), |seed| {
        let outcome = live(seed, &Options::default());
        outcome.broken.map(|broken| (seed, broken))
    });
    if let Some((seed, broken)) = broken {
        let traced = live(seed, &Options { traced: true, ..Options::default() });
        let lines = traced.lines.join("\n");
        panic!(
            "{lines}\nseed {seed}: {broken}\ncargo run -p hivemind-tests --bin simulate -- --seed {seed} --log"
        );
    }
}

#[test]
fn a_seed_always_gives_the_same_life() {
    let traced = Options { traced: true, ..Options::default() };
    let differs = first(SEEDS / TWICE_EVERY, |number| {
        let seed = number * TWICE_EVERY;
        let (one, other) = (live(seed, &traced).trace, live(seed, &traced).trace);
        (one != other || one.is_none()).then_some(seed)
    });
    assert_eq!(differs, None);
}

#[test]
fn every_deliberate_fault_of_the_core_is_noticed() {
    for fault in Mutation::SOON_SEEN {
        let noticed = first(SEEDS_PER_FAULT, |seed| {
            mutation::turn_on(Some(fault));
            let outcome = live(seed, &Options::default());
            mutation::turn_on(None);
            outcome.broken.map(|broken| (seed, broken))
        });
        let (seed, broken) = noticed.unwrap_or_else(|| panic!("{fault:?} was not noticed"));
        println!("{fault:?}: seed {seed}: {broken}");
    }
}
