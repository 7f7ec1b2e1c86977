//! A root that is not what was built.

use std::time::Duration;

use hivemind_init::boot_menu::Assessment;
use hivemind_tests::cluster::{Cluster, FORMING};
use hivemind_tests::release::{self, Difference, Release};
use hivemind_tests::{disk, wait};

const MIB: i64 = 1024 * 1024;

#[test]
fn a_root_with_a_flipped_byte_is_refused_and_the_console_says_so() {
    let mut cluster = Cluster::new("integrity", 2);
    // The unified kernel image says what the root must be; who gives the kernel by hand could give any.
    cluster.image = cluster.image.clone().with_firmware();
    let cluster = cluster.with_machines(2);
    let [mount, programs] = &cluster.machines[..] else { panic!("two machines") };
    // One in the description of the file system, which is read first.
    disk::flip(mount, "root-a", &[40]);
    // And some in its last megabytes, where programs and tables are: which of them are read, and when, is not ours
    // to know.
    let spread: Vec<i64> = (1..=24).map(|number| -number * MIB / 4).collect();
    disk::flip(programs, "root-a", &spread);
    mount.power_on().unwrap();
    programs.power_on().unwrap();
    mount.wait_for_line("cannot go on: root-corrupt", FORMING).unwrap();
    programs.wait_for_line("root-corrupt", FORMING).unwrap();
    wait::throughout("nothing of a damaged root answers", Duration::from_secs(10), || {
        match cluster.json(&["nodes"]) {
            Ok(nodes) => Err(format!("{nodes:#}")),
            Err(_) => Ok(()),
        }
    });
}

#[test]
fn a_damaged_root_is_left_for_the_release_in_the_other_slot() {
    let release = Release::build("0.2.0", &Difference::default());
    let mut cluster = Cluster::new("slots", 2);
    cluster.image = cluster.image.clone().with_firmware();
    let cluster = cluster.with_machines(2);
    let spread: Vec<i64> = (1..=24).map(|number| -number * MIB / 4).collect();
    for (machine, damage) in cluster.machines.iter().zip([&[40][..], &spread]) {
        release.install(machine, Assessment::Good);
        disk::flip(machine, "root-b", damage);
        machine.power_on().unwrap();
    }
    for machine in &cluster.machines {
        machine.wait_for_line(&format!("release {} is bad", release.id()), FORMING).unwrap();
        machine.wait_for_line("root is /dev/vda2, verified", FORMING).unwrap();
    }
    cluster.wait_for_ready(2);
    for machine in &cluster.machines {
        machine.power_cut();
        assert_eq!(release::assessment(machine, release.id()), Some(Assessment::Bad));
    }
}
