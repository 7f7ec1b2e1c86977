//! Volumes whose data is not a folder on the disk of a machine: what `driver_opts` says of them, in the words of Docker's own
//! driver, which are those of mount(8).

use hivemind_spec::workload::{ContainerSpec, HostPath, NfsMount, VolumeMount};

use super::keys;
use super::reader::Reader;
use super::volumes::trimmed;
use super::yaml::{Mark, Node};

/// Options of nfs(5) that say what is so anyway.
const ANYWAY: [&str; 8] = ["async", "bg", "defaults", "fg", "proto=tcp", "rw", "sec=sys", "tcp"];

/// Those that change nothing with version 4 of the protocol, or with any today.
const WITHOUT_EFFECT: [&str; 7] = ["atime", "intr", "noatime", "nodiratime", "nointr", "nolock", "relatime"];

/// Where the data is.
#[derive(Debug, Clone)]
pub(super) enum Elsewhere {
    /// At a server. Its `target` is not known yet.
    Nfs(NfsMount),
    /// At a path of the machines, `target` unknown too.
    Machine(HostPath),
}

/// What `driver_opts` says.
#[derive(Debug, Default)]
pub(super) struct Options {
    pub(super) elsewhere: Option<Elsewhere>,
    pub(super) size_bytes: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    Nfs,
    None,
}

/// Reads a volume's `driver_opts`.
pub(super) fn options(reader: &Reader<'_>, node: &Node) -> Option<Options> {
    let mut found = Options::default();
    let (mut kind, mut device, mut options) = (None, None, None);
    if node.is_null() {
        return Some(found);
    }
    for (key, value) in reader.entries(node, keys::VOLUME_DRIVER)? {
        match key.text.as_str() {
            "type" => {
                let words =
                    [("nfs", Type::Nfs), ("nfs4", Type::Nfs), ("none", Type::None), ("bind", Type::None)];
                kind = Some(reader.word(value, &words)?);
            }
            "device" => device = Some((value.mark, reader.text(value)?)),
            "o" => options = Some((value.mark, reader.text(value)?)),
            _ => found.size_bytes = Some(reader.size_bytes(value)?),
        }
    }
    let (mark, options) = options.unwrap_or((node.mark, String::new()));
    let options: Vec<&str> = options.split(',').map(str::trim).filter(|option| !option.is_empty()).collect();
    // Docker takes a bind without a type too.
    let kind = kind.or_else(|| options.contains(&"bind").then_some(Type::None));
    let Some(kind) = kind else {
        if device.is_some() || !options.is_empty() {
            reader.fault(node.mark, "`type` is missing: `nfs`, or `none` for a path of the machine");
        }
        return Some(found);
    };
    if found.size_bytes.is_some() {
        reader.fault(node.mark, "`size` is for what is on the disk of a machine; remove it");
    }
    let Some((at, device)) = device else {
        reader.fault(node.mark, "`device` is missing: what is mounted");
        return None;
    };
    found.elsewhere = Some(match kind {
        Type::Nfs => Elsewhere::Nfs(nfs(reader, (at, &device), (mark, &options))?),
        Type::None => Elsewhere::Machine(path(reader, (at, &device), (mark, &options))?),
    });
    Some(found)
}

/// `:/PATH` or `SERVER:/PATH`, and the options with `addr=SERVER`.
fn nfs(
    reader: &Reader<'_>,
    (at, device): (Mark, &str),
    (mark, options): (Mark, &[&str]),
) -> Option<NfsMount> {
    let (server, path) = match device.rfind(":/") {
        Some(colon) => (&device[..colon], &device[colon + 1..]),
        None => ("", device),
    };
    let mut mount = NfsMount {
        server: server.trim_matches(['[', ']']).to_owned(),
        path: trimmed(path).to_owned(),
        target: "/nfs".to_owned(),
        read_only: false,
        options: Vec::new(),
    };
    for option in options {
        match option.split_once('=').unwrap_or((option, "")) {
            ("addr", address) => mount.server = address.to_owned(),
            ("ro", "") => mount.read_only = true,
            // The newest that both have, of those that begin so.
            ("nfsvers" | "vers", "4") => {}
            ("nfsvers" | "vers", version) => mount.options.push(format!("vers={version}")),
            ("retry", _) => {}
            _ if ANYWAY.contains(option) => {}
            _ if WITHOUT_EFFECT.contains(option) => {
                reader.warn(mark, format!("`{option}` changes nothing with version 4 of NFS"));
            }
            _ => mount.options.push((*option).to_owned()),
        }
    }
    if mount.server.is_empty() {
        reader.fault(mark, "the server is missing: `addr=SERVER` in `o`, or SERVER:/PATH as `device`");
        return None;
    }
    for option in &mount.options {
        let checked = NfsMount::check_option(option);
        reader.ok(mark, checked)?;
    }
    reader.ok(at, mount.validate())?;
    Some(mount)
}

/// An absolute path of the machines, and `bind`.
fn path(
    reader: &Reader<'_>,
    (at, device): (Mark, &str),
    (mark, options): (Mark, &[&str]),
) -> Option<HostPath> {
    if !device.starts_with('/') {
        let text =
            format!("{device:?} is no absolute path; files beside this one are mounted by the service");
        reader.fault(at, text);
        return None;
    }
    let path = trimmed(device).to_owned();
    let mut host = HostPath { path, target: String::new(), read_only: false, follows: false };
    for option in options {
        match *option {
            "bind" | "rbind" | "rw" | "private" | "rprivate" | "defaults" => {}
            "ro" => host.read_only = true,
            "slave" | "rslave" => host.follows = true,
            other => {
                reader.fault(
                    mark,
                    format!("the option {other:?} is not supported; `bind`, `ro` and `rslave` are"),
                );
            }
        }
    }
    if !options.iter().any(|option| ["bind", "rbind"].contains(option)) {
        reader.fault(mark, "a path of the machine is mounted with `o: bind`");
    }
    Some(host)
}

/// Gives a container what one of its volumes is.
pub(super) fn give(container: &mut ContainerSpec, elsewhere: &Elsewhere, mount: VolumeMount) {
    let VolumeMount { path, read_only, subpath, .. } = mount;
    let target = trimmed(&path).to_owned();
    let within = |path: &str| match &subpath {
        Some(subpath) => format!("{}/{subpath}", path.trim_end_matches('/')),
        None => path.to_owned(),
    };
    match elsewhere {
        Elsewhere::Nfs(nfs) => {
            let (path, read_only) = (within(&nfs.path), nfs.read_only || read_only);
            container.machine.nfs.push(NfsMount { path, target, read_only, ..nfs.clone() });
        }
        Elsewhere::Machine(host) => {
            let (path, read_only) = (within(&host.path), host.read_only || read_only);
            container.machine.host_paths.push(HostPath { path, target, read_only, ..host.clone() });
        }
    }
}
