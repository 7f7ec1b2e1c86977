//! One service to one workload.

use std::collections::BTreeMap;

use hivemind_spec::workload::{
    Constraint, ContainerSpec, Exclusive, HealthCheck, MAX_REPLICAS, Operator, Port, Protocol, Resources,
    RestartCondition, RestartPolicy, Takeover, WorkloadSpec,
};

use super::environment_file;
use super::keys;
use super::reader::Reader;
use super::yaml::{Key, Mark, Node, Value};

/// Defaults of the Compose specification for health checks.
const HEALTH_INTERVAL_MS: u64 = 30_000;
const HEALTH_TIMEOUT_MS: u64 = 30_000;
const HEALTH_RETRIES: u32 = 3;

/// The longest range of ports in one entry; each costs a rule on every machine.
const MAX_PORT_RANGE: u16 = 100;

/// The process limit accepted at most: the kernel's own limit on 64-bit machines.
const MAX_PIDS: i64 = 4_194_304;

/// Labels of a workload or variables of its environment.
type Pairs = BTreeMap<String, String>;

/// A value together with where it was set, for keys that can be set in two places.
type Placed<T> = Option<(Mark, T)>;

/// What is collected while a service's keys are read.
#[derive(Default)]
struct Draft {
    image: Option<String>,
    env_files: Pairs,
    environment: Pairs,
    labels: Pairs,
    entrypoint: Option<Vec<String>>,
    command: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    hostname: Option<String>,
    ports: Vec<Port>,
    stop_signal: Option<String>,
    stop_grace_ms: Option<u64>,
    health: Option<HealthCheck>,
    read_only: bool,
    tmpfs: Vec<String>,
    replicas: Placed<u32>,
    cpu_limit: Placed<u64>,
    memory_limit: Placed<u64>,
    pids_limit: Placed<u64>,
    cpu_request: Placed<u64>,
    memory_request: Placed<u64>,
    restart: Placed<RestartPolicy>,
    constraints: Vec<Constraint>,
    takeover: Takeover,
    priority: i32,
    exclusive: Placed<bool>,
}

/// The workload of a service and its labels.
pub(super) fn workload(reader: &Reader<'_>, name: &Key, node: &Node) -> Option<(WorkloadSpec, Pairs)> {
    let mut draft = Draft::default();
    for (key, value) in reader.entries(node, keys::SERVICE)? {
        service_key(reader, &mut draft, key, value);
    }
    if let Some((_, extension)) = reader.mapping(node)?.iter().find(|(key, _)| key.text == "x-hivemind") {
        hivemind_extension(reader, &mut draft, extension);
    }
    let Some(image) = draft.image else {
        reader.fault(name.mark, format!("service {} has no `image`; name the one to run", name.text));
        return None;
    };
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
    let exclusive = draft.exclusive.is_some_and(|(_, exclusive)| exclusive);
    if let (true, Some((mark, replicas @ 2..))) = (exclusive, draft.replicas) {
        reader.fault(mark, format!("{replicas} replicas of an exclusive service; there is at most one"));
    }
    let mut env = draft.env_files;
    env.extend(draft.environment);
    let value = |placed: Placed<u64>| placed.map(|(_, value)| value);
    let workload = WorkloadSpec {
        replicas: draft.replicas.map_or(1, |(_, replicas)| replicas),
        container: ContainerSpec {
            image,
            entrypoint: draft.entrypoint,
            command: draft.command,
            env,
            working_dir: draft.working_dir,
            user: draft.user,
            hostname: draft.hostname,
            resources: Resources {
                cpu_request_millis: value(draft.cpu_request),
                memory_request_bytes: value(draft.memory_request),
                cpu_limit_millis: value(draft.cpu_limit),
                memory_limit_bytes: value(draft.memory_limit),
                pids_limit: value(draft.pids_limit),
            },
            ports: draft.ports,
            stop_signal: draft.stop_signal,
            stop_grace_ms: draft.stop_grace_ms.unwrap_or(10_000),
            health: draft.health,
            read_only: draft.read_only,
            tmpfs: draft.tmpfs,
        },
        restart: draft.restart.map(|(_, restart)| restart).unwrap_or_default(),
        constraints: draft.constraints,
        takeover: draft.takeover,
        priority: draft.priority,
        // Which nodes have a say is for whoever pushes it to find out.
        exclusive: exclusive.then(Exclusive::default),
    };
    Some((workload, draft.labels))
}

