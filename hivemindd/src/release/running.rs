//! The release this machine was started with, and what its boot menu says of others.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hivemind_init::release::{self, Release, Slots};
use hivemind_spec::api;
use hivemind_spec::id::ReleaseId;
use hivemind_spec::release::Architecture;
use hivemind_spec::words::chain;
use tokio::sync::watch;

use super::source::Part;

/// How long to wait before the boot menu is written to again, after an error.
const MENU_PAUSE: Duration = Duration::from_secs(5);

/// What the system says of itself (freedesktop.org, os-release).
const OS_RELEASE: &str = "/etc/os-release";

/// The release and its menu. Clones share them.
#[derive(Clone)]
pub struct Running {
    /// None for a machine that was started without a boot menu, or whose menu cannot be read: it cannot be updated.
    release: Option<Arc<Mutex<Release>>>,
    told: watch::Sender<Option<api::Release>>,
}

impl Running {
    /// Looks at what the machine was started with. The receiver is told what becomes of it.
    #[must_use]
    pub fn look() -> (Self, watch::Receiver<Option<api::Release>>) {
        let release = Release::running().unwrap_or_else(|error| {
            tracing::error!(%error, "the boot menu cannot be opened");
            None
        });
        let (told, state) = watch::channel(None);
        let running = Self { release: release.map(|release| Arc::new(Mutex::new(release))), told };
        running.tell();
        (running, state)
    }

    /// Writes to the boot menu that the release is good; what fails is tried again for as long as PID 1 waits for it.
    /// Blocks.
    pub fn call_good(&self) {
        let Some(release) = &self.release else { return };
        let since = Instant::now();
        while let Err(error) = lock(release).call_good() {
            tracing::warn!(%error, "the release cannot be called good in the boot menu");
            if since.elapsed() > release::TRIAL {
                return;
            }
            std::thread::sleep(MENU_PAUSE);
        }
        tracing::info!(release = lock(release).id(), "the release is good");
        self.tell();
    }

    /// Reads from a file of the release that runs, for a peer. Blocks.
    ///
    /// # Errors
    /// When it is another release, or the range is not in the file, or reading fails.
    pub fn read(&self, id: ReleaseId, part: Part, from: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let other = || io::Error::new(io::ErrorKind::NotFound, "this node runs another release");
        let release = self.release.as_ref().ok_or_else(other)?;
        let release = lock(release);
        if release.id() != id.to_string() {
            return Err(other());
        }
        let mut buffer = vec![0; bytes];
        match part {
            Part::Root => {
                let slots = release.slots().map_err(io::Error::other)?;
                // The menu is not needed any longer.
                drop(release);
                let mut slot = File::open(&slots.running)?;
                slot.seek(SeekFrom::Start(from))?;
                slot.read_exact(&mut buffer)?;
            }
            Part::Kernel => release.with_image(|image| {
                image.seek(SeekFrom::Start(from))?;
                image.read_exact(&mut buffer)
            })?,
        }
        Ok(buffer)
    }

    /// Where roots are on this machine.
    ///
    /// # Errors
    /// In words, when it cannot take another release.
    pub(super) fn slots(&self) -> Result<Slots, String> {
        let release = self.release.as_ref().ok_or("the machine was not started from a boot menu")?;
        lock(release).slots().map_err(|error| chain(&error))
    }

    /// Hands the unified kernel image that runs to `look`.
    pub(super) fn with_kernel(
        &self,
        look: impl FnOnce(&mut dyn io::Read) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(release) = &self.release else { return Ok(()) };
        lock(release).with_image(|image| look(&mut &mut *image))
    }

    /// Takes every other release out of the boot menu, before the spare slot is written to.
    pub(super) fn stay_alone(&self) -> io::Result<()> {
        let Some(release) = &self.release else { return Ok(()) };
        lock(release).stay_alone()?;
        self.tell();
        Ok(())
    }

    /// Enters a release in the boot menu, to be tried at the next start.
    pub(super) fn enter(&self, id: ReleaseId, title: &str, image: File) -> io::Result<()> {
        let Some(release) = &self.release else { return Ok(()) };
        lock(release).enter(&id.to_string(), title, image)
    }

    /// Tells what the menu says now.
    fn tell(&self) {
        let Some(release) = &self.release else { return };
        let state = read(&lock(release)).unwrap_or_else(|error| {
            tracing::error!(%error, "the boot menu cannot be read");
            None
        });
        self.told.send_if_modified(|told| {
            let changed = *told != state;
            *told = state;
            changed
        });
    }
}

fn read(release: &Release) -> io::Result<Option<api::Release>> {
    // Names of another form are another system's.
    let (Ok(id), Some(architecture)) = (release.id().parse(), Architecture::own()) else { return Ok(None) };
    let failed = release.failed()?.iter().filter_map(|id| id.parse().ok()).collect();
    let minimum = os_release("HIVEMIND_MINIMUM").unwrap_or_default();
    Ok(Some(api::Release { id, architecture, minimum, on_trial: release.is_on_trial()?, failed }))
}

/// What the system says of itself under a name.
pub(crate) fn os_release(name: &str) -> Option<String> {
    let text = std::fs::read_to_string(OS_RELEASE).ok()?;
    text.lines()
        .find_map(|line| Some(line.strip_prefix(name)?.strip_prefix('=')?.trim_matches('"').to_owned()))
}

/// The menu is for one at a time.
fn lock(release: &Mutex<Release>) -> MutexGuard<'_, Release> {
    release.lock().unwrap_or_else(PoisonError::into_inner)
}
