//! Lives the lives of seeds, until one breaks a promise.

use std::process::{Command, ExitCode};
use std::time::Instant;

use clap::Parser;
use hivemind_tests::sim::life::{self, Options};

/// Lets clusters of simulated machines live under every fault, and checks what is promised.
///
/// A seed that fails is printed with the commit; `--seed N --log` tells its story.
#[derive(Parser)]
struct Arguments {
    /// How many seeds to live: 100, or the one that --seed names.
    #[arg(long)]
    seeds: Option<u64>,
    /// The first seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Machines in each cluster; else three to seven, by the seed.
    #[arg(long)]
    nodes: Option<usize>,
    /// Print everything that happens.
    #[arg(long)]
    log: bool,
    /// Go on after a seed that fails.
    #[arg(long)]
    keep_going: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let first = arguments.seed.unwrap_or(0);
    let count = arguments.seeds.unwrap_or(if arguments.seed.is_some() { 1 } else { 100 });
    let options = Options { nodes: arguments.nodes, traced: arguments.log, aloud: arguments.log };
    let (begin, mut steps, mut acknowledged, mut failed) = (Instant::now(), 0, 0, 0);
    for (done, seed) in (first..first + count).enumerate() {
        let outcome = life::live(seed, &options);
        steps += outcome.steps;
        acknowledged += outcome.acknowledged;
        if let Some(broken) = outcome.broken {
            println!("seed {seed} at commit {} failed: {broken}", commit());
            println!("its story: cargo run -p hivemind-tests --bin simulate -- --seed {seed} --log");
            failed += 1;
            if !arguments.keep_going {
                return ExitCode::FAILURE;
            }
        }
        if done % 100 == 99 {
            println!("{} seeds, {:.0} s", done + 1, begin.elapsed().as_secs_f64());
        }
    }
    if failed > 0 {
        println!("{failed} of {count} seeds failed");
        return ExitCode::FAILURE;
    }
    println!("{count} seeds kept every promise: {steps} events, {acknowledged} pushes acknowledged");
    ExitCode::SUCCESS
}

/// The commit this was built from, as far as git knows.
fn commit() -> String {
    let said = Command::new("git").args(["describe", "--always", "--dirty"]).output();
    said.map(|said| String::from_utf8_lossy(&said.stdout).trim().to_owned()).unwrap_or_default()
}
