//! Documents: what operators write, sign and push.
//!
//! `{"apiVersion": "hivemind/v1", "kind": …, "metadata": {…}, "spec": {…}}`. The JSON bytes are
//! what is signed (see [`crate::dsse`]), stored, replicated and verified again.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::id::{Digest, NodeId, TokenId};
use crate::namespace::NamespaceSpec;
use crate::release::OsReleaseSpec;
use crate::secret::SecretSpec;
use crate::volume::VolumeSpec;
use crate::workload::WorkloadSpec;

mod kind;

pub use kind::{Kind, KindName};

/// The only API version there is.
pub const API_VERSION: &str = "hivemind/v1";

/// The largest document accepted, in bytes: far more than any real workload, small enough that
/// a node with 256 MB can hold a burst of them.
pub const MAX_DOCUMENT_BYTES: usize = 1024 * 1024;

/// The namespace of documents that name none and need one.
pub const DEFAULT_NAMESPACE: &str = "default";

/// What a document is called: unique in the cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
pub struct SpecKey {
    /// The document's kind.
    pub kind: Kind,
    /// The namespace; empty for kinds that belong to the whole cluster.
    pub namespace: String,
    /// The name, a DNS label (RFC 1123).
    pub name: String,
}

impl fmt::Display for SpecKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{}/{}", self.kind, self.name)
        } else {
            write!(f, "{}/{}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// A document's name, place in time and labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// A DNS label (RFC 1123): at most 63 lower-case letters, digits and inner hyphens. For a
    /// `NodeIntent` the node id, for an `OsRelease` the architecture.
    pub name: String,
    /// The namespace, a DNS label; empty for kinds that belong to the whole cluster.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Free labels for people and selectors.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The signer's clock in milliseconds since 1970, or the current revision + 1 if that is
    /// more. The highest revision wins; equal ones are decided by digest.
    pub revision: u64,
    /// The digest of the version this one is meant to replace. When it is no longer current, the
    /// push is refused as a conflict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub replaces: Option<Digest>,
    /// The versions this one was made from, the newest first, at most [`MAX_ANCESTORS`]: whose version
    /// it takes the place of without having known it is told so. Absent: the signer did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ancestors: Option<Vec<Ancestor>>,
    /// Set in a tombstone: the document is deleted, and `spec` is absent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
}

/// Versions a document says it was made from, at most. A signer who knew of more than these is not
/// suspected of not having known them.
pub const MAX_ANCESTORS: usize = 8;

/// An earlier version of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ancestor {
    /// Its revision.
    pub revision: u64,
    /// The digest of its signed bytes.
    #[schema(value_type = String)]
    pub digest: Digest,
}

impl Metadata {
    /// Whether this version was made without knowing that one, which lost its place to it. False
    /// where that cannot be told.
    pub fn overlooks(&self, other: &Ancestor) -> bool {
        let Some(ancestors) = &self.ancestors else { return false };
        let forgotten =
            ancestors.get(MAX_ANCESTORS - 1).is_some_and(|oldest| other.revision <= oldest.revision);
        !forgotten && !ancestors.iter().any(|ancestor| ancestor.digest == other.digest)
    }
}

/// A document's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Spec {
    /// See [`Kind::Key`].
    Key(KeySpec),
    /// See [`Kind::Token`].
    Token(TokenSpec),
    /// See [`Kind::NodeIntent`].
    NodeIntent(NodeIntentSpec),
    /// See [`Kind::Workload`].
    Workload(Box<WorkloadSpec>),
    /// See [`Kind::OsRelease`].
    OsRelease(Box<OsReleaseSpec>),
    /// See [`Kind::Volume`].
    Volume(VolumeSpec),
    /// See [`Kind::Secret`].
    Secret(SecretSpec),
    /// See [`Kind::Namespace`].
    Namespace(NamespaceSpec),
    /// Something that a later release reads ([`Document::read_held`]).
    #[serde(skip)]
    Later,
}

