//! Connections: TLS from operators, QUIC streams from other nodes, one router behind both.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use super::forward::FromPeer;
use crate::transport::IncomingHttp;
use crate::transport::tls::{self, CurrentLeaf};

/// Connections served at a time. Each costs some tens of KiB; a node with 256 MB serves this many
/// beside its workloads.
const MAX_CONNECTIONS: usize = 128;

/// Connections of one address at a time: so many that people behind one router do not notice, so
/// few that one host alone cannot take all.
const MAX_PER_ADDRESS: usize = 32;

/// How long a client may leave an answer unread: a reader that pauses is given time, one that
/// never reads holds a connection and the memory behind it.
const UNREAD_PATIENCE: Duration = Duration::from_secs(60);

/// How long a client may take for its TLS handshake or for the head of a request: an emulated
/// machine needs a second, an attacker would like for ever.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long to wait after `accept` failed, which means that file descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Serves operators on `listener` until the task is dropped.
pub async fn serve(listener: TcpListener, tls: Arc<ServerConfig>, router: Router) {
    let acceptor = TlsAcceptor::from(tls);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let addresses = Arc::new(Addresses::default());
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept API connections");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(share) = Addresses::enter(&addresses, address.ip()) else {
            tracing::debug!(%address, "too many connections from one address");
            continue;
        };
        let (acceptor, router) = (acceptor.clone(), router.clone());
        tokio::spawn(async move {
            if let Err(error) = serve_client(stream, acceptor, router).await {
                tracing::debug!(%address, %error, "API connection ended");
            }
            drop((place, share));
        });
    }
}

/// How many connections each address has.
#[derive(Debug, Default)]
struct Addresses {
    connections: Mutex<BTreeMap<IpAddr, usize>>,
}

/// One connection's share in its address's connections, until it is dropped.
struct Share {
    of: Arc<Addresses>,
    address: IpAddr,
}

impl Addresses {
    fn enter(this: &Arc<Self>, address: IpAddr) -> Option<Share> {
        let mut connections = this.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let count = connections.entry(address).or_default();
        if *count >= MAX_PER_ADDRESS {
            return None;
        }
        *count += 1;
        Some(Share { of: Arc::clone(this), address })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut connections = self.of.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = connections.entry(self.address) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

async fn serve_client(
    stream: tokio::net::TcpStream,
    acceptor: TlsAcceptor,
    router: Router,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await??;
    serve_http(stream, router, None).await?;
    Ok(())
}

/// Serves requests that other nodes forward, until the transport stops.
pub async fn serve_peers(mut incoming: mpsc::Receiver<IncomingHttp>, router: Router) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Some(IncomingHttp { from, stream }) = incoming.recv().await {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let router = router.clone();
        tokio::spawn(async move {
            if let Err(error) = serve_http(stream, router, Some(FromPeer)).await {
                tracing::debug!(node = %from.short(), %error, "forwarded request ended");
            }
            drop(place);
        });
    }
}

async fn serve_http<S>(stream: S, router: Router, peer: Option<FromPeer>) -> Result<(), hyper::Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let router = router.clone();
        async move {
            let mut request = request.map(Body::new);
            if let Some(peer) = peer {
                request.extensions_mut().insert(peer);
            }
            Ok::<_, Infallible>(router.oneshot(request).await.unwrap_or_else(|never| match never {}))
        }
    });
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(UNREAD_PATIENCE));
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(Box::pin(stream)), service)
        .with_upgrades()
        .await
}

/// TLS 1.3 and 1.2 with the node's current leaf; clients prove themselves by signatures, not by
/// certificates.
///
/// # Errors
/// When the provider of cryptography supports neither version.
pub fn tls_config(leaf: Arc<CurrentLeaf>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(leaf);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Where the API listens: every address, so that it also answers before the network is up.
pub fn listen_address() -> SocketAddr {
    SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, hivemind_spec::machine::API_PORT))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpSocket;

    use super::*;
    use crate::identity::Identity;
    use crate::identity::tests::{Folder, Operator};

    #[test]
    fn one_address_has_a_bounded_share_of_the_connections() {
        let addresses = Arc::new(Addresses::default());
        let (one, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let mut shares: Vec<_> = (0..MAX_PER_ADDRESS).map(|_| Addresses::enter(&addresses, one)).collect();
        assert!(shares.iter().all(Option::is_some));
        assert!(Addresses::enter(&addresses, one).is_none());
        assert!(Addresses::enter(&addresses, other).is_some());
        shares.pop();
        assert!(Addresses::enter(&addresses, one).is_some());
        drop(shares);
        assert!(addresses.connections.lock().unwrap().is_empty(), "nothing is remembered of who left");
    }

    #[tokio::test]
    async fn connections_of_all_addresses_together_are_bounded_and_the_next_waits_for_a_place() {
        let folder = Folder::new("api-places");
        let identity = Identity::load_or_enrol(&folder.0, &Operator::new("home").configuration(), 1).unwrap();
        let leaf = CurrentLeaf::new(&identity.mint_leaf(&[], &[], 1).unwrap()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, tls_config(leaf).unwrap(), Router::new()));
        let connect = async |host: u8| {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::from(([127, 0, 0, host], 0))).unwrap();
            socket.connect(address).await.unwrap()
        };
        let mut silent = Vec::new();
        for number in 0..MAX_CONNECTIONS {
            silent.push(connect(u8::try_from(2 + number / MAX_PER_ADDRESS).unwrap()).await);
        }
        // Whoever is served and speaks no TLS is told so at once.
        let mut next = connect(1).await;
        next.write_all(b"this is no TLS").await.unwrap();
        let mut answer = [0; 64];
        let moment = Duration::from_millis(500);
        assert!(tokio::time::timeout(moment, next.read(&mut answer)).await.is_err(), "it was served");
        silent.pop();
        let told = tokio::time::timeout(PATIENCE / 2, next.read(&mut answer)).await;
        assert!(told.is_ok(), "it was not served though there was a place");
        server.abort();
    }
}
