//! Which nodes have the devices that workloads ask for.
//!
//! No node lists what it has. Each looks for what workloads ask for, and says of each device whether it is there, as a
//! label: `node.device./dev/ttyUSB0` is `present` or `absent`. A node without the label has not looked yet: nothing new
//! comes to it, and what is there stays. What is on a node that no longer has its device goes where there is one, and
//! waits while there is none.

use std::collections::{BTreeMap, BTreeSet};

use hivemind_spec::workload::{DEVICE_ABSENT, DEVICE_LABEL, DEVICE_PRESENT, WorkloadSpec};

use crate::cluster::Cluster;

/// Devices that are looked for, at most: each is a label in every node's record.
const MAX_ASKED: usize = 256;

/// What a node says of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It is there.
    Present,
    /// It is not.
    Absent,
    /// The node has not looked yet.
    Unknown,
}

/// Whether a node with these labels has a device.
pub fn presence(labels: &BTreeMap<String, String>, path: &str) -> Presence {
    match labels.get(&label(path)).map(String::as_str) {
        Some(DEVICE_PRESENT) => Presence::Present,
        Some(DEVICE_ABSENT) => Presence::Absent,
        _ => Presence::Unknown,
    }
}

/// The index of the first device of a workload that a node is not known to have, and how it stands with it.
pub fn first_lacking(spec: &WorkloadSpec, labels: &BTreeMap<String, String>) -> Option<(usize, Presence)> {
    let asked = spec.container.machine.devices.iter();
    let mut found = asked.map(|device| presence(labels, &device.path)).enumerate();
    found.find(|(_, presence)| *presence != Presence::Present)
}

/// Whether a node is known to lack a device of a workload.
pub fn lacks(spec: &WorkloadSpec, labels: &BTreeMap<String, String>) -> bool {
    let asked = &spec.container.machine.devices;
    asked.iter().any(|device| presence(labels, &device.path) == Presence::Absent)
}

/// What a node looks for, and what it found.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    asked: BTreeSet<String>,
    found: BTreeMap<String, bool>,
}

impl Devices {
    /// Notes what workloads ask for, and returns it if that is something else than before.
    pub(crate) fn ask(&mut self, cluster: &Cluster) -> Option<&BTreeSet<String>> {
        let devices =
            cluster.workloads.values().flat_map(|workload| &workload.spec.container.machine.devices);
        let asked: BTreeSet<&str> = devices.map(|device| device.path.as_str()).collect();
        let asked = || asked.iter().copied().take(MAX_ASKED);
        if asked().eq(self.asked.iter().map(String::as_str)) {
            return None;
        }
        self.asked = asked().map(str::to_owned).collect();
        self.found.retain(|path, _| self.asked.contains(path));
        Some(&self.asked)
    }

    /// Notes which of them are there, and says whether that is news.
    pub(crate) fn learn(&mut self, found: BTreeMap<String, bool>) -> bool {
        // What was looked for before something else was asked for may be answered late.
        let found = found.into_iter().filter(|(path, _)| self.asked.contains(path)).collect();
        let news = found != self.found;
        self.found = found;
        news
    }

    /// What is said of it.
    pub(crate) fn labels(&self) -> impl Iterator<Item = (String, String)> {
        self.found.iter().map(|(path, is_there)| {
            let word = if *is_there { DEVICE_PRESENT } else { DEVICE_ABSENT };
            (label(path), word.to_owned())
        })
    }
}

fn label(path: &str) -> String {
    format!("{DEVICE_LABEL}{path}")
}

#[cfg(test)]
mod tests {
    use hivemind_spec::workload::Device;

    use super::*;
    use crate::fixture::{cluster, workload, workload_id};

    const STICK: &str = "/dev/ttyUSB0";

    fn asking(paths: &[&str]) -> crate::cluster::Workload {
        let mut asks = workload(1);
        let device = |path: &&str| Device {
            path: (*path).to_owned(),
            target: "/dev/a".to_owned(),
            access: "rw".to_owned(),
        };
        asks.spec.container.machine.devices = paths.iter().map(device).collect();
        asks
    }

    #[test]
    fn a_node_looks_for_what_is_asked_for_and_says_of_each_whether_it_is_there() {
        let (mut cluster, _) = cluster(1);
        let mut devices = Devices::default();
        assert_eq!(devices.ask(&cluster), None);
        cluster.workloads.insert(workload_id("a"), asking(&[STICK, "/dev/video0"]));
        cluster.workloads.insert(workload_id("b"), asking(&[STICK]));
        let asked: BTreeSet<String> = [STICK.to_owned(), "/dev/video0".to_owned()].into();
        assert_eq!(devices.ask(&cluster), Some(&asked));
        assert_eq!(devices.ask(&cluster), None);
        assert_eq!(devices.labels().count(), 0, "it has not looked");

        let found: BTreeMap<String, bool> =
            [(STICK.to_owned(), true), ("/dev/video0".to_owned(), false), ("/dev/old".to_owned(), true)]
                .into();
        assert!(devices.learn(found.clone()));
        assert!(!devices.learn(found));
        let labels: BTreeMap<String, String> = devices.labels().collect();
        assert_eq!(labels.len(), 2);
        assert_eq!(presence(&labels, STICK), Presence::Present);
        assert_eq!(presence(&labels, "/dev/video0"), Presence::Absent);
        assert_eq!(presence(&labels, "/dev/video1"), Presence::Unknown);

        // What nobody asks for any more is not spoken of.
        cluster.workloads.remove(&workload_id("a"));
        devices.ask(&cluster);
        assert_eq!(devices.labels().count(), 1);
    }

    #[test]
    fn what_a_node_has_not_looked_for_it_neither_has_nor_lacks() {
        let asks = asking(&[STICK, "/dev/video0"]);
        let said = |path: &str, word: &str| [(label(path), word.to_owned())].into();
        let (unknown, absent): (BTreeMap<_, _>, BTreeMap<_, _>) =
            (said(STICK, "present"), said(STICK, "absent"));
        assert_eq!(first_lacking(&asks.spec, &unknown), Some((1, Presence::Unknown)));
        assert!(!lacks(&asks.spec, &unknown));
        assert_eq!(first_lacking(&asks.spec, &absent), Some((0, Presence::Absent)));
        assert!(lacks(&asks.spec, &absent));
        assert_eq!(first_lacking(&asking(&[]).spec, &absent), None);
    }
}
