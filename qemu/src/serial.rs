//! What a machine says on its serial port.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Lines shown when something did not happen: enough for a kernel panic with its trace.
const TAIL_LINES: usize = 40;

/// A log that goes on over power cuts; searches start at the last power-on.
#[derive(Debug)]
pub(crate) struct SerialLog {
    path: PathBuf,
    booted_at: AtomicU64,
}

impl SerialLog {
    pub(crate) fn new(path: PathBuf) -> SerialLog {
        SerialLog { path, booted_at: AtomicU64::new(0) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The next search starts here.
    pub(crate) fn mark_boot(&self) {
        let length = self.path.metadata().map_or(0, |metadata| metadata.len());
        self.booted_at.store(length, Ordering::Relaxed);
    }

    /// Everything since the last power-on.
    pub(crate) fn since_boot(&self) -> String {
        self.read_from(self.booted_at.load(Ordering::Relaxed))
    }

    /// Everything since the machine was made.
    pub(crate) fn all(&self) -> String {
        self.read_from(0)
    }

    pub(crate) fn tail(&self) -> String {
        let text = self.all();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    /// The log is not there before the first power-on, which is the same as an empty one.
    fn read_from(&self, position: u64) -> String {
        let read = || -> std::io::Result<String> {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(position))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).replace('\r', ""))
        };
        read().unwrap_or_default()
    }
}
