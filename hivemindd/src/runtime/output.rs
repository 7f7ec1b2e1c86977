//! Containers' output, collected into rotated files.
//!
//! Each container writes into pipes of its shim, which copies them into two named pipes under
//! `/run`; the agent reads those. The shim keeps them open at both ends, so an agent that restarts
//! loses nothing: what is written meanwhile waits in the pipes, and a container that writes more
//! than they hold waits too.
//!
//! One line per record: wall milliseconds, a space, `stdout` or `stderr`, a space, the text. For the files see
//! [`super::log_files`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hivemind_core::event::ContainerId;
use hivemind_spec::exec::{MAX_DATA_BYTES, OutputStream};
use memchr::memchr;
use nix::errno::Errno;
use nix::sys::stat::Mode;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};

use super::log_files::{LogFile, remove_logs};
use super::stream::Output;

/// Longer lines are cut into records of this length, in bytes, as Docker does.
pub(super) const MAX_LINE_BYTES: usize = 16 * 1024;

/// Bytes read from a pipe at once: half of what one holds, on the stack.
const READ_BYTES: usize = 32 * 1024;

/// The streams of a container, in the order of its pipes.
const STREAMS: [&str; 2] = ["stdout", "stderr"];

/// Pieces of output that wait for somebody who reads along: a megabyte at most, the length of a hiccup.
const PIECES_WAITING: usize = 64;

/// Removes logs of replicas that have no container here any more and wrote nothing for a while:
/// what a removal without its log leaves must not add up.
pub(super) fn prune(directory: &Path, in_use: &BTreeSet<PathBuf>, idle: Duration) {
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    for file in entries(directory).flat_map(|path| entries(&path)).flat_map(|path| entries(&path)) {
        let is_newest = file.extension().is_some_and(|extension| extension == "log");
        let age = fs::metadata(&file).and_then(|metadata| metadata.modified()).ok();
        let age = age.and_then(|written| written.elapsed().ok());
        if is_newest
            && !in_use.contains(&file)
            && age.is_some_and(|age| age > idle)
            && let Err(error) = remove_logs(&file)
        {
            tracing::warn!(file = %file.display(), %error, "an old log is not removed");
        }
    }
}

/// Where a replica's output goes.
#[derive(Debug, Clone)]
pub(super) struct Log {
    /// The newest file.
    pub(super) file: PathBuf,
    /// The most that is kept of it, bytes; 0: nothing.
    pub(super) most_bytes: u64,
}

/// Cuts a stream into records.
pub(super) struct Splitter {
    stream: &'static str,
    partial: Vec<u8>,
}

impl Splitter {
    pub(super) fn new(stream: &'static str) -> Self {
        Self { stream, partial: Vec::new() }
    }

    /// Takes bytes as they come and appends the records that are complete to `out`.
    pub(super) fn feed(&mut self, mut data: &[u8], now_ms: u64, out: &mut Vec<u8>) {
        // Nothing here is done for each line that can be done once: containers print a million of them.
        let head = self.head(now_ms);
        while !data.is_empty() {
            let room = MAX_LINE_BYTES - self.partial.len();
            let window = &data[..data.len().min(room)];
            match memchr(b'\n', window) {
                Some(end) => {
                    self.emit(&head, &data[..end], out);
                    data = &data[end + 1..];
                }
                // A newline right behind a full line belongs to it.
                None if window.len() == room => {
                    self.emit(&head, window, out);
                    data = &data[room..];
                    data = data.strip_prefix(b"\n").unwrap_or(data);
                }
                None => {
                    self.partial.extend_from_slice(window);
                    return;
                }
            }
        }
    }

    /// Ends the stream: a last line without newline is a record too.
    pub(super) fn finish(&mut self, now_ms: u64, out: &mut Vec<u8>) {
        if !self.partial.is_empty() {
            self.emit(&self.head(now_ms), &[], out);
        }
    }

    /// What a record begins with.
    fn head(&self, now_ms: u64) -> Vec<u8> {
        format!("{now_ms} {} ", self.stream).into_bytes()
    }

    /// Appends the line that began with what is kept and ends with `rest`.
    fn emit(&mut self, head: &[u8], rest: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(head);
        let begin = out.len();
        if !self.partial.is_empty() {
            // Most lines come whole and are short; the memory of a long one is given back.
            out.append(&mut std::mem::take(&mut self.partial));
        }
        out.extend_from_slice(rest);
        if out.len() > begin && out.ends_with(b"\r") {
            out.pop();
        }
        out.push(b'\n');
    }
}

