//! The runtime specification of a container (OCI runtime specification 1.1), made from the image's
//! configuration and the plan.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hivemind_core::event::{ContainerPlan, OperationError};
use hivemind_spec::workload::{
    CPU_SHARES, ContainerSpec, DeviceRule, DiskLimits, Hook, HostNamespace, HostPath, MAX_OPEN_FILES,
    SECRETS_FOLDER, SecretMount, SystemCalls, Tmpfs, Ulimit, rights,
};
use serde_json::{Value, json};

use super::client::permanent;
use super::device::Device;
use super::image::Execution;
use super::seccomp;
use super::secrets;
use super::user::Identity;
use super::users::Users;

/// Docker's default path of executables, for images that set none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const MASKED_PATHS: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
];

const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Files a process may have open: what servers expect, and the most there is.
pub(super) const OPEN_FILES: (u64, u64) = (65_536, MAX_OPEN_FILES);

/// Length of the CPU accounting period, in microseconds: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;

/// CPU shares of one core, as Docker and cgroup v1 count them.
const SHARES_PER_CORE: u64 = 1024;

/// Workloads are killed before the services of the machine when memory is short.
const OOM_SCORE_ADJUSTMENT: i32 = 100;

/// What makes the kernel end a process for memory never (proc_pid_oom_score_adj(5)).
const OOM_NEVER: i32 = -1000;

/// Memory for `/dev/shm`, in bytes: Docker's default.
const SHM_BYTES: u64 = 64 << 20;

/// "No limit" of a process limit (`RLIM_INFINITY`).
const NO_LIMIT: u64 = u64::MAX;

/// Where a container finds its init process.
const INIT: &str = "/sbin/hivemind-init";

/// What that program is told to do.
const REAP: &str = "reap";

/// The annotation with the hooks to run before a container is stopped: kept with it, so that an agent that finds
/// it knows them.
const PRE_STOP: &str = "hivemind/pre-stop";

/// The annotation of a container whose own files are limited.
const ROOT_LIMIT: &str = "hivemind/root-limit";

/// The parent cgroup of all workloads.
pub(super) const WORKLOADS_CGROUP: &str = "/hivemind/workloads";

/// What surrounds the container.
pub(super) struct Surroundings<'a> {
    /// The image's wishes.
    pub(super) execution: &'a Execution,
    /// Who it runs as.
    pub(super) identity: Identity,
    /// `hivemind-init`.
    pub(super) init_program: &'a Path,
    /// Its network namespace.
    pub(super) netns: &'a Path,
    /// Its users, if they are not the machine's.
    pub(super) users: Option<&'a Users>,
    /// The directory with its `hosts`, `hostname`, `resolv.conf` and files of the document's.
    pub(super) files: &'a Path,
    /// Where its volumes are, and what NFS servers have, by where they are to be in it.
    pub(super) volumes: &'a BTreeMap<String, PathBuf>,
    /// The numbers of the machine's disk, where something on it is to be limited.
    pub(super) disk: Option<(u64, u64)>,
    /// The paths of the machine that it is given, and where they lead.
    pub(super) host_paths: &'a [(PathBuf, &'a HostPath)],
    /// The devices of the machine that it is given.
    pub(super) devices: &'a [Device],
    /// The machine's CPU cores.
    pub(super) cores: u64,
    /// Whether resource limits can be set: not where no cgroup controllers are delegated.
    pub(super) limits: bool,
    /// The highest hard limit of open files that can be given.
    pub(super) open_files: u64,
}

