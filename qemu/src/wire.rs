//! The cable between a machine and the bridge, and everything that can be wrong with it.
//!
//! QEMU speaks Ethernet frames over a socket; the other end of the cable is a tap on the lab's bridge. Because every
//! frame passes through here, partitions, delay and loss need no kernel module and no firewall on the host, apply at
//! the same instant to all protocols, and take their randomness from a seed.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::random::Random;

/// The largest frame a tap or a virtio card hands over: a jumbo packet with headers.
const FRAME_MAX: usize = 16 * 1024;

/// Frames under way in one direction; beyond, the newest is dropped, like the queue of a real switch.
const QUEUE_MAX: usize = 1024;

/// Frames read from one side before the other gets its turn.
const BURST: usize = 64;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address of the lab's own machine with that last byte (and last byte of its IPv4 address).
    pub(crate) fn of_host(host: u8) -> Mac {
        // 52:54:00 is what QEMU machines use; the rest keeps them apart from the default addresses.
        Mac([0x52, 0x54, 0x00, 0x48, 0x4d, host])
    }
}

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// What a cable does to frames, in each direction. The default is a perfect cable.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Impairment {
    /// Added to every frame, so that a round trip takes twice as much longer.
    pub delay: Duration,
    /// Up to this much more, different for every frame. Frames may overtake each other.
    pub jitter: Duration,
    /// The share of frames lost, from 0 to 1.
    pub loss: f64,
    /// The share of frames that arrive twice, from 0 to 1.
    pub duplication: f64,
}

/// Who cannot hear whom, for all cables of a lab.
#[derive(Debug, Default)]
pub(crate) struct Cuts {
    pairs: Mutex<BTreeSet<(Mac, Mac)>>,
}

impl Cuts {
    pub(crate) fn cut(&self, from: Mac, to: Mac) {
        self.pairs.lock().unwrap_or_else(PoisonError::into_inner).insert((from, to));
    }

    pub(crate) fn mend(&self, from: Mac, to: Mac) {
        self.pairs.lock().unwrap_or_else(PoisonError::into_inner).remove(&(from, to));
    }

    pub(crate) fn mend_all(&self) {
        self.pairs.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn blocks(&self, from: Mac, to: Mac) -> bool {
        self.pairs.lock().unwrap_or_else(PoisonError::into_inner).contains(&(from, to))
    }
}

/// What can be changed while the cable is in use; it outlives a power cut.
#[derive(Debug)]
pub(crate) struct Cable {
    pub(crate) mac: Mac,
    pub(crate) gateway: Mac,
    pub(crate) cuts: Arc<Cuts>,
    pub(crate) plugged: AtomicBool,
    pub(crate) impairment: Mutex<Impairment>,
    pub(crate) to_machine: AtomicU64,
    pub(crate) from_machine: AtomicU64,
}

impl Cable {
    pub(crate) fn new(mac: Mac, gateway: Mac, cuts: Arc<Cuts>) -> Cable {
        Cable {
            mac,
            gateway,
            cuts,
            plugged: AtomicBool::new(true),
            impairment: Mutex::default(),
            to_machine: AtomicU64::new(0),
            from_machine: AtomicU64::new(0),
        }
    }

