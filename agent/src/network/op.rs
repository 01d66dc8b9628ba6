//! The operations on the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use swarm_ipvs::Op as IpvsOp;
use swarm_model::TaskId;

use crate::ebpf::{PublishedKey, SocketService, SocketTarget};

use super::isolation::Isolation;
use super::model::{
    Device, Firewall, Mac, MeshConfig, NetworkName, Place, PortFlags, Program, Published,
    PublishedAs, Route, Source, Vxlan,
};
use super::names::{FIREWALL_TABLE, task_port};
use super::sockets::Sockets;

/// One end of a new veth pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VethEnd {
    /// Where and what name.
    pub(super) device: Device,
    /// MAC address; nothing lets the kernel draw one.
    pub(super) mac: Option<Mac>,
}

/// Entries of a map that are put in or taken out; the others stay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Changes<K: Ord, V> {
    /// In the place of what is there.
    pub(super) put: BTreeMap<K, V>,
    /// None of them among those put in.
    pub(super) remove: BTreeSet<K>,
}

impl<K: Ord + Clone, V: Clone + PartialEq> Changes<K, V> {
    /// What leads from one map to another.
    pub(super) fn between(now: &BTreeMap<K, V>, wanted: &BTreeMap<K, V>) -> Self {
        let differs = |(key, value): &(&K, &V)| now.get(*key) != Some(*value);
        let put = wanted.iter().filter(differs);
        let remove = now.keys().filter(|key| !wanted.contains_key(*key));
        Self {
            put: put
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
            remove: remove.cloned().collect(),
        }
    }

    /// Makes them.
    pub(super) fn make(&self, map: &mut BTreeMap<K, V>) {
        for key in &self.remove {
            map.remove(key);
        }
        let put = self.put.iter();
        map.extend(put.map(|(key, value)| (key.clone(), value.clone())));
    }

    /// How many entries they are.
    pub(super) fn len(&self) -> usize {
        self.put.len() + self.remove.len()
    }
}

/// One step. Each is planned for what was seen and may be planned again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// Make a namespace.
    CreateNetns(Place),
    /// Remove a namespace's name, and it with its last user.
    DeleteNetns(Place),
    /// Make a setting.
    SetSysctl {
        place: Place,
        key: String,
        value: String,
    },
    /// Make a bridge.
    CreateBridge {
        device: Device,
        mac: Option<Mac>,
        mtu: Option<u32>,
    },
    /// Make a VXLAN device whose outer packets belong to the host's namespace.
    CreateVxlan {
        device: Device,
        mtu: Option<u32>,
        vxlan: Vxlan,
    },
    /// Make a veth pair.
    CreateVeth {
        ends: Box<[VethEnd; 2]>,
        mtu: Option<u32>,
    },
    /// Delete a link.
    DeleteLink(Device),
    /// Set a link's MAC address.
    SetMac { device: Device, mac: Mac },
    /// Set a link's MTU.
    SetMtu { device: Device, mtu: u32 },
    /// Set a link up.
    SetUp(Device),
    /// Make a link a port of a bridge.
    SetMaster { device: Device, master: String },
    /// Set how the bridge treats a port.
    SetPortFlags { device: Device, flags: PortFlags },
    /// Add an address.
    AddAddress { device: Device, address: IpNet },
    /// Delete an address.
    DeleteAddress { device: Device, address: IpNet },
    /// Add or replace a route.
    SetRoute {
        place: Place,
        destination: IpNet,
        route: Route,
    },
    /// Delete a route.
    DeleteRoute {
        place: Place,
        destination: IpNet,
        route: Route,
    },
    /// Add or replace a permanent neighbour.
    SetNeighbour {
        device: Arc<Device>,
        address: IpAddr,
        mac: Mac,
    },
    /// Delete a neighbour.
    DeleteNeighbour {
        device: Arc<Device>,
        address: IpAddr,
    },
    /// Say at which node a MAC address is.
    SetTunnel {
        device: Arc<Device>,
        mac: Mac,
        vtep: IpAddr,
    },
    /// Forget it.
    DeleteTunnel { device: Arc<Device>, mac: Mac },
    /// Say behind which port a MAC address is.
    SetForward { device: Arc<Device>, mac: Mac },
    /// Forget it.
    DeleteForward { device: Arc<Device>, mac: Mac },
    /// Attach a program to a link.
    Attach { device: Device, program: Program },
    /// Detach it.
    Detach { device: Device, program: Program },
    /// Say where programs redirect to.
    SetMeshConfig(MeshConfig),
    /// Say what this node's addresses are.
    SetNodeAddresses(BTreeSet<IpAddr>),
    /// Say who the ingress nodes are.
    SetIngressMacs(BTreeMap<Mac, u32>),
    /// Say what is published.
    SetPublished(BTreeMap<Published, PublishedAs>),
    /// Say who may use published ports that are restricted.
    SetSources(BTreeSet<Source>),
    /// Say who may talk to whom on the ingress network.
    SetIsolation(Isolation),
    /// Say what sockets are balanced to.
    SetSockets(Sockets),
    /// Publish some more, and others no more. This and those that follow are of increments.
    ChangePublished(Changes<Published, PublishedAs>),
    /// Let some more use published ports that are restricted, and others no more.
    ChangeSources(Changes<Source, ()>),
    /// Open and close targets of tasks on the ingress network.
    ChangeTargets(Changes<PublishedKey, u32>),
    /// Balance sockets to some services otherwise, and to others no more.
    ChangeSockets {
        /// Where they are found.
        services: Changes<SocketService, SocketTarget>,
        /// The tasks behind them.
        slots: Changes<u64, BTreeSet<IpAddr>>,
    },
    /// Attach the socket programs.
    AttachSockets,
    /// Change the IPVS table.
    Ipvs(IpvsOp),
    /// Remove the pinned maps.
    RemovePins,
    /// Make our table of the host's nf_tables, in the place of what is there.
    SetFirewall(Firewall),
    /// Let addresses out, and others no more.
    ChangeEgress {
        add: BTreeSet<IpAddr>,
        remove: BTreeSet<IpAddr>,
    },
    /// Remove our table of the host's nf_tables.
    RemoveFirewall,
}

