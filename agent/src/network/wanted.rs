//! From what is desired to what the kernel is to hold, given what the host is like.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv6Net};
use swarm_model::{Protocol, ServiceId, TaskId};

use super::balance::{Balance, NodeAddresses, balance};
use super::desired::{Attachment, Desired, LocalTask, Peer, Task, address6};
use super::listeners::Listener;
use super::model::{
    Attached, Device, Firewall, FirewallState, IpvsTable, Link, LinkKind, Mac, MeshConfig,
    MeshMaps, Namespace, NetworkName, Observed, Obstacle, Place, PortFlags, Program, Published,
    PublishedAs, Route, SocketPrograms, Vxlan,
};
use super::names::{
    BRIDGE, DEFAULT_MTU, EGRESS_GATEWAY, EGRESS_GATEWAY6, EGRESS_LOCAL, HOST_IS_ROUTER,
    HOST_LINK_SYSCTLS, HOST_LINK_SYSCTLS6, HOST_PREFIX, HOST_VETH, INGRESS_LINK_SYSCTLS,
    INGRESS_SYSCTLS, INGRESS_SYSCTLS6, INGRESS_VETH, IPV6_MIN_MTU, LOOPBACK, OVERLAY_SYSCTLS,
    TASK_DEVICE, TASK_SYSCTLS6, TASK_WITHOUT_IPV6, VXLAN, VXLAN_OVERHEAD, VXLAN_OVERHEAD6,
    VXLAN_PORT, forwarding_of, host_address, task_device, task_port,
};

use super::isolation::wanted_isolation;
use super::sockets::wanted_sockets;

/// The VXLAN port of the bridge: what lies behind it is known, nothing is learned or flooded. ARP
/// requests of local tasks for remote ones are answered by the bridge from its neighbours.
const VXLAN_FLAGS: PortFlags = PortFlags {
    learning: false,
    flood: false,
    multicast_flood: false,
    broadcast_flood: false,
    neighbour_suppress: true,
};

/// A task's port: broadcasts reach it, so that tasks of one node find each other by ARP.
const TASK_FLAGS: PortFlags = PortFlags {
    learning: false,
    flood: false,
    multicast_flood: false,
    broadcast_flood: true,
    neighbour_suppress: false,
};

/// Why a part of what is desired is not even tried. The rest is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Problem {
    /// Nothing can be balanced.
    #[error("no port is published on this node: {reason}")]
    IpvsMissing {
        /// What is missing, with the remedy.
        reason: String,
    },
    /// No program can be attached.
    #[error("no port is published on this node, the mesh's eBPF programs are missing: {reason}")]
    ProgramsNotLoaded {
        /// What is missing, with the remedy.
        reason: String,
    },
    /// No socket program can be attached.
    #[error(
        "virtual addresses of services, and published ports asked for on this node itself, do not \
         answer: {reason}"
    )]
    SocketsNotBalanced {
        /// What is missing, with the remedy.
        reason: String,
    },
    /// The data-path address is not the host's.
    #[error(
        "tasks on other nodes cannot be reached: data-path address {address} is on no interface of \
         this host that is up; give the node another one (--data-path-addr) or set the interface up"
    )]
    DataPathNotHere {
        /// The address.
        address: IpAddr,
    },
    /// A node cannot be reached over the underlay.
    #[error(
        "tasks on {count} other nodes cannot be reached: the data-path address {theirs} of one of \
         them is of another IP version than this node's, {ours}; give all nodes one of the same \
         (--data-path-addr)"
    )]
    OtherDataPathVersion {
        /// How many nodes.
        count: usize,
        /// The address of one of them.
        theirs: IpAddr,
        /// This node's address.
        ours: IpAddr,
    },
    /// The links are too narrow.
    #[error(
        "tasks here have no IPv6: the network's MTU is {mtu}, and IPv6 needs {IPV6_MIN_MTU}; raise \
         the MTU of the link with the data-path address"
    )]
    TooNarrowForIpv6 {
        /// The overlay's MTU in bytes.
        mtu: u32,
    },
    /// A process of the host gets nothing from outside any more.
    #[error(
        "a process of this node listens on port {port}/{} at {}, and gets no connections from \
         outside while the port is published: stop it (`ss -lntup 'sport = :{port}'` names it) or \
         publish another port", .protocol.as_str(), everywhere(.address)
    )]
    PortShadowed {
        /// The service that has the port.
        service: ServiceId,
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// Where the process listens.
        address: IpAddr,
    },
    /// Nothing can be masqueraded.
    #[error("tasks on this node do not reach the outside, the kernel has no nf_tables: {reason}")]
    NoFirewall {
        /// Why.
        reason: String,
    },
    /// Somebody else's firewall may keep tasks from the outside.
    #[error(
        "tasks on this node may not reach the outside: chain {} of the host's nf_tables table {} \
         drops what no rule of it names; let link {HOST_VETH} through, where it is Docker's by \
         `iptables -I DOCKER-USER -i {HOST_VETH} -j ACCEPT` and `iptables -I DOCKER-USER -o \
         {HOST_VETH} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT`",
        .0.chain, .0.table
    )]
    EgressBlocked(Obstacle),
    /// The host has the ingress network's addresses elsewhere.
    #[error(
        "tasks on this node do not reach the outside: the host routes {subnet}, the ingress \
         network's, to {device}; remove that route, or give the ingress network another subnet"
    )]
    SubnetTaken {
        /// The subnet.
        subnet: IpNet,
        /// The link it is routed to.
        device: String,
    },
}

