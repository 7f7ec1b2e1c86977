//! What a container is to mount, under names of its own for as long as its mounts are made.
//!
//! ```text
//!   its layers, its files, its volumes ---- open ----> descriptor ---- clone, translate ----> RUN/CONTAINER-views/NUMBER
//! ```
//!
//! There are reasons for that. Where a container has users of its own, a view translates between them and the disk
//! ([`super::users`]). And a folder of a volume is opened within the volume, because whoever has that can put links into it at
//! any moment; what was opened is mounted, whatever is there then. And what an NFS server has is mounted there first
//! ([`super::nfs`]).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use containerd_client::types::Mount;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::libc;
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{Mode, mkdirat};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::layers;
use super::users::Users;

/// Rights of a folder of a volume that was not there.
const NEW: Mode = Mode::from_bits_truncate(0o755);

/// A volume that a container is to have.
#[derive(Debug)]
pub(super) struct Volume {
    /// Where in the container.
    pub(super) target: String,
    /// Its data.
    pub(super) data: PathBuf,
    /// The folder of it, if it is not all of it.
    pub(super) subpath: Option<String>,
}

/// The views of one container, until this is dropped; what was mounted from them stays.
#[derive(Debug)]
pub(super) struct Views {
    at: PathBuf,
    /// Between whose users and the disk they translate, and by which user namespace.
    users: Option<(Users, File)>,
    count: usize,
}

impl Views {
    /// Begins at a folder, without what an agent before this one may have left there. `users`: the container's, if they are
    /// not the machine's.
    pub(super) fn new(at: PathBuf, users: Option<Users>) -> io::Result<Self> {
        Self::close(&at)?;
        let users = users.map(|users| File::open(users.path()).map(|namespace| (users, namespace)));
        Ok(Self { at, users: users.transpose()?, count: 0 })
    }

    /// A view of a snapshot that no container runs on yet: the mount is changed to name the image's layers there. What the
    /// container writes has the numbers that its users have on the machine, and goes with it: the kernel makes an overlay as
    /// the machine's root, who is nobody where it is translated.
    pub(super) fn layers(&mut self, mounts: &mut [Mount]) -> io::Result<()> {
        let Some((users, _)) = &self.users else { return Ok(()) };
        let unknown =
            || io::Error::new(io::ErrorKind::InvalidInput, "a snapshot that is no overlay of folders");
        chown(layers::upper(mounts).ok_or_else(unknown)?, Some(users.root()), Some(users.root()))?;
        let snapshots = layers::snapshots(mounts).ok_or_else(unknown)?.to_owned();
        let view = self.add(&folder(&snapshots)?)?;
        for option in mounts.iter_mut().flat_map(|mount| &mut mount.options) {
            if let Some(folders) = option.strip_prefix("lowerdir=") {
                *option = format!("lowerdir={}", moved(folders, &snapshots, &view).ok_or_else(unknown)?);
            }
        }
        Ok(())
    }

    /// Where the files are that were made for the container.
    pub(super) fn files(&mut self, files: &Path) -> io::Result<PathBuf> {
        if self.users.is_none() { Ok(files.to_owned()) } else { self.add(&folder(files)?) }
    }

    /// Where its volumes are, by where they are to be in the container.
    pub(super) fn volumes(&mut self, volumes: Vec<Volume>) -> io::Result<BTreeMap<String, PathBuf>> {
        let mut views = BTreeMap::new();
        for Volume { target, data, subpath } in volumes {
            let view = match subpath {
                Some(path) => {
                    let folder = within(&data, &path)
                        .map_err(|error| io::Error::new(error.kind(), format!("folder {path:?}: {error}")))?;
                    self.add(&folder)?
                }
                None if self.users.is_some() => self.add(&folder(&data)?)?,
                None => data,
            };
            views.insert(target, view);
        }
        Ok(views)
    }

    /// A place for a mount that somebody else makes.
    pub(super) fn place(&mut self) -> io::Result<PathBuf> {
        let place = self.at.join(self.count.to_string());
        self.count += 1;
        fs::create_dir_all(&place)?;
        Ok(place)
    }

    fn add(&mut self, folder: &OwnedFd) -> io::Result<PathBuf> {
        let view = self.place()?;
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let tree = open_tree(folder, "", flags)?;
        if let Some((_, namespace)) = &self.users {
            translate(&tree, namespace)?;
        }
        move_mount(&tree, "", CWD, &view, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        Ok(view)
    }

    /// Takes the names away, which need not be there. Nothing in the folders is touched.
    pub(super) fn close(at: &Path) -> io::Result<()> {
        let entries = match fs::read_dir(at) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let view = entry?.path();
            match umount2(&view, MntFlags::MNT_DETACH) {
                // Not mounted: half made. One that is not empty is not removed.
                Ok(()) | Err(Errno::EINVAL) => fs::remove_dir(&view)?,
                Err(error) => return Err(error.into()),
            }
        }
        fs::remove_dir(at)
    }
}

