//! Image layers: deterministic archives of files that need not exist on this computer.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use flate2::{Compression, GzBuilder};

use crate::error::{Context, Result};

/// Files by path without leading slash; a folder sorts before what is in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layer {
    entries: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    kind: Kind,
    mode: u32,
    owner: u32,
}

#[derive(Clone, Debug)]
enum Kind {
    Folder,
    File(Vec<u8>),
    Symlink(String),
    HardLink(String),
}

/// A layer as a registry keeps it.
pub(crate) struct PackedLayer {
    pub(crate) blob: Vec<u8>,
    /// Digest of the archive before compression, as the image configuration lists it.
    pub(crate) diff_id: String,
}

impl Layer {
    pub(crate) fn folder(&mut self, path: &str, mode: u32, owner: u32) -> &mut Self {
        self.add(path, Kind::Folder, mode, owner)
    }

    pub(crate) fn file(&mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) -> &mut Self {
        self.add(path, Kind::File(content.into()), mode, 0)
    }

    pub(crate) fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.add(path, Kind::Symlink(target.into()), 0o777, 0)
    }

    /// A second name for a file of the same layer. Both have one mode, and unpacking sets that of the
    /// later name.
    pub(crate) fn hard_link(&mut self, path: &str, target: &str) -> &mut Self {
        let mode = self.entries.get(target).map_or(0o644, |entry| entry.mode);
        self.add(path, Kind::HardLink(target.into()), mode, 0)
    }

    /// A file of this computer, following links.
    pub(crate) fn copy(&mut self, from: &Path, path: &str, mode: u32) -> Result<&mut Self> {
        let content = fs::read(from).context(format!("read {}", from.display()))?;
        Ok(self.file(path, mode, content))
    }

    fn add(&mut self, path: &str, kind: Kind, mode: u32, owner: u32) -> &mut Self {
        if let Some((parent, _)) = path.rsplit_once('/')
            && !self.entries.contains_key(parent)
        {
            self.folder(parent, 0o755, 0);
        }
        self.entries.insert(path.into(), Entry { kind, mode, owner });
        self
    }

    /// The same bytes for the same files, whenever and wherever.
    pub(crate) fn pack(&self) -> Result<PackedLayer> {
        let archive = self.archive().context("pack a layer")?;
        let compress = || -> io::Result<Vec<u8>> {
            let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::default());
            gzip.write_all(&archive)?;
            gzip.finish()
        };
        let blob = compress().context("compress a layer")?;
        Ok(PackedLayer { blob, diff_id: super::oci::digest(&archive) })
    }

    fn archive(&self) -> io::Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, entry) in &self.entries {
            let mut header = tar::Header::new_gnu();
            header.set_mode(entry.mode);
            header.set_uid(entry.owner.into());
            header.set_gid(entry.owner.into());
            header.set_mtime(0);
            header.set_size(0);
            match &entry.kind {
                Kind::Folder => {
                    header.set_entry_type(tar::EntryType::Directory);
                    archive.append_data(&mut header, format!("{path}/"), io::empty())?;
                }
                Kind::File(content) => {
                    header.set_size(content.len() as u64);
                    archive.append_data(&mut header, path, content.as_slice())?;
                }
                Kind::Symlink(target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    archive.append_link(&mut header, path, target)?;
                }
                Kind::HardLink(target) => {
                    header.set_entry_type(tar::EntryType::Link);
                    archive.append_link(&mut header, path, target)?;
                }
            }
        }
        archive.into_inner()
    }
}
