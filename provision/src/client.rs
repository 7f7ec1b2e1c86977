//! The signed client of the API (design, section 6): one request, one connection, to the first
//! node that answers.
//!
//! TLS trusts nodes below the cluster's root CA alone ([`trust`]); so any node will do, at any
//! address, also through a forwarded port. Nodes whose clocks are right come first. Requests are
//! signed with the operator's key ([`hivemind_spec::http_signature`]). Every request is safe to
//! repeat: reads by nature, pushes because the same document is only held once.

mod trust;

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderValue;
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use hivemind_spec::certificate::CLUSTER_NAME;
use hivemind_spec::http_signature;
use hivemind_spec::id::hex;
use hivemind_spec::key::SigningKey;
use hivemind_spec::machine::API_PORT;
use hivemind_spec::problem::{Code, Problem};
use hivemind_spec::words::chain;

use crate::bundle::{self, Bundle};
use crate::failure::{Exit, Failure, Result};
use crate::terminal;

/// How long a connection may take, TLS included: a node on the other side of the world answers in
/// a second, one that is off never.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// How long a node may think before its answer begins: a push waits for other nodes' disks.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// The largest answer read into memory: thousands of replicas and their documents.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// A WebSocket to a node.
pub type WebSocket = WebSocketStream<TokioIo<Upgraded>>;

/// A client of one cluster.
pub struct Client {
    bundle: Bundle,
    key: SigningKey,
    tls: TlsConnector,
    /// Where to ask; the one that answered last comes first.
    nodes: RefCell<Vec<String>>,
    /// What to add to this machine's clock to get the cluster's, milliseconds.
    clock_offset_ms: Cell<i64>,
    /// Whether nodes are asked whose certificates are not valid now: no others answered.
    any_clock: Cell<bool>,
}

/// What a node is asked.
#[derive(Clone, Copy)]
struct Question<'a> {
    method: &'a Method,
    /// With query.
    path: &'a str,
    body: &'a Bytes,
    /// The key of the WebSocket that the connection is to become, if it is to become one.
    web_socket: Option<&'a str>,
}

/// What came of asking one node.
enum Attempt {
    Answered(Response<Incoming>),
    /// Why there was no answer.
    Failed(String),
    /// It is a node of the cluster and was not asked, because its clock or this machine's is wrong.
    Doubted(String),
}

/// Why one attempt on one node gave no answer.
struct NoAnswer(String);

/// A connection to a node, and what speaks against its clock.
struct Connected {
    sender: hyper::client::conn::http1::SendRequest<Full<Bytes>>,
    clock_doubt: Option<String>,
}

impl Client {
    /// A client that asks `nodes`, or the ones remembered in the bundle when there are none.
    ///
    /// # Errors
    /// When no node is known, or the bundle is damaged.
    pub fn new(bundle: Bundle, key: SigningKey, nodes: &[String]) -> Result<Self> {
        let tls = trust::configuration(bundle.root_ca()?)
            .map_err(|e| Failure::local("tls", format!("TLS cannot be set up: {e}")))?;
        let nodes: Vec<String> = match nodes {
            [] => bundle.remembered_nodes(),
            given => given.iter().map(|node| with_port(node)).collect(),
        };
        if nodes.is_empty() {
            return Err(Failure::input("no-node", "it is not known where the cluster's nodes are")
                .advice("name one with --node HOST, or set HIVEMIND_NODE; it is remembered afterwards"));
        }
        Ok(Self {
            bundle,
            key,
            tls: TlsConnector::from(Arc::new(tls)),
            nodes: RefCell::new(nodes),
            clock_offset_ms: Cell::new(0),
            any_clock: Cell::new(false),
        })
    }

