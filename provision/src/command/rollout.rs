//! Watches releases go through the machines.

use std::time::{Duration, Instant};

use hivemind_spec::api::{Rollout, RolloutState};
use hivemind_spec::id::ReleaseId;

use super::bars::Bars;
use crate::client::Client;
use crate::failure::{Exit, Failure, Result};
use crate::terminal::{BAD, CHANGING, FAINT, GOOD, paint, printable};

/// How often the cluster is asked: a machine takes a minute.
const INTERVAL: Duration = Duration::from_secs(1);

/// How the waiting ended.
pub(super) struct Outcome {
    pub(super) rollouts: Vec<Rollout>,
    pub(super) verdict: Result<Exit>,
}

/// Watches until all machines have the releases, one is stopped, or the time is up. That nobody answers ends nothing: the
/// only machine of a cluster is away while it starts its release.
pub(super) async fn until_done(
    client: &Client,
    releases: &[ReleaseId],
    timeout_ms: u64,
    show: bool,
) -> Result<Outcome> {
    let end = Instant::now() + Duration::from_millis(timeout_ms);
    let mut bars = Bars::new(show, 0);
    let mut rollouts: Vec<Rollout> = Vec::new();
    let mut seen = false;
    loop {
        match client.list::<Rollout>("/v1/releases").await {
            Ok(all) => {
                rollouts = all.into_iter().filter(|rollout| releases.contains(&rollout.release)).collect();
                rollouts.iter().for_each(|rollout| show_one(&mut bars, rollout));
                seen |= are_there(&rollouts, releases);
                if let Some(verdict) = judge(&rollouts, releases, seen) {
                    bars.finish();
                    return Ok(Outcome { rollouts, verdict });
                }
            }
            Err(failure) if failure.exit == Exit::Unreachable => {
                bars.message(&paint(FAINT, "no machine answers"))
            }
            Err(failure) => return Err(failure),
        }
        if Instant::now() >= end {
            bars.finish();
            let verdict =
                Failure::new(Exit::NotRunning, "timeout", "not all machines have it yet, and the time is up")
                    .advice("it goes on; `hivemind upgrade` shows how far it has come");
            return Ok(Outcome { rollouts, verdict: Err(verdict) });
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

fn are_there(rollouts: &[Rollout], releases: &[ReleaseId]) -> bool {
    releases.iter().all(|release| rollouts.iter().any(|rollout| rollout.release == *release))
}

/// `seen`: all of the releases have been there.
fn judge(rollouts: &[Rollout], releases: &[ReleaseId], seen: bool) -> Option<Result<Exit>> {
    if let Some(stopped) = rollouts.iter().find(|rollout| rollout.state == RolloutState::Stopped) {
        let text = format!("release {} goes no further: {}", stopped.version, printable(&stopped.reason));
        let failure = Failure::new(Exit::NotRunning, "rollout-stopped", text).advice(
            "`hivemind nodes` shows how the machines are; push another release, or `hivemind upgrade abort`",
        );
        return Some(Err(failure));
    }
    if !are_there(rollouts, releases) {
        // A node that has not heard of it yet may have answered.
        let text = "the release was taken back or replaced by another";
        let failure =
            Failure::new(Exit::Conflict, "rollout-replaced", text).advice("look with `hivemind upgrade`");
        return seen.then_some(Err(failure));
    }
    rollouts.iter().all(|rollout| rollout.state == RolloutState::Done).then_some(Ok(Exit::Success))
}

/// What a rollout does now, in words.
fn message(rollout: &Rollout) -> String {
    match rollout.state {
        RolloutState::Done => paint(GOOD, "all machines run it"),
        RolloutState::Stopped => paint(BAD, &printable(&rollout.reason)),
        RolloutState::Paused => paint(CHANGING, &printable(&rollout.reason)),
        RolloutState::Rolling if rollout.turns.is_empty() => "waits for machines that are away".to_owned(),
        RolloutState::Rolling => {
            let turns: Vec<String> =
                rollout.turns.iter().map(|node| format!("node {}", node.short())).collect();
            format!("{} takes it", turns.join(", "))
        }
    }
}

fn show_one(bars: &mut Bars<ReleaseId>, rollout: &Rollout) {
    let name = format!("{} for {}", rollout.version, rollout.architecture.name());
    let message = message(rollout);
    let line = format!("{name}  {}/{}  {message}", rollout.done, rollout.nodes);
    bars.update(&rollout.release, &name, (rollout.done.into(), rollout.nodes.into()), message, line);
}

#[cfg(test)]
mod tests {
    use hivemind_spec::release::Architecture;

    use super::*;

    fn rollout(release: u8, state: RolloutState) -> Rollout {
        Rollout {
            architecture: Architecture::Amd64,
            version: "0.2.0".into(),
            release: ReleaseId([release; 8]),
            state,
            reason: "edge-1: it went back".into(),
            done: 1,
            nodes: 2,
            turns: vec![],
        }
    }

    #[test]
    fn waiting_for_a_release_ends_when_all_have_it_or_nobody_else_will() {
        let wanted = [ReleaseId([1; 8])];
        for state in [RolloutState::Rolling, RolloutState::Paused] {
            assert_eq!(judge(&[rollout(1, state)], &wanted, true), None);
        }
        assert_eq!(judge(&[rollout(1, RolloutState::Done)], &wanted, true), Some(Ok(Exit::Success)));
        let stopped = judge(&[rollout(1, RolloutState::Stopped)], &wanted, true).unwrap().unwrap_err();
        assert_eq!((stopped.exit, stopped.code.as_str()), (Exit::NotRunning, "rollout-stopped"));
        assert!(stopped.detail.contains("edge-1: it went back"), "{}", stopped.detail);
        assert_eq!(judge(&[], &wanted, false), None, "it may not be known there yet");
        assert_eq!(judge(&[], &wanted, true).unwrap().unwrap_err().code, "rollout-replaced");
    }
}
