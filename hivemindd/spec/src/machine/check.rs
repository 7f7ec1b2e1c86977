//! Whether the values of a well-formed machine configuration make sense.

use std::net::{IpAddr, Ipv4Addr};

use super::parse::Segment;
use super::{ALL_REGISTRIES, Cluster, MachineConfig, Network, Node, Registries, Token};
use crate::key::PublicKey;

/// Longest name of a cluster and longest DNS label (RFC 1123, section 2.1), characters.
const MAX_LABEL: usize = 63;

/// Longest host name (RFC 1123, section 2.1), characters.
const MAX_HOST: usize = 253;

/// Longest interface name: the kernel's `IFNAMSIZ` less its final zero.
const MAX_INTERFACE: usize = 15;

/// Entries in any list: more than a person writes, few enough to try one after the other at boot.
const MAX_LIST: usize = 64;

/// Mirrors of one registry: each that does not answer takes its time before the next is asked.
const MAX_MIRRORS: usize = 4;

/// The smallest container range holds four nodes' /24.
const MAX_RANGE_PREFIX: u8 = 22;

/// The largest container range: one of the classic /8 blocks.
const MIN_RANGE_PREFIX: u8 = 8;

/// A fault and the key it is in.
pub(super) struct Fault {
    pub(super) path: Vec<Segment>,
    pub(super) message: String,
}

impl Fault {
    /// The path as people write it.
    pub(super) fn key(&self) -> String {
        join(&self.path)
    }

    fn at(mut self, index: usize) -> Self {
        self.path.push(Segment::Index(index));
        self
    }
}

