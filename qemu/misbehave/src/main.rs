//! A container's program that fails in every way a container can, when told to.
//!
//! Told by arguments or environment when it starts, or later by `GET /do/...`. Without any of these it is a well-behaved
//! web server that says who it is.

use std::env;
use std::fs;
use std::hint::black_box;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::process::{ExitCode, exit};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::libc;
use nix::sys::signal::{SigHandler, Signal, signal};

const HELP: &str = "\
misbehave: a container's program that fails when told to

Each option may also be given as MISBEHAVE_<OPTION>, for example MISBEHAVE_EXIT_AFTER=5. Times are in seconds and may be
fractions.

  --port N                serve HTTP on this port (default 8080; 0 serves nothing)
  --exit-after T          exit after this time
  --exit-code N           with this status (default 1)
  --hang-after T          accept connections but never answer after this time
  --ignore-sigterm 1      do not end on SIGTERM
  --eat-memory MIB        take and touch this much memory
  --eat-after T           after this time (default 0)
  --start-threads N       start so many threads that do nothing, as many of them as there may be
  --unhealthy-after T     answer /health with 503 after this time
  --print-lines N         print this many lines
  --line-bytes N          of this length (default 80)
  --print-every T         with this pause between them (default 0)
  --check 1               be a health check instead: ask /health of the one that serves in this container

  GET /                   hostname and version, one `name=value` per line
  GET /health             200, or 503 once unhealthy
  GET /env                the environment
  GET /do/exit/N          exit with status N
  GET /do/hang            never answer again
  GET /do/unhealthy       /health fails from now on (/do/healthy undoes it)
  GET /do/eat/MIB         take and touch this much memory
  GET /do/print/N         print N lines
  GET /do/fetch/HOST/PORT what a web server answers at HOST:PORT, asked from here
  GET /do/resolve/HOST    the addresses of a name, looked up from here
";

/// A client that sends no request for this long is dropped.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);

static HANGS: AtomicBool = AtomicBool::new(false);
static UNHEALTHY: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    if env::args().any(|argument| argument == "--help") {
        print!("{HELP}");
        return ExitCode::SUCCESS;
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("misbehave: {problem}; see --help");
            ExitCode::from(64)
        }
    }
}

fn run() -> Result<(), String> {
    let options = Options::read()?;
    if options.number("check", 0)? != 0 {
        return check(options.number("port", 8080)?);
    }
    handle_sigterm(options.number("ignore-sigterm", 0)? != 0)?;
    let exit_code = i32::try_from(options.number("exit-code", 1)?).map_err(|_| "exit-code is too large")?;
    options.after("exit-after", move || {
        say(&format!("exiting with {exit_code}"));
        exit(exit_code)
    })?;
    options.after("hang-after", || HANGS.store(true, Ordering::Relaxed))?;
    options.after("unhealthy-after", || UNHEALTHY.store(true, Ordering::Relaxed))?;
    let memory = options.number("eat-memory", 0)?;
    let eat_after = options.seconds("eat-after")?.unwrap_or_default();
    if memory > 0 {
        thread::spawn(move || {
            thread::sleep(eat_after);
            eat(memory);
        });
    }
    let threads = options.number("start-threads", 0)?;
    thread::spawn(move || start_threads(threads));
    let lines = options.number("print-lines", 0)?;
    let bytes = options.number("line-bytes", 80)?;
    let pause = options.seconds("print-every")?.unwrap_or_default();
    thread::spawn(move || print_lines(lines, bytes, pause));
    match u16::try_from(options.number("port", 8080)?).map_err(|_| "port is too large")? {
        0 => loop {
            thread::park();
        },
        port => serve(port),
    }
}

