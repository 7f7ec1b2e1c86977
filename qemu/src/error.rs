//! What can go wrong around a lab, each with what to do about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the harness itself; a fault that was asked for is never one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused a network namespace, a tap or a bridge.
    #[error(
        "not allowed to {action}; `qemu/setup` says what is missing, and `qemu/enable-labs` starts programs other than \
             `hivemind-qemu` with the right to do it"
    )]
    NotPermitted {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A program of the host is missing or could not be started.
    #[error("cannot start `{program}`; qemu/setup installs everything the harness needs")]
    Spawn {
        /// The program's name.
        program: String,
        /// Why it did not start.
        #[source]
        source: io::Error,
    },
    /// A program of the host ran and failed.
    #[error("`{command}` failed: {output}")]
    Failed {
        /// The command with its arguments.
        command: String,
        /// What it printed.
        output: String,
    },
    /// A file, socket or thread could not be used.
    #[error("cannot {action}")]
    Io {
        /// What was tried, with the path if there is one.
        action: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Something did not happen in time.
    #[error("waited {} s for {what}{context}", waited.as_secs())]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        waited: Duration,
        /// The end of the log that should have shown it; may be empty.
        context: String,
    },
    /// The machine is not in the state the operation needs.
    #[error("machine `{machine}` {problem}")]
    Machine {
        /// The machine's name.
        machine: String,
        /// What is wrong.
        problem: String,
    },
    /// QEMU refused a monitor command.
    #[error("QEMU refused `{command}`: {problem}")]
    Qmp {
        /// The QMP command.
        command: String,
        /// QEMU's explanation.
        problem: String,
    },
    /// A lab was asked for more than it was made for.
    #[error("lab `{lab}` {problem}")]
    Lab {
        /// The lab's name.
        lab: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A part of the image to boot is missing.
    #[error("no {what} at {}; run image/build first", path.display())]
    NoImage {
        /// Which file.
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
    },
}

/// Adds what was tried to an [`io::Error`].
pub(crate) trait Context<T> {
    fn context(self, action: impl Into<String>) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, action: impl Into<String>) -> Result<T> {
        self.map_err(|source| Error::Io { action: action.into(), source })
    }
}

impl<T> Context<T> for nix::Result<T> {
    fn context(self, action: impl Into<String>) -> Result<T> {
        self.map_err(io::Error::from).context(action)
    }
}
