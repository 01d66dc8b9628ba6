//! Addresses, routes, neighbours and forwarding tables.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::network::connection::{Connection, route_metrics};
use crate::network::model::{Mac, Namespace, Route};
use crate::network::netlink::NetlinkError;

/// Fills in the addresses of global scope that are there to stay.
pub(super) fn read_addresses(
    connection: &mut Connection,
    family: AddressFamily,
    namespace: &mut Namespace,
) -> Result<(), NetlinkError> {
    let mut request = AddressMessage::default();
    request.header.family = family;
    for message in connection
        .socket
        .dump(&RouteNetlinkMessage::GetAddress(request))?
    {
        let RouteNetlinkMessage::NewAddress(message) = message else {
            continue;
        };
        if message.header.scope != AddressScope::Universe || passing(&message) {
            continue;
        }
        let mut local = None;
        let mut other = None;
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(address) => local = Some(*address),
                AddressAttribute::Address(address) => other = Some(*address),
                _ => {}
            }
        }
        // On a point-to-point link `Address` is the other side's.
        let net = local
            .or(other)
            .map(|address| IpNet::new(address, message.header.prefix_len));
        let name = connection.name_of(message.header.index);
        if let (Some(Ok(net)), Some(name)) = (net, name) {
            namespace.addresses.insert((name, net));
        }
    }
    Ok(())
}

/// Whether an IPv6 address is a temporary one, or not (yet) known to be nobody else's.
fn passing(message: &AddressMessage) -> bool {
    const PASSING: AddressFlags = AddressFlags::Secondary
        .union(AddressFlags::Tentative)
        .union(AddressFlags::Dadfailed);
    let flags = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Flags(flags) => Some(*flags),
            _ => None,
        });
    let flags =
        flags.unwrap_or_else(|| AddressFlags::from_bits_retain(message.header.flags.bits().into()));
    // Of an IPv4 address `Secondary` says something else.
    message.header.family == AddressFamily::Inet6
        && flags.intersects(PASSING)
        && !flags.contains(AddressFlags::Optimistic)
}

/// Fills in the routes of the main table with the metrics the kernel gives by itself. Returns the
/// link of the default route with the lowest metric of all.
pub(super) fn read_routes(
    connection: &mut Connection,
    family: AddressFamily,
    namespace: &mut Namespace,
) -> Result<Option<String>, NetlinkError> {
    let any = match family {
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    let mut default_link: Option<(u32, String)> = None;
    for message in connection
        .socket
        .dump(&RouteNetlinkMessage::GetRoute(request))?
    {
        let RouteNetlinkMessage::NewRoute(message) = message else {
            continue;
        };
        let header = &message.header;
        let main = header.table == RouteHeader::RT_TABLE_MAIN;
        let plain = header.kind == RouteType::Unicast && header.tos == 0;
        if !main || !plain || header.flags.contains(RouteFlags::Cloned) {
            continue;
        }
        let mut metric = 0;
        let mut device = None;
        let mut via = None;
        let mut mtu = None;
        let mut to = any;
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Priority(priority) => metric = *priority,
                RouteAttribute::Metrics(metrics) => mtu = route_mtu(metrics),
                RouteAttribute::Oif(index) => device = connection.name_of(*index),
                RouteAttribute::Gateway(RouteAddress::Inet(address)) => {
                    via = Some(IpAddr::V4(*address));
                }
                RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                    to = IpAddr::V4(*address);
                }
                RouteAttribute::Gateway(RouteAddress::Inet6(address)) => {
                    via = Some(IpAddr::V6(*address));
                }
                RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                    to = IpAddr::V6(*address);
                }
                _ => {}
            }
        }
        let Some(device) = device else { continue };
        let Ok(to) = IpNet::new(to, header.destination_prefix_length) else {
            continue;
        };
        let lower = default_link
            .as_ref()
            .is_none_or(|(lowest, _)| metric < *lowest);
        if to.prefix_len() == 0 && lower {
            default_link = Some((metric, device.clone()));
        }
        if route_metrics(any).contains(&metric) {
            namespace.routes.insert(to, Route { via, device, mtu });
        }
    }
    Ok(default_link.map(|(_, device)| device))
}

