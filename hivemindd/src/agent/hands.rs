//! Hands: what carries out the core's actions. Nothing here waits; what takes time is a task that
//! reports back with an event.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use hivemind_core::event::{Action, ContainerId, Event, NetworkPlan, OperationId, RuntimeOp, Zone};
use hivemind_core::isolation::Isolation;
use hivemind_init::fence;
use hivemind_spec::workload::HealthCheck;
use tokio::sync::{mpsc, watch};

use crate::clock::Clock;
use crate::identity;
use crate::release::{Running, Taking};
use crate::runtime::{Runtime, secrets};
use crate::store::StoreHandle;
use crate::transport::Transport;

/// The ways out into the world.
pub(super) struct Hands {
    pub(super) store: StoreHandle,
    pub(super) transport: Transport,
    pub(super) runtime: Runtime,
    pub(super) network: watch::Sender<NetworkPlan>,
    pub(super) isolation: watch::Sender<Arc<Isolation>>,
    pub(super) zone: watch::Sender<Arc<Zone>>,
    pub(super) health_checks: watch::Sender<BTreeMap<ContainerId, HealthCheck>>,
    pub(super) secrets: watch::Sender<secrets::Wanted>,
    pub(super) devices: watch::Sender<BTreeSet<String>>,
    pub(super) running: Running,
    pub(super) taking: Taking,
    pub(super) clock: Arc<Clock>,
    pub(super) events: mpsc::Sender<Event>,
}

impl Hands {
    /// Starts carrying out one action. The loop itself sees to wake-ups, replies and notes.
    pub(super) fn carry_out(&self, action: Action) {
        match action {
            Action::Persist { batch, writes } => self.persist(batch, writes),
            Action::Send { to, message } => self.transport.send(to, &message),
            Action::Connect { address } => self.transport.connect(address),
            Action::Refuse { node, reason } => self.transport.refuse(node, &reason),
            Action::Runtime { operation, op } => self.run(operation, op),
            Action::Network(plan) => drop(self.network.send_replace(plan)),
            Action::Isolate(isolation) => drop(self.isolation.send_replace(Arc::new(isolation))),
            Action::Zone(zone) => drop(self.zone.send_replace(Arc::new(zone))),
            Action::HealthChecks(list) => drop(self.health_checks.send_replace(list)),
            Action::Secrets(list) => drop(self.secrets.send_replace(list)),
            Action::LookFor(devices) => drop(self.devices.send_replace(devices)),
            Action::Fence(fences) => self.fence(&fences),
            Action::RememberSubnet(subnet) => {
                if let Err(error) = identity::remember_subnet(Path::new(identity::FOLDER), subnet) {
                    tracing::warn!(%error, "the subnet is not remembered outside the store");
                }
            }
            Action::CallReleaseGood => {
                let running = self.running.clone();
                tokio::task::spawn_blocking(move || running.call_good());
            }
            Action::Update(order) => self.taking.set(order.map(|order| *order)),
            Action::StartRelease(release) => {
                let taking = self.taking.clone();
                tokio::spawn(async move { taking.start(release).await });
            }
            Action::Reply { .. } | Action::WakeAt { .. } | Action::Note(_) => {}
        }
    }

    /// Sets deadlines. An agent that cannot must not start what they are for: it ends, and PID 1 keeps
    /// those that are set.
    fn fence(&self, fences: &BTreeMap<ContainerId, u64>) {
        self.clock.watch_for_standstill();
        for (container, until_ms) in fences {
            if let Err(error) = fence::set(&container.0, self.clock.boot_time_ms(*until_ms)) {
                tracing::error!(%error, container = container.0, "its deadline cannot be set; the agent ends");
                std::process::exit(1);
            }
        }
    }

    fn persist(&self, batch: u64, writes: Vec<(Vec<u8>, Option<Vec<u8>>)>) {
        let (written, events) = (self.store.write(writes), self.events.clone());
        tokio::spawn(async move {
            let event = match written.await {
                Ok(()) => Event::Persisted { batch },
                Err(error) => Event::PersistFailed { batch, reason: error.to_string() },
            };
            tell(&events, event).await;
        });
    }

    fn run(&self, operation: OperationId, op: RuntimeOp) {
        let (runtime, events) = (self.runtime.clone(), self.events.clone());
        tokio::spawn(async move {
            let progress = |progress| {
                // Progress is for people; the next one makes up for one that does not fit.
                let _ = events.try_send(Event::PullProgressed { operation, progress });
            };
            let result = runtime.run(&op, progress).await;
            tell(&events, Event::Done { operation, result }).await;
        });
    }
}

/// Tells the loop; it may have ended, and then nobody is left to be told.
async fn tell(events: &mpsc::Sender<Event>, event: Event) {
    let _ = events.send(event).await;
}
