//! The root file system: squashfs in two layers.
//!
//! The base holds what changes with the package lock; compressing it takes most of a build. What changes with every
//! commit, the daemon, lies in `/opt/hivemind` and is appended to a copy of the base, which takes a few seconds.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::debian::{Parts, copy_file, list};
use crate::process::run;
use crate::programs::Daemon;

/// Compressed in blocks of this size. Larger ones save 7 % but make every page fault decompress more.
const BLOCK: &str = "128K";

/// Folders that have nothing in the image: mount points.
const EMPTY_FOLDERS: [&str; 8] = ["dev", "mnt", "proc", "root", "run", "sys", "tmp", "var"];

/// Link to target. Debian's merged `/usr`, names that programs expect, and what is only known at run time.
const LINKS: [(&str, &str); 11] = [
    ("bin", "usr/bin"),
    ("lib", "usr/lib"),
    ("lib64", "usr/lib64"),
    ("sbin", "usr/sbin"),
    ("etc/machine-id", "/run/machine-id"),
    ("etc/mtab", "/proc/self/mounts"),
    ("etc/os-release", "../opt/hivemind/os-release"),
    ("etc/resolv.conf", "/run/hivemind/resolv.conf"),
    ("usr/bin/hivemindd", "../../opt/hivemind/bin/hivemindd"),
    // The shim looks for its OCI runtime under this name.
    ("usr/bin/runc", "crun"),
    ("usr/lib/os-release", "../../opt/hivemind/os-release"),
];

/// Small files that Debian makes at installation.
const FILES: [(&str, &str); 4] = [
    ("etc/group", "root:x:0:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
    ("etc/passwd", "root:x:0:0:root:/root:/usr/sbin/nologin\n"),
];

/// Files of the repository that go into the image as they are.
pub struct Sources<'a> {
    /// `rootfs/containerd.toml`.
    pub containerd: &'a str,
    /// `rootfs/packages.lock`: says on every machine what it is made of.
    pub lock: &'a str,
}

/// Makes `base.squashfs` in `out`.
///
/// # Errors
/// When a file cannot be copied or mksquashfs fails.
pub fn base(
    parts: &Parts,
    shim: &Path,
    sources: &Sources<'_>,
    as_of: u64,
    work: &Path,
    out: &Path,
) -> Result<()> {
    let tree = work.join("tree");
    for path in list(&parts.root())? {
        copy_file(&parts.root().join(&path), &tree.join(&path))?;
    }
    copy_file(shim, &tree.join("usr/bin/containerd-shim-runc-v2"))?;
    for folder in EMPTY_FOLDERS {
        fs::create_dir_all(tree.join(folder))?;
    }
    fs::create_dir_all(tree.join("etc/containerd"))?;
    fs::write(tree.join("etc/containerd/config.toml"), sources.containerd)?;
    fs::write(tree.join("usr/lib/hivemind/packages.lock"), sources.lock)?;
    for (path, content) in FILES {
        fs::write(tree.join(path), content)?;
    }
    for (link, target) in LINKS {
        symlink(target, tree.join(link)).with_context(|| format!("making the link /{link}"))?;
    }
    squash(&tree, &out.join("base.squashfs"), as_of, &["-noappend"])
}

/// Copies the base and appends the daemon: `root.squashfs` in `out`.
///
/// # Errors
/// When a file cannot be copied or mksquashfs fails.
pub fn with_daemon(
    base: &Path,
    daemon: &Daemon,
    os_release: &str,
    as_of: u64,
    work: &Path,
    out: &Path,
) -> Result<()> {
    let tree = work.join("tree");
    let home = tree.join("opt/hivemind");
    let agent = home.join("bin/hivemindd");
    // For containers that ask for an init process; the machine's own is in the initramfs.
    let init = home.join("bin/hivemind-init");
    for (from, to) in [(&daemon.agent, &agent), (&daemon.init, &init)] {
        copy_file(from, to)?;
        // Whatever it was copied from: results are kept by content, and modes are none.
        fs::set_permissions(to, fs::Permissions::from_mode(0o755))?;
    }
    fs::write(home.join("os-release"), os_release)?;
    let root = out.join("root.squashfs");
    copy_file(base, &root)?;
    // PID 1's program first: an update that changes the agent alone need not move it again.
    let order = work.join("order");
    fs::write(&order, format!("{} 1\n", init.display()))?;
    squash(&tree, &root, as_of, &["-no-recovery", "-sort", &order.to_string_lossy()])
}

/// Squashes with every owner, time and attribute fixed. When appending, block size and compressor are the existing ones.
fn squash(tree: &Path, to: &Path, as_of: u64, mode: &[&str]) -> Result<()> {
    open_to_all(tree)?;
    let time = as_of.to_string();
    run(Command::new("mksquashfs")
        // It refuses to run with both this and the options that say the same.
        .env_remove("SOURCE_DATE_EPOCH")
        .arg(tree)
        .arg(to)
        .args(mode)
        .args(["-comp", "zstd", "-Xcompression-level", "19", "-b", BLOCK])
        .args(["-all-root", "-no-xattrs", "-no-progress", "-quiet"])
        .args(["-all-time", &time, "-mkfs-time", &time]))?;
    Ok(())
}

/// Folders are made with the caller's umask; in the image all are readable.
fn open_to_all(dir: &Path) -> Result<()> {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            open_to_all(&entry.path())?;
        } else if kind.is_file() {
            let executable = entry.metadata()?.permissions().mode() & 0o111 != 0;
            let mode = if executable { 0o755 } else { 0o644 };
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(mode))?;
        }
    }
    Ok(())
}
