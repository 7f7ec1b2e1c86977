//! The other end of a conversation; and the same as something to read from and to write to, for work that waits.

use std::io::{self, Read, Write};

use bytes::{Buf as _, Bytes};
use hivemind_spec::exec::{MAX_DATA_BYTES, OutputStream, TerminalSize};
use tokio::sync::{mpsc, watch};

/// What comes from the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// For the command.
    Data(Bytes),
    /// No more data comes.
    End,
    /// The terminal has another size.
    Resize(TerminalSize),
}

/// A piece of output.
pub type Output = (OutputStream, Bytes);

/// The other end of a command. It is gone when `input` is closed or `output` is no longer received.
#[derive(Debug)]
pub struct OtherEnd {
    /// What it says.
    pub input: mpsc::Receiver<Input>,
    /// How much of the input was taken so far, bytes.
    pub taken: watch::Sender<u64>,
    /// What it hears.
    pub output: mpsc::Sender<Output>,
}

/// What the other end says, until it says that there is no more. Reading waits: not on a thread of tokio's.
#[derive(Debug)]
pub(super) struct Ear {
    input: mpsc::Receiver<Input>,
    taken: watch::Sender<u64>,
    rest: Bytes,
    ended: bool,
}

/// What the other end hears. Writing waits: not on a thread of tokio's.
#[derive(Debug, Clone)]
pub(super) struct Mouth {
    stream: OutputStream,
    output: mpsc::Sender<Output>,
}

/// Both of a conversation, and a mouth for what is said beside.
pub(super) fn open(OtherEnd { input, taken, output }: OtherEnd) -> (Ear, Mouth, Mouth) {
    let ear = Ear { input, taken, rest: Bytes::new(), ended: false };
    let beside = Mouth { stream: OutputStream::Stderr, output: output.clone() };
    (ear, Mouth { stream: OutputStream::Stdout, output }, beside)
}

impl Read for Ear {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() && !self.ended {
            match self.input.blocking_recv() {
                Some(Input::Data(data)) => self.rest = data,
                Some(Input::Resize(_)) => {}
                Some(Input::End) => self.ended = true,
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the other end is gone")),
            }
        }
        let count = buffer.len().min(self.rest.len());
        buffer[..count].copy_from_slice(&self.rest[..count]);
        self.rest.advance(count);
        self.taken.send_modify(|taken| *taken += count as u64);
        Ok(count)
    }
}

impl Write for Mouth {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let count = data.len().min(MAX_DATA_BYTES);
        let piece = (self.stream, Bytes::copy_from_slice(&data[..count]));
        self.output.blocking_send(piece).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_ends_when_the_other_end_says_so_and_breaks_off_when_it_is_gone() {
        for says_so in [true, false] {
            let (said, input) = mpsc::channel(8);
            let (taken, is_taken) = watch::channel(0);
            let (output, mut heard) = mpsc::channel(8);
            let (mut ear, mut mouth, mut beside) = open(OtherEnd { input, taken, output });
            said.blocking_send(Input::Data(Bytes::from_static(b"one, "))).unwrap();
            said.blocking_send(Input::Data(Bytes::from_static(b"two"))).unwrap();
            if says_so {
                said.blocking_send(Input::End).unwrap();
            }
            drop(said);
            let mut text = String::new();
            let read = ear.read_to_string(&mut text);
            assert_eq!(read.is_ok(), says_so);
            assert_eq!(*is_taken.borrow(), 8);
            mouth.write_all(&[7; MAX_DATA_BYTES + 1]).unwrap();
            beside.write_all(b"beside").unwrap();
            let sizes: Vec<_> =
                std::iter::from_fn(|| heard.try_recv().ok()).map(|(_, data)| data.len()).collect();
            assert_eq!(sizes, [MAX_DATA_BYTES, 1, 6]);
            drop(heard);
            assert_eq!(mouth.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        }
    }
}
