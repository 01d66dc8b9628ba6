//! Bytes that can only be read with a key, and in which every change shows.
//!
//! Each piece is sealed with AES-256-GCM under a key of its own, made from the key, what it is for and
//! 24 random bytes (HKDF-SHA256): so many random nonces under one key would not be safe. What a piece is
//! kept under is sealed with it, so that one cannot stand for another.

use std::fmt;

use rand::Rng as _;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Prk};
use zeroize::Zeroizing;

/// Bytes of a key.
pub(crate) const KEY_BYTES: usize = 32;
/// Random bytes that make a piece's key: never the same twice.
const SALT_BYTES: usize = 24;

/// Seals and opens bytes with one key, for one purpose.
#[derive(Clone)]
pub(crate) struct Seal {
    key: Prk,
    purpose: &'static [u8],
}

impl fmt::Debug for Seal {
    /// Leaves the key out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seal").finish_non_exhaustive()
    }
}

/// Bytes that were not sealed with this key, for this purpose and name, or were changed since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotOpened;

impl Seal {
    /// With `key`. What is sealed for one `purpose` cannot be opened for another.
    pub(crate) fn new(key: &[u8; KEY_BYTES], purpose: &'static [u8]) -> Self {
        Self {
            key: Prk::new_less_safe(HKDF_SHA256, key),
            purpose,
        }
    }

    /// What is kept for `bytes` under `name`: 40 bytes more.
    pub(crate) fn seal(&self, name: &[u8], mut bytes: Vec<u8>) -> Vec<u8> {
        let mut salt = [0; SALT_BYTES];
        rand::rng().fill_bytes(&mut salt);
        self.piece_key(&salt)
            .seal_in_place_append_tag(nonce(), Aad::from(name), &mut bytes)
            .expect("nothing here comes near the 64 GiB that can be sealed");
        [&salt[..], &bytes].concat()
    }

    /// The bytes that `sealed` under `name` holds.
    pub(crate) fn open(&self, name: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, NotOpened> {
        let (salt, sealed) = sealed.split_first_chunk().ok_or(NotOpened)?;
        let mut bytes = Zeroizing::new(sealed.to_vec());
        let opened = self
            .piece_key(salt)
            .open_in_place(nonce(), Aad::from(name), &mut bytes)
            .map_err(|_| NotOpened)?
            .len();
        bytes.truncate(opened);
        Ok(bytes)
    }

    fn piece_key(&self, salt: &[u8; SALT_BYTES]) -> LessSafeKey {
        let info = [self.purpose, &salt[..]];
        let made = self.key.expand(&info, &AES_256_GCM);
        let made = made.expect("a key of 32 bytes is as long as one can be made");
        LessSafeKey::new(UnboundKey::from(made))
    }
}

/// Each key seals one piece.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}
