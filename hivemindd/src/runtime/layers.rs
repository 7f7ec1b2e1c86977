//! Where the layers of a container are, from what containerd's snapshotter says how to mount them: an overlay of folders
//! `…/snapshots/NUMBER/fs`, all beside each other.

use std::path::{Path, PathBuf};

use containerd_client::types::Mount;

/// The image's, topmost first.
pub(super) fn lower(mounts: &[Mount]) -> Vec<PathBuf> {
    values(mounts, "lowerdir").flat_map(|folders| folders.split(':')).map(PathBuf::from).collect()
}

/// Where the container's own files go.
pub(super) fn upper(mounts: &[Mount]) -> Option<&Path> {
    values(mounts, "upperdir").map(Path::new).next()
}

/// All that the overlay itself writes to: what it makes it makes in its work folder, and renames it.
pub(super) fn written(mounts: &[Mount]) -> Option<[&Path; 2]> {
    Some([upper(mounts)?, values(mounts, "workdir").map(Path::new).next()?])
}

/// The folder that all of them are in.
pub(super) fn snapshots(mounts: &[Mount]) -> Option<&Path> {
    let first = values(mounts, "lowerdir").next()?.split(':').next()?;
    Path::new(first).ancestors().nth(2).filter(|folder| folder.parent().is_some())
}

fn values<'a>(mounts: &'a [Mount], name: &str) -> impl Iterator<Item = &'a str> {
    let options = mounts.iter().flat_map(|mount| &mount.options);
    options.filter_map(move |option| option.strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_found_in_an_overlays_options() {
        let overlay = |options: &[&str]| {
            let options = options.iter().map(|option| (*option).to_owned()).collect();
            [Mount { options, ..Default::default() }]
        };
        let mounts =
            overlay(&["index=off", "workdir=/s/9/work", "upperdir=/s/9/fs", "lowerdir=/s/2/fs:/s/1/fs"]);
        assert_eq!(lower(&mounts), [Path::new("/s/2/fs"), Path::new("/s/1/fs")], "topmost first");
        assert_eq!(written(&mounts), Some([Path::new("/s/9/fs"), Path::new("/s/9/work")]));
        assert_eq!(snapshots(&mounts), Some(Path::new("/s")));
        assert_eq!(snapshots(&overlay(&["lowerdir=/2/fs"])), None, "not all of the machine");
        for other in [overlay(&["size=1"]), overlay(&[])] {
            assert_eq!((snapshots(&other), written(&other), lower(&other)), (None, None, Vec::new()));
        }
    }
}
