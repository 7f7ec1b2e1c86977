//! The four certificates (design, section 5; RFC 5280): root CA → token CA → node CA → leaf.
//!
//! ```text
//!   root CA    offline, the operator's        its key's hash is the cluster's id
//!     └ token CA   in the machine configuration   its key's hash is the token's id
//!         └ node CA    one per node                   its key's hash is the node's id
//!             └ leaf       days, re-minted by the node    addresses and host names
//! ```
//!
//! All keys are P-256, which every HTTPS client takes. The upper three certificates outlive the
//! machines; only the leaf has an end that matters, and only to HTTPS clients: nodes check each
//! other's chains at a time inside the leaf's own validity, so that a wrong clock or an old leaf
//! never locks a known node out. Revocation is a document, not a date.
//!
//! Keys are made by the caller ([`KeyPair::generate`] outside this crate). Serial numbers are
//! hashes of what they number. The one place where randomness enters is the nonce of an ECDSA
//! signature, inside the crypto library.

use std::net::IpAddr;
use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
pub use rcgen::KeyPair;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, PublicKeyData as _, SanType, SerialNumber, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::id::{ClusterId, NodeId, TokenId, hex};
use crate::key::PublicKey;

/// The name every leaf carries besides the node's own, so that a client that goes through a load
/// balancer or a hosts file has one name for the whole cluster.
pub const CLUSTER_NAME: &str = "hivemind.internal";

/// Starts the URI in the node CA that binds the node's Ed25519 record key; base64url without
/// padding follows.
pub const RECORD_KEY_URN: &str = "urn:hivemind:record-key:ed25519:";

/// How long a leaf is valid unless the caller says otherwise, in days: long enough for a node
/// that is off over a holiday to be reached by HTTPS at once, short enough that it is re-minted
/// often and so always works.
pub const LEAF_DAYS: u32 = 60;

/// The longest life of a leaf, in days: what the strictest HTTPS clients accept from private CAs.
pub const MAX_LEAF_DAYS: u32 = 398;

/// Addresses and names a leaf may carry: a node has a handful; a list that is longer would not
/// fit the first flight of a QUIC handshake.
pub const MAX_LEAF_NAMES: usize = 64;

/// The largest certificate looked at, in bytes: ten times what is made here, so that a peer
/// cannot make us parse much before it has shown who it is.
pub const MAX_CERTIFICATE_BYTES: usize = 8 * 1024;

/// First and last instant of the upper three certificates: from the epoch, because clocks start
/// there, to the end of the century.
const FIRST_YEAR: i32 = 1970;
const LAST_YEAR: i32 = 2099;

/// The last instant a leaf may begin: a clock beyond it is wrong. 2099-01-01T00:00:00Z.
const LAST_LEAF_START_MS: u64 = 4_070_908_800_000;

/// Who a chain of certificates belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeIdentity {
    /// The node: the hash of its node CA's key.
    pub node: NodeId,
    /// The token it enrolled with: the hash of the token CA's key.
    pub token: TokenId,
    /// The key it signs its records with.
    pub record_key: PublicKey,
}

/// Why certificates are refused or cannot be made. The words are for logs on both sides.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// The bytes or the text are not what they should be.
    #[error("the {what} cannot be read: {reason}")]
    Malformed {
        /// Which certificate or key.
        what: &'static str,
        /// In words.
        reason: String,
    },
    /// The chain ends at another root.
    #[error("its certificate chain leads to another cluster's root CA")]
    OtherCluster,
    /// A signature in the chain is not the issuer's.
    #[error("its {what} is not signed by its {issuer}")]
    NotIssued {
        /// Which certificate.
        what: &'static str,
        /// By whom it should have been signed.
        issuer: &'static str,
    },
    /// A certificate lacks or oversteps what its place in the chain demands.
    #[error("its {what} {fault}")]
    Unfit {
        /// Which certificate.
        what: &'static str,
        /// What is wrong with it.
        fault: String,
    },
    /// The chain has the wrong number of certificates.
    #[error("it shows {found} certificates instead of leaf, node CA and token CA")]
    Length {
        /// How many came.
        found: usize,
    },
    /// A private key that is not its certificate's.
    #[error("the private key does not belong to the {what}")]
    OtherKey {
        /// Which certificate.
        what: &'static str,
    },
    /// A certificate could not be made.
    #[error("the {what} cannot be made: {reason}")]
    NotMade {
        /// Which certificate.
        what: &'static str,
        /// In words.
        reason: String,
    },
}

