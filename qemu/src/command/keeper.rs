//! The process behind `up`: it owns the lab, does what it is told over a socket, and takes everything along when it
//! ends, however it ends.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hivemind_qemu::{
    Config, Disk, DiskCache, Forward, Image, Impairment, Lab, LabOptions, Machine, MachineOptions,
    TestRegistry,
};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{Uid, setsid};

use super::protocol::{
    Answer, Cluster, Fault, ForwardRule, ForwardStatus, MESSAGE_MAX, MachineStatus, Progress, Request,
    UpOptions,
};

/// Room for machines added later; the address range has 243.
const MACHINES_MAX: usize = 240;

/// A client that connects and says nothing must not keep others waiting.
const REQUEST_WITHIN: Duration = Duration::from_secs(5);

/// Where a cluster's keeper listens: an abstract socket leaves no file behind. One cluster of a name per user.
pub(crate) fn socket(name: &str) -> io::Result<net::SocketAddr> {
    net::SocketAddr::from_abstract_name(format!("hivemind-qemu/{}/{name}", Uid::effective()))
}

pub(crate) fn run() -> Result<()> {
    // The cluster stays when the terminal goes.
    setsid().context("cannot leave the terminal's session")?;
    let mut options = String::new();
    io::stdin().take(MESSAGE_MAX).read_to_string(&mut options)?;
    match start(&options) {
        // In this order, so that the keeper goes first: who finds nobody listening must not find its lab.
        Ok((listener, keeper)) => {
            report(&Progress::Ready)?;
            keeper.serve(listener);
            Ok(())
        }
        Err(error) => report(&Progress::Failed(format!("{error:#}"))),
    }
}

/// Fails when `up` was interrupted, which ends the keeper and all it has made so far.
fn report(progress: &Progress) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(progress)?)?;
    Ok(out.flush()?)
}

fn doing(what: impl Into<String>) -> Result<()> {
    report(&Progress::Doing(what.into()))
}

fn start(options: &str) -> Result<(UnixListener, Keeper)> {
    let options: UpOptions = serde_json::from_str(options).context("`keep` is started by `up`")?;
    let listener = UnixListener::bind_addr(&socket(&options.name)?)
        .with_context(|| format!("the cluster `{}` is already up", options.name))?;
    doing("making the network")?;
    let lab = Lab::with_options(LabOptions {
        machines: MACHINES_MAX,
        governed: false,
        ..LabOptions::new(&options.name)
    })?;
    let registry = if options.registry {
        doing("starting the registry")?;
        Some(lab.registry()?)
    } else {
        None
    };
    let mut keeper = Keeper { machines: Vec::new(), forwards: Vec::new(), registry, lab, options };
    for number in 1..=keeper.options.machines {
        keeper.add(&format!("n{number}"))?;
    }
    // Before anything boots: a port that somebody else listens on should not cost a minute.
    for rule in keeper.options.forwards.clone() {
        keeper.forward(&rule)?;
    }
    if !keeper.options.off {
        for machine in &keeper.machines {
            doing(format!("switching on {}", machine.name()))?;
            machine.power_on()?;
        }
        keeper.wait_for_addresses()?;
    }
    Ok((listener, keeper))
}

/// The order of the fields is the order of their end.
struct Keeper {
    machines: Vec<Machine>,
    forwards: Vec<Forward>,
    registry: Option<TestRegistry>,
    lab: Lab,
    options: UpOptions,
}

impl Keeper {
    fn serve(mut self, listener: UnixListener) {
        loop {
            // A client that vanished or talks nonsense is its own problem.
            let Ok((client, _)) = listener.accept() else { continue };
            let Ok(request) = read_request(&client) else { continue };
            if matches!(request, Request::Down) {
                drop(self);
                // Before the answer: who hears that the cluster is gone must not find it again.
                drop(listener);
                let _ = answer(&client, &Answer::Done);
                return;
            }
            let outcome = self.handle(request).unwrap_or_else(|error| Answer::Failed(format!("{error:#}")));
            let _ = answer(&client, &outcome);
        }
    }

    fn handle(&mut self, request: Request) -> Result<Answer> {
        match request {
            Request::Describe => return Ok(Answer::Cluster(self.describe())),
            // Handled by the caller, who owns the keeper.
            Request::Down => {}
            Request::Add { machine } => {
                self.add(&machine)?;
                self.machine(&machine)?.power_on()?;
            }
            Request::Fault { machine, fault } => inject(self.machine(&machine)?, fault)?,
            Request::Partition { one, other, one_way } => {
                let (one, other) = (self.group(&one)?, self.group(&other)?);
                if one_way {
                    self.lab.partition_one_way(&one, &other);
                } else {
                    self.lab.partition(&one, &other);
                }
            }
            Request::Heal => self.lab.heal(),
            Request::Forward(rule) => self.forward(&rule)?,
        }
        Ok(Answer::Done)
    }

