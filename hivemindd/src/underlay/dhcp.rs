//! A DHCP client (RFC 2131): asks, takes, renews.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, OptionCode};
use dhcproto::{Decodable as _, Decoder, Encodable as _, Encoder};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep, timeout_at};

use super::UnderlayError;
use super::link::{Link, Mac};

/// Ports of client and server (RFC 2131, section 4.1).
const CLIENT_PORT: u16 = 68;
const SERVER_PORT: u16 = 67;

/// First wait for an answer; doubles up to the last one. Shorter at first than RFC 2131's four
/// seconds, because a node's boot waits for it.
const FIRST_WAIT: Duration = Duration::from_millis(400);
const LAST_WAIT: Duration = Duration::from_secs(16);

/// Requests for one offer before asking anew.
const REQUESTS: u32 = 4;

/// The shortest lease honoured, seconds: less would be nothing but renewing.
const MIN_LEASE_S: u32 = 20;

/// The longest message read, bytes: what a server may send on Ethernet.
const MAX_MESSAGE: usize = 1500;

/// An address and what came with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) address: Ipv4Addr,
    pub(super) prefix: u8,
    pub(super) gateway: Option<Ipv4Addr>,
    pub(super) dns: Vec<Ipv4Addr>,
    pub(super) ntp: Vec<Ipv4Addr>,
    pub(super) seconds: u32,
    server: Ipv4Addr,
}

/// A client on one link.
pub(super) struct Client {
    socket: UdpSocket,
    mac: Mac,
}

/// What to put into a message.
#[derive(Debug, Clone, Copy)]
enum Ask<'a> {
    Discover,
    /// Takes an offer.
    Select(&'a Lease),
    /// Asks any server to extend the lease.
    Renew(&'a Lease),
}

impl Client {
    /// Listens on the link, which needs no address yet. Must be called within a tokio runtime.
    pub(super) fn open(link: &Link) -> Result<Self, UnderlayError> {
        let wrong = |source| UnderlayError::System { what: "opening the DHCP client's port", source };
        let socket = bound_to(&link.name).map_err(wrong)?;
        Ok(Self { socket: UdpSocket::from_std(socket).map_err(wrong)?, mac: link.mac })
    }

    /// Asks until there is a lease.
    pub(super) async fn discover(&self) -> Result<Lease, UnderlayError> {
        let mut wait = FIRST_WAIT;
        loop {
            if let Some(offer) = self.ask(Ask::Discover, MessageType::Offer, wait).await? {
                for attempt in 0..REQUESTS {
                    match self.ask(Ask::Select(&offer), MessageType::Ack, FIRST_WAIT * (1 << attempt)).await {
                        Ok(Some(lease)) => return Ok(lease),
                        Ok(None) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
            wait = (wait * 2).min(LAST_WAIT);
        }
    }

    /// Sleeps until the lease is half over, then asks for more until it is over. `None`: it is
    /// over, or the server took it back.
    pub(super) async fn renew(&self, lease: &Lease) -> Result<Option<Lease>, UnderlayError> {
        let granted = Instant::now();
        let all = Duration::from_secs(lease.seconds.into());
        sleep(all / 2).await;
        let mut wait = FIRST_WAIT;
        while granted.elapsed() < all {
            if let Some(renewed) = self.ask(Ask::Renew(lease), MessageType::Ack, wait).await? {
                return Ok(Some(renewed));
            }
            wait = (wait * 2).min(LAST_WAIT);
        }
        Ok(None)
    }

    /// Sends one message and waits for one kind of answer. `None`: none came in time, or a refusal.
    async fn ask(
        &self,
        ask: Ask<'_>,
        expected: MessageType,
        wait: Duration,
    ) -> Result<Option<Lease>, UnderlayError> {
        let wrong = |source| UnderlayError::System { what: "asking for an address by DHCP", source };
        let transaction = transaction().map_err(wrong)?;
        let bytes = encode(ask, self.mac, transaction).map_err(wrong)?;
        self.socket.send_to(&bytes, (Ipv4Addr::BROADCAST, SERVER_PORT)).await.map_err(wrong)?;
        let deadline = Instant::now() + wait;
        let mut buffer = [0; MAX_MESSAGE];
        while let Ok(received) = timeout_at(deadline, self.socket.recv(&mut buffer)).await {
            let length = received.map_err(wrong)?;
            match answer(&buffer[..length], self.mac, transaction) {
                Some((kind, Some(lease))) if kind == expected => return Ok(Some(lease)),
                Some((MessageType::Nak, _)) => {
                    // Whoever refuses is asked again, but not at once.
                    tokio::time::sleep_until(deadline).await;
                    return Ok(None);
                }
                _ => {}
            }
        }
        Ok(None)
    }
}

/// A socket that sends and hears on this link only, also before it has an address.
fn bound_to(interface: &str) -> io::Result<std::net::UdpSocket> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, socket};
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    setsockopt(&socket, sockopt::Broadcast, &true)?;
    setsockopt(&socket, sockopt::BindToDevice, &interface.into())?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &SockaddrIn::new(0, 0, 0, 0, CLIENT_PORT))?;
    Ok(socket.into())
}

fn transaction() -> io::Result<u32> {
    let mut bytes = [0; 4];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes)
        .map_err(|_| io::Error::other("no randomness"))?;
    Ok(u32::from_be_bytes(bytes))
}

