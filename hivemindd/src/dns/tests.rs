//! Real questions to a real server on loopback, by a client that is not the server's own code.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU8, Ordering};

use futures_util::StreamExt as _;
use hickory_server::proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_server::proto::rr::{Name, RData, RecordType};
use hivemind_core::isolation::{Endpoint, NetworkId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::*;

const WAIT: Duration = Duration::from_secs(5);

/// An address of this test alone: loopback has sixteen million.
fn own_address() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let pid = std::process::id().to_be_bytes();
    let last = NEXT.fetch_add(1, Ordering::Relaxed);
    SocketAddr::new(Ipv4Addr::new(127, pid[2] | 64, pid[3], last).into(), 10_053)
}

fn zone(replicas: u8) -> Arc<Zone> {
    let mut zone = Zone::default();
    let name = "web.default.hive.internal";
    let mut all = BTreeSet::new();
    let mut targets = BTreeSet::new();
    for slot in 0..replicas {
        let ip = Ipv4Addr::new(10, 42, 1, 2 + slot);
        let own = format!("{slot}.{name}");
        all.insert(ip);
        targets.insert((80, own.clone()));
        zone.addresses.insert(own.clone(), [ip].into());
        zone.pointers.insert(ip, own);
    }
    zone.addresses.insert(name.into(), all);
    zone.services.insert(format!("_80._tcp.{name}"), targets);
    Arc::new(zone)
}

/// A running server and what steers it.
struct Served {
    address: SocketAddr,
    zone: watch::Sender<Arc<Zone>>,
    isolation: watch::Sender<Arc<Isolation>>,
    listen: watch::Sender<BTreeSet<SocketAddr>>,
    upstreams: watch::Sender<Vec<SocketAddr>>,
    task: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(replicas: u8, upstreams: Vec<SocketAddr>) -> Served {
    let address = own_address();
    let (zone, zones) = watch::channel(zone(replicas));
    let (listen, listens) = watch::channel(BTreeSet::from([address]));
    let (upstreams, upstreamss) = watch::channel(upstreams);
    let (isolation, isolations) = watch::channel(Arc::<Isolation>::default());
    let task = tokio::spawn(run(zones, isolations, listens, upstreamss));
    let served = Served { address, zone, isolation, listen, upstreams, task };
    served.wait_for(address).await;
    served
}

impl Served {
    /// Waits until the server answers at an address.
    async fn wait_for(&self, address: SocketAddr) {
        let deadline = tokio::time::Instant::now() + WAIT;
        while tokio::net::TcpStream::connect(address).await.is_err() {
            assert!(tokio::time::Instant::now() < deadline, "{address} does not listen");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn ask(&self, name: &str, record_type: RecordType) -> Message {
        udp(self.address, &question(name, record_type, None)).await
    }
}

fn question(name: &str, record_type: RecordType, udp_bytes: Option<u16>) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), record_type));
    if let Some(bytes) = udp_bytes {
        let mut edns = Edns::new();
        edns.set_max_payload(bytes);
        message.edns = Some(edns);
    }
    message
}

async fn udp_bytes(to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(bytes, to).await.unwrap();
    let mut buffer = vec![0; 65_535];
    let received = tokio::time::timeout(WAIT, socket.recv_from(&mut buffer)).await;
    let (length, from) = received.expect("no answer").unwrap();
    assert_eq!(from, to, "the answer comes from where the question went");
    buffer.truncate(length);
    buffer
}

async fn udp(to: SocketAddr, message: &Message) -> Message {
    Message::from_vec(&udp_bytes(to, &message.to_vec().unwrap()).await).unwrap()
}

async fn tcp(to: SocketAddr, message: &Message) -> Message {
    let mut stream = tokio::net::TcpStream::connect(to).await.unwrap();
    let bytes = message.to_vec().unwrap();
    stream.write_u16(bytes.len() as u16).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let mut answer = vec![0; stream.read_u16().await.unwrap().into()];
    stream.read_exact(&mut answer).await.unwrap();
    Message::from_vec(&answer).unwrap()
}

