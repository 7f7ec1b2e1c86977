//! The first half of PID 1's life, in the initramfs: find the root, verify it, mount it, and move into it.
//!
//! PID 1 stays the program of the initramfs, which is in memory and signed with the kernel: a damaged root can
//! keep containers from running, but not the machine from noticing and saying so.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use hivemind_spec::words::chain;
use nix::mount::{MsFlags, mount};

use super::block::Device;
use super::cmdline::Verity;
use super::console::line;
use super::drivers::Drivers;
use super::release::Release;
use super::verity::Root;
use super::{Error, block, cmdline, console, mounts, sys, verity, watchdog};

/// The modules of the initramfs.
const MODULES_INDEX: &str = "/modules.index";

/// The root's file system, by the name of its module.
const ROOT_MODULES: [&str; 1] = ["squashfs"];

/// Where the root is mounted before it becomes `/`.
const NEW_ROOT: &str = "/root";

/// How long the disk may take to appear: slow controllers and USB bridges need several seconds.
const ROOT_LIMIT: Duration = Duration::from_secs(30);

/// How often the list of devices is read while waiting.
const ROOT_POLL: Duration = Duration::from_millis(10);

/// Where this release's root may be, and what it must be.
#[derive(Debug)]
pub(super) struct Start {
    slots: Vec<Device>,
    verity: Option<Verity>,
    /// What the boot menu knows of the release. None for a kernel that was not started from a boot menu.
    pub(super) release: Option<Release>,
}

impl Start {
    /// Waits for the disk that the command line tells of.
    ///
    /// # Errors
    /// When there is none, or the command line does not say enough.
    pub(super) fn find() -> Result<Self, Error> {
        mounts::mount_early()?;
        console::show();
        sys::quiet_kernel();
        let mut drivers =
            Drivers::read(Path::new(MODULES_INDEX)).map_err(Error::io("reading", MODULES_INDEX))?;
        drivers.load_named(&watchdog::MODULES);
        watchdog::arm(watchdog::PREPARING_S);
        let text = std::fs::read_to_string(cmdline::PATH).map_err(Error::io("reading", cmdline::PATH))?;
        let verity = cmdline::verity(&text)?;
        let wanted = cmdline::roots(&text, verity.is_some());
        if wanted.is_empty() {
            return Err(Error::CommandLine("root=PARTUUID="));
        }
        drivers.load_named(&ROOT_MODULES);
        if verity.is_some() {
            drivers.load_named(&verity::MODULES);
        }
        let slots = wait_for(&wanted, &mut drivers)?;
        let disk = || slots.first().map_or_else(|| Err(Error::NoRoot), block::disk_of);
        let release = Release::of(&text, disk);
        // A disk whose menu is damaged has still got a root.
        let release = release.unwrap_or_else(|error| {
            line(&format!("there is no boot menu to go back to: {}", chain(&error)));
            None
        });
        Ok(Self { slots, verity, release })
    }

    /// The root. Which slot an update wrote it to is not on the command line: it is the one that verifies.
    ///
    /// # Errors
    /// When no slot holds the release's root.
    pub(super) fn open_root(&self) -> Result<Root, Error> {
        let Some(verity) = &self.verity else {
            // Booted without firmware, by somebody who gives the kernel and could give any.
            let node = self.slots.first().map(Device::node).unwrap_or_default();
            line(&format!("root is {}, not verified", node.display()));
            return Ok(Root::unverified(node));
        };
        for slot in self.slots.iter().map(Device::node) {
            if let Some(root) = Root::verified(&slot, verity)? {
                line(&format!("root is {}, verified", slot.display()));
                return Ok(root);
            }
        }
        Err(Error::NoRoot)
    }
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

/// The partitions, if they are all there by now.
fn find(partuuids: &[String]) -> Result<Option<Vec<Device>>, Error> {
    let mut all = Vec::new();
    for partuuid in partuuids {
        match block::with_partuuid(partuuid).as_slice() {
            [device] if device.node().exists() => all.push(device.clone()),
            // The same image on two disks of one machine: taking either would be a gamble.
            [first, second, ..] => {
                return Err(Error::Table {
                    disk: format!("{} and {}", first.name, second.name),
                    message: format!("both have the partition {partuuid}; remove one of the disks"),
                });
            }
            _ => return Ok(None),
        }
    }
    Ok(Some(all))
}

/// Waits for the partitions, with one driver after another, and no more of them than it takes: some are slow to probe.
fn wait_for(partuuids: &[String], drivers: &mut Drivers) -> Result<Vec<Device>, Error> {
    let start = Instant::now();
    while start.elapsed() < ROOT_LIMIT {
        if let Some(found) = find(partuuids)? {
            return Ok(found);
        }
        watchdog::feed();
        if drivers.load_next().is_some() {
            continue;
        }
        std::thread::sleep(ROOT_POLL);
    }
    Err(Error::NoDevice(format!("PARTUUID={}", partuuids.join(" and PARTUUID="))))
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
