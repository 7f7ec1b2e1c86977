//! The disk image: partition table, FAT volumes and root slot, written into a sparse file without loop devices.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use gpt::partition_types::{OperatingSystem, Type};

use crate::layout::{self, BLOCK_BYTES, PARTITIONS, Role};
use crate::process::run;

/// Serial number of the EFI system partition's FAT volume. Fixed, because images are reproducible.
const ESP_SERIAL: &str = "48490001";
/// The same for the configuration volume.
const CONFIG_SERIAL: &str = "48490002";

/// Options that make a FAT32 volume. It needs at least 65525 clusters: with 4 blocks each, the ESP has twice as many.
const ESP_FORMAT: [&str; 5] = ["-F", "-c", "4", "-v", "ESP"];
/// Options that make a FAT16 volume: with one block to a cluster, 16 MiB are just right.
const CONFIG_FORMAT: [&str; 4] = ["-c", "1", "-v", "HIVECONF"];

/// What the operator finds on the configuration partition.
const CONFIG_README: &str = "Hivemind reads its machine configuration from this volume.\r\n\r\n\
    Write it with:  hivemind image configure\r\n\r\n\
    A machine without a configuration starts, joins no cluster and runs nothing.\r\n";

/// A file on a FAT volume: path with `/`, and content.
pub type FatFile<'a> = (&'a str, &'a [u8]);

/// Writes the whole image to `path`, replacing what is there.
///
/// # Errors
/// When the root does not fit its slot, or the file cannot be written.
pub fn write(path: &Path, root: &Path, esp: &[FatFile<'_>], as_of: u64) -> Result<()> {
    let context = || format!("writing {}", path.display());
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .with_context(context)?;
    file.set_len(layout::image_bytes()).with_context(context)?;
    partition_table(&file).context("writing the partition table")?;
    root_slot(&file, root)?;

    let esp_volume = FatVolume { image: path, role: Role::Esp, as_of };
    esp_volume.make(ESP_SERIAL, &ESP_FORMAT, esp).context("writing the EFI system partition")?;
    let readme = [("README.txt", CONFIG_README.as_bytes())];
    let config_volume = FatVolume { image: path, role: Role::Config, as_of };
    config_volume
        .make(CONFIG_SERIAL, &CONFIG_FORMAT, &readme)
        .context("writing the configuration partition")?;
    file.sync_all().with_context(context)
}

fn partition_table(file: &File) -> Result<()> {
    let mut device = file;
    let blocks = u32::try_from(layout::image_bytes() / BLOCK_BYTES - 1).unwrap_or(u32::MAX);
    gpt::mbr::ProtectiveMBR::with_lb_size(blocks).overwrite_lba0(&mut device)?;
    let mut table = gpt::GptConfig::new()
        .writable(true)
        .logical_block_size(gpt::disk::LogicalBlockSize::Lb512)
        .create_from_device(file, Some(layout::DISK_GUID))?;
    let rows = PARTITIONS.iter().zip(1..).map(|(row, number)| {
        let first_lba = layout::offset(row.role) / BLOCK_BYTES;
        let partition = gpt::partition::Partition {
            part_type_guid: Type { guid: row.type_guid, os: OperatingSystem::None },
            part_guid: row.guid,
            first_lba,
            last_lba: first_lba + row.bytes / BLOCK_BYTES - 1,
            flags: 0,
            name: row.name.to_owned(),
        };
        (number, partition)
    });
    table.update_partitions(rows.collect())?;
    table.write()?;
    Ok(())
}

fn root_slot(file: &File, root: &Path) -> Result<()> {
    let mut source = File::open(root).with_context(|| format!("opening {}", root.display()))?;
    let size = source.metadata()?.len();
    let slot = layout::ROOT_SLOT_BYTES;
    ensure!(
        size * 4 <= slot,
        "the root file system ({size} bytes) must leave a slot of {slot} bytes three quarters free"
    );
    let mut target = file;
    target.seek(SeekFrom::Start(layout::offset(Role::RootA)))?;
    io::copy(&mut source, &mut target).context("writing the root")?;
    Ok(())
}

/// A FAT volume inside the image, written by mtools, which need neither a loop device nor a copy.
struct FatVolume<'a> {
    image: &'a Path,
    role: Role,
    as_of: u64,
}

