//! A simulated machine: its power, clock, cable and disk.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;

use hivemind_core::cluster::ContainerRange;
use hivemind_core::event::{BatchId, ContainerId, NetworkPlan, NodeFacts, Note, RequestId};
use hivemind_core::isolation::Isolation;
use hivemind_core::node::{Node, Settings};
use hivemind_core::time::Time;
use hivemind_spec::api::{Accepted, Capacity, Release};
use hivemind_spec::dsse::Envelope;
use hivemind_spec::id::{ClusterId, NodeId, ReleaseId, TokenId};
use hivemind_spec::key::SigningKey;
use hivemind_spec::problem::Problem;
use hivemind_spec::release::Architecture;

use super::cast::{self, START_MS};
use super::runtime::Runtime;

/// The port of every node's QUIC endpoint.
const PEER_PORT: u16 = 7946;

/// What the monotonic clock shows when the agent starts after power-on, milliseconds.
const BOOT_MS: u64 = 1000;

/// Writes of one batch: key and value; `None` removes.
pub type Writes = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// A machine.
pub struct Machine {
    /// Its node's id.
    pub id: NodeId,
    /// Where its node listens.
    pub address: SocketAddr,
    /// Its node, while the agent runs.
    pub node: Option<Node>,
    /// Its subnet, as it remembers it beside its identity.
    pub subnet: Option<u16>,
    /// What is durable.
    pub disk: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Batches that are being written: a power cut may lose or tear them.
    pub unsynced: BTreeMap<BatchId, Writes>,
    /// How long a flush takes, milliseconds.
    pub flush_ms: Range<u64>,
    /// Whether its writes fail.
    pub disk_full: bool,
    /// When its store was last set aside as damaged, milliseconds of the world.
    pub damaged_ms: Option<u64>,
    /// Its containers.
    pub runtime: Runtime,
    /// Until when containers may run, by its monotonic clock: PID 1 kills them then.
    pub fences: BTreeMap<ContainerId, u64>,
    /// What its node told people.
    pub notes: Vec<Note>,
    /// The network plans its node handed out.
    pub plans: Vec<NetworkPlan>,
    /// Whom its containers reach, as its node said last.
    pub isolation: Isolation,
    /// Answers to pushes.
    pub replies: BTreeMap<RequestId, Result<Accepted, Problem>>,
    /// What its wall clock is off by, milliseconds.
    pub clock_offset_ms: i64,
    /// How much faster its clocks run than the world's, millionths.
    pub drift_ppm: i64,
    /// Whether its network cable is out: it has no address then.
    pub unplugged: bool,
    /// The release of its operating system.
    pub release: ReleaseId,
    /// Whether that still has to prove itself.
    pub on_trial: bool,
    /// The release it goes back to.
    pub(super) release_before: ReleaseId,
    /// Releases that failed on it.
    pub failed_releases: Vec<ReleaseId>,
    /// The machines it was told to ask for the release that it takes, the last time.
    pub asked_for_release: Vec<NodeId>,
    /// Releases that do not do well on it.
    pub unfit: BTreeSet<ReleaseId>,
    /// How long writing to its boot menu may take, milliseconds. What is not written when the power goes is lost.
    pub menu_late_ms: u64,
    /// Messages to and from it that are lost, in percent, and how much longer the others take,
    /// milliseconds.
    pub bad_cable: (u32, u64),
    /// How late its events may be handled, milliseconds: it has little CPU.
    pub starved_ms: u64,
    /// What its workloads may use.
    pub capacity: Capacity,
    /// The devices that its node looks for.
    pub asked: BTreeSet<String>,
    /// Whether it has the only device there is.
    pub has_modem: bool,
    /// Labels of its machine configuration.
    pub labels: BTreeMap<String, String>,
    pub(super) connected: BTreeSet<usize>,
    /// When it last connected to another.
    pub(super) dialled_ms: BTreeMap<usize, u64>,
    pub(super) frozen_until_ms: u64,
    pub(super) wake_ms: Option<u64>,
    /// By how much its wall clock went on while the world stood still, milliseconds.
    pub(super) passed_ms: u64,
    /// The same of its monotonic clock since the power came.
    pub(super) slept_ms: u64,
    /// Until when its agent is busy with events that came before.
    pub(super) busy_ms: u64,
    /// When the newest inventory that is under way arrives.
    pub(super) told_ms: u64,
    /// Until when its disk is busy: batches are flushed one after another.
    pub(super) disk_busy_ms: u64,
    /// Counts the agent's starts; what was under way before one does not reach it.
    pub(super) boot: u64,
    powered_ms: u64,
    /// When its agent was started, by the world's clock.
    pub(super) started_ms: u64,
    seed: [u8; 32],
    token: String,
    document: Option<Envelope>,
}

