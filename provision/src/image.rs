//! Writes a machine configuration into the `HIVECONF` partition of a disk image or a disk.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use fscommon::StreamSlice;
use gpt::GptConfig;
use gpt::disk::LogicalBlockSize;
use hivemind_spec::machine::{FILE_NAME, MAX_BYTES, MachineConfig, VOLUME_LABEL};

use crate::failure::{Failure, Result};

/// What is on the partition now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Present {
    /// No configuration.
    Nothing,
    /// A configuration that can be read.
    Configuration(Box<MachineConfig>),
    /// Something that cannot be read as one.
    Unreadable,
}

/// The configuration partition of a disk.
pub struct ConfigPartition {
    file: File,
    name: String,
    start: u64,
    end: u64,
}

type FileSystem = fatfs::FileSystem<StreamSlice<File>>;

impl ConfigPartition {
    /// Finds the partition on an image file or a block device.
    ///
    /// # Errors
    /// Says why the target is not a Hivemind disk.
    pub fn open(target: &Path) -> Result<Self> {
        let name = target.display().to_string();
        refuse_compressed(target)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(target)
            .map_err(|e| Failure::file("open", target, &e))?;
        let (start, length) = find(&file, &name)?;
        Ok(Self { file, name, start, end: start + length })
    }

    /// What is on it now.
    ///
    /// # Errors
    /// When its file system cannot be read.
    pub fn present(&self) -> Result<Present> {
        let fs = self.file_system()?;
        let root = fs.root_dir();
        let names: Vec<String> = root.iter().flatten().map(|entry| entry.file_name()).collect();
        let Some(name) = names.iter().find(|name| name.eq_ignore_ascii_case(FILE_NAME)) else {
            return Ok(Present::Nothing);
        };
        let mut bytes = Vec::new();
        let file = root.open_file(name).map_err(|e| self.io("read", &e))?;
        file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(|e| self.io("read", &e))?;
        Ok(match MachineConfig::parse_bytes(&bytes) {
            Ok(config) => Present::Configuration(Box::new(config)),
            Err(_) => Present::Unreadable,
        })
    }

    /// Writes the configuration, replacing what is there, and reads it back.
    ///
    /// # Errors
    /// When it cannot be written or reads back differently.
    pub fn write(&self, text: &str) -> Result<()> {
        let fs = self.file_system()?;
        {
            let mut file = fs.root_dir().create_file(FILE_NAME).map_err(|e| self.io("write", &e))?;
            file.truncate().map_err(|e| self.io("write", &e))?;
            file.write_all(text.as_bytes()).map_err(|e| self.io("write", &e))?;
            file.flush().map_err(|e| self.io("write", &e))?;
        }
        fs.unmount().map_err(|e| self.io("write", &e))?;
        self.file.sync_all().map_err(|e| self.io("write", &e))?;
        let mut back = String::new();
        let fs = self.file_system()?;
        let mut file = fs.root_dir().open_file(FILE_NAME).map_err(|e| self.io("read back", &e))?;
        file.read_to_string(&mut back).map_err(|e| self.io("read back", &e))?;
        if back == text {
            Ok(())
        } else {
            Err(Failure::local(
                "bad-disk",
                format!("{} gives back something else than was written", self.name),
            )
            .advice("the medium is probably worn out; use another"))
        }
    }

    fn file_system(&self) -> Result<FileSystem> {
        let file = self.file.try_clone().map_err(|e| self.io("open", &e))?;
        let slice = StreamSlice::new(file, self.start, self.end).map_err(|e| self.io("read", &e))?;
        fatfs::FileSystem::new(slice, fatfs::FsOptions::new()).map_err(|e| {
            Failure::local(
                "bad-disk",
                format!("{}: its {VOLUME_LABEL} partition holds no FAT file system: {e}", self.name),
            )
            .advice("write the Hivemind image onto it again")
        })
    }

    fn io(&self, doing: &str, error: &std::io::Error) -> Failure {
        Failure::local("bad-disk", format!("cannot {doing} the configuration on {}: {error}", self.name))
    }
}

fn refuse_compressed(target: &Path) -> Result<()> {
    let extension = target.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    if ["zst", "gz", "xz"].contains(&extension.as_str()) {
        return Err(Failure::input("compressed", format!("{} is compressed", target.display()))
            .advice("unpack it first, for example with `zstd -d`"));
    }
    Ok(())
}

