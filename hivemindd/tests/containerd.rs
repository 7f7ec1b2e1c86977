//! The container runtime against a real containerd, crun, shim and registry.
//!
//! Needs root, and in the path: `containerd` 2, `crun`, the Rust shim as `containerd-shim-runc-v2`,
//! `docker-registry`, `busybox` (static), `ip` and `tar`. Not part of the default run, where the
//! same road is gone in clusters of the image.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::{WriteAction, WriteContentRequest};
use containerd_client::tonic::Request;
use hivemind_core::event::{
    ContainerId, ContainerLabels, ContainerPlan, Event, ImagePeers, OperationError, RuntimeOp, Shortage,
    TaskState,
};
use hivemind_core::record::{ReplicaId, WorkloadId};
use hivemind_spec::id::Digest;
use hivemind_spec::machine::Registries;
use hivemind_spec::workload::HealthCheck;
use hivemindd::runtime::logs::LogQuery;
use hivemindd::runtime::{Runtime, Seen, Settings, health};
use oci_client::client::{ClientConfig, ClientProtocol, Config, ImageLayer};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use serde_json::json;
use tokio::sync::{mpsc, watch};

/// Everything on this machine may be emulated: patience.
const PATIENCE: Duration = Duration::from_secs(60);

/// A containerd, a registry and a bridge of the test's own, gone when dropped.
struct World {
    directory: PathBuf,
    bridge: String,
    containerd: Child,
    registry: Child,
    registry_host: String,
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}

fn in_path(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|path| path.exists()).unwrap()
}

fn spawn(directory: &Path, program: &str, argument: &[&str]) -> Child {
    let log =
        fs::File::options().create(true).append(true).open(directory.join(format!("{program}.log"))).unwrap();
    let mut command = Command::new(program);
    command.args(argument).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    command.spawn().unwrap()
}

fn start_containerd(directory: &Path) -> Child {
    // The image's own configuration, in another place.
    let at = |name: &str| directory.join(name).to_string_lossy().into_owned();
    let config = include_str!("../../rootfs/containerd.toml")
        .replace("/run/containerd/containerd.sock", &at("containerd.sock"))
        .replace("\"/run/containerd\"", &format!("{:?}", at("state")))
        .replace("\"/var/lib/containerd\"", &format!("{:?}", at("root")));
    let config = format!("{config}\n[ttrpc]\n  address = {:?}\n", at("ttrpc.sock"));
    let path = directory.join("containerd.toml");
    fs::write(&path, config).unwrap();
    let child = spawn(directory, "containerd", &["--config", &path.to_string_lossy()]);
    let started = Instant::now();
    while std::os::unix::net::UnixStream::connect(directory.join("containerd.sock")).is_err() {
        assert!(started.elapsed() < PATIENCE, "containerd does not start, see {}", directory.display());
        std::thread::sleep(Duration::from_millis(20));
    }
    child
}

