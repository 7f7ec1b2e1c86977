//! Every key of the Compose specification, and whether it is honoured or refused and why. The
//! reader refuses by this table, `docs/compose.md` is written from it, and a test feeds every key.

mod shown;
mod volumes;

pub use self::shown::SHOWN;
pub use self::volumes::*;

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

const ADDRESSES: Verdict = Refused("addresses come from the subnet of each machine; use the service's name");
const NO_DEVICE: Verdict = Refused("a network is who reaches whom, and has no devices of its own");
const RIGHTS: Verdict = Refused("containers get no rights over the machine they run on");
const REAL_TIME: Verdict = Refused("the kernel's control groups have no budgets for real time (version 2)");
const WEIGHTS: Verdict = Refused("machines' disks know limits and no weights");
const LATER: Verdict = Refused("not in this version");
const NO_BUILD: Verdict = Refused("machines run images and build none; build and push the image first");
const WINDOWS: Verdict = Refused("it is for Windows containers");

/// The top level.
pub const TOP: &[Row] = &[
    ("configs", Honoured("see below; they travel with the workloads that name them")),
    ("include", Honoured("see below; files that add services, with paths beside themselves")),
    ("name", Honoured("label `hivemind/app` of every workload; without it the folder's name")),
    (
        "services",
        Honoured("one workload each, named like the service, with `-` for `_`; it is found by both names"),
    ),
    ("version", Honoured("nothing: the Compose specification declares it obsolete")),
    ("models", LATER),
    ("networks", Honoured("see below; who reaches whom, on one machine and across all")),
    (
        "secrets",
        Honoured("see below; sealed on this machine to the cluster's, which open them in memory only"),
    ),
    ("volumes", Honoured("see below; data that outlives containers, and is deleted by order only")),
];

