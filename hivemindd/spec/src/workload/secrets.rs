//! Secrets in a container: which, and as which files.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::tmpfs::may_cover;
use crate::document::{DocumentError, is_dns_label};

/// The folder in a container where its secrets are unless it says otherwise, as Docker has it.
pub const SECRETS_FOLDER: &str = "/run/secrets";

/// Secrets of a container, at most: more has no use, and each may be [`crate::secret::MAX_SECRET_BYTES`] of memory.
const MAX_SECRETS: usize = 64;

/// A secret in a container: a read-only file in memory, which takes a new version of the secret while the container
/// runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretMount {
    /// The name of a secret of the workload's namespace.
    pub secret: String,
    /// The file, from the root. In [`SECRETS_FOLDER`] a new version takes the place of the old one at once; elsewhere
    /// the file is written over.
    pub path: String,
    /// Its owner.
    #[serde(default)]
    pub uid: u32,
    /// Its group.
    #[serde(default)]
    pub gid: u32,
    /// Its permission bits; it is mounted read-only whatever they say.
    #[serde(default = "super::container::readable")]
    pub mode: u32,
}

impl SecretMount {
    /// Its path from [`SECRETS_FOLDER`], if it is in there.
    pub fn in_folder(&self) -> Option<&str> {
        self.path.strip_prefix(SECRETS_FOLDER)?.strip_prefix('/')
    }
}

/// Checks a container's secrets; `paths` are those of its other files.
pub(super) fn validate<'a>(
    secrets: &'a [SecretMount],
    mut paths: BTreeSet<&'a str>,
) -> Result<(), DocumentError> {
    if secrets.len() > MAX_SECRETS {
        let text = format!("has more than {MAX_SECRETS} secrets");
        return Err(DocumentError::new("/spec/container/secrets", text));
    }
    for (index, mount) in secrets.iter().enumerate() {
        let at = |message: String| DocumentError::new(format!("/spec/container/secrets/{index}"), message);
        if !is_dns_label(&mount.secret) {
            return Err(at(format!("{:?} cannot name a secret", mount.secret)));
        }
        file_path(&mount.path, mount.mode).map_err(at)?;
        if mount.path == SECRETS_FOLDER || !paths.insert(&mount.path) {
            return Err(at(format!("{} is there twice", mount.path)));
        }
    }
    // A file cannot be a folder too.
    let folders = secrets.iter().find(|mount| {
        let inside = format!("{}/", mount.path);
        secrets.iter().any(|other| other.path.starts_with(&inside))
    });
    match folders {
        Some(mount) => {
            let text = format!("{} is a secret and the folder of another", mount.path);
            Err(DocumentError::new("/spec/container/secrets", text))
        }
        None => Ok(()),
    }
}

/// Whether a file may be mounted at a path, with these permission bits.
pub(super) fn file_path(path: &str, mode: u32) -> Result<(), String> {
    let parts = || path.split('/').skip(1);
    if !path.starts_with('/') || parts().any(|part| matches!(part, "" | "." | "..")) {
        return Err(format!("{path:?} is not the path of a file from the root"));
    }
    may_cover(path)?;
    if mode > 0o777 {
        return Err(format!("the mode {mode:o} is over 777"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(secret: &str, path: &str) -> SecretMount {
        SecretMount { secret: secret.to_owned(), path: path.to_owned(), uid: 0, gid: 0, mode: 0o444 }
    }

    #[test]
    fn secrets_are_files_of_their_own_and_none_covers_another() {
        let check = |mounts: &[SecretMount]| validate(mounts, BTreeSet::from(["/etc/taken"]));
        check(&[mount("a", "/run/secrets/a"), mount("a", "/etc/a.key"), mount("b", "/run/secrets/sub/b")])
            .unwrap();
        for odd in [
            vec![mount("a", "/run/secrets/a"), mount("b", "/run/secrets/a")],
            vec![mount("a", "/etc/taken")],
            vec![mount("a", "/run/secrets/a"), mount("b", "/run/secrets/a/b")],
            vec![mount("a", "/run/secrets")],
            vec![mount("a", "relative")],
            vec![mount("a", "/run/secrets/../../etc/passwd")],
            vec![mount("a", "/proc/a")],
            vec![mount("A b", "/run/secrets/a")],
            vec![SecretMount { mode: 0o1777, ..mount("a", "/a") }],
            vec![mount("a", "/a"); 65],
        ] {
            assert!(check(&odd).is_err(), "{odd:?}");
        }
        assert_eq!(mount("a", "/run/secrets/sub/b").in_folder(), Some("sub/b"));
        assert_eq!(mount("a", "/run/secretsauce").in_folder(), None);
    }
}
