//! Whether there is room on the node for one more container.

use hivemind_spec::api::Capacity;

use super::{InFlight, Replicas};
use crate::event::TaskState;
use crate::mutation::{Mutation, is_on};

impl Replicas {
    /// Why a container that asks for so much must wait: what runs here, wanted or not, and what is
    /// being started leaves too little. Placements of different leaders, or of different moments,
    /// may ask together for more than there is.
    pub(super) fn lack_of_room(&self, asks: Capacity, capacity: Capacity) -> Option<String> {
        if is_on(Mutation::CapacityDoesNotMatter) {
            return None;
        }
        let containers = self.observed.inventory().containers.values();
        let running = containers.filter(|state| state.task == TaskState::Running);
        let running = running.filter_map(|state| state.labels.as_ref());
        let starting = self.operations.values().filter_map(|op| match op {
            InFlight::Start { labels, .. } => Some(labels),
            _ => None,
        });
        let (mut cpu_millis, mut memory_bytes) = (capacity.cpu_millis, capacity.memory_bytes);
        for labels in running.chain(starting) {
            cpu_millis = cpu_millis.saturating_sub(labels.asks.cpu_millis);
            memory_bytes = memory_bytes.saturating_sub(labels.asks.memory_bytes);
        }
        if asks.cpu_millis > cpu_millis {
            let wanted = asks.cpu_millis;
            Some(format!(
                "waits for room: asks for {wanted} thousandths of a core, {cpu_millis} are free here"
            ))
        } else if asks.memory_bytes > memory_bytes {
            let wanted = asks.memory_bytes;
            Some(format!("waits for room: asks for {wanted} bytes of memory, {memory_bytes} are free here"))
        } else {
            None
        }
    }
}
