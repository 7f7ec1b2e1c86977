//! Signed requests: HTTP message signatures (RFC 9421) by Ed25519, with the body bound by
//! `Content-Digest` (RFC 9530).
//!
//! A request covers `@method`, `@authority`, `@path`, `@query` and, when it has a body,
//! `content-digest`; its parameters are `created`, `nonce`, `keyid`, `alg="ed25519"` and
//! `tag="hivemind"`. The order of both is free; no other component may be covered, because this
//! module could not check it. Other signatures on the same request (other tags) are ignored.
//!
//! `@authority` is whatever the `Host` field says, so that requests work through forwarded ports;
//! which node answers is the business of TLS, not of this signature.

use std::ops::RangeInclusive;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sfv::{Dictionary, InnerList, ListEntry, Parser};

use crate::id::{Digest, KeyId};
use crate::key::{PublicKey, SigningKey};
use crate::problem::{Code, Problem};

/// The `tag` of our signatures (RFC 9421, section 2.3), and the label under which we send them.
pub const TAG: &str = "hivemind";

/// How far a request's `created` may be from the server's clock, in seconds, either way. Wide
/// enough for slow links and rough clocks, short enough that few nonces must be remembered.
pub const TOLERANCE_S: u64 = 60;

/// When a request may have been signed that is fresh at `now_s`; all in seconds since 1970.
pub fn fresh_at(now_s: u64) -> RangeInclusive<u64> {
    now_s.saturating_sub(TOLERANCE_S)..=now_s.saturating_add(TOLERANCE_S)
}

/// The shortest nonce accepted, in characters: 64 random bits in hexadecimal.
pub const MIN_NONCE_CHARS: usize = 16;

/// The longest nonce accepted, in characters: it is remembered for `2 * TOLERANCE_S`.
pub const MAX_NONCE_CHARS: usize = 64;

/// The longest `Signature-Input`, `Signature` or `Content-Digest` field looked at, in bytes. Ours
/// have about 250; the rest is room for the signatures of proxies.
pub const MAX_FIELD_BYTES: usize = 4096;

/// The part of a request that is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// The method, in upper case as sent.
    pub method: &'a str,
    /// The `Host` field (HTTP/1.1) or `:authority` (HTTP/2), port included unless it is 443.
    pub authority: &'a str,
    /// The path as sent, still percent-encoded.
    pub path: &'a str,
    /// The query as sent, without its question mark.
    pub query: Option<&'a str>,
    /// The whole body; empty when there is none.
    pub body: &'a [u8],
}

/// The fields that [`sign`] adds to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignatureFields {
    /// `Signature-Input`.
    pub signature_input: String,
    /// `Signature`.
    pub signature: String,
    /// `Content-Digest`, when there is a body.
    pub content_digest: Option<String>,
}

/// The fields of a received request that [`verify`] needs; absent ones are `None`. A field that
/// was sent several times is its values joined by `", "` (RFC 9110, section 5.3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReceivedFields<'a> {
    /// `Signature-Input`.
    pub signature_input: Option<&'a str>,
    /// `Signature`.
    pub signature: Option<&'a str>,
    /// `Content-Digest`.
    pub content_digest: Option<&'a str>,
}

/// Why a request's signature is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureRefusal {
    /// There is no signature with our tag.
    #[error("the request carries no signature with tag \"{TAG}\"")]
    Unsigned,
    /// The signature's fields do not follow RFC 9421 or cover too little.
    #[error("the request's signature is malformed: {0}")]
    Malformed(String),
    /// The cluster does not know the key.
    #[error("this cluster does not know key {0}")]
    UnknownKey(KeyId),
    /// The signature is not that key's over this request.
    #[error("the signature by key {0} does not match the request")]
    BadSignature(KeyId),
    /// The request was signed too long ago, or in the future.
    #[error(
        "the request was signed at {created_s}, this node's clock says {server_time_s} (seconds since 1970)"
    )]
    Stale {
        /// When the client says it signed, seconds since 1970.
        created_s: u64,
        /// The server's clock, seconds since 1970.
        server_time_s: u64,
    },
    /// The same nonce came before.
    #[error("the same signed request came before")]
    Replayed,
    /// The body is not the one that was signed.
    #[error("the body does not match the request's Content-Digest")]
    DigestMismatch,
}

