//! The initramfs: PID 1's program and the modules it needs to reach the root, as a zstd-compressed cpio archive.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::debian::Parts;

/// The kernel unpacks this at boot; decompression speed does not depend on the level, so take the smallest.
const ZSTD_LEVEL: i32 = 19;

/// File types of `st_mode`.
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// Writes an archive in the "newc" format (kernel documentation: "initramfs buffer format"). Inode numbers count up,
/// owners are root and times are given, so equal input gives equal bytes.
struct Cpio {
    bytes: Vec<u8>,
    inode: u32,
    mtime: u32,
}

impl Cpio {
    fn new(mtime: u32) -> Self {
        Self { bytes: Vec::new(), inode: 0, mtime }
    }

    /// `device` is major and minor number, for device nodes.
    fn add(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> Result<()> {
        self.inode += 1;
        let size = u32::try_from(content.len()).context("a file in the initramfs is over 4 GiB")?;
        let name_size = u32::try_from(name.len() + 1)?;
        let fields = [self.inode, mode, 0, 0, 1, self.mtime, size, 0, 0, device.0, device.1, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Result<Vec<u8>> {
        self.inode = 0;
        self.mtime = 0;
        self.add("TRAILER!!!", 0, (0, 0), b"")?;
        Ok(self.bytes)
    }
}

/// Builds the initramfs: `/init`, `/modules.index` and the modules.
///
/// # Errors
/// When a part cannot be read.
pub fn build(init: &[u8], parts: &Parts, as_of: u64) -> Result<Vec<u8>> {
    let index = read(&parts.early_index())?;
    let folder = parts.early_modules();
    let entries = fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))?;
    let mut modules: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    modules.sort();
    let mut cpio = Cpio::new(u32::try_from(as_of).context("a date after 2106")?);
    for folder in ["dev", "modules", "proc", "root", "run", "sys"] {
        cpio.add(folder, DIRECTORY | 0o755, (0, 0), b"")?;
    }
    // The kernel opens this before it starts init; without it the first lines of PID 1 would be lost.
    cpio.add("dev/console", CHARACTER_DEVICE | 0o600, (5, 1), b"")?;
    cpio.add("init", REGULAR | 0o755, (0, 0), init)?;
    cpio.add("modules.index", REGULAR | 0o644, (0, 0), &index)?;
    for path in modules {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        cpio.add(&format!("modules/{name}"), REGULAR | 0o644, (0, 0), &read(&path)?)?;
    }
    Ok(zstd::bulk::compress(&cpio.finish()?, ZSTD_LEVEL)?)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    #[test]
    fn the_archive_is_what_cpio_understands() {
        let mut cpio = Cpio::new(1_000_000);
        cpio.add("modules", DIRECTORY | 0o755, (0, 0), b"").unwrap();
        cpio.add("modules/odd.ko", REGULAR | 0o644, (0, 0), b"seven b").unwrap();
        cpio.add("init", REGULAR | 0o755, (0, 0), b"x").unwrap();
        let archive = cpio.finish().unwrap();

        let mut child = Command::new("cpio")
            .args(["--list", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&archive).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "modules\nmodules/odd.ko\ninit\n");
    }
}
