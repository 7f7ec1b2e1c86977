//! containerd's content store and snapshots: blobs in, blobs out, layers unpacked.

use std::collections::HashMap;
use std::io;

use bytes::Bytes;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::services::v1::{
    AbortRequest, ApplyRequest, DeleteContentRequest, Info, ReadContentRequest, UpdateRequest, WriteAction,
    WriteContentRequest,
};
use containerd_client::tonic::{Code, Status};
use containerd_client::types::Descriptor;
use futures_util::{Stream, StreamExt as _};
use hivemind_core::event::OperationError;
use hivemind_spec::id::hex;
use tokio::sync::mpsc;

use super::client::{
    Containerd, Lease, SNAPSHOTTER, if_there, permanent, refused, request, transient, unless_there,
};

/// The largest manifest, index or image configuration read into memory, in bytes: ten times what
/// real ones take.
pub(super) const MAX_DOCUMENT_BYTES: u64 = 4 * 1024 * 1024;

/// Bytes handed to containerd in one message: under gRPC's 4 MiB limit, and small, because it is
/// memory of ours for each blob under way.
pub(super) const CHUNK_BYTES: usize = 256 * 1024;

/// Messages under way to containerd for one blob.
const CHUNKS_IN_FLIGHT: usize = 2;

/// The digest of `data` as OCI writes it: `sha256:` and 64 digits.
pub(super) fn sha256(data: &[u8]) -> String {
    format!("sha256:{}", hex(ring::digest::digest(&ring::digest::SHA256, data).as_ref()))
}

/// A blob being written to the content store.
pub(super) struct BlobWriter {
    sender: mpsc::Sender<WriteContentRequest>,
    answers: containerd_client::tonic::Streaming<containerd_client::services::v1::WriteContentResponse>,
    reference: String,
    digest: String,
    total: i64,
    offset: i64,
    /// Bytes of answers not read yet would fill the stream's window; each write is answered once.
    unanswered: usize,
}

impl BlobWriter {
    /// How many bytes of the blob are there, of which the first came from an attempt before.
    pub(super) fn offset(&self) -> u64 {
        self.offset.max(0).unsigned_abs()
    }

    /// Hands over the next bytes.
    pub(super) async fn write(&mut self, data: Vec<u8>) -> Result<(), Status> {
        let length = i64::try_from(data.len()).map_err(|_| Status::invalid_argument("chunk too long"))?;
        self.send(WriteAction::Write, data, HashMap::new()).await?;
        self.offset += length;
        Ok(())
    }

    /// Ends the blob: containerd compares its digest. `labels` say what the blob refers to.
    pub(super) async fn commit(mut self, labels: HashMap<String, String>) -> Result<(), Status> {
        let sent = self.send(WriteAction::Commit, Vec::new(), labels).await;
        match sent {
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            other => other,
        }
    }

    /// Leaves what is written as it is, to be gone on with. Returns when containerd lets another write it.
    pub(super) async fn close(self) {
        let Self { sender, mut answers, .. } = self;
        drop(sender);
        while let Ok(Some(_)) = answers.message().await {}
    }

    async fn send(
        &mut self,
        action: WriteAction,
        data: Vec<u8>,
        labels: HashMap<String, String>,
    ) -> Result<(), Status> {
        let message = WriteContentRequest {
            action: action.into(),
            r#ref: self.reference.clone(),
            total: self.total,
            expected: self.digest.clone(),
            offset: self.offset,
            data,
            labels,
        };
        // A closed channel means that containerd ended the call; its answer says why.
        let _ = self.sender.send(message).await;
        self.unanswered += 1;
        let wanted = if action == WriteAction::Commit { 0 } else { CHUNKS_IN_FLIGHT };
        while self.unanswered > wanted {
            match self.answers.message().await? {
                Some(_) => self.unanswered -= 1,
                None => return Err(Status::unavailable("containerd ended the write early")),
            }
        }
        Ok(())
    }
}

