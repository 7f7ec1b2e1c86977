//! The command as users run it, as far as it needs no cluster.

// The whole file is tests; helpers outside of test functions included.
#![allow(clippy::unwrap_used)]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use hivemind_spec::machine::MachineConfig;
use serde_json::Value;

/// A home of its own for every test.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path.to_string_lossy().into_owned()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hivemind"));
        command.args(arguments).env_clear().env("HOME", self.0.path()).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Run {
        Run(self.command(arguments).output().unwrap())
    }

    fn with_cluster() -> Self {
        let home = Self::new();
        home.run(&["init", "lab"]).ends_with(0);
        home
    }
}

struct Run(Output);

impl Run {
    #[track_caller]
    fn ends_with(self, code: i32) -> Self {
        assert_eq!(self.0.status.code(), Some(code), "{}{}", self.stdout(), self.stderr());
        self
    }

    fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_slice(&self.0.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.stdout()))
    }

    /// Asserts a failure as JSON on standard error.
    #[track_caller]
    fn refuses_with(self, code: i32, name: &str) -> Value {
        let this = self.ends_with(code);
        let value: Value =
            serde_json::from_str(&this.stderr()).unwrap_or_else(|e| panic!("{e}: {}", this.stderr()));
        assert_eq!(value["error"]["code"], name, "{value}");
        assert!(this.stdout().is_empty(), "a failure prints no result: {}", this.stdout());
        value["error"].clone()
    }
}

/// A node that is known but does not exist.
fn nowhere() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn init_makes_a_cluster_with_a_token_that_configures_machines() {
    let home = Home::new();
    let made = home.run(&["init", "lab", "--output", "json"]).ends_with(0).json();
    let text = home.run(&["image", "configure", "--stdout", "--hostname", "edge-1", "--label", "site=roof"]);
    let config = MachineConfig::parse(&text.ends_with(0).stdout()).unwrap();
    assert_eq!(config.cluster.id.to_string(), made["cluster"].as_str().unwrap());
    assert_eq!(config.node.hostname.as_deref(), Some("edge-1"));
    assert_eq!(config.node.labels["site"], "roof");
    assert!(config.token.unwrap().ca_key.is_some());
    let again = home.run(&["init", "lab", "--output", "json"]).refuses_with(1, "exists");
    assert!(again["advice"].as_str().unwrap().contains("another name"));
    home.run(&["init", "Bad_Name", "--output", "json"]).refuses_with(2, "bad-name");
}

#[test]
fn an_encrypted_bundle_opens_with_its_passphrase_alone() {
    let home = Home::new();
    let with = |passphrase: &str, arguments: &[&str]| {
        let mut command = home.command(arguments);
        Run(command.env("HIVEMIND_PASSPHRASE", passphrase).output().unwrap())
    };
    with("correct horse", &["init", "lab", "--passphrase"]).ends_with(0);
    let bundle = home.path(".config/hivemind/lab");
    assert!(bundle.join("root-ca.key.age").exists() && bundle.join("keys/root.key.age").exists());
    assert!(!bundle.join("root-ca.key").exists() && !bundle.join("keys/root.key").exists());
    with("correct horse", &["token", "create"]).ends_with(0);
    with("wrong", &["token", "create", "--output", "json"]).refuses_with(1, "decrypt");
    let error = home.run(&["token", "create", "--output", "json"]).refuses_with(1, "passphrase");
    assert!(error["advice"].as_str().unwrap().contains("HIVEMIND_PASSPHRASE"));
}

#[test]
fn tokens_are_made_and_listed() {
    let home = Home::with_cluster();
    let copy = home.path("token.toml");
    let copy = copy.to_str().unwrap();
    let create =
        ["token", "create", "--ttl", "1h", "--uses", "3", "--seed", "192.0.2.5", "--output-file", copy];
    let made = home.run(&[&create[..], &["--output", "json"]].concat()).ends_with(0).json();
    assert_eq!((made["maxUses"].as_u64(), made["open"].as_bool()), (Some(3), Some(true)));
    let list = home.run(&["token", "list", "--output", "json"]).ends_with(0).json();
    assert_eq!(list.as_array().unwrap().len(), 2, "the one of init and this one: {list}");
    assert!(home.run(&["token", "list"]).ends_with(0).stdout().contains("at most 3"));

    // The token file is all that configuring takes: no bundle, and the latest is the default.
    let other = Home::new();
    let config = other.run(&["image", "configure", "--stdout", "--token", copy]).ends_with(0).stdout();
    assert_eq!(MachineConfig::parse(&config).unwrap().token.unwrap().seeds, ["192.0.2.5"]);
    assert_eq!(home.run(&["image", "configure", "--stdout"]).stdout(), config);
    home.run(&["token", "create", "--ttl", "soon"]).ends_with(2);
    home.run(&["token", "create", "--uses", "0"]).ends_with(2);
}

