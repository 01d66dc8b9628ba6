//! A namespace with an open socket in it, and requests in the words of the model.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use rtnetlink::{LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan};

use super::model::{Mac, PortFlags, Route, Vxlan};
use super::netlink::{NetlinkError, Socket};
use super::netns::{Netns, NetnsError};
use super::op::Op;

/// Why a connection could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// The namespace cannot be used.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// No socket in it.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// A namespace and a socket in it. Requests that find their work done succeed, but for the making
/// of links.
#[derive(Debug)]
pub(super) struct Connection {
    /// The namespace.
    pub(super) netns: Netns,
    /// The socket.
    pub(super) socket: Socket,
    /// The namespace's cookie.
    pub(super) cookie: u64,
    /// Indexes of links, as of the last time they were listed or looked up.
    pub(super) indexes: BTreeMap<String, u32>,
}

/// Where the other end of a new veth pair goes.
pub(super) struct VethPeer<'a> {
    /// Its namespace.
    pub(super) netns: &'a Netns,
    /// Its name.
    pub(super) name: &'a str,
    /// Its MAC address; nothing lets the kernel draw one.
    pub(super) mac: Option<Mac>,
}

type Outcome = Result<(), NetlinkError>;

impl Connection {
    /// Opens a socket in `netns`.
    pub(super) fn open(netns: Netns) -> Result<Self, ConnectError> {
        let socket = netns.run(Socket::open)??;
        let cookie = socket.netns_cookie()?;
        Ok(Self {
            netns,
            socket,
            cookie,
            indexes: BTreeMap::new(),
        })
    }

    /// The index of a link. `NoAnswer` when there is no such link.
    pub(super) fn index(&mut self, name: &str) -> Result<u32, NetlinkError> {
        if let Some(index) = self.indexes.get(name) {
            return Ok(*index);
        }
        let message = LinkUnspec::new_with_name(name).build();
        match self.socket.get(RouteNetlinkMessage::GetLink(message))? {
            RouteNetlinkMessage::NewLink(link) => {
                self.indexes.insert(name.to_owned(), link.header.index);
                Ok(link.header.index)
            }
            _ => Err(NetlinkError::NoAnswer),
        }
    }

    /// The number that another namespace has in this one; none when it has none.
    pub(super) fn number_of(&mut self, netns: &Netns) -> Result<Option<i32>, NetlinkError> {
        let descriptor = netns.as_fd().as_raw_fd();
        let mut message = NsidMessage::default();
        message.attributes = vec![NsidAttribute::Fd(descriptor.cast_unsigned())];
        match self.socket.get(RouteNetlinkMessage::GetNsId(message))? {
            RouteNetlinkMessage::NewNsId(answer) => {
                Ok(answer
                    .attributes
                    .iter()
                    .find_map(|attribute| match attribute {
                        // `NETNSA_NSID_NOT_ASSIGNED` (linux/net_namespace.h) is -1.
                        NsidAttribute::Id(number) => (*number >= 0).then_some(*number),
                        _ => None,
                    }))
            }
            _ => Err(NetlinkError::NoAnswer),
        }
    }

    /// The name of a link by its index, as of the last time links were listed.
    pub(super) fn name_of(&self, index: u32) -> Option<String> {
        let mut links = self.indexes.iter();
        links
            .find(|(_, of)| **of == index)
            .map(|(name, _)| name.clone())
    }

    /// Makes a bridge that leaves multicast alone: its tables are filled by us.
    pub(super) fn create_bridge(
        &mut self,
        name: &str,
        mac: Option<Mac>,
        mtu: Option<u32>,
    ) -> Outcome {
        let builder = LinkBridge::new(name).down().mcast_snooping(false);
        self.create_link(with_properties(builder, mac, mtu).build())
    }

