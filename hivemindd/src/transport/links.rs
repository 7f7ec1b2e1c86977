//! Which connections and dials there are, and which of two connections stays.
//!
//! ```text
//!            want                      admitted                 ended
//!   nothing ------> pending + dial ------------------> live ------------> nothing
//!                        │  dial failed: pending messages are dropped       ▲
//!                        └──────────────────────────────────────────────────┘
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hivemind_spec::id::NodeId;
use quinn::Connection;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

/// Messages that wait for one peer's connection to take them: more than the core says to one peer
/// between two rounds.
pub(super) const MAX_QUEUED_MESSAGES: usize = 256;

/// Bytes of messages that wait for one connected peer. When a peer takes less than it is sent,
/// what is over is lost, and anti-entropy brings it later.
pub(super) const MAX_QUEUED_BYTES: usize = 8 * 1024 * 1024;

/// Messages kept for a peer while it is dialled; the oldest go first, as they say the least.
const MAX_PENDING_MESSAGES: usize = 64;

/// Bytes kept for a peer while it is dialled.
const MAX_PENDING_BYTES: usize = 5 * 1024 * 1024;

/// Peers and addresses kept in mind: several times the largest cluster.
pub(super) const MAX_PEERS: usize = 1024;

/// How long after a connection was made one from the other side counts as made at the same time.
/// Later ones mean that the peer has lost the first.
const RACE_WINDOW: Duration = Duration::from_secs(3);

/// How soon after it was connected to an address is dialled again. Two machines with one identity take
/// each other's connections away; this keeps them from doing so all the time.
const REDIAL_PAUSE: Duration = Duration::from_secs(1);

/// Delay after the first failed dial; doubles with each one, up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(250);

/// The longest delay between dials of a wanted address: a machine that comes back must be
/// reached within seconds.
const MAX_BACKOFF: Duration = Duration::from_secs(2);

/// An encoded message.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    /// Its bytes, with the stream's first byte.
    pub(super) bytes: bytes::Bytes,
    /// Whether it may travel as a datagram.
    pub(super) datagram: bool,
}

/// A connection that was admitted.
#[derive(Debug, Clone)]
pub(super) struct Live {
    pub(super) connection: Connection,
    pub(super) we_dialled: bool,
    opened: Instant,
    queue: mpsc::Sender<Frame>,
    queued_bytes: Arc<AtomicUsize>,
}

/// The reading end of a connection's queue.
#[derive(Debug)]
pub(super) struct Queue {
    frames: mpsc::Receiver<Frame>,
    queued_bytes: Arc<AtomicUsize>,
}

impl Queue {
    pub(super) async fn next(&mut self) -> Option<Frame> {
        let frame = self.frames.recv().await?;
        self.queued_bytes.fetch_sub(frame.bytes.len(), Ordering::Relaxed);
        Some(frame)
    }
}

impl Live {
    pub(super) fn new(connection: Connection, we_dialled: bool) -> (Self, Queue) {
        let (queue, frames) = mpsc::channel(MAX_QUEUED_MESSAGES);
        let queued_bytes = Arc::new(AtomicUsize::new(0));
        let live = Self {
            connection,
            we_dialled,
            opened: Instant::now(),
            queue,
            queued_bytes: queued_bytes.clone(),
        };
        (live, Queue { frames, queued_bytes })
    }

    pub(super) fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    /// Sends at once as a datagram, or queues. False when the message is lost.
    pub(super) fn send(&self, frame: Frame) -> bool {
        let datagram_bytes = frame.bytes.len() - 1;
        if frame.datagram && self.connection.max_datagram_size().is_some_and(|max| datagram_bytes <= max) {
            return self.connection.send_datagram(frame.bytes.slice(1..)).is_ok();
        }
        let bytes = frame.bytes.len();
        if self.queued_bytes.load(Ordering::Relaxed) + bytes > MAX_QUEUED_BYTES {
            return false;
        }
        self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let taken = self.queue.try_send(frame).is_ok();
        if !taken {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        taken
    }
}

/// Which of two connections with one peer stays: the newer, unless both sides dialled at the same
/// time; then the one that the lower node id dialled, which both sides agree on.
pub(super) fn newer_stays(
    (me, peer): (NodeId, NodeId),
    older_dialled_by_me: bool,
    newer_dialled_by_me: bool,
    older_age: Duration,
) -> bool {
    let raced = older_dialled_by_me != newer_dialled_by_me && older_age < RACE_WINDOW;
    !raced || newer_dialled_by_me == (me < peer)
}

/// What is known of one peer.
#[derive(Debug, Default)]
pub(super) struct Link {
    pub(super) live: Option<Live>,
    pending: VecDeque<Frame>,
    pending_bytes: usize,
}

impl Link {
    fn keep(&mut self, frame: Frame) {
        self.pending_bytes += frame.bytes.len();
        self.pending.push_back(frame);
        while self.pending.len() > MAX_PENDING_MESSAGES || self.pending_bytes > MAX_PENDING_BYTES {
            if let Some(dropped) = self.pending.pop_front() {
                self.pending_bytes -= dropped.bytes.len();
            }
        }
    }

