//! A container of tools beside another one: with its processes, network, host name and memory segments, and files of its own.
//! It is there for as long as somebody is at its other end.
//!
//! It is no replica, and no inventory has it. Its label says so, and by that an agent finds what another left.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};

use containerd_client::services::v1::{CreateTaskRequest, ListContainersRequest};
use hivemind_core::event::{ContainerId, ContainerPlan, ImagePeers, OperationError};
use hivemind_spec::exec::{DebugRequest, OutputStream};
use hivemind_spec::workload::{Capabilities, ContainerSpec, Resources};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::time::sleep;

use super::client::{request, transient};
use super::container::start_failure;
use super::exec::Exec;
use super::image::LocalImage;
use super::labels;
use super::layers;
use super::oci::{self, Surroundings};
use super::session::{Pipes, RETRY, attend};
use super::stream::OtherEnd;
use super::user::Accounts;
use super::{Runtime, cgroup};

/// The label of a container of tools: beside which it is.
pub(super) const BESIDE: &str = "hivemind/beside";

/// The most memory that tools may use, bytes.
const MEMORY_BYTES: u64 = 256 << 20;

/// What tools may do besides what every container may: trace the other's processes, and so read its files by
/// `/proc/1/root`.
const TRACE: &str = "SYS_PTRACE";

/// What is shared with the other container, as the runtime specification and the kernel call it.
const SHARED: [(&str, &str); 4] = [("pid", "pid"), ("network", "net"), ("ipc", "ipc"), ("uts", "uts")];

/// Numbers the containers of this run of the agent.
static NEXT: AtomicU64 = AtomicU64::new(0);

