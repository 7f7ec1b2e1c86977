//! Environment files: `.env`, and those that `env_file` and `label_file` name.
//!
//! `NAME=VALUE` lines, `#` comments, `export` before the name. A value in single quotes is as it stands; one in
//! double quotes knows `\n`, `\t`, `\"`, `\\` and `\$`; both may go over several lines. Variables are replaced as
//! everywhere ([`super::interpolate`]), except in single quotes; those of the file itself go before others.

use std::collections::BTreeMap;

use super::interpolate::interpolate;

/// What a file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// Values by name.
    pub variables: BTreeMap<String, String>,
    /// Lines, from 1, with variables that are not set and became nothing.
    pub unset: Vec<(usize, String)>,
}

/// Reads an environment file, with the variables from outside of it.
///
/// # Errors
/// The line, from 1, and what is wrong with it.
pub fn environment(text: &str, outside: &BTreeMap<String, String>) -> Result<Environment, (usize, String)> {
    let mut read = Environment::default();
    let mut known = outside.clone();
    let (mut rest, mut line) = (text, 1);
    while !rest.is_empty() {
        let (first, after) = rest.split_once('\n').unwrap_or((rest, ""));
        let entry = first.trim();
        if entry.is_empty() || entry.starts_with('#') {
            (rest, line) = (after, line + 1);
            continue;
        }
        let fault = |what: &str| (line, format!("{what}; write NAME=VALUE"));
        let (name, _) = first.split_once('=').ok_or_else(|| fault("there is no `=`"))?;
        let value = rest[name.len() + 1..].trim_start_matches([' ', '\t']);
        let name = name.trim_start();
        let name = name.strip_prefix("export ").unwrap_or(name).trim();
        // Labels have dots in their names, and images take variables by such names.
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-[]".contains(&b)) {
            return Err(fault(&format!("{name:?} cannot name a variable")));
        }
        let Some((value, end)) = quoted(value).or_else(|| unquoted(value)) else {
            return Err(fault("a quote is not closed"));
        };
        let (over, after) = end.split_once('\n').unwrap_or((end, ""));
        if !(over.trim().is_empty() || over.trim_start().starts_with('#')) {
            return Err(fault(&format!("{:?} stands behind the value", over.trim())));
        }
        let value = match value {
            Value::Literal(text) => text,
            Value::Template(text) => {
                let replaced = interpolate(&text, &known).map_err(|what| (line, what))?;
                read.unset.extend(replaced.unset.into_iter().map(|name| (line, name)));
                replaced.text
            }
        };
        known.insert(name.to_owned(), value.clone());
        read.variables.insert(name.to_owned(), value);
        line += rest[..rest.len() - after.len()].matches('\n').count();
        rest = after;
    }
    Ok(read)
}

/// Reads `NAME=VALUE` lines in which nothing has a meaning but the first `=` (`format: raw`).
///
/// # Errors
/// The line, from 1, and what is wrong with it.
pub(super) fn raw(text: &str) -> Result<BTreeMap<String, String>, (usize, String)> {
    let entries =
        text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    let entry = |(index, line): (usize, &str)| {
        let (name, value) = line.split_once('=').ok_or_else(|| (index + 1, "there is no `=`".to_owned()))?;
        Ok((name.to_owned(), value.to_owned()))
    };
    entries.map(entry).collect()
}

enum Value {
    /// As it stands.
    Literal(String),
    /// With variables to be replaced.
    Template(String),
}

/// A value in quotes, and what is behind it; `None` when there are none, or they are not closed.
fn quoted(text: &str) -> Option<(Value, &str)> {
    if let Some(inside) = text.strip_prefix('\'') {
        let (value, rest) = inside.split_once('\'')?;
        return Some((Value::Literal(value.to_owned()), rest));
    }
    let inside = text.strip_prefix('"')?;
    let mut value = String::new();
    let mut characters = inside.char_indices();
    loop {
        match characters.next()? {
            (end, '"') => return Some((Value::Template(value), &inside[end + 1..])),
            (_, '\\') => match characters.next()?.1 {
                'n' => value.push('\n'),
                't' => value.push('\t'),
                // A template's way of writing one.
                '$' => value.push_str("$$"),
                c @ ('"' | '\\') => value.push(c),
                c => value.extend(['\\', c]),
            },
            (_, c) => value.push(c),
        }
    }
}

