//! What a new volume begins with: what the image has where the volume is mounted, with its owners and modes, as Docker
//! does it.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use containerd_client::types::Mount;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;

use crate::runtime::layers;

/// Folders within folders that are followed: deeper than any image has, and an end to what was made to have none.
const MAX_DEPTH: usize = 256;

/// An image's files, mounted until this is dropped.
pub(in crate::runtime) struct Image {
    at: PathBuf,
    root: OwnedFd,
}

impl Image {
    /// Mounts a snapshot that no container runs on yet at a folder, which is made.
    pub(in crate::runtime) fn open(mounts: &[Mount], at: &Path) -> io::Result<Self> {
        let [layers] = mounts else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a snapshot that is not one mount"));
        };
        fs::create_dir_all(at)?;
        let options = layers.options.iter().filter(|option| option.contains('='));
        let options = options.map(String::as_str).collect::<Vec<_>>().join(",");
        // The kernel takes a page of options, and an image may have a hundred layers in one long path.
        let long = layers::snapshots(mounts).map(|folder| Ok::<_, io::Error>((folder, File::open(folder)?)));
        let long = long.transpose()?;
        let options = match &long {
            Some((folder, open)) => {
                options.replace(&*folder.to_string_lossy(), &format!("/proc/self/fd/{}", open.as_raw_fd()))
            }
            None => options,
        };
        let (source, kind) = (Path::new(&layers.source), layers.r#type.as_str());
        mount(Some(source), at, Some(kind), MsFlags::MS_RDONLY, Some(options.as_str()))?;
        match File::open(at) {
            Ok(root) => Ok(Self { at: at.to_owned(), root: root.into() }),
            Err(error) => {
                let _ = umount2(at, MntFlags::MNT_DETACH);
                Err(error)
            }
        }
    }

    /// Copies what the image has at `path` into an empty folder; nothing where it has no folder there.
    pub(super) fn copy(&self, path: &str, into: &Path) -> io::Result<()> {
        let relative = path.trim_start_matches('/');
        let relative = if relative.is_empty() { "." } else { relative };
        // Links in the image lead within the image, wherever they say.
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .mode(Mode::empty())
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let folder = match openat2(&self.root, relative, how) {
            Ok(folder) => folder,
            Err(nix::Error::ENOENT | nix::Error::ENOTDIR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let from = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
        copy_folder(&from, into, &File::from(folder).metadata()?, MAX_DEPTH)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.at, MntFlags::MNT_DETACH) {
            tracing::warn!(at = %self.at.display(), %error, "an image's files stay mounted");
        }
        let _ = fs::remove_dir(&self.at);
    }
}

/// Copies what is in a folder, and then its owner and mode. Links are copied and not followed.
fn copy_folder(from: &Path, into: &Path, about: &Metadata, depth: usize) -> io::Result<()> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the image's folders are too deep"));
    };
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        copy_one(&entry.path(), &into.join(&name), &name, depth)?;
    }
    own(into, about)
}

fn copy_one(from: &Path, to: &Path, name: &OsStr, depth: usize) -> io::Result<()> {
    let about = fs::symlink_metadata(from)?;
    let kind = about.file_type();
    if kind.is_dir() {
        fs::create_dir(to)?;
        copy_folder(from, to, &about, depth)
    } else if kind.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
        lchown(to, Some(about.uid()), Some(about.gid()))
    } else if kind.is_file() {
        fs::copy(from, to)?;
        File::open(to)?.set_modified(about.modified()?)?;
        own(to, &about)
    } else if kind.is_fifo() {
        nix::unistd::mkfifo(to, Mode::empty())?;
        own(to, &about)
    } else {
        // Devices do not work in volumes, and nobody listens at sockets in an image.
        tracing::debug!(?name, "is neither file nor folder, and not in the volume");
        Ok(())
    }
}

fn own(path: &Path, about: &Metadata) -> io::Result<()> {
    give(path, about.uid(), about.gid(), about.mode())
}

/// Gives a file an owner, a group and a mode. Owner first: changing it takes bits of the mode.
pub(super) fn give(path: &Path, uid: u32, gid: u32, mode: u32) -> io::Result<()> {
    chown(path, Some(uid), Some(gid))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_owners_modes_and_links_and_does_not_leave_the_image() {
        let folder = tempfile::tempdir().unwrap();
        let (root, into) = (folder.path().join("image"), folder.path().join("volume"));
        fs::create_dir_all(root.join("var/lib/app/sub")).unwrap();
        fs::create_dir(&into).unwrap();
        fs::write(root.join("var/lib/app/file"), "content").unwrap();
        fs::set_permissions(root.join("var/lib/app/file"), fs::Permissions::from_mode(0o4750)).unwrap();
        fs::set_permissions(root.join("var/lib/app"), fs::Permissions::from_mode(0o700)).unwrap();
        symlink("/etc/passwd", root.join("var/lib/app/link")).unwrap();
        // Absolute, as some images have it: leads to the image's own folder.
        symlink("/var/lib", root.join("data")).unwrap();
        symlink("/etc", root.join("out")).unwrap();
        let image =
            std::mem::ManuallyDrop::new(Image { at: root.clone(), root: File::open(&root).unwrap().into() });
        image.copy("/data/app", &into).unwrap();
        assert_eq!(fs::read_to_string(into.join("file")).unwrap(), "content");
        assert_eq!(fs::metadata(into.join("file")).unwrap().mode() & 0o7777, 0o4750);
        assert_eq!(fs::metadata(&into).unwrap().mode() & 0o7777, 0o700);
        assert!(into.join("sub").is_dir());
        assert_eq!(fs::read_link(into.join("link")).unwrap(), Path::new("/etc/passwd"));
        let empty = folder.path().join("empty");
        fs::create_dir(&empty).unwrap();
        for path in ["/out", "/nothing/there", "/var/lib/app/file"] {
            image.copy(path, &empty).unwrap();
        }
        assert_eq!(fs::read_dir(&empty).unwrap().count(), 0, "the machine's own files");
    }
}
