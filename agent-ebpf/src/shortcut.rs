//! The shortcut of established connections: the map, reading a packet for it, and rewriting one.
//!
//! IPVS decides. The first packet of a connection goes through the ingress namespace's stack, and
//! where it leaves that for the task `shortcut_learn` remembers what IPVS has made of it. From
//! then on `shortcut_in` and `shortcut_out` do the same to the connection's packets without
//! routing, bridge and IPVS.
//!
//! | packet | way |
//! |---|---|
//! | the client's SYN, and the first after it | IPVS, whose connection is then established |
//! | FIN or RST, either way | IPVS, which lets go of its connection entry soon |
//! | the client's first of [`SHORTCUT_RENEWAL_NS`] | IPVS, which keeps its connection entry alive or decides anew |
//! | IPv6, fragments, options, TTL 1, larger than the MTU | IPVS |
//! | everything else | shortcut, when there is one |
//!
//! The rest of the handshake IPVS does not need: to its table (`tcp_states`,
//! `net/netfilter/ipvs/ip_vs_proto_tcp.c`) SYN and acknowledgement of the client make an established connection.
//!
//! What is remembered is never needed: without it a packet goes through IPVS.

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::bpf_check_mtu;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{LruHashMap, PerCpuArray};
use aya_ebpf::programs::TcContext;
use swarm_ebpf_common::{MacPair, ShortcutDraft, ShortcutKey, ShortcutValue, capacity};

use crate::packet::{
    ETHERNET_LEN, Ipv4Header, PLAIN_IPV4, PROTOCOL_IPV4, PROTOCOL_TCP, PROTOCOL_UDP, PortsHeader,
    reach,
};
use crate::trace::drop_unwritable;

#[map(name = "shortcuts")]
pub static SHORTCUTS: LruHashMap<ShortcutKey, ShortcutValue> =
    LruHashMap::pinned(capacity::SHORTCUTS, 0);

/// A packet is balanced by the CPU that received it, without a pause, so that one entry a CPU does.
#[map(name = "shortcut_draft")]
pub static DRAFT: PerCpuArray<ShortcutDraft> = PerCpuArray::pinned(1, 0);

/// `BPF_MTU_CHK_SEGS`: of a packet that is yet to be segmented, the segments have to fit.
const MTU_OF_SEGMENTS: u64 = 1;
/// Length in bytes, with the Ethernet header, that fits any link: the 576 that every host takes (RFC
/// 791, section 3.1) are less than any network between hosts carries.
const SMALL_LEN: u32 = 14 + 576;
/// The flag "more fragments" and the 13 bits of a fragment's offset.
const FRAGMENT: u16 = 0x3fff_u16.to_be();

/// Offsets in the packet.
const IP: usize = ETHERNET_LEN;
const TRANSPORT: usize = IP + 20;
const TCP_CHECKSUM: usize = TRANSPORT + 16;
const UDP_CHECKSUM: usize = TRANSPORT + 6;

/// Ethernet, IPv4 without options, and the ports of TCP or UDP.
#[repr(C, packed(2))]
pub struct Headers {
    pub macs: MacPair,
    kind: u16,
    ip: Ipv4Header,
    ports: PortsHeader,
}

const _: () = assert!(size_of::<Headers>() == TRANSPORT + 4);

/// A packet that may take a shortcut.
pub struct Packet {
    pub key: ShortcutKey,
    /// Zero for UDP.
    pub tcp_flags: u8,
    pub ttl: u8,
}

