//! What is plugged in while the machine runs: its drivers, and the names by which it is found again.
//!
//! The kernel numbers serial adapters as they come: what was `/dev/ttyUSB0` may be `/dev/ttyUSB1` after the next start.
//! So each also has a name that follows from what it says of itself, as on other systems:
//! `/dev/serial/by-id/usb-FTDI_FT232R_USB_UART_A50285BI-if00-port0`.

mod list;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hivemind_init::drivers::{self, Drivers};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::netlink::DeviceEvents;

pub(crate) use list::{Device, devices};

/// Where the kernel lists what is spoken to like a terminal.
const TERMINALS: &str = "/sys/class/tty";

/// Where serial devices have the names that stay.
const BY_ID: &str = "/dev/serial/by-id";

/// What is plugged in comes with several events, which end within this time.
const SETTLE: Duration = Duration::from_millis(200);

/// How long to wait when the kernel cannot be listened to.
const RETRY: Duration = Duration::from_secs(60);

/// Loads drivers for what is plugged in, and names serial devices, for as long as the agent runs. Says so to whoever
/// looks at devices once that is done.
pub(crate) async fn keep(changed: watch::Sender<()>) {
    loop {
        // Before it is looked: what comes after that is told of.
        let listening = DeviceEvents::open();
        if let Err(error) = tokio::task::spawn_blocking(see_to_all).await {
            tracing::error!(%error, "what is plugged in was not seen to");
        }
        changed.send_replace(());
        let told = match listening {
            Ok(events) => events.next().await,
            Err(error) => Err(error),
        };
        match told {
            Ok(()) => sleep(SETTLE).await,
            Err(error) => {
                tracing::warn!(%error, "the kernel does not tell of devices; they are looked for each minute");
                sleep(RETRY).await;
            }
        }
    }
}

fn see_to_all() {
    match Drivers::read(Path::new(drivers::INDEX)) {
        Ok(mut drivers) => drop(drivers.load_all()),
        Err(error) => tracing::warn!(%error, index = drivers::INDEX, "no drivers for what is plugged in"),
    }
    let named = set_names(Path::new(BY_ID), &serial_names(Path::new(TERMINALS)));
    if let Err(error) = named {
        tracing::warn!(%error, folder = BY_ID, "serial devices have no names that stay");
    }
}

