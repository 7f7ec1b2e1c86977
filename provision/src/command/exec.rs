//! `hivemind exec` and `hivemind debug`.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Read};

use hivemind_spec::exec::{DebugRequest, ExecRequest, TerminalSize};

use super::images;
use super::session::{Keeper, Kept, Printer, converse, size};
use crate::cli::{Debug, Exec, Global, Output};
use crate::client::{Client, percent};
use crate::failure::{Exit, Result};

pub(super) fn run(global: &Global, options: &Exec) -> Result<Exit> {
    let request = request(options, terminal(global, options.no_terminal));
    let client = super::client(global)?;
    super::block_on("the command is ended", async {
        let keeper = keeper(global)?;
        in_container(&client, &options.namespace, &options.workload, &request, io::stdin(), keeper).await
    })
}

/// `hivemind debug`.
pub(super) fn debug(global: &Global, options: &Debug) -> Result<Exit> {
    let client = super::client(global)?;
    super::block_on("the tools are ended", async {
        let request = DebugRequest {
            image: images::as_given(&client, &options.image).await?,
            command: options.command.clone(),
            terminal: terminal(global, options.no_terminal),
        };
        let json = serde_json::to_string(&request).unwrap_or_default();
        let path = path("debug", &options.namespace, &options.workload, &json)?;
        converse(&client, &path, request.terminal.is_some(), io::stdin(), keeper(global)?).await
    })
}

/// The terminal that a command is to have, if it is to have one.
pub(super) fn terminal(global: &Global, unwanted: bool) -> Option<TerminalSize> {
    let is_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    (is_terminal && !unwanted && global.output == Output::Text).then(size).flatten()
}

pub(super) fn keeper(global: &Global) -> Result<Keeper> {
    Ok(match global.output {
        Output::Json => Keeper::Kept(Kept::default()),
        Output::Text => Keeper::Printed(Printer::start(io::stdout(), io::stderr())?),
    })
}

/// Where a container of a workload, or of one of its replicas (`WORKLOAD/SLOT`), is asked for something.
pub(super) fn path(what: &str, namespace: &str, replica: &str, json: &str) -> Result<String> {
    let (workload, slot) = super::replica(replica)?;
    let slot = slot.map(|slot| format!("slot={slot}&")).unwrap_or_default();
    Ok(format!("/v1/{what}/{}/{}?{slot}request={}", percent(namespace), percent(workload), percent(json)))
}

/// Runs a command in a container of a workload, or of one of its replicas (`WORKLOAD/SLOT`), until it ends.
pub(super) async fn in_container(
    client: &Client,
    namespace: &str,
    replica: &str,
    request: &ExecRequest,
    input: impl Read + Send + 'static,
    keeper: Keeper,
) -> Result<Exit> {
    let json = serde_json::to_string(request).unwrap_or_default();
    let path = path("exec", namespace, replica, &json)?;
    converse(client, &path, request.terminal.is_some(), input, keeper).await
}

fn request(options: &Exec, terminal: Option<TerminalSize>) -> ExecRequest {
    let mut env: BTreeMap<_, _> = options.env.iter().cloned().collect();
    // Programs draw as the terminal in front of its user can show it.
    if terminal.is_some()
        && let Ok(kind) = std::env::var("TERM")
    {
        env.entry("TERM".to_owned()).or_insert(kind);
    }
    ExecRequest {
        command: options.command.clone(),
        env,
        working_dir: options.workdir.clone(),
        user: options.user.clone(),
        terminal,
    }
}
