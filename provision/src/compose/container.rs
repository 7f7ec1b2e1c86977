//! The keys of a service that say what surrounds its containers: programs, files, names and rights.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hivemind_spec::workload::{
    CPU_SHARES, ContainerSpec, DiskLimits, File, HOST_GATEWAY, Hook, Host, Tmpfs, Ulimit, rights,
};

use super::reader::Reader;
use super::yaml::{Key, Mark, Node, Value};
use super::{keys, logging, machine, ports};

/// Reads one key. A `None` means that the fault is recorded.
pub(super) fn key(
    reader: &Reader<'_>,
    configs: &BTreeMap<String, String>,
    container: &mut ContainerSpec,
    key: &Key,
    node: &Node,
) -> Option<()> {
    match key.text.as_str() {
        "command" => container.command = Some(reader.command(node)?),
        "entrypoint" => container.entrypoint = Some(reader.command(node)?),
        "working_dir" => container.working_dir = Some(absolute(reader, node)?),
        "user" => container.user = Some(reader.text_or_number(node, "text")?),
        "group_add" => container.groups = texts(reader, node, "a group")?,
        "hostname" => container.hostname = Some(reader.label(node, "a host name")?),
        "domainname" => container.domainname = Some(reader.text(node)?),
        "extra_hosts" => container.hosts = hosts(reader, node)?,
        "dns" => container.resolver.servers = addresses(reader, node)?,
        "dns_search" => container.resolver.search = domains(reader, node)?,
        "dns_opt" => container.resolver.options = texts(reader, node, "an option")?,
        "ports" => reader
            .sequence(node)?
            .iter()
            .for_each(|item| ports::published(reader, &mut container.ports, item)),
        "expose" => {
            reader.sequence(node)?.iter().for_each(|item| ports::exposed(reader, &mut container.ports, item))
        }
        "stop_signal" => container.stop_signal = Some(signal(reader, node)?),
        "stop_grace_period" => container.stop_grace_ms = reader.duration_ms(node)?,
        "mac_address" => container.mac_address = Some(reader.text(node)?),
        "blkio_config" => container.resources.disk = disk_limits(reader, node)?,
        "logging" => container.log_bytes = logging::log_bytes(reader, node)?,
        "tty" => container.tty = reader.boolean(node)?,
        "init" => container.init = reader.boolean(node)?,
        "post_start" => container.post_start = hooks(reader, node)?,
        "pre_stop" => container.pre_stop = hooks(reader, node)?,
        "read_only" => container.read_only = reader.boolean(node)?,
        "tmpfs" => container.tmpfs.extend(tmpfs(reader, node)?),
        "storage_opt" => {
            for (_, value) in reader.entries(node, keys::STORAGE_OPT)? {
                container.root_size_bytes = Some(reader.size_bytes(value)?);
            }
        }
        "shm_size" => container.shm_size_bytes = Some(reader.size_bytes(node)?),
        "configs" => container.files.extend(files(reader, configs, node)?),
        "cap_add" => container.capabilities.add = capabilities(reader, node)?,
        "cap_drop" => container.capabilities.drop = capabilities(reader, node)?,
        "sysctls" => sysctls(reader, container, node)?,
        "ulimits" => ulimits(reader, container, node)?,
        "security_opt" => machine::security(reader, container, node)?,
        "privileged" => container.machine.privileged = reader.boolean(node)?,
        "oom_kill_disable" => container.machine.outlasts_memory = reader.boolean(node)?,
        "devices" => container.machine.devices.extend(machine::devices(reader, node)?),
        "gpus" => container.machine.devices.push(machine::graphics(reader, node)?),
        "device_cgroup_rules" => container.machine.device_rules = machine::rules(reader, node)?,
        "pid" | "ipc" | "uts" | "cgroup" => machine::shared(reader, container, key, node)?,
        "userns_mode" => container.user_namespace = reader.word(node, &[("host", false), ("auto", true)])?,
        "cpu_percent" => {
            container.resources.cpu_limit_percent = u64::try_from(reader.integer(node, 1, 100)?).ok();
        }
        "isolation" => reader.word(node, &[("default", ())])?,
        "mem_swappiness" => reader.integer(node, 0, 0).map(drop)?,
        "runtime" => reader.word(node, &["crun", "runc", "io.containerd.runc.v2"].map(|name| (name, ())))?,
        "attach" => reader.word(node, &[("false", ())])?,
        "oom_score_adj" => container.oom_score_adj = i32::try_from(reader.integer(node, 0, 1000)?).ok(),
        "cpu_shares" => {
            let (least, most) = CPU_SHARES;
            let shares = reader.integer(node, i64::try_from(least).ok()?, i64::try_from(most).ok()?)?;
            container.resources.cpu_shares = u64::try_from(shares).ok();
        }
        "cgroup_parent" => container.resources.cgroup_parent = Some(reader.text(node)?),
        "cpuset" => container.resources.cpuset = Some(reader.text_or_number(node, "a list of cores")?),
        "annotations" => container.annotations = map(reader, node)?,
        // The table and this list are held together by a test that feeds every key.
        other => reader.fault(key.mark, format!("`{other}` is not supported; remove it")),
    }
    Some(())
}

