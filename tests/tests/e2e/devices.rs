//! Devices that are plugged in and pulled out.

use std::time::Duration;

use hivemind_qemu::MachineOptions;
use hivemind_tests::cluster::{Cluster, FORMING, STARTING};
use hivemind_tests::wait;

const READER: &str = "
services:
  reader:
    image: registry.lab:5000/busybox:1
    devices: ['/dev/sda:/dev/stick:r']
    command: [sh, -c, 'wc -c < /dev/stick; sleep 1000000']
";

/// How soon a device counts as gone or come: the kernel tells, and a second passes in which it may be back.
const NOTICED: Duration = Duration::from_secs(15);

#[test]
fn a_replica_goes_where_its_device_is_plugged_in_and_follows_it() {
    let mut cluster = Cluster::new("devices", 2);
    for name in ["m1", "m2"] {
        let mut options = MachineOptions::with_image(name, &cluster.image);
        options.extra_args = ["-device", "virtio-scsi-pci"].map(Into::into).into();
        cluster.add_with(options).power_on().unwrap();
    }
    cluster.wait_for_ready_within(2, FORMING);
    cluster.hivemind(["namespaces", "allow", "default", "devices"]).ok();
    cluster.push(READER).ok();
    let waits = || {
        wait::until("nobody has the device, and that is said", NOTICED, || {
            let replicas = cluster.replicas("reader")?;
            let [waits] = &replicas[..] else { return Err(format!("{replicas:?}")) };
            let told = waits.phase == "pending" && waits.reason.contains("2 of 2 have no /dev/sda");
            if told { Ok(()) } else { Err(format!("{replicas:?}")) }
        });
    };
    waits();
    for (machine, stick) in [(1, "a"), (0, "b")] {
        let machine = &cluster.machines[machine];
        machine.plug_disk(stick).unwrap();
        let reader = cluster.wait_for_running("reader", 1, STARTING).remove(0);
        assert_eq!(cluster.machine_of(&reader).name(), machine.name());
        cluster.wait_for_words("reader", &["1048576"], STARTING);
        machine.unplug_disk(stick).unwrap();
        waits();
    }
}
