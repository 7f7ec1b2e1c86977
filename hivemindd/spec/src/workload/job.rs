//! Jobs: workloads whose replicas each come to an end, once or at set times.

use chrono::{DateTime, TimeZone as _};
use chrono_tz::Tz;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{RestartCondition, WorkloadSpec};
use crate::document::DocumentError;

/// The longest expression: far more than a list of all minutes needs.
const MAX_CRON_BYTES: usize = 256;

/// How replicas are run of which each is to end with success once, and then is done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Job {
    /// The most replicas that run at the same time; absent: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallelism: Option<u32>,
    /// How long one attempt may take, milliseconds. It is stopped then, and counts as one that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// When all replicas are run, again and again; absent: once, when the document is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
    /// Since when an operator wants all replicas to be run, milliseconds since 1970: since it was made, or once more
    /// later. Versions that want nothing else repeat it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again_ms: Option<u64>,
}

/// The times at which a job is run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Schedule {
    /// Minute, hour, day of the month, month and day of the week, as in crontab(5), or `@hourly`, `@daily`,
    /// `@weekly`, `@monthly` or `@yearly`. A time that a clock skips in spring is when it has been put forward; one
    /// that it repeats in autumn counts once, unless the hour is a `*`.
    pub cron: String,
    /// Whose clocks, by name of the IANA time zone database: `Europe/Berlin`.
    #[serde(default = "utc", skip_serializing_if = "is_utc")]
    pub time_zone: String,
    /// What becomes of a time at which it could not be run.
    #[serde(default)]
    pub missed: Missed,
    /// What becomes of a run that goes on when the next is due.
    #[serde(default)]
    pub overlap: Overlap,
}

/// What becomes of times that were missed, because machines were off or the run before went on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Missed {
    /// The last of them is made up for, once, as soon as that is possible.
    #[default]
    Run,
    /// Nothing: it runs at the next time.
    Skip,
}

/// What becomes of a run that goes on when the next is due.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Overlap {
    /// It goes on, and the time counts as missed.
    #[default]
    Wait,
    /// It is stopped, and the next begins.
    Replace,
}

fn utc() -> String {
    "UTC".to_owned()
}

fn is_utc(zone: &str) -> bool {
    zone == "UTC"
}

impl Schedule {
    /// The first time after `ms`, milliseconds since 1970; `None` when there is none any more.
    pub fn next_after(&self, ms: u64) -> Option<u64> {
        let (cron, from) = self.read(ms)?;
        time_ms(&cron.find_next_occurrence(&from, false).ok()?)
    }

    /// The last time at or before `ms`, milliseconds since 1970; `None` when there was none.
    pub fn last_until(&self, ms: u64) -> Option<u64> {
        let (cron, from) = self.read(ms)?;
        time_ms(&cron.find_previous_occurrence(&from, true).ok()?)
    }

    fn read(&self, ms: u64) -> Option<(Cron, DateTime<Tz>)> {
        let zone: Tz = self.time_zone.parse().ok()?;
        let from = zone.timestamp_millis_opt(i64::try_from(ms).ok()?).single()?;
        Some((parser().parse(&self.cron).ok()?, from))
    }

    /// Checks the expression and the name of the zone.
    ///
    /// # Errors
    /// Says which of the two is wrong, by its field's name, and why.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if self.time_zone.parse::<Tz>().is_err() {
            let text = format!("there is no time zone {:?}; write for example Europe/Berlin", self.time_zone);
            return Err(("timeZone", text));
        }
        let times = "write minute, hour, day, month and weekday, for example \"30 3 * * *\", or @daily";
        if self.cron.len() > MAX_CRON_BYTES {
            return Err(("cron", format!("is longer than {MAX_CRON_BYTES} bytes; {times}")));
        }
        match parser().parse(&self.cron) {
            Err(why) => Err(("cron", format!("{:?} names no times: {why}; {times}", self.cron))),
            // The 31st of February.
            Ok(_) if self.next_after(0).is_none() => {
                Err(("cron", format!("{:?} names times that never come", self.cron)))
            }
            Ok(_) => Ok(()),
        }
    }
}

fn parser() -> CronParser {
    CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build()
}

fn time_ms(time: &DateTime<Tz>) -> Option<u64> {
    u64::try_from(time.timestamp_millis()).ok()
}

impl WorkloadSpec {
    /// When it is run, if that is at set times.
    pub fn schedule(&self) -> Option<&Schedule> {
        self.job.as_ref()?.schedule.as_ref()
    }

