//! The boot menu on the EFI system partition: for each release an entry and a unified kernel image.
//!
//! ```text
//! loader/entries/hivemind-RELEASE.conf        good: known to run
//! loader/entries/hivemind-RELEASE+3.conf      new: may be tried three times
//! loader/entries/hivemind-RELEASE+2-1.conf    being tried, or tried without success
//! loader/entries/hivemind-RELEASE+0-3.conf    bad
//! EFI/hivemind/RELEASE.efi
//! ```
//!
//! systemd-boot takes the entry with the highest `version` whose tries are not used up, and counts a try before it
//! starts it (UAPI Group, Boot Loader Specification: "Type #1 Boot Loader Entries" and "Boot counting").
//!
//! Read and written without the kernel's FAT driver, whose module lies in the root: this has to work when the root
//! does not. A change of name is a new file and then the old one's removal, each on the disk before the next:
//! after a power cut there are both or one, and never none.

use std::fs::File;
use std::io::{self, Read, Seek, Write as _};

use fatfs::{Date, DateTime, FileSystem, FsOptions, Time, TimeProvider};
use fscommon::StreamSlice;

const ENTRIES: &str = "loader/entries";
const IMAGES: &str = "EFI/hivemind";

/// What names of entries begin and end with.
const PREFIX: &str = "hivemind-";
const SUFFIX: &str = ".conf";

/// How often a new release may be tried: once for each kind of bad luck that is not its fault, such as a power cut.
pub const TRIES: u32 = 3;

/// Entries of bad releases that are kept, the newest: as many as an operator would try in a bad month.
const MAX_BAD: usize = 8;

/// An image that can be read at any place.
pub trait ReadSeek: Read + Seek {}

impl<T: Read + Seek> ReadSeek for T {}

/// Largest entry that is read. Ours have about a hundred bytes.
const MAX_ENTRY_BYTES: u64 = 4096;

/// What is known of a release, in systemd's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Assessment {
    /// It ran well, or came with the image.
    Good,
    /// Nobody knows yet.
    Indeterminate {
        /// How often it may still be started.
        left: u32,
        /// How often it was started.
        done: u32,
    },
    /// It is started only where nothing else is left.
    Bad,
}

/// An entry of the menu.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The release, 16 hexadecimal digits.
    pub release: String,
    /// The higher comes first.
    pub order: u64,
    /// What is known of it.
    pub assessment: Assessment,
    file: String,
}

impl Entry {
    /// Reads the name of a file; none when it is no entry of ours.
    fn parse(file: &str) -> Option<Self> {
        let name = file.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
        let (release, tries) =
            name.split_once('+').map_or((name, None), |(release, tries)| (release, Some(tries)));
        let assessment = match tries {
            None => Assessment::Good,
            Some(tries) => {
                let (left, done) = tries.split_once('-').unwrap_or((tries, "0"));
                match (left.parse().ok()?, done.parse().ok()?) {
                    (0, _) => Assessment::Bad,
                    (left, done) => Assessment::Indeterminate { left, done },
                }
            }
        };
        is_release(release).then(|| Self {
            release: release.to_owned(),
            order: 0,
            assessment,
            file: file.to_owned(),
        })
    }
}

/// The date of every file. Without a clock the crate writes month 0 and day 0, and firmware refuses to rename such a
/// file: no try would ever be counted.
#[derive(Debug)]
struct Dates;

/// The first date that FAT knows.
const DATE: Date = Date { year: 1980, month: 1, day: 1 };

impl TimeProvider for Dates {
    fn get_current_date(&self) -> Date {
        DATE
    }

    fn get_current_date_time(&self) -> DateTime {
        DateTime { date: DATE, time: Time { hour: 0, min: 0, sec: 0, millis: 0 } }
    }
}

/// Whether the text can name a release.
fn is_release(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}

