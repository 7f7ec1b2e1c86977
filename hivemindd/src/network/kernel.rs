//! The kernel's side of the overlay, by rtnetlink.

use std::net::{IpAddr, Ipv4Addr};

use futures_util::{TryStream, TryStreamExt as _};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{AddressMessageBuilder, Handle, LinkBridge, LinkUnspec, LinkVxlan, RouteMessageBuilder};
use tokio::task::AbortHandle;

use super::wanted::{Change, Device, Mac, Overlay, Vxlan};
use super::{BRIDGE, MTU, NetworkError, VXLAN, VXLAN_PORT};

/// Kernel settings of a node that routes containers' traffic. No reverse path filter, not even a
/// loose one: a reply may leave by another device than the request came in on, and a DHCP server's
/// answer comes in by a link that has no address yet.
const SETTINGS: [(&str, &str); 3] = [
    ("/proc/sys/net/ipv4/ip_forward", "1"),
    ("/proc/sys/net/ipv4/conf/all/rp_filter", "0"),
    ("/proc/sys/net/ipv4/conf/default/rp_filter", "0"),
];

/// A netlink connection, closed when dropped.
pub(super) struct Kernel {
    handle: Handle,
    driver: AbortHandle,
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

fn during(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    let what = what.into();
    move |source| NetworkError::Netlink { what, source }
}

impl Kernel {
    pub(super) fn open() -> Result<Self, NetworkError> {
        for (path, value) in SETTINGS {
            let written = std::fs::write(path, value);
            written.map_err(|source| NetworkError::System { what: format!("writing {path}"), source })?;
        }
        let (connection, handle, _) = rtnetlink::new_connection()
            .map_err(|source| NetworkError::System { what: "opening netlink".to_owned(), source })?;
        Ok(Self { handle, driver: tokio::spawn(connection).abort_handle() })
    }

    /// What there is of the overlay now.
    pub(super) async fn observe(&self) -> Result<Overlay, NetworkError> {
        let mut overlay = Overlay::default();
        let bridge = self.link(BRIDGE).await?;
        let vxlan = self.link(VXLAN).await?;
        overlay.bridge = bridge.as_ref().is_some_and(is_up);
        overlay.vxlan = vxlan.as_ref().and_then(read_vxlan);
        let index = |link: &Option<LinkMessage>| link.as_ref().map(|link| link.header.index);
        let (bridge, vxlan) = (index(&bridge), index(&vxlan));
        let device = |index: u32| {
            let ours = [(bridge, Device::Bridge), (vxlan, Device::Vxlan)];
            ours.into_iter().find(|(ours, _)| *ours == Some(index)).map(|(_, device)| device)
        };
        for message in
            all(self.handle.address().get().execute()).await.map_err(during("reading addresses"))?
        {
            let (device, prefix) = (device(message.header.index), message.header.prefix_len);
            // Those of containers on the machine's network, which are not looked after here.
            if device == Some(Device::Bridge) && prefix == u32::BITS as u8 {
                continue;
            }
            if let (Some(device), Some(address)) = (device, ipv4_of(&message)) {
                overlay.addresses.insert((device, address, prefix));
            }
        }
        let Some(vxlan) = vxlan else { return Ok(overlay) };
        let routes = self.handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build());
        for message in all(routes.execute()).await.map_err(during("reading routes"))? {
            overlay.routes.extend(route_over(&message, vxlan));
        }
        for message in
            all(self.handle.neighbours().get().execute()).await.map_err(during("reading neighbours"))?
        {
            if let (true, Some(NeighbourAddress::Inet(address)), Some(mac)) =
                (is_permanent(&message, vxlan), destination(&message), mac(&message))
            {
                overlay.neighbours.insert(address, mac);
            }
        }
        let entries = self.handle.neighbours().get().set_address_family(AddressFamily::Bridge);
        for message in all(entries.execute()).await.map_err(during("reading forwarding entries"))? {
            let underlay = match destination(&message) {
                Some(NeighbourAddress::Inet(address)) => IpAddr::V4(address),
                Some(NeighbourAddress::Inet6(address)) => IpAddr::V6(address),
                Some(NeighbourAddress::Other(bytes)) => match <[u8; 4]>::try_from(bytes.as_slice()) {
                    Ok(bytes) => IpAddr::from(bytes),
                    Err(_) => match <[u8; 16]>::try_from(bytes.as_slice()) {
                        Ok(bytes) => IpAddr::from(bytes),
                        Err(_) => continue,
                    },
                },
                _ => continue,
            };
            if let (true, Some(mac)) = (is_permanent(&message, vxlan), mac(&message)) {
                overlay.forwarding.insert(mac, underlay);
            }
        }
        Ok(overlay)
    }

