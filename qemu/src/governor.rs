//! Keeps all labs of this computer, in whatever process, within its processors and memory.
//!
//! A slot is an abstract socket of a known name, and stands for one processor of a machine. It belongs to whoever has
//! bound it: users who cannot write to each other's folders share them too, and the kernel closes the sockets of a
//! killed process, so no slot can leak. A lab takes all its slots before it starts and none later, and only the head
//! of the queue collects slots, so labs cannot deadlock and a big one is not starved by small ones.

use std::env;
use std::fs;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};

/// Four machines per processor: one boots while the others wait for their disks, networks and clocks. More only
/// makes every emulated machine miss its deadlines.
const SLOTS_PER_PROCESSOR: usize = 4;

/// What a slot may use: the largest machine of the tests, its translated code and QEMU's own memory.
const MEMORY_PER_SLOT_MIB: usize = 1280;

/// How long a lab waits for others to end. Longer than the longest single test.
const PATIENCE: Duration = Duration::from_secs(20 * 60);

const POLL: Duration = Duration::from_millis(100);

/// What the names of all slots of this computer begin with.
const SLOTS: &str = "hivemind-qemu/slots";

/// The right to run some machines, given back when dropped.
#[derive(Debug)]
pub(crate) struct Slots {
    _held: Vec<UnixDatagram>,
}

/// Waits for `wanted` slots. A lab larger than the computer gets all of it, and is slow rather than impossible.
pub(crate) fn acquire(wanted: usize) -> Result<Slots> {
    acquire_of(SLOTS, wanted, total(), PATIENCE)
}

fn total() -> usize {
    if let Some(slots) = env::var("HIVEMIND_QEMU_SLOTS").ok().and_then(|value| value.parse().ok()) {
        return usize::max(slots, 1);
    }
    let processors = thread::available_parallelism().map_or(1, usize::from);
    (processors * SLOTS_PER_PROCESSOR).min(total_memory_mib() / MEMORY_PER_SLOT_MIB).max(1)
}

/// All memory rather than what is free now: the number of slots must be the same for all processes.
fn total_memory_mib() -> usize {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = info
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
    kib.unwrap_or(0usize) / 1024
}

fn acquire_of(slots: &str, wanted: usize, total: usize, patience: Duration) -> Result<Slots> {
    let wanted = wanted.clamp(1, total);
    let started = Instant::now();
    let expired = || Error::Timeout {
        what: format!("{wanted} of {total} machine slots"),
        waited: patience,
        context: "; other labs are using them (see `hivemind-qemu list`)".into(),
    };
    let queue = loop {
        match try_take(slots, "queue")? {
            Some(queue) => break queue,
            None if started.elapsed() >= patience => return Err(expired()),
            None => thread::sleep(POLL),
        }
    };
    let mut held = Vec::with_capacity(wanted);
    let mut free: Vec<usize> = (0..total).collect();
    loop {
        let mut taken_by_others = Vec::new();
        for slot in free {
            if held.len() < wanted {
                match try_take(slots, &slot.to_string())? {
                    Some(taken) => held.push(taken),
                    None => taken_by_others.push(slot),
                }
            }
        }
        if held.len() == wanted {
            drop(queue);
            return Ok(Slots { _held: held });
        }
        if started.elapsed() >= patience {
            return Err(expired());
        }
        free = taken_by_others;
        thread::sleep(POLL);
    }
}

/// Takes the socket of that name, or says that somebody else has it.
fn try_take(slots: &str, name: &str) -> Result<Option<UnixDatagram>> {
    let take = || UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(format!("{slots}/{name}"))?);
    match take() {
        Ok(socket) => Ok(Some(socket)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
        Err(error) => Err(error).context(format!("take the machine slot {name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_slots(name: &str) -> String {
        format!("hivemind-qemu/test-{name}-{}", std::process::id())
    }

    #[test]
    fn labs_wait_for_slots_and_get_them_when_others_end() {
        let slots = own_slots("wait");
        let first = acquire_of(&slots, 2, 3, Duration::ZERO).unwrap();
        assert!(matches!(acquire_of(&slots, 2, 3, Duration::ZERO), Err(Error::Timeout { .. })));
        let single = acquire_of(&slots, 1, 3, Duration::ZERO).unwrap();
        let waiting = thread::spawn({
            let slots = slots.clone();
            move || acquire_of(&slots, 3, 3, Duration::from_secs(10)).map(drop)
        });
        drop((first, single));
        waiting.join().unwrap().unwrap();
    }

    #[test]
    fn a_lab_larger_than_the_computer_gets_all_of_it() {
        let slots = own_slots("large");
        let all = acquire_of(&slots, 50, 2, Duration::ZERO).unwrap();
        assert!(acquire_of(&slots, 1, 2, Duration::ZERO).is_err());
        drop(all);
    }
}
