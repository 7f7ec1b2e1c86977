//! Containers' output, from whichever nodes hold it.

use std::collections::BTreeSet;
use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt as _, stream};
use hivemind_core::record::{ReplicaId, WorkloadId};
use hivemind_spec::api::LogLine;
use hivemind_spec::id::NodeId;
use hivemind_spec::problem::{Code, Problem};
use http_body_util::BodyExt as _;
use serde::Deserialize;
use tokio::sync::mpsc;
use utoipa::IntoParams;

use super::Context;
use super::forward::{FromPeer, forward};
use super::refusal::{Path, Query, Refusal};
use crate::runtime::logs::LogQuery;

/// Lines waiting for a slow client, over all replicas. The sources wait when it is full.
const MAX_WAITING_LINES: usize = 256;

/// The longest line another node may send, bytes: far over what a node keeps of one, in JSON.
const MAX_LINE_BYTES: usize = 256 * 1024;

/// The longest tail of one replica, lines: what a node keeps is not much more.
const MAX_TAIL: usize = 10_000;

/// Lines sent per replica when the client asks for no number.
const DEFAULT_TAIL: usize = 100;

/// Lines held for sorting when not following, over all replicas.
const MAX_SORTED_LINES: usize = 100_000;

/// Which lines.
#[derive(Debug, Default, Clone, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Filter {
    /// Only of this replica.
    slot: Option<u32>,
    /// How many of the last lines of each replica: 100 if it is not given, or ten thousand with `maxAgeMs`.
    tail: Option<usize>,
    /// Only lines printed in so many last milliseconds, by each node's own clock.
    max_age_ms: Option<u64>,
    /// Only lines printed so many milliseconds ago or longer.
    min_age_ms: Option<u64>,
    /// Go on with new lines as they come.
    #[serde(default)]
    follow: bool,
}

/// Output of a workload's containers, as newline-delimited JSON of `LogLine`; in order of time
/// when not following.
#[utoipa::path(get, path = "/v1/logs/{namespace}/{workload}",
    params(("namespace" = String, Path), ("workload" = String, Path), Filter),
    responses((status = 200, body = LogLine, content_type = "application/x-ndjson"),
        (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn stream(
    State(context): State<Context>,
    Path((namespace, name)): Path<(String, String)>,
    Query(filter): Query<Filter>,
    request: Request,
) -> Result<Response, Refusal> {
    let workload = WorkloadId { namespace, name };
    let (me, places) = places(&context, &workload, filter.slot).await?;
    let (lines, received) = mpsc::channel::<LogLine>(MAX_WAITING_LINES);
    let now_ms = context.clock.now().wall_ms;
    let [since_ms, until_ms] =
        [filter.max_age_ms, filter.min_age_ms].map(|age| age.map(|ms| now_ms.saturating_sub(ms)));
    let local = places.iter().filter(|(_, node)| *node == me).map(|(replica, _)| replica.clone());
    for replica in local {
        let tail = filter.tail.unwrap_or(if since_ms.is_some() { MAX_TAIL } else { DEFAULT_TAIL });
        let query = LogQuery { tail: Some(tail.min(MAX_TAIL)), since_ms, until_ms, follow: filter.follow };
        tokio::spawn(pass_on(context.runtime.read_log(&replica, query), lines.clone()));
    }
    let (parts, _) = request.into_parts();
    if parts.extensions.get::<FromPeer>().is_none() {
        let others: BTreeSet<NodeId> = places.iter().map(|(_, node)| *node).filter(|n| *n != me).collect();
        for node in others {
            tokio::spawn(relay(context.clone(), node, parts.clone(), lines.clone()));
        }
    }
    drop(lines);
    let received =
        stream::unfold(
            received,
            |mut received| async move { received.recv().await.map(|line| (line, received)) },
        );
    let body = if filter.follow { encode(received) } else { encode(sorted(received).await) };
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// This node, and where the workload's replicas are or last were.
async fn places(
    context: &Context,
    workload: &WorkloadId,
    slot: Option<u32>,
) -> Result<(NodeId, BTreeSet<(ReplicaId, NodeId)>), Problem> {
    let wanted = workload.clone();
    let (me, places) = context
        .agent
        .read(move |node, _| {
            let cluster = node.cluster();
            let placed = cluster.placements.get(&wanted).into_iter().flat_map(|p| &p.slots);
            let known = cluster.replicas.keys().filter(|(replica, _)| replica.workload == wanted);
            let places: BTreeSet<_> = placed
                .map(|(slot, node)| (ReplicaId { workload: wanted.clone(), slot: *slot }, *node))
                .chain(known.cloned())
                .filter(|(replica, _)| slot.is_none_or(|slot| replica.slot == slot))
                .collect();
            (node.me(), places)
        })
        .await?;
    if places.is_empty() {
        let (namespace, name) = (&workload.namespace, &workload.name);
        return Err(Problem::new(
            Code::NotFound,
            format!("no replica of {namespace}/{name} is or was placed"),
        )
        .advice("see `hivemind ps` for what there is, and why replicas are pending"));
    }
    Ok((me, places))
}

async fn pass_on(mut from: mpsc::Receiver<LogLine>, to: mpsc::Sender<LogLine>) {
    while let Some(line) = tokio::select! { line = from.recv() => line, () = to.closed() => None } {
        if to.send(line).await.is_err() {
            return;
        }
    }
}

/// Passes on what another node answers. Its refusal becomes a line, so that the reader knows what
/// is missing.
async fn relay(context: Context, node: NodeId, parts: Parts, lines: mpsc::Sender<LogLine>) {
    let answer = match forward(&context, node, &parts, Bytes::new()).await {
        Ok(answer) if answer.status().is_success() => answer,
        Ok(answer) => return say(&context, &lines, node, &format!("answered {}", answer.status())).await,
        Err(problem) => return say(&context, &lines, node, &problem.detail).await,
    };
    let mut body = answer.into_body();
    let mut rest = Vec::new();
    while let Some(frame) = tokio::select! { frame = body.frame() => frame, () = lines.closed() => None } {
        let Ok(frame) = frame else { return say(&context, &lines, node, "stopped answering").await };
        let Ok(data) = frame.into_data() else { continue };
        rest.extend_from_slice(&data);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let text: Vec<u8> = rest.drain(..=end).collect();
            let Ok(line) = serde_json::from_slice::<LogLine>(&text) else { continue };
            if lines.send(line).await.is_err() {
                return;
            }
        }
        if rest.len() > MAX_LINE_BYTES {
            return say(&context, &lines, node, "sent a line over the limit").await;
        }
    }
}

async fn say(context: &Context, lines: &mpsc::Sender<LogLine>, node: NodeId, what: &str) {
    let line = LogLine {
        time_ms: context.clock.now().wall_ms,
        slot: 0,
        stream: "hivemind".to_owned(),
        line: format!("logs of node {} are missing: it {what}", node.short()),
    };
    // The reader may have gone.
    let _ = lines.send(line).await;
}

async fn sorted(lines: impl Stream<Item = LogLine>) -> impl Stream<Item = LogLine> {
    let mut lines: Vec<LogLine> = lines.take(MAX_SORTED_LINES).collect().await;
    lines.sort_by_key(|line| line.time_ms);
    stream::iter(lines)
}

fn encode(lines: impl Stream<Item = LogLine> + Send + 'static) -> Body {
    Body::from_stream(lines.map(|line| {
        // Strings and numbers only: this cannot fail.
        let mut text = serde_json::to_vec(&line).unwrap_or_default();
        text.push(b'\n');
        Ok::<_, Infallible>(Bytes::from(text))
    }))
}
