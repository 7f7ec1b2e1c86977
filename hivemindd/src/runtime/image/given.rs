//! Images that an operator gives, where no registry has them or none can be reached.
//!
//! ```text
//!   operator                                node
//!     |-- the manifest ----------------------->|
//!     |<- which blob, and from which byte on --|   the configuration first, then each layer;
//!     |-- the rest of the blob --------------->|   what is there already is not sent again
//! ```
//!
//! What is given is checked as what a registry sends, and kept however full the disk is, until it is taken back.

use std::collections::BTreeMap;

use bytes::Bytes;
use containerd_client::services::v1::{Image, ListImagesRequest, UpdateImageRequest};
use hivemind_core::event::OperationError;
use hivemind_core::record::GivenImage;
use hivemind_spec::api::WantedBlob;
use hivemind_spec::exec::OutputStream;
use hivemind_spec::id::Digest;
use tokio::sync::{mpsc, watch};

use super::manifest::{Blob, check_config, check_layers, parse_config, parse_manifest};
use super::registry::parse_reference;
use super::{Documents, Fault, GIVEN_LABEL, Images, Lease, Whole, commit, lease_of};
use crate::runtime::client::{permanent, refused, request, transient};
use crate::runtime::content::{CHUNK_BYTES, MAX_DOCUMENT_BYTES, sha256};
use crate::runtime::stream::{Input, OtherEnd, Output};
use crate::runtime::wall_ms;

/// Images that a node may be given: the record that says so stays small, and all nodes have it.
const MAX_GIVEN: usize = 64;

/// The longest name of one, bytes: registries allow 255 for a repository.
const MAX_NAME_BYTES: usize = 512;

/// Images that operators gave, by their names without digests.
pub(super) type Given = BTreeMap<String, GivenImage>;

/// Those of some images that operators gave. Of several of one name, the one that was given last.
pub(super) fn among(images: &[Image]) -> Given {
    let mut all = Given::new();
    for image in images {
        let given_ms = image.labels.get(GIVEN_LABEL).and_then(|text| text.parse().ok());
        let Some((name, digest)) = image.name.rsplit_once("@sha256:") else { continue };
        let (Some(given_ms), Ok(digest)) = (given_ms, digest.parse()) else { continue };
        let one = all.entry(name.to_owned()).or_insert(GivenImage { digest, given_ms });
        if one.given_ms < given_ms {
            *one = GivenImage { digest, given_ms };
        }
    }
    all
}

/// What comes in.
struct Incoming {
    input: mpsc::Receiver<Input>,
    taken: watch::Sender<u64>,
    rest: Bytes,
}

impl Incoming {
    /// The next piece, of `most` bytes at most.
    async fn piece(&mut self, most: u64) -> Result<Bytes, OperationError> {
        while self.rest.is_empty() {
            match self.input.recv().await {
                Some(Input::Data(data)) => self.rest = data,
                Some(Input::Resize(_)) => {}
                Some(Input::End) | None => return Err(transient("the image breaks off")),
            }
        }
        let count = self.rest.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        let piece = self.rest.split_to(count);
        self.taken.send_modify(|taken| *taken += count as u64);
        Ok(piece)
    }

    /// As many bytes.
    async fn take(&mut self, bytes: u64) -> Result<Vec<u8>, OperationError> {
        let mut taken = Vec::new();
        while (taken.len() as u64) < bytes {
            let piece = self.piece(bytes - taken.len() as u64).await?;
            taken.extend_from_slice(&piece);
        }
        Ok(taken)
    }
}

impl Images {
    /// Takes an image from the other end, by a name without a digest and the digest of its manifest.
    pub(in crate::runtime) async fn take(
        &self,
        name: &str,
        digest: Digest,
        manifest_bytes: u64,
        OtherEnd { input, taken, output }: OtherEnd,
    ) -> Result<(), OperationError> {
        if name.len() > MAX_NAME_BYTES || name.contains('@') {
            return Err(permanent(format!("{name:?} is not the name of an image, without a digest")));
        }
        parse_reference(name)?;
        if manifest_bytes > MAX_DOCUMENT_BYTES {
            return Err(permanent(format!("the manifest of {name} is over {MAX_DOCUMENT_BYTES} bytes")));
        }
        let mut incoming = Incoming { input, taken, rest: Bytes::new() };
        let bytes = incoming.take(manifest_bytes).await?;
        if sha256(&bytes) != format!("sha256:{digest}") {
            return Err(permanent(format!("the manifest of {name} is not sha256:{digest}")));
        }
        let manifest = parse_manifest(name, &bytes)?;
        let (Some(config), Some(layers)) = (&manifest.config, &manifest.layers) else {
            return Err(permanent(format!("{name} is not a container image: its manifest has no layers")));
        };
        check_layers(name, config, layers)?;
        let reference = GivenImage { digest, given_ms: 0 }.reference(name);
        // Two of one name come one after the other, and the last counts.
        let (of_name, of_image) = (self.locks.get(name), self.locks.get(&reference));
        let _alone = (of_name.lock().await, of_image.lock().await);
        let (_, given) = self.list().await?;
        if given.len() >= MAX_GIVEN && !given.contains_key(name) {
            return Err(permanent(format!("this machine was given {MAX_GIVEN} images, and takes no more")));
        }
        let (lease, expires_ms) = lease_of(&reference, wall_ms());
        let lease = self.containerd.lease(&lease, expires_ms).await.map_err(refused("taking an image"))?;
        self.take_blob(&lease, config, &mut incoming, &output).await?;
        let parsed = parse_config(name, &self.containerd.read_blob(&config.digest).await?)?;
        // Before its layers are sent for nothing.
        check_config(name, &parsed, layers.len())?;
        for layer in layers {
            self.take_blob(&lease, layer, &mut incoming, &output).await?;
        }
        let documents = Documents { manifest: bytes, index: None };
        let whole = Whole { documents: &documents, manifest: &manifest, config, layers, parsed: &parsed };
        self.keep(&reference, &whole, Some(wall_ms()), &lease).await?;
        self.containerd.release(lease).await.map_err(refused("taking an image"))?;
        tracing::info!(image = reference, "was given an image");
        // The one of that name is another now.
        self.give_up(name, Some(digest)).await
    }