/// A service.
pub const SERVICE: &[Row] = &[
    ("annotations", Honoured("annotations of the container's runtime specification")),
    ("attach", Honoured("`false` only: a push shows no output, and `hivemind logs` shows all of it")),
    ("blkio_config", Honoured("see below; what the containers may read and write of their machine's disk")),
    (
        "cap_add",
        Honoured(
            "rights of the container's root; those that reach the machine by leave of the namespace (`capabilities`)",
        ),
    ),
    ("cap_drop", Honoured("rights that the container's root goes without; `ALL` takes all")),
    ("cgroup", Honoured("`private`, or `host` by leave of the namespace (`host-namespaces`)")),
    (
        "cgroup_parent",
        Honoured(
            "the control group that its containers are in on a machine, with those of the namespace that name the same: what one \
             leaves of the CPU goes to the others first",
        ),
    ),
    ("command", Honoured("replaces the image's command")),
    (
        "configs",
        Honoured("files with the content given, read-only; a new content starts the containers anew"),
    ),
    (
        "container_name",
        Honoured("another name of the service, of one replica; its container is called NAME-SLOT"),
    ),
    ("cpu_count", Honoured("CPU limit, as `cpus`")),
    ("cpu_percent", Honoured("CPU limit, hundredths of all that the machine has")),
    ("cpu_period", Honoured("the period of `cpu_quota`")),
    ("cpu_quota", Honoured("CPU limit, microseconds in each `cpu_period`")),
    ("cpu_shares", Honoured("the containers' part of the CPU when there is too little")),
    ("cpus", Honoured("CPU limit, as deploy.resources.limits.cpus")),
    ("cpuset", Honoured("the cores the containers may use")),
    (
        "depends_on",
        Honoured("see below; what its containers wait for before they start, also on other machines"),
    ),
    ("deploy", Honoured("see below")),
    (
        "dns",
        Honoured(
            "name servers that the container's machine asks for it; the cluster's own names stay as they are",
        ),
    ),
    (
        "device_cgroup_rules",
        Honoured("kinds of devices that it may use, by leave of the namespace (`devices`)"),
    ),
    (
        "devices",
        Honoured(
            "see below; devices of its machine, which is one that has them, by leave of the namespace (`devices`)",
        ),
    ),
    ("dns_opt", Honoured("options of the container's resolver")),
    ("dns_search", Honoured("domains in which short names are looked up, after the workload's namespace")),
    ("domainname", Honoured("the container's domain name")),
    ("entrypoint", Honoured("replaces the image's entrypoint")),
    ("env_file", Honoured("environment, read when the file is pushed; `environment` goes before it")),
    ("environment", Honoured("environment, over the image's")),
    ("expose", Honoured("ports the container serves inside the cluster")),
    ("extends", Honoured("see below; the service that this one is laid over")),
    ("external_links", Honoured("other names of workloads of the namespace")),
    (
        "extra_hosts",
        Honoured("lines of the container's /etc/hosts; `host-gateway` is the machine it runs on"),
    ),
    ("group_add", Honoured("more groups of the container's user")),
    ("healthcheck", Honoured("see below")),
    ("hostname", Honoured("the container's host name")),
    ("image", Honoured("the image to run")),
    (
        "init",
        Honoured(
            "a small init process before the command, which passes signals on and takes care of orphans",
        ),
    ),
    ("ipc", Honoured("`private`, or `host` by leave of the namespace (`host-namespaces`)")),
    ("isolation", Honoured("`default` only: there is one way to run containers")),
    ("label_file", Honoured("labels, read when the file is pushed; `labels` goes before it")),
    ("labels", Honoured("the workload's labels")),
    ("links", Honoured("other names of services, and what the containers wait for, as depends_on")),
    ("logging", Honoured("see below; what is kept of its output, which `hivemind logs` shows")),
    ("mac_address", Honoured("the hardware address of the container's interface; one replica on a machine")),
    ("mem_limit", Honoured("memory limit, as deploy.resources.limits.memory")),
    (
        "memswap_limit",
        Honoured("limit of memory and swap together; -1 is none. Machines have no swap in this version"),
    ),
    ("mem_swappiness", Honoured("`0` only: nothing is swapped, because machines have no swap")),
    ("mem_reservation", Honoured("memory set aside, as deploy.resources.reservations.memory")),
    (
        "network_mode",
        Honoured(
            "`none`: loopback only; `bridge`: the network of those that name none; `host`: the machine's own, by leave of the \
             namespace (`host-network`)",
        ),
    ),
    (
        "networks",
        Honoured(
            "see below; the networks it is in, by whose services it is found and reached, and by no others",
        ),
    ),
    (
        "oom_kill_disable",
        Honoured("its processes wait for memory and are not ended, by leave of the namespace (`privileged`)"),
    ),
    (
        "oom_score_adj",
        Honoured("how early its processes are ended when the machine's memory is short, 0 to 1000"),
    ),
    (
        "pid",
        Honoured("`host`: it sees the machine's processes, by leave of the namespace (`host-namespaces`)"),
    ),
    ("pids_limit", Honoured("process limit, as deploy.resources.limits.pids")),
    ("platform", Honoured("`linux/amd64` or `linux/arm64`: machines of that kind only")),
    ("ports", Honoured("ports on every machine that lead to the service")),
    ("post_start", Honoured("see below; run inside once it has started, which has failed when one fails")),
    ("pre_stop", Honoured("see below; run inside before it is asked to stop, within `stop_grace_period`")),
    ("privileged", Honoured("everything of its machine, by leave of the namespace (`privileged`)")),
    (
        "profiles",
        Honoured("leaves the service out unless one of them is asked for (`--profile`, COMPOSE_PROFILES)"),
    ),
    (
        "pull_policy",
        Honoured(
            "when a tag becomes a digest, for which it is looked up: with `always` at every push, which fails when it cannot be; \
             with `missing` or `if_not_present` once; with `daily`, `weekly`, `every_12h` at the first push after that time; \
             without it at every push when it can be; with `never` it must be an image that machines were given",
        ),
    ),
    ("read_only", Honoured("mounts the root file system read-only")),
    ("restart", Honoured("`no`, `always`, `unless-stopped` (the same as `always`), `on-failure[:N]`")),
    (
        "runtime",
        Honoured("`crun`, `runc` or `io.containerd.runc.v2` only: there is one way to run containers"),
    ),
    ("scale", Honoured("replicas, as deploy.replicas")),
    (
        "security_opt",
        Honoured(
            "`seccomp:FILE`: the system calls that a profile allows, or all with `seccomp:unconfined`, by leave of the namespace \
             (`capabilities`); `no-new-privileges`, which every container has; `apparmor:unconfined` and `label:disable`, \
             because machines have neither AppArmor nor SELinux",
        ),
    ),
    ("shm_size", Honoured("the size of /dev/shm; 64 MiB if not given")),
    ("stdin_open", Honoured("with `tty` only: a shell on a terminal waits and does not end")),
    ("stop_grace_period", Honoured("time between the stop signal and SIGKILL")),
    ("stop_signal", Honoured("the signal that asks the container to stop")),
    (
        "storage_opt",
        Honoured("`size`: the most that the containers' own files may hold, beside volumes and the image's"),
    ),
    ("sysctls", Honoured("kernel parameters of the container's own network and IPC")),
    ("tmpfs", Honoured("memory-backed directories")),
    ("tty", Honoured("whether the command has a terminal, which its output goes through")),
    ("ulimits", Honoured("process limits")),
    (
        "userns_mode",
        Honoured(
            "`host`: users are the machine's, with reduced rights; `auto`: its users are nobody on the machine, its root too",
        ),
    ),
    ("uts", Honoured("`host`: it has its machine's name, by leave of the namespace (`host-namespaces`)")),
    ("user", Honoured("the user the container runs as")),
    ("working_dir", Honoured("the directory the command starts in")),
    ("build", NO_BUILD),
    ("cpu_rt_period", REAL_TIME),
    ("cpu_rt_runtime", REAL_TIME),
    ("credential_spec", WINDOWS),
    ("develop", Refused("it is for a developer's machine")),
    (
        "gpus",
        Honoured(
            "see below; all graphics processors of its machine, which is one that has any (`/dev/dri`), by leave of the namespace (`devices`)",
        ),
    ),
    ("models", LATER),
    (
        "provider",
        Honoured(
            "see below; a program on this machine that makes what the service is, when the file is pushed, and tells the services \
             that depend on it their variables and hosts",
        ),
    ),
    (
        "pull_refresh_after",
        Honoured("with `pull_policy: refresh`: how long a digest stays before a push looks again"),
    ),
    ("secrets", Honoured("read-only files in memory; a new content reaches them while the containers run")),
    ("use_api_socket", Refused("there is no Docker on the machines whose API it could use")),
    (
        "volumes",
        Honoured(
            "see below; volumes, files and folders beside the Compose file, which travel with the workload, memory, and paths of the \
             machine by leave of the namespace",
        ),
    ),
    ("volumes_from", Honoured("all volumes of another service; `SERVICE:ro` to read them only")),
];

