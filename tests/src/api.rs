//! The API of one machine as outsiders speak it: curl for requests, and bare TLS for what no decent
//! client sends. Signatures are made here, so that they can be wrong in any way.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hivemind_qemu::Lab;
use hivemind_spec::certificate::CLUSTER_NAME;
use hivemind_spec::dsse::Envelope;
use hivemind_spec::http_signature;
use hivemind_spec::key::SigningKey;
use hivemind_spec::machine::API_PORT;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::command::Run;

/// How long an answer may take on an emulated machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A machine's API.
pub struct Api<'a> {
    lab: &'a Lab,
    address: Ipv4Addr,
    folder: PathBuf,
}

/// A TLS connection to it.
pub type Connection = StreamOwned<ClientConnection, TcpStream>;

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status; 0 when the connection ended without an answer.
    pub status: u16,
    /// The media type.
    pub content_type: String,
    /// The body, as JSON where it is some.
    pub body: Value,
}

/// A request to be sent.
#[derive(Clone)]
pub struct Request {
    method: String,
    target: String,
    fields: Vec<String>,
    body: Vec<u8>,
}

impl Request {
    /// A request without body; `target` is a path with its query.
    pub fn new(method: &str, target: &str) -> Self {
        Self { method: method.to_owned(), target: target.to_owned(), fields: Vec::new(), body: Vec::new() }
    }

    /// Adds a header field, `name: value`.
    pub fn field(mut self, field: &str) -> Self {
        self.fields.push(field.to_owned());
        self
    }

    /// Adds a body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// The same request for another target: what its signature does not fit.
    pub fn to(mut self, target: &str) -> Self {
        target.clone_into(&mut self.target);
        self
    }
}

impl<'a> Api<'a> {
    /// The API of a machine.
    ///
    /// # Panics
    /// When the cluster's root CA cannot be found; so do all functions here when a tool is missing.
    pub fn of(cluster: &'a Cluster, address: Ipv4Addr) -> Self {
        let api = Self { lab: &cluster.lab, address, folder: cluster.folder().to_owned() };
        let config = cluster.hivemind(["image", "configure", "--stdout"]).ok().stdout();
        let (begin, end) = ("-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----");
        let pem = config.split_once(begin).and_then(|(_, rest)| rest.split_once(end));
        let (pem, _) = pem.unwrap_or_else(|| panic!("no root CA in {config}"));
        write(&api.root(), format!("{begin}{pem}{end}\n").as_bytes());
        api
    }

    fn root(&self) -> PathBuf {
        self.folder.join("root.pem")
    }

    /// What `Host` says.
    pub fn authority(&self) -> String {
        format!("{}:{API_PORT}", self.address)
    }

    /// Signs a request (RFC 9421) as if at `created_s`.
    pub fn sign(&self, request: Request, key: &SigningKey, created_s: u64) -> Request {
        let (path, query) = match request.target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (request.target.as_str(), None),
        };
        let parts = http_signature::Request {
            method: &request.method,
            authority: &self.authority(),
            path,
            query,
            body: &request.body,
        };
        let fields = http_signature::sign(parts, key, created_s, &nonce());
        let digest = fields.content_digest.map(|digest| format!("content-digest: {digest}"));
        let mut request = request
            .field(&format!("signature-input: {}", fields.signature_input))
            .field(&format!("signature: {}", fields.signature));
        request.fields.extend(digest);
        request
    }

    /// A read, signed now.
    pub fn read(&self, target: &str, key: &SigningKey) -> Answer {
        self.send(&self.sign(Request::new("GET", target), key, now_s()))
    }

    /// Pushes an envelope.
    pub fn push(&self, envelope: &Envelope) -> Answer {
        let request = Request::new("POST", "/v1/specs").field("content-type: application/json");
        self.send(&request.body(envelope.to_json()))
    }

    /// Sends a request with curl.
    pub fn send(&self, request: &Request) -> Answer {
        let body = self.folder.join("body");
        write(&body, &request.body);
        let mut curl = self.lab.command("curl");
        curl.args(["--silent", "--path-as-is", "--max-time", &PATIENCE.as_secs().to_string()]);
        curl.arg("--cacert").arg(self.root()).args(["--request", &request.method]);
        curl.args(["--write-out", "\n%{http_code} %{content_type}"]);
        curl.args(request.fields.iter().flat_map(|field| ["--header", field]));
        if !request.body.is_empty() {
            curl.arg("--data-binary").arg(format!("@{}", body.display()));
        }
        if request.method == "HEAD" {
            curl.arg("--head");
        }
        curl.arg(format!("https://{}{}", self.authority(), request.target));
        let run = Run::of(curl);
        let said = run.stdout();
        let (body, last) = said.rsplit_once('\n').unwrap_or_default();
        let (status, content_type) = last.split_once(' ').unwrap_or_default();
        Answer {
            status: status.parse().unwrap_or_default(),
            content_type: content_type.to_owned(),
            body: serde_json::from_str(body).unwrap_or_else(|_| Value::from(body)),
        }
    }

    /// Sends bytes over TLS, all of them if the machine takes them, and gives the status lines of
    /// what comes back until the machine ends the connection. Nothing is read before all is sent.
    pub fn bare(&self, bytes: &[u8]) -> Vec<String> {
        let mut stream = self.connect();
        // The machine may have heard enough.
        let _ = stream.write_all(bytes).and_then(|()| stream.flush());
        let mut said = Vec::new();
        // An end without TLS's farewell is an end.
        let _ = stream.read_to_end(&mut said);
        let said = String::from_utf8_lossy(&said).into_owned();
        said.lines().filter(|line| line.starts_with("HTTP/")).map(str::to_owned).collect()
    }

    /// A TLS connection, ready for requests.
    pub fn connect(&self) -> Connection {
        let tcp = self.dial();
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_file(self.root()).unwrap_or_else(|error| panic!("{error}"));
        roots.add(root).unwrap_or_else(|error| panic!("{error}"));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap_or_else(|error| panic!("{error}"))
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(CLUSTER_NAME).unwrap_or_else(|error| panic!("{error}"));
        let client = ClientConnection::new(Arc::new(config), name).unwrap_or_else(|error| panic!("{error}"));
        let mut stream = StreamOwned::new(client, tcp);
        stream.conn.complete_io(&mut stream.sock).unwrap_or_else(|error| panic!("TLS: {error}"));
        stream
    }

    /// A TCP connection that has said nothing yet.
    pub fn dial(&self) -> TcpStream {
        let address = (self.address, API_PORT).into();
        let connect = || TcpStream::connect_timeout(&address, PATIENCE);
        let entered = self.lab.enter(connect).unwrap_or_else(|error| panic!("{error}"));
        let tcp = entered.unwrap_or_else(|error| panic!("connecting: {error}"));
        tcp.set_read_timeout(Some(PATIENCE)).unwrap_or_else(|error| panic!("{error}"));
        tcp.set_write_timeout(Some(PATIENCE)).unwrap_or_else(|error| panic!("{error}"));
        tcp
    }
}

/// Seconds since 1970.
pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// New for every request; need not be secret here.
fn nonce() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{:032x}", now.as_nanos())
}

fn write(path: &std::path::Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
