//! A folder of an NFS server in a container: version 4 (RFC 7530, RFC 8881, RFC 7862), mounted by the container's machine.
//!
//! The server sees the machine: its address, and the users of containers by their numbers. So a container is given it by leave
//! of its namespace (`nfs`).

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::host_path::{is_absolute, target};

/// The port of NFS (RFC 7530, section 3.1.1).
pub const NFS_PORT: u16 = 2049;

/// The versions that there are, the last first, which is the order in which they are tried.
pub const NFS_VERSIONS: [&str; 3] = ["4.2", "4.1", "4.0"];

/// The longest path on a server, bytes: what the kernel takes as the source of a mount, less the server.
const MAX_PATH_BYTES: usize = 2048;

/// The longest name of a server, bytes (RFC 1035, section 2.3.4).
const MAX_SERVER_BYTES: usize = 253;

/// Options of nfs(5) that say what they want by themselves.
const WORDS: [&str; 10] =
    ["ac", "cto", "hard", "noac", "nocto", "noresvport", "resvport", "soft", "softerr", "softreval"];

/// Those with a number, and its range. The kernel takes the next one that it can do for sizes.
const NUMBERS: [(&str, (u32, u32)); 11] = [
    ("acdirmax", SECONDS),
    ("acdirmin", SECONDS),
    ("acregmax", SECONDS),
    ("acregmin", SECONDS),
    ("actimeo", SECONDS),
    ("nconnect", (1, 16)),
    ("port", (1, 65_535)),
    ("retrans", (0, 100)),
    ("rsize", (1024, 1 << 20)),
    ("timeo", (1, 6000)),
    ("wsize", (1024, 1 << 20)),
];

/// For how long attributes may be kept, at most a day.
const SECONDS: (u32, u32) = (0, 86_400);

/// A folder of an NFS server in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NfsMount {
    /// The server: an IP address, or a name as the container would look it up.
    pub server: String,
    /// What the server exports, from its root.
    pub path: String,
    /// Where in the container.
    pub target: String,
    /// Whether the container may only read it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Options of nfs(5): `hard` or `soft`, `timeo`, `retrans`, `rsize`, `wsize`, `port`, `nconnect`, `vers`, for how long
    /// attributes are kept, and `noresvport`. Without `vers` the newest version that both have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl NfsMount {
    /// The number of an option, if it has that.
    pub fn number(&self, option: &str) -> Option<u32> {
        let value = |text: &String| text.strip_prefix(option)?.strip_prefix('=')?.parse().ok();
        // Of options that say the opposite, the kernel takes the last.
        self.options.iter().rev().find_map(value)
    }

    /// The version that is asked for, if one is.
    pub fn version(&self) -> Option<&str> {
        self.options.iter().rev().find_map(|option| option.strip_prefix("vers="))
    }

    /// Checks an option.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_option(text: &str) -> Result<(), String> {
        if WORDS.contains(&text) {
            return Ok(());
        }
        let wrong = |what: String| Err(format!("{text:?} {what}"));
        match text.split_once('=') {
            Some(("vers", version)) if NFS_VERSIONS.contains(&version) => Ok(()),
            Some(("vers", _)) => {
                wrong(format!("is no version that is spoken; {} are", NFS_VERSIONS.join(", ")))
            }
            Some((name, value)) => match NUMBERS.iter().find(|(known, _)| *known == name) {
                Some((_, (least, most))) => match value.parse::<u32>() {
                    Ok(number) if (*least..=*most).contains(&number) => Ok(()),
                    _ => wrong(format!("is not a number from {least} to {most}")),
                },
                None => wrong(Self::not_one()),
            },
            None => wrong(Self::not_one()),
        }
    }

    fn not_one() -> String {
        let numbers: Vec<String> = NUMBERS.iter().map(|(name, _)| format!("{name}=N")).collect();
        format!("is no option for NFS; there are {}, {} and vers=4.2", WORDS.join(", "), numbers.join(", "))
    }

    /// Checks what types cannot say.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn validate(&self) -> Result<(), String> {
        let is_name = |text: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            text.len() <= MAX_SERVER_BYTES
                && text.starts_with(|c: char| c.is_ascii_alphanumeric())
                && text.chars().all(plain)
        };
        if self.server.parse::<IpAddr>().is_err() && !is_name(&self.server) {
            return Err(format!("{:?} is neither an IP address nor the name of a server", self.server));
        }
        let path = &self.path;
        if path.len() > MAX_PATH_BYTES || !is_absolute(path) {
            return Err(format!("{path:?} is no path on a server, from its root and without `.` and `..`"));
        }
        self.options.iter().try_for_each(|option| Self::check_option(option))?;
        target(&self.target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(options: &[&str]) -> NfsMount {
        NfsMount {
            server: "10.0.0.5".into(),
            path: "/export".into(),
            target: "/data".into(),
            read_only: false,
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        }
    }

    #[test]
    fn options_are_those_of_nfs_and_the_last_one_holds() {
        let all = mount(&["soft", "timeo=50", "vers=4.0", "port=2050", "vers=4.1", "nconnect=16"]);
        all.validate().unwrap();
        assert_eq!(
            (all.number("port"), all.number("timeo"), all.number("rsize")),
            (Some(2050), Some(50), None)
        );
        assert_eq!(all.version(), Some("4.1"));
        for (option, wanted) in [
            ("vers=3", "4.2, 4.1, 4.0 are"),
            ("vers", "no option for NFS"),
            ("nconnect=17", "from 1 to 16"),
            ("timeo=", "not a number"),
            ("port=0", "not a number"),
            ("addr=10.0.0.6", "no option for NFS"),
            ("sec=krb5", "no option for NFS"),
            ("soft,addr=10.0.0.6", "no option for NFS"),
            ("timeo=5,addr=10.0.0.6", "not a number"),
            ("", "no option for NFS"),
        ] {
            let error = mount(&[option]).validate().unwrap_err();
            assert!(error.contains(wanted), "{option}: {error}");
        }
    }

    #[test]
    fn a_server_and_its_folder_are_named_so_that_nothing_else_is() {
        let with = |change: &dyn Fn(&mut NfsMount)| {
            let mut mount = mount(&[]);
            change(&mut mount);
            mount.validate()
        };
        for server in ["files", "files.default.hive.internal", "fd00::5", "nas_1", "192.168.1.9"] {
            with(&|m| m.server = server.into()).unwrap();
        }
        for server in ["", "a,b", "-a", "a b", "a:/b", ".", "[fd00::5]"] {
            with(&|m| m.server = server.into()).unwrap_err();
        }
        with(&|m| m.path = "/".into()).unwrap();
        for path in ["", "export", "/a/../b", "/a//b"] {
            with(&|m| m.path = path.into()).unwrap_err();
        }
        for target in ["data", "/", "/proc/a", "/a/.."] {
            with(&|m| m.target = target.into()).unwrap_err();
        }
    }
}
