//! The log on disk: one redb file. Each write is one transaction, on disk when it returns.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use prost::Message;
use raft::eraftpb::{Entry, HardState};
use redb::{Database, DatabaseError, ReadableDatabase as _, TableDefinition};
use redb::{ReadOnlyTable, ReadTransaction, Table, TableError, WriteTransaction};
use swarm_model::UnlockKey;

use super::core::Write;
use super::error::Damage;
use super::key_file::{self, KeptKey, KeyFile, SealedKey};
use super::record::{
    EntryRecord, HardStateRecord, IdentityRecord, PositionRecord, RecordError, SnapshotRecord,
    read_clear,
};
use super::sealer::Sealer;
use crate::seal::Seal;

/// The file's name within its directory.
const FILE_NAME: &str = "raft.redb";
/// The name of the file beside it that holds its key.
const KEY_FILE_NAME: &str = "raft.key";
/// What this version writes, and the newest it reads.
///
/// | format | records |
/// |---|---|
/// | 1 | in the clear, with a checksum |
/// | 2 | sealed |
const FORMAT: u64 = 2;
/// The last format with records in the clear. What a log of it held is sealed when it is opened;
/// redb may leave the old pages in the file until it uses them again.
const CLEAR_FORMAT: u64 = 1;
/// redb's page cache. Nothing is read after the start, so it only has to hold what one write
/// touches; redb's own default is 1 GiB.
const CACHE_BYTES: usize = 8 * 1024 * 1024;

/// The format alone, so that every version can read every other's.
const FORMAT_TABLE: TableDefinition<'_, (), u64> = TableDefinition::new("format");
/// Single records by name.
const META_TABLE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// [`EntryRecord`]s by index.
const ENTRY_TABLE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("entry");

const IDENTITY: &str = "identity";
const HARD_STATE: &str = "hard state";
const SNAPSHOT: &str = "snapshot";
const COMPACTED: &str = "compacted";

/// What goes wrong with the log file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    /// There is a log where a new one was to be made.
    #[error("{path} holds a log already: this node is in a swarm")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// There is no log, or the making of one was cut short.
    #[error("{path} holds no log: this node is no manager of a swarm")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// Another process has it open, perhaps a manager that is still ending.
    #[error("{path} is open in another process: wait for the other manager to end, or end it")]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// A later version wrote it.
    #[error("{path} has format {found}, newer than {FORMAT}, the newest known here: upgrade")]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// The log is there and its key is not.
    #[error(
        "{path}, the key of the swarm's log, is missing: put back a copy of it, or leave the swarm by \
         force and join it again (make a new one if this was its only manager)"
    )]
    NoKey {
        /// The key's file.
        path: PathBuf,
    },
    /// Autolock is on, and nobody has given the unlock key.
    #[error("{path} is sealed: unlock this manager with `swarmctl swarm unlock`")]
    NeedsUnlock {
        /// The key's file.
        path: PathBuf,
    },
    /// It is not what was written.
    #[error(
        "{path} is damaged: put back a copy of it, or leave the swarm by force and join it again \
         (make a new one if this was its only manager)"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How that shows.
        #[source]
        source: Damage,
    },
    /// The system refused.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: Box<redb::Error>,
    },
}

/// The open log file. Nobody else can open it meanwhile.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    database: Database,
    sealer: Sealer,
    /// None on a medium that is no file.
    kept: Option<KeptKey>,
}

/// Everything a log held when it was opened.
#[derive(Debug, PartialEq)]
pub(super) struct Recovered {
    pub(super) raft_id: u64,
    pub(super) hard_state: HardState,
    pub(super) snapshot: SnapshotRecord,
    /// The place before the first entry.
    pub(super) compacted: PositionRecord,
    /// Without a gap.
    pub(super) entries: Vec<Entry>,
}

