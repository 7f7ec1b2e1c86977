//! The node's identity on disk, and the certificates made from it (design, section 5).
//!
//! ```text
//!   no identity, token key in the configuration
//!        │ make key, let the token CA sign the node CA, store durably
//!        ▼
//!   identity stored, token key still there      (a power cut here changes nothing)
//!        │ the caller erases the token key: `hivemind_init::config::erase_token_key`
//!        ▼
//!   identity stored, no CA key left but the node's own
//! ```
//!
//! The order matters: [`Identity::load_or_enrol`] returns only when the identity is on the disk,
//! and only then may the caller erase the token key. Whenever the configuration still holds a
//! token key after a successful return, it is to be erased, enrolled now or earlier.
//!
//! The identity is one file outside the store, so that a damaged store never costs a node its
//! name. It is never remade silently: a new identity would be a new node.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use hivemind_spec::certificate::{self, CertificateError, KeyPair, NodeIdentity, Signer};
use hivemind_spec::document::{Document, Spec};
use hivemind_spec::dsse::{Envelope, EnvelopeError};
use hivemind_spec::id::{ClusterId, KeyId, NodeId, TokenId};
use hivemind_spec::key::{PublicKey, SigningKey};
use hivemind_spec::machine::{MachineConfig, Token};
use ring::rand::SecureRandom as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use hivemind_init::durable;

/// Where the identity is on a machine.
pub const FOLDER: &str = "/var/lib/hivemind/identity";

const IDENTITY_FILE: &str = "identity.json";
const STARTS_FILE: &str = "starts";

/// The node's subnet, decimal: kept here too, because the store may be lost.
const SUBNET_FILE: &str = "subnet";

/// The largest identity file read, bytes: ten times what is written.
const MAX_IDENTITY_BYTES: u64 = 64 * 1024;

/// The format of [`IDENTITY_FILE`].
const FORMAT: u32 = 1;

/// How far a leaf reaches into the past, milliseconds: clients whose clocks are behind by up to a
/// day accept it.
const LEAF_BACKDATE_MS: u64 = 24 * 3600 * 1000;

/// Why a node has no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The disk refused.
    #[error("the identity in {path} cannot be {action}: {source}")]
    Disk {
        /// The file or folder.
        path: PathBuf,
        /// `read` or `stored`.
        action: &'static str,
        /// What the file system said.
        source: io::Error,
    },
    /// The file is there and is no identity.
    #[error(
        "{path} is damaged ({reason}). Write a configuration with a join token to the machine, delete the \
         file and start again: the node then enrols anew, under another id"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Neither an identity nor a key to make one.
    #[error(
        "this machine has no identity, and its configuration holds no join token with a key. Make a token \
         with `hivemind token create` and write it with `hivemind image configure`"
    )]
    NoToken,
    /// The configuration contradicts itself.
    #[error("the machine configuration's {place}: {reason}")]
    Configuration {
        /// The key's path in the file.
        place: &'static str,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The identity was made in another cluster.
    #[error(
        "this machine is node {node} of another cluster than its configuration's {configured}. Give it the \
         configuration it had, or erase its state to enrol it anew"
    )]
    OtherCluster {
        /// Its id.
        node: NodeId,
        /// What the configuration names.
        configured: ClusterId,
    },
    /// A certificate could not be made.
    #[error("a certificate could not be made: {0}")]
    Certificate(#[from] CertificateError),
    /// The system has no randomness.
    #[error("the system gives no random numbers")]
    Randomness,
}

impl IdentityError {
    /// The stable code, for logs and tests.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Disk { .. } => "identity-disk",
            Self::Damaged { .. } => "identity-damaged",
            Self::NoToken => "identity-no-token",
            Self::Configuration { .. } => "identity-configuration",
            Self::OtherCluster { .. } => "identity-other-cluster",
            Self::Certificate(_) => "identity-certificate",
            Self::Randomness => "identity-randomness",
        }
    }
}

/// What is stored. Certificates and keys in PEM and base64, so that standard tools read them.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    format: u32,
    node_ca: String,
    node_ca_key: String,
    token_ca: String,
    record_key: String,
}

