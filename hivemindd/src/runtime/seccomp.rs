//! The system calls a container may not make.
//!
//! A list of what is refused rather than of what is allowed: it names the calls that reach the
//! kernel's rarely used and often broken parts, or that only a machine's owner should make. The
//! rest is bounded by capabilities, namespaces and masked paths. A document may choose for itself, by leave of its namespace.

use hivemind_spec::workload::{SeccompFilter, SeccompProfile, kernel_release};
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

/// A document's own profile, for a container whose root has these capabilities (`CAP_SYS_ADMIN`), on this machine.
pub(super) fn chosen(profile: &SeccompProfile, granted: &[String]) -> Value {
    let release = nix::sys::utsname::uname().ok();
    let kernel = release.and_then(|name| kernel_release(&name.release().to_string_lossy()));
    resolved(profile, granted, kernel.unwrap_or_default())
}

/// As the OCI runtime specification writes it, which knows no conditions.
fn resolved(profile: &SeccompProfile, granted: &[String], kernel: (u32, u32)) -> Value {
    let own = if cfg!(target_arch = "aarch64") {
        ("arm64", "SCMP_ARCH_AARCH64")
    } else {
        ("amd64", "SCMP_ARCH_X86_64")
    };
    let since = |text: &String| kernel_release(text).is_some_and(|first| kernel >= first);
    let includes = |filter: &SeccompFilter| {
        filter.caps.iter().all(|name| granted.contains(name))
            && (filter.arches.is_empty() || filter.arches.iter().any(|arch| arch == own.0))
            && filter.min_kernel.as_ref().is_none_or(since)
    };
    let excludes = |filter: &SeccompFilter| {
        filter.caps.iter().any(|name| granted.contains(name))
            || filter.arches.iter().any(|arch| arch == own.0)
            || filter.min_kernel.as_ref().is_some_and(since)
    };
    let holds = profile.syscalls.iter().filter(|rule| {
        rule.includes.as_ref().is_none_or(includes) && !rule.excludes.as_ref().is_some_and(excludes)
    });
    let rules = holds.map(|rule| {
        let mut entry = json!({ "names": rule.calls().collect::<Vec<_>>(), "action": rule.action });
        if let Some(number) = rule.errno_ret {
            entry["errnoRet"] = number.into();
        }
        if let Some(arguments) = &rule.args {
            entry["args"] = json!(arguments);
        }
        entry
    });
    let mapped = profile.arch_map.iter().find(|entry| entry.architecture == own.1).map(|entry| {
        let others = entry.sub_architectures.iter().flatten();
        std::iter::once(&entry.architecture).chain(others).collect::<Vec<_>>()
    });
    let mut spec = json!({
        "defaultAction": profile.default_action,
        "architectures": match (&profile.architectures[..], mapped) {
            ([], None) => architectures(),
            ([], Some(mapped)) => json!(mapped),
            (named, _) => json!(named),
        },
        "syscalls": rules.collect::<Vec<_>>(),
    });
    if let Some(number) = profile.default_errno_ret {
        spec["defaultErrnoRet"] = number.into();
    }
    if !profile.flags.is_empty() {
        spec["flags"] = json!(profile.flags);
    }
    spec
}

fn architectures() -> Value {
    if cfg!(target_arch = "aarch64") {
        json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"])
    } else {
        json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_of_the_documents_own_holds_as_far_as_its_conditions_do() {
        let profile: SeccompProfile = serde_json::from_value(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 38,
            "archMap": [
                { "architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"] },
                { "architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"] },
            ],
            "syscalls": [
                { "names": ["read", "write"], "action": "SCMP_ACT_ALLOW", "args": null, "includes": {} },
                { "names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": { "caps": ["CAP_SYS_ADMIN"] } },
                { "names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": { "caps": ["CAP_SYS_ADMIN"] },
                  "args": [{ "index": 0, "value": 2114060288, "op": "SCMP_CMP_MASKED_EQ" }] },
                { "names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": { "minKernel": "4.8" } },
                { "names": ["s390_runtime_instr"], "action": "SCMP_ACT_ALLOW", "includes": { "arches": ["s390x"] } },
                { "name": "mkdir", "action": "SCMP_ACT_ERRNO", "errnoRet": 5, "excludes": { "arches": ["s390x"] } },
            ],
        }))
        .unwrap();
        let names = |spec: &Value| {
            let rules = spec["syscalls"].as_array().unwrap().iter();
            rules.map(|rule| rule["names"][0].as_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
        };
        let plain = resolved(&profile, &[], (6, 12));
        assert_eq!(names(&plain), "read clone ptrace mkdir");
        assert_eq!(plain["defaultErrnoRet"], 38);
        assert_eq!(plain["architectures"].as_array().unwrap().len(), 2);
        assert_eq!(plain["syscalls"][1]["args"][0]["valueTwo"], 0);
        assert_eq!(plain["syscalls"][3]["errnoRet"], 5);
        let administers = resolved(&profile, &["CAP_SYS_ADMIN".to_owned()], (4, 7));
        assert_eq!(names(&administers), "read mount mkdir");
    }
}
