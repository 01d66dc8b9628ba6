//! The log's key, in a file beside the log that its owner alone can read.
//!
//! It protects copies of the log, not a host that somebody has taken over. With autolock it is sealed
//! with the swarm's unlock key, which is in the log and so nowhere on disk in the clear.
//!
//! | first line | then |
//! |---|---|
//! | `swarm raft key 1` | the key |
//! | `swarm raft key 2` | version of the lock, 8 bytes; 0 and the key, or 1 and the key sealed |
//!
//! The file is replaced in one step: after a crash it is the old one or the new one, and never none.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ring::rand::{SecureRandom as _, SystemRandom};
use swarm_model::{ManagerLock, UnlockKey};
use zeroize::Zeroizing;

use crate::private_file;
use crate::seal::{KEY_BYTES, Seal};

const CLEAR_HEADER: &[u8] = b"swarm raft key 1\n";
const HEADER: &[u8] = b"swarm raft key 2\n";
const VERSION_BYTES: usize = 8;
/// Which of the two follows.
const CLEAR: u8 = 0;
const SEALED: u8 = 1;
/// Binds the keys that seal the log's key to their use.
const PURPOSE: &[u8] = b"swarm raft key 2";
/// More than any version's file.
const FILE_BYTES_MAX: u64 = 256;

/// The key of one log. Overwritten in memory when it is dropped.
#[derive(Clone)]
pub(super) struct LogKey(Zeroizing<[u8; KEY_BYTES]>);

impl fmt::Debug for LogKey {
    /// Leaves the key out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogKey(..)")
    }
}

impl LogKey {
    pub(super) fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    fn random() -> io::Result<Self> {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        SystemRandom::new()
            .fill(&mut key[..])
            .map_err(|_| io::Error::other("the system gives no randomness"))?;
        Ok(Self(key))
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; KEY_BYTES] = bytes.try_into().ok()?;
        Some(Self::new(*bytes))
    }

    pub(super) fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

/// The log's key of a running manager, and the file that it is kept in. Copies are of the same one.
#[derive(Clone, Debug)]
pub(crate) struct KeptKey {
    path: PathBuf,
    key: LogKey,
    lock: Arc<Mutex<Lock>>,
}

/// How it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lock {
    version: u64,
    sealed: bool,
}

/// A file that holds the key.
pub(super) enum KeyFile {
    Open(KeptKey),
    Sealed(SealedKey),
}

/// A key that only the unlock key opens.
#[derive(Clone, Debug)]
pub(crate) struct SealedKey {
    path: PathBuf,
    version: u64,
    head: Vec<u8>,
    sealed: Vec<u8>,
}

impl SealedKey {
    /// Whether `unlock` opens it.
    pub(crate) fn is_opened_by(&self, unlock: &UnlockKey) -> bool {
        self.key(unlock).is_some()
    }

    /// The key; none when `unlock` does not open it, or the file was damaged.
    pub(super) fn open(self, unlock: &UnlockKey) -> Option<KeptKey> {
        let key = self.key(unlock)?;
        Some(KeptKey::new(self.path, key, self.version, true))
    }

    fn key(&self, unlock: &UnlockKey) -> Option<LogKey> {
        let seal = Seal::new(unlock.as_bytes(), PURPOSE);
        LogKey::read(&seal.open(&self.head, &self.sealed).ok()?)
    }
}

/// What the file `path` holds; none where there is no file.
pub(super) fn read(path: &Path) -> io::Result<Option<KeyFile>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX as usize));
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    let found = parse(path, &bytes).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "it does not hold a key of this version",
        )
    })?;
    Ok(Some(found))
}

fn parse(path: &Path, bytes: &[u8]) -> Option<KeyFile> {
    let kept = |key, version| KeptKey::new(path.to_owned(), key, version, false);
    if let Some(key) = bytes.strip_prefix(CLEAR_HEADER) {
        return Some(KeyFile::Open(kept(LogKey::read(key)?, 0)));
    }
    let rest = bytes.strip_prefix(HEADER)?;
    let (version, rest) = rest.split_first_chunk::<VERSION_BYTES>()?;
    let version = u64::from_be_bytes(*version);
    match rest.split_first()? {
        (&CLEAR, key) => Some(KeyFile::Open(kept(LogKey::read(key)?, version))),
        (&SEALED, sealed) => Some(KeyFile::Sealed(SealedKey {
            path: path.to_owned(),
            version,
            head: head(version, SEALED),
            sealed: sealed.to_vec(),
        })),
        _ => None,
    }
}

