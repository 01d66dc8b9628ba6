//! What the worker asks of this node's networks. Plain data: compared and cloned, never shared
//! mutably.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};
use swarm_model::{NetworkId, NodeId, PortConfig, ServiceId, TaskId};

use crate::SharedMap;

/// Everything the kernel of this node is to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Desired {
    /// This node.
    pub(crate) local: LocalNode,
    /// The network of the routing mesh.
    pub(crate) network: IngressNetwork,
    /// The other nodes with an address on the network. This node among them is ignored.
    pub(crate) peers: BTreeMap<NodeId, Peer>,
    /// Per network of a user, every task on it, wherever it runs; as for `tasks`. What a network is
    /// like is said with each attachment: without one of a local task there is none on this node.
    pub(crate) members: BTreeMap<NetworkId, SharedMap<TaskId, Task>>,
    /// Every task on the network, wherever it runs. One on a node that is neither local nor among
    /// the peers cannot be reached and is left out.
    pub(crate) tasks: SharedMap<TaskId, Task>,
    /// Tasks of this node that need a network namespace: **every** task that may still have a
    /// container, for namespaces of other tasks are deleted. Tasks announced by
    /// [`prepare_task`](super::Reconciler::prepare_task) are added by the reconciler itself.
    pub(crate) local_tasks: BTreeMap<TaskId, LocalTask>,
    /// Services with a published port.
    pub(crate) services: SharedMap<ServiceId, Service>,
    /// What the sockets of this node's tasks may ask for. A task that is not listed asks for what
    /// there is without us.
    pub(crate) task_sockets: BTreeMap<TaskId, TaskSockets>,
    /// Services with virtual addresses, per network of a user. A network that no task here is on
    /// needs none.
    pub(crate) virtual_services: BTreeMap<NetworkId, SharedMap<ServiceId, VirtualService>>,
}

/// What the sockets of a task may ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TaskSockets {
    /// Virtual addresses of these networks.
    pub(crate) networks: BTreeSet<NetworkId>,
    /// Ports published at this node's addresses.
    pub(crate) published: bool,
}

/// A service on a network of a user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct VirtualService {
    /// Its virtual addresses there, at most one of each family.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// The addresses there of its tasks that take connections, of each family.
    pub(crate) ready: BTreeSet<IpAddr>,
}

/// A task of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LocalTask {
    /// Its address on the ingress network.
    pub(crate) address: IpAddr,
    /// Whether it may reach the outside.
    pub(crate) egress: bool,
    /// Its places on networks of users.
    pub(crate) attachments: Vec<Attachment>,
}

/// A local task's place on a network of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attachment {
    /// Its interface is `eth` and this number, from 1 (`eth0` is on the ingress network).
    pub(crate) interface: usize,
    /// Which network.
    pub(crate) network: NetworkId,
    /// What that is like; the same for all tasks.
    pub(crate) overlay: Overlay,
    /// The task's address there.
    pub(crate) address: IpAddr,
}

/// A network of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overlay {
    /// VXLAN network identifier, 1 to 2^24-1.
    pub(crate) vni: u32,
    /// The network's addresses.
    pub(crate) subnet: IpNet,
    /// Its IPv6 addresses, as those of [`IngressNetwork`]; nothing for a network of IPv4 alone.
    pub(crate) subnet6: Option<Ipv6Net>,
    /// The address that every node answers as the gateway.
    pub(crate) gateway: IpAddr,
    /// Largest packet in bytes that a person wants; what the underlay does not carry is lowered.
    pub(crate) mtu: Option<u32>,
}

/// This node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LocalNode {
    /// Its id.
    pub(crate) id: NodeId,
    /// Its data-path address: an address of the host, the other nodes' VXLAN packets go there.
    pub(crate) vtep: IpAddr,
    /// Its address on the ingress network: gateway of the tasks here.
    pub(crate) ingress: IpAddr,
}

/// The network of the routing mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IngressNetwork {
    /// VXLAN network identifier, 1 to 2^24-1.
    pub(crate) vni: u32,
    /// The network's addresses.
    pub(crate) subnet: IpNet,
    /// Its IPv6 addresses, with a prefix of at most 96 bits; nothing for a network of IPv4 alone.
    pub(crate) subnet6: Option<Ipv6Net>,
}

/// The IPv6 address of whoever has `address` on a network: nobody allocates it, it is the prefix of
/// `subnet6` with the IPv4 address in its last four bytes. Nothing for an IPv6 address.
pub(crate) fn address6(subnet6: Ipv6Net, address: IpAddr) -> Option<IpAddr> {
    let IpAddr::V4(address) = address else {
        return None;
    };
    let prefix = subnet6.trunc().addr().to_bits();
    Some(Ipv6Addr::from_bits(prefix | u128::from(address.to_bits())).into())
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Its address on the ingress network.
    pub(crate) ingress: IpAddr,
    /// Its data-path address.
    pub(crate) vtep: IpAddr,
}

/// A task on the ingress network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Task {
    /// Its address.
    pub(crate) address: IpAddr,
    /// Where it runs.
    pub(crate) node: NodeId,
}

/// A service with published ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Service {
    /// The service's slot in the eBPF counters: unique on this node, the same for as long as the
    /// service exists.
    pub(crate) index: u32,
    /// Its published ports, their numbers chosen. Where two services publish the same one, the lower
    /// service id has it.
    pub(crate) ports: Vec<PortConfig>,
    /// Its tasks that have not ended.
    pub(crate) backends: Vec<Backend>,
}

/// A task behind a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Backend {
    /// The task's address on the ingress network.
    pub(crate) address: IpAddr,
    /// Whether it is on this node.
    pub(crate) local: bool,
    /// Whether it takes connections.
    pub(crate) state: BackendState,
}

/// Whether a task takes connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum BackendState {
    /// Not yet.
    Starting,
    /// Yes.
    Ready,
    /// No new ones; the old ones run on.
    Draining,
}
