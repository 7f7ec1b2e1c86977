//! What the runtime holds, as far as is known: the last inventory, corrected by operations that
//! ended after it may have been taken.

use std::collections::BTreeMap;

use crate::event::{ContainerId, ContainerLabels, ContainerState, Inventory, TaskState, VolumeState};
use crate::record::VolumePart;
use crate::time::Time;

/// How long an operation's outcome is believed against an inventory that says otherwise,
/// milliseconds. An inventory is taken every few seconds and may have been on its way already; one
/// that still disagrees after that is right.
const BELIEVED_MS: u64 = 10_000;

#[derive(Debug, Clone)]
struct Expected {
    /// `None`: gone.
    state: Option<ContainerState>,
    /// When the operation began that made it so, wall milliseconds.
    since_wall_ms: u64,
    until_ms: u64,
}

/// The inventory as believed.
#[derive(Debug, Clone, Default)]
pub(super) struct Observed {
    known: bool,
    inventory: Inventory,
    expected: BTreeMap<ContainerId, Expected>,
    /// Volumes of containers that were started, and until when they are believed to be there.
    made: BTreeMap<VolumePart, (VolumeState, u64)>,
    /// Images that were removed, and until when they are believed to be gone.
    gone: BTreeMap<String, u64>,
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
        let volumes = &mut self.inventory.volumes;
        self.made.retain(|part, (_, until_ms)| now.mono_ms < *until_ms && !volumes.contains_key(part));
        volumes.extend(self.made.iter().map(|(part, (state, _))| (part.clone(), *state)));
        self.gone.retain(|_, until_ms| now.mono_ms < *until_ms);
        self.inventory.images.retain(|image| !self.gone.contains_key(image));
        let containers = &mut self.inventory.containers;
        self.expected.retain(|id, expected| {
            let stands = now.mono_ms < expected.until_ms && !settles(expected, containers.get(id));
            if stands {
                match &expected.state {
                    Some(state) => containers.insert(id.clone(), state.clone()),
                    None => containers.remove(id),
                };
            }
            stands
        });
    }

    /// Takes note that a container was started; that began at `since_wall_ms`.
    pub(super) fn expect_running(
        &mut self,
        now: Time,
        id: ContainerId,
        labels: ContainerLabels,
        since_wall_ms: u64,
    ) {
        let state = ContainerState { labels: Some(labels), task: TaskState::Running };
        self.expect(now, id, Some(state), since_wall_ms);
    }

    /// Takes note that a container was removed.
    pub(super) fn expect_gone(&mut self, now: Time, id: ContainerId) {
        self.expect(now, id, None, now.wall_ms);
    }

    fn expect(&mut self, now: Time, id: ContainerId, state: Option<ContainerState>, since_wall_ms: u64) {
        match &state {
            Some(state) => self.inventory.containers.insert(id.clone(), state.clone()),
            None => self.inventory.containers.remove(&id),
        };
        let until_ms = now.mono_ms.saturating_add(BELIEVED_MS);
        self.expected.insert(id, Expected { state, since_wall_ms, until_ms });
    }

    /// Takes note that a container was stopped. How it ended the next inventory says; whatever the
    /// code, it is not one of the container's own choice.
    pub(super) fn expect_stopped(&mut self, now: Time, id: ContainerId) {
        let Some(state) = self.inventory.containers.get(&id).cloned() else { return };
        if state.task == TaskState::Running {
            const SIGTERM_CODE: u32 = 143;
            let task = TaskState::Exited { code: SIGTERM_CODE, at_ms: now.wall_ms, oom: None };
            self.expect(now, id, Some(ContainerState { task, ..state }), now.wall_ms);
        }
    }

    /// Takes note of the volumes of a container that was started.
    pub(super) fn expect_volumes(&mut self, now: Time, parts: Vec<VolumePart>) {
        for part in parts {
            let new = VolumeState { made_ms: now.wall_ms, ..VolumeState::default() };
            let there = *self.inventory.volumes.entry(part.clone()).or_insert(new);
            self.made.insert(part, (there, now.mono_ms.saturating_add(BELIEVED_MS)));
        }
    }

    pub(super) fn expect_limit(&mut self, part: &VolumePart, size_bytes: Option<u64>) {
        if let Some(state) = self.inventory.volumes.get_mut(part) {
            state.size_bytes = size_bytes;
        }
    }

    pub(super) fn expect_no_volume(&mut self, part: &VolumePart) {
        self.inventory.volumes.remove(part);
        self.made.remove(part);
    }

    pub(super) fn expect_image(&mut self, image: String) {
        self.gone.remove(&image);
        self.inventory.images.insert(image);
    }

    /// Takes note that an image was removed. How full the disk is now the next inventory says.
    pub(super) fn expect_no_image(&mut self, now: Time, image: String) {
        self.inventory.images.remove(&image);
        self.inventory.disk = None;
        self.gone.insert(image, now.mono_ms.saturating_add(BELIEVED_MS));
    }
}