fn addresses(message: &Message) -> BTreeSet<Ipv4Addr> {
    let found = message.answers.iter().filter_map(|record| match &record.data {
        RData::A(a) => Some(a.0),
        _ => None,
    });
    found.collect()
}

/// A name server elsewhere: answers `example.org` with 192.0.2.1, anything else with NXDOMAIN.
/// Counts the questions.
async fn upstream() -> (SocketAddr, Arc<AtomicU8>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let asked = Arc::new(AtomicU8::new(0));
    let counter = Arc::clone(&asked);
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            counter.fetch_add(1, Ordering::SeqCst);
            let asked = Message::from_vec(&buffer[..length]).unwrap();
            let query = asked.queries[0].clone();
            let mut answer = Message::response(asked.metadata.id, OpCode::Query);
            answer.add_query(query.clone());
            if query.name().to_ascii() == "example.org." {
                let data = RData::A(hickory_server::proto::rr::rdata::A(Ipv4Addr::new(192, 0, 2, 1)));
                let record = hickory_server::proto::rr::Record::from_rdata(query.name().clone(), 60, data);
                answer.add_answers([record]);
            } else {
                answer.metadata.response_code = ResponseCode::NXDomain;
            }
            socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
        }
    });
    (address, asked)
}

#[tokio::test]
async fn a_workloads_name_answers_with_its_live_replicas_by_udp_and_tcp() {
    let served = serve(3, vec![]).await;
    let expected: BTreeSet<_> = (2..5).map(|last| Ipv4Addr::new(10, 42, 1, last)).collect();
    let answer = served.ask("WEB.default.hive.internal.", RecordType::A).await;
    assert_eq!((addresses(&answer), answer.metadata.authoritative), (expected.clone(), true));
    assert!(answer.answers.iter().all(|record| record.ttl <= 5));
    let question = question("web.default.hive.internal.", RecordType::A, None);
    assert_eq!(addresses(&tcp(served.address, &question).await), expected);
}

#[tokio::test]
async fn a_replica_that_goes_is_not_named_again() {
    let served = serve(3, vec![]).await;
    served.zone.send(zone(1)).unwrap();
    let answer = served.ask("web.default.hive.internal.", RecordType::A).await;
    assert_eq!(addresses(&answer), [Ipv4Addr::new(10, 42, 1, 2)].into());
}

#[tokio::test]
async fn every_replica_is_named_first_in_its_turn() {
    let served = serve(3, vec![]).await;
    let mut first = BTreeSet::new();
    for _ in 0..3 {
        let answer = served.ask("web.default.hive.internal.", RecordType::A).await;
        first.insert(answer.answers[0].data.to_string());
    }
    assert_eq!(first.len(), 3);
}

#[tokio::test]
async fn services_and_reverse_names_are_answered() {
    let served = serve(2, vec![]).await;
    let answer = served.ask("_80._tcp.web.default.hive.internal.", RecordType::SRV).await;
    let targets: BTreeSet<(u16, String)> = answer
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::SRV(srv) => Some((srv.port, srv.target.to_ascii())),
            _ => None,
        })
        .collect();
    let named = |slot: u8| (80, format!("{slot}.web.default.hive.internal."));
    assert_eq!(targets, [named(0), named(1)].into());
    assert_eq!(answer.additionals.len(), 2);
    let answer = served.ask("3.1.42.10.in-addr.arpa.", RecordType::PTR).await;
    assert_eq!(answer.answers[0].data.to_string(), "1.web.default.hive.internal.");
}

#[tokio::test]
async fn no_such_name_and_no_such_data_are_told_apart_and_may_be_kept_for_a_moment() {
    let served = serve(1, vec![]).await;
    let absent = served.ask("nobody.default.hive.internal.", RecordType::A).await;
    let no_data = served.ask("web.default.hive.internal.", RecordType::AAAA).await;
    assert_eq!(absent.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(no_data.metadata.response_code, ResponseCode::NoError);
    for answer in [absent, no_data] {
        assert!(answer.answers.is_empty());
        assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);
    }
}

