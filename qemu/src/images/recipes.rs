//! The test images: what is in them and how they run.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use super::debian::Unpacked;
use super::guestbook;
use super::layer::Layer;
use super::oci::{DOCKER, OCI, Recipe};
use crate::cache::target_dir;
use crate::error::{Context, Result};
use crate::process::run;

/// The user ids of Debian's packages differ between computers; images need fixed ones.
const PASSWD: &str = "root:x:0:0:root:/:/sbin/nologin\n\
                      www-data:x:33:33:www-data:/var/www:/sbin/nologin\n\
                      redis:x:999:999:redis:/data:/sbin/nologin\n\
                      mosquitto:x:1883:1883:mosquitto:/mosquitto/data:/sbin/nologin\n\
                      postgres:x:70:70:postgres:/var/lib/postgresql:/bin/sh\n\
                      nobody:x:65534:65534:nobody:/:/sbin/nologin\n";
const GROUP: &str =
    "root:x:0:\nwww-data:x:33:\nredis:x:999:\nmosquitto:x:1883:\npostgres:x:70:\nnogroup:x:65534:\n";

const REDIS_USER: u32 = 999;
const MOSQUITTO_USER: u32 = 1883;
const NOBODY: u32 = 65534;
pub(super) const POSTGRES_USER: u32 = 70;

/// Serves the page, says which container answers, and has a health check.
const NGINX_CONF: &str = "\
daemon off;
user www-data;
worker_processes 1;
pid /run/nginx.pid;
error_log stderr notice;
events { worker_connections 256; }
http {
    include mime.types;
    access_log /dev/stdout;
    server {
        listen 80;
        listen [::]:80;
        root /usr/share/nginx/html;
        location = /hostname { default_type text/plain; return 200 \"$hostname\\n\"; }
        location = /health { default_type text/plain; access_log off; return 200 \"healthy\\n\"; }
    }
}
";

/// Of a server that others outlive: what they held open they may claim again for ten seconds. Users are numbers.
const GANESHA_CONF: &str = "\
NFS_CORE_PARAM { Protocols = 4; Enable_NLM = false; Enable_RQUOTA = false; Plugins_Dir = /usr/lib/x86_64-linux-gnu/ganesha; }
NFSV4 { Lease_Lifetime = 10; Grace_Period = 10; UseGetpwnam = true; Only_Numeric_Owners = true; RecoveryBackend = fs; }
EXPORT {
    Export_Id = 1; Path = /export; Pseudo = /export; Access_Type = RW; Squash = None;
    SecType = sys; Protocols = 4; Transports = TCP; FSAL { Name = VFS; }
}
";

/// Which kinds of network there are (netconfig(5)).
const NETCONFIG: &str = "\
udp tpi_clts v inet udp - -
tcp tpi_cots_ord v inet tcp - -
udp6 tpi_clts v inet6 udp - -
tcp6 tpi_cots_ord v inet6 tcp - -
";

/// All images, made from Debian packages in `work` and from this project's own `misbehave`.
pub(crate) fn all(work: &Path, say: &dyn Fn(&str)) -> Result<Vec<Recipe>> {
    let mut recipes = Vec::new();
    say("busybox");
    let busybox = busybox(work)?;
    recipes.push(Recipe {
        name: "busybox",
        tag: "1",
        vocabulary: &DOCKER,
        config: json!({ "Env": ["PATH=/bin"], "Cmd": ["sh"] }),
        layers: vec![busybox.clone()],
    });
    recipes.push(layers(busybox.clone()));
    for name in ["skopeo", "restic", "rclone"] {
        say(name);
        recipes.push(tool(work, name, busybox.clone())?);
    }
    say("mosquitto");
    recipes.push(mosquitto(work, busybox.clone())?);
    say("ganesha");
    recipes.push(ganesha(work, busybox.clone())?);
    say("postgres");
    recipes.push(guestbook::postgres(work, busybox)?);
    say("guestbook");
    recipes.push(guestbook::application(work)?);
    say("prometheus");
    recipes.push(monitor(work, "prometheus", "prometheus", 9090)?);
    say("node-exporter");
    recipes.push(monitor(work, "node-exporter", "prometheus-node-exporter", 9100)?);
    say("misbehave");
    recipes.extend(misbehave()?);
    say("nginx");
    recipes.extend(nginx(work)?);
    say("redis");
    recipes.push(redis(work)?);
    Ok(recipes)
}

pub(super) fn accounts(layer: &mut Layer) {
    layer.file("etc/passwd", 0o644, PASSWD).file("etc/group", 0o644, GROUP).folder("tmp", 0o1777, 0);
}

fn busybox(work: &Path) -> Result<Layer> {
    let root = work.join("busybox");
    let unpacked = Unpacked::fetch(&["busybox-static"], &work.join("debs"), &root)?;
    let program = unpacked.path("usr/bin/busybox")?;
    let applets = run(Command::new(&program).arg("--list"))?;
    let mut layer = Layer::default();
    accounts(&mut layer);
    layer.copy(&program, "bin/busybox", 0o755)?;
    for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|applet| *applet != "busybox") {
        layer.symlink(&format!("bin/{applet}"), "busybox");
    }
    Ok(layer)
}

/// Not a program but a puzzle: every way in which a layer can change the ones below it.
fn layers(busybox: Layer) -> Recipe {
    let mut lower = Layer::default();
    lower.file("data/kept", 0o644, "lower\n").file("data/removed", 0o644, "lower\n");
    lower.file("data/replaced", 0o600, "lower\n").file("data/becomes-folder", 0o644, "lower\n");
    lower.file("opaque/old", 0o644, "lower\n").folder("owned", 0o750, REDIS_USER);
    lower.hard_link("data/linked", "data/kept").symlink("data/pointer", "kept");
    let mut upper = Layer::default();
    upper.file("data/.wh.removed", 0o644, "").file("data/replaced", 0o644, "upper\n");
    upper.file("data/becomes-folder/inside", 0o644, "upper\n");
    upper.file("opaque/.wh..wh..opq", 0o644, "").file("opaque/new", 0o644, "upper\n");
    Recipe {
        name: "layers",
        tag: "1",
        vocabulary: &OCI,
        config: json!({ "Env": ["PATH=/bin"], "Entrypoint": ["/bin/sh", "-c"], "Cmd": ["ls -lR /data /opaque /owned"] }),
        layers: vec![busybox, lower, upper],
    }
}

/// Two versions that differ in what they say, for rolling updates.
fn misbehave() -> Result<Vec<Recipe>> {
    let workspace = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    // A folder of its own: cargo locks the shared one for as long as another build runs.
    let target = target_dir()?.join("test-images");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args(["build", "--quiet", "--release", "--locked", "--package", "hivemind-misbehave"]);
    cargo
        .args(["--target", "x86_64-unknown-linux-musl", "--manifest-path", workspace, "--target-dir"])
        .arg(&target);
    run(&mut cargo)?;
    let program = target.join("x86_64-unknown-linux-musl/release/misbehave");
    let program = fs::read(&program).context(format!("read {}", program.display()))?;
    let image = |tag: &'static str| {
        let mut layer = Layer::default();
        accounts(&mut layer);
        layer.file("misbehave", 0o755, program.clone());
        let environment = [format!("IMAGE_VERSION={tag}")];
        let config =
            json!({ "Env": environment, "Entrypoint": ["/misbehave"], "ExposedPorts": { "8080/tcp": {} } });
        Recipe { name: "misbehave", tag, vocabulary: &OCI, config, layers: vec![layer] }
    };
    Ok(vec![image("1"), image("2")])
}

