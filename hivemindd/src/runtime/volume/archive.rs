//! What is in a volume as a tar archive (POSIX.1-2001 and GNU), with owners, modes, times and links.
//!
//! Containers may write to the volume while it is read, and hostile ones may exchange folders for links: so every name is
//! opened in its folder and never followed, and what is read of a file is as long as was said. A volume is filled from an
//! archive where no container sees it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::Mode;
use tar::{Archive, Builder, EntryType, Header, HeaderMode};

use super::copy::give;

/// Folders within folders that are followed, each of which is open meanwhile: deeper than what programs make, and an end
/// to what was made to have none.
const MAX_DEPTH: usize = 256;

/// Files with several names of which that is known, at most: more are stored once for each name.
const MAX_LINKED: usize = 100_000;

/// Things that are told of one archive, at most.
const MAX_TOLD: usize = 100;

/// Writes a folder to an archive; `told` is what is not in it as it was.
///
/// # Errors
/// Those of reading, and of `to`.
pub(super) fn pack(folder: &Path, to: impl Write, told: impl FnMut(String)) -> io::Result<()> {
    let mut packer = Packer { archive: Builder::new(to), linked: BTreeMap::new(), told, count: 0 };
    let root = File::open(folder)?;
    packer.add_folder(&root, Path::new("."), MAX_DEPTH)?;
    packer.archive.into_inner()?.flush()
}

struct Packer<W: Write, T> {
    archive: Builder<W>,
    /// The first name of each file that has several, by device and number.
    linked: BTreeMap<(u64, u64), PathBuf>,
    told: T,
    count: usize,
}

impl<W: Write, T: FnMut(String)> Packer<W, T> {
    fn add_folder(&mut self, folder: &File, at: &Path, depth: usize) -> io::Result<()> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its folders are too deep"));
        };
        let mut header = header(&folder.metadata()?);
        header.set_size(0);
        self.archive.append_data(&mut header, at.join(""), io::empty())?;
        let entries = fs::read_dir(format!("/proc/self/fd/{}", folder.as_raw_fd()))?;
        let mut names = entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
        names.sort();
        for name in names {
            match self.add(folder.as_fd(), &name, &at.join(&name), depth) {
                // Deleted since its folder was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                added => added?,
            }
        }
        Ok(())
    }

    fn add(&mut self, folder: BorrowedFd<'_>, name: &OsStr, at: &Path, depth: usize) -> io::Result<()> {
        let open = |flags| {
            let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            openat(folder, name, flags, Mode::empty()).map(File::from)
        };
        let about = open(OFlag::O_PATH)?.metadata()?;
        let kind = about.file_type();
        if kind.is_dir() {
            return self.add_folder(&open(OFlag::O_RDONLY | OFlag::O_DIRECTORY)?, at, depth);
        }
        let several = (about.nlink() > 1).then_some((about.dev(), about.ino()));
        if let Some(first) = several.and_then(|id| self.linked.get(&id)) {
            let mut header = header(&about);
            header.set_entry_type(EntryType::Link);
            header.set_size(0);
            return self.archive.append_link(&mut header, at, first);
        }
        if kind.is_file() {
            // Without O_NONBLOCK, a pipe that has taken its place would be waited for.
            let file = open(OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
            let about = file.metadata()?;
            if !about.is_file() {
                return Err(io::ErrorKind::NotFound.into());
            }
            let mut content = Exact { of: file, left: about.len(), short: false };
            self.archive.append_data(&mut header(&about), at, &mut content)?;
            if content.short {
                self.tell(format!("{} became shorter while it was read", shown(at)));
            }
        } else if kind.is_symlink() {
            let mut header = header(&about);
            header.set_size(0);
            self.archive.append_link(&mut header, at, readlinkat(folder, name)?)?;
        } else if kind.is_fifo() {
            let mut header = header(&about);
            header.set_size(0);
            self.archive.append_data(&mut header, at, io::empty())?;
        } else {
            self.tell(format!("{} is a socket or a device, and left out", shown(at)));
            return Ok(());
        }
        if let Some(id) = several.filter(|_| self.linked.len() < MAX_LINKED) {
            self.linked.insert(id, at.to_owned());
        }
        Ok(())
    }

    fn tell(&mut self, what: String) {
        self.count += 1;
        match self.count {
            ..=MAX_TOLD => (self.told)(what),
            count if count == MAX_TOLD + 1 => (self.told)("and more of that kind".to_owned()),
            _ => {}
        }
    }
}

