//! `hivemind events`: what has happened lately, on all machines.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use anstyle::Style;
use hivemind_spec::api::{Event, Events, Severity};
use hivemind_spec::id::NodeId;
use hivemind_spec::words::timestamp;

use super::nodes::{hostname, hostnames};
use crate::cli::{EventsOf, Global, Output};
use crate::client::{Client, with_query};
use crate::failure::{Exit, Failure, Result};
use crate::terminal::{BAD, CHANGING, FAINT, caution, paint, printable, say, say_json};

/// How often is looked for more.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How far back each of these looks goes, seconds: further than one machine's answers may be behind another's.
const LOOK_BACK_S: u64 = 60;

/// How long what was printed is remembered: many times that, milliseconds.
const FORGOTTEN_AFTER_MS: u64 = 10 * LOOK_BACK_S * 1000;

/// For how long what several machines say counts as one, milliseconds.
const SAME_WITHIN_MS: u64 = 15_000;

/// How often in a row the cluster may not answer while it is followed.
const MAX_MISSES: u32 = 30;

pub(super) fn run(global: &Global, options: &EventsOf) -> Result<Exit> {
    let client = super::client(global)?;
    let mut seen = Seen::default();
    let work = async {
        let since_s = options.since.map(|time| time.ago_ms(client.now_ms()).div_ceil(1000));
        print(&client, global.output, options, since_s, &mut seen).await?;
        if !options.follow {
            return Ok(Exit::Success);
        }
        let mut misses = 0;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            match print(&client, global.output, options, Some(LOOK_BACK_S), &mut seen).await {
                Ok(()) => misses = 0,
                Err(failure) if failure.exit == Exit::Unreachable && misses < MAX_MISSES => misses += 1,
                Err(failure) => return Err(failure),
            }
        }
    };
    match super::block_on("", work) {
        // Ctrl-C is how following ends.
        Err(Failure { exit: Exit::Interrupted, .. }) if options.follow => Ok(Exit::Success),
        ended => ended,
    }
}

/// Asks for the events of the last `seconds`, and prints those that are new.
async fn print(
    client: &Client,
    output: Output,
    options: &EventsOf,
    seconds: Option<u64>,
    seen: &mut Seen,
) -> Result<()> {
    let seconds = seconds.map(|seconds| seconds.to_string());
    let path = with_query("/v1/events", &[("seconds", seconds.as_deref())]);
    let events: Events = client.get(&path).await?;
    let items = events.items.into_iter().filter(|event| options.takes(event));
    let new: Vec<Event> = items.filter(|event| seen.is_new(event)).collect();
    seen.forget();
    match output {
        Output::Json if options.follow => {
            new.iter().for_each(|event| say(&serde_json::to_string(event).unwrap_or_default()));
        }
        Output::Json => say_json(&Events { items: new, missing: events.missing }),
        Output::Text if new.is_empty() && (events.missing.is_empty() || options.follow) => {}
        Output::Text => {
            let names = hostnames(client).await?;
            seen.told_by_one(new).iter().for_each(|told| say(&told.render(&names)));
            // Those that follow learn of a machine that is gone by an event.
            for node in events.missing.iter().filter(|_| !options.follow) {
                caution(&format!("{} did not answer in time", hostname(&names, node)));
            }
        }
    }
    Ok(())
}

impl EventsOf {
    fn takes(&self, event: &Event) -> bool {
        let (namespace, workload) = (self.chosen.namespace.as_deref(), self.chosen.workload.as_deref());
        let about = event.workload.as_deref().and_then(|id| id.split_once('/'));
        let is_of = |of: Option<&str>, is: Option<&str>| of.is_none_or(|of| is == Some(of));
        event.level >= self.level
            && is_of(namespace, about.map(|(namespace, _)| namespace))
            && is_of(workload, about.map(|(_, workload)| workload))
    }
}

/// An event, and all who told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    event: Event,
    nodes: BTreeSet<NodeId>,
}

impl Told {
    fn is_also(&self, event: &Event) -> bool {
        let same = (&self.event.code, &self.event.text) == (&event.code, &event.text);
        same && !self.nodes.contains(&event.node)
            && event.time_ms.abs_diff(self.event.time_ms) <= SAME_WITHIN_MS
    }

    fn render(&self, names: &BTreeMap<NodeId, String>) -> String {
        let Event { time_ms, level, code, text, .. } = &self.event;
        let who = match (self.nodes.len(), self.nodes.first()) {
            (1, Some(node)) => hostname(names, node),
            (count, _) => format!("{count} nodes"),
        };
        let style = match level {
            Severity::Info => Style::new(),
            Severity::Warning => CHANGING,
            Severity::Error => BAD,
        };
        let time = paint(FAINT, &timestamp(*time_ms));
        format!("{time}  {who:<16}  {}  {}", paint(style, &format!("{code:<18}")), printable(text))
    }
}

