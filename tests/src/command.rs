//! The `hivemind` command as users run it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// Where cargo put the command: beside the running test or tool.
///
/// # Panics
/// When it was not built.
pub fn binary(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let found = own.ancestors().skip(1).take(3).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is not built; run `cargo build -p hivemind`, or ./tests/run"))
}

/// One run of the command, ended.
#[derive(Debug)]
pub struct Run {
    /// What was run.
    pub line: String,
    /// How it ended.
    pub output: Output,
}

impl Run {
    /// Runs `command` to its end.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn of(mut command: Command) -> Self {
        let line = format!("{command:?}");
        let output = command.output().unwrap_or_else(|error| panic!("{line}: {error}"));
        Self { line, output }
    }

    /// Whether it ended with code 0.
    pub fn is_ok(&self) -> bool {
        self.output.status.success()
    }

    /// Its exit code.
    pub fn code(&self) -> Option<i32> {
        self.output.status.code()
    }

    /// What it printed.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    /// What it complained about.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    /// Itself, if it ended well.
    ///
    /// # Panics
    /// When it did not.
    pub fn ok(self) -> Self {
        assert!(self.is_ok(), "{self}");
        self
    }

    /// Itself, if it failed.
    ///
    /// # Panics
    /// When it did not.
    pub fn failed(self) -> Self {
        assert!(!self.is_ok(), "should have failed: {self}");
        self
    }

    /// What it printed, as JSON.
    ///
    /// # Errors
    /// When it failed or printed something else, in words.
    pub fn json(&self) -> Result<Value, String> {
        if !self.is_ok() {
            return Err(self.to_string());
        }
        serde_json::from_slice(&self.output.stdout).map_err(|error| format!("{error}: {self}"))
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} -> {}\n{}{}", self.line, self.output.status, self.stdout(), self.stderr())
    }
}

/// The list in an answer, whether it is the answer or its `items`.
pub fn items(value: &Value) -> Vec<Value> {
    value.as_array().or_else(|| value["items"].as_array()).cloned().unwrap_or_default()
}

/// Writes a Compose file into `folder`.
///
/// # Panics
/// When it cannot be written.
pub fn compose(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("compose.yaml");
    std::fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    path
}
