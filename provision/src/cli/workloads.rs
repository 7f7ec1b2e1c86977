//! What to do with workloads that are there.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use clap::{Args, Subcommand};

use hivemind_spec::api::Severity;
use hivemind_spec::document::Kind;
use hivemind_spec::workload::Constraint;

use super::{Pinning, Waiting, variable};
use crate::compose::fitted;
use crate::quantity::{self, Moment};

/// A workload's name, also as its Compose file has it.
#[allow(clippy::unnecessary_wraps, reason = "clap wants a result")]
fn workload_name(text: &str) -> Result<String, std::convert::Infallible> {
    Ok(fitted(text))
}

/// See [`super::Command::Jobs`].
#[derive(Debug, Args)]
pub struct Jobs {
    /// What to do; lists them if not given
    #[command(subcommand)]
    pub command: Option<JobsCommand>,
    /// Which to list.
    #[command(flatten)]
    pub chosen: Chosen,
}

/// See [`Jobs::command`].
#[derive(Debug, Subcommand)]
pub enum JobsCommand {
    /// Run all replicas of a job once more: now, or when a run that goes on has ended
    #[command(after_help = "Example:\n  hivemind jobs run import && hivemind logs import -f")]
    Run(JobsRun),
}

/// See [`JobsCommand::Run`].
#[derive(Debug, Args)]
pub struct JobsRun {
    /// The job
    #[arg(value_parser = workload_name)]
    pub job: String,
    /// Its namespace
    #[arg(long, short, default_value = hivemind_spec::document::DEFAULT_NAMESPACE)]
    pub namespace: String,
}

/// See [`super::Command::Ps`].
#[derive(Debug, Args)]
pub struct Chosen {
    /// Only this workload
    #[arg(value_parser = workload_name)]
    pub workload: Option<String>,
    /// Only this namespace; all if not given
    #[arg(long, short)]
    pub namespace: Option<String>,
}

/// See [`super::Command::Stats`].
#[derive(Debug, Args)]
pub struct StatsOf {
    /// Which.
    #[command(flatten)]
    pub chosen: Chosen,
    /// Measure for a second, print it and end
    #[arg(long)]
    pub once: bool,
    /// How long between two looks
    #[arg(long, default_value = "2s", value_parser = quantity::duration_ms)]
    pub interval: u64,
}

/// See [`super::Command::Events`].
#[derive(Debug, Args)]
pub struct EventsOf {
    /// Which.
    #[command(flatten)]
    pub chosen: Chosen,
    /// Only what is at least that urgent: info, warning, error
    #[arg(long, default_value = "info", value_parser = severity, value_name = "LEVEL")]
    pub level: Severity,
    /// Only what happened since then: 10m ago, or a time in RFC 3339; without it all that machines remember
    #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
    pub since: Option<Moment>,
    /// Go on as more happens
    #[arg(short, long)]
    pub follow: bool,
}

fn severity(text: &str) -> Result<Severity, String> {
    let all = [("info", Severity::Info), ("warning", Severity::Warning), ("error", Severity::Error)];
    let found = all.into_iter().find(|(name, _)| *name == text).map(|(_, severity)| severity);
    found.ok_or_else(|| "it is info, warning or error".to_owned())
}

