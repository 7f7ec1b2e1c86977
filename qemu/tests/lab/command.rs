//! The command: a cluster that stays up after it, until told otherwise.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use hivemind_qemu::Boot;
use nix::unistd::Uid;
use serde_json::Value;

use crate::tiny;

const PROGRAM: &str = env!("CARGO_BIN_EXE_hivemind-qemu");

/// Debian's user without any rights.
const NOBODY: u32 = 65534;

struct Cli {
    name: String,
    /// Not root, whoever runs the test; the folder is the user's own, with a copy of the program.
    ordinary_user: Option<PathBuf>,
}

impl Cli {
    fn new(name: &str) -> Cli {
        Cli { name: format!("{name}-{}", std::process::id()), ordinary_user: None }
    }

    fn of_ordinary_user(name: &str) -> Cli {
        let mut cli = Cli::new(name);
        let folder = std::env::temp_dir().join(&cli.name);
        fs::create_dir_all(folder.join("cache")).unwrap();
        fs::copy(PROGRAM, folder.join("hivemind-qemu")).unwrap();
        fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
        if Uid::effective().is_root() {
            chown(folder.join("cache"), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        cli.ordinary_user = Some(folder);
        cli
    }

    fn command(&self) -> Command {
        let mut command = match &self.ordinary_user {
            None => Command::new(PROGRAM),
            Some(folder) => {
                let mut command = Command::new("env");
                command.arg(format!("HIVEMIND_CACHE={}", folder.join("cache").display()));
                if Uid::effective().is_root() {
                    let (user, group) = (format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"));
                    command.args(["setpriv", &user, &group, "--clear-groups"]);
                }
                command.arg(folder.join("hivemind-qemu"));
                command
            }
        };
        command.args(["--name", &self.name, "--output", "json"]);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().unwrap()
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn list(&self) -> Value {
        serde_json::from_str(&self.ok(&["list"])).unwrap()
    }

    fn says(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(!output.status.success(), "{arguments:?} did not fail");
        String::from_utf8(output.stderr).unwrap()
    }
}

impl Drop for Cli {
    fn drop(&mut self) {
        self.run(&["down"]);
        if let Some(folder) = &self.ordinary_user {
            let _ = fs::remove_dir_all(folder);
        }
    }
}

/// A folder with the tiny system as an image that everybody can read.
struct TinyImage(PathBuf);

impl TinyImage {
    fn new(name: &str) -> TinyImage {
        let Boot::Direct { kernel, initrd, cmdline } = tiny::options("unused").boot else { unreachable!() };
        let folder = std::env::temp_dir().join(format!("{name}-image-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        for (name, file) in [("vmlinuz", kernel), ("initrd.img", initrd)] {
            fs::copy(file, folder.join(name)).unwrap();
            fs::set_permissions(folder.join(name), Permissions::from_mode(0o644)).unwrap();
        }
        fs::write(folder.join("cmdline"), cmdline).unwrap();
        fs::write(folder.join("hivemind-x86_64.img"), [0; 1 << 20]).unwrap();
        TinyImage(folder)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for TinyImage {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_cluster_stays_up_after_the_command_and_down_removes_all_of_it() {
    let cli = Cli::new("command");
    let image = TinyImage::new("command");

    assert_eq!(cli.list(), Value::Null);
    assert!(cli.says(&["cut", "n1"]).contains("is not up"));
    let folder = image.path();
    let up = [
        "up",
        "--machines",
        "2",
        "--memory",
        "96",
        "--image",
        folder,
        "--wait",
        "120",
        "--forward",
        "0:n1:7",
    ];
    cli.ok(&up);
    assert!(cli.says(&up).contains("already up"));

    let cluster = cli.list();
    assert_eq!(cluster["machines"][1]["name"], "n2");
    assert_eq!(cluster["machines"][1]["power"], "on");
    assert!(cluster["forwards"][0]["local"].as_str().unwrap().starts_with("127.0.0.1:"));
    for machine in ["n1", "n2"] {
        tiny::eventually("the log is printed", || cli.ok(&["log", machine]).contains("tiny: ready"));
    }
    assert!(cli.ok(&["exec", "--", "busybox", "ping", "-c", "1", "n2.lab"]).contains(" 0% packet loss"));

    cli.ok(&["freeze", "n1"]);
    cli.ok(&["cut", "n2"]);
    let cluster = cli.list();
    assert_eq!(cluster["machines"][0]["power"], "frozen");
    assert_eq!(cluster["machines"][1]["power"], "off");
    cli.ok(&["partition", "n1", "n2"]);
    cli.ok(&["heal"]);
    assert!(cli.says(&["cut", "n7"]).contains("there are n1, n2"));

    cli.ok(&["down"]);
    assert_eq!(cli.list(), Value::Null);
    let gone = |path: &Value| !std::path::Path::new(path.as_str().unwrap()).exists();
    assert!(gone(&cluster["path"]));
    // The name is free at once, and nobody who asks then meets the keeper on its way out.
    for _ in 0..20 {
        cli.ok(&["up", "--machines", "0", "--image", folder]);
        cli.ok(&["down"]);
        assert_eq!(cli.list(), Value::Null);
    }
    let pid = &cluster["machines"][0]["pid"];
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    cli.ok(&["down"]);
}

#[test]
fn a_user_who_is_not_root_has_clusters_too() {
    let cli = Cli::of_ordinary_user("user");
    let image = TinyImage::new("user");
    cli.ok(&["up", "--machines", "2", "--memory", "96", "--image", image.path(), "--wait", "120"]);
    let cluster = cli.list();
    let owner = fs::metadata(format!("/proc/{}", cluster["keeper_pid"])).unwrap().uid();
    assert_ne!(owner, 0, "the cluster belongs to the user");
    assert_eq!(fs::metadata(cluster["path"].as_str().unwrap()).unwrap().uid(), owner);
    tiny::eventually("n2 is there", || cli.ok(&["log", "n2"]).contains("tiny: ready"));
    assert!(cli.ok(&["exec", "--", "busybox", "ping", "-c", "1", "n2.lab"]).contains(" 0% packet loss"));
    cli.ok(&["down"]);
    assert_eq!(cli.list(), Value::Null);
    assert!(!Path::new(cluster["path"].as_str().unwrap()).exists());
    let process = format!("/proc/{}", cluster["keeper_pid"]);
    tiny::eventually("the keeper has ended", || !Path::new(&process).exists());
}

#[test]
fn an_up_that_is_interrupted_leaves_nothing_behind() {
    let cli = Cli::new("interrupted");
    let image = TinyImage::new("interrupted");
    let up = ["up", "--machines", "3", "--memory", "96", "--image", image.path()];
    for moment in ["making the network", "switching on n1", "switching on n3"] {
        let mut child = cli.command().args(up).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        assert!(said.any(|line| line == moment), "{moment}");
        child.kill().unwrap();
        child.wait().unwrap();
        cli.ok(&["down"]);
        assert_eq!(cli.list(), Value::Null, "{moment}");
        let labs = hivemind_qemu::live_labs().unwrap();
        assert!(!labs.iter().any(|lab| lab.id.starts_with(&cli.name)), "{moment}: {labs:?}");
    }
}

#[test]
fn a_port_that_is_taken_is_told_before_anything_boots() {
    let cli = Cli::new("port");
    let image = TinyImage::new("port");
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let rule = format!("{port}:n1:7");
    let said = cli.says(&["up", "--machines", "1", "--image", image.path(), "--forward", &rule]);
    assert!(said.contains(&format!("127.0.0.1:{port}")) && !said.contains("switching on"), "{said}");
    assert_eq!(cli.list(), Value::Null);
}
