//! Ordinary hardware, and what is plugged in and pulled out.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hivemind_qemu::{Hardware, MachineOptions};
use hivemind_tests::cluster::{Cluster, FORMING, STARTING};
use hivemind_tests::command::{Run, items};
use hivemind_tests::{disk, wait};

const READER: &str = "
services:
  reader:
    image: registry.lab:5000/busybox:1
    devices: ['/dev/ttyUSB0:/dev/meter:rw', '/dev/serial/by-id:/dev/adapters']
    command: [sh, -c, 'ls -l /dev/meter /dev/adapters; sleep 1000000']
  painter:
    image: registry.lab:5000/busybox:1
    gpus: all
    user: '1000'
    command: [sh, -c, 'ls /dev/dri; [ -w /dev/dri/renderD128 ] && echo may write; sleep 1000000']
";

/// How soon a device counts as gone or come: the kernel tells, and a second passes in which it may be back.
const NOTICED: Duration = Duration::from_secs(20);

/// The same image on a SATA disk, on NVMe and on a USB stick, with three kinds of network cards.
#[test]
fn a_replica_goes_where_its_serial_adapter_is_plugged_in_and_follows_it_on_ordinary_machines() {
    let mut cluster = Cluster::new("devices", 3);
    for (name, hardware) in [("sata", Hardware::Sata), ("nvme", Hardware::Nvme), ("stick", Hardware::Stick)] {
        let mut options = MachineOptions { hardware, ..MachineOptions::with_image(name, &cluster.image) };
        if name == "nvme" {
            options.extra_args = ["-device", "virtio-gpu-pci"].map(Into::into).into();
        }
        cluster.add_with(options).power_on().unwrap();
    }
    cluster.wait_for_ready_within(3, FORMING);
    cluster.hivemind(["namespaces", "allow", "default", "devices"]).ok();
    cluster.push(READER).ok();
    let waits = || {
        wait::until("nobody has the adapter, and that is said", NOTICED, || {
            let replicas = cluster.replicas("reader")?;
            let [waits] = &replicas[..] else { return Err(format!("{replicas:?}")) };
            let told = waits.phase == "pending" && waits.reason.contains("3 of 3 have no /dev/ttyUSB0");
            if told { Ok(()) } else { Err(format!("{replicas:?}")) }
        });
    };
    waits();
    // The machine that has a graphics processor, for a user who is not root.
    let painter = cluster.wait_for_running("painter", 1, STARTING).remove(0);
    assert_eq!(cluster.machine_of(&painter).name(), "nvme");
    cluster.wait_for_words("painter", &["renderD128", "may write"], STARTING);

    for (machine, adapter) in [(2, "a"), (0, "b")] {
        let machine = &cluster.machines[machine];
        machine.plug_serial(adapter).unwrap();
        let reader = cluster.wait_for_running("reader", 1, STARTING).remove(0);
        assert_eq!(cluster.machine_of(&reader).name(), machine.name());
        cluster.wait_for_words(
            "reader",
            &["/dev/meter", "usb-QEMU_QEMU_USB_SERIAL_", "-if00-port0"],
            STARTING,
        );
        // By that name it can be asked for wherever it is plugged in.
        let devices = items(&cluster.json(&["nodes", "devices"]).unwrap());
        let found = devices.iter().find(|device| device["path"] == "/dev/ttyUSB0").unwrap();
        let name = found["names"][0].as_str().unwrap();
        assert!(
            name.starts_with("/dev/serial/by-id/usb-QEMU") && found["node"] == reader.node.as_str(),
            "{found}"
        );
        machine.unplug(adapter).unwrap();
        waits();
    }
    a_stick_gets_what_helps(&cluster);
}

/// What `hivemind support` gathers, and without a network.
fn a_stick_gets_what_helps(cluster: &Cluster) {
    let machine = &cluster.machines[1];
    machine.link_down().unwrap();
    let stick = cluster.folder().join("stick.img");
    disk::stick(&stick, 64, "HIVESUPPORT");
    machine.plug_stick("support", &stick).unwrap();
    let told = machine.wait_for_line("the stick has what helps", NOTICED);
    let told = told.unwrap();
    machine.unplug("support").unwrap();
    let listed = on_stick("mdir", &stick, "::");
    let folder = listed.split_whitespace().find(|word| told.contains(word) && word.len() > 20);
    let folder = folder.unwrap_or_else(|| panic!("{listed}"));
    let read = |name: &str| on_stick("mtype", &stick, &format!("::{folder}/{name}"));
    assert!(read("kernel.log").contains("Linux version"));
    assert!(read("agent.log").contains("this node"));
    assert!(read("proc/meminfo").contains("MemAvailable"));
}

/// What one of the mtools says of a file or folder on a stick.
fn on_stick(tool: &str, stick: &Path, path: &str) -> String {
    let mut command = Command::new(tool);
    command.arg("-i").arg(stick).arg(path);
    Run::of(command).ok().stdout()
}