impl FatVolume<'_> {
    fn make(&self, serial: &str, format: &[&str], files: &[FatFile<'_>]) -> Result<()> {
        let row = layout::partition(self.role);
        let start = (layout::offset(self.role) / BLOCK_BYTES).to_string();
        let blocks = (row.bytes / BLOCK_BYTES).to_string();
        // Heads and sectors are a fiction that the format still asks for; these are what everybody writes.
        let geometry = ["-T", &blocks, "-h", "64", "-s", "32", "-H", &start, "-N", serial];
        run(self.tool("mformat").args(geometry).args(format).arg("::"))?;
        let mut source = self.image.as_os_str().to_owned();
        source.push(".file");
        for (path, content) in files {
            for (index, _) in path.match_indices('/') {
                // Fails when it is there already; when it is missing for another reason, the copy says so.
                let _ = run(self.tool("mmd").args(["-D", "s"]).arg(format!("::/{}", &path[..index])));
            }
            std::fs::write(&source, content)?;
            let copied = run(self.tool("mcopy").arg(&source).arg(format!("::/{path}")));
            std::fs::remove_file(&source)?;
            copied?;
        }
        Ok(())
    }

    fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command
            .env("SOURCE_DATE_EPOCH", self.as_of.to_string())
            .env("TZ", "UTC")
            .env_remove("MTOOLSRC")
            .arg("-i")
            .arg(format!("{}@@{}", self.image.display(), layout::offset(self.role)));
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(dir: &Path, name: &str) -> std::path::PathBuf {
        let root = dir.join("root.squashfs");
        std::fs::write(&root, b"hsqs and so on").unwrap();
        let image = dir.join(name);
        write(
            &image,
            &root,
            &[("EFI/BOOT/BOOTX64.EFI", b"boot"), ("EFI/Linux/a.efi", b"linux")],
            1_700_000_000,
        )
        .unwrap();
        image
    }

    #[test]
    fn the_written_table_reads_back_as_the_layout() {
        let dir = tempfile::tempdir().unwrap();
        let image = sample(dir.path(), "a.img");
        let disk = gpt::GptConfig::new().open(&image).unwrap();
        assert_eq!(*disk.guid(), layout::DISK_GUID);
        assert_eq!(disk.partitions().len(), PARTITIONS.len());
        for (found, row) in disk.partitions().values().zip(&PARTITIONS) {
            assert_eq!((found.name.as_str(), found.part_guid), (row.name, row.guid));
            assert_eq!(found.part_type_guid.guid, row.type_guid);
            assert_eq!(found.first_lba * BLOCK_BYTES, layout::offset(row.role));
            assert_eq!((found.last_lba - found.first_lba + 1) * BLOCK_BYTES, row.bytes);
        }
    }

    #[test]
    fn partition_tools_of_others_find_no_fault() {
        let dir = tempfile::tempdir().unwrap();
        let image = sample(dir.path(), "a.img");
        let output = Command::new("/usr/sbin/sfdisk").arg("--verify").arg(&image).output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success() && said.contains("No errors detected"), "{said}");
    }

    #[test]
    fn the_fat_volumes_hold_their_files_and_pass_fsck() {
        let dir = tempfile::tempdir().unwrap();
        let image = sample(dir.path(), "a.img");
        let bytes = std::fs::read(&image).unwrap();
        for role in [Role::Esp, Role::Config] {
            let copy = dir.path().join("volume");
            let start = usize::try_from(layout::offset(role)).unwrap();
            let len = usize::try_from(layout::partition(role).bytes).unwrap();
            std::fs::write(&copy, &bytes[start..start + len]).unwrap();
            let output = Command::new("/usr/sbin/fsck.vfat").arg("-n").arg(&copy).output().unwrap();
            assert!(output.status.success(), "{role:?}: {}", String::from_utf8_lossy(&output.stdout));
        }
        let esp = FatVolume { image: &image, role: Role::Esp, as_of: 0 };
        for (path, content) in [("EFI/BOOT/BOOTX64.EFI", "boot"), ("EFI/Linux/a.efi", "linux")] {
            let read = run(esp.tool("mtype").arg(format!("::/{path}"))).unwrap();
            assert_eq!(String::from_utf8(read).unwrap(), content);
        }
    }

    #[test]
    fn two_images_of_the_same_parts_are_equal_and_sparse() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (sample(dir.path(), "a.img"), sample(dir.path(), "b.img"));
        assert!(Command::new("cmp").args([&a, &b]).status().unwrap().success());
        let allocated = std::fs::metadata(&a).unwrap().blocks() * 512;
        assert!(allocated < 8 * 1024 * 1024, "{allocated} bytes are allocated");
    }

    #[test]
    fn a_root_that_leaves_no_room_to_grow_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root.squashfs");
        File::create(&root).unwrap().set_len(layout::ROOT_SLOT_BYTES / 4 + 1).unwrap();
        assert!(write(&dir.path().join("a.img"), &root, &[], 0).is_err());
    }
}
