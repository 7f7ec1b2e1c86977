//! DSSE envelopes (Dead Simple Signing Envelope, protocol version 1.0.2) around documents.
//!
//! What was signed is kept byte for byte: `payload` stays the text it arrived as.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::document::{Document, DocumentError, MAX_DOCUMENT_BYTES};
use crate::id::{Digest, KeyId};
use crate::key::{PublicKey, SignatureVerifier, SigningKey};
use crate::stick::{self, ImageList};

/// The payload type of every document.
pub const PAYLOAD_TYPE: &str = "application/vnd.hivemind.spec.v1+json";

/// Signatures on one envelope: thresholds and adoptions need a few, an attacker would like many,
/// because each costs a verification.
pub const MAX_SIGNATURES: usize = 8;

/// The largest envelope accepted as JSON, in bytes: the largest document in base64 and its
/// signatures.
pub const MAX_ENVELOPE_BYTES: usize = MAX_DOCUMENT_BYTES / 3 * 4 + 8 * 1024;

/// A signed document as it travels and is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Envelope {
    /// The document's bytes in standard base64.
    pub payload: String,
    /// [`PAYLOAD_TYPE`], or that of a stick's list ([`stick::PAYLOAD_TYPE`]).
    pub payload_type: String,
    /// One to [`MAX_SIGNATURES`] signatures.
    pub signatures: Vec<Signature>,
}

/// One signature over the pre-authentication encoding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// The id of the signing key.
    #[schema(value_type = String)]
    pub keyid: KeyId,
    /// Ed25519 signature in standard base64.
    pub sig: String,
}

/// A value whose signature was checked. Only [`Envelope::verify`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified<T> {
    value: T,
    signers: Vec<KeyId>,
    digest: Digest,
}

impl<T> Verified<T> {
    /// What was signed.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// The keys whose signatures verify; at least one.
    pub fn signers(&self) -> &[KeyId] {
        &self.signers
    }

    /// The SHA-256 of the signed bytes.
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

/// Why an envelope is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// The JSON around the document is wrong.
    #[error("the envelope is malformed: {0}")]
    Malformed(String),
    /// The envelope carries no signature at all.
    #[error("the envelope carries no signature")]
    Unsigned,
    /// No signature verifies under a known key.
    #[error("no signature verifies under a key this cluster knows; signed by {}", list(.0))]
    Untrusted(Vec<KeyId>),
    /// A signature names a known key but is not its signature over these bytes.
    #[error("the signature by key {0} does not match the document")]
    BadSignature(KeyId),
    /// The signed bytes are not a document.
    #[error("the document is invalid")]
    Document(#[from] DocumentError),
}

fn list(keys: &[KeyId]) -> String {
    keys.iter().map(KeyId::to_string).collect::<Vec<_>>().join(", ")
}

impl Envelope {
    /// Reads an envelope from JSON of at most [`MAX_ENVELOPE_BYTES`].
    ///
    /// # Errors
    /// When the JSON is too large, malformed, of another payload type, or has too many signatures.
    pub fn parse(json: &[u8]) -> Result<Self, EnvelopeError> {
        if json.len() > MAX_ENVELOPE_BYTES {
            return Err(EnvelopeError::Malformed(format!(
                "it has {} bytes, the limit is {MAX_ENVELOPE_BYTES}",
                json.len()
            )));
        }
        let envelope: Self =
            serde_json::from_slice(json).map_err(|e| EnvelopeError::Malformed(e.to_string()))?;
        envelope.check_shape(PAYLOAD_TYPE)?;
        Ok(envelope)
    }

    /// Signs a document's JSON.
    pub fn sign(payload: &[u8], key: &SigningKey) -> Self {
        Self::sign_as(PAYLOAD_TYPE, payload, key)
    }

    /// Signs the list of a stick with images.
    pub fn sign_images(list: &ImageList, key: &SigningKey) -> Self {
        // Strings and numbers only: this cannot fail.
        Self::sign_as(stick::PAYLOAD_TYPE, &serde_json::to_vec(list).unwrap_or_default(), key)
    }

    fn sign_as(payload_type: &str, payload: &[u8], key: &SigningKey) -> Self {
        let sig = STANDARD.encode(key.sign(&pre_authentication_encoding(payload_type, payload)));
        Self {
            payload: STANDARD.encode(payload),
            payload_type: payload_type.to_owned(),
            signatures: vec![Signature { keyid: key.public().id(), sig }],
        }
    }

    /// The envelope as JSON.
    pub fn to_json(&self) -> Vec<u8> {
        // Strings only: this cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The signed bytes.
    ///
    /// # Errors
    /// When the payload is not standard base64.
    pub fn payload(&self) -> Result<Vec<u8>, EnvelopeError> {
        STANDARD
            .decode(&self.payload)
            .map_err(|e| EnvelopeError::Malformed(format!("the payload is not standard base64: {e}")))
    }

    /// The SHA-256 of the signed bytes; of the text itself where that is not base64.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.payload().unwrap_or_else(|_| self.payload.clone().into_bytes()))
    }

    /// Checks signatures against the keys that `known` finds, then parses the document. A
    /// signature by an unknown key is ignored; one that does not match its known key is an error.
    ///
    /// # Errors
    /// When nothing known signed these bytes or they are not a document.
    pub fn verify(
        &self,
        known: impl Fn(&KeyId) -> Option<PublicKey>,
    ) -> Result<Verified<Document>, EnvelopeError> {
        let (payload, signers) = self.check(PAYLOAD_TYPE, PublicKey::verifies, known)?;
        let value = Document::parse(&payload)?;
        Ok(Verified { value, signers, digest: Digest::of(&payload) })
    }

