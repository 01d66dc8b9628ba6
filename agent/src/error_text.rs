//! Errors as one line for a person.

/// An error with its causes, each after a colon; what a cause repeats is said once.
pub(crate) fn error_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn causes_follow_once() {
        let inner = std::io::Error::other("disk on fire");
        let same = std::io::Error::other(inner);
        assert_eq!(super::error_text(&same), "disk on fire");
    }
}
