//! The project's cache folder, outside the checkout, shared by all runs.

use std::env;
use std::fs;
use std::path::PathBuf;

use crate::error::{Context, Error, Result};

/// The cache folder: `$HIVEMIND_CACHE`, else `$XDG_CACHE_HOME/hivemind`, else `~/.cache/hivemind`.
pub fn cache_dir() -> Result<PathBuf> {
    let from = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    from("HIVEMIND_CACHE")
        .or_else(|| from("XDG_CACHE_HOME").map(|dir| dir.join("hivemind")))
        .or_else(|| from("HOME").map(|dir| dir.join(".cache/hivemind")))
        .ok_or_else(|| Error::Io {
            action: "find the cache folder: set HIVEMIND_CACHE".into(),
            source: std::io::ErrorKind::NotFound.into(),
        })
}

/// A folder inside the cache, made if it is not there.
pub(crate) fn cache_folder(name: &str) -> Result<PathBuf> {
    let dir = cache_dir()?.join(name);
    fs::create_dir_all(&dir).context(format!("create {}", dir.display()))?;
    Ok(dir)
}

/// Cargo's target folder: `$CARGO_TARGET_DIR`, else `target` in the cache folder.
pub fn target_dir() -> Result<PathBuf> {
    match env::var_os("CARGO_TARGET_DIR").filter(|value| !value.is_empty()) {
        Some(dir) => Ok(PathBuf::from(dir)),
        None => Ok(cache_dir()?.join("target")),
    }
}
