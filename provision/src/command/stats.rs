//! `hivemind stats`: what containers use, now and again and again.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::Duration;

use hivemind_spec::api::{Counters, Stats, Usage};
use hivemind_spec::id::NodeId;
use serde::Serialize;
use serde_json::json;

use super::nodes::{hostname, hostnames};
use crate::cli::{Chosen, Global, Output, StatsOf};
use crate::client::{Client, with_query};
use crate::failure::{Exit, Result};
use crate::quantity::{show_bytes, show_span};
use crate::terminal::{BAD, CHANGING, Cell, FAINT, Table, paint, say, say_json, styled};

/// How long is measured for a single answer.
const MOMENT: Duration = Duration::from_secs(1);

/// The least time between two looks: each asks every machine that has containers.
const LEAST: Duration = Duration::from_millis(500);

/// From how much of its limit on a container's memory stands out, percent.
const TIGHT_PERCENT: u64 = 90;

/// What a container used between two looks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Rates {
    #[serde(flatten)]
    usage: Usage,
    hostname: String,
    /// Thousandths of a processor.
    cpu_millis: u64,
    /// Bytes a second.
    read_per_second: u64,
    written_per_second: u64,
    received_per_second: u64,
    sent_per_second: u64,
}

/// What all of them used, those that use most of a processor first.
#[derive(Debug, Clone, Serialize)]
struct Measured {
    items: Vec<Rates>,
    /// Host names of nodes that did not answer.
    missing: Vec<String>,
}

pub(super) fn run(global: &Global, options: &StatsOf) -> Result<Exit> {
    let client = super::client(global)?;
    let path = path(&options.chosen, false);
    let live = global.output == Output::Text && !options.once && std::io::stdout().is_terminal();
    super::block_on("stopped", async {
        let mut before: Stats = client.get(&path).await?;
        tokio::time::sleep(MOMENT).await;
        loop {
            let now: Stats = client.get(&path).await?;
            let measured = measure(&client, &before, &now).await?;
            if global.output == Output::Json {
                say_json(&measured);
                return Ok(Exit::Success);
            }
            if live {
                // Clears the terminal, as `top` does (ECMA-48: CUP and ED).
                say(&format!("\x1b[H\x1b[2J{}", show(&measured)));
            } else {
                say(&show(&measured));
                return Ok(Exit::Success);
            }
            before = now;
            tokio::time::sleep(Duration::from_millis(options.interval).max(LEAST)).await;
        }
    })
}

fn path(chosen: &Chosen, processes: bool) -> String {
    let (namespace, workload) = (chosen.namespace.as_deref(), chosen.workload.as_deref());
    let processes = ("processes", processes.then_some("true"));
    with_query("/v1/stats", &[("namespace", namespace), ("workload", workload), processes])
}

/// `hivemind top`: the processes of containers.
pub(super) fn top(global: &Global, chosen: &Chosen) -> Result<Exit> {
    let client = super::client(global)?;
    let (stats, names) = super::block_on("stopped", async {
        let stats: Stats = client.get(&path(chosen, true)).await?;
        Ok((stats, hostnames(&client).await?))
    })?;
    let unanswered: Vec<String> = stats.missing.iter().map(|node| hostname(&names, node)).collect();
    if global.output == Output::Json {
        say_json(&json!({ "items": stats.items, "missing": unanswered }));
        return Ok(Exit::Success);
    }
    let mut table =
        Table::new(&["NAMESPACE", "REPLICA", "NODE", "PID", "USER", "STATE", "TIME", "MEMORY", "COMMAND"]);
    for usage in &stats.items {
        for process in &usage.processes {
            table.row([
                usage.namespace.as_str().into(),
                format!("{}/{}", usage.workload, usage.slot).into(),
                hostname(&names, &usage.node).into(),
                process.pid.to_string().into(),
                process.uid.to_string().into(),
                process.state.as_str().into(),
                show_span(process.cpu_us / 1000).into(),
                show_bytes(process.memory_bytes).into(),
                process.command.as_str().into(),
            ]);
        }
    }
    say(&with_missing(stats.items.is_empty(), &table, &unanswered));
    Ok(Exit::Success)
}

async fn measure(client: &Client, before: &Stats, now: &Stats) -> Result<Measured> {
    let names = hostnames(client).await?;
    let name = |node: &NodeId| hostname(&names, node);
    let key = |usage: &Usage| (usage.namespace.clone(), usage.workload.clone(), usage.slot, usage.node);
    let earlier: BTreeMap<_, _> = before.items.iter().map(|usage| (key(usage), usage)).collect();
    let mut items: Vec<Rates> = now
        .items
        .iter()
        .map(|usage| rates(earlier.get(&key(usage)).copied(), usage, name(&usage.node)))
        .collect();
    items.sort_by_key(|item| (std::cmp::Reverse(item.cpu_millis), key(&item.usage)));
    Ok(Measured { items, missing: now.missing.iter().map(name).collect() })
}

