//! Secrets: those of the file, with what is in them, and what of them a service is given. They are sealed when they
//! are pushed, and not before: to whom is not known here.

use std::collections::{BTreeMap, BTreeSet};

use hivemind_spec::secret::{Content, MAX_SECRET_BYTES};
use hivemind_spec::workload::{SECRETS_FOLDER, SecretMount};

use super::reader::Reader;
use super::yaml::{Key, Node};
use super::{container, keys, service};

/// A secret of the file that is still to be sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plain {
    /// Its document's name.
    pub name: String,
    /// Its document's labels.
    pub labels: BTreeMap<String, String>,
    /// What is in it.
    pub content: Content,
}

/// A secret under the top level's `secrets`.
pub(super) struct Declared {
    name: String,
    labels: BTreeMap<String, String>,
    /// None of one that others push.
    content: Option<Content>,
}

/// The secrets of the file, by the names that services use.
pub(super) type Secrets = BTreeMap<String, Declared>;

/// Reads the top level's `secrets`.
pub(super) fn declared(reader: &Reader<'_>, node: &Node) -> Option<Secrets> {
    let (mut secrets, mut names) = (Secrets::new(), BTreeSet::new());
    for (key, node) in reader.mapping(node)? {
        let Some(secret) = one(reader, key, node) else { continue };
        if !names.insert(secret.name.clone()) {
            reader
                .fault(key.mark, format!("two secrets are called {}; `name` gives one another", secret.name));
        }
        secrets.insert(key.text.clone(), secret);
    }
    Some(secrets)
}

fn one(reader: &Reader<'_>, key: &Key, node: &Node) -> Option<Declared> {
    let mut name = key.text.clone();
    let (mut labels, mut external, mut contents) = (BTreeMap::new(), false, Vec::new());
    for (key, value) in reader.entries(node, keys::SECRET)? {
        match key.text.as_str() {
            "name" => name = reader.text(value)?,
            "external" => external = reader.boolean(value)?,
            "labels" => service::labels(reader, &mut labels, value)?,
            "environment" => {
                let variable = reader.text(value)?;
                let content = reader.variables(value.mark).get(&variable).cloned();
                let missing = || format!("the variable {variable} is not set");
                contents.push(reader.ok(value.mark, content.ok_or_else(missing))?);
            }
            _ => {
                let path = reader.text(value)?;
                let read = reader.read(value.mark, &path).map_err(|why| {
                    format!("{why}; what is no text, `hivemind secrets set` takes, and `external` refers to")
                });
                let read = read.and_then(|read| read.ok_or_else(|| format!("there is no file {path}")));
                contents.push(reader.ok(value.mark, read)?);
            }
        }
    }
    let name = reader.fitted(key.mark, &name, "a secret");
    let content = match (external, contents.pop()) {
        (true, None) if labels.is_empty() => None,
        (true, _) => {
            let text = "an external secret is as whoever made it wants it; say no more of it here";
            reader.fault(key.mark, text);
            None
        }
        (false, Some(content)) if contents.is_empty() => Some(Content::new(content.into_bytes())),
        (false, _) => {
            reader.fault(key.mark, "needs exactly one of `file`, `environment` and `external`");
            None
        }
    };
    if content.as_ref().is_some_and(|content| content.bytes().len() > MAX_SECRET_BYTES) {
        reader.fault(key.mark, format!("is over the limit of {MAX_SECRET_BYTES} bytes"));
    }
    Some(Declared { name, labels, content })
}

/// Those that this file brings, in the order of their names.
pub(super) fn own(secrets: Secrets) -> Vec<Plain> {
    let own = |Declared { name, labels, content }| Some(Plain { name, labels, content: content? });
    secrets.into_values().filter_map(own).collect()
}

/// Reads a service's `secrets`.
pub(super) fn mounts(reader: &Reader<'_>, secrets: &Secrets, node: &Node) -> Option<Vec<SecretMount>> {
    let mut mounts = Vec::new();
    for used in container::uses(reader, node, "a secret")? {
        let container::Use { mark, source, target, uid, gid, mode } = used;
        let Some(secret) = secrets.get(&source) else {
            reader.fault(mark, format!("{source:?} is not under `secrets` of the file"));
            continue;
        };
        let target = target.unwrap_or(source);
        let path = if target.starts_with('/') { target } else { format!("{SECRETS_FOLDER}/{target}") };
        mounts.push(SecretMount { secret: secret.name.clone(), path, uid, gid, mode });
    }
    Some(mounts)
}
