//! The smallest client of the API: one connection, one `GET /v1/health` over TLS, nothing else. It
//! costs the host next to nothing, so that asking often does not slow down the machine asked.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use hivemind_spec::certificate::CLUSTER_NAME;
use hivemind_spec::machine::API_PORT;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, Stream};

/// How long a machine may take to accept a connection. One whose address is not its own yet does
/// not answer at all, and waiting longer for it would make a time out of patience.
const CONNECTING: Duration = Duration::from_millis(100);

/// How long it may take from there to the whole answer: both sides of the handshake are emulated
/// or wait for a processor.
const ANSWERING: Duration = Duration::from_secs(10);

/// Asks machines of one cluster, whose certificates it checks.
pub struct Asker {
    tls: Arc<ClientConfig>,
}

impl Asker {
    /// For the cluster with this root CA, in PEM.
    ///
    /// # Errors
    /// When that is no certificate, in words.
    pub fn new(root_ca: &str) -> Result<Self, String> {
        let root = CertificateDer::from_pem_slice(root_ca.as_bytes()).map_err(|error| error.to_string())?;
        let mut roots = RootCertStore::empty();
        roots.add(root).map_err(|error| error.to_string())?;
        let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { tls: Arc::new(tls) })
    }

    /// What the machine says about its health. To be called inside the lab's network.
    ///
    /// # Errors
    /// When it does not answer with status 200, in words.
    pub fn ask(&self, machine: impl Into<IpAddr>) -> Result<String, String> {
        let address = SocketAddr::new(machine.into(), API_PORT);
        self.converse(address).map_err(|error| format!("{address}: {error}"))
    }

    fn converse(&self, address: SocketAddr) -> std::io::Result<String> {
        let mut socket = TcpStream::connect_timeout(&address, CONNECTING)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(ANSWERING))?;
        let name = ServerName::try_from(CLUSTER_NAME).map_err(std::io::Error::other)?;
        let mut tls = ClientConnection::new(Arc::clone(&self.tls), name).map_err(std::io::Error::other)?;
        let mut stream = Stream::new(&mut tls, &mut socket);
        let request = format!("GET /v1/health HTTP/1.1\r\nHost: {CLUSTER_NAME}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        match answer.split_once("\r\n\r\n") {
            Some((head, body)) if head.starts_with("HTTP/1.1 200 ") => Ok(body.to_owned()),
            _ => Err(std::io::Error::other(answer)),
        }
    }
}
