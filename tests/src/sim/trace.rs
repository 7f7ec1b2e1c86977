//! What happened, in order: as a hash, to see that a seed always gives the same life, and as lines,
//! to read what went wrong.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hasher as _};

use hivemind_core::event::{Action, Event, Message};
use hivemind_core::record::{Body, Record, RecordKey};

use super::machine::Writes;

/// Lines kept for the report of a failure.
const KEPT: usize = 200;

/// The history of a world.
#[derive(Debug, Default)]
pub struct Trace {
    /// Print every line as it comes.
    aloud: bool,
    hasher: DefaultHasher,
    lines: VecDeque<String>,
}

impl Trace {
    /// An empty history; `aloud`: print every line as it comes.
    pub fn new(aloud: bool) -> Self {
        Self { aloud, ..Self::default() }
    }

    /// Takes note of an event that a machine is about to be told.
    pub fn event(&mut self, now_ms: u64, machine: usize, event: &Event) {
        self.hash(now_ms, machine, event);
        if !matches!(event, Event::TimerFired | Event::Received { message: Message::Swim(_), .. }) {
            self.line(now_ms, machine, || format!("<- {}", shortened(event)));
        }
    }

    /// Takes note of what a node wants done.
    pub fn action(&mut self, now_ms: u64, machine: usize, action: &Action) {
        match action {
            Action::WakeAt { .. } | Action::Send { message: Message::Swim(_), .. } => {}
            Action::Persist { batch, writes } => {
                self.line(now_ms, machine, || format!("-> Persist {batch}: {}", named(writes)));
            }
            Action::Note(note) => self.line(now_ms, machine, || format!("   {}: {}", note.code, note.text)),
            action => self.line(now_ms, machine, || format!("-> {}", shortened(action))),
        }
    }

    /// Takes note of something that is done to the world.
    pub fn say(&mut self, now_ms: u64, what: &str) {
        self.hasher.write(what.as_bytes());
        self.keep(format!("{:9.3} ---- {what}", now_ms as f64 / 1000.0));
    }

    /// The hash of everything until now.
    pub fn digest(&self) -> u64 {
        self.hasher.finish()
    }

    /// The last lines.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }

    fn hash(&mut self, now_ms: u64, machine: usize, event: &Event) {
        self.hasher.write_u64(now_ms);
        self.hasher.write_usize(machine);
        self.hasher.write(&hivemind_core::state::encode(event));
    }

    fn line(&mut self, now_ms: u64, machine: usize, text: impl FnOnce() -> String) {
        self.keep(format!("{:9.3}  m{machine}  {}", now_ms as f64 / 1000.0, text()));
    }

    fn keep(&mut self, line: String) {
        if self.aloud {
            println!("{line}");
        }
        self.lines.push_back(line);
        if self.lines.len() > KEPT {
            self.lines.pop_front();
        }
    }
}

/// What writes are about: the names of the records, and decisions as a whole.
fn named(writes: &Writes) -> String {
    let name = |(key, value): &(Vec<u8>, Option<Vec<u8>>)| {
        let gone = if value.is_none() { "-" } else { "" };
        match key.split_first().and_then(|(_, key)| postcard::from_bytes(key).ok()) {
            Some(RecordKey::Spec(name, signer)) => format!("{gone}{name} by {}", signer.short()),
            Some(RecordKey::Observation(node, topic)) => format!("{gone}{} on {topic:?}", node.short()),
            Some(RecordKey::Decision(matter)) => {
                format!("{gone}{matter:?}: {}", value.as_deref().map_or(String::new(), decided))
            }
            None => format!("{gone}{}", String::from_utf8_lossy(key)),
        }
    };
    writes.iter().map(name).collect::<Vec<_>>().join("; ")
}

/// Who decided what when.
fn decided(record: &[u8]) -> String {
    let Ok(Record::Statement(statement)) = postcard::from_bytes(record) else { return String::new() };
    match hivemind_core::statement::read(&statement) {
        Ok(Body::Decision { clock, decision, .. }) => {
            format!("{decision:?} by {} at {}.{}", statement.writer.short(), clock.wall_ms, clock.counter)
        }
        _ => String::new(),
    }
}

/// The first part of what `value` looks like.
fn shortened(value: &impl std::fmt::Debug) -> String {
    const LONGEST: usize = 200;
    let mut text = format!("{value:?}");
    if let Some((end, _)) = text.char_indices().nth(LONGEST) {
        text.truncate(end);
        text.push('…');
    }
    text
}
