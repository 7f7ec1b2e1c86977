//! `hivemind ps`, `nodes` and `status`.

use anstyle::Style;
use hivemind_spec::api::{Node, NodeState, Phase, Replica, Status, Update, UpdatePhase};

use super::watch::phase_name;
use crate::cli::{Chosen, Global, Output};
use crate::client::with_query;
use crate::failure::{Exit, Result};
use crate::quantity::{show_bytes, show_span};
use crate::terminal::{BAD, CHANGING, FAINT, GOOD, STRONG, Table, paint, printable, say, say_json, styled};

const UNCHANGED: &str = "nothing was changed";

pub(super) fn ps(global: &Global, options: &Chosen) -> Result<Exit> {
    let client = super::client(global)?;
    let filter = [("namespace", options.namespace.as_deref()), ("workload", options.workload.as_deref())];
    let path = with_query("/v1/replicas", &filter);
    let mut replicas: Vec<Replica> = super::block_on(UNCHANGED, client.list(&path))?;
    replicas.sort_by(|a, b| (&a.namespace, &a.workload, a.slot).cmp(&(&b.namespace, &b.workload, b.slot)));
    if global.output == Output::Json {
        say_json(&serde_json::json!({ "items": replicas }));
    } else if replicas.is_empty() {
        say("No replicas. Push something: hivemind push compose.yaml");
    } else {
        say(&replica_table(&replicas, client.now_ms()));
    }
    Ok(Exit::Success)
}

fn replica_table(replicas: &[Replica], now_ms: u64) -> String {
    let mut table =
        Table::new(&["NAMESPACE", "REPLICA", "STATE", "FOR", "RESTARTS", "NODE", "ADDRESS", "REASON"]);
    for replica in replicas {
        table.row([
            replica.namespace.as_str().into(),
            format!("{}/{}", replica.workload, replica.slot).into(),
            styled(phase_style(replica.phase), phase_name(replica.phase)),
            show_span(now_ms.saturating_sub(replica.since_ms)).into(),
            replica.restarts.to_string().into(),
            dash(&replica.hostname).into(),
            dash(&replica.ip).into(),
            replica.reason.as_str().into(),
        ]);
    }
    table.render()
}

fn phase_style(phase: Phase) -> Style {
    match phase {
        Phase::Running | Phase::Completed => GOOD,
        Phase::Failed | Phase::Unhealthy | Phase::Backoff => BAD,
        Phase::Pending
        | Phase::Assigned
        | Phase::Pulling
        | Phase::Starting
        | Phase::Stopping
        | Phase::Later => CHANGING,
    }
}

fn dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

pub(super) fn nodes(global: &Global) -> Result<Exit> {
    let client = super::client(global)?;
    let nodes: Vec<Node> = super::block_on(UNCHANGED, client.list("/v1/nodes"))?;
    if global.output == Output::Json {
        say_json(&serde_json::json!({ "items": nodes }));
    } else {
        say(&node_table(&nodes, client.now_ms()));
    }
    Ok(Exit::Success)
}

fn node_table(nodes: &[Node], now_ms: u64) -> String {
    let mut table = Table::new(&[
        "NODE", "STATE", "UP", "REPLICAS", "CPU", "MEMORY", "VERSION", "ADDRESS", "ID", "NOTES",
    ]);
    for node in nodes {
        let (style, state) = match node.state {
            NodeState::Ready => (GOOD, "ready"),
            NodeState::NotReady => (CHANGING, "not ready"),
            NodeState::Down => (BAD, "down"),
            NodeState::Revoked => (BAD, "revoked"),
        };
        let up = match node.state {
            NodeState::Ready | NodeState::NotReady => show_span(now_ms.saturating_sub(node.started_ms)),
            NodeState::Down | NodeState::Revoked => "-".to_owned(),
        };
        let mut notes: Vec<String> = Vec::new();
        notes.extend(node.leader.then(|| "leader".to_owned()));
        notes.extend(node.cordoned.then(|| "cordoned".to_owned()));
        notes.extend(node.update.as_ref().map(update_note));
        if let Some(release) = &node.release {
            notes.extend(release.on_trial.then(|| "release on trial".to_owned()));
            notes.extend(release.failed.iter().map(|failed| format!("release {} failed", failed.short())));
        }
        notes.extend(node.problems.iter().cloned());
        let cpu = |millis: u64| format!("{:.1}", millis as f64 / 1000.0);
        table.row([
            node.hostname.as_str().into(),
            styled(style, state),
            up.into(),
            node.replicas.to_string().into(),
            format!("{}/{}", cpu(node.requested.cpu_millis), cpu(node.capacity.cpu_millis)).into(),
            format!("{}/{}", show_bytes(node.requested.memory_bytes), show_bytes(node.capacity.memory_bytes))
                .into(),
            dash(&node.version).into(),
            node.address.as_str().into(),
            node.id.short().into(),
            notes.join(", ").into(),
        ]);
    }
    table.render()
}