fn route_mtu(metrics: &[RouteMetric]) -> Option<u32> {
    metrics.iter().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

/// Fills in permanent neighbours.
pub(super) fn read_neighbours(
    connection: &mut Connection,
    family: AddressFamily,
    namespace: &mut Namespace,
) -> Result<(), NetlinkError> {
    let found = entries(connection, family, |entry| {
        entry
            .to
            .filter(|_| entry.state == NeighbourState::Permanent)
    })?;
    let names = LinkNames::of(connection);
    let named = found.into_iter().filter_map(|(link, mac, address)| {
        let name = names.get(link)?;
        Some(((name, address), mac))
    });
    // Not one by one, which leaves half of the room in a map unused.
    namespace.neighbours.append(&mut named.collect());
    Ok(())
}

/// Fills in the tables of VXLAN devices and of the bridge.
pub(super) fn read_forwarding(
    connection: &mut Connection,
    namespace: &mut Namespace,
) -> Result<(), NetlinkError> {
    let found = entries(connection, AddressFamily::Bridge, |entry| {
        match (entry.in_bridge, entry.state, entry.to) {
            // In state `Permanent` are the bridge's and its ports' own addresses.
            (true, NeighbourState::Noarp, _) => Some(None),
            (false, _, Some(vtep)) if entry.flags.contains(NeighbourFlags::Own) => Some(Some(vtep)),
            _ => None,
        }
    })?;
    let names = LinkNames::of(connection);
    let tunnels = found.iter().filter(|(link, ..)| names.get(*link).is_some());
    namespace.tunnels = tunnels
        .filter_map(|(_, mac, vtep)| Some((*mac, (*vtep)?)))
        .collect();
    let forwards = found.iter().filter(|(.., vtep)| vtep.is_none());
    namespace.forwards = forwards
        .filter_map(|(link, mac, _)| Some((*mac, names.get(*link)?)))
        .collect();
    Ok(())
}

/// The links by their index.
struct LinkNames(BTreeMap<u32, Arc<str>>);

impl LinkNames {
    /// As of the last time they were listed.
    fn of(connection: &Connection) -> Self {
        let links = connection.indexes.iter();
        Self(
            links
                .map(|(name, index)| (*index, name.as_str().into()))
                .collect(),
        )
    }

    fn get(&self, index: u32) -> Option<Arc<str>> {
        self.0.get(&index).cloned()
    }
}

/// An entry of a neighbour or forwarding table but for its link and MAC address.
struct Entry {
    to: Option<IpAddr>,
    state: NeighbourState,
    flags: NeighbourFlags,
    in_bridge: bool,
}

/// The entries of a table that `pick` makes something of: each with its link and MAC address.
fn entries<T>(
    connection: &mut Connection,
    family: AddressFamily,
    pick: impl Fn(&Entry) -> Option<T>,
) -> Result<Vec<(u32, Mac, T)>, NetlinkError> {
    let mut request = NeighbourMessage::default();
    request.header.family = family;
    let request = RouteNetlinkMessage::GetNeighbour(request);
    connection.socket.dump_picked(&request, |message| {
        let RouteNetlinkMessage::NewNeighbour(message) = message else {
            return None;
        };
        let (mac, entry) = entry(&message)?;
        Some((message.header.ifindex, mac, pick(&entry)?))
    })
}

fn entry(message: &NeighbourMessage) -> Option<(Mac, Entry)> {
    let mut mac = None;
    let mut to = None;
    let mut in_bridge = false;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(octets) => {
                mac = octets.as_slice().try_into().ok().map(Mac);
            }
            NeighbourAttribute::Destination(destination) => to = ip_of(destination),
            NeighbourAttribute::Controller(_) => in_bridge = true,
            _ => {}
        }
    }
    let entry = Entry {
        to,
        state: message.header.state,
        flags: message.header.flags,
        in_bridge,
    };
    Some((mac?, entry))
}

fn ip_of(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(address) => Some((*address).into()),
        NeighbourAddress::Inet6(address) => Some((*address).into()),
        // The library goes by the message's family, which for a VXLAN device's table is a bridge's.
        NeighbourAddress::Other(octets) => match octets.len() {
            4 => <[u8; 4]>::try_from(octets.as_slice())
                .ok()
                .map(IpAddr::from),
            16 => <[u8; 16]>::try_from(octets.as_slice())
                .ok()
                .map(IpAddr::from),
            _ => None,
        },
        _ => None,
    }
}
