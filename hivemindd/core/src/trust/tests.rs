use hivemind_spec::certificate::CertificateError;
use hivemind_spec::document::DEFAULT_NAMESPACE;
use hivemind_spec::dsse::Envelope;
use hivemind_spec::key::{PublicKey, SigningKey};
use proptest::prelude::*;

use super::*;
use crate::checking::Keyring;
use crate::record::Record;

fn key(n: u8) -> SigningKey {
    SigningKey::from_seed([n; 32])
}

fn root() -> SigningKey {
    key(100)
}

fn key_document(name: &str, of: &SigningKey, role: &str, revision: u64, flags: &str) -> Vec<u8> {
    format!(
        r#"{{"apiVersion":"hivemind/v1","kind":"Key","metadata":{{"name":"{name}","revision":{revision}}},
           "spec":{{"publicKey":"{}","role":"{role}"{flags}}}}}"#,
        of.public().to_base64()
    )
    .into_bytes()
}

fn workload(name: &str, namespace: &str, revision: u64) -> Vec<u8> {
    format!(
        r#"{{"apiVersion":"hivemind/v1","kind":"Workload",
           "metadata":{{"name":"{name}","namespace":"{namespace}","revision":{revision}}},
           "spec":{{"container":{{"image":"nginx"}}}}}}"#
    )
    .into_bytes()
}

/// Gives the documents to a map in this order, again and again until nothing more is taken, as
/// anti-entropy does.
fn judged(envelopes: &[Envelope]) -> (Map, Trust) {
    let roots = [root().public()];
    // No certificate is looked at here.
    let mut keyring =
        Keyring::new(Vec::new(), &roots, |_, _, _| Err(CertificateError::OtherCluster), PublicKey::verifies);
    let mut map = Map::default();
    for _ in 0..=envelopes.len() {
        for envelope in envelopes {
            let Ok(document) = keyring.check_envelope(envelope) else { continue };
            let place = crate::checking::spec_key(envelope, &document);
            let entry = keyring.check(&place, &Record::Spec(envelope.clone())).unwrap();
            keyring.learn(&place, &entry);
            map.merge(place, entry);
        }
    }
    let trust = Trust::evaluate(&roots, &map);
    (map, trust)
}

fn current(envelopes: &[Envelope], name: &str) -> Option<u64> {
    let (map, trust) = judged(envelopes);
    let name =
        SpecKey { kind: Kind::Workload, namespace: DEFAULT_NAMESPACE.to_owned(), name: name.to_owned() };
    match &map.get(trust.current(&name)?)?.content {
        Content::Spec(document) => Some(document.value().metadata.revision),
        _ => None,
    }
}

fn sign(payload: &[u8], by: &SigningKey) -> Envelope {
    Envelope::sign(payload, by)
}

fn adopt(mut envelope: Envelope, by: &SigningKey) -> Envelope {
    let more = sign(&envelope.payload().unwrap(), by);
    envelope.signatures.extend(more.signatures);
    envelope
}

#[test]
fn a_deployer_may_push_workloads_and_nothing_else() {
    let deployer = key(1);
    let (_, trust) = judged(&[
        sign(&key_document("ci", &deployer, "deployer", 1, ""), &root()),
        sign(&workload("web", "default", 2), &deployer),
        sign(&key_document("mine", &key(2), "admin", 3, ""), &deployer),
    ]);
    let holder = trust.holder(&deployer.public().id()).unwrap();
    assert!(holder.allows(Kind::Workload, "default"));
    assert!(
        !holder.allows(Kind::Key, "")
            && !holder.allows(Kind::Token, "")
            && !holder.allows(Kind::NodeIntent, "")
    );
    assert!(trust.holder(&key(2).public().id()).is_none(), "a deployer made a key");
    assert_eq!(trust.all_current().count(), 2);
}

#[test]
fn a_viewer_may_push_nothing() {
    let viewer = key(1);
    let documents = [
        sign(&key_document("eve", &viewer, "viewer", 1, ""), &root()),
        sign(&workload("web", "default", 2), &viewer),
    ];
    assert_eq!(current(&documents, "web"), None);
}

