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

/// The label of a document that says when what its image's tag names was last looked up, milliseconds since 1970: of
/// those that are looked up every so often.
const LOOKED_UP_LABEL: &str = "hivemind/looked-up";

/// How an image was pushed before.
struct Earlier {
    digest: Digest,
    /// When that was looked up, milliseconds since 1970, if its document says so.
    looked_up_ms: Option<u64>,
}

/// What there is to decide by.
struct Known<'a> {
    /// Of workloads that say when.
    policies: &'a BTreeMap<String, PullPolicy>,
    /// The documents that the cluster holds.
    current: &'a [SpecItem],
    now_ms: u64,
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
    now_ms: u64,
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
    let known = Known { policies, current, now_ms };
    let wanted =
        documents.iter().filter(|document| matches!(known.way(document), Some(Way::Must | Way::Try)));
    let images = wanted.filter_map(Document::workload).map(|workload| workload.container.image.as_str());
    let found = look_up(images.collect(), &options.insecure_registries).await;
    for text in known.apply(documents, &found)? {
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

impl Known<'_> {
    fn policy(&self, document: &Document) -> PullPolicy {
        self.policies.get(&document.metadata.name).copied().unwrap_or_default()
    }

    /// How an image gets its digest; none where there is nothing to do.
    fn way(&self, document: &Document) -> Option<Way> {
        let image = &document.workload()?.container.image;
        if image.contains('@') {
            return None;
        }
        Some(match (self.policy(document), self.earlier(&document.key(), image)) {
            (PullPolicy::Always, _) => Way::Must,
            (PullPolicy::Missing, Some(earlier)) => Way::Keep(earlier.digest),
            (PullPolicy::Every(ms), Some(Earlier { digest, looked_up_ms: Some(at_ms) }))
                if self.now_ms < at_ms.saturating_add(ms) =>
            {
                Way::Keep(digest)
            }
            _ => Way::Try,
        })
    }

    /// How the same image was pushed before, if by digest.
    fn earlier(&self, key: &SpecKey, image: &str) -> Option<Earlier> {
        let item = self.current.iter().find(|item| item.key == *key && !item.deleted)?;
        let held = item.document()?;
        let (tag, digest) = held.workload()?.container.image.split_once('@')?;
        let digest = digest.strip_prefix("sha256:")?.parse().ok().filter(|_| tag == image)?;
        let looked_up_ms = held.metadata.labels.get(LOOKED_UP_LABEL).and_then(|text| text.parse().ok());
        Some(Earlier { digest, looked_up_ms })
    }

    /// Writes what was found into the documents; returns what people should know.
    fn apply(&self, documents: &mut [Document], found: &Found) -> Result<BTreeSet<String>> {
        let mut notes = BTreeSet::new();
        for document in documents {
            let Some(way) = self.way(document) else { continue };
            let (key, policy) = (document.key(), self.policy(document));
            let Some(Spec::Workload(workload)) = &mut document.spec else { continue };
            let image = &mut workload.container.image;
            let earlier = self.earlier(&key, image);
            let kept = earlier.as_ref().map(|earlier| (earlier.digest, earlier.looked_up_ms));
            let pinned = match (way, found.get(image.as_str())) {
                (Way::Keep(_), _) | (Way::Try, None) => kept,
                (_, Some(Ok(digest))) => Some((*digest, Some(self.now_ms))),
                (Way::Must, missed) => {
                    let why = missed.and_then(|missed| missed.as_ref().err()).map_or("", String::as_str);
                    let text = format!("{}: {image}: {why}", key.name);
                    return Err(Failure::local("image-not-found", text).advice(
                        "it has `pull_policy: always`, so it must be looked up; correct what is wrong, or remove that",
                    ));
                }
                (Way::Try, Some(Err(why))) => {
                    notes.insert(match kept {
                        Some(_) => format!("{image} stays what it was: {why}"),
                        None => format!(
                            "{image} is pushed as a tag, and each machine takes what that names when it fetches it: {why}"
                        ),
                    });
                    kept
                }
            };
            let Some((digest, looked_up_ms)) = pinned else { continue };
            *image = format!("{image}@sha256:{digest}");
            if let (PullPolicy::Every(_), Some(at_ms)) = (policy, looked_up_ms) {
                document.metadata.labels.insert(LOOKED_UP_LABEL.to_owned(), at_ms.to_string());
            }
        }
        Ok(notes)
    }
}

