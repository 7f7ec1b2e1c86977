//! The hardware watchdog: resets a machine whose kernel or whose PID 1 no longer turns.
//!
//! It is armed in the initramfs, before the disk is looked for, and from then on fed by whatever PID 1 does that
//! takes long. It is never disarmed: a shutdown that hangs must end as well.

use std::fs::File;
use std::io::Write as _;
use std::sync::OnceLock;
use std::time::Duration;

use nix::libc;

use super::console::line;

/// How long the hardware waits while PID 1 prepares, seconds: a release whose kernel hangs is tried three times, and
/// the machine must be back on the one before within five minutes.
pub(super) const PREPARING_S: libc::c_int = 30;

/// How long it waits once PID 1 supervises, seconds: several times what a sign of life may be late on a machine whose
/// processors do much else, and little enough that a machine that hangs is reset within a minute by a clock that is
/// not exact.
pub(super) const SUPERVISING_S: libc::c_int = 50;

/// How often it gets a sign of life.
pub(super) const FEED_EVERY: Duration = Duration::from_secs(10);

/// The driver in the initramfs.
pub(super) const MODULES: [&str; 1] = ["i6300esb"];

const DEVICE: &str = "/dev/watchdog";

/// The watchdog, once it is armed. PID 1 has one thread, and feeds it from wherever it waits.
static ARMED: OnceLock<File> = OnceLock::new();

/// Arms the watchdog, if the machine has one; from then on it waits that long.
pub(super) fn arm(seconds: libc::c_int) {
    let before = ARMED.get();
    let opened = if before.is_none() { File::options().write(true).open(DEVICE).ok() } else { None };
    let Some(file) = before.or_else(|| opened.map(|file| ARMED.get_or_init(|| file))) else { return };
    match super::sys::set_watchdog_timeout(file, seconds) {
        Ok(()) if before.is_some() => {}
        Ok(()) => line(&format!("watchdog armed ({seconds} s)")),
        Err(error) => line(&format!("watchdog armed with a time-out of its own: {error}")),
    }
}

/// The sign of life.
pub(super) fn feed() {
    if let Some(mut file) = ARMED.get() {
        // Nothing to be done if it fails; the hardware will say so.
        let _ = file.write_all(b"\0");
    }
}
