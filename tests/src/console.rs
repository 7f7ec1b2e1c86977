//! What a machine has told on its serial console since its power came on the last time, and when.

use hivemind_qemu::Machine;

/// PID 1's first line, before anything else of ours runs.
const FIRST: &str = "hivemindd: root is";

/// When a computer that is as fast as the promised times suppose brings the emulated kernel to PID 1, seconds.
const KERNEL_S: f64 = 2.0;

/// How often a machine has started since it was made.
#[must_use]
pub fn starts(machine: &Machine) -> usize {
    machine.serial().matches(FIRST).count()
}

/// The lines of one boot.
pub struct Console(String);

impl Console {
    /// Of the boot under way. Before its first line this is the boot before it.
    #[must_use]
    pub fn of(machine: &Machine) -> Console {
        let serial = machine.serial();
        let boot = serial.rfind(FIRST).map_or(0, |at| serial[..at].rfind('\n').map_or(0, |end| end + 1));
        Console(serial[boot..].to_owned())
    }

    /// Whether any line has `part`.
    #[must_use]
    pub fn tells(&self, part: &str) -> bool {
        self.0.contains(part)
    }

    /// When the first line with `part` was written, seconds since the kernel started.
    ///
    /// # Panics
    /// When there is no such line.
    #[must_use]
    pub fn told_s(&self, part: &str) -> f64 {
        let line = self.0.lines().find(|line| line.contains(part));
        let stamp = line.and_then(|line| line.split_once('[')?.1.split_once(']'));
        let time = stamp.and_then(|(stamp, _)| stamp.trim().parse().ok());
        time.unwrap_or_else(|| panic!("no time of {part:?} in {self}"))
    }

    /// When PID 1 was started, seconds since the kernel was.
    ///
    /// # Panics
    /// When it was not.
    #[must_use]
    pub fn kernel_s(&self) -> f64 {
        self.told_s(FIRST)
    }

    /// By how much this computer is slower than the promised times suppose: 1 or more, told by what the kernel needed
    /// to reach PID 1 in this boot.
    #[must_use]
    pub fn slowness(&self) -> f64 {
        (self.kernel_s() / KERNEL_S).max(1.0)
    }
}

impl std::fmt::Display for Console {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}
