//! One of PID 1's two children: started, watched, started again.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use super::backoff::Backoff;
use super::cgroup;
use super::console::line;
use super::output::Output;

/// What to run, and how.
pub(super) struct Program {
    /// The child's name on the console and of its cgroup.
    pub(super) name: &'static str,
    /// The program and its arguments.
    pub(super) command: &'static [&'static str],
    /// Its environment, besides what all children get.
    pub(super) environment: &'static [(&'static str, &'static str)],
    /// Its score for the out-of-memory killer: negative, so that a container goes first.
    pub(super) oom_score: &'static [u8],
}

/// containerd. Containers do not depend on it to go on.
pub(super) const CONTAINERD: Program = Program {
    name: "containerd",
    command: &["/usr/bin/containerd", "-c", "/etc/containerd/config.toml"],
    // For the containers' shims, which print several lines for each start otherwise.
    environment: &[("RUST_LOG", "warn")],
    oom_score: b"-999",
};

/// The cluster agent.
pub(super) const AGENT: Program = Program {
    name: "agent",
    command: &["/usr/bin/hivemindd", "agent"],
    environment: &[],
    oom_score: b"-998",
};

/// Where programs are found. Set for both children, as PID 1 has no environment worth passing on.
const PATH: &str = "/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin";

enum State {
    Running { pid: Pid, since: Instant },
    Waiting { until: Instant },
}

/// A child and its state.
pub(super) struct Child {
    program: Program,
    state: State,
    backoff: Backoff,
    cgroup: Option<OwnedFd>,
    pub(super) output: Output,
}

impl Child {
    /// A child to be started at once.
    pub(super) fn new(program: Program) -> std::io::Result<Self> {
        let output = Output::new(program.name)?;
        let cgroup = cgroup::procs(program.name);
        let state = State::Waiting { until: Instant::now() };
        Ok(Self { program, state, backoff: Backoff::default(), cgroup, output })
    }

    /// Starts it if it is due. Whether it is running afterwards.
    pub(super) fn start_if_due(&mut self, now: Instant) -> bool {
        match self.state {
            State::Waiting { until } if until <= now => {}
            State::Waiting { .. } => return false,
            State::Running { .. } => return true,
        }
        match self.spawn() {
            Ok(pid) => {
                self.state = State::Running { pid, since: now };
                true
            }
            Err(error) => {
                let delay = self.backoff.died(Duration::ZERO);
                line(&format!("{} cannot be started: {error}{}", self.program.name, again_in(delay)));
                self.state = State::Waiting { until: now + delay };
                false
            }
        }
    }

    fn spawn(&self) -> std::io::Result<Pid> {
        let (path, arguments) = self
            .program
            .command
            .split_first()
            .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::InvalidInput))?;
        let mut command = Command::new(path);
        command.args(arguments).current_dir("/").env_clear().env("PATH", PATH).env("HOME", "/");
        command.envs(self.program.environment.iter().copied());
        command.stdin(Stdio::null()).stdout(self.output.writer()?).stderr(self.output.writer()?);
        let cgroup = self.cgroup.as_ref().map(|fd| fd.as_raw_fd());
        super::sys::start_as_child(&mut command, cgroup, self.program.oom_score);
        let child = command.spawn()?;
        // Process ids are positive and fit; the child is reaped with all others by `wait`.
        Ok(Pid::from_raw(child.id().cast_signed()))
    }

    /// Whether the process was this child; then it is to be started again, unless all is `stopping`.
    pub(super) fn reaped(&mut self, status: WaitStatus, now: Instant, stopping: bool) -> bool {
        let State::Running { pid, since } = self.state else { return false };
        if status.pid() != Some(pid) {
            return false;
        }
        let delay = self.backoff.died(now.duration_since(since));
        let next = if stopping { String::new() } else { again_in(delay) };
        line(&format!("{} {}{next}", self.program.name, describe(status)));
        self.state = State::Waiting { until: now + delay };
        true
    }

    /// When it is to be started, if it is not running.
    pub(super) fn due(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { until } => Some(until),
            State::Running { .. } => None,
        }
    }

    /// Its process id while it runs.
    pub(super) fn pid(&self) -> Option<Pid> {
        match self.state {
            State::Running { pid, .. } => Some(pid),
            State::Waiting { .. } => None,
        }
    }

    /// Sends it a signal, if it runs.
    pub(super) fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            // It may have ended this very moment.
            let _ = kill(pid, signal);
        }
    }
}

fn again_in(delay: Duration) -> String {
    if delay.is_zero() { "; starting it again".to_owned() } else { format!("; again in {delay:?}") }
}

fn describe(status: WaitStatus) -> String {
    match status {
        WaitStatus::Exited(_, code) => format!("ended with status {code}"),
        WaitStatus::Signaled(_, signal, _) => format!("was killed by {signal}"),
        other => format!("ended ({other:?})"),
    }
}
