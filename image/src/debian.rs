//! From locked packages to the Debian part of the root: unpack with mmdebstrap, keep what is listed, check the rest.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use globset::{GlobBuilder, GlobMatcher};
use serde::Deserialize;

use crate::apt::cached_path;
use crate::elf;
use crate::lock::{Lock, Locked};
use crate::modules::{self, Catalogue};
use crate::process::run;

/// `rootfs/keep.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keep {
    /// Patterns of paths, relative to the root.
    pub files: Vec<String>,
    /// The same of programs that are put beside the image, for benchmarks to bring to a machine.
    pub beside: Vec<String>,
    /// Kernel modules.
    pub modules: modules::Wanted,
}

/// Where things are in the folder that [`assemble`] fills.
pub struct Parts(PathBuf);

impl Parts {
    /// The parts in a folder.
    #[must_use]
    pub fn at(dir: &Path) -> Self {
        Self(dir.to_owned())
    }
    /// The tree that becomes the root file system.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.0.join("root")
    }
    /// The tree of what is put beside the image.
    #[must_use]
    pub fn beside(&self) -> PathBuf {
        self.0.join("beside")
    }
    /// The kernel.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.0.join("vmlinuz")
    }
    /// systemd's stub that makes a kernel and its initramfs one EFI program.
    #[must_use]
    pub fn efi_stub(&self) -> PathBuf {
        self.0.join("linuxx64.efi.stub")
    }
    /// The boot manager.
    #[must_use]
    pub fn boot_manager(&self) -> PathBuf {
        self.0.join("systemd-bootx64.efi")
    }
    /// Folder of the modules for the initramfs.
    #[must_use]
    pub fn early_modules(&self) -> PathBuf {
        self.0.join("early")
    }
    /// The index of the modules for the initramfs.
    #[must_use]
    pub fn early_index(&self) -> PathBuf {
        self.0.join("early.index")
    }
    /// The kernel's release, as `uname -r` gives it.
    #[must_use]
    pub fn kernel_release(&self) -> PathBuf {
        self.0.join("kernel.release")
    }
}

/// Unpacks the packages and fills `out`.
///
/// # Errors
/// When a tool fails, a rule matches nothing, or a program in the result lacks a library.
pub fn assemble(lock: &Lock, keep: &Keep, debs: &Path, scratch: &Path, out: &Path) -> Result<()> {
    let unpacked = scratch.join("unpacked");
    unpack(lock, debs, scratch, &unpacked)?;
    let parts = Parts::at(out);
    keep_files(&keep.files, &unpacked, &parts.root())?;
    keep_files(&keep.beside, &unpacked, &parts.beside())?;
    certificates(&unpacked, &parts.root())?;
    let efi = unpacked.join("usr/lib/systemd/boot/efi");
    copy_file(&efi.join("linuxx64.efi.stub"), &parts.efi_stub())?;
    copy_file(&efi.join("systemd-bootx64.efi"), &parts.boot_manager())?;

    let release = kernel_release(&unpacked)?;
    copy_file(&unpacked.join(format!("boot/vmlinuz-{release}")), &parts.kernel())?;
    fs::write(parts.kernel_release(), &release)?;
    kernel_modules(&keep.modules, &unpacked, &release, &parts)?;
    check_libraries(&parts.root())
}

/// mmdebstrap with an index that names just the locked packages and no dependencies: what is locked is what is unpacked.
/// The variant `extract` runs no package script, so this needs no privileges.
fn unpack(lock: &Lock, debs: &Path, scratch: &Path, into: &Path) -> Result<()> {
    let repository = scratch.join("repository");
    fs::create_dir_all(&repository)?;
    let mut index = String::new();
    for package in &lock.packages {
        let file = format!("{}.deb", package.name);
        fs::copy(cached_path(debs, package), repository.join(&file))
            .with_context(|| format!("copying the package {}", package.name))?;
        let Locked { name, version, architecture, size, sha256, .. } = package;
        writeln!(
            index,
            "Package: {name}\nVersion: {version}\nArchitecture: {architecture}\nMaintainer: none\nDescription: none\n\
             Filename: ./{file}\nSize: {size}\nSHA256: {sha256}\n"
        )?;
    }
    fs::write(repository.join("Packages"), index)?;
    let names: Vec<&str> = lock.packages.iter().map(|p| p.name.as_str()).collect();
    // As root, `chrootless` would be refused for its dangers with package scripts; as a user, `root` is impossible.
    let mode = if is_root() { "root" } else { "chrootless" };
    run(Command::new("mmdebstrap")
        .env("SOURCE_DATE_EPOCH", lock.as_of.to_string())
        .env("TMPDIR", scratch)
        .args(["--quiet", "--variant=extract", "--architectures=amd64", "--format=directory"])
        .arg(format!("--mode={mode}"))
        .arg(format!("--include={}", names.join(",")))
        .arg("")
        .arg(into)
        .arg(format!("deb [trusted=yes] copy:{} ./", repository.display())))?;
    Ok(())
}

