//! Installing: what is on the disk that the machine was started from, usually a stick, is copied to another one, which it
//! starts from in future.
//!
//! ```text
//! partitions' content, but for the state --> configuration, without the order to install --> partition table --> power off
//! ```
//!
//! The table comes last: until then there is nothing at the disk's beginning, and an installation that broke off begins anew.
//! The other disk has no state, so that the machine gets its identity there.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use fatfs::{FileSystem, FsOptions};
use fscommon::StreamSlice;
use gpt::GptConfig;
use gpt::partition::Partition;
use hivemind_spec::machine::{FILE_NAME, Install, MachineConfig, VOLUME_LABEL};

use super::block::{self, Device, Disk, SYS_BLOCK, logical_block_size};
use super::config;
use super::console::{line, title};
use super::release::Release;
use super::screen::Look;
use super::state::{self, PARTNAME as STATE};
use super::{Error, human_size, sys, watchdog};

/// The smallest state partition, bytes: with less there is no room for an image of any use.
const MIN_STATE: u64 = 512 << 20;

/// Partitions begin and end at multiples of this, and the tables are before the first and after the last.
const MIB: u64 = 1 << 20;

/// How long disks may take to appear: with one of several it would look as if it were the only one.
const SETTLE: Duration = Duration::from_secs(5);

/// What is copied at once, bytes: the watchdog is fed in between.
const CHUNK: usize = 1 << 20;

/// After how much the disk is waited for, bytes.
const FLUSH: u64 = 16 << 20;

/// Where ext4 keeps a copy of its superblock, from the partition's start: an old one must not be taken for the machine's.
const BACKUP_SUPERBLOCK: u64 = 32_768 * 4096;

/// How the kernel calls what is no disk of the machine, or only a part of one.
const NO_DISKS: [&str; 10] = ["dm-", "fd", "loop", "md", "mtd", "nbd", "ram", "sr", "zd", "zram"];

/// A disk that the machine could be installed on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    name: String,
    serial: Option<String>,
    bytes: u64,
    /// Whether there is nothing at its beginning and its end.
    is_blank: bool,
    /// Whether it is plugged in from outside.
    is_stick: bool,
}

/// What the configuration of the disk that the machine was started from orders.
pub(super) fn ordered(disk: &Disk) -> Option<MachineConfig> {
    let partition = disk.partition(VOLUME_LABEL)?;
    // What is wrong with it is told when it is loaded.
    config::peek(&partition.node()).filter(|config| config.install.is_some())
}

/// Installs. The machine is to be switched off then.
pub(super) fn run(from: &Disk, config: MachineConfig, release: Option<&Release>) -> Result<(), Error> {
    let Some(Install { disk }) = config.install.clone() else { return Ok(()) };
    line("about to be installed on another disk, as the configuration orders");
    let begun = Instant::now();
    while begun.elapsed() < SETTLE {
        watchdog::feed();
        std::thread::sleep(Duration::from_millis(100));
    }
    let candidates = candidates(from);
    let chosen = choose(&candidates, disk.as_deref()).map_err(Error::Install)?;
    let target = format!("{} ({})", chosen.name, human_size(chosen.bytes));
    title(&format!("is being installed on {target}"), Look::Busy);
    line(&format!("installing on {target}; do not switch it off"));
    // There is no other to go back to from what was started once and is here.
    if let Some(release) = release {
        release.call_good().map_err(Error::io("changing the boot menu of", from.node()))?;
    }
    let config = MachineConfig { install: None, ..config };
    let node = Path::new("/dev").join(&chosen.name);
    copy(&from.node(), &node, &config.to_toml())?;
    let told = format!("installed on {target}: pull out what it was started from, and switch it on");
    title(&format!("is {told}"), Look::Good);
    line(&told);
    Ok(())
}

/// Where it is installed, or why nowhere.
fn choose<'a>(candidates: &'a [Candidate], wanted: Option<&str>) -> Result<&'a Candidate, String> {
    let all: Vec<String> = candidates.iter().map(Candidate::told).collect();
    let all = if all.is_empty() { "there is none".to_owned() } else { all.join(", ") };
    let Some(serial) = wanted else {
        let mut blank = candidates.iter().filter(|disk| disk.is_blank && !disk.is_stick);
        return match (blank.next(), blank.next()) {
            (Some(one), None) => Ok(one),
            (None, _) => Err(format!(
                "no other disk is blank; name one by its serial number to overwrite it (`--install=SERIAL`): {all}"
            )),
            (Some(_), Some(_)) => Err(format!(
                "several disks are blank; name one by its serial number (`--install=SERIAL`): {all}"
            )),
        };
    };
    let mut named = candidates.iter().filter(|disk| disk.serial.as_deref() == Some(serial));
    match (named.next(), named.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err(format!("no other disk has the serial number {serial}: {all}")),
        (Some(_), Some(_)) => Err(format!("several disks have the serial number {serial}: {all}")),
    }
}

