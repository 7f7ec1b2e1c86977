//! Releases of the operating system: what an update brings, cut so that only what changed travels.
//!
//! A release is two files, the root's slot and the kernel. Each is cut into chunks where its content says so
//! ([FastCDC]), so that a change moves no cut but those around it; a machine has most chunks of the next release in
//! what it runs. The document names every chunk by its hash: whoever serves one need not be trusted.
//!
//! [FastCDC]: https://www.usenix.org/conference/atc16/technical-sessions/presentation/xia

use std::io::Read;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fastcdc::v2020::StreamCDC;
use semver::Version;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::ToSchema;

use crate::document::DocumentError;
use crate::id::{Digest, ReleaseId};

/// Sizes of chunks, bytes: the list of a release's seven hundred fits a document well, and what travels beside a
/// change is less than a hundredth of the release.
const SMALLEST_CHUNK: u32 = 16 * 1024;
const USUAL_CHUNK: u32 = 64 * 1024;

/// The largest chunk, bytes.
pub const LARGEST_CHUNK: u32 = 512 * 1024;

/// The largest file, bytes: a slot's size.
pub const MAX_FILE_BYTES: u64 = 512 << 20;

/// Chunks of a file, at most: all of the smallest size.
const MAX_CHUNKS: usize = (MAX_FILE_BYTES / SMALLEST_CHUNK as u64) as usize;

/// Places a release comes from, at most.
const MAX_SOURCES: usize = 8;

/// Longest version and longest source, bytes: they are shown in lists.
const MAX_VERSION_BYTES: usize = 40;
const MAX_SOURCE_BYTES: usize = 1024;

/// The source that is a stick: a FAT file system with this label and the bundle's files on it, plugged into any machine.
pub const STICK: &str = "stick";

/// The label of that stick's file system.
pub const STICK_LABEL: &str = "HIVERELEASE";

/// A release of the operating system for one architecture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OsReleaseSpec {
    /// Its version, for people and for [`Self::minimum`] (Semantic Versioning 2.0.0).
    pub version: String,
    /// What it is.
    #[schema(value_type = String)]
    pub release: ReleaseId,
    /// The machines it is for, as OCI image indexes name them: `amd64` or `arm64`.
    pub architecture: Architecture,
    /// The oldest version that may take its place: an older one would not understand what it leaves behind.
    pub minimum: String,
    /// The file of a root's slot.
    pub root: ReleaseFile,
    /// The unified kernel image.
    pub kernel: ReleaseFile,
    /// Where the files are, tried in this order: `http://` or `https://` and a folder, a reference to an OCI artifact in
    /// a registry, or `stick` for one that is plugged into any machine. A node asks its peers first. Absent in what a
    /// build writes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<String>,
    /// Nothing more of it happens while this is set.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
}

/// The architectures there are releases for, by their names in OCI image indexes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// `x86_64` elsewhere.
    Amd64,
    /// `aarch64` elsewhere.
    Arm64,
}

impl Architecture {
    /// By the name in OCI image indexes, which is also the name of the release's document.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Amd64 => "amd64",
            Architecture::Arm64 => "arm64",
        }
    }

    /// The one this program was built for; none for others.
    pub fn own() -> Option<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Architecture::Amd64),
            "aarch64" => Some(Architecture::Arm64),
            _ => None,
        }
    }
}

/// One of a release's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReleaseFile {
    /// Its size.
    pub bytes: u64,
    /// The SHA-256 of it all.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// What it consists of, in order.
    pub chunks: Chunks,
}

/// A piece of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Its size.
    pub bytes: u32,
    /// The SHA-256 of it.
    pub digest: Digest,
}

/// A list of chunks. In JSON a string: for each its size in four bytes, big-endian, and its digest, all in standard
/// base64.
#[derive(Debug, Clone, PartialEq, Eq, ToSchema)]
#[schema(value_type = String)]
pub struct Chunks(pub Vec<Chunk>);

/// Bytes of a chunk in the list.
const LISTED_BYTES: usize = 4 + 32;

impl Serialize for Chunks {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let listed = |chunk: &Chunk| [&chunk.bytes.to_be_bytes()[..], &chunk.digest.0].concat();
        serializer.collect_str(&STANDARD.encode(self.0.iter().flat_map(listed).collect::<Vec<u8>>()))
    }
}

