//! The build, from the files in `rootfs` to the disk image.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use hivemind_init::boot_menu::{self, Assessment};
use hivemind_spec::id::ReleaseId;
use hivemind_spec::release::version;
use semver::Version;

use crate::apt::{self, Mirrors, hex_sha256};
use crate::bundle::{self, Names};
use crate::cache::{Cache, Key};
use crate::debian::{self, Keep, Parts, list};
use crate::layout::{self, Role};
use crate::lock::{Lock, Wanted};
use crate::process::run;
use crate::progress::{Outcome, Progress};
use crate::verity::Verity;
use crate::{check, disk, initramfs, programs, root, uki, verity};

/// Most of an image is compressed already, so that higher levels take many times longer and save nothing.
const IMAGE_ZSTD_LEVEL: i32 = 3;

/// What the root file system gets of ours. Named anew when that changes.
const DAEMON_RECIPE: &str = "root: hivemindd, hivemind-init";

/// What decides about the content of a cached step besides its inputs: the code that makes it.
const DEBIAN_RECIPE: &str =
    concat!(include_str!("debian.rs"), include_str!("modules.rs"), include_str!("elf.rs"));
const ROOT_RECIPE: &str = include_str!("root.rs");
const SEAL_RECIPE: &str = include_str!("verity.rs");
const INITRAMFS_RECIPE: &str = include_str!("initramfs.rs");

/// What to build, and where.
#[derive(Clone, Debug)]
pub struct Options {
    /// The checkout to build from.
    pub checkout: PathBuf,
    /// Where the results go.
    pub out: PathBuf,
    /// The project's cache folder.
    pub cache: PathBuf,
    /// Cargo's target folder.
    pub target: PathBuf,
    /// A folder with the daemon's programs, to use instead of building them.
    pub daemon: Option<PathBuf>,
    /// The release's version, to use instead of the project's.
    pub version: Option<String>,
    /// The oldest version that may take this release's place, to use instead of [`MINIMUM_VERSION`].
    pub minimum: Option<String>,
    /// Words for the end of the kernel's command line.
    pub append: Option<String>,
}

/// The oldest version that understands what this one leaves on a machine's disk and says to its peers.
const MINIMUM_VERSION: &str = "0.1.0";

/// The finished files.
#[derive(Clone, Debug)]
pub struct Output(PathBuf);

impl Output {
    /// The files in a folder that a build wrote to.
    #[must_use]
    pub fn at(dir: &Path) -> Self {
        Self(dir.to_owned())
    }
    /// The disk image.
    #[must_use]
    pub fn image(&self) -> PathBuf {
        self.0.join("hivemind-x86_64.img")
    }
    /// The disk image, compressed.
    #[must_use]
    pub fn compressed(&self) -> PathBuf {
        self.0.join("hivemind-x86_64.img.zst")
    }
    /// The root file system with the tree of its hashes, as a slot holds it.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.0.join("root.img")
    }
    /// The unified kernel image, as the boot menu holds it.
    #[must_use]
    pub fn unified(&self) -> PathBuf {
        self.0.join("hivemind.efi")
    }
    /// The update bundle: an OCI image layout.
    #[must_use]
    pub fn bundle(&self) -> PathBuf {
        self.0.join("bundle")
    }
    /// Programs that are not in the image, for benchmarks to bring to a machine.
    #[must_use]
    pub fn beside(&self) -> PathBuf {
        self.0.join("beside")
    }
    /// The release's name, 16 hexadecimal digits.
    #[must_use]
    pub fn release(&self) -> PathBuf {
        self.0.join("release")
    }
    /// The kernel, for direct boot.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.0.join("vmlinuz")
    }
    /// The initramfs, for direct boot.
    #[must_use]
    pub fn initramfs(&self) -> PathBuf {
        self.0.join("initrd.img")
    }
    /// The kernel command line, for direct boot.
    #[must_use]
    pub fn command_line(&self) -> PathBuf {
        self.0.join("cmdline")
    }
}

/// The command line for direct boot, from slot A. The console listed last is the one PID 1 writes to.
#[must_use]
pub fn command_line() -> String {
    format!(
        "root=PARTUUID={} console=tty0 console=ttyS0,115200 quiet panic=10",
        layout::partition(Role::RootA).guid
    )
}

