//! The secret document: content that only the nodes it is sealed to can read.
//!
//! ```text
//!   content ──ChaCha20-Poly1305 under a key of its own──▶ `sealed`
//!   that key ──HPKE (RFC 9180) to each node──▶ `keys`
//! ```
//!
//! A node's HPKE key is its record key, which its certificate names: an Ed25519 key is also an X25519 key by the
//! map of RFC 7748, section 4.1. So whoever can verify a node can seal to it, and there is no other key to tell,
//! to keep or to lose. A node that can open a secret can make a key for another one without changing the document.
//!
//! Nothing here draws random numbers: whoever seals brings them.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable as _, Kem, OpModeR, OpModeS, Serializable as _};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::hmac;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zeroize::Zeroizing;

use crate::document::{Document, DocumentError, Kind, SpecKey};
use crate::id::{NodeId, hex};
use crate::key::{PublicKey, SigningKey};

/// The largest content, bytes: more than any key, certificate chain or token needs; it travels with every copy of
/// the document, and lies in memory on every machine that uses it.
pub const MAX_SECRET_BYTES: usize = 256 * 1024;

/// Nodes a document can be sealed to: more than any cluster this is meant for has.
const MAX_KEYS: usize = 2000;

/// Bytes of the key that a content is sealed under, and of all random numbers here.
const KEY_BYTES: usize = 32;

/// Bytes that HPKE adds to a key: the sender's public key and the tag.
const WRAPPING_BYTES: usize = 32 + 16;

/// Bytes that sealing adds to a content: the tag.
const TAG_BYTES: usize = 16;

/// The label of a secret with [`Credentials`]: the registry they are for, as in image references.
pub const REGISTRY_LABEL: &str = "hivemind/registry";

/// Said in all that is sealed, so that nothing sealed for another purpose passes for it.
const DOMAIN: &str = "hivemind secret v1";

type Private = <X25519HkdfSha256 as Kem>::PrivateKey;
type Public = <X25519HkdfSha256 as Kem>::PublicKey;
type Encapped = <X25519HkdfSha256 as Kem>::EncappedKey;

/// A secret's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretSpec {
    /// The content, sealed, in standard base64.
    pub sealed: String,
    /// For each node that can open it, the key to it.
    #[schema(value_type = BTreeMap<String, String>)]
    pub keys: BTreeMap<NodeId, SealedKey>,
    /// By which its signer knows the content again without being able to read it. Tells others nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mark: String,
}

/// The key to a secret, sealed to one node, in standard base64.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SealedKey(pub String);

/// Content that nobody is to see: wiped when dropped, and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Content(Zeroizing<Vec<u8>>);

impl Content {
    /// Takes the bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes themselves.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Content(hidden)")
    }
}

/// The content of a secret that opens a registry, as JSON.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// The user's name.
    pub username: String,
    /// The password, or a token that takes its place.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({}, hidden)", self.username)
    }
}

/// Why a secret cannot be sealed or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// It is over the limit.
    #[error("a secret of {0} bytes is over the limit of {MAX_SECRET_BYTES}")]
    TooLarge(usize),
    /// What is to be a key is none.
    #[error("the key of node {0} is none that can be sealed to")]
    BadRecipient(NodeId),
    /// It was sealed to another, under another name, or is damaged.
    #[error("it cannot be opened here: it was sealed to another node or under another name, or is damaged")]
    Closed,
}

impl SecretSpec {
    /// Seals `content` under `name` to nodes by their record keys. `random` is drawn anew for each call; `signer`
    /// gives it its mark.
    ///
    /// # Errors
    /// When it is too large, or a key is none.
    pub fn seal(
        name: &SpecKey,
        content: &Content,
        nodes: &BTreeMap<NodeId, PublicKey>,
        signer: &SigningKey,
        random: [u8; KEY_BYTES],
    ) -> Result<Self, SecretError> {
        let content_bytes = content.bytes();
        if content_bytes.len() > MAX_SECRET_BYTES {
            return Err(SecretError::TooLarge(content_bytes.len()));
        }
        let random = Zeroizing::new(random);
        let key = derived(&random, &[b"content"]);
        let mut sealed = content_bytes.to_vec();
        cipher(&key)
            .seal_in_place_append_tag(nonce(), Aad::from(place(name)), &mut sealed)
            .map_err(|_| SecretError::Closed)?;
        let wrapped = nodes.iter().map(|(node, public)| {
            let random = derived(&random, &[b"node", &node.0]);
            Ok((*node, wrap(name, &key, *node, public, random)?))
        });
        let keys = wrapped.collect::<Result<_, _>>()?;
        Ok(Self { sealed: STANDARD.encode(sealed), keys, mark: mark(name, content, signer) })
    }

