//! The daemon, which PID 1 starts.

use std::process::ExitCode;

use hivemindd::agent;

const USAGE: &str = "\
usage: hivemindd agent        the cluster agent, started by PID 1
       hivemindd --version";

/// Exit status of a wrong command line, as of most programs.
const USAGE_ERROR: u8 = 2;

fn main() -> ExitCode {
    let result = match std::env::args().nth(1).as_deref() {
        Some("agent") => agent::run(),
        Some("--version") => {
            println!("hivemindd {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Some("--help") => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(USAGE_ERROR);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