/// The same in the unified kernel image, which says what the root must be, and is the same in either slot.
fn verified_command_line(verity: &Verity, append: Option<&str>) -> String {
    let slot_b = layout::partition(Role::RootB).guid;
    let append = append.map(|words| format!(" {words}")).unwrap_or_default();
    format!("{} root=PARTUUID={slot_b} {}{append}", command_line(), verity.command_line())
}

/// What a release is called, and which older ones may take its place: itself at least.
fn versions(options: &Options) -> Result<(Version, Version)> {
    let read = |text: &str| version(text).map_err(anyhow::Error::msg);
    let own = read(options.version.as_deref().unwrap_or(env!("CARGO_PKG_VERSION")))?;
    let minimum = match &options.minimum {
        Some(minimum) => read(minimum)?,
        None => read(MINIMUM_VERSION)?.min(own.clone()),
    };
    ensure!(minimum <= own, "the minimum {minimum} is more than the version itself, {own}");
    Ok((own, minimum))
}

fn os_release(version: &Version, minimum: &Version, build_id: &str) -> String {
    format!(
        "ID=hivemind\nNAME=Hivemind\nPRETTY_NAME=\"Hivemind {version}\"\nVERSION_ID={version}\nBUILD_ID={build_id}\n\
         HIVEMIND_MINIMUM={minimum}\n"
    )
}

/// Writes `packages.lock` anew.
///
/// # Errors
/// When the archive cannot be asked.
pub fn refresh_lock(checkout: &Path, project_cache: &Path) -> Result<Lock> {
    let wanted = Wanted::parse(&rootfs_file(checkout, "packages.toml")?)?;
    let scratch = project_cache.join("index");
    if scratch.exists() {
        fs::remove_dir_all(&scratch)?;
    }
    let lock = apt::resolve(&wanted, &Mirrors::of_this_machine()?, &scratch)?;
    lock.check_against(&wanted)?;
    fs::write(checkout.join("rootfs/packages.lock"), lock.render())?;
    fs::remove_dir_all(&scratch)?;
    Ok(lock)
}

