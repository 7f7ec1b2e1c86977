//! The release that was started, and what becomes of it.
//!
//! A new release is on trial: it has [`TRIAL`] to be called good by the agent, which knows when the node is healthy. Else,
//! and when its root does not verify, it is bad, and the machine starts the one before. A release that is good stays
//! so until its root is found damaged.

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::time::Duration;

use super::block::{self, Disk};
use super::boot_menu::{Assessment, BootMenu};
use super::{Error, cmdline};

/// How long a release may take to be healthy: more than a slow machine takes for a check of its disk and its
/// containers, and, with the start before and the start after, within five minutes.
pub const TRIAL: Duration = Duration::from_secs(180);

/// The partition's name in the table.
const PARTNAME: &str = "esp";

/// A release in its boot menu.
#[derive(Debug)]
pub struct Release {
    id: String,
    trial: Duration,
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
        Ok(Some(Self { id: id.to_owned(), trial: cmdline::trial(cmdline, TRIAL), menu }))
    }

    /// Its name, 16 hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// How long it may take to be healthy.
    pub fn trial(&self) -> Duration {
        self.trial
    }

    /// The menu it was started from.
    pub fn menu(&self) -> &BootMenu {
        &self.menu
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
