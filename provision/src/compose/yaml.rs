//! YAML with the place of every key and value, so that each fault can name its line.
//!
//! YAML 1.2 core schema, with anchors, aliases and merge keys (`<<`). Refused: duplicate keys,
//! several documents, tags other than the core schema's, and files that grow without measure by
//! aliases.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Tag};

use super::Fault;

/// The deepest nesting read; Compose files need about eight levels.
const MAX_DEPTH: usize = 64;

/// The most nodes after aliases are expanded: far more than any real file has, far fewer than a
/// "billion laughs" file asks for.
const MAX_NODES: usize = 100_000;

/// A place in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Mark {
    /// The number of the file, from 0, in the order in which they were read.
    pub file: usize,
    /// The line, from 1.
    pub line: usize,
    /// The column, in characters from 1.
    pub column: usize,
}

/// A value and where it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Where it starts.
    pub mark: Mark,
    /// What it is.
    pub value: Value,
    /// What becomes of it when it is laid over another file's.
    pub overlay: Overlay,
}

/// What becomes of a value that is laid over another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overlay {
    /// They are merged.
    #[default]
    Merge,
    /// It replaces the other (`!override`).
    Replace,
    /// Both are as if they were not there (`!reset`).
    Reset,
}

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A scalar.
    Scalar(Scalar),
    /// A list.
    Sequence(Vec<Node>),
    /// A map in the order of the file, without duplicates.
    Mapping(Vec<(Key, Node)>),
}

/// A scalar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scalar {
    /// Its text.
    pub text: String,
    /// Whether it stood without quotes and may therefore be a number, a boolean or null.
    pub plain: bool,
}

/// A map's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Where it starts.
    pub mark: Mark,
    /// Its text.
    pub text: String,
}

/// What a scalar is by the core schema (YAML 1.2.2, section 10.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// Nothing.
    Null,
    /// `true` or `false`.
    Boolean,
    /// An integer or a float.
    Number,
    /// Anything else.
    Text,
}

impl Scalar {
    /// What it is by the core schema.
    pub fn kind(&self) -> Type {
        if !self.plain {
            return Type::Text;
        }
        match self.text.as_str() {
            "" | "~" | "null" | "Null" | "NULL" => Type::Null,
            "true" | "True" | "TRUE" | "false" | "False" | "FALSE" => Type::Boolean,
            text if is_number(text) => Type::Number,
            _ => Type::Text,
        }
    }
}

fn is_number(text: &str) -> bool {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let digits = |text: &str, radix| !text.is_empty() && text.chars().all(|c| c.is_digit(radix));
    if let Some(rest) = text.strip_prefix("0x") {
        return digits(rest, 16);
    }
    if let Some(rest) = text.strip_prefix("0o") {
        return digits(rest, 8);
    }
    unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && unsigned.contains(|c: char| c.is_ascii_digit())
        && unsigned.chars().all(|c| c.is_ascii_digit() || ".eE+-".contains(c))
        && unsigned.parse::<f64>().is_ok()
}

impl Node {
    /// Nothing, at a place.
    pub(super) fn null(mark: Mark) -> Self {
        let value = Value::Scalar(Scalar { text: String::new(), plain: true });
        Self { mark, value, overlay: Overlay::Merge }
    }

    /// What a map has under a key.
    pub(crate) fn get(&self, name: &str) -> Option<&Self> {
        let Value::Mapping(entries) = &self.value else { return None };
        entries.iter().find(|(key, _)| key.text == name).map(|(_, node)| node)
    }

    /// Whether it is null.
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(scalar) if scalar.kind() == Type::Null)
    }

    /// Whether it is `false`.
    pub(super) fn is_false(&self) -> bool {
        matches!(&self.value, Value::Scalar(scalar) if scalar.plain && scalar.text == "false")
    }

    /// What it is, for messages.
    pub fn describe(&self) -> &'static str {
        match &self.value {
            Value::Sequence(_) => "a list",
            Value::Mapping(_) => "a map",
            Value::Scalar(scalar) => match scalar.kind() {
                Type::Null => "nothing",
                Type::Boolean => "a boolean",
                Type::Number => "a number",
                Type::Text => "text",
            },
        }
    }

    /// How many nodes it is made of.
    fn size(&self) -> usize {
        1 + match &self.value {
            Value::Scalar(_) => 0,
            Value::Sequence(items) => items.iter().map(Node::size).sum(),
            Value::Mapping(entries) => entries.iter().map(|(_, node)| 1 + node.size()).sum(),
        }
    }
}

