//! Membership: who is alive, by SWIM (foca), without sockets or clocks.
//!
//! foca's timers run on a clock of their own that stands still while this node was late: a node
//! that was frozen, or starved of CPU, must not accuse others of its own absence (foca has no
//! Lifeguard).
//!
//! Whom this node hears is alive, whatever it or others thought: a node that comes back from the
//! other side of a partition takes for dead whom it could not reach, and the larger side must not
//! have to begin anew because of it. In SWIM alone the dead stay dead, and return as somebody else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use foca::{
    Config, Foca, Header, Incarnation, Member, Message, NoCustomBroadcast, Notification, PeriodicParams,
    PostcardCodec, ProbeNumber, State, Timer,
};
use hivemind_spec::id::NodeId;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::event::Peer;
use crate::time::Time;

/// The largest SWIM packet, bytes: a QUIC datagram before path-MTU discovery carries 1162, of
/// which our own message framing takes a few.
pub const MAX_PACKET_BYTES: usize = 1100;

/// One member is probed this often. With three nodes every member is probed within two periods by each
/// of the others. Probing is what an idle node does: a shorter period costs in proportion.
const PROBE_PERIOD: Duration = Duration::from_millis(1500);

/// An answer later than this is asked for by way of others. Machines under software emulation
/// answer in tens of milliseconds, and in hundreds when they start containers.
const PROBE_RTT: Duration = Duration::from_millis(450);

/// How long a suspect may refute. Together with probing (at most three periods) a dead node is
/// known to all within about seven seconds, which leaves five for starting its replicas anew.
const SUSPECT_TO_DOWN: Duration = Duration::from_millis(2500);

/// A suspect is told so this often by whoever suspects it, and asked to answer: six times within the
/// shortest time it has to refute. Rumours alone reach it by chance.
const ASK_EVERY_MS: u64 = 400;

/// So many others are asked to ask it as well, each time the next ones: only this node's own cable to it may be
/// cut. Where there is but one other it is asked so often: that way is four cables long, and each loses packets.
const ASKED_BY: usize = 2;

/// The number of the probe with which it is asked. Should foca's own have it at the time, then that
/// is answered as well.
const ASKED: ProbeNumber = 0;

/// Whoever did not answer an announcement with its list of members is asked again after this long: without it a
/// node that joins hears of members it cannot reach only by and by.
const ANNOUNCE_AGAIN_MS: u64 = 1000;

/// How often; each announcement and each list may be lost.
const ANNOUNCEMENTS: u8 = 6;

/// Whoever hears that a member is suspected says that it has heard it if that was within this time, milliseconds:
/// less than it takes to suspect the dead, so that these are known to be as soon.
const VOUCHED_MS: u64 = 1000;

/// Whoever comes back is asked about so many others that are taken for dead: a packet each.
const DOUBTED: usize = 16;

/// Updates waiting to be spread go out this often, apart from riding on probes.
const GOSSIP_EVERY: Duration = Duration::from_millis(500);

/// How long a node that came up is not believed when it calls others dead, milliseconds: what it
/// says may be from before, when it could not reach them. It has told all of it, ten times over,
/// by then.
const RETURNING_MS: u64 = 10_000;

/// How long this node has taken a member for dead before another's list of members brings it back,
/// milliseconds: a death is known to all within fifteen seconds, and whoever lists the member after that hears
/// it, or is told by those who do.
const LISTED_MS: u64 = 20_000;

/// How late a timer may be before the delay is put down to this node itself.
const OWN_LATENESS_MS: u64 = 300;

/// Members kept: more than any cluster this is meant for has.
pub const MAX_MEMBERS: usize = 2000;

/// A member as foca knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The node.
    pub node: NodeId,
    /// The address of its QUIC port.
    pub address: SocketAddr,
    /// How often it has booted.
    pub boot: u64,
    /// How often it took a new identity within one boot: after being declared dead, or moving.
    pub generation: u32,
}

impl foca::Identity for Identity {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        Some(Self { generation: self.generation.checked_add(1)?, ..*self })
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        (self.boot, self.generation, self.address) > (adversary.boot, adversary.generation, adversary.address)
    }
}