impl Candidate {
    fn told(&self) -> String {
        let serial =
            self.serial.as_deref().map_or("no serial number".to_owned(), |serial| format!("serial {serial}"));
        let has = if self.is_blank { "blank" } else { "with data" };
        format!("{} ({}, {serial}, {has})", self.name, human_size(self.bytes))
    }
}

fn candidates(own: &Disk) -> Vec<Candidate> {
    let others = block::all().into_iter().filter(|device| !device.is_partition && device.name != own.name);
    others.filter(|device| is_disk(&device.name)).filter_map(|device| candidate(&device)).collect()
}

/// None: there is nothing at that place, such as a reader without a card.
fn candidate(device: &Device) -> Option<Candidate> {
    let mut file = File::open(device.node()).ok()?;
    let bytes = sys::device_size(&file).ok().map(|(bytes, _)| bytes).filter(|bytes| *bytes > 0)?;
    let folder = Path::new(SYS_BLOCK).join(&device.name);
    Some(Candidate {
        name: device.name.clone(),
        serial: serial(&folder),
        bytes,
        // One that cannot be read is for nobody to overwrite unasked.
        is_blank: is_blank(&mut file, bytes).unwrap_or(false),
        is_stick: std::fs::canonicalize(&folder).is_ok_and(|path| path.to_string_lossy().contains("/usb")),
    })
}

/// Whether the kernel calls a whole disk of the machine so.
fn is_disk(name: &str) -> bool {
    // Memory cards have hardware partitions beside them: `mmcblk0boot0`.
    let is_part = |rest: &str| rest.contains(char::is_alphabetic);
    !NO_DISKS.iter().any(|prefix| name.starts_with(prefix))
        && !name.strip_prefix("mmcblk").is_some_and(is_part)
}

/// The serial number that a disk says it has.
fn serial(folder: &Path) -> Option<String> {
    // Virtual disks, NVMe and memory cards; SCSI and SATA tell it as a page of vital product data (SPC-4, section 7.8.15),
    // four bytes before it.
    let text = ["serial", "device/serial"].into_iter().find_map(|file| std::fs::read(folder.join(file)).ok());
    let page = || Some(std::fs::read(folder.join("device/vpd_pg80")).ok()?.get(4..)?.to_vec());
    let serial = String::from_utf8_lossy(&text.or_else(page)?).trim_matches(['\0', ' ', '\n']).to_owned();
    Some(serial).filter(|serial| !serial.is_empty())
}

