//! What to do with volumes.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::quantity;

/// See [`super::Command::Volumes`].
#[derive(Debug, Subcommand)]
pub enum Volumes {
    /// List them
    #[command(after_help = "Example:\n  hivemind volumes list")]
    List(VolumesList),
    /// Have a volume's data deleted, after a time in which that can be taken back
    #[command(
        after_help = "Examples:\n  hivemind volumes remove data\n  hivemind volumes remove data --grace 0s --yes"
    )]
    Remove(VolumesRemove),
    /// Keep what is in a volume in a file: compressed, encrypted, and read as it is written
    #[command(
        long_about = "Keep what is in a volume in a file: compressed (Zstandard) and encrypted (age), read as it is written, \
                      and there under its name when it is whole. Containers go on meanwhile, and what they change may be in \
                      it or not; a database wants its own dump, or to be stopped.\n\nIt is encrypted to a passphrase, which is asked \
                      for or in HIVEMIND_PASSPHRASE, or to the public keys of those who may read it. `age --decrypt`, `zstd -d` and \
                      `tar` read it too.\n\nTo standard output (-) it can go on elsewhere, as to `aws s3 cp - s3://backups/data`.",
        after_help = "Examples:\n  hivemind volumes backup data data.backup\n  hivemind volumes backup data/1 - --recipient age1…"
    )]
    Backup(VolumesBackup),
    /// Read a backup to its end, and say what is in it
    #[command(after_help = "Example:\n  hivemind volumes check data.backup --identity key.txt")]
    Check(VolumesCheck),
    /// Keep what is in a volume now on its own machine, in seconds
    #[command(
        long_about = "Keep what is in a volume now on its own machine: in seconds, and without a network, as before an upgrade. \
                      `hivemind volumes restore --snapshot` gives it back. The disk that is lost takes it along: for that there is \
                      `hivemind volumes backup`.\n\nThe containers that have the volume stand still while it is read, so that all of \
                      it is of one moment, as after a power cut; what takes longer than --still is given up. With --still 0s they \
                      go on.\n\nA volume has 32 snapshots at most, and none makes the disk more than 85 % full.",
        after_help = "Examples:\n  hivemind volumes snapshot data before-upgrade\n  hivemind volumes snapshot data --keep 7\n  hivemind volumes snapshot data before-upgrade --remove --yes"
    )]
    Snapshot(VolumesSnapshot),
    /// List a volume's snapshots
    #[command(after_help = "Example:\n  hivemind volumes snapshots data")]
    Snapshots(VolumesSnapshots),
    /// Give a volume what a backup or a snapshot has; or take back that its data is deleted
    #[command(
        long_about = "With --from, give a volume what a backup has, instead of all that is in it, or make it anew; with --snapshot, \
                      what it had then. It has the one or the other whatever happens meanwhile. No container may have it: push its \
                      workload with `scale: 0` before.\n\n\
                      Any tar archive will do, plain, or compressed with gzip or Zstandard.\n\n\
                      Without either, take back that a volume's data is deleted, where it is not deleted yet.",
        after_help = "Examples:\n  hivemind volumes restore data --from data.backup\n  hivemind volumes restore data --from data.tar.gz --on edge-2\n  hivemind volumes restore data --snapshot before-upgrade\n  hivemind volumes restore data"
    )]
    Restore(VolumesRestore),
}

/// See [`Volumes::List`].
#[derive(Debug, Default, Args)]
pub struct VolumesList {
    /// Only this namespace; all if not given
    #[arg(long, short)]
    pub namespace: Option<String>,
}

/// A volume, by name.
#[derive(Debug, Args)]
pub struct VolumeName {
    /// The volume
    #[arg(value_name = "VOLUME")]
    pub name: String,
    /// Its namespace
    #[arg(long, short, default_value = hivemind_spec::document::DEFAULT_NAMESPACE)]
    pub namespace: String,
}

/// See [`Volumes::Remove`].
#[derive(Debug, Args)]
pub struct VolumesRemove {
    /// Which
    #[command(flatten)]
    pub volume: VolumeName,
    /// How long each machine keeps the data, counting time in which it runs
    #[arg(long, default_value = "7d", value_parser = quantity::duration_ms)]
    pub grace: u64,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
}

/// A volume, or one of its parts, as `hivemind volumes` lists them.
#[derive(Debug, Args)]
pub struct Volume {
    /// The volume; VOLUME/NUMBER where each replica has its own
    #[arg(value_name = "VOLUME")]
    pub name: String,
    /// Its namespace
    #[arg(long, short, default_value = hivemind_spec::document::DEFAULT_NAMESPACE)]
    pub namespace: String,
    /// The machine, by name or id, where each has its own
    #[arg(long, value_name = "NODE")]
    pub on: Option<String>,
}

/// See [`Volumes::Backup`].
#[derive(Debug, Args)]
pub struct VolumesBackup {
    /// Which
    #[command(flatten)]
    pub volume: Volume,
    /// Where to; - is standard output
    pub file: PathBuf,
    /// A public key of age (age1…) to encrypt it to, and no passphrase; repeat for several
    #[arg(long, value_name = "KEY", conflicts_with = "plain")]
    pub recipient: Vec<String>,
    /// Do not encrypt it
    #[arg(long)]
    pub plain: bool,
    /// Replace a file that is there
    #[arg(long)]
    pub force: bool,
}

/// See [`Volumes::Check`].
#[derive(Debug, Args)]
pub struct VolumesCheck {
    /// The backup; - is standard input
    pub file: PathBuf,
    /// A file with the private key (AGE-SECRET-KEY-1…) it is encrypted to
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
}

/// See [`Volumes::Snapshot`].
#[derive(Debug, Args)]
pub struct VolumesSnapshot {
    /// Of which
    #[command(flatten)]
    pub volume: Volume,
    /// What it is called, a name that none of the volume's has yet; after the time if not given
    #[arg(value_name = "SNAPSHOT")]
    pub snapshot: Option<String>,
    /// How long the containers that have the volume may stand still for it, a minute at most
    #[arg(long, default_value = "10s", value_parser = quantity::duration_ms, conflicts_with = "remove")]
    pub still: u64,
    /// How many of the volume's are kept, with this one; the oldest are removed
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "remove")]
    pub keep: Option<u32>,
    /// Remove the snapshot of that name, and make none
    #[arg(long, requires = "snapshot")]
    pub remove: bool,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
}

/// See [`Volumes::Snapshots`].
#[derive(Debug, Args)]
pub struct VolumesSnapshots {
    /// Of which
    #[command(flatten)]
    pub volume: Volume,
}

/// See [`Volumes::Restore`].
#[derive(Debug, Args)]
pub struct VolumesRestore {
    /// Which
    #[command(flatten)]
    pub volume: Volume,
    /// The backup; - is standard input
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,
    /// The snapshot
    #[arg(long, value_name = "SNAPSHOT", conflicts_with = "from")]
    pub snapshot: Option<String>,
    /// A file with the private key (AGE-SECRET-KEY-1…) it is encrypted to
    #[arg(long, value_name = "FILE", requires = "from")]
    pub identity: Option<PathBuf>,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
}
