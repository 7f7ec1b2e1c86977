//! Health checks: commands run inside containers at their intervals.

use std::collections::BTreeMap;
use std::time::Duration;

use hivemind_core::event::{ContainerId, Event};
use hivemind_spec::workload::{HealthCheck, Hook};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::Runtime;
use super::exec::OVERHEAD;

/// Checks that run at a time: each starts a process through the shim, and a node full of
/// containers must not spend itself on checking them.
const CHECKS_AT_A_TIME: usize = 4;

/// Time between checks until one has passed, milliseconds: Docker's default for a container that starts. It serves only
/// then, and should not wait for a whole interval.
const START_INTERVAL_MS: u64 = 5000;

/// Runs the checks on the list, each at its interval, and tells `events` how they went. Ends when
/// the list's sender is gone.
pub async fn check_all(
    runtime: Runtime,
    mut list: watch::Receiver<BTreeMap<ContainerId, HealthCheck>>,
    events: mpsc::Sender<Event>,
) {
    let places = std::sync::Arc::new(Semaphore::new(CHECKS_AT_A_TIME));
    let mut running: BTreeMap<ContainerId, (HealthCheck, tokio::task::AbortHandle)> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    loop {
        let wanted = list.borrow_and_update().clone();
        running.retain(|id, (check, task)| {
            let keep = wanted.get(id) == Some(check);
            if !keep {
                task.abort();
            }
            keep
        });
        for (id, check) in wanted {
            let (runtime, events, places) = (runtime.clone(), events.clone(), places.clone());
            running.entry(id.clone()).or_insert_with(|| {
                let task = tasks.spawn(check_one(runtime, id, check.clone(), events, places));
                (check, task)
            });
        }
        while tasks.try_join_next().is_some() {}
        if list.changed().await.is_err() {
            return;
        }
    }
}

async fn check_one(
    runtime: Runtime,
    container: ContainerId,
    check: HealthCheck,
    events: mpsc::Sender<Event>,
    places: std::sync::Arc<Semaphore>,
) {
    let interval = Duration::from_millis(check.interval_ms);
    let start_interval =
        Duration::from_millis(check.start_interval_ms.unwrap_or(START_INTERVAL_MS)).min(interval);
    let (mut passed, mut told) = (false, Instant::now());
    // The first check comes soon: a container that is healthy at once should serve at once.
    let mut next = Instant::now() + interval.min(Duration::from_secs(1));
    loop {
        tokio::time::sleep_until(next).await;
        let Ok(place) = places.acquire().await else { return };
        let (healthy, detail) = runtime.check_health(&container, &check).await;
        drop(place);
        passed |= healthy;
        // Until one has passed there are more checks than failures that count.
        if passed || told.elapsed() >= interval {
            told = Instant::now();
            let event = Event::HealthChecked { container: container.clone(), healthy, detail };
            if events.send(event).await.is_err() {
                return;
            }
        }
        next = Instant::now() + if passed { interval } else { start_interval };
    }
}

impl Runtime {
    /// Runs a check once. Returns whether it passed, and its output or error, shortened.
    pub async fn check_health(&self, container: &ContainerId, check: &HealthCheck) -> (bool, String) {
        let limit = Duration::from_millis(check.timeout_ms);
        let hook = Hook { command: check.command.clone(), ..Hook::default() };
        match timeout(limit + OVERHEAD, self.execute(container, &hook, limit)).await {
            Ok(Ok((0, output))) => (true, output),
            Ok(Ok((code, output))) if output.is_empty() => (false, format!("exit code {code}")),
            Ok(Ok((code, output))) => (false, format!("exit code {code}: {output}")),
            Ok(Err(error)) => (false, error.text),
            Err(_) => (false, "the check could not be run in time".into()),
        }
    }
}
