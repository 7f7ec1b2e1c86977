//! Images: fetched from a registry, verified, kept in containerd's content store and unpacked.
//!
//! The pull is ours, not containerd's, so that what is fetched can be checked before any of it is
//! unpacked. An image counts as there when its record exists, and the record is made last: after a
//! power cut in the middle of a pull, the image is absent and the next pull goes on with the blobs
//! that are whole.
//!
//! Every blob comes from another node if one has it or is fetching it ([`peers`]), else from the registry.

mod given;
mod manifest;
mod peers;
mod registry;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use containerd_client::services::v1::{
    CreateImageRequest, DeleteImageRequest, GetImageRequest, Image, InfoRequest, ListImagesRequest,
    UpdateImageRequest,
};
use containerd_client::tonic::Code;
use containerd_client::types::Descriptor;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use hivemind_core::event::{ImagePeers, OperationError, Peer};
use hivemind_spec::api::PullProgress;
use hivemind_spec::machine;
use hivemind_spec::secret::Credentials;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use self::given::Given;
use self::manifest::{
    Blob, MANIFEST_TYPES, Manifest, check_config, check_layers, choose_platform, descriptor, manifest_labels,
    parse_config, parse_manifest,
};
pub(super) use self::manifest::{Execution, ImageConfig};
pub use self::peers::DONE_BYTES;
use self::peers::{Coming, FromPeer, Peers};
use self::registry::{FromRegistry, Registries, Source, innermost};
use super::client::{Containerd, Lease, if_there, permanent, refused, request, transient};
use super::content::{BlobWriter, CHUNK_BYTES, sha256};
use super::{ANSWER_LIMIT, wall_ms, within};
use crate::transport::Transport;

/// Blobs fetched at a time, over all pulls: enough to fill a link, few enough to bound memory.
const BLOBS_AT_A_TIME: usize = 3;

/// Blobs sent to other nodes at a time. Each is up to 1 MiB of memory; those that got one send it on.
const BLOBS_TO_OTHERS: usize = 4;

/// How long whoever sends a blob may be silent in the middle of it: longer than the registry's own limit.
const SILENCE: Duration = Duration::from_secs(45);

/// Pull progress is told this often: every report becomes a replicated record.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// How long a pull may go on without getting further: unpacking the largest layer onto slow flash takes minutes.
const PULL_SILENCE: Duration = Duration::from_secs(1800);

/// The label of an image record that names the topmost unpacked layer.
const CHAIN_LABEL: &str = "hivemind/chain";

/// The label of an image record of an image that an operator gave, that says when, wall milliseconds.
const GIVEN_LABEL: &str = "hivemind/given";

/// Label on a blob: keep that blob as long as this one.
const KEEP_CONTENT: &str = "containerd.io/gc.ref.content";

/// Label on a blob: keep that snapshot as long as this blob.
const KEEP_SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.overlayfs";

/// An image that is there and unpacked.
#[derive(Debug, Clone)]
pub(super) struct LocalImage {
    /// How it wants to be run.
    pub(super) execution: Execution,
    /// Its topmost unpacked layer.
    pub(super) chain: String,
}

/// What an image is named by: the bytes as they are signed for by their digests.
struct Documents {
    manifest: Vec<u8>,
    index: Option<Vec<u8>>,
}

/// An image whose blobs are there.
struct Whole<'a> {
    documents: &'a Documents,
    manifest: &'a Manifest,
    config: &'a Blob,
    layers: &'a [Blob],
    parsed: &'a ImageConfig,
}

/// What one pull goes by.
struct Pull<'a> {
    source: &'a Source,
    peers: &'a Peers<'a>,
    lease: &'a Lease,
    meter: &'a Arc<Meter>,
}

/// How a blob is on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobHere {
    /// All of it.
    Whole {
        /// Its size.
        bytes: u64,
    },
    /// All of it, and others are being sent what they asked for.
    Busy,
    /// It is being fetched.
    Coming {
        /// How far those pulls are, bytes: goes up while they go on.
        done_bytes: u64,
    },
    /// Not at all.
    Lacking,
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

