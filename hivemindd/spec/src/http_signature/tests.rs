use std::cell::RefCell;
use std::collections::BTreeSet;

use super::*;

const NOW_S: u64 = 1_800_000_000;
const NONCE: &str = "0123456789abcdef0123456789abcdef";
const BODY: &[u8] = br#"{"hello": "world"}"#;

fn key() -> SigningKey {
    SigningKey::from_seed([9; 32])
}

fn post() -> Request<'static> {
    Request {
        method: "POST",
        authority: "node-1.lab:7443",
        path: "/v1/specs",
        query: Some("dry=1&x=%20"),
        body: BODY,
    }
}

fn received(fields: &SignatureFields) -> ReceivedFields<'_> {
    ReceivedFields {
        signature_input: Some(&fields.signature_input),
        signature: Some(&fields.signature),
        content_digest: fields.content_digest.as_deref(),
    }
}

fn check(request: Request<'_>, fields: ReceivedFields<'_>, now_s: u64) -> Result<KeyId, SignatureRefusal> {
    let public = key().public();
    verify(request, fields, |id| (*id == public.id()).then_some(public), now_s, fresh_at(now_s), |_, _| false)
}

/// RFC 9421, appendix B.1.4 and B.2.6.
#[test]
fn the_ed25519_vector_of_the_standard_is_reproduced() {
    let seed = STANDARD.decode("n4Ni+HpISpVObnQMW0wOhCKROaIKqKtW/2ZYb2p9KcU=").unwrap();
    let key = SigningKey::from_seed(seed.try_into().unwrap());
    assert_eq!(key.public().to_base64(), "JrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=");
    let components = [
        ("date", "Tue, 20 Apr 2021 02:07:55 GMT".to_owned()),
        ("@method", "POST".to_owned()),
        ("@path", "/foo".to_owned()),
        ("@authority", "example.com".to_owned()),
        ("content-type", "application/json".to_owned()),
        ("content-length", "18".to_owned()),
    ];
    let params = r#"("date" "@method" "@path" "@authority" "content-type" "content-length");created=1618884473;keyid="test-key-ed25519""#;
    let parsed = dictionary("Signature-Input", &format!("sig-b26={params}")).unwrap();
    let Some(ListEntry::InnerList(list)) = parsed.get("sig-b26") else { panic!("no list") };
    assert_eq!(inner_list(list), params);
    let signature = STANDARD.encode(key.sign(signature_base(&components, params).as_bytes()));
    assert_eq!(
        signature,
        "wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw=="
    );
}

/// RFC 9421, section 2.1.2 uses this digest of this body.
#[test]
fn the_content_digest_is_that_of_the_standard() {
    assert_eq!(content_digest(BODY), "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:");
}

#[test]
fn a_signed_request_verifies_and_names_its_signer() {
    let get = Request { method: "GET", path: "/v1/nodes", query: None, body: b"", ..post() };
    for request in [post(), get] {
        let fields = sign(request, &key(), NOW_S, NONCE);
        assert_eq!(fields.content_digest.is_some(), !request.body.is_empty());
        assert_eq!(check(request, received(&fields), NOW_S + 5), Ok(key().public().id()));
    }
}

#[test]
fn the_authority_is_compared_without_case_and_without_the_default_port() {
    let fields = sign(Request { authority: "Node-1.lab:443", ..post() }, &key(), NOW_S, NONCE);
    assert!(check(Request { authority: "node-1.lab", ..post() }, received(&fields), NOW_S).is_ok());
}

#[test]
fn any_change_to_what_is_covered_is_refused() {
    let fields = sign(post(), &key(), NOW_S, NONCE);
    let bad = SignatureRefusal::BadSignature(key().public().id());
    for changed in [
        Request { method: "PUT", ..post() },
        Request { authority: "node-2.lab:7443", ..post() },
        Request { path: "/v1/spec", ..post() },
        Request { query: None, ..post() },
        Request { query: Some("dry=1"), ..post() },
    ] {
        assert_eq!(check(changed, received(&fields), NOW_S), Err(bad.clone()), "{changed:?}");
    }
    for body in [&b"{}"[..], b""] {
        let changed = Request { body, ..post() };
        assert_eq!(check(changed, received(&fields), NOW_S), Err(SignatureRefusal::DigestMismatch));
    }
    let digest = content_digest(b"{}");
    let forged = ReceivedFields { content_digest: Some(&digest), ..received(&fields) };
    assert_eq!(check(Request { body: b"{}", ..post() }, forged, NOW_S), Err(bad));
}

