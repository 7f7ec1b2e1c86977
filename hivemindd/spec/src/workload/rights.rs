//! What a container may be given beyond what every container has: capabilities, kernel parameters
//! and process limits. What stays inside the container, so that it does not reach the machine and cannot
//! starve other containers, is given to all that ask; other capabilities only where the namespace allows it.

/// What every container's root may do (capabilities(7), without `CAP_`): change owners and users, and
/// serve low ports. The set that Docker gives.
pub const DEFAULT_CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// What can be added: memory locked within the memory limit, leases on the container's own files,
/// broadcasts in its own network, and debugging of its own processes.
pub const MORE_CAPABILITIES: [&str; 4] = ["IPC_LOCK", "LEASE", "NET_BROADCAST", "SYS_PTRACE"];

/// The rest of capabilities(7): each reaches the machine itself or its other containers.
const MACHINE_CAPABILITIES: [&str; 23] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "DAC_READ_SEARCH",
    "IPC_OWNER",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "NET_ADMIN",
    "PERFMON",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// All capabilities, as `cap_add` and `cap_drop` may write it.
pub const ALL_CAPABILITIES: &str = "ALL";

/// The process limits of getrlimit(2) that can be set, as `ulimits` writes them. Missing is `rtprio`:
/// a process with real-time priority goes before everything else on its machine.
pub const ULIMITS: [&str; 14] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rttime",
    "sigpending",
    "stack",
];

/// Kernel parameters outside `net.` and `fs.mqueue.` that belong to the container's own namespaces.
const SYSCTLS: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shm_rmid_forced",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
];

/// A capability's name without `CAP_`, in capitals; `ALL` too.
///
/// # Errors
/// That there is no such capability.
pub fn capability(text: &str) -> Result<&'static str, String> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    every_capability()
        .chain([ALL_CAPABILITIES])
        .find(|known| *known == name)
        .ok_or_else(|| format!("{text:?} is not a capability; write for example NET_BIND_SERVICE"))
}

/// Checks that a capability is called as [`capability`] reads it.
///
/// # Errors
/// That there is no such capability, or how it is written.
pub fn is_capability(name: &str) -> Result<(), String> {
    match capability(name)? {
        read if read == name => Ok(()),
        read => Err(format!("{name:?} must be written {read}")),
    }
}

/// Whether a capability reaches beyond the container: to its machine or to other containers.
pub fn reaches_machine(capability: &str) -> bool {
    !DEFAULT_CAPABILITIES.contains(&capability) && !MORE_CAPABILITIES.contains(&capability)
}

/// Every capability there is.
pub fn every_capability() -> impl Iterator<Item = &'static str> {
    DEFAULT_CAPABILITIES.into_iter().chain(MORE_CAPABILITIES).chain(MACHINE_CAPABILITIES)
}

/// Whether a container may set the kernel parameter.
///
/// # Errors
/// Why not.
pub fn may_set_sysctl(name: &str) -> Result<(), String> {
    let plain = name.split('.').all(|part| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
    });
    if !plain {
        return Err(format!("{name:?} is not a kernel parameter; write for example net.core.somaxconn"));
    }
    if name.starts_with("net.") || name.starts_with("fs.mqueue.") || SYSCTLS.contains(&name) {
        return Ok(());
    }
    Err(format!(
        "{name} belongs to the machine; a container can set net.*, fs.mqueue.*, kernel.sem, kernel.msg* and kernel.shm*"
    ))
}

/// Whether a container may set the process limit.
///
/// # Errors
/// Why not.
pub fn may_set_ulimit(name: &str) -> Result<(), String> {
    if ULIMITS.contains(&name) {
        return Ok(());
    }
    if name == "rtprio" {
        return Err("rtprio would let its processes go before the machine's own".to_owned());
    }
    Err(format!("{name:?} is not a process limit; use one of {}", ULIMITS.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_as_people_write_them() {
        for text in ["NET_RAW", "CAP_NET_RAW", "cap_net_raw", "net_raw"] {
            assert_eq!(capability(text).unwrap(), "NET_RAW");
        }
        assert_eq!(capability("all").unwrap(), "ALL");
        assert!(capability("NET_RAWR").unwrap_err().contains("not a capability"));
        let mut all: Vec<_> = every_capability().collect();
        all.sort_unstable();
        all.dedup();
        // capabilities(7) of Linux 6.12: 0 to CAP_CHECKPOINT_RESTORE, which is 40.
        assert_eq!(all.len(), 41);
    }

    #[test]
    fn what_reaches_the_machine_is_told_apart_from_what_stays_inside_the_container() {
        assert!(MACHINE_CAPABILITIES.into_iter().chain([ALL_CAPABILITIES]).all(reaches_machine));
        assert!(!DEFAULT_CAPABILITIES.into_iter().chain(MORE_CAPABILITIES).any(reaches_machine));
        for name in ["kernel.panic", "vm.swappiness", "kernel.hostname", "fs.file-max", "kernel.shmx"] {
            assert!(may_set_sysctl(name).unwrap_err().contains("the machine"), "{name}");
        }
        for name in ["", "net", "net/core", "net..x", "net.core.x/../y"] {
            assert!(may_set_sysctl(name).is_err(), "{name}");
        }
        for name in ["net.core.somaxconn", "kernel.sem", "fs.mqueue.msg_max", "net.ipv4.conf.eth0.forwarding"]
        {
            assert_eq!(may_set_sysctl(name), Ok(()), "{name}");
        }
        assert!(may_set_ulimit("rtprio").is_err() && may_set_ulimit("files").is_err());
        assert_eq!(may_set_ulimit("nofile"), Ok(()));
    }
}