/// `deploy`.
pub const DEPLOY: &[Row] = &[
    ("endpoint_mode", Honoured("`dnsrr` only: names lead to the live replicas")),
    ("labels", Honoured("the workload's labels, as the service's `labels`")),
    (
        "mode",
        Honoured(
            "`replicated`, or `global`: one replica on each machine that the constraints allow; `replicated-job` and `global-job`: each replica is to end with success once",
        ),
    ),
    ("placement", Honoured("see below")),
    ("replicas", Honoured("how many replicas run")),
    ("resources", Honoured("see below")),
    ("restart_policy", Honoured("see below")),
    ("rollback_config", Honoured("see below; kept with the workload, as `update_config`")),
    (
        "update_config",
        Honoured(
            "see below; kept with the workload for rolling updates. This version replaces all replicas at once, and a push says so",
        ),
    ),
];

/// `deploy.placement`.
pub const PLACEMENT: &[Row] = &[
    (
        "constraints",
        Honoured(
            "`node.labels.KEY`, `node.hostname`, `node.id`, `node.platform.os` or `node.platform.arch`, then `==` or `!=`, then a value",
        ),
    ),
    ("max_replicas_per_node", Honoured("the most replicas on one machine")),
    ("preferences", Honoured("see below")),
];

/// An entry of `deploy.placement.preferences`.
pub const PREFERENCE: &[Row] = &[(
    "spread",
    Honoured("`node.labels.KEY`: replicas are spread over its values, and then over machines as always"),
)];

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
    ("devices", Honoured("as `gpus`, for devices that are `gpu`")),
    ("generic_resources", LATER),
];