    fn add(&mut self, name: &str) -> Result<()> {
        if self.machines.iter().any(|machine| machine.name() == name) {
            bail!("there is already a machine `{name}`");
        }
        let options = &self.options;
        let image = Image { disk: options.disk.clone(), boot: options.boot.clone() };
        let image = if options.firmware { image.with_firmware() } else { image };
        let disk = Disk {
            base: Some(image.disk.clone()),
            size: options.disk_gib.map(|gib| gib << 30),
            cache: DiskCache::default(),
        };
        let machine = MachineOptions {
            memory_mib: options.memory_mib,
            cpus: options.cpus,
            disk: Some(disk),
            config: options.config.clone().map(Config::File),
            ..MachineOptions::new(name, image.boot)
        };
        self.machines.push(self.lab.machine(machine)?);
        Ok(())
    }

    fn wait_for_addresses(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(self.options.wait_s);
        if self.options.wait_s > 0 {
            for machine in &self.machines {
                doing(format!("waiting for {} to get its address", machine.name()))?;
                machine.wait_for_lease(deadline.saturating_duration_since(Instant::now()))?;
            }
        }
        Ok(())
    }

    fn forward(&mut self, rule: &ForwardRule) -> Result<()> {
        let target = SocketAddr::from((self.machine(&rule.machine)?.address(), rule.port));
        self.forwards.push(self.lab.forward(rule.local_port, target)?);
        Ok(())
    }

    fn machine(&self, name: &str) -> Result<&Machine> {
        let found = self.machines.iter().find(|machine| machine.name() == name);
        found.with_context(|| {
            let names: Vec<_> = self.machines.iter().map(Machine::name).collect();
            format!("there is no machine `{name}`; there are {}", names.join(", "))
        })
    }

    fn group(&self, names: &[String]) -> Result<Vec<&Machine>> {
        names.iter().map(|name| self.machine(name)).collect()
    }

    fn describe(&self) -> Cluster {
        let machine = |machine: &Machine| MachineStatus {
            name: machine.name().into(),
            power: machine.power(),
            address: machine.address(),
            mac: machine.mac().to_string(),
            pid: machine.pid(),
            cpu_time_ms: machine.cpu_time().ok().and_then(|time| time.as_millis().try_into().ok()),
            serial_log: machine.serial_path().into(),
        };
        let forward = |forward: &Forward| ForwardStatus { local: forward.local(), target: forward.target() };
        Cluster {
            name: self.options.name.clone(),
            keeper_pid: std::process::id(),
            gateway: self.lab.gateway(),
            path: self.lab.path().into(),
            registry: self
                .registry
                .as_ref()
                .map(|registry| registry.reference("").trim_end_matches('/').into()),
            machines: self.machines.iter().map(machine).collect(),
            forwards: self.forwards.iter().map(forward).collect(),
            door: self.lab.door(),
        }
    }
}

fn inject(machine: &Machine, fault: Fault) -> hivemind_qemu::Result<()> {
    match fault {
        Fault::Cut => machine.power_cut(),
        Fault::PowerOn => return machine.power_on(),
        Fault::Button => return machine.press_power_button(),
        Fault::Reset => return machine.reset(),
        Fault::Freeze => return machine.freeze(),
        Fault::Thaw => return machine.thaw(),
        Fault::LinkDown => return machine.link_down(),
        Fault::LinkUp => return machine.link_up(),
        Fault::Impair { delay_ms, jitter_ms, loss_percent } => machine.impair(Impairment {
            delay: Duration::from_millis(delay_ms),
            jitter: Duration::from_millis(jitter_ms),
            loss: loss_percent / 100.0,
            duplication: 0.0,
        }),
    }
    Ok(())
}

fn read_request(client: &UnixStream) -> Result<Request> {
    // Anybody on the computer can connect to an abstract socket.
    let peer = Uid::from_raw(getsockopt(client, PeerCredentials)?.uid());
    if peer != Uid::effective() && !peer.is_root() {
        bail!("user {peer} may not control this cluster");
    }
    client.set_read_timeout(Some(REQUEST_WITHIN))?;
    client.set_write_timeout(Some(REQUEST_WITHIN))?;
    let mut line = String::new();
    BufReader::new(client.take(MESSAGE_MAX)).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

fn answer(mut client: &UnixStream, answer: &Answer) -> Result<()> {
    Ok(client.write_all(format!("{}\n", serde_json::to_string(answer)?).as_bytes())?)
}