impl Containerd {
    /// Reads a small blob whole.
    pub(super) async fn read_blob(&self, digest: &str) -> Result<Vec<u8>, OperationError> {
        let failed = |status| refused("reading from the image store")(status);
        let message = ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
        let mut stream = self.content().read(request(message)).await.map_err(failed)?.into_inner();
        let mut data = Vec::new();
        while let Some(part) = stream.next().await {
            data.extend_from_slice(&part.map_err(failed)?.data);
            if data.len() as u64 > MAX_DOCUMENT_BYTES {
                return Err(permanent(format!(
                    "{digest} in the image store is over {MAX_DOCUMENT_BYTES} bytes"
                )));
            }
        }
        Ok(data)
    }

    /// Reads a blob in pieces, from `offset` on.
    pub(super) async fn read_blob_from(
        &self,
        digest: &str,
        offset: i64,
    ) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + use<>, OperationError> {
        let message = ReadContentRequest { digest: digest.to_owned(), offset, size: 0 };
        let answer = self.content().read(request(message)).await;
        let parts = answer.map_err(refused("reading from the image store"))?.into_inner();
        Ok(parts.map(|part| part.map(|part| Bytes::from(part.data)).map_err(io::Error::other)))
    }

    /// Whether a blob can be read and has its digest.
    pub(super) async fn is_sound(&self, digest: &str) -> bool {
        let message = ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
        let Ok(stream) = self.content().read(request(message)).await else { return false };
        let mut stream = stream.into_inner();
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        while let Some(part) = stream.next().await {
            let Ok(part) = part else { return false };
            hash.update(&part.data);
        }
        format!("sha256:{}", hex(hash.finish().as_ref())) == digest
    }

    /// Drops a blob.
    pub(super) async fn delete_blob(&self, digest: &str) -> Result<(), Status> {
        let message = DeleteContentRequest { digest: digest.to_owned() };
        if_there(self.content().delete(request(message)).await)?;
        Ok(())
    }

    /// Starts writing a blob, or goes on with one an earlier attempt left. `None`: it is there.
    pub(super) async fn write_blob(
        &self,
        lease: &Lease,
        digest: &str,
        size: u64,
    ) -> Result<Option<BlobWriter>, Status> {
        let total = i64::try_from(size).map_err(|_| Status::invalid_argument("blob too large"))?;
        let (sender, mut receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
        let requests = futures_util::stream::poll_fn(move |context| receiver.poll_recv(context));
        let reference = format!("blob-{digest}");
        let first = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: reference.clone(),
            total,
            expected: digest.to_owned(),
            ..Default::default()
        };
        // The first message has to be in the channel before containerd answers the call.
        let _ = sender.send(first).await;
        let mut answers = match self.content().write(lease.request(requests)).await {
            Ok(answers) => answers.into_inner(),
            Err(status) if status.code() == Code::AlreadyExists => return Ok(None),
            Err(status) => return Err(status),
        };
        let offset = match answers.message().await {
            Ok(Some(answer)) => answer.offset,
            Ok(None) => return Err(Status::unavailable("containerd ended the write early")),
            Err(status) if status.code() == Code::AlreadyExists => return Ok(None),
            Err(status) => return Err(status),
        };
        let digest = digest.to_owned();
        Ok(Some(BlobWriter { sender, answers, reference, digest, total, offset, unanswered: 0 }))
    }

