//! Which system calls a container may make, in place of what all may: nothing is refused, or what a profile says, in the
//! format of `docker run --security-opt seccomp=FILE` (github.com/moby/profiles, `seccomp.json`), which Podman and
//! Kubernetes read too.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A choice of system calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum SystemCalls {
    /// All that the kernel has.
    Unconfined,
    /// Those that a profile allows.
    Profile(Box<SeccompProfile>),
}

/// A profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SeccompProfile {
    /// What becomes of calls that no rule names.
    pub default_action: SeccompAction,
    /// The error of calls refused so, as errno(3) numbers them; absent: EPERM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_errno_ret: Option<u32>,
    /// The architectures whose calls are looked at, as `SCMP_ARCH_X86_64`; empty: those of the machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub architectures: Vec<String>,
    /// The same, for each kind of machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arch_map: Vec<SeccompArchitecture>,
    /// Options of seccomp(2), as `SECCOMP_FILTER_FLAG_LOG`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
    /// Its rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub syscalls: Vec<SeccompRule>,
}

/// The architectures of one kind of machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SeccompArchitecture {
    /// That of the machine.
    pub architecture: String,
    /// Others whose programs it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub_architectures: Option<Vec<String>>,
}

/// What becomes of some calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SeccompRule {
    /// The calls, as syscalls(2) names them; those that the machine does not know are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// One call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What becomes of them.
    pub action: SeccompAction,
    /// The error of calls refused so; absent: EPERM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno_ret: Option<u32>,
    /// Arguments with which the rule holds: all of them; none: with any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<SeccompArgument>>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Where the rule holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub includes: Option<SeccompFilter>,
    /// Where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excludes: Option<SeccompFilter>,
}

/// A comparison of an argument.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SeccompArgument {
    /// Which, 0 to 5.
    pub index: u32,
    /// What it is compared with; the mask of `SCMP_CMP_MASKED_EQ`.
    pub value: u64,
    /// What it must be under the mask.
    #[serde(default)]
    pub value_two: u64,
    /// How.
    pub op: SeccompOperator,
}

/// Where a rule holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SeccompFilter {
    /// Containers with these capabilities, as `CAP_SYS_ADMIN`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub caps: Vec<String>,
    /// Machines of these kinds, as `amd64` and `arm64`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arches: Vec<String>,
    /// Kernels from this release on, as `4.8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_kernel: Option<String>,
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$about:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
        pub enum $name { $($(#[$about])* #[serde(rename = $word)] $variant,)* }
    };
}

words! {
    /// What becomes of a call (seccomp_rule_add(3)).
    SeccompAction {
        /// The process ends.
        Kill = "SCMP_ACT_KILL",
        /// The process ends with all its threads.
        KillProcess = "SCMP_ACT_KILL_PROCESS",
        /// The thread ends.
        KillThread = "SCMP_ACT_KILL_THREAD",
        /// SIGSYS.
        Trap = "SCMP_ACT_TRAP",
        /// It is refused with an error.
        Errno = "SCMP_ACT_ERRNO",
        /// It is refused unless somebody traces the process.
        Trace = "SCMP_ACT_TRACE",
        /// It is made.
        Allow = "SCMP_ACT_ALLOW",
        /// It is made, and the kernel writes it to its log.
        Log = "SCMP_ACT_LOG",
    }
}

words! {
    /// How an argument is compared.
    SeccompOperator {
        /// Not equal.
        Ne = "SCMP_CMP_NE",
        /// Less.
        Lt = "SCMP_CMP_LT",
        /// Less or equal.
        Le = "SCMP_CMP_LE",
        /// Equal.
        Eq = "SCMP_CMP_EQ",
        /// Greater or equal.
        Ge = "SCMP_CMP_GE",
        /// Greater.
        Gt = "SCMP_CMP_GT",
        /// Equal under a mask.
        MaskedEq = "SCMP_CMP_MASKED_EQ",
    }
}

impl SeccompProfile {
    /// Checks what types cannot say.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn validate(&self) -> Result<(), String> {
        let architectures = self.arch_map.iter().flat_map(|entry| {
            std::iter::once(&entry.architecture).chain(entry.sub_architectures.iter().flatten())
        });
        for name in self.architectures.iter().chain(architectures) {
            if !is_constant(name, "SCMP_ARCH_") {
                return Err(format!("{name:?} is no architecture; write for example SCMP_ARCH_X86_64"));
            }
        }
        if let Some(flag) = self.flags.iter().find(|flag| !is_constant(flag, "SECCOMP_FILTER_FLAG_")) {
            return Err(format!("{flag:?} is no flag of seccomp(2)"));
        }
        for rule in &self.syscalls {
            let is_call = |name: &&String| {
                !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            };
            if let Some(odd) = rule.calls().find(|name| !is_call(name)) {
                return Err(format!("{odd:?} cannot name a system call"));
            }
            if rule.calls().next().is_none() {
                return Err("a rule has neither `names` nor `name`".to_owned());
            }
            if let Some(odd) = rule.args.iter().flatten().find(|argument| argument.index > 5) {
                return Err(format!("a system call has no argument {}; they are 0 to 5", odd.index));
            }
            for filter in [&rule.includes, &rule.excludes].into_iter().flatten() {
                if let Some(text) = filter.min_kernel.as_ref().filter(|text| kernel_release(text).is_none()) {
                    return Err(format!("{text:?} is no release of a kernel; write for example 4.8"));
                }
            }
        }
        Ok(())
    }
}

impl SeccompRule {
    /// The calls it names.
    pub fn calls(&self) -> impl Iterator<Item = &String> {
        self.names.iter().chain(&self.name)
    }
}

/// The first two numbers of a kernel's release.
pub fn kernel_release(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(['.', '-', '+']).map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn is_constant(text: &str, prefix: &str) -> bool {
    let upper = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
    text.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty() && rest.bytes().all(upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_read_as_docker_reads_it_and_faults_are_named() {
        let read = |text: &str| -> Result<(), String> {
            serde_json::from_str::<SeccompProfile>(text).map_err(|error| error.to_string())?.validate()
        };
        let whole = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,
            "archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86","SCMP_ARCH_X32"]},
                       {"architecture":"SCMP_ARCH_AARCH64","subArchitectures":null}],
            "syscalls":[{"names":["read","_llseek"],"action":"SCMP_ACT_ALLOW","args":null,"comment":"","includes":{},
                         "excludes":{"caps":["CAP_SYS_ADMIN"],"arches":["s390x"]}},
                        {"name":"ptrace","action":"SCMP_ACT_ALLOW","includes":{"minKernel":"4.8"},
                         "args":[{"index":0,"value":8,"valueTwo":0,"op":"SCMP_CMP_NE"}]}]}"#;
        assert_eq!(read(whole), Ok(()));
        for (from, to, told) in [
            ("SCMP_ACT_ERRNO", "SCMP_ACT_REFUSE", "SCMP_ACT_REFUSE"),
            ("SCMP_ARCH_X32", "x32", "no architecture"),
            ("_llseek", "", "cannot name a system call"),
            (r#""name":"ptrace","#, "", "neither"),
            (r#""index":0"#, r#""index":6"#, "no argument 6"),
            ("4.8", "new", "no release"),
            ("minKernel", "minimum", "minimum"),
        ] {
            let text = whole.replace(from, to);
            assert_ne!(text, whole);
            assert!(read(&text).unwrap_err().contains(told), "{to}: {:?}", read(&text));
        }
        assert_eq!(kernel_release("6.12.0-hivemind"), Some((6, 12)));
        assert_eq!(kernel_release("6"), None);
    }
}
