//! `hivemind cp`: files from and to containers, through `tar` in the container.

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use hivemind_spec::document::is_dns_label;
use hivemind_spec::exec::ExecRequest;
use hivemind_spec::id::hex;
use serde::Serialize;

use super::exec;
use super::session::{Keeper, Notes, Printer};
use crate::bundle;
use crate::cli::{Copy, Global, Output};
use crate::client::Client;
use crate::failure::{Exit, Failure, Result};
use crate::quantity::show_bytes;
use crate::terminal::{printable, say, say_json};

/// The most that is kept of what `tar` complains of, bytes.
const MAX_COMPLAINT_BYTES: usize = 16 * 1024;

/// Where something is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Here(PathBuf),
    /// `WORKLOAD:PATH` or `WORKLOAD/SLOT:PATH`.
    InContainer {
        replica: String,
        path: String,
    },
}

impl Place {
    /// What is before the first colon names a workload or one of its replicas; a path of this machine with such a beginning is
    /// written with `./`.
    fn parse(text: &str) -> Self {
        let named = |text: &str| super::replica(text).is_ok_and(|(workload, _)| is_dns_label(workload));
        // A service's name also as its Compose file has it.
        match text.split_once(':').map(|(replica, path)| (replica.replace('_', "-"), path)) {
            Some((replica, path)) if named(&replica) => Self::InContainer { replica, path: path.to_owned() },
            _ => Self::Here(text.into()),
        }
    }
}

/// What was copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
struct Copied {
    /// Files, without folders and links.
    files: u64,
    /// Bytes in them.
    bytes: u64,
}

pub(super) fn run(global: &Global, options: &Copy) -> Result<Exit> {
    let client = super::client(global)?;
    let copied = match (Place::parse(&options.from), Place::parse(&options.to)) {
        (Place::Here(from), Place::InContainer { replica, path }) => {
            upload(&client, &options.namespace, &from, &replica, &path)?
        }
        (Place::InContainer { replica, path }, Place::Here(to)) => {
            download(&client, &options.namespace, &replica, &path, &to)?
        }
        _ => {
            let text = "one of the two is in a container, and the other on this machine";
            return Err(Failure::input("bad-copy", text).advice(
                "write for example `hivemind cp app.conf web:/etc/` or `hivemind cp web/1:/data ./`",
            ));
        }
    };
    if global.output == Output::Json {
        say_json(&copied);
    } else {
        let files = if copied.files == 1 { "1 file".to_owned() } else { format!("{} files", copied.files) };
        say(&format!("{files} copied, {}", show_bytes(copied.bytes)));
    }
    Ok(Exit::Success)
}

/// The folder of a path in a container, and the name of what is in it. A path with a slash at its end is a folder, in which
/// it has the name `name`.
fn split<'a>(path: &'a str, name: Option<&'a str>) -> Result<(&'a str, &'a str)> {
    let bad = || {
        Failure::input("bad-path", format!("{path:?} names no file and no folder in a container"))
            .advice("write for example web:/etc/app.conf, or web:/etc/ for a folder to copy into")
    };
    let (folder, last) = match path.rsplit_once('/') {
        Some(("", last)) => ("/", last),
        Some((folder, last)) => (folder, last),
        None => (".", path),
    };
    match (last, name) {
        ("." | "..", _) => Err(bad()),
        ("", Some(name)) if !path.is_empty() => Ok((folder, name)),
        ("", _) => Err(bad()),
        (last, _) => Ok((folder, last)),
    }
}

fn tar(arguments: &[&str]) -> ExecRequest {
    let command = ["tar"].iter().chain(arguments).map(|word| (*word).to_owned()).collect();
    ExecRequest { command, env: Default::default(), working_dir: None, user: None, terminal: None }
}