/// A value without quotes, up to a comment or the end of the line, and what is behind it.
fn unquoted(text: &str) -> Option<(Value, &str)> {
    if text.starts_with(['\'', '"']) {
        return None;
    }
    let line = text.split('\n').next().unwrap_or_default();
    let end = line.find(" #").unwrap_or(line.len());
    Some((Value::Template(line[..end].trim_end().to_owned()), &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outside() -> BTreeMap<String, String> {
        [("USER", "shop"), ("HOST", "db")].map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    #[test]
    fn environment_files_are_read_with_quotes_comments_and_variables() {
        let text = "# c\nA=1\nexport B = two # c\nC='$x #'\nD=\"a\\nb\\\"\\$USER\"\nE=\n\n\
                    URL=postgres://${USER}@$HOST/${DB:-main} # where\nHOST=other\nF=\"$HOST$$\"\nG=${NOBODY}\nH=a#b\n";
        let read = environment(text, &outside()).unwrap();
        for (name, value) in [
            ("A", "1"),
            ("B", "two"),
            ("C", "$x #"),
            ("D", "a\nb\"$USER"),
            ("E", ""),
            ("URL", "postgres://shop@db/main"),
            ("F", "other$"),
            ("G", ""),
            ("H", "a#b"),
        ] {
            assert_eq!(read.variables[name], value, "{name}");
        }
        assert_eq!(read.unset, [(11, "NOBODY".to_owned())]);
    }

    #[test]
    fn values_in_quotes_may_go_over_several_lines() {
        let read =
            environment("KEY=\"-----BEGIN\nabc\n-----END\" # a key\nONE='x\ny'\nB=2", &outside()).unwrap();
        assert_eq!(read.variables["KEY"], "-----BEGIN\nabc\n-----END");
        assert_eq!((read.variables["ONE"].as_str(), read.variables["B"].as_str()), ("x\ny", "2"));
    }

    #[test]
    fn names_may_have_dots_as_those_of_labels_have() {
        let read = environment("org.example.part=front\nspring.jpa.show-sql=true\n", &outside()).unwrap();
        assert_eq!(read.variables["org.example.part"], "front");
        assert_eq!(read.variables["spring.jpa.show-sql"], "true");
    }

    #[test]
    fn faults_name_their_line() {
        for (text, line, wanted) in [
            ("A=1\nnonsense\n", 2, "no `=`"),
            ("A='1\n", 1, "not closed"),
            ("A='1\n2'\n\nB=\"x", 4, "not closed"),
            ("A=1\n=2\n", 2, "cannot name"),
            ("A=1\nA B=2\n", 2, "cannot name"),
            ("A='1' 2\n", 1, "behind the value"),
            ("A=1\nB=${C:?is needed}\n", 2, "is needed"),
            ("A=$ 5\n", 1, "$$"),
        ] {
            let (found, what) = environment(text, &outside()).unwrap_err();
            assert!(found == line && what.contains(wanted), "{text:?}: {found}: {what}");
        }
    }

    #[test]
    fn raw_files_are_as_they_stand() {
        let read = raw("# c\nA='$USER' # x\nB=a=b\n\n").unwrap();
        assert_eq!((read["A"].as_str(), read["B"].as_str()), ("'$USER' # x", "a=b"));
        assert_eq!(raw("A=1\nB\n").unwrap_err().0, 2);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[A-B=\"'$\\\\{} #\nn]{0,60}") {
            let _ = environment(&text, &outside());
            let _ = raw(&text);
        }
    }
}
