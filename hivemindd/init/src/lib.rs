//! PID 1: mounts, modules, the state partition, and two children.
//!
//! ```text
//! early: in the initramfs, find the root of the release, verify it, move into it
//! prepare: mounts, modules, state, configuration
//! supervise: containerd, agent, until told to stop
//! shut down: children, containers, disks
//! ```
//!
//! It is single-threaded, speaks no network protocol and keeps no state of its own. It must not end:
//! what fails is printed and tried again, or leads to a reboot whose reason is on the console.

mod backoff;
pub mod block;
pub mod boot_menu;
pub mod cgroup;
mod child;
mod cmdline;
pub mod config;
mod console;
pub mod drivers;
pub mod durable;
mod early;
pub mod fence;
mod install;
pub mod modules;
mod mounts;
pub mod namespaces;
pub mod nfs;
mod output;
mod power;
pub mod pulse;
pub mod reaper;
pub mod release;
pub mod reset;
pub mod screen;
mod shutdown;
mod state;
mod supervisor;
mod sys;
mod verity;
pub mod volume;
mod watchdog;

use std::path::Path;
use std::time::Duration;

use hivemind_spec::words::chain;
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub use console::line;
use drivers::Drivers;
use early::Start;
use release::Release;
use screen::Look;
use shutdown::How;
use supervisor::Supervisor;
use verity::Root;

/// How long the reason of a failed boot stays on the console before the machine tries again. Long
/// enough to read on a screen, short enough that a passing fault heals unattended.
const REBOOT_DELAY: Duration = Duration::from_secs(10);

/// Modules of the root image, in the order to load them.
const MODULES_LIST: &str = "/usr/lib/hivemind/modules.load";

/// The host name until the agent knows a better one.
const DEFAULT_HOSTNAME: &str = "hivemind";

/// Runs as PID 1. Never returns.
pub fn run() -> ! {
    console::open();
    console::reboot_on_panic();
    let ended = Start::find().and_then(|start| {
        let ended = start.open_root().and_then(|root| run_from(&root, start.release.as_ref()));
        if let (Err(Error::NoRoot | Error::RootCorrupt(_)), Some(release)) = (&ended, &start.release) {
            step_back(release);
        }
        ended
    });
    match ended {
        Ok(how) => shutdown::finish(how),
        Err(error) => give_up(&error),
    }
}

/// Supervises in that root until told to stop. A root that cannot be read is what failed, whatever failed for it.
fn run_from(root: &Root, release: Option<&Release>) -> Result<How, Error> {
    let supervised = early::enter(root).and_then(|()| match prepare(release)? {
        Some(buttons) => Supervisor::new(buttons, root, release)?.run(),
        // Installed: what it was started from is to be pulled out.
        None => Ok(How::PowerOff),
    });
    supervised.map_err(|error| if root.is_corrupt() { Error::RootCorrupt(Some(error.into())) } else { error })
}

/// Has the machine start another release from now on, if it has one; whether it does.
fn step_back(release: &Release) -> bool {
    let id = release.id();
    let went = release.step_back();
    line(&match &went {
        Ok(true) => format!("release {id} is bad: the machine goes back to another"),
        Ok(false) => format!("release {id} stays: there is no other that is not bad"),
        Err(error) => format!("release {id} stays: the boot menu cannot be changed: {error}"),
    });
    went.unwrap_or(false)
}

/// Asks PID 1 for an ordered reboot.
///
/// # Errors
/// When this process may not signal PID 1.
pub fn request_reboot() -> nix::Result<()> {
    kill(Pid::from_raw(1), Signal::SIGUSR2)
}

/// Asks PID 1 to shut the machine down and switch it off.
///
/// # Errors
/// When this process may not signal PID 1.
pub fn request_power_off() -> nix::Result<()> {
    kill(Pid::from_raw(1), Signal::SIGUSR1)
}

