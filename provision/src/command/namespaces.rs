//! `hivemind namespaces`: what containers may be given of the machines they run on.

use std::collections::{BTreeMap, BTreeSet};

use hivemind_spec::api::SpecItem;
use hivemind_spec::document::{Kind, Spec, is_dns_label};
use hivemind_spec::namespace::{NamespaceSpec, Permission};
use serde_json::json;

use super::push::{held, send};
use crate::cli::{Global, NamespaceChange, Namespaces, Output};
use crate::deploy;
use crate::failure::{Exit, Failure, Result};
use crate::terminal::{BAD, FAINT, STRONG, Table, paint, say, say_json, styled};

const UNCHANGED: &str = "stopped; look with `hivemind namespaces`";

pub(super) fn run(global: &Global, command: Option<&Namespaces>) -> Result<Exit> {
    match command {
        None | Some(Namespaces::List) => list(global),
        Some(Namespaces::Allow(change)) => want(global, change, |allow| allow.extend(&change.permissions)),
        Some(Namespaces::Deny(change)) => want(global, change, |allow| {
            allow.retain(|permission| !change.permissions.contains(permission));
        }),
    }
}

fn list(global: &Global) -> Result<Exit> {
    let client = super::client(global)?;
    let items: Vec<SpecItem> = super::block_on(UNCHANGED, client.list("/v1/specs"))?;
    let namespaces = known(&items);
    if global.output == Output::Json {
        let items = namespaces.iter().map(
            |(name, (allow, workloads))| json!({ "name": name, "allow": allow, "workloads": workloads }),
        );
        say_json(&json!({ "items": items.collect::<Vec<_>>() }));
        return Ok(Exit::Success);
    }
    let mut table = Table::new(&["NAMESPACE", "WORKLOADS", "MAY BE GIVEN OF THE MACHINES"]);
    for (name, (allow, workloads)) in &namespaces {
        let words = words(allow);
        let allowed = match allow {
            none if none.is_empty() => styled(FAINT, words),
            all if all.contains(&Permission::Privileged) => styled(BAD, words),
            _ => words.as_str().into(),
        };
        table.row([name.as_str().into(), workloads.to_string().into(), allowed]);
    }
    say(&table.render());
    Ok(Exit::Success)
}

fn words(allow: &BTreeSet<Permission>) -> String {
    if allow.is_empty() {
        return "nothing".to_owned();
    }
    allow.iter().map(|permission| permission.name()).collect::<Vec<_>>().join(", ")
}

/// The namespaces in which there is something, or for which something is said: what they allow, and their workloads.
fn known(items: &[SpecItem]) -> BTreeMap<String, (BTreeSet<Permission>, usize)> {
    let mut namespaces: BTreeMap<String, (BTreeSet<Permission>, usize)> = BTreeMap::new();
    for item in items.iter().filter(|item| !item.deleted) {
        match item.key.kind {
            Kind::Namespace => {
                if let Some(Spec::Namespace(spec)) = item.document().and_then(|document| document.spec) {
                    namespaces.entry(item.key.name.clone()).or_default().0 = spec.allow;
                }
            }
            kind if kind.is_namespaced() => {
                let namespace = namespaces.entry(item.key.namespace.clone()).or_default();
                namespace.1 += usize::from(kind == Kind::Workload);
            }
            _ => {}
        }
    }
    namespaces
}

/// Changes what a namespace allows, and says so.
fn want(
    global: &Global,
    change: &NamespaceChange,
    by: impl FnOnce(&mut BTreeSet<Permission>),
) -> Result<Exit> {
    let name = &change.namespace;
    if !is_dns_label(name) {
        return Err(Failure::input("bad-name", format!("{name:?} cannot name a namespace"))
            .advice("use 1 to 63 lower-case letters, digits and hyphens"));
    }
    let client = super::client(global)?;
    let (allow, accepted) = super::block_on(UNCHANGED, async {
        let items: Vec<SpecItem> = client.list(&format!("/v1/specs?kind={}", Kind::Namespace)).await?;
        let before = items.iter().find(|item| item.key.name == *name);
        let mut spec = match before.and_then(SpecItem::document).and_then(|document| document.spec) {
            Some(Spec::Namespace(spec)) => spec,
            _ => NamespaceSpec::default(),
        };
        by(&mut spec.allow);
        let (allow, spec) = (spec.allow.clone(), Spec::Namespace(spec));
        let document = deploy::of_cluster(Kind::Namespace, name.clone(), spec, before, client.now_ms());
        Ok((allow, send(&client, &document).await?))
    })?;
    if global.output == Output::Json {
        say_json(&json!({ "name": name, "allow": allow, "accepted": [accepted] }));
    } else {
        say(&format!(
            "Namespace {} allows its containers: {}; {}",
            paint(STRONG, name),
            words(&allow),
            held(&accepted)
        ));
    }
    Ok(Exit::Success)
}
