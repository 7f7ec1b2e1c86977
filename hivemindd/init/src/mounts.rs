//! The kernel's file systems and settings.

use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use super::Error;
use super::console::line;

const SAFE: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// Largest `/run`: sockets, pid files and the containers' run-time bundles.
const RUN_OPTIONS: &str = "mode=0755,size=25%";

struct Mount {
    kind: &'static str,
    at: &'static str,
    flags: MsFlags,
    options: &'static str,
}

const fn row(kind: &'static str, at: &'static str, flags: MsFlags, options: &'static str) -> Mount {
    Mount { kind, at, flags, options }
}

/// What the initramfs mounts and hands on.
const EARLY: [Mount; 3] = [
    row("proc", "/proc", SAFE, ""),
    row("sysfs", "/sys", SAFE, ""),
    row("devtmpfs", "/dev", MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC), "mode=0755"),
];

/// What nothing works without. `/run` is not `noexec`: containers' bundles lie there.
const NEEDED: [Mount; 5] = [
    row("tmpfs", "/run", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), RUN_OPTIONS),
    row("tmpfs", "/tmp", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), "mode=1777,size=10%"),
    row("tmpfs", "/dev/shm", SAFE, "mode=1777,size=10%"),
    row("devpts", "/dev/pts", MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC), "mode=0620,gid=5,ptmxmode=0666"),
    row("cgroup2", "/sys/fs/cgroup", SAFE, "nsdelegate,memory_recursiveprot"),
];

/// What some machines or kernels have not.
const OPTIONAL: [Mount; 3] = [
    row("securityfs", "/sys/kernel/security", SAFE, ""),
    row("efivarfs", "/sys/firmware/efi/efivars", SAFE.union(MsFlags::MS_RDONLY), ""),
    row("bpf", "/sys/fs/bpf", SAFE, "mode=0700"),
];

/// Settings that differ from the kernel's defaults, and why.
const SYSCTLS: [(&str, &str); 11] = [
    // A machine at the edge has nobody to press its reset button.
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    // Containers must not read the kernel's log or its addresses.
    ("kernel/dmesg_restrict", "1"),
    ("kernel/kptr_restrict", "2"),
    // Redis and others fork large processes; the containers' limits are what bounds memory.
    ("vm/overcommit_memory", "1"),
    // Databases and file watchers in containers share these limits of the whole machine.
    ("vm/max_map_count", "1048576"),
    ("fs/inotify/max_user_instances", "8192"),
    ("fs/inotify/max_user_watches", "524288"),
    // The node routes between its containers and the other nodes; the agent sees to IPv4.
    ("net/ipv6/conf/all/forwarding", "1"),
    // Room for bursts of QUIC datagrams.
    ("net/core/rmem_max", "4194304"),
    ("net/core/wmem_max", "4194304"),
];

/// Mounts what the initramfs needs.
///
/// # Errors
/// When one is refused.
pub(super) fn mount_early() -> Result<(), Error> {
    EARLY.iter().try_for_each(needed)
}

/// Mounts everything the real root needs. What is mounted already stays.
///
/// # Errors
/// When one is refused.
pub(super) fn mount_all() -> Result<(), Error> {
    EARLY.iter().chain(&NEEDED).try_for_each(needed)
}

/// Mounts what is there only with certain firmware, after the modules are loaded.
pub(super) fn mount_late() {
    for mount in &OPTIONAL {
        if !Path::new(mount.at).is_dir() {
            continue;
        }
        match try_mount(mount) {
            Ok(()) | Err(Errno::EBUSY | Errno::ENODEV) => {}
            Err(error) => line(&format!("{} is not mounted: {error}", mount.at)),
        }
    }
}

fn needed(mount: &Mount) -> Result<(), Error> {
    // `/dev/pts` and `/dev/shm` are made here; the other places are folders of the image.
    if !Path::new(mount.at).exists() {
        std::fs::create_dir_all(mount.at).map_err(Error::io("creating", mount.at))?;
    }
    match try_mount(mount) {
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(error) => {
            Err(Error::Mount { what: mount.kind.to_owned(), at: mount.at.to_owned(), source: error.into() })
        }
    }
}

fn try_mount(row: &Mount) -> nix::Result<()> {
    mount(Some(row.kind), row.at, Some(row.kind), row.flags, Some(row.options))
}

/// Mounts a block device.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn mount_device(
    device: &Path,
    at: &Path,
    kind: &str,
    flags: MsFlags,
    options: &str,
) -> Result<(), Error> {
    mount(Some(device), at, Some(kind), flags, Some(options)).map_err(|error| Error::Mount {
        what: format!("{} ({kind})", device.display()),
        at: at.display().to_string(),
        source: error.into(),
    })
}

/// Writes the settings; one that this kernel lacks is said and skipped.
pub(super) fn write_sysctls() {
    for (name, value) in SYSCTLS {
        if let Err(error) = std::fs::write(Path::new("/proc/sys").join(name), value) {
            line(&format!("setting {name}: {error}"));
        }
    }
}
