//! Images in files: what `docker save`, `podman save`, `skopeo copy` and `buildx --output` write. Either an OCI image layout
//! (OCI image specification, "Image Layout") in a tar archive or a folder, or Docker's own form before it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use hivemind_spec::id::{Digest, hex};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::failure::{Failure, Result};

/// The largest index, manifest or configuration, bytes: as nodes take it.
const MAX_DOCUMENT_BYTES: u64 = 4 * 1024 * 1024;

/// Indexes within indexes that are followed.
const MAX_DEPTH: usize = 4;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Where the name of an image in an index is said: by containerd and Docker whole, by others whole or as a tag only.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// An image in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// What the archive calls it; it may have several names or none.
    pub names: Vec<String>,
    /// Its manifest, as its digest is made of it.
    pub manifest: Vec<u8>,
    /// With `sha256:`.
    pub digest: String,
    /// Where its configuration and its layers are, by their digests.
    pub blobs: BTreeMap<String, Blob>,
}

impl Image {
    /// How long all its blobs are together, bytes.
    pub fn size(&self) -> u64 {
        self.blobs.values().map(|blob| blob.size).sum()
    }
}

/// A blob of an image in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Its file in the archive.
    path: String,
    /// How long it is, bytes.
    pub size: u64,
}

/// A tar archive or a folder with images.
#[derive(Debug)]
pub struct Archive {
    files: Files,
}

#[derive(Debug)]
enum Files {
    Folder(PathBuf),
    Tar { file: File, entries: BTreeMap<String, Entry> },
}

#[derive(Debug)]
enum Entry {
    File {
        at: u64,
        size: u64,
    },
    /// Docker's older form shares layers so.
    Link(String),
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default, skip_serializing)]
    annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing)]
    platform: Option<Platform>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

#[derive(Debug, Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// An entry of Docker's `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn bad(what: impl std::fmt::Display) -> Failure {
    Failure::input("bad-image", format!("the images cannot be read: {what}"))
        .advice("make the file with `docker save`, `podman save` or `skopeo copy … oci-archive:FILE`")
}

