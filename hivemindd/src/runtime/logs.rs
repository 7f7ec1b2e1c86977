//! Reading containers' logs back, across rotated files.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::time::Duration;

use hivemind_core::record::ReplicaId;
use hivemind_spec::api::LogLine;
use tokio::sync::mpsc;

use super::Runtime;
use super::log_files::{MAX_FILES, PLAIN, Part, log_file, older, open};

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
    let (mut past, mut place) = {
        let (path, query) = (path.to_owned(), query.clone());
        on_thread(move || Past::open(&path, slot, query)).await?
    };
    // No more of it is in memory than one file.
    loop {
        let (rest, some) = on_thread(move || past.read()).await?;
        let Some(some) = some else { break };
        for line in some {
            if lines.send(line).await.is_err() {
                return Ok(());
            }
        }
        past = rest;
    }
    if !query.follow {
        return Ok(());
    }
    loop {
        let path = path.to_owned();
        let (fresh, next) = on_thread(move || read_fresh(&path, place)).await?;
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

/// How far a log was read. The file is held open: else another could get its number.
#[derive(Debug, Default)]
struct Place {
    file: Option<fs::File>,
    offset: u64,
}

/// What was printed so far: the files that have the lines wanted, the oldest last.
struct Past {
    parts: Vec<Part>,
    /// So many lines of the oldest are too many.
    skip: usize,
    slot: u32,
    query: LogQuery,
}

impl Past {
    /// Looks which files there are and which are wanted, and how far they go. The newest come first, so that a short
    /// tail is cheap.
    fn open(path: &Path, slot: u32, query: LogQuery) -> io::Result<(Self, Place)> {
        let mut place = Place::default();
        let mut past = Self { parts: Vec::new(), skip: 0, slot, query };
        let (tail, since_ms) = (past.query.tail.unwrap_or(usize::MAX), past.query.since_ms.unwrap_or(0));
        let mut found = 0;
        for age in 0..MAX_FILES {
            let Some(mut part) = Part::open(path, age)? else {
                // The newest is not there for a moment when it is set aside.
                if age < PLAIN { continue } else { break }
            };
            let data = match part.read() {
                Ok(data) => data,
                Err(error) => {
                    tracing::warn!(file = %older(path, age).display(), %error, "a part of a log cannot be read");
                    continue;
                }
            };
            if age == 0 {
                place = Place { file: Some(part.file()?), offset: data.len() as u64 };
            }
            let count = past.wanted(&data).count();
            let first = records(&data, slot).next();
            found += count;
            past.parts.push(part);
            if found >= tail || first.is_some_and(|first| first.time_ms < since_ms) {
                break;
            }
        }
        past.skip = found.saturating_sub(tail);
        Ok((past, place))
    }

    fn wanted<'a>(&'a self, data: &'a [u8]) -> impl Iterator<Item = LogLine> + 'a {
        let LogQuery { since_ms, until_ms, .. } = self.query;
        records(data, self.slot)
            .filter(move |line| since_ms.is_none_or(|since| line.time_ms >= since))
            .filter(move |line| until_ms.is_none_or(|until| line.time_ms <= until))
    }

    /// Reads the lines of the oldest file that is left. None: there is none.
    fn read(mut self) -> io::Result<(Self, Option<Vec<LogLine>>)> {
        let Some(mut part) = self.parts.pop() else { return Ok((self, None)) };
        let data = part.read()?;
        let lines = self.wanted(&data).skip(self.skip).collect();
        self.skip = 0;
        Ok((self, Some(lines)))
    }
}

/// Runs what may wait for the disk.
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn records(data: &[u8], slot: u32) -> impl Iterator<Item = LogLine> {
    data.split(|byte| *byte == b'\n').filter_map(move |line| parse(line, slot))
}

/// Reads on from a place: whole records, and the place after them.
fn read_fresh(path: &Path, mut place: Place) -> io::Result<(Vec<u8>, Place)> {
    if place.file.is_none() {
        place = Place { file: oldest_plain(path)?, offset: 0 };
    }
    let Some(file) = &place.file else { return Ok((Vec::new(), place)) };
    let mut data = vec![0; READ_BYTES];
    let count = file.read_at(&mut data, place.offset)?;
    data.truncate(data[..count].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
    place.offset += data.len() as u64;
    if !data.is_empty() {
        return Ok((data, place));
    }
    // Read to its end: go on with the one after it, if there is one. What is compressed by now is not the one before it.
    let number = file.metadata()?.ino();
    let is_it = |age: &u32| fs::metadata(older(path, *age)).is_ok_and(|found| found.ino() == number);
    let next = match (0..PLAIN).find(is_it) {
        Some(0) => return Ok((data, place)),
        Some(age) => open(&older(path, age - 1))?,
        None => oldest_plain(path)?,
    };
    match next {
        Some(file) => read_fresh(path, Place { file: Some(file), offset: 0 }),
        None => Ok((data, place)),
    }
}

fn oldest_plain(path: &Path) -> io::Result<Option<fs::File>> {
    let found = (0..PLAIN).rev().find_map(|age| open(&older(path, age)).transpose());
    found.transpose()
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
