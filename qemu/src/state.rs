//! A lab's folder, and the removal of what killed runs left behind.
//!
//! The owner keeps a lock on a file in the folder. The kernel gives the lock up when the owner dies, however it dies,
//! so a folder whose lock is free is stale.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cache::cache_folder;
use crate::error::{Context, Result};
use crate::network::LABEL;

const OWNER: &str = "owner";

/// Processes of a killed owner die at once; this is for a kernel that is still tearing down a large one.
const ORPHANS_GONE_WITHIN: Duration = Duration::from_secs(5);

/// The folder of a living lab, removed when dropped.
#[derive(Debug)]
pub(crate) struct StateDir {
    pub(crate) id: String,
    pub(crate) path: PathBuf,
    owner: Option<Flock<File>>,
}

impl StateDir {
    pub(crate) fn create(name: &str) -> Result<StateDir> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let labs = cache_folder("labs")?;
        let _creation = lock_creation(&labs)?;
        sweep_in(&labs)?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let id = format!("{name}-{}-{count}", std::process::id());
        let path = labs.join(&id);
        fs::create_dir_all(&path).context(format!("create {}", path.display()))?;
        let mut owner = try_lock(&path.join(OWNER))?;
        if let Some(file) = &mut owner {
            let _ = writeln!(**file, "{}", std::process::id());
        }
        Ok(StateDir { id, path, owner })
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
        self.owner.take();
    }
}

/// A lab that is alive, of this or another process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveLab {
    /// Its unique id.
    pub id: String,
    /// The process that owns it.
    pub owner_pid: u32,
    /// Its folder.
    pub path: PathBuf,
}

/// All labs alive on this computer.
pub fn live_labs() -> Result<Vec<LiveLab>> {
    let labs = cache_folder("labs")?;
    let _creation = lock_creation(&labs)?;
    let mut live = Vec::new();
    for path in folders(&labs)? {
        if try_lock(&path.join(OWNER))?.is_none() {
            let owner = fs::read_to_string(path.join(OWNER)).unwrap_or_default();
            let id = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            live.push(LiveLab { id, owner_pid: owner.trim().parse().unwrap_or(0), path });
        }
    }
    Ok(live)
}

/// Removes the folders and processes of labs whose owner was killed. Every new lab does this too.
pub fn sweep() -> Result<()> {
    let labs = cache_folder("labs")?;
    let _creation = lock_creation(&labs)?;
    sweep_in(&labs)
}

/// Held while folders come, so that none is seen between its making and its locking.
fn lock_creation(labs: &Path) -> Result<Flock<File>> {
    let path = labs.join(".lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.context(format!("open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .context(format!("lock {}", path.display()))
}

/// Locks a file of that name, or says that somebody else has it.
fn try_lock(path: &Path) -> Result<Option<Flock<File>>> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path);
    let file = file.context(format!("open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error).context(format!("lock {}", path.display())),
    }
}

fn sweep_in(labs: &Path) -> Result<()> {
    for path in folders(labs)? {
        if let Some(_stale) = try_lock(&path.join(OWNER))? {
            kill_processes_of(&path.file_name().unwrap_or_default().to_string_lossy());
            fs::remove_dir_all(&path).context(format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

fn folders(labs: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(labs).context(format!("read {}", labs.display()))?;
    Ok(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
}

fn kill_processes_of(lab: &str) {
    let started = Instant::now();
    loop {
        let orphans = processes_of(lab);
        if orphans.is_empty() || started.elapsed() > ORPHANS_GONE_WITHIN {
            return;
        }
        for pid in orphans {
            let _ = kill(pid, Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The processes started by a lab, found by the mark in their environment.
pub(crate) fn processes_of(lab: &str) -> Vec<Pid> {
    let mark = format!("{LABEL}={lab}");
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    numbers
        .filter(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
        })
        .map(Pid::from_raw)
        .collect()
}