    /// Throws away what an attempt to write a blob left.
    pub(super) async fn abort_blob(&self, digest: &str) -> Result<(), Status> {
        let reference = format!("blob-{digest}");
        if_there(self.content().abort(request(AbortRequest { r#ref: reference })).await)?;
        Ok(())
    }

    /// Stores a small blob.
    pub(super) async fn store_blob(
        &self,
        lease: &Lease,
        digest: &str,
        data: &[u8],
        labels: HashMap<String, String>,
    ) -> Result<(), Status> {
        let Some(mut writer) = self.write_blob(lease, digest, data.len() as u64).await? else {
            return self.label_blob(digest, labels).await;
        };
        let done = usize::try_from(writer.offset()).unwrap_or(usize::MAX).min(data.len());
        for chunk in data[done..].chunks(CHUNK_BYTES) {
            writer.write(chunk.to_vec()).await?;
        }
        writer.commit(labels).await
    }

    /// Adds labels to a blob.
    pub(super) async fn label_blob(
        &self,
        digest: &str,
        labels: HashMap<String, String>,
    ) -> Result<(), Status> {
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let info = Info { digest: digest.to_owned(), labels, ..Default::default() };
        let update_mask = Some(prost_types::FieldMask { paths });
        self.content().update(request(UpdateRequest { info: Some(info), update_mask })).await?;
        Ok(())
    }

    async fn has_snapshot(&self, key: &str) -> Result<bool, Status> {
        let message = StatSnapshotRequest { snapshotter: SNAPSHOTTER.into(), key: key.into() };
        Ok(if_there(self.snapshots().stat(request(message)).await)?.is_some())
    }

    /// Unpacks layers in order, each a snapshot named by its chain id (OCI image specification,
    /// "Layer ChainID"). Returns the last one's.
    pub(super) async fn unpack(
        &self,
        lease: &Lease,
        layers: &[Descriptor],
        diff_ids: &[String],
    ) -> Result<String, OperationError> {
        let mut parent = String::new();
        for (layer, diff_id) in layers.iter().zip(diff_ids) {
            let chain = chain_id(&parent, diff_id);
            if !self.has_snapshot(&chain).await.map_err(refused("looking for an unpacked layer"))? {
                self.unpack_layer(lease, layer, diff_id, &parent, &chain).await?;
            }
            parent = chain;
        }
        Ok(parent)
    }

    async fn unpack_layer(
        &self,
        lease: &Lease,
        layer: &Descriptor,
        diff_id: &str,
        parent: &str,
        chain: &str,
    ) -> Result<(), OperationError> {
        let failed = refused("unpacking a layer");
        let snapshotter = SNAPSHOTTER.to_owned();
        // One attempt at a time works on a layer (pulls of one image wait for each other), so what
        // is there under this name was left by an attempt that died; another image that shares the
        // layer uses another name and the second to commit finds it done.
        let key = format!("unpack-{}-{}", layer.digest, chain);
        let remove = RemoveSnapshotRequest { snapshotter: snapshotter.clone(), key: key.clone() };
        if_there(self.snapshots().remove(request(remove.clone())).await).map_err(&failed)?;
        let prepare = PrepareSnapshotRequest {
            snapshotter: snapshotter.clone(),
            key: key.clone(),
            parent: parent.to_owned(),
            labels: HashMap::new(),
        };
        let mounts =
            self.snapshots().prepare(lease.request(prepare)).await.map_err(&failed)?.into_inner().mounts;
        // `sync_fs`: a layer that is committed must be whole after a power cut.
        let apply = ApplyRequest { diff: Some(layer.clone()), mounts, sync_fs: true, ..Default::default() };
        let result = match self.diff().apply(lease.request(apply)).await {
            Err(status) => Err(refused("unpacking a layer")(status)),
            Ok(answer) => match answer.into_inner().applied {
                Some(applied) if applied.digest == diff_id => Ok(()),
                Some(applied) => Err(permanent(format!(
                    "layer {} unpacks to {}, but the image configuration promises {diff_id}",
                    layer.digest, applied.digest
                ))),
                None => {
                    Err(transient(format!("containerd did not say what layer {} unpacked to", layer.digest)))
                }
            },
        };
        if let Err(error) = result {
            let _ = self.snapshots().remove(request(remove)).await;
            return Err(error);
        }
        let commit = CommitSnapshotRequest { snapshotter, name: chain.to_owned(), key, ..Default::default() };
        unless_there(self.snapshots().commit(lease.request(commit)).await).map_err(&failed)?;
        let _ = self.snapshots().remove(request(remove)).await;
        Ok(())
    }
}

/// The chain id of a layer on top of others (OCI image specification, "Layer ChainID").
pub(super) fn chain_id(parent: &str, diff_id: &str) -> String {
    if parent.is_empty() { diff_id.to_owned() } else { sha256(format!("{parent} {diff_id}").as_bytes()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_names_every_layer_under_it() {
        assert_eq!(chain_id("", "sha256:a"), "sha256:a");
        let two = chain_id("sha256:a", "sha256:b");
        assert_eq!(two, sha256(b"sha256:a sha256:b"));
        assert_ne!(chain_id(&two, "sha256:c"), chain_id("sha256:b", "sha256:c"));
    }
}
