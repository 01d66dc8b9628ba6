//! The open ends into the kernel: a connection per namespace, the IPVS table, the eBPF programs.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use swarm_ipvs::{Ipvs, IpvsError};
use swarm_model::TaskId;

use crate::ebpf::MeshError;

use super::connection::{ConnectError, Connection};
use super::firewall::FirewallHandle;
use super::mesh::{LoadedMesh, MeshHandle};
use super::model::{NetworkName, Place};
use super::names::{INGRESS_NETNS, IPV6_SETTING, OVERLAY_NETNS_PREFIX, TASK_NETNS_PREFIX};
use super::netlink::NetlinkError;
use super::netns::{Netns, NetnsDir, NetnsError, read_sysctl};
use super::observe::Look;

/// Why something in the kernel could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KernelError {
    /// A namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// Links, addresses, routes, tables.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The IPVS table.
    #[error(transparent)]
    Ipvs(#[from] IpvsError),
    /// The eBPF programs and maps.
    #[error(transparent)]
    Mesh(#[from] MeshError),
    /// A setting under `/proc/sys/net`.
    #[error("use /proc/sys/net/{key}")]
    Sysctl {
        /// Which.
        key: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An operation on a namespace that is not there.
    #[error("there is no network namespace {0}")]
    NoNetns(String),
    /// An operation on programs that could not be loaded.
    #[error("the mesh's eBPF programs are not loaded")]
    NoMesh,
    /// Looking was ended for something more urgent.
    #[error("interrupted")]
    Interrupted,
    /// Something before it has failed, and it would be no good without.
    #[error("put off, because other operations failed")]
    PutOff,
}

impl From<ConnectError> for KernelError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Netns(error) => Self::Netns(error),
            ConnectError::Netlink(error) => Self::Netlink(error),
        }
    }
}

/// Who suffers from a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// One local task.
    Task(TaskId),
    /// The local tasks on one user's network.
    Network(NetworkName),
    /// The node.
    Node,
    /// Everything: the kernel could not even be read.
    Pass,
}

/// Something that could not be read or done.
#[derive(Debug, thiserror::Error)]
#[error("{action}")]
pub(crate) struct Failure {
    /// Action and object.
    pub(crate) action: String,
    /// Who suffers.
    pub(crate) scope: Scope,
    /// Why.
    #[source]
    pub(crate) source: KernelError,
}

impl Failure {
    /// The kernel could not be read.
    pub(super) fn of_pass(source: KernelError) -> Self {
        Self {
            action: "read the state of the networks".to_owned(),
            scope: Scope::Pass,
            source,
        }
    }

    /// Whether it can keep a local task that is on these networks from being connected or
    /// disconnected.
    pub(super) fn concerns(&self, task: &TaskId, networks: &[NetworkName]) -> bool {
        match &self.scope {
            Scope::Task(of) => of == task,
            Scope::Network(of) => networks.contains(of),
            Scope::Node => false,
            Scope::Pass => true,
        }
    }
}

/// The open ends into the kernel. Used from one thread; opening them changes nothing.
#[derive(Debug)]
pub(super) struct Kernel {
    /// The named namespaces.
    pub(super) dir: NetnsDir,
    /// Connections into the namespaces there are.
    pub(super) open: BTreeMap<Place, Connection>,
    /// The handle to the ingress namespace's table, once it was opened.
    pub(super) ipvs: Option<Ipvs>,
    /// The eBPF programs.
    pub(super) mesh: MeshHandle,
    /// The host's nf_tables, once they were opened.
    firewall: Option<FirewallHandle>,
    /// Whether the kernel does IPv6, once that was asked.
    ipv6: Option<bool>,
}

impl Kernel {
    /// Opens the calling thread's namespace as the host's. Named namespaces are in `netns_dir`,
    /// eBPF maps are pinned in `bpffs_dir`.
    pub(super) fn new(netns_dir: PathBuf, bpffs_dir: PathBuf) -> Result<Self, KernelError> {
        let host = Connection::open(Netns::current()?)?;
        Ok(Self {
            dir: NetnsDir::new(netns_dir),
            open: BTreeMap::from([(Place::Host, host)]),
            ipvs: None,
            mesh: MeshHandle::new(bpffs_dir),
            firewall: None,
            ipv6: None,
        })
    }

    /// Connects to the namespaces there are now, keeping the connections that still hold. Names
    /// whose namespace is gone, as after the host went down, are removed, unless this is to look
    /// only. Returns what could not be connected to.
    pub(super) fn connect(&mut self, look: Look) -> Result<Vec<Failure>, KernelError> {
        let mut failures = Vec::new();
        let mut found = BTreeMap::new();
        if let Some(host) = self.open.remove(&Place::Host) {
            found.insert(Place::Host, host);
        }
        for place in self.dir.list()?.iter().filter_map(|name| place_of(name)) {
            match self.dir.open(&name_of(&place)).map_err(KernelError::from) {
                Ok(None) if look == Look::Only => {}
                Ok(None) => {
                    if let Err(error) = self.dir.delete(&name_of(&place)) {
                        failures.push(unreadable(&place, error.into()));
                    }
                }
                Ok(Some(netns)) => {
                    let connected = match self.open.remove(&place) {
                        Some(connection) if connection.netns == netns => Ok(connection),
                        _ => self.connect_to(&place, netns),
                    };
                    match connected {
                        Ok(connection) => {
                            found.insert(place, connection);
                        }
                        Err(source) => failures.push(unreadable(&place, source)),
                    }
                }
                Err(source) => failures.push(unreadable(&place, source)),
            }
        }
        if !found.contains_key(&Place::Ingress) {
            self.ipvs = None;
        }
        self.open = found;
        Ok(failures)
    }

