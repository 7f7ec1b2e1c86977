//! Everything that talks to the kernel directly: namespaces, taps, and what a child process does between
//! `fork` and `exec`.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;

nix::ioctl_write_ptr_bad!(
    tun_set_iff,
    nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
    libc::ifreq
);

/// Makes a network namespace that lives exactly as long as its descriptor and the processes in it, so that not even
/// `SIGKILL` can leave one behind.
pub(crate) fn new_network_namespace() -> io::Result<OwnedFd> {
    let made = thread::spawn(|| -> io::Result<OwnedFd> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        Ok(File::open("/proc/thread-self/ns/net")?.into())
    });
    made.join().map_err(|_| io::Error::other("the thread making the namespace panicked"))?
}

/// Moves the calling thread, and no other, into the network namespace.
pub(crate) fn enter_network_namespace(namespace: BorrowedFd<'_>) -> io::Result<()> {
    Ok(setns(namespace, CloneFlags::CLONE_NEWNET)?)
}

/// Opens a tap of that name in the calling thread's network namespace. It vanishes when the descriptor is closed.
/// Reads and writes do not block and carry whole Ethernet frames without any header.
pub(crate) fn open_tap(name: &str) -> io::Result<File> {
    let tap = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open("/dev/net/tun")?;
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: `ifreq` is plain data of the C interface, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the descriptor is open and `request` is a valid, NUL-terminated `ifreq` that outlives the call.
    unsafe { tun_set_iff(tap.as_raw_fd(), &raw const request) }?;
    Ok(tap)
}

/// What a child process does before it becomes its program.
#[derive(Clone, Default)]
pub(crate) struct ChildSetup {
    /// The user namespace to enter first, with every right in it. Only one that the user's own process has made.
    pub(crate) user: Option<Arc<OwnedFd>>,
    /// The network namespace to run in.
    pub(crate) network: Option<Arc<OwnedFd>>,
    /// A file to show as `/etc/resolv.conf`, in a mount namespace of its own.
    pub(crate) resolv_conf: Option<CString>,
    /// Descriptors the program inherits under their present numbers. The caller keeps them open until the spawn.
    pub(crate) inherit: Vec<RawFd>,
    /// Lets the child outlive the thread that started it.
    pub(crate) outlives_parent: bool,
}

impl ChildSetup {
    /// Makes `command` do all that when it is spawned.
    pub(crate) fn apply(self, command: &mut Command) {
        let setup = self;
        // SAFETY: `run` only makes system calls on data prepared before the fork: it neither allocates nor locks.
        unsafe { command.pre_exec(move || setup.run()) };
    }

    fn run(&self) -> io::Result<()> {
        if let Some(user) = &self.user {
            setns(user.as_fd(), CloneFlags::CLONE_NEWUSER)?;
            pass_rights_on()?;
        }
        if !self.outlives_parent {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
        }
        if let Some(network) = &self.network {
            setns(network.as_fd(), CloneFlags::CLONE_NEWNET)?;
        }
        if let Some(file) = &self.resolv_conf {
            unshare(CloneFlags::CLONE_NEWNS)?;
            let nothing: Option<&std::ffi::CStr> = None;
            mount(nothing, c"/", nothing, MsFlags::MS_REC | MsFlags::MS_SLAVE, nothing)?;
            match mount(Some(file.as_c_str()), c"/etc/resolv.conf", nothing, MsFlags::MS_BIND, nothing) {
                // A host without the file has nothing to cover, and its programs fall back to localhost.
                Ok(()) | Err(nix::errno::Errno::ENOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        for &fd in &self.inherit {
            // SAFETY: the caller keeps the descriptor open until the spawn is over.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        Ok(())
    }
}

/// Lets the program to come keep the rights that this process has in its user namespace. The kernel takes them from
/// the programs of everybody but root, unless they are inheritable and ambient.
fn pass_rights_on() -> io::Result<()> {
    /// `_LINUX_CAPABILITY_VERSION_3` of `linux/capability.h`: two words of 32 rights.
    const VERSION: u32 = 0x2008_0522;
    let header: [u32; 2] = [VERSION, 0];
    // Effective, permitted and inheritable, for the lower and then for the upper rights.
    let mut rights = [[0u32; 3]; 2];
    // SAFETY: the kernel reads the header and fills the two entries that its version has.
    nix::errno::Errno::result(unsafe {
        libc::syscall(libc::SYS_capget, header.as_ptr(), rights.as_mut_ptr())
    })?;
    for [_, permitted, inheritable] in &mut rights {
        *inheritable = *permitted;
    }
    // SAFETY: the kernel reads the header and the two entries.
    nix::errno::Errno::result(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), rights.as_ptr()) })?;
    for right in (0..u64::BITS).filter(|right| rights[*right as usize / 32][1] >> (right % 32) & 1 == 1) {
        let (raise, right) = (libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong, libc::c_ulong::from(right));
        // SAFETY: this `prctl` takes numbers only.
        nix::errno::Errno::result(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, raise, right, 0, 0) })?;
    }
    Ok(())
}
