//! What is on the disk of a machine that is off: looked at, and changed, with the tools of any
//! Linux computer.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use hivemind::image::ConfigPartition;
use hivemind_qemu::Machine;
use serde_json::Value;

use crate::command::Run;

/// Bytes in a sector, as `sfdisk` counts.
const SECTOR: u64 = 512;

/// Where the store is on the state partition, which the machine mounts at `/var`.
const STORE: &str = "/lib/hivemind/store";

/// The identity, once the machine has one.
pub const IDENTITY: &str = "/lib/hivemind/identity/identity.json";

/// Writes a machine configuration, right or wrong, onto the machine's own disk.
///
/// # Panics
/// When anything fails; so do all functions here.
pub fn configure(machine: &Machine, text: &str) {
    open(machine, |disk| {
        let written = ConfigPartition::open(disk).and_then(|partition| partition.write(text));
        written.unwrap_or_else(|failure| panic!("{}: {}", failure.code, failure.detail));
    });
}

/// Makes a stick in this file: an empty FAT file system with this label.
pub fn stick(file: &Path, mib: u64, label: &str) {
    let made = fs::File::create(file).and_then(|file| file.set_len(mib << 20));
    made.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut format = Command::new("/sbin/mkfs.vfat");
    format.args(["-n", label]).arg(file);
    Run::of(format).ok();
}

/// Makes such a stick with all that is in a folder.
pub fn stick_with(file: &Path, mib: u64, label: &str, folder: &Path) {
    stick(file, mib, label);
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut copy = Command::new("mcopy");
    copy.arg("-s").arg("-i").arg(file).args(entries.flatten().map(|entry| entry.path())).arg("::");
    Run::of(copy).ok();
}

/// Whether a file or folder is on the machine's state partition.
pub fn has(machine: &Machine, path: &str) -> bool {
    open(machine, |disk| FileSystem::of(disk).is_some_and(|state| state.has(path)))
}

/// Takes the node's store off the disk, gives its folder to `change`, and puts it back.
pub fn change_store<T>(machine: &Machine, change: impl FnOnce(&Path) -> T) -> T {
    open(machine, |disk| {
        let state = FileSystem::of(disk).unwrap_or_else(|| panic!("no state on {}", disk.display()));
        let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
        state.ask(&[format!("rdump {STORE} {}", folder.path().display())]);
        let store = folder.path().join("store");
        let before = files(&store);
        assert!(!before.is_empty(), "the store was not found");
        let made = change(&store);
        let inside = |path: &PathBuf| {
            let inner = path.strip_prefix(&store).unwrap_or_else(|error| panic!("{error}"));
            format!("{STORE}/{}", inner.display())
        };
        let gone = before.iter().map(|path| format!("rm {}", inside(path)));
        let after = files(&store);
        let new = after.iter().map(|path| format!("write {} {}", path.display(), inside(path)));
        state.ask(&gone.chain(new).collect::<Vec<_>>());
        for path in after {
            assert!(state.has(&inside(&path)), "{} was not written back", path.display());
        }
        state.put_back();
        made
    })
}

/// Flips one bit of each of these bytes of the partition with that name; negative ones count from the end of
/// what is not zero.
pub fn flip(machine: &Machine, partition: &str, bytes: &[i64]) {
    open(machine, |disk| {
        let (offset, size) = place(disk, partition);
        let file = fs::OpenOptions::new().read(true).write(true).open(disk);
        let file = file.unwrap_or_else(|error| panic!("{error}"));
        let read = |at: u64, buffer: &mut [u8]| {
            file.read_exact_at(buffer, offset + at).unwrap_or_else(|error| panic!("{error}"));
        };
        let mut end = size;
        let mut block = vec![0; 64 * 1024];
        while end > 0 && block.iter().all(|byte| *byte == 0) {
            end -= block.len() as u64;
            read(end, &mut block);
        }
        for at in bytes {
            let at = if *at < 0 { end.saturating_add_signed(*at) } else { at.unsigned_abs() };
            let mut byte = [0];
            read(at, &mut byte);
            file.write_all_at(&[byte[0] ^ 4], offset + at).unwrap_or_else(|error| panic!("{error}"));
        }
    });
}

