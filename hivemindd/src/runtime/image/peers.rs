//! Blobs of images from other nodes, before a registry is asked.
//!
//! ```text
//!   HEAD /peer/blobs/DIGEST   200 it is whole here   202 it is being fetched   503 busy   404 not here
//!   GET  /peer/blobs/DIGEST   from the first byte of a range to the end
//! ```
//!
//! Whom to ask, and whom to wait for, is decided by the core ([`ImagePeers`]). Nothing that a node sends is trusted:
//! containerd compares the digest of every blob before it counts.

use std::collections::BTreeMap;
use std::future::ready;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};
use hivemind_core::event::{ImagePeers, Peer};
use hivemind_spec::id::NodeId;
use hivemind_spec::words::chain;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode, header};
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, sleep, timeout};

use super::{Meter, NamedLocks};
use crate::runtime::content::{MAX_DOCUMENT_BYTES, sha256};
use crate::transport::Transport;

/// Says in an answer how far a node is with the images it fetches, in bytes: whoever waits sees that it gets further.
pub const DONE_BYTES: &str = "hivemind-done-bytes";

/// How long a node may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// How long nodes are asked for a manifest, in all. The registry has it as well, and it is small.
const DOCUMENT_LIMIT: Duration = Duration::from_secs(2);

/// Nodes asked for a manifest at a time.
const DOCUMENTS_AT_A_TIME: usize = 4;

/// How long a node is waited for that is to fetch the image and has not begun: it hears of it a moment later, or has
/// other images to fetch first.
const BEGIN_PATIENCE: Duration = Duration::from_secs(10);

/// How long a node is waited for that gets no further.
const SILENCE_PATIENCE: Duration = Duration::from_secs(30);

/// How often in a row a node that is waited for may not answer. Each time takes seconds.
const MAX_MISSES: u32 = 3;

/// How long a blob is waited for that others are being given, by nodes that have it.
const BUSY_PATIENCE: Duration = Duration::from_secs(600);

/// Pauses between two rounds of questions: short at first, because most layers are small.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
];

/// The path under which nodes have blobs.
fn path(digest: &str) -> String {
    format!("/peer/blobs/{digest}")
}

/// What a node says of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Whole,
    Coming { done_bytes: u64 },
    Busy,
    Lacking,
}

/// What is known of a node in the course of one pull.
struct Known {
    /// When it last got further; the beginning of the pull at first.
    moved: Instant,
    done_bytes: Option<u64>,
    /// How often in a row it has not answered.
    misses: u32,
    /// Whether it is not asked any more: what it sent was no use.
    useless: bool,
}

/// The other nodes, for one pull.
pub(super) struct Peers<'a> {
    transport: Option<&'a Transport>,
    list: &'a ImagePeers,
    known: Mutex<BTreeMap<NodeId, Known>>,
    began: Instant,
}

/// A blob that a node sends.
pub(super) struct FromPeer {
    pub(super) peer: Peer,
    pub(super) data: BoxStream<'static, io::Result<Bytes>>,
    /// One blob from each node at a time: two that are written slowly would fill the window of the connection, and
    /// keep the cluster's own messages from coming.
    pub(super) alone: OwnedMutexGuard<()>,
}

impl<'a> Peers<'a> {
    pub(super) fn new(transport: Option<&'a Transport>, list: &'a ImagePeers) -> Self {
        Self { transport, list, known: Mutex::default(), began: Instant::now() }
    }

    /// A manifest that one of them has.
    pub(super) async fn document(&self, digest: &str) -> Option<Vec<u8>> {
        let asked = stream::iter(self.all()).map(|(peer, _)| self.whole(peer, digest));
        let right = asked.buffer_unordered(DOCUMENTS_AT_A_TIME).filter_map(ready);
        let mut right = std::pin::pin!(right);
        timeout(DOCUMENT_LIMIT, right.next()).await.ok()?
    }

    async fn whole(&self, peer: Peer, digest: &str) -> Option<Vec<u8>> {
        let answer = self.send(peer, Method::GET, digest, 0).await.ok()?;
        let limit = usize::try_from(MAX_DOCUMENT_BYTES).unwrap_or(usize::MAX);
        let body = Limited::new(answer.into_body(), limit).collect();
        let bytes = timeout(ANSWER_LIMIT, body).await.ok()?.ok()?.to_bytes();
        (sha256(&bytes) == digest).then(|| bytes.into())
    }

    /// Opens a blob at `from` at a node that has it, waiting for those that fetch it. None: ask the registry.
    pub(super) async fn open(
        &self,
        locks: &NamedLocks,
        digest: &str,
        from: u64,
        meter: &Meter,
    ) -> Option<FromPeer> {
        let began = Instant::now();
        let mut pauses = PAUSES.into_iter();
        let mut pause = PAUSES[0];
        loop {
            let asked = self
                .all()
                .into_iter()
                .map(async |(peer, before)| (peer, before, self.ask(peer, digest).await));
            let mut wait = false;
            for (peer, before, word) in join_all(asked).await {
                match word {
                    Ok(Word::Whole) => match self.take(locks, peer, digest, from).await {
                        Ok(Some(opened)) => return Some(opened),
                        Ok(None) => wait |= began.elapsed() < BUSY_PATIENCE,
                        Err(error) => self.is_useless(peer, &error),
                    },
                    Ok(Word::Busy) => wait |= began.elapsed() < BUSY_PATIENCE,
                    word if before => wait |= self.is_worth_waiting(peer, word.ok(), meter),
                    Ok(_) => {}
                    // Nobody waits for it, so it is not asked again.
                    Err(error) => self.is_useless(peer, &error),
                }
            }
            if !wait {
                return None;
            }
            pause = pauses.next().unwrap_or(pause);
            sleep(pause).await;
        }
    }

