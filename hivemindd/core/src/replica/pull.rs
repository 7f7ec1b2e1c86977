//! Image pulls: which run, which wait after a failure. Replicas of one image share a pull.

use std::collections::{BTreeMap, BTreeSet};

use hivemind_spec::api::{Phase, PullProgress};

use super::life::{self, delay_ms};
use super::{Here, InFlight, Plan, Replicas, Standing};
use crate::cluster::Workload;
use crate::event::{OperationError, RuntimeOp};
use crate::record::ReplicaId;
use crate::time::Time;

/// Pulls at once: one is bound by the registry or the disk, two hide each other's waits, more only
/// compete.
pub(super) const MAX_PULLS: usize = 2;

/// First delay after a failed pull, milliseconds; doubles up to [`MAX_RETRY_MS`].
const RETRY_MS: u64 = 1000;

/// The longest wait between pulls, milliseconds: a registry that comes back is used within a minute.
const MAX_RETRY_MS: u64 = 60 * 1000;

/// Parts of a pull that are worth telling the cluster about: each is a record sent to every node.
const PROGRESS_STEPS: u64 = 10;

/// How the pull of an image stands.
pub(super) enum Pull {
    /// It may begin.
    Free,
    /// It runs.
    Runs(Option<PullProgress>),
    /// It failed, and waits.
    Waits {
        /// [`Time::mono_ms`].
        until_ms: u64,
        /// Why it failed.
        text: String,
        /// How long it waits in all.
        delay_ms: u64,
    },
    /// It failed for good.
    Refused(String),
}

#[derive(Debug, Clone, Default)]
struct State {
    runs: bool,
    progress: Option<PullProgress>,
    failures: u32,
    retry_at_ms: u64,
    error: Option<OperationError>,
}

/// All pulls.
#[derive(Debug, Clone, Default)]
pub(super) struct Pulls(BTreeMap<String, State>);

/// The images that workloads have.
pub(super) fn images<'a>(workloads: impl Iterator<Item = &'a Workload>) -> BTreeSet<&'a str> {
    workloads.map(|workload| workload.spec.container.image.as_str()).collect()
}

fn retry_delay_ms(failures: u32) -> u64 {
    delay_ms(RETRY_MS, failures.saturating_sub(1)).min(MAX_RETRY_MS)
}

impl Pulls {
    pub(super) fn state(&self, now: Time, image: &str) -> Pull {
        match self.0.get(image) {
            None => Pull::Free,
            Some(state) if state.runs => Pull::Runs(state.progress),
            Some(State { error: Some(error), .. }) if error.permanent => Pull::Refused(error.text.clone()),
            Some(State { error: Some(error), retry_at_ms, failures, .. }) if now.mono_ms < *retry_at_ms => {
                let delay_ms = retry_delay_ms(*failures);
                Pull::Waits { until_ms: *retry_at_ms, text: error.text.clone(), delay_ms }
            }
            Some(_) => Pull::Free,
        }
    }

    pub(super) fn began(&mut self, image: &str) {
        let state = self.0.entry(image.to_owned()).or_default();
        state.runs = true;
        state.progress = None;
    }

    pub(super) fn failed(&mut self, now: Time, image: &str, error: OperationError) {
        let state = self.0.entry(image.to_owned()).or_default();
        state.runs = false;
        state.failures = state.failures.saturating_add(1);
        state.retry_at_ms = now.mono_ms.saturating_add(retry_delay_ms(state.failures));
        state.error = Some(error);
    }

    /// Takes note of progress, in steps.
    pub(super) fn progressed(&mut self, image: &str, progress: PullProgress) {
        let Some(state) = self.0.get_mut(image) else { return };
        let step = |p: PullProgress| p.done_bytes.saturating_mul(PROGRESS_STEPS) / p.total_bytes.max(1);
        let is_news = state.progress.is_none_or(|before| {
            before.total_bytes != progress.total_bytes || step(before) != step(progress)
        });
        if is_news {
            state.progress = Some(progress);
        }
    }

    pub(super) fn forget(&mut self, image: &str) {
        self.0.remove(image);
    }

    /// Forgets what failed for good, once all replicas that wanted it know: another document with
    /// the same image may try again.
    pub(super) fn forget_refused(&mut self) {
        self.0.retain(|_, state| state.runs || state.error.as_ref().is_none_or(|error| !error.permanent));
    }

    /// Forgets images nobody wants; a pull that runs is remembered until it ends.
    pub(super) fn retain(&mut self, wanted: impl Fn(&str) -> bool) {
        self.0.retain(|image, state| state.runs || wanted(image));
    }
}

impl Replicas {
    /// Sees that the image is there; `None` when it is.
    pub(super) fn fetch(
        &mut self,
        now: Time,
        replica: &ReplicaId,
        workload: &Workload,
        here: Here<'_>,
        plan: &mut Plan,
    ) -> Option<Standing> {
        let image = &workload.spec.container.image;
        let goes =
            self.count(|op| matches!(op, InFlight::RemoveImage { image: going } if going == image)) > 0;
        if self.observed.inventory().images.contains(image) && !goes {
            return None;
        }
        let busy = self.count(|op| matches!(op, InFlight::Pull { .. }));
        match self.pulls.state(now, image) {
            Pull::Refused(text) => {
                let reason = format!("cannot pull {image}: {text}");
                if let Some(life) = self.lives.get_mut(replica) {
                    life.gives_up(&reason);
                }
                Some(Standing::new(Phase::Failed, reason))
            }
            Pull::Waits { until_ms, text, delay_ms } => {
                plan.wake_at(until_ms);
                let reason = format!("cannot pull {image}: {text}; tries again {}", life::after(delay_ms));
                Some(Standing::new(Phase::Backoff, reason))
            }
            Pull::Runs(progress) => {
                Some(Standing { pull: progress, ..Standing::new(Phase::Pulling, format!("pulls {image}")) })
            }
            Pull::Free if busy >= MAX_PULLS => Some(Standing::new(
                Phase::Pulling,
                format!("waits for other pulls to finish, then pulls {image}"),
            )),
            Pull::Free if self.count(|op| matches!(op, InFlight::RemoveImage { .. })) > 0 => {
                let reason = format!("waits until there is room on the disk, then pulls {image}");
                Some(Standing::new(Phase::Pulling, reason))
            }
            Pull::Free => {
                let credentials = match here.credentials.get(replica).cloned().transpose() {
                    Ok(credentials) => credentials.map(Box::new),
                    Err(reason) => return Some(Standing::new(Phase::Assigned, reason)),
                };
                self.pulls.began(image);
                let peers = here.asker.peers(&replica.workload.namespace, image);
                let op = RuntimeOp::Pull { image: image.clone(), credentials, peers };
                self.begin(InFlight::Pull { image: image.clone() }, op, plan);
                Some(Standing::new(Phase::Pulling, format!("pulls {image}")))
            }
        }
    }
}
