//! Namespaces that are held for somebody else. Needs root, or a kernel that lets everybody have a user namespace.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::io::Read as _;
use std::process::{Command, Stdio};

use hivemind_init::namespaces::THERE;

#[test]
fn namespaces_are_held_for_as_long_as_somebody_wants_them() {
    let mut holder = Command::new(env!("CARGO_BIN_EXE_hivemind-init"));
    let mut holder = holder.arg("hold").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = [0];
    holder.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(said, [THERE]);
    let of = |process: &str, kind: &str| fs::read_link(format!("/proc/{process}/ns/{kind}")).unwrap();
    let id = holder.id().to_string();
    for kind in ["user", "net"] {
        assert_ne!(of(&id, kind), of("self", kind), "{kind}");
    }
    assert_eq!(of(&id, "mnt"), of("self", "mnt"));
    // Nobody in it is anybody yet.
    assert_eq!(fs::read_to_string(format!("/proc/{id}/uid_map")).unwrap(), "");
    drop(holder.stdin.take());
    assert!(holder.wait().unwrap().success());
}
