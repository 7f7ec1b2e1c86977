//! What containers are given of their machines, and what of it they may do.

use hivemind_spec::workload::{SeccompAction, SystemCalls};

use super::*;

#[test]
fn a_service_chooses_its_system_calls_and_says_what_is_so_anyway() {
    let chosen = |options: &str| workload(&service(&format!("security_opt: [{options}]"))).container.machine;
    let plain = workload(&service("")).container.machine;
    let so_anyway = [
        "no-new-privileges",
        "'no-new-privileges:true'",
        "apparmor=unconfined",
        "'label:disable'",
        "label=disable",
    ];
    for option in so_anyway {
        assert_eq!(chosen(option), plain, "{option}");
    }
    for option in ["'seccomp:unconfined'", "seccomp=unconfined"] {
        assert_eq!(chosen(option).system_calls, Some(SystemCalls::Unconfined), "{option}");
    }
    match chosen("seccomp=profile.json").system_calls {
        Some(SystemCalls::Profile(profile)) => assert_eq!(profile.default_action, SeccompAction::Log),
        other => panic!("{other:?}"),
    }
}
