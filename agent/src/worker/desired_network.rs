//! What the network has to look like, from what the manager said.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv6Net};
use swarm_model::{Network, NetworkId, NodeId, ServiceId, Task, TaskId};

use crate::network::{
    self, Attachment, Backend, BackendState, Desired, IngressNetwork, LocalNode, LocalTask,
    Overlay, TaskSockets, VirtualService,
};
use crate::session::{Assigned, Balanced, NetworkEndpoint};

/// How a task of this node is connected. None while it has no address. A network that this node has
/// not been told of is left out.
pub(crate) fn local_task(
    task: &Task,
    networks: &BTreeMap<NetworkId, Network>,
) -> Option<LocalTask> {
    let attached = |attachment: &swarm_model::Attachment| networks.get(&attachment.network);
    let inside = |attachment| attached(attachment).is_none_or(|network| network.spec.internal);
    let attachments = (1..).zip(&task.attachments);
    Some(LocalTask {
        address: task.ingress_address?.into(),
        // A task on internal networks alone has no way out; one on no network at all has.
        egress: task.attachments.is_empty() || !task.attachments.iter().all(inside),
        attachments: attachments
            .filter_map(|(interface, attachment)| {
                Some(Attachment {
                    interface,
                    network: attachment.network.clone(),
                    overlay: overlay(attached(attachment)?),
                    address: attachment.address.into(),
                })
            })
            .collect(),
    })
}

fn overlay(network: &Network) -> Overlay {
    Overlay {
        vni: network.vni.0,
        subnet: IpNet::V4(network.subnet),
        subnet6: subnet6(network),
        gateway: network.gateway.into(),
        mtu: network.spec.mtu.map(u32::from),
    }
}

/// A network's IPv6 addresses, where the IPv4 ones fit in.
fn subnet6(network: &Network) -> Option<Ipv6Net> {
    network
        .subnet6
        .filter(|subnet| subnet.prefix_len() <= Network::PREFIX6_LEN_MAX)
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
            subnet6: subnet6(ingress),
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
        members: assigned
            .network_endpoints
            .iter()
            .map(|(network, tasks)| (network.clone(), members(tasks)))
            .collect(),
        services: services(assigned, own),
        task_sockets: task_sockets(assigned, &local_tasks),
        local_tasks,
        virtual_services: virtual_services(assigned),
    })
}

fn members(tasks: &BTreeMap<TaskId, NetworkEndpoint>) -> BTreeMap<TaskId, network::Task> {
    let tasks = tasks.iter().map(|(id, endpoint)| {
        let task = network::Task {
            address: endpoint.address.into(),
            node: endpoint.node_id.clone(),
        };
        (id.clone(), task)
    });
    tasks.collect()
}

/// What the sockets of local tasks may ask for. Published ports are a way out of a task's networks:
/// where all of these are internal, it is closed.
fn task_sockets(
    assigned: &Assigned,
    local_tasks: &BTreeMap<TaskId, LocalTask>,
) -> BTreeMap<TaskId, TaskSockets> {
    let internal = |network: &NetworkId| {
        let network = assigned.networks.get(network);
        network.is_some_and(|network| network.spec.internal)
    };
    let sockets = |task: &Task| {
        let networks: BTreeSet<_> = task
            .attachments
            .iter()
            .map(|attachment| attachment.network.clone())
            .collect();
        TaskSockets {
            published: networks.is_empty() || !networks.iter().all(internal),
            networks,
        }
    };
    local_tasks
        .keys()
        .filter_map(|id| Some((id.clone(), sockets(assigned.tasks.get(id)?))))
        .collect()
}

/// Services with virtual addresses, and their tasks, per network.
fn virtual_services(
    assigned: &Assigned,
) -> BTreeMap<NetworkId, BTreeMap<ServiceId, VirtualService>> {
    let mut all = BTreeMap::new();
    for (id, services) in &assigned.network_services {
        let Some(network) = assigned.networks.get(id) else {
            continue;
        };
        let both = |address: Ipv4Addr| {
            let ipv6 = network.address6(address).map(IpAddr::V6);
            [Some(IpAddr::V4(address)), ipv6].into_iter().flatten()
        };
        let mut with_vip: BTreeMap<ServiceId, VirtualService> = services
            .iter()
            .filter_map(|(id, service)| {
                let service = VirtualService {
                    addresses: both(service.vip?).collect(),
                    ready: BTreeSet::new(),
                };
                Some((id.clone(), service))
            })
            .collect();
        let endpoints = assigned.network_endpoints.get(id);
        for endpoint in endpoints.into_iter().flat_map(BTreeMap::values) {
            let service = with_vip.get_mut(&endpoint.service_id);
            if let (Balanced::Yes, Some(service)) = (endpoint.balanced, service) {
                service.ready.extend(both(endpoint.address));
            }
        }
        all.insert(id.clone(), with_vip);
    }
    all
}

fn services(assigned: &Assigned, own: &NodeId) -> BTreeMap<ServiceId, network::Service> {
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
