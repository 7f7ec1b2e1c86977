//! `hivemind jobs`: workloads that come to an end.

use hivemind_spec::api::{Job, SpecItem, Workload};
use hivemind_spec::document::{Document, Kind, SpecKey};
use serde_json::json;

use super::prepare;
use super::push::{held, send};
use crate::cli::{Chosen, Global, Jobs, JobsCommand, JobsRun, Output};
use crate::client::with_query;
use crate::deploy;
use crate::failure::{Exit, Failure, Result};
use crate::quantity::show_span;
use crate::terminal::{BAD, CHANGING, GOOD, Table, say, say_json, styled};

const UNCHANGED: &str = "nothing was changed";

pub(super) fn run(global: &Global, options: &Jobs) -> Result<Exit> {
    match &options.command {
        None => list(global, &options.chosen),
        Some(JobsCommand::Run(again)) => run_again(global, again),
    }
}

fn list(global: &Global, options: &Chosen) -> Result<Exit> {
    let client = super::client(global)?;
    let path = with_query("/v1/workloads", &[("namespace", options.namespace.as_deref())]);
    let mut jobs: Vec<Workload> = super::block_on(UNCHANGED, client.list(&path))?;
    jobs.retain(|workload| {
        workload.job.is_some() && options.workload.as_ref().is_none_or(|name| *name == workload.name)
    });
    if global.output == Output::Json {
        say_json(&serde_json::json!({ "items": jobs }));
    } else if jobs.is_empty() {
        say("No jobs. A service with `deploy: {mode: replicated-job}` is one; see docs/jobs.md.");
    } else {
        say(&table(&jobs, client.now_ms()));
    }
    Ok(Exit::Success)
}

fn run_again(global: &Global, options: &JobsRun) -> Result<Exit> {
    let client = super::client(global)?;
    let (namespace, name) = (options.namespace.clone(), options.job.clone());
    let key = SpecKey { kind: Kind::Workload, namespace, name };
    let accepted = super::block_on("stopped; look with `hivemind jobs`", async {
        let item = prepare::held(&client, &key).await?.filter(|item| !item.deleted);
        let Some(document) = item.as_ref().and_then(SpecItem::document) else {
            let text = format!("there is no job {}/{}", key.namespace, key.name);
            return Err(Failure::new(Exit::Refused, "not-found", text)
                .advice("`hivemind jobs` lists them; --namespace says where to look"));
        };
        send(&client, &once_more(document, item.as_ref(), client.now_ms())?).await
    })?;
    if global.output == Output::Json {
        say_json(&json!({ "accepted": [accepted] }));
    } else {
        let name = &options.job;
        say(&format!("{name} is run once more, {}; `hivemind logs {name} -f` follows it", held(&accepted)));
    }
    Ok(Exit::Success)
}

/// The next version of a job, which is run once more.
fn once_more(mut document: Document, item: Option<&SpecItem>, now_ms: u64) -> Result<Document> {
    deploy::succeed(&mut document, item, now_ms);
    if !deploy::want_again(&mut document) {
        let text = format!("{} is no job: its containers are not to come to an end", document.metadata.name);
        return Err(Failure::input("no-job", text)
            .advice("a service with `deploy: {mode: replicated-job}` is one; see docs/jobs.md"));
    }
    Ok(document)
}

/// An image as a table has room for: its tag says more than its digest.
fn short_image(image: &str) -> &str {
    image.split_once('@').map_or(image, |(tag, _)| tag)
}

fn table(jobs: &[Workload], now_ms: u64) -> String {
    let mut table =
        Table::new(&["NAMESPACE", "JOB", "DONE", "RUNNING", "FAILED", "LAST RUN", "NEXT RUN", "IMAGE"]);
    for workload in jobs {
        let Some(job) = &workload.job else { continue };
        let style = match job {
            Job { failed: 1.., .. } => BAD,
            Job { completed, .. } if *completed >= workload.replicas => GOOD,
            _ => CHANGING,
        };
        let last = job.run_ms.map(|ms| format!("{} ago", show_span(now_ms.saturating_sub(ms))));
        let next = job.next_ms.map(|ms| format!("in {}", show_span(ms.saturating_sub(now_ms))));
        let dash = || "-".to_owned();
        table.row([
            workload.namespace.as_str().into(),
            workload.name.as_str().into(),
            styled(style, format!("{}/{}", job.completed, workload.replicas)),
            workload.running.to_string().into(),
            job.failed.to_string().into(),
            last.unwrap_or_else(dash).into(),
            next.unwrap_or_else(dash).into(),
            short_image(&workload.image).into(),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use hivemind_spec::id::Digest;

    use super::*;

    #[test]
    fn a_job_is_shown_with_how_far_it_is_and_its_times() {
        let workload = |name: &str, job| Workload {
            namespace: "default".into(),
            name: name.into(),
            image: "app:1".into(),
            replicas: 3,
            running: 1,
            revision: 1,
            digest: Digest::of(b"a"),
            ports: Vec::new(),
            job: Some(job),
        };
        let once = Job { completed: 2, failed: 0, run_ms: None, next_ms: None };
        let nightly = Job { run_ms: Some(1_000_000), next_ms: Some(87_400_000), ..once };
        let text = table(&[workload("import", once), workload("backup", nightly)], 1_060_000);
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert!(rows[1][2].contains("2/3"), "{text}");
        assert_eq!(rows[1][3..], ["1", "0", "-", "-", "app:1"]);
        assert_eq!(rows[2][3..], ["1", "0", "60s", "ago", "in", "23h59m", "app:1"]);
    }
}
