//! A replica's log as files: the newest is `SLOT.log`, the one before it `SLOT.log.1`, and older ones, `SLOT.log.2.lz4` and
//! so on, are compressed (LZ4 frame format 1.6.4): as fast as a small machine's disk, so that a container that prints a lot
//! costs no more than what it prints.
//!
//! Whoever follows a log is in one of the first two.

use std::fs;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use hivemind_core::record::ReplicaId;
use hivemind_spec::workload::MAX_LOG_BYTES;
use lz4_flex::frame::{FrameDecoder, FrameEncoder};

/// Log files per replica at most, the newest included: what compresses a hundredfold must not end in ever more files.
pub(super) const MAX_FILES: u32 = 32;

/// So many files, the newest included, are as they were written.
pub(super) const PLAIN: u32 = 2;

/// A file that is as it was written may have this part of what may be kept.
pub(super) const SHARES: u64 = 5;

/// Where a replica's log is.
pub(super) fn log_file(directory: &Path, replica: &ReplicaId) -> PathBuf {
    // Namespaces and names are DNS labels, checked when the document was accepted; a path is made
    // of nothing else.
    let safe = |name: &str| name.replace(['/', '\0'], "_").trim_start_matches('.').to_owned();
    directory
        .join(safe(&replica.workload.namespace))
        .join(safe(&replica.workload.name))
        .join(format!("{}.log", replica.slot))
}

/// The path of an older file; 0 is the newest.
pub(super) fn older(path: &Path, age: u32) -> PathBuf {
    if age == 0 {
        return path.to_owned();
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{age}"));
    if age >= PLAIN {
        name.push(".lz4");
    }
    PathBuf::from(name)
}

/// What is written before it is [`older`] by [`PLAIN`].
fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

/// Removes a replica's log files.
pub(super) fn remove_logs(path: &Path) -> io::Result<()> {
    for file in (0..MAX_FILES).map(|age| older(path, age)).chain([unfinished(path)]) {
        gone(fs::remove_file(file))?;
    }
    super::remove_empty_above(path);
    Ok(())
}

/// Opens a file that may not be there.
pub(super) fn open(path: &Path) -> io::Result<Option<fs::File>> {
    match fs::File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What is not there need not be moved or removed.
fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A log that sets its newest file aside when that is full.
pub(super) struct LogFile {
    path: PathBuf,
    file: fs::File,
    bytes: u64,
    /// The most that all files may have together, bytes.
    most_bytes: u64,
}

impl LogFile {
    /// Opens the newest file, to go on writing at its end, and to keep `most_bytes` at most in all.
    pub(super) fn open(path: &Path, most_bytes: u64) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let file = fs::File::options().create(true).append(true).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, bytes, most_bytes })
    }

    /// Whether so many bytes more are too many for the newest file.
    pub(super) fn is_full(&self, more: usize) -> bool {
        self.bytes > 0 && self.bytes + more as u64 > self.most_bytes / SHARES
    }

    /// Appends whole records. [`LogFile::set_aside`] comes first when it is full.
    pub(super) fn append(&mut self, records: &[u8]) -> io::Result<()> {
        self.file.write_all(records)?;
        self.bytes += records.len() as u64;
        Ok(())
    }

    /// Sets the newest file aside and begins a new one. Waits for the disk.
    pub(super) fn set_aside(&mut self) -> io::Result<()> {
        let path = |age| older(&self.path, age);
        match compress(&path(PLAIN - 1), &unfinished(&self.path)) {
            Ok(()) => {
                for age in (PLAIN..MAX_FILES - 1).rev() {
                    gone(fs::rename(path(age), path(age + 1)))?;
                }
                fs::rename(unfinished(&self.path), path(PLAIN))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                // The disk is full: rather lose what is old than what comes.
                tracing::warn!(file = %self.path.display(), %error, "older output is lost");
                gone(fs::remove_file(unfinished(&self.path)))?;
            }
        }
        for age in (0..PLAIN - 1).rev() {
            gone(fs::rename(path(age), path(age + 1)))?;
        }
        self.trim()?;
        *self = Self::open(&self.path, self.most_bytes)?;
        Ok(())
    }

    /// Removes the oldest files until what is left is no more than may be kept.
    fn trim(&self) -> io::Result<()> {
        let mut room = self.most_bytes / SHARES * (SHARES - u64::from(PLAIN));
        for file in (PLAIN..MAX_FILES).map(|age| older(&self.path, age)) {
            let Ok(about) = fs::metadata(&file) else { break };
            let rest = room.checked_sub(about.len());
            if rest.is_none() {
                fs::remove_file(file)?;
            }
            room = rest.unwrap_or(0);
        }
        Ok(())
    }
}

