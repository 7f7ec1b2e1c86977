//! `hivemind plan` and `hivemind convert`: look, and change nothing.

use hivemind_spec::document::{Document, Kind, SpecKey};
use serde_json::{Value, json};

use super::prepare::{Prepared, prepare};
use super::{provider, source};
use crate::cli::{Convert, Global, Output, Plan};
use crate::deploy::{Action, Change, Difference};
use crate::failure::{Exit, Result};
use crate::terminal::{BAD, CHANGING, FAINT, GOOD, STRONG, caution, paint, printable, say, say_json};

pub(super) fn plan(global: &Global, options: &Plan) -> Result<Exit> {
    let compiled = source::compile(&options.source)?;
    provider::say_not_asked(&compiled, "what it told at the last push counts");
    let client = super::client(global)?;
    let namespace = &options.source.namespace;
    let Prepared { changes, left } =
        super::block_on("nothing was changed", prepare(&client, &compiled, namespace, &options.pinning))?;
    let differs = changes.iter().any(|change| change.action != Action::Keep);
    if global.output == Output::Json {
        let (kept, changed): (Vec<_>, Vec<_>) = changes.iter().partition(|c| c.action == Action::Keep);
        say_json(&json!({
            "changes": changed.iter().map(|c| describe(c)).collect::<Vec<_>>(),
            "unchanged": kept.iter().map(|c| &c.key).collect::<Vec<_>>(),
            "notInFile": left,
        }));
    } else {
        say(&render(&changes));
        for key in &left {
            say(&paint(FAINT, &left_over_note(key)));
        }
    }
    Ok(if differs && options.exit_code { Exit::Differs } else { Exit::Success })
}

pub(super) fn convert(global: &Global, options: &Convert) -> Result<Exit> {
    let compiled = source::compile(&options.source)?;
    provider::say_not_asked(&compiled, "what it tells is not in these");
    for secret in &compiled.secrets {
        caution(&format!("secret {} is sealed when it is pushed, and not among these", secret.name));
    }
    let parse =
        |document: &Document| serde_json::from_slice::<Value>(&document.to_json()).unwrap_or_default();
    if global.output == Output::Json {
        say_json(&json!({ "items": compiled.documents.iter().map(parse).collect::<Vec<_>>() }));
    } else {
        for (number, document) in compiled.documents.iter().enumerate() {
            // A stream that `hivemind push` takes.
            if number > 0 {
                say("---");
            }
            say_json(&parse(document));
        }
    }
    Ok(Exit::Success)
}

/// Prints what documents look like.
pub(super) fn schema() -> Exit {
    say_json(&hivemind_spec::schema::of_documents());
    Exit::Success
}

pub(super) fn left_over_note(key: &SpecKey) -> String {
    let name = &key.name;
    match key.kind {
        Kind::Volume => format!(
            "volume {name} is of this project, but not in the file; its data stays. `hivemind volumes remove {name}` \
             has it deleted."
        ),
        Kind::Secret => format!(
            "secret {name} is of this project, but not in the file; it stays. `hivemind secrets remove {name}` removes it."
        ),
        _ => format!(
            "{name} is of this project, but not in the file; it stays. `hivemind remove {name}` removes it."
        ),
    }
}

fn describe(change: &Change) -> Value {
    json!({ "action": change.action, "key": change.key, "differences": change.differences })
}

/// The changes as a tree.
fn render(changes: &[Change]) -> String {
    let mut lines = Vec::new();
    for change in changes {
        let (sign, style, word) = match change.action {
            Action::Create => ("+", GOOD, "create"),
            Action::Update => ("~", CHANGING, "update"),
            Action::Keep => ("=", FAINT, "no change"),
        };
        let title = format!("{sign} {}", change.key);
        lines.push(format!("{}  {}", paint(style.bold(), &title), paint(FAINT, word)));
        for (index, difference) in change.differences.iter().enumerate() {
            let branch = if index + 1 == change.differences.len() { "└─" } else { "├─" };
            lines.push(format!("  {branch} {}", render_difference(difference)));
        }
    }
    let count = |action| changes.iter().filter(|change| change.action == action).count();
    let summary = format!(
        "{} to create, {} to update, {} unchanged",
        count(Action::Create),
        count(Action::Update),
        count(Action::Keep)
    );
    lines.push(paint(STRONG, &summary));
    lines.join("\n")
}

fn render_difference(difference: &Difference) -> String {
    let path = difference.pointer.trim_start_matches('/').trim_start_matches("spec/").replace('/', ".");
    let show = |value: &Value| match value {
        Value::String(text) => printable(text),
        other => printable(&other.to_string()),
    };
    match (&difference.before, &difference.after) {
        (Some(before), Some(after)) => {
            format!("{path}: {} → {}", paint(BAD, &show(before)), paint(GOOD, &show(after)))
        }
        (None, Some(after)) => format!("{path}: {}", paint(GOOD, &show(after))),
        (Some(before), None) => {
            format!("{path}: {} {}", paint(BAD, &show(before)), paint(FAINT, "(removed)"))
        }
        (None, None) => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_a_tree_with_both_values() {
        let json = r#"{"apiVersion":"hivemind/v1","kind":"Workload","metadata":{"name":"web","namespace":"default","revision":1},"spec":{"container":{"image":"b"}}}"#;
        let change = Change {
            key: SpecKey { kind: Kind::Workload, namespace: "default".into(), name: "web".into() },
            action: Action::Update,
            differences: vec![
                Difference { pointer: "/labels/a".into(), before: None, after: Some("x\ny".into()) },
                Difference {
                    pointer: "/spec/container/image".into(),
                    before: Some("a".into()),
                    after: Some("b".into()),
                },
            ],
            document: Document::parse(json.as_bytes()).unwrap(),
        };
        let plain = anstream::adapter::strip_str(&render(&[change])).to_string();
        assert_eq!(
            plain,
            "~ Workload/default/web  update\n  ├─ labels.a: x y\n  └─ container.image: a → b\n\
             0 to create, 1 to update, 0 unchanged"
        );
    }
}
