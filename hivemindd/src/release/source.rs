//! Where the bytes of a release come from: a stick that was plugged in, a peer that runs it or has it from a stick, a folder of
//! a web server, a registry. None is trusted.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt as _, TryStreamExt as _};
use hivemind_core::event::{Peer, UpdateOrder};
use hivemind_spec::id::ReleaseId;
use hivemind_spec::release::{OsReleaseSpec, ReleaseFile, STICK};
use hivemind_spec::words::chain;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, StatusCode, header};
use oci_client::client::BlobResponse;
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference, RegistryOperation};

use super::brought::Brought;
use crate::registry::{self, READ_TIMEOUT};
use crate::transport::Transport;

/// Most bytes asked for at a time: a peer holds them in memory.
pub const MAX_RANGE_BYTES: u64 = 2 << 20;

/// One of a release's two files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The file of a root's slot.
    Root,
    /// The unified kernel image.
    Kernel,
}

impl Part {
    /// By its name in the paths that peers ask for.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "root" => Some(Part::Root),
            "kernel" => Some(Part::Kernel),
            _ => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Part::Root => "root",
            Part::Kernel => "kernel",
        }
    }

    fn of(self, spec: &OsReleaseSpec) -> &ReleaseFile {
        match self {
            Part::Root => &spec.root,
            Part::Kernel => &spec.kernel,
        }
    }
}

/// The path under which a peer has a part of the release it runs.
fn peer_path(release: ReleaseId, part: Part) -> String {
    format!("/peer/releases/{release}/{}", part.name())
}

/// A piece of a file, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) part: Part,
    pub(super) from: u64,
    pub(super) bytes: u64,
}

impl Range {
    /// RFC 9110, section 14.2.
    fn header(self) -> String {
        format!("bytes={}-{}", self.from, self.from + self.bytes - 1)
    }
}

/// Bytes as they come.
pub(super) type Stream = BoxStream<'static, Result<Bytes, String>>;

/// The ways to the places releases come from.
#[derive(Clone)]
pub struct Sources {
    transport: Transport,
    insecure: Vec<String>,
    brought: Brought,
    /// Made when first needed: most nodes ask peers, and reading the CA certificates takes time and memory at boot.
    outside: Arc<OnceLock<Outside>>,
}

/// The clients for places outside the cluster.
#[derive(Clone)]
struct Outside {
    web: reqwest::Client,
    registry: oci_client::Client,
}

impl Outside {
    fn new(insecure: &[String]) -> Result<Self, String> {
        let web = reqwest::Client::builder()
            .user_agent(registry::AGENT)
            .connect_timeout(registry::CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .build()
            .map_err(|error| chain(&error))?;
        let registry = registry::client(insecure).map_err(|error| chain(&error))?;
        Ok(Self { web, registry })
    }
}

impl Sources {
    /// `insecure`: registries (`host:port`) spoken to by plain HTTP.
    #[must_use]
    pub fn new(transport: Transport, insecure: Vec<String>, brought: Brought) -> Self {
        Self { transport, insecure, brought, outside: Arc::default() }
    }

    fn outside(&self) -> Result<Outside, String> {
        if let Some(outside) = self.outside.get() {
            return Ok(outside.clone());
        }
        let outside = Outside::new(&self.insecure)?;
        Ok(self.outside.get_or_init(|| outside).clone())
    }

    /// Opens a piece of a release at the first place that has it: this machine, then the peers, from `turn` on, so that
    /// not all ask the same one.
    ///
    /// # Errors
    /// What each place said, in words.
    pub(super) async fn open(
        &self,
        order: &UpdateOrder,
        range: Range,
        turn: usize,
    ) -> Result<Stream, String> {
        if let Some(bytes) = self.read_own(order.spec.release, range).await {
            return Ok(futures_util::stream::once(async { Ok(bytes) }).boxed());
        }
        let mut said = Vec::new();
        let peers = order.peers.iter().cycle().skip(turn % order.peers.len().max(1)).take(order.peers.len());
        for peer in peers {
            match self.ask_peer(*peer, order.spec.release, range).await {
                Ok(stream) => return Ok(stream),
                Err(error) => said.push(format!("node {}: {error}", peer.node.short())),
            }
        }
        for source in &order.spec.sources {
            let opened = if source == STICK {
                Err("no machine that is heard has it from one: plug it into any of them".to_owned())
            } else if source.starts_with("http://") || source.starts_with("https://") {
                self.ask_web(source, &order.spec, range).await
            } else {
                self.ask_registry(source, &order.spec, range).await
            };
            match opened {
                Ok(stream) => return Ok(stream),
                Err(error) => said.push(format!("{source}: {error}")),
            }
        }
        Err(said.join("; "))
    }