    fn take_pending(&mut self) -> VecDeque<Frame> {
        self.pending_bytes = 0;
        std::mem::take(&mut self.pending)
    }
}

/// One address that is or was dialled.
#[derive(Debug)]
pub(super) struct Dial {
    /// Whether a task dials it.
    pub(super) running: bool,
    /// Not before.
    pub(super) next: Instant,
    /// Cuts a backoff short: there is news of this address.
    pub(super) news: Arc<Notify>,
    /// Dial again until then, also after failures.
    wanted_until: Instant,
    failures: u32,
    /// For whom messages are pending.
    nodes: BTreeSet<NodeId>,
}

impl Dial {
    fn new(now: Instant) -> Self {
        Self {
            running: false,
            next: now,
            news: Arc::default(),
            wanted_until: now,
            failures: 0,
            nodes: BTreeSet::new(),
        }
    }
}

/// How a dial ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// There is a connection.
    Connected,
    /// The other side's connection is on its way.
    Duplicate,
    /// Nobody there, or refused.
    Failed,
    /// It is this node's own address.
    Myself,
}

/// All links and dials.
#[derive(Debug, Default)]
pub(super) struct Links {
    pub(super) peers: BTreeMap<NodeId, Link>,
    pub(super) dials: BTreeMap<SocketAddr, Dial>,
    pub(super) closed: bool,
}

impl Links {
    /// The open connection to a peer.
    pub(super) fn live(&self, node: NodeId) -> Option<&Live> {
        self.peers.get(&node)?.live.as_ref().filter(|live| live.is_open())
    }

    /// Sends, or keeps the message for the connection to come. True when a dial must be started.
    pub(super) fn send(&mut self, node: NodeId, address: SocketAddr, frame: Frame, now: Instant) -> bool {
        if let Some(live) = self.live(node) {
            if !live.send(frame) {
                tracing::debug!(node = %node.short(), "the peer is slower than what it is sent: message lost");
            }
            return false;
        }
        if self.closed || (self.peers.len() >= MAX_PEERS && !self.peers.contains_key(&node)) {
            return false;
        }
        self.peers.entry(node).or_default().keep(frame);
        self.want(address, Some(node), now)
    }

    /// Notes that an address is wanted for a node. True when a dial must be started.
    pub(super) fn want(&mut self, address: SocketAddr, node: Option<NodeId>, now: Instant) -> bool {
        if self.closed || !self.make_room(address, now) {
            return false;
        }
        let dial = self.dials.entry(address).or_insert_with(|| Dial::new(now));
        dial.nodes.extend(node);
        !std::mem::replace(&mut dial.running, true)
    }

    /// Notes news of an address: it is dialled for a while, at once. True when a dial must be
    /// started.
    pub(super) fn hint(&mut self, address: SocketAddr, now: Instant, patience: Duration) -> bool {
        let connected = self.peers.values().filter_map(|link| link.live.as_ref());
        if connected
            .filter(|live| live.is_open())
            .any(|live| canonical(live.connection.remote_address()) == address)
        {
            return false;
        }
        let start = self.want(address, None, now);
        if let Some(dial) = self.dials.get_mut(&address) {
            dial.wanted_until = now + patience;
            if dial.next < now + MAX_BACKOFF {
                dial.next = dial.next.min(now + MIN_BACKOFF);
                dial.news.notify_one();
            }
        }
        start
    }

    /// Forgets addresses that nobody wants. False when there is still no room for a new one.
    fn make_room(&mut self, address: SocketAddr, now: Instant) -> bool {
        if self.dials.len() >= MAX_PEERS && !self.dials.contains_key(&address) {
            self.dials.retain(|_, dial| dial.running || dial.next > now);
        }
        self.dials.len() < MAX_PEERS || self.dials.contains_key(&address)
    }

    /// Takes note of how a dial ended. True when it is to be tried again.
    pub(super) fn dialled(
        &mut self,
        address: SocketAddr,
        outcome: Outcome,
        now: Instant,
        jitter: u64,
    ) -> bool {
        let Some(dial) = self.dials.get_mut(&address) else { return false };
        let again = match outcome {
            Outcome::Connected => {
                dial.failures = 0;
                dial.next = now + REDIAL_PAUSE;
                false
            }
            Outcome::Duplicate => {
                dial.next = now + 2 * MIN_BACKOFF;
                dial.nodes.iter().any(|node| self.peers.get(node).is_some_and(|link| link.live.is_none()))
            }
            Outcome::Failed => {
                dial.next = now + backoff(dial.failures, jitter);
                dial.failures = dial.failures.saturating_add(1);
                now < dial.wanted_until
            }
            Outcome::Myself => {
                // It stays ours until the address changes; a minute is a cheap way to notice.
                dial.next = now + Duration::from_secs(60);
                false
            }
        };
        if outcome != Outcome::Duplicate || !again {
            for node in std::mem::take(&mut dial.nodes) {
                self.drop_if_idle(node);
            }
        }
        if let Some(dial) = self.dials.get_mut(&address) {
            dial.running = again;
        }
        again
    }

