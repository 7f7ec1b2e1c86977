//! What a file asks of the cluster: its documents as they would be pushed, compared with what the cluster holds.

use std::collections::BTreeSet;

use hivemind_spec::api::{Node, NodeState, SpecItem};
use hivemind_spec::document::{Document, SpecKey};
use hivemind_spec::id::NodeId;

use super::{pin, secrets};
use crate::cli::Pinning;
use crate::client::{Client, percent, with_query};
use crate::compose::Compiled;
use crate::compose::provider::keep;
use crate::deploy::{Change, compare, left_over, wants_voters};
use crate::failure::Result;

/// What a push would do.
pub(super) struct Prepared {
    /// To the documents in the file, in its order.
    pub(super) changes: Vec<Change>,
    /// What is of the file's project, but not in it.
    pub(super) left: Vec<SpecKey>,
}

/// Asks the cluster and the registries for what a push depends on, at the same time. Services that are still to be provided
/// count as they were at the last push.
///
/// # Errors
/// When the cluster does not answer, or something that must be looked up cannot be.
pub(super) async fn prepare(
    client: &Client,
    compiled: &Compiled,
    namespace: &str,
    pinning: &Pinning,
) -> Result<Prepared> {
    let (documents, policies) = (&compiled.documents, &compiled.pull_policies);
    let looked = pin::look_ahead(client, documents, policies, pinning);
    let (current, enrolled, mut found) =
        tokio::try_join!(current(client, namespace), enrolled(client, documents), looked)?;
    let now_ms = client.now_ms();
    let mut documents = secrets::with_secrets(client, compiled, namespace, &current).await?;
    if !compiled.provided.is_empty() {
        let current = |document: &Document| {
            current.iter().find(|item| item.key == document.key() && !item.deleted)?.document()
        };
        keep(&mut documents, &compiled.provided, &current);
    }
    pin::pin(&mut documents, policies, &current, now_ms, pinning, &mut found).await?;
    let changes = compare(documents, &current, &enrolled, now_ms);
    let left = left_over(&compiled.project, &changes, &current);
    Ok(Prepared { changes, left })
}

/// The documents the cluster holds in a namespace, tombstones included where it tells.
pub(super) async fn current(client: &Client, namespace: &str) -> Result<Vec<SpecItem>> {
    client.list(&format!("/v1/specs?namespace={}", percent(namespace))).await
}

/// What the cluster holds of a name, a tombstone where it tells of one.
pub(super) async fn held(client: &Client, key: &SpecKey) -> Result<Option<SpecItem>> {
    let kind = key.kind.to_string();
    let name = [("kind", kind.as_str()), ("namespace", &key.namespace), ("name", &key.name)];
    let path = with_query("/v1/specs", &name.map(|(name, value)| (name, Some(value))));
    Ok(client.list(&path).await?.into_iter().find(|item: &SpecItem| item.key == *key))
}

/// The nodes that have a say in where exclusive workloads run, if there are any such among the documents.
async fn enrolled(client: &Client, documents: &[Document]) -> Result<BTreeSet<NodeId>> {
    if !wants_voters(documents) {
        return Ok(BTreeSet::new());
    }
    let nodes: Vec<Node> = client.list("/v1/nodes").await?;
    Ok(nodes.into_iter().filter(|node| node.state != NodeState::Revoked).map(|node| node.id).collect())
}
