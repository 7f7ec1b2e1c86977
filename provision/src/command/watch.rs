//! Watches pushed workloads until they run.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hivemind_spec::api::{Accepted, Phase, Replica};
use hivemind_spec::document::SpecKey;
use hivemind_spec::id::Digest;
use hivemind_spec::workload::WorkloadSpec;

use super::bars::Bars;
use crate::client::{Client, percent};
use crate::deploy::Change;
use crate::failure::{Exit, Failure, Result};
use crate::quantity::show_bytes;
use crate::terminal::{BAD, GOOD, paint, printable};

/// How often the cluster is asked: often enough to look live, rarely enough to cost nothing.
const INTERVAL: Duration = Duration::from_millis(500);

/// Starts of a replica that failed before waiting makes no sense any more.
const HOPELESS_RESTARTS: u32 = 3;

/// A workload to wait for.
pub(super) struct Target {
    key: SpecKey,
    /// How many there are to be; absent: one on each node, of which the cluster knows.
    replicas: Option<u32>,
    /// Whether there are more, of which those follow that end.
    in_turns: bool,
    /// Whether it is run at set times, and so not now.
    waits: bool,
    /// The document its replicas must be at.
    digest: Option<Digest>,
}

impl Target {
    /// What a change leads to.
    pub(super) fn new(change: &Change, accepted: &[Accepted]) -> Self {
        let digest = accepted.iter().find(|answer| answer.key == change.key).map(|answer| answer.digest);
        let workload = change.document.workload();
        let at_once = |workload: &WorkloadSpec| {
            let most = workload.job.as_ref().and_then(|job| job.parallelism);
            workload.replicas.min(most.unwrap_or(u32::MAX))
        };
        Self {
            key: change.key.clone(),
            replicas: workload.filter(|workload| !workload.global).map(at_once),
            in_turns: workload.and_then(|workload| workload.job.as_ref()?.parallelism).is_some(),
            waits: workload.is_some_and(|workload| workload.schedule().is_some()),
            // One that was kept runs what it ran before, which is what it replaces.
            digest: digest.or(change.document.metadata.replaces),
        }
    }
}

/// How the waiting ended.
pub(super) struct Outcome {
    pub(super) replicas: Vec<Replica>,
    pub(super) verdict: Result<Exit>,
}

/// How one workload does.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Progress {
    Waiting(String),
    Running,
    Hopeless(String),
}

