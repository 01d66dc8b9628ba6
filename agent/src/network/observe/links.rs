//! Links.

use std::collections::BTreeMap;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoVxlan, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};

use super::Seen;
use crate::network::connection::Connection;
use crate::network::model::{Device, Link, LinkKind, Mac, Namespace, Place, PortFlags, Vxlan};
use crate::network::netlink::NetlinkError;

/// The other end of a link, as the link's namespace names it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OtherEnd {
    /// Its index, in its own namespace.
    index: u32,
    /// The number of its namespace; none when that is the link's own.
    netns: Option<i32>,
}

/// Fills in the links, and takes their indexes over into the connection. Returns the other end of
/// each link that has one.
pub(super) fn read(
    connection: &mut Connection,
    namespace: &mut Namespace,
) -> Result<BTreeMap<String, OtherEnd>, NetlinkError> {
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let messages = connection.socket.dump(&request)?;
    let messages: Vec<LinkMessage> = messages
        .into_iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(link) => Some(link),
            _ => None,
        })
        .collect();
    let named = messages
        .iter()
        .filter_map(|link| Some((link_name(link)?, link.header.index)));
    connection.indexes = named.collect();
    let names: BTreeMap<u32, &String> = connection
        .indexes
        .iter()
        .map(|(name, index)| (*index, name))
        .collect();

    let mut peers: BTreeMap<String, OtherEnd> = BTreeMap::new();
    for message in &messages {
        let Some(name) = link_name(message) else {
            continue;
        };
        let mut link = Link {
            kind: LinkKind::Other,
            mac: None,
            mtu: None,
            up: message.header.flags.contains(LinkFlags::Up),
            master: None,
            port: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::Address(octets) => {
                    link.mac = octets.as_slice().try_into().ok().map(Mac);
                }
                LinkAttribute::Mtu(mtu) => link.mtu = Some(*mtu),
                LinkAttribute::Controller(index) => {
                    link.master = names.get(index).map(|name| (*name).clone());
                }
                LinkAttribute::Link(index) => {
                    peers.entry(name.clone()).or_default().index = *index;
                }
                LinkAttribute::LinkNetNsId(number) => {
                    peers.entry(name.clone()).or_default().netns = Some(*number);
                }
                LinkAttribute::LinkInfo(infos) => link_info(&mut link, infos),
                _ => {}
            }
        }
        namespace.links.insert(name, link);
    }
    Ok(peers)
}

/// What a link is named.
pub(super) fn link_name(message: &LinkMessage) -> Option<String> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        })
}

fn link_info(link: &mut Link, infos: &[LinkInfo]) {
    for info in infos {
        match info {
            LinkInfo::Kind(InfoKind::Bridge) => link.kind = LinkKind::Bridge,
            // Which the other end is shows when all namespaces are read.
            LinkInfo::Kind(InfoKind::Veth) => link.kind = LinkKind::Veth(None),
            LinkInfo::Data(InfoData::Vxlan(infos)) => link.kind = LinkKind::Vxlan(vxlan(infos)),
            LinkInfo::PortData(InfoPortData::BridgePort(infos)) => {
                link.port = Some(port_flags(infos));
            }
            _ => {}
        }
    }
}

fn vxlan(infos: &[InfoVxlan]) -> Vxlan {
    let mut vxlan = Vxlan {
        vni: 0,
        local: None,
        port: 0,
        learning: false,
        udp_checksum: false,
    };
    for info in infos {
        match info {
            InfoVxlan::Id(vni) => vxlan.vni = *vni,
            InfoVxlan::Local(address) => vxlan.local = Some((*address).into()),
            InfoVxlan::Local6(address) => vxlan.local = Some((*address).into()),
            InfoVxlan::Port(port) => vxlan.port = *port,
            InfoVxlan::Learning(learning) => vxlan.learning = *learning,
            InfoVxlan::UDPCsum(udp_checksum) => vxlan.udp_checksum = *udp_checksum,
            _ => {}
        }
    }
    vxlan
}

fn port_flags(infos: &[InfoBridgePort]) -> PortFlags {
    let mut flags = PortFlags::INITIAL;
    for info in infos {
        match info {
            InfoBridgePort::Learning(on) => flags.learning = *on,
            InfoBridgePort::UnicastFlood(on) => flags.flood = *on,
            InfoBridgePort::MulticastFlood(on) => flags.multicast_flood = *on,
            InfoBridgePort::BroadcastFlood(on) => flags.broadcast_flood = *on,
            InfoBridgePort::NeighSupress(on) => flags.neighbour_suppress = *on,
            _ => {}
        }
    }
    flags
}

/// Finds the two ends of each veth pair: each names the other's index. Every namespace counts for
/// itself, so that several ends may fit; which it is shows by the number that the namespace has in
/// the other.
pub(super) fn pair_veths(
    seen: &mut BTreeMap<Place, Seen>,
    open: &mut BTreeMap<Place, Connection>,
) -> Result<(), NetlinkError> {
    let mut ends: BTreeMap<(u32, u32), Vec<Device>> = BTreeMap::new();
    for (place, content) in seen.iter() {
        let Some(connection) = open.get(place) else {
            continue;
        };
        for (name, peer) in &content.peers {
            if let Some(own) = connection.indexes.get(name) {
                let fitting = ends.entry((*own, peer.index)).or_default();
                fitting.push((place.clone(), name.clone()));
            }
        }
    }
    for (place, content) in seen.iter_mut() {
        for (name, peer) in &content.peers {
            let Some(link) = content.namespace.links.get_mut(name) else {
                continue;
            };
            let LinkKind::Veth(other) = &mut link.kind else {
                continue;
            };
            let Some(own) = open.get(place).and_then(|it| it.indexes.get(name)) else {
                continue;
            };
            let fitting = ends.get(&(peer.index, *own)).map_or(&[][..], Vec::as_slice);
            let mut fitting: Vec<&Device> = fitting
                .iter()
                .filter(|(elsewhere, _)| elsewhere != place)
                .collect();
            if fitting.len() > 1 {
                fitting = of_netns(&fitting, peer.netns, place, open)?;
            }
            *other = fitting.first().copied().cloned();
        }
    }
    Ok(())
}

/// Those of `ends` whose namespace has that number in the namespace `place`.
fn of_netns<'a>(
    ends: &[&'a Device],
    number: Option<i32>,
    place: &Place,
    open: &mut BTreeMap<Place, Connection>,
) -> Result<Vec<&'a Device>, NetlinkError> {
    let mut fitting = Vec::new();
    for end in ends {
        let Some(netns) = open.get(&end.0).map(|there| there.netns.clone()) else {
            continue;
        };
        let Some(connection) = open.get_mut(place) else {
            continue;
        };
        if number.is_some() && connection.number_of(&netns)? == number {
            fitting.push(*end);
        }
    }
    Ok(fitting)
}