    /// Forgets what was pending for a peer that has no connection.
    fn drop_if_idle(&mut self, node: NodeId) {
        if self.peers.get(&node).is_some_and(|link| link.live.is_none()) {
            self.peers.remove(&node);
        }
    }

    /// Takes an admitted connection into use. The one it replaces, if any; or `Err` when the
    /// older one stays.
    pub(super) fn admit(
        &mut self,
        me: NodeId,
        node: NodeId,
        live: &Live,
        now: Instant,
    ) -> Result<Option<Live>, ()> {
        if self.closed || (self.peers.len() >= MAX_PEERS && !self.peers.contains_key(&node)) {
            return Err(());
        }
        if let Some(older) = self.live(node)
            && !newer_stays((me, node), older.we_dialled, live.we_dialled, now - older.opened)
        {
            return Err(());
        }
        let link = self.peers.entry(node).or_default();
        for frame in link.take_pending() {
            live.send(frame);
        }
        Ok(link.live.replace(live.clone()))
    }

    /// Takes note that a connection ended. True when it was the one in use.
    pub(super) fn ended(&mut self, node: NodeId, stable_id: usize) -> bool {
        let Some(link) = self.peers.get_mut(&node) else { return false };
        if link.live.as_ref().is_none_or(|live| live.connection.stable_id() != stable_id) {
            return false;
        }
        link.live = None;
        if link.pending.is_empty() {
            self.peers.remove(&node);
        }
        true
    }
}

/// The delay after `failures` earlier ones, spread by `jitter` so that nodes powered on together
/// do not dial in step: half to all of the doubled delay.
fn backoff(failures: u32, jitter: u64) -> Duration {
    let full = MIN_BACKOFF.saturating_mul(1 << failures.min(6)).min(MAX_BACKOFF);
    let half_ms = u64::try_from(full.as_millis() / 2).unwrap_or(0).max(1);
    Duration::from_millis(half_ms + jitter % half_ms)
}

/// An address without IPv4 being dressed up as IPv6, as it is on a socket for both.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_keep_the_same_of_two_connections() {
        let (low, high) = (NodeId([1; 16]), NodeId([2; 16]));
        let young = Duration::from_millis(100);
        // Whatever order the two connections come in at either side, the one dialled by `low` stays.
        for low_dialled_is_newer in [true, false] {
            let at_low = newer_stays((low, high), !low_dialled_is_newer, low_dialled_is_newer, young);
            let at_high = newer_stays((high, low), low_dialled_is_newer, !low_dialled_is_newer, young);
            assert_eq!((at_low, at_high), (low_dialled_is_newer, low_dialled_is_newer));
        }
    }

    #[test]
    fn a_peer_that_dials_again_has_lost_the_old_connection() {
        let (low, high) = (NodeId([1; 16]), NodeId([2; 16]));
        assert!(newer_stays((low, high), true, false, RACE_WINDOW));
        assert!(newer_stays((low, high), false, false, Duration::ZERO));
        assert!(newer_stays((high, low), true, true, Duration::ZERO));
    }

    #[test]
    fn backoff_grows_spreads_and_is_capped() {
        for jitter in [0, 77, u64::MAX] {
            assert!(backoff(0, jitter) <= MIN_BACKOFF);
            assert!(backoff(40, jitter) <= MAX_BACKOFF);
            assert!(backoff(40, jitter) >= MAX_BACKOFF / 2);
        }
        assert_ne!(backoff(3, 1), backoff(3, 2));
    }

    #[test]
    fn an_address_is_dialled_once_at_a_time_and_its_messages_are_bounded() {
        let mut links = Links::default();
        let (node, now) = (NodeId([1; 16]), Instant::now());
        let address = "10.77.0.12:7946".parse().unwrap();
        let frame = Frame { bytes: vec![0; 100_000].into(), datagram: false };
        let started = (0..200).filter(|_| links.send(node, address, frame.clone(), now)).count();
        assert_eq!(started, 1);
        assert!(links.peers[&node].pending.len() <= MAX_PENDING_MESSAGES);
        assert!(links.peers[&node].pending_bytes <= MAX_PENDING_BYTES);
        assert!(!links.dialled(address, Outcome::Failed, now, 0));
        assert!(links.peers.is_empty());
        assert!(links.dials[&address].next > now);
    }

    #[test]
    fn addresses_in_mind_are_bounded() {
        let mut links = Links::default();
        let now = Instant::now();
        for port in 1..=u16::try_from(2 * MAX_PEERS).unwrap() {
            links.hint(SocketAddr::new([10, 0, 0, 1].into(), port), now, Duration::ZERO);
        }
        assert_eq!(links.dials.len(), MAX_PEERS);
    }
}
