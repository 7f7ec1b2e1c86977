use super::*;
use hivemind_spec::workload::MAX_LOG_BYTES;

use crate::runtime::output::LogFile;

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
    let padding = "p".repeat(usize::try_from(MAX_LOG_BYTES / u64::from(MAX_FILES)).unwrap() / per_file);
    for number in numbers {
        log.append(format!("{number} stdout n{number} {padding}\n").as_bytes()).unwrap();
    }
}

fn past(path: &Path, tail: Option<usize>, since_ms: Option<u64>) -> Vec<LogLine> {
    read_past(path, 3, &LogQuery { tail, since_ms, ..LogQuery::default() }).unwrap().0
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
    assert_eq!(texts(&read_past(&path, 3, &between).unwrap().0), ["n10", "n11", "n12"], "in an older file");
    let last_before = LogQuery { tail: Some(1), until_ms: Some(30), ..LogQuery::default() };
    assert_eq!(texts(&read_past(&path, 3, &last_before).unwrap().0), ["n30"]);
    fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn following_loses_no_line_to_rotation() {
    let directory = directory("follow");
    let path = directory.join("3.log");
    let mut log = LogFile::open(&path, MAX_LOG_BYTES).unwrap();
    write(&mut log, 0..3, 200);
    let (_, mut place) = read_past(&path, 3, &LogQuery::default()).unwrap();
    write(&mut log, 3..450, 200);
    let mut seen = Vec::new();
    loop {
        let (data, next) = read_fresh(&path, place).unwrap();
        place = next;
        if data.is_empty() {
            break;
        }
        seen.extend(
            data.split(|byte| *byte == b'\n').filter_map(|line| parse(line, 3)).map(|line| line.time_ms),
        );
    }
    assert_eq!(seen, (3..450).collect::<Vec<_>>());
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