/// Who the node is.
pub struct Identity {
    cluster: ClusterId,
    ids: NodeIdentity,
    root: Vec<u8>,
    token_ca: Vec<u8>,
    node_ca: Vec<u8>,
    node_key: KeyPair,
    record_key: SigningKey,
    starts: u64,
    enrolled_now: bool,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({}, start {})", self.ids.node, self.starts)
    }
}

impl Identity {
    /// Reads the identity in `folder`, or makes one with the token key in the configuration; then
    /// counts this start. To be called once by each start of the agent. `now_ms` is the clock,
    /// milliseconds since 1970; it matters only if the count of starts was lost.
    ///
    /// # Errors
    /// See [`IdentityError`]. Nothing is stored unless all of it is.
    pub fn load_or_enrol(folder: &Path, config: &MachineConfig, now_ms: u64) -> Result<Self, IdentityError> {
        let root = configured_root(config)?;
        let path = folder.join(IDENTITY_FILE);
        let (stored, enrolled_now) = match read(&path)? {
            Some(text) => (parse(&path, &text)?, false),
            None => (enrol(folder, config, &root)?, true),
        };
        let damaged = |e: String| IdentityError::Damaged { path: path.clone(), reason: e };
        let node_ca =
            certificate::from_pem(&stored.node_ca, "node CA").map_err(|e| damaged(e.to_string()))?;
        let token_ca =
            certificate::from_pem(&stored.token_ca, "token CA").map_err(|e| damaged(e.to_string()))?;
        let node_key = certificate::key_from_pem(&stored.node_ca_key, "node CA key")
            .map_err(|e| damaged(e.to_string()))?;
        let record_key = SigningKey::from_base64(&stored.record_key).map_err(|e| damaged(e.to_string()))?;
        let node = NodeId::of(&certificate::public_key_info(&node_key));
        let ids = match certificate::verify_node_chain(&root, &node_ca, &token_ca) {
            Ok(ids) => ids,
            Err(CertificateError::OtherCluster) => {
                return Err(IdentityError::OtherCluster { node, configured: config.cluster.id });
            }
            Err(error) => return Err(damaged(error.to_string())),
        };
        if ids.node != node || ids.record_key != record_key.public() {
            return Err(damaged("its keys are not those of its certificate".to_owned()));
        }
        let starts = count_start(folder, now_ms)?;
        let cluster = config.cluster.id;
        Ok(Self { cluster, ids, root, token_ca, node_ca, node_key, record_key, starts, enrolled_now })
    }

    /// The node's id.
    pub fn node(&self) -> NodeId {
        self.ids.node
    }

    /// The token the node enrolled with.
    pub fn token(&self) -> TokenId {
        self.ids.token
    }

    /// The node's cluster.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The root CA, DER.
    pub fn root(&self) -> &[u8] {
        &self.root
    }

    /// Node CA and token CA, DER: the proof of membership, up to the root CA.
    pub fn chain(&self) -> Vec<Vec<u8>> {
        vec![self.node_ca.clone(), self.token_ca.clone()]
    }

    /// The key the node signs its records with.
    pub fn record_key(&self) -> &SigningKey {
        &self.record_key
    }

    /// The public half of the record key.
    pub fn record_public(&self) -> PublicKey {
        self.ids.record_key
    }

    /// The node's incarnation: how often its agent has started, this time included. It counts
    /// starts of the agent and not of the kernel, because an agent that starts again has
    /// forgotten the sequence numbers it gave and so needs a new incarnation just the same.
    pub fn boot(&self) -> u64 {
        self.starts
    }

    /// Whether the identity was made by this call.
    pub fn enrolled_now(&self) -> bool {
        self.enrolled_now
    }

    /// A key that only this node knows and that is the same after every start, for `purpose`.
    pub fn derive(&self, purpose: &str) -> Vec<u8> {
        // Ed25519 signatures are deterministic, and nobody else can make this one.
        self.record_key.sign(format!("hivemind derived key: {purpose}").as_bytes())
    }

