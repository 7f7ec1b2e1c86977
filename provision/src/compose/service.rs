//! One service to one workload.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use hivemind_spec::workload::{
    Condition, Constraint, ContainerSpec, Dependency, Exclusive, HealthCheck, Job, MAX_REPLICAS, Operator,
    PLATFORM_ARCH, PLATFORM_OS, RestartCondition, RestartPolicy, Takeover, UpdatePolicy, WorkloadSpec,
};

use super::networks::{self, Attachments, Networks};
use super::reader::{Reader, fitted};
use super::secrets::{self, Secrets};
use super::volumes::{self, Volumes};
use super::yaml::{Key, Mark, Node, Value};
use super::{PullPolicy, container, environment, health, keys, machine, pull, update};

mod extension;

/// The process limit accepted at most: the kernel's own limit on 64-bit machines.
const MAX_PIDS: i64 = 4_194_304;

/// The period of CPU quotas, microseconds: the least, the kernel's default and the most (cpu.max of
/// control groups, version 2).
const CPU_PERIOD_US: (i64, u64, i64) = (1000, 100_000, 1_000_000);

/// Labels of a workload or variables of its environment.
type Pairs = BTreeMap<String, String>;

/// A value together with where it was set, for keys that can be set in two places.
pub(super) type Placed<T> = Option<(Mark, T)>;

/// What the file has for all its services.
#[derive(Default)]
pub(super) struct Shared {
    /// Contents of its configurations, by name.
    pub(super) configs: BTreeMap<String, String>,
    /// Its networks.
    pub(super) networks: Networks,
    /// Its secrets.
    pub(super) secrets: Secrets,
    /// Its volumes, and those without a name of the services that were read.
    pub(super) volumes: Volumes,
}

/// What is collected while a service's keys are read.
struct Draft {
    container: ContainerSpec,
    image: Option<String>,
    env_files: Pairs,
    label_files: Pairs,
    labels: Pairs,
    profiles: Vec<String>,
    replicas: Placed<u32>,
    global: Placed<bool>,
    /// Whether `deploy.mode` says that it is a job.
    ends: Placed<()>,
    max_per_node: Option<u32>,
    spread: Vec<String>,
    cpu_limit: Placed<u64>,
    cpu_quota_us: Placed<u64>,
    cpu_period_us: Placed<u64>,
    memory_limit: Placed<u64>,
    /// Memory and swap together; none: no limit.
    swap_and_memory: Placed<Option<u64>>,
    pids_limit: Placed<u64>,
    cpu_request: Placed<u64>,
    memory_request: Placed<u64>,
    restart: Placed<RestartPolicy>,
    /// Whether `deploy.restart_policy` is there without its condition.
    condition_unsaid: bool,
    constraints: Vec<Constraint>,
    depends_on: Vec<(Mark, Dependency)>,
    links: Pairs,
    networks: Placed<()>,
    network_mode: Placed<()>,
    attachments: Attachments,
    container_name: Placed<()>,
    stdin_open: Placed<bool>,
    volumes_from: Vec<volumes::From>,
    /// Where `healthcheck` is.
    healthcheck: Placed<()>,
    question: Placed<HealthCheck>,
    takeover: Takeover,
    rebalance: Placed<NonZeroU32>,
    priority: i32,
    exclusive: Placed<bool>,
    job: Placed<Job>,
    update: Option<UpdatePolicy>,
    rollback: Option<UpdatePolicy>,
    pull_policy: Placed<pull::Said>,
    pull_refresh_after: Placed<u64>,
    pull: PullPolicy,
}

/// A service, read.
pub(super) struct Service {
    pub(super) workload: WorkloadSpec,
    pub(super) labels: Pairs,
    /// With one of which it is wanted; with none always.
    pub(super) profiles: Vec<String>,
    /// Where in the file it says which services it depends on.
    pub(super) depends_on: Vec<(Mark, Dependency)>,
    /// The services whose volumes it has too.
    pub(super) volumes_from: Vec<volumes::From>,
    /// When what its image's tag names is looked up.
    pub(super) pull_policy: PullPolicy,
}

