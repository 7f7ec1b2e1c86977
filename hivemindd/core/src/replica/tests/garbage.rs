//! Images that go when the disk fills.

use super::*;
use crate::event::DiskState;
use crate::record::GivenImage;

impl Bench {
    pub(super) fn disk_is(&mut self, percent: u64) {
        self.inventory.disk = Some(DiskState { used_bytes: percent, total_bytes: 100 });
        self.observe();
    }

    fn removed(&self) -> Vec<&str> {
        let removals = self.log.iter().filter_map(|op| match op {
            RuntimeOp::RemoveImage { image } => Some(image.as_str()),
            _ => None,
        });
        removals.collect()
    }

    /// A replica of an image runs, and images are here that nobody needs, since a second after one another.
    fn with_unneeded(images: &[&str]) -> Self {
        let mut bench = Bench::running(another(&workload(1), "app"), 1);
        for image in images {
            bench.inventory.images.insert((*image).into());
            bench.observe();
            bench.wait(1000);
        }
        bench
    }
}

#[test]
fn images_nobody_needs_stay_while_there_is_room_and_go_longest_unneeded_first_when_there_is_not() {
    let mut bench = Bench::with_unneeded(&["b", "a", "c"]);
    bench.disk_is(84);
    bench.wait(10_000_000);
    bench.settle();
    assert!(bench.removed().is_empty());
    bench.disk_is(85);
    bench.settle();
    assert_eq!(bench.removed(), ["b"]);
    // How full the disk is now nobody knows before it is looked at.
    bench.wait(10_000_000);
    bench.settle();
    assert_eq!(bench.removed(), ["b"]);
    bench.disk_is(80);
    bench.settle();
    assert_eq!(bench.removed(), ["b", "a"], "until there is enough room");
    bench.disk_is(74);
    bench.disk_is(80);
    bench.settle();
    assert_eq!(bench.removed(), ["b", "a"]);
}

#[test]
fn what_an_operator_gave_stays_however_full_the_disk_is() {
    let digest = Digest::of(b"manifest");
    let given = GivenImage { digest, given_ms: 5 };
    let reference = given.reference("shop:1");
    let mut bench = Bench::with_unneeded(&[&reference, "other"]);
    bench.inventory.given.insert("shop:1".into(), given);
    bench.disk_is(99);
    bench.wait(10_000_000);
    bench.settle();
    bench.disk_is(99);
    bench.settle();
    assert_eq!(bench.removed(), ["other"]);
    bench.inventory.given.clear();
    bench.disk_is(99);
    bench.wait(10_000_000);
    bench.settle();
    assert_eq!(bench.removed(), ["other", reference.as_str()]);
}

#[test]
fn what_runs_and_what_is_placed_here_is_never_removed() {
    let mut bench = Bench::running(another(&workload(1), "old"), 1);
    bench.inventory.used_images.insert("old".into());
    // Its successor is fetched, and cannot start; what runs meanwhile is the old one.
    bench.waits.insert(workload_id("web"), "waits".into());
    bench.want(another(&workload(2), "new"), 1);
    bench.settle();
    assert_eq!(bench.status(0).phase, Phase::Running);
    assert!(bench.inventory.images.contains("new"));
    bench.disk_is(99);
    for _ in 0..10 {
        bench.wait(UNNEEDED_MS);
        bench.observe();
        bench.settle();
    }
    assert!(bench.removed().is_empty());
    bench.waits.clear();
    bench.step();
    bench.settle();
    bench.inventory.used_images = ["new".into()].into();
    bench.observe();
    bench.wait(UNNEEDED_MS);
    bench.settle();
    assert_eq!(bench.removed(), ["old"]);
}

#[test]
fn what_no_workload_of_the_cluster_has_goes_before_what_may_come_back() {
    let mut bench = Bench::with_unneeded(&["elsewhere", "nowhere"]);
    bench.workloads.insert(workload_id("other"), another(&workload(1), "elsewhere"));
    bench.wait(UNNEEDED_MS);
    bench.disk_is(90);
    bench.settle();
    assert_eq!(bench.removed(), ["nowhere"]);
    bench.disk_is(90);
    bench.settle();
    assert_eq!(bench.removed(), ["nowhere", "elsewhere"]);
}

#[test]
fn an_image_is_not_fetched_while_one_is_removed_nor_the_other_way_round() {
    let mut bench = Bench::with_unneeded(&["a", "b"]);
    bench.wait(UNNEEDED_MS);
    bench.disk_is(90);
    assert_eq!(bench.removed(), ["a"]);
    bench.want(another(&workload(2), "a"), 1);
    assert!(bench.status(0).reason.contains("waits until there is room"), "{:?}", bench.status(0));
    assert_eq!(bench.open.len(), 1, "nothing is pulled");
    bench.finish_one();
    assert!(matches!(&bench.open[..], [(_, RuntimeOp::Pull { image, .. })] if image == "a"));
    bench.disk_is(90);
    assert_eq!(bench.removed(), ["a"], "not while it is fetched");
    bench.settle();
    assert_eq!(bench.status(0).phase, Phase::Running);
}

#[test]
fn an_image_that_cannot_be_removed_is_tried_again_after_the_others() {
    let mut bench = Bench::with_unneeded(&["a", "b"]);
    bench.wait(UNNEEDED_MS);
    bench.disk_is(90);
    bench.fail_one("in use", false);
    assert_eq!(bench.removed(), ["a", "b"]);
    bench.settle();
    bench.disk_is(90);
    assert_eq!(bench.plan.wake_at_ms, Some(bench.now.mono_ms + UNNEEDED_MS));
    bench.wait(UNNEEDED_MS);
    assert_eq!(bench.removed(), ["a", "b", "a"]);
}
