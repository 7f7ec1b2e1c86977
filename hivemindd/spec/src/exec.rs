//! `GET /v1/exec/{namespace}/{workload}?request=…`: a command in a running container, with somebody at its other end.
//!
//! A WebSocket (RFC 6455) carries it. What is to run is in the query, as the JSON of an [`ExecRequest`], because the
//! request's signature covers that. Then messages:
//!
//! ```text
//!   client                                              node
//!     |-- binary: input -------------------------------->|
//!     |-- text: JSON of FromClient --------------------->|
//!     |<- binary: one byte of OutputStream, then output -|
//!     |<- text: JSON of FromNode ------------------------|  its last message says how it ended
//! ```
//!
//! Neither side sends more than [`WINDOW_BYTES`] of which the other has not said that it was taken: so both may be slow
//! for as long as they like, and what is said beside is heard all the same. The node pings; a side that hears nothing
//! for [`SILENT`] takes the other for gone, and a command whose client is gone is ended.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::problem::Problem;

/// How often the node pings.
pub const PING_EVERY: Duration = Duration::from_secs(15);

/// After how much silence the other side is taken for gone: a few pings on a bad line.
pub const SILENT: Duration = Duration::from_secs(60);

/// How much of input, and of output, may be under way, bytes: enough for a fast line, little enough for many sessions.
pub const WINDOW_BYTES: usize = 256 * 1024;

/// The largest piece of input or output in a message, bytes.
pub const MAX_DATA_BYTES: usize = 16 * 1024;

/// The largest message of either side, bytes: data, or words.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024;

/// What is to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExecRequest {
    /// Program and arguments; no shell is in between.
    pub command: Vec<String>,
    /// Added to the environment of the container's own command, and before it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// The directory it starts in, absolute; absent: that of the container's own command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Whose it is, as `uid`, `uid:gid`, `name` or `name:group` of the image's users and groups; absent: that of the
    /// container's own command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The size of its terminal; absent: it has none, and what it prints to its two streams is told apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
}

/// What is to run in a container of its own that shares processes, network and memory segments with a container of a workload
/// (`GET /v1/debug/{namespace}/{workload}?request=…`). It ends with the conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DebugRequest {
    /// The image of the tools.
    pub image: String,
    /// Program and arguments; none: the image's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// The size of its terminal; absent: it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
}

/// How somebody is at a container's own command (`GET /v1/attach/{namespace}/{workload}?request=…`), which goes on when the
/// conversation ends. It has a terminal of its own or none, whatever the other end has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AttachRequest {
    /// The size that its terminal is to have; absent: as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
}

/// The size of a terminal, characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TerminalSize {
    /// In a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// What a client says beside input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum FromClient {
    /// The terminal has another size.
    Resize(TerminalSize),
    /// There is no more input. Without a terminal, that is how a command's input ends.
    EndOfInput {},
    /// So much output has found its reader.
    Taken {
        /// Since the last such message.
        bytes: u64,
    },
}

/// Where output comes from; the first byte of a message with output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum OutputStream {
    /// Standard output, or the terminal.
    Stdout = 1,
    /// Standard error.
    Stderr = 2,
}

impl OutputStream {
    /// A message of the node's with its stream. None if it is no such message.
    pub fn split(message: &[u8]) -> Option<(Self, &[u8])> {
        match message {
            [1, output @ ..] => Some((Self::Stdout, output)),
            [2, output @ ..] => Some((Self::Stderr, output)),
            _ => None,
        }
    }
}

/// What a node says beside output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum FromNode {
    /// The command has read so much input, or reads no more.
    Taken {
        /// Since the last such message.
        bytes: u64,
    },
    /// The command ended.
    Exited {
        /// Its exit code, or 128 and the number of the signal that ended it.
        code: u32,
    },
    /// It did not start, or what became of it is not known.
    Failed(Problem),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_says_where_it_comes_from() {
        assert_eq!(OutputStream::split(b"\x01out"), Some((OutputStream::Stdout, b"out".as_slice())));
        assert_eq!(OutputStream::split(b"\x02"), Some((OutputStream::Stderr, b"".as_slice())));
        assert_eq!(OutputStream::split(b"\x03x"), None);
        assert_eq!(OutputStream::split(b""), None);
    }

    #[test]
    fn what_is_said_has_stable_forms() {
        let input = |value: &FromClient| serde_json::to_string(value).unwrap();
        let size = TerminalSize { columns: 80, rows: 24 };
        assert_eq!(input(&FromClient::Resize(size)), r#"{"resize":{"columns":80,"rows":24}}"#);
        assert_eq!(input(&FromClient::EndOfInput {}), r#"{"endOfInput":{}}"#);
        let end = serde_json::to_string(&FromNode::Exited { code: 3 }).unwrap();
        assert_eq!(end, r#"{"exited":{"code":3}}"#);
    }
}
