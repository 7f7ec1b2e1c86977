use std::path::PathBuf;

use super::*;
use hivemind_spec::workload::MAX_LOG_BYTES;

use crate::runtime::log_files::tests::append;
use crate::runtime::log_files::{LogFile, SHARES};

fn directory(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("hivemind-logs-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&path);
    path
}

fn texts(lines: &[LogLine]) -> Vec<&str> {
    lines.iter().map(|line| line.line.split(' ').next().unwrap_or_default()).collect()
}

/// Writes records of which at most `per_file` fit into a file.
fn write(log: &mut LogFile, numbers: std::ops::Range<u64>, per_file: usize) {
    let padding = "p".repeat(usize::try_from(MAX_LOG_BYTES / SHARES).unwrap() / per_file);
    for number in numbers {
        append(log, &format!("{number} stdout n{number} {padding}\n"));
    }
}

fn read_past(path: &Path, query: LogQuery) -> (Vec<LogLine>, Place) {
    let (mut past, place) = Past::open(path, 3, query).unwrap();
    let mut lines = Vec::new();
    while let (rest, Some(some)) = past.read().unwrap() {
        lines.extend(some);
        past = rest;
    }
    (lines, place)
}

fn past(path: &Path, tail: Option<usize>, since_ms: Option<u64>) -> Vec<LogLine> {
    read_past(path, LogQuery { tail, since_ms, ..LogQuery::default() }).0
}

#[test]
fn a_tail_reaches_over_rotated_files() {
    let directory = directory("tail");
    let path = directory.join("3.log");
    assert_eq!(past(&path, None, None), []);
    write(&mut LogFile::open(&path, MAX_LOG_BYTES).unwrap(), 0..50, 20);
    assert_eq!(past(&path, None, None).len(), 50);
    assert_eq!(texts(&past(&path, Some(2), None)), ["n48", "n49"]);
    let wide = past(&path, Some(30), None);
    assert_eq!((wide.len(), wide[0].time_ms, wide[0].slot), (30, 20, 3));
    assert_eq!(texts(&past(&path, None, Some(47))), ["n47", "n48", "n49"]);
    assert_eq!(texts(&past(&path, Some(1), Some(5))), ["n49"]);
    assert_eq!(past(&path, Some(0), None), []);
    let between = LogQuery { since_ms: Some(10), until_ms: Some(12), ..LogQuery::default() };
    assert_eq!(texts(&read_past(&path, between).0), ["n10", "n11", "n12"], "in an older file");
    let last_before = LogQuery { tail: Some(1), until_ms: Some(30), ..LogQuery::default() };
    assert_eq!(texts(&read_past(&path, last_before).0), ["n30"]);
    fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn following_loses_no_line_to_rotation() {
    let directory = directory("follow");
    let path = directory.join("3.log");
    let mut log = LogFile::open(&path, MAX_LOG_BYTES).unwrap();
    write(&mut log, 0..3, 200);
    let (_, mut place) = read_past(&path, LogQuery::default());
    write(&mut log, 3..350, 200);
    let mut seen = Vec::new();
    loop {
        let (data, next) = read_fresh(&path, place).unwrap();
        place = next;
        if data.is_empty() {
            break;
        }
        seen.extend(records(&data, 3).map(|line| line.time_ms));
    }
    assert_eq!(seen, (3..350).collect::<Vec<_>>());
    // Who reads too slowly still has the file that was being read, and goes on with what is left as it was written.
    write(&mut log, 350..1000, 200);
    let mut seen = Vec::new();
    while seen.last() != Some(&999) {
        let (data, next) = read_fresh(&path, place).unwrap();
        place = next;
        seen.extend(records(&data, 3).map(|line| line.time_ms));
    }
    assert_eq!(seen[0], 350);
    let gaps = seen.windows(2).filter(|two| two[1] != two[0] + 1).count();
    assert_eq!(gaps, 1, "{seen:?}");
    fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn what_a_power_cut_left_is_passed_over() {
    assert_eq!(parse(b"\0\0\0\0", 0), None);
    assert_eq!(parse(b"12 stdin x", 0), None);
    assert_eq!(parse(b"12 stdout", 0), None);
    let line = parse(b"12 stderr a  b \xff\n", 0).unwrap();
    assert_eq!((line.time_ms, line.stream.as_str(), line.line.as_str()), (12, "stderr", "a  b \u{fffd}"));
    assert_eq!(parse(b"12 stdout ", 0).unwrap().line, "");
}
