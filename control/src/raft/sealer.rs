//! The log's key, and what is done with it.
//!
//! Each record is sealed with AES-256-GCM under a key of its own, made from the log's key and 24
//! random bytes (HKDF-SHA256): so many random nonces under one key would not be safe. What a record
//! is kept under (its name, or its index) is sealed with it, so that one cannot stand for another.
//!
//! The log's key lies beside the log, readable by its owner alone: it protects copies of the log, not
//! a host that somebody has taken over. Each manager has its own.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use prost::Message;
use rand::Rng as _;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Prk};
use ring::rand::{SecureRandom as _, SystemRandom};
use zeroize::{Zeroize as _, Zeroizing};

use crate::private_file;

use super::record::RecordError;

/// Bytes of the log's key.
const KEY_BYTES: usize = 32;
/// Random bytes that make a record's key: never the same twice.
const SALT_BYTES: usize = 24;
/// What the key file begins with: its version, for keys that will themselves be sealed.
const HEADER: &[u8] = b"swarm raft key 1\n";
/// Binds record keys to their use.
const PURPOSE: &[u8] = b"swarm raft record 1";

/// Seals and opens the records of one log.
pub(super) struct Sealer(Prk);

impl fmt::Debug for Sealer {
    /// Leaves the key out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").finish_non_exhaustive()
    }
}

impl Sealer {
    fn new(key: &[u8; KEY_BYTES]) -> Self {
        Self(Prk::new_less_safe(HKDF_SHA256, key))
    }

    /// For a medium that is no file and dies with its process: it needs no secret, and has no place
    /// beside it where one could be kept.
    pub(super) fn without_secret() -> Self {
        Self::new(&[7; KEY_BYTES])
    }

    /// With the key in the file `path`; none where there is no file.
    pub(super) fn load(path: &Path) -> io::Result<Option<Self>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let length = HEADER.len() + KEY_BYTES;
        let mut bytes = Zeroizing::new(Vec::with_capacity(length + 1));
        file.take(length as u64 + 1).read_to_end(&mut bytes)?;
        let key = bytes.strip_prefix(HEADER);
        let key = key.and_then(|key| <&[u8; KEY_BYTES]>::try_from(key).ok());
        let key = key.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "it does not hold a key of this version",
            )
        })?;
        Ok(Some(Self::new(key)))
    }

    /// With a new key, which is in the file `path`, on disk, when this returns.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        SystemRandom::new()
            .fill(&mut key[..])
            .map_err(|_| io::Error::other("the system gives no randomness"))?;
        private_file::replace(path, &Zeroizing::new([HEADER, &key[..]].concat()))?;
        Ok(Self::new(&key))
    }

    /// The bytes kept for `record` under `name`.
    pub(super) fn seal(&self, name: &[u8], record: &impl Message) -> Vec<u8> {
        let mut salt = [0; SALT_BYTES];
        rand::rng().fill_bytes(&mut salt);
        let mut body = record.encode_to_vec();
        self.record_key(&salt)
            .seal_in_place_append_tag(nonce(), Aad::from(name), &mut body)
            .expect("a record is far below the 64 GiB that can be sealed");
        [&salt[..], &body].concat()
    }

    /// The record that `bytes` under `name` hold.
    pub(super) fn open<R: Message + Default>(
        &self,
        name: &[u8],
        bytes: &[u8],
    ) -> Result<R, RecordError> {
        let (salt, sealed) = bytes.split_first_chunk().ok_or(RecordError::Sealed)?;
        let mut body = sealed.to_vec();
        let opened = self
            .record_key(salt)
            .open_in_place(nonce(), Aad::from(name), &mut body)
            .map_err(|_| RecordError::Sealed)?;
        let record = R::decode(&*opened).map_err(RecordError::Decode);
        body.zeroize();
        record
    }

    fn record_key(&self, salt: &[u8; SALT_BYTES]) -> LessSafeKey {
        let info = [PURPOSE, &salt[..]];
        let made = self.0.expand(&info, &AES_256_GCM);
        let made = made.expect("a key of 32 bytes is as long as one can be made");
        LessSafeKey::new(UnboundKey::from(made))
    }
}

/// Each key seals one record.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::super::record::EntryRecord;
    use super::*;

    proptest! {
        #[test]
        fn a_damaged_record_is_seen(
            term: u64,
            data: Vec<u8>,
            at: prop::sample::Index,
            flip in 1..=255u8,
        ) {
            let sealer = Sealer::without_secret();
            let record = EntryRecord { term, data: data.into(), ..EntryRecord::default() };
            let mut bytes = sealer.seal(b"name", &record);
            prop_assert_eq!(sealer.open(b"name", &bytes), Ok(record.clone()));
            prop_assert_ne!(&sealer.seal(b"name", &record), &bytes, "sealed alike twice");
            let sealed = Err(RecordError::Sealed);
            prop_assert_eq!(&sealer.open::<EntryRecord>(b"nane", &bytes), &sealed);
            let other = Sealer::new(&[8; KEY_BYTES]);
            prop_assert_eq!(&other.open::<EntryRecord>(b"name", &bytes), &sealed);
            let at = at.index(bytes.len());
            prop_assert_eq!(&sealer.open::<EntryRecord>(b"name", &bytes[..at]), &sealed);
            bytes[at] ^= flip;
            prop_assert_eq!(&sealer.open::<EntryRecord>(b"name", &bytes), &sealed);
        }
    }

    #[test]
    fn the_key_is_kept_for_its_owner_alone() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("raft.key");
        assert!(Sealer::load(&path).unwrap().is_none());
        fs::write(dir.path().join("raft.new"), "of an interrupted write").unwrap();
        let made = Sealer::create(&path).unwrap();
        let record = EntryRecord::default();
        let bytes = made.seal(b"name", &record);
        let loaded = Sealer::load(&path).unwrap().unwrap();
        assert_eq!(loaded.open(b"name", &bytes), Ok(record));
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(format!("{made:?}"), "Sealer { .. }");

        let kept = fs::read(&path).unwrap();
        for damaged in [
            &b""[..],
            &kept[..kept.len() - 1],
            &kept[1..],
            &[&kept[..], b"x"].concat(),
        ] {
            fs::write(&path, damaged).unwrap();
            assert!(Sealer::load(&path).is_err());
        }
        let other = Sealer::create(&dir.path().join("other.key")).unwrap();
        assert!(
            other.open::<EntryRecord>(b"name", &bytes).is_err(),
            "keys differ"
        );
    }
}
