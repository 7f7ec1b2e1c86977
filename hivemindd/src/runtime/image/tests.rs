use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use oci_client::errors::OciDistributionError;

use super::manifest::{IndexEntry, LAYER_TYPES, MAX_LAYERS, PLATFORM, Platform};
use super::registry::{explain, parse_reference};
use super::*;
use crate::runtime::content::MAX_DOCUMENT_BYTES;

fn entry(os: &str, architecture: &str, digest: &str) -> IndexEntry {
    let platform = Platform { os: os.into(), architecture: architecture.into() };
    IndexEntry { digest: digest.into(), platform: Some(platform) }
}

fn blob(digest: &str) -> Blob {
    Blob { media_type: LAYER_TYPES[1].into(), digest: digest.into(), size: 10 }
}

#[test]
fn references_are_read_as_in_docker() {
    let cases = [
        ("nginx", "docker.io", "library/nginx", Some("latest"), None),
        ("registry.lab:5000/web:1", "registry.lab:5000", "web", Some("1"), None),
        ("localhost/a/b", "localhost", "a/b", Some("latest"), None),
    ];
    for (name, registry, repository, tag, digest) in cases {
        let reference = parse_reference(name).unwrap();
        assert_eq!(
            (reference.registry(), reference.repository(), reference.tag(), reference.digest()),
            (registry, repository, tag, digest),
            "{name}"
        );
    }
    let pinned = format!("registry.lab:5000/web@{}", sha256(b""));
    assert_eq!(parse_reference(&pinned).unwrap().digest(), Some(sha256(b"").as_str()));
    for name in ["", "registry.lab/Upper", "a b", "web:", "https://registry.lab/web"] {
        let error = parse_reference(name).unwrap_err();
        assert!(error.permanent && error.text.contains("not an image reference"), "{name}: {}", error.text);
    }
}

#[test]
fn the_platform_of_this_machine_is_chosen_or_the_others_are_named() {
    let (os, architecture) = PLATFORM;
    let mine = [entry("linux", "s390x", "sha256:a"), entry(os, architecture, "sha256:b")];
    assert_eq!(choose_platform("web", &mine).unwrap(), "sha256:b");
    let error =
        choose_platform("web", &[entry("linux", "s390x", "a"), entry("windows", "amd64", "b")]).unwrap_err();
    assert!(error.permanent);
    assert_eq!(
        error.text,
        format!("web has no {os}/{architecture} variant; it has: linux/s390x, windows/amd64")
    );
    assert!(choose_platform("web", &[]).unwrap_err().text.ends_with("it has: none"));
}

