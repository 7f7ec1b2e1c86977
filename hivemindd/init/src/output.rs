//! What a child prints, line by line onto the console, bounded.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::console::line_from;

/// Longest line shown, bytes; the rest of it is dropped.
const MAX_LINE: usize = 400;

/// Lines shown per [`PERIOD`]: a child in trouble must not make the serial console, at about 11 KB/s,
/// the slowest part of the machine.
const MAX_LINES: u32 = 60;

const PERIOD: Duration = Duration::from_secs(5);

/// A pipe that outlives the child: those the child started (the containers' shims) hold it too, and
/// must never find it closed.
pub(super) struct Output {
    name: &'static str,
    read: OwnedFd,
    write: OwnedFd,
    lines: Lines,
}

impl Output {
    pub(super) fn new(name: &'static str) -> io::Result<Self> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        nix::fcntl::fcntl(&read, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self { name, read, write, lines: Lines::default() })
    }

    /// A copy of the end to write to, for a new child.
    pub(super) fn writer(&self) -> io::Result<OwnedFd> {
        self.write.try_clone()
    }

    /// Shows what has come.
    pub(super) fn drain(&mut self) {
        let mut buffer = [0; 4096];
        // As much as a pipe holds; what comes meanwhile is for the next round.
        for _ in 0..16 {
            match nix::unistd::read(&self.read, &mut buffer) {
                Ok(0) | Err(Errno::EAGAIN) => return,
                Ok(count) => {
                    let name = self.name;
                    let bytes = buffer.get(..count).unwrap_or_default();
                    self.lines.take(bytes, Instant::now(), &mut |text| line_from(name, text));
                }
                Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }
}

impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }
}

/// Cuts a stream of bytes into lines and counts them.
#[derive(Default)]
struct Lines {
    partial: Vec<u8>,
    period: Option<Instant>,
    shown: u32,
    dropped: u32,
}

impl Lines {
    fn take(&mut self, bytes: &[u8], now: Instant, show: &mut dyn FnMut(&str)) {
        for &byte in bytes {
            if byte == b'\n' {
                let line = std::mem::take(&mut self.partial);
                self.show(&String::from_utf8_lossy(&line), now, show);
            } else if self.partial.len() < MAX_LINE {
                // A control character could make the console lie.
                self.partial.push(if byte < b' ' { b' ' } else { byte });
            }
        }
    }

    fn show(&mut self, text: &str, now: Instant, show: &mut dyn FnMut(&str)) {
        if text.trim().is_empty() {
            return;
        }
        if self.period.is_none_or(|start| now.duration_since(start) >= PERIOD) {
            if self.dropped > 0 {
                show(&format!("({} lines left out)", self.dropped));
            }
            (self.period, self.shown, self.dropped) = (Some(now), 0, 0);
        }
        if self.shown < MAX_LINES {
            self.shown += 1;
            show(text);
        } else {
            self.dropped += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(lines: &mut Lines, bytes: &[u8], now: Instant) -> Vec<String> {
        let mut out = Vec::new();
        lines.take(bytes, now, &mut |text| out.push(text.to_owned()));
        out
    }

    #[test]
    fn lines_are_put_together_and_stripped_of_control_characters() {
        let (mut lines, now) = (Lines::default(), Instant::now());
        assert_eq!(shown(&mut lines, b"one\ntw", now), ["one"]);
        assert_eq!(shown(&mut lines, b"o\x1b[2J\n\n", now), ["two [2J"]);
    }

    #[test]
    fn endless_lines_and_endless_numbers_of_lines_are_cut() {
        let (mut lines, now) = (Lines::default(), Instant::now());
        assert_eq!(shown(&mut lines, &vec![b'x'; 100_000], now), Vec::<String>::new());
        assert_eq!(shown(&mut lines, b"\n", now)[0].len(), MAX_LINE);
        assert_eq!(shown(&mut lines, "a\n".repeat(500).as_bytes(), now).len(), MAX_LINES as usize - 1);
        let later = shown(&mut lines, b"b\n", now + PERIOD);
        assert_eq!(later, ["(441 lines left out)", "b"]);
    }
}
