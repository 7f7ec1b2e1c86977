//! A root that is not what was built.

use std::time::Duration;

use hivemind_tests::cluster::{Cluster, FORMING};
use hivemind_tests::{disk, wait};

const MIB: i64 = 1024 * 1024;

#[test]
fn a_root_with_a_flipped_byte_is_refused_and_the_console_says_so() {
    let mut cluster = Cluster::new("integrity", 2);
    // The unified kernel image says what the root must be; who gives the kernel by hand could give any.
    cluster.image = cluster.image.clone().with_firmware();
    let cluster = cluster.with_machines(2);
    let [mount, programs] = &cluster.machines[..] else { panic!("two machines") };
    // One in the description of the file system, which is read when it is mounted.
    disk::flip(mount, "root-a", &[40]);
    // And some in its last megabytes, where programs and tables are: which of them are read, and when, is not ours
    // to know.
    let spread: Vec<i64> = (1..=24).map(|number| -number * MIB / 4).collect();
    disk::flip(programs, "root-a", &spread);
    mount.power_on().unwrap();
    programs.power_on().unwrap();
    let said = mount.wait_for_line("cannot go on: root-corrupt", FORMING).unwrap();
    assert!(said.contains("squashfs"), "{said}");
    programs.wait_for_line("root-corrupt", FORMING).unwrap();
    wait::throughout("nothing of a damaged root answers", Duration::from_secs(10), || {
        match cluster.json(&["nodes"]) {
            Ok(nodes) => Err(format!("{nodes:#}")),
            Err(_) => Ok(()),
        }
    });
}