    /// What a node sent is no use, or nothing came any more.
    pub(super) fn is_useless(&self, peer: Peer, why: &str) {
        tracing::debug!(node = %peer.node.short(), why, "it is not asked for more of this image");
        self.know(peer, |known| known.useless = true);
    }

    /// Those to be asked, and whether each is waited for.
    fn all(&self) -> Vec<(Peer, bool)> {
        if self.transport.is_none() {
            return Vec::new();
        }
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.list.before.iter().map(|peer| (*peer, true));
        let all = before.chain(self.list.others.iter().map(|peer| (*peer, false)));
        all.filter(|(peer, _)| known.get(&peer.node).is_none_or(|known| !known.useless)).collect()
    }

    fn know<T>(&self, peer: Peer, look: impl FnOnce(&mut Known) -> T) -> T {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Known { moved: self.began, done_bytes: None, misses: 0, useless: false };
        look(known.entry(peer.node).or_insert_with(new))
    }

    /// Whether a node that has not got the blob will have it. None: it does not answer.
    fn is_worth_waiting(&self, peer: Peer, word: Option<Word>, meter: &Meter) -> bool {
        self.know(peer, |known| {
            known.misses = if word.is_none() { known.misses + 1 } else { 0 };
            match (word, known.done_bytes) {
                (Some(Word::Coming { done_bytes }), before) if before != Some(done_bytes) => {
                    known.done_bytes = Some(done_bytes);
                    known.moved = Instant::now();
                    meter.waits_well();
                    true
                }
                // It has given up.
                (Some(Word::Lacking), Some(_)) => false,
                _ if known.misses >= MAX_MISSES => {
                    known.useless = true;
                    false
                }
                (_, None) => known.moved.elapsed() < BEGIN_PATIENCE,
                (_, Some(_)) => known.moved.elapsed() < SILENCE_PATIENCE,
            }
        })
    }

    async fn ask(&self, peer: Peer, digest: &str) -> Result<Word, String> {
        let answer = self.send(peer, Method::HEAD, digest, 0).await?;
        let done_bytes = || answer.headers().get(DONE_BYTES)?.to_str().ok()?.parse().ok();
        Ok(match answer.status() {
            StatusCode::OK => Word::Whole,
            StatusCode::ACCEPTED => Word::Coming { done_bytes: done_bytes().unwrap_or(0) },
            StatusCode::SERVICE_UNAVAILABLE => Word::Busy,
            // One of an older release does not know the question.
            _ => Word::Lacking,
        })
    }

    /// None: it is busy, be it with another blob for this node.
    async fn take(
        &self,
        locks: &NamedLocks,
        peer: Peer,
        digest: &str,
        from: u64,
    ) -> Result<Option<FromPeer>, String> {
        let Ok(alone) = locks.get(&format!("node {}", peer.node)).try_lock_owned() else { return Ok(None) };
        let answer = self.send(peer, Method::GET, digest, from).await?;
        match answer.status() {
            StatusCode::PARTIAL_CONTENT => {
                let data = answer.into_body().into_data_stream().map_err(io::Error::other).boxed();
                Ok(Some(FromPeer { peer, data, alone }))
            }
            StatusCode::SERVICE_UNAVAILABLE => Ok(None),
            status => Err(format!("it answered {status}")),
        }
    }

    async fn send(
        &self,
        peer: Peer,
        method: Method,
        digest: &str,
        from: u64,
    ) -> Result<Response<Incoming>, String> {
        let transport = self.transport.ok_or("there are no others")?;
        let request = Request::builder()
            .method(method)
            .uri(path(digest))
            .header(header::RANGE, format!("bytes={from}-"))
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let answer = timeout(ANSWER_LIMIT, transport.request(peer, request)).await;
        answer.map_err(|_| "it does not answer".to_owned())?.map_err(|error| chain(&error))
    }
}

/// Blobs on their way here, so that others wait for them.
#[derive(Default)]
pub(super) struct Coming(Mutex<BTreeMap<String, Vec<std::sync::Weak<Meter>>>>);

impl Coming {
    /// A pull fetches these from now on, for as long as its meter is held.
    pub(super) fn begin<'a>(&self, digests: impl Iterator<Item = &'a str>, meter: &Arc<Meter>) {
        let mut coming = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        coming.retain(|_, pulls| {
            pulls.retain(|meter| meter.strong_count() > 0);
            !pulls.is_empty()
        });
        for digest in digests {
            coming.entry(digest.to_owned()).or_default().push(Arc::downgrade(meter));
        }
    }

    /// How far those are that fetch a blob, in bytes. None: it is not being fetched.
    pub(super) fn done_bytes(&self, digest: &str) -> Option<u64> {
        let coming = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pulls = coming.get(digest)?.iter().filter_map(std::sync::Weak::upgrade);
        pulls.map(|meter| meter.read().done_bytes).reduce(u64::wrapping_add)
    }
}

#[cfg(test)]
mod tests;
