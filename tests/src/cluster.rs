//! A cluster made the way a user makes one: `hivemind init`, `hivemind image configure` on a copy
//! of the image, and any number of machines booted from that one copy.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use hivemind_qemu::{Image, Lab, LabOptions, Machine, MachineOptions, TestRegistry};
use hivemind_spec::machine::API_PORT;
use serde_json::Value;

use crate::command::{self, Run, items};
use crate::wait;

/// How long machines may take from power-on to a whole cluster: emulated, several at a time.
pub const FORMING: Duration = Duration::from_secs(120);

/// Between two looks at who is ready: that is measured.
const READY_POLL: Duration = Duration::from_millis(200);

/// How long replicas may take from push to running, pull included.
pub const STARTING: Duration = Duration::from_secs(120);

/// The registries of a lab, which speak plain HTTP.
const INSECURE: &str = "registry.lab:5000,registry.lab:5001,registry.lab:5002";

/// A cluster in a lab of its own.
pub struct Cluster {
    /// Its machines, in the order they were added.
    pub machines: Vec<Machine>,
    /// The registry with the test images.
    pub registry: TestRegistry,
    /// The network.
    pub lab: Lab,
    /// The configured image all machines boot from.
    pub image: Image,
    folder: tempfile::TempDir,
    as_shipped: bool,
}

