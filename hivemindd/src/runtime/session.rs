//! Commands run inside containers with somebody at their other end, who types and reads.
//!
//! ```text
//!   input -----> pipe --> shim --> pipe or terminal --> command
//!   output <---- pipe <-- shim <-- pipes or terminal <--'
//! ```
//!
//! Whoever reads slowly slows the command, and nothing is kept of what it prints. When the other end is gone, it is ended.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use hivemind_core::event::{ContainerId, OperationError};
use hivemind_spec::exec::{ExecRequest, MAX_DATA_BYTES, OutputStream, TerminalSize};
use hivemind_spec::workload::Hook;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getpgid};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::client::transient;
use super::exec::{self, Exec, Stdio};
use super::stream::{Input, OtherEnd, Output};
use super::{Runtime, output};

/// How long a command may go on once its other end is gone, after it was told so.
const GONE_GRACE: Duration = Duration::from_secs(2);

/// How long a command that has ended is heard after its last output. Others may have its pipes, and write to them when
/// they like.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How the names of a command's pipes end.
const STDIN: &str = "-stdin";
const STDOUT: &str = "-stdout";
const STDERR: &str = "-stderr";

/// How long to wait for a containerd that does not answer.
pub(super) const RETRY: Duration = Duration::from_secs(5);

impl Runtime {
    /// Runs a command inside a container to its end. Returns its exit code.
    ///
    /// # Errors
    /// When it does not start, or containerd does not tell what became of it.
    pub async fn run_session(
        &self,
        container: &ContainerId,
        asked: &ExecRequest,
        other: OtherEnd,
    ) -> Result<u32, OperationError> {
        let exec = Exec::new(self, container);
        let unusable = |error: io::Error| transient(format!("its pipes cannot be made: {error}"));
        let mut pipes = Pipes::make(&exec, asked.terminal.is_some()).map_err(unusable)?;
        let hook = Hook {
            command: asked.command.clone(),
            env: asked.env.clone(),
            working_dir: asked.working_dir.clone(),
        };
        exec.create(&hook, asked.user.as_deref(), pipes.stdio(), asked.terminal.is_some()).await?;
        let result = match exec.start().await {
            Err(status) => Err(does_not_start(status.message())),
            Ok(pid) => match pipes.open() {
                Err(error) => {
                    exec.kill(Signal::SIGKILL).await;
                    Err(unusable(error))
                }
                Ok(open) => attend(&exec, pid, asked.terminal, open, other).await,
            },
        };
        if result.is_err() {
            exec.delete().await;
        }
        result
    }

    /// Ends the commands that an agent before this one left running: nobody is at their other end any more.
    pub async fn end_orphans(&self) {
        self.end_debugging().await;
        for (container, commands) in orphans(&self.settings.run_dir) {
            for name in commands {
                tracing::info!(
                    container = container.0,
                    "a command that an agent before this one ran is ended"
                );
                let exec = Exec::known(self, &container, name);
                while let Err(error) = end_orphan(&exec).await {
                    tracing::debug!(%error, "it is tried again");
                    tokio::time::sleep(RETRY).await;
                }
                for suffix in ["", STDIN, STDOUT, STDERR] {
                    let _ = fs::remove_file(exec.file(suffix));
                }
            }
        }
    }
}

/// The commands of other agents, by container.
fn orphans(run_dir: &Path) -> BTreeMap<ContainerId, BTreeSet<String>> {
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    let name = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let of = |folder: &fs::DirEntry| {
        entries(&folder.path()).filter_map(|entry| exec::orphan(&name(&entry))).collect::<BTreeSet<_>>()
    };
    let found = entries(run_dir).map(|folder| (ContainerId(name(&folder)), of(&folder)));
    found.filter(|(_, commands)| !commands.is_empty()).collect()
}

async fn end_orphan(exec: &Exec<'_>) -> Result<(), OperationError> {
    let Some(pid) = exec.pid().await? else { return Ok(()) };
    signal(exec, pid, Signal::SIGKILL).await;
    // If it does not end now it never will.
    let _ = timeout(GONE_GRACE, exec.wait()).await;
    exec.delete().await;
    Ok(())
}