    /// What came was not what was asked for. Returns whether it came from this machine itself, which has it no longer.
    pub(super) async fn doubt(&self, release: ReleaseId) -> bool {
        let brought = self.brought.clone();
        let forgotten = tokio::task::spawn_blocking(move || brought.forget(release)).await;
        forgotten.map_err(std::io::Error::other).flatten().unwrap_or_else(|error| {
            tracing::error!(%error, "the copy of what a stick brought cannot be removed");
            false
        })
    }

    /// What a stick brought to this machine.
    async fn read_own(&self, release: ReleaseId, range: Range) -> Option<Bytes> {
        let (brought, bytes) = (self.brought.clone(), usize::try_from(range.bytes).ok()?);
        let read = move || brought.read(release, range.part, range.from, bytes);
        tokio::task::spawn_blocking(read).await.ok()?.ok().map(Bytes::from)
    }

    async fn ask_peer(&self, peer: Peer, release: ReleaseId, range: Range) -> Result<Stream, String> {
        let request = Request::get(peer_path(release, range.part))
            .header(header::RANGE, range.header())
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let answered = async {
            let answer = self.transport.request(peer, request).await.map_err(|error| chain(&error))?;
            if answer.status() != StatusCode::PARTIAL_CONTENT {
                return Err(format!("it answered {}", answer.status()));
            }
            // As much as was asked for, which is little.
            let body = Limited::new(answer.into_body(), usize::try_from(range.bytes).unwrap_or(usize::MAX));
            body.collect().await.map(http_body_util::Collected::to_bytes).map_err(|error| error.to_string())
        };
        let bytes = tokio::time::timeout(READ_TIMEOUT, answered).await.map_err(|_| "it took too long")??;
        Ok(futures_util::stream::once(async { Ok(bytes) }).boxed())
    }

    async fn ask_web(&self, folder: &str, spec: &OsReleaseSpec, range: Range) -> Result<Stream, String> {
        let url = format!("{}/blobs/sha256/{}", folder.trim_end_matches('/'), range.part.of(spec).digest);
        let answer = self.outside()?.web.get(url).header(header::RANGE, range.header()).send().await;
        let answer = answer.map_err(|error| chain(&error))?;
        match answer.status() {
            reqwest::StatusCode::PARTIAL_CONTENT => {
                Ok(answer.bytes_stream().map_err(|error| chain(&error)).boxed())
            }
            reqwest::StatusCode::OK => {
                Err("the server sends files only as a whole; use one that knows ranges (RFC 9110)".to_owned())
            }
            status => Err(format!("the server answered {status}")),
        }
    }

    async fn ask_registry(&self, name: &str, spec: &OsReleaseSpec, range: Range) -> Result<Stream, String> {
        let reference: Reference = name.parse().map_err(|error| format!("it is no reference: {error}"))?;
        let anonymous = RegistryAuth::Anonymous;
        let registry = self.outside()?.registry;
        registry
            .auth(&reference, &anonymous, RegistryOperation::Pull)
            .await
            .map_err(|error| chain(&error))?;
        let digest = format!("sha256:{}", range.part.of(spec).digest);
        let blob = OciDescriptor { digest, ..Default::default() };
        let opened =
            registry.pull_blob_stream_partial(&reference, &blob, range.from, Some(range.bytes)).await;
        match opened.map_err(|error| chain(&error))? {
            BlobResponse::Partial(stream) => Ok(stream.stream.map_err(|error| chain(&error)).boxed()),
            BlobResponse::Full(_) => Err("the registry sends blobs only as a whole".to_owned()),
        }
    }
}