    /// Makes a VXLAN device in `inside`, with its outer packets in *this* namespace: the kernel
    /// takes the namespace of the request for them (`vxlan_newlink`, `src_net`) and that of the
    /// attribute for the device, which comes to the same as making it here and moving it. Made
    /// within the namespace that holds IPVS, its outer packets would pass IPVS again and the kernel
    /// would drop them (`Dead loop on virtual device`).
    pub(super) fn create_vxlan(
        &mut self,
        inside: &Netns,
        name: &str,
        mtu: Option<u32>,
        vxlan: &Vxlan,
    ) -> Outcome {
        let builder = LinkVxlan::new(name, vxlan.vni)
            .port(vxlan.port)
            .learning(vxlan.learning)
            .udp_csum(vxlan.udp_checksum);
        let builder = match vxlan.local {
            Some(IpAddr::V4(local)) => builder.local(local),
            Some(IpAddr::V6(local)) => builder.local6(local),
            None => builder,
        };
        let builder = builder.setns_by_fd(inside.as_fd().as_raw_fd());
        self.create_link(with_properties(builder, None, mtu).build())
    }

    /// Makes a veth pair, both ends at once: neither is ever in the wrong namespace.
    pub(super) fn create_veth(
        &mut self,
        name: &str,
        mac: Option<Mac>,
        peer: &VethPeer<'_>,
        mtu: Option<u32>,
    ) -> Outcome {
        let other =
            LinkUnspec::new_with_name(peer.name).setns_by_fd(peer.netns.as_fd().as_raw_fd());
        let other = with_properties(other, peer.mac, mtu).build();
        let builder =
            LinkVeth::new(name, peer.name).set_info_data(InfoData::Veth(InfoVeth::Peer(other)));
        self.create_link(with_properties(builder, mac, mtu).build())
    }

    fn create_link(&mut self, message: LinkMessage) -> Outcome {
        // One that exists is an error: it was not there when the namespace was read. So is a VXLAN
        // device with the same network identifier elsewhere on the host.
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.socket
            .request(RouteNetlinkMessage::NewLink(message), flags)
    }

    /// Deletes a link.
    pub(super) fn delete_link(&mut self, name: &str) -> Outcome {
        self.indexes.remove(name);
        let message = LinkUnspec::new_with_name(name).build();
        let outcome = self
            .socket
            .request(RouteNetlinkMessage::DelLink(message), 0);
        done(outcome, &[Errno::ENODEV])
    }

