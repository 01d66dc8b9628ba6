//! Placement constraints: `key OP value`, OP `==` or `!=`, values compared without regard to case
//! as whole strings (swarmkit `manager/constraint/constraint.go`).

use std::collections::BTreeMap;
use std::net::IpAddr;

/// How a value is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
}

/// One parsed constraint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constraint {
    key: String,
    operator: Operator,
    value: String,
}

/// Text that is no constraint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// Neither `==` nor `!=`.
    #[error("constraint {0:?} has no operator: write KEY==VALUE or KEY!=VALUE")]
    NoOperator(String),
    /// A key outside `[a-z_][a-z0-9._-]+`.
    #[error(
        "constraint key {0:?} is not valid: use node.id, node.hostname, node.ip, node.role, \
         node.platform.os, node.platform.arch, node.labels.NAME or engine.labels.NAME"
    )]
    InvalidKey(String),
    /// An empty value or one with other characters.
    #[error("constraint value {0:?} is not valid: use letters, digits and :-_./ between them")]
    InvalidValue(String),
}

/// What constraints look at.
#[derive(Clone, Copy, Debug)]
pub struct NodeView<'a> {
    /// `node.id`
    pub id: &'a str,
    /// `node.hostname`
    pub hostname: &'a str,
    /// `node.ip`
    pub address: Option<IpAddr>,
    /// `node.role`
    pub role: &'a str,
    /// `node.platform.os`
    pub os: &'a str,
    /// `node.platform.arch`
    pub architecture: &'a str,
    /// `node.labels.*`
    pub labels: &'a BTreeMap<String, String>,
    /// `engine.labels.*`
    pub engine_labels: &'a BTreeMap<String, String>,
}

impl Constraint {
    /// Reads one constraint.
    pub fn parse(text: &str) -> Result<Self, ConstraintError> {
        let (operator, (key, value)) = if let Some(parts) = text.split_once("==") {
            (Operator::Equal, parts)
        } else if let Some(parts) = text.split_once("!=") {
            (Operator::NotEqual, parts)
        } else {
            return Err(ConstraintError::NoOperator(text.to_owned()));
        };
        let (key, value) = (key.trim(), value.trim());
        if !valid_key(key) {
            return Err(ConstraintError::InvalidKey(key.to_owned()));
        }
        if !valid_value(value) {
            return Err(ConstraintError::InvalidValue(value.to_owned()));
        }
        Ok(Self {
            key: key.to_owned(),
            operator,
            value: value.to_owned(),
        })
    }

    /// Whether `node` satisfies it. An unknown key is satisfied by no node; a missing label counts
    /// as empty.
    pub fn matches(&self, node: &NodeView<'_>) -> bool {
        let lower = self.key.to_ascii_lowercase();
        if lower == "node.ip" {
            return self.matches_address(node.address);
        }
        let actual = match lower.as_str() {
            "node.id" => node.id,
            "node.hostname" => node.hostname,
            "node.role" => node.role,
            "node.platform.os" => node.os,
            "node.platform.arch" => {
                return self.compare(
                    normal_architecture(node.architecture),
                    normal_architecture(&self.value),
                );
            }
            _ => match label(&lower, &self.key, node) {
                Some(value) => value,
                None => return false,
            },
        };
        self.compare(actual, &self.value)
    }

    fn compare(&self, actual: &str, wanted: &str) -> bool {
        (self.operator == Operator::Equal) == actual.eq_ignore_ascii_case(wanted)
    }

    fn matches_address(&self, address: Option<IpAddr>) -> bool {
        let within = if let Ok(wanted) = self.value.parse::<IpAddr>() {
            address == Some(wanted)
        } else if let Ok(net) = self.value.parse::<ipnet::IpNet>() {
            address.is_some_and(|address| net.contains(&address))
        } else {
            return false;
        };
        (self.operator == Operator::Equal) == within
    }
}

/// Label keys keep their case; only the prefix is compared without it.
fn label<'a>(lower: &str, key: &str, node: &NodeView<'a>) -> Option<&'a str> {
    for (prefix, labels) in [
        ("node.labels.", node.labels),
        ("engine.labels.", node.engine_labels),
    ] {
        if lower.starts_with(prefix) {
            return Some(labels.get(&key[prefix.len()..]).map_or("", String::as_str));
        }
    }
    None
}

fn normal_architecture(name: &str) -> &str {
    match name {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn valid_key(key: &str) -> bool {
    let mut bytes = key.bytes();
    let first = bytes
        .next()
        .is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    first
        && key.len() > 1
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

fn valid_value(value: &str) -> bool {
    let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    edge(value.bytes().next())
        && edge(value.bytes().last())
        && value
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b":-_./*()?+[]\\^$| ".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(text: &str) -> bool {
        let labels = BTreeMap::from([("Zone".to_owned(), "East".to_owned())]);
        let engine_labels = BTreeMap::from([("storage".to_owned(), "ssd".to_owned())]);
        let node = NodeView {
            id: "abc",
            hostname: "h1",
            address: Some(IpAddr::from([10, 0, 0, 7])),
            role: "worker",
            os: "linux",
            architecture: "x86_64",
            labels: &labels,
            engine_labels: &engine_labels,
        };
        Constraint::parse(text).expect(text).matches(&node)
    }

    #[test]
    fn table() {
        for (text, expected) in [
            ("node.role==worker", true),
            ("node.role == Worker", true),
            ("node.role!=worker", false),
            ("node.labels.Zone==east", true),
            ("node.labels.zone==east", false),
            ("node.labels.missing!=x", true),
            ("node.labels.missing==x", false),
            ("engine.labels.storage==ssd", true),
            ("node.ip==10.0.0.0/24", true),
            ("node.ip==10.0.0.7", true),
            ("node.ip!=10.0.1.0/24", true),
            ("node.ip==nonsense", false),
            ("node.platform.arch==amd64", true),
            ("unknown.key==x", false),
            ("unknown.key!=x", false),
        ] {
            assert_eq!(matches(text), expected, "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "node.role",
            "==x",
            "node.role==",
            "no de==x",
            "node.role==-x",
        ] {
            assert!(Constraint::parse(text).is_err(), "{text}");
        }
    }
}
