//! Why a node does not take a replica, and how that is said.

use std::collections::BTreeMap;

use hivemind_spec::api::Capacity;
use hivemind_spec::id::NodeId;
use hivemind_spec::workload::{Constraint, Operator};

use super::draft::{Asks, Host};
use crate::cluster::Workload;
use crate::record::WorkloadId;

const MIB: f64 = 1024.0 * 1024.0;
const GIB: f64 = 1024.0 * MIB;

/// Why a node does not take a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Refusal {
    /// Too little memory left.
    Memory,
    /// Too little CPU left.
    Cpu,
    /// It has as many replicas of the workload as it may.
    Full,
    /// The constraint with this index is not met.
    Constraint(usize),
    /// It does not have the device with this index.
    Device(usize),
    /// It has not looked yet whether it has the device with this index.
    DeviceUnknown(usize),
    /// It says that it cannot run workloads.
    NotReady,
    /// It is about to start a new release of the operating system.
    Leaving,
    /// Operators want nothing new on it.
    Cordoned,
    /// It is not heard of.
    Down,
}

/// Says why no node takes a replica: `no node fits: 2 of 3 have too little memory (asks 2.0 GiB;
/// most free: hive-1a2b 0.3 GiB), 1 lacks label disk=ssd`.
pub(super) fn explain(hosts: &BTreeMap<NodeId, Host<'_>>, name: &WorkloadId, workload: &Workload) -> String {
    let mut by_refusal: BTreeMap<Refusal, Vec<&Host<'_>>> = BTreeMap::new();
    for (id, host) in hosts {
        if let Some(refusal) = host.refusal(id, name, workload, Capacity::default()) {
            by_refusal.entry(refusal).or_default().push(host);
        }
    }
    let mut groups: Vec<_> = by_refusal.into_iter().collect();
    groups.sort_by_key(|(refusal, refusing)| (std::cmp::Reverse(refusing.len()), *refusal));
    if groups.is_empty() {
        return "no node fits: none has joined".to_owned();
    }
    let all = hosts.len();
    let said: Vec<String> = groups
        .iter()
        .enumerate()
        .map(|(index, (refusal, refusing))| {
            let count = refusing.len();
            let number = if index == 0 { format!("{count} of {all}") } else { count.to_string() };
            format!("{number} {}", describe(*refusal, refusing, workload))
        })
        .collect();
    format!("no node fits: {}", said.join(", "))
}

/// Says why the one node that has a replica's data does not take it: `its data is on hive-1a2b, which is cordoned`.
pub(super) fn explain_one(
    hosts: &BTreeMap<NodeId, Host<'_>>,
    home: &NodeId,
    name: &WorkloadId,
    workload: &Workload,
) -> String {
    let Some(host) = hosts.get(home) else {
        return "its data is on a machine that has left".to_owned();
    };
    let refusal = host.refusal(home, name, workload, Capacity::default());
    let why = refusal.map_or_else(
        || "takes it next".to_owned(),
        |refusal| {
            let text = describe(refusal, &[host], workload);
            text.strip_suffix(&format!(" ({})", host.hostname)).unwrap_or(&text).to_owned()
        },
    );
    format!("its data is on {}, which {why}", host.hostname)
}

/// What a group of nodes has against the workload, as the rest of a sentence after their number.
fn describe(refusal: Refusal, refusing: &[&Host], workload: &Workload) -> String {
    let one = refusing.len() == 1;
    let verb = |singular: &'static str, plural: &'static str| if one { singular } else { plural };
    let names = || {
        let shown: Vec<&str> = refusing.iter().take(3).map(|host| host.hostname.as_str()).collect();
        let more = if refusing.len() > shown.len() { ", …" } else { "" };
        format!("{}{more}", shown.join(", "))
    };
    let asks = Asks::from(&workload.spec.container.resources);
    match refusal {
        Refusal::Memory => {
            let (best, free) = most(refusing, |free| free.memory_bytes);
            let (asked, free) = (bytes(asks.memory_bytes, asks.memory_bytes), bytes(free, asks.memory_bytes));
            let have = verb("has", "have");
            format!("{have} too little memory (asks {asked}; most free: {best} {free})")
        }
        Refusal::Cpu => {
            let (best, free) = most(refusing, |free| free.cpu_millis);
            let have = verb("has", "have");
            let (asked, free) = (cores(asks.cpu_millis), cores(free));
            format!("{have} too little CPU (asks {asked} cores; most free: {best} {free} cores)")
        }
        Refusal::Full => {
            let most = workload.spec.most_per_node().unwrap_or_default();
            format!("{} {most} of it already, the most there may be", verb("has", "have"))
        }
        Refusal::Constraint(index) => match workload.spec.constraints.get(index) {
            Some(Constraint { label, operator, value }) => {
                let built_in = label.starts_with("node.");
                match (built_in, operator) {
                    (true, Operator::Equal) => format!("{} not {label} {value}", verb("is", "are")),
                    (true, Operator::NotEqual) => format!("{} {label} {value}", verb("is", "are")),
                    (false, Operator::Equal) => format!("{} label {label}={value}", verb("lacks", "lack")),
                    (false, Operator::NotEqual) => format!("{} label {label}={value}", verb("has", "have")),
                }
            }
            None => format!("{} a constraint not met", verb("has", "have")),
        },
        Refusal::Device(index) => format!("{} no {}", verb("has", "have"), device(workload, index)),
        Refusal::DeviceUnknown(index) => {
            let verb = verb("has not said yet whether it has", "have not said yet whether they have");
            format!("{verb} {}", device(workload, index))
        }
        Refusal::NotReady => format!("{} not ready ({})", verb("is", "are"), names()),
        Refusal::Leaving => format!("{} about to start anew ({})", verb("is", "are"), names()),
        Refusal::Cordoned => format!("{} cordoned ({})", verb("is", "are"), names()),
        Refusal::Down => format!("{} down ({})", verb("is", "are"), names()),
    }
}

fn device(workload: &Workload, index: usize) -> &str {
    workload.spec.container.machine.devices.get(index).map_or("its device", |device| device.path.as_str())
}

fn most<'a>(refusing: &[&'a Host], measure: impl Fn(Capacity) -> u64) -> (&'a str, u64) {
    let best = refusing.iter().max_by_key(|host| measure(host.free()));
    best.map_or(("none", 0), |host| (host.hostname.as_str(), measure(host.free())))
}

/// Bytes in the unit that suits `scale`, so that two figures side by side compare.
fn bytes(count: u64, scale: u64) -> String {
    // Display only: a tenth of a unit is all that is shown.
    let count = count as f64;
    if scale as f64 >= GIB { format!("{:.1} GiB", count / GIB) } else { format!("{:.1} MiB", count / MIB) }
}

fn cores(millis: u64) -> String {
    format!("{}.{:02}", millis / 1000, millis % 1000 / 10)
}