/// The name of the file of an entry, without its folder.
fn file_name(release: &str, assessment: Assessment) -> String {
    match assessment {
        Assessment::Good => format!("{PREFIX}{release}{SUFFIX}"),
        Assessment::Indeterminate { left, done: 0 } => format!("{PREFIX}{release}+{left}{SUFFIX}"),
        Assessment::Indeterminate { left, done } => format!("{PREFIX}{release}+{left}-{done}{SUFFIX}"),
        Assessment::Bad => format!("{PREFIX}{release}+0-{TRIES}{SUFFIX}"),
    }
}

/// Where the image of a release is.
#[must_use]
pub fn image_path(release: &str) -> String {
    format!("{IMAGES}/{release}.efi")
}

/// The path and the content of an entry, for who makes a new disk.
#[must_use]
pub fn entry(release: &str, title: &str, order: u64, assessment: Assessment) -> (String, String) {
    let image = image_path(release);
    let text = format!("title {title}\nsort-key hivemind\nversion {order}\nefi /{image}\n");
    (format!("{ENTRIES}/{}", file_name(release, assessment)), text)
}

/// The menu of a disk.
#[derive(Debug)]
pub struct BootMenu {
    disk: File,
    start: u64,
    end: u64,
}

type Volume = FileSystem<StreamSlice<File>>;

impl BootMenu {
    /// On the EFI system partition at this place of a disk, in bytes.
    pub fn new(disk: File, start: u64, length: u64) -> Self {
        Self { disk, start, end: start + length }
    }

    /// All entries, in the order in which systemd-boot would take them.
    ///
    /// # Errors
    /// When the partition cannot be read.
    pub fn entries(&self) -> io::Result<Vec<Entry>> {
        let volume = self.volume()?;
        let mut entries = Vec::new();
        for found in volume.root_dir().open_dir(ENTRIES)?.iter() {
            let found = found?;
            let Some(mut entry) = Entry::parse(&found.file_name()) else { continue };
            let mut text = String::new();
            // An entry that a power cut left half written is no entry, as for systemd-boot.
            if found.to_file().take(MAX_ENTRY_BYTES).read_to_string(&mut text).is_err() {
                continue;
            }
            let order = text.lines().find_map(|line| line.strip_prefix("version "));
            let Some(order) = order.and_then(|order| order.trim().parse().ok()) else { continue };
            entry.order = order;
            entries.push(entry);
        }
        entries.sort_by_key(|entry| (entry.assessment == Assessment::Bad, std::cmp::Reverse(entry.order)));
        Ok(entries)
    }

    /// The entry of a release; where a power cut left two, the one systemd-boot would take.
    ///
    /// # Errors
    /// When the partition cannot be read.
    pub fn entry(&self, release: &str) -> io::Result<Option<Entry>> {
        Ok(self.entries()?.into_iter().find(|entry| entry.release == release))
    }

    /// Writes down what is known of a release. Nothing happens to one that is not in the menu.
    ///
    /// # Errors
    /// When the partition cannot be read or written; what was known before is known still.
    pub fn assess(&self, release: &str, assessment: Assessment) -> io::Result<()> {
        let wanted = file_name(release, assessment);
        let entries = self.entries()?.into_iter().filter(|entry| entry.release == release);
        let (right, wrong): (Vec<Entry>, Vec<Entry>) = entries.partition(|entry| entry.file == wanted);
        if let (true, Some(old)) = (right.is_empty(), wrong.first()) {
            let mut text = Vec::new();
            let volume = self.volume()?;
            let folder = volume.root_dir().open_dir(ENTRIES)?;
            folder.open_file(&old.file)?.take(MAX_ENTRY_BYTES).read_to_end(&mut text)?;
            drop(folder);
            drop(volume);
            self.write(&format!("{ENTRIES}/{wanted}"), &text[..])?;
        }
        wrong.iter().try_for_each(|entry| self.remove_file(&format!("{ENTRIES}/{}", entry.file)))
    }

    /// Adds a release that comes before all others and may be tried [`TRIES`] times. Its image first: an entry never
    /// points to half of one.
    ///
    /// # Errors
    /// When the partition cannot be read or written, or has no room. The menu is as before.
    pub fn add(&self, release: &str, title: &str, image: impl Read) -> io::Result<()> {
        let order = self.entries()?.iter().map(|entry| entry.order).max().unwrap_or(0) + 1;
        self.write(&image_path(release), image)?;
        let (path, text) = entry(release, title, order, Assessment::Indeterminate { left: TRIES, done: 0 });
        self.write(&path, text.as_bytes())
    }

