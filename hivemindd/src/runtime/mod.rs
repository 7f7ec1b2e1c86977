//! Containers: images, snapshots, tasks and logs, by containerd.
//!
//! Carries out [`RuntimeOp`]s and reports an [`Inventory`]; every operation may be repeated, and
//! none decides anything: whether to restart, when, and with which address is the core's business.
//!
//! containerd keeps what there is; nothing about containers is kept here. So the agent may die and
//! come back at any time: its next inventory is the truth, and running containers are adopted.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use containerd_client::services::v1::{ListContainersRequest, ListTasksRequest};
use containerd_client::types::v1::{Process, Status as TaskStatus};
use futures_util::stream::BoxStream;
use hivemind_core::event::{
    ContainerId, ContainerState, DiskState, Inventory, OperationError, RuntimeOp, TaskState,
};
use hivemind_spec::api::{self, Counters, PullProgress};
use hivemind_spec::id::{Digest, NodeId};
use hivemind_spec::key::SigningKey;
use hivemind_spec::machine;
use tokio::sync::{Notify, Semaphore};

use self::stream::OtherEnd;
use crate::network::isolation::InForce;
use crate::transport::Transport;

mod attach;
mod backup;
mod cgroup;
mod client;
mod container;
mod content;
mod debug;
pub mod device;
mod exec;
pub mod health;
mod host_path;
mod image;
mod labels;
mod layers;
mod log_files;
pub mod logs;
mod netns;
mod nfs;
mod oci;
mod output;
mod pressure;
mod quota;
mod seccomp;
pub mod secrets;
mod session;
pub mod stream;
mod user;
mod users;
mod views;
mod volume;
mod watch;

pub use image::{BlobHere, DONE_BYTES};
pub use volume::{MAX_STILL, WantedSnapshot};
pub use watch::Seen;

/// Operations other than pulls that run at a time: starting is mostly waiting for containerd and
/// the kernel, and each takes memory here and there.
const OPERATIONS_AT_A_TIME: usize = 8;

/// Pulls that run at a time. They do not take the place of other operations, because one may hang
/// on a slow registry for minutes.
const PULLS_AT_A_TIME: usize = 4;

/// How long an operation may take that is no pull, beyond the grace period of what it stops: many times what a slow
/// machine with all its operations under way needs. Whatever hangs for longer is tried again, and does not keep its
/// place meanwhile.
const OPERATION_LIMIT: Duration = Duration::from_secs(300);

/// How long containerd may take for what it has to look up: a machine that starts everything at once takes seconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// Exit code of a process ended by SIGKILL.
const KILLED: u32 = 137;

/// Where things are. The defaults are those of the image.
#[derive(Clone)]
pub struct Settings {
    /// containerd's socket.
    pub socket: PathBuf,
    /// The OCI runtime.
    pub oci_runtime: PathBuf,
    /// `hivemind-init`, for containers that ask for an init process.
    pub init_program: PathBuf,
    /// Files of running containers; gone after a reboot, as the containers are.
    pub run_dir: PathBuf,
    /// Named network namespaces.
    pub netns_dir: PathBuf,
    /// Containers' logs.
    pub log_dir: PathBuf,
    /// Volumes.
    pub volume_dir: PathBuf,
    /// The overlay's bridge.
    pub bridge: String,
    /// Which rules of who reaches whom are in force: containers wait for theirs. None: there are no such rules.
    pub in_force: Option<InForce>,
    /// The cgroup shims are in, so that they are not counted as containerd's; empty: containerd's.
    pub shim_cgroup: String,
    /// How registries are asked.
    pub registries: machine::Registries,
    /// The way to other nodes, which may have what a registry has; none: there are no others.
    pub transport: Option<Transport>,
    /// Who opens secrets, and with what; absent where none can be opened.
    pub owner: Option<(NodeId, SigningKey)>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            socket: "/run/containerd/containerd.sock".into(),
            oci_runtime: "/usr/bin/crun".into(),
            init_program: "/opt/hivemind/bin/hivemind-init".into(),
            run_dir: "/run/hivemind/containers".into(),
            netns_dir: "/run/netns".into(),
            log_dir: "/var/log/containers".into(),
            volume_dir: "/var/lib/hivemind/volumes".into(),
            bridge: "hive0".into(),
            in_force: None,
            shim_cgroup: "/hivemind/shims".into(),
            registries: machine::Registries::default(),
            transport: None,
            owner: None,
        }
    }
}

/// The container runtime of this node. Cheap to clone.
#[derive(Clone)]
pub struct Runtime(Arc<Inner>);

impl std::ops::Deref for Runtime {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}

