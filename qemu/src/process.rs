//! Child processes that cannot outlive their owner.

use std::fs;
use std::io;
use std::process::{Child, Command, ExitStatus, Output};
use std::sync::mpsc::{Sender, channel};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::{Error, Result};

type Job = (Command, Sender<io::Result<Child>>);

/// Linux sends the parent-death signal when the *thread* that forked ends, so every child is forked by one thread
/// that lives as long as the process.
static NURSERY: LazyLock<Mutex<Sender<Job>>> = LazyLock::new(|| {
    let (jobs, inbox) = channel::<Job>();
    thread::spawn(move || {
        for (mut command, reply) in inbox {
            // Nobody waiting any more means nobody owns the child: it is killed right here.
            if let Err(unclaimed) = reply.send(command.spawn())
                && let Ok(mut child) = unclaimed.0
            {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    });
    Mutex::new(jobs)
});

/// A running program, killed and reaped when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    ended: Option<ExitStatus>,
}

impl Process {
    pub(crate) fn spawn(command: Command) -> Result<Process> {
        let program = command.get_program().to_string_lossy().into_owned();
        let (reply, answer) = channel();
        let jobs = NURSERY.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let child = match jobs.send((command, reply)) {
            Ok(()) => answer.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into())),
            Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        };
        let child = child.map_err(|source| Error::Spawn { program, source })?;
        Ok(Process { child, ended: None })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Sends a signal, unless the process has ended.
    pub(crate) fn signal(&mut self, signal: Signal) -> io::Result<()> {
        if self.ended().is_some() {
            return Err(io::ErrorKind::NotFound.into());
        }
        // The child was not reaped yet, so its number cannot have been given to another process.
        Ok(kill(Pid::from_raw(self.child.id().cast_signed()), signal)?)
    }

    /// `SIGKILL`, and waits for the end.
    pub(crate) fn kill(&mut self) {
        if self.ended().is_none() {
            let _ = self.child.kill();
            self.ended = self.child.wait().ok();
        }
    }

    /// Whether a signal has stopped it.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stat().is_ok_and(|fields| fields.starts_with('T'))
    }

    /// Processor time used so far, by user and kernel, of all threads.
    pub(crate) fn cpu_time(&self) -> io::Result<Duration> {
        let fields = self.stat()?;
        let ticks: u64 =
            fields.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
    }
}

impl Process {
    /// The fields of proc(5) `stat` from the third, the state.
    fn stat(&self) -> io::Result<String> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.id()))?;
        // The second field is the name in parentheses, which may itself contain blanks and parentheses.
        Ok(stat.rsplit_once(") ").map_or("", |(_, fields)| fields).to_owned())
    }
}

/// Linux has reported processor time in hundredths of a second to user space since 2.6 on every x86 and ARM machine.
const TICKS_PER_SECOND: u64 = 100;

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a command to its end; an exit status other than 0 is an error that shows its output.
pub(crate) fn run(command: &mut Command) -> Result<Output> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|source| Error::Spawn { program, source })?;
    if output.status.success() {
        return Ok(output);
    }
    let printed = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
    Err(Error::Failed {
        command: format!("{command:?}").replace('"', ""),
        output: String::from_utf8_lossy(printed).trim().to_owned(),
    })
}
