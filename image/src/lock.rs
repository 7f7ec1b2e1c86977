//! Which Debian packages are wanted (`rootfs/packages.toml`) and which exact ones are used (`rootfs/packages.lock`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// What is wanted: names by suite.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// The suites, in the order of the file.
    #[serde(rename = "suite")]
    pub suites: Vec<WantedSuite>,
}

/// The packages taken from one suite.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WantedSuite {
    /// A Debian suite, such as `trixie`.
    pub name: String,
    /// Package names.
    pub packages: Vec<String>,
    /// Metapackage to the beginning of the name of the one dependency that it stands for.
    #[serde(default)]
    pub metapackages: BTreeMap<String, String>,
}

/// The exact packages an image is made of.
#[derive(Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Seconds since 1970 of the newest suite's `Release` file: the timestamp of everything in the image.
    pub as_of: u64,
    /// Sorted by name.
    #[serde(rename = "package")]
    pub packages: Vec<Locked>,
}

/// One exact package.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(deny_unknown_fields)]
pub struct Locked {
    /// Package name.
    pub name: String,
    /// Debian version, with epoch.
    pub version: String,
    /// `amd64` or `all`.
    pub architecture: String,
    /// The suite it was found in.
    pub suite: String,
    /// Size of the `.deb` in bytes.
    pub size: u64,
    /// SHA-256 of the `.deb`, lower-case hexadecimal.
    pub sha256: String,
    /// Where the archive keeps it, relative to the archive's root.
    pub path: String,
}

/// What can be wrong with the two files.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Not TOML, or not the expected keys.
    #[error("{file} is not valid")]
    Syntax {
        /// Which of the files.
        file: &'static str,
        /// Where and why.
        #[source]
        source: toml::de::Error,
    },
    /// A checksum or path that cannot be right.
    #[error("packages.lock: {name}: {problem}; run `image/build --refresh-lock`")]
    Entry {
        /// The package concerned.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The two files do not name the same packages.
    #[error(
        "packages.lock does not match packages.toml (first difference: {0}); run `image/build --refresh-lock`"
    )]
    Stale(String),
}

impl Wanted {
    /// Reads `packages.toml`.
    ///
    /// # Errors
    /// [`LockError::Syntax`] when it is not TOML or has unknown keys.
    pub fn parse(text: &str) -> Result<Self, LockError> {
        toml::from_str(text).map_err(|source| LockError::Syntax { file: "packages.toml", source })
    }
}

impl Lock {
    /// Reads `packages.lock` and checks every entry by itself.
    ///
    /// # Errors
    /// [`LockError::Syntax`] or [`LockError::Entry`].
    pub fn parse(text: &str) -> Result<Self, LockError> {
        let lock: Self =
            toml::from_str(text).map_err(|source| LockError::Syntax { file: "packages.lock", source })?;
        let mut seen = BTreeSet::new();
        for package in &lock.packages {
            let problem = if !seen.insert(&package.name) {
                "listed twice"
            } else if package.sha256.len() != 64
                || !package.sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
            {
                "the checksum is not SHA-256 in lower-case hexadecimal"
            } else if !package.path.starts_with("pool/") || package.path.split('/').any(|part| part == "..") {
                "the path is not below the archive's pool"
            } else {
                continue;
            };
            return Err(LockError::Entry { name: package.name.clone(), problem });
        }
        Ok(lock)
    }

