//! Being told when the kernel's network changes (rtnetlink(7), multicast groups), and when devices come and go.
//!
//! It tells that something changed and on which interface, not what: whoever is told compares what
//! is wanted with what is. Events that do not fit the kernel's buffer are lost and count as a change.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::unix::AsyncFd;

/// What can be watched: group masks of `linux/rtnetlink.h`.
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub(crate) enum Group {
    /// Links.
    Link = 1,
    /// Neighbours and forwarding entries.
    Neighbour = 4,
    /// IPv4 addresses.
    Address = 0x10,
    /// IPv4 routes.
    Route = 0x40,
}

/// The group in which the kernel itself tells of devices (`kobject_uevent.c`).
const KERNEL_UEVENTS: u32 = 1;

/// Bytes read at once. Messages are well below; the rest of a longer one is not looked at.
const READ_BYTES: usize = 8 * 1024;

/// Bytes of `struct nlmsghdr`, which begins with length and type.
pub(crate) const HEADER_BYTES: usize = 16;

/// Message types about links, addresses and neighbours (`RTM_NEWLINK` and so on).
const LINKS: std::ops::Range<u16> = 16..20;
const ADDRESSES: std::ops::Range<u16> = 20..24;
const NEIGHBOURS: std::ops::Range<u16> = 28..32;

/// A change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Of a link, of its flags or its carrier.
    Link(u32),
    /// Of an address of a link.
    Address(u32),
    /// Of a neighbour or forwarding entry on a link.
    Neighbour(u32),
    /// Of something else, or of something that was missed.
    Other,
}

/// Tells of changes from the time it was opened.
pub(crate) struct Changes {
    socket: Socket,
}

impl Changes {
    /// Starts listening to these groups. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub(crate) fn open(groups: &[Group]) -> io::Result<Self> {
        let mask = groups.iter().fold(0, |mask, group| mask | *group as u32);
        Ok(Self { socket: Socket::listen(SockProtocol::NetlinkRoute, mask)? })
    }

    /// Waits for a change of which `matters` is true. May be dropped and called again; nothing is
    /// lost by that.
    ///
    /// # Errors
    /// When the socket fails.
    pub(crate) async fn next(&self, matters: impl Fn(Change) -> bool) -> io::Result<()> {
        let mut buffer = [0; READ_BYTES];
        loop {
            let told = match self.socket.read(&mut buffer).await? {
                None => matters(Change::Other),
                Some(datagram) => read_all(datagram).any(&matters),
            };
            if told {
                return Ok(());
            }
        }
    }
}

/// Tells of devices from the time it was opened (`kobject_uevent.c`).
pub(crate) struct DeviceEvents {
    socket: Socket,
}

impl DeviceEvents {
    /// Starts listening. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self { socket: Socket::listen(SockProtocol::NetlinkKObjectUEvent, KERNEL_UEVENTS)? })
    }

    /// Waits for one that came or went and has a driver or a place below `/dev`. What was missed may have been one.
    ///
    /// # Errors
    /// When the socket fails.
    pub(crate) async fn next(&self) -> io::Result<()> {
        let mut buffer = [0; READ_BYTES];
        while self.socket.read(&mut buffer).await?.is_some_and(|text| !is_of_device(text)) {}
        Ok(())
    }
}

/// Whether an event is about something that drivers are found for, or that has a place below `/dev`: words `NAME=VALUE`,
/// each ended by a zero, after a first one of another kind.
fn is_of_device(text: &[u8]) -> bool {
    let mut words = text.split(|byte| *byte == 0);
    words.any(|word| word.starts_with(b"MODALIAS=") || word.starts_with(b"DEVNAME="))
}

/// A socket on which the kernel tells something.
struct Socket(AsyncFd<OwnedFd>);

impl Socket {
    fn listen(protocol: SockProtocol, mask: u32) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, mask))?;
        // SAFETY: an `OwnedFd` names the same open file description for as long as it lives, and it
        // lives as long as what it is registered with.
        Ok(Self(unsafe { AsyncFd::register(socket) }?))
    }

    /// What the kernel tells next; none when it could not keep it all.
    async fn read<'a>(&self, buffer: &'a mut [u8; READ_BYTES]) -> io::Result<Option<&'a [u8]>> {
        loop {
            let mut ready = self.0.readable().await?;
            let read =
                ready.try_io(|socket| match recv(socket.as_raw_fd(), &mut buffer[..], MsgFlags::empty()) {
                    Err(Errno::ENOBUFS) => Ok(None),
                    other => Ok(other.map(Some)?),
                });
            match read {
                Err(_) => {}
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Ok(Ok(None)) => return Ok(None),
                Ok(Ok(Some(length))) => return Ok(Some(&buffer[..length])),
            }
        }
    }
}

/// The messages of a datagram: the type of each, and what follows its header, up to the datagram's end.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let body = bytes.get(HEADER_BYTES..).unwrap_or_default();
        // Messages are aligned to four bytes.
        bytes = bytes.get(length.max(HEADER_BYTES).next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// The changes that a datagram of messages tells of.
fn read_all(bytes: &[u8]) -> impl Iterator<Item = Change> {
    messages(bytes).map(|(kind, body)| {
        // `ifinfomsg`, `ifaddrmsg` and `ndmsg` all have the link's index at this place.
        let index = body.get(4..8).and_then(|bytes| Some(u32::from_ne_bytes(bytes.try_into().ok()?)));
        match index {
            Some(index) if LINKS.contains(&kind) => Change::Link(index),
            Some(index) if ADDRESSES.contains(&kind) => Change::Address(index),
            Some(index) if NEIGHBOURS.contains(&kind) => Change::Neighbour(index),
            _ => Change::Other,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_devices_say_whether_there_is_a_driver_or_a_place_to_look_for() {
        let told = |text: &str| is_of_device(text.replace('|', "\0").as_bytes());
        let usb =
            "add@/devices/usb1/1-1|ACTION=add|SUBSYSTEM=usb|DEVNAME=bus/usb/001/002|MODALIAS=usb:v0403p6001|";
        assert!(told(usb));
        assert!(told("add@/devices/pci|ACTION=add|SUBSYSTEM=pci|MODALIAS=pci:v1|"));
        assert!(told("add@/devices/tty|ACTION=add|SUBSYSTEM=tty|DEVNAME=ttyUSB0|"));
        assert!(!told("add@/devices/virtual/net/veth1|ACTION=add|SUBSYSTEM=net|INTERFACE=veth1|"));
        assert!(!told(""));
    }

    fn message(kind: u16, index: u32, rest: usize) -> Vec<u8> {
        let length = HEADER_BYTES + 8 + rest;
        let mut bytes = u32::try_from(length).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 14]);
        bytes.extend(index.to_ne_bytes());
        bytes.resize(length.next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn messages_are_told_apart_and_junk_ends_them() {
        let bytes = [message(16, 3, 5), message(20, 4, 0), message(29, 5, 2), message(24, 6, 4)].concat();
        let changes: Vec<_> = read_all(&bytes).collect();
        assert_eq!(changes, [Change::Link(3), Change::Address(4), Change::Neighbour(5), Change::Other]);
        assert_eq!(read_all(&[]).count(), 0);
        assert_eq!(read_all(&[0; 3]).count(), 0);
        // A length of nothing must not go on for ever.
        assert!(read_all(&[0; 100]).count() < 10);
        assert_eq!(read_all(&[0xff; 100]).count(), 1);
    }
}
