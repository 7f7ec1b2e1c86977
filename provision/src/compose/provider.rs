//! Services that run in no container: a program on the operator's machine makes them when the file is pushed, and tells
//! what those that depend on them have to know (the provider protocol of Docker Compose, docs/extension.md).

use std::collections::{BTreeMap, BTreeSet};

use hivemind_spec::document::{Document, Spec};
use hivemind_spec::workload::{ContainerSpec, HOST_GATEWAY, Host};
use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::keys;
use super::reader::Reader;
use super::yaml::{Key, Node, Value};

/// The annotation of a container that tells which of its variables and hosts come from providers, so that what is compared
/// without asking them keeps those.
const GIVEN: &str = "org.hivemind.provided";

/// Variables and hosts that one provider gives at most: more is no description of a service.
const MAX_GIVEN: usize = 256;

/// A service that a program provides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Provided {
    /// Its name in the file.
    pub service: String,
    /// The program: a plugin of the Docker command line, or one in the search path.
    pub program: String,
    /// Its options, in order; a name may be there several times.
    pub options: Vec<(String, String)>,
    /// The services that are told of it: those that depend on it, by their names as documents.
    pub dependents: BTreeSet<String>,
}

/// A provided service as it is read, with the profiles it is in.
pub(super) type Read = (Provided, Vec<String>);

/// Reads a service with `provider`.
pub(super) fn provided(reader: &Reader<'_>, name: &Key, node: &Node) -> Option<Read> {
    let (mut provided, mut profiles) =
        (Provided { service: name.text.clone(), ..Provided::default() }, Vec::new());
    for (key, value) in reader.entries(node, keys::SERVICE)? {
        match key.text.as_str() {
            "provider" => {
                for (key, value) in reader.entries(value, keys::PROVIDER)? {
                    match key.text.as_str() {
                        "type" => provided.program = program(reader, value)?,
                        _ => provided.options = options(reader, value)?,
                    }
                }
                if provided.program.is_empty() {
                    reader.fault(value.mark, "`type` is missing: the program that provides the service");
                }
            }
            "profiles" => {
                profiles = reader.sequence(value)?.iter().filter_map(|item| reader.text(item)).collect();
            }
            other => {
                let text =
                    format!("a service with `provider` has no containers; remove `{other}`, or `provider`");
                reader.fault(key.mark, text);
            }
        }
    }
    Some((provided, profiles))
}

fn program(reader: &Reader<'_>, node: &Node) -> Option<String> {
    let text = reader.text(node)?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if text.is_empty() || text.starts_with(['.', '-']) || !text.bytes().all(plain) {
        reader.fault(node.mark, format!("{text:?} is not the name of a program"));
        return None;
    }
    Some(text)
}

/// Each value of each option; one with several is given several times.
fn options(reader: &Reader<'_>, node: &Node) -> Option<Vec<(String, String)>> {
    let mut options = Vec::new();
    for (key, value) in reader.mapping(node)? {
        if key.text.is_empty() || key.text.contains(['=', ' ']) {
            reader.fault(key.mark, format!("{:?} cannot name an option", key.text));
        }
        let values = match &value.value {
            Value::Sequence(items) => &items[..],
            _ => std::slice::from_ref(value),
        };
        for value in values {
            options.push((key.text.clone(), reader.any_scalar(value)?.unwrap_or_default()));
        }
    }
    Some(options)
}

impl Provided {
    /// How its program is called to do something: `up`, which must do nothing when that is done, or `down`.
    pub fn arguments(&self, project: &str, action: &str) -> Vec<String> {
        let mut arguments =
            vec!["compose".to_owned(), format!("--project-name={project}"), action.to_owned()];
        arguments.extend(self.options.iter().map(|(name, value)| format!("--{name}={value}")));
        arguments.push(self.service.clone());
        arguments
    }

    /// What a program that asks is told of its service.
    pub fn configuration(&self) -> Json {
        let mut options = serde_json::Map::new();
        for (name, value) in &self.options {
            match options.get_mut(name) {
                None => drop(options.insert(name.clone(), value.as_str().into())),
                Some(Json::Array(values)) => values.push(value.as_str().into()),
                Some(one) => *one = json!([one.take(), value]),
            }
        }
        json!({ "provider": { "type": self.program, "options": options } })
    }

    /// What variables are called that are about it.
    fn prefix(&self) -> String {
        let fits = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
        self.service.chars().map(fits).chain(['_']).collect()
    }
}

/// A line of a provider's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// How far it is.
    Info(String),
    /// Why it fails.
    Error(String),
    /// It asks for its service's configuration.
    AsksConfiguration,
    /// Something that is taken note of, or not meant for people.
    Silent,
}

#[derive(Deserialize)]
struct Line {
    r#type: String,
    #[serde(default)]
    message: String,
}

/// What dependents are given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given {
    variables: BTreeMap<String, String>,
    /// Addresses by name.
    hosts: BTreeMap<String, String>,
}