/// `deploy.restart_policy`.
pub const RESTART_POLICY: &[Row] = &[
    ("condition", Honoured("`any`, `on-failure` or `none`")),
    ("delay", Honoured("first delay; it doubles with each restart")),
    ("max_attempts", Honoured("restarts before giving up")),
    (
        "window",
        Honoured(
            "how long it must run to count as started well, from when on restarts are counted anew; ten minutes if not given, or 0",
        ),
    ),
];

/// `deploy.update_config`.
pub const UPDATE: &[Row] = &[
    ("delay", Honoured("the pause after each group")),
    ("failure_action", Honoured("`pause`, `continue` or `rollback`, when too many fail")),
    ("max_failure_ratio", Honoured("the part that may fail, 0 to 1")),
    ("monitor", Honoured("for how long a replica is watched after it was replaced; 5s if not given")),
    ("order", Honoured("`stop-first` or `start-first`")),
    ("parallelism", Honoured("how many replicas at a time, 0 for all; 1 if not given")),
];

/// `deploy.rollback_config`.
pub const ROLLBACK: &[Row] = &[
    ("delay", Honoured("the pause after each group")),
    ("failure_action", Honoured("`pause` or `continue`, when too many fail")),
    ("max_failure_ratio", Honoured("the part that may fail, 0 to 1")),
    ("monitor", Honoured("for how long a replica is watched after it was replaced; 5s if not given")),
    ("order", Honoured("`stop-first` or `start-first`")),
    ("parallelism", Honoured("how many replicas at a time, 0 for all; 1 if not given")),
];

/// `healthcheck`.
pub const HEALTHCHECK: &[Row] = &[
    ("disable", Honoured("no check")),
    ("interval", Honoured("time between checks; 30s if not given")),
    ("retries", Honoured("failures in a row that count; 3 if not given")),
    ("start_interval", Honoured("time between checks until one has passed; 5s if not given")),
    ("start_period", Honoured("time after the start in which failures do not count")),
    ("test", Honoured("the command; as text it is run by the container's /bin/sh")),
    ("timeout", Honoured("time a check may take; 30s if not given")),
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
    ("format", Honoured("`raw`: values are as they stand, without quotes and variables")),
    ("required", Honoured("whether the file must be there; true if not given")),
];

/// An entry of `include` in its long form.
pub const INCLUDE: &[Row] = &[
    ("path", Honoured("the file, or several, each laid over the ones before it")),
    (
        "env_file",
        Honoured(
            "files with variables for `${NAME}` in it, `.env` of its folder if not given; the project's own go before them",
        ),
    ),
    ("project_directory", Honoured("where the paths in it begin; the folder of the first file if not given")),
];

/// `extends` of a service in its long form.
pub const EXTENDS: &[Row] = &[
    ("file", Honoured("the file that has the service; this one if not given")),
    ("service", Honoured("the service")),
];

/// `blkio_config` of a service.
pub const BLKIO: &[Row] = &[
    ("device_read_bps", Honoured("see below; bytes read in a second")),
    ("device_read_iops", Honoured("see below; reads in a second")),
    ("device_write_bps", Honoured("see below; bytes written in a second")),
    ("device_write_iops", Honoured("see below; writes in a second")),
    ("weight", WEIGHTS),
    ("weight_device", WEIGHTS),
];

/// An entry of a limit in `blkio_config`.
pub const BLKIO_DEVICE: &[Row] = &[
    (
        "path",
        Honoured(
            "a disk, in /dev; all that containers write is on the machine's one, whatever it is called there",
        ),
    ),
    ("rate", Honoured("the most in a second")),
];

/// `logging` of a service.
pub const LOGGING: &[Row] = &[
    ("driver", Honoured("`json-file` or `local`: kept on the machine, as always; `none`: nothing is kept")),
    ("options", Honoured("see below")),
];

