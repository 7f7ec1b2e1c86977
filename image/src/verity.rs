//! The tree of hashes behind the root file system, by which the kernel checks every block it reads (dm-verity, hash
//! type 1; kernel documentation, `device-mapper/verity.rst`).
//!
//! `veritysetup` makes it and can check it: the tree follows the file system in the same slot, after the superblock
//! that this tool writes. The root hash and the number of blocks go on the kernel's command line.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::process::run;

/// Bytes in a block of data and of hashes.
pub const BLOCK_BYTES: u64 = 4096;

/// Where Debian has the tool; not everybody's `PATH` leads there.
const VERITYSETUP: &str = "/usr/sbin/veritysetup";

/// The superblock's identifier. Fixed, because images are reproducible.
const UUID: &str = "b1f2c7de-5a0e-4f0b-9d53-6869766d0010";

/// What the kernel must know to check a root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verity {
    /// The tree's root, BLAKE2b of 512 bits, 128 hexadecimal digits.
    pub root_hash: String,
    /// Blocks of data, of [`BLOCK_BYTES`]; the superblock and the tree follow.
    pub blocks: u64,
}

impl Verity {
    /// The words for the kernel's command line that PID 1 reads.
    #[must_use]
    pub fn command_line(&self) -> String {
        format!("roothash={} hivemind.blocks={}", self.root_hash, self.blocks)
    }
}

/// Appends the tree to a file system.
///
/// No salt: it would keep an attacker from computing hashes before the build, and there is nobody to hide them from.
///
/// # Errors
/// When the file cannot be written, or `veritysetup` fails.
pub fn seal(root: &Path) -> Result<Verity> {
    let file =
        OpenOptions::new().write(true).open(root).with_context(|| format!("opening {}", root.display()))?;
    let bytes = file.metadata()?.len().next_multiple_of(BLOCK_BYTES);
    file.set_len(bytes)?;
    drop(file);
    let blocks = bytes / BLOCK_BYTES;
    let said = run(Command::new(VERITYSETUP)
        .arg("format")
        .args([root, root])
        .args(["--hash", "blake2b-512", "--salt", "-", "--uuid", UUID])
        .arg(format!("--data-block-size={BLOCK_BYTES}"))
        .arg(format!("--hash-block-size={BLOCK_BYTES}"))
        .arg(format!("--data-blocks={blocks}"))
        .arg(format!("--hash-offset={bytes}")))?;
    let said = String::from_utf8_lossy(&said).into_owned();
    let root_hash = said.lines().find_map(|line| line.strip_prefix("Root hash:")).unwrap_or_default().trim();
    ensure!(root_hash.len() == 128, "veritysetup said no root hash: {said}");
    Ok(Verity { root_hash: root_hash.to_owned(), blocks })
}

/// Keeps what a seal gave beside the file.
///
/// # Errors
/// When it cannot be written.
pub fn write(path: &Path, verity: &Verity) -> Result<()> {
    fs::write(path, format!("{} {}\n", verity.root_hash, verity.blocks))
        .with_context(|| format!("writing {}", path.display()))
}

/// Reads what [`write`] kept.
///
/// # Errors
/// When it is not there or not of that form.
pub fn read(path: &Path) -> Result<Verity> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let (root_hash, blocks) = text.trim().split_once(' ').context("a seal of two words")?;
    Ok(Verity { root_hash: root_hash.to_owned(), blocks: blocks.parse()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_file_verifies_and_one_with_a_flipped_bit_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let (root, seal_file) = (dir.path().join("root"), dir.path().join("seal"));
        let content: Vec<u8> = (0..1_000_001_u32).map(|n| n.to_be_bytes()[3] ^ n.to_be_bytes()[2]).collect();
        fs::write(&root, &content).unwrap();
        let verity = seal(&root).unwrap();
        assert_eq!(verity.blocks, 245);
        write(&seal_file, &verity).unwrap();
        assert_eq!(read(&seal_file).unwrap(), verity);
        let verifies = || {
            let offset = (verity.blocks * BLOCK_BYTES).to_string();
            let check = Command::new(VERITYSETUP)
                .arg("verify")
                .args([&root, &root])
                .args([&verity.root_hash, "--hash-offset", &offset])
                .output()
                .unwrap();
            check.status.success()
        };
        assert!(verifies());
        let mut sealed = fs::read(&root).unwrap();
        assert_eq!(sealed[..content.len()], content);
        sealed[500_000] ^= 1;
        fs::write(&root, &sealed).unwrap();
        assert!(!verifies());
    }

    #[test]
    fn the_same_file_gives_the_same_tree() {
        let dir = tempfile::tempdir().unwrap();
        let seal = |name: &str| {
            let root = dir.path().join(name);
            fs::write(&root, [7; 300_000]).unwrap();
            (seal(&root).unwrap(), fs::read(&root).unwrap())
        };
        assert_eq!(seal("a"), seal("b"));
    }
}
