//! The programs in the image that are compiled here: the daemon, and containerd's shim from crates.io.

use std::collections::VecDeque;
use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Static binaries: the image needs no libraries for them, and the initramfs has none.
const TARGET: &str = "x86_64-unknown-linux-musl";

/// The Rust implementation of containerd's "runc v2" shim: a third of the memory of the one in Go, for each container.
const SHIM: (&str, &str) = ("containerd-runc-shim", "0.2.0");
/// Its binary has another name than the one containerd looks for.
const SHIM_BINARY: &str = "containerd-shim-runc-v2-rs";

/// Small and without symbols, like our own release profile; it has no other way in for a crate that is installed.
const SHIM_PROFILE: [(&str, &str); 4] = [
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s"),
    ("CARGO_PROFILE_RELEASE_LTO", "thin"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "4"),
    ("CARGO_PROFILE_RELEASE_STRIP", "symbols"),
];

/// The shim, built at most once for each version. The flag tells whether it was there already.
///
/// # Errors
/// When it does not build.
pub fn shim(project_cache: &Path) -> Result<(PathBuf, bool)> {
    let (name, version) = SHIM;
    let root = project_cache.join("shim").join(format!("{version}-s"));
    let binary = root.join("bin").join(SHIM_BINARY);
    if binary.exists() {
        return Ok((binary, true));
    }
    let target = project_cache.join("shim/target");
    let mut cargo = cargo(&target);
    cargo.args(["install", name, "--version", version, "--locked", "--target", TARGET, "--root"]).arg(&root);
    cargo.envs(SHIM_PROFILE);
    // The caller's flags must not change this crate; reproducible paths must.
    cargo.env("CARGO_ENCODED_RUSTFLAGS", remapped_paths(&target));
    let built = compile(cargo).with_context(|| format!("building {name} {version}"));
    // Compiled once and not needed again: hundreds of megabytes.
    let _ = fs::remove_dir_all(&target);
    built?;
    Ok((binary, false))
}

/// The daemon's programs.
#[derive(Clone, Debug)]
pub struct Daemon {
    /// The agent.
    pub agent: PathBuf,
    /// PID 1. A program of its own, because the kernel unpacks it at every boot (docs/decisions/0040).
    pub init: PathBuf,
}

impl Daemon {
    /// The programs in a folder.
    #[must_use]
    pub fn at(dir: &Path) -> Self {
        Self { agent: dir.join("hivemindd"), init: dir.join("hivemind-init") }
    }
}

/// How the variables begin that cargo sets for a program of a package ("Environment Variables" in The Cargo Book).
const OF_PACKAGE: [&str; 4] = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "OUT_DIR"];

/// Where cargo puts the daemon's programs.
#[must_use]
pub fn built(target: &Path) -> PathBuf {
    target.join(TARGET).join("release")
}

/// The daemon, as it is in the checkout. `as_of` is the image's date (seconds since 1970), which its clock is never
/// behind.
///
/// # Errors
/// When it does not build.
pub fn daemon(checkout: &Path, target: &Path, as_of: u64) -> Result<Daemon> {
    let mut cargo = cargo(target);
    cargo.current_dir(checkout);
    cargo.args([
        "build",
        "--release",
        "--package",
        "hivemindd",
        "--package",
        "hivemind-init",
        "--target",
        TARGET,
    ]);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", remapped_paths(target));
    cargo.env("SOURCE_DATE_EPOCH", as_of.to_string());
    compile(cargo).context("building hivemindd")?;
    Ok(Daemon::at(&built(target)))
}

fn cargo(target: &Path) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // What `cargo run` and the tests' runner say of this program's own package. Build scripts look at that of theirs, so
    // that whoever starts it in another way would have all of it compiled again.
    let of_package = |name: &str| OF_PACKAGE.iter().any(|prefix| name.starts_with(prefix));
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(of_package)) {
        cargo.env_remove(name);
    }
    cargo.env("CARGO_TARGET_DIR", target);
    cargo.env_remove("RUSTFLAGS");
    cargo
}

/// Panic messages hold source paths. Without the builder's own folders in them, two users get the same bytes.
/// The checkout is not among them: cargo names its files relative to it, and a flag with its path would make every
/// clone compile everything anew.
fn remapped_paths(target: &Path) -> String {
    let home = |name: &str, fallback: &str| {
        let set = env::var_os(name).map(PathBuf::from);
        set.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(fallback)))
    };
    let folders = [
        (Some(target.to_owned()), "/target"),
        (home("CARGO_HOME", ".cargo"), "/cargo"),
        (home("RUSTUP_HOME", ".rustup"), "/rustup"),
    ];
    let flags = folders
        .into_iter()
        .filter_map(|(from, to)| Some(format!("--remap-path-prefix={}={to}", from?.display())));
    flags.collect::<Vec<_>>().join("\u{1f}")
}

