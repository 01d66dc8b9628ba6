//! A way out of an empty network namespace, for measuring the program that looks for one.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::net::if_::if_nametoindex;

use super::tc::exchange;

const LINK: &str = "up0";

/// Makes the calling thread's network namespace forward to `neighbour` by a link of its own.
pub(super) fn lead_to(neighbour: Ipv4Addr, mac: [u8; 6]) -> Result<()> {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("cannot forward")?;
    send(RouteNetlinkMessage::NewLink(link())).context("cannot make a link")?;
    let index = if_nametoindex(LINK).context("cannot find the link")?;
    send(RouteNetlinkMessage::NewRoute(route(index, neighbour))).context("cannot make a route")?;
    let message = neighbour_message(index, neighbour, mac);
    send(RouteNetlinkMessage::NewNeighbour(message)).context("cannot make a neighbour")
}

fn send(message: RouteNetlinkMessage) -> Result<()> {
    exchange(message, NLM_F_ACK | NLM_F_CREATE)?;
    Ok(())
}

/// A veth pair, one end of it up.
fn link() -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    let peer = InfoData::Veth(InfoVeth::Peer(LinkMessage::default()));
    message.attributes = vec![
        LinkAttribute::IfName(LINK.to_owned()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(peer)]),
    ];
    message
}

fn route(index: u32, to: Ipv4Addr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = 32;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.kind = RouteType::Unicast;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Link;
    message.attributes = vec![
        RouteAttribute::Oif(index),
        RouteAttribute::Destination(RouteAddress::Inet(to)),
    ];
    message
}

fn neighbour_message(index: u32, address: Ipv4Addr, mac: [u8; 6]) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)),
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
    ];
    message
}
