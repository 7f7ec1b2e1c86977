//! Volumes on the disk.
//!
//! ```text
//! FOLDER/NAMESPACE/NAME/NUMBER/volume.json   when it was made, and its number for the kernel's quota
//!                              data          what containers see
//!                              fill          what is to become `data` and may be half there; or what it was
//!                              gone          what `data` was, while it is deleted
//!                              snapshots     what `data` had at moments that somebody chose
//! ```
//!
//! A part exists from when its `data` is there, whole and durable, to when its `gone` is not there any more. Nothing is
//! made by looking, and nothing is deleted that was not told to be.

mod archive;
mod copy;
mod snapshot;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hivemind_core::event::{VolumePlan, VolumeState};
use hivemind_core::record::{VolumeId, VolumePart};
use hivemind_init::durable;
use hivemind_spec::volume::Snapshot;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};

pub(super) use self::copy::Image;
use super::{quota, remove_empty_above, remove_folder};

const ABOUT: &str = "volume.json";
const DATA: &str = "data";
const FILL: &str = "fill";
const GONE: &str = "gone";
const SNAPSHOTS: &str = "snapshots";

/// The first project of the kernel's quota that is a volume's; others may have use for the low ones.
const FIRST_PROJECT: u32 = 1000;

/// The longest that containers may stand still for a snapshot: who asks them waits for about a minute at most. For as long
/// waits a container that is to be given the part meanwhile.
pub const MAX_STILL: Duration = Duration::from_secs(60);

/// What is known of a part beside its data.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct About {
    made_ms: u64,
    /// To which its first data was counted; what it has now says for itself.
    project: u32,
}

/// The volumes of this machine.
#[derive(Debug)]
pub(super) struct Volumes {
    folder: PathBuf,
    /// Makes and deletes come one after the other, so that no project is given twice.
    changing: Mutex<()>,
    /// Snapshots are made one after the other: a container may have several volumes, and would go on under the second.
    snapshotting: Mutex<()>,
    /// Parts that are being filled or read.
    held: Mutex<BTreeMap<VolumePart, Held>>,
    /// Something is not held any more.
    let_go: Condvar,
}

/// For what a part is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    /// No container is given it.
    Filled,
    /// By so many; it is neither filled nor deleted.
    Read(u32),
    /// For a snapshot of one moment; it is neither filled nor deleted, and who is to be given it waits.
    Still,
}

/// A snapshot that is wanted.
#[derive(Debug, Clone)]
pub struct WantedSnapshot {
    /// Of which part.
    pub part: VolumePart,
    /// A name that none of it has yet.
    pub name: String,
    /// How long the containers that have the part may stand still; none: they go on.
    pub within: Option<Duration>,
    /// How many of the part's are kept, with this one; the oldest go. None: all.
    pub keep: Option<usize>,
}

/// Keeps a part from being given to containers until this is dropped.
#[derive(Debug)]
pub(super) struct Filling {
    volumes: Arc<Volumes>,
    part: VolumePart,
}

impl Filling {
    /// What is in a snapshot of the part, as an archive.
    ///
    /// # Errors
    /// Those of the file system; [`io::ErrorKind::NotFound`].
    pub(super) fn snapshot(&self, name: &str) -> io::Result<fs::File> {
        let file = fs::File::open(snapshot::place(&self.volumes.snapshot_folder(&self.part), name));
        file.map_err(|error| snapshot::or_absent(error, name))
    }

    /// Gives the part what a tar archive has instead of what it had; it is made if it is not there. It has the one or the
    /// other, whatever happens meanwhile.
    ///
    /// # Errors
    /// Those of the file system and of `from`; [`io::ErrorKind::InvalidData`] for what is no archive of a volume.
    pub(super) fn fill(self, size_bytes: Option<u64>, now_ms: u64, from: impl Read) -> io::Result<()> {
        let volumes = &self.volumes;
        let plan = VolumePlan { part: self.part.clone(), size_bytes };
        let (place, fill) = {
            let _changing = volumes.changing.lock().unwrap_or_else(PoisonError::into_inner);
            let (place, about, counted) = volumes.prepare(&plan, now_ms)?;
            let (there, data) = (place.join(DATA).exists(), project(&place, about));
            let project = if there { volumes.free_project()?.max(data.saturating_add(1)) } else { data };
            let fill = volumes.begin(&plan, &place, project, counted)?;
            (place, fill)
        };
        let filled = archive::unpack(from, &fill)
            .and_then(|()| Ok(nix::unistd::syncfs(fs::File::open(&fill)?)?))
            .and_then(|()| match place.join(DATA).exists() {
                true => Ok(renameat_with(CWD, &fill, CWD, place.join(DATA), RenameFlags::EXCHANGE)?),
                false => fs::rename(&fill, place.join(DATA)),
            })
            .and_then(|()| durable::sync_folder(&place));
        let removed = remove_folder(&fill);
        if filled.is_err() && !place.join(DATA).exists() {
            // It was not there before.
            remove_folder(&place)?;
            remove_empty_above(&place);
        }
        filled.and(removed)
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        self.volumes.let_go(&self.part);
    }
}

