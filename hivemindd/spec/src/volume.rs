//! The volume document: data that outlives containers.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::document::DocumentError;

/// The least a volume's limit may be, bytes: a file system's own tables take some.
pub const MIN_SIZE_BYTES: u64 = 64 * 1024;

/// The longest that data may wait to be discarded, milliseconds: a year.
pub const MAX_GRACE_MS: u64 = 366 * 24 * 3600 * 1000;

/// A volume's content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeSpec {
    /// How many of it there are. Fixed for as long as the volume exists.
    #[serde(default)]
    pub per: Per,
    /// The most that each may hold, bytes; absent: what the machine has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Present when the data is to be deleted. Nothing else deletes any: not the removal of this document, and not
    /// that of the workloads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discard: Option<Discard>,
}

/// How many there are of a volume.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Per {
    /// One, on one machine; all that use it run there.
    #[default]
    Cluster,
    /// One on each machine; what a replica finds depends on where it runs.
    Node,
    /// One for each replica, by its number, which stays on its machine. Workloads whose replicas have the same number
    /// share it.
    Replica,
}

impl Per {
    /// Its name, as in documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Node => "node",
            Self::Replica => "replica",
        }
    }
}

/// What a part of a volume had at a moment, kept on its machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// Its name, a DNS label.
    pub name: String,
    /// When it was whole, milliseconds since 1970 by the clock of its machine.
    pub made_ms: u64,
    /// What it takes of the disk.
    pub bytes: u64,
}

/// The order to delete a volume's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Discard {
    /// For how long each machine that has any keeps it from when it heard of the order, milliseconds of running. A
    /// later version of the document without the order takes it back.
    pub grace_ms: u64,
}

impl VolumeSpec {
    /// Checks what types cannot say.
    pub(crate) fn validate(&self) -> Result<(), DocumentError> {
        if self.size_bytes.is_some_and(|bytes| bytes < MIN_SIZE_BYTES) {
            let text = format!("a volume has at least {MIN_SIZE_BYTES} bytes");
            return Err(DocumentError::new("/spec/sizeBytes", text));
        }
        if self.discard.is_some_and(|discard| discard.grace_ms > MAX_GRACE_MS) {
            return Err(DocumentError::new("/spec/discard/graceMs", "is over a year"));
        }
        Ok(())
    }
}