/// Reads a service, which is found by the name it has in the file too.
pub(super) fn service(
    reader: &Reader<'_>,
    shared: &mut Shared,
    name: &Key,
    in_file: &str,
    node: &Node,
) -> Option<Service> {
    let mut draft = Draft::new();
    if in_file.to_ascii_lowercase() != name.text {
        draft.links.insert(in_file.to_owned(), name.text.clone());
    }
    for (key, value) in reader.entries(node, keys::SERVICE)? {
        // `key:` with nothing after it is as if it were not there, as Compose has it, save for the
        // image, which must be named. A `None` means that the fault is recorded.
        if !value.is_null() || key.text == "image" {
            service_key(reader, shared, &mut draft, (name, key), value);
        }
    }
    if let Some((_, extension)) = reader.mapping(node)?.iter().find(|(key, _)| key.text == "x-hivemind") {
        extension::read(reader, &mut draft, extension);
    }
    let Some(image) = draft.image.take() else {
        reader.fault(name.mark, format!("service {} has no `image`; name the one to run", name.text));
        return None;
    };
    draft.container.image = image;
    if draft.attachments.is_empty() && networks::may_have(&draft.container) {
        draft.attachments = networks::without_any(&shared.networks);
    }
    if draft.job.is_some() || draft.ends.is_some() {
        ends(reader, &mut draft);
    }
    draft.pull = pull::together(reader, draft.pull_policy, draft.pull_refresh_after);
    cpu_quota(reader, &mut draft);
    health_check(reader, &mut draft);
    check(reader, &draft);
    Some(draft.finish())
}

impl Draft {
    fn new() -> Self {
        Self {
            container: ContainerSpec::of(""),
            image: None,
            env_files: Pairs::new(),
            label_files: Pairs::new(),
            labels: Pairs::new(),
            profiles: Vec::new(),
            replicas: None,
            global: None,
            ends: None,
            max_per_node: None,
            spread: Vec::new(),
            cpu_limit: None,
            cpu_quota_us: None,
            cpu_period_us: None,
            memory_limit: None,
            swap_and_memory: None,
            pids_limit: None,
            cpu_request: None,
            memory_request: None,
            restart: None,
            condition_unsaid: false,
            constraints: Vec::new(),
            depends_on: Vec::new(),
            links: Pairs::new(),
            networks: None,
            network_mode: None,
            attachments: Attachments::new(),
            container_name: None,
            stdin_open: None,
            volumes_from: Vec::new(),
            healthcheck: None,
            question: None,
            takeover: Takeover::default(),
            rebalance: None,
            priority: 0,
            exclusive: None,
            job: None,
            update: None,
            rollback: None,
            pull_policy: None,
            pull_refresh_after: None,
            pull: PullPolicy::default(),
        }
    }

    fn is_exclusive(&self) -> bool {
        self.exclusive.is_some_and(|(_, exclusive)| exclusive)
    }

    fn finish(self) -> Service {
        let exclusive = self.is_exclusive();
        let value = |placed: Placed<u64>| placed.map(|(_, value)| value);
        let mut container = self.container;
        for (name, value) in self.env_files {
            container.env.entry(name).or_insert(value);
        }
        let resources = &mut container.resources;
        resources.cpu_request_millis = value(self.cpu_request);
        resources.memory_request_bytes = value(self.memory_request);
        resources.cpu_limit_millis = value(self.cpu_limit);
        resources.memory_limit_bytes = value(self.memory_limit);
        resources.pids_limit = value(self.pids_limit);
        resources.swap_limit_bytes = self.swap_and_memory.map(|(_, both)| {
            let memory = resources.memory_limit_bytes.unwrap_or(0);
            both.map_or(u64::MAX, |both| both.saturating_sub(memory))
        });
        let workload = WorkloadSpec {
            replicas: self.replicas.map_or(1, |(_, replicas)| replicas),
            global: self.global.is_some_and(|(_, global)| global),
            max_per_node: self.max_per_node,
            spread: self.spread,
            container,
            restart: self.restart.map(|(_, restart)| restart).unwrap_or_default(),
            constraints: self.constraints,
            depends_on: self.depends_on.iter().map(|(_, dependency)| dependency.clone()).collect(),
            links: self.links,
            networks: self.attachments,
            takeover: self.takeover,
            rebalance: self.rebalance.map(|(_, most)| most),
            priority: self.priority,
            // Which nodes have a say is for whoever pushes it to find out.
            exclusive: exclusive.then(Exclusive::default),
            job: self.job.map(|(_, job)| job),
            update: self.update,
            rollback: self.rollback,
        };
        let mut labels = self.label_files;
        labels.extend(self.labels);
        Service {
            workload,
            labels,
            profiles: self.profiles,
            depends_on: self.depends_on,
            volumes_from: self.volumes_from,
            pull_policy: self.pull,
        }
    }
}