#[doc(hidden)]
pub struct Inner {
    settings: Settings,
    containerd: client::Containerd,
    images: image::Images,
    networks: netns::Networks,
    logs: output::Collector,
    volumes: Arc<volume::Volumes>,
    secrets: secrets::Secrets,
    operations: Semaphore,
    pulls: Semaphore,
    /// Something has changed that containerd does not tell of.
    look_again: Notify,
    /// Whether resource limits can be set.
    limits: bool,
    /// The highest hard limit of open files a container can be given.
    open_files: u64,
}

impl Runtime {
    /// Prepares to talk to containerd, which need not be up yet. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the machine lacks what no retry brings: CA certificates, threads.
    pub fn connect(settings: Settings) -> Result<Self, OperationError> {
        // The registry client takes the process's TLS provider. An error says that there is one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let containerd = client::Containerd::new(&settings.socket);
        let images =
            image::Images::new(containerd.clone(), settings.registries.clone(), settings.transport.clone())?;
        let networks =
            netns::Networks { directory: settings.netns_dir.clone(), bridge: settings.bridge.clone() };
        let logs = output::Collector::start()
            .map_err(|error| client::permanent(format!("the log collector cannot start: {error}")))?;
        let limits = cgroup::prepare(&settings.shim_cgroup);
        cgroup::let_all_go_on();
        let volumes = Arc::new(volume::Volumes::new(settings.volume_dir.clone()));
        if let Err(error) = volumes.sweep() {
            tracing::warn!(%error, "what was left of snapshots stays");
        }
        Ok(Self(Arc::new(Inner {
            volumes,
            secrets: secrets::Secrets::new(settings.owner.clone()),
            settings,
            containerd,
            images,
            networks,
            logs,
            operations: Semaphore::new(OPERATIONS_AT_A_TIME),
            pulls: Semaphore::new(PULLS_AT_A_TIME),
            look_again: Notify::new(),
            limits,
            open_files: open_files(),
        })))
    }

    /// Carries out an operation. May be called concurrently; operations on one container must come
    /// one after the other. `progress` is told now and then how far a pull is.
    ///
    /// # Errors
    /// What went wrong, in words for `hivemind ps`.
    pub async fn run(&self, op: &RuntimeOp, progress: impl Fn(PullProgress)) -> Result<(), OperationError> {
        let places = if matches!(op, RuntimeOp::Pull { .. }) { &self.pulls } else { &self.operations };
        let _place = places.acquire().await.map_err(|_| client::transient("the runtime is shutting down"))?;
        match op {
            RuntimeOp::Pull { image, credentials, peers } => {
                let opened =
                    credentials.as_deref().map(|sealed| self.secrets.credentials(sealed)).transpose();
                let opened = opened.map_err(|error| client::transient(error.to_string()))?;
                self.images.pull(image, opened, peers, progress).await
            }
            RuntimeOp::Start(plan) => within(OPERATION_LIMIT, "starting", self.start(plan)).await,
            RuntimeOp::Stop { container, signal, grace_ms, makes_room } => {
                if *makes_room {
                    cgroup::hold_memory(container);
                }
                let grace = Duration::from_millis(*grace_ms);
                let stop = self.stop(container, signal.as_deref(), grace);
                within(OPERATION_LIMIT.saturating_add(grace), "stopping", stop).await
            }
            RuntimeOp::Remove { container, logs } => {
                within(OPERATION_LIMIT, "removing", self.remove(container, *logs)).await
            }
            RuntimeOp::RemoveImage { image } => {
                tracing::info!(image, "removing an image that nothing here needs: the disk is nearly full");
                within(OPERATION_LIMIT, "removing an image", self.images.remove(image)).await
            }
            RuntimeOp::LimitVolume(plan) => self.limit_volume(plan).await,
            RuntimeOp::DeleteVolume { part } => self.delete_volume(part).await,
        }
    }

    /// What containerd holds now. Also goes on recording the output of containers that were
    /// started by an agent before this one.
    ///
    /// # Errors
    /// When containerd does not answer, in a minute at most.
    pub async fn inventory(&self) -> Result<Inventory, OperationError> {
        within(ANSWER_LIMIT, "listing containers", self.take_inventory()).await
    }

    /// How a blob of an image is here, for another node.
    pub async fn blob(&self, digest: &str) -> BlobHere {
        self.images.blob(digest).await
    }

