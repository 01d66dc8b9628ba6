//! Assignments as they travel.

use swarm_api::v1;
use swarm_model::{ClusterSpec, Node, SessionId};

use super::assignment::{AssignmentKey, EndpointState, Item};
use super::overlay::{NetworkEndpoint, NetworkService};
use super::session::Outgoing;
use crate::ca::rotation;
use crate::store::State;

impl From<Outgoing> for v1::ManagerMessage {
    fn from(outgoing: Outgoing) -> Self {
        let Outgoing {
            generation,
            complete,
            delta,
        } = outgoing;
        let assignments = v1::Assignments {
            generation,
            complete,
            put: delta.put.iter().map(Into::into).collect(),
            remove: delta.remove.iter().map(Into::into).collect(),
        };
        Self {
            message: Some(v1::manager_message::Message::Assignments(assignments)),
        }
    }
}

/// `standing` as a message of a session.
pub(super) fn standing_message(standing: v1::Standing) -> v1::ManagerMessage {
    v1::ManagerMessage {
        message: Some(v1::manager_message::Message::Standing(standing)),
    }
}

impl From<&Item> for v1::Assignment {
    fn from(item: &Item) -> Self {
        use v1::assignment::Item as Wire;
        let item = match item {
            Item::Task(task) => Wire::Task(Box::new(task.as_ref().into())),
            Item::Network(network) => Wire::Network(Box::new(network.as_ref().into())),
            Item::Peer(peer) => Wire::Peer(v1::NetworkPeer {
                node_id: peer.node.to_string(),
                ingress_address: peer.ingress_address.to_string(),
                data_path_address: peer.data_path_address.to_string(),
            }),
            Item::Service(service) => Wire::Service(v1::PublishedService {
                service_id: service.service.to_string(),
                index: service.index,
                ports: service.ports.iter().map(Into::into).collect(),
                name: service.name.clone(),
            }),
            Item::Endpoint(endpoint) => Wire::Endpoint(v1::TaskEndpoint {
                task_id: endpoint.task.to_string(),
                service_id: endpoint.service.to_string(),
                node_id: endpoint.node.to_string(),
                address: endpoint.address.to_string(),
                state: v1::EndpointState::from(endpoint.state).into(),
            }),
            Item::NetworkEndpoint(endpoint) => Wire::NetworkEndpoint(endpoint.into()),
            Item::NetworkService(service) => Wire::NetworkService(service.into()),
        };
        Self { item: Some(item) }
    }
}

impl From<&NetworkEndpoint> for v1::NetworkEndpoint {
    fn from(endpoint: &NetworkEndpoint) -> Self {
        let NetworkEndpoint {
            network,
            task,
            task_name,
            service,
            service_name,
            node,
            address,
            aliases,
            state,
        } = endpoint;
        Self {
            network_id: network.to_string(),
            task_id: task.to_string(),
            task_name: task_name.clone(),
            service_id: service.to_string(),
            service_name: service_name.clone(),
            node_id: node.to_string(),
            address: address.to_string(),
            aliases: aliases.clone(),
            state: v1::EndpointState::from(*state).into(),
        }
    }
}

impl From<&NetworkService> for v1::NetworkService {
    fn from(on_network: &NetworkService) -> Self {
        let NetworkService {
            network,
            service,
            name,
            aliases,
            vip,
            mode,
        } = on_network;
        Self {
            network_id: network.to_string(),
            service_id: service.to_string(),
            name: name.clone(),
            aliases: aliases.clone(),
            vip: vip.map_or_else(String::new, |vip| vip.to_string()),
            mode: v1::EndpointMode::from(mode).into(),
        }
    }
}

impl From<EndpointState> for v1::EndpointState {
    fn from(state: EndpointState) -> Self {
        match state {
            EndpointState::Starting => Self::Starting,
            EndpointState::Ready => Self::Ready,
            EndpointState::Draining => Self::Draining,
        }
    }
}

impl From<&AssignmentKey> for v1::AssignmentKey {
    fn from(key: &AssignmentKey) -> Self {
        use v1::assignment_key::Key as Wire;
        let key = match key {
            AssignmentKey::Task(id) => Wire::TaskId(id.to_string()),
            AssignmentKey::Network(id) => Wire::NetworkId(id.to_string()),
            AssignmentKey::Peer(id) => Wire::PeerNodeId(id.to_string()),
            AssignmentKey::Service(id) => Wire::ServiceId(id.to_string()),
            AssignmentKey::Endpoint(id) => Wire::EndpointTaskId(id.to_string()),
            AssignmentKey::NetworkEndpoint(network, task) => {
                Wire::NetworkEndpoint(v1::NetworkEndpointKey {
                    network_id: network.to_string(),
                    task_id: task.to_string(),
                })
            }
            AssignmentKey::NetworkService(network, service) => {
                Wire::NetworkService(v1::NetworkServiceKey {
                    network_id: network.to_string(),
                    service_id: service.to_string(),
                })
            }
        };
        Self { key: Some(key) }
    }
}

/// The first message of a session of `node`, from the manager `own`.
pub(crate) fn welcome(
    state: &State,
    session: &SessionId,
    node: &Node,
    own: &swarm_model::NodeId,
) -> v1::ManagerMessage {
    let default = ClusterSpec::default();
    let spec = state.cluster().map_or(&default, |cluster| &cluster.spec);
    let period = spec.heartbeat_period.as_millis();
    let welcome = v1::Welcome {
        session_id: session.to_string(),
        node_id: node.id.to_string(),
        heartbeat_period_ms: u64::try_from(period).unwrap_or(u64::MAX),
        managers: managers(state, own),
    };
    v1::ManagerMessage {
        message: Some(v1::manager_message::Message::Welcome(welcome)),
    }
}

/// What all nodes are to know of the swarm: where its managers are, `own` first, and what it trusts.
pub(super) fn common_standing(state: &State, own: &swarm_model::NodeId) -> v1::Standing {
    let cluster = state.cluster();
    v1::Standing {
        role: v1::Role::Unspecified.into(),
        managers: managers(state, own),
        root_ca_pem: cluster
            .map(|it| rotation::trusted_roots(it))
            .unwrap_or_default(),
        certificate_issuer: cluster.map(|it| rotation::issuer(it)).unwrap_or_default(),
    }
}

/// What `node` is to know of itself, and what all know.
pub(super) fn standing(node: &Node, common: &v1::Standing) -> v1::Standing {
    v1::Standing {
        role: v1::Role::from(node.role).into(),
        ..common.clone()
    }
}

/// Where the managers are reached, `own` first.
pub(super) fn managers(state: &State, own: &swarm_model::NodeId) -> Vec<String> {
    let mut managers: Vec<_> = state
        .nodes()
        .filter_map(|node| Some((node.id != *own, node.manager.as_ref()?.address)))
        .collect();
    managers.sort_unstable();
    let addresses = managers.into_iter().map(|(_, address)| address.to_string());
    addresses.collect()
}
