//! Volumes: those of the file, and what of them a service mounts. A file or folder beside the Compose file that a
//! service mounts travels with the workload, as a configuration does.

use std::collections::{BTreeMap, BTreeSet};

use hivemind_spec::document::is_dns_label;
use hivemind_spec::volume::{Per, VolumeSpec};
use hivemind_spec::workload::{ContainerSpec, File, HostPath, VolumeMount};

use super::elsewhere::{self, Elsewhere};
use super::reader::{Reader, fitted};
use super::yaml::{Key, Mark, Node, Value};
use super::{keys, service};

/// Permissions of a file that travels with a workload: whether it is a program is not known here.
const FILE_MODE: u32 = 0o555;

/// Of the memory-backed folder in which the files of a folder are mounted: there is room for their names.
const FOLDER_OPTIONS: &str = "size=64k,mode=755";

/// A volume under the top level's `volumes`.
#[derive(Debug, Clone, Default)]
pub(super) struct Declared {
    /// Where it is in the file.
    pub(super) mark: Mark,
    /// Its document's name.
    pub(super) name: String,
    /// How many there are to be, if the file says it.
    per: Option<Per>,
    size_bytes: Option<u64>,
    /// Where its data is, if that is not on a machine's disk.
    elsewhere: Option<Elsewhere>,
    /// Whether it is pushed by others.
    external: bool,
    /// Whether it is a service's that gave it no name.
    nameless: bool,
    pub(super) labels: BTreeMap<String, String>,
}

/// The volumes of the file, by the names that services use.
pub(super) type Volumes = BTreeMap<String, Declared>;

/// Reads the top level's `volumes`.
pub(super) fn declared(reader: &Reader<'_>, node: &Node) -> Option<Volumes> {
    let mut volumes = Volumes::new();
    for (key, node) in reader.mapping(node)? {
        if let Some(volume) = one(reader, key, node) {
            volumes.insert(key.text.clone(), volume);
        }
    }
    Some(volumes)
}

fn one(reader: &Reader<'_>, name: &Key, node: &Node) -> Option<Declared> {
    let mut volume = Declared { mark: name.mark, name: name.text.clone(), ..Declared::default() };
    if node.is_null() {
        return Some(named(reader, name.mark, volume));
    }
    for (key, value) in reader.entries(node, keys::VOLUME)? {
        match key.text.as_str() {
            "name" => volume.name = reader.text(value)?,
            "external" => volume.external = reader.boolean(value)?,
            "driver" => reader.word(value, &[("local", ())])?,
            "driver_opts" => {
                let options = elsewhere::options(reader, value)?;
                (volume.elsewhere, volume.size_bytes) = (options.elsewhere, options.size_bytes);
            }
            _ => service::labels(reader, &mut volume.labels, value)?,
        }
    }
    if let Some((_, extension)) = reader.mapping(node)?.iter().find(|(key, _)| key.text == "x-hivemind") {
        for (key, value) in reader.entries(extension, keys::VOLUME_EXTENSION)? {
            match key.text.as_str() {
                "per" => {
                    let all = [Per::Cluster, Per::Node, Per::Replica].map(|per| (per.name(), per));
                    volume.per = Some(reader.word(value, &all)?);
                }
                _ => volume.size_bytes = Some(reader.size_bytes(value)?),
            }
        }
    }
    let says_more = volume.per.is_some() || volume.size_bytes.is_some() || !volume.labels.is_empty();
    if volume.external && (says_more || volume.elsewhere.is_some()) {
        reader
            .fault(name.mark, "an external volume is as whoever pushed it wants it; say no more of it here");
    } else if volume.elsewhere.is_some() && says_more {
        let text = "its data is not Hivemind's, so that there is no document with labels, size or how many there are; remove them";
        reader.fault(name.mark, text);
    }
    Some(named(reader, name.mark, volume))
}

fn named(reader: &Reader<'_>, mark: Mark, volume: Declared) -> Declared {
    Declared { name: reader.fitted(mark, &volume.name, "a volume"), ..volume }
}

/// Gives a container what it mounts. Where some of it is elsewhere, gives where the file says so.
pub(super) fn give(
    volumes: &Volumes,
    container: &mut ContainerSpec,
    mounts: Vec<VolumeMount>,
) -> Option<Mark> {
    container.volumes.clear();
    let mut mark = None;
    for mount in mounts {
        let declared = volumes.values().find(|declared| declared.name == mount.volume);
        match declared.and_then(|declared| Some((declared, declared.elsewhere.as_ref()?))) {
            Some((declared, elsewhere)) => {
                elsewhere::give(container, elsewhere, mount);
                mark = Some(declared.mark);
            }
            None => container.volumes.push(mount),
        }
    }
    mark
}

