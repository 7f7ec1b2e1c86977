//! The first half of PID 1's life, in the initramfs: find the root, verify it, mount it, and move into it.
//!
//! PID 1 stays the program of the initramfs, which is in memory and signed with the kernel: a damaged root can
//! keep containers from running, but not the machine from noticing and saying so.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};

use super::console::line;
use super::verity::Root;
use super::{Error, block, cmdline, modules, mounts, sys, verity};

/// Modules of the initramfs, in the order to load them.
const MODULES_LIST: &str = "/modules.load";

/// Where the root is mounted before it becomes `/`.
const NEW_ROOT: &str = "/root";

/// How long the disk may take to appear: slow controllers and USB bridges need several seconds.
const ROOT_LIMIT: Duration = Duration::from_secs(30);

/// How often the list of devices is read while waiting.
const ROOT_POLL: Duration = Duration::from_millis(10);

/// Finds the root and puts the device over it that verifies what is read, if the command line says how.
///
/// # Errors
/// When there is no root, or the command line says half of how to verify it.
pub(super) fn open_root() -> Result<Root, Error> {
    mounts::mount_early()?;
    sys::quiet_kernel();
    let text = std::fs::read_to_string("/proc/cmdline").map_err(Error::io("reading", "/proc/cmdline"))?;
    let wanted = cmdline::root_partuuid(&text).ok_or(Error::CommandLine("root=PARTUUID="))?;
    let verity = cmdline::verity(&text)?;
    // The list ends with drivers that are slow to probe: no further than needed.
    let ready = || find(&wanted).transpose();
    let device = match modules::load_until(Path::new(MODULES_LIST), ready) {
        (_, Some(found)) => found?,
        (_, None) => wait_for(&wanted)?,
    };
    let root = match verity {
        Some(verity) => {
            modules::load_named(Path::new(MODULES_LIST), &verity::MODULES);
            Root::verified(&device, &verity)?
        }
        // Booted without firmware, by somebody who gives the kernel and could give any.
        None => Root::unverified(device.clone()),
    };
    line(&format!("root is {}, {}", device.display(), root.how()));
    Ok(root)
}

/// Moves into the root, with `/proc`, `/sys` and `/dev`, which are mounted by then.
///
/// # Errors
/// When the root cannot be read, or the kernel refuses a move.
pub(super) fn enter(root: &Root) -> Result<(), Error> {
    std::fs::create_dir_all(NEW_ROOT).map_err(Error::io("creating", NEW_ROOT))?;
    mounts::mount_device(root.node(), Path::new(NEW_ROOT), "squashfs", MsFlags::MS_RDONLY, "")?;
    switch_root()
}

/// The root's device node, if it is there by now.
fn find(partuuid: &str) -> Result<Option<PathBuf>, Error> {
    match block::with_partuuid(partuuid).as_slice() {
        [device] => Ok(Some(device.node()).filter(|node| node.exists())),
        // The same image on two disks of one machine: taking either would be a gamble.
        [first, second, ..] => Err(Error::Table {
            disk: format!("{} and {}", first.name, second.name),
            message: format!("both have the partition {partuuid}; remove one of the disks"),
        }),
        [] => Ok(None),
    }
}

fn wait_for(partuuid: &str) -> Result<PathBuf, Error> {
    let start = Instant::now();
    while start.elapsed() < ROOT_LIMIT {
        if let Some(node) = find(partuuid)? {
            return Ok(node);
        }
        std::thread::sleep(ROOT_POLL);
    }
    Err(Error::NoDevice(format!("PARTUUID={partuuid}")))
}

/// The classic switch for an initramfs, which cannot be pivoted away from: free its files, move the
/// new root over it, and enter.
fn switch_root() -> Result<(), Error> {
    for name in ["proc", "sys", "dev"] {
        let from = Path::new("/").join(name);
        let to = Path::new(NEW_ROOT).join(name);
        mount(Some(&from), &to, None::<&str>, MsFlags::MS_MOVE, None::<&str>)
            .map_err(|error| moving(&to, error))?;
    }
    remove_initramfs();
    nix::unistd::chdir(NEW_ROOT).map_err(|error| moving(Path::new(NEW_ROOT), error))?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .and_then(|()| nix::unistd::chroot("."))
        .and_then(|()| nix::unistd::chdir("/"))
        .map_err(|error| moving(Path::new("/"), error))
}

fn moving(to: &Path, error: nix::Error) -> Error {
    Error::Mount { what: "the new root".to_owned(), at: to.display().to_string(), source: error.into() }
}

/// What stays in the initramfs stays in memory for ever. Best effort: a leftover only costs memory.
fn remove_initramfs() {
    let Ok(root) = std::fs::metadata("/") else { return };
    remove_below(Path::new("/"), root.dev());
}

fn remove_below(folder: &Path, device: u64) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(found) = path.symlink_metadata() else { continue };
        // Never into another file system: the new root is mounted below.
        if found.dev() != device {
            continue;
        }
        if found.is_dir() {
            remove_below(&path, device);
            let _ = std::fs::remove_dir(&path);
        } else {
            let _ = std::fs::remove_file(&path);
        }
    }
}
