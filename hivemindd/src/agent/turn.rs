//! The loop: takes one event at a time, lets the core decide, hands on what it decided.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hivemind_core::event::{Action, Actions, Event, Note, RequestId};
use hivemind_core::node::Node;
use hivemind_init::pulse;
use hivemind_spec::api::{Accepted, Severity};
use hivemind_spec::problem::Problem;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};

use super::handle::Ask;
use super::hands::Hands;
use super::happened::Happened;
use crate::clock::Clock;

/// The longest sleep without looking at the time, should the core ask for no wake-up.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

type Answer = oneshot::Sender<Result<Accepted, Problem>>;

/// The core and what surrounds it.
pub(super) struct Turn {
    node: Node,
    clock: Arc<Clock>,
    hands: Hands,
    happened: Arc<Happened>,
    pushes: BTreeMap<RequestId, Answer>,
    next_request: RequestId,
    wake: Instant,
}

impl Turn {
    /// Starts with what the core wants done first.
    pub(super) fn new(
        node: Node,
        first: Actions,
        clock: Arc<Clock>,
        hands: Hands,
        happened: Arc<Happened>,
    ) -> Self {
        let wake = Instant::now();
        let mut turn = Self { node, clock, hands, happened, pushes: BTreeMap::new(), next_request: 0, wake };
        turn.carry_out(first);
        turn
    }

    /// Runs until `stop` ends.
    pub(super) async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        mut questions: mpsc::Receiver<Ask>,
        stop: impl Future<Output = ()>,
    ) {
        let mut stop = std::pin::pin!(stop);
        let mut pulse = tokio::time::interval(pulse::BEAT_EVERY);
        pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = &mut stop => return,
                _ = pulse.tick() => beat(),
                Some(event) = events.recv() => self.step(event),
                Some(ask) = questions.recv() => self.answer(ask),
                () = tokio::time::sleep_until(self.wake) => {
                    self.wake = Instant::now() + LONGEST_SLEEP;
                    self.step(Event::TimerFired);
                }
            }
        }
    }

    fn step(&mut self, event: Event) {
        let mut actions = Actions::new();
        self.node.step(self.clock.now(), event, &mut actions);
        self.carry_out(actions);
    }

    fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Read(look) => look(&self.node, self.clock.now()),
            Ask::Push { envelope, answer } => {
                let request = self.next_request;
                self.next_request += 1;
                self.pushes.insert(request, answer);
                self.step(Event::Push { request, envelope });
            }
        }
    }

    fn carry_out(&mut self, actions: Actions) {
        for action in actions {
            match action {
                Action::WakeAt { mono_ms } => {
                    let wait = mono_ms.saturating_sub(self.clock.now().mono_ms);
                    self.wake = Instant::now() + Duration::from_millis(wait).min(LONGEST_SLEEP);
                }
                Action::Reply { request, result } => {
                    if let Some(answer) = self.pushes.remove(&request) {
                        // The asker may have gone away; the document is held all the same.
                        let _ = answer.send(result);
                    }
                }
                Action::Note(note) => {
                    log(&note);
                    self.happened.add(note);
                }
                action => self.hands.carry_out(action),
            }
        }
    }
}

/// Tells PID 1 that the loop turns.
fn beat() {
    if let Err(error) = pulse::beat() {
        tracing::error!(%error, "PID 1 cannot be told that the agent is well");
    }
}

fn log(note: &Note) {
    match note.level {
        Severity::Info => tracing::info!(code = %note.code, "{}", note.text),
        Severity::Warning => tracing::warn!(code = %note.code, "{}", note.text),
        Severity::Error => tracing::error!(code = %note.code, "{}", note.text),
    }
}
