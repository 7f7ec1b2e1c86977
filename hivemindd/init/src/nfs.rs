//! Mounts a folder of an NFS server, in a process of its own: the kernel waits for the server for as long as it likes, and only
//! the end of the process ends that.

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use nix::mount::{MsFlags, mount};
use nix::unistd::alarm;

use super::drivers::{Drivers, INDEX};

/// How long a server may take, seconds. One that is there answers at once, or is in its grace period, when it answers too.
const PATIENCE_S: u32 = 20;

/// What the kernel needs for version 4.
const MODULE: &str = "nfsv4";

/// The name by which servers know this machine again when it starts anew, and free what it held.
const OWN_NAME: &str = "/sys/module/nfs/parameters/nfs4_unique_id";

/// Has the kernel speak NFS, under a name that no other client has.
///
/// # Errors
/// When it cannot.
pub fn prepare(own_name: &str) -> std::io::Result<()> {
    Drivers::read(Path::new(INDEX))?.load_named(&[MODULE]);
    std::fs::write(OWN_NAME, own_name)
}

/// Mounts, or prints why not, as a number of errno(3). Ends after [`PATIENCE_S`] in any case, by SIGALRM.
pub fn run(source: &OsStr, target: &OsStr, options: &OsStr) -> ExitCode {
    alarm::set(PATIENCE_S);
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    match mount(Some(source), target, Some("nfs4"), flags, Some(options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{}", error as i32);
            ExitCode::FAILURE
        }
    }
}