impl Op {
    /// What it costs the kernel: netlink messages, and entries of maps. Where a whole map is written,
    /// all its entries are counted, though those that are there already are only read.
    pub(super) fn writes(&self) -> (usize, usize) {
        match self {
            Self::CreateNetns(_) | Self::DeleteNetns(_) | Self::SetSysctl { .. } => (0, 0),
            Self::AttachSockets | Self::RemovePins => (0, 0),
            Self::SetMeshConfig(_) => (0, 1),
            Self::SetNodeAddresses(addresses) => (0, addresses.len()),
            Self::SetIngressMacs(macs) => (0, macs.len()),
            Self::SetPublished(published) => (0, published.len()),
            Self::SetSources(sources) => (0, sources.len()),
            Self::SetIsolation(isolation) => (0, isolation.ports.len() + isolation.targets.len()),
            Self::SetSockets(sockets) => {
                let tasks: usize = sockets.slots.values().map(|tasks| 1 + tasks.len()).sum();
                (0, sockets.scopes.len() + sockets.services.len() + tasks)
            }
            Self::ChangePublished(ports) => (0, ports.len()),
            Self::ChangeSources(sources) => (0, sources.len()),
            Self::ChangeTargets(targets) => (0, targets.len()),
            Self::ChangeSockets { services, slots } => {
                let tasks: usize = slots.put.values().map(|tasks| 1 + tasks.len()).sum();
                (0, services.len() + slots.remove.len() + tasks)
            }
            _ => (1, 0),
        }
    }

    /// The namespace it is about, where it is about one alone.
    pub(super) fn place(&self) -> Option<&Place> {
        match self {
            Self::CreateNetns(place)
            | Self::DeleteNetns(place)
            | Self::SetSysctl { place, .. }
            | Self::SetRoute { place, .. }
            | Self::DeleteRoute { place, .. } => Some(place),
            _ => match self.devices().as_slice() {
                [(place, _)] => Some(place),
                _ => None,
            },
        }
    }

    /// The link it is about, where it is about one alone.
    pub(super) fn device(&self) -> Option<&Device> {
        match self.devices().as_slice() {
            [device] => Some(device),
            _ => None,
        }
    }