impl Problem {
    /// The service that it is about, where it is about one.
    pub(crate) fn service(&self) -> Option<&ServiceId> {
        match self {
            Self::PortShadowed { service, .. } => Some(service),
            Self::IpvsMissing { .. }
            | Self::ProgramsNotLoaded { .. }
            | Self::SocketsNotBalanced { .. }
            | Self::DataPathNotHere { .. }
            | Self::NoFirewall { .. }
            | Self::EgressBlocked(_)
            | Self::SubnetTaken { .. }
            | Self::OtherDataPathVersion { .. }
            | Self::TooNarrowForIpv6 { .. } => None,
        }
    }
}

fn everywhere(address: &IpAddr) -> String {
    if address.is_unspecified() {
        "every address".to_owned()
    } else {
        address.to_string()
    }
}

/// The listeners of the host that published ports shadow, one a port.
fn shadowed(
    desired: &Desired,
    published: &BTreeMap<Published, PublishedAs>,
    listeners: &BTreeSet<Listener>,
) -> Vec<Problem> {
    let ports: BTreeSet<_> = listeners
        .iter()
        .map(|listener| (listener.protocol, listener.port))
        .collect();
    let mut problems = BTreeMap::new();
    for (entry, published) in published {
        let port = (entry.protocol, entry.port);
        if !ports.contains(&port) || problems.contains_key(&port) {
            continue;
        }
        let hidden = listeners.iter().find(|listener| {
            (listener.protocol, listener.port) == port && listener.takes(entry.address)
        });
        let mut services = desired.services.iter();
        let owner = services.find(|(_, service)| service.index == published.service);
        if let (Some(listener), Some((service, _))) = (hidden, owner) {
            let problem = Problem::PortShadowed {
                service: service.clone(),
                port: listener.port,
                protocol: listener.protocol,
                address: listener.address,
            };
            problems.insert(port, problem);
        }
    }
    problems.into_values().collect()
}

/// What the kernel is to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Namespaces and what is to be in them. `links` here is for look-ups.
    pub(super) namespaces: BTreeMap<Place, Namespace>,
    /// All links in the order they are made.
    pub(super) links: Vec<(Device, Link)>,
    /// Settings in the order they are made: those of whole namespaces, then those of links.
    pub(super) sysctls: Vec<(Place, String, String)>,
    /// The IPVS table; nothing where the kernel has none.
    pub(super) ipvs: Option<IpvsTable>,
    /// The maps; nothing where there are none.
    pub(super) mesh: Option<MeshMaps>,
    /// Our table of the host's nf_tables; nothing where the kernel has none.
    pub(super) firewall: Option<Firewall>,
}