/// Reads one key. A `None` inside means that the fault is recorded, so the result is not looked at.
fn service_key(reader: &Reader<'_>, draft: &mut Draft, key: &Key, node: &Node) -> Option<()> {
    // `key:` with nothing after it is as if it were not there, as Compose has it, save for the
    // image, which must be named.
    if node.is_null() && key.text != "image" {
        return None;
    }
    match key.text.as_str() {
        "image" => draft.image = Some(image(reader, node)),
        "command" => draft.command = reader.command(node),
        "entrypoint" => draft.entrypoint = reader.command(node),
        "environment" => environment(reader, draft, node)?,
        "env_file" => env_files(reader, draft, node)?,
        "working_dir" => draft.working_dir = Some(absolute(reader, node)?),
        "user" => draft.user = reader.text_or_number(node, "text"),
        "hostname" => draft.hostname = Some(reader.label(node, "a host name")?),
        "ports" => reader.sequence(node)?.iter().for_each(|item| ports(reader, draft, item)),
        "expose" => reader.sequence(node)?.iter().for_each(|item| exposed(reader, draft, item)),
        "deploy" => deploy(reader, draft, node)?,
        "restart" => set(reader, &mut draft.restart, node, restart(reader, node)?),
        "stop_signal" => draft.stop_signal = Some(signal(reader, node)?),
        "stop_grace_period" => draft.stop_grace_ms = reader.duration_ms(node),
        "healthcheck" => draft.health = health(reader, node)?,
        "read_only" => draft.read_only = reader.boolean(node)?,
        "tmpfs" => draft.tmpfs = tmpfs(reader, node)?,
        "mem_limit" => set(reader, &mut draft.memory_limit, node, reader.size_bytes(node)?),
        "mem_reservation" => set(reader, &mut draft.memory_request, node, reader.size_bytes(node)?),
        "cpus" => set(reader, &mut draft.cpu_limit, node, reader.cpu_millis(node)?),
        "pids_limit" => set(reader, &mut draft.pids_limit, node, pids(reader, node)?),
        "scale" => set(reader, &mut draft.replicas, node, replicas(reader, node)?),
        "labels" => labels(reader, draft, node)?,
        // The table and this list are held together by a test that feeds every key.
        other => reader.fault(key.mark, format!("`{other}` is not supported; remove it")),
    }
    Some(())
}

/// Sets what two keys can set; both may say the same thing.
fn set<T: PartialEq>(reader: &Reader<'_>, slot: &mut Placed<T>, node: &Node, value: T) {
    match slot {
        Some((first, other)) if *other != value => {
            let line = first.line;
            reader.fault(node.mark, format!("line {line} says otherwise; say it in one place"));
        }
        _ => *slot = Some((node.mark, value)),
    }
}

/// The image; the empty text after a fault, so that other faults of the service are found too.
fn image(reader: &Reader<'_>, node: &Node) -> String {
    let Some(text) = reader.text(node) else { return String::from("-") };
    if text.trim().is_empty() || text.contains(char::is_whitespace) {
        reader
            .fault(node.mark, format!("{text:?} is not an image; write for example registry.example/app:1"));
        return String::from("-");
    }
    text
}

