//! A machine's disk: an overlay on an image that all machines share.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use crate::error::{Context, Result};
use crate::machine::Hardware;
use crate::nbd::PoweredDisk;
use crate::platter::Platter;
use crate::process::run;

/// The disk of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// A raw image to start from; it is never written to. Without one the disk is empty.
    pub base: Option<PathBuf>,
    /// The size in bytes, if the disk is to be larger than its image. Space is used only when written.
    pub size: Option<u64>,
    /// What survives a power cut.
    pub cache: DiskCache,
}

/// What survives a power cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DiskCache {
    /// What the machine has written, flushed or not, as the host keeps it: the fastest way. (`cache=unsafe`)
    #[default]
    Unsafe,
    /// Like `Unsafe`, but flushes reach the host's disk. (`cache=writeback`)
    WriteBack,
    /// Every write goes to the host's disk, without its page cache. (`cache=none`)
    Direct,
    /// The disk has a cache of 64 MiB, of which a power cut loses about half of what was not flushed, block by block
    /// and in no order: what real disks do. The seed decides which half.
    Volatile {
        /// The seed.
        seed: u64,
    },
}

/// The size of a disk without image and without a size of its own: the smallest medium Hivemind is meant for.
const EMPTY_DISK: u64 = 4 << 30;

/// A disk made for one machine.
#[derive(Debug)]
pub(crate) enum Overlay {
    /// QEMU keeps the overlay; what it has written survives its end.
    Kept { file: PathBuf, cache: &'static str },
    /// We are the disk, and lose what a disk loses.
    Ours(Arc<Mutex<Platter>>),
}

/// A disk that was given power: what QEMU needs to know about it, and what must stay until the power goes.
pub(crate) struct Powered {
    pub(crate) arguments: Vec<OsString>,
    pub(crate) inherit: Option<UnixStream>,
    pub(crate) disk: Option<PoweredDisk>,
}

impl Overlay {
    pub(crate) fn create(dir: &Path, disk: &Disk) -> Result<Overlay> {
        let base = disk.base.as_deref().map(|base| keep(base, &dir.join("base.img"))).transpose()?;
        let cache = match disk.cache {
            DiskCache::Unsafe => "unsafe",
            DiskCache::WriteBack => "writeback",
            DiskCache::Direct => "none",
            DiskCache::Volatile { seed } => return Overlay::ours(dir, base, disk.size, seed),
        };
        let file = dir.join("disk.qcow2");
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "-f", "qcow2"]);
        if let Some(base) = &base {
            command.args(["-F", "raw", "-b"]).arg(base);
        }
        command.arg(&file);
        if base.is_none() || disk.size.is_some() {
            command.arg(disk.size.unwrap_or(EMPTY_DISK).to_string());
        }
        run(&mut command)?;
        Ok(Overlay::Kept { file, cache })
    }

    fn ours(dir: &Path, base: Option<PathBuf>, size: Option<u64>, seed: u64) -> Result<Overlay> {
        let open = |path: PathBuf| File::open(&path).context(format!("open {}", path.display()));
        let base = base.map(open).transpose()?;
        let length = base.as_ref().and_then(|base| base.metadata().ok()).map(|metadata| metadata.len());
        let file = dir.join("disk.written");
        let written = File::options().create(true).truncate(true).read(true).write(true).open(&file);
        let written = written.context(format!("create {}", file.display()))?;
        let size = size.or(length).unwrap_or(EMPTY_DISK);
        Ok(Overlay::Ours(Arc::new(Mutex::new(Platter::new(base, written, size, seed)))))
    }

    /// Gives `work` the disk as a raw file, and keeps what it made of it. The machine must be off.
    pub(crate) fn open<T>(&self, dir: &Path, work: impl FnOnce(&Path) -> T) -> Result<T> {
        let Overlay::Kept { file, .. } = self else {
            let action = "open a disk that loses what was not flushed";
            return Err(io::Error::from(io::ErrorKind::Unsupported)).context(action);
        };
        let (raw, new) = (dir.join("disk.raw"), dir.join("disk.new"));
        let convert = |formats: [&str; 2], from: &Path, to: &Path| {
            let mut command = Command::new("qemu-img");
            run(command.args(["convert", "-q", "-f", formats[0], "-O", formats[1]]).args([from, to]))
        };
        convert(["qcow2", "raw"], file, &raw)?;
        let made = work(&raw);
        convert(["raw", "qcow2"], &raw, &new)?;
        fs::rename(&new, file).context(format!("replace {}", file.display()))?;
        fs::remove_file(&raw).context(format!("remove {}", raw.display()))?;
        Ok(made)
    }

    pub(crate) fn power_on(&self, hardware: Hardware) -> Result<Powered> {
        let (drive, inherit, disk) = match self {
            Overlay::Kept { file, cache } => {
                // In QEMU's option syntax a comma in a value is written twice.
                let file = file.to_string_lossy().replace(',', ",,");
                (format!("file={file},format=qcow2,cache={cache},discard=unmap"), None, None)
            }
            Overlay::Ours(platter) => {
                let (ours, of_qemu) = UnixStream::pair().context("make the disk's socket")?;
                let disk = PoweredDisk::start(ours, Arc::clone(platter)).context("start the disk")?;
                let fd = of_qemu.as_raw_fd();
                let drive = format!("driver=nbd,server.type=fd,server.str={fd},cache=writeback");
                (drive, Some(of_qemu), Some(disk))
            }
        };
        let arguments = vec![
            "-drive".into(),
            format!("if=none,id=disk0,{drive}").into(),
            "-device".into(),
            // Index 0 belongs to a kernel that QEMU loads itself.
            format!("{},drive=disk0,bootindex=1", hardware.disk()).into(),
        ];
        Ok(Powered { arguments, inherit, disk })
    }
}

/// Keeps a file as it is now for a machine's life, even when a new build replaces it meanwhile: by a hard link, or by
/// its own path when the cache is on another file system.
pub(crate) fn keep(file: &Path, link: &Path) -> Result<PathBuf> {
    let file = fs::canonicalize(file).context(format!("find {}", file.display()))?;
    match fs::hard_link(&file, link) {
        Ok(()) => Ok(link.to_owned()),
        Err(_) => Ok(file),
    }
}
