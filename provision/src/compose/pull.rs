//! When the tag of a service's image becomes a digest.

use super::reader::Reader;
use super::service::Placed;
use super::yaml::Node;
use crate::quantity;

/// When what the tag of an image names is looked up. That is for a push to do: between pushes nothing changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PullPolicy {
    /// At every push, if it can be.
    #[default]
    Unsaid,
    /// At every push, which fails if it cannot be.
    Always,
    /// At the first push with this image.
    Missing,
    /// Never: it was given to a machine.
    Never,
    /// At a push, when it was last looked up so many milliseconds ago.
    Every(u64),
}

/// What `pull_policy` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    Policy(PullPolicy),
    /// As often as `pull_refresh_after` says.
    Refresh,
}

pub(super) fn policy(reader: &Reader<'_>, node: &Node) -> Option<Said> {
    let text = reader.text(node)?;
    let every = |span: &str| {
        let ms = quantity::duration_ms(span).map_err(|why| format!("`{text}`: {why}"));
        let ms = reader.ok(node.mark, ms)?;
        Some(Said::Policy(PullPolicy::Every(ms)))
    };
    let refused = match text.as_str() {
        "always" => return Some(Said::Policy(PullPolicy::Always)),
        "never" => return Some(Said::Policy(PullPolicy::Never)),
        "missing" | "if_not_present" => return Some(Said::Policy(PullPolicy::Missing)),
        "refresh" => return Some(Said::Refresh),
        "daily" => return every("1d"),
        "weekly" => return every("1w"),
        "build" => "is not supported: machines build nothing; build and push the image first",
        other => match other.strip_prefix("every_") {
            Some(span) => return every(span),
            None => {
                "is not one of `always`, `never`, `missing`, `if_not_present`, `daily`, `weekly`, `every_…` and `refresh`"
            }
        },
    };
    reader.fault(node.mark, format!("`{text}` {refused}"));
    None
}

/// What the two keys say together.
pub(super) fn together(reader: &Reader<'_>, policy: Placed<Said>, after_ms: Placed<u64>) -> PullPolicy {
    match (policy, after_ms) {
        (None, None) => PullPolicy::Unsaid,
        (Some((_, Said::Policy(policy))), None) => policy,
        (Some((_, Said::Refresh)), Some((_, ms))) => PullPolicy::Every(ms),
        (Some((mark, Said::Refresh)), None) => {
            reader.fault(mark, "`refresh` needs `pull_refresh_after` beside it, which says how often");
            PullPolicy::Unsaid
        }
        (_, Some((mark, _))) => {
            reader.fault(mark, "goes with `pull_policy: refresh` only");
            PullPolicy::Unsaid
        }
    }
}
