//! The command line: what can be typed. What it does is in [`crate::command`].

mod images;
mod nodes;
mod volumes;
mod workloads;

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use clap::{Args, Parser, Subcommand, ValueEnum};
use hivemind_spec::namespace::Permission;

use crate::quantity;

pub use self::images::{Images, ImagesGive, ImagesStick, ImagesTakeBack};
pub use self::nodes::{NodeChange, NodeName, NodeNames, Nodes, NodesReset, Support};
pub use self::volumes::{
    Volume, VolumeName, Volumes, VolumesBackup, VolumesCheck, VolumesList, VolumesRemove, VolumesRestore,
    VolumesSnapshot, VolumesSnapshots,
};
pub use self::workloads::{
    Adjusting, Attach, Chosen, Copy, Debug, EventsOf, Exec, Inspect, Jobs, JobsCommand, JobsRun, Logs,
    Remove, Restart, RunOnce, Scale, StatsOf,
};

/// Runs containers on a cluster of Hivemind machines.
#[derive(Debug, Parser)]
#[command(
    name = "hivemind",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    after_help = "Examples:\n  hivemind init lab\n  hivemind image configure hivemind.img\n  hivemind push compose.yaml --wait --node 192.0.2.5"
)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// The cluster, when this machine knows several
    #[arg(
        long,
        global = true,
        env = "HIVEMIND_CLUSTER",
        value_name = "NAME",
        help_heading = "Global options"
    )]
    pub cluster: Option<String>,
    /// The cluster's bundle, when it is not in ~/.config/hivemind
    #[arg(long, global = true, env = "HIVEMIND_DIR", value_name = "DIR", help_heading = "Global options")]
    pub dir: Option<PathBuf>,
    /// A node to ask, HOST or HOST:PORT; repeat for several, tried in turn
    #[arg(
        long,
        global = true,
        env = "HIVEMIND_NODE",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        help_heading = "Global options"
    )]
    pub node: Vec<String>,
    /// The operator key to sign with: its name in the bundle, or the path of its file
    #[arg(
        long,
        global = true,
        env = "HIVEMIND_KEY",
        value_name = "NAME",
        default_value = crate::bundle::ROOT_KEY,
        help_heading = "Global options"
    )]
    pub key: String,
    /// How to print results
    #[arg(long, global = true, value_enum, default_value_t, help_heading = "Global options")]
    pub output: Output,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs: JSON.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a new cluster: its keys, its bundle and a first join token
    #[command(after_help = "Example:\n  hivemind init lab --passphrase")]
    Init(Init),
    /// Make and list join tokens
    #[command(subcommand, after_help = "Example:\n  hivemind token create --ttl 1h --uses 3")]
    Token(Token),
    /// Configure disk images and disks
    #[command(subcommand, after_help = "Example:\n  hivemind image configure hivemind.img --hostname edge-1")]
    Image(Image),
    /// Sign a Compose file's services and push them to the cluster
    #[command(after_help = "Example:\n  hivemind push compose.yaml --wait")]
    Push(Push),
    /// Show what a push would change, and change nothing
    #[command(after_help = "Example:\n  hivemind plan compose.yaml --exit-code")]
    Plan(Plan),
    /// Print the documents a Compose file turns into
    #[command(after_help = "Example:\n  hivemind convert compose.yaml --output json")]
    Convert(Convert),
    /// Print the JSON Schema of documents, for editors that complete and check them
    #[command(after_help = "Example:\n  hivemind schema")]
    Schema,
    /// List replicas: where they run and why they do not
    #[command(after_help = "Example:\n  hivemind ps web")]
    Ps(Chosen),
    /// Show what containers use of their machines: live on a terminal, else once
    #[command(
        after_help = "Examples:\n  hivemind stats\n  hivemind stats web --once\n  hivemind stats --output json"
    )]
    Stats(StatsOf),
    /// Show what has happened lately, on all machines
    #[command(
        after_help = "Examples:\n  hivemind events --level warning\n  hivemind events web --since 1h\n  hivemind events -f --output json"
    )]
    Events(EventsOf),
    /// List the processes of containers
    #[command(after_help = "Examples:\n  hivemind top web\n  hivemind top --output json")]
    Top(Chosen),
    /// List jobs, how far each has come, and when it is run next; or run one once more
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "Examples:\n  hivemind jobs --output json\n  hivemind jobs run import"
    )]
    Jobs(Jobs),
    /// List the machines of the cluster, cordon them, or cut them off
    #[command(after_help = "Examples:\n  hivemind nodes --output json\n  hivemind nodes cordon edge-3")]
    Nodes {
        /// What to do; lists them if not given
        #[command(subcommand)]
        command: Option<Nodes>,
    },
    /// List namespaces and what their containers may be given of the machines, or change that
    #[command(
        after_help = "Examples:\n  hivemind namespaces --output json\n  hivemind namespaces allow home devices"
    )]
    Namespaces {
        /// What to do; lists them if not given
        #[command(subcommand)]
        command: Option<Namespaces>,
    },
    /// List images that machines were given, or give them some: for places without a registry
    #[command(after_help = "Examples:\n  hivemind images give shop.tar\n  hivemind images --output json")]
    Images {
        /// What to do; lists them if not given
        #[command(subcommand)]
        command: Option<Images>,
    },
    /// List volumes and where their data is, keep it in a file, give it back, or have it deleted
    #[command(
        after_help = "Examples:\n  hivemind volumes --output json\n  hivemind volumes backup data data.backup\n  hivemind volumes remove data --grace 1d"
    )]
    Volumes {
        /// What to do; lists them if not given
        #[command(subcommand)]
        command: Option<Volumes>,
    },
    /// List secrets and which machines can open them, or set one
    #[command(
        after_help = "Examples:\n  hivemind secrets set db-password\n  hivemind secrets set tls-key --file key.pem"
    )]
    Secrets {
        /// What to do; lists them if not given
        #[command(subcommand)]
        command: Option<Secrets>,
    },
    /// Give the machines a new release of the operating system, or show how far it has come
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "Examples:\n  hivemind upgrade registry.example.org/hivemind/os:0.2.0 --wait\n  hivemind upgrade build/bundle --from https://example.org/hivemind/bundle\n  hivemind upgrade build/bundle --from stick\n  hivemind upgrade\n  hivemind upgrade pause"
    )]
    Upgrade(Upgrade),
    /// Show the cluster at a glance
    #[command(after_help = "Example:\n  hivemind status")]
    Status,
    /// Run a container once, show what it prints, and end with its exit code
    #[command(
        after_help = "Examples:\n  hivemind run registry.example.org/shop:7 -- ./migrate --check\n  hivemind run --detach --name import registry.example.org/import:2"
    )]
    Run(RunOnce),
    /// Show what a workload's containers print
    #[command(after_help = "Examples:\n  hivemind logs web -f\n  hivemind logs web/0 --tail 20")]
    Logs(Logs),
    /// Run a command in a container of a workload
    #[command(
        long_about = "Run a command in a container of a workload, on whichever machine that is.\n\nOn a terminal the \
            command has one too. Otherwise it reads what comes in, and what it prints to its two outputs is told apart. \
            It ends when this command ends, and this one with its exit code.",
        after_help = "Examples:\n  hivemind exec web sh\n  hivemind exec web/1 cat /etc/hostname\n  hivemind exec db psql -U postgres < dump.sql\n  hivemind exec web --output json nginx -v"
    )]
    Exec(Exec),
    /// Be at the own command of a workload's container: see what it prints, and type to its terminal
    #[command(
        long_about = "Be at the own command of a workload's container, on whichever machine that is: what it prints from now on is shown \
            as it comes, and if it has a terminal (`tty: true`), what is typed goes there. Ctrl-P Ctrl-Q leaves it, and it goes on. \
            Without a terminal, Ctrl-C leaves it.",
        after_help = "Examples:\n  hivemind attach console\n  hivemind attach console/1 --no-input"
    )]
    Attach(Attach),
    /// Run tools beside a container of a workload, whose image has none
    #[command(
        long_about = "Run an image of tools beside a container of a workload, on whichever machine that is: with its processes, \
            its network, its host name and its memory segments, and files of its own. The container's files are in /proc/1/root. It \
            ends when this command ends, and nothing of it stays.",
        after_help = "Examples:\n  hivemind debug web\n  hivemind debug web/1 --image registry.example/tools:3 -- tcpdump -i eth0\n  hivemind debug web -- wget -O - http://localhost:8080/"
    )]
    Debug(Debug),
    /// Copy files and folders to a container or from one
    #[command(
        long_about = "Copy files and folders to a container or from one, on whichever machine that is.\n\nA path in a \
            container is written WORKLOAD:PATH or WORKLOAD/SLOT:PATH. With a slash at its end it is a folder to copy into, else \
            the copy's own name. The container needs `tar`.",
        after_help = "Examples:\n  hivemind cp app.conf web:/etc/app/\n  hivemind cp site web/1:/srv/site\n  hivemind cp db:/var/backup/today.sql ./"
    )]
    Cp(Copy),
    /// Show a document as it was signed, by whom, and what has become of it
    #[command(
        after_help = "Examples:\n  hivemind inspect web\n  hivemind inspect data --kind volume --output json"
    )]
    Inspect(Inspect),
    /// Gather what helps to find out what is wrong: logs and state of all machines that answer, in one file
    #[command(
        after_help = "Examples:\n  hivemind support\n  hivemind support edge-3 --out edge-3.tar.gz\n\nA machine that no network reaches writes the same to a USB stick (FAT) with the label HIVESUPPORT."
    )]
    Support(Support),
    /// Run another number of a workload's replicas
    #[command(
        after_help = "Examples:\n  hivemind scale web=5 --wait\n  hivemind scale web=5 worker=0\n\nThe next push of its file says again what that says."
    )]
    Scale(Scale),
    /// Start the containers of workloads anew, some at a time
    #[command(
        after_help = "Examples:\n  hivemind restart web --wait\n  hivemind restart web worker\n\nHow many at a time is `deploy: {update_config: {parallelism}}` of the file."
    )]
    Restart(Restart),
    /// Remove workloads; their volumes and secrets stay
    #[command(after_help = "Examples:\n  hivemind remove web\n  hivemind remove -f compose.yaml --yes")]
    Remove(Remove),
    /// Manage operators' keys
    #[command(
        subcommand,
        after_help = "Example:\n  hivemind keys generate ci && hivemind keys add ci --role deployer"
    )]
    Keys(Keys),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  hivemind completions bash > /etc/bash_completion.d/hivemind")]
    Completions(Completions),
}

