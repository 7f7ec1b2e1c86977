//! PID 1: `/init` of the initramfs, and of containers that ask for an init process.

use std::ffi::OsString;
use std::process::ExitCode;

const USAGE: &str = "\
usage: hivemind-init              process 1 of a Hivemind machine: `/init` of the initramfs
       hivemind-init reap CMD…    process 1 of a container that runs the command
       hivemind-init hold         a user and a network namespace, for as long as its input is open
       hivemind-init nfs SOURCE TARGET OPTIONS
                                  mounts a folder of an NFS server, or prints why not: a number of errno(3)";

/// Exit status of a wrong command line, as of most programs.
const USAGE_ERROR: u8 = 2;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let Some((first, command)) = arguments.split_first()
        && first == "reap"
    {
        return hivemind_init::reaper::run(command);
    }
    if let [first, source, target, options] = &arguments[..]
        && first == "nfs"
    {
        return hivemind_init::nfs::run(source, target, options);
    }
    if arguments == ["hold"] {
        return hivemind_init::namespaces::hold();
    }
    if std::process::id() == 1 {
        hivemind_init::run();
    }
    eprintln!("{USAGE}");
    ExitCode::from(USAGE_ERROR)
}
