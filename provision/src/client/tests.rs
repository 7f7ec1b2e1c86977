use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

#[test]
fn a_node_without_a_port_gets_the_apis() {
    for (node, wanted) in [
        ("192.0.2.1", "192.0.2.1:7443"),
        ("192.0.2.1:80", "192.0.2.1:80"),
        ("edge-1", "edge-1:7443"),
        ("edge-1.lab:8443", "edge-1.lab:8443"),
        ("2001:db8::1", "[2001:db8::1]:7443"),
        ("[2001:db8::1]:80", "[2001:db8::1]:80"),
    ] {
        assert_eq!(with_port(node), wanted);
    }
}

#[test]
fn queries_are_percent_encoded() {
    assert_eq!(percent("a b/é&"), "a%20b%2F%C3%A9%26");
    assert_eq!(with_query("/v1/a", &[("b", None), ("c", None)]), "/v1/a");
    assert_eq!(
        with_query("/v1/a", &[("b", Some("x y")), ("c", None), ("d", Some("z"))]),
        "/v1/a?b=x%20y&d=z"
    );
}

#[test]
fn a_client_without_a_node_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let (bundle, keys) = Bundle::create(dir.path(), "lab", None).unwrap();
    let failure = Client::new(bundle, keys.signer, &[]).err().unwrap();
    assert!(failure.advice.contains("--node"));
}

#[tokio::test]
async fn every_node_is_tried_and_each_reason_told() {
    let dir = tempfile::tempdir().unwrap();
    let (bundle, keys) = Bundle::create(dir.path(), "lab", None).unwrap();
    // Ports that were free a moment ago, so that nobody listens there.
    let closed = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let nodes = [closed(), closed()];
    let client = Client::new(bundle, keys.signer, &nodes).unwrap();
    let failure = client.get::<serde_json::Value>("/v1/status").await.unwrap_err();
    assert_eq!(failure.exit, Exit::Unreachable);
    assert!(nodes.iter().all(|node| failure.detail.contains(node.as_str())), "{}", failure.detail);
    assert!(client.bundle().remembered_nodes().is_empty(), "only nodes that answer are remembered");
}

/// A TLS server with the certificates of a node, to test the client's half of the connection:
/// whom it trusts, what it signs, and how it corrects its clock.
mod node {
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    use hivemind_spec::certificate::{self, KeyPair, Signer};
    use hivemind_spec::http_signature::ReceivedFields;
    use hivemind_spec::key::PublicKey;
    use hyper::service::service_fn;
    use rustls::ServerConfig;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio_rustls::TlsAcceptor;

    use super::*;

    pub(super) struct Node {
        pub(super) address: String,
        /// What was asked, with its answer's status.
        pub(super) asked: Arc<Mutex<Vec<(String, u16)>>>,
        /// Whether it is about to stop.
        pub(super) stopping: Arc<AtomicBool>,
    }

