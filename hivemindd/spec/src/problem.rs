//! Problem documents (RFC 9457): how every refusal looks.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The media type of a problem document.
pub const MEDIA_TYPE: &str = "application/problem+json";

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal, $status:literal, $title:literal;)*) => {
        /// What kind of problem. The text form is stable: programs may rely on it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
        pub enum Code {
            $($(#[doc = $doc])+ #[serde(rename = $text)] $name,)*
        }

        impl Code {
            /// Every code there is.
            pub const ALL: &'static [Code] = &[$(Code::$name,)*];

            /// The stable text form.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $text,)* }
            }

            /// The HTTP status it is answered with.
            pub fn status(self) -> u16 {
                match self { $(Code::$name => $status,)* }
            }

            /// A short description, the same for every occurrence.
            pub fn title(self) -> &'static str {
                match self { $(Code::$name => $title,)* }
            }
        }
    };
}

codes! {
    /// The request is not HTTP, JSON or a query this API understands.
    Malformed = "malformed", 400, "The request is malformed";
    /// The body is over the limit.
    TooLarge = "too-large", 413, "The request is too large";
    /// The body did not come to its end in time.
    TooSlow = "too-slow", 408, "The request took too long";
    /// The body has another media type than the endpoint takes.
    UnsupportedMediaType = "unsupported-media-type", 415, "The media type is not supported";
    /// The request or the envelope carries no signature.
    Unsigned = "unsigned", 401, "A signature is required";
    /// The signature does not verify, or its key is not known.
    BadSignature = "bad-signature", 401, "The signature is not valid";
    /// The request was signed too long ago or in the future; compare clocks.
    Stale = "stale-request", 401, "The request's signature is stale";
    /// The same signed request came before.
    Replayed = "replayed-request", 401, "The request was seen before";
    /// The key is known but may not do this.
    Forbidden = "forbidden", 403, "The key may not do this";
    /// The workload asks for more of its machines than its namespace allows.
    NotAllowed = "not-allowed", 403, "The namespace does not allow this";
    /// There is no such document, node, replica or path.
    NotFound = "not-found", 404, "There is no such thing";
    /// The path exists, the method does not.
    MethodNotAllowed = "method-not-allowed", 405, "The method is not allowed here";
    /// The document is not valid.
    InvalidDocument = "invalid-document", 422, "The document is not valid";
    /// A newer version is current.
    Conflict = "conflict", 409, "Another version is current";
    /// Too many requests are under way; try again.
    Busy = "busy", 429, "Too many requests are under way";
    /// The store is full or failed; the node's log says more.
    Storage = "storage", 507, "The change could not be stored";
    /// A command cannot be run in its container: it is not there, or the container is not.
    NotStarted = "not-started", 409, "The command does not start";
    /// An image that is given is not as it should be, or its node cannot keep it.
    NotTaken = "not-taken", 409, "The image is not taken";
    /// The node concerned cannot be reached.
    Unreachable = "unreachable", 502, "The node cannot be reached";
    /// The node is about to stop or to start anew; another node, or the same one later, answers.
    Stopping = "stopping", 503, "The node is stopping";
    /// A fault of the node; its log says more.
    Internal = "internal", 500, "The node failed";
}

/// The longest detail, characters: it may quote what a client sent, which may be a megabyte.
const MAX_DETAIL_CHARS: usize = 2000;

/// A problem document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[error("{detail}")]
pub struct Problem {
    /// A URI for the kind of problem: `urn:hivemind:problem:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// The stable code.
    pub code: Code,
    /// The code's short description.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong in this case.
    pub detail: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub advice: String,
    /// Where, as a JSON pointer (RFC 6901) into the document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pointer: Option<String>,
    /// The server's clock in milliseconds since 1970, when the time of the request was the
    /// problem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_time_ms: Option<u64>,
}

impl Problem {
    /// A problem with its detail; add what else is known with the other methods.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        let mut detail = detail.into();
        if let Some((end, _)) = detail.char_indices().nth(MAX_DETAIL_CHARS) {
            detail.truncate(end);
            detail.push('…');
        }
        Self {
            kind: format!("urn:hivemind:problem:{}", code.as_str()),
            code,
            title: code.title().to_owned(),
            status: code.status(),
            detail,
            advice: String::new(),
            pointer: None,
            server_time_ms: None,
        }
    }

    /// Adds what to do next.
    pub fn advice(mut self, advice: impl Into<String>) -> Self {
        self.advice = advice.into();
        self
    }

    /// Adds the place in the document.
    pub fn at(mut self, pointer: impl Into<String>) -> Self {
        self.pointer = Some(pointer.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_written_as_the_standard_and_the_rest_of_the_api_do() {
        let mut problem = Problem::new(Code::Stale, "late").at("/a").advice("hurry");
        problem.server_time_ms = Some(7);
        let json = serde_json::to_value(&problem).unwrap();
        assert_eq!(json["type"], "urn:hivemind:problem:stale-request");
        assert_eq!(json["serverTimeMs"], 7);
        assert_eq!(serde_json::from_value::<Problem>(json).unwrap(), problem);
    }

    #[test]
    fn a_detail_quotes_no_megabytes() {
        let problem = Problem::new(Code::Malformed, "é".repeat(1 << 20));
        assert_eq!(problem.detail.chars().count(), MAX_DETAIL_CHARS + 1);
    }
}