/// How far a node is with a release.
fn update_note(update: &Update) -> String {
    let release = update.release.short();
    let text = match update.phase {
        UpdatePhase::Fetching => {
            let percent = update.done_bytes.saturating_mul(100) / update.total_bytes.max(1);
            format!("takes release {release} ({percent} %)")
        }
        UpdatePhase::Ready => format!("is about to start release {release}"),
        UpdatePhase::Failed => format!("cannot take release {release}"),
        UpdatePhase::Brought => format!("has release {release} from a stick"),
        UpdatePhase::Later => format!("is busy with release {release}"),
    };
    if update.reason.is_empty() { text } else { format!("{text}: {}", update.reason) }
}

pub(super) fn status(global: &Global) -> Result<Exit> {
    let client = super::client(global)?;
    let status: Status = super::block_on(UNCHANGED, client.get("/v1/status"))?;
    if global.output == Output::Json {
        say_json(&status);
    } else {
        say(&status_text(&status));
    }
    Ok(Exit::Success)
}

fn status_text(status: &Status) -> String {
    let count = |have: u32, want: u32| {
        paint(if have >= want { GOOD } else { CHANGING }, &format!("{have} of {want}"))
    };
    let leader = status.leader.map_or("none in sight".to_owned(), |leader| leader.short());
    let mut lines = vec![
        format!(
            "Cluster   {} {}",
            paint(STRONG, &printable(&status.cluster_name)),
            paint(FAINT, &status.cluster.to_string())
        ),
        format!("Nodes     {} ready", count(status.nodes_ready, status.nodes)),
        format!("Replicas  {} running", count(status.replicas_running, status.replicas)),
        format!("Leader    {leader}, as seen by {}", status.node.short()),
    ];
    if status.problems.is_empty() {
        lines.push(paint(GOOD, "Nothing needs attention."));
    }
    lines.extend(status.problems.iter().map(|problem| paint(BAD, &format!("! {}", printable(problem)))));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use hivemind_spec::api::{Capacity, Release};
    use hivemind_spec::id::{ClusterId, NodeId, ReleaseId};
    use hivemind_spec::release::Architecture;

    use super::*;

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn ps_says_why_a_replica_is_pending() {
        let replica = Replica {
            namespace: "default".into(),
            workload: "web".into(),
            slot: 1,
            node: None,
            hostname: String::new(),
            phase: Phase::Pending,
            reason: "no node has 64 GiB of memory".into(),
            image: "a".into(),
            ip: String::new(),
            restarts: 0,
            since_ms: 1000,
            exit_code: None,
            pull: None,
            digest: None,
        };
        let text = plain(&replica_table(&[replica], 31_000));
        let row = text.lines().nth(1).unwrap();
        for part in ["default", "web/1", "pending", "30s", "no node has 64 GiB of memory"] {
            assert!(row.contains(part), "{row}");
        }
    }

    #[test]
    fn nodes_shows_state_capacity_and_who_leads() {
        let node = Node {
            id: NodeId::of(b"a"),
            hostname: "edge-1".into(),
            state: NodeState::Ready,
            problems: vec![],
            leader: true,
            cordoned: false,
            address: "192.0.2.1".into(),
            api: "192.0.2.1:7443".into(),
            subnet: "10.42.1.0/24".into(),
            version: "0.1.0".into(),
            release: Some(Release {
                id: ReleaseId::of(b"new"),
                architecture: Architecture::Amd64,
                minimum: "0.1.0".into(),
                on_trial: true,
                failed: vec![ReleaseId([0xab; 8])],
            }),
            update: Some(Update {
                release: ReleaseId([0xcd; 8]),
                phase: UpdatePhase::Fetching,
                done_bytes: 30,
                total_bytes: 120,
                reason: "the server is away".into(),
            }),
            labels: Default::default(),
            capacity: Capacity { cpu_millis: 2000, memory_bytes: 1 << 30 },
            requested: Capacity { cpu_millis: 100, memory_bytes: 64 << 20 },
            replicas: 3,
            started_ms: 0,
            enrolled_ms: 0,
        };
        let text = plain(&node_table(&[node], 60_000));
        for part in [
            "edge-1",
            "ready",
            "60s",
            "0.1/2.0",
            "64 MiB/1 GiB",
            "0.1.0",
            "leader",
            "release on trial",
            "release abababab failed",
            "takes release cdcdcdcd (25 %): the server is away",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn status_tells_what_needs_attention() {
        let mut status = Status {
            cluster: ClusterId::of(b"c"),
            cluster_name: "lab".into(),
            node: NodeId::of(b"a"),
            leader: None,
            nodes_ready: 2,
            nodes: 3,
            replicas_running: 1,
            replicas: 1,
            map_digest: String::new(),
            problems: vec!["edge-3 is down".into()],
        };
        let text = plain(&status_text(&status));
        assert!(text.contains("2 of 3 ready") && text.contains("! edge-3 is down"), "{text}");
        status.problems.clear();
        assert!(plain(&status_text(&status)).contains("Nothing needs attention"));
    }
}
