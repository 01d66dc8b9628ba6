//! What a node is to do and to know.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use swarm_model::{
    DesiredState, Network, NetworkId, Node, NodeId, NodeState, PortConfig, ServiceId, Task, TaskId,
    TaskState,
};

use super::overlay::{NetworkEndpoint, NetworkService};
use crate::store::State;

/// What an assignment is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum AssignmentKey {
    /// A task of the node.
    Task(TaskId),
    /// A network that the node takes part in.
    Network(NetworkId),
    /// A node of the ingress network.
    Peer(NodeId),
    /// A service with published ports.
    Service(ServiceId),
    /// A task with an address on the ingress network, anywhere.
    Endpoint(TaskId),
    /// A task, anywhere, on a network of a user that the node takes part in.
    NetworkEndpoint(NetworkId, TaskId),
    /// A service on such a network.
    NetworkService(NetworkId, ServiceId),
}

/// One assignment. Two are equal when a node would make no difference between them.
#[derive(Clone, Debug)]
pub(crate) enum Item {
    /// See [`AssignmentKey::Task`].
    Task(Arc<Task>),
    /// See [`AssignmentKey::Network`].
    Network(Arc<Network>),
    /// See [`AssignmentKey::Peer`].
    Peer(Peer),
    /// See [`AssignmentKey::Service`].
    Service(Published),
    /// See [`AssignmentKey::Endpoint`].
    Endpoint(Endpoint),
    /// See [`AssignmentKey::NetworkEndpoint`].
    NetworkEndpoint(NetworkEndpoint),
    /// See [`AssignmentKey::NetworkService`].
    NetworkService(NetworkService),
}

impl PartialEq for Item {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            // All else about a placed task is settled, and its status comes from the node itself.
            (Self::Task(a), Self::Task(b)) => a.id == b.id && a.desired_state == b.desired_state,
            (Self::Network(a), Self::Network(b)) => {
                let shape = |it: &Network| (it.subnet, it.gateway, it.subnet6, it.vni);
                a.id == b.id && a.spec == b.spec && shape(a) == shape(b)
            }
            (Self::Peer(a), Self::Peer(b)) => a == b,
            (Self::Service(a), Self::Service(b)) => a == b,
            (Self::Endpoint(a), Self::Endpoint(b)) => a == b,
            (Self::NetworkEndpoint(a), Self::NetworkEndpoint(b)) => a == b,
            (Self::NetworkService(a), Self::NetworkService(b)) => a == b,
            _ => false,
        }
    }
}

/// A node of the ingress network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Which.
    pub(crate) node: NodeId,
    /// Its address on the ingress network.
    pub(crate) ingress_address: Ipv4Addr,
    /// Where VXLAN packets to it are sent.
    pub(crate) data_path_address: IpAddr,
}

/// A service with published ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Published {
    /// Which.
    pub(crate) service: ServiceId,
    /// Its name.
    pub(crate) name: String,
    /// The key of its counters.
    pub(crate) index: u32,
    /// Its ports.
    pub(crate) ports: Vec<PortConfig>,
}

/// A task with an address on the ingress network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Which.
    pub(crate) task: TaskId,
    /// Its service.
    pub(crate) service: ServiceId,
    /// Its node.
    pub(crate) node: NodeId,
    /// Its address.
    pub(crate) address: Ipv4Addr,
    /// Whether it gets new connections.
    pub(crate) state: EndpointState,
}

/// Whether an endpoint gets new connections (design 5.4); one that is gone is not listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndpointState {
    /// Not yet.
    Starting,
    /// Yes.
    Ready,
    /// No more; those it has run on.
    Draining,
}

/// A set of assignments.
pub(crate) type Assignments = BTreeMap<AssignmentKey, Item>;

/// What `node` is to do and to know.
#[cfg(test)]
pub(super) fn assignments(state: &State, node: &NodeId) -> Assignments {
    let mut all = shared(state);
    all.extend(own(state, node));
    let networks = super::overlay::networks(state, &BTreeMap::new());
    for network in super::overlay::present(state, node) {
        all.extend((networks.get(&network).into_iter()).flat_map(|known| known.items.clone()));
    }
    all
}

/// What `node` alone is to do: its tasks, from the moment they are given to it until the store
/// forgets them.
pub(super) fn own(state: &State, node: &NodeId) -> Assignments {
    state
        .tasks_of_node(node)
        .map(|task| {
            let key = AssignmentKey::Task(task.id.clone());
            (key, Item::Task(Arc::clone(task)))
        })
        .collect()
}