    /// Takes one step.
    pub(super) async fn carry_out(&self, change: &Change) -> Result<(), NetworkError> {
        let what = || format!("{change:?}");
        match change {
            Change::MakeBridge => self.make_bridge().await,
            Change::RemoveVxlan => {
                let index = self.index(VXLAN).await?;
                self.handle.link().del(index).execute().await.map_err(during(what()))
            }
            Change::MakeVxlan(vxlan) => self.make_vxlan(vxlan).await,
            Change::AddAddress(device, address, prefix) => {
                let index = self.index(name(*device)).await?;
                let request = self.handle.address().add(index, (*address).into(), *prefix);
                request.replace().execute().await.map_err(during(what()))
            }
            Change::RemoveAddress(device, address, prefix) => {
                let index = self.index(name(*device)).await?;
                let message =
                    AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(*address, *prefix).build();
                self.handle.address().del(message).execute().await.map_err(during(what()))
            }
            Change::SetRoute((subnet, prefix), gateway) => {
                let route = self.route(*subnet, *prefix, *gateway).await?;
                self.handle.route().add(route).replace().execute().await.map_err(during(what()))
            }
            Change::RemoveRoute((subnet, prefix), gateway) => {
                let mut route = self.route(*subnet, *prefix, *gateway).await?;
                // Whoever set it, and however: these match any value.
                route.header.protocol = RouteProtocol::Unspec;
                route.header.scope = RouteScope::NoWhere;
                route.header.kind = RouteType::Unspec;
                self.handle.route().del(route).execute().await.map_err(during(what()))
            }
            Change::SetNeighbour(gateway, mac) => {
                let request = self.handle.neighbours().add(self.index(VXLAN).await?, (*gateway).into());
                request.link_layer_address(mac).replace().execute().await.map_err(during(what()))
            }
            Change::RemoveNeighbour(gateway) => {
                let mut request = self.handle.neighbours().add(self.index(VXLAN).await?, (*gateway).into());
                let message = request.message_mut().clone();
                self.handle.neighbours().del(message).execute().await.map_err(during(what()))
            }
            Change::SetForwarding(mac, underlay) => {
                let request = self.handle.neighbours().add_bridge(self.index(VXLAN).await?, mac);
                let request = request.flags(NeighbourFlags::Own).destination(*underlay).replace();
                request.execute().await.map_err(during(what()))
            }
            Change::RemoveForwarding(mac, underlay) => {
                let request = self.handle.neighbours().add_bridge(self.index(VXLAN).await?, mac);
                let mut request = request.flags(NeighbourFlags::Own).destination(*underlay);
                let message = request.message_mut().clone();
                self.handle.neighbours().del(message).execute().await.map_err(during(what()))
            }
        }
    }

    async fn make_bridge(&self) -> Result<(), NetworkError> {
        if self.link(BRIDGE).await?.is_none() {
            let bridge = LinkBridge::new(BRIDGE).mtu(MTU).up().build();
            return self.handle.link().add(bridge).execute().await.map_err(during("making the bridge"));
        }
        let up = LinkUnspec::new_with_index(self.index(BRIDGE).await?).up().build();
        self.handle.link().set(up).execute().await.map_err(during("bringing the bridge up"))
    }

    async fn make_vxlan(&self, vxlan: &Vxlan) -> Result<(), NetworkError> {
        let device = LinkVxlan::new(VXLAN, vxlan.vni).port(VXLAN_PORT).learning(false);
        let device = match vxlan.local {
            IpAddr::V4(local) => device.local(local),
            IpAddr::V6(local) => device.local6(local),
        };
        let device = device.address(vxlan.mac.to_vec()).mtu(MTU).up().build();
        self.handle.link().add(device).execute().await.map_err(during("making the VXLAN device"))
    }

