//! The init process of containers, as a program.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::io::Read as _;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn reap(command: &[&str]) -> Command {
    let mut init = Command::new(env!("CARGO_BIN_EXE_hivemind-init"));
    init.arg("reap").args(command);
    init
}

#[test]
fn it_ends_as_its_command_ended() {
    let code = |command: &[&str]| reap(command).stderr(Stdio::null()).status().unwrap().code();
    assert_eq!(code(&["sh", "-c", "exit 3"]), Some(3));
    assert_eq!(code(&["true"]), Some(0));
    assert_eq!(code(&["sh", "-c", "kill -9 $$"]), Some(137));
    assert_eq!(code(&["/no/such/program"]), Some(127));
    assert_eq!(code(&["/etc/passwd"]), Some(126));
    assert_eq!(code(&[]), Some(127));
}

#[test]
fn signals_go_to_its_command() {
    let script = "trap 'exit 7' USR1; echo ready; while :; do sleep 0.1; done";
    let mut init = reap(&["sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = [0; 5];
    init.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    kill(Pid::from_raw(i32::try_from(init.id()).unwrap()), Signal::SIGUSR1).unwrap();
    assert_eq!(init.wait().unwrap().code(), Some(7));
}