/// See [`Command::Upgrade`].
#[derive(Debug, Args)]
pub struct Upgrade {
    /// What to do with the release there is; shows how far it has come if nothing is given
    #[command(subcommand)]
    pub command: Option<UpgradeCommand>,
    /// The update bundle: the folder that the image's build writes, or where it was put: its folder on a web server
    /// (http:// or https://), or the reference in a registry (HOST/REPOSITORY:TAG) that it was pushed to
    #[arg(value_name = "FOLDER|URL|REF")]
    pub bundle: Option<String>,
    /// Where machines fetch the bundle's files; repeat for several, tried in turn. Without it from where the bundle is. `stick`
    /// is one that is plugged into any machine: FAT, with the label HIVERELEASE, and the files of the bundle's folder on it
    #[arg(long = "from", id = "sources", value_name = "URL|REF|stick", requires = "bundle")]
    pub sources: Vec<String>,
    /// Wait until all machines run it and are well, and show how far it is
    #[arg(long, short)]
    pub wait: bool,
    /// How long to wait
    #[arg(long, default_value = "1h", value_parser = quantity::duration_ms, requires = "wait")]
    pub timeout: u64,
    /// A registry to read the bundle from by plain HTTP, HOST:PORT; machines have their own list
    #[arg(long = "insecure-registry", value_name = "HOST:PORT", value_delimiter = ',', requires = "bundle")]
    pub insecure_registries: Vec<String>,
}

