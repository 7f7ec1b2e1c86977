//! Who acts in a simulated world: keys, tokens, and the documents operators sign.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use hivemind_core::record::{Record, RecordKey, Topic, WorkloadId};
use hivemind_core::state::encode;
use hivemind_core::statement;
use hivemind_spec::certificate::{CertificateError, NodeIdentity};
use hivemind_spec::document::{DEFAULT_NAMESPACE, Document, Kind, Role, Spec, SpecKey, TokenSpec};
use hivemind_spec::dsse::Envelope;
use hivemind_spec::id::{Digest, NodeId, ReleaseId, TokenId};
use hivemind_spec::key::{PublicKey, SigningKey};
use hivemind_spec::release::{Architecture, OsReleaseSpec, ReleaseFile};
use hivemind_spec::secret::{Content, SecretSpec, secret_key};
use hivemind_spec::workload::{Device, SecretMount, VolumeMount, WorkloadSpec};

/// Wall time at the beginning, milliseconds since 1970: in January 2027.
pub const START_MS: u64 = 1_800_000_000_000;

/// Milliseconds in a day.
pub const DAY_MS: u64 = 24 * 3600 * 1000;

/// The image every workload runs.
pub const IMAGE: &str = "registry.lab:5000/nginx:1";

/// The device that some machines have and some workloads ask for.
pub const MODEM: &str = "/dev/ttyUSB0";

/// The stand-in for the root CA of the world's own cluster.
pub const ROOT: &[u8] = b"root of ours;";

/// The stand-in for X.509, which would cost most of a simulation's time: a token CA is the root
/// CA's bytes and more, a node CA the token CA's bytes and a record key.
///
/// # Errors
/// When the bytes are not such a chain.
pub fn verify_chain(root: &[u8], node_ca: &[u8], token_ca: &[u8]) -> Result<NodeIdentity, CertificateError> {
    let record_key = node_ca
        .strip_prefix(token_ca)
        .filter(|_| token_ca.starts_with(root))
        .and_then(|key| key.try_into().ok())
        .ok_or(CertificateError::OtherCluster)?;
    Ok(NodeIdentity {
        node: NodeId::of(node_ca),
        token: TokenId::of(token_ca),
        record_key: PublicKey(record_key),
    })
}

/// Verdicts on signatures remembered at once; a life sees some ten thousand.
const MAX_VERDICTS: usize = 100_000;

thread_local! {
    /// Verdicts by the SHA-256 of key, signature and message.
    static VERDICTS: RefCell<HashMap<Digest, bool>> = RefCell::default();
}

/// Checks a signature in earnest once, and remembers what came of it: all nodes of a world check the
/// same signatures, which would be half of a simulation's time.
pub fn verify_signature(key: &PublicKey, message: &[u8], signature: &[u8]) -> bool {
    let length = (signature.len() as u64).to_be_bytes();
    let what = Digest::of(&[&key.0, length.as_slice(), signature, message].concat());
    VERDICTS.with_borrow_mut(|verdicts| {
        if verdicts.len() >= MAX_VERDICTS {
            verdicts.clear();
        }
        *verdicts.entry(what).or_insert_with(|| key.verifies(message, signature))
    })
}

/// The chain of a node with this record key, by the token of this name.
pub fn chain(token: &str, key: &SigningKey) -> Vec<Vec<u8>> {
    let token = token_ca(token);
    vec![[token.as_slice(), &key.public().0].concat(), token]
}

/// The operators' root key.
pub fn root_key() -> SigningKey {
    SigningKey::from_seed([200; 32])
}

/// A key of nobody in the cluster.
pub fn strangers_key() -> SigningKey {
    SigningKey::from_seed([99; 32])
}

/// A token CA's stand-in.
pub fn token_ca(name: &str) -> Vec<u8> {
    [ROOT, b"token ", name.as_bytes()].concat()
}

