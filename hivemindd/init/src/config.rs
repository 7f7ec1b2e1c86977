//! Where the machine configuration comes from, and how the join token's key leaves it.
//!
//! Sources, the first with a valid file wins:
//!
//! 1. the `HIVECONF` partition of the boot disk,
//! 2. a FAT file system with the label `HIVECONF` on any other disk (a USB stick),
//! 3. QEMU's firmware configuration (`-fw_cfg`),
//! 4. the copy that a joined machine keeps, without the token's key.
//!
//! Erasing the key must survive a power cut at any point without losing the configuration or leaving
//! the key behind. On the FAT file system that is: write the new file beside the old one, fill the
//! old one's blocks with zeros, rename the new over the old. A reader that finds zeros takes the new.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use hivemind_spec::machine::{
    FILE_NAME, FW_CFG_NAME, MAX_BYTES, MachineConfig, MachineConfigError, VOLUME_LABEL,
};
use hivemind_spec::words::chain;
use nix::mount::MsFlags;

use super::Error;
use super::block::{self, Disk};
use super::console::line;
use super::volume::with_mounted;

/// The configuration in use; readable by root only, as it may hold the token's key.
pub const MACHINE: &str = "/run/hivemind/machine.toml";

/// What a joined machine remembers.
pub const REMEMBERED: &str = "/var/lib/hivemind/machine.toml";

/// Says where [`MACHINE`] came from: a line made by [`Source`].
const SOURCE: &str = "/run/hivemind/machine.source";

/// Where the configuration partition is mounted, for moments.
const MOUNT_POINT: &str = "/run/hivemind/hiveconf";

/// The configuration's successor while the token's key is being erased. A short FAT name.
const NEW_NAME: &str = "hivemind.new";

/// The stable code of a machine without a valid configuration, beside those of
/// [`hivemind_spec::machine::ConfigCode`].
const NO_CONFIGURATION: &str = "config-missing";

/// Where a configuration came from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    /// A FAT file system on this device.
    Partition(PathBuf),
    /// QEMU's firmware configuration: read-only.
    Firmware,
    /// The machine's own copy.
    Remembered,
}

impl Source {
    fn to_line(&self) -> String {
        match self {
            Self::Partition(device) => format!("partition {}", device.display()),
            Self::Firmware => "firmware".to_owned(),
            Self::Remembered => "remembered".to_owned(),
        }
    }

    fn from_line(text: &str) -> Option<Self> {
        match text.trim().split_once(' ') {
            Some(("partition", device)) => Some(Self::Partition(device.into())),
            None if text.trim() == "firmware" => Some(Self::Firmware),
            None if text.trim() == "remembered" => Some(Self::Remembered),
            _ => None,
        }
    }

    fn read(&self) -> Result<Option<Vec<u8>>, Error> {
        match self {
            Self::Partition(device) => {
                with_mounted(device, Path::new(MOUNT_POINT), MsFlags::MS_RDONLY, |folder| {
                    read_from(folder).map_err(Error::io("reading", device))
                })
            }
            Self::Firmware => {
                let path = format!("/sys/firmware/qemu_fw_cfg/by_name/{FW_CFG_NAME}/raw");
                read_bounded(Path::new(&path)).map_err(Error::io("reading", &path))
            }
            Self::Remembered => read_bounded(Path::new(REMEMBERED)).map_err(Error::io("reading", REMEMBERED)),
        }
    }
}

/// What became of the token's key in the configuration's source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Erasure {
    /// It was there and is gone.
    Erased,
    /// It was not there.
    Absent,
    /// The source cannot be written (firmware configuration): whoever provides it must remove the key.
    ReadOnlySource,
}