/// Makes the runtime specification.
pub(super) fn spec(plan: &ContainerPlan, around: &Surroundings<'_>) -> Result<Value, OperationError> {
    let access = &plan.spec.machine;
    let mut spec = json!({
        "ociVersion": "1.1.0",
        "annotations": annotations(&plan.spec),
        "root": { "path": "rootfs", "readonly": plan.spec.read_only },
        "process": process(plan, around)?,
        "mounts": mounts(plan, around)?,
        "linux": {
            "cgroupsPath": cgroup_path(plan),
            "namespaces": namespaces(plan, around),
            "devices": around.devices.iter().map(device_node).collect::<Vec<_>>(),
            "resources": resources(plan, around),
            "sysctl": sysctls(plan),
        },
    });
    if let Some(users) = around.users {
        spec["linux"]["uidMappings"] = users.mappings();
        spec["linux"]["gidMappings"] = users.mappings();
    }
    if !access.privileged {
        spec["linux"]["maskedPaths"] = json!(MASKED_PATHS);
        spec["linux"]["readonlyPaths"] = json!(READONLY_PATHS);
    }
    match &access.system_calls {
        None if access.privileged => {}
        Some(SystemCalls::Unconfined) => {}
        None => spec["linux"]["seccomp"] = seccomp::profile(),
        Some(SystemCalls::Profile(own)) => {
            spec["linux"]["seccomp"] = seccomp::chosen(own, &granted(&plan.spec));
        }
    }
    if !access.host_namespaces.contains(&HostNamespace::Uts) {
        spec["hostname"] = plan.hostname.as_str().into();
    }
    if let Some(domain) = &plan.spec.domainname {
        spec["domainname"] = domain.as_str().into();
    }
    Ok(spec)
}

/// Its own control group, by itself or together with others.
fn cgroup_path(plan: &ContainerPlan) -> String {
    let namespace = &plan.labels.replica.workload.namespace;
    let parent = plan.spec.resources.cgroup_parent.as_ref();
    let parent = parent.map(|name| format!("/{}", hivemind_init::cgroup::parent(namespace, name)));
    format!("{WORKLOADS_CGROUP}{}/{}", parent.unwrap_or_default(), plan.id.0)
}

/// The capabilities of the container's root.
fn granted(spec: &ContainerSpec) -> Vec<String> {
    let granted = match spec.machine.privileged {
        true => rights::every_capability().collect(),
        false => spec.capabilities.granted(),
    };
    granted.into_iter().map(|name| format!("CAP_{name}")).collect()
}

/// The namespaces the container has of its own.
fn namespaces(plan: &ContainerPlan, around: &Surroundings<'_>) -> Vec<Value> {
    let shared = &plan.spec.machine.host_namespaces;
    let own = [
        ("pid", HostNamespace::Pid),
        ("ipc", HostNamespace::Ipc),
        ("uts", HostNamespace::Uts),
        ("cgroup", HostNamespace::Cgroup),
    ];
    let own = own.into_iter().filter(|(_, namespace)| !shared.contains(namespace));
    let own = own.map(|(name, _)| json!({ "type": name }));
    let network = (!plan.spec.has_host_network()).then(|| json!({ "type": "network", "path": around.netns }));
    let users = around.users.map(Users::namespace);
    own.chain([json!({ "type": "mount" })]).chain(network).chain(users).collect()
}

fn device_node(device: &Device) -> Value {
    json!({
        "path": device.path,
        "type": device.kind.letter(),
        "major": device.major,
        "minor": device.minor,
        "fileMode": device.mode,
        "uid": device.uid,
        "gid": device.gid,
    })
}

/// What the container may do to devices: nothing but to the harmless ones that every container gets from the runtime,
/// and to what it is given.
fn device_rules(plan: &ContainerPlan, around: &Surroundings<'_>) -> Vec<Value> {
    let access = &plan.spec.machine;
    if access.privileged {
        return vec![json!({ "allow": true, "access": "rwm" })];
    }
    let mut rules = vec![json!({ "allow": false, "access": "rwm" })];
    rules.extend(around.devices.iter().map(|device| {
        json!({
            "allow": true, "type": device.kind.letter(), "major": device.major, "minor": device.minor,
            "access": device.access,
        })
    }));
    let asked = access.device_rules.iter().filter_map(|text| DeviceRule::parse(text));
    rules.extend(asked.map(|DeviceRule { kind, major, minor, access }| {
        let mut rule = json!({ "allow": true, "type": kind, "access": access });
        for (name, number) in [("major", major), ("minor", minor)] {
            if let Some(number) = number {
                rule[name] = number.into();
            }
        }
        rule
    }));
    rules
}