/// `options` of `logging`.
pub const LOGGING_OPTIONS: &[Row] = &[
    ("max-file", Honoured("how many times `max-size` are kept; 1 if not given")),
    ("max-size", Honoured("the most that is kept, 100 KiB to 10 MiB; 10 MiB if not given")),
    ("compress", Honoured("older output is compressed in any case")),
    ("env", LATER),
    ("labels", LATER),
    ("mode", LATER),
    ("tag", LATER),
];

/// An entry of the top level's `configs`.
pub const CONFIG: &[Row] = &[
    ("content", Honoured("the content")),
    ("environment", Honoured("the variable that has the content where the file is pushed")),
    ("file", Honoured("the file that has the content, as text, beside the Compose file")),
    ("external", Refused("a configuration travels with the workload; give its content")),
    ("labels", LATER),
    ("name", LATER),
    ("template_driver", LATER),
];

/// An entry of a service's `configs` in its long form.
pub const CONFIG_USE: &[Row] = &[
    ("gid", Honoured("the file's group; 0 if not given")),
    ("mode", Honoured("the file's permissions, octal; 0444 if not given")),
    ("source", Honoured("the name under the top level's `configs`")),
    ("target", Honoured("where in the container; /NAME if not given")),
    ("uid", Honoured("the file's owner; 0 if not given")),
];

/// An entry of a service's `secrets` in its long form.
pub const SECRET_USE: &[Row] = &[
    ("gid", Honoured("the file's group; 0 if not given")),
    ("mode", Honoured("the file's permissions, octal; 0444 if not given")),
    ("source", Honoured("the name under the top level's `secrets`")),
    ("target", Honoured("where in the container, from /run/secrets; /run/secrets/NAME if not given")),
    ("uid", Honoured("the file's owner; 0 if not given")),
];

/// An entry of the top level's `networks`.
pub const NETWORK: &[Row] = &[
    ("attachable", Honoured("without effect: all containers are of services")),
    ("driver", Honoured("`bridge` or `overlay`, which are the same: all networks reach across machines")),
    ("enable_ipv4", Honoured("`true` only")),
    ("enable_ipv6", Honoured("`false` only: containers have IPv4 addresses in this version")),
    (
        "external",
        Honoured(
            "`true`: services of other files are in it too; so they may be in any, by its name in the namespace",
        ),
    ),
    (
        "internal",
        Honoured(
            "`true`: it leads to its services only; one that is only in such reaches nothing outside the cluster",
        ),
    ),
    ("name", Honoured("what it is called in its namespace; the key if not given, with `-` for `_`")),
    ("driver_opts", NO_DEVICE),
    ("ipam", ADDRESSES),
    ("labels", Refused("a network has no document that could have labels; label its services")),
];

/// An entry of a service's `networks` in its long form.
pub const NETWORK_USE: &[Row] = &[
    ("aliases", Honoured("more names of the service in this network")),
    ("gw_priority", Honoured("without effect: a container has one interface for all its networks")),
    ("interface_name", Honoured("`eth0` only, which is the one interface")),
    ("priority", Honoured("without effect: a container has one interface for all its networks")),
    ("driver_opts", NO_DEVICE),
    ("ipv4_address", ADDRESSES),
    ("ipv6_address", ADDRESSES),
    ("link_local_ips", ADDRESSES),
    ("mac_address", Refused("a container has one interface; its address is `mac_address` of the service")),
];

/// An entry of the top level's `secrets`.
pub const SECRET: &[Row] = &[
    ("environment", Honoured("the variable that has the content where the file is pushed")),
    ("external", Honoured("`true`: it was made before, by `hivemind secrets set`")),
    ("file", Honoured("the file that has the content, as text, beside the Compose file")),
    ("labels", Honoured("the secret's labels")),
    ("name", Honoured("what it is called in its namespace; the key if not given, with `-` for `_`")),
    ("driver", Refused("secrets are sealed to the machines themselves")),
    ("driver_opts", Refused("secrets are sealed to the machines themselves")),
    ("template_driver", LATER),
];

