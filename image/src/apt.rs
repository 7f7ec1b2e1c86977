//! The Debian archive, reached as this machine is set up to reach it: its own mirrors, proxies and keyring.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::lock::{Lock, Locked, Wanted, WantedSuite};
use crate::process::run;

/// Part of Debian's `debian-archive-keyring`, which every Debian system has.
const DEFAULT_KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Comes with apt; downloads with apt's own settings and checks the hash.
const APT_HELPER: &str = "/usr/lib/apt/apt-helper";

/// Packages from the security archive have paths that start so; all others are in the main archive.
const SECURITY_POOL: &str = "pool/updates/";

/// Where this machine gets Debian from.
#[derive(Debug, PartialEq, Eq)]
pub struct Mirrors {
    main: String,
    security: Option<String>,
    keyring: String,
}

/// One `deb` line or stanza, as far as it matters here.
struct Source {
    uri: String,
    suites: Vec<String>,
    signed_by: Option<String>,
}

impl Mirrors {
    /// Reads `/etc/apt`.
    ///
    /// # Errors
    /// When this is not Debian, or no entry for its own release is found.
    pub fn of_this_machine() -> Result<Self> {
        let release = fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
        let codename = release
            .lines()
            .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
            .map(|name| name.trim_matches('"').to_owned())
            .context("/etc/os-release has no VERSION_CODENAME; the image is built on Debian 12 or 13")?;
        let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
        if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
            files.extend(entries.flatten().map(|entry| entry.path()));
        }
        files.sort();
        let mut sources = Vec::new();
        for file in files {
            let Ok(text) = fs::read_to_string(&file) else { continue };
            match file.extension().and_then(|e| e.to_str()) {
                Some("sources") => sources.extend(parse_deb822(&text)),
                Some("list") => sources.extend(parse_one_line(&text)),
                _ => {}
            }
        }
        Self::choose(&sources, &codename)
    }

    fn choose(sources: &[Source], codename: &str) -> Result<Self> {
        let find = |suite: &str| sources.iter().find(|s| s.suites.iter().any(|name| name == suite));
        let main = find(codename)
            .with_context(|| format!("no apt source for {codename} is configured in /etc/apt"))?;
        Ok(Self {
            main: main.uri.clone(),
            security: find(&format!("{codename}-security")).map(|s| s.uri.clone()),
            keyring: main.signed_by.clone().unwrap_or_else(|| DEFAULT_KEYRING.to_owned()),
        })
    }

    fn sources_list(&self, suite: &str) -> String {
        let line = |uri: &str, suite: &str| {
            format!("deb [arch=amd64 signed-by={}] {uri} {suite} main\n", self.keyring)
        };
        let mut text = line(&self.main, suite);
        if let Some(security) = &self.security {
            text += &line(security, &format!("{suite}-security"));
        }
        text
    }

    fn uri_of(&self, package: &Locked) -> Result<String> {
        let archive = if package.path.starts_with(SECURITY_POOL) {
            self.security.as_ref().context("this machine has no apt source for Debian's security updates")?
        } else {
            &self.main
        };
        Ok(format!("{}/{}", archive.trim_end_matches('/'), package.path))
    }
}

fn parse_deb822(text: &str) -> Vec<Source> {
    let uncommented: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    uncommented
        .split(|line| line.trim().is_empty())
        .filter_map(|stanza| {
            let fields: BTreeMap<String, &str> = stanza
                .iter()
                .filter_map(|line| line.split_once(':'))
                .map(|(key, value)| (key.trim().to_lowercase(), value.trim()))
                .collect();
            let words = |key: &str| {
                fields.get(key).map_or(Vec::new(), |v| v.split_whitespace().map(str::to_owned).collect())
            };
            let enabled = fields.get("enabled").is_none_or(|value| *value != "no");
            let usable = enabled
                && words("types").contains(&"deb".into())
                && words("components").contains(&"main".into());
            let uri = words("uris").into_iter().next()?;
            // A key may also be written into the stanza itself; only a file can be handed on.
            let signed_by = words("signed-by").into_iter().next().filter(|path| path.starts_with('/'));
            usable.then(|| Source { uri, suites: words("suites"), signed_by })
        })
        .collect()
}

