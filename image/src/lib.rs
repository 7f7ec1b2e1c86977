//! Builds the Hivemind disk image from locked Debian packages and the daemon.
//!
//! ```text
//! rootfs/packages.lock -> apt -> debian (mmdebstrap, keep.toml) -> root (squashfs, verity) -.
//! hivemindd, shim ------> programs ------------------------------> initramfs, uki ----------+-> disk, bundle
//! ```
//!
//! Nothing here needs privileges, loop devices or a network beyond the download of packages, and equal inputs give
//! equal bytes. Other packages use [`layout`] to find their way in an image and [`build::Output`] to find its files.

pub mod apt;
pub mod build;
mod bundle;
pub mod cache;
pub mod check;
pub mod debian;
pub mod disk;
pub mod elf;
pub mod initramfs;
pub mod layout;
pub mod lock;
pub mod modules;
pub mod process;
pub mod programs;
pub mod progress;
pub mod root;
pub mod uki;
pub mod verity;