impl Log {
    /// Opens the file in `dir`, which is made where it is missing, for its owner only: the log
    /// holds the swarm's keys. Makes an empty file where there is none, and a key for it. `unlock` opens
    /// a key that is sealed.
    pub(super) fn open_or_create(dir: &Path, unlock: Option<&UnlockKey>) -> Result<Self, LogError> {
        let created = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        created.map_err(|source| cannot("make", dir, source))?;
        let path = dir.join(FILE_NAME);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|source| cannot("open", &path, source))?;
        let opened = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create_file(file);
        let database = opened.map_err(|source| open_error(&path, source))?;
        // The file's name must outlive a crash as well.
        let synced = File::open(dir).and_then(|dir| dir.sync_all());
        synced.map_err(|source| cannot("write", dir, source))?;
        let format = format(&database).map_err(|source| read_error(&path, source))?;
        let key_path = dir.join(KEY_FILE_NAME);
        let kept = match key_file::read(&key_path) {
            Ok(Some(KeyFile::Open(kept))) => kept,
            Ok(Some(KeyFile::Sealed(sealed))) => {
                let kept = unlock.and_then(|unlock| sealed.open(unlock));
                kept.ok_or(LogError::NeedsUnlock { path: key_path })?
            }
            Ok(None) if format.is_none_or(|format| format <= CLEAR_FORMAT) => {
                KeptKey::create(&key_path).map_err(|source| cannot("write", &key_path, source))?
            }
            Ok(None) => return Err(LogError::NoKey { path: key_path }),
            Err(source) => return Err(classify("read", &key_path, source.into())),
        };
        Self::with_sealer(path, database, Sealer::new(kept.key()), Some(kept))
    }

    /// The log's key in `dir`, if it is sealed.
    pub(super) fn sealed_key(dir: &Path) -> Result<Option<SealedKey>, LogError> {
        let path = dir.join(KEY_FILE_NAME);
        match key_file::read(&path) {
            Ok(Some(KeyFile::Sealed(sealed))) => Ok(Some(sealed)),
            Ok(_) => Ok(None),
            Err(source) => Err(classify("read", &path, source.into())),
        }
    }

    /// How the log's key is kept.
    pub(super) fn kept_key(&self) -> Option<&KeptKey> {
        self.kept.as_ref()
    }

    /// What seals this manager's other files.
    pub(super) fn file_seal(&self) -> &Seal {
        self.sealer.files()
    }

    /// Opens the file in `dir`; refuses where there is none.
    pub(super) fn open(dir: &Path, unlock: Option<&UnlockKey>) -> Result<Self, LogError> {
        let path = dir.join(FILE_NAME);
        match path.try_exists() {
            Ok(true) => Self::open_or_create(dir, unlock),
            Ok(false) => Err(LogError::Missing { path }),
            Err(source) => Err(cannot("open", &path, source)),
        }
    }

    /// A log on another medium than a file.
    pub(super) fn with_backend(backend: impl redb::StorageBackend) -> Result<Self, LogError> {
        let path = PathBuf::from("test medium");
        let database = Database::builder()
            .create_with_backend(backend)
            .map_err(|source| open_error(&path, source))?;
        Self::with_sealer(path, database, Sealer::without_secret(), None)
    }

    /// Brings what an older version wrote to this version's format.
    fn with_sealer(
        path: PathBuf,
        database: Database,
        sealer: Sealer,
        kept: Option<KeptKey>,
    ) -> Result<Self, LogError> {
        let log = Self {
            path,
            database,
            sealer,
            kept,
        };
        if log.format()? == Some(CLEAR_FORMAT) {
            log.seal_all()?;
        }
        Ok(log)
    }

    /// Seals what is in the clear, in one transaction.
    fn seal_all(&self) -> Result<(), LogError> {
        let read = || -> Result<_, ReadError> {
            let transaction = self.database.begin_read()?;
            let meta = transaction.open_table(META_TABLE)?;
            Ok((
                get_clear::<IdentityRecord>(&meta, IDENTITY)?,
                get_clear::<HardStateRecord>(&meta, HARD_STATE)?,
                get_clear::<SnapshotRecord>(&meta, SNAPSHOT)?,
                get_clear::<PositionRecord>(&meta, COMPACTED)?,
                read_entries(&transaction, read_clear::<EntryRecord>)?,
            ))
        };
        let (identity, hard_state, snapshot, compacted, entries) =
            read().map_err(|source| self.read_error(source))?;
        self.transact(|transaction| {
            transaction.open_table(FORMAT_TABLE)?.insert((), FORMAT)?;
            let mut meta = transaction.open_table(META_TABLE)?;
            self.put(&mut meta, IDENTITY, &identity)?;
            self.put(&mut meta, HARD_STATE, &hard_state)?;
            self.put(&mut meta, SNAPSHOT, &snapshot)?;
            self.put(&mut meta, COMPACTED, &compacted)?;
            let mut table = transaction.open_table(ENTRY_TABLE)?;
            for entry in &entries {
                self.put_entry(&mut table, entry)?;
            }
            Ok(())
        })?;
        tracing::info!("the swarm's log, which was in the clear, is sealed now");
        Ok(())
    }

    /// Starts a new log from a snapshot. Refuses where there is one already.
    pub(super) fn bootstrap(
        &self,
        raft_id: u64,
        snapshot: &SnapshotRecord,
    ) -> Result<(), LogError> {
        if self.format()?.is_some() {
            let path = self.path.clone();
            return Err(LogError::Exists { path });
        }
        let hard_state = HardStateRecord {
            term: snapshot.term,
            vote: 0,
            commit: snapshot.index,
        };
        self.transact(|transaction| {
            transaction.open_table(FORMAT_TABLE)?.insert((), FORMAT)?;
            transaction.open_table(ENTRY_TABLE)?;
            let mut meta = transaction.open_table(META_TABLE)?;
            self.put(&mut meta, IDENTITY, &IdentityRecord { raft_id })?;
            self.put(&mut meta, HARD_STATE, &hard_state)?;
            self.put(&mut meta, SNAPSHOT, snapshot)?;
            self.put(&mut meta, COMPACTED, &snapshot.position())
        })
    }

    /// Reads everything and checks that it belongs together.
    pub(super) fn recover(&self) -> Result<Recovered, LogError> {
        match self.format()? {
            None => {
                let path = self.path.clone();
                return Err(LogError::Missing { path });
            }
            Some(found) if found > FORMAT => {
                let path = self.path.clone();
                return Err(LogError::NewerFormat { path, found });
            }
            Some(_) => {}
        }
        let recovered = self.read().map_err(|source| self.read_error(source))?;
        recovered.check().map_err(|source| self.damaged(source))?;
        Ok(recovered)
    }

    /// Replaces everything by a snapshot, for the member `raft_id`: all at once.
    pub(super) fn restart(&self, raft_id: u64, snapshot: &SnapshotRecord) -> Result<(), LogError> {
        let hard_state = HardStateRecord {
            term: snapshot.term,
            vote: 0,
            commit: snapshot.index,
        };
        self.transact(|transaction| {
            transaction.open_table(ENTRY_TABLE)?.retain(|_, _| false)?;
            let mut meta = transaction.open_table(META_TABLE)?;
            self.put(&mut meta, IDENTITY, &IdentityRecord { raft_id })?;
            self.put(&mut meta, HARD_STATE, &hard_state)?;
            self.put(&mut meta, SNAPSHOT, snapshot)?;
            self.put(&mut meta, COMPACTED, &snapshot.position())
        })
    }

    /// Starts the log of a member that joins, and that is sent everything by those that are there.
    /// Refuses where there is a log already.
    pub(super) fn join(&self, raft_id: u64) -> Result<(), LogError> {
        self.bootstrap(raft_id, &SnapshotRecord::default())
    }

    /// The newest snapshot, with the state.
    pub(super) fn snapshot(&self) -> Result<SnapshotRecord, LogError> {
        let read = || -> Result<SnapshotRecord, ReadError> {
            let transaction = self.database.begin_read()?;
            self.get(&transaction.open_table(META_TABLE)?, SNAPSHOT)
        };
        read().map_err(|source| self.read_error(source))
    }

    /// Writes one step of Raft.
    pub(super) fn write(&self, write: &Write) -> Result<(), LogError> {
        let Write {
            hard_state,
            snapshot,
            entries,
        } = write;
        self.transact(|transaction| {
            let mut meta = transaction.open_table(META_TABLE)?;
            let mut table = transaction.open_table(ENTRY_TABLE)?;
            self.put(&mut meta, HARD_STATE, &HardStateRecord::from(hard_state))?;
            if let Some(snapshot) = snapshot {
                let record = SnapshotRecord::from(snapshot);
                table.retain(|_, _| false)?;
                self.put(&mut meta, COMPACTED, &record.position())?;
                self.put(&mut meta, SNAPSHOT, &record)?;
            }
            if let Some(first) = entries.first() {
                table.retain_in(first.index.., |_, _| false)?;
            }
            for entry in entries {
                self.put_entry(&mut table, entry)?;
            }
            Ok(())
        })
    }

    /// Writes a snapshot of the own state, and removes the entries up to `compacted`.
    pub(super) fn compact(
        &self,
        hard_state: &HardState,
        snapshot: &SnapshotRecord,
        compacted: PositionRecord,
    ) -> Result<(), LogError> {
        self.transact(|transaction| {
            let mut meta = transaction.open_table(META_TABLE)?;
            let mut table = transaction.open_table(ENTRY_TABLE)?;
            self.put(&mut meta, HARD_STATE, &HardStateRecord::from(hard_state))?;
            self.put(&mut meta, SNAPSHOT, snapshot)?;
            self.put(&mut meta, COMPACTED, &compacted)?;
            table.retain_in(..=compacted.index, |_, _| false)?;
            Ok(())
        })
    }

    fn format(&self) -> Result<Option<u64>, LogError> {
        format(&self.database).map_err(|source| self.read_error(source))
    }

    fn read(&self) -> Result<Recovered, ReadError> {
        let transaction = self.database.begin_read()?;
        let meta = transaction.open_table(META_TABLE)?;
        let identity: IdentityRecord = self.get(&meta, IDENTITY)?;
        let hard_state: HardStateRecord = self.get(&meta, HARD_STATE)?;
        Ok(Recovered {
            raft_id: identity.raft_id,
            hard_state: hard_state.into(),
            snapshot: self.get(&meta, SNAPSHOT)?,
            compacted: self.get(&meta, COMPACTED)?,
            entries: read_entries(&transaction, |name, bytes| self.sealer.open(name, bytes))?,
        })
    }

    /// Makes `changes` in one transaction; they are on disk when this returns.
    fn transact(
        &self,
        changes: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), LogError> {
        let write = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            changes(&transaction)?;
            Ok(transaction.commit()?)
        };
        write().map_err(|source| cannot("write", &self.path, source))
    }

    fn read_error(&self, error: ReadError) -> LogError {
        read_error(&self.path, error)
    }

    fn damaged(&self, source: Damage) -> LogError {
        let path = self.path.clone();
        LogError::Damaged { path, source }
    }
}

