//! A [`Wanted`] in the making: one method for each thing that is to be in the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv6Net};
use swarm_model::TaskId;

use super::{Wanted, tunnels_to};
use crate::SharedMap;
use crate::network::desired::{Attachment, Desired, LocalTask, Peer, Task, address6};
use crate::network::model::{
    Attached, Link, LinkKind, Mac, Namespace, NetworkName, Observed, Place, PortFlags, Program,
    Route, Vxlan,
};
use crate::network::names::{
    BRIDGE, EGRESS_GATEWAY, EGRESS_GATEWAY6, EGRESS_LOCAL, EGRESS_LOCAL6, FORWARDING6,
    FORWARDING6_OF_NEW, HOST_LINK_SYSCTLS, HOST_LINK_SYSCTLS6, HOST_VETH, INGRESS_LINK_SYSCTLS,
    INGRESS_SYSCTLS, INGRESS_SYSCTLS6, INGRESS_VETH, IPV6_MIN_MTU, LOOPBACK, OVERLAY_SYSCTLS,
    OVERLAY_SYSCTLS6, TASK_DEVICE, TASK_SYSCTLS6, VXLAN, VXLAN_PORT, accept_ra_of, forwarding_of,
    host_address, task_device, task_port, without_ipv6_of,
};

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

/// A [`Wanted`] in the making.
pub(super) struct Draft<'a> {
    pub(super) desired: &'a Desired,
    pub(super) observed: &'a Observed,
    /// In bytes.
    pub(super) underlay_mtu: u32,
    /// In bytes.
    pub(super) overlay_mtu: u32,
    /// The IPv6 addresses of the ingress network, where there is IPv6 at all.
    pub(super) subnet6: Option<Ipv6Net>,
    /// Those of the users' networks that there are here, likewise.
    pub(super) subnets6: BTreeMap<Place, Ipv6Net>,
    /// The name of every network's bridge.
    pub(super) bridge: Arc<str>,
    /// What there is so far.
    pub(super) wanted: Wanted,
}