/// The documents' contents. `used` are the volumes that services have, each with whether a global one has it.
pub(super) fn documents(volumes: Volumes, used: &BTreeSet<(String, bool)>) -> Vec<(Declared, VolumeSpec)> {
    let is_used = |volume: &Declared, global| used.contains(&(volume.name.clone(), global));
    let own = volumes.into_values().filter(|volume| !volume.external && volume.elsewhere.is_none());
    // The service may be left out by its profiles.
    let own = own.filter(|volume| !volume.nameless || is_used(volume, true) || is_used(volume, false));
    let document = move |volume: Declared| {
        // Of a service that is on every machine, each is to have its own.
        let per = if is_used(&volume, true) { Per::Node } else { Per::Cluster };
        let spec =
            VolumeSpec { per: volume.per.unwrap_or(per), size_bytes: volume.size_bytes, discard: None };
        (volume, spec)
    };
    own.map(document).collect()
}

/// What a service mounts, before it is known what that is.
struct Wanted {
    mark: Mark,
    kind: Kind,
    source: Option<String>,
    target: Option<String>,
    read_only: bool,
    no_copy: bool,
    /// The folder of the volume, if it is not all of it.
    subpath: Option<String>,
    /// Whether it sees what the machine mounts below later.
    follows: bool,
    /// Options of a memory-backed directory.
    options: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Volume,
    Bind,
    Tmpfs,
}

impl Wanted {
    /// A volume of which nothing more is known yet.
    fn at(mark: Mark) -> Self {
        Self {
            mark,
            kind: Kind::Volume,
            source: None,
            target: None,
            read_only: false,
            no_copy: false,
            subpath: None,
            follows: false,
            options: Vec::new(),
        }
    }
}

/// Reads a service's `volumes`. Volumes without a name are put into `volumes`.
pub(super) fn mounts(
    reader: &Reader<'_>,
    volumes: &mut Volumes,
    service: &str,
    container: &mut ContainerSpec,
    node: &Node,
) -> Option<()> {
    for item in reader.sequence(node)? {
        let wanted = match &item.value {
            Value::Mapping(_) => long(reader, item),
            _ => short(reader, item),
        };
        if let Some(wanted) = wanted {
            mount(reader, volumes, service, container, wanted);
        }
    }
    Some(())
}

/// `PATH`, `SOURCE:PATH` or `SOURCE:PATH:OPTIONS`.
fn short(reader: &Reader<'_>, item: &Node) -> Option<Wanted> {
    let text = reader.text(item)?;
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts[..] {
        [target] => (None, target, ""),
        [source, target] => (Some(source), target, ""),
        [source, target, options] => (Some(source), target, options),
        _ => {
            reader.fault(item.mark, format!("{text:?} is not SOURCE:PATH or SOURCE:PATH:ro"));
            return None;
        }
    };
    let is_path = source.is_some_and(|source| source.starts_with(['.', '/', '~']));
    let mut wanted = Wanted {
        kind: if is_path { Kind::Bind } else { Kind::Volume },
        source: source.map(str::to_owned),
        target: Some(target.to_owned()),
        ..Wanted::at(item.mark)
    };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => wanted.read_only = true,
            "nocopy" => wanted.no_copy = true,
            "slave" | "rslave" => wanted.follows = true,
            // What is so anyway: writable, no SELinux on the machines, and one kernel that sees all writes.
            "rw" | "z" | "Z" | "private" | "rprivate" | "consistent" | "cached" | "delegated" => {}
            other => {
                let text = format!("the option {other:?} is not supported; `ro`, `nocopy` and `rslave` are");
                reader.fault(item.mark, text);
            }
        }
    }
    Some(wanted)
}

