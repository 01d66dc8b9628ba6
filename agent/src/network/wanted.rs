//! From what is desired to what the kernel is to hold, given what the host is like.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use swarm_model::{Protocol, ServiceId, TaskId};

use super::balance::{Balance, NodeAddresses, balance};
use super::desired::{Desired, LocalTask};
use super::listeners::Listener;
use super::model::{
    Attached, Device, Firewall, FirewallState, IpvsTable, Link, LinkKind, Mac, MeshConfig,
    MeshMaps, Namespace, Observed, Obstacle, Place, PortFlags, Program, Published, PublishedAs,
    Route, SocketPrograms, Vxlan,
};
use super::names::{
    BRIDGE, DEFAULT_MTU, EGRESS_GATEWAY, EGRESS_LOCAL, HOST_IS_ROUTER, HOST_LINK_SYSCTLS,
    HOST_PREFIX, HOST_VETH, INGRESS_LINK_SYSCTLS, INGRESS_SYSCTLS, INGRESS_VETH, LOOPBACK,
    TASK_DEVICE, VXLAN, VXLAN_OVERHEAD, VXLAN_PORT, forwarding_of, host_address, task_port,
};

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
            | Self::SubnetTaken { .. } => None,
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
    let node_addresses: BTreeSet<IpAddr> = by_address.keys().copied().collect();
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

    let mut draft = Draft {
        desired,
        programs: observed.mesh.is_ok(),
        underlay_mtu,
        wanted: Wanted::default(),
    };
    draft.host(&uplinks);
    if subnet_taken(host, desired.network.subnet).is_none() {
        draft.host_route();
    }
    draft.ingress(&node_addresses);
    for (task, local) in &desired.local_tasks {
        draft.task(task, local);
    }
    draft.everybody();
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
    } = balance(desired.services.values(), &by_address);
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
    programs: bool,
    underlay_mtu: u32,
    wanted: Wanted,
}

impl Draft<'_> {
    fn overlay_mtu(&self) -> u32 {
        self.underlay_mtu.saturating_sub(VXLAN_OVERHEAD)
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
        if self.programs {
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
        let overlay_mtu = self.overlay_mtu();
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
        let overlay_mtu = self.overlay_mtu();
        self.link(&place, LOOPBACK, loopback());

        let bridge = Link {
            kind: LinkKind::Bridge,
            mac: Some(Mac::of(local.ingress)),
            mtu: Some(overlay_mtu),
            up: true,
            master: None,
            port: None,
        };
        self.link(&place, BRIDGE, bridge);
        let vxlan = Vxlan {
            vni: network.vni,
            local: Some(local.vtep),
            port: VXLAN_PORT,
            learning: false,
        };
        self.link(
            &place,
            VXLAN,
            port(LinkKind::Vxlan(vxlan), None, overlay_mtu, VXLAN_FLAGS),
        );
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

        let namespace = self.at(&place);
        // IPVS looks only at packets that are for this namespace.
        for address in node_addresses {
            namespace
                .addresses
                .insert((LOOPBACK.to_owned(), IpNet::from(*address)));
        }
        let address = in_subnet(local.ingress, network.subnet);
        namespace.addresses.insert((BRIDGE.to_owned(), address));
        namespace.routes.insert(address.trunc(), connected(BRIDGE));
        namespace
            .routes
            .insert(default_of(address), gateway(EGRESS_GATEWAY, INGRESS_VETH));
        // Permanent: an ARP request from here would carry an address of the node as sender, which
        // the host drops as its own.
        let neighbour = (INGRESS_VETH.to_owned(), EGRESS_GATEWAY);
        namespace
            .neighbours
            .insert(neighbour, Mac::of(EGRESS_GATEWAY));
    }

    /// A task of this node: its namespace and its port in the ingress namespace.
    fn task(&mut self, task: &TaskId, local_task: &LocalTask) {
        let address = local_task.address;
        let place = Place::Task(task.clone());
        let Desired { local, network, .. } = self.desired;
        let overlay_mtu = self.overlay_mtu();
        let name = task_port(task);
        self.link(&place, LOOPBACK, loopback());

        let peer = LinkKind::Veth(Some((place.clone(), TASK_DEVICE.to_owned())));
        self.link(
            &Place::Ingress,
            &name,
            port(peer, None, overlay_mtu, TASK_FLAGS),
        );
        let device = Link {
            kind: LinkKind::Veth(Some((Place::Ingress, name.clone()))),
            mac: Some(Mac::of(address)),
            mtu: Some(overlay_mtu),
            up: true,
            master: None,
            port: None,
        };
        self.link(&place, TASK_DEVICE, device);
        self.program(&Place::Ingress, &name, Program::FlowLearn);
        self.program(&Place::Ingress, &name, Program::FlowReturn);

        let namespace = self.at(&place);
        let own = in_subnet(address, network.subnet);
        namespace.addresses.insert((TASK_DEVICE.to_owned(), own));
        namespace.routes.insert(own.trunc(), connected(TASK_DEVICE));
        // The ingress network is the default route, so that a server bound to 0.0.0.0 answers from
        // its address there, and a strict reverse path check in the task lets clients through.
        namespace
            .routes
            .insert(default_of(own), gateway(local.ingress, TASK_DEVICE));
        let neighbour = (TASK_DEVICE.to_owned(), local.ingress);
        namespace
            .neighbours
            .insert(neighbour, Mac::of(local.ingress));

        self.reach(address, &name, None);
    }

    /// Who is where: every node and every task.
    fn everybody(&mut self) {
        let desired = self.desired;
        for (node, peer) in &desired.peers {
            if *node != desired.local.id {
                self.reach(peer.ingress, VXLAN, Some(peer.vtep));
                // The peer's host, when a task here answers it.
                if let Some(host) = host_address(peer.ingress) {
                    let route = gateway(peer.ingress, BRIDGE);
                    let ingress = self.at(&Place::Ingress);
                    ingress.routes.insert(IpNet::from(host), route);
                }
            }
        }
        for (id, task) in &desired.tasks {
            if desired.local_tasks.contains_key(id) || task.node == desired.local.id {
                continue;
            }
            if let Some(peer) = desired.peers.get(&task.node) {
                self.reach(task.address, VXLAN, Some(peer.vtep));
            }
        }
    }

    /// `address` is behind `port`, and with `vtep` at another node.
    fn reach(&mut self, address: IpAddr, port: &str, vtep: Option<IpAddr>) {
        let mac = Mac::of(address);
        let namespace = self.at(&Place::Ingress);
        namespace
            .neighbours
            .insert((BRIDGE.to_owned(), address), mac);
        namespace.forwards.insert(mac, port.to_owned());
        match vtep {
            Some(vtep) => namespace.tunnels.insert(mac, vtep),
            None => namespace.tunnels.remove(&mac),
        };
    }

    fn settings(&mut self) {
        let mut set = |place: Place, key: &str, value: &str| {
            self.wanted
                .sysctls
                .push((place, key.to_owned(), value.to_owned()));
        };
        for (key, value) in INGRESS_SYSCTLS {
            set(Place::Ingress, key, value);
        }
        for (_, key, value) in INGRESS_LINK_SYSCTLS {
            set(Place::Ingress, key, value);
        }
        for (_, key, value) in HOST_LINK_SYSCTLS {
            set(Place::Host, key, value);
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
