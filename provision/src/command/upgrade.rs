//! `hivemind upgrade`: releases of the operating system.

use hivemind_spec::api::{Rollout, RolloutState, SpecItem};
use hivemind_spec::document::{Kind, Spec};
use hivemind_spec::id::ReleaseId;
use hivemind_spec::release::{OsReleaseSpec, STICK, STICK_LABEL};
use serde_json::json;

use super::push::{held, send};
use super::rollout;
use crate::cli::{Global, Output, Upgrade, UpgradeCommand};
use crate::client::Client;
use crate::deploy;
use crate::failure::{Exit, Failure, Result};
use crate::release::{self, Place};
use crate::terminal::{BAD, CHANGING, GOOD, STRONG, Table, paint, say, say_json, styled};

const UNCHANGED: &str = "stopped; look with `hivemind upgrade`";

pub(super) fn run(global: &Global, options: &Upgrade) -> Result<Exit> {
    match (&options.bundle, options.command) {
        (Some(bundle), _) => start(global, &Place::parse(bundle), options),
        (None, Some(UpgradeCommand::Pause)) => change(global, "is paused", |spec| spec.paused = true),
        (None, Some(UpgradeCommand::Resume)) => change(global, "goes on", |spec| spec.paused = false),
        (None, Some(UpgradeCommand::Abort)) => abort(global),
        (None, None) => show(global, options),
    }
}

fn start(global: &Global, bundle: &Place, options: &Upgrade) -> Result<Exit> {
    let read = release::read(bundle, &options.insecure_registries);
    let mut spec = super::block_on("stopped; nothing was pushed", read)?;
    spec.sources = options.sources.clone();
    if spec.sources.is_empty() {
        let found = bundle.source().ok_or_else(|| {
            let text = format!("machines cannot fetch anything from {bundle}, a folder of this machine");
            Failure::input("no-source", text).advice(
                "put it on a web server or into a registry, and give that place, or `--from` that place; or copy it \
                 onto a stick with the label HIVERELEASE, and give `--from stick`",
            )
        });
        spec.sources.push(found?);
    }
    let client = super::client(global)?;
    let from_stick = spec.sources.iter().any(|source| source == STICK);
    let release = spec.release;
    let what = format!("Release {} for {}", paint(STRONG, &spec.version), spec.architecture.name());
    let accepted = super::block_on(UNCHANGED, async {
        let items = held_releases(&client).await?;
        let name = spec.architecture.name();
        let before = items.iter().find(|item| item.key.name == name);
        let spec = Spec::OsRelease(Box::new(spec));
        let document = deploy::of_cluster(Kind::OsRelease, name.to_owned(), spec, before, client.now_ms());
        send(&client, &document).await
    })?;
    let text = global.output == Output::Text;
    if text {
        say(&format!("{what} goes from machine to machine, {}", held(&accepted)));
    }
    if !options.wait {
        if text {
            if from_stick {
                say(&format!(
                    "Plug a stick with the label {STICK_LABEL} and the bundle's files on it into any machine."
                ));
            }
            say("`hivemind upgrade` shows how far it has come.");
        } else {
            say_json(&json!({ "accepted": [accepted] }));
        }
        return Ok(Exit::Success);
    }
    let outcome = wait(&client, &[release], options, text)?;
    if !text {
        say_json(&json!({ "accepted": [accepted], "items": outcome.rollouts }));
    }
    outcome.verdict
}

fn wait(client: &Client, releases: &[ReleaseId], options: &Upgrade, text: bool) -> Result<rollout::Outcome> {
    const INTERRUPTED: &str =
        "stopped watching; the release goes on. `hivemind upgrade` shows how far it has come";
    super::block_on(INTERRUPTED, rollout::until_done(client, releases, options.timeout, text))
}

/// Changes what is wanted of every release.
fn change(global: &Global, what: &str, change: impl Fn(&mut OsReleaseSpec)) -> Result<Exit> {
    let client = super::client(global)?;
    let accepted = super::block_on(UNCHANGED, async {
        let mut accepted = Vec::new();
        for item in standing(&client).await? {
            let held = item.document().and_then(|document| document.spec);
            let Some(Spec::OsRelease(mut spec)) = held else { continue };
            change(&mut spec);
            let name = item.key.name.clone();
            let spec = Spec::OsRelease(spec);
            let document = deploy::of_cluster(Kind::OsRelease, name, spec, Some(&item), client.now_ms());
            accepted.push(send(&client, &document).await?);
        }
        Ok(accepted)
    })?;
    if global.output == Output::Json {
        say_json(&json!({ "accepted": accepted }));
    } else {
        for accepted in &accepted {
            say(&format!("The release for {} {what}, {}", accepted.key.name, held(accepted)));
        }
    }
    Ok(Exit::Success)
}