/// A token's document, signed with the root key. The window is in milliseconds since 1970.
pub fn token_document(name: &str, window: Range<u64>, max_uses: Option<u32>) -> Envelope {
    let spec = TokenSpec {
        id: TokenId::of(&token_ca(name)),
        not_before_ms: window.start,
        not_after_ms: window.end,
        max_uses,
    };
    let mut document = named(
        r#"{"apiVersion":"hivemind/v1","kind":"Token","metadata":{"name":"NAME","revision":1},
        "spec":{"id":"00000000000000000000000000000000","notBeforeMs":0,"notAfterMs":0}}"#,
        name,
    );
    document.spec = Some(Spec::Token(spec));
    sign(&document, &root_key())
}

/// A workload of the namespace `default` with so many replicas, signed by `key`.
pub fn workload(name: &str, revision: u64, replicas: u32, key: &SigningKey) -> Envelope {
    workload_with(name, revision, key, |spec| spec.replicas = replicas)
}

/// A workload of the namespace `default`, made to measure.
pub fn workload_with(
    name: &str,
    revision: u64,
    key: &SigningKey,
    shape: impl FnOnce(&mut WorkloadSpec),
) -> Envelope {
    sign(&workload_document(name, revision, shape), key)
}

/// The same before it is signed.
pub fn workload_document(name: &str, revision: u64, shape: impl FnOnce(&mut WorkloadSpec)) -> Document {
    let json = r#"{"apiVersion":"hivemind/v1","kind":"Workload","metadata":{"name":"NAME","namespace":"default","revision":1},
        "spec":{"replicas":1,"container":{"image":"IMAGE"}}}"#;
    let mut document = named(&json.replace("IMAGE", IMAGE), name);
    document.metadata.revision = revision;
    if let Some(Spec::Workload(spec)) = &mut document.spec {
        shape(spec);
    }
    document
}

/// That containers of the namespace `default` may be given devices.
pub fn namespace_with_devices(revision: u64) -> Envelope {
    let json = r#"{"apiVersion":"hivemind/v1","kind":"Namespace","metadata":{"name":"NAME","revision":1},
        "spec":{"allow":["devices"]}}"#;
    let mut document = named(json, DEFAULT_NAMESPACE);
    document.metadata.revision = revision;
    sign(&document, &root_key())
}

/// The modem in a container.
pub fn modem() -> Device {
    Device { path: MODEM.to_owned(), target: MODEM.to_owned(), access: "rw".to_owned() }
}

/// A volume of which there is one.
pub fn volume(name: &str, revision: u64) -> Envelope {
    let json = r#"{"apiVersion":"hivemind/v1","kind":"Volume","metadata":{"name":"NAME","namespace":"default","revision":1},
        "spec":{}}"#;
    let mut document = named(json, name);
    document.metadata.revision = revision;
    sign(&document, &root_key())
}

/// A secret that these nodes can open.
pub fn secret(name: &str, revision: u64, nodes: &BTreeMap<NodeId, PublicKey>) -> Envelope {
    let key = secret_key("default", name);
    let content = Content::new(name.as_bytes().to_vec());
    let sealed = SecretSpec::seal(&key, &content, nodes, &root_key(), [7; 32]);
    let mut document = Document::tombstone(&key, revision);
    document.metadata.deleted = false;
    document.spec = Some(Spec::Secret(sealed.unwrap_or_else(|error| panic!("{error}"))));
    sign(&document, &root_key())
}

/// A secret in a container.
pub fn secret_mount(secret: &str) -> SecretMount {
    let path = format!("/run/secrets/{secret}");
    SecretMount { secret: secret.to_owned(), path, uid: 0, gid: 0, mode: 0o444 }
}

/// A volume in a container, at `/data`.
pub fn mount(volume: &str) -> VolumeMount {
    VolumeMount {
        volume: volume.to_owned(),
        path: "/data".to_owned(),
        read_only: false,
        no_copy: false,
        subpath: None,
    }
}

