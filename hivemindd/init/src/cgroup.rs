//! The control groups: what the node keeps for itself, whatever the workloads do.
//!
//! ```text
//! /sys/fs/cgroup/hivemind
//!   containerd   memory.min, cpu.weight
//!   agent        memory.min, memory.max, cpu.weight
//!   workloads    memory.high, memory.max and pids.max that leave the node's reserve; one child per container, by itself
//!                or in the group of those that are to be together (`parent.NAMESPACE.NAME`)
//! ```

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::Error;
use super::console::line;

/// Everything of ours is below.
const ROOT: &str = "/sys/fs/cgroup/hivemind";

const MIB: u64 = 1024 * 1024;

/// What containers may not have: the kernel, PID 1, containerd, the agent and the shims.
const RESERVE: u64 = 128 * MIB;

/// On small machines the reserve is this part of all memory instead.
const RESERVE_PART: u64 = 4;

/// How far below the limit of all containers' memory the mark is from which on they are slowed down, so that there is time
/// to choose who makes room: seconds of one that takes all it gets.
const MARK: u64 = 32 * MIB;

/// On small machines it is this part of the limit instead.
const MARK_PART: u64 = 16;

/// Protected memory of containerd: what it uses when idle. Files that it read fill up what is left of it, so more would
/// be memory that nobody can have: the kernel would end containers that are below their mark.
const CONTAINERD_MIN: u64 = 48 * MIB;

/// Protected memory of the agent: what it uses, and some.
const AGENT_MIN: u64 = 32 * MIB;

/// The agent's limit: ten times its need. Its containers survive when it is ended and restarted.
const AGENT_MAX: u64 = 512 * MIB;

/// Shares of CPU time under contention; a container that asks for nothing gets 100 of its parent's.
const NODE_CPU_WEIGHT: u32 = 1000;

/// containerd's share while the machine boots: the agent goes before it.
const BOOT_CPU_WEIGHT: u32 = 10;
const WORKLOADS_CPU_WEIGHT: u32 = 100;

/// Processes and threads that are kept for the node itself, at most; a quarter of what there are on small machines.
const PIDS_RESERVE: u64 = 4096;
const PIDS_RESERVE_PART: u64 = 4;

/// How the name of a group begins that several containers are in.
const PARENT: &str = "parent.";

/// The name of the group of those containers of a namespace that name the same parent: no dot is in a namespace's.
pub fn parent(namespace: &str, name: &str) -> String {
    format!("{PARENT}{namespace}.{name}")
}

/// The groups below that of all workloads in which containers are together.
pub fn parents(workloads: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(workloads).into_iter().flatten().flatten();
    let is_parent = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().starts_with(PARENT);
    entries.filter(is_parent).map(|entry| entry.path()).collect()
}

/// The group of a container, wherever it is below that of all workloads; where it would be by itself, if it is nowhere.
pub fn container(workloads: &Path, id: &str) -> PathBuf {
    let alone = workloads.join(id);
    if alone.exists() {
        return alone;
    }
    let together = parents(workloads).into_iter().map(|parent| parent.join(id));
    together.into_iter().find(|group| group.exists()).unwrap_or(alone)
}

/// Makes the tree. Settings that this kernel refuses are said and left out.
pub(super) fn make_tree() -> Result<(), Error> {
    let memory = total_memory();
    for (group, settings) in plan(memory, total_pids()) {
        let path = Path::new("/sys/fs/cgroup").join(group);
        std::fs::create_dir_all(&path).map_err(Error::io("creating", &path))?;
        for (file, value) in settings {
            if let Err(error) = std::fs::write(path.join(file), &value) {
                line(&format!("{}/{file} = {value}: {error}", path.display()));
            }
        }
    }
    Ok(())
}

/// Gives containerd its share for good.
pub(super) fn end_of_boot() {
    let path = Path::new(ROOT).join("containerd/cpu.weight");
    if let Err(error) = std::fs::write(&path, NODE_CPU_WEIGHT.to_string()) {
        line(&format!("{}: {error}", path.display()));
    }
}

