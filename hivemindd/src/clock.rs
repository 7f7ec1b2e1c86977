//! What time it is, as well as the node can know.
//!
//! The wall clock is never behind the *floor*: the time the image was built, the last time that
//! was stored, and times that come with signed things. So a machine that wakes up in 1970 still
//! joins and signs. Where there is an NTP server the system clock is set by it (RFC 5905, client
//! mode of section 14).

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hivemind_core::time::Time;
use hivemind_init::durable;
use hivemind_init::fence::{HARDWARE_EVERY_MS, Standstill, boot_ms};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::underlay::Underlay;

/// Where the last known time is stored.
const FOLDER: &str = "/var/lib/hivemind";
const FILE: &str = "clock";

/// How often it is stored: a machine without a clock of its own loses at most this much over a
/// power cut, and flash is written 144 times a day.
const STORE_INTERVAL: Duration = Duration::from_secs(600);

/// The image's build time, seconds since 1970, when the build says so.
const BUILT_S: Option<&str> = option_env!("SOURCE_DATE_EPOCH");

/// How long an NTP server may take to answer.
const NTP_PATIENCE: Duration = Duration::from_secs(2);

/// How often NTP servers are asked once one has answered, and before.
const NTP_INTERVAL: Duration = Duration::from_secs(1024);
const NTP_RETRY: Duration = Duration::from_secs(16);

/// A smaller difference is left alone: setting the clock is a jump.
const NTP_TOLERANCE_MS: i64 = 250;

/// Seconds between 1900, where NTP counts from, and 1970.
const NTP_EPOCH_S: u64 = 2_208_988_800;

/// The node's clock.
#[derive(Debug, Default)]
pub struct Clock {
    /// Added to the system's wall clock, milliseconds: what it is behind the floor.
    ahead_ms: AtomicI64,
    /// Added to the time since the machine was switched on, milliseconds: for how long it stood still
    /// without its own clock noticing ([`hivemind_init::fence`]).
    stood_ms: AtomicU64,
    /// Looked at while something here has a deadline.
    standstill: Mutex<Option<(Standstill, u64)>>,
}

impl Clock {
    /// Reads the stored time and starts.
    pub fn start() -> Self {
        let clock = Self::default();
        let built = BUILT_S.and_then(|text| text.parse::<u64>().ok()).map(|s| s * 1000);
        let stored = std::fs::read_to_string(Path::new(FOLDER).join(FILE)).ok();
        let stored = stored.and_then(|text| text.trim().parse().ok());
        clock.raise_floor(built.max(stored).unwrap_or(0));
        clock
    }

    /// Now.
    pub fn now(&self) -> Time {
        Time {
            mono_ms: self.elapsed_ms(),
            wall_ms: system_ms().saturating_add_signed(self.ahead_ms.load(Ordering::Relaxed)),
        }
    }

    /// From now on notices when the machine stood still.
    pub fn watch_for_standstill(&self) {
        if let Ok(mut watched) = self.standstill.lock() {
            watched.get_or_insert_default();
        }
    }

    fn elapsed_ms(&self) -> u64 {
        let now_ms = boot_ms();
        if let Ok(mut watched) = self.standstill.lock()
            && let Some((standstill, looked_ms)) = watched.as_mut()
            && now_ms >= *looked_ms + HARDWARE_EVERY_MS
        {
            *looked_ms = now_ms;
            let stood_ms = standstill.look();
            if stood_ms > 0 {
                tracing::warn!(code = "stood-still", stood_ms, "the machine stood still");
                self.stood_ms.fetch_add(stood_ms, Ordering::Relaxed);
            }
        }
        now_ms + self.stood_ms.load(Ordering::Relaxed)
    }

    /// A moment of [`Time::mono_ms`] by `CLOCK_BOOTTIME`, milliseconds.
    pub fn boot_time_ms(&self, mono_ms: u64) -> u64 {
        mono_ms.saturating_sub(self.stood_ms.load(Ordering::Relaxed))
    }

    /// Takes note that it is at least this late, milliseconds since 1970.
    pub fn raise_floor(&self, wall_ms: u64) {
        let behind = i64::try_from(wall_ms.saturating_sub(system_ms())).unwrap_or(0);
        self.ahead_ms.fetch_max(behind, Ordering::Relaxed);
    }

    /// Stores the time now and then, and sets the system's clock by NTP where there is a server.
    pub async fn keep(&self, servers: Vec<String>, underlay: watch::Receiver<Option<Underlay>>) {
        tokio::join!(self.store(), self.follow(servers, underlay));
    }

    async fn store(&self) {
        loop {
            tokio::time::sleep(STORE_INTERVAL).await;
            let text = self.now().wall_ms.to_string();
            let write = move || durable::write(Path::new(FOLDER), FILE, text.as_bytes());
            // The disk may take its time.
            if let Ok(Err(error)) = tokio::task::spawn_blocking(write).await {
                tracing::warn!(%error, "the time cannot be stored");
            }
        }
    }

