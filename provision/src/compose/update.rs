//! How replicas are to be replaced: `deploy.update_config` and `deploy.rollback_config`.

use hivemind_spec::workload::{MAX_REPLICAS, OnFailure, ReplaceOrder, UpdatePolicy};

use super::keys;
use super::reader::Reader;
use super::yaml::{Key, Node};

/// Reads one of the two, and says that it does nothing yet.
pub(super) fn policy(reader: &Reader<'_>, key: &Key, node: &Node) -> Option<UpdatePolicy> {
    let actions =
        [("pause", OnFailure::Pause), ("continue", OnFailure::Continue), ("rollback", OnFailure::Rollback)];
    // A rollback is not rolled back.
    let (table, actions) = match key.text.as_str() {
        "rollback_config" => (keys::ROLLBACK, &actions[..2]),
        _ => (keys::UPDATE, &actions[..]),
    };
    let orders = [("stop-first", ReplaceOrder::StopFirst), ("start-first", ReplaceOrder::StartFirst)];
    let mut policy = UpdatePolicy::default();
    for (key, value) in reader.entries(node, table)? {
        match key.text.as_str() {
            "parallelism" => {
                let number = reader.integer(value, 0, MAX_REPLICAS.into())?;
                policy.parallelism = u32::try_from(number).unwrap_or_default();
            }
            "delay" => policy.delay_ms = reader.duration_ms(value)?,
            "failure_action" => policy.on_failure = reader.word(value, actions)?,
            "monitor" => policy.monitor_ms = reader.duration_ms(value)?,
            "max_failure_ratio" => policy.max_failures_permille = permille(reader, value)?,
            _ => policy.order = reader.word(value, &orders)?,
        }
    }
    let text = format!(
        "`{}` is kept with the workload; this version replaces all replicas at once, each after the other's end",
        key.text
    );
    reader.warn(key.mark, text);
    Some(policy)
}

/// A part of all, 0 to 1, in thousandths.
fn permille(reader: &Reader<'_>, node: &Node) -> Option<u32> {
    let text = reader.text_or_number(node, "a part of all")?;
    let part = text.trim().parse::<f64>().ok().filter(|part| (0.0..=1.0).contains(part));
    let part = part.ok_or_else(|| format!("{text:?} is no part of all; write for example 0.1, at most 1"));
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1000")]
    Some((reader.ok(node.mark, part)? * 1000.0).round() as u32)
}
