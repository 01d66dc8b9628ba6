//! The file itself: what is refused, and in which words.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use raft::eraftpb::Entry;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use tempfile::TempDir;

use super::super::core::Write;
use super::super::error::StartError;
use super::super::log::{Log, LogError};
use super::super::member::bootstrap;
use super::super::record::{EntryRecord, HardStateRecord, IdentityRecord, write_clear};
use crate::store::testing::node;

fn with_log() -> TempDir {
    let dir = TempDir::new().unwrap();
    let log = Log::open_or_create(dir.path(), None).unwrap();
    bootstrap(&log, 7, vec![node(1).into()]).unwrap();
    dir
}

fn recover(dir: &Path) -> Result<(), LogError> {
    Log::open(dir, None)?.recover().map(drop)
}

#[test]
fn the_file_is_its_owners_alone() {
    let dir = TempDir::new().unwrap();
    let inner = dir.path().join("raft");
    drop(Log::open_or_create(&inner, None).unwrap());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&inner), 0o700);
    assert_eq!(mode(&inner.join("raft.redb")), 0o600);
}

#[test]
fn a_log_is_made_only_once() {
    let dir = with_log();
    let log = Log::open(dir.path(), None).unwrap();
    let before = log.recover().unwrap();
    let error = bootstrap(&log, 8, Vec::new()).unwrap_err();
    assert!(
        matches!(error, StartError::Log(LogError::Exists { .. })),
        "{error:?}"
    );
    assert_eq!(log.recover().unwrap(), before);
}

#[test]
fn no_log_is_not_an_empty_log() {
    let dir = TempDir::new().unwrap();
    let missing = |result| matches!(result, Err(LogError::Missing { .. }));
    assert!(missing(recover(dir.path())));
    assert!(
        !dir.path().join("raft.redb").exists(),
        "looking made a file"
    );

    // Power was lost while a log was being made.
    drop(Log::open_or_create(dir.path(), None).unwrap());
    assert!(missing(recover(dir.path())));
    let log = Log::open_or_create(dir.path(), None).unwrap();
    bootstrap(&log, 7, Vec::new()).unwrap();
}

#[test]
fn a_log_in_use_is_locked() {
    let dir = with_log();
    let held = Log::open(dir.path(), None).unwrap();
    let error = recover(dir.path()).unwrap_err();
    assert!(matches!(error, LogError::Locked { .. }), "{error:?}");
    drop(held);
    recover(dir.path()).unwrap();
}

#[test]
fn a_newer_format_is_refused_untouched() {
    let dir = with_log();
    let path = dir.path().join("raft.redb");
    let database = Database::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    let table: TableDefinition<'_, (), u64> = TableDefinition::new("format");
    transaction
        .open_table(table)
        .unwrap()
        .insert((), 3)
        .unwrap();
    transaction.commit().unwrap();
    drop(database);

    let error = recover(dir.path()).unwrap_err();
    assert!(
        matches!(error, LogError::NewerFormat { found: 3, .. }),
        "{error:?}"
    );
    let text = error.to_string();
    assert!(
        text.contains("raft.redb") && text.contains("upgrade"),
        "{text}"
    );
    let log = Log::open(dir.path(), None).unwrap();
    let refused = bootstrap(&log, 7, Vec::new());
    assert!(matches!(
        refused,
        Err(StartError::Log(LogError::Exists { .. }))
    ));
}

#[track_caller]
fn assert_damaged(dir: &Path) {
    let error = recover(dir).unwrap_err();
    assert!(matches!(error, LogError::Damaged { .. }), "{error:?}");
    let text = error.to_string();
    assert!(
        text.contains("raft.redb") && text.contains("copy"),
        "{text}"
    );
}

#[test]
fn a_file_of_something_else_is_damaged() {
    for bytes in [&b"not a database"[..], &[0x5a; 64 * 1024]] {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("raft.redb"), bytes).unwrap();
        assert_damaged(dir.path());
    }
}

#[test]
fn a_cut_file_is_damaged() {
    let dir = with_log();
    let path = dir.path().join("raft.redb");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..5000]).unwrap();
    assert_damaged(dir.path());
}

/// The two tables of records, as redb knows them.
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const ENTRY: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("entry");

#[test]
fn a_damaged_record_is_damage() {
    for name in ["identity", "hard state", "snapshot", "compacted"] {
        let dir = with_log();
        let database = Database::open(dir.path().join("raft.redb")).unwrap();
        let transaction = database.begin_write().unwrap();
        {
            let mut meta = transaction.open_table(META).unwrap();
            let mut bytes = meta.get(name).unwrap().unwrap().value().to_vec();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            meta.insert(name, bytes.as_slice()).unwrap();
        }
        transaction.commit().unwrap();
        drop(database);
        assert_damaged(dir.path());
    }
}

