use std::io::Write as _;

use hivemind_spec::workload::MAX_LOG_BYTES;

use super::*;
use crate::runtime::log_files::older;

fn records(splitter: &mut Splitter, parts: &[&[u8]]) -> String {
    let mut out = Vec::new();
    for part in parts {
        splitter.feed(part, 7, &mut out);
    }
    splitter.finish(8, &mut out);
    String::from_utf8(out).unwrap()
}

fn directory(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("hivemind-output-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&path);
    path
}

#[test]
fn lines_are_whole_however_they_come() {
    let expected = "7 stdout one\n7 stdout \n7 stdout two\n8 stdout last\n";
    assert_eq!(records(&mut Splitter::new("stdout"), &[b"one\n\ntwo\r\nlast"]), expected);
    assert_eq!(
        records(&mut Splitter::new("stdout"), &[b"o", b"ne\n", b"\ntw", b"o\r", b"\nla", b"st"]),
        expected
    );
}

#[test]
fn a_line_without_end_is_cut_and_takes_no_more_memory() {
    let long = vec![b'x'; 2 * MAX_LINE_BYTES + 3];
    let mut splitter = Splitter::new("stderr");
    let out = records(&mut splitter, &[&long, b"\nnext\n"]);
    let lengths: Vec<_> = out.lines().map(|line| line.len() - "7 stderr ".len()).collect();
    assert_eq!(lengths, [MAX_LINE_BYTES, MAX_LINE_BYTES, 3, 4]);
    // A line of exactly the limit is one record, not one and an empty one.
    let out = records(&mut Splitter::new("stderr"), &[&vec![b'y'; MAX_LINE_BYTES], b"\n"]);
    assert_eq!(out.lines().count(), if out.ends_with("7 stderr \n") { 2 } else { 1 });
}

#[tokio::test]
async fn what_is_written_while_nobody_reads_is_not_lost() {
    let directory = directory("pipes");
    fs::create_dir_all(&directory).unwrap();
    let id = ContainerId("hm-1".into());
    let paths = pipes(&directory);
    paths.iter().for_each(|path| make_pipe(path).unwrap());
    // What the shim does: it holds the pipe open for reading too.
    let hold = fs::File::options().read(true).write(true).open(&paths[0]).unwrap();
    let file = directory.join("0.log");
    let log = Log { file: file.clone(), most_bytes: MAX_LOG_BYTES };
    for (agent, text) in [("first", "before\n"), ("second", "while the agent was away\n")] {
        (&hold).write_all(text.as_bytes()).unwrap();
        let collector = Collector::start().unwrap();
        collector.adopt(&id, paths.clone(), log.clone());
        collector.adopt(&id, paths.clone(), log.clone());
        collector.detach(&id).await;
        // A late look at a container that is being removed does not bring its log back.
        collector.adopt(&id, paths.clone(), log.clone());
        collector.detach(&id).await;
        assert!(fs::read_to_string(&file).unwrap().ends_with(text), "{agent}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 2);
    fs::remove_dir_all(&directory).unwrap();
}

#[tokio::test]
async fn what_is_not_to_be_kept_is_read_all_the_same() {
    let directory = directory("nothing");
    fs::create_dir_all(&directory).unwrap();
    let paths = pipes(&directory);
    paths.iter().for_each(|path| make_pipe(path).unwrap());
    let log = Log { file: directory.join("0.log"), most_bytes: 0 };
    let (collector, id) = (Collector::start().unwrap(), ContainerId("hm-1".into()));
    collector.attach(&id, paths.clone(), log.clone());
    let writer = paths[0].clone();
    let written = tokio::task::spawn_blocking(move || {
        // Several times what a pipe holds.
        let mut pipe = fs::File::options().read(true).write(true).open(writer).unwrap();
        pipe.write_all(&vec![b'x'; 1 << 20]).unwrap();
    });
    tokio::time::timeout(Duration::from_secs(20), written).await.unwrap().unwrap();
    collector.detach(&id).await;
    assert!(!log.file.exists());
    fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn only_old_logs_of_replicas_that_are_gone_are_pruned() {
    let directory = directory("prune");
    let [used, gone] = ["default/web/0.log", "default/old/0.log"].map(|name| directory.join(name));
    for path in [&used, &gone] {
        LogFile::open(path, MAX_LOG_BYTES).unwrap().append(b"1 stdout x\n").unwrap();
    }
    fs::write(older(&gone, 1), "1 stdout x\n").unwrap();
    let in_use = [used.clone()].into();
    prune(&directory, &in_use, Duration::from_secs(3600));
    assert!(gone.exists());
    std::thread::sleep(Duration::from_millis(20));
    prune(&directory, &in_use, Duration::from_millis(1));
    assert!(used.exists() && !directory.join("default/old").exists());
    fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn whoever_reads_along_too_slowly_is_not_waited_for() {
    let listeners = Listeners::default();
    let id = ContainerId("hm-a".to_owned());
    let (mut reads, mut sleeps) = (listeners.add(&id), listeners.add(&id));
    let long = vec![b'x'; MAX_DATA_BYTES + 1];
    listeners.tell(&id, OutputStream::Stderr, &long);
    assert_eq!(reads.try_recv().unwrap().1.len(), MAX_DATA_BYTES);
    assert_eq!(reads.try_recv().unwrap(), (OutputStream::Stderr, Bytes::from_static(b"x")));
    for number in 0..PIECES_WAITING {
        listeners.tell(&id, OutputStream::Stdout, b"more");
        assert_eq!(reads.try_recv().unwrap().1, "more", "{number}");
    }
    let mut kept = 0;
    while sleeps.try_recv().is_ok() {
        kept += 1;
    }
    assert!(kept == PIECES_WAITING && sleeps.is_closed(), "{kept}");
    listeners.tell(&ContainerId("hm-b".to_owned()), OutputStream::Stdout, b"another's");
    assert!(reads.try_recv().is_err());
    listeners.end(&id);
    assert!(reads.is_closed());
}
