//! The files that a project is made of: those that are named, those they include, and those whose services are
//! extended. What comes out is one tree, in which every value knows its file.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::keys;
use super::merge::{self, Level};
use super::reader::{Reader, Scope};
use super::service;
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
    let own = reader.scope(Mark::default());
    let trees =
        inputs.iter().map(|input| parse(reader, Mark::default(), &input.name, own.clone(), &input.text));
    let trees: Vec<Node> = trees.collect::<Option<_>>()?;
    let tree = trees.into_iter().reduce(|base, over| merge::lay_over(Level::File, base, over))?;
    completed(reader, tree, &mut Vec::new())
}

fn parse(reader: &Reader<'_>, at: Mark, name: &str, scope: Scope, text: &str) -> Option<Node> {
    let number = reader.add_file(name, scope);
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

/// Reads the file that a value names, with paths beside it and the variables of the file that names it if nothing else is
/// said.
fn named(reader: &Reader<'_>, node: &Node, scope: Option<Scope>) -> Option<Node> {
    let path = reader.text(node)?;
    let Some(text) = reader.ok(node.mark, reader.read(node.mark, &path))? else {
        reader.fault(node.mark, format!("there is no file {path}"));
        return None;
    };
    let place = reader.resolve(node.mark, &path);
    let beside = || Scope { folder: above(&place).to_owned(), variables: reader.variables(node.mark) };
    let scope = scope.unwrap_or_else(beside);
    parse(reader, node.mark, &place, scope, &text)
}

/// The folder that a file is in; empty: where its path begins.
fn above(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| if folder.is_empty() { "/" } else { folder })
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
        let (mut paths, mut directory, mut env_files) = (None, None, None);
        if let Value::Mapping(_) = item.value {
            for (key, value) in reader.entries(item, keys::INCLUDE)? {
                match key.text.as_str() {
                    "project_directory" => directory = Some(value),
                    "env_file" => env_files = Some(value),
                    _ => paths = Some(value),
                }
            }
        } else {
            paths = Some(item);
        }
        let paths = paths.map_or(Some([].as_slice()), |paths| reader.one_or_many(paths))?;
        let Some(first) = paths.first() else {
            reader.fault(item.mark, "`path` is missing");
            continue;
        };
        let scope = scope(reader, first, directory, env_files)?;
        let mut part: Option<Node> = None;
        let depth = open.len();
        for path in paths {
            let place = reader.resolve(path.mark, &reader.text(path)?);
            if open.contains(&place) {
                reader.fault(path.mark, format!("{place} includes itself"));
                return None;
            }
            open.push(place);
            let tree = named(reader, path, Some(scope.clone()))?;
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

/// What included files are read with: paths from `directory`, or the folder of the first of them; and variables from
/// `env_files`, or `.env` in that folder, where the file that includes them has none.
fn scope(
    reader: &Reader<'_>,
    first: &Node,
    directory: Option<&Node>,
    env_files: Option<&Node>,
) -> Option<Scope> {
    let mark = first.mark;
    let directory = match directory {
        Some(node) => reader.text(node)?.trim_end_matches('/').to_owned(),
        None => above(&reader.text(first)?).to_owned(),
    };
    let directory = if directory == "." { String::new() } else { directory };
    let (files, required) = match env_files {
        Some(node) => {
            let texts = reader.one_or_many(node)?.iter().map(|node| reader.text(node));
            let mut files = texts.collect::<Option<Vec<_>>>()?;
            // As people write that there is none.
            files.retain(|file| file != "/dev/null");
            (files, true)
        }
        // In the same folder it is that of the file which includes these.
        None if directory.is_empty() => (Vec::new(), false),
        None => (vec![format!("{directory}/.env")], false),
    };
    let mut variables = BTreeMap::new();
    for file in files {
        variables.extend(service::variables(reader, mark, &file, required, false)?);
    }
    let outside = reader.scope(mark);
    variables.extend(outside.variables.iter().map(|(name, value)| (name.clone(), value.clone())));
    let folder = if directory.is_empty() { outside.folder } else { reader.resolve(mark, &directory) };
    Some(Scope { folder, variables: Rc::new(variables) })
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
                None => named(reader, file, None)?,
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