/// What only the whole service shows.
fn check(reader: &Reader<'_>, draft: &Draft) {
    if let Some((mark, true)) = draft.stdin_open
        && !draft.container.tty
    {
        let text = "without a terminal nobody can type; add `tty: true`, or remove it";
        reader.fault(mark, text);
    }
    for (what, request, limit) in
        [("CPU", draft.cpu_request, draft.cpu_limit), ("memory", draft.memory_request, draft.memory_limit)]
    {
        if let (Some((mark, request)), Some((_, limit))) = (request, limit)
            && request > limit
        {
            reader.fault(
                mark,
                format!("the {what} set aside is more than the limit; raise the limit or set less aside"),
            );
        }
    }
    match (draft.swap_and_memory, draft.memory_limit) {
        (Some((mark, _)), None) => reader.fault(mark, "needs a memory limit beside it: `mem_limit`"),
        (Some((mark, Some(both))), Some((_, memory))) if both < memory => {
            reader.fault(mark, "memory and swap together are less than the memory limit; raise it");
        }
        _ => {}
    }
    if let (Some((mark, ())), Some(_)) = (draft.network_mode, draft.networks) {
        reader.fault(mark, "`networks` says otherwise; say it in one place");
    }
    if let (Some((mark, ())), Some((_, replicas @ 2..))) = (draft.container_name, draft.replicas) {
        reader.fault(mark, format!("{replicas} replicas cannot all have this name; remove it"));
    }
    if let (Some((mark, ())), Some((_, true))) = (draft.container_name, draft.global) {
        reader.fault(
            mark,
            "a global service has several containers, which cannot all have this name; remove it",
        );
    }
    if let (Some((_, true)), Some((mark, _))) = (draft.global, draft.replicas) {
        reader.fault(mark, "a global service has one replica on each machine; leave the number out");
    }
    if let (Some((mark, true)), true) = (draft.global, draft.is_exclusive()) {
        reader.fault(mark, "an exclusive service has one replica in all, and cannot be global");
    }
    if let (true, Some((mark, replicas @ 2..))) = (draft.is_exclusive(), draft.replicas) {
        reader.fault(mark, format!("{replicas} replicas of an exclusive service; there is at most one"));
    }
    let is_global = draft.global.is_some_and(|(_, global)| global);
    let stays = is_global || draft.is_exclusive() || draft.ends.is_some() || draft.job.is_some();
    if let (Some((mark, _)), true) = (draft.rebalance, stays || draft.takeover == Takeover::Never) {
        let text =
            "a service that is global, exclusive or a job, or never taken over, stays where it is; remove it";
        reader.fault(mark, text);
    }
}

/// Puts together what a check does and when.
fn health_check(reader: &Reader<'_>, draft: &mut Draft) {
    let check = &mut draft.container.health;
    match (draft.question.take(), draft.healthcheck) {
        (Some((mark, _)), Some(_)) if check.as_ref().is_none_or(|check| !check.command.is_empty()) => {
            reader.fault(mark, "`healthcheck` says otherwise; say it in one place");
        }
        (Some((_, asked)), _) => {
            let HealthCheck { http, tcp, grpc, .. } = asked.clone();
            *check = Some(HealthCheck { http, tcp, grpc, ..check.take().unwrap_or(asked) });
        }
        (None, Some((mark, ()))) if check.as_ref().is_some_and(|check| check.command.is_empty()) => {
            reader.fault(mark, "`test` is missing: the command that checks");
        }
        (None, _) => {}
    }
}

