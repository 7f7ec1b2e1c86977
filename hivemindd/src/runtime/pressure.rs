//! When containers are short of memory, of processes, or of room on the disk. The kernel tells that they have come to the mark
//! that PID 1 set for all of them together: `memory.high`, where it slows down whoever wants more, and `pids.max`, where nobody
//! gets more. So it is chosen who makes room, before the kernel would choose for itself, or everybody stands still. Of the disk
//! it tells nothing: that is looked at.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hivemind_core::event::{ContainerId, Scarce};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::watch::Seen;
use super::{Runtime, cgroup, disk_state, quota};

/// From when on something is short, percent of the mark. Of memory, what is left is files that were read, among them the
/// programs that run; files alone come to the mark whenever they fill what is free, and nobody has to make room for them.
const SHORT_PERCENT: u64 = 96;

/// How often is looked while it is short, and how long after the kernel has told so: it tells whenever files fill what is
/// free, too.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// From when on the disk is short, percent: images that nobody needs have gone since it was at 85.
const DISK_SHORT_PERCENT: u64 = 95;

/// How often the disk is looked at, which costs a system call. Meanwhile an ordinary one takes a gigabyte.
const DISK_LOOK_EVERY: Duration = Duration::from_secs(5);

/// How long to wait with what cannot be watched.
const RETRY: Duration = Duration::from_secs(60);

/// What of the control group of all containers tells that they are short, and of what.
struct Mark {
    of: Scarce,
    /// Changes when they come to the mark.
    events: &'static str,
    limit: &'static str,
    /// What a group uses.
    uses: fn(&Path) -> io::Result<u64>,
}

const MEMORY: Mark = Mark {
    of: Scarce::Memory,
    events: "memory.events",
    limit: "memory.high",
    uses: |group| Ok(kept(&fs::read_to_string(group.join("memory.stat"))?)),
};

const PROCESSES: Mark = Mark {
    of: Scarce::Processes,
    // Of this group alone: a container that comes to its own limit is no shortage of all.
    events: "pids.events.local",
    limit: "pids.max",
    uses: |group| fs::read_to_string(group.join("pids.current"))?.trim().parse().map_err(io::Error::other),
};

impl Runtime {
    /// Tells whenever containers are short of something, and what each uses.
    pub(super) async fn watch_shortages(&self, seen: &mpsc::Sender<Seen>) {
        tokio::join!(
            keep_watching(&MEMORY, seen),
            keep_watching(&PROCESSES, seen),
            watch_disk(&self.settings.log_dir, seen)
        );
    }
}

async fn keep_watching(mark: &Mark, seen: &mpsc::Sender<Seen>) {
    loop {
        if let Err(error) = watch(mark, seen).await {
            // Without the unified hierarchy there are no limits either.
            tracing::debug!(%error, "it is not watched whether containers come to {}", mark.limit);
        }
        if seen.is_closed() {
            return;
        }
        sleep(RETRY).await;
    }
}

/// Tells while the disk that a folder is on is nearly full. Ends when nobody hears it any more.
async fn watch_disk(folder: &Path, seen: &mpsc::Sender<Seen>) {
    loop {
        let short = disk_state(folder).is_some_and(|disk| disk.used_percent() >= DISK_SHORT_PERCENT);
        // Where there are no control groups there are no containers either.
        if short
            && let Ok(uses) = each(&|_, id| quota::held_by(folder, id))
            && seen.send(Seen::Short(Scarce::Disk, uses)).await.is_err()
        {
            return;
        }
        tokio::select! {
            () = sleep(DISK_LOOK_EVERY) => {}
            () = seen.closed() => return,
        }
    }
}

/// What each container that runs uses, by its control group and its name; one that has ended meanwhile uses nothing.
fn each(uses: &dyn Fn(&Path, &str) -> io::Result<u64>) -> io::Result<BTreeMap<ContainerId, u64>> {
    let of = |group: &PathBuf| {
        let name = group.file_name()?.to_str()?;
        Some((ContainerId(name.to_owned()), uses(group, name).ok()?))
    };
    Ok(cgroup::all()?.iter().filter_map(of).collect())
}

/// Ends when nobody hears it any more.
async fn watch(mark: &Mark, seen: &mpsc::Sender<Seen>) -> io::Result<()> {
    let events = File::open(cgroup::workloads().join(mark.events))?;
    // SAFETY: the file is a `File`, which keeps its descriptor open and its own for as long as this has it.
    let mut events =
        unsafe { AsyncFd::register_with_interest(events, Interest::PRIORITY) }.map_err(io::Error::from)?;
    loop {
        // What was told is told anew only once it is read.
        events.get_mut().rewind()?;
        events.get_mut().read_to_string(&mut String::new())?;
        while let Some(uses) = mark.short()? {
            if seen.send(Seen::Short(mark.of, uses)).await.is_err() {
                return Ok(());
            }
            sleep(LOOK_EVERY).await;
        }
        sleep(LOOK_EVERY).await;
        tokio::select! {
            ready = events.ready(Interest::PRIORITY) => ready?.clear_ready(),
            () = seen.closed() => return Ok(()),
        }
    }
}

impl Mark {
    /// What each container uses, if it is too much together.
    fn short(&self) -> io::Result<Option<BTreeMap<ContainerId, u64>>> {
        let all = cgroup::workloads();
        let limit: u64 = match fs::read_to_string(all.join(self.limit))?.trim() {
            "max" => return Ok(None),
            text => text.parse().map_err(io::Error::other)?,
        };
        if (self.uses)(&all)?.saturating_mul(100) < limit.saturating_mul(SHORT_PERCENT) {
            return Ok(None);
        }
        each(&|group, _| (self.uses)(group)).map(Some)
    }
}

/// What cannot be taken back, bytes: what programs made, what they share, and what the kernel keeps for them.
fn kept(stat: &str) -> u64 {
    let value = |name| cgroup::value_of(stat, name);
    (value("anon") + value("shmem") + value("kernel")).saturating_sub(value("slab_reclaimable"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_can_take_back_does_not_count_as_used() {
        let stat =
            "anon 1000\nfile 90000\nkernel 300\nkernel_stack 16\nshmem 50\nslab_reclaimable 200\nslab 250\n";
        assert_eq!(kept(stat), 1150);
        assert_eq!(kept(""), 0);
    }
}