/// What came of handing something to membership.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Packets to send.
    pub sends: Vec<(Peer, Vec<u8>)>,
    /// Members that were found alive.
    pub up: Vec<Peer>,
    /// Members that were found dead.
    pub down: Vec<NodeId>,
    /// By how much this node was late in doing what was due, milliseconds.
    pub late_ms: u64,
}

/// Why a packet was dropped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// The connection's peer is not the packet's sender.
    #[error("it came from node {from} and claims to be from node {claimed}")]
    Spoofed {
        /// The peer.
        from: NodeId,
        /// The sender in the header.
        claimed: NodeId,
    },
    /// It is not a SWIM packet.
    #[error("it is not a membership packet: {0}")]
    Malformed(String),
}

type Swim = Foca<Identity, PostcardCodec, ChaCha8Rng, NoCustomBroadcast>;

/// This node's view of who is alive.
pub struct Membership {
    foca: Swim,
    runtime: Gathered,
    timers: BTreeMap<(u64, u64), Timer<Identity>>,
    next_timer: u64,
    /// Whom this node suspects itself, and when it next asks each, on foca's clock.
    suspects: BTreeMap<NodeId, (u64, Member<Identity>)>,
    /// To whom this node announced itself and who has not answered: when it does so again, on foca's clock, and
    /// how often it has.
    announced: BTreeMap<NodeId, (u64, u8, SocketAddr)>,
    /// The probe that was answered last. Its later stages are not worth waking for.
    answered: Option<(NodeId, ProbeNumber)>,
    /// Milliseconds by which this node was late in all: foca's clock is behind by them.
    lost_ms: u64,
    /// When each member was last heard by this node itself, monotonic milliseconds.
    heard_ms: BTreeMap<NodeId, u64>,
    /// When each member came up, monotonic milliseconds.
    up_ms: BTreeMap<NodeId, u64>,
    /// When each that is taken for dead was found to be, monotonic milliseconds.
    down_ms: BTreeMap<NodeId, u64>,
    /// Those that were revoked: nothing brings them back.
    expelled: BTreeSet<NodeId>,
}

/// Collects what foca wants done.
#[derive(Default)]
struct Gathered {
    sends: Vec<(Identity, Vec<u8>)>,
    /// Whom this node probed last.
    probed: Option<(NodeId, ProbeNumber)>,
    /// How often this node has refuted a suspicion, as it told it last.
    incarnation: Incarnation,
    timers: Vec<(Timer<Identity>, Duration)>,
    up: Vec<Identity>,
    down: Vec<Identity>,
}

impl foca::Runtime<Identity> for &mut Gathered {
    fn notify(&mut self, notification: Notification<'_, Identity>) {
        match notification {
            Notification::MemberUp(member) => self.up.push(*member),
            Notification::MemberDown(member) => self.down.push(*member),
            _ => {}
        }
    }

    fn send_to(&mut self, to: Identity, data: &[u8]) {
        if let Ok((header, _)) = header_of(data) {
            self.incarnation = header.src_incarnation;
            if let Message::Ping(number) = header.message {
                self.probed = Some((to.node, number));
            }
        }
        self.sends.push((to, data.to_vec()));
    }

    fn submit_after(&mut self, event: Timer<Identity>, after: Duration) {
        self.timers.push((event, after));
    }
}

/// A packet's updates: their number (big-endian), the members, and what follows them. `None` when they cannot
/// be read.
fn updates_of(updates: &[u8]) -> Option<(Vec<Member<Identity>>, &[u8])> {
    let (count, mut rest) = updates.split_first_chunk::<2>()?;
    let mut members = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (member, after) = postcard::take_from_bytes(rest).ok()?;
        members.push(member);
        rest = after;
    }
    Some((members, rest))
}

fn header_of(packet: &[u8]) -> Result<(Header<Identity>, &[u8]), postcard::Error> {
    postcard::take_from_bytes(packet)
}

impl Membership {
    /// Starts alone.
    pub fn new(identity: Identity, rng: ChaCha8Rng) -> Self {
        Self {
            foca: Foca::new(identity, config(1), rng, PostcardCodec),
            runtime: Gathered::default(),
            timers: BTreeMap::new(),
            next_timer: 0,
            suspects: BTreeMap::new(),
            announced: BTreeMap::new(),
            answered: None,
            lost_ms: 0,
            heard_ms: BTreeMap::new(),
            up_ms: BTreeMap::new(),
            down_ms: BTreeMap::new(),
            expelled: BTreeSet::new(),
        }
    }

