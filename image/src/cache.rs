//! Results kept between builds, found by a key of everything that went into them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, Result};

use crate::apt::hex_sha256;

/// How many results of a kind are kept: those of two checkouts, or of one and the releases that its tests make; few enough
/// to bound the disk used.
const KEPT: usize = 8;

/// The project's cache folder: `HIVEMIND_CACHE`, or `hivemind` in the user's cache folder.
///
/// # Errors
/// When there is no home folder either.
pub fn project_folder() -> Result<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    from("HIVEMIND_CACHE")
        .or_else(|| from("XDG_CACHE_HOME").map(|dir| dir.join("hivemind")))
        .or_else(|| from("HOME").map(|dir| dir.join(".cache/hivemind")))
        .context("none of HIVEMIND_CACHE, XDG_CACHE_HOME and HOME is set")
}

/// Collects what a result depends on.
#[derive(Default)]
pub struct Key(Vec<u8>);

impl Key {
    /// A key that starts with what kind of result it is for.
    #[must_use]
    pub fn new(kind: &str) -> Self {
        Self::default().with(kind.as_bytes())
    }

    /// Adds an input. Lengths are part of the key, so that inputs cannot run into each other.
    #[must_use]
    pub fn with(mut self, input: &[u8]) -> Self {
        self.0.extend_from_slice(&(input.len() as u64).to_le_bytes());
        self.0.extend_from_slice(input);
        self
    }

    /// The key as text.
    #[must_use]
    pub fn finish(&self) -> String {
        hex_sha256(&self.0)[..24].to_owned()
    }
}

/// A result, and whether it had to be made.
pub struct Cached {
    /// The folder that holds it.
    pub dir: PathBuf,
    /// It was there already.
    pub reused: bool,
}

/// The image builder's part of the cache, held by one process at a time.
pub struct Cache {
    dir: PathBuf,
    _lock: File,
}

impl Cache {
    /// Opens the cache, waiting for another build that uses it.
    ///
    /// # Errors
    /// When the folder cannot be made or locked.
    pub fn open(project: &Path) -> Result<Self> {
        let dir = project.join("image");
        fs::create_dir_all(&dir).with_context(|| format!("making the cache folder {}", dir.display()))?;
        let lock = File::create(dir.join("lock"))?;
        lock.lock().context("waiting for another image build")?;
        let cache = Self { dir, _lock: lock };
        // We hold the lock: what a killed build left behind belongs to nobody.
        remove(&cache.scratch())?;
        Ok(cache)
    }

    fn scratch(&self) -> PathBuf {
        self.dir.join("unfinished")
    }

    /// Returns the result for the key, making it if it is not there. `make` gets a folder for its own use and one to
    /// fill; a result appears in the cache only when it is complete.
    ///
    /// # Errors
    /// Those of `make`, or when the cache cannot be written.
    pub fn get(
        &self,
        kind: &str,
        key: &Key,
        make: impl FnOnce(&Path, &Path) -> Result<()>,
    ) -> Result<Cached> {
        let dir = self.dir.join(format!("{kind}-{}", key.finish()));
        let stamp = dir.join(".used");
        if stamp.exists() {
            fs::write(&stamp, b"")?;
            return Ok(Cached { dir, reused: true });
        }
        let scratch = self.scratch();
        remove(&scratch)?;
        let (work, out) = (scratch.join("work"), scratch.join("out"));
        fs::create_dir_all(&work)?;
        fs::create_dir_all(&out)?;
        make(&work, &out)?;
        fs::write(out.join(".used"), b"")?;
        fs::rename(&out, &dir).with_context(|| format!("moving a result to {}", dir.display()))?;
        remove(&scratch)?;
        self.prune(kind)?;
        Ok(Cached { dir, reused: false })
    }

    fn prune(&self, kind: &str) -> Result<()> {
        let prefix = format!("{kind}-");
        let mut results: Vec<(SystemTime, PathBuf)> = fs::read_dir(&self.dir)?
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .map(|entry| {
                let used = fs::metadata(entry.path().join(".used")).and_then(|meta| meta.modified());
                (used.unwrap_or(SystemTime::UNIX_EPOCH), entry.path())
            })
            .collect();
        results.sort();
        let surplus = results.len().saturating_sub(KEPT);
        results[..surplus].iter().try_for_each(|(_, path)| remove(path))
    }
}

fn remove(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_made_once_and_again_when_an_input_changes() {
        let project = tempfile::tempdir().unwrap();
        let cache = Cache::open(project.path()).unwrap();
        let make = |_: &Path, out: &Path| Ok(fs::write(out.join("result"), b"x")?);
        let key = Key::new("t").with(b"1");
        assert!(!cache.get("t", &key, make).unwrap().reused);
        assert!(cache.get("t", &key, make).unwrap().reused);
        assert!(!cache.get("t", &key.with(b"2"), make).unwrap().reused);
    }

    #[test]
    fn a_failed_step_leaves_no_result() {
        let project = tempfile::tempdir().unwrap();
        let cache = Cache::open(project.path()).unwrap();
        let key = Key::new("t");
        assert!(cache.get("t", &key, |_, _| anyhow::bail!("no")).is_err());
        assert!(!cache.get("t", &key, |_, _| Ok(())).unwrap().reused);
    }

    #[test]
    fn old_results_do_not_pile_up() {
        let project = tempfile::tempdir().unwrap();
        let cache = Cache::open(project.path()).unwrap();
        for number in 0..10_u8 {
            cache.get("t", &Key::new("t").with(&[number]), |_, _| Ok(())).unwrap();
        }
        let kept = fs::read_dir(&cache.dir).unwrap().flatten().filter(|e| e.file_name() != "lock").count();
        assert_eq!(kept, KEPT);
    }

    #[test]
    fn inputs_do_not_run_into_each_other() {
        let key = |a: &[u8], b: &[u8]| Key::new("t").with(a).with(b).finish();
        assert_ne!(key(b"ab", b"c"), key(b"a", b"bc"));
    }
}
