//! What the kernel has counted on this node: per service, per task, per event. Pure; who reads the
//! counters is in [`pass`](super::pass).
//!
//! | what | counted by | of |
//! |---|---|---|
//! | packets, bytes and drops of a service | `mesh_uplink` | what came in at this node for its published ports |
//! | connections of a service and of a task | IPVS | what this node has balanced, wherever the task is |
//! | drops of a task | `flow_learn`, `flow_return` | what it sent, and what was sent to it, on its own node |
//! | packets and bytes of a task | its interface on the ingress network | all of a task's traffic there, on its own node |
//! | events, drops among them | all programs | this node |
//!
//! IPVS's own packets and bytes are not used: most packets of a connection take the shortcut past
//! it. Sockets that are balanced when they connect (virtual addresses, `localhost`) are no packets
//! of the mesh: their connections are in no counter, what they carry is in those of the task.
//!
//! Before Linux 6.8 the kernel does not count what is redirected into a task's namespace.
//!
//! All counters start again when what they are about is made anew, and grow otherwise.

use std::collections::BTreeMap;
use std::net::IpAddr;

use swarm_ipvs::{DestinationEntry, ServiceEntry, ServiceKey};
use swarm_model::{Protocol, ServiceId, TaskId};

use crate::ebpf::{Counter, ServiceStats};

use super::desired::{Desired, address6};
use super::model::{Published, PublishedAs};

/// What was counted on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeStats {
    /// Services with published ports.
    pub(crate) services: BTreeMap<ServiceId, ServiceTally>,
    /// Tasks behind them, wherever they are, and all tasks of this node.
    pub(crate) tasks: BTreeMap<TaskId, TaskTally>,
    /// What the programs of this node have counted, by the event's name.
    pub(crate) events: BTreeMap<&'static str, u64>,
}

/// What was counted of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServiceTally {
    /// Packets from clients.
    pub(crate) packets: u64,
    /// Their bytes, Ethernet headers included.
    pub(crate) bytes: u64,
    /// Connections balanced.
    pub(crate) connections: u64,
    /// Packets from clients that were dropped or refused, by each of [`Counter::OF_SERVICES`].
    pub(crate) drops: Drops,
}

/// Packets by why they were dropped, those at zero too.
pub(crate) type Drops = BTreeMap<&'static str, u64>;

/// What was counted of a task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TaskTally {
    /// Connections that this node has balanced to it.
    pub(crate) connections: u64,
    /// Those of them that are established now.
    pub(crate) active: u64,
    /// What went to and from it; nothing for a task of another node.
    pub(crate) traffic: Option<Traffic>,
    /// Packets to and from it that were dropped, by each of [`Counter::OF_TASKS`]; nothing for a task
    /// of another node.
    pub(crate) drops: Drops,
}

/// What went to and from a task on the ingress network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// Packets to it.
    pub(crate) in_packets: u64,
    /// Their bytes, Ethernet headers included.
    pub(crate) in_bytes: u64,
    /// Packets from it.
    pub(crate) out_packets: u64,
    /// Their bytes.
    pub(crate) out_bytes: u64,
}

/// The counters as they were read.
#[derive(Clone, Debug, Default)]
pub(super) struct Counted {
    /// Which service each published port is of, as the programs know it.
    pub(super) published: BTreeMap<Published, PublishedAs>,
    /// By the service's index.
    pub(super) services: BTreeMap<u32, ServiceStats>,
    /// By reason and by the service's index or the port's in `task_ports`.
    pub(super) drops: BTreeMap<(Counter, u32), u64>,
    /// The address behind each task's port, by the port's interface index.
    pub(super) task_ports: BTreeMap<u32, IpAddr>,
    /// All of them.
    pub(super) events: BTreeMap<Counter, u64>,
    /// IPVS services with their destinations.
    pub(super) balanced: Vec<(ServiceEntry, Vec<DestinationEntry>)>,
    /// By task.
    pub(super) traffic: BTreeMap<TaskId, Traffic>,
}

impl Counted {
    fn drops_of(&self, reasons: &[Counter], of: u32) -> Drops {
        let reasons = reasons.iter();
        reasons
            .map(|reason| {
                let packets = self.drops.get(&(*reason, of)).copied().unwrap_or(0);
                (reason.name(), packets)
            })
            .collect()
    }
}

/// Says of which service and task of `desired` what was counted is. What is of none is left out:
/// it was counted of one that is gone.
pub(super) fn node_stats(desired: &Desired, counted: &Counted) -> NodeStats {
    let mut stats = NodeStats::default();
    let by_index: BTreeMap<u32, &ServiceId> = desired
        .services
        .iter()
        .map(|(id, service)| (service.index, id))
        .collect();
    for (index, id) in &by_index {
        let of = counted.services.get(index).copied().unwrap_or_default();
        let tally = ServiceTally {
            packets: of.packets,
            bytes: of.bytes,
            connections: 0,
            drops: counted.drops_of(&Counter::OF_SERVICES, *index),
        };
        stats.services.insert((*id).clone(), tally);
    }
    let tasks = by_address(desired);
    for (service, destinations) in &counted.balanced {
        let index = published(&service.service.key).and_then(|port| counted.published.get(&port));
        let id = index.and_then(|published| by_index.get(&published.service));
        if let Some(tally) = id.and_then(|id| stats.services.get_mut(*id)) {
            tally.connections += service.stats.connections;
        }
        for destination in destinations {
            if let Some(task) = tasks.get(&destination.destination.key.address) {
                let tally = stats.tasks.entry((*task).clone()).or_default();
                tally.connections += destination.stats.connections;
                tally.active += u64::from(destination.active_connections);
            }
        }
    }
    for task in desired.local_tasks.keys() {
        let tally = stats.tasks.entry(task.clone()).or_default();
        tally.traffic = counted.traffic.get(task).copied();
    }
    for (port, address) in &counted.task_ports {
        if let Some(tally) = tasks
            .get(address)
            .and_then(|task| stats.tasks.get_mut(*task))
        {
            tally.drops = counted.drops_of(&Counter::OF_TASKS, *port);
        }
    }
    let events = counted.events.iter();
    stats.events = events
        .map(|(event, count)| (event.name(), *count))
        .collect();
    stats
}

/// Whose an address on the ingress network is.
fn by_address(desired: &Desired) -> BTreeMap<IpAddr, &TaskId> {
    let subnet6 = desired.network.subnet6;
    let mut tasks = BTreeMap::new();
    for (id, task) in desired.tasks.iter() {
        tasks.insert(task.address, id);
        if let Some(twin) = subnet6.and_then(|subnet6| address6(subnet6, task.address)) {
            tasks.insert(twin, id);
        }
    }
    tasks
}

/// The published port that an IPVS service balances.
fn published(key: &ServiceKey) -> Option<Published> {
    let ServiceKey::Address {
        protocol,
        address,
        port,
    } = *key
    else {
        return None;
    };
    let protocol = match protocol {
        swarm_ipvs::Protocol::TCP => Protocol::Tcp,
        swarm_ipvs::Protocol::UDP => Protocol::Udp,
        swarm_ipvs::Protocol::SCTP => Protocol::Sctp,
        _ => return None,
    };
    Some(Published {
        address,
        port,
        protocol,
    })
}

#[cfg(test)]
mod tests;
