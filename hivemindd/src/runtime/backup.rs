//! Volumes read and filled by somebody elsewhere: backups.

use std::io::Write as _;
use std::sync::Arc;

use hivemind_core::event::OperationError;
use hivemind_core::record::VolumePart;

use super::stream::{self, OtherEnd};
use super::{Runtime, on_disk, wall_ms};

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

    /// Gives a part of a volume what the other end says, a tar archive, instead of what it has; all of it or nothing. No
    /// container is given it meanwhile; `is_free` is asked whether one has it already.
    ///
    /// # Errors
    /// That of `is_free`, and when the archive breaks off, is none, or does not fit.
    pub async fn fill_volume(
        &self,
        part: VolumePart,
        size_bytes: Option<u64>,
        is_free: impl Future<Output = Result<(), OperationError>>,
        other: OtherEnd,
    ) -> Result<(), OperationError> {
        let volumes = Arc::clone(&self.volumes);
        let filling = on_disk("filling the volume", move || volumes.keep_free(part)).await?;
        is_free.await?;
        on_disk("filling the volume", move || {
            let (ear, ..) = stream::open(other);
            filling.fill(size_bytes, wall_ms(), std::io::BufReader::with_capacity(64 * 1024, ear))
        })
        .await?;
        self.look_again.notify_one();
        Ok(())
    }
}
