//! Operators' Ed25519 keys (RFC 8032).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use curve25519_dalek::edwards::CompressedEdwardsY;
use ring::signature::{self, Ed25519KeyPair, KeyPair as _};
use ring::{digest, hmac};
use zeroize::Zeroizing;

use crate::id::KeyId;

/// Why something is not a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an Ed25519 {what} is 32 bytes in standard base64")]
pub struct KeyError {
    what: &'static str,
}

/// A public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

/// Says whether the third argument is the key's signature over the second: [`PublicKey::verifies`] in
/// production; simulations, in which many nodes check the same, may remember what it said.
pub type SignatureVerifier = fn(&PublicKey, &[u8], &[u8]) -> bool;

impl PublicKey {
    /// Reads standard base64.
    ///
    /// # Errors
    /// When the text is not 32 bytes of base64.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        decode(text).map(Self).ok_or(KeyError { what: "public key" })
    }

    /// Writes standard base64.
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.0)
    }

    /// The key's id.
    pub fn id(&self) -> KeyId {
        KeyId::of(&self.0)
    }

    /// The X25519 key that belongs to it (RFC 7748, section 4.1); `None` when it is not a point of the curve, or one
    /// with which every exchange comes to the same.
    pub fn to_x25519(&self) -> Option<[u8; 32]> {
        let point = CompressedEdwardsY(self.0).decompress().filter(|point| !point.is_small_order())?;
        Some(point.to_montgomery().to_bytes())
    }

    /// Whether `signature` is this key's over `message`.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        signature::UnparsedPublicKey::new(&signature::ED25519, self.0).verify(message, signature).is_ok()
    }
}

/// A private key, held as its seed.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    seed: [u8; 32],
}

impl SigningKey {
    /// The key made from 32 random bytes.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        // A seed of 32 bytes is always accepted; the length is in the type.
        #[allow(clippy::expect_used)]
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).expect("a seed of 32 bytes");
        Self { pair, seed }
    }

    /// Reads the seed in standard base64.
    ///
    /// # Errors
    /// When the text is not 32 bytes of base64.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        decode(text.trim()).map(Self::from_seed).ok_or(KeyError { what: "private key" })
    }

    /// Writes the seed in standard base64. Whoever has it is the key's owner.
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.seed)
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        let mut key = [0; 32];
        key.copy_from_slice(self.pair.public_key().as_ref());
        PublicKey(key)
    }

    /// The private half of [`PublicKey::to_x25519`]: of the seed's hash what RFC 8032, section 5.1.5 makes the scalar
    /// from.
    pub(crate) fn to_x25519(&self) -> Zeroizing<[u8; 32]> {
        let mut scalar = Zeroizing::new([0; 32]);
        scalar.copy_from_slice(&digest::digest(&digest::SHA512, &self.seed).as_ref()[..32]);
        scalar
    }

    /// A key that only the owner of this one can make, the same every time, for `purpose`.
    pub fn derive(&self, purpose: &str) -> Zeroizing<[u8; 32]> {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.seed), purpose.as_bytes());
        let mut key = Zeroizing::new([0; 32]);
        key.copy_from_slice(tag.as_ref());
        key
    }

    /// Signs `message`; 64 bytes, the same ones every time.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }
}

impl Clone for SigningKey {
    fn clone(&self) -> Self {
        Self::from_seed(self.seed)
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({})", self.public().id().short())
    }
}

fn decode(text: &str) -> Option<[u8; 32]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}