    /// Hands the image of a release to `look`.
    ///
    /// # Errors
    /// When the partition cannot be read or has no such image, and what `look` says.
    pub fn with_image<T>(
        &self,
        release: &str,
        look: impl FnOnce(&mut dyn ReadSeek) -> io::Result<T>,
    ) -> io::Result<T> {
        let volume = self.volume()?;
        let mut image = volume.root_dir().open_file(&image_path(release))?;
        look(&mut image)
    }

    /// Makes room for a new release beside one: the others' images go, and their entries, but for those that tell
    /// of a release that it is bad. The boot manager passes over an entry without an image.
    ///
    /// # Errors
    /// When the partition cannot be read or written.
    pub fn keep_only(&self, release: &str) -> io::Result<()> {
        let (bad, others): (Vec<Entry>, Vec<Entry>) = self
            .entries()?
            .into_iter()
            .filter(|entry| entry.release != release)
            .partition(|entry| entry.assessment == Assessment::Bad);
        for (index, entry) in bad.iter().enumerate() {
            if index < MAX_BAD {
                self.remove_file(&image_path(&entry.release))?;
            } else {
                self.remove(&entry.release)?;
            }
        }
        others.iter().try_for_each(|entry| self.remove(&entry.release))?;
        self.sweep()
    }

    /// Takes a release out of the menu, and its image off the partition: the entry first.
    ///
    /// # Errors
    /// When the partition cannot be read or written.
    pub fn remove(&self, release: &str) -> io::Result<()> {
        for entry in self.entries()?.iter().filter(|entry| entry.release == release) {
            self.remove_file(&format!("{ENTRIES}/{}", entry.file))?;
        }
        self.remove_file(&image_path(release))
    }

    /// Removes every image that no entry names: what was being written when the power went.
    ///
    /// # Errors
    /// When the partition cannot be read or written.
    pub fn sweep(&self) -> io::Result<()> {
        let wanted: Vec<String> =
            self.entries()?.iter().map(|entry| format!("{}.efi", entry.release)).collect();
        let mut left = Vec::new();
        if let Ok(folder) = self.volume()?.root_dir().open_dir(IMAGES) {
            for found in folder.iter() {
                let name = found?.file_name();
                if !name.starts_with('.') && !wanted.contains(&name) {
                    left.push(name);
                }
            }
        }
        left.iter().try_for_each(|name| self.remove_file(&format!("{IMAGES}/{name}")))
    }

    fn volume(&self) -> io::Result<Volume> {
        let slice = StreamSlice::new(self.disk.try_clone()?, self.start, self.end)?;
        FileSystem::new(slice, FsOptions::new().time_provider(&Dates))
    }

    /// Writes a file and has it on the disk.
    fn write(&self, path: &str, mut content: impl Read) -> io::Result<()> {
        let volume = self.volume()?;
        {
            let mut folder = volume.root_dir();
            for (index, _) in path.match_indices('/') {
                folder = volume.root_dir().create_dir(&path[..index])?;
            }
            let name = path.rsplit('/').next().unwrap_or(path);
            let mut file = folder.create_file(name)?;
            file.truncate()?;
            let mut buffer = vec![0; 256 * 1024];
            loop {
                let count = content.read(&mut buffer)?;
                if count == 0 {
                    break;
                }
                file.write_all(&buffer[..count])?;
            }
            file.flush()?;
        }
        volume.unmount()?;
        self.disk.sync_all()
    }

    /// Removes a file and has that on the disk. One that is not there is no error.
    fn remove_file(&self, path: &str) -> io::Result<()> {
        let volume = self.volume()?;
        match volume.root_dir().remove(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        volume.unmount()?;
        self.disk.sync_all()
    }
}

#[cfg(test)]
#[path = "boot_menu_tests.rs"]
mod tests;
