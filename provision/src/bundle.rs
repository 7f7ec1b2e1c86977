//! The cluster bundle: what the operator's machine keeps of a cluster.
//!
//! ```text
//! ~/.config/hivemind/CLUSTER/
//!   cluster.toml        public: id, name, root CA, root keys
//!   root-ca.key         private: signs token CAs        (or root-ca.key.age)
//!   keys/NAME.key       private: operators' keys        (or NAME.key.age)
//!   tokens/ID.toml      private: a token CA and its document, ready for `image configure`
//!   nodes               where nodes answered last, one `host:port` per line
//! ```
//!
//! Nothing of it is needed by the cluster to run. Who has `root-ca.key` can let machines join;
//! who has `keys/root.key` can do everything.

use std::fs;
use std::path::{Path, PathBuf};

use hivemind_spec::certificate::{self, KeyPair};
use hivemind_spec::document::is_dns_label;
use hivemind_spec::key::SigningKey;
use hivemind_spec::machine::{Cluster, MachineConfig, Network, Node, Registries};
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::failure::{Failure, Place, Result};
use crate::secret::{self, Passphrase};

/// The name of the operator key that `init` makes.
pub const ROOT_KEY: &str = "root";

/// Nodes remembered: enough to find a live one, few enough to try them all in turn.
const MAX_REMEMBERED_NODES: usize = 16;

const CLUSTER_FILE: &str = "cluster.toml";
const ROOT_CA_KEY_FILE: &str = "root-ca.key";
const NODES_FILE: &str = "nodes";

/// An opened bundle.
#[derive(Debug)]
pub struct Bundle {
    /// Its directory.
    pub dir: PathBuf,
    /// The public part.
    pub cluster: Cluster,
}

/// The private keys that making a token takes.
pub struct Unlocked {
    /// The root CA's.
    pub root_ca: KeyPair,
    /// The operator's.
    pub signer: SigningKey,
}

/// `N` unpredictable bytes.
///
/// # Errors
/// When the operating system has none to give.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Failure::local("random", "the operating system gives no random bytes"))?;
    Ok(bytes)
}

/// The directory that holds all bundles: `$XDG_CONFIG_HOME/hivemind` or `~/.config/hivemind`.
///
/// # Errors
/// When neither variable is set.
pub fn home() -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("XDG_CONFIG_HOME")
        .or_else(|| variable("HOME").map(|home| home.join(".config")))
        .map(|config| config.join("hivemind"))
        .ok_or_else(|| {
            Failure::local("no-home", "neither HOME nor XDG_CONFIG_HOME is set")
                .advice("name the bundle's directory with --dir")
        })
}

/// Finds the bundle: `dir` itself, else the one called `name`, else the only one there is.
///
/// # Errors
/// When there is none, or several and no name.
pub fn locate(dir: Option<&Path>, name: Option<&str>) -> Result<PathBuf> {
    if let Some(dir) = dir {
        return Ok(dir.to_owned());
    }
    let home = home()?;
    if let Some(name) = name {
        return Ok(home.join(name));
    }
    let mut names: Vec<String> = fs::read_dir(&home)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().join(CLUSTER_FILE).exists())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    match names.as_slice() {
        [only] => Ok(home.join(only)),
        [] => Err(Failure::local("no-cluster", format!("there is no cluster in {}", home.display()))
            .advice("make one with `hivemind init NAME`, or name its bundle with --dir")),
        several => Err(Failure::input(
            "which-cluster",
            format!("there are several clusters: {}", several.join(", ")),
        )
        .advice("name one with --cluster, or set HIVEMIND_CLUSTER")),
    }
}

impl Bundle {
    /// Makes a new cluster: root CA and root operator key. Gives the keys too, so that a passphrase is
    /// asked for only once.
    ///
    /// # Errors
    /// When the name is not a DNS label, the bundle exists, or files cannot be written.
    pub fn create(dir: &Path, name: &str, passphrase: Option<&Passphrase>) -> Result<(Self, Unlocked)> {
        if !is_dns_label(name) {
            return Err(Failure::input("bad-name", format!("{name:?} cannot name a cluster"))
                .advice("use 1 to 63 lower-case letters, digits and hyphens"));
        }
        if dir.join(CLUSTER_FILE).exists() {
            return Err(Failure::local("exists", format!("{} holds a cluster already", dir.display()))
                .advice("choose another name or --dir"));
        }
        let ca_key = new_ca_key()?;
        let root_ca = certificate::root_ca(&ca_key, name).map_err(|e| certificate_failure(&e))?;
        let root_key = SigningKey::from_seed(random()?);
        let cluster = Cluster {
            id: certificate::cluster_id(&root_ca).map_err(|e| certificate_failure(&e))?,
            name: name.to_owned(),
            root_ca: certificate::to_pem(&root_ca),
            root_keys: vec![root_key.public().to_base64()],
            container_range: "10.42.0.0/16".to_owned(),
        };
        let bundle = Self { dir: dir.to_owned(), cluster };
        secret::make_directory(dir)?;
        secret::write(&dir.join(ROOT_CA_KEY_FILE), ca_key.serialize_pem().as_bytes(), passphrase)?;
        bundle.store_operator_key(ROOT_KEY, &root_key, passphrase)?;
        // Last, because a directory with this file is a bundle.
        let text = bundle.machine_config().to_toml();
        secret::write_private(&dir.join(CLUSTER_FILE), text.as_bytes(), false)?;
        Ok((bundle, Unlocked { root_ca: ca_key, signer: root_key }))
    }

