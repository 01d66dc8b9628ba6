//! Reading headers that an ordinary IPv4 packet has not: IPv6, fragments, and the packet inside an
//! ICMP error. Called for what `packet` does not know, so that IPv4 pays nothing for it.
//!
//! An IPv6 header is read in place, everything behind extension headers by copying: the place of
//! those is not known to the verifier.
//!
//! Deliberately absent: ESP and AH, whose content is not ours to see, and the packets inside ICMP
//! errors that IPVS does not translate (parameter problems, redirects).

use aya_ebpf::programs::TcContext;
use swarm_ebpf_common::{Address, Counter, FragmentKey};

use crate::count::count;
use crate::packet::{
    self, ETHERNET_LEN, FRAGMENT_OFFSET, IPV4_MIN_LEN, Ipv4Header, PROTOCOL_SCTP, PROTOCOL_TCP,
    PROTOCOL_UDP, Ports, PortsHeader, TcpHeader, ports_at, reach,
};

/// `ETH_P_IPV6` as `__sk_buff::protocol` holds it.
pub const PROTOCOL_IPV6: u32 = 0x86dd_u16.to_be() as u32;

/// Protocol numbers (IANA).
const HOP_BY_HOP: u8 = 0;
pub const ICMP: u8 = 1;
const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const ICMP6: u8 = 58;
const DESTINATION_OPTIONS: u8 = 60;

/// Extension headers that are skipped. RFC 8200 (section 4.1) knows one more in front of a transport
/// header that can be skipped at all; two are seen.
const MAX_EXTENSIONS: usize = 3;

/// Parts of the first word of an IPv6 header.
const VERSION: u32 = 0xf000_0000_u32.to_be();
const VERSION_6: u32 = 0x6000_0000_u32.to_be();
const CLASS_AND_LABEL: u32 = 0x0fff_ffff_u32.to_be();

/// The offset in a fragment header, in units of eight bytes.
pub const FRAGMENT_OFFSET6: u16 = 0xfff8_u16.to_be();

/// Bytes in front of the packet in an ICMP or ICMPv6 error.
pub const ERROR_LEN: usize = 8;

#[repr(C)]
pub struct Ipv6Header {
    version_class_label: u32,
    payload_len: u16,
    pub next: u8,
    hop_limit: u8,
    pub source: [u32; 4],
    pub destination: [u32; 4],
}

/// The beginning of every extension header; the third and fourth byte are a routing header's.
#[repr(C)]
#[derive(Clone, Copy)]
struct ExtensionHeader {
    next: u8,
    /// In units of eight bytes, without the first eight.
    length: u8,
    routing_kind: u8,
    segments_left: u8,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct FragmentHeader {
    pub next: u8,
    reserved: u8,
    pub offset: u16,
    id: u32,
}

/// Which part of a packet a packet is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The first fragment, with the transport header.
    First,
    /// Another fragment, without.
    Later,
}

/// What the IP headers of a packet say. Everything in wire order.
#[derive(Clone, Copy)]
pub struct Headers {
    pub source: Address,
    pub destination: Address,
    /// Of the transport header.
    pub protocol: u8,
    /// Offset in bytes of the transport header.
    pub transport: usize,
    pub part: Part,
    /// What all fragments of a packet have in common.
    pub id: u32,
}

/// The packet that an ICMP error is about. Everything in wire order.
#[derive(Clone, Copy)]
pub struct Subject {
    pub source: Address,
    pub destination: Address,
    pub protocol: u8,
    pub ports: (u16, u16),
    /// Offset in bytes of its transport header.
    pub transport: usize,
}

/// The headers of a packet of either IP version; nothing when it is another one, not well-formed, or
/// hides what comes after them.
#[inline(always)]
pub fn of_packet(ctx: &TcContext) -> Option<Headers> {
    match packet::ipv4(ctx) {
        Some(ip) => Some(ip.headers()),
        None => ipv6(ctx),
    }
}

/// The headers of an IPv6 packet; nothing when it is another one, not well-formed, or hides what
/// comes after them.
#[inline(always)]
pub fn ipv6(ctx: &TcContext) -> Option<Headers> {
    let header = ipv6_header(ctx)?;
    let mut headers = Headers {
        source: Address::from_words(header.source),
        destination: Address::from_words(header.destination),
        protocol: header.next,
        transport: ETHERNET_LEN + size_of::<Ipv6Header>(),
        part: Part::Whole,
        id: 0,
    };
    if !is_transport(headers.protocol) {
        skip_extensions(ctx, &mut headers)?;
    }
    Some(headers)
}

/// Source, destination, and traffic class and flow label (in wire order) of an IPv6 packet; nothing
/// when it is another one or not well-formed.
#[inline(always)]
pub fn ipv6_addresses(ctx: &TcContext) -> Option<(Address, Address, u32)> {
    let header = ipv6_header(ctx)?;
    Some((
        Address::from_words(header.source),
        Address::from_words(header.destination),
        header.version_class_label & CLASS_AND_LABEL,
    ))
}

#[inline(always)]
fn ipv6_header<'a>(ctx: &'a TcContext) -> Option<&'a Ipv6Header> {
    // SAFETY: the kernel gives every program a valid context.
    if unsafe { (*ctx.skb.skb).protocol } != PROTOCOL_IPV6 {
        return None;
    }
    let Some(header) = reach::<Ipv6Header>(ctx, ETHERNET_LEN) else {
        count(Counter::Malformed);
        return None;
    };
    // SAFETY: `reach` compared the header's end with the packet's.
    let header = unsafe { &*header };
    if header.version_class_label & VERSION != VERSION_6 {
        count(Counter::Malformed);
        return None;
    }
    Some(header)
}