/// Whether there is nothing where tables and file systems begin, and where their copies are.
fn is_blank(disk: &mut (impl io::Read + io::Seek), bytes: u64) -> io::Result<bool> {
    let mut part = vec![0; usize::try_from(MIB.min(bytes)).unwrap_or(CHUNK)];
    for at in [0, bytes.saturating_sub(MIB)] {
        disk.seek(SeekFrom::Start(at))?;
        disk.read_exact(&mut part)?;
        // Flash that was erased may read so.
        if part.iter().any(|byte| *byte != part[0]) || ![0, 0xff].contains(&part[0]) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn copy(from: &Path, to: &Path, config: &str) -> Result<(), Error> {
    let source = File::open(from).map_err(Error::io("opening", from))?;
    let target = OpenOptions::new().read(true).write(true).open(to).map_err(Error::io("opening", to))?;
    let block = sys::device_size(&source).map_err(Error::io("measuring", from))?.1;
    let (bytes, blocks_of_target) = sys::device_size(&target).map_err(Error::io("measuring", to))?;
    if block != blocks_of_target {
        let text = format!(
            "{} has blocks of {blocks_of_target} bytes, and what is copied is made for {block}",
            to.display()
        );
        return Err(Error::Install(text));
    }
    let mut told = 0;
    let mut progress = |percent: u64| {
        watchdog::feed();
        if percent >= told + 10 {
            told = percent - percent % 10;
            line(&format!("{told} % is copied"));
        }
    };
    let disks = Disks { source: &source, target: &target, bytes, block };
    disks.copy(config, &mut progress).map_err(Error::io("installing on", to))
}

/// The one disk and the other.
struct Disks<'a> {
    source: &'a File,
    target: &'a File,
    /// The other one's size.
    bytes: u64,
    /// The size of a block of both.
    block: u64,
}

impl Disks<'_> {
    /// Copies what is to be on the other disk, and makes it bootable when all of it is there. `progress` hears percents.
    fn copy(&self, config: &str, progress: &mut dyn FnMut(u64)) -> io::Result<()> {
        let table =
            GptConfig::new().logical_block_size(logical_block_size(self.block)).open_from_device(self.source);
        let table = table.map_err(io::Error::other)?;
        let partitions = table.partitions();
        let mut copied = BTreeMap::new();
        let (mut state_at, mut config_at) = (None, None);
        for (number, partition) in partitions.iter().filter(|(_, partition)| partition.is_used()) {
            let span = self.span(partition)?;
            if partition.name == STATE {
                state_at = Some((*number, span.start));
            } else {
                copied.insert(*number, span.clone());
            }
            if partition.name.eq_ignore_ascii_case(VOLUME_LABEL) {
                config_at = Some(span);
            }
        }
        let (Some((number, state_at)), Some(config_at)) = (state_at, config_at) else {
            return Err(io::Error::other("the disk that the machine was started from is no image of ours"));
        };
        let end = state::end_on(self.bytes);
        let last = copied.values().map(|span| span.end).max().unwrap_or(0);
        if last > state_at || end < state_at + MIN_STATE {
            return Err(io::Error::other(format!(
                "it needs a disk of {} at least",
                human_size(state_at + MIN_STATE + MIB)
            )));
        }
        let all: u64 = copied.values().map(|span| span.end - span.start).sum();
        let mut done = 0;
        for span in copied.values() {
            self.copy_span(span, &mut |bytes| progress((done + bytes) * 100 / all))?;
            done += span.end - span.start;
        }
        for at in [state_at, state_at + BACKUP_SUPERBLOCK] {
            self.at(at)?.write_all(&vec![0; CHUNK])?;
        }
        self.configure(&config_at, config)?;
        // All of it, before the disk says that it is there.
        self.target.sync_all()?;
        let entries = copied.into_iter().chain([(number, state_at..end)]);
        self.write_table(entries.map(|(number, span)| (number, span, partitions[&number].clone())))
    }

    /// Where a partition is, bytes from the beginning, which is the same on both.
    fn span(&self, partition: &Partition) -> io::Result<Range<u64>> {
        let span = partition.first_lba * self.block..(partition.last_lba + 1) * self.block;
        match span.start % MIB == 0 && span.end % MIB == 0 {
            true => Ok(span),
            false => Err(io::Error::other(format!("the partition {} is not aligned", partition.name))),
        }
    }

    fn at(&self, bytes: u64) -> io::Result<&File> {
        let mut target = self.target;
        target.seek(SeekFrom::Start(bytes))?;
        Ok(target)
    }

    fn copy_span(&self, span: &Range<u64>, progress: &mut dyn FnMut(u64)) -> io::Result<()> {
        let mut source = self.source;
        source.seek(SeekFrom::Start(span.start))?;
        let (mut target, mut chunk) = (self.at(span.start)?, vec![0; CHUNK]);
        for at in (span.start..span.end).step_by(CHUNK) {
            source.read_exact(&mut chunk)?;
            target.write_all(&chunk)?;
            // Else the kernel would keep all of it in memory first, and the rest would stand still.
            if at % FLUSH == 0 {
                self.target.sync_data()?;
            }
            progress(at - span.start);
        }
        Ok(())
    }

    /// Writes the machine's configuration.
    fn configure(&self, span: &Range<u64>, config: &str) -> io::Result<()> {
        let slice = StreamSlice::new(self.target.try_clone()?, span.start, span.end)?;
        let volume = FileSystem::new(slice, FsOptions::new())?;
        {
            let mut file = volume.root_dir().create_file(FILE_NAME)?;
            file.truncate()?;
            file.write_all(config.as_bytes())?;
            file.flush()?;
        }
        volume.unmount()
    }

    fn write_table(&self, entries: impl Iterator<Item = (u32, Range<u64>, Partition)>) -> io::Result<()> {
        let placed = entries.map(|(number, span, partition)| {
            let (first_lba, last_lba) = (span.start / self.block, span.end / self.block - 1);
            (number, Partition { first_lba, last_lba, ..partition })
        });
        let mut table = GptConfig::new()
            .writable(true)
            .logical_block_size(logical_block_size(self.block))
            .create_from_device(self.target, None)
            .map_err(io::Error::other)?;
        table.update_partitions(placed.collect()).map_err(io::Error::other)?;
        table.write().map_err(io::Error::other)?;
        self.target.sync_all()?;
        let blocks = u32::try_from(self.bytes / self.block - 1).unwrap_or(u32::MAX);
        let mut target = self.target;
        gpt::mbr::ProtectiveMBR::with_lb_size(blocks)
            .overwrite_lba0(&mut target)
            .map_err(io::Error::other)?;
        self.target.sync_all()
    }
}

#[cfg(test)]
#[path = "install_tests.rs"]
mod tests;