    /// This node as others know it.
    pub fn identity(&self) -> Identity {
        *self.foca.identity()
    }

    /// The others that are alive, as far as is known here.
    pub fn alive(&self) -> BTreeSet<NodeId> {
        self.foca.iter_members().map(|m| m.id().node).collect()
    }

    /// Where a member is, if it is alive.
    pub fn peer(&self, node: NodeId) -> Option<Peer> {
        self.peers().find(|peer| peer.node == node)
    }

    /// The others that are alive and where they are.
    pub fn peers(&self) -> impl Iterator<Item = Peer> + '_ {
        self.foca.iter_members().map(|m| Peer { node: m.id().node, address: m.id().address })
    }

    /// When it next wants to be called, monotonic milliseconds.
    pub fn wake_at(&self) -> Option<u64> {
        let asks = self.suspects.values().map(|(due, _)| *due);
        let announces = self.announced.values().map(|(due, ..)| *due);
        self.next_pressing()
            .into_iter()
            .chain(asks)
            .chain(announces)
            .min()
            .map(|due| due.saturating_add(self.lost_ms))
    }

    /// When the first timer is due that something comes of, on foca's clock.
    fn next_pressing(&self) -> Option<u64> {
        self.timers.iter().find(|(_, timer)| self.is_pressing(timer)).map(|((due, _), _)| *due)
    }

    /// Whether something comes of a timer as things are. One of which nothing comes may wait for
    /// the next that is pressing: an idle node wakes once per probe, not four times.
    fn is_pressing(&self, timer: &Timer<Identity>) -> bool {
        match timer {
            // Asks others to probe a member that has not answered; this one has.
            Timer::SendIndirectProbe { probed_id, .. } => {
                self.answered.is_none_or(|(node, _)| node != probed_id.node)
            }
            // Tells what there is to tell.
            Timer::PeriodicGossip(_) => self.foca.updates_backlog() > 0,
            _ => true,
        }
    }

    /// Makes itself known to a node; what it answers tells about all others.
    pub fn announce(&mut self, now: Time, peer: Peer) -> Outcome {
        if peer.node == self.identity().node {
            return Outcome::default();
        }
        if self.announced.len() < MAX_MEMBERS {
            let due = self.clock(now).saturating_add(ANNOUNCE_AGAIN_MS);
            self.announced.insert(peer.node, (due, 1, peer.address));
        }
        self.announce_to(peer);
        self.collect(now)
    }

    /// Announces itself no more to a node whose connection has ended: whoever connects to it does so anew.
    pub fn disconnected(&mut self, node: NodeId) {
        self.announced.remove(&node);
    }

    fn announce_to(&mut self, peer: Peer) {
        // Which boot the node is in is not known; SWIM accepts an announcement for any.
        let guess = Identity { node: peer.node, address: peer.address, boot: 0, generation: 0 };
        // foca fails only when a packet cannot be encoded, and then nothing was sent.
        let _ = self.foca.announce(guess, &mut self.runtime);
    }

    /// Announces this node anew to those that did not answer.
    fn announce_again(&mut self, clock: u64) {
        self.announced.retain(|_, (due, times, _)| *due > clock || *times < ANNOUNCEMENTS);
        let due: Vec<_> = self.announced.iter_mut().filter(|(_, (due, ..))| *due <= clock).collect();
        let mut again = Vec::new();
        for (node, (due, times, address)) in due {
            *due = clock.saturating_add(ANNOUNCE_AGAIN_MS);
            *times += 1;
            again.push(Peer { node: *node, address: *address });
        }
        again.into_iter().for_each(|peer| self.announce_to(peer));
    }

    /// Moves to another address.
    pub fn change_address(&mut self, now: Time, address: SocketAddr) -> Outcome {
        let old = self.identity();
        if old.address != address {
            let new = Identity { address, generation: old.generation.saturating_add(1), ..old };
            let _ = self.foca.change_identity(new, &mut self.runtime);
        }
        self.collect(now)
    }

    /// Takes a packet that came over the connection to `from`.
    ///
    /// # Errors
    /// When it is not a packet of that node; it changed nothing.
    pub fn receive(&mut self, now: Time, from: NodeId, packet: &[u8]) -> Result<Outcome, PacketError> {
        let malformed = |text: String| PacketError::Malformed(text);
        let (header, updates) = header_of(packet).map_err(|e| malformed(e.to_string()))?;
        if header.src.node != from {
            return Err(PacketError::Spoofed { from, claimed: header.src.node });
        }
        let known = self.foca.iter_membership_state().len();
        if known >= MAX_MEMBERS && !self.foca.iter_membership_state().any(|m| m.id().node == from) {
            return Err(malformed(format!("the limit of {MAX_MEMBERS} members is reached")));
        }
        if let Message::Ack(number) = header.message
            && self.runtime.probed == Some((from, number))
        {
            self.answered = self.runtime.probed;
        }
        // What cannot be read is left to foca to refuse.
        let read = updates_of(updates);
        let told = read.as_ref().map_or(&[][..], |(members, _)| members.as_slice());
        let doubts = self.bring_back(&header.src);
        if header.message == Message::Feed {
            self.announced.remove(&from);
            self.bring_back_listed(now, from, told);
        }
        self.heard_ms.insert(from, now.mono_ms);
        if let Message::ForwardedAck { origin, .. } = header.message {
            // Heard by way of another.
            let _ = self.bring_back(&origin);
            if self.foca.iter_membership_state().any(|m| m.id().node == origin.node) {
                self.heard_ms.insert(origin.node, now.mono_ms);
            }
        }
        let mut answers = self.vouch(now, header.src, told);
        answers.extend(
            doubts.into_iter().map(|dead| self.packet(header.src, Message::Gossip, &Member::down(dead))),
        );
        let believed = read.and_then(|(told, rest)| self.without_hearsay(now, from, told, rest));
        let packet = self.as_meant(header, believed.as_deref().unwrap_or(updates));
        let result = self.foca.handle_data(&packet, &mut self.runtime);
        let mut outcome = self.collect(now);
        outcome.sends.extend(answers);
        match result {
            Ok(()) => Ok(outcome),
            Err(e) if outcome.sends.is_empty() && outcome.up.is_empty() && outcome.down.is_empty() => {
                Err(malformed(e.to_string()))
            }
            Err(_) => Ok(outcome),
        }
    }

    /// Forgets that a member was dead: it speaks. Whoever took more members for dead than it heard was away
    /// itself, and forgets all of it: the others will say who is there, also of those it does not hear. Otherwise
    /// gives those about whom the member is to be asked, as this node may be as wrong about them.
    #[must_use]
    fn bring_back(&mut self, member: &Identity) -> Vec<Identity> {
        let dead = self.dead();
        if !dead.contains(member) {
            return Vec::new();
        }
        let was_away = dead.len() > self.foca.num_members();
        let (forgotten, doubted): (Vec<_>, Vec<_>) =
            dead.into_iter().partition(|other| was_away || other == member);
        forgotten.into_iter().for_each(|other| self.forget(other));
        doubted.into_iter().take(DOUBTED).collect()
    }

    /// Forgets that members were dead whom another lists among its own, long after it must have heard of a
    /// death: where only this node's cable to them is cut.
    fn bring_back_listed(&mut self, now: Time, teller: NodeId, listed: &[Member<Identity>]) {
        if self.is_returning(now, teller) {
            return;
        }
        let long_dead = |id: &Identity| {
            let since = self.down_ms.get(&id.node);
            since.is_some_and(|since| now.mono_ms >= since.saturating_add(LISTED_MS))
        };
        let alive = |id: &Identity| listed.iter().any(|m| m.id() == id && m.state() == State::Alive);
        let back: Vec<_> = self.dead().into_iter().filter(|id| long_dead(id) && alive(id)).collect();
        back.into_iter().for_each(|id| self.forget(id));
    }

    /// Those that are taken for dead and may not be.
    fn dead(&self) -> Vec<Identity> {
        let dead = self.foca.iter_membership_state().filter(|m| m.state() == State::Down);
        dead.map(|m| *m.id()).filter(|id| !self.expelled.contains(&id.node)).collect()
    }

    fn forget(&mut self, dead: Identity) {
        // Removing a member cannot fail.
        let _ = self.foca.handle_timer(Timer::RemoveDown(dead), &mut self.runtime);
        self.down_ms.remove(&dead.node);
    }

    /// A packet as foca is to read it: addressed to this node as it is now if it was meant for its
    /// earlier self. Two members that take new identities at the same time would otherwise be deaf to each other.
    fn as_meant(&self, mut header: Header<Identity>, updates: &[u8]) -> Vec<u8> {
        let me = self.identity();
        if header.dst.node == me.node && header.message != Message::TurnUndead {
            header.dst = me;
        }
        // What was decoded can be encoded.
        let head = postcard::to_stdvec(&header).unwrap_or_default();
        [head.as_slice(), updates].concat()
    }

    /// A packet's updates without those that call dead whom this node knows better; `None` when all may be
    /// believed.
    fn without_hearsay(
        &self,
        now: Time,
        teller: NodeId,
        members: Vec<Member<Identity>>,
        rest: &[u8],
    ) -> Option<Vec<u8>> {
        let count = members.len();
        let hearsay =
            |m: &Member<Identity>| m.state() == State::Down && self.knows_better(now, teller, m.id().node);
        let kept: Vec<_> = members.into_iter().filter(|member| !hearsay(member)).collect();
        if kept.len() == count {
            return None;
        }
        let mut believed = u16::try_from(kept.len()).ok()?.to_be_bytes().to_vec();
        for member in &kept {
            believed.extend(postcard::to_stdvec(member).ok()?);
        }
        believed.extend_from_slice(rest);
        Some(believed)
    }

    /// Answers whoever calls a member dead or suspects it, if this node has just heard it: in its name, as for a
    /// question that was asked by way of this node.
    fn vouch(&self, now: Time, teller: Identity, told: &[Member<Identity>]) -> Vec<(Peer, Vec<u8>)> {
        // A node knows best about itself, and there may be two of it.
        let accused = told.iter().filter(|m| m.id().node != teller.node);
        let accused = accused.filter(|m| match m.state() {
            State::Alive => false,
            State::Suspect => self.has_heard_within(now, m.id().node, VOUCHED_MS),
            State::Down => self.has_heard(now, m.id().node),
        });
        let known = accused.filter_map(|accused| self.foca.iter_members().find(|m| m.id() == accused.id()));
        let vouch = |member: &Member<Identity>| {
            let message = Message::ForwardedAck { origin: *member.id(), probe_number: ASKED };
            // Not as a suspect, or the teller would vouch for it in turn.
            self.packet(teller, message, &Member::new(*member.id(), member.incarnation(), State::Alive))
        };
        known.map(vouch).collect()
    }

    /// Whether this node has heard a member within the time that anybody must wait before calling it dead.
    fn has_heard(&self, now: Time, node: NodeId) -> bool {
        self.has_heard_within(now, node, self.patience_ms())
    }

    fn has_heard_within(&self, now: Time, node: NodeId, ms: u64) -> bool {
        self.heard_ms.get(&node).is_some_and(|at| now.mono_ms < *at + ms)
    }

    /// Whether this node need not believe that a member is dead, or that it is itself: it has heard
    /// it within the time that anybody must wait before calling it so, or the teller was away until
    /// now. In whatever identity: a member that takes a new one calls its old ones dead itself.
    fn knows_better(&self, now: Time, teller: NodeId, accused: NodeId) -> bool {
        let heard = self.has_heard(now, accused);
        let is_member = || self.foca.iter_members().any(|member| member.id().node == accused);
        let returning = self.is_returning(now, teller);
        if accused == self.identity().node { returning } else { is_member() && (heard || returning) }
    }

    /// Whether a member has been back for so short a time that what it says may be from before.
    fn is_returning(&self, now: Time, teller: NodeId) -> bool {
        self.up_ms.get(&teller).is_none_or(|up| now.mono_ms < up + RETURNING_MS)
    }

    /// Declares a node dead at once: an operator revoked it.
    pub fn expel(&mut self, now: Time, node: NodeId) -> Outcome {
        // As many as there are revocations, which are bounded like all documents.
        self.expelled.insert(node);
        let expelled: Vec<_> =
            self.foca.iter_members().filter(|m| m.id().node == node).map(|m| *m.id()).collect();
        let _ = self.foca.apply_many(expelled.into_iter().map(Member::down), true, &mut self.runtime);
        self.collect(now)
    }

    /// Does what is due.
    pub fn advance(&mut self, now: Time) -> Outcome {
        let mut outcome = Outcome::default();
        // Gossip becomes pressing by what was heard just now; that it waited is no lateness.
        let mut timed = self.timers.iter().filter(|(_, timer)| !matches!(timer, Timer::PeriodicGossip(_)));
        if let Some(((due, _), _)) = timed.find(|(_, timer)| self.is_pressing(timer)) {
            let late = self.clock(now).saturating_sub(*due);
            if late > OWN_LATENESS_MS {
                self.lost_ms += late;
                outcome.late_ms = late;
            }
        }
        let clock = self.clock(now);
        let mut due = Vec::new();
        while let Some(entry) = self.timers.first_entry() {
            if entry.key().0 > clock {
                break;
            }
            let (at, timer) = entry.remove_entry();
            match self.respite_ms(now, &timer) {
                Some(ms) => {
                    self.timers.insert((clock.saturating_add(ms), at.1), timer);
                }
                None => due.push(timer),
            }
        }
        // foca wants timers of one instant in its own order.
        due.sort_unstable();
        for timer in due {
            let _ = self.foca.handle_timer(timer, &mut self.runtime);
            let more = self.collect(now);
            outcome.sends.extend(more.sends);
            outcome.up.extend(more.up);
            outcome.down.extend(more.down);
        }
        outcome.sends.extend(self.ask_suspects(clock));
        self.announce_again(clock);
        outcome.sends.extend(self.collect(now).sends);
        outcome
    }

    /// Asks those suspects whose time it is; forgets those who are none any longer. The packet that asks
    /// says what the suspect has to refute: its answer does so already.
    fn ask_suspects(&mut self, clock: u64) -> Vec<(Peer, Vec<u8>)> {
        let is_suspect = |suspect: &Member<Identity>| self.foca.iter_membership_state().any(|m| m == suspect);
        self.suspects.retain(|_, (due, suspect)| *due > clock || is_suspect(suspect));
        let due = self.suspects.values_mut().filter(|(due, _)| *due <= clock);
        let asked: Vec<_> = due
            .map(|(due, suspect)| {
                *due = clock + ASK_EVERY_MS;
                suspect.clone()
            })
            .collect();
        asked.iter().flat_map(|suspect| self.ask(clock, suspect)).collect()
    }

    /// Asks a suspect, and by way of one member after another.
    fn ask(&self, clock: u64, suspect: &Member<Identity>) -> Vec<(Peer, Vec<u8>)> {
        let target = *suspect.id();
        let mut asked = vec![self.packet(target, Message::Ping(ASKED), suspect)];
        let others: Vec<_> =
            self.foca.iter_members().map(|m| *m.id()).filter(|id| id.node != target.node).collect();
        let round = usize::try_from(clock / ASK_EVERY_MS).unwrap_or(0);
        for turn in (0..ASKED_BY).map(|number| round.wrapping_mul(ASKED_BY).wrapping_add(number)) {
            // With none there is nobody to ask.
            let Some(helper) = turn.checked_rem(others.len()).and_then(|turn| others.get(turn)) else {
                break;
            };
            asked.push(self.packet(*helper, Message::PingReq { target, probe_number: ASKED }, suspect));
        }
        asked
    }

    /// A packet that tells of one member.
    fn packet(&self, to: Identity, message: Message<Identity>, told: &Member<Identity>) -> (Peer, Vec<u8>) {
        let header =
            Header { src: self.identity(), src_incarnation: self.runtime.incarnation, dst: to, message };
        // As foca writes it: the header, how many updates there are (big-endian), and those. All are plain
        // numbers, which can be encoded.
        let packet = postcard::to_stdvec(&(header, [0u8, 1], told)).unwrap_or_default();
        (Peer { node: to.node, address: to.address }, packet)
    }

    /// How much longer a suspect has that was heard since: packets that are lost one after another, the
    /// suspicion's and its refutation's among them, must not make it dead. `None`: it is not that, or
    /// its time is up.
    fn respite_ms(&self, now: Time, timer: &Timer<Identity>) -> Option<u64> {
        let Timer::ChangeSuspectToDown { member_id, .. } = timer else { return None };
        let until = self.heard_ms.get(&member_id.node)?.saturating_add(self.patience_ms());
        until.checked_sub(now.mono_ms).filter(|ms| *ms > 0)
    }

    /// How long anybody must have been silent before this node calls it dead, milliseconds.
    fn patience_ms(&self) -> u64 {
        let patience = config(self.foca.num_members() + 1).suspect_to_down_after;
        u64::try_from(patience.as_millis()).unwrap_or(u64::MAX)
    }

    /// When the time of a suspect is up, foca 2.0.0 tells it that it was declared dead also if it
    /// had refuted the suspicion; it would take a new identity and be deaf until others notice.
    fn tells_the_living_they_are_dead(&self, to: &Identity, packet: &[u8]) -> bool {
        let header: Result<(Header<Identity>, _), _> = postcard::take_from_bytes(packet);
        matches!(header, Ok((header, _)) if header.message == Message::TurnUndead)
            && self.foca.iter_members().any(|member| member.id() == to)
    }

    fn clock(&self, now: Time) -> u64 {
        now.mono_ms.saturating_sub(self.lost_ms)
    }

    fn collect(&mut self, now: Time) -> Outcome {
        let clock = self.clock(now);
        for (timer, after) in std::mem::take(&mut self.runtime.timers) {
            let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            if let Timer::ChangeSuspectToDown { member_id, incarnation, .. } = &timer {
                let suspect = Member::new(*member_id, *incarnation, State::Suspect);
                self.suspects.entry(member_id.node).or_insert((clock, suspect));
            }
            self.timers.insert((clock.saturating_add(after_ms), self.next_timer), timer);
            self.next_timer += 1;
        }
        let peer = |id: Identity| Peer { node: id.node, address: id.address };
        let Gathered { probed, incarnation, .. } = self.runtime;
        if probed != self.answered {
            self.answered = None;
        }
        let mut gathered =
            std::mem::replace(&mut self.runtime, Gathered { probed, incarnation, ..Gathered::default() });
        gathered.sends.retain(|(to, packet)| !self.tells_the_living_they_are_dead(to, packet));
        for gone in &gathered.down {
            self.heard_ms.remove(&gone.node);
            self.up_ms.remove(&gone.node);
            self.down_ms.insert(gone.node, now.mono_ms);
        }
        for found in &gathered.up {
            self.down_ms.remove(&found.node);
        }
        if self.down_ms.len() > MAX_MEMBERS {
            let dead: BTreeSet<_> = self.dead().into_iter().map(|dead| dead.node).collect();
            self.down_ms.retain(|node, _| dead.contains(node));
        }
        self.up_ms.extend(gathered.up.iter().map(|member| (member.node, now.mono_ms)));
        if !gathered.up.is_empty() || !gathered.down.is_empty() {
            // Fails only when the probe settings differ, and they never do.
            let _ = self.foca.set_config(config(self.foca.num_members() + 1));
        }
        Outcome {
            sends: gathered.sends.into_iter().map(|(to, data)| (peer(to), data)).collect(),
            up: gathered.up.into_iter().map(peer).collect(),
            down: gathered.down.into_iter().map(|id| id.node).collect(),
            late_ms: 0,
        }
    }
}