    /// The gateway is on the device though no subnet of the device says so (`onlink`).
    async fn route(
        &self,
        subnet: Ipv4Addr,
        prefix: u8,
        gateway: Ipv4Addr,
    ) -> Result<RouteMessage, NetworkError> {
        Ok(RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(subnet, prefix)
            .gateway(gateway)
            .output_interface(self.index(VXLAN).await?)
            .onlink()
            .build())
    }

    async fn index(&self, name: &str) -> Result<u32, NetworkError> {
        let link = self.link(name).await?;
        link.map(|link| link.header.index).ok_or_else(|| NetworkError::System {
            what: format!("looking for {name}"),
            source: std::io::ErrorKind::NotFound.into(),
        })
    }

    async fn link(&self, name: &str) -> Result<Option<LinkMessage>, NetworkError> {
        let mut links = Box::pin(self.handle.link().get().match_name(name.to_owned()).execute());
        match links.try_next().await {
            Ok(link) => Ok(link),
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -nix::libc::ENODEV => Ok(None),
            Err(error) => Err(during(format!("looking for {name}"))(error)),
        }
    }
}

fn name(device: Device) -> &'static str {
    match device {
        Device::Bridge => BRIDGE,
        Device::Vxlan => VXLAN,
    }
}

async fn all<T>(
    messages: impl TryStream<Ok = T, Error = rtnetlink::Error>,
) -> Result<Vec<T>, rtnetlink::Error> {
    messages.try_collect().await
}

fn is_up(link: &LinkMessage) -> bool {
    link.header.flags.contains(rtnetlink::packet_route::link::LinkFlags::Up)
}

/// A VXLAN device that is down, or not like ours at all, counts as none and is made anew.
fn read_vxlan(link: &LinkMessage) -> Option<Vxlan> {
    let mut vxlan = Vxlan { vni: 0, local: Ipv4Addr::UNSPECIFIED.into(), mac: Mac::default() };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Address(mac) => vxlan.mac = mac.as_slice().try_into().ok()?,
            LinkAttribute::LinkInfo(infos) => {
                let data = infos.iter().find_map(|info| match info {
                    LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
                    _ => None,
                });
                for info in data.into_iter().flatten() {
                    match info {
                        InfoVxlan::Id(vni) => vxlan.vni = *vni,
                        InfoVxlan::Local(local) => vxlan.local = (*local).into(),
                        InfoVxlan::Local6(local) => vxlan.local = (*local).into(),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if !is_up(link) {
        // Differs from every wanted one, and so is removed and made anew.
        vxlan.vni = 0;
    }
    Some(vxlan)
}

fn ipv4_of(message: &AddressMessage) -> Option<Ipv4Addr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
        _ => None,
    })
}

/// The subnet and gateway of a route over the device with this index.
fn route_over(message: &RouteMessage, index: u32) -> Option<((Ipv4Addr, u8), Ipv4Addr)> {
    let (mut over, mut subnet, mut gateway) = (false, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(oif) => over = *oif == index,
            RouteAttribute::Destination(RouteAddress::Inet(address)) => subnet = Some(*address),
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(*address),
            _ => {}
        }
    }
    if !over {
        return None;
    }
    Some(((subnet?, message.header.destination_prefix_length), gateway?))
}

/// The state is a set of bits: other programs add NUD_NOARP to entries that stay.
fn is_permanent(message: &NeighbourMessage, index: u32) -> bool {
    let permanent = u16::from(NeighbourState::Permanent);
    message.header.ifindex == index && u16::from(message.header.state) & permanent != 0
}

fn destination(message: &NeighbourMessage) -> Option<NeighbourAddress> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(address) => Some(address.clone()),
        _ => None,
    })
}

fn mac(message: &NeighbourMessage) -> Option<Mac> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) => mac.as_slice().try_into().ok(),
        _ => None,
    })
}