impl Cluster {
    /// A cluster without machines; `machines` says how many it may get.
    ///
    /// # Panics
    /// When anything fails, with the reason; so do all functions here.
    pub fn new(name: &str, machines: usize) -> Self {
        let mut options = LabOptions::new(name);
        options.machines = machines;
        let lab = Lab::with_options(options).unwrap_or_else(|error| panic!("lab: {error}"));
        let registry = lab.registry().unwrap_or_else(|error| panic!("registry: {error}"));
        let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("folder: {error}"));
        let built = Image::built().unwrap_or_else(|error| panic!("{error}; run ./image/build"));
        let disk = folder.path().join("configured.img");
        copy_sparse(&built.disk, &disk);
        let image = Image { disk, ..built };
        let cluster = Self { machines: Vec::new(), registry, lab, image, folder, as_shipped: false };
        cluster.hivemind(["init", name]).ok();
        cluster.configure(&cluster.image.disk, &[]);
        cluster
    }

    /// A cluster of `machines` machines, powered on together and formed.
    pub fn formed(name: &str, machines: usize) -> Self {
        Self::new(name, machines).form(machines)
    }

    /// Lets [`crate::probe::ask`] look into the machines that are added from now on.
    pub fn with_probe(mut self) -> Self {
        self.image = crate::probe::beside(self.image.clone(), self.folder.path());
        self
    }

    /// Has the machines that are added from now on boot and run exactly what is shipped: for figures.
    pub fn as_shipped(mut self) -> Self {
        self.as_shipped = true;
        self
    }

    /// Adds `machines` machines, powers them on together, and waits until they are a cluster.
    pub fn form(self, machines: usize) -> Self {
        let cluster = self.with_machines(machines);
        for machine in &cluster.machines {
            machine.power_on().unwrap_or_else(|error| panic!("power on: {error}"));
        }
        cluster.wait_for_ready(machines);
        cluster
    }

    /// Adds `machines` machines, switched off.
    pub fn with_machines(mut self, machines: usize) -> Self {
        for number in 1..=machines {
            self.add(&format!("m{number}"));
        }
        self
    }

    /// Writes this cluster's configuration, with the newest token, onto an image file.
    pub fn configure(&self, disk: &Path, more: &[&str]) {
        let disk = disk.to_string_lossy();
        let mut arguments = vec!["image", "configure", &disk, "--insecure-registry", INSECURE];
        arguments.extend(more);
        self.hivemind(arguments).ok();
    }

    /// The root CA's certificate in PEM, out of the configuration that machines get.
    pub fn root_ca(&self) -> String {
        const END: &str = "-----END CERTIFICATE-----\n";
        let config = self.hivemind(["image", "configure", "--stdout"]).ok().stdout();
        let begin = config.find("-----BEGIN CERTIFICATE-----");
        let pem =
            begin.and_then(|begin| Some(&config[begin..begin + config[begin..].find(END)? + END.len()]));
        pem.unwrap_or_else(|| panic!("no certificate in {config}")).to_owned()
    }

    /// Adds a machine, switched off.
    pub fn add(&mut self, name: &str) -> &Machine {
        self.add_with(MachineOptions::with_image(name, &self.image))
    }

    /// Adds a machine, switched off, made to measure.
    pub fn add_with(&mut self, mut options: MachineOptions) -> &Machine {
        options.as_shipped |= self.as_shipped;
        let machine = self.lab.machine(options).unwrap_or_else(|error| panic!("machine: {error}"));
        self.machines.push(machine);
        &self.machines[self.machines.len() - 1]
    }

    /// A folder of this cluster's own.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The `hivemind` command for this cluster, run inside its network.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.lab.command(command::binary("hivemind"));
        command.args(arguments).env("XDG_CONFIG_HOME", self.folder.path()).env("NO_COLOR", "1");
        command.env("HIVEMIND_INSECURE_REGISTRY", INSECURE);
        let nodes: Vec<String> =
            self.machines.iter().map(|m| format!("{}:{API_PORT}", m.address())).collect();
        if !nodes.is_empty() {
            command.env("HIVEMIND_NODE", nodes.join(","));
        }
        command
    }

    /// Runs `hivemind ARGUMENTS`.
    pub fn hivemind<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Run {
        Run::of(self.command(arguments))
    }

    /// Types at a workload's terminal, and waits until it has printed an answer. Returns whoever is there, with what they type by.
    ///
    /// # Panics
    /// When there is another answer.
    pub fn attach(&self, workload: &str, typed: &str, answer: &str) -> (Child, ChildStdin) {
        let mut command = self.command(["attach", workload]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut visitor = command.spawn().unwrap_or_else(|error| panic!("hivemind attach: {error}"));
        let (Some(mut stdin), Some(stdout)) = (visitor.stdin.take(), visitor.stdout.take()) else {
            panic!("a visitor has pipes")
        };
        stdin.write_all(typed.as_bytes()).unwrap_or_else(|error| panic!("typing: {error}"));
        let mut heard = String::new();
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            heard.push_str(line.trim_end());
            heard.push('\n');
            if heard.contains(answer) {
                return (visitor, stdin);
            }
        }
        panic!("it was answered: {heard}, and ended: {:?}", visitor.wait())
    }

    /// What `hivemind ARGUMENTS --output json` prints.
    ///
    /// # Errors
    /// When it fails, in words.
    pub fn json(&self, arguments: &[&str]) -> Result<Value, String> {
        self.hivemind(arguments.iter().copied().chain(["--output", "json"])).json()
    }

    /// Waits until `count` nodes are ready and no more are known; returns how long it took.
    pub fn wait_for_ready(&self, count: usize) -> Duration {
        self.wait_for_ready_within(count, FORMING)
    }

    /// The same with a limit.
    pub fn wait_for_ready_within(&self, count: usize, limit: Duration) -> Duration {
        let look = || {
            let nodes = items(&self.json(&["nodes"])?);
            let ready = nodes.iter().filter(|node| node["state"] == "ready").count();
            if ready == count { Ok(()) } else { Err(format!("{ready} ready: {nodes:#?}")) }
        };
        wait::polling(READY_POLL, &format!("{count} nodes ready"), limit, look).1
    }

    /// Pushes a Compose file.
    pub fn push(&self, compose: &str) -> Run {
        let file = command::compose(self.folder(), compose);
        self.hivemind([OsStr::new("push"), file.as_os_str()])
    }

    /// The replicas of a workload in the namespace `default`.
    ///
    /// # Errors
    /// When `hivemind ps` fails, in words.
    pub fn replicas(&self, workload: &str) -> Result<Vec<Replica>, String> {
        let all = items(&self.json(&["ps"])?);
        Ok(all.iter().filter(|r| r["workload"] == workload).map(Replica::from).collect())
    }

    /// Waits until `count` replicas of a workload run, and no more exist.
    pub fn wait_for_running(&self, workload: &str, count: usize, limit: Duration) -> Vec<Replica> {
        self.poll_for_running(wait::POLL, workload, count, limit)
    }

    /// As [`Cluster::wait_for_running`], with `poll` between two looks, for times that are measured.
    pub fn poll_for_running(
        &self,
        poll: Duration,
        workload: &str,
        count: usize,
        limit: Duration,
    ) -> Vec<Replica> {
        let look = || {
            let replicas = self.replicas(workload)?;
            let running = replicas.iter().filter(|r| r.phase == "running").count();
            if running == count && replicas.len() == count {
                Ok(replicas)
            } else {
                Err(format!("{replicas:#?}"))
            }
        };
        wait::polling(poll, &format!("{count} replicas of {workload} running"), limit, look).0
    }

    /// Waits until a workload has printed all of these.
    pub fn wait_for_words(&self, workload: &str, words: &[&str], limit: Duration) {
        wait::until(&format!("{workload} says {words:?}"), limit, || {
            let said = self.hivemind(["logs", workload]).ok().stdout();
            if words.iter().all(|text| said.contains(text)) { Ok(()) } else { Err(said) }
        });
    }

    /// The machine with this underlay address.
    pub fn machine_at(&self, address: Ipv4Addr) -> &Machine {
        let found = self.machines.iter().find(|machine| machine.address() == address);
        found.unwrap_or_else(|| panic!("no machine has {address}"))
    }

    /// The machine a replica is on.
    pub fn machine_of(&self, replica: &Replica) -> &Machine {
        let nodes = self.json(&["nodes"]).map(|nodes| items(&nodes)).unwrap_or_default();
        let node = nodes.iter().find(|node| node["id"] == replica.node.as_str());
        let address = node.and_then(|node| node["address"].as_str()?.parse().ok());
        self.machine_at(address.unwrap_or_else(|| panic!("{replica:?} is on no node of {nodes:#?}")))
    }

    /// What a web server in the lab answers, asked with curl from the lab's gateway.
    ///
    /// # Errors
    /// When there is no answer, in words.
    pub fn get(&self, url: &str) -> Result<String, String> {
        self.curl(&["--max-time", "3", url])
    }

    /// The same with curl's other options.
    ///
    /// # Errors
    /// When there is no answer, or one that says it went wrong, in words.
    pub fn curl(&self, arguments: &[&str]) -> Result<String, String> {
        let mut curl = self.lab.command("curl");
        curl.args(["--silent", "--show-error", "--fail"]).args(arguments);
        let run = Run::of(curl);
        if run.is_ok() { Ok(run.stdout()) } else { Err(run.to_string()) }
    }

    /// What all machines printed on their serial consoles, for the report of a failed test.
    pub fn consoles(&self) -> String {
        self.machines.iter().map(|m| format!("---- {}\n{}\n", m.name(), m.serial())).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.consoles());
        }
    }
}

/// A replica as `hivemind ps` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    /// Its number.
    pub slot: u64,
    /// The node's id; empty while pending.
    pub node: String,
    /// Its phase.
    pub phase: String,
    /// Why.
    pub reason: String,
    /// Its address in the overlay.
    pub ip: String,
    /// How often it was started again.
    pub restarts: u64,
    /// When it entered its phase, milliseconds since 1970 on its node.
    pub since_ms: u64,
}

impl From<&Value> for Replica {
    fn from(value: &Value) -> Self {
        let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        let number = |name: &str| value[name].as_u64().unwrap_or_default();
        Self {
            slot: number("slot"),
            node: text("node"),
            phase: text("phase"),
            reason: text("reason"),
            ip: text("ip"),
            restarts: number("restarts"),
            since_ms: number("sinceMs"),
        }
    }
}

fn copy_sparse(from: &Path, to: &PathBuf) {
    let mut copy = Command::new("cp");
    copy.args(["--sparse=always", "--reflink=auto"]).arg(from).arg(to);
    Run::of(copy).ok();
}