#[test]
fn a_body_cannot_be_added_to_a_request_signed_without_one() {
    let get = Request { body: b"", ..post() };
    let fields = sign(get, &key(), NOW_S, NONCE);
    let digest = content_digest(BODY);
    let fields = ReceivedFields { content_digest: Some(&digest), ..received(&fields) };
    assert!(matches!(check(post(), fields, NOW_S), Err(SignatureRefusal::Malformed(_))));
}

#[test]
fn a_request_without_our_signature_is_unsigned() {
    let fields = sign(post(), &key(), NOW_S, NONCE);
    let other_tag = fields.signature_input.replace("tag=\"hivemind\"", "tag=\"proxy\"");
    for received in [
        ReceivedFields::default(),
        ReceivedFields { signature: None, ..received(&fields) },
        ReceivedFields { signature_input: None, ..received(&fields) },
        ReceivedFields { signature_input: Some(&other_tag), ..received(&fields) },
    ] {
        assert_eq!(check(post(), received, NOW_S), Err(SignatureRefusal::Unsigned));
    }
}

#[test]
fn signatures_with_other_tags_are_ignored() {
    let fields = sign(post(), &key(), NOW_S, NONCE);
    let input = format!("sig1=(\"@method\");created=1;tag=\"proxy\", {}", fields.signature_input);
    let signature = format!("sig1=:AAAA:, {}", fields.signature);
    let both =
        ReceivedFields { signature_input: Some(&input), signature: Some(&signature), ..received(&fields) };
    assert!(check(post(), both, NOW_S).is_ok());
}

#[test]
fn a_malformed_signature_is_refused_with_the_reason() {
    let good = sign(post(), &key(), NOW_S, NONCE);
    let long = "a".repeat(MAX_FIELD_BYTES + 1);
    let with = |from: &str, to: &str| good.signature_input.replace(from, to);
    for (input, reason) in [
        (with("\"@path\" ", ""), "\"@path\" is not covered"),
        (with(" \"content-digest\"", ""), "\"content-digest\" is not covered"),
        (with("\"@path\"", "\"@path\" \"@path\""), "covered twice"),
        (with("\"@path\"", "\"@path\" \"date\""), "cannot check"),
        (with("\"@path\"", "\"@path\";req"), "cannot check"),
        (with(&format!("created={NOW_S};"), ""), "created is missing"),
        (with(&format!("created={NOW_S}"), "created=-1"), "created"),
        (with(&format!("created={NOW_S}"), "created=1.5"), "created"),
        (with(NONCE, "short"), "nonce"),
        (with(NONCE, &long[..MAX_NONCE_CHARS + 1]), "nonce"),
        (with("ed25519", "hmac-sha256"), "alg"),
        (with("keyid=\"", "keyid=\"x"), "keyid"),
        (with("hivemind=(", "hivemind=(("), "RFC 9651"),
        (format!("{0}, b{0}", good.signature_input), "more than one"),
        (long.clone(), "limit"),
    ] {
        let fields = ReceivedFields { signature_input: Some(&input), ..received(&good) };
        match check(post(), fields, NOW_S) {
            Err(SignatureRefusal::Malformed(found)) => assert!(found.contains(reason), "{found} / {reason}"),
            other => panic!("{input}: {other:?}"),
        }
    }
    for signature in ["hivemind=1", "other=:AAAA:", "hivemind=:A", "hivemind=(1 2)"] {
        let fields = ReceivedFields { signature: Some(signature), ..received(&good) };
        assert!(matches!(check(post(), fields, NOW_S), Err(SignatureRefusal::Malformed(_))), "{signature}");
    }
}