#[tokio::test]
async fn an_answer_too_long_for_the_client_is_cut_and_whole_by_tcp() {
    let served = serve(200, vec![]).await;
    let question = |bytes| question("web.default.hive.internal.", RecordType::A, bytes);
    let small = udp(served.address, &question(None)).await;
    assert!(small.metadata.truncation);
    assert!(small.answers.len() < 200 && !small.answers.is_empty());
    let large = udp_bytes(served.address, &question(Some(65_000)).to_vec().unwrap()).await;
    assert!((513..=1232).contains(&large.len()), "{}", large.len());
    assert_eq!(addresses(&tcp(served.address, &question(None)).await).len(), 200);
}

#[tokio::test]
async fn the_rest_is_forwarded_and_kept() {
    let (upstream, asked) = upstream().await;
    let served = serve(1, vec![upstream]).await;
    for _ in 0..3 {
        let answer = served.ask("example.org.", RecordType::A).await;
        assert_eq!(addresses(&answer), [Ipv4Addr::new(192, 0, 2, 1)].into());
        assert!(!answer.metadata.authoritative && answer.metadata.recursion_available);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    let absent = served.ask("nothing.example.", RecordType::A).await;
    assert_eq!(absent.metadata.response_code, ResponseCode::NXDomain);
}

/// Says that whoever asks from this machine is a container.
fn asks_as(served: &Served, network: &str, outside: bool, name_servers: Vec<IpAddr>) {
    let networks = BTreeSet::from([NetworkId { namespace: "default".into(), name: network.into() }]);
    let endpoint = Endpoint { networks, outside, name_servers };
    let endpoints = [(Ipv4Addr::LOCALHOST, endpoint)].into();
    served.isolation.send_replace(Arc::new(Isolation { endpoints, ..Isolation::default() }));
}

#[tokio::test]
async fn a_container_is_told_of_workloads_in_its_networks_and_of_no_others() {
    let served = serve(2, vec![]).await;
    let mut zone = Zone::clone(&zone(2));
    let network = NetworkId { namespace: "default".into(), name: "back".into() };
    zone.networks.insert("web.default.hive.internal".into(), [network.clone()].into());
    let alias = (Some(network), "web.default.hive.internal".to_owned());
    zone.aliases.insert("site.default.hive.internal".into(), [alias].into());
    served.zone.send_replace(Arc::new(zone));
    let names = ["web", "site", "0.web"].map(|name| format!("{name}.default.hive.internal."));
    for (network, code) in [("back", ResponseCode::NoError), ("front", ResponseCode::NXDomain)] {
        asks_as(&served, network, true, vec![]);
        for name in &names {
            let answer = served.ask(name, RecordType::A).await;
            assert_eq!(answer.metadata.response_code, code, "{name} in {network}");
            assert_eq!(answer.answers.is_empty(), network == "front", "{name} in {network}");
        }
        let answer = served.ask("_80._tcp.web.default.hive.internal.", RecordType::SRV).await;
        assert_eq!(answer.metadata.response_code, code);
    }
}

#[tokio::test]
async fn a_container_without_a_way_outside_asks_nobody_outside() {
    let (upstream, asked) = upstream().await;
    let served = serve(1, vec![upstream]).await;
    asks_as(&served, "back", false, vec![]);
    let answer = served.ask("example.org.", RecordType::A).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    asks_as(&served, "back", true, vec![]);
    let answer = served.ask("example.org.", RecordType::A).await;
    assert_eq!(addresses(&answer), [Ipv4Addr::new(192, 0, 2, 1)].into());
}

#[tokio::test]
async fn a_container_with_name_servers_of_its_own_is_told_what_those_say() {
    let (upstream, asked) = upstream().await;
    let served = serve(1, vec![upstream]).await;
    // Nobody listens there, and the node's own are not asked in its place.
    let silent = own_address();
    asks_as(&served, "back", true, vec![silent.ip()]);
    let answer = served.ask("example.org.", RecordType::A).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn names_of_the_cluster_never_leave_it() {
    let (upstream, asked) = upstream().await;
    let served = serve(1, vec![upstream]).await;
    for name in ["nobody.default.hive.internal.", "hive.internal.", "web.default.hive.internal."] {
        served.ask(name, RecordType::TXT).await;
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn name_servers_may_change_and_be_absent() {
    let served = serve(1, vec![]).await;
    let answer = served.ask("example.org.", RecordType::A).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    let (upstream, _) = upstream().await;
    served.upstreams.send(vec![upstream]).unwrap();
    let answer = served.ask("example.org.", RecordType::A).await;
    assert_eq!(addresses(&answer), [Ipv4Addr::new(192, 0, 2, 1)].into());
    // Itself as a name server is no loop.
    served.upstreams.send(vec![served.address]).unwrap();
    let answer = served.ask("other.example.", RecordType::A).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn a_silent_name_server_fails_the_question_in_time_and_holds_up_no_other() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let served = serve(1, vec![silent.local_addr().unwrap()]).await;
    let (slow, quick) = tokio::join!(served.ask("example.org.", RecordType::A), async {
        let start = tokio::time::Instant::now();
        served.ask("web.default.hive.internal.", RecordType::A).await;
        start.elapsed()
    });
    assert_eq!(slow.metadata.response_code, ResponseCode::ServFail);
    assert!(quick < Duration::from_secs(1), "{quick:?}");
}

#[tokio::test]
async fn questions_under_way_to_silent_name_servers_are_bounded() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (_upstreams, upstreams) = watch::channel(vec![silent.local_addr().unwrap()]);
    let (_own, own) = watch::channel(BTreeSet::new());
    let forwarder = forward::Forwarder::new(upstreams, own);
    let name = |number: usize| Name::from_ascii(format!("host-{number}.example.")).unwrap();
    let names: Vec<Name> = (0..=forward::MAX_UNDER_WAY).map(name).collect();
    let asked = tokio::time::Instant::now();
    let mut answers: futures_util::stream::FuturesUnordered<_> =
        names.iter().map(|name| forwarder.ask(name, RecordType::A, Vec::new())).collect();
    // One more than there is room for: it is refused at once, while the others wait for their answers.
    let refused = answers.next().await.unwrap();
    assert_eq!(refused.code, ResponseCode::ServFail);
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    assert_eq!(answers.len(), forward::MAX_UNDER_WAY);
    while answers.next().await.is_some() {}
    assert!(asked.elapsed() > Duration::from_secs(1), "the others were not asked at all");
}

#[tokio::test]
async fn the_address_may_change() {
    let served = serve(1, vec![]).await;
    let next = own_address();
    served.listen.send(BTreeSet::from([next])).unwrap();
    served.wait_for(next).await;
    let answer = udp(next, &question("web.default.hive.internal.", RecordType::A, None)).await;
    assert_eq!(addresses(&answer).len(), 1);
}

#[tokio::test]
async fn malformed_and_unsupported_messages_do_no_harm() {
    let served = serve(1, vec![]).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for junk in [&[][..], &[0xff; 11], &[0; 12], &[0xff; 600]] {
        socket.send_to(junk, served.address).await.unwrap();
    }
    let mut update = question("web.default.hive.internal.", RecordType::A, None);
    update.metadata.op_code = OpCode::Status;
    assert_eq!(udp(served.address, &update).await.metadata.response_code, ResponseCode::NotImp);
    let transfer = served.ask("example.org.", RecordType::AXFR).await;
    assert_eq!(transfer.metadata.response_code, ResponseCode::Refused);
    let answer = served.ask("web.default.hive.internal.", RecordType::A).await;
    assert_eq!(addresses(&answer).len(), 1);
}
