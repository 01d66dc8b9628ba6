//! A medium that remembers what was synced, and can fail.

use std::io;
use std::sync::{Arc, Mutex};

use redb::StorageBackend;

/// A medium in memory; clones are the same one.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk(Arc<Mutex<Content>>);

#[derive(Debug, Default)]
struct Content {
    /// What is read: everything written.
    seen: Vec<u8>,
    /// What a crash cannot take away.
    synced: Vec<u8>,
    since_sync: Vec<Operation>,
    /// Operations that succeed before all fail.
    budget: Option<usize>,
    syncs: usize,
}

#[derive(Clone, Debug)]
enum Operation {
    Resize(usize),
    Write(usize, Vec<u8>),
}

impl Operation {
    fn make(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Resize(length) => bytes.resize(*length, 0),
            Self::Write(at, data) => {
                let end = at + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*at..end].copy_from_slice(data);
            }
        }
    }
}

impl Disk {
    /// Lets `operations` more writes and syncs succeed, then none.
    pub(super) fn fail_after(&self, operations: usize) {
        self.0.lock().unwrap().budget = Some(operations);
    }

    /// How often it was synced.
    pub(super) fn syncs(&self) -> usize {
        self.0.lock().unwrap().syncs
    }

    /// The medium after a loss of power: what was synced, and of the writes since whichever
    /// `survives` picks.
    pub(super) fn after_crash(&self, mut survives: impl FnMut() -> bool) -> Self {
        let content = self.0.lock().unwrap();
        let mut synced = content.synced.clone();
        for operation in &content.since_sync {
            if survives() {
                operation.make(&mut synced);
            }
        }
        Self(Arc::new(Mutex::new(Content {
            seen: synced.clone(),
            synced,
            ..Content::default()
        })))
    }
}

impl Content {
    fn spend(&mut self) -> io::Result<()> {
        match &mut self.budget {
            None => Ok(()),
            Some(0) => Err(io::Error::other("the disk failed")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    fn make(&mut self, operation: Operation) -> io::Result<()> {
        // One that fails may have been made all the same, as after a loss of power.
        let outcome = self.spend();
        if outcome.is_ok() {
            operation.make(&mut self.seen);
        }
        self.since_sync.push(operation);
        outcome
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        let content = self.0.lock().unwrap();
        let found = content.seen.get(at..at + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let length = usize::try_from(len).unwrap();
        self.0.lock().unwrap().make(Operation::Resize(length))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut content = self.0.lock().unwrap();
        content.spend()?;
        content.syncs += 1;
        let Content {
            synced, since_sync, ..
        } = &mut *content;
        for operation in since_sync.drain(..) {
            operation.make(synced);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        let mut content = self.0.lock().unwrap();
        content.make(Operation::Write(at, data.to_vec()))
    }
}
