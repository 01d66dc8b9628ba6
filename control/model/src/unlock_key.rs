//! The key that managers of a swarm with autolock are unlocked with: `SWMKEY-1-<key>` (swarmkit
//! `manager/encryption/encryption.go`, format 1), the key being 32 bytes in base 64 without padding.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use zeroize::Zeroizing;

const PREFIX: &str = "SWMKEY-1-";

/// Bytes of a key.
pub const UNLOCK_KEY_BYTES: usize = 32;

/// Opens what managers keep on disk. Never printed but by [`UnlockKey::to_text`]; overwritten in memory
/// when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct UnlockKey(Zeroizing<[u8; UNLOCK_KEY_BYTES]>);

/// Text that is no unlock key. The text itself is left out: it may be a key with one slip in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the unlock key is not valid: {0}; copy the whole key that `swarmctl swarm unlock-key` prints on a \
     manager that runs"
)]
pub struct InvalidUnlockKey(&'static str);

impl UnlockKey {
    /// The key with these bytes.
    pub fn new(bytes: [u8; UNLOCK_KEY_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// A new key drawn from `rng`, whose numbers nobody must be able to guess.
    pub fn random(rng: &mut impl rand::Rng) -> Self {
        let mut bytes = Zeroizing::new([0; UNLOCK_KEY_BYTES]);
        rng.fill_bytes(&mut bytes[..]);
        Self(bytes)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; UNLOCK_KEY_BYTES] {
        &self.0
    }

    /// It as text, for a person to keep.
    pub fn to_text(&self) -> String {
        let digits = Zeroizing::new(STANDARD_NO_PAD.encode(&self.0[..]));
        [PREFIX, digits.as_str()].concat()
    }
}

impl fmt::Debug for UnlockKey {
    /// Leaves the key out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnlockKey(..)")
    }
}

impl FromStr for UnlockKey {
    type Err = InvalidUnlockKey;

    fn from_str(text: &str) -> Result<Self, InvalidUnlockKey> {
        let digits = text
            .strip_prefix(PREFIX)
            .ok_or(InvalidUnlockKey("it does not begin with SWMKEY-1-"))?;
        let wrong = InvalidUnlockKey("it is cut short, has something added, or other characters");
        // Room for what a text of any length gives is not made.
        let mut bytes = Zeroizing::new([0; UNLOCK_KEY_BYTES + 1]);
        match STANDARD_NO_PAD.decode_slice(digits, &mut bytes[..]) {
            Ok(UNLOCK_KEY_BYTES) => {
                let mut key = Zeroizing::new([0; UNLOCK_KEY_BYTES]);
                key.copy_from_slice(&bytes[..UNLOCK_KEY_BYTES]);
                Ok(Self(key))
            }
            _ => Err(wrong),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_and_back() {
        // echo -n 0123456789abcdef0123456789abcdef | base64, without padding.
        let key = UnlockKey::new(*b"0123456789abcdef0123456789abcdef");
        let text = key.to_text();
        assert_eq!(text, "SWMKEY-1-MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY");
        assert_eq!(text.parse(), Ok(key.clone()));
        assert_eq!(format!("{key:?}"), "UnlockKey(..)");
        let mut rng = rand::rng();
        assert_ne!(UnlockKey::random(&mut rng), UnlockKey::random(&mut rng));
    }

    #[test]
    fn other_text_is_refused() {
        let text = UnlockKey::new([7; 32]).to_text();
        let longer = text.clone() + "AAAA";
        let padded = text.clone() + "=";
        let far_longer = text.repeat(1000);
        for other in [
            "",
            "SWMKEY-1-",
            &text[9..],
            &text.replace("-1-", "-2-"),
            &text[..text.len() - 1],
            &longer,
            &padded,
            &far_longer,
            &format!("{text} "),
            &text.to_lowercase(),
        ] {
            assert!(other.parse::<UnlockKey>().is_err(), "{other}");
        }
    }

    proptest! {
        #[test]
        fn every_key_has_one_text(bytes: [u8; 32], at in 9..52_usize, digit in "[A-Za-z0-9+/]") {
            let key = UnlockKey::new(bytes);
            let text = key.to_text();
            prop_assert_eq!(text.len(), 9 + 43);
            prop_assert_eq!(text.parse(), Ok(key.clone()));
            let mut other = text.clone();
            other.replace_range(at..=at, &digit);
            if let Ok(read) = other.parse::<UnlockKey>() {
                prop_assert_eq!(read == key, other == text);
                prop_assert_eq!(read.to_text(), other);
            }
        }

        #[test]
        fn parsing_never_panics_and_keeps_the_text(text in "(SWMKEY-1-)?[A-Za-z0-9+/=]{0,60}\\PC{0,3}") {
            if let Ok(key) = text.parse::<UnlockKey>() {
                prop_assert_eq!(key.to_text(), text);
            }
        }
    }
}