/// Whether this process is root; the folder of the process belongs to its effective user.
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// All files and symbolic links below `dir`, as sorted paths relative to it. Device nodes and folders are left out.
///
/// # Errors
/// When a folder cannot be read.
pub fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    fn walk(base: &Path, below: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
        let dir = base.join(below);
        for entry in fs::read_dir(&dir).with_context(|| format!("listing {}", dir.display()))? {
            let entry = entry?;
            let path = below.join(entry.file_name());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                walk(base, &path, found)?;
            } else if kind.is_file() || kind.is_symlink() {
                found.push(path);
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    walk(dir, Path::new(""), &mut found)?;
    found.sort();
    Ok(found)
}

fn keep_files(patterns: &[String], from: &Path, to: &Path) -> Result<()> {
    let matchers: Vec<GlobMatcher> = patterns
        .iter()
        .map(|pattern| Ok(GlobBuilder::new(pattern).literal_separator(true).build()?.compile_matcher()))
        .collect::<Result<_>>()?;
    let mut used = vec![false; matchers.len()];
    for path in list(from)? {
        if let Some(index) = matchers.iter().position(|matcher| matcher.is_match(&path)) {
            used[index] = true;
            copy_file(&from.join(&path), &to.join(&path))?;
        }
    }
    match used.iter().position(|used| !used) {
        Some(index) => bail!("rootfs/keep.toml: `{}` matches nothing in the packages", patterns[index]),
        None => Ok(()),
    }
}

/// Copies a file or symbolic link. Only the execute bit survives: no owner, no setuid, no odd modes.
///
/// # Errors
/// When either side cannot be accessed.
pub fn copy_file(from: &Path, to: &Path) -> Result<()> {
    let context = || format!("copying {} to {}", from.display(), to.display());
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).with_context(context)?;
    }
    let meta = fs::symlink_metadata(from).with_context(context)?;
    if meta.is_symlink() {
        let target = fs::read_link(from).with_context(context)?;
        return symlink(target, to).with_context(context);
    }
    fs::copy(from, to).with_context(context)?;
    let mode = if meta.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 };
    fs::set_permissions(to, fs::Permissions::from_mode(mode)).with_context(context)
}

/// What `update-ca-certificates` would do at installation: one file of all certificates.
fn certificates(from: &Path, to: &Path) -> Result<()> {
    let source = from.join("usr/share/ca-certificates/mozilla");
    let mut bundle = String::new();
    for path in list(&source)? {
        let certificate = fs::read_to_string(source.join(&path))?;
        bundle.push_str(certificate.trim_end());
        bundle.push('\n');
    }
    ensure!(bundle.contains("BEGIN CERTIFICATE"), "the package ca-certificates holds no certificates");
    let target = to.join("etc/ssl/certs");
    fs::create_dir_all(&target)?;
    Ok(fs::write(target.join("ca-certificates.crt"), bundle)?)
}

fn kernel_release(unpacked: &Path) -> Result<String> {
    let modules = unpacked.join("usr/lib/modules");
    let releases: Vec<String> = fs::read_dir(&modules)
        .with_context(|| format!("listing {}", modules.display()))?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    match releases.as_slice() {
        [one] => Ok(one.clone()),
        several => bail!("expected the modules of one kernel, found {several:?}"),
    }
}

