//! Time as the core sees it: an argument.

use serde::{Deserialize, Serialize};

/// An instant. Both clocks come with every event; neither is ever read by the core.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Time {
    /// Monotonic milliseconds since the agent's start of counting. Never goes back, does not stop
    /// while the agent runs. Timers and timeouts use only this.
    pub mono_ms: u64,
    /// Milliseconds since 1970 by the node's best knowledge, never below the time floor (design,
    /// section 5). May jump. Only revisions, enrolment windows and times for people use it.
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

impl Hlc {
    /// The next reading after everything seen so far.
    pub fn tick(&mut self, now: Time) -> Self {
        *self = if now.wall_ms > self.wall_ms {
            Self { wall_ms: now.wall_ms, counter: 0 }
        } else {
            Self { wall_ms: self.wall_ms, counter: self.counter.saturating_add(1) }
        };
        *self
    }

    /// Takes note of another clock's reading.
    pub fn witness(&mut self, other: Self) {
        *self = (*self).max(other);
    }
}
