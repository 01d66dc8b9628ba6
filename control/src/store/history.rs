//! The newest changes, kept for whoever watches.

use std::collections::VecDeque;
use std::sync::Arc;

use swarm_model::{Cluster, Network, Node, Service, Task};

/// Most bytes of changes kept, as the log has them: those of some 18,000 tasks. A watcher that is further
/// behind than that is better served with lists.
const BYTES_MAX: usize = 8 * 1024 * 1024;

/// Most entries kept, however small they are.
const ENTRIES_MAX: usize = 10_000;

/// An object of the state, shared with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SharedObject {
    /// The swarm itself.
    Cluster(Arc<Cluster>),
    /// A host.
    Node(Arc<Node>),
    /// A service.
    Service(Arc<Service>),
    /// A task.
    Task(Arc<Task>),
    /// A network.
    Network(Arc<Network>),
}

/// What became of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// It is new.
    Create,
    /// It is another than before.
    Update,
    /// It is gone.
    Remove,
}

/// One object that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// What became of it.
    pub(crate) action: Action,
    /// As it is from then on; as it was last when it is gone.
    pub(crate) object: SharedObject,
}

/// What changed at one Raft index, in order.
#[derive(Clone, Debug)]
pub(crate) struct Changed {
    /// The state's index from then on.
    pub(crate) version: u64,
    /// Shared by all who watch.
    pub(crate) events: Arc<[Event]>,
    bytes: usize,
}

/// The changes after a version are not kept any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooOld {
    /// The oldest version after which everything is kept.
    pub(crate) oldest: u64,
}

/// The newest changes, without a gap, in the order of their versions.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// Everything after this version is kept.
    oldest: u64,
    entries: VecDeque<Changed>,
    bytes: usize,
}

impl History {
    /// Nothing but that the state stands at `version`.
    pub(super) fn starting_at(version: u64) -> Self {
        Self {
            oldest: version,
            ..Self::default()
        }
    }

    /// Adds what changed at `version`, `bytes` in the log, and forgets the oldest beyond the bounds.
    pub(super) fn add(&mut self, version: u64, events: Vec<Event>, bytes: usize) {
        if events.is_empty() {
            return;
        }
        self.bytes += bytes;
        self.entries.push_back(Changed {
            version,
            events: events.into(),
            bytes,
        });
        while self.bytes > BYTES_MAX || self.entries.len() > ENTRIES_MAX {
            let Some(first) = self.entries.pop_front() else {
                break;
            };
            self.bytes -= first.bytes;
            self.oldest = first.version;
        }
    }

    /// What changed after `version`, oldest first.
    pub(crate) fn after(&self, version: u64) -> Result<impl Iterator<Item = &Changed>, TooOld> {
        let oldest = self.oldest;
        if version < oldest {
            return Err(TooOld { oldest });
        }
        let from = self.entries.partition_point(|it| it.version <= version);
        Ok(self.entries.range(from..))
    }
}