/// Makes the folder hold these names, with the devices that each is for, and no others.
fn set_names(folder: &Path, names: &BTreeMap<String, String>) -> io::Result<()> {
    if names.is_empty() && !folder.exists() {
        return Ok(());
    }
    fs::create_dir_all(folder)?;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_for = names.get(&name).map(|device| PathBuf::from(format!("../../{device}")));
        if is_for.is_none() || fs::read_link(&path).ok() != is_for {
            fs::remove_file(&path)?;
        }
    }
    for (name, device) in names {
        match symlink(format!("../../{device}"), folder.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The serial devices at the USB, by the names that stay. Of two that say the same of themselves the later one has it.
fn serial_names(terminals: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(terminals).into_iter().flatten().flatten();
    let mut devices: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    devices.sort();
    let named = devices.iter().filter_map(|terminal| {
        let device = terminal.file_name()?.to_str()?.to_owned();
        Some((serial_name(&fs::canonicalize(terminal.join("device")).ok()?)?, device))
    });
    named.collect()
}

/// The name of a serial device, as systemd's `60-serial.rules` and `usb_id` make it, from its place in sysfs: its
/// interface, or a port below that.
fn serial_name(device: &Path) -> Option<String> {
    let read = |folder: &Path, file: &str| fs::read_to_string(folder.join(file)).ok();
    let (interface, port) = match read(device, "bInterfaceNumber") {
        Some(_) => (device, String::new()),
        None => (device.parent()?, format!("-port{}", read(device, "port_number")?.trim())),
    };
    let number = read(interface, "bInterfaceNumber")?;
    let usb = interface.parent()?;
    let word = |text: &str, or: &str| read(usb, text).or_else(|| read(usb, or)).map(|text| plain(&text));
    let (vendor, model) = (word("manufacturer", "idVendor")?, word("product", "idProduct")?);
    let serial = read(usb, "serial").map(|text| format!("_{}", plain(&text))).unwrap_or_default();
    Some(format!("usb-{vendor}_{model}{serial}-if{}{port}", number.trim()))
}

/// What may stand in a name of a file: words with `_` between them, and for what is odd.
fn plain(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let odd = |letter: char| !(letter.is_ascii_alphanumeric() || "#+-.:=@_".contains(letter));
    words.join("_").replace(odd, "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An adapter as sysfs shows it; returns the folder of its interface.
    fn adapter(root: &Path, of: &[(&str, &str)]) -> PathBuf {
        let usb = root.join("usb1/1-1");
        let interface = usb.join("1-1:1.0");
        fs::create_dir_all(&interface).unwrap();
        fs::write(interface.join("bInterfaceNumber"), "00\n").unwrap();
        for (file, text) in of {
            fs::write(usb.join(file), format!("{text}\n")).unwrap();
        }
        interface
    }

    const FTDI: [(&str, &str); 5] = [
        ("idVendor", "0403"),
        ("idProduct", "6001"),
        ("manufacturer", "FTDI"),
        ("product", " FT232R  USB/UART "),
        ("serial", "A50285BI"),
    ];

    #[test]
    fn a_serial_device_is_named_by_what_it_says_of_itself() {
        let root = tempfile::tempdir().unwrap();
        let interface = adapter(root.path(), &FTDI);
        let port = interface.join("ttyUSB0");
        fs::create_dir(&port).unwrap();
        fs::write(port.join("port_number"), "0\n").unwrap();
        assert_eq!(serial_name(&port).unwrap(), "usb-FTDI_FT232R_USB_UART_A50285BI-if00-port0");
        assert_eq!(serial_name(&interface).unwrap(), "usb-FTDI_FT232R_USB_UART_A50285BI-if00");

        let quiet = tempfile::tempdir().unwrap();
        let interface = adapter(quiet.path(), &FTDI[..2]);
        assert_eq!(serial_name(&interface).unwrap(), "usb-0403_6001-if00");
        assert_eq!(serial_name(quiet.path()), None, "no device at the USB");
    }

    #[test]
    fn names_go_with_their_devices_and_follow_them_to_another_number() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("serial/by-id");
        let names = |of: &[(&str, &str)]| -> BTreeMap<String, String> {
            of.iter().map(|(name, device)| ((*name).to_owned(), (*device).to_owned())).collect()
        };
        set_names(&folder, &names(&[])).unwrap();
        assert!(!folder.exists());
        set_names(&folder, &names(&[("usb-a", "ttyUSB0"), ("usb-b", "ttyUSB1")])).unwrap();
        set_names(&folder, &names(&[("usb-b", "ttyUSB0"), ("usb-c", "ttyACM0")])).unwrap();
        let held: BTreeMap<String, PathBuf> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| {
                (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read_link(&path).unwrap())
            })
            .collect();
        assert_eq!(
            held,
            [("usb-b".into(), "../../ttyUSB0".into()), ("usb-c".into(), "../../ttyACM0".into())].into()
        );
        set_names(&folder, &names(&[])).unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    }

    #[test]
    fn a_terminal_is_found_through_its_device() {
        let root = tempfile::tempdir().unwrap();
        let interface = adapter(root.path(), &FTDI);
        let terminals = root.path().join("tty");
        fs::create_dir_all(terminals.join("ttyACM0")).unwrap();
        fs::create_dir_all(terminals.join("tty0")).unwrap();
        symlink(&interface, terminals.join("ttyACM0/device")).unwrap();
        let names = serial_names(&terminals);
        assert_eq!(
            names,
            [("usb-FTDI_FT232R_USB_UART_A50285BI-if00".to_owned(), "ttyACM0".to_owned())].into()
        );
    }
}