/// Settings for a cluster of `members` on a local network.
fn config(members: usize) -> Config {
    let decades = (members.max(10) as f64).log10();
    let few = |n: usize| NonZeroUsize::new(n).unwrap_or(NonZeroUsize::MIN);
    // A rumour reaches everybody in logarithmically many rounds: ten rounds up to ten members,
    // thirty for a thousand.
    let rounds = (decades * 10.0).clamp(10.0, 40.0) as u8;
    Config {
        probe_period: PROBE_PERIOD,
        probe_rtt: PROBE_RTT,
        num_indirect_probes: few(3),
        max_transmissions: NonZeroU8::new(rounds).unwrap_or(NonZeroU8::MIN),
        suspect_to_down_after: SUSPECT_TO_DOWN.mul_f64(decades),
        // Kept for a day: so long nobody else's word brings a dead member back.
        remove_down_after: Some(Duration::from_secs(24 * 3600)),
        max_packet_size: few(MAX_PACKET_BYTES),
        notify_down_members: true,
        periodic_announce: Some(PeriodicParams { frequency: Duration::from_secs(30), num_members: few(1) }),
        periodic_announce_to_down_members: Some(PeriodicParams {
            frequency: Duration::from_secs(10),
            num_members: few(2),
        }),
        periodic_gossip: Some(PeriodicParams { frequency: GOSSIP_EVERY, num_members: few(3) }),
    }
}

#[cfg(test)]
mod tests;
