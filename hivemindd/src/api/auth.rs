//! Who asks: every request but the open ones is signed (RFC 9421) by a live key; every role may read.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Mutex, PoisonError};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;
use hivemind_core::time::Time;
use hivemind_spec::http_signature::{self, ReceivedFields, TOLERANCE_S};
use hivemind_spec::id::KeyId;
use hivemind_spec::key::PublicKey;
use hivemind_spec::problem::Problem;

use super::Context;
use super::refusal::Refusal;

/// The largest body of a signed request, bytes: reads have none, and signed orders are short.
const MAX_SIGNED_BODY_BYTES: usize = 64 * 1024;

/// Requests remembered so that none is answered twice: about 100 bytes each, and two minutes of
/// far more requests than a small node can answer.
const MAX_SEEN: usize = 50_000;

/// Requests seen lately.
#[derive(Debug, Default)]
pub struct Seen {
    /// The monotonic clock when this memory began, milliseconds.
    since_ms: u64,
    until_s: Mutex<BTreeMap<(KeyId, String), u64>>,
}

impl Seen {
    /// An empty memory that begins now.
    pub fn since(now: Time) -> Self {
        Self { since_ms: now.mono_ms, until_s: Mutex::default() }
    }

    /// When a request may have been signed that is not stale, seconds since 1970. One from before
    /// this memory began may have been answered by the agent that ran then, and is refused; the
    /// second more is for times in whole seconds.
    fn fresh(&self, now: Time) -> RangeInclusive<u64> {
        let (now_s, age_s) = (now.wall_ms / 1000, now.mono_ms.saturating_sub(self.since_ms) / 1000);
        let usual = http_signature::fresh_at(now_s);
        now_s.saturating_sub(age_s + 1).max(*usual.start())..=*usual.end()
    }

    /// Remembers a request and says whether it came before.
    fn before(&self, key: KeyId, nonce: &str, now_s: u64) -> bool {
        let mut seen = self.until_s.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= MAX_SEEN {
            seen.retain(|_, until_s| *until_s >= now_s);
        }
        // Still full: rather refuse a new request as seen than answer an old one again.
        seen.len() >= MAX_SEEN
            || seen
                .insert((key, nonce.to_owned()), now_s + 2 * TOLERANCE_S)
                .is_some_and(|until| until >= now_s)
    }
}

/// Lets a request through when a live key signed it.
pub(super) async fn require_signature(
    State(context): State<Context>,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let (parts, body) = request.into_parts();
    let held = context.bodies.read(body, MAX_SIGNED_BODY_BYTES).await?;
    let known: BTreeMap<KeyId, PublicKey> = context
        .agent
        .read(|node, _| {
            let live = node.operators().filter(|(_, holder)| holder.is_live());
            live.map(|(id, holder)| (*id, holder.public)).collect()
        })
        .await?;
    let authority = parts.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let now = context.clock.now();
    let now_s = now.wall_ms / 1000;
    let fields = Fields::from(&parts.headers);
    let signed = http_signature::Request {
        method: parts.method.as_str(),
        authority,
        path: parts.uri.path(),
        query: parts.uri.query(),
        body: &held.bytes,
    };
    // Every role may read, so a live key is enough.
    http_signature::verify(
        signed,
        fields.received(),
        |id| known.get(id).copied(),
        now_s,
        context.seen.fresh(now),
        |key, nonce| context.seen.before(*key, nonce, now_s),
    )
    .map_err(Problem::from)?;
    Ok(next.run(Request::from_parts(parts, Body::from(held.bytes.clone()))).await)
}

/// The signature's fields with repeated ones joined (RFC 9110, section 5.3).
struct Fields {
    signature_input: Option<String>,
    signature: Option<String>,
    content_digest: Option<String>,
}

impl From<&HeaderMap> for Fields {
    fn from(headers: &HeaderMap) -> Self {
        let joined = |name: &str| {
            let values: Vec<&str> =
                headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
            (!values.is_empty()).then(|| values.join(", "))
        };
        Self {
            signature_input: joined("signature-input"),
            signature: joined("signature"),
            content_digest: joined("content-digest"),
        }
    }
}

impl Fields {
    fn received(&self) -> ReceivedFields<'_> {
        ReceivedFields {
            signature_input: self.signature_input.as_deref(),
            signature: self.signature.as_deref(),
            content_digest: self.content_digest.as_deref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_answered_once() {
        let (seen, key) = (Seen::default(), KeyId::of(b"a"));
        assert!(!seen.before(key, "nonce-1", 100));
        assert!(seen.before(key, "nonce-1", 101));
        assert!(!seen.before(KeyId::of(b"b"), "nonce-1", 101));
        assert!(!seen.before(key, "nonce-2", 101));
    }

    #[test]
    fn what_an_agent_before_this_one_may_have_answered_is_not_answered_again() {
        let at = |seconds: u64| Time { mono_ms: seconds * 1000, wall_ms: (1_000_000 + seconds) * 1000 };
        let seen = Seen::since(at(500));
        assert_eq!(seen.fresh(at(502)), 1_000_499..=1_000_562);
        assert_eq!(seen.fresh(at(700)), 1_000_640..=1_000_760);
        // The wall clock was set back: what counts is how long this memory reaches.
        let back = Time { mono_ms: 510_000, wall_ms: 400_000_000 };
        assert_eq!(seen.fresh(back), 399_989..=400_060);
    }
}