/// See [`Upgrade::command`].
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum UpgradeCommand {
    /// No other machine takes the release until it is resumed
    #[command(after_help = "Example:\n  hivemind upgrade pause")]
    Pause,
    /// Go on after a pause
    #[command(after_help = "Example:\n  hivemind upgrade resume")]
    Resume,
    /// Take the release back: machines that have it keep it, no other takes it
    #[command(after_help = "Example:\n  hivemind upgrade abort")]
    Abort,
}

/// See [`Command::Init`].
#[derive(Debug, Args)]
pub struct Init {
    /// The cluster's name: lower-case letters, digits and hyphens
    pub name: String,
    /// Encrypt private keys with a passphrase (asked for, or from HIVEMIND_PASSPHRASE)
    #[arg(long)]
    pub passphrase: bool,
    /// How long machines may join with the first token
    #[arg(long, default_value = crate::token::DEFAULT_TTL, value_parser = quantity::duration_ms)]
    pub ttl: u64,
}

/// See [`Command::Token`].
#[derive(Debug, Subcommand)]
pub enum Token {
    /// Make a join token
    #[command(after_help = "Example:\n  hivemind token create --ttl 1h --uses 3 --seed 192.0.2.5")]
    Create(TokenCreate),
    /// List the tokens made on this machine
    #[command(after_help = "Example:\n  hivemind token list")]
    List,
}

