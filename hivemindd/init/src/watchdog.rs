//! The hardware watchdog: resets a machine whose PID 1 no longer turns.

use std::fs::File;
use std::io::Write as _;
use std::time::Duration;

use nix::libc;

use super::console::line;

/// How long the hardware waits. Longer than anything PID 1 does in one go once it supervises.
const TIMEOUT_S: libc::c_int = 60;

/// How often it gets a sign of life.
pub(super) const FEED_EVERY: Duration = Duration::from_secs(10);

/// An open watchdog; the machine is reset if it is not fed. It is never disarmed: a shutdown that
/// hangs must end as well.
pub(super) struct Watchdog(Option<File>);

impl Watchdog {
    /// Opens the watchdog if the machine has one.
    pub(super) fn open() -> Self {
        let Ok(file) = File::options().write(true).open("/dev/watchdog") else { return Self(None) };
        match super::sys::set_watchdog_timeout(&file, TIMEOUT_S) {
            Ok(()) => line(&format!("watchdog armed ({TIMEOUT_S} s)")),
            Err(error) => line(&format!("watchdog armed with its own timeout: {error}")),
        }
        Self(Some(file))
    }

    /// The sign of life.
    pub(super) fn feed(&mut self) {
        if let Some(file) = &mut self.0 {
            // Nothing to be done if it fails; the hardware will say so.
            let _ = file.write_all(b"\0");
        }
    }
}
