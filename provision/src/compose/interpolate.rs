//! `${VARIABLE}` in values, as the Compose specification defines it ("Interpolation").

use std::collections::BTreeMap;

/// What a value turned into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Interpolated {
    /// The text.
    pub text: String,
    /// Variables that are not set and have no default; they became nothing.
    pub unset: Vec<String>,
}

/// Replaces variables in `text`.
///
/// # Errors
/// What is wrong with the syntax, or the message of `${NAME:?message}`.
pub(super) fn interpolate(text: &str, variables: &BTreeMap<String, String>) -> Result<Interpolated, String> {
    let mut out = Interpolated { text: String::new(), unset: Vec::new() };
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        out.text.push_str(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.text.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('{') {
            let end = closing(after)
                .ok_or_else(|| format!("`${{{after}` has no closing brace; write $$ for a dollar sign"))?;
            expression(&after[..end], variables, &mut out)?;
            rest = &after[end + 1..];
        } else {
            let end = name_end(rest);
            if end == 0 {
                return Err(format!("`${rest}` names no variable; write $$ for a dollar sign"));
            }
            value(&rest[..end], variables, &mut out);
            rest = &rest[end..];
        }
    }
    out.text.push_str(rest);
    Ok(out)
}

/// Where the brace that closes an expression is, nested ones skipped.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (index, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => return Some(index),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// How long the name at the start of `text` is.
fn name_end(text: &str) -> usize {
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        return 0;
    }
    text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len())
}

fn value(name: &str, variables: &BTreeMap<String, String>, out: &mut Interpolated) {
    match variables.get(name) {
        Some(value) => out.text.push_str(value),
        None => out.unset.push(name.to_owned()),
    }
}

/// `NAME`, or `NAME` with `-`, `?` or `+`, each with or without a colon before, and a word.
fn expression(
    text: &str,
    variables: &BTreeMap<String, String>,
    out: &mut Interpolated,
) -> Result<(), String> {
    let end = name_end(text);
    let (name, rest) = text.split_at(end);
    if name.is_empty() {
        return Err(format!("`${{{text}}}` names no variable; write $$ for a dollar sign"));
    }
    if rest.is_empty() {
        value(name, variables, out);
        return Ok(());
    }
    let (or_empty, rest) = rest.strip_prefix(':').map_or((false, rest), |rest| (true, rest));
    let set = variables.get(name).filter(|value| !(or_empty && value.is_empty()));
    let mut word = |word: &str| -> Result<(), String> {
        let inner = interpolate(word, variables)?;
        out.text.push_str(&inner.text);
        out.unset.extend(inner.unset);
        Ok(())
    };
    match (rest.chars().next(), set) {
        (Some('-' | '?'), Some(value)) => {
            out.text.push_str(value);
            Ok(())
        }
        (Some('-'), None) => word(&rest[1..]),
        (Some('+'), Some(_)) => word(&rest[1..]),
        (Some('+'), None) => Ok(()),
        (Some('?'), None) => {
            let message = interpolate(&rest[1..], variables)?.text;
            let message = if message.is_empty() { "it is required".to_owned() } else { message };
            Err(format!("the variable {name} is not set: {message}"))
        }
        _ => Err(format!("`${{{text}}}` is not an expression; use for example ${{{name}:-default}}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables() -> BTreeMap<String, String> {
        [("A", "1"), ("EMPTY", "")].map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    #[test]
    fn variables_are_replaced_as_the_specification_says() {
        for (text, wanted) in [
            ("plain", "plain"),
            ("$A-x", "1-x"),
            ("${A}", "1"),
            ("$$A", "$A"),
            ("a$${A}", "a${A}"),
            ("${B:-two}", "two"),
            ("${B-two}", "two"),
            ("${EMPTY:-two}", "two"),
            ("${EMPTY-two}", ""),
            ("${A:+yes}", "1".replace('1', "yes").as_str()),
            ("${B:+yes}", ""),
            ("${EMPTY+yes}", "yes"),
            ("${B:-${A}}", "1"),
            ("${B:-a:b}", "a:b"),
            ("${A:?no}", "1"),
        ] {
            assert_eq!(interpolate(text, &variables()).unwrap().text, wanted, "{text}");
        }
        assert_eq!(interpolate("${B}$C", &variables()).unwrap().unset, ["B", "C"]);
    }

    #[test]
    fn what_cannot_be_replaced_is_refused() {
        for (text, reason) in [
            ("${B:?give a port}", "give a port"),
            ("${EMPTY:?x}", "EMPTY"),
            ("${B?}", "required"),
            ("${A", "closing"),
            ("${}", "no variable"),
            ("$ 5", "$$"),
            ("${A!x}", "not an expression"),
        ] {
            let error = interpolate(text, &variables()).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[${}A-C:?+a-c-]{0,40}") {
            let _ = interpolate(&text, &variables());
        }
    }
}
