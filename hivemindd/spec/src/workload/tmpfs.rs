//! A memory-backed directory in the short form of Compose: `PATH` or `PATH:OPTION,…`.

/// A memory-backed directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tmpfs {
    /// Where in the container, from the root.
    pub path: String,
    /// Options of mount(8), as asked for: `size=BYTES`, `nr_inodes=N`, `mode=OCTAL`, `uid=N`, `gid=N`, `exec`, `ro` and
    /// their opposites. Never `suid` or `dev`.
    pub options: Vec<String>,
}

impl Tmpfs {
    /// Reads it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (path, options) = text.split_once(':').unwrap_or((text, ""));
        absolute(path)?;
        let options = options.split(',').map(str::trim).filter(|option| !option.is_empty());
        let options = options.map(option).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { path: path.to_owned(), options })
    }
}

/// Whether it is a path from the root at which something of the document's may be mounted.
///
/// # Errors
/// Why not.
pub(super) fn absolute(path: &str) -> Result<(), String> {
    if !path.starts_with('/') || path.split('/').any(|part| part == "..") {
        let wanted = path.trim_start_matches(['.', '/']);
        return Err(format!("{path:?} must be a path from the root, as /{wanted}"));
    }
    may_cover(path)
}

/// Whether something of the document's may be mounted there: not over the root, and not over what shows the kernel,
/// whose masks must stay.
///
/// # Errors
/// Why not.
pub(super) fn may_cover(path: &str) -> Result<(), String> {
    match path.split('/').find(|part| !part.is_empty() && *part != ".") {
        None => Err("the root itself is the image's".to_owned()),
        Some(first @ ("proc" | "sys" | "dev")) if path != "/dev/shm" && !path.starts_with("/dev/shm/") => {
            Err(format!("{path:?} is in /{first}, which shows the kernel and stays as it is"))
        }
        Some(_) => Ok(()),
    }
}

fn option(text: &str) -> Result<String, String> {
    let wrong = |what: &str| Err(format!("{text:?} is not {what}"));
    match text.split_once('=').unwrap_or((text, "")) {
        ("exec" | "noexec" | "ro" | "rw" | "nosuid" | "nodev" | "noatime", "") => Ok(text.to_owned()),
        ("size", size) => match bytes(size) {
            Some(bytes) => Ok(format!("size={bytes}")),
            None => wrong("a size; write for example size=64m"),
        },
        ("mode", mode) => match u32::from_str_radix(mode, 8) {
            Ok(mode) if mode <= 0o1777 => Ok(format!("mode={mode:o}")),
            _ => wrong("a mode; write for example mode=1777"),
        },
        ("uid" | "gid" | "nr_inodes", number) => match number.parse::<u32>() {
            Ok(_) => Ok(text.to_owned()),
            Err(_) => wrong("a number"),
        },
        _ => wrong(
            "an option of a memory-backed directory; there are size, nr_inodes, mode, uid, gid, exec, noexec, ro, rw, \
             nosuid, nodev and noatime",
        ),
    }
}

/// `64m`, `64mb` or a number of bytes, more than 0.
fn bytes(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let lower = lower.strip_suffix('b').unwrap_or(&lower);
    let (number, shift) = match lower.char_indices().next_back()? {
        (end, 'k') => (&lower[..end], 10),
        (end, 'm') => (&lower[..end], 20),
        (end, 'g') => (&lower[..end], 30),
        _ => (lower, 0),
    };
    let number: u64 = number.parse().ok().filter(|number| *number > 0)?;
    number.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_what_is_dangerous_is_refused() {
        let parsed = Tmpfs::parse("/run:size=64M,mode=0755,uid=5,exec").unwrap();
        assert_eq!(parsed.path, "/run");
        assert_eq!(parsed.options, ["size=67108864", "mode=755", "uid=5", "exec"]);
        assert_eq!(Tmpfs::parse("/run").unwrap().options, Vec::<String>::new());
        assert!(Tmpfs::parse("/dev/shm:size=1g").is_ok() && Tmpfs::parse("/process").is_ok());
        assert_eq!(Tmpfs::parse("/a:size=1g").unwrap().options, ["size=1073741824"]);
        for (text, wanted) in [
            ("run", "from the root, as /run"),
            ("/a/../b", "from the root"),
            ("/", "the image's"),
            ("/./", "the image's"),
            ("/proc/sys", "shows the kernel"),
            ("//sys", "shows the kernel"),
            ("/dev/net", "shows the kernel"),
            ("/run:size=50%", "not a size"),
            ("/run:size=0", "not a size"),
            ("/run:size=", "not a size"),
            ("/run:mode=9", "not a mode"),
            ("/run:mode=4755", "not a mode"),
            ("/run:uid=root", "not a number"),
            ("/run:suid", "not an option"),
            ("/run:dev", "not an option"),
            ("/run:exec=1", "not an option"),
        ] {
            let error = Tmpfs::parse(text).unwrap_err();
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }
}
