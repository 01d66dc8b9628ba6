//! What the network has to look like, from what the manager said.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv6Net};
use swarm_model::{Network, NetworkId, NodeId, ServiceId, Task, TaskId};

use crate::SharedMap;
use crate::network::{
    self, Attachment, Backend, BackendState, Desired, IngressNetwork, LocalNode, LocalTask,
    Overlay, TaskSockets, VirtualService,
};
use crate::session::{Assigned, Balanced, Endpoint};

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

/// The networks of a node as they follow from what it was told.
///
/// What is told changes by a few entries at a time, and so does what follows: only services of which
/// something is another than the last time are made anew.
#[derive(Debug, Default)]
pub(crate) struct Following {
    /// What the rest follows from.
    told: Assigned,
    /// Tasks by their service.
    tasks_of: TasksOf,
    tasks: SharedMap<TaskId, network::Task>,
    services: SharedMap<ServiceId, network::Service>,
    on_networks: BTreeMap<NetworkId, OnNetwork>,
}

/// The tasks of each service, in ascending order.
type TasksOf = BTreeMap<ServiceId, Vec<TaskId>>;

/// What is on a network of a user.
#[derive(Debug, Default)]
struct OnNetwork {
    tasks_of: TasksOf,
    members: SharedMap<TaskId, network::Task>,
    services: SharedMap<ServiceId, VirtualService>,
}

impl Following {
    /// The network of node `own`, which is always the same one, with namespaces for `local_tasks`.
    /// None while this node has no place on the ingress network yet.
    pub(crate) fn desired_network(
        &mut self,
        assigned: &Assigned,
        own: &NodeId,
        local_tasks: BTreeMap<TaskId, LocalTask>,
    ) -> Option<Desired> {
        self.follow(assigned, own);
        let ingress = assigned.ingress()?;
        let this = assigned.peers.get(own)?;
        let on_networks = || self.on_networks.iter();
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
            tasks: self.tasks.clone(),
            members: on_networks()
                .map(|(network, on)| (network.clone(), on.members.clone()))
                .collect(),
            services: self.services.clone(),
            task_sockets: task_sockets(assigned, &local_tasks),
            local_tasks,
            virtual_services: on_networks()
                .filter(|(network, _)| assigned.networks.contains_key(*network))
                .map(|(network, on)| (network.clone(), on.services.clone()))
                .collect(),
        })
    }

    fn follow(&mut self, assigned: &Assigned, own: &NodeId) {
        let mut touched = BTreeSet::new();
        for (id, before, after) in self.told.endpoints.differences(&assigned.endpoints) {
            let services = (
                before.map(|it| &it.service_id),
                after.map(|it| &it.service_id),
            );
            move_task(&mut self.tasks_of, id, services, &mut touched);
            let task = after.map(|endpoint| network::Task {
                address: endpoint.address.into(),
                node: endpoint.node_id.clone(),
            });
            put(&mut self.tasks, id, task);
        }
        for (id, ..) in self.told.services.differences(&assigned.services) {
            touched.insert(id.clone());
        }
        for id in &touched {
            let service = assigned.services.get(id).map(|service| {
                let tasks = self.tasks_of.get(id).into_iter().flatten();
                network::Service {
                    index: service.index,
                    ports: service.ports.clone(),
                    backends: tasks
                        .filter_map(|task| Some(backend(assigned.endpoints.get(task)?, own)))
                        .collect(),
                }
            });
            put(&mut self.services, id, service);
        }
        let names = |of: &Assigned| -> BTreeSet<NetworkId> {
            let with_tasks = of.network_endpoints.keys();
            with_tasks
                .chain(of.network_services.keys())
                .cloned()
                .collect()
        };
        let there = names(assigned);
        self.on_networks
            .retain(|network, _| there.contains(network));
        for network in there {
            if self.told.networks.get(&network) != assigned.networks.get(&network) {
                self.on_networks.remove(&network);
            }
            let nothing = Assigned::default();
            let (told, on) = match self.on_networks.entry(network.clone()) {
                Entry::Occupied(on) => (&self.told, on.into_mut()),
                Entry::Vacant(place) => (&nothing, place.insert(OnNetwork::default())),
            };
            on.follow(&network, told, assigned);
        }
        self.told = assigned.clone();
    }
}

impl OnNetwork {
    fn follow(&mut self, id: &NetworkId, told: &Assigned, assigned: &Assigned) {
        let (no_tasks, no_services) = (SharedMap::new(), SharedMap::new());
        let tasks_before = told.network_endpoints.get(id).unwrap_or(&no_tasks);
        let tasks = assigned.network_endpoints.get(id).unwrap_or(&no_tasks);
        let services_before = told.network_services.get(id).unwrap_or(&no_services);
        let services = assigned.network_services.get(id).unwrap_or(&no_services);
        let mut touched = BTreeSet::new();
        for (id, before, after) in tasks_before.differences(tasks) {
            let services = (
                before.map(|it| &it.service_id),
                after.map(|it| &it.service_id),
            );
            move_task(&mut self.tasks_of, id, services, &mut touched);
            let task = after.map(|endpoint| network::Task {
                address: endpoint.address.into(),
                node: endpoint.node_id.clone(),
            });
            put(&mut self.members, id, task);
        }
        for (id, ..) in services_before.differences(services) {
            touched.insert(id.clone());
        }
        let network = assigned.networks.get(id);
        let both = |address: Ipv4Addr| {
            let ipv6 = network.and_then(|network| network.address6(address));
            [Some(IpAddr::V4(address)), ipv6.map(IpAddr::V6)]
                .into_iter()
                .flatten()
        };
        for id in &touched {
            let vip = services.get(id).and_then(|service| service.vip);
            let service = vip.map(|vip| {
                let of_service = self.tasks_of.get(id).into_iter().flatten();
                let endpoints = of_service.filter_map(|task| tasks.get(task));
                let ready = endpoints.filter(|endpoint| endpoint.balanced == Balanced::Yes);
                VirtualService {
                    addresses: both(vip).collect(),
                    ready: ready.flat_map(|endpoint| both(endpoint.address)).collect(),
                }
            });
            put(&mut self.services, id, service);
        }
    }
}

/// Notes that a task is of another service than before, or of the same one and otherwise changed.
fn move_task(
    tasks_of: &mut TasksOf,
    task: &TaskId,
    (before, after): (Option<&ServiceId>, Option<&ServiceId>),
    touched: &mut BTreeSet<ServiceId>,
) {
    touched.extend(before.into_iter().chain(after).cloned());
    if before == after {
        return;
    }
    if let Some(service) = before
        && let Some(tasks) = tasks_of.get_mut(service)
    {
        tasks.retain(|other| other != task);
        if tasks.is_empty() {
            tasks_of.remove(service);
        }
    }
    if let Some(service) = after {
        let tasks = tasks_of.entry(service.clone()).or_default();
        let place = tasks.partition_point(|other| other < task);
        tasks.insert(place, task.clone());
    }
}

/// Makes an entry what it is now.
fn put<K: Ord + Clone, V: Clone>(map: &mut SharedMap<K, V>, key: &K, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key.clone(), value)),
        None => drop(map.remove(key)),
    }
}

fn backend(endpoint: &Endpoint, own: &NodeId) -> Backend {
    Backend {
        address: endpoint.address.into(),
        local: endpoint.node_id == *own,
        state: match endpoint.balanced {
            Balanced::NotYet => BackendState::Starting,
            Balanced::Yes => BackendState::Ready,
            Balanced::NoMore => BackendState::Draining,
        },
    }
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