/// A certificate together with its private key: who signs.
#[derive(Clone, Copy)]
pub struct Signer<'a> {
    /// The certificate, DER.
    pub certificate: &'a [u8],
    /// Its private key.
    pub key: &'a KeyPair,
}

const ROOT: &str = "root CA";
const TOKEN: &str = "token CA";
const NODE: &str = "node CA";
const LEAF: &str = "leaf certificate";

impl Signer<'_> {
    fn issuer(&self, what: &'static str) -> Result<Issuer<'static, &KeyPair>, CertificateError> {
        if spki(parse(self.certificate, what)?) != self.key.subject_public_key_info() {
            return Err(CertificateError::OtherKey { what });
        }
        Issuer::from_ca_cert_der(&CertificateDer::from(self.certificate), self.key)
            .map_err(|e| CertificateError::Malformed { what, reason: e.to_string() })
    }
}

/// Makes the root CA of a cluster called `name`, signed by itself. DER.
///
/// # Errors
/// When the name cannot stand in a certificate.
pub fn root_ca(key: &KeyPair, name: &str) -> Result<Vec<u8>, CertificateError> {
    let params = authority(key, &format!("Hivemind {name} root CA"), BasicConstraints::Unconstrained);
    let made = params.self_signed(key).map_err(|e| not_made(ROOT, &e))?;
    Ok(made.der().to_vec())
}

/// Makes a token CA: it may sign node CAs, and those only leaves. DER.
///
/// # Errors
/// When the root's key does not belong to its certificate.
pub fn token_ca(root: Signer<'_>, key: &KeyPair) -> Result<Vec<u8>, CertificateError> {
    let id = TokenId::of(&key.subject_public_key_info());
    let params = authority(key, &format!("Hivemind token {id}"), BasicConstraints::Constrained(1));
    let made = params.signed_by(key, &root.issuer(ROOT)?).map_err(|e| not_made(TOKEN, &e))?;
    Ok(made.der().to_vec())
}

/// Makes a node CA: the node's identity, bound to the key it signs records with. DER.
///
/// # Errors
/// When the token CA's key does not belong to its certificate.
pub fn node_ca(
    token_ca: Signer<'_>,
    key: &KeyPair,
    record_key: PublicKey,
) -> Result<Vec<u8>, CertificateError> {
    let id = NodeId::of(&key.subject_public_key_info());
    let mut params = authority(key, &id.to_string(), BasicConstraints::Constrained(0));
    let uri = format!("{RECORD_KEY_URN}{}", URL_SAFE_NO_PAD.encode(record_key.0));
    params.subject_alt_names =
        vec![SanType::URI(uri.as_str().try_into().map_err(|e: rcgen::Error| not_made(NODE, &e))?)];
    let made = params.signed_by(key, &token_ca.issuer(TOKEN)?).map_err(|e| not_made(NODE, &e))?;
    Ok(made.der().to_vec())
}

