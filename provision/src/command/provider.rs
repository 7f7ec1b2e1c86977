//! Runs the programs that provide services (`provider` in a Compose file).

use std::env;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;

use crate::compose::Compiled;
use crate::compose::provider::{Given, Message, Provided, give};
use crate::failure::{Failure, Result};
use crate::registry::docker_folder;
use crate::terminal::{FAINT, STRONG, caution, note, paint, printable};

/// The longest line of a provider's, bytes: a variable, not a file.
const MAX_LINE_BYTES: u64 = 256 * 1024;

/// Where plugins of the Docker command line are installed for all users.
const PLUGINS: [&str; 4] = [
    "/usr/local/lib/docker/cli-plugins",
    "/usr/local/libexec/docker/cli-plugins",
    "/usr/lib/docker/cli-plugins",
    "/usr/libexec/docker/cli-plugins",
];

/// Has all provided services of a file made, and gives those that depend on them what their providers tell. Nothing is left
/// to be provided then.
pub(super) async fn up(compiled: &mut Compiled) -> Result<()> {
    // First all that can be wrong before anything is made.
    let found: Vec<_> = compiled.provided.iter().map(find).collect::<Result<_>>()?;
    for (provided, program) in std::mem::take(&mut compiled.provided).into_iter().zip(found) {
        let given = run(&program, &provided, &compiled.project, "up").await?;
        for (variable, service) in give(&mut compiled.documents, &provided, &given) {
            let text = format!(
                "{variable} of {service} is what {} says, and not what the file does",
                provided.service
            );
            caution(&text);
        }
    }
    Ok(())
}

/// Has all provided services of a file taken down.
pub(super) async fn down(compiled: &Compiled) -> Result<()> {
    let found: Vec<_> = compiled.provided.iter().map(find).collect::<Result<_>>()?;
    for (provided, program) in compiled.provided.iter().zip(found) {
        run(&program, provided, &compiled.project, "down").await?;
    }
    Ok(())
}

/// Says that providers are not asked.
pub(super) fn say_not_asked(compiled: &Compiled, instead: &str) {
    for provided in &compiled.provided {
        let (service, program) = (&provided.service, &provided.program);
        caution(&format!("{service} is provided by {program}, which only a push runs; {instead}"));
    }
}

/// A plugin of the Docker command line, or a program in the search path.
fn find(provided: &Provided) -> Result<PathBuf> {
    let own = docker_folder(|name| env::var_os(name).map(PathBuf::from));
    let own = own.map(|folder| folder.join("cli-plugins"));
    let plugins = own.into_iter().chain(PLUGINS.iter().map(PathBuf::from));
    let plugins = plugins.map(|folder| folder.join(format!("docker-{}", provided.program)));
    let path = env::var_os("PATH").unwrap_or_default();
    let programs = env::split_paths(&path).map(|folder| folder.join(&provided.program));
    let found = plugins.chain(programs).find(|file| is_program(file));
    found.ok_or_else(|| {
        let Provided { service, program, .. } = provided;
        let text = format!("{service} is provided by {program}, and there is no such program");
        Failure::local("no-provider", text)
            .advice(format!("install {program} on this machine, or a Docker plugin docker-{program}"))
    })
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Runs a provider to its end. What it prints on standard error goes there.
async fn run(program: &Path, provided: &Provided, project: &str, action: &str) -> Result<Given> {
    let service = &provided.service;
    let failed = |what: String| {
        let text = format!("{service}: `{} compose {action}` failed: {what}", provided.program);
        Failure::local("provider-failed", text).advice("what was made before stays; correct it and try again")
    };
    let mut command = Command::new(program);
    command.args(provided.arguments(project, action));
    // Interrupted, it is not left alone with what it does: it gets the signal of the terminal too.
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
    let (Some(stdout), Some(mut stdin)) = (child.stdout.take(), child.stdin.take()) else {
        return Err(failed("it has no pipes".to_owned()));
    };
    let mut lines = BufReader::new(stdout);
    let (mut given, mut refused) = (Given::default(), None);
    loop {
        let mut line = Vec::new();
        let read = (&mut lines).take(MAX_LINE_BYTES).read_until(b'\n', &mut line).await;
        if read.map_err(|error| failed(error.to_string()))? == 0 {
            break;
        }
        if line.len() as u64 == MAX_LINE_BYTES {
            return Err(failed(format!("it printed a line of over {MAX_LINE_BYTES} bytes")));
        }
        let text = String::from_utf8_lossy(&line);
        if text.trim().is_empty() {
            continue;
        }
        match given.hear(provided, &text).map_err(&failed)? {
            Message::Info(text) => {
                note(&format!("{}  {}", paint(STRONG, service), paint(FAINT, &printable(&text))));
            }
            Message::Error(text) => refused = Some(printable(&text)),
            Message::AsksConfiguration => {
                let answer = format!("{}\n", provided.configuration());
                stdin.write_all(answer.as_bytes()).await.map_err(|error| failed(error.to_string()))?;
            }
            Message::Silent => {}
        }
    }
    let status = child.wait().await.map_err(|error| failed(error.to_string()))?;
    match refused {
        Some(text) => Err(failed(text)),
        None if !status.success() => Err(failed(status.to_string())),
        None => Ok(given),
    }
}