/// Passes on what comes and goes until the command has ended and all its output is passed on.
pub(super) async fn attend(
    exec: &Exec<'_>,
    pid: u32,
    size: Option<TerminalSize>,
    Open { stdin, outputs }: Open,
    OtherEnd { mut input, taken, output }: OtherEnd,
) -> Result<u32, OperationError> {
    if let Some(size) = size {
        resize(exec, size).await;
    }
    let (ended_tx, has_ended) = watch::channel(false);
    let mut reading = JoinSet::new();
    for (stream, pipe) in outputs {
        reading.spawn(pass_on(stream, pipe, output.clone(), has_ended.clone()));
    }
    let mut stdin = Some(stdin);
    // What the pipe has not taken yet.
    let mut waiting = Bytes::new();
    let mut input_ends = false;
    let ended = exec.wait();
    tokio::pin!(ended);
    let code = loop {
        if input_ends && waiting.is_empty() && stdin.take().is_some() {
            // Otherwise it goes on waiting for input, which its user sees.
            let _ = exec.end_input().await;
        }
        tokio::select! {
            code = &mut ended => break code?,
            () = output.closed() => break give_up(exec, pid, size, ended.as_mut()).await?,
            said = input.recv(), if waiting.is_empty() => match said {
                Some(Input::Data(data)) => waiting = data,
                Some(Input::End) => input_ends = true,
                Some(Input::Resize(size)) => resize(exec, size).await,
                None => break give_up(exec, pid, size, ended.as_mut()).await?,
            },
            written = write(stdin.as_ref(), &waiting), if !waiting.is_empty() => {
                // One that reads no longer takes all.
                let count = written.unwrap_or(waiting.len());
                drop(waiting.split_to(count));
                taken.send_modify(|taken| *taken += count as u64);
            }
        }
    };
    drop((stdin, output));
    ended_tx.send_replace(true);
    while reading.join_next().await.is_some() {}
    exec.delete().await;
    Ok(code)
}

/// Ends a command whose other end is gone, and what it started that is still of its group. Returns its exit code.
async fn give_up(
    exec: &Exec<'_>,
    pid: u32,
    terminal: Option<TerminalSize>,
    mut ended: impl Future<Output = Result<u32, OperationError>> + Unpin,
) -> Result<u32, OperationError> {
    signal(exec, pid, if terminal.is_some() { Signal::SIGHUP } else { Signal::SIGTERM }).await;
    match timeout(GONE_GRACE, &mut ended).await {
        Ok(code) => code,
        Err(_) => {
            signal(exec, pid, Signal::SIGKILL).await;
            ended.await
        }
    }
}

/// Signals a command that has not ended, and its group if it leads one.
async fn signal(exec: &Exec<'_>, pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid).map(Pid::from_raw)
        && getpgid(Some(pid)) == Ok(pid)
    {
        let _ = killpg(pid, signal);
    }
    exec.kill(signal).await;
}

pub(super) async fn resize(exec: &Exec<'_>, size: TerminalSize) {
    if let Err(status) = exec.resize(size).await {
        tracing::debug!(error = status.message(), "a terminal keeps its size");
    }
}

pub(super) async fn write(stdin: Option<&pipe::Sender>, data: &[u8]) -> io::Result<usize> {
    let stdin = stdin.ok_or(io::ErrorKind::BrokenPipe)?;
    loop {
        stdin.writable().await?;
        match stdin.try_write(data) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => return other,
        }
    }
}

/// Passes on output until there is no more, or nobody for it.
async fn pass_on(
    stream: OutputStream,
    pipe: pipe::Receiver,
    output: mpsc::Sender<Output>,
    mut has_ended: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; MAX_DATA_BYTES];
    loop {
        let last_words = async {
            let _ = has_ended.wait_for(|ended| *ended).await;
            tokio::time::sleep(LAST_WORDS).await;
        };
        let ready = tokio::select! {
            ready = pipe.readable() => ready,
            () = output.closed() => return,
            () = last_words => return,
        };
        let piece = match ready.and_then(|()| pipe.try_read(&mut buffer)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Ok(0) => return,
            Ok(count) => Bytes::copy_from_slice(&buffer[..count]),
            Err(error) => {
                tracing::warn!(%error, "the output of a command cannot be read");
                return;
            }
        };
        if output.send((stream, piece)).await.is_err() {
            return;
        }
    }
}

