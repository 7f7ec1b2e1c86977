//! A lab: one network with its services, the machines on it, and who can hear whom.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use crate::error::{Error, Result};
use crate::forward::Forward;
use crate::governor::{self, Slots};
use crate::machine::{Machine, MachineOptions};
use crate::network::{Door, FIRST_MACHINE, GATEWAY, LAST_MACHINE, Network, Site};
use crate::registry::{EmptyRegistry, GuardedRegistry, TestRegistry};
use crate::services::Services;
use crate::state::StateDir;
use crate::wire::{Cuts, Mac};

/// What most tests need: three machines form the smallest cluster with a majority.
const DEFAULT_MACHINES: usize = 3;

/// How to make a lab.
#[derive(Clone, Debug)]
pub struct LabOptions {
    /// Appears in the names of folders and in logs.
    pub name: String,
    /// How many machines the lab may have. Decides how many slots of the computer it waits for.
    pub machines: usize,
    /// Names the lab's DNS answers, besides `registry.lab` and the names of the machines.
    pub names: Vec<(String, Ipv4Addr)>,
    /// Waits for free slots first. A cluster that a person keeps running takes none, or tests would wait for it.
    pub governed: bool,
}

impl LabOptions {
    /// A lab for three machines.
    pub fn new(name: impl Into<String>) -> LabOptions {
        LabOptions { name: name.into(), machines: DEFAULT_MACHINES, names: Vec::new(), governed: true }
    }
}

/// A network of its own, with DHCP and DNS, for some machines. Everything in it is gone when it and its machines are
/// dropped, or when the process dies.
#[derive(Debug)]
pub struct Lab {
    inner: Arc<LabInner>,
}

/// Shared with the machines. The order of the fields is the order of their end.
#[derive(Debug)]
pub(crate) struct LabInner {
    pub(crate) services: Mutex<Services>,
    pub(crate) network: Network,
    pub(crate) cuts: Arc<Cuts>,
    pub(crate) state: StateDir,
    options: LabOptions,
    next_host: AtomicU8,
    _slots: Option<Slots>,
}

impl Lab {
    /// A lab for up to three machines.
    pub fn new(name: &str) -> Result<Lab> {
        Lab::with_options(LabOptions::new(name))
    }

    /// Waits until the computer has room, then makes the network and starts its services.
    pub fn with_options(options: LabOptions) -> Result<Lab> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if options.name.is_empty() || options.name.len() > 60 || !options.name.chars().all(plain) {
            let problem = "needs a name of at most 60 letters, digits, `-` and `_`".into();
            return Err(Error::Lab { lab: options.name, problem });
        }
        let slots = if options.governed { Some(governor::acquire(options.machines)?) } else { None };
        let state = StateDir::create(&options.name)?;
        let network = Network::create(&state.id, &state.path)?;
        let mut names = options.names.clone();
        names.push(("registry.lab".into(), GATEWAY));
        let services = Services::start(&network, &state.path, &names)?;
        let inner = LabInner {
            services: Mutex::new(services),
            network,
            cuts: Arc::default(),
            state,
            options,
            next_host: AtomicU8::new(FIRST_MACHINE),
            _slots: slots,
        };
        Ok(Lab { inner: Arc::new(inner) })
    }

    /// The lab's unique id on this computer.
    pub fn id(&self) -> &str {
        &self.inner.state.id
    }

    /// The lab's folder: serial logs, disks, the log of dnsmasq. It goes with the lab.
    pub fn path(&self) -> &Path {
        &self.inner.state.path
    }

    /// The address of gateway, DNS and registry.
    pub fn gateway(&self) -> Ipv4Addr {
        GATEWAY
    }

    /// Makes a machine that is switched off.
    pub fn machine(&self, options: MachineOptions) -> Result<Machine> {
        let host = self.inner.next_host.fetch_add(1, Ordering::Relaxed);
        let count = usize::from(host - FIRST_MACHINE) + 1;
        if count > self.inner.options.machines || host == LAST_MACHINE {
            let problem =
                format!("was made for {} machines; raise LabOptions::machines", self.inner.options.machines);
            return Err(Error::Lab { lab: self.inner.options.name.clone(), problem });
        }
        Machine::create(Arc::clone(&self.inner), host, options)
    }

    /// Neither group hears the other any more. Within a group nothing changes.
    pub fn partition(&self, one: &[&Machine], other: &[&Machine]) {
        self.partition_one_way(one, other);
        self.partition_one_way(other, one);
    }

    /// `deaf` no longer hears `unheard`, but is heard by them.
    pub fn partition_one_way(&self, unheard: &[&Machine], deaf: &[&Machine]) {
        for from in unheard {
            for to in deaf.iter().filter(|to| to.mac() != from.mac()) {
                self.inner.cuts.cut(from.mac(), to.mac());
            }
        }
    }

    /// The machine and the lab's gateway (DHCP, DNS, registry, forwards) no longer hear each other.
    pub fn partition_from_gateway(&self, machine: &Machine) {
        self.inner.cuts.cut(machine.mac(), Mac::of_host(1));
        self.inner.cuts.cut(Mac::of_host(1), machine.mac());
    }

    /// Undoes a partition between the two groups, in both directions.
    pub fn heal_between(&self, one: &[&Machine], other: &[&Machine]) {
        for (a, b) in one.iter().flat_map(|a| other.iter().map(move |b| (a, b))) {
            self.inner.cuts.mend(a.mac(), b.mac());
            self.inner.cuts.mend(b.mac(), a.mac());
        }
    }

    /// Undoes all partitions.
    pub fn heal(&self) {
        self.inner.cuts.mend_all();
    }

    /// Moves the lab to another site: from now on DHCP gives addresses of another subnet. A machine asks for one when
    /// its cable is put in again, or when its lease ends.
    pub fn move_to_another_site(&self) -> Result<()> {
        self.inner.network.open_site(Site::Second)?;
        self.inner.services().move_to(&self.inner.network, Site::Second)
    }

    /// Starts a registry with the test images, which are made first if this computer has never made them.
    pub fn registry(&self) -> Result<TestRegistry> {
        TestRegistry::start(self, &self.inner.network)
    }

    /// Starts a registry with the test images behind a password.
    pub fn guarded_registry(&self) -> Result<GuardedRegistry> {
        GuardedRegistry::start(self, &self.inner.network)
    }

    /// Starts a registry without anything.
    pub fn empty_registry(&self) -> Result<EmptyRegistry> {
        EmptyRegistry::start(self, &self.inner.network)
    }

    /// Makes a name resolve to an address for everybody in the lab, within a second or so.
    pub fn publish_name(&self, name: &str, address: Ipv4Addr) -> Result<()> {
        self.inner.services().publish(name, address)
    }

    /// A program of the host that will run in the lab's network, with the lab's DNS. It is killed when the thread
    /// that spawned it ends.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.inner.network.command(program)
    }

    /// How other processes get into the lab's network while this one lives.
    pub fn door(&self) -> Door {
        self.inner.network.door()
    }

    /// Runs a closure on a thread inside the lab's network, for example to use an HTTP client. Names are not resolved
    /// by the lab's DNS there; use addresses.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.inner.network.enter(work)
    }

    /// Lets programs of the host reach `address` in the lab at `127.0.0.1:port`. Port 0 picks a free one.
    pub fn forward(&self, port: u16, address: SocketAddr) -> Result<Forward> {
        Forward::start(port, address, self.inner.network.clone())
    }
}

impl LabInner {
    pub(crate) fn services(&self) -> std::sync::MutexGuard<'_, Services> {
        self.services.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
