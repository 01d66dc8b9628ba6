//! What the log's key does: it seals the records, and what else of this manager lies on disk.
//!
//! What a record is kept under (its name, or its index) is sealed with it, so that one cannot stand for
//! another.

use std::fmt;

use prost::Message;

use super::key_file::LogKey;
use super::record::RecordError;
use crate::seal::Seal;

/// Binds record keys to their use.
const RECORDS: &[u8] = b"swarm raft record 1";
/// Binds the keys of other files to their use.
const FILES: &[u8] = b"swarm manager file 1";

/// Seals and opens the records of one log.
pub(super) struct Sealer {
    records: Seal,
    files: Seal,
}

impl fmt::Debug for Sealer {
    /// Leaves the key out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").finish_non_exhaustive()
    }
}

impl Sealer {
    pub(super) fn new(key: &LogKey) -> Self {
        Self {
            records: Seal::new(key.as_bytes(), RECORDS),
            files: Seal::new(key.as_bytes(), FILES),
        }
    }

    /// For a medium that is no file and dies with its process: it needs no secret, and has no place
    /// beside it where one could be kept.
    pub(super) fn without_secret() -> Self {
        Self::new(&LogKey::new([7; 32]))
    }

    /// What seals this manager's other files.
    pub(super) fn files(&self) -> &Seal {
        &self.files
    }

    /// The bytes kept for `record` under `name`.
    pub(super) fn seal(&self, name: &[u8], record: &impl Message) -> Vec<u8> {
        self.records.seal(name, record.encode_to_vec())
    }

    /// The record that `bytes` under `name` hold.
    pub(super) fn open<R: Message + Default>(
        &self,
        name: &[u8],
        bytes: &[u8],
    ) -> Result<R, RecordError> {
        let opened = self.records.open(name, bytes);
        let opened = opened.map_err(|_| RecordError::Sealed)?;
        R::decode(&opened[..]).map_err(RecordError::Decode)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
            let other = Sealer::new(&LogKey::new([8; 32]));
            prop_assert_eq!(&other.open::<EntryRecord>(b"name", &bytes), &sealed);
            let at = at.index(bytes.len());
            prop_assert_eq!(&sealer.open::<EntryRecord>(b"name", &bytes[..at]), &sealed);
            bytes[at] ^= flip;
            prop_assert_eq!(&sealer.open::<EntryRecord>(b"name", &bytes), &sealed);
        }
    }
}
