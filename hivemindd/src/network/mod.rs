//! The overlay network: applies the core's plan to the kernel as a difference.
//!
//! ```text
//!   NetworkPlan --wanted.rs--> Overlay --+
//!                                        +-- diff --> changes --kernel.rs--> kernel
//!          kernel --kernel.rs--> Overlay +
//! ```
//!
//! Containers' traffic is routed, not bridged, between nodes: each peer has one route, one
//! neighbour and one forwarding entry, and the VXLAN device learns nothing by itself (RFC 7348).
//! Published ports are translated by nftables (`ports.rs`), and by it containers reach whom they may
//! (`isolation.rs`). The plan is applied again whenever the
//! kernel tells of a change, and now and then without that, so that what somebody else changed is
//! repaired.

mod elements;
pub mod isolation;
mod kernel;
mod nft;
mod ports;
#[cfg(test)]
pub(crate) mod tests;
mod wanted;

use std::net::Ipv4Addr;
use std::time::Duration;

use hivemind_core::event::NetworkPlan;
use tokio::sync::watch;

use self::kernel::Kernel;
use self::ports::Ports;
use self::wanted::Overlay;
use crate::netlink::{Change, Changes, Group};
use hivemind_init::modules;

/// The bridge that containers of this node are on.
pub const BRIDGE: &str = "hive0";

/// The VXLAN device that leads to the other nodes.
pub const VXLAN: &str = "hive-vxlan";

/// The name server of Docker's networks, which configurations of many programs name (`resolver 127.0.0.11;`). In containers it
/// leads to the node's.
pub(crate) const DOCKER_RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// How the names begin of the machine's ends of containers' interfaces; no other interface on the bridge has such a
/// name.
const CONTAINER_PREFIX: &str = "hv";

/// The machine's end of the interface of the container with this address. So the rules of who reaches whom can name
/// it before it is there.
pub fn container_interface(address: Ipv4Addr) -> String {
    format!("{CONTAINER_PREFIX}{:08x}", address.to_bits())
}

/// UDP port of VXLAN (RFC 7348, section 5).
const VXLAN_PORT: u16 = 4789;

/// MTU of the overlay: Ethernet's less VXLAN's headers over IPv4 (50 bytes).
const MTU: u32 = 1450;

/// How often the kernel is compared with the plan though neither told of a change: finds what no
/// event tells of, as a kernel setting.
const REPAIR_INTERVAL: Duration = Duration::from_secs(60);

/// How often the plan is tried again after an error.
const RETRY: Duration = Duration::from_secs(5);

/// Changes come in bursts; one comparison answers those that come within this time.
const SETTLE: Duration = Duration::from_millis(200);

/// Passes per plan: a device that is made anew needs its routes and entries in a second one.
const MAX_PASSES: usize = 3;

/// Why the kernel could not be made as planned.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The kernel refused.
    #[error("{what}: {source}")]
    Netlink {
        /// What was being done.
        what: String,
        /// What the kernel said.
        source: rtnetlink::Error,
    },
    /// Netlink cannot be opened, or a setting cannot be written.
    #[error("{what}: {source}")]
    System {
        /// What was being done.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// nft refused the rules.
    #[error("nftables: {0}")]
    Rules(String),
}

/// Keeps the kernel as the plan wants it, until the plan's sender is gone, and the rules of networks beside it. Neither
/// asks anything of the kernel before it has its modules for it.
pub async fn run(
    modules: impl Future<Output = ()>,
    plan: watch::Receiver<NetworkPlan>,
    rules: impl Future<Output = ()>,
) {
    modules.await;
    tokio::join!(follow(plan), rules);
}

async fn follow(mut plan: watch::Receiver<NetworkPlan>) {
    let mut ports = Ports::default();
    let mut last_error = String::new();
    let mut repairing = false;
    // Before the first look, so that nothing falls between.
    let changes = Changes::open(&[Group::Link, Group::Address, Group::Route, Group::Neighbour]);
    if let Err(error) = &changes {
        tracing::error!(%error, "the kernel does not tell of changes of the network; they are found late");
    }
    loop {
        let wanted = plan.borrow_and_update().clone();
        match apply(&wanted, &mut ports).await {
            Ok(changes) => {
                if repairing && !changes.is_empty() {
                    tracing::warn!(?changes, "the overlay had been changed by others and was repaired");
                }
                last_error.clear();
            }
            // Said once per error, because it comes back every few seconds.
            Err(error) if error.to_string() != last_error => {
                tracing::error!(%error, "the overlay network is not as planned");
                last_error = error.to_string();
            }
            Err(_) => {}
        }
        // After an error nothing may tell that it would work now.
        let pause = if last_error.is_empty() { REPAIR_INTERVAL } else { RETRY };
        tokio::select! {
            changed = plan.changed() => match changed {
                Ok(()) => repairing = false,
                Err(_) => return,
            },
            () = told(&changes) => {
                tokio::time::sleep(SETTLE).await;
                repairing = last_error.is_empty() && !plan.has_changed().unwrap_or(true);
            }
            () = tokio::time::sleep(pause) => repairing = last_error.is_empty(),
        }
    }
}

/// Waits until the kernel tells of a change that may be one of the overlay.
async fn told(changes: &std::io::Result<Changes>) {
    let Ok(changes) = changes else { return std::future::pending().await };
    let index = |name| nix::net::if_::if_nametoindex(name).ok();
    let (bridge, vxlan) = (index(BRIDGE), index(VXLAN));
    let ours = |index| bridge == Some(index) || vxlan == Some(index);
    let told = changes.next(|change| match change {
        Change::Link(index) => ours(index) || bridge.is_none() || vxlan.is_none(),
        Change::Address(index) => ours(index),
        // Containers' entries on the bridge come and go with their traffic.
        Change::Neighbour(index) => vxlan == Some(index),
        Change::Other => true,
    });
    if told.await.is_err() {
        // Not seen to happen; the comparisons without being told go on.
        std::future::pending().await
    }
}

/// Loads the kernel's modules for container networks, on a thread of their own, which ends with the lowest priority.
pub async fn load_modules() {
    let (loaded_tx, loaded) = tokio::sync::oneshot::channel();
    let load = move || {
        // Nobody waits any more when the agent stops.
        let _ = loaded_tx.send(modules::load_late());
    };
    let started = std::thread::Builder::new().name("modules".to_owned()).spawn(load);
    let failed = match started {
        Ok(_) => loaded.await.unwrap_or_default(),
        Err(error) => vec![format!("no thread to load kernel modules: {error}")],
    };
    for module in failed {
        tracing::error!(module, "a kernel module of the container network cannot be loaded");
    }
}

async fn apply(plan: &NetworkPlan, ports: &mut Ports) -> Result<Vec<wanted::Change>, NetworkError> {
    if plan.local.is_none() {
        return Ok(Vec::new());
    }
    let kernel = Kernel::open()?;
    let mut all = Vec::new();
    for _ in 0..MAX_PASSES {
        let observed = kernel.observe().await?;
        let wanted = Overlay::wanted(plan, &observed);
        let changes = wanted.map(|wanted| wanted.changes_from(&observed)).unwrap_or_default();
        if changes.is_empty() {
            break;
        }
        for change in &changes {
            kernel.carry_out(change).await?;
        }
        all.extend(changes);
    }
    ports.apply(plan).await?;
    Ok(all)
}
