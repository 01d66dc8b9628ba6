//! Published ports.

use core::fmt;
use core::net::IpAddr;

use crate::Address;
use crate::word::{halves, word};

/// Transport protocols of a published port, by their IP protocol number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Protocol {
    /// TCP.
    Tcp = 6,
    /// UDP.
    Udp = 17,
    /// SCTP.
    Sctp = 132,
}

impl Protocol {
    /// The protocol with this `IPPROTO_*` number.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }
}

/// Where clients reach a service: an address of this node, a port, a protocol.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublishedKey {
    address: Address,
    /// The port in wire order, and the protocol number: see [`word`].
    port_and_protocol: u32,
}

impl PublishedKey {
    /// `port` in host order.
    pub fn new(address: IpAddr, port: u16, protocol: Protocol) -> Self {
        Self::from_wire(address.into(), port.to_be(), protocol as u8)
    }

    /// `port_be` and `protocol` as read from a packet.
    #[inline(always)]
    pub const fn from_wire(address: Address, port_be: u16, protocol: u8) -> Self {
        Self {
            address,
            port_and_protocol: word(port_be, (protocol as u16).to_le()),
        }
    }

    /// Node address, port, and the protocol where it is one of ours.
    pub fn parts(&self) -> (IpAddr, u16, Option<Protocol>) {
        let (port, protocol) = self.port_and_number();
        (self.address.to_ip(), port, Protocol::from_number(protocol))
    }

    /// Port in host order, and protocol number.
    const fn port_and_number(&self) -> (u16, u8) {
        let (port_be, protocol) = halves(self.port_and_protocol);
        (u16::from_be(port_be), u16::from_le(protocol) as u8)
    }
}

impl fmt::Debug for PublishedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (port, protocol) = self.port_and_number();
        write!(f, "{:?} port {port} protocol {protocol}", self.address)
    }
}

/// What is published there.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishedValue {
    /// Index of the service in the map `service_stats`. Chosen by the agent.
    pub service: u32,
    /// Bits of [`published_flag`].
    pub flags: u32,
}

/// Bits of [`PublishedValue::flags`].
pub mod published_flag {
    /// Only clients that the map `sources` has for this port may use it.
    pub const SOURCES: u32 = 1;
    /// No task answers it on this node: it is left to the ingress namespace to refuse.
    pub const NO_TASK: u32 = 2;
}

/// Who may use a published port: the data of a key of the trie `sources`. All of it but the
/// address has to match; of the address, the key's prefix.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceKey {
    port_be: u16,
    protocol: u8,
    /// 4 or 6: `::/0` is every IPv6 client and no IPv4 one.
    family: u8,
    address: Address,
}

impl SourceKey {
    /// Bits before the address.
    const FIXED_BITS: u32 = 32;
    /// Bits before an IPv4 address in a v4-mapped one.
    const MAPPED_BITS: u32 = 96;
    /// Bits of a whole key.
    pub const BITS: u32 = Self::FIXED_BITS + 128;

    /// Clients of `port` (host order) within the network of `address` and `length` bits; with the
    /// number of bits of the key that count.
    pub fn new(port: u16, protocol: Protocol, address: IpAddr, length: u8) -> (Self, u32) {
        let before = Self::FIXED_BITS
            + match address {
                IpAddr::V4(_) => Self::MAPPED_BITS,
                IpAddr::V6(_) => 0,
            };
        let key = Self::from_wire(port.to_be(), protocol as u8, address.into());
        (key, before + u32::from(length))
    }

    /// A client, as read from a packet.
    #[inline(always)]
    pub const fn from_wire(port_be: u16, protocol: u8, client: Address) -> Self {
        Self {
            port_be,
            protocol,
            family: if client.is_ipv4() { 4 } else { 6 },
            address: client,
        }
    }

    /// Port, protocol and range (its address and length in bits) of a key of which `bits` count;
    /// nothing for one that [`new`](Self::new) does not make.
    pub fn parts(&self, bits: u32) -> Option<(u16, Protocol, IpAddr, u8)> {
        let address = self.address.to_ip();
        let protocol = Protocol::from_number(self.protocol)?;
        let port = u16::from_be(self.port_be);
        let (_, before) = Self::new(port, protocol, address, 0);
        let length = u8::try_from(bits.checked_sub(before)?).ok()?;
        Some((port, protocol, address, length))
    }
}

impl fmt::Debug for SourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = u16::from_be(self.port_be);
        write!(
            f,
            "{:?} to port {port} protocol {}",
            self.address, self.protocol
        )
    }
}

const _: () = assert!(size_of::<PublishedKey>() == 20);
const _: () = assert!(size_of::<PublishedValue>() == 8);
const _: () = assert!(size_of::<SourceKey>() == 20);

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, 16 + 2 + 1 + 1 bytes, no padding; integers only.
    unsafe impl aya::Pod for super::PublishedKey {}
    // SAFETY: `repr(C)`, two `u32`, no padding; every bit pattern is a value.
    unsafe impl aya::Pod for super::PublishedValue {}
    // SAFETY: `repr(C)`, 2 + 1 + 1 + 16 bytes, no padding; integers only.
    unsafe impl aya::Pod for super::SourceKey {}
}
