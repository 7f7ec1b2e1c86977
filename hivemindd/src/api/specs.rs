//! Documents: pushed in envelopes, read back as they were signed.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use hivemind_spec::api::{Accepted, SpecItem};
use hivemind_spec::document::Kind;
use hivemind_spec::dsse::{Envelope, EnvelopeError, MAX_ENVELOPE_BYTES, PAYLOAD_TYPE};
use hivemind_spec::problem::{Code, Problem};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Context;
use super::refusal::{Query, Refusal};

/// Takes a signed document. It is answered once it is durable here and on `min(2, other live
/// nodes)` more.
#[utoipa::path(post, path = "/v1/specs", request_body(content = Envelope, content_type = "application/json"),
    responses((status = 201, body = Accepted), (status = 200, description = "already held", body = Accepted),
        (status = "4XX", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn push(State(context): State<Context>, request: Request) -> Result<Response, Refusal> {
    check_media_type(&request)?;
    let held = context.bodies.read(request.into_body(), MAX_ENVELOPE_BYTES).await?;
    let envelope = Envelope::parse(&held.bytes).map_err(|error| refused(&error))?;
    let accepted = context.agent.push(envelope).await?;
    let status = if accepted.changed { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(accepted)).into_response())
}

fn check_media_type(request: &Request) -> Result<(), Refusal> {
    let given = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let essence = given.split(';').next().unwrap_or_default().trim();
    if ["application/json", PAYLOAD_TYPE].iter().any(|known| essence.eq_ignore_ascii_case(known)) {
        return Ok(());
    }
    Err(Problem::new(Code::UnsupportedMediaType, format!("the body's media type is {given:?}"))
        .advice("send a DSSE envelope as application/json")
        .into())
}

fn refused(error: &EnvelopeError) -> Problem {
    let (code, advice) = match error {
        EnvelopeError::Unsigned => (Code::Unsigned, "sign it: `hivemind push` does"),
        _ => (Code::Malformed, "send a DSSE envelope as `hivemind push` makes it"),
    };
    Problem::new(code, error.to_string()).advice(advice)
}

/// Which documents.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Filter {
    /// Only of this kind.
    kind: Option<Kind>,
    /// Only of this namespace.
    namespace: Option<String>,
    /// Only of this name.
    name: Option<String>,
}

/// A list.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Items<T> {
    /// Its items.
    pub(super) items: Vec<T>,
}

/// Current documents as they were signed, tombstones included.
#[utoipa::path(get, path = "/v1/specs", params(Filter),
    responses((status = 200, body = Items<SpecItem>), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(context): State<Context>,
    Query(filter): Query<Filter>,
) -> Result<Json<Items<SpecItem>>, Refusal> {
    if let Some(Err(text)) = filter.kind.map(Kind::known) {
        return Err(Problem::new(Code::Malformed, text).advice("ask for one of these").into());
    }
    let fits = move |item: &SpecItem| {
        filter.kind.is_none_or(|kind| item.key.kind == kind)
            && filter.namespace.as_ref().is_none_or(|namespace| item.key.namespace == *namespace)
            && filter.name.as_ref().is_none_or(|name| item.key.name == *name)
    };
    let items =
        context.agent.read(move |node, _| node.spec_items().filter(|item| fits(item)).collect()).await?;
    Ok(Json(Items { items }))
}
