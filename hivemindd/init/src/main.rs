//! PID 1, in both of its lives: `/init` of the initramfs and `/sbin/init` of the root.

use std::process::ExitCode;

const USAGE: &str =
    "this is process 1 of a Hivemind machine: `/init` of the initramfs or the root's `/sbin/init`";

/// Exit status of a wrong command line, as of most programs.
const USAGE_ERROR: u8 = 2;

fn main() -> ExitCode {
    let name = std::env::args().next().unwrap_or_default();
    match (std::process::id(), name.as_str()) {
        (1, "/init") => hivemind_init::early::run(),
        (1, _) => hivemind_init::run(),
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(USAGE_ERROR)
        }
    }
}
