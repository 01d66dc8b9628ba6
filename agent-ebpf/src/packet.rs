//! Reading the headers of ordinary packets: Ethernet, IPv4, and the ports of TCP, UDP and SCTP. The
//! others are read by `headers`.
//!
//! Headers are read in place. Where they are not in the linear part of the packet they are pulled
//! there first; every access is compared with the packet's end, which the verifier insists on.

use aya_ebpf::programs::TcContext;
use swarm_ebpf_common::{Address, Counter, Protocol};

use crate::count::count;
use crate::headers::{Headers, Part};

/// `ETH_P_IP` as `__sk_buff::protocol` holds it.
pub const PROTOCOL_IPV4: u32 = 0x0800_u16.to_be() as u32;
pub const PROTOCOL_TCP: u8 = Protocol::Tcp as u8;
pub const PROTOCOL_UDP: u8 = Protocol::Udp as u8;
pub const PROTOCOL_SCTP: u8 = Protocol::Sctp as u8;
/// Length in bytes of an Ethernet header.
pub const ETHERNET_LEN: usize = size_of::<EthernetHeader>();
/// Length in bytes of an IPv4 header without options.
pub const IPV4_MIN_LEN: usize = size_of::<Ipv4Header>();
/// Version and length of an IPv4 header without options.
pub const PLAIN_IPV4: u8 = 0x45;
/// The 13 bits of a fragment's offset.
pub const FRAGMENT_OFFSET: u16 = 0x1fff_u16.to_be();
/// The offset, and the bit that says that more fragments follow: all zero of a whole packet.
const FRAGMENT: u16 = 0x3fff_u16.to_be();

/// Bits of [`Ports::tcp_flags`] (RFC 9293, section 3.1).
pub mod tcp {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// First packet of a connection.
    pub const SYN: u8 = 0x02;
    /// The connection is void.
    pub const RST: u8 = 0x04;
    /// Set on all but the first packet of a connection.
    pub const ACK: u8 = 0x10;
}

#[repr(C)]
pub struct EthernetHeader {
    pub destination: [u8; 6],
    pub source: [u8; 6],
    pub kind: u16,
}

#[repr(C)]
pub struct Ipv4Header {
    pub version_and_length: u8,
    pub tos: u8,
    total_len: u16,
    id: u16,
    pub fragment: u16,
    pub ttl: u8,
    pub protocol: u8,
    pub checksum: u16,
    pub source: u32,
    pub destination: u32,
}

#[repr(C)]
pub struct PortsHeader {
    pub source: u16,
    pub destination: u16,
}

/// The TCP header up to its flags.
#[repr(C)]
pub struct TcpHeader {
    pub ports: PortsHeader,
    sequence: u32,
    acknowledgement: u32,
    length: u8,
    pub flags: u8,
    window: u16,
}

/// What an IPv4 header says. Everything in wire order.
#[derive(Clone, Copy)]
pub struct Ipv4 {
    pub source: u32,
    pub destination: u32,
    pub protocol: u8,
    pub tos: u8,
    id: u16,
    header_len: usize,
    fragment: u16,
}

impl Ipv4 {
    /// The source as a map key.
    #[inline(always)]
    pub fn source_address(&self) -> Address {
        Address::from_ipv4_word(self.source)
    }

    /// The destination as a map key.
    #[inline(always)]
    pub fn destination_address(&self) -> Address {
        Address::from_ipv4_word(self.destination)
    }

    /// The same in the form that both IP versions have.
    #[inline(always)]
    pub fn headers(&self) -> Headers {
        let part = if self.fragment & FRAGMENT == 0 {
            Part::Whole
        } else if self.fragment & FRAGMENT_OFFSET == 0 {
            Part::First
        } else {
            Part::Later
        };
        Headers {
            source: self.source_address(),
            destination: self.destination_address(),
            protocol: self.protocol,
            transport: ETHERNET_LEN + self.header_len,
            part,
            id: u32::from(self.id),
        }
    }
}

