//! Holds namespaces that somebody else names and fills: a user namespace is made by a process that has one thread, which the
//! agent is not.

use std::io::{self, Write as _};
use std::process::ExitCode;

use nix::sched::{CloneFlags, unshare};

/// What it says once they are there.
pub const THERE: u8 = b'.';

/// Makes a user namespace, and a network namespace that belongs to it. Says so by [`THERE`], and ends with its input.
pub fn hold() -> ExitCode {
    let result = unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
    let result = result.and_then(|()| {
        let mut out = io::stdout();
        out.write_all(&[THERE])?;
        out.flush()?;
        io::copy(&mut io::stdin(), &mut io::sink())
    });
    match result {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hivemind-init: namespaces cannot be made: {error}");
            ExitCode::FAILURE
        }
    }
}