/// Start and length of the partition in bytes.
fn find(file: &File, name: &str) -> Result<(u64, u64)> {
    let mut names = Vec::new();
    let mut tables = 0;
    for size in [LogicalBlockSize::Lb512, LogicalBlockSize::Lb4096] {
        let mut device = file.try_clone().map_err(|e| Failure::local("bad-disk", format!("{name}: {e}")))?;
        let rewound = device.seek(SeekFrom::Start(0));
        rewound.map_err(|e| Failure::local("bad-disk", format!("{name}: {e}")))?;
        let config = GptConfig::new().writable(false).logical_block_size(size);
        let Ok(disk) = config.open_from_device(device) else { continue };
        tables += 1;
        for partition in disk.partitions().values() {
            if partition.name == VOLUME_LABEL {
                let place = partition.bytes_start(size).and_then(|s| Ok((s, partition.bytes_len(size)?)));
                return place.map_err(|e| Failure::local("bad-disk", format!("{name}: {e}")));
            }
            names.push(partition.name.clone());
        }
    }
    let advice = "use an image made by image/build, or a disk that one was written to";
    if tables == 0 {
        return Err(
            Failure::input("no-partition-table", format!("{name} has no GPT partition table")).advice(advice)
        );
    }
    let found = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    Err(Failure::input(
        "no-config-partition",
        format!("{name} has no partition {VOLUME_LABEL:?}; it has: {found}"),
    )
    .advice(advice))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A disk image with the given partitions of 4 MiB each; the one called `HIVECONF` has a FAT.
    pub(crate) fn disk(path: &Path, partitions: &[&str]) {
        const BYTES: u64 = 32 << 20;
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).unwrap();
        file.set_len(BYTES).unwrap();
        let mbr = gpt::mbr::ProtectiveMBR::with_lb_size((BYTES / 512 - 1) as u32);
        mbr.overwrite_lba0(&mut file).unwrap();
        let mut disk = GptConfig::new()
            .writable(true)
            .logical_block_size(LogicalBlockSize::Lb512)
            .create_from_device(file.try_clone().unwrap(), None)
            .unwrap();
        for name in partitions {
            disk.add_partition(name, 4 << 20, gpt::partition_types::BASIC, 0, None).unwrap();
        }
        let places: Vec<_> = disk
            .partitions()
            .values()
            .filter(|p| p.name == VOLUME_LABEL)
            .map(|p| (p.bytes_start(LogicalBlockSize::Lb512).unwrap(), 4 << 20))
            .collect();
        disk.write().unwrap();
        for (start, length) in places {
            let mut slice = StreamSlice::new(file.try_clone().unwrap(), start, start + length).unwrap();
            let options = fatfs::FormatVolumeOptions::new().volume_label(*b"HIVECONF   ");
            fatfs::format_volume(&mut slice, options).unwrap();
        }
    }

    #[test]
    fn a_configuration_is_written_over_a_longer_one_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        disk(&path, &["esp", VOLUME_LABEL, "state"]);
        let partition = ConfigPartition::open(&path).unwrap();
        assert_eq!(partition.present().unwrap(), Present::Nothing);
        partition.write(&"# long\n".repeat(1000)).unwrap();
        assert_eq!(partition.present().unwrap(), Present::Unreadable);
        let (bundle, _) = crate::bundle::Bundle::create(&dir.path().join("lab"), "lab", None).unwrap();
        let config = bundle.machine_config();
        partition.write(&config.to_toml()).unwrap();
        let again = ConfigPartition::open(&path).unwrap();
        assert_eq!(again.present().unwrap(), Present::Configuration(Box::new(config)));
    }

    #[test]
    fn writing_touches_nothing_outside_the_partition() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        disk(&path, &["esp", VOLUME_LABEL, "state"]);
        let before = std::fs::read(&path).unwrap();
        let partition = ConfigPartition::open(&path).unwrap();
        partition.write("x = 1\n").unwrap();
        let after = std::fs::read(&path).unwrap();
        let (start, end) = (partition.start as usize, partition.end as usize);
        assert!(before[..start] == after[..start] && before[end..] == after[end..]);
        assert!(before[start..end] != after[start..end]);
    }

    #[test]
    fn a_target_that_is_no_hivemind_disk_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("plain"), vec![0; 1 << 20]).unwrap();
        std::fs::write(path("empty"), b"").unwrap();
        disk(&path("other.img"), &["esp", "root"]);
        let code = |name: &str| match ConfigPartition::open(&path(name)) {
            Ok(_) => panic!("{name} was taken"),
            Err(failure) => failure,
        };
        assert_eq!(code("plain").code, "no-partition-table");
        assert_eq!(code("empty").code, "no-partition-table");
        assert_eq!(code("missing").code, "file");
        assert_eq!(code("disk.img.zst").code, "compressed");
        let other = code("other.img");
        assert_eq!(other.code, "no-config-partition");
        assert!(other.detail.contains("esp, root"), "{}", other.detail);
    }
}
