//! Every key of the Compose specification, and whether it is honoured or refused and why. The
//! reader refuses by this table, `docs/compose.md` is written from it, and a test feeds every key.

/// What becomes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It has the effect given, in words.
    Honoured(&'static str),
    /// The file is refused, for the reason given.
    Refused(&'static str),
}

use Verdict::{Honoured, Refused};

/// A key and its verdict.
pub type Row = (&'static str, Verdict);

const STORAGE: Verdict =
    Refused("storage is not in this version; a container's own file system goes with it");
const NETWORKS: Verdict = Refused("all workloads share one network, where they find each other by name");
const RIGHTS: Verdict = Refused("containers get no rights over the machine they run on");
const ONE_PLACE: Verdict = Refused("a container must not depend on the machine it happens to run on");
const LATER: Verdict = Refused("not in this version");
const NO_BUILD: Verdict = Refused("machines run images and build none; build and push the image first");
const TUNING: Verdict = Refused("use deploy.resources, cpus or mem_limit");
const WINDOWS: Verdict = Refused("it is for Windows containers");

/// The top level.
pub const TOP: &[Row] = &[
    ("name", Honoured("label `hivemind/app` of every workload; without it the folder's name")),
    ("services", Honoured("one workload each, named like the service")),
    ("version", Honoured("nothing: the Compose specification declares it obsolete")),
    ("configs", LATER),
    ("include", Refused("a push is one file; use anchors or several pushes")),
    ("models", LATER),
    ("networks", NETWORKS),
    ("secrets", LATER),
    ("volumes", STORAGE),
];

/// A service.
pub const SERVICE: &[Row] = &[
    ("command", Honoured("replaces the image's command")),
    ("cpus", Honoured("CPU limit, as deploy.resources.limits.cpus")),
    ("deploy", Honoured("see below")),
    ("entrypoint", Honoured("replaces the image's entrypoint")),
    ("env_file", Honoured("environment, read when the file is pushed; `environment` goes before it")),
    ("environment", Honoured("environment, over the image's")),
    ("expose", Honoured("ports the container serves inside the cluster")),
    ("healthcheck", Honoured("see below")),
    ("hostname", Honoured("the container's host name")),
    ("image", Honoured("the image to run")),
    ("labels", Honoured("the workload's labels")),
    ("mem_limit", Honoured("memory limit, as deploy.resources.limits.memory")),
    ("mem_reservation", Honoured("memory set aside, as deploy.resources.reservations.memory")),
    ("pids_limit", Honoured("process limit, as deploy.resources.limits.pids")),
    ("ports", Honoured("ports on every machine that lead to the service")),
    ("read_only", Honoured("mounts the root file system read-only")),
    ("restart", Honoured("`no`, `always`, `unless-stopped` (the same as `always`), `on-failure[:N]`")),
    ("scale", Honoured("replicas, as deploy.replicas")),
    ("stop_grace_period", Honoured("time between the stop signal and SIGKILL")),
    ("stop_signal", Honoured("the signal that asks the container to stop")),
    ("tmpfs", Honoured("memory-backed directories")),
    ("user", Honoured("the user the container runs as")),
    ("working_dir", Honoured("the directory the command starts in")),
    ("annotations", LATER),
    ("attach", Refused("it is about `docker compose up`; see `hivemind logs`")),
    ("blkio_config", ONE_PLACE),
    ("build", NO_BUILD),
    ("cap_add", RIGHTS),
    ("cap_drop", LATER),
    ("cgroup", RIGHTS),
    ("cgroup_parent", RIGHTS),
    ("configs", LATER),
    ("container_name", Refused("a workload has several containers; each is called NAME-SLOT")),
    ("cpu_count", WINDOWS),
    ("cpu_percent", WINDOWS),
    ("cpu_period", TUNING),
    ("cpu_quota", TUNING),
    ("cpu_rt_period", RIGHTS),
    ("cpu_rt_runtime", RIGHTS),
    ("cpu_shares", TUNING),
    ("cpuset", ONE_PLACE),
    ("credential_spec", WINDOWS),
    (
        "depends_on",
        Refused("machines can restart in any order, so a service must wait for what it needs by itself"),
    ),
    ("develop", Refused("it is for a developer's machine")),
    ("device_cgroup_rules", RIGHTS),
    ("devices", RIGHTS),
    ("dns", Refused("containers ask their node's resolver, which knows the other workloads")),
    ("dns_opt", Refused("containers ask their node's resolver, which knows the other workloads")),
    ("dns_search", Refused("names are searched in the workload's namespace")),
    ("domainname", Refused("names end in the workload's namespace")),
    ("extends", Refused("a push is one file; use anchors and merge keys")),
    ("external_links", NETWORKS),
    ("extra_hosts", LATER),
    ("gpus", LATER),
    ("group_add", LATER),
    ("init", LATER),
    ("ipc", RIGHTS),
    ("isolation", WINDOWS),
    ("label_file", Refused("write them under `labels`")),
    ("links", NETWORKS),
    ("logging", Refused("every node keeps its containers' logs; see `hivemind logs`")),
    ("mac_address", NETWORKS),
    ("mem_swappiness", Refused("machines have no swap")),
    ("memswap_limit", Refused("machines have no swap")),
    ("models", LATER),
    ("network_mode", NETWORKS),
    ("networks", NETWORKS),
    ("oom_kill_disable", RIGHTS),
    ("oom_score_adj", RIGHTS),
    ("pid", RIGHTS),
    ("platform", Refused("an image must have a variant for every machine it may run on")),
    ("post_start", LATER),
    ("pre_stop", LATER),
    ("privileged", RIGHTS),
    ("profiles", Refused("a push is the whole file; use several files")),
    ("provider", LATER),
    ("pull_policy", Refused("a node pulls what it does not hold")),
    ("pull_refresh_after", Refused("a node pulls what it does not hold")),
    ("runtime", Refused("there is one runtime")),
    ("secrets", LATER),
    ("security_opt", RIGHTS),
    ("shm_size", LATER),
    ("stdin_open", Refused("nobody sits before these containers")),
    ("storage_opt", ONE_PLACE),
    ("sysctls", RIGHTS),
    ("tty", Refused("nobody sits before these containers")),
    ("ulimits", LATER),
    ("use_api_socket", RIGHTS),
    ("userns_mode", RIGHTS),
    ("uts", RIGHTS),
    ("volumes", STORAGE),
    ("volumes_from", STORAGE),
];

/// `deploy`.
pub const DEPLOY: &[Row] = &[
    ("mode", Honoured("`replicated` only")),
    ("placement", Honoured("see below")),
    ("replicas", Honoured("how many replicas run")),
    ("resources", Honoured("see below")),
    ("restart_policy", Honoured("see below")),
    ("endpoint_mode", Refused("names lead to the live replicas, and ports are balanced")),
    ("labels", Refused("write them under the service's `labels`")),
    ("rollback_config", LATER),
    ("update_config", LATER),
];

/// `deploy.placement`.
pub const PLACEMENT: &[Row] = &[
    (
        "constraints",
        Honoured("`node.labels.KEY`, `node.hostname` or `node.id`, then `==` or `!=`, then a value"),
    ),
    ("max_replicas_per_node", LATER),
    ("preferences", Refused("replicas are spread over machines as it is")),
];

/// `deploy.resources`.
pub const RESOURCES: &[Row] =
    &[("limits", Honoured("what the kernel enforces")), ("reservations", Honoured("what is set aside"))];

/// `deploy.resources.limits`.
pub const LIMITS: &[Row] = &[
    ("cpus", Honoured("CPU limit")),
    ("memory", Honoured("memory limit")),
    ("pids", Honoured("process limit")),
];

/// `deploy.resources.reservations`.
pub const RESERVATIONS: &[Row] = &[
    ("cpus", Honoured("CPU set aside")),
    ("memory", Honoured("memory set aside")),
    ("devices", LATER),
    ("generic_resources", LATER),
];

/// `deploy.restart_policy`.
pub const RESTART_POLICY: &[Row] = &[
    ("condition", Honoured("`any`, `on-failure` or `none`")),
    ("delay", Honoured("first delay; it doubles with each restart")),
    ("max_attempts", Honoured("restarts before giving up")),
    ("window", Refused("a container that ran for ten minutes counts as started well")),
];

/// `healthcheck`.
pub const HEALTHCHECK: &[Row] = &[
    ("disable", Honoured("no check")),
    ("interval", Honoured("time between checks; 30s if not given")),
    ("retries", Honoured("failures in a row that count; 3 if not given")),
    ("start_period", Honoured("time after the start in which failures do not count")),
    ("test", Honoured("the command; as text it is run by the container's /bin/sh")),
    ("timeout", Honoured("time a check may take; 30s if not given")),
    ("start_interval", LATER),
];

/// An entry of `ports` in its long form.
pub const PORT: &[Row] = &[
    ("mode", Honoured("`ingress` only")),
    ("protocol", Honoured("`tcp` or `udp`")),
    ("published", Honoured("the port on every machine")),
    ("target", Honoured("the port in the container")),
    ("app_protocol", LATER),
    ("host_ip", Refused("a port is open on every machine and address")),
    ("name", LATER),
];

/// An entry of `env_file` in its long form.
pub const ENV_FILE: &[Row] = &[
    ("path", Honoured("the file, beside the Compose file")),
    ("required", Honoured("whether the file must be there; true if not given")),
    ("format", LATER),
];

/// `x-hivemind` of a service.
pub const EXTENSION: &[Row] = &[
    (
        "exclusive",
        Honoured("`true`: there must never be two; it runs only by leave of more than half of the machines"),
    ),
    ("priority", Honoured("who goes without when capacity is short: lower numbers first")),
    (
        "takeover",
        Honoured("`majority`, `always` or `never`: who restarts replicas of machines that vanished"),
    ),
];

/// All tables with the place of their keys, in the order of the documentation.
pub const ALL: &[(&str, &[Row])] = &[
    ("Top level", TOP),
    ("services.NAME", SERVICE),
    ("services.NAME.deploy", DEPLOY),
    ("services.NAME.deploy.placement", PLACEMENT),
    ("services.NAME.deploy.resources", RESOURCES),
    ("services.NAME.deploy.resources.limits", LIMITS),
    ("services.NAME.deploy.resources.reservations", RESERVATIONS),
    ("services.NAME.deploy.restart_policy", RESTART_POLICY),
    ("services.NAME.healthcheck", HEALTHCHECK),
    ("services.NAME.ports", PORT),
    ("services.NAME.env_file", ENV_FILE),
    ("services.NAME.x-hivemind", EXTENSION),
];

/// Why a key is not taken; nothing when it is.
pub fn refusal(table: &[Row], key: &str) -> Option<String> {
    match table.iter().find(|(name, _)| *name == key) {
        Some((_, Honoured(_))) => None,
        Some((_, Refused(reason))) => Some(format!("`{key}` is not supported: {reason}; remove it")),
        None => Some(match nearest(table, key) {
            Some(name) => format!("`{key}` is not a key here; did you mean `{name}`?"),
            None => format!("`{key}` is not a key here; remove it, or call it `x-{key}` if it is a note"),
        }),
    }
}

fn nearest(table: &[Row], key: &str) -> Option<&'static str> {
    let scored = table.iter().map(|(name, _)| (strsim::damerau_levenshtein(name, key), *name));
    scored.filter(|(distance, name)| *distance <= 2 && *distance < name.len()).min().map(|(_, name)| name)
}

/// The table for people, Markdown.
pub fn documentation() -> String {
    let mut text = String::from(
        "# Compose files\n\n\
         Every key of the [Compose specification](https://compose-spec.io) is honoured or refused with file, line and\n\
         reason; none is ignored. Keys that start with `x-` are notes, as the specification says, except\n\
         `x-hivemind`. This page is written from the code (`provision/src/compose/keys.rs`) and checked by a test.\n",
    );
    for (place, table) in ALL {
        text.push_str(&format!("\n## {place}\n\n| key | | effect or reason |\n|---|---|---|\n"));
        for (name, verdict) in *table {
            let (word, why) = match verdict {
                Honoured(effect) => ("honoured", effect),
                Refused(reason) => ("refused", reason),
            };
            text.push_str(&format!("| `{name}` | {word} | {why} |\n"));
        }
    }
    text
}