    /// Makes a leaf for the addresses and names, with a new key. The names come besides
    /// `hivemind.internal` and `NODE-ID.hivemind.internal`.
    ///
    /// # Errors
    /// When a name is not a host name.
    pub fn mint_leaf(
        &self,
        addresses: &[IpAddr],
        names: &[String],
        now_ms: u64,
    ) -> Result<Leaf, IdentityError> {
        let key = generate()?;
        let mut names = names.to_vec();
        names.push(format!("{}.{}", self.node(), certificate::CLUSTER_NAME));
        let signer = Signer { certificate: &self.node_ca, key: &self.node_key };
        let from_ms = now_ms.saturating_sub(LEAF_BACKDATE_MS);
        let leaf = certificate::leaf(signer, &key, addresses, &names, from_ms, certificate::LEAF_DAYS)?;
        let (from_ms, until_ms) = certificate::validity_ms(&leaf)?;
        let chain = [leaf, self.node_ca.clone(), self.token_ca.clone()].map(CertificateDer::from).to_vec();
        Ok(Leaf { chain, key: key.serialize_der(), addresses: addresses.to_vec(), from_ms, until_ms })
    }
}

/// A leaf certificate with its chain and key. Lives in memory only; each start mints a new one.
pub struct Leaf {
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
    addresses: Vec<IpAddr>,
    from_ms: u64,
    until_ms: u64,
}

impl Leaf {
    /// Leaf, node CA and token CA, as TLS shows them.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The leaf's private key.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()))
    }

    /// Puts another node's certificates above this leaf: what a lying member would show.
    #[cfg(test)]
    pub(crate) fn claim(&mut self, victim: &Identity) {
        self.chain.truncate(1);
        self.chain.extend(victim.chain().into_iter().map(CertificateDer::from));
    }

    /// Whether a new leaf is due: other addresses, half of its life over, or a clock that has
    /// gone back to before its beginning.
    pub fn is_stale(&self, addresses: &[IpAddr], now_ms: u64) -> bool {
        let half_ms = self.from_ms + (self.until_ms - self.from_ms) / 2;
        self.addresses != addresses || now_ms < self.from_ms || now_ms >= half_ms
    }
}

fn generate() -> Result<KeyPair, IdentityError> {
    KeyPair::generate().map_err(|_| IdentityError::Randomness)
}

/// The root CA of the configuration, checked against the cluster id.
fn configured_root(config: &MachineConfig) -> Result<Vec<u8>, IdentityError> {
    let place = "cluster.root_ca";
    let wrong = |reason: String| IdentityError::Configuration { place, reason };
    let root = certificate::from_pem(&config.cluster.root_ca, "root CA").map_err(|e| wrong(e.to_string()))?;
    let id = certificate::cluster_id(&root).map_err(|e| wrong(e.to_string()))?;
    if id != config.cluster.id {
        return Err(wrong(format!("it makes the cluster {id}, but cluster.id is {}", config.cluster.id)));
    }
    Ok(root)
}

