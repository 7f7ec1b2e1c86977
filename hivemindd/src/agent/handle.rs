//! How other tasks reach the agent's loop: one bounded queue of questions.

use std::time::Duration;

use hivemind_core::node::Node;
use hivemind_core::time::Time;
use hivemind_spec::api::Accepted;
use hivemind_spec::dsse::Envelope;
use hivemind_spec::problem::{Code, Problem};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};

/// Questions waiting for the loop. One request is one question, and the API serves fewer
/// connections than this at a time; more means that the loop hangs, and then refusing is right.
const MAX_WAITING: usize = 256;

/// How long until the state says what was done at the edge: an inventory is taken at once, and a disk may be slow.
const TOLD_PATIENCE: Duration = Duration::from_secs(30);

/// How often is looked meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(200);

type Reader = Box<dyn FnOnce(&Node, Time) + Send>;

/// What is asked of the loop.
pub(super) enum Ask {
    /// Take a document.
    Push { envelope: Envelope, answer: oneshot::Sender<Result<Accepted, Problem>> },
    /// Look at the state.
    Read(Reader),
}

/// A way to the agent's loop. Cheap to clone.
#[derive(Clone)]
pub struct AgentHandle {
    asks: mpsc::Sender<Ask>,
}

impl AgentHandle {
    pub(super) fn new() -> (Self, mpsc::Receiver<Ask>) {
        let (asks, questions) = mpsc::channel(MAX_WAITING);
        (Self { asks }, questions)
    }

    /// Hands a document to the core and waits until it is held as the design promises.
    ///
    /// # Errors
    /// The core's refusal, or [`Code::Busy`] and [`Code::Stopping`] when the loop cannot answer.
    pub async fn push(&self, envelope: Envelope) -> Result<Accepted, Problem> {
        let (answer, wait) = oneshot::channel();
        self.ask(Ask::Push { envelope, answer })?;
        wait.await.map_err(|_| stopped())?
    }

    /// Runs `look` on the state, inside the loop: it must be quick.
    ///
    /// # Errors
    /// [`Code::Busy`] and [`Code::Stopping`] when the loop cannot answer.
    pub async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Node, Time) -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let (answer, wait) = oneshot::channel();
        self.ask(Ask::Read(Box::new(move |node, now| {
            // The asker may have gone away; then nobody misses the answer.
            let _ = answer.send(look(node, now));
        })))?;
        wait.await.map_err(|_| stopped())
    }

    /// Waits until the state says what was just done here, as `look` sees it. Returns whether it does in time.
    ///
    /// # Errors
    /// As [`AgentHandle::read`].
    pub async fn is_told(
        &self,
        look: impl Fn(&Node) -> bool + Clone + Send + 'static,
    ) -> Result<bool, Problem> {
        let until = Instant::now() + TOLD_PATIENCE;
        loop {
            let look = look.clone();
            if self.read(move |node, _| look(node)).await? {
                return Ok(true);
            }
            if Instant::now() > until {
                return Ok(false);
            }
            sleep(LOOK_EVERY).await;
        }
    }

    fn ask(&self, ask: Ask) -> Result<(), Problem> {
        self.asks.try_send(ask).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                Problem::new(Code::Busy, "the node has more questions than it can answer now")
                    .advice("try again in a second, or ask another node")
            }
            mpsc::error::TrySendError::Closed(_) => stopped(),
        })
    }
}

fn stopped() -> Problem {
    Problem::new(Code::Stopping, "the node's agent is stopping").advice("try again, or ask another node")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn questions_to_a_loop_that_hangs_are_bounded_and_the_next_is_told_to_come_again() {
        let (agent, questions) = AgentHandle::new();
        let ask = || {
            let agent = agent.clone();
            tokio::spawn(async move { agent.read(|_, _| ()).await })
        };
        let waiting: Vec<_> = (0..MAX_WAITING).map(|_| ask()).collect();
        let refused = ask().await.unwrap().unwrap_err();
        assert_eq!(refused.code, Code::Busy);
        assert!(waiting.iter().all(|asked| !asked.is_finished()));
        drop(questions);
        for asked in waiting {
            assert_eq!(asked.await.unwrap().unwrap_err().code, Code::Stopping);
        }
    }
}
