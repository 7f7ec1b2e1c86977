//! Who a container's process is: users and groups looked up in the image's own files, as Docker
//! does.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use hivemind_core::event::OperationError;

use super::client::permanent;

/// The largest `/etc/passwd` or `/etc/group` read, in bytes: an image must not fill the memory.
const MAX_DATABASE_BYTES: u64 = 1024 * 1024;

/// Who a process runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Supplementary groups.
    pub(super) groups: Vec<u32>,
    /// The home directory, if the image knows the user.
    pub(super) home: Option<String>,
}

/// An image's users and groups.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    /// Reads them from unpacked layers, topmost first, without mounting them.
    pub(super) fn from_layers(layers: &[PathBuf]) -> Self {
        let read = |name| layers.iter().find_map(|layer| read_in_layer(layer, name)).unwrap_or_default();
        Self { passwd: read("passwd"), group: read("group") }
    }

    /// Resolves `uid`, `uid:gid`, `name`, `name:group`; empty means root. `more` are groups by name or number that
    /// the user is in besides.
    pub(super) fn resolve(&self, user: &str, more: &[String]) -> Result<Identity, OperationError> {
        let (user, group) = match user.split_once(':') {
            Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
            None => (user, None),
        };
        let user = if user.is_empty() { "0" } else { user };
        let entry = self.user(user);
        let uid = match (&entry, user.parse()) {
            (Some(entry), _) => entry.uid,
            (None, Ok(uid)) => uid,
            (None, Err(_)) => {
                return Err(permanent(format!(
                    "the image has no user {user:?} in /etc/passwd; name one it has, or a number"
                )));
            }
        };
        let gid = match group {
            Some(group) => self.group(group)?,
            None => entry.as_ref().map_or(0, |entry| entry.gid),
        };
        // Docker gives supplementary groups only when no group was asked for.
        let mut groups = match (&entry, group) {
            (Some(entry), None) => self.groups_of(entry.name, gid),
            _ => Vec::new(),
        };
        for group in more {
            groups.push(self.group(group)?);
        }
        groups.sort_unstable();
        groups.dedup();
        Ok(Identity { uid, gid, groups, home: entry.map(|entry| entry.home.to_owned()) })
    }

    fn user(&self, user: &str) -> Option<User<'_>> {
        let users = || self.passwd.lines().filter_map(User::parse);
        // A name wins over a number that looks like it.
        users().find(|entry| entry.name == user).or_else(|| {
            let uid: u32 = user.parse().ok()?;
            users().find(|entry| entry.uid == uid)
        })
    }

    fn group(&self, group: &str) -> Result<u32, OperationError> {
        let named = self.group.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(group)).then(|| fields.nth(1)?.parse().ok())?
        });
        named.or_else(|| group.parse().ok()).ok_or_else(|| {
            permanent(format!("the image has no group {group:?} in /etc/group; name one it has, or a number"))
        })
    }

    fn groups_of(&self, user: &str, primary: u32) -> Vec<u32> {
        self.group
            .lines()
            .filter_map(|line| {
                let mut fields = line.split(':').skip(2);
                let gid = fields.next()?.parse().ok()?;
                fields.next()?.split(',').any(|member| member.trim() == user).then_some(gid)
            })
            .filter(|gid| *gid != primary)
            .collect()
    }
}

struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> User<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).unwrap_or_default();
        Some(Self { name, uid, gid, home })
    }
}

/// Reads `/etc/NAME` of one layer. `None`: the layer says nothing about it. Symbolic links are not
/// followed: they would lead out of the layer and into this machine.
fn read_in_layer(layer: &Path, name: &str) -> Option<String> {
    let etc = layer.join("etc");
    if !fs::symlink_metadata(&etc).ok()?.is_dir() {
        return None;
    }
    let path = etc.join(name);
    let kind = fs::symlink_metadata(&path).ok()?.file_type();
    if kind.is_char_device() {
        // An overlayfs whiteout: deleted in this layer.
        return Some(String::new());
    }
    if !kind.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    fs::File::open(&path).ok()?.take(MAX_DATABASE_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102:,,,:/var/www:/bin/false\n\
                     1234:x:7:8::/odd:/bin/sh\nbroken line\n"
                .into(),
            group: "root:x:0:\nweb:x:102:\ntls:x:200:web,other\naudio:x:29: web\n".into(),
        }
    }

    #[test]
    fn users_and_groups_resolve_as_in_docker() {
        let accounts = accounts();
        let resolve = |user| accounts.resolve(user, &[]).unwrap();
        let root = Identity { home: Some("/root".into()), ..Identity::default() };
        assert_eq!(resolve(""), root);
        assert_eq!(resolve("0"), root);
        let web = Identity { uid: 101, gid: 102, groups: vec![29, 200], home: Some("/var/www".into()) };
        assert_eq!(resolve("web"), web);
        assert_eq!(resolve("101"), web);
        assert_eq!(resolve("web:tls"), Identity { gid: 200, groups: vec![], ..web.clone() });
        assert_eq!(resolve("web:5"), Identity { gid: 5, groups: vec![], ..web });
        let more = ["tls".to_owned(), "5".to_owned(), "audio".to_owned()];
        assert_eq!(accounts.resolve("web:web", &more).unwrap().groups, [5, 29, 200]);
        assert!(accounts.resolve("web", &["nothing".to_owned()]).unwrap_err().text.contains("nothing"));
        // A name wins over a number.
        assert_eq!(resolve("1234").uid, 7);
        assert_eq!(resolve("9999"), Identity { uid: 9999, ..Identity::default() });
        assert_eq!(resolve("9999:77"), Identity { uid: 9999, gid: 77, ..Identity::default() });
    }

    #[test]
    fn an_unknown_user_or_group_is_named_in_the_error() {
        for (user, named) in [("nobody", "nobody"), ("web:nogroup", "nogroup"), ("-1", "-1")] {
            let error = accounts().resolve(user, &[]).unwrap_err();
            assert!(error.permanent && error.text.contains(named), "{}", error.text);
        }
    }

    #[test]
    fn the_upper_layer_decides_and_links_are_not_followed() {
        let root = std::env::temp_dir().join(format!("hivemind-users-{}", std::process::id()));
        let layer = |name: &str| {
            let path = root.join(name);
            fs::create_dir_all(path.join("etc")).unwrap();
            path
        };
        let (lower, upper, link) = (layer("lower"), layer("upper"), layer("link"));
        fs::write(lower.join("etc/passwd"), "a:x:1:1::/:").unwrap();
        fs::write(upper.join("etc/passwd"), "a:x:2:2::/:").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", link.join("etc/passwd")).unwrap();
        assert_eq!(Accounts::from_layers(&[upper.clone(), lower.clone()]).resolve("a", &[]).unwrap().uid, 2);
        assert_eq!(Accounts::from_layers(&[link, lower]).resolve("a", &[]).unwrap().uid, 1);
        fs::remove_dir_all(&root).unwrap();
    }
}