    /// The text of the lock file.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::from(
            "# Written by `image/build --refresh-lock`. Do not edit: the checksums are what the build trusts.\n\n",
        );
        // Writing to a String cannot fail.
        let _ = writeln!(text, "as_of = {}", self.as_of);
        for p in &self.packages {
            let _ = write!(
                text,
                "\n[[package]]\nname = {:?}\nversion = {:?}\narchitecture = {:?}\nsuite = {:?}\nsize = {}\nsha256 = {:?}\npath = {:?}\n",
                p.name, p.version, p.architecture, p.suite, p.size, p.sha256, p.path
            );
        }
        text
    }

    /// Checks that the lock holds just what is wanted.
    ///
    /// # Errors
    /// [`LockError::Stale`] with the first difference.
    pub fn check_against(&self, wanted: &Wanted) -> Result<(), LockError> {
        let stale = |what: String| Err(LockError::Stale(what));
        let mut unused: BTreeSet<(&str, &str)> =
            self.packages.iter().map(|p| (p.suite.as_str(), p.name.as_str())).collect();
        for suite in &wanted.suites {
            for name in &suite.packages {
                if !unused.remove(&(suite.name.as_str(), name.as_str())) {
                    return stale(format!("{name} from {} is wanted but not locked", suite.name));
                }
            }
            for (meta, prefix) in &suite.metapackages {
                let found =
                    unused.iter().find(|(s, n)| *s == suite.name && n.starts_with(prefix.as_str())).copied();
                match found {
                    Some(entry) => unused.remove(&entry),
                    None => {
                        return stale(format!(
                            "{meta} from {} is wanted but nothing is locked for it",
                            suite.name
                        ));
                    }
                };
            }
        }
        match unused.first() {
            Some((suite, name)) => stale(format!("{name} from {suite} is locked but not wanted")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locked(name: &str, suite: &str) -> Locked {
        Locked {
            name: name.into(),
            version: "1:2.0-1+b1".into(),
            architecture: "amd64".into(),
            suite: suite.into(),
            size: 17,
            sha256: "0123456789abcdef".repeat(4),
            path: format!("pool/main/x/{name}.deb"),
        }
    }

    fn wanted() -> Wanted {
        Wanted::parse(
            "[[suite]]\nname = 'trixie'\npackages = ['crun']\nmetapackages = { kernel-meta = 'kernel-6' }\n\
             [[suite]]\nname = 'forky'\npackages = ['containerd']\n",
        )
        .unwrap()
    }

    fn complete() -> Lock {
        let packages =
            vec![locked("containerd", "forky"), locked("crun", "trixie"), locked("kernel-6.12", "trixie")];
        Lock { as_of: 1, packages }
    }

    #[test]
    fn what_is_rendered_reads_back_the_same() {
        assert_eq!(Lock::parse(&complete().render()).unwrap(), complete());
    }

    #[test]
    fn a_lock_that_holds_just_what_is_wanted_is_accepted() {
        complete().check_against(&wanted()).unwrap();
    }

    #[test]
    fn a_missing_a_superfluous_and_a_misplaced_package_are_named() {
        let mut lock = complete();
        lock.packages.remove(0);
        assert!(
            lock.check_against(&wanted())
                .unwrap_err()
                .to_string()
                .contains("containerd from forky is wanted")
        );

        let mut lock = complete();
        lock.packages.push(locked("perl", "trixie"));
        assert!(
            lock.check_against(&wanted()).unwrap_err().to_string().contains("perl from trixie is locked but")
        );

        let mut lock = complete();
        lock.packages.remove(2);
        assert!(lock.check_against(&wanted()).unwrap_err().to_string().contains("kernel-meta"));
    }

    #[test]
    fn a_checksum_that_checks_nothing_is_refused() {
        for bad in ["", "ABCDEF", &"G".repeat(64)] {
            let mut lock = complete();
            lock.packages[0].sha256 = bad.into();
            let error = Lock::parse(&lock.render()).unwrap_err().to_string();
            assert!(error.contains("--refresh-lock"), "{error}");
        }
    }

    #[test]
    fn a_path_that_leaves_the_pool_is_refused() {
        for bad in ["/etc/passwd", "pool/../../x.deb", "dists/x.deb"] {
            let mut lock = complete();
            lock.packages[0].path = bad.into();
            assert!(Lock::parse(&lock.render()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_package_locked_twice_and_an_unknown_key_are_refused() {
        let mut lock = complete();
        lock.packages.push(locked("crun", "trixie"));
        assert!(Lock::parse(&lock.render()).is_err());
        assert!(Lock::parse("as_of = 1\nas_if = 2\npackage = []\n").is_err());
    }

    #[test]
    fn the_committed_lock_matches_the_committed_wishes() {
        let lock = Lock::parse(include_str!("../../rootfs/packages.lock")).unwrap();
        let wanted = Wanted::parse(include_str!("../../rootfs/packages.toml")).unwrap();
        lock.check_against(&wanted).unwrap();
    }
}
