//! How what nodes keep and send is written, so that releases that differ understand each other.
//!
//! Machines of two releases are in one cluster during every rollout, and a machine that goes back to the
//! release before finds what the newer one wrote. Two forms:
//!
//! | form | written by | for | what a later release may do |
//! |---|---|---|---|
//! | *fixed* | [`crate::state::encode`] (postcard) | the frame around a statement, a record's name, a message | add kinds at the end of [`crate::record::Topic`], [`crate::record::Matter`] and [`crate::event::Message`]; nothing else, ever |
//! | *growing* | [`write`] (MessagePack, fields by name) | what a statement says, a node's own notes | add fields with `#[serde(default)]`, and variants |
//!
//! What a release does not understand it keeps and passes on, because the frame tells whose it is, where
//! it belongs and how new it is ([`crate::statement`]); it does not act on it. Fields that it does not know
//! are skipped. `form/first.txt` has what the first release wrote, for every later one to read.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// How deep what is read may be nested: ours is six deep. Bounds the stack, whoever wrote it.
const MAX_DEPTH: usize = 32;

/// `value` in the growing form.
pub fn write<T: Serialize>(value: &T) -> Vec<u8> {
    // No type of ours refuses to serialise, and memory takes every byte.
    rmp_serde::to_vec_named(value).unwrap_or_default()
}

/// Reads what [`write()`] wrote, also of a release that knew fewer fields, or more.
///
/// # Errors
/// When it is something else, or has a variant that this release does not know.
pub fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, rmp_serde::decode::Error> {
    let mut reader = rmp_serde::Deserializer::from_read_ref(bytes);
    reader.set_max_depth(MAX_DEPTH);
    T::deserialize(&mut reader)
}

/// Gives an enum with a last variant `Unknown(Vec<u8>)` a fixed form in which a later release's variants
/// are kept as the bytes they came as: written again they are the same. The enum derives `Serialize` and
/// `Deserialize` with `#[serde(remote = "Self")]`, and skips that variant.
macro_rules! keeps_unknown {
    ($name:ident) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                struct Known<'a>(&'a $name);
                impl serde::Serialize for Known<'_> {
                    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                        $name::serialize(self.0, serializer)
                    }
                }
                match self {
                    Self::Unknown(bytes) => serializer.serialize_bytes(bytes),
                    known => serializer.serialize_bytes(&crate::state::encode(&Known(known))),
                }
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Known($name);
                impl<'de> serde::Deserialize<'de> for Known {
                    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                        $name::deserialize(deserializer).map(Known)
                    }
                }
                let bytes = serde_bytes::ByteBuf::deserialize(deserializer)?.into_vec();
                Ok(match postcard::take_from_bytes(&bytes) {
                    Ok((Known(known), [])) => known,
                    _ => Self::Unknown(bytes),
                })
            }
        }
    };
}

pub(crate) use keeps_unknown;

#[cfg(test)]
mod tests;
