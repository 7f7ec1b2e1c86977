//! Images by digest: what tags name is looked up when documents are pushed, so that what is signed is what runs,
//! on all machines and for as long as nobody pushes again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use hivemind_spec::api::{GivenImage, SpecItem};
use hivemind_spec::document::{Document, Spec, SpecKey};
use hivemind_spec::id::Digest;
use oci_client::Reference;

use super::images;
use crate::cli::Pinning;
use crate::client::Client;
use crate::compose::PullPolicy;
use crate::failure::{Failure, Result};
use crate::registry;
use crate::terminal::caution;

/// Registries are asked about so many images at a time.
const AT_A_TIME: usize = 8;

/// How long all of that may take. A registry that cannot be reached from here must not keep anybody from pushing.
const LIMIT: Duration = Duration::from_secs(10);

/// The label of a document that says when what its image's tag names was last looked up, milliseconds since 1970: of
/// those that are looked up every so often.
const LOOKED_UP_LABEL: &str = "hivemind/looked-up";

/// How an image was pushed before.
struct Earlier {
    digest: Digest,
    /// When that was looked up, milliseconds since 1970, if its document says so.
    looked_up_ms: Option<u64>,
}

/// An image of a workload that is named by a tag.
struct Tag {
    image: String,
    policy: PullPolicy,
    /// None: it was not pushed, or as another, or without a digest.
    earlier: Option<Earlier>,
}

/// What came of looking up each tag.
pub(super) type Found = BTreeMap<String, std::result::Result<Digest, String>>;

/// Looks up the tags of which it is certain before it is known what the cluster holds: those of images that machines were
/// given, there; the others at their registries.
///
/// # Errors
/// When the cluster does not answer.
pub(super) async fn look_ahead(
    client: &Client,
    documents: &[Document],
    policies: &BTreeMap<String, PullPolicy>,
    options: &Pinning,
) -> Result<Found> {
    let tags: Vec<Tag> = documents.iter().filter_map(|document| Tag::of(document, policies, &[])).collect();
    if tags.is_empty() || options.no_pin {
        return Ok(Found::new());
    }
    let mut found = among_given(&tags, &images::given(client).await?);
    for image in found.iter().filter(|(_, found)| found.is_ok()).map(|(image, _)| image) {
        caution(&format!("{image} is the one that machines were given"));
    }
    let certain = |tag: &&Tag| {
        matches!(tag.policy, PullPolicy::Unsaid | PullPolicy::Always) && !found.contains_key(&tag.image)
    };
    let wanted = tags.iter().filter(certain).map(|tag| tag.image.clone()).collect();
    found.extend(look_up(wanted, &options.insecure_registries).await);
    Ok(found)
}

/// What the tags name of images that machines were given. Those that are to be looked up whatever happens are not among them,
/// and those that never are are all of them.
fn among_given(tags: &[Tag], given: &[GivenImage]) -> Found {
    let look = |tag: &Tag| {
        let name = images::whole_name(&tag.image);
        // The one that was given last comes first.
        let image = given.iter().find(|image| images::whole_name(&image.name) == name);
        let digest = image.and_then(|image| Digest::from_oci(&image.digest));
        match (digest, tag.policy) {
            (_, PullPolicy::Always) => None,
            (Some(digest), _) => Some(Ok(digest)),
            (None, PullPolicy::Never) => {
                Some(Err("no machine was given it; `hivemind images give` does that".to_owned()))
            }
            (None, _) => None,
        }
    };
    tags.iter().filter_map(|tag| Some((tag.image.clone(), look(tag)?))).collect()
}

