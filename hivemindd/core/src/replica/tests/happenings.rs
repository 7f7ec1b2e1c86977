//! Whatever happens, in any order.

use super::super::pull::MAX_PULLS;
use super::*;

#[derive(Debug, Clone)]
pub(super) enum Happening {
    Finish,
    Fail(bool),
    Wait(u64),
    Observe,
    Crash(u32, u32),
    Want(u32, u8),
    RestartAgent,
    PowerCut,
    Unhealthy(u32),
    DiskIs(u64),
}

fn any_happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        6 => Just(Happening::Finish),
        1 => any::<bool>().prop_map(Happening::Fail),
        2 => (0u64..400_000).prop_map(Happening::Wait),
        2 => Just(Happening::Observe),
        1 => (0u32..4, 0u32..3).prop_map(|(slot, code)| Happening::Crash(slot, code)),
        1 => (0u32..5, 0u8..3).prop_map(|(count, version)| Happening::Want(count, version)),
        1 => Just(Happening::RestartAgent),
        1 => Just(Happening::PowerCut),
        1 => (0u32..4).prop_map(Happening::Unhealthy),
        1 => (50u64..100).prop_map(Happening::DiskIs),
    ]
}

impl Bench {
    pub(super) fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Finish => {
                self.finish_one();
            }
            Happening::Fail(_) if self.open.is_empty() => {}
            Happening::Fail(permanent) => {
                self.fail_one("it broke", permanent);
            }
            Happening::Wait(ms) => self.wait(ms),
            Happening::Observe => self.observe(),
            Happening::Crash(slot, code) => {
                if let Some(id) = self.inventory.containers.keys().nth(slot as usize).cloned() {
                    self.end(&id, code);
                }
            }
            Happening::Want(count, version) => {
                self.want(another(&checked(), &format!("registry.test/app:{version}")), count);
            }
            Happening::RestartAgent => {
                for (_, op) in std::mem::take(&mut self.open) {
                    // What was in flight may or may not have been done; here it was.
                    self.carry_out(&op);
                }
                self.restart_agent();
            }
            Happening::PowerCut => {
                self.inventory.containers.values_mut().for_each(|state| state.task = TaskState::Absent);
                self.restart_agent();
            }
            Happening::DiskIs(percent) => self.disk_is(percent),
            Happening::Unhealthy(slot) => {
                if let Some(id) = self.plan.health_checks.keys().nth(slot as usize).cloned() {
                    self.now = self.now.plus(10_000);
                    for _ in 0..3 {
                        self.replicas.health_checked(self.now, &id, false, "503");
                    }
                    self.step();
                }
            }
        }
    }

    fn check_bounds(&self) {
        let count = |which: fn(&RuntimeOp) -> bool| self.open.iter().filter(|(_, op)| which(op)).count();
        assert!(count(|op| matches!(op, RuntimeOp::Pull { .. })) <= MAX_PULLS);
        assert!(count(|op| matches!(op, RuntimeOp::Start(_))) <= MAX_STARTS);
        let mut busy = BTreeSet::new();
        for (_, op) in &self.open {
            let container = match op {
                RuntimeOp::Pull { .. }
                | RuntimeOp::RemoveImage { .. }
                | RuntimeOp::DeleteVolume { .. }
                | RuntimeOp::LimitVolume(_) => {
                    continue;
                }
                RuntimeOp::Start(plan) => &plan.id,
                RuntimeOp::Stop { container, .. } | RuntimeOp::Remove { container, .. } => container,
            };
            assert!(busy.insert(container.clone()), "two operations on {container:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever happened, once nothing more breaks every wanted replica runs its document, and
    /// nothing else does. [`Bench::carry_out`] asserts that no address is ever used twice.
    #[test]
    fn whatever_happened_the_wanted_replicas_run_in_the_end(
        happenings in proptest::collection::vec(any_happening(), 0..60)
    ) {
        let mut bench = Bench::new();
        for happening in happenings {
            bench.happen(happening);
            bench.check_bounds();
        }
        // A new document, so that nothing rests in failure.
        bench.want(another(&checked(), "registry.test/app:final"), 3);
        for _ in 0..20 {
            bench.settle();
            bench.now = bench.now.plus(MAX_WAIT);
            bench.observe();
        }
        bench.settle();
        bench.observe();
        bench.pass();
        prop_assert!(bench.plan.statuses.values().all(|status| status.phase == Phase::Running));
        let running: BTreeSet<_> = bench.inventory.containers.keys().cloned().collect();
        prop_assert_eq!(running, (0..3).map(|slot| bench.container(slot)).collect::<BTreeSet<_>>());
        prop_assert!(bench.open.is_empty());
    }
}
