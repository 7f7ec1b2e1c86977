//! What `hivemind-qemu` and the process that keeps a cluster say to each other: one line of JSON each.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use hivemind_qemu::{Boot, Door, Power};
use serde::{Deserialize, Serialize};

/// The largest message: a list of 243 machines with long paths. More is not from us.
pub(crate) const MESSAGE_MAX: u64 = 1 << 20;

/// A cluster to start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct UpOptions {
    pub(crate) name: String,
    pub(crate) machines: u8,
    pub(crate) disk: PathBuf,
    pub(crate) boot: Boot,
    pub(crate) firmware: bool,
    pub(crate) config: Option<PathBuf>,
    pub(crate) memory_mib: u32,
    pub(crate) cpus: u32,
    pub(crate) disk_gib: Option<u64>,
    pub(crate) registry: bool,
    pub(crate) forwards: Vec<ForwardRule>,
    pub(crate) off: bool,
    pub(crate) wait_s: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Describe,
    Down,
    Add { machine: String },
    Fault { machine: String, fault: Fault },
    Partition { one: Vec<String>, other: Vec<String>, one_way: bool },
    Heal,
    Forward(ForwardRule),
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Fault {
    Cut,
    PowerOn,
    Button,
    Reset,
    Freeze,
    Thaw,
    LinkDown,
    LinkUp,
    Impair { delay_ms: u64, jitter_ms: u64, loss_percent: f64 },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Done,
    Failed(String),
    Cluster(Cluster),
}

/// What the keeper says to `up` until the cluster is there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Progress {
    Doing(String),
    Ready,
    Failed(String),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Cluster {
    pub(crate) name: String,
    pub(crate) keeper_pid: u32,
    pub(crate) gateway: Ipv4Addr,
    pub(crate) path: PathBuf,
    pub(crate) registry: Option<String>,
    pub(crate) machines: Vec<MachineStatus>,
    pub(crate) forwards: Vec<ForwardStatus>,
    pub(crate) door: Door,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct MachineStatus {
    pub(crate) name: String,
    pub(crate) power: Power,
    pub(crate) address: Ipv4Addr,
    pub(crate) mac: String,
    pub(crate) pid: Option<u32>,
    pub(crate) cpu_time_ms: Option<u64>,
    pub(crate) serial_log: PathBuf,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ForwardStatus {
    pub(crate) local: SocketAddr,
    pub(crate) target: SocketAddr,
}

/// `PORT:MACHINE:PORT`, like ssh's `-L`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ForwardRule {
    pub(crate) local_port: u16,
    pub(crate) machine: String,
    pub(crate) port: u16,
}

impl FromStr for ForwardRule {
    type Err = String;

    fn from_str(text: &str) -> Result<ForwardRule, String> {
        let rule = || {
            let (local, rest) = text.split_once(':')?;
            let (machine, port) = rest.split_once(':')?;
            let (local_port, port) = (local.parse().ok()?, port.parse().ok()?);
            (!machine.is_empty()).then(|| ForwardRule { local_port, machine: machine.into(), port })
        };
        rule().ok_or_else(|| "write PORT:MACHINE:PORT, for example 7443:n1:7443".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forward_names_local_port_machine_and_port() {
        let rule = ForwardRule { local_port: 17443, machine: "n1".into(), port: 7443 };
        assert_eq!("17443:n1:7443".parse(), Ok(rule));
        for wrong in ["7443", "7443:n1", "7443::7443", "n1:7443:n1", "70000:n1:1", "1:n1:1:1"] {
            assert!(wrong.parse::<ForwardRule>().is_err(), "{wrong}");
        }
    }
}