/// `token.seeds[2]`.
pub(super) fn join(path: &[Segment]) -> String {
    let mut text = String::new();
    for segment in path {
        match segment {
            Segment::Key(key) if text.is_empty() => text.push_str(key),
            Segment::Key(key) => {
                text.push('.');
                text.push_str(key);
            }
            Segment::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}

fn fault(path: &str, message: impl Into<String>) -> Fault {
    let path = path.split('.').map(|key| Segment::Key(key.to_owned())).collect();
    Fault { path, message: message.into() }
}

pub(super) fn check(config: &MachineConfig) -> Result<(), Fault> {
    check_cluster(&config.cluster)?;
    if let Some(token) = &config.token {
        check_token(token)?;
    }
    check_node(&config.node)?;
    check_network(&config.network)?;
    check_registries(&config.registries)?;
    match config.install.as_ref().and_then(|install| install.disk.as_deref()) {
        Some("") => Err(fault("install.disk", "is empty; write the disk's serial number, or remove it")),
        _ => Ok(()),
    }
}

fn check_cluster(cluster: &Cluster) -> Result<(), Fault> {
    if !is_label(&cluster.name) {
        return Err(fault("cluster.name", LABEL_RULE));
    }
    if !is_pem(&cluster.root_ca, "CERTIFICATE") {
        return Err(fault("cluster.root_ca", CERTIFICATE_RULE));
    }
    if cluster.root_keys.is_empty() {
        return Err(fault(
            "cluster.root_keys",
            "at least one operator key is needed; `hivemind init` makes it",
        ));
    }
    check_list("cluster.root_keys", &cluster.root_keys, |key| {
        PublicKey::from_base64(key).map(|_| ()).map_err(|error| format!("{error}; copy it again"))
    })?;
    check_container_range(&cluster.container_range)
        .map_err(|message| fault("cluster.container_range", message))
}

fn check_token(token: &Token) -> Result<(), Fault> {
    if !is_pem(&token.ca, "CERTIFICATE") {
        return Err(fault("token.ca", CERTIFICATE_RULE));
    }
    if token.ca_key.as_deref().is_some_and(|key| !is_pem(key, "PRIVATE KEY")) {
        return Err(fault("token.ca_key", "not a PKCS #8 private key in PEM; make a new token"));
    }
    if !serde_json::from_str::<serde_json::Value>(&token.document).is_ok_and(|value| value.is_object()) {
        return Err(fault("token.document", "not a DSSE envelope in JSON; make a new token"));
    }
    check_list("token.seeds", &token.seeds, |seed| check_host(seed, false))
}

fn check_node(node: &Node) -> Result<(), Fault> {
    if node.hostname.as_deref().is_some_and(|name| !is_label(name)) {
        return Err(fault("node.hostname", LABEL_RULE));
    }
    if node.labels.len() > MAX_LIST {
        return Err(fault("node.labels", format!("at most {MAX_LIST} labels; remove some")));
    }
    for (name, value) in &node.labels {
        let charset = |text: &str| text.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_./".contains(&c));
        if name.is_empty() || name.len() > MAX_HOST || !charset(name) {
            return Err(entry_fault(
                "node.labels",
                name,
                "a label's name has letters, digits, `-`, `_`, `.` and `/` only",
            ));
        }
        if value.len() > MAX_HOST || value.chars().any(char::is_control) {
            return Err(entry_fault(
                "node.labels",
                name,
                "a label's value is one line of at most 253 characters",
            ));
        }
    }
    Ok(())
}

/// Names of entries may hold dots, so the path is not made by splitting.
fn entry_fault(path: &str, name: &str, message: impl Into<String>) -> Fault {
    let mut fault = fault(path, message);
    fault.path.push(Segment::Key(name.to_owned()));
    fault
}

fn check_network(network: &Network) -> Result<(), Fault> {
    if network.interface.as_deref().is_some_and(|name| !is_interface(name)) {
        return Err(fault("network.interface", "an interface name has 1 to 15 characters, no space, no `/`"));
    }
    match (&network.address, network.gateway) {
        (None, Some(_)) => {
            let message = "a gateway belongs to a static address; add `network.address` or remove it";
            return Err(fault("network.gateway", message));
        }
        (None, None) => {}
        (Some(address), gateway) => {
            let (own, prefix) =
                parse_host_cidr(address).map_err(|message| fault("network.address", message))?;
            if gateway.is_some_and(|gateway| !shares_network(own, prefix, gateway) || gateway == own) {
                let message = format!("the gateway is another address in the network of {address}");
                return Err(fault("network.gateway", message));
            }
        }
    }
    if network.dns.len() > MAX_LIST {
        return Err(fault("network.dns", format!("at most {MAX_LIST} servers; remove some")));
    }
    check_list("network.ntp", &network.ntp, |server| check_host(server, false))
}

fn check_registries(registries: &Registries) -> Result<(), Fault> {
    check_list("registries.insecure", &registries.insecure, |registry| check_host(registry, true))?;
    if registries.mirrors.len() > MAX_LIST {
        let message = format!("mirrors of at most {MAX_LIST} registries; remove some");
        return Err(fault("registries.mirrors", message));
    }
    for (registry, mirrors) in &registries.mirrors {
        let wrong = |message: String| entry_fault("registries.mirrors", registry, message);
        if registry != ALL_REGISTRIES {
            check_host(registry, false).map_err(wrong)?;
        }
        if mirrors.is_empty() || mirrors.len() > MAX_MIRRORS {
            return Err(wrong(format!("1 to {MAX_MIRRORS} mirrors; change the list")));
        }
        for (index, mirror) in mirrors.iter().enumerate() {
            check_host(mirror, false).map_err(|message| wrong(message).at(index))?;
        }
    }
    Ok(())
}

const LABEL_RULE: &str =
    "1 to 63 lower-case letters, digits and hyphens, first and last not a hyphen; change the name";
const CERTIFICATE_RULE: &str =
    "not exactly one certificate in PEM; copy it again, with its BEGIN and END lines";

fn check_list(path: &str, list: &[String], rule: impl Fn(&str) -> Result<(), String>) -> Result<(), Fault> {
    if list.len() > MAX_LIST {
        return Err(fault(path, format!("at most {MAX_LIST} entries; remove some")));
    }
    for (index, entry) in list.iter().enumerate() {
        rule(entry).map_err(|message| fault(path, message).at(index))?;
    }
    Ok(())
}

fn is_label(name: &str) -> bool {
    (1..=MAX_LABEL).contains(&name.len())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
}

fn is_interface(name: &str) -> bool {
    (1..=MAX_INTERFACE).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|c| c.is_ascii_graphic() && c != b'/')
}

/// Exactly one PEM block (RFC 7468) with that label and base64 inside.
fn is_pem(text: &str, label: &str) -> bool {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let begin = format!("-----BEGIN {label}-----");
    let end = format!("-----END {label}-----");
    let Some(rest) = text.trim().strip_prefix(&begin) else { return false };
    let Some(body) = rest.strip_suffix(&end) else { return false };
    let body: String = body.split_ascii_whitespace().collect();
    !body.is_empty() && STANDARD.decode(body).is_ok()
}

/// `host`, `host:port`, an IPv4 address, or an IPv6 address in brackets.
fn check_host(text: &str, needs_port: bool) -> Result<(), String> {
    let wrong = || {
        let form = if needs_port { "`host:port`" } else { "`host` or `host:port`" };
        format!("{text:?} is not {form}; an IPv6 address goes into brackets")
    };
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or_else(wrong)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
            match rest {
                "" => (None, None),
                rest => (None, Some(rest.strip_prefix(':').ok_or_else(wrong)?)),
            }
        }
        None => match text.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(text), None),
        },
    };
    let good_port = match port {
        Some(port) => port.parse::<u16>().is_ok_and(|port| port != 0),
        None => !needs_port,
    };
    if good_port && host.is_none_or(is_host) { Ok(()) } else { Err(wrong()) }
}