    /// A blob of an image from `from` on, for another node. Few are sent at a time; None: that many are.
    ///
    /// # Errors
    /// When containerd does not give it.
    pub async fn send_blob(
        &self,
        digest: &str,
        from: u64,
    ) -> Result<Option<BoxStream<'static, io::Result<Bytes>>>, OperationError> {
        self.images.send_blob(digest, from).await
    }

    /// Takes an image from the other end, by a name without a digest and the digest of its manifest, and keeps it however
    /// full the disk is.
    ///
    /// # Errors
    /// When it is not as it should be, breaks off, or cannot be kept.
    pub async fn take_image(
        &self,
        name: &str,
        digest: Digest,
        manifest_bytes: u64,
        other: OtherEnd,
    ) -> Result<(), OperationError> {
        self.images.take(name, digest, manifest_bytes, other).await?;
        self.look_again.notify_one();
        Ok(())
    }

    /// Keeps an image that was given no longer than any other.
    ///
    /// # Errors
    /// When containerd does not do it.
    pub async fn give_up_image(&self, name: &str) -> Result<(), OperationError> {
        self.images.give_up(name, None).await?;
        self.look_again.notify_one();
        Ok(())
    }

    /// What the kernel has counted of containers, and their processes if they are wanted, in their order; none of those
    /// that are gone.
    pub async fn used(
        &self,
        containers: Vec<ContainerId>,
        processes: bool,
    ) -> Vec<Option<(Counters, Vec<api::Process>)>> {
        let count = containers.len();
        let one = move |id: &ContainerId| {
            let processes = if processes { cgroup::processes(id) } else { Vec::new() };
            Some((cgroup::counters(id)?, processes))
        };
        let look = move || containers.iter().map(one).collect();
        tokio::task::spawn_blocking(look).await.unwrap_or_else(|_| vec![None; count])
    }

    async fn take_inventory(&self) -> Result<Inventory, OperationError> {
        let (mut containers, mut tasks) = (self.containerd.containers(), self.containerd.tasks());
        let (containers, tasks, (images, given)) = tokio::try_join!(
            async {
                let answer = containers.list(client::request(ListContainersRequest::default())).await;
                answer.map_err(client::refused("listing containers"))
            },
            async {
                let answer = tasks.list(client::request(ListTasksRequest::default())).await;
                answer.map_err(client::refused("listing tasks"))
            },
            self.images.list(),
        )?;
        let (volumes, directory) = (Arc::clone(&self.volumes), self.settings.volume_dir.clone());
        let look = move || Ok((volumes.list()?, disk_state(&directory)));
        let (volumes, disk) = on_disk("looking at the volumes", look).await?;
        let mut inventory = Inventory { images, given, volumes, disk, ..Inventory::default() };
        let mut logs = BTreeMap::new();
        for container in containers.into_inner().containers {
            let labels = labels::read(&container.labels);
            let id = ContainerId(container.id);
            inventory.used_images.insert(container.image);
            if container.labels.contains_key(debug::BESIDE) {
                continue;
            }
            if let Some(labels) = &labels {
                logs.insert(id.clone(), self.log(&labels.container.replica, labels.log_bytes));
            }
            let labels = labels.map(|labels| labels.container);
            inventory.containers.insert(id, ContainerState { labels, task: TaskState::Absent });
        }
        for task in tasks.into_inner().tasks {
            // In this list, `id` names the container.
            let id = ContainerId(if task.container_id.is_empty() {
                task.id.clone()
            } else {
                task.container_id.clone()
            });
            let Some(state) = inventory.containers.get_mut(&id) else { continue };
            state.task = task_state(&id, &task);
            if let Some(log) = logs.remove(&id) {
                self.logs.adopt(&id, output::pipes(&self.files(&id)), log);
            }
        }
        Ok(inventory)
    }
}

/// Work on the disk, which may take its time.
async fn on_disk<T: Send + 'static>(
    doing: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, OperationError> {
    let result = tokio::task::spawn_blocking(work).await;
    let result = result.map_err(|error| client::transient(format!("{doing}: {error}")))?;
    result.map_err(|error| client::transient(format!("{doing}: {error}")))
}

/// How full the disk is that a folder is on, or will be.
fn disk_state(folder: &Path) -> Option<DiskState> {
    let stat = folder.ancestors().find_map(|path| nix::sys::statvfs::statvfs(path).ok())?;
    let blocks = |count: u64| count.saturating_mul(stat.fragment_size());
    let used_bytes = blocks(stat.blocks().saturating_sub(stat.blocks_free()));
    Some(DiskState { used_bytes, total_bytes: used_bytes + blocks(stat.blocks_available()) })
}