    /// The links it is about.
    fn devices(&self) -> Vec<&Device> {
        match self {
            Self::DeleteLink(device)
            | Self::SetUp(device)
            | Self::CreateBridge { device, .. }
            | Self::CreateVxlan { device, .. }
            | Self::SetMac { device, .. }
            | Self::SetMtu { device, .. }
            | Self::SetMaster { device, .. }
            | Self::SetPortFlags { device, .. }
            | Self::AddAddress { device, .. }
            | Self::DeleteAddress { device, .. }
            | Self::Attach { device, .. }
            | Self::Detach { device, .. } => vec![device],
            Self::SetNeighbour { device, .. }
            | Self::DeleteNeighbour { device, .. }
            | Self::SetTunnel { device, .. }
            | Self::DeleteTunnel { device, .. }
            | Self::SetForward { device, .. }
            | Self::DeleteForward { device, .. } => vec![device.as_ref()],
            Self::CreateVeth { ends, .. } => ends.iter().map(|end| &end.device).collect(),
            Self::CreateNetns(_)
            | Self::DeleteNetns(_)
            | Self::SetSysctl { .. }
            | Self::SetRoute { .. }
            | Self::DeleteRoute { .. }
            | Self::SetMeshConfig(_)
            | Self::SetNodeAddresses(_)
            | Self::SetIngressMacs(_)
            | Self::SetPublished(_)
            | Self::SetSources(_)
            | Self::SetIsolation(_)
            | Self::SetSockets(_)
            | Self::ChangePublished(_)
            | Self::ChangeSources(_)
            | Self::ChangeTargets(_)
            | Self::ChangeSockets { .. }
            | Self::AttachSockets
            | Self::Ipvs(_)
            | Self::RemovePins
            | Self::SetFirewall(_)
            | Self::ChangeEgress { .. }
            | Self::RemoveFirewall => Vec::new(),
        }
    }

    /// The user's network that it is about alone.
    pub(super) fn network(&self) -> Option<&NetworkName> {
        match self.place()? {
            Place::Overlay(network) => Some(network),
            Place::Host | Place::Ingress | Place::Task(_) => None,
        }
    }

    /// Whether it is about this task's namespace or its port.
    pub(super) fn concerns(&self, task: &TaskId) -> bool {
        let port = task_port(task);
        self.place().and_then(Place::task) == Some(task)
            || self.devices().iter().any(|(place, name)| {
                place.task() == Some(task) || (place.is_network() && *name == port)
            })
    }
}

