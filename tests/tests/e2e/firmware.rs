//! The road that real hardware takes: UEFI firmware, boot loader, kernel image, root.

use hivemind_qemu::MachineOptions;
use hivemind_tests::cluster::Cluster;

#[test]
fn uefi_firmware_boots_the_image_to_a_cluster_of_one() {
    let mut cluster = Cluster::new("firmware", 1);
    cluster.image = cluster.image.clone().with_firmware();
    let options = MachineOptions::with_image("m1", &cluster.image);
    cluster.add_with(options).power_on().unwrap();
    cluster.wait_for_ready(1);
    let console = cluster.machines[0].serial();
    assert!(console.contains("root is /dev/vda2, verified") && console.contains("init up"), "{console}");
}
