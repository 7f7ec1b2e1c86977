//! What must hold for every root file system, checked on the finished file rather than on what went in.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::process::run;

/// Programs that have no place in the image, under any folder: shells, remote log-in, package managers, interpreters
/// and anything that raises privileges.
const FORBIDDEN: [&str; 24] = [
    "apk", "apt", "apt-get", "ash", "bash", "busybox", "dash", "dpkg", "dropbear", "fish", "ksh", "login",
    "modprobe", "perl", "python", "python3", "rpm", "sh", "ssh", "sshd", "su", "sudo", "toybox", "zsh",
];

/// Files that PID 1 and the agent count on.
const REQUIRED: [&str; 16] = [
    "/etc/containerd/config.toml",
    "/etc/os-release",
    "/etc/ssl/certs/ca-certificates.crt",
    "/opt/hivemind/bin/hivemind-init",
    "/sbin",
    "/usr/bin/containerd",
    "/usr/bin/containerd-shim-runc-v2",
    "/usr/bin/crun",
    "/usr/bin/hivemindd",
    "/usr/bin/runc",
    "/usr/lib/hivemind/modules.drivers",
    "/usr/lib/hivemind/modules.late",
    "/usr/lib/hivemind/modules.load",
    "/usr/sbin/e2fsck",
    "/usr/sbin/mkfs.ext4",
    "/usr/sbin/nft",
];

/// Checks a squashfs file.
///
/// # Errors
/// When it cannot be listed, or breaks a rule; the error names all that do.
pub fn root_file_system(squashfs: &Path) -> Result<()> {
    let listing = run(Command::new("unsquashfs").args(["-lln", "-d", ""]).arg(squashfs))?;
    let found = violations(&String::from_utf8_lossy(&listing));
    ensure!(found.is_empty(), "the root file system is not as it must be:\n  {}", found.join("\n  "));
    Ok(())
}

/// The rules broken by a listing of `unsquashfs -lln`: mode, `uid/gid`, size, date, time, path, and `-> target`.
#[must_use]
pub fn violations(listing: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut paths = Vec::new();
    for line in listing.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [mode, owner, _, _, _, path, ..] = words.as_slice() else { continue };
        let kind = mode.as_bytes()[0];
        if !b"-dlbcps".contains(&kind) || mode.len() != 10 {
            continue;
        }
        let name = path.rsplit('/').next().unwrap_or(path);
        if mode[1..].contains(['s', 'S']) {
            found.push(format!("{path} is setuid or setgid"));
        }
        if b"bcps".contains(&kind) {
            found.push(format!("{path} is a device, pipe or socket"));
        }
        if kind != b'l' && mode.as_bytes()[8] == b'w' {
            found.push(format!("{path} can be written by everyone"));
        }
        if *owner != "0/0" {
            found.push(format!("{path} belongs to {owner}"));
        }
        if FORBIDDEN.contains(&name) {
            found.push(format!("{path} must not be in the image"));
        }
        paths.push(*path);
    }
    for required in REQUIRED {
        if !paths.contains(&required) {
            found.push(format!("{required} is missing"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(extra: &str) -> String {
        let line = |path: &&str| format!("-rwxr-xr-x 0/0      10 2026-01-01 00:00 {path}\n");
        REQUIRED.iter().map(line).collect::<String>() + extra + "\n"
    }

    #[test]
    fn a_root_with_all_that_is_required_passes() {
        assert_eq!(violations(&listing("")), [""; 0]);
    }

    #[test]
    fn a_shell_a_setuid_file_a_device_and_a_foreign_owner_are_found() {
        for (line, complaint) in [
            ("-rwxr-xr-x 0/0 1 2026-01-01 00:00 /usr/bin/dash", "must not be"),
            ("lrwxrwxrwx 0/0 4 2026-01-01 00:00 /bin/sh -> dash", "must not be"),
            ("-rwsr-xr-x 0/0 1 2026-01-01 00:00 /usr/bin/mount", "setuid"),
            ("-rwxr-sr-x 0/0 1 2026-01-01 00:00 /usr/bin/wall", "setuid or setgid"),
            ("crw------- 0/0 5,  1 2026-01-01 00:00 /dev/console", "device"),
            ("-rw-r--r-- 0/42 1 2026-01-01 00:00 /etc/shadow", "belongs to 0/42"),
            ("-rw-rw-rw- 0/0 1 2026-01-01 00:00 /etc/x", "written by everyone"),
        ] {
            let found = violations(&listing(line));
            assert!(found.iter().any(|f| f.contains(complaint)), "{line}: {found:?}");
        }
    }

    #[test]
    fn a_missing_program_is_found() {
        let without = listing("").replace("/usr/sbin/nft", "/usr/sbin/other");
        assert_eq!(violations(&without), ["/usr/sbin/nft is missing"]);
    }
}
