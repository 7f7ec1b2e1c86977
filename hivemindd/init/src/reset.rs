//! Forgetting: what a machine was told to wipe is wiped when it starts the next time, before anything uses it. A power
//! cut on the way has it wiped at the start after that.

use std::fs;
use std::io;
use std::path::Path;

use hivemind_spec::api::Wipe;

use super::console::line;
use super::durable;

const FOLDER: &str = "/var/lib/hivemind";

/// Holds what is to be wiped, while it is.
const FILE: &str = "wipe";

/// What goes with the workloads, and what with the state besides. All of the partition goes by a new file system
/// (`state.rs`).
const WORKLOADS: [&str; 2] = ["/var/lib/containerd", "/var/log/hivemind"];
const STATE: [&str; 1] = ["/var/lib/hivemind/store"];

/// Has that wiped at the next start.
///
/// # Errors
/// Those of the file system; nothing will be wiped then.
pub fn order(wipe: Wipe) -> io::Result<()> {
    durable::write(Path::new(FOLDER), FILE, wipe.name().as_bytes())
}

/// What is to be wiped at this start.
pub(super) fn ordered() -> Option<Wipe> {
    let name = fs::read_to_string(Path::new(FOLDER).join(FILE)).ok()?;
    let known = Wipe::named(&name);
    if known.is_none() {
        line(&format!("nothing is wiped: {FOLDER}/{FILE} holds {name:?}"));
    }
    known
}

/// Wipes the folders that go.
///
/// # Errors
/// Those of the file system; what is left goes at the next start.
pub(super) fn wipe(wipe: Wipe) -> io::Result<()> {
    let besides: &[&str] = if wipe == Wipe::Workloads { &[] } else { &STATE };
    for folder in WORKLOADS.iter().chain(besides) {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => durable::sync_folder(Path::new(folder).parent().unwrap_or(Path::new("/")))?,
        }
    }
    fs::remove_file(Path::new(FOLDER).join(FILE))?;
    durable::sync_folder(Path::new(FOLDER))
}