/// The three built-in roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// May do everything.
    Admin,
    /// May push and remove workloads, volumes and secrets, and read.
    Deployer,
    /// May read.
    Viewer,
}

/// An operator's public key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeySpec {
    /// The raw Ed25519 public key in standard base64.
    pub public_key: String,
    /// What the key may do.
    pub role: Role,
    /// Whose key it is, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub owner: String,
    /// The namespaces it may touch; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// A retired key signs nothing new; what it signed before this revision stays valid.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retired: bool,
    /// A revoked key signs nothing, and all it ever signed is invalid.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub revoked: bool,
}

/// Who may join with a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenSpec {
    /// The token: the hash of the public key of its token CA.
    #[schema(value_type = String)]
    pub id: TokenId,
    /// Start of the enrolment window, milliseconds since 1970.
    pub not_before_ms: u64,
    /// End of the enrolment window, milliseconds since 1970.
    pub not_after_ms: u64,
    /// How many nodes may enrol with it; absent: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_uses: Option<u32>,
}

/// What an operator wants of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeIntentSpec {
    /// The node.
    #[schema(value_type = String)]
    pub node: NodeId,
    /// Nothing new is placed on a cordoned node.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cordoned: bool,
    /// A revoked node is cut off for good.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub revoked: bool,
    /// Labels for placement constraints, over those of the machine configuration.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A parsed and validated document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Name, revision, labels.
    pub metadata: Metadata,
    /// The kind, also of a tombstone.
    pub kind: Kind,
    /// The content; absent in a tombstone.
    pub spec: Option<Spec>,
}

/// Why bytes are not a document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} (at {pointer:?})")]
pub struct DocumentError {
    /// Where, as a JSON pointer (RFC 6901); empty for the whole document.
    pub pointer: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl DocumentError {
    pub(crate) fn new(pointer: impl Into<String>, message: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), message: message.into() }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Raw {
    api_version: String,
    kind: Kind,
    metadata: Metadata,
    #[serde(default)]
    spec: Option<Value>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RawRef<'a> {
    api_version: &'static str,
    kind: Kind,
    metadata: &'a Metadata,
    #[serde(skip_serializing_if = "Option::is_none")]
    spec: Option<&'a Spec>,
}

/// What every release reads of a document, whatever else is in it.
#[derive(Deserialize)]
struct Outline {
    kind: Kind,
    metadata: OutlineMetadata,
}

/// What every release reads of [`Metadata`].
#[derive(Deserialize)]
struct OutlineMetadata {
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    revision: u64,
    #[serde(default)]
    replaces: Option<Digest>,
    #[serde(default)]
    ancestors: Option<Vec<Ancestor>>,
    #[serde(default)]
    deleted: bool,
}

impl Document {
    /// Reads a document that others have accepted, maybe of a later release: what this one cannot read is
    /// [`Spec::Later`].
    ///
    /// # Errors
    /// When it has no name, kind and revision.
    pub fn read_held(json: &[u8]) -> Result<Self, DocumentError> {
        Self::parse(json).or_else(|error| {
            if json.len() > MAX_DOCUMENT_BYTES {
                return Err(error);
            }
            let Outline { kind, metadata } = serde_json::from_slice(json).map_err(|_| error.clone())?;
            let namespace = &metadata.namespace;
            if !is_dns_label(&metadata.name) || !(namespace.is_empty() || is_dns_label(namespace)) {
                return Err(error);
            }
            let OutlineMetadata { name, namespace, labels, revision, replaces, ancestors, deleted } =
                metadata;
            let metadata = Metadata { name, namespace, labels, revision, replaces, ancestors, deleted };
            Ok(Self { metadata, kind, spec: (!deleted).then_some(Spec::Later) })
        })
    }