    /// Whether replicas that end with success are done.
    pub fn completes(&self) -> bool {
        self.restart.condition != RestartCondition::Always
    }
}

/// Checks what types cannot say.
pub(super) fn validate(spec: &WorkloadSpec) -> Result<(), DocumentError> {
    let Some(job) = &spec.job else { return Ok(()) };
    let fail = |pointer: &str, message: String| Err(DocumentError::new(pointer, message));
    if !spec.completes() {
        let text = "a job that is always started again never ends; use `on-failure` or `never`";
        return fail("/spec/restart/condition", text.into());
    }
    if job.parallelism == Some(0) {
        return fail("/spec/job/parallelism", "none at a time would never end; leave it out for all".into());
    }
    if job.deadline_ms.is_some_and(|ms| ms < 1000) {
        return fail("/spec/job/deadlineMs", "is shorter than a second, which no container can keep".into());
    }
    match job.schedule.as_ref().map(Schedule::check) {
        Some(Err((field, text))) => fail(&format!("/spec/job/schedule/{field}"), text),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(cron: &str, zone: &str) -> Schedule {
        let (cron, time_zone) = (cron.to_owned(), zone.to_owned());
        Schedule { cron, time_zone, missed: Missed::default(), overlap: Overlap::default() }
    }

    fn ms(text: &str) -> u64 {
        time_ms(&DateTime::parse_from_rfc3339(text).unwrap().with_timezone(&Tz::UTC)).unwrap()
    }

    /// The times after `from`, in UTC.
    fn times(cron: &str, zone: &str, from: &str, count: usize) -> Vec<String> {
        let schedule = schedule(cron, zone);
        let next = |at: &u64| schedule.next_after(*at);
        let times = std::iter::successors(next(&ms(from)), next).take(count);
        times.map(|at| Tz::UTC.timestamp_millis_opt(at as i64).unwrap().to_rfc3339()).collect()
    }

    #[test]
    fn times_are_those_of_crontab_in_the_zone_that_is_named() {
        let daily = times("30 3 * * *", "Europe/Berlin", "2026-07-01T00:00:00Z", 2);
        assert_eq!(daily, ["2026-07-01T01:30:00+00:00", "2026-07-02T01:30:00+00:00"]);
        let weekday_or_day = times("0 0 13 * fri", "UTC", "2026-11-01T00:00:00Z", 3);
        assert_eq!(
            weekday_or_day,
            ["2026-11-06T00:00:00+00:00", "2026-11-13T00:00:00+00:00", "2026-11-20T00:00:00+00:00"]
        );
        assert_eq!(times("@hourly", "UTC", "2026-11-01T00:00:00Z", 1), ["2026-11-01T01:00:00+00:00"]);
    }

    #[test]
    fn a_time_that_the_clock_skips_or_repeats_comes_once() {
        let spring = times("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", 2);
        assert_eq!(spring, ["2026-03-29T01:00:00+00:00", "2026-03-30T00:30:00+00:00"]);
        let autumn = times("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2);
        assert_eq!(autumn.len(), 2);
        assert_eq!(autumn[1], "2026-10-26T01:30:00+00:00");
    }

    #[test]
    fn the_last_time_is_found_from_any_moment_after_it() {
        let schedule = schedule("0 12 * * *", "UTC");
        let noon = ms("2026-11-20T12:00:00Z");
        for after in [0, 1, 3_600_000, 86_399_999] {
            assert_eq!(schedule.last_until(noon + after), Some(noon));
        }
        assert_eq!(schedule.last_until(noon - 1), Some(noon - 86_400_000));
    }

    #[test]
    fn an_expression_or_a_zone_that_says_nothing_is_refused_in_words() {
        for (cron, zone, field, words) in [
            ("", "UTC", "cron", "names no times"),
            ("0 3 * *", "UTC", "cron", "for example"),
            ("0 0 3 * * *", "UTC", "cron", "for example"),
            ("61 * * * *", "UTC", "cron", "names no times"),
            ("0 0 31 2 *", "UTC", "cron", "never come"),
            ("0 3 * * *", "Berlin", "timeZone", "Europe/Berlin"),
            (&"1,".repeat(200), "UTC", "cron", "longer"),
        ] {
            let (at, text) = schedule(cron, zone).check().unwrap_err();
            assert!(at == field && text.contains(words), "{cron:?} in {zone}: {at}: {text}");
        }
        assert_eq!(schedule("*/15 8-18 * * mon-fri", "America/New_York").check(), Ok(()));
    }
}