/// What the header of a transport protocol says. Ports in wire order.
#[derive(Clone, Copy)]
pub struct Ports {
    pub source: u16,
    pub destination: u16,
    /// Zero for UDP and SCTP. See [`tcp`].
    pub tcp_flags: u8,
    pub is_tcp: bool,
}

/// The source MAC address.
#[inline(always)]
pub fn source_mac(ctx: &TcContext) -> Option<[u8; 6]> {
    Some(macs(ctx)?.1)
}

/// Destination and source MAC address.
#[inline(always)]
pub fn macs(ctx: &TcContext) -> Option<([u8; 6], [u8; 6])> {
    let header: *const EthernetHeader = reach(ctx, 0)?;
    // SAFETY: `reach` compared the header's end with the packet's.
    Some(unsafe { ((*header).destination, (*header).source) })
}

/// The IPv4 header; nothing when the packet is not IPv4 or not well-formed.
#[inline(always)]
pub fn ipv4(ctx: &TcContext) -> Option<Ipv4> {
    // SAFETY: the kernel gives every program a valid context.
    if unsafe { (*ctx.skb.skb).protocol } != PROTOCOL_IPV4 {
        return None;
    }
    let Some(header) = reach::<Ipv4Header>(ctx, ETHERNET_LEN) else {
        count(Counter::Malformed);
        return None;
    };
    // SAFETY: `reach` compared the header's end with the packet's.
    let header = unsafe { &*header };
    let header_len = usize::from(header.version_and_length & 0x0f) * 4;
    if header.version_and_length >> 4 != 4 || header_len < IPV4_MIN_LEN {
        count(Counter::Malformed);
        return None;
    }
    Some(Ipv4 {
        source: header.source,
        destination: header.destination,
        protocol: header.protocol,
        tos: header.tos,
        id: header.id,
        header_len,
        fragment: header.fragment,
    })
}

/// The ports of a whole packet; nothing for other protocols.
#[inline(always)]
pub fn ports(ctx: &TcContext, ip: &Ipv4) -> Option<Ports> {
    // The ports of all three are their first four bytes.
    if !matches!(ip.protocol, PROTOCOL_TCP | PROTOCOL_UDP | PROTOCOL_SCTP) {
        return None;
    }
    if ip.fragment & FRAGMENT != 0 {
        return None;
    }
    ports_at(ctx, ip.protocol, ETHERNET_LEN + ip.header_len)
}

/// The ports in the header of one of the three at `offset` bytes.
#[inline(always)]
pub fn ports_at(ctx: &TcContext, protocol: u8, offset: usize) -> Option<Ports> {
    let ports = if protocol == PROTOCOL_TCP {
        reach::<TcpHeader>(ctx, offset).map(|header| {
            // SAFETY: `reach` compared the header's end with the packet's.
            let header = unsafe { &*header };
            Ports {
                source: header.ports.source,
                destination: header.ports.destination,
                tcp_flags: header.flags,
                is_tcp: true,
            }
        })
    } else {
        reach::<PortsHeader>(ctx, offset).map(|header| {
            // SAFETY: `reach` compared the header's end with the packet's.
            let header = unsafe { &*header };
            Ports {
                source: header.source,
                destination: header.destination,
                tcp_flags: 0,
                is_tcp: false,
            }
        })
    };
    if ports.is_none() {
        count(Counter::Malformed);
    }
    ports
}

/// A pointer to the `T` at `offset` bytes, wholly inside the packet. Valid until a helper that
/// changes the packet is called.
#[inline(always)]
pub fn reach<T>(ctx: &TcContext, offset: usize) -> Option<*const T> {
    if let Some(found) = within::<T>(ctx, offset) {
        return Some(found);
    }
    ctx.pull_data((offset + size_of::<T>()) as u32).ok()?;
    within::<T>(ctx, offset)
}

/// As [`reach`], in the linear part only. Aligned as far as this architecture cares: the verifier
/// refuses the load otherwise.
#[inline(always)]
fn within<T>(ctx: &TcContext, offset: usize) -> Option<*const T> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() {
        return None;
    }
    Some(start as *const T)
}
