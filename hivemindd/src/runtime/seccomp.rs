//! The system calls a container may not make.
//!
//! A list of what is refused rather than of what is allowed: it names the calls that reach the
//! kernel's rarely used and often broken parts, or that only a machine's owner should make. The
//! rest is bounded by capabilities, namespaces and masked paths.

use serde_json::{Value, json};

/// The `clone` flag that asks for a user namespace.
const CLONE_NEWUSER: u64 = 0x1000_0000;

/// "Operation not permitted".
const EPERM: u32 = 1;

/// "Function not implemented": the C library then falls back to an older call.
const ENOSYS: u32 = 38;

/// Calls refused whatever their arguments.
const REFUSED: &[&str] = &[
    "acct",
    "add_key",
    "bpf",
    "clock_adjtime",
    "clock_settime",
    "create_module",
    "delete_module",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "get_kernel_syms",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mount",
    "mount_setattr",
    "move_mount",
    "move_pages",
    "nfsservctl",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pivot_root",
    "query_module",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "setns",
    "settimeofday",
    "swapoff",
    "swapon",
    "sysfs",
    "umount",
    "umount2",
    "unshare",
    "uselib",
    "userfaultfd",
    "ustat",
    "vhangup",
    "vm86",
    "vm86old",
];

/// The profile, as the OCI runtime specification writes it.
pub(super) fn profile() -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        // Calls of the other word sizes are filtered too, not a way around the list.
        "architectures": architectures(),
        "syscalls": [
            { "names": REFUSED, "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM },
            {
                "names": ["clone"],
                "action": "SCMP_ACT_ERRNO",
                "errnoRet": EPERM,
                "args": [{
                    "index": 0,
                    "value": CLONE_NEWUSER,
                    "valueTwo": CLONE_NEWUSER,
                    "op": "SCMP_CMP_MASKED_EQ",
                }],
            },
            // Its flags are behind a pointer a filter cannot follow.
            { "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS },
        ],
    })
}

fn architectures() -> Value {
    if cfg!(target_arch = "aarch64") {
        json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"])
    } else {
        json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"])
    }
}
