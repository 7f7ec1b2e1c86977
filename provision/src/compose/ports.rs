//! `ports` and `expose`.

use hivemind_spec::workload::{Port, Protocol};

use super::keys;
use super::reader::Reader;
use super::yaml::{Node, Value};

/// The longest range of ports in one entry; each costs a rule on every machine.
const MAX_PORT_RANGE: u16 = 100;

/// An entry of `expose`.
pub(super) fn exposed(reader: &Reader<'_>, list: &mut Vec<Port>, node: &Node) {
    let Some(text) = reader.text_or_number(node, "a port") else { return };
    let (range, protocol) = text.split_once('/').unwrap_or((&text, "tcp"));
    let ports = port_range(range).and_then(|targets| Ok((targets, protocol_of(protocol)?)));
    if let Some((targets, protocol)) = reader.ok(node.mark, ports) {
        list.extend(targets.map(|target| Port { target, published: None, protocol }));
    }
}

/// An entry of `ports`.
pub(super) fn published(reader: &Reader<'_>, list: &mut Vec<Port>, node: &Node) {
    if let Value::Mapping(_) = node.value {
        list.extend(long_port(reader, node));
        return;
    }
    let Some(text) = reader.text_or_number(node, "a port") else { return };
    if let Some(ports) = reader.ok(node.mark, short_ports(&text)) {
        list.extend(ports);
    }
}

/// `PUBLISHED:TARGET[/PROTOCOL]`, both a port or a range.
fn short_ports(text: &str) -> Result<Vec<Port>, String> {
    let (both, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol_of(protocol)?;
    let Some((published, target)) = both.split_once(':') else {
        port_range(both)?;
        return Err(format!(
            "{text:?} does not say which port to publish; write \"{both}:{both}\", or use `expose`"
        ));
    };
    if published.contains(['.', '[']) || target.contains(':') {
        return Err(format!("{text:?}: a port is open on every machine and address; leave the address out"));
    }
    let (published, targets) = (port_range(published)?, port_range(target)?);
    if published.len() != targets.len() {
        return Err(format!("{text:?}: the two ranges differ in length"));
    }
    let port = |(published, target)| Port { target, published: Some(published), protocol };
    Ok(published.zip(targets).map(port).collect())
}

fn protocol_of(text: &str) -> Result<Protocol, String> {
    match text {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        _ => Err(format!("{text:?} is not a protocol; use tcp or udp")),
    }
}

fn port_range(text: &str) -> Result<std::ops::RangeInclusive<u16>, String> {
    let wrong = || format!("{text:?} is not a port; use a number from 1 to 65535");
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(wrong);
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    if first > last || last - first >= MAX_PORT_RANGE {
        return Err(format!("{text:?} is not a range of 1 to {MAX_PORT_RANGE} ports"));
    }
    Ok(first..=last)
}

fn long_port(reader: &Reader<'_>, node: &Node) -> Option<Port> {
    let number = |node| reader.integer(node, 1, 65_535).and_then(|n| u16::try_from(n).ok());
    let (mut target, mut published, mut protocol) = (None, None, Protocol::Tcp);
    for (key, value) in reader.entries(node, keys::PORT)? {
        match key.text.as_str() {
            "mode" => reader.word(value, &[("ingress", ())])?,
            "protocol" => {
                protocol = reader.word(value, &[("tcp", Protocol::Tcp), ("udp", Protocol::Udp)])?;
            }
            "published" => published = Some(number(value)?),
            _ => target = Some(number(value)?),
        }
    }
    if target.is_none() {
        reader.fault(node.mark, "`target` is missing: the port in the container");
    }
    Some(Port { target: target?, published, protocol })
}
