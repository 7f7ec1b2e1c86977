//! What is remembered of one replica between containers: counts, backoff, address.

use std::net::Ipv4Addr;

use hivemind_spec::api::Phase;
use hivemind_spec::id::Digest;
use hivemind_spec::workload::{RestartCondition, RestartPolicy};

use super::container_id;
use crate::cluster::Workload;
use crate::event::{ContainerId, ContainerLabels, OperationError, Shortage};
use crate::record::{ReplicaId, ReplicaStatus};
use crate::time::Time;

/// The longest wait between tries, milliseconds: a cause that lasts longer than five minutes is
/// found by a person, and then nobody wants to wait longer.
pub(super) const MAX_DELAY_MS: u64 = 5 * 60 * 1000;

/// The shortest wait, milliseconds, whatever the document says: a container that ends at once must
/// not take a whole core with its restarts.
const MIN_DELAY_MS: u64 = 100;

/// A container that ran for so long has recovered, and its next end begins a new count,
/// milliseconds.
const RECOVERED_AFTER_MS: u64 = 10 * 60 * 1000;

/// The wait before try `failures + 1`, milliseconds: doubles from `base_ms`.
pub(super) fn delay_ms(base_ms: u64, failures: u32) -> u64 {
    let factor = 1u64.checked_shl(failures).unwrap_or(u64::MAX);
    base_ms.max(MIN_DELAY_MS).saturating_mul(factor).min(MAX_DELAY_MS)
}

/// `after 0.5 s`, `after 300 s`.
pub(super) fn after(delay_ms: u64) -> String {
    format!("after {}", span(delay_ms))
}

/// `0.5 s`, `300 s`.
pub(super) fn span(ms: u64) -> String {
    let (seconds, tenths) = (ms / 1000, ms % 1000 / 100);
    if tenths == 0 { format!("{seconds} s") } else { format!("{seconds}.{tenths} s") }
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct End {
    pub(super) code: u32,
    pub(super) at_ms: u64,
    pub(super) oom: Option<Shortage>,
}

/// Why the agent itself stopped a container that is still wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StopCause {
    /// Its health check failed, with these words.
    Unhealthy(String),
    /// The node has another subnet now.
    Renumbered,
    /// Its workload must not run twice, and its lease was not renewed.
    LeaseEnded,
    /// Its namespace does not allow what it is given of the machine.
    Barred,
    /// It ran for longer than its job allows one attempt, milliseconds.
    Deadline(u64),
    /// It made room for others, with these words.
    Evicted(String),
}

/// What comes after an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// A start at this [`Time::mono_ms`].
    At(u64),
    /// Nothing: it rests in this phase until its template changes.
    Never(Phase),
}

/// The judged end of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ended {
    /// Which container, by its number of restarts.
    pub(super) restarts: u32,
    pub(super) next: Next,
    pub(super) reason: String,
}

/// What is remembered of one replica.
#[derive(Debug, Clone)]
pub(super) struct Life {
    template: Digest,
    /// The name of its container of that template, which is a hash.
    container: ContainerId,
    policy: RestartPolicy,
    /// Restarts before the container that is, or comes next.
    pub(super) restarts: u32,
    /// Ends in a row without a long run between them.
    streak: u32,
    /// Since when this agent has seen the container run, [`Time::mono_ms`].
    running_since_ms: Option<u64>,
    pub(super) stop_cause: Option<StopCause>,
    /// Whether its container that ended made room for others, and so keeps none.
    pub(super) made_room: bool,
    pub(super) ended: Option<Ended>,
    /// How the container before this one ended.
    pub(super) last_end: Option<String>,
    pub(super) ip: Option<Ipv4Addr>,
}

impl Life {
    /// A new life, which goes on where `previous`, the status from before the agent restarted,
    /// left off.
    pub(super) fn new(replica: &ReplicaId, workload: &Workload, previous: Option<&ReplicaStatus>) -> Self {
        let policy = workload.spec.restart.clone();
        let mut life = Self {
            template: workload.template,
            container: container_id(replica, &workload.template),
            policy,
            restarts: 0,
            streak: 0,
            running_since_ms: None,
            stop_cause: None,
            made_room: false,
            ended: None,
            last_end: None,
            ip: previous.and_then(|status| status.ip),
        };
        let Some(status) = previous.filter(|status| status.template == workload.template) else {
            return life;
        };
        life.restarts = status.restarts;
        // What the policy laid to rest stays there, also when a power cut took the task's exit
        // code. Other failures are worth another try.
        let by_policy =
            life.policy.condition == RestartCondition::Never || life.policy.max_attempts.is_some();
        match status.phase {
            Phase::Completed => life.ended = Some(rest(status)),
            Phase::Failed if by_policy => life.ended = Some(rest(status)),
            Phase::Backoff => life.restarts = status.restarts.saturating_add(1),
            _ => {}
        }
        life.streak = life.restarts;
        life
    }

