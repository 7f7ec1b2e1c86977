//! The node's durable store: what the core persists, and nothing else.
//!
//! sled behind the small [`Store`] trait, on a thread of its own. sled is good at surviving a
//! SIGKILL and bad at surviving damage, so this module
//!
//! * keeps a checksum with every value and reads everything once at the start;
//! * contains sled's panics ([`abort_on_panic`] spares the threads marked here);
//! * sets a damaged store aside, begins a new one, and carries over what could still be read.
//!
//! Losing the store is safe: documents are signed and come back from peers, observations are made
//! anew, and the node's identity is elsewhere.

use std::cell::Cell;
use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use hivemind_init::durable;

/// Where the store is on a machine.
pub const FOLDER: &str = "/var/lib/hivemind/store";

/// What a damaged store is called from then on. One is kept for people to look at; an older one
/// goes, so that repeated damage does not fill the disk.
const SET_ASIDE: &str = "damaged";

/// Exists while a store that failed at run time waits for the next start to set it aside.
const SUSPECT: &str = "suspect";

/// Memory for sled's cache, bytes. Its default is a gigabyte; the core keeps the map in memory, so
/// reads are rare.
const CACHE_BYTES: u64 = 2 * 1024 * 1024;

/// sled's segment, bytes: the unit in which its file grows and is cleaned. Holds many records and
/// keeps the memory of its write buffers small.
const SEGMENT_BYTES: usize = 512 * 1024;

/// Batches that wait for the disk. The core holds back what depends on them, so more than this
/// means that the disk has stopped.
const MAX_WAITING: usize = 1024;

/// Batches made durable by one flush, at most.
const MAX_GROUP: usize = 64;

/// How long opening waits for the agent before this one to let go of the store.
const IN_USE_PATIENCE: Duration = Duration::from_secs(3);

/// What sled 0.34.7 says when its file is locked; it has no kind of its own for that.
const SLED_LOCKED: &str = "could not acquire lock";

/// The file in which sled 0.34.7 keeps everything.
const SLED_FILE: &str = "db";

/// Bytes of checksum before each value.
const CHECKSUM_BYTES: usize = 8;

/// A write: key and value; `None` removes.
pub type Write = (Vec<u8>, Option<Vec<u8>>);

/// Keys and their values, in the order of keys.
pub type Entries = Vec<(Vec<u8>, Vec<u8>)>;

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk refused: full, read-only or broken.
    #[error("the disk refused: {0}")]
    Disk(#[from] io::Error),
    /// What is stored cannot be right. The next start sets the store aside.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    /// Another process has the store open.
    #[error("the store is in use by another process")]
    InUse,
    /// Too many batches wait.
    #[error("the disk does not keep up: {MAX_WAITING} batches wait")]
    Busy,
    /// The batch was not made durable, for the reason of the whole group.
    #[error("{0}")]
    Failed(String),
    /// The store's thread has ended.
    #[error("the store is closed")]
    Closed,
}

/// A place for keys and values.
pub trait Store: Send {
    /// The value of a key.
    ///
    /// # Errors
    /// When the disk or the stored bytes are bad.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// All entries whose keys start with `prefix`.
    ///
    /// # Errors
    /// When the disk or the stored bytes are bad.
    fn scan(&self, prefix: &[u8]) -> Result<Entries, StoreError>;

    /// Makes all writes visible, or none; also after a crash.
    ///
    /// # Errors
    /// When the disk is bad or full.
    fn apply(&self, writes: &[Write]) -> Result<(), StoreError>;

    /// Returns when everything applied is on the disk.
    ///
    /// # Errors
    /// When the disk is bad or full.
    fn flush(&self) -> Result<(), StoreError>;
}

/// The store in sled.
pub struct SledStore {
    database: sled::Db,
    folder: PathBuf,
    /// sled's own file, for what sled leaves out of a flush.
    file: File,
}

/// A store that was opened.
pub struct Opened {
    /// The store.
    pub store: SledStore,
    /// Where a damaged one before it was put, and what was wrong with it.
    pub set_aside: Option<(PathBuf, String)>,
}

