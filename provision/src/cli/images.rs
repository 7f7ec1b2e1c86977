//! What to do with images that machines are given.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// See [`super::Command::Images`].
#[derive(Debug, Subcommand)]
pub enum Images {
    /// List them
    #[command(after_help = "Example:\n  hivemind images list")]
    List,
    /// Give machines the images in a file, for places without a registry
    #[command(
        long_about = "Give machines the images in a file: what `docker save`, `podman save`, `skopeo copy` or `buildx --output` \
                      write, compressed or not; or a folder with an OCI image layout.\n\nThe others have them from there when they run \
                      them. `hivemind push` takes the tags in a file for the images that were given by these names, before it \
                      asks registries. What is broken off goes on where it was.",
        after_help = "Examples:\n  hivemind images give shop.tar\n  hivemind images give shop.tar --name registry.example/shop:7 --on edge-1 --on edge-2\n  hivemind images give - --all"
    )]
    Give(ImagesGive),
    /// Put the images in files on a USB stick that machines take them from, in places without a network
    #[command(
        long_about = "Put the images in files on a USB stick, with a list that is signed with your key, which must be an admin's. A machine \
                      takes them when the stick is plugged in, as if you had given them; its file system is FAT with the label HIVEIMAGES \
                      (`mkfs.vfat -n HIVEIMAGES /dev/sdX1`). What another list left on it is removed.",
        after_help = "Example:\n  hivemind images stick /media/HIVEIMAGES shop.tar database.tar"
    )]
    Stick(ImagesStick),
    /// Keep an image no longer than those that machines fetched themselves
    #[command(after_help = "Example:\n  hivemind images take-back shop:7")]
    TakeBack(ImagesTakeBack),
}

/// See [`Images::Give`].
#[derive(Debug, Args)]
pub struct ImagesGive {
    /// The file or folder; - is standard input
    pub file: PathBuf,
    /// What the image is called, if not as in the file
    #[arg(long)]
    pub name: Option<String>,
    /// A machine that is to have it, by name or id; repeat for several. The one that is asked if not given
    #[arg(long, value_name = "NODE", conflicts_with = "all")]
    pub on: Vec<String>,
    /// All machines that are ready are to have it
    #[arg(long)]
    pub all: bool,
    /// Of images for several architectures, for which, as OCI names it
    #[arg(long, default_value = "amd64")]
    pub arch: String,
}

/// See [`Images::Stick`].
#[derive(Debug, Args)]
pub struct ImagesStick {
    /// The folder at which the stick is mounted
    pub folder: PathBuf,
    /// The files or folders with images, as for `images give`
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    /// Of images for several architectures, for which, as OCI names it
    #[arg(long, default_value = "amd64")]
    pub arch: String,
}

/// See [`Images::TakeBack`].
#[derive(Debug, Args)]
pub struct ImagesTakeBack {
    /// The image, by its name without a digest
    pub name: String,
}
