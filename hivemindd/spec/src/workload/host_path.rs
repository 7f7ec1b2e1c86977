//! Folders and files of the machine in a container.
//!
//! What the machine shows of itself can be read by leave of the namespace (`host-paths`): the kernel's view of it, its
//! devices' names, and what its image has. Its processes are those of all containers, and root in one can look into others that
//! have no more rights than it: that is what sharing them is called already (`host-namespaces`). All else is what other containers
//! and the cluster keep there, or changes the machine: who may have that is as good as root.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::tmpfs::may_cover;

/// What a machine shows of itself: to read, with all that is below.
const SHOWN: [&str; 5] = ["/dev", "/etc", "/lib", "/sys", "/usr"];

/// The kernel's view of all processes: as a whole only, because links below it lead anywhere.
const PROCESSES: &str = "/proc";

/// Of what it shows, what can be written without changing the machine: devices are another permission.
const WRITABLE: &str = "/dev";

/// A folder or file of the machine in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostPath {
    /// On the machine, absolute.
    pub path: String,
    /// Where in the container.
    pub target: String,
    /// Whether the container may only read it, and all that is mounted below.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Whether what the machine mounts below later is seen too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub follows: bool,
}

/// How much of the machine something gives away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// What the machine shows of itself.
    Shown,
    /// All processes.
    Processes,
    /// What is as good as root on the machine.
    Everything,
}

impl HostPath {
    /// How much of the machine it gives away, if `path` is where it leads.
    pub fn reach(&self, path: &str) -> Reach {
        let below = |folder: &str| {
            path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        match self.read_only {
            true if path == PROCESSES => Reach::Processes,
            true if SHOWN.into_iter().any(below) => Reach::Shown,
            false if below(WRITABLE) => Reach::Shown,
            _ => Reach::Everything,
        }
    }

    pub(super) fn validate(&self) -> Result<(), String> {
        if !is_absolute(&self.path) || self.path.len() > 1 && self.path.ends_with('/') {
            return Err(format!(
                "{:?} is no absolute path without `.`, `..` and a slash at its end",
                self.path
            ));
        }
        target(&self.target)
    }
}

/// Whether something from outside of the container can be mounted there.
///
/// # Errors
/// Why not.
pub(super) fn target(path: &str) -> Result<(), String> {
    if !is_absolute(path) {
        return Err(format!("{path:?} is no absolute path without `.` and `..`"));
    }
    may_cover(path)
}

/// Whether a path leads straight from the root to where it says.
pub(super) fn is_absolute(path: &str) -> bool {
    path.starts_with('/') && !path.contains('\0') && is_plain(path)
}

/// Whether a path leads straight to where it says.
pub(super) fn is_plain(path: &str) -> bool {
    !path.contains("//") && !path.split('/').any(|part| part == ".." || part == ".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_shows_of_itself_is_told_apart_from_what_it_keeps() {
        let reach = |path: &str, read_only| {
            HostPath { path: path.into(), target: "/a".into(), read_only, follows: false }.reach(path)
        };
        assert_eq!(reach("/proc", true), Reach::Processes);
        for shown in ["/sys", "/sys/class/net", "/dev/disk", "/etc/os-release", "/usr/share/zoneinfo"] {
            assert_eq!(reach(shown, true), Reach::Shown, "{shown}");
        }
        assert_eq!(reach("/dev/serial", false), Reach::Shown);
        for kept in
            ["/", "/var", "/var/lib/hivemind", "/run", "/proc/1/root", "/proc/self/root", "/sysx", "/devx"]
        {
            assert_eq!(reach(kept, true), Reach::Everything, "{kept}");
        }
        for changed in ["/proc", "/sys", "/etc"] {
            assert_eq!(reach(changed, false), Reach::Everything, "{changed}");
        }
    }

    #[test]
    fn a_path_says_where_it_leads() {
        let check = |path: &str, target: &str| {
            HostPath { path: path.into(), target: target.into(), read_only: true, follows: false }.validate()
        };
        check("/", "/rootfs").unwrap();
        check("/sys", "/host/sys").unwrap();
        for (path, target) in [
            ("sys", "/a"),
            ("/sys/../var", "/a"),
            ("/sys/", "/a"),
            ("//sys", "/a"),
            ("/sys", "a"),
            ("/sys", "/sys"),
            ("/sys", "/"),
        ] {
            check(path, target).unwrap_err();
        }
    }
}
