//! Images are pushed by digest: what was signed is what runs, whatever its tag names later.

use hivemind_tests::cluster::{Cluster, STARTING};
use hivemind_tests::command::items;
use hivemind_tests::registry::tag;
use hivemind_tests::wait;

/// Says its version on port 80; one replica, or one on each of two machines.
fn shop(replicas: u32, more: &str) -> String {
    format!(
        "services:\n  shop:\n    image: registry.lab:5001/shop:1\n    ports: ['8080:80']\n    {more}\n    \
         deploy: {{replicas: {replicas}, placement: {{max_replicas_per_node: 1}}}}\n"
    )
}

/// The images that the replicas run, and how many replicas do.
fn running(cluster: &Cluster, count: usize) -> Vec<String> {
    cluster.wait_for_running("shop", count, STARTING);
    let replicas = items(&cluster.json(&["ps", "shop"]).unwrap());
    replicas.iter().map(|replica| replica["image"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn what_was_signed_is_what_runs_whatever_its_tag_names_later() {
    let cluster = Cluster::formed("pins", 2);
    let registry = cluster.lab.empty_registry().unwrap();
    let answers = |what: &str| {
        wait::until(&format!("every machine answers {what}"), STARTING, || {
            for machine in &cluster.machines {
                let said = cluster.get(&format!("http://{}:8080/", machine.address()))?;
                if !said.contains(what) {
                    return Err(said);
                }
            }
            Ok(())
        })
    };
    tag(&cluster.lab, "nginx:1", &registry, "shop:1");
    cluster.push(&shop(1, "pull_policy: missing")).ok();
    let first = running(&cluster, 1);
    assert!(first[0].starts_with("registry.lab:5001/shop:1@sha256:"), "{first:?}");

    // The second machine fetches it when the tag names another image already.
    tag(&cluster.lab, "nginx:2", &registry, "shop:1");
    cluster.push(&shop(2, "pull_policy: missing")).ok();
    assert_eq!(running(&cluster, 2), [first[0].clone(), first[0].clone()]);
    answers("version 1");

    // A file that does not say otherwise takes what the tag names now, and its plan says so.
    let file = hivemind_tests::command::compose(cluster.folder(), &shop(2, ""));
    let plan = cluster.json(&["plan", &file.to_string_lossy()]).unwrap();
    let differences = items(&plan["changes"][0]["differences"]);
    assert_eq!(differences.len(), 1, "{plan}");
    assert_eq!(differences[0]["pointer"], "/spec/container/image");
    assert_eq!(differences[0]["before"], first[0].as_str());
    cluster.push(&shop(2, "")).ok();
    wait::until("both run what the tag names now", STARTING, || {
        let now = running(&cluster, 2);
        if now[0] == now[1] && now[0] != first[0] && differences[0]["after"] == now[0].as_str() {
            Ok(())
        } else {
            Err(format!("{now:?}"))
        }
    });
    answers("version 2");

    // Without its registry a push changes nothing of it, unless it must look.
    drop(registry);
    let pushed = cluster.push(&shop(2, "")).ok();
    assert!(pushed.stdout().contains("unchanged"), "{}", pushed.stdout());
    assert!(pushed.stderr().contains("stays what it was"), "{}", pushed.stderr());
    let refused = cluster.push(&shop(2, "pull_policy: always")).failed();
    assert!(refused.stderr().contains("registry registry.lab:5001"), "{}", refused.stderr());
    assert_eq!(refused.code(), Some(1));
}