/// Where a partition begins in a raw disk, and how long it is, bytes.
pub(crate) fn place(disk: &Path, partition: &str) -> (u64, u64) {
    let mut sfdisk = Command::new("/sbin/sfdisk");
    sfdisk.arg("--json").arg(disk);
    let table = Run::of(sfdisk).json().unwrap_or_else(|error| panic!("{error}"));
    let partitions = table["partitiontable"]["partitions"].as_array().cloned().unwrap_or_default();
    let found = partitions.iter().find(|found| found["name"] == partition);
    let field = |name: &str| found.and_then(|found| found[name].as_u64()).map(|n| n * SECTOR);
    let (Some(offset), Some(size)) = (field("start"), field("size")) else {
        panic!("no partition {partition} in {}", Value::from(partitions))
    };
    (offset, size)
}

pub(crate) fn open<T>(machine: &Machine, work: impl FnOnce(&Path) -> T) -> T {
    machine.open_disk(work).unwrap_or_else(|error| panic!("{error}"))
}

/// The files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let (folders, mut found): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    found.extend(folders.iter().flat_map(|folder| files(folder)));
    found.sort();
    found
}

/// The state partition's file system, taken out of a raw disk: e2fsck (1.47) forgets where in a disk
/// the partition begins once it has recovered a journal.
struct FileSystem {
    /// A copy of the partition.
    file: tempfile::TempPath,
    /// The partition in the disk, as QEMU's block layer names it.
    partition: String,
}

impl FileSystem {
    /// None when the partition was never formatted.
    fn of(disk: &Path) -> Option<Self> {
        let (offset, size) = place(disk, "state");
        let folder = disk.parent().unwrap_or(Path::new("."));
        let file = tempfile::NamedTempFile::new_in(folder).unwrap_or_else(|error| panic!("{error}"));
        let disk = disk.display();
        let partition =
            format!("driver=raw,offset={offset},size={size},file.driver=file,file.filename={disk}");
        let state = Self { file: file.into_temp_path(), partition };
        let mut take_out = Command::new("qemu-img");
        take_out.args(["convert", "--image-opts", &state.partition, "-O", "raw"]).arg(&state.file);
        Run::of(take_out).ok();
        if !state.is_formatted() {
            return None;
        }
        // What a power cut left in the journal belongs where it was to go.
        let mut fsck = Command::new("/sbin/e2fsck");
        fsck.args(["-f", "-y"]).arg(&state.file);
        let run = Run::of(fsck);
        assert!(run.code().is_some_and(|code| code <= 1), "{run}");
        Some(state)
    }

    /// Whether it has a superblock: its magic number is at byte 56 of the second KiB.
    fn is_formatted(&self) -> bool {
        let mut magic = [0; 2];
        let file = fs::File::open(&self.file).unwrap_or_else(|error| panic!("{error}"));
        file.read_exact_at(&mut magic, 1024 + 56).is_ok() && magic == [0x53, 0xef]
    }

    /// Puts the partition back into its disk.
    fn put_back(self) {
        let mut put = Command::new("qemu-img");
        put.args(["convert", "-n", "-f", "raw"]).arg(&self.file);
        put.args(["--target-image-opts", &self.partition]);
        Run::of(put).ok();
    }

    fn has(&self, path: &str) -> bool {
        self.ask(&[format!("stat {path}")]).contains("Inode:")
    }

    /// Runs commands of debugfs(8), whose exit code says nothing about them.
    fn ask(&self, commands: &[String]) -> String {
        let script = tempfile::NamedTempFile::new().unwrap_or_else(|error| panic!("{error}"));
        fs::write(script.path(), commands.join("\n") + "\n").unwrap_or_else(|error| panic!("{error}"));
        let mut debugfs = Command::new("/sbin/debugfs");
        debugfs.arg("-w").arg("-f").arg(script.path()).arg(&self.file);
        Run::of(debugfs).stdout()
    }
}
