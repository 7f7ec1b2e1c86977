//! `hivemind volumes snapshot`, `snapshots` and `restore --snapshot`.

use std::io;

use hivemind_spec::volume::Snapshot;
use hivemind_spec::words::timestamp;
use hyper::Method;
use hyper::body::Bytes;
use serde_json::json;

use super::backup::{MAX_NOTES_BYTES, Part};
use super::session::{self, Keeper, Notes, Printer};
use crate::cli::{Global, Output, VolumesRestore, VolumesSnapshot, VolumesSnapshots};
use crate::client::{Client, percent};
use crate::failure::{Exit, Failure, Result};
use crate::quantity::{show_bytes, show_span};
use crate::terminal::{STRONG, Table, caution, confirm, paint, printable, say, say_json};

const UNCHANGED: &str = "stopped; look with `hivemind volumes snapshots`";

pub(super) fn snapshot(global: &Global, options: &VolumesSnapshot) -> Result<Exit> {
    let client = super::client(global)?;
    let part = super::block_on(UNCHANGED, Part::find(&client, &options.volume))?;
    if options.remove {
        // Only with its name.
        return remove(global, options, &client, &part, options.snapshot.as_deref().unwrap_or_default());
    }
    let name = options.snapshot.clone().unwrap_or_else(|| named_by_time(client.now_ms()));
    let keep = options.keep.map(|keep| format!("&keep={keep}")).unwrap_or_default();
    let path = format!("{}&name={}&stillMs={}{keep}", part.path("snapshot"), percent(&name), options.still);
    let (made, notes) = (Notes::new(MAX_NOTES_BYTES), Notes::new(MAX_NOTES_BYTES));
    let ended = super::block_on(UNCHANGED, async {
        let keeper = Keeper::Printed(Printer::start(made.clone(), notes.clone())?);
        session::converse(&client, &path, false, io::empty(), keeper).await
    })?;
    let made: Option<Snapshot> = serde_json::from_str(&made.text()).ok();
    let (Exit::OfCommand(0), Some(made)) = (ended, made) else {
        return Err(Failure::local("not-made", "the answer broke off").advice(UNCHANGED));
    };
    let notes = notes.text();
    for text in notes.lines() {
        caution(&printable(text));
    }
    if global.output == Output::Json {
        let notes: Vec<&str> = notes.lines().collect();
        say_json(&json!({ "volume": part.name, "number": part.number, "snapshot": made, "notes": notes }));
    } else {
        let (snapshot, bytes) = (paint(STRONG, &made.name), show_bytes(made.bytes));
        say(&format!("snapshot {snapshot} of volume {}: {bytes}", options.volume.name));
    }
    Ok(Exit::Success)
}

/// A time as a DNS label.
fn named_by_time(ms: u64) -> String {
    let text = timestamp(ms).to_lowercase();
    // Of the second: what comes after is of no use to people.
    let seconds = text.get(..19).unwrap_or(&text);
    seconds.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}

fn remove(
    global: &Global,
    options: &VolumesSnapshot,
    client: &Client,
    part: &Part,
    name: &str,
) -> Result<Exit> {
    let volume = &options.volume.name;
    if !options.yes {
        confirm(&format!("Remove snapshot {name} of volume {volume}?"), "nothing was removed")?;
    }
    let path = format!("{}&name={}", part.path("snapshots"), percent(name));
    super::block_on(UNCHANGED, client.send(Method::DELETE, &path, Bytes::new()))?;
    if global.output == Output::Json {
        say_json(&json!({ "volume": part.name, "number": part.number, "removed": name }));
    } else {
        say(&format!("snapshot {} of volume {volume} is removed", paint(STRONG, name)));
    }
    Ok(Exit::Success)
}

pub(super) fn list(global: &Global, options: &VolumesSnapshots) -> Result<Exit> {
    let client = super::client(global)?;
    let (part, snapshots) = super::block_on("nothing was changed", async {
        let part = Part::find(&client, &options.volume).await?;
        let snapshots: Vec<Snapshot> = client.list(&part.path("snapshots")).await?;
        Ok((part, snapshots))
    })?;
    let name = &options.volume.name;
    if global.output == Output::Json {
        say_json(&json!({ "volume": part.name, "number": part.number, "items": snapshots }));
    } else if snapshots.is_empty() {
        say(&format!("Volume {name} has no snapshots; `hivemind volumes snapshot {name}` makes one"));
    } else {
        say(&table(&snapshots, client.now_ms()));
    }
    Ok(Exit::Success)
}

fn table(snapshots: &[Snapshot], now_ms: u64) -> String {
    let mut table = Table::new(&["SNAPSHOT", "AGE", "SIZE"]);
    for Snapshot { name, made_ms, bytes } in snapshots {
        let age = show_span(now_ms.saturating_sub(*made_ms));
        table.row([name.as_str().into(), age.into(), show_bytes(*bytes).into()]);
    }
    table.render()
}

pub(super) fn restore(global: &Global, options: &VolumesRestore, snapshot: &str) -> Result<Exit> {
    let client = super::client(global)?;
    let part = super::block_on("nothing was changed", Part::find(&client, &options.volume))?;
    let name = &options.volume.name;
    if !options.yes {
        let used = show_bytes(part.used_bytes.unwrap_or(0));
        let question =
            format!("Replace all that is in volume {name} ({used}) by what snapshot {snapshot} has?");
        confirm(&question, "nothing was changed")?;
    }
    let path = format!("{}&snapshot={}", part.path("fill"), percent(snapshot));
    let ended = super::block_on("look with `hivemind volumes`", async {
        let keeper = Keeper::Printed(Printer::start(io::sink(), io::stderr())?);
        session::converse(&client, &path, false, io::empty(), keeper).await
    })?;
    if !matches!(ended, Exit::OfCommand(0)) {
        return Err(Failure::local("not-restored", "nothing was changed").advice("try again"));
    }
    if global.output == Output::Json {
        say_json(&json!({ "volume": part.name, "number": part.number, "snapshot": snapshot }));
    } else {
        say(&format!("volume {} has what snapshot {snapshot} has", paint(STRONG, name)));
    }
    Ok(Exit::Success)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_without_a_name_is_called_after_its_time() {
        let name = named_by_time(1_796_103_123_456);
        assert_eq!(name, "2026-12-01t05-32-03");
        assert!(hivemind_spec::document::is_dns_label(&name));
    }

    #[test]
    fn a_list_says_how_old_each_is_and_what_it_takes() {
        let snapshot = Snapshot { name: "before".into(), made_ms: 1_000_000, bytes: 3 << 20 };
        let text = anstream::adapter::strip_str(&table(&[snapshot], 1_000_000 + 7_200_000)).to_string();
        assert!(text.contains("before") && text.contains("2h") && text.contains("3 MiB"), "{text}");
    }
}
