//! From Compose files to changes, and from changes to signed documents. Pure, so that `plan` and
//! `push` cannot disagree.

use std::collections::{BTreeMap, BTreeSet};

use hivemind_spec::api::SpecItem;
use hivemind_spec::document::{Document, Kind, Metadata, Spec, SpecKey};
use hivemind_spec::id::NodeId;
use hivemind_spec::key::{PublicKey, SigningKey};
use hivemind_spec::secret::{self, SecretSpec};
use hivemind_spec::words::timestamp;
use hivemind_spec::workload::Exclusive;
use serde::Serialize;
use serde_json::Value;

use crate::compose::APP_LABEL;
use crate::compose::secrets::Plain;
use crate::failure::{Failure, Result};

/// The annotation with the time at which a workload's containers were to be started anew.
const RESTARTED: &str = "org.hivemind.restarted";

/// What a push does to one document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// There is none of that name.
    Create,
    /// There is one with another content.
    Update,
    /// There is one with this content.
    Keep,
}

/// One value that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Where, as a JSON pointer (RFC 6901) into the document.
    pub pointer: String,
    /// What is there now; absent: nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Value>,
    /// What would be there; absent: nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Value>,
}

/// What a push does to one document, and what is needed to do it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The document.
    pub key: SpecKey,
    /// What becomes of it.
    pub action: Action,
    /// What differs; everything for a new one.
    pub differences: Vec<Difference>,
    /// The document to sign, with its revision and what it replaces.
    pub document: Document,
}

/// Whether any of them wants to know which nodes are enrolled.
pub fn wants_voters(documents: &[Document]) -> bool {
    documents.iter().any(|document| document.workload().is_some_and(|spec| spec.exclusive.is_some()))
}

/// Seals secrets to `nodes`, by their keys. One that the cluster holds with the same content, from the same signer, stays
/// as it is sealed. `random` draws unpredictable bytes.
///
/// # Errors
/// When there is nobody to seal to, or one cannot be sealed.
pub fn seal(
    secrets: &[Plain],
    namespace: &str,
    current: &[SpecItem],
    nodes: &BTreeMap<NodeId, PublicKey>,
    signer: &SigningKey,
    random: impl Fn() -> Result<[u8; 32]>,
) -> Result<Vec<Document>> {
    let mut documents = Vec::new();
    for Plain { name, labels, content } in secrets {
        let key = secret::secret_key(namespace, name);
        let held = current.iter().find(|item| item.key == key && !item.deleted);
        let held = held.and_then(SpecItem::document).and_then(|document| secret::of(&document).cloned());
        let mark = secret::mark(&key, content, signer);
        let spec = match held.filter(|held| held.mark == mark) {
            Some(held) => held,
            None if nodes.is_empty() => {
                return Err(Failure::input(
                    "no-recipient",
                    format!("no machine has joined that could open {name}"),
                )
                .advice("push it again once a machine is up; `hivemind nodes` lists them"));
            }
            None => SecretSpec::seal(&key, content, nodes, signer, random()?)
                .map_err(|why| Failure::input("bad-secret", format!("secret {name}: {why}")))?,
        };
        let metadata =
            Metadata { labels: labels.clone(), deleted: false, ..Document::tombstone(&key, 0).metadata };
        documents.push(Document { metadata, kind: Kind::Secret, spec: Some(Spec::Secret(spec)) });
    }
    Ok(documents)
}

/// Compares documents with what the cluster holds. `enrolled` are its nodes, without those that were
/// revoked: exclusive workloads that are new name them.
pub fn compare(
    documents: Vec<Document>,
    current: &[SpecItem],
    enrolled: &BTreeSet<NodeId>,
    now_ms: u64,
) -> Vec<Change> {
    let held: BTreeMap<&SpecKey, &SpecItem> = current.iter().map(|item| (&item.key, item)).collect();
    documents
        .into_iter()
        .map(|mut document| {
            let key = document.key();
            let item = held.get(&key);
            succeed(&mut document, item.copied(), now_ms);
            repeat(&mut document, item.copied(), enrolled);
            let before =
                item.filter(|item| !item.deleted).and_then(|item| content(&item.envelope.payload().ok()?));
            let after = content(&document.to_json()).unwrap_or_default();
            let mut differences = Vec::new();
            differ(before.as_ref(), Some(&after), String::new(), &mut differences);
            let action = match (&before, differences.is_empty()) {
                (None, _) => Action::Create,
                (Some(_), true) => Action::Keep,
                (Some(_), false) => Action::Update,
            };
            Change { key, action, differences, document }
        })
        .collect()
}