#[inline(always)]
fn has_ports(protocol: u8) -> bool {
    matches!(protocol, PROTOCOL_TCP | PROTOCOL_UDP | PROTOCOL_SCTP)
}

#[inline(always)]
fn is_transport(protocol: u8) -> bool {
    has_ports(protocol) || protocol == ICMP6
}

/// Goes on to the transport header. Nothing when there is none, or none to be seen.
#[inline(always)]
fn skip_extensions(ctx: &TcContext, headers: &mut Headers) -> Option<()> {
    for _ in 0..MAX_EXTENSIONS {
        match headers.protocol {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {
                let header: ExtensionHeader = copy(ctx, headers.transport)?;
                // Not there yet: the destination is only the next stop.
                if headers.protocol == ROUTING && header.segments_left != 0 {
                    return None;
                }
                headers.protocol = header.next;
                headers.transport += (usize::from(header.length) + 1) * 8;
            }
            FRAGMENT => {
                let header: FragmentHeader = copy(ctx, headers.transport)?;
                headers.protocol = header.next;
                headers.transport += size_of::<FragmentHeader>();
                headers.id = header.id;
                if header.offset & FRAGMENT_OFFSET6 != 0 {
                    headers.part = Part::Later;
                    return Some(());
                }
                headers.part = Part::First;
            }
            _ => return None,
        }
        if is_transport(headers.protocol) {
            return Some(());
        }
    }
    count(Counter::Extensions);
    None
}

impl Headers {
    /// The ports of TCP, UDP or SCTP; nothing for other protocols, and in a fragment after the first.
    #[inline(always)]
    pub fn ports(&self, ctx: &TcContext) -> Option<Ports> {
        const PLAIN: usize = ETHERNET_LEN + size_of::<Ipv6Header>();
        if self.part == Part::Later {
            return None;
        }
        if !has_ports(self.protocol) {
            return None;
        }
        if self.transport == PLAIN {
            return ports_at(ctx, self.protocol, PLAIN);
        }
        if self.protocol == PROTOCOL_TCP {
            let header: TcpHeader = copy(ctx, self.transport)?;
            return Some(Ports {
                source: header.ports.source,
                destination: header.ports.destination,
                tcp_flags: header.flags,
                is_tcp: true,
            });
        }
        let header: PortsHeader = copy(ctx, self.transport)?;
        Some(Ports {
            source: header.source,
            destination: header.destination,
            tcp_flags: 0,
            is_tcp: false,
        })
    }

    /// What all fragments of this packet have in common.
    #[inline(always)]
    pub fn fragment_key(&self) -> FragmentKey {
        FragmentKey::from_wire(self.source, self.destination, self.id, self.protocol)
    }

    /// The packet that an ICMP error is about; nothing when this is none that IPVS translates.
    #[inline(always)]
    pub fn subject(&self, ctx: &TcContext) -> Option<Subject> {
        if self.part != Part::Whole {
            return None;
        }
        match self.protocol {
            ICMP => subject4(ctx, self.transport),
            ICMP6 => subject6(ctx, self.transport),
            _ => None,
        }
    }
}

/// Of an ICMP error (RFC 792): destination unreachable, time exceeded.
#[inline(always)]
fn subject4(ctx: &TcContext, icmp: usize) -> Option<Subject> {
    let kind: u8 = copy(ctx, icmp)?;
    if kind != 3 && kind != 11 {
        return None;
    }
    let ip: Ipv4Header = copy(ctx, icmp + ERROR_LEN)?;
    let header_len = usize::from(ip.version_and_length & 0x0f) * 4;
    if header_len < IPV4_MIN_LEN || !has_ports(ip.protocol) || ip.fragment & FRAGMENT_OFFSET != 0 {
        return None;
    }
    let ports: PortsHeader = copy(ctx, icmp + ERROR_LEN + header_len)?;
    Some(Subject {
        source: Address::from_ipv4_word(ip.source),
        destination: Address::from_ipv4_word(ip.destination),
        protocol: ip.protocol,
        ports: (ports.source, ports.destination),
        transport: icmp + ERROR_LEN + header_len,
    })
}

/// Of an ICMPv6 error (RFC 4443): destination unreachable, packet too big, time exceeded.
#[inline(always)]
fn subject6(ctx: &TcContext, icmp: usize) -> Option<Subject> {
    let kind: u8 = copy(ctx, icmp)?;
    if kind < 1 || kind > 3 {
        return None;
    }
    let ip: Ipv6Header = copy(ctx, icmp + ERROR_LEN)?;
    let mut protocol = ip.next;
    let mut transport = icmp + ERROR_LEN + size_of::<Ipv6Header>();
    if protocol == FRAGMENT {
        let header: FragmentHeader = copy(ctx, transport)?;
        if header.offset & FRAGMENT_OFFSET6 != 0 {
            return None;
        }
        protocol = header.next;
        transport += size_of::<FragmentHeader>();
    }
    if !has_ports(protocol) {
        return None;
    }
    let ports: PortsHeader = copy(ctx, transport)?;
    Some(Subject {
        source: Address::from_words(ip.source),
        destination: Address::from_words(ip.destination),
        protocol,
        ports: (ports.source, ports.destination),
        transport,
    })
}

/// A copy of the `T` at `offset` bytes; nothing when the packet ends before it does.
#[inline(always)]
fn copy<T>(ctx: &TcContext, offset: usize) -> Option<T> {
    let copied = ctx.load(offset).ok();
    if copied.is_none() {
        count(Counter::Malformed);
    }
    copied
}