impl Archive {
    /// Opens a tar archive, or a folder.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Ok(Self { files: Files::Folder(path.to_owned()) });
        }
        Self::of(File::open(path).map_err(|error| Failure::file("read", path, &error))?)
    }

    /// A tar archive.
    ///
    /// # Errors
    /// When it is none.
    pub fn of(file: File) -> Result<Self> {
        let mut entries = BTreeMap::new();
        let mut archive = tar::Archive::new(io::BufReader::new(&file));
        for entry in archive.entries().map_err(bad)? {
            let entry = entry.map_err(bad)?;
            let path = plain(&entry.path().map_err(bad)?);
            let kind = entry.header().entry_type();
            let found = if kind.is_file() {
                Entry::File { at: entry.raw_file_position(), size: entry.size() }
            } else if let Some(to) = entry.link_name().map_err(bad)? {
                let beside = Path::new(&path).parent().unwrap_or(Path::new(""));
                Entry::Link(plain(&if kind.is_symlink() { beside.join(to) } else { to.into_owned() }))
            } else {
                continue;
            };
            entries.insert(path, found);
        }
        Ok(Self { files: Files::Tar { file, entries } })
    }

    /// The images for a processor architecture, as OCI names it.
    ///
    /// # Errors
    /// When there is none, or what describes them is broken.
    pub fn images(&self, architecture: &str) -> Result<Vec<Image>> {
        let found = if self.has("index.json") {
            self.layout(architecture)?
        } else if self.has("manifest.json") {
            self.docker()?
        } else {
            return Err(bad("there is neither an index.json nor a manifest.json"));
        };
        if found.is_empty() {
            return Err(bad(format!("there is none for {architecture}")));
        }
        Ok(found)
    }

    fn layout(&self, architecture: &str) -> Result<Vec<Image>> {
        let index: Index = parse("index.json", &self.document("index.json")?)?;
        let mut images: Vec<Image> = Vec::new();
        for descriptor in &index.manifests {
            let Some(image) = self.image(descriptor, architecture, MAX_DEPTH)? else { continue };
            let names = NAMES.iter().filter_map(|name| descriptor.annotations.get(*name));
            // A tag alone is no name.
            let name = names.into_iter().find(|name| name.contains(['/', ':'])).cloned();
            match images.iter_mut().find(|other| other.digest == image.digest) {
                Some(other) => other.names.extend(name),
                None => images.push(Image { names: name.into_iter().collect(), ..image }),
            }
        }
        Ok(images)
    }

    /// The image that a descriptor leads to, if there is one for the architecture.
    fn image(&self, descriptor: &Descriptor, architecture: &str, depth: usize) -> Result<Option<Image>> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(bad("its indexes lead from one to the next"));
        };
        let fits = |platform: &Platform| platform.os == "linux" && platform.architecture == architecture;
        if descriptor.platform.as_ref().is_some_and(|platform| !fits(platform)) {
            return Ok(None);
        }
        let path = blob_path(&descriptor.digest)?;
        if !self.has(&path) {
            // Of several platforms, what was not pulled is not saved.
            return Ok(None);
        }
        let bytes = self.document(&path)?;
        if digest(&bytes) != descriptor.digest {
            return Err(bad(format!("{} is something else than its name says", descriptor.digest)));
        }
        if let Ok(index) = serde_json::from_slice::<Index>(&bytes) {
            for descriptor in &index.manifests {
                if let Some(image) = self.image(descriptor, architecture, depth)? {
                    return Ok(Some(image));
                }
            }
            return Ok(None);
        }
        let manifest: Manifest = parse(&descriptor.digest, &bytes)?;
        let mut blobs = BTreeMap::new();
        for Descriptor { digest, size, .. } in manifest.layers.iter().chain([&manifest.config]) {
            let path = blob_path(digest)?;
            if self.size(&path)? != *size {
                return Err(bad(format!("{digest} is not as long as its manifest says")));
            }
            blobs.insert(digest.clone(), Blob { path, size: *size });
        }
        Ok(Some(Image { names: Vec::new(), manifest: bytes, digest: descriptor.digest.clone(), blobs }))
    }

    /// Docker's form before OCI's, which has no manifests: they are made here, always the same of the same image.
    fn docker(&self) -> Result<Vec<Image>> {
        #[derive(Deserialize)]
        struct Config {
            rootfs: RootFs,
        }
        #[derive(Deserialize)]
        struct RootFs {
            diff_ids: Vec<String>,
        }
        let all: Vec<DockerImage> = parse("manifest.json", &self.document("manifest.json")?)?;
        let image = |DockerImage { config: path, repo_tags, layers }: DockerImage| {
            let config = self.document(&path)?;
            let Config { rootfs: RootFs { diff_ids } } = parse(&path, &config)?;
            if diff_ids.len() != layers.len() {
                return Err(bad(format!(
                    "{path} names {} layers, and there are {}",
                    diff_ids.len(),
                    layers.len()
                )));
            }
            let own = Descriptor {
                media_type: OCI_CONFIG.to_owned(),
                digest: digest(&config),
                size: config.len() as u64,
                annotations: BTreeMap::new(),
                platform: None,
            };
            let mut blobs = BTreeMap::from([(own.digest.clone(), Blob { path, size: own.size })]);
            let mut described = Vec::new();
            for (layer, diff_id) in layers.into_iter().zip(diff_ids) {
                let (size, gzipped) = (self.size(&layer)?, self.is_gzip(&layer)?);
                let (digest, suffix) = match gzipped {
                    // What it unpacks to is what it is.
                    false => (diff_id, ""),
                    true => (self.digest_of(&layer)?, "+gzip"),
                };
                let media_type = format!("{OCI_LAYER}{suffix}");
                blobs.insert(digest.clone(), Blob { path: layer, size });
                described.push(json!({ "mediaType": media_type, "digest": digest, "size": size }));
            }
            let manifest = json!({
                "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": own, "layers": described
            });
            let manifest = manifest.to_string().into_bytes();
            let digest = digest(&manifest);
            Ok(Image { names: repo_tags.unwrap_or_default(), manifest, digest, blobs })
        };
        all.into_iter().map(image).collect()
    }

    /// A blob from a byte on.
    ///
    /// # Errors
    /// Those of reading.
    pub fn read(&self, blob: &Blob, from: u64) -> Result<impl Read + use<>> {
        self.part(&blob.path, from).map(|(read, _)| read)
    }

    fn has(&self, path: &str) -> bool {
        match &self.files {
            Files::Folder(folder) => folder.join(path).is_file(),
            Files::Tar { entries, .. } => entries.contains_key(path),
        }
    }

    fn size(&self, path: &str) -> Result<u64> {
        self.part(path, 0).map(|(_, size)| size)
    }

    /// A file from a byte on, and how long it is in all.
    fn part(&self, path: &str, from: u64) -> Result<(impl Read + use<>, u64)> {
        let (mut file, at, size) = match &self.files {
            Files::Folder(folder) => {
                let own = folder.join(path);
                let file = File::open(&own).map_err(|error| Failure::file("read", &own, &error))?;
                let size = file.metadata().map_err(bad)?.len();
                (file, 0, size)
            }
            Files::Tar { file, entries } => {
                let mut found = entries.get(path);
                for _ in 0..MAX_DEPTH {
                    let Some(Entry::Link(to)) = found else { break };
                    found = entries.get(to);
                }
                let Some(Entry::File { at, size }) = found else {
                    return Err(bad(format!("it has no {path}")));
                };
                (file.try_clone().map_err(bad)?, *at, *size)
            }
        };
        file.seek(SeekFrom::Start(at + from)).map_err(bad)?;
        Ok((file.take(size.saturating_sub(from)), size))
    }

    fn document(&self, path: &str) -> Result<Vec<u8>> {
        let (read, size) = self.part(path, 0)?;
        if size > MAX_DOCUMENT_BYTES {
            return Err(bad(format!("{path} is over {MAX_DOCUMENT_BYTES} bytes")));
        }
        let mut bytes = Vec::new();
        read.take(MAX_DOCUMENT_BYTES).read_to_end(&mut bytes).map_err(bad)?;
        Ok(bytes)
    }

    fn is_gzip(&self, path: &str) -> Result<bool> {
        let mut head = Vec::new();
        self.part(path, 0)?.0.take(2).read_to_end(&mut head).map_err(bad)?;
        Ok(head == [0x1f, 0x8b])
    }

    fn digest_of(&self, path: &str) -> Result<String> {
        let (mut read, _) = self.part(path, 0)?;
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match read.read(&mut buffer).map_err(bad)? {
                0 => return Ok(format!("sha256:{}", hex(hash.finish().as_ref()))),
                count => hash.update(&buffer[..count]),
            }
        }
    }
}