fn nginx(work: &Path) -> Result<Vec<Recipe>> {
    let unpacked = Unpacked::fetch(&["nginx", "nginx-common"], &work.join("debs"), &work.join("nginx"))?;
    let (mut libraries, mut program) = (Layer::default(), Layer::default());
    accounts(&mut libraries);
    unpacked.add_program(&mut program, &mut libraries, "usr/sbin/nginx")?;
    program.copy(&unpacked.path("etc/nginx/mime.types")?, "etc/nginx/mime.types", 0o644)?;
    program.file("etc/nginx/nginx.conf", 0o644, NGINX_CONF);
    program.folder("var/log/nginx", 0o755, 0).folder("var/lib/nginx", 0o755, 0).folder("run", 0o755, 0);
    let image = |tag: &'static str| {
        let mut page = Layer::default();
        page.file("usr/share/nginx/html/index.html", 0o644, format!("<h1>nginx, version {tag}</h1>\n"));
        let config = json!({
            "Env": [format!("IMAGE_VERSION={tag}")],
            "Cmd": ["/usr/sbin/nginx"],
            "ExposedPorts": { "80/tcp": {} },
            "StopSignal": "SIGQUIT",
        });
        let layers = vec![libraries.clone(), program.clone(), page];
        Recipe { name: "nginx", tag, vocabulary: &OCI, config, layers }
    };
    Ok(vec![image("1"), image("2")])
}

/// One program of the package's name, beside a shell.
fn tool(work: &Path, name: &'static str, busybox: Layer) -> Result<Recipe> {
    let unpacked = Unpacked::fetch(&[name], &work.join("debs"), &work.join(name))?;
    let (mut libraries, mut program) = (Layer::default(), Layer::default());
    unpacked.add_program(&mut program, &mut libraries, &format!("usr/bin/{name}"))?;
    program.folder("var/tmp", 0o1777, 0);
    let config = json!({ "Env": ["PATH=/bin:/usr/bin"], "Cmd": [name, "--version"] });
    let layers = vec![busybox, libraries, program];
    Ok(Recipe { name, tag: "1", vocabulary: &OCI, config, layers })
}

