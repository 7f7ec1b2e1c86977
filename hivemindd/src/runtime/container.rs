//! One container: made, started, stopped, removed, and run a command in.
//!
//! A container's record in containerd is made first and deleted last, so that whatever a crash
//! leaves half made can be found by its id and removed.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_client::services::v1::container::Runtime as RuntimeInfo;
use containerd_client::services::v1::snapshots::{
    MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
};
use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest, DeleteTaskRequest,
    GetContainerRequest, GetRequest, KillRequest, StartRequest, UpdateContainerRequest, WaitRequest,
};
use containerd_client::tonic::{Code, Status};
use containerd_client::types::Mount;
use containerd_client::types::v1::{Process, Status as TaskStatus};
use hivemind_core::event::{ContainerId, ContainerPlan, OperationError, VolumePlan};
use hivemind_core::record::{ReplicaId, VolumePart};
use hivemind_init::fence;
use hivemind_spec::workload::{HOST_GATEWAY, MAX_LOG_BYTES, VolumeMount};
use nix::sys::signal::Signal;
use prost::Message;
use prost_types::Any;

use super::client::{SNAPSHOTTER, if_there, permanent, refused, request, transient, unless_there};
use super::labels::{self, Labels};
use super::oci::{self, Surroundings};
use super::output;
use super::user::Accounts;
use super::users::Users;
use super::views::{Views, Volume};
use super::{
    Runtime, cgroup, device, host_path, layers, log_files, nfs, on_disk, quota, remove_folder, volume,
    wall_ms,
};

/// containerd's name of the runtime; its shim is looked up as `containerd-shim-runc-v2`.
const RUNTIME: &str = "io.containerd.runc.v2";

/// How long a killed process may take to be gone, disk sleep included, before it is reported.
const KILL_PATIENCE: Duration = Duration::from_secs(20);

/// How long the hooks after a start may take together: the start counts as one operation, and others wait for it.
const HOOKS_LIMIT: Duration = Duration::from_secs(30);

/// The type of a runtime specification.
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// The type of the runtime's options.
const OPTIONS_TYPE: &str = "containerd.runc.v1.Options";

/// The real-time signals' first number.
const FIRST_REAL_TIME_SIGNAL: u32 = 34;

/// The last signal's number.
const LAST_SIGNAL: u32 = 64;

/// A container that containerd has a record of. Only then may there be anything of it: what belongs to no record containerd
/// collects as garbage, at any moment.
pub(super) struct Recorded(Container);

/// What the shim is told (containerd's `runc/options/oci.proto`; only what is used).
#[derive(Clone, PartialEq, Message)]
struct ShimOptions {
    /// The cgroup the shim itself is in.
    #[prost(string, tag = "3")]
    shim_cgroup: String,
    /// The OCI runtime.
    #[prost(string, tag = "6")]
    binary_name: String,
}

/// Reads a signal: `SIGTERM`, `TERM`, `SIGRTMIN+3` or `15`.
pub(super) fn parse_signal(text: &str) -> Result<u32, OperationError> {
    let name = text.trim().to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let number = name.parse().ok().or_else(|| {
        if let Some(offset) = name.strip_prefix("RTMIN") {
            let offset: u32 = if offset.is_empty() { 0 } else { offset.strip_prefix('+')?.parse().ok()? };
            return FIRST_REAL_TIME_SIGNAL.checked_add(offset);
        }
        let signal: Signal = format!("SIG{name}").parse().ok()?;
        u32::try_from(signal as i32).ok()
    });
    number
        .filter(|number| (1..=LAST_SIGNAL).contains(number))
        .ok_or_else(|| permanent(format!("{text:?} is not a signal; write SIGTERM or a number")))
}

