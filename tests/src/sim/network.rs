//! Who reaches whom in a simulated world, how late, and how often.

use std::collections::BTreeSet;
use std::ops::Range;

use rand::{Rng, RngExt as _};

/// The cables between all machines.
#[derive(Debug, Clone)]
pub struct Network {
    /// Messages lost, in percent.
    pub loss: u32,
    /// Messages that arrive twice, in percent.
    pub duplication: u32,
    /// How long a message takes, milliseconds. A wide range lets messages overtake each other.
    pub delay_ms: Range<u64>,
    /// From whom to whom nothing gets through: one way, so a partition is two of them per pair.
    pub cut: BTreeSet<(usize, usize)>,
}

impl Default for Network {
    fn default() -> Self {
        Self { loss: 0, duplication: 0, delay_ms: 6..30, cut: BTreeSet::new() }
    }
}

impl Network {
    /// Parts two machines in both directions.
    pub fn part(&mut self, a: usize, b: usize) {
        self.cut.extend([(a, b), (b, a)]);
    }

    /// Parts a machine from all others.
    pub fn isolate(&mut self, machine: usize, machines: usize) {
        (0..machines).filter(|other| *other != machine).for_each(|other| self.part(machine, other));
    }

    /// When the copies of a message arrive, milliseconds from now: none, one, or two.
    pub fn deliveries(&self, from: usize, to: usize, rng: &mut impl Rng) -> Vec<u64> {
        if self.cut.contains(&(from, to)) || chance(self.loss, rng) {
            return Vec::new();
        }
        let copies = if chance(self.duplication, rng) { 2 } else { 1 };
        (0..copies).map(|_| rng.random_range(self.delay_ms.clone())).collect()
    }
}

/// Whether what happens in so many of a hundred cases happens now. Asks for no number where there
/// is no doubt.
pub fn chance(percent: u32, rng: &mut impl Rng) -> bool {
    percent > 0 && rng.random_range(0..100) < percent
}