    /// Opens a bundle.
    ///
    /// # Errors
    /// When it is not there or damaged.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(CLUSTER_FILE);
        if !path.exists() {
            return Err(Failure::local("no-cluster", format!("there is no cluster in {}", dir.display()))
                .advice("check --cluster and --dir, or make one with `hivemind init NAME`"));
        }
        let config = read_config(&path)?;
        let bundle = Self { dir: dir.to_owned(), cluster: config.cluster };
        let id = certificate::cluster_id(&bundle.root_ca()?).map_err(|e| certificate_failure(&e))?;
        if id != bundle.cluster.id {
            return Err(Failure::local(
                "damaged",
                format!("{}: the id is not that of the root CA", path.display()),
            )
            .advice("restore the bundle from a backup"));
        }
        Ok(bundle)
    }

    /// A machine configuration that only says which cluster it is.
    pub fn machine_config(&self) -> MachineConfig {
        MachineConfig {
            cluster: self.cluster.clone(),
            token: None,
            node: Node::default(),
            network: Network::default(),
            registries: Registries::default(),
            install: None,
        }
    }

    /// The root CA's certificate, DER.
    ///
    /// # Errors
    /// When the bundle is damaged.
    pub fn root_ca(&self) -> Result<Vec<u8>> {
        certificate::from_pem(&self.cluster.root_ca, "root CA").map_err(|e| certificate_failure(&e))
    }

    /// The root CA's private key.
    ///
    /// # Errors
    /// When it is not in this bundle or the passphrase is wrong.
    pub fn root_ca_key(&self) -> Result<KeyPair> {
        let path = self.dir.join(ROOT_CA_KEY_FILE);
        if !secret::exists(&path) {
            return Err(Failure::local("no-root-ca", format!("{} has no root CA key", self.dir.display()))
                .advice("make tokens where the cluster was made, or copy root-ca.key here"));
        }
        let pem = String::from_utf8(secret::read(&path)?).unwrap_or_default();
        certificate::key_from_pem(&pem, "root CA").map_err(|e| certificate_failure(&e))
    }

    /// Where the operator key called `name` is kept.
    fn operator_key_path(&self, name: &str) -> Result<PathBuf> {
        if is_dns_label(name) {
            Ok(self.dir.join("keys").join(format!("{name}.key")))
        } else {
            Err(Failure::input("bad-name", format!("{name:?} cannot name a key"))
                .advice("use 1 to 63 lower-case letters, digits and hyphens"))
        }
    }

    /// Whether the private key called `name` is in this bundle.
    pub fn has_operator_key(&self, name: &str) -> bool {
        self.operator_key_path(name).is_ok_and(|path| secret::exists(&path))
    }

    /// Keeps an operator's private key. Gives the file.
    ///
    /// # Errors
    /// When there is one of that name or the file cannot be written.
    pub fn store_operator_key(
        &self,
        name: &str,
        key: &SigningKey,
        passphrase: Option<&Passphrase>,
    ) -> Result<PathBuf> {
        let path = self.operator_key_path(name)?;
        if secret::exists(&path) {
            return Err(Failure::input("exists", format!("there is a key called {name:?} already"))
                .advice("choose another name"));
        }
        secret::make_directory(&self.dir.join("keys"))?;
        secret::write(&path, format!("{}\n", key.to_base64()).as_bytes(), passphrase)
    }

    /// The operator's private key called `name`, or in the file of that path.
    ///
    /// # Errors
    /// When it is not there, damaged, or the passphrase is wrong.
    pub fn operator_key(&self, name: &str) -> Result<SigningKey> {
        let path = if name.contains('/') { PathBuf::from(name) } else { self.operator_key_path(name)? };
        if !secret::exists(&path) {
            return Err(Failure::local("no-key", format!("there is no private key {}", path.display()))
                .advice("name another with --key, or make one with `hivemind keys generate NAME`"));
        }
        let text = String::from_utf8(secret::read(&path)?).unwrap_or_default();
        SigningKey::from_base64(&text)
            .map_err(|e| Failure::local("damaged", format!("{}: {e}", path.display())))
    }

    /// The private keys in this bundle, by name.
    pub fn operator_key_names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.dir.join("keys"))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                name.strip_suffix(".key").or_else(|| name.strip_suffix(".key.age")).map(str::to_owned)
            })
            .collect();
        names.sort();
        names
    }

    /// Where tokens are kept.
    pub fn token_dir(&self) -> PathBuf {
        self.dir.join("tokens")
    }

    /// Where nodes answered before, the latest first.
    pub fn remembered_nodes(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.join(NODES_FILE)).unwrap_or_default();
        text.lines().filter(|line| !line.is_empty()).take(MAX_REMEMBERED_NODES).map(str::to_owned).collect()
    }

    /// Puts `nodes` before the ones remembered. A bundle on a read-only disk still works, so a
    /// failure to write is not one of the command.
    pub fn remember_nodes(&self, nodes: &[String]) {
        let before = self.remembered_nodes();
        let mut all: Vec<String> = Vec::new();
        for node in nodes.iter().chain(&before) {
            if !all.contains(node) && all.len() < MAX_REMEMBERED_NODES {
                all.push(node.clone());
            }
        }
        if all != before {
            let _ =
                secret::write_private(&self.dir.join(NODES_FILE), (all.join("\n") + "\n").as_bytes(), true);
        }
    }
}

