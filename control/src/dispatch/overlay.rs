//! What a node is to know of the networks of users: everything about those that it has tasks on,
//! and nothing about any other.
//!
//! What is said of a network is the same for every node on it, so it is worked out and compared
//! once a round and network, however many nodes there are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use swarm_model::{Attachment, EndpointMode, NetworkId, NodeId, Service, ServiceId, Task, TaskId};

use super::assignment::{AssignmentKey, Assignments, Delta, EndpointState, Item, serving};
use crate::store::State;

/// A task on a network of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NetworkEndpoint {
    /// Which network.
    pub(crate) network: NetworkId,
    /// Which task.
    pub(crate) task: TaskId,
    /// `service.slot.id`.
    pub(crate) task_name: String,
    /// Its service.
    pub(crate) service: ServiceId,
    /// Its service's name.
    pub(crate) service_name: String,
    /// Its node.
    pub(crate) node: NodeId,
    /// Its address there.
    pub(crate) address: Ipv4Addr,
    /// Further names of its service there.
    pub(crate) aliases: Vec<String>,
    /// Whether it gets new connections.
    pub(crate) state: EndpointState,
}

/// A service on a network of a user, with or without tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NetworkService {
    /// Which network.
    pub(crate) network: NetworkId,
    /// Which service.
    pub(crate) service: ServiceId,
    /// Its name.
    pub(crate) name: String,
    /// Its further names there.
    pub(crate) aliases: Vec<String>,
    /// Its virtual address there; none in the mode `dnsrr`, and until it is allocated.
    pub(crate) vip: Option<Ipv4Addr>,
    /// What its name stands for.
    pub(crate) mode: EndpointMode,
}

/// Per network, what every node on it is to know.
pub(super) type ByNetwork = BTreeMap<NetworkId, Assignments>;

/// The networks of users that `node` takes part in: those of its tasks that have not ended.
pub(super) fn present(state: &State, node: &NodeId) -> BTreeSet<NetworkId> {
    state
        .tasks_of_node(node)
        .filter(|task| !task.status.state.is_terminal())
        .flat_map(|task| &task.attachments)
        .map(|attachment| attachment.network.clone())
        .collect()
}

/// What nodes are to know of each network of a user that any node takes part in.
pub(super) fn networks(state: &State) -> ByNetwork {
    let endpoints = endpoints(state);
    let mut attached: BTreeSet<(&NetworkId, &ServiceId)> = endpoints
        .values()
        .flatten()
        .map(|endpoint| (&endpoint.network, &endpoint.service))
        .collect();
    let named: Vec<_> = state
        .services()
        .flat_map(|service| {
            let asked = service.spec.task.network_ids();
            asked.map(move |network| (network, &service.id))
        })
        .collect();
    attached.extend(
        (named.iter().map(|(network, service)| (network, *service)))
            .filter(|(network, _)| endpoints.contains_key(*network)),
    );
    let mut services: BTreeMap<&NetworkId, Vec<NetworkService>> = BTreeMap::new();
    for (network, service) in attached {
        if let Some(service) = state.service(service) {
            let services = services.entry(network).or_default();
            services.push(network_service(network, service));
        }
    }
    endpoints
        .iter()
        .filter_map(|(id, endpoints)| {
            let network = state.network(id)?;
            let services = services.remove(id).unwrap_or_default();
            Some((id.clone(), assignments(network, endpoints, services)))
        })
        .collect()
}

fn assignments(
    network: &Arc<swarm_model::Network>,
    endpoints: &[NetworkEndpoint],
    services: Vec<NetworkService>,
) -> Assignments {
    let itself = (
        AssignmentKey::Network(network.id.clone()),
        Item::Network(Arc::clone(network)),
    );
    let endpoints = endpoints.iter().map(|it| {
        let key = AssignmentKey::NetworkEndpoint(it.network.clone(), it.task.clone());
        (key, Item::NetworkEndpoint(it.clone()))
    });
    let services = services.into_iter().map(|it| {
        let key = AssignmentKey::NetworkService(it.network.clone(), it.service.clone());
        (key, Item::NetworkService(it))
    });
    std::iter::once(itself)
        .chain(endpoints)
        .chain(services)
        .collect()
}

