//! The loop: children, orphans, the power button, signals and the watchdog, one event at a time.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::child::{AGENT, CONTAINERD, Child};
use super::console::{self, line};
use super::fence::{self, Fences};
use super::power::Button;
use super::pulse::{Pulse, Verdict};
use super::release::Release;
use super::screen::Look;
use super::shutdown::How;
use super::verity::Root;
use super::watchdog::FEED_EVERY;
use super::{Error, cgroup, config, watchdog};

/// How long the agent may take to tell its peers that it leaves.
const AGENT_GRACE: Duration = Duration::from_secs(5);

/// How long the containers may take to end, all together.
const WORKLOADS_GRACE: Duration = Duration::from_secs(20);

/// How long containerd may take to close its database.
const CONTAINERD_GRACE: Duration = Duration::from_secs(5);

/// How long everything left may take after `SIGTERM`, and again after `SIGKILL`.
const REST_GRACE: Duration = Duration::from_secs(2);

/// How often a condition without an event of its own is looked at while shutting down.
const SHUTDOWN_POLL: Duration = Duration::from_millis(50);

/// How long containerd leaves the processor to the agent: from the start to an agent that answers on a
/// slow machine with one processor. What is idle meanwhile, containerd gets.
const BOOT: Duration = Duration::from_secs(2);

/// How often deadlines are looked for where the kernel does not tell of new ones: well within a lease.
const UNTOLD: Duration = Duration::from_secs(2);

/// What PID 1 answers to. Real-time signals and the rest are ignored by being blocked.
const SIGNALS: [Signal; 5] =
    [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1, Signal::SIGUSR2];

/// PID 1's whole state.
pub(super) struct Supervisor<'a> {
    containerd: Child,
    agent: Child,
    signals: SignalFd,
    buttons: Vec<Button>,
    pulse: Pulse,
    agent_is_stuck: bool,
    root: &'a Root,
    root_is_corrupt: bool,
    release: Option<&'a Release>,
    /// When a release that nobody has called good is bad; none for one that is good.
    trial_ends: Option<Instant>,
    fences: Fences,
    /// Tells when the agent sets a deadline; absent where the kernel has no way to.
    set: Option<Inotify>,
    /// When deadlines are looked at again.
    fences_due: Option<Instant>,
    announced: bool,
    /// When boot is over; none when it is.
    boot_ends: Option<Instant>,
    stopping: bool,
}

impl<'a> Supervisor<'a> {
    pub(super) fn new(
        buttons: Vec<Button>,
        root: &'a Root,
        release: Option<&'a Release>,
    ) -> Result<Self, Error> {
        let mask: SigSet = SIGNALS.into_iter().collect();
        let preparing = |source: std::io::Error| Error::Io {
            action: "preparing to supervise with",
            path: "signals and pipes".to_owned(),
            source,
        };
        let fences = Fences::new();
        watchdog::arm(watchdog::SUPERVISING_S);
        mask.thread_block().map_err(|error| preparing(error.into()))?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = SignalFd::with_flags(&mask, flags).map_err(|error| preparing(error.into()))?;
        // Ctrl-Alt-Del becomes SIGINT to us instead of an instant reset.
        if let Err(error) = nix::sys::reboot::set_cad_enabled(false) {
            line(&format!("Ctrl-Alt-Del resets at once: {error}"));
        }
        Ok(Self {
            containerd: Child::new(CONTAINERD).map_err(preparing)?,
            agent: Child::new(AGENT).map_err(preparing)?,
            signals,
            buttons,
            pulse: Pulse::new(Instant::now()),
            agent_is_stuck: false,
            root,
            root_is_corrupt: false,
            release,
            trial_ends: trial_of(release),
            set: watch(fence::FOLDER),
            fences,
            fences_due: None,
            announced: false,
            boot_ends: Some(Instant::now() + BOOT),
            stopping: false,
        })
    }

    /// Supervises until told to stop, then stops everything that runs.
    pub(super) fn run(mut self) -> Result<How, Error> {
        let how = loop {
            self.start_children();
            self.end_boot_if_due();
            self.mind_the_agent();
            self.enforce_fences();
            if self.must_step_back() {
                break How::Reboot;
            }
            if let Some(how) = self.wait(self.next_due()) {
                break how;
            }
        };
        self.stop_everything(how);
        Ok(how)
    }