impl<'de> Deserialize<'de> for Chunks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).map_err(de::Error::custom)?;
        if bytes.len() % LISTED_BYTES != 0 || bytes.len() / LISTED_BYTES > MAX_CHUNKS {
            let count = format!("{} bytes are no list of at most {MAX_CHUNKS} chunks", bytes.len());
            return Err(de::Error::custom(count));
        }
        let chunk = |listed: &[u8]| {
            let (mut size, mut digest) = ([0; 4], [0; 32]);
            size.copy_from_slice(&listed[..4]);
            digest.copy_from_slice(&listed[4..]);
            Chunk { bytes: u32::from_be_bytes(size), digest: Digest(digest) }
        };
        Ok(Self(bytes.chunks_exact(LISTED_BYTES).map(chunk).collect()))
    }
}

/// Cuts what is read into chunks and gives each with its bytes: how a release is described, and how a machine finds
/// out what it already has of one. Holds no more than one chunk.
///
/// # Errors
/// The items are errors when reading fails.
pub fn cut(content: impl Read) -> impl Iterator<Item = std::io::Result<(Chunk, Vec<u8>)>> {
    let sizes = [SMALLEST_CHUNK, USUAL_CHUNK, LARGEST_CHUNK].map(|size| size as usize);
    StreamCDC::new(content, sizes[0], sizes[1], sizes[2]).map(|piece| {
        let piece = piece.map_err(std::io::Error::from)?;
        // At most the largest chunk, which fits.
        let bytes = u32::try_from(piece.length).unwrap_or(u32::MAX);
        Ok((Chunk { bytes, digest: Digest::of(&piece.data) }, piece.data))
    })
}

impl ReleaseFile {
    /// Describes a file.
    ///
    /// # Errors
    /// When reading it fails.
    pub fn of(content: impl Read) -> std::io::Result<Self> {
        let mut whole = ring::digest::Context::new(&ring::digest::SHA256);
        let tee = Tee { content, whole: &mut whole };
        let chunks = cut(tee).map(|piece| Ok(piece?.0)).collect::<std::io::Result<Vec<_>>>()?;
        let mut digest = [0; 32];
        digest.copy_from_slice(whole.finish().as_ref());
        let bytes = chunks.iter().map(|chunk| u64::from(chunk.bytes)).sum();
        Ok(Self { bytes, digest: Digest(digest), chunks: Chunks(chunks) })
    }

    /// Each chunk with its place in the file.
    pub fn places(&self) -> impl Iterator<Item = (u64, Chunk)> {
        self.chunks.0.iter().scan(0, |next, chunk| {
            let place = *next;
            *next += u64::from(chunk.bytes);
            Some((place, *chunk))
        })
    }

    fn validate(&self, at: &str) -> Result<(), DocumentError> {
        let sum: u64 = self.chunks.0.iter().map(|chunk| u64::from(chunk.bytes)).sum();
        if self.bytes == 0 || self.bytes > MAX_FILE_BYTES {
            let text = format!("is {}; a file has 1 to {MAX_FILE_BYTES} bytes", self.bytes);
            return Err(DocumentError::new(format!("{at}/bytes"), text));
        }
        if sum != self.bytes || self.chunks.0.iter().any(|chunk| !(1..=LARGEST_CHUNK).contains(&chunk.bytes))
        {
            let text = format!(
                "the chunks have {sum} bytes and the file has {}; take what the build wrote as it is",
                self.bytes
            );
            return Err(DocumentError::new(format!("{at}/chunks"), text));
        }
        Ok(())
    }
}

/// Reads, and adds what it has read to a hash.
struct Tee<'a, R> {
    content: R,
    whole: &'a mut ring::digest::Context,
}

impl<R: Read> Read for Tee<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.content.read(buffer)?;
        self.whole.update(&buffer[..count]);
        Ok(count)
    }
}

/// Reads a version.
///
/// # Errors
/// Says what a version looks like.
pub fn version(text: &str) -> Result<Version, String> {
    if text.len() > MAX_VERSION_BYTES {
        return Err(format!("a version has at most {MAX_VERSION_BYTES} characters"));
    }
    Version::parse(text)
        .map_err(|error| format!("{text:?} is no version such as 1.2.3 or 1.2.3-rc.1 (semver.org): {error}"))
}

impl OsReleaseSpec {
    /// Whether it may take the place of one that takes no older version than `minimum`. True where either says
    /// nothing that can be read.
    pub fn may_follow(&self, minimum: &str) -> bool {
        match (version(&self.version), version(minimum)) {
            (Ok(own), Ok(minimum)) => own >= minimum,
            _ => true,
        }
    }

