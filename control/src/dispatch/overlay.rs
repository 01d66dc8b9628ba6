//! What a node is to know of the networks of users: everything about those that it has tasks on,
//! and nothing about any other.
//!
//! What is said of a network is the same for every node on it, so it is worked out and compared
//! once a round and network, however many nodes there are; and only where something on that network
//! has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use swarm_model::{
    Attachment, EndpointMode, Network, NetworkId, NodeId, Service, ServiceId, Task, TaskId,
};

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
pub(super) type ByNetwork = BTreeMap<NetworkId, Arc<Known>>;

/// What every node on a network is to know of it, and what that was made from.
#[derive(Debug)]
pub(super) struct Known {
    made_from: MadeFrom,
    /// The network itself, its endpoints and its services.
    pub(super) items: Assignments,
}

/// How many objects of each kind something was made from, and the newest version among them. An
/// object that is put has a version that none had before, so that what was made from the same is
/// the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MadeFrom {
    network: u64,
    nodes: (usize, u64),
    services: (usize, u64),
    tasks: (usize, u64),
}

impl MadeFrom {
    fn of(state: &State, network: &Network, nodes: (usize, u64)) -> Self {
        let tasks = || state.tasks_of_network(&network.id);
        let services: BTreeSet<&ServiceId> = tasks().map(|task| &task.service_id).collect();
        let others = state.services_of_network(&network.id);
        let others = others.filter(|service| !services.contains(&service.id));
        let services = services.iter().filter_map(|id| state.service(id));
        Self {
            network: network.meta.version,
            nodes,
            services: count(services.chain(others).map(|service| service.meta.version)),
            tasks: count(tasks().map(|task| task.meta.version)),
        }
    }
}

/// How many versions there are, and the newest.
pub(super) fn count(versions: impl Iterator<Item = u64>) -> (usize, u64) {
    versions.fold((0, 0), |(count, newest), version| {
        (count + 1, newest.max(version))
    })
}

/// The networks of users that `node` takes part in: those of its tasks that have not ended.
pub(super) fn present(state: &State, node: &NodeId) -> BTreeSet<NetworkId> {
    state
        .tasks_of_node(node)
        .filter(|task| !task.status.state.is_terminal())
        .flat_map(|task| &task.attachments)
        .map(|attachment| attachment.network.clone())
        .collect()
}

/// What nodes are to know of each network of a user that any node takes part in; of one that
/// nothing has changed since `old`, just that.
pub(super) fn networks(state: &State, old: &ByNetwork) -> ByNetwork {
    let nodes = count(state.nodes().map(|node| node.meta.version));
    let of_users = state.networks().filter(|network| !network.spec.ingress);
    of_users
        .filter_map(|network| {
            let made_from = MadeFrom::of(state, network, nodes);
            let known = old.get(&network.id);
            let known = match known.filter(|known| known.made_from == made_from) {
                Some(known) => Arc::clone(known),
                None => Arc::new(Known {
                    made_from,
                    items: items(state, network)?,
                }),
            };
            Some((network.id.clone(), known))
        })
        .collect()
}

/// What nodes are to know of `network`; none while it has no endpoint, and so is on no node.
fn items(state: &State, network: &Arc<Network>) -> Option<Assignments> {
    let endpoints = endpoints(state, &network.id);
    if endpoints.is_empty() {
        return None;
    }
    let mut services: BTreeSet<&ServiceId> = state
        .services_of_network(&network.id)
        .map(|service| &service.id)
        .collect();
    services.extend(endpoints.iter().map(|endpoint| &endpoint.service));
    let services = services.iter().filter_map(|id| state.service(id));
    let services = services.map(|service| {
        let it = network_service(&network.id, service);
        let key = AssignmentKey::NetworkService(it.network.clone(), it.service.clone());
        (key, Item::NetworkService(it))
    });
    let itself = (
        AssignmentKey::Network(network.id.clone()),
        Item::Network(Arc::clone(network)),
    );
    let mut items: Assignments = std::iter::once(itself).chain(services).collect();
    items.extend(endpoints.into_iter().map(|it| {
        let key = AssignmentKey::NetworkEndpoint(it.network.clone(), it.task.clone());
        (key, Item::NetworkEndpoint(it))
    }));
    Some(items)
}

/// The endpoints of `network`. Silent nodes as on the ingress network.
fn endpoints(state: &State, network: &NetworkId) -> Vec<NetworkEndpoint> {
    let mut endpoints = Vec::new();
    let mut with_ready = BTreeSet::new();
    let mut on_suspect = Vec::new();
    for task in state.tasks_of_network(network) {
        let mut attachments = task.attachments.iter();
        let attachment = attachments.find(|attachment| attachment.network == *network);
        let (Some(attachment), Some(serving)) = (attachment, serving(state, task)) else {
            continue;
        };
        if serving.state == EndpointState::Ready {
            with_ready.insert(&task.service_id);
        } else if serving.but_for_silence {
            on_suspect.push(endpoints.len());
        }
        endpoints.push(endpoint(task, attachment, &serving.node.id, serving.state));
    }
    for at in on_suspect {
        let endpoint: &mut NetworkEndpoint = &mut endpoints[at];
        if !with_ready.contains(&endpoint.service) {
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
            let old = old.get(id).filter(|old| !Arc::ptr_eq(old, new))?;
            let delta = Delta::between(&old.items, &new.items);
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
        let gone = old.get(left).into_iter().flat_map(|it| it.items.keys());
        delta.remove.extend(gone.cloned());
    }
    for network in now {
        if !before.contains(network) || !old.contains_key(network) {
            let all = new
                .get(network)
                .into_iter()
                .flat_map(|it| it.items.values());
            delta.put.extend(all.cloned());
        } else if !new.contains_key(network) {
            let gone = old.get(network).into_iter().flat_map(|it| it.items.keys());
            delta.remove.extend(gone.cloned());
        } else if let Some(news) = news.get(network) {
            delta = delta.with(news);
        }
    }
    delta
}
