//! `hivemind run`: one container, from its start to its end.

use std::collections::BTreeMap;
use std::time::Duration;

use hivemind_spec::api::{LogLine, Phase, Replica};
use hivemind_spec::document::{Document, Kind, Metadata, Spec, SpecKey};
use hivemind_spec::id::hex;
use hivemind_spec::workload::{
    Attachment, ContainerSpec, Job, Resources, RestartCondition, RestartPolicy, WorkloadSpec,
};
use serde_json::json;

use super::logs::{self, Seen};
use super::push::send;
use super::watch::phase_name;
use super::{pin, prepare};
use crate::cli::{Global, Output, RunOnce};
use crate::client::{Client, with_query};
use crate::failure::{Exit, Failure, Result};
use crate::terminal::{FAINT, note, paint, printable, say, say_json};
use crate::{bundle, deploy};

/// How often the cluster is asked how far it is.
const INTERVAL: Duration = Duration::from_millis(500);

/// Lines of its output that are asked for at a time: as many as nodes give.
const TAIL: u32 = 10_000;

pub(super) fn run(global: &Global, options: &RunOnce) -> Result<Exit> {
    let client = super::client(global)?;
    let name = match &options.name {
        Some(name) => name.clone(),
        None => format!("run-{}", hex(&bundle::random::<4>()?)),
    };
    let key = SpecKey { kind: Kind::Workload, namespace: options.namespace.clone(), name };
    super::block_on("nothing was run, or only just; look with `hivemind jobs`", async {
        let mut document = document(&key, options);
        let documents = std::slice::from_mut(&mut document);
        let policies = BTreeMap::new();
        let looked = pin::look_ahead(&client, documents, &policies, &options.pinning);
        let (before, mut found) = tokio::try_join!(prepare::held(&client, &key), looked)?;
        if before.as_ref().is_some_and(|item| !item.deleted) {
            let text = format!("there is a workload {} already", key.name);
            return Err(Failure::new(Exit::Conflict, "exists", text).advice("give another --name, or none"));
        }
        deploy::succeed(&mut document, before.as_ref(), client.now_ms());
        deploy::want_again(&mut document);
        let documents = std::slice::from_mut(&mut document);
        pin::pin(documents, &policies, &[], client.now_ms(), &options.pinning, &mut found).await?;
        send(&client, &document).await
    })?;
    let text = global.output == Output::Text;
    if options.detach {
        if text {
            say(&key.name);
        } else {
            say_json(&json!({ "workload": key.name }));
        }
        return Ok(Exit::Success);
    }
    let mut lines = Vec::new();
    let ended = super::block_on(
        "stopped",
        follow(&client, &key, |line| if text { print(&line) } else { lines.push(line) }),
    );
    if !options.keep {
        super::block_on("stopped; `hivemind remove` removes what is left", remove(&client, &key))?;
    }
    let code = ended?;
    if !text {
        let of = |stream: &str| {
            let lines = lines.iter().filter(|line| line.stream == stream);
            lines.map(|line| format!("{}\n", line.line)).collect::<String>()
        };
        let (out, err) = (of("stdout"), of("stderr"));
        say_json(&json!({ "workload": key.name, "exitCode": code, "stdout": out, "stderr": err }));
    }
    Ok(Exit::of_command(code))
}

fn document(key: &SpecKey, options: &RunOnce) -> Document {
    let mut container = ContainerSpec::of(&options.image);
    container.command = (!options.command.is_empty()).then(|| options.command.clone());
    container.env = options.env.iter().cloned().collect();
    container.working_dir = options.workdir.clone();
    container.user = options.user.clone();
    container.resources = Resources {
        cpu_limit_millis: options.cpus,
        memory_limit_bytes: options.memory,
        ..Resources::default()
    };
    let networks = options.networks.iter().map(|name| (name.clone(), Attachment::default()));
    let spec = WorkloadSpec {
        restart: RestartPolicy { condition: RestartCondition::Never, ..RestartPolicy::default() },
        constraints: options.constraints.clone(),
        networks: networks.collect(),
        job: Some(Job { deadline_ms: options.deadline, ..Job::default() }),
        ..WorkloadSpec::of(container)
    };
    let metadata = Metadata { deleted: false, ..Document::tombstone(key, 0).metadata };
    Document { metadata, kind: Kind::Workload, spec: Some(Spec::Workload(Box::new(spec))) }
}

async fn remove(client: &Client, key: &SpecKey) -> Result<()> {
    if let Some(item) = prepare::held(client, key).await?.filter(|item| !item.deleted) {
        send(client, &deploy::removal(&item, client.now_ms())).await?;
    }
    Ok(())
}

/// Prints what the container prints until it has ended, and says how it did.
async fn follow(client: &Client, key: &SpecKey, mut print: impl FnMut(LogLine)) -> Result<u32> {
    let mut seen = Seen::default();
    let lines = logs::Lines { slot: Some(0), tail: Some(TAIL), ..logs::Lines::default() };
    let path = |follow| logs::path(&key.namespace, &key.name, logs::Lines { follow, ..lines });
    let (following, whole) = (path(true), path(false));
    let ended = async {
        let end = until_ended(client, key);
        tokio::pin!(end);
        loop {
            tokio::select! {
                code = &mut end => return code,
                // There is nothing to read before it has begun; and a stream may break.
                _ = logs::stream(client, &following, &mut seen, &mut print) => {}
            }
            tokio::select! {
                code = &mut end => return code,
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    };
    let ended = ended.await;
    // What came between the last line and the end.
    logs::stream(client, &whole, &mut seen, &mut print).await?;
    ended
}

/// Waits for the end of the container, tells on the way what it waits for, and returns its exit code.
async fn until_ended(client: &Client, key: &SpecKey) -> Result<u32> {
    let filter = [("namespace", Some(key.namespace.as_str())), ("workload", Some(key.name.as_str()))];
    let path = with_query("/v1/replicas", &filter);
    let mut told = None;
    let mut misses = 0;
    loop {
        let replicas: Vec<Replica> = match client.list(&path).await {
            Err(failure) if failure.exit == Exit::Unreachable && misses < 20 => {
                misses += 1;
                Vec::new()
            }
            answer => {
                misses = 0;
                answer?
            }
        };
        if let Some(replica) = replicas.first() {
            match (replica.phase, replica.exit_code) {
                (Phase::Completed | Phase::Failed, Some(code)) => return Ok(code),
                (Phase::Completed, None) => return Ok(0),
                (Phase::Failed, None) => {
                    let reason = printable(&replica.reason);
                    return Err(Failure::new(Exit::NotRunning, "failed", reason));
                }
                (Phase::Running, _) => {}
                (phase, _) => {
                    let now = (phase, replica.reason.clone());
                    if told.as_ref() != Some(&now) {
                        let colon = if now.1.is_empty() { "" } else { ": " };
                        let text = format!("{}{colon}{}", phase_name(phase), printable(&now.1));
                        note(&paint(FAINT, &text));
                        told = Some(now);
                    }
                }
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// To the output it was printed to.
fn print(line: &LogLine) {
    if line.stream == "stderr" {
        eprintln!("{}", line.line);
    } else {
        say(&line.line);
    }
}