/// Reads a packet; nothing when it never takes a shortcut.
#[inline(always)]
pub fn packet(ctx: &TcContext, way: u16) -> Option<Packet> {
    // SAFETY: the kernel gives every program a valid context.
    if unsafe { (*ctx.skb.skb).protocol } != PROTOCOL_IPV4 {
        return None;
    }
    let headers = reach::<Headers>(ctx, 0)?;
    // SAFETY: `reach` compared the end of the headers with the packet's.
    let headers = unsafe { &*headers };
    if headers.ip.version_and_length != PLAIN_IPV4 || headers.ip.fragment & FRAGMENT != 0 {
        return None;
    }
    let (protocol, ttl) = (headers.ip.protocol, headers.ip.ttl);
    let key = ShortcutKey::new(
        (headers.ip.source, headers.ports.source),
        (headers.ip.destination, headers.ports.destination),
        protocol,
        way,
    );
    let tcp_flags = match protocol {
        PROTOCOL_TCP => {
            let flags = reach::<u8>(ctx, TRANSPORT + 13)?;
            // SAFETY: `reach` compared its end with the packet's.
            unsafe { *flags }
        }
        PROTOCOL_UDP => 0,
        _ => return None,
    };
    Some(Packet {
        key,
        tcp_flags,
        ttl,
    })
}

/// Does to a packet what IPVS and the stack would do: one hop less to live, another destination
/// (inward) or source (outward), and inward the Ethernet addresses. Nothing when it is left as it
/// was, because it does not fit the next link; an error is the verdict on one that is half done.
#[inline(always)]
pub fn rewrite(
    ctx: &TcContext,
    packet: &Packet,
    value: &ShortcutValue,
    inward: bool,
) -> Option<Result<(), i32>> {
    if packet.ttl <= 1 {
        return None;
    }
    if ctx.len() > SMALL_LEN && !fits(ctx, value.ifindex) {
        return None;
    }
    let headers = reach::<Headers>(ctx, 0)?;
    let (old_address, old_port) = if inward {
        (packet.key.destination, packet.key.destination_port())
    } else {
        (packet.key.source, packet.key.source_port())
    };
    // SAFETY: `reach` compared the end of the headers with the packet's.
    unsafe {
        let headers = &mut *headers.cast_mut();
        if inward {
            headers.macs.0 = value.macs.0;
            headers.macs.1 = value.macs.1;
            headers.macs.2 = value.macs.2;
            headers.ip.destination = value.address;
            headers.ports.destination = value.port;
        } else {
            headers.ip.source = value.address;
            headers.ports.source = value.port;
        }
        headers.ip.ttl = packet.ttl - 1;
        // RFC 1624, equation 3: ~(~HC + ~m + m'), in words as they lie in memory.
        let mut sum = u32::from(!headers.ip.checksum)
            + less(old_address)
            + more(value.address)
            + u32::from(!u16::from_ne_bytes([packet.ttl, 0]))
            + u32::from(u16::from_ne_bytes([packet.ttl - 1, 0]));
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        headers.ip.checksum = !(sum as u16);
    }
    let (offset, mangled) = if packet.key.protocol() == PROTOCOL_TCP {
        (TCP_CHECKSUM, 0)
    } else {
        (UDP_CHECKSUM, u64::from(BPF_F_MARK_MANGLED_0))
    };
    let address = ctx.skb.l4_csum_replace(
        offset,
        u64::from(old_address),
        u64::from(value.address),
        u64::from(BPF_F_PSEUDO_HDR) | mangled | 4,
    );
    let port = if old_port == value.port {
        Ok(())
    } else {
        ctx.skb.l4_csum_replace(
            offset,
            u64::from(old_port),
            u64::from(value.port),
            mangled | 2,
        )
    };
    Some(address.and(port).map_err(|_| drop_unwritable()))
}

/// Whether a packet fits the link.
#[inline(always)]
fn fits(ctx: &TcContext, ifindex: u32) -> bool {
    let mut mtu = 0_u32;
    // SAFETY: context and result are valid for the call.
    let said = unsafe {
        bpf_check_mtu(
            ctx.skb.skb.cast(),
            ifindex,
            &raw mut mtu,
            0,
            MTU_OF_SEGMENTS,
        )
    };
    said == 0
}

/// The two halves of a word, complemented and added.
#[inline(always)]
const fn less(word: u32) -> u32 {
    (!word & 0xffff) + (!word >> 16)
}

/// The two halves of a word added.
#[inline(always)]
const fn more(word: u32) -> u32 {
    (word & 0xffff) + (word >> 16)
}