    /// The cluster's clock as far as known, milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        crate::command::now_ms().saturating_add_signed(self.clock_offset_ms.get())
    }

    /// The operator key that signs.
    pub fn key(&self) -> &SigningKey {
        &self.key
    }

    /// The bundle of the cluster.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// Reads `path` (with query) as JSON.
    ///
    /// # Errors
    /// When no node answers, the cluster refuses, or the answer is not understood.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.json(Method::GET, path, Bytes::new()).await
    }

    /// Reads a list, an answer with `items`.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>> {
        #[derive(serde::Deserialize)]
        struct Items<T> {
            items: Vec<T>,
        }
        Ok(self.get::<Items<T>>(path).await?.items)
    }

    /// Sends JSON and reads JSON.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: Vec<u8>) -> Result<T> {
        self.json(Method::POST, path, Bytes::from(body)).await
    }

    async fn json<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T> {
        let response = self.send(method, path, body).await?;
        let bytes = collect(response).await.map_err(|e| unreachable_failure(&[e.0]))?;
        serde_json::from_slice(&bytes).map_err(|e| {
            Failure::new(Exit::Local, "bad-answer", format!("the answer to {path} is not understood: {e}"))
                .advice("use the `hivemind` of the cluster's version")
        })
    }

    /// Sends a request and gives the answer once it has begun, for streams.
    ///
    /// # Errors
    /// When no node answers or the cluster refuses.
    pub async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>> {
        self.answer(Question { method: &method, path, body: &body, web_socket: None }).await
    }

    /// Opens a WebSocket (RFC 6455).
    ///
    /// # Errors
    /// When no node answers or the cluster refuses.
    pub async fn web_socket(&self, path: &str, limits: WebSocketConfig) -> Result<WebSocket> {
        let key = generate_key();
        let question = Question { method: &Method::GET, path, body: &Bytes::new(), web_socket: Some(&key) };
        let answer = self.answer(question).await?;
        let accepted = answer.headers().get(header::SEC_WEBSOCKET_ACCEPT).map(HeaderValue::as_bytes);
        if accepted != Some(derive_accept_key(key.as_bytes()).as_bytes()) {
            return Err(Failure::new(
                Exit::Local,
                "bad-answer",
                format!("{path} does not become a WebSocket"),
            )
            .advice("use the `hivemind` of the cluster's version"));
        }
        let stream = hyper::upgrade::on(answer).await.map_err(|e| unreachable_failure(&[chain(&e)]))?;
        Ok(WebSocketStream::from_raw_socket(TokioIo::new(stream), Role::Client, Some(limits)).await)
    }

    async fn answer(&self, question: Question<'_>) -> Result<Response<Incoming>> {
        let mut corrected = false;
        loop {
            let response = self.ask_in_turn(question).await?;
            let status = response.status();
            let as_asked = match question.web_socket {
                Some(_) => status == StatusCode::SWITCHING_PROTOCOLS,
                None => status.is_success(),
            };
            if as_asked {
                return Ok(response);
            }
            let problem = problem(response).await;
            match (problem.code, problem.server_time_ms) {
                (Code::Stale, Some(server_ms)) if !corrected => {
                    let offset = i128::from(server_ms) - i128::from(crate::command::now_ms());
                    self.clock_offset_ms.set(i64::try_from(offset).unwrap_or_default());
                    corrected = true;
                }
                _ => return Err(problem.into()),
            }
        }
    }

    async fn ask_in_turn(&self, question: Question<'_>) -> Result<Response<Incoming>> {
        loop {
            let nodes = self.nodes.borrow().clone();
            let mut reasons = Vec::new();
            let mut doubted = None;
            for (index, node) in nodes.iter().enumerate() {
                match self.ask(node, question).await? {
                    Attempt::Answered(response) => {
                        if index > 0 {
                            self.nodes.borrow_mut()[..=index].rotate_right(1);
                        }
                        self.bundle.remember_nodes(std::slice::from_ref(node));
                        return Ok(response);
                    }
                    Attempt::Failed(reason) => reasons.push(format!("{node}: {reason}")),
                    Attempt::Doubted(reason) => {
                        doubted.get_or_insert(format!("{node} is asked although {reason}"));
                    }
                }
            }
            match doubted {
                Some(doubted) if !self.any_clock.replace(true) => {
                    terminal::note(&format!(
                        "note: {doubted}; no other node answers. Correct the wrong clock"
                    ));
                }
                _ => return Err(unreachable_failure(&reasons)),
            }
        }
    }

    async fn ask(&self, node: &str, question: Question<'_>) -> Result<Attempt> {
        let request = self.request(node, question)?;
        let mut connected = match timeout(CONNECT_TIMEOUT, self.connect(node)).await {
            Ok(Ok(connected)) => connected,
            Ok(Err(NoAnswer(reason))) => return Ok(Attempt::Failed(reason)),
            Err(_) => return Ok(Attempt::Failed("no connection in time".to_owned())),
        };
        if let Some(doubt) = connected.clock_doubt.filter(|_| !self.any_clock.get()) {
            return Ok(Attempt::Doubted(doubt));
        }
        Ok(match timeout(ANSWER_TIMEOUT, connected.sender.send_request(request)).await {
            // It may have done what it was asked, and will not say so; the next one does it, or has heard of it.
            Ok(Ok(response)) if response.status().as_u16() == Code::Stopping.status() => {
                Attempt::Failed(problem(response).await.detail)
            }
            Ok(Ok(response)) => Attempt::Answered(response),
            Ok(Err(error)) => Attempt::Failed(chain(&error)),
            Err(_) => Attempt::Failed("connected, but no answer in time".to_owned()),
        })
    }

    async fn connect(&self, node: &str) -> Result<Connected, NoAnswer> {
        let name = ServerName::try_from(CLUSTER_NAME).map_err(|e| NoAnswer(e.to_string()))?;
        let tcp = TcpStream::connect(node).await.map_err(|e| NoAnswer(e.to_string()))?;
        let tls = self.tls.connect(name, tcp).await.map_err(|e| NoAnswer(format!("TLS: {e}")))?;
        let leaf = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let clock_doubt = leaf.and_then(|leaf| trust::clock_doubt(leaf, crate::command::now_ms()));
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls))
            .await
            .map_err(|e| NoAnswer(chain(&e)))?;
        // Ends with the request: the sender is dropped once the answer is read, and what goes
        // wrong on the way shows there.
        tokio::spawn(connection.with_upgrades());
        Ok(Connected { sender, clock_doubt })
    }

    fn request(&self, node: &str, question: Question<'_>) -> Result<Request<Full<Bytes>>> {
        let Question { method, path, body, web_socket } = question;
        let (bare, query) = path.split_once('?').map_or((path, None), |(bare, query)| (bare, Some(query)));
        let parts =
            http_signature::Request { method: method.as_str(), authority: node, path: bare, query, body };
        let nonce = hex(&bundle::random::<16>()?);
        let fields = http_signature::sign(parts, &self.key, self.now_ms() / 1000, &nonce);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, node)
            .header(header::USER_AGENT, concat!("hivemind/", env!("CARGO_PKG_VERSION")))
            .header("signature-input", fields.signature_input)
            .header("signature", fields.signature);
        if let Some(digest) = fields.content_digest {
            request =
                request.header("content-digest", digest).header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(key) = web_socket {
            request = request
                .header(header::CONNECTION, "upgrade")
                .header(header::UPGRADE, "websocket")
                .header(header::SEC_WEBSOCKET_VERSION, "13")
                .header(header::SEC_WEBSOCKET_KEY, key);
        }
        request
            .body(Full::new(body.clone()))
            .map_err(|e| Failure::input("bad-node", format!("{node:?} cannot be asked for {path}: {e}")))
    }
}

