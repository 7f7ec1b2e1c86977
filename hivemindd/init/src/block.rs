//! Block devices as the kernel shows them in `/sys`.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use gpt::GptConfig;
use gpt::disk::LogicalBlockSize;

use super::Error;

pub(super) const SYS_BLOCK: &str = "/sys/class/block";

/// What the kernel says about a disk or a partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// The kernel's name, `vda3`.
    pub name: String,
    /// Whether it is a partition of a disk.
    pub is_partition: bool,
    /// The partition's number, from 1.
    pub number: Option<u32>,
    /// The name in the partition table.
    pub partname: Option<String>,
    /// The GUID in the partition table, lower case.
    pub partuuid: Option<String>,
}

impl Device {
    /// The device node.
    pub fn node(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    /// Whether it is a partition of that disk.
    fn is_below(&self, disk: &str) -> bool {
        Path::new(SYS_BLOCK).join(disk).join(&self.name).exists()
    }

    /// Reads a `uevent` file.
    fn parse(uevent: &str) -> Self {
        let mut device = Self::default();
        for line in uevent.lines() {
            match line.split_once('=') {
                Some(("DEVNAME", name)) => name.clone_into(&mut device.name),
                Some(("DEVTYPE", kind)) => device.is_partition = kind == "partition",
                Some(("PARTN", number)) => device.number = number.parse().ok(),
                Some(("PARTNAME", name)) => device.partname = Some(name.to_owned()),
                Some(("PARTUUID", uuid)) => device.partuuid = Some(uuid.to_ascii_lowercase()),
                _ => {}
            }
        }
        device
    }
}

/// The disk this system was started from, and its partitions.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The kernel's name, `vda`.
    pub name: String,
    /// The partitions.
    pub partitions: Vec<Device>,
}

impl Disk {
    /// The disk's device node.
    pub fn node(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    /// The partition with that name in the table, upper or lower case.
    pub fn partition(&self, name: &str) -> Option<&Device> {
        let same = |device: &&Device| {
            device.partname.as_deref().is_some_and(|partname| partname.eq_ignore_ascii_case(name))
        };
        self.partitions.iter().find(same)
    }
}

/// The partitions with that GUID in their disk's table. Kernels before 6.15 do not tell it in the
/// `uevent`, so the tables are read.
pub(super) fn with_partuuid(partuuid: &str) -> Vec<Device> {
    let (partitions, disks): (Vec<_>, Vec<_>) = all().into_iter().partition(|device| device.is_partition);
    let has_it = |device: &Device| device.partuuid.as_deref() == Some(partuuid);
    let mut found: Vec<Device> = partitions.iter().filter(|device| has_it(device)).cloned().collect();
    for disk in disks {
        let known = partitions.iter().any(|device| device.partuuid.is_some() && device.is_below(&disk.name));
        let below: Vec<&Device> = partitions.iter().filter(|device| device.is_below(&disk.name)).collect();
        if known || below.is_empty() {
            continue;
        }
        let number = number_of(&disk.node(), partuuid);
        found.extend(below.into_iter().filter(|device| number.is_some() && device.number == number).cloned());
    }
    found
}

/// The number of the partition with that GUID in a disk's GPT; none when it has neither.
fn number_of(disk: &Path, partuuid: &str) -> Option<u32> {
    let mut table = None;
    for size in [LogicalBlockSize::Lb512, LogicalBlockSize::Lb4096] {
        table = table.or_else(|| GptConfig::new().logical_block_size(size).open(disk).ok());
    }
    let same = |entry: &gpt::partition::Partition| entry.part_guid.to_string().eq_ignore_ascii_case(partuuid);
    table?.partitions().iter().find(|(_, entry)| entry.is_used() && same(entry)).map(|(&number, _)| number)
}

/// The unit of a partition table on a disk with blocks of so many bytes.
pub(super) fn logical_block_size(bytes: u64) -> LogicalBlockSize {
    if bytes == 4096 { LogicalBlockSize::Lb4096 } else { LogicalBlockSize::Lb512 }
}

/// All disks and partitions there are now.
pub fn all() -> Vec<Device> {
    let Ok(entries) = std::fs::read_dir(SYS_BLOCK) else { return Vec::new() };
    let mut devices: Vec<Device> = entries
        .flatten()
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("uevent")).ok())
        .map(|uevent| Device::parse(&uevent))
        .filter(|device| !device.name.is_empty())
        .collect();
    devices.sort_by(|a, b| a.name.cmp(&b.name));
    devices
}