fn is_host(host: &str) -> bool {
    (1..=MAX_HOST).contains(&host.len())
        && host.trim_end_matches('.').split('.').all(|label| is_label(&label.to_ascii_lowercase()))
}

fn split_cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (address, prefix) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let prefix: u8 = prefix.parse().ok()?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    (prefix <= bits).then_some((address, prefix))
}

fn parse_host_cidr(text: &str) -> Result<(IpAddr, u8), String> {
    let example = "write an address with its prefix length, such as `192.0.2.5/24`";
    let (address, prefix) = split_cidr(text).ok_or_else(|| format!("{text:?} is not one; {example}"))?;
    if prefix == 0 || address.is_unspecified() || address.is_multicast() || address.is_loopback() {
        return Err(format!("{text} is no address of a machine; {example}"));
    }
    Ok((address, prefix))
}

fn check_container_range(text: &str) -> Result<(), String> {
    let example = "write an IPv4 range from /8 to /22, such as `10.42.0.0/16`";
    let Some((IpAddr::V4(address), prefix)) = split_cidr(text) else {
        return Err(format!("{text:?} is not one; {example}"));
    };
    if !(MIN_RANGE_PREFIX..=MAX_RANGE_PREFIX).contains(&prefix) {
        return Err(format!("/{prefix} is out of bounds; {example}"));
    }
    let base = Ipv4Addr::from_bits(address.to_bits() & mask(prefix));
    if base != address {
        return Err(format!("{address} is within the range, not its start; write `{base}/{prefix}`"));
    }
    if address.is_multicast() || address.is_loopback() || address.is_link_local() || address.is_unspecified()
    {
        return Err(format!("{text} has another purpose; {example}"));
    }
    Ok(())
}

/// The network mask of an IPv4 prefix.
fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

fn shares_network(own: IpAddr, prefix: u8, other: IpAddr) -> bool {
    match (own, other) {
        (IpAddr::V4(own), IpAddr::V4(other)) => (own.to_bits() ^ other.to_bits()) & mask(prefix) == 0,
        (IpAddr::V6(own), IpAddr::V6(other)) => {
            // A link-local gateway is the usual one (RFC 4861), whatever the address.
            other.is_unicast_link_local()
                || (own.to_bits() ^ other.to_bits()).checked_shr(128 - u32::from(prefix)).unwrap_or(0) == 0
        }
        _ => false,
    }
}