fn rootfs_file(checkout: &Path, name: &str) -> Result<String> {
    let path = checkout.join("rootfs").join(name);
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

/// Builds everything.
///
/// # Errors
/// When a step fails.
pub fn build(options: &Options) -> Result<Output> {
    let (version, minimum) = versions(options)?;
    let mut progress = Progress::new(10);
    let lock_text = rootfs_file(&options.checkout, "packages.lock")?;
    let keep_text = rootfs_file(&options.checkout, "keep.toml")?;
    let containerd = rootfs_file(&options.checkout, "containerd.toml")?;
    let lock = Lock::parse(&lock_text)?;
    lock.check_against(&Wanted::parse(&rootfs_file(&options.checkout, "packages.toml")?)?)?;
    let keep: Keep = toml::from_str(&keep_text).context("rootfs/keep.toml")?;
    let cache = Cache::open(&options.cache)?;
    let debs = options.cache.join("debs");

    progress.step("Debian packages", || {
        let fetched = apt::fetch(&lock, &Mirrors::of_this_machine()?, &debs)?;
        Ok(((), Outcome::of(fetched == 0)))
    })?;
    let debian = progress.step("root from packages", || {
        let key = Key::new(DEBIAN_RECIPE).with(lock_text.as_bytes()).with(keep_text.as_bytes());
        let made = cache.get("debian", &key, |work, out| debian::assemble(&lock, &keep, &debs, work, out))?;
        let outcome = Outcome::of(made.reused);
        Ok(((Parts::at(&made.dir), key.finish()), outcome))
    })?;
    let (parts, debian_key) = debian;
    let shim = progress.step("containerd shim", || {
        let (shim, reused) = programs::shim(&options.cache)?;
        Ok((shim, Outcome::of(reused)))
    })?;
    let daemon = progress.step("hivemindd", || {
        let daemon = match &options.daemon {
            Some(dir) => programs::Daemon::at(dir),
            None => programs::daemon(&options.checkout, &options.target, lock.as_of)?,
        };
        Ok((daemon, Outcome::Done))
    })?;
    let (agent, init) = (read(&daemon.agent)?, read(&daemon.init)?);

    let base_key = Key::new(ROOT_RECIPE)
        .with(debian_key.as_bytes())
        .with(&read(&shim)?)
        .with(containerd.as_bytes())
        .with(&run(Command::new("mksquashfs").arg("-version")).unwrap_or_default());
    let base = progress.step("root file system, packages", || {
        let sources = root::Sources { containerd: &containerd, lock: &lock_text };
        let made = cache
            .get("base", &base_key, |work, out| root::base(&parts, &shim, &sources, lock.as_of, work, out))?;
        Ok((made.dir.join("base.squashfs"), Outcome::of(made.reused)))
    })?;
    let build_id = Key::new("build").with(base_key.finish().as_bytes()).with(&agent).with(&init).finish();
    let release_text = os_release(&version, &minimum, &build_id[..16]);
    let root = progress.step("root file system, daemon", || {
        let key = Key::new(DAEMON_RECIPE).with(base_key.finish().as_bytes()).with(release_text.as_bytes());
        let key = key.with(SEAL_RECIPE.as_bytes());
        let made = cache.get("root", &key, |work, out| {
            root::with_daemon(&base, &daemon, &release_text, lock.as_of, work, out)?;
            let root = out.join("root.squashfs");
            check::root_file_system(&root)?;
            verity::write(&out.join("root.verity"), &verity::seal(&root)?)
        })?;
        let root = Root {
            file: made.dir.join("root.squashfs"),
            verity: verity::read(&made.dir.join("root.verity"))?,
        };
        Ok((root, Outcome::of(made.reused)))
    })?;
    let initrd = progress.step("kernel and initramfs", || {
        let key = Key::new(INITRAMFS_RECIPE).with(debian_key.as_bytes()).with(&init);
        let made = cache.get("initramfs", &key, |_, out| {
            Ok(fs::write(out.join("initrd.img"), initramfs::build(&init, &parts, lock.as_of)?)?)
        })?;
        Ok((made.dir.join("initrd.img"), Outcome::of(made.reused)))
    })?;

    fs::create_dir_all(&options.out).with_context(|| format!("making {}", options.out.display()))?;
    let output = Output(options.out.clone());
    let release = progress.step("disk image", || {
        let release =
            Release { version: &version, os_release: &release_text, append: options.append.as_deref() };
        put_beside(&parts, &output)?;
        Ok((write_disk(&output, &parts, &root, &initrd, &release, lock.as_of)?, Outcome::Done))
    })?;
    progress.step("update bundle", || {
        let names = Names { version: &version.to_string(), minimum: &minimum.to_string(), release };
        bundle::write(&output.bundle(), &names, &output.root(), &output.unified())?;
        Ok(((), Outcome::Done))
    })?;
    progress.step("compressed image", || {
        replace(&output.compressed(), |path| {
            let image = File::open(output.image())?;
            zstd::stream::copy_encode(image, File::create(path)?, IMAGE_ZSTD_LEVEL)
                .context("compressing the image")
        })?;
        Ok(((), Outcome::Done))
    })?;
    report(&output, &root.file, &initrd)?;
    Ok(output)
}

fn put_beside(parts: &Parts, output: &Output) -> Result<()> {
    fs::create_dir_all(output.beside())?;
    for path in list(&parts.beside())? {
        let name = path.file_name().context("a file without a name")?;
        replace(&output.beside().join(name), |to| Ok(fs::copy(parts.beside().join(&path), to).map(drop)?))?;
    }
    Ok(())
}

/// A root file system with the tree of its hashes.
struct Root {
    file: PathBuf,
    verity: Verity,
}

/// What a release is called.
struct Release<'a> {
    version: &'a Version,
    os_release: &'a str,
    append: Option<&'a str>,
}

