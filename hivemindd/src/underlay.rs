//! The machine's own network: brings a link up, gets an address by DHCP (RFC 2131) or from the
//! configuration, and tells the rest of the agent about every change.
//!
//! ```text
//!   no link --carrier--> asking --offer, ack--> bound --half the lease--> renewing
//!                           ^                     |                          |
//!                           +---- nak, lease over, another link -------------+
//! ```

mod dhcp;
mod link;

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use hivemind_spec::machine;
use tokio::sync::watch;

use self::dhcp::Lease;
use self::link::Link;

/// Where the resolver's configuration is; `/etc/resolv.conf` on the read-only root leads here.
const RESOLV_CONF: &str = "/run/hivemind/resolv.conf";

/// How often links are looked at while there is none to use. Short, because boot waits for it: drivers
/// find the carrier some milliseconds after the link was brought up.
const LINK_POLL: Duration = Duration::from_millis(20);

/// How often the link in use is looked at though the kernel did not tell of a pulled cable.
const CARRIER_POLL: Duration = Duration::from_secs(30);

/// Pause after the kernel refused something.
const RETRY: Duration = Duration::from_secs(2);

/// How the machine is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlay {
    /// The interface's name.
    pub interface: String,
    /// Its address.
    pub address: IpAddr,
    /// Prefix length of its subnet.
    pub prefix: u8,
    /// Default gateway.
    pub gateway: Option<IpAddr>,
    /// Name servers, at most [`MAX_SERVERS`].
    pub dns: Vec<IpAddr>,
    /// NTP servers, at most [`MAX_SERVERS`].
    pub ntp: Vec<IpAddr>,
}

/// Servers of a kind that are used: resolvers look at three.
pub const MAX_SERVERS: usize = 3;

/// Why the network is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum UnderlayError {
    /// The kernel refused.
    #[error("{what}: {source}")]
    Netlink {
        /// What was being done.
        what: &'static str,
        /// What the kernel said.
        source: rtnetlink::Error,
    },
    /// The system refused.
    #[error("{what}: {source}")]
    System {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The configured static address is wrong.
    #[error("network.address is {0:?}; write an address with its prefix length, as 192.0.2.5/24")]
    Address(String),
}

/// Keeps the machine's network up and `tell` informed, for as long as the agent runs.
pub async fn run(config: machine::Network, tell: watch::Sender<Option<Underlay>>) {
    let mut last_error = String::new();
    loop {
        let ended = serve(&config, &tell).await;
        tell.send_if_modified(|underlay| underlay.take().is_some());
        if let Err(error) = ended {
            // Said once per error, because it may come back every two seconds.
            if error.to_string() != last_error {
                tracing::error!(%error, "no network");
                last_error = error.to_string();
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// One life of one link: until its carrier is gone or its address is lost.
async fn serve(
    config: &machine::Network,
    tell: &watch::Sender<Option<Underlay>>,
) -> Result<(), UnderlayError> {
    let link = wait_for_link(config.interface.as_deref()).await?;
    tracing::info!(interface = %link.name, "link up");
    let result = tokio::select! {
        result = keep_address(config, &link, tell) => result,
        () = link.carrier_lost(CARRIER_POLL) => {
            tracing::warn!(interface = %link.name, "link down");
            Ok(())
        }
    };
    link.forget_addresses().await?;
    result
}

async fn wait_for_link(wanted: Option<&str>) -> Result<Link, UnderlayError> {
    loop {
        for link in Link::all(wanted).await? {
            link.bring_up().await?;
            if link.has_carrier().await {
                return Ok(link);
            }
        }
        tokio::time::sleep(LINK_POLL).await;
    }
}

async fn keep_address(
    config: &machine::Network,
    link: &Link,
    tell: &watch::Sender<Option<Underlay>>,
) -> Result<(), UnderlayError> {
    if let Some(address) = &config.address {
        let (address, prefix) = parse_address(address)?;
        let underlay = Underlay {
            interface: link.name.clone(),
            address: address.into(),
            prefix,
            gateway: config.gateway,
            dns: config.dns.clone(),
            ntp: Vec::new(),
        };
        settle(link, underlay, tell).await?;
        return std::future::pending().await;
    }
    let client = dhcp::Client::open(link)?;
    let mut lease = client.discover().await?;
    loop {
        tracing::info!(address = %lease.address, prefix = lease.prefix, seconds = lease.seconds, "address leased");
        settle(link, from_lease(config, link, &lease), tell).await?;
        match client.renew(&lease).await? {
            Some(renewed) => lease = renewed,
            None => {
                tracing::warn!(address = %lease.address, "the lease was not renewed");
                return Ok(());
            }
        }
    }
}

fn from_lease(config: &machine::Network, link: &Link, lease: &Lease) -> Underlay {
    let first = |servers: &[Ipv4Addr]| servers.iter().take(MAX_SERVERS).map(|s| IpAddr::V4(*s)).collect();
    Underlay {
        interface: link.name.clone(),
        address: lease.address.into(),
        prefix: lease.prefix,
        gateway: lease.gateway.map(IpAddr::V4),
        dns: if config.dns.is_empty() { first(&lease.dns) } else { config.dns.clone() },
        ntp: first(&lease.ntp),
    }
}

/// Gives the link its address and the machine its routes and name servers, then tells.
async fn settle(
    link: &Link,
    underlay: Underlay,
    tell: &watch::Sender<Option<Underlay>>,
) -> Result<(), UnderlayError> {
    if tell.borrow().as_ref() == Some(&underlay) {
        return Ok(());
    }
    if let IpAddr::V4(address) = underlay.address {
        link.set_address(address, underlay.prefix).await?;
    }
    if let Some(IpAddr::V4(gateway)) = underlay.gateway {
        link.set_default_route(gateway).await?;
    }
    write_resolv_conf(Path::new(RESOLV_CONF), &underlay.dns)
        .map_err(|source| UnderlayError::System { what: "writing resolv.conf", source })?;
    tell.send_replace(Some(underlay));
    Ok(())
}

/// Replaced by rename: readers see the old one or the new one.
fn write_resolv_conf(path: &Path, servers: &[IpAddr]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let text: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    let under_way = path.with_extension("new");
    std::fs::write(&under_way, text)?;
    std::fs::rename(&under_way, path)
}

fn parse_address(text: &str) -> Result<(Ipv4Addr, u8), UnderlayError> {
    let wrong = || UnderlayError::Address(text.to_owned());
    let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
    match (address.parse(), prefix.parse()) {
        (Ok(address), Ok(prefix @ 1..=32)) => Ok((address, prefix)),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_static_address_needs_its_prefix_length() {
        assert_eq!(parse_address("192.0.2.5/24").unwrap(), (Ipv4Addr::new(192, 0, 2, 5), 24));
        for wrong in ["192.0.2.5", "192.0.2.5/33", "192.0.2/24", "fe80::1/64", ""] {
            assert!(parse_address(wrong).is_err(), "{wrong}");
        }
    }
}
