//! Takes a release: brings what is missing into the spare slot, and starts it when told to.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use hivemind_core::event::{Event, UpdateOrder};
use hivemind_spec::api::{Update, UpdatePhase};
use hivemind_spec::id::{Digest, ReleaseId};
use hivemind_spec::release::OsReleaseSpec;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::{Instant, sleep};

use super::running::Running;
use super::slot::{Missing, SlotError, SpareSlot};
use super::source::{MAX_RANGE_BYTES, Range, Sources};

/// Where the kernel of the release lies until it is started.
const FOLDER: &str = "/var/lib/hivemind/release";

/// How often progress is told, at most: every node of the cluster keeps it.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Pauses after an attempt that failed: short at first, for a server that is just being started.
const PAUSES: [Duration; 4] =
    [Duration::from_secs(2), Duration::from_secs(10), Duration::from_secs(30), Duration::from_secs(120)];

/// The release that is being taken. Clones share it.
#[derive(Clone)]
pub struct Taking {
    running: Running,
    sources: Sources,
    events: mpsc::Sender<Event>,
    order: watch::Sender<Option<UpdateOrder>>,
    /// The slot is for one at a time; what blocks goes on when its task is given up.
    slot: Arc<Mutex<()>>,
}

/// Why an attempt failed.
enum Failure {
    /// It is to be tried again.
    Now(String),
    /// Trying again does not help.
    Never(String),
}

impl From<SlotError> for Failure {
    fn from(error: SlotError) -> Self {
        match error {
            SlotError::Never(why) => Failure::Never(why),
            error => Failure::Now(error.to_string()),
        }
    }
}

impl Taking {
    /// Takes nothing yet. What becomes of it is told to `events`.
    #[must_use]
    pub fn new(running: Running, sources: Sources, events: mpsc::Sender<Event>) -> Self {
        Self { running, sources, events, order: watch::Sender::new(None), slot: Arc::default() }
    }

    /// What is to be taken from now on.
    pub fn set(&self, order: Option<UpdateOrder>) {
        self.order.send_replace(order);
    }

    /// Takes what is ordered, for as long as it is.
    pub async fn run(self) {
        let take = |spec| {
            let taking = self.clone();
            async move { taking.take(&spec).await }
        };
        follow(self.order.subscribe(), take).await;
    }

    /// Enters the release in the boot menu and has the machine started anew. Without one that is whole it says why.
    pub async fn start(&self, release: ReleaseId) {
        let spec = self.order.borrow().as_ref().map(|order| order.spec.clone());
        let Some(spec) = spec.filter(|spec| spec.release == release) else { return };
        let (running, wanted) = (self.running.clone(), spec.clone());
        let entered = self
            .blocking(move || {
                let slot = SpareSlot::open(&running, Path::new(FOLDER), &wanted);
                slot.map_err(|error| error.to_string())?.enter(&running, &wanted)
            })
            .await;
        let started = entered.and_then(|()| {
            hivemind_init::request_reboot()
                .map_err(|error| format!("PID 1 cannot be asked to reboot: {error}"))
        });
        if let Err(reason) = started {
            tracing::error!(%reason, "the release cannot be started");
            self.tell(&spec, UpdatePhase::Failed, 0, reason).await;
        }
    }

    /// Brings the release into the spare slot, however long it takes.
    async fn take(&self, spec: &OsReleaseSpec) {
        let mut pauses = PAUSES.iter();
        loop {
            match self.attempt(spec).await {
                Ok(()) => return,
                Err(Failure::Never(reason)) => {
                    tracing::warn!(%reason, release = %spec.release, "the release cannot be taken");
                    return self.tell(spec, UpdatePhase::Failed, 0, reason).await;
                }
                Err(Failure::Now(reason)) => {
                    tracing::warn!(%reason, release = %spec.release, "the release does not come");
                    let pause = pauses.next().unwrap_or(&PAUSES[PAUSES.len() - 1]);
                    self.tell(spec, UpdatePhase::Fetching, 0, reason).await;
                    sleep(*pause).await;
                }
            }
        }
    }

