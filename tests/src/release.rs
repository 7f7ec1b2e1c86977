//! Releases of the operating system that differ from the image's, and the slots and boot menus of machines that are
//! off.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use hivemind_image::build::{Options, Output, build};
use hivemind_image::cache::project_folder;
use hivemind_image::programs;
use hivemind_init::boot_menu::{Assessment, BootMenu};
use hivemind_qemu::{EmptyRegistry, Lab, Machine};
use hivemind_spec::id::Digest;
use hivemind_spec::release::OsReleaseSpec;
use oci_client::Reference;
use oci_client::manifest::{OciImageIndex, OciImageManifest, OciManifest};
use tempfile::TempDir;

use crate::{disk, registry};

/// What a release differs in.
#[derive(Debug, Default)]
pub struct Difference<'a> {
    /// Words at the end of the kernel's command line.
    pub append: &'a str,
    /// Put in the agent's place.
    pub agent: Option<&'a [u8]>,
    /// Put in the place of PID 1.
    pub init: Option<&'a [u8]>,
}

/// A release that was built.
pub struct Release {
    output: Output,
    id: String,
    _dir: TempDir,
}

/// The programs that the image was built with.
///
/// # Panics
/// Without a cache folder; and when anything fails, as all functions here.
pub fn programs() -> programs::Daemon {
    programs::Daemon::at(&programs::built(&target()))
}

impl Release {
    /// Builds one from the image's own parts.
    pub fn build(version: &str, difference: &Difference<'_>) -> Self {
        let dir = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
        let own = programs();
        let changed = programs::Daemon::at(dir.path());
        for (from, to, instead) in
            [(own.agent, changed.agent, difference.agent), (own.init, changed.init, difference.init)]
        {
            let done = match instead {
                Some(bytes) => fs::write(&to, bytes),
                None => fs::copy(&from, &to).map(drop),
            };
            done.unwrap_or_else(|error| panic!("{}: {error}", to.display()));
        }
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        let options = Options {
            checkout: package.parent().unwrap_or(package).to_owned(),
            out: dir.path().join("out"),
            cache: project_folder().unwrap_or_else(|error| panic!("{error:#}")),
            target: target(),
            daemon: Some(dir.path().to_owned()),
            version: Some(version.to_owned()),
            minimum: None,
            append: Some(difference.append.to_owned()),
        };
        let output = build(&options).unwrap_or_else(|error| panic!("{error:#}"));
        let id = fs::read_to_string(output.release()).unwrap_or_else(|error| panic!("{error}"));
        Self { output, id: id.trim().to_owned(), _dir: dir }
    }

    /// Builds one with another agent, which does the same.
    pub fn another(version: &str) -> Self {
        let mut agent = fs::read(programs().agent).unwrap_or_else(|error| panic!("{error}"));
        agent.extend_from_slice(version.as_bytes());
        Self::build(version, &Difference { agent: Some(&agent), ..Difference::default() })
    }

    /// Its name, 16 hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The update bundle.
    pub fn bundle(&self) -> PathBuf {
        self.output.bundle()
    }

    /// Puts the bundle into a registry of a lab, and says what it is called there.
    pub fn push(&self, lab: &Lab, registry: &EmptyRegistry) -> String {
        const REPOSITORY: &str = "hivemind/os:0.2.0";
        let address = registry.address(lab).to_string();
        let push = || push(&self.bundle(), &address, &format!("{address}/{REPOSITORY}"));
        lab.enter(push).unwrap_or_else(|error| panic!("{error}"));
        format!("{}/{REPOSITORY}", registry.name())
    }

    /// Bytes of its two files together.
    pub fn bytes(&self) -> u64 {
        let size = |path: PathBuf| fs::metadata(path).map(|meta| meta.len());
        let sizes = [self.output.root(), self.output.unified()].map(size);
        sizes.into_iter().map(|size| size.unwrap_or_else(|error| panic!("{error}"))).sum()
    }

    /// Writes it to the second slot of a machine that is off, to be tried; or as if it had been.
    pub fn install(&self, machine: &Machine, assessment: Assessment) {
        disk::open(machine, |path| self.write(path, assessment).unwrap_or_else(|error| panic!("{error}")));
    }

    fn write(&self, path: &Path, assessment: Assessment) -> io::Result<()> {
        let mut slot = OpenOptions::new().write(true).open(path)?;
        slot.seek(SeekFrom::Start(disk::place(path, "root-b").0))?;
        io::copy(&mut File::open(self.output.root())?, &mut slot)?;
        let menu = menu(path)?;
        menu.add(&self.id, "Hivemind under test", File::open(self.output.unified())?)?;
        menu.assess(&self.id, assessment)
    }
}

/// The description of the release in an update bundle.
pub fn description(bundle: &Path) -> OsReleaseSpec {
    serde_json::from_slice(&blob(bundle, &manifest(bundle).config.digest))
        .unwrap_or_else(|error| panic!("{error}"))
}

fn manifest(bundle: &Path) -> OciImageManifest {
    let index = fs::read(bundle.join("index.json")).unwrap_or_else(|error| panic!("{error}"));
    let index: OciImageIndex = serde_json::from_slice(&index).unwrap_or_else(|error| panic!("{error}"));
    serde_json::from_slice(&blob(bundle, &index.manifests[0].digest))
        .unwrap_or_else(|error| panic!("{error}"))
}

fn blob(bundle: &Path, digest: &str) -> Vec<u8> {
    let path = bundle.join("blobs").join(digest.replace(':', "/"));
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn push(bundle: &Path, registry: &str, name: &str) {
    let reference: Reference = name.parse().unwrap_or_else(|error| panic!("{name}: {error}"));
    let manifest = manifest(bundle);
    registry::talk(registry, async |client| {
        for part in manifest.layers.iter().chain([&manifest.config]) {
            client.push_blob(&reference, blob(bundle, &part.digest), &part.digest).await?;
        }
        client.push_manifest(&reference, &OciManifest::Image(manifest.clone())).await
    });
}

/// How many bytes of a release a machine has not got that runs another.
pub fn missing_bytes(new: &OsReleaseSpec, running: &OsReleaseSpec) -> u64 {
    let chunks = |spec: &OsReleaseSpec| [spec.root.chunks.0.clone(), spec.kernel.chunks.0.clone()].concat();
    let known: BTreeSet<Digest> = chunks(running).iter().map(|chunk| chunk.digest).collect();
    let missing = chunks(new).into_iter().filter(|chunk| !known.contains(&chunk.digest));
    missing.map(|chunk| u64::from(chunk.bytes)).sum()
}

/// What the boot menu of a machine that is off says of a release; none when it is not in it.
pub fn assessment(machine: &Machine, release: &str) -> Option<Assessment> {
    disk::open(machine, |path| {
        let entry = menu(path).and_then(|menu| menu.entry(release));
        entry.unwrap_or_else(|error| panic!("{error}")).map(|entry| entry.assessment)
    })
}

fn menu(path: &Path) -> io::Result<BootMenu> {
    let (start, length) = disk::place(path, "esp");
    Ok(BootMenu::new(OpenOptions::new().read(true).write(true).open(path)?, start, length))
}

fn target() -> PathBuf {
    let set = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    set.unwrap_or_else(|| project_folder().unwrap_or_else(|error| panic!("{error:#}")).join("target"))
}
