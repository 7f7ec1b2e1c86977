//! What there is, of what containers can be given.

use std::fs;
use std::path::{Path, PathBuf};

/// Devices that are told of, at most: a machine has a few dozen.
const MAX_DEVICES: usize = 256;

/// What nobody gives a container by name: the kernel's views of the same disks, and what is the machine's own.
const OF_THE_MACHINE: [&str; 7] = ["bsg", "dma_heap", "ptp", "rtc", "scsi_generic", "usbmon", "watchdog"];

/// The class of hubs (USB class codes).
const HUB: &str = "09";

/// A device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Device {
    /// Where it is now.
    pub(crate) path: String,
    /// The names that it keeps.
    pub(crate) names: Vec<String>,
    /// What it says of itself, or else the driver's name.
    pub(crate) description: String,
}

/// The devices behind which there is hardware, by path.
pub(crate) fn devices() -> Vec<Device> {
    listed(Path::new("/sys"), Path::new(super::BY_ID))
}

fn listed(sys: &Path, by_id: &Path) -> Vec<Device> {
    let kinds = ["block", "char"].map(|kind| sys.join("dev").join(kind));
    let entries = kinds.iter().filter_map(|kind| fs::read_dir(kind).ok()).flatten().flatten();
    let folders = entries.filter_map(|entry| fs::canonicalize(entry.path()).ok());
    let mut devices: Vec<Device> = folders.filter_map(|folder| device(&folder, by_id)).collect();
    devices.sort();
    devices.truncate(MAX_DEVICES);
    devices
}

/// The device with this folder in sysfs, if it is one to tell of.
fn device(folder: &Path, by_id: &Path) -> Option<Device> {
    let read = |file: &str| Some(fs::read_to_string(folder.join(file)).ok()?.trim().to_owned());
    let subsystem = fs::canonicalize(folder.join("subsystem")).ok()?;
    let subsystem = subsystem.file_name()?.to_str()?;
    let is_usb = subsystem == "usb" && read("bDeviceClass").is_some_and(|class| class != HUB);
    let is_hardware = is_usb || folder.join("device").exists();
    let is_part = folder.join("partition").exists();
    // A serial port of which the kernel only knows the place where one may be.
    let is_vacant = subsystem == "tty" && read("type").is_some_and(|kind| kind == "0");
    if !is_hardware || is_part || is_vacant || OF_THE_MACHINE.contains(&subsystem) {
        return None;
    }
    let uevent = read("uevent")?;
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
    Some(Device {
        path: format!("/dev/{name}"),
        names: names_of(name, by_id),
        description: description(folder).unwrap_or_default(),
    })
}

/// The names that lead to a device.
fn names_of(device: &str, by_id: &Path) -> Vec<String> {
    let entries = fs::read_dir(by_id).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut names: Vec<String> = entries
        .filter(|path| fs::read_link(path).is_ok_and(|to| to.ends_with(device)))
        .map(|path| path.display().to_string())
        .collect();
    names.sort();
    names
}

/// What a device, or what it is part of, says of itself.
fn description(folder: &Path) -> Option<String> {
    let device = fs::canonicalize(folder.join("device")).unwrap_or_else(|_| folder.to_owned());
    let places: Vec<PathBuf> =
        [folder, &device].into_iter().chain(device.ancestors().skip(1).take(4)).map(Path::to_owned).collect();
    let words = |files: [&str; 2]| {
        let read = |place: &Path, file: &str| {
            let text = fs::read_to_string(place.join(file)).ok()?;
            Some(text.split_whitespace().collect::<Vec<_>>().join(" ")).filter(|text| !text.is_empty())
        };
        let said = places.iter().find_map(|place| Some((read(place, files[0]), read(place, files[1])?)));
        said.map(|(maker, what)| maker.map_or_else(|| what.clone(), |maker| format!("{maker} {what}")))
    };
    let driver = || {
        let links = places.iter().filter_map(|place| fs::read_link(place.join("driver")).ok());
        links.filter_map(|link| Some(link.file_name()?.to_string_lossy().into_owned())).next()
    };
    words(["manufacturer", "product"]).or_else(|| words(["vendor", "model"])).or_else(driver)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A device in a sysfs of its own: its number, its folder there, its subsystem, and files.
    fn add(sys: &Path, number: &str, folder: &str, subsystem: &str, files: &[(&str, &str)]) {
        let (folder, subsystem) = (sys.join("devices").join(folder), sys.join("class").join(subsystem));
        fs::create_dir_all(&folder).unwrap();
        fs::create_dir_all(&subsystem).unwrap();
        symlink(&subsystem, folder.join("subsystem")).unwrap();
        for (file, text) in files {
            fs::write(folder.join(file), format!("{text}\n")).unwrap();
        }
        let place = sys.join("dev").join(number);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        symlink(&folder, place).unwrap();
    }

    #[test]
    fn what_is_plugged_in_is_listed_with_what_it_says_of_itself_and_what_is_only_the_kernels_is_not() {
        let root = tempfile::tempdir().unwrap();
        let (sys, by_id) = (root.path(), root.path().join("by-id"));
        let adapter = [
            ("uevent", "DEVNAME=bus/usb/001/002"),
            ("bDeviceClass", "00"),
            ("manufacturer", "FTDI"),
            ("product", "USB  UART"),
        ];
        add(sys, "char/189:1", "usb1/1-1", "usb", &adapter);
        add(
            sys,
            "char/188:0",
            "usb1/1-1/1-1:1.0/tty/ttyUSB0",
            "tty",
            &[("uevent", "MAJOR=188\nDEVNAME=ttyUSB0")],
        );
        symlink(
            sys.join("devices/usb1/1-1/1-1:1.0"),
            sys.join("devices/usb1/1-1/1-1:1.0/tty/ttyUSB0/device"),
        )
        .unwrap();
        fs::create_dir(&by_id).unwrap();
        symlink("../../ttyUSB0", by_id.join("usb-FTDI")).unwrap();
        add(
            sys,
            "char/189:0",
            "usb1",
            "usb",
            &[("uevent", "DEVNAME=bus/usb/001/001"), ("bDeviceClass", "09"), ("product", "a hub")],
        );
        add(sys, "char/1:3", "virtual/null", "mem", &[("uevent", "DEVNAME=null")]);
        add(
            sys,
            "char/4:65",
            "platform/ttyS1",
            "tty",
            &[("uevent", "DEVNAME=ttyS1"), ("type", "0"), ("device", "")],
        );
        add(
            sys,
            "block/254:1",
            "vda1",
            "block",
            &[("uevent", "DEVNAME=vda1"), ("partition", "1"), ("device", "")],
        );
        add(
            sys,
            "block/8:0",
            "sda",
            "block",
            &[("uevent", "DEVNAME=sda"), ("device", ""), ("vendor", "ATA"), ("model", "Disk")],
        );
        let found = listed(sys, &by_id);
        let told: Vec<(&str, &str, usize)> =
            found.iter().map(|d| (d.path.as_str(), d.description.as_str(), d.names.len())).collect();
        assert_eq!(
            told,
            [
                ("/dev/bus/usb/001/002", "FTDI USB UART", 0),
                ("/dev/sda", "ATA Disk", 0),
                ("/dev/ttyUSB0", "FTDI USB UART", 1)
            ]
        );
    }
}