    /// Opens it with a key to it that was sealed to `me`, whose record key is `key`.
    ///
    /// # Errors
    /// When the key does not fit.
    pub fn open(
        &self,
        name: &SpecKey,
        me: NodeId,
        key: &SigningKey,
        with: &SealedKey,
    ) -> Result<Content, SecretError> {
        let key = unwrap(name, me, key, with)?;
        let mut bytes = STANDARD.decode(&self.sealed).map_err(|_| SecretError::Closed)?;
        let content = cipher(&key).open_in_place(nonce(), Aad::from(place(name)), &mut bytes);
        let length = content.map_err(|_| SecretError::Closed)?.len();
        bytes.truncate(length);
        Ok(Content::new(bytes))
    }

    /// Makes a key to it for another node, by a node that has one. The same every time.
    ///
    /// # Errors
    /// When the key does not fit, or the other's is none.
    pub fn share(
        &self,
        name: &SpecKey,
        me: NodeId,
        key: &SigningKey,
        with: &SealedKey,
        to: (NodeId, &PublicKey),
    ) -> Result<SealedKey, SecretError> {
        // That it opens the secret is checked, so that nobody is given what is of no use.
        self.open(name, me, key, with)?;
        let content_key = unwrap(name, me, key, with)?;
        let (node, public) = to;
        // Nobody who has not both keys can foresee it, and for another node, name or content it is another.
        let seed = key.derive(DOMAIN);
        let random = derived(&seed, &[b"share", &content_key[..], &node.0, &place(name)]);
        wrap(name, &content_key, node, public, random)
    }

    /// Checks what types cannot say.
    pub(crate) fn validate(&self) -> Result<(), DocumentError> {
        let length = STANDARD.decode(&self.sealed).map(|sealed| sealed.len());
        if !length.is_ok_and(|length| (TAG_BYTES..=TAG_BYTES + MAX_SECRET_BYTES).contains(&length)) {
            let text = format!("is not a sealed content of at most {MAX_SECRET_BYTES} bytes in base64");
            return Err(DocumentError::new("/spec/sealed", text));
        }
        if self.keys.len() > MAX_KEYS {
            return Err(DocumentError::new("/spec/keys", format!("has more than {MAX_KEYS} nodes")));
        }
        match self.keys.iter().find(|(_, key)| !key.is_well_formed()) {
            Some((node, _)) => Err(DocumentError::new(format!("/spec/keys/{node}"), "is not a sealed key")),
            None => Ok(()),
        }
    }
}

impl SealedKey {
    /// Whether it has the form of one.
    pub fn is_well_formed(&self) -> bool {
        STANDARD.decode(&self.0).is_ok_and(|bytes| bytes.len() == WRAPPING_BYTES + KEY_BYTES)
    }
}

/// What a secret of this name is called.
pub fn secret_key(namespace: &str, name: &str) -> SpecKey {
    SpecKey { kind: Kind::Secret, namespace: namespace.to_owned(), name: name.to_owned() }
}

/// The mark that `signer` gives to a content under a name.
pub fn mark(name: &SpecKey, content: &Content, signer: &SigningKey) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &signer.derive("hivemind secret mark v1")[..]);
    let mut context = hmac::Context::with_key(&key);
    context.update(&place(name));
    context.update(content.bytes());
    hex(&context.sign().as_ref()[..16])
}

/// The secret in a document, if it is one and not a tombstone.
pub fn of(document: &Document) -> Option<&SecretSpec> {
    match &document.spec {
        Some(crate::document::Spec::Secret(secret)) => Some(secret),
        _ => None,
    }
}

/// What is sealed with everything: the purpose and the name. Names have no zero bytes.
fn place(name: &SpecKey) -> Vec<u8> {
    format!("{DOMAIN}\0{}\0{}\0", name.namespace, name.name).into_bytes()
}

/// The one nonce: no key ever seals a second content.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