/// Compresses a file into another, which is on the disk then.
fn compress(from: &Path, into: &Path) -> io::Result<()> {
    let mut from = fs::File::open(from)?;
    let mut encoder = FrameEncoder::new(fs::File::create(into)?);
    io::copy(&mut from, &mut encoder)?;
    encoder.finish()?.sync_data()
}

/// A file of a log that is read, whatever its age becomes meanwhile.
pub(super) struct Part {
    file: fs::File,
    compressed: bool,
    /// Where it ended when it was first read.
    end: Option<u64>,
}

impl Part {
    /// Opens one; none: there is none of this age.
    pub(super) fn open(path: &Path, age: u32) -> io::Result<Option<Self>> {
        let file = open(&older(path, age))?;
        Ok(file.map(|file| Self { file, compressed: age >= PLAIN, end: None }))
    }

    /// The file itself.
    pub(super) fn file(&self) -> io::Result<fs::File> {
        self.file.try_clone()
    }

    /// Its whole records: the same each time. One that is being written is left for later.
    pub(super) fn read(&mut self) -> io::Result<Vec<u8>> {
        self.file.rewind()?;
        let mut data = Vec::new();
        match self.compressed {
            false => (&self.file).take(self.end.unwrap_or(u64::MAX)).read_to_end(&mut data)?,
            // No more than it can have been.
            true => FrameDecoder::new(&self.file).take(MAX_LOG_BYTES).read_to_end(&mut data)?,
        };
        data.truncate(data.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
        self.end.get_or_insert(data.len() as u64);
        Ok(data)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use hivemind_core::record::WorkloadId;
    use hivemind_spec::workload::MIN_LOG_BYTES;

    use super::*;

    /// Appends as the collector does.
    pub(in super::super) fn append(log: &mut LogFile, records: &str) {
        if log.is_full(records.len()) {
            log.set_aside().unwrap();
        }
        log.append(records.as_bytes()).unwrap();
    }

    fn sizes(path: &Path) -> Vec<u64> {
        (0..MAX_FILES).map_while(|age| Some(fs::metadata(older(path, age)).ok()?.len())).collect()
    }

    /// Text that does not get smaller, without an end of a line.
    fn noise(seed: u32, bytes: usize) -> String {
        let mut state = seed.wrapping_mul(2_654_435_761) | 1;
        let next = move || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            char::from_u32(0x100 + state % 0x600)
        };
        std::iter::from_fn(next).take(bytes / 2).collect()
    }

    #[test]
    fn a_log_is_bounded_and_the_newest_lines_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("default/web/0.log");
        let mut log = LogFile::open(&path, MAX_LOG_BYTES).unwrap();
        for number in 0..150 {
            append(&mut log, &format!("{number:07} stdout {}\n", noise(number, 100_000)));
        }
        let sizes = sizes(&path);
        assert!(sizes.iter().sum::<u64>() <= MAX_LOG_BYTES, "{sizes:?}");
        assert!(sizes.iter().sum::<u64>() > MAX_LOG_BYTES / 2, "{sizes:?}");
        assert!(sizes[..PLAIN as usize].iter().all(|size| *size <= MAX_LOG_BYTES / SHARES), "{sizes:?}");
        assert!(!older(&path, MAX_FILES).exists());
        assert!(fs::read_to_string(&path).unwrap().lines().last().unwrap().starts_with("0000149 "));
        // An agent that comes back goes on in the same file.
        drop(log);
        append(&mut LogFile::open(&path, MAX_LOG_BYTES).unwrap(), "0000150 stdout again\n");
        assert!(fs::read_to_string(&path).unwrap().ends_with("0000150 stdout again\n"));
        remove_logs(&path).unwrap();
        assert!(!folder.path().join("default").exists());
        remove_logs(&path).unwrap();
    }