impl From<SignatureRefusal> for Problem {
    fn from(refusal: SignatureRefusal) -> Self {
        let detail = refusal.to_string();
        match refusal {
            SignatureRefusal::Unsigned => Problem::new(Code::Unsigned, detail)
                .advice("sign the request with an operator's key (RFC 9421), or use the hivemind command"),
            SignatureRefusal::Malformed(_) => Problem::new(Code::BadSignature, detail)
                .advice("cover @method, @authority, @path, @query and content-digest, with created, nonce, keyid and alg"),
            SignatureRefusal::UnknownKey(_) => Problem::new(Code::BadSignature, detail)
                .advice("use a root key of this cluster, or have an admin add this key with `hivemind keys add`"),
            SignatureRefusal::BadSignature(_) | SignatureRefusal::DigestMismatch => {
                Problem::new(Code::BadSignature, detail)
                    .advice("the request was changed on its way, or signed wrongly; send it again")
            }
            SignatureRefusal::Stale { server_time_s, .. } => {
                let mut problem = Problem::new(Code::Stale, detail)
                    .advice("correct for the difference to the server's clock and sign again");
                problem.server_time_ms = Some(server_time_s.saturating_mul(1000));
                problem
            }
            SignatureRefusal::Replayed => {
                Problem::new(Code::Replayed, detail).advice("sign every request with a nonce of its own")
            }
        }
    }
}

/// Signs `request` at `created_s` (seconds since 1970). `nonce` must be unpredictable and new for
/// every request: [`MIN_NONCE_CHARS`] to [`MAX_NONCE_CHARS`] letters, digits, `-` or `_`.
pub fn sign(request: Request<'_>, key: &SigningKey, created_s: u64, nonce: &str) -> SignatureFields {
    let content_digest = (!request.body.is_empty()).then(|| content_digest(request.body));
    let mut covered = vec!["@method", "@authority", "@path", "@query"];
    if content_digest.is_some() {
        covered.push("content-digest");
    }
    let list = covered.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(" ");
    let params = format!(
        "({list});created={created_s};nonce=\"{nonce}\";keyid=\"{}\";alg=\"ed25519\";tag=\"{TAG}\"",
        key.public().id()
    );
    let components: Vec<(&str, String)> = covered
        .into_iter()
        .filter_map(|name| Some((name, component(name, request, content_digest.as_deref())?)))
        .collect();
    let signature = STANDARD.encode(key.sign(signature_base(&components, &params).as_bytes()));
    SignatureFields {
        signature_input: format!("{TAG}={params}"),
        signature: format!("{TAG}=:{signature}:"),
        content_digest,
    }
}

/// Checks a request's signature and says whose it is.
///
/// `known` finds a live key by its id. `now_s` is the clock and `fresh` the times at which a request
/// may have been signed, seconds since 1970: [`fresh_at`] or less. `seen` is asked
/// last, only about requests that are otherwise good, so that nobody without a key can fill the
/// memory of nonces: it must remember the nonce for `2 * TOLERANCE_S` and say whether that key had
/// used it before.
///
/// # Errors
/// The first thing that is wrong; see [`SignatureRefusal`].
pub fn verify(
    request: Request<'_>,
    fields: ReceivedFields<'_>,
    known: impl Fn(&KeyId) -> Option<PublicKey>,
    now_s: u64,
    fresh: RangeInclusive<u64>,
    seen: impl FnOnce(&KeyId, &str) -> bool,
) -> Result<KeyId, SignatureRefusal> {
    let claim = Claim::parse(fields)?;
    claim.check_coverage(request)?;
    let key = known(&claim.key).ok_or(SignatureRefusal::UnknownKey(claim.key))?;
    let components: Vec<(&str, String)> = claim
        .covered
        .iter()
        .map(|name| {
            component(name, request, fields.content_digest)
                .map(|value| (name.as_str(), value))
                .ok_or_else(|| malformed(format!("{name:?} is covered, but the request has none")))
        })
        .collect::<Result<_, _>>()?;
    let base = signature_base(&components, &claim.params);
    if key.id() != claim.key || !key.verifies(base.as_bytes(), &claim.signature) {
        return Err(SignatureRefusal::BadSignature(claim.key));
    }
    if !fresh.contains(&claim.created_s) || claim.expires_s.is_some_and(|end| now_s > end) {
        return Err(SignatureRefusal::Stale { created_s: claim.created_s, server_time_s: now_s });
    }
    if claim.covers("content-digest") && !digest_matches(fields.content_digest, request.body)? {
        return Err(SignatureRefusal::DigestMismatch);
    }
    if seen(&claim.key, &claim.nonce) {
        return Err(SignatureRefusal::Replayed);
    }
    Ok(claim.key)
}