/// The two named pipes of a container, in its directory under `/run`.
pub(super) fn pipes(directory: &Path) -> [PathBuf; 2] {
    STREAMS.map(|stream| directory.join(stream))
}

/// Makes a named pipe unless it is there.
pub(super) fn make_pipe(path: &Path) -> io::Result<()> {
    match nix::unistd::mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Opens a named pipe for reading. Also held open for writing, so that it does not end while the
/// other side comes and goes.
pub(super) fn open_pipe(path: &Path) -> io::Result<pipe::Receiver> {
    pipe::OpenOptions::new().read_write(true).open_receiver(path)
}

enum Command {
    Attach { id: ContainerId, pipes: [PathBuf; 2], log: Log, stop: oneshot::Receiver<oneshot::Sender<()>> },
}

/// Reads all containers' pipes on one thread, so that a slow disk delays logs and nothing else.
pub(super) struct Collector {
    commands: mpsc::UnboundedSender<Command>,
    listeners: Arc<Listeners>,
    /// What is being read, and how to end it; `None` while a container is being removed.
    attached: Mutex<BTreeMap<ContainerId, Option<oneshot::Sender<oneshot::Sender<()>>>>>,
}

impl Collector {
    /// Starts the thread. It ends when the collector is dropped.
    pub(super) fn start() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let (commands, mut receiver) = mpsc::unbounded_channel();
        let listeners = Arc::new(Listeners::default());
        let heard = Arc::clone(&listeners);
        std::thread::Builder::new().name("logs".into()).spawn(move || {
            runtime.block_on(async move {
                while let Some(Command::Attach { id, pipes, log, stop }) = receiver.recv().await {
                    let heard = Arc::clone(&heard);
                    tokio::spawn(async move {
                        let pass_on = |stream, data: &[u8]| heard.tell(&id, stream, data);
                        if let Err(error) = collect(&pipes, &log, stop, &pass_on).await {
                            tracing::warn!(container = id.0, %error, "its output is not recorded");
                        }
                    });
                }
            });
        })?;
        Ok(Self { commands, listeners, attached: Mutex::default() })
    }

    /// What a container prints from now on. It ends with the container, or when it is not received in time.
    pub(super) fn listen(&self, id: &ContainerId) -> mpsc::Receiver<Output> {
        self.listeners.add(id)
    }

    /// Reads the pipes of a container that is started, from now on.
    pub(super) fn attach(&self, id: &ContainerId, pipes: [PathBuf; 2], log: Log) {
        let mut attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        let (sender, stop) = oneshot::channel();
        attached.insert(id.clone(), Some(sender));
        let _ = self.commands.send(Command::Attach { id: id.clone(), pipes, log, stop });
    }

    /// Reads the pipes of a container that was found, unless they are read already, not there, or
    /// being removed.
    pub(super) fn adopt(&self, id: &ContainerId, pipes: [PathBuf; 2], log: Log) {
        let known = {
            let attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
            attached.get(id).is_some_and(|stop| stop.as_ref().is_none_or(|stop| !stop.is_closed()))
        };
        if !known && pipes.iter().all(|pipe| pipe.exists()) {
            self.attach(id, pipes, log);
        }
    }

    /// Reads what is left in a container's pipes and lets go of them.
    pub(super) async fn detach(&self, id: &ContainerId) {
        let stop = {
            let mut attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
            attached.insert(id.clone(), None).flatten()
        };
        if let Some(stop) = stop {
            let (sender, done) = oneshot::channel();
            if stop.send(sender).is_ok() {
                let _ = done.await;
            }
        }
    }

    /// Forgets a container that is removed.
    pub(super) fn forget(&self, id: &ContainerId) {
        self.listeners.end(id);
        self.attached.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

/// Those who read along what containers print.
#[derive(Default)]
struct Listeners(Mutex<BTreeMap<ContainerId, Vec<mpsc::Sender<Output>>>>);

impl Listeners {
    fn add(&self, id: &ContainerId) -> mpsc::Receiver<Output> {
        let (sender, receiver) = mpsc::channel(PIECES_WAITING);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(id.clone()).or_default().push(sender);
        receiver
    }

    /// Passes on what a container printed. One who is too slow hears no more: the container does not wait for him.
    fn tell(&self, id: &ContainerId, stream: OutputStream, data: &[u8]) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(listeners) = all.get_mut(id) else { return };
        for piece in data.chunks(MAX_DATA_BYTES) {
            let piece = Bytes::copy_from_slice(piece);
            listeners.retain(|listener| listener.try_send((stream, piece.clone())).is_ok());
        }
        if listeners.is_empty() {
            all.remove(id);
        }
    }

    fn end(&self, id: &ContainerId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

/// Records what comes out of a container's pipes, and passes it on.
async fn collect(
    pipes: &[PathBuf; 2],
    wanted: &Log,
    mut stop: oneshot::Receiver<oneshot::Sender<()>>,
    pass_on: &impl Fn(OutputStream, &[u8]),
) -> io::Result<()> {
    let [stdout, stderr] = [open_pipe(&pipes[0])?, open_pipe(&pipes[1])?];
    let mut splitters = STREAMS.map(Splitter::new);
    let file = &wanted.file;
    // Its output is read also where none of it is kept: a pipe that is full would stop the container.
    let mut log = if wanted.most_bytes == 0 { None } else { Some(LogFile::open(file, wanted.most_bytes)?) };
    let mut failing = false;
    loop {
        let done = tokio::select! {
            ready = stdout.readable() => { ready?; None }
            ready = stderr.readable() => { ready?; None }
            done = &mut stop => Some(done),
        };
        let mut records = Vec::new();
        // One read each in turn, so that a chatty stream does not starve the other; all that is
        // there when it is the end.
        match done.is_some() {
            false => drop(read_both([&stdout, &stderr], &mut splitters, &mut records, pass_on, try_read)?),
            true => while read_both([&stdout, &stderr], &mut splitters, &mut records, pass_on, read_now)? {},
        }
        if done.is_some() {
            let now_ms = super::wall_ms();
            splitters.iter_mut().for_each(|splitter| splitter.finish(now_ms, &mut records));
        }
        // A full disk loses lines; it must not stop the container.
        let result = match log.take() {
            Some(file) if !records.is_empty() => {
                let (file, written) = write(file, &records).await?;
                log = Some(file);
                written
            }
            unchanged => {
                log = unchanged;
                Ok(())
            }
        };
        if let Err(error) = &result
            && !failing
        {
            tracing::warn!(file = %file.display(), %error, "output is lost");
        }
        failing = result.is_err();
        if let Some(done) = done {
            if let Ok(done) = done {
                let _ = done.send(());
            }
            return Ok(());
        }
    }
}

/// Appends to a log. What the disk takes its time for is done elsewhere: other containers' output is collected meanwhile.
async fn write(mut log: LogFile, records: &[u8]) -> io::Result<(LogFile, io::Result<()>)> {
    if log.is_full(records.len()) {
        let elsewhere = tokio::task::spawn_blocking(move || {
            let aside = log.set_aside();
            (log, aside)
        });
        let aside;
        (log, aside) = elsewhere.await.map_err(io::Error::other)?;
        if aside.is_err() {
            return Ok((log, aside));
        }
    }
    let written = log.append(records);
    Ok((log, written))
}

/// Reads each pipe once, by `read`. Returns whether there was anything.
fn read_both(
    pipes: [&pipe::Receiver; 2],
    splitters: &mut [Splitter; 2],
    records: &mut Vec<u8>,
    pass_on: &impl Fn(OutputStream, &[u8]),
    read: impl Fn(&pipe::Receiver, &mut [u8]) -> io::Result<usize>,
) -> io::Result<bool> {
    let mut any = false;
    let mut buffer = [0; READ_BYTES];
    let streams = [OutputStream::Stdout, OutputStream::Stderr];
    for ((pipe, splitter), stream) in pipes.into_iter().zip(splitters).zip(streams) {
        let count = read(pipe, &mut buffer)?;
        any |= count > 0;
        pass_on(stream, &buffer[..count]);
        splitter.feed(&buffer[..count], super::wall_ms(), records);
    }
    Ok(any)
}

/// Reads what the reactor knows to be there; 0 when it knows of nothing.
pub(super) fn try_read(pipe: &pipe::Receiver, buffer: &mut [u8]) -> io::Result<usize> {
    match pipe.try_read(buffer) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        other => other,
    }
}

/// Reads what is there, whether or not the reactor has heard of it yet; 0 when there is nothing.
pub(super) fn read_now(pipe: &pipe::Receiver, buffer: &mut [u8]) -> io::Result<usize> {
    match nix::unistd::read(pipe, buffer) {
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests;