    #[test]
    fn a_document_may_have_less_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("default/web/0.log");
        let mut log = LogFile::open(&path, MIN_LOG_BYTES).unwrap();
        for number in 0..100 {
            append(&mut log, &format!("7 stdout {}\n", noise(number, 16 * 1024)));
        }
        let all: u64 = sizes(&path).iter().sum();
        assert!((MIN_LOG_BYTES / 2..=MIN_LOG_BYTES).contains(&all), "{all}");
    }

    #[test]
    fn what_is_old_is_compressed_so_that_several_times_as_much_is_kept_and_all_of_it_can_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let mut log = LogFile::open(&path, MIN_LOG_BYTES).unwrap();
        let record = |number: u64| {
            format!(
                "{number} stdout GET /shop/cart?item={} 200 \"Mozilla/5.0 (X11; Linux)\"\n",
                number * 7919
            )
        };
        let mut written = 0;
        while written < 4 * MIN_LOG_BYTES {
            append(&mut log, &record(written));
            written += record(written).len() as u64;
        }
        let sizes = sizes(&path);
        assert!(sizes.len() > PLAIN as usize && sizes.iter().sum::<u64>() <= MIN_LOG_BYTES, "{sizes:?}");
        let mut all = Vec::new();
        for age in (0..MAX_FILES).rev() {
            if let Some(mut part) = Part::open(&path, age).unwrap() {
                let read = part.read().unwrap();
                assert_eq!(read, part.read().unwrap());
                all.extend(read);
            }
        }
        let text = String::from_utf8(all).unwrap();
        assert!(text.len() as u64 > 2 * MIN_LOG_BYTES, "{} of {written}", text.len());
        let numbers: Vec<u64> =
            text.lines().map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect();
        assert!(
            numbers.windows(2).all(|two| two[1] == two[0] + record(two[0]).len() as u64),
            "nothing is missing"
        );
    }

    #[test]
    fn files_are_no_more_however_well_they_compress() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let mut log = LogFile::open(&path, MIN_LOG_BYTES).unwrap();
        for _ in 0..1000 {
            append(&mut log, &format!("7 stdout {}\n", "z".repeat(16 * 1024)));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), MAX_FILES as usize);
        assert!(sizes(&path).iter().sum::<u64>() <= MIN_LOG_BYTES);
    }

    #[test]
    fn a_power_cut_while_a_file_is_compressed_costs_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let append = |line: &str| append(&mut LogFile::open(&path, MIN_LOG_BYTES).unwrap(), line);
        append(&format!("1 stdout {}\n", noise(1, 15_000)));
        append(&format!("2 stdout {}\n", noise(2, 15_000)));
        fs::write(unfinished(&path), "half of it").unwrap();
        append(&format!("3 stdout {}\n", noise(3, 15_000)));
        assert!(!unfinished(&path).exists());
        let first = |age| Part::open(&path, age).unwrap().unwrap().read().unwrap()[0];
        assert_eq!([0, 1, 2].map(first), *b"321");
    }

    #[test]
    fn a_log_stays_in_its_directory() {
        let workload = WorkloadId { namespace: "../..".into(), name: "/etc".into() };
        let file = log_file(Path::new("/var/log/containers"), &ReplicaId { workload, slot: 1 });
        assert_eq!(file, Path::new("/var/log/containers/_../_etc/1.log"));
    }
}