/// The next version of a document that is the whole cluster's, without a namespace.
pub fn of_cluster(kind: Kind, name: String, spec: Spec, before: Option<&SpecItem>, now_ms: u64) -> Document {
    let metadata = Metadata {
        name,
        namespace: String::new(),
        labels: BTreeMap::new(),
        revision: 0,
        replaces: None,
        ancestors: None,
        deleted: false,
    };
    let mut document = Document { metadata, kind, spec: Some(spec) };
    succeed(&mut document, before, now_ms);
    document
}

/// Makes a document the next version of what the cluster holds of its name, if anything.
pub fn succeed(document: &mut Document, before: Option<&SpecItem>, now_ms: u64) {
    let metadata = &mut document.metadata;
    metadata.revision = before.map_or(now_ms, |item| now_ms.max(item.revision.saturating_add(1)));
    metadata.replaces = before.map(|item| item.digest);
    metadata.ancestors = Some(before.map(SpecItem::lineage).unwrap_or_default());
}

/// Has all of a job run once more. False when it is none.
pub fn want_again(document: &mut Document) -> bool {
    let revision = document.metadata.revision;
    let Some(Spec::Workload(spec)) = &mut document.spec else { return false };
    let Some(job) = &mut spec.job else { return false };
    job.again_ms = Some(revision);
    true
}

/// Has the containers of a workload replaced, as a change of what they run would.
///
/// # Errors
/// When it is a job, whose containers are not to run again.
pub fn want_anew(document: &mut Document) -> Result<()> {
    let (name, revision) = (document.metadata.name.clone(), document.metadata.revision);
    let Some(Spec::Workload(spec)) = &mut document.spec else { return Ok(()) };
    if spec.job.is_some() {
        let text = format!("{name} is a job, whose containers come to an end; nothing was changed");
        return Err(
            Failure::input("is-job", text).advice(format!("`hivemind jobs run {name}` runs it once more"))
        );
    }
    spec.container.annotations.insert(RESTARTED.to_owned(), timestamp(revision));
    Ok(())
}

/// Repeats what the version before says and no file does: who has a say in where an exclusive workload runs, all nodes
/// if it is new; since when a job is wanted; and when containers were to be started anew.
fn repeat(document: &mut Document, before: Option<&SpecItem>, enrolled: &BTreeSet<NodeId>) {
    let revision = document.metadata.revision;
    let Some(Spec::Workload(spec)) = &mut document.spec else { return };
    let before = before.filter(|item| !item.deleted).and_then(SpecItem::document);
    let before = before.as_ref().and_then(Document::workload);
    if let Some(job) = &mut spec.job {
        // A new one is not taken for one of its name that was removed just now, and whose containers are still there.
        let new = (before.is_none() && job.schedule.is_none()).then_some(revision);
        job.again_ms = job.again_ms.or_else(|| before?.job.as_ref()?.again_ms).or(new);
    }
    // Else the next push would replace the containers once more.
    let restarted = before.and_then(|workload| workload.container.annotations.get(RESTARTED));
    if let Some(restarted) = restarted {
        let annotations = &mut spec.container.annotations;
        annotations.entry(RESTARTED.to_owned()).or_insert_with(|| restarted.clone());
    }
    if let Some(exclusive) = &mut spec.exclusive {
        let kept = before.and_then(|workload| workload.exclusive.clone());
        *exclusive = kept.unwrap_or_else(|| Exclusive { since: revision, voters: enrolled.clone() });
    }
}

/// The tombstone that removes what the cluster holds.
pub fn removal(item: &SpecItem, now_ms: u64) -> Document {
    let mut document = Document::tombstone(&item.key, 0);
    succeed(&mut document, Some(item), now_ms);
    document
}

/// Workloads that came from the same Compose project, but are not in the file any more.
pub fn left_over(project: &str, changes: &[Change], current: &[SpecItem]) -> Vec<SpecKey> {
    let of_project = |item: &&SpecItem| {
        item.document().is_some_and(|d| d.metadata.labels.get(APP_LABEL).is_some_and(|app| app == project))
    };
    let in_file = |key: &SpecKey| changes.iter().any(|change| change.key == *key);
    current
        .iter()
        .filter(|item| !item.deleted && !in_file(&item.key))
        .filter(of_project)
        .map(|item| item.key.clone())
        .collect()
}