impl SledStore {
    /// Opens the store in `folder`, or begins one. A damaged one is renamed to
    /// `FOLDER.damaged`, and what can be read of it goes into the new one.
    ///
    /// # Errors
    /// When the disk refuses or another process has it open; damage is no error.
    pub fn open(folder: &Path) -> Result<Opened, StoreError> {
        let mut readable = Entries::new();
        let begun = Instant::now();
        let damage = loop {
            match Self::open_checked(folder, &mut readable) {
                Ok(store) => return Ok(Opened { store, set_aside: None }),
                Err(StoreError::InUse) if begun.elapsed() < IN_USE_PATIENCE => {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(StoreError::InUse) => return Err(StoreError::InUse),
                // A full or read-only disk is not cured by moving the store away.
                Err(StoreError::Disk(error)) if is_the_disks(&error) => return Err(error.into()),
                Err(error) => break error.to_string(),
            }
        };
        let aside = beside(folder, SET_ASIDE);
        if aside.exists() {
            fs::remove_dir_all(&aside)?;
        }
        if folder.exists() {
            fs::rename(folder, &aside)?;
        }
        if let Some(above) = folder.parent() {
            durable::sync_folder(above)?;
        }
        let store = Self::open_checked(folder, &mut Entries::new())?;
        tracing::error!(
            damage,
            kept = readable.len(),
            "the store was damaged and set aside as {}; peers bring back what is missing",
            aside.display()
        );
        let writes: Vec<Write> = readable.into_iter().map(|(key, value)| (key, Some(value))).collect();
        store.apply(&writes)?;
        store.flush()?;
        Ok(Opened { store, set_aside: Some((aside, damage)) })
    }

    /// Opens and reads everything once. What could be read is in `readable`, also after an error.
    fn open_checked(folder: &Path, readable: &mut Entries) -> Result<Self, StoreError> {
        durable::make_folder(folder)?;
        let database = contained(|| {
            sled::Config::new()
                .path(folder)
                .cache_capacity(CACHE_BYTES)
                .segment_size(SEGMENT_BYTES)
                .flush_every_ms(None)
                .open()
        })?;
        durable::sync_folder(folder)?;
        let file = File::open(folder.join(SLED_FILE))?;
        let store = Self { database, folder: folder.to_owned(), file };
        contained(|| {
            for entry in store.database.iter() {
                let (key, value) = entry?;
                match checked(&value) {
                    Some(value) => readable.push((key.to_vec(), value)),
                    None => return Err(sled::Error::Unsupported("a value's checksum is wrong".to_owned())),
                }
            }
            Ok(())
        })?;
        if folder.join(SUSPECT).exists() {
            return Err(StoreError::Damaged("it failed while it was in use".to_owned()));
        }
        Ok(store)
    }

    /// Runs one of sled's operations; damage found is remembered for the next start.
    fn guarded<T>(&self, operation: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
        let result = contained(operation);
        if matches!(result, Err(StoreError::Damaged(_))) {
            // If even this cannot be written, the next start finds the damage by reading.
            let _ = durable::write(&self.folder, SUSPECT, b"");
        }
        result
    }
}

impl Store for SledStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.guarded(|| self.database.get(key)?.map(|value| checked_or_error(&value)).transpose())
    }

    fn scan(&self, prefix: &[u8]) -> Result<Entries, StoreError> {
        self.guarded(|| {
            let entry = |entry: sled::Result<(sled::IVec, sled::IVec)>| {
                let (key, value) = entry?;
                Ok((key.to_vec(), checked_or_error(&value)?))
            };
            self.database.scan_prefix(prefix).map(entry).collect()
        })
    }

    fn apply(&self, writes: &[Write]) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for (key, value) in writes {
            match value {
                Some(value) => batch.insert(key.as_slice(), [&checksum(value)[..], value].concat()),
                None => batch.remove(key.as_slice()),
            }
        }
        self.guarded(|| self.database.apply_batch(batch))
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.guarded(|| self.database.flush().map(|_| ()))?;
        // sled 0.34.7 hands its pages to the disk (`sync_file_range`) and does not ask it to keep them.
        self.file.sync_all()?;
        Ok(())
    }
}

/// A folder's neighbour: `store` to `store.damaged`.
fn beside(folder: &Path, suffix: &str) -> PathBuf {
    let mut name = folder.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

/// Whether an error tells of the disk and not of what is on it.
fn is_the_disks(error: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem, ResourceBusy, StorageFull, WouldBlock};
    matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem | ResourceBusy | StorageFull | WouldBlock)
}

/// The first bytes of a value's SHA-256: finds accidents, not attackers; those are found by the
/// signatures in the values.
fn checksum(value: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut sum = [0; CHECKSUM_BYTES];
    sum.copy_from_slice(&ring::digest::digest(&ring::digest::SHA256, value).as_ref()[..CHECKSUM_BYTES]);
    sum
}

fn checked(stored: &[u8]) -> Option<Vec<u8>> {
    let (sum, value) = stored.split_at_checked(CHECKSUM_BYTES)?;
    (checksum(value) == sum).then(|| value.to_vec())
}

