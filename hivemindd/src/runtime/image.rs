//! Images: fetched from a registry, verified, kept in containerd's content store and unpacked.
//!
//! The pull is ours, not containerd's, so that what is fetched can be checked before any of it is
//! unpacked. An image counts as there when its record exists, and the record is made last: after a
//! power cut in the middle of a pull, the image is absent and the next pull goes on with the blobs
//! that are whole.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use containerd_client::services::v1::{
    CreateImageRequest, DeleteImageRequest, GetImageRequest, Image, ListImagesRequest, UpdateImageRequest,
};
use containerd_client::tonic::Code;
use containerd_client::types::Descriptor;
use futures_util::TryStreamExt as _;
use futures_util::stream::{self, BoxStream};
use hivemind_core::event::OperationError;
use hivemind_spec::api::PullProgress;
use hivemind_spec::secret::Credentials;
use oci_client::Reference;
use oci_client::client::{BlobResponse, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::client::{Containerd, Lease, if_there, permanent, refused, request, transient};
use super::content::{CHUNK_BYTES, MAX_DOCUMENT_BYTES, sha256};
use super::{ANSWER_LIMIT, within};

/// Blobs fetched at a time, over all pulls: enough to fill a link, few enough to bound memory.
const BLOBS_AT_A_TIME: usize = 3;

/// Layers an image may have. Docker stops at 127; the kernel's overlayfs at 500.
const MAX_LAYERS: usize = 256;

/// How long a registry may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a registry may be silent in the middle of an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Pull progress is told this often: every report becomes a replicated record.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// How long a pull may go on without getting further: unpacking the largest layer onto slow flash takes minutes.
const PULL_SILENCE: Duration = Duration::from_secs(1800);

/// The platform images are taken for, as OCI names it.
const PLATFORM: (&str, &str) = ("linux", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" });

/// The label of an image record that names the topmost unpacked layer.
const CHAIN_LABEL: &str = "hivemind/chain";

/// Label on a blob: keep that blob as long as this one.
const KEEP_CONTENT: &str = "containerd.io/gc.ref.content";

/// Label on a blob: keep that snapshot as long as this blob.
const KEEP_SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.overlayfs";

const MANIFEST_TYPES: &[&str] = &[
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// Layers containerd can unpack.
const LAYER_TYPES: &[&str] = &[
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
pub(super) struct ImageConfig {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    rootfs: RootFs,
    /// How to run it.
    #[serde(default)]
    pub(super) config: Option<Execution>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

/// How an image wants to be run. Real images have `null` in most places.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Execution {
    pub(super) user: Option<String>,
    pub(super) env: Option<Vec<String>>,
    pub(super) entrypoint: Option<Vec<String>>,
    pub(super) cmd: Option<Vec<String>>,
    pub(super) working_dir: Option<String>,
    pub(super) stop_signal: Option<String>,
}

/// An image that is there and unpacked.
#[derive(Debug, Clone)]
pub(super) struct LocalImage {
    /// How it wants to be run.
    pub(super) execution: Execution,
    /// Its topmost unpacked layer.
    pub(super) chain: String,
}

/// A manifest, or an index of manifests for several platforms.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    media_type: Option<String>,
    config: Option<Blob>,
    layers: Option<Vec<Blob>>,
    manifests: Option<Vec<IndexEntry>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Blob {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct IndexEntry {
    digest: String,
    platform: Option<Platform>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

/// Locks by name, so that two pulls never write the same blob at once.
#[derive(Default)]
struct NamedLocks(Mutex<BTreeMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl NamedLocks {
    fn get(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = locks.get(name).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        locks.insert(name.to_owned(), Arc::downgrade(&lock));
        lock
    }
}

/// Where an image comes from, and who asks.
struct Source {
    reference: Reference,
    registry: oci_client::Client,
    auth: RegistryAuth,
}

/// The images of this node.
pub(super) struct Images {
    containerd: Containerd,
    /// Asks as nobody. It remembers what it was let in with, so who has a password asks with a client of its own.
    registry: oci_client::Client,
    insecure: Vec<String>,
    /// Images and blobs being fetched.
    locks: NamedLocks,
    fetching: Semaphore,
    /// Unpacking is disk-bound and layers may be shared: one at a time.
    unpacking: tokio::sync::Mutex<()>,
}

/// How far a pull is, shared by the blobs it fetches.
#[derive(Default)]
struct Meter {
    done: AtomicU64,
    total: AtomicU64,
}

impl Meter {
    fn read(&self) -> PullProgress {
        PullProgress {
            done_bytes: self.done.load(Ordering::Relaxed),
            total_bytes: self.total.load(Ordering::Relaxed),
        }
    }
}

impl Images {
    /// `insecure`: registries (`host:port`) spoken to by plain HTTP.
    pub(super) fn new(containerd: Containerd, insecure: &[String]) -> Result<Self, OperationError> {
        Ok(Self {
            containerd,
            registry: client(insecure)?,
            insecure: insecure.to_vec(),
            locks: NamedLocks::default(),
            fetching: Semaphore::new(BLOBS_AT_A_TIME),
            unpacking: tokio::sync::Mutex::new(()),
        })
    }

    /// References of the images that are there and unpacked.
    pub(super) async fn list(&self) -> Result<Vec<String>, OperationError> {
        let answer = self.containerd.images().list(request(ListImagesRequest::default())).await;
        let images = answer.map_err(refused("listing images"))?.into_inner().images;
        Ok(images.into_iter().map(|image| image.name).collect())
    }

    /// The image of that reference, if it is there.
    pub(super) async fn find(&self, name: &str) -> Result<Option<LocalImage>, OperationError> {
        let Some(image) = self.record(name).await? else { return Ok(None) };
        let Some(chain) = image.labels.get(CHAIN_LABEL).cloned() else { return Ok(None) };
        let digest = image.target.map(|target| target.digest).unwrap_or_default();
        let manifest = parse_manifest(name, &self.containerd.read_blob(&digest).await?)?;
        let config =
            manifest.config.ok_or_else(|| permanent(format!("image {name} has no configuration")))?;
        let config = parse_config(name, &self.containerd.read_blob(&config.digest).await?)?;
        Ok(Some(LocalImage { execution: config.config.unwrap_or_default(), chain }))
    }

    async fn record(&self, name: &str) -> Result<Option<Image>, OperationError> {
        match self.containerd.images().get(request(GetImageRequest { name: name.into() })).await {
            Ok(answer) => Ok(answer.into_inner().image),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(refused("looking for an image")(status)),
        }
    }

    /// Fetches, verifies and unpacks an image unless it is there. Tells `progress` now and then.
    pub(super) async fn pull(
        &self,
        name: &str,
        credentials: Option<Credentials>,
        progress: impl Fn(PullProgress),
    ) -> Result<(), OperationError> {
        let lock = self.locks.get(name);
        let _alone = lock.lock().await;
        let record = within(ANSWER_LIMIT, "looking for an image", self.record(name)).await?;
        if record.is_some_and(|image| image.labels.contains_key(CHAIN_LABEL)) {
            return Ok(());
        }
        let source = self.source(name, credentials)?;
        let lease = format!("pull-{}", sha256(name.as_bytes()));
        let lease = async { self.containerd.lease(&lease).await.map_err(refused("starting a pull")) };
        let lease = within(ANSWER_LIMIT, "starting a pull", lease).await?;
        let meter = Meter::default();
        let result = {
            let fetch = self.fetch(name, &source, &lease, &meter);
            tokio::pin!(fetch);
            let mut told = PullProgress { done_bytes: 0, total_bytes: 0 };
            let mut got_further = Instant::now();
            loop {
                match tokio::time::timeout(PROGRESS_INTERVAL, &mut fetch).await {
                    Ok(result) => break result,
                    Err(_) if meter.read() != told => {
                        told = meter.read();
                        got_further = Instant::now();
                        progress(told);
                    }
                    Err(_) if got_further.elapsed() > PULL_SILENCE => {
                        break Err(transient(format!("{name}: the pull gets no further")));
                    }
                    Err(_) => {}
                }
            }
        };
        // After a failure the lease is left to expire: the next attempt goes on with what is there.
        if result.is_ok() {
            progress(meter.read());
            self.containerd.release(lease).await.map_err(refused("ending a pull"))?;
        }
        result
    }

    /// Removes an image, and what no other has of its layers; returns when the disk has the room. It need not be there.
    pub(super) async fn remove(&self, name: &str) -> Result<(), OperationError> {
        let lock = self.locks.get(name);
        let _alone = lock.lock().await;
        let wanted = DeleteImageRequest { name: name.to_owned(), sync: true, ..Default::default() };
        if_there(self.containerd.images().delete(request(wanted)).await)
            .map_err(refused("removing an image"))?;
        Ok(())
    }

    fn source(&self, name: &str, credentials: Option<Credentials>) -> Result<Source, OperationError> {
        let reference = parse_reference(name)?;
        Ok(match credentials {
            None => Source { reference, registry: self.registry.clone(), auth: RegistryAuth::Anonymous },
            Some(Credentials { username, password }) => {
                let registry = client(&self.insecure)?;
                Source { reference, registry, auth: RegistryAuth::Basic(username, password) }
            }
        })
    }

    async fn fetch(
        &self,
        name: &str,
        source: &Source,
        lease: &Lease,
        meter: &Meter,
    ) -> Result<(), OperationError> {
        let (manifest_bytes, manifest) = self.fetch_manifest(name, source).await?;
        let (Some(config), Some(layers)) = (&manifest.config, &manifest.layers) else {
            return Err(permanent(format!("{name} is not a container image: its manifest has no layers")));
        };
        check_layers(name, config, layers)?;
        let total = layers.iter().chain([config]).map(|blob| blob.size).sum();
        meter.total.store(total, Ordering::Relaxed);
        // The configuration first: an image of another platform is refused before its layers come.
        self.fetch_blob(source, config, lease, meter).await?;
        let read =
            self.containerd.read_blob(&config.digest).await.and_then(|bytes| parse_config(name, &bytes));
        let parsed = self.or_doubt(read, [config]).await?;
        check_config(name, &parsed, layers.len())?;
        stream::iter(layers.iter().map(Ok))
            .try_for_each_concurrent(BLOBS_AT_A_TIME, |layer| self.fetch_blob(source, layer, lease, meter))
            .await?;
        let chain = {
            let _alone = self.unpacking.lock().await;
            let descriptors: Vec<Descriptor> = layers.iter().map(descriptor).collect();
            let unpacked = self.containerd.unpack(lease, &descriptors, &parsed.rootfs.diff_ids).await;
            self.or_doubt(unpacked, layers).await?
        };
        self.record_image(name, &manifest_bytes, &manifest, config, &chain, lease).await
    }

    /// Passes on what came of using blobs. Where that failed, those that are not what containerd takes
    /// them for are dropped, to be fetched again: containerd does not wait for the disk when it stores
    /// one, and a power cut leaves its name without its bytes.
    async fn or_doubt<T>(
        &self,
        used: Result<T, OperationError>,
        blobs: impl IntoIterator<Item = &Blob>,
    ) -> Result<T, OperationError> {
        let Err(error) = used else { return used };
        let mut damaged = 0;
        for blob in blobs {
            if !self.containerd.is_sound(&blob.digest).await {
                self.containerd
                    .delete_blob(&blob.digest)
                    .await
                    .map_err(refused("dropping a damaged blob"))?;
                damaged += 1;
            }
        }
        if damaged == 0 {
            return Err(error);
        }
        Err(transient(format!("{}; {damaged} damaged on the disk, to be fetched again", error.text)))
    }

    async fn fetch_manifest(
        &self,
        name: &str,
        source: &Source,
    ) -> Result<(Vec<u8>, Manifest), OperationError> {
        let (bytes, manifest) = self.fetch_one_manifest(name, source, &source.reference).await?;
        let Some(entries) = &manifest.manifests else { return Ok((bytes, manifest)) };
        let digest = choose_platform(name, entries)?;
        let reference = source.reference.clone_with_digest(digest.to_owned());
        let (bytes, manifest) = self.fetch_one_manifest(name, source, &reference).await?;
        if sha256(&bytes) != digest {
            return Err(transient(format!("the registry sent another manifest of {name} than {digest}")));
        }
        Ok((bytes, manifest))
    }

    async fn fetch_one_manifest(
        &self,
        name: &str,
        source: &Source,
        reference: &Reference,
    ) -> Result<(Vec<u8>, Manifest), OperationError> {
        let answer = source.registry.pull_manifest_raw(reference, &source.auth, MANIFEST_TYPES).await;
        let (bytes, _) = answer.map_err(|error| explain(name, reference, error))?;
        let manifest = parse_manifest(name, &bytes)?;
        Ok((bytes.into(), manifest))
    }

    /// Fetches a blob into the content store unless it is there. containerd compares its digest
    /// before it counts.
    async fn fetch_blob(
        &self,
        source: &Source,
        blob: &Blob,
        lease: &Lease,
        meter: &Meter,
    ) -> Result<(), OperationError> {
        let lock = self.locks.get(&blob.digest);
        let _alone = lock.lock().await;
        let _permit = self.fetching.acquire().await.map_err(|_| transient("the runtime is shutting down"))?;
        let failed = refused("writing to the image store");
        let Some(mut writer) =
            self.containerd.write_blob(lease, &blob.digest, blob.size).await.map_err(&failed)?
        else {
            meter.done.fetch_add(blob.size, Ordering::Relaxed);
            return Ok(());
        };
        let start = writer.offset();
        meter.done.fetch_add(start, Ordering::Relaxed);
        let (mut data, mut skip) = self.open_blob(source, blob, start).await?;
        let mut buffer = Vec::with_capacity(CHUNK_BYTES);
        let unreadable = |error| transient(format!("fetching {}: {}", blob.digest, innermost(&error)));
        while let Some(part) = data.try_next().await.map_err(unreadable)? {
            let skipped = part.len().min(usize::try_from(skip).unwrap_or(usize::MAX));
            skip -= skipped as u64;
            let part = &part[skipped..];
            if writer.offset() + (buffer.len() + part.len()) as u64 > blob.size {
                let _ = self.containerd.abort_blob(&blob.digest).await;
                return Err(transient(format!(
                    "the registry sent more for {} than its manifest says",
                    blob.digest
                )));
            }
            meter.done.fetch_add(part.len() as u64, Ordering::Relaxed);
            buffer.extend_from_slice(part);
            if buffer.len() >= CHUNK_BYTES {
                let chunk = std::mem::replace(&mut buffer, Vec::with_capacity(CHUNK_BYTES));
                writer.write(chunk).await.map_err(&failed)?;
            }
        }
        if !buffer.is_empty() {
            writer.write(buffer).await.map_err(&failed)?;
        }
        match writer.commit(HashMap::new()).await {
            Ok(()) => Ok(()),
            Err(status) if status.code() == Code::FailedPrecondition => {
                // Bytes that are not those of the digest must not be gone on with.
                let _ = self.containerd.abort_blob(&blob.digest).await;
                Err(transient(format!(
                    "digest mismatch: what {} sent for {} has another digest ({})",
                    source.reference.resolve_registry(),
                    blob.digest,
                    status.message()
                )))
            }
            Err(status) => Err(failed(status)),
        }
    }

    /// Opens a blob at `start`, if the registry can. Returns how many bytes are to be skipped.
    async fn open_blob(
        &self,
        source: &Source,
        blob: &Blob,
        start: u64,
    ) -> Result<(BoxStream<'static, std::io::Result<Bytes>>, u64), OperationError> {
        let wanted = OciDescriptor { digest: blob.digest.clone(), ..Default::default() };
        let Source { reference, registry, .. } = source;
        let explain = |error| explain(&reference.whole(), reference, error);
        if start == 0 {
            let stream = registry.pull_blob_stream(reference, &wanted).await.map_err(explain)?;
            return Ok((stream.stream, 0));
        }
        match registry.pull_blob_stream_partial(reference, &wanted, start, None).await.map_err(explain)? {
            BlobResponse::Full(stream) => Ok((stream.stream, start)),
            BlobResponse::Partial(stream) => Ok((stream.stream, 0)),
        }
    }

    async fn record_image(
        &self,
        name: &str,
        bytes: &[u8],
        manifest: &Manifest,
        config: &Blob,
        chain: &str,
        lease: &Lease,
    ) -> Result<(), OperationError> {
        let failed = refused("recording an image");
        let keep_snapshot = [(KEEP_SNAPSHOT.to_owned(), chain.to_owned())].into();
        self.containerd.label_blob(&config.digest, keep_snapshot).await.map_err(&failed)?;
        let digest = sha256(bytes);
        let labels = manifest_labels(config, manifest.layers.as_deref().unwrap_or_default());
        self.containerd.store_blob(lease, &digest, bytes, labels).await.map_err(&failed)?;
        let media_type = manifest.media_type.clone().unwrap_or_else(|| MANIFEST_TYPES[0].to_owned());
        let size = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        let image = Image {
            name: name.to_owned(),
            labels: [(CHAIN_LABEL.to_owned(), chain.to_owned())].into(),
            target: Some(Descriptor { media_type, digest, size, ..Default::default() }),
            ..Default::default()
        };
        let create = CreateImageRequest { image: Some(image.clone()), ..Default::default() };
        match self.containerd.images().create(lease.request(create)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => {
                let update = UpdateImageRequest { image: Some(image), ..Default::default() };
                self.containerd.images().update(lease.request(update)).await.map(drop).map_err(&failed)
            }
            Err(status) => Err(failed(status)),
        }
    }
}

/// A client of registries, of which those in `insecure` (`host:port`) are spoken to by plain HTTP.
fn client(insecure: &[String]) -> Result<oci_client::Client, OperationError> {
    let config = ClientConfig {
        protocol: ClientProtocol::HttpsExcept(insecure.to_vec()),
        connect_timeout: Some(CONNECT_TIMEOUT),
        read_timeout: Some(READ_TIMEOUT),
        user_agent: concat!("hivemindd/", env!("CARGO_PKG_VERSION")),
        ..Default::default()
    };
    oci_client::Client::try_from(config)
        .map_err(|error| permanent(format!("the registry client cannot be made: {error}")))
}

fn descriptor(blob: &Blob) -> Descriptor {
    Descriptor {
        media_type: blob.media_type.clone(),
        digest: blob.digest.clone(),
        size: i64::try_from(blob.size).unwrap_or(i64::MAX),
        ..Default::default()
    }
}

fn manifest_labels(config: &Blob, layers: &[Blob]) -> HashMap<String, String> {
    let layers = layers
        .iter()
        .enumerate()
        .map(|(index, blob)| (format!("{KEEP_CONTENT}.l.{index}"), blob.digest.clone()));
    layers.chain([(format!("{KEEP_CONTENT}.config"), config.digest.clone())]).collect()
}

/// Reads an image reference.
pub(super) fn parse_reference(name: &str) -> Result<Reference, OperationError> {
    name.parse().map_err(|error| permanent(format!("{name:?} is not an image reference: {error}")))
}

fn parse_manifest(name: &str, bytes: &[u8]) -> Result<Manifest, OperationError> {
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

fn parse_config(name: &str, bytes: &[u8]) -> Result<ImageConfig, OperationError> {
    serde_json::from_slice(bytes)
        .map_err(|error| permanent(format!("the configuration of {name} cannot be read: {error}")))
}

fn choose_platform<'a>(name: &str, entries: &'a [IndexEntry]) -> Result<&'a str, OperationError> {
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

fn check_layers(name: &str, config: &Blob, layers: &[Blob]) -> Result<(), OperationError> {
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

fn check_config(name: &str, config: &ImageConfig, layers: usize) -> Result<(), OperationError> {
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

/// The innermost cause of an error: `connection refused` instead of `error sending request`.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Says in words what a registry refused.
fn explain(name: &str, reference: &Reference, error: OciDistributionError) -> OperationError {
    let host = reference.resolve_registry();
    match error {
        OciDistributionError::RequestError(error) if error.is_connect() || error.is_timeout() => {
            transient(format!("cannot reach registry {host}: {}", innermost(&error)))
        }
        OciDistributionError::RequestError(error) => {
            transient(format!("talking to registry {host} failed: {}", innermost(&error)))
        }
        OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
            transient(format!(
                "registry {host} does not let this node read {name} (401); if it is private, `hivemind secrets login \
                 {host}` gives the password, else it may be misspelt"
            ))
        }
        OciDistributionError::RegistryError { envelope, .. } => {
            let first = envelope.errors.first();
            match first.map(|error| &error.code) {
                Some(OciErrorCode::ManifestUnknown | OciErrorCode::NotFound) => {
                    transient(format!("registry {host} has no {name} (404 manifest unknown)"))
                }
                Some(OciErrorCode::NameUnknown) => transient(format!(
                    "registry {host} has no repository {} (404 name unknown)",
                    reference.repository()
                )),
                Some(OciErrorCode::Unauthorized | OciErrorCode::Denied) => transient(format!(
                    "registry {host} does not let this node read {name} (denied); the password of \
                         `hivemind secrets login {host}` is wrong or has no right to it"
                )),
                Some(OciErrorCode::Toomanyrequests) => {
                    transient(format!("registry {host} is limiting requests (429); trying again later"))
                }
                _ => transient(format!("registry {host} refused {name}: {envelope}")),
            }
        }
        OciDistributionError::ServerError { code: 404, .. } => {
            transient(format!("registry {host} has no {name} (404)"))
        }
        OciDistributionError::ServerError { code, .. } => {
            transient(format!("registry {host} failed with status {code}"))
        }
        OciDistributionError::DigestError(error) => transient(format!("digest mismatch in {name}: {error}")),
        error => transient(format!("registry {host}, {name}: {}", innermost(&error))),
    }
}

#[cfg(test)]
mod tests;
