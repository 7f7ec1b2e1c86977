//! The `hivemind` command.

use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind;
use hivemind::cli::Cli;
use hivemind::failure::Exit;
use hivemind::{command, terminal};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, not faults.
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            let _ = error.print();
            return if asked { Exit::Success } else { Exit::Input }.into();
        }
    };
    let output = cli.global.output;
    match command::run(cli) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            terminal::say_failure(&failure, output);
            failure.exit.into()
        }
    }
}
