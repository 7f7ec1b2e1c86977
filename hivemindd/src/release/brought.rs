//! The release that a stick brought: a copy of its files, for this machine's turn and for those whose turn comes first.
//! The stick can be pulled out once they are here, and goes to no second machine.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use hivemind_spec::id::ReleaseId;
use hivemind_spec::release::{OsReleaseSpec, ReleaseFile};
use hivemind_spec::stick::BLOBS;

use super::slot::parts;
use super::source::Part;

/// Where it is. A folder in it is called as the release, once all of it is there.
const FOLDER: &str = "/var/lib/hivemind/brought";

/// What is not whole yet.
const DRAFT: &str = "draft";

/// The copy, of one release at most. Clones share it.
#[derive(Debug, Clone)]
pub struct Brought {
    folder: Arc<PathBuf>,
}

impl Default for Brought {
    fn default() -> Self {
        Self { folder: Arc::new(FOLDER.into()) }
    }
}

impl Brought {
    /// The release that is here, after a look at the disk: that of a start. What is not whole is removed, and what runs,
    /// which others have from its slot.
    ///
    /// # Errors
    /// When the disk cannot be read or written.
    pub fn look(&self, running: Option<ReleaseId>) -> io::Result<Option<ReleaseId>> {
        let mut found = None;
        let entries = match fs::read_dir(&*self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            entries => entries?,
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            let named = path.file_name().and_then(|name| name.to_str()?.parse::<ReleaseId>().ok());
            match named.filter(|id| Some(*id) != running && found.is_none()) {
                Some(id) => found = Some(id),
                None => fs::remove_dir_all(&path)?,
            }
        }
        Ok(found)
    }

    /// Copies a release from the folder of its bundle, in place of the one that is here. Blocks.
    ///
    /// # Errors
    /// When the bundle has not all of it, or it is not what its document says, or the disk cannot be written.
    pub fn take(&self, bundle: &Path, spec: &OsReleaseSpec) -> anyhow::Result<()> {
        let place = self.folder.join(spec.release.to_string());
        if place.is_dir() {
            return Ok(());
        }
        if self.folder.is_dir() {
            fs::remove_dir_all(&*self.folder).context("removing the release before")?;
        }
        let draft = self.folder.join(DRAFT);
        fs::create_dir_all(&draft).context("making room for it")?;
        for (part, file) in parts(spec) {
            let from = bundle.join(BLOBS).join(file.digest.to_string());
            let from = File::open(&from).with_context(|| format!("its {} is not on it", part.name()))?;
            let copy = draft.join(part.name());
            let mut to = File::create(&copy).context("making room for it")?;
            io::copy(&mut from.take(file.bytes), &mut to).context("copying it")?;
            to.sync_all().context("copying it")?;
            if ReleaseFile::of(File::open(&copy)?).context("reading the copy")?.digest != file.digest {
                bail!("its {} is not what the release's document says", part.name());
            }
        }
        fs::rename(&draft, &place).context("keeping it")?;
        File::open(&*self.folder).and_then(|folder| folder.sync_all()).context("keeping it")
    }

    /// Reads from one of its files. Blocks.
    ///
    /// # Errors
    /// When it is another release, or the range is not in the file, or reading fails.
    pub fn read(&self, id: ReleaseId, part: Part, from: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let file = File::open(self.folder.join(id.to_string()).join(part.name()))?;
        let mut buffer = vec![0; bytes];
        file.read_exact_at(&mut buffer, from)?;
        Ok(buffer)
    }

    /// Removes a release. Returns whether it was here. Blocks.
    ///
    /// # Errors
    /// When the disk cannot be written.
    pub(super) fn forget(&self, id: ReleaseId) -> io::Result<bool> {
        match fs::remove_dir_all(self.folder.join(id.to_string())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            removed => removed.map(|()| true),
        }
    }
}

#[cfg(test)]
mod tests {
    use hivemind_spec::release::Architecture;

    use super::*;

    /// A release whose files are on a stick.
    fn release(stick: &Path, n: u8) -> OsReleaseSpec {
        let blobs = stick.join(BLOBS);
        fs::create_dir_all(&blobs).unwrap();
        let file = |content: &[u8]| {
            let file = ReleaseFile::of(content).unwrap();
            fs::write(blobs.join(file.digest.to_string()), content).unwrap();
            file
        };
        OsReleaseSpec {
            version: "0.2.0".to_owned(),
            release: ReleaseId([n; 8]),
            architecture: Architecture::Amd64,
            minimum: "0.1.0".to_owned(),
            root: file(&[n; 1000]),
            kernel: file(&[n + 1; 500]),
            sources: Vec::new(),
            paused: false,
        }
    }

    #[test]
    fn one_release_of_a_stick_is_here_whole_until_it_runs_or_another_comes() {
        let (stick, disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let brought = Brought { folder: Arc::new(disk.path().join("brought")) };
        assert_eq!(brought.look(None).unwrap(), None);
        let (first, second) = (release(stick.path(), 1), release(stick.path(), 3));
        for spec in [&first, &first, &second] {
            brought.take(stick.path(), spec).unwrap();
            assert_eq!(brought.look(None).unwrap(), Some(spec.release));
            assert_eq!(
                brought.read(spec.release, Part::Kernel, 490, 10).unwrap(),
                [spec.release.0[0] + 1; 10]
            );
        }
        assert!(brought.read(first.release, Part::Root, 0, 1).is_err(), "it made room");
        assert!(brought.read(second.release, Part::Root, 999, 2).is_err(), "there is no more");
        assert!(!brought.forget(first.release).unwrap());
        assert_eq!(brought.look(None).unwrap(), Some(second.release));
        assert_eq!(brought.look(Some(second.release)).unwrap(), None);
        assert!(brought.read(second.release, Part::Root, 0, 1).is_err(), "it runs");
        brought.take(stick.path(), &second).unwrap();
        assert!(brought.forget(second.release).unwrap() && brought.look(None).unwrap().is_none());
    }

    #[test]
    fn what_is_not_as_its_document_says_is_not_taken() {
        let (stick, disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let brought = Brought { folder: Arc::new(disk.path().join("brought")) };
        let spec = release(stick.path(), 1);
        let kernel = stick.path().join(BLOBS).join(spec.kernel.digest.to_string());
        for damage in [&[9; 500][..], &[2; 499], &[]] {
            fs::write(&kernel, damage).unwrap();
            assert!(brought.take(stick.path(), &spec).unwrap_err().to_string().contains("kernel"));
            assert_eq!(brought.look(None).unwrap(), None);
        }
        fs::remove_file(&kernel).unwrap();
        assert_eq!(brought.take(stick.path(), &spec).unwrap_err().to_string(), "its kernel is not on it");
        // Whatever comes after the end does not matter.
        fs::write(&kernel, [2; 501]).unwrap();
        brought.take(stick.path(), &spec).unwrap();
        assert_eq!(brought.read(spec.release, Part::Kernel, 499, 1).unwrap(), [2]);
    }
}
