//! The agent's log: onto the console, by way of PID 1, and the last of it in memory.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use hivemind_init::fence::boot_ms;
use tracing_subscriber::fmt::MakeWriter;

/// Bytes of lines kept: weeks of a healthy node's, an hour of one in trouble.
const MAX_BYTES: usize = 256 * 1024;

static LINES: Mutex<Lines> = Mutex::new(Lines { lines: VecDeque::new(), bytes: 0 });

struct Lines {
    lines: VecDeque<String>,
    bytes: usize,
}

impl Lines {
    fn keep(&mut self, line: String) {
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.bytes > MAX_BYTES {
            let Some(oldest) = self.lines.pop_front() else { return };
            self.bytes -= oldest.len();
        }
    }
}

/// The last lines, each with the seconds since the machine started.
pub fn lines() -> String {
    let lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    lines.lines.iter().map(String::as_str).collect()
}

/// Where tracing writes to: standard error, and memory.
#[derive(Debug, Clone, Copy)]
pub struct Log;

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        Self
    }
}

impl Write for Log {
    /// Takes one event, which is one line.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let ms = boot_ms();
        let line = format!("[{:>6}.{:02}] {}", ms / 1000, ms % 1000 / 10, String::from_utf8_lossy(event));
        LINES.lock().unwrap_or_else(PoisonError::into_inner).keep(line);
        io::stderr().write_all(event)?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_no_more_than_fit() {
        let mut lines = Lines { lines: VecDeque::new(), bytes: 0 };
        for number in 0..10_000 {
            lines.keep(format!("{number:>99}\n"));
        }
        assert!(lines.bytes <= MAX_BYTES && lines.bytes > MAX_BYTES - 200);
        assert_eq!(lines.bytes, lines.lines.iter().map(String::len).sum::<usize>());
        assert!(lines.lines.back().unwrap().ends_with("9999\n"));
    }
}
