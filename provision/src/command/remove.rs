//! `hivemind remove`.

use hivemind_spec::document::{Kind, SpecKey};
use serde_json::json;

use super::push::{held, send};
use super::{prepare, provider, source};
use crate::cli::{Global, Output, Remove, Source};
use crate::deploy;
use crate::failure::{Exit, Failure, Result};
use crate::terminal::{GOOD, STRONG, confirm, paint, say, say_json};

pub(super) fn run(global: &Global, options: &Remove) -> Result<Exit> {
    let mut file = None;
    let mut names: Vec<String> = match &options.file {
        None => options.names.clone(),
        Some(path) => {
            // Services that were left out of the last push may be there from one before.
            let profile = vec!["*".to_owned()];
            let source = Source { files: vec![path.clone()], namespace: options.namespace.clone(), profile };
            let compiled = file.insert(source::compile(&source)?);
            let workloads = compiled.documents.iter().filter(|document| document.kind == Kind::Workload);
            workloads.map(|document| document.metadata.name.clone()).collect()
        }
    };
    // Removing twice what was named twice would be a conflict with oneself.
    names.sort();
    names.dedup();
    let client = super::client(global)?;
    let current = super::block_on("nothing was removed", prepare::current(&client, &options.namespace))?;
    let find = |name: &String| {
        let key = SpecKey { kind: Kind::Workload, namespace: options.namespace.clone(), name: name.clone() };
        current.iter().find(|item| item.key == key && !item.deleted)
    };
    // Services of a file may be gone already; a name that was typed must exist.
    let missing: Vec<&String> = names.iter().filter(|name| find(name).is_none()).collect();
    if let (None, [first, ..]) = (&options.file, missing.as_slice()) {
        return Err(Failure::new(
            Exit::Refused,
            "not-found",
            format!(
                "there is no workload {first:?} in namespace {:?}; nothing was removed",
                options.namespace
            ),
        )
        .advice("`hivemind ps` lists what there is"));
    }
    let items: Vec<_> = names.iter().filter_map(find).collect();
    let provided = file.iter().flat_map(|compiled| &compiled.provided);
    let named =
        items.iter().map(|item| item.key.name.as_str()).chain(provided.map(|one| one.service.as_str()));
    let list = named.collect::<Vec<_>>().join(", ");
    if !list.is_empty() && !options.yes {
        confirm(&format!("Stop and remove {list}?"), "nothing was removed")?;
    }
    let interrupted = "stopped; what was reported as removed is, the rest is not";
    let accepted = super::block_on(interrupted, async {
        let mut accepted = Vec::new();
        for item in items {
            let answer = send(&client, &deploy::removal(item, client.now_ms())).await?;
            if global.output == Output::Text {
                let name = paint(STRONG, &item.key.name);
                say(&format!("{name}  {}, {}", paint(GOOD, "removed"), held(&answer)));
            }
            accepted.push(answer);
        }
        // Nobody needs it any more.
        if let Some(compiled) = &file {
            provider::down(compiled).await?;
        }
        Ok(accepted)
    })?;
    if global.output == Output::Json {
        say_json(&json!({ "removed": accepted, "notFound": missing }));
    } else if accepted.is_empty() {
        say("There was nothing to remove.");
    }
    Ok(Exit::Success)
}