/// Makes a leaf for TLS, as server and as client, valid from `not_before_ms` (since 1970) for
/// `days`. It carries the addresses, the names and [`CLUSTER_NAME`]. DER.
///
/// # Errors
/// When a name is not a host name, there are too many, `days` is not 1 to [`MAX_LEAF_DAYS`], or
/// the node CA's key does not belong to its certificate.
pub fn leaf(
    node_ca: Signer<'_>,
    key: &KeyPair,
    addresses: &[IpAddr],
    names: &[String],
    not_before_ms: u64,
    days: u32,
) -> Result<Vec<u8>, CertificateError> {
    let fail = |reason: String| CertificateError::NotMade { what: LEAF, reason };
    if !(1..=MAX_LEAF_DAYS).contains(&days) {
        return Err(fail(format!("{days} days are not between 1 and {MAX_LEAF_DAYS}")));
    }
    if addresses.len() + names.len() >= MAX_LEAF_NAMES {
        return Err(fail(format!("more than {MAX_LEAF_NAMES} addresses and names")));
    }
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(&NodeId::of(&node_ca.key.subject_public_key_info()).to_string());
    params.subject_alt_names = addresses.iter().map(|address| SanType::IpAddress(*address)).collect();
    for name in names.iter().map(String::as_str).chain([CLUSTER_NAME]) {
        if !is_host_name(name) {
            return Err(fail(format!("{name:?} is not a host name")));
        }
        let name = name.try_into().map_err(|e: rcgen::Error| not_made(LEAF, &e))?;
        params.subject_alt_names.push(SanType::DnsName(name));
    }
    let start_ms = not_before_ms.min(LAST_LEAF_START_MS);
    params.not_before = date_time_ymd(FIRST_YEAR, 1, 1) + Duration::from_secs(start_ms / 1000);
    params.not_after = params.not_before + Duration::from_secs(u64::from(days) * 86_400);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    // Two leaves of one node must not share a number: what differs between them goes into it.
    let distinct = format!("{start_ms} {days} {addresses:?} {names:?}");
    params.serial_number = Some(serial(&[&key.subject_public_key_info(), distinct.as_bytes()]));
    let made = params.signed_by(key, &node_ca.issuer(NODE)?).map_err(|e| not_made(LEAF, &e))?;
    Ok(made.der().to_vec())
}

/// The cluster a root CA makes: the hash of its key.
///
/// # Errors
/// When the bytes are not a self-signed CA certificate.
pub fn cluster_id(root: &[u8]) -> Result<ClusterId, CertificateError> {
    let root = parse(root, ROOT)?;
    if root.verify_signature(None).is_err() || root.issuer().as_raw() != root.subject().as_raw() {
        return Err(CertificateError::NotIssued { what: ROOT, issuer: ROOT });
    }
    fit_authority(&root, ROOT, None)?;
    Ok(ClusterId::of(spki(root)))
}

/// The token a token CA stands for, checked up to the root.
///
/// # Errors
/// When the token CA is not the root's.
pub fn token_id(root: &[u8], token_ca: &[u8]) -> Result<TokenId, CertificateError> {
    verify_token_ca(&parse(root, ROOT)?, token_ca).map(|token| TokenId::of(spki(token)))
}

/// Checks a node CA and its token CA up to the root, and says whose they are. No clock is asked.
///
/// # Errors
/// Says which link does not hold.
pub fn verify_node_chain(
    root: &[u8],
    node_ca: &[u8],
    token_ca: &[u8],
) -> Result<NodeIdentity, CertificateError> {
    let token = verify_token_ca(&parse(root, ROOT)?, token_ca)?;
    let node = parse(node_ca, NODE)?;
    if !issued(&node, &token) {
        return Err(CertificateError::NotIssued { what: NODE, issuer: TOKEN });
    }
    fit_authority(&node, NODE, Some(0))?;
    let record_key = record_key(&node)?;
    Ok(NodeIdentity { node: NodeId::of(spki(node)), token: TokenId::of(spki(token)), record_key })
}

/// Checks the chain a peer shows in TLS (leaf, node CA, token CA; the root may follow) up to our
/// root, at a time inside the leaf's own validity, for use by clients and servers.
///
/// # Errors
/// Says what is wrong in words that a log on either side can carry.
pub fn verify_peer(root: &[u8], chain: &[impl AsRef<[u8]>]) -> Result<NodeIdentity, CertificateError> {
    let [leaf, node_ca, token_ca, rest @ ..] = chain else {
        return Err(CertificateError::Length { found: chain.len() });
    };
    if rest.len() > 1 {
        return Err(CertificateError::Length { found: chain.len() });
    }
    let identity = verify_node_chain(root, node_ca.as_ref(), token_ca.as_ref())?;
    verify_leaf(root, leaf.as_ref(), node_ca.as_ref(), token_ca.as_ref())?;
    Ok(identity)
}