fn long(reader: &Reader<'_>, item: &Node) -> Option<Wanted> {
    let mut wanted = Wanted::at(item.mark);
    let kinds = [("volume", Kind::Volume), ("bind", Kind::Bind), ("tmpfs", Kind::Tmpfs)];
    let mut typed = false;
    for (key, value) in reader.entries(item, keys::MOUNT)? {
        match key.text.as_str() {
            "type" => (wanted.kind, typed) = (reader.word(value, &kinds)?, true),
            "source" => wanted.source = Some(reader.text(value)?),
            "target" => wanted.target = Some(reader.text(value)?),
            "read_only" => wanted.read_only = reader.boolean(value)?,
            "consistency" => drop(reader.text(value)?),
            "volume" => {
                for (key, value) in reader.entries(value, keys::MOUNT_VOLUME)? {
                    match key.text.as_str() {
                        "nocopy" => wanted.no_copy = reader.boolean(value)?,
                        _ => wanted.subpath = Some(subpath(reader, value)?),
                    }
                }
            }
            "bind" => {
                for (key, value) in reader.entries(value, keys::MOUNT_BIND)? {
                    match key.text.as_str() {
                        "create_host_path" => drop(reader.boolean(value)?),
                        "propagation" => {
                            let words =
                                [("private", false), ("rprivate", false), ("slave", true), ("rslave", true)];
                            wanted.follows = reader.word(value, &words)?;
                        }
                        _ => reader.word(value, &[("z", ()), ("Z", ())])?,
                    }
                }
            }
            _ => {
                for (key, value) in reader.entries(value, keys::MOUNT_TMPFS)? {
                    wanted.options.push(match key.text.as_str() {
                        "size" => format!("size={}", reader.size_bytes(value)?),
                        _ => format!(
                            "mode={}",
                            reader.text_or_number(value, "permissions")?.trim_start_matches("0o")
                        ),
                    });
                }
            }
        }
    }
    if !typed {
        reader.fault(item.mark, "`type` is missing: volume, bind or tmpfs");
    }
    Some(wanted)
}

/// A folder within a volume; people write it from the volume's root too.
fn subpath(reader: &Reader<'_>, node: &Node) -> Option<String> {
    let text = reader.text(node)?;
    let path = text.trim_matches('/').trim_start_matches("./");
    if path.is_empty() {
        reader.fault(node.mark, format!("{text:?} is all of the volume; remove `subpath`"));
        return None;
    }
    Some(path.to_owned())
}

fn mount(
    reader: &Reader<'_>,
    volumes: &mut Volumes,
    service: &str,
    container: &mut ContainerSpec,
    wanted: Wanted,
) -> Option<()> {
    let Some(path) = wanted.target.clone() else {
        reader.fault(wanted.mark, "`target` is missing: where in the container");
        return None;
    };
    if !path.starts_with('/') {
        reader.fault(wanted.mark, format!("{path:?} must be a path from the root, as /{path}"));
        return None;
    }
    if wanted.follows && wanted.kind != Kind::Bind {
        reader.fault(wanted.mark, "`rslave` is for paths of the machine only; remove it");
    }
    match (wanted.kind, &wanted.source) {
        (Kind::Tmpfs, None) => {
            let read_only = wanted.read_only.then(|| "ro".to_owned());
            let options: Vec<String> = wanted.options.into_iter().chain(read_only).collect();
            let options = if options.is_empty() { String::new() } else { format!(":{}", options.join(",")) };
            container.tmpfs.push(format!("{path}{options}"));
        }
        (Kind::Tmpfs, Some(_)) => reader.fault(wanted.mark, "memory has no `source`; remove it"),
        (Kind::Bind, Some(source)) => bind(reader, container, &wanted, source, &path)?,
        (Kind::Bind, None) => reader.fault(wanted.mark, "`source` is missing: a file beside this one"),
        (Kind::Volume, source) => {
            let volume = match source {
                Some(name) => match volumes.get(name) {
                    Some(declared) => declared.name.clone(),
                    None => {
                        reader.fault(wanted.mark, format!("{name:?} is not under `volumes` of the file"));
                        return None;
                    }
                },
                None => nameless(reader, volumes, service, wanted.mark, &path)?,
            };
            let Wanted { read_only, no_copy, subpath, .. } = wanted;
            container.volumes.push(VolumeMount { volume, path, read_only, no_copy, subpath });
        }
    }
    Some(())
}

/// A volume that the file gives no name: each replica has its own, called after the service and the path.
fn nameless(
    reader: &Reader<'_>,
    volumes: &mut Volumes,
    service: &str,
    mark: Mark,
    path: &str,
) -> Option<String> {
    let words = path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let words: Vec<String> = words.map(str::to_ascii_lowercase).collect();
    let name = format!("{service}-{}", words.join("-"));
    let per = Some(Per::Replica);
    let declared = Declared { mark, name: name.clone(), per, nameless: true, ..Declared::default() };
    if !is_dns_label(&name) {
        reader.fault(
            mark,
            format!("{path:?} gives no name for a volume; write NAME:{path}, and NAME under `volumes`"),
        );
        return None;
    }
    if volumes.insert(name.clone(), declared).is_some() {
        reader.fault(mark, format!("its volume would be called {name}, as another; write NAME:{path}"));
        return None;
    }
    Some(name)
}