/// Lets cargo show its own progress to a person. Where nobody watches, a line now and then says how far it is, and
/// what cargo says shows only if it fails.
fn compile(mut cargo: Command) -> Result<()> {
    cargo.stdin(Stdio::null());
    if io::stderr().is_terminal() {
        eprintln!();
        let status = cargo.status().context("cannot run cargo")?;
        if !status.success() {
            bail!("cargo failed ({status}); its messages are above");
        }
        return Ok(());
    }
    // The progress bar has the number of crates that are left, which cargo says nowhere else.
    cargo.envs([("CARGO_TERM_PROGRESS_WHEN", "always"), ("CARGO_TERM_PROGRESS_WIDTH", "80")]);
    let mut child = cargo.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().context("cannot run cargo")?;
    let mut progress = CargoProgress::new();
    if let Some(stderr) = child.stderr.take() {
        progress.follow(BufReader::new(stderr));
    }
    let status = child.wait().context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo failed ({status}):\n{}", Vec::from(progress.last_lines).join("\n"));
    }
    Ok(())
}

/// How often a line says how far cargo is: often enough to show that it goes on, and few lines in a log.
const SAY_EVERY: Duration = Duration::from_secs(15);

/// Lines of cargo's that are read and not yet looked at; beyond, cargo waits.
const LINES_WAITING: usize = 256;

/// How many of cargo's last lines an error shows: some compiler messages, and no flood.
const SHOWN_LINES: usize = 60;

/// What cargo says, with its progress bar taken out.
struct CargoProgress {
    started: Instant,
    said: Instant,
    /// Crates compiled, and crates in all.
    bar: Option<(u32, u32)>,
    last_lines: VecDeque<String>,
}

impl CargoProgress {
    fn new() -> Self {
        let now = Instant::now();
        Self { started: now, said: now, bar: None, last_lines: VecDeque::new() }
    }

    /// Reads to the end, on a thread: the last crate takes minutes in which cargo says nothing.
    fn follow(&mut self, output: impl BufRead + Send + 'static) {
        let (sender, lines) = sync_channel(LINES_WAITING);
        thread::spawn(move || {
            // The bar is drawn again and again over itself, after a carriage return.
            for part in output.split(b'\r').map_while(Result::ok) {
                for line in String::from_utf8_lossy(&part).lines() {
                    if sender.send(line.to_owned()).is_err() {
                        return;
                    }
                }
            }
        });
        loop {
            match lines.recv_timeout(SAY_EVERY.saturating_sub(self.said.elapsed())) {
                Ok(line) => self.take(&line),
                Err(RecvTimeoutError::Timeout) => self.say(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn take(&mut self, line: &str) {
        // The bar is erased with an escape sequence before the next line is written over it.
        let line = line.trim_start_matches("\u{1b}[K").trim_end();
        if let Some(numbers) = bar(line) {
            self.bar = Some(numbers);
        } else if !line.is_empty() {
            self.last_lines.push_back(line.to_owned());
            if self.last_lines.len() > SHOWN_LINES {
                self.last_lines.pop_front();
            }
        }
    }

    fn say(&mut self) {
        let begin = if self.said == self.started { "\n" } else { "" };
        self.said = Instant::now();
        let seconds = self.started.elapsed().as_secs();
        match self.bar {
            Some((done, total)) => eprintln!("{begin}    {done} of {total} compiled, {seconds} s"),
            None => eprintln!("{begin}    cargo prepares, {seconds} s"),
        }
    }
}

/// The two numbers of `Building [====>    ] 57/310: hyper, tokio`.
fn bar(line: &str) -> Option<(u32, u32)> {
    let (_, numbers) = line.trim_start().strip_prefix("Building [")?.split_once("] ")?;
    let (done, total) = numbers.split([':', ' ']).next()?.split_once('/')?;
    Some((done.parse().ok()?, total.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_builders_own_folders_do_not_get_into_binaries() {
        let flags = remapped_paths(Path::new("/somewhere/target"));
        assert!(flags.starts_with("--remap-path-prefix=/somewhere/target=/target\u{1f}"), "{flags:?}");
        assert!(flags.contains("=/cargo"));
    }

    #[test]
    fn cargos_progress_is_read_and_its_messages_are_kept() {
        let said = "   Compiling a v1.0.0\n\
                    \r    Building [=====>      ] 57/310: hyper, tokio\u{1b}[K\r\
                    \u{1b}[Kerror: it is broken\n";
        let mut progress = CargoProgress::new();
        progress.follow(said.as_bytes());
        assert_eq!(progress.bar, Some((57, 310)));
        assert_eq!(progress.last_lines, ["   Compiling a v1.0.0", "error: it is broken"]);
        assert_eq!(bar("    Building [=====>      ] 57/310: hyper, tokio"), Some((57, 310)));
        assert_eq!(bar("    Building [================>] 310/310: hivemindd(bin)"), Some((310, 310)));
        assert_eq!(bar("   Compiling building v1.0.0"), None);
    }
}
