//! Images by digest: what tags name is looked up when documents are pushed, so that what is signed is what runs,
//! on all machines and for as long as nobody pushes again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use hivemind_spec::api::SpecItem;
use hivemind_spec::document::{Document, Spec, SpecKey};
use hivemind_spec::id::Digest;
use oci_client::Reference;

use crate::cli::Pinning;
use crate::compose::PullPolicy;
use crate::failure::{Failure, Result};
use crate::registry;
use crate::terminal::{CHANGING, note, paint};

/// Registries are asked about so many images at a time.
const AT_A_TIME: usize = 8;

/// How long all of that may take. A registry that cannot be reached from here must not keep anybody from pushing.
const LIMIT: Duration = Duration::from_secs(10);

/// Names which have no digest yet, and where each is to be looked up, if it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It must be looked up.
    Must,
    /// It is looked up if that can be done.
    Try,
    /// It keeps the digest it was pushed with.
    Keep(Digest),
}

/// What came of looking up each tag.
type Found = BTreeMap<String, std::result::Result<Digest, String>>;

/// Gives the images of workloads the digests that their tags have now. What cannot be looked up keeps the digest it was
/// pushed with before, or else stays a tag, and is told. `policies` are those of workloads that say when.
///
/// # Errors
/// `image-not-found` for what must be looked up and cannot be.
pub(super) async fn pin(
    documents: &mut [Document],
    policies: &BTreeMap<String, PullPolicy>,
    current: &[SpecItem],
    options: &Pinning,
) -> Result<()> {
    if options.no_pin {
        return match policies.iter().find(|(_, policy)| **policy == PullPolicy::Always) {
            Some((name, _)) => Err(Failure::input(
                "contradictory",
                format!("{name} has `pull_policy: always`, and `--no-pin` looks nothing up"),
            )
            .advice("leave one of them out")),
            None => Ok(()),
        };
    }
    let ways = documents.iter().map(|document| way(document, policies, current));
    let wanted: BTreeSet<&str> = documents
        .iter()
        .zip(ways)
        .filter(|(_, way)| matches!(way, Some(Way::Must | Way::Try)))
        .filter_map(|(document, _)| document.workload())
        .map(|workload| workload.container.image.as_str())
        .collect();
    let found = look_up(wanted, &options.insecure_registries).await;
    for text in apply(documents, policies, current, &found)? {
        note(&format!("{} {text}", paint(CHANGING, "note:")));
    }
    Ok(())
}

async fn look_up(images: BTreeSet<&str>, insecure: &[String]) -> Found {
    if images.is_empty() {
        return Found::new();
    }
    let client = registry::client(insecure).map_err(|error| error.to_string());
    let deadline = tokio::time::Instant::now() + LIMIT;
    let one = async |image: &str| {
        let client = client.as_ref().map_err(Clone::clone)?;
        let reference: Reference = image.parse().map_err(|error| format!("it is no reference: {error}"))?;
        match tokio::time::timeout_at(deadline, registry::digest(client, &reference)).await {
            Ok(found) => found,
            Err(_) => Err(format!("registry {} does not answer in time", reference.resolve_registry())),
        }
    };
    let answers = images.into_iter().map(async |image| (image.to_owned(), one(image).await));
    stream::iter(answers).buffer_unordered(AT_A_TIME).collect().await
}

/// How an image gets its digest; none where there is nothing to do.
fn way(document: &Document, policies: &BTreeMap<String, PullPolicy>, current: &[SpecItem]) -> Option<Way> {
    let image = &document.workload()?.container.image;
    if image.contains('@') {
        return None;
    }
    let policy = policies.get(&document.metadata.name).copied().unwrap_or_default();
    Some(match (policy, earlier(&document.key(), image, current)) {
        (PullPolicy::Always, _) => Way::Must,
        (PullPolicy::Missing, Some(digest)) => Way::Keep(digest),
        _ => Way::Try,
    })
}

/// The digest with which the same image was pushed before.
fn earlier(key: &SpecKey, image: &str, current: &[SpecItem]) -> Option<Digest> {
    let item = current.iter().find(|item| item.key == *key && !item.deleted)?;
    let held = item.document()?;
    let (tag, digest) = held.workload()?.container.image.split_once('@')?;
    if tag != image {
        return None;
    }
    digest.strip_prefix("sha256:")?.parse().ok()
}

/// Writes what was found into the documents; returns what people should know.
fn apply(
    documents: &mut [Document],
    policies: &BTreeMap<String, PullPolicy>,
    current: &[SpecItem],
    found: &Found,
) -> Result<BTreeSet<String>> {
    let mut notes = BTreeSet::new();
    for document in documents {
        let Some(way) = way(document, policies, current) else { continue };
        let key = document.key();
        let Some(Spec::Workload(workload)) = &mut document.spec else { continue };
        let image = &mut workload.container.image;
        let digest = match (way, found.get(image.as_str())) {
            (Way::Keep(digest), _) => Some(digest),
            (_, Some(Ok(digest))) => Some(*digest),
            (Way::Must, missed) => {
                let why = missed.and_then(|missed| missed.as_ref().err()).map_or("", String::as_str);
                return Err(Failure::local("image-not-found", format!("{}: {image}: {why}", key.name))
                    .advice("it has `pull_policy: always`, so it must be looked up; correct what is wrong, or remove that"));
            }
            (Way::Try, Some(Err(why))) => {
                let before = earlier(&key, image, current);
                notes.insert(match before {
                    Some(_) => format!("{image} stays what it was: {why}"),
                    None => format!(
                        "{image} is pushed as a tag, and each machine takes what that names when it fetches it: {why}"
                    ),
                });
                before
            }
            (Way::Try, None) => None,
        };
        if let Some(digest) = digest {
            *image = format!("{image}@sha256:{digest}");
        }
    }
    Ok(notes)
}

