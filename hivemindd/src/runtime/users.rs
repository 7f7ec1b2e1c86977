//! Users of a container that are nobody on its machine: a user namespace (user_namespaces(7)).
//!
//! ```text
//!   in the container        0 … 65535
//!   its processes       first … first + 65535     on the machine; no two containers have one in common
//!   its image and volumes   0 … 65535             on the disk, by mounts that translate ([`super::views`])
//! ```
//!
//! So what stays is whose it was when it starts again with other numbers, and whose it is without them; volumes can be shared
//! with containers of the other kind. What it writes beside its volumes goes with it.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hivemind_core::event::{ContainerPlan, OperationError};
use hivemind_init::namespaces::THERE;
use hivemind_spec::workload::MAX_USER;
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use super::client::permanent;
use super::user::Identity;

/// Users of a container.
const COUNT: u32 = MAX_USER + 1;

/// The users of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Users {
    /// What root in the container is on the machine.
    first: u32,
    /// The user namespace's name in the file system.
    path: PathBuf,
    /// `hivemind-init`, which makes it.
    holder: PathBuf,
}

impl Users {
    /// Those of a container, if it is to have its own. They follow from its address on the machine, which no other
    /// container has at the same time.
    pub(super) fn of(
        plan: &ContainerPlan,
        path: PathBuf,
        holder: PathBuf,
    ) -> Result<Option<Self>, OperationError> {
        if !plan.spec.user_namespace {
            return Ok(None);
        }
        let host = u32::from(plan.ip) & u32::MAX.checked_shr(plan.prefix.into()).unwrap_or(0);
        let first = host.checked_add(1).and_then(|number| number.checked_mul(COUNT));
        // The last number of all means nobody.
        let first = first.filter(|first| first.checked_add(COUNT).is_some());
        match first {
            Some(first) => Ok(Some(Self { first, path, holder })),
            None => Err(permanent("its machine's subnet is too large for users of its own")),
        }
    }

    /// Whether they are enough for who the container runs as.
    pub(super) fn include(&self, identity: &Identity) -> Result<(), OperationError> {
        let Identity { uid, gid, groups, .. } = identity;
        match groups.iter().chain([uid, gid]).find(|id| **id > MAX_USER) {
            Some(id) => Err(permanent(format!(
                "user or group {id} is not among its users, which end at {MAX_USER}; choose another, or give it the \
                 machine's (`userns_mode: host`)"
            ))),
            None => Ok(()),
        }
    }

    /// What root in the container is on the machine, user and group.
    pub(super) fn root(&self) -> u32 {
        self.first
    }

    /// The name of their namespace.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes their namespace, and a network namespace that belongs to it; gives both names in the file system.
    pub(super) fn make(&self, network: &Path) -> io::Result<()> {
        File::create(&self.path)?;
        let mut holder = Command::new(&self.holder);
        let holder = holder.arg("hold").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut holder = holder.spawn()?;
        let mut said = Vec::new();
        if let Some(out) = &mut holder.stdout {
            out.take(1).read_to_end(&mut said)?;
        }
        let named = if said == [THERE] { self.name(holder.id(), network) } else { Ok(()) };
        // Waits for its end, and closes its input before.
        let ended = holder.wait_with_output()?;
        named?;
        match ended.status.success() {
            true => Ok(()),
            false => Err(io::Error::other(String::from_utf8_lossy(&ended.stderr).trim().to_owned())),
        }
    }

    fn name(&self, holder: u32, network: &Path) -> io::Result<()> {
        let map = format!("0 {} {COUNT}\n", self.first);
        for file in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{holder}/{file}"), &map)?;
        }
        for (kind, path) in [("user", self.path.as_path()), ("net", network)] {
            let namespace = format!("/proc/{holder}/ns/{kind}");
            mount(Some(namespace.as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        }
        Ok(())
    }

    /// As the runtime specification has them (OCI runtime specification 1.1, "User namespace mappings").
    pub(super) fn mappings(&self) -> Value {
        json!([{ "containerID": 0, "hostID": self.first, "size": COUNT }])
    }

    /// As it has their namespace.
    pub(super) fn namespace(&self) -> Value {
        json!({ "type": "user", "path": self.path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(ip: &str, prefix: u8) -> Result<Option<Users>, OperationError> {
        let mut plan = super::super::oci::tests::plan();
        (plan.spec.user_namespace, plan.ip, plan.prefix) = (true, ip.parse().unwrap(), prefix);
        Users::of(&plan, PathBuf::from("/run/netns/a.users"), PathBuf::from("/init"))
    }

    #[test]
    fn no_two_containers_of_a_machine_have_a_user_in_common_and_none_is_the_machines() {
        let firsts: Vec<u32> =
            (1..=254).map(|host| users(&format!("10.42.3.{host}"), 24).unwrap().unwrap().first).collect();
        assert!(firsts[0] > MAX_USER);
        assert!(firsts.is_sorted_by(|one, next| one + MAX_USER < *next));
        assert_eq!(users("10.42.3.7", 24), users("10.42.9.7", 24), "those of other machines are others");
        // The last that there can be.
        assert!(users("10.42.255.253", 16).is_ok());
        assert!(users("10.42.255.255", 16).unwrap_err().permanent);
        let theirs = super::super::oci::tests::plan();
        assert_eq!(Users::of(&theirs, PathBuf::new(), PathBuf::new()).unwrap(), None);
    }

    #[test]
    fn who_is_not_among_the_containers_users_cannot_run_in_it() {
        let users = users("10.42.3.7", 24).unwrap().unwrap();
        let identity = |uid, gid, groups: &[u32]| Identity { uid, gid, groups: groups.to_vec(), home: None };
        users.include(&identity(0, MAX_USER, &[5])).unwrap();
        for identity in [identity(65_536, 0, &[]), identity(0, 65_536, &[]), identity(0, 0, &[70_000])] {
            let error = users.include(&identity).unwrap_err();
            assert!(error.permanent && error.text.contains("which end at 65535"), "{}", error.text);
        }
    }
}
