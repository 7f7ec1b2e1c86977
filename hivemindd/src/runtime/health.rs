//! Health checks: commands run inside containers at their intervals.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use containerd_client::services::v1::{
    DeleteProcessRequest, ExecProcessRequest, KillRequest, StartRequest, WaitRequest,
};
use hivemind_core::event::{ContainerId, Event, OperationError};
use hivemind_spec::workload::HealthCheck;
use nix::sys::signal::Signal;
use prost_types::Any;
use tokio::net::unix::pipe;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::client::{if_there, refused, request, transient};
use super::{Runtime, output};

/// Output of a check that is kept, in bytes: what `hivemind ps` can show.
const MAX_OUTPUT_BYTES: usize = 512;

/// Checks that run at a time: each starts a process through the shim, and a node full of
/// containers must not spend itself on checking them.
const CHECKS_AT_A_TIME: usize = 4;

/// How long the runtime may take to start, kill and delete a check's process, on top of the
/// check's own time.
const OVERHEAD: Duration = Duration::from_secs(10);

/// Time between checks while a container may still be starting, milliseconds: Docker's default.
const START_INTERVAL_MS: u64 = 5000;

/// The type of a process specification.
const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// Numbers the checks of this run of the agent, so that each has a name of its own.
static NEXT_CHECK: AtomicU64 = AtomicU64::new(0);

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
    let start_period_ends = Instant::now() + Duration::from_millis(check.start_period_ms);
    let mut passed = false;
    // The first check comes soon: a container that is healthy at once should serve at once.
    let mut next = Instant::now() + interval.min(Duration::from_secs(1));
    loop {
        tokio::time::sleep_until(next).await;
        let Ok(place) = places.acquire().await else { return };
        let (healthy, detail) = runtime.check_health(&container, &check).await;
        drop(place);
        let event = Event::HealthChecked { container: container.clone(), healthy, detail };
        if events.send(event).await.is_err() {
            return;
        }
        passed |= healthy;
        let starting = !passed && Instant::now() < start_period_ends;
        next = Instant::now() + if starting { start_interval } else { interval };
    }
}

impl Runtime {
    /// Runs a check once. Returns whether it passed, and its output or error, shortened.
    pub async fn check_health(&self, container: &ContainerId, check: &HealthCheck) -> (bool, String) {
        let limit = Duration::from_millis(check.timeout_ms);
        match timeout(limit + OVERHEAD, self.execute(container, &check.command, limit)).await {
            Ok(Ok((0, output))) => (true, output),
            Ok(Ok((code, output))) if output.is_empty() => (false, format!("exit code {code}")),
            Ok(Ok((code, output))) => (false, format!("exit code {code}: {output}")),
            Ok(Err(error)) => (false, error.text),
            Err(_) => (false, "the check could not be run in time".into()),
        }
    }

    /// Runs a command inside a container. Returns its exit code and the start of its output.
    async fn execute(
        &self,
        container: &ContainerId,
        command: &[String],
        limit: Duration,
    ) -> Result<(u32, String), OperationError> {
        let process = self.process_like(container, command).await?;
        let name = format!("check-{}-{}", std::process::id(), NEXT_CHECK.fetch_add(1, Ordering::Relaxed));
        let path = self.files(container).join(&name);
        let pipe = output::make_pipe(&path).and_then(|()| output::open_pipe(&path));
        let pipe =
            pipe.map_err(|error| transient(format!("the check's output pipe cannot be made: {error}")))?;
        let output_path = path.to_string_lossy().into_owned();
        let exec = ExecProcessRequest {
            container_id: container.0.clone(),
            exec_id: name.clone(),
            stdout: output_path.clone(),
            stderr: output_path,
            spec: Some(Any { type_url: PROCESS_TYPE.into(), value: process }),
            ..Default::default()
        };
        let exec = self.containerd.tasks().exec(request(exec)).await.map_err(refused("running a check"));
        let result = match exec {
            Err(error) => Err(error),
            Ok(_) => {
                let result = self.run_to_end(container, &name, limit, &pipe).await;
                let delete = DeleteProcessRequest { container_id: container.0.clone(), exec_id: name };
                if let Err(status) = if_there(self.containerd.tasks().delete_process(request(delete)).await) {
                    tracing::debug!(
                        container = container.0,
                        error = status.message(),
                        "a check is left behind"
                    );
                }
                result
            }
        };
        let _ = fs::remove_file(&path);
        result
    }

    /// A process like the container's own, but with other arguments.
    async fn process_like(&self, id: &ContainerId, command: &[String]) -> Result<Vec<u8>, OperationError> {
        let spec = self.container(id).await?.and_then(|container| container.spec);
        let spec = spec.ok_or_else(|| transient("the container is not there"))?;
        let spec: serde_json::Value = serde_json::from_slice(&spec.value)
            .map_err(|error| transient(format!("the container's specification cannot be read: {error}")))?;
        let mut process = spec["process"].clone();
        process["args"] = command.into();
        Ok(process.to_string().into_bytes())
    }

    async fn run_to_end(
        &self,
        container: &ContainerId,
        name: &str,
        limit: Duration,
        pipe: &pipe::Receiver,
    ) -> Result<(u32, String), OperationError> {
        let mut tasks = self.containerd.tasks();
        let start = StartRequest { container_id: container.0.clone(), exec_id: name.to_owned() };
        tasks.start(request(start)).await.map_err(|status| super::container::start_failure(&status))?;
        let wait = WaitRequest { container_id: container.0.clone(), exec_id: name.to_owned() };
        let ended = tasks.wait(request(wait));
        tokio::pin!(ended);
        let deadline = sleep(limit);
        tokio::pin!(deadline);
        let mut kept = Vec::new();
        let code = loop {
            tokio::select! {
                answer = &mut ended => break answer.map_err(refused("running a check"))?.into_inner().exit_status,
                ready = pipe.readable() => {
                    ready.and_then(|()| read_some(pipe, &mut kept, output::try_read)).map_err(unreadable)?;
                }
                () = &mut deadline => {
                    let kill = KillRequest {
                        container_id: container.0.clone(),
                        exec_id: name.to_owned(),
                        signal: Signal::SIGKILL as u32,
                        ..Default::default()
                    };
                    let _ = self.containerd.tasks().kill(request(kill)).await;
                    // Its end is waited for, so that it can be deleted.
                    let _ = ended.await;
                    return Err(transient(format!("no answer within {} ms", limit.as_millis())));
                }
            }
        };
        while read_some(pipe, &mut kept, output::read_now).map_err(unreadable)? {}
        Ok((code, String::from_utf8_lossy(&kept).trim().to_owned()))
    }
}

fn unreadable(error: io::Error) -> OperationError {
    transient(format!("the check's output cannot be read: {error}"))
}

/// Reads once, by `read`, keeping only the start of it all. Returns whether there was anything.
fn read_some(
    pipe: &pipe::Receiver,
    kept: &mut Vec<u8>,
    read: impl Fn(&pipe::Receiver, &mut [u8]) -> io::Result<usize>,
) -> io::Result<bool> {
    let mut buffer = [0; 1024];
    let count = read(pipe, &mut buffer)?;
    kept.extend_from_slice(&buffer[..count.min(MAX_OUTPUT_BYTES - kept.len())]);
    Ok(count > 0)
}
