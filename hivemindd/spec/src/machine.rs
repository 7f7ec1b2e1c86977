//! The machine configuration: the one file that `hivemind image configure` writes onto the
//! `HIVECONF` partition, and that every machine of a cluster may share.
//!
//! TOML; unknown keys are errors with their line.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::id::ClusterId;

mod check;
mod parse;

pub use parse::{ConfigCode, MachineConfigError};

/// The file's name on the configuration partition.
pub const FILE_NAME: &str = "hivemind.toml";

/// The label of the configuration's FAT file system.
pub const VOLUME_LABEL: &str = "HIVECONF";

/// The name of the QEMU firmware item (`-fw_cfg name=…,file=…`) that may carry it instead.
pub const FW_CFG_NAME: &str = "opt/org.hivemind/config";

/// The largest configuration accepted, bytes: room for many certificates, too small to fill memory.
pub const MAX_BYTES: usize = 256 * 1024;

/// UDP port of node-to-node QUIC.
pub const PEER_PORT: u16 = 7946;

/// TCP port of the HTTPS API.
pub const API_PORT: u16 = 7443;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// Which cluster the machine belongs to.
    pub cluster: Cluster,
    /// How it joins; absent on a machine that has joined and erased its token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Token>,
    /// What differs between machines.
    #[serde(default)]
    pub node: Node,
    /// The underlay network.
    #[serde(default)]
    pub network: Network,
    /// Container registries.
    #[serde(default)]
    pub registries: Registries,
    /// Present when the machine is to be installed on another disk than the one it was started from, and do nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub install: Option<Install>,
}

/// Where a machine is to be installed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Install {
    /// The disk by its serial number, which is overwritten whatever it has; absent: the only one that is blank and not at the
    /// USB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
}

/// Which cluster the machine belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// The cluster's id: the hash of the root CA's public key, checked when read.
    pub id: ClusterId,
    /// Its name, for people.
    pub name: String,
    /// The root CA's certificate, PEM.
    pub root_ca: String,
    /// The operators' root keys: raw Ed25519 public keys in standard base64. They may do
    /// everything and are not in the replicated map.
    pub root_keys: Vec<String>,
    /// The range node subnets are taken from, an IPv4 CIDR of at most /22.
    #[serde(default = "default_container_range")]
    pub container_range: String,
}

fn default_container_range() -> String {
    "10.42.0.0/16".to_owned()
}

/// A join token: proof of the right to make one more node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// The token CA's certificate, PEM, signed by the root CA.
    pub ca: String,
    /// The token CA's private key, PKCS #8 PEM. The machine erases it once it has its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_key: Option<String>,
    /// The signed token document: a DSSE envelope as JSON.
    pub document: String,
    /// Members to ask first, `host` or `host:port`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seeds: Vec<String>,
}

/// What differs between machines.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// The host name; absent: `hive-` and the first eight digits of the node id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Labels for placement constraints.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// The underlay network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// The interface; absent: the first Ethernet one with a carrier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// A static address with prefix length, `192.0.2.5/24`; absent: DHCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The default gateway of a static address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Name servers; absent: those of DHCP.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<IpAddr>,
    /// NTP servers (`host` or `host:port`); absent: those of DHCP, else none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ntp: Vec<String>,
}

/// Container registries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registries {
    /// Registries spoken to by plain HTTP, `host:port`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub insecure: Vec<String>,
    /// Mirrors of registries, `host` or `host:port`, by the registry's name as images have it (`docker.io`), or
    /// [`ALL_REGISTRIES`] for those that have none of their own. They are asked first, in this order, and without a
    /// password.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub mirrors: BTreeMap<String, Vec<String>>,
}

/// Stands for every registry among those that have mirrors.
pub const ALL_REGISTRIES: &str = "*";

impl Registries {
    /// The mirrors of a registry, by its name as images have it.
    pub fn mirrors_of(&self, registry: &str) -> &[String] {
        let found = self.mirrors.get(registry).or_else(|| self.mirrors.get(ALL_REGISTRIES));
        found.map(Vec::as_slice).unwrap_or_default()
    }
}