/// Until when (milliseconds since 1970) and since when HTTPS clients accept a certificate.
///
/// # Errors
/// When the bytes are not a certificate.
pub fn validity_ms(certificate: &[u8]) -> Result<(u64, u64), CertificateError> {
    let validity = parse(certificate, LEAF)?.validity().clone();
    let ms = |seconds: i64| u64::try_from(seconds).unwrap_or(0).saturating_mul(1000);
    Ok((ms(validity.not_before.timestamp()), ms(validity.not_after.timestamp())))
}

/// Reads the first certificate in a PEM text (RFC 7468). DER.
///
/// # Errors
/// When there is none or it is not a certificate.
pub fn from_pem(text: &str, what: &'static str) -> Result<Vec<u8>, CertificateError> {
    use rustls_pki_types::pem::PemObject as _;
    let der = CertificateDer::from_pem_slice(text.as_bytes())
        .map_err(|e| CertificateError::Malformed { what, reason: e.to_string() })?;
    parse(&der, what)?;
    Ok(der.to_vec())
}

/// Writes a certificate as PEM (RFC 7468).
pub fn to_pem(certificate: &[u8]) -> String {
    use base64::engine::general_purpose::STANDARD;
    /// Characters to a line, as RFC 7468 demands.
    const LINE: usize = 64;
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    let encoded = STANDARD.encode(certificate);
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(LINE));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// Reads a P-256 private key from PKCS #8 PEM (RFC 5958).
///
/// # Errors
/// When it is not one.
pub fn key_from_pem(text: &str, what: &'static str) -> Result<KeyPair, CertificateError> {
    KeyPair::from_pkcs8_pem_and_sign_algo(text, &rcgen::PKCS_ECDSA_P256_SHA256)
        .map_err(|e| CertificateError::Malformed { what, reason: e.to_string() })
}

/// The public key of a certificate or key pair as ids are made of it: SubjectPublicKeyInfo, DER.
pub fn public_key_info(key: &KeyPair) -> Vec<u8> {
    key.subject_public_key_info()
}

fn not_made(what: &'static str, error: &rcgen::Error) -> CertificateError {
    CertificateError::NotMade { what, reason: error.to_string() }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// What all CA certificates have in common.
fn authority(key: &KeyPair, name: &str, constraints: BasicConstraints) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(name);
    params.not_before = date_time_ymd(FIRST_YEAR, 1, 1);
    params.not_after = date_time_ymd(LAST_YEAR, 12, 31);
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(serial(&[&key.subject_public_key_info(), name.as_bytes()]));
    params
}

/// A serial number of 16 bytes from a hash: positive and never zero (RFC 5280, section 4.1.2.2).
fn serial(parts: &[&[u8]]) -> SerialNumber {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&context.finish().as_ref()[..16]);
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

/// Whether `name` is a host name (RFC 1123), without wildcards.
fn is_host_name(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

fn parse<'a>(der: &'a [u8], what: &'static str) -> Result<X509Certificate<'a>, CertificateError> {
    let malformed = |reason: String| CertificateError::Malformed { what, reason };
    if der.len() > MAX_CERTIFICATE_BYTES {
        return Err(malformed(format!("{} bytes are over {MAX_CERTIFICATE_BYTES}", der.len())));
    }
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(malformed("bytes follow its end".to_owned())),
        Err(error) => Err(malformed(error.to_string())),
    }
}

fn spki(certificate: X509Certificate<'_>) -> &[u8] {
    certificate.tbs_certificate.subject_pki.raw
}

