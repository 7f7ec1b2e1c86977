//! `hivemind images stick`: images on a stick, for machines that no operator reaches.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use hivemind_spec::dsse::Envelope;
use hivemind_spec::id::Digest;
use hivemind_spec::key::SigningKey;
use hivemind_spec::stick::{BLOBS, ImageList, LABEL, LIST, ListedImage};
use indicatif::ProgressBar;
use serde_json::json;

use super::bars::bytes;
use super::images::{names, open};
use crate::cli::{Global, ImagesStick, Output};
use crate::failure::{Exit, Failure, Result};
use crate::oci_archive::{Archive, Image};
use crate::quantity::show_bytes;
use crate::terminal::{FAINT, STRONG, note, paint, say, say_json};

pub(super) fn run(global: &Global, options: &ImagesStick) -> Result<Exit> {
    if !options.folder.is_dir() {
        let text = format!("{} is no folder", options.folder.display());
        return Err(Failure::input("no-folder", text).advice("name the folder at which the stick is mounted"));
    }
    let bundle = super::open_bundle(global)?;
    let signer = bundle.operator_key(&global.key)?;
    let archives: Vec<Archive> = options.files.iter().map(|file| open(file)).collect::<Result<_>>()?;
    let images: Vec<Vec<Image>> =
        archives.iter().map(|archive| archive.images(&options.arch)).collect::<Result<_>>()?;
    // The last of a name counts, as when they are given one after the other.
    let mut listed: BTreeMap<String, (&Archive, &Image)> = BTreeMap::new();
    for (archive, images) in archives.iter().zip(&images) {
        listed.extend(names(images, None)?.into_iter().map(|(name, image)| (name, (archive, image))));
    }
    let list = write(&options.folder, &listed, &signer)?;
    if global.output == Output::Json {
        say_json(&json!({ "folder": options.folder, "images": list.images }));
        return Ok(Exit::Success);
    }
    for (name, (_, image)) in &listed {
        say(&format!("{} ({})", paint(STRONG, name), show_bytes(image.size())));
    }
    let text = format!(
        "Once it is unmounted, machines take them when it is plugged in, if its file system is FAT and has the label {LABEL}."
    );
    note(&paint(FAINT, &text));
    Ok(Exit::Success)
}

/// Writes images and their signed list; the list last, so that one that is broken off is none. What another list left
/// there is removed.
fn write(
    folder: &Path,
    images: &BTreeMap<String, (&Archive, &Image)>,
    signer: &SigningKey,
) -> Result<ImageList> {
    let blobs = folder.join(BLOBS);
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error: io::Error| Failure::file("write", &path, &error)
    };
    let old = folder.join(LIST);
    if old.exists() {
        fs::remove_file(&old).map_err(failed(&old))?;
    }
    fs::create_dir_all(&blobs).map_err(failed(&blobs))?;
    let mut wanted = Vec::new();
    let mut list = ImageList { made_ms: super::now_ms(), images: Vec::new() };
    for (name, (archive, image)) in images {
        let digest = digits(&image.digest)?;
        let manifest = place(&blobs, &digest);
        fs::write(&manifest, &image.manifest).map_err(failed(&manifest))?;
        wanted.push(manifest);
        let bar = bytes(Some(image.size()));
        bar.set_message(name.clone());
        for (digest, blob) in &image.blobs {
            let path = place(&blobs, &digits(digest)?);
            copy(archive, blob, &path, &bar)?;
            wanted.push(path);
        }
        bar.finish_and_clear();
        list.images.push(ListedImage { name: name.clone(), digest });
    }
    for entry in fs::read_dir(&blobs).map_err(failed(&blobs))?.flatten() {
        if !wanted.contains(&entry.path()) {
            fs::remove_file(entry.path()).map_err(failed(&entry.path()))?;
        }
    }
    let new = folder.join(LIST);
    fs::write(&new, Envelope::sign_images(&list, signer).to_json()).map_err(failed(&new))?;
    File::open(&new).and_then(|file| file.sync_all()).map_err(failed(&new))?;
    Ok(list)
}

/// Copies a blob, unless it is there whole: a machine compares it with its digest.
fn copy(archive: &Archive, blob: &crate::oci_archive::Blob, path: &Path, bar: &ProgressBar) -> Result<()> {
    let failed = |error: io::Error| Failure::file("write", path, &error);
    if path.metadata().is_ok_and(|found| found.len() == blob.size) {
        bar.inc(blob.size);
        return Ok(());
    }
    let mut file = File::create(path).map_err(failed)?;
    io::copy(&mut bar.wrap_read(archive.read(blob, 0)?), &mut file).map_err(failed)?;
    file.sync_all().map_err(failed)
}

fn place(blobs: &Path, digest: &Digest) -> PathBuf {
    blobs.join(digest.to_string())
}

fn digits(digest: &str) -> Result<Digest> {
    Digest::from_oci(digest)
        .ok_or_else(|| Failure::input("bad-image", format!("{digest:?} is no SHA-256 digest")))
}