/// A file or a folder beside the Compose file.
fn bind(
    reader: &Reader<'_>,
    container: &mut ContainerSpec,
    wanted: &Wanted,
    source: &str,
    path: &str,
) -> Option<()> {
    let mark = wanted.mark;
    if source.starts_with('/') {
        return of_machine(reader, container, wanted, source, path);
    }
    if source.starts_with('~') {
        let text =
            format!("{source:?}: nobody has a home on the machines; use a volume, or a file beside this one");
        reader.fault(mark, text);
        return None;
    }
    let path = path.trim_end_matches('/');
    let file = |source: &str, path: String| {
        let read = reader.read(mark, source);
        let none = || format!("there is no file or folder {source}; for data, use a volume");
        let content = reader.ok(mark, read.and_then(|read| read.ok_or_else(none)))?;
        Some(File { path, content, uid: 0, gid: 0, mode: FILE_MODE })
    };
    match reader.ok(mark, reader.list(mark, source))? {
        None => container.files.push(file(source, path.to_owned())?),
        Some(names) if names.is_empty() => {
            reader.fault(mark, format!("{source} is an empty folder; for data, use a volume"));
            return None;
        }
        Some(names) => {
            // In the container there is the folder and nothing else, as with Docker: it is in memory.
            container.tmpfs.push(format!("{path}:{FOLDER_OPTIONS}"));
            let folder = source.trim_end_matches('/');
            for name in names {
                container.files.push(file(&format!("{folder}/{name}"), format!("{path}/{name}"))?);
            }
        }
    }
    if !wanted.read_only {
        let text = "travels with the workload: what it writes there is lost; for data, use a volume";
        reader.warn(mark, format!("{source} {text}"));
    }
    Some(())
}

/// Files that say which time zone a machine is in, which containers are given out of habit.
const TIME_ZONE: [&str; 2] = ["/etc/localtime", "/etc/timezone"];

/// A file or a folder of the machine's.
fn of_machine(
    reader: &Reader<'_>,
    container: &mut ContainerSpec,
    wanted: &Wanted,
    source: &str,
    target: &str,
) -> Option<()> {
    if source.ends_with("/docker.sock") {
        reader.fault(wanted.mark, "there is no Docker on the machines; remove it");
        return None;
    }
    if TIME_ZONE.contains(&source) {
        let text = format!(
            "{source} is left out: the machines' clocks are at UTC, as a container's is; `TZ` says otherwise"
        );
        reader.warn(wanted.mark, text);
        return Some(());
    }
    container.machine.host_paths.push(HostPath {
        path: trimmed(source).to_owned(),
        target: trimmed(target).to_owned(),
        read_only: wanted.read_only,
        follows: wanted.follows,
    });
    Some(())
}

/// A path without the slash at its end that people write for folders.
pub(super) fn trimmed(path: &str) -> &str {
    if path == "/" { path } else { path.trim_end_matches('/') }
}

/// A service whose volumes another one has too: `SERVICE`, `SERVICE:ro` or `SERVICE:rw`.
#[derive(Debug, Clone)]
pub(super) struct From {
    pub(super) mark: Mark,
    pub(super) service: String,
    read_only: bool,
}

/// Reads `volumes_from`.
pub(super) fn others(reader: &Reader<'_>, node: &Node) -> Option<Vec<From>> {
    let mut others = Vec::new();
    for item in reader.sequence(node)? {
        let text = reader.text(item)?;
        let (service, access) = text.split_once(':').unwrap_or((&text, "rw"));
        match (service, access) {
            ("container", _) => {
                reader.fault(
                    item.mark,
                    "containers of other projects have no names here; use an external volume",
                );
            }
            (service, "ro" | "rw") => {
                others.push(From { mark: item.mark, service: fitted(service), read_only: access == "ro" })
            }
            _ => reader.fault(item.mark, format!("{text:?} is not SERVICE, SERVICE:ro or SERVICE:rw")),
        }
    }
    Some(others)
}

/// All that a service mounts, with what it has from others; its own go before those at the same path.
pub(super) fn with_others(
    reader: &Reader<'_>,
    services: &BTreeMap<String, (Vec<VolumeMount>, Vec<From>)>,
    name: &str,
    open: &mut Vec<String>,
) -> Vec<VolumeMount> {
    let Some((own, others)) = services.get(name) else { return Vec::new() };
    let mut all = own.clone();
    open.push(name.to_owned());
    for from in others {
        if open.contains(&from.service) {
            reader.fault(from.mark, format!("{name} would have its own volumes from {}", from.service));
        } else if services.contains_key(&from.service) {
            for mount in with_others(reader, services, &from.service, open) {
                if !all.iter().any(|own| own.path == mount.path) {
                    all.push(VolumeMount { read_only: mount.read_only || from.read_only, ..mount });
                }
            }
        } else {
            reader.fault(from.mark, format!("there is no service {:?}", from.service));
        }
    }
    open.pop();
    all
}