impl Given {
    /// Hears a line of the provider's.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn hear(&mut self, provided: &Provided, line: &str) -> Result<Message, String> {
        let Line { r#type, message } =
            serde_json::from_str(line).map_err(|error| format!("it printed what is no message: {error}"))?;
        let pair = || {
            let pair = message.split_once('=').filter(|(name, _)| !name.is_empty() && !name.contains('\0'));
            pair.ok_or_else(|| format!("its message {message:?} is not NAME=VALUE"))
        };
        match r#type.as_str() {
            "info" => return Ok(Message::Info(message)),
            "error" => return Ok(Message::Error(message)),
            "get-service-config" => return Ok(Message::AsksConfiguration),
            "debug" => {}
            "setenv" => {
                let (name, value) = pair()?;
                self.variables.insert(format!("{}{name}", provided.prefix()), value.to_owned());
            }
            "rawsetenv" => {
                let (name, value) = pair()?;
                self.variables.insert(name.to_owned(), value.to_owned());
            }
            "addhost" => {
                let (name, address) = pair()?;
                if address != HOST_GATEWAY && address.parse::<std::net::IpAddr>().is_err() {
                    return Err(format!("{address:?} is not an IP address or {HOST_GATEWAY}"));
                }
                self.hosts.insert(name.to_owned(), address.to_owned());
            }
            other => return Err(format!("its message is of the type {other:?}, which is not known")),
        }
        if self.variables.len().max(self.hosts.len()) > MAX_GIVEN {
            return Err(format!("it gives more than {MAX_GIVEN} variables or hosts"));
        }
        Ok(Message::Silent)
    }

    /// Gives them to a container, over what it has. Returns the variables that its file set otherwise.
    fn give(&self, container: &mut ContainerSpec) -> Vec<String> {
        let mut others = Vec::new();
        for (name, value) in &self.variables {
            let before = container.env.insert(name.clone(), value.clone());
            if before.is_some_and(|before| before != *value) {
                others.push(name.clone());
            }
        }
        container.hosts.retain(|host| !self.hosts.contains_key(&host.name));
        let hosts = self.hosts.iter();
        container
            .hosts
            .extend(hosts.map(|(name, address)| Host { name: name.clone(), address: address.clone() }));
        let names =
            self.variables.keys().cloned().chain(self.hosts.keys().map(|name| format!("host:{name}")));
        let before =
            container.annotations.get(GIVEN).into_iter().flat_map(|text| text.split(' ')).map(str::to_owned);
        let all: BTreeSet<String> = before.chain(names).collect();
        if !all.is_empty() {
            let all: Vec<String> = all.into_iter().collect();
            container.annotations.insert(GIVEN.to_owned(), all.join(" "));
        }
        others
    }

    /// What a container was given before.
    fn before(container: &ContainerSpec) -> Self {
        let mut given = Self::default();
        for name in container.annotations.get(GIVEN).into_iter().flat_map(|text| text.split(' ')) {
            if let Some(name) = name.strip_prefix("host:") {
                let host = container.hosts.iter().find(|host| host.name == name);
                given.hosts.extend(host.map(|host| (host.name.clone(), host.address.clone())));
            } else if let Some(value) = container.env.get(name) {
                given.variables.insert(name.to_owned(), value.clone());
            }
        }
        given
    }
}

/// Gives dependents what a provider told. Returns the variables that the file set otherwise, each with its service.
pub fn give(documents: &mut [Document], provided: &Provided, given: &Given) -> Vec<(String, String)> {
    let mut others = Vec::new();
    for (name, container) in dependents(documents, &provided.dependents) {
        others.extend(given.give(container).into_iter().map(|variable| (variable, name.clone())));
    }
    others
}

/// Gives those that depend on any of the provided services what they have in the cluster: providers are not asked.
pub fn keep(
    documents: &mut [Document],
    provided: &[Provided],
    current: &dyn Fn(&Document) -> Option<Document>,
) {
    let all: BTreeSet<String> = provided.iter().flat_map(|one| one.dependents.iter().cloned()).collect();
    let kept = documents.iter().filter_map(|document| {
        let before = current(document)?;
        Some((document.metadata.name.clone(), Given::before(&before.workload()?.container)))
    });
    let kept: BTreeMap<String, Given> = kept.collect();
    for (name, container) in dependents(documents, &all) {
        if let Some(given) = kept.get(&name) {
            given.give(container);
        }
    }
}

fn dependents<'a>(
    documents: &'a mut [Document],
    names: &'a BTreeSet<String>,
) -> impl Iterator<Item = (String, &'a mut ContainerSpec)> {
    documents.iter_mut().filter_map(|document| match &mut document.spec {
        Some(Spec::Workload(workload)) if names.contains(&document.metadata.name) => {
            Some((document.metadata.name.clone(), &mut workload.container))
        }
        _ => None,
    })
}

/// The services of a file that are provided, by their names as documents.
#[derive(Default)]
pub(super) struct All(BTreeMap<String, Provided>);

impl All {
    pub(super) fn add(&mut self, name: &str, provided: Provided) {
        self.0.insert(name.to_owned(), provided);
    }

    /// Whether a service that depends on `other` depends on a provided one, which it waits for before it is pushed.
    pub(super) fn tells(&mut self, service: &str, other: &str) -> bool {
        let found = self.0.get_mut(other);
        found.map(|provided| provided.dependents.insert(service.to_owned())).is_some()
    }

    pub(super) fn finish(self) -> Vec<Provided> {
        self.0.into_values().collect()
    }
}

/// Whether a service is provided.
pub(super) fn is_provided(node: &Node) -> bool {
    node.get("provider").is_some_and(|node| !node.is_null())
}
