//! Programs from Debian packages, with the libraries they need and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::layer::Layer;
use crate::error::{Context, Error, Result};
use crate::process::run;

const LOADER: &str = "ld-linux-x86-64.so.2";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// Packages unpacked into one folder.
pub(crate) struct Unpacked {
    root: PathBuf,
}

impl Unpacked {
    /// Downloads the packages and the library packages they depend on from the computer's Debian mirror.
    pub(crate) fn fetch(packages: &[&str], debs: &Path, root: &Path) -> Result<Unpacked> {
        fs::create_dir_all(debs).context(format!("create {}", debs.display()))?;
        fs::create_dir_all(root).context(format!("create {}", root.display()))?;
        let all = with_libraries(packages)?;
        let downloads = root.with_extension("debs");
        fs::create_dir_all(&downloads).context(format!("create {}", downloads.display()))?;
        let mut command = Command::new("apt-get");
        // The sandbox user of apt cannot write to a folder of ours.
        command.args(["download", "-qq", "-o", "APT::Sandbox::User=root"]);
        run(command.args(&all).current_dir(&downloads))?;
        for entry in fs::read_dir(&downloads).context("list the downloaded packages")?.flatten() {
            run(Command::new("dpkg-deb").arg("-x").arg(entry.path()).arg(root))?;
        }
        fs::remove_dir_all(&downloads).context("remove the downloaded packages")?;
        Ok(Unpacked { root: root.to_owned() })
    }

    /// The file of a package. Links are followed inside the folder.
    pub(crate) fn path(&self, path: &str) -> Result<PathBuf> {
        let merged = path.strip_prefix("usr/").unwrap_or(path);
        let found = [path, merged].map(|path| self.root.join(path)).into_iter().find(|path| path.exists());
        let found = found.ok_or(std::io::Error::from(std::io::ErrorKind::NotFound));
        found.context(format!("find {path} in its Debian package"))
    }

    /// Adds a program, at its own path, and all libraries it is linked to.
    pub(crate) fn add_program(&self, layer: &mut Layer, libraries: &mut Layer, path: &str) -> Result<()> {
        layer.copy(&self.path(path)?, path, 0o755)?;
        self.add_libraries(libraries, path)
    }

    /// Adds a folder with the files in it, those whose names `wanted` takes.
    pub(crate) fn add_files(
        &self,
        layer: &mut Layer,
        folder: &str,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let from = self.path(folder)?;
        layer.folder(folder, 0o755, 0);
        for entry in fs::read_dir(&from).context(format!("list {}", from.display()))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = format!("{folder}/{name}");
            if entry.path().is_dir() {
                self.add_files(layer, &path, &wanted as &dyn Fn(&str) -> bool)?;
            } else if wanted(&name) {
                layer.copy(&entry.path(), &path, 0o644)?;
            }
        }
        Ok(())
    }

    /// Adds the libraries a program is linked to, and the loader that finds them.
    pub(crate) fn add_libraries(&self, layer: &mut Layer, path: &str) -> Result<()> {
        let files = self.files()?;
        let loader = files.get(LOADER).ok_or_else(|| missing(LOADER))?;
        layer.copy(loader, &format!("lib64/{LOADER}"), 0o755)?;
        let folders: BTreeSet<_> = files.values().filter_map(|file| file.parent()).collect();
        let folders: Vec<_> = folders.into_iter().map(|folder| folder.to_string_lossy()).collect();
        let mut command = Command::new(loader);
        command.args(["--inhibit-cache", "--library-path", &folders.join(":"), "--list"]);
        let listed = run(command.arg(self.path(path)?))?;
        for line in String::from_utf8_lossy(&listed.stdout).lines() {
            let Some((name, _)) = line.trim().split_once(" => ") else { continue };
            // The loader names itself by its path; it was added above.
            if name.starts_with('/') {
                continue;
            }
            // The loader falls back to this computer's own libraries, which must not end up in an image.
            let file = files.get(name).ok_or_else(|| missing(name))?;
            layer.copy(file, &format!("{LIBRARIES}/{name}"), 0o644)?;
        }
        Ok(())
    }

    /// All shared libraries by name.
    fn files(&self) -> Result<BTreeMap<String, PathBuf>> {
        let mut found = BTreeMap::new();
        let mut folders = vec![self.root.join("lib"), self.root.join("usr/lib")];
        while let Some(folder) = folders.pop() {
            let Ok(entries) = fs::read_dir(&folder) else { continue };
            for path in entries.flatten().map(|entry| entry.path()) {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                if path.is_dir() && !path.is_symlink() {
                    folders.push(path);
                } else if name.contains(".so") && path.exists() {
                    found.insert(name, path);
                }
            }
        }
        Ok(found)
    }
}

fn missing(library: &str) -> Error {
    Error::Failed { command: "collect libraries".into(), output: format!("no package contains {library}") }
}

/// The packages and, transitively, every library package they depend on.
fn with_libraries(packages: &[&str]) -> Result<BTreeSet<String>> {
    let mut all: BTreeSet<String> = packages.iter().map(|package| (*package).to_owned()).collect();
    let mut unseen: Vec<String> = all.iter().cloned().collect();
    while !unseen.is_empty() {
        let output = run(Command::new("apt-cache").arg("depends").args(&unseen))?;
        let output = String::from_utf8_lossy(&output.stdout).into_owned();
        let dependencies = output.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        let libraries = dependencies.filter(|name| name.starts_with("lib") || *name == "zlib1g");
        unseen = libraries.map(str::to_owned).collect::<BTreeSet<_>>().difference(&all).cloned().collect();
        all.extend(unseen.iter().cloned());
    }
    Ok(all)
}
