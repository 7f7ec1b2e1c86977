//! A lab's network: a namespace with one bridge, whose own address is the gateway.

use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;

use crate::error::{Context, Error, Result};
use crate::process::run;
use crate::sys::{self, ChildSetup};
use crate::wire::Mac;

/// The lab's own address: gateway, DNS and registry.
pub const GATEWAY: Ipv4Addr = address_of_host(1);

/// Room below for services of tests.
pub(crate) const FIRST_MACHINE: u8 = 11;
/// The last address before broadcast.
pub(crate) const LAST_MACHINE: u8 = 254;

/// Marks every process of a lab, so that a later run finds those whose owner was killed.
pub(crate) const LABEL: &str = "HIVEMIND_LAB";

pub(crate) const fn address_of_host(host: u8) -> Ipv4Addr {
    address_at(Site::First, host)
}

/// Where a lab's machines are: the subnet they get their addresses from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Site {
    /// At first.
    First,
    /// After a move.
    Second,
}

pub(crate) const fn address_at(site: Site, host: u8) -> Ipv4Addr {
    match site {
        Site::First => Ipv4Addr::new(10, 77, 0, host),
        Site::Second => Ipv4Addr::new(10, 78, 0, host),
    }
}

/// The way into a lab's network from another process, as long as the lab's owner lives.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Door {
    lab: String,
    /// The user namespace in which the owner may make networks; root's owner is in everybody's.
    user: PathBuf,
    namespace: PathBuf,
    resolv_conf: PathBuf,
}

impl Door {
    /// A program of the host that will run in the lab's network, with the lab's DNS.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let open = |path: &Path| File::open(path).map(OwnedFd::from).map(Arc::new);
        let refused = |source| Error::NotPermitted { action: "enter the lab", source };
        let setup = ChildSetup {
            // A process cannot enter the user namespace that it is in.
            user: if is_own_user_namespace(&self.user).map_err(refused)? {
                None
            } else {
                Some(open(&self.user).map_err(refused)?)
            },
            network: Some(open(&self.namespace).map_err(refused)?),
            resolv_conf: as_c_string(&self.resolv_conf),
            ..ChildSetup::default()
        };
        let mut command = Command::new(program);
        command.env(LABEL, &self.lab);
        setup.apply(&mut command);
        Ok(command)
    }
}

fn is_own_user_namespace(path: &Path) -> io::Result<bool> {
    let (other, own) = (fs::metadata(path)?, fs::metadata("/proc/self/ns/user")?);
    Ok((other.dev(), other.ino()) == (own.dev(), own.ino()))
}

fn as_c_string(path: &Path) -> Option<CString> {
    CString::new(path.as_os_str().as_bytes()).ok()
}

/// The namespace; gone when this and all processes inside are gone.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    pub(crate) namespace: Arc<OwnedFd>,
    lab: String,
    resolv_conf: PathBuf,
}

impl Network {
    pub(crate) fn create(lab: &str, dir: &Path) -> Result<Network> {
        let namespace = sys::new_network_namespace()
            .map_err(|source| Error::NotPermitted { action: "make a network namespace", source })?;
        let resolv_conf = dir.join("resolv.conf");
        fs::write(&resolv_conf, format!("nameserver {GATEWAY}\nsearch lab\n"))
            .context(format!("write {}", resolv_conf.display()))?;
        let network = Network { namespace: Arc::new(namespace), lab: lab.into(), resolv_conf };
        network.ip("link set lo up")?;
        let mac = Mac::of_host(1);
        // Snooping would swallow multicast (mDNS) until a querier appears, of which there is none.
        network.ip(&format!(
            "link add lab0 address {mac} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
        ))?;
        network.ip(&format!("address add {GATEWAY}/24 dev lab0"))?;
        network.ip("link set lab0 up")?;
        Ok(network)
    }

    /// Gives the bridge its address at another site, beside those it has.
    pub(crate) fn open_site(&self, site: Site) -> Result<()> {
        self.ip(&format!("address replace {}/24 dev lab0", address_at(site, 1)))
    }

    /// Opens a tap on the bridge. It leaves the bridge and vanishes when the file is closed.
    pub(crate) fn add_tap(&self, name: &str) -> Result<File> {
        let tap = self
            .enter(|| sys::open_tap(name))?
            .map_err(|source| Error::NotPermitted { action: "open a tap (/dev/net/tun)", source })?;
        self.ip(&format!("link set {name} master lab0 up"))?;
        Ok(tap)
    }

    /// A command that will run in the namespace, die with the calling thread, and see the lab's DNS.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        self.label(&mut command);
        let resolv_conf = as_c_string(&self.resolv_conf);
        let setup =
            ChildSetup { network: Some(Arc::clone(&self.namespace)), resolv_conf, ..ChildSetup::default() };
        setup.apply(&mut command);
        command
    }

    pub(crate) fn door(&self) -> Door {
        let fd = self.namespace.as_raw_fd();
        Door {
            lab: self.lab.clone(),
            user: PathBuf::from(format!("/proc/{}/ns/user", std::process::id())),
            namespace: PathBuf::from(format!("/proc/{}/fd/{fd}", std::process::id())),
            resolv_conf: self.resolv_conf.clone(),
        }
    }

    pub(crate) fn label(&self, command: &mut Command) {
        command.env(LABEL, &self.lab);
    }

    /// Runs a closure on a thread of its own inside the namespace. Its panic becomes the caller's.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let namespace = self.namespace.as_fd();
        let ran = thread::scope(|scope| {
            scope
                .spawn(move || -> io::Result<T> {
                    sys::enter_network_namespace(namespace)?;
                    Ok(work())
                })
                .join()
        });
        match ran {
            Ok(result) => result.context("enter the lab's network namespace"),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    fn ip(&self, arguments: &str) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(arguments.split(' '));
        ChildSetup { network: Some(Arc::clone(&self.namespace)), ..ChildSetup::default() }
            .apply(&mut command);
        run(&mut command).map(drop)
    }
}
