//! From text to a checked [`MachineConfig`] and back. Every fault carries its place.

use std::fmt;
use std::ops::Range;

use serde_path_to_error::Segment as PathSegment;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{FILE_NAME, MAX_BYTES, MachineConfig, check};

/// What kind of fault a machine configuration has. The text form is stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigCode {
    /// The file is over [`MAX_BYTES`].
    TooLarge,
    /// The file is not UTF-8 text.
    NotText,
    /// The text is not TOML.
    Syntax,
    /// A key nobody reads; most often a misspelling.
    UnknownKey,
    /// A key that must be there is not.
    MissingKey,
    /// A value has the wrong type.
    WrongType,
    /// A value has the right type and makes no sense.
    BadValue,
}

impl ConfigCode {
    /// The stable text form.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TooLarge => "config-too-large",
            Self::NotText => "config-not-text",
            Self::Syntax => "config-syntax",
            Self::UnknownKey => "config-unknown-key",
            Self::MissingKey => "config-missing-key",
            Self::WrongType => "config-wrong-type",
            Self::BadValue => "config-bad-value",
        }
    }
}

impl fmt::Display for ConfigCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is wrong with a machine configuration, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{FILE_NAME}:{line}:{column}: {}{message} ({code})", prefix(key))]
pub struct MachineConfigError {
    /// The kind of fault.
    pub code: ConfigCode,
    /// The line, counted from 1.
    pub line: usize,
    /// The column in characters, counted from 1.
    pub column: usize,
    /// The key's path, `network.gateway`; empty when the fault is not within one.
    pub key: String,
    /// What is wrong and what to do about it.
    pub message: String,
}

impl MachineConfigError {
    /// A fault that another part found in the value of `key` (`token.ca`) of a well-formed
    /// configuration, with the key's place in `text`.
    pub fn in_value(text: &str, key: &str, message: impl Into<String>) -> Self {
        let path: Vec<Segment> = key.split('.').map(|key| Segment::Key(key.to_owned())).collect();
        let tree = DeTable::parse(text).ok();
        let offset = tree.and_then(|tree| find(tree.get_ref(), &path)).map_or(0, |span| span.start);
        located(text, offset, ConfigCode::BadValue, key.to_owned(), message.into())
    }
}

fn prefix(key: &str) -> String {
    if key.is_empty() { String::new() } else { format!("`{key}`: ") }
}

impl MachineConfig {
    /// Reads and checks the text of a machine configuration.
    ///
    /// Not checked here: signatures and certificate chains, and that `cluster.id` is the hash of
    /// the root CA's key. Whoever uses those checks them.
    ///
    /// # Errors
    /// The first fault found, with its place.
    pub fn parse(text: &str) -> Result<Self, MachineConfigError> {
        if text.len() > MAX_BYTES {
            let message = format!("the file has {} bytes; at most {MAX_BYTES} are read", text.len());
            return Err(located(text, 0, ConfigCode::TooLarge, String::new(), message));
        }
        let tree = DeTable::parse(text).map_err(|error| syntax_error(text, &error))?;
        let deserializer = toml::Deserializer::parse(text).map_err(|error| syntax_error(text, &error))?;
        let config: Self = serde_path_to_error::deserialize(deserializer)
            .map_err(|error| shape_error(text, tree.get_ref(), &error))?;
        check::check(&config).map_err(|fault| {
            let offset = find(tree.get_ref(), &fault.path).map_or(0, |span| span.start);
            located(text, offset, ConfigCode::BadValue, fault.key(), fault.message)
        })?;
        Ok(config)
    }

    /// Like [`MachineConfig::parse`], from the bytes of a file.
    ///
    /// # Errors
    /// The first fault found, with its place.
    pub fn parse_bytes(bytes: &[u8]) -> Result<Self, MachineConfigError> {
        // The size first: text this long is not worth a scan for UTF-8.
        if bytes.len() > MAX_BYTES {
            let message = format!("the file has {} bytes; at most {MAX_BYTES} are read", bytes.len());
            return Err(located("", 0, ConfigCode::TooLarge, String::new(), message));
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::parse(text),
            Err(error) => {
                let valid = std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default();
                let message = "this byte is not UTF-8; save the file as UTF-8 text".to_owned();
                Err(located(valid, valid.len(), ConfigCode::NotText, String::new(), message))
            }
        }
    }

