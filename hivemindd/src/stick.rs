//! Sticks that are plugged in, where there is no network: a FAT file system whose volume label says what it is for.
//!
//! - `HIVESUPPORT` takes away what helps to find out what is wrong: it gets a folder with what `hivemind support` gathers of
//!   this machine. It is given nothing else, and nothing on it is read.
//! - `HIVEIMAGES` brings images, by a list that an admin signed. Nothing is written to it.
//! - `HIVERELEASE` brings the files of a release of the operating system, whose document an admin pushed. Nothing is written
//!   to it.

mod images;
mod release;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hivemind_core::event::Event;
use hivemind_init::{block, volume};
use hivemind_spec::words::timestamp;
use nix::mount::MsFlags;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use crate::agent::{AgentHandle, Happened};
use crate::clock::Clock;
use crate::release::Brought;
use crate::runtime::Runtime;
use crate::support;

/// What a stick is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Purpose {
    Support,
    Images,
    Release,
}

impl Purpose {
    /// By the label of its file system.
    fn labelled(label: &str) -> Option<Self> {
        match label {
            "HIVESUPPORT" => Some(Self::Support),
            hivemind_spec::stick::LABEL => Some(Self::Images),
            hivemind_spec::release::STICK_LABEL => Some(Self::Release),
            _ => None,
        }
    }
}

/// Where a stick is mounted while it is written to or read.
const MOUNT_POINT: &str = "/run/hivemind/stick";

/// What is plugged in comes with several events, which end within this time.
const SETTLE: Duration = Duration::from_secs(1);

/// Sees to sticks for as long as the agent runs: `hardware` says that something was plugged in or pulled out.
pub(crate) async fn keep(
    agent: AgentHandle,
    runtime: Runtime,
    clock: Arc<Clock>,
    brought: Brought,
    events: mpsc::Sender<Event>,
    happened: Arc<Happened>,
    mut hardware: watch::Receiver<()>,
) {
    let mut seen = BTreeSet::new();
    loop {
        // Before it is looked: what comes after that is looked at again.
        hardware.mark_unchanged();
        let sticks = tokio::task::spawn_blocking(sticks).await.unwrap_or_default();
        for (stick, purpose) in sticks.difference(&seen) {
            let path = stick.display();
            let done = match purpose {
                Purpose::Support => fill(&agent, &clock, stick.clone())
                    .await
                    .map(|folder| format!("the stick has what helps ({folder}), and can be pulled out")),
                Purpose::Images => take(&agent, &runtime, stick.clone()).await.map(|images| {
                    let images = images.join(", ");
                    format!("the images of the stick are here ({images}), and it can be pulled out")
                }),
                Purpose::Release => {
                    release::take(&agent, &brought, &events, stick.clone()).await.map(|release| {
                        format!("the release of the stick is here ({release}), and it can be pulled out")
                    })
                }
            };
            match done {
                Ok(what) => {
                    tracing::info!(stick = %path, "{what}");
                    happened.told(clock.now(), "stick", None, what);
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::error!(stick = %path, error, "the stick did not do what it is for");
                    let what = format!("the stick did not do what it is for: {error}");
                    happened.told(clock.now(), "stick-failed", None, what);
                }
            }
        }
        seen = sticks;
        if hardware.changed().await.is_err() {
            return;
        }
        sleep(SETTLE).await;
    }
}

/// The sticks that are for something.
fn sticks() -> BTreeSet<(PathBuf, Purpose)> {
    let devices = block::all().into_iter().map(|device| device.node());
    let purpose = |node: PathBuf| Some((node.clone(), Purpose::labelled(&block::fat_label(&node)?)?));
    devices.filter_map(purpose).collect()
}

/// Takes the images of a stick that the machine was not given yet, and returns their names.
async fn take(agent: &AgentHandle, runtime: &Runtime, stick: PathBuf) -> anyhow::Result<Vec<String>> {
    let (agent, runtime, tasks) = (agent.clone(), runtime.clone(), Handle::current());
    reading(stick, move |root| tasks.block_on(images::take(&agent, &runtime, root))).await
}

/// Reads a stick, which waits for it, while it is mounted.
async fn reading<T: Send + 'static>(
    stick: PathBuf,
    read: impl FnOnce(&Path) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let done = tokio::task::spawn_blocking(move || {
        volume::with_mounted(&stick, Path::new(MOUNT_POINT), MsFlags::MS_RDONLY, read)
    });
    done.await?
}

/// Writes all of it to a stick, and returns the folder's name.
async fn fill(agent: &AgentHandle, clock: &Clock, stick: PathBuf) -> anyhow::Result<String> {
    let files = support::gather(agent).await.map_err(|problem| anyhow::anyhow!(problem.detail))?;
    let node = agent.read(|core, _| core.me()).await.map_err(|problem| anyhow::anyhow!(problem.detail))?;
    let folder = format!("{}-{}", node.short(), timestamp(clock.now().wall_ms)[..19].replace(':', "-"));
    let name = folder.clone();
    let filled = tokio::task::spawn_blocking(move || {
        volume::with_mounted(&stick, Path::new(MOUNT_POINT), MsFlags::empty(), |root| {
            write(&root.join(name), &files).map_err(anyhow::Error::from)
        })
    });
    filled.await??;
    Ok(folder)
}

/// Writes the files below a folder, so that they are on the stick when it returns.
fn write(folder: &Path, files: &BTreeMap<String, String>) -> io::Result<()> {
    for (name, text) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap_or(folder))?;
        let mut file = File::create(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_written_below_a_folder_of_their_own() {
        let root = tempfile::tempdir().unwrap();
        let files = [("agent.log", "well\n"), ("proc/net/dev", "eth0\n")];
        let files = files.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
        write(&root.path().join("hive-2026"), &files).unwrap();
        let read = |name: &str| fs::read_to_string(root.path().join("hive-2026").join(name)).unwrap();
        assert_eq!((read("agent.log"), read("proc/net/dev")), ("well\n".to_owned(), "eth0\n".to_owned()));
    }
}
