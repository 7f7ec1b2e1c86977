//! Images from a stick (`hivemind_spec::stick`): taken as an operator gives them, but by the word of a signed list.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use hivemind_core::node::Node;
use hivemind_spec::api::WantedBlob;
use hivemind_spec::document::Kind;
use hivemind_spec::dsse::{Envelope, EnvelopeError};
use hivemind_spec::id::{Digest, KeyId};
use hivemind_spec::stick::{BLOBS, ImageList, LIST, ListedImage, MAX_LIST_BYTES};
use tokio::sync::{mpsc, watch};

use crate::agent::AgentHandle;
use crate::runtime::Runtime;
use crate::runtime::stream::{Input, OtherEnd, Output};

/// Read at once from a stick, bytes.
const PIECE_BYTES: usize = 256 * 1024;

/// Pieces read ahead: a stick is slower than what takes them.
const PIECES_AHEAD: usize = 2;

/// The largest manifest, bytes: as images are taken.
const MAX_MANIFEST_BYTES: u64 = 4 * 1024 * 1024;

/// Takes the images below a folder that the machine was not given yet. Returns their names.
///
/// # Errors
/// When no admin of this cluster signed the list, or an image is not as it says. Those before it are there.
pub(super) async fn take(agent: &AgentHandle, runtime: &Runtime, root: &Path) -> anyhow::Result<Vec<String>> {
    let list = read(&root.join(LIST), MAX_LIST_BYTES).context(LIST)?;
    let envelope: Envelope = serde_json::from_slice(&list).context("images.json is not a signed list")?;
    let asked = agent.read(move |core, _| {
        let given = core.cluster().images.get(&core.me()).cloned();
        signed(core, &envelope).map(|list| (list, given.unwrap_or_default()))
    });
    let asked = asked.await.map_err(|problem| anyhow::anyhow!(problem.detail));
    let (list, given) = asked??;
    let mut taken = Vec::new();
    for image in list.images {
        match given.get(&image.name) {
            Some(own) if own.digest == image.digest => continue,
            Some(own) if own.given_ms > list.made_ms => {
                tracing::warn!(
                    image = image.name,
                    "the stick is older than the image of that name that is here"
                );
                continue;
            }
            _ => {}
        }
        take_one(runtime, root, &image).await.with_context(|| image.name.clone())?;
        taken.push(image.name);
    }
    Ok(taken)
}

/// The list, if one who may give images signed it.
fn signed(core: &Node, envelope: &Envelope) -> Result<ImageList, EnvelopeError> {
    let known = |key: &KeyId| {
        let (_, holder) = core.operators().find(|(id, _)| *id == key)?;
        (holder.is_live() && holder.allows(Kind::NodeIntent, "")).then_some(holder.public)
    };
    Ok(envelope.verify_images(known)?.value().clone())
}

async fn take_one(runtime: &Runtime, root: &Path, image: &ListedImage) -> anyhow::Result<()> {
    let manifest = read(&blob(root, &image.digest), MAX_MANIFEST_BYTES).context("its manifest")?;
    let length = manifest.len() as u64;
    let (input_tx, input) = mpsc::channel(PIECES_AHEAD);
    let (taken, _) = watch::channel(0);
    let (output, wanted) = mpsc::channel(1);
    let other = OtherEnd { input, taken, output };
    // Either may end first: one that is taken asks no more, and one that cannot be read says why.
    let (took, sent) = tokio::join!(
        runtime.take_image(&image.name, image.digest, length, other),
        send(root, manifest, input_tx, wanted)
    );
    match (took, sent) {
        (Ok(()), _) => Ok(()),
        (Err(_), Err(error)) => Err(error),
        (Err(error), Ok(())) => bail!(error.text),
    }
}

/// Sends the manifest, and then what is wanted.
async fn send(
    root: &Path,
    manifest: Vec<u8>,
    input: mpsc::Sender<Input>,
    mut wanted: mpsc::Receiver<Output>,
) -> anyhow::Result<()> {
    // When nobody takes it any more, whoever took it says why.
    if input.send(Input::Data(manifest.into())).await.is_err() {
        return Ok(());
    }
    while let Some((_, line)) = wanted.recv().await {
        let WantedBlob { digest, from } = serde_json::from_slice(&line)?;
        let digits = Digest::from_oci(&digest).with_context(|| format!("{digest} is no digest of a file"))?;
        let mut file = File::open(blob(root, &digits)).with_context(|| format!("{digest} is not on it"))?;
        file.seek(SeekFrom::Start(from))?;
        loop {
            let mut piece = vec![0; PIECE_BYTES];
            let count = file.read(&mut piece).with_context(|| format!("{digest} cannot be read"))?;
            piece.truncate(count);
            if count == 0 {
                break;
            }
            if input.send(Input::Data(Bytes::from(piece))).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn blob(root: &Path, digest: &Digest) -> std::path::PathBuf {
    root.join(BLOBS).join(digest.to_string())
}

/// A file of at most so many bytes.
fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("it is over {most} bytes")));
    }
    Ok(bytes)
}