/// An entry of `depends_on` in its long form.
pub const DEPENDENCY: &[Row] = &[
    (
        "condition",
        Honoured(
            "`service_started`, `service_healthy` or `service_completed_successfully` (all its containers)",
        ),
    ),
    ("required", Honoured("whether the service must exist; true if not given")),
    ("restart", Refused("a container that is replaced starts no others")),
];

/// An entry of `devices` in its long form.
pub const DEVICE: &[Row] = &[
    ("permissions", Honoured("letters of `rwm`: to read, write, and make its node anew; all if not given")),
    (
        "source",
        Honoured(
            "the device, or a folder of devices, in the machine's /dev; it runs where that is, and waits while it is nowhere",
        ),
    ),
    ("target", Honoured("where in the container; as on the machine if not given")),
];

/// An entry of `gpus` and of `deploy.resources.reservations.devices`.
pub const GPU: &[Row] = &[
    ("capabilities", Honoured("with `gpu` among them, or none")),
    ("count", Honoured("`all` or -1: a container may use all that its machine has")),
    ("device_ids", Refused("a container may use all graphics processors of its machine")),
    ("driver", Refused("the drivers are those of the kernel; those of makers are not in the image")),
    ("options", Refused("drivers of the kernel take none")),
];

/// `provider`.
pub const PROVIDER: &[Row] = &[
    ("options", Honoured("what it is called with, `--NAME=VALUE` each")),
    (
        "type",
        Honoured(
            "the program: a plugin of the Docker command line (`docker-TYPE`), or one in the search path; it speaks Docker \
             Compose's protocol for providers",
        ),
    ),
];

/// An entry of `post_start` and `pre_stop`.
pub const HOOK: &[Row] = &[
    ("command", Honoured("the command")),
    ("environment", Honoured("environment, over the container's")),
    ("working_dir", Honoured("the directory it starts in")),
    ("privileged", RIGHTS),
    ("user", Refused("it runs as the container's user")),
];

/// `storage_opt`.
pub const STORAGE_OPT: &[Row] = &[("size", Honoured("the most that the containers' own files may hold"))];

/// An entry of `ulimits` in its long form.
pub const ULIMIT: &[Row] = &[
    ("hard", Honoured("the most a process can raise it to; -1 is no limit")),
    ("soft", Honoured("the limit that holds; -1 is no limit")),
];

/// `x-hivemind` of a service.
pub const EXTENSION: &[Row] = &[
    (
        "exclusive",
        Honoured("`true`: there must never be two; it runs only by leave of more than half of the machines"),
    ),
    (
        "health",
        Honoured(
            "`http://:PORT/PATH`, `tcp://:PORT`, `grpc://:PORT` or `grpc://:PORT/SERVICE`: a check without a command, at the times of `healthcheck`",
        ),
    ),
    ("job", Honoured("a service whose containers come to an end; see below")),
    (
        "priority",
        Honoured(
            "who goes without when capacity is short, and makes room when memory or processes are: lower numbers first",
        ),
    ),
    (
        "rebalance",
        Honoured(
            "how many replicas at a time may move to machines that have fewer; none if not given: each stays where it is",
        ),
    ),
    (
        "takeover",
        Honoured("`majority`, `always` or `never`: who restarts replicas of machines that vanished"),
    ),
];

/// `x-hivemind.job`.
pub const JOB: &[Row] = &[
    ("deadline", Honoured("how long one attempt may take; it is stopped then, and has failed")),
    ("parallelism", Honoured("the most replicas at the same time; all if not given")),
    ("schedule", Honoured("when it is run: as in crontab(5), or with more, see below; once if not given")),
];

/// `x-hivemind.job.schedule`.
pub const SCHEDULE: &[Row] = &[
    ("cron", Honoured("minute, hour, day, month and weekday, or `@hourly`, `@daily`, `@weekly`, `@monthly`")),
    (
        "missed",
        Honoured(
            "`run`: the last time that was missed, while machines were off or the run before went on, is made up for; \
             `skip`: it is not. `run` if not given",
        ),
    ),
    (
        "overlap",
        Honoured("`wait`: a run ends before the next begins; `replace`: it is stopped. `wait` if not given"),
    ),
    ("time_zone", Honoured("as the IANA names them: `Europe/Berlin`. `UTC` if not given")),
];

