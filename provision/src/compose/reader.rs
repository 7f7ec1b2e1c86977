//! Reads values of the types a Compose file may have, and collects faults.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use hivemind_spec::document::is_dns_label;

use super::interpolate::interpolate;
use super::keys::{Row, may_be_false, refusal};
use super::yaml::{Key, Mark, Node, Scalar, Type, Value};
use super::{Fault, Paths, Surroundings};

/// Faults reported of one file: a file with more has one cause, and nobody reads on.
const MAX_FAULTS: usize = 50;

/// Reads values and remembers what was wrong; a `None` means that a fault was recorded.
pub(super) struct Reader<'a> {
    pub(super) surroundings: &'a Surroundings<'a>,
    /// Those of the project.
    variables: Rc<Variables>,
    files: RefCell<Vec<File>>,
    faults: RefCell<Vec<Fault>>,
    warnings: RefCell<Vec<Fault>>,
}

/// Values of variables by name.
pub(super) type Variables = BTreeMap<String, String>;

/// What a file's values are read with.
#[derive(Debug, Clone)]
pub(super) struct Scope {
    /// Where the paths in it begin, from the project's folder; empty: there.
    pub(super) folder: String,
    /// What its variables are.
    pub(super) variables: Rc<Variables>,
}

/// A file that is read.
struct File {
    name: String,
    scope: Scope,
}

impl<'a> Reader<'a> {
    pub(super) fn new(surroundings: &'a Surroundings<'a>) -> Self {
        let (files, variables) = (RefCell::default(), Rc::new(surroundings.variables.clone()));
        Self { surroundings, variables, files, faults: RefCell::default(), warnings: RefCell::default() }
    }

    /// Takes note of a file, and gives its number for [`Mark::file`].
    pub(super) fn add_file(&self, name: &str, scope: Scope) -> usize {
        let mut files = self.files.borrow_mut();
        files.push(File { name: name.to_owned(), scope });
        files.len() - 1
    }

    /// What the file of `mark` is read with; the project's own of no file.
    pub(super) fn scope(&self, mark: Mark) -> Scope {
        let own = || Scope { folder: String::new(), variables: Rc::clone(&self.variables) };
        self.files.borrow().get(mark.file).map_or_else(own, |file| file.scope.clone())
    }

    /// What the variables are in the file of `mark`.
    pub(super) fn variables(&self, mark: Mark) -> Rc<Variables> {
        self.scope(mark).variables
    }

    /// A path in the file of `mark`, seen from the project's folder.
    pub(super) fn resolve(&self, mark: Mark, path: &str) -> String {
        let path = path.strip_prefix("./").unwrap_or(path);
        match self.scope(mark).folder {
            folder if !folder.is_empty() && !path.starts_with('/') => format!("{folder}/{path}"),
            _ => path.to_owned(),
        }
    }

    /// The text of the file that a value at `mark` names; `None` when there is none.
    pub(super) fn read(&self, mark: Mark, path: &str) -> Result<Option<String>, String> {
        (self.surroundings.read)(&self.resolve(mark, path))
    }

    /// The files in the folder that a value at `mark` names; `None` when it is none.
    pub(super) fn list(&self, mark: Mark, path: &str) -> Result<Option<Paths>, String> {
        (self.surroundings.list)(&self.resolve(mark, path))
    }

    /// The faults and the warnings, each once, in the order of the files.
    pub(super) fn finish(&self) -> (Vec<Fault>, Vec<Fault>) {
        let sorted = |list: &RefCell<Vec<Fault>>| {
            let mut list = list.take();
            list.sort();
            list.dedup();
            list.truncate(MAX_FAULTS);
            for fault in &mut list {
                fault.file = self
                    .files
                    .borrow()
                    .get(fault.mark.file)
                    .map(|file| file.name.clone())
                    .unwrap_or_default();
            }
            list
        };
        (sorted(&self.faults), sorted(&self.warnings))
    }

    pub(super) fn fault(&self, mark: Mark, message: impl Into<String>) {
        self.faults.borrow_mut().push(Fault::new(mark, message));
    }

    pub(super) fn warn(&self, mark: Mark, message: impl Into<String>) {
        self.warnings.borrow_mut().push(Fault::new(mark, message));
    }