/// Watches until everything runs, something cannot, or the time is up.
pub(super) async fn until_running(
    client: &Client,
    targets: Vec<Target>,
    timeout_ms: u64,
    show: bool,
) -> Result<Outcome> {
    let end = Instant::now() + Duration::from_millis(timeout_ms);
    let width = targets.iter().map(|target| target.key.name.len()).max().unwrap_or_default();
    let mut bars = Bars::new(show, width);
    let mut misses = 0;
    loop {
        match look(client, &targets).await {
            Ok(replicas) => {
                misses = 0;
                if let Some(verdict) = judge(&targets, &replicas, &mut bars) {
                    bars.finish();
                    return Ok(Outcome { replicas, verdict });
                }
            }
            // A node that restarts is no reason to stop watching; a cluster that is gone is.
            Err(failure) if failure.exit == Exit::Unreachable && misses < 5 => misses += 1,
            Err(failure) => return Err(failure),
        }
        if Instant::now() >= end {
            bars.finish();
            let replicas = look(client, &targets).await.unwrap_or_default();
            let failure =
                Failure::new(Exit::NotRunning, "timeout", "not everything runs yet, and the time is up")
                    .advice("the push was accepted and goes on; `hivemind ps` says what it waits for");
            return Ok(Outcome { replicas, verdict: Err(failure) });
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn look(client: &Client, targets: &[Target]) -> Result<Vec<Replica>> {
    let mut namespaces: Vec<&str> = targets.iter().map(|target| target.key.namespace.as_str()).collect();
    namespaces.dedup();
    let mut replicas: Vec<Replica> = Vec::new();
    for namespace in namespaces {
        replicas
            .extend(client.list::<Replica>(&format!("/v1/replicas?namespace={}", percent(namespace))).await?);
    }
    replicas.retain(|replica| targets.iter().any(|target| target.owns(replica)));
    Ok(replicas)
}

fn judge(targets: &[Target], replicas: &[Replica], bars: &mut Bars<SpecKey>) -> Option<Result<Exit>> {
    let mut running = 0;
    let mut hopeless = Vec::new();
    for target in targets {
        let own: Vec<&Replica> = replicas.iter().filter(|replica| target.owns(replica)).collect();
        let progress = target.progress(&own);
        show_one(bars, target, &own, &progress);
        match progress {
            Progress::Running => running += 1,
            Progress::Hopeless(reason) => hopeless.push(format!("{}: {reason}", target.key.name)),
            Progress::Waiting(_) => {}
        }
    }
    if !hopeless.is_empty() {
        let failure = Failure::new(Exit::NotRunning, "not-running", hopeless.join("\n       "))
            .advice("`hivemind logs WORKLOAD` shows what it printed; correct the cause and push again");
        return Some(Err(failure));
    }
    (running == targets.len()).then_some(Ok(Exit::Success))
}

impl Target {
    fn owns(&self, replica: &Replica) -> bool {
        replica.namespace == self.key.namespace && replica.workload == self.key.name
    }

    /// How many there are to be. Of a global workload they are all listed, one at least for this very node.
    fn wanted(&self, replicas: &[&Replica]) -> usize {
        self.replicas.map_or(replicas.len().max(1), |wanted| wanted as usize)
    }

    fn progress(&self, replicas: &[&Replica]) -> Progress {
        if self.waits {
            return Progress::Running;
        }
        let current = |replica: &&&Replica| self.digest.is_none_or(|digest| replica.digest == Some(digest));
        for replica in replicas.iter().filter(current) {
            let given_up = replica.phase == Phase::Failed;
            let looping = matches!(replica.phase, Phase::Backoff | Phase::Unhealthy);
            if given_up || (looping && replica.restarts >= HOPELESS_RESTARTS) {
                return Progress::Hopeless(format!(
                    "replica {} {}",
                    replica.slot,
                    printable(&replica.reason)
                ));
            }
        }
        let up = |replica: &&&Replica| matches!(replica.phase, Phase::Running | Phase::Completed);
        let running = replicas.iter().filter(current).filter(up).count();
        // Replicas of the version before, and those over the number, must be gone too.
        let enough = running == self.wanted(replicas) || self.in_turns && running > self.wanted(replicas);
        if enough && running == replicas.len() {
            return Progress::Running;
        }
        let mut counts: BTreeMap<Phase, usize> = BTreeMap::new();
        for replica in replicas {
            *counts.entry(replica.phase).or_default() += 1;
        }
        let phases: Vec<String> =
            counts.iter().map(|(phase, n)| format!("{n} {}", phase_name(*phase))).collect();
        let pending = replicas.iter().find(|r| r.phase == Phase::Pending && !r.reason.is_empty());
        let reason = pending.map(|replica| format!(" ({})", printable(&replica.reason))).unwrap_or_default();
        Progress::Waiting(format!("{}{reason}", phases.join(", ")))
    }
}

/// A phase as the API writes it.
pub(super) fn phase_name(phase: Phase) -> String {
    format!("{phase:?}").to_lowercase()
}

fn show_one(bars: &mut Bars<SpecKey>, target: &Target, replicas: &[&Replica], progress: &Progress) {
    let running = replicas.iter().filter(|replica| replica.phase == Phase::Running).count();
    let message = match progress {
        Progress::Running if target.waits => paint(GOOD, "is run at its times"),
        Progress::Running => paint(GOOD, "running"),
        Progress::Hopeless(reason) => paint(BAD, reason),
        Progress::Waiting(phases) => match pulling(replicas) {
            Some(bytes) => format!("{phases}, {bytes}"),
            None => phases.clone(),
        },
    };
    let name = &target.key.name;
    // Bytes change all the time; a log wants only what is new.
    let line = match progress {
        Progress::Waiting(phases) => format!("{name}  {phases}"),
        _ => format!("{name}  {message}"),
    };
    bars.update(&target.key, name, (running as u64, target.wanted(replicas) as u64), message, line);
}

/// How far the pulls of a workload are, all together.
fn pulling(replicas: &[&Replica]) -> Option<String> {
    let pulls: Vec<_> = replicas.iter().filter_map(|replica| replica.pull).collect();
    let done: u64 = pulls.iter().map(|pull| pull.done_bytes).sum();
    let total: u64 = pulls.iter().map(|pull| pull.total_bytes).sum();
    match total {
        0 => None,
        _ => Some(format!("{} of {}", show_bytes(done), show_bytes(total))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(slot: u32, phase: Phase, restarts: u32, digest: Option<Digest>) -> Replica {
        Replica {
            namespace: "default".into(),
            workload: "web".into(),
            slot,
            node: None,
            hostname: String::new(),
            phase,
            reason: "exited with code 3".into(),
            image: "a".into(),
            ip: String::new(),
            restarts,
            since_ms: 0,
            exit_code: None,
            pull: None,
            digest,
        }
    }

    fn progress(replicas: &[Replica]) -> Progress {
        let key = SpecKey {
            kind: hivemind_spec::document::Kind::Workload,
            namespace: "default".into(),
            name: "web".into(),
        };
        let target = Target {
            key,
            replicas: Some(2),
            in_turns: false,
            waits: false,
            digest: Some(Digest::of(b"new")),
        };
        target.progress(&replicas.iter().collect::<Vec<_>>())
    }

    #[test]
    fn a_workload_runs_when_just_the_wanted_replicas_run_the_new_document() {
        let (new, old) = (Some(Digest::of(b"new")), None);
        let running = |slot, digest| replica(slot, Phase::Running, 0, digest);
        assert_eq!(progress(&[running(0, new), running(1, new)]), Progress::Running);
        for waiting in [
            vec![],
            vec![running(0, new)],
            vec![running(0, new), running(1, old)],
            vec![running(0, new), running(1, new), running(2, old)],
            vec![running(0, new), running(1, new), running(2, new)],
            vec![running(0, new), replica(1, Phase::Pulling, 0, new)],
        ] {
            assert!(matches!(progress(&waiting), Progress::Waiting(_)), "{waiting:?}");
        }
    }

    #[test]
    fn a_replica_that_keeps_failing_ends_the_wait_with_its_reason() {
        let new = Some(Digest::of(b"new"));
        assert!(matches!(progress(&[replica(0, Phase::Backoff, 1, new)]), Progress::Waiting(_)));
        for hopeless in [replica(0, Phase::Backoff, 3, new), replica(0, Phase::Failed, 0, new)] {
            assert_eq!(progress(&[hopeless]), Progress::Hopeless("replica 0 exited with code 3".into()));
        }
        let old = replica(0, Phase::Failed, 9, None);
        assert!(matches!(progress(&[old]), Progress::Waiting(_)), "the version before may fail");
    }
}
