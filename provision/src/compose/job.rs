//! Jobs: `deploy.mode` and `x-hivemind.job`.

use hivemind_spec::workload::{Job, MAX_REPLICAS, Missed, Overlap, Schedule};

use super::keys;
use super::reader::Reader;
use super::yaml::{Node, Value};

/// Reads `x-hivemind.job`.
pub(super) fn job(reader: &Reader<'_>, node: &Node) -> Option<Job> {
    let mut job = Job::default();
    for (key, value) in reader.entries(node, keys::JOB)? {
        match key.text.as_str() {
            "deadline" => {
                let ms = reader.duration_ms(value)?;
                if ms < 1000 {
                    reader.fault(value.mark, "shorter than a second, which no container can keep");
                }
                job.deadline_ms = Some(ms);
            }
            "parallelism" => {
                let most = reader.integer(value, 1, MAX_REPLICAS.into())?;
                job.parallelism = u32::try_from(most).ok();
            }
            _ => job.schedule = Some(schedule(reader, value)?),
        }
    }
    Some(job)
}

/// A crontab's five fields, or those with what goes with them.
fn schedule(reader: &Reader<'_>, node: &Node) -> Option<Schedule> {
    let mut schedule = Schedule {
        cron: String::new(),
        time_zone: "UTC".to_owned(),
        missed: Missed::default(),
        overlap: Overlap::default(),
    };
    let (mut cron_at, mut zone_at) = (node.mark, node.mark);
    if let Value::Mapping(_) = node.value {
        for (key, value) in reader.entries(node, keys::SCHEDULE)? {
            match key.text.as_str() {
                "cron" => (cron_at, schedule.cron) = (value.mark, reader.text(value)?),
                "time_zone" => (zone_at, schedule.time_zone) = (value.mark, reader.text(value)?),
                "missed" => {
                    schedule.missed = reader.word(value, &[("run", Missed::Run), ("skip", Missed::Skip)])?;
                }
                _ => {
                    let words = [("wait", Overlap::Wait), ("replace", Overlap::Replace)];
                    schedule.overlap = reader.word(value, &words)?;
                }
            }
        }
    } else {
        schedule.cron = reader.text(node)?;
    }
    if let Err((field, text)) = schedule.check() {
        let mark = if field == "timeZone" { zone_at } else { cron_at };
        reader.fault(mark, text);
        return None;
    }
    Some(schedule)
}