/// The links by which packets come in from outside: up, no loopback, not ours, with an address.
pub(super) fn uplinks(host: &Namespace) -> BTreeSet<String> {
    let up = |name: &String| host.links.get(name).is_some_and(|link| link.up);
    let theirs = |name: &String| name != LOOPBACK && !name.starts_with(HOST_PREFIX);
    let names = host.addresses.iter().map(|(name, _)| name);
    names
        .filter(|name| theirs(name) && up(name))
        .cloned()
        .collect()
}

/// What `desired` means on the host that was observed, and what of it cannot be.
pub(super) fn wanted(observed: &Observed, desired: &Desired) -> (Wanted, Vec<Problem>) {
    let host = &observed.namespaces[&Place::Host];
    let uplinks = uplinks(host);
    let on_uplinks = host
        .addresses
        .iter()
        .filter(|(name, _)| uplinks.contains(name));
    let mut by_address = NodeAddresses::new();
    for (link, net) in on_uplinks {
        let links = by_address.entry(net.addr()).or_default();
        links.insert(link.clone());
    }
    let mut problems = Vec::new();

    let underlay_mtu = underlay_mtu(host, desired.local.vtep).unwrap_or_else(|| {
        problems.push(Problem::DataPathNotHere {
            address: desired.local.vtep,
        });
        DEFAULT_MTU
    });
    if let Err(reason) = &observed.ipvs {
        problems.push(Problem::IpvsMissing {
            reason: reason.clone(),
        });
    }
    match &observed.mesh {
        Err(reason) => problems.push(Problem::ProgramsNotLoaded {
            reason: reason.clone(),
        }),
        Ok(maps) => {
            if let SocketPrograms::Impossible(reason) = &maps.socket_programs {
                problems.push(Problem::SocketsNotBalanced {
                    reason: reason.clone(),
                });
            }
        }
    }

    if let Some(problem) = subnet_taken(host, desired.network.subnet) {
        problems.push(problem);
    }
    let firewall = match &observed.firewall {
        Ok(state) => {
            let obstacles = state.obstacles.iter().cloned();
            problems.extend(obstacles.map(Problem::EgressBlocked));
            Some(firewall(desired, host, state, &uplinks))
        }
        Err(reason) => {
            problems.push(Problem::NoFirewall {
                reason: reason.clone(),
            });
            None
        }
    };
    let overlay_mtu = underlay_mtu.saturating_sub(match desired.local.vtep {
        IpAddr::V4(_) => VXLAN_OVERHEAD,
        IpAddr::V6(_) => VXLAN_OVERHEAD6,
    });
    let mut subnet6 = desired.network.subnet6.filter(|_| observed.ipv6);
    if subnet6.is_some() && overlay_mtu < IPV6_MIN_MTU {
        problems.push(Problem::TooNarrowForIpv6 { mtu: overlay_mtu });
        subnet6 = None;
    }
    if subnet6.is_none() {
        // No task could answer there.
        by_address.retain(|address, _| address.is_ipv4());
    }
    let node_addresses: BTreeSet<IpAddr> = by_address.keys().copied().collect();
    problems.extend(other_data_path_version(desired));

    let mut draft = Draft {
        desired,
        observed,
        underlay_mtu,
        overlay_mtu,
        subnet6,
        wanted: Wanted::default(),
    };
    draft.host(&uplinks);
    if subnet_taken(host, desired.network.subnet).is_none() {
        draft.host_route();
    }
    draft.ingress(&node_addresses);
    for (task, local) in &desired.local_tasks {
        draft.task(task, local);
        for attachment in &local.attachments {
            draft.attachment(task, attachment);
        }
    }
    draft.everybody();
    draft.members();
    draft.settings();
    if firewall.is_some() {
        draft.uplinks_forward(&uplinks);
    }

    let mut wanted = draft.wanted;
    wanted.firewall = firewall;
    let Balance {
        table,
        published,
        sources,
    } = balance(desired.services.values(), &by_address, |address| {
        address6(subnet6?, address)
    });
    if observed.ipvs.is_ok() && observed.mesh.is_ok() {
        problems.extend(shadowed(desired, &published, &observed.listeners));
    }
    wanted.ipvs = observed.ipvs.is_ok().then_some(table);
    let sockets = wanted_sockets(desired, &by_address);
    wanted.mesh = observed.mesh.is_ok().then(|| MeshMaps {
        config: Some(MeshConfig {
            host_veth: Some(HOST_VETH.to_owned()),
            uplink: observed.default_uplink.clone(),
        }),
        node_addresses: Some(node_addresses),
        ingress_macs: Some(ingress_macs(desired)),
        // Without a balancer the port had better refuse than swallow.
        published: Some(if observed.ipvs.is_ok() {
            published
        } else {
            BTreeMap::new()
        }),
        sources: Some(sources),
        isolation: Some(wanted_isolation(desired, subnet6)),
        sockets: Some(sockets),
        socket_programs: SocketPrograms::Current,
    });
    (wanted, problems)
}

