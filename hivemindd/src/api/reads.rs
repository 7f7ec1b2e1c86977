//! Read models: nodes, workloads, replicas and the cluster at a glance.

use axum::Json;
use axum::extract::State;
use hivemind_spec::api::{
    Health, Node, Recipient, Replica, Rollout, Secret, Status, Version, Volume, Workload,
};
use hivemind_spec::document::API_VERSION;
use hivemind_spec::problem::Problem;
use serde::Deserialize;
use utoipa::IntoParams;

use super::Context;
use super::refusal::{Query, Refusal};
use super::specs::Items;

/// The nodes that enrolled.
#[utoipa::path(get, path = "/v1/nodes",
    responses((status = 200, body = Items<Node>), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn nodes(State(context): State<Context>) -> Result<Json<Items<Node>>, Refusal> {
    let items = context.agent.read(|node, now| node.view(now, "").nodes()).await?;
    Ok(Json(Items { items }))
}

/// Which workloads.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Filter {
    /// Only of this namespace.
    namespace: Option<String>,
    /// Only of this workload.
    workload: Option<String>,
}

/// The workloads.
#[utoipa::path(get, path = "/v1/workloads", params(Filter),
    responses((status = 200, body = Items<Workload>), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn workloads(
    State(context): State<Context>,
    Query(filter): Query<Filter>,
) -> Result<Json<Items<Workload>>, Refusal> {
    let Filter { namespace, workload } = filter;
    let mut items =
        context.agent.read(move |node, now| node.view(now, "").workloads(namespace.as_deref())).await?;
    items.retain(|item| workload.as_ref().is_none_or(|wanted| *wanted == item.name));
    Ok(Json(Items { items }))
}

/// The replicas, also those that are pending, with the reason.
#[utoipa::path(get, path = "/v1/replicas", params(Filter),
    responses((status = 200, body = Items<Replica>), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn replicas(
    State(context): State<Context>,
    Query(filter): Query<Filter>,
) -> Result<Json<Items<Replica>>, Refusal> {
    let Filter { namespace, workload } = filter;
    let items = context
        .agent
        .read(move |node, now| node.view(now, "").replicas(namespace.as_deref(), workload.as_deref()))
        .await?;
    Ok(Json(Items { items }))
}

/// Of which namespace.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct OfNamespace {
    /// Only of this namespace.
    namespace: Option<String>,
}

/// The volumes, and where their data is.
#[utoipa::path(get, path = "/v1/volumes", params(OfNamespace),
    responses((status = 200, body = Items<Volume>), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn volumes(
    State(context): State<Context>,
    Query(OfNamespace { namespace }): Query<OfNamespace>,
) -> Result<Json<Items<Volume>>, Refusal> {
    let items = context.agent.read(move |node, now| node.view(now, "").volumes(namespace.as_deref())).await?;
    Ok(Json(Items { items }))
}

/// The secrets, and which nodes can open them.
#[utoipa::path(get, path = "/v1/secrets", params(OfNamespace),
    responses((status = 200, body = Items<Secret>), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn secrets(
    State(context): State<Context>,
    Query(OfNamespace { namespace }): Query<OfNamespace>,
) -> Result<Json<Items<Secret>>, Refusal> {
    let items = context.agent.read(move |node, now| node.view(now, "").secrets(namespace.as_deref())).await?;
    Ok(Json(Items { items }))
}

/// The nodes that secrets are sealed to, with their certificates.
#[utoipa::path(get, path = "/v1/recipients",
    responses((status = 200, body = Items<Recipient>), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn recipients(State(context): State<Context>) -> Result<Json<Items<Recipient>>, Refusal> {
    let items = context.agent.read(|node, now| node.view(now, "").recipients()).await?;
    Ok(Json(Items { items }))
}

/// The operating system's releases, and how far each has come.
#[utoipa::path(get, path = "/v1/releases",
    responses((status = 200, body = Items<Rollout>), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn releases(State(context): State<Context>) -> Result<Json<Items<Rollout>>, Refusal> {
    let items = context.agent.read(|node, now| node.view(now, "").releases()).await?;
    Ok(Json(Items { items }))
}

/// The cluster at a glance, as this node sees it.
#[utoipa::path(get, path = "/v1/status",
    responses((status = 200, body = Status), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn status(State(context): State<Context>) -> Result<Json<Status>, Refusal> {
    Ok(Json(context.agent.read(|node, now| node.view(now, &node.map_digest()).status()).await?))
}

/// Whether this node can run workloads now. Unsigned.
#[utoipa::path(get, path = "/v1/health", responses((status = 200, body = Health)))]
pub(super) async fn health(State(context): State<Context>) -> Result<Json<Health>, Refusal> {
    let problems = context
        .agent
        .read(|node, _| {
            let status = node.cluster().nodes.get(&node.me()).and_then(|me| me.status.as_ref());
            status.map_or_else(|| vec!["the node has no network yet".to_owned()], |s| s.problems.clone())
        })
        .await?;
    Ok(Json(Health { ready: problems.is_empty(), problems }))
}

/// The daemon's version. Unsigned.
#[utoipa::path(get, path = "/v1/version", responses((status = 200, body = Version)))]
pub(super) async fn version() -> Json<Version> {
    Json(Version { version: crate::VERSION.to_owned(), api_versions: vec![API_VERSION.to_owned()] })
}
