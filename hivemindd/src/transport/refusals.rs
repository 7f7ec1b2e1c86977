//! The log lines about connections that did not come to be, on both sides, and no more of them
//! than a person can read.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use quinn::ConnectionError;
use tokio::time::Instant;

use super::wire::{CloseCode, printable};

/// The same line about the same address comes once in this time.
const SAME_LINE: Duration = Duration::from_secs(60);

/// Lines in [`SAME_LINE`] about all addresses together: strangers can make up addresses.
const MAX_LINES: usize = 30;

/// What quinn and rustls put before the words of a certificate's verifier.
const OTHER_ERROR: &str = "other error: ";

/// How certificate errors speak of the peer.
const PEERS: &str = "its ";

/// Who refused whom, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Refusal {
    /// This node refused the peer.
    Ours(String),
    /// The peer refused this node.
    Theirs(String),
}

impl Refusal {
    /// Reads a connection's end. `None` when nobody refused anybody (time-out, restart, duplicate).
    pub(super) fn of(error: &ConnectionError) -> Option<Self> {
        match error {
            ConnectionError::TransportError(error) => {
                Some(Self::Ours(error.reason.strip_prefix(OTHER_ERROR).unwrap_or(&error.reason).to_owned()))
            }
            ConnectionError::ConnectionClosed(close) => {
                let reason = printable(&close.reason);
                let reason = reason.strip_prefix(OTHER_ERROR).unwrap_or(&reason);
                Some(Self::Theirs(match reason.strip_prefix(PEERS) {
                    Some(rest) => format!("this node's {rest}"),
                    None if reason.is_empty() => close.error_code.to_string(),
                    None => reason.to_owned(),
                }))
            }
            ConnectionError::ApplicationClosed(close)
                if [CloseCode::Refused, CloseCode::Protocol].iter().any(|code| code.is(close.error_code)) =>
            {
                Some(Self::Theirs(printable(&close.reason)))
            }
            ConnectionError::VersionMismatch => {
                Some(Self::Ours("it speaks no version of QUIC that is known here".to_owned()))
            }
            _ => None,
        }
    }

    fn line(&self, address: SocketAddr) -> String {
        match self {
            Self::Ours(reason) => format!("refused {address}: {reason}"),
            Self::Theirs(reason) => format!("refused by {address}: {reason}"),
        }
    }
}

/// Writes refusals to the log.
#[derive(Debug, Default)]
pub(super) struct RefusalLog {
    written: Mutex<BTreeMap<(SocketAddr, Refusal), Instant>>,
}

impl RefusalLog {
    pub(super) fn write(&self, address: SocketAddr, refusal: Refusal) {
        if let Some(line) = self.due(address, refusal, Instant::now()) {
            tracing::warn!("{line}");
        }
    }

    fn due(&self, address: SocketAddr, refusal: Refusal, now: Instant) -> Option<String> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.retain(|_, when| now - *when < SAME_LINE);
        let line = refusal.line(address);
        let due = written.len() < MAX_LINES && !written.contains_key(&(address, refusal.clone()));
        due.then(|| {
            written.insert((address, refusal), now);
            line
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_cannot_flood_the_log() {
        let log = RefusalLog::default();
        let now = Instant::now();
        let due = |port: u16, text: &str, at| {
            log.due(SocketAddr::new([10, 0, 0, 1].into(), port), Refusal::Ours(text.into()), at)
        };
        assert_eq!(due(1, "why", now).as_deref(), Some("refused 10.0.0.1:1: why"));
        assert_eq!(due(1, "why", now), None);
        assert!(due(1, "another why", now).is_some());
        assert_eq!((2..1000).filter(|port| due(*port, "why", now).is_some()).count(), MAX_LINES - 2);
        assert!(due(1, "why", now + SAME_LINE).is_some());
    }
}
