//! The release that was started, and what becomes of it.
//!
//! A new release is on trial: it has [`TRIAL`] to be called good by the agent, which knows when the node is healthy. Else,
//! and when its root does not verify, it is bad, and the machine starts the one before. A release that is good stays
//! so until its root is found damaged.

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::path::PathBuf;
use std::time::Duration;

use super::block::{self, Disk};
use super::boot_menu::{Assessment, BootMenu};
use super::{Error, cmdline};

/// How long a release may take to be healthy: more than a slow machine takes for a check of its disk and its
/// containers, and, with the start before and the start after, within five minutes.
pub const TRIAL: Duration = Duration::from_secs(180);

/// The partition's name in the table.
const PARTNAME: &str = "esp";

/// Where roots are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slots {
    /// The partition whose root runs.
    pub running: PathBuf,
    /// How many of its bytes are the root's file.
    pub running_bytes: u64,
    /// The other one.
    pub spare: PathBuf,
}

/// A release in its boot menu.
#[derive(Debug)]
pub struct Release {
    id: String,
    trial: Duration,
    root_bytes: u64,
    menu: BootMenu,
}

impl Release {
    /// What this machine runs now. None when it was not started from a boot menu.
    ///
    /// # Errors
    /// When the disk or its menu cannot be opened.
    pub fn running() -> Result<Option<Self>, Error> {
        let text = std::fs::read_to_string(cmdline::PATH).map_err(Error::io("reading", cmdline::PATH))?;
        Self::of(&text, block::boot_disk)
    }

    /// The release that this command line tells of, in the menu of that disk.
    pub(super) fn of(
        cmdline: &str,
        disk: impl FnOnce() -> Result<Disk, Error>,
    ) -> Result<Option<Self>, Error> {
        let Some(id) = cmdline::release(cmdline) else { return Ok(None) };
        let disk = disk()?;
        let partition = disk.partition(PARTNAME).ok_or_else(|| Error::Table {
            disk: disk.node().display().to_string(),
            message: format!("there is no partition `{PARTNAME}`"),
        })?;
        let node = partition.node();
        let opened = File::options().read(true).write(true).open(&node).and_then(|mut file| {
            let length = file.seek(SeekFrom::End(0))?;
            Ok(BootMenu::new(file, 0, length))
        });
        let menu = opened.map_err(Error::io("opening", &node))?;
        let root_bytes = cmdline::verity(cmdline)?.map_or(0, |verity| verity.file_bytes());
        Ok(Some(Self { id: id.to_owned(), trial: cmdline::trial(cmdline, TRIAL), root_bytes, menu }))
    }

    /// Its name, 16 hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// How long it may take to be healthy.
    pub fn trial(&self) -> Duration {
        self.trial
    }

    /// The releases in the menu that failed, 16 hexadecimal digits each.
    ///
    /// # Errors
    /// When the menu cannot be read.
    pub fn failed(&self) -> std::io::Result<Vec<String>> {
        let entries = self.menu.entries()?.into_iter();
        Ok(entries.filter(|e| e.assessment == Assessment::Bad).map(|e| e.release).collect())
    }

    /// The slots of the disk.
    ///
    /// # Errors
    /// When the disk has no two of them, or the root is not in one.
    pub fn slots(&self) -> Result<Slots, Error> {
        let disk = block::boot_disk()?;
        let own = block::root_partition()?;
        let table = |message: &str| Error::Table {
            disk: disk.node().display().to_string(),
            message: message.to_owned(),
        };
        let slot =
            |name| disk.partition(name).ok_or_else(|| table(&format!("there is no partition `{name}`")));
        let (a, b) = (slot("root-a")?, slot("root-b")?);
        let (running, spare) = match (a.name == own, b.name == own) {
            (true, false) => (a, b),
            (false, true) => (b, a),
            _ => return Err(table("the root is in none of its two slots")),
        };
        Ok(Slots { running: running.node(), running_bytes: self.root_bytes, spare: spare.node() })
    }

    /// Hands its own image in the menu to `look`.
    ///
    /// # Errors
    /// When the menu cannot be read, and what `look` says.
    pub fn with_image<T>(
        &self,
        look: impl FnOnce(&mut dyn super::boot_menu::ReadSeek) -> std::io::Result<T>,
    ) -> std::io::Result<T> {
        self.menu.with_image(&self.id, look)
    }

    /// Takes every other release out of the menu, before the spare slot is written to.
    ///
    /// # Errors
    /// When the menu cannot be read or written.
    pub fn stay_alone(&self) -> std::io::Result<()> {
        self.menu.keep_only(&self.id)
    }

    /// Enters another release, whose root is in the spare slot, to be tried at the next start.
    ///
    /// # Errors
    /// When the menu cannot be read or written, or has no room.
    pub fn enter(&self, id: &str, title: &str, image: impl std::io::Read) -> std::io::Result<()> {
        self.menu.add(id, title, image)
    }

    /// Whether it still has to prove itself.
    ///
    /// # Errors
    /// When the menu cannot be read.
    pub fn is_on_trial(&self) -> std::io::Result<bool> {
        let entry = self.menu.entry(&self.id)?;
        Ok(entry.is_some_and(|entry| entry.assessment != Assessment::Good))
    }

    /// Calls it good: it is started from now on, however often the power fails.
    ///
    /// # Errors
    /// When the menu cannot be read or written.
    pub fn call_good(&self) -> std::io::Result<()> {
        self.menu.assess(&self.id, Assessment::Good)
    }

    /// Calls it bad, if there is another that can be started instead; whether there is.
    ///
    /// # Errors
    /// When the menu cannot be read or written.
    pub(super) fn step_back(&self) -> std::io::Result<bool> {
        let other =
            |entry: &super::boot_menu::Entry| entry.release != self.id && entry.assessment != Assessment::Bad;
        let found = self.menu.entries()?.iter().any(other);
        if found {
            self.menu.assess(&self.id, Assessment::Bad)?;
        }
        Ok(found)
    }
}
