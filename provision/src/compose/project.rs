//! The files that a project is made of: those that are named, those they include, and those whose services are
//! extended. What comes out is one tree, in which every value knows its file.

use std::collections::BTreeMap;

use super::keys;
use super::merge::{self, Level};
use super::reader::Reader;
use super::yaml::{self, Key, Mark, Node, Overlay, Value};

/// A Compose file that is named on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// Its name, for messages.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// Files of one project: more than anybody reads, and an end to those that include each other.
const MAX_FILES: usize = 64;

/// The tree of all inputs, each laid over the ones before it, with what they include and extend.
pub(super) fn tree(reader: &Reader<'_>, inputs: &[Input]) -> Option<Node> {
    let trees = inputs.iter().map(|input| parse(reader, Mark::default(), &input.name, "", &input.text));
    let trees: Vec<Node> = trees.collect::<Option<_>>()?;
    let tree = trees.into_iter().reduce(|base, over| merge::lay_over(Level::File, base, over))?;
    completed(reader, tree, &mut Vec::new())
}

fn parse(reader: &Reader<'_>, at: Mark, name: &str, folder: &str, text: &str) -> Option<Node> {
    let number = reader.add_file(name, folder);
    if number >= MAX_FILES {
        reader.fault(at, format!("the project has more than {MAX_FILES} files"));
        return None;
    }
    match yaml::parse(text, number) {
        Ok(Some(tree)) => Some(tree),
        Ok(None) => {
            let start = Mark { file: number, line: 1, column: 1 };
            reader.fault(start, "the file is empty; it needs `services`");
            None
        }
        Err(fault) => {
            reader.fault(fault.mark, fault.message);
            None
        }
    }
}

/// Reads the file that a value names.
fn named(reader: &Reader<'_>, node: &Node) -> Option<Node> {
    let path = reader.text(node)?;
    let Some(text) = reader.ok(node.mark, reader.read(node.mark, &path))? else {
        reader.fault(node.mark, format!("there is no file {path}"));
        return None;
    };
    let place = reader.resolve(node.mark, &path);
    let folder =
        place.rsplit_once('/').map_or("", |(folder, _)| if folder.is_empty() { "/" } else { folder });
    parse(reader, node.mark, &place, folder, &text)
}

/// The tree with what it includes, and its services with what they extend. `open` are the files being read.
fn completed(reader: &Reader<'_>, mut tree: Node, open: &mut Vec<String>) -> Option<Node> {
    let included = match take(&mut tree, "include") {
        Some(include) => includes(reader, &include, open)?,
        None => Vec::new(),
    };
    extend(reader, &mut tree)?;
    let mut tree = merge::without_resets(tree);
    for part in included {
        add(reader, &mut tree, part)?;
    }
    Some(tree)
}

fn includes(reader: &Reader<'_>, include: &Node, open: &mut Vec<String>) -> Option<Vec<Node>> {
    let mut parts = Vec::new();
    for item in reader.one_or_many(include)? {
        let mut paths = item;
        if let Value::Mapping(_) = item.value {
            match reader.entries(item, keys::INCLUDE)?.first() {
                Some((_, path)) => paths = *path,
                None => {
                    reader.fault(item.mark, "`path` is missing");
                    continue;
                }
            }
        }
        let mut part: Option<Node> = None;
        let depth = open.len();
        for path in reader.one_or_many(paths)? {
            let place = reader.resolve(path.mark, &reader.text(path)?);
            if open.contains(&place) {
                reader.fault(path.mark, format!("{place} includes itself"));
                return None;
            }
            open.push(place);
            let tree = named(reader, path)?;
            part = Some(match part {
                Some(base) => merge::lay_over(Level::File, base, tree),
                None => tree,
            });
        }
        if let Some(part) = part {
            parts.push(completed(reader, part, open)?);
        }
        open.truncate(depth);
    }
    Some(parts)
}