/// The disk the root file system lies on.
///
/// # Errors
/// When the root is not on a disk, or `/sys` does not know it.
pub fn boot_disk() -> Result<Disk, Error> {
    disk_at(&root_device()?)
}

/// The kernel's name of the partition that the root file system lies on.
///
/// # Errors
/// When the root is not on a disk, or `/sys` does not know it.
pub(super) fn root_partition() -> Result<String, Error> {
    Ok(root_device()?.file_name().unwrap_or_default().to_string_lossy().into_owned())
}

/// The folder in `/sys` of the partition that the root file system lies on.
fn root_device() -> Result<PathBuf, Error> {
    let dev = std::fs::metadata("/").map_err(Error::io("looking at", "/"))?.dev();
    let (major, minor) = (nix::sys::stat::major(dev), nix::sys::stat::minor(dev));
    let mut sys = resolve(&PathBuf::from(format!("/sys/dev/block/{major}:{minor}")))?;
    // A verified root is a mapping; the partition is below it.
    if let Some(below) = std::fs::read_dir(sys.join("slaves")).ok().and_then(|mut list| list.next()) {
        sys = resolve(&below.map_err(Error::io("reading", &sys))?.path())?;
    }
    Ok(sys)
}

/// The disk a partition is on.
///
/// # Errors
/// When `/sys` does not know it.
pub(super) fn disk_of(partition: &Device) -> Result<Disk, Error> {
    disk_at(&resolve(&Path::new(SYS_BLOCK).join(&partition.name))?)
}

/// The disk whose folder in `/sys` this is, or that of one of its partitions.
fn disk_at(sys: &Path) -> Result<Disk, Error> {
    let disk = sys.parent().filter(|_| sys.join("partition").exists()).unwrap_or(sys);
    let name = disk.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let partitions = partitions_of(disk)?;
    Ok(Disk { name, partitions })
}

fn resolve(path: &Path) -> Result<PathBuf, Error> {
    std::fs::canonicalize(path).map_err(Error::io("looking at", path))
}

/// The partitions of a disk, by its folder in `/sys`.
fn partitions_of(disk: &Path) -> Result<Vec<Device>, Error> {
    let entries = std::fs::read_dir(disk).map_err(Error::io("reading", disk))?;
    let mut partitions: Vec<Device> = entries
        .flatten()
        .filter(|entry| entry.path().join("partition").exists())
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("uevent")).ok())
        .map(|uevent| Device::parse(&uevent))
        .collect();
    partitions.sort_by_key(|device| device.number);
    Ok(partitions)
}

/// The volume label of a FAT file system, from its boot sector; none when it is another one.
pub fn fat_label(device: &Path) -> Option<String> {
    let mut sector = [0; 512];
    std::fs::File::open(device).ok()?.read_exact(&mut sector).ok()?;
    parse_fat_label(&sector)
}

fn parse_fat_label(sector: &[u8; 512]) -> Option<String> {
    if sector[510..] != [0x55, 0xaa] {
        return None;
    }
    // Extended boot records of FAT12/16 and FAT32 (Microsoft FAT specification, sections 3.2 and 3.3).
    [(54, 43), (82, 71)]
        .into_iter()
        .find(|&(kind, _)| sector[kind..kind + 3] == *b"FAT")
        .map(|(_, label)| String::from_utf8_lossy(&sector[label..label + 11]).trim_end().to_owned())
}

