//! Bad requests and bad Compose files: each gets a clear error with a stable code and the place of
//! the fault, changes nothing, and loses nothing.

use std::io::{Read as _, Write as _};

use hivemind_spec::document::{Document, Kind, SpecKey};
use hivemind_spec::dsse::{Envelope, PAYLOAD_TYPE};
use hivemind_spec::key::SigningKey;
use hivemind_tests::api::{Answer, Api, Connection, Request, now_s};
use hivemind_tests::cluster::{Cluster, FORMING, STARTING};
use hivemind_tests::wait;
use serde_json::{Value, json};

const WEB: &str = "services:\n  web:\n    image: registry.lab:5000/nginx:1\n    environment: {TRY: '1'}\n";

/// One machine for all of it, because its boot takes longer than the requests.
#[test]
fn bad_requests_are_refused_with_stable_codes_and_change_nothing() {
    let cluster = Cluster::formed("bad-input", 1);
    let api = Api::of(&cluster, cluster.machines[0].address());
    let keys = Keys::added_to(&cluster);
    cluster.push(WEB).ok();
    let first = stored(&api, &keys.viewer, "web");
    cluster.push(&WEB.replace("'1'", "'2'")).ok();
    let second = stored(&api, &keys.viewer, "web");
    cluster.push(&WEB.replace("web:", "gone:")).ok();
    let gone = stored(&api, &keys.viewer, "gone");
    cluster.hivemind(["remove", "--yes", "gone"]).ok();
    cluster.wait_for_running("web", 1, STARTING);
    // What the node says about itself changes the map for some moments after its start.
    let state = || -> Result<[Value; 3], String> {
        Ok([
            cluster.json(&["status"])?["mapDigest"].clone(),
            cluster.json(&["ps"])?,
            cluster.json(&["keys", "list"])?,
        ])
    };
    let before = wait::until("the map is at rest", FORMING, || {
        let first = state()?;
        std::thread::sleep(std::time::Duration::from_secs(5));
        if state()? == first { Ok(first) } else { Err("it changes".to_owned()) }
    })
    .0;

    let slow = SlowClients::begin(&api);
    malformed_oversized_and_unsigned(&api);
    forbidden(&api, &keys);
    replayed_documents(&api, &first, &second, &gone);
    replayed_and_stale_requests(&api, &keys);
    tricks(&api, &keys);
    crowds(&api);
    slow.were_let_go();
    assert_eq!(state().unwrap(), before, "nothing changed");
    let console = cluster.machines[0].serial();
    assert!(!console.contains("agent was killed") && !console.contains("agent ended"), "{console}");
}

/// Operators' keys of all kinds, made here and added by the cluster's root key.
struct Keys {
    viewer: SigningKey,
    /// May deploy in the namespace `team`.
    deployer: SigningKey,
    retired: SigningKey,
    revoked: SigningKey,
    stranger: SigningKey,
}

impl Keys {
    fn added_to(cluster: &Cluster) -> Self {
        let key = |seed: u8| SigningKey::from_seed([seed; 32]);
        let add = |name: &str, seed: u8, more: &[&str]| {
            let public = key(seed).public().to_base64();
            let arguments = ["keys", "add", name, "--public-key", &public];
            cluster.hivemind(arguments.iter().chain(more)).ok();
            key(seed)
        };
        let keys = Self {
            viewer: add("viewer", 101, &["--role", "viewer"]),
            deployer: add("deployer", 102, &["--role", "deployer", "--namespace", "team"]),
            retired: add("retired", 103, &["--role", "deployer"]),
            revoked: add("revoked", 104, &["--role", "admin"]),
            stranger: key(105),
        };
        cluster.hivemind(["keys", "retire", "retired"]).ok();
        cluster.hivemind(["keys", "revoke", "--yes", "revoked"]).ok();
        keys
    }
}

/// The current document of a workload, as it was signed.
fn stored(api: &Api<'_>, key: &SigningKey, name: &str) -> Envelope {
    let answer = api.read(&format!("/v1/specs?kind=Workload&name={name}"), key);
    let envelope = answer.body["items"][0]["envelope"].clone();
    serde_json::from_value(envelope).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}

