//! Waiting for what must come true.

use std::time::{Duration, Instant};

/// Between two looks. Each is a TLS handshake on a machine under emulation, which has other things to do.
pub const POLL: Duration = Duration::from_millis(500);

/// Looks again and again until `look` finds something; how long it took comes with it, and is printed.
///
/// # Panics
/// When nothing was found within `limit`, with what was waited for and the last look's words.
pub fn until<T>(what: &str, limit: Duration, look: impl FnMut() -> Result<T, String>) -> (T, Duration) {
    polling(POLL, what, limit, look)
}

/// As [`until`], with `poll` between two looks, for looks that cost little and times that are measured.
///
/// # Panics
/// As [`until`].
pub fn polling<T>(
    poll: Duration,
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<T, String>,
) -> (T, Duration) {
    let begin = Instant::now();
    loop {
        match look() {
            Ok(found) => {
                eprintln!("{:5.1} s  {what}", begin.elapsed().as_secs_f64());
                return (found, begin.elapsed());
            }
            Err(last) => {
                assert!(begin.elapsed() < limit, "{what}: not within {limit:?}; last: {last}");
            }
        }
        std::thread::sleep(poll);
    }
}

/// Looks again and again for the whole of `period`, and wants `look` to hold all the time.
///
/// # Panics
/// At the first look that fails.
pub fn throughout(what: &str, period: Duration, mut look: impl FnMut() -> Result<(), String>) {
    let begin = Instant::now();
    while begin.elapsed() < period {
        if let Err(why) = look() {
            panic!("{what}: broke after {:?}: {why}", begin.elapsed());
        }
        std::thread::sleep(POLL);
    }
}
