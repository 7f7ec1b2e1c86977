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
use super::forward::{FORWARDED_AT, FromPeer};
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
    /// By the monotonic clock, milliseconds: until when they must be remembered.
    until_ms: Mutex<BTreeMap<(KeyId, String), u64>>,
}

impl Seen {
    /// An empty memory that begins now.
    pub fn since(now: Time) -> Self {
        Self { since_ms: now.mono_ms, until_ms: Mutex::default() }
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
    fn before(&self, key: KeyId, nonce: &str, now: Time) -> bool {
        let mut seen = self.until_ms.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= MAX_SEEN {
            seen.retain(|_, until_ms| *until_ms >= now.mono_ms);
        }
        // Still full: rather refuse a new request as seen than answer an old one again.
        let until_ms = now.mono_ms + 2 * TOLERANCE_S * 1000;
        seen.len() >= MAX_SEEN || seen.insert((key, nonce.to_owned()), until_ms).is_some()
    }
}

/// The key that signed a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Signer(pub(super) KeyId);

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
    let now = signers_now(context.clock.now(), parts.extensions.get::<FromPeer>(), &parts.headers);
    let fields = Fields::from(&parts.headers);
    let signed = http_signature::Request {
        method: parts.method.as_str(),
        authority,
        path: parts.uri.path(),
        query: parts.uri.query(),
        body: &held.bytes,
    };
    // Every role may read, so a live key is enough here.
    let signer = http_signature::verify(
        signed,
        fields.received(),
        |id| known.get(id).copied(),
        now.wall_ms / 1000,
        context.seen.fresh(now),
        |key, nonce| context.seen.before(*key, nonce, now),
    )
    .map_err(Problem::from)?;
    let mut request = Request::from_parts(parts, Body::from(held.bytes.clone()));
    request.extensions_mut().insert(Signer(signer));
    Ok(next.run(request).await)
}

/// The time by which a request is fresh or stale. One that another node forwards was fresh by that
/// node's clock, which may be decades from this one's (decision 0086).
fn signers_now(now: Time, peer: Option<&FromPeer>, headers: &HeaderMap) -> Time {
    let said = peer.and_then(|_| headers.get(FORWARDED_AT)?.to_str().ok()?.parse().ok());
    Time { wall_ms: said.unwrap_or(now.wall_ms), ..now }
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

    fn at(seconds: u64) -> Time {
        Time { mono_ms: seconds * 1000, wall_ms: (1_000_000 + seconds) * 1000 }
    }

    #[test]
    fn a_request_is_answered_once_however_the_clocks_jump() {
        let (seen, key) = (Seen::default(), KeyId::of(b"a"));
        assert!(!seen.before(key, "nonce-1", at(100)));
        assert!(seen.before(key, "nonce-1", at(101)));
        assert!(seen.before(key, "nonce-1", Time { wall_ms: 5, ..at(400) }));
        assert!(!seen.before(KeyId::of(b"b"), "nonce-1", at(101)));
        assert!(!seen.before(key, "nonce-2", at(101)));
    }

    #[test]
    fn the_memory_of_requests_is_bounded_and_what_may_still_be_fresh_stays_in_it() {
        let (seen, key) = (Seen::default(), KeyId::of(b"a"));
        let accepted = |n: usize, now: Time| !seen.before(key, &format!("nonce-{n}"), now);
        assert!((0..MAX_SEEN).all(|n| accepted(n, at(0))));
        assert!(!accepted(MAX_SEEN, at(2 * TOLERANCE_S)), "no room, and all may still be fresh");
        assert!(accepted(MAX_SEEN, at(2 * TOLERANCE_S + 1)));
    }

    #[test]
    fn only_another_node_says_by_which_clock_a_request_is_fresh() {
        let mut headers = HeaderMap::new();
        headers.insert(FORWARDED_AT, "4102444800000".parse().unwrap());
        assert_eq!(signers_now(at(7), None, &headers), at(7));
        let forwarded = signers_now(at(7), Some(&FromPeer), &headers);
        assert_eq!(forwarded, Time { wall_ms: 4_102_444_800_000, ..at(7) });
        assert_eq!(signers_now(at(7), Some(&FromPeer), &HeaderMap::new()), at(7));
    }

    #[test]
    fn what_an_agent_before_this_one_may_have_answered_is_not_answered_again() {
        let seen = Seen::since(at(500));
        assert_eq!(seen.fresh(at(502)), 1_000_499..=1_000_562);
        assert_eq!(seen.fresh(at(700)), 1_000_640..=1_000_760);
        // The wall clock was set back: what counts is how long this memory reaches.
        let back = Time { mono_ms: 510_000, wall_ms: 400_000_000 };
        assert_eq!(seen.fresh(back), 399_989..=400_060);
    }
}
