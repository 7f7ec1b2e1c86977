use std::net::Ipv4Addr;

use hivemind_core::record::{Record, RecordKey, Statement, Topic};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::identity::tests::{Folder, Operator};

const NOW_MS: u64 = 1_790_000_000_000;

/// How long anything may take before a test calls it lost: far beyond any delay measured.
const PATIENCE: Duration = Duration::from_secs(20);

/// A node with its transport on loopback.
struct Node {
    identity: Identity,
    transport: Transport,
    events: mpsc::Receiver<Event>,
    http: mpsc::Receiver<IncomingHttp>,
    _folder: Folder,
}

fn enrol(operator: &Operator, name: &str) -> (Identity, Folder) {
    let folder = Folder::new(&format!("transport-{name}"));
    let identity = Identity::load_or_enrol(&folder.0, &operator.configuration(), NOW_MS).unwrap();
    (identity, folder)
}

fn start(
    identity: &Identity,
    leaf: &Leaf,
    port: u16,
) -> (Transport, mpsc::Receiver<Event>, mpsc::Receiver<IncomingHttp>) {
    let (sender, events) = mpsc::channel(64);
    let (transport, http) =
        Transport::start(identity, leaf, (Ipv4Addr::LOCALHOST, port).into(), sender).unwrap();
    (transport, events, http)
}

impl Node {
    fn new(operator: &Operator, name: &str) -> Self {
        Self::at_clock(operator, name, NOW_MS)
    }

    fn at_clock(operator: &Operator, name: &str, now_ms: u64) -> Self {
        let (identity, folder) = enrol(operator, name);
        let leaf = identity.mint_leaf(&[Ipv4Addr::LOCALHOST.into()], &[], now_ms).unwrap();
        let (transport, events, http) = start(&identity, &leaf, 0);
        Self { identity, transport, events, http, _folder: folder }
    }

    fn address(&self) -> SocketAddr {
        self.transport.local_address().unwrap()
    }

    fn peer(&self) -> Peer {
        Peer { node: self.identity.node(), address: self.address() }
    }

    async fn next(&mut self) -> Event {
        next(&mut self.events).await
    }

    /// Waits for the connection to that node, and gives the chain it came with.
    async fn connected_to(&mut self, other: Peer) -> Vec<Vec<u8>> {
        loop {
            if let Event::Connected { peer, chain } = self.next().await {
                assert_eq!(peer, other);
                return chain;
            }
        }
    }

    async fn message(&mut self) -> (NodeId, Message) {
        loop {
            if let Event::Received { from, message, .. } = self.next().await {
                return (from, message);
            }
        }
    }
}

async fn next(events: &mut mpsc::Receiver<Event>) -> Event {
    timeout(PATIENCE, events.recv()).await.expect("an event in time").expect("a transport")
}

fn swim(text: &str) -> Message {
    Message::Swim(text.as_bytes().to_vec())
}

/// A message of about `bytes` bytes.
fn records(from: NodeId, bytes: usize) -> Message {
    let statement = Statement { writer: from, body: vec![7; bytes], signature: vec![1; 64] };
    let key = RecordKey::Observation(from, Topic::Node);
    Message::Records { records: vec![(key, Record::Statement(statement))], ack: Some(1) }
}