/// The part of containerd's answer that says why a container does not start.
pub(super) fn start_failure(status: &Status) -> OperationError {
    let text = status.message();
    let text = text.split_once("failed: ").map_or(text, |(_, rest)| rest);
    let text = text.trim_end_matches(": unknown").trim_end_matches(['"', ')']);
    let text = format!("the container does not start: {text}");
    // What is not in the image will not be there at the next attempt.
    let missing = text.contains("executable file") || text.contains("cannot find");
    OperationError { text, permanent: missing && !matches!(status.code(), Code::Unavailable) }
}

/// What a container mounts, and where that is until it has.
struct Sources {
    views: Views,
    /// Its layers, as the shim mounts them.
    layers: Vec<Mount>,
    files: PathBuf,
    volumes: BTreeMap<String, PathBuf>,
}

impl Runtime {
    /// The directory of a container's files under `/run`.
    pub(super) fn files(&self, id: &ContainerId) -> PathBuf {
        self.settings.run_dir.join(&id.0)
    }

    /// Where the views of a container are while it starts: not among its files, with all of which a container goes.
    fn views(&self, id: &ContainerId) -> PathBuf {
        self.settings.run_dir.join(format!("{}-views", id.0))
    }

    /// Where a replica's output goes.
    pub(super) fn log(&self, replica: &ReplicaId, most_bytes: Option<u64>) -> output::Log {
        let most_bytes = most_bytes.unwrap_or(MAX_LOG_BYTES);
        output::Log { file: log_files::log_file(&self.settings.log_dir, replica), most_bytes }
    }

    /// The container's main process, if it has a task.
    pub(super) async fn task(&self, id: &ContainerId) -> Result<Option<Process>, OperationError> {
        let message = GetRequest { container_id: id.0.clone(), ..Default::default() };
        let answer = if_there(self.containerd.tasks().get(request(message)).await);
        Ok(answer.map_err(refused("looking for a task"))?.and_then(|answer| answer.into_inner().process))
    }

    /// The container's record.
    pub(super) async fn container(&self, id: &ContainerId) -> Result<Option<Container>, OperationError> {
        let answer =
            self.containerd.containers().get(request(GetContainerRequest { id: id.0.clone() })).await;
        let answer = if_there(answer).map_err(refused("looking for a container"))?;
        Ok(answer.and_then(|answer| answer.into_inner().container))
    }

    /// Starts a container that may exist already, whole or half made.
    pub(super) async fn start(&self, plan: &ContainerPlan) -> Result<(), OperationError> {
        let id = &plan.id;
        // Its record is made first and removed last: without it there is nothing of it.
        if self.container(id).await?.is_some() {
            match self.task(id).await?.map(|task| task.status()) {
                Some(TaskStatus::Running) => return Ok(()),
                Some(TaskStatus::Unknown) => return Err(transient("its shim does not answer")),
                _ => {}
            }
            self.clear(id, false).await?;
        }
        let result = self.make(plan).await;
        if result.is_err()
            && let Err(error) = self.clear(id, false).await
        {
            tracing::warn!(container = id.0, %error, "what a failed start left is not removed yet");
        }
        result
    }

