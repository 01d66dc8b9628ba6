//! Who takes part in the traffic of a published port: by the addresses and ports of a packet, and by
//! the Ethernet addresses on the ingress network. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use swarm_model::NodeId;

use super::{Subject, TraceError};
use crate::ebpf::{Protocol, TraceFilter};
use crate::session::Assigned;

/// Ports of tasks that a published port can lead to.
pub(super) const TARGETS_MAX: usize = TraceFilter::PORTS - 1;

/// A protocol's number and a port.
type ProtocolPort = (u8, u16);

/// The participants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    port: u16,
    published: BTreeSet<ProtocolPort>,
    targets: BTreeSet<ProtocolPort>,
    tasks: BTreeMap<IpAddr, Who>,
    nodes: BTreeMap<[u8; 6], String>,
    own: Option<[u8; 6]>,
}

/// A task, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Who {
    /// Its name.
    pub(super) name: String,
    /// Its node.
    pub(super) node: String,
}

impl Place {
    /// The participants as node `own` knows them.
    pub(super) fn of(
        subject: &Subject,
        assigned: &Assigned,
        own: &NodeId,
    ) -> Result<Self, TraceError> {
        let mut published = BTreeSet::new();
        let mut targets = BTreeSet::new();
        let mut services = BTreeMap::new();
        for (id, service) in assigned.services.iter() {
            let ports = service.ports.iter();
            for port in ports.filter(|port| port.published == subject.port) {
                let protocol = number(port.protocol);
                published.insert((protocol, port.published));
                targets.insert((protocol, port.target));
                services.insert(id, service.name.as_str());
            }
        }
        if services.is_empty() {
            return Err(TraceError::NotPublished(subject.port));
        }
        let distinct: BTreeSet<u16> = targets.iter().map(|(_, port)| *port).collect();
        if distinct.len() > TARGETS_MAX {
            return Err(TraceError::TooManyTargets(subject.port));
        }
        let node = |id: &NodeId| match id == own {
            true => "this node".to_owned(),
            false => format!("node {}", id.short()),
        };
        let mut tasks = BTreeMap::new();
        for (id, endpoint) in assigned.endpoints.iter() {
            let Some(service) = services.get(&endpoint.service_id) else {
                continue;
            };
            let who = Who {
                name: match assigned.tasks.get(id) {
                    Some(task) => task.name(),
                    None => format!("{service}.{}", id.short()),
                },
                node: node(&endpoint.node_id),
            };
            let ingress = assigned.ingress();
            let twin = ingress.and_then(|network| network.address6(endpoint.address));
            if let Some(twin) = twin {
                tasks.insert(IpAddr::V6(twin), who.clone());
            }
            tasks.insert(IpAddr::V4(endpoint.address), who);
        }
        let peers = assigned.peers.iter();
        let own = assigned
            .peers
            .get(own)
            .map(|peer| mac(peer.ingress_address));
        Ok(Self {
            port: subject.port,
            published,
            targets,
            tasks,
            nodes: peers
                .map(|(id, peer)| (mac(peer.ingress_address), node(id)))
                .collect(),
            own,
        })
    }

    /// What the programs have to look for: the published port and its targets, zero for none.
    pub(super) fn ports(&self) -> [u16; TraceFilter::PORTS] {
        let targets: BTreeSet<u16> = self.targets.iter().map(|(_, port)| *port).collect();
        let mut wanted = std::iter::once(self.port).chain(targets);
        std::array::from_fn(|_| wanted.next().unwrap_or_default())
    }

    /// Whether a port is the published one.
    pub(super) fn is_published(&self, protocol: u8, port: u16) -> bool {
        self.published.contains(&(protocol, port))
    }

    /// The task behind an address and a target port.
    pub(super) fn task(&self, protocol: u8, (address, port): (IpAddr, u16)) -> Option<&Who> {
        let task = self.tasks.get(&address);
        task.filter(|_| self.targets.contains(&(protocol, port)))
    }

    /// The node with an Ethernet address on the ingress network, and whether it is this one.
    pub(super) fn node(&self, mac: [u8; 6]) -> Option<(&str, bool)> {
        let name = self.nodes.get(&mac)?;
        Some((name, self.own == Some(mac)))
    }
}

/// Everybody's Ethernet address on the ingress network says the IPv4 address there.
fn mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x42, a, b, c, d]
}

/// `IPPROTO_*`.
fn number(protocol: swarm_model::Protocol) -> u8 {
    let protocol = match protocol {
        swarm_model::Protocol::Tcp => Protocol::Tcp,
        swarm_model::Protocol::Udp => Protocol::Udp,
        swarm_model::Protocol::Sctp => Protocol::Sctp,
    };
    protocol as u8
}