/// Those that are refused are tried again.
fn start_threads(mut threads: usize) {
    while threads > 0 {
        let started = thread::Builder::new().stack_size(16 * 1024).spawn(|| {
            loop {
                thread::park();
            }
        });
        match started {
            Ok(_) => threads -= 1,
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// As process 1 of a container it would not even notice SIGTERM without a handler.
fn handle_sigterm(ignore: bool) -> Result<(), String> {
    extern "C" fn end(_: libc::c_int) {
        let said = b"terminated\n";
        // SAFETY: write(2) and _exit(2) are async-signal-safe, and the buffer is static.
        unsafe {
            libc::write(1, said.as_ptr().cast(), said.len());
            libc::_exit(0);
        }
    }
    let handler = if ignore { SigHandler::SigIgn } else { SigHandler::Handler(end) };
    // SAFETY: the handler only makes async-signal-safe calls.
    let installed = unsafe { signal(Signal::SIGTERM, handler) };
    installed.map(drop).map_err(|error| format!("cannot handle SIGTERM: {error}"))
}

struct Options(Vec<(String, String)>);

impl Options {
    fn read() -> Result<Options, String> {
        let variables = env::vars().filter_map(|(name, value)| {
            let name = name.strip_prefix("MISBEHAVE_")?;
            Some((name.to_lowercase().replace('_', "-"), value))
        });
        let mut options: Vec<_> = variables.collect();
        let mut arguments = env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let name = argument.strip_prefix("--").ok_or(format!("`{argument}` is not an option"))?;
            let value = arguments.next().ok_or(format!("--{name} needs a value"))?;
            options.push((name.to_owned(), value));
        }
        if let Some((name, _)) = options.iter().find(|(name, _)| !HELP.contains(&format!("--{name} "))) {
            return Err(format!("there is no option --{name}"));
        }
        Ok(Options(options))
    }

    /// The last one given counts, so that arguments override the environment.
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    fn number(&self, name: &str, default: usize) -> Result<usize, String> {
        let parse = |value: &str| value.parse().map_err(|_| format!("--{name} {value}: not a number"));
        self.get(name).map_or(Ok(default), parse)
    }

    fn seconds(&self, name: &str) -> Result<Option<Duration>, String> {
        let parse = |value: &str| {
            let seconds = value.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            seconds.ok_or(format!("--{name} {value}: not a time in seconds"))
        };
        self.get(name).map(parse).transpose()
    }

    fn after(&self, name: &str, act: impl FnOnce() + Send + 'static) -> Result<(), String> {
        if let Some(time) = self.seconds(name)? {
            thread::spawn(move || {
                thread::sleep(time);
                act();
            });
        }
        Ok(())
    }
}

/// Standard output may be a pipe that nobody reads any more, which must not end the program.
fn say(line: &str) {
    let _ = writeln!(io::stdout().lock(), "{line}");
}

fn print_lines(count: usize, bytes: usize, pause: Duration) {
    for number in 1..=count {
        let line = format!("line {number} of {count} ");
        say(&format!("{line:.<bytes$}"));
        thread::sleep(pause);
    }
}

/// Takes memory for good, and writes to each page of it so that it counts.
fn eat(mib: usize) {
    say(&format!("eating {mib} MiB"));
    for _ in 0..mib {
        // Nobody reads it: an optimising compiler would not even allocate it.
        black_box(Vec::leak(vec![0xa5_u8; 1 << 20]));
    }
    say(&format!("ate {mib} MiB"));
}

fn serve(port: u16) -> Result<(), String> {
    // Listening on the IPv6 wildcard serves both families; a kernel without IPv6 has only the other.
    let listener =
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)));
    let listener = listener.map_err(|error| format!("cannot listen on port {port}: {error}"))?;
    say(&format!("serving on port {port}"));
    for client in listener.incoming().flatten() {
        thread::spawn(move || answer(&client));
    }
    Ok(())
}

fn answer(mut client: &TcpStream) -> io::Result<()> {
    client.set_read_timeout(Some(REQUEST_WITHIN))?;
    let mut reader = BufReader::new(client);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let (status, body) = respond(request.split(' ').nth(1).unwrap_or_default());
    while HANGS.load(Ordering::Relaxed) {
        thread::park();
    }
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\nconnection: close"
    );
    client.write_all(format!("{head}\r\n\r\n{body}").as_bytes())
}

fn respond(path: &str) -> (&'static str, String) {
    let number = |text: &str| text.parse::<usize>().unwrap_or(1);
    let steps: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match steps[..] {
        [""] => ("200 OK", who_am_i()),
        ["env"] => ("200 OK", env::vars().map(|(name, value)| format!("{name}={value}\n")).collect()),
        ["health"] if UNHEALTHY.load(Ordering::Relaxed) => ("503 Service Unavailable", "unhealthy\n".into()),
        ["health"] => ("200 OK", "healthy\n".into()),
        ["do", "exit", code] => exit(code.parse().unwrap_or(1)),
        ["do", "hang"] => {
            HANGS.store(true, Ordering::Relaxed);
            ("200 OK", String::new())
        }
        ["do", "unhealthy"] => {
            UNHEALTHY.store(true, Ordering::Relaxed);
            ("200 OK", "unhealthy from now on\n".into())
        }
        ["do", "healthy"] => {
            UNHEALTHY.store(false, Ordering::Relaxed);
            ("200 OK", "healthy from now on\n".into())
        }
        ["do", "eat", mib] => {
            eat(number(mib));
            ("200 OK", format!("ate {mib} MiB\n"))
        }
        ["do", "print", count] => {
            print_lines(number(count), 80, Duration::ZERO);
            ("200 OK", format!("printed {count} lines\n"))
        }
        ["do", "fetch", host, port] => match fetch(host, port, "/") {
            Ok(answer) => ("200 OK", answer),
            Err(error) => ("502 Bad Gateway", format!("{host}:{port}: {error}\n")),
        },
        ["do", "resolve", host] => match (host, 0).to_socket_addrs() {
            Ok(found) => ("200 OK", found.map(|address| format!("{}\n", address.ip())).collect()),
            Err(error) => ("502 Bad Gateway", format!("{host}: {error}\n")),
        },
        _ => ("404 Not Found", "no such path; see --help\n".into()),
    }
}

/// Ends well if the server in this container says that it is healthy, else with its words.
fn check(port: usize) -> Result<(), String> {
    let answer = fetch("127.0.0.1", &port.to_string(), "/health").map_err(|error| error.to_string())?;
    let status = answer.lines().next().unwrap_or_default();
    if status.contains("200 OK") { Ok(()) } else { Err(status.to_owned()) }
}

fn fetch(host: &str, port: &str, path: &str) -> io::Result<String> {
    let port = port.parse().map_err(io::Error::other)?;
    let mut server = TcpStream::connect((host, port))?;
    server.set_read_timeout(Some(REQUEST_WITHIN))?;
    server.write_all(format!("GET {path} HTTP/1.0\r\nhost: {host}\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    server.read_to_string(&mut answer)?;
    Ok(answer)
}

fn who_am_i() -> String {
    let hostname = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let version = env::var("IMAGE_VERSION").unwrap_or_default();
    format!("hostname={}\nversion={version}\npid={}\n", hostname.trim(), std::process::id())
}