/// Puts together what says that a service is a job, and when its containers are started again.
fn ends(reader: &Reader<'_>, draft: &mut Draft) {
    let at = draft.ends.map(|(mark, ())| mark);
    let (mark, _) = draft.job.get_or_insert_with(|| (at.unwrap_or_default(), Job::default()));
    let unsaid = draft.restart.is_none() || draft.condition_unsaid;
    let (at, mut policy) = draft.restart.take().unwrap_or((*mark, RestartPolicy::default()));
    if unsaid {
        policy.condition = RestartCondition::OnFailure;
    }
    if policy.condition == RestartCondition::Always {
        reader.fault(at, "a job that is always started again never ends; use on-failure, or none");
    }
    draft.restart = Some((at, policy));
}

/// Makes a CPU limit of a quota and its period.
fn cpu_quota(reader: &Reader<'_>, draft: &mut Draft) {
    let period_us = draft.cpu_period_us.map_or(CPU_PERIOD_US.1, |(_, period)| period);
    match (draft.cpu_quota_us, draft.cpu_period_us) {
        (Some((mark, quota)), _) => {
            let millis = (quota.saturating_mul(1000) / period_us).max(1);
            set(reader, &mut draft.cpu_limit, mark, millis);
        }
        (None, Some((mark, _))) => {
            reader.fault(mark, "a period without a quota; add `cpu_quota`, or use `cpus`")
        }
        (None, None) => {}
    }
}

/// Reads one key. A `None` means that the fault is recorded, so the result is not looked at.
fn service_key(
    reader: &Reader<'_>,
    shared: &mut Shared,
    draft: &mut Draft,
    (service, key): (&Key, &Key),
    node: &Node,
) -> Option<()> {
    let at = node.mark;
    let microseconds = |least, most| reader.integer(node, least, most).and_then(|n| u64::try_from(n).ok());
    match key.text.as_str() {
        "image" => draft.image = Some(container::image(reader, node)),
        "environment" => variables_of_container(reader, draft, node)?,
        "env_file" => env_files(reader, draft, node)?,
        "depends_on" => draft.depends_on.extend(dependencies(reader, node)?),
        "healthcheck" => {
            draft.healthcheck = Some((at, ()));
            draft.container.health = health::health(reader, node)?;
        }
        "container_name" => {
            draft.container_name = Some((at, ()));
            draft.links.insert(reader.text(node)?, service.text.clone());
        }
        "platform" => platform(reader, draft, node)?,
        "stdin_open" => draft.stdin_open = Some((at, reader.boolean(node)?)),
        "links" => links(reader, draft, node, true)?,
        "external_links" => links(reader, draft, node, false)?,
        "deploy" => deploy(reader, draft, node)?,
        "restart" => set(reader, &mut draft.restart, at, restart(reader, node)?),
        "mem_limit" => set(reader, &mut draft.memory_limit, at, reader.size_bytes(node)?),
        "memswap_limit" => draft.swap_and_memory = Some((at, swap_and_memory(reader, node)?)),
        "mem_reservation" => set(reader, &mut draft.memory_request, at, reader.size_bytes(node)?),
        "cpu_count" => set(reader, &mut draft.cpu_limit, at, reader.cpu_millis(node)?),
        "cpus" => set(reader, &mut draft.cpu_limit, at, reader.cpu_millis(node)?),
        "cpu_quota" => draft.cpu_quota_us = Some((at, microseconds(CPU_PERIOD_US.0, i64::MAX)?)),
        "cpu_period" => draft.cpu_period_us = Some((at, microseconds(CPU_PERIOD_US.0, CPU_PERIOD_US.2)?)),
        "pids_limit" => set(reader, &mut draft.pids_limit, at, pids(reader, node)?),
        "scale" => set(reader, &mut draft.replicas, at, replicas(reader, node)?),
        "labels" => labels(reader, &mut draft.labels, node)?,
        "label_file" => label_files(reader, draft, node)?,
        "pull_policy" => draft.pull_policy = Some((at, pull::policy(reader, node)?)),
        "pull_refresh_after" => draft.pull_refresh_after = Some((at, reader.duration_ms(node)?)),
        "profiles" => {
            draft.profiles = reader.sequence(node)?.iter().filter_map(|item| reader.text(item)).collect()
        }
        "volumes" => volumes::mounts(reader, &mut shared.volumes, &service.text, &mut draft.container, node)?,
        "networks" => {
            draft.networks = Some((at, ()));
            draft.attachments = networks::attachments(reader, &shared.networks, node)?;
        }
        "network_mode" => {
            draft.network_mode = Some((at, ()));
            networks::mode(reader, &mut draft.container, node)?;
        }
        "secrets" => draft.container.secrets = secrets::mounts(reader, &shared.secrets, node)?,
        "volumes_from" => draft.volumes_from = volumes::others(reader, node)?,
        _ => container::key(reader, &shared.configs, &mut draft.container, key, node)?,
    }
    Some(())
}