/// The images of this node.
pub(super) struct Images {
    containerd: Containerd,
    registries: Registries,
    /// The way to other nodes, where there are any.
    transport: Option<Transport>,
    /// Images and blobs being fetched, and the nodes that send some.
    locks: NamedLocks,
    coming: Coming,
    /// Blobs being sent to other nodes.
    sending: Arc<Semaphore>,
    fetching: Semaphore,
    /// Unpacking is disk-bound and layers may be shared: one at a time.
    unpacking: tokio::sync::Mutex<()>,
}

/// How far a pull is, shared by the blobs it fetches.
#[derive(Default)]
struct Meter {
    done: AtomicU64,
    total: AtomicU64,
    /// Bytes that came from other nodes.
    from_peers: AtomicU64,
    /// How often a node that is waited for had got further.
    waited: AtomicU64,
}

impl Meter {
    fn read(&self) -> PullProgress {
        PullProgress {
            done_bytes: self.done.load(Ordering::Relaxed),
            total_bytes: self.total.load(Ordering::Relaxed),
        }
    }

    /// A node that is waited for has got further.
    fn waits_well(&self) {
        self.waited.fetch_add(1, Ordering::Relaxed);
    }
}

impl Images {
    pub(super) fn new(
        containerd: Containerd,
        registries: machine::Registries,
        transport: Option<Transport>,
    ) -> Result<Self, OperationError> {
        Ok(Self {
            containerd,
            registries: Registries::new(registries)?,
            transport,
            locks: NamedLocks::default(),
            coming: Coming::default(),
            sending: Arc::new(Semaphore::new(BLOBS_TO_OTHERS)),
            fetching: Semaphore::new(BLOBS_AT_A_TIME),
            unpacking: tokio::sync::Mutex::new(()),
        })
    }