/// Pairs of which those without a value have an empty one.
fn map(reader: &Reader<'_>, node: &Node) -> Option<BTreeMap<String, String>> {
    let pairs = reader.pairs(node)?.into_iter();
    Some(pairs.map(|(_, name, value)| (name, value.unwrap_or_default())).collect())
}

fn texts(reader: &Reader<'_>, node: &Node, what: &str) -> Option<Vec<String>> {
    reader.one_or_many(node)?.iter().map(|item| reader.text_or_number(item, what)).collect()
}

fn domains(reader: &Reader<'_>, node: &Node) -> Option<Vec<String>> {
    let domains = texts(reader, node, "a domain")?;
    if domains.iter().any(|domain| domain == ".") {
        let why = "names are looked up in the workload's namespace first, so that services find each other";
        reader.fault(node.mark, format!("`.` is not supported: {why}"));
        return None;
    }
    Some(domains)
}

fn addresses(reader: &Reader<'_>, node: &Node) -> Option<Vec<IpAddr>> {
    let address = |item: &Node| {
        let text = reader.text(item)?;
        reader.ok(item.mark, text.parse().map_err(|_| format!("{text:?} is not an IP address")))
    };
    reader.one_or_many(node)?.iter().map(address).collect()
}

fn tmpfs(reader: &Reader<'_>, node: &Node) -> Option<Vec<String>> {
    let directory = |item: &Node| {
        let text = reader.text(item)?;
        reader.ok(item.mark, Tmpfs::parse(&text))?;
        Some(text)
    };
    reader.one_or_many(node)?.iter().map(directory).collect()
}

/// `NAME:ADDRESS` or `NAME=ADDRESS` in a list, or `NAME: ADDRESS` in a map.
fn hosts(reader: &Reader<'_>, node: &Node) -> Option<Vec<Host>> {
    let mut hosts = Vec::new();
    if let Value::Mapping(entries) = &node.value {
        for (key, value) in entries {
            for item in reader.one_or_many(value)? {
                hosts.push(host(reader, item, &key.text, &reader.text(item)?)?);
            }
        }
        return Some(hosts);
    }
    for item in reader.sequence(node)? {
        let text = reader.text(item)?;
        match text.split_once(['=', ':']) {
            Some((name, address)) => hosts.push(host(reader, item, name, address)?),
            None => reader.fault(item.mark, format!("{text:?} has no address; write NAME:ADDRESS")),
        }
    }
    Some(hosts)
}

fn host(reader: &Reader<'_>, node: &Node, name: &str, address: &str) -> Option<Host> {
    let (name, address) = (name.trim(), address.trim());
    let address = address.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(address);
    if address != HOST_GATEWAY && address.parse::<IpAddr>().is_err() {
        reader.fault(node.mark, format!("{address:?} is not an IP address or {HOST_GATEWAY}"));
        return None;
    }
    Some(Host { name: name.to_owned(), address: address.to_owned() })
}

