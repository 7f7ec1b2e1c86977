//! Clusters of emulated machines for tests and for trying things out, with everything that can go wrong.
//!
//! A [`Lab`] is a network of its own (a namespace with one bridge, DHCP and DNS); a [`Machine`] is a QEMU process with
//! a disk of its own on a shared image. Nothing outlives the process that made it, not even when it is killed.
//!
//! ```no_run
//! # fn main() -> hivemind_qemu::Result<()> {
//! use hivemind_qemu::{Image, Lab, MachineOptions};
//! use std::time::Duration;
//!
//! let lab = Lab::new("pair")?;
//! let image = Image::built()?;
//! let a = lab.machine(MachineOptions::with_image("a", &image))?;
//! let b = lab.machine(MachineOptions::with_image("b", &image))?;
//! a.power_on()?;
//! b.power_on()?;
//! a.wait_for_line("ready", Duration::from_secs(60))?;
//! lab.partition(&[&a], &[&b]);
//! lab.heal();
//! b.power_cut();
//! # Ok(())
//! # }
//! ```

mod arguments;
mod cache;
mod disk;
mod emulation;
mod error;
mod forward;
mod gdb;
mod governor;
mod image;
pub mod images;
mod kvm;
mod lab;
mod machine;
mod nbd;
mod network;
mod platter;
mod process;
mod qmp;
mod random;
mod registry;
mod serial;
mod services;
mod state;
mod sys;
mod wire;

pub use cache::{cache_dir, target_dir};
pub use disk::{Disk, DiskCache};
pub use error::{Error, Result};
pub use forward::Forward;
pub use image::{Boot, Image};
pub use lab::{Lab, LabOptions};
pub use machine::{Config, Hardware, Machine, MachineOptions, Power};
pub use network::{Door, GATEWAY};
pub use registry::{EmptyRegistry, GuardedRegistry, TestRegistry};
pub use state::{LiveLab, live_labs, sweep};
pub use wire::{Impairment, Mac};