    fn change_link(
        &mut self,
        name: &str,
        change: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Outcome {
        let index = self.index(name)?;
        let message = change(LinkUnspec::new_with_index(index)).build();
        self.socket
            .request(RouteNetlinkMessage::NewLink(message), 0)
    }

    /// Sets a link's MAC address.
    pub(super) fn set_mac(&mut self, name: &str, mac: Mac) -> Outcome {
        self.change_link(name, |link| link.address(mac.0.to_vec()))
    }

    /// Sets a link's MTU.
    pub(super) fn set_mtu(&mut self, name: &str, mtu: u32) -> Outcome {
        self.change_link(name, |link| link.mtu(mtu))
    }

    /// Sets a link up.
    pub(super) fn set_up(&mut self, name: &str) -> Outcome {
        self.change_link(name, LinkMessageBuilder::up)
    }

    /// Makes a link a port of a bridge.
    pub(super) fn set_master(&mut self, name: &str, master: &str) -> Outcome {
        let master = self.index(master)?;
        self.change_link(name, |link| link.controller(master))
    }

    /// Sets how the bridge treats a port.
    pub(super) fn set_port_flags(&mut self, name: &str, flags: PortFlags) -> Outcome {
        let message = LinkBridgePort::new(self.index(name)?)
            .learning(flags.learning)
            .flood(flags.flood)
            .mcast_flood(flags.multicast_flood)
            .bcast_flood(flags.broadcast_flood)
            .neigh_suppress(flags.neighbour_suppress)
            .build();
        self.socket
            .request(RouteNetlinkMessage::NewLink(message), 0)
    }

    /// Adds an address.
    pub(super) fn add_address(&mut self, name: &str, address: IpNet) -> Outcome {
        let message = address_message(self.index(name)?, address);
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.socket
            .request(RouteNetlinkMessage::NewAddress(message), flags)
    }

    /// Deletes an address.
    pub(super) fn delete_address(&mut self, name: &str, address: IpNet) -> Outcome {
        let message = address_message(self.index(name)?, address);
        let outcome = self
            .socket
            .request(RouteNetlinkMessage::DelAddress(message), 0);
        done(outcome, &[Errno::EADDRNOTAVAIL])
    }

    /// Adds or replaces a route.
    pub(super) fn set_route(&mut self, destination: IpNet, route: &Route) -> Outcome {
        let message = self.route_message(destination, route)?;
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.socket
            .request(RouteNetlinkMessage::NewRoute(message), flags)
    }

    /// Deletes a route.
    pub(super) fn delete_route(&mut self, destination: IpNet, route: &Route) -> Outcome {
        let mut message = self.route_message(destination, route)?;
        // Whoever made it, and whatever the scope.
        message.header.protocol = RouteProtocol::Unspec;
        message.header.scope = RouteScope::NoWhere;
        let outcome = self
            .socket
            .request(RouteNetlinkMessage::DelRoute(message), 0);
        done(outcome, &[Errno::ESRCH])
    }

    fn route_message(
        &mut self,
        destination: IpNet,
        route: &Route,
    ) -> Result<RouteMessage, NetlinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(destination.addr());
        message.header.destination_prefix_length = destination.prefix_len();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.kind = RouteType::Unicast;
        message
            .attributes
            .push(RouteAttribute::Oif(self.index(&route.device)?));
        if destination.prefix_len() > 0 {
            message
                .attributes
                .push(RouteAttribute::Destination(destination.addr().into()));
        }
        match route.via {
            Some(via) => {
                message.header.protocol = RouteProtocol::Static;
                message.header.scope = RouteScope::Universe;
                // The gateway need not be in a subnet of the link.
                message.header.flags = RouteFlags::Onlink;
                message.attributes.push(RouteAttribute::Gateway(via.into()));
            }
            None => {
                message.header.protocol = RouteProtocol::Kernel;
                message.header.scope = RouteScope::Link;
                // As the kernel's own, so that there are not two.
                let [metric, _] = route_metrics(destination.addr());
                message.attributes.push(RouteAttribute::Priority(metric));
            }
        }
        if let Some(mtu) = route.mtu {
            let metrics = vec![RouteMetric::Mtu(mtu)];
            message.attributes.push(RouteAttribute::Metrics(metrics));
        }
        Ok(message)
    }

    /// Adds or replaces entries of tables, by [`Op::SetNeighbour`], [`Op::SetTunnel`] and
    /// [`Op::SetForward`]; other operations are none of its business and succeed. One that fails does
    /// not stop those after it.
    pub(super) fn set_entries(&mut self, ops: &[Op]) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(ops.len());
        let mut messages = Vec::new();
        let mut sent = Vec::new();
        for (position, op) in ops.iter().enumerate() {
            let message = self.entry_message(op);
            outcomes.push(message.map(|message| {
                if let Some(message) = message {
                    let flags = NLM_F_CREATE | NLM_F_REPLACE;
                    messages.push((RouteNetlinkMessage::NewNeighbour(message), flags));
                    sent.push(position);
                }
            }));
        }
        match self.socket.each(messages) {
            Ok(results) => {
                for (position, result) in sent.into_iter().zip(results) {
                    outcomes[position] = result;
                }
            }
            Err(error) => {
                if let Some(first) = sent.first() {
                    outcomes[*first] = Err(error);
                }
            }
        }
        outcomes
    }

    /// A permanent neighbour, an entry of a VXLAN device's own table, or a static one of the bridge's:
    /// a MAC address is behind a port.
    fn entry_message(&mut self, op: &Op) -> Result<Option<NeighbourMessage>, NetlinkError> {
        let attribute = |message: &mut NeighbourMessage, address| {
            let address = NeighbourAttribute::Destination(neighbour_address(address));
            message.attributes.push(address);
        };
        Ok(match op {
            Op::SetNeighbour {
                device,
                address,
                mac,
            } => {
                let mut message = neighbour_message(self.index(&device.1)?, family(*address));
                message.header.state = NeighbourState::Permanent;
                attribute(&mut message, *address);
                message
                    .attributes
                    .push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
                Some(message)
            }
            Op::SetTunnel { device, mac, vtep } => {
                let mut message = tunnel_message(self.index(&device.1)?, *mac);
                attribute(&mut message, *vtep);
                Some(message)
            }
            Op::SetForward { device, mac } => Some(forward_message(self.index(&device.1)?, *mac)),
            _ => None,
        })
    }

    /// Deletes a neighbour.
    pub(super) fn delete_neighbour(&mut self, name: &str, address: IpAddr) -> Outcome {
        let mut message = neighbour_message(self.index(name)?, family(address));
        message
            .attributes
            .push(NeighbourAttribute::Destination(neighbour_address(address)));
        self.delete_entry(message)
    }

    /// Deletes an entry of a VXLAN device's own table.
    pub(super) fn delete_tunnel(&mut self, name: &str, mac: Mac) -> Outcome {
        let message = tunnel_message(self.index(name)?, mac);
        self.delete_entry(message)
    }

    /// Deletes an entry of the bridge's table.
    pub(super) fn delete_forward(&mut self, name: &str, mac: Mac) -> Outcome {
        let message = forward_message(self.index(name)?, mac);
        self.delete_entry(message)
    }

    fn delete_entry(&mut self, message: NeighbourMessage) -> Outcome {
        let outcome = self
            .socket
            .request(RouteNetlinkMessage::DelNeighbour(message), 0);
        done(outcome, &[Errno::ENOENT])
    }
}

