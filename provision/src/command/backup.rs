//! `hivemind volumes backup`, `check` and `restore --from`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal as _, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use hivemind_spec::api::{self, Node};
use indicatif::ProgressBar;
use serde_json::json;

use super::bars::bytes;
use super::nodes;
use super::session::{self, Keeper, Notes, Printer};
use crate::archive::{self, Content, Lock};
use crate::cli::{Global, Output, Volume, VolumesBackup, VolumesCheck, VolumesRestore};
use crate::client::{Client, percent};
use crate::failure::{Exit, Failure, Result};
use crate::quantity::show_bytes;
use crate::secret::Passphrase;
use crate::terminal::{STRONG, caution, confirm, paint, printable, say, say_json};

/// The most that is kept of what a node says beside an archive, bytes: it tells a hundred things at most.
pub(super) const MAX_NOTES_BYTES: usize = 64 * 1024;

/// A backup that is not whole is called after it, with this at its end.
const PARTIAL: &str = ".partial";

/// A part of a volume, and how it is asked for.
pub(super) struct Part {
    pub(super) name: String,
    pub(super) number: u32,
    namespace: String,
    /// As a query says it, with its beginning.
    on: String,
    /// How much is in it, as far as the cluster knows; None if there is none.
    pub(super) used_bytes: Option<u64>,
}

impl Part {
    pub(super) async fn find(client: &Client, volume: &Volume) -> Result<Self> {
        let (name, number) = match volume.name.split_once('/') {
            None => (volume.name.as_str(), 0),
            Some((name, number)) => {
                let number = number.parse().map_err(|_| {
                    Failure::input("bad-volume", format!("{number:?} is not the number of a volume's part"))
                        .advice(format!("write for example {name}/0; `hivemind volumes` lists them"))
                })?;
                (name, number)
            }
        };
        let on = match &volume.on {
            None => String::new(),
            Some(on) => {
                let all: Vec<Node> = client.list("/v1/nodes").await?;
                format!("&node={}", nodes::find(&all, on)?.id)
            }
        };
        let path = format!("/v1/volumes?namespace={}", percent(&volume.namespace));
        let volumes: Vec<api::Volume> = client.list(&path).await?;
        let parts = volumes.into_iter().filter(|other| other.name == name).flat_map(|other| other.parts);
        let used = parts.filter(|part| part.number == number).map(|part| part.used_bytes.unwrap_or(0));
        let used_bytes = used.max();
        Ok(Self { name: name.to_owned(), number, namespace: volume.namespace.clone(), on, used_bytes })
    }

    pub(super) fn path(&self, what: &str) -> String {
        let Self { name, number, namespace, on, .. } = self;
        format!("/v1/volumes/{}/{}/{what}?number={number}{on}", percent(namespace), percent(name))
    }
}

pub(super) fn backup(global: &Global, options: &VolumesBackup) -> Result<Exit> {
    let to_stdout = options.file == Path::new("-");
    if to_stdout && (io::stdout().is_terminal() || global.output == Output::Json) {
        return Err(Failure::input("bad-target", "a backup on standard output leaves room for nothing else")
            .advice("send it to a file or a program, without --output json"));
    }
    if !to_stdout && !options.force && options.file.exists() {
        return Err(Failure::input("file-exists", format!("{} is there already", options.file.display()))
            .advice("choose another name, or replace it with --force"));
    }
    let lock = match (&options.recipient[..], options.plain) {
        ([], true) => Lock::Nobody,
        ([], false) => {
            Lock::Passphrase(Passphrase::ask("the backup (or use --recipient, or --plain)", true)?)
        }
        (keys, _) => Lock::recipients(keys)?,
    };
    let client = super::client(global)?;
    let part = super::block_on("nothing was written", Part::find(&client, &options.volume))?;
    let bar = bytes(part.used_bytes);
    let (content, notes) = if to_stdout {
        let (content, notes, _) = write(&client, &part, io::stdout(), lock, &bar)?;
        (content, notes)
    } else {
        write_file(&client, &part, &options.file, lock, &bar)?
    };
    bar.finish_and_clear();
    for text in notes.lines() {
        caution(&printable(text));
    }
    if global.output == Output::Json {
        let notes: Vec<&str> = notes.lines().collect();
        say_json(&json!({ "volume": part.name, "number": part.number, "content": content, "notes": notes }));
    } else if !to_stdout {
        let name = paint(STRONG, &part.name);
        say(&format!("volume {name} is in {}: {}", options.file.display(), shown(content)));
    }
    Ok(Exit::Success)
}