    async fn make(&self, plan: &ContainerPlan) -> Result<(), OperationError> {
        let id = &plan.id;
        let image = self.images.find(&plan.spec.image).await?;
        let image =
            image.ok_or_else(|| transient(format!("image {} is not on this node", plan.spec.image)))?;
        let stop_signal = image.execution.stop_signal.clone();
        let labels = Labels { container: plan.labels.clone(), stop_signal, log_bytes: plan.spec.log_bytes };
        let holder = self.settings.init_program.clone();
        let users = Users::of(plan, self.networks.users_path(id), holder)?;
        let recorded = self.record(id, &plan.spec.image, labels::write(&labels)).await?;
        let (mounts, ()) = tokio::try_join!(
            self.prepare_snapshot(&recorded, &image.chain),
            self.networks.create(plan, users.as_ref())
        )?;

        self.count_root(plan, &mounts).await?;
        self.provide_volumes(plan, &mounts).await?;
        let files = self.files(id);
        write_files(&files, plan)
            .map_err(|error| transient(format!("writing to {}: {error}", files.display())))?;
        self.secrets
            .provide(&files, &plan.spec.secrets, &plan.secrets)
            .map_err(|error| transient(format!("writing its secrets: {error}")))?;
        let user = plan.spec.user.as_deref().or(image.execution.user.as_deref()).unwrap_or_default();
        let identity = Accounts::from_layers(&layers::lower(&mounts)).resolve(user, &plan.spec.groups)?;
        users.as_ref().map_or(Ok(()), |users| users.include(&identity))?;
        let Sources { views, layers, files: own, volumes } =
            self.open_sources(plan, users.as_ref(), mounts, &files).await?;
        let around = Surroundings {
            execution: &image.execution,
            identity,
            init_program: &self.settings.init_program,
            netns: &self.networks.path(id),
            users: users.as_ref(),
            files: &own,
            volumes: &volumes,
            disk: self.disk_to_limit(plan)?,
            host_paths: &host_path::of(&plan.spec)?,
            devices: &device::of(plan)?,
            cores: cgroup::cores(),
            limits: self.limits,
            open_files: self.open_files,
        };
        self.specify(recorded, &oci::spec(plan, &around)?).await?;
        self.run_task(plan, layers, &files).await?;
        // All is mounted now.
        drop(views);
        self.run_hooks(id, "the hook after its start", &plan.spec.post_start, HOOKS_LIMIT).await
    }

    /// The machine's disk, if the container is not to have all of it.
    fn disk_to_limit(&self, plan: &ContainerPlan) -> Result<Option<(u64, u64)>, OperationError> {
        if plan.spec.resources.disk.is_default() {
            return Ok(None);
        }
        // The folder itself may be made later, by the first volume.
        let folder = self.settings.volume_dir.ancestors().find(|folder| folder.exists());
        let disk = cgroup::disk_of(folder.unwrap_or(Path::new("/")));
        disk.map(Some)
            .map_err(|error| transient(format!("what it does on the disk cannot be limited: {error}")))
    }

    /// Has the kernel count what the container writes beside its volumes, and limit it if it is to be.
    async fn count_root(&self, plan: &ContainerPlan, layers: &[Mount]) -> Result<(), OperationError> {
        let written = layers::written(layers);
        let folders: Vec<PathBuf> = written.into_iter().flatten().map(Path::to_owned).collect();
        let most = plan.spec.root_size_bytes;
        if folders.is_empty() && most.is_some() {
            return Err(permanent("the snapshotter has no layer to limit"));
        }
        let id = plan.id.0.clone();
        on_disk("counting its own files", move || quota::count_folders(&folders, &id, most)).await
    }

    /// Makes the container's volumes that are not there yet.
    async fn provide_volumes(&self, plan: &ContainerPlan, layers: &[Mount]) -> Result<(), OperationError> {
        if plan.volumes.is_empty() {
            return Ok(());
        }
        let at = self.settings.run_dir.join(format!("{}-image", plan.id.0));
        let (volumes, layers) = (Arc::clone(&self.volumes), layers.to_vec());
        let (mounts, plans) = (plan.spec.volumes.clone(), plan.volumes.clone());
        on_disk("making its volumes", move || {
            let mut image = None;
            for mount in &mounts {
                let Some(plan) = plans.get(&mount.volume) else { continue };
                let fills = !mount.no_copy && mount.subpath.is_none() && !volumes.data(&plan.part).exists();
                if fills && image.is_none() {
                    image = Some(volume::Image::open(&layers, &at)?);
                }
                let from = image.as_ref().filter(|_| fills).map(|image| (image, mount.path.as_str()));
                volumes.provide(plan, wall_ms(), from)?;
            }
            Ok(())
        })
        .await
    }