#[cfg(test)]
mod tests {
    use hivemind_spec::document::{Kind, Metadata};
    use hivemind_spec::dsse::Envelope;
    use hivemind_spec::key::SigningKey;
    use hivemind_spec::workload::{ContainerSpec, WorkloadSpec};

    use super::*;

    const TAG: &str = "registry.example/shop:1";

    fn document(image: &str) -> Document {
        let key = SpecKey { kind: Kind::Workload, namespace: "default".into(), name: "web".into() };
        let metadata = Metadata { deleted: false, ..Document::tombstone(&key, 7).metadata };
        let spec = WorkloadSpec::of(ContainerSpec::of(image));
        Document { metadata, kind: Kind::Workload, spec: Some(Spec::Workload(Box::new(spec))) }
    }

    fn held(image: &str) -> Vec<SpecItem> {
        let document = document(image);
        let envelope = Envelope::sign(&document.to_json(), &SigningKey::from_seed([1; 32]));
        vec![SpecItem {
            key: document.key(),
            revision: document.metadata.revision,
            digest: envelope.digest(),
            deleted: false,
            envelope,
        }]
    }

    fn pinned(content: &str) -> String {
        format!("{TAG}@sha256:{}", Digest::of(content.as_bytes()))
    }

    fn policy(policy: PullPolicy) -> BTreeMap<String, PullPolicy> {
        BTreeMap::from([("web".to_owned(), policy)])
    }

    /// What `TAG` becomes, and what is told.
    fn pushed(
        policy: PullPolicy,
        current: &[SpecItem],
        found: std::result::Result<&str, &str>,
    ) -> Result<(String, Vec<String>)> {
        let mut documents = [document(TAG)];
        let policies = self::policy(policy);
        let found = found.map(|content| Digest::of(content.as_bytes())).map_err(str::to_owned);
        let found = match way(&documents[0], &policies, current) {
            Some(Way::Must | Way::Try) => Found::from([(TAG.to_owned(), found)]),
            _ => Found::new(),
        };
        let notes = apply(&mut documents, &policies, current, &found)?;
        Ok((documents[0].workload().unwrap().container.image.clone(), notes.into_iter().collect()))
    }

    #[test]
    fn a_tag_is_pushed_as_what_it_names_now_and_again_when_that_has_changed() {
        let first = pushed(PullPolicy::Unsaid, &[], Ok("first")).unwrap();
        assert_eq!(first, (pinned("first"), vec![]));
        let second = pushed(PullPolicy::Unsaid, &held(&first.0), Ok("second")).unwrap();
        assert_eq!(second, (pinned("second"), vec![]));
    }

    #[test]
    fn what_cannot_be_looked_up_stays_what_it_was_and_is_told() {
        let (image, notes) = pushed(PullPolicy::Unsaid, &held(&pinned("first")), Err("gone")).unwrap();
        assert_eq!(image, pinned("first"));
        assert!(notes[0].contains("stays what it was") && notes[0].contains("gone"), "{notes:?}");
        // Another tag's digest says nothing of this one.
        let other = format!("registry.example/shop:2@sha256:{}", Digest::of(b"other"));
        let (image, notes) = pushed(PullPolicy::Unsaid, &held(&other), Err("gone")).unwrap();
        assert_eq!(image, TAG);
        assert!(notes[0].contains("as a tag") && notes[0].contains("gone"), "{notes:?}");
    }

    #[test]
    fn a_policy_says_whether_a_tag_must_be_looked_up_or_keeps_its_digest() {
        let held = held(&pinned("first"));
        assert_eq!(pushed(PullPolicy::Missing, &held, Ok("second")).unwrap().0, pinned("first"));
        assert_eq!(pushed(PullPolicy::Missing, &[], Ok("second")).unwrap().0, pinned("second"));
        assert_eq!(pushed(PullPolicy::Always, &held, Ok("second")).unwrap().0, pinned("second"));
        let refused = pushed(PullPolicy::Always, &held, Err("gone")).unwrap_err();
        assert_eq!(refused.code, "image-not-found");
        assert!(refused.detail.contains("web") && refused.detail.contains("gone"), "{}", refused.detail);
    }

    #[test]
    fn an_image_named_by_its_digest_stays_as_it_is() {
        let image = pinned("own");
        let mut documents = [document(&image)];
        assert_eq!(way(&documents[0], &policy(PullPolicy::Always), &[]), None);
        assert!(apply(&mut documents, &BTreeMap::new(), &[], &Found::new()).unwrap().is_empty());
        assert_eq!(documents[0].workload().unwrap().container.image, image);
    }

    #[tokio::test]
    async fn a_registry_that_does_not_answer_keeps_nobody_from_pushing() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let image = format!("{closed}/shop:1");
        let mut documents = [document(&image)];
        let options = Pinning { no_pin: false, insecure_registries: vec![closed.to_string()] };
        pin(&mut documents, &BTreeMap::new(), &[], &options).await.unwrap();
        assert_eq!(documents[0].workload().unwrap().container.image, image);
        let failure = pin(&mut documents, &policy(PullPolicy::Always), &[], &options).await.unwrap_err();
        assert!(failure.detail.contains(&closed.to_string()), "{}", failure.detail);
        let options = Pinning { no_pin: true, ..options };
        let failure = pin(&mut documents, &policy(PullPolicy::Always), &[], &options).await.unwrap_err();
        assert_eq!(failure.code, "contradictory");
    }
}