fn encode(ask: Ask<'_>, mac: Mac, transaction: u32) -> io::Result<Vec<u8>> {
    let mut message = Message::default();
    // Broadcast: the kernel drops unicast to an address that it does not have yet.
    message.set_flags(Flags::default().set_broadcast()).set_chaddr(&mac).set_xid(transaction);
    if let Ask::Renew(lease) = ask {
        message.set_ciaddr(lease.address);
    }
    let options = message.opts_mut();
    let kind = if matches!(ask, Ask::Discover) { MessageType::Discover } else { MessageType::Request };
    options.insert(DhcpOption::MessageType(kind));
    // Hardware type 1 and the address (RFC 2132, section 9.14).
    options.insert(DhcpOption::ClientIdentifier([&[1], mac.as_slice()].concat()));
    options.insert(DhcpOption::ParameterRequestList(vec![
        OptionCode::SubnetMask,
        OptionCode::Router,
        OptionCode::DomainNameServer,
        OptionCode::NtpServers,
        OptionCode::AddressLeaseTime,
    ]));
    if let Ask::Select(lease) = ask {
        options.insert(DhcpOption::RequestedIpAddress(lease.address));
        options.insert(DhcpOption::ServerIdentifier(lease.server));
    }
    let mut bytes = Vec::new();
    message.encode(&mut Encoder::new(&mut bytes)).map_err(io::Error::other)?;
    Ok(bytes)
}

/// What kind of answer to our transaction this is, and the lease in it, if it is a whole one.
fn answer(bytes: &[u8], mac: Mac, transaction: u32) -> Option<(MessageType, Option<Lease>)> {
    let message = Message::decode(&mut Decoder::new(bytes)).ok()?;
    if message.xid() != transaction || !message.chaddr().starts_with(&mac) {
        return None;
    }
    let kind = message.opts().msg_type()?;
    Some((kind, lease(&message)))
}

fn lease(message: &Message) -> Option<Lease> {
    let option = |code| message.opts().get(code);
    let servers = |code| match option(code) {
        Some(DhcpOption::DomainNameServer(servers) | DhcpOption::NtpServers(servers)) => servers.clone(),
        _ => Vec::new(),
    };
    let Some(DhcpOption::SubnetMask(mask)) = option(OptionCode::SubnetMask) else { return None };
    let Some(DhcpOption::AddressLeaseTime(seconds)) = option(OptionCode::AddressLeaseTime) else {
        return None;
    };
    let Some(DhcpOption::ServerIdentifier(server)) = option(OptionCode::ServerIdentifier) else {
        return None;
    };
    let gateway = match option(OptionCode::Router) {
        Some(DhcpOption::Router(gateways)) => gateways.first().copied(),
        _ => None,
    };
    (!message.yiaddr().is_unspecified()).then(|| Lease {
        address: message.yiaddr(),
        prefix: u8::try_from(mask.to_bits().leading_ones()).unwrap_or(32),
        gateway,
        dns: servers(OptionCode::DomainNameServer),
        ntp: servers(OptionCode::NtpServers),
        seconds: (*seconds).max(MIN_LEASE_S),
        server: *server,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 1];

    fn offer(transaction: u32, chaddr: Mac) -> Vec<u8> {
        let mut message = Message::default();
        message.set_xid(transaction).set_chaddr(&chaddr).set_yiaddr([192, 0, 2, 9]);
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(MessageType::Offer));
        options.insert(DhcpOption::SubnetMask([255, 255, 255, 0].into()));
        options.insert(DhcpOption::Router(vec![[192, 0, 2, 1].into()]));
        options.insert(DhcpOption::DomainNameServer(vec![[192, 0, 2, 53].into()]));
        options.insert(DhcpOption::AddressLeaseTime(3600));
        options.insert(DhcpOption::ServerIdentifier([192, 0, 2, 1].into()));
        let mut bytes = Vec::new();
        message.encode(&mut Encoder::new(&mut bytes)).unwrap();
        bytes
    }

    #[test]
    fn only_an_answer_to_this_machine_and_question_is_taken() {
        let (kind, lease) = answer(&offer(7, MAC), MAC, 7).unwrap();
        let lease = lease.unwrap();
        assert_eq!(kind, MessageType::Offer);
        assert_eq!((lease.address, lease.prefix), (Ipv4Addr::new(192, 0, 2, 9), 24));
        assert_eq!(lease.dns, [Ipv4Addr::new(192, 0, 2, 53)]);
        assert!(answer(&offer(8, MAC), MAC, 7).is_none());
        assert!(answer(&offer(7, [2, 0, 0, 0, 0, 2]), MAC, 7).is_none());
        assert!(answer(&[0; 300], MAC, 7).is_none());
        assert!(answer(b"x", MAC, 7).is_none());
    }

    #[test]
    fn a_request_names_the_address_and_the_server_that_offered_it() {
        let (_, lease) = answer(&offer(7, MAC), MAC, 7).unwrap();
        let bytes = encode(Ask::Select(&lease.unwrap()), MAC, 9).unwrap();
        let message = Message::decode(&mut Decoder::new(&bytes)).unwrap();
        assert_eq!(message.opts().msg_type(), Some(MessageType::Request));
        let requested = message.opts().get(OptionCode::RequestedIpAddress);
        assert_eq!(requested, Some(&DhcpOption::RequestedIpAddress([192, 0, 2, 9].into())));
    }
}
