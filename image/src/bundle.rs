//! The update bundle: a release as an OCI image layout, which tools for registries push as it is, and which a folder of
//! any web server or of a USB stick can hold.
//!
//! ```text
//! oci-layout, index.json
//! blobs/sha256/...        the artifact's manifest
//!                         its configuration: the release's description, which an operator signs
//!                         its two layers: the file of a root's slot, the unified kernel image
//! ```

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use hivemind_spec::id::{Digest, ReleaseId};
use hivemind_spec::release::{Architecture, OsReleaseSpec, ReleaseFile};
use serde_json::{Value, json};

/// What the artifact is, to tools that list a registry.
const ARTIFACT_TYPE: &str = "application/vnd.hivemind.release.v1";
const CONFIG_TYPE: &str = "application/vnd.hivemind.release.config.v1+json";
const ROOT_TYPE: &str = "application/vnd.hivemind.release.root.v1";
const KERNEL_TYPE: &str = "application/vnd.hivemind.release.kernel.v1";

/// OCI Image Format Specification, "Image Manifest" and "Image Index".
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// What the release is called.
pub(crate) struct Names<'a> {
    pub(crate) version: &'a str,
    pub(crate) minimum: &'a str,
    pub(crate) release: ReleaseId,
}

/// Writes the bundle into a folder, which holds nothing else afterwards. The two files are linked and not copied where
/// that can be done.
pub(crate) fn write(dir: &Path, names: &Names<'_>, root: &Path, kernel: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    fs::create_dir_all(dir.join("blobs/sha256")).with_context(|| format!("making {}", dir.display()))?;
    let spec = OsReleaseSpec {
        version: names.version.to_owned(),
        release: names.release,
        architecture: Architecture::Amd64,
        minimum: names.minimum.to_owned(),
        root: describe(root)?,
        kernel: describe(kernel)?,
        sources: Vec::new(),
        paused: false,
    };
    for (file, path) in [(&spec.root, root), (&spec.kernel, kernel)] {
        let blob = blob(dir, &file.digest);
        if fs::hard_link(path, &blob).is_err() {
            fs::copy(path, &blob).with_context(|| format!("writing {}", blob.display()))?;
        }
    }
    let layer = |kind: &str, file: &ReleaseFile, name: &str| {
        json!({
            "mediaType": kind,
            "digest": format!("sha256:{}", file.digest),
            "size": file.bytes,
            "annotations": { "org.opencontainers.image.title": name },
        })
    };
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": put(dir, CONFIG_TYPE, &serde_json::to_vec(&spec)?)?,
        "layers": [
            layer(ROOT_TYPE, &spec.root, "root.img"),
            layer(KERNEL_TYPE, &spec.kernel, "hivemind.efi"),
        ],
        "annotations": {
            "org.opencontainers.image.version": names.version,
            "org.opencontainers.image.title": format!("Hivemind {}", names.version),
        },
    });
    let mut described = put(dir, MANIFEST_TYPE, &serde_json::to_vec(&manifest)?)?;
    described["annotations"] = json!({ "org.opencontainers.image.ref.name": names.version });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [described] });
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(fs::write(dir.join("index.json"), serde_json::to_vec_pretty(&index)?)?)
}

fn describe(path: &Path) -> Result<ReleaseFile> {
    let described = File::open(path).and_then(ReleaseFile::of);
    described.with_context(|| format!("reading {}", path.display()))
}

/// Writes a blob and describes it.
fn put(dir: &Path, kind: &str, bytes: &[u8]) -> Result<Value> {
    let digest = Digest::of(bytes);
    fs::write(blob(dir, &digest), bytes)?;
    Ok(json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes.len() }))
}

fn blob(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join("blobs/sha256").join(digest.to_string())
}