fn abort(global: &Global) -> Result<Exit> {
    let client = super::client(global)?;
    let removed = super::block_on(UNCHANGED, async {
        let mut removed = Vec::new();
        for item in standing(&client).await? {
            removed.push(send(&client, &deploy::removal(&item, client.now_ms())).await?);
        }
        Ok(removed)
    })?;
    if global.output == Output::Json {
        say_json(&json!({ "removed": removed }));
    } else {
        for removed in &removed {
            say(&format!("The release for {} is taken back, {}", removed.key.name, held(removed)));
        }
    }
    Ok(Exit::Success)
}

fn show(global: &Global, options: &Upgrade) -> Result<Exit> {
    let client = super::client(global)?;
    let mut rollouts: Vec<Rollout> = super::block_on(UNCHANGED, client.list("/v1/releases"))?;
    let mut verdict = Ok(Exit::Success);
    if options.wait && !rollouts.is_empty() {
        let releases: Vec<ReleaseId> = rollouts.iter().map(|rollout| rollout.release).collect();
        let outcome = wait(&client, &releases, options, global.output == Output::Text)?;
        (rollouts, verdict) = (outcome.rollouts, outcome.verdict);
    }
    if global.output == Output::Json {
        say_json(&json!({ "items": rollouts }));
    } else if rollouts.is_empty() {
        say(
            "No release was pushed: the machines run what they were flashed with. `hivemind nodes` shows what that is.",
        );
    } else {
        say(&table(&rollouts));
    }
    verdict
}

fn table(rollouts: &[Rollout]) -> String {
    let mut table = Table::new(&["RELEASE", "FOR", "STATE", "MACHINES", "ID", "NOTES"]);
    for rollout in rollouts {
        let (style, state) = match rollout.state {
            RolloutState::Rolling => (CHANGING, "rolling"),
            RolloutState::Done => (GOOD, "done"),
            RolloutState::Paused => (CHANGING, "paused"),
            RolloutState::Stopped => (BAD, "stopped"),
        };
        let turns: Vec<String> =
            rollout.turns.iter().map(|node| format!("node {} takes it", node.short())).collect();
        let notes = if rollout.reason.is_empty() { turns.join(", ") } else { rollout.reason.clone() };
        table.row([
            rollout.version.as_str().into(),
            rollout.architecture.name().into(),
            styled(style, state),
            format!("{}/{}", rollout.done, rollout.nodes).into(),
            rollout.release.to_string().into(),
            notes.into(),
        ]);
    }
    table.render()
}

/// Current documents of releases, deleted ones included.
async fn held_releases(client: &Client) -> Result<Vec<SpecItem>> {
    client.list(&format!("/v1/specs?kind={}", Kind::OsRelease)).await
}

/// Those that are not deleted; an error when there is none.
async fn standing(client: &Client) -> Result<Vec<SpecItem>> {
    let items: Vec<SpecItem> =
        held_releases(client).await?.into_iter().filter(|item| !item.deleted).collect();
    if items.is_empty() {
        return Err(Failure::new(Exit::Refused, "not-found", "there is no release that was pushed")
            .advice("push one with `hivemind upgrade BUNDLE --from URL`"));
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use hivemind_spec::id::ReleaseId;
    use hivemind_spec::release::Architecture;

    use super::*;

    #[test]
    fn a_rollout_that_stopped_is_shown_with_the_reason() {
        let rollout = Rollout {
            architecture: Architecture::Amd64,
            version: "0.2.0".into(),
            release: ReleaseId([0xab; 8]),
            state: RolloutState::Stopped,
            reason: "edge-1: it went back".into(),
            done: 1,
            nodes: 3,
            turns: vec![],
        };
        let text = anstream::adapter::strip_str(&table(&[rollout])).to_string();
        for part in ["0.2.0", "amd64", "stopped", "1/3", "abababababababab", "edge-1: it went back"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