    /// Finds what the container is to mount.
    async fn open_sources(
        &self,
        plan: &ContainerPlan,
        users: Option<&Users>,
        mut layers: Vec<Mount>,
        files: &Path,
    ) -> Result<Sources, OperationError> {
        let volume = |mount: &VolumeMount| {
            let data = self.volumes.data(&plan.volumes.get(&mount.volume)?.part);
            Some(Volume { target: mount.path.clone(), data, subpath: mount.subpath.clone() })
        };
        let volumes: Vec<Volume> = plan.spec.volumes.iter().filter_map(volume).collect();
        let (at, users) = (self.views(&plan.id), users.cloned());
        let (files, helper) = (files.to_owned(), self.settings.init_program.clone());
        let nfs = nfs::find(plan).await?;
        let own_name = self.settings.owner.as_ref().map(|(node, _)| node.to_string());
        on_disk("opening what it mounts", move || {
            let mut views = Views::new(at, users)?;
            views.layers(&mut layers)?;
            let (files, mut volumes) = (views.files(&files)?, views.volumes(volumes)?);
            if !nfs.is_empty() {
                hivemind_init::nfs::prepare(&own_name.unwrap_or_default())?;
            }
            for found in nfs {
                let view = views.place()?;
                found.mount(&view, &helper)?;
                volumes.insert(found.target().to_owned(), view);
            }
            Ok(Sources { views, layers, files, volumes })
        })
        .await
    }

    /// Limits a part of a volume.
    pub(super) async fn limit_volume(&self, plan: &VolumePlan) -> Result<(), OperationError> {
        let (volumes, plan) = (Arc::clone(&self.volumes), plan.clone());
        on_disk("limiting a volume", move || volumes.limit(&plan)).await
    }

    /// Deletes a part of a volume.
    pub(super) async fn delete_volume(&self, part: &VolumePart) -> Result<(), OperationError> {
        let (volumes, part) = (Arc::clone(&self.volumes), part.clone());
        on_disk("deleting a volume", move || volumes.delete(&part)).await
    }

    /// Has containerd record a container of which there is nothing yet.
    pub(super) async fn record(
        &self,
        id: &ContainerId,
        image: &str,
        labels: HashMap<String, String>,
    ) -> Result<Recorded, OperationError> {
        let container = Container {
            id: id.0.clone(),
            labels,
            image: image.to_owned(),
            runtime: Some(RuntimeInfo { name: RUNTIME.into(), options: Some(self.shim_options()) }),
            spec: Some(Any { type_url: SPEC_TYPE.into(), value: b"{}".to_vec() }),
            snapshotter: SNAPSHOTTER.into(),
            snapshot_key: id.0.clone(),
            ..Default::default()
        };
        let create = CreateContainerRequest { container: Some(container.clone()) };
        unless_there(self.containerd.containers().create(request(create)).await)
            .map_err(refused("making a container"))?;
        Ok(Recorded(container))
    }

    /// Says in its record what a container is to be.
    pub(super) async fn specify(
        &self,
        Recorded(mut container): Recorded,
        spec: &serde_json::Value,
    ) -> Result<(), OperationError> {
        container.spec = Some(Any { type_url: SPEC_TYPE.into(), value: spec.to_string().into_bytes() });
        let update_mask = Some(prost_types::FieldMask { paths: vec!["spec".into()] });
        let update = UpdateContainerRequest { container: Some(container), update_mask };
        let updated = self.containerd.containers().update(request(update)).await;
        updated.map(drop).map_err(refused("making a container"))
    }

    /// Makes the files of a container, all of its image's to begin with.
    pub(super) async fn prepare_snapshot(
        &self,
        Recorded(container): &Recorded,
        chain: &str,
    ) -> Result<Vec<Mount>, OperationError> {
        let prepare = PrepareSnapshotRequest {
            snapshotter: SNAPSHOTTER.into(),
            key: container.snapshot_key.clone(),
            parent: chain.to_owned(),
            labels: HashMap::new(),
        };
        let answer = self.containerd.snapshots().prepare(request(prepare)).await;
        Ok(answer.map_err(refused("making a snapshot"))?.into_inner().mounts)
    }

