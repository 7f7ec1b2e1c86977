//! Volumes read and filled by somebody elsewhere, and from here: backups and snapshots.

use std::io::{self, Write as _};
use std::sync::Arc;

use hivemind_core::event::{ContainerId, OperationError};
use hivemind_core::record::VolumePart;
use hivemind_spec::volume::Snapshot;
use tokio::runtime::Handle;

use super::stream::{self, OtherEnd};
use super::volume::WantedSnapshot;
use super::{Runtime, cgroup, on_disk, wall_ms};

impl Runtime {
    /// Says what a part of a volume has, as a tar archive, and beside it in words what is not in there as it was.
    ///
    /// # Errors
    /// When it cannot be read, or the other end is gone.
    pub async fn read_volume(&self, part: VolumePart, other: OtherEnd) -> Result<(), OperationError> {
        let volumes = Arc::clone(&self.volumes);
        on_disk("reading the volume", move || {
            let (_ear, mouth, mut beside) = stream::open(other);
            // Who does not hear that will see that the archive breaks off.
            let told = |what: String| drop(writeln!(beside, "{what}"));
            volumes.pack(&part, std::io::BufWriter::with_capacity(64 * 1024, mouth), told)
        })
        .await
    }

    /// Keeps what a part of a volume has now beside it. `users` is asked who has it once no other is given it: they stand
    /// still while it is read, if that is wanted. The other end is told the snapshot, in JSON, and beside it in words what
    /// is not in there as it was.
    ///
    /// # Errors
    /// When it is not made; then nothing of it stays.
    pub async fn snapshot_volume(
        &self,
        wanted: WantedSnapshot,
        users: impl Future<Output = Result<Vec<ContainerId>, OperationError>> + Send + 'static,
        other: OtherEnd,
    ) -> Result<(), OperationError> {
        let (volumes, tokio) = (Arc::clone(&self.volumes), Handle::current());
        on_disk("making the snapshot", move || {
            let (_ear, mut mouth, mut beside) = stream::open(other);
            let told = |what: String| drop(writeln!(beside, "{what}"));
            let still = || {
                let users = if wanted.within.is_some() { tokio.block_on(users) } else { Ok(Vec::new()) };
                let users = users.map_err(|error| io::Error::other(error.text))?;
                (!users.is_empty()).then(|| cgroup::Still::hold(&users)).transpose()
            };
            let made = volumes.snapshot(&wanted, still, told)?;
            // It is made, whether or not anybody hears it.
            let _ = mouth.write_all(&serde_json::to_vec(&made)?);
            Ok(())
        })
        .await
    }

    /// The snapshots of a part of a volume, oldest first.
    ///
    /// # Errors
    /// Those of the disk.
    pub async fn snapshots(&self, part: VolumePart) -> Result<Vec<Snapshot>, OperationError> {
        let volumes = Arc::clone(&self.volumes);
        on_disk("looking for snapshots", move || volumes.snapshots(&part)).await
    }

    /// Removes a snapshot.
    ///
    /// # Errors
    /// Those of the disk.
    pub async fn remove_snapshot(&self, part: VolumePart, name: String) -> Result<(), OperationError> {
        let volumes = Arc::clone(&self.volumes);
        on_disk("removing the snapshot", move || volumes.remove_snapshot(&part, &name)).await
    }

    /// Gives a part of a volume what a snapshot of it has instead of what it has, or what the other end says, a tar archive;
    /// all of it or nothing. No container is given it meanwhile; `is_free` is asked whether one has it already.
    ///
    /// # Errors
    /// That of `is_free`, and when the archive breaks off, is none, or does not fit.
    pub async fn fill_volume(
        &self,
        part: VolumePart,
        snapshot: Option<String>,
        size_bytes: Option<u64>,
        is_free: impl Future<Output = Result<(), OperationError>>,
        other: OtherEnd,
    ) -> Result<(), OperationError> {
        let volumes = Arc::clone(&self.volumes);
        let filling = on_disk("filling the volume", move || volumes.keep_free(part)).await?;
        is_free.await?;
        on_disk("filling the volume", move || {
            let (ear, ..) = stream::open(other);
            let from: Box<dyn io::Read> = match snapshot {
                Some(name) => Box::new(filling.snapshot(&name)?),
                None => Box::new(ear),
            };
            filling.fill(size_bytes, wall_ms(), io::BufReader::with_capacity(64 * 1024, from))
        })
        .await?;
        self.look_again.notify_one();
        Ok(())
    }
}
