//! One question in, one answer out.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_server::net::runtime::Time;
use hickory_server::proto::op::{Edns, Metadata, OpCode, ResponseCode};
use hickory_server::proto::rr::rdata::{A, PTR, SOA, SRV};
use hickory_server::proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use hivemind_core::dns::{Answer, Question};
use hivemind_core::event::Zone;
use hivemind_core::isolation::{Endpoint, Isolation};
use hivemind_core::record::DNS_APEX;
use tokio::sync::watch;

use super::forward::Forwarder;

/// How long clients may keep an answer, seconds: a replica that died is not asked for longer than
/// its death takes to be noticed.
const TTL_S: u32 = 3;

/// How long clients may keep a name's absence, seconds: what was just pushed is found soon.
const NEGATIVE_TTL_S: u32 = 1;

/// The largest UDP answer sent, bytes, whatever a client allows: what passes every path in one
/// piece (DNS flag day 2020).
const MAX_UDP_BYTES: u16 = 1232;

/// The largest UDP answer a client without EDNS takes, bytes (RFC 1035, section 4.2.1).
const MIN_UDP_BYTES: u16 = 512;

/// What is sent back.
struct Reply {
    code: ResponseCode,
    ours: bool,
    answers: Vec<Record>,
    soa: Option<Record>,
    additionals: Vec<Record>,
}

impl Reply {
    fn code(code: ResponseCode) -> Self {
        Self { code, ours: false, answers: Vec::new(), soa: None, additionals: Vec::new() }
    }
}

/// Answers from the zone, and has the rest forwarded.
pub(super) struct Responder {
    zone: watch::Receiver<Arc<Zone>>,
    isolation: watch::Receiver<Arc<Isolation>>,
    forwarder: Arc<Forwarder>,
    /// Counts answers, so that each begins with another replica.
    turn: AtomicUsize,
}

#[async_trait::async_trait]
impl RequestHandler for Responder {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response: R,
    ) -> ResponseInfo {
        let reply = self.reply(request).await;
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = reply.code;
        metadata.authoritative = reply.ours;
        metadata.recursion_available = true;

        let edns = request.edns.as_ref().map(|theirs| {
            let mut edns = Edns::new();
            edns.set_max_payload(theirs.max_payload().clamp(MIN_UDP_BYTES, MAX_UDP_BYTES)).set_version(0);
            edns
        });
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &edns {
            builder.edns(edns);
        }
        let message = builder.build(metadata, &reply.answers, [], &reply.soa, &reply.additionals);
        match response.send_response(message).await {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(%error, client = %request.src(), "cannot answer");
                failed(metadata)
            }
        }
    }
}

fn failed(mut metadata: Metadata) -> ResponseInfo {
    metadata.response_code = ResponseCode::ServFail;
    hickory_server::proto::op::Header { metadata, counts: hickory_server::proto::op::HeaderCounts::default() }
        .into()
}

impl Responder {
    pub(super) fn new(
        zone: watch::Receiver<Arc<Zone>>,
        isolation: watch::Receiver<Arc<Isolation>>,
        forwarder: Arc<Forwarder>,
    ) -> Self {
        Self { zone, isolation, forwarder, turn: AtomicUsize::new(0) }
    }

    async fn reply(&self, request: &Request) -> Reply {
        let Ok(info) = request.request_info() else { return Reply::code(ResponseCode::FormErr) };
        if request.metadata.op_code != OpCode::Query || info.query.query_class() != DNSClass::IN {
            return Reply::code(ResponseCode::NotImp);
        }
        let name: &Name = info.query.name();
        let record_type = info.query.query_type();
        // Both are cloned out (pointers), so that no borrow is held while something is awaited.
        let zone = Arc::clone(&self.zone.borrow());
        let isolation = Arc::clone(&self.isolation.borrow());
        let asker = match request.src().ip() {
            IpAddr::V4(address) => isolation.container(address),
            IpAddr::V6(_) => None,
        };
        if let Some(reply) = self.zone_answer(&zone, asker, name, record_type) {
            return reply;
        }
        if matches!(record_type, RecordType::AXFR | RecordType::IXFR) {
            return Reply::code(ResponseCode::Refused);
        }
        if asker.is_some_and(|asker| !asker.outside) {
            return Reply::code(ResponseCode::NXDomain);
        }
        let servers = asker.map(|asker| asker.name_servers.clone()).unwrap_or_default();
        let forwarded = self.forwarder.ask(name, record_type, servers).await;
        Reply {
            code: forwarded.code,
            ours: false,
            answers: forwarded.answers,
            soa: forwarded.soa,
            additionals: Vec::new(),
        }
    }

    /// The answer to a question about our zone; `None` when it is about another.
    fn zone_answer(
        &self,
        zone: &Zone,
        asker: Option<&Endpoint>,
        name: &Name,
        record_type: RecordType,
    ) -> Option<Reply> {
        let question = match record_type {
            RecordType::A => Question::A,
            RecordType::SRV => Question::Srv,
            RecordType::PTR => Question::Ptr,
            _ => Question::Other,
        };
        let mut reply = Reply { ours: true, ..Reply::code(ResponseCode::NoError) };
        match zone.lookup(asker, &name.to_ascii(), question) {
            Answer::NotOurs => return None,
            Answer::NoName => reply.code = ResponseCode::NXDomain,
            Answer::NoData => {}
            Answer::Addresses(addresses) => {
                reply.answers = addresses.iter().map(|address| a(name, *address)).collect();
                let turn = self.turn.fetch_add(1, Ordering::Relaxed) % reply.answers.len().max(1);
                reply.answers.rotate_left(turn);
            }
            Answer::Services(services) => {
                for (port, target) in services {
                    let Ok(target_name) = Name::from_ascii(format!("{target}.")) else { continue };
                    if let Answer::Addresses(addresses) = zone.lookup(asker, target, Question::A) {
                        reply.additionals.extend(addresses.iter().map(|address| a(&target_name, *address)));
                    }
                    let data = RData::SRV(SRV::new(0, 0, *port, target_name));
                    reply.answers.push(Record::from_rdata(name.clone(), TTL_S, data));
                }
            }
            Answer::Pointer(target) => {
                if let Ok(target) = Name::from_ascii(format!("{target}.")) {
                    let data = RData::PTR(PTR(target));
                    reply.answers.push(Record::from_rdata(name.clone(), TTL_S, data));
                }
            }
        }
        if reply.answers.is_empty() {
            reply.soa = soa();
        }
        Some(reply)
    }
}

fn a(name: &Name, address: Ipv4Addr) -> Record {
    Record::from_rdata(name.clone(), TTL_S, RData::A(A(address)))
}

/// The zone's SOA, which tells how long an absence may be kept (RFC 2308, section 5). There is no
/// transfer, so the serial number means nothing.
fn soa() -> Option<Record> {
    let apex = Name::from_ascii(format!("{DNS_APEX}.")).ok()?;
    let mail = Name::from_ascii(format!("operator.{DNS_APEX}.")).ok()?;
    let data = SOA::new(apex.clone(), mail, 1, 3600, 600, 86_400, NEGATIVE_TTL_S);
    Some(Record::from_rdata(apex, NEGATIVE_TTL_S, RData::SOA(data)))
}