/// See [`Token::Create`].
#[derive(Debug, Args)]
pub struct TokenCreate {
    /// How long machines may join with it
    #[arg(long, default_value = crate::token::DEFAULT_TTL, value_parser = quantity::duration_ms)]
    pub ttl: u64,
    /// How many machines may join with it; any number if not given
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub uses: Option<u32>,
    /// A member to ask first, HOST or HOST:PORT; needed only where multicast does not reach
    #[arg(long = "seed", visible_alias = "seeds", value_delimiter = ',', value_name = "HOST")]
    pub seeds: Vec<String>,
    /// Also write the token to this file
    #[arg(long, value_name = "FILE")]
    pub output_file: Option<PathBuf>,
}

/// See [`Command::Image`].
#[derive(Debug, Subcommand)]
pub enum Image {
    /// Write the machine configuration onto an image file or a disk
    #[command(
        after_help = "Examples:\n  hivemind image configure hivemind.img\n  hivemind image configure /dev/sdx --hostname edge-1 --label site=roof\n  hivemind image configure /dev/sdx --install\n  hivemind image configure --output-file node.toml"
    )]
    Configure(Box<ImageConfigure>),
}

/// See [`Image::Configure`].
#[derive(Debug, Args)]
pub struct ImageConfigure {
    /// The image file or disk
    #[arg(required_unless_present_any = ["stdout", "output_file"], conflicts_with_all = ["stdout", "output_file"])]
    pub target: Option<PathBuf>,
    /// The token file; without it the bundle's latest open token
    #[arg(long, value_name = "FILE")]
    pub token: Option<PathBuf>,
    /// The machine's host name; without it one made from its id
    #[arg(long)]
    pub hostname: Option<String>,
    /// A label for placement constraints
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    pub labels: Vec<(String, String)>,
    /// A member to ask first, HOST or HOST:PORT
    #[arg(long = "seed", value_name = "HOST", value_delimiter = ',')]
    pub seeds: Vec<String>,
    /// A registry to speak plain HTTP to, HOST:PORT
    #[arg(long = "insecure-registry", value_name = "HOST:PORT", value_delimiter = ',')]
    pub insecure_registries: Vec<String>,
    /// A mirror of a registry (`docker.io`), or of all (`*`), to be asked first
    #[arg(long = "mirror", value_name = "REGISTRY=HOST[:PORT]", value_parser = pair)]
    pub mirrors: Vec<(String, String)>,
    /// The network interface; without it the first with a carrier
    #[arg(long)]
    pub interface: Option<String>,
    /// A static address with prefix length, as 192.0.2.5/24; without it DHCP
    #[arg(long)]
    pub address: Option<String>,
    /// The default gateway of a static address
    #[arg(long, requires = "address")]
    pub gateway: Option<std::net::IpAddr>,
    /// A name server
    #[arg(long, value_delimiter = ',')]
    pub dns: Vec<std::net::IpAddr>,
    /// A time server
    #[arg(long, value_delimiter = ',')]
    pub ntp: Vec<String>,
    /// Have machines that are started from it install it on another disk and switch themselves off: on that with the serial
    /// number, whatever it has, or on the only one that is blank and not at the USB
    #[arg(long, value_name = "SERIAL", num_args = 0..=1, require_equals = true)]
    pub install: Option<Option<String>>,
    /// Print the configuration instead
    #[arg(long, conflicts_with = "output_file")]
    pub stdout: bool,
    /// Write the configuration to this file instead
    #[arg(long, value_name = "FILE")]
    pub output_file: Option<PathBuf>,
    /// Replace another cluster's configuration
    #[arg(long)]
    pub force: bool,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not KEY=VALUE")),
    }
}

/// Where a Compose file is and what to make of it.
#[derive(Debug, Clone, Args)]
pub struct Source {
    /// The Compose file; `-` reads standard input. Of several, each is laid over the ones before it. Or files of
    /// documents, as `convert` prints them and `schema` describes them
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// The namespace of its workloads
    #[arg(long, short, default_value = hivemind_spec::document::DEFAULT_NAMESPACE)]
    pub namespace: String,
    /// Takes the services of this profile too, besides those of COMPOSE_PROFILES; `*` takes all
    #[arg(long, value_name = "NAME")]
    pub profile: Vec<String>,
}

