//! `hivemind-qemu`: a cluster of emulated machines that stays up, and everything that can happen to it.

mod command;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = command::Arguments::parse();
    match command::run(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("hivemind-qemu: {error:#}");
            ExitCode::FAILURE
        }
    }
}
