//! What has happened on this node lately: the core's notes, for whoever asks.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use hivemind_core::event::Note;
use hivemind_core::record::WorkloadId;
use hivemind_core::time::Time;
use hivemind_spec::api::{Event, Severity};
use hivemind_spec::id::NodeId;

/// Notes kept: a day of a busy node, some 200 KiB at most.
const MAX_NOTES: usize = 1000;

/// The last notes. They are gone when the agent is.
#[derive(Debug)]
pub struct Happened {
    node: NodeId,
    /// Which start of the agent this is, so that names of notes are not used twice.
    boot: u64,
    notes: Mutex<Notes>,
}

#[derive(Debug, Default)]
struct Notes {
    last: VecDeque<Note>,
    /// How many went before those.
    forgotten: u64,
}

impl Happened {
    /// Nothing yet. `boot` counts the agent's starts.
    pub fn new(node: NodeId, boot: u64) -> Self {
        Self { node, boot, notes: Mutex::default() }
    }

    /// Takes note of what was done here by an operator or with a stick, which the core has no part in.
    pub fn told(&self, now: Time, code: &str, workload: Option<WorkloadId>, text: String) {
        self.add(Note { level: Severity::Info, code: code.to_owned(), text, workload, time: now });
    }

    pub(super) fn add(&self, note: Note) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.last.push_back(note);
        if notes.last.len() > MAX_NOTES {
            notes.last.pop_front();
            notes.forgotten += 1;
        }
    }

    /// What happened in the last `seconds`, the oldest first.
    pub fn lately(&self, now: Time, seconds: u64) -> Vec<Event> {
        let notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let numbered = (notes.forgotten..).zip(&notes.last);
        let events = numbered.map(|(number, note)| {
            let age_ms = now.mono_ms.saturating_sub(note.time.mono_ms);
            Event {
                node: self.node,
                id: format!("{}-{number}", self.boot),
                age_ms,
                time_ms: now.wall_ms.saturating_sub(age_ms),
                level: note.level,
                code: note.code.clone(),
                text: note.text.clone(),
                workload: note.workload.as_ref().map(|id| format!("{}/{}", id.namespace, id.name)),
            }
        });
        events.filter(|event| event.age_ms <= seconds.saturating_mul(1000)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time { mono_ms: seconds * 1000, wall_ms: 1_800_000_000_000 + seconds * 1000 }
    }

    fn note(number: usize, time: Time) -> Note {
        let text = format!("note {number}");
        Note { level: Severity::Info, code: "node-up".to_owned(), text, workload: None, time }
    }

    #[test]
    fn what_happened_lately_is_kept_within_bounds_and_each_has_a_name_of_its_own() {
        let happened = Happened::new(NodeId([7; 16]), 3);
        for number in 0..MAX_NOTES + 5 {
            happened.add(note(number, at(number as u64)));
        }
        let now = at(MAX_NOTES as u64 + 10);
        let all = happened.lately(now, u64::MAX);
        assert_eq!(all.len(), MAX_NOTES);
        assert_eq!((all[0].id.as_str(), all[0].text.as_str()), ("3-5", "note 5"));
        let lately = happened.lately(now, 6);
        assert_eq!(lately.iter().map(|event| event.age_ms).collect::<Vec<_>>(), [6000]);
        assert_eq!(lately[0].id, all[MAX_NOTES - 1].id, "the name is the same in every answer");
    }

    #[test]
    fn how_long_ago_something_was_does_not_change_when_the_clock_is_set() {
        let happened = Happened::new(NodeId([7; 16]), 1);
        happened.add(note(0, Time { wall_ms: 5, ..at(10) }));
        let event = &happened.lately(at(15), 60)[0];
        assert_eq!((event.age_ms, event.time_ms), (5000, at(10).wall_ms));
    }
}