/// How tags of images become digests.
#[derive(Debug, Clone, Default, Args)]
pub struct Pinning {
    /// Leave images as they are named: each machine takes what a tag names when it fetches it, instead of all of them
    /// what it names now
    #[arg(long)]
    pub no_pin: bool,
    /// A registry to look tags up in by plain HTTP, HOST:PORT; machines have their own list
    #[arg(
        long = "insecure-registry",
        env = "HIVEMIND_INSECURE_REGISTRY",
        value_name = "HOST:PORT",
        value_delimiter = ','
    )]
    pub insecure_registries: Vec<String>,
}

/// See [`Command::Push`].
#[derive(Debug, Args)]
pub struct Push {
    /// What to push.
    #[command(flatten)]
    pub source: Source,
    /// What becomes of tags.
    #[command(flatten)]
    pub pinning: Pinning,
    /// Whether to wait.
    #[command(flatten)]
    pub waiting: Waiting,
}

/// Whether and how long a change is waited for.
#[derive(Debug, Args)]
pub struct Waiting {
    /// Wait until everything runs, and show how far it is
    #[arg(long, short)]
    pub wait: bool,
    /// How long to wait
    #[arg(long, default_value = "5m", value_parser = quantity::duration_ms, requires = "wait")]
    pub timeout: u64,
}

impl Waiting {
    /// For how long, milliseconds; none: not at all.
    pub fn limit_ms(&self) -> Option<u64> {
        self.wait.then_some(self.timeout)
    }
}

/// See [`Command::Plan`].
#[derive(Debug, Args)]
pub struct Plan {
    /// What to compare with the cluster.
    #[command(flatten)]
    pub source: Source,
    /// What becomes of tags.
    #[command(flatten)]
    pub pinning: Pinning,
    /// End with exit code 7 when something would change
    #[arg(long)]
    pub exit_code: bool,
}

/// See [`Command::Convert`].
#[derive(Debug, Args)]
pub struct Convert {
    /// What to convert.
    #[command(flatten)]
    pub source: Source,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

/// See [`Command::Namespaces`].
#[derive(Debug, Subcommand)]
pub enum Namespaces {
    /// List them
    #[command(after_help = "Example:\n  hivemind namespaces list")]
    List,
    /// Let containers be given more of the machines they run on
    #[command(after_help = "Example:\n  hivemind namespaces allow home devices host-namespaces")]
    Allow(NamespaceChange),
    /// Take it back; containers that have it are stopped
    #[command(after_help = "Example:\n  hivemind namespaces deny home devices")]
    Deny(NamespaceChange),
}

/// See [`Namespaces::Allow`] and [`Namespaces::Deny`].
#[derive(Debug, Args)]
pub struct NamespaceChange {
    /// The namespace
    pub namespace: String,
    /// capabilities: those that reach the machine. devices: the machine's devices. host-network: its network. host-namespaces: its processes, names
    /// and memory segments. privileged: all of that, and as good as root on the machine
    #[arg(required = true, value_name = "WHAT", value_parser = PossibleValuesParser::new(Permission::ALL.map(Permission::name)).try_map(|name| Permission::named(&name).ok_or("it cannot be allowed")))]
    pub permissions: Vec<Permission>,
}

/// See [`Command::Secrets`].
#[derive(Debug, Subcommand)]
pub enum Secrets {
    /// List them
    #[command(after_help = "Example:\n  hivemind secrets list")]
    List(SecretsList),
    /// Make a secret, or give it another content, which reaches the containers while they run
    #[command(
        after_help = "Examples:\n  hivemind secrets set db-password\n  hivemind secrets set tls-key --file key.pem\n  openssl rand -hex 16 | hivemind secrets set token"
    )]
    Set(SecretsSet),
    /// Give the password with which images are pulled from a registry
    #[command(
        after_help = "Examples:\n  hivemind secrets login registry.example --user ci\n  hivemind secrets login registry.example:5000 --user ci --password-file token.txt"
    )]
    Login(SecretsLogin),
    /// Remove a secret that no workload uses
    #[command(after_help = "Example:\n  hivemind secrets remove db-password")]
    Remove(SecretsRemove),
}

