//! Control groups of workloads (cgroup v2): made by the OCI runtime, read and cleaned up here.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use hivemind_core::event::{ContainerId, Shortage};
use hivemind_spec::api::{Counters, Process};
use nix::sys::stat::{major, minor};

use super::oci::WORKLOADS_CGROUP;

/// The least and the most of `cpu.weight`.
const CPU_WEIGHT: (u64, u64) = (1, 10_000);

/// Where the unified hierarchy is mounted.
const ROOT: &str = "/sys/fs/cgroup";

/// A path below the root of the hierarchy.
fn below_root(group: &str) -> PathBuf {
    Path::new(ROOT).join(group.trim_start_matches('/'))
}

/// That of all containers.
pub(super) fn workloads() -> PathBuf {
    below_root(WORKLOADS_CGROUP)
}

fn of(id: &ContainerId) -> PathBuf {
    hivemind_init::cgroup::container(&workloads(), &id.0)
}

/// The groups of all containers.
pub(super) fn all() -> io::Result<Vec<PathBuf>> {
    let parents = hivemind_init::cgroup::parents(&workloads());
    let mut groups = Vec::new();
    for folder in [&[workloads()], &parents[..]].concat() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() && !parents.contains(&path) {
                groups.push(path);
            }
        }
    }
    Ok(groups)
}

/// Gives each group that several containers are in the part of the CPU that they would have apart, and removes those that
/// nobody is in any more.
pub(super) fn settle_parents() {
    for parent in hivemind_init::cgroup::parents(&workloads()) {
        let weights = fs::read_dir(&parent).into_iter().flatten().flatten();
        let weights = weights.filter_map(|entry| fs::read_to_string(entry.path().join("cpu.weight")).ok());
        let sum: u64 = weights.filter_map(|text| text.trim().parse::<u64>().ok()).sum();
        // One that a container comes into at this moment is not empty for the kernel.
        if sum == 0 && fs::remove_dir(&parent).is_ok() {
            continue;
        }
        let weight = sum.clamp(CPU_WEIGHT.0, CPU_WEIGHT.1);
        if let Err(error) = fs::write(parent.join("cpu.weight"), weight.to_string()) {
            tracing::debug!(group = %parent.display(), %error, "its part of the CPU is as before");
        }
    }
}

/// Makes the parents of all workloads and of their shims, and passes them the controllers that are
/// there. Returns whether limits can be set at all: not on a machine without the unified hierarchy.
pub(super) fn prepare(shims: &str) -> bool {
    let Ok(available) = fs::read_to_string(Path::new(ROOT).join("cgroup.controllers")) else { return false };
    let workloads = below_root(WORKLOADS_CGROUP);
    for group in [Some(workloads.as_path()), (!shims.is_empty()).then(|| below_root(shims)).as_deref()] {
        let Some(group) = group else { continue };
        if let Err(error) = fs::create_dir_all(group) {
            tracing::warn!(group = %group.display(), %error, "the cgroup cannot be made");
        }
    }
    for parent in
        workloads.ancestors().take_while(|path| path.starts_with(ROOT)).collect::<Vec<_>>().iter().rev()
    {
        for controller in available.split_whitespace() {
            // Each on its own: one that cannot be passed on must not keep back the others.
            let _ = fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
    let passed = fs::read_to_string(workloads.join("cgroup.subtree_control")).unwrap_or_default();
    let missing: Vec<_> =
        ["cpu", "memory", "pids"].into_iter().filter(|name| !passed.contains(name)).collect();
    if !missing.is_empty() {
        tracing::warn!(
            missing = missing.join(" "),
            "cgroup controllers cannot be used; workloads run without limits"
        );
    }
    missing.is_empty()
}

/// The CPU cores of the machine, which the agent may use all of.
pub(super) fn cores() -> u64 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64)
}

/// The numbers of the disk that a folder is on: limits are kept for whole disks, and not for their parts.
pub(super) fn disk_of(folder: &Path) -> io::Result<(u64, u64)> {
    let device = fs::metadata(folder)?.dev();
    let link = PathBuf::from(format!("/sys/dev/block/{}:{}", major(device), minor(device)));
    let whole = if link.join("partition").exists() { link.join("..") } else { link };
    // Looked up through the link: `..` is the disk that the part belongs to.
    let text = fs::read_to_string(fs::canonicalize(whole)?.join("dev"))?;
    let numbers = text.trim().split_once(':').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    numbers.ok_or_else(|| io::Error::other(format!("{text:?} are not the numbers of a disk")))
}

/// Of what there was too little, if the kernel has killed a process of the container for its memory.
pub(super) fn out_of_memory(id: &ContainerId) -> Option<Shortage> {
    shortage(&fs::read_to_string(of(id).join("memory.events")).unwrap_or_default())
}

