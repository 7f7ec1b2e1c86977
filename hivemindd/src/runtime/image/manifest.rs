//! What images are described by: manifests, indexes and configurations (OCI image specification).

use std::collections::HashMap;

use containerd_client::types::Descriptor;
use hivemind_core::event::OperationError;
use serde::Deserialize;

use super::KEEP_CONTENT;
use crate::runtime::client::permanent;
use crate::runtime::content::MAX_DOCUMENT_BYTES;

/// Layers an image may have. Docker stops at 127; the kernel's overlayfs at 500.
pub(super) const MAX_LAYERS: usize = 256;

/// The platform images are taken for, as OCI names it.
pub(super) const PLATFORM: (&str, &str) =
    ("linux", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" });

pub(super) const MANIFEST_TYPES: &[&str] = &[
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// Layers containerd can unpack.
pub(super) const LAYER_TYPES: &[&str] = &[
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// What of an image's configuration decides how a container of it runs (OCI image specification,
/// "Image Configuration").
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(in crate::runtime) struct ImageConfig {
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) os: String,
    #[serde(default)]
    pub(super) rootfs: RootFs,
    /// How to run it.
    #[serde(default)]
    pub(in crate::runtime) config: Option<Execution>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(super) struct RootFs {
    #[serde(default)]
    pub(super) diff_ids: Vec<String>,
}

/// How an image wants to be run. Real images have `null` in most places.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::runtime) struct Execution {
    pub(in crate::runtime) user: Option<String>,
    pub(in crate::runtime) env: Option<Vec<String>>,
    pub(in crate::runtime) entrypoint: Option<Vec<String>>,
    pub(in crate::runtime) cmd: Option<Vec<String>>,
    pub(in crate::runtime) working_dir: Option<String>,
    pub(in crate::runtime) stop_signal: Option<String>,
}

/// A manifest, or an index of manifests for several platforms.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    pub(super) schema_version: u32,
    pub(super) media_type: Option<String>,
    pub(super) config: Option<Blob>,
    pub(super) layers: Option<Vec<Blob>>,
    pub(super) manifests: Option<Vec<IndexEntry>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Blob {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: u64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct IndexEntry {
    pub(super) digest: String,
    pub(super) platform: Option<Platform>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    pub(super) os: String,
    #[serde(default)]
    pub(super) architecture: String,
}

pub(super) fn descriptor(blob: &Blob) -> Descriptor {
    Descriptor {
        media_type: blob.media_type.clone(),
        digest: blob.digest.clone(),
        size: i64::try_from(blob.size).unwrap_or(i64::MAX),
        ..Default::default()
    }
}

pub(super) fn manifest_labels(config: &Blob, layers: &[Blob]) -> HashMap<String, String> {
    let layers = layers
        .iter()
        .enumerate()
        .map(|(index, blob)| (format!("{KEEP_CONTENT}.l.{index}"), blob.digest.clone()));
    layers.chain([(format!("{KEEP_CONTENT}.config"), config.digest.clone())]).collect()
}

pub(super) fn parse_manifest(name: &str, bytes: &[u8]) -> Result<Manifest, OperationError> {
    let manifest: Manifest = serde_json::from_slice(bytes)
        .map_err(|error| permanent(format!("the manifest of {name} cannot be read: {error}")))?;
    if manifest.schema_version != 2 {
        return Err(permanent(format!(
            "the manifest of {name} has schema version {}; only 2 is supported",
            manifest.schema_version
        )));
    }
    Ok(manifest)
}

pub(super) fn parse_config(name: &str, bytes: &[u8]) -> Result<ImageConfig, OperationError> {
    serde_json::from_slice(bytes)
        .map_err(|error| permanent(format!("the configuration of {name} cannot be read: {error}")))
}

pub(super) fn choose_platform<'a>(name: &str, entries: &'a [IndexEntry]) -> Result<&'a str, OperationError> {
    let (os, architecture) = PLATFORM;
    let platforms = || entries.iter().filter_map(|entry| entry.platform.as_ref());
    let matching = entries.iter().find(|entry| {
        entry
            .platform
            .as_ref()
            .is_some_and(|platform| platform.os == os && platform.architecture == architecture)
    });
    matching.map(|entry| entry.digest.as_str()).ok_or_else(|| {
        let there: Vec<_> = platforms().map(|p| format!("{}/{}", p.os, p.architecture)).collect();
        let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        permanent(format!("{name} has no {os}/{architecture} variant; it has: {there}"))
    })
}

pub(super) fn check_layers(name: &str, config: &Blob, layers: &[Blob]) -> Result<(), OperationError> {
    if config.size > MAX_DOCUMENT_BYTES {
        return Err(permanent(format!("the configuration of {name} is over {MAX_DOCUMENT_BYTES} bytes")));
    }
    if layers.is_empty() || layers.len() > MAX_LAYERS {
        return Err(permanent(format!(
            "{name} has {} layers; 1 to {MAX_LAYERS} are supported",
            layers.len()
        )));
    }
    for blob in layers.iter().chain([config]) {
        let digits = blob.digest.strip_prefix("sha256:");
        if digits.and_then(hivemind_spec::id::unhex::<32>).is_none() {
            return Err(permanent(format!("{name}: {:?} is not a SHA-256 digest", blob.digest)));
        }
    }
    match layers.iter().find(|layer| !LAYER_TYPES.contains(&layer.media_type.as_str())) {
        Some(layer) => {
            Err(permanent(format!("{name}: layers of type {:?} cannot be unpacked", layer.media_type)))
        }
        None => Ok(()),
    }
}

pub(super) fn check_config(name: &str, config: &ImageConfig, layers: usize) -> Result<(), OperationError> {
    let (os, architecture) = PLATFORM;
    if config.os != os || config.architecture != architecture {
        return Err(permanent(format!(
            "{name} has no {os}/{architecture} variant; it is for {}/{}",
            config.os, config.architecture
        )));
    }
    if config.rootfs.diff_ids.len() != layers {
        return Err(permanent(format!(
            "{name} is broken: its configuration lists {} layers, its manifest {layers}",
            config.rootfs.diff_ids.len()
        )));
    }
    Ok(())
}
