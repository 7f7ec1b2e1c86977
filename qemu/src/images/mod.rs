//! The images all tests and the demo run: small, made from Debian packages, kept in the cache folder as the storage
//! of a registry.
//!
//! | image | what |
//! |---|---|
//! | `busybox:1` | a shell and its tools; described in Docker's vocabulary, the others in OCI's |
//! | `layers:1` | busybox under layers that replace and remove files |
//! | `misbehave:1`, `misbehave:2` | fails in every way when told to (see `misbehave --help`); port 8080 |
//! | `nginx:1`, `nginx:2` | a web server on port 80, which says its version at `/` and its host name at `/hostname` |
//! | `skopeo:1` | copies images, beside a shell |
//! | `restic:1`, `rclone:1` | make backups and keep them, each beside a shell |
//! | `redis:1` | a database on port 6379, as user `redis` |
//! | `prometheus:1`, `node-exporter:1` | monitoring, as user `nobody`: ports 9090 and 9100 |
//! | `postgres:1` | a database on port 5432, as user `postgres`, with its client and a shell; made ready by the variables of Docker's image |
//! | `guestbook:1` | a web application for PHP's FastCGI on port 9000, with a database and a cache |
//! | `mosquitto:1` | a message broker on port 1883, as user `mosquitto`, with its clients and a shell |

mod debian;
mod guestbook;
mod layer;
mod oci;
mod recipes;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use crate::cache::cache_folder;
use crate::error::{Context, Error, Result};
use crate::registry::Server;

pub use oci::TestImage;

/// Everything the images depend on, besides the versions of the Debian packages at the time they are made.
const INPUTS: [&str; 10] = [
    include_str!("mod.rs"),
    include_str!("debian.rs"),
    include_str!("guestbook.rs"),
    include_str!("guestbook/entrypoint.sh"),
    include_str!("guestbook/index.php"),
    include_str!("layer.rs"),
    include_str!("oci.rs"),
    include_str!("recipes.rs"),
    include_str!("../../misbehave/src/main.rs"),
    include_str!("../../misbehave/Cargo.toml"),
];

/// The name of the file that lists the images; it is written last.
const LIST: &str = "images.json";

/// How long a version of the images stays after a newer one was made: longer than any test run.
const KEEP_FOR: Duration = Duration::from_secs(2 * 24 * 60 * 60);

/// The test images, ready to be served.
#[derive(Clone, Debug)]
pub struct Images {
    pub(crate) storage: PathBuf,
    list: Vec<TestImage>,
}

impl Images {
    /// All images.
    pub fn list(&self) -> &[TestImage] {
        &self.list
    }

    /// The image of that name and tag, for example `nginx:1`.
    pub fn get(&self, reference: &str) -> Option<&TestImage> {
        let (name, tag) = reference.split_once(':')?;
        self.list.iter().find(|image| image.name == name && image.tag == tag)
    }
}

/// Makes the images unless the cache has them; says what it does on standard error.
pub fn ensure() -> Result<Images> {
    let folder = cache_folder("test-images")?;
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let key = oci::digest([release.as_str()].into_iter().chain(INPUTS).collect::<String>().as_bytes());
    let storage = folder.join(&key["sha256:".len()..][..16]);
    if let Some(images) = load(&storage) {
        return Ok(images);
    }
    let lock = File::create(folder.join("lock")).context("open the lock of the test images")?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .context("lock the test images")?;
    // Another process may have made them while this one waited.
    if let Some(images) = load(&storage) {
        return Ok(images);
    }
    remove_unused(&folder)?;
    build(&folder.join("work"), &storage)?;
    load(&storage).ok_or_else(|| Error::Failed {
        command: "make the test images".into(),
        output: format!("{} is not readable", storage.join(LIST).display()),
    })
}

fn load(storage: &Path) -> Option<Images> {
    let list = fs::read(storage.join(LIST)).ok()?;
    Some(Images { storage: storage.to_owned(), list: serde_json::from_slice(&list).ok()? })
}

/// Older versions would only fill the cache, but another checkout may still be using them.
fn remove_unused(folder: &Path) -> Result<()> {
    let entries = fs::read_dir(folder).context("list the test images")?;
    for path in entries.flatten().map(|entry| entry.path()) {
        let made = fs::metadata(path.join(LIST)).and_then(|metadata| metadata.modified());
        let age = made.ok().and_then(|made| made.elapsed().ok());
        // What has no list was never finished.
        if path.is_dir() && age.is_none_or(|age| age > KEEP_FOR) {
            fs::remove_dir_all(&path).context(format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

fn build(work: &Path, storage: &Path) -> Result<()> {
    let started = Instant::now();
    let say = |what: &str| eprintln!("test images: {what} ({:.1} s)", started.elapsed().as_secs_f32());
    let draft = work.join("storage");
    fs::create_dir_all(&draft).context(format!("create {}", draft.display()))?;
    let recipes = recipes::all(work, &say)?;
    say("filling the registry");
    let (server, address) = Server::start_to_fill(work, &draft)?;
    let pushed = recipes.iter().map(|recipe| oci::push(&address, recipe));
    let pushed = pushed.collect::<Result<Vec<_>>>()?;
    drop(server);
    let list = serde_json::to_vec_pretty(&pushed).map_err(|error| Error::Failed {
        command: "list the test images".into(),
        output: error.to_string(),
    })?;
    fs::write(draft.join(LIST), list).context("list the test images")?;
    fs::rename(&draft, storage).context(format!("create {}", storage.display()))?;
    fs::remove_dir_all(work).context(format!("remove {}", work.display()))?;
    say("done");
    Ok(())
}
