//! Durations and sizes as people write them, in Compose files and on the command line.

use hivemind_spec::words::parse_timestamp;

/// Reads a duration: numbers with units, largest first is usual but not needed (`24h`, `1m30s`,
/// `500ms`, `1.5s`). Gives milliseconds. Units: `w`, `d`, `h`, `m`, `s`, `ms`, `us`.
///
/// # Errors
/// Says what was expected.
pub fn duration_ms(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a duration; write for example \"30s\", \"1m30s\" or \"500ms\"");
    let mut rest = text.trim();
    let mut total = 0f64;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let unit_end = rest[digits..]
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .map_or(rest.len(), |offset| digits + offset);
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        total += number
            * match &rest[digits..unit_end] {
                "w" => 604_800_000.0,
                "d" => 86_400_000.0,
                "h" => 3_600_000.0,
                "m" => 60_000.0,
                "s" => 1000.0,
                "ms" => 1.0,
                "us" => 0.001,
                _ => return Err(wrong()),
            };
        rest = &rest[unit_end..];
    }
    if !total.is_finite() || total >= 9e15 {
        return Err(format!("{text:?} is too long a duration"));
    }
    Ok(total.round() as u64)
}

/// A time as people say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// So many milliseconds ago.
    Ago(u64),
    /// Milliseconds since 1970.
    At(u64),
}

impl Moment {
    /// Reads `10m` (ago) or a time in RFC 3339.
    ///
    /// # Errors
    /// Says what was expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(ms) = parse_timestamp(text) {
            return Ok(Self::At(ms));
        }
        duration_ms(text).map(Self::Ago).map_err(|_| {
            format!("{text:?} is no time; write for example \"10m\" (ago) or \"2026-11-29T08:00:00Z\"")
        })
    }

    /// How long ago that is, milliseconds; 0 for what is to come.
    pub fn ago_ms(self, now_ms: u64) -> u64 {
        match self {
            Self::Ago(ms) => ms,
            Self::At(ms) => now_ms.saturating_sub(ms),
        }
    }
}

/// Reads a size in bytes: a number with an optional unit (`b`, `k`, `kb`, `m`, `mb`, `g`, `gb`, in
/// any case; also `KiB`, `MiB`, `GiB`). As in Compose, every unit is a power of 1024.
///
/// # Errors
/// Says what was expected.
pub fn size_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size; write for example \"64M\", \"1.5g\" or 268435456");
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let number: f64 = lower[..digits].parse().map_err(|_| wrong())?;
    let unit: f64 = match lower[digits..].trim() {
        "" | "b" => 1.0,
        "k" | "kb" | "kib" => 1024.0,
        "m" | "mb" | "mib" => 1_048_576.0,
        "g" | "gb" | "gib" => 1_073_741_824.0,
        "t" | "tb" | "tib" => 1_099_511_627_776.0,
        _ => return Err(wrong()),
    };
    let bytes = number * unit;
    if !bytes.is_finite() || bytes >= 9e15 {
        return Err(format!("{text:?} is too large a size"));
    }
    Ok(bytes.round() as u64)
}

/// Reads a number of CPUs (`0.5`, `2`) and gives thousandths.
///
/// # Errors
/// Says what was expected.
pub fn cpu_millis(text: &str) -> Result<u64, String> {
    let number: f64 = text
        .trim()
        .parse()
        .ok()
        .filter(|number: &f64| number.is_finite())
        .ok_or_else(|| format!("{text:?} is not a number of CPUs; write for example \"0.5\" or \"2\""))?;
    if number <= 0.0 {
        return Err(format!("{text:?} CPUs: it must be more than 0"));
    }
    if number > 100_000.0 {
        return Err(format!("{text:?} CPUs: no machine has that many"));
    }
    let millis = (number * 1000.0).round() as u64;
    if millis == 0 { Err(format!("{text:?} CPUs is less than a thousandth of one")) } else { Ok(millis) }
}

/// Bytes for people: `512 B`, `1.5 MiB`.
pub fn show_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" || value >= 100.0 || value.fract() < 0.05 {
                format!("{value:.0} {unit}")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// A time span for people, one or two units: `45s`, `3m`, `2h5m`, `4d`.
pub fn show_span(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..=119 => format!("{s}s"),
        120..=7199 => format!("{}m", s / 60),
        7200..=86_399 if !(s / 60).is_multiple_of(60) => format!("{}h{}m", s / 3600, s / 60 % 60),
        7200..=172_799 => format!("{}h", s / 3600),
        _ => format!("{}d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_compose_defines_them() {
        for (text, ms) in [
            ("30s", 30_000),
            ("1m30s", 90_000),
            ("24h", 86_400_000),
            ("2h32m", 9_120_000),
            ("500ms", 500),
            ("1.5s", 1500),
            ("1d", 86_400_000),
            ("0s", 0),
            ("1500us", 2),
        ] {
            assert_eq!(duration_ms(text), Ok(ms), "{text}");
        }
        for text in ["", "10", "s", "-1s", "1x", "1.2.3s", "1 s", "99999999999999d", "∞s"] {
            assert!(duration_ms(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_read_as_compose_defines_them() {
        for (text, bytes) in [
            ("64M", 64 << 20),
            ("64mb", 64 << 20),
            ("1g", 1 << 30),
            ("1.5k", 1536),
            ("2048", 2048),
            ("300b", 300),
            ("1GiB", 1 << 30),
        ] {
            assert_eq!(size_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "-1", "M", "1x", "1e9", "inf", "99999999t"] {
            assert!(size_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn cpus_are_thousandths_and_never_nothing() {
        assert_eq!(cpu_millis("0.5"), Ok(500));
        assert_eq!(cpu_millis("2"), Ok(2000));
        for text in ["0", "-1", "0.0001", "NaN", "inf", "two", "1e9"] {
            assert!(cpu_millis(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_and_spans_read_well() {
        assert_eq!(show_bytes(512), "512 B");
        assert_eq!(show_bytes(16 << 20), "16 MiB");
        assert_eq!(show_bytes(3 << 29), "1.5 GiB");
        assert_eq!(show_span(45_000), "45s");
        assert_eq!(show_span(7_500_000), "2h5m");
        assert_eq!(show_span(400_000_000), "4d");
    }
}
