//! Backups as files: tar, compressed with Zstandard (RFC 8878) with a checksum, encrypted in the age format
//! (age-encryption.org/v1). Each layer notices when it breaks off.

use std::fs;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use age::stream::StreamWriter;
use serde::Serialize;
use zstd::stream::write::Encoder;

use crate::failure::{Failure, Result};
use crate::secret::Passphrase;

/// How hard is compressed: as fast as a network of 1 Gbit/s on one core.
const LEVEL: i32 = 3;

/// How much is read and written at once, bytes.
const BUFFER_BYTES: usize = 64 * 1024;

/// How files in the age format begin.
const AGE: &[u8] = b"age-encryption.org/";
/// How Zstandard's begin, and gzip's (RFC 1952).
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const GZIP: &[u8] = &[0x1f, 0x8b];

/// Who may read a backup.
pub enum Lock {
    /// Whoever has the file.
    Nobody,
    /// Who knows this.
    Passphrase(Passphrase),
    /// Who has the private keys to these.
    Recipients(Vec<age::x25519::Recipient>),
}

impl Lock {
    /// For public keys as `age-keygen` prints them.
    ///
    /// # Errors
    /// `bad-recipient`.
    pub fn recipients(keys: &[String]) -> Result<Self> {
        let parse = |key: &String| {
            key.parse().map_err(|error| {
                Failure::input("bad-recipient", format!("{key:?} is no public key of age: {error}"))
                    .advice("`age-keygen` makes a pair; the public one begins with age1")
            })
        };
        keys.iter().map(parse).collect::<Result<_>>().map(Self::Recipients)
    }
}

/// What a backup has, of files; without folders and links.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Content {
    /// How many.
    pub files: u64,
    /// How much is in them, bytes.
    pub bytes: u64,
}

/// Writes a backup.
pub struct Writer<W: Write>(Encoder<'static, Sealed<W>>);

enum Sealed<W: Write> {
    Plain(W),
    Age(StreamWriter<W>),
}

impl<W: Write> Writer<W> {
    /// # Errors
    /// Those of `to`.
    pub fn new(to: W, lock: Lock) -> io::Result<Self> {
        let encryptor = match lock {
            Lock::Nobody => None,
            Lock::Passphrase(passphrase) => {
                Some(age::Encryptor::with_user_passphrase(passphrase.into_secret()))
            }
            Lock::Recipients(keys) => {
                let keys = keys.iter().map(|key| key as &dyn age::Recipient);
                Some(age::Encryptor::with_recipients(keys).map_err(io::Error::other)?)
            }
        };
        let sealed = match encryptor {
            None => Sealed::Plain(to),
            Some(encryptor) => Sealed::Age(encryptor.wrap_output(to)?),
        };
        let mut encoder = Encoder::new(sealed, LEVEL)?;
        encoder.include_checksum(true)?;
        Ok(Self(encoder))
    }

    /// Ends it: without this it breaks off.
    ///
    /// # Errors
    /// Those of what is written to.
    pub fn finish(self) -> io::Result<W> {
        match self.0.finish()? {
            Sealed::Plain(to) => Ok(to),
            Sealed::Age(age) => age.finish(),
        }
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl<W: Write> Write for Sealed<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(to) => to.write(data),
            Self::Age(age) => age.write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(to) => to.flush(),
            Self::Age(age) => age.flush(),
        }
    }
}

/// The tar archive in a backup, whatever is around it: age, Zstandard, gzip, nothing.
///
/// # Errors
/// When it cannot be read or decrypted. What is wrong later on shows in reading.
pub fn open(from: impl Read + Send + 'static, identity: Option<&Path>) -> Result<Box<dyn Read + Send>> {
    let (head, from) = peek(from)?;
    if !head.starts_with(AGE) {
        return decompress(from);
    }
    let failed = |error: age::DecryptError| {
        Failure::local("decrypt", format!("the backup cannot be decrypted: {error}"))
            .advice("check the passphrase, or name the file with the private key with --identity")
    };
    let decryptor = age::Decryptor::new_buffered(from).map_err(failed)?;
    let identities: Vec<Box<dyn age::Identity>> = match identity {
        _ if decryptor.is_scrypt() => {
            vec![Box::new(Passphrase::ask("the backup", false)?.into_identity())]
        }
        Some(path) => keys(path)?.into_iter().map(|key| Box::new(key) as Box<dyn age::Identity>).collect(),
        None => {
            return Err(Failure::input("no-identity", "the backup is encrypted to the keys of recipients")
                .advice("name the file with a private key of theirs with --identity"));
        }
    };
    let plain = decryptor.decrypt(identities.iter().map(|identity| identity.as_ref())).map_err(failed)?;
    decompress(plain)
}

fn decompress(from: impl Read + Send + 'static) -> Result<Box<dyn Read + Send>> {
    let (head, from) = peek(from)?;
    if head.starts_with(ZSTD) {
        let decoder = zstd::stream::read::Decoder::with_buffer(from);
        return Ok(Box::new(decoder.map_err(|error| unreadable(&error))?));
    }
    if head.starts_with(GZIP) {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(from)));
    }
    Ok(Box::new(from))
}

/// How something begins, and all of it.
fn peek<R: Read>(mut from: R) -> Result<(Vec<u8>, BufReader<impl Read + use<R>>)> {
    let mut head = Vec::new();
    from.by_ref().take(AGE.len() as u64).read_to_end(&mut head).map_err(|error| unreadable(&error))?;
    let whole = io::Cursor::new(head.clone()).chain(from);
    Ok((head, BufReader::with_capacity(BUFFER_BYTES, whole)))
}