    /// The users and groups of a container's image.
    pub(super) async fn accounts(&self, id: &ContainerId) -> Result<Accounts, OperationError> {
        let asked = MountsRequest { snapshotter: SNAPSHOTTER.into(), key: id.0.clone() };
        let answer = self.containerd.snapshots().mounts(request(asked)).await;
        let mounts = answer.map_err(refused("looking at a snapshot"))?.into_inner().mounts;
        Ok(Accounts::from_layers(&layers::lower(&mounts)))
    }

    async fn run_task(
        &self,
        plan: &ContainerPlan,
        rootfs: Vec<Mount>,
        files: &Path,
    ) -> Result<(), OperationError> {
        let id = &plan.id;
        let pipes = output::pipes(files);
        let [stdout, stderr] = pipes.each_ref().map(|pipe| pipe.to_string_lossy().into_owned());
        self.logs.attach(id, pipes, self.log(&plan.labels.replica, plan.spec.log_bytes));
        let create = CreateTaskRequest {
            container_id: id.0.clone(),
            rootfs,
            stdout,
            stderr: if plan.spec.tty { String::new() } else { stderr },
            terminal: plan.spec.tty,
            options: Some(self.shim_options()),
            ..Default::default()
        };
        let mut tasks = self.containerd.tasks();
        tasks.create(request(create)).await.map_err(|status| start_failure(&status))?;
        if let Some(in_force) = self.settings.in_force.as_ref().filter(|_| !plan.spec.offline) {
            in_force.wait_for(plan.ip).await.map_err(transient)?;
        }
        let start = StartRequest { container_id: id.0.clone(), ..Default::default() };
        tasks.start(request(start)).await.map_err(|status| start_failure(&status))?;
        if plan.spec.resources.cgroup_parent.is_some() {
            cgroup::settle_parents();
        }
        Ok(())
    }

    pub(super) fn shim_options(&self) -> Any {
        let options = ShimOptions {
            shim_cgroup: self.settings.shim_cgroup.clone(),
            binary_name: self.settings.oci_runtime.to_string_lossy().into_owned(),
        };
        Any { type_url: OPTIONS_TYPE.into(), value: options.encode_to_vec() }
    }

    /// Asks the task to end, then kills it. Returns when it has ended.
    pub(super) async fn stop(
        &self,
        id: &ContainerId,
        signal: Option<&str>,
        grace: Duration,
    ) -> Result<(), OperationError> {
        if !self.is_alive(id).await? {
            return Ok(());
        }
        let signal = match signal {
            Some(signal) => parse_signal(signal)?,
            None => self.own_stop_signal(id).await?,
        };
        let ended = self.wait_for_end(id);
        tokio::pin!(ended);
        let deadline = tokio::time::Instant::now() + grace;
        if signal != Signal::SIGKILL as u32 {
            tokio::select! {
                ended = &mut ended => return ended,
                // What its time does not suffice for ends with the container.
                _ = tokio::time::timeout_at(deadline, self.before_stop(id, grace)) => {}
            }
        }
        self.kill(id, signal).await?;
        if let Ok(ended) = tokio::time::timeout_at(deadline, &mut ended).await {
            return ended;
        }
        self.kill(id, Signal::SIGKILL as u32).await?;
        tokio::time::timeout(KILL_PATIENCE, ended).await.unwrap_or_else(|_| {
            Err(transient(format!("the container does not end {} s after SIGKILL", KILL_PATIENCE.as_secs())))
        })
    }

