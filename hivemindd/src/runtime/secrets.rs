//! Containers' secrets: opened here and nowhere else, into memory and nowhere else.
//!
//! ```text
//!   RUN_DIR/CONTAINER/secrets/
//!     mounts.json     which secrets, as which files
//!     versions.json   which versions are written
//!     folder/         what the container finds in /run/secrets
//!     file-N          what it finds elsewhere
//! ```
//!
//! `/run` is a file system in memory, and machines have no swap. A new version takes the place of the old one while
//! the container runs: in the folder by a rename, so that nobody reads a half; elsewhere, where one file is mounted, it
//! is written over.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hivemind_core::event::{ContainerId, SealedSecret};
use hivemind_spec::id::{Digest, NodeId};
use hivemind_spec::key::SigningKey;
use hivemind_spec::secret::{Content, Credentials};
use hivemind_spec::workload::SecretMount;
use tokio::sync::watch;

use super::{Runtime, on_disk};

/// The secrets that running containers are to have.
pub type Wanted = BTreeMap<ContainerId, BTreeMap<String, SealedSecret>>;

/// How long after a version could not be written that is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// What all files of a container's secrets may be together, bytes: they are in the agent's memory, which has a limit, and
/// a node may run a hundred containers.
const MAX_BYTES: u64 = 1024 * 1024;

const MOUNTS: &str = "mounts.json";
const VERSIONS: &str = "versions.json";

/// Keeps the secrets of containers.
pub(super) struct Secrets {
    /// Who opens them, and with what; absent where none can be opened.
    owner: Option<(NodeId, SigningKey)>,
    /// One writes at a time: a start, or the renewal of what runs.
    writing: Mutex<()>,
}

/// Where a container's secrets are, in the folder of its files.
fn place(files: &Path) -> PathBuf {
    files.join("secrets")
}

/// What a container finds in [`hivemind_spec::workload::SECRETS_FOLDER`].
pub(super) fn folder(files: &Path) -> PathBuf {
    place(files).join("folder")
}

/// The file of the mount with this number, where it is not in the folder.
pub(super) fn file(files: &Path, index: usize) -> PathBuf {
    place(files).join(format!("file-{index}"))
}

fn path(files: &Path, index: usize, mount: &SecretMount) -> PathBuf {
    mount.in_folder().map_or_else(|| file(files, index), |name| folder(files).join(name))
}

impl Secrets {
    pub(super) fn new(owner: Option<(NodeId, SigningKey)>) -> Self {
        Self { owner, writing: Mutex::new(()) }
    }

    /// Writes the secrets of a container that is to start.
    pub(super) fn provide(
        &self,
        files: &Path,
        mounts: &[SecretMount],
        secrets: &BTreeMap<String, SealedSecret>,
    ) -> io::Result<()> {
        if mounts.is_empty() {
            return Ok(());
        }
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        fs::DirBuilder::new().mode(0o700).create(place(files))?;
        // The mode given when a folder is made is cut by the process's mask.
        fs::create_dir(folder(files))?;
        fs::set_permissions(folder(files), Permissions::from_mode(0o755))?;
        let mut bytes = 0;
        for (index, mount) in mounts.iter().enumerate() {
            let secret = secrets.get(&mount.secret);
            let secret = secret.ok_or_else(|| io::Error::other(format!("no secret {}", mount.secret)))?;
            let content = self.open(secret)?;
            bytes += content.bytes().len() as u64;
            bounded(bytes)?;
            write(files, index, mount, &content)?;
        }
        fs::write(place(files).join(MOUNTS), serde_json::to_vec(mounts)?)?;
        tell_versions(files, secrets)
    }

    /// Writes what a running container does not have in the version it should have. Does nothing for one that is not
    /// there, or has none.
    fn renew(&self, files: &Path, secrets: &BTreeMap<String, SealedSecret>) -> io::Result<()> {
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mounts = match fs::read(place(files).join(MOUNTS)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            read => serde_json::from_slice::<Vec<SecretMount>>(&read?)?,
        };
        let versions: BTreeMap<String, Digest> =
            serde_json::from_slice(&fs::read(place(files).join(VERSIONS))?)?;
        let old = secrets.iter().filter(|(name, secret)| versions.get(*name) != Some(&secret.digest));
        let opened = old.map(|(name, secret)| Ok((name, self.open(secret)?)));
        let opened = opened.collect::<io::Result<BTreeMap<_, _>>>()?;
        if opened.is_empty() {
            return Ok(());
        }
        let mut bytes = 0;
        for (index, mount) in mounts.iter().enumerate() {
            bytes += match opened.get(&mount.secret) {
                Some(content) => content.bytes().len() as u64,
                None => fs::metadata(path(files, index, mount))?.len(),
            };
        }
        bounded(bytes)?;
        for (index, mount) in mounts.iter().enumerate() {
            if let Some(content) = opened.get(&mount.secret) {
                write(files, index, mount, content)?;
            }
        }
        tell_versions(files, secrets)
    }

