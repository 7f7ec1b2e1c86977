//! What a machine boots.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::target_dir;
use crate::error::{Context, Error, Result};

/// How a machine gets to its kernel.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Boot {
    /// QEMU loads the kernel itself: the fastest way.
    Direct {
        /// The kernel.
        kernel: PathBuf,
        /// The initial RAM disk.
        initrd: PathBuf,
        /// The kernel's command line.
        cmdline: String,
    },
    /// UEFI firmware finds the boot loader on the disk, as real hardware does.
    Firmware,
}

/// A disk image and how to boot it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The raw disk, shared by all machines and never written to.
    pub disk: PathBuf,
    /// The way to boot it.
    pub boot: Boot,
}

impl Image {
    /// The image `image/build` left in cargo's target folder, or in `$HIVEMIND_IMAGE_DIR`.
    pub fn built() -> Result<Image> {
        match std::env::var_os("HIVEMIND_IMAGE_DIR") {
            Some(dir) => Image::in_dir(Path::new(&dir)),
            None => Image::in_dir(&target_dir()?.join("image")),
        }
    }

    /// The image in a folder made by `image/build`: `hivemind-x86_64.img`, `vmlinuz`, `initrd.img`, `cmdline`.
    pub fn in_dir(dir: &Path) -> Result<Image> {
        let file = |what, name: &str| {
            let path = dir.join(name);
            if path.is_file() { Ok(path) } else { Err(Error::NoImage { what, path }) }
        };
        let cmdline = file("kernel command line", "cmdline")?;
        let cmdline = fs::read_to_string(&cmdline).context(format!("read {}", cmdline.display()))?;
        Ok(Image {
            disk: file("disk image", "hivemind-x86_64.img")?,
            boot: Boot::Direct {
                kernel: file("kernel", "vmlinuz")?,
                initrd: file("initial RAM disk", "initrd.img")?,
                cmdline: cmdline.trim().to_owned(),
            },
        })
    }

    /// The same disk, booted by the firmware.
    pub fn with_firmware(self) -> Image {
        Image { boot: Boot::Firmware, ..self }
    }
}