fn parse_one_line(text: &str) -> Vec<Source> {
    text.lines()
        .filter_map(|line| {
            let rest = line.trim().strip_prefix("deb ")?.trim();
            let (options, rest) = match rest.strip_prefix('[') {
                Some(rest) => rest.split_once(']')?,
                None => ("", rest),
            };
            let mut words = rest.split_whitespace();
            let (uri, suite) = (words.next()?, words.next()?);
            let signed_by =
                options.split_whitespace().find_map(|o| o.strip_prefix("signed-by=")).map(str::to_owned);
            words.any(|component| component == "main").then(|| Source {
                uri: uri.to_owned(),
                suites: vec![suite.to_owned()],
                signed_by,
            })
        })
        .collect()
}

/// apt with a configuration of its own below `dir`, so that it neither sees nor touches this machine's packages.
fn isolated(program: &str, dir: &Path) -> Command {
    let mut command = Command::new(program);
    let at = |name: &str| dir.join(name).display().to_string();
    for option in [
        format!("Dir::Etc::sourcelist={}", at("sources.list")),
        "Dir::Etc::sourceparts=/dev/null".into(),
        format!("Dir::State::lists={}", at("lists")),
        "Dir::State::status=/dev/null".into(),
        format!("Dir::Cache={}", at("cache")),
        "Acquire::Languages=none".into(),
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".into(),
        "APT::Architecture=amd64".into(),
        "APT::Architectures=amd64".into(),
        // Without this, apt as root hands downloads to a user that cannot write to the cache folder.
        "APT::Sandbox::User=".into(),
    ] {
        command.arg("-o").arg(option);
    }
    command
}

/// Asks the archive for the newest versions of what is wanted. `Release` files are verified by apt.
///
/// # Errors
/// When the archive cannot be reached or verified, or lacks a package.
pub fn resolve(wanted: &Wanted, mirrors: &Mirrors, scratch: &Path) -> Result<Lock> {
    let mut lock = Lock { as_of: 0, packages: Vec::new() };
    for suite in &wanted.suites {
        let dir = scratch.join(&suite.name);
        fs::create_dir_all(dir.join("lists/partial"))?;
        fs::create_dir_all(dir.join("cache/archives/partial"))?;
        fs::write(dir.join("sources.list"), mirrors.sources_list(&suite.name))?;
        run(isolated("apt-get", &dir).args(["-qq", "--error-on=any", "update"]))
            .with_context(|| format!("fetching the package index of {}", suite.name))?;
        lock.as_of = lock.as_of.max(release_time(&dir.join("lists"))?);
        resolve_suite(suite, &dir, &mut lock.packages)?;
    }
    lock.packages.sort();
    Ok(lock)
}

fn resolve_suite(suite: &WantedSuite, dir: &Path, into: &mut Vec<Locked>) -> Result<()> {
    let mut names = suite.packages.clone();
    for (meta, prefix) in &suite.metapackages {
        let records = show(dir, std::slice::from_ref(meta))?;
        let depends = records.first().and_then(|r| r.get("Depends")).map_or("", String::as_str);
        let real = depends
            .split([',', '|'])
            .filter_map(|dependency| dependency.split_whitespace().next())
            .find(|name| name.starts_with(prefix.as_str()))
            .with_context(|| format!("{meta} depends on nothing that starts with {prefix}: {depends}"))?;
        names.push(real.to_owned());
    }
    for record in show(dir, &names)? {
        let field = |key: &str| {
            record.get(key).cloned().with_context(|| format!("the index has no {key} for a package"))
        };
        into.push(Locked {
            name: field("Package")?,
            version: field("Version")?,
            architecture: field("Architecture")?,
            suite: suite.name.clone(),
            size: field("Size")?.parse().context("Size in the package index")?,
            sha256: field("SHA256")?,
            path: field("Filename")?,
        });
    }
    Ok(())
}