    /// Says from where on a blob is wanted, and takes it.
    async fn take_blob(
        &self,
        lease: &Lease,
        blob: &Blob,
        incoming: &mut Incoming,
        output: &mpsc::Sender<Output>,
    ) -> Result<(), OperationError> {
        let lock = self.locks.get(&blob.digest);
        let _alone = lock.lock().await;
        let failed = refused("writing to the image store");
        let writer = self.containerd.write_blob(lease, &blob.digest, blob.size).await.map_err(&failed)?;
        let from = writer.as_ref().map_or(blob.size, |writer| writer.offset());
        let wanted = WantedBlob { digest: blob.digest.clone(), from };
        // Strings and numbers only: this cannot fail.
        let mut line = serde_json::to_vec(&wanted).unwrap_or_default();
        line.push(b'\n');
        let heard = output.send((OutputStream::Stdout, line.into())).await;
        heard.map_err(|_| transient("the other end is gone"))?;
        let Some(mut writer) = writer else { return Ok(()) };
        while writer.offset() < blob.size {
            let count = (blob.size - writer.offset()).min(CHUNK_BYTES as u64);
            let chunk = match incoming.take(count).await {
                Ok(chunk) => chunk,
                Err(error) => {
                    writer.close().await;
                    return Err(error);
                }
            };
            writer.write(chunk).await.map_err(&failed)?;
        }
        match commit(writer, blob).await {
            Ok(()) => Ok(()),
            Err(Fault::Stopped(error)) => Err(error),
            Err(Fault::Wrong(error)) => {
                let _ = self.containerd.abort_blob(&blob.digest).await;
                Err(error)
            }
        }
    }

    /// Keeps the images of that name no longer than any other, but for one.
    pub(in crate::runtime) async fn give_up(
        &self,
        name: &str,
        but: Option<Digest>,
    ) -> Result<(), OperationError> {
        let failed = refused("taking back an image");
        let answer = self.containerd.images().list(request(ListImagesRequest::default())).await;
        for mut image in answer.map_err(&failed)?.into_inner().images {
            let Some((own, digest)) = image.name.rsplit_once("@sha256:") else { continue };
            if own != name || but.is_some_and(|but| digest == but.to_string()) {
                continue;
            }
            if image.labels.remove(GIVEN_LABEL).is_some() {
                let update = UpdateImageRequest { image: Some(image), ..Default::default() };
                self.containerd.images().update(request(update)).await.map_err(&failed)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str, digest: &str, given: Option<&str>) -> Image {
        let labels = given.map(|ms| (GIVEN_LABEL.to_owned(), ms.to_owned()));
        let name = format!("{name}@sha256:{}", Digest::of(digest.as_bytes()));
        Image { name, labels: labels.into_iter().collect(), ..Default::default() }
    }

    #[test]
    fn an_image_that_was_given_is_told_from_one_that_was_fetched_and_the_last_of_a_name_counts() {
        let images = [
            image("shop:1", "old", Some("5")),
            image("shop:1", "new", Some("7")),
            image("shop:1", "oldest", Some("3")),
            image("other:1", "a", None),
            image("broken:1", "a", Some("yesterday")),
            Image {
                name: "tag:1".into(),
                labels: [(GIVEN_LABEL.into(), "5".into())].into(),
                ..Default::default()
            },
        ];
        let expected = GivenImage { digest: Digest::of(b"new"), given_ms: 7 };
        assert_eq!(among(&images), [("shop:1".to_owned(), expected)].into());
    }

    #[tokio::test]
    async fn pieces_of_any_size_are_read_as_what_they_are_together() {
        let (said, input) = mpsc::channel(8);
        let (taken, is_taken) = watch::channel(0);
        let mut incoming = Incoming { input, taken, rest: Bytes::new() };
        for piece in ["mani", "fest", "layer"] {
            said.send(Input::Data(piece.into())).await.unwrap();
        }
        said.send(Input::End).await.unwrap();
        assert_eq!(incoming.take(6).await.unwrap(), b"manife");
        assert_eq!(*is_taken.borrow(), 6);
        assert_eq!(incoming.take(2).await.unwrap(), b"st");
        assert_eq!(incoming.take(0).await.unwrap(), b"");
        assert!(incoming.take(9).await.unwrap_err().text.contains("breaks off"));
    }
}