fn capabilities(reader: &Reader<'_>, node: &Node) -> Option<BTreeSet<String>> {
    let name = |item: &Node| {
        let text = reader.text(item)?;
        reader.ok(item.mark, rights::capability(&text).map(str::to_owned))
    };
    reader.sequence(node)?.iter().map(name).collect()
}

fn sysctls(reader: &Reader<'_>, container: &mut ContainerSpec, node: &Node) -> Option<()> {
    for (mark, name, value) in reader.pairs(node)? {
        reader.ok(mark, rights::may_set_sysctl(&name))?;
        match value.filter(|value| !value.is_empty()) {
            Some(value) => drop(container.sysctls.insert(name, value)),
            None => reader.fault(mark, format!("{name} has no value")),
        }
    }
    Some(())
}

fn ulimits(reader: &Reader<'_>, container: &mut ContainerSpec, node: &Node) -> Option<()> {
    for (key, value) in reader.mapping(node)? {
        reader.ok(key.mark, rights::may_set_ulimit(&key.text))?;
        // -1 is no limit.
        let number = |node| Some(u64::try_from(reader.integer(node, -1, i64::MAX)?).ok());
        let limit = if let Value::Mapping(_) = value.value {
            let (mut soft, mut hard) = (None, None);
            for (key, value) in reader.entries(value, keys::ULIMIT)? {
                match key.text.as_str() {
                    "soft" => soft = Some(number(value)?),
                    _ => hard = Some(number(value)?),
                }
            }
            let (Some(soft), Some(hard)) = (soft, hard) else {
                reader.fault(value.mark, "`soft` and `hard` must both be there");
                return None;
            };
            Ulimit { soft, hard }
        } else {
            let both = number(value)?;
            Ulimit { soft: both, hard: both }
        };
        if limit.soft.unwrap_or(u64::MAX) > limit.hard.unwrap_or(u64::MAX) {
            reader.fault(value.mark, "the soft limit is over the hard one");
        }
        container.ulimits.insert(key.text.clone(), limit);
    }
    Some(())
}

/// What the container may do on the machine's disk.
fn disk_limits(reader: &Reader<'_>, node: &Node) -> Option<DiskLimits> {
    let mut limits = DiskLimits::default();
    for (key, list) in reader.entries(node, keys::BLKIO)? {
        let limit = match key.text.as_str() {
            "device_read_bps" => &mut limits.read_bytes,
            "device_write_bps" => &mut limits.write_bytes,
            "device_read_iops" => &mut limits.read_operations,
            _ => &mut limits.write_operations,
        };
        for item in reader.sequence(list)? {
            let (mut path, mut rate) = (None, None);
            for (key, value) in reader.entries(item, keys::BLKIO_DEVICE)? {
                match key.text.as_str() {
                    "path" => path = Some(reader.text(value)?),
                    _ => rate = Some(reader.size_bytes(value)?),
                }
            }
            if path.is_none_or(|path| !path.starts_with("/dev/")) {
                reader.fault(item.mark, "`path` must name a disk, as /dev/sda");
            }
            match rate {
                // There is one disk, and the strictest holds.
                Some(rate) => *limit = Some(limit.map_or(rate, |other| other.min(rate))),
                None => reader.fault(item.mark, "`rate` is missing: the most in a second"),
            }
        }
    }
    Some(limits)
}

/// Commands that run inside the container.
fn hooks(reader: &Reader<'_>, node: &Node) -> Option<Vec<Hook>> {
    let mut hooks = Vec::new();
    for item in reader.sequence(node)? {
        let mut hook = Hook::default();
        for (key, value) in reader.entries(item, keys::HOOK)? {
            match key.text.as_str() {
                "command" => hook.command = reader.command(value)?,
                "working_dir" => hook.working_dir = Some(absolute(reader, value)?),
                _ => hook.env = map(reader, value)?,
            }
        }
        if hook.command.is_empty() {
            reader.fault(item.mark, "`command` is missing: what to run");
        }
        hooks.push(hook);
    }
    Some(hooks)
}

