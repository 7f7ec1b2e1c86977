//! Lets tests look into a machine of the image, which has no shell.
//!
//! The test harness appends this program to the initial RAM disk and boots with `rdinit=/probe`.
//! It leaves a child behind, then becomes the image's own `/init`: from there on everything is as
//! in any other machine. The child answers on TCP port 7999, one request per connection: words
//! separated by tabs, ended by a newline. The answer is `ok` or `error: …` on a line of its own,
//! then the rest.
//!
//! | request | answer |
//! |---|---|
//! | `pids PATTERN` | processes whose command line contains it: `PID COMMAND` |
//! | `kill SIGNAL PATTERN` | signals them, and lists them |
//! | `memory PATTERN` | `PID RSS_KIB PSS_KIB COMMAND` |
//! | `ticks PATTERN` | CPU time used so far, in clock ticks, all together |
//! | `threads PATTERN` | `PID TID USER_TICKS SYSTEM_TICKS VOLUNTARY_SWITCHES INVOLUNTARY_SWITCHES NAME` for each of their threads |
//! | `cat PATH` | a file's content |
//! | `put PATH BYTES`, then so many bytes | makes a program of them |
//! | `run PROGRAM ARGUMENT…` | `EXIT_CODE MILLISECONDS`, then its output |

use std::ffi::CString;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;
use std::{fs, io};

use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{ForkResult, Pid, execv, fork, setsid};

/// The probe's own view of processes: `/proc` belongs to the image's init.
const PROC: &str = "/probe-proc";

/// Where it answers.
const PORT: u16 = 7999;

fn main() -> io::Result<()> {
    if !Path::new("/init").exists() {
        // The floor of boot times: an init that says that it runs, and nothing else.
        let _ = mount(None::<&str>, "/dev", Some("devtmpfs"), MsFlags::empty(), None::<&str>);
        fs::write("/dev/console", "probe: nothing else to do\n")?;
        loop {
            nix::unistd::pause();
        }
    }
    // SAFETY: the process has a single thread, so the child may do anything.
    match unsafe { fork() }? {
        ForkResult::Child => serve(),
        ForkResult::Parent { .. } => {
            let init = CString::new("/init")?;
            execv(&init, &[&init])?;
            Ok(())
        }
    }
}

fn serve() -> io::Result<()> {
    setsid()?;
    fs::create_dir_all(PROC)?;
    mount(None::<&str>, PROC, Some("proc"), MsFlags::empty(), None::<&str>)?;
    let listener = TcpListener::bind(("0.0.0.0", PORT))?;
    for stream in listener.incoming().flatten() {
        // A tester that went away misses its answer.
        let _ = answer(stream);
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut line = String::new();
    let mut input = BufReader::new(&stream);
    input.read_line(&mut line)?;
    let words: Vec<&str> = line.trim_end_matches('\n').split('\t').collect();
    let answer = match words[..] {
        ["put", path, bytes] => put(path, bytes, input),
        _ => carry_out(&words),
    };
    match answer {
        Ok(rest) => {
            stream.write_all(b"ok\n")?;
            stream.write_all(&rest)
        }
        Err(error) => stream.write_all(format!("error: {error}\n").as_bytes()),
    }
}

fn carry_out(words: &[&str]) -> io::Result<Vec<u8>> {
    match words {
        ["pids", pattern] => Ok(list(&processes(pattern)?, |p| p.pid.to_string())),
        ["kill", signal, pattern] => {
            let signal: Signal = signal.parse()?;
            let found = processes(pattern)?;
            for process in &found {
                kill(Pid::from_raw(process.pid), signal)?;
            }
            Ok(list(&found, |p| p.pid.to_string()))
        }
        ["memory", pattern] => Ok(list(&processes(pattern)?, |p| {
            let rollup = fs::read_to_string(p.path("smaps_rollup")).unwrap_or_default();
            let size = |name: &str| {
                let line = rollup.lines().find(|line| line.starts_with(name));
                line.and_then(|line| line.split_whitespace().nth(1)).unwrap_or("0").to_owned()
            };
            format!("{} {} {}", p.pid, size("Rss:"), size("Pss:"))
        })),
        ["ticks", pattern] => {
            let used = processes(pattern)?.iter().map(Process::ticks).sum::<u64>();
            Ok(format!("{used}\n").into_bytes())
        }
        ["threads", pattern] => {
            let all: String = processes(pattern)?.iter().map(Process::threads).collect();
            Ok(all.into_bytes())
        }
        ["cat", path] => fs::read(root().join(path.trim_start_matches('/'))),
        ["run", program, arguments @ ..] => run(program, arguments),
        _ => Err(io::Error::other(format!("unknown request {words:?}"))),
    }
}

/// The root the image's init switched to.
fn root() -> PathBuf {
    Path::new(PROC).join("1/root")
}

struct Process {
    pid: i32,
    command: String,
}

impl Process {
    fn path(&self, file: &str) -> PathBuf {
        Path::new(PROC).join(self.pid.to_string()).join(file)
    }

    /// User and system time, fields 14 and 15 of `stat` (proc(5)); the name in field 2 may hold
    /// anything, but ends at the last parenthesis.
    fn ticks(&self) -> u64 {
        let [user, system] = ticks_of(&self.path("stat"));
        user + system
    }

    fn threads(&self) -> String {
        let tasks = fs::read_dir(self.path("task")).into_iter().flatten().flatten();
        let line = |path: PathBuf| {
            let [user, system] = ticks_of(&path.join("stat"));
            let status = fs::read_to_string(path.join("status")).unwrap_or_default();
            let value = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("?");
                line.trim_start_matches(':').trim().to_owned()
            };
            let switches = ["voluntary_ctxt_switches", "nonvoluntary_ctxt_switches"].map(value);
            let id = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            format!("{} {id} {user} {system} {} {}\n", self.pid, switches.join(" "), value("Name"))
        };
        tasks.map(|task| line(task.path())).collect()
    }
}

