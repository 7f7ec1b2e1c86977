//! What a container is, kept in its containerd labels, so that it is adopted after a restart of
//! the agent.

use std::collections::HashMap;

use hivemind_core::event::ContainerLabels;
use hivemind_core::record::{ReplicaId, WorkloadId};
use hivemind_spec::api::Capacity;

/// All that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Labels {
    /// What the core wants to know.
    pub(super) container: ContainerLabels,
    /// The image's stop signal.
    pub(super) stop_signal: Option<String>,
    /// The most that is kept of its output, bytes, if the document says it.
    pub(super) log_bytes: Option<u64>,
}

const NAMESPACE: &str = "hivemind/namespace";
const WORKLOAD: &str = "hivemind/workload";
const SLOT: &str = "hivemind/slot";
const TEMPLATE: &str = "hivemind/template";
const IP: &str = "hivemind/ip";
const RESTARTS: &str = "hivemind/restarts";
const CPU_MILLIS: &str = "hivemind/cpu-millis";
const MEMORY_BYTES: &str = "hivemind/memory-bytes";
const STOP_SIGNAL: &str = "hivemind/stop-signal";
const LOG_BYTES: &str = "hivemind/log-bytes";

/// Labels as containerd keeps them.
pub(super) fn write(labels: &Labels) -> HashMap<String, String> {
    let ContainerLabels { replica, template, ip, restarts, asks } = &labels.container;
    let mut written: HashMap<String, String> = [
        (NAMESPACE, replica.workload.namespace.clone()),
        (WORKLOAD, replica.workload.name.clone()),
        (SLOT, replica.slot.to_string()),
        (TEMPLATE, template.to_string()),
        (IP, ip.to_string()),
        (RESTARTS, restarts.to_string()),
        (CPU_MILLIS, asks.cpu_millis.to_string()),
        (MEMORY_BYTES, asks.memory_bytes.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    written.extend(labels.stop_signal.clone().map(|signal| (STOP_SIGNAL.to_owned(), signal)));
    written.extend(labels.log_bytes.map(|bytes| (LOG_BYTES.to_owned(), bytes.to_string())));
    written
}

/// Reads them back; `None` when one is missing or is not what it should be.
pub(super) fn read(labels: &HashMap<String, String>) -> Option<Labels> {
    let workload =
        WorkloadId { namespace: labels.get(NAMESPACE)?.clone(), name: labels.get(WORKLOAD)?.clone() };
    let container = ContainerLabels {
        replica: ReplicaId { workload, slot: labels.get(SLOT)?.parse().ok()? },
        template: labels.get(TEMPLATE)?.parse().ok()?,
        ip: labels.get(IP)?.parse().ok()?,
        restarts: labels.get(RESTARTS)?.parse().ok()?,
        asks: Capacity {
            cpu_millis: labels.get(CPU_MILLIS)?.parse().ok()?,
            memory_bytes: labels.get(MEMORY_BYTES)?.parse().ok()?,
        },
    };
    let log_bytes = labels.get(LOG_BYTES).and_then(|bytes| bytes.parse().ok());
    Some(Labels { container, stop_signal: labels.get(STOP_SIGNAL).cloned(), log_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hivemind_spec::id::Digest;

    #[test]
    fn what_a_container_is_survives_in_its_labels() {
        let workload = WorkloadId { namespace: "default".into(), name: "web".into() };
        let container = ContainerLabels {
            replica: ReplicaId { workload, slot: 3 },
            template: Digest::of(b"a template"),
            ip: "10.42.3.7".parse().unwrap(),
            restarts: 2,
            asks: Capacity { cpu_millis: 250, memory_bytes: 64 << 20 },
        };
        for stop_signal in [None, Some("SIGQUIT".to_owned())] {
            let log_bytes = stop_signal.as_ref().map(|_| 500_000);
            let labels = Labels { container: container.clone(), stop_signal, log_bytes };
            assert_eq!(read(&write(&labels)), Some(labels));
        }
    }

    #[test]
    fn labels_that_are_not_ours_are_not_guessed_at() {
        let labels = Labels {
            container: ContainerLabels {
                replica: ReplicaId {
                    workload: WorkloadId { namespace: "default".into(), name: "web".into() },
                    slot: 0,
                },
                template: Digest::of(b"a template"),
                ip: "10.42.3.7".parse().unwrap(),
                restarts: 0,
                asks: Capacity::default(),
            },
            stop_signal: None,
            log_bytes: None,
        };
        for broken in [SLOT, TEMPLATE, IP, RESTARTS, CPU_MILLIS, MEMORY_BYTES] {
            let mut written = write(&labels);
            written.insert(broken.into(), "nonsense".into());
            assert_eq!(read(&written), None, "{broken}");
            written.remove(broken);
            assert_eq!(read(&written), None, "{broken}");
        }
    }
}
