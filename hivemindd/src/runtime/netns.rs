//! A container's network namespace: made under a name, joined to the overlay's bridge.
//!
//! Made by us and not by the OCI runtime, so that the address is there before the first process
//! runs, and so that it can be taken apart by name after any crash.
//!
//! A container on the machine's network has none; its address is one more of the machine's, so that all who know
//! the container by it reach what it listens on.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hivemind_core::event::{ContainerId, ContainerPlan, OperationError};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth};
use rtnetlink::{
    AddressMessageBuilder, Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::client::transient;
use super::users::Users;
use crate::network::{DOCKER_RESOLVER, container_interface};

/// The container's interface, as in every other container system.
const INTERFACE: &str = "eth0";

/// An address of a container on the machine's network is of nobody's subnet but its own.
const HOST_PREFIX: u8 = 32;

/// Index of the loopback interface in a namespace of its own.
const LOOPBACK_INDEX: u32 = 1;

/// Lets an address of the loopback's range be reached by the container's interface. That nobody reaches the container's
/// own services on its loopback so is the bridge's to see to ([`crate::network::isolation`]).
const LOOPBACK_BY_INTERFACE: &str = "/proc/sys/net/ipv4/conf/eth0/route_localnet";

/// How long a container waits for the bridge. At boot containerd may be up before the kernel's modules for it are loaded,
/// by half a minute on a slow machine; a failure would be waited for longer each time.
const BRIDGE_PATIENCE: Duration = Duration::from_secs(60);

/// How often it looks.
const BRIDGE_POLL: Duration = Duration::from_millis(100);

/// Where named network namespaces are, and which bridge they join.
#[derive(Debug, Clone)]
pub(super) struct Networks {
    /// Directory of the names.
    pub(super) directory: PathBuf,
    /// The overlay's bridge.
    pub(super) bridge: String,
}

/// A step that failed.
fn failed<E: std::fmt::Display>(step: &str) -> impl Fn(E) -> OperationError + '_ {
    move |error| transient(format!("network of the container: {step}: {error}"))
}

impl Networks {
    /// The namespace's name in the file system.
    pub(super) fn path(&self, id: &ContainerId) -> PathBuf {
        self.directory.join(&id.0)
    }

    /// The name of its user namespace, which it need not have.
    pub(super) fn users_path(&self, id: &ContainerId) -> PathBuf {
        self.directory.join(format!("{}.users", id.0))
    }

    /// Makes the namespace, with that of the container's users if it has its own, and joins it to the overlay. What a
    /// half-made one left must be removed first.
    pub(super) async fn create(
        &self,
        plan: &ContainerPlan,
        users: Option<&Users>,
    ) -> Result<(), OperationError> {
        let path = self.path(&plan.id);
        fs::create_dir_all(&self.directory).map_err(failed("making the directory of namespaces"))?;
        if plan.spec.has_host_network() {
            return self.add_to_host(plan, &path).await;
        }
        fs::File::create(&path).map_err(failed("naming the namespace"))?;
        let (target, users) = (path.clone(), users.cloned());
        let make = move || match users {
            Some(users) => users.make(&target),
            None => new_namespace(&target),
        };
        in_thread(make).await.map_err(failed("making the namespace"))?;
        let (ip, prefix, gateway) = (plan.ip, plan.prefix, plan.gateway);
        let address = (!plan.spec.offline).then_some((ip, prefix, gateway));
        if address.is_some() {
            self.connect(plan, &path).await?;
        }
        in_thread(move || configure_inside(&path, address)).await.map_err(failed("setting the address"))
    }

    /// Gives the machine the address, and notes it under the name that the namespace would have.
    async fn add_to_host(&self, plan: &ContainerPlan, path: &Path) -> Result<(), OperationError> {
        fs::write(path, plan.ip.to_string()).map_err(failed("noting its address"))?;
        let add = async |handle: Handle| {
            let bridge = self.bridge_by(&handle).await?;
            let request = handle.address().add(bridge, IpAddr::V4(plan.ip), HOST_PREFIX);
            match request.execute().await {
                Err(error) if !is(&error, Errno::EEXIST) => Err(failed("adding its address")(error)),
                _ => Ok(()),
            }
        };
        with_netlink(add).await
    }

    /// Takes an address from the machine, which need not have it.
    async fn take_from_host(&self, ip: Ipv4Addr) -> Result<(), OperationError> {
        let take = async |handle: Handle| {
            let found = index_of(&handle, &self.bridge).await.map_err(failed("looking for the bridge"))?;
            let Some(bridge) = found else { return Ok(()) };
            let address =
                AddressMessageBuilder::<Ipv4Addr>::new().index(bridge).address(ip, HOST_PREFIX).build();
            match handle.address().del(address).execute().await {
                Err(error) if !is(&error, Errno::EADDRNOTAVAIL) => Err(failed("removing its address")(error)),
                _ => Ok(()),
            }
        };
        with_netlink(take).await
    }

    /// Makes the pair of interfaces: one end on the bridge, the other in the namespace.
    async fn connect(&self, plan: &ContainerPlan, path: &Path) -> Result<(), OperationError> {
        with_netlink(async |handle| self.connect_by(&handle, plan, path).await).await
    }

    /// The bridge, as soon as it is there.
    async fn bridge_by(&self, handle: &Handle) -> Result<u32, OperationError> {
        let since = Instant::now();
        loop {
            let found = index_of(handle, &self.bridge).await.map_err(failed("looking for the bridge"))?;
            match found {
                Some(index) => return Ok(index),
                None if since.elapsed() > BRIDGE_PATIENCE => {
                    return Err(transient(format!(
                        "the bridge {} is not there: this node's overlay network is not up yet",
                        self.bridge
                    )));
                }
                None => sleep(BRIDGE_POLL).await,
            }
        }
    }