/// The same of a process or thread by its `stat`: user and system.
fn ticks_of(stat: &Path) -> [u64; 2] {
    let stat = fs::read_to_string(stat).unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let mut ticks = fields.skip(11).map(|field| field.parse().unwrap_or(0));
    [ticks.next().unwrap_or(0), ticks.next().unwrap_or(0)]
}

fn processes(pattern: &str) -> io::Result<Vec<Process>> {
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir(PROC)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(pid) = name.parse() else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&line).trim_end_matches('\0').replace('\0', " ");
        if name != own && !command.is_empty() && command.contains(pattern) {
            found.push(Process { pid, command });
        }
    }
    Ok(found)
}

fn list(processes: &[Process], line: impl Fn(&Process) -> String) -> Vec<u8> {
    processes.iter().map(|p| format!("{} {}\n", line(p), p.command)).collect::<String>().into_bytes()
}

/// Makes a program of what comes.
fn put(path: &str, bytes: &str, input: impl Read) -> io::Result<Vec<u8>> {
    let bytes: u64 = bytes.parse().map_err(io::Error::other)?;
    let mut file = File::create(root().join(path.trim_start_matches('/')))?;
    let came = io::copy(&mut input.take(bytes), &mut file)?;
    file.set_permissions(fs::Permissions::from_mode(0o755))?;
    match came == bytes {
        true => Ok(Vec::new()),
        false => Err(io::Error::other(format!("{came} of {bytes} bytes came"))),
    }
}

/// Runs a program of the image in the image's root.
fn run(program: &str, arguments: &[&str]) -> io::Result<Vec<u8>> {
    let root = root();
    let mut command = Command::new(program);
    // A closed pipe rather than `/dev/null`, which went with the image's init when it switched roots.
    command.args(arguments).stdin(Stdio::piped()).env("PATH", "/usr/sbin:/usr/bin");
    let enter = move || -> io::Result<()> {
        nix::unistd::chroot(&root)?;
        nix::unistd::chdir("/")?;
        Ok(())
    };
    // SAFETY: between fork and exec only two system calls are made, on memory from before.
    unsafe { command.pre_exec(enter) };
    let begin = Instant::now();
    let output = command.output()?;
    let code = output.status.code().unwrap_or(-1);
    let mut answer = format!("{code} {}\n", begin.elapsed().as_millis()).into_bytes();
    answer.extend(output.stdout);
    answer.extend(output.stderr);
    Ok(answer)
}