/// Wants a problem document with this code, and gives it.
fn refused(answer: &Answer, code: &str) -> Value {
    let problem = &answer.body;
    assert_eq!(problem["code"], code, "{answer:?}");
    assert_eq!(problem["status"], answer.status, "{answer:?}");
    assert_eq!(answer.content_type, "application/problem+json", "{answer:?}");
    for field in ["title", "detail", "type"] {
        assert!(problem[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {answer:?}");
    }
    problem.clone()
}

fn malformed_oversized_and_unsigned(api: &Api<'_>) {
    let post = |body: Vec<u8>| {
        api.send(&Request::new("POST", "/v1/specs").field("content-type: application/json").body(body))
    };
    let envelope =
        |signatures: Value| json!({"payload": "e30=", "payloadType": PAYLOAD_TYPE, "signatures": signatures});
    let by_nobody = json!([{"keyid": "00000000000000000000000000000000", "sig": "AAAA"}]);
    for (body, code, told) in [
        ("{".to_owned(), "malformed", "line 1 column 1"),
        (r#"{"payload":1}"#.to_owned(), "malformed", "line 1 column 12"),
        ("[".repeat(100_000), "malformed", "line 1"),
        (format!("{{\"{}\":1}}", "x".repeat(1_000_000)), "malformed", "unknown field"),
        (envelope(json!([])).to_string(), "unsigned", "no signature"),
        (envelope(by_nobody).to_string(), "bad-signature", "00000000000000000000000000000000"),
    ] {
        let problem = refused(&post(body.into_bytes()), code);
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(told) && detail.len() < 10_000, "{told}: {detail:.300}");
    }
    refused(&post(vec![b'x'; 3 << 20]), "too-large");
    for field in ["content-type: text/plain", "content-type: ", "content-type: application/jsonp"] {
        let request = Request::new("POST", "/v1/specs").field(field).body("{}");
        refused(&api.send(&request), "unsupported-media-type");
    }
    refused(&api.send(&Request::new("GET", "/v1/nodes")), "unsigned");
    refused(&api.send(&Request::new("GET", "/v1/nothing")), "not-found");
    refused(&api.send(&Request::new("DELETE", "/v1/specs")), "method-not-allowed");
    assert_eq!(api.send(&Request::new("GET", "/v1/openapi.json")).body["info"]["title"], "Hivemind");
}

/// A workload's document.
fn workload(namespace: &str, name: &str) -> Document {
    let document = json!({
        "apiVersion": "hivemind/v1", "kind": "Workload",
        "metadata": {"name": name, "namespace": namespace, "revision": now_s() * 1000},
        "spec": {"container": {"image": "registry.lab:5000/misbehave:1"}},
    });
    Document::parse(document.to_string().as_bytes()).unwrap()
}

fn forbidden(api: &Api<'_>, keys: &Keys) {
    let of_cluster = |kind: &str, name: &str, spec: Value| {
        let document = json!({
            "apiVersion": "hivemind/v1", "kind": kind,
            "metadata": {"name": name, "revision": now_s() * 1000}, "spec": spec,
        });
        Document::parse(document.to_string().as_bytes()).unwrap()
    };
    let web = SpecKey { kind: Kind::Workload, namespace: "default".into(), name: "web".into() };
    let removal = Document::tombstone(&web, now_s() * 1000);
    let promotion = json!({"publicKey": keys.deployer.public().to_base64(), "role": "admin"});
    let node = "00".repeat(16);
    for (document, key, place) in [
        (workload("default", "evil"), &keys.viewer, Some("/kind")),
        (workload("team", "evil"), &keys.viewer, Some("/kind")),
        (removal.clone(), &keys.viewer, Some("/kind")),
        (workload("default", "evil"), &keys.deployer, Some("/metadata/namespace")),
        (removal, &keys.deployer, Some("/metadata/namespace")),
        (of_cluster("Key", "deployer", promotion), &keys.deployer, Some("/kind")),
        (
            of_cluster("NodeIntent", &node, json!({"node": node, "revoked": true})),
            &keys.deployer,
            Some("/kind"),
        ),
        (workload("default", "evil"), &keys.retired, None),
        (workload("default", "evil"), &keys.revoked, None),
    ] {
        let problem = refused(&api.push(&Envelope::sign(&document.to_json(), key)), "forbidden");
        assert_eq!(problem["pointer"].as_str(), place, "{problem}");
        let (detail, id) = (problem["detail"].as_str().unwrap(), key.public().id().to_string());
        assert!(detail.contains(&id), "it says which key: {problem}");
    }
    // A good signature does not carry a stranger's in.
    let mut both = Envelope::sign(&workload("team", "evil").to_json(), &keys.deployer);
    both.signatures.extend(Envelope::sign(&both.payload().unwrap(), &keys.stranger).signatures);
    refused(&api.push(&both), "bad-signature");
    // Reading takes a live key as well.
    for key in [&keys.retired, &keys.revoked, &keys.stranger] {
        refused(&api.read("/v1/specs", key), "bad-signature");
    }
}

fn replayed_documents(api: &Api<'_>, first: &Envelope, second: &Envelope, gone: &Envelope) {
    let again = api.push(second);
    assert_eq!((again.status, &again.body["changed"]), (200, &json!(false)), "{again:?}");
    for (old, what) in [(first, "an older version"), (gone, "a removed workload")] {
        let problem = refused(&api.push(old), "conflict");
        assert_eq!(problem["pointer"], "/metadata/revision", "{what}: {problem}");
    }
}

fn replayed_and_stale_requests(api: &Api<'_>, keys: &Keys) {
    let read = || Request::new("GET", "/v1/specs?kind=Workload");
    let good = api.sign(read(), &keys.viewer, now_s());
    assert_eq!(api.send(&good).status, 200);
    refused(&api.send(&good), "replayed-request");
    // For another path, query, or method, or with a body, it is no signature at all.
    for target in ["/v1/nodes?kind=Workload", "/v1/specs?kind=Key", "/v1/specs", "/v1//specs?kind=Workload"] {
        let answer = api.send(&api.sign(read(), &keys.viewer, now_s()).to(target));
        refused(&answer, if target.contains("//") { "not-found" } else { "bad-signature" });
    }
    refused(&api.send(&api.sign(read(), &keys.viewer, now_s()).body("{}")), "bad-signature");
    let signed_body = api.sign(read().body("{}"), &keys.viewer, now_s()).body("[]");
    refused(&api.send(&signed_body), "bad-signature");

    for created_s in [now_s() - 3600, now_s() + 3600, 0] {
        let problem = refused(&api.send(&api.sign(read(), &keys.viewer, created_s)), "stale-request");
        let server_s = problem["serverTimeMs"].as_u64().unwrap() / 1000;
        assert!(server_s.abs_diff(now_s()) < 30, "the server's time: {problem}");
        let corrected = api.sign(read(), &keys.viewer, server_s);
        assert_eq!(api.send(&corrected).status, 200, "with the time the refusal told");
    }
}

fn tricks(api: &Api<'_>, keys: &Keys) {
    for (target, code) in [
        ("/v1/health/", "not-found"),
        ("//v1/health", "not-found"),
        ("/v1/./health", "not-found"),
        ("/v1/../v1/health", "not-found"),
        ("/v1/%68ealth", "not-found"),
        ("/%00", "not-found"),
        ("/v1/nodes", "unsigned"),
    ] {
        refused(&api.send(&Request::new("GET", target)), code);
    }
    let nobody = |target: &str, code: &str| refused(&api.read(target, &keys.viewer), code);
    nobody("/v1/logs/default/%ff", "malformed");
    nobody("/v1/logs/..%2f..%2f..%2fetc/passwd", "not-found");
    nobody("/v1/replicas?namespace=%ff&nonsense=1", "malformed");
    nobody("/v1/specs?kind=Workload&kind=Key", "malformed");
    nobody(&format!("/v1/logs/default/web?tail={}", "9".repeat(1000)), "malformed");

    // What is not HTTP, or more of it than anybody needs, is ended with a status and no more.
    let end = "connection: close\r\n\r\n";
    let many = "a: b\r\n".repeat(1000);
    // Over twice the buffer: what is read at once may fill it to the full once more.
    let long = "x".repeat(200_000);
    for (request, status) in [
        (format!("GET /v1/health HTTP/1.1\r\nhost: x\r\n{end}"), "200"),
        ("\u{0}\u{1}\u{2}garbage\r\n\r\n".to_owned(), "400"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), ""),
        (format!("GET /v1/health HTTP/1.1\r\nhost: x\r\nbad header\r\n{end}"), "400"),
        (format!("POST /v1/specs HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n{end}"), "400"),
        (format!("GET /v1/health HTTP/1.1\r\nhost: x\r\n{many}{end}"), "431"),
        (format!("GET /v1/health HTTP/1.1\r\nhost: x\r\nbig: {long}\r\n{end}"), "431"),
        (format!("GET /{long} HTTP/1.1\r\nhost: x\r\n{end}"), "4"),
        (format!("CONNECT evil:443 HTTP/1.1\r\nhost: x\r\n{end}"), "4"),
        (format!("OPTIONS * HTTP/1.1\r\nhost: x\r\n{end}"), "4"),
        (format!("GET https://evil/v1/nodes HTTP/1.1\r\nhost: x\r\n{end}"), "401"),
        (
            format!(
                "POST /v1/specs HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 5000000\r\n{end}{}",
                "x".repeat(5_000_000)
            ),
            "413",
        ),
    ] {
        let said = api.bare(request.as_bytes());
        let told = said.last().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
        let right =
            if status.is_empty() { told != "200" } else { said.len() == 1 && told.starts_with(status) };
        assert!(right, "{request:.100}: {said:?}");
    }
}

/// Clients that begin and do not go on.
struct SlowClients {
    head: Connection,
    body: Connection,
}

impl SlowClients {
    fn begin(api: &Api<'_>) -> Self {
        let (mut head, mut body) = (api.connect(), api.connect());
        head.write_all(b"GET /v1/health HT").unwrap();
        let begun = "POST /v1/specs HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                     content-length: 1000\r\n\r\n{";
        body.write_all(begun.as_bytes()).unwrap();
        Self { head, body }
    }

    fn were_let_go(mut self) {
        let mut said = Vec::new();
        let _ = self.head.read_to_end(&mut said);
        assert!(said.is_empty(), "half a head is no request: {}", String::from_utf8_lossy(&said));
        let _ = self.body.read_to_end(&mut said);
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(said.starts_with("HTTP/1.1 408 ") && said.contains("too-slow"), "{said}");
    }
}

/// More connections than one address may have: the surplus is let go at once, those who say
/// nothing soon.
fn crowds(api: &Api<'_>) {
    let silent: Vec<_> = (0..40).map(|_| api.dial()).collect();
    let version = Request::new("GET", "/v1/version");
    wait::until("who says nothing is let go", STARTING, || match api.send(&version).status {
        200 => Ok(()),
        status => Err(format!("status {status}")),
    });
    drop(silent);
}

#[test]
fn compose_files_with_faults_are_refused_with_their_place_before_anything_is_sent() {
    let cluster = Cluster::new("compose-faults", 1);
    for (text, place) in [
        ("services:\n  web:\n    image: a\n    imagee: b\n", "compose.yaml:4"),
        ("services:\n  web:\n    image: [1]\n", "compose.yaml:3"),
        ("services:\n  web:\n    command: a\n", "compose.yaml:2"),
        ("services:\n  web:\n    image: a\n    deploy: {replicas: many}\n", "compose.yaml:4"),
        (
            "services:\n  web:\n    image: a\n    deploy:\n      resources:\n        limits: {memory: 8M}\n        \
             reservations: {memory: 16M}\n",
            "compose.yaml:",
        ),
        ("services: {web: {image: a}\n", "compose.yaml:"),
    ] {
        let run = cluster.push(text).failed();
        assert!(run.stderr().contains(place), "{text}\n{run}");
    }
}
