//! Reading containers' logs back, across rotated files.

use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hivemind_core::record::ReplicaId;
use hivemind_spec::api::LogLine;
use tokio::sync::mpsc;

use super::Runtime;
use super::output::{MAX_FILES, log_file, older};

/// Lines read ahead of a slow reader.
const LINES_AHEAD: usize = 256;

/// How often a followed log is looked at.
const POLL: Duration = Duration::from_millis(250);

/// Bytes read at once while following.
const READ_BYTES: usize = 64 * 1024;

/// Which lines are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// Only the last so many; absent: all.
    pub tail: Option<usize>,
    /// Only those at or after this time, wall milliseconds.
    pub since_ms: Option<u64>,
    /// Of those that are there, only those at or before this time, wall milliseconds.
    pub until_ms: Option<u64>,
    /// Go on with lines as they come.
    pub follow: bool,
}

impl Runtime {
    /// Reads a replica's log. The lines end when there are no more, or, when following, when the
    /// receiver is dropped. A log that is not there has no lines.
    pub fn read_log(&self, replica: &ReplicaId, query: LogQuery) -> mpsc::Receiver<LogLine> {
        let path = log_file(&self.settings.log_dir, replica);
        let slot = replica.slot;
        let (sender, receiver) = mpsc::channel(LINES_AHEAD);
        tokio::spawn(async move {
            if let Err(error) = read_to(&path, slot, &query, &sender).await {
                tracing::warn!(file = %path.display(), %error, "the log cannot be read");
            }
        });
        receiver
    }
}

async fn read_to(path: &Path, slot: u32, query: &LogQuery, lines: &mpsc::Sender<LogLine>) -> io::Result<()> {
    let (past, mut place) = {
        let (path, query) = (path.to_owned(), query.clone());
        tokio::task::spawn_blocking(move || read_past(&path, slot, &query))
            .await
            .map_err(io::Error::other)??
    };
    for line in past {
        if lines.send(line).await.is_err() {
            return Ok(());
        }
    }
    if !query.follow {
        return Ok(());
    }
    loop {
        let (path, from) = (path.to_owned(), place);
        let (fresh, next) = tokio::task::spawn_blocking(move || read_fresh(&path, from))
            .await
            .map_err(io::Error::other)??;
        let idle = fresh.is_empty();
        place = next;
        for line in fresh.split_inclusive(|byte| *byte == b'\n').filter_map(|line| parse(line, slot)) {
            if query.since_ms.is_none_or(|since| line.time_ms >= since) && lines.send(line).await.is_err() {
                return Ok(());
            }
        }
        if idle {
            tokio::select! {
                () = tokio::time::sleep(POLL) => {}
                () = lines.closed() => return Ok(()),
            }
        }
    }
}

/// How far a log was read: which file, and up to which byte.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Place {
    inode: u64,
    offset: u64,
}

/// Reads the lines wanted of what is there, newest file first so that a short tail is cheap.
fn read_past(path: &Path, slot: u32, query: &LogQuery) -> io::Result<(Vec<LogLine>, Place)> {
    let mut place = Place::default();
    let mut lines: Vec<LogLine> = Vec::new();
    for age in 0..MAX_FILES {
        let Some(mut file) = open(&older(path, age))? else { break };
        let mut data = Vec::new();
        file.read_to_end(&mut data)?;
        // A record being written is left for later.
        data.truncate(data.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
        if age == 0 {
            place = Place { inode: file.metadata()?.ino(), offset: data.len() as u64 };
        }
        let before = lines.len();
        let wanted = query.tail.unwrap_or(usize::MAX).saturating_sub(before);
        // Newest first, turned around at the end.
        let records = data.split(|byte| *byte == b'\n').rev().filter_map(|line| parse(line, slot));
        let mut too_old = false;
        lines.extend(
            records
                .inspect(|line| too_old |= query.since_ms.is_some_and(|since| line.time_ms < since))
                .filter(|line| query.since_ms.is_none_or(|since| line.time_ms >= since))
                .filter(|line| query.until_ms.is_none_or(|until| line.time_ms <= until))
                .take(wanted),
        );
        if lines.len() >= query.tail.unwrap_or(usize::MAX) || (too_old && lines.len() == before) {
            break;
        }
    }
    lines.reverse();
    Ok((lines, place))
}

/// Reads on from a place: whole records, and the place after them.
fn read_fresh(path: &Path, from: Place) -> io::Result<(Vec<u8>, Place)> {
    let inode = |path: &PathBuf| fs::metadata(path).ok().map(|metadata| metadata.ino());
    let age = (0..MAX_FILES).find(|age| inode(&older(path, *age)) == Some(from.inode));
    // A file that is no longer there was rotated away while nobody looked: go on with the newest.
    let (age, offset) = age.map_or((0, 0), |age| (age, from.offset));
    let Some(mut file) = open(&older(path, age))? else { return Ok((Vec::new(), Place::default())) };
    let place = Place { inode: file.metadata()?.ino(), offset };
    file.seek(SeekFrom::Start(offset))?;
    let mut data = Vec::new();
    file.take(READ_BYTES as u64).read_to_end(&mut data)?;
    data.truncate(data.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
    if data.is_empty() && age > 0 {
        // Read to its end: go on with the one after it.
        let next = inode(&older(path, age - 1)).unwrap_or_default();
        return read_fresh(path, Place { inode: next, offset: 0 });
    }
    let end = place.offset + data.len() as u64;
    Ok((data, Place { offset: end, ..place }))
}

fn open(path: &Path) -> io::Result<Option<fs::File>> {
    match fs::File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads a record. Anything else, such as what a power cut left, is passed over.
fn parse(record: &[u8], slot: u32) -> Option<LogLine> {
    let record = record.strip_suffix(b"\n").unwrap_or(record);
    let mut fields = record.splitn(3, |byte| *byte == b' ');
    let time_ms = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let stream = std::str::from_utf8(fields.next()?).ok()?.to_owned();
    if stream != "stdout" && stream != "stderr" {
        return None;
    }
    let line = String::from_utf8_lossy(fields.next()?).into_owned();
    Some(LogLine { time_ms, slot, stream, line })
}

#[cfg(test)]
mod tests;