    async fn attempt(&self, spec: &OsReleaseSpec) -> Result<(), Failure> {
        let (running, wanted) = (self.running.clone(), spec.clone());
        let opened = self.blocking(move || {
            let slot = SpareSlot::open(&running, Path::new(FOLDER), &wanted)?;
            let missing = slot.missing(&running, &wanted)?;
            Ok::<_, SlotError>((Arc::new(slot), missing))
        });
        let (slot, missing) = opened.await?;
        let total = total(spec);
        let left: u64 = missing.iter().map(|missing| u64::from(missing.chunk.bytes)).sum();
        tracing::info!(release = %spec.release, of = total, missing = left, "takes a release");
        let (mut done, mut told, mut moved) = (total - left, Instant::now(), 0);
        self.tell(spec, UpdatePhase::Fetching, done, String::new()).await;
        for (turn, chunks) in ranges(&missing).into_iter().enumerate() {
            let bytes = self.fetch(&slot, chunks, turn).await.map_err(Failure::Now)?;
            (done, moved) = (done + bytes, moved + bytes);
            if told.elapsed() > TELL_EVERY {
                told = Instant::now();
                self.tell(spec, UpdatePhase::Fetching, done, String::new()).await;
            }
        }
        let (checked, wanted) = (Arc::clone(&slot), spec.clone());
        let whole = self.blocking(move || checked.is_whole(&wanted)).await;
        match whole.map_err(|error| Failure::Now(format!("reading the spare slot: {error}")))? {
            true => {
                tracing::info!(release = %spec.release, moved, of = total, "the release is in the spare slot");
                self.tell(spec, UpdatePhase::Ready, total, String::new()).await;
                Ok(())
            }
            false => Err(Failure::Now("the spare slot is not what was written to it".to_owned())),
        }
    }

    /// Brings chunks that lie one behind the other, and says how many bytes they are.
    async fn fetch(&self, slot: &Arc<SpareSlot>, chunks: &[Missing], turn: usize) -> Result<u64, String> {
        let Some(first) = chunks.first() else { return Ok(0) };
        let bytes = chunks.iter().map(|missing| u64::from(missing.chunk.bytes)).sum();
        let range = Range { part: first.part, from: first.place, bytes };
        // Peers may have come or gone since the last one.
        let order = self.order.borrow().clone().ok_or("it is not wanted any longer")?;
        let mut stream = self.sources.open(&order, range, turn).await?;
        let mut buffer = Vec::new();
        for missing in chunks {
            let wanted = missing.chunk.bytes as usize;
            while buffer.len() < wanted {
                match stream.try_next().await? {
                    Some(part) => buffer.extend_from_slice(&part),
                    None => return Err("it ended before its time".to_owned()),
                }
            }
            let rest = buffer.split_off(wanted);
            let chunk = std::mem::replace(&mut buffer, rest);
            if Digest::of(&chunk) != missing.chunk.digest {
                if self.sources.doubt(order.spec.release).await {
                    // The loop may have ended, and then nobody is left to be told.
                    let _ = self.events.send(Event::Brought { release: None }).await;
                    return Err("the copy of what a stick brought is damaged, and was removed".to_owned());
                }
                return Err("what came is not what the release's document says".to_owned());
            }
            let (slot, part, place) = (Arc::clone(slot), missing.part, missing.place);
            let written = self.blocking(move || slot.write(part, place, &chunk)).await;
            written.map_err(|error| format!("writing to the spare slot: {error}"))?;
        }
        Ok(bytes)
    }

    async fn tell(&self, spec: &OsReleaseSpec, phase: UpdatePhase, done_bytes: u64, reason: String) {
        let update = Update { release: spec.release, phase, done_bytes, total_bytes: total(spec), reason };
        // The loop may have ended, and then nobody is left to be told.
        let _ = self.events.send(Event::Updating { update }).await;
    }

