//! Replicas with volumes.

use super::*;
use crate::fixture::{mount, volume_id};
use crate::record::VolumePart;

fn data() -> VolumePart {
    VolumePart { volume: volume_id("data"), number: 0 }
}

fn with_data() -> Workload {
    let mut workload = workload(1);
    workload.spec.container.volumes = vec![mount("data", "/data")];
    Workload::new(1, workload.digest, workload.spec)
}

fn usable() -> Result<BTreeMap<String, VolumePlan>, String> {
    Ok([("data".to_owned(), VolumePlan { part: data(), size_bytes: None })].into())
}

impl Bench {
    fn deletions(&self) -> usize {
        self.log.iter().filter(|op| matches!(op, RuntimeOp::DeleteVolume { .. })).count()
    }
}

#[test]
fn a_container_starts_with_its_volumes_or_says_why_not() {
    let mut bench = Bench::new();
    bench.volumes.insert(replica_id("web", 0), Err("there is no volume data; push it".into()));
    bench.want(with_data(), 1);
    bench.settle();
    assert_eq!(bench.status(0).phase, Phase::Assigned);
    assert_eq!(bench.status(0).reason, "there is no volume data; push it");
    bench.volumes.insert(replica_id("web", 0), usable());
    bench.step();
    bench.settle();
    assert_eq!(bench.status(0).phase, Phase::Running);
    let Some(RuntimeOp::Start(plan)) = bench.log.last() else { panic!("{:?}", bench.log) };
    assert_eq!(plan.volumes, usable().unwrap());
    assert!(bench.replicas.volumes().contains_key(&data()), "known before the next look at the disk");
}

#[test]
fn data_is_not_deleted_under_what_may_be_using_it() {
    let mut bench = Bench::new();
    bench.volumes.insert(replica_id("web", 0), usable());
    bench.want(with_data(), 1);
    bench.settle();
    bench.observe();
    bench.orders.insert(data(), Order::Delete);
    bench.wait(1000);
    assert_eq!(bench.deletions(), 0, "its workload uses it");
    // The workload is gone, its container is still there.
    bench.wanted.clear();
    bench.step();
    assert_eq!(bench.deletions(), 0);
    bench.settle();
    bench.observe();
    bench.settle();
    assert_eq!(bench.deletions(), 1);
    assert!(bench.replicas.volumes().is_empty());
    // Another that has nothing to do with it does not matter.
    bench.observe();
    bench.volumes.clear();
    bench.want(workload(1), 1);
    bench.settle();
    bench.inventory.volumes.insert(data(), VolumeState::default());
    bench.observe();
    bench.settle();
    assert_eq!(bench.deletions(), 2);
}

#[test]
fn a_container_of_an_older_version_has_its_volumes_until_it_is_gone() {
    let mut bench = Bench::new();
    bench.volumes.insert(replica_id("web", 0), usable());
    let (before, after) = (with_data(), workload(1));
    let user = |bench: &Bench, known: Option<&Workload>| {
        bench.replicas.users_here(&data(), |_| known).next().map(|labels| labels.replica.clone())
    };
    assert_eq!(user(&bench, Some(&before)), None);
    bench.want(before.clone(), 1);
    bench.settle();
    let web = Some(replica_id("web", 0));
    assert_eq!(user(&bench, Some(&before)), web);
    assert_eq!(user(&bench, None), web, "its workload was removed");
    assert_eq!(user(&bench, Some(&after)), web, "the new version has no volumes, and does not run yet");
    bench.volumes.clear();
    bench.want(after.clone(), 1);
    bench.settle();
    assert_eq!(user(&bench, Some(&after)), None);
}

#[test]
fn a_deletion_that_fails_is_tried_again_later() {
    let mut bench = Bench::new();
    bench.inventory.volumes.insert(data(), VolumeState::default());
    bench.observe();
    bench.orders.insert(data(), Order::Delete);
    bench.step();
    bench.fail_one("the disk is unwell", false);
    assert_eq!(bench.deletions(), 1);
    let at = bench.plan.wake_at_ms.unwrap();
    bench.wait(at - bench.now.mono_ms);
    assert_eq!(bench.deletions(), 2);
    bench.settle();
    assert!(bench.replicas.volumes().is_empty());
}

#[test]
fn a_limit_is_set_once_while_the_volume_is_in_use() {
    let mut bench = Bench::new();
    bench.volumes.insert(replica_id("web", 0), usable());
    bench.want(with_data(), 1);
    bench.settle();
    bench.observe();
    bench.orders.insert(data(), Order::Limit(Some(4096)));
    bench.step();
    assert!(bench.finish_one());
    assert_eq!(bench.replicas.volumes()[&data()].size_bytes, Some(4096));
    assert_eq!(bench.inventory.volumes[&data()].size_bytes, Some(4096));
}
