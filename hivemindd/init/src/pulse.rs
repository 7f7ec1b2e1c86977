//! The agent's signs of life, and what PID 1 does without them.
//!
//! ```text
//!   silent for 30 s ---> killed, and started again like one that died
//!   not gone 30 s later ---> the watchdog is fed no longer: the machine starts anew
//! ```
//!
//! The loop that gives the signs is the one that decides everything (`agent/turn.rs`), so an agent whose process lives
//! and whose loop hangs is silent too. Containers live on while the agent is started again.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::fence::boot_ms;
use super::watchdog::FEED_EVERY;

/// Holds when the agent gave its last sign, `CLOCK_BOOTTIME` in milliseconds, decimal. What matters is that it changes.
const FILE: &str = "/run/hivemind/alive";

/// How often the agent gives a sign.
pub const BEAT_EVERY: Duration = Duration::from_secs(5);

/// For how long an agent may be silent that has given a sign: many times what a burst of work takes it on a slow machine.
const SILENT: Duration = Duration::from_secs(30);

/// For how long one may be silent that has just been started: it opens its store first, and may have to repair it.
const STARTING: Duration = Duration::from_secs(180);

/// How long one may take to end that was killed. Longer means that the kernel does not let it go.
const ENDING: Duration = Duration::from_secs(30);

/// A sign of life of the agent's.
///
/// # Errors
/// Those of the file system.
pub fn beat() -> io::Result<()> {
    fs::write(FILE, boot_ms().to_string())
}

/// What is to be done about the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Well,
    /// It has just been silent for too long.
    Hangs,
    /// It was, and does not end.
    Stuck,
}

/// PID 1's part: for how long the agent has been silent.
#[derive(Debug)]
pub(super) struct Pulse {
    /// The process listened to.
    agent: Option<Pid>,
    last: String,
    /// Whether that process has given a sign.
    begun: bool,
    silent: Duration,
    /// For how long it has been dying, once it has been told to.
    ending: Option<Duration>,
    looked: Instant,
}