/// Gives the images of workloads the digests that their tags have now. What cannot be looked up keeps the digest it was
/// pushed with before, or else stays a tag, and is told. `policies` are those of workloads that say when; `found` is what
/// was looked up already.
///
/// # Errors
/// `image-not-found` for what must be looked up and cannot be.
pub(super) async fn pin(
    documents: &mut [Document],
    policies: &BTreeMap<String, PullPolicy>,
    current: &[SpecItem],
    now_ms: u64,
    options: &Pinning,
    found: &mut Found,
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
    let tags: Vec<Option<Tag>> =
        documents.iter().map(|document| Tag::of(document, policies, current)).collect();
    let wanted = tags.iter().flatten().filter(|tag| tag.is_looked_up(now_ms));
    let missing = wanted.map(|tag| tag.image.clone()).filter(|image| !found.contains_key(image)).collect();
    found.extend(look_up(missing, &options.insecure_registries).await);
    let mut notes = BTreeSet::new();
    for (document, tag) in documents.iter_mut().zip(tags) {
        notes.extend(tag.map(|tag| tag.apply(document, found, now_ms)).transpose()?.flatten());
    }
    for text in notes {
        caution(&text);
    }
    Ok(())
}

async fn look_up(images: BTreeSet<String>, insecure: &[String]) -> Found {
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
    let answers = images.into_iter().map(async |image| {
        let found = one(&image).await;
        (image, found)
    });
    stream::iter(answers).buffer_unordered(AT_A_TIME).collect().await
}

impl Tag {
    /// None where there is nothing to do.
    fn of(
        document: &Document,
        policies: &BTreeMap<String, PullPolicy>,
        current: &[SpecItem],
    ) -> Option<Self> {
        let image = document.workload()?.container.image.clone();
        let policy = policies.get(&document.metadata.name).copied().unwrap_or_default();
        let earlier = Earlier::of(&document.key(), &image, current);
        (!image.contains('@')).then_some(Self { image, policy, earlier })
    }

    fn is_looked_up(&self, now_ms: u64) -> bool {
        match (self.policy, &self.earlier) {
            (PullPolicy::Missing, Some(_)) => false,
            (PullPolicy::Every(ms), Some(Earlier { looked_up_ms: Some(at_ms), .. })) => {
                now_ms >= at_ms.saturating_add(ms)
            }
            _ => true,
        }
    }

    /// Writes what was found into its document; returns what people should know.
    fn apply(self, document: &mut Document, found: &Found, now_ms: u64) -> Result<Option<String>> {
        let looked_up = self.is_looked_up(now_ms);
        let Self { image, policy, earlier } = self;
        let (mut pinned, mut told) = (earlier, None);
        match found.get(&image).filter(|_| looked_up) {
            Some(Ok(digest)) => pinned = Some(Earlier { digest: *digest, looked_up_ms: Some(now_ms) }),
            Some(Err(why)) if matches!(policy, PullPolicy::Always | PullPolicy::Never) => {
                let text = format!("{}: {image}: {why}", document.metadata.name);
                let said = if policy == PullPolicy::Always { "always" } else { "never" };
                return Err(Failure::local("image-not-found", text).advice(format!(
                    "it has `pull_policy: {said}`, so it must be found there; correct what is wrong, or remove that"
                )));
            }
            Some(Err(why)) if pinned.is_some() => told = Some(format!("{image} stays what it was: {why}")),
            Some(Err(why)) => {
                told = Some(format!(
                    "{image} is pushed as a tag, and each machine takes what that names when it fetches it: {why}"
                ));
            }
            None => {}
        }
        if let (Some(Earlier { digest, looked_up_ms }), Some(Spec::Workload(workload))) =
            (pinned, &mut document.spec)
        {
            workload.container.image = format!("{image}@sha256:{digest}");
            if let (PullPolicy::Every(_), Some(at_ms)) = (policy, looked_up_ms) {
                document.metadata.labels.insert(LOOKED_UP_LABEL.to_owned(), at_ms.to_string());
            }
        }
        Ok(told)
    }
}

