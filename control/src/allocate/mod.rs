//! Gives objects what only one of them may have: subnets, VXLAN ids, addresses of nodes, tasks and
//! services on networks, published ports, service indexes.
//!
//! Every pass first claims what objects own already, then gives what is missing, so that a new
//! leader, which knows nothing but the store, gives nothing twice. Addresses and chosen ports are
//! given serially: what was freed comes round again as late as possible, since connections and
//! caches may still name it.
//!
//! Invariants:
//! * On a network, no two nodes, services or tasks that have not ended own the same address. No two
//!   services own the same published port of a protocol or the same index, no two networks the same
//!   VXLAN id or overlapping subnets.
//! * What an object was given it keeps, as long as it still asks for it.
//! * What cannot be given is told in the object's own status, with the remedy.
//!
//! * IPv6 addresses are never given: they follow from the IPv4 ones (`Network::address6`).
//!
//! Networks are made when they are asked for ([`make_network`]), so that whoever asks is told at
//! once; the pass does the rest.

mod address;
mod network;
mod port;
#[cfg(test)]
mod tests;
mod vip;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use swarm_model::{
    Attachment, DesiredState, Meta, Network, NetworkId, NetworkSpec, ServiceId, Task, TaskState,
    Timestamp, Vni,
};

use crate::orchestrate::Batch;
use crate::store::State;

use address::Pools;
pub(crate) use network::{NoNetwork, make as make_network};

/// The ingress network's name and subnet (those of swarm 1.12).
const INGRESS_NAME: &str = "ingress";
const INGRESS_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 0);
const INGRESS_PREFIX_LEN: u8 = 16;
/// Kept free: the gateways of the ingress network are its nodes' addresses.
const INGRESS_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 1);

/// Where serial allocation goes on. A leader keeps one for as long as it leads.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cursor {
    addresses: address::Cursors,
    port: Option<u16>,
}

/// Gives every object what it lacks. Does nothing before there is a swarm.
pub(crate) fn pass(
    state: &State,
    cursor: &mut Cursor,
    batch: &mut Batch,
    rng: &mut impl rand::Rng,
) {
    if state.cluster().is_none() {
        return;
    }
    let Some(ingress) = state.ingress_network() else {
        batch.put_network(ingress_network(batch.now(), rng));
        return;
    };
    if ingress.subnet6.is_none() {
        // One that was made before there was IPv6.
        let mut ingress = Network::clone(ingress);
        ingress.subnet6 = Some(network::unique_local(rng));
        batch.put_network(ingress);
        return;
    }
    let mut pools = Pools::new(state, std::mem::take(&mut cursor.addresses));
    node_addresses(state, &ingress.id, &mut pools, batch);
    let unsettled = endpoints(state, &mut cursor.port, &mut pools, batch);
    tasks(state, &ingress.id, &unsettled, &mut pools, batch);
    networks(state, &pools, batch);
    cursor.addresses = pools.into_cursors();
}

fn ingress_network(now: Timestamp, rng: &mut impl rand::Rng) -> Network {
    Network {
        id: NetworkId::random(rng),
        meta: Meta {
            version: 0,
            created_at: now,
            updated_at: now,
        },
        spec: NetworkSpec {
            name: INGRESS_NAME.to_owned(),
            ingress: true,
            ..NetworkSpec::default()
        },
        subnet: Ipv4Net::new_assert(INGRESS_ADDRESS, INGRESS_PREFIX_LEN),
        gateway: INGRESS_GATEWAY,
        subnet6: Some(network::unique_local(rng)),
        vni: Vni::FIRST,
        error: String::new(),
    }
}

fn node_addresses(state: &State, ingress: &NetworkId, pools: &mut Pools<'_>, batch: &mut Batch) {
    let mut nodes: Vec<_> = state
        .nodes()
        .filter(|node| node.ingress_address.is_none())
        .collect();
    nodes.sort_by_key(|node| (node.meta.created_at, &node.id));
    for node in nodes {
        if batch.is_full() {
            return;
        }
        // A node without an address gets no tasks that need one; the scheduler tells why.
        let Some(address) = pools.next(ingress) else {
            return;
        };
        let mut node = node.as_ref().clone();
        node.ingress_address = Some(address);
        batch.put_node(node);
    }
}