    fn start_children(&mut self) {
        let now = Instant::now();
        if self.agent.due().is_some_and(|due| due <= now) {
            config::load_again_if_missing();
        }
        // The agent first: an operator waits for it, and it for nobody.
        let agent = self.agent.start_if_due(now);
        let containerd = self.containerd.start_if_due(now);
        if containerd && agent && !self.announced {
            self.announced = true;
            line("init up");
        }
    }

    /// Has an agent that hangs start again, and feeds the watchdog: unless it does not even end.
    fn mind_the_agent(&mut self) {
        match self.pulse.look(self.agent.pid(), Instant::now()) {
            Verdict::Well => {}
            Verdict::Hangs => {
                line("agent-hangs: the agent gives no sign of life; it is killed and started again");
                self.agent.signal(Signal::SIGKILL);
            }
            Verdict::Stuck => {
                if !std::mem::replace(&mut self.agent_is_stuck, true) {
                    line(
                        "agent-hangs: the agent does not end; the watchdog starts the machine anew, if it has one",
                    );
                }
                return;
            }
        }
        watchdog::feed();
    }

    fn end_boot_if_due(&mut self) {
        if self.boot_ends.take_if(|end| *end <= Instant::now()).is_some() {
            cgroup::end_of_boot();
        }
    }

    /// Whether the machine is to start another release: the root of this one is damaged, or its trial is over.
    /// Each is told once. Where there is no other, what was read of a damaged root before runs on.
    fn must_step_back(&mut self) -> bool {
        let corrupt = !self.root_is_corrupt && self.root.is_corrupt();
        let over = self.trial_ends.take_if(|end| *end <= Instant::now()).is_some();
        // Nothing is certain about a release whose entry cannot be read: it goes on.
        let failed = over && self.release.is_some_and(|release| release.is_on_trial().unwrap_or(false));
        if corrupt {
            self.root_is_corrupt = true;
            line(&Error::RootCorrupt(None).to_string());
        }
        if failed {
            line("release-unhealthy: the node did not get healthy in time");
        }
        (corrupt || failed) && self.release.is_some_and(super::step_back)
    }

    fn enforce_fences(&mut self) {
        if self.fences_due.is_none_or(|due| due <= Instant::now()) {
            let pause = self.fences.enforce();
            // Without news of new deadlines they have to be looked for.
            let pause = pause.or(self.set.is_none().then_some(UNTOLD));
            self.fences_due = pause.map(|pause| Instant::now() + pause);
        }
    }

    fn next_due(&self) -> Duration {
        let now = Instant::now();
        let agent_hangs = Some(self.pulse.due());
        [
            self.containerd.due(),
            self.agent.due(),
            agent_hangs,
            self.boot_ends,
            self.fences_due,
            self.trial_ends,
        ]
        .into_iter()
        .flatten()
        .map(|due| due.saturating_duration_since(now))
        .fold(FEED_EVERY, Duration::min)
    }

    /// Waits for something to happen, at most `limit`, and deals with it. Some when told to stop.
    fn wait(&mut self, limit: Duration) -> Option<How> {
        let mut fds = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.containerd.output.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.agent.output.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(self.set.iter().map(|set| PollFd::new(set.as_fd(), PollFlags::POLLIN)));
        fds.extend(self.buttons.iter().map(|button| PollFd::new(button.as_fd(), PollFlags::POLLIN)));
        // One more millisecond, so as not to wake just before the time.
        let timeout = PollTimeout::try_from(limit + Duration::from_millis(1)).unwrap_or(PollTimeout::ZERO);
        if let Err(error) = poll(&mut fds, timeout)
            && error != Errno::EINTR
        {
            // Without it the loop would spin.
            std::thread::sleep(SHUTDOWN_POLL);
        }
        self.containerd.output.drain();
        self.agent.output.drain();
        if self.set.as_ref().is_some_and(|set| set.read_events().is_ok()) {
            self.fences_due = self.fences_due.or(Some(Instant::now()));
        }
        let told = self.read_signals();
        self.reap();
        if self.buttons.iter_mut().any(Button::was_pressed) {
            line("the power button was pressed");
            return Some(How::PowerOff);
        }
        told
    }

