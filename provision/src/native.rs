//! Native documents, as YAML or JSON: what `hivemind convert` prints, for those who want to write them by hand or by
//! program. Several in a file are separated by `---`, or are the list `items`.

use std::collections::BTreeSet;

use hivemind_spec::document::{Document, Kind};
use serde_json::{Map, Number, Value as Json};

use crate::compose::yaml::{self, Key, Mark, Node, Overlay, Scalar, Type, Value};
use crate::compose::{Fault, Input};

/// The kinds that are pushed from files; others have commands of their own.
const KINDS: [Kind; 2] = [Kind::Workload, Kind::Volume];

/// Whether a file has native documents and is no Compose file.
pub fn is_native(text: &str) -> bool {
    let first = parts(text).into_iter().find_map(|part| yaml::parse(&part, 0).ok().flatten());
    let first = first.as_ref();
    let has = |name| first.is_some_and(|node| node.get(name).is_some());
    has("apiVersion") || has("items") && !has("services")
}

/// The documents of files, with revision 0, in the order they stand in. Those that name no namespace get this one.
///
/// # Errors
/// All faults; at least one.
pub fn documents(inputs: &[Input], namespace: &str) -> Result<Vec<Document>, Vec<Fault>> {
    let (mut documents, mut faults) = (Vec::new(), Vec::new());
    let mut names = BTreeSet::new();
    for (number, input) in inputs.iter().enumerate() {
        for node in nodes(&input.text, number) {
            match node.and_then(|node| Ok((document(&node, namespace)?, node.mark))) {
                Ok((document, _)) if names.insert(document.key()) => documents.push(document),
                Ok((document, at)) => {
                    faults.push(Fault::new(at, format!("{} is there twice", document.key())));
                }
                Err(fault) => faults.push(fault),
            }
        }
        for fault in faults.iter_mut().filter(|fault| fault.mark.file == number) {
            fault.file.clone_from(&input.name);
        }
    }
    if documents.is_empty() && faults.is_empty() {
        faults.push(Fault::new(Mark::default(), "there is no document"));
    }
    if faults.is_empty() { Ok(documents) } else { Err(faults) }
}

/// What stands for a document in a file: each of its stream, and in its place each of its list.
fn nodes(text: &str, file: usize) -> Vec<Result<Node, Fault>> {
    let mut nodes = Vec::new();
    for part in parts(text) {
        match yaml::parse(&part, file).transpose() {
            None => {}
            Some(Ok(Node { value: Value::Mapping(entries), .. })) if has_items(&entries) => {
                let items = entries.into_iter().filter(|(key, _)| key.text == "items");
                for (_, items) in items {
                    match items.value {
                        Value::Sequence(items) => nodes.extend(items.into_iter().map(Ok)),
                        _ => nodes.push(Err(Fault::new(items.mark, "`items` must be a list"))),
                    }
                }
            }
            Some(node) => nodes.push(node),
        }
    }
    nodes
}

fn has_items(entries: &[(Key, Node)]) -> bool {
    entries.iter().any(|(key, _)| key.text == "items")
}

/// The documents of a stream (YAML 1.2.2, section 9.1.4), each with as many lines before it as there were.
fn parts(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    for (number, line) in text.lines().enumerate() {
        if line.trim_end() == "---" {
            parts.push("\n".repeat(number));
        }
        if let Some(part) = parts.last_mut() {
            part.push_str(if line.trim_end() == "---" { "" } else { line });
            part.push('\n');
        }
    }
    parts.retain(|part| part.lines().any(|line| !line.trim().is_empty() && !line.starts_with('#')));
    parts
}

fn document(node: &Node, namespace: &str) -> Result<Document, Fault> {
    let mut json = json(node)?;
    let kind = node.get("kind");
    let is_known = |kind: &Json| KINDS.iter().any(|known| *kind == known.to_string());
    if let (Some(at), Some(kind)) = (kind, json.get("kind"))
        && !is_known(kind)
    {
        let text = format!("{kind} is not pushed from a file; `Workload` and `Volume` are");
        return Err(Fault::new(at.mark, text));
    }
    if let Some(Json::Object(metadata)) = json.get_mut("metadata") {
        // It is given when the document is pushed.
        metadata.insert("revision".to_owned(), 0.into());
        metadata.entry("namespace").or_insert_with(|| namespace.into());
        if metadata["namespace"] != namespace {
            let at = node.get("metadata").and_then(|metadata| metadata.get("namespace")).unwrap_or(node);
            let text = format!("the document is in another namespace than {namespace}; push it with -n");
            return Err(Fault::new(at.mark, text));
        }
    }
    Document::parse(json.to_string().as_bytes())
        .map_err(|error| Fault::new(place(node, &error.pointer), error.message))
}