    /// Checks signatures, by another way if need be, then reads a document that others have accepted, maybe of a
    /// later release ([`Document::read_held`]).
    ///
    /// # Errors
    /// When nothing known signed these bytes or they are not a document.
    pub fn verify_held(
        &self,
        verifies: SignatureVerifier,
        known: impl Fn(&KeyId) -> Option<PublicKey>,
    ) -> Result<Verified<Document>, EnvelopeError> {
        let (payload, signers) = self.check(PAYLOAD_TYPE, verifies, known)?;
        let value = Document::read_held(&payload)?;
        Ok(Verified { value, signers, digest: Digest::of(&payload) })
    }

    /// Checks signatures as [`Self::verify`] does, then reads the list of a stick with images.
    ///
    /// # Errors
    /// When nothing known signed these bytes or they are no such list.
    pub fn verify_images(
        &self,
        known: impl Fn(&KeyId) -> Option<PublicKey>,
    ) -> Result<Verified<ImageList>, EnvelopeError> {
        let (payload, signers) = self.check(stick::PAYLOAD_TYPE, PublicKey::verifies, known)?;
        let value = serde_json::from_slice(&payload);
        let value = value.map_err(|error| EnvelopeError::Malformed(error.to_string()))?;
        Ok(Verified { value, signers, digest: Digest::of(&payload) })
    }

    /// What was signed, and by which of the known keys.
    fn check(
        &self,
        payload_type: &str,
        verifies: SignatureVerifier,
        known: impl Fn(&KeyId) -> Option<PublicKey>,
    ) -> Result<(Vec<u8>, Vec<KeyId>), EnvelopeError> {
        self.check_shape(payload_type)?;
        let payload = self.payload()?;
        let message = pre_authentication_encoding(&self.payload_type, &payload);
        let mut signers = Vec::new();
        for signature in &self.signatures {
            let Some(key) = known(&signature.keyid) else { continue };
            let bytes = STANDARD.decode(&signature.sig).unwrap_or_default();
            if key.id() != signature.keyid || !verifies(&key, &message, &bytes) {
                return Err(EnvelopeError::BadSignature(signature.keyid));
            }
            if !signers.contains(&signature.keyid) {
                signers.push(signature.keyid);
            }
        }
        if signers.is_empty() {
            return Err(EnvelopeError::Untrusted(self.signatures.iter().map(|s| s.keyid).collect()));
        }
        Ok((payload, signers))
    }

    fn check_shape(&self, payload_type: &str) -> Result<(), EnvelopeError> {
        if self.payload_type != payload_type {
            return Err(EnvelopeError::Malformed(format!(
                "the payload type is {:?}, not {payload_type:?}",
                self.payload_type
            )));
        }
        match self.signatures.len() {
            0 => Err(EnvelopeError::Unsigned),
            1..=MAX_SIGNATURES => Ok(()),
            n => Err(EnvelopeError::Malformed(format!("{n} signatures, the limit is {MAX_SIGNATURES}"))),
        }
    }
}

/// The bytes that are signed (DSSE protocol, "Signature Definition").
fn pre_authentication_encoding(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut message = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    message.extend_from_slice(payload);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &[u8] = br#"{"apiVersion":"hivemind/v1","kind":"Workload","metadata":{"name":"web","namespace":"default","revision":7},"spec":{"container":{"image":"nginx"}}}"#;

    fn knows(key: &SigningKey) -> impl Fn(&KeyId) -> Option<PublicKey> {
        let public = key.public();
        move |id| (*id == public.id()).then_some(public)
    }

    #[test]
    fn the_encoding_is_that_of_the_specification() {
        // The test vector of the DSSE protocol document.
        assert_eq!(
            pre_authentication_encoding("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }

    #[test]
    fn the_list_of_a_stick_is_no_document_and_no_document_is_such_a_list() {
        let key = SigningKey::from_seed([7; 32]);
        let list = ImageList { made_ms: 7, images: Vec::new() };
        let signed = Envelope::sign_images(&list, &key);
        assert_eq!(signed.verify_images(knows(&key)).unwrap().value(), &list);
        assert!(matches!(signed.verify(knows(&key)), Err(EnvelopeError::Malformed(_))));
        assert!(matches!(
            Envelope::sign(WEB, &key).verify_images(knows(&key)),
            Err(EnvelopeError::Malformed(_))
        ));
        let other = SigningKey::from_seed([8; 32]);
        assert!(matches!(signed.verify_images(knows(&other)), Err(EnvelopeError::Untrusted(_))));
    }

    #[test]
    fn a_signed_document_verifies_and_names_its_signer() {
        let key = SigningKey::from_seed([7; 32]);
        let envelope = Envelope::parse(&Envelope::sign(WEB, &key).to_json()).unwrap();
        let verified = envelope.verify(knows(&key)).unwrap();
        assert_eq!(verified.signers(), [key.public().id()]);
        assert_eq!(verified.digest(), envelope.digest());
    }

    #[test]
    fn nothing_unsigned_wrongly_signed_or_changed_verifies() {
        let key = SigningKey::from_seed([7; 32]);
        let good = Envelope::sign(WEB, &key);

        let mut unsigned = good.clone();
        unsigned.signatures.clear();
        assert_eq!(unsigned.verify(knows(&key)), Err(EnvelopeError::Unsigned));

        let stranger = Envelope::sign(WEB, &SigningKey::from_seed([8; 32]));
        assert!(matches!(stranger.verify(knows(&key)), Err(EnvelopeError::Untrusted(_))));

        let mut changed = good.clone();
        changed.payload = STANDARD.encode(String::from_utf8_lossy(WEB).replace("nginx", "miner"));
        assert_eq!(changed.verify(knows(&key)), Err(EnvelopeError::BadSignature(key.public().id())));
    }
}
