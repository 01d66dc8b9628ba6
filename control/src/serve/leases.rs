//! Which connections each node has: how many it may have, and their end when it is removed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use swarm_model::NodeId;
use tokio::time::sleep;

use super::lease::Lease;
use crate::store::{State, Store};

/// Connections of one node at a time. It needs one, a manager a few; one that comes back again and
/// again leaves some behind until their pings fail.
const MAX_OF_ONE_NODE: usize = 32;

/// Time from a node's removal to the end of its connections, in which it is told why. Its calls are
/// refused from the first moment.
const FAREWELL: Duration = Duration::from_millis(500);

/// Pause between two looks at the store, so that changes that come together cost one look.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// The connections of all nodes. Copies are of the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Leases(Arc<Mutex<HashMap<NodeId, Connections>>>);

/// Those of one node.
#[derive(Debug, Default)]
struct Connections {
    /// Whether the store had the node since they were opened. One that it never had may just not
    /// have reached this manager's store yet.
    known: bool,
    next: u64,
    open: HashMap<u64, Lease>,
}

/// A connection's place among those of its node; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    leases: Leases,
    node: NodeId,
    number: u64,
}

impl Leases {
    /// A place for a connection of `node` that is open by `lease`; none when it has too many.
    /// `known`: whether the store has the node, which must not change meanwhile.
    pub(super) fn enter(&self, node: &NodeId, lease: &Lease, known: bool) -> Option<Place> {
        let mut nodes = self.nodes();
        let connections = nodes.entry(node.clone()).or_default();
        if connections.open.len() >= MAX_OF_ONE_NODE {
            return None;
        }
        connections.known |= known;
        let number = connections.next;
        connections.next += 1;
        connections.open.insert(number, lease.clone());
        Some(Place {
            leases: self.clone(),
            node: node.clone(),
            number,
        })
    }

    /// Ends the connections of nodes that are removed from `store`, for as long as it is run.
    pub(super) async fn end_removed(&self, store: Store) {
        let mut changed = store.watch();
        loop {
            changed.borrow_and_update();
            let removed = store.read(|state| self.removed(state));
            if !removed.is_empty() {
                sleep(FAREWELL).await;
                for lease in removed {
                    lease.revoke();
                }
            }
            if changed.changed().await.is_err() {
                return std::future::pending().await;
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// The connections of nodes that `state` has no more.
    fn removed(&self, state: &State) -> Vec<Lease> {
        let mut removed = Vec::new();
        for (node, connections) in &mut *self.nodes() {
            if state.node(node).is_some() {
                connections.known = true;
            } else if connections.known {
                removed.extend(connections.open.values().cloned());
            }
        }
        removed
    }

    fn nodes(&self) -> MutexGuard<'_, HashMap<NodeId, Connections>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut nodes = self.leases.nodes();
        if let Some(connections) = nodes.get_mut(&self.node) {
            connections.open.remove(&self.number);
            if connections.open.is_empty() {
                nodes.remove(&self.node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_so_many_places_and_no_more() {
        let leases = Leases::default();
        let (greedy, other) = (
            NodeId::random(&mut rand::rng()),
            NodeId::random(&mut rand::rng()),
        );
        let lease = Lease::new(None);
        let mut places: Vec<_> = (0..100)
            .filter_map(|_| leases.enter(&greedy, &lease, true))
            .collect();
        assert_eq!(places.len(), MAX_OF_ONE_NODE);
        assert!(leases.enter(&other, &lease, true).is_some());
        places.pop();
        let again = leases.enter(&greedy, &lease, true).unwrap();
        assert!(leases.enter(&greedy, &lease, true).is_none());
        drop((places, again));
        assert!(leases.nodes().is_empty(), "nothing is kept of who is gone");
    }
}
