//! Errors and times in words.

use chrono::{DateTime, SecondsFormat};

/// An error and what caused it, in one line: the outer one's own words rarely say what happened.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// A time in RFC 3339, UTC, to the millisecond. `ms`: since 1970; what is beyond all calendars is the last moment they have.
pub fn timestamp(ms: u64) -> String {
    let time = i64::try_from(ms).ok().and_then(DateTime::from_timestamp_millis);
    time.unwrap_or(DateTime::<chrono::Utc>::MAX_UTC).to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Reads a time in RFC 3339, milliseconds since 1970.
pub fn parse_timestamp(text: &str) -> Option<u64> {
    u64::try_from(DateTime::parse_from_rfc3339(text).ok()?.timestamp_millis()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot start")]
    struct Outer(#[source] std::fmt::Error);

    #[test]
    fn an_error_is_told_with_what_caused_it() {
        let inner = std::fmt::Error;
        assert_eq!(chain(&Outer(inner)), format!("cannot start: {inner}"));
        assert_eq!(chain(&inner), inner.to_string());
    }

    #[test]
    fn times_are_written_and_read_as_rfc_3339() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_827_696_789, "2000-02-29T12:34:56.789Z"),
            (1_798_761_599_000, "2026-12-31T23:59:59.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(timestamp(ms), text);
            assert_eq!(parse_timestamp(text), Some(ms));
        }
        assert!(timestamp(u64::MAX).starts_with("+2"), "{}", timestamp(u64::MAX));
        assert_eq!(parse_timestamp("2000-02-29T14:34:56.789+02:00"), Some(951_827_696_789));
        for bad in ["", "yesterday", "2000-02-30T00:00:00Z", "1969-12-31T23:59:59Z"] {
            assert_eq!(parse_timestamp(bad), None, "{bad}");
        }
    }
}