/// Whether what an inventory says about a container can be later than what was expected.
fn settles(expected: &Expected, found: Option<&ContainerState>) -> bool {
    let since_ms = expected.since_wall_ms;
    let Some(expected) = &expected.state else { return found.is_none() };
    let Some(found) = found else {
        // A container that ended may have been removed; one that was just started was not.
        return expected.task != TaskState::Running;
    };
    let same = found.labels == expected.labels;
    match (&expected.task, &found.task) {
        // It may be the container's predecessor of the same name that runs there, or ended earlier.
        (TaskState::Running, TaskState::Running) => false,
        (TaskState::Running, TaskState::Exited { at_ms, .. }) => same && *at_ms >= since_ms,
        (TaskState::Running, TaskState::Absent) => false,
        (_, TaskState::Running) => !same,
        (_, _) => true,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hivemind_spec::api::Capacity;
    use hivemind_spec::id::Digest;

    use super::*;
    use crate::record::{ReplicaId, WorkloadId};

    fn labels() -> ContainerLabels {
        let workload = WorkloadId { namespace: "default".to_owned(), name: "web".to_owned() };
        ContainerLabels {
            replica: ReplicaId { workload, slot: 0 },
            template: Digest([1; 32]),
            ip: Ipv4Addr::new(10, 42, 0, 2),
            restarts: 0,
            asks: Capacity::default(),
        }
    }

    fn inventory(id: &ContainerId, task: TaskState) -> Inventory {
        let state = ContainerState { labels: Some(labels()), task };
        Inventory { containers: BTreeMap::from([(id.clone(), state)]), ..Inventory::default() }
    }

    fn at(ms: u64) -> Time {
        Time { mono_ms: ms, wall_ms: 1_000_000 + ms }
    }

    fn ended(at_ms: u64) -> TaskState {
        TaskState::Exited { code: 143, at_ms: 1_000_000 + at_ms, oom: None }
    }

    /// A container whose start took from 4800 ms to 5000 ms.
    fn started() -> (Observed, ContainerId) {
        let (mut observed, id) = (Observed::default(), ContainerId("hm-1".to_owned()));
        observed.expect_running(at(5000), id.clone(), labels(), at(4800).wall_ms);
        (observed, id)
    }

    #[test]
    fn what_befell_a_containers_predecessor_did_not_befall_itself() {
        let (mut observed, id) = started();
        // Taken before the start, told after it.
        for task in [TaskState::Running, ended(4700), TaskState::Absent] {
            observed.update(at(6000), inventory(&id, task));
            assert_eq!(observed.inventory().containers[&id].task, TaskState::Running);
        }
    }

    #[test]
    fn a_container_that_ends_before_its_start_is_told_has_ended() {
        let (mut observed, id) = started();
        observed.update(at(5100), inventory(&id, ended(4900)));
        assert_eq!(observed.inventory().containers[&id].task, ended(4900));
    }

    #[test]
    fn a_volume_that_was_just_made_is_there_though_an_older_inventory_does_not_know_it() {
        let (mut observed, id) = started();
        let volume = crate::fixture::volume_id("data");
        let part = VolumePart { volume, number: 0 };
        observed.expect_volumes(at(5000), vec![part.clone()]);
        observed.update(at(6000), inventory(&id, TaskState::Running));
        assert!(observed.inventory().volumes.contains_key(&part));
        observed.update(at(5000 + BELIEVED_MS), inventory(&id, TaskState::Running));
        assert!(!observed.inventory().volumes.contains_key(&part));
    }

    #[test]
    fn an_image_that_was_just_removed_is_gone_though_an_older_inventory_has_it() {
        let mut observed = Observed::default();
        let older = Inventory { images: ["a".to_owned()].into(), ..Inventory::default() };
        observed.update(at(0), older.clone());
        observed.expect_no_image(at(1000), "a".to_owned());
        observed.update(at(2000), older.clone());
        assert!(observed.inventory().images.is_empty());
        // Fetched again, it is there at once.
        observed.expect_image("a".to_owned());
        observed.update(at(3000), older.clone());
        assert!(!observed.inventory().images.is_empty());
        observed.expect_no_image(at(4000), "a".to_owned());
        observed.update(at(4000 + BELIEVED_MS), older);
        assert!(!observed.inventory().images.is_empty(), "it is right after a while");
    }

    #[test]
    fn an_inventory_that_still_disagrees_after_a_while_is_right() {
        let (mut observed, id) = started();
        observed.update(at(5000 + BELIEVED_MS), inventory(&id, ended(1)));
        assert_eq!(observed.inventory().containers[&id].task, ended(1));
    }
}
