//! Short lines with the time since boot on the machine's console, which usually is a serial port, and on its screen.

use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::OnceLock;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::time::{ClockId, clock_gettime};

use super::screen::{self, Look, Row, Screen};

/// How long one line may wait for a slow console before it is dropped: PID 1 must not hang on a
/// serial cable.
const WRITE_LIMIT_MS: u16 = 200;

static CONSOLE: OnceLock<OwnedFd> = OnceLock::new();

/// The screen, and whether it gets the lines too: they are on it already where it is the console.
static SCREEN: OnceLock<(Screen, bool)> = OnceLock::new();

/// Makes the console this process's standard streams. Without one, lines go nowhere.
pub(super) fn open() {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let Ok(console) = nix::fcntl::open("/dev/console", flags, Mode::empty()) else { return };
    // Whoever inherits the streams (a panic message, mkfs) writes to the console as well.
    let _ = nix::unistd::dup2_stdin(&console);
    let _ = nix::unistd::dup2_stdout(&console);
    let _ = nix::unistd::dup2_stderr(&console);
    let flags = flags | OFlag::O_NONBLOCK;
    if let Ok(own) = nix::fcntl::open("/dev/console", flags, Mode::empty()) {
        let _ = CONSOLE.set(own);
    }
}

/// Begins to use the screen. Machines without one, and without a terminal for it, have none of it.
pub(super) fn show() {
    let Ok(screen) = Screen::open() else { return };
    if let Err(error) = screen.lay_out() {
        line(&format!("the screen shows lines only: {error}"));
    }
    let _ = SCREEN.set((screen, !screen::is_console()));
    title("starts", Look::Busy);
}

/// Says on the screen how the machine is, while there is no agent to do it.
pub(super) fn title(text: &str, look: Look) {
    if let Some((screen, _)) = SCREEN.get() {
        let row = Row { text: format!(" Hivemind {}: {text}", env!("CARGO_PKG_VERSION")), look };
        // Whoever looks sees the lines.
        let _ = screen.paint(&[row]);
    }
}

/// Prints one line of PID 1 itself.
pub fn line(text: &str) {
    line_from("hivemindd", text);
}

/// Prints one line with the name of who says it.
pub(super) fn line_from(who: &str, text: &str) {
    let text = format!("[{:6.2}] {who}: {text}\n", since_boot().as_secs_f64());
    match CONSOLE.get() {
        Some(console) => write_bounded(console, text.as_bytes()),
        None => {
            let _ = std::io::stderr().write_all(text.as_bytes());
        }
    }
    if let Some((screen, true)) = SCREEN.get() {
        // It is on the console, whatever becomes of it here.
        let _ = screen.write(&text);
    }
}

/// Time since the kernel started, sleep included.
pub(super) fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Into::into)
}

fn write_bounded(console: &OwnedFd, mut rest: &[u8]) {
    while !rest.is_empty() {
        match nix::unistd::write(console, rest) {
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let mut fds = [PollFd::new(console.as_fd(), PollFlags::POLLOUT)];
                if poll(&mut fds, PollTimeout::from(WRITE_LIMIT_MS)) != Ok(1) {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}

/// A panic of PID 1 would be a kernel panic without a word: say why, and start again.
pub(super) fn reboot_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        line(&format!("PID 1 failed, rebooting in {} s: {info}", super::REBOOT_DELAY.as_secs()));
        std::thread::sleep(super::REBOOT_DELAY);
        nix::unistd::sync();
        let _ = nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_AUTOBOOT);
    }));
}