    /// Opens what opens a registry.
    pub(super) fn credentials(&self, secret: &SealedSecret) -> io::Result<Credentials> {
        let content = self.open(secret)?;
        // The error would quote what is wrong, and that is secret.
        serde_json::from_slice(content.bytes()).map_err(|_| {
            let name = &secret.name.name;
            io::Error::other(format!("secret {name} has no user and password; use `hivemind secrets login`"))
        })
    }

    fn open(&self, secret: &SealedSecret) -> io::Result<Content> {
        let name = &secret.name.name;
        let (me, key) =
            self.owner.as_ref().ok_or_else(|| io::Error::other(format!("{name} cannot be opened here")))?;
        let mut opened = secret.keys.iter().map(|with| secret.spec.open(&secret.name, *me, key, with));
        let first = opened.next().unwrap_or(Err(hivemind_spec::secret::SecretError::Closed));
        first.or_else(|why| opened.find_map(Result::ok).ok_or(why)).map_err(|why| {
            io::Error::other(format!("secret {name}: {why}; set it again with `hivemind secrets set {name}`"))
        })
    }
}

fn bounded(bytes: u64) -> io::Result<()> {
    if bytes > MAX_BYTES {
        return Err(io::Error::other(format!(
            "its secrets are over {MAX_BYTES} bytes together; mount fewer"
        )));
    }
    Ok(())
}