    /// A document's name made from one of the file's: lower case, and a hyphen for an underscore or a dot.
    pub(super) fn fitted(&self, mark: Mark, name: &str, what: &str) -> String {
        let fitted = fitted(name);
        if !is_dns_label(&fitted) {
            let rule = "use 1 to 63 letters, digits, hyphens and underscores; `name` gives it one";
            self.fault(mark, format!("{name:?} cannot name {what}; {rule}"));
        }
        fitted
    }

    /// `value`, or a fault at `mark`.
    pub(super) fn ok<T>(&self, mark: Mark, value: Result<T, String>) -> Option<T> {
        value.map_err(|message| self.fault(mark, message)).ok()
    }

    fn wrong_type<T>(&self, node: &Node, wanted: &str) -> Option<T> {
        self.fault(node.mark, format!("this is {}, but must be {wanted}", node.describe()));
        None
    }

    /// A map's entries.
    pub(super) fn mapping<'n>(&self, node: &'n Node) -> Option<&'n [(Key, Node)]> {
        match &node.value {
            Value::Mapping(entries) => Some(entries),
            _ => self.wrong_type(node, "a map"),
        }
    }

    /// A map's entries whose keys are honoured; the others are faults, except `x-` ones.
    pub(super) fn entries<'n>(&self, node: &'n Node, table: &[Row]) -> Option<Vec<(&'n Key, &'n Node)>> {
        let mut honoured = Vec::new();
        for (key, value) in self.mapping(node)? {
            if key.text.starts_with("x-") {
                continue;
            }
            match refusal(table, &key.text) {
                Some(_) if may_be_false(table, &key.text) && value.is_false() => {}
                Some(reason) => self.fault(key.mark, reason),
                None => honoured.push((key, value)),
            }
        }
        Some(honoured)
    }

    /// A list's items.
    pub(super) fn sequence<'n>(&self, node: &'n Node) -> Option<&'n [Node]> {
        match &node.value {
            Value::Sequence(items) => Some(items),
            _ => self.wrong_type(node, "a list"),
        }
    }

    /// A list's items, or the one that stands without a list.
    pub(super) fn one_or_many<'n>(&self, node: &'n Node) -> Option<&'n [Node]> {
        match &node.value {
            Value::Scalar(_) => Some(std::slice::from_ref(node)),
            _ => self.sequence(node),
        }
    }

    /// A scalar with its variables replaced.
    pub(super) fn scalar(&self, node: &Node, wanted: &str) -> Option<Scalar> {
        let Value::Scalar(scalar) = &node.value else { return self.wrong_type(node, wanted) };
        let replaced = self.ok(node.mark, interpolate(&scalar.text, &self.variables(node.mark)))?;
        for name in replaced.unset {
            self.warn(node.mark, format!("the variable {name} is not set and became nothing"));
        }
        Some(Scalar { text: replaced.text, plain: scalar.plain })
    }

    /// Text; a number, a boolean or nothing is a fault.
    pub(super) fn text(&self, node: &Node) -> Option<String> {
        let scalar = self.scalar(node, "text")?;
        match scalar.kind() {
            Type::Text => Some(scalar.text),
            // A variable that gives digits is still text: nobody can quote what is not there yet.
            _ if matches!(&node.value, Value::Scalar(raw) if raw.text != scalar.text) => Some(scalar.text),
            Type::Null => self.wrong_type(node, "text"),
            _ => self.wrong_type(node, "text; put it in quotes"),
        }
    }

    /// Text or a number, as text.
    pub(super) fn text_or_number(&self, node: &Node, wanted: &str) -> Option<String> {
        let scalar = self.scalar(node, wanted)?;
        match scalar.kind() {
            Type::Text | Type::Number => Some(scalar.text),
            Type::Null | Type::Boolean => self.wrong_type(node, wanted),
        }
    }

    /// Text, a number or a boolean as text, or nothing.
    pub(super) fn any_scalar(&self, node: &Node) -> Option<Option<String>> {
        let scalar = self.scalar(node, "text, a number or a boolean")?;
        Some((scalar.kind() != Type::Null).then_some(scalar.text))
    }

    /// A boolean.
    pub(super) fn boolean(&self, node: &Node) -> Option<bool> {
        match self.scalar(node, "true or false")?.text.to_ascii_lowercase().as_str() {
            "true" => Some(true),
            "false" => Some(false),
            _ => self.wrong_type(node, "true or false"),
        }
    }

    /// A whole number within a range.
    pub(super) fn integer(&self, node: &Node, least: i64, most: i64) -> Option<i64> {
        let text = self.text_or_number(node, "a whole number")?;
        let number = text.trim().parse::<i64>().map_err(|_| format!("{text:?} is not a whole number"));
        let number = self.ok(node.mark, number)?;
        if (least..=most).contains(&number) {
            return Some(number);
        }
        self.fault(node.mark, format!("{number} is out of range; use {least} to {most}"));
        None
    }

    /// A duration in milliseconds.
    pub(super) fn duration_ms(&self, node: &Node) -> Option<u64> {
        let text = self.text_or_number(node, "a duration")?;
        self.ok(node.mark, crate::quantity::duration_ms(&text))
    }

    /// A size in bytes, more than 0.
    pub(super) fn size_bytes(&self, node: &Node) -> Option<u64> {
        let text = self.text_or_number(node, "a size")?;
        match self.ok(node.mark, crate::quantity::size_bytes(&text))? {
            0 => {
                self.fault(node.mark, "a size of 0: it must be more");
                None
            }
            bytes => Some(bytes),
        }
    }

    /// A number of CPUs in thousandths, more than 0.
    pub(super) fn cpu_millis(&self, node: &Node) -> Option<u64> {
        let text = self.text_or_number(node, "a number of CPUs")?;
        self.ok(node.mark, crate::quantity::cpu_millis(&text))
    }

    /// A DNS label.
    pub(super) fn label(&self, node: &Node, what: &str) -> Option<String> {
        let text = self.text(node)?;
        if is_dns_label(&text) {
            return Some(text);
        }
        self.fault(
            node.mark,
            format!("{text:?} cannot be {what}; use 1 to 63 lower-case letters, digits and hyphens"),
        );
        None
    }

    /// One of several words.
    pub(super) fn word<T: Copy>(&self, node: &Node, words: &[(&str, T)]) -> Option<T> {
        let list = words.iter().map(|(word, _)| format!("`{word}`")).collect::<Vec<_>>().join(", ");
        let scalar = self.scalar(node, &format!("one of {list}"))?;
        let found = words.iter().find(|(word, _)| *word == scalar.text);
        if found.is_none() {
            self.fault(node.mark, format!("{:?} is not one of {list}", scalar.text));
        }
        found.map(|(_, value)| *value)
    }

    /// A command: a list of texts, or one text that is split as a shell does.
    pub(super) fn command(&self, node: &Node) -> Option<Vec<String>> {
        if let Value::Sequence(items) = &node.value {
            return items.iter().map(|item| self.text_or_number(item, "text")).collect();
        }
        let text = self.text(node)?;
        let words = shlex::split(&text);
        self.ok(node.mark, words.ok_or_else(|| format!("{text:?}: a quote is not closed")))
    }

    /// `NAME: VALUE` pairs as a map, or as a list of `NAME=VALUE`; a value may be absent.
    pub(super) fn pairs(&self, node: &Node) -> Option<Vec<(Mark, String, Option<String>)>> {
        if let Value::Mapping(entries) = &node.value {
            let value =
                |(key, node): &(Key, Node)| Some((key.mark, key.text.clone(), self.any_scalar(node)?));
            return entries.iter().map(value).collect();
        }
        let items = self.sequence(node)?;
        let pair = |item: &Node| {
            let text = self.text(item)?;
            Some(match text.split_once('=') {
                Some((name, value)) => (item.mark, name.to_owned(), Some(value.to_owned())),
                None => (item.mark, text, None),
            })
        };
        items.iter().map(pair).collect()
    }
}

/// A name of DNS made from one of a Compose file, if that is possible.
pub(crate) fn fitted(name: &str) -> String {
    name.to_ascii_lowercase().replace(['_', '.'], "-")
}