/// The endpoints of each network of a user that has any. Silent nodes as on the ingress network.
fn endpoints(state: &State) -> BTreeMap<NetworkId, Vec<NetworkEndpoint>> {
    let mut endpoints: BTreeMap<NetworkId, Vec<NetworkEndpoint>> = BTreeMap::new();
    let mut with_ready = BTreeSet::new();
    let mut on_suspect = Vec::new();
    for task in state.tasks() {
        if task.attachments.is_empty() {
            continue;
        }
        let Some(serving) = serving(state, task) else {
            continue;
        };
        for attachment in &task.attachments {
            let others = endpoints.entry(attachment.network.clone()).or_default();
            if serving.state == EndpointState::Ready {
                with_ready.insert((&attachment.network, &task.service_id));
            } else if serving.but_for_silence {
                on_suspect.push((&attachment.network, &task.service_id, others.len()));
            }
            others.push(endpoint(task, attachment, &serving.node.id, serving.state));
        }
    }
    for (network, service, at) in on_suspect {
        if !with_ready.contains(&(network, service))
            && let Some(endpoint) = endpoints.get_mut(network).and_then(|all| all.get_mut(at))
        {
            endpoint.state = EndpointState::Ready;
        }
    }
    endpoints
}

fn endpoint(
    task: &Task,
    attachment: &Attachment,
    node: &NodeId,
    state: EndpointState,
) -> NetworkEndpoint {
    NetworkEndpoint {
        network: attachment.network.clone(),
        task: task.id.clone(),
        task_name: format!("{}.{}", task.name(), task.id),
        service: task.service_id.clone(),
        service_name: task.service_name.clone(),
        node: node.clone(),
        address: attachment.address,
        aliases: attachment.aliases.clone(),
        state,
    }
}

fn network_service(network: &NetworkId, service: &Service) -> NetworkService {
    let asked = service.spec.task.networks.iter();
    let mut asked = asked.filter(|asked| asked.target == network.as_str());
    let mut vips = service.endpoint.vips.iter();
    NetworkService {
        network: network.clone(),
        service: service.id.clone(),
        name: service.spec.name.clone(),
        aliases: asked
            .next()
            .map(|asked| asked.aliases.clone())
            .unwrap_or_default(),
        vip: vips
            .find(|vip| vip.network == *network)
            .map(|vip| vip.address),
        mode: service.spec.endpoint.mode,
    }
}

/// How each network differs between two rounds; networks that do not are left out.
pub(super) fn news(old: &ByNetwork, new: &ByNetwork) -> BTreeMap<NetworkId, Delta> {
    new.iter()
        .filter_map(|(id, new)| {
            let delta = Delta::between(old.get(id)?, new);
            (!delta.is_empty()).then(|| (id.clone(), delta))
        })
        .collect()
}

/// What a node is to be told that took part in the networks `before`, of which it knows what `old`
/// says, and takes part in the networks `now`. `news` leads from `old` to `new`.
pub(super) fn changes(
    before: &BTreeSet<NetworkId>,
    now: &BTreeSet<NetworkId>,
    old: &ByNetwork,
    new: &ByNetwork,
    news: &BTreeMap<NetworkId, Delta>,
) -> Delta {
    let mut delta = Delta::default();
    for left in before.difference(now) {
        let gone = old.get(left).into_iter().flat_map(BTreeMap::keys);
        delta.remove.extend(gone.cloned());
    }
    for network in now {
        if !before.contains(network) || !old.contains_key(network) {
            let all = new.get(network).into_iter().flat_map(BTreeMap::values);
            delta.put.extend(all.cloned());
        } else if !new.contains_key(network) {
            let gone = old.get(network).into_iter().flat_map(BTreeMap::keys);
            delta.remove.extend(gone.cloned());
        } else if let Some(news) = news.get(network) {
            delta = delta.with(news);
        }
    }
    delta
}