/// Whether the host routes exactly our subnet elsewhere. A wider route is no hindrance: ours is
/// preferred.
fn subnet_taken(host: &Namespace, subnet: IpNet) -> Option<Problem> {
    let subnet = subnet.trunc();
    let route = host.routes.get(&subnet)?;
    (route.device != HOST_VETH).then(|| Problem::SubnetTaken {
        subnet,
        device: route.device.clone(),
    })
}

/// Who may leave, and by which links nobody else comes through: where the host is no router, those
/// that did not forward before, or did so on our account.
fn firewall(
    desired: &Desired,
    host: &Namespace,
    state: &FirewallState,
    uplinks: &BTreeSet<String>,
) -> Firewall {
    let set = |key: &str| {
        host.sysctls
            .get(key)
            .is_some_and(|value| value.as_deref() == Some("1"))
    };
    let router = set(HOST_IS_ROUTER);
    // With the table lost and nobody to remember it, an earlier agent may have let a link forward.
    let ours = |name: &String| match &state.guarded {
        Some(guarded) => guarded.contains(name),
        None => host.links.contains_key(HOST_VETH),
    };
    let forwards = |name: &String| set(&forwarding_of(name)) && !ours(name);
    let local_tasks = desired.local_tasks.values();
    Firewall {
        egress: local_tasks
            .filter(|task| task.egress)
            .map(|task| task.address)
            .collect(),
        guarded: uplinks
            .iter()
            .filter(|name| !router && !forwards(name))
            .cloned()
            .collect(),
    }
}

/// MTU of the link that has the data-path address.
fn underlay_mtu(host: &Namespace, vtep: IpAddr) -> Option<u32> {
    let (name, _) = host.addresses.iter().find(|(_, net)| net.addr() == vtep)?;
    host.links.get(name).filter(|link| link.up)?.mtu
}

/// Whether there is a VXLAN tunnel between two addresses.
fn tunnels_to(ours: IpAddr, theirs: IpAddr) -> bool {
    ours.is_ipv4() == theirs.is_ipv4()
}

fn other_data_path_version(desired: &Desired) -> Option<Problem> {
    let ours = desired.local.vtep;
    let others = desired
        .peers
        .iter()
        .filter(|(node, peer)| **node != desired.local.id && !tunnels_to(ours, peer.vtep));
    let (_, first) = others.clone().next()?;
    Some(Problem::OtherDataPathVersion {
        count: others.count(),
        theirs: first.vtep,
        ours,
    })
}

/// Every node that packets may come through, this one too: its own tasks answer to it.
fn ingress_macs(desired: &Desired) -> BTreeMap<Mac, u32> {
    let others = desired.peers.values().map(|peer| peer.ingress);
    others
        .chain([desired.local.ingress])
        .map(|at| (Mac::of(at), node_number(at)))
        .collect()
}