    /// Parses and validates JSON.
    ///
    /// # Errors
    /// Says what is wrong and where, for unknown fields, wrong types, bad names and values out of
    /// range. Never panics, whatever the bytes.
    pub fn parse(json: &[u8]) -> Result<Self, DocumentError> {
        if json.len() > MAX_DOCUMENT_BYTES {
            return Err(DocumentError::new(
                "",
                format!("the document has {} bytes, the limit is {MAX_DOCUMENT_BYTES}", json.len()),
            ));
        }
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        let raw: Raw = serde_path_to_error::deserialize(&mut deserializer).map_err(|e| pointed("", &e))?;
        deserializer.end().map_err(|e| DocumentError::new("", e.to_string()))?;
        if raw.api_version != API_VERSION {
            return Err(DocumentError::new(
                "/apiVersion",
                format!("{:?} is not known here; use {API_VERSION:?}", raw.api_version),
            ));
        }
        let kind = raw.kind.known().map_err(|text| DocumentError::new("/kind", text))?;
        let spec = match (raw.metadata.deleted, raw.spec) {
            (true, None) => None,
            (true, Some(_)) => return Err(DocumentError::new("/spec", "a tombstone has no spec; remove it")),
            (false, None) => return Err(DocumentError::new("/spec", "is missing")),
            (false, Some(value)) => Some(parse_spec(kind, value)?),
        };
        let document = Self { metadata: raw.metadata, kind, spec };
        document.validate()?;
        Ok(document)
    }

    /// The JSON to sign.
    pub fn to_json(&self) -> Vec<u8> {
        let raw = RawRef {
            api_version: API_VERSION,
            kind: self.kind,
            metadata: &self.metadata,
            spec: self.spec.as_ref(),
        };
        // Maps have string keys and no value refuses to serialise, so this cannot fail.
        serde_json::to_vec(&raw).unwrap_or_default()
    }

    /// What the document is called.
    pub fn key(&self) -> SpecKey {
        SpecKey {
            kind: self.kind,
            namespace: self.metadata.namespace.clone(),
            name: self.metadata.name.clone(),
        }
    }

    /// A tombstone for `key`.
    pub fn tombstone(key: &SpecKey, revision: u64) -> Self {
        Self {
            metadata: Metadata {
                name: key.name.clone(),
                namespace: key.namespace.clone(),
                labels: BTreeMap::new(),
                revision,
                replaces: None,
                ancestors: None,
                deleted: true,
            },
            kind: key.kind,
            spec: None,
        }
    }

    /// The workload, if this is one and not a tombstone.
    pub fn workload(&self) -> Option<&WorkloadSpec> {
        match &self.spec {
            Some(Spec::Workload(workload)) => Some(workload),
            _ => None,
        }
    }

