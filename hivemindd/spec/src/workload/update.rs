//! How replicas are to give way to those of another template.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{MAX_REPLICAS, WorkloadSpec};
use crate::document::DocumentError;

/// The longest pause and the longest watch, milliseconds: a week.
const MAX_WAIT_MS: u64 = 7 * 24 * 3600 * 1000;

/// How replicas are to be replaced when the template changes, as Compose's `deploy.update_config` and
/// `rollback_config` say it. Kept with the workload for rolling updates: this version replaces all replicas at once.
/// A change replaces none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdatePolicy {
    /// How many at a time; 0: all.
    #[serde(default = "one")]
    pub parallelism: u32,
    /// Pause after each group, milliseconds.
    #[serde(default)]
    pub delay_ms: u64,
    /// What is to follow when too many fail.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// For how long a replica is watched after it was replaced, milliseconds.
    #[serde(default = "five_seconds")]
    pub monitor_ms: u64,
    /// How many of a thousand may fail.
    #[serde(default)]
    pub max_failures_permille: u32,
    /// Whether the old one ends before the new one starts.
    #[serde(default)]
    pub order: ReplaceOrder,
}

impl Default for UpdatePolicy {
    fn default() -> Self {
        Self {
            parallelism: one(),
            delay_ms: 0,
            on_failure: OnFailure::default(),
            monitor_ms: five_seconds(),
            max_failures_permille: 0,
            order: ReplaceOrder::default(),
        }
    }
}

/// What follows when too many replicas fail while they are replaced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// No more are replaced.
    #[default]
    Pause,
    /// The others are replaced all the same.
    Continue,
    /// Those that were replaced get the template before.
    Rollback,
}

/// Which of two replicas of one slot comes first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ReplaceOrder {
    /// The old one ends, then the new one starts.
    #[default]
    StopFirst,
    /// The new one starts, then the old one ends.
    StartFirst,
}

fn one() -> u32 {
    1
}

fn five_seconds() -> u64 {
    5000
}

pub(super) fn validate(spec: &WorkloadSpec) -> Result<(), DocumentError> {
    for (place, policy) in [("/spec/update", &spec.update), ("/spec/rollback", &spec.rollback)] {
        let Some(policy) = policy else { continue };
        let fail = |key: &str, message: String| Err(DocumentError::new(format!("{place}/{key}"), message));
        if policy.parallelism > MAX_REPLICAS {
            return fail("parallelism", format!("is over the limit of {MAX_REPLICAS}"));
        }
        if policy.delay_ms > MAX_WAIT_MS {
            return fail("delayMs", "is over a week".to_owned());
        }
        if policy.monitor_ms > MAX_WAIT_MS {
            return fail("monitorMs", "is over a week".to_owned());
        }
        if policy.max_failures_permille > 1000 {
            return fail("maxFailuresPermille", "is over a thousand, which is all".to_owned());
        }
    }
    if spec.rollback.as_ref().is_some_and(|policy| policy.on_failure == OnFailure::Rollback) {
        let text = "a rollback is not rolled back; use pause or continue";
        return Err(DocumentError::new("/spec/rollback/onFailure", text));
    }
    Ok(())
}
