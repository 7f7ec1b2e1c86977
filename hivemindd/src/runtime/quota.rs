//! The kernel's quota by project (quotactl(2)): what a volume holds, and the most that it or a container's own layer may.
//! A folder's project is that of all that is made in it.

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use hivemind_spec::id::Digest;
use nix::libc;

/// `PRJQUOTA` of `linux/quota.h`.
const BY_PROJECT: c_int = 2;

/// `FS_XFLAG_PROJINHERIT` of `linux/fs.h`: what is made in the folder has its project.
const INHERIT: u32 = 0x200;

/// The unit of limits, bytes (`QIF_DQBLKSIZE`).
const BLOCK_BYTES: u64 = 1024;

/// `struct fsxattr` of `linux/fs.h`.
#[repr(C)]
#[derive(Default)]
pub(super) struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    copy_extent_size: u32,
    padding: [u8; 8],
}

nix::ioctl_read!(
    /// `FS_IOC_FSGETXATTR`.
    get_attributes, b'X', 31, Attributes);
nix::ioctl_write_ptr!(
    /// `FS_IOC_FSSETXATTR`.
    set_attributes, b'X', 32, Attributes);

/// Calls `quotactl_fd` for a project of the file system that `folder` is on.
fn call(folder: &Path, command: c_int, project: u32, values: &mut libc::dqblk) -> io::Result<()> {
    let folder = File::open(folder)?;
    let command = command << 8 | BY_PROJECT;
    // SAFETY: the kernel reads or writes one `dqblk` at a valid address, and takes numbers besides.
    let answer = unsafe {
        libc::syscall(libc::SYS_quotactl_fd, folder.as_raw_fd(), command, project, std::ptr::from_mut(values))
    };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn nothing() -> libc::dqblk {
    // SAFETY: `dqblk` is plain data, for which all zeros are valid.
    unsafe { std::mem::zeroed() }
}

/// Whether the file system that `folder` is on, or is to be on, counts by project.
pub(super) fn is_on(folder: &Path) -> bool {
    let Some(there) = folder.ancestors().find(|folder| folder.exists()) else { return false };
    call(there, libc::Q_GETQUOTA, 0, &mut nothing()).is_ok()
}

/// What the kernel knows of a project.
pub(super) struct Count {
    /// What it holds, bytes.
    pub(super) used_bytes: u64,
    /// The most it may hold, bytes; none: any.
    pub(super) limit_bytes: Option<u64>,
}

/// Looks at a project.
pub(super) fn look(folder: &Path, project: u32) -> io::Result<Count> {
    let mut values = nothing();
    call(folder, libc::Q_GETQUOTA, project, &mut values)?;
    let limit_bytes = values.dqb_bhardlimit.saturating_mul(BLOCK_BYTES);
    Ok(Count { used_bytes: values.dqb_curspace, limit_bytes: Some(limit_bytes).filter(|bytes| *bytes > 0) })
}

/// The most a project may hold, bytes; none: any.
pub(super) fn limit(folder: &Path, project: u32, bytes: Option<u64>) -> io::Result<()> {
    let mut values = nothing();
    let blocks = bytes.map_or(0, |bytes| bytes.div_ceil(BLOCK_BYTES));
    (values.dqb_bsoftlimit, values.dqb_bhardlimit) = (blocks, blocks);
    values.dqb_valid = libc::QIF_BLIMITS;
    call(folder, libc::Q_SETQUOTA, project, &mut values)
}

/// Counts what is made in empty folders of a container, by a project that is the container's own, and limits it to so many
/// bytes if any are given.
///
/// # Errors
/// The kernel's, and in words where the file system does not count what is to be limited.
pub(super) fn count_folders(folders: &[PathBuf], container: &str, most: Option<u64>) -> io::Result<()> {
    let project = project_of(container);
    for folder in folders {
        match (is_on(folder), most) {
            (true, Some(_)) => limit(folder, project, most)?,
            (true, None) => {}
            (false, Some(_)) => return Err(io::Error::new(io::ErrorKind::Unsupported, NOT_COUNTED)),
            (false, None) => continue,
        }
        count(folder, project)?;
    }
    Ok(())
}

/// What is in the folders of a container that are counted, bytes.
pub(super) fn held_by(folder: &Path, container: &str) -> io::Result<u64> {
    Ok(look(folder, project_of(container))?.used_bytes)
}

/// Lifts the limit of a container that is gone, so that the kernel remembers nothing of it.
pub(super) fn lift(folder: &Path, container: &str) -> io::Result<()> {
    limit(folder, project_of(container), None)
}

/// A container's project, in the upper half of all.
fn project_of(container: &str) -> u32 {
    let [a, b, c, d, ..] = Digest::of(container.as_bytes()).0;
    u32::from_be_bytes([a, b, c, d]) | 1 << 31
}

/// Why nothing is limited on a disk that was formatted by an older release.
pub(super) const NOT_COUNTED: &str = "this machine's disk was formatted without quotas, and nothing on it can be \
                                      limited; `hivemind nodes reset --wipe all` formats it anew";

/// To which project is counted what is made in a folder.
pub(super) fn counted_to(folder: &Path) -> io::Result<u32> {
    Ok(attributes(&File::open(folder)?)?.project)
}

fn attributes(folder: &File) -> io::Result<Attributes> {
    let mut attributes = Attributes::default();
    // SAFETY: the kernel writes one `fsxattr` to a valid address.
    unsafe { get_attributes(folder.as_raw_fd(), &raw mut attributes) }?;
    Ok(attributes)
}

/// Counts what is made in an empty folder to a project.
pub(super) fn count(folder: &Path, project: u32) -> io::Result<()> {
    let folder = File::open(folder)?;
    let mut attributes = attributes(&folder)?;
    attributes.flags |= INHERIT;
    attributes.project = project;
    // SAFETY: the kernel reads one `fsxattr` at a valid address.
    unsafe { set_attributes(folder.as_raw_fd(), &raw const attributes) }?;
    Ok(())
}