impl Pulse {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            agent: None,
            last: String::new(),
            begun: false,
            silent: Duration::ZERO,
            ending: None,
            looked: now,
        }
    }

    /// Looks for a new sign of the process that is the agent now, no more often than there are any.
    pub(super) fn look(&mut self, agent: Option<Pid>, now: Instant) -> Verdict {
        self.look_at(agent, || fs::read_to_string(Path::new(FILE)).unwrap_or_default(), now)
    }

    fn look_at(&mut self, agent: Option<Pid>, sign: impl FnOnce() -> String, now: Instant) -> Verdict {
        if now.saturating_duration_since(self.looked) < BEAT_EVERY.min(self.patience()) {
            return self.ended();
        }
        self.listen(agent, &sign(), now)
    }

    /// When to look at the latest, so that an agent that hangs is found when its time is over.
    pub(super) fn due(&self) -> Instant {
        self.looked + self.patience()
    }

    /// For how much longer the agent may be silent.
    fn patience(&self) -> Duration {
        let limit = match self.ending {
            Some(_) => return FEED_EVERY,
            None if self.begun => SILENT,
            None => STARTING,
        };
        limit.saturating_sub(self.silent).min(FEED_EVERY)
    }

    /// Whether an agent that was killed has had long enough to end.
    fn ended(&self) -> Verdict {
        if self.ending.is_some_and(|ending| ending > ENDING) { Verdict::Stuck } else { Verdict::Well }
    }

    fn listen(&mut self, agent: Option<Pid>, sign: &str, now: Instant) -> Verdict {
        // PID 1 looks this often. When it was kept from it, by a machine that stood still, so was the agent.
        let passed = now.saturating_duration_since(self.looked).min(FEED_EVERY);
        self.looked = now;
        let told = sign != self.last;
        if told {
            sign.clone_into(&mut self.last);
        }
        if agent.is_none() || agent != self.agent {
            (self.agent, self.begun, self.silent, self.ending) = (agent, false, Duration::ZERO, None);
            return Verdict::Well;
        }
        if let Some(ending) = &mut self.ending {
            *ending += passed;
            return self.ended();
        }
        if told {
            (self.begun, self.silent) = (true, Duration::ZERO);
            return Verdict::Well;
        }
        self.silent += passed;
        if !self.patience().is_zero() {
            return Verdict::Well;
        }
        self.ending = Some(Duration::ZERO);
        Verdict::Hangs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A supervisor that looks every ten seconds of a time of its own.
    struct Look {
        pulse: Pulse,
        now: Instant,
    }

    impl Look {
        fn new() -> Self {
            let now = Instant::now();
            Self { pulse: Pulse::new(now), now }
        }

        fn after(&mut self, seconds: u64, agent: i32, sign: &str) -> Verdict {
            self.now += Duration::from_secs(seconds);
            self.pulse.listen(Some(Pid::from_raw(agent)), sign, self.now)
        }
    }

    #[test]
    fn an_agent_that_gives_signs_of_life_is_left_alone() {
        let mut look = Look::new();
        for turn in 0..100 {
            assert_eq!(look.after(10, 7, &turn.to_string()), Verdict::Well);
        }
    }

    #[test]
    fn an_agent_that_falls_silent_is_found_to_hang_once_and_to_be_stuck_if_it_does_not_end() {
        let mut look = Look::new();
        let verdicts = ["1", "2", "2", "2"].map(|sign| look.after(10, 7, sign));
        assert_eq!(verdicts, [Verdict::Well; 4], "the first look only finds out whom to listen to");
        let verdicts = [(); 5].map(|()| look.after(10, 7, "2"));
        assert_eq!(verdicts[0], Verdict::Hangs);
        assert_eq!(verdicts[1..4], [Verdict::Well; 3], "it is dying");
        assert_eq!(verdicts[4], Verdict::Stuck);
        // The next agent begins anew, with what the one before left.
        assert_eq!(look.after(10, 8, "2"), Verdict::Well);
        assert_eq!(look.after(10, 8, "2"), Verdict::Well);
    }

    #[test]
    fn an_agent_that_starts_has_longer() {
        let mut look = Look::new();
        look.after(10, 7, "");
        let first = (1..100).find(|_| look.after(10, 7, "") == Verdict::Hangs);
        assert_eq!(first, Some(18));
    }

    #[test]
    fn whenever_an_agent_falls_silent_it_is_found_forty_seconds_later_at_the_latest() {
        // Whatever else wakes PID 1 in between, and however often.
        for woken_every in [1_000, 3_700, 7_300, 9_900, 60_000].map(Duration::from_millis) {
            for silent_from in (40..60).map(Duration::from_secs) {
                let begin = Instant::now();
                let mut pulse = Pulse::new(begin);
                let mut passed = Duration::ZERO;
                let found = loop {
                    let due = pulse.due().saturating_duration_since(begin);
                    passed = due.max(passed + Duration::from_millis(1)).min(passed + woken_every);
                    let sign = passed.min(silent_from).as_secs() / BEAT_EVERY.as_secs();
                    let agent = Some(Pid::from_raw(7));
                    match pulse.look_at(agent, || sign.to_string(), begin + passed) {
                        Verdict::Well => assert!(passed < silent_from + FEED_EVERY + SILENT),
                        verdict => break verdict,
                    }
                };
                assert_eq!(found, Verdict::Hangs);
                assert!(passed >= silent_from - BEAT_EVERY + SILENT, "patience of {passed:?}");
            }
        }
    }

    #[test]
    fn a_machine_that_stood_still_does_not_blame_its_agent() {
        let mut look = Look::new();
        look.after(10, 7, "1");
        look.after(10, 7, "2");
        assert_eq!(look.after(86_400, 7, "2"), Verdict::Well);
        assert_eq!(look.after(1, 7, "3"), Verdict::Well);
    }
}
