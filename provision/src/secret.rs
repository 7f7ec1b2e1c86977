//! Private keys on the operator's disk: files of mode 0600, or encrypted with a passphrase in the
//! age format (age-encryption.org/v1, scrypt recipient), which the `age` command reads too.

use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use age::secrecy::SecretString;

use crate::failure::{Failure, Result};

/// The environment variable that holds the passphrase where nobody can type it.
pub const PASSPHRASE_VARIABLE: &str = "HIVEMIND_PASSPHRASE";

/// The file mode of private files.
const PRIVATE_MODE: u32 = 0o600;

/// The file mode of directories that hold private files.
const PRIVATE_DIRECTORY_MODE: u32 = 0o700;

/// The most scrypt work accepted when reading, as a power of two: 2^20 takes about a second and
/// 1 GiB; a file that asks for more is not ours.
const MAX_WORK_FACTOR: u8 = 20;

/// A passphrase; never shown.
#[derive(Clone)]
pub struct Passphrase(SecretString);

impl Passphrase {
    /// Takes the passphrase from the environment, or asks for it on the terminal: twice when it is
    /// a new one.
    ///
    /// # Errors
    /// When there is neither, or the two differ.
    pub fn ask(what_for: &str, new: bool) -> Result<Self> {
        if let Ok(text) = std::env::var(PASSPHRASE_VARIABLE)
            && !text.is_empty()
        {
            return Ok(Self::new(text));
        }
        if !std::io::stdin().is_terminal() {
            return Err(Failure::local("passphrase", format!("{what_for} needs a passphrase"))
                .advice(format!("set {PASSPHRASE_VARIABLE}, or run the command on a terminal")));
        }
        let prompt = |text: &str| {
            rpassword::prompt_password(text)
                .map_err(|e| Failure::local("passphrase", format!("cannot read the passphrase: {e}")))
        };
        let text = prompt(&format!("Passphrase for {what_for}: "))?;
        if text.is_empty() {
            return Err(Failure::local("passphrase", "the passphrase is empty").advice("type one"));
        }
        if new && prompt("Again: ")? != text {
            return Err(Failure::local("passphrase", "the two passphrases differ").advice("try again"));
        }
        Ok(Self::new(text))
    }

    /// For what encrypts.
    pub(crate) fn into_secret(self) -> SecretString {
        self.0
    }

    /// For what decrypts.
    pub(crate) fn into_identity(self) -> age::scrypt::Identity {
        let mut identity = age::scrypt::Identity::new(self.0);
        identity.set_max_work_factor(MAX_WORK_FACTOR);
        identity
    }

    /// A passphrase that is known already.
    pub fn new(text: String) -> Self {
        Self(SecretString::from(text))
    }
}

/// The two names a private file may have.
fn encrypted_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".age");
    PathBuf::from(name)
}

/// Whether the private file is there, encrypted or not.
pub fn exists(path: &Path) -> bool {
    path.exists() || encrypted_path(path).exists()
}

/// Writes a private file; encrypted, and then called `PATH.age`, when there is a passphrase.
///
/// # Errors
/// When the file is there already or cannot be written.
pub fn write(path: &Path, content: &[u8], passphrase: Option<&Passphrase>) -> Result<PathBuf> {
    let Some(passphrase) = passphrase else {
        write_private(path, content, false)?;
        return Ok(path.to_owned());
    };
    let recipient = age::scrypt::Recipient::new(passphrase.0.clone());
    let encrypted = age::encrypt(&recipient, content)
        .map_err(|e| Failure::local("encrypt", format!("cannot encrypt {}: {e}", path.display())))?;
    let path = encrypted_path(path);
    write_private(&path, &encrypted, false)?;
    Ok(path)
}

/// Reads a private file, asking for the passphrase when it is encrypted.
///
/// # Errors
/// When it is missing or readable by others, or the passphrase is wrong.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let encrypted = encrypted_path(path);
    if !encrypted.exists() {
        refuse_if_shared(path)?;
        return fs::read(path).map_err(|e| Failure::file("read", path, &e));
    }
    let bytes = fs::read(&encrypted).map_err(|e| Failure::file("read", &encrypted, &e))?;
    let name = encrypted.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let identity = Passphrase::ask(&name, false)?.into_identity();
    age::decrypt(&identity, &bytes).map_err(|e| {
        Failure::local("decrypt", format!("cannot decrypt {}: {e}", encrypted.display()))
            .advice("check the passphrase")
    })
}

/// A key that others may read is no longer private; using it would hide that.
fn refuse_if_shared(path: &Path) -> Result<()> {
    let mode = fs::metadata(path).map_err(|e| Failure::file("read", path, &e))?.permissions().mode();
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(Failure::local(
        "file-mode",
        format!("{} is readable by others (mode {:o})", path.display(), mode & 0o777),
    )
    .advice(format!("if nobody read it: chmod 600 {}; else revoke the key", path.display())))
}

/// Makes a directory that only its owner may enter, with its parents.
///
/// # Errors
/// When it cannot be made.
pub fn make_directory(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(PRIVATE_DIRECTORY_MODE)
        .create(path)
        .map_err(|e| Failure::file("make the directory", path, &e))
}

/// Writes a file of mode 0600 as a whole or not at all: first beside it, then renamed.
///
/// # Errors
/// When it exists and `replace` is false, or cannot be written.
pub fn write_private(path: &Path, content: &[u8], replace: bool) -> Result<()> {
    if !replace && path.exists() {
        return Err(Failure::local("exists", format!("{} exists already", path.display()))
            .advice("choose another name, or move it away"));
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.new", std::process::id()));
    let beside = PathBuf::from(beside);
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(PRIVATE_MODE)
        .open(&beside)
        .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&beside, path));
    written.map_err(|e| {
        let _ = fs::remove_file(&beside);
        Failure::file("write", path, &e)
    })
}
