//! `hivemind logs`.

use std::collections::BTreeMap;
use std::time::Duration;

use anstyle::{AnsiColor, Color, Style};
use hivemind_spec::api::LogLine;
use hivemind_spec::words::timestamp;
use http_body_util::BodyExt as _;
use hyper::Method;
use hyper::body::Bytes;

use crate::cli::{Global, Logs, Output};
use crate::client::{Client, percent, with_query};
use crate::failure::{Exit, Failure, Result};
use crate::quantity::Moment;
use crate::terminal::{BAD, FAINT, note, paint, printable, say};

/// The longest line taken from a node, bytes: nodes split longer ones.
const MAX_LINE_BYTES: usize = 1024 * 1024;

/// How long to wait before a broken stream is taken up again.
const RECONNECT: Duration = Duration::from_secs(1);

/// How often a stream is taken up again without a single line in between.
const MAX_RECONNECTS: u32 = 30;

/// Lines of each replica asked for when a stream is taken up again: those printed meanwhile, and
/// some that are known already and are dropped.
const RECONNECT_TAIL: u32 = 500;

pub(super) fn run(global: &Global, options: &Logs) -> Result<Exit> {
    let (workload, slot) = super::replica(&options.workload)?;
    let client = super::client(global)?;
    let mut seen = Seen::default();
    let print = |line: LogLine| match global.output {
        Output::Json => say(&serde_json::to_string(&line).unwrap_or_default()),
        Output::Text => say(&render(&line, options.timestamps)),
    };
    let work = async {
        let mut tail = options.tail;
        let mut misses = 0;
        loop {
            let now_ms = client.now_ms();
            let ago = |time: Option<Moment>| time.map(|time| time.ago_ms(now_ms));
            let ages_ms = (ago(options.since), ago(options.until));
            let lines = Lines { slot, tail, follow: options.follow, ages_ms };
            let path = path(&options.namespace, workload, lines);
            let before = seen.latest.clone();
            let ended = stream(&client, &path, &mut seen, print).await;
            if !options.follow {
                return ended.map(|()| Exit::Success);
            }
            misses = if seen.latest == before { misses + 1 } else { 0 };
            match ended {
                Err(failure) if failure.exit != Exit::Unreachable || misses > MAX_RECONNECTS => {
                    return Err(failure);
                }
                _ if misses > MAX_RECONNECTS => return Ok(Exit::Success),
                _ => {}
            }
            tail = Some(RECONNECT_TAIL);
            tokio::time::sleep(RECONNECT).await;
        }
    };
    match super::block_on("", work) {
        // Ctrl-C is how following ends.
        Err(failure) if failure.exit == Exit::Interrupted && options.follow => Ok(Exit::Success),
        ended => ended,
    }
}

/// Which lines of a workload.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lines {
    pub(super) slot: Option<u32>,
    /// How many of the last of each replica.
    pub(super) tail: Option<u32>,
    pub(super) follow: bool,
    /// How long ago they were printed at most, and at least, milliseconds.
    pub(super) ages_ms: (Option<u64>, Option<u64>),
}

pub(super) fn path(namespace: &str, workload: &str, lines: Lines) -> String {
    let Lines { slot, tail, follow, ages_ms: (most, least) } = lines;
    let path = format!("/v1/logs/{}/{}", percent(namespace), percent(workload));
    let [slot, tail] = [slot, tail].map(|number| number.map(|number| number.to_string()));
    let [most, least] = [most, least].map(|ms| ms.map(|ms| ms.to_string()));
    let pairs = [
        ("slot", slot.as_deref()),
        ("tail", tail.as_deref()),
        ("follow", follow.then_some("true")),
        ("maxAgeMs", most.as_deref()),
        ("minAgeMs", least.as_deref()),
    ];
    with_query(&path, &pairs)
}

/// Prints the new lines of a stream, to its end.
pub(super) async fn stream(
    client: &Client,
    path: &str,
    seen: &mut Seen,
    mut print: impl FnMut(LogLine),
) -> Result<()> {
    seen.begin_again();
    let broke = |what: String| {
        Failure::new(Exit::Unreachable, "broken-stream", format!("the log stream broke off: {what}"))
            .advice("run the command again")
    };
    let mut body = client.send(Method::GET, path, Bytes::new()).await?.into_body();
    let mut rest: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| broke(e.to_string()))?;
        let Some(data) = frame.data_ref() else { continue };
        rest.extend_from_slice(data);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            seen.line(&line).map(&mut print);
        }
        if rest.len() > MAX_LINE_BYTES {
            return Err(broke("a line is too long".to_owned()));
        }
    }
    seen.line(&rest).map(&mut print);
    Ok(())
}