impl Drop for Views {
    fn drop(&mut self) {
        if let Err(error) = Self::close(&self.at) {
            tracing::warn!(at = %self.at.display(), %error, "views of a container stay mounted");
        }
    }
}

fn folder(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Opens a folder of a volume, and makes what of it is not there. Links lead within the volume, wherever they say.
fn within(volume: &Path, path: &str) -> io::Result<OwnedFd> {
    let root = folder(volume)?;
    let mut folder = root.try_clone()?;
    for (end, _) in path.match_indices('/').chain([(path.len(), "")]) {
        let begin = path[..end].rfind('/').map_or(0, |slash| slash + 1);
        match mkdirat(&folder, &path[begin..end], NEW) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        folder = openat2(&root, &path[..end], how)?;
    }
    Ok(folder)
}

/// The same folders below another one; `None`: one of them is not below `from`.
fn moved(folders: &str, from: &Path, to: &Path) -> Option<String> {
    let moved = folders.split(':').map(|folder| {
        let inside = Path::new(folder).strip_prefix(from).ok()?;
        to.join(inside).into_os_string().into_string().ok()
    });
    Some(moved.collect::<Option<Vec<_>>>()?.join(":"))
}

/// `struct mount_attr` of the kernel (mount_setattr(2)).
#[repr(C)]
struct Attributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// `MOUNT_ATTR_IDMAP` (`linux/mount.h`).
const IDMAP: u64 = 0x0010_0000;

/// Has a mount that is nowhere yet translate by a user namespace.
fn translate(tree: impl AsFd, namespace: &File) -> io::Result<()> {
    let unusable = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let namespace = u64::try_from(namespace.as_raw_fd()).map_err(unusable)?;
    let attributes = Attributes { set: IDMAP, clear: 0, propagation: 0, user_namespace: namespace };
    // SAFETY: the kernel reads an empty text and as many bytes as it is told, and both outlive the call.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    Errno::result(answer).map(drop).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    #[test]
    fn a_folder_of_a_volume_is_within_it_and_made_if_it_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let (volume, outside) = (folder.path().join("volume"), folder.path().join("outside"));
        fs::create_dir_all(volume.join("app/data")).unwrap();
        fs::create_dir(&outside).unwrap();
        symlink("app", volume.join("current")).unwrap();
        symlink("../outside", volume.join("up")).unwrap();
        symlink(&outside, volume.join("out")).unwrap();
        fs::write(volume.join("file"), "").unwrap();
        let opened = |path: &str| {
            let found = within(&volume, path).map(File::from)?;
            Ok::<_, io::Error>(found.metadata()?.ino())
        };
        let is = |path: &str| fs::metadata(volume.join(path)).unwrap().ino();
        assert_eq!(opened("app/data").unwrap(), is("app/data"));
        assert_eq!(opened("current/data").unwrap(), is("app/data"));
        assert_eq!(opened("app/new/folder").unwrap(), is("app/new/folder"));
        assert_eq!(is("app/new"), opened("current/new").unwrap());
        // What would lead out of it leads nowhere.
        for path in ["up/x", "out/x", "up", "out", "file", "file/x"] {
            assert!(opened(path).is_err(), "{path}");
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn views_are_there_for_as_long_as_they_are_wanted_and_what_is_in_them_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (volume, at) = (folder.path().join("volume"), folder.path().join("views"));
        fs::create_dir_all(volume.join("a")).unwrap();
        fs::write(volume.join("a/file"), "kept").unwrap();
        let open = || {
            let mut views = Views::new(at.clone(), None).unwrap();
            let part = |target: &str, subpath: Option<&str>| Volume {
                target: target.to_owned(),
                data: volume.clone(),
                subpath: subpath.map(str::to_owned),
            };
            let found = views.volumes(vec![part("/srv", Some("a")), part("/all", None)]).unwrap();
            (views, found)
        };
        let (views, found) = open();
        assert_eq!(fs::read_to_string(found["/srv"].join("file")).unwrap(), "kept");
        assert_eq!(found["/all"], volume);
        // As after an agent that was killed.
        std::mem::forget(views);
        drop(open());
        assert!(!at.exists());
        assert_eq!(fs::read_to_string(volume.join("a/file")).unwrap(), "kept");
        // What is no view is not removed.
        fs::create_dir_all(at.join("0")).unwrap();
        fs::write(at.join("0/file"), "kept").unwrap();
        assert!(Views::close(&at).is_err());
        assert_eq!(fs::read_to_string(at.join("0/file")).unwrap(), "kept");
    }

    #[test]
    fn layers_are_named_in_their_view_and_no_other_folder_is() {
        let (from, to) = (Path::new("/var/lib/snapshots"), Path::new("/run/a-views/0"));
        let moved = |folders| moved(folders, from, to);
        assert_eq!(
            moved("/var/lib/snapshots/12/fs:/var/lib/snapshots/3/fs").unwrap(),
            "/run/a-views/0/12/fs:/run/a-views/0/3/fs"
        );
        assert_eq!(moved("/var/lib/snapshots/12/fs:/var/lib/other/3/fs"), None);
    }
}
