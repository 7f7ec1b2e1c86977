//! Whether the services of a file can start at all, one after the other.

use std::collections::{BTreeMap, BTreeSet};

use hivemind_spec::document::Document;
use hivemind_spec::workload::{Condition, Dependency};

use super::reader::Reader;
use super::yaml::Mark;

/// The services that are in, and what each depends on.
#[derive(Default)]
pub(super) struct Order {
    services: BTreeMap<String, Vec<(Mark, Dependency)>>,
    checked: BTreeSet<String>,
}

impl Order {
    /// Adds a service.
    pub(super) fn add(&mut self, document: &Document, depends_on: Vec<(Mark, Dependency)>) {
        let name = &document.metadata.name;
        if document.workload().is_some_and(|workload| workload.container.health.is_some()) {
            self.checked.insert(name.clone());
        }
        self.services.insert(name.clone(), depends_on);
    }

    /// Records a fault for each service that is missing, and for each circle.
    pub(super) fn check(&self, reader: &Reader<'_>) {
        for (name, depends_on) in &self.services {
            for (mark, dependency) in depends_on {
                let other = &dependency.workload;
                if !self.services.contains_key(other) {
                    if dependency.required {
                        let text = format!("there is no service {other:?}, or its profiles leave it out");
                        reader.fault(*mark, text);
                    }
                } else if self.leads_to(other, name) {
                    let text =
                        format!("{name} would wait for {other}, and {other} for {name}; break the circle");
                    reader.fault(*mark, text);
                } else if dependency.condition == Condition::Healthy && !self.checked.contains(other) {
                    let text = format!("{other} has no `healthcheck`, and counts as healthy when it runs");
                    reader.warn(*mark, text);
                }
            }
        }
    }

    /// Whether `from` waits for `to`, directly or through others.
    fn leads_to(&self, from: &str, to: &str) -> bool {
        let (mut open, mut seen) = (vec![from], BTreeSet::new());
        while let Some(name) = open.pop() {
            if name == to {
                return true;
            }
            if seen.insert(name) {
                let next = self.services.get(name).into_iter().flatten();
                open.extend(next.map(|(_, dependency)| dependency.workload.as_str()));
            }
        }
        false
    }
}