/// Whether the device holds ext2, 3 or 4, by the magic number of the superblock.
///
/// # Errors
/// When the device cannot be read.
pub(super) fn has_ext4(device: &Path) -> std::io::Result<bool> {
    /// Offset of `s_magic`: the superblock is at 1024, the field 56 bytes in.
    const MAGIC_AT: u64 = 1024 + 56;
    let mut file = std::fs::File::open(device)?;
    file.seek(SeekFrom::Start(MAGIC_AT))?;
    let mut magic = [0; 2];
    file.read_exact(&mut magic)?;
    Ok(u16::from_le_bytes(magic) == 0xef53)
}

/// Whether an ext4 file system counts what projects hold: one that an older release made does not.
///
/// # Errors
/// When the device cannot be read.
pub(super) fn counts_by_project(device: &Path) -> std::io::Result<bool> {
    /// Offset of `s_feature_ro_compat`.
    const FEATURES_AT: u64 = 1024 + 100;
    /// `EXT4_FEATURE_RO_COMPAT_QUOTA` and `EXT4_FEATURE_RO_COMPAT_PROJECT`.
    const WANTED: u32 = 0x100 | 0x2000;
    let mut file = std::fs::File::open(device)?;
    file.seek(SeekFrom::Start(FEATURES_AT))?;
    let mut features = [0; 4];
    file.read_exact(&mut features)?;
    Ok(u32::from_le_bytes(features) & WANTED == WANTED)
}

/// Whether the device's beginning was never written, which is how the image leaves it.
///
/// # Errors
/// When the device cannot be read.
pub(super) fn is_blank(device: &Path) -> std::io::Result<bool> {
    let mut start = vec![0; 64 * 1024];
    std::fs::File::open(device)?.read_exact(&mut start)?;
    Ok(start.iter().all(|&byte| byte == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_s_uevent_gives_its_place_in_the_table() {
        let text = "MAJOR=254\nMINOR=5\nDEVNAME=vda5\nDEVTYPE=partition\nDISKSEQ=1\nPARTN=5\n\
                    PARTNAME=state\nPARTUUID=B1F2C7DE-5A0E-4F0B-9D53-6869766D0004\n";
        let device = Device::parse(text);
        assert_eq!(device.node(), Path::new("/dev/vda5"));
        assert!(device.is_partition);
        assert_eq!(device.number, Some(5));
        assert_eq!(device.partname.as_deref(), Some("state"));
        assert_eq!(device.partuuid.as_deref(), Some("b1f2c7de-5a0e-4f0b-9d53-6869766d0004"));
        assert_eq!(Device::parse("garbage\n=\n"), Device::default());
    }

    #[test]
    fn partitions_are_found_by_name_in_any_case() {
        let partition = Device { partname: Some("HIVECONF".into()), ..Device::default() };
        let disk = Disk { name: "vda".into(), partitions: vec![Device::default(), partition.clone()] };
        assert_eq!(disk.partition("hiveconf"), Some(&partition));
        assert_eq!(disk.partition("state"), None);
    }

    #[test]
    fn a_file_system_counts_by_project_when_both_of_its_features_are_there() {
        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("device");
        for (features, counts) in
            [(0x0000_0000_u32, false), (0x100, false), (0x2000, false), (0x2100 | 0x400, true)]
        {
            let mut bytes = vec![0; 2048];
            bytes[1024 + 100..1024 + 104].copy_from_slice(&features.to_le_bytes());
            std::fs::write(&device, &bytes).unwrap();
            assert_eq!(counts_by_project(&device).unwrap(), counts, "{features:x}");
        }
    }

    #[test]
    fn fat_labels_are_read_from_both_kinds_of_boot_sector() {
        for (kind, label, text) in [(54, 43, b"FAT16   "), (82, 71, b"FAT32   ")] {
            let mut sector = [0; 512];
            sector[kind..kind + 8].copy_from_slice(text);
            sector[label..label + 11].copy_from_slice(b"HIVECONF   ");
            assert_eq!(parse_fat_label(&sector), None, "no signature");
            sector[510..].copy_from_slice(&[0x55, 0xaa]);
            assert_eq!(parse_fat_label(&sector).as_deref(), Some("HIVECONF"));
        }
    }
}
