//! What the network has to look like, from what the manager said.

use std::collections::BTreeMap;

use ipnet::IpNet;
use swarm_model::{NodeId, Task, TaskId};

use crate::network::{self, Backend, BackendState, Desired, IngressNetwork, LocalNode, LocalTask};
use crate::session::{Assigned, Balanced};

/// How a task of this node is connected. None while it has no address.
pub(crate) fn local_task(task: &Task) -> Option<LocalTask> {
    Some(LocalTask {
        address: task.ingress_address?.into(),
        egress: true,
    })
}

/// The network of node `own`, with namespaces for `local_tasks`. None while this node has no place
/// on the ingress network yet.
pub(crate) fn desired_network(
    assigned: &Assigned,
    own: &NodeId,
    local_tasks: BTreeMap<TaskId, LocalTask>,
) -> Option<Desired> {
    let ingress = assigned.ingress()?;
    let this = assigned.peers.get(own)?;
    Some(Desired {
        local: LocalNode {
            id: own.clone(),
            vtep: this.data_path_address,
            ingress: this.ingress_address.into(),
        },
        network: IngressNetwork {
            vni: ingress.vni.0,
            subnet: IpNet::V4(ingress.subnet),
        },
        peers: assigned
            .peers
            .iter()
            .filter(|(id, _)| *id != own)
            .map(|(id, peer)| {
                let peer = network::Peer {
                    ingress: peer.ingress_address.into(),
                    vtep: peer.data_path_address,
                };
                (id.clone(), peer)
            })
            .collect(),
        tasks: assigned
            .endpoints
            .iter()
            .map(|(id, endpoint)| {
                let task = network::Task {
                    address: endpoint.address.into(),
                    node: endpoint.node_id.clone(),
                };
                (id.clone(), task)
            })
            .collect(),
        local_tasks,
        services: services(assigned, own),
    })
}

fn services(
    assigned: &Assigned,
    own: &NodeId,
) -> BTreeMap<swarm_model::ServiceId, network::Service> {
    let mut backends: BTreeMap<_, Vec<Backend>> = BTreeMap::new();
    for endpoint in assigned.endpoints.values() {
        let state = match endpoint.balanced {
            Balanced::NotYet => BackendState::Starting,
            Balanced::Yes => BackendState::Ready,
            Balanced::NoMore => BackendState::Draining,
        };
        let backend = Backend {
            address: endpoint.address.into(),
            local: endpoint.node_id == *own,
            state,
        };
        backends
            .entry(&endpoint.service_id)
            .or_default()
            .push(backend);
    }
    assigned
        .services
        .iter()
        .map(|(id, service)| {
            let service = network::Service {
                index: service.index,
                ports: service.ports.clone(),
                backends: backends.remove(id).unwrap_or_default(),
            };
            (id.clone(), service)
        })
        .collect()
}
