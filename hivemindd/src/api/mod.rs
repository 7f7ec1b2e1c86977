//! The HTTPS API.
//!
//! Documents enter as DSSE envelopes and carry their own signatures. Every other request is
//! signed by RFC 9421 ([`auth`]), but for health, version and the API's description. The same
//! router answers operators over TLS and other nodes over QUIC, so any node answers any request
//! ([`forward`]).

mod archives;
mod attach;
mod auth;
mod blobs;
mod body;
mod debug;
mod devices;
mod events;
mod exec;
mod forward;
mod images;
mod logs;
mod openapi;
mod orders;
mod reads;
mod refusal;
mod releases;
mod server;
mod session;
mod snapshots;
mod specs;
mod stats;
mod support;

use std::sync::Arc;

use axum::Router;
use axum::http::{Method, Uri};
use axum::routing::{get, post};
use hivemind_core::record::WorkloadId;
use hivemind_spec::id::KeyId;
use hivemind_spec::problem::{Code, Problem};
use tokio::sync::Semaphore;

pub use self::auth::Seen;
pub use self::body::Bodies;
pub use self::server::{listen_address, serve, serve_peers, tls_config};
pub use self::session::MAX_SESSIONS;

use self::refusal::Refusal;
use crate::agent::{AgentHandle, Happened};
use crate::clock::Clock;
use crate::release::{Brought, Running};
use crate::runtime::Runtime;
use crate::transport::Transport;

/// What the handlers need.
#[derive(Clone)]
pub struct Context {
    /// The agent's loop.
    pub agent: AgentHandle,
    /// The node's clock.
    pub clock: Arc<Clock>,
    /// The way to other nodes.
    pub transport: Transport,
    /// The release of this node.
    pub running: Running,
    /// The release that a stick brought.
    pub brought: Brought,
    /// The containers of this node.
    pub runtime: Runtime,
    /// What has happened here lately.
    pub happened: Arc<Happened>,
    /// Signed requests seen lately.
    pub seen: Arc<Seen>,
    /// Room for requests' bodies.
    pub bodies: Arc<Bodies>,
    /// Room for conversations: commands that people run in containers, copies of volumes.
    pub sessions: Arc<Semaphore>,
}

impl Context {
    /// Tells what the holder of a key does here: in the machine's log, and among what has happened.
    fn told(&self, code: &'static str, key: KeyId, workload: Option<&WorkloadId>, what: &str) {
        tracing::info!(code, %key, "{what}");
        let text = format!("{what}, by key {}", key.short());
        self.happened.told(self.clock.now(), code, workload.cloned(), text);
    }
}

/// Every path of the API.
pub fn router(context: Context) -> Router {
    let signed = Router::new()
        .route("/v1/specs", get(specs::list))
        .route("/v1/nodes", get(reads::nodes))
        .route("/v1/nodes/{node}/orders", post(orders::order))
        .route("/v1/nodes/{node}/support", get(support::support))
        .route("/v1/workloads", get(reads::workloads))
        .route("/v1/replicas", get(reads::replicas))
        .route("/v1/devices", get(devices::devices))
        .route("/v1/stats", get(stats::stats))
        .route("/v1/events", get(events::events))
        .route("/v1/releases", get(reads::releases))
        .route("/v1/volumes", get(reads::volumes))
        .route("/v1/volumes/{namespace}/{volume}/archive", get(archives::read))
        .route("/v1/volumes/{namespace}/{volume}/fill", get(archives::fill))
        .route("/v1/volumes/{namespace}/{volume}/snapshot", get(snapshots::make))
        .route("/v1/volumes/{namespace}/{volume}/snapshots", get(snapshots::list).delete(snapshots::remove))
        .route("/v1/images", get(images::list).delete(images::take_back))
        .route("/v1/images/give", get(images::give))
        .route("/v1/secrets", get(reads::secrets))
        .route("/v1/recipients", get(reads::recipients))
        .route("/v1/status", get(reads::status))
        .route("/v1/logs/{namespace}/{workload}", get(logs::stream))
        .route("/v1/exec/{namespace}/{workload}", get(exec::exec))
        .route("/v1/attach/{namespace}/{workload}", get(attach::attach))
        .route("/v1/debug/{namespace}/{workload}", get(debug::debug))
        .layer(axum::middleware::from_fn_with_state(context.clone(), auth::require_signature));
    let open = Router::new()
        .route("/v1/specs", post(specs::push))
        .route("/v1/health", get(reads::health))
        .route("/v1/version", get(reads::version))
        .route("/v1/openapi.json", get(openapi::serve))
        .route("/peer/releases/{release}/{part}", get(releases::read))
        .route("/peer/blobs/{digest}", get(blobs::read).head(blobs::look));
    signed.merge(open).fallback(no_such_path).method_not_allowed_fallback(no_such_method).with_state(context)
}

async fn no_such_path(uri: Uri) -> Refusal {
    Problem::new(Code::NotFound, format!("{} is not a path of this API", uri.path()))
        .advice("see /v1/openapi.json for the paths there are")
        .into()
}

async fn no_such_method(method: Method, uri: Uri) -> Refusal {
    Problem::new(Code::MethodNotAllowed, format!("{} does not take {method}", uri.path()))
        .advice("see /v1/openapi.json for the methods there are")
        .into()
}
