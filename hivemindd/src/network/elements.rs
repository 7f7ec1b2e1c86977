//! Elements of the sets of our table of the bridge, put in and taken out by netlink (nf_tables): all that changes when
//! a container comes or goes.
//!
//! For what changes the rules themselves there is the `nft` program. It makes the whole table, which for the addresses of
//! hundreds of machines is too much to do whenever one of them changes.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::nft::TABLE;
use crate::netlink::{HEADER_BYTES, messages};

/// Kinds of messages, their flags and their attributes (`linux/netlink.h`, `linux/netfilter/nfnetlink.h` and
/// `nf_tables.h`).
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const ERROR: u16 = 2;
const SUBSYSTEM: u16 = 10;
const NEW_ELEMENT: u16 = (SUBSYSTEM << 8) | 12;
const DELETE_ELEMENT: u16 = (SUBSYSTEM << 8) | 14;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const CREATE: u16 = 0x400;
const FAMILY_BRIDGE: u8 = 7;
const NESTED: u16 = 0x8000;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const LIST_ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const DATA_VALUE: u16 = 1;

/// Bytes of an interface's name in a key (`IFNAMSIZ`).
const NAME_BYTES: usize = 16;

/// Changes in one transaction, at most: beyond that the whole table is made anew. Their messages and the answers fit the
/// socket's buffers.
const MAX_CHANGES: usize = 256;

/// How long the kernel may take to answer: it does so at once.
const PATIENCE_S: i64 = 5;

/// One element more or less.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) set: String,
    pub(super) element: Element,
    /// Whether it is put in; else it is taken out.
    pub(super) is_in: bool,
}

/// An element of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Element {
    Address(Ipv4Addr),
    /// An interface and an address.
    Owner(String, Ipv4Addr),
}

impl Element {
    /// As the kernel compares it.
    fn key(&self) -> Vec<u8> {
        match self {
            Self::Address(address) => address.octets().to_vec(),
            Self::Owner(interface, address) => {
                let mut key = interface.as_bytes().to_vec();
                key.resize(NAME_BYTES, 0);
                key.extend(address.octets());
                key
            }
        }
    }
}

/// Makes all the changes, or none.
///
/// # Errors
/// When the kernel refuses one, as it does when the table is not as it was made.
pub(super) fn make(changes: &[Change]) -> io::Result<()> {
    if changes.len() > MAX_CHANGES {
        return Err(io::Error::other(format!("more than {MAX_CHANGES} changes")));
    }
    if changes.is_empty() {
        return Ok(());
    }
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE_S))?;
    send(socket.as_raw_fd(), &transaction(changes), MsgFlags::empty())?;
    acknowledged(&socket, changes.len())
}

/// Waits for an answer to each of the changes.
fn acknowledged(socket: &OwnedFd, mut left: usize) -> io::Result<()> {
    let mut buffer = [0; 8 * 1024];
    while left > 0 {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        for (_, body) in messages(&buffer[..length]).filter(|(kind, _)| *kind == ERROR) {
            match body.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
                Some(0) => left = left.saturating_sub(1),
                Some(code) => return Err(io::Error::from_raw_os_error(code.saturating_neg())),
                None => {}
            }
        }
    }
    Ok(())
}

fn transaction(changes: &[Change]) -> Vec<u8> {
    let mut bytes = message(BATCH_BEGIN, REQUEST, (0, SUBSYSTEM), 0, &[]);
    for (number, change) in (1..).zip(changes) {
        let key = attribute(DATA_VALUE, &change.element.key());
        let element = attribute(NESTED | LIST_ELEMENT, &attribute(NESTED | ELEMENT_KEY, &key));
        let name = |text: &str| [text.as_bytes(), &[0]].concat();
        let body = [
            attribute(LIST_TABLE, &name(TABLE)),
            attribute(LIST_SET, &name(&change.set)),
            attribute(NESTED | LIST_ELEMENTS, &element),
        ]
        .concat();
        let (kind, flags) = if change.is_in { (NEW_ELEMENT, CREATE) } else { (DELETE_ELEMENT, 0) };
        bytes.extend(message(kind, REQUEST | ACKNOWLEDGE | flags, (FAMILY_BRIDGE, 0), number, &body));
    }
    bytes.extend(message(BATCH_END, REQUEST, (0, SUBSYSTEM), 0, &[]));
    bytes
}

/// A message with `struct nlmsghdr` and `struct nfgenmsg`: family and resource.
fn message(kind: u16, flags: u16, (family, resource): (u8, u16), number: u32, body: &[u8]) -> Vec<u8> {
    // No more than a name, a number and a key each.
    let length = u32::try_from(HEADER_BYTES + 4 + body.len()).unwrap_or(u32::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(number.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(body);
    bytes
}

/// An attribute, filled up to four bytes (`struct nlattr`).
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
