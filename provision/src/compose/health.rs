//! `healthcheck`.

use hivemind_spec::workload::{GrpcCheck, HealthCheck, HttpCheck};

use super::keys;
use super::reader::Reader;
use super::yaml::{Node, Value};

/// Defaults of the Compose specification.
const INTERVAL_MS: u64 = 30_000;
const TIMEOUT_MS: u64 = 30_000;
const RETRIES: u32 = 3;

/// A check at the specification's times that does nothing yet.
pub(super) fn at_default_times() -> HealthCheck {
    HealthCheck {
        interval_ms: INTERVAL_MS,
        timeout_ms: TIMEOUT_MS,
        retries: RETRIES,
        ..HealthCheck::default()
    }
}

/// `x-hivemind.health`: `http://:PORT/PATH`, `tcp://:PORT`, `grpc://:PORT` or `grpc://:PORT/SERVICE`. A check at the
/// specification's times.
pub(super) fn question(text: &str) -> Result<HealthCheck, String> {
    let wrong =
        || format!("{text:?} is not a health check; write http://:8080/path, tcp://:5432 or grpc://:50051");
    let (kind, rest) = text.split_once("://:").ok_or_else(wrong)?;
    let (number, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let port = number.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
    if !path.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(wrong());
    }
    let times = at_default_times();
    Ok(match kind {
        "http" => {
            let path = if path.is_empty() { "/" } else { path };
            HealthCheck { http: Some(HttpCheck { port, path: path.to_owned() }), ..times }
        }
        "tcp" if path.is_empty() => HealthCheck { tcp: Some(port), ..times },
        "grpc" => {
            let service = path.trim_start_matches('/').to_owned();
            HealthCheck { grpc: Some(GrpcCheck { port, service }), ..times }
        }
        _ => return Err(wrong()),
    })
}

/// The outer `None` is a fault; the inner one is a check that is switched off. What it does may be missing.
pub(super) fn health(reader: &Reader<'_>, node: &Node) -> Option<Option<HealthCheck>> {
    let mut check = at_default_times();
    let mut disabled = false;
    for (key, value) in reader.entries(node, keys::HEALTHCHECK)? {
        match key.text.as_str() {
            "disable" => disabled |= reader.boolean(value)?,
            "test" => match health_command(reader, value)? {
                Some(command) => check.command = command,
                None => disabled = true,
            },
            "interval" => check.interval_ms = positive_ms(reader, value)?,
            "timeout" => check.timeout_ms = positive_ms(reader, value)?,
            "start_interval" => check.start_interval_ms = Some(positive_ms(reader, value)?),
            "start_period" => check.start_period_ms = reader.duration_ms(value)?,
            _ => check.retries = u32::try_from(reader.integer(value, 1, 1000)?).ok()?,
        }
    }
    Some((!disabled).then_some(check))
}

fn positive_ms(reader: &Reader<'_>, node: &Node) -> Option<u64> {
    match reader.duration_ms(node)? {
        0 => {
            reader.fault(node.mark, "a duration of 0: it must be more");
            None
        }
        ms => Some(ms),
    }
}

fn health_command(reader: &Reader<'_>, node: &Node) -> Option<Option<Vec<String>>> {
    let shell = |script: String| vec!["/bin/sh".to_owned(), "-c".to_owned(), script];
    if let Value::Scalar(_) = node.value {
        return Some(Some(shell(reader.text(node)?)));
    }
    let mut words = reader.command(node)?;
    if words.is_empty() {
        reader.fault(node.mark, "this is empty; start with CMD, CMD-SHELL or NONE");
        return None;
    }
    let rest = words.split_off(1);
    match (words[0].as_str(), rest.as_slice()) {
        ("NONE", []) => Some(None),
        ("CMD", [_, ..]) => Some(Some(rest)),
        ("CMD-SHELL", [script]) => Some(Some(shell(script.clone()))),
        _ => {
            reader.fault(node.mark, "start with CMD and a command, CMD-SHELL and one text, or NONE alone");
            None
        }
    }
}