/// The index records of the candidates, in the order asked for.
fn show(dir: &Path, names: &[String]) -> Result<Vec<BTreeMap<String, String>>> {
    let output = run(isolated("apt-cache", dir).args(["show", "--no-all-versions"]).args(names))?;
    let text = String::from_utf8(output).context("the package index is not UTF-8")?;
    let records: Vec<BTreeMap<String, String>> = text
        .split("\n\n")
        .filter(|record| !record.trim().is_empty())
        .map(|record| {
            let pairs = record.lines().filter_map(|line| line.split_once(": "));
            pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
        })
        .collect();
    if records.len() != names.len() {
        bail!("asked the package index for {} packages and got {}", names.len(), records.len());
    }
    Ok(records)
}

/// Seconds since 1970 of the newest `Date:` in the verified `Release` files.
fn release_time(lists: &Path) -> Result<u64> {
    let mut newest = 0;
    for entry in fs::read_dir(lists)?.flatten() {
        if !entry.file_name().to_string_lossy().ends_with("InRelease") {
            continue;
        }
        let text = fs::read_to_string(entry.path())?;
        let date = text
            .lines()
            .find_map(|line| line.strip_prefix("Date: "))
            .context("a Release file without Date")?;
        let seconds = run(Command::new("date").args(["+%s", "--date", date]))?;
        newest = newest.max(String::from_utf8_lossy(&seconds).trim().parse().context("the output of date")?);
    }
    Ok(newest)
}

/// Where the cache keeps a package. The name holds the checksum, so a file that is there never has to change.
#[must_use]
pub fn cached_path(cache: &Path, package: &Locked) -> PathBuf {
    cache.join(format!("{}_{}.deb", package.name, &package.sha256[..16]))
}

/// Downloads what the cache lacks and verifies every package. Returns how many were downloaded.
///
/// # Errors
/// When a package is no longer in the archive, or its bytes are not the locked ones.
pub fn fetch(lock: &Lock, mirrors: &Mirrors, cache: &Path) -> Result<usize> {
    fs::create_dir_all(cache)?;
    let mut missing = Vec::new();
    for package in &lock.packages {
        let path = cached_path(cache, package);
        match fs::read(&path) {
            Ok(bytes) if hex_sha256(&bytes) == package.sha256 => {}
            // Damaged, for instance by a full disk: fetch it again.
            Ok(_) => {
                fs::remove_file(&path)?;
                missing.push(package);
            }
            Err(_) => missing.push(package),
        }
    }
    if missing.is_empty() {
        return Ok(0);
    }
    let mut helper = Command::new(APT_HELPER);
    helper.args(["-o", "APT::Sandbox::User=", "download-file"]);
    for package in &missing {
        helper.arg(mirrors.uri_of(package)?);
        helper.arg(partial_path(cache, package));
        helper.arg(format!("SHA256:{}", package.sha256));
    }
    // One failed package fails the whole command; which one it was shows in what is there afterwards.
    let said = run(&mut helper).err();
    let mut lost = Vec::new();
    for package in &missing {
        let partial = partial_path(cache, package);
        match fs::read(&partial) {
            Ok(bytes) if hex_sha256(&bytes) == package.sha256 => {
                fs::rename(&partial, cached_path(cache, package))?
            }
            _ => lost.push(format!("{} {} ({})", package.name, package.version, package.suite)),
        }
    }
    if !lost.is_empty() {
        let cause = said.map_or_else(String::new, |error| format!("\n{error}"));
        bail!(
            "the mirror does not have, or not with the locked checksum:\n  {}\n\
             Debian removes a version from the archive when a newer one replaces it. If the network is fine, run\n\
             `image/build --refresh-lock` and look at the difference in rootfs/packages.lock.{cause}",
            lost.join("\n  ")
        );
    }
    Ok(missing.len())
}

