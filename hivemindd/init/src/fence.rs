//! Fences: containers that must not run after a deadline, because the lease of their workload ends
//! (`hivemind_core::lease`). The agent writes the deadline to a file before the container starts and at
//! every renewal; PID 1 kills the container's control group when it passes, whatever has become of the
//! agent and of containerd.
//!
//! A virtual machine that is stopped and goes on later finds its own clock where it was, and by that clock
//! its leases go on too. Its hardware clock has gone on; both sides compare it with their own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::console::since_boot;
use crate::{cgroup, durable, line};

/// One file per container, named for it: `CLOCK_BOOTTIME` in milliseconds, decimal.
pub const FOLDER: &str = "/run/hivemind/fences";

/// The control groups of containers, one per container.
const GROUPS: &str = "/sys/fs/cgroup/hivemind/workloads";

/// Seconds since 1970 by the hardware clock.
const HARDWARE_CLOCK: &str = "/sys/class/rtc/rtc0/since_epoch";

/// How much further than the kernel's own clock the hardware clock must have come between two looks,
/// milliseconds. It tells whole seconds, so that two looks may differ by one from each other.
const STANDSTILL_MS: u64 = 2500;

/// How often deadlines are compared with the time.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How often the hardware clock is read, milliseconds: each time is a trap into the hypervisor.
pub const HARDWARE_EVERY_MS: u64 = 1000;

/// Sets the deadline of the container with that id, `CLOCK_BOOTTIME` milliseconds.
///
/// # Errors
/// Those of the file system. The container must not be started then.
pub fn set(container: &str, until_ms: u64) -> io::Result<()> {
    durable::write(Path::new(FOLDER), container, until_ms.to_string().as_bytes())
}

/// Lifts it: the container is gone.
pub fn lift(container: &str) {
    // Most containers have none.
    let _ = fs::remove_file(Path::new(FOLDER).join(container));
}

/// Milliseconds since the machine was switched on, its sleep included.
pub fn boot_ms() -> u64 {
    u64::try_from(since_boot().as_millis()).unwrap_or(u64::MAX)
}

/// Notices that the machine stood still.
#[derive(Debug, Default)]
pub struct Standstill {
    /// By how much the hardware clock was ahead at the last look, milliseconds.
    ahead_ms: Option<i64>,
}

impl Standstill {
    /// For how long the machine stood still since the last look, milliseconds; 0 when it did not, or when
    /// it has no hardware clock.
    pub fn look(&mut self) -> u64 {
        let hardware =
            fs::read_to_string(HARDWARE_CLOCK).ok().and_then(|text| text.trim().parse::<i64>().ok());
        hardware.map_or(0, |hardware_s| self.compare(hardware_s * 1000, boot_ms()))
    }

    fn compare(&mut self, hardware_ms: i64, boot_ms: u64) -> u64 {
        let ahead_ms = hardware_ms - i64::try_from(boot_ms).unwrap_or(0);
        let before = self.ahead_ms.replace(ahead_ms).unwrap_or(ahead_ms);
        u64::try_from(ahead_ms - before).ok().filter(|ms| *ms >= STANDSTILL_MS).unwrap_or(0)
    }
}

/// PID 1's part.
#[derive(Debug)]
pub struct Fences {
    folder: PathBuf,
    groups: PathBuf,
    standstill: Standstill,
    looked_ms: u64,
}

impl Fences {
    /// Makes the folder in which the agent puts deadlines.
    pub fn new() -> Self {
        let fences = Self::at(Path::new(FOLDER), Path::new(GROUPS));
        if let Err(error) = fs::create_dir_all(&fences.folder) {
            line(&format!("{FOLDER}: {error}; exclusive workloads cannot run"));
        }
        fences
    }

    fn at(folder: &Path, groups: &Path) -> Self {
        let (folder, groups) = (folder.to_owned(), groups.to_owned());
        Self { folder, groups, standstill: Standstill::default(), looked_ms: 0 }
    }

