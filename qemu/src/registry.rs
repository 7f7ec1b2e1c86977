//! A real registry in a lab, filled with the test images.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};
use crate::images::{self, Images};
use crate::lab::Lab;
use crate::network::Network;
use crate::process::Process;
use crate::sys::ChildSetup;

const PORT: u16 = 5000;

/// Of the one that can be pushed to.
const EMPTY_PORT: u16 = 5001;

/// The port of [`GuardedRegistry`].
const GUARDED_PORT: u16 = 5002;

/// What it says, in the folder of its lab.
const LOG: &str = "registry.log";

/// It starts in a tenth of a second, unless the computer is busy with emulation.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// Who may push.
#[derive(Clone, PartialEq, Eq)]
enum Access {
    ReadOnly,
    /// Nobody, and reading takes a password out of this file.
    Password(PathBuf),
    ReadWrite,
}

/// Debian's `docker-registry`, stopped when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    process: Process,
}

impl Server {
    /// A registry for everybody in the network.
    fn start(network: &Network, dir: &Path, storage: &Path, port: u16, access: Access) -> Result<Server> {
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let mut command = prepare(dir, &configuration(storage, address, &access))?;
        network.label(&mut command);
        let setup = ChildSetup { network: Some(Arc::clone(&network.namespace)), ..ChildSetup::default() };
        setup.apply(&mut command);
        Server::wait(command, dir, || network.enter(|| answers(port)))
    }

    /// A registry of this process alone that can be pushed to, and its address. It needs no privileges.
    pub(crate) fn start_to_fill(dir: &Path, storage: &Path) -> Result<(Server, String)> {
        let address = free_port().context("find a free port for the registry")?;
        let mut command = prepare(dir, &configuration(storage, address, &Access::ReadWrite))?;
        ChildSetup::default().apply(&mut command);
        let server = Server::wait(command, dir, || Ok(answers(address.port())))?;
        Ok((server, format!("http://{address}")))
    }

    fn wait(command: Command, dir: &Path, mut answers: impl FnMut() -> Result<bool>) -> Result<Server> {
        let mut server = Server { process: Process::spawn(command)? };
        let started = Instant::now();
        let said = || fs::read_to_string(dir.join(LOG)).unwrap_or_default();
        while !answers()? {
            if server.process.ended().is_some() {
                return Err(Error::Failed { command: "docker-registry".into(), output: said() });
            }
            if started.elapsed() > READY_WITHIN {
                return Err(Error::Timeout {
                    what: "the registry".into(),
                    waited: READY_WITHIN,
                    context: said(),
                });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }
}

fn prepare(dir: &Path, configuration: &str) -> Result<Command> {
    let conf = dir.join("registry.yml");
    fs::write(&conf, configuration).context(format!("write {}", conf.display()))?;
    let log = File::create(dir.join(LOG)).context("create the log of the registry")?;
    let output = log.try_clone().context("create the log of the registry")?;
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(&conf);
    command.stdin(Stdio::null()).stdout(output).stderr(log);
    Ok(command)
}

fn answers(port: u16) -> bool {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Free a moment ago, which the kernel makes last: it hands such ports out in turn.
fn free_port() -> std::io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// JSON is YAML too, and quotes what needs quoting.
fn configuration(storage: &Path, address: SocketAddr, access: &Access) -> String {
    let mut configuration = serde_json::json!({
        "version": "0.1",
        "log": { "level": "info", "accesslog": { "disabled": false } },
        "storage": {
            "filesystem": { "rootdirectory": storage },
            "maintenance": {
                "uploadpurging": { "enabled": false },
                "readonly": { "enabled": *access != Access::ReadWrite },
            },
        },
        "http": { "addr": address },
    });
    if let Access::Password(file) = access {
        configuration["auth"] = serde_json::json!({ "htpasswd": { "realm": "lab", "path": file } });
    }
    configuration.to_string()
}

/// A registry with the test images, at `registry.lab:5000` and port 5000 of the lab's gateway, plain HTTP. Dropping
/// it is how a registry goes down; another one can be started afterwards.
#[derive(Debug)]
pub struct TestRegistry {
    _server: Server,
    images: Images,
    log: std::path::PathBuf,
}

impl TestRegistry {
    pub(crate) fn start(lab: &Lab, network: &Network) -> Result<TestRegistry> {
        let images = images::ensure()?;
        let server = Server::start(network, lab.path(), &images.storage, PORT, Access::ReadOnly)?;
        Ok(TestRegistry { _server: server, images, log: lab.path().join(LOG) })
    }

    /// What nodes call an image: `nginx:1` is `registry.lab:5000/nginx:1`.
    pub fn reference(&self, image: &str) -> String {
        format!("registry.lab:{PORT}/{image}")
    }

    /// The digest of an image's manifest.
    pub fn digest(&self, image: &str) -> Option<&str> {
        Some(&self.images.get(image)?.digest)
    }

    /// The images it serves.
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// What was asked of it, one line per request.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// The same images behind a password, at `registry.lab:5002`.
#[derive(Debug)]
pub struct GuardedRegistry {
    _server: Server,
}

impl GuardedRegistry {
    /// Whom it lets in.
    pub const USER: &str = "ci";
    /// By which password.
    pub const PASSWORD: &str = "open-sesame-once-more";
    /// `USER:PASSWORD` as htpasswd(1) keeps it (bcrypt).
    const PASSWORDS: &str = "ci:$2y$05$abcdefghijklmnopqrstuuELexGW1QsJlqfuXTCHDiBGx53l5D5Oe\n";

    pub(crate) fn start(lab: &Lab, network: &Network) -> Result<GuardedRegistry> {
        let images = images::ensure()?;
        let dir = lab.path().join("guarded-registry");
        fs::create_dir_all(&dir).context(format!("create {}", dir.display()))?;
        let passwords = dir.join("htpasswd");
        fs::write(&passwords, Self::PASSWORDS).context(format!("write {}", passwords.display()))?;
        let access = Access::Password(passwords);
        let server = Server::start(network, &dir, &images.storage, GUARDED_PORT, access)?;
        Ok(GuardedRegistry { _server: server })
    }

    /// What nodes call an image of it.
    pub fn reference(&self, image: &str) -> String {
        format!("registry.lab:{GUARDED_PORT}/{image}")
    }
}

/// A registry that has nothing at first and takes what is pushed, at `registry.lab:5001` and port 5001 of the lab's
/// gateway, plain HTTP.
#[derive(Debug)]
pub struct EmptyRegistry {
    _server: Server,
    log: PathBuf,
}

impl EmptyRegistry {
    pub(crate) fn start(lab: &Lab, network: &Network) -> Result<EmptyRegistry> {
        let dir = lab.path().join("empty-registry");
        let storage = dir.join("storage");
        fs::create_dir_all(&storage).context(format!("create {}", storage.display()))?;
        let server = Server::start(network, &dir, &storage, EMPTY_PORT, Access::ReadWrite)?;
        Ok(EmptyRegistry { _server: server, log: dir.join(LOG) })
    }

    /// What was asked of it, one line per request.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What nodes call it.
    pub fn name(&self) -> String {
        format!("registry.lab:{EMPTY_PORT}")
    }

    /// Where this computer finds it, from inside the lab's network ([`Lab::enter`]).
    pub fn address(&self, lab: &Lab) -> SocketAddr {
        SocketAddr::from((lab.gateway(), EMPTY_PORT))
    }
}