/// The operation with its object, as errors and the log name it.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateNetns(place) => write!(f, "create network namespace {place}"),
            Self::DeleteNetns(place) => write!(f, "delete network namespace {place}"),
            Self::SetSysctl { place, key, value } => {
                write!(f, "set net/{key} to {value} in {place}")
            }
            Self::CreateBridge {
                device: (place, name),
                ..
            } => {
                write!(f, "create bridge {name} in {place}")
            }
            Self::CreateVxlan {
                device: (place, name),
                vxlan,
                ..
            } => {
                write!(
                    f,
                    "create vxlan device {name} with vni {} in {place}",
                    vxlan.vni
                )
            }
            Self::CreateVeth { ends, .. } => {
                let [one, other] = ends.as_ref();
                let ((place, name), (peer_place, peer)) = (&one.device, &other.device);
                write!(
                    f,
                    "create veth pair {name} in {place} and {peer} in {peer_place}"
                )
            }
            Self::DeleteLink((place, name)) => write!(f, "delete link {name} in {place}"),
            Self::SetMac {
                device: (place, name),
                mac,
            } => {
                write!(f, "set MAC address {mac} of {name} in {place}")
            }
            Self::SetMtu {
                device: (place, name),
                mtu,
            } => {
                write!(f, "set MTU {mtu} of {name} in {place}")
            }
            Self::SetUp((place, name)) => write!(f, "set {name} up in {place}"),
            Self::SetMaster {
                device: (place, name),
                master,
            } => {
                write!(f, "make {name} a port of {master} in {place}")
            }
            Self::SetPortFlags {
                device: (place, name),
                ..
            } => {
                write!(f, "set bridge port flags of {name} in {place}")
            }
            Self::AddAddress {
                device: (place, name),
                address,
            } => {
                write!(f, "add address {address} to {name} in {place}")
            }
            Self::DeleteAddress {
                device: (place, name),
                address,
            } => {
                write!(f, "delete address {address} from {name} in {place}")
            }
            Self::SetRoute {
                place,
                destination,
                route,
            } => {
                write!(
                    f,
                    "set route to {destination} by {} in {place}",
                    route.device
                )
            }
            Self::DeleteRoute {
                place,
                destination,
                route,
            } => {
                write!(
                    f,
                    "delete route to {destination} by {} in {place}",
                    route.device
                )
            }
            Self::SetNeighbour {
                device,
                address,
                mac,
            } => {
                let (place, name) = device.as_ref();
                write!(f, "set neighbour {address} at {mac} on {name} in {place}")
            }
            Self::DeleteNeighbour { device, address } => {
                let (place, name) = device.as_ref();
                write!(f, "delete neighbour {address} from {name} in {place}")
            }
            Self::SetTunnel { device, mac, vtep } => {
                let (place, name) = device.as_ref();
                write!(
                    f,
                    "set forwarding of {mac} to node {vtep} on {name} in {place}"
                )
            }
            Self::DeleteTunnel { device, mac } => {
                let (place, name) = device.as_ref();
                write!(
                    f,
                    "delete forwarding of {mac} to a node from {name} in {place}"
                )
            }
            Self::SetForward { device, mac } => {
                let (place, name) = device.as_ref();
                write!(f, "set forwarding of {mac} to port {name} in {place}")
            }
            Self::DeleteForward { device, mac } => {
                let (place, name) = device.as_ref();
                write!(f, "delete forwarding of {mac} to port {name} in {place}")
            }
            Self::Attach {
                device: (place, name),
                program,
            } => {
                write!(f, "attach program {program} to {name} in {place}")
            }
            Self::Detach {
                device: (place, name),
                program,
            } => {
                write!(f, "detach program {program} from {name} in {place}")
            }
            Self::SetMeshConfig(_) => f.write_str("write the links of the mesh programs"),
            Self::SetNodeAddresses(_) => f.write_str("write the node addresses of the mesh"),
            Self::SetIngressMacs(_) => f.write_str("write the ingress nodes of the mesh"),
            Self::SetPublished(published) => {
                write!(f, "publish {} ports on the mesh", published.len())
            }
            Self::SetSources(sources) => {
                write!(
                    f,
                    "write {} source ranges of published ports",
                    sources.len()
                )
            }
            Self::SetIsolation(isolation) => write!(
                f,
                "isolate {} tasks but for {} published targets",
                isolation.ports.len(),
                isolation.targets.len()
            ),
            Self::SetSockets(sockets) => write!(
                f,
                "balance sockets of {} namespaces to {} services",
                sockets.scopes.len(),
                sockets.slots.len()
            ),
            Self::ChangePublished(ports) => write!(
                f,
                "publish {} more ports on the mesh and {} no more",
                ports.put.len(),
                ports.remove.len()
            ),
            Self::ChangeSources(sources) => {
                write!(
                    f,
                    "change {} source ranges of published ports",
                    sources.len()
                )
            }
            Self::ChangeTargets(targets) => {
                write!(f, "change {} published targets of tasks", targets.len())
            }
            Self::ChangeSockets { services, slots } => write!(
                f,
                "balance sockets otherwise at {} places and to the tasks of {} services",
                services.len(),
                slots.len()
            ),
            Self::AttachSockets => f.write_str("attach the socket programs to the cgroup root"),
            Self::Ipvs(op) => write!(f, "ipvs: {op}"),
            Self::RemovePins => {
                f.write_str("detach the socket programs and remove the pinned maps")
            }
            Self::SetFirewall(firewall) => write!(
                f,
                "make nf_tables table inet {FIREWALL_TABLE}: {} addresses have egress, {} links are \
                 guarded",
                firewall.egress.len(),
                firewall.guarded.len()
            ),
            Self::ChangeEgress { add, remove } => write!(
                f,
                "give {} addresses egress and take it from {}",
                add.len(),
                remove.len()
            ),
            Self::RemoveFirewall => write!(f, "remove nf_tables table inet {FIREWALL_TABLE}"),
        }
    }
}