/// The failure of reading a backup.
pub fn unreadable(error: &io::Error) -> Failure {
    Failure::local("bad-backup", format!("the backup cannot be read: {error}"))
        .advice("`hivemind volumes check` reads it to its end; take another if it is damaged")
}

/// The private keys in a file as `age-keygen` makes it.
fn keys(path: &Path) -> Result<Vec<age::x25519::Identity>> {
    let text = fs::read_to_string(path).map_err(|error| Failure::file("read", path, &error))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let keys: std::result::Result<Vec<_>, _> = lines.map(str::parse).collect();
    let advice = "it has lines like AGE-SECRET-KEY-1…, as `age-keygen` writes them";
    match keys {
        Ok(keys) if !keys.is_empty() => Ok(keys),
        Ok(_) => Err(Failure::input("bad-identity", format!("{} has no key", path.display())).advice(advice)),
        Err(error) => {
            let text = format!("{} is no file of private keys: {error}", path.display());
            Err(Failure::input("bad-identity", text).advice(advice))
        }
    }
}

/// Reads a tar archive to its end and says what is in it, as it is copied to `to`.
///
/// # Errors
/// Those of reading and of `to`; what is no tar archive.
pub fn copy(from: impl Read, to: impl Write) -> io::Result<Content> {
    let mut tee = Tee { from, to };
    let mut content = Content::default();
    let mut archive = tar::Archive::new(&mut tee);
    for entry in archive.entries()? {
        let entry = entry?;
        if entry.header().entry_type().is_file() {
            content.files += 1;
            content.bytes += entry.size();
        }
    }
    io::copy(&mut tee, &mut io::sink())?;
    Ok(content)
}

struct Tee<R, W> {
    from: R,
    to: W,
}

impl<R: Read, W: Write> Read for Tee<R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.to.write_all(&buffer[..count])?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use age::secrecy::ExposeSecret as _;

    use super::*;

    fn archive() -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, bytes) in [("a", 100_000), ("b", 7)] {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes);
            let content: Vec<u8> = (0..bytes).map(|n| (n * n % 251) as u8).collect();
            archive.append_data(&mut header, name, content.as_slice()).unwrap();
        }
        archive.into_inner().unwrap()
    }

    fn backup(lock: Lock) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), lock).unwrap();
        let content = copy(archive().as_slice(), &mut writer).unwrap();
        assert_eq!(content, Content { files: 2, bytes: 100_007 });
        writer.finish().unwrap()
    }

    fn read(bytes: &[u8], identity: Option<&Path>) -> io::Result<Vec<u8>> {
        let mut read = Vec::new();
        open(io::Cursor::new(bytes.to_vec()), identity).map_err(io::Error::other)?.read_to_end(&mut read)?;
        Ok(read)
    }

    #[test]
    fn a_backup_gives_back_what_it_was_given_to_those_it_is_for() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, key: &age::x25519::Identity| {
            let path = folder.path().join(name);
            fs::write(&path, format!("# a key\n{}\n", key.to_string().expose_secret())).unwrap();
            path
        };
        let (key, other) = (age::x25519::Identity::generate(), age::x25519::Identity::generate());
        let lock = Lock::recipients(&[key.to_public().to_string()]).unwrap();
        let bytes = backup(lock);
        assert_eq!(read(&bytes, Some(&file("key", &key))).unwrap(), archive());
        assert!(read(&bytes, Some(&file("other", &other))).is_err());
        let refused = open(io::Cursor::new(bytes), None).err().unwrap();
        assert_eq!(refused.code, "no-identity");
        assert_eq!(read(&backup(Lock::Nobody), None).unwrap(), archive());
        assert_eq!(Lock::recipients(&["age1x".to_owned()]).err().unwrap().code, "bad-recipient");
        fs::write(folder.path().join("empty"), "# nothing\n").unwrap();
        assert_eq!(keys(&folder.path().join("empty")).err().unwrap().code, "bad-identity");
    }

    #[test]
    fn a_backup_that_breaks_off_or_is_damaged_is_not_taken_for_whole() {
        let folder = tempfile::tempdir().unwrap();
        let key = age::x25519::Identity::generate();
        let path = folder.path().join("key");
        fs::write(&path, key.to_string().expose_secret()).unwrap();
        let sealed = backup(Lock::recipients(&[key.to_public().to_string()]).unwrap());
        for (bytes, identity) in [(backup(Lock::Nobody), None), (sealed, Some(path.as_path()))] {
            for cut in [1, 5, bytes.len() / 2, bytes.len() - 40] {
                assert!(read(&bytes[..bytes.len() - cut], identity).is_err(), "{cut}");
            }
            for at in [bytes.len() / 2, bytes.len() - 2] {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1;
                assert!(read(&damaged, identity).is_err(), "{at}");
            }
        }
    }

    #[test]
    fn archives_that_others_made_are_read_too() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&archive()).unwrap();
        assert_eq!(read(&gzip.finish().unwrap(), None).unwrap(), archive());
        assert_eq!(read(&archive(), None).unwrap(), archive());
        assert!(
            copy(&b"no archive, and longer than the 512 bytes of a header".repeat(20)[..], io::sink())
                .is_err()
        );
    }
}
