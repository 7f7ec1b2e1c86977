//! A system small enough to boot in seconds: Debian's cloud kernel with busybox, which runs the commands it is sent.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use hivemind_qemu::{Boot, Lab, Machine, MachineOptions, cache_dir};

/// Emulation on a busy computer takes a few seconds to boot this; the rest is patience.
pub(crate) const BOOT: Duration = Duration::from_secs(120);

const COMMAND_PORT: u16 = 7;

/// In the order of their dependencies.
const MODULES: [&str; 14] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
    "virtio_blk",
    "qemu_fw_cfg",
    "button",
    "evdev",
    "rng-core",
    "virtio-rng",
];

const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod /modules/$module.ko; done
ip link set lo up
ip link set eth0 up
echo tiny: up
mkdir -p /etc/acpi/PWRF
printf '#!/bin/sh\npoweroff -f\n' > /etc/acpi/PWRF/00000080
chmod +x /etc/acpi/PWRF/00000080
acpid -l /dev/null
nc -ll -p 7 -e sh &
udhcpc -i eth0 -q -t 60 -T 1 -s /dhcp && echo tiny: ready
while true; do sleep 1000; done
"#;

const DHCP: &str = r#"#!/bin/busybox sh
[ "$1" = bound ] || exit 0
ip address add $ip/$mask dev $interface
ip route add default via $router
echo nameserver $dns > /etc/resolv.conf
"#;

/// A machine that is switched off, with the tiny system.
pub(crate) fn machine(lab: &Lab, name: &str) -> Machine {
    lab.machine(options(name)).unwrap()
}

pub(crate) fn options(name: &str) -> MachineOptions {
    let (kernel, initrd) = &*BUILT;
    let cmdline = "console=ttyS0 quiet panic=-1 rdinit=/init".into();
    let boot = Boot::Direct { kernel: kernel.clone(), initrd: initrd.clone(), cmdline };
    MachineOptions { memory_mib: 96, ..MachineOptions::new(name, boot) }
}

/// Switches all on and waits until they have their addresses.
pub(crate) fn boot(machines: &[&Machine]) {
    machines.iter().for_each(|machine| machine.power_on().unwrap());
    machines.iter().for_each(|machine| _ = machine.wait_for_line("tiny: ready", BOOT).unwrap());
}

/// Runs a command on the machine and returns what it printed.
pub(crate) fn sh(lab: &Lab, machine: &Machine, command: &str) -> std::io::Result<String> {
    let address = SocketAddr::from((machine.address(), COMMAND_PORT));
    lab.enter(|| {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.write_all(format!("({command}) 2>&1; exit\n").as_bytes())?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })
    .unwrap()
}

/// Whether `from` gets an answer to a ping from `to`.
pub(crate) fn reaches(lab: &Lab, from: &Machine, to: &Machine) -> bool {
    let ping = format!("ping -c 2 -W 1 {} && echo heard", to.address());
    sh(lab, from, &ping).unwrap().contains("heard")
}

/// Waits until a condition holds, which it must within some seconds.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Kernel and initial RAM disk, built once from Debian packages and kept in the cache folder.
static BUILT: LazyLock<(PathBuf, PathBuf)> = LazyLock::new(|| {
    let package = kernel_package();
    let dir = cache_dir().unwrap().join("tiny");
    fs::create_dir_all(&dir).unwrap();
    let kernel = dir.join(format!("{package}.vmlinuz"));
    let initrd = dir.join(format!("{package}-{:08x}.initrd", checksum(&[INIT, DHCP, &MODULES.concat()])));
    // Tests run in processes of their own, which must not build at the same time.
    let lock = File::create(dir.join("lock")).unwrap();
    lock.lock().unwrap();
    if !kernel.exists() || !initrd.exists() {
        build(&dir, &package, &kernel, &initrd);
    }
    (kernel, initrd)
});

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn kernel_package() -> String {
    let depends = run(Command::new("apt-cache").args(["depends", "linux-image-cloud-amd64"]));
    let depends = String::from_utf8(depends).unwrap();
    let package = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    format!("linux-image-{}", package.expect("linux-image-cloud-amd64 depends on a kernel"))
}

fn build(dir: &Path, package: &str, kernel: &Path, initrd: &Path) {
    let work = dir.join("work");
    let _ = fs::remove_dir_all(&work);
    let tree = work.join("tree");
    for folder in ["bin", "modules", "proc", "sys", "dev", "etc"] {
        fs::create_dir_all(tree.join(folder)).unwrap();
    }
    run(Command::new("apt-get")
        .args(["download", "-o", "APT::Sandbox::User=root", package])
        .current_dir(&work));
    let deb = fs::read_dir(&work).unwrap().flatten().map(|entry| entry.path());
    let deb = deb.into_iter().find(|path| path.extension().is_some_and(|ext| ext == "deb")).unwrap();
    run(Command::new("dpkg-deb").arg("-x").arg(deb).arg(work.join("kernel")));

    let modules = run(Command::new("find").arg(work.join("kernel")).args(["-name", "*.ko*"]));
    let modules = String::from_utf8(modules).unwrap();
    let mut order = String::new();
    for name in MODULES {
        // A module that is not there is built into this kernel.
        let Some(file) = modules.lines().find(|file| file.contains(&format!("/{name}.ko"))) else {
            continue;
        };
        let module = if file.ends_with(".xz") {
            run(Command::new("xz").args(["-dc", file]))
        } else {
            fs::read(file).unwrap()
        };
        fs::write(tree.join(format!("modules/{name}.ko")), module).unwrap();
        order.push_str(&format!("{name}\n"));
    }
    fs::write(tree.join("modules/order"), order).unwrap();
    fs::copy("/bin/busybox", tree.join("bin/busybox")).unwrap();
    fs::write(tree.join("init"), INIT).unwrap();
    fs::write(tree.join("dhcp"), DHCP).unwrap();
    run(Command::new("chmod").arg("0755").args([tree.join("init"), tree.join("dhcp")]));

    let archive = work.join("initrd");
    run(Command::new("sh").args(["-c", "find . | cpio --quiet -o -H newc > ../initrd"]).current_dir(&tree));
    fs::rename(archive, initrd).unwrap();
    let vmlinuz = run(Command::new("find").arg(work.join("kernel")).args(["-name", "vmlinuz-*"]));
    fs::rename(String::from_utf8(vmlinuz).unwrap().trim(), kernel).unwrap();
    fs::remove_dir_all(work).unwrap();
}

/// FNV-1a, to build anew when the inputs change.
fn checksum(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