    /// Starts a node of the cluster whose clock is `ahead_s` ahead.
    pub(super) async fn start(bundle: &Bundle, ca_key: &KeyPair, operator: PublicKey, ahead_s: i64) -> Node {
        let (chain, key) = certificates(bundle, ca_key, ahead_s);
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, nonces) = (Arc::clone(&asked), Arc::new(Mutex::new(BTreeSet::new())));
        let stopping = Arc::new(AtomicBool::new(false));
        let stops = Arc::clone(&stopping);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, log, nonces) = (acceptor.clone(), Arc::clone(&log), Arc::clone(&nonces));
                let stops = Arc::clone(&stops);
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    let service = service_fn(|request: Request<Incoming>| {
                        let (log, nonces) = (Arc::clone(&log), Arc::clone(&nonces));
                        let stops = stops.load(Ordering::Relaxed);
                        async move {
                            if stops {
                                return Ok(stopping_answer());
                            }
                            Ok::<_, hyper::Error>(answer(request, operator, ahead_s, &log, &nonces).await)
                        }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(tls), service)
                        .await;
                });
            }
        });
        Node { address, asked, stopping }
    }

    fn stopping_answer() -> Response<Full<Bytes>> {
        let problem = Problem::new(Code::Stopping, "the node's agent is stopping");
        let body = serde_json::to_vec(&problem).unwrap();
        Response::builder().status(problem.status).body(Full::new(Bytes::from(body))).unwrap()
    }

    fn certificates(
        bundle: &Bundle,
        ca_key: &KeyPair,
        ahead_s: i64,
    ) -> (Vec<CertificateDer<'static>>, KeyPair) {
        let root = bundle.root_ca().unwrap();
        let [token_key, node_key, leaf_key] = [(); 3].map(|()| KeyPair::generate().unwrap());
        let token = certificate::token_ca(Signer { certificate: &root, key: ca_key }, &token_key).unwrap();
        let signer = Signer { certificate: &token, key: &token_key };
        let node = certificate::node_ca(signer, &node_key, PublicKey([7; 32])).unwrap();
        let signer = Signer { certificate: &node, key: &node_key };
        // A day back, as nodes do it.
        let since_ms = crate::command::now_ms().saturating_add_signed((ahead_s - 86_400) * 1000);
        let leaf = certificate::leaf(signer, &leaf_key, &[], &[], since_ms, 60).unwrap();
        ([leaf, node, token].map(CertificateDer::from).to_vec(), leaf_key)
    }

    async fn answer(
        request: Request<Incoming>,
        operator: PublicKey,
        ahead_s: i64,
        log: &Mutex<Vec<(String, u16)>>,
        nonces: &Mutex<BTreeSet<String>>,
    ) -> Response<Full<Bytes>> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let field = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
        let signed = http_signature::Request {
            method: parts.method.as_str(),
            authority: field("host").unwrap(),
            path: parts.uri.path(),
            query: parts.uri.query(),
            body: &body,
        };
        let fields = ReceivedFields {
            signature_input: field("signature-input"),
            signature: field("signature"),
            content_digest: field("content-digest"),
        };
        let now_s = (crate::command::now_ms() / 1000).saturating_add_signed(ahead_s);
        let known = |id: &hivemind_spec::id::KeyId| (*id == operator.id()).then_some(operator);
        let seen =
            |_: &hivemind_spec::id::KeyId, nonce: &str| !nonces.lock().unwrap().insert(nonce.to_owned());
        let fresh = http_signature::fresh_at(now_s);
        let (status, body) = match http_signature::verify(signed, fields, known, now_s, fresh, seen) {
            Ok(_) => (200, br#"{"items":[1,2]}"#.to_vec()),
            Err(refusal) => {
                let problem = Problem::from(refusal);
                (problem.status, serde_json::to_vec(&problem).unwrap())
            }
        };
        log.lock().unwrap().push((parts.uri.to_string(), status));
        Response::builder().status(status).body(Full::new(Bytes::from(body))).unwrap()
    }
}

fn cluster(dir: &std::path::Path) -> (Bundle, bundle::Unlocked) {
    Bundle::create(dir, "lab", None).unwrap()
}

#[tokio::test]
async fn a_signed_request_is_answered_by_a_node_behind_any_address() {
    let dir = tempfile::tempdir().unwrap();
    let (bundle, keys) = cluster(dir.path());
    let node = node::start(&bundle, &keys.root_ca, keys.signer.public(), 0).await;
    // One that is off comes first.
    let nodes = ["127.0.0.1:1".to_owned(), node.address.clone()];
    let client = Client::new(bundle, keys.signer, &nodes).unwrap();
    assert_eq!(client.list::<u32>("/v1/replicas?workload=a%20b").await.unwrap(), [1, 2]);
    client.post::<serde_json::Value>("/v1/specs", b"{}".to_vec()).await.unwrap();
    let asked = node.asked.lock().unwrap().clone();
    assert_eq!(asked, [("/v1/replicas?workload=a%20b".to_owned(), 200), ("/v1/specs".to_owned(), 200)]);
    assert_eq!(client.bundle().remembered_nodes(), [node.address], "only the one that answered");
}

#[tokio::test]
async fn a_node_that_is_stopping_is_left_for_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let (bundle, keys) = cluster(dir.path());
    let stops = node::start(&bundle, &keys.root_ca, keys.signer.public(), 0).await;
    let stays = node::start(&bundle, &keys.root_ca, keys.signer.public(), 0).await;
    let client = Client::new(bundle, keys.signer, &[stops.address.clone(), stays.address.clone()]).unwrap();
    stops.stopping.store(true, Ordering::Relaxed);
    client.list::<u32>("/v1/nodes").await.unwrap();
    assert_eq!((stops.asked.lock().unwrap().len(), stays.asked.lock().unwrap().len()), (0, 1));
    stays.stopping.store(true, Ordering::Relaxed);
    let failure = client.list::<u32>("/v1/nodes").await.unwrap_err();
    assert_eq!(failure.exit, Exit::Unreachable);
    assert!(failure.detail.contains("agent is stopping"), "{}", failure.detail);
}