/// A number for a node that is the same on all nodes for as long as the node keeps its address.
fn node_number(ingress: IpAddr) -> u32 {
    let [_, _, octets @ ..] = Mac::of(ingress).0;
    u32::from_be_bytes(octets)
}

/// A [`Wanted`] in the making.
struct Draft<'a> {
    desired: &'a Desired,
    observed: &'a Observed,
    underlay_mtu: u32,
    overlay_mtu: u32,
    /// The network's IPv6 addresses, where there is IPv6 at all.
    subnet6: Option<Ipv6Net>,
    wanted: Wanted,
}

impl Draft<'_> {
    /// The IPv6 address of whoever has `address` on the network.
    fn address6(&self, address: IpAddr) -> Option<IpAddr> {
        address6(self.subnet6?, address)
    }

    /// Everything under which whoever has `address` is on the network, with prefix lengths.
    fn on_network(&self, address: IpAddr) -> Vec<IpNet> {
        let subnet6 = self.subnet6.map(IpNet::V6);
        let twin = subnet6.and_then(|subnet6| Some(in_subnet(self.address6(address)?, subnet6)));
        let own = in_subnet(address, self.desired.network.subnet);
        std::iter::once(own).chain(twin).collect()
    }

    /// How the bridge treats the port of a task: what finds the other tasks of this node has to
    /// reach them, and with IPv6 that is multicast.
    fn task_flags(&self) -> PortFlags {
        PortFlags {
            multicast_flood: self.subnet6.is_some(),
            ..TASK_FLAGS
        }
    }

    fn at(&mut self, place: &Place) -> &mut Namespace {
        self.wanted.namespaces.entry(place.clone()).or_default()
    }

    fn link(&mut self, place: &Place, name: &str, link: Link) {
        self.at(place).links.insert(name.to_owned(), link.clone());
        self.wanted
            .links
            .push(((place.clone(), name.to_owned()), link));
    }

    fn program(&mut self, place: &Place, name: &str, program: Program) {
        if self.observed.mesh.is_ok() {
            self.at(place)
                .programs
                .insert((name.to_owned(), program), Attached::Current);
        }
    }

    /// The host's namespace: a veth pair into the ingress namespace, our programs on the uplinks.
    fn host(&mut self, uplinks: &BTreeSet<String>) {
        let peer = (Place::Ingress, INGRESS_VETH.to_owned());
        let veth = Link {
            kind: LinkKind::Veth(Some(peer)),
            mac: Some(Mac::of(EGRESS_GATEWAY)),
            mtu: Some(self.underlay_mtu),
            up: true,
            master: None,
            port: None,
        };
        self.link(&Place::Host, HOST_VETH, veth);
        // Replies leave by the program, past the host's stack: their source is an address of the
        // host, which its stack drops as martian.
        self.program(&Place::Host, HOST_VETH, Program::MeshOut);
        for uplink in uplinks {
            self.program(&Place::Host, uplink, Program::MeshUplink);
        }
    }

    /// What the host reaches tasks by: its own address on the veth pair and a route. The MTU is the
    /// overlay's, so that the host itself, which knows the sender behind its masquerade, says when
    /// a packet from outside is too big.
    fn host_route(&mut self) {
        let Desired { local, network, .. } = self.desired;
        let overlay_mtu = self.overlay_mtu;
        let (Some(own), IpNet::V4(_)) = (host_address(local.ingress), network.subnet) else {
            return;
        };
        let route = Route {
            mtu: Some(overlay_mtu),
            ..gateway(EGRESS_LOCAL, HOST_VETH)
        };
        let host = self.at(&Place::Host);
        host.addresses
            .insert((HOST_VETH.to_owned(), IpNet::from(own)));
        host.routes.insert(network.subnet.trunc(), route);
        // The other end answers no ARP request for it: it is nobody's address.
        host.neighbours
            .insert((HOST_VETH.to_owned(), EGRESS_LOCAL), Mac::of(EGRESS_LOCAL));
    }

    /// Answers from outside to our tasks come in by any uplink.
    fn uplinks_forward(&mut self, uplinks: &BTreeSet<String>) {
        let settings = uplinks
            .iter()
            .map(|name| (Place::Host, forwarding_of(name), "1".to_owned()));
        self.wanted.sysctls.extend(settings);
    }

    /// The ingress namespace but for what depends on tasks and peers.
    fn ingress(&mut self, node_addresses: &BTreeSet<IpAddr>) {
        let place = Place::Ingress;
        let Desired { local, network, .. } = self.desired;
        self.bridge(&place, local.ingress, network.vni, self.overlay_mtu);
        let veth = Link {
            kind: LinkKind::Veth(Some((Place::Host, HOST_VETH.to_owned()))),
            mac: Some(Mac::of(EGRESS_LOCAL)),
            mtu: Some(self.underlay_mtu),
            up: true,
            master: None,
            port: None,
        };
        self.link(&place, INGRESS_VETH, veth);
        self.program(&place, INGRESS_VETH, Program::ShortcutIn);
        self.program(&place, VXLAN, Program::ShortcutLearn);
        self.program(&place, VXLAN, Program::ShortcutOut);

        let own = self.on_network(local.ingress);
        let namespace = self.at(&place);
        // IPVS looks only at packets that are for this namespace.
        for address in node_addresses {
            namespace
                .addresses
                .insert((LOOPBACK.to_owned(), IpNet::from(*address)));
        }
        for address in own {
            let via = match address {
                IpNet::V4(_) => EGRESS_GATEWAY,
                IpNet::V6(_) => EGRESS_GATEWAY6,
            };
            namespace.addresses.insert((BRIDGE.to_owned(), address));
            namespace.routes.insert(address.trunc(), connected(BRIDGE));
            namespace
                .routes
                .insert(default_of(address), gateway(via, INGRESS_VETH));
            // Permanent: a request for it from here would carry an address of the node as sender,
            // which the host drops as its own.
            let neighbour = (INGRESS_VETH.to_owned(), via);
            namespace.neighbours.insert(neighbour, Mac::of(via));
        }
    }

    /// What every network's namespace has: a bridge, whose MAC address is made of its IP address, and
    /// a VXLAN device.
    fn bridge(&mut self, place: &Place, address: IpAddr, vni: u32, mtu: u32) {
        self.link(place, LOOPBACK, loopback());
        let bridge = Link {
            kind: LinkKind::Bridge,
            mac: Some(Mac::of(address)),
            mtu: Some(mtu),
            up: true,
            master: None,
            port: None,
        };
        self.link(place, BRIDGE, bridge);
        let vxlan = Vxlan {
            vni,
            local: Some(self.desired.local.vtep),
            port: VXLAN_PORT,
            learning: false,
        };
        let vxlan = port(LinkKind::Vxlan(vxlan), None, mtu, VXLAN_FLAGS);
        self.link(place, VXLAN, vxlan);
    }

    /// A task's interface on a network, and its port of the bridge there.
    fn plug(
        &mut self,
        (network, flags): (&Place, PortFlags),
        task: &TaskId,
        device: &str,
        address: IpAddr,
        mtu: u32,
    ) {
        let place = Place::Task(task.clone());
        let name = task_port(task);
        let peer = LinkKind::Veth(Some((place.clone(), device.to_owned())));
        self.link(network, &name, port(peer, None, mtu, flags));
        let interface = Link {
            kind: LinkKind::Veth(Some((network.clone(), name.clone()))),
            mac: Some(Mac::of(address)),
            mtu: Some(mtu),
            up: true,
            master: None,
            port: None,
        };
        self.link(&place, device, interface);
        self.reach(network, address, &name, None);
    }

    /// A task's place on a user's network; the first one's makes the network's namespace. Nothing
    /// leads from one network to another: the namespace forwards nothing, and the gateway is there
    /// to answer and no more. IPv4 alone.
    fn attachment(&mut self, task: &TaskId, attachment: &Attachment) {
        let Attachment {
            interface,
            network,
            overlay,
            address,
        } = attachment;
        let place = Place::Overlay(NetworkName::of(network));
        let carried = self.overlay_mtu;
        let mtu = overlay.mtu.map_or(carried, |mtu| mtu.min(carried));
        if !self.wanted.namespaces.contains_key(&place) {
            self.bridge(&place, overlay.gateway, overlay.vni, mtu);
            let own = in_subnet(overlay.gateway, overlay.subnet);
            let namespace = self.at(&place);
            namespace.addresses.insert((BRIDGE.to_owned(), own));
            namespace.routes.insert(own.trunc(), connected(BRIDGE));
        }
        let device = task_device(*interface);
        self.plug((&place, TASK_FLAGS), task, &device, *address, mtu);
        let own = in_subnet(*address, overlay.subnet);
        let namespace = self.at(&Place::Task(task.clone()));
        namespace.addresses.insert((device.clone(), own));
        namespace.routes.insert(own.trunc(), connected(&device));
    }

    /// A task of this node: its namespace and its port in the ingress namespace.
    fn task(&mut self, task: &TaskId, local_task: &LocalTask) {
        let address = local_task.address;
        let place = Place::Task(task.clone());
        let local = &self.desired.local;
        let name = task_port(task);
        self.link(&place, LOOPBACK, loopback());
        let ingress = (&Place::Ingress, self.task_flags());
        self.plug(ingress, task, TASK_DEVICE, address, self.overlay_mtu);
        self.program(&Place::Ingress, &name, Program::FlowLearn);
        self.program(&Place::Ingress, &name, Program::FlowReturn);

        let mut own = self.on_network(address);
        let content = self.observed.namespaces.get(&place);
        let refused =
            content.and_then(|content| content.sysctls.get(TASK_WITHOUT_IPV6)?.as_deref());
        if refused == Some("1") {
            own.retain(|address| address.addr().is_ipv4());
        }
        let gateway6 = self.address6(local.ingress);
        let namespace = self.at(&place);
        for own in own {
            let via = match own {
                IpNet::V4(_) => Some(local.ingress),
                IpNet::V6(_) => gateway6,
            };
            let Some(via) = via else { continue };
            namespace.addresses.insert((TASK_DEVICE.to_owned(), own));
            namespace.routes.insert(own.trunc(), connected(TASK_DEVICE));
            // The ingress network is the default route, so that a server bound to 0.0.0.0 answers
            // from its address there, and a strict reverse path check in the task lets clients
            // through.
            namespace
                .routes
                .insert(default_of(own), gateway(via, TASK_DEVICE));
            let neighbour = (TASK_DEVICE.to_owned(), via);
            namespace.neighbours.insert(neighbour, Mac::of(via));
        }
    }

    /// Who is where: every node and every task.
    fn everybody(&mut self) {
        let desired = self.desired;
        let within_reach = |peer: &&Peer| tunnels_to(desired.local.vtep, peer.vtep);
        for (node, peer) in &desired.peers {
            if *node != desired.local.id && within_reach(&peer) {
                self.reach(&Place::Ingress, peer.ingress, VXLAN, Some(peer.vtep));
                // The peer's host, when a task here answers it.
                if let Some(host) = host_address(peer.ingress) {
                    let route = gateway(peer.ingress, BRIDGE);
                    let ingress = self.at(&Place::Ingress);
                    ingress.routes.insert(IpNet::from(host), route);
                }
            }
        }
        self.elsewhere(&Place::Ingress, &desired.tasks);
    }

    /// The same of the users' networks that there are here.
    fn members(&mut self) {
        for (network, tasks) in &self.desired.members {
            let place = Place::Overlay(NetworkName::of(network));
            if self.wanted.namespaces.contains_key(&place) {
                self.elsewhere(&place, tasks);
            }
        }
    }

    /// The tasks of a network that are at other nodes.
    fn elsewhere(&mut self, network: &Place, tasks: &BTreeMap<TaskId, Task>) {
        let desired = self.desired;
        let within_reach = |peer: &&Peer| tunnels_to(desired.local.vtep, peer.vtep);
        for (id, task) in tasks {
            if desired.local_tasks.contains_key(id) || task.node == desired.local.id {
                continue;
            }
            if let Some(peer) = desired.peers.get(&task.node).filter(within_reach) {
                self.reach(network, task.address, VXLAN, Some(peer.vtep));
            }
        }
    }

    /// `address` is behind `port`, and with `vtep` at another node.
    fn reach(&mut self, network: &Place, address: IpAddr, port: &str, vtep: Option<IpAddr>) {
        let mac = Mac::of(address);
        let twin = match network {
            Place::Ingress => self.address6(address),
            Place::Host | Place::Overlay(_) | Place::Task(_) => None,
        };
        let namespace = self.at(network);
        for address in std::iter::once(address).chain(twin) {
            namespace
                .neighbours
                .insert((BRIDGE.to_owned(), address), mac);
        }
        namespace.forwards.insert(mac, port.to_owned());
        match vtep {
            Some(vtep) => namespace.tunnels.insert(mac, vtep),
            None => namespace.tunnels.remove(&mac),
        };
    }

    fn settings(&mut self) {
        let tasks: Vec<_> = self.desired.local_tasks.keys().cloned().collect();
        let ipv6 = self.subnet6.is_some();
        let places = self.wanted.namespaces.keys();
        let overlays = places.filter(|place| matches!(place, Place::Overlay(_)));
        let overlays: Vec<Place> = overlays.cloned().collect();
        let mut set = |place: Place, key: &str, value: &str| {
            self.wanted
                .sysctls
                .push((place, key.to_owned(), value.to_owned()));
        };
        for (key, value) in INGRESS_SYSCTLS {
            set(Place::Ingress, key, value);
        }
        if ipv6 {
            for (key, value) in INGRESS_SYSCTLS6 {
                set(Place::Ingress, key, value);
            }
            for task in tasks {
                for (key, value) in TASK_SYSCTLS6 {
                    set(Place::Task(task.clone()), key, value);
                }
            }
        }
        for place in overlays {
            for (key, value) in OVERLAY_SYSCTLS {
                set(place.clone(), key, value);
            }
        }
        for (_, key, value) in INGRESS_LINK_SYSCTLS {
            set(Place::Ingress, key, value);
        }
        for (_, key, value) in HOST_LINK_SYSCTLS {
            set(Place::Host, key, value);
        }
        if ipv6 {
            for (_, key, value) in HOST_LINK_SYSCTLS6 {
                set(Place::Host, key, value);
            }
        }
    }
}

fn loopback() -> Link {
    Link {
        kind: LinkKind::Other,
        mac: None,
        mtu: None,
        up: true,
        master: None,
        port: None,
    }
}

/// A port of the bridge.
fn port(kind: LinkKind, mac: Option<Mac>, mtu: u32, flags: PortFlags) -> Link {
    let master = Some(BRIDGE.to_owned());
    Link {
        kind,
        mac,
        mtu: Some(mtu),
        up: true,
        master,
        port: Some(flags),
    }
}

fn connected(device: &str) -> Route {
    Route {
        via: None,
        device: device.to_owned(),
        mtu: None,
    }
}

fn gateway(via: IpAddr, device: &str) -> Route {
    Route {
        via: Some(via),
        device: device.to_owned(),
        mtu: None,
    }
}

/// `address` with the prefix length of `subnet`; as a host's when they are of different families.
fn in_subnet(address: IpAddr, subnet: IpNet) -> IpNet {
    IpNet::new(address, subnet.prefix_len()).unwrap_or_else(|_| IpNet::from(address))
}

/// The default route's destination in the family of `net`.
fn default_of(net: IpNet) -> IpNet {
    match net {
        IpNet::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
        IpNet::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
    }
}
