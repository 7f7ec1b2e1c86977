//! What somebody who is to help wants to see of a machine: its logs, its kernel's, how it is, and how it sees the others.
//! No document, no container's output, no key.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use hivemind_spec::problem::{Code, Problem};
use nix::libc;
use serde::Serialize;

use crate::agent::AgentHandle;
use crate::recent;

/// Of each file at most so much, bytes: the end of it.
const MAX_FILE_BYTES: usize = 512 * 1024;

/// The longest message of the kernel's, bytes: its own limit (`CONSOLE_EXT_LOG_MAX`).
const MAX_KERNEL_MESSAGE: usize = 8192;

/// Files of the kernel's that are taken as they are.
const FILES: [&str; 11] = [
    "/proc/cmdline",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/modules",
    "/proc/mounts",
    "/proc/net/dev",
    "/proc/net/route",
    "/proc/pressure/cpu",
    "/proc/pressure/io",
    "/proc/pressure/memory",
];

/// What the kernel kept of its last crash, where the firmware has room for it.
const CRASHES: &str = "/sys/fs/pstore";

/// All of it, by the files' names.
///
/// # Errors
/// When the agent's loop cannot answer.
pub(crate) async fn gather(agent: &AgentHandle) -> Result<BTreeMap<String, String>, Problem> {
    let mut files = agent.read(|core, now| views(&core.view(now, &core.map_digest()))).await?;
    let gathered = tokio::task::spawn_blocking(machine).await;
    files.extend(gathered.map_err(|error| Problem::new(Code::Internal, error.to_string()))?);
    files.insert("agent.log".to_owned(), recent::lines());
    Ok(files)
}

/// How the node sees the cluster.
fn views(view: &hivemind_core::report::View<'_>) -> BTreeMap<String, String> {
    fn json(value: &impl Serialize) -> String {
        serde_json::to_string_pretty(value).unwrap_or_else(|error| error.to_string())
    }
    let named = [
        ("status.json", json(&view.status())),
        ("nodes.json", json(&view.nodes())),
        ("replicas.json", json(&view.replicas(None, None))),
        ("releases.json", json(&view.releases())),
        ("volumes.json", json(&view.volumes(None))),
        ("secrets.json", json(&view.secrets(None))),
    ];
    named.into_iter().map(|(name, text)| (name.to_owned(), text)).collect()
}

/// How the machine is.
fn machine() -> BTreeMap<String, String> {
    let mut files: BTreeMap<String, String> =
        FILES.iter().map(|path| (path.trim_start_matches('/').to_owned(), read(Path::new(path)))).collect();
    files.insert("kernel.log".to_owned(), kernel_log());
    files.insert("processes.txt".to_owned(), processes());
    files.insert("disk.txt".to_owned(), disk());
    for entry in fs::read_dir(CRASHES).into_iter().flatten().flatten() {
        let name = format!("pstore/{}", entry.file_name().to_string_lossy());
        files.insert(name, read(&entry.path()));
    }
    files
}

fn read(path: &Path) -> String {
    match fs::read(path) {
        Ok(bytes) => end_of(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) => format!("cannot be read: {error}\n"),
    }
}

fn end_of(text: String) -> String {
    let from = text.len().saturating_sub(MAX_FILE_BYTES);
    // At the start of a line, so that no character is cut.
    let cut = text.as_bytes().get(from..).unwrap_or_default().iter().position(|byte| *byte == b'\n');
    match (from, cut) {
        (0, _) => text,
        (_, Some(cut)) => text[from + cut + 1..].to_owned(),
        (_, None) => String::new(),
    }
}

/// The kernel's messages, from `/dev/kmsg` (`Documentation/ABI/testing/dev-kmsg`): one a read, until there is no more.
fn kernel_log() -> String {
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg");
    let mut file = match opened {
        Ok(file) => file,
        Err(error) => return format!("cannot be read: {error}\n"),
    };
    let mut log = String::new();
    let mut message = [0; MAX_KERNEL_MESSAGE];
    loop {
        match file.read(&mut message) {
            Ok(0) => break,
            Ok(length) => {
                let text = String::from_utf8_lossy(message.get(..length).unwrap_or_default());
                log.push_str(&kernel_line(&text));
            }
            // Older ones were overwritten meanwhile.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => {
                let _ = writeln!(log, "cannot be read further: {error}");
                break;
            }
        }
    }
    end_of(log)
}

/// `LEVEL,NUMBER,MICROSECONDS,FLAGS;TEXT`, and lines with properties, as one line with seconds.
fn kernel_line(message: &str) -> String {
    let (head, rest) = message.split_once(';').unwrap_or(("", message));
    let text = rest.lines().next().unwrap_or_default();
    let micros: u64 = head.split(',').nth(2).and_then(|field| field.parse().ok()).unwrap_or(0);
    format!("[{:>5}.{:06}] {text}\n", micros / 1_000_000, micros % 1_000_000)
}

/// Number, name, state and resident KiB of each process. Not its arguments: secrets may be among them.
fn processes() -> String {
    let mut text = "PID STATE RSS_KIB NAME\n".to_owned();
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096);
    let page_kib = u64::try_from(page / 1024).unwrap_or(4);
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let folder = entry.path();
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        // It may end while it is looked at.
        let Ok(stat) = fs::read_to_string(folder.join("stat")) else { continue };
        let name =
            stat.split_once('(').and_then(|(_, rest)| Some(rest.rsplit_once(')')?.0)).unwrap_or_default();
        let fields: Vec<&str> =
            stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
        let state = fields.first().copied().unwrap_or("?");
        let pages: u64 = fields.get(21).and_then(|field| field.parse().ok()).unwrap_or(0);
        let _ = writeln!(text, "{pid} {state} {} {name}", pages * page_kib);
    }
    end_of(text)
}

fn disk() -> String {
    match nix::sys::statvfs::statvfs("/var") {
        Ok(stat) => {
            let block = stat.fragment_size();
            let (all, free) = (stat.blocks() * block, stat.blocks_available() * block);
            let (files, unused) = (stat.files(), stat.files_available());
            format!("/var: {free} of {all} bytes free, {unused} of {files} files free\n")
        }
        Err(error) => format!("cannot be read: {error}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_the_kernels_becomes_a_line() {
        let message = "6,339,5140900,-;NET: Registered PF_INET\n SUBSYSTEM=net\n";
        assert_eq!(kernel_line(message), "[    5.140900] NET: Registered PF_INET\n");
        assert_eq!(kernel_line("odd"), "[    0.000000] odd\n");
    }

    #[test]
    fn of_a_long_file_the_end_is_taken_from_the_start_of_a_line() {
        let line = "äöü and more\n";
        let text = end_of(line.repeat(MAX_FILE_BYTES / 8));
        assert!(text.len() <= MAX_FILE_BYTES && text.len() >= MAX_FILE_BYTES - line.len());
        assert!(text.starts_with(line) && text.ends_with(line));
        assert_eq!(end_of(line.to_owned()), line);
    }

    #[test]
    fn this_machine_can_be_described() {
        let files = machine();
        assert!(files["proc/meminfo"].contains("MemTotal"));
        let me = format!("{} ", std::process::id());
        assert!(files["processes.txt"].lines().any(|line| line.starts_with(&me)));
        assert!(files["disk.txt"].contains("bytes free"));
    }
}
