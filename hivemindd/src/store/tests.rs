use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::FileExt as _;
use std::process::{Command as Process, Stdio};
use std::time::Duration;

use super::*;
use crate::identity::tests::Folder;

/// Set in the process that writes until it is killed.
const WRITER: &str = "HIVEMIND_TEST_STORE_WRITER";

/// Opens what was closed just now: sled's threads may hold its lock for a moment longer.
fn once_free<T, E: std::fmt::Display>(open: impl Fn() -> Result<T, E>) -> T {
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        match open() {
            Ok(opened) => return opened,
            Err(error) => assert!(std::time::Instant::now() < until, "{error}"),
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn open(folder: &Path) -> SledStore {
    let opened = once_free(|| SledStore::open(folder));
    assert!(opened.set_aside.is_none(), "{:?}", opened.set_aside);
    opened.store
}

fn put(key: &str, value: &str) -> Write {
    (key.into(), Some(value.into()))
}

fn fill(folder: &Path, entries: u32) {
    let store = open(folder);
    for index in 0..entries {
        store.apply(&[put(&format!("key/{index:05}"), &format!("value {index} ").repeat(20))]).unwrap();
    }
    store.flush().unwrap();
}

/// Files of the store, largest first.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.is_file());
    files.sort_by_key(|path| std::cmp::Reverse(fs::metadata(path).unwrap().len()));
    files
}

#[test]
fn what_was_written_is_there_after_a_restart() {
    let folder = Folder::new("store-restart");
    let store = open(&folder.0.join("store"));
    store.apply(&[put("a/1", "one"), put("a/2", "two"), put("b/1", "other")]).unwrap();
    store.apply(&[(b"a/1".to_vec(), None)]).unwrap();
    store.flush().unwrap();
    drop(store);
    let store = open(&folder.0.join("store"));
    assert_eq!(store.scan(b"a/").unwrap(), [(b"a/2".to_vec(), b"two".to_vec())]);
    assert_eq!(store.get(b"b/1").unwrap().as_deref(), Some(&b"other"[..]));
    assert_eq!(store.get(b"a/1").unwrap(), None);
}

/// Not a test: the process that `a_kill_in_the_middle_of_writing_loses_nothing_flushed` kills.
#[test]
fn writer_to_be_killed() {
    let Some(folder) = std::env::var_os(WRITER) else { return };
    let store = open(Path::new(&folder));
    let begin = store.scan(b"a/").unwrap().len();
    for index in begin.. {
        let value = "x".repeat(index % 3000);
        store.apply(&[put(&format!("a/{index:06}"), &value), put(&format!("b/{index:06}"), &value)]).unwrap();
        store.flush().unwrap();
        let mut out = std::io::stdout();
        writeln!(out, "flushed {index}").and_then(|()| out.flush()).unwrap();
    }
}

#[test]
fn a_kill_in_the_middle_of_writing_loses_nothing_flushed() {
    let folder = Folder::new("store-kill");
    let path = folder.0.join("store");
    let mut flushed = None;
    for round in 0..6_u64 {
        let mut child = Process::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::tests::writer_to_be_killed", "--nocapture"])
            .env(WRITER, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let reader = thread::spawn(move || {
            let numbers = lines.map_while(Result::ok);
            numbers.filter_map(|line| line.rsplit("flushed ").next()?.parse::<usize>().ok()).last()
        });
        thread::sleep(Duration::from_millis(300 + 137 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        flushed = reader.join().unwrap().or(flushed);
        let store = open(&path);
        let (a, b) = (store.scan(b"a/").unwrap(), store.scan(b"b/").unwrap());
        assert!(a.len() > flushed.unwrap_or(0), "{} of {flushed:?}", a.len());
        assert_eq!(a.len(), b.len(), "half a batch");
        drop(store);
    }
    assert!(flushed.unwrap() > 20, "the writer hardly wrote: {flushed:?}");
}

#[test]
fn a_store_of_garbage_is_set_aside_and_a_new_one_begun() {
    for (case, garbage) in
        [("noise", vec![0xa5; 100_000]), ("zeros", vec![0; 600_000]), ("empty", Vec::new())]
    {
        let folder = Folder::new(&format!("store-garbage-{case}"));
        let path = folder.0.join("store");
        fill(&path, 50);
        for file in files(&path) {
            fs::write(file, &garbage).unwrap();
        }
        let opened = SledStore::open(&path).unwrap();
        // Emptied files may look like a store that was just begun; anything else is set aside.
        if case == "noise" {
            assert_eq!(opened.set_aside.unwrap().0, folder.0.join("store.damaged"));
        }
        opened.store.apply(&[put("new", "value")]).unwrap();
        opened.store.flush().unwrap();
        drop(opened.store);
        assert_eq!(open(&path).get(b"new").unwrap().as_deref(), Some(&b"value"[..]));
    }
}

#[test]
fn damage_anywhere_never_gives_wrong_values_and_never_stops_the_node() {
    let folder = Folder::new("store-damage");
    let (whole, path) = (folder.0.join("whole"), folder.0.join("store"));
    fill(&whole, 200);
    let log = files(&whole)[0].file_name().unwrap().to_owned();
    let used = 60_000;
    let mut noticed = 0;
    for step in 0..25_u64 {
        let _ = fs::remove_dir_all(&path);
        let copied = Process::new("cp").arg("-a").arg(&whole).arg(&path).status().unwrap();
        assert!(copied.success());
        let file = fs::OpenOptions::new().write(true).open(path.join(&log)).unwrap();
        file.write_all_at(&[0x5a; 64], step * used / 25).unwrap();
        drop(file);
        let opened = SledStore::open(&path).unwrap();
        let entries = opened.store.scan(b"key/").unwrap();
        // sled may also cut its log at the damage without a word: then entries are missing.
        noticed += u32::from(opened.set_aside.is_some() || entries.len() < 200);
        for (key, value) in entries {
            let index: u32 = String::from_utf8(key).unwrap()["key/".len()..].parse().unwrap();
            assert_eq!(String::from_utf8(value).unwrap(), format!("value {index} ").repeat(20));
        }
    }
    assert!(noticed > 0, "the damage never hit anything");
}

#[test]
fn a_value_that_changed_is_found_and_the_rest_is_carried_over() {
    let folder = Folder::new("store-value");
    let path = folder.0.join("store");
    fill(&path, 10);
    let raw = once_free(|| sled::open(&path));
    raw.insert("key/00009", b"a value without its checksum").unwrap();
    raw.flush().unwrap();
    drop(raw);
    let opened = once_free(|| SledStore::open(&path));
    assert!(opened.set_aside.unwrap().1.contains("checksum"));
    assert_eq!(opened.store.scan(b"key/").unwrap().len(), 9);
}

#[test]
fn damage_found_while_in_use_is_set_aside_at_the_next_start() {
    let folder = Folder::new("store-suspect");
    let path = folder.0.join("store");
    fill(&path, 10);
    let store = open(&path);
    store.database.insert("bad", b"no checksum").unwrap();
    assert!(matches!(store.get(b"bad"), Err(StoreError::Damaged(_))));
    store.database.remove("bad").unwrap();
    store.flush().unwrap();
    drop(store);
    let opened = once_free(|| SledStore::open(&path));
    assert!(opened.set_aside.is_some());
    assert_eq!(opened.store.scan(b"key/").unwrap().len(), 10);
    drop(opened);
    open(&path);
}

#[test]
fn a_panic_in_the_store_is_an_error() {
    let result = contained::<()>(|| panic!("as sled does"));
    assert!(matches!(result, Err(StoreError::Damaged(text)) if text.contains("as sled does")));
}

/// A store whose disk is full.
struct Full;

impl Store for Full {
    fn get(&self, _: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(None)
    }

    fn scan(&self, _: &[u8]) -> Result<Entries, StoreError> {
        Ok(Entries::new())
    }

    fn apply(&self, _: &[Write]) -> Result<(), StoreError> {
        Ok(())
    }

    fn flush(&self) -> Result<(), StoreError> {
        Err(io::Error::from(io::ErrorKind::StorageFull).into())
    }
}

#[tokio::test]
async fn a_write_is_reported_only_when_it_is_durable() {
    let folder = Folder::new("store-handle");
    let path = folder.0.join("store");
    let (handle, entries) = StoreHandle::open(&path).unwrap();
    assert!(entries.is_empty());
    // Accepted in the order of calls, whoever is awaited first.
    let writes: Vec<_> = (0..100).map(|n| handle.write(vec![put("last", &n.to_string())])).collect();
    for write in writes.into_iter().rev() {
        write.await.unwrap();
    }
    assert_eq!(handle.scan(b"last").await.unwrap(), [(b"last".to_vec(), b"99".to_vec())]);
    drop(handle);

    let handle = StoreHandle::start(Full).unwrap();
    assert!(matches!(handle.write(vec![put("a", "b")]).await, Err(StoreError::Failed(_))));
}

/// A store whose disk has stopped.
struct Stopped(std::sync::mpsc::Receiver<()>);

impl Store for Stopped {
    fn get(&self, _: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(None)
    }

    fn scan(&self, _: &[u8]) -> Result<Entries, StoreError> {
        Ok(Entries::new())
    }

    fn apply(&self, _: &[Write]) -> Result<(), StoreError> {
        let _ = self.0.recv();
        Ok(())
    }

    fn flush(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

#[tokio::test]
async fn batches_that_wait_for_a_disk_that_has_stopped_are_bounded() {
    let (go_on, stopped) = std::sync::mpsc::channel();
    let handle = StoreHandle::start(Stopped(stopped)).unwrap();
    let writes: Vec<_> = (0..2 * MAX_WAITING).map(|_| handle.write(vec![put("a", "b")])).collect();
    drop(go_on);
    let mut busy = 0;
    for write in writes {
        busy += usize::from(matches!(write.await, Err(StoreError::Busy)));
    }
    // The thread may have taken the first few by then.
    assert!((MAX_WAITING - MAX_GROUP..=MAX_WAITING).contains(&busy), "{busy}");
}

#[tokio::test]
async fn what_was_accepted_is_written_also_when_nobody_waits() {
    let folder = Folder::new("store-drop");
    let path = folder.0.join("store");
    let (handle, _) = StoreHandle::open(&path).unwrap();
    drop(handle.write(vec![put("a", "b")]));
    // A scan is answered after what was accepted before it.
    handle.scan(b"").await.unwrap();
    drop(handle);
    // The thread lets go of the files a moment after the last handle is gone; opening waits.
    let (_, entries) = StoreHandle::open(&path).unwrap();
    assert_eq!(entries, [(b"a".to_vec(), b"b".to_vec())]);
}

#[test]
fn a_store_in_use_is_left_alone() {
    let folder = Folder::new("store-in-use");
    let path = folder.0.join("store");
    fill(&path, 10);
    let store = open(&path);
    assert!(matches!(SledStore::open(&path), Err(StoreError::InUse)));
    assert_eq!(store.scan(b"key/").unwrap().len(), 10);
    assert!(!folder.0.join("store.damaged").exists());
}

/// Updates, in batches as steps of the core hand them out, of as many records as a hundred nodes with
/// thirty replicas each have.
const UPDATES: u64 = 1_000_000;
const BATCH: u64 = 5;
const RECORDS: u64 = 3500;

/// Batches to a flush: fewer than under such a load, so that the test ends.
const BATCHES_TO_A_FLUSH: u64 = 64;

#[test]
fn a_million_updates_leave_a_store_of_at_most_64_megabytes() {
    let folder = Folder::new("store-million");
    let path = folder.0.join("store");
    let store = open(&path);
    // A statement has some four hundred bytes, a document up to some thousand.
    let value = |n: u64| format!("{n:08}").repeat(if n.is_multiple_of(20) { 400 } else { 50 });
    let key = |n: u64| format!("record/{:04}", n * 7919 % RECORDS);
    for batch in 0..UPDATES / BATCH {
        let numbers = batch * BATCH..(batch + 1) * BATCH;
        let writes = numbers.map(|n| match n % 50 {
            0 => (key(n).into(), None),
            _ => put(&key(n), &value(n)),
        });
        store.apply(&writes.collect::<Vec<_>>()).unwrap();
        if batch % BATCHES_TO_A_FLUSH == 0 {
            store.flush().unwrap();
        }
    }
    store.flush().unwrap();
    let bytes: u64 = files(&path).iter().map(|file| file.metadata().unwrap().len()).sum();
    eprintln!("{bytes} bytes");
    assert!(bytes <= 64 << 20, "{bytes} bytes");
    drop(store);
    let held: u64 = open(&path).scan(b"").unwrap().iter().map(|(_, value)| value.len() as u64).sum();
    assert!(held > 1 << 20, "{held} bytes of values are there after all that");
}