    /// The configuration as TOML, which [`MachineConfig::parse`] reads back to the same value.
    pub fn to_toml(&self) -> String {
        // Strings, addresses, lists of them and maps with string keys: TOML can say them all.
        #[allow(clippy::expect_used)]
        toml::to_string_pretty(self).expect("a machine configuration is expressible in TOML")
    }
}

fn syntax_error(text: &str, error: &toml::de::Error) -> MachineConfigError {
    let offset = error.span().map_or(0, |span| span.start);
    let message = format!("{}; correct the TOML here", error.message());
    located(text, offset, ConfigCode::Syntax, String::new(), message)
}

/// A fault of keys and types, as found by serde.
fn shape_error(
    text: &str,
    tree: &DeTable<'_>,
    error: &serde_path_to_error::Error<toml::de::Error>,
) -> MachineConfigError {
    let said = error.inner().message();
    let mut path: Vec<Segment> = error.path().iter().filter_map(Segment::of).collect();
    let quoted = said.split('`').nth(1).map(str::to_owned);
    let (code, message) = if said.starts_with("unknown field") {
        push_missing(&mut path, quoted);
        let known = said.split_once(", expected ").map_or("no keys", |(_, known)| known);
        (ConfigCode::UnknownKey, format!("unknown key; remove it or correct its name, known here: {known}"))
    } else if said.starts_with("missing field") {
        push_missing(&mut path, quoted);
        (ConfigCode::MissingKey, "this key is required; add it".to_owned())
    } else if said.starts_with("invalid type") {
        (ConfigCode::WrongType, format!("{said}; change the value"))
    } else {
        (ConfigCode::BadValue, format!("{said}; correct the value"))
    };
    let offset = find(tree, &path)
        .map(|span| span.start)
        .or_else(|| error.inner().span().map(|span| span.start))
        .unwrap_or(0);
    located(text, offset, code, check::join(&path), message)
}

/// Serde names the field in its message; its path ends there or one step before.
fn push_missing(path: &mut Vec<Segment>, key: Option<String>) {
    if let Some(key) = key
        && path.last() != Some(&Segment::Key(key.clone()))
    {
        path.push(Segment::Key(key));
    }
}

/// One step into the document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Segment {
    /// A table's key.
    Key(String),
    /// An array's element.
    Index(usize),
}

impl Segment {
    fn of(segment: &PathSegment) -> Option<Self> {
        match segment {
            PathSegment::Map { key } => Some(Self::Key(key.clone())),
            PathSegment::Seq { index } => Some(Self::Index(*index)),
            PathSegment::Enum { .. } | PathSegment::Unknown => None,
        }
    }
}

/// Where the key at `path` stands (people look for keys), or the nearest ancestor that exists.
fn find(tree: &DeTable<'_>, path: &[Segment]) -> Option<Range<usize>> {
    let (Segment::Key(first), rest) = path.split_first()? else { return None };
    let (key, mut value) = entry(tree, first)?;
    let mut span = key.span();
    for segment in rest {
        let next = match (segment, value.get_ref()) {
            (Segment::Key(name), DeValue::Table(table)) => {
                entry(table, name).map(|(key, value)| (key.span(), value))
            }
            (Segment::Index(index), DeValue::Array(array)) => {
                array.get(*index).map(|value| (value.span(), value))
            }
            _ => None,
        };
        let Some((inner, next)) = next else { break };
        (span, value) = (inner, next);
    }
    Some(span)
}

type Entry<'a, 'i> = (&'a Spanned<std::borrow::Cow<'i, str>>, &'a Spanned<DeValue<'i>>);

fn entry<'a, 'i>(table: &'a DeTable<'i>, name: &str) -> Option<Entry<'a, 'i>> {
    table.iter().find(|(key, _)| key.get_ref() == name)
}

fn located(text: &str, offset: usize, code: ConfigCode, key: String, message: String) -> MachineConfigError {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |start| start.chars().count()) + 1;
    MachineConfigError { code, line, column, key, message }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