fn cipher(key: &[u8; KEY_BYTES]) -> LessSafeKey {
    // A key of 32 bytes is always accepted; the length is in the type.
    #[allow(clippy::expect_used)]
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).expect("a key of 32 bytes"))
}

/// Bytes that follow from a seed and a purpose.
fn derived(seed: &[u8; KEY_BYTES], purpose: &[&[u8]]) -> Zeroizing<[u8; KEY_BYTES]> {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, seed));
    for part in purpose {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    bytes.copy_from_slice(context.sign().as_ref());
    bytes
}

fn wrap(
    name: &SpecKey,
    key: &[u8; KEY_BYTES],
    node: NodeId,
    public: &PublicKey,
    random: Zeroizing<[u8; KEY_BYTES]>,
) -> Result<SealedKey, SecretError> {
    let bad = || SecretError::BadRecipient(node);
    let public = public.to_x25519().ok_or_else(bad)?;
    let public = Public::from_bytes(&public).map_err(|_| bad())?;
    let (encapped, wrapped) = hpke::single_shot_seal::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256, _>(
        &OpModeS::Base,
        &public,
        &place(name),
        key,
        &node.0,
        &mut Drawn(Some(random)),
    )
    .map_err(|_| bad())?;
    let mut bytes = encapped.to_bytes().to_vec();
    bytes.extend(wrapped);
    Ok(SealedKey(STANDARD.encode(bytes)))
}

fn unwrap(
    name: &SpecKey,
    me: NodeId,
    key: &SigningKey,
    with: &SealedKey,
) -> Result<Zeroizing<[u8; KEY_BYTES]>, SecretError> {
    let closed = |_| SecretError::Closed;
    let bytes = STANDARD.decode(&with.0).map_err(|_| SecretError::Closed)?;
    let (encapped, wrapped) = bytes.split_at_checked(32).ok_or(SecretError::Closed)?;
    let private = Private::from_bytes(&key.to_x25519()[..]).map_err(closed)?;
    let content_key = hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
        &OpModeR::Base,
        &private,
        &Encapped::from_bytes(encapped).map_err(closed)?,
        &place(name),
        wrapped,
        &me.0,
    );
    let content_key = Zeroizing::new(content_key.map_err(closed)?);
    let exact: [u8; KEY_BYTES] = content_key[..].try_into().map_err(|_| SecretError::Closed)?;
    Ok(Zeroizing::new(exact))
}

/// Random numbers that were drawn elsewhere, as HPKE wants to be given them: for one key pair, and no second.
struct Drawn(Option<Zeroizing<[u8; KEY_BYTES]>>);

impl hpke::rand_core::CryptoRng for Drawn {}

impl hpke::rand_core::RngCore for Drawn {
    fn next_u32(&mut self) -> u32 {
        hpke::rand_core::impls::next_u32_via_fill(self)
    }

    fn next_u64(&mut self) -> u64 {
        hpke::rand_core::impls::next_u64_via_fill(self)
    }

    fn fill_bytes(&mut self, into: &mut [u8]) {
        // HPKE draws the sender's key pair with one call of this length (`Kem::gen_keypair`). Anything else would be
        // a key that somebody can guess.
        #[allow(clippy::expect_used)]
        let drawn = self.0.take().expect("HPKE draws once");
        into.copy_from_slice(&drawn[..]);
    }