/// Sets what two keys can set; both may say the same thing.
fn set<T: PartialEq>(reader: &Reader<'_>, slot: &mut Placed<T>, mark: Mark, value: T) {
    match slot {
        Some((first, other)) if *other != value => {
            let line = first.line;
            reader.fault(mark, format!("line {line} says otherwise; say it in one place"));
        }
        _ => *slot = Some((mark, value)),
    }
}

fn variables_of_container(reader: &Reader<'_>, draft: &mut Draft, node: &Node) -> Option<()> {
    for (mark, name, value) in reader.pairs(node)? {
        if name.is_empty() || name.contains(['=', '\0']) {
            reader.fault(mark, format!("{name:?} cannot name a variable"));
            continue;
        }
        // A name alone takes its value from where the file is pushed, or is not set at all.
        match value.or_else(|| reader.variables(mark).get(&name).cloned()) {
            Some(value) => drop(draft.container.env.insert(name, value)),
            None => reader.warn(mark, format!("{name} has no value here and is not set")),
        }
    }
    Some(())
}

fn env_files(reader: &Reader<'_>, draft: &mut Draft, node: &Node) -> Option<()> {
    for item in reader.one_or_many(node)? {
        let (mut path, mut required, mut raw) = (None, true, false);
        if let Value::Mapping(_) = item.value {
            for (key, value) in reader.entries(item, keys::ENV_FILE)? {
                match key.text.as_str() {
                    "required" => required = reader.boolean(value)?,
                    "format" => raw = reader.word(value, &[("raw", true)])?,
                    _ => path = Some(reader.text(value)?),
                }
            }
        } else {
            path = Some(reader.text(item)?);
        }
        let Some(path) = path else {
            reader.fault(item.mark, "`path` is missing");
            continue;
        };
        draft.env_files.extend(variables(reader, item.mark, &path, required, raw)?);
    }
    Some(())
}

fn label_files(reader: &Reader<'_>, draft: &mut Draft, node: &Node) -> Option<()> {
    for item in reader.one_or_many(node)? {
        for (name, value) in variables(reader, item.mark, &reader.text(item)?, true, false)? {
            label(reader, &mut draft.label_files, item.mark, name, value);
        }
    }
    Some(())
}

/// Reads a file of `NAME=VALUE` lines.
pub(super) fn variables(
    reader: &Reader<'_>,
    mark: Mark,
    path: &str,
    required: bool,
    raw: bool,
) -> Option<Pairs> {
    let Some(text) = reader.ok(mark, reader.read(mark, path))? else {
        if required {
            reader.fault(mark, format!("there is no file {path}"));
        }
        return Some(Pairs::new());
    };
    let fault = |(line, what): (usize, String)| format!("{path}:{line}: {what}");
    if raw {
        return reader.ok(mark, environment::raw(&text).map_err(fault));
    }
    let read = environment::environment(&text, &reader.variables(mark));
    let read = reader.ok(mark, read.map_err(fault))?;
    for (line, name) in read.unset {
        reader.warn(mark, format!("{path}:{line}: the variable {name} is not set and became nothing"));
    }
    Some(read.variables)
}

