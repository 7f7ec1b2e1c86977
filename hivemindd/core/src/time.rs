//! Time as the core sees it: an argument.

use serde::{Deserialize, Serialize};

/// An instant. Both clocks come with every event; neither is ever read by the core.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Time {
    /// Monotonic milliseconds since the agent's start of counting. Never goes back, does not stop
    /// while the agent runs. Timers and timeouts use only this.
    pub mono_ms: u64,
    /// Milliseconds since 1970 by the node's best knowledge, never below the time floor (design,
    /// section 5). May jump. Only revisions, enrolment windows, the times of
    /// jobs and times for people use it.
    pub wall_ms: u64,
}

impl Time {
    /// The instant `ms` later on both clocks.
    pub fn plus(self, ms: u64) -> Self {
        Self { mono_ms: self.mono_ms.saturating_add(ms), wall_ms: self.wall_ms.saturating_add(ms) }
    }
}

/// A hybrid logical clock reading: orders decisions of different leaders.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Hlc {
    /// Wall milliseconds, never behind any reading seen.
    pub wall_ms: u64,
    /// Orders readings within one millisecond.
    pub counter: u32,
}

/// A hybrid logical clock. It is never behind any reading seen, and goes on from it with the
/// monotonic clock: one node whose wall clock is a year ahead must not win for a year.
#[derive(Debug, Clone, Copy, Default)]
pub struct HybridClock {
    last: Hlc,
    /// Monotonic milliseconds now.
    mono_ms: u64,
    /// What to add to them, milliseconds.
    ahead_ms: u64,
}

impl HybridClock {
    /// Takes note of the time. To be called at every event.
    pub fn advance(&mut self, now: Time) {
        self.mono_ms = now.mono_ms;
        self.ahead_ms = self.ahead_ms.max(now.wall_ms.saturating_sub(now.mono_ms));
    }

    /// The monotonic time of the last event, milliseconds.
    pub fn mono_ms(&self) -> u64 {
        self.mono_ms
    }

    /// The next reading after everything seen so far.
    pub fn tick(&mut self) -> Hlc {
        let wall_ms = self.mono_ms.saturating_add(self.ahead_ms);
        self.last = if wall_ms > self.last.wall_ms {
            Hlc { wall_ms, counter: 0 }
        } else {
            Hlc { wall_ms: self.last.wall_ms, counter: self.last.counter.saturating_add(1) }
        };
        self.last
    }

    /// Takes note of another clock's reading.
    pub fn witness(&mut self, other: Hlc) {
        self.last = self.last.max(other);
        self.ahead_ms = self.ahead_ms.max(other.wall_ms.saturating_sub(self.mono_ms));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_is_later_than_one_made_before_it_by_a_clock_that_is_years_ahead() {
        let at = |s: u64, wall_ms: u64| Time { mono_ms: s * 1000, wall_ms: wall_ms + s * 1000 };
        let (right, ahead) = (1_800_000_000_000, 1_900_000_000_000);
        let (mut here, mut there) = (HybridClock::default(), HybridClock::default());
        here.advance(at(1, right));
        there.advance(at(1, ahead));
        here.witness(there.tick());
        // Out of touch from here on.
        there.advance(at(5, ahead));
        let theirs = there.tick();
        here.advance(at(6, right));
        assert!(here.tick() > theirs);
        let before = here.tick();
        assert!(here.tick() > before);
    }
}
