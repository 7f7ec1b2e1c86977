//! How replicas are to be replaced.

use hivemind_spec::workload::{OnFailure, ReplaceOrder, UpdatePolicy};

use super::*;

#[test]
fn how_replicas_are_to_be_replaced_is_kept_and_a_push_says_that_it_does_nothing_yet() {
    let text = "deploy: {update_config: {parallelism: 2, delay: 10s, failure_action: rollback, monitor: 1m, \
                max_failure_ratio: 0.125, order: start-first}, rollback_config: {parallelism: 0}}";
    let compiled = compiled(&service(text));
    let kept = compiled.documents[0].workload().unwrap();
    let update = UpdatePolicy {
        parallelism: 2,
        delay_ms: 10_000,
        on_failure: OnFailure::Rollback,
        monitor_ms: 60_000,
        max_failures_permille: 125,
        order: ReplaceOrder::StartFirst,
    };
    assert_eq!(kept.update, Some(update));
    assert_eq!(kept.rollback, Some(UpdatePolicy { parallelism: 0, ..UpdatePolicy::default() }));
    let told: Vec<_> = compiled.warnings.iter().map(|warning| warning.message.as_str()).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("`update_config`") && told[0].contains("at once"), "{told:?}");

    // Nothing is replaced because of it.
    assert_eq!(kept.template(), workload(&service("")).template());
    assert_eq!(workload(&service("")).update, None);
    assert_eq!(workload(&service("deploy: {update_config: {}}")).update, Some(UpdatePolicy::default()));
}

#[test]
fn what_cannot_be_meant_by_it_is_refused_where_it_stands() {
    for (entry, wanted) in [
        ("update_config: {parallelism: -1}", "out of range"),
        ("update_config: {delay: soon}", "not a duration"),
        ("update_config: {failure_action: retry}", "one of"),
        ("update_config: {max_failure_ratio: 1.5}", "no part of all"),
        ("update_config: {max_failure_ratio: .nan}", "no part of all"),
        ("update_config: {order: any}", "one of"),
        ("update_config: {paralelism: 1}", "did you mean `parallelism`?"),
        ("rollback_config: {failure_action: rollback}", "one of"),
        ("update_config: [1]", "4: "),
    ] {
        let text = refused(&format!("deploy: {{{entry}}}"));
        assert!(text.contains(wanted), "{entry}: {text}");
    }
}