type Settings = Vec<(&'static str, String)>;

/// Groups in the order to make them, with their settings in the order to write them.
fn plan(memory: u64, pids: u64) -> Vec<(&'static str, Settings)> {
    let set = |file, value: u64| (file, value.to_string());
    let controllers = || ("cgroup.subtree_control", "+cpu +memory +pids +io +cpuset".to_owned());
    let reserve = RESERVE.min(memory / RESERVE_PART);
    // Protection counts only as far as all parents grant it, and never beyond what exists.
    let scale = |min: u64| min.min(memory / 8);
    let kept = scale(CONTAINERD_MIN) + scale(AGENT_MIN);
    let workloads = memory - reserve;
    vec![
        ("", vec![controllers()]),
        ("hivemind", vec![controllers(), set("memory.min", kept)]),
        (
            "hivemind/containerd",
            vec![
                set("memory.min", scale(CONTAINERD_MIN)),
                set("cpu.weight", BOOT_CPU_WEIGHT.into()),
                // Unpacking images fills the page cache, which counts here: it is reclaimed, not fatal.
                set("memory.high", memory / 2),
            ],
        ),
        (
            "hivemind/agent",
            vec![
                set("memory.min", scale(AGENT_MIN)),
                set("memory.max", AGENT_MAX.min(memory / 2)),
                set("cpu.weight", NODE_CPU_WEIGHT.into()),
            ],
        ),
        (
            "hivemind/workloads",
            vec![
                controllers(),
                set("memory.high", workloads - MARK.min(workloads / MARK_PART)),
                set("memory.max", workloads),
                set("pids.max", pids - PIDS_RESERVE.min(pids / PIDS_RESERVE_PART)),
                set("cpu.weight", WORKLOADS_CPU_WEIGHT.into()),
            ],
        ),
    ]
}

/// All memory of the machine, bytes.
fn total_memory() -> u64 {
    nix::sys::sysinfo::sysinfo().map_or(RESERVE * RESERVE_PART, |info| info.ram_total())
}

/// How many processes and threads there can be: as many as have a number, and as the kernel has memory for.
fn total_pids() -> u64 {
    let limits = ["/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"].map(|path| {
        let text = std::fs::read_to_string(path).ok();
        text.and_then(|text| text.trim().parse().ok()).unwrap_or(32 * 1024)
    });
    limits[0].min(limits[1])
}

/// The file through which a process enters a group of ours.
pub(super) fn procs(group: &str) -> Option<OwnedFd> {
    let path = Path::new(ROOT).join(group).join("cgroup.procs");
    match File::options().write(true).open(&path) {
        Ok(file) => Some(file.into()),
        Err(error) => {
            line(&format!("{}: {error}", path.display()));
            None
        }
    }
}

/// The processes in a group of ours and below.
pub(super) fn pids_below(group: &str) -> Vec<i32> {
    let mut pids = Vec::new();
    let mut open = vec![PathBuf::from(ROOT).join(group)];
    while let Some(folder) = open.pop() {
        if let Ok(text) = std::fs::read_to_string(folder.join("cgroup.procs")) {
            pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        open.extend(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()));
    }
    pids
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(memory: u64, group: &str, file: &str) -> u64 {
        value_in(&plan(memory, 32768), group, file)
    }

    fn value_in(plan: &[(&str, Settings)], group: &str, file: &str) -> u64 {
        let (_, settings) = plan.iter().find(|(name, _)| *name == group).unwrap();
        settings.iter().find(|(name, _)| *name == file).unwrap().1.parse().unwrap()
    }

    #[test]
    fn workloads_leave_the_node_its_reserve_on_machines_of_any_size() {
        for memory in [256 * MIB, 512 * MIB, 1024 * MIB, 65536 * MIB] {
            let workloads = value(memory, "hivemind/workloads", "memory.max");
            assert!(memory - workloads >= (128 * MIB).min(memory / 4), "{memory}");
            assert!(workloads >= memory / 2, "{memory}");
            let mark = value(memory, "hivemind/workloads", "memory.high");
            assert!(mark < workloads && mark >= workloads - workloads / 16, "{memory}");
        }
        for pids in [2000, 4000, 32768, 4_194_304] {
            let workloads = value_in(&plan(1024 * MIB, pids), "hivemind/workloads", "pids.max");
            assert!(pids - workloads >= 4096.min(pids / 4) && workloads >= pids / 2, "{pids}: {workloads}");
        }
    }

    #[test]
    fn parents_grant_the_protection_their_children_ask_for() {
        for memory in [256 * MIB, 4096 * MIB] {
            let children = ["hivemind/containerd", "hivemind/agent"];
            let asked: u64 = children.iter().map(|group| value(memory, group, "memory.min")).sum();
            assert_eq!(value(memory, "hivemind", "memory.min"), asked);
            assert!(asked <= memory / 2);
        }
    }

    #[test]
    fn containers_come_to_their_mark_before_the_machine_is_out_of_memory() {
        /// What the kernel keeps for itself, and some.
        const KERNEL: u64 = 48 * MIB;
        // What the kernel calls all of it on a machine of 512 MiB, and larger ones.
        for memory in [462 * MIB, 970 * MIB, 4096 * MIB] {
            let mark = value(memory, "hivemind/workloads", "memory.high");
            let kept = value(memory, "hivemind", "memory.min");
            assert!(mark + kept + KERNEL <= memory, "{memory}: {mark} + {kept}");
        }
    }

    #[test]
    fn groups_are_made_parents_first() {
        let plan = plan(1024 * MIB, 32768);
        let names: Vec<_> = plan.iter().map(|(name, _)| *name).collect();
        let mut sorted = names.clone();
        sorted.sort_by_key(|name| name.split('/').filter(|part| !part.is_empty()).count());
        assert_eq!(names, sorted);
    }
}
