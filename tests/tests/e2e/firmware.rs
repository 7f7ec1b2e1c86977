//! The road that real hardware takes: UEFI firmware, boot loader, kernel image, root.

use std::time::Duration;

use hivemind::image::{ConfigPartition, Present};
use hivemind_qemu::{Boot, Disk, Hardware, MachineOptions};
use hivemind_tests::cluster::{Cluster, STARTING};

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

#[test]
fn a_stick_installs_itself_on_the_blank_disk_of_a_machine_that_joins_from_there() {
    let mut cluster = Cluster::new("install", 1);
    cluster.image = cluster.image.clone().with_firmware();
    let stick = cluster.image.disk.clone();
    cluster.configure(&stick, &["--install"]);
    let drive = format!("if=none,id=stick,format=raw,file={}", stick.display());
    let plugged =
        ["-drive", &drive, "-device", "usb-storage,drive=stick,bootindex=0"].map(Into::into).to_vec();
    let disk = Disk { base: None, size: Some(4 << 30), cache: Default::default() };
    let options = MachineOptions {
        hardware: Hardware::Nvme,
        disk: Some(disk),
        extra_args: plugged,
        ..MachineOptions::new("m1", Boot::Firmware)
    };
    let machine = cluster.add_with(options);
    machine.power_on().unwrap();
    machine.wait_for_line("installed on nvme0n1 (4.0 GiB): pull out", STARTING).unwrap();
    machine.wait_for_off(Duration::from_secs(30)).unwrap();
    machine.set_extra_args(Vec::new());
    machine.power_on().unwrap();
    cluster.wait_for_ready(1);
    let console = cluster.machines[0].serial();
    assert!(console.contains("root is /dev/nvme0n1p2, verified"), "{console}");
    assert!(console.contains("state partition mounted (3."), "all of the disk: {console}");
    // The stick is as it was, and can install the next one.
    let Present::Configuration(left) = ConfigPartition::open(&stick).unwrap().present().unwrap() else {
        panic!("the stick has no configuration");
    };
    assert!(left.install.is_some() && left.token.is_some_and(|token| token.ca_key.is_some()));
}
