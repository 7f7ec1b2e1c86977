//! Typed identifiers. Each is a hash of the thing it names, so none can be forged or reassigned.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An identifier that is not the expected number of lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {expected} hexadecimal digits, found {found:?}")]
pub struct IdError {
    what: &'static str,
    expected: usize,
    found: String,
}

/// Writes `bytes` as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from(b"0123456789abcdef"[usize::from(value & 0xf)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

/// Reads exactly `N` bytes of hexadecimal digits, upper or lower case.
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; N];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

fn sha256(data: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, data).as_ref());
    out
}

macro_rules! hash_id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// The id of what hashes to it: the first bytes of the SHA-256 of `data`.
            pub fn of(data: &[u8]) -> Self {
                let mut id = [0; $len];
                id.copy_from_slice(&sha256(data)[..$len]);
                Self(id)
            }

            /// The first eight digits, for people.
            pub fn short(&self) -> String {
                hex(&self.0[..4])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                unhex(text).map(Self).ok_or_else(|| IdError {
                    what: $what,
                    expected: 2 * $len,
                    found: text.to_owned(),
                })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_bytes(&self.0)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = String::deserialize(deserializer)?;
                    text.parse().map_err(de::Error::custom)
                } else {
                    serde_bytes::ByteArray::<$len>::deserialize(deserializer).map(|bytes| Self(bytes.into_array()))
                }
            }
        }
    };
}

hash_id!(
    /// A cluster: the hash of its root CA's public key (SubjectPublicKeyInfo, DER).
    ClusterId,
    16,
    "a cluster id"
);
hash_id!(
    /// A node: the hash of its node CA's public key (SubjectPublicKeyInfo, DER).
    NodeId,
    16,
    "a node id"
);
hash_id!(
    /// An operator's key: the hash of its raw Ed25519 public key.
    KeyId,
    16,
    "a key id"
);
hash_id!(
    /// A join token: the hash of its token CA's public key (SubjectPublicKeyInfo, DER).
    TokenId,
    16,
    "a token id"
);
hash_id!(
    /// A release of the operating system: the hash of all that the boot loader is given.
    ReleaseId,
    8,
    "a release"
);
hash_id!(
    /// The SHA-256 of a document's signed bytes.
    Digest,
    32,
    "a digest"
);

impl Digest {
    /// Reads one as OCI writes it, `sha256:` and its digits; other algorithms are none.
    pub fn from_oci(text: &str) -> Option<Self> {
        text.strip_prefix("sha256:")?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_text_and_refuse_what_is_not_theirs() {
        let id = NodeId::of(b"a key");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(serde_json::from_str::<NodeId>(&serde_json::to_string(&id).unwrap()).unwrap(), id);
        for bad in ["", "abc", "zz", "é000000000000000000000000000000", &"0".repeat(33)] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad}");
        }
    }
}