/// Why the token's key is still there.
#[derive(Debug, thiserror::Error)]
pub enum EraseError {
    /// The configuration in use is missing or damaged.
    #[error("the machine configuration in use")]
    Config(#[source] MachineConfigError),
    /// A device or file failed.
    #[error(transparent)]
    Device(#[from] Error),
}

/// Finds the configuration and makes it the one in use. Every source with a fault is said.
pub(super) fn load(disk: Option<&Disk>) -> Option<MachineConfig> {
    for source in sources(disk) {
        let name = source.to_line();
        let bytes = match source.read() {
            Ok(Some(bytes)) => bytes,
            Ok(None) => continue,
            Err(error) => {
                line(&format!("configuration from {name}: {}", chain(&error)));
                continue;
            }
        };
        match MachineConfig::parse_bytes(&bytes) {
            Ok(config) => {
                if let Err(error) = put_in_use(&bytes, &source) {
                    line(&format!("configuration from {name}: {}", chain(&error)));
                    continue;
                }
                line(&format!("configuration from {name}"));
                return Some(config);
            }
            Err(error) => line(&format!("configuration from {name}: {error}")),
        }
    }
    line(&format!("no valid configuration; write one with `hivemind image configure` ({NO_CONFIGURATION})"));
    None
}

/// The configuration on a partition, if there is a valid one.
pub(super) fn peek(partition: &Path) -> Option<MachineConfig> {
    let bytes = Source::Partition(partition.to_owned()).read().ok()??;
    MachineConfig::parse_bytes(&bytes).ok()
}

/// Looks again, as long as there is none: somebody may have plugged in a stick.
pub(super) fn load_again_if_missing() {
    if !Path::new(MACHINE).exists() {
        load(block::boot_disk().ok().as_ref());
    }
}

/// Takes the join token's key out of the configuration, there where it came from, and keeps a copy
/// without it for the boots to come. To be called when the node has an identity of its own; calling
/// it again does no harm. Blocks on disks.
///
/// # Errors
/// When the key could not be erased; the configuration is whole in any case.
pub fn erase_token_key() -> Result<Erasure, EraseError> {
    let in_use = std::fs::read(MACHINE).map_err(Error::io("reading", MACHINE))?;
    let config = without_key(MachineConfig::parse_bytes(&in_use).map_err(EraseError::Config)?);
    let text = config.to_toml();
    write_atomically(Path::new(REMEMBERED), text.as_bytes()).map_err(Error::io("writing", REMEMBERED))?;
    let source = std::fs::read_to_string(SOURCE).map_err(Error::io("reading", SOURCE))?;
    let erasure = match Source::from_line(&source) {
        Some(Source::Partition(device)) => {
            with_mounted(&device, Path::new(MOUNT_POINT), MsFlags::empty(), |folder| {
                erase_in(folder).map_err(Error::io("erasing the token's key on", &device))
            })?
        }
        Some(Source::Firmware) => Erasure::ReadOnlySource,
        Some(Source::Remembered) | None => Erasure::Absent,
    };
    write_atomically(Path::new(MACHINE), text.as_bytes()).map_err(Error::io("writing", MACHINE))?;
    Ok(erasure)
}

fn without_key(mut config: MachineConfig) -> MachineConfig {
    if let Some(token) = &mut config.token {
        token.ca_key = None;
    }
    config
}

fn sources(disk: Option<&Disk>) -> Vec<Source> {
    let own = disk.and_then(|disk| disk.partition(VOLUME_LABEL)).map(block::Device::node);
    let labelled = block::all()
        .into_iter()
        .map(|device| device.node())
        .filter(|node| Some(node) != own.as_ref())
        .filter(|node| block::fat_label(node).as_deref() == Some(VOLUME_LABEL));
    let partitions = own.clone().into_iter().chain(labelled).map(Source::Partition);
    partitions.chain([Source::Firmware, Source::Remembered]).collect()
}

fn put_in_use(bytes: &[u8], source: &Source) -> Result<(), Error> {
    std::fs::create_dir_all("/run/hivemind").map_err(Error::io("creating", "/run/hivemind"))?;
    write_atomically(Path::new(SOURCE), source.to_line().as_bytes()).map_err(Error::io("writing", SOURCE))?;
    write_atomically(Path::new(MACHINE), bytes).map_err(Error::io("writing", MACHINE))
}

/// The configuration in a folder: the file, or its successor when the file was being erased.
fn read_from(folder: &Path) -> io::Result<Option<Vec<u8>>> {
    match read_bounded(&folder.join(FILE_NAME))? {
        Some(bytes) if !is_erased(&bytes) => Ok(Some(bytes)),
        _ => read_bounded(&folder.join(NEW_NAME)),
    }
}

fn is_erased(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}

/// A file's content, none when there is no such file; one byte more than allowed when it is too long,
/// which the parser then says.
fn read_bounded(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Erases the token's key from the configuration in a folder.
fn erase_in(folder: &Path) -> io::Result<Erasure> {
    let (path, new) = (folder.join(FILE_NAME), folder.join(NEW_NAME));
    let Some(bytes) = read_bounded(&path)? else { return Ok(Erasure::Absent) };
    if is_erased(&bytes) {
        // A power cut came between erasing and renaming.
        finish_rename(&new, &path, folder)?;
        return Ok(Erasure::Erased);
    }
    let config = MachineConfig::parse_bytes(&bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    if config.token.as_ref().is_none_or(|token| token.ca_key.is_none()) {
        return Ok(Erasure::Absent);
    }
    let mut file = create_private(&new)?;
    file.write_all(without_key(config).to_toml().as_bytes())?;
    file.sync_all()?;
    sync_folder(folder)?;
    // In place: opening without truncation keeps the file's blocks.
    let mut old = OpenOptions::new().write(true).open(&path)?;
    old.write_all(&vec![0; bytes.len()])?;
    old.sync_all()?;
    finish_rename(&new, &path, folder)?;
    Ok(Erasure::Erased)
}

fn finish_rename(new: &Path, path: &Path, folder: &Path) -> io::Result<()> {
    std::fs::rename(new, path)?;
    sync_folder(folder)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Replaces a file so that a reader, and the next boot, find the old or the new content whole.
fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let new = path.with_extension("new");
    let mut file = create_private(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    finish_rename(&new, path, folder)
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