#[tokio::test]
async fn a_wrong_clock_is_corrected_once_and_for_all_requests() {
    let dir = tempfile::tempdir().unwrap();
    let (bundle, keys) = cluster(dir.path());
    let node = node::start(&bundle, &keys.root_ca, keys.signer.public(), 7200).await;
    let client = Client::new(bundle, keys.signer, std::slice::from_ref(&node.address)).unwrap();
    for _ in 0..2 {
        client.list::<u32>("/v1/nodes").await.unwrap();
    }
    let statuses: Vec<u16> = node.asked.lock().unwrap().iter().map(|(_, status)| *status).collect();
    assert_eq!(statuses, [401, 200, 200]);
    assert!(client.now_ms().abs_diff(crate::command::now_ms() + 7_200_000) < 5000);
}

/// Seconds in seventy years: a clock that says 2099 today, or thereabouts.
const SEVENTY_YEARS_S: i64 = 70 * 365 * 86_400;

#[tokio::test]
async fn nodes_with_right_clocks_are_asked_before_others() {
    let dir = tempfile::tempdir().unwrap();
    let (bundle, keys) = cluster(dir.path());
    let future = node::start(&bundle, &keys.root_ca, keys.signer.public(), SEVENTY_YEARS_S).await;
    let right = node::start(&bundle, &keys.root_ca, keys.signer.public(), 0).await;
    let client = Client::new(bundle, keys.signer, &[future.address, right.address.clone()]).unwrap();
    client.list::<u32>("/v1/nodes").await.unwrap();
    assert!(future.asked.lock().unwrap().is_empty(), "its clock would become the revision of what is pushed");
    assert_eq!(client.bundle().remembered_nodes(), [right.address]);
}

#[tokio::test]
async fn a_node_whose_clock_is_wrong_by_decades_answers_when_no_other_does() {
    let dir = tempfile::tempdir().unwrap();
    let (bundle, keys) = cluster(dir.path());
    for ahead_s in [SEVENTY_YEARS_S, -56 * 365 * 86_400] {
        let node = node::start(&bundle, &keys.root_ca, keys.signer.public(), ahead_s).await;
        let nodes = ["127.0.0.1:1".to_owned(), node.address.clone()];
        let signer = SigningKey::from_base64(&keys.signer.to_base64()).unwrap();
        let client = Client::new(Bundle::open(dir.path()).unwrap(), signer, &nodes).unwrap();
        for _ in 0..2 {
            client.list::<u32>("/v1/nodes").await.unwrap();
        }
        let statuses: Vec<u16> = node.asked.lock().unwrap().iter().map(|(_, status)| *status).collect();
        assert_eq!(statuses, [401, 200, 200], "{ahead_s}");
    }
}

#[tokio::test]
async fn a_key_the_cluster_does_not_know_is_refused_with_the_servers_words() {
    let dir = tempfile::tempdir().unwrap();
    let (bundle, keys) = cluster(dir.path());
    let node = node::start(&bundle, &keys.root_ca, keys.signer.public(), 0).await;
    let stranger = SigningKey::from_seed([3; 32]);
    let client = Client::new(bundle, stranger, &[node.address]).unwrap();
    let failure = client.list::<u32>("/v1/nodes").await.unwrap_err();
    assert_eq!((failure.exit, failure.code.as_str()), (Exit::Refused, "bad-signature"));
    assert!(failure.advice.contains("hivemind keys add"), "{}", failure.advice);
}

#[tokio::test]
async fn a_node_of_another_cluster_is_not_talked_to() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (bundle, keys) = cluster(ours.path());
    let (other, other_keys) = cluster(theirs.path());
    let node = node::start(&other, &other_keys.root_ca, keys.signer.public(), 0).await;
    let client = Client::new(bundle, keys.signer, std::slice::from_ref(&node.address)).unwrap();
    let failure = client.list::<u32>("/v1/nodes").await.unwrap_err();
    assert_eq!(failure.exit, Exit::Unreachable);
    assert!(failure.advice.contains("another cluster"), "{} {}", failure.detail, failure.advice);
    assert!(node.asked.lock().unwrap().is_empty(), "nothing was sent");
}
