//! Devices of the machine that containers are given, and which there are of those that are asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::time::Duration;

use hivemind_core::event::{ContainerPlan, Event, OperationError};
use hivemind_spec::workload;
use nix::sys::stat::{major, minor};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::client::transient;

/// Devices of one container, at most: machines have a few hundred.
const MAX_DEVICES: usize = 4096;

/// Depth of folders below `/dev` that is looked into: `/dev/bus/usb/001` has three.
const MAX_DEPTH: usize = 6;

/// How long to wait once something was plugged in or pulled out: what is back within this time was not away, as when an
/// adapter is reset.
const SETTLE: Duration = Duration::from_secs(1);

/// What every container has its own of, and a privileged one gets none of the machine's.
const OWN: [&str; 8] =
    ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/console", "/dev/ptmx", "/dev/tty", "/dev/fd", "/dev/core"];

/// A device for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Device {
    /// Where in the container.
    pub(super) path: String,
    pub(super) kind: Kind,
    pub(super) major: u64,
    pub(super) minor: u64,
    /// Permission bits, owner and group of the machine's.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Letters of `rwm`.
    pub(super) access: String,
}

/// How a device is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Block,
    Character,
}

impl Kind {
    /// Its letter in device rules and runtime specifications.
    pub(super) fn letter(self) -> &'static str {
        match self {
            Self::Block => "b",
            Self::Character => "c",
        }
    }
}

/// Tells which of the devices that are asked for, by path, the machine has, whenever that changes: `hardware` says that
/// something did.
pub async fn watch(
    mut asked: watch::Receiver<BTreeSet<String>>,
    mut hardware: watch::Receiver<()>,
    events: mpsc::Sender<Event>,
) {
    let mut told = BTreeMap::new();
    loop {
        // Before it is looked: what comes after that is looked at again.
        hardware.mark_unchanged();
        let paths = asked.borrow_and_update().clone();
        let found: BTreeMap<_, _> = paths.into_iter().map(|path| (path.clone(), is_there(&path))).collect();
        if found != told {
            if events.send(Event::Devices { found: found.clone() }).await.is_err() {
                return;
            }
            told = found;
        }
        tokio::select! {
            asks = asked.changed() => if asks.is_err() { return },
            changed = hardware.changed() => match changed {
                Ok(()) => sleep(SETTLE).await,
                Err(_) => return,
            },
        }
    }
}

/// Whether the machine has a device, or a folder with any.
fn is_there(path: &str) -> bool {
    let (path, target) = (path.to_owned(), String::new());
    let mut found = Vec::new();
    let looked = add(&mut found, &workload::Device { path, target, access: String::new() }, 0);
    looked.is_ok() && !found.is_empty()
}

/// The devices a container is given; all of the machine's if it is privileged.
pub(super) fn of(plan: &ContainerPlan) -> Result<Vec<Device>, OperationError> {
    let access = &plan.spec.machine;
    let mut found = Vec::new();
    if access.privileged {
        let all =
            workload::Device { path: "/dev".to_owned(), target: "/dev".to_owned(), access: "rwm".to_owned() };
        add(&mut found, &all, 0).map_err(|error| transient(format!("looking for devices: {error}")))?;
    }
    for device in &access.devices {
        let before = found.len();
        let added = add(&mut found, device, 0);
        let path = &device.path;
        added.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => transient(format!("this machine has no {path}")),
            _ => transient(format!("the device {path}: {error}")),
        })?;
        if found.len() == before {
            return Err(transient(format!("{path} of this machine is no device")));
        }
        // Whom the machine lets have it says nothing in a container: what it is given, all in it may use.
        for device in &mut found[before..] {
            device.mode = for_all(device.mode);
        }
    }
    // A device that was named goes before the same one among all.
    let mut seen = std::collections::BTreeSet::new();
    found.reverse();
    found.retain(|device| seen.insert(device.path.clone()));
    Ok(found)
}

/// Lets everybody do what the owner may.
fn for_all(mode: u32) -> u32 {
    let owners = mode & 0o700;
    mode | owners >> 3 | owners >> 6
}