/// What was used since an earlier look; nothing where there was none, or another container since.
fn rates(before: Option<&Usage>, now: &Usage, hostname: String) -> Rates {
    let ms = before.map_or(0, |before| now.time_ms.saturating_sub(before.time_ms));
    let since = |of: fn(&Counters) -> u64| {
        let before = before.map_or(u64::MAX, |before| of(&before.counters));
        of(&now.counters).saturating_sub(before).saturating_mul(1000).checked_div(ms).unwrap_or(0)
    };
    Rates {
        cpu_millis: since(|counters| counters.cpu_us) / 1000,
        read_per_second: since(|counters| counters.read_bytes),
        written_per_second: since(|counters| counters.written_bytes),
        received_per_second: since(|counters| counters.received_bytes),
        sent_per_second: since(|counters| counters.sent_bytes),
        usage: now.clone(),
        hostname,
    }
}

/// A table, which may have nothing to show, and the nodes that did not answer.
fn with_missing(is_empty: bool, table: &Table, missing: &[String]) -> String {
    let mut text = if is_empty { "Nothing runs. `hivemind ps` says why.".to_owned() } else { table.render() };
    for node in missing {
        let line = format!("{node} does not answer; what runs there is missing");
        text.push_str(&format!("\n{}", paint(CHANGING, &line)));
    }
    text
}

fn show(measured: &Measured) -> String {
    with_missing(measured.items.is_empty(), &table(&measured.items), &measured.missing)
}

fn table(items: &[Rates]) -> Table {
    let mut table = Table::new(&[
        "NAMESPACE",
        "REPLICA",
        "NODE",
        "CPU",
        "MEMORY",
        "READ/s",
        "WRITE/s",
        "IN/s",
        "OUT/s",
        "PIDS",
    ]);
    for item in items {
        let Usage { namespace, workload, slot, counters, .. } = &item.usage;
        let rate =
            |bytes: u64| -> Cell { if bytes == 0 { styled(FAINT, "-") } else { show_bytes(bytes).into() } };
        table.row([
            namespace.as_str().into(),
            format!("{workload}/{slot}").into(),
            item.hostname.as_str().into(),
            format!("{}.{} %", item.cpu_millis / 10, item.cpu_millis % 10).into(),
            memory(counters),
            rate(item.read_per_second),
            rate(item.written_per_second),
            rate(item.received_per_second),
            rate(item.sent_per_second),
            counters.pids.to_string().into(),
        ]);
    }
    table
}

fn memory(counters: &Counters) -> Cell {
    let used = show_bytes(counters.memory_bytes);
    match counters.memory_limit_bytes {
        None => used.into(),
        Some(limit) => {
            let text = format!("{used} of {}", show_bytes(limit));
            let tight = counters.memory_bytes.saturating_mul(100) >= limit.saturating_mul(TIGHT_PERCENT);
            if tight { styled(BAD, text) } else { text.into() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(time_ms: u64, cpu_us: u64, sent_bytes: u64) -> Usage {
        let counters = Counters {
            cpu_us,
            sent_bytes,
            memory_bytes: 95 << 20,
            memory_limit_bytes: Some(100 << 20),
            ..Counters::default()
        };
        let (namespace, workload) = ("default".to_owned(), "web".to_owned());
        Usage {
            namespace,
            workload,
            slot: 1,
            node: NodeId([7; 16]),
            time_ms,
            counters,
            processes: Vec::new(),
        }
    }

    #[test]
    fn what_is_used_is_what_was_counted_between_two_looks() {
        let (before, now) = (usage(10_000, 1_000_000, 500), usage(12_000, 2_500_000, 4500));
        let measured = rates(Some(&before), &now, "edge-1".to_owned());
        assert_eq!((measured.cpu_millis, measured.sent_per_second), (750, 2000));
        let text = anstream::adapter::strip_str(&table(&[measured]).render()).to_string();
        assert!(
            text.contains("web/1") && text.contains("75.0 %") && text.contains("95 MiB of 100 MiB"),
            "{text}"
        );
    }

    #[test]
    fn a_container_that_is_new_has_used_nothing_yet() {
        let now = usage(12_000, 2_500_000, 4500);
        assert_eq!(rates(None, &now, String::new()).cpu_millis, 0);
        // Its counters began anew.
        let before = usage(10_000, 9_000_000, 9000);
        let measured = rates(Some(&before), &now, String::new());
        assert_eq!((measured.cpu_millis, measured.sent_per_second), (0, 0));
    }

    #[test]
    fn who_does_not_answer_is_named() {
        let measured = Measured { items: Vec::new(), missing: vec!["edge-2".to_owned()] };
        let text = anstream::adapter::strip_str(&show(&measured)).to_string();
        assert!(text.contains("edge-2 does not answer"), "{text}");
    }
}