fn partial_path(cache: &Path, package: &Locked) -> PathBuf {
    cache.join(format!("{}_{}.partial", package.name, &package.sha256[..16]))
}

/// SHA-256 as lower-case hexadecimal.
#[must_use]
pub fn hex_sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "# a comment\nTypes: deb\nURIs: http://one.example/debian\nSuites: bookworm bookworm-updates\n\
        Components: main\nSigned-By: /usr/share/keyrings/mine.gpg\n\n\
        Types: deb\nURIs: http://two.example/sec\nSuites: bookworm-security\nComponents: main contrib\n\n\
        Enabled: no\nTypes: deb\nURIs: http://three.example\nSuites: bookworm\nComponents: main\n";

    #[test]
    fn mirrors_are_read_from_deb822_stanzas() {
        let mirrors = Mirrors::choose(&parse_deb822(DEB822), "bookworm").unwrap();
        assert_eq!(mirrors.main, "http://one.example/debian");
        assert_eq!(mirrors.security.as_deref(), Some("http://two.example/sec"));
        assert_eq!(mirrors.keyring, "/usr/share/keyrings/mine.gpg");
    }

    #[test]
    fn mirrors_are_read_from_one_line_entries() {
        let text = "# deb http://no.example bookworm main\n\
                    deb-src http://no.example bookworm main\n\
                    deb [arch=amd64 signed-by=/k.gpg] http://one.example/debian/ bookworm main contrib\n";
        let mirrors = Mirrors::choose(&parse_one_line(text), "bookworm").unwrap();
        assert_eq!(
            (mirrors.main.as_str(), mirrors.keyring.as_str()),
            ("http://one.example/debian/", "/k.gpg")
        );
        assert_eq!(mirrors.security, None);
    }

    #[test]
    fn an_unknown_release_is_an_error_that_names_it() {
        let error = Mirrors::choose(&parse_deb822(DEB822), "trixie").unwrap_err().to_string();
        assert!(error.contains("trixie"), "{error}");
    }

    #[test]
    fn a_vanished_package_is_named_with_the_way_out() {
        let cache = tempfile::tempdir().unwrap();
        let archive = tempfile::tempdir().unwrap();
        let mirrors = Mirrors {
            main: format!("file:{}", archive.path().display()),
            security: None,
            keyring: String::new(),
        };
        let package = Locked {
            name: "gone".into(),
            version: "1.0".into(),
            architecture: "amd64".into(),
            suite: "forky".into(),
            size: 1,
            sha256: "0".repeat(64),
            path: "pool/main/g/gone.deb".into(),
        };
        let lock = Lock { as_of: 0, packages: vec![package] };
        let error = fetch(&lock, &mirrors, cache.path()).unwrap_err().to_string();
        assert!(error.contains("gone 1.0 (forky)") && error.contains("--refresh-lock"), "{error}");
    }

    #[test]
    fn a_package_with_other_bytes_than_locked_never_reaches_the_cache() {
        let cache = tempfile::tempdir().unwrap();
        let archive = tempfile::tempdir().unwrap();
        fs::write(archive.path().join("p.deb"), b"not what was locked").unwrap();
        let mirrors = Mirrors {
            main: format!("file:{}", archive.path().display()),
            security: None,
            keyring: String::new(),
        };
        let package = Locked {
            name: "swapped".into(),
            version: "1.0".into(),
            architecture: "amd64".into(),
            suite: "forky".into(),
            size: 19,
            sha256: hex_sha256(b"what was locked"),
            path: "p.deb".into(),
        };
        let lock = Lock { as_of: 0, packages: vec![package.clone()] };
        assert!(fetch(&lock, &mirrors, cache.path()).is_err());
        assert!(!cached_path(cache.path(), &package).exists());
    }
}
