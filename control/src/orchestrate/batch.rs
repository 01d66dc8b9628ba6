//! What a pass wants changed.

use swarm_model::{Cluster, Network, Node, Service, ServiceId, Task, TaskId, Timestamp};

use crate::store::{Change, ObjectKey};

/// The changes one pass makes up, bounded, and when it wants to be asked again.
///
/// A pass puts an object at most once: a second put would be made from a state that the first one
/// has changed.
#[derive(Debug)]
pub(crate) struct Batch {
    now: Timestamp,
    limit: usize,
    changes: Vec<Change>,
    wake_at: Option<Timestamp>,
}

impl Batch {
    /// An empty batch that is full at `limit` changes. A pass that stopped at a full batch is run
    /// again after its changes are applied.
    pub(crate) fn new(now: Timestamp, limit: usize) -> Self {
        Self {
            now,
            limit,
            changes: Vec::new(),
            wake_at: None,
        }
    }

    /// The time the pass is run at.
    pub(crate) fn now(&self) -> Timestamp {
        self.now
    }

    /// Whether nothing more should be added. What must happen together is added together, before
    /// asking again: the limit is passed by a few changes at most.
    pub(crate) fn is_full(&self) -> bool {
        self.changes.len() >= self.limit
    }

    /// Asks for another pass at `at`, although nothing may have changed by then.
    pub(crate) fn wake_at(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    pub(crate) fn put_cluster(&mut self, mut cluster: Cluster) {
        cluster.meta.updated_at = self.now;
        self.changes.push(cluster.into());
    }

    pub(crate) fn put_node(&mut self, mut node: Node) {
        node.meta.updated_at = self.now;
        self.changes.push(node.into());
    }

    pub(crate) fn put_service(&mut self, mut service: Service) {
        service.meta.updated_at = self.now;
        self.changes.push(service.into());
    }

    pub(crate) fn put_task(&mut self, mut task: Task) {
        task.meta.updated_at = self.now;
        self.changes.push(task.into());
    }

    pub(crate) fn put_network(&mut self, mut network: Network) {
        network.meta.updated_at = self.now;
        self.changes.push(network.into());
    }

    pub(crate) fn remove_task(&mut self, id: TaskId) {
        self.changes.push(Change::Remove(ObjectKey::Task(id)));
    }

    pub(crate) fn remove_service(&mut self, id: ServiceId) {
        self.changes.push(Change::Remove(ObjectKey::Service(id)));
    }

    /// The changes, and the earliest time asked for.
    pub(crate) fn into_parts(self) -> (Vec<Change>, Option<Timestamp>) {
        (self.changes, self.wake_at)
    }
}
