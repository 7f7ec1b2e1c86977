use std::net::Ipv4Addr;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::IntoResponse as _;
use axum::routing::get;
use tokio::sync::mpsc;

use super::*;
use crate::api;
use crate::identity::Identity;
use crate::identity::tests::{Folder, Operator};

const NOW_MS: u64 = 1_790_000_000_000;

/// What a stand-in for another node says of every blob.
#[derive(Clone)]
enum Has {
    Nothing,
    Part(u64),
    All(Vec<u8>),
    AllAndNoPlace,
}

type Store = Arc<Mutex<Has>>;

/// The node that asks, or one that is asked.
struct Node {
    transport: Transport,
    peer: Peer,
    has: Store,
    _folder: Folder,
}

impl Node {
    fn new(operator: &Operator, name: &str, has: Has) -> Self {
        let folder = Folder::new(&format!("peers-{name}"));
        let identity = Identity::load_or_enrol(&folder.0, &operator.configuration(), NOW_MS).unwrap();
        let leaf = identity.mint_leaf(&[Ipv4Addr::LOCALHOST.into()], &[], NOW_MS).unwrap();
        let (events, mut happened) = mpsc::channel(64);
        tokio::spawn(async move { while happened.recv().await.is_some() {} });
        let (transport, asked) =
            Transport::start(&identity, &leaf, (Ipv4Addr::LOCALHOST, 0).into(), events).unwrap();
        let peer = Peer { node: identity.node(), address: transport.local_address().unwrap() };
        let has = Arc::new(Mutex::new(has));
        let blobs = Router::new().route("/peer/blobs/{digest}", get(send).head(look));
        tokio::spawn(api::serve_peers(asked, blobs.with_state(Arc::clone(&has))));
        Self { transport, peer, has, _folder: folder }
    }

    fn now(&self, has: Has) {
        *self.has.lock().unwrap() = has;
    }
}