impl Draft<'_> {
    /// The IPv6 addresses of the network that a namespace is of.
    fn subnet6_of(&self, network: &Place) -> Option<Ipv6Net> {
        match network {
            Place::Ingress => self.subnet6,
            Place::Overlay(_) => self.subnets6.get(network).copied(),
            Place::Host | Place::Task(_) => None,
        }
    }

    /// The IPv6 address of whoever has `address` on a network.
    fn address6(&self, network: &Place, address: IpAddr) -> Option<IpAddr> {
        address6(self.subnet6_of(network)?, address)
    }

    /// Everything under which whoever has `address` is on a network, with prefix lengths.
    fn on_network(&self, network: &Place, subnet: IpNet, address: IpAddr) -> Vec<IpNet> {
        let subnet6 = self.subnet6_of(network);
        let twin = subnet6.and_then(|subnet6| {
            let address = address6(subnet6, address)?;
            Some(in_subnet(address, IpNet::V6(subnet6)))
        });
        let own = in_subnet(address, subnet);
        std::iter::once(own).chain(twin).collect()
    }

    /// The same of a task by this interface of its own, on which its container may want no IPv6.
    fn of_task(
        &self,
        (task, device): (&TaskId, &str),
        (network, subnet): (&Place, IpNet),
        address: IpAddr,
    ) -> Vec<IpNet> {
        let mut own = self.on_network(network, subnet, address);
        let content = self.observed.namespaces.get(&Place::Task(task.clone()));
        let refused =
            content.and_then(|content| content.sysctls.get(&without_ipv6_of(device))?.as_deref());
        if refused == Some("1") {
            own.retain(|address| address.addr().is_ipv4());
        }
        own
    }

    /// How the bridge treats the port of a task: what finds the other tasks of this node has to
    /// reach them, and with IPv6 that is multicast.
    fn task_flags(&self, network: &Place) -> PortFlags {
        PortFlags {
            multicast_flood: self.subnet6_of(network).is_some(),
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
    pub(super) fn host(&mut self, uplinks: &BTreeSet<String>) {
        let peer = (Place::Ingress, INGRESS_VETH.to_owned());
        let mac = Mac::of(EGRESS_GATEWAY);
        let veth = interface(LinkKind::Veth(Some(peer)), mac, self.underlay_mtu);
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
    pub(super) fn host_route(&mut self) {
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
            .insert((HOST_VETH.into(), EGRESS_LOCAL), Mac::of(EGRESS_LOCAL));
    }

    /// The same over IPv6, but for an address of the host's own: what it sends to a task by itself
    /// are errors, and those may be from any. There is no other use for one.
    pub(super) fn host_route6(&mut self) {
        let Some(subnet6) = self.subnet6 else { return };
        let route = Route {
            mtu: Some(self.overlay_mtu),
            ..gateway(EGRESS_LOCAL6, HOST_VETH)
        };
        let host = self.at(&Place::Host);
        host.routes.insert(IpNet::V6(subnet6.trunc()), route);
        let neighbour = (HOST_VETH.into(), EGRESS_LOCAL6);
        host.neighbours.insert(neighbour, Mac::of(EGRESS_LOCAL6));
    }

    /// The host forwards IPv6 packets on our account; those of its links that take what routers
    /// advertise do so no less.
    pub(super) fn forward6(&mut self, links: BTreeSet<String>) {
        let host = self.observed.namespaces.get(&Place::Host);
        let accepts = |key: &String| {
            let value = host.and_then(|host| host.sysctls.get(key)?.as_deref());
            matches!(value, Some("1" | "2"))
        };
        let keys = links.iter().map(|name| accept_ra_of(name));
        let accept = keys.filter(accepts).map(|key| (key, "2"));
        let forward = [(FORWARDING6, "1"), (FORWARDING6_OF_NEW, "0")];
        let forward = forward.map(|(key, value)| (key.to_owned(), value));
        let settings = accept
            .chain(forward)
            .map(|(key, value)| (Place::Host, key, value.to_owned()));
        self.wanted.sysctls.extend(settings);
    }

    /// Answers from outside to our tasks come in by any uplink.
    pub(super) fn uplinks_forward(&mut self, uplinks: &BTreeSet<String>) {
        let settings = uplinks
            .iter()
            .map(|name| (Place::Host, forwarding_of(name), "1".to_owned()));
        self.wanted.sysctls.extend(settings);
    }

    /// The ingress namespace but for what depends on tasks and peers.
    pub(super) fn ingress(&mut self, node_addresses: &BTreeSet<IpAddr>) {
        let place = Place::Ingress;
        let Desired { local, network, .. } = self.desired;
        self.bridge(&place, local.ingress, network.vni, self.overlay_mtu);
        let peer = LinkKind::Veth(Some((Place::Host, HOST_VETH.to_owned())));
        let veth = interface(peer, Mac::of(EGRESS_LOCAL), self.underlay_mtu);
        self.link(&place, INGRESS_VETH, veth);
        self.program(&place, INGRESS_VETH, Program::ShortcutIn);
        self.program(&place, VXLAN, Program::ShortcutLearn);
        self.program(&place, VXLAN, Program::ShortcutOut);

        let own = self.on_network(&place, network.subnet, local.ingress);
        let looked_at = self.observed.tables.ingress;
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
            let neighbour = (INGRESS_VETH.into(), via);
            if looked_at {
                namespace.neighbours.insert(neighbour, Mac::of(via));
            }
        }
    }

    /// What every network's namespace has: a bridge, whose MAC address is made of its IP address, and
    /// a VXLAN device.
    fn bridge(&mut self, place: &Place, address: IpAddr, vni: u32, mtu: u32) {
        self.link(place, LOOPBACK, loopback());
        let bridge = interface(LinkKind::Bridge, Mac::of(address), mtu);
        self.link(place, BRIDGE, bridge);
        let vxlan = Vxlan {
            vni,
            local: Some(self.desired.local.vtep),
            port: VXLAN_PORT,
            learning: false,
            // RFC 7348, section 5: it should be zero.
            udp_checksum: false,
        };
        let vxlan = port(LinkKind::Vxlan(vxlan), mtu, VXLAN_FLAGS);
        self.link(place, VXLAN, vxlan);
    }

    /// A task's interface on a network, and its port of the bridge there.
    fn plug(
        &mut self,
        network: &Place,
        (task, device): (&TaskId, &str),
        address: IpAddr,
        mtu: u32,
    ) {
        let flags = self.task_flags(network);
        let place = Place::Task(task.clone());
        let name = task_port(task);
        let peer = LinkKind::Veth(Some((place.clone(), device.to_owned())));
        self.link(network, &name, port(peer, mtu, flags));
        let peer = LinkKind::Veth(Some((network.clone(), name.clone())));
        self.link(&place, device, interface(peer, Mac::of(address), mtu));
        self.reach(network, address, &name.into(), None);
    }

    /// A task's place on a user's network; the first one's makes the network's namespace. Nothing
    /// leads from one network to another: the namespace forwards nothing, and the gateway is there
    /// to answer and no more.
    pub(super) fn attachment(&mut self, task: &TaskId, attachment: &Attachment) {
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
            let subnet6 = overlay.subnet6;
            if let Some(subnet6) = subnet6.filter(|_| self.observed.ipv6 && mtu >= IPV6_MIN_MTU) {
                self.subnets6.insert(place.clone(), subnet6);
            }
            self.bridge(&place, overlay.gateway, overlay.vni, mtu);
            let own = self.on_network(&place, overlay.subnet, overlay.gateway);
            self.at(&place).carry(BRIDGE, own);
        }
        let device = task_device(*interface);
        self.plug(&place, (task, &device), *address, mtu);
        let own = self.of_task((task, &device), (&place, overlay.subnet), *address);
        self.at(&Place::Task(task.clone())).carry(&device, own);
    }

    /// A task of this node: its namespace and its port in the ingress namespace.
    pub(super) fn task(&mut self, task: &TaskId, local_task: &LocalTask) {
        let address = local_task.address;
        let place = Place::Task(task.clone());
        let local = &self.desired.local;
        let name = task_port(task);
        self.link(&place, LOOPBACK, loopback());
        let mtu = self.overlay_mtu;
        self.plug(&Place::Ingress, (task, TASK_DEVICE), address, mtu);
        self.program(&Place::Ingress, &name, Program::FlowLearn);
        self.program(&Place::Ingress, &name, Program::FlowReturn);

        let network = (&Place::Ingress, self.desired.network.subnet);
        let own = self.of_task((task, TASK_DEVICE), network, address);
        let gateway6 = self.address6(&Place::Ingress, local.ingress);
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
            let neighbour = (TASK_DEVICE.into(), via);
            namespace.neighbours.insert(neighbour, Mac::of(via));
        }
    }

    /// Who is where: every node and every task.
    pub(super) fn everybody(&mut self) {
        let desired = self.desired;
        let vxlan = VXLAN.into();
        for (node, peer) in &desired.peers {
            if *node != desired.local.id && self.tunnels_to(peer) {
                self.reach(&Place::Ingress, peer.ingress, &vxlan, Some(peer.vtep));
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
    pub(super) fn members(&mut self) {
        for (network, tasks) in &self.desired.members {
            let place = Place::Overlay(NetworkName::of(network));
            if self.wanted.namespaces.contains_key(&place) {
                self.elsewhere(&place, tasks);
            }
        }
    }

    /// The tasks of a network that are at other nodes.
    fn elsewhere(&mut self, network: &Place, tasks: &SharedMap<TaskId, Task>) {
        let desired = self.desired;
        let vxlan = VXLAN.into();
        for (id, task) in tasks.iter() {
            if desired.local_tasks.contains_key(id) || task.node == desired.local.id {
                continue;
            }
            if let Some(peer) = desired.peers.get(&task.node)
                && self.tunnels_to(peer)
            {
                self.reach(network, task.address, &vxlan, Some(peer.vtep));
            }
        }
    }

    /// Whether a peer can be reached over the underlay.
    fn tunnels_to(&self, peer: &Peer) -> bool {
        tunnels_to(self.desired.local.vtep, peer.vtep)
    }

    /// `address` is behind `port`, and with `vtep` at another node.
    fn reach(&mut self, network: &Place, address: IpAddr, port: &Arc<str>, vtep: Option<IpAddr>) {
        if !self.observed.tables.ingress && *network == Place::Ingress {
            return;
        }
        let bridge = self.bridge.clone();
        let mac = Mac::of(address);
        let twin = self.address6(network, address);
        let namespace = self.at(network);
        for address in std::iter::once(address).chain(twin) {
            namespace.neighbours.insert((bridge.clone(), address), mac);
        }
        namespace.forwards.insert(mac, port.clone());
        match vtep {
            Some(vtep) => namespace.tunnels.insert(mac, vtep),
            None => namespace.tunnels.remove(&mac),
        };
    }

    pub(super) fn settings(&mut self) {
        let ipv6 = self.subnet6.is_some();
        let on_ipv6 = |task: &LocalTask| {
            let networks = task.attachments.iter();
            let mut places = networks.map(|of| Place::Overlay(NetworkName::of(&of.network)));
            ipv6 || places.any(|place| self.subnets6.contains_key(&place))
        };
        let tasks = self.desired.local_tasks.iter();
        let tasks6: Vec<_> = tasks.filter(|(_, task)| on_ipv6(task)).collect();
        let subnets6 = self.subnets6.clone();
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
        }
        for (task, _) in tasks6 {
            for (key, value) in TASK_SYSCTLS6 {
                set(Place::Task(task.clone()), key, value);
            }
        }
        for place in overlays {
            let of_ipv6 = OVERLAY_SYSCTLS6.iter();
            let of_ipv6 = of_ipv6.filter(|_| subnets6.contains_key(&place));
            for (key, value) in OVERLAY_SYSCTLS.iter().chain(of_ipv6) {
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

impl Namespace {
    /// Gives a link these addresses, and routes to what is on it.
    fn carry(&mut self, device: &str, own: impl IntoIterator<Item = IpNet>) {
        for address in own {
            self.addresses.insert((device.to_owned(), address));
            self.routes.insert(address.trunc(), connected(device));
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

/// A link of its own, with an address to be reached by.
fn interface(kind: LinkKind, mac: Mac, mtu: u32) -> Link {
    Link {
        kind,
        mac: Some(mac),
        mtu: Some(mtu),
        up: true,
        master: None,
        port: None,
    }
}

/// A port of the bridge; nobody asks for its MAC address.
fn port(kind: LinkKind, mtu: u32, flags: PortFlags) -> Link {
    Link {
        kind,
        mac: None,
        mtu: Some(mtu),
        up: true,
        master: Some(BRIDGE.to_owned()),
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
