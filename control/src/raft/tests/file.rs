//! The file itself: what is refused, and in which words.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use redb::{Database, TableDefinition};
use tempfile::TempDir;

use super::super::error::StartError;
use super::super::log::{Log, LogError};
use super::super::member::bootstrap;
use crate::store::testing::node;

fn with_log() -> TempDir {
    let dir = TempDir::new().unwrap();
    let log = Log::open_or_create(dir.path()).unwrap();
    bootstrap(&log, 7, vec![node(1).into()]).unwrap();
    dir
}

fn recover(dir: &Path) -> Result<(), LogError> {
    Log::open(dir)?.recover().map(drop)
}

#[test]
fn the_file_is_its_owners_alone() {
    let dir = TempDir::new().unwrap();
    let inner = dir.path().join("raft");
    drop(Log::open_or_create(&inner).unwrap());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&inner), 0o700);
    assert_eq!(mode(&inner.join("raft.redb")), 0o600);
}

#[test]
fn a_log_is_made_only_once() {
    let dir = with_log();
    let log = Log::open(dir.path()).unwrap();
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
    drop(Log::open_or_create(dir.path()).unwrap());
    assert!(missing(recover(dir.path())));
    let log = Log::open_or_create(dir.path()).unwrap();
    bootstrap(&log, 7, Vec::new()).unwrap();
}

#[test]
fn a_log_in_use_is_locked() {
    let dir = with_log();
    let held = Log::open(dir.path()).unwrap();
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
        .insert((), 2)
        .unwrap();
    transaction.commit().unwrap();
    drop(database);

    let error = recover(dir.path()).unwrap_err();
    assert!(
        matches!(error, LogError::NewerFormat { found: 2, .. }),
        "{error:?}"
    );
    let text = error.to_string();
    assert!(
        text.contains("raft.redb") && text.contains("upgrade"),
        "{text}"
    );
    let log = Log::open(dir.path()).unwrap();
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

#[test]
fn a_damaged_record_is_damage() {
    let dir = with_log();
    let path = dir.path().join("raft.redb");
    let mut bytes = fs::read(&path).unwrap();
    // The node's id within the snapshot.
    let id = b"0000000000000000000000001";
    let found: Vec<usize> = (0..bytes.len() - id.len())
        .filter(|at| &bytes[*at..*at + id.len()] == id)
        .collect();
    assert!(!found.is_empty());
    for at in found {
        bytes[at] = b'z';
    }
    fs::write(&path, &bytes).unwrap();
    assert_damaged(dir.path());
}