    /// Runs the hooks of a container that is to stop. It stops whatever becomes of them.
    async fn before_stop(&self, id: &ContainerId, grace: Duration) {
        let hooks = match self.specification(id).await {
            Ok(spec) => oci::pre_stop(&spec),
            Err(error) => return tracing::warn!(container = id.0, %error, "its hooks are not known"),
        };
        if let Err(error) = self.run_hooks(id, "the hook before its stop", &hooks, grace).await {
            tracing::warn!(container = id.0, %error, "it is stopped all the same");
        }
    }

    async fn is_alive(&self, id: &ContainerId) -> Result<bool, OperationError> {
        Ok(self.task(id).await?.is_some_and(|task| task.status() != TaskStatus::Stopped))
    }

    /// The image's stop signal, else SIGTERM; SIGTERM too when the image's is nonsense.
    async fn own_stop_signal(&self, id: &ContainerId) -> Result<u32, OperationError> {
        let container = self.container(id).await?;
        let signal =
            container.and_then(|container| labels::read(&container.labels)).and_then(|l| l.stop_signal);
        Ok(signal.and_then(|signal| parse_signal(&signal).ok()).unwrap_or(Signal::SIGTERM as u32))
    }

    async fn kill(&self, id: &ContainerId, signal: u32) -> Result<(), OperationError> {
        let message = KillRequest { container_id: id.0.clone(), signal, ..Default::default() };
        let answer = if_there(self.containerd.tasks().kill(request(message)).await);
        match answer {
            // It ended on its own in the meantime.
            Err(status) if status.code() == Code::FailedPrecondition => Ok(()),
            other => other.map(drop).map_err(refused("signalling a container")),
        }
    }

    async fn wait_for_end(&self, id: &ContainerId) -> Result<(), OperationError> {
        let message = WaitRequest { container_id: id.0.clone(), ..Default::default() };
        let answer = if_there(self.containerd.tasks().wait(request(message)).await);
        answer.map(drop).map_err(refused("waiting for a container to end"))
    }

    /// Removes all there is of a container, whether whole, half made or not there.
    pub(super) async fn remove(&self, id: &ContainerId, logs: bool) -> Result<(), OperationError> {
        self.clear(id, logs).await?;
        fence::lift(&id.0);
        Ok(())
    }

    /// The same, but for the deadline that is set before the next one of this name starts.
    async fn clear(&self, id: &ContainerId, logs: bool) -> Result<(), OperationError> {
        let container = self.container(id).await?;
        self.stop(id, Some("SIGKILL"), KILL_PATIENCE).await?;
        let delete = DeleteTaskRequest { container_id: id.0.clone() };
        if_there(self.containerd.tasks().delete(request(delete)).await)
            .map_err(refused("deleting a task"))?;
        self.logs.detach(id).await;
        let snapshot = RemoveSnapshotRequest { snapshotter: SNAPSHOTTER.into(), key: id.0.clone() };
        if_there(self.containerd.snapshots().remove(request(snapshot)).await)
            .map_err(refused("removing a snapshot"))?;
        self.lift_root_limit(id, container.as_ref());
        self.networks.remove(id).await?;
        cgroup::remove(id);
        let views = self.views(id);
        Views::close(&views).map_err(|error| transient(format!("at {}: {error}", views.display())))?;
        let files = self.files(id);
        remove_folder(&files).map_err(|error| transient(format!("removing {}: {error}", files.display())))?;
        if let Some(labels) = container.and_then(|container| labels::read(&container.labels))
            && logs
        {
            let file = log_files::log_file(&self.settings.log_dir, &labels.container.replica);
            log_files::remove_logs(&file)
                .map_err(|error| transient(format!("removing {}: {error}", file.display())))?;
        }
        let delete = DeleteContainerRequest { id: id.0.clone() };
        if_there(self.containerd.containers().delete(request(delete)).await)
            .map_err(refused("deleting a container"))?;
        self.logs.forget(id);
        Ok(())
    }

