//! `hivemind attach`.

use std::io::{self, Read};

use hivemind_spec::document::{Kind, SpecKey};
use hivemind_spec::exec::AttachRequest;

use super::exec::{keeper, path, terminal};
use super::prepare::held;
use super::session::{LEFT, converse};
use crate::cli::{Attach, Global};
use crate::client::Client;
use crate::failure::{Exit, Failure, Result};
use crate::terminal::{FAINT, note, paint};

/// The keys that leave a container, as with Docker: Ctrl-P, then Ctrl-Q.
const LEAVE: [u8; 2] = [0x10, 0x11];

pub(super) fn run(global: &Global, options: &Attach) -> Result<Exit> {
    let client = super::client(global)?;
    super::block_on("left it; it goes on", async {
        let is_typed_to = has_terminal(&client, options).await? && !options.no_input;
        let request = AttachRequest { terminal: terminal(global, !is_typed_to) };
        let at_terminal = request.terminal.is_some();
        let input: Box<dyn Read + Send> = match (is_typed_to, at_terminal) {
            (true, true) => Box::new(Leaving { inner: io::stdin(), begun: false }),
            (true, false) => Box::new(io::stdin()),
            (false, _) => Box::new(io::empty()),
        };
        let keys = if at_terminal { "Ctrl-P Ctrl-Q" } else { "Ctrl-C" };
        note(&paint(FAINT, &format!("{keys} leaves it, and it goes on.")));
        let json = serde_json::to_string(&request).unwrap_or_default();
        let path = path("attach", &options.namespace, &options.workload, &json)?;
        let ended = converse(&client, &path, at_terminal, input, keeper(global)?).await;
        ended.map_err(|mut failure| {
            if failure.code == "broken-session" {
                failure.advice =
                    "it goes on in its container; attach again, and see `hivemind nodes`".to_owned();
            }
            failure
        })
    })
}

/// Whether a workload's containers have terminals.
async fn has_terminal(client: &Client, options: &Attach) -> Result<bool> {
    let (name, _) = super::replica(&options.workload)?;
    let key = SpecKey { kind: Kind::Workload, namespace: options.namespace.clone(), name: name.to_owned() };
    let document = held(client, &key).await?.filter(|item| !item.deleted).and_then(|item| item.document());
    match document.as_ref().and_then(|document| document.workload()) {
        Some(workload) => Ok(workload.container.tty),
        None => Err(Failure::new(Exit::Refused, "not-found", format!("there is no workload {name:?}"))
            .advice("`hivemind ps` lists what there is")),
    }
}

/// What is typed, until the keys that leave: then reading fails with [`LEFT`].
struct Leaving<R> {
    inner: R,
    /// The first of them was typed last.
    begun: bool,
}

impl<R: Read> Read for Leaving<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            // There must be room for the key that was held back.
            let start = usize::from(self.begun);
            let Some(room) = buffer.get_mut(start..).filter(|room| !room.is_empty()) else { return Ok(0) };
            let count = self.inner.read(room)?;
            if count == 0 {
                return Ok(0);
            }
            if self.begun {
                buffer[0] = LEAVE[0];
            }
            let mut typed = start + count;
            if buffer[..typed].windows(2).any(|keys| keys == LEAVE) {
                return Err(LEFT.into());
            }
            self.begun = buffer[typed - 1] == LEAVE[0];
            typed -= usize::from(self.begun);
            if typed > 0 {
                return Ok(typed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one piece with each reading.
    struct Typed(Vec<&'static [u8]>);

    impl Read for Typed {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Ok(0);
            }
            let piece = self.0.remove(0);
            buffer[..piece.len()].copy_from_slice(piece);
            Ok(piece.len())
        }
    }

    #[test]
    fn two_keys_leave_and_all_others_are_typed() {
        let typed = |pieces: &[&'static [u8]]| {
            let mut leaving = Leaving { inner: Typed(pieces.to_vec()), begun: false };
            let (mut buffer, mut all) = ([0; 16], Vec::new());
            loop {
                match leaving.read(&mut buffer) {
                    Ok(0) => return (all, false),
                    Ok(count) => all.extend_from_slice(&buffer[..count]),
                    Err(error) => {
                        assert_eq!(error.kind(), LEFT);
                        return (all, true);
                    }
                }
            }
        };
        assert_eq!(typed(&[b"ls\r", b"\x10", b"\x11", b"more"]), (b"ls\r".to_vec(), true));
        assert_eq!(typed(&[b"a\x10\x11"]), (b"".to_vec(), true));
        assert_eq!(typed(&[b"\x10", b"\x10", b"x\x11", b"\x11"]), (b"\x10\x10x\x11\x11".to_vec(), false));
    }
}