/// What was printed, so that a stream that is taken up again repeats nothing.
#[derive(Default)]
pub(super) struct Seen {
    /// The latest time of each replica's outputs, and how many lines had it.
    latest: BTreeMap<(u32, String), (u64, u32)>,
    /// How many lines of that time come again.
    again: BTreeMap<(u32, String), u32>,
}

impl Seen {
    fn begin_again(&mut self) {
        self.again = self.latest.iter().map(|(from, (_, lines))| (from.clone(), *lines)).collect();
    }

    /// A line of the stream, if it is new.
    fn line(&mut self, json: &[u8]) -> Option<LogLine> {
        let json = json.trim_ascii();
        if json.is_empty() {
            return None;
        }
        let Ok(line) = serde_json::from_slice::<LogLine>(json) else {
            note(&paint(BAD, &format!("not a log line: {}", printable(&String::from_utf8_lossy(json)))));
            return None;
        };
        self.is_new(&line).then_some(line)
    }

    fn is_new(&mut self, line: &LogLine) -> bool {
        let from = (line.slot, line.stream.clone());
        let (time_ms, lines) = self.latest.entry(from.clone()).or_default();
        if line.time_ms < *time_ms {
            return false;
        }
        if line.time_ms == *time_ms
            && let Some(again) = self.again.get_mut(&from).filter(|again| **again > 0)
        {
            *again -= 1;
            return false;
        }
        *lines = if line.time_ms == *time_ms { lines.saturating_add(1) } else { 1 };
        *time_ms = line.time_ms;
        true
    }
}

/// A line for people: which replica printed it, when if that is asked for, and what.
fn render(line: &LogLine, timestamps: bool) -> String {
    const COLOURS: [AnsiColor; 6] = [
        AnsiColor::Cyan,
        AnsiColor::Yellow,
        AnsiColor::Green,
        AnsiColor::Magenta,
        AnsiColor::Blue,
        AnsiColor::BrightCyan,
    ];
    let colour = COLOURS[line.slot as usize % COLOURS.len()];
    let slot = paint(Style::new().fg_color(Some(Color::Ansi(colour))), &format!("{} |", line.slot));
    let time =
        if timestamps { paint(FAINT, &format!("{} ", timestamp(line.time_ms))) } else { String::new() };
    // Containers may colour their output; what moves the cursor is not let through.
    let text: String =
        line.line.chars().filter(|c| !c.is_control() || matches!(c, '\t' | '\u{1b}')).collect();
    format!("{slot} {time}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_may_name_one_replica() {
        assert_eq!(crate::command::replica("web").unwrap(), ("web", None));
        assert_eq!(crate::command::replica("web/2").unwrap(), ("web", Some(2)));
        assert_eq!(crate::command::replica("web/x").unwrap_err().exit, Exit::Input);
        let lines = Lines { slot: Some(1), tail: Some(5), follow: true, ages_ms: (Some(9), None) };
        assert_eq!(path("a", "web", lines), "/v1/logs/a/web?slot=1&tail=5&follow=true&maxAgeMs=9");
        assert_eq!(path("a", "web", Lines::default()), "/v1/logs/a/web");
    }

    #[test]
    fn a_stream_taken_up_again_repeats_nothing_older() {
        let mut seen = Seen::default();
        let line = |time_ms, slot| LogLine { time_ms, slot, stream: "stdout".into(), line: "x".into() };
        assert!(seen.is_new(&line(5, 0)));
        assert!(seen.is_new(&line(5, 0)), "two lines may have one time");
        assert!(!seen.is_new(&line(4, 0)));
        assert!(seen.is_new(&line(4, 1)), "another replica has times of its own");
        seen.begin_again();
        let again =
            [line(5, 0), line(5, 0), line(5, 0), line(6, 0), line(4, 1)].map(|line| seen.is_new(&line));
        assert_eq!(again, [false, false, true, true, false], "one of its time came meanwhile");
    }
}
