//! The release this node runs, or has from a stick, for peers that take it: nobody has to fetch it from outside twice.

use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use hivemind_spec::id::ReleaseId;
use hivemind_spec::problem::{Code, Problem};
use tokio::sync::Semaphore;

use super::Context;
use super::forward::FromPeer;
use super::refusal::{Path, Refusal};
use crate::release::{MAX_RANGE_BYTES, Part};

/// Pieces read at a time. Each is in memory until it is sent.
const READS_AT_A_TIME: usize = 2;

static READS: Semaphore = Semaphore::const_new(READS_AT_A_TIME);

/// One range of one of the release's files, to peers only.
pub(super) async fn read(
    State(context): State<Context>,
    peer: Option<Extension<FromPeer>>,
    uri: Uri,
    Path((release, part)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let (Some(_), Ok(release), Some(part)) = (peer, release.parse::<ReleaseId>(), Part::named(&part)) else {
        return Err(super::no_such_path(uri).await);
    };
    let range = headers.get(header::RANGE).and_then(|range| range.to_str().ok()).and_then(parse_range);
    let Some((from, bytes)) = range else {
        let text = format!("give one range of at most {MAX_RANGE_BYTES} bytes");
        return Err(Problem::new(Code::Malformed, text).into());
    };
    // It is never closed.
    let place = READS.acquire().await;
    let Context { running, brought, .. } = context;
    let read = tokio::task::spawn_blocking(move || {
        let read = running.read(release, part, from, bytes);
        read.or_else(|error| brought.read(release, part, from, bytes).map_err(|_| error))
    })
    .await;
    drop(place);
    match read {
        Ok(Ok(content)) => Ok((StatusCode::PARTIAL_CONTENT, Bytes::from(content)).into_response()),
        Ok(Err(error)) => Err(Problem::new(Code::NotFound, error.to_string()).into()),
        Err(error) => Err(Problem::new(Code::Internal, error.to_string()).into()),
    }
}

/// First byte and count of `bytes=FIRST-LAST` (RFC 9110, section 14.1.2).
fn parse_range(text: &str) -> Option<(u64, usize)> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
    let bytes = last.checked_sub(first)?.checked_add(1)?;
    (bytes <= MAX_RANGE_BYTES).then(|| Some((first, usize::try_from(bytes).ok()?)))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_small_range_is_read() {
        assert_eq!(parse_range("bytes=5-9"), Some((5, 5)));
        assert_eq!(parse_range("bytes=0-0"), Some((0, 1)));
        let large = format!("bytes=0-{MAX_RANGE_BYTES}");
        for bad in ["bytes=5-4", "bytes=5-", "bytes=-5", "bytes=0-1,3-4", "octets=0-1", "", large.as_str()] {
            assert_eq!(parse_range(bad), None, "{bad}");
        }
        assert_eq!(parse_range(&format!("bytes=0-{}", u64::MAX)), None);
    }
}
