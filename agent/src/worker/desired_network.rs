//! What the network has to look like, from what the manager said.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use swarm_model::{NodeId, Protocol, TaskId};

use crate::network::{self, Backend, Desired, IngressNetwork, LocalNode, Port};
use crate::session::{Assigned, Balanced};

/// The network of node `own`, with namespaces for `local_tasks`. None while this node has no place
/// on the ingress network yet.
pub(crate) fn desired_network(
    assigned: &Assigned,
    own: &NodeId,
    local_tasks: &BTreeMap<TaskId, Ipv4Addr>,
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
        local_tasks: local_tasks
            .iter()
            .map(|(id, address)| (id.clone(), IpAddr::V4(*address)))
            .collect(),
        services: services(assigned),
    })
}

fn services(assigned: &Assigned) -> BTreeMap<swarm_model::ServiceId, network::Service> {
    let mut backends: BTreeMap<_, Vec<Backend>> = BTreeMap::new();
    for endpoint in assigned.endpoints.values() {
        let weight = match endpoint.balanced {
            Balanced::NotYet => continue,
            Balanced::Yes => 1,
            Balanced::NoMore => 0,
        };
        let backend = Backend {
            address: endpoint.address.into(),
            weight,
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
            let ports = service.ports.iter().map(|port| Port {
                protocol: match port.protocol {
                    Protocol::Tcp => network::Protocol::Tcp,
                    Protocol::Udp => network::Protocol::Udp,
                },
                published: port.published,
                target: port.target,
            });
            let service = network::Service {
                index: service.index,
                ports: ports.collect(),
                backends: backends.remove(id).unwrap_or_default(),
            };
            (id.clone(), service)
        })
        .collect()
}