/// Takes a label, unless it cannot be one.
fn label(reader: &Reader<'_>, labels: &mut Pairs, mark: Mark, name: String, value: String) {
    if name.is_empty() || name.starts_with("hivemind/") {
        reader.fault(mark, format!("{name:?} cannot name a label; `hivemind/` is ours"));
    } else {
        labels.insert(name, value);
    }
}

/// Labels of a service or a volume.
pub(super) fn labels(reader: &Reader<'_>, labels: &mut Pairs, node: &Node) -> Option<()> {
    for (mark, name, value) in reader.pairs(node)? {
        label(reader, labels, mark, name, value.unwrap_or_default());
    }
    Some(())
}

/// A list of services, or a map from services to how they must be.
fn dependencies(reader: &Reader<'_>, node: &Node) -> Option<Vec<(Mark, Dependency)>> {
    let conditions = [
        ("service_started", Condition::Started),
        ("service_healthy", Condition::Healthy),
        ("service_completed_successfully", Condition::Completed),
    ];
    let started = |service: &str| Dependency {
        workload: fitted(service),
        condition: Condition::Started,
        required: true,
    };
    let Value::Mapping(services) = &node.value else {
        let one = |item: &Node| Some((item.mark, started(&reader.text(item)?)));
        return reader.sequence(node)?.iter().map(one).collect();
    };
    let mut dependencies = Vec::new();
    for (name, node) in services {
        let mut dependency = started(&name.text);
        for (key, value) in reader.entries(node, keys::DEPENDENCY)? {
            match key.text.as_str() {
                "condition" => dependency.condition = reader.word(value, &conditions)?,
                _ => dependency.required = reader.boolean(value)?,
            }
        }
        dependencies.push((name.mark, dependency));
    }
    Some(dependencies)
}

/// `SERVICE` or `SERVICE:NAME`. Within a file it is a dependency too.
fn links(reader: &Reader<'_>, draft: &mut Draft, node: &Node, within: bool) -> Option<()> {
    for item in reader.sequence(node)? {
        let text = reader.text(item)?;
        let (service, name) = text.split_once(':').unwrap_or((&text, &text));
        let workload = fitted(service);
        if name != workload {
            draft.links.insert(name.to_owned(), workload.clone());
        }
        let known = draft.depends_on.iter().any(|(_, dependency)| dependency.workload == workload);
        if within && !known {
            let condition = Condition::Started;
            let dependency = Dependency { workload, condition, required: true };
            draft.depends_on.push((item.mark, dependency));
        }
    }
    Some(())
}

/// A size, or -1 for no limit.
fn swap_and_memory(reader: &Reader<'_>, node: &Node) -> Option<Option<u64>> {
    if reader.text_or_number(node, "a size")? == "-1" {
        return Some(None);
    }
    Some(Some(reader.size_bytes(node)?))
}

fn replicas(reader: &Reader<'_>, node: &Node) -> Option<u32> {
    reader.integer(node, 0, i64::from(MAX_REPLICAS)).and_then(|n| u32::try_from(n).ok())
}

fn pids(reader: &Reader<'_>, node: &Node) -> Option<u64> {
    reader.integer(node, 1, MAX_PIDS).and_then(|n| u64::try_from(n).ok())
}

