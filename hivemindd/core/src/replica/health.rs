//! A container's health: the verdict over single checks.

use hivemind_spec::workload::HealthCheck;

use crate::time::Time;

/// Passes in a row after which a failing container counts as healthy again. Two, so that one lucky
/// answer does not bring back the traffic that brought it down.
const RECOVERED_AFTER: u32 = 2;

/// What is known of a container's health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Health {
    /// When this agent first saw it run, [`Time::mono_ms`].
    since_ms: u64,
    start_period_ms: u64,
    retries: u32,
    passed_once: bool,
    failures: u32,
    passes: u32,
    /// The last failure's words, once the verdict is that it fails.
    failing: Option<String>,
}

impl Health {
    /// Of a container that `has_passed` before, or not yet.
    pub(super) fn new(now: Time, check: &HealthCheck, has_passed: bool) -> Self {
        Self {
            since_ms: now.mono_ms,
            start_period_ms: check.start_period_ms,
            retries: check.retries.max(1),
            passed_once: has_passed,
            failures: 0,
            passes: 0,
            failing: None,
        }
    }

    /// Takes note of a check. In the start period failures do not count until one has passed.
    pub(super) fn checked(&mut self, now: Time, healthy: bool, detail: &str) {
        if healthy {
            self.passed_once = true;
            self.failures = 0;
            self.passes = self.passes.saturating_add(1);
            if self.passes >= RECOVERED_AFTER {
                self.failing = None;
            }
            return;
        }
        let starting = now.mono_ms < self.since_ms.saturating_add(self.start_period_ms);
        if starting && !self.passed_once {
            return;
        }
        self.passes = 0;
        self.failures = self.failures.saturating_add(1);
        if self.failures >= self.retries || self.failing.is_some() {
            self.failing = Some(detail.to_owned());
        }
    }

    /// Whether a check has passed since it started.
    pub(super) fn has_passed(&self) -> bool {
        self.passed_once
    }

    /// Why it is unhealthy; `None` while it is not.
    pub(super) fn failing(&self) -> Option<&str> {
        self.failing.as_deref()
    }
}
