//! What changes, told to whoever watches.
//!
//! A watcher has no queue of its own: what it has not been sent yet is in the store's history, which all
//! share and which is bounded. One that is slower than the swarm changes falls out of it, and is told so.
//!
//! | a watch | becomes | when |
//! |---|---|---|
//! | waiting for its version | going | this manager's state has come to it |
//! | waiting for its version | ended | it has not within [`CATCH_UP_DEADLINE`] |
//! | going | ended | the watcher is gone, is too slow, or the manager stops |

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use swarm_api::v1;
use swarm_api::v1::watch_event::Object;
use swarm_model::NodeId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::refusal::Refusal;
use crate::store::{Action, Changed, Event, SharedObject, State, Store, TooOld};

/// Most watches of one socket's or listener's callers at a time: each may hold a few messages.
const WATCHES_MAX: usize = 64;

/// Messages that wait for a watcher to read them; each is what one entry of the log changed, about a
/// megabyte at most.
const WAITING_MAX: usize = 4;

/// How long a watcher may read nothing while messages wait for it.
const READ_DEADLINE: Duration = Duration::from_secs(30);

/// Longest wait for this manager to come to the version that a watch is to go on after: it may be a little
/// behind the one that was watched before.
const CATCH_UP_DEADLINE: Duration = Duration::from_secs(5);

/// How long a watcher hears nothing of versions that it has nothing of: it must be able to resume from a
/// version that is kept still.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(10);

/// Entries of the history taken at a time, so that its lock is held shortly.
const ENTRIES_MAX: usize = 16;

/// What goes to a watcher.
pub(super) type Watched = ReceiverStream<Result<v1::WatchResponse, Status>>;

/// Everybody who watches by way of one server.
#[derive(Clone, Debug)]
pub(super) struct Watches {
    store: Store,
    self_id: NodeId,
    free: Arc<Semaphore>,
}

impl Watches {
    /// Nobody yet.
    pub(super) fn new(store: Store, self_id: NodeId) -> Self {
        Self {
            store,
            self_id,
            free: Arc::new(Semaphore::new(WATCHES_MAX)),
        }
    }

    /// Begins a watch.
    ///
    /// # Errors
    /// When its version is too old or not reached, or too many watch.
    pub(super) async fn begin(&self, request: v1::WatchRequest) -> Result<Watched, Refusal> {
        let permit = Arc::clone(&self.free);
        let permit = permit
            .try_acquire_owned()
            .map_err(|_none| Refusal::TooManyWatches)?;
        let kinds = read_kinds(&request.kinds)?;
        let version = match request.resume_from {
            None => self.store.read(State::index),
            Some(version) => {
                self.come_to(version).await?;
                // Told at once, not as the end of a watch.
                let kept = self
                    .store
                    .read_history(|history| history.after(version).map(|_| ()));
                kept.map_err(|TooOld { oldest }| Refusal::ResumeTooOld { version, oldest })?;
                version
            }
        };
        let (messages, receiver) = mpsc::channel(WAITING_MAX);
        let watch = Watch {
            store: self.store.clone(),
            self_id: self.self_id.clone(),
            kinds,
            version,
            messages,
            _permit: permit,
        };
        tokio::spawn(watch.run());
        Ok(ReceiverStream::new(receiver))
    }

    /// Waits until the state has come to `version`.
    async fn come_to(&self, version: u64) -> Result<(), Refusal> {
        let mut applied = self.store.watch();
        let reached = applied.wait_for(|applied| *applied >= version);
        match timeout(CATCH_UP_DEADLINE, reached).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Refusal::ResumeNotReached {
                version,
                newest: self.store.read(State::index),
            }),
        }
    }
}

/// One watch.
struct Watch {
    store: Store,
    self_id: NodeId,
    /// Empty for all.
    kinds: BTreeSet<v1::ObjectKind>,
    /// Everything up to this was told, or was not asked for.
    version: u64,
    messages: mpsc::Sender<Result<v1::WatchResponse, Status>>,
    _permit: OwnedSemaphorePermit,
}

/// Why a watch ends.
enum End {
    /// Nobody listens, or the manager stops.
    Gone,
    /// In words.
    Told(Refusal),
}

impl Watch {
    async fn run(mut self) {
        let end = self.tell().await;
        if let Err(End::Told(refusal)) = end {
            // Where it reads nothing it cannot be told.
            let farewell = self.messages.send(Err(refusal.into()));
            let _ = timeout(READ_DEADLINE, farewell).await;
        }
    }