fn restart(reader: &Reader<'_>, node: &Node) -> Option<RestartPolicy> {
    let text = match reader.scalar(node, "text")? {
        // `no` is text in YAML 1.2 and false in YAML 1.1; both mean the same here.
        scalar if scalar.text == "false" => "no".to_owned(),
        scalar => scalar.text,
    };
    let (word, attempts) = match text.split_once(':') {
        Some((word, attempts)) => (word, Some(attempts)),
        None => (text.as_str(), None),
    };
    let condition = match (word, attempts) {
        ("no", None) => RestartCondition::Never,
        ("always" | "unless-stopped", None) => RestartCondition::Always,
        ("on-failure", _) => RestartCondition::OnFailure,
        _ => {
            let words = "use no, always, unless-stopped or on-failure[:N]";
            reader.fault(node.mark, format!("{text:?} is not a restart policy; {words}"));
            return None;
        }
    };
    let max_attempts = match attempts.map(str::parse::<u32>) {
        None => None,
        Some(Ok(attempts)) => Some(attempts),
        Some(Err(_)) => {
            reader.fault(node.mark, format!("{text:?}: the number of restarts is not a whole number"));
            return None;
        }
    };
    Some(RestartPolicy { condition, max_attempts, ..RestartPolicy::default() })
}

fn deploy(reader: &Reader<'_>, draft: &mut Draft, node: &Node) -> Option<()> {
    for (key, value) in reader.entries(node, keys::DEPLOY)? {
        match key.text.as_str() {
            "mode" => {
                let modes = [
                    ("replicated", (false, false)),
                    ("global", (true, false)),
                    ("replicated-job", (false, true)),
                    ("global-job", (true, true)),
                ];
                reader.word(value, &modes).map(|(global, ends)| {
                    draft.global = Some((value.mark, global));
                    draft.ends = ends.then_some((value.mark, ()));
                })
            }
            "replicas" => replicas(reader, value).map(|n| set(reader, &mut draft.replicas, value.mark, n)),
            "labels" => labels(reader, &mut draft.labels, value),
            "endpoint_mode" => reader.word(value, &[("dnsrr", ())]),
            "placement" => placement(reader, draft, value),
            "resources" => resources(reader, draft, value),
            "update_config" => update::policy(reader, key, value).map(|policy| draft.update = Some(policy)),
            "rollback_config" => {
                update::policy(reader, key, value).map(|policy| draft.rollback = Some(policy))
            }
            _ => restart_policy(reader, value).map(|(policy, said)| {
                draft.condition_unsaid = !said;
                set(reader, &mut draft.restart, value.mark, policy);
            }),
        };
    }
    Some(())
}

fn resources(reader: &Reader<'_>, draft: &mut Draft, node: &Node) -> Option<()> {
    for (key, part) in reader.entries(node, keys::RESOURCES)? {
        let limits = key.text == "limits";
        let table = if limits { keys::LIMITS } else { keys::RESERVATIONS };
        for (key, value) in reader.entries(part, table)? {
            if key.text == "devices" {
                draft.container.machine.devices.extend(machine::graphics(reader, value));
                continue;
            }
            let slot = match (key.text.as_str(), limits) {
                ("cpus", true) => &mut draft.cpu_limit,
                ("cpus", false) => &mut draft.cpu_request,
                ("memory", true) => &mut draft.memory_limit,
                ("memory", false) => &mut draft.memory_request,
                _ => &mut draft.pids_limit,
            };
            let amount = match key.text.as_str() {
                "cpus" => reader.cpu_millis(value),
                "memory" => reader.size_bytes(value),
                _ => pids(reader, value),
            };
            if let Some(amount) = amount {
                set(reader, slot, value.mark, amount);
            }
        }
    }
    Some(())
}

/// The policy, and whether it says after which ends.
fn restart_policy(reader: &Reader<'_>, node: &Node) -> Option<(RestartPolicy, bool)> {
    let conditions = [
        ("any", RestartCondition::Always),
        ("on-failure", RestartCondition::OnFailure),
        ("none", RestartCondition::Never),
    ];
    let (mut policy, mut said) = (RestartPolicy::default(), false);
    for (key, value) in reader.entries(node, keys::RESTART_POLICY)? {
        match key.text.as_str() {
            "condition" => (policy.condition, said) = (reader.word(value, &conditions)?, true),
            "delay" => policy.delay_ms = reader.duration_ms(value)?,
            // 0 is none, as Compose has it.
            "window" => policy.window_ms = Some(reader.duration_ms(value)?).filter(|ms| *ms > 0),
            _ => policy.max_attempts = u32::try_from(reader.integer(value, 0, u32::MAX.into())?).ok(),
        }
    }
    Some((policy, said))
}