fn read(path: &Path) -> Result<Option<String>, IdentityError> {
    let disk = |source| IdentityError::Disk { path: path.to_owned(), action: "read", source };
    match fs::metadata(path) {
        Ok(found) if found.len() > MAX_IDENTITY_BYTES => Err(IdentityError::Damaged {
            path: path.to_owned(),
            reason: format!("{} bytes are over {MAX_IDENTITY_BYTES}", found.len()),
        }),
        Ok(_) => match String::from_utf8(fs::read(path).map_err(disk)?) {
            Ok(text) => Ok(Some(text)),
            Err(error) => Err(IdentityError::Damaged { path: path.to_owned(), reason: error.to_string() }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(disk(error)),
    }
}

fn parse(path: &Path, text: &str) -> Result<Stored, IdentityError> {
    let damaged = |reason: String| IdentityError::Damaged { path: path.to_owned(), reason };
    let stored: Stored = serde_json::from_str(text).map_err(|e| damaged(e.to_string()))?;
    if stored.format != FORMAT {
        return Err(damaged(format!("format {} is not known here", stored.format)));
    }
    Ok(stored)
}

/// Makes an identity and stores it.
fn enrol(folder: &Path, config: &MachineConfig, root: &[u8]) -> Result<Stored, IdentityError> {
    let token = config.token.as_ref().ok_or(IdentityError::NoToken)?;
    let token_key = token.ca_key.as_ref().ok_or(IdentityError::NoToken)?;
    let wrong = |place: &'static str| {
        move |e: CertificateError| IdentityError::Configuration { place, reason: e.to_string() }
    };
    let token_ca = certificate::from_pem(&token.ca, "token CA").map_err(wrong("token.ca"))?;
    let token_id = certificate::token_id(root, &token_ca).map_err(wrong("token.ca"))?;
    check_token_document(token, token_id, config)
        .map_err(|reason| IdentityError::Configuration { place: "token.document", reason })?;
    let token_key = certificate::key_from_pem(token_key, "token CA key").map_err(wrong("token.ca_key"))?;

    let mut seed = [0; 32];
    ring::rand::SystemRandom::new().fill(&mut seed).map_err(|_| IdentityError::Randomness)?;
    let record_key = SigningKey::from_seed(seed);
    let node_key = generate()?;
    let signer = Signer { certificate: &token_ca, key: &token_key };
    let node_ca =
        certificate::node_ca(signer, &node_key, record_key.public()).map_err(wrong("token.ca_key"))?;
    let stored = Stored {
        format: FORMAT,
        node_ca: certificate::to_pem(&node_ca),
        node_ca_key: node_key.serialize_pem(),
        token_ca: certificate::to_pem(&token_ca),
        record_key: record_key.to_base64(),
    };
    let disk = |source| IdentityError::Disk { path: folder.to_owned(), action: "stored", source };
    let text = serde_json::to_vec_pretty(&stored).map_err(|e| disk(e.into()))?;
    durable::make_folder(folder).map_err(disk)?;
    durable::write(folder, IDENTITY_FILE, &text).map_err(disk)?;
    Ok(stored)
}

/// Whether the document belongs to the token and is as it was signed. Without it no member would let
/// the node in, and it would be too late to say why: the token's key is erased by then.
fn check_token_document(token: &Token, id: TokenId, config: &MachineConfig) -> Result<(), String> {
    let roots: Vec<PublicKey> =
        config.cluster.root_keys.iter().filter_map(|key| PublicKey::from_base64(key).ok()).collect();
    let known = |id: &KeyId| roots.iter().find(|key| key.id() == *id).copied();
    let damaged = |what: String| format!("{what}; a new token is made by `hivemind token create`");
    let envelope = Envelope::parse(token.document.as_bytes()).map_err(|e| damaged(e.to_string()))?;
    let document = match envelope.verify(known) {
        Ok(verified) => verified.value().clone(),
        // By a key that only the members know: they decide.
        Err(EnvelopeError::Untrusted(_)) => envelope
            .payload()
            .and_then(|payload| Ok(Document::parse(&payload)?))
            .map_err(|e| damaged(e.to_string()))?,
        Err(EnvelopeError::Document(error)) => return Err(damaged(error.to_string())),
        Err(error) => return Err(damaged(error.to_string())),
    };
    match document.spec {
        Some(Spec::Token(spec)) if spec.id == id => Ok(()),
        Some(Spec::Token(spec)) => Err(damaged(format!("it is the document of another token, {}", spec.id))),
        _ => Err(damaged(format!("it is no token's document, but {}", document.key()))),
    }
}

/// Remembers the node's subnet beside its identity.
///
/// # Errors
/// Those of the file system; what was remembered before stands.
pub fn remember_subnet(folder: &Path, subnet: u16) -> io::Result<()> {
    durable::write(folder, SUBNET_FILE, format!("{subnet}\n").as_bytes())
}

/// The subnet that [`remember_subnet`] wrote last, if any can be read.
pub fn remembered_subnet(folder: &Path) -> Option<u16> {
    fs::read_to_string(folder.join(SUBNET_FILE)).ok()?.trim().parse().ok()
}

/// Counts a start durably. A count that was lost is continued from the clock in seconds, which is
/// beyond any count of starts.
fn count_start(folder: &Path, now_ms: u64) -> Result<u64, IdentityError> {
    let path = folder.join(STARTS_FILE);
    let before = match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().unwrap_or(now_ms / 1000),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(_) => now_ms / 1000,
    };
    let starts = before.saturating_add(1);
    durable::write(folder, STARTS_FILE, format!("{starts}\n").as_bytes())
        .map_err(|source| IdentityError::Disk { path, action: "stored", source })?;
    Ok(starts)
}

#[cfg(test)]
pub(crate) mod tests;
