//! `hivemind nodes`: what operators want of single machines.

use std::collections::BTreeMap;

use hivemind_spec::api::{Accepted, Action, Node, NodeState, Order, Ordered, SpecItem, Wipe};
use hivemind_spec::document::{Document, Kind, NodeIntentSpec, Spec};
use hivemind_spec::id::NodeId;
use serde_json::json;

use super::push::{held, send};
use super::{devices, show};
use crate::cli::{Global, NodeChange, NodeName, Nodes, NodesReset, Output};
use crate::client::Client;
use crate::deploy;
use crate::failure::{Exit, Failure, Result};
use crate::terminal::{STRONG, confirm, paint, say, say_json};

const UNCHANGED: &str = "stopped; look with `hivemind nodes`";

/// What the nodes of the cluster call themselves.
pub(super) async fn hostnames(client: &Client) -> Result<BTreeMap<NodeId, String>> {
    Ok(names_of(&client.list("/v1/nodes").await?))
}

/// What these nodes call themselves.
pub(super) fn names_of(nodes: &[Node]) -> BTreeMap<NodeId, String> {
    nodes.iter().map(|node| (node.id, node.hostname.clone())).collect()
}

/// What a node calls itself, or else the first digits of its id.
pub(super) fn hostname(names: &BTreeMap<NodeId, String>, node: &NodeId) -> String {
    names.get(node).cloned().unwrap_or_else(|| node.short())
}

pub(super) fn run(global: &Global, command: Option<&Nodes>) -> Result<Exit> {
    match command {
        None | Some(Nodes::List) => show::nodes(global),
        Some(Nodes::Devices(names)) => devices::run(global, names),
        Some(Nodes::Cordon(name)) => want(global, name, "is cordoned", |intent| intent.cordoned = true),
        Some(Nodes::Uncordon(name)) => {
            want(global, name, "takes replicas again", |intent| intent.cordoned = false)
        }
        Some(Nodes::Revoke(options)) => revoke(global, options),
        Some(Nodes::Reboot(name)) => order(global, name, Action::Reboot, "starts anew"),
        Some(Nodes::Shutdown(options)) => shutdown(global, options),
        Some(Nodes::Reset(options)) => reset(global, options),
    }
}

fn revoke(global: &Global, options: &NodeChange) -> Result<Exit> {
    let question = format!(
        "Revoke {}? The others cut it off for good; it has to be flashed anew to come back.",
        options.node.name
    );
    if !options.yes {
        confirm(&question, "nothing was revoked")?;
    }
    want(global, &options.node, "is revoked", |intent| intent.revoked = true)
}

fn shutdown(global: &Global, options: &NodeChange) -> Result<Exit> {
    let question =
        format!("Switch {} off? Somebody has to be there to switch it on again.", options.node.name);
    if !options.yes {
        confirm(&question, "nothing was switched off")?;
    }
    order(global, &options.node, Action::Shutdown, "shuts down")
}

fn reset(global: &Global, options: &NodesReset) -> Result<Exit> {
    let (change, wipe) = (&options.change, options.wipe);
    let question = match wipe {
        Wipe::Workloads => "Its containers, images and logs are wiped; its volumes stay.",
        Wipe::State => {
            "Its containers, images, logs and its copy of the cluster's state are wiped; its volumes stay."
        }
        Wipe::All => {
            "Everything is wiped, its volumes and its identity too: it needs a new token to join again."
        }
    };
    if !change.yes {
        confirm(&format!("Reset {}? {question}", change.node.name), "nothing was reset")?;
    }
    order(global, &change.node, Action::Reset { wipe }, "starts anew and forgets")
}

/// Tells a machine to do something, and says so.
fn order(global: &Global, name: &NodeName, action: Action, what: &str) -> Result<Exit> {
    let client = super::client(global)?;
    let (node, ordered) = super::block_on(UNCHANGED, async {
        let nodes: Vec<Node> = client.list("/v1/nodes").await?;
        let node = find(&nodes, &name.name)?.clone();
        let order = Order { started_ms: node.started_ms, action };
        let body = serde_json::to_vec(&order).unwrap_or_default();
        let ordered: Ordered = client.post(&format!("/v1/nodes/{}/orders", node.id), body).await?;
        Ok((node, ordered))
    })?;
    if global.output == Output::Json {
        say_json(&json!({ "ordered": [ordered] }));
    } else {
        say(&format!("Node {} {what}", called(&node)));
    }
    Ok(Exit::Success)
}

/// Changes what is wanted of a node, and says so.
fn want(
    global: &Global,
    name: &NodeName,
    what: &str,
    change: impl FnOnce(&mut NodeIntentSpec),
) -> Result<Exit> {
    let client = super::client(global)?;
    let (node, accepted) = super::block_on(UNCHANGED, async {
        let nodes: Vec<Node> = client.list("/v1/nodes").await?;
        let node = find(&nodes, &name.name)?.clone();
        let items: Vec<SpecItem> = client.list(&format!("/v1/specs?kind={}", Kind::NodeIntent)).await?;
        let before = items.iter().find(|item| item.key.name == node.id.to_string());
        let accepted = send(&client, &document(&node, before, client.now_ms(), change)).await?;
        Ok((node, accepted))
    })?;
    report(global, &node, what, &accepted);
    Ok(Exit::Success)
}

