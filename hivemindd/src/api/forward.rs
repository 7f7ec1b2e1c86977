//! Forwarding: a request that concerns another node is sent there as it came, signature and all,
//! over the QUIC connection between the nodes. The other node checks the signature again, by the
//! clock of the node that forwards: the two clocks may differ by decades.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::request::Parts;
use axum::http::{HeaderName, Request, Response, StatusCode};
use futures_util::future::join_all;
use hivemind_core::event::Peer;
use hivemind_spec::id::NodeId;
use hivemind_spec::machine::PEER_PORT;
use hivemind_spec::problem::{Code, Problem};
use hivemind_spec::words::chain;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::OwnedSemaphorePermit;

use super::Context;

/// How long another node may take: who looks again and again would rather see the others in time.
const PATIENCE: Duration = Duration::from_secs(3);

/// The longest answer of another node, bytes: some thousand containers.
const MAX_ANSWER_BYTES: usize = 2 * 1024 * 1024;

/// Marks a request that another node forwarded: it is answered here, and never forwarded again.
#[derive(Debug, Clone, Copy)]
pub(super) struct FromPeer;

/// The header by which a node says what time it was by its own clock when it found the request
/// fresh, milliseconds since 1970. From anybody but a node it means nothing.
pub(super) const FORWARDED_AT: HeaderName = HeaderName::from_static("hivemind-forwarded-at");

/// The answer to a request that concerns one node, when that is another: that node's. None when it is this one's to
/// give.
pub(super) async fn elsewhere(
    context: &Context,
    node: NodeId,
    parts: &Parts,
    body: Bytes,
) -> Result<Option<axum::response::Response>, Problem> {
    let (me, known) =
        context.agent.read(move |core, _| (core.me(), core.cluster().nodes.contains_key(&node))).await?;
    if node == me {
        return Ok(None);
    }
    if parts.extensions.get::<FromPeer>().is_some() {
        return Err(Problem::new(Code::NotFound, format!("this is node {}", me.short())));
    }
    if !known {
        return Err(Problem::new(Code::NotFound, format!("there is no node {node}"))
            .advice("`hivemind nodes` lists them"));
    }
    Ok(Some(forward(context, node, parts, body).await?.map(Body::new)))
}

/// Sends a request to `node` and returns its answer.
pub(super) async fn forward(
    context: &Context,
    node: NodeId,
    parts: &Parts,
    body: Bytes,
) -> Result<Response<Incoming>, Problem> {
    let unreachable = |error: &dyn std::fmt::Display| {
        Problem::new(Code::Unreachable, format!("node {} does not answer: {error}", node.short()))
            .advice("see `hivemind nodes`; what runs there comes back with it, or runs elsewhere")
    };
    let address = context
        .agent
        .read(move |core, _| core.cluster().address(&node))
        .await?
        .ok_or_else(|| unreachable(&"its address is not known"))?;
    let peer = Peer { node, address: (address, PEER_PORT).into() };
    let mut request = Request::builder().method(parts.method.clone()).uri(parts.uri.clone());
    if let Some(headers) = request.headers_mut() {
        headers.clone_from(&parts.headers);
        headers.insert(FORWARDED_AT, context.clock.now().wall_ms.into());
    }
    let request = request.body(Body::from(body)).map_err(|error| unreachable(&error))?;
    context.transport.request(peer, request).await.map_err(|error| unreachable(&chain(&error)))
}

/// What other nodes answer to a request, each for itself, and which do not in time.
pub(super) async fn gather<T: DeserializeOwned>(
    context: &Context,
    nodes: impl IntoIterator<Item = NodeId>,
    parts: &Parts,
) -> (Vec<T>, Vec<NodeId>) {
    let one = async |node| {
        let answer = async {
            let answer = forward(context, node, parts, Bytes::new()).await.ok()?;
            let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await.ok()?;
            serde_json::from_slice(&body.to_bytes()).ok()
        };
        tokio::time::timeout(PATIENCE, answer).await.ok().flatten().ok_or(node)
    };
    let (mut answers, mut missing) = (Vec::new(), Vec::new());
    for answer in join_all(nodes.into_iter().map(one)).await {
        match answer {
            Ok(answer) => answers.push(answer),
            Err(node) => missing.push(node),
        }
    }
    (answers, missing)
}

/// Sends a request for another protocol to `node`. If that agrees, whatever the two ends say passes through here until
/// either is done, and `place` is kept for as long.
pub(super) async fn forward_upgrade(
    context: &Context,
    node: NodeId,
    parts: &mut Parts,
    place: OwnedSemaphorePermit,
) -> Result<axum::response::Response, Problem> {
    let client = parts.extensions.remove::<OnUpgrade>();
    let mut answer = forward(context, node, parts, Bytes::new()).await?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(client) = client
    {
        let peer = hyper::upgrade::on(&mut answer);
        tokio::spawn(async move {
            match tokio::try_join!(client, peer) {
                Ok((client, peer)) => pass_through(TokioIo::new(client), TokioIo::new(peer)).await,
                Err(error) => tracing::debug!(%error, "forwarding ended"),
            }
            drop(place);
        });
    }
    Ok(answer.map(Body::new))
}

async fn pass_through<A, B>(one: A, other: B)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut from_one, mut to_one) = tokio::io::split(one);
    let (mut from_other, mut to_other) = tokio::io::split(other);
    // An end that is gone without a word must not keep this from ending.
    let ended = tokio::select! {
        ended = tokio::io::copy(&mut from_one, &mut to_other) => ended,
        ended = tokio::io::copy(&mut from_other, &mut to_one) => ended,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "forwarding ended");
    }
    let _ = tokio::join!(to_one.shutdown(), to_other.shutdown());
}