fn write_disk(
    output: &Output,
    parts: &Parts,
    root: &Root,
    initrd: &Path,
    release: &Release<'_>,
    as_of: u64,
) -> Result<ReleaseId> {
    let verified = verified_command_line(&root.verity, release.append);
    let kernel = read(&parts.kernel())?;
    let initrd = read(initrd)?;
    let uname = read(&parts.kernel_release())?;
    // All that the boot loader is given: releases that differ in anything have different names.
    let key = Key::new("release").with(release.os_release.as_bytes()).with(verified.as_bytes());
    let name = key.with(&uname).with(&initrd).with(&kernel).finish();
    let name = &name[..16];
    let verified = format!("{verified} hivemind.release={name}");
    // The kernel comes last: it takes more memory than its file, behind itself.
    let sections: [uki::Section<'_>; 5] = [
        (".osrel", release.os_release.as_bytes()),
        (".cmdline", verified.as_bytes()),
        (".uname", &uname),
        (".initrd", &initrd),
        (".linux", &kernel),
    ];
    let unified = uki::build(&read(&parts.efi_stub())?, &sections)?;
    let boot_manager = read(&parts.boot_manager())?;
    let title = format!("Hivemind {}", release.version);
    let (entry, entry_text) = boot_menu::entry(name, &title, 1, Assessment::Good);
    let files: [disk::FatFile<'_>; 4] = [
        ("EFI/BOOT/BOOTX64.EFI", &boot_manager),
        (&boot_menu::image_path(name), &unified),
        (&entry, entry_text.as_bytes()),
        ("loader/loader.conf", b"timeout 0\neditor no\n"),
    ];
    replace(&output.image(), |path| disk::write(path, &root.file, &files, as_of))?;
    replace(&output.root(), |path| Ok(fs::copy(&root.file, path).map(drop)?))?;
    replace(&output.unified(), |path| Ok(fs::write(path, &unified)?))?;
    replace(&output.release(), |path| Ok(fs::write(path, format!("{name}\n"))?))?;
    replace(&output.kernel(), |path| Ok(fs::write(path, &kernel)?))?;
    replace(&output.initramfs(), |path| Ok(fs::write(path, &initrd)?))?;
    replace(&output.command_line(), |path| Ok(fs::write(path, command_line() + "\n")?))?;
    Ok(name.parse()?)
}

/// Writes a file beside its place and moves it there: a machine that runs from the old file keeps it, and an
/// interrupted build leaves no half of one.
fn replace(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    write(&partial)?;
    match fs::rename(&partial, path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("writing {}", path.display()))
        }
        result => Ok(result?),
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// What takes how much.
fn report(output: &Output, root: &Path, initrd: &Path) -> Result<()> {
    #[allow(clippy::cast_precision_loss, reason = "megabytes with one digit")]
    let megabytes = |path: &Path| fs::metadata(path).map(|meta| meta.len() as f64 / 1e6);
    eprintln!("  root file system {:6.1} MB", megabytes(root)?);
    eprintln!("  kernel           {:6.1} MB", megabytes(&output.kernel())?);
    eprintln!("  initramfs        {:6.1} MB", megabytes(initrd)?);
    eprintln!("  {}  {:.1} MB", output.compressed().display(), megabytes(&output.compressed())?);
    let digest = hex_sha256(&read(&output.compressed())?);
    eprintln!("  sha256 {digest}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_told_both_slots_by_their_guids_and_the_hash_of_the_root() {
        let line = verified_command_line(&Verity { root_hash: "ab".repeat(64), blocks: 7 }, Some("quiet"));
        assert!(line.starts_with("root=PARTUUID=b1f2c7de-5a0e-4f0b-9d53-6869766d000a "));
        assert!(line.contains(" root=PARTUUID=b1f2c7de-5a0e-4f0b-9d53-6869766d000b "));
        assert!(line.ends_with(&format!(" roothash={} hivemind.blocks=7 quiet", "ab".repeat(64))));
    }

    #[test]
    fn a_release_says_which_may_take_its_place_and_takes_no_version_that_is_none() {
        let said = |own: &str, minimum: Option<&str>| {
            let (version, minimum) = (Some(own.to_owned()), minimum.map(str::to_owned));
            let none = PathBuf::new();
            let options = Options {
                checkout: none.clone(),
                out: none.clone(),
                cache: none.clone(),
                target: none,
                daemon: None,
                version,
                minimum,
                append: None,
            };
            versions(&options).map(|(_, minimum)| minimum.to_string())
        };
        assert_eq!(said("0.2.0", None).unwrap(), MINIMUM_VERSION);
        assert_eq!(said("0.0.9-test", None).unwrap(), "0.0.9-test");
        assert_eq!(said("0.2.0", Some("0.1.5")).unwrap(), "0.1.5");
        for (own, minimum) in [("", None), ("1.2", None), ("1.2.3\nID=x", None), ("1.0.0", Some("1.0.1"))] {
            said(own, minimum).unwrap_err();
        }
    }

    #[test]
    fn os_release_names_the_build() {
        let version = Version::new(1, 2, 3);
        let text = os_release(&version, &version, "abc");
        assert!(text.contains("\nVERSION_ID=1.2.3\nBUILD_ID=abc\nHIVEMIND_MINIMUM=1.2.3\n"));
    }
}
