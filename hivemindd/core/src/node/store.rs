//! What is being written, and what waits for it.

use std::collections::BTreeMap;

use crate::event::{Action, Actions, BatchId};
use crate::mutation::{Mutation, is_on};
use crate::record::RecordKey;
use crate::state::{Entry, Version, encode};

/// Actions that wait for the disk: a disk that hangs must not fill memory. Beyond it, sends are
/// dropped, which anti-entropy makes good.
const MAX_HELD: usize = 10_000;

/// Starts the keys of records.
const RECORD: u8 = b'r';

/// Starts the keys of what is this node's own and not replicated.
const LOCAL: u8 = b'l';

/// The store key of a record.
pub(super) fn record_key(key: &RecordKey) -> Vec<u8> {
    let mut bytes = vec![RECORD];
    bytes.extend(encode(key));
    bytes
}

/// The store key of a local item.
pub(super) fn local_key(name: &str) -> Vec<u8> {
    let mut bytes = vec![LOCAL];
    bytes.extend(name.as_bytes());
    bytes
}

/// What a store key names.
pub(super) enum Stored {
    Record(RecordKey),
    Local(String),
    Unknown,
}

/// Reads a store key.
pub(super) fn read_key(bytes: &[u8]) -> Stored {
    match bytes.split_first() {
        Some((&RECORD, rest)) => postcard::from_bytes(rest).map_or(Stored::Unknown, Stored::Record),
        Some((&LOCAL, rest)) => Stored::Local(String::from_utf8_lossy(rest).into_owned()),
        _ => Stored::Unknown,
    }
}

/// How to take back a change of the map.
#[derive(Debug)]
pub(super) struct Undo {
    /// What was changed.
    pub(super) key: RecordKey,
    /// What was there before.
    pub(super) before: Option<Entry>,
    /// What came in its place; a later change is not this one's to take back.
    pub(super) after: Option<Version>,
}

/// A batch that is being written.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// What the records in it replaced in memory, newest change last.
    pub(super) undo: Vec<Undo>,
    /// What may be done once it is durable.
    pub(super) held: Vec<Action>,
    /// Pushes, by their `ack`, whose document is in it.
    pub(super) pushes: Vec<u64>,
}

/// Writes, in batches of one step each.
#[derive(Debug, Default)]
pub(super) struct Store {
    next: BatchId,
    writes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    open: Batch,
    written: BTreeMap<BatchId, Batch>,
}

impl Store {
    /// Adds a write to this step's batch.
    pub(super) fn put(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.writes.insert(key, value);
    }

    /// Remembers what a record replaced, in case the batch cannot be written.
    pub(super) fn remember(&mut self, key: RecordKey, before: Option<Entry>, after: Option<Version>) {
        self.open.undo.push(Undo { key, before, after });
    }

    /// Forgets writes of records: they came from the disk.
    pub(super) fn forget_records(&mut self) {
        self.open.undo.clear();
        self.writes.retain(|_, value| value.is_none());
    }

    /// What this step's batch will be called.
    pub(super) fn open_batch(&self) -> BatchId {
        self.next + 1
    }

    /// The newest batch that is not durable yet: everything told now must wait for it.
    fn newest(&mut self) -> Option<&mut Batch> {
        if is_on(Mutation::NothingWaitsForTheDisk) {
            return None;
        }
        if self.writes.is_empty() {
            self.written.last_entry().map(|entry| entry.into_mut())
        } else {
            Some(&mut self.open)
        }
    }

    /// Does `action` once everything written so far is durable.
    pub(super) fn then(&mut self, action: Action, out: &mut Actions) {
        match self.newest() {
            Some(batch) if batch.held.len() < MAX_HELD => batch.held.push(action),
            Some(_) => {}
            None => out.push(action),
        }
    }

    /// Whether the push must wait for the disk; if so it is told when the batch is durable.
    pub(super) fn hold_push(&mut self, ack: u64) -> bool {
        match self.newest() {
            Some(batch) => {
                batch.pushes.push(ack);
                true
            }
            None => false,
        }
    }

    /// Hands out this step's writes.
    pub(super) fn close(&mut self) -> Option<Action> {
        if self.writes.is_empty() {
            return None;
        }
        self.next += 1;
        self.written.insert(self.next, std::mem::take(&mut self.open));
        Some(Action::Persist {
            batch: self.next,
            writes: std::mem::take(&mut self.writes).into_iter().collect(),
        })
    }

    /// The batch is durable.
    pub(super) fn end(&mut self, batch: BatchId) -> Option<Batch> {
        self.written.remove(&batch)
    }

    /// The batch is lost, and with it the ground on which later ones say that something is held:
    /// what waits for them does not happen either, and their pushes fail too.
    pub(super) fn fail(&mut self, batch: BatchId) -> Option<Batch> {
        let mut failed = self.written.remove(&batch)?;
        failed.held.clear();
        for later in self.written.range_mut(batch..).map(|(_, later)| later).chain([&mut self.open]) {
            later.held.clear();
            failed.pushes.append(&mut later.pushes);
            // What a later change replaced is not what it falls back to, should it fail as well.
            for lost in failed.undo.iter().rev() {
                let replaced = |undo: &&mut Undo| {
                    undo.key == lost.key && undo.before.as_ref().map(|entry| entry.version) == lost.after
                };
                if let Some(undo) = later.undo.iter_mut().find(replaced) {
                    undo.before.clone_from(&lost.before);
                }
            }
        }
        Some(failed)
    }
}
