//! Reading back what the maps hold.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use aya::maps::MapError;
use swarm_ebpf_common::{Config, PublishedKey, PublishedValue, SourceKey, TaskPort, map};

use super::{Mesh, MeshError};
use crate::ebpf::{SocketTables, batch};

/// Everything that the agent writes into the maps, as they hold it now, whoever wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MapContents {
    /// The host's links.
    pub(crate) config: Config,
    /// The node's own addresses.
    pub(crate) node_addresses: BTreeSet<IpAddr>,
    /// The ingress nodes.
    pub(crate) ingress_macs: BTreeMap<[u8; 6], u32>,
    /// The published ports.
    pub(crate) published: BTreeMap<PublishedKey, PublishedValue>,
    /// Who may use those that are restricted; each with the number of bits of the key that count.
    pub(crate) sources: BTreeSet<(u32, SourceKey)>,
    /// Who is behind the ports of the ingress network's bridge, by interface index.
    pub(crate) task_ports: BTreeMap<u32, TaskPort>,
    /// What tasks may reach of each other, with what is special about it.
    pub(crate) targets: BTreeMap<PublishedKey, u32>,
    /// What the socket programs know.
    pub(crate) sockets: SocketTables,
}

impl Mesh {
    /// Reads the maps and changes nothing. What changes meanwhile may be seen as it was or as it
    /// is.
    pub(crate) fn contents(&self) -> Result<MapContents, MeshError> {
        let used = |map| move |source| MeshError::UseMap { map, source };
        let addresses = self.node_addrs.keys();
        let addresses = addresses.map(|address| Ok(address?.to_ip()));
        let macs = self.ingress_macs.iter();
        let macs = macs.map(|entry| entry.map(|(mac, node)| (mac.octets, node)));
        let sources = self.sources.keys();
        let sources = sources.map(|key| key.map(|key| (key.prefix_len(), key.data())));
        Ok(MapContents {
            config: self.config.get(&0, 0).map_err(used(map::CONFIG))?,
            node_addresses: addresses
                .collect::<Result<_, MapError>>()
                .map_err(used(map::NODE_ADDRS))?,
            ingress_macs: macs
                .collect::<Result<_, MapError>>()
                .map_err(used(map::INGRESS_MACS))?,
            published: batch::entries(&self.published).map_err(used(map::PUBLISHED))?,
            sources: sources
                .collect::<Result<_, MapError>>()
                .map_err(used(map::SOURCES))?,
            task_ports: batch::entries(&self.task_ports).map_err(used(map::TASK_PORTS))?,
            targets: batch::entries(&self.targets).map_err(used(map::TARGETS))?,
            sockets: self.sockets.read()?,
        })
    }
}
