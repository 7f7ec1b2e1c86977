//! What the node is: gathered from the kernel, the configuration and the other parts of the agent,
//! and told to the core whenever it changes.

use std::fs;

use hivemind_core::event::NodeFacts;
use hivemind_spec::api::{Capacity, Release};
use hivemind_spec::id::NodeId;
use hivemind_spec::machine;
use hivemind_spec::release::Architecture;
use hivemind_spec::workload::{PLATFORM_ARCH, PLATFORM_OS};

use crate::release;
use crate::underlay::Underlay;

/// The mark up to which all workloads together are given memory as they want it; PID 1 sets it.
const WORKLOADS_MEMORY: &str = "/sys/fs/cgroup/hivemind/workloads/memory.high";

/// The host name: the configured one, else one made from the node's id.
pub(super) fn hostname(config: &machine::Node, node: NodeId) -> String {
    config.hostname.clone().unwrap_or_else(|| format!("hive-{}", node.short()))
}

/// All that is known now. `problems` are those of the other parts, in words.
pub(super) fn gather(
    config: &machine::Node,
    node: NodeId,
    underlay: Option<&Underlay>,
    problems: Vec<String>,
    release: Option<Release>,
) -> NodeFacts {
    NodeFacts {
        hostname: hostname(config, node),
        address: underlay.map(|underlay| underlay.address),
        labels: config.labels.clone().into_iter().chain(platform()).collect(),
        capacity: capacity(),
        version: release::os_release("VERSION_ID").unwrap_or_else(|| crate::VERSION.to_owned()),
        release,
        problems,
    }
}

/// What the node is built of, as labels: so replicas go where their images can run.
fn platform() -> Vec<(String, String)> {
    let arch = Architecture::own().map_or(std::env::consts::ARCH, Architecture::name);
    [(PLATFORM_OS, std::env::consts::OS), (PLATFORM_ARCH, arch)]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

/// What workloads may use: all processors, because they only get what others leave; and the memory
/// that PID 1 leaves them.
fn capacity() -> Capacity {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let limit = fs::read_to_string(WORKLOADS_MEMORY).ok().and_then(|text| text.trim().parse().ok());
    Capacity {
        cpu_millis: 1000 * processors as u64,
        memory_bytes: limit
            .or_else(|| meminfo(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:"))
            .unwrap_or(0),
    }
}

/// An entry of `/proc/meminfo` by its name, which ends with a colon, in bytes.
pub(crate) fn meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "MemTotal:         498760 kB\nMemFree: 1 kB\nMemAvailable:     300000 kB\n";
        assert_eq!(meminfo(text, "MemTotal:"), Some(498_760 * 1024));
        assert_eq!(meminfo(text, "MemAvailable:"), Some(300_000 * 1024));
        assert_eq!(meminfo("nonsense", "MemTotal:"), None);
    }
}
