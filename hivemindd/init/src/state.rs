//! The state partition: grown to the end of the disk, made into ext4 once, checked at every boot.
//!
//! What the partition holds decides what happens:
//!
//! ```text
//! blank ------------------------------> mkfs
//! ext4 ----> e2fsck -p ---------------> mount, resize if the partition grew
//! neither -> e2fsck with the backup superblock -> ok: as ext4; damaged beyond repair: mkfs
//! ```

use std::fs::OpenOptions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use gpt::GptConfig;
use hivemind_spec::api::Wipe;
use hivemind_spec::words::chain;
use nix::mount::{MsFlags, umount};

use super::block::{Device, Disk, counts_by_project, has_ext4, is_blank, logical_block_size};
use super::console::line;
use super::{Error, mounts, reset, sys, watchdog};

/// The partition's name in the table.
pub(super) const PARTNAME: &str = "state";

const MOUNT_POINT: &str = "/var";

/// `resuid` names nobody: so the reserve of 5 % is for processes with `CAP_SYS_RESOURCE`, which are
/// PID 1, the agent and containerd, but no container, and a full disk leaves room to clean up.
const MOUNT_OPTIONS: &str = "resuid=4000000000,errors=remount-ro";

/// Longest repair of a file system; a large disk after a crash takes a minute, not more.
const FSCK_LIMIT: Duration = Duration::from_secs(600);

/// Longest making of a file system: it writes little, as its tables are made lazily.
const MKFS_LIMIT: Duration = Duration::from_secs(120);

/// Longest growing of a mounted file system.
const RESIZE_LIMIT: Duration = Duration::from_secs(120);

/// A partition is grown when at least this much follows it; the backup table itself takes 17 KiB.
const GROW_FROM: u64 = 16 * 1024 * 1024;

/// Partitions end at a multiple of this, as the image's do.
const ALIGNMENT: u64 = 1024 * 1024;

/// Folders that everything above relies on, with their modes.
const FOLDERS: [(&str, u32); 6] = [
    ("/var/lib", 0o755),
    ("/var/lib/hivemind", 0o700),
    ("/var/lib/containerd", 0o711),
    ("/var/log", 0o755),
    ("/var/log/hivemind", 0o700),
    ("/var/tmp", 0o1777),
];

/// Makes `/var` usable. Returns the size of its file system in bytes.
pub(super) fn bring_up(disk: &Disk) -> Result<u64, Error> {
    let device = disk
        .partition(PARTNAME)
        .ok_or_else(|| table_error(disk, format!("there is no partition `{PARTNAME}`")))?;
    let grown = grow(disk, device).unwrap_or_else(|error| {
        line(&format!("the state partition keeps its size: {}", chain(&error)));
        false
    });
    let node = device.node();
    let fresh = prepare_file_system(&node)?;
    mount(&node)?;
    if let Some(wipe) = reset::ordered() {
        forget(&node, wipe)?;
    }
    if grown && !fresh {
        let mut resize = Command::new("/usr/sbin/resize2fs");
        resize.arg(&node);
        if let Err(error) = run("/usr/sbin/resize2fs", resize, RESIZE_LIMIT) {
            line(&format!("the state file system keeps its size: {error}"));
        }
    }
    for (folder, mode) in FOLDERS {
        std::fs::create_dir_all(folder).map_err(Error::io("creating", folder))?;
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(folder, mode).map_err(Error::io("setting the mode of", folder))?;
    }
    let stat = nix::sys::statvfs::statvfs(MOUNT_POINT)
        .map_err(|error| Error::io("looking at", MOUNT_POINT)(error.into()))?;
    Ok(stat.blocks() * stat.fragment_size())
}

fn mount(node: &Path) -> Result<(), Error> {
    let flags = MsFlags::MS_NOATIME | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let counts = counts_by_project(node).map_err(Error::io("reading", node))?;
    let options = format!("{MOUNT_OPTIONS}{}", if counts { ",prjquota" } else { "" });
    mounts::mount_device(node, Path::new(MOUNT_POINT), "ext4", flags, &options)
}

/// Wipes what an operator ordered to.
fn forget(node: &Path, wipe: Wipe) -> Result<(), Error> {
    line(&format!("wiping {}, as ordered", wipe.name()));
    if wipe == Wipe::All {
        umount(MOUNT_POINT).map_err(|error| Error::io("unmounting", MOUNT_POINT)(error.into()))?;
        make(node)?;
        return mount(node);
    }
    if let Err(error) = reset::wipe(wipe) {
        line(&format!("not all was wiped, the rest at the next start: {error}"));
    }
    Ok(())
}

/// Makes the id that programs expect in `/etc/machine-id` (machine-id(5)), once per machine; the
/// image's file is a link to the run-time one. It says nothing about the node's identity.
pub(super) fn provide_machine_id() {
    const KEPT: &str = "/var/lib/hivemind/machine-id";
    let provide = || {
        if !Path::new(KEPT).exists() {
            let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
            std::fs::write(KEPT, uuid.replace('-', ""))?;
        }
        std::fs::copy(KEPT, "/run/machine-id")
    };
    if let Err(error) = provide() {
        line(&format!("there is no machine id: {error}"));
    }
}

