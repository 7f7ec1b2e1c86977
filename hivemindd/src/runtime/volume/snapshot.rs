//! Snapshots: what a part had at a moment, as the archive that a backup has, beside it. They are on the same disk, and gone
//! with it; for that there are backups.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, UNIX_EPOCH};

use hivemind_core::event::DiskState;
use hivemind_init::durable;
use hivemind_spec::volume::Snapshot;

use super::{archive, entries};
use crate::runtime::disk_state;

/// Snapshots of a part, at most: a day's hours and a week's days, and an end to what a forgotten script makes.
pub(super) const MAX_SNAPSHOTS: usize = 32;

/// How full of them a disk may be, percent: beyond that images would go for them, and then the machine lacks room.
const MOST_PERCENT: u64 = 85;

/// After so many bytes it is looked again how full the disk is, on which others write too.
const LOOK_EVERY_BYTES: usize = 8 << 20;

/// What a whole one's name ends with.
const WHOLE: &str = "tar";

/// And one's that is being made.
const HALF: &str = "new";

/// The snapshots in a folder, oldest first.
pub(super) fn list(folder: &Path) -> io::Result<Vec<Snapshot>> {
    let mut found = Vec::new();
    for entry in entries(folder)? {
        let path = entry.path();
        let (Some(name), Some(WHOLE)) = (text(path.file_stem()), text(path.extension())) else { continue };
        found.push(look(name, &path)?);
    }
    found.sort_by(|a, b| (a.made_ms, &a.name).cmp(&(b.made_ms, &b.name)));
    Ok(found)
}

/// The one that is in a file.
fn look(name: &str, file: &Path) -> io::Result<Snapshot> {
    let about = fs::metadata(file)?;
    let made = about.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    let made_ms = u64::try_from(made.as_millis()).unwrap_or(u64::MAX);
    Ok(Snapshot { name: name.to_owned(), made_ms, bytes: about.len() })
}

fn text(name: Option<&OsStr>) -> Option<&str> {
    name.and_then(OsStr::to_str)
}

/// Where one is, whether or not it is there.
pub(super) fn place(folder: &Path, name: &str) -> PathBuf {
    folder.join(name).with_extension(WHOLE)
}

/// What is to be kept.
pub(super) struct What<'a> {
    /// All that is in this folder.
    pub(super) data: &'a Path,
    /// How much that is, as far as it is known.
    pub(super) bytes: u64,
    /// How long those may wait who stand still for it.
    pub(super) within: Option<Duration>,
}

/// Makes one. What `still` gives is dropped once all is read: whoever stood still then goes on.
///
/// # Errors
/// Those of the file system; [`io::ErrorKind::AlreadyExists`], [`io::ErrorKind::StorageFull`],
/// [`io::ErrorKind::TimedOut`]. There is none then that was not there before.
pub(super) fn make<S>(
    what: What<'_>,
    folder: &Path,
    name: &str,
    still: impl FnOnce() -> io::Result<Option<S>>,
    told: impl FnMut(String),
) -> io::Result<Snapshot> {
    let whole = place(folder, name);
    if whole.exists() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            format!("there is a snapshot {name} already"),
        ));
    }
    durable::make_folder(folder)?;
    sweep(folder)?;
    let half = folder.join(name).with_extension(HALF);
    let made = write(&what, &half, still, told)
        .and_then(|()| fs::rename(&half, &whole))
        .and_then(|()| durable::sync_folder(folder));
    if let Err(error) = made {
        let _ = fs::remove_file(&half);
        return Err(error);
    }
    look(name, &whole)
}

fn write<S>(
    what: &What<'_>,
    half: &Path,
    still: impl FnOnce() -> io::Result<Option<S>>,
    told: impl FnMut(String),
) -> io::Result<()> {
    let mut bounded =
        Bounded { file: File::create_new(half)?, folder: half.to_owned(), until: None, unlooked: 0 };
    bounded.look(what.bytes)?;
    let still = still()?;
    bounded.until = what.within.filter(|_| still.is_some()).map(|within| (Instant::now() + within, within));
    archive::pack(what.data, BufWriter::with_capacity(64 * 1024, &mut bounded), told)?;
    drop(still);
    bounded.file.sync_all()
}

/// Removes one.
///
/// # Errors
/// Those of the file system; [`io::ErrorKind::NotFound`].
pub(super) fn remove(folder: &Path, name: &str) -> io::Result<()> {
    fs::remove_file(place(folder, name)).map_err(|error| or_absent(error, name))?;
    durable::sync_folder(folder)
}

/// The error of one's file, in words if that is not there.
pub(super) fn or_absent(error: io::Error, name: &str) -> io::Error {
    match error.kind() {
        io::ErrorKind::NotFound => io::Error::new(error.kind(), format!("there is no snapshot {name}")),
        _ => error,
    }
}

