//! Images that operators give to nodes.

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use hivemind_core::node::Node;
use hivemind_spec::api::GivenImage;
use hivemind_spec::document::Kind;
use hivemind_spec::exec::FromNode;
use hivemind_spec::id::{Digest, KeyId, NodeId};
use hivemind_spec::problem::{Code, Problem};
use serde::Deserialize;
use utoipa::IntoParams;

use super::Context;
use super::auth::Signer;
use super::forward;
use super::refusal::{Query, Refusal};
use super::session::{self, Right};
use super::specs::Items;

/// The images that nodes were given. What a node has of a registry is not among them.
#[utoipa::path(get, path = "/v1/images",
    responses((status = 200, body = Items<GivenImage>), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(State(context): State<Context>) -> Result<Json<Items<GivenImage>>, Refusal> {
    let items = context.agent.read(|node, now| node.view(now, "").images()).await?;
    Ok(Json(Items { items }))
}

/// What is given, and to whom.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Offer {
    /// Its name, without a digest.
    name: String,
    /// The digest of its manifest, 64 hexadecimal digits.
    #[param(value_type = String)]
    digest: Digest,
    /// How long the manifest is.
    manifest_bytes: u64,
    /// The node; the one that is asked if not given.
    #[param(value_type = Option<String>)]
    node: Option<NodeId>,
}

/// Gives a node an image, by WebSocket. Only admins may.
#[utoipa::path(get, path = "/v1/images/give", params(Offer),
    responses((status = 101, description = "a WebSocket: the input is the manifest, and then what standard output wants, each \
            line a `WantedBlob`", body = FromNode),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn give(
    State(context): State<Context>,
    Query(Offer { name, digest, manifest_bytes, node }): Query<Offer>,
    Extension(Signer(key)): Extension<Signer>,
    request: Request,
) -> Result<Response, Refusal> {
    let (mut parts, _) = request.into_parts();
    let right = right(key);
    right.check(&context).await?;
    if let Some(node) = node
        && let Some(answer) = session::elsewhere(&context, node, &mut parts).await?
    {
        return Ok(answer);
    }
    context.told("image-given", key, None, &format!("image {name} is given to this machine"));
    let mine = context.clone();
    let work = async move |other| {
        let taken = mine.runtime.take_image(&name, digest, manifest_bytes, other).await;
        taken.map_err(|error| {
            Problem::new(Code::NotTaken, error.text)
                .advice("what is whole of it is kept for a day, and not sent again")
        })?;
        let told = move |core: &Node| {
            let own = core.cluster().images.get(&core.me());
            own.and_then(|images| images.get(&name)).is_some_and(|image| image.digest == digest)
        };
        // A push that asks a moment too early asks the registry.
        mine.agent.is_told(told).await.map(|_| 0)
    };
    Ok(session::open(&context, right, &mut parts, work).await?)
}

/// What is taken back, and from whom.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct TakenBack {
    /// Its name, without a digest.
    name: String,
    /// The node.
    #[param(value_type = String)]
    node: NodeId,
}

/// Keeps an image that a node was given no longer than any other. Only admins may.
#[utoipa::path(delete, path = "/v1/images", params(TakenBack),
    responses((status = 204, description = "it goes when the disk wants the room"),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn take_back(
    State(context): State<Context>,
    Query(TakenBack { name, node }): Query<TakenBack>,
    Extension(Signer(key)): Extension<Signer>,
    parts: Parts,
) -> Result<Response, Refusal> {
    right(key).check(&context).await?;
    if let Some(answer) = forward::elsewhere(&context, node, &parts, Default::default()).await? {
        return Ok(answer);
    }
    let given = context.runtime.give_up_image(&name).await;
    given.map_err(|error| {
        Problem::new(Code::Internal, error.text)
            .advice("try again; `hivemind status` tells what is wrong with the machine")
    })?;
    context.told("image-taken-back", key, None, &format!("image {name} is taken back from this machine"));
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn right(key: KeyId) -> Right {
    Right { key, kind: Kind::NodeIntent, namespace: String::new(), doing: "give images to machines" }
}
