//! Running other programs, with errors that show what the program said.

use std::ffi::OsStr;
use std::io;
use std::process::{Command, ExitStatus, Stdio};

/// How many of the last lines of a failed program's output an error shows: enough for a compiler message, and no flood.
const SHOWN_LINES: usize = 30;

/// A program could not be run, or failed.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It is not installed, or cannot be executed.
    #[error("cannot run `{program}`; `qemu/setup` installs what the build needs")]
    Start {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ran and failed.
    #[error("`{command}` failed ({status}):\n{output}")]
    Failed {
        /// The program with its arguments.
        command: String,
        /// Its exit status.
        status: ExitStatus,
        /// The end of what it wrote to standard error and output.
        output: String,
    },
}

/// Runs a program to its end and returns its standard output.
///
/// # Errors
/// When it cannot be started or its exit status is not zero.
pub fn run(command: &mut Command) -> Result<Vec<u8>, ProcessError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| ProcessError::Start { program: program.clone(), source })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let lines: Vec<&str> = said.lines().collect();
    let arguments = command.get_args().map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ");
    Err(ProcessError::Failed {
        command: format!("{program} {arguments}"),
        status: output.status,
        output: lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_what_the_program_said() {
        let error = run(Command::new("ls").arg("/nowhere/at/all")).unwrap_err().to_string();
        assert!(error.contains("ls /nowhere/at/all") && error.contains("No such file"), "{error}");
    }

    #[test]
    fn a_missing_program_says_how_to_get_it() {
        let error = run(&mut Command::new("surely-not-a-program")).unwrap_err().to_string();
        assert!(error.contains("qemu/setup"), "{error}");
    }
}