/// Reads the one document of `text`, the file with the number `file`; `None` when there is nothing in it.
///
/// # Errors
/// The first fault, with its place.
pub fn parse(text: &str, file: usize) -> Result<Option<Node>, Fault> {
    let parser = Parser::new_from_str(text);
    let mut builder = Builder { parser, file, anchors: BTreeMap::new(), nodes: 0 };
    builder.document()
}

struct Builder<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    file: usize,
    anchors: BTreeMap<usize, Node>,
    nodes: usize,
}

impl<'a> Builder<'a> {
    fn mark(&self, at: &Marker) -> Mark {
        Mark { file: self.file, line: at.line(), column: at.col() + 1 }
    }

    fn next(&mut self) -> Result<(Event<'a>, Mark), Fault> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, self.mark(&span.start))),
            Some(Err(error)) => {
                let at = self.mark(error.marker());
                Err(Fault::new(at, format!("this is not YAML: {}", error.info())))
            }
            None => Ok((Event::StreamEnd, Mark::default())),
        }
    }

    fn document(&mut self) -> Result<Option<Node>, Fault> {
        let mut root = None;
        loop {
            let (event, at) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(root),
                Event::DocumentStart(_) if root.is_some() => {
                    return Err(Fault::new(at, "a second document starts here; a Compose file has one"));
                }
                Event::DocumentStart(_) => {
                    let (event, at) = self.next()?;
                    root = Some(self.node(event, at, 0)?);
                }
                _ => {}
            }
        }
    }

    fn count(&mut self, nodes: usize, at: Mark) -> Result<(), Fault> {
        self.nodes += nodes;
        if self.nodes > MAX_NODES {
            return Err(Fault::new(
                at,
                format!("the file has more than {MAX_NODES} values, aliases included"),
            ));
        }
        Ok(())
    }

    fn node(&mut self, event: Event<'a>, at: Mark, depth: usize) -> Result<Node, Fault> {
        if depth > MAX_DEPTH {
            return Err(Fault::new(at, format!("this is nested more than {MAX_DEPTH} levels deep")));
        }
        let mut overlay = Overlay::Merge;
        let mut is_text = |tag: Option<&Tag>| is_text_tag(tag, at, &mut overlay);
        let (anchor, value) = match event {
            Event::Alias(id) => {
                let Some(node) = self.anchors.get(&id).cloned() else {
                    return Err(Fault::new(at, "this alias is inside of what it stands for"));
                };
                self.count(node.size(), at)?;
                return Ok(node);
            }
            Event::Scalar(text, style, anchor, tag) => {
                let text_tag = is_text(tag.as_deref())?;
                let plain = style == ScalarStyle::Plain && !text_tag;
                (anchor, Value::Scalar(Scalar { text: text.into_owned(), plain }))
            }
            Event::SequenceStart(anchor, tag) => {
                is_text(tag.as_deref())?;
                (anchor, self.sequence(depth)?)
            }
            Event::MappingStart(anchor, tag) => {
                is_text(tag.as_deref())?;
                (anchor, self.mapping(depth)?)
            }
            _ => return Err(Fault::new(at, "this is not YAML: a value was expected")),
        };
        self.count(1, at)?;
        let node = Node { mark: at, value, overlay };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn sequence(&mut self, depth: usize) -> Result<Value, Fault> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Value::Sequence(items)),
                (event, at) => items.push(self.node(event, at, depth + 1)?),
            }
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<Value, Fault> {
        let mut own: Vec<(Key, Node)> = Vec::new();
        let mut merged: Vec<(Key, Node)> = Vec::new();
        loop {
            let (event, at) = self.next()?;
            if event == Event::MappingEnd {
                break;
            }
            let key = match self.node(event, at, depth + 1)?.value {
                Value::Scalar(scalar) => Key { mark: at, text: scalar.text },
                _ => return Err(Fault::new(at, "a key must be a word")),
            };
            let (event, at) = self.next()?;
            let node = self.node(event, at, depth + 1)?;
            if key.text == "<<" {
                merge(node, &mut merged)?;
                continue;
            }
            if let Some((first, _)) = own.iter().find(|(other, _)| other.text == key.text) {
                let line = first.mark.line;
                let message = format!("`{}` is there already, in line {line}; remove one of them", key.text);
                return Err(Fault::new(key.mark, message));
            }
            own.push((key, node));
        }
        for (key, node) in merged {
            if !own.iter().any(|(other, _)| other.text == key.text) {
                own.push((key, node));
            }
        }
        Ok(Value::Mapping(own))
    }
}