/// What has befallen a group itself, of `memory.events`: it is killed without having come to its own limit when that of
/// another above it was come to.
fn shortage(events: &str) -> Option<Shortage> {
    match (value_of(events, "oom_kill"), value_of(events, "oom")) {
        (0, _) => None,
        (_, 0) => Some(Shortage::Machine),
        _ => Some(Shortage::Own),
    }
}

/// Gives a container no more memory than it has.
pub(super) fn hold_memory(id: &ContainerId) {
    let group = of(id);
    let held = fs::read_to_string(group.join("memory.current"))
        .and_then(|bytes| fs::write(group.join("memory.max"), bytes.trim()));
    if let Err(error) = held {
        tracing::warn!(container = id.0, %error, "its memory grows on while it makes room for others");
    }
}

/// How long processes may take to stand still: one that waits for its disk does when that has answered.
const STANDS_WITHIN: Duration = Duration::from_secs(2);

const STANDS_POLL: Duration = Duration::from_millis(2);

/// Containers whose processes stand still until this is dropped.
#[derive(Debug)]
pub(super) struct Still(Vec<PathBuf>);

impl Still {
    /// Has them stand still. Those that are gone do.
    ///
    /// # Errors
    /// When they do not in time; they go on then.
    pub(super) fn hold(ids: &[ContainerId]) -> io::Result<Self> {
        let groups = ids.iter().map(of).filter(|group| group.exists());
        let still = Self(groups.collect());
        still.0.iter().try_for_each(|group| fs::write(group.join(FREEZE), "1"))?;
        let until = Instant::now() + STANDS_WITHIN;
        let moves = |group: &&PathBuf| {
            fs::read_to_string(group.join("cgroup.events"))
                .is_ok_and(|events| value_of(&events, "frozen") == 0)
        };
        while let Some(group) = still.0.iter().find(moves) {
            if Instant::now() > until {
                let what = format!("the processes in {} do not stand still", group.display());
                return Err(io::Error::new(io::ErrorKind::TimedOut, what));
            }
            thread::sleep(STANDS_POLL);
        }
        Ok(still)
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        self.0.iter().for_each(|group| go_on(group));
    }
}

/// The file that says whether a group's processes stand still.
const FREEZE: &str = "cgroup.freeze";

fn go_on(group: &Path) {
    if let Err(error) = fs::write(group.join(FREEZE), "0")
        && group.exists()
    {
        tracing::error!(group = %group.display(), %error, "its processes stand still");
    }
}

/// Whether a container's processes stand still.
pub(super) fn stands_still(id: &ContainerId) -> bool {
    is_held(&of(id))
}

fn is_held(group: &Path) -> bool {
    fs::read_to_string(group.join(FREEZE)).is_ok_and(|text| text.trim() == "1")
}

/// Lets all go on that stood still when the agent before this one ended.
pub(super) fn let_all_go_on() {
    for group in all().unwrap_or_default() {
        if is_held(&group) {
            go_on(&group);
        }
    }
}

/// What the kernel has counted of a container; none when it has no cgroup any more.
pub(super) fn counters(id: &ContainerId) -> Option<Counters> {
    let group = of(id);
    let read = |file: &str| fs::read_to_string(group.join(file)).ok();
    let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
    let used = number("memory.current")?;
    let droppable = value_of(&read("memory.stat").unwrap_or_default(), "inactive_file");
    let disks = read("io.stat").unwrap_or_default();
    let first = read("cgroup.procs").and_then(|pids| pids.lines().next().map(str::to_owned));
    let network = first.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/net/dev")).ok());
    let (received_bytes, sent_bytes) = traffic(&network.unwrap_or_default());
    Some(Counters {
        cpu_us: value_of(&read("cpu.stat")?, "usage_usec"),
        memory_bytes: used.saturating_sub(droppable),
        memory_limit_bytes: number("memory.max"),
        pids: number("pids.current").unwrap_or(0),
        read_bytes: on_disks(&disks, "rbytes="),
        written_bytes: on_disks(&disks, "wbytes="),
        received_bytes,
        sent_bytes,
    })
}

/// Processes that are told of a container: who looks at more does so with better tools.
const MAX_PROCESSES: usize = 1000;

/// The longest command that is told, bytes.
const MAX_COMMAND_BYTES: usize = 1000;

/// The processes of a container. One that ends meanwhile is left out.
pub(super) fn processes(id: &ContainerId) -> Vec<Process> {
    let pids = fs::read_to_string(of(id).join("cgroup.procs")).unwrap_or_default();
    let pids = pids.lines().filter_map(|line| line.parse().ok());
    pids.take(MAX_PROCESSES).filter_map(process).collect()
}