impl Recovered {
    /// raft-rs ends the process on a log that contradicts itself; this says why instead.
    fn check(&self) -> Result<(), Damage> {
        let Self {
            raft_id,
            hard_state,
            snapshot,
            compacted,
            entries,
        } = self;
        let mut last = *compacted;
        for entry in entries {
            if entry.index != last.index + 1 || entry.term < last.term {
                return Err(Damage::Contradiction(format!(
                    "entry {} of term {} follows on entry {} of term {}",
                    entry.index, entry.term, last.index, last.term
                )));
            }
            last = PositionRecord {
                index: entry.index,
                term: entry.term,
            };
        }
        let within = |index| (snapshot.index..=last.index).contains(&index);
        let contradiction = if *raft_id == raft::INVALID_ID {
            "the raft id is 0"
        } else if !(compacted.index..=last.index).contains(&snapshot.index) {
            "the snapshot is not within the log"
        } else if !within(hard_state.commit) {
            "the commit index is not within the log"
        } else if hard_state.term < last.term.max(snapshot.term) {
            "the term is older than the log"
        } else {
            return Ok(());
        };
        Err(Damage::Contradiction(contradiction.to_owned()))
    }
}

enum ReadError {
    Damage(Damage),
    Database(redb::Error),
}

impl<E: Into<redb::Error>> From<E> for ReadError {
    fn from(source: E) -> Self {
        Self::Database(source.into())
    }
}

