//! What a simulation sees of a manager's state.

use std::sync::Arc;

use swarm_model::{Cluster, Network, Node, Service, ServiceId, Task, TaskId};

use crate::store::{State, decode_snapshot, encode_snapshot};

/// A manager's state at one Raft index.
#[derive(Clone, Debug, Default)]
pub struct View(pub(super) State);

impl View {
    /// The Raft index of the last change applied.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.0.index()
    }

    /// The swarm itself.
    #[must_use]
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.0.cluster()
    }

    /// Every node, by id.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.0.nodes()
    }

    /// Every service, by id.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.0.services()
    }

    /// The service with this id.
    #[must_use]
    pub fn service(&self, id: &ServiceId) -> Option<&Arc<Service>> {
        self.0.service(id)
    }

    /// The service with this name.
    #[must_use]
    pub fn service_by_name(&self, name: &str) -> Option<&Arc<Service>> {
        self.0.service_by_name(name)
    }

    /// Every task, by id.
    pub fn tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.0.tasks()
    }

    /// The task with this id.
    #[must_use]
    pub fn task(&self, id: &TaskId) -> Option<&Arc<Task>> {
        self.0.task(id)
    }

    /// Every network, by id.
    pub fn networks(&self) -> impl Iterator<Item = &Arc<Network>> {
        self.0.networks()
    }

    /// The network with this name.
    #[must_use]
    pub fn network_by_name(&self, name: &str) -> Option<&Arc<Network>> {
        self.0.network_by_name(name)
    }

    /// A digest of everything in the state (FNV-1a over its snapshot): equal states, equal digests.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let bytes = encode_snapshot(&self.0);
        bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }

    /// Whether a snapshot of this state, read back, is this state.
    #[must_use]
    pub fn survives_a_snapshot(&self) -> bool {
        decode_snapshot(self.index(), &encode_snapshot(&self.0)).as_ref() == Ok(&self.0)
    }
}