#[cfg(test)]
mod tests {
    use hivemind_spec::document::{Kind, Metadata};
    use hivemind_spec::dsse::Envelope;
    use hivemind_spec::key::SigningKey;
    use hivemind_spec::workload::{ContainerSpec, WorkloadSpec};

    use super::*;

    const NOW_MS: u64 = 1_800_000_000_000;
    const TAG: &str = "registry.example/shop:1";

    fn document(image: &str) -> Document {
        let key = SpecKey { kind: Kind::Workload, namespace: "default".into(), name: "web".into() };
        let metadata = Metadata { deleted: false, ..Document::tombstone(&key, 7).metadata };
        let spec = WorkloadSpec::of(ContainerSpec::of(image));
        Document { metadata, kind: Kind::Workload, spec: Some(Spec::Workload(Box::new(spec))) }
    }

    fn held(image: &str) -> Vec<SpecItem> {
        held_as(document(image))
    }

    fn held_as(document: Document) -> Vec<SpecItem> {
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
        let known = Known { policies: &policies, current, now_ms: NOW_MS };
        let found = match known.way(&documents[0]) {
            Some(Way::Must | Way::Try) => Found::from([(TAG.to_owned(), found)]),
            _ => Found::new(),
        };
        let notes = known.apply(&mut documents, &found)?;
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
    fn a_tag_that_is_looked_up_every_so_often_keeps_its_digest_for_as_long() {
        let policies = policy(PullPolicy::Every(1000));
        let push = |current: &[SpecItem], now_ms, content: &str| {
            let mut documents = [document(TAG)];
            let known = Known { policies: &policies, current, now_ms };
            let looks = known.way(&documents[0]) == Some(Way::Try);
            let found = Ok(Digest::of(content.as_bytes()));
            known.apply(&mut documents, &Found::from([(TAG.to_owned(), found)])).unwrap();
            let [document] = documents;
            (looks, document.workload().unwrap().container.image.clone(), held_as(document))
        };
        let (looks, image, current) = push(&[], NOW_MS, "first");
        assert_eq!((looks, image), (true, pinned("first")));
        // Pushes in between change nothing of when it is looked up again.
        let (looks, image, current) = push(&current, NOW_MS + 900, "second");
        assert_eq!((looks, image), (false, pinned("first")));
        let (looks, image, _) = push(&current, NOW_MS + 1000, "second");
        assert_eq!((looks, image), (true, pinned("second")));
    }

    #[test]
    fn an_image_named_by_its_digest_stays_as_it_is() {
        let image = pinned("own");
        let mut documents = [document(&image)];
        let known = Known { policies: &policy(PullPolicy::Always), current: &[], now_ms: NOW_MS };
        assert_eq!(known.way(&documents[0]), None);
        assert!(known.apply(&mut documents, &Found::new()).unwrap().is_empty());
        assert_eq!(documents[0].workload().unwrap().container.image, image);
    }

    #[tokio::test]
    async fn a_registry_that_does_not_answer_keeps_nobody_from_pushing() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let image = format!("{closed}/shop:1");
        let mut documents = [document(&image)];
        let options = Pinning { no_pin: false, insecure_registries: vec![closed.to_string()] };
        pin(&mut documents, &BTreeMap::new(), &[], NOW_MS, &options).await.unwrap();
        assert_eq!(documents[0].workload().unwrap().container.image, image);
        let failure =
            pin(&mut documents, &policy(PullPolicy::Always), &[], NOW_MS, &options).await.unwrap_err();
        assert!(failure.detail.contains(&closed.to_string()), "{}", failure.detail);
        let options = Pinning { no_pin: true, ..options };
        let failure =
            pin(&mut documents, &policy(PullPolicy::Always), &[], NOW_MS, &options).await.unwrap_err();
        assert_eq!(failure.code, "contradictory");
    }
}
