//! Paths of the machine that containers are given, and where they lead.

use std::fs;
use std::io;
use std::path::PathBuf;

use hivemind_core::event::OperationError;
use hivemind_spec::workload::{ContainerSpec, HostPath};

use super::client::{permanent, transient};

/// The paths that a container is given, links followed.
///
/// # Errors
/// For good, when a link leads to what its namespace was not asked for; for now, when the machine has no such path.
pub(super) fn of(spec: &ContainerSpec) -> Result<Vec<(PathBuf, &HostPath)>, OperationError> {
    let found = spec.machine.host_paths.iter().map(|host| {
        let path = &host.path;
        let leads = fs::canonicalize(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => transient(format!("this machine has no {path}")),
            _ => transient(format!("{path} of this machine: {error}")),
        })?;
        if host.reach(&leads.to_string_lossy()) > host.reach(path) {
            let leads = leads.display();
            return Err(permanent(format!(
                "{path} of this machine leads to {leads}; name that in the document"
            )));
        }
        Ok((leads, host))
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_leads_to_nothing_that_the_namespace_was_not_asked_for() {
        let of = |path: &str, read_only| {
            let mut spec = ContainerSpec::of("a");
            spec.machine.host_paths =
                vec![HostPath { path: path.into(), target: "/a".into(), read_only, follows: false }];
            super::of(&spec).map(|found| found[0].0.clone())
        };
        assert_eq!(of("/sys", true).unwrap(), PathBuf::from("/sys"));
        // Descriptors of the agent itself.
        let refused = of("/dev/fd", true).unwrap_err();
        assert!(refused.permanent && refused.text.contains("leads to /proc/"), "{}", refused.text);
        // Who may have all may have this too.
        assert_eq!(of("/proc/self/root", true).unwrap(), PathBuf::from("/"));
        let absent = of("/sys/absent", true).unwrap_err();
        assert!(!absent.permanent && absent.text.contains("has no /sys/absent"), "{}", absent.text);
    }
}