/// Everything up to the first child. Only what makes supervising pointless is an error.
///
/// Returns the power buttons: opened as early as there are any, they keep a press during a long
/// check of the disk. None: the machine was installed on another disk, and there is nothing to supervise.
fn prepare(release: Option<&Release>) -> Result<Option<Vec<power::Button>>, Error> {
    mounts::mount_all()?;
    sys::quiet_kernel();
    line(&format!("hivemindd {} on Linux {}", env!("CARGO_PKG_VERSION"), sys::kernel_release()));
    let mut loaded = modules::load_list(Path::new(MODULES_LIST));
    match Drivers::read(Path::new(drivers::INDEX)) {
        Ok(mut drivers) => loaded += drivers.load_all(),
        Err(error) => line(&format!("no drivers: {}: {error}", drivers::INDEX)),
    }
    line(&format!("{loaded} kernel modules loaded"));
    // Of a watchdog whose driver was not in the initramfs.
    watchdog::arm(watchdog::PREPARING_S);
    let buttons = power::buttons();
    mounts::mount_late();
    mounts::write_sysctls();
    if let Err(error) = sys::loopback_up() {
        line(&format!("the loopback interface stays down: {error}"));
    }
    let disk = block::boot_disk()?;
    if let Some(config) = install::ordered(&disk) {
        return install::run(&disk, config, release).map(|()| None);
    }
    let size = state::bring_up(&disk)?;
    line(&format!("state partition mounted ({})", human_size(size)));
    let hostname = config::load(Some(&disk)).and_then(|config| config.node.hostname);
    if let Err(error) = nix::unistd::sethostname(hostname.as_deref().unwrap_or(DEFAULT_HOSTNAME)) {
        line(&format!("the host name was not set: {error}"));
    }
    state::provide_machine_id();
    cgroup::make_tree()?;
    Ok(Some(buttons))
}

/// `7.5 GiB`.
fn human_size(bytes: u64) -> String {
    // Exact enough for people; only values near 2^53 bytes would lose a digit.
    #[allow(clippy::cast_precision_loss)]
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1024.0 { format!("{mib:.0} MiB") } else { format!("{:.1} GiB", mib / 1024.0) }
}

/// Says why, waits for people to read it, and starts the machine again.
fn give_up(error: &Error) -> ! {
    console::title("cannot go on; the reason is below", Look::Bad);
    line(&format!("cannot go on: {}", chain(error)));
    line(&format!("rebooting in {} s", REBOOT_DELAY.as_secs()));
    std::thread::sleep(REBOOT_DELAY);
    nix::unistd::sync();
    loop {
        // Only fails for want of the right, which PID 1 has; then waiting is all that is left.
        let _ = reboot(RebootMode::RB_AUTOBOOT);
        std::thread::sleep(REBOOT_DELAY);
    }
}

/// Why the machine cannot be brought up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file system every program needs.
    #[error("{what} cannot be mounted at {at}")]
    Mount {
        /// The device or type.
        what: String,
        /// The mount point.
        at: String,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// There is no such device.
    #[error("no block device {0} appeared")]
    NoDevice(String),
    /// The kernel's command line lacks a word that the build puts there.
    #[error("the kernel command line has no {0}")]
    CommandLine(&'static str),
    /// A step with a file or device failed.
    #[error("{action} {path}")]
    Io {
        /// What was tried, `reading`.
        action: &'static str,
        /// With what.
        path: String,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The partition table cannot be used.
    #[error("the partition table of {disk}: {message}")]
    Table {
        /// The disk.
        disk: String,
        /// What is wrong.
        message: String,
    },
    /// The machine cannot be installed as its configuration orders.
    #[error("install-refused: {0}")]
    Install(String),
    /// No slot begins as the release's root does.
    #[error("root-corrupt: no slot holds the root of this release")]
    NoRoot,
    /// A block of the root was read that does not verify.
    #[error(
        "root-corrupt: the root file system is not what was built: a block that was read does not verify"
    )]
    RootCorrupt(#[source] Option<Box<Error>>),
    /// A program of the image failed or took too long.
    #[error("{program}: {message}")]
    Program {
        /// Its path.
        program: &'static str,
        /// How it ended.
        message: String,
    },
}

impl Error {
    fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().display().to_string();
        move |source| Self::Io { action, path, source }
    }
}
