//! Errors in words.

/// An error and what caused it, in one line: the outer one's own words rarely say what happened.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot start")]
    struct Outer(#[source] std::fmt::Error);

    #[test]
    fn an_error_is_told_with_what_caused_it() {
        let inner = std::fmt::Error;
        assert_eq!(chain(&Outer(inner)), format!("cannot start: {inner}"));
        assert_eq!(chain(&inner), inner.to_string());
    }
}
