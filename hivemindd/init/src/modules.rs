//! Kernel modules: no `modprobe`, only lists of files in the order to load them, made when the image
//! was built; those for hardware are in `drivers.rs`. Checking a module's signature is most of what loading it takes, so what neither PID 1 nor
//! the API needs is on a list of its own, which the agent loads.

use std::fs::File;
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use super::console::line;

/// What the agent loads.
const LATE_LIST: &str = "/usr/lib/hivemind/modules.late";

/// Where the kernel shows the modules it has.
const LOADED: &str = "/sys/module";

/// `MODULE_INIT_COMPRESSED_FILE` of `linux/module.h`: the kernel decompresses.
const COMPRESSED: u32 = 4;

/// Loads what containers need and the start of the agent does not, while everything else goes before:
/// the calling thread has the lowest priority from then on. Tells what could not be loaded. To be
/// called outside PID 1.
pub fn load_late() -> Vec<String> {
    super::sys::yield_to_others();
    let text = match std::fs::read_to_string(LATE_LIST) {
        Ok(text) => text,
        Err(error) => return vec![format!("{LATE_LIST}: {error}")],
    };
    // After a restart of the agent most are there; asking the kernel would have it check them again.
    let missing = parse_list(&text).map(Path::new).filter(|path| !is_loaded(path));
    missing.filter_map(|path| Some(format!("{}: {}", path.display(), try_load(path).err()?))).collect()
}

fn is_loaded(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.split('.').next().unwrap_or_default().replace('-', "_");
    Path::new(LOADED).join(name).exists()
}

/// Loads what the file lists; what cannot be loaded is said and left out. Returns how many are loaded.
pub(super) fn load_list(list: &Path) -> usize {
    let text = std::fs::read_to_string(list).unwrap_or_else(|error| {
        line(&format!("no kernel modules: {}: {error}", list.display()));
        String::new()
    });
    parse_list(&text).map(Path::new).filter(|path| load(path)).count()
}

/// The paths of a list: one per line, `#` starts a comment.
fn parse_list(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()).filter(|line| !line.is_empty())
}

/// Loads a module that is not there yet. Says why it cannot be, unless it is for hardware that is not here.
pub(super) fn load(path: &Path) -> bool {
    if is_loaded(path) {
        return true;
    }
    match try_load(path) {
        Ok(()) => true,
        Err(Errno::EEXIST) => true,
        Err(Errno::ENODEV) => false,
        Err(error) => {
            line(&format!("kernel module {}: {error}", path.display()));
            false
        }
    }
}

fn try_load(path: &Path) -> Result<(), Errno> {
    let file = File::open(path).map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    finit_module(file, c"", flags_for(path))
}

fn flags_for(path: &Path) -> ModuleInitFlags {
    if path.extension().is_some_and(|extension| extension != "ko") {
        ModuleInitFlags::from_bits_retain(COMPRESSED)
    } else {
        ModuleInitFlags::empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_keeps_its_order_without_comments_and_blank_lines() {
        let text = "# made by the build\n/m/b.ko\n\n  /m/a.ko.xz # needs b\n/m/c.ko";
        assert_eq!(parse_list(text).collect::<Vec<_>>(), ["/m/b.ko", "/m/a.ko.xz", "/m/c.ko"]);
    }

    #[test]
    fn compressed_modules_are_told_from_plain_ones_by_name() {
        assert_eq!(flags_for(Path::new("/m/a.ko")).bits(), 0);
        assert_eq!(flags_for(Path::new("/m/a.ko.xz")).bits(), COMPRESSED);
        assert_eq!(flags_for(Path::new("/m/a.ko.zst")).bits(), COMPRESSED);
    }
}