/// Reads a machine configuration (or the part of one that a bundle and tokens hold).
///
/// # Errors
/// With file and line.
pub fn read_config(path: &Path) -> Result<MachineConfig> {
    let bytes = fs::read(path).map_err(|e| Failure::file("read", path, &e))?;
    MachineConfig::parse_bytes(&bytes).map_err(|e| {
        let key = if e.key.is_empty() { String::new() } else { format!("`{}`: ", e.key) };
        Failure::input(e.code.as_str(), format!("{key}{}", e.message)).at(Place {
            file: path.display().to_string(),
            line: e.line,
            column: e.column,
        })
    })
}

/// A new P-256 key for a CA.
///
/// # Errors
/// When the operating system gives no random bytes.
pub fn new_ca_key() -> Result<KeyPair> {
    KeyPair::generate().map_err(|e| Failure::local("random", format!("cannot make a key: {e}")))
}

/// What to say about a certificate that cannot be made or read.
pub fn certificate_failure(error: &certificate::CertificateError) -> Failure {
    Failure::local("certificate", error.to_string()).advice("restore the bundle from a backup")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_new_bundle_opens_and_its_private_files_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("lab");
        let (made, _) = Bundle::create(&dir, "lab", None).unwrap();
        let opened = Bundle::open(&dir).unwrap();
        assert_eq!(opened.cluster, made.cluster);
        let key = opened.operator_key(ROOT_KEY).unwrap();
        assert_eq!(opened.cluster.root_keys, [key.public().to_base64()]);
        opened.root_ca_key().unwrap();
        for file in ["root-ca.key", "keys/root.key", "cluster.toml"] {
            let mode = fs::metadata(dir.join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        assert_eq!(Bundle::create(&dir, "lab", None).err().unwrap().code, "exists");
    }

    #[test]
    fn a_key_that_others_can_read_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let (bundle, _) = Bundle::create(dir.path(), "lab", None).unwrap();
        let path = dir.path().join("keys/root.key");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(bundle.operator_key(ROOT_KEY).unwrap_err().code, "file-mode");
    }

    #[test]
    fn an_encrypted_file_holds_no_trace_of_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let passphrase = Passphrase::new("correct horse".into());
        let path = secret::write(&dir.path().join("a.key"), b"the secret itself", Some(&passphrase)).unwrap();
        assert!(path.ends_with("a.key.age"));
        let bytes = fs::read(path).unwrap();
        assert!(bytes.starts_with(b"age-encryption.org/v1\n-> scrypt "));
        assert!(!bytes.windows(6).any(|window| window == b"secret"));
    }

    #[test]
    fn a_damaged_bundle_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (bundle, _) = Bundle::create(dir.path(), "lab", None).unwrap();
        let path = dir.path().join(CLUSTER_FILE);
        let text = fs::read_to_string(&path).unwrap();
        let id = bundle.cluster.id.to_string();
        fs::write(&path, text.replace(&id, &"0".repeat(32))).unwrap();
        assert_eq!(Bundle::open(dir.path()).unwrap_err().code, "damaged");
        fs::write(&path, text.replace("name", "nmae")).unwrap();
        assert!(Bundle::open(dir.path()).unwrap_err().detail.contains("nmae"));
    }

    #[test]
    fn nodes_are_remembered_latest_first_and_not_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let (bundle, _) = Bundle::create(dir.path(), "lab", None).unwrap();
        for n in 0..30 {
            bundle.remember_nodes(&[format!("10.0.0.{n}:7443")]);
        }
        bundle.remember_nodes(&["10.0.0.28:7443".into()]);
        let nodes = bundle.remembered_nodes();
        assert_eq!(nodes.len(), MAX_REMEMBERED_NODES);
        assert_eq!(&nodes[..2], ["10.0.0.28:7443", "10.0.0.29:7443"]);
    }
}