/// Keeps a part from being filled and deleted, and what [`Held`] says, until this is dropped.
struct Reading<'a> {
    volumes: &'a Volumes,
    part: &'a VolumePart,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.volumes.let_go(self.part);
    }
}

impl Volumes {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            changing: Mutex::default(),
            snapshotting: Mutex::default(),
            held: Mutex::default(),
            let_go: Condvar::new(),
        }
    }

    fn place(&self, part: &VolumePart) -> PathBuf {
        let VolumeId { namespace, name } = &part.volume;
        self.folder.join(namespace).join(name).join(part.number.to_string())
    }

    /// Where the data of a part is.
    pub(super) fn data(&self, part: &VolumePart) -> PathBuf {
        self.place(part).join(DATA)
    }

    /// The parts that there are.
    pub(super) fn list(&self) -> io::Result<BTreeMap<VolumePart, VolumeState>> {
        let counted = quota::is_on(&self.folder);
        let mut all = BTreeMap::new();
        for (part, place) in self.places()? {
            if !place.join(DATA).exists() && !place.join(GONE).exists() {
                continue;
            }
            let about = about(&place)?;
            let mut state = VolumeState { made_ms: about.made_ms, ..VolumeState::default() };
            if counted {
                let quota::Count { used_bytes, limit_bytes } =
                    quota::look(&self.folder, project(&place, about))?;
                (state.used_bytes, state.size_bytes) = (Some(used_bytes), limit_bytes);
            }
            all.insert(part, state);
        }
        Ok(all)
    }

    /// The places of parts, also of those that are half there.
    fn places(&self) -> io::Result<Vec<(VolumePart, PathBuf)>> {
        let mut places = Vec::new();
        for (namespace, folder) in folders(&self.folder)? {
            for (name, folder) in folders(&folder)? {
                for (number, place) in folders(&folder)? {
                    let Ok(number) = number.parse() else { continue };
                    let volume = VolumeId { namespace: namespace.clone(), name: name.clone() };
                    places.push((VolumePart { volume, number }, place));
                }
            }
        }
        Ok(places)
    }

    /// Makes a part unless it is there, with what the image has at `path` if one is given, and sets its limit.
    ///
    /// # Errors
    /// Those of the file system; there is no part then that was not there before.
    pub(super) fn provide(
        &self,
        plan: &VolumePlan,
        now_ms: u64,
        from: Option<(&Image, &str)>,
    ) -> io::Result<()> {
        let _changing = self.changing_once_moving(&plan.part);
        self.may_give(&plan.part)?;
        let (place, about, counted) = self.prepare(plan, now_ms)?;
        if place.join(DATA).exists() {
            if counted {
                quota::limit(&self.folder, project(&place, about), plan.size_bytes)?;
            }
            return Ok(());
        }
        let fill = self.begin(plan, &place, about.project, counted)?;
        if let Some((image, path)) = from {
            image.copy(path, &fill)?;
        }
        nix::unistd::syncfs(fs::File::open(&fill)?)?;
        fs::rename(&fill, place.join(DATA))?;
        durable::sync_folder(&place)
    }

    /// What is known of a part, which is made if it is not there, without data.
    fn prepare(&self, plan: &VolumePlan, now_ms: u64) -> io::Result<(PathBuf, About, bool)> {
        let place = self.place(&plan.part);
        durable::make_folder(&place)?;
        let about = match about(&place) {
            Ok(about) => about,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let about = About { made_ms: now_ms, project: self.free_project()? };
                durable::write(&place, ABOUT, &serde_json::to_vec(&about)?)?;
                about
            }
            Err(error) => return Err(error),
        };
        let counted = quota::is_on(&self.folder);
        if !counted && plan.size_bytes.is_some() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, quota::NOT_COUNTED));
        }
        // Left by a power cut.
        remove_folder(&place.join(FILL))?;
        Ok((place, about, counted))
    }

    /// An empty folder for what is to become a part's data.
    fn begin(&self, plan: &VolumePlan, place: &Path, project: u32, counted: bool) -> io::Result<PathBuf> {
        remove_folder(&place.join(GONE))?;
        let fill = place.join(FILL);
        fs::create_dir(&fill)?;
        if counted {
            quota::limit(&self.folder, project, plan.size_bytes)?;
            quota::count(&fill, project)?;
        }
        Ok(fill)
    }

    /// Writes what a part has to a tar archive; `told` is what is not in it as it was.
    ///
    /// # Errors
    /// Those of the file system, and of `to`; [`io::ErrorKind::ResourceBusy`]: it is being filled.
    pub(super) fn pack(&self, part: &VolumePart, to: impl Write, told: impl FnMut(String)) -> io::Result<()> {
        let _reading = self.keep(part)?;
        archive::pack(&self.data(part), to, told)
    }

    /// What is read is not exchanged or deleted under its reader, who would take it for all there is.
    fn keep<'a>(&'a self, part: &'a VolumePart) -> io::Result<Reading<'a>> {
        let mut held = self.held();
        match held.entry(part.clone()).or_insert(Held::Read(0)) {
            Held::Read(readers) => *readers += 1,
            other => return Err(busy(part, *other)),
        }
        Ok(Reading { volumes: self, part })
    }

    /// Makes a snapshot of what a part has. If it is to be of one moment, `still` has those who write there stand still until
    /// its answer is dropped; from before it is asked, no other is given the part. None: there is nobody, who would wait.
    ///
    /// # Errors
    /// Those of the file system, and of `still`; [`io::ErrorKind::ResourceBusy`]: it is being filled or read. What there
    /// was is still there.
    pub(super) fn snapshot<S>(
        &self,
        wanted: &WantedSnapshot,
        still: impl FnOnce() -> io::Result<Option<S>>,
        told: impl FnMut(String),
    ) -> io::Result<Snapshot> {
        let WantedSnapshot { part, name, within, keep } = wanted;
        let _alone = self.snapshotting.lock().unwrap_or_else(PoisonError::into_inner);
        let _reading = if within.is_some() { self.keep_still(part)? } else { self.keep(part)? };
        let (place, folder) = (self.place(part), self.snapshot_folder(part));
        let most = keep.unwrap_or(snapshot::MAX_SNAPSHOTS).clamp(1, snapshot::MAX_SNAPSHOTS);
        if keep.is_none() && snapshot::list(&folder)?.len() >= most {
            let what = format!("volume {} has {most} snapshots, the most there may be", part.volume.name);
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, what));
        }
        let what = snapshot::What { data: &place.join(DATA), bytes: self.used(&place)?, within: *within };
        let made = snapshot::make(what, &folder, name, still, told)?;
        let all = snapshot::list(&folder)?;
        let others = all.iter().filter(|snapshot| snapshot.name != *name);
        for old in others.take(all.len().saturating_sub(most)) {
            snapshot::remove(&folder, &old.name)?;
        }
        Ok(made)
    }

    /// What a part takes of the disk, bytes, as far as that is counted.
    fn used(&self, place: &Path) -> io::Result<u64> {
        if !quota::is_on(&self.folder) {
            return Ok(0);
        }
        Ok(quota::look(&self.folder, project(place, about(place)?))?.used_bytes)
    }

    fn keep_still<'a>(&'a self, part: &'a VolumePart) -> io::Result<Reading<'a>> {
        // So that what is being provided is either done or refused.
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut held = self.held();
        if let Some(held) = held.get(part) {
            return Err(busy(part, *held));
        }
        held.insert(part.clone(), Held::Still);
        Ok(Reading { volumes: self, part })
    }

    fn snapshot_folder(&self, part: &VolumePart) -> PathBuf {
        self.place(part).join(SNAPSHOTS)
    }

    /// The snapshots of a part, oldest first.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn snapshots(&self, part: &VolumePart) -> io::Result<Vec<Snapshot>> {
        snapshot::list(&self.snapshot_folder(part))
    }

    /// Removes a snapshot.
    ///
    /// # Errors
    /// Those of the file system; [`io::ErrorKind::NotFound`].
    pub(super) fn remove_snapshot(&self, part: &VolumePart, name: &str) -> io::Result<()> {
        snapshot::remove(&self.snapshot_folder(part), name)
    }

    /// Removes what a power cut left of snapshots that were being made.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn sweep(&self) -> io::Result<()> {
        for (part, _) in self.places()? {
            snapshot::sweep(&self.snapshot_folder(&part))?;
        }
        Ok(())
    }

    /// From now on no container is given the part. Those that have it already are not seen here.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`]: it is being filled or read.
    pub(super) fn keep_free(self: &Arc<Self>, part: VolumePart) -> io::Result<Filling> {
        // So that what is being provided is either done or refused.
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut held = self.held();
        if let Some(held) = held.get(&part) {
            return Err(busy(&part, *held));
        }
        held.insert(part.clone(), Held::Filled);
        Ok(Filling { volumes: Arc::clone(self), part })
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<VolumePart, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn let_go(&self, part: &VolumePart) {
        let mut held = self.held();
        match held.get_mut(part) {
            Some(Held::Read(readers @ 2..)) => *readers -= 1,
            _ => drop(held.remove(part)),
        }
        self.let_go.notify_all();
    }

    /// The right to make and delete, once nobody stands still for a part; or after a while.
    fn changing_once_moving(&self, part: &VolumePart) -> MutexGuard<'_, ()> {
        let until = Instant::now() + MAX_STILL;
        loop {
            let changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
            let held = self.held();
            let left = until.saturating_duration_since(Instant::now());
            if held.get(part) != Some(&Held::Still) || left.is_zero() {
                return changing;
            }
            drop(changing);
            let still = |held: &mut BTreeMap<_, _>| held.get(part) == Some(&Held::Still);
            drop(self.let_go.wait_timeout_while(held, left, still));
        }
    }

    /// Whether a container may be given a part.
    fn may_give(&self, part: &VolumePart) -> io::Result<()> {
        match self.held().get(part) {
            Some(held @ (Held::Filled | Held::Still)) => Err(busy(part, *held)),
            _ => Ok(()),
        }
    }

    /// Sets the limit of a part that is there.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn limit(&self, plan: &VolumePlan) -> io::Result<()> {
        let place = self.place(&plan.part);
        quota::limit(&self.folder, project(&place, about(&place)?), plan.size_bytes)
    }

    fn free_project(&self) -> io::Result<u32> {
        let projects = |(_, place): (VolumePart, PathBuf)| {
            let own = [DATA, FILL].into_iter().filter_map(|name| counted_to(&place.join(name)));
            about(&place).ok().map(|about| about.project).into_iter().chain(own).max()
        };
        Ok(self
            .places()?
            .into_iter()
            .filter_map(projects)
            .max()
            .map_or(FIRST_PROJECT, |last| last.saturating_add(1)))
    }

    /// Deletes a part with all that is in it.
    ///
    /// # Errors
    /// Those of the file system; what is left of it goes the next time.
    pub(super) fn delete(&self, part: &VolumePart) -> io::Result<()> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = self.held().get(part) {
            return Err(busy(part, *held));
        }
        let place = self.place(part);
        match fs::rename(place.join(DATA), place.join(GONE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        remove_folder(&place.join(GONE))?;
        remove_folder(&place)?;
        remove_empty_above(&place);
        Ok(())
    }
}