    fn try_fill_bytes(&mut self, into: &mut [u8]) -> Result<(), hpke::rand_core::Error> {
        self.fill_bytes(into);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(n: u8) -> SigningKey {
        SigningKey::from_seed([n; 32])
    }

    fn node(n: u8) -> NodeId {
        NodeId([n; 16])
    }

    fn recipients(numbers: &[u8]) -> BTreeMap<NodeId, PublicKey> {
        numbers.iter().map(|n| (node(*n), key(*n).public())).collect()
    }

    fn sealed(name: &SpecKey, content: &[u8], numbers: &[u8], random: u8) -> SecretSpec {
        let content = Content::new(content.to_vec());
        SecretSpec::seal(name, &content, &recipients(numbers), &key(99), [random; 32]).unwrap()
    }

    fn opened(secret: &SecretSpec, name: &SpecKey, n: u8, with: &SealedKey) -> Option<Vec<u8>> {
        secret.open(name, node(n), &key(n), with).ok().map(|content| content.bytes().to_vec())
    }

    proptest! {
        #[test]
        fn a_secret_is_opened_by_those_it_is_sealed_to_and_by_nobody_else(
            content in proptest::collection::vec(any::<u8>(), 0..300),
            random in any::<u8>(),
        ) {
            let name = secret_key("default", "password");
            let secret = sealed(&name, &content, &[1, 2], random);
            secret.validate().unwrap();
            for n in [1, 2] {
                prop_assert_eq!(opened(&secret, &name, n, &secret.keys[&node(n)]), Some(content.clone()));
            }
            // Not by another's key, nor by another node, nor under another name.
            prop_assert_eq!(opened(&secret, &name, 1, &secret.keys[&node(2)]), None);
            prop_assert_eq!(opened(&secret, &name, 3, &secret.keys[&node(1)]), None);
            let other = secret_key("other", "password");
            prop_assert_eq!(opened(&secret, &other, 1, &secret.keys[&node(1)]), None);
        }
    }

    #[test]
    fn whoever_can_open_a_secret_can_share_it_and_nobody_else_can() {
        let name = secret_key("default", "password");
        let secret = sealed(&name, b"hunter2", &[1], 7);
        let with = &secret.keys[&node(1)];
        let public = key(2).public();
        let shared = secret.share(&name, node(1), &key(1), with, (node(2), &public)).unwrap();
        assert!(shared.is_well_formed());
        assert_eq!(opened(&secret, &name, 2, &shared), Some(b"hunter2".to_vec()));
        assert_eq!(opened(&secret, &name, 3, &shared), None);
        let again = secret.share(&name, node(1), &key(1), with, (node(2), &public)).unwrap();
        assert_eq!(shared, again, "so that nothing is written twice");
        assert!(secret.share(&name, node(3), &key(3), with, (node(2), &public)).is_err());
        // A later version of it has keys of its own.
        let later = sealed(&name, b"hunter3", &[1], 8);
        assert_eq!(opened(&later, &name, 2, &shared), None);
    }

    #[test]
    fn the_same_content_looks_different_each_time_and_has_the_same_mark_for_its_signer_only() {
        let (name, other) = (secret_key("default", "a"), secret_key("default", "b"));
        let (first, second) = (sealed(&name, b"hunter2", &[1], 7), sealed(&name, b"hunter2", &[1], 8));
        assert_ne!(first.sealed, second.sealed);
        assert_ne!(first.keys, second.keys);
        assert_eq!(first.mark, second.mark);
        assert_ne!(first.mark, sealed(&other, b"hunter2", &[1], 7).mark);
        assert_ne!(first.mark, mark(&name, &Content::new(b"hunter2".to_vec()), &key(1)));
        assert!(!format!("{:?}", Content::new(b"hunter2".to_vec())).contains("hunter2"));
    }

    #[test]
    fn what_was_changed_on_its_way_does_not_open() {
        let name = secret_key("default", "password");
        let secret = sealed(&name, b"hunter2", &[1], 7);
        let flip = |text: &str, at: usize| {
            let mut bytes = STANDARD.decode(text).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= 1;
            STANDARD.encode(bytes)
        };
        let with = &secret.keys[&node(1)];
        for at in 0..200 {
            let changed = SecretSpec { sealed: flip(&secret.sealed, at), ..secret.clone() };
            assert_eq!(opened(&changed, &name, 1, with), None);
            assert_eq!(opened(&secret, &name, 1, &SealedKey(flip(&with.0, at))), None);
        }
        for odd in ["", "x", "AAAA"] {
            assert_eq!(opened(&secret, &name, 1, &SealedKey(odd.to_owned())), None);
            assert!(SecretSpec { sealed: odd.to_owned(), ..secret.clone() }.validate().is_err());
        }
    }

    #[test]
    fn what_is_too_large_or_no_key_is_refused() {
        let name = secret_key("default", "password");
        let large = Content::new(vec![0; MAX_SECRET_BYTES + 1]);
        let refused = SecretSpec::seal(&name, &large, &recipients(&[1]), &key(9), [1; 32]);
        assert_eq!(refused, Err(SecretError::TooLarge(MAX_SECRET_BYTES + 1)));
        // Not a point of the curve.
        let none = BTreeMap::from([(node(1), PublicKey([2; 32]))]);
        let refused = SecretSpec::seal(&name, &Content::new(vec![1]), &none, &key(9), [1; 32]);
        assert_eq!(refused, Err(SecretError::BadRecipient(node(1))));
    }
}
