//! What can be typed about machines.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use clap::{Args, Subcommand};
use hivemind_spec::api::Wipe;

/// See [`super::Command::Nodes`].
#[derive(Debug, Subcommand)]
pub enum Nodes {
    /// List them
    #[command(after_help = "Example:\n  hivemind nodes list")]
    List,
    /// List what is built into machines and plugged into them, by the names that Compose files give it
    #[command(after_help = "Examples:\n  hivemind nodes devices\n  hivemind nodes devices edge-3")]
    Devices(NodeNames),
    /// Place nothing new on a machine; what runs there stays
    #[command(after_help = "Example:\n  hivemind nodes cordon edge-3")]
    Cordon(NodeName),
    /// Place replicas on a machine again
    #[command(after_help = "Example:\n  hivemind nodes uncordon edge-3")]
    Uncordon(NodeName),
    /// Cut a machine off for good: it is stolen, lost, or thrown away
    #[command(after_help = "Example:\n  hivemind nodes revoke edge-3 --yes")]
    Revoke(NodeChange),
    /// Start a machine anew, in order
    #[command(after_help = "Example:\n  hivemind nodes reboot edge-3")]
    Reboot(NodeName),
    /// Shut a machine down and switch it off
    #[command(after_help = "Example:\n  hivemind nodes shutdown edge-3 --yes")]
    Shutdown(NodeChange),
    /// Have a machine forget what it holds, and start anew
    #[command(
        after_help = "Examples:\n  hivemind nodes reset edge-3 --wipe workloads\n  hivemind nodes reset edge-3 --wipe all --yes"
    )]
    Reset(NodesReset),
}

/// A node, by name.
#[derive(Debug, Args)]
pub struct NodeName {
    /// The machine's host name, its id, or the id's first 8 digits or more
    #[arg(value_name = "NODE")]
    pub name: String,
}

/// Nodes, by name.
#[derive(Debug, Args)]
pub struct NodeNames {
    /// Only of these machines: host names, ids, or the ids' first 8 digits or more
    #[arg(value_name = "NODE")]
    pub nodes: Vec<String>,
}

/// See [`super::Command::Support`].
#[derive(Debug, Args)]
pub struct Support {
    /// Of which machines
    #[command(flatten)]
    pub of: NodeNames,
    /// The file to write; support-CLUSTER-TIME.tar.gz in the current folder if not given
    #[arg(long, short, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// See [`Nodes::Revoke`] and [`Nodes::Shutdown`].
#[derive(Debug, Args)]
pub struct NodeChange {
    /// Which
    #[command(flatten)]
    pub node: NodeName,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
}

/// See [`Nodes::Reset`].
#[derive(Debug, Args)]
pub struct NodesReset {
    /// Which
    #[command(flatten)]
    pub change: NodeChange,
    /// workloads: containers, images and logs; volumes stay. state: also its copy of the cluster's state, which the
    /// others have. all: its volumes and its identity too; it needs a new token to join again
    #[arg(long, value_name = "WHAT", value_parser = PossibleValuesParser::new(Wipe::ALL.map(Wipe::name)).try_map(|name| Wipe::named(&name).ok_or("it cannot be wiped")))]
    pub wipe: Wipe,
}