/// See [`super::Command::Run`].
#[derive(Debug, Args)]
pub struct RunOnce {
    /// The image
    pub image: String,
    /// The command and its arguments; the image's own if not given
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
    /// Its name; one that nothing else has if not given
    #[arg(long)]
    pub name: Option<String>,
    /// The namespace
    #[arg(long, short, default_value = hivemind_spec::document::DEFAULT_NAMESPACE)]
    pub namespace: String,
    /// A variable of its environment; repeat for several
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = variable)]
    pub env: Vec<(String, String)>,
    /// Whose it is: UID, UID:GID, NAME or NAME:GROUP of the image
    #[arg(long, short)]
    pub user: Option<String>,
    /// The directory it starts in
    #[arg(long, short, value_name = "DIRECTORY")]
    pub workdir: Option<String>,
    /// A network to be in; repeat for several
    #[arg(long = "network", value_name = "NAME")]
    pub networks: Vec<String>,
    /// Where it may run, as in a Compose file: `node.labels.disk == ssd`
    #[arg(long = "constraint", value_name = "CONSTRAINT", value_parser = constraint)]
    pub constraints: Vec<Constraint>,
    /// The most memory it may use: 512m
    #[arg(long, value_parser = quantity::size_bytes)]
    pub memory: Option<u64>,
    /// The most of a processor it may use: 0.5
    #[arg(long, value_parser = quantity::cpu_millis)]
    pub cpus: Option<u64>,
    /// How long it may take
    #[arg(long, value_parser = quantity::duration_ms)]
    pub deadline: Option<u64>,
    /// Print its name and do not wait for it; it stays until it is removed
    #[arg(long, short)]
    pub detach: bool,
    /// Leave it there when it has ended
    #[arg(long)]
    pub keep: bool,
    /// What becomes of tags.
    #[command(flatten)]
    pub pinning: Pinning,
}

fn constraint(text: &str) -> Result<Constraint, String> {
    let example = "write for example \"node.labels.disk == ssd\" or \"node.hostname == edge-1\"";
    crate::compose::constraint(text).ok_or_else(|| format!("{text:?} is not a constraint; {example}"))
}

/// See [`super::Command::Logs`].
#[derive(Debug, Args)]
pub struct Logs {
    /// The workload, or one of its replicas as WORKLOAD/SLOT
    #[arg(value_parser = workload_name)]
    pub workload: String,
    /// The workload's namespace
    #[arg(long, short, default_value = hivemind_spec::document::DEFAULT_NAMESPACE)]
    pub namespace: String,
    /// Go on with what is printed from now on
    #[arg(long, short)]
    pub follow: bool,
    /// Only the last lines of each replica
    #[arg(long, value_name = "N")]
    pub tail: Option<u32>,
    /// Only what was printed since then: 10m ago, or a time in RFC 3339; all of it, unless there is a --tail
    #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
    pub since: Option<Moment>,
    /// Only what was printed before then
    #[arg(long, value_name = "TIME", value_parser = Moment::parse, conflicts_with = "follow")]
    pub until: Option<Moment>,
    /// Show when each line was printed
    #[arg(long, short)]
    pub timestamps: bool,
}

/// See [`super::Command::Exec`].
#[derive(Debug, Args)]
pub struct Exec {
    /// The workload, or one of its replicas as WORKLOAD/SLOT; the first that runs if there is no number
    #[arg(value_parser = workload_name)]
    pub workload: String,
    /// The command and its arguments; no shell is in between
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
    /// The workload's namespace
    #[arg(long, short, default_value = hivemind_spec::document::DEFAULT_NAMESPACE)]
    pub namespace: String,
    /// A variable of its environment; repeat for several
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = variable)]
    pub env: Vec<(String, String)>,
    /// Whose it is: UID, UID:GID, NAME or NAME:GROUP of the image; as the container's own command if not given
    #[arg(long, short)]
    pub user: Option<String>,
    /// The directory it starts in; that of the container's own command if not given
    #[arg(long, short, value_name = "DIRECTORY")]
    pub workdir: Option<String>,
    /// No terminal for the command, even on one
    #[arg(long, short = 'T')]
    pub no_terminal: bool,
}

/// See [`super::Command::Attach`].
#[derive(Debug, Args)]
pub struct Attach {
    /// The workload, or one of its replicas as WORKLOAD/SLOT; the first that runs if there is no number
    #[arg(value_parser = workload_name)]
    pub workload: String,
    /// The workload's namespace
    #[arg(long, short, default_value = hivemind_spec::document::DEFAULT_NAMESPACE)]
    pub namespace: String,
    /// Type nothing, and only look
    #[arg(long)]
    pub no_input: bool,
}

