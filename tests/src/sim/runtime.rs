//! A fake containerd: it can fail, be late, and tell what is no longer so.

use std::collections::BTreeMap;

use hivemind_core::event::{
    ContainerId, ContainerPlan, ContainerState, DiskState, Inventory, OperationError, RuntimeOp, TaskState,
    VolumeState,
};
use rand::{Rng, RngExt as _};

use super::network::chance;

/// What a machine's containerd holds, and what is wrong with it.
#[derive(Debug, Clone, Default)]
pub struct Runtime {
    /// What it holds.
    pub inventory: Inventory,
    /// Operations that fail, in percent.
    pub failing: u32,
    /// How much longer than usual an operation may take, milliseconds.
    pub late_ms: u64,
    /// How old an inventory may be when it is told, milliseconds.
    pub stale_ms: u64,
    /// Containers started since the machine was made.
    pub starts: usize,
    /// Tasks stopped that ran until then.
    pub stops: usize,
    plans: BTreeMap<ContainerId, ContainerPlan>,
}

/// How long an operation takes on a healthy machine, milliseconds.
const USUAL_MS: u64 = 100;

impl Runtime {
    /// How long an operation takes that begins now, milliseconds.
    pub fn duration_ms(&self, rng: &mut impl Rng) -> u64 {
        USUAL_MS + if self.late_ms == 0 { 0 } else { rng.random_range(0..self.late_ms) }
    }

    /// Carries out an operation, or fails half-way.
    ///
    /// # Errors
    /// When chance wants it.
    pub fn run(&mut self, op: &RuntimeOp, wall_ms: u64, rng: &mut impl Rng) -> Result<(), OperationError> {
        let fails = chance(self.failing, rng);
        match op {
            RuntimeOp::Pull { image, .. } if !fails => {
                self.inventory.images.insert(image.clone());
            }
            RuntimeOp::RemoveImage { image } if !fails => {
                self.inventory.images.remove(image);
            }
            RuntimeOp::Start(plan) if !self.inventory.images.contains(&plan.spec.image) => {
                let text = format!("image {} is not on this node", plan.spec.image);
                return Err(OperationError { text, permanent: false });
            }
            RuntimeOp::Start(plan) => {
                // A start that fails leaves a container without a task behind.
                let task = if fails { TaskState::Absent } else { TaskState::Running };
                self.starts += usize::from(!fails);
                let state = ContainerState { labels: Some(plan.labels.clone()), task };
                self.inventory.containers.insert(plan.id.clone(), state);
                self.plans.insert(plan.id.clone(), (**plan).clone());
                for volume in plan.volumes.values() {
                    let new = VolumeState { made_ms: wall_ms, ..VolumeState::default() };
                    self.inventory.volumes.entry(volume.part.clone()).or_insert(new);
                }
            }
            RuntimeOp::Stop { container, .. } if !fails => self.end(container, 143, wall_ms),
            RuntimeOp::DeleteVolume { part } if !fails => {
                self.inventory.volumes.remove(part);
            }
            RuntimeOp::Remove { container, .. } if !fails => {
                self.inventory.containers.remove(container);
                self.plans.remove(container);
            }
            _ => {}
        }
        if fails {
            return Err(OperationError { text: "the runtime is unwell".to_owned(), permanent: false });
        }
        Ok(())
    }

    /// What is told of it.
    pub fn look(&self) -> Inventory {
        let made_of = self.inventory.containers.keys().filter_map(|id| self.plans.get(id));
        let used_images = made_of.map(|plan| plan.spec.image.clone()).collect();
        Inventory { used_images, ..self.inventory.clone() }
    }

    /// The disk is nearly full, and stays so.
    pub fn fill_disk(&mut self) {
        self.inventory.disk = Some(DiskState { used_bytes: 90, total_bytes: 100 });
    }

    /// A container's process ends.
    pub fn end(&mut self, container: &ContainerId, code: u32, at_ms: u64) {
        if let Some(state) = self.inventory.containers.get_mut(container)
            && state.task == TaskState::Running
        {
            self.stops += 1;
            state.task = TaskState::Exited { code, at_ms, oom: None };
        }
    }

    /// The power goes: containers and images stay on the disk, tasks do not.
    pub fn lose_power(&mut self) {
        for state in self.inventory.containers.values_mut() {
            state.task = TaskState::Absent;
        }
    }

    /// The containers that run, with what was asked for when they were started.
    pub fn running(&self) -> impl Iterator<Item = &ContainerPlan> {
        self.inventory
            .containers
            .iter()
            .filter(|(_, state)| state.task == TaskState::Running)
            .filter_map(|(id, _)| self.plans.get(id))
    }
}