/// All tables with the place of their keys, in the order of the documentation.
pub const ALL: &[(&str, &[Row])] = &[
    ("Top level", TOP),
    ("services.NAME", SERVICE),
    ("services.NAME.deploy", DEPLOY),
    ("services.NAME.deploy.placement", PLACEMENT),
    ("services.NAME.deploy.placement.preferences", PREFERENCE),
    ("services.NAME.deploy.resources", RESOURCES),
    ("services.NAME.deploy.resources.limits", LIMITS),
    ("services.NAME.deploy.resources.reservations", RESERVATIONS),
    ("services.NAME.deploy.restart_policy", RESTART_POLICY),
    ("services.NAME.deploy.update_config", UPDATE),
    ("services.NAME.deploy.rollback_config", ROLLBACK),
    ("services.NAME.healthcheck", HEALTHCHECK),
    ("services.NAME.ports", PORT),
    ("services.NAME.env_file", ENV_FILE),
    ("services.NAME.depends_on.NAME", DEPENDENCY),
    ("services.NAME.devices", DEVICE),
    ("services.NAME.gpus", GPU),
    ("services.NAME.deploy.resources.reservations.devices", GPU),
    ("services.NAME.provider", PROVIDER),
    ("services.NAME.post_start", HOOK),
    ("services.NAME.ulimits.NAME", ULIMIT),
    ("services.NAME.storage_opt", STORAGE_OPT),
    ("services.NAME.configs", CONFIG_USE),
    ("services.NAME.networks.NAME", NETWORK_USE),
    ("services.NAME.secrets", SECRET_USE),
    ("services.NAME.volumes", MOUNT),
    ("services.NAME.volumes.bind", MOUNT_BIND),
    ("services.NAME.volumes.volume", MOUNT_VOLUME),
    ("services.NAME.volumes.tmpfs", MOUNT_TMPFS),
    ("services.NAME.blkio_config", BLKIO),
    ("services.NAME.blkio_config.device_read_bps", BLKIO_DEVICE),
    ("services.NAME.logging", LOGGING),
    ("services.NAME.logging.options", LOGGING_OPTIONS),
    ("services.NAME.extends", EXTENDS),
    ("configs.NAME", CONFIG),
    ("networks.NAME", NETWORK),
    ("secrets.NAME", SECRET),
    ("volumes.NAME", VOLUME),
    ("volumes.NAME.driver_opts", VOLUME_DRIVER),
    ("volumes.NAME.x-hivemind", VOLUME_EXTENSION),
    ("include", INCLUDE),
    ("services.NAME.x-hivemind", EXTENSION),
    ("services.NAME.x-hivemind.job", JOB),
    ("services.NAME.x-hivemind.job.schedule", SCHEDULE),
];

/// Keys of a service that are refused, and all the same may be `false`, which is so.
pub const MAY_BE_FALSE: [&str; 1] = ["use_api_socket"];

/// Whether a key of a table may be `false`, though it is refused.
pub fn may_be_false(table: &[Row], key: &str) -> bool {
    MAY_BE_FALSE.contains(&key) && table.iter().any(|(name, _)| *name == key)
}

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
         `x-hivemind`. Of several files each is laid over the ones before it, as the specification says, `!reset` and\n\
         `!override` included. A refused key that is `false` anyway may say so. This page is written from the code (`provision/src/compose/keys.rs`) and checked by a test.\n",
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
    let honoured = SERVICE.iter().filter(|(_, verdict)| matches!(verdict, Honoured(_))).count();
    text.push_str(&format!(
        "\n## What shows it\n\nOf the {} keys of a service {honoured} are honoured. These tests show what they do (`./tests/run NAME` runs one):\n\n",
        SERVICE.len()
    ));
    for (test, keys) in SHOWN {
        let keys: Vec<String> = keys.iter().map(|key| format!("`{key}`")).collect();
        text.push_str(&format!("- `{test}`: {}\n", keys.join(", ")));
    }
    text
}