/// Collects this thread's log lines. Tests run on one thread each.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    fn has(&self, line: &str) -> bool {
        self.0.lock().unwrap().iter().any(|found| found == line)
    }

    async fn wait_for(&self, line: &str) {
        let waited = timeout(PATIENCE, async {
            while !self.has(line) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        assert!(waited.await.is_ok(), "no line {line:?} in {:#?}", self.0.lock().unwrap());
    }
}

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN && metadata.target().starts_with("hivemindd")
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Text(String);
        impl tracing::field::Visit for Text {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                if field.name() == "message" {
                    self.0 = format!("{value:?}");
                }
            }
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        self.0.lock().unwrap().push(text.0);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn two_nodes_of_one_cluster_talk_both_ways() {
    let operator = Operator::new("home");
    let (mut a, mut b) = (Node::new(&operator, "talk-a"), Node::new(&operator, "talk-b"));
    a.transport.connect(b.address());
    assert_eq!(a.connected_to(b.peer()).await, b.identity.chain());
    assert_eq!(b.connected_to(a.peer()).await, a.identity.chain());
    a.transport.send(b.peer(), &swim("ping"));
    assert_eq!(b.message().await, (a.identity.node(), swim("ping")));
    b.transport.send(a.peer(), &Message::Stored { ack: 7 });
    assert_eq!(a.message().await, (b.identity.node(), Message::Stored { ack: 7 }));
    assert_eq!(a.transport.peers(), [b.peer()]);
}

#[tokio::test]
async fn a_message_to_a_stranger_dials_it_first() {
    let operator = Operator::new("home");
    let (a, mut b) = (Node::new(&operator, "first-a"), Node::new(&operator, "first-b"));
    a.transport.send(b.peer(), &swim("hello"));
    assert_eq!(b.message().await, (a.identity.node(), swim("hello")));
}

#[tokio::test]
async fn large_messages_arrive_whole_and_too_large_ones_never_leave() {
    let operator = Operator::new("home");
    let (a, mut b) = (Node::new(&operator, "large-a"), Node::new(&operator, "large-b"));
    let large = records(a.identity.node(), 3 * 1024 * 1024);
    a.transport.send(b.peer(), &large);
    assert_eq!(b.message().await.1, large);
    a.transport.send(b.peer(), &records(a.identity.node(), MAX_MESSAGE_BYTES + 1));
    // A SWIM packet that fits no datagram goes by stream.
    let long = Message::Swim(vec![5; 20_000]);
    a.transport.send(b.peer(), &long);
    assert_eq!(b.message().await.1, long);
}

#[tokio::test]
async fn another_clusters_node_is_refused_with_a_line_on_both_sides() {
    let lines = Lines::default();
    let _guard = tracing::subscriber::set_default(lines.clone());
    let (mut a, mut b) =
        (Node::new(&Operator::new("home"), "other-a"), Node::new(&Operator::new("home"), "other-b"));
    a.transport.connect(b.address());
    let (at_a, at_b) = (a.address(), b.address());
    lines
        .wait_for(&format!("refused {at_b}: its certificate chain leads to another cluster's root CA"))
        .await;
    lines
        .wait_for(&format!(
            "refused by {at_a}: this node's certificate chain leads to another cluster's root CA"
        ))
        .await;
    assert!(a.events.try_recv().is_err() && b.events.try_recv().is_err());
    assert!(a.transport.peers().is_empty() && b.transport.peers().is_empty());
}

/// The dialled side checks too: here the dialler accepts anybody.
#[tokio::test]
async fn a_dialler_that_checks_nothing_is_still_checked() {
    let lines = Lines::default();
    let _guard = tracing::subscriber::set_default(lines.clone());
    let (ours, theirs) = (Operator::new("home"), Operator::new("home"));
    let mut member = Node::new(&ours, "checked-member");
    let (stranger, _folder) = enrol(&theirs, "checked-stranger");
    let leaf = stranger.mint_leaf(&[], &[], NOW_MS).unwrap();
    let root = member.identity.root().to_vec();
    // The stranger's certificates with the member's root: it will accept the member.
    let (_, client) = tls::configurations(&root, &CurrentLeaf::new(&leaf).unwrap()).unwrap();
    let client = quinn::crypto::rustls::QuicClientConfig::try_from(client).unwrap();
    let mut endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(client)));
    let error = match endpoint.connect(member.address(), CLUSTER_NAME).unwrap().await {
        Ok(connection) => connection::welcome(&connection).await.unwrap_err(),
        Err(error) => error,
    };
    let theirs = Refusal::Theirs("this node's certificate chain leads to another cluster's root CA".into());
    assert_eq!(Refusal::of(&error), Some(theirs));
    let address = endpoint.local_addr().unwrap();
    let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port());
    lines
        .wait_for(&format!("refused {address}: its certificate chain leads to another cluster's root CA"))
        .await;
    assert!(member.events.try_recv().is_err());
}