fn does_not_start(message: &str) -> OperationError {
    let text = message.rsplit_once("failed: ").map_or(message, |(_, rest)| rest);
    let text = text.trim_end_matches(": unknown").trim_end_matches(['"', ')']);
    transient(format!("it does not start: {text}"))
}

/// The named pipes of a command, gone when dropped.
pub(super) struct Pipes {
    stdin: PathBuf,
    outputs: Vec<(OutputStream, PathBuf)>,
    /// Keep the pipes open until the shim has them: one that nobody writes to has ended.
    holds: Vec<pipe::Receiver>,
}

/// Their ends.
pub(super) struct Open {
    stdin: pipe::Sender,
    outputs: Vec<(OutputStream, pipe::Receiver)>,
}

impl Pipes {
    pub(super) fn make(exec: &Exec<'_>, terminal: bool) -> io::Result<Self> {
        // What is printed on a terminal is one stream.
        let streams: &[_] = match terminal {
            true => &[(OutputStream::Stdout, STDOUT)],
            false => &[(OutputStream::Stdout, STDOUT), (OutputStream::Stderr, STDERR)],
        };
        let outputs = streams.iter().map(|(stream, suffix)| (*stream, exec.file(suffix))).collect();
        let mut made = Self { stdin: exec.file(STDIN), outputs, holds: Vec::new() };
        for path in made.paths().map(Path::to_owned).collect::<Vec<_>>() {
            output::make_pipe(&path)?;
            made.holds.push(output::open_pipe(&path)?);
        }
        Ok(made)
    }

    fn paths(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(self.stdin.as_path()).chain(self.outputs.iter().map(|(_, path)| path.as_path()))
    }

    pub(super) fn stdio(&self) -> Stdio {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let output = |wanted| {
            let found = self.outputs.iter().find(|(stream, _)| *stream == wanted);
            found.map(|(_, path)| text(path)).unwrap_or_default()
        };
        Stdio {
            stdin: text(&self.stdin),
            stdout: output(OutputStream::Stdout),
            stderr: output(OutputStream::Stderr),
        }
    }

    /// The ends of pipes that the shim holds: they end when it lets go of them.
    pub(super) fn open(&mut self) -> io::Result<Open> {
        let outputs = self.outputs.iter().map(|(stream, path)| {
            let receiver = pipe::OpenOptions::new().open_receiver(path)?;
            Ok((*stream, receiver))
        });
        let outputs = outputs.collect::<io::Result<_>>()?;
        let stdin = pipe::OpenOptions::new().open_sender(&self.stdin)?;
        self.holds.clear();
        Ok(Open { stdin, outputs })
    }
}

impl Drop for Pipes {
    fn drop(&mut self) {
        for path in self.paths() {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_of_agents_before_this_one_are_found_by_their_pipes() {
        let run = tempfile::tempdir().unwrap();
        let own = format!("exec-{}-5", std::process::id());
        let container = |name: &str, files: &[&str]| {
            fs::create_dir(run.path().join(name)).unwrap();
            files.iter().for_each(|file| fs::write(run.path().join(name).join(file), "").unwrap());
        };
        container(
            "hm-one",
            &["stdout", "hosts", "exec-0-1-stdin", "exec-0-1-stdout", "exec-0-12", "exec-x-1"],
        );
        container("hm-two", &["stdout", "exec-", "exec-0", "exec-0--1", &own]);
        let found = orphans(run.path());
        let expected = ["exec-0-1", "exec-0-12"].map(str::to_owned);
        assert_eq!(found, [(ContainerId("hm-one".to_owned()), expected.into())].into());
        assert_eq!(orphans(&run.path().join("absent")), BTreeMap::new());
    }
}