/// A configuration or a secret as a service names it.
pub(super) struct Use {
    pub(super) mark: Mark,
    pub(super) source: String,
    pub(super) target: Option<String>,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mode: u32,
}

/// Reads a service's `configs` or `secrets`, which are written alike.
pub(super) fn uses(reader: &Reader<'_>, node: &Node, what: &str) -> Option<Vec<Use>> {
    let mut uses = Vec::new();
    for item in reader.sequence(node)? {
        let (mut source, mut target, mut uid, mut gid, mut mode) = (None, None, 0, 0, 0o444);
        if let Value::Mapping(_) = item.value {
            for (key, value) in reader.entries(item, keys::CONFIG_USE)? {
                match key.text.as_str() {
                    "source" => source = Some(reader.text(value)?),
                    "target" => target = Some(reader.text(value)?),
                    "uid" => uid = owner(reader, value)?,
                    "gid" => gid = owner(reader, value)?,
                    _ => mode = permissions(reader, value)?,
                }
            }
        } else {
            source = Some(reader.text(item)?);
        }
        match source {
            Some(source) => uses.push(Use { mark: item.mark, source, target, uid, gid, mode }),
            None => reader.fault(item.mark, format!("`source` is missing: the name of {what}")),
        }
    }
    Some(uses)
}

/// The configurations that a service names, as files.
fn files(reader: &Reader<'_>, configs: &BTreeMap<String, String>, node: &Node) -> Option<Vec<File>> {
    let mut files = Vec::new();
    for used in uses(reader, node, "a configuration")? {
        let Use { mark, source, target, uid, gid, mode } = used;
        let Some(content) = configs.get(&source) else {
            reader.fault(mark, format!("{source:?} is not under `configs` of the file"));
            continue;
        };
        let target = target.unwrap_or(source);
        // As Compose has it, a name alone is in the root.
        let path = if target.starts_with('/') { target } else { format!("/{target}") };
        files.push(File { path, content: content.clone(), uid, gid, mode });
    }
    Some(files)
}

fn owner(reader: &Reader<'_>, node: &Node) -> Option<u32> {
    reader.integer(node, 0, u32::MAX.into()).and_then(|id| u32::try_from(id).ok())
}

/// Permission bits in octal digits, with a zero before them so that nobody takes them for decimal.
fn permissions(reader: &Reader<'_>, node: &Node) -> Option<u32> {
    let text = reader.text_or_number(node, "permissions")?;
    let digits = text.strip_prefix("0o").or_else(|| text.strip_prefix('0'));
    let mode = digits.and_then(|digits| u32::from_str_radix(digits, 8).ok()).filter(|mode| *mode <= 0o777);
    reader.ok(node.mark, mode.ok_or_else(|| format!("{text:?} is not a mode; write for example 0440")))
}

/// The image; the empty text after a fault, so that other faults of the service are found too.
pub(super) fn image(reader: &Reader<'_>, node: &Node) -> String {
    let Some(text) = reader.text(node) else { return String::from("-") };
    if text.trim().is_empty() || text.contains(char::is_whitespace) {
        reader
            .fault(node.mark, format!("{text:?} is not an image; write for example registry.example/app:1"));
        return String::from("-");
    }
    text
}

fn absolute(reader: &Reader<'_>, node: &Node) -> Option<String> {
    let path = reader.text(node)?;
    if path.starts_with('/') {
        return Some(path);
    }
    reader.fault(node.mark, format!("{path:?} must be a path from the root, as /{path}"));
    None
}

/// `SIGTERM`, `TERM` or a number, as `SIGTERM` or the number.
fn signal(reader: &Reader<'_>, node: &Node) -> Option<String> {
    const NAMES: &[&str] = &[
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
        "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
        "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let text = reader.text_or_number(node, "a signal")?;
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if NAMES.contains(&name) {
        return Some(format!("SIG{name}"));
    }
    if text.parse::<u8>().is_ok_and(|number| (1..=64).contains(&number)) {
        return Some(text);
    }
    reader.fault(node.mark, format!("{text:?} is not a signal; write for example SIGTERM"));
    None
}
