//! Talks to the process that keeps a cluster, and starts it.

use std::env;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use hivemind_qemu::{cache_dir, sweep};
use nix::unistd::Uid;

use super::keeper;
use super::protocol::{Answer, Cluster, MESSAGE_MAX, MachineStatus, Progress, Request, UpOptions};

/// Starts the keeper and waits until the cluster is there, telling what happens.
pub(crate) fn up(options: &UpOptions) -> Result<()> {
    if cluster_if_up(&options.name)?.is_some() {
        bail!("the cluster `{}` is already up; `hivemind-qemu down` removes it", options.name);
    }
    let log = cache_dir()?.join(format!("qemu-{}.log", options.name));
    let errors = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
    let mut keeper = privileged(&env::current_exe()?)
        .arg("keep")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .context("cannot start the process that keeps the cluster")?;
    if let Some(mut stdin) = keeper.stdin.take() {
        stdin.write_all(serde_json::to_string(options)?.as_bytes())?;
    }
    let progress = keeper.stdout.take().map(BufReader::new).into_iter().flat_map(BufRead::lines);
    for line in progress {
        match serde_json::from_str(&line?)? {
            Progress::Doing(what) => eprintln!("{what}"),
            Progress::Ready => return Ok(()),
            Progress::Failed(problem) => bail!(problem),
        }
    }
    bail!("the process that keeps the cluster ended; see {}", log.display())
}

/// The program with the right to make networks, taps and mounts. Root has it. Others have it in a user namespace of
/// their own, in which they stay who they are; `qemu/enable-labs` does the same.
fn privileged(program: &Path) -> Command {
    if Uid::effective().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-current-user", "--keep-caps", "--"]).arg(program);
    command
}

/// Asks the keeper; a cluster that is not up is an error.
pub(crate) fn ask(name: &str, request: &Request) -> Result<Answer> {
    let missing = || format!("the cluster `{name}` is not up; `hivemind-qemu up` starts one");
    ask_if_up(name, request)?.with_context(missing)
}

fn ask_if_up(name: &str, request: &Request) -> Result<Option<Answer>> {
    let Ok(mut keeper) = UnixStream::connect_addr(&keeper::socket(name)?) else {
        return Ok(None);
    };
    let mut answer = String::new();
    let asked = keeper.write_all(format!("{}\n", serde_json::to_string(request)?).as_bytes());
    let heard = asked.and_then(|()| BufReader::new(keeper.take(MESSAGE_MAX)).read_line(&mut answer));
    // A keeper that ended without an answer was on its way out, because its `up` was interrupted.
    match heard {
        Ok(0) => return Ok(None),
        Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
            return Ok(None);
        }
        heard => heard.context("cannot talk to the process that keeps the cluster")?,
    };
    let answer =
        serde_json::from_str(&answer).context("the process that keeps the cluster gave no answer")?;
    Ok(Some(answer))
}

pub(crate) fn cluster_if_up(name: &str) -> Result<Option<Cluster>> {
    match ask_if_up(name, &Request::Describe)? {
        Some(Answer::Cluster(cluster)) => Ok(Some(cluster)),
        Some(Answer::Failed(problem)) => bail!(problem),
        _ => Ok(None),
    }
}

pub(crate) fn cluster(name: &str) -> Result<Cluster> {
    cluster_if_up(name)?
        .with_context(|| format!("the cluster `{name}` is not up; `hivemind-qemu up` starts one"))
}

pub(crate) fn machine(name: &str, machine: &str) -> Result<MachineStatus> {
    let machines = cluster(name)?.machines;
    let found = machines.into_iter().find(|status| status.name == machine);
    found.with_context(|| format!("there is no machine `{machine}`; `hivemind-qemu list` shows them"))
}

/// Removes the cluster, and what is left of it in case its keeper was killed. Nothing to remove is fine.
pub(crate) fn down(name: &str) -> Result<()> {
    if let Some(Answer::Failed(problem)) = ask_if_up(name, &Request::Down)? {
        bail!(problem);
    }
    Ok(sweep()?)
}