    pub(crate) fn validate(&self, name: &str) -> Result<(), DocumentError> {
        if name != self.architecture.name() {
            let text = format!("must be the architecture, {:?}", self.architecture.name());
            return Err(DocumentError::new("/metadata/name", text));
        }
        let own = version(&self.version).map_err(|text| DocumentError::new("/spec/version", text))?;
        let minimum = version(&self.minimum).map_err(|text| DocumentError::new("/spec/minimum", text))?;
        if minimum > own {
            let text = format!("{minimum} is more than the version itself, {own}");
            return Err(DocumentError::new("/spec/minimum", text));
        }
        self.root.validate("/spec/root")?;
        self.kernel.validate("/spec/kernel")?;
        if self.sources.is_empty() || self.sources.len() > MAX_SOURCES {
            let text = format!("name 1 to {MAX_SOURCES} places that the files come from");
            return Err(DocumentError::new("/spec/sources", text));
        }
        match self.sources.iter().position(|source| source.is_empty() || source.len() > MAX_SOURCE_BYTES) {
            Some(index) => {
                let text = format!("a source has 1 to {MAX_SOURCE_BYTES} characters");
                Err(DocumentError::new(format!("/spec/sources/{index}"), text))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Bytes that look random and are the same each time.
    fn noise(seed: u64, bytes: usize) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        };
        (0..bytes).map(|_| next()).collect()
    }

    fn spec(root: ReleaseFile) -> OsReleaseSpec {
        OsReleaseSpec {
            version: "0.2.0".into(),
            release: ReleaseId::of(b"r"),
            architecture: Architecture::Amd64,
            minimum: "0.1.0".into(),
            kernel: root.clone(),
            root,
            sources: vec!["https://example.org/os".into()],
            paused: false,
        }
    }

    #[test]
    fn a_file_is_its_chunks_in_order_and_survives_json() {
        let content = noise(1, 3 << 20);
        let file = ReleaseFile::of(&content[..]).unwrap();
        assert_eq!((file.bytes, file.digest), (3 << 20, Digest::of(&content)));
        for (place, chunk) in file.places() {
            let from = usize::try_from(place).unwrap();
            assert_eq!(chunk.digest, Digest::of(&content[from..from + chunk.bytes as usize]));
        }
        let json = serde_json::to_string(&file).unwrap();
        assert_eq!(serde_json::from_str::<ReleaseFile>(&json).unwrap(), file);
    }

    #[test]
    fn what_is_put_in_moves_no_cut_but_those_around_it() {
        let before = noise(2, 8 << 20);
        let mut after = before.clone();
        after.splice((4 << 20)..(4 << 20), noise(3, 1001));
        let set = |content: &[u8]| -> BTreeSet<(Digest, u32)> {
            cut(content).map(|piece| piece.unwrap().0).map(|chunk| (chunk.digest, chunk.bytes)).collect()
        };
        let known = set(&before);
        let new: u32 = set(&after).difference(&known).map(|(_, bytes)| bytes).sum();
        assert!(new < 3 * LARGEST_CHUNK, "{new} bytes are new");
    }

    #[test]
    fn a_release_with_a_fault_is_refused_with_its_place() {
        let good = spec(ReleaseFile::of(&noise(4, 100_000)[..]).unwrap());
        good.validate("amd64").unwrap();
        let place = |change: &dyn Fn(&mut OsReleaseSpec)| {
            let mut spec = good.clone();
            change(&mut spec);
            spec.validate("amd64").unwrap_err().pointer
        };
        assert_eq!(good.validate("arm64").unwrap_err().pointer, "/metadata/name");
        assert_eq!(place(&|s| s.version = "new".into()), "/spec/version");
        assert_eq!(place(&|s| s.minimum = "0.3.0".into()), "/spec/minimum");
        assert_eq!(place(&|s| s.root.bytes += 1), "/spec/root/chunks");
        assert_eq!(place(&|s| s.kernel.chunks.0[0].bytes = 0), "/spec/kernel/chunks");
        assert_eq!(place(&|s| s.sources.clear()), "/spec/sources");
        assert_eq!(place(&|s| s.sources.push(String::new())), "/spec/sources/1");
        serde_json::from_str::<Chunks>("\"AAAA\"").unwrap_err();
    }

    #[test]
    fn only_what_is_not_older_than_the_minimum_may_follow() {
        let release = spec(ReleaseFile::of(&b"x"[..]).unwrap());
        assert!(release.may_follow("0.2.0") && release.may_follow("0.2.0-rc.1"));
        assert!(!release.may_follow("0.2.1") && !release.may_follow("1.0.0-rc.1"));
    }
}