/// The `Content-Digest` field of `body` (RFC 9530, section 2).
pub fn content_digest(body: &[u8]) -> String {
    format!("sha-256=:{}:", STANDARD.encode(Digest::of(body).0))
}

/// What a request says about its signature, before anything of it is believed.
struct Claim {
    covered: Vec<String>,
    /// The value of `@signature-params`.
    params: String,
    signature: Vec<u8>,
    key: KeyId,
    nonce: String,
    created_s: u64,
    expires_s: Option<u64>,
}

impl Claim {
    fn parse(fields: ReceivedFields<'_>) -> Result<Self, SignatureRefusal> {
        let (Some(input), Some(signature)) = (fields.signature_input, fields.signature) else {
            return Err(SignatureRefusal::Unsigned);
        };
        let inputs = dictionary("Signature-Input", input)?;
        let signatures = dictionary("Signature", signature)?;
        let mut ours = inputs.iter().filter_map(|(label, entry)| match entry {
            ListEntry::InnerList(list) if text(list, "tag") == Some(TAG) => Some((label, list)),
            _ => None,
        });
        let (label, list) = ours.next().ok_or(SignatureRefusal::Unsigned)?;
        if ours.next().is_some() {
            return Err(malformed(format!("there is more than one signature with tag {TAG:?}")));
        }
        let signature = match signatures.get(label.as_str()) {
            Some(ListEntry::Item(item)) => item.bare_item.as_byte_sequence(),
            _ => None,
        };
        let signature = signature
            .ok_or_else(|| malformed(format!("Signature has no byte sequence {:?}", label.as_str())))?;
        if text(list, "alg") != Some("ed25519") {
            return Err(malformed("alg must be \"ed25519\""));
        }
        Ok(Self {
            covered: covered(list)?,
            params: inner_list(list),
            signature: signature.to_vec(),
            key: parameter(list, "keyid")?.parse().map_err(|e| malformed(format!("keyid: {e}")))?,
            nonce: nonce(list)?,
            created_s: seconds(list, "created")?.ok_or_else(|| malformed("created is missing"))?,
            expires_s: seconds(list, "expires")?,
        })
    }

    fn covers(&self, name: &str) -> bool {
        self.covered.iter().any(|covered| covered == name)
    }

    fn check_coverage(&self, request: Request<'_>) -> Result<(), SignatureRefusal> {
        let body: &[&str] = if request.body.is_empty() { &[] } else { &["content-digest"] };
        for name in ["@method", "@authority", "@path", "@query"].iter().chain(body) {
            if !self.covers(name) {
                return Err(malformed(format!("{name:?} is not covered")));
            }
        }
        Ok(())
    }
}

fn malformed(what: impl Into<String>) -> SignatureRefusal {
    SignatureRefusal::Malformed(what.into())
}

fn dictionary(name: &str, field: &str) -> Result<Dictionary, SignatureRefusal> {
    if field.len() > MAX_FIELD_BYTES {
        return Err(malformed(format!("{name} has {} bytes, the limit is {MAX_FIELD_BYTES}", field.len())));
    }
    Parser::new(field).parse().map_err(|e| malformed(format!("{name} is not a dictionary (RFC 9651): {e}")))
}

