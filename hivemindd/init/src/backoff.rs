//! How long a dead child stays dead.

use std::time::Duration;

/// The delay before the second start in a row; the first is immediate.
const FIRST: Duration = Duration::from_millis(250);

/// The longest delay: a child that cannot run is tried often enough to come back by itself soon
/// after its obstacle goes, and seldom enough not to load the machine.
const LONGEST: Duration = Duration::from_secs(10);

/// A child that ran this long was well; its next death starts the count anew.
const STABLE: Duration = Duration::from_secs(10);

/// Deaths in a row.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    deaths: u32,
}

impl Backoff {
    /// The child died after running for `ran`: how long to wait before it is started again.
    pub(super) fn died(&mut self, ran: Duration) -> Duration {
        if ran >= STABLE {
            self.deaths = 0;
        }
        let delay = match self.deaths {
            0 => Duration::ZERO,
            n => FIRST.saturating_mul(1u32.checked_shl(n - 1).unwrap_or(u32::MAX)).min(LONGEST),
        };
        self.deaths = self.deaths.saturating_add(1);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_restart_is_immediate_and_later_ones_double_to_ten_seconds() {
        let mut backoff = Backoff::default();
        let delays: Vec<u128> = (0..40).map(|_| backoff.died(Duration::from_millis(5)).as_millis()).collect();
        assert_eq!(delays[..9], [0, 250, 500, 1000, 2000, 4000, 8000, 10000, 10000]);
        assert_eq!(delays[39], 10000);
    }

    #[test]
    fn a_child_that_ran_well_is_back_at_once() {
        let mut backoff = Backoff::default();
        for _ in 0..20 {
            backoff.died(Duration::ZERO);
        }
        assert_eq!(backoff.died(STABLE), Duration::ZERO);
    }
}