/// Adds the entries of a merge key's value: a map, or a list of maps of which the first wins.
fn merge(node: Node, merged: &mut Vec<(Key, Node)>) -> Result<(), Fault> {
    match node.value {
        Value::Mapping(entries) => {
            merged.extend(entries);
            Ok(())
        }
        Value::Sequence(items) => items.into_iter().try_for_each(|item| match item.value {
            Value::Mapping(entries) => {
                merged.extend(entries);
                Ok(())
            }
            _ => Err(Fault::new(item.mark, "`<<` merges maps only")),
        }),
        Value::Scalar(_) => Err(Fault::new(node.mark, "`<<` merges maps only")),
    }
}

/// Whether the tag says that a scalar is text whatever it looks like. Takes note of Compose's own tags.
fn is_text_tag(tag: Option<&Tag>, at: Mark, overlay: &mut Overlay) -> Result<bool, Fault> {
    match tag {
        None => Ok(false),
        Some(tag) if tag.handle == "!" && matches!(tag.suffix.as_str(), "reset" | "override") => {
            *overlay = if tag.suffix == "reset" { Overlay::Reset } else { Overlay::Replace };
            Ok(false)
        }
        Some(tag) if tag.is_yaml_core_schema() => Ok(tag.suffix == "str"),
        Some(tag) => Err(Fault::new(at, format!("the tag {tag} is not supported; remove it"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(text: &str) -> Vec<(Key, Node)> {
        match parse(text, 0).unwrap().unwrap().value {
            Value::Mapping(entries) => entries,
            other => panic!("{other:?}"),
        }
    }

    fn fault(text: &str) -> (usize, String) {
        let fault = parse(text, 0).unwrap_err();
        (fault.mark.line, fault.message)
    }

    #[test]
    fn keys_and_values_know_their_places() {
        let map = entries("a: 1\nlist:\n  - x\n  - {k: v}\n");
        let at = |line, column| Mark { file: 0, line, column };
        assert_eq!(map[0].0.mark, at(1, 1));
        assert_eq!(map[0].1.mark, at(1, 4));
        let Value::Sequence(items) = &map[1].1.value else { panic!() };
        assert_eq!(items[0].mark, at(3, 5));
        let Value::Mapping(inner) = &items[1].value else { panic!() };
        assert_eq!(inner[0].0.mark, at(4, 6));
    }

    #[test]
    fn merge_keys_fill_in_what_is_not_said() {
        let map = entries("base: &base {a: 1, b: 2}\nuse:\n  <<: *base\n  b: 3\n");
        let Value::Mapping(used) = &map[1].1.value else { panic!() };
        let texts: Vec<_> = used
            .iter()
            .map(|(key, node)| match &node.value {
                Value::Scalar(scalar) => format!("{}={}", key.text, scalar.text),
                _ => panic!(),
            })
            .collect();
        assert_eq!(texts, ["b=3", "a=1"]);
    }

    #[test]
    fn faults_name_their_line() {
        assert_eq!(fault("a: 1\nb: 2\na: 3\n").0, 3);
        assert!(fault("a: 1\na: 3\n").1.contains("line 1"));
        assert_eq!(fault("a: [1\nb: 2\n").0, 2);
        assert_eq!(fault("a: 1\n---\nb: 2\n").0, 2);
        assert_eq!(fault("a: !reserved null\n").0, 1);
        assert_eq!(fault("a: &a [*a]\n").0, 1);
        assert_eq!(fault("a: 1\n<<: 2\n").0, 2);
        assert_eq!(fault("a: *nobody\n").0, 1);
    }

    #[test]
    fn a_file_that_explodes_by_aliases_or_depth_is_refused() {
        let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..12 {
            let alias = format!("*a{}, ", n - 1).repeat(9);
            laughs.push_str(&format!("a{n}: &a{n} [{}]\n", alias.trim_end_matches(", ")));
        }
        assert!(fault(&laughs).1.contains("aliases"));
        assert!(fault(&format!("{}{}", "[".repeat(100), "]".repeat(100))).1.contains("deep"));
    }

    #[test]
    fn scalars_have_the_types_of_the_core_schema() {
        let kind = |text: &str| Scalar { text: text.into(), plain: true }.kind();
        for text in ["1", "-1", "1.5", "1e3", "0x1F", "0o17", ".5"] {
            assert_eq!(kind(text), Type::Number, "{text}");
        }
        for text in ["yes", "1.2.3", "10.0.0.1", "1m", "-", "8080:80", "+", "e", "0xg", "."] {
            assert_eq!(kind(text), Type::Text, "{text}");
        }
        assert_eq!((kind("~"), kind("true")), (Type::Null, Type::Boolean));
        assert_eq!(Scalar { text: "1".into(), plain: false }.kind(), Type::Text);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "[-a-z0-9:{}\\[\\]&*<>!|'\" \n#,?%@`]{0,200}") {
            let _ = parse(&text, 0);
        }
    }
}
