//! What PID 1 asks of the kernel that no safe wrapper offers.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

/// Kernel messages at or above this level stay off the console (`linux/kern_levels.h`): errors and
/// worse are shown, the rest would drown our own lines.
const CONSOLE_LOG_LEVEL: &str = "4";

/// Lowers the kernel's chatter on the console.
pub(super) fn quiet_kernel() {
    // Failing leaves the console noisy, no more.
    let _ = std::fs::write("/proc/sys/kernel/printk", CONSOLE_LOG_LEVEL);
}

/// Lets every other thread go before the calling one.
pub(super) fn yield_to_others() {
    const LOWEST: libc::c_int = 19;
    // On Linux "process 0" is the calling thread. Failing leaves it as urgent as the others, no more.
    // SAFETY: takes numbers only.
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, LOWEST) };
}

/// The running kernel's version.
pub(super) fn kernel_release() -> String {
    nix::sys::utsname::uname()
        .map_or_else(|_| "?".to_owned(), |names| names.release().to_string_lossy().into_owned())
}

/// Brings the interface `lo` up; the kernel gives it its addresses.
///
/// # Errors
/// The kernel's answer.
pub(super) fn loopback_up() -> io::Result<()> {
    let socket = std::net::UdpSocket::bind(("0.0.0.0", 0))?;
    // SAFETY: `ifreq` is plain data, for which all zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo\0") {
        *to = from.cast_signed();
    }
    // SAFETY: the request is a valid `ifreq` with a terminated name; the kernel fills in the flags.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just written this member of the union.
    unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short };
    // SAFETY: as above; the kernel only reads.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// `BLKGETSIZE64` and `BLKSSZGET`: a block device's size and logical block size, bytes.
///
/// # Errors
/// The kernel's answer.
pub(super) fn device_size(device: &File) -> io::Result<(u64, u64)> {
    nix::ioctl_read!(blkgetsize64, 0x12, 114, u64);
    nix::ioctl_read_bad!(blksszget, nix::request_code_none!(0x12, 104), libc::c_int);
    let (mut size, mut block) = (0, 0);
    // SAFETY: the kernel writes an u64 to a valid address.
    unsafe { blkgetsize64(device.as_raw_fd(), &raw mut size) }?;
    // SAFETY: the kernel writes an int to a valid address.
    unsafe { blksszget(device.as_raw_fd(), &raw mut block) }?;
    Ok((size, u64::try_from(block).unwrap_or(512)))
}

/// Tells the kernel a partition's new place, while the disk's other partitions are in use
/// (`BLKPG_RESIZE_PARTITION` of `linux/blkpg.h`).
///
/// # Errors
/// The kernel's answer.
pub(super) fn resize_partition(disk: &File, number: u32, start: u64, length: u64) -> io::Result<()> {
    const BLKPG_RESIZE_PARTITION: libc::c_int = 3;
    #[repr(C)]
    struct Partition {
        start: libc::c_longlong,
        length: libc::c_longlong,
        number: libc::c_int,
        device_name: [u8; 64],
        volume_name: [u8; 64],
    }
    #[repr(C)]
    struct Argument {
        op: libc::c_int,
        flags: libc::c_int,
        data_length: libc::c_int,
        data: *mut Partition,
    }
    nix::ioctl_write_ptr_bad!(blkpg, nix::request_code_none!(0x12, 105), Argument);
    let out_of_range = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let mut partition = Partition {
        start: start.try_into().map_err(out_of_range)?,
        length: length.try_into().map_err(out_of_range)?,
        number: number.try_into().map_err(out_of_range)?,
        device_name: [0; 64],
        volume_name: [0; 64],
    };
    let argument = Argument {
        op: BLKPG_RESIZE_PARTITION,
        flags: 0,
        // Never near the limit of an int.
        data_length: size_of::<Partition>() as libc::c_int,
        data: &raw mut partition,
    };
    // SAFETY: both structures have the kernel's layout and live until the call returns.
    unsafe { blkpg(disk.as_raw_fd(), &raw const argument) }?;
    Ok(())
}

/// `WDIOC_SETTIMEOUT`: how long the watchdog waits for a sign of life, seconds.
///
/// # Errors
/// When the hardware cannot.
pub(super) fn set_watchdog_timeout(watchdog: &File, mut seconds: libc::c_int) -> io::Result<()> {
    nix::ioctl_readwrite!(wdioc_settimeout, b'W', 6, libc::c_int);
    // SAFETY: the kernel reads and writes an int at a valid address.
    unsafe { wdioc_settimeout(watchdog.as_raw_fd(), &raw mut seconds) }?;
    Ok(())
}

/// Prepares a command so that its process starts in a cgroup, with a score for the out-of-memory
/// killer, in a session of its own, and without PID 1's blocked signals.
pub(super) fn start_as_child(command: &mut Command, cgroup: Option<RawFd>, oom_score: &'static [u8]) {
    let prepare = move || {
        nix::unistd::setsid()?;
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
        if let Some(procs) = cgroup {
            // "0" stands for the writer itself. A child outside its cgroup is better than none.
            // SAFETY: writes one byte from a constant; PID 1 keeps the descriptor open.
            unsafe { libc::write(procs, c"0".as_ptr().cast(), 1) };
        }
        // SAFETY: the path is a terminated constant; open, write and close are async-signal-safe.
        unsafe {
            let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if file >= 0 {
                libc::write(file, oom_score.as_ptr().cast(), oom_score.len());
                libc::close(file);
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec this makes only system calls and allocates nothing.
    unsafe { command.pre_exec(prepare) };
}