/// What machines come with.
pub const FIRST_RELEASE: ReleaseId = ReleaseId([1; 8]);

impl Machine {
    pub(super) fn new(index: usize, token: &str, document: Option<Envelope>) -> Self {
        let number = u16::try_from(index + 1).unwrap_or(u16::MAX);
        let mut seed = [number.to_be_bytes()[1]; 32];
        seed[0] = number.to_be_bytes()[0];
        let chain = cast::chain(token, &SigningKey::from_seed(seed));
        let [high, low] = number.to_be_bytes();
        Self {
            id: NodeId::of(&chain[0]),
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 18, high, low)), PEER_PORT),
            node: None,
            subnet: None,
            disk: BTreeMap::new(),
            unsynced: BTreeMap::new(),
            flush_ms: 3..4,
            disk_full: false,
            damaged_ms: None,
            runtime: Runtime::default(),
            fences: BTreeMap::new(),
            notes: Vec::new(),
            plans: Vec::new(),
            isolation: Isolation::default(),
            replies: BTreeMap::new(),
            clock_offset_ms: 0,
            drift_ppm: 0,
            unplugged: false,
            release: FIRST_RELEASE,
            on_trial: false,
            release_before: FIRST_RELEASE,
            failed_releases: Vec::new(),
            asked_for_release: Vec::new(),
            unfit: BTreeSet::new(),
            menu_late_ms: 1,
            bad_cable: (0, 0),
            starved_ms: 0,
            capacity: Capacity { cpu_millis: 4000, memory_bytes: 4 << 30 },
            asked: BTreeSet::new(),
            has_modem: false,
            labels: BTreeMap::new(),
            connected: BTreeSet::new(),
            dialled_ms: BTreeMap::new(),
            frozen_until_ms: 0,
            wake_ms: None,
            passed_ms: 0,
            slept_ms: 0,
            busy_ms: 0,
            told_ms: 0,
            disk_busy_ms: 0,
            boot: 0,
            powered_ms: 0,
            started_ms: 0,
            seed,
            token: token.to_owned(),
            document,
        }
    }

    /// A machine with a copy of this one's disk, which is off.
    pub(super) fn copy(&self, index: usize) -> Self {
        let fresh = Self::new(index, &self.token, self.document.clone());
        let disk = self.disk.clone();
        let mut runtime = fresh.runtime.clone();
        runtime.inventory.volumes = self.runtime.inventory.volumes.clone();
        Self {
            runtime,
            id: self.id,
            seed: self.seed,
            boot: self.boot,
            capacity: self.capacity,
            subnet: self.subnet,
            disk,
            ..fresh
        }
    }

    /// The key its node signs with.
    pub fn record_key(&self) -> SigningKey {
        SigningKey::from_seed(self.seed)
    }

    /// The token it came with.
    pub fn token_id(&self) -> TokenId {
        TokenId::of(&cast::token_ca(&self.token))
    }

    /// Its node's certificates.
    pub fn chain(&self) -> Vec<Vec<u8>> {
        cast::chain(&self.token, &self.record_key())
    }

    /// The replicas whose containers run, one entry per container.
    pub fn runs(&self) -> impl Iterator<Item = String> + '_ {
        self.runtime.running().map(|plan| plan.labels.replica.to_string())
    }

    /// PID 1 kills what has run for long enough.
    pub(super) fn enforce_fences(&mut self, now_ms: u64) {
        let now = self.time(now_ms);
        for (container, until_ms) in &self.fences {
            if *until_ms <= now.mono_ms {
                self.runtime.end(container, 137, now.wall_ms);
            }
        }
    }

    /// What its clocks show when the world's shows `now_ms`.
    pub fn time(&self, now_ms: u64) -> Time {
        let elapsed = now_ms.saturating_sub(self.powered_ms) + self.slept_ms;
        let drifted = i64::try_from(elapsed).unwrap_or(0) * self.drift_ppm / 1_000_000;
        let wall_ms =
            (START_MS + now_ms + self.passed_ms).saturating_add_signed(self.clock_offset_ms + drifted);
        // Set to the image's build if behind it, and going on from there.
        let floor_ms = START_MS - cast::DAY_MS;
        Time {
            mono_ms: (BOOT_MS + elapsed).saturating_add_signed(drifted),
            wall_ms: if wall_ms < floor_ms { floor_ms + elapsed } else { wall_ms },
        }
    }

    /// The first moment, on the world's clock, at which its monotonic clock shows `mono_ms`.
    pub(super) fn world_ms(&self, mono_ms: u64) -> u64 {
        let shown_ms = u128::from(mono_ms.saturating_sub(BOOT_MS));
        let rate = 1_000_000_u64.saturating_add_signed(self.drift_ppm);
        let elapsed = u64::try_from(shown_ms * 1_000_000 / u128::from(rate)).unwrap_or(u64::MAX);
        // A little before it, as divisions round.
        let mut at_ms = self.powered_ms + elapsed.saturating_sub(self.slept_ms + 2);
        // Clocks drift by less than a tenth: no step goes past it.
        loop {
            match mono_ms.saturating_sub(self.time(at_ms).mono_ms) {
                0 => return at_ms,
                missing_ms => at_ms += (missing_ms * 9 / 10).max(1),
            }
        }
    }

    /// The power comes.
    pub(super) fn powered(&mut self, now_ms: u64) {
        (self.powered_ms, self.slept_ms) = (now_ms, 0);
    }

    /// What the agent is started with.
    pub(super) fn settings(&self) -> Settings {
        Settings {
            me: self.id,
            chain: self.chain(),
            record_key: self.record_key(),
            boot: self.boot,
            subnet: self.subnet,
            cluster_id: ClusterId([7; 16]),
            cluster_name: "simulated".to_owned(),
            container_range: range(),
            root_ca: cast::ROOT.to_vec(),
            root_keys: vec![cast::root_key().public()],
            token: self.token_id(),
            token_document: self.document.clone(),
            peer_port: PEER_PORT,
            verify_chain: cast::verify_chain,
            verify_signature: cast::verify_signature,
        }
    }

    /// What the edge knows about it.
    pub fn facts(&self, hostname: String) -> NodeFacts {
        NodeFacts {
            hostname,
            address: Some(self.address.ip()).filter(|_| !self.unplugged),
            labels: self.labels.clone(),
            capacity: self.capacity,
            version: "0.1.0".to_owned(),
            release: Some(Release {
                id: self.release,
                architecture: Architecture::Amd64,
                minimum: "1.0.0".to_owned(),
                on_trial: self.on_trial,
                failed: self.failed_releases.clone(),
            }),
            problems: self
                .unfit
                .contains(&self.release)
                .then(|| "containerd does not answer".to_owned())
                .into_iter()
                .collect(),
        }
    }

    /// What was being written reaches the disk.
    pub(super) fn synced(&mut self, batch: BatchId) {
        let writes = self.unsynced.remove(&batch).unwrap_or_default();
        self.write(writes);
    }

    /// The agent ends while it writes: `survives` says how many of the writes that were not flushed
    /// are on the disk all the same, in their order, the last one perhaps of half a batch.
    pub(super) fn lose_unsynced(&mut self, survives: impl Fn(usize) -> usize) {
        let mut writes: Writes = std::mem::take(&mut self.unsynced).into_values().flatten().collect();
        writes.truncate(survives(writes.len()));
        self.write(writes);
    }

    fn write(&mut self, writes: Writes) {
        for (key, value) in writes {
            match value {
                Some(value) => self.disk.insert(key, value),
                None => self.disk.remove(&key),
            };
        }
    }
}

fn range() -> ContainerRange {
    ContainerRange::parse("10.0.0.0/8").unwrap_or_else(|| panic!("a range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_read_backwards_to_the_first_moment_at_which_it_shows_a_time() {
        for drift_ppm in [0, 100, -100, 40_000, -40_000] {
            let mut machine = Machine::new(0, "t", None);
            machine.drift_ppm = drift_ppm;
            machine.powered(5000);
            for slept_ms in [0, 35 * cast::DAY_MS] {
                machine.slept_ms = slept_ms;
                for later_ms in [0, 1, 2, 999, 1500, 86_400_000] {
                    let wanted = machine.time(7000).mono_ms + later_ms;
                    let at_ms = machine.world_ms(wanted);
                    assert!(machine.time(at_ms).mono_ms >= wanted, "{drift_ppm} {slept_ms} {later_ms}");
                    assert!(machine.time(at_ms - 1).mono_ms < wanted, "{drift_ppm} {slept_ms} {later_ms}");
                }
            }
        }
    }
}