    /// Lifts the limit of a container's own files, if it had one.
    fn lift_root_limit(&self, id: &ContainerId, container: Option<&Container>) {
        let spec = container.and_then(|container| container.spec.as_ref());
        let spec = spec.and_then(|spec| serde_json::from_slice(&spec.value).ok());
        if spec.is_some_and(|spec| oci::has_root_limit(&spec))
            && let Err(error) = quota::lift(&self.settings.log_dir, &id.0)
        {
            tracing::warn!(container = id.0, %error, "the limit of its own files is not lifted");
        }
    }
}

/// Writes what is mounted over the image's files, and makes the pipes of its output.
fn write_files(directory: &Path, plan: &ContainerPlan) -> std::io::Result<()> {
    fs::create_dir_all(directory)?;
    let ContainerPlan { hostname, ip, gateway, search, spec, .. } = plan;
    fs::write(directory.join("hostname"), format!("{hostname}\n"))?;
    let mut hosts = format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{ip}\t{hostname}.{search} {hostname}\n"
    );
    for host in &spec.hosts {
        let address = match host.address.as_str() {
            HOST_GATEWAY => gateway.to_string(),
            address => address.to_owned(),
        };
        hosts.push_str(&format!("{address}\t{}\n", host.name));
    }
    fs::write(directory.join("hosts"), hosts)?;
    let words = |first: &str, more: &[String]| {
        let more: String = more.iter().map(|word| format!(" {word}")).collect();
        format!("{first}{more}")
    };
    let search = words(search, &spec.resolver.search);
    let options = words("ndots:1", &spec.resolver.options);
    fs::write(
        directory.join("resolv.conf"),
        format!("nameserver {gateway}\nsearch {search}\noptions {options}\n"),
    )?;
    for (index, file) in spec.files.iter().enumerate() {
        let path = oci::content_of_file(directory, index);
        fs::write(&path, &file.content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(file.mode))?;
        std::os::unix::fs::chown(&path, Some(file.uid), Some(file.gid))?;
    }
    output::pipes(directory).iter().try_for_each(|pipe| output::make_pipe(pipe))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_by_name_and_number() {
        for (text, number) in
            [("SIGTERM", 15), ("term", 15), ("9", 9), ("SIGQUIT", 3), ("SIGRTMIN+3", 37), ("sigwinch", 28)]
        {
            assert_eq!(parse_signal(text).unwrap(), number, "{text}");
        }
        for text in ["", "SIGNOTHING", "0", "65", "-1", "SIGRTMIN+99"] {
            let error = parse_signal(text).unwrap_err();
            assert!(error.permanent && error.text.contains("not a signal"), "{text}");
        }
    }

    #[test]
    fn a_missing_program_is_a_permanent_failure_in_plain_words() {
        let status = Status::unknown(
            "failed to create shim task: Others(\"OCI runtime create failed: executable file `nope` not found in \
             $PATH: No such file or directory\"): unknown",
        );
        let error = start_failure(&status);
        assert!(error.permanent);
        assert_eq!(
            error.text,
            "the container does not start: executable file `nope` not found in $PATH: No such file or directory"
        );
        assert!(!start_failure(&Status::unavailable("containerd is gone")).permanent);
    }

    #[test]
    fn a_container_knows_its_own_name_and_its_name_server() {
        let directory = std::env::temp_dir().join(format!("hivemind-files-{}", std::process::id()));
        let plan = super::super::oci::tests::plan();
        write_files(&directory, &plan).unwrap();
        let read = |name: &str| fs::read_to_string(directory.join(name)).unwrap();
        assert_eq!(read("hostname"), "web-0\n");
        assert!(read("hosts").contains("10.42.3.7\tweb-0.default.hive.internal web-0\n"));
        assert_eq!(
            read("resolv.conf"),
            "nameserver 10.42.3.1\nsearch default.hive.internal\noptions ndots:1\n"
        );
        // Twice is as good as once.
        write_files(&directory, &plan).unwrap();
        fs::remove_dir_all(&directory).unwrap();
    }
}
