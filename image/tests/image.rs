//! The whole build, with what it takes from the network already in the project's cache.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use hivemind_image::build::{Options, Output, build};
use hivemind_image::cache::project_folder;
use hivemind_image::check;
use hivemind_image::layout::{self, Role};
use hivemind_image::lock::Lock;
use hivemind_image::programs;

/// A root file system may take a quarter of its slot, and the compressed image what a slow uplink can carry.
const COMPRESSED_LIMIT_BYTES: u64 = 56_000_000;

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| project_folder().unwrap().join("target"), PathBuf::from)
}

fn options(out: &Path, cache: &Path, daemon: &Path) -> Options {
    Options {
        checkout: checkout(),
        out: out.to_owned(),
        cache: cache.to_owned(),
        target: target(),
        daemon: Some(daemon.to_owned()),
        version: None,
        minimum: None,
        append: None,
    }
}

/// A cache with the downloads and the compiled shim of the project's, but none of its results.
fn fresh_cache(dir: &Path) {
    let project = project_folder().unwrap();
    for shared in ["debs", "shim"] {
        symlink(project.join(shared), dir.join(shared)).unwrap();
    }
}

fn assert_equal(a: &Path, b: &Path) {
    let output = Command::new("cmp").args([a, b]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn the_image_is_byte_identical_when_built_twice() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    // Compiled once and put aside: another build may replace it in the target folder meanwhile.
    let daemon = dir.path().to_owned();
    let lock = Lock::parse(&fs::read_to_string(checkout().join("rootfs/packages.lock")).unwrap()).unwrap();
    let compiled = programs::daemon(&checkout(), &target(), lock.as_of).unwrap();
    let kept = programs::Daemon::at(&daemon);
    fs::copy(compiled.agent, kept.agent).unwrap();
    fs::copy(compiled.init, kept.init).unwrap();
    let project = project_folder().unwrap();
    let first = build(&options(&dir.path().join("first"), &project, &daemon)).unwrap();
    fs::create_dir(&cache).unwrap();
    fresh_cache(&cache);
    let second = build(&options(&dir.path().join("second"), &cache, &daemon)).unwrap();

    let files = [
        Output::image,
        Output::compressed,
        Output::kernel,
        Output::initramfs,
        Output::command_line,
        Output::root,
        Output::unified,
    ];
    for file in files {
        assert_equal(&file(&first), &file(&second));
    }
    a_finished_image_is_as_promised(&first, dir.path());
}

/// Looks into the image as it would be flashed, not into what it was made from.
fn a_finished_image_is_as_promised(output: &Output, scratch: &Path) {
    let size = fs::metadata(output.compressed()).unwrap().len();
    assert!(size <= COMPRESSED_LIMIT_BYTES, "{size} bytes compressed");

    let image = fs::read(output.image()).unwrap();
    assert_eq!(image.len() as u64, layout::image_bytes());
    let start = usize::try_from(layout::offset(Role::RootA)).unwrap();
    let len = usize::try_from(layout::ROOT_SLOT_BYTES).unwrap();
    let root = scratch.join("root.squashfs");
    fs::write(&root, &image[start..start + len]).unwrap();
    check::root_file_system(&root).unwrap();

    let fat = |role: Role, path: &str| {
        let at = format!("{}@@{}", output.image().display(), layout::offset(role));
        let read = Command::new("mtype").arg("-i").arg(at).arg(format!("::/{path}")).output().unwrap();
        assert!(read.status.success(), "{path}: {}", String::from_utf8_lossy(&read.stderr));
        read.stdout
    };
    assert!(fat(Role::Esp, "EFI/BOOT/BOOTX64.EFI").starts_with(b"MZ"));
    let release = fs::read_to_string(output.release()).unwrap();
    let unified = fat(Role::Esp, &format!("EFI/hivemind/{}.efi", release.trim()));
    assert_eq!(unified, fs::read(output.unified()).unwrap());
    let entry = fat(Role::Esp, &format!("loader/entries/hivemind-{}.conf", release.trim()));
    assert!(String::from_utf8(entry).unwrap().contains(&format!("efi /EFI/hivemind/{}.efi", release.trim())));
    let command_line = fs::read_to_string(output.command_line()).unwrap();
    let holds = |needle: &[u8]| unified.windows(needle.len()).any(|window| window == needle);
    let verified = format!("{} root=PARTUUID=", command_line.trim_end());
    assert!(holds(verified.as_bytes()), "the unified kernel image has another command line");
    assert!(!fat(Role::Config, "README.txt").is_empty());
}
