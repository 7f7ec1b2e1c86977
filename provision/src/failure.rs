//! How a command fails: what, where, what to do next, and an exit code that scripts can rely on.

use std::fmt;
use std::path::Path;

use hivemind_spec::problem::{Code, Problem};
use serde::Serialize;

/// How the program ended. The numbers are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// Done.
    Success,
    /// Something on this machine failed: a file, a device, a passphrase.
    Local,
    /// The command line, a Compose file or a configuration is wrong.
    Input,
    /// No node of the cluster answered.
    Unreachable,
    /// The cluster refused: key, role, document.
    Refused,
    /// Someone else changed the same thing in between.
    Conflict,
    /// What was pushed is accepted, but did not come up, or not in time.
    NotRunning,
    /// `plan` found differences and was asked to say so.
    Differs,
    /// Stopped by Ctrl-C.
    Interrupted,
    /// As the command that was run in a container ended, whose exit code it is.
    OfCommand(u8),
}

impl Exit {
    /// As a container's command ended.
    pub fn of_command(code: u32) -> Self {
        Self::OfCommand(u8::try_from(code).unwrap_or(u8::MAX))
    }

    /// The exit code.
    pub fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Local => 1,
            Self::Input => 2,
            Self::Unreachable => 3,
            Self::Refused => 4,
            Self::Conflict => 5,
            Self::NotRunning => 6,
            Self::Differs => 7,
            Self::Interrupted => 130,
            Self::OfCommand(code) => code,
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// A place in a file, both numbers from 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The file as the user named it.
    pub file: String,
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// Why a command failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// A stable code for programs: the problem's for refusals by the cluster.
    pub code: String,
    /// What is wrong.
    pub detail: String,
    /// Where.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// What to do next; empty when `detail` leaves no question.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub advice: String,
}

impl std::error::Error for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.detail)
    }
}

impl Failure {
    /// A failure with its stable code.
    pub fn new(exit: Exit, code: &str, detail: impl Into<String>) -> Self {
        Self { exit, code: code.to_owned(), detail: detail.into(), place: None, advice: String::new() }
    }

    /// Something on this machine failed.
    pub fn local(code: &str, detail: impl Into<String>) -> Self {
        Self::new(Exit::Local, code, detail)
    }

    /// What the user wrote is wrong.
    pub fn input(code: &str, detail: impl Into<String>) -> Self {
        Self::new(Exit::Input, code, detail)
    }

    /// A file or device could not be used.
    pub fn file(doing: &str, path: &Path, error: &std::io::Error) -> Self {
        let failure = Self::local("file", format!("cannot {doing} {}: {error}", path.display()));
        match error.kind() {
            std::io::ErrorKind::PermissionDenied => {
                failure.advice("run as a user who may, or change its mode")
            }
            std::io::ErrorKind::NotFound => failure.advice("check the path"),
            _ => failure,
        }
    }

    /// Adds what to do next.
    pub fn advice(mut self, advice: impl Into<String>) -> Self {
        self.advice = advice.into();
        self
    }

    /// Adds the place.
    pub fn at(mut self, place: Place) -> Self {
        self.place = Some(place);
        self
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        let exit = match problem.code {
            Code::Conflict => Exit::Conflict,
            Code::Unreachable => Exit::Unreachable,
            _ => Exit::Refused,
        };
        let place = problem.pointer.map(|pointer| format!(" (at {pointer})")).unwrap_or_default();
        Self::new(exit, problem.code.as_str(), format!("{}{place}", problem.detail)).advice(problem.advice)
    }
}

/// What a command gives.
pub type Result<T, E = Failure> = std::result::Result<T, E>;