impl Log {
    fn put(
        &self,
        meta: &mut Table<'_, &'static str, &'static [u8]>,
        key: &str,
        record: &impl Message,
    ) -> Result<(), redb::Error> {
        let bytes = self.sealer.seal(key.as_bytes(), record);
        meta.insert(key, bytes.as_slice())?;
        Ok(())
    }

    fn put_entry(
        &self,
        table: &mut Table<'_, u64, &'static [u8]>,
        entry: &Entry,
    ) -> Result<(), redb::Error> {
        let key = entry.index.to_be_bytes();
        let bytes = self.sealer.seal(&key, &EntryRecord::from(entry));
        table.insert(entry.index, bytes.as_slice())?;
        Ok(())
    }

    fn get<R: Message + Default>(
        &self,
        meta: &ReadOnlyTable<&'static str, &'static [u8]>,
        key: &'static str,
    ) -> Result<R, ReadError> {
        get(meta, key, |name, bytes| self.sealer.open(name, bytes))
    }
}

/// What the file says of itself; none where it says nothing yet.
fn format(database: &Database) -> Result<Option<u64>, ReadError> {
    match database.begin_read()?.open_table(FORMAT_TABLE) {
        Ok(table) => Ok(table.get(())?.map(|found| found.value())),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(source) => Err(source.into()),
    }
}