    fn read_signals(&mut self) -> Option<How> {
        let mut told = None;
        while let Ok(Some(signal)) = self.signals.read_signal() {
            let number = signal.ssi_signo.cast_signed();
            told = match Signal::try_from(number) {
                Ok(Signal::SIGTERM | Signal::SIGUSR1) => Some(How::PowerOff),
                Ok(Signal::SIGINT | Signal::SIGUSR2) => Some(How::Reboot),
                _ => told,
            };
        }
        told
    }

    /// Takes in every process that ended. Shims and what they leave behind are PID 1's by adoption.
    fn reap(&mut self) {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(status) => {
                    let now = Instant::now();
                    if self.agent.reaped(status, now, self.stopping) {
                        self.tell_of_no_agent();
                    } else {
                        self.containerd.reaped(status, now, self.stopping);
                    }
                }
                Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }

    /// The screen said how the machine is by the agent that has ended.
    fn tell_of_no_agent(&self) {
        if !self.stopping {
            console::title("the agent does not run; the reason is below", Look::Bad);
        }
    }

    /// The ordered end: agent, containers, containerd, all else. Every wait is bounded.
    fn stop_everything(&mut self, how: How) {
        line(how.announcement());
        console::title("stops", Look::Busy);
        self.stopping = true;
        self.agent.signal(Signal::SIGTERM);
        self.wait_until(AGENT_GRACE, |this| this.agent.pid().is_none());
        // Straight to the processes: an end that needs neither containerd nor the agent to be well.
        let workloads = || cgroup::pids_below("workloads");
        signal_all(&workloads(), Signal::SIGTERM);
        if !self.wait_until(WORKLOADS_GRACE, |_| workloads().is_empty()) {
            line(&format!("{} processes of containers had to be killed", workloads().len()));
        }
        signal_all(&workloads(), Signal::SIGKILL);
        self.containerd.signal(Signal::SIGTERM);
        self.wait_until(CONTAINERD_GRACE, |this| this.containerd.pid().is_none());
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            // All but PID 1 itself.
            let _ = kill(Pid::from_raw(-1), signal);
            if self.wait_until(REST_GRACE, |_| no_children()) {
                return;
            }
        }
        line("some processes did not end");
    }

    /// Goes on with the loop, without starting anything, until the condition holds or time is up.
    fn wait_until(&mut self, limit: Duration, holds: impl Fn(&Self) -> bool) -> bool {
        let end = Instant::now() + limit;
        loop {
            if holds(self) {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            watchdog::feed();
            // Nobody renews leases while containers take their time to end.
            self.enforce_fences();
            // Told to stop again: it is under way.
            let _ = self.wait(left.min(SHUTDOWN_POLL));
        }
    }
}

/// When the trial of a release ends that is on trial.
fn trial_of(release: Option<&Release>) -> Option<Instant> {
    let release = release?;
    match release.is_on_trial() {
        Ok(true) => {
            let limit = release.trial();
            line(&format!(
                "release {} is on trial: the node must be healthy within {} s",
                release.id(),
                limit.as_secs()
            ));
            Some(Instant::now() + limit)
        }
        Ok(false) => None,
        Err(error) => {
            line(&format!("the boot menu cannot be read: {error}"));
            None
        }
    }
}

/// Tells when a file appears in a folder.
fn watch(folder: &str) -> Option<Inotify> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok()?;
    inotify.add_watch(folder, AddWatchFlags::IN_MOVED_TO).ok()?;
    Some(inotify)
}

fn signal_all(pids: &[i32], signal: Signal) {
    for &pid in pids {
        // It may have ended meanwhile.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

fn no_children() -> bool {
    let flags = WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT | WaitPidFlag::WEXITED;
    nix::sys::wait::waitid(nix::sys::wait::Id::All, flags) == Err(Errno::ECHILD)
}