fn environment(reader: &Reader<'_>, draft: &mut Draft, node: &Node) -> Option<()> {
    for (mark, name, value) in reader.pairs(node)? {
        if name.is_empty() || name.contains(['=', '\0']) {
            reader.fault(mark, format!("{name:?} cannot name a variable"));
            continue;
        }
        // A name alone takes its value from where the file is pushed, or is not set at all.
        match value.or_else(|| reader.surroundings.variables.get(&name).cloned()) {
            Some(value) => drop(draft.environment.insert(name, value)),
            None => reader.warn(mark, format!("{name} has no value here and is not set")),
        }
    }
    Some(())
}

fn env_files(reader: &Reader<'_>, draft: &mut Draft, node: &Node) -> Option<()> {
    for item in reader.one_or_many(node)? {
        let (mut path, mut required) = (None, true);
        if let Value::Mapping(_) = item.value {
            for (key, value) in reader.entries(item, keys::ENV_FILE)? {
                match key.text.as_str() {
                    "required" => required = reader.boolean(value)?,
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
        match reader.ok(item.mark, (reader.surroundings.read)(&path))? {
            Some(text) => match environment_file(&text) {
                Ok(variables) => draft.env_files.extend(variables),
                Err((line, what)) => reader.fault(item.mark, format!("{path}:{line}: {what}")),
            },
            None if required => reader.fault(item.mark, format!("there is no file {path}")),
            None => {}
        }
    }
    Some(())
}

fn labels(reader: &Reader<'_>, draft: &mut Draft, node: &Node) -> Option<()> {
    for (mark, name, value) in reader.pairs(node)? {
        if name.is_empty() || name.starts_with("hivemind/") {
            reader.fault(mark, format!("{name:?} cannot name a label; `hivemind/` is ours"));
        } else {
            draft.labels.insert(name, value.unwrap_or_default());
        }
    }
    Some(())
}

fn absolute(reader: &Reader<'_>, node: &Node) -> Option<String> {
    let path = reader.text(node)?;
    if path.starts_with('/') {
        return Some(path);
    }
    reader.fault(node.mark, format!("{path:?} must be a path from the root, as /{path}"));
    None
}

fn tmpfs(reader: &Reader<'_>, node: &Node) -> Option<Vec<String>> {
    let path = |item: &Node| {
        let path = absolute(reader, item)?;
        if path.contains(':') {
            reader.fault(item.mark, format!("{path:?}: options are not supported; write the path alone"));
            return None;
        }
        Some(path)
    };
    reader.one_or_many(node)?.iter().map(path).collect()
}

fn replicas(reader: &Reader<'_>, node: &Node) -> Option<u32> {
    reader.integer(node, 0, i64::from(MAX_REPLICAS)).and_then(|n| u32::try_from(n).ok())
}

fn pids(reader: &Reader<'_>, node: &Node) -> Option<u64> {
    reader.integer(node, 1, MAX_PIDS).and_then(|n| u64::try_from(n).ok())
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

fn hivemind_extension(reader: &Reader<'_>, draft: &mut Draft, node: &Node) -> Option<()> {
    let takeovers =
        [("majority", Takeover::Majority), ("always", Takeover::Always), ("never", Takeover::Never)];
    for (key, value) in reader.entries(node, keys::EXTENSION)? {
        match key.text.as_str() {
            "exclusive" => draft.exclusive = Some((value.mark, reader.boolean(value)?)),
            "takeover" => draft.takeover = reader.word(value, &takeovers)?,
            _ => {
                let priority = reader.integer(value, i32::MIN.into(), i32::MAX.into())?;
                draft.priority = i32::try_from(priority).unwrap_or_default();
            }
        }
    }
    Some(())
}

fn deploy(reader: &Reader<'_>, draft: &mut Draft, node: &Node) -> Option<()> {
    for (key, value) in reader.entries(node, keys::DEPLOY)? {
        match key.text.as_str() {
            "mode" => reader.word(value, &[("replicated", ())]),
            "replicas" => replicas(reader, value).map(|n| set(reader, &mut draft.replicas, value, n)),
            "placement" => placement(reader, draft, value),
            "resources" => resources(reader, draft, value),
            _ => restart_policy(reader, value).map(|policy| set(reader, &mut draft.restart, value, policy)),
        };
    }
    Some(())
}

fn resources(reader: &Reader<'_>, draft: &mut Draft, node: &Node) -> Option<()> {
    for (key, part) in reader.entries(node, keys::RESOURCES)? {
        let limits = key.text == "limits";
        let table = if limits { keys::LIMITS } else { keys::RESERVATIONS };
        for (key, value) in reader.entries(part, table)? {
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
                set(reader, slot, value, amount);
            }
        }
    }
    Some(())
}

fn restart_policy(reader: &Reader<'_>, node: &Node) -> Option<RestartPolicy> {
    let conditions = [
        ("any", RestartCondition::Always),
        ("on-failure", RestartCondition::OnFailure),
        ("none", RestartCondition::Never),
    ];
    let mut policy = RestartPolicy::default();
    for (key, value) in reader.entries(node, keys::RESTART_POLICY)? {
        match key.text.as_str() {
            "condition" => policy.condition = reader.word(value, &conditions)?,
            "delay" => policy.delay_ms = reader.duration_ms(value)?,
            _ => policy.max_attempts = u32::try_from(reader.integer(value, 0, u32::MAX.into())?).ok(),
        }
    }
    Some(policy)
}

fn placement(reader: &Reader<'_>, draft: &mut Draft, node: &Node) -> Option<()> {
    for (_, value) in reader.entries(node, keys::PLACEMENT)? {
        for item in reader.sequence(value)? {
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
    }
    Some(())
}

fn constraint(text: &str) -> Option<Constraint> {
    let (operator, sign) =
        if text.contains("!=") { (Operator::NotEqual, "!=") } else { (Operator::Equal, "==") };
    let (left, value) = text.split_once(sign)?;
    let (left, value) = (left.trim(), value.trim());
    let label = match left.strip_prefix("node.labels.") {
        Some(label) if !label.is_empty() => label,
        None if left == "node.hostname" || left == "node.id" => left,
        _ => return None,
    };
    (!value.is_empty()).then(|| Constraint { label: label.to_owned(), operator, value: value.to_owned() })
}

/// The outer `None` is a fault; the inner one is a check that is switched off.
fn health(reader: &Reader<'_>, node: &Node) -> Option<Option<HealthCheck>> {
    let mut check = HealthCheck {
        command: Vec::new(),
        interval_ms: HEALTH_INTERVAL_MS,
        timeout_ms: HEALTH_TIMEOUT_MS,
        retries: HEALTH_RETRIES,
        start_period_ms: 0,
    };
    let mut disabled = false;
    for (key, value) in reader.entries(node, keys::HEALTHCHECK)? {
        match key.text.as_str() {
            "disable" => disabled |= reader.boolean(value)?,
            "test" => match health_command(reader, value)? {
                Some(command) => check.command = command,
                None => disabled = true,
            },
            "interval" => check.interval_ms = positive_ms(reader, value)?,
            "timeout" => check.timeout_ms = positive_ms(reader, value)?,
            "start_period" => check.start_period_ms = reader.duration_ms(value)?,
            _ => check.retries = u32::try_from(reader.integer(value, 1, 1000)?).ok()?,
        }
    }
    if disabled {
        return Some(None);
    }
    if check.command.is_empty() {
        reader.fault(node.mark, "`test` is missing: the command that checks");
        return None;
    }
    Some(Some(check))
}

fn positive_ms(reader: &Reader<'_>, node: &Node) -> Option<u64> {
    match reader.duration_ms(node)? {
        0 => {
            reader.fault(node.mark, "a duration of 0: it must be more");
            None
        }
        ms => Some(ms),
    }
}

fn health_command(reader: &Reader<'_>, node: &Node) -> Option<Option<Vec<String>>> {
    let shell = |script: String| vec!["/bin/sh".to_owned(), "-c".to_owned(), script];
    if let Value::Scalar(_) = node.value {
        return Some(Some(shell(reader.text(node)?)));
    }
    let mut words = reader.command(node)?;
    if words.is_empty() {
        reader.fault(node.mark, "this is empty; start with CMD, CMD-SHELL or NONE");
        return None;
    }
    let rest = words.split_off(1);
    match (words[0].as_str(), rest.as_slice()) {
        ("NONE", []) => Some(None),
        ("CMD", [_, ..]) => Some(Some(rest)),
        ("CMD-SHELL", [script]) => Some(Some(shell(script.clone()))),
        _ => {
            reader.fault(node.mark, "start with CMD and a command, CMD-SHELL and one text, or NONE alone");
            None
        }
    }
}

fn exposed(reader: &Reader<'_>, draft: &mut Draft, node: &Node) {
    let Some(text) = reader.text_or_number(node, "a port") else { return };
    let (range, protocol) = text.split_once('/').unwrap_or((&text, "tcp"));
    let ports = port_range(range).and_then(|targets| Ok((targets, protocol_of(protocol)?)));
    if let Some((targets, protocol)) = reader.ok(node.mark, ports) {
        draft.ports.extend(targets.map(|target| Port { target, published: None, protocol }));
    }
}

fn ports(reader: &Reader<'_>, draft: &mut Draft, node: &Node) {
    if let Value::Mapping(_) = node.value {
        draft.ports.extend(long_port(reader, node));
        return;
    }
    let Some(text) = reader.text_or_number(node, "a port") else { return };
    if let Some(ports) = reader.ok(node.mark, short_ports(&text)) {
        draft.ports.extend(ports);
    }
}

/// `PUBLISHED:TARGET[/PROTOCOL]`, both a port or a range.
fn short_ports(text: &str) -> Result<Vec<Port>, String> {
    let (both, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol_of(protocol)?;
    let Some((published, target)) = both.split_once(':') else {
        port_range(both)?;
        return Err(format!(
            "{text:?} does not say which port to publish; write \"{both}:{both}\", or use `expose`"
        ));
    };
    if published.contains(['.', '[']) || target.contains(':') {
        return Err(format!("{text:?}: a port is open on every machine and address; leave the address out"));
    }
    let (published, targets) = (port_range(published)?, port_range(target)?);
    if published.len() != targets.len() {
        return Err(format!("{text:?}: the two ranges differ in length"));
    }
    let port = |(published, target)| Port { target, published: Some(published), protocol };
    Ok(published.zip(targets).map(port).collect())
}

fn protocol_of(text: &str) -> Result<Protocol, String> {
    match text {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        _ => Err(format!("{text:?} is not a protocol; use tcp or udp")),
    }
}

fn port_range(text: &str) -> Result<std::ops::RangeInclusive<u16>, String> {
    let wrong = || format!("{text:?} is not a port; use a number from 1 to 65535");
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(wrong);
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    if first > last || last - first >= MAX_PORT_RANGE {
        return Err(format!("{text:?} is not a range of 1 to {MAX_PORT_RANGE} ports"));
    }
    Ok(first..=last)
}

fn long_port(reader: &Reader<'_>, node: &Node) -> Option<Port> {
    let number = |node| reader.integer(node, 1, 65_535).and_then(|n| u16::try_from(n).ok());
    let (mut target, mut published, mut protocol) = (None, None, Protocol::Tcp);
    for (key, value) in reader.entries(node, keys::PORT)? {
        match key.text.as_str() {
            "mode" => reader.word(value, &[("ingress", ())])?,
            "protocol" => {
                protocol = reader.word(value, &[("tcp", Protocol::Tcp), ("udp", Protocol::Udp)])?;
            }
            "published" => published = Some(number(value)?),
            _ => target = Some(number(value)?),
        }
    }
    if target.is_none() {
        reader.fault(node.mark, "`target` is missing: the port in the container");
    }
    Some(Port { target: target?, published, protocol })
}