fn read_error(path: &Path, error: ReadError) -> LogError {
    match error {
        ReadError::Damage(source) => LogError::Damaged {
            path: path.to_owned(),
            source,
        },
        ReadError::Database(source) => classify("read", path, source),
    }
}

/// The record that the first version kept under `key`.
fn get_clear<R: Message + Default>(
    meta: &ReadOnlyTable<&'static str, &'static [u8]>,
    key: &'static str,
) -> Result<R, ReadError> {
    get(meta, key, read_clear)
}

fn get<R>(
    meta: &ReadOnlyTable<&'static str, &'static [u8]>,
    key: &'static str,
    open: impl FnOnce(&[u8], &[u8]) -> Result<R, RecordError>,
) -> Result<R, ReadError> {
    let Some(bytes) = meta.get(key)? else {
        return Err(ReadError::Damage(Damage::Missing(key)));
    };
    open(key.as_bytes(), bytes.value()).map_err(|source| ReadError::Damage(source.into()))
}

fn read_entries(
    transaction: &ReadTransaction,
    open: impl Fn(&[u8], &[u8]) -> Result<EntryRecord, RecordError>,
) -> Result<Vec<Entry>, ReadError> {
    let table = transaction.open_table(ENTRY_TABLE)?;
    let mut entries = Vec::new();
    for item in table.range::<u64>(..)? {
        let (index, bytes) = item?;
        let index = index.value();
        let entry = open(&index.to_be_bytes(), bytes.value())
            .and_then(|record| record.at(index))
            .map_err(|source| ReadError::Damage(source.into()))?;
        entries.push(entry);
    }
    Ok(entries)
}

fn open_error(path: &Path, error: DatabaseError) -> LogError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => {
            let path = path.to_owned();
            LogError::Locked { path }
        }
        other => classify("open", path, other.into()),
    }
}

/// Tells a damaged file from a system that refused.
fn classify(action: &'static str, path: &Path, error: redb::Error) -> LogError {
    let damaged = match &error {
        redb::Error::Corrupted(_)
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TableDoesNotExist(_)
        | redb::Error::TypeDefinitionChanged { .. } => true,
        redb::Error::Io(source) => matches!(
            source.kind(),
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
        ),
        _ => false,
    };
    let path = path.to_owned();
    if damaged {
        LogError::Damaged {
            path,
            source: Damage::Database(Box::new(error)),
        }
    } else {
        LogError::Io {
            action,
            path,
            source: Box::new(error),
        }
    }
}

fn cannot(action: &'static str, path: &Path, source: impl Into<redb::Error>) -> LogError {
    LogError::Io {
        action,
        path: path.to_owned(),
        source: Box::new(source.into()),
    }
}
