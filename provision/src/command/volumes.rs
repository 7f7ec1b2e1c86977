//! `hivemind volumes`: where data is, and its end.

use hivemind_spec::api::{Accepted, SpecItem, Volume, VolumePart};
use hivemind_spec::document::{Document, Kind, Metadata, Spec, SpecKey};
use hivemind_spec::volume::{Discard, VolumeSpec};
use serde_json::json;

use super::push::{held, send};
use super::{backup, snapshots};
use crate::cli::{self, Global, Output, VolumeName, Volumes, VolumesList, VolumesRemove};
use crate::client::{Client, percent, with_query};
use crate::deploy;
use crate::failure::{Exit, Failure, Result};
use crate::quantity::{show_bytes, show_span};
use crate::terminal::{BAD, CHANGING, FAINT, GOOD, STRONG, Table, confirm, paint, say, say_json, styled};

const UNCHANGED: &str = "stopped; look with `hivemind volumes`";

pub(super) fn run(global: &Global, command: Option<&Volumes>) -> Result<Exit> {
    match command {
        None => list(global, &VolumesList::default()),
        Some(Volumes::List(options)) => list(global, options),
        Some(Volumes::Remove(options)) => remove(global, options),
        Some(Volumes::Backup(options)) => backup::backup(global, options),
        Some(Volumes::Check(options)) => backup::check(global, options),
        Some(Volumes::Snapshot(options)) => snapshots::snapshot(global, options),
        Some(Volumes::Snapshots(options)) => snapshots::list(global, options),
        Some(Volumes::Restore(options)) => match (&options.from, &options.snapshot) {
            (Some(file), _) => backup::restore(global, options, file),
            (None, Some(name)) => snapshots::restore(global, options, name),
            (None, None) => restore(global, &options.volume),
        },
    }
}

fn list(global: &Global, options: &VolumesList) -> Result<Exit> {
    let client = super::client(global)?;
    let path = with_query("/v1/volumes", &[("namespace", options.namespace.as_deref())]);
    let volumes: Vec<Volume> = super::block_on("nothing was changed", client.list(&path))?;
    if global.output == Output::Json {
        say_json(&json!({ "items": volumes }));
    } else if volumes.is_empty() {
        say("No volumes. A Compose file brings them: `volumes` at its top level");
    } else {
        say(&table(&volumes));
    }
    Ok(Exit::Success)
}

/// A line for each part, and one for a volume that has none yet.
fn table(volumes: &[Volume]) -> String {
    let mut table = Table::new(&["NAMESPACE", "VOLUME", "STATE", "USED", "SIZE", "NODE", "USED BY"]);
    for volume in volumes {
        let size = volume.spec.as_ref().and_then(|spec| spec.size_bytes).map(show_bytes);
        let mut row = |name: String, part: Option<&VolumePart>| {
            let (style, state) = state(volume, part);
            let used = part.and_then(|part| part.used_bytes).map(show_bytes);
            let node = part.map_or("-", |part| part.hostname.as_str());
            let dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
            let users = Some(volume.workloads.join(", ")).filter(|users| !users.is_empty());
            table.row([
                volume.namespace.as_str().into(),
                name.into(),
                styled(style, &state),
                dash(used).into(),
                dash(size.clone()).into(),
                node.into(),
                dash(users).into(),
            ]);
        };
        match volume.parts.as_slice() {
            [] => row(volume.name.clone(), None),
            parts => {
                for part in parts {
                    let per = volume.spec.as_ref().map(|spec| spec.per);
                    let numbered = per == Some(hivemind_spec::volume::Per::Replica) || part.number > 0;
                    let number = if numbered { format!("/{}", part.number) } else { String::new() };
                    row(format!("{}{number}", volume.name), Some(part));
                }
            }
        }
    }
    table.render()
}

