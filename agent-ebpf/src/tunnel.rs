//! What comes to the uplink by the tunnel for the ingress network: the frame inside goes into the
//! ingress namespace, to `shortcut_in`. The host's stack, whose hooks cost each packet more than
//! everything here, and the VXLAN device unpack what is left to them.
//!
//! | inside, from | way |
//! |---|---|
//! | IPv4 for this node, from anybody | to `shortcut_in` |
//! | IPv4 for a task here, from an ingress node | to `shortcut_in` |
//! | for a task here from another task: looked at on the bridge's port | VXLAN device |
//! | IPv6, ARP | VXLAN device |
//!
//! So does all that is not quite ordinary: another network, segments that were put together, an outer
//! header with options or a checksum, congestion noted on the way (RFC 6040 has rules for that).

use core::mem::offset_of;

use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::helpers::bpf_redirect_peer;
use aya_ebpf::programs::TcContext;
use swarm_ebpf_common::Mac;

use crate::flow_learn::INGRESS_MACS;
use crate::mesh_uplink::CONFIG;
use crate::packet::{ETHERNET_LEN, Ipv4Header, PLAIN_IPV4, PortsHeader, reach};
use crate::shortcut_out::TASK_MACS;
use crate::trace::drop_unwritable;

/// From the outer Ethernet header to the inner one.
#[repr(C, packed(2))]
struct TunnelHeaders {
    outer_macs: [u16; 6],
    outer_kind: u16,
    ip: Ipv4Header,
    ports: PortsHeader,
    udp_len: u16,
    udp_checksum: u16,
    vxlan_flags: u32,
    vni: u32,
    destination_mac: [u8; 6],
    source_mac: [u8; 6],
    kind: u16,
}

/// What is taken away behind the outer Ethernet header, which becomes the inner one.
const TUNNEL_LEN: i32 = (size_of::<TunnelHeaders>() - ETHERNET_LEN) as i32;

const _: () = assert!(TUNNEL_LEN == 50 && offset_of!(TunnelHeaders, destination_mac) == 50);

/// Congestion was experienced (RFC 3168, section 5).
const CONGESTED: u8 = 0x03;
/// The flag "this is a VNI", and nothing else (RFC 7348, section 5).
const VNI_FLAG: u32 = 0x0800_0000_u32.to_be();
/// Ethernet type of IPv4.
const IPV4: u16 = 0x0800_u16.to_be();

/// Unpacks an IPv4 packet to the tunnel's port that is no fragment. Gives the verdict; nothing where it
/// is left to the host, as it was.
#[inline(always)]
pub fn arrived(ctx: &TcContext) -> Option<i32> {
    let config = CONFIG.get(0)?;
    // SAFETY: the kernel gives every program a valid context.
    let is_joined = unsafe { (*ctx.skb.skb).gso_size != 0 };
    if config.vtep == 0 || config.e1h_ifindex == 0 || is_joined {
        return None;
    }
    let headers = reach::<TunnelHeaders>(ctx, 0)?;
    // SAFETY: `reach` compared the end of the headers with the packet's.
    let headers = unsafe { &*headers };
    let is_plain = headers.ip.version_and_length == PLAIN_IPV4
        && headers.ip.tos & CONGESTED != CONGESTED
        && headers.ip.destination == config.vtep
        && headers.udp_checksum == 0
        && headers.vxlan_flags == VNI_FLAG
        && headers.vni == config.vni
        && headers.kind == IPV4;
    if !is_plain {
        return None;
    }
    let (destination, source) = (headers.destination_mac, headers.source_mac);
    if destination != config.mac.octets {
        TASK_MACS.get_ptr(Mac::new(destination))?;
        INGRESS_MACS.get_ptr(Mac::new(source))?;
    }
    ctx.skb.adjust_room(-TUNNEL_LEN, BPF_ADJ_ROOM_MAC, 0).ok()?;
    if ctx.store(0, &destination, 0).is_err() || ctx.store(6, &source, 0).is_err() {
        return Some(drop_unwritable());
    }
    // SAFETY: a helper without pointers.
    Some(unsafe { bpf_redirect_peer(config.e1h_ifindex, 0) } as i32)
}
