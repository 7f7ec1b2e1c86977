//! A stick with images, for machines in places without a registry and without an operator.
//!
//! ```text
//!   FAT file system with the volume label HIVEIMAGES
//!     images.json            an envelope (DSSE) around an ImageList, signed by an admin's key
//!     blobs/sha256/DIGITS    manifests, configurations and layers (OCI image specification, "Image Layout")
//! ```

use serde::{Deserialize, Serialize};

use crate::id::Digest;

/// The label of a stick's file system that says that images are on it.
pub const LABEL: &str = "HIVEIMAGES";

/// The file with the list.
pub const LIST: &str = "images.json";

/// The folder with all else, each file called by the 64 hexadecimal digits of its digest.
pub const BLOBS: &str = "blobs/sha256";

/// The payload type of the list's envelope.
pub const PAYLOAD_TYPE: &str = "application/vnd.hivemind.images.v1+json";

/// The largest list as it is on the stick, bytes: a few hundred for each image.
pub const MAX_LIST_BYTES: u64 = 256 * 1024;

/// What is on a stick.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageList {
    /// When it was made, by the clock of whoever made it, milliseconds since 1970. What a machine was given later by the same
    /// name goes before it.
    pub made_ms: u64,
    /// The images.
    pub images: Vec<ListedImage>,
}

/// An image of a stick.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListedImage {
    /// Its name, without a digest.
    pub name: String,
    /// The digest of its manifest.
    pub digest: Digest,
}
