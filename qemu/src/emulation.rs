//! What an emulated machine is spared: work that a processor does in an instant and an emulator does not, and that
//! nothing tested here is about. Together that is more than a third of a test's time.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ring::digest::{SHA256, digest};

use crate::cache::cache_folder;
use crate::error::{Context, Result};
use crate::kvm::kvm_works;

/// What the kernel is told. Code is translated by its address: with processes at random ones each run of a program is
/// translated anew. An emulated processor has no leaks to be kept from. And neither its own randomness, nor its ciphers,
/// nor the makers' keys for modules need checking at every start.
pub(crate) const CMDLINE: &str = "norandmaps mitigations=off cryptomgr.notests \
                                  initcall_blacklist=jent_mod_init,load_system_certificate_list";

/// Kernels kept unpacked: those of two images and of the tests' own, and one to spare.
const KEPT: usize = 4;

/// `$HIVEMIND_QEMU_ACCEL` (`kvm` or `tcg`) decides; otherwise hardware virtualisation is used where it works.
pub(crate) fn is_emulated() -> bool {
    match std::env::var("HIVEMIND_QEMU_ACCEL").as_deref() {
        Ok("kvm") => false,
        Ok("tcg") => true,
        _ => !kvm_works(),
    }
}

/// The kernel in the file as it is once it has unpacked itself, which takes an emulated machine two seconds. A kernel that
/// is not packed with Zstandard is left as it is.
pub(crate) fn unpacked(kernel: &Path) -> Result<PathBuf> {
    let packed = fs::read(kernel).context(format!("read {}", kernel.display()))?;
    let Some(payload) = payload(&packed) else { return Ok(kernel.to_owned()) };
    let folder = cache_folder("kernels")?;
    let name =
        digest(&SHA256, &packed).as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let path = folder.join(&name);
    if !path.exists() {
        let unfinished = folder.join(format!(".{name}-{}", std::process::id()));
        unpack(payload, &unfinished).context(format!("unpack {}", kernel.display()))?;
        fs::rename(&unfinished, &path).context(format!("write {}", path.display()))?;
        sweep(&folder);
    }
    Ok(path)
}

/// The packed part of a kernel (the x86 boot protocol, version 2.08 or newer), if it is packed with Zstandard (RFC 8878).
fn payload(kernel: &[u8]) -> Option<&[u8]> {
    const ZSTANDARD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
    let number = |at: usize| kernel.get(at..at + 4)?.first_chunk().copied().map(u32::from_le_bytes);
    let position = |number: u32| usize::try_from(number).ok();
    if kernel.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let sectors = match *kernel.get(0x1f1)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let begin = (sectors + 1) * 512 + position(number(0x248)?)?;
    let payload = kernel.get(begin..begin.checked_add(position(number(0x24c)?)?)?)?;
    payload.starts_with(ZSTANDARD).then_some(payload)
}

fn unpack(payload: &[u8], into: &Path) -> io::Result<()> {
    let mut file = File::create(into)?;
    // Its size follows it.
    let mut decoder = zstd::Decoder::with_buffer(payload)?.single_frame();
    io::copy(&mut decoder, &mut file)?;
    file.flush()
}

/// Machines that run have links of their own, so all but the newest may go.
fn sweep(folder: &Path) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let age =
        |path: &Path| fs::metadata(path).and_then(|about| about.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let mut kernels: Vec<_> = entries.map(|entry| entry.path()).map(|path| (age(&path), path)).collect();
    kernels.sort();
    kernels.reverse();
    for (_, path) in kernels.drain(..).skip(KEPT) {
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel's file with this payload.
    fn packed(payload: &[u8]) -> Vec<u8> {
        let mut kernel = vec![0; 3 * 512 + 100];
        kernel[0x1f1] = 2;
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        kernel[0x248..0x24c].copy_from_slice(&100u32.to_le_bytes());
        kernel[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        kernel.extend(payload);
        kernel.extend(b"and more");
        kernel
    }

    #[test]
    fn a_kernel_is_unpacked_to_what_was_packed() {
        let text = b"vmlinux ".repeat(1000);
        let mut frame = zstd::encode_all(&text[..], 3).unwrap();
        frame.extend(8000u32.to_le_bytes());
        let folder = std::env::temp_dir().join(format!("hivemind-kernel-{}", std::process::id()));
        unpack(payload(&packed(&frame)).unwrap(), &folder).unwrap();
        assert_eq!(fs::read(&folder).unwrap(), text);
        fs::remove_file(&folder).unwrap();
    }

    #[test]
    fn what_is_no_kernel_or_packed_otherwise_is_left_alone() {
        assert_eq!(payload(b"short"), None);
        assert_eq!(payload(&packed(b"\x1f\x8b gzip")), None);
        let whole = packed(&[0x28, 0xb5, 0x2f, 0xfd]);
        assert!(payload(&whole).is_some());
        assert_eq!(payload(&whole[..whole.len() - 9]), None, "cut off");
        let mut other = whole.clone();
        other[0x202] = b'x';
        assert_eq!(payload(&other), None);
    }
}