impl Runtime {
    /// Runs an image beside a container to its end. Returns its exit code.
    ///
    /// # Errors
    /// When the image cannot be had, or it does not start.
    pub async fn debug(
        &self,
        beside: &ContainerId,
        asked: &DebugRequest,
        other: OtherEnd,
    ) -> Result<u32, OperationError> {
        let id =
            ContainerId(format!("debug-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        let image = match self.images.find(&asked.image).await? {
            Some(image) => image,
            None => {
                let line = format!("the machine fetches {}\n", asked.image).into();
                // Who does not hear that will hear the rest.
                let _ = other.output.try_send((OutputStream::Stderr, line));
                self.images.pull(&asked.image, None, &ImagePeers::default(), |_| {}).await?;
                let fetched = self.images.find(&asked.image).await?;
                fetched.ok_or_else(|| transient(format!("image {} is not on this node", asked.image)))?
            }
        };
        let result = self.run_beside(&id, beside, asked, &image, other).await;
        if let Err(error) = self.remove(&id, true).await {
            tracing::warn!(container = id.0, %error, "a container of tools is not removed yet");
        }
        result
    }

    async fn run_beside(
        &self,
        id: &ContainerId,
        beside: &ContainerId,
        asked: &DebugRequest,
        image: &LocalImage,
        other: OtherEnd,
    ) -> Result<u32, OperationError> {
        let gone = || transient("the container is not there any more");
        let pid = self.task(beside).await?.map(|task| task.pid).filter(|pid| *pid > 0).ok_or_else(gone)?;
        let record = self.container(beside).await?.ok_or_else(gone)?;
        let theirs = self.specification(beside).await?;
        let own = labels::read(&record.labels).ok_or_else(gone)?.container;
        let labels = [(BESIDE.to_owned(), beside.0.clone())].into();
        let recorded = self.record(id, &asked.image, labels).await?;
        let mounts = self.prepare_snapshot(&recorded, &image.chain).await?;
        let traces = has_own(&theirs, "pid");
        let plan = ContainerPlan {
            id: id.clone(),
            spec: tools(asked, traces),
            hostname: theirs["hostname"].as_str().unwrap_or_default().to_owned(),
            ip: own.ip,
            prefix: 0,
            gateway: Ipv4Addr::UNSPECIFIED,
            search: own.replica.workload.search_domain(),
            mtu: 0,
            volumes: Default::default(),
            secrets: Default::default(),
            labels: own,
        };
        let around = Surroundings {
            execution: &image.execution,
            identity: Accounts::from_layers(&layers::lower(&mounts)).resolve("0", &[])?,
            init_program: &self.settings.init_program,
            netns: &self.networks.path(beside),
            // Who looks into it is the machine's.
            users: None,
            // Names are resolved as they are there.
            files: &self.files(beside),
            volumes: &Default::default(),
            disk: None,
            host_paths: &[],
            devices: &[],
            cores: cgroup::cores(),
            limits: self.limits,
            open_files: self.open_files,
        };
        let mut spec = oci::spec(&plan, &around)?;
        share(&mut spec, &theirs, pid);
        self.specify(recorded, &spec).await?;
        let exec = Exec::known(self, id, String::new());
        let files = self.files(id);
        let unusable = |error: std::io::Error| transient(format!("its pipes cannot be made: {error}"));
        std::fs::create_dir_all(&files).map_err(unusable)?;
        let mut pipes = Pipes::make(&exec, asked.terminal.is_some()).map_err(unusable)?;
        let stdio = pipes.stdio();
        let create = CreateTaskRequest {
            container_id: id.0.clone(),
            rootfs: mounts,
            stdin: stdio.stdin,
            stdout: stdio.stdout,
            stderr: stdio.stderr,
            terminal: asked.terminal.is_some(),
            options: Some(self.shim_options()),
            ..Default::default()
        };
        let created = self.containerd.tasks().create(request(create)).await;
        created.map_err(|status| start_failure(&status))?;
        let pid = exec.start().await.map_err(|status| start_failure(&status))?;
        match pipes.open() {
            Ok(open) => attend(&exec, pid, asked.terminal, open, other).await,
            Err(error) => {
                exec.kill(Signal::SIGKILL).await;
                Err(unusable(error))
            }
        }
    }

    /// Removes the containers of tools that an agent before this one left: nobody is at their other end any more.
    pub(super) async fn end_debugging(&self) {
        let filters = vec![format!("labels.\"{BESIDE}\"")];
        loop {
            let list = ListContainersRequest { filters: filters.clone() };
            let left = self.containerd.containers().list(request(list)).await;
            let Ok(left) = left.map(|answer| answer.into_inner().containers) else {
                sleep(RETRY).await;
                continue;
            };
            let own = format!("debug-{}-", std::process::id());
            let left: Vec<_> = left.into_iter().filter(|container| !container.id.starts_with(&own)).collect();
            if left.is_empty() {
                return;
            }
            for container in left {
                tracing::info!(container = container.id, "tools that an agent before this one ran are ended");
                if let Err(error) = self.remove(&ContainerId(container.id), true).await {
                    tracing::debug!(%error, "it is tried again");
                    sleep(RETRY).await;
                }
            }
        }
    }
}

/// What tools are as a container.
fn tools(asked: &DebugRequest, traces: bool) -> ContainerSpec {
    let mut spec = ContainerSpec::of(&asked.image);
    spec.command = (!asked.command.is_empty()).then(|| asked.command.clone());
    if spec.command.is_some() {
        // An entry point of the image's would take it for arguments.
        spec.entrypoint = Some(Vec::new());
    }
    spec.tty = asked.terminal.is_some();
    spec.user = Some("0".to_owned());
    spec.resources = Resources { memory_limit_bytes: Some(MEMORY_BYTES), ..Resources::default() };
    if traces {
        spec.capabilities = Capabilities { add: [TRACE.to_owned()].into(), ..Capabilities::default() };
    }
    spec
}

/// Whether a container has a namespace of this kind of its own.
fn has_own(spec: &Value, kind: &str) -> bool {
    let all = spec["linux"]["namespaces"].as_array();
    all.is_some_and(|all| all.iter().any(|namespace| namespace["type"] == kind))
}

/// Has tools share what another container, whose first process is `pid`, has of its own; what that shares with the machine they
/// share too.
fn share(spec: &mut Value, theirs: &Value, pid: u32) {
    let shared = SHARED
        .iter()
        .filter(|(kind, _)| has_own(theirs, kind))
        .map(|(kind, name)| serde_json::json!({ "type": kind, "path": format!("/proc/{pid}/ns/{name}") }));
    let own = ["mount", "cgroup"].map(|kind| serde_json::json!({ "type": kind }));
    spec["linux"]["namespaces"] = own.into_iter().chain(shared).collect();
    // They are the other container's already, or the machine's.
    if let Some(spec) = spec.as_object_mut() {
        spec.remove("hostname");
        spec.remove("domainname");
    }
    spec["linux"]["sysctl"] = serde_json::json!({});
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tools_share_what_the_other_container_has_of_its_own_and_trace_no_process_of_the_machine() {
        let theirs = json!({ "linux": { "namespaces": [
            { "type": "pid" }, { "type": "mount" }, { "type": "network", "path": "/run/netns/a" }, { "type": "ipc" },
        ] } });
        let mut spec = json!({ "hostname": "web-0", "linux": { "sysctl": { "net.a": "1" }, "namespaces": [{ "type": "pid" }] } });
        share(&mut spec, &theirs, 7);
        let shared = |kind: &str| {
            let all = spec["linux"]["namespaces"].as_array().unwrap();
            all.iter().find(|namespace| namespace["type"] == kind).cloned()
        };
        assert_eq!(shared("pid").unwrap()["path"], "/proc/7/ns/pid");
        assert_eq!(shared("network").unwrap()["path"], "/proc/7/ns/net");
        assert_eq!(shared("mount").unwrap(), json!({ "type": "mount" }));
        assert_eq!(shared("uts"), None, "the machine's, as the other's is");
        assert!(spec.get("hostname").is_none() && spec["linux"]["sysctl"] == json!({}));
        assert!(has_own(&theirs, "pid") && !has_own(&theirs, "uts"));
        let asked = DebugRequest { image: "tools:1".into(), command: vec!["sh".into()], terminal: None };
        assert!(tools(&asked, true).capabilities.granted().contains(&TRACE));
        assert!(!tools(&asked, false).capabilities.granted().contains(&TRACE));
    }
}