/// Whether `issuer`'s key signed `certificate`, which names it.
fn issued(certificate: &X509Certificate<'_>, issuer: &X509Certificate<'_>) -> bool {
    certificate.issuer().as_raw() == issuer.subject().as_raw()
        && certificate.verify_signature(Some(issuer.public_key())).is_ok()
}

/// Checks that a certificate may sign others, down to `path_length` more below it.
fn fit_authority(
    certificate: &X509Certificate<'_>,
    what: &'static str,
    path_length: Option<u32>,
) -> Result<(), CertificateError> {
    let unfit = |fault: &str| Err(CertificateError::Unfit { what, fault: fault.to_owned() });
    let malformed =
        |e: x509_parser::error::X509Error| CertificateError::Malformed { what, reason: e.to_string() };
    match certificate.basic_constraints().map_err(malformed)? {
        Some(constraints) if constraints.value.ca => {
            if path_length.is_some() && constraints.value.path_len_constraint != path_length {
                return unfit("has the wrong path length");
            }
        }
        _ => return unfit("is not a CA"),
    }
    match certificate.key_usage().map_err(malformed)? {
        Some(usage) if usage.value.key_cert_sign() => Ok(()),
        _ => unfit("may not sign certificates"),
    }
}

fn verify_token_ca<'a>(
    root: &X509Certificate<'_>,
    token_ca: &'a [u8],
) -> Result<X509Certificate<'a>, CertificateError> {
    let token = parse(token_ca, TOKEN)?;
    if !issued(&token, root) {
        return Err(CertificateError::OtherCluster);
    }
    fit_authority(&token, TOKEN, Some(1))?;
    Ok(token)
}

fn record_key(node: &X509Certificate<'_>) -> Result<PublicKey, CertificateError> {
    let unfit = |fault: &str| CertificateError::Unfit { what: NODE, fault: fault.to_owned() };
    let names = node
        .subject_alternative_name()
        .map_err(|e| CertificateError::Malformed { what: NODE, reason: e.to_string() })?
        .ok_or_else(|| unfit("names no record key"))?;
    let [GeneralName::URI(uri)] = names.value.general_names.as_slice() else {
        return Err(unfit("names something else than one record key"));
    };
    uri.strip_prefix(RECORD_KEY_URN)
        .and_then(|text| URL_SAFE_NO_PAD.decode(text).ok())
        .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
        .map(PublicKey)
        .ok_or_else(|| unfit("names a record key that cannot be read"))
}

/// Checks the whole path by the library that TLS itself uses, both purposes.
fn verify_leaf(root: &[u8], leaf: &[u8], node_ca: &[u8], token_ca: &[u8]) -> Result<(), CertificateError> {
    let (from_ms, _) = validity_ms(leaf)?;
    let unfit =
        |e: webpki::Error| CertificateError::Unfit { what: LEAF, fault: format!("is not valid: {e:?}") };
    let root = CertificateDer::from(root);
    let anchor = webpki::anchor_from_trusted_cert(&root).map_err(unfit)?;
    let leaf = CertificateDer::from(leaf);
    let leaf = webpki::EndEntityCert::try_from(&leaf).map_err(unfit)?;
    let between = [CertificateDer::from(node_ca), CertificateDer::from(token_ca)];
    let within = UnixTime::since_unix_epoch(Duration::from_millis(from_ms));
    for usage in [webpki::KeyUsage::server_auth(), webpki::KeyUsage::client_auth()] {
        leaf.verify_for_usage(
            &[webpki::ring::ECDSA_P256_SHA256],
            std::slice::from_ref(&anchor),
            &between,
            within,
            usage,
            None,
            None,
        )
        .map_err(unfit)?;
    }
    Ok(())
}

/// The first digits of a certificate's hash, for people who compare logs of two sides.
pub fn fingerprint(certificate: &[u8]) -> String {
    hex(&ring::digest::digest(&ring::digest::SHA256, certificate).as_ref()[..8])
}

#[cfg(test)]
mod tests;