fn state(volume: &Volume, part: Option<&VolumePart>) -> (anstyle::Style, String) {
    let discard = volume.spec.as_ref().and_then(|spec| spec.discard);
    match (part, discard) {
        (None, Some(_)) => (FAINT, "deleted".to_owned()),
        (None, None) => (CHANGING, "not used yet".to_owned()),
        (Some(part), Some(Discard { grace_ms })) => {
            let left_ms = grace_ms.saturating_sub(part.discarding_ms.unwrap_or(0));
            (BAD, format!("deleted in {}", show_span(left_ms)))
        }
        (Some(part), None) if !part.reachable => (BAD, "its machine is down".to_owned()),
        (Some(_), None) if volume.spec.is_none() => (CHANGING, "kept, without a document".to_owned()),
        (Some(_), None) => (GOOD, "there".to_owned()),
    }
}

/// The volume as the cluster has it, and its document as it was last pushed.
async fn find(client: &Client, wanted: &VolumeName) -> Result<(Volume, Option<SpecItem>)> {
    let VolumeName { name, namespace } = wanted;
    let volumes: Vec<Volume> = client.list(&format!("/v1/volumes?namespace={}", percent(namespace))).await?;
    let Some(volume) = volumes.into_iter().find(|volume| volume.name == *name) else {
        let detail = format!("there is no volume {name:?} in namespace {namespace:?}");
        return Err(Failure::new(Exit::Refused, "not-found", detail).advice("`hivemind volumes` lists them"));
    };
    let path = format!("/v1/specs?kind={}&namespace={}", Kind::Volume, percent(namespace));
    let items: Vec<SpecItem> = client.list(&path).await?;
    Ok((volume, items.into_iter().find(|item| item.key.name == *name)))
}

fn remove(global: &Global, options: &VolumesRemove) -> Result<Exit> {
    let name = &options.volume.name;
    let client = super::client(global)?;
    let (volume, item) = super::block_on(UNCHANGED, find(&client, &options.volume))?;
    if let [first, ..] = volume.workloads.as_slice() {
        let detail = format!("workload {first} uses volume {name}; nothing was removed");
        return Err(Failure::new(Exit::Refused, "in-use", detail)
            .advice("`hivemind remove` removes the workload, or push it without the volume"));
    }
    if !options.yes && !volume.parts.is_empty() {
        let when = if options.grace == 0 {
            "at once".to_owned()
        } else {
            format!("after {} of each machine's running", show_span(options.grace))
        };
        confirm(&format!("Delete all data of volume {name} {when}?"), "nothing was removed")?;
    }
    // Without data, all there is to remove is the document.
    let document = match &item {
        Some(item) if volume.parts.is_empty() => deploy::removal(item, client.now_ms()),
        _ => next(&options.volume, item.as_ref(), client.now_ms(), |spec| {
            spec.discard = Some(Discard { grace_ms: options.grace });
        }),
    };
    let accepted = super::block_on(UNCHANGED, send(&client, &document))?;
    let what = match (volume.parts.is_empty(), options.grace) {
        (true, _) => "is removed; it has no data".to_owned(),
        (_, 0) => "is deleted".to_owned(),
        (_, grace) => {
            format!("is deleted in {}; `hivemind volumes restore {name}` takes that back", show_span(grace))
        }
    };
    report(global, name, &what, &accepted);
    Ok(Exit::Success)
}

fn restore(global: &Global, cli::Volume { name, namespace, .. }: &cli::Volume) -> Result<Exit> {
    let wanted = &VolumeName { name: name.clone(), namespace: namespace.clone() };
    let client = super::client(global)?;
    let (volume, item) = super::block_on(UNCHANGED, find(&client, wanted))?;
    if volume.parts.is_empty() {
        let detail = format!("volume {} has no data any more", wanted.name);
        return Err(Failure::new(Exit::Refused, "not-found", detail)
            .advice("push it again to have a new one of that name"));
    }
    let document = next(wanted, item.as_ref(), client.now_ms(), |spec| spec.discard = None);
    let accepted = super::block_on(UNCHANGED, send(&client, &document))?;
    report(global, &wanted.name, "stays", &accepted);
    Ok(Exit::Success)
}