/// Removes a folder with all that is in it. It need not be there.
fn remove_folder(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes the folder that something was in, and the one above it, if they are empty and only then.
fn remove_empty_above(path: &Path) {
    for folder in path.ancestors().skip(1).take(2) {
        if fs::remove_dir(folder).is_err() {
            break;
        }
    }
}

/// Gives up what takes longer than `limit`. What it began, containerd and the kernel may still end: every operation
/// may be repeated.
async fn within<T>(
    limit: Duration,
    doing: &str,
    work: impl Future<Output = Result<T, OperationError>>,
) -> Result<T, OperationError> {
    let late =
        |_| client::transient(format!("{doing}: containerd has not answered for {} s", limit.as_secs()));
    tokio::time::timeout(limit, work).await.unwrap_or_else(|elapsed| Err(late(elapsed)))
}

fn task_state(id: &ContainerId, task: &Process) -> TaskState {
    match task.status() {
        TaskStatus::Stopped => {
            let code = task.exit_status;
            let at_ms = task.exited_at.map_or(0, |time| {
                let seconds = u64::try_from(time.seconds).unwrap_or(0);
                seconds * 1000 + u64::try_from(time.nanos).unwrap_or(0) / 1_000_000
            });
            let oom = cgroup::out_of_memory(id).filter(|_| code == KILLED);
            TaskState::Exited { code, at_ms, oom }
        }
        // Created but never started: an agent died in between.
        TaskStatus::Created => TaskState::Absent,
        // Of one whose shim does not answer in time nothing is known but that it is there: a machine that has too much to do
        // must not start its containers anew. That it has ended is heard when the shim answers, or is gone.
        TaskStatus::Unknown | TaskStatus::Running | TaskStatus::Paused | TaskStatus::Pausing => {
            TaskState::Running
        }
    }
}

/// The highest hard limit of open files this process may give: any, unless it may not raise its
/// own (`CAP_SYS_RESOURCE`, bit 24), as in some containers.
fn open_files() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities = capabilities.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    if capabilities.is_none_or(|capabilities| capabilities >> 24 & 1 == 1) {
        return u64::MAX;
    }
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(u64::MAX)
}

/// The wall clock, in milliseconds since 1970.
fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use hivemind_core::event::ImagePeers;

    use super::*;

    #[test]
    fn a_container_whose_shim_does_not_answer_in_time_is_not_taken_for_one_that_is_gone() {
        let state = |status: TaskStatus| {
            let task = Process { status: status.into(), ..Process::default() };
            task_state(&ContainerId("hm-a".to_owned()), &task)
        };
        assert_eq!(state(TaskStatus::Unknown), TaskState::Running);
        assert_eq!(state(TaskStatus::Created), TaskState::Absent);
        assert!(matches!(state(TaskStatus::Stopped), TaskState::Exited { code: 0, .. }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_containerd_that_hangs_is_told_of_and_keeps_no_place() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("containerd.sock");
        // Takes connections, and never answers.
        let _silent = tokio::net::UnixListener::bind(&socket).unwrap();
        let containerd = client::Containerd::new(&socket);
        let runtime = Runtime(Arc::new(Inner {
            images: image::Images::new(containerd.clone(), machine::Registries::default(), None).unwrap(),
            containerd,
            networks: netns::Networks { directory: folder.path().to_owned(), bridge: "absent".to_owned() },
            logs: output::Collector::start().unwrap(),
            volumes: Arc::new(volume::Volumes::new(folder.path().join("volumes"))),
            secrets: secrets::Secrets::new(None),
            operations: Semaphore::new(OPERATIONS_AT_A_TIME),
            pulls: Semaphore::new(PULLS_AT_A_TIME),
            look_again: Notify::new(),
            limits: false,
            open_files: 0,
            settings: Settings { socket, run_dir: folder.path().to_owned(), ..Settings::default() },
        }));
        let error = runtime.inventory().await.unwrap_err();
        assert!(!error.permanent && error.text.contains("has not answered for 60 s"), "{error}");
        let remove = RuntimeOp::Remove { container: ContainerId("x".to_owned()), logs: false };
        // More than have a place: the last get theirs when the first are given up.
        let all = (0..=OPERATIONS_AT_A_TIME).map(|_| runtime.run(&remove, |_| {}));
        for result in futures_util::future::join_all(all).await {
            let error = result.unwrap_err();
            assert!(!error.permanent && error.text.contains("has not answered for 300 s"), "{error}");
        }
        let pull = |number| RuntimeOp::Pull {
            image: format!("registry.test/image:{number}"),
            credentials: None,
            peers: ImagePeers::default(),
        };
        let pulls: Vec<_> = (0..=PULLS_AT_A_TIME).map(pull).collect();
        for result in futures_util::future::join_all(pulls.iter().map(|op| runtime.run(op, |_| {}))).await {
            let error = result.unwrap_err();
            assert!(!error.permanent && error.text.contains("has not answered for 60 s"), "{error}");
        }
    }
}