#[tokio::test]
async fn a_member_cannot_pass_for_another() {
    let operator = Operator::new("home");
    let mut member = Node::new(&operator, "pass-member");
    let (victim, _victim_folder) = enrol(&operator, "pass-victim");
    let (liar, _liar_folder) = enrol(&operator, "pass-liar");
    let mut chain = liar.mint_leaf(&[], &[], NOW_MS).unwrap();
    chain.claim(&victim);
    let (transport, mut events, _http) = start(&liar, &chain, 0);
    transport.connect(member.address());
    assert!(timeout(Duration::from_secs(2), events.recv()).await.is_err());
    assert!(member.events.try_recv().is_err());
}

#[tokio::test]
async fn nodes_whose_clocks_are_decades_apart_connect() {
    let operator = Operator::new("home");
    let year_ms = 365 * 86_400_000;
    for (index, (first, second)) in
        [(0, NOW_MS), (NOW_MS, 4_071_000_000_000), (NOW_MS - 5 * year_ms, NOW_MS)].into_iter().enumerate()
    {
        let mut a = Node::at_clock(&operator, &format!("clock-a{index}"), first);
        let mut b = Node::at_clock(&operator, &format!("clock-b{index}"), second);
        a.transport.connect(b.address());
        a.connected_to(b.peer()).await;
        b.connected_to(a.peer()).await;
    }
}

/// Waits until there is one connection at either end, and has been for a while.
async fn settle(a: &Node, b: &Node) {
    let open = || [a, b].map(|node| node.transport.shared.endpoint.open_connections());
    let settled = timeout(PATIENCE, async {
        let mut since = Instant::now();
        while since.elapsed() < Duration::from_millis(300) {
            tokio::time::sleep(Duration::from_millis(10)).await;
            if open() != [1, 1] {
                since = Instant::now();
            }
        }
    });
    assert!(settled.await.is_ok(), "connections at either end: {:?}", open());
}

#[tokio::test]
async fn nodes_that_dial_each_other_at_once_end_with_one_connection() {
    let operator = Operator::new("home");
    for round in 0..5 {
        let (mut a, mut b) = (
            Node::new(&operator, &format!("race-a{round}")),
            Node::new(&operator, &format!("race-b{round}")),
        );
        a.transport.send(b.peer(), &swim("to b"));
        b.transport.send(a.peer(), &swim("to a"));
        a.connected_to(b.peer()).await;
        b.connected_to(a.peer()).await;
        settle(&a, &b).await;
        for (from, to) in [(&a, &b), (&b, &a)] {
            assert_eq!(from.transport.peers(), [to.peer()]);
        }
        a.transport.send(b.peer(), &Message::Stored { ack: round });
        while b.message().await.1 != (Message::Stored { ack: round }) {}
    }
}

