//! Compose files (<https://compose-spec.io>) to documents.
//!
//! ```text
//! texts ──yaml──▶ nodes with places ──project, merge──▶ one tree ──service, container──▶ workloads
//!       ──▶ documents, ready to be signed
//! ```
//!
//! Every key is honoured or refused with its line and the reason ([`keys`]); none is ignored. All
//! faults of a file are found in one go. Nothing here reads files or the environment: both come
//! in with [`Surroundings`].

mod container;
mod elsewhere;
mod environment;
mod health;
mod interpolate;
mod job;
pub mod keys;
mod logging;
mod machine;
mod merge;
mod networks;
mod order;
mod ports;
mod project;
pub mod provider;
mod pull;
mod reader;
pub mod secrets;
mod service;
mod update;
mod volumes;
pub mod yaml;

pub(crate) use service::constraint;

use std::collections::{BTreeMap, BTreeSet};

use hivemind_spec::document::{Document, Kind, Metadata, Spec, is_dns_label};

pub use self::environment::{Environment, environment};
pub use self::project::Input;
pub use self::pull::PullPolicy;
use self::reader::Reader;
pub(crate) use self::reader::fitted;
use self::yaml::{Key, Mark};

/// The label that says which Compose file a workload came from.
pub const APP_LABEL: &str = "hivemind/app";

/// A fault in a Compose file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// Where it starts.
    pub mark: Mark,
    /// The file's name: an [`Input`]'s, or else a path from the project's folder.
    pub file: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl Fault {
    pub(crate) fn new(mark: Mark, message: impl Into<String>) -> Self {
        Self { mark, file: String::new(), message: message.into() }
    }
}

/// Paths of files, from the folder they are in.
pub type Paths = Vec<String>;

/// What a Compose file depends on besides its own text.
pub struct Surroundings<'a> {
    /// Variables for `${NAME}` and for environment entries without a value.
    pub variables: BTreeMap<String, String>,
    /// The project's name when the file gives none.
    pub project: String,
    /// The namespace of the workloads.
    pub namespace: String,
    /// The profiles asked for; `*` is all.
    pub profiles: BTreeSet<String>,
    /// Reads a file by its path from the project's folder; `None` when there is none.
    pub read: &'a dyn Fn(&str) -> Result<Option<String>, String>,
    /// Lists the files in a folder and the folders in it, by their paths from it, in order; `None` when it is no folder.
    pub list: &'a dyn Fn(&str) -> Result<Option<Paths>, String>,
}

/// What a Compose file turns into.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Compiled {
    /// The project's name.
    pub project: String,
    /// One document for each volume, and then for each service, in the order of the file, with revision 0.
    pub documents: Vec<Document>,
    /// Its secrets, still to be sealed.
    pub secrets: Vec<secrets::Plain>,
    /// The policies of those workloads that have one, by name.
    pub pull_policies: BTreeMap<String, PullPolicy>,
    /// Services that programs on this machine provide, which are to be run before the documents are pushed.
    pub provided: Vec<provider::Provided>,
    /// What is no fault but may surprise.
    pub warnings: Vec<Fault>,
}

/// Turns Compose files, each laid over the ones before it, into documents.
///
/// # Errors
/// All faults, in the order of the files; at least one.
pub fn compile(inputs: &[Input], surroundings: &Surroundings<'_>) -> Result<Compiled, Vec<Fault>> {
    let reader = Reader::new(surroundings);
    let compiled = project::tree(&reader, inputs).and_then(|tree| whole(&reader, &tree));
    let (faults, warnings) = reader.finish();
    match compiled {
        Some(compiled) if faults.is_empty() => Ok(Compiled { warnings, ..compiled }),
        _ if faults.is_empty() => Err(vec![Fault::new(Mark::default(), "this is not a Compose file")]),
        _ => Err(faults),
    }
}

