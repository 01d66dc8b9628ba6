//! Join tokens: `SWMTKN-1-<digest>-<secret>` (swarmkit `ca/config.go`, format 1).
//!
//! The digest lets a joiner tell the swarm's root certificate from an impostor's before it trusts
//! anything else; the secret lets the swarm tell whom it admits, and as what.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use crate::Secret;
use crate::id::DIGITS;

/// Characters of the digest: a SHA-256 as one base-36 number.
const DIGEST_LEN: usize = 50;

/// Characters of the secret: about 129 random bits in base 36.
pub const JOIN_SECRET_LEN: usize = 25;

const PREFIX: &str = "SWMTKN-1-";

/// What lets a host into a swarm.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    digest: String,
    secret: Secret,
}

/// Text that is no join token. The text itself is left out: it may be a secret with one slip in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the join token is not valid: {0}; copy the whole token that `swarmctl swarm join-token \
     worker` prints on a manager"
)]
pub struct InvalidToken(&'static str);

impl JoinToken {
    /// The token of the swarm whose root certificate is `root_ca_pem`, byte for byte as managers
    /// serve it, with `secret` as the cluster object holds it.
    pub fn new(root_ca_pem: &str, secret: &str) -> Self {
        Self {
            digest: root_digest(root_ca_pem),
            secret: secret.to_owned().into(),
        }
    }

    /// Whether `root_ca_pem` is the root certificate that the token was made for.
    pub fn matches_root(&self, root_ca_pem: &str) -> bool {
        self.digest == root_digest(root_ca_pem)
    }

    /// Whether the token carries `secret`, in time that does not depend on where they differ.
    pub fn has_secret(&self, secret: &str) -> bool {
        let (own, other) = (self.secret.as_bytes(), secret.as_bytes());
        if own.len() != other.len() {
            return false;
        }
        // The barrier keeps the optimiser from leaving the loop at the first difference.
        let difference = own
            .iter()
            .zip(other)
            .fold(0, |sum, (a, b)| std::hint::black_box(sum | (a ^ b)));
        difference == 0
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}-{}", self.digest, &*self.secret)
    }
}

impl fmt::Debug for JoinToken {
    /// Leaves the secret out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let rest = text
            .strip_prefix(PREFIX)
            .ok_or(InvalidToken("it does not begin with SWMTKN-1-"))?;
        let (digest, secret) = rest
            .split_once('-')
            .ok_or(InvalidToken("it is cut short"))?;
        if digest.len() != DIGEST_LEN || secret.len() != JOIN_SECRET_LEN {
            return Err(InvalidToken("it is cut short or has something added"));
        }
        if !rest
            .bytes()
            .all(|byte| byte == b'-' || DIGITS.contains(&byte))
            || secret.contains('-')
        {
            return Err(InvalidToken("it has characters that no token has"));
        }
        Ok(Self {
            digest: digest.to_owned(),
            secret: secret.to_owned().into(),
        })
    }
}

/// SHA-256 of the certificate's PEM text as a base-36 number, padded on the left with zeros.
fn root_digest(root_ca_pem: &str) -> String {
    let mut number: [u8; 32] = Sha256::digest(root_ca_pem.as_bytes()).into();
    let mut digits = [0; DIGEST_LEN];
    for digit in digits.iter_mut().rev() {
        let mut remainder = 0_u32;
        for byte in &mut number {
            let dividend = remainder << 8 | u32::from(*byte);
            // Below 256, since the remainder is below 36.
            *byte = (dividend / 36) as u8;
            remainder = dividend % 36;
        }
        *digit = DIGITS[remainder as usize];
    }
    digits.iter().map(|&digit| char::from(digit)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECRET: &str = "0123456789abcdefghijklmno";

    #[test]
    fn text_and_back() {
        let token = JoinToken::new("root", SECRET);
        let text = token.to_string();
        assert_eq!(text.len(), 9 + 50 + 1 + 25);
        assert_eq!(text.parse(), Ok(token.clone()));
        assert!(token.matches_root("root"));
        assert!(!token.matches_root("root\n"));
        assert!(token.has_secret(SECRET));
        assert!(!token.has_secret("1123456789abcdefghijklmno"));
        assert!(!token.has_secret("0123456789abcdefghijklmnp"));
        assert!(!token.has_secret(""));
        assert!(!format!("{token:?}").contains(SECRET));
    }

    #[test]
    fn digest_is_the_hash_as_a_number() {
        // int(sha256(b"").hexdigest(), 16) in base 36, computed with Python.
        assert_eq!(
            root_digest(""),
            "5oaq0bjhj6un82wg98mgigso5q7qlhc63je4gw7ivixqqhkd3p"
        );
    }

    #[test]
    fn other_text_is_refused() {
        let digest = "a".repeat(DIGEST_LEN);
        for (text, why) in [
            (String::new(), "it does not begin with SWMTKN-1-"),
            (
                format!("SWMTKN-2-0-{digest}-{SECRET}"),
                "it does not begin with SWMTKN-1-",
            ),
            (format!("SWMTKN-1-{digest}"), "it is cut short"),
            (
                format!("SWMTKN-1-{digest}-{}", &SECRET[1..]),
                "it is cut short or has something added",
            ),
            (
                format!("SWMTKN-1-{digest}-{SECRET} "),
                "it is cut short or has something added",
            ),
            (
                format!("SWMTKN-1-{}-{SECRET}", &digest[1..]),
                "it is cut short or has something added",
            ),
            (
                format!("SWMTKN-1-{}-{SECRET}", digest.to_uppercase()),
                "it has characters that no token has",
            ),
            (
                format!("SWMTKN-1-{digest}-{}-", &SECRET[1..]),
                "it has characters that no token has",
            ),
        ] {
            assert_eq!(text.parse::<JoinToken>(), Err(InvalidToken(why)), "{text}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_keeps_the_text(text in "(SWMTKN-1-)?[a-z0-9-]{0,90}\\PC{0,3}") {
            if let Ok(token) = text.parse::<JoinToken>() {
                prop_assert_eq!(token.to_string(), text);
            }
        }
    }
}