fn process(pid: u32) -> Option<Process> {
    let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).ok();
    let text = |file: &str| Some(String::from_utf8_lossy(&read(file)?).into_owned());
    let (state, cpu_us) = state_and_time(&text("stat")?)?;
    let status = text("status")?;
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
    let mut command = read("cmdline")?;
    command.truncate(MAX_COMMAND_BYTES);
    let words: Vec<_> = command.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    let command = words.join(" ").trim_end().to_owned();
    let name = || format!("[{}]", field("Name:").unwrap_or_default());
    Some(Process {
        pid,
        uid: field("Uid:")?.parse().ok()?,
        cpu_us,
        memory_bytes: field("VmRSS:").and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024,
        state,
        command: if command.is_empty() { name() } else { command },
    })
}

/// Fields 3, 14 and 15 of `stat` (proc_pid_stat(5)); the name in field 2 may hold anything, but ends at the last
/// parenthesis. Times are in hundredths of a second on all machines.
fn state_and_time(stat: &str) -> Option<(String, u64)> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(((*fields.first()?).to_owned(), (ticks(11)? + ticks(12)?) * 10_000))
}

/// A value of a file with a name and a number in each line.
pub(super) fn value_of(text: &str, name: &str) -> u64 {
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok());
    found.unwrap_or(0)
}

/// The sum over all disks of what stands behind a word (`io.stat`: a disk in each line).
fn on_disks(text: &str, word: &str) -> u64 {
    let values = text.split_whitespace().filter_map(|part| part.strip_prefix(word)?.parse::<u64>().ok());
    values.fold(0, u64::saturating_add)
}

/// Bytes received and sent by a container's interface (proc_pid_net(5), `dev`).
fn traffic(text: &str) -> (u64, u64) {
    let line = text.lines().find_map(|line| line.trim().strip_prefix("eth0:"));
    let fields: Vec<u64> =
        line.unwrap_or_default().split_whitespace().filter_map(|field| field.parse().ok()).collect();
    (fields.first().copied().unwrap_or(0), fields.get(8).copied().unwrap_or(0))
}

/// Kills what is left in a container's cgroup and removes it. The OCI runtime has usually done so.
pub(super) fn remove(id: &ContainerId) {
    let path = of(id);
    if path.exists() {
        let _ = fs::write(path.join("cgroup.kill"), "1");
        if let Err(error) = fs::remove_dir(&path) {
            tracing::warn!(group = %path.display(), %error, "the cgroup is not removed yet");
        }
    }
    settle_parents();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_on_a_whole_disk_and_not_on_a_part_of_one() {
        // Where the root is on no disk (in a container), there is none to find.
        if let Ok((major, minor)) = disk_of(Path::new("/")) {
            let disk = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
            assert!(disk.exists() && !disk.join("partition").exists(), "{}", disk.display());
        }
    }

    #[test]
    fn counters_are_read_as_the_kernel_writes_them() {
        assert_eq!(value_of("usage_usec 1234\nuser_usec 1000\n", "usage_usec"), 1234);
        assert_eq!(value_of("inactive_anon 7\ninactive_file 4096\n", "inactive_file"), 4096);
        assert_eq!(value_of("", "usage_usec"), 0);
        let disks = "254:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n254:16 rbytes=1 wbytes=2 rios=1\n254:32 \n";
        assert_eq!((on_disks(disks, "rbytes="), on_disks(disks, "wbytes=")), (4097, 8194));
        let network = "Inter-|   Receive  |  Transmit\n face |bytes packets errs|bytes packets\n    \
                       lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0\n  \
                       eth0:    5000      10    0    0    0     0          0         0     7000      12    0    0    0     0       0          0\n";
        assert_eq!(traffic(network), (5000, 7000));
        assert_eq!(traffic(""), (0, 0));
    }

    #[test]
    fn processes_are_read_as_the_kernel_writes_them() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 25 17 0 0 20 0 1 0 1 0 0";
        assert_eq!(state_and_time(stat), Some(("S".to_owned(), 420_000)));
        assert_eq!(state_and_time("nonsense"), None);
        let own = process(std::process::id()).unwrap();
        assert!(own.memory_bytes > 4096 && !own.command.is_empty(), "{own:?}");
        assert_eq!(process(u32::MAX), None);
    }

    #[test]
    fn a_container_that_is_killed_at_its_own_limit_is_told_from_one_that_is_for_others() {
        let events =
            |own, kills| format!("low 0\nhigh 3\nmax 12\noom {own}\noom_kill {kills}\noom_group_kill 0\n");
        assert_eq!(shortage(&events(4, 0)), None, "it got some in the end");
        assert_eq!(shortage(&events(4, 2)), Some(Shortage::Own));
        assert_eq!(shortage(&events(0, 2)), Some(Shortage::Machine));
        assert_eq!(shortage(""), None);
    }
}
