//! `hivemind nodes devices`: what is built into machines and plugged into them.

use hivemind_spec::api::{Devices, MachineDevice, Node};
use hivemind_spec::id::NodeId;
use serde_json::json;

use super::nodes::{find, hostname, names_of};
use crate::cli::{Global, NodeNames, Output};
use crate::failure::{Exit, Result};
use crate::terminal::{BAD, FAINT, Table, note, paint, say, say_json, styled};

pub(super) fn run(global: &Global, names: &NodeNames) -> Result<Exit> {
    let client = super::client(global)?;
    let (devices, hosts, wanted) = super::block_on("stopped", async {
        let devices: Devices = client.get("/v1/devices").await?;
        let nodes: Vec<Node> = client.list("/v1/nodes").await?;
        let wanted: Vec<NodeId> =
            names.nodes.iter().map(|name| Ok(find(&nodes, name)?.id)).collect::<Result<_>>()?;
        Ok((devices, names_of(&nodes), wanted))
    })?;
    let is_wanted = |node: &NodeId| wanted.is_empty() || wanted.contains(node);
    let mut items: Vec<&MachineDevice> =
        devices.items.iter().filter(|device| is_wanted(&device.node)).collect();
    items.sort_by_key(|device| (hostname(&hosts, &device.node), &device.path));
    let missing: Vec<String> =
        devices.missing.iter().filter(|node| is_wanted(node)).map(|node| hostname(&hosts, node)).collect();
    if global.output == Output::Json {
        say_json(&json!({ "items": items, "missing": missing }));
        return Ok(Exit::Success);
    }
    let mut table = Table::new(&["NODE", "DEVICE", "WHAT"]);
    for device in items {
        for path in device.names.iter().chain([&device.path]) {
            table.row([
                hostname(&hosts, &device.node).into(),
                path.as_str().into(),
                styled(FAINT, device.description.as_str()),
            ]);
        }
    }
    say(&table.render());
    for node in missing {
        note(&format!("{} {node} does not answer", paint(BAD, "✗")));
    }
    Ok(Exit::Success)
}