    async fn follow(&self, configured: Vec<String>, underlay: watch::Receiver<Option<Underlay>>) {
        loop {
            let servers = if configured.is_empty() {
                let underlay = underlay.borrow().clone();
                underlay.map_or_else(Vec::new, |u| u.ntp.iter().map(ToString::to_string).collect())
            } else {
                configured.clone()
            };
            let mut pause = NTP_RETRY;
            for server in servers {
                match offset_ms(&server).await {
                    Ok(offset) => {
                        self.correct(offset);
                        pause = NTP_INTERVAL;
                        break;
                    }
                    Err(error) => tracing::debug!(server, %error, "no answer from the NTP server"),
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Sets the system's clock. What the node added to it is no longer needed.
    fn correct(&self, offset_ms: i64) {
        if offset_ms.abs() <= NTP_TOLERANCE_MS {
            return;
        }
        let now = Duration::from_millis(system_ms().saturating_add_signed(offset_ms));
        match clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(now)) {
            Ok(()) => {
                self.ahead_ms.store(0, Ordering::Relaxed);
                tracing::info!(offset_ms, "the clock was set by NTP");
            }
            Err(error) => tracing::warn!(%error, "the clock cannot be set"),
        }
    }
}

/// How far the system's clock is behind a server's, milliseconds.
async fn offset_ms(server: &str) -> io::Result<i64> {
    let server = if server.contains(':') { server.to_owned() } else { format!("{server}:123") };
    let address: SocketAddr = tokio::net::lookup_host(server).await?.next().ok_or(io::ErrorKind::NotFound)?;
    let any: SocketAddr = if address.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(address).await?;
    let sent_ms = system_ms();
    let request = request(sent_ms);
    socket.send(&request).await?;
    let mut answer = [0; 48];
    let length = timeout(NTP_PATIENCE, socket.recv(&mut answer)).await??;
    offset(&request, &answer[..length], sent_ms, system_ms()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// A client's packet: version 4, mode 3, and our time to recognise the answer by.
fn request(now_ms: u64) -> [u8; 48] {
    let mut packet = [0; 48];
    packet[0] = 0b00_100_011;
    packet[40..].copy_from_slice(&to_ntp(now_ms).to_be_bytes());
    packet
}

/// The offset by the four timestamps (RFC 5905, section 8), if the answer is one to `request` by a
/// server that has the time.
fn offset(request: &[u8; 48], answer: &[u8], sent_ms: u64, received_ms: u64) -> Option<i64> {
    let stamp = |from: usize| Some(u64::from_be_bytes(answer.get(from..from + 8)?.try_into().ok()?));
    let (leap, mode, stratum) = (answer.first()? >> 6, answer.first()? & 7, *answer.get(1)?);
    let echoed = answer.get(24..32)? == &request[40..48];
    if leap == 3 || mode != 4 || stratum == 0 || stratum > 15 || !echoed {
        return None;
    }
    let (arrived, left) = (from_ntp(stamp(32)?), from_ntp(stamp(40)?));
    let there = i64::try_from(arrived).ok()? - i64::try_from(sent_ms).ok()?;
    let back = i64::try_from(left).ok()? - i64::try_from(received_ms).ok()?;
    Some((there + back) / 2)
}

fn to_ntp(ms: u64) -> u64 {
    ((ms / 1000 + NTP_EPOCH_S) << 32) | (((ms % 1000) << 32) / 1000)
}

/// Milliseconds since 1970. Seconds below 2^31 are those of NTP's second era, from 2036 on.
fn from_ntp(stamp: u64) -> u64 {
    let seconds = stamp >> 32;
    let seconds = if seconds < 1 << 31 { seconds + (1 << 32) } else { seconds };
    (seconds - NTP_EPOCH_S) * 1000 + (((stamp & 0xffff_ffff) * 1000) >> 32)
}

fn system_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_never_behind_its_floor_and_goes_on_from_there() {
        let clock = Clock::default();
        let future = system_ms() + 1_000_000;
        clock.raise_floor(future);
        let first = clock.now();
        assert!(first.wall_ms >= future);
        clock.raise_floor(5);
        std::thread::sleep(Duration::from_millis(5));
        let second = clock.now();
        assert!(second.wall_ms > first.wall_ms && second.mono_ms > first.mono_ms);
    }

    #[test]
    fn the_offset_is_that_of_a_server_that_answers_this_request() {
        let sent = 1_800_000_000_000;
        let request = request(sent);
        let mut answer = [0; 48];
        answer[0] = 0b00_100_100;
        answer[1] = 2;
        answer[24..32].copy_from_slice(&request[40..48]);
        answer[32..40].copy_from_slice(&to_ntp(sent + 5010).to_be_bytes());
        answer[40..48].copy_from_slice(&to_ntp(sent + 5010).to_be_bytes());
        let found = offset(&request, &answer, sent, sent + 20).unwrap();
        assert!((found - 5000).abs() <= 1, "{found}");
        answer[30] ^= 1;
        assert_eq!(offset(&request, &answer, sent, sent + 20), None, "not to this request");
        assert_eq!(offset(&request, &answer[..40], sent, sent + 20), None);
    }
}