/// `HOST` as `HOST:7443`; anything with a port as it is.
fn with_port(node: &str) -> String {
    let node = node.trim();
    match node.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V6(address)) => format!("[{address}]:{API_PORT}"),
        Ok(address) => format!("{address}:{API_PORT}"),
        Err(_) if node.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) => {
            node.to_owned()
        }
        Err(_) => format!("{node}:{API_PORT}"),
    }
}

fn unreachable_failure(reasons: &[String]) -> Failure {
    let detail = format!("no node of the cluster answers: {}", reasons.join("; "));
    let told = |word: &str| reasons.iter().any(|reason| reason.contains(word));
    let advice = if told("another cluster") {
        "what answers belongs to another cluster; check --cluster and --node"
    } else {
        "check that a node is on and reachable on TCP port 7443, or name another with --node"
    };
    Failure::new(Exit::Unreachable, "no-answer", detail).advice(advice)
}

async fn collect(response: Response<Incoming>) -> Result<Bytes, NoAnswer> {
    let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES);
    match timeout(ANSWER_TIMEOUT, body.collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) => Err(NoAnswer(format!("the answer broke off: {error}"))),
        Err(_) => Err(NoAnswer("the answer did not end in time".to_owned())),
    }
}

/// The problem an answer reports; one made up from its status when it reports none.
async fn problem(response: Response<Incoming>) -> Problem {
    let status = response.status();
    let body = collect(response).await.unwrap_or_else(|_| Bytes::new());
    serde_json::from_slice(&body).unwrap_or_else(|_| {
        let code = if status == StatusCode::NOT_FOUND { Code::NotFound } else { Code::Internal };
        Problem::new(code, format!("the node answered with status {status} and no reason"))
            .advice("check that what answers is a Hivemind node")
    })
}

/// A path with a query of those that have a value.
pub fn with_query(path: &str, pairs: &[(&str, Option<&str>)]) -> String {
    let pairs = pairs.iter().filter_map(|(name, value)| Some(format!("{name}={}", percent((*value)?))));
    let query = pairs.collect::<Vec<_>>().join("&");
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

/// `text` for a query or a path segment (RFC 3986, section 2.1).
pub fn percent(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests;
