//! `hivemind scale` and `hivemind restart`: the next version of workloads without their file.

use hivemind_spec::api::SpecItem;
use hivemind_spec::document::{Kind, Spec, SpecKey};

use super::prepare;
use super::push::{carry_out, check};
use crate::cli::{Adjusting, Global, Restart, Scale};
use crate::deploy::{self, Action, Change};
use crate::failure::{Exit, Failure, Result};

const UNCHANGED: &str = "nothing was changed";

pub(super) fn scale(global: &Global, options: &Scale) -> Result<Exit> {
    let wanted: Vec<(&str, u32)> =
        options.workloads.iter().map(|(name, replicas)| (name.as_str(), *replicas)).collect();
    run(global, &options.adjusting, &wanted, |change, replicas| set_replicas(change, *replicas))
}

pub(super) fn restart(global: &Global, options: &Restart) -> Result<Exit> {
    let wanted: Vec<(&str, ())> = options.workloads.iter().map(|name| (name.as_str(), ())).collect();
    run(global, &options.adjusting, &wanted, |change, ()| deploy::want_anew(&mut change.document))
}

/// Makes the next version of each workload by `edit`, which says what is wrong with that if something is, and pushes them
/// once all are made and are documents.
fn run<T>(
    global: &Global,
    options: &Adjusting,
    wanted: &[(&str, T)],
    edit: impl Fn(&mut Change, &T) -> Result<()>,
) -> Result<Exit> {
    let twice = wanted
        .iter()
        .enumerate()
        .find(|(at, (name, _))| wanted[..*at].iter().any(|(other, _)| other == name));
    if let Some((_, (name, _))) = twice {
        return Err(Failure::input("named-twice", format!("{name} is named twice; {UNCHANGED}")));
    }
    let client = super::client(global)?;
    let changes = super::block_on(UNCHANGED, async {
        let current = prepare::current(&client, &options.namespace).await?;
        wanted
            .iter()
            .map(|(name, what)| {
                let mut change = next(&current, &options.namespace, name, client.now_ms())?;
                edit(&mut change, what)?;
                check(&change.document)?;
                Ok(change)
            })
            .collect::<Result<Vec<Change>>>()
    })?;
    carry_out(global, &client, &changes, options.waiting.limit_ms())
}

/// The next version of a workload, which says the same so far.
fn next(current: &[SpecItem], namespace: &str, name: &str, now_ms: u64) -> Result<Change> {
    let key = SpecKey { kind: Kind::Workload, namespace: namespace.to_owned(), name: name.to_owned() };
    let item = current.iter().find(|item| item.key == key && !item.deleted);
    let Some(mut document) = item.and_then(SpecItem::document) else {
        let text = format!("there is no workload {name:?} in namespace {namespace:?}; {UNCHANGED}");
        return Err(Failure::new(Exit::Refused, "not-found", text)
            .advice("`hivemind ps` lists what there is; --namespace says where to look"));
    };
    deploy::succeed(&mut document, item, now_ms);
    Ok(Change { key, action: Action::Update, differences: Vec::new(), document })
}

fn set_replicas(change: &mut Change, replicas: u32) -> Result<()> {
    let name = change.key.name.clone();
    let Some(Spec::Workload(spec)) = &mut change.document.spec else { return Ok(()) };
    if spec.global {
        let text = format!("{name} runs one replica on each machine that its constraints allow; {UNCHANGED}");
        return Err(Failure::input("global", text)
            .advice("its number follows the machines; a service without `mode: global` has one of its own"));
    }
    if spec.job.is_some() {
        let text = format!("{name} is a job, and its replicas are how often it is to end; {UNCHANGED}");
        return Err(Failure::input("is-job", text).advice("push its file with another number"));
    }
    if spec.replicas == replicas {
        change.action = Action::Keep;
    }
    spec.replicas = replicas;
    Ok(())
}

#[cfg(test)]
mod tests {
    use hivemind_spec::document::Document;
    use hivemind_spec::dsse::Envelope;
    use hivemind_spec::key::SigningKey;
    use serde_json::json;

    use super::*;

    fn held_as(spec: &serde_json::Value) -> Vec<SpecItem> {
        let json = json!({
            "apiVersion": "hivemind/v1", "kind": "Workload",
            "metadata": {"name": "web", "namespace": "default", "revision": 7}, "spec": spec,
        });
        let document = Document::parse(json.to_string().as_bytes()).unwrap();
        let envelope = Envelope::sign(&document.to_json(), &SigningKey::from_seed([7; 32]));
        vec![SpecItem {
            key: document.key(),
            revision: 7,
            digest: envelope.digest(),
            deleted: false,
            envelope,
        }]
    }

    #[test]
    fn a_workload_gets_another_number_and_stays_what_it_is() {
        let held = held_as(&json!({"replicas": 2, "container": {"image": "app:1"}}));
        let mut change = next(&held, "default", "web", 1000).unwrap();
        set_replicas(&mut change, 5).unwrap();
        let spec = change.document.workload().unwrap();
        assert_eq!((spec.replicas, spec.container.image.as_str()), (5, "app:1"));
        assert_eq!((change.action, change.document.metadata.revision), (Action::Update, 1000));
        assert_eq!(change.document.metadata.replaces, Some(held[0].digest));
        set_replicas(&mut change, 5).unwrap();
        assert_eq!(change.action, Action::Keep, "it has that number");
        let mut change = next(&held, "default", "web", 1000).unwrap();
        set_replicas(&mut change, 0).unwrap();
        assert_eq!(change.document.workload().unwrap().replicas, 0);
    }

    #[test]
    fn what_has_no_number_of_its_own_or_is_not_there_is_refused_with_what_to_do() {
        let refused = |spec: serde_json::Value| {
            let mut change = next(&held_as(&spec), "default", "web", 1000).unwrap();
            set_replicas(&mut change, 2).unwrap_err().code
        };
        assert_eq!(refused(json!({"global": true, "container": {"image": "app:1"}})), "global");
        assert_eq!(
            refused(
                json!({"replicas": 1, "container": {"image": "app:1"}, "restart": {"condition": "on-failure"}, "job": {}})
            ),
            "is-job"
        );
        let missing = next(&held_as(&json!({"container": {"image": "app:1"}})), "other", "web", 1000);
        assert_eq!(missing.unwrap_err().code, "not-found");
    }

    #[test]
    fn a_job_is_run_once_more_and_not_started_anew() {
        let job = held_as(
            &json!({"replicas": 1, "container": {"image": "app:1"}, "restart": {"condition": "on-failure"}, "job": {}}),
        );
        let mut change = next(&job, "default", "web", 1000).unwrap();
        assert_eq!(deploy::want_anew(&mut change.document).unwrap_err().code, "is-job");
    }
}