    /// Does what blocks, alone.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let alone = Arc::clone(&self.slot).lock_owned().await;
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(alone);
            done
        });
        match done.await {
            Ok(done) => done,
            // It is never aborted, and a panic ends the process.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

/// Does `work` on the release that is ordered. Gives it up when another is, or none; begins anew for each.
async fn follow<F: Future<Output = ()>>(
    mut orders: watch::Receiver<Option<UpdateOrder>>,
    work: impl Fn(OsReleaseSpec) -> F,
) {
    let wanted = |order: &Option<UpdateOrder>| order.as_ref().map(|order| order.spec.clone());
    loop {
        let spec = wanted(&orders.borrow_and_update());
        let done = async {
            if let Some(spec) = spec.clone() {
                work(spec).await;
            }
            std::future::pending::<()>().await;
        };
        // Other peers are no other release.
        tokio::select! {
            changed = orders.wait_for(|order| wanted(order) != spec) => if changed.is_err() {
                return;
            },
            () = done => {}
        }
    }
}

fn total(spec: &OsReleaseSpec) -> u64 {
    spec.root.bytes + spec.kernel.bytes
}

/// Chunks that lie one behind the other, as far as they are asked for at a time.
fn ranges(missing: &[Missing]) -> Vec<&[Missing]> {
    let mut ranges = Vec::new();
    let mut begin = 0;
    for index in 1..=missing.len() {
        let (Some(first), Some(last)) = (missing.get(begin), missing.get(index - 1)) else { break };
        let end = last.place + u64::from(last.chunk.bytes);
        let goes_on = missing.get(index).is_some_and(|next| {
            let with_next = next.place + u64::from(next.chunk.bytes) - first.place;
            next.part == last.part && next.place == end && with_next <= MAX_RANGE_BYTES
        });
        if !goes_on {
            ranges.push(&missing[begin..index]);
            begin = index;
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use hivemind_spec::id::ReleaseId;
    use hivemind_spec::release::{Architecture, Chunk, ReleaseFile};

    use super::*;
    use crate::release::source::Part;

    fn missing(part: Part, place: u64, bytes: u32) -> Missing {
        Missing { part, place, chunk: Chunk { bytes, digest: Digest([0; 32]) } }
    }

    fn order(number: u8) -> Option<UpdateOrder> {
        let file = ReleaseFile::of(&[number][..]).unwrap();
        let spec = OsReleaseSpec {
            version: "1.0.0".to_owned(),
            release: ReleaseId([number; 8]),
            architecture: Architecture::Amd64,
            minimum: "1.0.0".to_owned(),
            root: file.clone(),
            kernel: file,
            sources: Vec::new(),
            paused: false,
        };
        Some(UpdateOrder { spec, peers: Vec::new() })
    }

    #[tokio::test(start_paused = true)]
    async fn each_release_that_is_ordered_is_taken_once_also_after_one_that_was_done_with() {
        let (orders, receiver) = watch::channel(None);
        let begun = RefCell::new(Vec::new());
        let work = follow(receiver, |spec| {
            begun.borrow_mut().push(spec.release.0[0]);
            // The second one never ends by itself.
            sleep(if spec.release.0[0] == 2 { Duration::from_secs(1_000_000) } else { Duration::ZERO })
        });
        let give = async {
            for order in [order(1), order(1), order(2), None, order(2), order(3), order(1)] {
                orders.send_replace(order);
                sleep(Duration::from_secs(1)).await;
            }
            drop(orders);
        };
        tokio::join!(work, give);
        assert_eq!(*begun.borrow(), [1, 2, 2, 3, 1]);
    }

    #[test]
    fn what_lies_together_is_asked_for_at_once_and_no_more_than_a_peer_holds() {
        let half = u32::try_from(MAX_RANGE_BYTES / 2).unwrap();
        let list = [
            missing(Part::Root, 0, half),
            missing(Part::Root, u64::from(half), half),
            missing(Part::Root, u64::from(2 * half), 10),
            missing(Part::Root, u64::from(2 * half) + 11, 10),
            missing(Part::Kernel, u64::from(2 * half) + 21, 10),
        ];
        let lengths: Vec<usize> = ranges(&list).iter().map(|range| range.len()).collect();
        assert_eq!(lengths, [2, 1, 1, 1]);
        assert!(ranges(&[]).is_empty());
    }
}