fn placement(reader: &Reader<'_>, draft: &mut Draft, node: &Node) -> Option<()> {
    for (key, value) in reader.entries(node, keys::PLACEMENT)? {
        match key.text.as_str() {
            "constraints" => constraints(reader, draft, value)?,
            "preferences" => preferences(reader, draft, value)?,
            _ => {
                let most = reader.integer(value, 0, MAX_REPLICAS.into())?;
                // 0 is no limit, as Compose has it.
                draft.max_per_node = u32::try_from(most).ok().filter(|most| *most > 0);
            }
        }
    }
    Some(())
}

/// `- spread: node.labels.LABEL`.
fn preferences(reader: &Reader<'_>, draft: &mut Draft, node: &Node) -> Option<()> {
    for item in reader.sequence(node)? {
        for (_, value) in reader.entries(item, keys::PREFERENCE)? {
            let text = reader.text(value)?;
            match text.strip_prefix("node.labels.").filter(|label| !label.is_empty()) {
                Some(label) => draft.spread.push(label.to_owned()),
                None => {
                    let text =
                        format!("{text:?} is not a label of nodes; write for example node.labels.zone");
                    reader.fault(value.mark, text);
                }
            }
        }
    }
    Some(())
}

fn constraints(reader: &Reader<'_>, draft: &mut Draft, node: &Node) -> Option<()> {
    for item in reader.sequence(node)? {
        let text = reader.text(item)?;
        match constraint(&text) {
            Some(constraint) => draft.constraints.push(constraint),
            None => reader.fault(
                item.mark,
                format!(
                    "{text:?} is not a constraint; write for example `node.labels.disk == ssd`, \
                     `node.hostname != edge-1` or `node.id == …`"
                ),
            ),
        }
    }
    Some(())
}

/// `OS`, `OS/ARCHITECTURE` or `OS/ARCHITECTURE/VARIANT`: a constraint on machines.
fn platform(reader: &Reader<'_>, draft: &mut Draft, node: &Node) -> Option<()> {
    let text = reader.text(node)?;
    let (os, rest) = text.split_once('/').map_or((text.as_str(), None), |(os, rest)| (os, Some(rest)));
    let arch = rest.map(|rest| architecture(rest.split('/').next().unwrap_or(rest)));
    if os != "linux" || arch == Some(None) {
        reader.fault(
            node.mark,
            format!("{text:?} is no platform of machines here; they are linux/amd64 or linux/arm64"),
        );
        return None;
    }
    let label = |label: &str, value: &str| {
        let (label, value) = (label.to_owned(), value.to_owned());
        Constraint { label, operator: Operator::Equal, value }
    };
    draft.constraints.push(match arch.flatten() {
        Some(arch) => label(PLATFORM_ARCH, arch),
        None => label(PLATFORM_OS, os),
    });
    Some(())
}

/// An architecture as nodes name it, from any of its names.
fn architecture(name: &str) -> Option<&'static str> {
    match name {
        "amd64" | "x86_64" => Some("amd64"),
        "arm64" | "aarch64" => Some("arm64"),
        _ => None,
    }
}

/// `node.labels.KEY == VALUE`, or another of a node's properties.
pub(crate) fn constraint(text: &str) -> Option<Constraint> {
    let (operator, sign) =
        if text.contains("!=") { (Operator::NotEqual, "!=") } else { (Operator::Equal, "==") };
    let (left, value) = text.split_once(sign)?;
    let (left, value) = (left.trim(), value.trim());
    let label = match left.strip_prefix("node.labels.") {
        Some(label) if !label.is_empty() => label,
        None if left == PLATFORM_ARCH => {
            let value = architecture(value)?.to_owned();
            return Some(Constraint { label: left.to_owned(), operator, value });
        }
        None if ["node.hostname", "node.id", PLATFORM_OS].contains(&left) => left,
        _ => return None,
    };
    (!value.is_empty()).then(|| Constraint { label: label.to_owned(), operator, value: value.to_owned() })
}