/// What was printed.
#[derive(Default)]
struct Seen {
    /// With their times, milliseconds since 1970.
    events: BTreeMap<(NodeId, String), u64>,
    /// What can still be told by others, the oldest first.
    lately: VecDeque<Told>,
}

impl Seen {
    fn is_new(&mut self, event: &Event) -> bool {
        self.events.insert((event.node, event.id.clone()), event.time_ms).is_none()
    }

    /// Forgets what is so old that no answer has it any more.
    fn forget(&mut self) {
        let latest = self.events.values().copied().max().unwrap_or_default();
        self.events.retain(|_, time_ms| *time_ms + FORGOTTEN_AFTER_MS >= latest);
    }

    /// Each of these once, whoever told of it, but for those that were printed already.
    fn told_by_one(&mut self, events: Vec<Event>) -> Vec<Told> {
        let mut new: Vec<Told> = Vec::new();
        for event in events {
            let latest = event.time_ms;
            self.lately.retain(|told| told.event.time_ms + 2 * SAME_WITHIN_MS >= latest);
            let printed = self.lately.iter_mut().find(|told| told.is_also(&event));
            if let Some(told) = printed.or_else(|| new.iter_mut().find(|told| told.is_also(&event))) {
                told.nodes.insert(event.node);
            } else {
                new.push(Told { nodes: [event.node].into(), event });
            }
        }
        self.lately.extend(new.iter().cloned());
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(node: u8, number: u64, time_ms: u64, text: &str) -> Event {
        Event {
            node: NodeId([node; 16]),
            id: format!("1-{number}"),
            age_ms: 0,
            time_ms,
            level: Severity::Info,
            code: "node-down".to_owned(),
            text: text.to_owned(),
            workload: None,
        }
    }

    fn printed(seen: &mut Seen, events: &[Event]) -> Vec<(String, usize)> {
        let new: Vec<Event> = events.iter().filter(|event| seen.is_new(event)).cloned().collect();
        seen.told_by_one(new).into_iter().map(|told| (told.event.text, told.nodes.len())).collect()
    }

    #[test]
    fn what_several_machines_tell_is_printed_once() {
        let mut seen = Seen::default();
        let first =
            [event(1, 0, 1000, "a is down"), event(2, 7, 2000, "a is down"), event(2, 8, 2000, "b is down")];
        assert_eq!(printed(&mut seen, &first), [("a is down".to_owned(), 2), ("b is down".to_owned(), 1)]);
        // The next look finds the same, and a third machine tells of it.
        let later = [first.as_slice(), &[event(3, 0, 9000, "a is down")]].concat();
        assert!(printed(&mut seen, &later).is_empty());
        // One that tells it again means another one, as does whoever tells it much later.
        assert_eq!(printed(&mut seen, &[event(1, 1, 9500, "a is down")]).len(), 1);
        assert_eq!(printed(&mut seen, &[event(4, 0, 60_000, "a is down")]).len(), 1);
        // What nobody can tell again is forgotten.
        printed(&mut seen, &[event(1, 2, 60_000 + FORGOTTEN_AFTER_MS, "c is down")]);
        seen.forget();
        assert_eq!(seen.events.len(), 2);
    }

    #[test]
    fn events_are_chosen_by_what_they_are_about_and_how_urgent_they_are() {
        let about = |workload: Option<&str>, level| {
            let workload = workload.map(str::to_owned);
            Event { workload, level, ..event(1, 0, 0, "") }
        };
        let of = |namespace: Option<&str>, workload: Option<&str>, level| EventsOf {
            chosen: crate::cli::Chosen {
                namespace: namespace.map(str::to_owned),
                workload: workload.map(str::to_owned),
            },
            level,
            since: None,
            follow: false,
        };
        let web = about(Some("shop/web"), Severity::Warning);
        assert!(of(None, None, Severity::Info).takes(&web));
        assert!(of(Some("shop"), Some("web"), Severity::Warning).takes(&web));
        assert!(!of(Some("other"), Some("web"), Severity::Info).takes(&web));
        assert!(!of(None, Some("db"), Severity::Info).takes(&web));
        assert!(!of(None, None, Severity::Error).takes(&web));
        assert!(!of(None, Some("web"), Severity::Info).takes(&about(None, Severity::Error)));
    }
}