    /// The images that are there and unpacked, by their references; and those of them that operators gave.
    pub(super) async fn list(&self) -> Result<(BTreeSet<String>, Given), OperationError> {
        let answer = self.containerd.images().list(request(ListImagesRequest::default())).await;
        let images = answer.map_err(refused("listing images"))?.into_inner().images;
        let given = given::among(&images);
        Ok((images.into_iter().map(|image| image.name).collect(), given))
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
        others: &ImagePeers,
        progress: impl Fn(PullProgress),
    ) -> Result<(), OperationError> {
        let lock = self.locks.get(name);
        let _alone = lock.lock().await;
        let record = within(ANSWER_LIMIT, "looking for an image", self.record(name)).await?;
        if record.is_some_and(|image| image.labels.contains_key(CHAIN_LABEL)) {
            return Ok(());
        }
        let source = self.registries.source(name, credentials)?;
        let peers = Peers::new(self.transport.as_ref(), others);
        let (lease, expires_ms) = lease_of(name, wall_ms());
        let lease =
            async { self.containerd.lease(&lease, expires_ms).await.map_err(refused("starting a pull")) };
        let lease = within(ANSWER_LIMIT, "starting a pull", lease).await?;
        let meter = Arc::new(Meter::default());
        let result = {
            let pull = Pull { source: &source, peers: &peers, lease: &lease, meter: &meter };
            let fetch = self.fetch(name, &pull);
            tokio::pin!(fetch);
            let mut told = PullProgress { done_bytes: 0, total_bytes: 0 };
            let mut waited = 0;
            let mut got_further = Instant::now();
            loop {
                match tokio::time::timeout(PROGRESS_INTERVAL, &mut fetch).await {
                    Ok(result) => break result,
                    Err(_) if meter.read() != told => {
                        told = meter.read();
                        got_further = Instant::now();
                        progress(told);
                    }
                    Err(_) if meter.waited.load(Ordering::Relaxed) != waited => {
                        waited = meter.waited.load(Ordering::Relaxed);
                        got_further = Instant::now();
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
            let from_peers = meter.from_peers.load(Ordering::Relaxed);
            tracing::info!(image = name, bytes = meter.read().total_bytes, from_peers, "fetched an image");
            self.containerd.release(lease).await.map_err(refused("ending a pull"))?;
        }
        result
    }

    /// How a blob is here, for another node.
    pub(super) async fn blob(&self, digest: &str) -> BlobHere {
        let message = InfoRequest { digest: digest.to_owned() };
        let there = self.containerd.content().info(request(message)).await;
        match there.ok().and_then(|answer| answer.into_inner().info) {
            Some(_) if self.sending.available_permits() == 0 => BlobHere::Busy,
            Some(info) => BlobHere::Whole { bytes: info.size.max(0).unsigned_abs() },
            None => match self.coming.done_bytes(digest) {
                Some(done_bytes) => BlobHere::Coming { done_bytes },
                None => BlobHere::Lacking,
            },
        }
    }

    /// A blob from `from` on. Holds one of few places until it ends; None: there is none.
    ///
    /// # Errors
    /// When containerd does not give it.
    pub(super) async fn send_blob(
        &self,
        digest: &str,
        from: u64,
    ) -> Result<Option<BoxStream<'static, std::io::Result<Bytes>>>, OperationError> {
        let Ok(place) = Arc::clone(&self.sending).try_acquire_owned() else { return Ok(None) };
        let offset = i64::try_from(from).map_err(|_| permanent("no blob has that many bytes"))?;
        let data = self.containerd.read_blob_from(digest, offset).await?;
        let data = data.map(move |part| {
            let _held = &place;
            part
        });
        Ok(Some(data.boxed()))
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

    async fn fetch(&self, name: &str, pull: &Pull<'_>) -> Result<(), OperationError> {
        let (documents, manifest) = self.fetch_manifest(name, pull).await?;
        let (Some(config), Some(layers)) = (&manifest.config, &manifest.layers) else {
            return Err(permanent(format!("{name} is not a container image: its manifest has no layers")));
        };
        check_layers(name, config, layers)?;
        let total = layers.iter().chain([config]).map(|blob| blob.size).sum();
        pull.meter.total.store(total, Ordering::Relaxed);
        let digests = layers.iter().chain([config]).map(|blob| blob.digest.as_str());
        self.coming.begin(digests, pull.meter);
        // The configuration first: an image of another platform is refused before its layers come.
        self.fetch_blob(pull, config).await?;
        let read =
            self.containerd.read_blob(&config.digest).await.and_then(|bytes| parse_config(name, &bytes));
        let parsed = self.or_doubt(read, [config]).await?;
        check_config(name, &parsed, layers.len())?;
        stream::iter(layers.iter().map(Ok))
            .try_for_each_concurrent(BLOBS_AT_A_TIME, |layer| self.fetch_blob(pull, layer))
            .await?;
        let whole = Whole { documents: &documents, manifest: &manifest, config, layers, parsed: &parsed };
        self.keep(name, &whole, None, pull.lease).await
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

    /// The manifest for this machine, with the index that names it if there is one.
    async fn fetch_manifest(
        &self,
        name: &str,
        pull: &Pull<'_>,
    ) -> Result<(Documents, Manifest), OperationError> {
        let (bytes, manifest) = self.fetch_document(name, pull, None).await?;
        let Some(entries) = &manifest.manifests else {
            return Ok((Documents { manifest: bytes, index: None }, manifest));
        };
        let digest = choose_platform(name, entries)?;
        let index = Some(bytes);
        let (bytes, manifest) = self.fetch_document(name, pull, Some(digest)).await?;
        if sha256(&bytes) != digest {
            return Err(transient(format!("the registry sent another manifest of {name} than {digest}")));
        }
        Ok((Documents { manifest: bytes, index }, manifest))
    }

    /// A manifest or an index: if it is named by its digest, the one that is here already or another node has; else from
    /// the registry, which alone knows what a tag names. `digest`: that of the manifest for this machine, once the index has
    /// named it.
    async fn fetch_document(
        &self,
        name: &str,
        pull: &Pull<'_>,
        digest: Option<&str>,
    ) -> Result<(Vec<u8>, Manifest), OperationError> {
        let found = match digest.or(pull.source.reference.digest()) {
            Some(digest) => match self.here(digest).await {
                Some(bytes) => Some(bytes),
                None => pull.peers.document(digest).await,
            },
            None => None,
        };
        let bytes = match found {
            Some(bytes) => bytes,
            None => pull.source.manifest(digest).await?,
        };
        let manifest = parse_manifest(name, &bytes)?;
        Ok((bytes, manifest))
    }

    /// A small blob that is here and whole.
    async fn here(&self, digest: &str) -> Option<Vec<u8>> {
        self.containerd.read_blob(digest).await.ok().filter(|bytes| sha256(bytes) == digest)
    }

    /// Fetches a blob into the content store unless it is there. containerd compares its digest
    /// before it counts.
    async fn fetch_blob(&self, pull: &Pull<'_>, blob: &Blob) -> Result<(), OperationError> {
        let lock = self.locks.get(&blob.digest);
        let _alone = lock.lock().await;
        let meter = pull.meter;
        loop {
            let writer = self.containerd.write_blob(pull.lease, &blob.digest, blob.size).await;
            let Some(mut writer) = writer.map_err(refused("writing to the image store"))? else {
                meter.done.fetch_add(blob.size, Ordering::Relaxed);
                return Ok(());
            };
            meter.done.fetch_add(writer.offset(), Ordering::Relaxed);
            let (peer, came) = self.receive(pull, &mut writer, blob).await;
            let written = writer.offset();
            let whole = match came {
                Ok(()) => commit(writer, blob).await,
                Err(fault) => {
                    writer.close().await;
                    Err(fault)
                }
            };
            let Err(fault) = whole else { return Ok(()) };
            // What is there counts again when it is gone on with.
            meter.done.fetch_sub(written, Ordering::Relaxed);
            let error = match fault {
                Fault::Stopped(error) => error,
                Fault::Wrong(error) => {
                    let _ = self.containerd.abort_blob(&blob.digest).await;
                    error
                }
            };
            match peer {
                Some(peer) => pull.peers.is_useless(peer, &error.text),
                None => return Err(error),
            }
        }
    }

    /// Writes what is missing of a blob. Says which node sent it, if it was not the registry.
    async fn receive(
        &self,
        pull: &Pull<'_>,
        writer: &mut BlobWriter,
        blob: &Blob,
    ) -> (Option<Peer>, Result<(), Fault>) {
        let start = writer.offset();
        if start == blob.size {
            // An attempt before this one wrote it all, and its end was not kept.
            return (None, Ok(()));
        }
        // No place is taken while other nodes are waited for: they may wait for this one with another image.
        let from_peer = pull.peers.open(&self.locks, &blob.digest, start, pull.meter).await;
        let Ok(_place) = self.fetching.acquire().await else {
            return (None, Err(Fault::Stopped(transient("the runtime is shutting down"))));
        };
        if let Some(FromPeer { peer, data, alone }) = from_peer {
            let sender = format!("node {}", peer.node.short());
            let came = copy(&sender, data, 0, writer, blob, pull.meter).await;
            pull.meter.from_peers.fetch_add(writer.offset() - start, Ordering::Relaxed);
            drop(alone);
            return (Some(peer), came);
        }
        loop {
            let start = writer.offset();
            let FromRegistry { host, data, skip } = match pull.source.open_blob(&blob.digest, start).await {
                Ok(opened) => opened,
                Err(error) => return (None, Err(Fault::Stopped(error))),
            };
            let came = copy(&format!("registry {host}"), data, skip, writer, blob, pull.meter).await;
            match came {
                Err(Fault::Stopped(error)) if pull.source.is_useless(&host, &error.text) => {}
                came => return (None, came),
            }
        }
    }

    /// Unpacks an image and records it; `given_ms` is when an operator gave it, if one did.
    async fn keep(
        &self,
        name: &str,
        whole: &Whole<'_>,
        given_ms: Option<u64>,
        lease: &Lease,
    ) -> Result<(), OperationError> {
        let Whole { documents, manifest, config, layers, parsed } = whole;
        let chain = {
            let _alone = self.unpacking.lock().await;
            let descriptors: Vec<Descriptor> = layers.iter().map(descriptor).collect();
            let unpacked = self.containerd.unpack(lease, &descriptors, &parsed.rootfs.diff_ids).await;
            self.or_doubt(unpacked, *layers).await?
        };
        let failed = refused("recording an image");
        let keep_snapshot = [(KEEP_SNAPSHOT.to_owned(), chain.clone())].into();
        self.containerd.label_blob(&config.digest, keep_snapshot).await.map_err(&failed)?;
        let Documents { manifest: bytes, index } = documents;
        let digest = sha256(bytes);
        let mut labels = manifest_labels(config, layers);
        if let Some(index) = index {
            // Other nodes that know the image by it can have it from here.
            let digest = sha256(index);
            self.containerd.store_blob(lease, &digest, index, HashMap::new()).await.map_err(&failed)?;
            labels.insert(format!("{KEEP_CONTENT}.index"), digest);
        }
        self.containerd.store_blob(lease, &digest, bytes, labels).await.map_err(&failed)?;
        let media_type = manifest.media_type.clone().unwrap_or_else(|| MANIFEST_TYPES[0].to_owned());
        let size = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        let given = given_ms.map(|ms| (GIVEN_LABEL.to_owned(), ms.to_string()));
        let image = Image {
            name: name.to_owned(),
            labels: [(CHAIN_LABEL.to_owned(), chain)].into_iter().chain(given).collect(),
            target: Some(Descriptor { media_type, digest, size, ..Default::default() }),
            ..Default::default()
        };
        self.record_as(image, lease).await
    }

    /// Records an image, instead of what was recorded under its name.
    async fn record_as(&self, image: Image, lease: &Lease) -> Result<(), OperationError> {
        let failed = refused("recording an image");
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

/// Why a blob is not whole.
enum Fault {
    /// What came is right as far as is known.
    Stopped(OperationError),
    /// It must not be gone on with.
    Wrong(OperationError),
}

/// Writes what `sender` sends to the end of a blob, but for the first `skip` bytes.
async fn copy(
    sender: &str,
    mut data: BoxStream<'static, std::io::Result<Bytes>>,
    mut skip: u64,
    writer: &mut BlobWriter,
    blob: &Blob,
    meter: &Meter,
) -> Result<(), Fault> {
    let stopped = |text| Fault::Stopped(transient(text));
    let mut buffer = Vec::with_capacity(CHUNK_BYTES);
    loop {
        let part = tokio::time::timeout(SILENCE, data.try_next()).await;
        let part = part.map_err(|_| stopped(format!("{sender} sends no more of {}", blob.digest)))?;
        let part = part.map_err(|error| {
            stopped(format!("fetching {} from {sender}: {}", blob.digest, innermost(&error)))
        })?;
        let is_last = part.is_none();
        let part = part.unwrap_or_default();
        let skipped = part.len().min(usize::try_from(skip).unwrap_or(usize::MAX));
        skip -= skipped as u64;
        buffer.extend_from_slice(&part[skipped..]);
        if writer.offset() + buffer.len() as u64 > blob.size {
            let text = format!("{sender} sent more for {} than its manifest says", blob.digest);
            return Err(Fault::Wrong(transient(text)));
        }
        if buffer.len() >= CHUNK_BYTES || (is_last && !buffer.is_empty()) {
            let chunk = std::mem::replace(&mut buffer, Vec::with_capacity(CHUNK_BYTES));
            let bytes = chunk.len() as u64;
            let failed = |status| Fault::Stopped(refused("writing to the image store")(status));
            writer.write(chunk).await.map_err(failed)?;
            meter.done.fetch_add(bytes, Ordering::Relaxed);
        }
        if is_last {
            return Ok(());
        }
    }
}

/// Ends a blob, if it is the one that its digest names.
async fn commit(writer: BlobWriter, blob: &Blob) -> Result<(), Fault> {
    if writer.offset() < blob.size {
        let text = format!("{} of {} bytes came of {}", writer.offset(), blob.size, blob.digest);
        return Err(Fault::Stopped(transient(text)));
    }
    writer.commit(HashMap::new()).await.map_err(|status| match status.code() {
        Code::FailedPrecondition => {
            let text = format!(
                "digest mismatch: what came for {} is something else ({})",
                blob.digest,
                status.message()
            );
            Fault::Wrong(transient(text))
        }
        _ => Fault::Stopped(refused("writing to the image store")(status)),
    })
}

/// The lease of a pull that begins now, milliseconds since 1970, and when it expires: in one to two days. A lease cannot
/// be prolonged, and what is fetched must be kept for as long as a pull over a slow link takes, or one that is tried
/// again and again; so each day has its own, and takes over from the one before what the pull comes across.
fn lease_of(image: &str, now_ms: u64) -> (String, u64) {
    const DAY_MS: u64 = 24 * 3600 * 1000;
    let day = now_ms / DAY_MS;
    (format!("pull-{}-{day}", sha256(image.as_bytes())), (day + 2) * DAY_MS)
}

#[cfg(test)]
mod tests;