/// Removes what a power cut left half made.
pub(super) fn sweep(folder: &Path) -> io::Result<()> {
    for entry in entries(folder)? {
        let path = entry.path();
        if text(path.extension()) == Some(HALF) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// A file that does not fill the disk, nor is written for ever.
struct Bounded {
    file: File,
    folder: PathBuf,
    /// When somebody has waited for long enough, and how long that is.
    until: Option<(Instant, Duration)>,
    /// What was written since it was looked.
    unlooked: usize,
}

impl Bounded {
    /// Whether so much more may be written.
    fn look(&mut self, bytes: u64) -> io::Result<()> {
        self.unlooked = 0;
        match disk_state(&self.folder) {
            Some(disk) if with(disk, bytes).used_percent() >= MOST_PERCENT => {
                let what = format!("the disk would be more than {MOST_PERCENT} % full");
                Err(io::Error::new(io::ErrorKind::StorageFull, what))
            }
            _ => Ok(()),
        }
    }
}

/// A disk on which so much more is written.
fn with(disk: DiskState, bytes: u64) -> DiskState {
    DiskState { used_bytes: disk.used_bytes.saturating_add(bytes), ..disk }
}

impl Write for &mut Bounded {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if let Some((until, within)) = self.until
            && Instant::now() > until
        {
            let what = format!("its containers would stand still for longer than {} s", within.as_secs_f32());
            return Err(io::Error::new(io::ErrorKind::TimedOut, what));
        }
        if self.unlooked >= LOOK_EVERY_BYTES {
            self.look(0)?;
        }
        let written = self.file.write(data)?;
        self.unlooked += written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn somebody() -> io::Result<Option<()>> {
        Ok(Some(()))
    }

    fn all_of(data: &Path) -> What<'_> {
        What { data, bytes: 0, within: None }
    }

    #[test]
    fn a_snapshot_has_what_was_there_and_is_whole_or_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let (data, kept) = (folder.path().join("data"), folder.path().join("snapshots"));
        fs::create_dir(&data).unwrap();
        fs::write(data.join("file"), "before").unwrap();
        assert!(list(&kept).unwrap().is_empty());
        let made = make(all_of(&data), &kept, "one", somebody, |_| {}).unwrap();
        // Two of one tick of the kernel's clock have no order.
        let at = UNIX_EPOCH + Duration::from_secs(5);
        File::options().write(true).open(place(&kept, "one")).unwrap().set_modified(at).unwrap();
        fs::write(data.join("file"), "after").unwrap();
        let second = make(all_of(&data), &kept, "another", somebody, |_| {}).unwrap();
        assert_eq!(list(&kept).unwrap(), [Snapshot { made_ms: 5000, ..made.clone() }, second]);
        let into = folder.path().join("into");
        fs::create_dir(&into).unwrap();
        archive::unpack(File::open(place(&kept, "one")).unwrap(), &into).unwrap();
        assert_eq!(fs::read_to_string(into.join("file")).unwrap(), "before");
        // A name is given once.
        let again = make(all_of(&data), &kept, "one", somebody, |_| {}).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::metadata(place(&kept, "one")).unwrap().len(), made.bytes);
        remove(&kept, "one").unwrap();
        assert_eq!(remove(&kept, "one").unwrap_err().to_string(), "there is no snapshot one");
    }

    #[test]
    fn what_is_half_made_is_no_snapshot_and_goes() {
        let folder = tempfile::tempdir().unwrap();
        let (data, kept) = (folder.path().join("data"), folder.path().join("snapshots"));
        fs::create_dir(&data).unwrap();
        fs::create_dir(&kept).unwrap();
        fs::write(data.join("file"), vec![7; 1 << 20]).unwrap();
        fs::write(kept.join("cut.new"), "half").unwrap();
        assert!(list(&kept).unwrap().is_empty());
        let broken =
            make(What { within: Some(Duration::ZERO), ..all_of(&data) }, &kept, "late", somebody, |_| {})
                .unwrap_err();
        assert_eq!(broken.kind(), io::ErrorKind::TimedOut);
        let refused = || Err::<Option<()>, _>(io::Error::other("they go on"));
        assert_eq!(
            make(all_of(&data), &kept, "moving", refused, |_| {}).unwrap_err().to_string(),
            "they go on"
        );
        // Nobody stands still for what cannot be kept.
        let large = What { bytes: u64::MAX, ..all_of(&data) };
        let full =
            make(large, &kept, "large", || -> io::Result<Option<()>> { panic!("nobody is asked") }, |_| {});
        assert_eq!(full.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read_dir(&kept).unwrap().count(), 0);
    }

    #[test]
    fn who_stands_still_goes_on_when_all_is_read_or_it_has_failed() {
        struct Standing<'a>(&'a Cell<bool>);
        impl Drop for Standing<'_> {
            fn drop(&mut self) {
                self.0.set(false);
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let stands = Cell::new(false);
        let still = || {
            stands.set(true);
            Ok(Some(Standing(&stands)))
        };
        let kept = folder.path().join("snapshots");
        let told = |_| assert!(stands.get(), "it is read while they stand");
        let data = folder.path().join("data");
        fs::create_dir(&data).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(data.join("socket")).unwrap();
        make(all_of(&data), &kept, "one", still, told).unwrap();
        assert!(!stands.get());
        assert!(make(all_of(&folder.path().join("gone")), &kept, "two", still, |_| {}).is_err());
        assert!(!stands.get());
    }
}