    /// Kills what has run for long enough. Says how soon to look again; nothing when there is nothing to
    /// look at.
    pub fn enforce(&mut self) -> Option<Duration> {
        let deadlines = self.deadlines();
        if deadlines.is_empty() {
            self.standstill = Standstill::default();
            return None;
        }
        let now_ms = boot_ms();
        let mut stood_ms = 0;
        if now_ms >= self.looked_ms + HARDWARE_EVERY_MS {
            self.looked_ms = now_ms;
            stood_ms = self.standstill.look();
        }
        self.kill_due(&deadlines, now_ms, stood_ms);
        Some(LOOK_EVERY)
    }

    fn kill_due(&self, deadlines: &[(String, u64)], now_ms: u64, stood_ms: u64) {
        for (container, until_ms) in deadlines {
            if *until_ms > now_ms && stood_ms == 0 {
                continue;
            }
            let group = cgroup::container(&self.groups, container);
            let events = fs::read_to_string(group.join("cgroup.events")).unwrap_or_default();
            if !events.lines().any(|line| line == "populated 1") {
                continue;
            }
            let why = if stood_ms > 0 {
                format!("the machine stood still for {} s, and its lease may have ended", stood_ms / 1000)
            } else {
                "its lease has ended".to_owned()
            };
            match fs::write(group.join("cgroup.kill"), "1") {
                Ok(()) => line(&format!("container {container} was killed: {why}")),
                Err(error) => line(&format!("container {container} cannot be killed: {error}")),
            }
        }
    }

    fn deadlines(&self) -> Vec<(String, u64)> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return Vec::new() };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        // One that is being written has a dot in its name.
        let names = names.filter(|name| !name.contains('.'));
        let deadline = |name: String| {
            let text = fs::read_to_string(self.folder.join(&name)).ok()?;
            // What cannot be read has no time left.
            Some((name, text.trim().parse().unwrap_or(0)))
        };
        names.filter_map(deadline).collect()
    }
}

impl Default for Fences {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_stood_still_finds_its_hardware_clock_ahead() {
        let mut standstill = Standstill::default();
        assert_eq!(standstill.compare(1_800_000_000_000, 5000), 0);
        assert_eq!(standstill.compare(1_800_000_002_000, 6100), 0, "whole seconds are no standstill");
        assert_eq!(standstill.compare(1_800_000_062_000, 7100), 59_000);
        assert_eq!(standstill.compare(1_800_000_063_000, 8100), 0, "it is noticed once");
        assert_eq!(standstill.compare(1_700_000_000_000, 9100), 0, "a clock that was set back");
    }

    #[test]
    fn what_has_run_for_long_enough_is_killed_and_nothing_else() {
        let base = std::env::temp_dir().join(format!("hivemind-fences-{}", std::process::id()));
        let (folder, groups) = (base.join("fences"), base.join("groups"));
        fs::create_dir_all(&folder).unwrap();
        for (name, until, populated) in
            [("hm-due", "1000", 1), ("hm-later", "3000", 1), ("hm-empty", "1000", 0), ("hm-broken", "x", 1)]
        {
            fs::write(folder.join(name), until).unwrap();
            let group = if name == "hm-due" { groups.join("parent.default.batch") } else { groups.clone() };
            fs::create_dir_all(group.join(name)).unwrap();
            fs::write(group.join(name).join("cgroup.events"), format!("populated {populated}\nfrozen 0\n"))
                .unwrap();
        }
        fs::write(folder.join("hm-later.new"), "0").unwrap();
        let fences = Fences::at(&folder, &groups);
        let killed = |name: &str| cgroup::container(&groups, name).join("cgroup.kill").exists();
        fences.kill_due(&fences.deadlines(), 2000, 0);
        assert_eq!(["hm-due", "hm-later", "hm-empty", "hm-broken"].map(killed), [true, false, false, true]);
        fences.kill_due(&fences.deadlines(), 2000, 60_000);
        assert!(killed("hm-later"), "a machine that stood still trusts no deadline");
        fs::remove_dir_all(&base).unwrap();
    }
}
