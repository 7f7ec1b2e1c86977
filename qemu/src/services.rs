//! What a lab's network offers: addresses by DHCP, and names by DNS.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};
use crate::network::{FIRST_MACHINE, LAST_MACHINE, Network, Site, address_at};
use crate::process::Process;
use crate::sys::ChildSetup;
use crate::wire::Mac;

/// dnsmasq reads some ten lines of configuration; a computer busy with emulation may still take seconds to start it.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// Where dnsmasq keeps its files, and dnsmasq.
#[derive(Debug)]
pub(crate) struct Services {
    dir: PathBuf,
    site: Site,
    process: Process,
}

impl Services {
    pub(crate) fn start(network: &Network, dir: &Path, names: &[(String, Ipv4Addr)]) -> Result<Services> {
        let site = Site::First;
        let process = spawn(network, dir, site)?;
        let mut services = Services { dir: dir.to_owned(), site, process };
        services.wait_until_ready()?;
        for (name, address) in names {
            services.publish(name, *address)?;
        }
        Ok(services)
    }

    /// Serves another site from now on: whoever asks gets an address there.
    pub(crate) fn move_to(&mut self, network: &Network, site: Site) -> Result<()> {
        self.process.kill();
        // Nobody has a lease there.
        let _ = fs::remove_file(self.dir.join("leases"));
        self.process = spawn(network, &self.dir, site)?;
        self.site = site;
        self.wait_until_ready()
    }

    /// The address a machine has where the lab is now.
    pub(crate) fn address_of(&self, host: u8) -> Ipv4Addr {
        address_at(self.site, host)
    }

    /// Makes a name resolve to an address from now on; dnsmasq watches the folder.
    pub(crate) fn publish(&self, name: &str, address: Ipv4Addr) -> Result<()> {
        let file = self.dir.join("hosts").join(name);
        // Written aside and renamed: dnsmasq reads a file as soon as it appears.
        let draft = self.dir.join(format!("{name}.hosts"));
        fs::write(&draft, format!("{address} {name}\n")).context(format!("write {}", draft.display()))?;
        fs::rename(&draft, &file).context(format!("write {}", file.display()))
    }

    /// The address leased to a network card, once there is one.
    pub(crate) fn lease(&self, mac: Mac) -> Option<Ipv4Addr> {
        let leases = fs::read_to_string(self.dir.join("leases")).ok()?;
        let mac = mac.to_string();
        leases.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            (fields.next()? == mac).then(|| fields.next()?.parse().ok())?
        })
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let log = self.dir.join("dnsmasq.log");
        let started = Instant::now();
        loop {
            let said = fs::read_to_string(&log).unwrap_or_default();
            if said.contains("started, version") {
                return Ok(());
            }
            if self.process.ended().is_some() {
                return Err(Error::Failed { command: "dnsmasq".into(), output: said });
            }
            if started.elapsed() > READY_WITHIN {
                return Err(Error::Timeout { what: "dnsmasq".into(), waited: READY_WITHIN, context: said });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn spawn(network: &Network, dir: &Path, site: Site) -> Result<Process> {
    let hosts = dir.join("hosts");
    fs::create_dir_all(&hosts).context(format!("create {}", hosts.display()))?;
    let conf = dir.join("dnsmasq.conf");
    fs::write(&conf, configuration(dir, site)).context(format!("write {}", conf.display()))?;
    let log = fs::File::create(dir.join("dnsmasq.log")).context("create the log of dnsmasq")?;
    let mut command = Command::new("dnsmasq");
    command.arg("--keep-in-foreground").arg(format!("--conf-file={}", conf.display()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    network.label(&mut command);
    let network = Arc::clone(&network.namespace);
    ChildSetup { network: Some(network), ..ChildSetup::default() }.apply(&mut command);
    Process::spawn(command)
}

fn configuration(dir: &Path, site: Site) -> String {
    let (dir, gateway) = (dir.display(), address_at(site, 1));
    let mut text = format!(
        "user=root\n\
         group=root\n\
         log-facility=-\n\
         pid-file={dir}/dnsmasq.pid\n\
         interface=lab0\n\
         bind-dynamic\n\
         no-resolv\n\
         no-hosts\n\
         hostsdir={dir}/hosts\n\
         domain=lab\n\
         local=/lab/\n\
         dhcp-authoritative\n\
         dhcp-leasefile={dir}/leases\n\
         dhcp-range={gateway},static,255.255.255.0,1h\n\
         dhcp-option=option:router,{gateway}\n\
         dhcp-option=option:dns-server,{gateway}\n",
    );
    // Asking first whether an address is taken delays every boot by three seconds.
    text.push_str("no-ping\n");
    for host in FIRST_MACHINE..=LAST_MACHINE {
        let _ = writeln!(text, "dhcp-host={},{}", Mac::of_host(host), address_at(site, host));
    }
    text
}
