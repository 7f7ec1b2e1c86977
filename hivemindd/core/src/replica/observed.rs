//! What the runtime holds, as far as is known: the last inventory, corrected by operations that
//! ended after it may have been taken.

use std::collections::BTreeMap;

use crate::event::{ContainerId, ContainerState, Inventory, TaskState};
use crate::time::Time;

/// How long an operation's outcome is believed against an inventory that says otherwise,
/// milliseconds. An inventory is taken every few seconds and may have been on its way already; one
/// that still disagrees after that is right.
const BELIEVED_MS: u64 = 10_000;

#[derive(Debug, Clone)]
struct Expected {
    /// `None`: gone.
    state: Option<ContainerState>,
    until_ms: u64,
}

/// The inventory as believed.
#[derive(Debug, Clone, Default)]
pub(super) struct Observed {
    known: bool,
    inventory: Inventory,
    expected: BTreeMap<ContainerId, Expected>,
}

impl Observed {
    /// Whether there has been an inventory.
    pub(super) fn is_known(&self) -> bool {
        self.known
    }

    pub(super) fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// Takes a new inventory.
    pub(super) fn update(&mut self, now: Time, inventory: Inventory) {
        self.known = true;
        self.inventory = inventory;
        let containers = &mut self.inventory.containers;
        self.expected.retain(|id, expected| {
            let stands =
                now.mono_ms < expected.until_ms && !settles(expected.state.as_ref(), containers.get(id));
            if stands {
                match &expected.state {
                    Some(state) => containers.insert(id.clone(), state.clone()),
                    None => containers.remove(id),
                };
            }
            stands
        });
    }

    /// Takes note of an operation's outcome.
    pub(super) fn expect(&mut self, now: Time, id: ContainerId, state: Option<ContainerState>) {
        match &state {
            Some(state) => self.inventory.containers.insert(id.clone(), state.clone()),
            None => self.inventory.containers.remove(&id),
        };
        let until_ms = now.mono_ms.saturating_add(BELIEVED_MS);
        self.expected.insert(id, Expected { state, until_ms });
    }

    /// Takes note that a container was stopped. How it ended the next inventory says; whatever the
    /// code, it is not one of the container's own choice.
    pub(super) fn expect_stopped(&mut self, now: Time, id: ContainerId) {
        let Some(state) = self.inventory.containers.get(&id).cloned() else { return };
        if state.task == TaskState::Running {
            const SIGTERM_CODE: u32 = 143;
            let task = TaskState::Exited { code: SIGTERM_CODE, at_ms: now.wall_ms, oom: false };
            self.expect(now, id, Some(ContainerState { task, ..state }));
        }
    }

    pub(super) fn expect_image(&mut self, image: String) {
        self.inventory.images.insert(image);
    }
}

/// Whether what an inventory says about a container can be later than what was expected.
fn settles(expected: Option<&ContainerState>, found: Option<&ContainerState>) -> bool {
    let Some(expected) = expected else { return found.is_none() };
    let Some(found) = found else {
        // A container that ended may have been removed; one that was just started was not.
        return expected.task != TaskState::Running;
    };
    let same = found.labels == expected.labels;
    match (&expected.task, &found.task) {
        (TaskState::Running, TaskState::Running | TaskState::Exited { .. }) => same,
        (TaskState::Running, TaskState::Absent) => false,
        (_, TaskState::Running) => !same,
        (_, _) => true,
    }
}