/// Adds a device, or those in a folder.
fn add(found: &mut Vec<Device>, wanted: &workload::Device, depth: usize) -> io::Result<()> {
    let status = fs::metadata(&wanted.path)?;
    if status.is_dir() {
        if depth > MAX_DEPTH || OWN.contains(&wanted.path.as_str()) {
            return Ok(());
        }
        for entry in fs::read_dir(Path::new(&wanted.path))? {
            let name = entry?.file_name();
            // What is not text has no name in a document.
            let Some(name) = name.to_str() else { continue };
            let (path, target) = (format!("{}/{name}", wanted.path), format!("{}/{name}", wanted.target));
            let inner = workload::Device { path, target, access: wanted.access.clone() };
            match add(found, &inner, depth + 1) {
                // It went away meanwhile, or is a link that leads nowhere.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        return Ok(());
    }
    let kind = match status.file_type() {
        kind if kind.is_block_device() => Kind::Block,
        kind if kind.is_char_device() => Kind::Character,
        _ => return Ok(()),
    };
    if found.len() >= MAX_DEVICES {
        return Err(io::Error::other(format!("more than {MAX_DEVICES} devices")));
    }
    if depth > 0 && OWN.contains(&wanted.path.as_str()) {
        return Ok(());
    }
    found.push(Device {
        path: wanted.target.clone(),
        kind,
        major: major(status.rdev()),
        minor: minor(status.rdev()),
        mode: status.mode() & 0o777,
        uid: status.uid(),
        gid: status.gid(),
        access: wanted.access.clone(),
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(wanted: &str, privileged: bool) -> Result<Vec<Device>, OperationError> {
        let mut plan = super::super::oci::tests::plan();
        plan.spec.machine.privileged = privileged;
        plan.spec.machine.devices = serde_json::from_str(wanted).unwrap();
        of(&plan)
    }

    #[test]
    fn a_device_is_given_under_the_name_and_with_the_access_that_is_asked_for() {
        let found =
            devices(r#"[{"path": "/dev/null", "target": "/dev/hole", "access": "rw"}]"#, false).unwrap();
        let [hole] = &found[..] else { panic!("{found:?}") };
        assert_eq!(
            (hole.path.as_str(), hole.kind, hole.major, hole.minor),
            ("/dev/hole", Kind::Character, 1, 3)
        );
        assert_eq!(hole.access, "rw");
        assert_eq!((for_all(0o600), for_all(0o440), for_all(0o620)), (0o666, 0o444, 0o666));
    }

    #[test]
    fn a_machine_without_the_device_says_so() {
        for (path, told) in [("/dev/ttyNONE", "has no /dev/ttyNONE"), ("/dev/fd", "is no device")] {
            let wanted = format!(r#"[{{"path": "{path}", "target": "/dev/a"}}]"#);
            let error = devices(&wanted, false).unwrap_err();
            assert!(error.text.contains(told) && !error.permanent, "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_asked_for_is_told_of_when_it_comes_and_when_it_goes() {
        let (asked_tx, asked) = watch::channel(BTreeSet::new());
        let (events, mut told) = mpsc::channel(4);
        let (hardware_tx, hardware) = watch::channel(());
        let watching = tokio::spawn(super::watch(asked, hardware, events));
        let ask =
            |paths: &[&str]| asked_tx.send_replace(paths.iter().map(|path| (*path).to_owned()).collect());
        ask(&["/dev/null", "/dev/ttyNONE", "/dev/fd"]);
        let found = |event: Option<Event>| match event {
            Some(Event::Devices { found }) => found,
            other => panic!("{other:?}"),
        };
        let is_there: Vec<_> = found(told.recv().await).into_values().collect();
        assert_eq!(is_there, [false, true, false], "/dev/fd, /dev/null, /dev/ttyNONE");
        ask(&["/dev/null"]);
        assert_eq!(found(told.recv().await), [("/dev/null".to_owned(), true)].into());
        ask(&[]);
        assert_eq!(found(told.recv().await), BTreeMap::new());
        // What is as it was is not told again.
        ask(&["/dev/null"]);
        assert_eq!(found(told.recv().await).len(), 1);
        hardware_tx.send_replace(());
        sleep(2 * SETTLE).await;
        assert!(told.try_recv().is_err());
        drop(asked_tx);
        watching.await.unwrap();
    }

    #[test]
    fn a_privileged_container_is_given_all_devices_but_those_it_has_its_own_of() {
        let found = devices("[]", true).unwrap();
        let has = |path: &str| found.iter().any(|device| device.path == path);
        assert!(has("/dev/null") && has("/dev/urandom"));
        assert!(!has("/dev/ptmx") && !found.iter().any(|device| device.path.starts_with("/dev/pts/")));
    }
}
