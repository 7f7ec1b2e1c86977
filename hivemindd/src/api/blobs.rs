//! Blobs of images for other nodes: what one has fetched, the others need not ask the registry for.

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use hivemind_spec::id::Digest;
use hivemind_spec::problem::{Code, Problem};

use super::Context;
use super::forward::FromPeer;
use super::refusal::{Path, Refusal};
use crate::runtime::{BlobHere, DONE_BYTES};

/// How a blob is here, to peers only.
pub(super) async fn look(
    State(context): State<Context>,
    peer: Option<Extension<FromPeer>>,
    uri: Uri,
    Path(digest): Path<String>,
) -> Result<Response, Refusal> {
    let (Some(_), true) = (peer, is_digest(&digest)) else { return Err(super::no_such_path(uri).await) };
    Ok(match context.runtime.blob(&digest).await {
        BlobHere::Whole { .. } => StatusCode::OK.into_response(),
        BlobHere::Busy => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        BlobHere::Coming { done_bytes } => {
            (StatusCode::ACCEPTED, [(DONE_BYTES, done_bytes.to_string())]).into_response()
        }
        BlobHere::Lacking => StatusCode::NOT_FOUND.into_response(),
    })
}

/// A blob from the first byte of a range to its end, to peers only.
pub(super) async fn read(
    State(context): State<Context>,
    peer: Option<Extension<FromPeer>>,
    uri: Uri,
    Path(digest): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let (Some(_), true) = (peer, is_digest(&digest)) else { return Err(super::no_such_path(uri).await) };
    let range = headers.get(header::RANGE).and_then(|range| range.to_str().ok()).and_then(first_byte);
    let Some(from) = range else {
        return Err(Problem::new(Code::Malformed, "give a range from a byte to the end").into());
    };
    let bytes = match context.runtime.blob(&digest).await {
        BlobHere::Whole { bytes } if from <= bytes => bytes,
        BlobHere::Busy => return Ok(StatusCode::SERVICE_UNAVAILABLE.into_response()),
        _ => return Ok(StatusCode::NOT_FOUND.into_response()),
    };
    match context.runtime.send_blob(&digest, from).await {
        Ok(Some(data)) => {
            let length = [(header::CONTENT_LENGTH, bytes - from)];
            Ok((StatusCode::PARTIAL_CONTENT, length, Body::from_stream(data)).into_response())
        }
        Ok(None) => Ok(StatusCode::SERVICE_UNAVAILABLE.into_response()),
        Err(error) => Err(Problem::new(Code::Internal, error.text).into()),
    }
}

fn is_digest(text: &str) -> bool {
    Digest::from_oci(text).is_some()
}

/// FIRST of `bytes=FIRST-` (RFC 9110, section 14.1.2).
fn first_byte(range: &str) -> Option<u64> {
    range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_digests_are_looked_for() {
        assert!(is_digest(&format!("sha256:{}", Digest::of(b"layer"))));
        for bad in ["", "sha256:", "sha256:..", "sha512:00", "sha256:zz"] {
            assert!(!is_digest(bad), "{bad}");
        }
    }

    #[test]
    fn a_range_goes_from_a_byte_to_the_end() {
        assert_eq!(first_byte("bytes=0-"), Some(0));
        assert_eq!(first_byte("bytes=4096-"), Some(4096));
        for bad in ["bytes=-5", "bytes=1-2", "bytes=", "octets=0-", "bytes=0-,4-"] {
            assert_eq!(first_byte(bad), None, "{bad}");
        }
    }
}
