//! Small files that survive a power cut at any moment: after it there is the old file or the new
//! one, whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

/// What a file under way is called after: a power cut may leave one, and nobody reads it.
const UNDER_WAY: &str = "new";

/// Replaces the file `name` in `folder`, readable by its owner only, and returns when the content
/// and the name are on the disk.
///
/// # Errors
/// Those of the file system; the old file is then still there.
pub fn write(folder: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let under_way = folder.join(format!("{name}.{UNDER_WAY}"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&under_way)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&under_way, folder.join(name))?;
    sync_folder(folder)
}

/// Makes `folder` and what is missing above it, open to its owner only, and durable.
///
/// # Errors
/// Those of the file system.
pub fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    folder.ancestors().skip(1).take(2).filter(|above| above.is_dir()).try_for_each(sync_folder)
}

/// Makes names in `folder` durable.
///
/// # Errors
/// Those of the file system.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