/// Checks or makes the file system; whether it is new.
fn prepare_file_system(node: &Path) -> Result<bool, Error> {
    let reading = |error| Error::io("reading", node)(error);
    if has_ext4(node).map_err(reading)? {
        if let Err(error) = check(node, &["-p"]) {
            line(&format!("the state file system needs repair: {error}"));
            check(node, &["-y"])?;
        }
        return Ok(false);
    }
    if !is_blank(node).map_err(reading)? {
        line("the state partition has no ext4 superblock; trying the backup");
        if check(node, &["-y", "-b", "32768", "-B", "4096"]).is_ok() {
            return Ok(false);
        }
        line("there is none; making a new file system over what was there");
    }
    make(node)?;
    Ok(true)
}

fn check(node: &Path, options: &[&str]) -> Result<(), Error> {
    let mut fsck = Command::new("/usr/sbin/e2fsck");
    fsck.args(options).arg(node);
    match run("/usr/sbin/e2fsck", fsck, FSCK_LIMIT) {
        Ok(()) => Ok(()),
        // Bits 0 and 1: errors were corrected; the second wants a reboot only for a mounted root.
        Err(Failure::Exit(1..=3)) => {
            line("the state file system was repaired");
            Ok(())
        }
        Err(failure) => Err(Error::Program { program: "/usr/sbin/e2fsck", message: failure.to_string() }),
    }
}

fn make(node: &Path) -> Result<(), Error> {
    let mut mkfs = Command::new("/usr/sbin/mkfs.ext4");
    mkfs.args(["-F", "-q", "-L", "hivemind-state", "-m", "5"]);
    // Volumes are counted and limited by project.
    mkfs.args(["-O", "quota,project"]);
    mkfs.args(["-E", "quotatype=prjquota,lazy_itable_init=1,lazy_journal_init=1,nodiscard"]).arg(node);
    run("/usr/sbin/mkfs.ext4", mkfs, MKFS_LIMIT)
        .map_err(|failure| Error::Program { program: "/usr/sbin/mkfs.ext4", message: failure.to_string() })
}

/// How a program of the image failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("it cannot be started: {0}")]
    Start(#[from] std::io::Error),
    #[error("it ended with status {0}")]
    Exit(i32),
    #[error("it was killed")]
    Killed,
    #[error("it took longer than {0} s")]
    TooLong(u64),
}

/// Runs a program and waits for it, but not for ever.
fn run(path: &'static str, mut command: Command, limit: Duration) -> Result<(), Failure> {
    debug_assert_eq!(command.get_program(), path);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return match status.code() {
                Some(0) => Ok(()),
                Some(code) => Err(Failure::Exit(code)),
                None => Err(Failure::Killed),
            };
        }
        if start.elapsed() >= limit {
            child.kill()?;
            return Err(Failure::TooLong(limit.as_secs()));
        }
        watchdog::feed();
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Grows the partition to the end of the disk; whether there was anything to gain.
fn grow(disk: &Disk, device: &Device) -> Result<bool, Error> {
    let node = disk.node();
    let number = device.number.ok_or_else(|| table_error(disk, "the partition has no number".to_owned()))?;
    let file = OpenOptions::new().read(true).write(true).open(&node).map_err(Error::io("opening", &node))?;
    let (size, block) = sys::device_size(&file).map_err(Error::io("measuring", &node))?;
    let Some((start, length)) =
        grow_table(&file, size, block, number).map_err(|message| table_error(disk, message))?
    else {
        return Ok(false);
    };
    file.sync_all().map_err(Error::io("writing", &node))?;
    sys::resize_partition(&file, number, start, length)
        .map_err(Error::io("resizing a partition of", &node))?;
    Ok(true)
}

/// Grows the entry in the table, with the backup table moved to the end of the disk. Returns the
/// partition's start and length in bytes, or none when there is nothing to gain.
fn grow_table<D: gpt::DiskDevice>(
    device: D,
    size: u64,
    block: u64,
    number: u32,
) -> Result<Option<(u64, u64)>, String> {
    let mut table = GptConfig::new()
        .writable(true)
        .logical_block_size(logical_block_size(block))
        .open_from_device(device)
        .map_err(|error| error.to_string())?;
    let mut partitions = table.partitions().clone();
    let last_used = partitions.values().filter(|entry| entry.is_used()).map(|entry| entry.last_lba).max();
    let entry = partitions.get_mut(&number).ok_or_else(|| format!("it has no entry {number}"))?;
    if last_used != Some(entry.last_lba) {
        return Err("the state partition is not the last one".to_owned());
    }
    let end = (entry.last_lba + 1).saturating_mul(block);
    if size.saturating_sub(end) < GROW_FROM {
        return Ok(None);
    }
    let new_end = end_on(size);
    entry.last_lba = new_end / block - 1;
    let start = entry.first_lba * block;
    table.update_partitions(partitions).map_err(|error| error.to_string())?;
    table.write_inplace().map_err(|error| error.to_string())?;
    Ok(Some((start, new_end - start)))
}

/// Where the partition ends on a disk of that size, bytes: what is after it is for the backup table.
pub(super) fn end_on(size: u64) -> u64 {
    (size / ALIGNMENT).saturating_sub(1) * ALIGNMENT
}

fn table_error(disk: &Disk, message: String) -> Error {
    Error::Table { disk: disk.node().display().to_string(), message }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