    /// Begins anew, except for the address, when the template is another one.
    pub(super) fn take_template(&mut self, replica: &ReplicaId, workload: &Workload) {
        if self.template != workload.template {
            let ip = self.ip;
            *self = Self { ip, ..Self::new(replica, workload, None) };
        }
    }

    /// The name of its container of this template.
    pub(super) fn container(&self, replica: &ReplicaId, template: &Digest) -> ContainerId {
        if self.template == *template { self.container.clone() } else { container_id(replica, template) }
    }

    /// Takes note of an existing container: adopts its counts and address.
    pub(super) fn met(&mut self, labels: &ContainerLabels) {
        self.ip = Some(labels.ip);
        if self.ended.as_ref().is_none_or(|ended| ended.restarts != labels.restarts)
            && self.restarts != labels.restarts
        {
            self.restarts = labels.restarts;
            self.streak = self.streak.max(labels.restarts);
        }
    }

    /// Takes note that its container runs, and has for so long already as far as was said before the agent started,
    /// milliseconds.
    pub(super) fn runs(&mut self, now: Time, ran_ms: u64) {
        self.running_since_ms.get_or_insert(now.mono_ms.saturating_sub(ran_ms));
        if let Some(ended) = self.ended.take() {
            // The judgement was about a container that turns out to run.
            self.restarts = ended.restarts;
        }
    }

    /// For how long its container has been running, milliseconds.
    pub(super) fn ran_ms(&self, now: Time) -> u64 {
        self.running_since_ms.map_or(0, |since| now.mono_ms.saturating_sub(since))
    }

    /// Takes note that a start begins.
    pub(super) fn begins(&mut self) {
        if let Some(ended) = self.ended.take() {
            self.last_end = Some(ended.reason);
        }
        self.stop_cause = None;
        self.made_room = false;
        self.running_since_ms = None;
    }

    /// Judges the end of a container, once.
    pub(super) fn judge(&mut self, now: Time, labels: &ContainerLabels, end: &End) {
        if self.ended.as_ref().is_some_and(|ended| ended.restarts == labels.restarts) {
            return;
        }
        let ago_ms = now.wall_ms.saturating_sub(end.at_ms);
        match self.stop_cause.take() {
            Some(StopCause::Renumbered) => self.goes_on(now, labels, "its node's subnet changed"),
            Some(StopCause::LeaseEnded) => self.goes_on(now, labels, "its lease ended"),
            Some(StopCause::Barred) => self.goes_on(now, labels, "its namespace did not allow it"),
            Some(StopCause::Unhealthy(detail)) => {
                self.end(now, labels.restarts, ago_ms, true, format!("health check failed: {detail}"));
            }
            Some(StopCause::Deadline(ms)) => {
                let reason = format!("ran longer than its deadline of {}", span(ms));
                self.end(now, labels.restarts, ago_ms, true, reason);
            }
            Some(StopCause::Evicted(reason)) => {
                self.made_room = true;
                self.end(now, labels.restarts, ago_ms, true, reason);
            }
            None => self.end(now, labels.restarts, ago_ms, end.code != 0, describe(end)),
        }
    }

    /// It ended through no fault of its own, and starts again as soon as it may.
    fn goes_on(&mut self, now: Time, labels: &ContainerLabels, reason: &str) {
        let (next, reason) = (Next::At(now.mono_ms), reason.to_owned());
        self.ended = Some(Ended { restarts: labels.restarts, next, reason });
    }

    /// Takes note that a start failed.
    pub(super) fn start_failed(&mut self, now: Time, labels: &ContainerLabels, error: OperationError) {
        if self.template != labels.template {
            return;
        }
        let reason = format!("cannot start: {}", error.text);
        if error.permanent {
            let next = Next::Never(Phase::Failed);
            self.ended = Some(Ended { restarts: labels.restarts, next, reason });
        } else {
            self.end(now, labels.restarts, 0, true, reason);
        }
    }

