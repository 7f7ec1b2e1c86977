//! The kinds of documents, also those that a later release knows.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

/// The kinds of documents. Written by their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// An operator's public key and its role.
    Key,
    /// Who may join, until when and how often.
    Token,
    /// What an operator wants of a node: cordon, labels, revocation.
    NodeIntent,
    /// Containers to run.
    Workload,
    /// The operating system's release that machines of one architecture are to have.
    OsRelease,
    /// Data that outlives containers.
    Volume,
    /// Content that only the nodes it is sealed to can read.
    Secret,
    /// What the containers of a namespace, whose name it has, may be given of their machines.
    Namespace,
    /// One that a later release knows, and this one passes on.
    Later(KindName),
}

/// The name of a kind: 1 to 24 ASCII letters and digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KindName([u8; KindName::MAX]);

impl KindName {
    const MAX: usize = 24;

    fn new(name: &str) -> Option<Self> {
        let is_name =
            (1..=Self::MAX).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric());
        let mut bytes = [0; Self::MAX];
        is_name.then(|| bytes[..name.len()].copy_from_slice(name.as_bytes()))?;
        Some(Self(bytes))
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default().trim_end_matches('\0')
    }
}

impl fmt::Debug for KindName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl Kind {
    /// Those that this release knows.
    pub const KNOWN: [Self; 8] = [
        Self::Key,
        Self::Token,
        Self::NodeIntent,
        Self::Workload,
        Self::OsRelease,
        Self::Volume,
        Self::Secret,
        Self::Namespace,
    ];

    /// Whether documents of this kind live in a namespace. Others belong to the whole cluster.
    pub fn is_namespaced(self) -> bool {
        matches!(self, Kind::Workload | Kind::Volume | Kind::Secret)
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        match self {
            Self::Key => "Key",
            Self::Token => "Token",
            Self::NodeIntent => "NodeIntent",
            Self::Workload => "Workload",
            Self::OsRelease => "OsRelease",
            Self::Volume => "Volume",
            Self::Secret => "Secret",
            Self::Namespace => "Namespace",
            Self::Later(name) => name.text(),
        }
    }

    /// The kind that is called so; `None` where that is no name of a kind.
    pub fn named(name: &str) -> Option<Self> {
        let known = Self::KNOWN.into_iter().find(|kind| kind.name() == name);
        known.or_else(|| KindName::new(name).map(Self::Later))
    }

    /// Itself, where this release knows it.
    ///
    /// # Errors
    /// Where it does not, with those it knows, in words.
    pub fn known(self) -> Result<Self, String> {
        match self {
            Self::Later(_) => {
                let known = Self::KNOWN.map(|kind| format!("`{kind}`")).join(", ");
                Err(format!("unknown kind `{self}`, expected one of {known}"))
            }
            known => Ok(known),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::named(&name).ok_or_else(|| de::Error::custom(format!("{name:?} is no name of a kind")))
    }
}

impl PartialSchema for Kind {
    fn schema() -> RefOr<Schema> {
        let object =
            ObjectBuilder::new().schema_type(Type::String).description(Some("The kinds of documents."));
        object.enum_values(Some(Self::KNOWN.map(|kind| kind.to_string()))).into()
    }
}

impl ToSchema for Kind {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_of_a_later_release_keeps_its_name_and_is_not_known() {
        for kind in Kind::KNOWN {
            assert_eq!(Kind::named(kind.name()), Some(kind));
            assert_eq!(kind.known(), Ok(kind));
        }
        let later: Kind = serde_json::from_str("\"Ingress\"").unwrap();
        assert_eq!(later.to_string(), "Ingress");
        assert_eq!(serde_json::to_string(&later).unwrap(), "\"Ingress\"");
        assert!(later.known().unwrap_err().contains("`Ingress`, expected one of `Key`, `Token`"));
        for bad in ["", "a b", "é", "ATwentyFiveLettersLongOne", "x\0"] {
            assert!(serde_json::from_value::<Kind>(bad.into()).is_err(), "{bad:?}");
        }
    }
}