/// An operator's key, signed by `by`.
pub fn key_document(
    name: &str,
    revision: u64,
    of: &SigningKey,
    shape: KeyShape,
    by: &SigningKey,
) -> Envelope {
    let json = r#"{"apiVersion":"hivemind/v1","kind":"Key","metadata":{"name":"NAME","revision":1},
        "spec":{"publicKey":"AAAA","role":"viewer"}}"#;
    let mut document = named(json, name);
    document.metadata.revision = revision;
    if let Some(Spec::Key(spec)) = &mut document.spec {
        spec.public_key = of.public().to_base64();
        spec.role = shape.role;
        spec.namespaces = shape.namespaces.iter().map(|name| (*name).to_owned()).collect();
        spec.retired = shape.retired;
        spec.revoked = shape.revoked;
    }
    sign(&document, by)
}

/// What a key's document says.
#[derive(Debug, Clone, Copy)]
pub struct KeyShape {
    /// What the key may do.
    pub role: Role,
    /// Where; empty: everywhere.
    pub namespaces: &'static [&'static str],
    /// It signs nothing new.
    pub retired: bool,
    /// Nothing it signed counts.
    pub revoked: bool,
}

impl KeyShape {
    /// A live key.
    pub fn live(role: Role, namespaces: &'static [&'static str]) -> Self {
        Self { role, namespaces, retired: false, revoked: false }
    }
}

/// The `number`th release of the operating system, not to go on if `paused`.
pub fn release(number: u8, revision: u64, paused: bool) -> Envelope {
    let file = ReleaseFile::of(&[number][..]).unwrap_or_else(|error| panic!("{error}"));
    let spec = OsReleaseSpec {
        version: format!("1.0.{number}"),
        release: ReleaseId::of(&[number]),
        architecture: Architecture::Amd64,
        minimum: "1.0.0".to_owned(),
        root: file.clone(),
        kernel: file,
        sources: vec!["https://example.org/os".to_owned()],
        paused,
    };
    let mut document = Document::tombstone(&release_key(), revision);
    document.metadata.deleted = false;
    document.spec = Some(Spec::OsRelease(Box::new(spec)));
    sign(&document, &root_key())
}

/// The name of the document of the machines' release.
pub fn release_key() -> SpecKey {
    SpecKey { kind: Kind::OsRelease, namespace: String::new(), name: Architecture::Amd64.name().to_owned() }
}

/// A node cut off for good by the root key.
pub fn revocation(node: NodeId, revision: u64) -> Envelope {
    let json = r#"{"apiVersion":"hivemind/v1","kind":"NodeIntent","metadata":{"name":"NAME","revision":1},
        "spec":{"node":"NAME","revoked":true}}"#;
    let mut document = named(json, &node.to_string());
    document.metadata.revision = revision;
    sign(&document, &root_key())
}

/// The deletion of a document.
pub fn tombstone(key: &SpecKey, revision: u64, by: &SigningKey) -> Envelope {
    sign(&Document::tombstone(key, revision), by)
}

/// The name of a workload's document in the namespace `default`.
pub fn workload_key(name: &str) -> SpecKey {
    SpecKey { kind: Kind::Workload, namespace: DEFAULT_NAMESPACE.to_owned(), name: name.to_owned() }
}

/// The same as the core names workloads.
pub fn workload_id(name: &str) -> WorkloadId {
    WorkloadId { namespace: DEFAULT_NAMESPACE.to_owned(), name: name.to_owned() }
}

/// Signs a document.
pub fn sign(document: &Document, key: &SigningKey) -> Envelope {
    Envelope::sign(&document.to_json(), key)
}

/// A document from JSON in which `NAME` stands for its name.
///
/// # Panics
/// When it is none.
pub fn named(json: &str, name: &str) -> Document {
    Document::parse(json.replace("NAME", name).as_bytes()).unwrap_or_else(|error| panic!("{error}"))
}

/// What a node of a later release says on a topic that comes after those of this one.
pub fn of_later_topic(writer: NodeId, key: &SigningKey, said: &[u8]) -> (RecordKey, Record) {
    let topic = [9, 0, 255];
    let body = encode(&(0u32, 1u64, 1_000_000u64, topic.to_vec(), said.to_vec()));
    let record = Record::Statement(statement::sign_bytes(writer, key, body));
    (RecordKey::Observation(writer, Topic::Unknown(topic.to_vec())), record)
}