/// Success also where the kernel says that the work was done before.
fn done(outcome: Outcome, done: &[Errno]) -> Outcome {
    match outcome {
        Err(error) if error.errno().is_some_and(|errno| done.contains(&errno)) => Ok(()),
        outcome => outcome,
    }
}

fn with_properties<T>(
    builder: LinkMessageBuilder<T>,
    mac: Option<Mac>,
    mtu: Option<u32>,
) -> LinkMessageBuilder<T> {
    let mac = mac.map(|mac| LinkAttribute::Address(mac.0.to_vec()));
    let mtu = mtu.map(LinkAttribute::Mtu);
    mac.into_iter()
        .chain(mtu)
        .fold(builder, LinkMessageBuilder::append_extra_attribute)
}

/// The metrics that routes get where none is given: those on the link of an address, and others
/// (`IP6_RT_PRIO_ADDRCONF`, `IP6_RT_PRIO_USER`, include/uapi/linux/ipv6_route.h).
pub(super) fn route_metrics(address: IpAddr) -> [u32; 2] {
    match address {
        IpAddr::V4(_) => [0, 0],
        IpAddr::V6(_) => [256, 1024],
    }
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn address_message(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.addr());
    message.header.prefix_len = address.prefix_len();
    message.header.scope = AddressScope::Universe;
    message.header.flags = match address {
        IpNet::V4(_) => AddressHeaderFlags::empty(),
        // Usable at once: nobody else has it.
        IpNet::V6(_) => AddressHeaderFlags::Nodad,
    };
    message.header.index = index;
    message
        .attributes
        .push(AddressAttribute::Address(address.addr()));
    message
        .attributes
        .push(AddressAttribute::Local(address.addr()));
    message
}

fn neighbour_message(index: u32, family: AddressFamily) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    message.header.ifindex = index;
    message
}

fn tunnel_message(index: u32, mac: Mac) -> NeighbourMessage {
    let mut message = neighbour_message(index, AddressFamily::Bridge);
    message.header.flags = NeighbourFlags::Own;
    message.header.state = NeighbourState::Permanent;
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message
}

fn forward_message(index: u32, mac: Mac) -> NeighbourMessage {
    let mut message = neighbour_message(index, AddressFamily::Bridge);
    message.header.flags = NeighbourFlags::Controller;
    // Static. `Permanent` would mean an address of the bridge itself.
    message.header.state = NeighbourState::Noarp;
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message
}

fn neighbour_address(address: IpAddr) -> NeighbourAddress {
    match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    }
}