/// What people mean by a document's content: its specification and labels, without what every push
/// changes. Goes through the parsed form, so that defaults written out or left out are the same.
fn content(json: &[u8]) -> Option<Value> {
    let document = Document::parse(json).ok()?;
    let mut value: Value = serde_json::from_slice(&document.to_json()).ok()?;
    let labels = value["metadata"]["labels"].take();
    let mut content = serde_json::Map::new();
    if !labels.is_null() {
        content.insert("labels".to_owned(), labels);
    }
    let spec = value["spec"].take();
    // How it is sealed is another each time, and says nothing.
    let spec = if document.kind == Kind::Secret { secret_content(&spec) } else { spec };
    content.insert("spec".to_owned(), spec);
    Some(Value::Object(content))
}

/// What people are shown of a secret: by what its signer knows it, or else that it is sealed.
fn secret_content(spec: &Value) -> Value {
    let by = |field: &str| spec[field].as_str().filter(|text| !text.is_empty());
    let shown = by("mark").or(by("sealed")).unwrap_or_default();
    serde_json::json!({ "content": format!("sealed {}", shown.get(..8).unwrap_or(shown)) })
}

fn differ(before: Option<&Value>, after: Option<&Value>, pointer: String, out: &mut Vec<Difference>) {
    if before == after {
        return;
    }
    let empty = serde_json::Map::new();
    // Descends into maps, also where one side has none, so that each line is one value.
    let maps = match (before, after) {
        (Some(Value::Object(before)), Some(Value::Object(after))) => Some((before, after)),
        (None, Some(Value::Object(after))) => Some((&empty, after)),
        (Some(Value::Object(before)), None) => Some((before, &empty)),
        _ => None,
    };
    let Some((before_map, after_map)) = maps else {
        out.push(Difference { pointer, before: before.cloned(), after: after.cloned() });
        return;
    };
    let mut names: Vec<&String> = before_map.keys().chain(after_map.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        let escaped = name.replace('~', "~0").replace('/', "~1");
        differ(before_map.get(name), after_map.get(name), format!("{pointer}/{escaped}"), out);
    }
}

#[cfg(test)]
mod tests {
    use hivemind_spec::workload::{Job, RestartCondition};

    use hivemind_spec::dsse::Envelope;
    use hivemind_spec::key::SigningKey;

    use super::*;

    fn document(image: &str, replicas: u32) -> Document {
        let json = serde_json::json!({
            "apiVersion": "hivemind/v1", "kind": "Workload",
            "metadata": {"name": "web", "namespace": "default", "revision": 0, "labels": {APP_LABEL: "shop"}},
            "spec": {"replicas": replicas, "container": {"image": image}},
        });
        Document::parse(json.to_string().as_bytes()).unwrap()
    }

    fn held(mut document: Document, revision: u64) -> SpecItem {
        document.metadata.revision = revision;
        let envelope = Envelope::sign(&document.to_json(), &SigningKey::from_seed([1; 32]));
        SpecItem {
            key: document.key(),
            revision,
            digest: envelope.digest(),
            deleted: document.metadata.deleted,
            envelope,
        }
    }

    #[test]
    fn what_was_started_anew_is_not_again_by_the_next_push_of_its_file() {
        let mut anew = document("a", 1);
        anew.metadata.revision = 1_700_000_000_000;
        want_anew(&mut anew).unwrap();
        assert_eq!(anew.workload().unwrap().container.annotations[RESTARTED], "2023-11-14T22:13:20.000Z");
        assert_ne!(content(&anew.to_json()), content(&document("a", 1).to_json()));
        let changes = compare(vec![document("a", 1)], &[held(anew, 1)], &BTreeSet::new(), 2000);
        assert_eq!(changes[0].action, Action::Keep);
    }

    #[test]
    fn a_new_document_is_created_with_the_time_as_revision() {
        let changes = compare(vec![document("a", 1)], &[], &BTreeSet::new(), 1000);
        assert_eq!(changes[0].action, Action::Create);
        assert_eq!(changes[0].document.metadata.revision, 1000);
        assert_eq!(changes[0].document.metadata.replaces, None);
        assert!(
            changes[0].differences.iter().any(|d| d.pointer == "/spec/container/image" && d.before.is_none())
        );
    }

