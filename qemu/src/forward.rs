//! Lets programs on the host reach into a lab: a TCP listener on the host's loopback, connections in the namespace.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{Context, Result};
use crate::network::Network;

/// Connections at a time: a browser opens six, a load test some dozens.
const CONNECTIONS_MAX: usize = 256;

/// A machine that is gone must not hold a client for the kernel's two minutes.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// A forwarded port, closed with all its connections when dropped.
#[derive(Debug)]
pub struct Forward {
    local: SocketAddr,
    target: SocketAddr,
    stop: UnixDatagram,
    acceptor: Option<JoinHandle<()>>,
}

impl Forward {
    pub(crate) fn start(port: u16, target: SocketAddr, network: Network) -> Result<Forward> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).context(format!("listen on 127.0.0.1:{port}"))?;
        let local = listener.local_addr().context("ask for the forwarded port")?;
        listener.set_nonblocking(true).context("set up the forwarded port")?;
        let (stop, stopped) = UnixDatagram::pair().context("set up the forwarded port")?;
        let acceptor = thread::Builder::new()
            .name("forward".into())
            .spawn(move || accept(&listener, &stopped, target, &network))
            .context("start the forwarder")?;
        Ok(Forward { local, target, stop, acceptor: Some(acceptor) })
    }

    /// Where programs of the host connect to.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Where the connections end in the lab.
    pub fn target(&self) -> SocketAddr {
        self.target
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.stop.send(&[0]);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// Both ends of each open connection, to close them when the forward ends.
type Open = Arc<Mutex<Vec<(usize, TcpStream, TcpStream)>>>;

fn accept(listener: &TcpListener, stopped: &UnixDatagram, target: SocketAddr, network: &Network) {
    let open: Open = Arc::default();
    let count = Arc::new(AtomicUsize::new(0));
    for number in 0.. {
        let Some(client) = next_client(listener, stopped) else {
            break;
        };
        // A client beyond the bound is closed at once, which it sees as a reset.
        if count.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
            count.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (network, open, count) = (network.clone(), Arc::clone(&open), Arc::clone(&count));
        thread::spawn(move || {
            // Either end going away ends the connection; there is nobody to tell.
            let _ = carry(number, client, target, &network, &open);
            open.lock().unwrap_or_else(PoisonError::into_inner).retain(|(other, ..)| *other != number);
            count.fetch_sub(1, Ordering::Relaxed);
        });
    }
    for (_, client, server) in open.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        let _ = client.shutdown(Shutdown::Both);
        let _ = server.shutdown(Shutdown::Both);
    }
}

/// The next connection, or nothing once the forward ends.
fn next_client(listener: &TcpListener, stopped: &UnixDatagram) -> Option<TcpStream> {
    loop {
        let mut watched = [
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut watched, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            Err(_) => return None,
            Ok(_) if watched[1].any().unwrap_or(true) => return None,
            Ok(_) => {}
        }
        // A client may have given up between the poll and here.
        if let Ok((client, _)) = listener.accept() {
            return Some(client);
        }
    }
}

fn carry(
    number: usize,
    client: TcpStream,
    target: SocketAddr,
    network: &Network,
    open: &Open,
) -> io::Result<()> {
    client.set_nonblocking(false)?;
    let server =
        network.enter(|| TcpStream::connect_timeout(&target, CONNECT_WITHIN)).map_err(io::Error::other)??;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let ends = (number, client.try_clone()?, server.try_clone()?);
    open.lock().unwrap_or_else(PoisonError::into_inner).push(ends);
    thread::scope(|scope| {
        scope.spawn(|| copy(&client, &server));
        copy(&server, &client);
    });
    Ok(())
}

/// Copies until the end of the stream and passes the end on, so that half-closed connections work.
fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    if io::copy(&mut from, &mut to).is_err() {
        let _ = from.shutdown(Shutdown::Both);
    }
    let _ = to.shutdown(Shutdown::Write);
}
