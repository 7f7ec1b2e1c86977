//! What travels on a connection: stream kinds, message frames, close codes.
//!
//! | carrier | first byte | then |
//! |---|---|---|
//! | datagram | | one [`Message`] in postcard |
//! | unidirectional stream | [`MESSAGE`] | one [`Message`] in postcard, to the end of the stream |
//! | unidirectional stream | [`WELCOME`] | nothing: the side that was dialled has admitted the connection |
//! | bidirectional stream | [`HTTP`] | an HTTP/1.1 or HTTP/2 connection, forwarded to this node's API |

use std::sync::Arc;
use std::time::Duration;

use hivemind_core::event::Message;
use quinn::{RecvStream, VarInt};
use tokio::sync::Semaphore;

/// The TLS application protocol (ALPN). A change that old nodes cannot read gets a new number.
pub(super) const ALPN: &[u8] = b"hivemind/1";

/// First byte of a unidirectional stream with one message. Streams of other kinds are let be.
pub(super) const MESSAGE: u8 = 1;

/// First byte of the unidirectional stream by which the dialled side admits a connection.
pub(super) const WELCOME: u8 = 2;

/// First byte of a bidirectional stream that carries HTTP.
pub(super) const HTTP: u8 = 3;

/// The largest message, bytes: a full batch of records with documents of 1 MiB in base64 fits; a
/// node with 256 MB can hold a few at once.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;

/// Messages up to this size, bytes, are read as they come; larger ones wait for one of
/// [`LARGE_READS`] turns, so that many peers at once cannot fill memory.
const SMALL_MESSAGE_BYTES: usize = 128 * 1024;

/// How many large messages are read at the same time.
pub(super) const LARGE_READS: usize = 2;

/// How long a message may take from its first byte to its last. A peer that stalls longer has
/// lost its network, and the message is sent again by anti-entropy.
pub(super) const STREAM_TIMEOUT: Duration = Duration::from_secs(10);

/// How much of a close reason is sent and logged, bytes: a line.
pub(super) const MAX_REASON_BYTES: usize = 300;

/// Why an admitted connection is closed (QUIC application error codes).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum CloseCode {
    /// The node stops.
    Leaving = 0,
    /// Both sides dialled; the other connection is kept.
    Duplicate = 1,
    /// The node dialled itself.
    Myself = 2,
    /// The peer may not be a member; the reason says why.
    Refused = 3,
    /// The peer sent what is no message.
    Protocol = 4,
}

impl From<CloseCode> for VarInt {
    fn from(code: CloseCode) -> Self {
        VarInt::from_u32(code as u32)
    }
}

impl CloseCode {
    pub(super) fn is(self, code: VarInt) -> bool {
        VarInt::from(self) == code
    }
}

/// Why a message could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error("a message of more than {MAX_MESSAGE_BYTES} bytes")]
    TooLong,
    #[error("bytes that are no message ({0})")]
    Malformed(postcard::Error),
    #[error("bytes after the end of a message")]
    Trailing,
    /// Nobody is at fault: it is a later release's.
    #[error("a stream of the unknown kind {0}")]
    UnknownKind(u8),
    /// Nobody is at fault, and it is not for this release.
    #[error("a message of a kind that a later release knows")]
    Later,
    /// The stream or its connection ended; nobody is at fault.
    #[error("the stream ended early")]
    Ended,
}

impl WireError {
    /// Whether an honest peer of this version could not have caused it.
    pub(super) fn is_fault(&self) -> bool {
        !matches!(self, Self::Ended | Self::Later | Self::UnknownKind(_))
    }
}

/// A message as a frame for a stream; without its first byte it is the datagram.
pub(super) fn encode(message: &Message) -> Result<Vec<u8>, postcard::Error> {
    postcard::to_extend(message, vec![MESSAGE])
}

/// Reads a message from exactly these bytes.
pub(super) fn decode(bytes: &[u8]) -> Result<Message, WireError> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        Ok(_) => Err(WireError::Trailing),
        Err(_) if Message::is_later(bytes) => Err(WireError::Later),
        Err(error) => Err(WireError::Malformed(error)),
    }
}

/// Reads the first byte of a stream.
pub(super) async fn read_kind(stream: &mut RecvStream) -> Result<u8, WireError> {
    let mut kind = [0];
    stream.read_exact(&mut kind).await.map_err(|_| WireError::Ended)?;
    Ok(kind[0])
}

/// Reads one message to the end of its stream.
pub(super) async fn read_message(
    stream: &mut RecvStream,
    large: &Arc<Semaphore>,
) -> Result<Message, WireError> {
    let mut bytes = Vec::new();
    let mut turn = None;
    while let Some(chunk) =
        stream.read_chunk(SMALL_MESSAGE_BYTES, true).await.map_err(|_| WireError::Ended)?
    {
        if bytes.len() + chunk.bytes.len() > MAX_MESSAGE_BYTES {
            return Err(WireError::TooLong);
        }
        if turn.is_none() && bytes.len() + chunk.bytes.len() > SMALL_MESSAGE_BYTES {
            turn = Some(large.clone().acquire_owned().await.map_err(|_| WireError::Ended)?);
        }
        bytes.extend_from_slice(&chunk.bytes);
    }
    decode(&bytes)
}

/// A reason that a stranger gave, made fit for a log line.
pub(super) fn printable(reason: &[u8]) -> String {
    String::from_utf8_lossy(&reason[..reason.len().min(MAX_REASON_BYTES)])
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_goes_there_and_back_and_nothing_else_does() {
        let message = Message::Swim(vec![1, 2, 3]);
        let frame = encode(&message).unwrap();
        assert_eq!(frame[0], MESSAGE);
        assert_eq!(decode(&frame[1..]).unwrap(), message);
        let long = [&frame[1..], &[0]].concat();
        assert!(matches!(decode(&long), Err(WireError::Trailing)));
        assert!(matches!(decode(&[0xff; 40]), Err(WireError::Malformed(_))));
        assert!(matches!(decode(&[10, 1, 2, 3]), Err(WireError::Later)));
        assert!(matches!(decode(&[9, 200]), Err(WireError::Malformed(_))));
        assert!(matches!(decode(&[]), Err(WireError::Malformed(_))));
    }

    #[test]
    fn a_strangers_reason_cannot_forge_log_lines() {
        assert_eq!(printable(b"a\nERROR b\x1b[0m"), "a ERROR b [0m");
        assert_eq!(printable(&[b'x'; 1000]).len(), MAX_REASON_BYTES);
    }
}
