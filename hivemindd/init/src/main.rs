//! PID 1: `/init` of the initramfs.

use std::process::ExitCode;

const USAGE: &str = "this is process 1 of a Hivemind machine: `/init` of the initramfs";

/// Exit status of a wrong command line, as of most programs.
const USAGE_ERROR: u8 = 2;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        hivemind_init::run();
    }
    eprintln!("{USAGE}");
    ExitCode::from(USAGE_ERROR)
}