fn report(global: &Global, name: &str, what: &str, accepted: &Accepted) {
    if global.output == Output::Json {
        say_json(&json!({ "accepted": [accepted] }));
    } else {
        say(&format!("volume {} {what}, {}", paint(STRONG, name), held(accepted)));
    }
}

/// The next version of a volume's document; a new one where there is none, though machines have data.
fn next(
    wanted: &VolumeName,
    before: Option<&SpecItem>,
    now_ms: u64,
    change: impl FnOnce(&mut VolumeSpec),
) -> Document {
    let (labels, mut spec) = match before.and_then(SpecItem::document) {
        Some(Document { metadata, spec: Some(Spec::Volume(spec)), .. }) => (metadata.labels, spec),
        _ => Default::default(),
    };
    change(&mut spec);
    let key = SpecKey { kind: Kind::Volume, namespace: wanted.namespace.clone(), name: wanted.name.clone() };
    let metadata = Metadata { labels, deleted: false, ..Document::tombstone(&key, 0).metadata };
    let mut document = Document { metadata, kind: Kind::Volume, spec: Some(Spec::Volume(spec)) };
    deploy::succeed(&mut document, before, now_ms);
    document
}

#[cfg(test)]
mod tests {
    use hivemind_spec::id::NodeId;
    use hivemind_spec::volume::Per;

    use super::*;

    fn volume(spec: Option<VolumeSpec>, parts: &[(u32, &str)]) -> Volume {
        let part = |(number, hostname): &(u32, &str)| VolumePart {
            number: *number,
            node: NodeId([1; 16]),
            hostname: (*hostname).to_owned(),
            reachable: true,
            made_ms: 5,
            used_bytes: Some(3 << 20),
            discarding_ms: None,
        };
        Volume {
            namespace: "default".into(),
            name: "data".into(),
            spec,
            workloads: vec!["db".into()],
            parts: parts.iter().map(part).collect(),
        }
    }

    fn shown(volume: Volume) -> String {
        anstream::adapter::strip_str(&table(&[volume])).to_string()
    }

    #[test]
    fn each_part_of_a_volume_has_its_line_and_says_how_it_is() {
        let spec = VolumeSpec { per: Per::Replica, size_bytes: Some(5 << 20), discard: None };
        let text = shown(volume(Some(spec.clone()), &[(0, "edge-1"), (1, "edge-2")]));
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains("data/0") && text.contains("edge-2") && text.contains("there"), "{text}");
        assert!(shown(volume(None, &[(0, "edge-1")])).contains("kept, without a document"));
        assert!(shown(volume(Some(spec.clone()), &[])).contains("not used yet"));
        let discard = Some(Discard { grace_ms: 7 * 24 * 3_600_000 });
        let text = shown(volume(Some(VolumeSpec { discard, ..spec }), &[(0, "edge-1")]));
        assert!(text.contains("deleted in 7d"), "{text}");
    }

    #[test]
    fn what_a_volume_was_pushed_with_stays_when_it_is_removed_and_restored() {
        let wanted = VolumeName { name: "data".into(), namespace: "default".into() };
        let first = next(&wanted, None, 1000, |spec| {
            (spec.per, spec.size_bytes) = (Per::Replica, Some(5 << 20));
        });
        Document::parse(&first.to_json()).unwrap();
        let key = hivemind_spec::key::SigningKey::from_seed([1; 32]);
        let envelope = hivemind_spec::dsse::Envelope::sign(&first.to_json(), &key);
        let item = SpecItem {
            key: first.key(),
            revision: 1000,
            digest: envelope.digest(),
            deleted: false,
            envelope,
        };
        let second = next(&wanted, Some(&item), 500, |spec| spec.discard = Some(Discard { grace_ms: 7 }));
        let Some(Spec::Volume(spec)) = &second.spec else { panic!("{second:?}") };
        assert_eq!((spec.per, spec.size_bytes), (Per::Replica, Some(5 << 20)));
        assert_eq!((second.metadata.revision, second.metadata.replaces), (1001, Some(item.digest)));
    }
}