/// Settles every service's endpoint. Gives the services whose endpoint in the store is not what
/// it is to be: their tasks wait for the next pass.
fn endpoints(
    state: &State,
    port: &mut Option<u16>,
    pools: &mut Pools<'_>,
    batch: &mut Batch,
) -> BTreeSet<ServiceId> {
    let mut unsettled = BTreeSet::new();
    for (service, mut endpoint) in port::settle(state, port) {
        let (vips, error) = vip::settle(state, service, pools);
        endpoint.vips = vips;
        if !error.is_empty() {
            if !endpoint.error.is_empty() {
                endpoint.error.push_str("; ");
            }
            endpoint.error.push_str(&error);
        }
        if service.endpoint == endpoint {
            continue;
        }
        unsettled.insert(service.id.clone());
        if !batch.is_full() {
            let mut service = service.clone();
            service.endpoint = endpoint;
            batch.put_service(service);
        }
    }
    unsettled
}

fn tasks(
    state: &State,
    ingress: &NetworkId,
    unsettled: &BTreeSet<ServiceId>,
    pools: &mut Pools<'_>,
    batch: &mut Batch,
) {
    let mut tasks: Vec<_> = state
        .tasks()
        .filter(|task| {
            task.status.state == TaskState::New && task.desired_state == DesiredState::Running
        })
        .collect();
    tasks.sort_by_key(|task| (task.meta.created_at, task.slot, &task.id));
    for task in tasks {
        if batch.is_full() {
            return;
        }
        let Some(service) = state.service(&task.service_id) else {
            continue;
        };
        if unsettled.contains(&service.id) {
            continue;
        }
        let addresses = if service.endpoint.error.is_empty() {
            addresses(state, task, ingress, pools)
        } else {
            Err(service.endpoint.error.clone())
        };
        if let Some(next) = allocated(task, addresses, batch.now()) {
            batch.put_task(next);
        }
    }
}

/// What a task needs: its address on the ingress network, its places on networks of users.
type TaskAddresses = (Ipv4Addr, Vec<Attachment>);

/// All the addresses that `task` needs, or why it gets none of them.
fn addresses(
    state: &State,
    task: &Task,
    ingress: &NetworkId,
    pools: &mut Pools<'_>,
) -> Result<TaskAddresses, String> {
    let specs = task.spec.networks.iter();
    let networks: Vec<(NetworkId, _)> = specs
        .filter_map(|spec| Some((spec.target.parse().ok()?, spec)))
        .collect();
    for network in std::iter::once(ingress).chain(networks.iter().map(|(id, _)| id)) {
        if !pools.has_free(network) {
            return Err(vip::refusal(state, network));
        }
    }
    let mut take = |network: &NetworkId| {
        let address = pools.next(network);
        address.ok_or_else(|| vip::refusal(state, network))
    };
    let ingress_address = take(ingress)?;
    let mut attachments = Vec::new();
    for (network, spec) in networks {
        attachments.push(Attachment {
            address: take(&network)?,
            network,
            aliases: spec.aliases.clone(),
        });
    }
    Ok((ingress_address, attachments))
}

/// `task` with what it needs, or with the reason why it has to wait; none when that is told
/// already.
fn allocated(
    task: &Task,
    addresses: Result<TaskAddresses, String>,
    now: Timestamp,
) -> Option<Task> {
    let mut next = task.clone();
    match addresses {
        Ok((ingress_address, attachments)) => {
            next.ingress_address = Some(ingress_address);
            next.attachments = attachments;
            next.status.state = TaskState::Pending;
            next.status.since = now;
            next.status.error.clear();
        }
        Err(error) if task.status.error == error => return None,
        Err(error) => {
            next.status.message = "waiting for the network".to_owned();
            next.status.error = error;
        }
    }
    Some(next)
}

/// Tells of each network whether it has run out of addresses.
fn networks(state: &State, pools: &Pools<'_>, batch: &mut Batch) {
    // A pass that was cut short has not asked for all that is wanted.
    let complete = !batch.is_full();
    for network in state.networks() {
        let error = if pools.is_exhausted(&network.id) {
            address::exhausted(network)
        } else if complete {
            String::new()
        } else {
            continue;
        };
        if network.error != error {
            let mut network = Network::clone(network);
            network.error = error;
            batch.put_network(network);
        }
    }
}