fn covered(list: &InnerList) -> Result<Vec<String>, SignatureRefusal> {
    let mut names: Vec<String> = Vec::new();
    for item in &list.items {
        let name = item.bare_item.as_string().map(|name| name.as_str()).unwrap_or_default();
        let known = matches!(name, "@method" | "@authority" | "@path" | "@query" | "content-digest");
        if !known || !item.params.is_empty() {
            return Err(malformed(format!("this server cannot check the covered component {name:?}")));
        }
        if names.iter().any(|other| other == name) {
            return Err(malformed(format!("{name:?} is covered twice")));
        }
        names.push(name.to_owned());
    }
    Ok(names)
}

fn text<'a>(list: &'a InnerList, name: &str) -> Option<&'a str> {
    list.params.get(name)?.as_string().map(|value| value.as_str())
}

fn parameter<'a>(list: &'a InnerList, name: &str) -> Result<&'a str, SignatureRefusal> {
    text(list, name).ok_or_else(|| malformed(format!("{name} is missing or not a string")))
}

fn nonce(list: &InnerList) -> Result<String, SignatureRefusal> {
    let nonce = parameter(list, "nonce")?;
    if (MIN_NONCE_CHARS..=MAX_NONCE_CHARS).contains(&nonce.len()) {
        Ok(nonce.to_owned())
    } else {
        Err(malformed(format!("a nonce has {MIN_NONCE_CHARS} to {MAX_NONCE_CHARS} characters")))
    }
}

fn seconds(list: &InnerList, name: &str) -> Result<Option<u64>, SignatureRefusal> {
    let Some(value) = list.params.get(name) else { return Ok(None) };
    let seconds = value.as_integer().and_then(|integer| u64::try_from(i64::from(integer)).ok());
    match seconds {
        Some(seconds) => Ok(Some(seconds)),
        None => Err(malformed(format!("{name} is not a time in whole seconds"))),
    }
}

/// The list in the one form that RFC 9651, section 4.1.1.1 allows.
fn inner_list(list: &InnerList) -> String {
    let mut serializer = sfv::ListSerializer::new();
    let mut inner = serializer.inner_list();
    inner.items(&list.items);
    inner.finish().parameters(&list.params);
    serializer.finish().unwrap_or_default()
}

/// The value of a component (RFC 9421, section 2), or nothing when the request has none.
fn component(name: &str, request: Request<'_>, content_digest: Option<&str>) -> Option<String> {
    Some(match name {
        "@method" => request.method.to_owned(),
        "@authority" => {
            let authority = request.authority.to_ascii_lowercase();
            authority.strip_suffix(":443").map(str::to_owned).unwrap_or(authority)
        }
        "@path" if request.path.is_empty() => "/".to_owned(),
        "@path" => request.path.to_owned(),
        "@query" => format!("?{}", request.query.unwrap_or_default()),
        "content-digest" => content_digest?.trim().to_owned(),
        _ => return None,
    })
}

/// The signature base (RFC 9421, section 2.5).
fn signature_base(components: &[(&str, String)], params: &str) -> String {
    let mut base = String::new();
    for (name, value) in components {
        base.push_str(&format!("\"{name}\": {value}\n"));
    }
    base.push_str(&format!("\"@signature-params\": {params}"));
    base
}

fn digest_matches(field: Option<&str>, body: &[u8]) -> Result<bool, SignatureRefusal> {
    let digests = dictionary("Content-Digest", field.unwrap_or_default())?;
    let sha256 = match digests.get("sha-256") {
        Some(ListEntry::Item(item)) => item.bare_item.as_byte_sequence(),
        _ => None,
    };
    let sha256 = sha256.ok_or_else(|| malformed("Content-Digest has no sha-256"))?;
    Ok(sha256 == Digest::of(body).0)
}

#[cfg(test)]
mod tests;