/// See [`super::Command::Debug`].
#[derive(Debug, Args)]
pub struct Debug {
    /// The workload, or one of its replicas as WORKLOAD/SLOT; the first that runs if there is no number
    #[arg(value_parser = workload_name)]
    pub workload: String,
    /// The command and its arguments; the image's own if not given
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
    /// The image with the tools, which the machine fetches or was given
    #[arg(long, env = "HIVEMIND_DEBUG_IMAGE", default_value = "busybox")]
    pub image: String,
    /// The workload's namespace
    #[arg(long, short, default_value = hivemind_spec::document::DEFAULT_NAMESPACE)]
    pub namespace: String,
    /// No terminal for the tools, even on one
    #[arg(long, short = 'T')]
    pub no_terminal: bool,
}

/// Kinds of documents, as they are typed.
const KINDS: [(&str, Kind); 8] = [
    ("workload", Kind::Workload),
    ("volume", Kind::Volume),
    ("secret", Kind::Secret),
    ("namespace", Kind::Namespace),
    ("key", Kind::Key),
    ("token", Kind::Token),
    ("node-intent", Kind::NodeIntent),
    ("os-release", Kind::OsRelease),
];

/// See [`super::Command::Inspect`].
#[derive(Debug, Args)]
pub struct Inspect {
    /// The document's name
    #[arg(value_parser = workload_name)]
    pub name: String,
    /// What it is of
    #[arg(long, default_value = "workload", value_parser = PossibleValuesParser::new(KINDS.map(|(name, _)| name)).try_map(|name| KINDS.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind).ok_or("it is no kind")))]
    pub kind: Kind,
    /// Its namespace
    #[arg(long, short, default_value = hivemind_spec::document::DEFAULT_NAMESPACE)]
    pub namespace: String,
}

/// See [`super::Command::Cp`].
#[derive(Debug, Args)]
pub struct Copy {
    /// What to copy: PATH, or WORKLOAD:PATH in a container
    #[arg(value_name = "FROM")]
    pub from: String,
    /// Where to: WORKLOAD:PATH in a container, or PATH
    #[arg(value_name = "TO")]
    pub to: String,
    /// The workload's namespace
    #[arg(long, short, default_value = hivemind_spec::document::DEFAULT_NAMESPACE)]
    pub namespace: String,
}

/// How workloads are changed.
#[derive(Debug, Args)]
pub struct Adjusting {
    /// The workloads' namespace
    #[arg(long, short, default_value = hivemind_spec::document::DEFAULT_NAMESPACE)]
    pub namespace: String,
    /// Whether to wait.
    #[command(flatten)]
    pub waiting: Waiting,
}

/// See [`super::Command::Scale`].
#[derive(Debug, Args)]
pub struct Scale {
    /// A workload and how many replicas it is to have; repeat for several
    #[arg(required = true, value_name = "WORKLOAD=NUMBER", value_parser = scaled)]
    pub workloads: Vec<(String, u32)>,
    /// How.
    #[command(flatten)]
    pub adjusting: Adjusting,
}

/// See [`super::Command::Restart`].
#[derive(Debug, Args)]
pub struct Restart {
    /// The workloads
    #[arg(required = true, value_name = "WORKLOAD", value_parser = workload_name)]
    pub workloads: Vec<String>,
    /// How.
    #[command(flatten)]
    pub adjusting: Adjusting,
}

fn scaled(text: &str) -> Result<(String, u32), String> {
    let parts = text.split_once('=').and_then(|(name, number)| Some((fitted(name), number.parse().ok()?)));
    parts.ok_or_else(|| format!("{text:?} is not a workload and a number; write for example web=5"))
}

/// See [`super::Command::Remove`].
#[derive(Debug, Args)]
pub struct Remove {
    /// The workloads
    #[arg(required_unless_present = "file", value_parser = workload_name)]
    pub names: Vec<String>,
    /// The services of this Compose file
    #[arg(long, short, conflicts_with = "names")]
    pub file: Option<PathBuf>,
    /// The workloads' namespace
    #[arg(long, short, default_value = hivemind_spec::document::DEFAULT_NAMESPACE)]
    pub namespace: String,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
}