#[tokio::test]
async fn a_peer_that_crashed_and_came_back_is_noticed_before_the_time_out() {
    let operator = Operator::new("home");
    let (identity, _folder) = enrol(&operator, "crash-b");
    let identity = Arc::new(identity);
    let leaf = identity.mint_leaf(&[], &[], NOW_MS).unwrap();
    let mut a = Node::new(&operator, "crash-a");

    // A runtime of its own, so that it can vanish without a word, as in a power cut.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (cut, power) = tokio::sync::oneshot::channel::<()>();
    let (address, mut addresses) = mpsc::channel(1);
    let thread = std::thread::spawn({
        let identity = identity.clone();
        move || {
            let leaf = identity.mint_leaf(&[], &[], NOW_MS).unwrap();
            let kept = runtime.block_on(async {
                let kept = start(&identity, &leaf, 0);
                address.send(kept.0.local_address().unwrap()).await.unwrap();
                let _ = power.await;
                kept
            });
            // First the runtime, so that nothing is left that could say goodbye.
            runtime.shutdown_background();
            drop(kept);
        }
    });
    let peer = Peer { node: identity.node(), address: addresses.recv().await.unwrap() };
    a.transport.connect(peer.address);
    a.connected_to(peer).await;
    cut.send(()).unwrap();
    thread.join().unwrap();

    let again = async {
        loop {
            let (sender, events) = mpsc::channel(64);
            match Transport::start(&identity, &leaf, peer.address, sender) {
                Ok((transport, http)) => return (transport, events, http),
                Err(TransportError::Listen { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    let (b, mut b_events, _http) = timeout(PATIENCE, again).await.unwrap();
    let returned = Instant::now();
    a.transport.send(peer, &swim("are you there?"));
    while !matches!(a.next().await, Event::Disconnected { node } if node == peer.node) {}
    assert!(returned.elapsed() < IDLE_TIMEOUT / 2, "{:?}", returned.elapsed());
    a.transport.send(peer, &swim("welcome back"));
    while !matches!(next(&mut b_events).await, Event::Received { message, .. } if message == swim("welcome back"))
    {
    }
    drop(b);
}

#[tokio::test]
async fn a_machine_powered_on_later_is_reached_within_seconds() {
    let operator = Operator::new("home");
    let mut a = Node::new(&operator, "late-a");
    let (identity, _folder) = enrol(&operator, "late-b");
    let leaf = identity.mint_leaf(&[], &[], NOW_MS).unwrap();
    // A port that nobody has yet.
    let address = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    a.transport.connect(address);
    tokio::time::sleep(Duration::from_secs(4)).await;
    let (_b, _events, _http) = start(&identity, &leaf, address.port());
    let on = Instant::now();
    a.connected_to(Peer { node: identity.node(), address }).await;
    assert!(on.elapsed() < Duration::from_secs(4), "{:?}", on.elapsed());
}

#[tokio::test]
async fn a_refused_node_learns_why() {
    let lines = Lines::default();
    let _guard = tracing::subscriber::set_default(lines.clone());
    let operator = Operator::new("home");
    let (mut a, mut b) = (Node::new(&operator, "refuse-a"), Node::new(&operator, "refuse-b"));
    a.transport.connect(b.address());
    b.connected_to(a.peer()).await;
    a.connected_to(b.peer()).await;
    b.transport.refuse(a.identity.node(), "its token's enrolment window is over");
    let gone = Event::Disconnected { node: b.identity.node() };
    assert_eq!(a.next().await, gone);
    assert_eq!(b.next().await, Event::Disconnected { node: a.identity.node() });
    lines.wait_for(&format!("refused by {}: its token's enrolment window is over", b.address())).await;
    let id = a.identity.node().short();
    lines
        .wait_for(&format!("refused {}: node {id}: its token's enrolment window is over", a.address()))
        .await;
}

#[tokio::test]
async fn a_node_does_not_talk_to_itself() {
    let mut a = Node::new(&Operator::new("home"), "self");
    a.transport.connect(a.address());
    a.transport.send(a.peer(), &swim("me"));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(a.events.try_recv().is_err());
    assert!(a.transport.peers().is_empty());
}

#[tokio::test]
async fn a_node_that_stops_is_gone_at_once() {
    let operator = Operator::new("home");
    let (a, mut b) = (Node::new(&operator, "stop-a"), Node::new(&operator, "stop-b"));
    a.transport.connect(b.address());
    b.connected_to(a.peer()).await;
    let stopped = Instant::now();
    a.transport.close().await;
    assert_eq!(b.next().await, Event::Disconnected { node: a.identity.node() });
    assert!(stopped.elapsed() < IDLE_TIMEOUT / 2);
}

#[tokio::test]
async fn http_is_forwarded_over_the_same_connection() {
    let operator = Operator::new("home");
    let (a, mut b) = (Node::new(&operator, "http-a"), Node::new(&operator, "http-b"));
    let mut client = a.transport.open_http(b.peer()).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    client.shutdown().await.unwrap();
    let mut server = timeout(PATIENCE, b.http.recv()).await.unwrap().unwrap();
    assert_eq!(server.from, a.identity.node());
    let mut request = String::new();
    server.stream.read_to_string(&mut request).await.unwrap();
    assert_eq!(request, "GET / HTTP/1.1\r\n\r\n");
    // Larger than every window, so that flow control is part of the test.
    let body = vec![b'x'; 2 * 1024 * 1024];
    let (sent, received) = tokio::join!(
        async {
            server.stream.write_all(&body).await.unwrap();
            server.stream.shutdown().await.unwrap();
            body.len()
        },
        async {
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            answer.len()
        }
    );
    assert_eq!(sent, received);
}

#[tokio::test]
async fn http_to_a_node_that_is_gone_fails_in_time() {
    let operator = Operator::new("home");
    let a = Node::new(&operator, "gone-a");
    let address = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let begun = Instant::now();
    let opened = a.transport.open_http(Peer { node: NodeId([9; 16]), address }).await;
    assert!(matches!(opened, Err(TransportError::NotConnected { .. })));
    assert!(begun.elapsed() < 2 * HTTP_CONNECT_TIMEOUT);
}

#[tokio::test]
async fn a_peer_that_sends_nonsense_is_cut_off() {
    let operator = Operator::new("home");
    let (mut a, mut b) = (Node::new(&operator, "nonsense-a"), Node::new(&operator, "nonsense-b"));
    a.transport.connect(b.address());
    a.connected_to(b.peer()).await;
    b.connected_to(a.peer()).await;
    let live = a.transport.shared.links().live(b.identity.node()).cloned().unwrap();
    let mut stream = live.connection.open_uni().await.unwrap();
    stream.write_all(&[wire::MESSAGE, 0xff, 0xff, 0xff]).await.unwrap();
    stream.finish().unwrap();
    assert_eq!(b.next().await, Event::Disconnected { node: a.identity.node() });
}

#[tokio::test]
async fn a_renewed_leaf_is_shown_to_new_connections() {
    let operator = Operator::new("home");
    let (mut a, mut b) = (Node::new(&operator, "renew-a"), Node::new(&operator, "renew-b"));
    let leaf = a.identity.mint_leaf(&["10.0.0.1".parse().unwrap()], &[], NOW_MS).unwrap();
    a.transport.set_leaf(&leaf).unwrap();
    b.transport.connect(a.address());
    b.connected_to(a.peer()).await;
    a.connected_to(b.peer()).await;
    let live = b.transport.shared.links().live(a.identity.node()).cloned().unwrap();
    let shown = live.connection.peer_identity().unwrap();
    let shown = shown.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().unwrap();
    assert_eq!(*shown, leaf.chain());
}

#[tokio::test]
async fn a_peer_that_reads_nothing_costs_a_bounded_queue_and_holds_up_nobody_else() {
    let operator = Operator::new("home");
    let (mut a, mut slow) = (Node::new(&operator, "slow-a"), Node::new(&operator, "slow-b"));
    let mut quick = Node::new(&operator, "slow-c");
    for other in [&slow, &quick] {
        a.transport.connect(other.address());
        a.connected_to(other.peer()).await;
    }
    // Nothing leaves the queue while this task does not wait.
    let live = a.transport.shared.links().live(slow.identity.node()).cloned().unwrap();
    let taken = |message: &Message| {
        let frame = Frame { bytes: wire::encode(message).unwrap().into(), datagram: false };
        let bytes = frame.bytes.len();
        ((0..1000).filter(|_| live.send(frame.clone())).count(), bytes)
    };
    let (small, _) = taken(&Message::Stored { ack: 1 });
    assert_eq!(small, links::MAX_QUEUED_MESSAGES);
    // The slow one's core takes a few, and then no more.
    for _ in 0..small - 10 {
        slow.message().await;
    }
    let large = records(a.identity.node(), 100_000);
    let (before, bytes) = taken(&large);
    assert!((before + 1) * bytes > links::MAX_QUEUED_BYTES && before * bytes <= links::MAX_QUEUED_BYTES);
    // Meanwhile another is served as ever.
    let asked = Instant::now();
    a.transport.send(quick.peer(), &swim("are you there?"));
    quick.message().await;
    a.transport.send(quick.peer(), &Message::Stored { ack: 2 });
    quick.message().await;
    assert!(asked.elapsed() < PATIENCE / 4, "{:?}", asked.elapsed());
    // Once it reads again it gets what was kept, and what is new.
    for _ in 0..before {
        while slow.message().await.1 != large {}
    }
    a.transport.send(slow.peer(), &Message::Stored { ack: 3 });
    while slow.message().await.1 != (Message::Stored { ack: 3 }) {}
}