    #[test]
    fn the_same_content_is_kept_whatever_its_revision() {
        let changes = compare(vec![document("a", 1)], &[held(document("a", 1), 5)], &BTreeSet::new(), 1000);
        assert_eq!((changes[0].action, changes[0].differences.len()), (Action::Keep, 0));
    }

    #[test]
    fn a_change_names_what_differs_and_replaces_what_was_seen() {
        let item = held(document("a", 1), 5000);
        let changes = compare(vec![document("b", 1)], std::slice::from_ref(&item), &BTreeSet::new(), 1000);
        assert_eq!(changes[0].action, Action::Update);
        let pointers: Vec<_> = changes[0].differences.iter().map(|d| d.pointer.as_str()).collect();
        assert_eq!(pointers, ["/spec/container/image"]);
        assert_eq!(changes[0].document.metadata.replaces, Some(item.digest));
        assert_eq!(
            changes[0].document.metadata.revision, 5001,
            "never below the current one, whatever the clock"
        );
    }

    #[test]
    fn a_removed_document_is_created_anew_over_its_tombstone() {
        let item = held(document("a", 1), 5);
        let tombstone = removal(&item, 3);
        assert_eq!((tombstone.metadata.revision, tombstone.metadata.replaces), (6, Some(item.digest)));
        Document::parse(&tombstone.to_json()).unwrap();
        let item = held(tombstone, 6);
        let changes = compare(vec![document("a", 1)], std::slice::from_ref(&item), &BTreeSet::new(), 1);
        assert_eq!((changes[0].action, changes[0].document.metadata.revision), (Action::Create, 7));
        assert_eq!(changes[0].document.metadata.replaces, Some(item.digest));
    }

    #[test]
    fn what_left_the_file_is_found_by_its_project() {
        let items = [held(document("a", 1), 5)];
        assert_eq!(left_over("shop", &[], &items).len(), 1);
        assert!(left_over("other", &[], &items).is_empty());
        let changes = compare(vec![document("a", 1)], &items, &BTreeSet::new(), 1);
        assert!(left_over("shop", &changes, &items).is_empty());
    }

    #[test]
    fn since_when_a_job_is_wanted_is_repeated_by_what_is_pushed_later() {
        let job = |again_ms| {
            let mut document = document("a", 1);
            if let Some(Spec::Workload(spec)) = &mut document.spec {
                spec.restart.condition = RestartCondition::OnFailure;
                spec.job = Some(Job { again_ms, ..Job::default() });
            }
            document
        };
        let changes = compare(vec![job(None)], &[held(job(Some(7)), 1000)], &BTreeSet::new(), 2000);
        assert_eq!(changes[0].action, Action::Keep, "pushing its file again runs nothing");
        let wanted_since = |changes: &[Change]| changes[0].document.workload()?.job.as_ref()?.again_ms;
        assert_eq!(wanted_since(&changes), Some(7));
        let mut removed = held(job(Some(7)), 1000);
        removed.deleted = true;
        let anew = compare(vec![job(None)], &[removed], &BTreeSet::new(), 2000);
        assert_eq!(wanted_since(&anew), Some(2000), "one that is made anew is another");
    }

    #[test]
    fn an_exclusive_workload_names_the_nodes_once_and_keeps_them() {
        let exclusive = || {
            let mut document = document("a", 1);
            if let Some(Spec::Workload(spec)) = &mut document.spec {
                spec.exclusive = Some(Exclusive::default());
            }
            document
        };
        let nodes = |numbers: &[u8]| numbers.iter().map(|n| NodeId([*n; 16])).collect::<BTreeSet<_>>();
        let changes = compare(vec![exclusive()], &[], &nodes(&[1, 2, 3]), 1000);
        let first = changes[0].document.clone();
        let said = first.workload().unwrap().exclusive.clone().unwrap();
        assert_eq!(said, Exclusive { since: 1000, voters: nodes(&[1, 2, 3]) });
        let again = compare(vec![exclusive()], &[held(first, 1000)], &nodes(&[1, 2, 3, 4]), 2000);
        assert_eq!(again[0].action, Action::Keep);
        assert_eq!(again[0].document.workload().unwrap().exclusive, Some(said));
    }
}
