//! What a service is given of the machines it runs on.

use hivemind_spec::workload::{ContainerSpec, Device, HostNamespace, SeccompProfile, SystemCalls};

use super::keys;
use super::reader::Reader;
use super::yaml::{Key, Node, Value};

/// What a device that says no more may be used for.
const ALL_ACCESS: &str = "rwm";

/// Reads `devices`: `SOURCE[:TARGET[:PERMISSIONS]]`, or the long form.
pub(super) fn devices(reader: &Reader<'_>, node: &Node) -> Option<Vec<Device>> {
    let device = |item: &Node| {
        let (mut path, mut target, mut access) = (None, None, None);
        if let Value::Mapping(_) = item.value {
            for (key, value) in reader.entries(item, keys::DEVICE)? {
                let text = reader.text(value)?;
                match key.text.as_str() {
                    "source" => path = Some(text),
                    "target" => target = Some(text),
                    _ => access = Some(text),
                }
            }
        } else {
            let text = reader.text(item)?;
            let mut parts = text.split(':').map(str::to_owned);
            (path, target, access) = (parts.next(), parts.next(), parts.next());
            if parts.next().is_some() {
                reader.fault(item.mark, format!("{text:?} is not SOURCE:TARGET:PERMISSIONS"));
                return None;
            }
            // `SOURCE:PERMISSIONS` is written too, as Docker takes it.
            if access.is_none() && target.as_ref().is_some_and(|text| !text.starts_with('/')) {
                access = target.take();
            }
        }
        let Some(path) = path else {
            reader.fault(item.mark, "`source` is missing: the device on the machine");
            return None;
        };
        let target = target.unwrap_or_else(|| path.clone());
        Some(Device { path, target, access: access.unwrap_or_else(|| ALL_ACCESS.to_owned()) })
    };
    reader.sequence(node)?.iter().map(device).collect()
}

/// Reads `gpus`, and `deploy.resources.reservations.devices`, which may be other devices.
pub(super) fn graphics(reader: &Reader<'_>, node: &Node) -> Option<Device> {
    if matches!(node.value, Value::Scalar(_)) {
        reader.word(node, &[("all", ())])?;
        return Some(graphics_device());
    }
    for item in reader.sequence(node)? {
        for (key, value) in reader.entries(item, keys::GPU)? {
            match key.text.as_str() {
                "count" => reader.word(value, &[("all", ()), ("-1", ())])?,
                _ => {
                    let names: Vec<String> = reader
                        .sequence(value)?
                        .iter()
                        .map(|name| reader.text(name))
                        .collect::<Option<_>>()?;
                    if !names.is_empty() && !names.iter().any(|name| name == "gpu") {
                        reader.fault(
                            value.mark,
                            "there are no other devices than `gpu` here; name them under `devices`",
                        );
                        return None;
                    }
                }
            }
        }
    }
    Some(graphics_device())
}

/// All that the kernel's drivers for graphics processors give (Direct Rendering Infrastructure).
fn graphics_device() -> Device {
    let folder = "/dev/dri".to_owned();
    Device { path: folder.clone(), target: folder, access: "rw".to_owned() }
}

/// Reads `device_cgroup_rules`.
pub(super) fn rules(reader: &Reader<'_>, node: &Node) -> Option<Vec<String>> {
    reader.sequence(node)?.iter().map(|item| reader.text(item)).collect()
}

/// Reads `security_opt`. Options of AppArmor and SELinux, which machines do not have, may only say that they are off.
pub(super) fn security(reader: &Reader<'_>, container: &mut ContainerSpec, node: &Node) -> Option<()> {
    for item in reader.sequence(node)? {
        let text = reader.text(item)?;
        let (option, value) = text.split_once([':', '=']).unwrap_or((&text, ""));
        match (option, value) {
            ("no-new-privileges", "" | "true") | ("apparmor", "unconfined") | ("label", "disable") => {}
            ("seccomp", "unconfined") => container.machine.system_calls = Some(SystemCalls::Unconfined),
            ("seccomp", path) if !path.is_empty() => {
                let read = reader.ok(item.mark, reader.read(item.mark, path))?;
                let read = read.ok_or_else(|| format!("there is no file {path}"));
                let text = reader.ok(item.mark, read)?;
                let profile: Result<SeccompProfile, _> = serde_json::from_str(&text);
                let profile = profile.map_err(|error| error.to_string()).and_then(|profile| {
                    profile.validate()?;
                    Ok(profile)
                });
                let profile = profile.map_err(|error| format!("{path} is no seccomp profile: {error}"));
                let profile = reader.ok(item.mark, profile)?;
                container.machine.system_calls = Some(SystemCalls::Profile(Box::new(profile)));
            }
            _ => {
                let known =
                    "`seccomp:FILE`, `seccomp:unconfined` and `no-new-privileges`, which all containers have";
                reader.fault(item.mark, format!("{text:?} is not supported; there are {known}"));
            }
        }
    }
    Some(())
}

/// Reads which of a container's namespaces are the machine's.
pub(super) fn shared(
    reader: &Reader<'_>,
    container: &mut ContainerSpec,
    key: &Key,
    node: &Node,
) -> Option<()> {
    let (namespace, may_be_own) = match key.text.as_str() {
        "pid" => (HostNamespace::Pid, false),
        "uts" => (HostNamespace::Uts, false),
        "ipc" => (HostNamespace::Ipc, true),
        _ => (HostNamespace::Cgroup, true),
    };
    let words = [("host", true), ("private", false)];
    let words = if may_be_own { &words[..] } else { &words[..1] };
    if reader.word(node, words)? {
        container.machine.host_namespaces.insert(namespace);
    }
    Some(())
}
