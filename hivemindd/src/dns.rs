//! The node's DNS server: answers for `hive.internal`, forwards the rest.
//!
//! It listens, by UDP and TCP, on the addresses it is given and on no other: the bridge's address,
//! which containers have as their name server. So it is no open resolver for the outside. What it
//! answers is the core's [`Zone`], read anew for every question, as far as it concerns who asks; what it forwards goes
//! to the underlay's name servers, or to those the container asks for, with a time limit, a small cache and a bound on
//! what is under way. A container that reaches nothing outside is told of no names outside either: a question can
//! carry data.
//!
//! It will not recurse, and it knows no zone transfers or updates.

mod forward;
mod respond;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_server::Server;
use hivemind_core::event::Zone;
use hivemind_core::isolation::Isolation;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket, UdpSocket};
use tokio::sync::watch;

use forward::Forwarder;
pub use forward::address;
use respond::Responder;

/// The port of DNS (RFC 1035, section 4.2).
pub const PORT: u16 = 53;

/// How long a TCP client may be silent: resolvers ask at once or not at all, and every open
/// connection costs memory.
const TCP_IDLE: Duration = Duration::from_secs(5);

/// Answers that wait to be written to one TCP client.
const TCP_BUFFER: usize = 16;

/// The wait before a failed bind is tried again.
const REBIND: Duration = Duration::from_secs(1);

/// Why the server does not listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for DNS on {address}")]
pub struct DnsError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

/// Serves until dropped. Each input may change at any time:
///
/// - `zone`: what is answered,
/// - `isolation`: who asks, and so what of it,
/// - `listen`: where; an address need not exist yet,
/// - `upstreams`: the underlay's name servers; without any, what is not ours fails.
pub async fn run(
    zone: watch::Receiver<Arc<Zone>>,
    isolation: watch::Receiver<Arc<Isolation>>,
    mut listen: watch::Receiver<BTreeSet<SocketAddr>>,
    upstreams: watch::Receiver<Vec<SocketAddr>>,
) {
    let forwarder = Arc::new(Forwarder::new(upstreams, listen.clone()));
    loop {
        let addresses = listen.borrow_and_update().clone();
        // Dropping the server closes its sockets and ends its tasks.
        let mut server = Server::new(Responder::new(zone.clone(), isolation.clone(), Arc::clone(&forwarder)));
        match register(&mut server, &addresses) {
            Ok(()) => {
                tracing::info!(?addresses, "answers DNS");
                tokio::select! {
                    changed = listen.changed() => {
                        if changed.is_err() {
                            // Nobody can change the addresses any more: they stay.
                            let _ = server.block_until_done().await;
                            return;
                        }
                    }
                    ended = server.block_until_done(), if !addresses.is_empty() => {
                        tracing::warn!(?ended, "the DNS server ended and is started again");
                        tokio::time::sleep(REBIND).await;
                    }
                }
            }
            Err(error) => {
                tracing::warn!(%error, cause = %error.source, "tries again");
                tokio::time::sleep(REBIND).await;
            }
        }
    }
}

fn register(server: &mut Server<Responder>, addresses: &BTreeSet<SocketAddr>) -> Result<(), DnsError> {
    for address in addresses {
        let (udp, tcp) = bind(*address).map_err(|source| DnsError { address: *address, source })?;
        server.register_socket(udp);
        server.register_listener(tcp, TCP_IDLE, TCP_BUFFER);
    }
    Ok(())
}

/// Binds both sockets, also to an address the node does not have yet.
fn bind(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let tcp = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    tcp.set_reuseaddr(true)?;
    setsockopt(&tcp, sockopt::IpFreebind, &true)?;
    tcp.bind(address)?;
    let tcp = tcp.listen(64)?;
    let udp = nix::sys::socket::socket(
        if address.is_ipv4() {
            nix::sys::socket::AddressFamily::Inet
        } else {
            nix::sys::socket::AddressFamily::Inet6
        },
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::SOCK_NONBLOCK | nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    setsockopt(&udp, sockopt::IpFreebind, &true)?;
    nix::sys::socket::bind(
        std::os::fd::AsRawFd::as_raw_fd(&udp),
        &nix::sys::socket::SockaddrStorage::from(address),
    )?;
    Ok((UdpSocket::from_std(udp.into())?, tcp))
}

/// Name servers by address, on the usual port.
pub fn on_port(addresses: impl IntoIterator<Item = IpAddr>) -> Vec<SocketAddr> {
    addresses.into_iter().map(|address| SocketAddr::new(address, PORT)).collect()
}