    async fn connect_by(
        &self,
        handle: &Handle,
        plan: &ContainerPlan,
        path: &Path,
    ) -> Result<(), OperationError> {
        let bridge = self.bridge_by(handle).await?;
        let name = container_interface(plan.ip);
        // Of a container that had the address before, and whose namespace something still holds.
        delete_link(handle, &name).await.map_err(failed("removing the interface there was"))?;
        let namespace = fs::File::open(path).map_err(failed("opening the namespace"))?;
        let inside = LinkUnspec::new_with_name(INTERFACE)
            .setns_by_fd(namespace.as_fd().as_raw_fd())
            .address(plan.spec.hardware_address().unwrap_or_else(|| hardware_address(plan.ip)).to_vec())
            .mtu(plan.mtu)
            .build();
        let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(name)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(inside)))
            .mtu(plan.mtu)
            .controller(bridge)
            .up()
            .build();
        handle.link().add(pair).execute().await.map_err(failed("making the pair of interfaces"))
    }

    /// Takes the namespace apart. It need not be there.
    pub(super) async fn remove(&self, id: &ContainerId) -> Result<(), OperationError> {
        let path = self.path(id);
        // A namespace is no file that can be read.
        let noted = fs::read_to_string(&path).ok().and_then(|text| text.parse().ok());
        if let Some(ip) = noted {
            self.take_from_host(ip).await?;
        }
        let inside = path.clone();
        // With its end in the namespace the machine's goes too, and at once.
        let removed = in_thread(move || {
            inside_of(&inside, |handle| async move { delete_link(&handle, INTERFACE).await })
        })
        .await;
        if let Err(error) = removed
            && !is_half_made(&error)
        {
            return Err(failed("removing the interface")(error));
        }
        unname(&path).map_err(failed("removing the namespace"))?;
        unname(&self.users_path(id)).map_err(failed("removing the namespace of its users"))
    }
}

/// Takes a namespace's name away, which need not be there, or be mounted: half made.
fn unname(path: &Path) -> io::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::ENOENT | Errno::EINVAL) => {}
        Err(error) => return Err(error.into()),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Does something by a connection of its own to the kernel.
async fn with_netlink<T>(
    work: impl AsyncFnOnce(Handle) -> Result<T, OperationError>,
) -> Result<T, OperationError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(failed("opening netlink"))?;
    let driver = tokio::spawn(connection);
    let result = work(handle).await;
    driver.abort();
    result
}

/// A container's hardware address, locally administered (IEEE 802, section 8.4). It follows from the IP
/// address: a container that takes another's place is found where neighbours remember that one.
fn hardware_address(ip: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = ip.octets();
    [0x02, 0x42, a, b, c, d]
}

async fn index_of(handle: &Handle, name: &str) -> Result<Option<u32>, rtnetlink::Error> {
    use futures_util::TryStreamExt as _;
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    match links.try_next().await {
        Ok(link) => Ok(link.map(|link| link.header.index)),
        Err(error) if is(&error, Errno::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn delete_link(handle: &Handle, name: &str) -> Result<(), rtnetlink::Error> {
    let Some(index) = index_of(handle, name).await? else { return Ok(()) };
    match handle.link().del(index).execute().await {
        Err(error) if !is(&error, Errno::ENODEV) => Err(error),
        _ => Ok(()),
    }
}

fn is(error: &rtnetlink::Error, errno: Errno) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -(errno as i32))
}

/// Runs `work` on a thread of its own, because it changes the thread's network namespace: a thread
/// of a pool would carry it into somebody else's work.
async fn in_thread(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new().name("netns".into()).spawn(move || {
        let _ = sender.send(work());
    })?;
    receiver.await.map_err(|_| io::Error::other("the thread died"))?
}

fn new_namespace(path: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}

/// Its address and prefix length, and the gateway; without one it has loopback only.
type Address = Option<(Ipv4Addr, u8, Ipv4Addr)>;

fn configure_inside(path: &Path, address: Address) -> io::Result<()> {
    inside_of(path, |handle| async move { configure(&handle, address).await })?;
    if address.is_some() { fs::write(LOOPBACK_BY_INTERFACE, "1") } else { Ok(()) }
}

/// Does something in a namespace, for which the thread is used up.
fn inside_of<F>(path: &Path, work: impl FnOnce(Handle) -> F) -> io::Result<()>
where
    F: Future<Output = Result<(), rtnetlink::Error>>,
{
    setns(fs::File::open(path)?, CloneFlags::CLONE_NEWNET)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async move {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        work(handle).await.map_err(io::Error::other)
    })
}

/// Whether a namespace was named and not made, or not even that.
fn is_half_made(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::EINVAL as i32)
}

async fn configure(handle: &Handle, address: Address) -> Result<(), rtnetlink::Error> {
    let up = |index| handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute();
    up(LOOPBACK_INDEX).await?;
    let Some((ip, prefix, gateway)) = address else { return Ok(()) };
    let index = index_of(handle, INTERFACE).await?.ok_or(rtnetlink::Error::RequestFailed)?;
    handle.address().add(index, IpAddr::V4(ip), prefix).execute().await?;
    up(index).await?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build();
    handle.route().add(route).execute().await?;
    // Before the loopback's range, which is in the same table.
    let resolver = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(DOCKER_RESOLVER, 32)
        .table_id(nix::libc::RT_TABLE_LOCAL.into())
        .gateway(gateway)
        .output_interface(index)
        .pref_source(ip)
        .build();
    handle.route().add(resolver).execute().await
}

#[cfg(test)]
mod tests;