fn checked_or_error(stored: &[u8]) -> sled::Result<Vec<u8>> {
    checked(stored).ok_or_else(|| sled::Error::Unsupported("a value's checksum is wrong".to_owned()))
}

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Runs one of sled's operations so that neither its errors nor its panics go further.
fn contained<T>(operation: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
    CONTAINED.set(true);
    // After a panic the store is never used again but to be set aside.
    let result = catch_unwind(AssertUnwindSafe(operation));
    CONTAINED.set(false);
    match result {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(sled::Error::Io(error))) if error.to_string().starts_with(SLED_LOCKED) => {
            Err(StoreError::InUse)
        }
        Ok(Err(sled::Error::Io(error))) => match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                Err(StoreError::Damaged(error.to_string()))
            }
            _ => Err(StoreError::Disk(error)),
        },
        Ok(Err(error)) => Err(StoreError::Damaged(error.to_string())),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(StoreError::Damaged(format!("sled panicked: {}", text.unwrap_or_default())))
        }
    }
}

/// Lets a panic end the process, as it should: a daemon with a dead task is worse than one that
/// starts again. Spared are only sled's operations, which panic on damaged files. To be called
/// once by the daemon's `main`; the release profile unwinds for the sake of this one exception.
pub fn abort_on_panic() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        before(panic);
        let is_sleds = thread::current().name().is_some_and(|name| name.starts_with("sled-"));
        if !CONTAINED.get() && !is_sleds {
            std::process::abort();
        }
    }));
}

type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

enum Command {
    Write { writes: Vec<Write>, answer: Answer<()> },
    Scan { prefix: Vec<u8>, answer: Answer<Entries> },
}

/// The store on its thread. Clones share it; the thread ends with the last of them, after
/// everything accepted is on the disk.
#[derive(Clone)]
pub struct StoreHandle {
    commands: mpsc::Sender<Command>,
}

impl StoreHandle {
    /// Opens the store in `folder` as [`SledStore::open`] does and starts its thread. Gives
    /// everything that is in it.
    ///
    /// # Errors
    /// When the disk refuses or no thread can be made.
    pub fn open(folder: &Path) -> Result<(Self, Entries), StoreError> {
        let store = SledStore::open(folder)?.store;
        let entries = store.scan(b"")?;
        Ok((Self::start(store)?, entries))
    }

    /// Starts the thread of a store.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start(store: impl Store + 'static) -> Result<Self, StoreError> {
        let (commands, inbox) = mpsc::channel(MAX_WAITING);
        thread::Builder::new().name("store".to_owned()).spawn(move || serve(&store, inbox))?;
        Ok(Self { commands })
    }

    /// Writes a batch, all or nothing. It is accepted by the call, in the order of calls, and
    /// durable when the future gives `Ok`. Dropping the future does not take the batch back.
    ///
    /// # Errors
    /// The future says why nothing of the batch counts.
    pub fn write(
        &self,
        writes: Vec<Write>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send + 'static + use<> {
        let (answer, result) = oneshot::channel();
        let refused = match self.commands.try_send(Command::Write { writes, answer }) {
            Ok(()) => None,
            Err(mpsc::error::TrySendError::Full(_)) => Some(StoreError::Busy),
            Err(mpsc::error::TrySendError::Closed(_)) => Some(StoreError::Closed),
        };
        async move {
            match refused {
                Some(error) => Err(error),
                None => result.await.map_err(|_| StoreError::Closed)?,
            }
        }
    }

    /// All entries whose keys start with `prefix`, after all batches accepted before.
    ///
    /// # Errors
    /// When the disk or the stored bytes are bad.
    pub async fn scan(&self, prefix: &[u8]) -> Result<Entries, StoreError> {
        let (answer, result) = oneshot::channel();
        let command = Command::Scan { prefix: prefix.to_vec(), answer };
        self.commands.send(command).await.map_err(|_| StoreError::Closed)?;
        result.await.map_err(|_| StoreError::Closed)?
    }
}

/// The thread: applies what waits, flushes once for all of it, then tells.
fn serve(store: &impl Store, mut inbox: mpsc::Receiver<Command>) {
    while let Some(first) = inbox.blocking_recv() {
        let mut next = Some(first);
        let mut applied = Vec::new();
        let mut scan = None;
        while let Some(command) = next.take() {
            match command {
                Command::Write { writes, answer } => applied.push((answer, store.apply(&writes))),
                Command::Scan { prefix, answer } => scan = Some((prefix, answer)),
            }
            if applied.len() < MAX_GROUP && scan.is_none() {
                next = inbox.try_recv().ok();
            }
        }
        let flush_failure =
            if applied.is_empty() { None } else { store.flush().err().map(|error| error.to_string()) };
        for (answer, result) in applied {
            let result = result.and_then(|()| match &flush_failure {
                None => Ok(()),
                Some(reason) => Err(StoreError::Failed(reason.clone())),
            });
            // Nobody listens when the agent stops; the batch is durable all the same.
            let _ = answer.send(result);
        }
        if let Some((prefix, answer)) = scan {
            let _ = answer.send(store.scan(&prefix));
        }
    }
}

#[cfg(test)]
mod tests;
