//! The command line, and what each command does.

mod client;
mod keeper;
mod protocol;
mod show;

use std::convert::Infallible;
use std::fs;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use hivemind_qemu::{Image, images};

use protocol::{Answer, Fault, ForwardRule, Request, UpOptions};

const EXAMPLES: &str = "\
Examples:
  hivemind-qemu up --machines 3 --config machine.toml --registry --forward 7443:n1:7443
  hivemind-qemu list
  hivemind-qemu log n1 --follow
  hivemind-qemu cut n2 && hivemind-qemu power-on n2
  hivemind-qemu partition n1 n2,n3 && hivemind-qemu heal
  hivemind-qemu exec -- curl http://n1.lab/
  hivemind-qemu down";

/// How often `log --follow` looks for more.
const FOLLOW_EVERY: Duration = Duration::from_millis(200);

/// Runs a cluster of the Hivemind image under QEMU, and lets you break it.
#[derive(Debug, Parser)]
#[command(name = "hivemind-qemu", version, after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Which cluster; several can be up at a time.
    #[arg(long, global = true, default_value = "demo")]
    name: String,
    /// How to print lists.
    #[arg(long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a cluster that stays up after this command.
    #[command(
        after_help = "Example: hivemind-qemu up --machines 3 --config machine.toml --forward 7443:n1:7443"
    )]
    Up(Box<Up>),
    /// Remove the cluster with everything in it.
    Down,
    /// Show the machines, their addresses and forwarded ports.
    List,
    /// Print what a machine said on its serial port.
    #[command(after_help = "Example: hivemind-qemu log n1 --follow")]
    Log {
        machine: String,
        /// Go on printing until interrupted.
        #[arg(short, long)]
        follow: bool,
    },
    /// Add a machine like the others, and switch it on.
    Add { machine: String },
    /// Cut the power.
    Cut { machines: Vec<String> },
    /// Switch on.
    PowerOn { machines: Vec<String> },
    /// Press the power button: the system shuts down.
    Button { machines: Vec<String> },
    /// Press the reset button.
    Reset { machines: Vec<String> },
    /// Stop machines in the middle of whatever they do.
    Freeze { machines: Vec<String> },
    /// Let frozen machines go on.
    Thaw { machines: Vec<String> },
    /// Pull network cables.
    LinkDown { machines: Vec<String> },
    /// Put network cables back.
    LinkUp { machines: Vec<String> },
    /// Let two groups of machines no longer hear each other.
    #[command(after_help = "Example: hivemind-qemu partition n1 n2,n3")]
    Partition {
        /// Names, separated by commas.
        one: Names,
        /// Names, separated by commas.
        other: Names,
        /// Only the second group no longer hears the first, which still hears the second.
        #[arg(long)]
        one_way: bool,
    },
    /// Undo all partitions.
    Heal,
    /// Make the cable of a machine slow or lossy, in each direction. Without options it is perfect again.
    #[command(after_help = "Example: hivemind-qemu impair n1 --delay-ms 50 --loss-percent 5")]
    Impair {
        machine: String,
        #[arg(long, default_value_t = 0)]
        delay_ms: u64,
        #[arg(long, default_value_t = 0)]
        jitter_ms: u64,
        #[arg(long, default_value_t = 0.0)]
        loss_percent: f64,
    },
    /// Reach a machine's TCP port at a port of 127.0.0.1.
    #[command(after_help = "Example: hivemind-qemu forward 8080:n1:80")]
    Forward { rule: ForwardRule },
    /// Run a program of this computer in the cluster's network.
    #[command(after_help = "Example: hivemind-qemu exec -- curl http://n1.lab/")]
    Exec {
        #[arg(last = true, required = true)]
        program: Vec<String>,
    },
    /// Make the test images that `--registry` serves, and list them.
    Images,
    /// The process behind `up`; not for people.
    #[command(hide = true)]
    Keep,
}

/// Names of machines, separated by commas.
#[derive(Clone, Debug)]
struct Names(Vec<String>);

impl FromStr for Names {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Names, Infallible> {
        Ok(Names(text.split(',').map(str::to_owned).collect()))
    }
}

#[derive(Debug, Args)]
struct Up {
    /// How many machines: n1, n2 and so on.
    #[arg(long, default_value_t = 3)]
    machines: u8,
    /// The folder `image/build` wrote to. Default: `image` in cargo's target folder.
    #[arg(long)]
    image: Option<PathBuf>,
    /// The machine configuration, the same for all machines.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Memory per machine, in MiB.
    #[arg(long, default_value_t = 512)]
    memory: u32,
    /// Processors per machine.
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// Disk per machine in GiB. Only what is written takes room.
    #[arg(long, default_value_t = 4)]
    disk: u64,
    /// Boot by UEFI firmware as real hardware does, rather than start the kernel directly.
    #[arg(long)]
    firmware: bool,
    /// Serve the test images at registry.lab:5000.
    #[arg(long)]
    registry: bool,
    /// Reach a machine's port at 127.0.0.1: PORT:MACHINE:PORT. May be repeated.
    #[arg(long = "forward")]
    forwards: Vec<ForwardRule>,
    /// Leave the machines switched off.
    #[arg(long)]
    off: bool,
    /// Wait this many seconds for every machine to get its address.
    #[arg(long, default_value_t = 0)]
    wait: u64,
}

