//! The kernel's command line: the release, where its root may be, and what that must hash to.

use std::time::Duration;

use super::verity::BLOCK_BYTES;

/// Where the kernel shows it.
pub(super) const PATH: &str = "/proc/cmdline";

/// What the root must be, as the build found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verity {
    /// The root of the tree of hashes, BLAKE2b of 512 bits, 128 hexadecimal digits.
    pub(super) root_hash: String,
    /// Blocks of the file system, of 4096 bytes; the tree lies behind them.
    pub(super) blocks: u64,
}

impl Verity {
    /// The size of the whole file in the slot, bytes: the file system, a superblock, and the tree, of which every
    /// block holds as many hashes as fit.
    pub(super) fn file_bytes(&self) -> u64 {
        const HASHES: u64 = BLOCK_BYTES / 64;
        let (mut level, mut tree) = (self.blocks, 0);
        while level > 1 {
            level = level.div_ceil(HASHES);
            tree += level;
        }
        (self.blocks + 1 + tree) * BLOCK_BYTES
    }
}

/// The last word with this beginning, without it: the last one wins, as in the kernel.
fn value<'a>(cmdline: &'a str, prefix: &str) -> Option<&'a str> {
    let mut values = cmdline.split_ascii_whitespace().filter_map(|word| word.strip_prefix(prefix));
    values.rfind(|value| !value.is_empty())
}

/// The partitions that may hold the root, by the GUIDs in the partition table, in lower case: for a root that is
/// verified all that are named, else the last one.
pub(super) fn roots(cmdline: &str, verified: bool) -> Vec<String> {
    let words = cmdline.split_ascii_whitespace();
    let named = words.filter_map(|word| word.strip_prefix("root=PARTUUID=")).filter(|guid| !guid.is_empty());
    let mut guids: Vec<String> = named.map(str::to_ascii_lowercase).collect();
    if !verified {
        guids.drain(..guids.len().saturating_sub(1));
    }
    guids
}

/// The release, as the boot menu names it. None for a kernel that was not started from a boot menu.
pub(super) fn release(cmdline: &str) -> Option<&str> {
    value(cmdline, "hivemind.release=")
}

/// How long a new release may take to be healthy, if it asks for less than usual.
pub(super) fn trial(cmdline: &str, usual: Duration) -> Duration {
    let asked = value(cmdline, "hivemind.trial=").and_then(|seconds| seconds.parse().ok());
    asked.map_or(usual, |seconds| usual.min(Duration::from_secs(seconds)))
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
    fn the_last_root_on_the_command_line_counts_and_all_do_that_can_be_told_apart() {
        let line = "console=ttyS0 root=PARTUUID=AA-1 quiet root=PARTUUID=bb-2\n";
        assert_eq!(roots(line, false), ["bb-2"]);
        assert_eq!(roots(line, true), ["aa-1", "bb-2"]);
        assert!(roots("root=/dev/vda1 xroot=PARTUUID=cc root=PARTUUID=", true).is_empty());
    }

    #[test]
    fn a_slots_file_is_as_long_as_the_build_makes_it() {
        let verity = |blocks| Verity { root_hash: String::new(), blocks };
        assert_eq!(verity(8821).file_bytes(), 36_716_544);
        assert_eq!(verity(245).file_bytes(), (245 + 1 + 5) * 4096);
    }

    #[test]
    fn a_release_may_ask_for_a_shorter_trial_and_for_no_longer_one() {
        let usual = Duration::from_secs(180);
        assert_eq!(trial("quiet hivemind.trial=20", usual), Duration::from_secs(20));
        for line in ["quiet", "hivemind.trial=181", "hivemind.trial=x", "hivemind.trial=-1"] {
            assert_eq!(trial(line, usual), usual, "{line}");
        }
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