#[test]
fn an_image_of_another_machine_is_refused() {
    let config =
        parse_config("web", br#"{"os":"linux","architecture":"mips","rootfs":{"diff_ids":["a"]}}"#).unwrap();
    let error = check_config("web", &config, 1).unwrap_err();
    assert!(error.permanent && error.text.contains("linux/mips"), "{}", error.text);
}

#[test]
fn a_broken_manifest_is_refused_before_anything_is_fetched() {
    let good = sha256(b"layer");
    check_layers("web", &blob(&good), &[blob(&good)]).unwrap();
    let refused = |config: Blob, layers: &[Blob]| check_layers("web", &config, layers).unwrap_err().text;
    assert!(refused(blob(&good), &[]).contains("0 layers"));
    assert!(refused(blob(&good), &[blob("sha256:../../etc/passwd")]).contains("not a SHA-256 digest"));
    let encrypted =
        Blob { media_type: "application/vnd.oci.image.layer.v1.tar+encrypted".into(), ..blob(&good) };
    assert!(refused(blob(&good), &[encrypted]).contains("cannot be unpacked"));
    let huge = Blob { size: MAX_DOCUMENT_BYTES + 1, ..blob(&good) };
    assert!(refused(huge, &[blob(&good)]).contains("configuration"));
    let many = vec![blob(&good); MAX_LAYERS + 1];
    assert!(refused(blob(&good), &many).contains("layers"));
    assert!(parse_manifest("web", br#"{"schemaVersion":1}"#).unwrap_err().permanent);
    assert!(parse_manifest("web", b"<html>").unwrap_err().permanent);
}

#[test]
fn configurations_with_nulls_are_read() {
    let text = br#"{"os":"linux","architecture":"amd64","config":{"User":"web","Env":null,"Cmd":["a"],
        "Entrypoint":null,"WorkingDir":"","StopSignal":"SIGQUIT","Labels":null,"ExposedPorts":{"80/tcp":{}}},
        "rootfs":{"type":"layers","diff_ids":["sha256:a"]}}"#;
    let execution = parse_config("web", text).unwrap().config.unwrap();
    assert_eq!(execution.user.as_deref(), Some("web"));
    assert_eq!(execution.cmd, Some(vec!["a".to_owned()]));
    assert_eq!((execution.env, execution.entrypoint), (None, None));
    assert_eq!(execution.stop_signal.as_deref(), Some("SIGQUIT"));
}

#[test]
fn what_an_image_needs_is_kept_as_long_as_its_manifest() {
    let labels = manifest_labels(&blob("sha256:c"), &[blob("sha256:a"), blob("sha256:b")]);
    assert_eq!(labels["containerd.io/gc.ref.content.config"], "sha256:c");
    assert_eq!(labels["containerd.io/gc.ref.content.l.0"], "sha256:a");
    assert_eq!(labels["containerd.io/gc.ref.content.l.1"], "sha256:b");
}

#[test]
fn refusals_of_a_registry_read_well() {
    let reference = parse_reference("registry.lab:5000/web:9").unwrap();
    let envelope = |code: &str| {
        let envelope =
            serde_json::from_str(&format!(r#"{{"errors":[{{"code":"{code}","message":"m"}}]}}"#)).unwrap();
        OciDistributionError::RegistryError { envelope, url: "u".into() }
    };
    let unauthorized = OciDistributionError::UnauthorizedError { url: "u".into() };
    let broken = OciDistributionError::ServerError { code: 502, url: "u".into(), message: String::new() };
    let cases = [
        (envelope("MANIFEST_UNKNOWN"), "registry registry.lab:5000 has no web:9 (404 manifest unknown)"),
        (envelope("NAME_UNKNOWN"), "registry registry.lab:5000 has no repository web (404 name unknown)"),
        (
            envelope("DENIED"),
            "registry registry.lab:5000 does not let this node read web:9 (denied); the password of \
             `hivemind secrets login registry.lab:5000` is wrong or has no right to it",
        ),
        (
            unauthorized,
            "registry registry.lab:5000 does not let this node read web:9 (401); if it is private, \
             `hivemind secrets login registry.lab:5000` gives the password, else it may be misspelt",
        ),
        (broken, "registry registry.lab:5000 failed with status 502"),
    ];
    for (error, text) in cases {
        let error = explain("web:9", &reference, error);
        assert_eq!(error.text, text);
        // The operator may push the image, or make it public, at any time.
        assert!(!error.permanent);
    }
}

fn insecure_only(insecure: Vec<String>) -> Registries {
    Registries::new(machine::Registries { insecure, ..machine::Registries::default() }).unwrap()
}

/// Answers one request on a loopback port and says what protocol it was spoken to in.
async fn first_bytes(insecure: bool) -> Vec<u8> {
    use tokio::io::AsyncReadExt as _;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let list = if insecure { vec![host.clone()] } else { vec!["other.lab:5000".to_owned()] };
    let registries = insecure_only(list);
    let source = registries.source(&format!("{host}/web:1"), None).unwrap();
    let client = tokio::spawn(async move { source.manifest(None).await });
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut bytes = vec![0; 5];
    stream.read_exact(&mut bytes).await.unwrap();
    drop((stream, listener));
    assert!(client.await.unwrap().is_err());
    bytes
}

#[tokio::test]
async fn only_registries_on_the_list_are_spoken_to_in_the_clear() {
    assert_eq!(first_bytes(true).await, b"GET /");
    // The start of a TLS handshake record.
    assert_eq!(first_bytes(false).await[..2], [0x16, 0x03]);
}

#[tokio::test]
async fn a_registry_that_is_down_is_named() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let source = insecure_only(vec!["127.0.0.1:1".into()]).source("127.0.0.1:1/web", None).unwrap();
    let error = source.manifest(None).await.unwrap_err();
    assert!(
        error.text.starts_with("cannot reach registry 127.0.0.1:1: Connection refused"),
        "{}",
        error.text
    );
    assert!(!error.permanent);
}

/// A stand-in for a registry on loopback: what it was asked, and with which password.
#[derive(Clone, Default)]
struct Asked(Arc<Mutex<Vec<(String, bool)>>>);

impl Asked {
    /// Answers every question for a manifest with these bytes, or else that it has none. Returns where.
    async fn answer(&self, manifest: Option<&'static [u8]>, guarded: bool) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let asked = self.clone();
        let answer = async move |request: axum::extract::Request| {
            let password = request.headers().contains_key("authorization");
            asked.0.lock().unwrap().push((request.uri().to_string(), password));
            let found = manifest.filter(|_| request.uri().path().contains("/manifests/"));
            let wants_password = [("www-authenticate", "Basic realm=\"lab\"")];
            match (found, request.uri().path()) {
                (Some(bytes), _) => bytes.into_response(),
                (None, "/v2/") if guarded => (StatusCode::UNAUTHORIZED, wants_password).into_response(),
                (None, _) => StatusCode::NOT_FOUND.into_response(),
            }
        };
        tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
        host
    }

    fn manifests(&self) -> Vec<(String, bool)> {
        let asked = self.0.lock().unwrap();
        asked.iter().filter(|(uri, _)| uri.contains("/manifests/")).cloned().collect()
    }
}

#[tokio::test]
async fn mirrors_are_asked_before_their_registry_in_their_order_and_without_its_password() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (first, second, own) = (Asked::default(), Asked::default(), Asked::default());
    let (first_host, second_host) =
        (first.answer(None, false).await, second.answer(Some(b"{}"), false).await);
    let own_host = own.answer(Some(b"{}"), true).await;
    let mirrors = |list: &[&String]| [(own_host.clone(), list.iter().map(|m| (*m).clone()).collect())].into();
    let registries = |list: &[&String]| {
        let insecure = vec![first_host.clone(), second_host.clone(), own_host.clone()];
        Registries::new(machine::Registries { insecure, mirrors: mirrors(list) }).unwrap()
    };
    let password = || Some(Credentials { username: "ci".to_owned(), password: "secret".to_owned() });
    let source = registries(&[&first_host, &second_host]).source(&format!("{own_host}/web:1"), password());
    assert_eq!(source.unwrap().manifest(None).await.unwrap(), b"{}");
    let question = format!("/v2/web/manifests/1?ns={own_host}");
    assert_eq!(first.manifests(), [(question.clone(), false)]);
    assert_eq!(second.manifests(), [(question, false)]);
    assert!(own.0.lock().unwrap().is_empty());

    // Without a mirror that has it, the registry is asked, and a mirror that failed is not asked again.
    let source = registries(&[&first_host]).source(&format!("{own_host}/web:1"), password()).unwrap();
    source.manifest(None).await.unwrap();
    assert_eq!(own.manifests(), [("/v2/web/manifests/1".to_owned(), true)]);
    source.manifest(Some(&sha256(b"{}"))).await.unwrap();
    assert_eq!((first.manifests().len(), own.manifests().len()), (2, 2));
}

#[tokio::test]
async fn where_nobody_has_an_image_all_that_were_asked_are_named() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = machine::Registries {
        insecure: vec!["127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned()],
        mirrors: [("*".to_owned(), vec!["127.0.0.1:2".to_owned()])].into(),
    };
    let source = Registries::new(config).unwrap().source("127.0.0.1:1/web", None).unwrap();
    let error = source.manifest(None).await.unwrap_err();
    assert!(error.text.starts_with("cannot reach registry 127.0.0.1:1: Connection refused"), "{error}");
    assert!(error.text.contains("mirror: cannot reach registry 127.0.0.1:2"), "{error}");
}

#[test]
fn what_a_pull_fetched_is_kept_for_a_day_at_least_and_two_at_most() {
    const HOUR_MS: u64 = 3600 * 1000;
    for start in (0..100).map(|n| 1_800_000_000_000 + n * 1_234_567) {
        let (name, expires_ms) = lease_of("shop:1", start);
        assert!((24 * HOUR_MS..=48 * HOUR_MS).contains(&(expires_ms - start)), "{start}");
        // A later pull that finds the lease there, and cannot prolong it, has a day as well.
        let later = start + 5 * HOUR_MS;
        let (same, _) = lease_of("shop:1", later);
        assert!(same != name || expires_ms - later >= 24 * HOUR_MS, "{start}");
    }
    assert_ne!(lease_of("shop:1", 0).0, lease_of("shop:2", 0).0);
}
