//! The kernel's command line: the root's partition and what it must hash to.

/// What the root must be, as the build found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verity {
    /// The root of the tree of hashes, BLAKE2b of 512 bits, 128 hexadecimal digits.
    pub(super) root_hash: String,
    /// Blocks of the file system, of 4096 bytes; the tree lies behind them.
    pub(super) blocks: u64,
}

/// The last word with this beginning, without it: the last one wins, as in the kernel.
fn value<'a>(cmdline: &'a str, prefix: &str) -> Option<&'a str> {
    let mut values = cmdline.split_ascii_whitespace().filter_map(|word| word.strip_prefix(prefix));
    values.rfind(|value| !value.is_empty())
}

/// The partition that holds the root, by the GUID in the partition table, in lower case.
pub(super) fn root_partuuid(cmdline: &str) -> Option<String> {
    value(cmdline, "root=PARTUUID=").map(str::to_ascii_lowercase)
}

/// What the root must be: `roothash=` as systemd has it, and `hivemind.blocks=`. None when neither is there;
/// an error when they are not what they should be.
pub(super) fn verity(cmdline: &str) -> Result<Option<Verity>, super::Error> {
    let names = ["roothash=", "hivemind.blocks="];
    if !cmdline.split_ascii_whitespace().any(|word| names.iter().any(|name| word.starts_with(name))) {
        return Ok(None);
    }
    whole_verity(cmdline).map(Some).ok_or(super::Error::CommandLine("whole roothash= and hivemind.blocks="))
}

fn whole_verity(cmdline: &str) -> Option<Verity> {
    let root_hash = value(cmdline, "roothash=")?.to_ascii_lowercase();
    let blocks = value(cmdline, "hivemind.blocks=")?.parse().ok()?;
    let is_whole = root_hash.len() == 128 && root_hash.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_whole.then_some(Verity { root_hash, blocks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_root_on_the_command_line_counts() {
        let line = "console=ttyS0 root=PARTUUID=AA-1 quiet root=PARTUUID=bb-2\n";
        assert_eq!(root_partuuid(line).as_deref(), Some("bb-2"));
        assert_eq!(root_partuuid("root=/dev/vda1 xroot=PARTUUID=cc"), None);
        assert_eq!(root_partuuid("root=PARTUUID="), None);
    }

    #[test]
    fn a_root_hash_that_is_not_whole_is_no_reason_to_boot_without() {
        let hash = "0123456789abcdef".repeat(8);
        let line = format!("quiet roothash={hash} hivemind.blocks=9000 panic=10");
        assert_eq!(verity(&line).unwrap(), Some(Verity { root_hash: hash.clone(), blocks: 9000 }));
        assert_eq!(verity("quiet panic=10").unwrap(), None);
        for bad in [
            "roothash= hivemind.blocks=1".to_owned(),
            format!("roothash={hash}"),
            format!("roothash={hash} hivemind.blocks=many"),
            format!("roothash={} hivemind.blocks=1", &hash[1..]),
            format!("roothash=x{} hivemind.blocks=1", &hash[1..]),
        ] {
            assert!(verity(&bad).is_err(), "{bad}");
        }
    }
}