    fn connect_to(&mut self, place: &Place, netns: Netns) -> Result<Connection, KernelError> {
        if *place == Place::Ingress {
            // The old handle looks into the old namespace.
            self.ipvs = None;
        }
        Ok(Connection::open(netns)?)
    }

    /// Whether the kernel does IPv6; asked, and said in the log where not, once.
    pub(super) fn ipv6(&mut self) -> Result<bool, KernelError> {
        if let Some(ipv6) = self.ipv6 {
            return Ok(ipv6);
        }
        let outcome = self
            .at(&Place::Host)?
            .netns
            .run(|| read_sysctl(IPV6_SETTING))?;
        let setting = outcome.map_err(|source| KernelError::Sysctl {
            key: IPV6_SETTING.to_owned(),
            source,
        })?;
        if setting.is_none() {
            tracing::info!("the kernel has no IPv6: published ports and tasks have IPv4 alone");
        }
        Ok(*self.ipv6.insert(setting.is_some()))
    }

    /// The connection into a namespace.
    pub(super) fn at(&mut self, place: &Place) -> Result<&mut Connection, KernelError> {
        self.open
            .get_mut(place)
            .ok_or_else(|| KernelError::NoNetns(place.to_string()))
    }

    /// Makes a namespace and connects to it.
    pub(super) fn create_netns(&mut self, place: &Place) -> Result<(), KernelError> {
        let netns = self.dir.create(&name_of(place))?;
        let connection = self.connect_to(place, netns)?;
        self.open.insert(place.clone(), connection);
        Ok(())
    }

    /// Removes a namespace's name and disconnects from it.
    pub(super) fn delete_netns(&mut self, place: &Place) -> Result<(), KernelError> {
        self.open.remove(place);
        if *place == Place::Ingress {
            self.ipvs = None;
        }
        self.dir.delete(&name_of(place))?;
        Ok(())
    }

    /// The cookies of the namespaces there are.
    pub(super) fn cookies(&self) -> BTreeMap<Place, u64> {
        let open = self.open.iter();
        open.map(|(place, connection)| (place.clone(), connection.cookie))
            .collect()
    }

    /// The eBPF programs.
    pub(super) fn mesh(&mut self) -> Result<&mut LoadedMesh, KernelError> {
        self.mesh.loaded().ok_or(KernelError::NoMesh)
    }

    /// The host's nf_tables.
    pub(super) fn firewall(&mut self) -> Result<&mut FirewallHandle, KernelError> {
        if self.firewall.is_none() {
            let host = &self.at(&Place::Host)?.netns;
            self.firewall = Some(host.run(FirewallHandle::open)??);
        }
        self.firewall
            .as_mut()
            .ok_or_else(|| KernelError::NoNetns(Place::Host.to_string()))
    }

    /// The ingress namespace's IPVS table; before there is that namespace, the host's, which tells
    /// whether the kernel has IPVS at all.
    pub(super) fn ipvs(&mut self) -> Result<Option<&mut Ipvs>, KernelError> {
        let Some(ingress) = self.open.get(&Place::Ingress) else {
            Ipvs::open()?;
            return Ok(None);
        };
        if self.ipvs.is_none() {
            self.ipvs = Some(ingress.netns.run(Ipvs::open)??);
        }
        Ok(self.ipvs.as_mut())
    }
}

/// A namespace that is there but cannot be looked into.
pub(super) fn unreadable(place: &Place, source: KernelError) -> Failure {
    let scope = match place {
        Place::Task(task) => Scope::Task(task.clone()),
        Place::Overlay(network) => Scope::Network(network.clone()),
        Place::Host | Place::Ingress => Scope::Node,
    };
    Failure {
        action: format!("look into network namespace {place}"),
        scope,
        source,
    }
}

/// File name of a namespace: as it is displayed.
fn name_of(place: &Place) -> String {
    place.to_string()
}

/// The namespace of ours with this file name.
fn place_of(name: &str) -> Option<Place> {
    if name == INGRESS_NETNS {
        return Some(Place::Ingress);
    }
    if let Some(network) = name.strip_prefix(OVERLAY_NETNS_PREFIX) {
        return NetworkName::parse(network).map(Place::Overlay);
    }
    name.strip_prefix(TASK_NETNS_PREFIX)?
        .parse()
        .ok()
        .map(Place::Task)
}