#[test]
fn a_target_that_is_no_hivemind_disk_is_refused_and_left_alone() {
    let home = Home::with_cluster();
    let disk = home.file("disk.img", &"x".repeat(100_000));
    let error =
        home.run(&["image", "configure", &disk, "--output", "json"]).refuses_with(2, "no-partition-table");
    assert!(error["advice"].as_str().unwrap().contains("image/build"));
    assert_eq!(std::fs::read(&disk).unwrap(), vec![b'x'; 100_000]);
    home.run(&["image", "configure"]).ends_with(2);
    home.run(&["image", "configure", "--stdout", "--hostname", "No_Name", "--output", "json"])
        .refuses_with(2, "bad-configuration");
    home.run(&["image", "configure", "--stdout", "--label", "novalue"]).ends_with(2);
}

#[test]
fn another_clusters_configuration_is_not_replaced_unless_forced() {
    let home = Home::with_cluster();
    home.run(&["init", "other"]).ends_with(0);
    let file = home.path("node.toml");
    let configure = |cluster: &str, more: &[&str]| {
        let all = ["image", "configure", "--output-file", file.to_str().unwrap(), "--cluster", cluster];
        home.run(&[&all[..], &["--output", "json"], more].concat())
    };
    configure("lab", &[]).ends_with(0);
    configure("lab", &[]).ends_with(0);
    configure("other", &[]).refuses_with(2, "other-cluster");
    configure("other", &["--force"]).ends_with(0);
    let read = MachineConfig::parse(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(read.cluster.name, "other");
    // Two clusters, and none is named.
    home.run(&["token", "list", "--output", "json"]).refuses_with(2, "which-cluster");
    assert_eq!(mode(&file), 0o600, "it holds a private key");
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn convert_prints_the_documents_of_a_compose_file() {
    let home = Home::new();
    home.file(".env", "TAG=7\n");
    let file =
        home.file("compose.yaml", "services:\n  web:\n    image: nginx:${TAG}\n    ports: ['8080:80']\n");
    let items = home.run(&["convert", &file, "--output", "json"]).ends_with(0).json();
    assert_eq!(items["items"][0]["spec"]["container"]["image"], "nginx:7");
    assert_eq!(items["items"][0]["metadata"]["namespace"], "default");
    let other = home.run(&["convert", &file, "-n", "shop", "--output", "json"]).ends_with(0).json();
    assert_eq!(other["items"][0]["metadata"]["namespace"], "shop");
    home.run(&["convert", &file, "-n", "No Space", "--output", "json"]).refuses_with(2, "bad-name");
}

#[test]
fn what_convert_prints_can_be_pushed_as_it_is_and_the_schema_describes_it() {
    let home = Home::with_cluster();
    let text = "services:\n  web:\n    image: nginx:7\n    volumes: ['data:/data']\n  db: {image: db}\nvolumes: {data: }\n";
    let file = home.file("compose.yaml", text);
    let items = home.run(&["convert", &file, "--output", "json"]).ends_with(0).json();
    for output in [home.run(&["convert", &file]), home.run(&["convert", &file, "--output", "json"])] {
        let documents = home.file("documents.yaml", &output.ends_with(0).stdout());
        assert_eq!(home.run(&["convert", &documents, "--output", "json"]).ends_with(0).json(), items);
    }
    let wrong = home.file(
        "wrong.yaml",
        "apiVersion: hivemind/v1\nkind: Workload\nmetadata: {name: a}\nspec:\n  oops: 1\n",
    );
    let run = home.run(&["push", &wrong, "--node", &nowhere()]).ends_with(2);
    assert!(run.stderr().contains("wrong.yaml:5:9: ") && run.stderr().contains("oops"), "{}", run.stderr());
    let schema = home.run(&["schema"]).ends_with(0).json();
    assert_eq!(schema["$defs"]["WorkloadSpec"]["properties"]["replicas"]["type"], "integer");
}

#[test]
fn every_fault_of_a_compose_file_is_told_with_its_place_before_anything_is_sent() {
    let home = Home::with_cluster();
    let file = home.file("compose.yaml", "services:\n  web:\n    image: a\n    imagee: b\n    models: all\n");
    for command in ["push", "plan", "convert"] {
        // There is no node: a command that tried one would end with 3.
        let run = home.run(&[command, &file, "--node", &nowhere()]).ends_with(2);
        for place in ["compose.yaml:4:5: `imagee`", "compose.yaml:5:5: `models`"] {
            assert!(run.stderr().contains(place), "{}", run.stderr());
        }
        assert!(!run.stderr().contains('\u{1b}'), "no colours off a terminal");
    }
    let error = home.run(&["plan", &file, "--output", "json"]).refuses_with(2, "bad-compose");
    assert_eq!((error["place"]["line"].as_u64(), error["place"]["column"].as_u64()), (Some(4), Some(5)));
    home.run(&["push", "/no/such.yaml", "--output", "json"]).refuses_with(1, "file");
    let huge = home.file("huge.yaml", &"# padding\n".repeat(200_000));
    home.run(&["convert", &huge, "--output", "json"]).refuses_with(2, "too-large");
}

#[test]
fn a_cluster_that_does_not_answer_ends_every_command_with_its_own_code() {
    let home = Home::with_cluster();
    let file = home.file("compose.yaml", "services:\n  web:\n    image: a\n");
    let node = nowhere();
    for command in [
        &["push", &file][..],
        &["plan", &file],
        &["ps"],
        &["nodes"],
        &["status"],
        &["logs", "web"],
        &["remove", "web", "--yes"],
        &["keys", "list"],
        &["keys", "retire", "ci"],
        &["keys", "revoke", "ci", "--yes"],
    ] {
        let error = home
            .run(&[command, &["--node", &node, "--output", "json"]].concat())
            .refuses_with(3, "no-answer");
        assert!(error["detail"].as_str().unwrap().contains(&node), "{error}");
        assert!(error["advice"].as_str().unwrap().contains("--node"), "{error}");
    }
    home.run(&["status", "--output", "json"]).refuses_with(2, "no-node");
    Home::new().run(&["status", "--node", &node, "--output", "json"]).refuses_with(1, "no-cluster");
}

#[test]
fn a_key_is_made_once_and_stays_private() {
    let home = Home::with_cluster();
    let made = home.run(&["keys", "generate", "ci", "--output", "json"]).ends_with(0).json();
    assert_eq!(made["id"].as_str().unwrap().len(), 32);
    assert_eq!(mode(Path::new(made["file"].as_str().unwrap())), 0o600);
    home.run(&["keys", "generate", "ci", "--output", "json"]).refuses_with(2, "exists");
    home.run(&["keys", "generate", "../ci", "--output", "json"]).refuses_with(2, "bad-name");
    let node = nowhere();
    home.run(&["status", "--key", "nobody", "--node", &node, "--output", "json"]).refuses_with(1, "no-key");
    let bad =
        ["keys", "add", "x", "--role", "viewer", "--public-key", "AAAA", "--node", &node, "--output", "json"];
    home.run(&bad).refuses_with(2, "bad-key");
}

#[test]
fn ctrl_c_ends_a_command_at_once_and_says_where_it_stands() {
    let home = Home::with_cluster();
    // It takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let node = silent.local_addr().unwrap().to_string();
    let file = home.file("compose.yaml", "services:\n  web:\n    image: a\n");
    let mut command = home.command(&["push", &file, "--node", &node]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let _connection = silent.accept().unwrap();
    let pressed = Instant::now();
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let run = Run(child.wait_with_output().unwrap());
    assert!(pressed.elapsed() < Duration::from_secs(3), "{:?}", pressed.elapsed());
    let run = run.ends_with(130);
    assert!(run.stderr().contains("nothing was pushed"), "{}", run.stderr());
}

#[test]
fn help_version_and_completions_go_to_standard_output() {
    let home = Home::new();
    assert!(home.run(&["--help"]).ends_with(0).stdout().contains("Examples:"));
    assert!(
        home.run(&["push", "--help"]).ends_with(0).stdout().contains("hivemind push compose.yaml --wait")
    );
    assert!(home.run(&["--version"]).ends_with(0).stdout().starts_with("hivemind "));
    for shell in ["bash", "zsh", "fish"] {
        assert!(home.run(&["completions", shell]).ends_with(0).stdout().contains("configure"), "{shell}");
    }
    home.run(&["no-such-command"]).ends_with(2);
    home.run(&["ps", "--output", "yaml"]).ends_with(2);
}