fn whole(reader: &Reader<'_>, root: &yaml::Node) -> Option<Compiled> {
    let top = reader.entries(root, keys::TOP)?;
    let mut project = reader.surroundings.project.clone();
    let (mut services, mut shared) = (None, service::Shared::default());
    for (key, node) in top {
        match key.text.as_str() {
            "name" => project = reader.label(node, "a project's name")?,
            "services" => services = Some(node),
            "configs" => shared.configs = contents(reader, node)?,
            "volumes" if !node.is_null() => shared.volumes = volumes::declared(reader, node)?,
            "networks" if !node.is_null() => shared.networks = networks::declared(reader, node)?,
            "secrets" if !node.is_null() => shared.secrets = secrets::declared(reader, node)?,
            "version" => reader.warn(key.mark, "`version` is obsolete and has no effect"),
            _ => {}
        }
    }
    let Some(services) = services else {
        reader.fault(root.mark, "`services` is missing");
        return None;
    };
    let services = reader.mapping(services)?;
    if services.is_empty() {
        reader.fault(root.mark, "`services` is empty");
    }
    let (mut workloads, mut order) = (Vec::new(), order::Order::default());
    let (mut mounts, mut pull_policies) = (BTreeMap::new(), BTreeMap::new());
    let mut published = BTreeSet::new();
    let mut provided = provider::All::default();
    // Those that programs provide first, so that it is known of each other one whether it depends on them.
    let (made, run): (Vec<_>, Vec<_>) = services.iter().partition(|(_, node)| provider::is_provided(node));
    for (key, node) in made.into_iter().chain(run) {
        let name = Key { mark: key.mark, text: fitted(&key.text) };
        if !is_dns_label(&name.text) {
            let rule = "use 1 to 63 letters, digits, hyphens and underscores, because it is also a host name";
            reader.fault(key.mark, format!("{:?} cannot name a service; {rule}", key.text));
            continue;
        }
        if mounts.contains_key(&name.text) {
            let text = format!("two services would be called {}; rename one", name.text);
            reader.fault(key.mark, text);
            continue;
        }
        if provider::is_provided(node) {
            mounts.insert(name.text.clone(), Default::default());
            if let Some((service, profiles)) = provider::provided(reader, key, node)
                && is_wanted(reader, &name, &profiles)
            {
                provided.add(&name.text, service);
            }
            continue;
        }
        let Some(service) = service::service(reader, &mut shared, &name, &key.text, node) else { continue };
        let key = &name;
        let service::Service { mut workload, labels, profiles, mut depends_on, volumes_from, pull_policy } =
            service;
        mounts.insert(key.text.clone(), (workload.container.volumes.clone(), volumes_from));
        // What is provided is there before the documents are pushed.
        depends_on.retain(|(_, dependency)| !provided.tells(&key.text, &dependency.workload));
        workload.depends_on.retain(|dependency| !provided.tells(&key.text, &dependency.workload));
        let spec = Spec::Workload(Box::new(workload));
        let document = document(reader, &project, Kind::Workload, &key.text, labels, spec);
        // What the types and this reader cannot see, the document's own check does.
        if let Err(error) = Document::parse(&document.to_json()) {
            reader.fault(key.mark, format!("service {}: {}", key.text, error.message));
        }
        if !is_wanted(reader, key, &profiles) {
            continue;
        }
        for port in document.workload().into_iter().flat_map(|workload| &workload.container.ports) {
            if let Some(number) = port.published
                && !published.insert((number, port.protocol))
            {
                reader.fault(key.mark, format!("port {number} is published twice; choose another"));
            }
        }
        order.add(&document, depends_on);
        if pull_policy != PullPolicy::Unsaid {
            pull_policies.insert(key.text.clone(), pull_policy);
        }
        workloads.push(document);
    }
    order.check(reader);
    let mut used = BTreeSet::new();
    for document in &mut workloads {
        let Some(Spec::Workload(workload)) = &mut document.spec else { continue };
        let all = volumes::with_others(reader, &mounts, &document.metadata.name, &mut Vec::new());
        used.extend(all.iter().map(|mount| (mount.volume.clone(), workload.global)));
        let Some(mark) = volumes::give(&shared.volumes, &mut workload.container, all) else { continue };
        if let Err(error) = Document::parse(&document.to_json()) {
            reader.fault(mark, format!("service {}: {}", document.metadata.name, error.message));
        }
    }
    // Volumes first, so that no workload waits for one that is on its way.
    let volumes = volumes::documents(shared.volumes, &used).into_iter().map(|(volume, spec)| {
        let spec = Spec::Volume(spec);
        let document = document(reader, &project, Kind::Volume, &volume.name, volume.labels, spec);
        if let Err(error) = Document::parse(&document.to_json()) {
            reader.fault(volume.mark, format!("volume {}: {}", volume.name, error.message));
        }
        document
    });
    let documents = volumes.chain(workloads).collect();
    let mut secrets = secrets::own(shared.secrets);
    for secret in &mut secrets {
        secret.labels.insert(APP_LABEL.to_owned(), project.clone());
    }
    let provided = provided.finish();
    Some(Compiled { project, documents, secrets, pull_policies, provided, warnings: Vec::new() })
}

/// Whether a service is in by its profiles.
fn is_wanted(reader: &Reader<'_>, name: &Key, profiles: &[String]) -> bool {
    let asked = &reader.surroundings.profiles;
    let wanted = |profile: &String| asked.contains(profile) || asked.contains("*");
    if profiles.is_empty() || profiles.iter().any(wanted) {
        return true;
    }
    let list = profiles.join("` or `--profile ");
    reader.warn(name.mark, format!("{} is left out; it is in with `--profile {list}`", name.text));
    false
}

fn document(
    reader: &Reader<'_>,
    project: &str,
    kind: Kind,
    name: &str,
    mut labels: BTreeMap<String, String>,
    spec: Spec,
) -> Document {
    labels.insert(APP_LABEL.to_owned(), project.to_owned());
    let metadata = Metadata {
        name: name.to_owned(),
        namespace: reader.surroundings.namespace.clone(),
        labels,
        revision: 0,
        replaces: None,
        ancestors: None,
        deleted: false,
    };
    Document { metadata, kind, spec: Some(spec) }
}

/// The contents of the top level's `configs`.
fn contents(reader: &Reader<'_>, node: &yaml::Node) -> Option<BTreeMap<String, String>> {
    let mut configs = BTreeMap::new();
    for (name, node) in reader.mapping(node)? {
        let mut found = Vec::new();
        for (key, value) in reader.entries(node, keys::CONFIG)? {
            let text = reader.text_or_number(value, "text")?;
            found.push(match key.text.as_str() {
                "content" => text,
                "environment" => {
                    let content = reader.variables(value.mark).get(&text).cloned();
                    reader.ok(value.mark, content.ok_or_else(|| format!("the variable {text} is not set")))?
                }
                _ => {
                    let read = reader.read(value.mark, &text);
                    let read = read.and_then(|read| read.ok_or_else(|| format!("there is no file {text}")));
                    reader.ok(value.mark, read)?
                }
            });
        }
        let [content] = &found[..] else {
            reader.fault(name.mark, "needs exactly one of `content`, `file` and `environment`");
            continue;
        };
        configs.insert(name.text.clone(), content.clone());
    }
    Some(configs)
}

#[cfg(test)]
mod tests;
