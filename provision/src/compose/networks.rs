//! Networks: those of the file, and which of them a service is in. A network has no document: it is there when a
//! workload is in it, so that all that the file says of it goes into the workloads.

use std::collections::BTreeMap;

use hivemind_spec::workload::{Attachment, ContainerSpec, DEFAULT_NETWORK, HostNamespace};

use super::keys;
use super::reader::Reader;
use super::yaml::{Key, Node, Value};

/// A network under the top level's `networks`.
pub(super) struct Declared {
    /// What it is called in the namespace.
    name: String,
    internal: bool,
}

/// The networks of the file, by the names that services use.
pub(super) type Networks = BTreeMap<String, Declared>;

/// The networks a service is in.
pub(super) type Attachments = BTreeMap<String, Attachment>;

/// Reads the top level's `networks`.
pub(super) fn declared(reader: &Reader<'_>, node: &Node) -> Option<Networks> {
    let mut networks = Networks::new();
    for (key, node) in reader.mapping(node)? {
        if let Some(network) = one(reader, key, node) {
            networks.insert(key.text.clone(), network);
        }
    }
    Some(networks)
}

fn one(reader: &Reader<'_>, key: &Key, node: &Node) -> Option<Declared> {
    let (mut name, mut internal) = (key.text.clone(), false);
    let entries = if node.is_null() { Vec::new() } else { reader.entries(node, keys::NETWORK)? };
    for (key, value) in entries {
        match key.text.as_str() {
            "name" => name = reader.text(value)?,
            "internal" => internal = reader.boolean(value)?,
            // There is nothing to make, so that it is the same whoever makes it.
            "external" | "attachable" => drop(reader.boolean(value)?),
            "driver" => reader.word(value, &[("bridge", ()), ("overlay", ())])?,
            "enable_ipv4" => reader.word(value, &[("true", ())])?,
            _ => reader.word(value, &[("false", ())])?,
        }
    }
    Some(Declared { name: reader.fitted(key.mark, &name, "a network"), internal })
}

/// Reads a service's `networks`: a list of names, or a map from names to what else it is there.
pub(super) fn attachments(reader: &Reader<'_>, networks: &Networks, node: &Node) -> Option<Attachments> {
    let mut attachments = Attachments::new();
    let Value::Mapping(entries) = &node.value else {
        for item in reader.sequence(node)? {
            let key = Key { mark: item.mark, text: reader.text(item)? };
            attach(reader, networks, &mut attachments, &key, Attachment::default());
        }
        return Some(attachments);
    };
    for (key, node) in entries {
        let mut attachment = Attachment::default();
        let options = if node.is_null() { Vec::new() } else { reader.entries(node, keys::NETWORK_USE)? };
        for (key, value) in options {
            match key.text.as_str() {
                "aliases" => {
                    let aliases = reader.sequence(value)?.iter().map(|item| reader.text(item));
                    attachment.aliases = aliases.collect::<Option<_>>()?;
                }
                "interface_name" => reader.word(value, &[("eth0", ())])?,
                _ => drop(reader.integer(value, i64::MIN, i64::MAX)?),
            }
        }
        attach(reader, networks, &mut attachments, key, attachment);
    }
    Some(attachments)
}

fn attach(
    reader: &Reader<'_>,
    networks: &Networks,
    attachments: &mut Attachments,
    used: &Key,
    attachment: Attachment,
) {
    let (name, internal) = match networks.get(&used.text) {
        Some(network) => (network.name.clone(), network.internal),
        None if used.text == DEFAULT_NETWORK => (DEFAULT_NETWORK.to_owned(), false),
        None => {
            reader.fault(used.mark, format!("{:?} is not under `networks` of the file", used.text));
            return;
        }
    };
    if attachments.insert(name.clone(), Attachment { internal, ..attachment }).is_some() {
        reader.fault(used.mark, format!("it is in the network {name} twice"));
    }
}

/// The networks of a service that names none: what the file makes of the one that all have, if it says anything of it.
pub(super) fn without_any(networks: &Networks) -> Attachments {
    let default = networks.get(DEFAULT_NETWORK).into_iter();
    let default = default.filter(|network| network.internal || network.name != DEFAULT_NETWORK);
    let attachment = |network: &Declared| {
        (network.name.clone(), Attachment { internal: network.internal, ..Attachment::default() })
    };
    default.map(attachment).collect()
}

/// What `network_mode` says.
pub(super) fn mode(reader: &Reader<'_>, container: &mut ContainerSpec, node: &Node) -> Option<()> {
    match reader.word(node, &[("none", 'n'), ("host", 'h'), ("bridge", 'b'), ("default", 'b')])? {
        'n' => container.offline = true,
        'h' => drop(container.machine.host_namespaces.insert(HostNamespace::Network)),
        _ => {}
    }
    Some(())
}

/// Whether a container is in networks: in the default one if it names none.
pub(super) fn may_have(container: &ContainerSpec) -> bool {
    !container.offline && !container.has_host_network()
}