#[test]
fn a_key_bound_to_namespaces_acts_in_those_only() {
    let deployer = key(1);
    let documents = [
        sign(&key_document("ci", &deployer, "deployer", 1, r#","namespaces":["shop"]"#), &root()),
        sign(&workload("web", "default", 2), &deployer),
        sign(&workload("till", "shop", 2), &deployer),
    ];
    let (_, trust) = judged(&documents);
    let names: Vec<_> = trust.all_current().map(|(name, _)| name.to_string()).collect();
    assert_eq!(names, ["Key/ci", "Workload/shop/till"]);
}

#[test]
fn what_a_strangers_key_signed_never_displaces_what_counts() {
    let viewer = key(1);
    let documents = [
        sign(&key_document("eve", &viewer, "viewer", 1, ""), &root()),
        sign(&workload("web", "default", 2), &root()),
        sign(&workload("web", "default", 999), &viewer),
        sign(&workload("web", "default", 1000), &key(77)),
    ];
    assert_eq!(current(&documents, "web"), Some(2));
}

#[test]
fn a_revoked_key_loses_all_it_signed_except_what_others_adopted() {
    let (ci, admin) = (key(1), key(2));
    let documents = [
        sign(&key_document("ci", &ci, "deployer", 1, ""), &root()),
        sign(&key_document("ops", &admin, "admin", 1, ""), &root()),
        sign(&workload("lost", "default", 2), &ci),
        adopt(sign(&workload("kept", "default", 2), &ci), &admin),
    ];
    assert_eq!((current(&documents, "lost"), current(&documents, "kept")), (Some(2), Some(2)));
    let mut revoked = documents.to_vec();
    revoked.push(sign(&key_document("ci", &ci, "deployer", 3, r#","revoked":true"#), &root()));
    assert_eq!((current(&revoked, "lost"), current(&revoked, "kept")), (None, Some(2)));
}

#[test]
fn revoking_uncovers_the_version_before() {
    let ci = key(1);
    let documents = [
        sign(&key_document("ci", &ci, "deployer", 1, ""), &root()),
        sign(&workload("web", "default", 2), &root()),
        sign(&workload("web", "default", 3), &ci),
    ];
    assert_eq!(current(&documents, "web"), Some(3));
    let mut revoked = documents.to_vec();
    revoked.push(sign(&key_document("ci", &ci, "deployer", 4, r#","revoked":true"#), &root()));
    assert_eq!(current(&revoked, "web"), Some(2));
}

#[test]
fn a_retired_key_keeps_what_it_signed_before_and_signs_nothing_after() {
    let ci = key(1);
    let documents = [
        sign(&key_document("ci", &ci, "deployer", 10, r#","retired":true"#), &root()),
        sign(&workload("before", "default", 9), &ci),
        sign(&workload("after", "default", 11), &ci),
    ];
    assert_eq!((current(&documents, "before"), current(&documents, "after")), (Some(9), None));
}

#[test]
fn an_admin_may_revoke_a_key_of_its_own_level_but_not_a_root_key() {
    let (admin, other) = (key(1), key(2));
    let documents = [
        sign(&key_document("ops", &admin, "admin", 1, ""), &root()),
        sign(&key_document("lost-laptop", &other, "admin", 1, ""), &root()),
        sign(&workload("web", "default", 2), &other),
        sign(&workload("db", "default", 2), &root()),
        sign(&key_document("stop-it", &other, "admin", 3, r#","revoked":true"#), &admin),
        sign(&key_document("coup", &root(), "viewer", 4, r#","revoked":true"#), &admin),
    ];
    let (_, trust) = judged(&documents);
    assert!(trust.holder(&other.public().id()).unwrap().revoked);
    assert!(!trust.holder(&root().public().id()).unwrap().revoked);
    assert_eq!((current(&documents, "web"), current(&documents, "db")), (None, Some(2)));
}

#[test]
fn nobody_gives_back_what_a_higher_authority_took() {
    let (admin, ci) = (key(1), key(2));
    let documents = [
        sign(&key_document("ops", &admin, "admin", 1, ""), &root()),
        sign(&key_document("ci", &ci, "deployer", 2, r#","revoked":true"#), &root()),
        sign(&key_document("ci", &ci, "deployer", 9, ""), &admin),
        sign(&key_document("ci-again", &ci, "admin", 9, ""), &admin),
    ];
    assert!(judged(&documents).1.holder(&ci.public().id()).unwrap().revoked);
}

#[test]
fn keys_made_by_a_revoked_key_are_no_keys() {
    let (admin, minion) = (key(1), key(2));
    let documents = [
        sign(&key_document("ops", &admin, "admin", 5, r#","revoked":true"#), &root()),
        sign(&key_document("minion", &minion, "admin", 2, ""), &admin),
        sign(&workload("web", "default", 3), &minion),
    ];
    assert!(judged(&documents).1.holder(&minion.public().id()).is_none());
    assert_eq!(current(&documents, "web"), None);
}

#[test]
fn two_admins_that_revoke_each_other_are_both_revoked() {
    let (a, b) = (key(1), key(2));
    let documents = [
        sign(&key_document("a", &a, "admin", 1, ""), &root()),
        sign(&key_document("b", &b, "admin", 1, ""), &root()),
        sign(&key_document("against-a", &a, "admin", 2, r#","revoked":true"#), &b),
        sign(&key_document("against-b", &b, "admin", 2, r#","revoked":true"#), &a),
    ];
    let (_, trust) = judged(&documents);
    assert!([a, b].iter().all(|key| trust.holder(&key.public().id()).unwrap().revoked));
}

#[test]
fn a_meaningless_signature_more_displaces_nothing() {
    let good = sign(&workload("web", "default", 2), &root());
    let mut spoiled = good.clone();
    spoiled.signatures.extend(sign(b"something else", &key(1)).signatures);
    let documents = [sign(&key_document("ops", &key(1), "admin", 1, ""), &root()), good.clone(), spoiled];
    let (map, _) = judged(&documents);
    assert!(map.iter().any(|(_, entry)| entry.record == Record::Spec(good.clone())));
}

/// A family of documents with everything in it that could make the order matter.
fn family() -> Vec<Envelope> {
    let (a, b, c) = (key(1), key(2), key(3));
    vec![
        sign(&key_document("a", &a, "admin", 1, ""), &root()),
        sign(&key_document("b", &b, "admin", 2, ""), &a),
        sign(&key_document("c", &c, "deployer", 3, ""), &b),
        sign(&key_document("c", &c, "deployer", 8, r#","retired":true"#), &b),
        sign(&key_document("c-gone", &c, "deployer", 9, r#","revoked":true"#), &a),
        sign(&key_document("a", &a, "admin", 12, r#","revoked":true"#), &root()),
        sign(&workload("web", "default", 4), &c),
        sign(&workload("web", "default", 5), &b),
        sign(&workload("web", "default", 6), &a),
        sign(&workload("web", "default", 3), &root()),
        adopt(sign(&workload("web", "default", 7), &c), &root()),
        sign(
            &Document::tombstone(
                &SpecKey { kind: Kind::Workload, namespace: "default".into(), name: "db".into() },
                6,
            )
            .to_json(),
            &b,
        ),
        sign(&workload("db", "default", 5), &c),
    ]
}

proptest! {
    #[test]
    fn what_counts_depends_on_the_set_of_documents_and_not_on_their_order(
        chosen in proptest::sample::subsequence((0..13usize).collect::<Vec<_>>(), 0..=13),
        seed in any::<u64>(),
    ) {
        use rand::SeedableRng as _;
        use rand::seq::SliceRandom as _;
        let family = family();
        let straight: Vec<_> = chosen.iter().map(|i| family[*i].clone()).collect();
        let mut shuffled = straight.clone();
        shuffled.shuffle(&mut rand_chacha::ChaCha8Rng::seed_from_u64(seed));
        let ((map, trust), (other_map, other_trust)) = (judged(&straight), judged(&shuffled));
        prop_assert_eq!(trust, other_trust);
        prop_assert_eq!(map.digest(), other_map.digest());
    }

    #[test]
    fn one_document_more_never_lets_a_stranger_in(extra in 0usize..13, name in "[a-z]{1,8}") {
        let mut documents = vec![family()[extra].clone()];
        documents.push(sign(&workload(&name, "default", 50), &key(66)));
        let (_, trust) = judged(&documents);
        let stranger = key(66).public().id();
        let heard = trust.all_current().any(|(_, place)| matches!(place, RecordKey::Spec(_, s) if *s == stranger));
        prop_assert!(!heard);
    }
}