fn kernel_modules(wanted: &modules::Wanted, unpacked: &Path, release: &str, parts: &Parts) -> Result<()> {
    let catalogue = Catalogue::read(&unpacked.join("usr/lib/modules").join(release))?;
    let write = |dir: &Path, name: &str| -> Result<()> {
        fs::create_dir_all(dir)?;
        Ok(fs::write(dir.join(format!("{name}.ko")), catalogue.bytes(name)?)?)
    };

    let early: Vec<String> = wanted.early.iter().chain(&wanted.disks).cloned().collect();
    for name in catalogue.order(&early).context("rootfs/keep.toml: modules.early and modules.disks")? {
        write(&parts.early_modules(), &name)?;
    }
    fs::write(parts.early_index(), catalogue.index(&early, |name| format!("/modules/{name}.ko"))?)?;

    let folder = format!("usr/lib/modules/{release}");
    let installed = |name: &str| format!("/{folder}/{name}.ko");
    let boot = catalogue.order(&wanted.boot).context("rootfs/keep.toml: modules.boot")?;
    let mut late = catalogue.order(&wanted.late).context("rootfs/keep.toml: modules.late")?;
    late.retain(|name| !boot.contains(name));
    let for_hardware = catalogue.order(&wanted.drivers).context("rootfs/keep.toml: modules.drivers")?;
    for name in boot.iter().chain(&late).chain(&for_hardware) {
        write(&parts.root().join(&folder), name)?;
    }
    let lists = parts.root().join("usr/lib/hivemind");
    fs::create_dir_all(&lists)?;
    fs::write(lists.join("modules.load"), lines(boot.iter().map(|name| installed(name))))?;
    fs::write(lists.join("modules.late"), lines(late.iter().map(|name| installed(name))))?;
    Ok(fs::write(lists.join("modules.drivers"), catalogue.index(&wanted.drivers, installed)?)?)
}

fn lines(items: impl Iterator<Item = String>) -> String {
    items.map(|item| item + "\n").collect()
}

/// Every dynamically linked file must find its libraries, in versions new enough, among the files of the root.
fn check_libraries(root: &Path) -> Result<()> {
    let mut files = BTreeMap::new();
    for path in list(root)? {
        // Through links too: a library is asked for by the name of a link.
        let Ok(bytes) = fs::read(root.join(&path)) else { continue };
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if elf::is_elf(&bytes) && !name.ends_with(".ko") {
            files.insert(name, elf::linkage(&bytes).with_context(|| path.display().to_string())?);
        }
    }
    let unmet = elf::unmet(&files);
    ensure!(
        unmet.is_empty(),
        "the root lacks libraries; add them to rootfs/packages.toml and rootfs/keep.toml:\n  {}",
        unmet.join("\n  ")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_that_keeps_nothing_is_an_error() {
        let from = tempfile::tempdir().unwrap();
        let to = tempfile::tempdir().unwrap();
        fs::create_dir_all(from.path().join("usr/bin")).unwrap();
        fs::write(from.path().join("usr/bin/crun"), b"x").unwrap();
        let patterns = ["usr/bin/*".to_owned(), "usr/bin/renamed".to_owned()];
        keep_files(&patterns[..1], from.path(), to.path()).unwrap();
        let error = keep_files(&patterns, from.path(), &to.path().join("again")).unwrap_err().to_string();
        assert!(error.contains("usr/bin/renamed"), "{error}");
    }

    #[test]
    fn a_star_does_not_keep_what_lies_deeper() {
        let from = tempfile::tempdir().unwrap();
        let to = tempfile::tempdir().unwrap();
        fs::create_dir_all(from.path().join("usr/share")).unwrap();
        fs::write(from.path().join("usr/a"), b"x").unwrap();
        fs::write(from.path().join("usr/share/b"), b"x").unwrap();
        keep_files(&["usr/*".to_owned()], from.path(), to.path()).unwrap();
        assert_eq!(list(to.path()).unwrap(), [PathBuf::from("usr/a")]);
    }

    #[test]
    fn setuid_does_not_survive_copying() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::write(&from, b"x").unwrap();
        fs::set_permissions(&from, fs::Permissions::from_mode(0o4755)).unwrap();
        copy_file(&from, &to).unwrap();
        assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o7777, 0o755);
    }
}
