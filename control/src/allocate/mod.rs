//! Gives objects what only one of them may have: addresses on the ingress network, published
//! ports, service indexes, VXLAN ids.
//!
//! Every pass first claims what objects own already, then gives what is missing, so that a new
//! leader, which knows nothing but the store, gives nothing twice. Addresses and chosen ports are
//! given serially: what was freed comes round again as late as possible, since connections and
//! caches may still name it.
//!
//! Invariants:
//! * No two nodes or tasks that have not ended own the same address, no two services the same
//!   published port of a protocol or the same index.
//! * What an object was given it keeps, as long as it still asks for it.
//! * What cannot be given is told in the object's own status, with the remedy.
//!
//! * IPv6 addresses are never given: they follow from the IPv4 ones (`Network::address6`).
//!
//! Deliberately absent: overlay networks of users, virtual addresses of services.

mod address;
mod port;
mod subnet;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use swarm_model::{
    DesiredState, Meta, Network, NetworkId, NetworkSpec, Service, Task, TaskState, Timestamp, Vni,
};

use crate::orchestrate::Batch;
use crate::store::State;

use address::Addresses;

/// The ingress network's name and subnet (those of swarm 1.12).
const INGRESS_NAME: &str = "ingress";
const INGRESS_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 0);
const INGRESS_PREFIX_LEN: u8 = 16;
/// Kept free: the gateways of the ingress network are its nodes' addresses.
const INGRESS_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 1);

/// Where serial allocation goes on. A leader keeps one for as long as it leads.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cursor {
    address: Option<Ipv4Addr>,
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
        ingress.subnet6 = Some(subnet::unique_local(rng));
        batch.put_network(ingress);
        return;
    }
    let mut addresses = Addresses::of(state, ingress.subnet, cursor.address);
    node_addresses(state, &mut addresses, batch);
    let unsettled = endpoints(state, cursor, batch);
    tasks(state, &unsettled, &mut addresses, batch);
    cursor.address = addresses.cursor();
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
        subnet6: Some(subnet::unique_local(rng)),
        vni: Vni::FIRST,
        error: String::new(),
    }
}

fn node_addresses(state: &State, addresses: &mut Addresses, batch: &mut Batch) {
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
        let Some(address) = addresses.next() else {
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
    cursor: &mut Cursor,
    batch: &mut Batch,
) -> BTreeSet<swarm_model::ServiceId> {
    let mut unsettled = BTreeSet::new();
    for (service, endpoint) in port::settle(state, &mut cursor.port) {
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
    unsettled: &BTreeSet<swarm_model::ServiceId>,
    addresses: &mut Addresses,
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
        if !unsettled.contains(&service.id)
            && let Some(next) = allocate_task(task, service, addresses, batch.now())
        {
            batch.put_task(next);
        }
    }
}

/// `task` with what it needs, or with the reason why it has to wait; none when that is told
/// already.
fn allocate_task(
    task: &Task,
    service: &Service,
    addresses: &mut Addresses,
    now: Timestamp,
) -> Option<Task> {
    let mut next = task.clone();
    let error = if !service.endpoint.error.is_empty() {
        service.endpoint.error.clone()
    } else {
        next.ingress_address = addresses.next();
        if next.ingress_address.is_some() {
            String::new()
        } else {
            addresses.exhausted()
        }
    };
    if error.is_empty() {
        next.status.state = TaskState::Pending;
        next.status.since = now;
        next.status.error.clear();
    } else if task.status.error == error {
        return None;
    } else {
        next.status.message = "waiting for the network".to_owned();
        next.status.error = error;
    }
    Some(next)
}
