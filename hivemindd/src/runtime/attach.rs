//! Being at a container's own command: what it prints is passed on as it comes, beside its log, and what is typed goes to its
//! terminal. The command does not notice when somebody comes or goes.
//!
//! ```text
//!   what is typed ---> the terminal's other side, which the shim holds ---> command
//!   what it prints <-- collector of its log <-- pipe <-- shim <------------'
//! ```
//!
//! The shim itself is given no input: it would end the terminal when that ended, and with an agent that is started anew it
//! would.

use std::fs;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use hivemind_core::event::{ContainerId, OperationError};
use hivemind_spec::exec::TerminalSize;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use tokio::net::unix::pipe;
use tokio::time::timeout;

use super::Runtime;
use super::client::transient;
use super::exec::Exec;
use super::session::{resize, write};
use super::stream::{Input, OtherEnd};

/// How long what a command printed at its end may be under way.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The driver of terminals that programs hold the other side of (pts(4)).
const PTS_MAJOR: u32 = 136;

impl Runtime {
    /// Passes on what a container prints from now on, and what is typed to its terminal if it has one, until its command ends.
    /// Returns its exit code; 0 when the other end goes before.
    ///
    /// # Errors
    /// When it is not there, its terminal cannot be had, or the other end reads more slowly than it prints.
    pub async fn attach(
        &self,
        container: &ContainerId,
        size: Option<TerminalSize>,
        OtherEnd { mut input, taken, output }: OtherEnd,
    ) -> Result<u32, OperationError> {
        let own = Exec::known(self, container, String::new());
        let pid = own.pid().await?.ok_or_else(|| transient("its command has ended"))?;
        let found = i32::try_from(pid).map_err(io::Error::other).and_then(terminal);
        let terminal = found.map_err(|error| transient(format!("its terminal cannot be had: {error}")))?;
        if let (Some(size), Some(_)) = (size, &terminal) {
            resize(&own, size).await;
        }
        let mut heard = self.logs.listen(container);
        let ended = own.wait();
        tokio::pin!(ended);
        // What has not been written, and what has not been passed on.
        let (mut typed, mut said) = (Bytes::new(), None);
        let code = loop {
            tokio::select! {
                code = &mut ended => break code?,
                () = output.closed() => return Ok(0),
                room = output.reserve(), if said.is_some() => match (room, said.take()) {
                    (Ok(room), Some(piece)) => room.send(piece),
                    _ => return Ok(0),
                },
                piece = heard.recv(), if said.is_none() => match piece {
                    Some(piece) => said = Some(piece),
                    // With the container its output ends too.
                    None => match timeout(LAST_WORDS, &mut ended).await {
                        Ok(code) => break code?,
                        Err(_) => return Err(transient("it prints faster than is read; `hivemind logs -f` shows all of it")),
                    },
                },
                what = input.recv(), if typed.is_empty() => match what {
                    Some(Input::Data(data)) => typed = data,
                    Some(Input::Resize(size)) => resize(&own, size).await,
                    // Its terminal stays open for whoever comes next.
                    Some(Input::End) => {}
                    None => return Ok(0),
                },
                written = write(terminal.as_ref(), &typed), if !typed.is_empty() => {
                    // Where there is no terminal, nobody reads it.
                    let count = written.unwrap_or(typed.len());
                    drop(typed.split_to(count));
                    taken.send_modify(|taken| *taken += count as u64);
                }
            }
        };
        let rest = async {
            while let Some(piece) = match said.take() {
                Some(piece) => Some(piece),
                None => timeout(LAST_WORDS, heard.recv()).await.ok().flatten(),
            } {
                if output.send(piece).await.is_err() {
                    return;
                }
            }
        };
        rest.await;
        Ok(code)
    }
}

/// The other side of the terminal that a process is at, as a pipe to it; none: it is at none.
fn terminal(pid: i32) -> io::Result<Option<pipe::Sender>> {
    let Some((shim, number)) = parent_and_terminal(&fs::read_to_string(format!("/proc/{pid}/stat"))?) else {
        return Ok(None);
    };
    // Each container has a numbering of its own, and each shim one container.
    for entry in fs::read_dir(format!("/proc/{shim}/fd"))? {
        let entry = entry?;
        let is_master = fs::read_link(entry.path()).is_ok_and(|link| link.ends_with("ptmx"));
        let name = entry.file_name().to_string_lossy().into_owned();
        if !is_master || !is_number(&format!("/proc/{shim}/fdinfo/{name}"), number) {
            continue;
        }
        let shim = Pid::from_raw(shim).ok_or(io::ErrorKind::NotFound)?;
        let number = name.parse().map_err(io::Error::other)?;
        let process = pidfd_open(shim, PidfdFlags::empty())?;
        let master = pidfd_getfd(process, number, PidfdGetfdFlags::empty())?;
        // As the shim has it already: they share it.
        rustix::io::ioctl_fionbio(&master, true)?;
        return pipe::Sender::from_file_unchecked(master.into()).map(Some);
    }
    Err(io::Error::other("its shim does not hold it"))
}

/// Whether a descriptor is the other side of the terminal with a number (proc_pid_fdinfo(5)).
fn is_number(info: &str, number: u32) -> bool {
    let text = fs::read_to_string(info).unwrap_or_default();
    let found = text.lines().find_map(|line| line.strip_prefix("tty-index:"));
    found.and_then(|text| text.trim().parse().ok()) == Some(number)
}

/// Fields 4 and 7 of `stat` (proc_pid_stat(5)): the parent, and the number of the terminal, if it is one of these.
fn parent_and_terminal(stat: &str) -> Option<(i32, u32)> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let device: u32 = fields.get(4)?.parse().ok()?;
    let (major, minor) = (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xfff00);
    (major == PTS_MAJOR).then_some(())?;
    Some((fields.get(1)?.parse().ok()?, minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_terminal_of_a_process_is_read_as_the_kernel_writes_it() {
        let stat = |device: &str| format!("7 (a ) b) S 42 7 7 {device} -1 4194560 100");
        assert_eq!(parent_and_terminal(&stat("34816")), Some((42, 0)));
        assert_eq!(parent_and_terminal(&stat("34819")), Some((42, 3)));
        assert_eq!(parent_and_terminal(&stat("1083393")), Some((42, 257)));
        assert_eq!(parent_and_terminal(&stat("0")), None, "it is at none");
        assert_eq!(parent_and_terminal(&stat("1025")), None, "a virtual console");
        assert_eq!(parent_and_terminal("nonsense"), None);
    }
}