impl Up {
    fn options(self, name: String) -> Result<UpOptions> {
        let image = match &self.image {
            Some(dir) => Image::in_dir(dir)?,
            None => Image::built()?,
        };
        let absolute =
            |path: &Path| fs::canonicalize(path).with_context(|| format!("cannot read {}", path.display()));
        Ok(UpOptions {
            name,
            machines: self.machines,
            disk: absolute(&image.disk)?,
            boot: image.boot.clone(),
            firmware: self.firmware,
            config: self.config.as_deref().map(absolute).transpose()?,
            memory_mib: self.memory,
            cpus: self.cpus,
            disk_gib: Some(self.disk),
            registry: self.registry,
            forwards: self.forwards,
            off: self.off,
            wait_s: self.wait,
        })
    }
}

pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    let Arguments { name, output, command } = arguments;
    let fault = |machines: Vec<String>, fault| -> Result<()> {
        if machines.is_empty() {
            bail!("name at least one machine; `hivemind-qemu list` shows them");
        }
        machines
            .into_iter()
            .try_for_each(|machine| done(client::ask(&name, &Request::Fault { machine, fault })?))
    };
    match command {
        Command::Up(up) => {
            client::up(&up.options(name.clone())?)?;
            show::cluster(&name, Some(client::cluster(&name)?), output)?;
        }
        Command::Down => client::down(&name)?,
        Command::List => show::cluster(&name, client::cluster_if_up(&name)?, output)?,
        Command::Log { machine, follow } => print_log(&client::machine(&name, &machine)?.serial_log, follow)?,
        Command::Add { machine } => done(client::ask(&name, &Request::Add { machine })?)?,
        Command::Cut { machines } => fault(machines, Fault::Cut)?,
        Command::PowerOn { machines } => fault(machines, Fault::PowerOn)?,
        Command::Button { machines } => fault(machines, Fault::Button)?,
        Command::Reset { machines } => fault(machines, Fault::Reset)?,
        Command::Freeze { machines } => fault(machines, Fault::Freeze)?,
        Command::Thaw { machines } => fault(machines, Fault::Thaw)?,
        Command::LinkDown { machines } => fault(machines, Fault::LinkDown)?,
        Command::LinkUp { machines } => fault(machines, Fault::LinkUp)?,
        Command::Partition { one, other, one_way } => {
            done(client::ask(&name, &Request::Partition { one: one.0, other: other.0, one_way })?)?;
        }
        Command::Heal => done(client::ask(&name, &Request::Heal)?)?,
        Command::Impair { machine, delay_ms, jitter_ms, loss_percent } => {
            fault(vec![machine], Fault::Impair { delay_ms, jitter_ms, loss_percent })?;
        }
        Command::Forward { rule } => done(client::ask(&name, &Request::Forward(rule))?)?,
        Command::Exec { program } => return exec(&name, &program),
        Command::Images => show::images(&images::ensure()?, output)?,
        Command::Keep => keeper::run()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn done(answer: Answer) -> Result<()> {
    match answer {
        Answer::Failed(problem) => bail!(problem),
        _ => Ok(()),
    }
}

/// Becomes the program, so that signals, terminal and exit status are its own.
fn exec(name: &str, program: &[String]) -> Result<ExitCode> {
    let [program, arguments @ ..] = program else { bail!("name a program to run after `--`") };
    let error = client::cluster(name)?.door.command(program)?.args(arguments).exec();
    Err(error).with_context(|| format!("cannot run `{program}`"))
}

fn print_log(path: &Path, follow: bool) -> Result<()> {
    let mut position = 0;
    loop {
        // A machine that was never switched on has no log yet.
        if let Ok(mut log) = fs::File::open(path) {
            log.seek(SeekFrom::Start(position))?;
            let mut more = Vec::new();
            position += log.read_to_end(&mut more)? as u64;
            let mut out = io::stdout().lock();
            // A reader that has seen enough (`| head`) is not an error.
            if out.write_all(&more).and_then(|()| out.flush()).is_err() {
                return Ok(());
            }
        }
        // The file goes with the cluster.
        if !follow || (position > 0 && !path.exists()) {
            return Ok(());
        }
        std::thread::sleep(FOLLOW_EVERY);
    }
}