    /// Tells everything, until it has to end.
    async fn tell(&mut self) -> Result<(), End> {
        let mut applied = self.store.watch();
        self.send(Vec::new(), self.version).await?;
        let mut bookmark_at = Instant::now() + BOOKMARK_INTERVAL;
        loop {
            applied.borrow_and_update();
            let version = self.version;
            let taken = self.store.read_history(|history| {
                let after = history.after(version)?;
                Ok(after.take(ENTRIES_MAX).cloned().collect::<Vec<Changed>>())
            });
            let taken = taken.map_err(|TooOld { oldest }| {
                End::Told(Refusal::WatchTooSlow { version, oldest })
            })?;
            let all = taken.len() < ENTRIES_MAX;
            for changed in taken {
                let events = self.events(&changed.events);
                self.version = changed.version;
                if !events.is_empty() {
                    self.send(events, changed.version).await?;
                    bookmark_at = Instant::now() + BOOKMARK_INTERVAL;
                }
            }
            if !all {
                continue;
            }
            tokio::select! {
                () = self.messages.closed() => return Err(End::Gone),
                changed = timeout_at(bookmark_at, applied.changed()) => match changed {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Err(End::Gone),
                    Err(_elapsed) => {
                        self.send(Vec::new(), self.version).await?;
                        bookmark_at = Instant::now() + BOOKMARK_INTERVAL;
                    }
                }
            }
        }
    }

    async fn send(&self, events: Vec<v1::WatchEvent>, version: u64) -> Result<(), End> {
        let message = v1::WatchResponse { version, events };
        match timeout(READ_DEADLINE, self.messages.send(Ok(message))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_closed)) => Err(End::Gone),
            Err(_elapsed) => {
                let oldest = version;
                Err(End::Told(Refusal::WatchTooSlow { version, oldest }))
            }
        }
    }

    /// What of `events` was asked for.
    fn events(&self, events: &[Event]) -> Vec<v1::WatchEvent> {
        let wanted =
            |event: &&Event| self.kinds.is_empty() || self.kinds.contains(&kind(&event.object));
        let told = |event: &Event| told(event, &self.self_id);
        events.iter().filter(wanted).map(told).collect()
    }
}

fn read_kinds(kinds: &[i32]) -> Result<BTreeSet<v1::ObjectKind>, Refusal> {
    let read = |kind: &i32| match v1::ObjectKind::try_from(*kind) {
        Ok(v1::ObjectKind::Unspecified) | Err(_) => Err(Refusal::Missing("kind")),
        Ok(kind) => Ok(kind),
    };
    kinds.iter().map(read).collect()
}

fn kind(object: &SharedObject) -> v1::ObjectKind {
    match object {
        SharedObject::Cluster(_) => v1::ObjectKind::Cluster,
        SharedObject::Node(_) => v1::ObjectKind::Node,
        SharedObject::Service(_) => v1::ObjectKind::Service,
        SharedObject::Task(_) => v1::ObjectKind::Task,
        SharedObject::Network(_) => v1::ObjectKind::Network,
    }
}

fn told(event: &Event, self_id: &NodeId) -> v1::WatchEvent {
    let action = match event.action {
        Action::Create => v1::WatchAction::Create,
        Action::Update => v1::WatchAction::Update,
        Action::Remove => v1::WatchAction::Remove,
    };
    let object = match &event.object {
        SharedObject::Cluster(cluster) => Object::Cluster(super::cluster::shown(cluster, self_id)),
        SharedObject::Node(node) => Object::Node((&**node).into()),
        SharedObject::Service(service) => Object::Service((&**service).into()),
        SharedObject::Task(task) => Object::Task((&**task).into()),
        SharedObject::Network(network) => Object::Network((&**network).into()),
    };
    v1::WatchEvent {
        action: action.into(),
        object: Some(object),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_version_that_does_not_come_is_told() {
        let watches = Watches::new(Store::in_memory(), NodeId::random(&mut rand::rng()));
        let request = v1::WatchRequest {
            resume_from: Some(9),
            ..v1::WatchRequest::default()
        };
        let refused = watches.begin(request).await.unwrap_err();
        assert_eq!(
            refused.to_string(),
            "version 9 has not come yet, the newest here is 0: this manager is behind, or that is not a \
             version of this swarm"
        );
    }
}
