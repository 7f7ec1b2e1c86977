//! The spare slot, and what of a release is already on this machine. Everything here blocks.
//!
//! A chunk counts as there when the bytes in its place hash to its name: what was written before the power went need
//! not come again, and nothing has to be remembered. A chunk that the running release has is copied from it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use hivemind_init::release::Slots;
use hivemind_spec::id::Digest;
use hivemind_spec::release::{Chunk, LARGEST_CHUNK, OsReleaseSpec, ReleaseFile, cut};

use super::running::Running;
use super::source::Part;

/// Where the kernel is kept until its release is started: the boot menu's partition holds no halves.
const KERNEL: &str = "kernel.efi";

/// A chunk that is not there yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Missing {
    pub(super) part: Part,
    pub(super) place: u64,
    pub(super) chunk: Chunk,
}

/// The places that the two files of a release are written to.
#[derive(Debug)]
pub(super) struct SpareSlot {
    root: File,
    kernel: File,
    kernel_path: PathBuf,
}

/// Why a release cannot be taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum SlotError {
    /// It never fits this machine.
    #[error("{0}")]
    Never(String),
    /// Reading or writing failed.
    #[error("{0}: {1}")]
    Io(&'static str, #[source] io::Error),
}

impl SpareSlot {
    /// Opens the spare slot for a release. Nothing can be started from it from now on.
    ///
    /// # Errors
    /// When the release does not fit in, or files cannot be opened.
    pub(super) fn open(running: &Running, folder: &Path, spec: &OsReleaseSpec) -> Result<Self, SlotError> {
        let slots = running.slots().map_err(SlotError::Never)?;
        let root = OpenOptions::new().read(true).write(true).open(&slots.spare);
        let mut root = root.map_err(|error| SlotError::Io("opening the spare slot", error))?;
        let room =
            root.seek(SeekFrom::End(0)).map_err(|error| SlotError::Io("measuring the spare slot", error))?;
        if spec.root.bytes > room {
            let text = format!("its root has {} bytes, and a slot of this machine {room}", spec.root.bytes);
            return Err(SlotError::Never(text));
        }
        running.stay_alone().map_err(|error| SlotError::Io("writing the boot menu", error))?;
        let (kernel_path, opening) = (folder.join(KERNEL), "opening the file for the kernel");
        let kernel = fs::create_dir_all(folder).and_then(|()| {
            let file =
                OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&kernel_path)?;
            file.set_len(spec.kernel.bytes)?;
            Ok(file)
        });
        let kernel = kernel.map_err(|error| SlotError::Io(opening, error))?;
        Ok(Self { root, kernel, kernel_path })
    }

    fn file(&self, part: Part) -> &File {
        match part {
            Part::Root => &self.root,
            Part::Kernel => &self.kernel,
        }
    }

    /// Writes a chunk to its place.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(super) fn write(&self, part: Part, place: u64, bytes: &[u8]) -> io::Result<()> {
        self.file(part).write_all_at(bytes, place)
    }

    /// The chunks that are not in their places, after those were copied that the running release has.
    ///
    /// # Errors
    /// When reading or writing fails.
    pub(super) fn missing(&self, running: &Running, spec: &OsReleaseSpec) -> Result<Vec<Missing>, SlotError> {
        let reading = |error| SlotError::Io("reading the spare slot", error);
        let mut wanted: BTreeMap<Digest, Vec<Missing>> = BTreeMap::new();
        for (part, file) in parts(spec) {
            for missing in self.not_in_place(part, file).map_err(reading)? {
                wanted.entry(missing.chunk.digest).or_default().push(missing);
            }
        }
        if !wanted.is_empty() {
            let slots = running.slots().map_err(SlotError::Never)?;
            self.copy_from(&slots, running, &mut wanted)
                .map_err(|error| SlotError::Io("copying from the running release", error))?;
        }
        let mut missing: Vec<Missing> = wanted.into_values().flatten().collect();
        missing.sort_by_key(|missing| (missing.part, missing.place));
        Ok(missing)
    }

    fn not_in_place(&self, part: Part, file: &ReleaseFile) -> io::Result<Vec<Missing>> {
        let mut buffer = vec![0; LARGEST_CHUNK as usize];
        let mut missing = Vec::new();
        for (place, chunk) in file.places() {
            let Some(bytes) = buffer.get_mut(..chunk.bytes as usize) else { continue };
            self.file(part).read_exact_at(bytes, place)?;
            if Digest::of(bytes) != chunk.digest {
                missing.push(Missing { part, place, chunk });
            }
        }
        Ok(missing)
    }

    fn copy_from(
        &self,
        slots: &Slots,
        running: &Running,
        wanted: &mut BTreeMap<Digest, Vec<Missing>>,
    ) -> io::Result<()> {
        let root = File::open(&slots.running)?.take(slots.running_bytes);
        self.copy(root, wanted)?;
        running.with_kernel(|kernel| self.copy(kernel, wanted))
    }

    fn copy(&self, from: impl Read, wanted: &mut BTreeMap<Digest, Vec<Missing>>) -> io::Result<()> {
        for piece in cut(from) {
            if wanted.is_empty() {
                return Ok(());
            }
            let (chunk, bytes) = piece?;
            for missing in wanted.remove(&chunk.digest).unwrap_or_default() {
                self.write(missing.part, missing.place, &bytes)?;
            }
        }
        Ok(())
    }

    /// Has all on the disk, and reads it once more: whether it is the release, byte for byte.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(super) fn is_whole(&self, spec: &OsReleaseSpec) -> io::Result<bool> {
        for (part, file) in parts(spec) {
            self.file(part).sync_all()?;
            if !self.not_in_place(part, file)?.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Enters the release in the boot menu.
    ///
    /// # Errors
    /// In words.
    pub(super) fn enter(&self, running: &Running, spec: &OsReleaseSpec) -> Result<(), String> {
        let title = format!("Hivemind {}", spec.version);
        let entered =
            File::open(&self.kernel_path).and_then(|kernel| running.enter(spec.release, &title, kernel));
        entered.map_err(|error| format!("the boot menu takes no entry: {error}"))?;
        if let Err(error) = fs::remove_file(&self.kernel_path) {
            tracing::warn!(%error, "the kernel stays on the state partition until the next release");
        }
        Ok(())
    }
}

/// The files of a release.
pub(super) fn parts(spec: &OsReleaseSpec) -> [(Part, &ReleaseFile); 2] {
    [(Part::Root, &spec.root), (Part::Kernel, &spec.kernel)]
}