    fn validate(&self) -> Result<(), DocumentError> {
        if !is_dns_label(&self.metadata.name) {
            return Err(DocumentError::new("/metadata/name", bad_label(&self.metadata.name)));
        }
        match (self.kind.is_namespaced(), self.metadata.namespace.as_str()) {
            (true, namespace) if !is_dns_label(namespace) => {
                return Err(DocumentError::new("/metadata/namespace", bad_label(namespace)));
            }
            (false, namespace) if !namespace.is_empty() => {
                return Err(DocumentError::new(
                    "/metadata/namespace",
                    format!("a {} belongs to the whole cluster; remove the namespace", self.kind),
                ));
            }
            _ => {}
        }
        if self.metadata.ancestors.as_ref().is_some_and(|ancestors| ancestors.len() > MAX_ANCESTORS) {
            let text = format!("at most {MAX_ANCESTORS} ancestors; leave out the oldest");
            return Err(DocumentError::new("/metadata/ancestors", text));
        }
        match &self.spec {
            Some(Spec::Workload(workload)) => workload.validate(),
            Some(Spec::OsRelease(release)) => release.validate(&self.metadata.name),
            Some(Spec::Volume(volume)) => volume.validate(),
            Some(Spec::Secret(secret)) => secret.validate(),
            Some(Spec::NodeIntent(intent)) if intent.node.to_string() != self.metadata.name => {
                Err(DocumentError::new("/spec/node", "must be the same id as the document's name"))
            }
            _ => Ok(()),
        }
    }
}

/// Whether `text` is a DNS label (RFC 1123, section 2.1).
pub fn is_dns_label(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&text.len())
        && text.chars().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn bad_label(text: &str) -> String {
    format!(
        "{text:?} is not a valid name; use 1 to 63 lower-case letters, digits and hyphens, \
         with a letter or digit at both ends"
    )
}

fn parse_spec(kind: Kind, value: Value) -> Result<Spec, DocumentError> {
    fn typed<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, DocumentError> {
        serde_path_to_error::deserialize(value).map_err(|e| pointed("/spec", &e))
    }
    Ok(match kind {
        Kind::Key => Spec::Key(typed(value)?),
        Kind::Token => Spec::Token(typed(value)?),
        Kind::NodeIntent => Spec::NodeIntent(typed(value)?),
        Kind::Workload => Spec::Workload(Box::new(typed(value)?)),
        Kind::OsRelease => Spec::OsRelease(Box::new(typed(value)?)),
        Kind::Volume => Spec::Volume(typed(value)?),
        Kind::Secret => Spec::Secret(typed(value)?),
        Kind::Namespace => Spec::Namespace(typed(value)?),
        Kind::Later(_) => Spec::Later,
    })
}

fn pointed(prefix: &str, error: &serde_path_to_error::Error<serde_json::Error>) -> DocumentError {
    let mut pointer = prefix.to_owned();
    for segment in error.path() {
        use serde_path_to_error::Segment;
        match segment {
            Segment::Seq { index } => pointer.push_str(&format!("/{index}")),
            Segment::Map { key } => {
                pointer.push('/');
                pointer.push_str(&key.replace('~', "~0").replace('/', "~1"));
            }
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    DocumentError::new(pointer, error.inner().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Document, DocumentError> {
        Document::parse(json.as_bytes())
    }

    #[test]
    fn a_workload_document_survives_being_written_and_read() {
        let json = r#"{"apiVersion":"hivemind/v1","kind":"Workload",
            "metadata":{"name":"web","namespace":"default","revision":7},
            "spec":{"replicas":3,"container":{"image":"registry.lab:5000/nginx:1"}}}"#;
        let document = parse(json).unwrap();
        assert_eq!(document.workload().unwrap().replicas, 3);
        assert_eq!(Document::parse(&document.to_json()).unwrap(), document);
    }

    #[test]
    fn a_fault_in_a_document_is_reported_with_its_place() {
        let cases = [
            (
                r#"{"apiVersion":"hivemind/v2","kind":"Key","metadata":{"name":"a","revision":1},"spec":{}}"#,
                "/apiVersion",
            ),
            (
                r#"{"apiVersion":"hivemind/v1","kind":"Workload","metadata":{"name":"A","namespace":"default","revision":1},"spec":{"container":{"image":"x"}}}"#,
                "/metadata/name",
            ),
            (
                r#"{"apiVersion":"hivemind/v1","kind":"Workload","metadata":{"name":"a","namespace":"default","revision":1},"spec":{"container":{"image":"x","entrypiont":[]}}}"#,
                "/spec/container/entrypiont",
            ),
            (
                r#"{"apiVersion":"hivemind/v1","kind":"Workload","metadata":{"name":"a","namespace":"default","revision":1},"spec":{"replicas":"many","container":{"image":"x"}}}"#,
                "/spec/replicas",
            ),
            (
                r#"{"apiVersion":"hivemind/v1","kind":"Workload","metadata":{"name":"a","namespace":"default","revision":1}}"#,
                "/spec",
            ),
            ("{", ""),
        ];
        for (json, pointer) in cases {
            assert_eq!(parse(json).unwrap_err().pointer, pointer, "{json}");
        }
    }
}
