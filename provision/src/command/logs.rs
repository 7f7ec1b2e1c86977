//! `hivemind logs`.

use std::collections::BTreeMap;
use std::time::Duration;

use anstyle::{AnsiColor, Color, Style};
use hivemind_spec::api::LogLine;
use http_body_util::BodyExt as _;
use hyper::Method;
use hyper::body::Bytes;

use crate::cli::{Global, Logs, Output};
use crate::client::{Client, percent};
use crate::failure::{Exit, Failure, Result};
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
            let path = path(&options.namespace, workload, slot, tail, options.follow);
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

pub(super) fn path(
    namespace: &str,
    workload: &str,
    slot: Option<u32>,
    tail: Option<u32>,
    follow: bool,
) -> String {
    let mut query = Vec::new();
    query.extend(slot.map(|slot| format!("slot={slot}")));
    query.extend(tail.map(|tail| format!("tail={tail}")));
    query.extend(follow.then(|| "follow=true".to_owned()));
    let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
    format!("/v1/logs/{}/{}{query}", percent(namespace), percent(workload))
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

/// RFC 3339 in UTC, to the millisecond.
pub(super) fn timestamp(ms: u64) -> String {
    let (days, rest) = (ms / 86_400_000, ms % 86_400_000);
    let (year, month, day) = civil(days);
    let (s, ms) = (rest / 1000, rest % 1000);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{ms:03}Z", s / 3600, s / 60 % 60, s % 60)
}

/// The date of a day since 1970 in the Gregorian calendar, by counting eras of 400 years that
/// start in March, so that the leap day ends a year.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_may_name_one_replica() {
        assert_eq!(crate::command::replica("web").unwrap(), ("web", None));
        assert_eq!(crate::command::replica("web/2").unwrap(), ("web", Some(2)));
        assert_eq!(crate::command::replica("web/x").unwrap_err().exit, Exit::Input);
        assert_eq!(path("a", "web", Some(1), Some(5), true), "/v1/logs/a/web?slot=1&tail=5&follow=true");
        assert_eq!(path("a", "web", None, None, false), "/v1/logs/a/web");
    }

    #[test]
    fn times_are_written_as_rfc_3339() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(timestamp(951_827_696_789), "2000-02-29T12:34:56.789Z");
        assert_eq!(timestamp(1_798_761_599_000), "2026-12-31T23:59:59.000Z");
        assert_eq!(timestamp(4_107_542_400_000), "2100-03-01T00:00:00.000Z");
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
