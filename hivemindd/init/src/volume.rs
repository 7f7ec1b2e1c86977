//! FAT file systems of others: the configuration, and sticks.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, umount2};

use super::{Error, mounts};

/// Mounts one where only root can look, for as long as `act` takes. What `act` wrote is on it when this returns.
///
/// # Errors
/// When it cannot be mounted or unmounted, and those of `act`.
pub fn with_mounted<T, E: From<Error>>(
    device: &Path,
    point: &Path,
    flags: MsFlags,
    act: impl FnOnce(&Path) -> Result<T, E>,
) -> Result<T, E> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(point)
        .map_err(Error::io("creating", point))?;
    let flags = flags | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mounts::mount_device(device, point, "vfat", flags, "umask=077")?;
    let result = act(point);
    umount2(point, MntFlags::empty()).map_err(|error| Error::io("unmounting", device)(error.into()))?;
    result
}
