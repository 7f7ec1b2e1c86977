//! Commands run inside containers, as their users: health checks and hooks.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use containerd_client::services::v1::{
    DeleteProcessRequest, ExecProcessRequest, KillRequest, StartRequest, WaitRequest,
};
use hivemind_core::event::{ContainerId, OperationError};
use hivemind_spec::workload::Hook;
use nix::sys::signal::Signal;
use prost_types::Any;
use tokio::net::unix::pipe;
use tokio::time::{Instant, sleep};

use super::client::{if_there, refused, request, transient};
use super::{Runtime, output};

/// Output that is kept, in bytes: what `hivemind ps` can show.
const MAX_OUTPUT_BYTES: usize = 512;

/// How long the runtime may take to start, kill and delete a command's process, on top of the
/// command's own time.
pub(super) const OVERHEAD: Duration = Duration::from_secs(10);

/// The type of a process specification.
const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// Numbers the commands of this run of the agent, so that each has a name of its own.
static NEXT: AtomicU64 = AtomicU64::new(0);

impl Runtime {
    /// Runs a command inside a container. Returns its exit code and the start of its output.
    pub(super) async fn execute(
        &self,
        container: &ContainerId,
        hook: &Hook,
        limit: Duration,
    ) -> Result<(u32, String), OperationError> {
        let process = self.process_like(container, hook).await?;
        let name = format!("exec-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = self.files(container).join(&name);
        let pipe = output::make_pipe(&path).and_then(|()| output::open_pipe(&path));
        let pipe = pipe.map_err(|error| transient(format!("its output pipe cannot be made: {error}")))?;
        let output_path = path.to_string_lossy().into_owned();
        let exec = ExecProcessRequest {
            container_id: container.0.clone(),
            exec_id: name.clone(),
            stdout: output_path.clone(),
            stderr: output_path,
            spec: Some(Any { type_url: PROCESS_TYPE.into(), value: process }),
            ..Default::default()
        };
        let exec =
            self.containerd.tasks().exec(request(exec)).await.map_err(refused("running a command inside"));
        let result = match exec {
            Err(error) => Err(error),
            Ok(_) => {
                let result = self.run_to_end(container, &name, limit, &pipe).await;
                let delete = DeleteProcessRequest { container_id: container.0.clone(), exec_id: name };
                if let Err(status) = if_there(self.containerd.tasks().delete_process(request(delete)).await) {
                    tracing::debug!(
                        container = container.0,
                        error = status.message(),
                        "a command that ended is left behind"
                    );
                }
                result
            }
        };
        let _ = fs::remove_file(&path);
        result
    }

    /// The runtime specification of a container.
    pub(super) async fn specification(&self, id: &ContainerId) -> Result<serde_json::Value, OperationError> {
        let spec = self.container(id).await?.and_then(|container| container.spec);
        let spec = spec.ok_or_else(|| transient("the container is not there"))?;
        serde_json::from_slice(&spec.value)
            .map_err(|error| transient(format!("the container's specification cannot be read: {error}")))
    }

    /// A process like the container's own, but with another command.
    async fn process_like(&self, id: &ContainerId, hook: &Hook) -> Result<Vec<u8>, OperationError> {
        let mut process = self.specification(id).await?["process"].take();
        process["terminal"] = false.into();
        process["args"] = hook.command.as_slice().into();
        if let Some(directory) = &hook.working_dir {
            process["cwd"] = directory.as_str().into();
        }
        if let Some(env) = process["env"].as_array_mut() {
            env.retain(|entry| {
                let name = entry.as_str().and_then(|entry| entry.split_once('=')).map(|(name, _)| name);
                name.is_none_or(|name| !hook.env.contains_key(name))
            });
            env.extend(hook.env.iter().map(|(name, value)| format!("{name}={value}").into()));
        }
        Ok(process.to_string().into_bytes())
    }

    /// Runs hooks one after the other, all of them within `limit`.
    pub(super) async fn run_hooks(
        &self,
        container: &ContainerId,
        what: &str,
        hooks: &[Hook],
        limit: Duration,
    ) -> Result<(), OperationError> {
        let deadline = Instant::now() + limit;
        for hook in hooks {
            let left = deadline.saturating_duration_since(Instant::now());
            let named = |text: String| {
                let program = hook.command.first().map_or("", String::as_str);
                transient(format!("{what} {program:?}: {text}"))
            };
            match self.execute(container, hook, left).await {
                Ok((0, _)) => {}
                Ok((code, output)) if output.is_empty() => return Err(named(format!("exit code {code}"))),
                Ok((code, output)) => return Err(named(format!("exit code {code}: {output}"))),
                Err(error) => return Err(named(error.text)),
            }
        }
        Ok(())
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
                answer = &mut ended => break answer.map_err(refused("running a command inside"))?.into_inner().exit_status,
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
    transient(format!("its output cannot be read: {error}"))
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
