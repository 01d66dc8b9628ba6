//! Which labels a node may be given.

use crate::NodeSpec;

/// Longest key: what a constraint can still name at a glance.
const MAX_KEY_LEN: usize = 128;

/// Longest value, and most labels of a node: every manager keeps them, and the scheduler reads them.
const MAX_VALUE_LEN: usize = 1024;
const MAX_LABELS: usize = 128;

/// What is wrong with a node's spec.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNode {
    /// A key that no constraint could name.
    #[error(
        "label key {0:?} is not valid: use up to {MAX_KEY_LEN} letters, digits, `.`, `_` and `-`, as \
         constraints do (node.labels.KEY==VALUE)"
    )]
    LabelKey(String),
    /// A value that is too long, or that no terminal could show.
    #[error(
        "the value of label {0} is not valid: use up to {MAX_VALUE_LEN} characters without control \
         characters"
    )]
    LabelValue(String),
    /// Too many.
    #[error("a node may have {MAX_LABELS} labels: remove some with --label-rm")]
    TooManyLabels,
}

/// Whether `spec` can be accepted as it stands.
pub fn validate_node(spec: &NodeSpec) -> Result<(), InvalidNode> {
    if spec.labels.len() > MAX_LABELS {
        return Err(InvalidNode::TooManyLabels);
    }
    for (key, value) in &spec.labels {
        if !is_key(key) {
            return Err(InvalidNode::LabelKey(key.chars().take(80).collect()));
        }
        if value.chars().count() > MAX_VALUE_LEN || value.chars().any(char::is_control) {
            return Err(InvalidNode::LabelValue(key.clone()));
        }
    }
    Ok(())
}

fn is_key(key: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=MAX_KEY_LEN).contains(&key.len()) && key.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Constraint;

    fn labelled(key: &str, value: &str) -> NodeSpec {
        NodeSpec {
            labels: [(key.to_owned(), value.to_owned())].into(),
            ..NodeSpec::default()
        }
    }

    #[test]
    fn keys_are_what_constraints_can_name() {
        for (key, valid) in [
            ("zone", true),
            ("org.example.zone-1_a", true),
            ("1", true),
            ("", false),
            ("a b", false),
            ("a=b", false),
            ("a/b", false),
            ("zöne", false),
            (&"k".repeat(128), true),
            (&"k".repeat(129), false),
        ] {
            assert_eq!(validate_node(&labelled(key, "x")).is_ok(), valid, "{key:?}");
            let constraint = format!("node.labels.{key}==x");
            assert!(!valid || Constraint::parse(&constraint).is_ok(), "{key:?}");
        }
    }

    #[test]
    fn values_and_their_number_are_bounded() {
        for (value, valid) in [
            ("", true),
            ("Zürich 1", true),
            ("a\nb", false),
            (&"v".repeat(1024), true),
            (&"v".repeat(1025), false),
        ] {
            assert_eq!(validate_node(&labelled("k", value)).is_ok(), valid);
        }
        let mut spec = NodeSpec::default();
        for number in 0..128 {
            spec.labels.insert(number.to_string(), String::new());
        }
        assert_eq!(validate_node(&spec), Ok(()));
        spec.labels.insert("more".to_owned(), String::new());
        assert_eq!(validate_node(&spec), Err(InvalidNode::TooManyLabels));
    }
}
