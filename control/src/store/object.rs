//! What a change can be about.

use std::sync::Arc;

use swarm_model::{
    Cluster, ClusterId, Meta, Network, NetworkId, Node, NodeId, Service, ServiceId, Task, TaskId,
};

/// One object of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(
    clippy::large_enum_variant,
    reason = "lives for a moment, between being made and being put behind an Arc in the state"
)]
pub(crate) enum Object {
    /// The swarm itself; there is one.
    Cluster(Cluster),
    /// A host.
    Node(Node),
    /// A service.
    Service(Service),
    /// A task.
    Task(Task),
    /// A network.
    Network(Network),
}

impl Object {
    /// What it is found by.
    pub(crate) fn key(&self) -> ObjectKey {
        match self {
            Self::Cluster(cluster) => cluster.id.clone().into(),
            Self::Node(node) => node.id.clone().into(),
            Self::Service(service) => service.id.clone().into(),
            Self::Task(task) => task.id.clone().into(),
            Self::Network(network) => network.id.clone().into(),
        }
    }

    pub(super) fn meta_mut(&mut self) -> &mut Meta {
        match self {
            Self::Cluster(cluster) => &mut cluster.meta,
            Self::Node(node) => &mut node.meta,
            Self::Service(service) => &mut service.meta,
            Self::Task(task) => &mut task.meta,
            Self::Network(network) => &mut network.meta,
        }
    }
}

/// What an object is found by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum ObjectKey {
    /// The swarm itself.
    Cluster(ClusterId),
    /// A host.
    Node(NodeId),
    /// A service.
    Service(ServiceId),
    /// A task.
    Task(TaskId),
    /// A network.
    Network(NetworkId),
}

/// One step of an update; the steps of one update take effect together.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(
    clippy::large_enum_variant,
    reason = "nearly every change is a Put; a box would only add an allocation to it"
)]
pub(crate) enum Change {
    /// Creates the object, or replaces the one with its key. Its `meta.version` is set when it is
    /// applied; the times are set by whoever proposes.
    Put(Object),
    /// Forgets the object; nothing happens when there is none.
    Remove(ObjectKey),
}

macro_rules! conversions {
    ($($variant:ident($id:ident)),+) => {$(
        impl From<$variant> for Object {
            fn from(object: $variant) -> Self {
                Self::$variant(object)
            }
        }

        impl From<$variant> for Change {
            fn from(object: $variant) -> Self {
                Self::Put(Object::$variant(object))
            }
        }

        impl From<Arc<$variant>> for Change {
            fn from(object: Arc<$variant>) -> Self {
                Arc::unwrap_or_clone(object).into()
            }
        }

        impl From<$id> for ObjectKey {
            fn from(id: $id) -> Self {
                Self::$variant(id)
            }
        }
    )+};
}

conversions!(
    Cluster(ClusterId),
    Node(NodeId),
    Service(ServiceId),
    Task(TaskId),
    Network(NetworkId)
);

impl Change {
    /// What it is about.
    pub(crate) fn key(&self) -> ObjectKey {
        match self {
            Self::Put(object) => object.key(),
            Self::Remove(key) => key.clone(),
        }
    }

    /// The change that forgets what `id` names.
    pub(crate) fn remove(id: impl Into<ObjectKey>) -> Self {
        Self::Remove(id.into())
    }
}