/// Writes one file. Nobody but its owner can read it at any time, and nobody reads a half in the folder.
fn write(files: &Path, index: usize, mount: &SecretMount, content: &Content) -> io::Result<()> {
    let path = path(files, index, mount);
    if mount.in_folder().is_none() && path.exists() {
        // It is this file that the container has mounted, and not its name.
        let mut open = OpenOptions::new().write(true).open(&path)?;
        open.write_all(content.bytes())?;
        return open.set_len(content.bytes().len() as u64);
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let beside = place(files).join("new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?.write_all(content.bytes())?;
    chown(&beside, Some(mount.uid), Some(mount.gid))?;
    fs::set_permissions(&beside, Permissions::from_mode(mount.mode))?;
    fs::rename(&beside, &path)
}

fn tell_versions(files: &Path, secrets: &BTreeMap<String, SealedSecret>) -> io::Result<()> {
    let versions: BTreeMap<&String, Digest> =
        secrets.iter().map(|(name, secret)| (name, secret.digest)).collect();
    fs::write(place(files).join(VERSIONS), serde_json::to_vec(&versions)?)
}

/// Sees that running containers have the versions of their secrets that are on the list. Ends when the list's sender
/// is gone.
pub async fn keep(runtime: Runtime, mut list: watch::Receiver<Wanted>) {
    // What was told of failures, so that none is told again and again.
    let mut told: BTreeMap<ContainerId, String> = BTreeMap::new();
    loop {
        let wanted = list.borrow_and_update().clone();
        told.retain(|id, _| wanted.contains_key(id));
        for (id, secrets) in wanted {
            let (inner, files) = (runtime.clone(), runtime.files(&id));
            let renewed =
                on_disk("renewing its secrets", move || inner.secrets.renew(&files, &secrets)).await;
            match renewed.map_err(|error| error.to_string()) {
                Ok(()) => drop(told.remove(&id)),
                Err(why) => {
                    if told.get(&id) != Some(&why) {
                        tracing::warn!(container = id.0, why, "it goes on with the secrets it has");
                    }
                    told.insert(id, why);
                }
            }
        }
        let again = async {
            if told.is_empty() {
                std::future::pending::<()>().await;
            } else {
                tokio::time::sleep(RETRY_AFTER).await;
            }
        };
        tokio::select! {
            changed = list.changed() => if changed.is_err() { return },
            () = again => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;
    use std::sync::Arc;

    use hivemind_spec::secret::{SecretSpec, secret_key};

    use super::*;

    const ME: NodeId = NodeId([1; 16]);

    fn owner() -> (NodeId, SigningKey) {
        (ME, SigningKey::from_seed([1; 32]))
    }

    /// A version of a secret that [`ME`] can open.
    fn sealed(name: &str, content: &str) -> SealedSecret {
        let key = secret_key("default", name);
        let nodes = BTreeMap::from([(ME, owner().1.public())]);
        let content = Content::new(content.as_bytes().to_vec());
        let spec = SecretSpec::seal(&key, &content, &nodes, &owner().1, [7; 32]).unwrap();
        let digest = Digest::of(spec.sealed.as_bytes());
        // One that does not fit goes before it.
        let odd = hivemind_spec::secret::SealedKey("AAAA".to_owned());
        SealedSecret { name: key, digest, keys: vec![odd, spec.keys[&ME].clone()], spec: Arc::new(spec) }
    }

    fn mount(secret: &str, path: &str, mode: u32) -> SecretMount {
        SecretMount { secret: secret.to_owned(), path: path.to_owned(), uid: 7, gid: 8, mode }
    }

    fn all(secrets: &[SealedSecret]) -> BTreeMap<String, SealedSecret> {
        secrets.iter().map(|secret| (secret.name.name.clone(), secret.clone())).collect()
    }

    #[test]
    fn a_new_version_reaches_the_files_of_a_running_container_and_only_that() {
        let files = tempfile::tempdir().unwrap();
        let secrets = Secrets::new(Some(owner()));
        let mounts = [
            mount("password", "/run/secrets/password", 0o440),
            mount("password", "/etc/app.key", 0o400),
            mount("token", "/run/secrets/sub/token", 0o444),
        ];
        let first = all(&[sealed("password", "hunter2, a long one"), sealed("token", "abc")]);
        secrets.provide(files.path(), &mounts, &first).unwrap();
        let in_folder = folder(files.path()).join("password");
        let elsewhere = file(files.path(), 1);
        assert_eq!(fs::read_to_string(&in_folder).unwrap(), "hunter2, a long one");
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "hunter2, a long one");
        assert_eq!(fs::read_to_string(folder(files.path()).join("sub/token")).unwrap(), "abc");
        let metadata = fs::metadata(&in_folder).unwrap();
        assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o777), (7, 8, 0o440));
        assert_eq!(fs::metadata(place(files.path())).unwrap().mode() & 0o777, 0o700, "nobody looks in");

        // What the container has mounted there is the file itself.
        let inode = fs::metadata(&elsewhere).unwrap().ino();
        let token = fs::metadata(folder(files.path()).join("sub/token")).unwrap().ino();
        let second = all(&[sealed("password", "hunter3"), sealed("token", "abc")]);
        secrets.renew(files.path(), &second).unwrap();
        assert_eq!(fs::read_to_string(&in_folder).unwrap(), "hunter3");
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "hunter3");
        assert_eq!(fs::metadata(&elsewhere).unwrap().ino(), inode);
        assert_eq!(fs::metadata(folder(files.path()).join("sub/token")).unwrap().ino(), token, "left alone");
    }

    #[test]
    fn all_secrets_of_a_container_are_bounded_together() {
        let files = tempfile::tempdir().unwrap();
        let large = all(&[sealed("large", &"x".repeat(200 * 1024))]);
        let mounts: Vec<SecretMount> =
            (0..6).map(|n| mount("large", &format!("/run/secrets/{n}"), 0o444)).collect();
        let why = Secrets::new(Some(owner())).provide(files.path(), &mounts, &large).unwrap_err().to_string();
        assert!(why.contains("bytes together"), "{why}");
        let files = tempfile::tempdir().unwrap();
        let secrets = Secrets::new(Some(owner()));
        secrets.provide(files.path(), &mounts[..5], &large).unwrap();
        let larger = all(&[sealed("large", &"y".repeat(250 * 1024))]);
        let why = secrets.renew(files.path(), &larger).unwrap_err().to_string();
        assert!(why.contains("bytes together"), "{why}");
        let before = fs::read_to_string(folder(files.path()).join("4")).unwrap();
        assert!(before.starts_with('x') && before.len() == 200 * 1024, "nothing was changed");
    }

    #[test]
    fn what_cannot_be_opened_changes_nothing_and_says_why() {
        let files = tempfile::tempdir().unwrap();
        let mounts = [mount("password", "/run/secrets/password", 0o444)];
        let first = all(&[sealed("password", "hunter2")]);
        Secrets::new(Some(owner())).provide(files.path(), &mounts, &first).unwrap();
        let other = Secrets::new(Some((NodeId([2; 16]), SigningKey::from_seed([2; 32]))));
        let why = other.renew(files.path(), &all(&[sealed("password", "hunter3")])).unwrap_err().to_string();
        assert!(why.contains("password") && why.contains("another node"), "{why}");
        assert!(!why.contains("hunter"), "{why}");
        assert_eq!(fs::read_to_string(folder(files.path()).join("password")).unwrap(), "hunter2");
        // A container that is gone meanwhile is nobody's fault.
        let gone = tempfile::tempdir().unwrap();
        other.renew(gone.path(), &first).unwrap();
    }
}