/// A path without `.` and `..`, as far as they lead nowhere else.
fn plain(path: &Path) -> String {
    let mut parts: Vec<String> = Vec::new();
    for part in path.components() {
        match part {
            std::path::Component::Normal(part) => parts.push(part.to_string_lossy().into_owned()),
            std::path::Component::ParentDir => drop(parts.pop()),
            _ => {}
        }
    }
    parts.join("/")
}

fn blob_path(digest: &str) -> Result<String> {
    match digest.strip_prefix("sha256:") {
        Some(digits) if digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            Ok(format!("blobs/sha256/{digits}"))
        }
        _ => Err(bad(format!("{digest:?} is not a SHA-256 digest"))),
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", Digest::of(bytes))
}

fn parse<T: serde::de::DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| bad(format!("{what}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(files: &[(String, Vec<u8>)], links: &[(&str, &str)]) -> Archive {
        let mut archive = tar::Builder::new(tempfile::tempfile().unwrap());
        for (path, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            archive.append_data(&mut header, path, bytes.as_slice()).unwrap();
        }
        for (path, to) in links {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            archive.append_link(&mut header, path, to).unwrap();
        }
        let mut file = archive.into_inner().unwrap();
        file.rewind().unwrap();
        Archive::of(file).unwrap()
    }

    fn read(archive: &Archive, image: &Image, digest: &str, from: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        archive.read(&image.blobs[digest], from).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn blob(files: &mut Vec<(String, Vec<u8>)>, bytes: &[u8]) -> serde_json::Value {
        files.push((blob_path(&digest(bytes)).unwrap(), bytes.to_vec()));
        json!({ "mediaType": "x", "digest": digest(bytes), "size": bytes.len() })
    }

    /// The files of an OCI layout with an image for two architectures.
    fn layout() -> (Vec<(String, Vec<u8>)>, String) {
        let mut files = Vec::new();
        let mut platforms = Vec::new();
        let mut wanted = String::new();
        for architecture in ["arm64", "amd64"] {
            let (config, layer) = (blob(&mut files, architecture.as_bytes()), blob(&mut files, b"a layer"));
            let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer] }).to_string();
            wanted = digest(manifest.as_bytes());
            let mut described = blob(&mut files, manifest.as_bytes());
            described["platform"] = json!({ "os": "linux", "architecture": architecture });
            platforms.push(described);
        }
        let mut index = blob(&mut files, json!({ "manifests": platforms }).to_string().as_bytes());
        index["annotations"] = json!({ NAMES[0]: "docker.io/library/shop:1", NAMES[1]: "1" });
        files.push(("index.json".to_owned(), json!({ "manifests": [index] }).to_string().into_bytes()));
        (files, wanted)
    }

    #[test]
    fn an_oci_layout_has_the_image_for_the_machines() {
        let (files, wanted) = layout();
        let archive = archive(&files, &[]);
        let images = archive.images("amd64").unwrap();
        let [image] = images.as_slice() else { panic!("{images:?}") };
        assert_eq!(image.names, ["docker.io/library/shop:1"]);
        assert_eq!(image.digest, wanted);
        assert_eq!(digest(&image.manifest), wanted);
        assert_eq!(read(&archive, image, &digest(b"a layer"), 2), b"layer");
        assert_eq!(read(&archive, image, &digest(b"amd64"), 0), b"amd64");
        let refused = archive.images("riscv64").unwrap_err();
        assert!(refused.detail.contains("none for riscv64"), "{}", refused.detail);
    }

    #[test]
    fn a_layout_in_a_folder_is_as_good_and_what_is_broken_is_refused() {
        let (mut files, wanted) = layout();
        let folder = tempfile::tempdir().unwrap();
        let write = |files: &[(String, Vec<u8>)]| {
            for (path, bytes) in files {
                let path = folder.path().join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, bytes).unwrap();
            }
        };
        write(&files);
        assert_eq!(Archive::open(folder.path()).unwrap().images("amd64").unwrap()[0].digest, wanted);
        // A layer that is shorter than it should be, and a manifest that is another.
        let at = files.iter().position(|(_, bytes)| bytes == b"a layer").unwrap();
        files[at].1 = b"short".to_vec();
        write(&files[at..=at]);
        let refused = Archive::open(folder.path()).unwrap().images("amd64").unwrap_err();
        assert!(refused.detail.contains("not as long"), "{}", refused.detail);
        let at = files.iter().position(|(path, _)| path.ends_with(&wanted[7..])).unwrap();
        files[at].1.push(b' ');
        write(&files[at..=at]);
        let refused = Archive::open(folder.path()).unwrap().images("amd64").unwrap_err();
        assert!(refused.detail.contains("something else"), "{}", refused.detail);
    }

    #[test]
    fn dockers_older_form_is_given_a_manifest_that_is_always_the_same() {
        let layer = b"a layer".to_vec();
        let zipped = [&[0x1f, 0x8b][..], b"zipped"].concat();
        let diff_ids = [digest(&layer), digest(b"what is zipped"), digest(&layer)];
        let config =
            json!({ "architecture": "amd64", "os": "linux", "rootfs": { "diff_ids": diff_ids } }).to_string();
        let manifest = json!([{
            "Config": "c.json", "RepoTags": ["shop:1", "shop:latest"],
            "Layers": ["one/layer.tar", "two/layer.tar", "three/layer.tar"]
        }]);
        let file = |path: &str, bytes: &[u8]| (path.to_owned(), bytes.to_vec());
        let files = [
            file("manifest.json", manifest.to_string().as_bytes()),
            file("c.json", config.as_bytes()),
            file("one/layer.tar", &layer),
            file("two/layer.tar", &zipped),
        ];
        let archive = archive(&files, &[("three/layer.tar", "../one/layer.tar")]);
        let images = archive.images("amd64").unwrap();
        assert_eq!(images, archive.images("amd64").unwrap());
        let [image] = images.as_slice() else { panic!("{images:?}") };
        assert_eq!(image.names, ["shop:1", "shop:latest"]);
        assert_eq!(read(&archive, image, &digest(&zipped), 0), zipped);
        assert_eq!(read(&archive, image, &digest(&layer), 0), layer);
        let made: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
        assert_eq!(made["layers"].as_array().unwrap().len(), 3);
        assert_eq!(made["layers"][1]["mediaType"], format!("{OCI_LAYER}+gzip"));
        assert_eq!(made["layers"][2], made["layers"][0]);
        assert_eq!(made["config"]["digest"], digest(config.as_bytes()));
    }

    #[test]
    fn what_is_no_archive_of_images_is_refused() {
        let empty = archive(&[("else".to_owned(), b"x".to_vec())], &[("loop", "loop")]);
        assert!(empty.images("amd64").unwrap_err().detail.contains("neither"));
        assert!(empty.size("loop").unwrap_err().detail.contains("no loop"));
        assert_eq!(plain(Path::new("./a/../../b/./c")), "b/c");
        assert!(blob_path("sha256:../../etc/passwd").is_err());
    }
}