/// What every node is to know: the mesh is the same everywhere.
pub(super) fn shared(state: &State) -> Assignments {
    let networks = state.ingress_network().into_iter().map(|network| {
        let key = AssignmentKey::Network(network.id.clone());
        (key, Item::Network(Arc::clone(network)))
    });
    let peers = state.nodes().filter_map(|node| {
        let key = AssignmentKey::Peer(node.id.clone());
        Some((key, Item::Peer(peer(node)?)))
    });
    // A service that is being removed stays until its last task has ended: the connections that
    // it still has would end with it.
    let published = state
        .services()
        .filter(|service| !service.endpoint.ports.is_empty())
        .map(|service| {
            let published = Published {
                service: service.id.clone(),
                name: service.spec.name.clone(),
                index: service.endpoint.index,
                ports: service.endpoint.ports.clone(),
            };
            let key = AssignmentKey::Service(service.id.clone());
            (key, Item::Service(published))
        });
    let mut all: Assignments = networks.chain(peers).chain(published).collect();
    all.extend(endpoints(state).into_iter().map(|endpoint| {
        let key = AssignmentKey::Endpoint(endpoint.task.clone());
        (key, Item::Endpoint(endpoint))
    }));
    all
}

fn peer(node: &Node) -> Option<Peer> {
    Some(Peer {
        node: node.id.clone(),
        ingress_address: node.ingress_address?,
        data_path_address: node.description.data_path_address.or(node.status.address)?,
    })
}

/// Every endpoint of the ingress network. One on a node that does not answer gets no new
/// connections, unless its service would then have none at all ([`serving`]).
fn endpoints(state: &State) -> Vec<Endpoint> {
    let mut endpoints = Vec::new();
    let mut with_ready = BTreeSet::new();
    let mut on_suspect = Vec::new();
    for task in state.tasks() {
        let Some((endpoint, suspect)) = endpoint(state, task) else {
            continue;
        };
        if endpoint.state == EndpointState::Ready {
            with_ready.insert(endpoint.service.clone());
        } else if suspect {
            on_suspect.push(endpoints.len());
        }
        endpoints.push(endpoint);
    }
    for at in on_suspect {
        let endpoint: &mut Endpoint = &mut endpoints[at];
        if !with_ready.contains(&endpoint.service) {
            endpoint.state = EndpointState::Ready;
        }
    }
    endpoints
}

/// The task's endpoint on the ingress network, if it has one, and whether it would be ready but for
/// its silent node.
fn endpoint(state: &State, task: &Task) -> Option<(Endpoint, bool)> {
    let address = task.ingress_address?;
    let published = state
        .service(&task.service_id)
        .is_some_and(|service| service.is_published());
    if !published {
        return None;
    }
    let serving = serving(state, task)?;
    let endpoint = Endpoint {
        task: task.id.clone(),
        service: task.service_id.clone(),
        node: serving.node.id.clone(),
        address,
        state: serving.state,
    };
    Some((endpoint, serving.but_for_silence))
}

/// How far a task serves.
pub(super) struct Serving<'a> {
    /// Where it is.
    pub(super) node: &'a Node,
    /// Whether it gets new connections.
    pub(super) state: EndpointState,
    /// Whether it would get them if its node, which is suspect, were heard. It does get them if
    /// its service has no other: an answer that may come is better than one that cannot.
    pub(super) but_for_silence: bool,
}

/// How far `task` serves; none when it has no place yet, or has ended.
pub(super) fn serving<'a>(state: &'a State, task: &Task) -> Option<Serving<'a>> {
    let node = state.node(task.node_id.as_ref()?)?;
    if task.status.state.is_terminal() {
        return None;
    }
    let serving =
        task.status.state == TaskState::Running && task.desired_state == DesiredState::Running;
    let endpoint_state = if task.desired_state > DesiredState::Running {
        EndpointState::Draining
    } else if !serving {
        EndpointState::Starting
    } else if matches!(node.status.state, NodeState::Suspect | NodeState::Down) {
        EndpointState::Draining
    } else {
        // Unknown as well: a new leader has no reason to turn away from nodes not heard yet.
        EndpointState::Ready
    };
    Some(Serving {
        node,
        state: endpoint_state,
        but_for_silence: serving && node.status.state == NodeState::Suspect,
    })
}

/// What leads from one set to another.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Delta {
    /// New and changed assignments.
    pub(crate) put: Vec<Item>,
    /// Those that are gone.
    pub(crate) remove: Vec<AssignmentKey>,
}

impl Delta {
    /// The delta from `old` to `new`.
    pub(super) fn between(old: &Assignments, new: &Assignments) -> Self {
        let put = new
            .iter()
            .filter(|(key, item)| old.get(*key) != Some(item))
            .map(|(_, item)| item.clone())
            .collect();
        let remove = old
            .keys()
            .filter(|key| !new.contains_key(*key))
            .cloned()
            .collect();
        Self { put, remove }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.put.is_empty() && self.remove.is_empty()
    }

    /// This and `other`, which is about other keys.
    pub(super) fn with(mut self, other: &Self) -> Self {
        self.put.extend_from_slice(&other.put);
        self.remove.extend_from_slice(&other.remove);
        self
    }
}
