//! The init process of a container that asks for one: starts the command, passes signals on to it, takes
//! care of orphans, and ends as the command ended.

use std::ffi::OsString;
use std::io;
use std::process::{Command, ExitCode};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Exit codes of shells for a command that is not there, and for one that cannot be run.
const NOT_FOUND: u8 = 127;
const NOT_RUN: u8 = 126;

/// Exit codes of shells for a command that a signal ended: its number over this.
const BY_SIGNAL: i32 = 128;

/// Runs the command to its end.
pub fn run(command: &[OsString]) -> ExitCode {
    let Some((program, arguments)) = command.split_first() else {
        eprintln!("hivemind-init: there is no command to run");
        return ExitCode::from(NOT_FOUND);
    };
    // Before the command starts, so that none is missed; what it starts has none blocked again.
    let signals = SigSet::all();
    if let Err(error) = signals.thread_block() {
        eprintln!("hivemind-init: signals cannot be waited for: {error}");
        return ExitCode::from(NOT_RUN);
    }
    let child = match Command::new(program).args(arguments).spawn() {
        Ok(child) => child,
        Err(error) => {
            eprintln!("hivemind-init: {} cannot be run: {error}", program.display());
            let missing = error.kind() == io::ErrorKind::NotFound;
            return ExitCode::from(if missing { NOT_FOUND } else { NOT_RUN });
        }
    };
    let Ok(child) = i32::try_from(child.id()).map(Pid::from_raw) else { return ExitCode::from(NOT_RUN) };
    loop {
        if let Some(code) = reap(child) {
            return ExitCode::from(code);
        }
        match signals.wait() {
            Ok(Signal::SIGCHLD) | Err(_) => {}
            // One that has just ended needs no signal.
            Ok(signal) => drop(kill(child, signal)),
        }
    }
}

/// Collects all that ended; gives the command's exit code when it is among them.
fn reap(command: Pid) -> Option<u8> {
    loop {
        let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, code),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, BY_SIGNAL + signal as i32),
            Err(Errno::EINTR) => continue,
            Ok(_) | Err(_) => return None,
        };
        if pid == command {
            return u8::try_from(code).ok().or(Some(NOT_RUN));
        }
    }
}
