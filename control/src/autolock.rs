//! Keeps this manager's keys on disk as the swarm's lock wants it: sealed with the unlock key, or not.
//!
//! Follows the store, and so every manager does for itself. The log's key goes first: what else is
//! sealed is sealed with that one, and can be read as long as it can.

use std::io;
use std::time::Duration;

use swarm_model::ManagerLock;
use tokio::time::sleep;

use crate::ca::CredentialsFile;
use crate::raft::KeptKey;
use crate::store::Store;

/// Pause before a disk that refused is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// What is kept.
#[derive(Clone, Debug)]
pub(crate) struct Keeper {
    pub(crate) store: Store,
    pub(crate) key: KeptKey,
    pub(crate) credentials: CredentialsFile,
}

impl Keeper {
    /// Runs until the store is gone.
    pub(crate) async fn keep(self) {
        let mut changed = self.store.watch();
        let mut kept: Option<ManagerLock> = None;
        loop {
            changed.borrow_and_update();
            let lock = |state: &crate::store::State| state.cluster().map(|it| it.lock.clone());
            // A new manager has not been told yet.
            let wanted = self.store.read(lock);
            if let Some(lock) = wanted.filter(|lock| kept.as_ref() != Some(lock)) {
                let keeper = self.clone();
                let apply = lock.clone();
                let applied = tokio::task::spawn_blocking(move || keeper.apply(&apply)).await;
                match applied {
                    Ok(Ok(())) => kept = Some(lock),
                    Ok(Err(error)) => {
                        tracing::warn!(%error, "cannot keep this manager's keys as the lock wants it");
                        sleep(RETRY_PAUSE).await;
                        continue;
                    }
                    // The process is ending.
                    Err(_) => return,
                }
            }
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    fn apply(&self, lock: &ManagerLock) -> io::Result<()> {
        if self.key.keep_under(lock)? {
            let sealed = lock.key.is_some();
            tracing::info!(
                version = lock.version,
                sealed,
                "this manager's keys have a new lock"
            );
        }
        // Also after a crash between the two.
        self.credentials.keep_sealed(self.key.is_sealed())
    }
}