fn shown(at: &Path) -> String {
    at.strip_prefix(".").unwrap_or(at).display().to_string()
}

fn header(about: &Metadata) -> Header {
    let mut header = Header::new_gnu();
    header.set_metadata_in_mode(about, HeaderMode::Complete);
    header
}

/// A file, of which exactly as much is read as it had when its size was told: what is missing is zeros.
struct Exact {
    of: File,
    left: u64,
    short: bool,
}

impl Read for Exact {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let buffer = &mut buffer[..most];
        let mut count = if self.short { 0 } else { self.of.read(buffer)? };
        if count == 0 && most > 0 {
            self.short = true;
            buffer.fill(0);
            count = most;
        }
        self.left -= count as u64;
        Ok(count)
    }
}

/// Fills an empty folder from an archive, and reads on to the end. Nothing of it is outside of the folder, whatever the
/// archive says.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] for what is no archive of a volume; those of reading and writing.
pub(super) fn unpack(mut from: impl Read, into: &Path) -> io::Result<()> {
    let mut archive = Archive::new(&mut from);
    archive.set_preserve_ownerships(true);
    archive.set_preserve_permissions(true);
    for entry in archive.entries().map_err(unreadable)? {
        let mut entry = entry.map_err(unreadable)?;
        let path = entry.path()?.into_owned();
        let parts = || path.components();
        if !parts().all(|part| matches!(part, Component::CurDir | Component::Normal(_))) {
            return Err(wrong(format!("{} is not within the volume", path.display())));
        }
        match entry.header().entry_type() {
            EntryType::Directory if parts().all(|part| part == Component::CurDir) => {
                own(into, entry.header())?;
            }
            EntryType::Fifo => {
                let at = inside(into, &path)?;
                nix::unistd::mkfifo(&at, Mode::empty())?;
                own(&at, entry.header())?;
            }
            kind if kind.is_file() || kind.is_dir() || kind.is_symlink() || kind.is_hard_link() => {
                if !entry.unpack_in(into)? {
                    return Err(wrong(format!("{} is not within the volume", path.display())));
                }
            }
            EntryType::XGlobalHeader => {}
            _ => return Err(wrong(format!("{} is no file, folder, link or pipe", path.display()))),
        }
    }
    io::copy(&mut from, &mut io::sink())?;
    Ok(())
}

/// Where a path of an archive is in the folder, if what it is in is there and not a link that leads elsewhere.
fn inside(folder: &Path, path: &Path) -> io::Result<PathBuf> {
    let at = folder.join(path);
    let above = at.parent().unwrap_or(folder).canonicalize()?;
    if above.starts_with(folder.canonicalize()?) {
        return Ok(at);
    }
    Err(wrong(format!("{} is not within the volume", path.display())))
}

fn own(path: &Path, header: &Header) -> io::Result<()> {
    let id = |id: u64| u32::try_from(id).map_err(|_| wrong(format!("{id} is no user or group")));
    give(path, id(header.uid()?)?, id(header.gid()?)?, header.mode()?)
}