async fn look(State(has): State<Store>) -> axum::response::Response {
    match &*has.lock().unwrap() {
        Has::Nothing => StatusCode::NOT_FOUND.into_response(),
        Has::Part(bytes) => (StatusCode::ACCEPTED, [(DONE_BYTES, bytes.to_string())]).into_response(),
        Has::All(_) => StatusCode::OK.into_response(),
        Has::AllAndNoPlace => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

async fn send(
    State(has): State<Store>,
    Path(_): Path<String>,
    headers: HeaderMap,
) -> axum::response::Response {
    let range = headers[header::RANGE].to_str().unwrap();
    let from: usize = range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap();
    match &*has.lock().unwrap() {
        Has::All(data) => (StatusCode::PARTIAL_CONTENT, Body::from(data[from..].to_vec())).into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

/// One node that asks two others.
struct Bench {
    me: Node,
    one: Node,
    two: Node,
    locks: NamedLocks,
    meter: Meter,
}

impl Bench {
    fn new(name: &str, one: Has, two: Has) -> Self {
        let operator = Operator::new("home");
        let node = |who: &str, has| Node::new(&operator, &format!("{name}-{who}"), has);
        Self {
            me: node("me", Has::Nothing),
            one: node("one", one),
            two: node("two", two),
            locks: NamedLocks::default(),
            meter: Meter::default(),
        }
    }

    /// The first is waited for, the second is not.
    fn list(&self) -> ImagePeers {
        ImagePeers { before: vec![self.one.peer], others: vec![self.two.peer] }
    }

    async fn open(&self, peers: &Peers<'_>, from: u64) -> Option<FromPeer> {
        let limit = Duration::from_secs(20);
        timeout(limit, peers.open(&self.locks, "sha256:a", from, &self.meter)).await.expect("it ends in time")
    }
}

async fn content(opened: FromPeer) -> Vec<u8> {
    opened.data.try_collect::<Vec<Bytes>>().await.unwrap().concat()
}

#[tokio::test]
async fn a_blob_is_waited_for_while_a_node_before_this_one_gets_further_with_it() {
    let bench = Bench::new("waits", Has::Nothing, Has::Part(5));
    let list = bench.list();
    let peers = Peers::new(Some(&bench.me.transport), &list);
    let fetches = async {
        for bytes in 0..5 {
            sleep(Duration::from_millis(300)).await;
            bench.one.now(Has::Part(bytes));
        }
        bench.one.now(Has::All(b"layer".to_vec()));
    };
    let (opened, ()) = tokio::join!(bench.open(&peers, 2), fetches);
    let opened = opened.unwrap();
    assert_eq!(opened.peer, bench.one.peer);
    assert_eq!(content(opened).await, b"yer");
    assert!(bench.meter.waited.load(std::sync::atomic::Ordering::Relaxed) > 1, "the pull was kept alive");
}

#[tokio::test]
async fn a_node_that_has_given_up_is_not_waited_for() {
    let bench = Bench::new("gives-up", Has::Part(1), Has::Nothing);
    let list = bench.list();
    let peers = Peers::new(Some(&bench.me.transport), &list);
    let began = Instant::now();
    let gives_up = async {
        sleep(Duration::from_millis(500)).await;
        bench.one.now(Has::Nothing);
    };
    let (opened, ()) = tokio::join!(bench.open(&peers, 0), gives_up);
    assert!(opened.is_none());
    assert!(began.elapsed() < BEGIN_PATIENCE / 2, "{:?}", began.elapsed());
}

#[tokio::test]
async fn what_a_later_node_has_is_taken_and_what_it_fetches_is_not_waited_for() {
    let bench = Bench::new("others", Has::Nothing, Has::Part(1));
    let list = ImagePeers { before: vec![], ..bench.list() };
    let peers = Peers::new(Some(&bench.me.transport), &list);
    assert!(bench.open(&peers, 0).await.is_none());
    bench.two.now(Has::All(b"layer".to_vec()));
    assert_eq!(content(bench.open(&peers, 0).await.unwrap()).await, b"layer");
    assert!(Peers::new(None, &list).open(&bench.locks, "sha256:a", 0, &bench.meter).await.is_none());
}

#[tokio::test]
async fn a_node_that_sent_what_is_no_use_is_not_asked_again_and_the_next_one_is() {
    let bench = Bench::new("useless", Has::All(b"one".to_vec()), Has::All(b"two".to_vec()));
    let list = bench.list();
    let peers = Peers::new(Some(&bench.me.transport), &list);
    let first = bench.open(&peers, 0).await.unwrap().peer;
    assert_eq!(first, bench.one.peer);
    peers.is_useless(first, "it sent another");
    let second = bench.open(&peers, 0).await.unwrap().peer;
    assert_eq!(second, bench.two.peer);
    peers.is_useless(second, "it sent another");
    assert!(bench.open(&peers, 0).await.is_none());
}

#[tokio::test]
async fn each_node_sends_one_blob_at_a_time_and_one_without_a_place_is_waited_for() {
    let bench = Bench::new("places", Has::All(b"one".to_vec()), Has::AllAndNoPlace);
    let list = bench.list();
    let peers = Peers::new(Some(&bench.me.transport), &list);
    let first = bench.open(&peers, 0).await.unwrap();
    let second = bench.open(&peers, 0);
    let mut second = std::pin::pin!(second);
    assert!(timeout(Duration::from_secs(1), &mut second).await.is_err(), "both have no place");
    assert_eq!(content(first).await, b"one");
    assert_eq!(content(second.await.unwrap()).await, b"one");
}

#[tokio::test]
async fn a_manifest_is_taken_only_from_a_node_that_sends_the_right_one() {
    let bench = Bench::new("manifests", Has::All(b"wrong".to_vec()), Has::All(b"right".to_vec()));
    let list = bench.list();
    let peers = Peers::new(Some(&bench.me.transport), &list);
    assert_eq!(peers.document(&sha256(b"right")).await.as_deref(), Some(&b"right"[..]));
    assert_eq!(peers.document(&sha256(b"other")).await, None);
}

#[tokio::test]
async fn a_node_that_is_gone_is_not_waited_for_long() {
    let bench = Bench::new("gone", Has::Part(1), Has::Nothing);
    let list = bench.list();
    let peers = Peers::new(Some(&bench.me.transport), &list);
    let goes = async {
        sleep(Duration::from_millis(500)).await;
        bench.one.transport.close().await;
    };
    let (opened, ()) = tokio::join!(bench.open(&peers, 0), goes);
    assert!(opened.is_none());
}