fn head(version: u64, kind: u8) -> Vec<u8> {
    [HEADER, &version.to_be_bytes(), &[kind]].concat()
}

impl KeptKey {
    fn new(path: PathBuf, key: LogKey, version: u64, sealed: bool) -> Self {
        Self {
            path,
            key,
            lock: Arc::new(Mutex::new(Lock { version, sealed })),
        }
    }

    /// A new key, which is in the file `path`, on disk and in the clear, when this returns.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let kept = Self::new(path.to_owned(), LogKey::random()?, 0, false);
        kept.write(&ManagerLock::default())?;
        Ok(kept)
    }

    pub(super) fn key(&self) -> &LogKey {
        &self.key
    }

    /// Whether it is sealed on disk.
    pub(crate) fn is_sealed(&self) -> bool {
        self.lock().sealed
    }

    /// Keeps it under `lock`, if that is newer than what it is kept under; says whether it was. It is on
    /// disk when this returns; after an error it is as it was, or as it should be.
    pub(crate) fn keep_under(&self, lock: &ManagerLock) -> io::Result<bool> {
        let mut now = self.lock();
        if lock.version <= now.version {
            return Ok(false);
        }
        self.write(lock)?;
        *now = Lock {
            version: lock.version,
            sealed: lock.key.is_some(),
        };
        Ok(true)
    }

    fn write(&self, lock: &ManagerLock) -> io::Result<()> {
        let bytes = match &lock.key {
            None => [&head(lock.version, CLEAR), &self.key.as_bytes()[..]].concat(),
            Some(unlock) => {
                let head = head(lock.version, SEALED);
                let seal = Seal::new(unlock.as_bytes(), PURPOSE);
                let sealed = seal.seal(&head, self.key.as_bytes().to_vec());
                [head, sealed].concat()
            }
        };
        private_file::replace(&self.path, &Zeroizing::new(bytes))
    }

    fn lock(&self) -> MutexGuard<'_, Lock> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;

    fn lock(version: u64, unlock: Option<&UnlockKey>) -> ManagerLock {
        ManagerLock {
            version,
            key: unlock.cloned(),
        }
    }

    fn open(path: &Path) -> KeptKey {
        match read(path).unwrap().unwrap() {
            KeyFile::Open(kept) => kept,
            KeyFile::Sealed(sealed) => panic!("{sealed:?}"),
        }
    }

    fn sealed(path: &Path) -> SealedKey {
        match read(path).unwrap().unwrap() {
            KeyFile::Open(kept) => panic!("{kept:?}"),
            KeyFile::Sealed(sealed) => sealed,
        }
    }

    fn keys() -> [UnlockKey; 2] {
        [1, 2].map(|byte| UnlockKey::new([byte; 32]))
    }

    #[test]
    fn the_key_is_kept_for_its_owner_alone() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("raft.key");
        assert!(read(&path).unwrap().is_none());
        fs::write(dir.path().join("raft.new"), "of an interrupted write").unwrap();
        let made = KeptKey::create(&path).unwrap();
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(), 0o600);
        assert_eq!(open(&path).key.as_bytes(), made.key.as_bytes());
        let debug = format!("{made:?}");
        assert!(debug.contains("LogKey(..)"), "{debug}");
        let other = KeptKey::create(&dir.path().join("other.key")).unwrap();
        assert_ne!(made.key.as_bytes(), other.key.as_bytes());

        let clear = fs::read(&path).unwrap();
        let [unlock, _] = keys();
        made.keep_under(&lock(1, Some(&unlock))).unwrap();
        assert_eq!(mode(), 0o600);
        for kept in [clear, fs::read(&path).unwrap()] {
            for damaged in [
                &b""[..],
                &kept[..kept.len() - 1],
                &[&kept[..], b"x"].concat(),
            ] {
                fs::write(&path, damaged).unwrap();
                let refused = match read(&path) {
                    Ok(Some(KeyFile::Sealed(sealed))) => !sealed.is_opened_by(&unlock),
                    Ok(_) => false,
                    Err(_) => true,
                };
                assert!(refused, "{damaged:?}");
            }
        }
    }

    #[test]
    fn what_the_first_version_wrote_is_read() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("raft.key");
        fs::write(&path, [CLEAR_HEADER, &[9; 32]].concat()).unwrap();
        let kept = open(&path);
        assert_eq!(kept.key.as_bytes(), &[9; 32]);
        assert!(kept.keep_under(&lock(1, None)).unwrap());
        assert_eq!(open(&path).key.as_bytes(), &[9; 32]);
    }

    #[test]
    fn it_follows_the_lock_and_never_goes_back() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("raft.key");
        let made = KeptKey::create(&path).unwrap();
        let [first, second] = keys();
        assert!(!made.keep_under(&lock(0, None)).unwrap());
        assert!(made.keep_under(&lock(1, Some(&first))).unwrap());
        assert!(made.is_sealed());
        assert!(
            !fs::read(&path)
                .unwrap()
                .windows(32)
                .any(|part| part == made.key.as_bytes())
        );
        assert!(sealed(&path).open(&second).is_none());
        let kept = sealed(&path).open(&first).unwrap();
        assert_eq!(kept.key.as_bytes(), made.key.as_bytes());

        // The next key; then the store of a manager that starts again, which still knows the first.
        assert!(kept.keep_under(&lock(2, Some(&second))).unwrap());
        assert!(!sealed(&path).is_opened_by(&first));
        let kept = sealed(&path).open(&second).unwrap();
        for old in [lock(1, Some(&first)), lock(2, Some(&first)), lock(0, None)] {
            assert!(!kept.keep_under(&old).unwrap());
        }
        assert!(sealed(&path).is_opened_by(&second));
        assert!(kept.keep_under(&lock(3, None)).unwrap());
        assert_eq!(open(&path).key.as_bytes(), made.key.as_bytes());
    }

    #[test]
    fn a_crash_on_the_way_leaves_a_key_that_opens() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("raft.key");
        let [first, second] = keys();
        let made = KeptKey::create(&path).unwrap();
        made.keep_under(&lock(1, Some(&first))).unwrap();
        let old = fs::read(&path).unwrap();
        made.keep_under(&lock(2, Some(&second))).unwrap();
        let new = fs::read(&path).unwrap();
        // However much of the new file had been written beside the old one.
        for written in 0..=new.len() {
            fs::write(&path, &old).unwrap();
            fs::write(path.with_extension("new"), &new[..written]).unwrap();
            let kept = sealed(&path).open(&first).unwrap();
            assert_eq!(kept.key.as_bytes(), made.key.as_bytes());
            assert!(kept.keep_under(&lock(2, Some(&second))).unwrap());
            assert!(sealed(&path).is_opened_by(&second));
        }
        // A disk that takes nothing: it stays as it was, and is tried again.
        let kept = sealed(&path).open(&second).unwrap();
        fs::create_dir(path.with_extension("new")).unwrap();
        assert!(kept.keep_under(&lock(3, None)).is_err());
        assert!(kept.is_sealed());
        assert!(sealed(&path).is_opened_by(&second));
        fs::remove_dir(path.with_extension("new")).unwrap();
        assert!(kept.keep_under(&lock(3, None)).unwrap());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>, version: u64, kind in 0..3_u8, of: bool) {
            let bytes = if of { [head(version, kind), bytes].concat() } else { bytes };
            match parse(Path::new("x"), &bytes) {
                Some(KeyFile::Sealed(sealed)) => {
                    prop_assert!(!sealed.is_opened_by(&UnlockKey::new([1; 32])));
                }
                Some(KeyFile::Open(kept)) => prop_assert!(bytes.ends_with(kept.key.as_bytes())),
                None => {}
            }
        }

        #[test]
        fn every_changed_bit_shows(unlock: [u8; 32], version in 1..u64::MAX, at: prop::sample::Index, bit in 0..8) {
            let dir = TempDir::new().unwrap();
            let path = dir.path().join("raft.key");
            let unlock = UnlockKey::new(unlock);
            let made = KeptKey::create(&path).unwrap();
            made.keep_under(&lock(version, Some(&unlock))).unwrap();
            let mut bytes = fs::read(&path).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= 1_u8 << bit;
            if let Some(KeyFile::Sealed(sealed)) = parse(&path, &bytes) {
                prop_assert!(!sealed.is_opened_by(&unlock));
            }
        }
    }
}