/// Adds what an included file has; two things of one name must be the same.
fn add(reader: &Reader<'_>, tree: &mut Node, part: Node) -> Option<()> {
    reader.mapping(&part)?;
    let (Value::Mapping(sections), Value::Mapping(more)) = (&mut tree.value, part.value) else {
        reader.mapping(tree)?;
        return None;
    };
    for (key, section) in more {
        if matches!(key.text.as_str(), "name" | "version") || key.text.starts_with("x-") {
            continue;
        }
        let Some((_, own)) = sections.iter_mut().find(|(other, _)| other.text == key.text) else {
            sections.push((key, section));
            continue;
        };
        let (Value::Mapping(own), Value::Mapping(section)) = (&mut own.value, section.value) else {
            reader.fault(key.mark, format!("`{}` must be a map here and where it is included", key.text));
            continue;
        };
        for (name, node) in section {
            match own.iter().find(|(other, _)| other.text == name.text) {
                Some((_, there)) if merge::is_same(there, &node) => {}
                Some(_) => {
                    let text =
                        format!("{:?} is there already, in the file that includes this one", name.text);
                    reader.fault(name.mark, text);
                }
                None => own.push((name, node)),
            }
        }
    }
    Some(())
}

/// Puts into each service of a file what it extends.
fn extend(reader: &Reader<'_>, tree: &mut Node) -> Option<()> {
    let mut others = BTreeMap::new();
    let Some(services) = tree.get("services") else { return Some(()) };
    let Value::Mapping(entries) = &services.value else { return Some(()) };
    if !entries.iter().any(|(_, service)| service.get("extends").is_some()) {
        return Some(());
    }
    let mut extended = Vec::new();
    for (key, _) in entries {
        let service = with_base(reader, &mut others, tree, key, &mut Vec::new())?;
        extended.push((key.clone(), service));
    }
    let value = Value::Mapping(extended);
    let services = Node { value, ..services.clone() };
    if let Value::Mapping(sections) = &mut tree.value
        && let Some((_, place)) = sections.iter_mut().find(|(key, _)| key.text == "services")
    {
        *place = services;
    }
    Some(())
}

/// A service of `tree` with all that it extends. `others` are other files by name; `chain` is what led here.
fn with_base(
    reader: &Reader<'_>,
    others: &mut BTreeMap<String, Node>,
    tree: &Node,
    name: &Key,
    chain: &mut Vec<(usize, String)>,
) -> Option<Node> {
    let Some(service) = tree.get("services").and_then(|services| services.get(&name.text)) else {
        reader.fault(name.mark, format!("there is no service {:?} to extend", name.text));
        return None;
    };
    let mut service = service.clone();
    let Some(extends) = take(&mut service, "extends") else { return Some(service) };
    let here = (service.mark.file, name.text.clone());
    if chain.contains(&here) {
        reader.fault(extends.mark, format!("{} extends itself", name.text));
        return None;
    }
    chain.push(here);
    let (mut base_name, mut file) = (None, None);
    if let Value::Mapping(_) = extends.value {
        for (key, value) in reader.entries(&extends, keys::EXTENDS)? {
            match key.text.as_str() {
                "service" => base_name = Some(value.clone()),
                _ => file = Some(value.clone()),
            }
        }
    } else {
        base_name = Some(extends.clone());
    }
    let Some(base_name) = base_name else {
        reader.fault(extends.mark, "`service` is missing: the one to extend");
        return None;
    };
    let key = Key { mark: base_name.mark, text: reader.text(&base_name)? };
    let base = match &file {
        None => with_base(reader, others, tree, &key, chain)?,
        Some(file) => {
            let place = reader.resolve(file.mark, &reader.text(file)?);
            let other = match others.get(&place) {
                Some(other) => other.clone(),
                None => named(reader, file)?,
            };
            others.insert(place, other.clone());
            with_base(reader, others, &other, &key, chain)?
        }
    };
    Some(merge::without_resets(merge::lay_over(Level::Service, base, service)))
}

/// Takes an entry out; one that `!reset` is on is as if it were not there.
fn take(node: &mut Node, name: &str) -> Option<Node> {
    let Value::Mapping(entries) = &mut node.value else { return None };
    let index = entries.iter().position(|(key, _)| key.text == name)?;
    Some(entries.remove(index).1).filter(|node| node.overlay != Overlay::Reset)
}
