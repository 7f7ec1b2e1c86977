//! `hivemind push`: sign and send, and with `--wait` watch it come up.

use hivemind_spec::api::Accepted;
use hivemind_spec::document::{Document, Kind};
use hivemind_spec::dsse::Envelope;
use serde_json::json;

use super::plan::left_over_note;
use super::prepare::{Prepared, prepare};
use super::{provider, source, watch};
use crate::cli::{Global, Output, Push};
use crate::client::Client;
use crate::deploy::{Action, Change};
use crate::failure::{Exit, Failure, Result};
use crate::terminal::{CHANGING, FAINT, GOOD, STRONG, note, paint, say, say_json};

pub(super) fn run(global: &Global, options: &Push) -> Result<Exit> {
    let mut compiled = source::compile(&options.source)?;
    let client = super::client(global)?;
    super::block_on("nothing was pushed; what a provider has begun may go on", provider::up(&mut compiled))?;
    let prepared = prepare(&client, &compiled, &options.source.namespace, &options.pinning);
    let Prepared { changes, left } = super::block_on("nothing was pushed", prepared)?;
    for key in left {
        note(&paint(FAINT, &left_over_note(&key)));
    }
    carry_out(global, &client, &changes, options.waiting.limit_ms())
}

/// Pushes what differs, one after the other; waits up to so many milliseconds until the workloads run, if it is to; and
/// reports what has become of it.
pub(super) fn carry_out(
    global: &Global,
    client: &Client,
    changes: &[Change],
    wait_ms: Option<u64>,
) -> Result<Exit> {
    let text = global.output == Output::Text;
    let interrupted = "stopped; what was reported as accepted goes on, the rest was not pushed";
    let accepted = super::block_on(interrupted, async {
        let mut accepted = Vec::new();
        for change in changes {
            let answer = push_one(client, change).await?;
            if text {
                say(&report(change, answer.as_ref()));
            }
            accepted.extend(answer);
        }
        Ok(accepted)
    })?;
    let outcome = if let Some(timeout) = wait_ms {
        let interrupted =
            "stopped watching; the push was accepted and goes on. `hivemind ps` shows how far it is";
        let workloads = changes.iter().filter(|change| change.key.kind == Kind::Workload);
        let targets = workloads.map(|change| watch::Target::new(change, &accepted)).collect();
        let watching = watch::until_running(client, targets, timeout, text);
        Some(super::block_on(interrupted, watching)?)
    } else {
        None
    };
    if !text {
        say_json(&json!({
            "accepted": accepted,
            "unchanged": changes.iter().filter(|c| c.action == Action::Keep).map(|c| &c.key).collect::<Vec<_>>(),
            "replicas": outcome.as_ref().map(|outcome| &outcome.replicas),
        }));
    }
    match outcome {
        Some(outcome) => outcome.verdict,
        None => Ok(Exit::Success),
    }
}

async fn push_one(client: &Client, change: &Change) -> Result<Option<Accepted>> {
    if change.action == Action::Keep {
        return Ok(None);
    }
    send(client, &change.document).await.map(Some)
}

/// Whether a node would take a document for one: here it can be said before anything is sent.
pub(super) fn check(document: &Document) -> Result<()> {
    Document::parse(&document.to_json()).map(drop).map_err(|e| {
        Failure::input("invalid-document", format!("{}: {e}", document.key()))
            .advice("correct it and try again")
    })
}

/// Signs a document and sends it.
pub(super) async fn send(client: &Client, document: &Document) -> Result<Accepted> {
    check(document)?;
    let envelope = Envelope::sign(&document.to_json(), client.key());
    let sent = client.post("/v1/specs", envelope.to_json()).await;
    sent.map_err(|mut failure: Failure| {
        failure.detail = format!("{}: {}", document.key(), failure.detail);
        if failure.exit == Exit::Conflict {
            failure.advice =
                "someone pushed it in between; look with `hivemind plan`, then push again".to_owned();
        }
        failure
    })
}

fn report(change: &Change, accepted: Option<&Accepted>) -> String {
    let name = match change.key.kind {
        Kind::Volume => format!("volume {}", paint(STRONG, &change.key.name)),
        Kind::Secret => format!("secret {}", paint(STRONG, &change.key.name)),
        _ => paint(STRONG, &change.key.name),
    };
    let Some(accepted) = accepted else {
        return format!("{name}  {}", paint(FAINT, "unchanged"));
    };
    let word = if change.action == Action::Create { "created" } else { "updated" };
    format!("{name}  {}, {}", paint(GOOD, word), held(accepted))
}

/// Who holds a document, in words.
pub(super) fn held(accepted: &Accepted) -> String {
    let holders = accepted.held_by.len();
    let nodes = |n: usize| if n == 1 { "1 node".to_owned() } else { format!("{n} nodes") };
    let wanted = accepted.wanted_holders as usize + 1;
    if holders < wanted {
        let missing = format!("{} of {wanted} yet; the others get it when they are back", nodes(holders));
        return paint(CHANGING, &format!("held by {missing}"));
    }
    format!("held by {}", nodes(holders))
}
