//! Folders of NFS servers in containers: found, mounted under a name of the container's, and shown to it from there.
//!
//! The machine mounts them, so that all its containers that have the same folder see each other's writes at once, and what
//! they hold open is held by a client that outlives them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hivemind_core::event::{ContainerPlan, OperationError};
use hivemind_spec::workload::{NFS_PORT, NFS_VERSIONS, NfsMount};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use tokio::net::TcpStream;

use super::client::transient;
use crate::dns;

/// How long a server may take to accept a connection. What it is mounted by waits longer, and says less.
const PATIENCE: Duration = Duration::from_secs(5);

/// A folder whose server is there.
#[derive(Debug, Clone)]
pub(super) struct Found {
    wanted: NfsMount,
    address: IpAddr,
    /// This machine's address, as the server sees it.
    own: IpAddr,
    /// The versions to try, in order.
    versions: Vec<&'static str>,
}

/// The folders that a container is to have.
///
/// # Errors
/// When a server is not there.
pub(super) async fn find(plan: &ContainerPlan) -> Result<Vec<Found>, OperationError> {
    let mut found = Vec::new();
    for wanted in &plan.spec.machine.nfs {
        found.push(find_one(plan, wanted).await?);
    }
    Ok(found)
}

async fn find_one(plan: &ContainerPlan, wanted: &NfsMount) -> Result<Found, OperationError> {
    let server = &wanted.server;
    let port = wanted.number("port").and_then(|port| u16::try_from(port).ok()).unwrap_or(NFS_PORT);
    let address = match server.parse() {
        Ok(address) => address,
        Err(_) => dns::address(server, plan.gateway.into(), &plan.search)
            .await
            .map_err(|error| transient(format!("the NFS server {server} is not found ({error})")))?,
    };
    let connected = tokio::time::timeout(PATIENCE, TcpStream::connect(SocketAddr::new(address, port))).await;
    let connected = connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut)).flatten();
    let own = connected.and_then(|stream| stream.local_addr());
    let own = own.map_err(|error| transient(format!("the NFS server {server}, port {port}: {error}")))?;
    let versions =
        NFS_VERSIONS.into_iter().filter(|known| wanted.version().is_none_or(|asked| asked == *known));
    Ok(Found { wanted: wanted.clone(), address, own: own.ip(), versions: versions.collect() })
}

impl Found {
    /// Where in the container.
    pub(super) fn target(&self) -> &str {
        &self.wanted.target
    }

    /// Mounts it at a folder, by `helper`, which is `hivemind-init`.
    pub(super) fn mount(&self, at: &Path, helper: &Path) -> io::Result<()> {
        let mut refused = Errno::EPROTONOSUPPORT;
        for version in &self.versions {
            let options = self.options(version);
            let ended = Command::new(helper).arg("nfs").arg(self.source()).arg(at).arg(options).output()?;
            if ended.status.success() {
                return Ok(());
            }
            if ended.status.signal() == Some(Signal::SIGALRM as i32) {
                return Err(self.failed("does not answer"));
            }
            let said = String::from_utf8_lossy(&ended.stdout).trim().parse();
            let Ok(error) = said.map(Errno::from_raw) else {
                return Err(io::Error::other(String::from_utf8_lossy(&ended.stderr).trim().to_owned()));
            };
            refused = error;
            // What a server says to a version that it does not speak.
            if !matches!(error, Errno::EPROTONOSUPPORT | Errno::EINVAL) {
                break;
            }
        }
        Err(self.refusal(refused))
    }

    /// As the kernel wants it: an IPv6 address in brackets.
    fn source(&self) -> String {
        let path = &self.wanted.path;
        match self.address {
            IpAddr::V4(address) => format!("{address}:{path}"),
            IpAddr::V6(address) => format!("[{address}]:{path}"),
        }
    }

    fn options(&self, version: &str) -> String {
        let Self { wanted, address, own, .. } = self;
        let asked = wanted.options.iter().filter(|option| !option.starts_with("vers="));
        let asked: String = asked.map(|option| format!(",{option}")).collect();
        format!("vers={version},addr={address},clientaddr={own}{asked}")
    }

    fn refusal(&self, error: Errno) -> io::Error {
        let Self { wanted: NfsMount { path, .. }, own, versions, .. } = self;
        match error {
            Errno::EACCES | Errno::EPERM => {
                self.failed(&format!("does not let this machine have {path}; its exports must name {own}"))
            }
            Errno::ENOENT => self.failed(&format!("has no {path}")),
            Errno::ENOTDIR => self.failed(&format!("has no folder {path}, but something else")),
            Errno::EPROTONOSUPPORT | Errno::EINVAL => {
                self.failed(&format!("does not speak version {}", versions.join(", ")))
            }
            other => self.failed(&format!("cannot be used for {path}: {}", other.desc())),
        }
    }

    fn failed(&self, what: &str) -> io::Error {
        io::Error::other(format!("the NFS server {} {what}", self.wanted.server))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(server: &str, options: &[&str]) -> ContainerPlan {
        let mut plan = super::super::oci::tests::plan();
        plan.spec.machine.nfs = vec![NfsMount {
            server: server.into(),
            path: "/export".into(),
            target: "/data".into(),
            read_only: false,
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        }];
        plan
    }

    #[tokio::test]
    async fn a_server_is_asked_before_anything_waits_for_it() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = format!("port={}", listener.local_addr().unwrap().port());
        let found = find(&plan("127.0.0.1", &["soft", &port])).await.unwrap().remove(0);
        assert_eq!(found.source(), "127.0.0.1:/export");
        assert_eq!(found.options("4.2"), format!("vers=4.2,addr=127.0.0.1,clientaddr=127.0.0.1,soft,{port}"));
        assert_eq!(found.versions, NFS_VERSIONS);
        let chosen = find(&plan("127.0.0.1", &["vers=4.1", &port])).await.unwrap().remove(0);
        assert_eq!(chosen.versions, ["4.1"]);
        assert!(!chosen.options("4.1").contains("vers=4.1,vers"));
        drop(listener);
        let refused = find(&plan("127.0.0.1", &[&port])).await.unwrap_err();
        assert!(!refused.permanent && refused.text.contains("127.0.0.1, port"), "{}", refused.text);
        assert!(find(&plan("127.0.0.1", &[])).await.is_err());
    }

    #[test]
    fn what_a_server_says_is_told_in_words() {
        let found = Found {
            wanted: plan("files", &[]).spec.machine.nfs.remove(0),
            address: "fd00::5".parse().unwrap(),
            own: "fd00::9".parse().unwrap(),
            versions: vec!["4.2", "4.1"],
        };
        assert_eq!(found.source(), "[fd00::5]:/export");
        for (error, words) in [
            (Errno::EACCES, "must name fd00::9"),
            (Errno::ENOENT, "files has no /export"),
            (Errno::EPROTONOSUPPORT, "does not speak version 4.2, 4.1"),
            (Errno::EIO, "cannot be used for /export: I/O error"),
        ] {
            let text = found.refusal(error).to_string();
            assert!(text.contains(words), "{text}");
        }
    }
}
