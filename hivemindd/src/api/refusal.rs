//! Problems as HTTP responses.

use axum::extract::FromRequestParts;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hivemind_spec::problem::{Code, MEDIA_TYPE, Problem};
use serde::de::DeserializeOwned;

/// A problem on its way to the client.
pub(super) struct Refusal(pub(super) Problem);

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // Strings and numbers only: this cannot fail.
        let body = serde_json::to_vec(&self.0).unwrap_or_default();
        (status, [(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE))], body).into_response()
    }
}

/// A query string, refused with a problem document when it does not fit.
pub(super) struct Query<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(query)) => Ok(Self(query)),
            Err(error) => Err(bad_query(&error)),
        }
    }
}

/// A path's parameters, refused with a problem document when they are no text.
pub(super) struct Path<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        match axum::extract::Path::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(values)) => Ok(Self(values)),
            Err(error) => Err(bad_path(&error)),
        }
    }
}

fn bad_path(error: &PathRejection) -> Refusal {
    Problem::new(Code::Malformed, format!("the path cannot be read: {}", error.body_text()))
        .advice("see /v1/openapi.json for the paths there are")
        .into()
}

fn bad_query(error: &QueryRejection) -> Refusal {
    Problem::new(Code::Malformed, format!("the query cannot be read: {}", error.body_text()))
        .advice("see /v1/openapi.json for the parameters of this path")
        .into()
}