fn busy(part: &VolumePart, held: Held) -> io::Error {
    let what = match held {
        Held::Filled => "is being filled",
        Held::Read(_) => "is being read",
        Held::Still => "is being read for a snapshot",
    };
    io::Error::new(io::ErrorKind::ResourceBusy, format!("volume {} {what}", part.volume.name))
}

fn about(place: &Path) -> io::Result<About> {
    Ok(serde_json::from_slice(&fs::read(place.join(ABOUT))?)?)
}

/// The project to which a part's data is counted.
fn project(place: &Path, about: About) -> u32 {
    counted_to(&place.join(DATA)).unwrap_or(about.project)
}

/// The project of a volume to which a folder is counted, where there are such.
fn counted_to(folder: &Path) -> Option<u32> {
    quota::counted_to(folder).ok().filter(|project| *project >= FIRST_PROJECT)
}

/// What is in a folder; nothing where there is none.
fn entries(folder: &Path) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The folders in a folder, by name; none where there is none.
fn folders(folder: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in entries(folder)? {
        if let (true, Ok(name)) = (entry.file_type()?.is_dir(), entry.file_name().into_string()) {
            found.push((name, entry.path()));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn plan(name: &str, number: u32) -> VolumePlan {
        let volume = VolumeId { namespace: "default".into(), name: name.into() };
        VolumePlan { part: VolumePart { volume, number }, size_bytes: None }
    }

    #[test]
    fn data_is_there_until_it_is_deleted_and_looking_makes_none() {
        let folder = tempfile::tempdir().unwrap();
        let volumes = Volumes::new(folder.path().join("volumes"));
        assert!(volumes.list().unwrap().is_empty());
        assert!(!folder.path().join("volumes").exists());
        let (one, two) = (plan("data", 0), plan("data", 1));
        volumes.provide(&one, 5, None).unwrap();
        volumes.provide(&two, 6, None).unwrap();
        fs::write(volumes.data(&one.part).join("file"), "kept").unwrap();
        // Twice is as good as once.
        volumes.provide(&one, 7, None).unwrap();
        assert_eq!(fs::read_to_string(volumes.data(&one.part).join("file")).unwrap(), "kept");
        let made: Vec<u64> = volumes.list().unwrap().values().map(|state| state.made_ms).collect();
        assert_eq!(made, [5, 6]);
        volumes.delete(&one.part).unwrap();
        volumes.delete(&one.part).unwrap();
        assert!(volumes.list().unwrap().into_keys().eq([two.part.clone()]));
        volumes.delete(&two.part).unwrap();
        assert!(folders(&volumes.folder).unwrap().is_empty());
    }

    #[test]
    fn what_a_power_cut_leaves_half_made_or_half_deleted_is_whole_the_next_time() {
        let folder = tempfile::tempdir().unwrap();
        let volumes = Volumes::new(folder.path().to_owned());
        let data = plan("data", 0);
        // Before `data` had its name.
        let place = volumes.place(&data.part);
        fs::create_dir_all(place.join(FILL)).unwrap();
        fs::write(place.join(FILL).join("half"), "").unwrap();
        assert!(volumes.list().unwrap().is_empty());
        volumes.provide(&data, 5, None).unwrap();
        assert_eq!(fs::read_dir(volumes.data(&data.part)).unwrap().count(), 0);
        // While it was deleted: it is still there to be deleted.
        fs::rename(place.join(DATA), place.join(GONE)).unwrap();
        assert_eq!(volumes.list().unwrap().len(), 1);
        volumes.delete(&data.part).unwrap();
        assert!(volumes.list().unwrap().is_empty());
    }

    #[test]
    fn each_part_has_a_project_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let volumes = Volumes::new(folder.path().to_owned());
        let project = |plan: &VolumePlan| {
            volumes.provide(plan, 5, None).unwrap();
            about(&volumes.place(&plan.part)).unwrap().project
        };
        assert_eq!(
            [project(&plan("a", 0)), project(&plan("a", 1)), project(&plan("b", 0))],
            [1000, 1001, 1002]
        );
        assert_eq!(project(&plan("a", 1)), 1001);
    }

    fn archive_of(content: &str) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), content).unwrap();
        let mut bytes = Vec::new();
        archive::pack(folder.path(), &mut bytes, |_| {}).unwrap();
        bytes
    }

    #[test]
    fn a_volume_has_what_it_had_or_what_its_backup_has_and_nothing_between() {
        let folder = tempfile::tempdir().unwrap();
        let volumes = Arc::new(Volumes::new(folder.path().join("volumes")));
        let data = plan("data", 0);
        let file = || fs::read_to_string(volumes.data(&data.part).join("file"));
        let fill = |bytes: &[u8]| volumes.keep_free(data.part.clone()).unwrap().fill(None, 5, bytes);
        let whole = archive_of("from the backup");
        // One that breaks off makes no volume,
        assert!(fill(&whole[..700]).is_err());
        assert!(volumes.list().unwrap().is_empty());
        assert!(folders(&volumes.folder).unwrap().is_empty());
        // a whole one does,
        fill(&whole).unwrap();
        assert_eq!(file().unwrap(), "from the backup");
        // and another takes the place of all that is there.
        fs::write(volumes.data(&data.part).join("other"), "").unwrap();
        assert!(fill(&archive_of("half")[..700]).is_err());
        assert!(file().unwrap() == "from the backup" && volumes.data(&data.part).join("other").exists());
        fill(&archive_of("later")).unwrap();
        assert!(file().unwrap() == "later" && !volumes.data(&data.part).join("other").exists());
        assert_eq!(volumes.list().unwrap()[&data.part].made_ms, 5);
        assert!(!volumes.place(&data.part).join(FILL).exists());
    }

    #[test]
    fn no_container_is_given_a_volume_that_is_being_filled() {
        let folder = tempfile::tempdir().unwrap();
        let volumes = Arc::new(Volumes::new(folder.path().to_owned()));
        let data = plan("data", 0);
        let busy = |result: io::Result<()>| result.unwrap_err().kind() == io::ErrorKind::ResourceBusy;
        let filling = volumes.keep_free(data.part.clone()).unwrap();
        assert!(busy(volumes.provide(&data, 5, None)));
        assert!(busy(volumes.delete(&data.part)));
        assert!(busy(volumes.keep_free(data.part.clone()).map(drop)));
        assert!(busy(volumes.pack(&data.part, io::sink(), |_| {})));
        volumes.provide(&plan("other", 0), 5, None).unwrap();
        drop(filling);
        volumes.provide(&data, 5, None).unwrap();
    }

    #[test]
    fn what_is_read_for_a_backup_is_neither_filled_nor_deleted_meanwhile_and_containers_have_it() {
        let folder = tempfile::tempdir().unwrap();
        let volumes = Arc::new(Volumes::new(folder.path().to_owned()));
        let data = plan("data", 0);
        volumes.provide(&data, 5, None).unwrap();
        let busy = |result: io::Result<()>| result.unwrap_err().kind() == io::ErrorKind::ResourceBusy;
        let readers = [volumes.keep(&data.part).unwrap(), volumes.keep(&data.part).unwrap()];
        for reader in readers {
            assert!(busy(volumes.keep_free(data.part.clone()).map(drop)));
            assert!(busy(volumes.delete(&data.part)));
            volumes.provide(&data, 5, None).unwrap();
            drop(reader);
        }
        volumes.keep_free(data.part.clone()).map(drop).unwrap();
        volumes.delete(&data.part).unwrap();
    }

    #[test]
    fn who_is_to_be_given_a_volume_waits_until_its_snapshot_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let volumes = Volumes::new(folder.path().to_owned());
        let data = plan("data", 0);
        volumes.provide(&data, 5, None).unwrap();
        let wanted = |name: &str, within| WantedSnapshot {
            part: data.part.clone(),
            name: name.to_owned(),
            within,
            keep: None,
        };
        let given = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let still = || {
                scope.spawn(|| {
                    volumes.provide(&data, 5, None).unwrap();
                    given.store(true, Ordering::SeqCst);
                });
                std::thread::sleep(Duration::from_millis(100));
                assert!(!given.load(Ordering::SeqCst));
                assert_eq!(volumes.delete(&data.part).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
                Ok(Some(()))
            };
            volumes.snapshot(&wanted("one", Some(Duration::from_secs(60))), still, |_| {}).unwrap();
        });
        assert!(given.load(Ordering::SeqCst));
        // Not for one that is of no one moment.
        let goes_on = || {
            volumes.provide(&data, 5, None)?;
            Ok(None::<()>)
        };
        volumes.snapshot(&wanted("two", None), goes_on, |_| {}).unwrap();
        let names: Vec<String> =
            volumes.snapshots(&data.part).unwrap().into_iter().map(|snapshot| snapshot.name).collect();
        assert_eq!(names, ["one", "two"]);
        let last = WantedSnapshot { keep: Some(1), ..wanted("three", None) };
        volumes.snapshot(&last, || Ok(None::<()>), |_| {}).unwrap();
        assert_eq!(volumes.snapshots(&data.part).unwrap().len(), 1);
    }
}
