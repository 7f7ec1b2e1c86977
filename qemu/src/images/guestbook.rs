//! A web application in PHP, and the database it is made for.

use std::path::Path;

use serde_json::json;

use super::debian::Unpacked;
use super::layer::Layer;
use super::oci::{OCI, Recipe};
use super::recipes::{POSTGRES_USER, accounts};
use crate::error::Result;

/// Where Debian's package has its programs, the modules they load, and what a database is made of.
const POSTGRES: &str = "usr/lib/postgresql/15";
const POSTGRES_SHARE: &str = "usr/share/postgresql/15";

/// Modules of PHP, each after those it needs, in a folder that is named for their interface.
const MODULES: [&str; 4] = ["igbinary", "redis", "pdo", "pdo_pgsql"];
const MODULE_FOLDER: &str = "usr/lib/php/20220829";

/// Two workers, which have the container's environment and not its user's rights.
const FPM_CONF: &str = "\
[global]
daemonize = no
error_log = /proc/self/fd/2
[www]
user = www-data
group = www-data
listen = 9000
pm = static
pm.max_children = 2
clear_env = no
catch_workers_output = yes
";

/// As the image that its makers give out: the same variables, the same folder.
pub(super) fn postgres(work: &Path, busybox: Layer) -> Result<Recipe> {
    let packages = ["postgresql-15", "postgresql-client-15"];
    let unpacked = Unpacked::fetch(&packages, &work.join("debs"), &work.join("postgres"))?;
    let (mut libraries, mut program) = (Layer::default(), Layer::default());
    accounts(&mut libraries);
    for name in ["postgres", "initdb", "psql", "pg_isready"] {
        unpacked.add_program(&mut program, &mut libraries, &format!("{POSTGRES}/bin/{name}"))?;
    }
    for name in ["plpgsql.so", "dict_snowball.so"] {
        let path = format!("{POSTGRES}/lib/{name}");
        program.copy(&unpacked.path(&path)?, &path, 0o644)?;
    }
    unpacked.add_files(&mut program, POSTGRES_SHARE, |name: &str| {
        // Of the extensions the one that every database has.
        let of_extension = name.contains("--") || name.ends_with(".control");
        !of_extension || name.starts_with("plpgsql")
    })?;
    program.file("entrypoint.sh", 0o755, include_str!("guestbook/entrypoint.sh"));
    // It looks there for time zones, and does with those it knows by itself.
    program.folder("usr/share/zoneinfo", 0o755, 0).folder("var/run/postgresql", 0o755, POSTGRES_USER);
    program.folder("var/lib/postgresql/data", 0o700, POSTGRES_USER);
    Ok(Recipe {
        name: "postgres",
        tag: "1",
        vocabulary: &OCI,
        config: json!({
            "Env": [format!("PATH=/bin:/{POSTGRES}/bin"), "PGDATA=/var/lib/postgresql/data"],
            "User": "postgres",
            "Entrypoint": ["/entrypoint.sh"],
            "Cmd": ["postgres", "-c", "listen_addresses=*"],
            "ExposedPorts": { "5432/tcp": {} },
            "StopSignal": "SIGINT",
            "Volumes": { "/var/lib/postgresql/data": {} },
        }),
        layers: vec![busybox, libraries, program],
    })
}

/// The guest book, for a web server that speaks FastCGI to it.
pub(super) fn application(work: &Path) -> Result<Recipe> {
    let packages = ["php8.2-fpm", "php8.2-common", "php8.2-pgsql", "php8.2-redis", "php8.2-igbinary"];
    let unpacked = Unpacked::fetch(&packages, &work.join("debs"), &work.join("guestbook"))?;
    let (mut libraries, mut program) = (Layer::default(), Layer::default());
    accounts(&mut libraries);
    unpacked.add_program(&mut program, &mut libraries, "usr/sbin/php-fpm8.2")?;
    // What goes wrong is for the log, and for a visitor a status.
    let mut settings = "display_errors=Off\nlog_errors=On\n".to_owned();
    for name in MODULES {
        unpacked.add_program(&mut program, &mut libraries, &format!("{MODULE_FOLDER}/{name}.so"))?;
        settings.push_str(&format!("extension={name}\n"));
    }
    program.file("etc/php/php.ini", 0o644, settings).file("etc/php/fpm.conf", 0o644, FPM_CONF);
    let mut page = Layer::default();
    page.file("srv/index.php", 0o644, include_str!("guestbook/index.php"));
    Ok(Recipe {
        name: "guestbook",
        tag: "1",
        vocabulary: &OCI,
        config: json!({
            "WorkingDir": "/srv",
            "Cmd": ["/usr/sbin/php-fpm8.2", "--nodaemonize", "-c", "/etc/php/php.ini", "-y", "/etc/php/fpm.conf"],
            "ExposedPorts": { "9000/tcp": {} },
            "StopSignal": "SIGQUIT",
        }),
        layers: vec![libraries, program, page],
    })
}