fn upload(client: &Client, namespace: &str, from: &Path, replica: &str, path: &str) -> Result<Copied> {
    let unreadable = |error: &io::Error| Failure::file("read", from, error);
    // What `.` and a link's own name mean, the file system knows.
    let own = fs::canonicalize(from).map_err(|error| unreadable(&error))?;
    let own = from.file_name().or(own.file_name()).and_then(|name| name.to_str());
    let (folder, name) = split(path, own)?;
    let (reader, writer) = io::pipe().map_err(|error| unreadable(&error))?;
    let (source, name) = (from.to_owned(), PathBuf::from(name));
    let packed = std::thread::spawn(move || {
        let mut archive = tar::Builder::new(io::BufWriter::with_capacity(64 * 1024, writer));
        let mut copied = Copied::default();
        pack(&mut archive, &source, &name, &mut copied)?;
        archive.into_inner()?.flush()?;
        Ok(copied)
    });
    let ended = talk(client, namespace, replica, tar(&["-xf", "-", "-C", folder]), reader, io::sink());
    // When the command has ended before its input, packing broke off because of that.
    let packed: io::Result<Copied> =
        packed.join().unwrap_or_else(|_| Err(io::Error::other("packing broke off")));
    match (ended, packed) {
        (Ok(()), packed) => packed.map_err(|error| unreadable(&error)),
        (Err(_), Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => Err(unreadable(&error)),
        (Err(failure), _) => Err(failure),
    }
}

/// Adds a file, a folder with all that is in it, or a link, under a name.
fn pack<W: Write>(
    archive: &mut tar::Builder<W>,
    from: &Path,
    name: &Path,
    copied: &mut Copied,
) -> io::Result<()> {
    let metadata = fs::symlink_metadata(from)?;
    let mut header = header(&metadata);
    if metadata.is_dir() {
        header.set_size(0);
        archive.append_data(&mut header, name, io::empty())?;
        let mut names: Vec<_> =
            fs::read_dir(from)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>()?;
        names.sort();
        return names.iter().try_for_each(|own| pack(archive, &from.join(own), &name.join(own), copied));
    }
    if metadata.is_symlink() {
        header.set_size(0);
        return archive.append_link(&mut header, name, fs::read_link(from)?);
    }
    if !metadata.is_file() {
        return Err(io::Error::other(format!("{} is no file, folder or link", from.display())));
    }
    archive.append_data(&mut header, name, Whole { of: File::open(from)?, left: metadata.len() })?;
    copied.files += 1;
    copied.bytes += metadata.len();
    Ok(())
}

/// With mode and time of the file, and nobody's in particular: the users here are not those there.
fn header(metadata: &Metadata) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_metadata_in_mode(metadata, tar::HeaderMode::Complete);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// A file, of which exactly as much is read as it had when its size was told.
struct Whole {
    of: File,
    left: u64,
}

impl Read for Whole {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.of.read(&mut buffer[..most])?;
        if count == 0 && most > 0 {
            return Err(io::Error::other("a file became shorter while it was copied"));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

fn download(client: &Client, namespace: &str, replica: &str, path: &str, to: &Path) -> Result<Copied> {
    let (folder, name) = split(path.trim_end_matches('/'), None)?;
    let target = if to.is_dir() { to.join(name) } else { to.to_owned() };
    let parent = match target.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let unwritable = |error: &io::Error| Failure::file("write", &target, error);
    let scratch = Scratch::beside(parent).map_err(|error| unwritable(&error))?;
    let (reader, writer) = io::pipe().map_err(|error| unwritable(&error))?;
    let into = scratch.0.clone();
    let unpacked = std::thread::spawn(move || unpack(reader, &into));
    // As `./NAME`, which cannot be taken for an option.
    let request = tar(&["-cf", "-", "-C", folder, &format!("./{name}")]);
    let ended = talk(client, namespace, replica, request, io::empty(), writer);
    let unpacked = unpacked.join().unwrap_or_else(|_| Err(io::Error::other("unpacking broke off")));
    match (ended, unpacked) {
        (Ok(()), Ok(copied)) => {
            fs::rename(scratch.0.join(name), &target).map_err(|error| unwritable(&error))?;
            Ok(copied)
        }
        (Err(failure), Ok(_)) => Err(failure),
        (_, Err(error)) => Err(unwritable(&error)),
    }
}

/// Unpacks what comes from a container, which is not trusted: nothing goes outside of the folder.
fn unpack(from: impl Read, into: &Path) -> io::Result<Copied> {
    let mut archive = tar::Archive::new(io::BufReader::with_capacity(64 * 1024, from));
    let mut copied = Copied::default();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let inside = path.components().all(|part| matches!(part, Component::CurDir | Component::Normal(_)));
        if !inside || !entry.unpack_in(into)? {
            return Err(io::Error::other(format!(
                "the container sent {}, which is elsewhere",
                path.display()
            )));
        }
        if entry.header().entry_type().is_file() {
            copied.files += 1;
            copied.bytes += entry.size();
        }
    }
    Ok(copied)
}

/// A folder beside where something is to be, so that it is there whole or not at all.
struct Scratch(PathBuf);

impl Scratch {
    fn beside(parent: &Path) -> io::Result<Self> {
        let random = bundle::random::<8>().map_err(io::Error::other)?;
        let path = parent.join(format!(".hivemind-cp-{}", hex(&random)));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is seen by its name.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs a command to its end, with `input` and `output`.
fn talk(
    client: &Client,
    namespace: &str,
    replica: &str,
    request: ExecRequest,
    input: impl Read + Send + 'static,
    output: impl Write + Send + 'static,
) -> Result<()> {
    let complaints = Notes::new(MAX_COMPLAINT_BYTES);
    let ended = super::block_on("the copy is broken off; what was copied so far may be there", async {
        let keeper = Keeper::Printed(Printer::start(output, complaints.clone())?);
        exec::in_container(client, namespace, replica, &request, input, keeper).await
    });
    let needs = "it is done by `tar` in the container, which must be there";
    match ended {
        Ok(Exit::OfCommand(0)) => Ok(()),
        Ok(_) => {
            let said = printable(complaints.text().trim());
            Err(Failure::local("copy-failed", format!("{replica}: {said}")).advice(needs))
        }
        Err(failure) if failure.code == "not-started" => Err(failure.advice(needs)),
        Err(failure) => Err(failure),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_before_a_colon_is_a_workload_or_a_replica_of_it() {
        let there =
            |replica: &str, path: &str| Place::InContainer { replica: replica.into(), path: path.into() };
        assert_eq!(Place::parse("web:/etc/app.conf"), there("web", "/etc/app.conf"));
        assert_eq!(Place::parse("web/1:data"), there("web/1", "data"));
        assert_eq!(Place::parse("web_app/1:data"), there("web-app/1", "data"));
        for path in ["./web:x", "a/b:c", "/srv/x", "Web:x", "plain"] {
            assert_eq!(Place::parse(path), Place::Here(path.into()), "{path}");
        }
    }

    #[test]
    fn a_slash_at_the_end_is_a_folder_to_copy_into() {
        assert_eq!(split("/etc/", Some("app.conf")).unwrap(), ("/etc", "app.conf"));
        assert_eq!(split("/etc/x.conf", Some("app.conf")).unwrap(), ("/etc", "x.conf"));
        assert_eq!(split("/x", None).unwrap(), ("/", "x"));
        assert_eq!(split("/", Some("x")).unwrap(), ("/", "x"));
        assert_eq!(split("x", None).unwrap(), (".", "x"));
        for (path, name) in [("", Some("x")), ("/", None), ("/etc/..", Some("x")), (".", None)] {
            assert_eq!(split(path, name).unwrap_err().code, "bad-path", "{path}");
        }
    }

    #[test]
    fn what_is_packed_is_unpacked_with_modes_links_and_folders() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let root = from.path().join("app");
        fs::create_dir_all(root.join("deep/empty")).unwrap();
        fs::write(root.join("run.sh"), "#!").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode;
        fs::set_permissions(root.join("run.sh"), mode(0o750)).unwrap();
        fs::write(root.join("deep/data"), vec![7; 100_000]).unwrap();
        std::os::unix::fs::symlink("deep/data", root.join("link")).unwrap();
        let mut archive = tar::Builder::new(Vec::new());
        let mut packed = Copied::default();
        pack(&mut archive, &root, Path::new("site"), &mut packed).unwrap();
        let bytes = archive.into_inner().unwrap();
        let unpacked = unpack(bytes.as_slice(), to.path()).unwrap();
        assert_eq!((packed, unpacked), (Copied { files: 2, bytes: 100_002 }, packed));
        let site = to.path().join("site");
        assert_eq!(fs::read(site.join("link")).unwrap(), vec![7; 100_000]);
        assert!(site.join("deep/empty").is_dir());
        let permissions = fs::metadata(site.join("run.sh")).unwrap().permissions();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&permissions) & 0o777, 0o750);
        std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
        let refused = pack(&mut tar::Builder::new(io::sink()), &root, Path::new("site"), &mut packed);
        assert!(refused.unwrap_err().to_string().contains("socket"));
    }

    #[test]
    fn a_container_writes_nothing_outside_of_where_it_is_copied_to() {
        let folder = tempfile::tempdir().unwrap();
        let (into, outside) = (folder.path().join("into"), folder.path().join("outside"));
        fs::create_dir_all(&into).unwrap();
        fs::create_dir_all(&outside).unwrap();
        let file = |name: &str| {
            let mut header = tar::Header::new_gnu();
            header.set_size(4);
            header.set_mode(0o644);
            // As a hostile program writes it, which the library would not.
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            header
        };
        let archive = |headers: &[tar::Header]| {
            let mut archive = tar::Builder::new(Vec::new());
            headers.iter().for_each(|header| archive.append(header, b"evil".as_slice()).unwrap());
            archive.into_inner().unwrap()
        };
        for name in ["../outside/a", "/tmp/hivemind-cp-test/a", "x/../../outside/a"] {
            unpack(archive(&[file(name)]).as_slice(), &into).unwrap_err();
        }
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        let mut linked = tar::Builder::new(Vec::new());
        linked.append_link(&mut link, "x", &outside).unwrap();
        linked.append(&file("x/a"), b"evil".as_slice()).unwrap();
        unpack(linked.into_inner().unwrap().as_slice(), &into).unwrap_err();
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        assert!(!Path::new("/tmp/hivemind-cp-test").exists());
    }
}