    /// Whether a frame is dropped for good, judged by its addresses when it enters the cable.
    fn swallows(&self, frame: &[u8], direction: Direction) -> bool {
        if !self.plugged.load(Ordering::Relaxed) {
            return true;
        }
        match direction {
            Direction::ToMachine => source(frame).is_some_and(|from| self.cuts.blocks(from, self.mac)),
            // The gateway has no cable of its own, so what it must not hear is dropped at the sender's end. A
            // broadcast still has to reach the other machines and is let through.
            Direction::FromMachine => {
                destination(frame) == Some(self.gateway) && self.cuts.blocks(self.mac, self.gateway)
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToMachine,
    FromMachine,
}

fn destination(frame: &[u8]) -> Option<Mac> {
    frame.first_chunk().copied().map(Mac)
}

fn source(frame: &[u8]) -> Option<Mac> {
    frame.get(6..)?.first_chunk().copied().map(Mac)
}

/// A cable in use: a thread that carries frames until it is dropped.
#[derive(Debug)]
pub(crate) struct Wire {
    stop: UnixDatagram,
    thread: Option<JoinHandle<()>>,
}

impl Wire {
    /// Carries frames between `tap` and `machine`, both non-blocking.
    pub(crate) fn start(tap: File, machine: UnixDatagram, cable: Arc<Cable>) -> io::Result<Wire> {
        let (stop, stopped) = UnixDatagram::pair()?;
        let seed = u64::from(cable.mac.0[5]);
        let carrier = Carrier {
            tap,
            machine,
            cable,
            random: Random(seed),
            to_machine: VecDeque::new(),
            from_machine: VecDeque::new(),
        };
        let thread = thread::Builder::new().name("wire".into()).spawn(move || carrier.run(&stopped))?;
        Ok(Wire { stop, thread: Some(thread) })
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let _ = self.stop.send(&[0]);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Frames on their way, earliest first.
type Queue = VecDeque<(Instant, Vec<u8>)>;

struct Carrier {
    tap: File,
    machine: UnixDatagram,
    cable: Arc<Cable>,
    random: Random,
    to_machine: Queue,
    from_machine: Queue,
}

impl Carrier {
    fn run(mut self, stopped: &UnixDatagram) {
        let mut frame = vec![0; FRAME_MAX];
        loop {
            let mut watched = [
                PollFd::new(self.tap.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.machine.as_fd(), PollFlags::POLLIN),
                PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
            ];
            let woken = poll(&mut watched, self.until_next());
            let ready = |index: usize| watched[index].any().unwrap_or(true);
            let (tap, machine, stop) = (ready(0), ready(1), ready(2));
            if stop || woken.is_err_and(|error| error != nix::errno::Errno::EINTR) {
                return;
            }
            if tap {
                self.take_in(Direction::ToMachine, &mut frame);
            }
            if machine {
                self.take_in(Direction::FromMachine, &mut frame);
            }
            self.hand_out();
        }
    }

    fn until_next(&self) -> PollTimeout {
        let next = [&self.to_machine, &self.from_machine].into_iter().filter_map(|queue| queue.front());
        let Some(due) = next.map(|(due, _)| *due).min() else {
            return PollTimeout::NONE;
        };
        // Rounded up: waking a moment too early would spin.
        let wait_ms = due.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
        PollTimeout::try_from(wait_ms).unwrap_or(PollTimeout::MAX)
    }

    fn take_in(&mut self, direction: Direction, frame: &mut [u8]) {
        for _ in 0..BURST {
            let read = match direction {
                Direction::ToMachine => (&self.tap).read(frame),
                Direction::FromMachine => self.machine.recv(frame),
            };
            // An empty queue or a machine that is gone: the owner drops the wire then.
            let Ok(length) = read else { return };
            let frame = &frame[..length];
            if self.cable.swallows(frame, direction) {
                continue;
            }
            let impairment = *self.cable.impairment.lock().unwrap_or_else(PoisonError::into_inner);
            if self.random.chance(impairment.loss) {
                continue;
            }
            let copies = if self.random.chance(impairment.duplication) { 2 } else { 1 };
            for _ in 0..copies {
                let due = Instant::now() + impairment.delay + impairment.jitter.mul_f64(self.random.share());
                let queue = match direction {
                    Direction::ToMachine => &mut self.to_machine,
                    Direction::FromMachine => &mut self.from_machine,
                };
                if queue.len() < QUEUE_MAX {
                    let position = queue.partition_point(|(other, _)| *other <= due);
                    queue.insert(position, (due, frame.to_vec()));
                }
            }
        }
    }

    /// Sends what is due. A receiver that does not keep up, for example a frozen machine, loses frames.
    fn hand_out(&mut self) {
        let now = Instant::now();
        while let Some((_, frame)) = self.to_machine.pop_front_if(|(due, _)| *due <= now) {
            if self.machine.send(&frame).is_ok() {
                self.cable.to_machine.fetch_add(1, Ordering::Relaxed);
            }
        }
        while let Some((_, frame)) = self.from_machine.pop_front_if(|(due, _)| *due <= now) {
            if (&self.tap).write(&frame).is_ok() {
                self.cable.from_machine.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_loses_the_same_frames() {
        let lost = |seed| {
            let mut random = Random(seed);
            (0..1000).map(|_| random.chance(0.2)).collect::<Vec<_>>()
        };
        assert_eq!(lost(7), lost(7));
        assert_ne!(lost(7), lost(8));
        let count = lost(7).into_iter().filter(|lost| *lost).count();
        assert!((150..250).contains(&count), "{count} of 1000 lost at 20 %");
    }

    #[test]
    fn a_cut_is_one_way_until_it_is_made_both_ways() {
        let [a, b, gateway] = [Mac::of_host(11), Mac::of_host(12), Mac::of_host(1)];
        let cuts = Arc::new(Cuts::default());
        let cable_a = Cable::new(a, gateway, Arc::clone(&cuts));
        let cable_b = Cable::new(b, gateway, Arc::clone(&cuts));
        let frame = |from: Mac, to: Mac| [to.0, from.0, [0; 6]].concat();
        cuts.cut(a, b);
        assert!(cable_b.swallows(&frame(a, b), Direction::ToMachine));
        assert!(cable_b.swallows(&frame(a, Mac([0xff; 6])), Direction::ToMachine));
        assert!(!cable_a.swallows(&frame(b, a), Direction::ToMachine));
        cuts.cut(a, gateway);
        assert!(cable_a.swallows(&frame(a, gateway), Direction::FromMachine));
        assert!(!cable_b.swallows(&frame(b, gateway), Direction::FromMachine));
        cuts.mend_all();
        assert!(!cable_b.swallows(&frame(a, b), Direction::ToMachine));
    }
}