impl Earlier {
    fn of(key: &SpecKey, image: &str, current: &[SpecItem]) -> Option<Self> {
        let item = current.iter().find(|item| item.key == *key && !item.deleted)?;
        let held = item.document()?;
        let (tag, digest) = held.workload()?.container.image.split_once('@')?;
        let digest = Digest::from_oci(digest).filter(|_| tag == image)?;
        let looked_up_ms = held.metadata.labels.get(LOOKED_UP_LABEL).and_then(|text| text.parse().ok());
        Some(Self { digest, looked_up_ms })
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
        let mut document = document(TAG);
        let found = found.map(|content| Digest::of(content.as_bytes())).map_err(str::to_owned);
        let tag = Tag::of(&document, &self::policy(policy), current).unwrap();
        let found =
            if tag.is_looked_up(NOW_MS) { Found::from([(TAG.to_owned(), found)]) } else { Found::new() };
        let told = tag.apply(&mut document, &found, NOW_MS)?;
        Ok((document.workload().unwrap().container.image.clone(), told.into_iter().collect()))
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
            let mut document = document(TAG);
            let tag = Tag::of(&document, &policies, current).unwrap();
            let looks = tag.is_looked_up(now_ms);
            let found = Ok(Digest::of(content.as_bytes()));
            tag.apply(&mut document, &Found::from([(TAG.to_owned(), found)]), now_ms).unwrap();
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
    fn a_tag_is_taken_for_the_image_that_was_given_last_by_its_name() {
        let given = |name: &str, content: &str| GivenImage {
            name: name.to_owned(),
            digest: format!("sha256:{}", Digest::of(content.as_bytes())),
            given_ms: 5,
            nodes: Vec::new(),
        };
        let found = |image: &str, policy: PullPolicy, given: &[GivenImage]| {
            let tag = Tag { image: image.to_owned(), policy, earlier: None };
            among_given(&[tag], given).remove(image)
        };
        let all = [given("docker.io/library/shop:1", "new"), given("docker.io/library/shop:1", "old")];
        let new = Some(Ok(Digest::of(b"new")));
        assert_eq!(found("shop:1", PullPolicy::Unsaid, &all), new);
        assert_eq!(found("shop:1", PullPolicy::Never, &all), new);
        assert_eq!(found("shop:1", PullPolicy::Always, &all), None, "its registry is asked");
        assert_eq!(found("shop:2", PullPolicy::Unsaid, &all), None);
        assert!(
            found("shop:2", PullPolicy::Never, &all)
                .unwrap()
                .unwrap_err()
                .contains("no machine was given it")
        );
        let refused = pushed(PullPolicy::Never, &[], Err("no machine was given it")).unwrap_err();
        assert!(refused.code == "image-not-found" && refused.advice.contains("never"), "{refused:?}");
    }

    #[tokio::test]
    async fn an_image_named_by_its_digest_stays_as_it_is() {
        let image = pinned("own");
        let mut documents = [document(&image)];
        assert!(Tag::of(&documents[0], &policy(PullPolicy::Always), &[]).is_none());
        let options = Pinning::default();
        pin(&mut documents, &policy(PullPolicy::Always), &[], NOW_MS, &options, &mut Found::new())
            .await
            .unwrap();
        assert_eq!(documents[0].workload().unwrap().container.image, image);
    }

    #[tokio::test]
    async fn a_registry_that_does_not_answer_keeps_nobody_from_pushing() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let image = format!("{closed}/shop:1");
        let mut documents = [document(&image)];
        let options = Pinning { no_pin: false, insecure_registries: vec![closed.to_string()] };
        pin(&mut documents, &BTreeMap::new(), &[], NOW_MS, &options, &mut Found::new()).await.unwrap();
        assert_eq!(documents[0].workload().unwrap().container.image, image);
        let failure =
            pin(&mut documents, &policy(PullPolicy::Always), &[], NOW_MS, &options, &mut Found::new())
                .await
                .unwrap_err();
        assert!(failure.detail.contains(&closed.to_string()), "{}", failure.detail);
        let options = Pinning { no_pin: true, ..options };
        let failure =
            pin(&mut documents, &policy(PullPolicy::Always), &[], NOW_MS, &options, &mut Found::new())
                .await
                .unwrap_err();
        assert_eq!(failure.code, "contradictory");
    }
}
