//! What the commands do: each reads what it needs, decides, and prints text or JSON.

mod adjust;
mod attach;
mod backup;
mod bars;
mod copy;
mod devices;
mod events;
mod exec;
mod image;
mod images;
mod init;
mod inspect;
mod jobs;
mod keys;
mod logs;
mod namespaces;
mod nodes;
mod pin;
mod plan;
mod prepare;
mod provider;
mod push;
mod remove;
mod rollout;
mod run;
mod secrets;
mod session;
mod show;
mod snapshots;
mod source;
mod stats;
mod stick;
mod support;
mod token;
mod upgrade;
mod volumes;
mod watch;

use std::future::Future;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::CommandFactory as _;

use crate::bundle::{self, Bundle};
use crate::cli::{Cli, Command, Completions, Global};
use crate::client::Client;
use crate::failure::{Exit, Failure, Result};

/// Runs a command.
///
/// # Errors
/// What is wrong and what to do next.
pub fn run(cli: Cli) -> Result<Exit> {
    let global = cli.global;
    match cli.command {
        Command::Init(options) => init::run(&global, &options),
        Command::Token(command) => token::run(&global, &command),
        Command::Image(command) => image::run(&global, &command),
        Command::Push(options) => push::run(&global, &options),
        Command::Plan(options) => plan::plan(&global, &options),
        Command::Convert(options) => plan::convert(&global, &options),
        Command::Schema => Ok(plan::schema()),
        Command::Ps(options) => show::ps(&global, &options),
        Command::Run(options) => run::run(&global, &options),
        Command::Stats(options) => stats::run(&global, &options),
        Command::Events(options) => events::run(&global, &options),
        Command::Top(chosen) => stats::top(&global, &chosen),
        Command::Jobs(options) => jobs::run(&global, &options),
        Command::Nodes { command } => nodes::run(&global, command.as_ref()),
        Command::Namespaces { command } => namespaces::run(&global, command.as_ref()),
        Command::Images { command } => images::run(&global, command.as_ref()),
        Command::Volumes { command } => volumes::run(&global, command.as_ref()),
        Command::Secrets { command } => secrets::run(&global, command.as_ref()),
        Command::Upgrade(options) => upgrade::run(&global, &options),
        Command::Status => show::status(&global),
        Command::Logs(options) => logs::run(&global, &options),
        Command::Attach(options) => attach::run(&global, &options),
        Command::Exec(options) => exec::run(&global, &options),
        Command::Debug(options) => exec::debug(&global, &options),
        Command::Cp(options) => copy::run(&global, &options),
        Command::Inspect(options) => inspect::run(&global, &options),
        Command::Support(options) => support::run(&global, &options),
        Command::Scale(options) => adjust::scale(&global, &options),
        Command::Restart(options) => adjust::restart(&global, &options),
        Command::Remove(options) => remove::run(&global, &options),
        Command::Keys(command) => keys::run(&global, &command),
        Command::Completions(options) => Ok(completions(&options)),
    }
}

fn open_bundle(global: &Global) -> Result<Bundle> {
    Bundle::open(&bundle::locate(global.dir.as_deref(), global.cluster.as_deref())?)
}

fn client(global: &Global) -> Result<Client> {
    let bundle = open_bundle(global)?;
    let key = bundle.operator_key(&global.key)?;
    Client::new(bundle, key, &global.node)
}

/// `WORKLOAD` or `WORKLOAD/SLOT`.
fn replica(text: &str) -> Result<(&str, Option<u32>)> {
    let Some((workload, slot)) = text.split_once('/') else { return Ok((text, None)) };
    match slot.parse() {
        Ok(slot) => Ok((workload, Some(slot))),
        Err(_) => Err(Failure::input("bad-replica", format!("{slot:?} is not the number of a replica"))
            .advice(format!("write for example {workload}/0; `hivemind ps {workload}` lists them"))),
    }
}

/// Runs what talks to the cluster, until it ends or Ctrl-C is pressed. Every step of every command
/// may be the last: what was sent is whole, what was not sent changes nothing.
fn block_on<T>(interrupted: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::local("runtime", format!("cannot start: {e}")))?;
    let done = runtime.block_on(async {
        tokio::select! {
            // First, so that the signal is listened for before anything is under way.
            biased;
            _ = tokio::signal::ctrl_c() => Err(Failure::new(Exit::Interrupted, "interrupted", interrupted)),
            done = work => done,
        }
    });
    // A connection that hangs must not keep the command from ending.
    runtime.shutdown_background();
    done
}

/// This machine's clock, milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn completions(options: &Completions) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut Cli::command(), "hivemind", &mut script);
    crate::terminal::say(String::from_utf8_lossy(&script).trim_end());
    Exit::Success
}
