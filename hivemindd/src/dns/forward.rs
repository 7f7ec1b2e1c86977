//! Questions that are not ours, asked of the underlay's name servers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::time::Duration;

use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, Record, RecordType};
use hickory_resolver::{Resolver, TokioResolver};
use hivemind_spec::workload::MAX_NAME_SERVERS;
use tokio::sync::{Semaphore, watch};

use super::on_port;

/// How long one name server may take.
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a question may take in all. Stub resolvers ask again after five seconds.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(4);

/// Answers kept: enough for the names a node's containers use, about a megabyte.
const CACHE_ENTRIES: u64 = 1024;

/// The longest an answer is kept, so that a name server's mistake does not stay for a day.
const CACHE_MAX_TTL: Duration = Duration::from_secs(300);

/// The longest a name's absence is kept.
const CACHE_MAX_NEGATIVE_TTL: Duration = Duration::from_secs(30);

/// Questions under way at once; further ones are told to try again. Bounds memory and sockets when
/// the name servers do not answer.
pub(super) const MAX_UNDER_WAY: usize = 128;

/// Resolvers kept: the node's own, and those of containers that ask others. Each has its own cache, so that nobody is
/// told what another's name servers say.
const MAX_RESOLVERS: usize = 8;

/// What came of a question.
#[derive(Debug)]
pub(super) struct Forwarded {
    pub(super) code: ResponseCode,
    pub(super) answers: Vec<Record>,
    /// The SOA of a negative answer.
    pub(super) soa: Option<Record>,
}

impl Forwarded {
    fn failed(code: ResponseCode) -> Self {
        Self { code, answers: Vec::new(), soa: None }
    }
}

/// Asks the underlay's name servers.
pub(super) struct Forwarder {
    upstreams: watch::Receiver<Vec<SocketAddr>>,
    /// Our own addresses: asking ourselves would never end.
    own: watch::Receiver<BTreeSet<SocketAddr>>,
    /// Resolvers by the name servers they were made for.
    resolvers: Mutex<BTreeMap<Vec<SocketAddr>, TokioResolver>>,
    under_way: Semaphore,
}

impl Forwarder {
    pub(super) fn new(
        upstreams: watch::Receiver<Vec<SocketAddr>>,
        own: watch::Receiver<BTreeSet<SocketAddr>>,
    ) -> Self {
        Self { upstreams, own, resolvers: Mutex::default(), under_way: Semaphore::new(MAX_UNDER_WAY) }
    }

    /// Asks `servers`, or without any the underlay's. Fails with `SERVFAIL` when no name server answers, or too much is
    /// under way.
    pub(super) async fn ask(&self, name: &Name, record_type: RecordType, servers: Vec<IpAddr>) -> Forwarded {
        let Ok(_permit) = self.under_way.try_acquire() else {
            tracing::warn!(limit = MAX_UNDER_WAY, "too many DNS questions under way");
            return Forwarded::failed(ResponseCode::ServFail);
        };
        let Some(resolver) = self.resolver(servers) else { return Forwarded::failed(ResponseCode::ServFail) };
        let mut name = name.clone();
        name.set_fqdn(true);
        match tokio::time::timeout(TOTAL_TIMEOUT, resolver.lookup(name, record_type)).await {
            Ok(Ok(lookup)) => {
                Forwarded { code: ResponseCode::NoError, answers: lookup.answers().to_vec(), soa: None }
            }
            Ok(Err(NetError::Dns(DnsError::NoRecordsFound(none)))) => Forwarded {
                code: none.response_code,
                answers: Vec::new(),
                soa: none.soa.map(|soa| soa.into_record_of_rdata()),
            },
            Ok(Err(NetError::Dns(DnsError::ResponseCode(code)))) => Forwarded::failed(code),
            Ok(Err(error)) => {
                tracing::debug!(%error, "no name server answered");
                Forwarded::failed(ResponseCode::ServFail)
            }
            Err(_) => Forwarded::failed(ResponseCode::ServFail),
        }
    }

    /// The resolver for `servers`, or for the underlay's name servers there are now. With the servers the cache changes
    /// too: another network may have other answers.
    fn resolver(&self, servers: Vec<IpAddr>) -> Option<TokioResolver> {
        let own = self.own.borrow().clone();
        let asked = if servers.is_empty() { self.upstreams.borrow().clone() } else { on_port(servers) };
        let asked = asked.into_iter().filter(|server| !own.contains(server));
        let asked: Vec<SocketAddr> = asked.take(MAX_NAME_SERVERS).collect();
        if asked.is_empty() {
            return None;
        }
        // A panic elsewhere leaves at worst an old resolver behind.
        let mut held = self.resolvers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(resolver) = held.get(&asked) {
            return Some(resolver.clone());
        }
        match make(&asked, Vec::new()) {
            Ok(resolver) => {
                if held.len() >= MAX_RESOLVERS {
                    held.clear();
                }
                held.insert(asked, resolver.clone());
                Some(resolver)
            }
            Err(error) => {
                tracing::error!(%error, "cannot make a resolver");
                None
            }
        }
    }
}

/// Looks a host's address up as a container does: at its name server, within its domain too.
///
/// # Errors
/// When there is no such name, or nobody who knows.
pub async fn address(name: &str, server: IpAddr, domain: &str) -> Result<IpAddr, String> {
    let told = |error: NetError| match error {
        NetError::Dns(DnsError::NoRecordsFound(_)) => "there is no such name".to_owned(),
        NetError::Dns(DnsError::ResponseCode(code)) => format!("its name servers say: {code}"),
        other => other.to_string(),
    };
    let domain = Name::from_ascii(domain).map_err(|error| error.to_string())?;
    let resolver = make(&on_port([server]), vec![domain]).map_err(told)?;
    let found = resolver.lookup_ip(name).await.map_err(told)?;
    // What asks is IPv4's, unless there is no other way.
    let mut found: Vec<IpAddr> = found.iter().collect();
    found.sort_by_key(IpAddr::is_ipv6);
    found.first().copied().ok_or_else(|| "it has no address".to_owned())
}

fn make(upstreams: &[SocketAddr], search: Vec<Name>) -> Result<TokioResolver, NetError> {
    let servers = upstreams.iter().map(|upstream| {
        let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
        let on_port = connections.map(|mut connection| {
            connection.port = upstream.port();
            connection
        });
        NameServerConfig::new(upstream.ip(), true, on_port.to_vec())
    });
    let mut options = ResolverOpts::default();
    options.timeout = UPSTREAM_TIMEOUT;
    options.attempts = 1;
    options.edns0 = true;
    options.cache_size = CACHE_ENTRIES;
    options.positive_max_ttl = Some(CACHE_MAX_TTL);
    options.negative_max_ttl = Some(CACHE_MAX_NEGATIVE_TTL);
    options.use_hosts_file = ResolveHosts::Never;
    // Clients follow CNAME chains themselves and need every link.
    options.preserve_intermediates = true;
    options.num_concurrent_reqs = 2;
    let config = ResolverConfig::from_parts(None, search, servers.collect());
    Resolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options).build()
}