fn shown(Content { files, bytes }: Content) -> String {
    let files = if files == 1 { "1 file".to_owned() } else { format!("{files} files") };
    format!("{files}, {}", show_bytes(bytes))
}

/// Writes a backup under another name, and gives it its own when it is whole and on the disk.
fn write_file(
    client: &Client,
    part: &Part,
    path: &Path,
    lock: Lock,
    bar: &ProgressBar,
) -> Result<(Content, String)> {
    let failed = |error: &io::Error| Failure::file("write", path, error);
    let mut name = path.as_os_str().to_owned();
    name.push(PARTIAL);
    let partial = PathBuf::from(name);
    let mut how = OpenOptions::new();
    let file =
        how.write(true).create(true).truncate(true).mode(0o600).open(&partial).map_err(|e| failed(&e))?;
    let written = write(client, part, file, lock, bar).and_then(|(content, notes, file)| {
        file.sync_all().and_then(|()| fs::rename(&partial, path)).map_err(|e| failed(&e))?;
        Ok((content, notes))
    });
    if written.is_err() {
        // What cannot be removed is seen by its name.
        let _ = fs::remove_file(&partial);
    }
    written
}

/// Writes a backup of a part, and says what is in it and what the node said beside.
fn write<W: Write + Send + 'static>(
    client: &Client,
    part: &Part,
    to: W,
    lock: Lock,
    bar: &ProgressBar,
) -> Result<(Content, String, W)> {
    let failed =
        |error: &io::Error| Failure::local("not-written", format!("the backup cannot be written: {error}"));
    let (reader, writer) = io::pipe().map_err(|e| failed(&e))?;
    let reader = bar.wrap_read(reader);
    let written = std::thread::spawn(move || {
        let mut to = archive::Writer::new(to, lock)?;
        let content = archive::copy(reader, &mut to)?;
        // Whether it is whole is known later; that it can be ended is known now.
        Ok((content, to))
    });
    let notes = Notes::new(MAX_NOTES_BYTES);
    let ended = super::block_on("the backup is broken off, and not kept", async {
        let keeper = Keeper::Printed(Printer::start(writer, notes.clone())?);
        session::converse(client, &part.path("archive"), false, io::empty(), keeper).await
    });
    let written: io::Result<_> =
        written.join().unwrap_or_else(|_| Err(io::Error::other("writing broke off")));
    match (ended, written) {
        (Ok(Exit::OfCommand(0)), Ok((content, to))) => {
            let mut to = to.finish().map_err(|e| failed(&e))?;
            to.flush().map_err(|e| failed(&e))?;
            Ok((content, notes.text(), to))
        }
        (Err(failure), _) => Err(failure),
        // Then nobody reads on, and the node is told so.
        (Ok(_), Err(error)) => Err(failed(&error)),
        (Ok(_), Ok(_)) => Err(Failure::local("not-written", "the backup broke off").advice("try again")),
    }
}

/// Opens a backup to be read.
fn source(file: &Path, identity: Option<&Path>, bar: &ProgressBar) -> Result<Box<dyn Read + Send>> {
    let from: Box<dyn Read + Send> = if file == Path::new("-") {
        Box::new(io::stdin())
    } else {
        let file_open = File::open(file).map_err(|error| Failure::file("read", file, &error))?;
        if let Ok(metadata) = file_open.metadata() {
            bar.set_length(metadata.len());
        }
        Box::new(file_open)
    };
    archive::open(bar.wrap_read(from), identity)
}

