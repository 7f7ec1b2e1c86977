//! Watching containerd: a fresh inventory after every change and every few seconds.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use containerd_client::services::v1::SubscribeRequest;
use containerd_client::tonic::Code;
use hivemind_core::event::{ContainerId, Inventory, Scarce};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep};

use super::client::{NAMESPACE, request};
use super::{Runtime, log_files, output};

/// Without any event, an inventory is taken this often: a missed event costs latency, not
/// correctness. Nothing is known to be missed once events come, so this can be rare.
const INTERVAL: Duration = Duration::from_secs(60);

/// The same while a subscription is new: containerd does not say from when on it tells.
const INTERVAL_AT_FIRST: Duration = Duration::from_secs(5);

/// How long a subscription is new. It takes effect within milliseconds; a busy containerd on an
/// emulated machine takes a second.
const NEW: Duration = Duration::from_secs(15);

/// Events come in bursts (a start is four of them); one inventory answers those that come within
/// this time.
const SETTLE: Duration = Duration::from_millis(50);

/// How long to wait before containerd is asked again after it did not answer.
const RETRY: Duration = Duration::from_millis(500);

/// How often logs nobody needs are looked for.
const PRUNE_INTERVAL: Duration = Duration::from_secs(3600);

/// How long a log is kept after its replica has left the node.
const LOG_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Events that can change an inventory.
const TOPICS: [&str; 4] = ["/tasks/exit", "/tasks/oom", "/tasks/start", "/tasks/delete"];

/// What watching shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// What containerd holds.
    Inventory(Inventory),
    /// containerd does not answer; containers run on. Told once per outage.
    Unreachable(String),
    /// Containers are short of something: what each uses of it.
    Short(Scarce, BTreeMap<ContainerId, u64>),
}

/// What containerd's events have told.
#[derive(Default)]
struct Changes {
    notify: Notify,
    /// When the subscription in use was asked for.
    subscribed: Mutex<Option<Instant>>,
}

impl Changes {
    fn subscribing(&self) {
        *self.subscribed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// How long to wait for an event before looking without one.
    fn pause(&self) -> Duration {
        let subscribed = *self.subscribed.lock().unwrap_or_else(PoisonError::into_inner);
        if subscribed.is_some_and(|at| at.elapsed() >= NEW) { INTERVAL } else { INTERVAL_AT_FIRST }
    }
}

impl Runtime {
    /// Tells `seen` what there is, now and after every change, until its receiver is gone.
    pub async fn watch(&self, seen: mpsc::Sender<Seen>) {
        let changes = Changes::default();
        tokio::select! {
            () = self.notify_changes(&changes) => {}
            () = self.take_inventories(&changes, &seen) => {}
            () = self.watch_shortages(&seen) => {}
        }
    }

    async fn take_inventories(&self, changes: &Changes, seen: &mpsc::Sender<Seen>) {
        let mut told_outage = false;
        let mut prune_at = Instant::now();
        loop {
            let (news, pause) = match self.inventory().await {
                Ok(inventory) => {
                    told_outage = false;
                    if Instant::now() >= prune_at {
                        prune_at = Instant::now() + PRUNE_INTERVAL;
                        self.prune_logs(&inventory);
                    }
                    (Some(Seen::Inventory(inventory)), changes.pause())
                }
                Err(error) => {
                    let news = (!told_outage).then_some(Seen::Unreachable(error.text));
                    told_outage = true;
                    (news, RETRY)
                }
            };
            if let Some(news) = news
                && seen.send(news).await.is_err()
            {
                return;
            }
            tokio::select! {
                () = changes.notify.notified() => sleep(SETTLE).await,
                () = self.look_again.notified() => {}
                () = sleep(pause) => {}
                () = seen.closed() => return,
            }
        }
    }

    fn prune_logs(&self, inventory: &Inventory) {
        let labels = inventory.containers.values().filter_map(|container| container.labels.as_ref());
        let directory = &self.settings.log_dir;
        let in_use = labels.map(|labels| log_files::log_file(directory, &labels.replica)).collect();
        let directory = directory.clone();
        tokio::task::spawn_blocking(move || output::prune(&directory, &in_use, LOG_KEPT));
    }

    /// Subscribes to containerd's events, again and again, and tells `changes` of each.
    async fn notify_changes(&self, changes: &Changes) {
        let mut told = false;
        loop {
            changes.subscribing();
            let filters = TOPICS.map(filter).into();
            // containerd answers a subscription when its first event comes, not before.
            let subscribed = self.containerd.events().subscribe(request(SubscribeRequest { filters })).await;
            match subscribed {
                Ok(events) => {
                    let mut events = events.into_inner();
                    changes.notify.notify_one();
                    while let Ok(Some(_)) = events.message().await {
                        changes.notify.notify_one();
                    }
                }
                Err(status) if status.code() == Code::Unavailable => {}
                Err(status) if !std::mem::replace(&mut told, true) => {
                    let reason = status.message();
                    tracing::error!(%reason, "containerd does not tell its events; it is asked all the time");
                }
                Err(_) => {}
            }
            // containerd ended, or its connection did: an inventory tells, now and when it is back.
            changes.notify.notify_one();
            sleep(RETRY).await;
        }
    }
}

/// What containerd is to tell events by. A slash would begin a regular expression, so the topic is in
/// quotes.
fn filter(topic: &str) -> String {
    format!("namespace=={NAMESPACE},topic==\"{topic}\"")
}
