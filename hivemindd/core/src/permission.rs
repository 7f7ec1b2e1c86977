//! What workloads are given of their machines, and whether their namespaces allow it.
//!
//! Whoever may push workloads may not say so of them: only admins write namespaces. A push that asks for more is
//! refused, and every node looks again before it starts a container and for as long as it runs: what a namespace no longer
//! allows is stopped.

use std::collections::BTreeMap;

use hivemind_spec::namespace::Permission;
use hivemind_spec::workload::ContainerSpec;

use crate::cluster::{Cluster, Workload};
use crate::record::WorkloadId;

/// What a container needs of its namespace and does not have.
pub fn lacking(cluster: &Cluster, namespace: &str, container: &ContainerSpec) -> Vec<Permission> {
    let allows = |permission: &Permission| {
        cluster.namespaces.get(namespace).is_some_and(|namespace| namespace.allows(*permission))
    };
    container.permissions().into_iter().filter(|permission| !allows(permission)).collect()
}

/// What is lacking, and who can do something about it, in words.
pub fn refusal(namespace: &str, lacking: &[Permission]) -> (String, String) {
    let names: Vec<&str> = lacking.iter().map(|permission| permission.name()).collect();
    let detail = format!("namespace {namespace} does not allow its containers: {}", names.join(", "));
    let advice =
        format!("an admin can allow it: `hivemind namespaces allow {namespace} {}`", names.join(" "));
    (detail, advice)
}

/// The workloads of these that ask for more than their namespaces allow, and for what, in words.
pub fn barred<'a>(
    cluster: &Cluster,
    workloads: impl Iterator<Item = (&'a WorkloadId, &'a Workload)>,
) -> BTreeMap<WorkloadId, String> {
    let barred = workloads.filter_map(|(id, workload)| {
        let lacking = lacking(cluster, &id.namespace, &workload.spec.container);
        (!lacking.is_empty()).then(|| {
            let (detail, advice) = refusal(&id.namespace, &lacking);
            (id.clone(), format!("{detail}; {advice}"))
        })
    });
    barred.collect()
}

#[cfg(test)]
mod tests {
    use hivemind_spec::namespace::NamespaceSpec;

    use super::*;
    use crate::fixture::{cluster, workload, workload_id};

    #[test]
    fn a_workload_is_barred_until_its_own_namespace_allows_what_it_asks_for() {
        let (mut cluster, _) = cluster(1);
        let id = workload_id("app");
        let mut app = workload(1);
        app.spec.container.machine.privileged = true;
        let barred = |cluster: &Cluster| barred(cluster, [(&id, &app)].into_iter());
        let told = barred(&cluster);
        assert!(
            told[&id].contains(&format!("hivemind namespaces allow {} privileged", id.namespace)),
            "{told:?}"
        );
        let allows = |permission| NamespaceSpec { allow: [permission].into() };
        cluster.namespaces.insert("elsewhere".to_owned(), allows(Permission::Privileged));
        cluster.namespaces.insert(id.namespace.clone(), allows(Permission::Devices));
        assert_eq!(barred(&cluster).len(), 1);
        cluster.namespaces.insert(id.namespace.clone(), allows(Permission::Privileged));
        assert_eq!(barred(&cluster), BTreeMap::new());
        assert_eq!(super::barred(&cluster, [(&id, &workload(1))].into_iter()), BTreeMap::new());
    }
}