/// A step that writes an entry with `data` after all that `log` has.
fn with_entry(log: &Log, data: &[u8]) -> Write {
    let recovered = log.recover().unwrap();
    let entry = Entry {
        index: recovered.compacted.index + 1,
        term: recovered.hard_state.term,
        data: data.to_vec().into(),
        ..Entry::default()
    };
    Write {
        hard_state: recovered.hard_state,
        snapshot: None,
        entries: vec![entry],
    }
}

#[test]
fn nothing_of_what_is_kept_can_be_read_in_the_file() {
    let dir = TempDir::new().unwrap();
    let log = Log::open_or_create(dir.path(), None).unwrap();
    bootstrap(&log, 7, vec![node(1).into()]).unwrap();
    let secret = b"precious-in-an-entry";
    let write = with_entry(&log, secret);
    log.write(&write).unwrap();
    assert_eq!(log.recover().unwrap().entries, write.entries);
    drop(log);
    let bytes = std::fs::read(dir.path().join("raft.redb")).unwrap();
    // The node's id, which is in the snapshot.
    for text in [&b"0000000000000000000000001"[..], secret] {
        assert!(!bytes.windows(text.len()).any(|window| window == text));
    }
}

#[test]
fn a_log_without_its_key_or_with_another_is_refused_and_left_alone() {
    let dir = with_log();
    let key = dir.path().join("raft.key");
    let mode = fs::metadata(&key).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let kept = fs::read(&key).unwrap();
    fs::remove_file(&key).unwrap();
    let error = recover(dir.path()).unwrap_err();
    assert!(matches!(error, LogError::NoKey { .. }), "{error:?}");
    assert!(error.to_string().contains("raft.key"), "{error}");
    assert!(
        !key.exists(),
        "a new key would hide that the old one is gone"
    );

    let mut other = kept.clone();
    *other.last_mut().unwrap() ^= 1;
    fs::write(&key, other).unwrap();
    assert_damaged(dir.path());
    fs::write(&key, &kept[1..]).unwrap();
    assert!(matches!(recover(dir.path()), Err(LogError::Damaged { path, .. }) if path == key));
    fs::write(&key, kept).unwrap();
    recover(dir.path()).unwrap();
}

#[test]
fn a_log_of_the_first_version_is_sealed_when_it_is_opened() {
    let dir = with_log();
    let log = Log::open(dir.path(), None).unwrap();
    let write = with_entry(&log, b"data");
    log.write(&write).unwrap();
    let before = log.recover().unwrap();
    drop(log);

    // As the first version would have written the same.
    let path = dir.path().join("raft.redb");
    fs::remove_file(dir.path().join("raft.key")).unwrap();
    let database = Database::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let format: TableDefinition<'_, (), u64> = TableDefinition::new("format");
        transaction
            .open_table(format)
            .unwrap()
            .insert((), 1)
            .unwrap();
        let mut meta = transaction.open_table(META).unwrap();
        let raft_id = before.raft_id;
        let hard_state = HardStateRecord::from(&before.hard_state);
        for (name, bytes) in [
            (
                "identity",
                write_clear(b"identity", &IdentityRecord { raft_id }),
            ),
            ("hard state", write_clear(b"hard state", &hard_state)),
            ("snapshot", write_clear(b"snapshot", &before.snapshot)),
            ("compacted", write_clear(b"compacted", &before.compacted)),
        ] {
            meta.insert(name, bytes.as_slice()).unwrap();
        }
        let mut entries = transaction.open_table(ENTRY).unwrap();
        for entry in &before.entries {
            let key = entry.index.to_be_bytes();
            let bytes = write_clear(&key, &EntryRecord::from(entry));
            entries.insert(entry.index, bytes.as_slice()).unwrap();
        }
    }
    transaction.commit().unwrap();
    drop(database);

    for _ in 0..2 {
        let log = Log::open(dir.path(), None).unwrap();
        assert_eq!(log.recover().unwrap(), before);
    }
    assert!(dir.path().join("raft.key").exists());
    let database = Database::open(&path).unwrap();
    let transaction = database.begin_read().unwrap();
    let meta = transaction.open_table(META).unwrap();
    let sealed = meta.get("snapshot").unwrap().unwrap().value().to_vec();
    let id = b"0000000000000000000000001";
    assert!(!sealed.windows(id.len()).any(|window| window == id));
}
