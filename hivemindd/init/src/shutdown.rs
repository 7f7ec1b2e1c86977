//! The last steps: disks safe, then off.

use std::sync::mpsc;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::reboot::{RebootMode, reboot};

use super::console::line;

/// How long writing everything back and unmounting may take. A disk that hangs longer will not get
/// better, and the file system's journal covers what was not written.
const DISKS_LIMIT: Duration = Duration::from_secs(30);

/// What to do when everything has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    PowerOff,
    Reboot,
}

impl How {
    pub(super) fn announcement(self) -> &'static str {
        match self {
            Self::PowerOff => "shutting down",
            Self::Reboot => "shutting down to reboot",
        }
    }
}

/// Writes everything back, unmounts the state partition and ends the machine's run.
pub(super) fn finish(how: How) -> ! {
    // In a thread, as the only way not to hang with a disk that does.
    let (done, wait) = mpsc::channel();
    let disks = std::thread::Builder::new().spawn(move || {
        nix::unistd::sync();
        unmount_disks();
        // Nobody listens if this took too long.
        let _ = done.send(());
    });
    if disks.is_err() || wait.recv_timeout(DISKS_LIMIT).is_err() {
        line("the disks did not get ready in time");
    }
    let mode = match how {
        How::PowerOff => RebootMode::RB_POWER_OFF,
        How::Reboot => RebootMode::RB_AUTOBOOT,
    };
    line(match how {
        How::PowerOff => "power off",
        How::Reboot => "reboot",
    });
    loop {
        let Err(error) = reboot(mode);
        line(&format!("the machine does not stop: {error}"));
        // A machine without a power switch of its own, or a watchdog that will end this.
        std::thread::sleep(super::REBOOT_DELAY);
    }
}

fn unmount_disks() {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // Later mounts may stand on earlier ones.
    for point in mount_points(&text).iter().rev().filter(|point| is_ours(point)) {
        let _ = umount2(point.as_str(), MntFlags::empty());
    }
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if !mount_points(&text).iter().any(|point| point == "/var") {
        line("state partition unmounted");
        return;
    }
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    match mount(None::<&str>, "/var", None::<&str>, flags, None::<&str>) {
        Ok(()) => line("state partition made read-only"),
        Err(error) => line(&format!("state partition still in use: {error}")),
    }
}

/// Containers' file systems lie below `/run`, volumes and images below `/var`.
fn is_ours(point: &str) -> bool {
    point == "/var" || point.starts_with("/var/") || point.starts_with("/run/")
}

/// The fifth field of each line (proc_pid_mountinfo(5)), with its octal escapes undone.
fn mount_points(mountinfo: &str) -> Vec<String> {
    let field = |line: &str| line.split(' ').nth(4).map(unescape);
    mountinfo.lines().filter_map(field).collect()
}

fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(field.to_owned(), |text, (escape, character)| text.replace(escape, character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_in_order_and_only_ours_are_unmounted() {
        let text = "22 1 254:2 / / ro - squashfs /dev/root ro\n\
                    30 22 254:5 / /var rw,noatime - ext4 /dev/vda5 rw\n\
                    40 30 0:40 / /run/containerd/a\\040b/rootfs rw - overlay overlay rw\n\
                    41 22 0:41 / /variable rw - tmpfs tmpfs rw\n";
        let points = mount_points(text);
        assert_eq!(points, ["/", "/var", "/run/containerd/a b/rootfs", "/variable"]);
        let ours: Vec<_> = points.iter().filter(|point| is_ours(point)).collect();
        assert_eq!(ours, ["/var", "/run/containerd/a b/rootfs"]);
    }
}
