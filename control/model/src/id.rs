//! Identifiers. Swarm's are 25 lower-case base-36 characters, about 129 random bits, never reused
//! (swarmkit `identity/randomid.go`).

use std::fmt;
use std::str::FromStr;

use rand::RngExt as _;

/// Characters in an identifier.
pub const ID_LEN: usize = 25;

pub(crate) const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// Text that is no identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} id {text:?} is not {ID_LEN} characters of a-z and 0-9")]
pub struct InvalidId {
    kind: &'static str,
    text: String,
}

/// Draws `len` base-36 characters from `rng`.
pub fn random_base36(rng: &mut impl rand::Rng, len: usize) -> String {
    (0..len)
        .map(|_| char::from(DIGITS[rng.random_range(0..DIGITS.len())]))
        .collect()
}

fn parse(kind: &'static str, text: &str) -> Result<[u8; ID_LEN], InvalidId> {
    let valid = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    match text.as_bytes().try_into() {
        Ok(id) if text.as_bytes().iter().all(valid) => Ok(id),
        // The text may come from outside and be of any length: the message stays bounded.
        _ => Err(InvalidId {
            kind,
            text: text.chars().take(2 * ID_LEN).collect(),
        }),
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        // In place: a state is copied with all its ids, tens of thousands of them.
        pub struct $name([u8; ID_LEN]);

        impl $name {
            /// A new identifier drawn from `rng`.
            pub fn random(rng: &mut impl rand::Rng) -> Self {
                Self([(); ID_LEN].map(|()| DIGITS[rng.random_range(0..DIGITS.len())]))
            }

            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                // Nothing but digits and letters ever gets in.
                std::str::from_utf8(&self.0).unwrap_or_default()
            }

            /// The first 12 characters, as lists and interface names show it.
            pub fn short(&self) -> &str {
                &self.as_str()[..12]
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                parse($kind, text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                parse($kind, &text).map(Self)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.as_str().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.as_str())
            }
        }
    };
}

id!(
    /// A swarm; the O of every certificate in it.
    ClusterId,
    "cluster"
);
id!(
    /// A node; the CN of its certificate for as long as it is in the swarm.
    NodeId,
    "node"
);
id!(
    /// A service.
    ServiceId,
    "service"
);
id!(
    /// A task: one attempt at running one slot of a service.
    TaskId,
    "task"
);
id!(
    /// A network.
    NetworkId,
    "network"
);
id!(
    /// One session of an agent with a dispatcher.
    SessionId,
    "session"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_parse_and_differ() {
        let mut rng = rand::rng();
        let first = NodeId::random(&mut rng);
        let second = NodeId::random(&mut rng);
        assert_ne!(first, second);
        assert_eq!(first.as_str().parse::<NodeId>(), Ok(first.clone()));
        assert_eq!(first.short().len(), 12);
    }

    #[test]
    fn other_text_is_refused() {
        for text in [
            "",
            "abc",
            "ABCDEFGHIJKLMNOPQRSTUVWXY",
            "aaaaaaaaaaaaaaaaaaaaaaaa-",
            "a/../",
        ] {
            assert!(text.parse::<TaskId>().is_err(), "{text}");
        }
    }
}