pub(super) fn check(global: &Global, options: &VolumesCheck) -> Result<Exit> {
    let bar = bytes((options.file != Path::new("-")).then_some(0));
    let from = source(&options.file, options.identity.as_deref(), &bar)?;
    let content = archive::copy(from, io::sink()).map_err(|error| archive::unreadable(&error))?;
    bar.finish_and_clear();
    if global.output == Output::Json {
        say_json(&json!({ "content": content }));
    } else {
        say(&format!("the backup is whole: {}", shown(content)));
    }
    Ok(Exit::Success)
}

pub(super) fn restore(global: &Global, options: &VolumesRestore, file: &Path) -> Result<Exit> {
    let client = super::client(global)?;
    let part = super::block_on("nothing was changed", Part::find(&client, &options.volume))?;
    let name = &options.volume.name;
    if let Some(used) = part.used_bytes.filter(|_| !options.yes) {
        let question = format!("Replace all that is in volume {name} ({})?", show_bytes(used));
        confirm(&question, "nothing was changed")?;
    }
    let bar = bytes((file != Path::new("-")).then_some(0));
    let from = source(file, options.identity.as_deref(), &bar)?;
    // Read here as it is sent, so that nothing that is no archive is taken for one.
    let (reader, writer) = io::pipe().map_err(|error| archive::unreadable(&error))?;
    let (broken, is_broken) = std::sync::mpsc::channel();
    let counted = std::thread::spawn(move || {
        let content = archive::copy(from, &writer);
        // Before the pipe ends, or its end would be taken for that of the archive.
        let _ = broken.send(content.as_ref().err().map(io::Error::kind));
        content
    });
    let input = Whole { of: reader, is_broken };
    let ended = super::block_on("nothing was changed", async {
        let keeper = Keeper::Printed(Printer::start(io::sink(), io::stderr())?);
        session::converse(&client, &part.path("fill"), false, input, keeper).await
    });
    let counted: io::Result<Content> =
        counted.join().unwrap_or_else(|_| Err(io::Error::other("reading broke off")));
    bar.finish_and_clear();
    let content = match (ended, counted) {
        (Ok(Exit::OfCommand(0)), Ok(content)) => content,
        (_, Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => {
            return Err(archive::unreadable(&error));
        }
        (Err(failure), _) => return Err(failure),
        (Ok(_), _) => return Err(Failure::local("not-restored", "nothing was changed").advice("try again")),
    };
    if global.output == Output::Json {
        say_json(&json!({ "volume": part.name, "number": part.number, "content": content }));
    } else {
        say(&format!("volume {} has what the backup has: {}", paint(STRONG, name), shown(content)));
    }
    Ok(Exit::Success)
}

/// What is read through a pipe, whose end is an error if what is written to it broke off.
struct Whole<R> {
    of: R,
    is_broken: std::sync::mpsc::Receiver<Option<io::ErrorKind>>,
}

impl<R: Read> Read for Whole<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.of.read(buffer)? {
            0 if !buffer.is_empty() => match self.is_broken.recv() {
                Ok(None) => Ok(0),
                Ok(Some(kind)) => Err(kind.into()),
                Err(_) => Err(io::Error::other("reading broke off")),
            },
            count => Ok(count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_that_breaks_off_does_not_end() {
        for (said, whole) in
            [(Some(None), true), (Some(Some(io::ErrorKind::InvalidData)), false), (None, false)]
        {
            let (broken, is_broken) = std::sync::mpsc::channel();
            said.into_iter().for_each(|said| broken.send(said).unwrap());
            drop(broken);
            let mut text = String::new();
            let read = Whole { of: "archive".as_bytes(), is_broken }.read_to_string(&mut text);
            assert_eq!((read.is_ok(), text.as_str()), (whole, "archive"));
        }
    }
}
