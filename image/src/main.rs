//! See the package description. `image/build` calls this with the folders set.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Parser;
use hivemind_image::build::{Options, build, refresh_lock};
use hivemind_image::cache::project_folder;

/// Builds the disk image from locked Debian packages and the daemon.
#[derive(Parser)]
#[command(name = "image/build", after_help = "Example:\n  image/build --out /tmp/hivemind")]
struct Arguments {
    /// Where the results go [default: the folder `image` in cargo's target folder]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Take the newest versions of the Debian packages into rootfs/packages.lock, and build nothing
    #[arg(long)]
    refresh_lock: bool,

    /// Use `hivemindd` and `hivemind-init` from this folder instead of building them (for experiments)
    #[arg(long, value_name = "DIR")]
    daemon: Option<PathBuf>,

    /// The version that this release is shown as [default: the project's]
    #[arg(long, value_name = "VERSION")]
    version: Option<String>,

    /// The oldest version that may take this release's place [default: the project's]
    #[arg(long, value_name = "VERSION")]
    minimum: Option<String>,

    /// Words for the end of the kernel's command line when the machine is started by its firmware
    #[arg(long, value_name = "WORDS")]
    append: Option<String>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    // What cargo says now comes first: where checkouts share a target folder, this program may have
    // been compiled in another one, and would build that one's daemon.
    let package = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let checkout = Path::new(&package).parent().context("the package has no parent folder")?;
    let cache = project_folder()?;
    if arguments.refresh_lock {
        let lock = refresh_lock(checkout, &cache)?;
        eprintln!("rootfs/packages.lock: {} packages", lock.packages.len());
        return Ok(());
    }
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| cache.join("target"), PathBuf::from);
    let options = Options {
        checkout: checkout.to_owned(),
        out: arguments.out.unwrap_or_else(|| target.join("image")),
        cache,
        target,
        daemon: arguments.daemon,
        version: arguments.version,
        minimum: arguments.minimum,
        append: arguments.append,
    };
    build(&options)?;
    Ok(())
}
