//! Links, by rtnetlink and sysfs.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use tokio::task::AbortHandle;

use super::UnderlayError;
use crate::netlink::{Change, Changes, Group};

/// A MAC address.
pub(super) type Mac = [u8; 6];

/// Where the kernel shows network devices.
const DEVICES: &str = "/sys/class/net";

/// An Ethernet link that hardware is behind.
pub(super) struct Link {
    pub(super) name: String,
    pub(super) mac: Mac,
    index: u32,
    handle: Handle,
    /// Ends the netlink connection with the link.
    driver: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

fn during(what: &'static str) -> impl FnOnce(rtnetlink::Error) -> UnderlayError {
    move |source| UnderlayError::Netlink { what, source }
}

impl Link {
    /// All of them in the kernel's order; only the one called `wanted`, if given.
    pub(super) async fn all(wanted: Option<&str>) -> Result<Vec<Self>, UnderlayError> {
        let (handle, driver) = open()?;
        let found: Vec<LinkMessage> =
            handle.link().get().execute().try_collect().await.map_err(during("looking for links"))?;
        driver.abort();
        let mut links = Vec::new();
        for message in found {
            let Some((name, mac)) = name_and_mac(&message) else { continue };
            // Devices of our own, bridges and tunnels have no hardware behind them.
            let hardware = Path::new(DEVICES).join(&name).join("device").exists();
            if wanted.map_or(hardware, |wanted| wanted == name) {
                let (handle, driver) = open()?;
                links.push(Self { name, mac, index: message.header.index, handle, driver });
            }
        }
        Ok(links)
    }

    pub(super) async fn bring_up(&self) -> Result<(), UnderlayError> {
        let up = LinkUnspec::new_with_index(self.index).up().build();
        self.handle.link().set(up).execute().await.map_err(during("bringing the link up"))
    }

    /// Whether a cable leads somewhere (`IFF_LOWER_UP` of netdevice(7)). A device that is gone has none.
    pub(super) async fn has_carrier(&self) -> bool {
        let mut found = Box::pin(self.handle.link().get().match_index(self.index).execute());
        matches!(found.try_next().await, Ok(Some(link)) if link.header.flags.contains(LinkFlags::LowerUp))
    }

    /// Ends when the cable is pulled or the device is gone: at once when the kernel tells of it, and
    /// within `poll` when it does not.
    pub(super) async fn carrier_lost(&self, poll: Duration) {
        let changes = Changes::open(&[Group::Link]);
        if let Err(error) = &changes {
            tracing::error!(%error, "the kernel does not tell of changes of links; they are found late");
        }
        let matters = |change| matches!(change, Change::Other) || change == Change::Link(self.index);
        while self.has_carrier().await {
            let told = async {
                match &changes {
                    Ok(changes) if changes.next(matters).await.is_ok() => {}
                    // Nothing is told: the time ends the wait.
                    _ => std::future::pending().await,
                }
            };
            // Told, or time over: a look settles it.
            let _ = tokio::time::timeout(poll, told).await;
        }
    }

    /// Gives the link this address and takes away others.
    pub(super) async fn set_address(&self, address: Ipv4Addr, prefix: u8) -> Result<(), UnderlayError> {
        self.remove_addresses_except(Some((address, prefix))).await?;
        let request = self.handle.address().add(self.index, address.into(), prefix);
        request.replace().execute().await.map_err(during("setting the address"))
    }

    /// Takes away all IPv4 addresses.
    pub(super) async fn forget_addresses(&self) -> Result<(), UnderlayError> {
        self.remove_addresses_except(None).await
    }

    async fn remove_addresses_except(&self, keep: Option<(Ipv4Addr, u8)>) -> Result<(), UnderlayError> {
        let request = self.handle.address().get().set_link_index_filter(self.index).execute();
        let found: Vec<_> = request.try_collect().await.map_err(during("reading addresses"))?;
        for message in found {
            let address = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
                _ => None,
            });
            if address.is_some_and(|address| keep != Some((address, message.header.prefix_len))) {
                self.handle.address().del(message).execute().await.map_err(during("removing an address"))?;
            }
        }
        Ok(())
    }

    pub(super) async fn set_default_route(&self, gateway: Ipv4Addr) -> Result<(), UnderlayError> {
        let route =
            RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).output_interface(self.index).build();
        self.handle.route().add(route).replace().execute().await.map_err(during("setting the default route"))
    }
}

fn open() -> Result<(Handle, AbortHandle), UnderlayError> {
    let (connection, handle, _) = rtnetlink::new_connection()
        .map_err(|source| UnderlayError::System { what: "opening netlink", source })?;
    Ok((handle, tokio::spawn(connection).abort_handle()))
}

fn name_and_mac(message: &LinkMessage) -> Option<(String, Mac)> {
    let (mut name, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Address(bytes) => mac = Mac::try_from(bytes.as_slice()).ok(),
            _ => {}
        }
    }
    Some((name?, mac?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::tests::{in_own_namespace, output};

    #[test]
    fn a_pulled_cable_is_noticed_at_once() {
        in_own_namespace(|| async {
            output("ip", "link add here type veth peer name there");
            output("ip", "link set here up");
            output("ip", "link set there up");
            let link = Link::all(Some("here")).await.unwrap().remove(0);
            // It never looks by itself in the time of this test.
            let never = Duration::from_secs(3600);
            let lost = link.carrier_lost(never);
            tokio::pin!(lost);
            assert!(tokio::time::timeout(Duration::from_millis(500), &mut lost).await.is_err());
            output("ip", "link set there down");
            assert!(tokio::time::timeout(Duration::from_secs(2), lost).await.is_ok());
        });
    }
}