/// Where it has its files is as in the image that its makers give out.
fn mosquitto(work: &Path, busybox: Layer) -> Result<Recipe> {
    let packages = ["mosquitto", "mosquitto-clients"];
    let unpacked = Unpacked::fetch(&packages, &work.join("debs"), &work.join("mosquitto"))?;
    let (mut libraries, mut program) = (Layer::default(), Layer::default());
    accounts(&mut libraries);
    for name in ["usr/sbin/mosquitto", "usr/bin/mosquitto_pub", "usr/bin/mosquitto_sub"] {
        unpacked.add_program(&mut program, &mut libraries, name)?;
    }
    program.folder("mosquitto/data", 0o755, MOSQUITTO_USER);
    program.file("mosquitto/config/mosquitto.conf", 0o644, "listener 1883\nallow_anonymous true\n");
    Ok(Recipe {
        name: "mosquitto",
        tag: "1",
        vocabulary: &OCI,
        config: json!({
            "Env": ["PATH=/bin:/usr/bin:/usr/sbin"],
            "User": "mosquitto",
            "Cmd": ["mosquitto", "-c", "/mosquitto/config/mosquitto.conf"],
            "ExposedPorts": { "1883/tcp": {} },
            "Volumes": { "/mosquitto/data": {} },
        }),
        layers: vec![busybox, libraries, program],
    })
}

/// A server of files by NFS, version 4, which is a program like others and no part of the kernel.
fn ganesha(work: &Path, busybox: Layer) -> Result<Recipe> {
    let packages = ["nfs-ganesha", "nfs-ganesha-vfs"];
    let unpacked = Unpacked::fetch(&packages, &work.join("debs"), &work.join("ganesha"))?;
    let (mut libraries, mut program) = (Layer::default(), Layer::default());
    unpacked.add_program(&mut program, &mut libraries, "usr/bin/ganesha.nfsd")?;
    let kind = "usr/lib/x86_64-linux-gnu/ganesha/libfsalvfs.so";
    program.copy(&unpacked.path(kind)?, kind, 0o644)?;
    program.folder("var/lib/nfs/ganesha", 0o755, 0).folder("export", 0o755, 0);
    program.file("etc/ganesha/ganesha.conf", 0o644, GANESHA_CONF);
    // It looks for both, whatever it is told to do.
    program.file("etc/netconfig", 0o644, NETCONFIG).symlink("etc/mtab", "/proc/self/mounts");
    let command =
        ["ganesha.nfsd", "-F", "-f", "/etc/ganesha/ganesha.conf", "-L", "STDOUT", "-p", "/run/ganesha.pid"];
    program.folder("run", 0o755, 0);
    Ok(Recipe {
        name: "ganesha",
        tag: "1",
        vocabulary: &OCI,
        config: json!({
            "Env": ["PATH=/bin:/usr/bin"],
            "Cmd": command,
            "ExposedPorts": { "2049/tcp": {} },
            "Volumes": { "/export": {}, "/var/lib/nfs/ganesha": {} },
        }),
        layers: vec![busybox, libraries, program],
    })
}

/// One program of the package's name, as in the images that its makers give out: it is the entry point.
fn monitor(work: &Path, name: &'static str, package: &str, port: u16) -> Result<Recipe> {
    let unpacked = Unpacked::fetch(&[package], &work.join("debs"), &work.join(name))?;
    let (mut libraries, mut program) = (Layer::default(), Layer::default());
    accounts(&mut libraries);
    let path = format!("usr/bin/{package}");
    unpacked.add_program(&mut program, &mut libraries, &path)?;
    program.folder("prometheus", 0o755, NOBODY);
    Ok(Recipe {
        name,
        tag: "1",
        vocabulary: &OCI,
        config: json!({
            "Env": ["PATH=/bin:/usr/bin"],
            "User": "nobody",
            "WorkingDir": "/prometheus",
            "Entrypoint": [format!("/{path}")],
            "ExposedPorts": { format!("{port}/tcp"): {} },
        }),
        layers: vec![libraries, program],
    })
}

fn redis(work: &Path) -> Result<Recipe> {
    let packages = ["redis-server", "redis-tools"];
    let unpacked = Unpacked::fetch(&packages, &work.join("debs"), &work.join("redis"))?;
    let (mut libraries, mut program) = (Layer::default(), Layer::default());
    accounts(&mut libraries);
    for name in ["usr/bin/redis-check-rdb", "usr/bin/redis-cli"] {
        unpacked.add_program(&mut program, &mut libraries, name)?;
    }
    // One program under two names: it is the server when called so.
    program.hard_link("usr/bin/redis-server", "usr/bin/redis-check-rdb").folder("data", 0o755, REDIS_USER);
    Ok(Recipe {
        name: "redis",
        tag: "1",
        vocabulary: &OCI,
        config: json!({
            "Env": ["PATH=/usr/bin"],
            "User": "redis",
            "WorkingDir": "/data",
            "Cmd": ["redis-server", "--protected-mode", "no", "--dir", "/data"],
            "ExposedPorts": { "6379/tcp": {} },
            "Volumes": { "/data": {} },
        }),
        layers: vec![libraries, program],
    })
}