/// See [`Secrets::List`].
#[derive(Debug, Default, Args)]
pub struct SecretsList {
    /// Only this namespace; all if not given
    #[arg(long, short)]
    pub namespace: Option<String>,
}

/// A secret, by name.
#[derive(Debug, Args)]
pub struct SecretName {
    /// The secret
    #[arg(value_name = "SECRET")]
    pub name: String,
    /// Its namespace
    #[arg(long, short, default_value = hivemind_spec::document::DEFAULT_NAMESPACE)]
    pub namespace: String,
}

/// See [`Secrets::Set`].
#[derive(Debug, Args)]
pub struct SecretsSet {
    /// Which
    #[command(flatten)]
    pub secret: SecretName,
    /// The file with the content; standard input, or what is typed, if not given
    #[arg(long, short)]
    pub file: Option<PathBuf>,
}

/// See [`Secrets::Login`].
#[derive(Debug, Args)]
pub struct SecretsLogin {
    /// The registry, as in image references; Docker's is docker.io
    #[arg(value_name = "REGISTRY")]
    pub registry: String,
    /// The user's name there
    #[arg(long, short)]
    pub user: String,
    /// The file with the password or token; standard input, or what is typed, if not given
    #[arg(long)]
    pub password_file: Option<PathBuf>,
    /// The namespace whose workloads pull with it
    #[arg(long, short, default_value = hivemind_spec::document::DEFAULT_NAMESPACE)]
    pub namespace: String,
}

/// See [`Secrets::Remove`].
#[derive(Debug, Args)]
pub struct SecretsRemove {
    /// Which
    #[command(flatten)]
    pub secret: SecretName,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
}

/// See [`Command::Keys`].
#[derive(Debug, Subcommand)]
pub enum Keys {
    /// List the cluster's keys, and which of them are on this machine
    #[command(after_help = "Example:\n  hivemind keys list")]
    List,
    /// Make a private key on this machine and print its public half
    #[command(after_help = "Example:\n  hivemind keys generate ci")]
    Generate(KeysGenerate),
    /// Let a key act on the cluster
    #[command(after_help = "Example:\n  hivemind keys add ci --role deployer --namespace web")]
    Add(KeysAdd),
    /// End a key's use; what it signed stays valid
    #[command(after_help = "Example:\n  hivemind keys retire ci")]
    Retire(KeyName),
    /// End a key's use and void all it ever signed
    #[command(after_help = "Example:\n  hivemind keys revoke ci --yes")]
    Revoke(KeyName),
}

/// See [`Keys::Generate`].
#[derive(Debug, Args)]
pub struct KeysGenerate {
    /// The key's name
    pub name: String,
    /// Encrypt it with a passphrase
    #[arg(long)]
    pub passphrase: bool,
}

/// See [`Keys::Add`].
#[derive(Debug, Args)]
pub struct KeysAdd {
    /// The key's name
    pub name: String,
    /// Its public half in base64; without it that of the key NAME on this machine
    #[arg(long, value_name = "BASE64")]
    pub public_key: Option<String>,
    /// What it may do
    #[arg(long, value_enum)]
    pub role: Role,
    /// A namespace it may touch; all if not given
    #[arg(long = "namespace", value_name = "NAMESPACE")]
    pub namespaces: Vec<String>,
    /// Whose it is
    #[arg(long, default_value = "")]
    pub owner: String,
}

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Everything
    Admin,
    /// Push and remove workloads, and read
    Deployer,
    /// Read
    Viewer,
}

/// The name of a key.
#[derive(Debug, Args)]
pub struct KeyName {
    /// The key's name
    pub name: String,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
}

/// See [`Command::Completions`].
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_help_with_an_example() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            assert!(command.get_about().is_some(), "{path} says nothing about itself");
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example") && help.contains("hivemind "), "{path} has no example");
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{path} {} has no help", argument.get_id());
            }
            command.get_subcommands().for_each(|sub| check(sub, &path));
        }
        check(&Cli::command(), "");
    }

    #[test]
    fn the_examples_in_the_help_can_be_typed() {
        fn check(command: &clap::Command) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            for example in help.lines().filter_map(|line| line.trim().strip_prefix("hivemind ")) {
                for part in example.split(" && hivemind ") {
                    let words = part.split_whitespace().take_while(|word| *word != ">");
                    if let Err(error) = Cli::try_parse_from(std::iter::once("hivemind").chain(words)) {
                        panic!("{part}: {error}");
                    }
                }
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }
}