#[test]
fn an_unknown_key_and_a_key_in_anothers_name_are_refused() {
    let stranger = SigningKey::from_seed([1; 32]);
    let fields = sign(post(), &stranger, NOW_S, NONCE);
    let id = stranger.public().id();
    assert_eq!(check(post(), received(&fields), NOW_S), Err(SignatureRefusal::UnknownKey(id)));
    let ours = key().public().id();
    let input = fields.signature_input.replace(&id.to_string(), &ours.to_string());
    let claimed = ReceivedFields { signature_input: Some(&input), ..received(&fields) };
    assert_eq!(check(post(), claimed, NOW_S), Err(SignatureRefusal::BadSignature(ours)));
}

#[test]
fn a_stale_request_is_refused_with_the_servers_time() {
    let fields = sign(post(), &key(), NOW_S, NONCE);
    for now_s in [NOW_S - TOLERANCE_S, NOW_S + TOLERANCE_S] {
        assert!(check(post(), received(&fields), now_s).is_ok());
    }
    for now_s in [0, NOW_S - TOLERANCE_S - 1, NOW_S + TOLERANCE_S + 1, u64::MAX] {
        let refusal = check(post(), received(&fields), now_s).unwrap_err();
        assert_eq!(refusal, SignatureRefusal::Stale { created_s: NOW_S, server_time_s: now_s });
        let problem = Problem::from(refusal);
        assert_eq!(problem.code, Code::Stale);
        assert_eq!(problem.server_time_ms, Some(now_s.saturating_mul(1000)));
    }
}

#[test]
fn a_replayed_request_is_refused_and_only_good_requests_are_remembered() {
    let public = key().public();
    let memory = RefCell::new(BTreeSet::new());
    let verify = |request, fields| {
        let seen = |id: &KeyId, nonce: &str| !memory.borrow_mut().insert((*id, nonce.to_owned()));
        verify(request, fields, |id| (*id == public.id()).then_some(public), NOW_S, fresh_at(NOW_S), seen)
    };
    let fields = sign(post(), &key(), NOW_S, NONCE);
    assert!(verify(Request { path: "/", ..post() }, received(&fields)).is_err());
    assert!(memory.borrow().is_empty(), "a forged request must not use up a nonce");
    assert!(verify(post(), received(&fields)).is_ok());
    assert_eq!(verify(post(), received(&fields)), Err(SignatureRefusal::Replayed));
}

proptest::proptest! {
    #[test]
    fn every_request_verifies_and_no_other_does(
        path in "/[!-~&&[^?#]]{0,40}",
        query in proptest::option::of("[!-~&&[^#]]{0,40}"),
        body in proptest::collection::vec(0u8.., 0..200),
        seed: [u8; 32],
        flipped in 0usize..64,
    ) {
        let key = SigningKey::from_seed(seed);
        let public = key.public();
        let request = Request { path: &path, query: query.as_deref(), body: &body, ..post() };
        let fields = sign(request, &key, NOW_S, NONCE);
        let check = |fields| {
            verify(request, fields, |id| (*id == public.id()).then_some(public), NOW_S, fresh_at(NOW_S), |_, _| false)
        };
        assert_eq!(check(received(&fields)), Ok(public.id()));

        let encoded = fields.signature.trim_start_matches("hivemind=:").trim_end_matches(':');
        let mut signature = STANDARD.decode(encoded).unwrap();
        signature[flipped] ^= 1;
        let forged = format!("hivemind=:{}:", STANDARD.encode(signature));
        let forged = ReceivedFields { signature: Some(&forged), ..received(&fields) };
        assert_eq!(check(forged), Err(SignatureRefusal::BadSignature(public.id())));
    }

    #[test]
    fn no_field_makes_the_check_panic(input in ".{0,200}", signature in ".{0,100}", digest in ".{0,100}") {
        let fields = ReceivedFields {
            signature_input: Some(&input),
            signature: Some(&signature),
            content_digest: Some(&digest),
        };
        assert!(check(post(), fields, NOW_S).is_err());
    }
}