fn wrong(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// What `tar` says of bytes that are no archive has no kind of its own.
fn unreadable(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::Other => wrong(format!("this is no archive of a volume: {error}")),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
    use std::os::unix::net::UnixListener;

    use super::*;

    fn packed(folder: &Path) -> (Vec<u8>, Vec<String>) {
        let (mut bytes, mut told) = (Vec::new(), Vec::new());
        pack(folder, &mut bytes, |what| told.push(what)).unwrap();
        (bytes, told)
    }

    #[test]
    fn a_volume_comes_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::create_dir_all(from.join("deep/empty")).unwrap();
        fs::create_dir(&to).unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        fs::write(from.join("deep/file"), vec![7; 100_000]).unwrap();
        mode(&from.join("deep/file"), 0o4750);
        fs::hard_link(from.join("deep/file"), from.join("same")).unwrap();
        symlink("/etc/passwd", from.join("link")).unwrap();
        symlink("deep", from.join("folder")).unwrap();
        nix::unistd::mkfifo(&from.join("pipe"), Mode::from_bits_truncate(0o640)).unwrap();
        let long = "n".repeat(200);
        fs::write(from.join(&long), "long").unwrap();
        chown(from.join(&long), Some(70_000), Some(3_000_000)).unwrap();
        mode(&from, 0o2770);
        chown(&from, Some(999), Some(998)).unwrap();
        File::open(from.join("same"))
            .unwrap()
            .set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(7))
            .unwrap();
        let _socket = UnixListener::bind(from.join("socket")).unwrap();

        let (bytes, told) = packed(&from);
        assert_eq!(told, ["socket is a socket or a device, and left out"]);
        unpack(bytes.as_slice(), &to).unwrap();
        let about = |path: &str| fs::symlink_metadata(to.join(path)).unwrap();
        assert_eq!((about("").mode() & 0o7777, about("").uid(), about("").gid()), (0o2770, 999, 998));
        assert_eq!(fs::read(to.join("deep/file")).unwrap(), vec![7; 100_000]);
        assert_eq!(about("deep/file").mode() & 0o7777, 0o4750);
        assert_eq!(about("deep/file").ino(), about("same").ino(), "one file with two names");
        assert_eq!(about("same").mtime(), 7);
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("/etc/passwd"));
        assert_eq!(fs::read_link(to.join("folder")).unwrap(), Path::new("deep"));
        assert!(about("pipe").file_type().is_fifo() && about("pipe").mode() & 0o7777 == 0o640);
        assert!(about("deep/empty").is_dir());
        assert_eq!((about(&long).uid(), about(&long).gid()), (70_000, 3_000_000));
        assert!(!to.join("socket").exists());
    }

    #[test]
    fn what_changes_while_it_is_read_leaves_the_archive_whole() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), vec![1; 3000]).unwrap();
        let mut file = Exact { of: File::open(folder.path().join("a")).unwrap(), left: 5000, short: false };
        let mut read = Vec::new();
        file.read_to_end(&mut read).unwrap();
        assert!(file.short && read.len() == 5000 && read[2999] == 1 && read[3000] == 0);
        let mut file = Exact { of: File::open(folder.path().join("a")).unwrap(), left: 10, short: false };
        read.clear();
        file.read_to_end(&mut read).unwrap();
        assert_eq!((read.len(), file.short), (10, false));
    }

    fn archive(fill: impl FnOnce(&mut Builder<Vec<u8>>)) -> Vec<u8> {
        let mut archive = Builder::new(Vec::new());
        fill(&mut archive);
        archive.into_inner().unwrap()
    }

    fn entry(archive: &mut Builder<Vec<u8>>, kind: EntryType, name: &str, link: Option<&str>) {
        let mut header = Header::new_gnu();
        let text = name.as_bytes();
        // As `tar` itself would not write it.
        header.as_old_mut().name[..text.len()].copy_from_slice(text);
        header.set_entry_type(kind);
        if let Some(link) = link {
            header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        }
        header.set_size(0);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        archive.append(&header, io::empty()).unwrap();
    }

    #[test]
    fn an_archive_writes_nothing_outside_of_the_volume() {
        let folder = tempfile::tempdir().unwrap();
        let into = folder.path().join("into");
        let outside = folder.path().join("outside");
        fs::create_dir(&outside).unwrap();
        let leads_out = |name: &str| (EntryType::Symlink, name.to_owned(), Some("../outside"));
        let file = |name: &str| (EntryType::Regular, name.to_owned(), None);
        let cases = [
            vec![file("../outside/x")],
            vec![file("/outside/x")],
            vec![file("a/../../outside/x")],
            vec![leads_out("way"), file("way/x")],
            vec![leads_out("way"), (EntryType::Fifo, "way/x".to_owned(), None)],
            vec![(EntryType::Link, "x".to_owned(), Some("../outside/there"))],
            vec![(EntryType::Block, "disk".to_owned(), None)],
            vec![(EntryType::Char, "null".to_owned(), None)],
        ];
        fs::write(outside.join("there"), "").unwrap();
        for entries in cases {
            fs::create_dir(&into).unwrap();
            let bytes = archive(|archive| {
                entries.iter().for_each(|(kind, name, link)| entry(archive, *kind, name, *link));
            });
            assert!(unpack(bytes.as_slice(), &into).is_err(), "{entries:?}");
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{entries:?}");
            fs::remove_dir_all(&into).unwrap();
        }
    }
}