fn annotations(spec: &ContainerSpec) -> BTreeMap<String, String> {
    let mut annotations = spec.annotations.clone();
    if !spec.pre_stop.is_empty() {
        annotations.insert(PRE_STOP.to_owned(), json!(spec.pre_stop).to_string());
    }
    if let Some(bytes) = spec.root_size_bytes {
        annotations.insert(ROOT_LIMIT.to_owned(), bytes.to_string());
    }
    annotations
}

/// Whether a container's own files are limited, from its runtime specification.
pub(super) fn has_root_limit(spec: &Value) -> bool {
    spec["annotations"][ROOT_LIMIT].is_string()
}

/// The hooks to run before a container is stopped, from its runtime specification.
pub(super) fn pre_stop(spec: &Value) -> Vec<Hook> {
    let hooks = spec["annotations"][PRE_STOP].as_str();
    hooks.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// As Docker does by itself: harmless inside a network namespace of its own, and images expect it.
fn sysctls(plan: &ContainerPlan) -> BTreeMap<&str, &str> {
    // Groups that are not there cannot be named.
    let groups = if plan.spec.user_namespace { "0 65535" } else { "0 2147483647" };
    let of_network = [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", groups)];
    // On the machine's network they would be the machine's.
    let mut sysctls: BTreeMap<_, _> =
        of_network.into_iter().filter(|_| !plan.spec.has_host_network()).collect();
    sysctls.extend(plan.spec.sysctls.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    sysctls
}

fn process(plan: &ContainerPlan, around: &Surroundings<'_>) -> Result<Value, OperationError> {
    let mut args = arguments(plan, around.execution)?;
    if plan.spec.init {
        args.splice(..0, [INIT.to_owned(), REAP.to_owned()]);
    }
    let directory = plan.spec.working_dir.as_deref().or(around.execution.working_dir.as_deref());
    let directory = directory.filter(|path| !path.is_empty()).unwrap_or("/");
    if !directory.starts_with('/') {
        return Err(permanent(format!("the working directory {directory:?} is not an absolute path")));
    }
    let identity = &around.identity;
    let access = &plan.spec.machine;
    let bounding = granted(&plan.spec);
    let mut process = json!({
        "terminal": plan.spec.tty,
        "args": args,
        "env": environment(plan, around),
        "cwd": directory,
        "capabilities": { "bounding": bounding },
        "rlimits": process_limits(plan, around.open_files),
        "noNewPrivileges": !access.privileged,
        "oomScoreAdj": match access.outlasts_memory {
            true => OOM_NEVER,
            false => plan.spec.oom_score_adj.unwrap_or(OOM_SCORE_ADJUSTMENT),
        },
    });
    run_as(&mut process, identity);
    Ok(process)
}

/// Makes a process one of a user. Only root has the capabilities that it may have.
pub(super) fn run_as(process: &mut Value, identity: &Identity) {
    process["user"] = json!({ "uid": identity.uid, "gid": identity.gid, "additionalGids": identity.groups });
    let capabilities = match identity.uid {
        0 => process["capabilities"]["bounding"].clone(),
        _ => json!([]),
    };
    for set in ["effective", "permitted"] {
        process["capabilities"][set] = capabilities.clone();
    }
}

/// The home directory of a user, whom the image may not know.
pub(super) fn home(identity: &Identity) -> &str {
    identity.home.as_deref().filter(|home| !home.is_empty()).unwrap_or("/")
}

/// The process limits, and of open files no more than this machine can give.
fn process_limits(plan: &ContainerPlan, open_files: u64) -> Vec<Value> {
    let mut limits = BTreeMap::from([
        ("core", Ulimit { soft: Some(0), hard: Some(0) }),
        ("nofile", Ulimit { soft: Some(OPEN_FILES.0), hard: Some(OPEN_FILES.1) }),
    ]);
    limits.extend(plan.spec.ulimits.iter().map(|(name, limit)| (name.as_str(), *limit)));
    let entry = |(name, Ulimit { soft, hard }): (&str, Ulimit)| {
        let most = if name == "nofile" { open_files.min(OPEN_FILES.1) } else { NO_LIMIT };
        let hard = hard.unwrap_or(NO_LIMIT).min(most);
        let soft = soft.unwrap_or(NO_LIMIT).min(hard);
        json!({ "type": format!("RLIMIT_{}", name.to_ascii_uppercase()), "soft": soft, "hard": hard })
    };
    limits.into_iter().map(entry).collect()
}

/// Entry point and command by Docker's rules: each of the document's replaces the image's, and an
/// entry point of the document's own also drops the image's command.
pub(super) fn arguments(plan: &ContainerPlan, execution: &Execution) -> Result<Vec<String>, OperationError> {
    let spec = &plan.spec;
    let entrypoint = spec.entrypoint.as_ref().or(execution.entrypoint.as_ref());
    let command = match (&spec.command, &spec.entrypoint) {
        (Some(command), _) => Some(command),
        (None, Some(_)) => None,
        (None, None) => execution.cmd.as_ref(),
    };
    let args: Vec<String> = entrypoint.into_iter().chain(command).flatten().cloned().collect();
    if args.first().is_none_or(String::is_empty) {
        return Err(permanent(format!(
            "image {} says not what to run; set `command` in the document",
            spec.image
        )));
    }
    Ok(args)
}

fn environment(plan: &ContainerPlan, around: &Surroundings<'_>) -> Vec<String> {
    let mut env: BTreeMap<&str, &str> = [("PATH", DEFAULT_PATH), ("HOSTNAME", plan.hostname.as_str())].into();
    if plan.spec.tty {
        env.insert("TERM", "xterm");
    }
    env.insert("HOME", home(&around.identity));
    let image = around.execution.env.iter().flatten().filter_map(|variable| variable.split_once('='));
    env.extend(image);
    env.extend(plan.spec.env.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    env.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn mounts(plan: &ContainerPlan, around: &Surroundings<'_>) -> Result<Vec<Value>, OperationError> {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": source, "options": options });
    let kernel = if plan.spec.machine.privileged { "rw" } else { "ro" };
    let shm = format!("size={}", plan.spec.shm_size_bytes.unwrap_or(SHM_BYTES));
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", &shm]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", kernel]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", kernel]),
    ];
    for name in ["hosts", "hostname", "resolv.conf"] {
        let source = around.files.join(name);
        mounts.push(mount(
            &format!("/etc/{name}"),
            "bind",
            &source.to_string_lossy(),
            &["rbind", "rprivate"],
        ));
    }
    // What is written there counts against the container's memory; where that has no limit, the
    // kernel's default (half the machine's memory) holds.
    let size = plan.spec.resources.memory_limit_bytes.map(|bytes| format!("size={bytes}"));
    for text in &plan.spec.tmpfs {
        let tmpfs = Tmpfs::parse(text).map_err(permanent)?;
        // Of options that say the opposite, the kernel takes the last.
        let mut options = vec!["nosuid", "nodev", "noexec", "mode=1777"];
        options.extend(size.as_deref());
        options.extend(tmpfs.options.iter().map(String::as_str));
        mounts.push(mount(&tmpfs.path, "tmpfs", "tmpfs", &options));
    }
    mounts.extend(volumes(plan, around));
    mounts.extend(host_paths(around.host_paths));
    if plan.spec.init {
        let options = ["bind", "rprivate", "ro", "nosuid", "nodev"];
        mounts.push(mount(INIT, "bind", &around.init_program.to_string_lossy(), &options));
    }
    mounts.extend(secrets_of(plan, around.files));
    // After the directories, in which they may lie.
    for (index, file) in plan.spec.files.iter().enumerate() {
        let source = content_of_file(around.files, index);
        let options = ["bind", "rprivate", "ro", "nosuid", "nodev"];
        mounts.push(mount(&file.path, "bind", &source.to_string_lossy(), &options));
    }
    Ok(mounts)
}

/// Folders and files of the machine. What is mounted below one that may only be read may only be read too.
fn host_paths(found: &[(PathBuf, &HostPath)]) -> Vec<Value> {
    let mount = |(source, host): &(PathBuf, &HostPath)| {
        let access = if host.read_only { "rro" } else { "rw" };
        let propagation = if host.follows { "rslave" } else { "rprivate" };
        let options = ["rbind", propagation, access, "nosuid"];
        json!({ "destination": host.target, "type": "bind", "source": source, "options": options })
    };
    found.iter().map(mount).collect()
}

/// The volumes and what NFS servers have, those first in which others are mounted.
fn volumes(plan: &ContainerPlan, around: &Surroundings<'_>) -> Vec<Value> {
    let own = plan.spec.volumes.iter().map(|mount| (mount.path.as_str(), mount.read_only));
    let nfs = plan.spec.machine.nfs.iter().map(|mount| (mount.target.as_str(), mount.read_only));
    let wanted: BTreeMap<&str, bool> = own.chain(nfs).collect();
    let mount = |(path, read_only)| {
        let source = around.volumes.get(path)?;
        let access = if read_only { "ro" } else { "rw" };
        let options = ["bind", "rprivate", access, "nosuid", "nodev"];
        Some(json!({ "destination": path, "type": "bind", "source": source, "options": options }))
    };
    wanted.into_iter().filter_map(mount).collect()
}

/// The secrets: one folder for those that are in theirs, and the others each by itself.
fn secrets_of(plan: &ContainerPlan, files: &Path) -> Vec<Value> {
    let mount = |destination: &str, source: PathBuf| {
        let options = ["bind", "rprivate", "ro", "nosuid", "nodev", "noexec"];
        json!({ "destination": destination, "type": "bind", "source": source, "options": options })
    };
    let all = &plan.spec.secrets;
    let folder = all.iter().any(|secret| secret.in_folder().is_some());
    let folder = folder.then(|| mount(SECRETS_FOLDER, secrets::folder(files)));
    let others = all.iter().enumerate().filter(|(_, secret)| secret.in_folder().is_none());
    let file = |(index, secret): (usize, &SecretMount)| mount(&secret.path, secrets::file(files, index));
    folder.into_iter().chain(others.map(file)).collect()
}

/// Where the content lies of the document's file with this number.
pub(super) fn content_of_file(files: &Path, index: usize) -> PathBuf {
    files.join(format!("file-{index}"))
}

fn resources(plan: &ContainerPlan, around: &Surroundings<'_>) -> Value {
    let devices = device_rules(plan, around);
    if !around.limits {
        return json!({ "devices": devices });
    }
    let wanted = &plan.spec.resources;
    let shares = wanted.cpu_shares.unwrap_or(wanted.cpu_millis() * SHARES_PER_CORE / 1000);
    let mut cpu = json!({ "shares": shares.clamp(CPU_SHARES.0, CPU_SHARES.1) });
    if let Some(cores) = &wanted.cpuset {
        cpu["cpus"] = cores.as_str().into();
    }
    let of_all = wanted.cpu_limit_percent.map(|percent| around.cores.saturating_mul(percent * 10));
    if let Some(millis) = [wanted.cpu_limit_millis, of_all].into_iter().flatten().min() {
        cpu["period"] = CPU_PERIOD_US.into();
        cpu["quota"] = (millis.saturating_mul(CPU_PERIOD_US) / 1000).max(1000).into();
    }
    let mut resources = json!({ "devices": devices, "cpu": cpu, "pids": { "limit": wanted.pids() } });
    if let Some(bytes) = wanted.memory_limit_bytes {
        // The limit of memory and swap together; -1 is none.
        let swap = wanted.swap_limit_bytes.unwrap_or(0);
        let both = i64::try_from(bytes.saturating_add(swap)).unwrap_or(-1);
        resources["memory"] = json!({ "limit": bytes, "swap": both });
    }
    if let Some(disk) = around.disk {
        resources["blockIO"] = disk_limits(wanted.disk, disk);
    }
    resources
}

fn disk_limits(limits: DiskLimits, (major, minor): (u64, u64)) -> Value {
    let DiskLimits { read_bytes, write_bytes, read_operations, write_operations } = limits;
    let entry = |rate: Option<u64>| {
        let all = rate.map(|rate| json!({ "major": major, "minor": minor, "rate": rate }));
        all.into_iter().collect::<Vec<_>>()
    };
    json!({
        "throttleReadBpsDevice": entry(read_bytes),
        "throttleWriteBpsDevice": entry(write_bytes),
        "throttleReadIOPSDevice": entry(read_operations),
        "throttleWriteIOPSDevice": entry(write_operations),
    })
}

#[cfg(test)]
pub(super) mod tests;