/// Where a JSON pointer (RFC 6901) leads, or as far as it does.
fn place(node: &Node, pointer: &str) -> Mark {
    let mut at = node;
    for part in pointer.split('/').skip(1) {
        let name = part.replace("~1", "/").replace("~0", "~");
        let next = match &at.value {
            Value::Sequence(items) => name.parse().ok().and_then(|index: usize| items.get(index)),
            _ => at.get(&name),
        };
        match next {
            Some(next) => at = next,
            None => break,
        }
    }
    at.mark
}

fn json(node: &Node) -> Result<Json, Fault> {
    if node.overlay != Overlay::Merge {
        return Err(Fault::new(node.mark, "tags are for Compose files"));
    }
    Ok(match &node.value {
        Value::Scalar(scalar) => self::scalar(scalar),
        Value::Sequence(items) => Json::Array(items.iter().map(json).collect::<Result<_, _>>()?),
        Value::Mapping(entries) => {
            let entry = |(key, node): &(Key, Node)| Ok((key.text.clone(), json(node)?));
            Json::Object(entries.iter().map(entry).collect::<Result<Map<_, _>, Fault>>()?)
        }
    })
}

fn scalar(scalar: &Scalar) -> Json {
    let text = scalar.text.as_str();
    match scalar.kind() {
        Type::Null => Json::Null,
        Type::Boolean => Json::Bool(text.eq_ignore_ascii_case("true")),
        // What JSON cannot write as a number, as `0x10`, no document has as one.
        Type::Number => serde_json::from_str::<Number>(text).map_or_else(|_| text.into(), Json::Number),
        Type::Text => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Vec<Document>, Vec<(usize, String)>> {
        let input = Input { name: "app.yaml".to_owned(), text: text.to_owned() };
        let told = |faults: Vec<Fault>| faults.into_iter().map(|f| (f.mark.line, f.message)).collect();
        documents(&[input], "shop").map_err(told)
    }

    const WEB: &str = "apiVersion: hivemind/v1\nkind: Workload\nmetadata: {name: web}\nspec:\n  replicas: 2\n  \
                       container:\n    image: registry.test/web:1\n    env: {PORT: '80'}\n";

    #[test]
    fn documents_are_read_from_a_stream_from_a_list_and_as_json() {
        let one = of(WEB).unwrap();
        assert_eq!((one[0].metadata.namespace.as_str(), one[0].workload().unwrap().replicas), ("shop", 2));
        let json = String::from_utf8(one[0].to_json()).unwrap();
        let list = format!("{{\"items\": [{json}]}}");
        let stream = format!("# two\n---\n{WEB}---\n{}", json.replace("\"web\"", "\"other\""));
        assert!(is_native(WEB) && is_native(&json) && is_native(&list) && is_native(&stream));
        assert_eq!(of(&json).unwrap(), one);
        assert_eq!(of(&list).unwrap(), one);
        let names: Vec<_> = of(&stream).unwrap().into_iter().map(|document| document.metadata.name).collect();
        assert_eq!(names, ["web", "other"]);
        assert!(!is_native("services:\n  web:\n    image: a\n") && !is_native("{") && !is_native(""));
    }

    #[test]
    fn faults_in_documents_are_told_with_their_lines() {
        for (text, line, wanted) in [
            (WEB.replace("replicas: 2", "replicas: many"), 5, "invalid type"),
            (WEB.replace("image:", "imagee:"), 7, "unknown field"),
            (WEB.replace("PORT: '80'", "PORT: 80"), 8, "invalid type"),
            (WEB.replace("name: web", "name: web, namespace: other"), 3, "another namespace"),
            (WEB.replace("name: web", "name: We b"), 3, "not a valid name"),
            (WEB.replace("Workload", "Key"), 2, "is not pushed from a file"),
            (WEB.replace("hivemind/v1", "v9"), 1, "is not known here"),
            (format!("{WEB}---\n{WEB}"), 10, "is there twice"),
            ("apiVersion: [".to_owned(), 2, "not YAML"),
            ("---\n".to_owned(), 0, "there is no document"),
        ] {
            let faults = of(&text).unwrap_err();
            let found = faults.iter().any(|(at, told)| told.contains(wanted) && *at == line);
            assert!(found, "{text}\n{faults:?}");
        }
    }
}