/// The node with this host name, id, or beginning of an id.
pub(super) fn find<'a>(nodes: &'a [Node], name: &str) -> Result<&'a Node> {
    let is_id = name.len() >= 8 && name.chars().all(|c| c.is_ascii_hexdigit());
    let named = |node: &&Node| node.hostname == name || is_id && node.id.to_string().starts_with(name);
    let found: Vec<&Node> = nodes.iter().filter(named).collect();
    // A machine that was flashed anew has its name from before, and the old one is still known.
    let there: Vec<&&Node> = found.iter().filter(|node| node.state != NodeState::Revoked).collect();
    match (there.as_slice(), found.as_slice()) {
        ([node], _) => Ok(node),
        ([], [node]) => Ok(node),
        ([], []) => Err(Failure::new(Exit::Refused, "not-found", format!("there is no node {name:?}"))
            .advice(
                "`hivemind nodes` lists them; give the host name, the id, or its first 8 digits or more",
            )),
        _ => Err(Failure::input("ambiguous", format!("{} nodes are called {name:?}", found.len()))
            .advice("give the first 8 digits of the id; `hivemind nodes` shows them")),
    }
}

/// The next version of what is wanted of a node.
fn document(
    node: &Node,
    before: Option<&SpecItem>,
    now_ms: u64,
    change: impl FnOnce(&mut NodeIntentSpec),
) -> Document {
    let mut intent = match before.and_then(SpecItem::document).and_then(|document| document.spec) {
        Some(Spec::NodeIntent(intent)) => intent,
        _ => NodeIntentSpec { node: node.id, cordoned: false, revoked: false, labels: BTreeMap::new() },
    };
    change(&mut intent);
    deploy::of_cluster(Kind::NodeIntent, node.id.to_string(), Spec::NodeIntent(intent), before, now_ms)
}

fn report(global: &Global, node: &Node, what: &str, accepted: &Accepted) {
    if global.output == Output::Json {
        say_json(&json!({ "accepted": [accepted] }));
    } else {
        say(&format!("Node {} {what}, {}", called(node), held(accepted)));
    }
}

pub(super) fn called(node: &Node) -> String {
    format!("{} ({})", paint(STRONG, &node.hostname), node.id.short())
}

#[cfg(test)]
pub(super) mod tests {
    use hivemind_spec::api::Capacity;
    use hivemind_spec::dsse::Envelope;
    use hivemind_spec::id::NodeId;
    use hivemind_spec::key::SigningKey;

    use super::*;

    pub(in crate::command) fn node(number: u8, hostname: &str, state: NodeState) -> Node {
        Node {
            id: NodeId([number; 16]),
            hostname: hostname.to_owned(),
            state,
            problems: Vec::new(),
            leader: false,
            cordoned: false,
            address: String::new(),
            api: String::new(),
            subnet: String::new(),
            version: String::new(),
            release: None,
            update: None,
            labels: BTreeMap::new(),
            capacity: Capacity::default(),
            requested: Capacity::default(),
            replicas: 0,
            started_ms: 0,
            enrolled_ms: 0,
        }
    }

    #[test]
    fn a_node_is_found_by_name_or_id_and_never_by_chance() {
        let nodes = [
            node(0xaa, "edge-1", NodeState::Ready),
            node(0xab, "edge-2", NodeState::Ready),
            node(0xac, "edge-2", NodeState::Revoked),
            node(0xad, "edge-3", NodeState::Down),
            node(0xae, "edge-3", NodeState::Ready),
        ];
        assert_eq!(find(&nodes, "edge-1").unwrap().id, nodes[0].id);
        assert_eq!(find(&nodes, "aaaaaaaa").unwrap().id, nodes[0].id);
        assert_eq!(find(&nodes, "edge-2").unwrap().id, nodes[1].id, "the one that was not revoked");
        assert_eq!(find(&nodes, "edge-3").unwrap_err().code, "ambiguous");
        assert_eq!(find(&nodes, "aa").unwrap_err().code, "not-found");
        assert_eq!(find(&nodes, "edge-9").unwrap_err().code, "not-found");
    }

    #[test]
    fn what_was_wanted_before_stays_wanted() {
        let of = node(0xaa, "edge-1", NodeState::Ready);
        let first = document(&of, None, 1000, |intent| intent.cordoned = true);
        let envelope = Envelope::sign(&first.to_json(), &SigningKey::from_seed([1; 32]));
        let item = SpecItem {
            key: first.key(),
            revision: 1000,
            digest: envelope.digest(),
            deleted: false,
            envelope,
        };
        let second = document(&of, Some(&item), 500, |intent| intent.revoked = true);
        Document::parse(&second.to_json()).unwrap();
        let Some(Spec::NodeIntent(intent)) = &second.spec else { panic!("{second:?}") };
        assert!(intent.cordoned && intent.revoked);
        assert_eq!((second.metadata.revision, second.metadata.replaces), (1001, Some(item.digest)));
    }
}