impl World {
    fn new(name: &str) -> Self {
        let directory = PathBuf::from(format!("/run/hivemind-test-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let bridge = format!("hvt{}", std::process::id());
        run("ip", &["link", "add", &bridge, "type", "bridge"]);
        run("ip", &["addr", "add", "10.99.3.1/24", "dev", &bridge]);
        run("ip", &["link", "set", &bridge, "up"]);
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let registry_host = format!("127.0.0.1:{port}");
        let config = json!({
            "version": "0.1",
            "storage": { "filesystem": { "rootdirectory": directory.join("registry") } },
            "http": { "addr": registry_host },
        });
        let path = directory.join("registry.yml");
        fs::write(&path, config.to_string()).unwrap();
        let registry = spawn(&directory, "docker-registry", &["serve", &path.to_string_lossy()]);
        let containerd = start_containerd(&directory);
        Self { directory, bridge, containerd, registry, registry_host }
    }

    fn runtime(&self) -> Runtime {
        Runtime::connect(Settings {
            socket: self.directory.join("containerd.sock"),
            oci_runtime: in_path("crun"),
            init_program: std::env::current_exe().unwrap(),
            run_dir: self.directory.join("containers"),
            netns_dir: self.directory.join("netns"),
            log_dir: self.directory.join("logs"),
            volume_dir: self.directory.join("volumes"),
            bridge: self.bridge.clone(),
            in_force: None,
            shim_cgroup: if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
                "/hivemind/shims".into()
            } else {
                String::new()
            },
            registries: Registries { insecure: vec![self.registry_host.clone()], ..Registries::default() },
            transport: None,
            owner: None,
        })
        .unwrap()
    }

    /// Puts an image with busybox into the registry; returns its reference.
    async fn push_image(&self) -> String {
        let root = self.directory.join("image");
        for directory in ["bin", "etc", "tmp"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        fs::copy(in_path("busybox"), root.join("bin/busybox")).unwrap();
        for name in ["sh", "sleep", "echo", "cat", "id", "ip", "hostname", "tail", "wget"] {
            let _ = std::os::unix::fs::symlink("busybox", root.join("bin").join(name));
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:101:102::/srv:/bin/sh\n")
            .unwrap();
        let layer = self.directory.join("layer.tar");
        run("tar", &["-C", &root.to_string_lossy(), "-cf", &layer.to_string_lossy(), "."]);
        let layer = fs::read(layer).unwrap();
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "config": { "Cmd": ["/bin/sh", "-c", "echo hello; echo problem >&2; exec sleep 1000"], "User": "web" },
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
        });
        let host = vec![self.registry_host.clone()];
        let client =
            Client::new(ClientConfig { protocol: ClientProtocol::HttpsExcept(host), ..Default::default() });
        let name = format!("{}/box:1", self.registry_host);
        let reference: Reference = name.parse().unwrap();
        let config = Config::oci_v1(config.to_string().into_bytes(), None);
        let layer = ImageLayer::oci_v1(layer, None);
        let started = Instant::now();
        while let Err(error) = client
            .push(&reference, std::slice::from_ref(&layer), config.clone(), &RegistryAuth::Anonymous, None)
            .await
        {
            assert!(started.elapsed() < PATIENCE, "{error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        name
    }

    /// Leaves of a blob what an attempt leaves that was cut off when it had written this.
    async fn leave(&self, blob: &[u8], written: &[u8]) {
        const CHUNK: usize = 1 << 20;
        let channel = containerd_client::connect(self.directory.join("containerd.sock")).await.unwrap();
        let message = |action: WriteAction, offset: usize, data: &[u8]| WriteContentRequest {
            action: action.into(),
            r#ref: format!("blob-{}", digest(blob)),
            total: i64::try_from(blob.len()).unwrap(),
            expected: digest(blob),
            offset: i64::try_from(offset).unwrap(),
            data: data.to_vec(),
            ..Default::default()
        };
        let parts = written.chunks(CHUNK).enumerate();
        let parts = parts.map(|(number, data)| message(WriteAction::Write, number * CHUNK, data));
        let messages: Vec<_> = std::iter::once(message(WriteAction::Stat, 0, &[])).chain(parts).collect();
        let mut request = Request::new(futures_util::stream::iter(messages));
        request.metadata_mut().insert("containerd-namespace", "hivemind".parse().unwrap());
        let mut answers = ContentClient::new(channel).write(request).await.unwrap().into_inner();
        while answers.message().await.unwrap().is_some() {}
    }

    fn restart_containerd(&mut self) {
        self.containerd.kill().unwrap();
        self.containerd.wait().unwrap();
        self.containerd = start_containerd(&self.directory);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for child in [&mut self.containerd, &mut self.registry] {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = Command::new("ip").args(["link", "del", &self.bridge]).status();
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

fn digest(data: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, data);
    format!("sha256:{}", hivemind_spec::id::hex(digest.as_ref()))
}

fn plan(image: &str, slot: u32, more: serde_json::Value) -> ContainerPlan {
    let mut spec = json!({ "image": image });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let workload = WorkloadId { namespace: "default".into(), name: "box".into() };
    let ip = format!("10.99.3.{}", 10 + slot).parse().unwrap();
    ContainerPlan {
        id: ContainerId(format!("hm-{:016x}", u64::from(std::process::id()) << 16 | u64::from(slot))),
        labels: ContainerLabels {
            replica: ReplicaId { workload, slot },
            template: Digest::of(b"document"),
            ip,
            restarts: 1,
            asks: Default::default(),
        },
        spec: serde_json::from_value(spec).unwrap(),
        hostname: format!("box-{slot}"),
        ip,
        prefix: 24,
        gateway: "10.99.3.1".parse().unwrap(),
        search: "default.hive.internal".into(),
        mtu: 1400,
        volumes: Default::default(),
        secrets: Default::default(),
    }
}

async fn carry_out(runtime: &Runtime, op: RuntimeOp) -> Result<(), OperationError> {
    tokio::time::timeout(PATIENCE, runtime.run(&op, |_| ())).await.expect("in time")
}

async fn until(runtime: &Runtime, id: &ContainerId, wanted: impl Fn(&TaskState) -> bool) -> TaskState {
    let started = Instant::now();
    loop {
        let inventory = runtime.inventory().await.unwrap();
        let task = inventory.containers.get(id).map(|state| state.task.clone());
        if let Some(task) = task.clone().filter(|task| wanted(task)) {
            return task;
        }
        assert!(started.elapsed() < PATIENCE, "{task:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn log_lines(runtime: &Runtime, replica: &ReplicaId, count: usize) -> Vec<String> {
    let started = Instant::now();
    loop {
        let mut receiver = runtime.read_log(replica, LogQuery::default());
        let mut lines = Vec::new();
        while let Some(line) = receiver.recv().await {
            lines.push(format!("{} {}", line.stream, line.line));
        }
        if lines.len() >= count {
            return lines;
        }
        assert!(started.elapsed() < PATIENCE, "{lines:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
#[ignore = "needs root, containerd 2, crun, the Rust shim and docker-registry in the path"]
async fn a_container_lives_from_pull_to_removal() {
    let mut world = World::new("life");
    let runtime = world.runtime();
    let image = world.push_image().await;
    // What cannot be started or pulled is refused in words.
    let first = plan(&image, 0, json!({}));
    let error = carry_out(&runtime, RuntimeOp::Start(Box::new(first.clone()))).await.unwrap_err();
    assert!(error.text.contains("is not on this node"), "{}", error.text);
    let missing = RuntimeOp::Pull {
        image: format!("{}:2", image.strip_suffix(":1").unwrap()),
        credentials: None,
        peers: ImagePeers::default(),
    };
    let error = carry_out(&runtime, missing).await.unwrap_err();
    assert!(error.text.contains("404 manifest unknown"), "{}", error.text);

    // Pulling twice is as good as once, also at the same time.
    let pull = || {
        carry_out(
            &runtime,
            RuntimeOp::Pull { image: image.clone(), credentials: None, peers: ImagePeers::default() },
        )
    };
    let (one, two) = tokio::join!(pull(), pull());
    one.and(two).unwrap();
    pull().await.unwrap();
    assert!(runtime.inventory().await.unwrap().images.contains(&image));

    // Starting twice starts one.
    let start = |plan: &ContainerPlan| RuntimeOp::Start(Box::new(plan.clone()));
    let began = Instant::now();
    carry_out(&runtime, start(&first)).await.unwrap();
    eprintln!("started in {} ms", began.elapsed().as_millis());
    carry_out(&runtime, start(&first)).await.unwrap();
    let state = runtime.inventory().await.unwrap().containers[&first.id].clone();
    assert_eq!((state.task, state.labels), (TaskState::Running, Some(first.labels.clone())));
    let mut lines = log_lines(&runtime, &first.labels.replica, 2).await;
    lines.sort();
    assert_eq!(lines, ["stderr problem", "stdout hello"]);

    let server = tokio::net::TcpListener::bind("10.99.3.1:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, from) = server.accept().await.unwrap();
        assert_eq!(from.ip().to_string(), "10.99.3.10");
        let answer = b"HTTP/1.0 200 OK\r\nContent-Length: 16\r\n\r\nover the bridge\n";
        tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    });

    // Commands run inside it as its user, in its network; it reaches its gateway.
    let check = |command: &[&str]| HealthCheck {
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        interval_ms: 100,
        timeout_ms: 5000,
        retries: 1,
        start_period_ms: 0,
        ..HealthCheck::default()
    };
    let whoami = runtime.check_health(&first.id, &check(&["/bin/sh", "-c", "id -u; id -g; hostname"])).await;
    assert_eq!(whoami, (true, "101\n102\nbox-0".into()));
    let network = runtime.check_health(&first.id, &check(&["ip", "addr", "show", "eth0"])).await;
    assert!(network.0, "{network:?}");
    let gateway =
        runtime.check_health(&first.id, &check(&["wget", "-O-", &format!("http://10.99.3.1:{port}/")])).await;
    assert!(gateway.1.contains("over the bridge"), "{gateway:?}");
    let failing = runtime.check_health(&first.id, &check(&["/bin/sh", "-c", "echo no; exit 3"])).await;
    assert_eq!(failing, (false, "exit code 3: no".into()));
    let absent = runtime.check_health(&first.id, &check(&["/nonexistent"])).await;
    assert!(!absent.0, "{absent:?}");
    let slow = HealthCheck { timeout_ms: 300, ..check(&["sleep", "100"]) };
    assert_eq!(runtime.check_health(&first.id, &slow).await, (false, "no answer within 300 ms".into()));
    let (list, receiver) = watch::channel(BTreeMap::from([(first.id.clone(), check(&["id"]))]));
    let (sender, mut events) = mpsc::channel(10);
    let checks = tokio::spawn(health::check_all(runtime.clone(), receiver, sender));
    for _ in 0..2 {
        let event = tokio::time::timeout(PATIENCE, events.recv()).await.unwrap().unwrap();
        assert!(matches!(event, Event::HealthChecked { healthy: true, .. }), "{event:?}");
    }
    drop(list);
    checks.await.unwrap();

    // containerd dies and comes back, and another agent takes over: the container runs on.
    world.restart_containerd();
    drop(runtime);
    let runtime = world.runtime();
    let (sender, mut seen) = mpsc::channel(100);
    let watcher = tokio::spawn({
        let runtime = runtime.clone();
        async move { runtime.watch(sender).await }
    });
    until(&runtime, &first.id, |task| *task == TaskState::Running).await;

    // It ignores SIGTERM, being PID 1 without a handler, and is killed after the grace period.
    let stop =
        RuntimeOp::Stop { container: first.id.clone(), signal: None, grace_ms: 300, makes_room: false };
    carry_out(&runtime, stop.clone()).await.unwrap();
    let ended = until(&runtime, &first.id, |task| matches!(task, TaskState::Exited { .. })).await;
    assert!(
        matches!(ended, TaskState::Exited { code: 137, oom: None, at_ms } if at_ms > 1_000_000),
        "{ended:?}"
    );
    carry_out(&runtime, stop).await.unwrap();

    // Removing twice is as good as once, and the logs go only when told so.
    let remove = |logs| RuntimeOp::Remove { container: first.id.clone(), logs };
    carry_out(&runtime, remove(false)).await.unwrap();
    assert!(runtime.inventory().await.unwrap().containers.is_empty());
    assert_eq!(log_lines(&runtime, &first.labels.replica, 2).await.len(), 2);
    carry_out(&runtime, remove(false)).await.unwrap();
    carry_out(&runtime, start(&first)).await.unwrap();
    assert_eq!(log_lines(&runtime, &first.labels.replica, 4).await.len(), 4);
    carry_out(&runtime, remove(true)).await.unwrap();

    // What does not start leaves nothing behind.
    let broken = plan(&image, 1, json!({ "entrypoint": ["/bin/nothing"] }));
    let error = carry_out(&runtime, start(&broken)).await.unwrap_err();
    assert!(error.permanent && error.text.contains("/bin/nothing"), "{}", error.text);
    let unknown = plan(&image, 1, json!({ "user": "nobody" }));
    let error = carry_out(&runtime, start(&unknown)).await.unwrap_err();
    assert!(error.permanent && error.text.contains("\"nobody\""), "{}", error.text);
    assert!(runtime.inventory().await.unwrap().containers.is_empty());

    // An exit is seen as it happens, with its code.
    let short = plan(&image, 2, json!({ "command": ["/bin/sh", "-c", "echo done; exit 7"], "user": "0" }));
    carry_out(&runtime, start(&short)).await.unwrap();
    let exited = loop {
        let news = tokio::time::timeout(PATIENCE, seen.recv()).await.unwrap().unwrap();
        let Seen::Inventory(inventory) = news else { continue };
        match inventory.containers.get(&short.id).map(|state| state.task.clone()) {
            Some(TaskState::Exited { code, .. }) => break code,
            _ => continue,
        }
    };
    assert_eq!(exited, 7);
    assert_eq!(log_lines(&runtime, &short.labels.replica, 1).await, ["stdout done"]);
    carry_out(&runtime, RuntimeOp::Remove { container: short.id.clone(), logs: true }).await.unwrap();
    // Limits are the kernel's, and a container killed for its memory says so.
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        let resources = json!({ "memoryLimitBytes": 16 << 20, "cpuLimitMillis": 500, "pidsLimit": 20 });
        let hungry = plan(&image, 3, json!({ "resources": resources }));
        carry_out(&runtime, start(&hungry)).await.unwrap();
        let group = Path::new("/sys/fs/cgroup/hivemind/workloads").join(&hungry.id.0);
        let limit = |file: &str| fs::read_to_string(group.join(file)).unwrap().trim().to_owned();
        let limits = ["memory.max", "memory.swap.max", "cpu.max", "pids.max"].map(limit);
        assert_eq!(limits, ["16777216", "0", "50000 100000", "20"]);
        carry_out(&runtime, RuntimeOp::Remove { container: hungry.id.clone(), logs: true }).await.unwrap();
        assert!(!group.exists());
        let hungry = plan(&image, 3, json!({ "resources": resources, "command": ["tail", "/dev/zero"] }));
        carry_out(&runtime, start(&hungry)).await.unwrap();
        let ended = until(&runtime, &hungry.id, |task| matches!(task, TaskState::Exited { .. })).await;
        assert!(matches!(ended, TaskState::Exited { code: 137, oom: Some(Shortage::Own), .. }), "{ended:?}");
        carry_out(&runtime, RuntimeOp::Remove { container: hungry.id.clone(), logs: true }).await.unwrap();
    }

    // What a failed start said stays, to be read; the others' logs are gone.
    let logs = fs::read_dir(world.directory.join("logs/default/box")).unwrap();
    assert_eq!(logs.map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>(), ["1.log"]);
    for left in ["netns", "containers"] {
        assert_eq!(fs::read_dir(world.directory.join(left)).unwrap().count(), 0, "{left}");
    }
    watcher.abort();
}

#[tokio::test]
#[ignore = "needs root, containerd 2 and docker-registry in the path"]
async fn an_image_that_is_removed_is_gone_with_its_layers_and_can_be_had_again() {
    let world = World::new("image");
    let runtime = world.runtime();
    let image = world.push_image().await;
    let pull = || {
        carry_out(
            &runtime,
            RuntimeOp::Pull { image: image.clone(), credentials: None, peers: ImagePeers::default() },
        )
    };
    let blobs = world.directory.join("root/io.containerd.content.v1.content/blobs/sha256");
    let blobs = || fs::read_dir(&blobs).map_or(0, Iterator::count);
    pull().await.unwrap();
    assert_eq!(blobs(), 3, "manifest, configuration and layer");
    let remove = RuntimeOp::RemoveImage { image: image.clone() };
    carry_out(&runtime, remove.clone()).await.unwrap();
    let left = runtime.inventory().await.unwrap();
    assert!(left.images.is_empty() && blobs() == 0, "{} blobs, {left:?}", blobs());
    assert!(left.disk.is_some_and(|disk| disk.used_bytes > 0 && disk.total_bytes > disk.used_bytes));
    carry_out(&runtime, remove).await.unwrap();
    pull().await.unwrap();
    assert!(runtime.inventory().await.unwrap().images.contains(&image));
}

#[tokio::test]
#[ignore = "needs root, containerd 2 and docker-registry in the path"]
async fn a_blob_that_was_cut_off_is_gone_on_with_and_one_that_is_wrong_is_fetched_anew() {
    let world = World::new("cut");
    let runtime = world.runtime();
    let image = world.push_image().await;
    let layer = fs::read(world.directory.join("layer.tar")).unwrap();
    let pull = || {
        let peers = ImagePeers::default();
        carry_out(&runtime, RuntimeOp::Pull { image: image.clone(), credentials: None, peers })
    };
    let remove = || carry_out(&runtime, RuntimeOp::RemoveImage { image: image.clone() });
    let asked = || {
        let said = fs::read_to_string(world.directory.join("docker-registry.log")).unwrap();
        said.matches(&format!("\"GET /v2/box/blobs/{}", digest(&layer))).count()
    };
    world.leave(&layer, &layer).await;
    pull().await.unwrap();
    assert_eq!(asked(), 0, "it was whole, and had only to be ended");
    remove().await.unwrap();

    world.leave(&layer, &layer[..layer.len() / 2]).await;
    pull().await.unwrap();
    assert_eq!(asked(), 1);
    remove().await.unwrap();

    world.leave(&layer, &vec![7; layer.len()]).await;
    let error = pull().await.unwrap_err();
    assert!(!error.permanent && error.text.contains("digest mismatch"), "{error}");
    pull().await.unwrap();
    assert_eq!(asked(), 2);
}
