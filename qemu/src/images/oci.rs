//! Images as registries keep them: configuration, manifest, and how they get there.

use ring::digest::{SHA256, digest as hash};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::layer::Layer;
use crate::error::{Error, Result};

/// The media types of an image's parts: the same content can be described in two vocabularies, and nodes must
/// understand both.
pub(crate) struct Vocabulary {
    manifest: &'static str,
    config: &'static str,
    layer: &'static str,
}

/// OCI image specification 1.1.
pub(crate) const OCI: Vocabulary = Vocabulary {
    manifest: "application/vnd.oci.image.manifest.v1+json",
    config: "application/vnd.oci.image.config.v1+json",
    layer: "application/vnd.oci.image.layer.v1.tar+gzip",
};

/// Docker image manifest version 2, schema 2.
pub(crate) const DOCKER: Vocabulary = Vocabulary {
    manifest: "application/vnd.docker.distribution.manifest.v2+json",
    config: "application/vnd.docker.container.image.v1+json",
    layer: "application/vnd.docker.image.rootfs.diff.tar.gzip",
};

/// An image to be pushed.
pub(crate) struct Recipe {
    pub(crate) name: &'static str,
    pub(crate) tag: &'static str,
    pub(crate) vocabulary: &'static Vocabulary,
    /// The `config` object of the image configuration: `Cmd`, `Env`, `User` and so on.
    pub(crate) config: Value,
    pub(crate) layers: Vec<Layer>,
}

/// An image in the test registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestImage {
    /// The repository, for example `nginx`.
    pub name: String,
    /// The tag, for example `1`.
    pub tag: String,
    /// The digest of the manifest, with `sha256:`.
    pub digest: String,
    /// Compressed size of configuration and layers, in bytes.
    pub size: u64,
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    let hex: String = hash(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Sends the image to a registry at `base` (for example `http://127.0.0.1:5000`).
pub(crate) fn push(base: &str, recipe: &Recipe) -> Result<TestImage> {
    let mut layers = Vec::new();
    let mut diff_ids = Vec::new();
    let mut size = 0;
    for layer in &recipe.layers {
        let packed = layer.pack()?;
        diff_ids.push(packed.diff_id);
        size += packed.blob.len() as u64;
        layers.push(descriptor(recipe.vocabulary.layer, &packed.blob));
        push_blob(base, recipe.name, &packed.blob)?;
    }
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": recipe.config,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": diff_ids.iter().map(|_| json!({ "created_by": "hivemind-qemu" })).collect::<Vec<_>>(),
    });
    let config = config.to_string().into_bytes();
    size += config.len() as u64;
    push_blob(base, recipe.name, &config)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": recipe.vocabulary.manifest,
        "config": descriptor(recipe.vocabulary.config, &config),
        "layers": layers,
    });
    let manifest = manifest.to_string().into_bytes();
    let url = format!("{base}/v2/{}/manifests/{}", recipe.name, recipe.tag);
    let request = ureq::put(&url).header("content-type", recipe.vocabulary.manifest);
    request.send(&manifest[..]).map_err(|error| refused(&url, &error))?;
    let (name, tag) = (recipe.name.to_owned(), recipe.tag.to_owned());
    Ok(TestImage { name, tag, digest: digest(&manifest), size })
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({ "mediaType": media_type, "size": blob.len(), "digest": digest(blob) })
}

/// OCI distribution specification, section "Pushing blobs": first a session, then everything at once.
fn push_blob(base: &str, name: &str, blob: &[u8]) -> Result<()> {
    let url = format!("{base}/v2/{name}/blobs/uploads/");
    let session = ureq::post(&url).send_empty().map_err(|error| refused(&url, &error))?;
    let location = session.headers().get("location").and_then(|location| location.to_str().ok());
    let location = location.ok_or_else(|| refused(&url, &"it named no upload location"))?;
    let separator = if location.contains('?') { '&' } else { '?' };
    let url = format!("{location}{separator}digest={}", digest(blob));
    let request = ureq::put(&url).header("content-type", "application/octet-stream");
    request.send(blob).map(drop).map_err(|error| refused(&url, &error))
}

fn refused(url: &str, error: &dyn std::fmt::Display) -> Error {
    Error::Failed { command: format!("push to {url}"), output: error.to_string() }
}