    /// Rests until the template changes.
    pub(super) fn gives_up(&mut self, reason: &str) {
        let next = Next::Never(Phase::Failed);
        self.ended = Some(Ended { restarts: self.restarts, next, reason: reason.to_owned() });
    }

    /// How often its container was started again, for people: a start still to come is not one.
    pub(super) fn shown_restarts(&self) -> u32 {
        self.ended.as_ref().map_or(self.restarts, |ended| ended.restarts)
    }

    /// Decides what follows the end, `ago_ms` ago, of the container with this number of restarts.
    fn end(&mut self, now: Time, restarts: u32, ago_ms: u64, failed: bool, reason: String) {
        let ran_ms = self.ran_ms(now);
        self.running_since_ms = None;
        if ran_ms >= self.policy.window_ms.unwrap_or(RECOVERED_AFTER_MS) {
            self.streak = 0;
        }
        let again = match self.policy.condition {
            RestartCondition::Always => true,
            RestartCondition::OnFailure => failed,
            RestartCondition::Never => false,
        };
        let spent = self.policy.max_attempts.is_some_and(|most| self.streak >= most);
        let rest = if failed { Phase::Failed } else { Phase::Completed };
        let (next, reason) = if !again {
            (Next::Never(rest), reason)
        } else if spent {
            let tries = self.streak;
            (Next::Never(rest), format!("{reason}; gave up after {tries} restarts"))
        } else {
            let delay = delay_ms(self.policy.delay_ms, self.streak);
            self.streak = self.streak.saturating_add(1);
            self.restarts = restarts.saturating_add(1);
            let at = now.mono_ms.saturating_add(delay.saturating_sub(ago_ms));
            (Next::At(at), format!("{reason}; starts again {}", after(delay)))
        };
        self.ended = Some(Ended { restarts, next, reason });
    }
}

fn rest(status: &ReplicaStatus) -> Ended {
    Ended { restarts: status.restarts, next: Next::Never(status.phase), reason: status.reason.clone() }
}

/// What a container ended with, out of the words that [`describe`] gave it: the record has no other place for it, and
/// cannot get one while older nodes read it.
pub fn exit_code(reason: &str) -> Option<u32> {
    let said =
        [ENDED, KILLED_AT_LIMIT, KILLED_FOR_OTHERS].iter().find_map(|words| reason.strip_prefix(words))?;
    let end = said.find(|c: char| !c.is_ascii_digit()).unwrap_or(said.len());
    said[..end].parse().ok()
}

const ENDED: &str = "ended with code ";
const KILLED_AT_LIMIT: &str = "was killed for using more memory than its limit, code ";
const KILLED_FOR_OTHERS: &str = "was killed because the memory of its machine was short, code ";

fn describe(end: &End) -> String {
    let code = end.code;
    let signal = match code {
        129 => " (SIGHUP)",
        130 => " (SIGINT)",
        131 => " (SIGQUIT)",
        132 => " (SIGILL)",
        134 => " (SIGABRT)",
        135 => " (SIGBUS)",
        136 => " (SIGFPE)",
        137 => " (SIGKILL)",
        139 => " (SIGSEGV)",
        141 => " (SIGPIPE)",
        143 => " (SIGTERM)",
        _ => "",
    };
    match end.oom {
        Some(Shortage::Own) => format!("{KILLED_AT_LIMIT}{code}"),
        Some(Shortage::Machine) => format!("{KILLED_FOR_OTHERS}{code}"),
        None => format!("{ENDED}{code}{signal}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_container_ended_with_is_read_from_the_words_that_say_so() {
        let killed = [Shortage::Own, Shortage::Machine].map(|shortage| (137, Some(shortage)));
        for (code, oom) in [(0, None), (3, None), (137, None), (255, None)].into_iter().chain(killed) {
            let words = describe(&End { code, at_ms: 0, oom });
            assert_eq!(exit_code(&words), Some(code), "{words}");
            assert_eq!(exit_code(&format!("{words}; gave up after 3 restarts")), Some(code));
        }
        for other in
            ["ran longer than its deadline of 8 s", "cannot start: no such image", "", "ended with code "]
        {
            assert_eq!(exit_code(other), None, "{other}");
        }
    }
}
