//! Commands run inside containers, as their users: health checks and hooks.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use containerd_client::services::v1::{
    CloseIoRequest, DeleteProcessRequest, ExecProcessRequest, GetRequest, KillRequest, ResizePtyRequest,
    StartRequest, WaitRequest,
};
use containerd_client::tonic::Status;
use hivemind_core::event::{ContainerId, OperationError};
use hivemind_spec::exec::TerminalSize;
use hivemind_spec::workload::Hook;
use nix::sys::signal::Signal;
use prost_types::Any;
use tokio::net::unix::pipe;
use tokio::time::{Instant, sleep};

use super::client::{if_there, refused, request, transient};
use super::{Runtime, oci, output};

/// Output that is kept, in bytes: what `hivemind ps` can show.
const MAX_OUTPUT_BYTES: usize = 512;

/// How long the runtime may take to start, kill and delete a command's process, on top of the
/// command's own time.
pub(super) const OVERHEAD: Duration = Duration::from_secs(10);

/// The type of a process specification.
const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// Numbers the commands of this run of the agent, so that each has a name of its own.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A process beside a container's own.
pub(super) struct Exec<'a> {
    runtime: &'a Runtime,
    container: &'a ContainerId,
    name: String,
}

/// Named pipes of a process; empty: it has none.
#[derive(Default)]
pub(super) struct Stdio {
    pub(super) stdin: String,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// What the names of all commands begin with, and of nothing else that is in a container's folder.
const PREFIX: &str = "exec-";

/// What the names of this agent's commands begin with.
fn own_prefix() -> String {
    format!("{PREFIX}{}-", std::process::id())
}

/// The name of the command of another agent that a file belongs to, if it is one.
pub(super) fn orphan(file: &str) -> Option<String> {
    let number = file.strip_prefix(PREFIX)?;
    let mut parts = number.splitn(3, '-');
    let (agent, number) = (parts.next()?, parts.next()?);
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let is_other = is_number(agent) && is_number(number) && !file.starts_with(&own_prefix());
    is_other.then(|| format!("{PREFIX}{agent}-{number}"))
}

impl<'a> Exec<'a> {
    pub(super) fn new(runtime: &'a Runtime, container: &'a ContainerId) -> Self {
        let name = format!("{}{}", own_prefix(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self { runtime, container, name }
    }

    /// One that is there already, by its name; an empty one: the container's own process.
    pub(super) fn known(runtime: &'a Runtime, container: &'a ContainerId, name: String) -> Self {
        Self { runtime, container, name }
    }

    /// The number of its process. None: it is not there.
    pub(super) async fn pid(&self) -> Result<Option<u32>, OperationError> {
        let get = GetRequest { container_id: self.container.0.clone(), exec_id: self.name.clone() };
        let found = if_there(self.runtime.containerd.tasks().get(request(get)).await);
        let found = found.map_err(refused("looking for a command"))?;
        Ok(found.and_then(|found| found.into_inner().process).map(|process| process.pid))
    }

    /// Where a file of its own may be.
    pub(super) fn file(&self, suffix: &str) -> PathBuf {
        self.runtime.files(self.container).join(format!("{}{suffix}", self.name))
    }

    /// Makes it, like the container's own process but for the command.
    pub(super) async fn create(
        &self,
        hook: &Hook,
        user: Option<&str>,
        stdio: Stdio,
        terminal: bool,
    ) -> Result<(), OperationError> {
        let process = self.runtime.process_like(self.container, hook, user, terminal).await?;
        let exec = ExecProcessRequest {
            container_id: self.container.0.clone(),
            exec_id: self.name.clone(),
            stdin: stdio.stdin,
            stdout: stdio.stdout,
            stderr: stdio.stderr,
            terminal,
            spec: Some(Any { type_url: PROCESS_TYPE.into(), value: process }),
        };
        let created = self.runtime.containerd.tasks().exec(request(exec)).await;
        created.map(drop).map_err(refused("running a command inside"))
    }

    /// Starts it. Returns the number of its process.
    pub(super) async fn start(&self) -> Result<u32, Status> {
        let start = StartRequest { container_id: self.container.0.clone(), exec_id: self.name.clone() };
        Ok(self.runtime.containerd.tasks().start(request(start)).await?.into_inner().pid)
    }

    /// Waits for its end. Returns its exit code.
    pub(super) async fn wait(&self) -> Result<u32, OperationError> {
        let wait = WaitRequest { container_id: self.container.0.clone(), exec_id: self.name.clone() };
        let ended = self.runtime.containerd.tasks().wait(request(wait)).await;
        ended.map(|ended| ended.into_inner().exit_status).map_err(refused("running a command inside"))
    }

    pub(super) async fn kill(&self, signal: Signal) {
        let kill = KillRequest {
            container_id: self.container.0.clone(),
            exec_id: self.name.clone(),
            signal: signal as u32,
            ..Default::default()
        };
        // It may have ended by itself.
        let _ = self.runtime.containerd.tasks().kill(request(kill)).await;
    }

    pub(super) async fn resize(&self, size: TerminalSize) -> Result<(), Status> {
        let resize = ResizePtyRequest {
            container_id: self.container.0.clone(),
            exec_id: self.name.clone(),
            width: size.columns.into(),
            height: size.rows.into(),
        };
        self.runtime.containerd.tasks().resize_pty(request(resize)).await.map(drop)
    }

    /// Has its input end once its pipe is written to no longer.
    pub(super) async fn end_input(&self) -> Result<(), Status> {
        let close = CloseIoRequest {
            container_id: self.container.0.clone(),
            exec_id: self.name.clone(),
            stdin: true,
        };
        self.runtime.containerd.tasks().close_io(request(close)).await.map(drop)
    }

    /// Forgets it, when it has ended or never started. All its output is in its pipes then.
    pub(super) async fn delete(&self) {
        if self.name.is_empty() {
            // The container's own process goes with the container.
            return;
        }
        let delete =
            DeleteProcessRequest { container_id: self.container.0.clone(), exec_id: self.name.clone() };
        let deleted = self.runtime.containerd.tasks().delete_process(request(delete)).await;
        if let Err(status) = if_there(deleted) {
            let (container, error) = (&self.container.0, status.message());
            tracing::debug!(container, error, "a command that ended is left behind");
        }
    }
}

impl Runtime {
    /// Runs a command inside a container. Returns its exit code and the start of its output.
    pub(super) async fn execute(
        &self,
        container: &ContainerId,
        hook: &Hook,
        limit: Duration,
    ) -> Result<(u32, String), OperationError> {
        let exec = Exec::new(self, container);
        let path = exec.file("");
        let pipe = output::make_pipe(&path).and_then(|()| output::open_pipe(&path));
        let pipe = pipe.map_err(|error| transient(format!("its output pipe cannot be made: {error}")))?;
        let output = path.to_string_lossy().into_owned();
        let stdio = Stdio { stdout: output.clone(), stderr: output, ..Stdio::default() };
        let result = match exec.create(hook, None, stdio, false).await {
            Err(error) => Err(error),
            Ok(()) => {
                let mut kept = Vec::new();
                let code = run_to_end(&exec, limit, &pipe, &mut kept).await;
                exec.delete().await;
                code.and_then(|code| {
                    while read_some(&pipe, &mut kept, output::read_now).map_err(unreadable)? {}
                    Ok((code, String::from_utf8_lossy(&kept).trim().to_owned()))
                })
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
    async fn process_like(
        &self,
        id: &ContainerId,
        hook: &Hook,
        user: Option<&str>,
        terminal: bool,
    ) -> Result<Vec<u8>, OperationError> {
        let mut process = self.specification(id).await?["process"].take();
        process["terminal"] = terminal.into();
        process["args"] = hook.command.as_slice().into();
        if let Some(directory) = &hook.working_dir {
            process["cwd"] = directory.as_str().into();
        }
        let mut variables = hook.env.clone();
        if let Some(user) = user {
            let identity = self.accounts(id).await?.resolve(user, &[])?;
            oci::run_as(&mut process, &identity);
            variables.entry("HOME".to_owned()).or_insert_with(|| oci::home(&identity).to_owned());
        }
        if let Some(env) = process["env"].as_array_mut() {
            env.retain(|entry| {
                let name = entry.as_str().and_then(|entry| entry.split_once('=')).map(|(name, _)| name);
                name.is_none_or(|name| !variables.contains_key(name))
            });
            env.extend(variables.iter().map(|(name, value)| format!("{name}={value}").into()));
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
}

/// Starts a command and waits for its end, keeping the start of its output. Returns its exit code.
async fn run_to_end(
    exec: &Exec<'_>,
    limit: Duration,
    pipe: &pipe::Receiver,
    kept: &mut Vec<u8>,
) -> Result<u32, OperationError> {
    exec.start().await.map_err(|status| super::container::start_failure(&status))?;
    let ended = exec.wait();
    tokio::pin!(ended);
    let deadline = sleep(limit);
    tokio::pin!(deadline);
    loop {
        tokio::select! {
            code = &mut ended => return code,
            ready = pipe.readable() => {
                ready.and_then(|()| read_some(pipe, kept, output::try_read)).map_err(unreadable)?;
            }
            () = &mut deadline => {
                exec.kill(Signal::SIGKILL).await;
                // Its end is waited for, so that it can be deleted.
                let _ = ended.await;
                return Err(transient(format!("no answer within {} ms", limit.as_millis())));
            }
        }
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
